-- verify(): no row on a healthy shop; each invariant broken by hand is one row.
\set ECHO none
\i sql/setup.inc
\set ECHO all
SET shop.test_clock = '2026-11-20 12:00:00+00';
SELECT count(*) AS empty_shop FROM shop.verify();
-- A shop with something of everything
CREATE FUNCTION public.take(event jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF event->>'subject' = 'bad' THEN
        RAISE EXCEPTION 'no';
    END IF;
END
$$;
SELECT shop.create_product('Tea', 4500, 10), shop.create_product('Cup', 12000, 5), shop.create_product('Free', 0);
SELECT shop.restock(1, 5), shop.restock(2, -1);
SELECT balance FROM shop.charge_points(1, 100000);
SELECT balance FROM shop.charge_points(2, 50000);
SELECT balance FROM shop.use_points(1, 1000);
SELECT order_id, total FROM shop.place_order(1, '[{"product_id": 1, "quantity": 2}, {"product_id": 2, "quantity": 1}]');
SELECT shop.refresh_popular_products() IS NOT NULL AS folded;
SELECT order_id, total FROM shop.place_order(2, '[{"product_id": 1, "quantity": 1}]');
SELECT name FROM shop.create_endpoint('e', 'function:public.take', options => '{"from_start": true, "max_attempts": 1}');
SELECT count(*) FROM (SELECT shop.emit_event('t', 'a', 'bad', '{}')) e;
SELECT shop.deliver_events();
SELECT count(*) AS healthy FROM shop.verify();
SELECT count(*) AS folded_all FROM shop.product_sales;
-- Another order, not folded yet, is no fault either
SELECT order_id, total FROM shop.place_order(1, '[{"product_id": 2, "quantity": 1}]');
SELECT count(*) AS healthy FROM shop.verify();
-- Runs a statement, shows what verify() has to say then, and undoes it; keeps the invariants that were broken
CREATE TABLE public.seen (invariant text);
CREATE FUNCTION public.broken(statement text, OUT invariant text, OUT subject text, OUT detail jsonb)
    RETURNS SETOF record LANGUAGE plpgsql AS $$
BEGIN
    BEGIN
        EXECUTE statement;
        CREATE TEMP TABLE found AS SELECT * FROM shop.verify();
        RAISE EXCEPTION SQLSTATE 'XX0OK' USING DETAIL = (SELECT coalesce(jsonb_agg(f ORDER BY f.invariant COLLATE "C", f.subject COLLATE "C", f.detail::text COLLATE "C"), '[]') FROM found f);
    EXCEPTION WHEN SQLSTATE 'XX0OK' THEN
        GET STACKED DIAGNOSTICS invariant = PG_EXCEPTION_DETAIL;
    END;
    INSERT INTO public.seen SELECT r.invariant FROM jsonb_to_recordset(invariant::jsonb) r(invariant text);
    RETURN QUERY SELECT r.* FROM jsonb_to_recordset(invariant::jsonb) r(invariant text, subject text, detail jsonb);
END
$$;
\a
-- Units appear, vanish, are sold twice, have no slot
SELECT * FROM public.broken('UPDATE shop.stock SET on_hand = on_hand + 1 WHERE product_id = 1');
SELECT * FROM public.broken('UPDATE shop.stock_movement SET quantity = quantity + 1 WHERE movement_id = 1');
SELECT * FROM public.broken('INSERT INTO shop.stock (product_id, slot, on_hand) VALUES (1, 7, 3)');
SELECT * FROM public.broken('UPDATE shop.stock SET slot = 3 WHERE product_id = 2');
SELECT * FROM public.broken('DELETE FROM shop.stock WHERE product_id = 3');
SELECT * FROM public.broken('INSERT INTO shop.stock (product_id, slot, on_hand) VALUES (99, 0, 0)');
SELECT * FROM public.broken($$INSERT INTO shop.stock_movement (product_id, quantity, available, kind, created_at) VALUES (99, 1, 1, 'restock', now())$$);
-- Points
SELECT * FROM public.broken('UPDATE shop.account SET balance = balance + 1 WHERE user_id = 2');
SELECT * FROM public.broken('DELETE FROM shop.account WHERE user_id = 2');
SELECT * FROM public.broken('INSERT INTO shop.account VALUES (9, 5)');
SELECT * FROM public.broken('INSERT INTO shop.account VALUES (9, 0)');
SELECT * FROM public.broken($$UPDATE shop.point_entry SET balance = balance + 1 WHERE user_id = 1 AND kind = 'use'$$);
SELECT * FROM public.broken($$UPDATE shop.point_entry SET amount = amount + 5 WHERE user_id = 1 AND kind = 'use'$$);
SELECT * FROM public.broken($$DELETE FROM shop.point_entry WHERE user_id = 1 AND kind = 'use'$$);
-- Orders
SELECT * FROM public.broken('UPDATE shop.orders SET subtotal = subtotal + 1, discount = discount + 1 WHERE order_id = 1');
SELECT * FROM public.broken($$UPDATE shop.orders SET status = 'strange' WHERE order_id = 1$$);
SELECT * FROM public.broken('UPDATE shop.orders SET total = total - 1 WHERE order_id = 1');
SELECT * FROM public.broken('DELETE FROM shop.order_line WHERE order_id = 1 AND line_no = 2');
SELECT * FROM public.broken('DELETE FROM shop.order_line WHERE order_id = 2');
SELECT * FROM public.broken('UPDATE shop.order_line SET discount = -1 WHERE order_id = 1 AND line_no = 2');
SELECT * FROM public.broken('UPDATE shop.order_line SET quantity = 0 WHERE order_id = 1 AND line_no = 2');
SELECT * FROM public.broken('UPDATE shop.order_line SET product_id = 99 WHERE order_id = 1 AND line_no = 2');
SELECT * FROM public.broken('DELETE FROM shop.orders WHERE order_id = 1');
SELECT * FROM public.broken('UPDATE shop.orders SET balance = balance + 1 WHERE order_id = 1');
SELECT * FROM public.broken('UPDATE shop.orders SET user_id = 2 WHERE order_id = 1');
SELECT * FROM public.broken('UPDATE shop.point_entry SET order_id = 2 WHERE order_id = 1');
-- Events
SELECT * FROM public.broken($$DELETE FROM shop.outbox WHERE type = 'order.paid' AND aggregateid = '1'$$);
SELECT * FROM public.broken($$INSERT INTO shop.outbox (created_at, aggregatetype, aggregateid, type, payload)
    SELECT created_at, aggregatetype, aggregateid, type, '{"lines": []}' FROM shop.outbox WHERE type = 'order.paid' AND aggregateid = '1'$$);
SELECT * FROM public.broken($$INSERT INTO shop.outbox (created_at, aggregatetype, aggregateid, type, payload)
    VALUES (now(), 'order', '77', 'order.paid', '{"lines": []}')$$);
SELECT * FROM public.broken($$DELETE FROM shop.outbox WHERE type = 'points.used'$$);
SELECT * FROM public.broken($$INSERT INTO shop.outbox (created_at, aggregatetype, aggregateid, type, payload)
    SELECT created_at, aggregatetype, aggregateid, type, payload FROM shop.outbox WHERE type = 'points.used'$$);
SELECT * FROM public.broken($$INSERT INTO shop.outbox (created_at, aggregatetype, aggregateid, type, payload)
    VALUES (now(), 'account', '1', 'points.charged', '{"entry_id": 777}')$$);
-- Deliveries
SELECT * FROM public.broken($$DELETE FROM shop.outbox WHERE type = 't'$$);
SELECT * FROM public.broken($$UPDATE shop.endpoint SET acked = acked - int8multirange(int8range(d.event_no, d.event_no, '[]'))
    FROM shop.delivery d WHERE d.endpoint_id = endpoint.endpoint_id$$);
SELECT * FROM public.broken('UPDATE shop.delivery SET endpoint_id = 99');
SELECT * FROM public.broken($$UPDATE shop.delivery SET dead_at = NULL, next_attempt_at = 'infinity'$$);
-- Sales folded
SELECT * FROM public.broken('UPDATE shop.product_sales SET quantity = quantity + 1 WHERE product_id = 1');
SELECT * FROM public.broken('UPDATE shop.product_sales SET revenue = revenue - 1 WHERE product_id = 2');
SELECT * FROM public.broken('DELETE FROM shop.product_sales WHERE product_id = 2');
SELECT * FROM public.broken($$INSERT INTO shop.product_sales VALUES ('2026-11-20 11:00+00', 3, 1, 0)$$);
-- Sequences
SELECT * FROM public.broken('ALTER SEQUENCE shop.product_product_id_seq RESTART WITH 2');
SELECT * FROM public.broken('ALTER SEQUENCE shop.stock_movement_movement_id_seq RESTART');
SELECT * FROM public.broken('ALTER SEQUENCE shop.point_entry_entry_id_seq RESTART');
SELECT * FROM public.broken('ALTER SEQUENCE shop.orders_order_id_seq RESTART WITH 3');
SELECT * FROM public.broken('ALTER SEQUENCE shop.outbox_event_no_seq RESTART');
SELECT * FROM public.broken('ALTER SEQUENCE shop.endpoint_endpoint_id_seq RESTART');
-- What the tables refuse by themselves
SELECT statement, r.code, r.message FROM unnest(ARRAY[
    'UPDATE shop.stock SET on_hand = -1 WHERE product_id = 1',
    'UPDATE shop.stock SET slot = -1 WHERE product_id = 1',
    'UPDATE shop.account SET balance = -1 WHERE user_id = 1',
    'UPDATE shop.product SET price = -1 WHERE product_id = 1']) statement, LATERAL public.refusal(statement) r;
\a
SELECT count(*) AS healthy_after_all FROM shop.verify();
--
-- Coupons, reservations, what was paid, cancelled and refunded
--
SELECT shop.restock(2, 10), shop.restock(3, 1);
-- With one slot, so that the cases below can say which
SET shop.max_stock_slots = 1;
SELECT shop.create_coupon_campaign('Tenth', 'percent', 10, 3, '2026-11-20', '2026-11-21') AS tenth, shop.create_coupon_campaign('Some', 'fixed', 500, 9, '2026-11-20', '2026-11-21') AS some;
SELECT coupon_id FROM shop.issue_coupon(1, 1);
SELECT coupon_id FROM shop.issue_coupon(1, 2);
SELECT coupon_id FROM shop.issue_coupon(2, 1);
-- 4: paid by coupon 1, 10,800 + 12,150; 1 of its 3 units of product 1 refunded, 4,050, and not put back
SELECT order_id, total FROM shop.place_order(1, '[{"product_id": 2, "quantity": 1}, {"product_id": 1, "quantity": 3}]', 1);
SELECT refund_id, amount FROM shop.refund_order(4, '[{"product_id": 1, "quantity": 1}]', restock => false);
-- 5: paid by coupon 3, which came back when it was cancelled
SELECT order_id, total FROM shop.place_order(1, '[{"product_id": 1, "quantity": 1}]', 3);
SELECT status FROM shop.cancel_order(5);
-- 6: reserved; 7: released; 8: expired; 9: expired, and still holding product 2; 10: free, with what 9 held of product 3
SELECT order_id, status FROM shop.reserve_order(2, '[{"product_id": 1, "quantity": 2}, {"product_id": 2, "quantity": 1}]', '1 hour');
SELECT order_id, status FROM shop.reserve_order(2, '[{"product_id": 1, "quantity": 1}]');
SELECT status FROM shop.release_order(7, 2);
SELECT order_id, status FROM shop.reserve_order(2, '[{"product_id": 1, "quantity": 1}]', '1 minute');
SET shop.test_clock = '2026-11-20 12:01:00+00';
SELECT reservations_expired FROM shop.run_maintenance();
SELECT order_id, status FROM shop.reserve_order(2, '[{"product_id": 2, "quantity": 1}, {"product_id": 3, "quantity": 1}]', '1 minute');
SET shop.test_clock = '2026-11-20 12:02:00+00';
SELECT order_id, total FROM shop.place_order(1, '[{"product_id": 3, "quantity": 1}]');
-- 11: reserved, paid, refunded; 12: reserved and paid by coupon 2
SELECT order_id, status FROM shop.reserve_order(1, '[{"product_id": 1, "quantity": 1}]');
SELECT status, balance FROM shop.pay_order(11, 1);
SELECT refund_id, status, amount FROM shop.refund_order(11, '[{"product_id": 1, "quantity": 1}]');
SELECT order_id, status FROM shop.reserve_order(2, '[{"product_id": 1, "quantity": 1}]');
SELECT status, total FROM shop.pay_order(12, 2, 2);
SELECT order_id, status FROM shop.orders ORDER BY 1;
SELECT * FROM shop.stock_hold ORDER BY product_id, expires_at;
SELECT change_id, order_id, kind, amount FROM shop.order_change ORDER BY 1;
SELECT count(*) AS healthy FROM shop.verify();
\a
-- Units held: more, none, of others, for another time, of orders that hold none, of products that are not
SELECT * FROM public.broken('UPDATE shop.stock_hold SET quantity = quantity + 1 WHERE order_id = 6 AND product_id = 1');
SELECT * FROM public.broken('DELETE FROM shop.stock_hold WHERE order_id = 6 AND product_id = 2');
SELECT * FROM public.broken('UPDATE shop.stock_hold SET order_id = 7 WHERE order_id = 6 AND product_id = 2');
SELECT * FROM public.broken($$INSERT INTO shop.stock_hold (product_id, expires_at, order_id, quantity)
    SELECT 1, expires_at, order_id, 1 FROM shop.orders WHERE order_id IN (7, 11, 12)$$);
SELECT * FROM public.broken('UPDATE shop.stock_hold SET order_id = 77 WHERE order_id = 9');
SELECT * FROM public.broken($$UPDATE shop.stock_hold SET expires_at = expires_at + interval '1 microsecond' WHERE order_id = 6 AND product_id = 1$$);
SELECT * FROM public.broken($$UPDATE shop.stock_hold SET expires_at = expires_at + interval '1 microsecond' WHERE order_id = 9$$);
SELECT * FROM public.broken('UPDATE shop.stock_hold SET quantity = 3 WHERE order_id = 9');
SELECT * FROM public.broken('UPDATE shop.stock_hold SET product_id = 99 WHERE order_id = 9');
-- A refund says of its units that they are back, or are not
SELECT * FROM public.broken('UPDATE shop.refund_line SET restocked = true WHERE order_id = 4');
SELECT * FROM public.broken('UPDATE shop.refund_line SET restocked = false WHERE order_id = 11');
-- Coupons: too many, too few, of no campaign, without slot
SELECT * FROM public.broken('UPDATE shop.coupon_stock SET remaining = remaining + 1 WHERE campaign_id = 1');
SELECT * FROM public.broken('UPDATE shop.coupon_campaign SET usage_limit = 1 WHERE campaign_id = 1');
SELECT * FROM public.broken('INSERT INTO shop.coupon_stock (campaign_id, slot, remaining) VALUES (2, 5, 1)');
SELECT * FROM public.broken('DELETE FROM shop.coupon WHERE coupon_id = 3');
SELECT * FROM public.broken('DELETE FROM shop.coupon WHERE coupon_id = 1');
SELECT * FROM public.broken('DELETE FROM shop.coupon_stock WHERE campaign_id = 2');
SELECT * FROM public.broken('UPDATE shop.coupon_stock SET slot = 5 WHERE campaign_id = 2');
SELECT * FROM public.broken('INSERT INTO shop.coupon_stock (campaign_id, remaining) VALUES (99, 0)');
SELECT * FROM public.broken('DELETE FROM shop.coupon_campaign WHERE campaign_id = 2');
SELECT * FROM public.broken('UPDATE shop.coupon SET campaign_id = 99 WHERE coupon_id = 3');
-- Coupons and their orders: used by none, by another, by two, by one of another user, by one that is not paid
SELECT * FROM public.broken('UPDATE shop.coupon SET order_id = NULL WHERE coupon_id = 1');
SELECT * FROM public.broken('UPDATE shop.coupon SET order_id = 77 WHERE coupon_id = 3');
SELECT * FROM public.broken('UPDATE shop.coupon SET order_id = 10 WHERE coupon_id = 1');
SELECT * FROM public.broken('UPDATE shop.coupon SET user_id = 3 WHERE coupon_id = 2');
SELECT * FROM public.broken('UPDATE shop.orders SET coupon_id = 1 WHERE order_id = 10');
SELECT * FROM public.broken('UPDATE shop.orders SET coupon_id = NULL WHERE order_id = 12');
SELECT * FROM public.broken('UPDATE shop.orders SET coupon_id = 77 WHERE order_id = 10');
SELECT * FROM public.broken($$WITH named AS (UPDATE shop.orders SET coupon_id = 3 WHERE order_id = 6 RETURNING order_id)
    UPDATE shop.coupon SET order_id = (SELECT order_id FROM named) WHERE coupon_id = 3$$);
-- used by a cancelled order is a fault, unless it had expired by then
SELECT * FROM public.broken('UPDATE shop.coupon SET order_id = 5 WHERE coupon_id = 3');
SELECT * FROM public.broken($$UPDATE shop.coupon SET order_id = 5, expires_at = '2000-01-01' WHERE coupon_id = 3$$);
-- Discounts
SELECT * FROM public.broken('UPDATE shop.order_line SET discount = discount + 1 WHERE order_id = 12');
SELECT * FROM public.broken('UPDATE shop.order_line SET discount = 4501 WHERE order_id = 12');
SELECT * FROM public.broken('UPDATE shop.orders SET discount = discount - 1 WHERE order_id = 12');
-- States that the journal knows nothing of, and the other way round
SELECT * FROM public.broken($$UPDATE shop.orders SET status = 'released' WHERE order_id = 8$$);
SELECT * FROM public.broken($$UPDATE shop.orders SET status = 'expired' WHERE order_id = 6$$);
SELECT * FROM public.broken($$UPDATE shop.orders SET status = 'cancelled' WHERE order_id = 1$$);
SELECT * FROM public.broken($$UPDATE shop.orders SET status = 'refunded' WHERE order_id = 4$$);
SELECT * FROM public.broken($$UPDATE shop.orders SET status = 'paid' WHERE order_id = 11$$);
SELECT * FROM public.broken($$UPDATE shop.orders SET paid_at = created_at WHERE order_id = 7$$);
SELECT * FROM public.broken('UPDATE shop.orders SET paid_at = NULL WHERE order_id = 12');
SELECT * FROM public.broken('UPDATE shop.orders SET expires_at = NULL WHERE order_id = 7');
SELECT * FROM public.broken($$DELETE FROM shop.order_change WHERE order_id = 8 AND kind = 'expired'$$);
SELECT * FROM public.broken('DELETE FROM shop.order_change WHERE order_id = 6');
SELECT * FROM public.broken('UPDATE shop.order_change SET order_id = 77 WHERE order_id = 6');
SELECT * FROM public.broken('UPDATE shop.order_change SET user_id = 3 WHERE order_id = 6');
-- Refunds: of too much, too little, too many units, of no line, without an entry in the journal
SELECT * FROM public.broken('UPDATE shop.refund_line SET amount = amount + 1 WHERE order_id = 4');
SELECT * FROM public.broken('UPDATE shop.refund_line SET amount = amount - 1 WHERE order_id = 11');
SELECT * FROM public.broken('UPDATE shop.refund_line SET quantity = 2 WHERE order_id = 4');
SELECT * FROM public.broken('UPDATE shop.refund_line SET quantity = 2 WHERE order_id = 11');
SELECT * FROM public.broken('UPDATE shop.refund_line SET product_id = 3 WHERE order_id = 4');
SELECT * FROM public.broken('DELETE FROM shop.refund_line WHERE order_id = 4');
SELECT * FROM public.broken('DELETE FROM shop.refund_line WHERE order_id = 11');
SELECT * FROM public.broken($$DELETE FROM shop.order_change WHERE order_id = 4 AND kind = 'refunded'$$);
SELECT * FROM public.broken($$UPDATE shop.order_change SET amount = amount + 1 WHERE order_id = 4 AND kind = 'refunded'$$);
SELECT * FROM public.broken($$UPDATE shop.order_change SET amount = amount + 1 WHERE kind = 'cancelled'$$);
-- Points that came back, or did not; paid by nobody, or by somebody who only reserved
SELECT * FROM public.broken($$DELETE FROM shop.point_entry WHERE kind = 'refund' AND order_id = 11$$);
SELECT * FROM public.broken($$UPDATE shop.point_entry SET kind = 'refund' WHERE kind = 'cancel'$$);
SELECT * FROM public.broken($$UPDATE shop.point_entry SET order_id = 11 WHERE kind = 'cancel'$$);
SELECT * FROM public.broken($$UPDATE shop.point_entry SET order_id = 6 WHERE order_id = 12$$);
-- Events: one a change of each kind, one a coupon
SELECT t, b.* FROM unnest(ARRAY['reserved', 'released', 'expired', 'cancelled']) t,
    LATERAL public.broken(format($$DELETE FROM shop.outbox WHERE event_no = (SELECT max(event_no) FROM shop.outbox WHERE type = 'order.%s')$$, t)) b;
SELECT * FROM public.broken($$DELETE FROM shop.outbox WHERE type = 'order.refunded' AND aggregateid = '4'$$);
SELECT * FROM public.broken($$DELETE FROM shop.outbox WHERE type = 'order.paid' AND aggregateid = '12'$$);
SELECT * FROM public.broken($$INSERT INTO shop.outbox (created_at, aggregatetype, aggregateid, type, payload)
    SELECT created_at, aggregatetype, aggregateid, type, payload FROM shop.outbox WHERE type = 'order.released'$$);
SELECT * FROM public.broken($$INSERT INTO shop.outbox (created_at, aggregatetype, aggregateid, type, payload)
    VALUES (now(), 'order', '6', 'order.expired', '{"lines": []}')$$);
SELECT * FROM public.broken($$DELETE FROM shop.outbox WHERE type = 'coupon.issued' AND aggregateid = '2'$$);
SELECT * FROM public.broken($$INSERT INTO shop.outbox (created_at, aggregatetype, aggregateid, type, payload)
    SELECT created_at, aggregatetype, aggregateid, type, payload FROM shop.outbox WHERE type = 'coupon.issued' AND aggregateid = '2'$$);
SELECT * FROM public.broken($$INSERT INTO shop.outbox (created_at, aggregatetype, aggregateid, type, payload)
    VALUES (now(), 'coupon', '77', 'coupon.issued', '{}')$$);
-- What was taken back, told wrongly to those who count what is popular
SELECT * FROM public.broken($$UPDATE shop.outbox SET payload = jsonb_set(payload, '{lines,0,quantity}', '2') WHERE type = 'order.cancelled'$$);
SELECT * FROM public.broken($$UPDATE shop.outbox SET payload = jsonb_set(payload, '{lines,0,total}', '4051') WHERE type = 'order.refunded' AND aggregateid = '4'$$);
-- What retention has cleared is not missed: of two refunds of order 4, the event of the first; that of the second is
SELECT * FROM public.broken($$SELECT shop.refresh_popular_products(), shop.refund_order(4, '[{"product_id": 1, "quantity": 1}]');
    INSERT INTO shop.outbox_cleared (created_upto, events) VALUES ('2026-11-20 12:00+00', 1);
    DELETE FROM shop.outbox WHERE type = 'order.refunded' AND aggregateid = '4' AND created_at = '2026-11-20 12:00+00'$$);
SELECT * FROM public.broken($$SELECT shop.refund_order(4, '[{"product_id": 1, "quantity": 1}]');
    SELECT shop.refresh_popular_products();
    INSERT INTO shop.outbox_cleared (created_upto, events) VALUES ('2026-11-20 12:00+00', 1);
    DELETE FROM shop.outbox WHERE type = 'order.refunded' AND aggregateid = '4'$$);
-- Sequences
SELECT * FROM public.broken('ALTER SEQUENCE shop.order_change_change_id_seq RESTART');
SELECT * FROM public.broken('ALTER SEQUENCE shop.coupon_campaign_campaign_id_seq RESTART WITH 2');
SELECT * FROM public.broken('ALTER SEQUENCE shop.coupon_coupon_id_seq RESTART WITH 3');
-- What the tables refuse by themselves
SELECT statement, r.code, r.message FROM unnest(ARRAY[
    'UPDATE shop.stock_hold SET quantity = 0 WHERE order_id = 6',
    'UPDATE shop.coupon_stock SET remaining = -1 WHERE campaign_id = 1',
    'UPDATE shop.coupon_stock SET slot = -1 WHERE campaign_id = 1',
    'UPDATE shop.coupon_campaign SET usage_limit = 0 WHERE campaign_id = 1',
    'UPDATE shop.coupon_campaign SET discount_value = 101 WHERE campaign_id = 1',
    'UPDATE shop.coupon_campaign SET discount_type = ''gift'' WHERE campaign_id = 1',
    'UPDATE shop.coupon_campaign SET ends_at = starts_at WHERE campaign_id = 1',
    'UPDATE shop.coupon SET user_id = 2 WHERE coupon_id = 1']) statement, LATERAL public.refusal(statement) r;
\a
-- None was left out: all that verify() can say has been said
SELECT name[1] FROM regexp_matches(pg_get_function_sqlbody('shop.verify()'::regprocedure), $$'([a-z]+: [^']+)'$$, 'g') AS name
EXCEPT SELECT invariant FROM public.seen ORDER BY 1;
SELECT count(DISTINCT invariant) > 20 AS many FROM public.seen;
SELECT count(*) AS healthy_after_all FROM shop.verify();
-- In a read-only transaction, too
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
SELECT count(*) FROM shop.verify();
COMMIT;
\set ECHO none
DROP FUNCTION public.take(jsonb), public.broken(text);
DROP TABLE public.seen;
