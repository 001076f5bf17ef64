-- The database of bench/storm: few products, few campaigns and few users, so
-- that everyone is in everyone's way; and the books that the history of the
-- driver is held against.

CREATE EXTENSION shop;
CREATE EXTENSION amcheck;
CREATE SCHEMA storm;

----------------------------------------------------------------------------
-- The record
----------------------------------------------------------------------------

-- What the callers know.  What opens the shop is written here, all else is
-- the driver's history, loaded when the storm is over.
CREATE TABLE storm.history (
    seconds   numeric NOT NULL DEFAULT extract(epoch FROM clock_timestamp()),
    session   integer NOT NULL DEFAULT -1,
    isolation text NOT NULL DEFAULT '',
    verb      text NOT NULL,
    outcome   text NOT NULL DEFAULT 'ok',       -- ok, a refusal, rolled back, no answer
    lost      boolean NOT NULL DEFAULT false,   -- a try before this one got no answer
    arguments jsonb NOT NULL,
    answer    jsonb,                            -- the row that the verb returned, if it did
    detail    text NOT NULL DEFAULT '',
    n         bigint GENERATED ALWAYS AS IDENTITY
);

CREATE VIEW storm.answer AS
    SELECT to_timestamp(seconds) AS at, * FROM storm.history WHERE outcome NOT IN ('rolled back', 'no answer');

-- What the nemesis did.
CREATE TABLE storm.fault (seconds numeric NOT NULL, fault text NOT NULL);

-- Every event the platform should get, exactly once even without its help.
CREATE TABLE storm.received (
    n     bigint GENERATED ALWAYS AS IDENTITY,
    event jsonb NOT NULL
);

CREATE FUNCTION storm.receive(events jsonb[]) RETURNS void
    LANGUAGE sql
    AS 'INSERT INTO storm.received (event) SELECT e FROM unnest(events) WITH ORDINALITY u(e, i) ORDER BY i';

CREATE FUNCTION storm.ignore(event jsonb) RETURNS void
    LANGUAGE sql
    AS '';

-- The journals of the remote receivers, in the order of arrival.
CREATE TABLE storm.journal (
    n        bigint GENERATED ALWAYS AS IDENTITY,
    endpoint text NOT NULL,
    event_id text NOT NULL,
    key      text NOT NULL
);

-- Opens something, and notes it as a call.
CREATE FUNCTION storm.call(verb text, arguments jsonb) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    statement text := (
        SELECT format('SELECT to_jsonb(r) FROM (SELECT * FROM shop.%I(%s)) r', p.proname,
                      (SELECT string_agg(format('%I => ($1->>%L)::%s', p.proargnames[n], p.proargnames[n], type::regtype), ', ')
                         FROM unnest(p.proargtypes::oid[]) WITH ORDINALITY a(type, n)))
        FROM pg_proc p
        WHERE p.pronamespace = 'shop'::regnamespace AND p.proname = verb);
    answer jsonb;
BEGIN
    EXECUTE statement INTO STRICT answer USING arguments;
    INSERT INTO storm.history (verb, arguments, answer) VALUES (verb, arguments, answer);
END
$$;

-- What the history has of the same order, key, coupon, campaign or product,
-- else of the same user, in a row that is wrong.
CREATE FUNCTION storm.concerning(wrong jsonb) RETURNS SETOF storm.history
    LANGUAGE plpgsql
    AS $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY '{order_id,key,coupon_id,event_id,campaign_id,user_id,product_id}'::text[] LOOP
        IF wrong->>name IS NOT NULL THEN
            RETURN QUERY
            SELECT * FROM (
                SELECT h.* FROM storm.history h
                WHERE wrong->>name IN (h.arguments->>name, h.answer->>name, h.arguments->>('idempotency_' || name))
                ORDER BY h.seconds DESC LIMIT 60) latest
            ORDER BY seconds;
            RETURN;
        END IF;
    END LOOP;
END
$$;

----------------------------------------------------------------------------
-- What is sold, and to whom
----------------------------------------------------------------------------

-- Three are scarce, and number 20 costs nothing.  Few ever ask for those above it.
CREATE TABLE storm.product (product_id bigint PRIMARY KEY, units bigint NOT NULL);

INSERT INTO storm.product
SELECT shop.create_product('product ' || n, CASE WHEN n = 20 THEN 0 ELSE n % 100 * 10 END, units), units
FROM generate_series(1, 200) n, LATERAL (SELECT CASE WHEN n <= 3 THEN n * 20 ELSE 10000000 END AS units) u;

-- Users above 1800 have no account until one of the clients charges it.
SELECT storm.call('charge_points', jsonb_build_object(
           'user_id', u, 'amount', CASE WHEN u % 10 = 0 THEN 1000 ELSE 100000 END))
FROM generate_series(1, 1800) u;

-- Campaigns 1 to 8; more are opened in the course of the storm.
SELECT storm.call('create_coupon_campaign', jsonb_build_object(
           'name', name, 'discount_type', type, 'discount_value', value, 'usage_limit', usage_limit,
           'starts_at', clock_timestamp() + starts, 'ends_at', clock_timestamp() + ends,
           'valid_for', valid_for, 'min_subtotal', min_subtotal, 'max_discount', max_discount))
FROM (VALUES
    (1, 'a few',         'fixed',   300,       10, interval '0',       interval '1 day',  NULL::interval, 0,   NULL),
    (2, 'most users',    'percent',  10,     1500, interval '0',       interval '1 day',  NULL,           0,   1000),
    (3, 'everybody',     'percent',   5, 10000000, interval '0',       interval '1 day',  '1 hour',       0,   NULL),
    (4, 'rush',          'fixed',   100,       30, interval '0',       interval '1 day',  NULL,           0,   NULL),
    (5, 'tomorrow',      'fixed',   100,      100, interval '1 day',   interval '2 days', NULL,           0,   NULL),
    (6, 'yesterday',     'fixed',   100,      100, interval '-2 days', interval '-1 day', NULL,           0,   NULL),
    (7, 'soon over',     'fixed',   200,      500, interval '0',       interval '1 day',  '2 seconds',    0,   NULL),
    (8, 'large baskets', 'percent',  50,      500, interval '0',       interval '1 day',  NULL,           2000, NULL))
    AS c(n, name, type, value, usage_limit, starts, ends, valid_for, min_subtotal, max_discount)
ORDER BY n;

-- What is emitted to see whether delivery goes on is nobody's call.
SELECT name FROM shop.create_endpoint('platform', 'function:shop.receive_events', '{coupon.*,storm.probe}', options => '{"from_start": true}');
SELECT name FROM shop.create_endpoint('ledger', 'function:storm.receive', options => '{"from_start": true}');

CREATE ROLE storm_reader;

----------------------------------------------------------------------------
-- The books: what must be true if the record is, to be refreshed in this order
----------------------------------------------------------------------------

-- Two calls are the same if the items add up to the same.
CREATE FUNCTION storm.normal(arguments jsonb) RETURNS jsonb
    LANGUAGE sql IMMUTABLE
    AS $$
    SELECT CASE WHEN arguments ? 'items' THEN
        jsonb_set(arguments, '{items}', (
            SELECT jsonb_object_agg(product_id, quantity)
            FROM (SELECT i->>'product_id' AS product_id, sum((i->>'quantity')::bigint) AS quantity
                  FROM jsonb_array_elements(arguments->'items') i GROUP BY 1) x))
        ELSE arguments END
    $$;

-- The record with what its rows have in common.  Of all calls with a key that
-- were answered, one had the effect: the one that was told so, or one whose
-- first answer got lost.  What cannot have a key is repeated by its order.
CREATE MATERIALIZED VIEW storm.told AS
    SELECT *, (answer->>'amount')::bigint AS amount, (answer->>'balance')::bigint AS balance,
           outcome = 'ok' AND CASE
               WHEN scope IS NULL THEN NOT coalesce(replayed, false)
               ELSE row_number() OVER (PARTITION BY verb, scope, outcome ORDER BY replayed, lost DESC, at) = 1 END AS is_effect
    FROM (SELECT at, regexp_replace(verb, '^try_', '') AS verb, outcome, lost, arguments, answer,
                 arguments->>'idempotency_key' AS key,
                 CASE WHEN verb IN ('cancel_order', 'release_order') THEN arguments->>'order_id'
                      ELSE arguments->>'idempotency_key' END AS scope,
                 (answer->>'replayed')::boolean AS replayed,
                 (arguments->>'user_id')::bigint AS user_id,
                 coalesce(answer->>'order_id', arguments->>'order_id')::bigint AS order_id
          FROM storm.answer) a
    WITH NO DATA;

-- What was ordered, what of it was refunded, and what of that put back.
CREATE MATERIALIZED VIEW storm.line AS
    SELECT order_id, product_id, sum(quantity) FILTER (WHERE verb <> 'refund_order') AS units,
           coalesce(sum(quantity) FILTER (WHERE verb = 'refund_order'), 0) AS refunded,
           coalesce(sum(quantity) FILTER (WHERE verb = 'refund_order' AND restock), 0) AS restocked
    FROM (SELECT order_id, verb, (arguments->>'restock')::boolean AS restock,
                 (i->>'product_id')::bigint AS product_id, (i->>'quantity')::bigint AS quantity
          FROM storm.told, jsonb_array_elements(arguments->'items') i
          WHERE is_effect AND verb IN ('place_order', 'reserve_order', 'refund_order')) x
    GROUP BY order_id, product_id
    WITH NO DATA;

-- The orders, as their callers were told of them.  A reservation that came to
-- no other end is expired once its time is over.
CREATE MATERIALIZED VIEW storm.ordered AS
    SELECT order_id, user_id, n, subtotal, discount, total, coupon_id, expires_at, reserved, paid, released, cancelled,
           refunds, refunded, coalesce(all_refunded, false) AS all_refunded, last_refunds,
           CASE WHEN cancelled > 0 THEN 'cancelled'
                WHEN all_refunded THEN 'refunded'
                WHEN paid > 0 THEN 'paid'
                WHEN released > 0 THEN 'released'
                WHEN expires_at <= statement_timestamp() THEN 'expired'
                ELSE 'reserved' END AS status
    FROM (SELECT order_id,
                 count(*) FILTER (WHERE verb IN ('place_order', 'reserve_order')) AS n,
                 max(user_id) FILTER (WHERE verb IN ('place_order', 'reserve_order')) AS user_id,
                 max((answer->>'expires_at')::timestamptz) FILTER (WHERE verb = 'reserve_order') AS expires_at,
                 max((answer->>'subtotal')::bigint) AS subtotal,
                 coalesce(max((answer->>'discount')::bigint) FILTER (WHERE verb IN ('place_order', 'pay_order')),
                          0) AS discount,
                 coalesce(max((answer->>'total')::bigint) FILTER (WHERE verb IN ('place_order', 'pay_order')),
                          max((answer->>'subtotal')::bigint)) AS total,
                 max((arguments->>'coupon_id')::bigint) AS coupon_id,
                 count(*) FILTER (WHERE verb = 'reserve_order') AS reserved,
                 count(*) FILTER (WHERE verb IN ('place_order', 'pay_order')) AS paid,
                 count(*) FILTER (WHERE verb = 'release_order') AS released,
                 count(*) FILTER (WHERE verb = 'cancel_order') AS cancelled,
                 count(*) FILTER (WHERE verb = 'refund_order') AS refunds,
                 coalesce(sum(amount) FILTER (WHERE verb = 'refund_order'), 0) AS refunded,
                 count(*) FILTER (WHERE verb = 'refund_order' AND answer->>'status' = 'refunded') AS last_refunds
          FROM storm.told
          WHERE is_effect AND verb LIKE '%\_order'
          GROUP BY order_id) o
    LEFT JOIN (SELECT order_id, bool_and(refunded = units) AS all_refunded
               FROM storm.line GROUP BY order_id) l USING (order_id)
    WITH NO DATA;

-- Those that a buyer ended, not the keeper: in the transaction of his own order.
CREATE MATERIALIZED VIEW storm.taken_back AS
    SELECT DISTINCT e.aggregateid::bigint AS order_id
    FROM shop.outbox e JOIN shop.outbox b ON b.xmin = e.xmin
    WHERE e.type = 'order.expired' AND b.type IN ('order.paid', 'order.reserved')
    WITH NO DATA;

CREATE MATERIALIZED VIEW storm.coupon AS
    SELECT (answer->>'coupon_id')::bigint AS coupon_id, (answer->>'campaign_id')::bigint AS campaign_id,
           user_id, (answer->>'expires_at')::timestamptz AS expires_at
    FROM storm.told WHERE is_effect AND verb = 'issue_coupon'
    WITH NO DATA;

CREATE MATERIALIZED VIEW storm.campaign AS
    SELECT (answer->>'campaign_id')::bigint AS campaign_id, arguments->>'name' AS name,
           (arguments->>'usage_limit')::bigint AS usage_limit,
           arguments->>'discount_type' AS discount_type, (arguments->>'discount_value')::bigint AS discount_value,
           (arguments->>'min_subtotal')::bigint AS min_subtotal, (arguments->>'max_discount')::bigint AS max_discount,
           (arguments->>'starts_at')::timestamptz AS starts_at, (arguments->>'ends_at')::timestamptz AS ends_at,
           coalesce(c.issued, 0) AS issued, coalesce(s.refused, 0) AS sold_out
    FROM storm.told
    LEFT JOIN (SELECT campaign_id, count(*) AS issued FROM storm.coupon GROUP BY campaign_id) c
           ON c.campaign_id = (answer->>'campaign_id')::bigint
    LEFT JOIN (SELECT (arguments->>'campaign_id')::bigint AS campaign_id, count(*) AS refused
               FROM storm.told WHERE outcome = 'coupon_sold_out' GROUP BY 1) s
           ON s.campaign_id = (answer->>'campaign_id')::bigint
    WHERE is_effect AND verb = 'create_coupon_campaign'
    WITH NO DATA;

-- A cancellation does not say what it gave back: all that was paid and not
-- refunded before.
CREATE VIEW storm.booked AS
    SELECT user_id, 'charge' AS kind, NULL::bigint AS order_id, amount, balance FROM storm.told
    WHERE is_effect AND verb = 'charge_points'
    UNION ALL
    SELECT user_id, 'use', NULL, amount, balance FROM storm.told
    WHERE is_effect AND verb = 'use_points'
    UNION ALL
    SELECT t.user_id, 'order', order_id, -o.total, balance FROM storm.told t JOIN storm.ordered o USING (order_id)
    WHERE is_effect AND verb IN ('place_order', 'pay_order') AND o.total > 0
    UNION ALL
    SELECT o.user_id, 'refund', order_id, amount, balance FROM storm.told t JOIN storm.ordered o USING (order_id)
    WHERE is_effect AND verb = 'refund_order' AND amount > 0
    UNION ALL
    SELECT o.user_id, 'cancel', order_id, o.total - o.refunded, balance
    FROM storm.told t JOIN storm.ordered o USING (order_id)
    WHERE is_effect AND verb = 'cancel_order' AND o.total > o.refunded;

-- Units that are neither in stock nor held: sold, and not put back by a
-- refund; of a cancelled order, those refunded before without being put back.
CREATE VIEW storm.moved AS
    SELECT p.product_id, p.units AS start, coalesce(r.units, 0) AS restocked,
           coalesce(l.sold, 0) AS sold, coalesce(l.held, 0) AS held
    FROM (SELECT product_id, units FROM storm.product
          UNION ALL
          SELECT (answer->>'product_id')::bigint, (arguments->>'stock')::bigint
          FROM storm.told WHERE is_effect AND verb = 'create_product') p
    LEFT JOIN (SELECT (arguments->>'product_id')::bigint AS product_id, sum((arguments->>'quantity')::bigint) AS units
               FROM storm.told WHERE is_effect AND verb = 'restock' GROUP BY 1) r USING (product_id)
    LEFT JOIN (SELECT product_id,
                      sum(CASE WHEN status IN ('paid', 'refunded') THEN units - l.restocked
                               WHEN status = 'cancelled' THEN l.refunded - l.restocked ELSE 0 END) AS sold,
                      sum(units) FILTER (WHERE status = 'reserved') AS held
               FROM storm.line l JOIN storm.ordered o USING (order_id) GROUP BY product_id) l USING (product_id);

-- An event a change, with what it must say.
CREATE VIEW storm.expected_event AS
    SELECT 'order.reserved' AS type, order_id::text AS id, concat_ws(' ', user_id, subtotal) AS says
    FROM storm.ordered WHERE reserved > 0
    UNION ALL
    SELECT 'order.paid', order_id::text, concat_ws(' ', user_id, total, coupon_id) FROM storm.ordered WHERE paid > 0
    UNION ALL
    SELECT 'order.released', order_id::text, user_id::text FROM storm.ordered WHERE status = 'released'
    UNION ALL
    SELECT 'order.expired', order_id::text, user_id::text FROM storm.ordered WHERE status = 'expired'
    UNION ALL
    SELECT 'order.cancelled', order_id::text, concat_ws(' ', user_id, total - refunded)
    FROM storm.ordered WHERE status = 'cancelled'
    UNION ALL
    SELECT 'order.refunded', order_id::text, concat_ws(' ', answer->>'refund_id', amount, answer->>'refunded')
    FROM storm.told WHERE is_effect AND verb = 'refund_order'
    UNION ALL
    SELECT 'coupon.issued', coupon_id::text, concat_ws(' ', campaign_id, user_id) FROM storm.coupon
    UNION ALL
    SELECT CASE verb WHEN 'charge_points' THEN 'points.charged' ELSE 'points.used' END, user_id::text,
           concat_ws(' ', answer->>'entry_id', amount, balance) FROM storm.told
    WHERE is_effect AND verb IN ('charge_points', 'use_points')
    UNION ALL
    SELECT arguments->>'type', arguments->>'aggregateid', answer->>'event_id' FROM storm.told
    WHERE is_effect AND verb = 'emit_event';

-- What the ledger has received, all types but the storm's own probes.
CREATE MATERIALIZED VIEW storm.arrived AS
    SELECT n, (event->>'id')::uuid AS event_id, event->>'type' AS type, event->>'subject' AS aggregateid,
           (event->>'time')::timestamptz AS occurred_at, event->'data' AS data
    FROM storm.received WHERE event->>'type' <> 'storm.probe'
    WITH NO DATA;

CREATE VIEW storm.received_event AS
    SELECT type, aggregateid AS id,
           CASE WHEN type = 'order.reserved' THEN concat_ws(' ', data->>'user_id', data->>'total')
                WHEN type = 'order.paid' THEN concat_ws(' ', data->>'user_id', data->>'total', data->>'coupon_id')
                WHEN type IN ('order.released', 'order.expired') THEN data->>'user_id'
                WHEN type = 'order.cancelled' THEN concat_ws(' ', data->>'user_id', data->>'amount')
                WHEN type = 'order.refunded' THEN concat_ws(' ', data->>'refund_id', data->>'amount', data->>'refunded')
                WHEN type = 'coupon.issued' THEN concat_ws(' ', data->>'campaign_id', data->>'user_id')
                WHEN type LIKE 'points.%' THEN concat_ws(' ', data->>'entry_id', data->>'amount', data->>'balance')
                ELSE event_id::text END AS says
    FROM storm.arrived;

-- The first arrivals at the remote endpoints, in their order.
CREATE MATERIALIZED VIEW storm.first_arrival AS
    SELECT endpoint, j.event_id::uuid AS event_id, min(n) AS n FROM storm.journal j GROUP BY 1, 2
    WITH NO DATA;
