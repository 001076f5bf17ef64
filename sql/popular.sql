-- Popular products: units paid for in the last 72 hour-buckets, the running hour included.
\set ECHO none
\i sql/setup.inc
\set ECHO all
SET shop.test_clock = '2026-11-17 11:00:00+00';
SELECT shop.create_product('P' || i, 100 * i, 1000) FROM generate_series(1, 8) i;
SELECT balance FROM shop.charge_points(1, 1000000);
-- Sells some units of one product at a time of the clock
CREATE FUNCTION public.sell(at timestamptz, product_id bigint, quantity integer) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('shop.test_clock', at::text, false);
    RETURN (SELECT total FROM shop.place_order(1, jsonb_build_array(jsonb_build_object('product_id', product_id, 'quantity', quantity))));
END
$$;
-- Nothing sold, nothing popular
SELECT * FROM shop.top_products();
SELECT shop.refresh_popular_products();
SELECT * FROM shop.top_products();
--
-- The window's edges: at 12:30 on the 20th it begins with the hour of 13:00 on the 17th
--
SELECT public.sell('2026-11-17 12:59:59.999999+00', 1, 100);
SELECT public.sell('2026-11-17 13:00:00+00', 2, 5);
SELECT public.sell('2026-11-17 13:59:59.999999+00', 3, 4);
SELECT public.sell('2026-11-17 14:00:00+00', 4, 3);
SELECT public.sell('2026-11-20 12:00:00+00', 5, 2);
SELECT public.sell('2026-11-20 12:30:00+00', 6, 1);
SELECT public.sell('2026-11-20 13:00:00+00', 7, 50);
SET shop.test_clock = '2026-11-20 12:30:00+00';
-- Sold, not refreshed yet
SELECT * FROM shop.top_products();
SELECT shop.refresh_popular_products();
SELECT * FROM shop.popular_products ORDER BY rank;
SELECT hour, product_id, quantity, revenue FROM shop.product_sales ORDER BY hour, product_id;
-- The last moment of the hour is the same window; the next hour drops one bucket and takes one in
SET shop.test_clock = '2026-11-20 12:59:59.999999+00';
SELECT shop.refresh_popular_products();
SELECT rank, product_id, quantity FROM shop.top_products(100);
SET shop.test_clock = '2026-11-20 13:00:00+00';
SELECT shop.refresh_popular_products();
SELECT rank, product_id, quantity FROM shop.top_products(100);
-- Long after, nothing is left; the view is what it was until it is refreshed
SET shop.test_clock = '2026-11-23 12:59:59+00';
SELECT rank, product_id, quantity FROM shop.top_products(1);
SELECT shop.refresh_popular_products();
SELECT rank, product_id, quantity FROM shop.top_products(100);
SET shop.test_clock = '2026-11-23 13:00:00+00';
SELECT shop.refresh_popular_products();
SELECT rank, product_id, quantity FROM shop.top_products(100);
-- Hours are UTC's, also for a session half an hour off
SET TimeZone = 'Asia/Kolkata';
SELECT public.sell('2026-11-25 10:45:00+00', 8, 1);
SET shop.test_clock = '2026-11-28 09:59:59+00';
SELECT shop.refresh_popular_products() = '2026-11-28 09:59:59+00';
SELECT product_id, quantity FROM shop.top_products();
SET shop.test_clock = '2026-11-28 10:00:00+00';
SELECT shop.refresh_popular_products() = '2026-11-28 10:00:00+00';
SELECT product_id, quantity FROM shop.top_products();
RESET TimeZone;
SET TimeZone = 'UTC';
--
-- A refresh without a sale is the same ranking, of now; sales stay when the window has passed them
--
SELECT public.sell('2026-12-01 10:10:00+00', 3, 2);
SELECT shop.refresh_popular_products();
SET shop.test_clock = '2026-12-01 10:20:00+00';
SELECT shop.refresh_popular_products();
SELECT rank, product_id, quantity, refreshed_at FROM shop.top_products();
SELECT sum(quantity) FROM shop.product_sales;
--
-- Ranking: by units, equal units by product_id; lines and orders add up; revenue is no matter
--
SELECT public.sell('2026-12-10 10:00:00+00', 8, 3);
SELECT public.sell('2026-12-10 11:00:00+00', 2, 1);
SELECT public.sell('2026-12-10 12:00:00+00', 2, 2);
SELECT public.sell('2026-12-10 12:10:00+00', 5, 3);
SELECT public.sell('2026-12-10 12:20:00+00', 1, 4);
SELECT public.sell('2026-12-10 12:30:00+00', 7, 2);
SELECT total FROM shop.place_order(1, '[{"product_id": 6, "quantity": 1}, {"product_id": 3, "quantity": 1}, {"product_id": 6, "quantity": 1}]');
SELECT shop.refresh_popular_products();
SELECT rank, product_id, name, quantity, revenue FROM shop.popular_products ORDER BY rank;
-- top_products: five by default
SELECT rank, product_id, name, quantity, revenue, refreshed_at FROM shop.top_products();
SELECT rank, product_id FROM shop.top_products(1);
SELECT rank, product_id FROM shop.top_products(n => 2);
SELECT count(*) FROM shop.top_products(1000);
\a
SELECT n, r.* FROM unnest('{NULL,0,-1,1001,2147483647}'::text[]) n,
       LATERAL public.refusal(format('SELECT * FROM shop.top_products(%s)', coalesce(n, 'NULL'))) r;
\a
-- The name is the catalogue's, as of the refresh; what is no longer on sale still sold
UPDATE shop.product SET name = 'Renamed' WHERE product_id = 1;
SELECT status FROM shop.set_product_status(1, 'discontinued');
SELECT name FROM shop.top_products(1);
SELECT shop.refresh_popular_products();
SELECT name FROM shop.top_products(1);
-- Charges, uses and events of the application's own do not count
SELECT amount FROM shop.charge_points(1, 10);
SELECT amount FROM shop.use_points(1, 10);
SELECT count(*) FROM (SELECT shop.emit_event('order.paid.fake', 'order', '1', '{"lines": [{"product_id": 1, "quantity": 100}]}')) e;
SELECT shop.refresh_popular_products();
SELECT rank, product_id, quantity FROM shop.top_products(1);
-- What is rolled back was not sold
BEGIN;
SELECT public.sell('2026-12-10 12:30:00+00', 2, 100);
ROLLBACK;
SET shop.test_clock = '2026-12-10 12:30:00+00';
SELECT shop.refresh_popular_products();
SELECT rank, product_id, quantity FROM shop.top_products(2);
-- A refresh is part of the caller's transaction
BEGIN;
SELECT public.sell('2026-12-10 12:30:00+00', 2, 100);
SELECT shop.refresh_popular_products();
SELECT rank, product_id, quantity FROM shop.top_products(1);
ROLLBACK;
SET shop.test_clock = '2026-12-10 12:30:00+00';
SELECT rank, product_id, quantity FROM shop.top_products(1);
--
-- What is taken back comes off the hour of its payment; at or below 0 a product is left out
--
BEGIN;
SELECT shop.fold_sales(ARRAY[
    '{"type": "order.refunded", "data": {"paid_at": "2026-12-10T12:05:00.000000Z", "lines": [{"product_id": 2, "quantity": 1, "total": 200}]}}',
    '{"type": "order.cancelled", "data": {"paid_at": "2026-12-10T12:10:00.000000Z", "lines": [{"product_id": 5, "quantity": 3, "total": 1500}]}}',
    '{"type": "order.refunded", "data": {"paid_at": "2026-12-10T12:30:00.000000Z", "lines": [{"product_id": 7, "quantity": 3, "total": 2100}]}}'
    ]::jsonb[]);
SELECT shop.refresh_popular_products();
SELECT rank, product_id, quantity, revenue FROM shop.top_products(100);
SELECT hour, product_id, quantity, revenue FROM shop.product_sales WHERE hour >= '2026-12-10' ORDER BY hour, product_id;
ROLLBACK;
SELECT * FROM public.refusal('SELECT shop.fold_sales(NULL)');
-- A view that has no data yet, as after a restore of the schema alone
REFRESH MATERIALIZED VIEW shop.popular_products WITH NO DATA;
SELECT shop.refresh_popular_products();
SELECT rank, product_id, quantity FROM shop.top_products(1);
-- deliver_events folds too, the built-in subscriber does not count
SELECT public.sell('2026-12-10 12:40:00+00', 4, 9);
SELECT shop.deliver_events();
SELECT sum(quantity) FROM shop.product_sales WHERE product_id = 4 AND hour = '2026-12-10 12:00+00';
SELECT * FROM shop.verify();
\set ECHO none
DROP FUNCTION public.sell(timestamptz, bigint, integer);
