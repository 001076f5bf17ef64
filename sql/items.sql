-- The items of an order: every shape that JSON can take.
\set ECHO none
\i sql/setup.inc
\set ECHO all
SELECT shop.create_product('P' || n, n, 2147483647) AS id FROM generate_series(1, 3) n;
SELECT balance FROM shop.charge_points(1, 1000000000000000);

--
-- What is no list of items: 22023, naming the argument and, where there is
-- one, the element
--
CREATE FUNCTION public.place(items jsonb) RETURNS text
    LANGUAGE sql AS $$
    SELECT concat_ws(' ', code, message, detail)
      FROM public.refusal(format('SELECT shop.place_order(1, %L)', items)) $$;
\pset tuples_only on
\pset format unaligned
\pset fieldsep ' -> '
SELECT items, place(items) FROM (VALUES
    (1, 'null'::jsonb), (2, 'true'), (3, '5'), (4, '"[]"'), (5, '{}'), (6, '{"product_id": 1, "quantity": 1}'),
    (7, '[]')) v(n, items) ORDER BY n;
SELECT items, place(items) FROM (VALUES
    (1, '[1]'::jsonb), (2, '[null]'), (3, '["x"]'), (4, '[true]'), (5, '[[]]'),
    (6, '[[{"product_id": 1, "quantity": 1}]]'), (7, '[{}]'),
    (8, '[{"product_id": 1, "quantity": 1}, null]'),
    (9, '[{"product_id": 1, "quantity": 1}, [1, 2]]')) v(n, items) ORDER BY n;
-- missing and unknown keys
SELECT items, place(items) FROM (VALUES
    (1, '[{"product_id": 1}]'::jsonb), (2, '[{"quantity": 1}]'),
    (3, '[{"product_id": 1, "quantity": 1}, {"product_id": 2}]'),
    (4, '[{"product_id": 1, "quantity": 1, "price": 1}]'),
    (5, '[{"product_id": 1, "quantity": 1, "Quantity": 1}]'),
    (6, '[{"product_id": 1, "quantity": 1, "": 1}]'),
    (7, '[{"product_id": 1, "quantity": 1, "a\"b\\\n": {"deep": [1, {"product_id": 9}]}}]'),
    (8, '[{"product_id ": 1, "quantity": 1}]'),
    (9, '[{"a": 1, "b": 2}]')) v(n, items) ORDER BY n;
-- quantity
SELECT items, place(items) FROM (VALUES
    (1, '[{"product_id": 1, "quantity": 0}]'::jsonb), (2, '[{"product_id": 1, "quantity": -1}]'),
    (3, '[{"product_id": 1, "quantity": null}]'), (4, '[{"product_id": 1, "quantity": "1"}]'),
    (5, '[{"product_id": 1, "quantity": true}]'), (6, '[{"product_id": 1, "quantity": [1]}]'),
    (7, '[{"product_id": 1, "quantity": {"n": 1}}]'), (8, '[{"product_id": 1, "quantity": 1.5}]'),
    (9, '[{"product_id": 1, "quantity": 0.9999999999999999999999}]'),
    (10, '[{"product_id": 1, "quantity": 2147483648}]'),
    (11, '[{"product_id": 1, "quantity": 4294967297}]'),
    (12, '[{"product_id": 1, "quantity": 9223372036854775807}]'),
    (13, '[{"product_id": 1, "quantity": -9223372036854775808}]'),
    (14, '[{"product_id": 1, "quantity": -0.0}]')) v(n, items) ORDER BY n;
-- numbers that no integer can hold
SELECT items, place(items) FROM (VALUES
    (1, '[{"product_id": 1, "quantity": 9223372036854775808}]'::jsonb),
    (2, '[{"product_id": 1, "quantity": 1e30}]'),
    (3, '[{"product_id": 9223372036854775808, "quantity": 1}]'),
    (4, '[{"product_id": -9223372036854775809, "quantity": 1}]'),
    (5, '[{"product_id": 1e-30, "quantity": 1}]')) v(n, items) ORDER BY n;
SELECT left(place('[{"product_id": 1, "quantity": 1e4000}]'), 70);
SELECT left(place('[{"product_id": 1e131071, "quantity": 1}]'), 70);
-- product_id
SELECT items, place(items) FROM (VALUES
    (1, '[{"product_id": "1", "quantity": 1}]'::jsonb), (2, '[{"product_id": null, "quantity": 1}]'),
    (3, '[{"product_id": 1.5, "quantity": 1}]'), (4, '[{"product_id": {}, "quantity": 1}]'),
    (5, '[{"product_id": [], "quantity": 1}]'), (6, '[{"product_id": false, "quantity": 1}]'))
    v(n, items) ORDER BY n;
-- integers that name no product: a refusal, not bad input
SELECT items, place(items) FROM (VALUES
    (1, '[{"product_id": 0, "quantity": 1}]'::jsonb), (2, '[{"product_id": -1, "quantity": 1}]'),
    (3, '[{"product_id": 9223372036854775807, "quantity": 1}]'),
    (4, '[{"product_id": -9223372036854775808, "quantity": 1}]'),
    (5, '[{"product_id": 4294967297, "quantity": 1}]')) v(n, items) ORDER BY n;
-- the first element that is wrong is the one that is named
SELECT place('[{"product_id": 1, "quantity": 1}, {"product_id": 2, "quantity": 0}, 7]');
\pset tuples_only off
\pset format aligned
\pset fieldsep '|'
SELECT * FROM refusal('SELECT shop.place_order(1, ''[{"product_id": 1}]'')');
SELECT * FROM refusal('SELECT shop.place_order(1, ''[]'')');
SELECT * FROM refusal('SELECT shop.place_order(1, NULL)');
SELECT * FROM refusal('SELECT shop.place_order(NULL, ''[]'')');
SELECT refused('SELECT shop.place_order(1, ''not json'')');
-- The twin raises bad input too
SELECT refused('SELECT shop.try_place_order(1, ''[]'')');
SELECT refused('SELECT shop.try_place_order(1, ''[{"product_id": 1, "quantity": 0}]'')');
SELECT refused('SELECT shop.try_place_order(1, NULL)');
-- Nothing was ordered
SELECT count(*) FROM shop.orders;

--
-- What is
--
-- An integer may be written with zeros behind the point, or with an exponent
SELECT order_id, subtotal FROM shop.place_order(1, '[{"product_id": 1.0, "quantity": 2.000}]');
SELECT order_id, subtotal FROM shop.place_order(1, '[{"product_id": 2e0, "quantity": 1E1}]');
SELECT order_id, subtotal FROM shop.place_order(1, '[{"quantity": 30e-1, "product_id": 3}]');
SELECT o.order_id, l.product_id, l.quantity FROM shop.orders o, shop.order_lines(o.order_id) l ORDER BY 1;
-- of a key named twice JSON keeps the last
SELECT subtotal FROM shop.place_order(1, '[{"product_id": 3, "product_id": 1, "quantity": 5, "quantity": 4}]');

-- A product named twice is summed before anything is checked; lines are
-- numbered by first mention
SELECT order_id, subtotal FROM shop.place_order(1,
    '[{"product_id": 3, "quantity": 1}, {"product_id": 1, "quantity": 2}, {"product_id": 3, "quantity": 4},
      {"product_id": 2, "quantity": 1}, {"product_id": 1, "quantity": 1}]') \gset
\echo :subtotal = 5 x 3 + 3 x 1 + 1 x 2
SELECT line_no, product_id, quantity, unit_price, subtotal FROM shop.order_lines(:order_id);
-- so that two mentions are short together where each alone is not
SELECT shop.create_product('Few', 1, 3) AS few \gset
SELECT refused(format('SELECT shop.place_order(1, ''[{"product_id": %1$s, "quantity": 2}, {"product_id": %1$s, "quantity": 2}]'')', :few));
-- and that their sum must be a quantity
SELECT * FROM refusal('SELECT shop.place_order(1, ''[{"product_id": 1, "quantity": 2147483647}, {"product_id": 1, "quantity": 1}]'')');
SELECT refused('SELECT shop.place_order(1, ''[{"product_id": 1, "quantity": 2147483646}, {"product_id": 1, "quantity": 2}]'')');
-- The largest quantity is one: 2,147,483,647 of product 3, at 3
UPDATE shop.stock SET on_hand = 2147483647 WHERE product_id = 3;
SELECT subtotal FROM shop.place_order(1, '[{"product_id": 3, "quantity": 2147483646}, {"product_id": 3, "quantity": 1}]');

-- 1000 products are an order, 1001 are not; mentions do not count
SELECT count(shop.create_product('Q' || n, 1, 100)) FROM generate_series(1, 1001) n;
SELECT min(product_id) AS q FROM shop.product WHERE name = 'Q1' \gset
SELECT jsonb_agg(jsonb_build_object('product_id', :q + n, 'quantity', 1)) AS thousand
  FROM generate_series(0, 999) n \gset
SELECT jsonb_agg(jsonb_build_object('product_id', :q + n, 'quantity', 1)) AS too_many
  FROM generate_series(0, 1000) n \gset
SELECT order_id, subtotal FROM shop.place_order(1, :'thousand') \gset
\echo :subtotal
SELECT count(*), min(line_no), max(line_no), sum(quantity) FROM shop.order_lines(:order_id);
SELECT subtotal FROM shop.place_order(1, :'thousand'::jsonb || :'thousand'::jsonb);
SELECT * FROM refusal(format('SELECT shop.place_order(1, %L)', :'too_many'));
-- 100,000 elements are the most that are read
SELECT subtotal FROM shop.place_order(1,
    (SELECT jsonb_agg('{"product_id": 2, "quantity": 1}'::jsonb) FROM generate_series(1, 100000)));
SELECT * FROM refusal($$ SELECT shop.place_order(1,
    (SELECT jsonb_agg('{"product_id": 2, "quantity": 1}'::jsonb) FROM generate_series(1, 100001))) $$);

-- Totals end at 10^15; 22003 beyond, whatever the sum would wrap to
SELECT shop.create_product('Dear', 1000000000000000, 2147483647) AS dear \gset
SELECT * FROM refusal(format('SELECT shop.place_order(1, ''[{"product_id": %s, "quantity": 2}]'')', :dear));
SELECT refused(format('SELECT shop.place_order(1, ''[{"product_id": %s, "quantity": 2147483647}]'')', :dear));
SELECT refused(format('SELECT shop.place_order(1, ''[{"product_id": 1, "quantity": 1}, {"product_id": %s, "quantity": 1}]'')', :dear));
SELECT refused(format('SELECT shop.try_place_order(1, ''[{"product_id": %s, "quantity": 2}]'')', :dear));
SELECT balance FROM shop.charge_points(2, 1000000000000000);
SELECT total, balance FROM shop.place_order(2, format('[{"product_id": %s, "quantity": 1}]', :dear)::jsonb);
DROP FUNCTION public.place(jsonb);
