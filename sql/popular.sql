-- Popular products: units paid for in the last 72 hour-buckets.
\set ECHO none
\i sql/setup.inc
\set ECHO all
SELECT shop.create_product(name, price, 1000) AS product_id
  FROM unnest('{Tea,Cup,Pot,Jar,Mug,Tin}'::text[], '{10,20,30,0,50,60}'::bigint[]) v(name, price);
SELECT balance FROM shop.charge_points(1, 1000000);
CREATE FUNCTION public.buy(at timestamptz, product bigint, quantity integer) RETURNS void
    LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('shop.test_clock', at::text, false);
    PERFORM shop.place_order(1, jsonb_build_array(jsonb_build_object('product_id', product, 'quantity', quantity)));
END
$$;

-- Nothing sold
SELECT count(*) FROM shop.popular_products;
SELECT count(*) FROM shop.top_products();
SELECT shop.refresh_popular_products() IS NOT NULL AS refreshed;
SELECT count(*) FROM shop.top_products();

--
-- What a sale adds: the view changes with the refresh, not before
--
SELECT buy('2026-11-20 12:30:00+00', 1, 3), buy('2026-11-20 12:59:59.999999+00', 2, 5);
SELECT count(*) FROM shop.top_products();
SET shop.test_clock = '2026-11-20 13:00:00.5+00';
SELECT shop.refresh_popular_products();
SELECT * FROM shop.top_products();
SELECT hour, product_id, quantity, revenue FROM shop.product_sales ORDER BY 1, 2;
-- Again without a sale: the same, of now
SET shop.test_clock = '2026-11-20 13:10:00+00';
SELECT shop.refresh_popular_products();
SELECT rank, product_id, quantity, revenue, refreshed_at FROM shop.top_products();
-- More of the same product, in the same hour and in the next one; 3 + 4 + 1 = 8
SELECT buy('2026-11-20 12:00:00+00', 1, 4), buy('2026-11-20 13:00:00+00', 1, 1);
SET shop.test_clock = '2026-11-20 13:20:00+00';
SELECT shop.refresh_popular_products();
SELECT rank, product_id, name, quantity, revenue FROM shop.top_products();
SELECT hour, product_id, quantity, revenue FROM shop.product_sales ORDER BY 1, 2;
-- Hours are UTC's, in a session of Nepal (+05:45) too
SET TimeZone = 'Asia/Kathmandu';
SELECT buy('2026-11-20 13:44:00+00', 3, 1), buy('2026-11-20 14:16:00+00', 3, 1);
SELECT shop.refresh_popular_products() IS NOT NULL AS refreshed;
SET TimeZone = 'UTC';
SELECT hour, quantity FROM shop.product_sales WHERE product_id = 3 ORDER BY 1;

--
-- Ranking: equal units, smaller product_id first; revenue does not count
--
SELECT buy('2026-11-20 14:30:00+00', 6, 5), buy('2026-11-20 14:30:00+00', 5, 5), buy('2026-11-20 14:30:00+00', 4, 8);
SELECT shop.refresh_popular_products() IS NOT NULL AS refreshed;
SELECT rank, product_id, name, quantity, revenue FROM shop.top_products(10);
-- top_products: five unless told otherwise
SELECT count(*) FROM shop.top_products();
SELECT product_id FROM shop.top_products(1);
SELECT product_id FROM shop.top_products(n => 3);
SELECT count(*) FROM shop.top_products(1000);
SELECT * FROM refusal('SELECT shop.top_products(0)');
SELECT refused('SELECT shop.top_products(1001)');
SELECT refused('SELECT shop.top_products(-1)');
SELECT * FROM refusal('SELECT shop.top_products(NULL)');

--
-- The window: the running hour and the 71 before it.  What was sold in the
-- hour of 12:00 on the 20th counts until 12:00 on the 23rd.
--
SET shop.test_clock = '2026-11-23 11:59:59.999999+00';
SELECT shop.refresh_popular_products() IS NOT NULL AS refreshed;
SELECT product_id, quantity FROM shop.popular_products ORDER BY rank;
SET shop.test_clock = '2026-11-23 12:00:00+00';
SELECT shop.refresh_popular_products() IS NOT NULL AS refreshed;
SELECT product_id, quantity FROM shop.popular_products ORDER BY rank;
SET shop.test_clock = '2026-11-23 13:00:00+00';
SELECT shop.refresh_popular_products() IS NOT NULL AS refreshed;
SELECT product_id, quantity FROM shop.popular_products ORDER BY rank;
SET shop.test_clock = '2026-11-23 14:00:00+00';
SELECT shop.refresh_popular_products() IS NOT NULL AS refreshed;
SELECT product_id, quantity FROM shop.popular_products ORDER BY rank;
-- The sales themselves stay
SELECT sum(quantity) FROM shop.product_sales;
-- The running hour is included, down to its last microsecond
SELECT buy('2026-11-23 14:59:59.999999+00', 2, 7);
SELECT shop.refresh_popular_products() IS NOT NULL AS refreshed;
SELECT product_id, quantity FROM shop.popular_products;
-- What lies ahead of the clock is not
SELECT buy('2026-11-23 16:00:00+00', 3, 2);
SET shop.test_clock = '2026-11-23 15:59:59.999999+00';
SELECT shop.refresh_popular_products() IS NOT NULL AS refreshed;
SELECT product_id, quantity FROM shop.popular_products ORDER BY rank;
SET shop.test_clock = '2026-11-23 16:00:00+00';
SELECT shop.refresh_popular_products() IS NOT NULL AS refreshed;
SELECT product_id, quantity FROM shop.popular_products ORDER BY rank;

--
-- Whatever is taken off a sale later is taken off its hour; at or below 0: left out.
-- These are the events as they will look; the built-in subscriber is called by hand.
--
BEGIN;
SELECT shop.fold_sales(ARRAY[jsonb_build_object('type', 'order.cancelled', 'data', jsonb_build_object(
    'paid_at', '2026-11-23T14:59:59.999999Z', 'lines', '[{"product_id": 2, "quantity": 7, "total": 140}]'::jsonb))]);
SELECT shop.refresh_popular_products() IS NOT NULL AS refreshed;
SELECT product_id, quantity FROM shop.popular_products ORDER BY rank;
SELECT hour, quantity, revenue FROM shop.product_sales WHERE product_id = 2 AND hour > '2026-11-23';
ROLLBACK;
SELECT * FROM refusal('SELECT shop.fold_sales(NULL)');

--
-- A refresh sees what its own transaction sold, and is undone with it
--
BEGIN;
SELECT buy('2026-11-23 16:00:00+00', 6, 100);
SELECT shop.refresh_popular_products() IS NOT NULL AS refreshed;
SELECT product_id, quantity FROM shop.top_products(1);
ROLLBACK;
SET shop.test_clock = '2026-11-23 16:00:00+00';
SELECT product_id, quantity FROM shop.top_products(1);
SELECT shop.refresh_popular_products() IS NOT NULL AS refreshed;
SELECT product_id, quantity FROM shop.top_products(1);
-- Isolation levels, read-only transactions
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT shop.refresh_popular_products() IS NOT NULL AS refreshed;
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT shop.refresh_popular_products() IS NOT NULL AS refreshed;
COMMIT;
BEGIN READ ONLY;
SELECT count(*) FROM shop.top_products();
SELECT * FROM refusal('SELECT shop.refresh_popular_products()');
COMMIT;
-- Deleted view contents are filled again
REFRESH MATERIALIZED VIEW shop.popular_products WITH NO DATA;
SELECT shop.refresh_popular_products() IS NOT NULL AS refreshed;
SELECT product_id, quantity FROM shop.top_products(1);
RESET shop.test_clock;
SELECT * FROM shop.verify();
DROP FUNCTION public.buy(timestamptz, bigint, integer);
