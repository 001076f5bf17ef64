-- Coupons: campaigns, and issuing to the first who ask.
\set ECHO none
\i sql/setup.inc
\set ECHO all
SET shop.test_clock = '2026-11-20 12:00:00+00';
-- A call that creates a campaign, with some of its arguments changed
CREATE FUNCTION public.campaign(changed jsonb DEFAULT '{}') RETURNS text LANGUAGE sql AS $$
    SELECT 'SELECT shop.create_coupon_campaign(' || string_agg(format('%s => %L', key, value), ', ') || ')'
      FROM jsonb_each_text('{"name": "C", "discount_type": "fixed", "discount_value": 100, "usage_limit": 3,
                             "starts_at": "2026-11-20 13:00+00", "ends_at": "2026-11-20 14:00+00"}' || changed)
$$;

--
-- create_coupon_campaign
--
SELECT shop.create_coupon_campaign('Welcome', 'fixed', 1000, 2, '2026-11-20 13:00+00', '2026-11-20 14:00+00') AS welcome \gset
SELECT shop.create_coupon_campaign(name => 'Sale', discount_type => 'percent', discount_value => 15, usage_limit => 1000,
           starts_at => '2026-11-20 12:00+00', ends_at => '2026-11-27 12:00+00', valid_for => '3 days 12:00',
           min_subtotal => 10000, max_discount => 5000) AS sale \gset
SELECT * FROM shop.coupon_campaigns ORDER BY campaign_id;
-- A campaign is no event of anybody's
SELECT count(*) FROM shop.outbox;
-- Bad input
\a
SELECT changed, r.* FROM unnest(ARRAY[
    '{"name": null}', '{"discount_type": null}', '{"discount_value": null}', '{"usage_limit": null}',
    '{"starts_at": null}', '{"ends_at": null}', '{"min_subtotal": null}']::jsonb[]) changed,
    LATERAL public.refusal(public.campaign(changed)) r;
SELECT changed, r.code, r.message, r.detail FROM unnest(ARRAY[
    '{"name": ""}',
    '{"discount_type": ""}', '{"discount_type": "gift"}', '{"discount_type": "Fixed"}', '{"discount_type": "fixed "}',
    '{"discount_type": "percent", "discount_value": 0}', '{"discount_type": "percent", "discount_value": 101}',
    '{"discount_type": "percent", "discount_value": -1}',
    '{"discount_value": 0}', '{"discount_value": -1}', '{"discount_value": 1000000000000001}',
    '{"discount_value": 9223372036854775807}', '{"discount_value": -9223372036854775808}',
    '{"usage_limit": 0}', '{"usage_limit": -1}', '{"usage_limit": 1000000000000001}',
    '{"usage_limit": 9223372036854775807}', '{"usage_limit": -9223372036854775808}',
    '{"starts_at": "infinity"}', '{"starts_at": "-infinity"}', '{"ends_at": "infinity"}', '{"ends_at": "-infinity"}',
    '{"starts_at": "0001-12-31 23:59:59.999999+00 BC"}', '{"ends_at": "10000-01-01 00:00+00"}',
    '{"ends_at": "2026-11-20 12:59:59.999999+00"}', '{"ends_at": "2026-11-20 13:00+00"}',
    '{"valid_for": "0"}', '{"valid_for": "-1 second"}', '{"valid_for": "1 month -31 days"}', '{"valid_for": "1 day -1 second"}',
    '{"valid_for": "200 years"}', '{"valid_for": "178000000 years"}',
    '{"min_subtotal": -1}', '{"min_subtotal": 1000000000000001}', '{"min_subtotal": -9223372036854775808}',
    '{"max_discount": 0}', '{"max_discount": -1}', '{"max_discount": 1000000000000001}',
    '{"max_discount": 9223372036854775807}',
    '{"idempotency_key": ""}']::jsonb[]) changed,
    LATERAL public.refusal(public.campaign(changed)) r;
\a
SELECT code, message FROM refusal(public.campaign(jsonb_build_object('name', repeat('x', 1001))));
SELECT hint FROM refusal(public.campaign('{"usage_limit": 0}'));
-- What is just within bounds
SELECT changed, refused(public.campaign(changed)) FROM unnest(ARRAY[
    '{"discount_type": "percent", "discount_value": 1}', '{"discount_type": "percent", "discount_value": 100}',
    '{"discount_value": 1}', '{"discount_value": 1000000000000000}',
    '{"usage_limit": 1}', '{"usage_limit": 1000000000000000}',
    '{"ends_at": "2026-11-20 13:00:00.000001+00"}', '{"starts_at": "2020-01-01", "ends_at": "2020-01-02"}',
    '{"starts_at": "0001-01-01 00:00+00"}', '{"ends_at": "9999-12-31 23:59:59.999999+00"}',
    '{"valid_for": null}', '{"valid_for": "1 microsecond"}', '{"valid_for": "100 years"}',
    '{"min_subtotal": 0}', '{"min_subtotal": 1000000000000000}',
    '{"max_discount": null}', '{"max_discount": 1}', '{"max_discount": 1000000000000000}']::jsonb[]) changed;
SELECT refused(public.campaign(jsonb_build_object('name', repeat('x', 1000))));
SELECT count(*) AS of_none_of_these FROM shop.coupon_campaigns WHERE name NOT IN ('Welcome', 'Sale');
SELECT * FROM shop.verify();

--
-- create_coupon_campaign with a key
--
SELECT shop.create_coupon_campaign('Keyed', 'percent', 10, 5, '2026-11-20 13:00+00', '2026-11-20 14:00+00', '1 day', 100, 50, 'k') AS keyed \gset
SELECT shop.create_coupon_campaign('Keyed', 'percent', 10, 5, '2026-11-20 13:00+00', '2026-11-20 14:00+00', '1 day', 100, 50, 'k') = :keyed AS same;
-- the same times, told in another way
SELECT shop.create_coupon_campaign('Keyed', 'percent', 10, 5, '2026-11-20 22:00+09', '2026-11-20 14:00+00', '1 day', 100, 50, 'k') = :keyed AS same;
-- the first argument that differs is named
\set same '{"name": "Keyed", "discount_type": "percent", "discount_value": 10, "usage_limit": 5, "valid_for": "1 day", "min_subtotal": 100, "max_discount": 50, "idempotency_key": "k"}'
SELECT changed, refused(public.campaign(:'same'::jsonb || changed)) FROM unnest(ARRAY[
    '{}',
    '{"name": "keyed"}', '{"discount_type": "fixed"}', '{"discount_value": 11}', '{"usage_limit": 6}',
    '{"starts_at": "2026-11-20 13:00:00.000001+00"}', '{"ends_at": "2026-11-20 14:00:00.000001+00"}',
    '{"valid_for": "2 days"}', '{"valid_for": "24 hours"}', '{"valid_for": null}', '{"min_subtotal": 0}', '{"max_discount": 51}', '{"max_discount": null}',
    '{"name": "x", "discount_value": 11, "max_discount": null}', '{"ends_at": "2027-01-01", "max_discount": 1}',
    '{"idempotency_key": "K"}']::jsonb[]) changed;
SELECT message, hint FROM refusal(public.campaign(:'same'::jsonb || '{"usage_limit": 6}'));
-- bad input comes before the key
SELECT refused(public.campaign(:'same'::jsonb || '{"name": "x", "usage_limit": 0}'));
SELECT count(*) FROM shop.coupon_campaigns WHERE name = 'Keyed';
-- A call that failed leaves no key; what was NULL stays NULL
BEGIN;
SELECT shop.create_coupon_campaign('Undone', 'fixed', 1, 1, '2026-11-20', '2026-11-21', idempotency_key => 'u') > 0 AS created;
ROLLBACK;
SELECT shop.create_coupon_campaign('Done', 'fixed', 1, 1, '2026-11-20', '2026-11-21', idempotency_key => 'u') AS done \gset
SELECT shop.create_coupon_campaign('Done', 'fixed', 1, 1, '2026-11-20', '2026-11-21', idempotency_key => 'u') = :done AS same;
SELECT refused($$SELECT shop.create_coupon_campaign('Done', 'fixed', 1, 1, '2026-11-20', '2026-11-21', '1 day', idempotency_key => 'u')$$);
SELECT refused($$SELECT shop.create_coupon_campaign('Done', 'fixed', 1, 1, '2026-11-20', '2026-11-21', NULL, 0, 1, 'u')$$);

--
-- issue_coupon: the window, to the microsecond
--
SET shop.test_clock = '2026-11-20 12:59:59.999999+00';
SELECT * FROM refusal(format('SELECT shop.issue_coupon(%s, 1)', :welcome));
SET shop.test_clock = '2026-11-20 13:00:00+00';
SELECT * FROM shop.issue_coupon(:welcome, 1);
SET shop.test_clock = '2026-11-20 13:59:59.999999+00';
SELECT * FROM shop.issue_coupon(user_id => 2, campaign_id => :welcome);
SET shop.test_clock = '2026-11-20 14:00:00+00';
SELECT * FROM refusal(format('SELECT shop.issue_coupon(%s, 3)', :welcome));
-- The event
SELECT type, aggregatetype, aggregateid, created_at, jsonb_pretty(payload) AS payload
  FROM shop.outbox WHERE type = 'coupon.issued' AND aggregateid = '1';
SELECT aggregateid, payload->'user_id' AS user_id, payload->>'expires_at' AS expires_at
  FROM shop.outbox WHERE type = 'coupon.issued' ORDER BY event_no;
-- Valid for 3 days and 12 hours from the issue, also beyond the campaign's end
SET shop.test_clock = '2026-11-20 12:00:00.000001+00';
SELECT * FROM shop.issue_coupon(:sale, 1);
SET shop.test_clock = '2026-11-27 11:59:59.999999+00';
SELECT * FROM shop.issue_coupon(:sale, 2);
SELECT payload->>'issued_at' AS issued_at, payload->>'expires_at' AS expires_at
  FROM shop.outbox WHERE type = 'coupon.issued' ORDER BY event_no DESC LIMIT 2;

--
-- Refusals
--
SET shop.test_clock = '2026-11-20 13:30:00+00';
SELECT * FROM refusal('SELECT shop.issue_coupon(4711, 1)');
SELECT * FROM refusal(format('SELECT shop.issue_coupon(%s, 1)', :welcome));
SELECT * FROM refusal(format('SELECT shop.issue_coupon(%s, 3)', :welcome));
SELECT * FROM refusal(format('SELECT shop.issue_coupon(NULL, 1)'));
SELECT * FROM refusal(format('SELECT shop.issue_coupon(%s, NULL)', :sale));
SELECT refused('SELECT shop.try_issue_coupon(NULL, 1)');
SELECT refused(format('SELECT shop.try_issue_coupon(%s, NULL)', :sale));
SELECT refused(format('SELECT shop.issue_coupon(%s, 3, '''')', :sale));
SELECT refused(format('SELECT shop.try_issue_coupon(%s, 3, repeat(''x'', 256))', :sale));
SELECT refused('SELECT shop.issue_coupon(9223372036854775807, 3)');
SELECT refused('SELECT shop.issue_coupon(-9223372036854775808, 3)');
-- In their declared order: a call that breaks several rules gets the first.
-- Campaign welcome has no coupon left, user 1 has one of it and one by the key.
SELECT coupon_id, replayed FROM shop.issue_coupon(:keyed, 1, 'mine');
SELECT refused('SELECT shop.issue_coupon(4711, 1, ''mine'')');
SELECT refused(format('SELECT shop.issue_coupon(%s, 1, ''mine'')', :welcome));
SELECT refused('SELECT shop.issue_coupon(4711, 1, ''other'')');
SET shop.test_clock = '2026-11-20 12:59:59+00';
SELECT refused(format('SELECT shop.issue_coupon(%s, 1, ''other'')', :welcome));
SELECT refused(format('SELECT shop.issue_coupon(%s, 3)', :welcome));
SET shop.test_clock = '2026-11-20 14:00:00+00';
SELECT refused(format('SELECT shop.issue_coupon(%s, 1, ''other'')', :welcome));
SELECT refused(format('SELECT shop.issue_coupon(%s, 3)', :welcome));
SET shop.test_clock = '2026-11-20 13:30:00+00';
SELECT refused(format('SELECT shop.issue_coupon(%s, 1, ''other'')', :welcome));
SELECT refused(format('SELECT shop.issue_coupon(%s, 3, ''other'')', :welcome));
-- They leave nothing behind: two coupons of welcome, two of sale, one by the key
SELECT campaign_id, count(*) FROM shop.coupon GROUP BY 1 ORDER BY 1;
SELECT count(*) FROM shop.outbox WHERE type = 'coupon.issued';
SELECT campaign_id, name, usage_limit, remaining FROM shop.coupon_campaigns ORDER BY campaign_id;
SELECT * FROM shop.verify();

--
-- Keys: of the user, the first answer again
--
SELECT coupon_id, campaign_id, user_id, status, expires_at, replayed FROM shop.issue_coupon(:keyed, 1, 'mine');
SELECT outcome, coupon_id, campaign_id, user_id, status, expires_at, replayed, detail FROM shop.try_issue_coupon(:keyed, 1, 'mine');
SELECT * FROM refusal(format('SELECT shop.issue_coupon(%s, 1, ''mine'')', :sale));
SELECT outcome, coupon_id, detail FROM shop.try_issue_coupon(:sale, 1, 'mine');
-- another user's key is another key; another key of the same user is a new call
SELECT user_id, replayed FROM shop.issue_coupon(:keyed, 2, 'mine');
SELECT refused(format('SELECT shop.issue_coupon(%s, 1, ''yours'')', :keyed));
SELECT refused(format('SELECT shop.issue_coupon(%s, 1)', :keyed));
-- from the twin first
SELECT outcome, user_id, replayed FROM shop.try_issue_coupon(:keyed, 3, 'twin');
SELECT user_id, replayed FROM shop.issue_coupon(:keyed, 3, 'twin');
-- after the campaign's end, before its start, after the coupon's
SET shop.test_clock = '2026-12-24 00:00:00+00';
SELECT status, expires_at, replayed FROM shop.issue_coupon(:keyed, 1, 'mine');
SET shop.test_clock = '2026-11-20 00:00:00+00';
SELECT status, expires_at, replayed FROM shop.issue_coupon(:keyed, 1, 'mine');
SET shop.test_clock = '2026-11-20 13:30:00+00';
-- after the last one
SELECT user_id, replayed FROM shop.issue_coupon(:keyed, 4, 'mine');
SELECT user_id, replayed FROM shop.issue_coupon(:keyed, 5, 'mine');
SELECT refused(format('SELECT shop.issue_coupon(%s, 6, ''mine'')', :keyed));
SELECT user_id, replayed FROM shop.issue_coupon(:keyed, 5, 'mine');
SELECT user_id, replayed FROM shop.issue_coupon(:keyed, 1, 'mine');
-- a call that failed leaves no key
SELECT user_id, replayed FROM shop.issue_coupon(:sale, 6, 'mine');

--
-- The twin: refusals are answers
--
SELECT * FROM shop.try_issue_coupon(:sale, 10);
SELECT * FROM shop.try_issue_coupon(:sale, 10);
SELECT outcome, campaign_id, user_id, replayed, detail FROM shop.try_issue_coupon(4711, 10);
SELECT outcome, coupon_id, status, expires_at, detail FROM shop.try_issue_coupon(:welcome, 10);
SET shop.test_clock = '2026-11-20 12:59:59.999999+00';
SELECT outcome, detail FROM shop.try_issue_coupon(:welcome, 10);
SET shop.test_clock = '2026-11-20 14:00:00+00';
SELECT outcome, detail FROM shop.try_issue_coupon(:welcome, 10);
SET shop.test_clock = '2026-11-20 13:30:00+00';
-- Every outcome is a condition of error_codes
SELECT t.outcome, e.sqlstate, e.http_status, e.retryable
  FROM (VALUES (4711, 10), (:welcome, 10), (:sale, 10), (:done, 10)) v(campaign_id, user_id),
       LATERAL shop.try_issue_coupon(v.campaign_id, v.user_id) t
  LEFT JOIN shop.error_codes() e ON e.condition = t.outcome ORDER BY e.sqlstate;
-- A refusal does not abort the caller's transaction
BEGIN;
SELECT outcome FROM shop.try_issue_coupon(:welcome, 11);
SELECT outcome FROM shop.try_issue_coupon(:sale, 11);
SELECT outcome FROM shop.try_issue_coupon(:sale, 11);
SELECT outcome FROM shop.try_issue_coupon(:sale, 12);
ROLLBACK;
SELECT count(*) FROM shop.user_coupons(11);
SELECT remaining FROM shop.coupon_campaigns WHERE campaign_id = :sale;
-- A rush of one statement: ten ask for four
SELECT shop.create_coupon_campaign('Rush', 'fixed', 1, 4, '2026-11-20', '2026-11-21') AS rush \gset
SELECT outcome, count(*) FROM generate_series(1, 10) n, LATERAL shop.try_issue_coupon(:rush, 100 + n) GROUP BY 1 ORDER BY 1;
SELECT remaining FROM shop.coupon_campaigns WHERE campaign_id = :rush;
SELECT array_agg(user_id ORDER BY coupon_id) FROM shop.coupon WHERE campaign_id = :rush;
-- What is rolled back is there for the next
BEGIN;
SELECT shop.create_coupon_campaign('Last', 'fixed', 1, 1, '2026-11-20', '2026-11-21') AS last \gset
SAVEPOINT s;
SELECT outcome FROM shop.try_issue_coupon(:last, 1);
SELECT outcome FROM shop.try_issue_coupon(:last, 2);
ROLLBACK TO s;
SELECT outcome FROM shop.try_issue_coupon(:last, 2);
SELECT outcome FROM shop.try_issue_coupon(:last, 1);
COMMIT;
SELECT * FROM shop.verify();

--
-- A call that can only be refused or repeated writes nothing and locks nothing
--
-- (an SIReadLock, of SERIALIZABLE, makes nobody wait)
CREATE VIEW public.traces AS
    SELECT pg_current_xact_id_if_assigned() IS NOT NULL AS wrote,
           (SELECT count(*) FROM pg_locks l LEFT JOIN pg_class c ON c.oid = l.relation
             WHERE l.pid = pg_backend_pid()
               AND (l.locktype IN ('transactionid', 'tuple', 'advisory')
                    OR (c.relnamespace = 'shop'::regnamespace AND l.mode <> 'AccessShareLock'))
               AND l.mode <> 'SIReadLock') > 0 AS locked;
BEGIN;
SELECT outcome FROM shop.try_issue_coupon(:rush, 200);
SELECT * FROM public.traces;
COMMIT;
BEGIN;
SELECT outcome FROM shop.try_issue_coupon(:rush, 200, 'with a key');
SELECT outcome FROM shop.try_issue_coupon(:sale, 1);
SELECT outcome FROM shop.try_issue_coupon(:done, 1);
SELECT outcome FROM shop.try_issue_coupon(4711, 1);
SELECT outcome, replayed FROM shop.try_issue_coupon(:keyed, 1, 'mine');
SELECT replayed FROM shop.issue_coupon(:keyed, 1, 'mine');
SELECT outcome FROM shop.try_issue_coupon(:keyed, 1);
SELECT shop.create_coupon_campaign('Keyed', 'percent', 10, 5, '2026-11-20 13:00+00', '2026-11-20 14:00+00', '1 day', 100, 50, 'k') = :keyed AS same;
SELECT * FROM public.traces;
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT outcome FROM shop.try_issue_coupon(:rush, 200);
SELECT * FROM public.traces;
COMMIT;
-- unlike one that issues
BEGIN;
SELECT outcome FROM shop.try_issue_coupon(:sale, 200);
SELECT * FROM public.traces;
ROLLBACK;

--
-- user_coupons: newest first
--
SELECT count(*) FROM shop.user_coupons(4711);
SELECT refused('SELECT shop.user_coupons(NULL)');
SELECT coupon_id, campaign_id, name, status, issued_at, expires_at, order_id FROM shop.user_coupons(1);
SELECT name, discount_type, discount_value, min_subtotal, max_discount FROM shop.user_coupons(user_id => 1);
-- welcome ends at 14:00: usable until then, expired from then on
SET shop.test_clock = '2026-11-20 13:59:59.999999+00';
SELECT name, status FROM shop.user_coupons(1);
SET shop.test_clock = '2026-11-20 14:00:00+00';
SELECT name, status FROM shop.user_coupons(1);
SET shop.test_clock = '2026-11-24 00:00:00.000001+00';
SELECT name, status FROM shop.user_coupons(1);
-- The name is the campaign's of today
UPDATE shop.coupon_campaign SET name = 'Hello' WHERE campaign_id = :welcome;
SELECT name FROM shop.user_coupons(2) ORDER BY coupon_id LIMIT 1;
-- A coupon that is used
SET shop.test_clock = '2026-11-20 13:30:00+00';
SELECT shop.create_product('Tea', 4500, 100) AS tea \gset
SELECT balance FROM shop.charge_points(1, 100000);
SELECT subtotal, discount, total FROM shop.place_order(1, '[{"product_id": 1, "quantity": 1}]', coupon_id => 1);
SELECT coupon_id, status, order_id FROM shop.user_coupons(1);
-- stays used after its time, and is not to be had again
SET shop.test_clock = '2026-11-20 14:00:00+00';
SELECT coupon_id, status, order_id FROM shop.user_coupons(1);
SET shop.test_clock = '2026-11-20 13:30:00+00';
SELECT refused(format('SELECT shop.issue_coupon(%s, 1)', :welcome));
-- the answer of its issue does not change
SELECT coupon_id AS mine FROM shop.issue_coupon(:keyed, 1, 'mine') \gset
SELECT discount FROM shop.place_order(1, '[{"product_id": 1, "quantity": 1}]', coupon_id => :mine);
SELECT status, replayed FROM shop.issue_coupon(:keyed, 1, 'mine');

--
-- Isolation levels, read-only transactions, any user
--
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT user_id FROM shop.issue_coupon(:sale, 20);
SELECT outcome, user_id FROM shop.try_issue_coupon(:sale, 21);
SELECT outcome FROM shop.try_issue_coupon(:sale, 20);
SELECT count(*) FROM shop.user_coupons(20);
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT user_id FROM shop.issue_coupon(:sale, 22);
SAVEPOINT s;
SELECT user_id FROM shop.issue_coupon(:sale, 23);
SELECT shop.issue_coupon(:sale, 22);
ROLLBACK TO s;
SELECT outcome FROM shop.try_issue_coupon(:welcome, 24);
SELECT user_id FROM shop.issue_coupon(:sale, 24);
COMMIT;
SELECT array_agg(user_id ORDER BY user_id) FROM shop.coupon WHERE campaign_id = :sale AND user_id BETWEEN 20 AND 29;
BEGIN READ ONLY;
SELECT count(*) FROM shop.user_coupons(20);
SELECT remaining FROM shop.coupon_campaigns WHERE campaign_id = :sale;
SELECT * FROM refusal(format('SELECT shop.issue_coupon(%s, 30)', :sale));
SELECT * FROM refusal(format('SELECT shop.try_issue_coupon(%s, 30)', :sale));
SELECT * FROM refusal(public.campaign());
-- Even a call that could only be refused or repeated, but not bad input
SELECT refused('SELECT shop.try_issue_coupon(4711, 30)');
SELECT refused(format('SELECT shop.issue_coupon(%s, 1, ''mine'')', :keyed));
SELECT refused('SELECT shop.issue_coupon(NULL, 1)');
SELECT refused(public.campaign('{"usage_limit": 0}'));
COMMIT;
-- Users are the application's: any bigint
SELECT user_id FROM shop.issue_coupon(:sale, 0);
SELECT user_id FROM shop.issue_coupon(:sale, -9223372036854775808);
SELECT user_id FROM shop.issue_coupon(:sale, 9223372036854775807);
SELECT outcome FROM shop.try_issue_coupon(:sale, 9223372036854775807);
SELECT name, status FROM shop.user_coupons(-9223372036854775808);
-- The campaign with the most coupons there can be
SELECT shop.create_coupon_campaign('Most', 'fixed', 1000000000000000, 1000000000000000, '2026-11-20', '2026-11-21', NULL, 1000000000000000, 1000000000000000) AS most \gset
SELECT user_id FROM shop.issue_coupon(:most, 1);
SELECT usage_limit, remaining FROM shop.coupon_campaigns WHERE campaign_id = :most;
SELECT * FROM shop.verify();
\set ECHO none
DROP VIEW public.traces;
DROP FUNCTION public.campaign(jsonb);
