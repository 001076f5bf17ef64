-- Products: what is sold, at what price, and whether it is on sale.
\set ECHO none
\i sql/setup.inc
\set ECHO all
--
-- create_product
--
SELECT shop.create_product('Tea', 4500, 10);
SELECT shop.create_product(name => 'Free sample', price => 0);
SELECT shop.create_product(name => 'Dear', price => 1000000000000000, stock => 1000000000000000);
SELECT * FROM shop.products ORDER BY product_id;
-- One slot each, at the default location, with a movement behind it
SELECT product_id, location_id, slot, on_hand FROM shop.stock ORDER BY product_id;
SELECT product_id, quantity, available, kind FROM shop.stock_movement ORDER BY product_id;
-- Names: any text, in bytes up to 1000
SELECT shop.create_product(U&'\CC28 "\B179\CC28"; DROP TABLE shop.product; --', 1) AS odd_name \gset
SELECT name FROM shop.get_product(:odd_name);
SELECT shop.create_product(repeat('x', 1000), 1) AS long_name \gset
SELECT length(name) FROM shop.get_product(:long_name);
SELECT * FROM refusal('SELECT shop.create_product(repeat(''x'', 1001), 1)');
SELECT * FROM refusal('SELECT shop.create_product('''', 1)');
-- Out of range, or missing
SELECT * FROM refusal('SELECT shop.create_product(''Tea'', -1)');
SELECT * FROM refusal('SELECT shop.create_product(''Tea'', 1000000000000001)');
SELECT * FROM refusal('SELECT shop.create_product(''Tea'', 1, -1)');
SELECT * FROM refusal('SELECT shop.create_product(''Tea'', 1, 1000000000000001)');
SELECT * FROM refusal('SELECT shop.create_product(NULL, 1)');
SELECT * FROM refusal('SELECT shop.create_product(''Tea'', NULL)');
SELECT * FROM refusal('SELECT shop.create_product(''Tea'', 1, NULL)');
-- The form of the key comes before the values, what is missing before all
SELECT refused('SELECT shop.create_product('''', -1, -1, '''')');
SELECT refused('SELECT shop.create_product('''', -1, -1)');
SELECT refused('SELECT shop.create_product(''Tea'', -1, -1)');
SELECT refused('SELECT shop.create_product(NULL, NULL)');
-- None of these left a product behind
SELECT count(*) FROM shop.products;

--
-- get_product
--
SELECT * FROM shop.get_product(1);
SELECT * FROM refusal('SELECT shop.get_product(4711)');
SELECT * FROM refusal('SELECT shop.get_product(-1)');
SELECT * FROM refusal('SELECT shop.get_product(NULL)');

--
-- set_price
--
SELECT * FROM shop.set_price(1, 5000);
SELECT * FROM shop.set_price(product_id => 1, price => 0);
SELECT * FROM shop.set_price(1, 4800);
SELECT price FROM shop.get_product(1);
SELECT * FROM refusal('SELECT shop.set_price(4711, 1)');
SELECT * FROM refusal('SELECT shop.set_price(1, -1)');
SELECT * FROM refusal('SELECT shop.set_price(1, 1000000000000001)');
SELECT * FROM refusal('SELECT shop.set_price(1, NULL)');
SELECT * FROM refusal('SELECT shop.set_price(NULL, 1)');
-- A bad price comes before an unknown product
SELECT refused('SELECT shop.set_price(4711, -1)');

--
-- set_product_status
--
SELECT * FROM shop.set_product_status(1, 'suspended');
SELECT * FROM shop.set_product_status(1, 'suspended');
SELECT * FROM shop.set_product_status(1, 'discontinued');
SELECT * FROM shop.set_product_status(1, 'on_sale');
SELECT * FROM refusal('SELECT shop.set_product_status(4711, ''on_sale'')');
SELECT * FROM refusal('SELECT shop.set_product_status(1, ''On_Sale'')');
SELECT * FROM refusal('SELECT shop.set_product_status(1, '''')');
SELECT * FROM refusal('SELECT shop.set_product_status(1, NULL)');
SELECT status FROM shop.get_product(1);

--
-- products: exact at the statement's snapshot, however stock is stored
--
SELECT shop.create_product('Spread', 100, 10) AS spread \gset
INSERT INTO shop.stock (product_id, slot, on_hand) VALUES (:spread, 3, 5), (:spread, 7, 0);
INSERT INTO shop.stock (product_id, location_id, slot, on_hand) VALUES (:spread, 2, 0, 100);
SELECT available FROM shop.products WHERE product_id = :spread;
SELECT available FROM shop.get_product(:spread);
-- Writes through the view are not possible
SELECT refused('UPDATE shop.products SET price = 1');
-- No events: the catalogue is no business of subscribers
SELECT count(*) FROM shop.outbox;

--
-- Isolation levels, savepoints, read-only transactions
--
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT shop.create_product('RR', 10, 1) AS rr \gset
SELECT price FROM shop.set_price(:rr, 11);
SELECT status FROM shop.set_product_status(:rr, 'suspended');
SELECT price, available, status FROM shop.get_product(:rr);
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT shop.create_product('SSI', 10, 1) AS ssi \gset
SELECT price FROM shop.set_price(:ssi, 11);
SAVEPOINT s;
SELECT price FROM shop.set_price(:ssi, 12);
SELECT shop.set_price(4711, 12);
ROLLBACK TO s;
SELECT price FROM shop.get_product(:ssi);
COMMIT;
BEGIN READ ONLY;
SELECT name FROM shop.get_product(1);
SELECT refused('SELECT shop.create_product(''Tea'', 1)');
SELECT refused('SELECT shop.set_price(1, 1)');
SELECT refused('SELECT shop.set_product_status(1, ''on_sale'')');
SELECT * FROM refusal('SELECT shop.restock(1, 1)');
COMMIT;
