-- Reservations: units held for a while, then paid, released or expired.
\set ECHO none
\i sql/setup.inc
\set ECHO all
SET shop.test_clock = '2026-11-20 12:00:00+00';
SELECT shop.create_product('Tea', 4500, 10) AS tea, shop.create_product('Cup', 12000, 5) AS cup,
       shop.create_product('Pot', 700, 10) AS pot, shop.create_product('Sample', 0, 10) AS sample \gset
SELECT balance FROM shop.charge_points(1, 100000);
SELECT balance FROM shop.charge_points(2, 100000);
-- Items told as '2:1 1:3': 1 unit of product 2, 3 of product 1
CREATE FUNCTION public.items(told text) RETURNS jsonb LANGUAGE sql AS $$
    SELECT jsonb_agg(jsonb_build_object('product_id', split_part(i, ':', 1)::bigint, 'quantity', split_part(i, ':', 2)::integer) ORDER BY n)
      FROM string_to_table(told, ' ') WITH ORDINALITY t(i, n)
$$;
-- What is in stock, what is held by whom, and what the catalogue says of it
CREATE VIEW public.units AS
    SELECT product_id, (SELECT sum(on_hand) FROM shop.stock s WHERE s.product_id = p.product_id) AS on_hand,
           (SELECT string_agg(order_id || ':' || quantity, ' ' ORDER BY expires_at, order_id) FROM shop.stock_hold h WHERE h.product_id = p.product_id) AS held,
           available
      FROM shop.products p ORDER BY product_id;

--
-- Reserved, and paid in time
--
SET shop.test_clock = '2026-11-20 12:00:00.123456+00';
SELECT * FROM shop.reserve_order(1, public.items('2:1 1:2'));
SELECT * FROM shop.get_order(1);
SELECT * FROM shop.order_lines(1);
SELECT * FROM shop.order_history(1);
SELECT kind, status, amount, balance, reason, created_at FROM shop.order_changes(1);
-- nothing is paid, the units are nobody else's
SELECT shop.point_balance(1), count(*) AS entries FROM shop.point_history(1);
SELECT * FROM public.units;
SELECT type, aggregatetype, aggregateid, created_at, jsonb_pretty(payload) AS payload FROM shop.outbox WHERE type LIKE 'order.%';
SELECT * FROM shop.verify();
-- the price is that of the reservation: 12,000 + 2 x 4,500 = 21,000
SELECT price FROM shop.set_price(1, 5000);
SELECT status FROM shop.set_product_status(2, 'suspended');
SET shop.test_clock = '2026-11-20 12:05:00.123455+00';
SELECT * FROM shop.pay_order(1, 1);
SELECT * FROM shop.get_order(1);
SELECT product_id, quantity, unit_price, discount, total FROM shop.order_lines(1);
SELECT kind, status, amount, balance, reason, created_at FROM shop.order_changes(1);
SELECT amount, balance, kind, reason, order_id, created_at FROM shop.point_history(1, "limit" => 1);
SELECT * FROM public.units;
SELECT aggregateid, created_at, jsonb_pretty(payload) AS payload FROM shop.outbox WHERE type = 'order.paid';
SELECT price FROM shop.set_price(1, 4500);
SELECT status FROM shop.set_product_status(2, 'on_sale');
SELECT * FROM shop.verify();

--
-- Reserved, and released; by name, with the arguments in any order
--
SET shop.test_clock = '2026-11-20 12:10:00+00';
SELECT * FROM shop.reserve_order(idempotency_key => NULL, expires_in => '1 hour', items => public.items('1:3 4:1'), user_id => 1);
SELECT * FROM public.units;
SET shop.test_clock = '2026-11-20 12:11:00+00';
SELECT balance FROM shop.charge_points(1, 1000);
SELECT * FROM shop.release_order(2, 1);
-- again: the same row, whatever the balance and the time
SELECT balance FROM shop.charge_points(1, 1000);
SET shop.test_clock = '2026-11-20 14:00:00+00';
SELECT * FROM shop.release_order(user_id => 1, order_id => 2);
SELECT * FROM shop.get_order(2);
SELECT kind, status, amount, balance, created_at FROM shop.order_changes(2);
SELECT * FROM public.units;
SELECT aggregateid, created_at, jsonb_pretty(payload) AS payload FROM shop.outbox WHERE type = 'order.released';
SELECT * FROM shop.verify();

--
-- Reserved, and neither: the boundary, to the microsecond
--
SET shop.test_clock = '2026-11-20 15:00:00+00';
SELECT order_id, status, expires_at FROM shop.reserve_order(2, public.items('2:4'), '1 minute');
SET shop.test_clock = '2026-11-20 15:00:59.999999+00';
SELECT status FROM shop.get_order(3);
SELECT status FROM shop.order_history(2);
SELECT available FROM shop.get_product(2);
SELECT refused('SELECT shop.place_order(1, public.items(''2:1''))');
SELECT refused('SELECT shop.reserve_order(1, public.items(''2:1''))');
SELECT refused('SELECT shop.restock(2, -1)');
SET shop.test_clock = '2026-11-20 15:01:00+00';
SELECT status FROM shop.get_order(3);
SELECT status FROM shop.order_history(2);
SELECT available FROM shop.get_product(2);
SELECT * FROM public.units WHERE product_id = 2;
SELECT refused('SELECT shop.pay_order(3, 2)');
SELECT refused('SELECT shop.release_order(3, 2)');
-- nobody has noted it yet
SELECT count(*) FROM shop.order_changes(3) WHERE kind = 'expired';
SELECT * FROM shop.verify();
-- A buyer who is refused for another reason takes nothing
SELECT refused('SELECT shop.place_order(99, public.items(''2:1''))');
SELECT refused('SELECT shop.place_order(1, public.items(''2:5''))');
SELECT outcome, detail FROM shop.try_place_order(1, public.items('2:1'), expected_total => 1);
-- nor does one who changes his mind
BEGIN;
SELECT status FROM shop.place_order(1, public.items('2:1'));
SELECT * FROM public.units WHERE product_id = 2;
SELECT type, aggregateid FROM shop.outbox WHERE created_at = '2026-11-20 15:01:00+00' ORDER BY event_no;
ROLLBACK;
SELECT * FROM public.units WHERE product_id = 2;
SELECT count(*) FROM shop.outbox WHERE type = 'order.expired';
-- The next buyer takes the units: in his commit the order ends, and its event is written
SELECT status, total FROM shop.place_order(1, public.items('2:1'));
SELECT * FROM public.units WHERE product_id = 2;
SELECT status, total, expires_at, paid_at, refunded FROM shop.get_order(3);
SELECT kind, status, amount, balance, reason, created_at FROM shop.order_changes(3);
SELECT (SELECT xmin FROM shop.outbox WHERE type = 'order.expired') = (SELECT xmin FROM shop.orders WHERE user_id = 1 ORDER BY order_id DESC LIMIT 1) AS one_commit;
SELECT aggregatetype, aggregateid, created_at, jsonb_pretty(payload) AS payload FROM shop.outbox WHERE type = 'order.expired';
SELECT * FROM shop.verify();
-- One microsecond is a time, too
SET shop.test_clock = '2026-11-20 15:10:00+00';
SELECT order_id AS short, status, expires_at FROM shop.reserve_order(1, public.items('4:1'), '1 microsecond') \gset
SELECT status FROM shop.get_order(:short);
SET shop.test_clock = '2026-11-20 15:10:00.000001+00';
SELECT status FROM shop.get_order(:short);
SELECT reservations_expired FROM shop.run_maintenance();

--
-- Bad input
--
\a
SELECT given, r.* FROM unnest(ARRAY['0', '-1 second', '-5 minutes', '1 month -31 days', '1 day -1 second', '200 years', '178000000 years', NULL]) given,
    LATERAL public.refusal(format('SELECT shop.reserve_order(1, public.items(''1:1''), %L)', given)) r;
SELECT given, public.refused(format('SELECT shop.reserve_order(1, public.items(''1:1''), %L)', given))
  FROM unnest(ARRAY['1 microsecond', '30 days', '1 month', '1 day 1 microsecond', '100 years']) given;
SELECT call, public.refused('SELECT shop.' || call) FROM unnest(ARRAY[
    'reserve_order(NULL, ''[]'')', 'reserve_order(1, NULL)', 'reserve_order(1, ''[]'')', 'reserve_order(1, ''[{"product_id": 1, "quantity": 0}]'')',
    'reserve_order(1, ''[{"product_id": 1}]'')', 'reserve_order(1, public.items(''1:1''), idempotency_key => '''')',
    'pay_order(NULL, 1)', 'pay_order(1, NULL)', 'pay_order(4711, 1, NULL, -1)', 'pay_order(4711, 1, NULL, NULL, '''')',
    'release_order(NULL, 1)', 'release_order(1, NULL)',
    'order_changes(NULL)', 'order_changes(4711)']) call;
\a

--
-- Refusals of reserve_order, in their declared order
--
-- Product 6 is suspended and has 1 unit; product 1 has 8.
SELECT shop.create_product('Diamond', 1000000000000000, 10) AS diamond, shop.create_product('Off', 1, 1) AS off_ \gset
SELECT status FROM shop.set_product_status(:off_, 'suspended');
SELECT order_id, replayed FROM shop.reserve_order(2, public.items('4:1'), '1 minute', 'used');
SELECT refused('SELECT shop.reserve_order(2, public.items(''4711:1 6:9 1:9''), ''1 minute'', ''used'')');
SELECT * FROM refusal('SELECT shop.reserve_order(2, public.items(''4711:1 6:9 1:9''))');
SELECT * FROM refusal('SELECT shop.reserve_order(2, public.items(''6:9 1:9''))');
SELECT * FROM refusal('SELECT shop.reserve_order(2, public.items(''1:9''))');
SELECT * FROM refusal('SELECT shop.reserve_order(2, public.items(''5:2''))');
-- points are not asked for before it is paid
SELECT order_id AS rich, status, total, balance FROM shop.reserve_order(99, public.items('5:1')) \gset
SELECT :'status' AS status, :total AS total, :balance AS balance;
SELECT * FROM refusal(format('SELECT shop.pay_order(%s, 99)', :rich));
SELECT status, balance FROM shop.release_order(:rich, 99);
SELECT count(*) FROM shop.account WHERE user_id = 99;

--
-- Refusals of pay_order, in their declared order
--
SELECT coupon_id AS coupon FROM shop.issue_coupon(shop.create_coupon_campaign('C', 'fixed', 1000, 9, '2026-11-20', '2026-11-21', NULL, 5000), 2) \gset
SELECT order_id AS held FROM shop.reserve_order(2, public.items('1:1'), '10 minutes') \gset
SELECT order_id AS paid FROM shop.place_order(2, public.items('1:1'), NULL, NULL, 'paid') \gset
SELECT order_id AS released FROM shop.reserve_order(2, public.items('1:1')) \gset
SELECT status FROM shop.release_order(:released, 2);
SELECT order_id AS first, status, balance, replayed FROM shop.pay_order((SELECT order_id FROM shop.reserve_order(2, public.items('4:1'))), 2, NULL, 0, 'used') \gset
SELECT refused('SELECT shop.pay_order(4711, 2, NULL, 0, ''used'')');
SELECT * FROM refusal('SELECT shop.pay_order(4711, 1)');
SELECT refused('SELECT shop.pay_order(9223372036854775807, 1)');
SELECT refused('SELECT shop.pay_order(-9223372036854775808, 1)');
SELECT code, message, detail::jsonb - 'order_id' AS detail, hint FROM refusal(format('SELECT shop.pay_order(%s, 1, 4711, 1)', :held));
SELECT code, detail::jsonb - 'order_id' AS detail FROM refusal(format('SELECT shop.pay_order(%s, 1)', :paid));
SELECT code, message, detail::jsonb - 'order_id' AS detail, hint FROM refusal(format('SELECT shop.pay_order(%s, 2, 4711, 1)', :paid));
SELECT code, detail::jsonb - 'order_id' AS detail FROM refusal(format('SELECT shop.pay_order(%s, 2, 4711, 1)', :released));
SELECT refused(format('SELECT shop.pay_order(%s, 2, 4711, 1)', :held));
SELECT refused(format('SELECT shop.pay_order(%s, 2, %s, 1)', :held, :coupon));
SELECT * FROM refusal(format('SELECT shop.pay_order(%s, 2, NULL, 4499)', :held));
BEGIN;
SELECT balance FROM shop.use_points(2, 95499);
SELECT refused(format('SELECT shop.pay_order(%s, 2, NULL, 4499)', :held));
SELECT refused(format('SELECT shop.pay_order(%s, 2, NULL, 4500)', :held));
ROLLBACK;
SET shop.test_clock = '2026-11-20 15:20:00.000001+00';
SELECT code, message, detail::jsonb - 'order_id' AS detail, hint FROM refusal(format('SELECT shop.pay_order(%s, 2, 4711, 1)', :held));
SELECT code, detail::jsonb - 'order_id' AS detail FROM refusal(format('SELECT shop.pay_order(%s, 1, 4711, 1)', :held));
-- A reservation that could not be paid is there until its time is over
SET shop.test_clock = '2026-11-20 15:20:00+00';
SELECT status, total FROM shop.pay_order(:held, 2, NULL, 4500);

--
-- Refusals of release_order, in their declared order
--
SELECT * FROM refusal('SELECT shop.release_order(4711, 2)');
SELECT code, detail::jsonb - 'order_id' AS detail FROM refusal(format('SELECT shop.release_order(%s, 1)', :paid));
SELECT code, detail::jsonb - 'order_id' AS detail FROM refusal(format('SELECT shop.release_order(%s, 1)', :released));
SELECT code, message, detail::jsonb - 'order_id' AS detail, hint FROM refusal(format('SELECT shop.release_order(%s, 2)', :paid));
SELECT code, detail::jsonb - 'order_id' AS detail FROM refusal(format('SELECT shop.release_order(%s, 2)', :held));
SELECT code, detail::jsonb - 'order_id' AS detail FROM refusal('SELECT shop.release_order(3, 2)');
-- and a reservation can be neither cancelled nor refunded
SELECT order_id AS held FROM shop.reserve_order(2, public.items('1:1')) \gset
SELECT code, detail::jsonb - 'order_id' AS detail FROM refusal(format('SELECT shop.cancel_order(%s)', :held));
SELECT code, detail::jsonb - 'order_id' AS detail FROM refusal(format('SELECT shop.refund_order(%s, public.items(''1:1''))', :held));
SELECT status FROM shop.release_order(:held, 2);
SELECT * FROM shop.verify();

--
-- Who takes back what: as few reservations as will do, the one that expired first first
--
SET shop.test_clock = '2026-11-20 16:00:00+00';
SELECT reservations_expired FROM shop.run_maintenance();
SELECT shop.create_product('Rare', 100, 12) AS rare \gset
SELECT r.order_id AS a FROM shop.reserve_order(1, public.items(:rare || ':4'), '10 minutes') r \gset
SELECT r.order_id AS b FROM shop.reserve_order(1, public.items(:rare || ':2'), '5 minutes') r \gset
SELECT r.order_id AS c FROM shop.reserve_order(2, public.items(:rare || ':3'), '7 minutes') r \gset
SELECT r.order_id AS d FROM shop.reserve_order(2, public.items(:rare || ':2'), '1 hour') r \gset
CREATE FUNCTION public.named(orders bigint[], told text) RETURNS text LANGUAGE sql AS $$
    SELECT string_agg(chr(96 + array_position(orders, split_part(t, ':', 1)::bigint)) || ':' || split_part(t, ':', 2), ' ' ORDER BY n)
      FROM string_to_table(told, ' ') WITH ORDINALITY x(t, n)
$$;
SELECT format('ARRAY[%s, %s, %s, %s]::bigint[]', :a, :b, :c, :d) AS orders \gset
SELECT on_hand, public.named(:orders, held) AS held, available FROM public.units WHERE product_id = :rare;
-- at 16:11 a, b and c have expired: 1 + 4 + 2 + 3 units
SET shop.test_clock = '2026-11-20 16:11:00+00';
SELECT on_hand, public.named(:orders, held) AS held, available FROM public.units WHERE product_id = :rare;
-- 1 is in stock, nothing is taken back for it
SELECT total FROM shop.place_order(1, public.items(:rare || ':1'));
SELECT on_hand, public.named(:orders, held) AS held, available FROM public.units WHERE product_id = :rare;
-- another: b's 2, of which 1 is left
SELECT total FROM shop.place_order(1, public.items(:rare || ':1'));
SELECT on_hand, public.named(:orders, held) AS held, available FROM public.units WHERE product_id = :rare;
-- 4 with the 1 in stock: c's 3 will do
SELECT total FROM shop.place_order(1, public.items(:rare || ':4'));
SELECT on_hand, public.named(:orders, held) AS held, available FROM public.units WHERE product_id = :rare;
SELECT chr(96 + array_position(:orders, order_id)) AS "order", status, (SELECT count(*) FROM shop.outbox WHERE type = 'order.expired' AND aggregateid = order_id::text) AS events
  FROM shop.orders WHERE order_id = ANY (:orders) ORDER BY 1;
-- to reserve takes back as well: a's 4, of which 1 is left
SELECT order_id AS e, status FROM shop.reserve_order(1, public.items(:rare || ':3'), '1 minute') \gset
SELECT format('ARRAY[%s, %s, %s, %s, %s]::bigint[]', :a, :b, :c, :d, :e) AS orders \gset
SELECT on_hand, public.named(:orders, held) AS held, available FROM public.units WHERE product_id = :rare;
-- d's are not to be had before 17:00
SELECT refused(format('SELECT shop.place_order(2, public.items(''%s:2''))', :rare));
-- and so does who takes units away: 1 + e's 3, less 2
SET shop.test_clock = '2026-11-20 16:12:00+00';
SELECT refused(format('SELECT shop.restock(%s, -5)', :rare));
SELECT shop.restock(:rare, -2);
SELECT on_hand, public.named(:orders, held) AS held, available FROM public.units WHERE product_id = :rare;
-- restock says what is available, with what has expired; d's 2 have at 17:00
SET shop.test_clock = '2026-11-20 17:00:00+00';
SELECT shop.restock(:rare, 1);
SELECT on_hand, public.named(:orders, held) AS held, available FROM public.units WHERE product_id = :rare;
-- all there is, in one go
SELECT refused(format('SELECT shop.place_order(2, public.items(''%s:6''))', :rare));
SELECT total FROM shop.place_order(2, public.items(:rare || ':5'));
SELECT on_hand, held, available FROM public.units WHERE product_id = :rare;
SELECT chr(96 + array_position(:orders, order_id)) AS "order", status, (SELECT count(*) FROM shop.outbox WHERE type = 'order.expired' AND aggregateid = order_id::text) AS events
  FROM shop.orders WHERE order_id = ANY (:orders) ORDER BY 1;
-- Two that expired at the same time: the earlier order first
SELECT shop.restock(:rare, 2);
SELECT order_id AS a FROM shop.reserve_order(1, public.items(:rare || ':1'), '1 minute') \gset
SELECT order_id AS b FROM shop.reserve_order(2, public.items(:rare || ':1'), '1 minute') \gset
SET shop.test_clock = '2026-11-20 17:01:00+00';
SELECT total FROM shop.place_order(2, public.items(:rare || ':1'));
SELECT public.named(ARRAY[:a, :b]::bigint[], held) AS held FROM public.units WHERE product_id = :rare;
-- A buyer who takes back several orders ends them all
SELECT order_id AS c FROM shop.reserve_order(2, public.items('4:1'), '1 minute') \gset
SELECT shop.restock(4, -(SELECT sum(on_hand)::integer FROM shop.stock WHERE product_id = 4));
SET shop.test_clock = '2026-11-20 17:02:00+00';
SELECT total FROM shop.place_order(1, public.items(:rare || ':1 4:1'));
SELECT string_agg(type || ' ' || CASE aggregateid::bigint WHEN :b THEN 'b' WHEN :c THEN 'c' ELSE 'buyer' END, ', ' ORDER BY event_no)
  FROM shop.outbox WHERE created_at = '2026-11-20 17:02:00+00';
SELECT shop.restock(4, 10);
SELECT * FROM shop.verify();

--
-- An order of two products, one of which is taken back
--
SET shop.test_clock = '2026-11-20 18:00:00+00';
SELECT shop.create_product('Left', 100, 2) AS left_, shop.create_product('Right', 100, 2) AS right_ \gset
SELECT order_id AS pair FROM shop.reserve_order(1, public.items(:left_ || ':2 ' || :right_ || ':2')) \gset
SET shop.test_clock = '2026-11-20 18:05:00+00';
SELECT total FROM shop.place_order(2, public.items(:left_ || ':1'));
SELECT on_hand, public.named(ARRAY[:pair]::bigint[], held) AS held, available FROM public.units WHERE product_id IN (:left_, :right_);
SELECT status FROM shop.get_order(:pair);
SELECT code, detail::jsonb - 'order_id' AS detail FROM refusal(format('SELECT shop.pay_order(%s, 1)', :pair));
SELECT code, detail::jsonb - 'order_id' AS detail FROM refusal(format('SELECT shop.release_order(%s, 1)', :pair));
SELECT code, detail::jsonb - 'order_id' AS detail FROM refusal(format('SELECT shop.cancel_order(%s)', :pair));
SELECT * FROM shop.verify();
-- the other is free as well, whoever asks for it; the order has ended once
SELECT total FROM shop.place_order(2, public.items(:right_ || ':1'));
SELECT on_hand, public.named(ARRAY[:pair]::bigint[], held) AS held, available FROM public.units WHERE product_id IN (:left_, :right_);
SELECT kind, status FROM shop.order_changes(:pair);
SELECT count(*) FROM shop.outbox WHERE type = 'order.expired' AND aggregateid = :'pair';
-- both by one buyer
SELECT shop.restock(:left_, 1), shop.restock(:right_, 1);
SELECT order_id AS pair FROM shop.reserve_order(1, public.items(:left_ || ':2 ' || :right_ || ':2')) \gset
SET shop.test_clock = '2026-11-20 18:10:00+00';
SELECT total FROM shop.place_order(2, public.items(:right_ || ':1 ' || :left_ || ':1'));
SELECT on_hand, held, available FROM public.units WHERE product_id IN (:left_, :right_);
SELECT kind, status FROM shop.order_changes(:pair);
SELECT * FROM shop.verify();

--
-- run_maintenance gives back what nobody has asked for
--
SELECT shop.restock(:left_, 1), shop.restock(:right_, 1);
SELECT order_id AS pair FROM shop.reserve_order(1, public.items(:left_ || ':2 ' || :right_ || ':2'), '1 minute') \gset
SELECT order_id AS other FROM shop.reserve_order(2, public.items('1:1'), '1 minute') \gset
SELECT order_id AS later FROM shop.reserve_order(2, public.items('1:1'), '1 minute 1 microsecond') \gset
SELECT reservations_expired FROM shop.run_maintenance();
SET shop.test_clock = '2026-11-20 18:11:00+00';
-- of the pair, one product is left to give back; of the other, all; the later has a microsecond to go
SELECT total FROM shop.place_order(2, public.items(:left_ || ':1'));
SELECT reservations_expired FROM shop.run_maintenance();
SELECT on_hand, held, available FROM public.units WHERE product_id IN (:left_, :right_);
SELECT kind, status, created_at FROM shop.order_changes(:pair);
SELECT kind, status, created_at FROM shop.order_changes(:other);
SELECT status FROM shop.get_order(:later);
SELECT CASE aggregateid::bigint WHEN :pair THEN 'pair' WHEN :other THEN 'other' END AS "order", count(*) FROM shop.outbox
 WHERE type = 'order.expired' AND aggregateid::bigint IN (:pair, :other, :later) GROUP BY 1 ORDER BY 1;
SELECT reservations_expired FROM shop.run_maintenance();
SET shop.test_clock = '2026-11-20 18:11:00.000001+00';
SELECT reservations_expired FROM shop.run_maintenance();
SELECT kind, status, created_at FROM shop.order_changes(:later);
SELECT count(*) FROM shop.stock_hold;
SELECT * FROM shop.verify();

--
-- A clock that goes back does not bring back what somebody has taken
--
SET shop.test_clock = '2026-11-20 19:00:00+00';
SELECT shop.create_product('Last', 100, 1) AS last \gset
SELECT order_id AS taken FROM shop.reserve_order(1, public.items(:last || ':1 1:1')) \gset
SET shop.test_clock = '2026-11-20 19:05:00+00';
SELECT total FROM shop.place_order(2, public.items(:last || ':1'));
SET shop.test_clock = '2026-11-20 19:04:00+00';
SELECT status FROM shop.get_order(:taken);
SELECT code, detail::jsonb - 'order_id' AS detail FROM refusal(format('SELECT shop.pay_order(%s, 1)', :taken));
SELECT code, detail::jsonb - 'order_id' AS detail FROM refusal(format('SELECT shop.release_order(%s, 1)', :taken));
-- what it still holds is free again when its time comes again
SELECT available FROM shop.get_product(1);
SELECT reservations_expired FROM shop.run_maintenance();
SET shop.test_clock = '2026-11-20 19:05:00+00';
SELECT available FROM shop.get_product(1);
SELECT reservations_expired FROM shop.run_maintenance();
-- One that nobody has taken or noted is as good as before
SELECT order_id AS lucky FROM shop.reserve_order(1, public.items('1:1')) \gset
SET shop.test_clock = '2026-11-20 19:10:00+00';
SELECT status FROM shop.get_order(:lucky);
SELECT code FROM refusal(format('SELECT shop.pay_order(%s, 1)', :lucky));
SET shop.test_clock = '2026-11-20 19:09:59+00';
SELECT status FROM shop.pay_order(:lucky, 1);
SELECT * FROM shop.verify();

--
-- Paid with a coupon: the lines as place_order has them
--
-- 12,000 + 3 x 4,500 + 700 = 26,200; 15 percent are 3,930, so it is 3,500; 22,700 to pay.
-- 3,500 x 12,000 = 1,603 x 26,200 +  1,400
-- 3,500 x 13,500 = 1,803 x 26,200 + 11,400
-- 3,500 x    700 =    93 x 26,200 + 13,400   sums to 3,499: the one left goes here
SET shop.test_clock = '2026-11-20 20:00:00+00';
SELECT shop.restock(1, 10) > 0 AS restocked;
SELECT user_id, balance FROM shop.charge_points(3, 22699);
SELECT coupon_id AS coupon FROM shop.issue_coupon(shop.create_coupon_campaign('C', 'percent', 15, 9, '2026-11-20', '2026-11-20 20:02+00', NULL, 0, 3500), 3) \gset
SELECT order_id AS discounted, subtotal, discount, total FROM shop.reserve_order(3, public.items('2:1 1:3 3:1')) \gset
SELECT :subtotal AS subtotal, :discount AS discount, :total AS total;
SELECT * FROM refusal(format('SELECT shop.pay_order(%s, 3, %s, 26200)', :discounted, :coupon));
SELECT refused(format('SELECT shop.pay_order(%s, 3, %s, 22700)', :discounted, :coupon));
SELECT balance FROM shop.charge_points(3, 1);
SELECT refused(format('SELECT shop.pay_order(%s, 3)', :discounted));
-- the coupon has its own time
SET shop.test_clock = '2026-11-20 20:02:00+00';
SELECT code FROM refusal(format('SELECT shop.pay_order(%s, 3, %s)', :discounted, :coupon));
SET shop.test_clock = '2026-11-20 20:01:59.999999+00';
SELECT status, discount FROM shop.get_order(:discounted);
SELECT status FROM shop.user_coupons(3);
SELECT status, subtotal, discount, total, balance, expires_at, replayed FROM shop.pay_order(:discounted, 3, :coupon, 22700, 'pay');
SELECT line_no, product_id, subtotal, discount, total FROM shop.order_lines(:discounted);
SELECT status, subtotal, discount, total, coupon_id = :coupon AS by_coupon FROM shop.get_order(:discounted);
SELECT status, order_id = :discounted AS by_order FROM shop.user_coupons(3);
SELECT amount, balance, kind FROM shop.point_history(3, "limit" => 1);
SELECT kind, status, amount, balance FROM shop.order_changes(:discounted);
SELECT payload->'discount' AS discount, payload->'total' AS total, payload->'coupon_id' = to_jsonb(:coupon) AS by_coupon, payload->'lines' AS lines
  FROM shop.outbox WHERE type = 'order.paid' AND aggregateid = :'discounted';
-- used once, and by its user
SELECT order_id AS again FROM shop.reserve_order(3, public.items('3:1')) \gset
SELECT code, (detail::jsonb->'order_id') = to_jsonb(:discounted) AS by_order FROM refusal(format('SELECT shop.pay_order(%s, 3, %s)', :again, :coupon));
SELECT status FROM shop.release_order(:again, 3);
SELECT order_id AS again FROM shop.reserve_order(2, public.items('3:1')) \gset
SELECT code FROM refusal(format('SELECT shop.pay_order(%s, 2, %s)', :again, :coupon));
SELECT status FROM shop.release_order(:again, 2);
-- An order of nothing but gifts needs no account
SELECT balance, total FROM shop.pay_order((SELECT order_id FROM shop.reserve_order(98, public.items('4:1'))), 98);
SELECT count(*) FROM shop.account WHERE user_id = 98;
SELECT * FROM shop.verify();

--
-- Keys: of the verb and the user, the first answer again
--
SET shop.test_clock = '2026-11-20 21:00:00+00';
SELECT balance FROM shop.charge_points(4, 50000);
SELECT balance FROM shop.charge_points(5, 50000);
SELECT coupon_id AS coupon FROM shop.issue_coupon(shop.create_coupon_campaign('C', 'fixed', 500, 9, '2026-11-20', '2026-11-21'), 4) \gset
SELECT order_id AS first, status, subtotal, discount, total, balance, expires_at, replayed FROM shop.reserve_order(4, public.items('1:1'), '10 minutes', 'k') \gset
SELECT :'status' AS status, :total AS total, :balance AS balance, :'expires_at' AS expires_at, :'replayed' AS replayed;
SELECT order_id = :first AS same, status, subtotal, discount, total, balance, expires_at, replayed FROM shop.reserve_order(4, public.items('1:1'), '10 minutes', 'k');
-- the same arguments, told in another way
SELECT order_id = :first AS same, replayed FROM shop.reserve_order(4, '[{"quantity": 1.0, "product_id": 1}]', '600 seconds', 'k');
SET IntervalStyle = 'iso_8601';
SELECT order_id = :first AS same, replayed FROM shop.reserve_order(4, public.items('1:1'), '10 minutes', 'k');
SET IntervalStyle = 'postgres';
-- a day is not always 24 hours
BEGIN;
SELECT replayed FROM shop.reserve_order(4, public.items('1:1'), '1 day', 'd');
SELECT replayed FROM shop.reserve_order(4, public.items('1:1'), '1 day', 'd');
SELECT refused('SELECT shop.reserve_order(4, public.items(''1:1''), ''24 hours'', ''d'')');
ROLLBACK;
-- other arguments, in the order they are declared
SELECT * FROM refusal('SELECT shop.reserve_order(4, public.items(''1:2''), ''10 minutes'', ''k'')');
SELECT refused('SELECT shop.reserve_order(4, public.items(''1:1''), ''11 minutes'', ''k'')');
SELECT refused('SELECT shop.reserve_order(4, public.items(''1:1''), idempotency_key => ''k'')');
SELECT refused('SELECT shop.reserve_order(4, public.items(''2:1''), ''11 minutes'', ''k'')');
-- The same key in another verb, or of another user, is another key
SELECT status, total, balance, replayed FROM shop.place_order(4, public.items('3:1'), NULL, NULL, 'k');
SELECT status, discount, total, balance, replayed FROM shop.pay_order(:first, 4, :coupon, 4000, 'k');
SELECT status, replayed FROM shop.reserve_order(5, public.items('1:2'), '1 minute', 'k');
-- Whatever has become of the order since: paid, with a discount,
SELECT order_id = :first AS same, status, subtotal, discount, total, balance, expires_at, replayed FROM shop.reserve_order(4, public.items('1:1'), '10 minutes', 'k');
-- cancelled, at another price, long ago
SELECT status FROM shop.cancel_order(:first);
SELECT price FROM shop.set_price(1, 1);
SELECT status FROM shop.set_product_status(1, 'discontinued');
SET shop.test_clock = '2026-12-24 00:00:00+00';
SELECT order_id = :first AS same, status, subtotal, discount, total, balance, expires_at, replayed FROM shop.reserve_order(4, public.items('1:1'), '10 minutes', 'k');
SELECT order_id = :first AS same, status, subtotal, discount, total, balance, expires_at, replayed FROM shop.pay_order(:first, 4, :coupon, 4000, 'k');
SELECT status, total, balance, replayed FROM shop.place_order(4, public.items('3:1'), NULL, NULL, 'k');
-- expired
SELECT reservations_expired FROM shop.run_maintenance();
SELECT status, replayed FROM shop.reserve_order(5, public.items('1:2'), '1 minute', 'k');
SELECT price FROM shop.set_price(1, 4500);
SELECT status FROM shop.set_product_status(1, 'on_sale');
SET shop.test_clock = '2026-11-20 21:00:00+00';
-- pay_order: which argument differs
SELECT order_id AS second FROM shop.reserve_order(4, public.items('1:1'), '10 minutes', 'k2') \gset
SELECT * FROM refusal(format('SELECT shop.pay_order(%s, 4, %s, 4000, ''k'')', :second, :coupon));
SELECT refused(format('SELECT shop.pay_order(%s, 4, NULL, 4000, ''k'')', :first));
SELECT refused(format('SELECT shop.pay_order(%s, 4, %s, NULL, ''k'')', :first, :coupon));
SELECT refused(format('SELECT shop.pay_order(%s, 4, %s, 4500, ''k'')', :first, :coupon));
SELECT refused(format('SELECT shop.pay_order(%s, 4, NULL, 1, ''k'')', :second));
SELECT refused(format('SELECT shop.pay_order(%s, 4, NULL, 1, ''k'')', :first));
-- paid once, under whatever key
SELECT code FROM refusal(format('SELECT shop.pay_order(%s, 4, NULL, NULL, ''other'')', :first));
-- A call that failed leaves no key
SELECT refused('SELECT shop.reserve_order(4, public.items(''2:1000''), ''1 minute'', ''f'')') ~ '^SH003' AS refused;
SELECT status, replayed FROM shop.reserve_order(4, public.items('3:1'), '1 minute', 'f');
SELECT refused(format('SELECT shop.pay_order(%s, 4, NULL, 1, ''f'')', :second));
SELECT total, replayed FROM shop.pay_order(:second, 4, NULL, 4500, 'f');
SELECT total, replayed FROM shop.pay_order(:second, 4, NULL, 4500, 'f');
BEGIN;
SELECT replayed FROM shop.reserve_order(4, public.items('3:1'), '1 minute', 'r');
SELECT replayed FROM shop.reserve_order(4, public.items('3:1'), '1 minute', 'r');
ROLLBACK;
SELECT replayed FROM shop.reserve_order(4, public.items('3:2'), '1 minute', 'r');
-- A replay writes nothing and locks nothing; nor does a second release
SELECT order_id AS third FROM shop.reserve_order(4, public.items('3:1')) \gset
SELECT status, replayed FROM shop.release_order(:third, 4);
BEGIN;
SELECT replayed FROM shop.reserve_order(4, public.items('1:1'), '10 minutes', 'k');
SELECT replayed FROM shop.pay_order(:first, 4, :coupon, 4000, 'k');
SELECT replayed FROM shop.release_order(:third, 4);
SELECT pg_current_xact_id_if_assigned() IS NULL AS no_xid;
SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND mode LIKE '%Row%' AND mode NOT IN ('RowShareLock', 'RowExclusiveLock');
COMMIT;
SELECT * FROM shop.verify();

--
-- What was reserved in one hour and paid in the next sold in the next
--
SET shop.test_clock = '2026-11-21 00:59:00+00';
SELECT shop.create_product('Hour', 10, 10) AS hour \gset
SELECT order_id AS hourly FROM shop.reserve_order(4, public.items(:hour || ':2')) \gset
SELECT shop.refresh_popular_products() IS NOT NULL AS refreshed;
SELECT hour, quantity, revenue FROM shop.product_sales WHERE product_id = :hour;
SET shop.test_clock = '2026-11-21 01:01:00+00';
SELECT status FROM shop.pay_order(:hourly, 4);
SELECT shop.refresh_popular_products() IS NOT NULL AS refreshed;
SELECT hour, quantity, revenue FROM shop.product_sales WHERE product_id = :hour;

--
-- Isolation levels, savepoints, read-only transactions
--
SET shop.test_clock = '2026-11-21 10:00:00+00';
SELECT reservations_expired FROM shop.run_maintenance();
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT order_id AS one, status FROM shop.reserve_order(4, public.items('3:1')) \gset
SELECT status, total FROM shop.pay_order(:one, 4);
SELECT order_id AS two, status FROM shop.reserve_order(4, public.items('3:1')) \gset
SELECT status FROM shop.release_order(:two, 4);
SELECT status FROM shop.release_order(:two, 4);
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT order_id AS one, status FROM shop.reserve_order(4, public.items('3:1')) \gset
SAVEPOINT s;
SELECT status FROM shop.pay_order(:one, 4);
ROLLBACK TO s;
SELECT status FROM shop.get_order(:one);
SELECT status FROM shop.release_order(:one, 4);
ROLLBACK TO s;
SELECT status FROM shop.pay_order(:one, 4, expected_total => 700);
COMMIT;
-- Taken back in the transaction that reserved
BEGIN;
SELECT shop.restock(:last, 1);
SELECT order_id AS one FROM shop.reserve_order(4, public.items(:last || ':1')) \gset
SET LOCAL shop.test_clock = '2026-11-21 10:05:00+00';
SELECT status FROM shop.place_order(5, public.items(:last || ':1'));
SELECT status FROM shop.get_order(:one);
COMMIT;
BEGIN READ ONLY;
SELECT status FROM shop.get_order(:one);
SELECT count(*) FROM shop.order_changes(:one);
SELECT * FROM refusal('SELECT shop.reserve_order(4, public.items(''3:1''))');
SELECT * FROM refusal('SELECT shop.pay_order(1, 4)');
SELECT * FROM refusal('SELECT shop.release_order(1, 4)');
-- even a call that could only be refused or repeated, but not bad input
SELECT refused('SELECT shop.pay_order(4711, 4)');
SELECT refused(format('SELECT shop.release_order(%s, 4)', :third));
SELECT refused('SELECT shop.release_order(NULL, 4)');
SELECT refused('SELECT shop.reserve_order(4, public.items(''3:1''), ''0'')');
COMMIT;
-- Of many reservations at once
SELECT shop.create_product('Many', 0, 20) AS many \gset
SET shop.test_clock = '2026-11-21 12:00:00+00';
SELECT count(shop.reserve_order(4, public.items(:many || ':1'))) FROM generate_series(1, 20);
SET shop.test_clock = '2026-11-21 12:05:00+00';
SELECT status FROM shop.place_order(5, public.items(:many || ':20'));
SELECT o.status, count(*), count(DISTINCT e.aggregateid) AS expired
  FROM shop.orders o JOIN shop.order_line l USING (order_id) LEFT JOIN shop.outbox e ON e.type = 'order.expired' AND e.aggregateid = o.order_id::text
 WHERE l.product_id = :many GROUP BY 1 ORDER BY 1;
SELECT * FROM shop.verify();
\set ECHO none
DROP VIEW public.units;
DROP FUNCTION public.items(text), public.named(bigint[], text);
