-- Placing an order: what it does, what it says, what it refuses.
\set ECHO none
\i sql/setup.inc
\set ECHO all
SELECT shop.create_product('Tea', 4500, 100) AS tea \gset
SELECT shop.create_product('Cup', 12000, 3) AS cup \gset
SELECT shop.create_product('Sample', 0, 10) AS sample \gset
SELECT balance FROM shop.charge_points(1, 100000);

--
-- One commit: 2 x 4,500 + 1 x 12,000 = 21,000; 100,000 - 21,000 = 79,000
--
SET shop.test_clock = '2026-11-20 19:40:00.123456+00';
SELECT * FROM shop.place_order(1, '[{"product_id": 2, "quantity": 1}, {"product_id": 1, "quantity": 2}]');
RESET shop.test_clock;
SELECT * FROM shop.get_order(1);
SELECT * FROM shop.order_lines(1);
SELECT amount, balance, kind, reason, order_id, created_at FROM shop.point_history(1, "limit" => 1);
SELECT shop.point_balance(1);
SELECT product_id, available FROM shop.products ORDER BY product_id;
SELECT type, aggregatetype, aggregateid, created_at, jsonb_pretty(payload) AS payload
  FROM shop.outbox WHERE type = 'order.paid';
SELECT * FROM shop.verify();
-- By name, with the arguments in any order
SELECT order_id, status, total, replayed
  FROM shop.place_order(items => '[{"product_id": 1, "quantity": 1}]', user_id => 1, expected_total => 4500);
-- An order of nothing but gifts costs nothing: no ledger entry, no account needed
SELECT * FROM shop.place_order(99, '[{"product_id": 3, "quantity": 2}]');
SELECT count(*) FROM shop.account WHERE user_id = 99;
SELECT count(*) FROM shop.point_history(99);
SELECT total FROM shop.order_history(99);
-- A user of negative number
SELECT total FROM shop.place_order(-5, '[{"product_id": 3, "quantity": 1}]');

--
-- The price is the server's, and the order keeps it
--
SELECT price FROM shop.set_price(1, 5000);
SELECT subtotal FROM shop.place_order(1, '[{"product_id": 1, "quantity": 1}]');
SELECT unit_price, subtotal, total FROM shop.order_lines(1) ORDER BY line_no;
SELECT total FROM shop.get_order(1);
-- The name is the product's of today
UPDATE shop.product SET name = 'Green tea' WHERE product_id = 1;
SELECT line_no, name FROM shop.order_lines(1) ORDER BY line_no;

--
-- expected_total: 3 x 5,000
--
SELECT * FROM refusal('SELECT shop.place_order(1, ''[{"product_id": 1, "quantity": 3}]'', expected_total => 13500)');
SELECT total FROM shop.place_order(1, '[{"product_id": 1, "quantity": 3}]', expected_total => 15000);
SELECT refused('SELECT shop.place_order(1, ''[{"product_id": 1, "quantity": 3}]'', expected_total => 0)');
SELECT total FROM shop.place_order(1, '[{"product_id": 3, "quantity": 1}]', expected_total => 0);
SELECT * FROM refusal('SELECT shop.place_order(1, ''[{"product_id": 1, "quantity": 3}]'', expected_total => -1)');
SELECT refused('SELECT shop.place_order(1, ''[{"product_id": 1, "quantity": 3}]'', expected_total => 9223372036854775807)');

--
-- Refusals
--
SELECT * FROM refusal('SELECT shop.place_order(1, ''[{"product_id": 4711, "quantity": 1}]'')');
SELECT status FROM shop.set_product_status(2, 'suspended');
SELECT * FROM refusal('SELECT shop.place_order(1, ''[{"product_id": 2, "quantity": 1}]'')');
SELECT status FROM shop.set_product_status(2, 'discontinued');
SELECT refused('SELECT shop.place_order(1, ''[{"product_id": 2, "quantity": 1}]'')');
SELECT status FROM shop.set_product_status(2, 'on_sale');
SELECT * FROM refusal('SELECT shop.place_order(1, ''[{"product_id": 2, "quantity": 3}]'')');
SELECT * FROM refusal('SELECT shop.place_order(1, ''[{"product_id": 1, "quantity": 1}]'', coupon_id => 4711)');
SELECT * FROM refusal('SELECT shop.place_order(2, ''[{"product_id": 1, "quantity": 1}]'')');
SELECT shop.point_balance(1) AS balance \gset
SELECT :balance AS balance, 100000 - 21000 - 4500 - 5000 - 15000 AS by_hand;
SELECT refused('SELECT shop.place_order(1, ''[{"product_id": 1, "quantity": 11}]'')');
SELECT refused('SELECT shop.place_order(1, NULL)');

-- In their declared order: a call that breaks several rules gets the first.
-- Product 2 has 2 units; 5 is suspended and has none; 4711 is unknown.
SELECT shop.create_product('Off', 1, 0) AS off_ \gset
SELECT shop.create_product('Gone', 1, 0) AS gone \gset
SELECT status FROM shop.set_product_status(:gone, 'suspended');
SELECT idempotency_key, order_id FROM shop.place_order(1, '[{"product_id": 3, "quantity": 1}]', idempotency_key => 'used'),
       (VALUES ('used')) v(idempotency_key);
\set all_wrong '[{"product_id": 2, "quantity": 9}, {"product_id": 5, "quantity": 9}, {"product_id": 4711, "quantity": 9}]'
\set two_wrong '[{"product_id": 2, "quantity": 9}, {"product_id": 5, "quantity": 9}]'
\set one_wrong '[{"product_id": 2, "quantity": 9}]'
\set none_wrong '[{"product_id": 2, "quantity": 2}]'
SELECT refused(format('SELECT shop.place_order(1, %L, 4711, 1, ''used'')', :'all_wrong'));
SELECT refused(format('SELECT shop.place_order(1, %L, 4711, 1, ''new'')', :'all_wrong'));
SELECT refused(format('SELECT shop.place_order(1, %L, 4711, 1, ''new'')', :'two_wrong'));
SELECT refused(format('SELECT shop.place_order(1, %L, 4711, 1, ''new'')', :'one_wrong'));
SELECT refused(format('SELECT shop.place_order(2, %L, 4711, 1, ''new'')', :'none_wrong'));
SELECT refused(format('SELECT shop.place_order(2, %L, NULL, 1, ''new'')', :'none_wrong'));
SELECT refused(format('SELECT shop.place_order(2, %L, NULL, 24000, ''new'')', :'none_wrong'));
SELECT refused('SELECT shop.place_order(1, ''[{"product_id": 1, "quantity": 0}]'', 4711, -1, '''')');
SELECT refused(format('SELECT shop.place_order(1, %L, 4711, -1, '''')', :'all_wrong'));
SELECT refused(format('SELECT shop.place_order(1, %L, 4711, 1, '''')', :'all_wrong'));
-- Of several products that break one rule, the lowest number is named
SELECT refused('SELECT shop.place_order(1, ''[{"product_id": 4713, "quantity": 1}, {"product_id": 4712, "quantity": 1}]'')');
SELECT refused('SELECT shop.place_order(1, ''[{"product_id": 2, "quantity": 99}, {"product_id": 1, "quantity": 999}]'')');

-- A refusal leaves nothing behind: no order, no line, no entry, no event, no unit, no key
SELECT count(*) FILTER (WHERE user_id = 2) AS orders,
       (SELECT count(*) FROM shop.order_line l WHERE NOT EXISTS (SELECT FROM shop.orders o WHERE o.order_id = l.order_id)) AS lines,
       (SELECT count(*) FROM shop.point_entry WHERE user_id = 2) AS entries,
       (SELECT count(*) FROM shop.orders WHERE idempotency_key = 'new') AS keys,
       (SELECT count(*) FROM shop.outbox WHERE type = 'order.paid') - count(*) AS events
  FROM shop.orders;
SELECT available FROM shop.get_product(2);
SELECT * FROM shop.verify();

--
-- The twin: refusals are answers
--
SELECT * FROM shop.try_place_order(1, '[{"product_id": 1, "quantity": 1}]');
SELECT outcome, order_id, status, replayed, detail FROM shop.try_place_order(1, '[{"product_id": 4711, "quantity": 1}]');
SELECT outcome, detail FROM shop.try_place_order(1, '[{"product_id": 5, "quantity": 1}]');
SELECT * FROM shop.try_place_order(1, '[{"product_id": 2, "quantity": 3}]');
SELECT outcome, detail FROM shop.try_place_order(1, '[{"product_id": 2, "quantity": 1}]', coupon_id => 1);
SELECT outcome, detail FROM shop.try_place_order(1, '[{"product_id": 2, "quantity": 1}]', expected_total => 1);
SELECT outcome, detail FROM shop.try_place_order(2, '[{"product_id": 2, "quantity": 1}]');
SELECT outcome, detail FROM shop.try_place_order(1, '[{"product_id": 2, "quantity": 1}]', idempotency_key => 'used');
SELECT outcome FROM shop.try_place_order(2, :'none_wrong', expected_total => 24000);
-- Every outcome is a condition of error_codes
SELECT t.outcome, e.sqlstate FROM shop.try_place_order(2, '[{"product_id": 2, "quantity": 1}]') t
  LEFT JOIN shop.error_codes() e ON e.condition = t.outcome;
-- It does not abort the caller's transaction, and undoes what it did
BEGIN;
SELECT shop.point_balance(1) AS before \gset
SELECT outcome FROM shop.try_place_order(1, '[{"product_id": 2, "quantity": 9}]');
SELECT outcome, total FROM shop.try_place_order(1, '[{"product_id": 2, "quantity": 1}]');
SELECT outcome FROM shop.try_place_order(1, '[{"product_id": 2, "quantity": 2}]');
SELECT outcome, total FROM shop.try_place_order(1, '[{"product_id": 2, "quantity": 1}]');
SELECT outcome FROM shop.try_place_order(1, '[{"product_id": 2, "quantity": 1}]');
SELECT :before - shop.point_balance(1) AS spent;
ROLLBACK;
SELECT available FROM shop.get_product(2);
-- In a loop of one statement
SELECT outcome, count(*) FROM generate_series(1, 5) n,
       LATERAL shop.try_place_order(1, jsonb_build_array(jsonb_build_object('product_id', 2, 'quantity', least(n, 1)))) GROUP BY 1 ORDER BY 1;
SELECT available FROM shop.get_product(2);
-- What is no refusal is raised
SELECT refused('SELECT shop.try_place_order(1, ''[{"product_id": 1, "quantity": 0}]'')');
SELECT refused('SELECT shop.try_place_order(1, ''[{"product_id": 1, "quantity": 1}]'', expected_total => -1)');
BEGIN READ ONLY;
SELECT * FROM refusal('SELECT shop.try_place_order(1, ''[{"product_id": 1, "quantity": 1}]'')');
COMMIT;

--
-- Reads
--
SELECT * FROM refusal('SELECT shop.get_order(4711)');
SELECT * FROM refusal('SELECT shop.order_lines(4711)');
SELECT refused('SELECT shop.get_order(NULL)');
SELECT refused('SELECT shop.order_lines(NULL)');
SELECT refused('SELECT shop.order_history(NULL)');
-- order_history: newest first, keyset by order_id, 50 unless told otherwise
SELECT balance FROM shop.charge_points(7, 1000000);
SET shop.test_clock = '2026-11-20 08:00:00+00';
SELECT count(p.order_id) FROM generate_series(1, 60) n,
       LATERAL shop.place_order(7, jsonb_build_array(jsonb_build_object('product_id', 1, 'quantity', 1 + 0 * n))) p;
RESET shop.test_clock;
SELECT shop.restock(1, 100) > 0 AS restocked;
SELECT count(p.order_id) FROM generate_series(1, 20) n,
       LATERAL shop.place_order(7, jsonb_build_array(jsonb_build_object('product_id', 1, 'quantity', 1 + 0 * n))) p;
SELECT count(*), count(DISTINCT order_id), bool_and(order_id < coalesce(previous, order_id + 1)) AS newest_first
  FROM (SELECT order_id, lag(order_id) OVER () AS previous FROM shop.order_history(7)) h;
SELECT count(*) AS orders, min(order_id) AS oldest FROM shop.orders WHERE user_id = 7 \gset
SELECT count(*) = :orders AS all_of_them FROM shop.order_history(7, NULL, 1000);
-- pages of 7 meet every order once
WITH RECURSIVE page AS (
    SELECT h.order_id, 1 AS n, row_number() OVER (ORDER BY order_id DESC) AS k
      FROM shop.order_history(7, NULL, 7) h
    UNION ALL
    SELECT h.order_id, p.n + 1, row_number() OVER (ORDER BY h.order_id DESC)
      FROM page p, LATERAL shop.order_history(7, p.order_id, 7) h WHERE p.k = 7)
SELECT count(*) = :orders AND count(DISTINCT order_id) = :orders AS every_order_once FROM page;
SELECT count(*) FROM shop.order_history(7, :oldest);
SELECT count(*) FROM shop.order_history(7, 9223372036854775807, 1);
SELECT count(*) FROM shop.order_history(4711);
SELECT status, subtotal, discount, total, coupon_id, created_at, expires_at, paid_at
  FROM shop.order_history(7, :oldest + 1);
SELECT * FROM refusal('SELECT shop.order_history(7, NULL, 0)');
SELECT refused('SELECT shop.order_history(7, NULL, 1001)');

--
-- Isolation levels, savepoints, rollback
--
SELECT shop.create_product('Iso', 100, 10) AS iso \gset
SELECT format('[{"product_id": %s, "quantity": 1}]', :iso) AS one \gset
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT total FROM shop.place_order(7, :'one');
SELECT outcome FROM shop.try_place_order(7, :'one');
SELECT available FROM shop.get_product(:iso);
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT total FROM shop.place_order(7, :'one');
SAVEPOINT s;
SELECT total FROM shop.place_order(7, :'one');
SELECT shop.place_order(7, '[{"product_id": 4711, "quantity": 1}]');
ROLLBACK TO s;
SELECT outcome FROM shop.try_place_order(7, '[{"product_id": 4711, "quantity": 1}]');
SELECT available FROM shop.get_product(:iso);
COMMIT;
BEGIN;
SELECT total FROM shop.place_order(7, :'one');
ROLLBACK;
SELECT available FROM shop.get_product(:iso);
BEGIN READ ONLY;
SELECT total FROM shop.get_order(1);
SELECT count(*) FROM shop.order_lines(1);
SELECT count(*) FROM shop.order_history(1, NULL, 1);
SELECT * FROM refusal(format('SELECT shop.place_order(7, %L)', :'one'));
COMMIT;
-- A first order of nothing to pay, where no account is, in either level
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT total FROM shop.place_order(98, '[{"product_id": 3, "quantity": 1}]');
COMMIT;
-- From a prepared statement and from PL/pgSQL
PREPARE buy(bigint, jsonb) AS SELECT total FROM shop.place_order($1, $2);
EXECUTE buy(7, :'one');
DEALLOCATE buy;
DO $$
DECLARE
    r shop.order_result;
BEGIN
    r := shop.place_order(7, '[{"product_id": 3, "quantity": 1}]');
    ASSERT r.status = 'paid' AND r.total = 0 AND NOT r.replayed;
    BEGIN
        r := shop.place_order(7, '[{"product_id": 4711, "quantity": 1}]');
        ASSERT false;
    EXCEPTION WHEN SQLSTATE 'SH001' THEN
        NULL;
    END;
    r := shop.place_order(7, '[{"product_id": 3, "quantity": 1}]');
END
$$;
-- Triggers and columns of the database's own are served, as by any INSERT
CREATE TABLE public.fired (n serial, what text);
CREATE FUNCTION public.see() RETURNS trigger
    LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.fired (what) VALUES (concat_ws(' ', TG_WHEN, TG_LEVEL, TG_TABLE_NAME, to_jsonb(NEW)->>'total'));
    RETURN NEW;
END
$$;
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY '{orders,order_line,point_entry,outbox}'::text[] LOOP
        EXECUTE format('CREATE TRIGGER see_1 BEFORE INSERT ON shop.%I EXECUTE FUNCTION public.see()', name);
        EXECUTE format('CREATE TRIGGER see_2 BEFORE INSERT ON shop.%I FOR EACH ROW EXECUTE FUNCTION public.see()', name);
        EXECUTE format('CREATE TRIGGER see_3 AFTER INSERT ON shop.%I FOR EACH ROW EXECUTE FUNCTION public.see()', name);
        EXECUTE format('CREATE TRIGGER see_4 AFTER INSERT ON shop.%I EXECUTE FUNCTION public.see()', name);
    END LOOP;
END
$$;
CREATE INDEX orders_twice ON shop.orders ((total * 2)) WHERE total > 0;
SELECT status, total FROM shop.place_order(7, '[{"product_id": 1, "quantity": 1}, {"product_id": 3, "quantity": 1}]');
SELECT what FROM public.fired ORDER BY n;
SET enable_seqscan = off;
SELECT count(*) > 0 AS indexed FROM shop.orders WHERE total * 2 = (SELECT total * 2 FROM shop.orders ORDER BY order_id DESC LIMIT 1) AND total > 0;
RESET enable_seqscan;
-- what a trigger does not allow is not done
CREATE FUNCTION public.veto() RETURNS trigger
    LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no %', TG_TABLE_NAME; END $$;
CREATE CONSTRAINT TRIGGER veto AFTER INSERT ON shop.order_line DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.veto();
SELECT status FROM shop.place_order(7, '[{"product_id": 1, "quantity": 1}]');
DROP TRIGGER veto ON shop.order_line;
-- but all rows of a call in a table are not to be had
CREATE TRIGGER see_5 AFTER INSERT ON shop.order_line REFERENCING NEW TABLE AS lines FOR EACH STATEMENT EXECUTE FUNCTION public.see();
SELECT * FROM refusal('SELECT shop.place_order(7, ''[{"product_id": 1, "quantity": 1}]'')');
DROP TRIGGER see_5 ON shop.order_line;
-- columns of the database's own have their defaults
ALTER TABLE shop.orders ADD COLUMN note text NOT NULL DEFAULT 'by default', ADD COLUMN doubled bigint GENERATED ALWAYS AS (total * 2) STORED,
    ADD COLUMN entered_at timestamptz NOT NULL DEFAULT clock_timestamp();
SELECT status FROM shop.place_order(7, '[{"product_id": 1, "quantity": 1}]', idempotency_key => 'note');
SELECT status, replayed FROM shop.place_order(7, '[{"product_id": 1, "quantity": 1}]', idempotency_key => 'note');
SELECT note, doubled = total * 2 AS doubled FROM shop.orders WHERE idempotency_key = 'note';
ALTER TABLE shop.orders DROP COLUMN note, DROP COLUMN doubled, DROP COLUMN entered_at;
SELECT status, replayed FROM shop.place_order(7, '[{"product_id": 1, "quantity": 1}]', idempotency_key => 'note');
CREATE DOMAIN public.channel AS text DEFAULT 'web';
ALTER TABLE shop.orders ADD COLUMN number bigint GENERATED ALWAYS AS IDENTITY (START WITH 1000000), ADD COLUMN channel public.channel;
SELECT status FROM shop.place_order(7, '[{"product_id": 1, "quantity": 1}]', idempotency_key => 'number');
SELECT number >= 1000000 AS numbered, channel FROM shop.orders WHERE idempotency_key = 'number';
ALTER TABLE shop.orders DROP COLUMN number, DROP COLUMN channel;
DROP DOMAIN public.channel;
-- a trigger's error is passed on, even one that has borrowed a code but no figures
CREATE FUNCTION public.limited() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('test.detail', true) IS NULL THEN
        RAISE EXCEPTION 'at most % each', new.quantity - 1 USING ERRCODE = 'SH003';
    END IF;
    RAISE EXCEPTION 'at most % each', new.quantity - 1 USING ERRCODE = 'SH003', DETAIL = current_setting('test.detail');
END
$$;
CREATE TRIGGER limited BEFORE INSERT ON shop.order_line FOR EACH ROW EXECUTE FUNCTION public.limited();
SELECT outcome FROM shop.try_place_order(7, '[{"product_id": 1, "quantity": 2}]');
SET test.detail = 'one a day';
SELECT outcome FROM shop.try_place_order(7, '[{"product_id": 1, "quantity": 2}]', idempotency_key => 'limited');
SET test.detail = '{"most": 1}';
SELECT outcome, detail FROM shop.try_place_order(7, '[{"product_id": 1, "quantity": 2}]');
RESET test.detail;
DROP TRIGGER limited ON shop.order_line;
DROP FUNCTION public.limited();
DROP INDEX shop.orders_twice;
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY '{orders,order_line,point_entry,outbox}'::text[] LOOP
        FOR n IN 1 .. 4 LOOP
            EXECUTE format('DROP TRIGGER see_%s ON shop.%I', n, name);
        END LOOP;
    END LOOP;
END
$$;
DROP FUNCTION public.see(), public.veto();
DROP TABLE public.fired;
SELECT * FROM shop.verify();
