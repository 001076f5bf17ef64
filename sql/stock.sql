-- Stock: units per product and slot.
\set ECHO none
\i sql/setup.inc
\set ECHO all
SELECT shop.create_product('Tea', 10, 5) AS tea \gset

--
-- restock
--
SELECT shop.restock(:tea, 3);
SELECT shop.restock(product_id => :tea, quantity => -8);
SELECT * FROM refusal(format('SELECT shop.restock(%s, -1)', :tea));
SELECT shop.restock(:tea, 2147483647);
SELECT shop.restock(:tea, -2147483647);
SELECT refused(format('SELECT shop.restock(%s, -2147483648)', :tea));
SELECT * FROM refusal('SELECT shop.restock(4711, 1)');
SELECT * FROM refusal(format('SELECT shop.restock(%s, 0)', :tea));
SELECT * FROM refusal(format('SELECT shop.restock(%s, NULL)', :tea));
SELECT refused('SELECT shop.restock(NULL, 1)');
SELECT refused('SELECT shop.restock(4711, 0)');
-- Each with a movement, and the stock after it
SELECT quantity, available, kind FROM shop.stock_movement WHERE product_id = :tea ORDER BY movement_id;
-- What is not on sale can be restocked
SELECT status FROM shop.set_product_status(:tea, 'discontinued');
SELECT shop.restock(:tea, 4);
SELECT status FROM shop.set_product_status(:tea, 'on_sale');
-- There is no unit that the next transaction cannot have back
BEGIN;
SELECT shop.restock(:tea, 100);
ROLLBACK;
SELECT available FROM shop.get_product(:tea);
SELECT * FROM shop.verify();

--
-- One slot
--
SELECT balance FROM shop.charge_points(1, 100000);
CREATE FUNCTION public.buy(product bigint, quantity integer) RETURNS bigint
    LANGUAGE sql AS $$
    SELECT total FROM shop.place_order(1, jsonb_build_array(jsonb_build_object('product_id', product, 'quantity', quantity))) $$;
SELECT buy(:tea, 3);
SELECT available FROM shop.get_product(:tea);
SELECT refused(format('SELECT buy(%s, 2)', :tea));
SELECT buy(:tea, 1);
SELECT refused(format('SELECT buy(%s, 1)', :tea));
SELECT on_hand FROM shop.stock WHERE product_id = :tea;

--
-- Several slots: what is promised is the sum, whichever slots hold it
--
-- One taker's units may be spread over all of them
SELECT shop.create_product('Spread', 10, 9) AS spread \gset
BEGIN;
UPDATE shop.stock SET on_hand = 2 WHERE product_id = :spread;
INSERT INTO shop.stock (product_id, slot, on_hand) VALUES (:spread, 1, 3), (:spread, 5, 0), (:spread, 63, 4);
COMMIT;
SELECT available FROM shop.get_product(:spread);
SELECT refused(format('SELECT buy(%s, 10)', :spread));
SELECT buy(:spread, 8);
SELECT sum(on_hand), min(on_hand) FROM shop.stock WHERE product_id = :spread;
SELECT refused(format('SELECT buy(%s, 2)', :spread));
SELECT buy(:spread, 1);
SELECT sum(on_hand), min(on_hand), max(on_hand) FROM shop.stock WHERE product_id = :spread;
SELECT refused(format('SELECT buy(%s, 1)', :spread));
-- A restock comes to where everybody looks, and takes from wherever units are
SELECT shop.restock(:spread, 6);
BEGIN;
UPDATE shop.stock SET on_hand = 1 WHERE product_id = :spread AND slot = 0;
UPDATE shop.stock SET on_hand = 2 WHERE product_id = :spread AND slot = 5;
UPDATE shop.stock SET on_hand = 3 WHERE product_id = :spread AND slot = 63;
COMMIT;
SELECT shop.restock(:spread, -5);
SELECT refused(format('SELECT shop.restock(%s, -2)', :spread));
SELECT shop.restock(:spread, -1);
SELECT * FROM shop.verify();
-- An order of several products, each spread its own way, and one that is short:
-- nothing is taken of any
SELECT shop.create_product('A', 1, 4) AS a \gset
SELECT shop.create_product('B', 1, 4) AS b \gset
BEGIN;
UPDATE shop.stock SET on_hand = 2 WHERE product_id IN (:a, :b);
INSERT INTO shop.stock (product_id, slot, on_hand) VALUES (:a, 2, 2), (:b, 4, 2);
COMMIT;
SELECT refused(format('SELECT shop.place_order(1, ''[{"product_id": %s, "quantity": 4}, {"product_id": %s, "quantity": 5}]'')', :a, :b));
SELECT product_id, slot, on_hand FROM shop.stock WHERE product_id IN (:a, :b) ORDER BY 1, 2;
SELECT total FROM shop.place_order(1, format('[{"product_id": %s, "quantity": 3}, {"product_id": %s, "quantity": 3}]', :b, :a)::jsonb);
SELECT product_id, sum(on_hand) FROM shop.stock WHERE product_id IN (:a, :b) GROUP BY 1 ORDER BY 1;
-- Slots above shop.max_stock_slots, left over from a higher setting, still sell
SELECT shop.create_product('Many', 1, 0) AS many \gset
SELECT shop.restock(:many, 64) AS units \gset
BEGIN;
UPDATE shop.stock SET on_hand = 1 WHERE product_id = :many;
INSERT INTO shop.stock (product_id, slot, on_hand) SELECT :many, n, 1 FROM generate_series(1, 63) n;
COMMIT;
SET shop.max_stock_slots = 1;
SELECT count(buy(:many, 1)) FROM generate_series(1, 10);
SELECT buy(:many, 50);
SELECT available FROM shop.get_product(:many);
SET shop.max_stock_slots = 1024;
SELECT buy(:many, 4);
SELECT refused(format('SELECT buy(%s, 1)', :many));
RESET shop.max_stock_slots;
-- Never below 0, whoever tries
SELECT refused(format('UPDATE shop.stock SET on_hand = on_hand - 1 WHERE product_id = %s AND slot = 0', :many));
SELECT * FROM shop.verify();

--
-- In a transaction: what one statement took, the next one misses
--
SELECT shop.create_product('Last', 1, 1) AS last \gset
BEGIN;
SELECT buy(:last, 1);
SELECT refused(format('SELECT buy(%s, 1)', :last));
SELECT shop.restock(:last, 1);
SELECT buy(:last, 1);
ROLLBACK;
SELECT available FROM shop.get_product(:last);
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT shop.restock(:last, 1);
SELECT buy(:last, 2);
SAVEPOINT s;
SELECT buy(:last, 1);
ROLLBACK TO s;
SELECT available FROM shop.get_product(:last);
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT shop.restock(:last, 2);
SELECT buy(:last, 1);
SELECT shop.restock(:last, -1);
COMMIT;
SELECT available FROM shop.get_product(:last);
-- never more than amounts may be, all slots together
SELECT shop.create_product('full', 100, 1000000000000000) AS full \gset
SELECT * FROM refusal(format('SELECT shop.restock(%s, 1)', :full));
SELECT shop.restock(:full, -1);
SELECT shop.restock(:full, 1);
SELECT * FROM shop.verify();
DROP FUNCTION public.buy(bigint, integer);
