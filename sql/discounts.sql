-- What a coupon takes off an order, line by line, and when it does not.
\set ECHO none
\i sql/setup.inc
\set ECHO all
SET shop.test_clock = '2026-11-20 12:00:00+00';
SELECT shop.create_product('Tea', 4500, 1000) AS tea, shop.create_product('Cup', 12000, 1000) AS cup,
       shop.create_product('Pot', 700, 1000) AS pot, shop.create_product('Sample', 0, 1000) AS sample,
       shop.create_product('A', 333, 1000) AS a, shop.create_product('B', 333, 1000) AS b, shop.create_product('C', 333, 1000) AS c \gset
SELECT balance FROM shop.charge_points(1, 1000000);
-- Gives a user a coupon of a campaign of its own, valid until 12:00 on the 21st
CREATE FUNCTION public.give(user_id bigint, discount_type text, discount_value bigint, min_subtotal bigint DEFAULT 0, max_discount bigint DEFAULT NULL)
    RETURNS bigint LANGUAGE sql AS $$
    SELECT coupon_id FROM shop.issue_coupon(
        shop.create_coupon_campaign('C', discount_type, discount_value, 1, '2026-11-20 12:00+00', '2026-11-21 12:00+00', NULL, min_subtotal, max_discount),
        user_id)
$$;
-- Items told as '2:1 1:3': 1 unit of product 2, 3 of product 1
CREATE FUNCTION public.items(told text) RETURNS jsonb LANGUAGE sql AS $$
    SELECT jsonb_agg(jsonb_build_object('product_id', split_part(i, ':', 1)::bigint, 'quantity', split_part(i, ':', 2)::integer) ORDER BY n)
      FROM string_to_table(told, ' ') WITH ORDINALITY t(i, n)
$$;
-- Places an order with a coupon and shows its lines
CREATE FUNCTION public.lines(user_id bigint, told text, coupon_id bigint,
                             OUT line_no integer, OUT product_id bigint, OUT quantity integer, OUT subtotal bigint, OUT discount bigint, OUT total bigint)
    RETURNS SETOF record LANGUAGE plpgsql AS $$
DECLARE
    placed shop.order_result := shop.place_order(user_id, public.items(told), coupon_id);
BEGIN
    RETURN QUERY SELECT l.line_no, l.product_id, l.quantity, l.subtotal, l.discount, l.total FROM shop.order_lines(placed.order_id) l;
END
$$;

--
-- Three uneven lines, 15 percent, at most 3,500
--
-- 12,000 + 3 x 4,500 + 700 = 26,200; 15 percent are 3,930, so it is 3,500; 22,700 to pay.
-- 3,500 x 12,000 = 1,603 x 26,200 +  1,400
-- 3,500 x 13,500 = 1,803 x 26,200 + 11,400
-- 3,500 x    700 =    93 x 26,200 + 13,400   sums to 3,499: the one left goes here
SELECT public.give(1, 'percent', 15, 0, 3500) AS coupon \gset
SELECT order_id AS first, subtotal, discount, total, balance, 1000000 - 22700 AS balance_by_hand
  FROM shop.place_order(1, public.items('2:1 1:3 3:1'), :coupon) \gset
SELECT :first AS order_id, :subtotal AS subtotal, :discount AS discount, :total AS total, :balance AS balance, :balance_by_hand AS by_hand;
SELECT line_no, product_id, quantity, unit_price, subtotal, discount, total FROM shop.order_lines(:first);
SELECT subtotal, discount, total, coupon_id, refunded FROM shop.get_order(:first);
SELECT subtotal, discount, total, coupon_id FROM shop.order_history(1);
SELECT amount, balance, kind FROM shop.point_history(1, "limit" => 1);
SELECT coupon_id, status, order_id FROM shop.user_coupons(1);
SELECT jsonb_pretty(payload) AS payload FROM shop.outbox WHERE type = 'order.paid';
-- The same lines named in another order: the one left goes to the same line
SELECT * FROM public.lines(1, '3:1 2:1 1:3', public.give(1, 'percent', 15, 0, 3500));

--
-- Percent rounds down
--
-- 10 percent of 333 = 33.3; of 3 x 333 = 99.9; 1 percent of 333 = 3.33
SELECT * FROM public.lines(1, '5:1', public.give(1, 'percent', 10));
SELECT * FROM public.lines(1, '5:3', public.give(1, 'percent', 10));
SELECT * FROM public.lines(1, '5:1', public.give(1, 'percent', 1));
-- and of what rounds down to nothing, the coupon is used all the same: 1 percent of 99
SELECT shop.create_product('Straw', 99, 1000) AS straw \gset
SELECT public.give(1, 'percent', 1) AS coupon \gset
SELECT * FROM public.lines(1, '8:1', :coupon);
SELECT status FROM shop.user_coupons(1) WHERE coupon_id = :coupon;
-- 100 percent is all of it
SELECT * FROM public.lines(1, '2:1 4:2 5:1', public.give(1, 'percent', 100));
-- The cap is at most: below it, at it, above it; 10 percent of 700 = 70
SELECT * FROM public.lines(1, '3:1', public.give(1, 'percent', 10, 0, 71));
SELECT * FROM public.lines(1, '3:1', public.give(1, 'percent', 10, 0, 70));
SELECT * FROM public.lines(1, '3:1', public.give(1, 'percent', 10, 0, 69));
SELECT * FROM public.lines(1, '3:1', public.give(1, 'percent', 10, 0, 1));
-- of a fixed discount as well
SELECT * FROM public.lines(1, '3:1', public.give(1, 'fixed', 500, 0, 300));

--
-- Largest remainder, of equal ones the earlier line, whatever its product
--
-- 100 over 333 + 333 + 333: 33 each and 333 of 999 over; the one left goes to line 1
SELECT * FROM public.lines(1, '5:1 6:1 7:1', public.give(1, 'fixed', 100));
SELECT * FROM public.lines(1, '7:1 6:1 5:1', public.give(1, 'fixed', 100));
SELECT * FROM public.lines(1, '6:1 7:1 5:1', public.give(1, 'fixed', 100));
-- 200 over them: 66 each and 666 of 999 over; the two left go to lines 1 and 2
SELECT * FROM public.lines(1, '7:1 5:1 6:1', public.give(1, 'fixed', 200));
-- A product named twice has the line of its first mention: 7 with 666, 5 with 333.
-- 100 x 666 = 66 x 999 + 666, 100 x 333 = 33 x 999 + 333: the one left goes to 7
SELECT * FROM public.lines(1, '7:1 5:1 7:1', public.give(1, 'fixed', 100));
SELECT * FROM public.lines(1, '5:1 7:1 7:1', public.give(1, 'fixed', 100));
-- 1 over 333 + 333: line 1
SELECT * FROM public.lines(1, '6:1 5:1', public.give(1, 'fixed', 1));
-- 1 over 99 + 333: the larger
SELECT * FROM public.lines(1, '8:1 5:1', public.give(1, 'fixed', 1));
-- one short of all, 665 of 666: 665 x 333 = 332 x 666 + 333, twice; the one left goes to line 1
SELECT * FROM public.lines(1, '6:1 5:1', public.give(1, 'fixed', 665));
-- Many lines: 1,007 over 50 of 333; 1,007 = 50 x 20 + 7, so the first seven get 21
SELECT count(shop.create_product('L', 333, 10)) AS created FROM generate_series(1, 50);
SELECT discount, min(line_no), max(line_no), count(*)
  FROM public.lines(1, (SELECT string_agg(product_id || ':1', ' ' ORDER BY product_id DESC) FROM shop.products WHERE name = 'L'), public.give(1, 'fixed', 1007))
 GROUP BY 1 ORDER BY 1 DESC;

--
-- Fixed, above what there is: nothing to pay, no ledger entry, no account needed
--
SELECT count(*) AS entries FROM shop.point_history(1, NULL, 1000) \gset
SELECT shop.point_balance(1) AS before \gset
SELECT * FROM public.lines(1, '1:1 3:1', public.give(1, 'fixed', 5201));
SELECT * FROM public.lines(1, '1:1 3:1', public.give(1, 'fixed', 5200));
SELECT * FROM public.lines(1, '1:1', public.give(1, 'fixed', 1000000000000000));
SELECT shop.point_balance(1) - :before AS spent, count(*) - :entries AS entries FROM shop.point_history(1, NULL, 1000);
SELECT subtotal, discount, total, balance FROM shop.place_order(50, public.items('1:1'), public.give(50, 'fixed', 4500));
SELECT count(*) FROM shop.account WHERE user_id = 50;
SELECT * FROM shop.verify();

--
-- Lines that are free, and orders that are
--
-- 101 over 0 + 333 + 333: 50 each and half over: line 2, never the free one
SELECT * FROM public.lines(1, '4:3 5:1 6:1', public.give(1, 'fixed', 101));
SELECT * FROM public.lines(1, '5:1 4:3', public.give(1, 'percent', 50));
-- A coupon on an order that costs nothing takes off nothing and is used
SELECT public.give(51, 'fixed', 100) AS coupon \gset
SELECT subtotal, discount, total, balance FROM shop.place_order(51, public.items('4:1'), :coupon);
SELECT status FROM shop.user_coupons(51);
SELECT refused(format('SELECT shop.place_order(51, public.items(''4:1''), %s)', :coupon));

--
-- The edges of bigint
--
SELECT shop.create_product('Diamond', 1000000000000000, 10) AS diamond, shop.create_product('Almost', 999999999999999, 10) AS almost,
       shop.create_product('Chip', 1, 4000000000000) AS chip, shop.create_product('Third', 333333333333333, 10) AS third1,
       shop.create_product('Third', 333333333333333, 10) AS third2, shop.create_product('Third', 333333333333333, 10) AS third3 \gset
SELECT balance FROM shop.charge_points(2, 1000000000000000);
-- 99 percent of 10^15
SELECT * FROM public.lines(2, :'diamond' || ':1', public.give(2, 'percent', 99));
-- 33 percent of (10^15 - 1) + 1: 33 x 10^13 less 0.33 and 0.33; the one left goes to the larger part
SELECT balance FROM shop.charge_points(2, 10000000000000);
SELECT * FROM public.lines(2, :'chip' || ':1 ' || :'almost' || ':1', public.give(2, 'percent', 33));
-- 10^15 - 1 off three thirds and a chip: each third less 1/3 of a point, the chip less 10^-15.
-- One less than their prices are 333,333,333,333,332 three times and 0; three are left:
-- the chip's remainder is the largest, then lines 2 and 3; line 4 pays the 1 that is left
SELECT * FROM public.lines(2, :'chip' || ':1 ' || :'third3' || ':1 ' || :'third2' || ':1 ' || :'third1' || ':1', public.give(2, 'fixed', 999999999999999));
-- 2,147,483,647 units of 1: 100 percent, and half of it rounded down
SELECT * FROM public.lines(2, :'chip' || ':2147483647', public.give(2, 'percent', 100));
SELECT * FROM public.lines(2, :'chip' || ':2147483647', public.give(2, 'percent', 50));
-- What is above 10^15 before the discount is out of range, coupon or not
SELECT refused(format('SELECT shop.place_order(2, public.items(''%s:2''), %s)', :diamond, public.give(2, 'percent', 100)));
SELECT refused(format('SELECT shop.place_order(2, public.items(''%s:1 %s:1''), 4711)', :diamond, :chip));
SELECT * FROM shop.verify();

--
-- min_subtotal: of the subtotal, not of what is left to pay; 4,500 + 4,499 = 8,999
--
SELECT public.give(1, 'fixed', 8000, 9000) AS coupon \gset
SELECT format('1:1 %s:4499', :chip) AS short, format('1:1 %s:4500', :chip) AS just \gset
SELECT * FROM refusal(format('SELECT shop.place_order(1, public.items(%L), %s)', :'short', :coupon));
SELECT outcome, detail FROM shop.try_place_order(1, public.items(:'short'), :coupon);
SELECT subtotal, discount, total FROM shop.place_order(1, public.items(:'just'), :coupon);
SELECT refused(format('SELECT shop.place_order(1, public.items(''4:1''), %s)', public.give(1, 'fixed', 1, 1)));

--
-- expected_total is what is to be paid, discount and all: 4,500 - 1,000
--
SELECT public.give(1, 'fixed', 1000) AS coupon \gset
SELECT * FROM refusal(format('SELECT shop.place_order(1, public.items(''1:1''), %s, 4500)', :coupon));
SELECT refused(format('SELECT shop.place_order(1, public.items(''1:1''), %s, 3499)', :coupon));
SELECT refused(format('SELECT shop.place_order(1, public.items(''1:1''), %s, 0)', :coupon));
SELECT total FROM shop.place_order(1, public.items('1:1'), :coupon, 3500);
SELECT total FROM shop.place_order(1, public.items('1:1'), public.give(1, 'fixed', 4500), 0);

--
-- Refusals
--
SELECT public.give(1, 'fixed', 1000) AS used, public.give(1, 'fixed', 1000, 9000) AS small, public.give(1, 'fixed', 1000) AS good,
       public.give(3, 'fixed', 1000) AS others \gset
SELECT order_id FROM shop.place_order(1, public.items('1:1'), :used) \gset
SELECT * FROM refusal('SELECT shop.place_order(1, public.items(''1:1''), 4711)');
SELECT * FROM refusal(format('SELECT shop.place_order(1, public.items(''1:1''), %s)', :used));
-- another user's, used or not, is as unknown as one that does not exist
SELECT * FROM refusal(format('SELECT shop.place_order(1, public.items(''1:1''), %s)', :others));
SELECT refused(format('SELECT shop.place_order(3, public.items(''1:1''), %s)', :used));
SELECT refused('SELECT shop.place_order(1, public.items(''1:1''), 0)');
SELECT refused('SELECT shop.place_order(1, public.items(''1:1''), -9223372036854775808)');
SELECT refused('SELECT shop.place_order(1, public.items(''1:1''), 9223372036854775807)');
-- its time: until before expires_at
SET shop.test_clock = '2026-11-21 12:00:00+00';
SELECT * FROM refusal(format('SELECT shop.place_order(1, public.items(''1:1''), %s)', :good));
-- In their declared order: a call that breaks several rules gets the first.
-- Product 1 costs 4,500, user 3 has no points, and all coupons have expired.
SELECT refused(format('SELECT shop.place_order(3, public.items(''4711:1 1:5000''), %s, 1)', :used));
SELECT refused(format('SELECT shop.place_order(3, public.items(''1:5000''), %s, 1)', :used));
SELECT refused(format('SELECT shop.place_order(3, public.items(''1:1''), %s, 1)', :used));
SELECT refused(format('SELECT shop.place_order(1, public.items(''1:1''), %s, 1)', :used));
SELECT refused(format('SELECT shop.place_order(1, public.items(''1:1''), %s, 1)', :small));
SET shop.test_clock = '2026-11-21 11:59:59.999999+00';
SELECT refused(format('SELECT shop.place_order(1, public.items(''1:1''), %s, 1)', :small));
SELECT refused(format('SELECT shop.place_order(3, public.items(''1:1''), %s, 1)', :others));
SELECT refused(format('SELECT shop.place_order(3, public.items(''1:1''), %s, 3500)', :others));
SELECT refused(format('SELECT shop.place_order(3, public.items(''1:1''), %s)', :others));
-- The twin
SELECT outcome, detail FROM shop.try_place_order(1, public.items('1:1'), 4711);
SELECT outcome, detail->'coupon_id' = to_jsonb(:used) AS says_which FROM shop.try_place_order(1, public.items('1:1'), :used);
SELECT outcome, detail->'coupon_id' = to_jsonb(:others) AS says_which FROM shop.try_place_order(1, public.items('1:1'), :others);
SELECT outcome, detail - 'coupon_id' AS detail FROM shop.try_place_order(1, public.items('1:1'), :small);
SELECT outcome, detail FROM shop.try_place_order(1, public.items('1:1'), :good, 4500);
SELECT outcome, detail FROM shop.try_place_order(3, public.items('1:1'), :others);
SET shop.test_clock = '2026-11-21 12:00:00+00';
SELECT outcome, detail - 'coupon_id' AS detail FROM shop.try_place_order(1, public.items('1:1'), :good);
SET shop.test_clock = '2026-11-20 12:00:00+00';
-- Whatever an order was refused for, its coupon stays usable
SELECT coupon_id = :small AS small, coupon_id = :good AS good, status FROM shop.user_coupons(1) WHERE status <> 'used' ORDER BY coupon_id DESC LIMIT 2;
SELECT status FROM shop.user_coupons(3);
SELECT refused(format('SELECT shop.place_order(1, public.items(''1:5000''), %s)', :good));
SELECT refused(format('SELECT shop.place_order(1, public.items(''4711:1''), %s)', :good));
BEGIN;
SELECT total FROM shop.place_order(1, public.items('1:1'), :good);
SELECT status FROM shop.user_coupons(1) WHERE coupon_id = :good;
SELECT outcome FROM shop.try_place_order(1, public.items('1:1'), :good);
ROLLBACK;
SELECT status FROM shop.user_coupons(1) WHERE coupon_id = :good;
SELECT outcome, subtotal, discount, total, detail FROM shop.try_place_order(1, public.items('1:1'), :good);
SELECT status FROM shop.user_coupons(1) WHERE coupon_id = :good;
SELECT balance FROM shop.charge_points(3, 3500);
SELECT total, balance FROM shop.place_order(3, public.items('1:1'), :others);
SELECT * FROM shop.verify();

--
-- Keys
--
SELECT public.give(4, 'percent', 10) AS mine, public.give(4, 'percent', 20) AS second, public.give(4, 'percent', 30) AS third \gset
SELECT balance FROM shop.charge_points(4, 10000);
-- 4,500 - 450 = 4,050
SELECT order_id AS first FROM shop.place_order(4, public.items('1:1'), :mine, 4050, 'k') \gset
SELECT order_id = :first AS same, status, subtotal, discount, total, balance, replayed FROM shop.place_order(4, public.items('1:1'), :mine, 4050, 'k');
SELECT outcome, order_id = :first AS same, discount, total, balance, replayed FROM shop.try_place_order(4, public.items('1:1'), :mine, 4050, 'k');
-- after the coupon's time, at another price, without points
SET shop.test_clock = '2026-12-24 00:00:00+00';
SELECT price FROM shop.set_price(1, 9000);
SELECT balance FROM shop.use_points(4, 5950);
SELECT order_id = :first AS same, discount, total, balance, replayed FROM shop.place_order(4, public.items('1:1'), :mine, 4050, 'k');
SET shop.test_clock = '2026-11-20 12:00:00+00';
SELECT price FROM shop.set_price(1, 4500);
SELECT balance FROM shop.charge_points(4, 10000);
-- another coupon, or none, is another argument, and named before expected_total
SELECT * FROM refusal(format('SELECT shop.place_order(4, public.items(''1:1''), %s, 4050, ''k'')', :second));
SELECT refused('SELECT shop.place_order(4, public.items(''1:1''), NULL, 4050, ''k'')');
SELECT refused('SELECT shop.place_order(4, public.items(''1:1''), 4711, 1, ''k'')');
SELECT refused(format('SELECT shop.place_order(4, public.items(''1:2''), %s, 4050, ''k'')', :second));
SELECT refused(format('SELECT shop.place_order(4, public.items(''1:1''), %s, 4051, ''k'')', :mine));
SELECT outcome, detail FROM shop.try_place_order(4, public.items('1:1'), :second, 4050, 'k');
-- and the other way round
SELECT total FROM shop.place_order(4, public.items('3:1'), NULL, NULL, 'without');
SELECT refused(format('SELECT shop.place_order(4, public.items(''3:1''), %s, NULL, ''without'')', :second));
-- the same coupon under another key is used
SELECT refused(format('SELECT shop.place_order(4, public.items(''1:1''), %s, 4050, ''k2'')', :mine));
-- a call that failed leaves no key
SELECT refused(format('SELECT shop.place_order(4, public.items(''1:1''), %s, 1, ''k3'')', :second));
SELECT discount, replayed FROM shop.place_order(4, public.items('1:1'), :second, 3600, 'k3');
SELECT discount, replayed FROM shop.place_order(4, public.items('1:1'), :second, 3600, 'k3');

--
-- Isolation levels: issued and used in one transaction, once
--
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT public.give(4, 'fixed', 600) AS coupon \gset
SAVEPOINT s;
SELECT total FROM shop.place_order(4, public.items('3:1'), :coupon);
ROLLBACK TO s;
SELECT total FROM shop.place_order(4, public.items('3:1'), :coupon, 100);
SELECT outcome FROM shop.try_place_order(4, public.items('3:1'), :coupon);
COMMIT;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT total FROM shop.place_order(4, public.items('3:1'), :third);
SELECT outcome FROM shop.try_place_order(4, public.items('3:1'), :third);
COMMIT;
BEGIN READ ONLY;
SELECT refused(format('SELECT shop.place_order(4, public.items(''3:1''), %s)', :third));
COMMIT;

--
-- What is popular earns what was paid
--
SELECT shop.refresh_popular_products() IS NOT NULL AS refreshed;
SELECT sum(revenue) = (SELECT sum(total) FROM shop.orders) AS revenue_is_paid FROM shop.popular_products;
SELECT * FROM shop.verify();
\set ECHO none
DROP FUNCTION public.give(bigint, text, bigint, bigint, bigint), public.items(text), public.lines(bigint, text, bigint);
