-- Events: one a state change, in the same commit.
\set ECHO none
\i sql/setup.inc
\set ECHO all
--
-- The table: Debezium's columns beside its own
--
SELECT column_name, data_type, is_nullable FROM information_schema.columns
 WHERE table_schema = 'shop' AND table_name = 'outbox' ORDER BY column_name COLLATE "C";

--
-- What the verbs tell
--
SET shop.test_clock = '2026-11-20 19:40:00.123456+09';
SELECT shop.create_product('Tea', 4500, 10) AS tea \gset
SELECT balance FROM shop.charge_points(-7, 10000);
SELECT balance FROM shop.use_points(-7, 400, E'gift "1"\\\n\u00e9');
SELECT balance FROM shop.use_points(-7, 100);
SELECT order_id FROM shop.place_order(-7, format('[{"product_id": %s, "quantity": 2}]', :tea)::jsonb);
SELECT event_no, type, aggregatetype, aggregateid, priority, created_at FROM shop.outbox ORDER BY event_no;
SELECT jsonb_pretty(payload) AS payload FROM shop.outbox WHERE type LIKE 'points.%' ORDER BY event_no;
SELECT payload - 'lines' AS paid, payload->'lines' AS lines FROM shop.outbox WHERE type = 'order.paid';
-- The reason comes out as it went in
SELECT payload->>'reason' = E'gift "1"\\\n\u00e9' AS intact FROM shop.outbox WHERE type = 'points.used' AND payload->>'reason' IS NOT NULL;
-- Times in JSON are UTC with six decimals, whatever the session's zone
SET TimeZone = 'Asia/Seoul';
SET DateStyle = 'German';
SELECT balance FROM shop.charge_points(-7, 1);
SELECT payload->>'created_at' AS created_at FROM shop.outbox ORDER BY event_no DESC LIMIT 1;
SET TimeZone = 'UTC';
SET DateStyle = 'ISO, YMD';
-- a whole second and a year of long ago too
SET shop.test_clock = '0999-01-01 00:00:00+00';
SELECT balance FROM shop.charge_points(-7, 1);
SELECT payload->>'created_at' AS created_at FROM shop.outbox ORDER BY event_no DESC LIMIT 1;
RESET shop.test_clock;
-- The currency is that of the setting
SET shop.currency = 'EUR';
SELECT balance FROM shop.charge_points(-7, 10000);
SELECT order_id FROM shop.place_order(-7, format('[{"product_id": %s, "quantity": 1}]', :tea)::jsonb) \gset
SELECT type, payload->>'currency' AS currency FROM shop.outbox ORDER BY event_no DESC LIMIT 2;
RESET shop.currency;
-- Ids are random uuids of their own
SELECT count(*) = count(DISTINCT id) AS distinct_ids, bool_and(substr(id::text, 15, 1) = '4') AS random FROM shop.outbox;
-- What changes nothing tells nothing: refusals, replays, the catalogue
SELECT count(*) AS before FROM shop.outbox \gset
SELECT refused('SELECT shop.use_points(-7, 100000)');
SELECT outcome FROM shop.try_place_order(-7, format('[{"product_id": %s, "quantity": 100}]', :tea)::jsonb);
SELECT shop.restock(:tea, 1) > 0 AS restocked;
SELECT price FROM shop.set_price(:tea, 1);
SELECT count(*) - :before AS new FROM shop.outbox;
SELECT replayed FROM shop.charge_points(-7, 1, 'k');
SELECT replayed FROM shop.charge_points(-7, 1, 'k');
SELECT count(*) - :before AS new FROM shop.outbox;

--
-- An event exists if and only if its transaction committed
--
SELECT count(*) AS before FROM shop.outbox \gset
BEGIN;
SELECT balance > 0 AS charged FROM shop.charge_points(-7, 1);
SELECT shop.emit_event('cart.filled', 'cart', '1', '{}') IS NOT NULL AS emitted;
SELECT count(*) - :before AS new FROM shop.outbox;
ROLLBACK;
SELECT count(*) - :before AS new FROM shop.outbox;
BEGIN;
SELECT shop.emit_event('cart.filled', 'cart', '1', '{}') IS NOT NULL AS emitted;
SAVEPOINT s;
SELECT shop.emit_event('cart.emptied', 'cart', '1', '{}') IS NOT NULL AS emitted;
ROLLBACK TO s;
SELECT shop.emit_event('cart.dropped', 'cart', '1', '{}') IS NOT NULL AS emitted;
COMMIT;
SELECT type FROM shop.outbox ORDER BY event_no DESC LIMIT 2;

--
-- emit_event
--
SELECT shop.emit_event('lecture.booked', 'lecture', '42', '{"seats": [1, 2], "who": "é"}', 9) AS id \gset
SELECT type, aggregatetype, aggregateid, payload, priority FROM shop.outbox WHERE id = :'id';
SELECT shop.emit_event(priority => 0, payload => 'null', aggregateid => ' ', aggregatetype => 'x', type => '*') AS id \gset
SELECT type, aggregatetype, aggregateid, payload, priority FROM shop.outbox WHERE id = :'id';
-- any JSON is a payload
SELECT count(shop.emit_event('x', 'x', 'x', p)) FROM unnest('{1,true,"\"s\"","[]"}'::jsonb[]) p;
-- the longest names: 255 bytes
SELECT shop.emit_event(repeat('t', 255), repeat('a', 255), repeat('i', 255), '{}') IS NOT NULL AS emitted;
SELECT * FROM refusal('SELECT shop.emit_event(repeat(''t'', 256), ''a'', ''i'', ''{}'')');
SELECT * FROM refusal('SELECT shop.emit_event(''t'', repeat(''a'', 256), ''i'', ''{}'')');
SELECT * FROM refusal('SELECT shop.emit_event(''t'', ''a'', repeat(''i'', 256), ''{}'')');
SELECT refused('SELECT shop.emit_event('''', ''a'', ''i'', ''{}'')');
SELECT refused('SELECT shop.emit_event(''t'', '''', ''i'', ''{}'')');
SELECT refused('SELECT shop.emit_event(''t'', ''a'', '''', ''{}'')');
SELECT refused('SELECT shop.emit_event(NULL, ''a'', ''i'', ''{}'')');
SELECT refused('SELECT shop.emit_event(''t'', NULL, ''i'', ''{}'')');
SELECT refused('SELECT shop.emit_event(''t'', ''a'', NULL, ''{}'')');
SELECT refused('SELECT shop.emit_event(''t'', ''a'', ''i'', NULL)');
SELECT refused('SELECT shop.emit_event(''t'', ''a'', ''i'', ''{}'', NULL)');
SELECT * FROM refusal('SELECT shop.emit_event(''t'', ''a'', ''i'', ''{}'', -1)');
SELECT refused('SELECT shop.emit_event(''t'', ''a'', ''i'', ''{}'', 10)');
SELECT refused('SELECT shop.emit_event(''t'', ''a'', ''i'', ''{}'', 65537)');
-- The shop's own types are its own
SELECT * FROM refusal('SELECT shop.emit_event(''order.paid'', ''order'', ''1'', ''{}'')');
SELECT type, refused(format('SELECT shop.emit_event(%L, ''a'', ''i'', ''{}'')', type))
  FROM unnest('{order.paid,order.reserved,order.released,order.expired,order.cancelled,order.refunded,points.charged,points.used,coupon.issued}'::text[]) type;
-- a name that only looks like one is free
SELECT shop.emit_event('order.packed', 'order', '1', '{}') IS NOT NULL AS emitted;
SELECT shop.emit_event('Order.paid', 'order', '1', '{}') IS NOT NULL AS emitted;
SELECT * FROM shop.verify();

--
-- Isolation levels, read-only transactions
--
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT shop.emit_event('t', 'a', 'i', '{}') IS NOT NULL AS emitted;
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT shop.emit_event('t', 'a', 'i', '{}') IS NOT NULL AS emitted;
COMMIT;
BEGIN READ ONLY;
SELECT * FROM refusal('SELECT shop.emit_event(''t'', ''a'', ''i'', ''{}'')');
COMMIT;

--
-- receive_event and received_events: the embedded data platform
--
SET shop.test_clock = '2026-11-21 00:00:00+00';
SELECT shop.receive_event('{"specversion": "1.0", "id": "11111111-1111-4111-8111-111111111111", "type": "order.paid",
    "subject": "5", "aggregatetype": "order", "time": "2026-11-20T19:40:00.123456Z", "data": {"total": 1}}');
SELECT shop.receive_event('{"id": "11111111-1111-4111-8111-111111111111", "type": "something.else"}');
SELECT shop.receive_event('{"id": "11111111-1111-4111-8111-111111111112", "type": "bare"}');
SELECT * FROM shop.received_events ORDER BY event_id;
SELECT * FROM refusal('SELECT shop.receive_event(NULL)');
SELECT * FROM refusal('SELECT shop.receive_event(''{}'')');
SELECT refused('SELECT shop.receive_event(''[]'')');
SELECT refused('SELECT shop.receive_event(''5'')');
SELECT refused('SELECT shop.receive_event(''{"id": "11111111-1111-4111-8111-111111111113"}'')');
SELECT refused('SELECT shop.receive_event(''{"type": "x"}'')');
SELECT refused('SELECT shop.receive_event(''{"id": 5, "type": "x"}'')');
SELECT refused('SELECT shop.receive_event(''{"id": null, "type": "x"}'')');
SELECT refused('SELECT shop.receive_event(''{"id": "11111111-1111-4111-8111-111111111113", "type": 5}'')');
SELECT refused('SELECT shop.receive_event(''{"id": "not a uuid", "type": "x"}'')');
SELECT refused('SELECT shop.receive_event(''{"id": "11111111-1111-4111-8111-111111111113", "type": "x", "time": "noon-ish"}'')');
SELECT count(*) FROM shop.received_events;
BEGIN;
SELECT shop.receive_event('{"id": "11111111-1111-4111-8111-111111111114", "type": "x"}');
ROLLBACK;
SELECT shop.receive_event('{"id": "11111111-1111-4111-8111-111111111114", "type": "x"}');
BEGIN READ ONLY;
SELECT refused('SELECT shop.receive_event(''{"id": "11111111-1111-4111-8111-111111111115", "type": "x"}'')');
COMMIT;
RESET shop.test_clock;
