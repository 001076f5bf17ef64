-- A shop whose numbers fuzz/calls knows: 20 products, 50 users, campaigns, and
-- endpoints of the database's own.
CREATE EXTENSION shop;
SELECT shop.create_product('product ' || n, n * 10, 1000000) FROM generate_series(1, 20) n;
SELECT shop.charge_points(u, 1000000000) FROM generate_series(1, 50) u;
SELECT shop.create_coupon_campaign('fixed ' || n, 'fixed', 10, 1000, now() - interval '1 day', now() + interval '1 year') FROM generate_series(1, 5) n;
SELECT shop.create_coupon_campaign('percent ' || n, 'percent', 10, 1000, now() - interval '1 day', now() + interval '1 year') FROM generate_series(1, 5) n;
SELECT shop.reserve_order(u, '[{"product_id": 1, "quantity": 2}]', '1 hour') FROM generate_series(1, 50) u;
SELECT shop.place_order(u, '[{"product_id": 2, "quantity": 2}, {"product_id": 3, "quantity": 1}]') FROM generate_series(1, 50) u;

-- What endpoints may call: one that takes every second event, one that is slow.
CREATE FUNCTION public.target(event jsonb) RETURNS void LANGUAGE plpgsql
AS $$ BEGIN IF hashtext(event->>'id') % 2 = 0 THEN RAISE 'not this one'; END IF; END $$;
CREATE FUNCTION public.slow_target(event jsonb) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(0.001)';

SELECT shop.grant_access('app', 'write');
SELECT shop.grant_access('manager', 'admin');
