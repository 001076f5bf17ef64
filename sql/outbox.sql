-- Events: one a state change, in the same commit, in Debezium's columns.
\set ECHO none
\i sql/setup.inc
\set ECHO all
SET shop.test_clock = '2026-11-20 19:40:00.123456+00';
--
-- The table a change data capture reads
--
SELECT column_name, data_type, is_nullable FROM information_schema.columns
 WHERE table_schema = 'shop' AND table_name = 'outbox' ORDER BY column_name;
--
-- The shop's own events; times are UTC whatever the session's zone
--
SET TimeZone = 'Asia/Seoul';
SELECT shop.create_product('Tea', 4500, 10), shop.create_product('Cup', 12000, 5);
SELECT count(*) AS none_for_the_catalogue FROM shop.outbox;
SELECT balance FROM shop.charge_points(7, 100000);
SELECT balance FROM shop.use_points(7, 300, E'gift "wrap" \\');
SELECT balance FROM shop.use_points(7, 1);
SELECT order_id, total, balance FROM shop.place_order(7, '[{"product_id": 2, "quantity": 1}, {"product_id": 1, "quantity": 3}, {"product_id": 2, "quantity": 1}]');
SELECT outcome, order_id FROM shop.try_place_order(7, '[{"product_id": 1, "quantity": 1}]');
SET TimeZone = 'UTC';
SELECT event_no, created_at, priority, aggregatetype, aggregateid, type FROM shop.outbox ORDER BY event_no;
SELECT type, jsonb_pretty(payload) AS payload FROM shop.outbox WHERE event_no <= 4 ORDER BY event_no;
SELECT count(*), count(DISTINCT id), bool_and(id IS NOT NULL) FROM shop.outbox;
-- The currency is shown, not converted
SET shop.currency = 'EUR';
SELECT balance FROM shop.charge_points(7, 5);
RESET shop.currency;
SELECT payload->>'currency' AS currency, payload->>'amount' AS amount FROM shop.outbox ORDER BY event_no DESC LIMIT 1;
-- A free order pays nothing and is an event all the same
SELECT shop.create_product('Sample', 0, 1);
SELECT total FROM shop.place_order(8, '[{"product_id": 3, "quantity": 1}]');
SELECT type, aggregateid, payload - 'lines' AS payload FROM shop.outbox ORDER BY event_no DESC LIMIT 1;
--
-- No event without its commit, no commit without its event
--
SELECT count(*) AS before FROM shop.outbox \gset
BEGIN;
SELECT balance FROM shop.charge_points(7, 10);
SELECT total FROM shop.place_order(7, '[{"product_id": 1, "quantity": 1}]');
SELECT count(*) FROM (SELECT shop.emit_event('app.own', 'app', '1', '{}')) e;
SELECT count(*) - :before AS inside FROM shop.outbox;
ROLLBACK;
SELECT count(*) - :before AS after_rollback FROM shop.outbox;
BEGIN;
SELECT balance FROM shop.charge_points(7, 10);
SAVEPOINT s;
SELECT balance FROM shop.charge_points(7, 20);
ROLLBACK TO s;
SELECT balance FROM shop.charge_points(7, 30);
COMMIT;
SELECT payload->>'amount' AS amount, payload->>'balance' AS balance FROM shop.outbox ORDER BY event_no OFFSET :before;
-- Nothing for a refusal, a returned refusal, a replay
SELECT count(*) AS before FROM shop.outbox \gset
SELECT code FROM public.refusal('SELECT shop.use_points(7, 1000000)');
SELECT outcome FROM shop.try_place_order(7, '[{"product_id": 1, "quantity": 1000}]');
SELECT replayed FROM shop.charge_points(7, 1, idempotency_key => 'k');
SELECT replayed FROM shop.charge_points(7, 1, idempotency_key => 'k');
SELECT replayed FROM shop.place_order(7, '[{"product_id": 1, "quantity": 1}]', idempotency_key => 'k');
SELECT replayed FROM shop.place_order(7, '[{"product_id": 1, "quantity": 1}]', idempotency_key => 'k');
SELECT type, count(*) FROM (SELECT type FROM shop.outbox ORDER BY event_no OFFSET :before) e GROUP BY type ORDER BY type;
--
-- emit_event
--
SELECT shop.emit_event('app.greeted', 'greeting', 'g-1', '{"text": "hello", "list": [1, 2.50, null]}') AS id \gset
SELECT type, aggregatetype, aggregateid, payload, priority, created_at FROM shop.outbox WHERE id = :'id';
SELECT shop.emit_event(type => 't', aggregatetype => 'a', aggregateid => repeat('k', 255), payload => 'null', priority => 9) AS id \gset
SELECT type, aggregatetype, length(aggregateid), payload, priority FROM shop.outbox WHERE id = :'id';
-- Close to a reserved type is not reserved
SELECT shop.emit_event('Order.paid', 'a', '1', '{}') IS NOT NULL AND shop.emit_event('order.paid ', 'a', '1', '{}') IS NOT NULL AS ok;
\a
SELECT r.* FROM (VALUES
    ($$NULL, 'a', '1', '{}'$$), ($$'t', NULL, '1', '{}'$$), ($$'t', 'a', NULL, '{}'$$), ($$'t', 'a', '1', NULL$$),
    ($$'t', 'a', '1', '{}', NULL$$),
    ($$'', 'a', '1', '{}'$$), ($$'t', '', '1', '{}'$$), ($$'t', 'a', '', '{}'$$),
    ($$repeat('x', 256), 'a', '1', '{}'$$), ($$'t', repeat('x', 256), '1', '{}'$$), ($$'t', 'a', repeat('x', 256), '{}'$$),
    ($$'t', 'a', '1', '{}', -1$$), ($$'t', 'a', '1', '{}', 10$$), ($$'t', 'a', '1', '{}', 65536$$)
) v(arguments), LATERAL public.refusal('SELECT shop.emit_event(' || v.arguments || ')') r;
SELECT t AS type, r.* FROM unnest('{order.paid,order.reserved,order.released,order.expired,order.cancelled,order.refunded,points.charged,points.used,coupon.issued}'::text[]) t,
       LATERAL public.refusal(format('SELECT shop.emit_event(%L, %L, %L, %L)', t, 'order', '1', '{}')) r;
\a
--
-- receive_event: keeps an event once
--
SELECT shop.receive_event('{"specversion": "1.0", "id": "00000000-0000-0000-0000-000000000001", "type": "x", "subject": "s",
    "aggregatetype": "a", "time": "2026-01-02T03:04:05.678901Z", "data": {"n": 1}, "extension": "kept out"}') AS is_new;
SELECT shop.receive_event('{"id": "00000000-0000-0000-0000-000000000001", "type": "other"}') AS is_new;
SELECT shop.receive_event(event => '{"id": "{00000000000000000000000000000001}", "type": "x"}') AS is_new;
SELECT shop.receive_event('{"id": "00000000-0000-0000-0000-000000000002", "type": "minimal"}') AS is_new;
SELECT * FROM shop.received_events ORDER BY event_id;
\a
SELECT v.event, r.* FROM (VALUES
    (NULL), ('null'), ('[]'), ('"x"'), ('1'), ('{}'), ('{"id": "00000000-0000-0000-0000-000000000003"}'), ('{"type": "x"}'),
    ('{"id": 3, "type": "x"}'), ('{"id": "00000000-0000-0000-0000-000000000003", "type": null}'),
    ('{"id": "not-a-uuid", "type": "x"}'), ('[{"id": "00000000-0000-0000-0000-000000000003", "type": "x"}]'),
    ('{"id": "00000000-0000-0000-0000-000000000003", "type": "x", "time": "noon-ish"}')
) v(event), LATERAL public.refusal(format('SELECT shop.receive_event(%L)', v.event)) r;
\a
-- receive_events: the same, many at once
SELECT shop.receive_events(ARRAY['{"id": "00000000-0000-0000-0000-000000000001", "type": "again"}',
    '{"specversion": "1.0", "id": "00000000-0000-0000-0000-000000000003", "type": "y", "subject": "s", "aggregatetype": "a",
      "time": "2026-11-19T12:00:00Z", "data": {"a": [1]}}',
    '{"id": "00000000-0000-0000-0000-000000000004", "type": "minimal"}',
    '{"id": "{00000000000000000000000000000004}", "type": "twice"}']::jsonb[]) AS new;
SELECT * FROM shop.received_events WHERE event_id IN ('00000000-0000-0000-0000-000000000003', '00000000-0000-0000-0000-000000000004') ORDER BY event_id;
SELECT shop.receive_events('{}') AS new, shop.receive_events('[5:6]={"{\"id\": \"00000000-0000-0000-0000-000000000004\", \"type\": \"x\"}","{\"id\": \"00000000-0000-0000-0000-000000000005\", \"type\": \"x\"}"}') AS odd_bounds;
SELECT v.events, r.* FROM (VALUES
    ($$NULL$$), ($$'{null}'$$), ($$ARRAY['{"type": "x"}'::jsonb]$$), ($$ARRAY['{"id": "1", "type": "x"}'::jsonb]$$), ($$ARRAY['[]'::jsonb]$$),
    ($$ARRAY['{"id": "00000000-0000-0000-0000-000000000006", "type": "x"}', '{"id": "00000000-0000-0000-0000-000000000007", "type": "x", "time": "noon"}']::jsonb[]$$)
) v(events), LATERAL public.refusal(format('SELECT shop.receive_events(%s)', v.events)) r;
SELECT count(*) FROM shop.received_events WHERE event_id IN ('00000000-0000-0000-0000-000000000006', '00000000-0000-0000-0000-000000000007');
DELETE FROM shop.received_events WHERE event_id BETWEEN '00000000-0000-0000-0000-000000000003' AND '00000000-0000-0000-0000-000000000007';
SELECT count(*) FROM shop.received_events;
-- As an endpoint it gets everything, once, and what arrives again changes nothing
TRUNCATE shop.received_events;
SELECT name FROM shop.create_endpoint('platform', 'function:shop.receive_event', options => '{"from_start": true}');
SELECT shop.deliver_events() = (SELECT count(*) FROM shop.outbox) AS all_delivered;
SELECT count(*) AS differences FROM shop.outbox o FULL JOIN shop.received_events r ON r.event_id = o.id
 WHERE r.type IS DISTINCT FROM o.type OR r.aggregatetype IS DISTINCT FROM o.aggregatetype OR r.aggregateid IS DISTINCT FROM o.aggregateid
    OR r.occurred_at IS DISTINCT FROM o.created_at OR r.data IS DISTINCT FROM o.payload;
SELECT name FROM shop.drop_endpoint('platform');
SELECT name FROM shop.create_endpoint('platform', 'function:shop.receive_event', options => '{"from_start": true}');
SELECT shop.deliver_events() > 0 AS delivered_again;
SELECT count(*) = (SELECT count(*) FROM shop.outbox) AS kept_once FROM shop.received_events;
-- Taken back with its transaction, an event is new again
BEGIN;
SELECT shop.receive_event('{"id": "00000000-0000-0000-0000-000000000009", "type": "x"}') AS is_new;
ROLLBACK;
SELECT shop.receive_event('{"id": "00000000-0000-0000-0000-000000000009", "type": "x"}') AS is_new;
--
-- Texts come out as they went in, times in one form
--
SELECT amount FROM shop.use_points(7, 1, E'gift "1"\\\n\t');
SELECT payload->>'reason' = E'gift "1"\\\n\t' AS intact FROM shop.outbox ORDER BY event_no DESC LIMIT 1;
SET DateStyle = 'German';
SELECT amount FROM shop.charge_points(7, 1);
SELECT payload->>'created_at' AS created_at FROM shop.outbox ORDER BY event_no DESC LIMIT 1;
SET DateStyle = 'ISO, YMD';
SET shop.test_clock = '0999-01-01 00:00:00+00';
SELECT amount FROM shop.charge_points(7, 1);
SELECT payload->>'created_at' AS created_at FROM shop.outbox ORDER BY event_no DESC LIMIT 1;
SELECT count(shop.emit_event('x', 'x', ' ', p)) AS any_json FROM unnest('{1,true,"\"s\"","[]"}'::jsonb[]) p;
SELECT bool_and(substr(id::text, 15, 1) = '4') AS random_ids FROM shop.outbox;
-- The catalogue and the stock have no events
SELECT count(*) AS before FROM shop.outbox \gset
SELECT shop.restock(1, 1) > 0 AS restocked;
SELECT price FROM shop.set_price(1, 1);
SELECT status FROM shop.set_product_status(1, 'suspended');
SELECT count(*) - :before AS new FROM shop.outbox;
SELECT * FROM shop.verify();
