-- Idempotency keys: a repeated call has one effect and the same answer.
\set ECHO none
\i sql/setup.inc
\set ECHO all
SELECT shop.create_product('Tea', 100, 3) AS tea, shop.create_product('Cup', 50, 100) AS cup \gset
SELECT balance FROM shop.charge_points(1, 1000);

--
-- create_product
--
SELECT shop.create_product('Pot', 700, 5, 'pot-1') AS pot \gset
SELECT shop.create_product('Pot', 700, 5, 'pot-1') = :pot AS same_product;
SELECT * FROM refusal('SELECT shop.create_product(''Pan'', 700, 5, ''pot-1'')');
SELECT refused('SELECT shop.create_product(''Pot'', 701, 5, ''pot-1'')');
SELECT refused('SELECT shop.create_product(''Pot'', 700, 6, ''pot-1'')');
SELECT refused('SELECT shop.create_product(''Pan'', 701, 6, ''pot-1'')');
SELECT refused('SELECT shop.create_product(''Pot'', 701, 6, ''pot-1'')');
-- whatever became of price, stock and status since
SELECT price FROM shop.set_price(:pot, 1);
SELECT shop.restock(:pot, -5);
SELECT status FROM shop.set_product_status(:pot, 'discontinued');
SELECT shop.create_product('Pot', 700, 5, 'pot-1') = :pot AS same_product;
SELECT refused('SELECT shop.create_product(''Pot'', 1, 5, ''pot-1'')');
SELECT price, available, status FROM shop.get_product(:pot);
SELECT count(*) FROM shop.products WHERE name = 'Pot';

--
-- restock
--
SELECT shop.restock(:tea, 7, 'delivery 1');
SELECT shop.restock(:tea, 7, 'delivery 1');
SELECT * FROM refusal(format('SELECT shop.restock(%s, 8, ''delivery 1'')', :tea));
SELECT refused(format('SELECT shop.restock(%s, 7, ''delivery 1'')', :cup));
SELECT refused(format('SELECT shop.restock(%s, 8, ''delivery 1'')', :cup));
SELECT refused('SELECT shop.restock(4711, 7, ''delivery 1'')');
-- the first answer, whatever the stock is now
SELECT shop.restock(:tea, -8);
SELECT shop.restock(:tea, 7, 'delivery 1');
SELECT available FROM shop.get_product(:tea);
-- taking away what there was, twice
SELECT shop.restock(:tea, -2, 'broken');
SELECT shop.restock(:tea, -2, 'broken');
SELECT refused(format('SELECT shop.restock(%s, -2, ''broken 2'')', :tea));
SELECT shop.restock(:tea, 3);
-- the same key is another's in another verb
SELECT shop.create_product('Kettle', 1, 0, 'delivery 1') > 0 AS created;

--
-- charge_points
--
SELECT * FROM shop.charge_points(2, 500, 'k') \gset first_
SELECT entry_id = :first_entry_id AS same_entry, user_id, amount, balance, replayed FROM shop.charge_points(2, 500, 'k');
SELECT * FROM refusal('SELECT shop.charge_points(2, 501, ''k'')');
-- the balance of that time, not of now
SELECT balance FROM shop.charge_points(2, 100);
SELECT balance, replayed FROM shop.charge_points(2, 500, 'k');
SELECT shop.point_balance(2);
-- the rules of now are not asked again
SET shop.max_balance = 10;
SET shop.min_charge = 1000;
SELECT balance, replayed FROM shop.charge_points(2, 500, 'k');
SELECT refused('SELECT shop.charge_points(2, 501, ''k'')');
SELECT refused('SELECT shop.charge_points(2, 500, ''k2'')');
RESET shop.max_balance;
RESET shop.min_charge;
-- another user's key is another key
SELECT balance, replayed FROM shop.charge_points(3, 501, 'k');

--
-- use_points: the key is another one than that of charge_points
--
SELECT amount, balance, replayed FROM shop.use_points(2, 600, 'gift', 'k');
SELECT shop.point_balance(2) AS nothing_left;
SELECT amount, balance, replayed FROM shop.use_points(2, 600, 'gift', 'k');
SELECT * FROM refusal('SELECT shop.use_points(2, 599, ''gift'', ''k'')');
SELECT refused('SELECT shop.use_points(2, 600, ''other'', ''k'')');
SELECT refused('SELECT shop.use_points(2, 600, NULL, ''k'')');
SELECT refused('SELECT shop.use_points(2, 600, '''', ''k'')');
SELECT refused('SELECT shop.use_points(2, 599, ''other'', ''k'')');
SELECT balance, replayed FROM shop.charge_points(2, 1, 'k2');
SELECT amount, replayed FROM shop.use_points(2, 1, NULL, 'k3');
SELECT amount, replayed FROM shop.use_points(2, 1, NULL, 'k3');
SELECT refused('SELECT shop.use_points(2, 1, '''', ''k3'')');
SELECT count(*), sum(amount) FROM shop.point_history(2);

--
-- place_order: 3 x 100, the last three units, 300 of 1,000 points
--
SELECT * FROM shop.place_order(1, '[{"product_id": 1, "quantity": 3}]', NULL, 300, 'order-1');
SELECT * FROM shop.place_order(1, '[{"product_id": 1, "quantity": 3}]', NULL, 300, 'order-1');
-- the same items, told in another way
SELECT order_id, replayed FROM shop.place_order(1,
    '[{"quantity": 1, "product_id": 1}, {"product_id": 1.0, "quantity": 2}]', NULL, 300, 'order-1');
-- the twin is the same verb
SELECT * FROM shop.try_place_order(1, '[{"product_id": 1, "quantity": 3}]', NULL, 300, 'order-1');
-- other arguments, in the order they are declared
SELECT * FROM refusal('SELECT shop.place_order(1, ''[{"product_id": 1, "quantity": 2}]'', NULL, 300, ''order-1'')');
SELECT refused('SELECT shop.place_order(1, ''[{"product_id": 2, "quantity": 3}]'', NULL, 300, ''order-1'')');
SELECT refused('SELECT shop.place_order(1, ''[{"product_id": 1, "quantity": 3}, {"product_id": 2, "quantity": 1}]'', NULL, 300, ''order-1'')');
SELECT refused('SELECT shop.place_order(1, ''[{"product_id": 1, "quantity": 3}]'', 5, 300, ''order-1'')');
SELECT refused('SELECT shop.place_order(1, ''[{"product_id": 1, "quantity": 3}]'', NULL, 301, ''order-1'')');
SELECT refused('SELECT shop.place_order(1, ''[{"product_id": 1, "quantity": 3}]'', NULL, NULL, ''order-1'')');
SELECT refused('SELECT shop.place_order(1, ''[{"product_id": 1, "quantity": 2}]'', 5, 301, ''order-1'')');
SELECT refused('SELECT shop.place_order(1, ''[{"product_id": 1, "quantity": 3}]'', 5, 301, ''order-1'')');
SELECT outcome, detail FROM shop.try_place_order(1, '[{"product_id": 1, "quantity": 2}]', NULL, 300, 'order-1');
-- after a new price, off sale, out of stock, out of points
SELECT price FROM shop.set_price(1, 999);
SELECT status FROM shop.set_product_status(1, 'suspended');
SELECT balance FROM shop.use_points(1, 700);
SELECT * FROM shop.place_order(1, '[{"product_id": 1, "quantity": 3}]', NULL, 300, 'order-1');
SELECT outcome, order_id, total, balance, replayed FROM shop.try_place_order(1, '[{"product_id": 1, "quantity": 3}]', NULL, 300, 'order-1');
-- one order, one debit, one event came of all that
SELECT count(*) FROM shop.order_history(1);
SELECT count(*) FROM shop.outbox WHERE type = 'order.paid';
-- another user's key is another key
SELECT balance FROM shop.charge_points(4, 1000);
SELECT order_id, replayed FROM shop.place_order(4, '[{"product_id": 2, "quantity": 1}]', idempotency_key => 'order-1');
SELECT order_id, replayed FROM shop.place_order(1, '[{"product_id": 1, "quantity": 3}]', NULL, 300, 'order-1');
-- coming from the twin first
SELECT outcome, order_id, replayed FROM shop.try_place_order(4, '[{"product_id": 2, "quantity": 2}]', idempotency_key => 'order-2');
SELECT order_id, total, replayed FROM shop.place_order(4, '[{"product_id": 2, "quantity": 2}]', idempotency_key => 'order-2');
-- an order that cost nothing
SELECT shop.create_product('Sample', 0, 1) AS sample \gset
SELECT format('[{"product_id": %s, "quantity": 1}]', :sample) AS gift \gset
SELECT total, replayed FROM shop.place_order(50, :'gift', idempotency_key => 'g');
SELECT total, replayed FROM shop.place_order(50, :'gift', idempotency_key => 'g');
-- Without a key every call is a new one
SELECT count(DISTINCT p.order_id) FROM generate_series(1, 3) n,
       LATERAL shop.place_order(4, jsonb_build_array(jsonb_build_object('product_id', 2, 'quantity', 1 + 0 * n))) p;

--
-- A call that failed leaves no key
--
SELECT refused('SELECT shop.charge_points(60, 2000000000000000, ''f'')');
SELECT balance, replayed FROM shop.charge_points(60, 100, 'f');
SELECT refused('SELECT shop.use_points(60, 200, NULL, ''f'')');
SELECT balance, replayed FROM shop.use_points(60, 50, 'x', 'f');
SELECT refused('SELECT shop.place_order(60, ''[{"product_id": 2, "quantity": 2}]'', NULL, NULL, ''f'')');
SELECT outcome FROM shop.try_place_order(60, '[{"product_id": 2, "quantity": 2}]', NULL, NULL, 'f');
SELECT outcome, order_id IS NOT NULL AS placed, replayed FROM shop.try_place_order(60, '[{"product_id": 2, "quantity": 1}]', NULL, NULL, 'f');
SELECT refused(format('SELECT shop.restock(%s, -1000, ''f'')', :cup));
SELECT shop.restock(:cup, 1, 'f') > 0 AS restocked;
BEGIN;
SELECT balance, replayed FROM shop.charge_points(61, 100, 'r');
SELECT balance, replayed FROM shop.charge_points(61, 100, 'r');
ROLLBACK;
SELECT balance, replayed FROM shop.charge_points(61, 200, 'r');
-- in a savepoint as well
BEGIN;
SAVEPOINT s;
SELECT shop.create_product('Rolled back', 1, 1, 'rb') > 0 AS created;
ROLLBACK TO s;
SELECT shop.create_product('Kept', 1, 1, 'rb') > 0 AS created;
COMMIT;
SELECT name FROM shop.products WHERE name IN ('Rolled back', 'Kept');
-- Within one transaction the first call counts already
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT total, replayed FROM shop.place_order(4, '[{"product_id": 2, "quantity": 1}]', idempotency_key => 'ser');
SELECT total, replayed FROM shop.place_order(4, '[{"product_id": 2, "quantity": 1}]', idempotency_key => 'ser');
COMMIT;

--
-- What a key may look like
--
SELECT replayed FROM shop.charge_points(70, 1, 'x');
SELECT replayed FROM shop.charge_points(70, 1, repeat('x', 255));
SELECT replayed FROM shop.charge_points(70, 1, repeat('x', 255));
SELECT replayed FROM shop.charge_points(70, 1, repeat('x', 254) || 'y');
SELECT * FROM refusal('SELECT shop.charge_points(70, 1, repeat(''x'', 256))');
SELECT * FROM refusal('SELECT shop.charge_points(70, 1, '''')');
SELECT * FROM refusal($$SELECT shop.charge_points(70, 1, U&'caf\00e9')$$);
SELECT refused($$SELECT shop.charge_points(70, 1, E'a\tb')$$);
SELECT refused($$SELECT shop.charge_points(70, 1, E'a\n')$$);
SELECT refused($$SELECT shop.charge_points(70, 1, E'\x01')$$);
SELECT refused($$SELECT shop.charge_points(70, 1, E'\x7f')$$);
SELECT refused($$SELECT shop.charge_points(70, 1, U&'\2003')$$);
-- all of printable ASCII, blanks and quotes included; case and blanks count
SELECT string_agg(chr(n), '' ORDER BY n) AS ascii FROM generate_series(32, 126) n \gset
SELECT replayed FROM shop.charge_points(71, 1, :'ascii');
SELECT replayed FROM shop.charge_points(71, 1, :'ascii');
SELECT detail, (detail::jsonb)->>'idempotency_key' = :'ascii' AS says_it
  FROM refusal(format('SELECT shop.charge_points(71, 2, %L)', :'ascii'));
SELECT replayed FROM shop.charge_points(71, 1, 'a');
SELECT replayed FROM shop.charge_points(71, 1, 'A');
SELECT replayed FROM shop.charge_points(71, 1, 'a ');
SELECT replayed FROM shop.charge_points(71, 1, ' ');
-- the same rules for every verb
SELECT refused('SELECT shop.create_product(''x'', 1, 1, '''')');
SELECT refused('SELECT shop.restock(1, 1, repeat(''x'', 256))');
SELECT refused('SELECT shop.use_points(1, 1, NULL, '''')');
SELECT refused($$SELECT shop.place_order(1, '[{"product_id": 2, "quantity": 1}]', idempotency_key => E'\t')$$);
SELECT refused($$SELECT shop.try_place_order(1, '[{"product_id": 2, "quantity": 1}]', idempotency_key => '')$$);
-- none is missing: every function that takes a key, with arguments that would do
CREATE TABLE public.keyed (n serial, name text, arguments text);
INSERT INTO public.keyed (name, arguments) VALUES
    ('create_product', $$'x', 1, 1$$),
    ('restock', $$1, 1$$),
    ('charge_points', $$1, 1$$),
    ('use_points', $$1, 1$$),
    ('create_coupon_campaign', $$'x', 'fixed', 1, 1, '2026-11-20', '2026-11-21'$$),
    ('issue_coupon', $$1, 1$$),
    ('try_issue_coupon', $$1, 1$$),
    ('place_order', $$1, '[{"product_id": 2, "quantity": 1}]'$$),
    ('try_place_order', $$1, '[{"product_id": 2, "quantity": 1}]'$$),
    ('reserve_order', $$1, '[{"product_id": 2, "quantity": 1}]'$$),
    ('pay_order', $$1, 1$$),
    ('refund_order', $$1, '[{"product_id": 2, "quantity": 1}]'$$);
SELECT p.proname FROM pg_proc p
 WHERE p.pronamespace = 'shop'::regnamespace AND 'idempotency_key' = ANY (p.proargnames[1:p.pronargs]) AND p.proname NOT IN (SELECT name FROM public.keyed);
\a
SELECT v.name, k.name AS key, refused(format('SELECT shop.%s(%s, idempotency_key => %L)', v.name, v.arguments, k.key))
  FROM public.keyed v, (VALUES (1, 'empty', ''), (2, 'a tab', E'\t'), (3, 'e acute', U&'\00e9')) k(n, name, key) ORDER BY v.n, k.n;
\a
SELECT name, refused(format('SELECT shop.%s(%s, idempotency_key => repeat(''x'', 256))', name, arguments)) FROM public.keyed ORDER BY n;

-- A replay in a read-only transaction is still a call of a write verb
BEGIN READ ONLY;
SELECT refused('SELECT shop.charge_points(2, 500, ''k'')');
SELECT refused('SELECT shop.place_order(1, ''[{"product_id": 1, "quantity": 3}]'', NULL, 300, ''order-1'')');
COMMIT;
-- A replay writes nothing and locks nothing
BEGIN;
SELECT replayed FROM shop.charge_points(2, 500, 'k');
SELECT replayed FROM shop.use_points(2, 600, 'gift', 'k');
SELECT replayed FROM shop.place_order(1, '[{"product_id": 1, "quantity": 3}]', NULL, 300, 'order-1');
SELECT shop.create_product('Pot', 700, 5, 'pot-1') = :pot AS replayed;
SELECT shop.restock(:tea, 7, 'delivery 1') AS replayed;
SELECT pg_current_xact_id_if_assigned() IS NULL AS no_xid;
SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND mode LIKE '%Row%' AND mode NOT IN ('RowShareLock', 'RowExclusiveLock');
COMMIT;
BEGIN;
SELECT outcome, replayed FROM shop.try_place_order(1, '[{"product_id": 1, "quantity": 3}]', NULL, 300, 'order-1');
SELECT pg_current_xact_id_if_assigned() IS NULL AS no_xid;
COMMIT;
SELECT * FROM shop.verify();
\set ECHO none
DROP TABLE public.keyed;
