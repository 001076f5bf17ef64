-- Orders taken back: whole by cancel_order, in parts by refund_order.
\set ECHO none
\i sql/setup.inc
\set ECHO all
SET shop.test_clock = '2026-11-20 12:00:00+00';
SELECT shop.create_product('Tea', 4500, 1000) AS tea, shop.create_product('Cup', 12000, 1000) AS cup,
       shop.create_product('Pot', 700, 1000) AS pot, shop.create_product('Sample', 0, 1000) AS sample \gset
SELECT user_id, balance FROM generate_series(1, 3) u, LATERAL shop.charge_points(u, 100000);
-- Items told as '2:1 1:3': 1 unit of product 2, 3 of product 1
CREATE FUNCTION public.items(told text) RETURNS jsonb LANGUAGE sql AS $$
    SELECT jsonb_agg(jsonb_build_object('product_id', split_part(i, ':', 1)::bigint, 'quantity', split_part(i, ':', 2)::integer) ORDER BY n)
      FROM string_to_table(told, ' ') WITH ORDINALITY t(i, n)
$$;
-- Gives a user a coupon of a campaign of its own, valid until 12:00 on the 21st
CREATE FUNCTION public.give(user_id bigint, discount_type text, discount_value bigint, max_discount bigint DEFAULT NULL)
    RETURNS bigint LANGUAGE sql AS $$
    SELECT coupon_id FROM shop.issue_coupon(
        shop.create_coupon_campaign('C', discount_type, discount_value, 1, '2026-11-20', '2026-11-21 12:00+00', NULL, 0, max_discount), user_id)
$$;
-- Units in stock of the first four products
CREATE VIEW public.units AS
    SELECT string_agg(available::text, ' ' ORDER BY product_id) AS units FROM shop.products WHERE product_id <= 4;

--
-- The states
--
SELECT * FROM shop.order_transitions();

--
-- cancel_order: units, points and coupon back, by the user, with a reason
--
-- 12,000 + 2 x 4,500 = 21,000; 10 percent are 2,100; 18,900 to pay
SELECT public.give(1, 'percent', 10) AS coupon \gset
SELECT order_id, subtotal, discount, total, balance FROM shop.place_order(1, public.items('2:1 1:2'), :coupon);
SELECT * FROM public.units;
SET shop.test_clock = '2026-11-20 12:30:00.000001+00';
SELECT * FROM shop.cancel_order(1, 1, E'changed "my" mind');
SELECT * FROM public.units;
SELECT * FROM shop.get_order(1);
SELECT product_id, quantity, discount, total, refunded_quantity, refunded FROM shop.order_lines(1);
SELECT kind, status, amount, balance, reason, created_at FROM shop.order_changes(1);
SELECT amount, balance, kind, reason, order_id, created_at FROM shop.point_history(1);
SELECT status, order_id FROM shop.user_coupons(1);
SELECT aggregatetype, aggregateid, created_at, jsonb_pretty(payload) AS payload FROM shop.outbox WHERE type = 'order.cancelled';
SELECT * FROM shop.verify();
-- Again: the same row, whatever has changed and whoever asks for whatever reason; nothing is given back twice
SET shop.test_clock = '2026-11-22 00:00:00+00';
SELECT balance FROM shop.charge_points(1, 1);
SELECT * FROM shop.cancel_order(1, 1, E'changed "my" mind');
SELECT * FROM shop.cancel_order(order_id => 1, reason => 'other');
SELECT * FROM shop.cancel_order(1);
SELECT balance FROM shop.use_points(1, 1);
SELECT * FROM public.units;
SELECT count(*) FROM shop.order_changes(1);
SELECT count(*) FROM shop.outbox WHERE type = 'order.cancelled';
BEGIN;
SELECT replayed FROM shop.cancel_order(1);
SELECT pg_current_xact_id_if_assigned() IS NULL AS no_xid;
COMMIT;
SET shop.test_clock = '2026-11-20 12:30:00+00';
-- The coupon is good for another order; a call for the first does not touch that
SELECT order_id, discount, total FROM shop.place_order(1, public.items('1:1'), :coupon);
SELECT replayed FROM shop.cancel_order(1);
SELECT status, order_id FROM shop.user_coupons(1);
SELECT coupon_id = :coupon AS still_named FROM shop.get_order(1);
SELECT * FROM shop.verify();
-- back again until its time is over: at 12:00 on the 21st it is not
SET shop.test_clock = '2026-11-21 11:59:59.999999+00';
BEGIN;
SELECT status, balance FROM shop.cancel_order(2);
SELECT status, order_id FROM shop.user_coupons(1);
ROLLBACK;
SET shop.test_clock = '2026-11-21 12:00:00+00';
SELECT status, balance FROM shop.cancel_order(2);
SELECT status, order_id FROM shop.user_coupons(1);
SET shop.test_clock = '2026-11-20 12:30:00+00';
SELECT refused(format('SELECT shop.place_order(1, public.items(''1:1''), %s)', :coupon));
SELECT * FROM shop.verify();

--
-- cancel_order by an operator, of orders paid in other ways
--
-- of a reservation that was paid
SELECT order_id AS held FROM shop.reserve_order(2, public.items('3:2')) \gset
SELECT status, balance FROM shop.pay_order(:held, 2);
SELECT status, total, balance, expires_at, replayed FROM shop.cancel_order(:held);
SELECT kind, status, amount, balance, reason FROM shop.order_changes(:held);
SELECT amount, kind, reason FROM shop.point_history(2, "limit" => 1);
-- of what cost nothing: no entry, no account
SELECT order_id AS free FROM shop.place_order(50, public.items('4:2')) \gset
SELECT status, total, balance FROM shop.cancel_order(:free, 50, '');
SELECT order_id AS free FROM shop.place_order(50, public.items('1:1'), public.give(50, 'percent', 100)) \gset
SELECT status, total, balance FROM shop.cancel_order(:free);
SELECT kind, amount, balance, reason FROM shop.order_changes(:free);
SELECT status FROM shop.user_coupons(50);
SELECT count(*) FROM shop.point_history(50);
SELECT count(*) FROM shop.account WHERE user_id = 50;
SELECT jsonb_path_query_array(payload, '$.lines[*].total') AS lines, payload->'amount' AS amount, payload->'reason' AS reason
  FROM shop.outbox WHERE type = 'order.cancelled' AND payload->>'user_id' = '50' ORDER BY event_no;
-- What comes back is no charge: the limit does not stop it
SELECT order_id AS big FROM shop.place_order(2, public.items('2:1')) \gset
SET shop.max_balance = 90000;
SELECT status, balance FROM shop.cancel_order(:big);
RESET shop.max_balance;
-- of a product that is not sold any more
SELECT order_id AS gone FROM shop.place_order(2, public.items('3:1')) \gset
SELECT status FROM shop.set_product_status(3, 'discontinued');
SELECT status FROM shop.cancel_order(:gone);
SELECT status FROM shop.set_product_status(3, 'on_sale');
SELECT * FROM public.units;
SELECT * FROM shop.verify();

--
-- Refusals of cancel_order, in their declared order
--
SELECT order_id AS paid FROM shop.place_order(2, public.items('3:1')) \gset
SELECT order_id AS held FROM shop.reserve_order(2, public.items('3:1'), '1 day') \gset
SELECT * FROM refusal('SELECT shop.cancel_order(4711, 1)');
SELECT code, message, detail::jsonb - 'order_id' AS detail, hint FROM refusal(format('SELECT shop.cancel_order(%s, 1)', :paid));
SELECT code, detail::jsonb - 'order_id' AS detail FROM refusal(format('SELECT shop.cancel_order(%s, 1)', :held));
SELECT refused('SELECT shop.cancel_order(1, 2)');
SELECT code, message, detail::jsonb - 'order_id' AS detail, hint FROM refusal(format('SELECT shop.cancel_order(%s, 2)', :held));
SELECT code, detail::jsonb - 'order_id' AS detail FROM refusal(format('SELECT shop.cancel_order(%s)', :held));
SELECT refused('SELECT shop.cancel_order(9223372036854775807)');
SELECT * FROM refusal('SELECT shop.cancel_order(NULL)');
SELECT * FROM refusal('SELECT shop.cancel_order(4711, 1, repeat(''x'', 1001))');
BEGIN;
SELECT status FROM shop.cancel_order(:paid, 2, repeat('x', 1000));
SELECT length(reason) FROM shop.order_changes(:paid);
SELECT length(reason) FROM shop.point_history(2, "limit" => 1);
ROLLBACK;
SELECT status FROM shop.get_order(:paid);
SELECT status FROM shop.release_order(:held, 2);
SELECT * FROM shop.verify();

--
-- refund_order: three uneven lines, 15 percent, at most 3,990
--
-- 12,000 + 3 x 4,500 + 7 x 700 = 30,400; 15 percent are 4,560, so it is 3,990; 26,410 to pay.
-- 3,990 x 12,000 = 1,575 x 30,400               paid 10,425 for 1
-- 3,990 x 13,500 = 1,771 x 30,400 + 26,600      and the one left: 1,772; paid 11,728 for 3
-- 3,990 x  4,900 =   643 x 30,400 +  3,800      paid 4,257 for 7
SET shop.test_clock = '2026-11-20 13:00:00+00';
SELECT * FROM public.units;
SELECT public.give(3, 'percent', 15, 3990) AS coupon \gset
SELECT order_id AS parts, total, balance FROM shop.place_order(3, public.items('2:1 1:3 3:7'), :coupon) \gset
SELECT line_no, product_id, quantity, subtotal, discount, total, refunded_quantity, refunded FROM shop.order_lines(:parts);
-- 3 of the 7: floor(4,257 x 3 / 7 = 1,824.4); they do not go back into stock
SET shop.test_clock = '2026-11-20 13:10:00.000001+00';
SELECT order_id = :parts AS same, status, subtotal, discount, total, balance, expires_at, replayed, amount, refunded
  FROM shop.refund_order(:parts, public.items('3:3'), 'broken', false, 'first');
SELECT * FROM public.units;
SELECT status, total, refunded FROM shop.get_order(:parts);
SELECT product_id, quantity, total, refunded_quantity, refunded FROM shop.order_lines(:parts);
SELECT amount, balance, kind, reason, order_id = :parts AS same, created_at FROM shop.point_history(3, "limit" => 1);
SELECT kind, status, amount, balance, reason, created_at FROM shop.order_changes(:parts);
SELECT aggregatetype, aggregateid = :'parts' AS same, created_at, jsonb_pretty(payload - '{order_id,coupon_id,refund_id}'::text[]) AS payload FROM shop.outbox WHERE type = 'order.refunded';
SELECT (payload->>'refund_id')::bigint = (SELECT change_id FROM shop.order_changes(:parts)) AS refund_id,
       (payload->>'order_id')::bigint = :parts AS order_id, (payload->>'coupon_id')::bigint = :coupon AS coupon_id
  FROM shop.outbox WHERE type = 'order.refunded';
SELECT * FROM shop.verify();
-- Another of the 7: floor(4,257 x 4 / 7 = 2,432.6) less 1,824 = 608; 1 of the 3: floor(11,728 / 3 = 3,909.3)
SET shop.test_clock = '2026-11-20 13:20:00+00';
SELECT status, balance, amount, refunded FROM shop.refund_order(order_id => :parts, items => public.items('3:1 1:1'), reason => 'late');
SELECT * FROM public.units;
SELECT product_id, quantity, total, refunded_quantity, refunded FROM shop.order_lines(:parts);
SELECT payload->'amount' AS amount, payload->'refunded' AS refunded, payload->'restocked' AS restocked, payload->'lines' AS lines
  FROM shop.outbox WHERE type = 'order.refunded' ORDER BY event_no DESC LIMIT 1;
-- The one of 10,425
SELECT status, balance, amount, refunded, replayed FROM shop.refund_order(:parts, public.items('2:1'));
SELECT * FROM shop.verify();
-- More than is left, in any way it can be told
SELECT * FROM refusal(format('SELECT shop.refund_order(%s, public.items(''2:1''))', :parts));
SELECT refused(format('SELECT shop.refund_order(%s, public.items(''1:3''))', :parts));
SELECT refused(format('SELECT shop.refund_order(%s, public.items(''1:1 1:1 1:1''))', :parts));
SELECT refused(format('SELECT shop.refund_order(%s, public.items(''1:2 3:4''))', :parts));
SELECT refused(format('SELECT shop.refund_order(%s, public.items(''1:2 3:2147483647''))', :parts));
SELECT refused(format('SELECT shop.refund_order(%s, public.items(''3:1 4:1''))', :parts));
SELECT refused(format('SELECT shop.refund_order(%s, public.items(''4711:1 3:9''))', :parts));
-- The rest: 11,728 - 3,909 = 7,819 and 4,257 - 2,432 = 1,825
SET shop.test_clock = '2026-11-20 13:30:00+00';
SELECT status, balance, amount, refunded FROM shop.refund_order(:parts, public.items('1:2 3:3'), idempotency_key => 'last');
SELECT * FROM public.units;
SELECT status, total, refunded, paid_at FROM shop.get_order(:parts);
SELECT product_id, quantity, total, refunded_quantity, refunded FROM shop.order_lines(:parts);
SELECT kind, status, amount, balance, reason FROM shop.order_changes(:parts);
SELECT amount, balance, kind, reason FROM shop.point_history(3);
SELECT payload->'status' AS status, payload->'amount' AS amount, payload->'refunded' AS refunded, payload->'restocked' AS restocked, payload->'reason' AS reason,
       payload->>'paid_at' AS paid_at, payload->>'refunded_at' AS refunded_at
  FROM shop.outbox WHERE type = 'order.refunded' ORDER BY event_no;
-- the coupon stays used
SELECT status, order_id = :parts AS same FROM shop.user_coupons(3);
-- a refunded order is at its end
SELECT code, message, detail::jsonb - 'order_id' AS detail, hint FROM refusal(format('SELECT shop.refund_order(%s, public.items(''1:1''))', :parts));
SELECT code, detail::jsonb - 'order_id' AS detail FROM refusal(format('SELECT shop.cancel_order(%s)', :parts));
SELECT * FROM shop.verify();

--
-- Cancelled after a refund: what is left
--
-- The same order: refunded 2 of the 3, floor(11,728 x 2 / 3 = 7,818.7), not for stock, and all of the 7, 4,257.
-- Left are 10,425 + 11,728 - 7,818 = 14,335, and in stock 1 of 2, 1 of 1, none of 3.
SELECT public.give(3, 'percent', 15, 3990) AS coupon \gset
SELECT order_id AS parts, total, balance FROM shop.place_order(3, public.items('2:1 1:3 3:7'), :coupon) \gset
SELECT balance, amount, refunded FROM shop.refund_order(:parts, public.items('1:2'), NULL, false);
SELECT balance, amount, refunded FROM shop.refund_order(:parts, public.items('3:7'), NULL, true, 'before');
SELECT * FROM public.units;
SELECT status, total, balance, replayed FROM shop.cancel_order(:parts, 3);
SELECT * FROM public.units;
SELECT status, total, refunded FROM shop.get_order(:parts);
SELECT product_id, quantity, total, refunded_quantity, refunded FROM shop.order_lines(:parts);
SELECT kind, status, amount, balance FROM shop.order_changes(:parts);
SELECT payload->'amount' AS amount, payload->'lines' AS lines FROM shop.outbox WHERE type = 'order.cancelled' AND aggregateid = :'parts';
SELECT status FROM shop.user_coupons(3) WHERE coupon_id = :coupon;
SELECT code, detail::jsonb - 'order_id' AS detail FROM refusal(format('SELECT shop.refund_order(%s, public.items(''1:1''))', :parts));
-- the refund by its key is what it was
SELECT status, balance, amount, refunded, replayed FROM shop.refund_order(:parts, public.items('3:7'), NULL, true, 'before');
SELECT * FROM shop.verify();

--
-- Refunds of nothing, and of much
--
SELECT order_id AS free FROM shop.place_order(51, public.items('4:3')) \gset
SELECT status, balance, amount, refunded FROM shop.refund_order(:free, public.items('4:1'));
SELECT status, balance, amount, refunded FROM shop.refund_order(:free, public.items('4:2'));
SELECT kind, status, amount, balance FROM shop.order_changes(:free);
SELECT count(*) FROM shop.point_history(51);
SELECT count(*) FROM shop.account WHERE user_id = 51;
-- a free line is a line: until its units are back, the order is not refunded
SELECT order_id AS gift FROM shop.place_order(3, public.items('3:1 4:1')) \gset
SELECT status, amount FROM shop.refund_order(:gift, public.items('3:1'));
SELECT status, amount FROM shop.refund_order(:gift, public.items('4:1'));
-- 2 points for 3 units: floor(2/3) = 0, floor(4/3) = 1, 2
SELECT shop.create_product('Straw', 1, 100) AS straw, shop.create_product('Diamond', 1000000000000000, 9) AS diamond,
       shop.create_product('Chip', 1, 4000000000) AS chip \gset
SELECT order_id AS few FROM shop.place_order(3, public.items(:straw || ':3'), public.give(3, 'fixed', 1)) \gset
SELECT status, amount, refunded FROM shop.refund_order(:few, public.items(:straw || ':1'));
SELECT status, amount, refunded FROM shop.refund_order(:few, public.items(:straw || ':1'));
SELECT status, amount, refunded FROM shop.refund_order(:few, public.items(:straw || ':1'));
-- 1,073,741,824 points for 2,147,483,647 units: half a point and a bit for each
SELECT balance FROM shop.charge_points(9, 999999999999999);
SELECT order_id AS many, total FROM shop.place_order(9, public.items(:chip || ':2147483647'), public.give(9, 'percent', 50)) \gset
SELECT amount, refunded FROM shop.refund_order(:many, public.items(:chip || ':1'));
SELECT amount, refunded FROM shop.refund_order(:many, public.items(:chip || ':1'));
SELECT amount, refunded FROM shop.refund_order(:many, public.items(:chip || ':2147483644'));
SELECT status, amount, refunded, balance FROM shop.refund_order(:many, public.items(:chip || ':1'));
-- 10^15
SELECT balance FROM shop.charge_points(9, 1);
SELECT order_id AS big FROM shop.place_order(9, public.items(:diamond || ':1')) \gset
SELECT status, amount, refunded, balance FROM shop.refund_order(:big, public.items(:diamond || ':1'));
SELECT * FROM shop.verify();

--
-- Refusals of refund_order, in their declared order
--
SELECT order_id AS paid FROM shop.place_order(2, public.items('3:2')) \gset
SELECT refund_id AS used FROM shop.refund_order(:paid, public.items('3:1'), NULL, true, 'used') \gset
SELECT order_id AS cancelled FROM shop.place_order(2, public.items('3:1')) \gset
SELECT status FROM shop.cancel_order(:cancelled);
SELECT * FROM refusal('SELECT shop.refund_order(4711, public.items(''4711:1''), NULL, true, ''used'')');
SELECT refused(format('SELECT shop.refund_order(%s, public.items(''4711:1''), NULL, true, ''used'')', :cancelled));
SELECT code, detail::jsonb - 'order_id' AS detail FROM refusal(format('SELECT shop.refund_order(%s, public.items(''4711:1''), NULL, true, ''new'')', :cancelled));
SELECT refused(format('SELECT shop.refund_order(%s, public.items(''4711:1''), NULL, true, ''new'')', :paid));
-- Bad input comes before all
\a
SELECT given, r.code, r.message, r.detail FROM unnest(ARRAY[NULL, 'null', '{}', '[]', '"x"', '1', '[1]', '[[]]', '[{}]', '[{"product_id": 3}]', '[{"quantity": 1}]',
    '[{"product_id": 3, "quantity": 0}]', '[{"product_id": 3, "quantity": -1}]', '[{"product_id": 3, "quantity": 1.5}]', '[{"product_id": "3", "quantity": 1}]',
    '[{"product_id": 3, "quantity": 2147483648}]', '[{"product_id": 3, "quantity": 2147483647}, {"product_id": 3, "quantity": 1}]',
    '[{"product_id": null, "quantity": 1}]', '[{"product_id": 3, "quantity": 1, "amount": 5}]']) given,
    LATERAL public.refusal(format('SELECT shop.refund_order(4711, %L, NULL, true, ''used'')', given)) r;
SELECT given, r.code, r.message, r.detail FROM unnest(ARRAY['NULL, ''[{"product_id": 3, "quantity": 1}]''', '4711, ''[{"product_id": 3, "quantity": 1}]'', restock => NULL',
    '4711, ''[{"product_id": 3, "quantity": 1}]'', repeat(''x'', 1001)', '4711, ''[{"product_id": 3, "quantity": 1}]'', idempotency_key => ''''']) given,
    LATERAL public.refusal(format('SELECT shop.refund_order(%s)', given)) r;
\a
BEGIN;
SELECT status FROM shop.refund_order(:paid, public.items('3:1'), repeat('x', 1000));
SELECT status, length(reason) FROM shop.order_changes(:paid);
ROLLBACK;
-- Refused, it leaves nothing
SELECT status, refunded FROM shop.get_order(:paid);
SELECT count(*) FROM shop.order_changes(:paid);
SELECT * FROM shop.verify();

--
-- Keys of refund_order: of the order's user
--
SELECT order_id AS first FROM shop.place_order(2, public.items('1:4')) \gset
SELECT order_id AS second FROM shop.place_order(2, public.items('1:4')) \gset
SELECT order_id AS others FROM shop.place_order(3, public.items('1:4')) \gset
SELECT refund_id AS refund, status, total, balance, amount, refunded, replayed FROM shop.refund_order(:first, public.items('1:1'), 'r', true, 'k') \gset
SELECT :'status' AS status, :total AS total, :amount AS amount, :refunded AS refunded, :'replayed' AS replayed;
SELECT refund_id = :refund AS same, status, total, balance = :balance AS same_balance, amount, refunded, replayed
  FROM shop.refund_order(:first, '[{"quantity": 1, "product_id": 1.0}]', 'r', true, 'k');
-- other arguments, in the order they are declared
SELECT * FROM refusal(format('SELECT shop.refund_order(%s, public.items(''1:1''), ''r'', true, ''k'')', :second));
SELECT refused(format('SELECT shop.refund_order(%s, public.items(''1:2''), ''r'', true, ''k'')', :first));
SELECT refused(format('SELECT shop.refund_order(%s, public.items(''1:1''), ''s'', true, ''k'')', :first));
SELECT refused(format('SELECT shop.refund_order(%s, public.items(''1:1''), NULL, true, ''k'')', :first));
SELECT refused(format('SELECT shop.refund_order(%s, public.items(''1:1''), ''r'', false, ''k'')', :first));
SELECT refused(format('SELECT shop.refund_order(%s, public.items(''1:2''), ''s'', false, ''k'')', :second));
SELECT refused(format('SELECT shop.refund_order(%s, public.items(''1:1''), ''s'', false, ''k'')', :first));
-- another user's key is another key; so is that of another verb
SELECT amount, replayed FROM shop.refund_order(:others, public.items('1:2'), idempotency_key => 'k');
SELECT amount, replayed FROM shop.use_points(2, 1, NULL, 'k');
-- NULL and '' are two reasons
SELECT amount, replayed FROM shop.refund_order(:second, public.items('1:1'), NULL, true, 'null');
SELECT refused(format('SELECT shop.refund_order(%s, public.items(''1:1''), '''', true, ''null'')', :second));
SELECT amount, replayed FROM shop.refund_order(:second, public.items('1:1'), NULL, true, 'null');
-- the first answer, whatever was refunded since
SELECT status, amount, refunded FROM shop.refund_order(:first, public.items('1:3'));
SELECT refund_id = :refund AS same, status, total, balance = :balance AS same_balance, amount, refunded, replayed
  FROM shop.refund_order(:first, public.items('1:1'), 'r', true, 'k');
-- a call that failed leaves no key
SELECT code FROM refusal(format('SELECT shop.refund_order(%s, public.items(''1:4''), idempotency_key => ''f'')', :second));
SELECT amount, replayed FROM shop.refund_order(:second, public.items('1:1'), idempotency_key => 'f');
BEGIN;
SELECT amount, replayed FROM shop.refund_order(:second, public.items('1:1'), idempotency_key => 'u');
SELECT amount, replayed FROM shop.refund_order(:second, public.items('1:1'), idempotency_key => 'u');
ROLLBACK;
SELECT amount, replayed FROM shop.refund_order(:second, public.items('1:2'), idempotency_key => 'u');
-- without a key every call is a new one; with one, nothing is written again
SELECT amount FROM generate_series(1, 2) n, LATERAL shop.refund_order(:others, jsonb_build_array(jsonb_build_object('product_id', 1, 'quantity', least(n, 1))));
BEGIN;
SELECT replayed FROM shop.refund_order(:first, public.items('1:1'), 'r', true, 'k');
SELECT pg_current_xact_id_if_assigned() IS NULL AS no_xid;
COMMIT;
SELECT * FROM shop.verify();

--
-- Every state and every verb: what order_transitions() has, a repeated call, or refused
--
SET shop.test_clock = '2026-11-20 14:00:00+00';
CREATE TABLE public.state (n serial, state text, order_id bigint);
INSERT INTO public.state (state, order_id) SELECT 'reserved', order_id FROM shop.reserve_order(1, public.items('1:1'), '1 hour');
INSERT INTO public.state (state, order_id) SELECT 'paid', order_id FROM shop.place_order(1, public.items('1:2'));
INSERT INTO public.state (state, order_id) SELECT 'reserved and paid', order_id FROM shop.reserve_order(1, public.items('1:2'));
INSERT INTO public.state (state, order_id) SELECT 'partly refunded', order_id FROM shop.place_order(1, public.items('1:2'));
INSERT INTO public.state (state, order_id) SELECT 'released', order_id FROM shop.reserve_order(1, public.items('1:1'));
INSERT INTO public.state (state, order_id) SELECT 'expired', order_id FROM shop.reserve_order(1, public.items('1:1'), '1 minute');
INSERT INTO public.state (state, order_id) SELECT 'expired, not noted', order_id FROM shop.reserve_order(1, public.items('1:1'), '2 minutes');
INSERT INTO public.state (state, order_id) SELECT 'cancelled', order_id FROM shop.place_order(1, public.items('1:2'));
INSERT INTO public.state (state, order_id) SELECT 'refunded', order_id FROM shop.place_order(1, public.items('1:2'));
SELECT p.status FROM public.state s, LATERAL shop.pay_order(s.order_id, 1) p WHERE state = 'reserved and paid';
SELECT r.status FROM public.state s, LATERAL shop.refund_order(s.order_id, public.items('1:1')) r WHERE state = 'partly refunded';
SELECT r.status FROM public.state s, LATERAL shop.release_order(s.order_id, 1) r WHERE state = 'released';
SELECT c.status FROM public.state s, LATERAL shop.cancel_order(s.order_id) c WHERE state = 'cancelled';
SELECT r.status FROM public.state s, LATERAL shop.refund_order(s.order_id, public.items('1:2')) r WHERE state = 'refunded';
SET shop.test_clock = '2026-11-20 14:01:00+00';
SELECT reservations_expired FROM shop.run_maintenance();
SET shop.test_clock = '2026-11-20 14:02:00+00';
SELECT state, g.status, o.status AS in_its_row FROM public.state s JOIN shop.orders o USING (order_id), LATERAL shop.get_order(s.order_id) g ORDER BY n;
\a
SELECT state, verb, r.code, r.detail::jsonb - 'order_id' AS detail
  FROM public.state s
 CROSS JOIN (VALUES (1, 'pay_order', '%s, 1'), (2, 'release_order', '%s, 1'), (3, 'cancel_order', '%s'), (4, 'refund_order', '%s, public.items(''1:1'')')) v(k, verb, arguments),
       LATERAL public.refusal(format('SELECT shop.%s(%s)', verb, format(arguments, s.order_id))) r
 ORDER BY s.n, v.k;
\a
-- What is let through is what order_transitions() has, and the two calls that repeat
SELECT DISTINCT g.status, verb
  FROM public.state s
 CROSS JOIN (VALUES ('pay_order', '%s, 1'), ('release_order', '%s, 1'), ('cancel_order', '%s'), ('refund_order', '%s, public.items(''1:1'')')) v(verb, arguments),
       LATERAL shop.get_order(s.order_id) g,
       LATERAL public.refusal(format('SELECT shop.%s(%s)', verb, format(arguments, s.order_id))) r
 WHERE r.code = '00000'
EXCEPT
SELECT from_status, verb FROM shop.order_transitions() ORDER BY 1;
-- Every event of a transition has been seen
SELECT t.event, bool_or(o.type IS NOT NULL) AS seen FROM shop.order_transitions() t LEFT JOIN shop.outbox o ON o.type = t.event GROUP BY 1 ORDER BY 1;
SELECT * FROM shop.verify();

--
-- Popular products: off the hour of the payment, whenever it was taken back
--
SET shop.test_clock = '2026-11-25 10:30:00+00';
SELECT shop.create_product('P', 100, 1000) AS p, shop.create_product('Q', 100, 1000) AS q, shop.create_product('R', 100, 1000) AS r \gset
SELECT balance FROM shop.charge_points(7, 100000);
-- hour 10: p 5, q 4; hour 11: p 3, r 2
SELECT order_id AS p5 FROM shop.place_order(7, public.items(:p || ':5')) \gset
SELECT order_id AS q4 FROM shop.place_order(7, public.items(:q || ':4')) \gset
SET shop.test_clock = '2026-11-25 11:30:00+00';
SELECT coupon_id AS coupon FROM shop.issue_coupon(shop.create_coupon_campaign('C', 'fixed', 20, 1, '2026-11-25', '2026-11-26'), 7) \gset
SELECT order_id AS p3 FROM shop.place_order(7, public.items(:p || ':3'), :coupon) \gset
SELECT order_id AS r2 FROM shop.place_order(7, public.items(:r || ':2')) \gset
SELECT shop.refresh_popular_products();
SELECT rank, name, quantity, revenue FROM shop.top_products();
-- at 12, p's 5 of hour 10 are cancelled, of q's 4 are refunded 1 for stock and 1 not, of p's 3 one:
-- 280 x 1 / 3 = 93.3
SET shop.test_clock = '2026-11-25 12:30:00+00';
SELECT status FROM shop.cancel_order(:p5);
SELECT amount FROM shop.refund_order(:q4, public.items(:q || ':1'));
SELECT amount FROM shop.refund_order(:q4, public.items(:q || ':1'), NULL, false);
SELECT amount FROM shop.refund_order(:p3, public.items(:p || ':1'));
SELECT * FROM shop.verify();
SELECT shop.refresh_popular_products();
SELECT rank, name, quantity, revenue FROM shop.top_products();
SELECT hour, name, quantity, revenue FROM shop.product_sales JOIN shop.product USING (product_id) WHERE hour >= '2026-11-25' ORDER BY hour, product_id;
-- paid and cancelled between two refreshes: as if it had not been; all of r is left out
SELECT status FROM shop.cancel_order((SELECT order_id FROM shop.place_order(7, public.items(:r || ':9'))));
SELECT status, amount FROM shop.refund_order(:r2, public.items(:r || ':2'));
SELECT status, balance FROM shop.cancel_order(:p3);
SELECT shop.refresh_popular_products();
SELECT rank, name, quantity, revenue FROM shop.top_products();
SELECT hour, name, quantity, revenue FROM shop.product_sales JOIN shop.product USING (product_id) WHERE hour >= '2026-11-25' ORDER BY hour, product_id;
SELECT * FROM shop.verify();

--
-- Isolation levels, savepoints, read-only transactions
--
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT order_id AS one FROM shop.place_order(7, public.items('1:2')) \gset
SELECT status, amount FROM shop.refund_order(:one, public.items('1:1'));
SELECT status FROM shop.cancel_order(:one);
SELECT replayed FROM shop.cancel_order(:one);
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT order_id AS one FROM shop.place_order(7, public.items('1:2')) \gset
SAVEPOINT s;
SELECT status, amount FROM shop.refund_order(:one, public.items('1:2'));
SELECT shop.cancel_order(:one, 1);
ROLLBACK TO s;
SELECT status, amount FROM shop.refund_order(:one, public.items('1:1'));
ROLLBACK TO s;
SELECT status FROM shop.cancel_order(:one, 7);
COMMIT;
SELECT status, refunded FROM shop.get_order(:one);
BEGIN READ ONLY;
SELECT * FROM refusal(format('SELECT shop.cancel_order(%s)', :one));
SELECT * FROM refusal(format('SELECT shop.refund_order(%s, public.items(''1:1''))', :one));
-- even a call that could only be refused, but not bad input
SELECT refused('SELECT shop.cancel_order(4711)');
SELECT refused('SELECT shop.refund_order(4711, public.items(''1:1''))');
SELECT refused('SELECT shop.cancel_order(NULL)');
SELECT refused('SELECT shop.refund_order(4711, ''[]'')');
SELECT count(*) FROM shop.order_transitions();
COMMIT;
SELECT * FROM shop.verify();
\set ECHO none
DROP TABLE public.state;
DROP VIEW public.units;
DROP FUNCTION public.items(text), public.give(bigint, text, bigint, bigint);
