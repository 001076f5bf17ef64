-- The database of bench/storm: few products, few campaigns and few users, so
-- that everyone is in everyone's way; what the clients call; and the storm's
-- own record of what every call was told.

CREATE EXTENSION shop;
CREATE SCHEMA storm;

----------------------------------------------------------------------------
-- The record
----------------------------------------------------------------------------

-- What the callers know; a row is committed with the call it tells of, so it
-- survives a crash if and only if the effect of the call does.
CREATE TABLE storm.answer (
    at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    verb      text NOT NULL,
    outcome   text NOT NULL,
    arguments jsonb NOT NULL,
    answer    jsonb             -- the row that the verb returned, if it did
);

-- Every event the platform should get, exactly once even without its help.
CREATE TABLE storm.received (
    n     bigint GENERATED ALWAYS AS IDENTITY,
    event jsonb NOT NULL
);

CREATE FUNCTION storm.receive(event jsonb) RETURNS void
    LANGUAGE sql
    AS 'INSERT INTO storm.received (event) VALUES (event)';

-- Every verb the storm calls, and a statement that calls it with arguments
-- from a JSON object.
CREATE TABLE storm.verb (verb text PRIMARY KEY, statement text NOT NULL);

INSERT INTO storm.verb
SELECT p.proname,
       format('SELECT to_jsonb(r) FROM (SELECT * FROM shop.%I(%s)) r', p.proname,
              (SELECT string_agg(format('%I => ($1->>%L)::%s', p.proargnames[n], p.proargnames[n], type::regtype), ', ')
                 FROM unnest(p.proargtypes::oid[]) WITH ORDINALITY a(type, n)))
FROM pg_proc p
WHERE p.pronamespace = 'shop'::regnamespace
  AND p.proname IN ('place_order', 'try_place_order', 'reserve_order', 'pay_order', 'release_order', 'cancel_order',
                    'refund_order', 'create_coupon_campaign', 'issue_coupon', 'try_issue_coupon', 'charge_points',
                    'use_points', 'restock', 'set_price', 'set_product_status', 'emit_event', 'deliver_events',
                    'run_maintenance');

CREATE FUNCTION storm.condition(code text) RETURNS text
    LANGUAGE sql STABLE
    AS 'SELECT condition FROM shop.error_codes() WHERE sqlstate = code AND code LIKE ''SH%''';

-- Calls a verb, notes what it was told and returns the row, or NULL where it
-- was refused; anything but a refusal is raised.
CREATE FUNCTION storm.call(verb text, arguments jsonb) RETURNS jsonb
    LANGUAGE plpgsql
    AS $$
DECLARE
    statement text := (SELECT v.statement FROM storm.verb v WHERE v.verb = call.verb);
    outcome text;
    answer jsonb;
BEGIN
    BEGIN
        EXECUTE statement INTO STRICT answer USING arguments;
        outcome := coalesce(answer->>'outcome', 'ok');
    EXCEPTION WHEN OTHERS THEN
        outcome := storm.condition(SQLSTATE);
        IF outcome IS NULL THEN
            RAISE;
        END IF;
    END;
    INSERT INTO storm.answer (verb, outcome, arguments, answer) VALUES (verb, outcome, arguments, answer);
    RETURN answer;
END
$$;

----------------------------------------------------------------------------
-- What is sold, and to whom
----------------------------------------------------------------------------

-- Units of each product at the start: three are scarce, and the last one
-- costs nothing.
CREATE TABLE storm.product (product_id bigint PRIMARY KEY, units bigint NOT NULL);

INSERT INTO storm.product
SELECT shop.create_product('product ' || n, CASE WHEN n = 20 THEN 0 ELSE n * 10 END,
                           CASE WHEN n <= 3 THEN n * 20 ELSE 200000 END),
       CASE WHEN n <= 3 THEN n * 20 ELSE 200000 END
FROM generate_series(1, 20) n;

-- Users above 180 have no account until one of the clients charges it.
SELECT storm.call('charge_points', jsonb_build_object(
           'user_id', u, 'amount', CASE WHEN u % 10 = 0 THEN 1000 ELSE 100000 END))
FROM generate_series(1, 180) u;

-- Campaigns 1 to 8; more are opened in the course of the storm.  Strangers ask
-- for the third and the fourth, so that there are more takers than users; the
-- first one and the rush are sold out in any case.
SELECT storm.call('create_coupon_campaign', jsonb_build_object(
           'name', name, 'discount_type', type, 'discount_value', value, 'usage_limit', usage_limit,
           'starts_at', clock_timestamp() + starts, 'ends_at', clock_timestamp() + ends,
           'valid_for', valid_for, 'min_subtotal', min_subtotal, 'max_discount', max_discount))
FROM (VALUES
    (1, 'a few',         'fixed',   300,       10, interval '0',       interval '1 day',  NULL::interval, 0,   NULL),
    (2, 'most users',    'percent',  10,      150, interval '0',       interval '1 day',  NULL,           0,   1000),
    (3, 'strangers',     'percent',   5, 10000000, interval '0',       interval '1 day',  '1 hour',       0,   NULL),
    (4, 'rush',          'fixed',   100,       30, interval '0',       interval '1 day',  NULL,           0,   NULL),
    (5, 'tomorrow',      'fixed',   100,      100, interval '1 day',   interval '2 days', NULL,           0,   NULL),
    (6, 'yesterday',     'fixed',   100,      100, interval '-2 days', interval '-1 day', NULL,           0,   NULL),
    (7, 'soon over',     'fixed',   200,      500, interval '0',       interval '1 day',  '2 seconds',    0,   NULL),
    (8, 'large baskets', 'percent',  50,      500, interval '0',       interval '1 day',  NULL,           2000, NULL))
    AS c(n, name, type, value, usage_limit, starts, ends, valid_for, min_subtotal, max_discount)
ORDER BY n;

SELECT name FROM shop.create_endpoint('platform', 'function:shop.receive_event', options => '{"from_start": true}');
SELECT name FROM shop.create_endpoint('ledger', 'function:storm.receive', options => '{"from_start": true}');

----------------------------------------------------------------------------
-- What the clients call: the arguments of each verb, of a die or a seed
----------------------------------------------------------------------------

-- One basket a seed: 1 to 10 products, in any order; a few have a scarce one,
-- a product twice, or one that does not exist.
CREATE FUNCTION storm.basket(seed bigint) RETURNS jsonb
    LANGUAGE sql IMMUTABLE
    AS $$
    SELECT jsonb_agg(jsonb_build_object('product_id', p, 'quantity', 1 + abs(hashint8extended(p, seed + 1)) % 3)
                     ORDER BY hashint8extended(p, seed + 2))
    FROM (SELECT CASE WHEN seed % 4 = 0 AND n = 4 THEN 1 + seed / 4 % 3
                      WHEN seed % 50 = 3 AND n = 5 THEN 20
                      WHEN seed % 50 = 7 AND n = 5 THEN 999
                      ELSE n END AS p
          FROM generate_series(4, 20) n
          ORDER BY hashint8extended(n, seed) LIMIT 1 + seed % 10) chosen
    $$;

-- A scarce product, and in every other basket another one too.
CREATE FUNCTION storm.scarce_basket(seed bigint) RETURNS jsonb
    LANGUAGE sql IMMUTABLE
    AS $$
    SELECT jsonb_build_array(jsonb_build_object('product_id', 1 + seed % 3, 'quantity', 1 + seed / 3 % 2))
        || CASE WHEN seed / 6 % 2 = 0 THEN jsonb_build_array(
                    jsonb_build_object('product_id', 4 + seed / 12 % 16, 'quantity', 1))
                ELSE '[]' END
    $$;

-- The key of a call.  Of ten, four carry none; three one of their own; two
-- one that the user has used a short while ago, most likely with the same
-- arguments, which follow from the number `same`; and one is made by several
-- clients at the same moment.
CREATE FUNCTION storm.key(dice bigint, seed bigint, INOUT user_id bigint, OUT same bigint, OUT key text)
    LANGUAGE plpgsql
    AS $$
DECLARE
    tick bigint := extract(epoch FROM clock_timestamp()) * 5;
BEGIN
    IF dice <= 3 THEN
        key := 'own ' || seed;
    ELSIF dice <= 5 THEN
        key := 'again ' || tick / 10 || ' ' || seed % 5;
        same := abs(hashtextextended(key, user_id));
        IF seed % 10 = 0 THEN
            same := same + 1;
        END IF;
    ELSIF dice <= 6 THEN
        key := 'same ' || tick;
        same := abs(hashtextextended(key, 0));
        user_id := 1 + same % 200;
    END IF;
END
$$;

-- A coupon of the user: most likely the newest that is usable, else any of
-- his, or somebody else's.
CREATE FUNCTION storm.some_coupon(user_id bigint, seed bigint) RETURNS bigint
    LANGUAGE sql
    AS $$
    SELECT CASE WHEN seed % 40 = 1 THEN 1 + seed % 50
                ELSE (SELECT coupon_id FROM shop.user_coupons(user_id)
                      ORDER BY CASE WHEN seed % 4 = 0 THEN hashint8extended(coupon_id, seed)
                                    WHEN status = 'usable' THEN -coupon_id ELSE 0 END
                      LIMIT 1) END
    $$;

-- One of the user's first coupons, the same one every time.
CREATE FUNCTION storm.first_coupon(user_id bigint, seed bigint) RETURNS bigint
    LANGUAGE sql
    AS $$
    SELECT coupon_id FROM shop.coupon c WHERE c.user_id = first_coupon.user_id ORDER BY coupon_id OFFSET seed % 5 LIMIT 1
    $$;

-- One of the user's latest orders, in the state that is wanted if he has such;
-- few enough that several clients find the same.
CREATE FUNCTION storm.some_order(user_id bigint, wanted text, seed bigint) RETURNS bigint
    LANGUAGE sql
    AS $$
    SELECT coalesce((SELECT order_id FROM shop.order_history(user_id, NULL, 20)
                     WHERE seed % 100 > 0
                     ORDER BY status = wanted DESC, hashint8extended(order_id, seed % 3) LIMIT 1), 0)
    $$;

-- The user of one of the latest reservations.
CREATE FUNCTION storm.some_reserver(seed bigint) RETURNS bigint
    LANGUAGE sql
    AS $$
    SELECT coalesce((SELECT user_id FROM (SELECT * FROM shop.orders ORDER BY order_id DESC LIMIT 50) latest
                     WHERE status = 'reserved' AND expires_at > clock_timestamp()
                     ORDER BY hashint8extended(order_id, seed % 3) LIMIT 1), 1)
    $$;

CREATE FUNCTION storm.to_place(dice bigint, seed bigint, user_id bigint) RETURNS jsonb
    LANGUAGE plpgsql
    AS $$
DECLARE
    k record := storm.key(dice, seed, user_id);
    coupon_id bigint;
BEGIN
    IF k.same IS NOT NULL AND k.same % 4 = 0 THEN
        coupon_id := storm.first_coupon(k.user_id, k.same);
    ELSIF k.same IS NULL AND seed % 3 = 0 THEN
        coupon_id := storm.some_coupon(k.user_id, seed / 3);
    END IF;
    RETURN jsonb_build_object('user_id', k.user_id, 'items', storm.basket(coalesce(k.same, seed)), 'coupon_id', coupon_id,
                              'expected_total', CASE WHEN dice = 7 AND seed % 5 = 0 THEN 500 END, 'idempotency_key', k.key);
END
$$;

-- From 0.2 s to 10 s, more often short; a few for longer than any storm.
CREATE FUNCTION storm.to_reserve(dice bigint, seed bigint, user_id bigint) RETURNS jsonb
    LANGUAGE plpgsql
    AS $$
DECLARE
    k record := storm.key(dice, seed, user_id);
    n bigint := coalesce(k.same, seed);
BEGIN
    RETURN jsonb_build_object('user_id', k.user_id,
        'items', CASE WHEN n % 2 = 0 THEN storm.scarce_basket(n / 2) ELSE storm.basket(n) END,
        'expires_in', CASE WHEN n % 31 = 1 AND n % 2 = 1 THEN interval '1 day'
                           ELSE interval '0.2 s' + interval '9.8 s' * (n % 1000 / 1000.0::float8) ^ 2 END,
        'idempotency_key', k.key);
END
$$;

-- Every other order is paid with a key, which other arguments rarely come with.
CREATE FUNCTION storm.to_pay(seed bigint, user_id bigint) RETURNS jsonb
    LANGUAGE plpgsql
    AS $$
DECLARE
    wanted text := CASE WHEN seed % 20 < 14 THEN 'reserved' WHEN seed % 20 < 17 THEN 'expired'
                        WHEN seed % 20 < 19 THEN 'paid' ELSE 'any' END;
    order_id bigint := storm.some_order(user_id, wanted, seed / 20);
    key text := CASE WHEN order_id % 2 = 0 THEN 'pay ' || order_id END;
BEGIN
    RETURN jsonb_build_object('order_id', order_id, 'user_id', CASE WHEN seed % 50 = 1 THEN user_id + 1 ELSE user_id END,
        'coupon_id', CASE WHEN key IS NOT NULL AND order_id % 4 = 0 THEN storm.first_coupon(user_id, order_id)
                          WHEN key IS NULL AND seed % 3 = 0 THEN storm.some_coupon(user_id, seed / 3) END,
        'expected_total', CASE WHEN seed % 30 = 2 THEN 1 END, 'idempotency_key', key);
END
$$;

CREATE FUNCTION storm.to_release(seed bigint, user_id bigint) RETURNS jsonb
    LANGUAGE sql
    AS $$
    SELECT jsonb_build_object('order_id', storm.some_order(user_id, CASE WHEN seed % 10 < 6 THEN 'reserved'
                                                                         WHEN seed % 10 < 8 THEN 'released'
                                                                         ELSE 'any' END, seed / 10),
                              'user_id', CASE WHEN seed % 50 = 1 THEN user_id + 1 ELSE user_id END)
    $$;

CREATE FUNCTION storm.to_cancel(seed bigint, user_id bigint) RETURNS jsonb
    LANGUAGE sql
    AS $$
    SELECT jsonb_build_object('order_id', storm.some_order(user_id, CASE WHEN seed % 10 < 6 THEN 'paid'
                                                                         WHEN seed % 10 < 8 THEN 'cancelled'
                                                                         ELSE 'any' END, seed / 10),
                              'user_id', CASE WHEN seed % 50 = 1 THEN user_id + 1 WHEN seed % 3 = 0 THEN user_id END,
                              'reason', CASE WHEN seed % 2 = 0 THEN 'storm' END)
    $$;

-- Some units of an order: of ten, six are one unit of a line, two are all that
-- is left, one is more of every line than may be left, and one is more than
-- was ordered.
CREATE FUNCTION storm.part(order_id bigint, seed bigint) RETURNS jsonb
    LANGUAGE sql
    AS $$
    SELECT coalesce(jsonb_agg(jsonb_build_object('product_id', product_id, 'quantity', units)),
                    '[{"product_id": 1, "quantity": 1}]')
    FROM (SELECT l.product_id,
                 CASE WHEN seed % 10 < 6 THEN 1
                      WHEN seed % 10 < 8 THEN l.quantity - coalesce(r.quantity, 0)
                      WHEN seed % 10 < 9 THEN l.quantity
                      ELSE l.quantity + 1 END AS units
          FROM shop.order_line l
          LEFT JOIN LATERAL (SELECT sum(quantity) AS quantity FROM shop.refund_line
                             WHERE order_id = l.order_id AND product_id = l.product_id) r ON true
          WHERE l.order_id = part.order_id
          ORDER BY hashint8extended(l.product_id, seed) LIMIT CASE WHEN seed % 10 < 6 THEN 1 ELSE 100 END) x
    WHERE units > 0
    $$;

-- Every third order is refunded with keys, which come with the same units.
CREATE FUNCTION storm.to_refund(seed bigint, user_id bigint) RETURNS jsonb
    LANGUAGE plpgsql
    AS $$
DECLARE
    order_id bigint := storm.some_order(user_id, CASE WHEN seed % 10 < 9 THEN 'paid' ELSE 'any' END, seed / 10);
    key text := CASE WHEN order_id % 3 = 0 THEN 'refund ' || order_id || ' ' || seed % 2 END;
BEGIN
    RETURN jsonb_build_object('order_id', order_id,
        'items', storm.part(order_id, CASE WHEN key IS NULL THEN seed / 10 ELSE seed % 2 END),
        'reason', CASE WHEN order_id % 2 = 0 THEN 'storm' END, 'restock', order_id % 5 > 0 AND seed % 20 <> 1,
        'idempotency_key', key);
END
$$;

-- Of twenty, seven ask for the newest campaigns, and two are sure to be refused.
CREATE FUNCTION storm.to_issue(dice bigint, seed bigint, user_id bigint) RETURNS jsonb
    LANGUAGE plpgsql
    AS $$
DECLARE
    k record := storm.key(dice, seed, user_id);
    n bigint := coalesce(k.same, seed);
    newest bigint := (SELECT max(c.campaign_id) FROM shop.coupon_campaign c);
    campaign_id bigint := CASE WHEN n % 20 < 2 THEN 1 WHEN n % 20 < 3 THEN 2 WHEN n % 20 < 5 THEN 3 WHEN n % 20 < 9 THEN 4
                               WHEN n % 20 < 10 THEN 7 WHEN n % 20 < 11 THEN 8
                               WHEN n % 20 < 18 THEN newest - n / 20 % 2
                               ELSE (ARRAY[5, 6, 999999])[1 + n / 20 % 3] END;
BEGIN
    RETURN jsonb_build_object('campaign_id', campaign_id,
        'user_id', CASE WHEN campaign_id IN (3, 4) THEN 1000 + n / 20 % 50000 ELSE k.user_id END,
        'idempotency_key', k.key);
END
$$;

-- A new campaign every two seconds, opened by whoever comes first.
CREATE FUNCTION storm.to_open() RETURNS jsonb
    LANGUAGE plpgsql
    AS $$
DECLARE
    tick bigint := extract(epoch FROM clock_timestamp())::bigint / 2;
    dice bigint := abs(hashint8extended(tick, 0));
BEGIN
    RETURN jsonb_build_object('name', 'flash ' || tick,
        'discount_type', CASE WHEN dice % 2 = 0 THEN 'fixed' ELSE 'percent' END,
        'discount_value', 1 + dice % 100, 'usage_limit', 5 + dice / 2 % 40,
        'starts_at', to_timestamp(tick * 2 - 1),
        'ends_at', to_timestamp(tick * 2) + CASE WHEN dice % 3 = 0 THEN interval '5 s' ELSE interval '1 hour' END,
        'valid_for', CASE WHEN dice % 5 = 0 THEN interval '5 s' END,
        'min_subtotal', CASE WHEN dice % 7 = 0 THEN 500 ELSE 0 END,
        'max_discount', CASE WHEN dice % 2 = 1 THEN 800 END, 'idempotency_key', 'flash ' || tick);
END
$$;

CREATE FUNCTION storm.to_book(user_id bigint, amount bigint, key text DEFAULT NULL) RETURNS jsonb
    LANGUAGE sql
    AS $$ SELECT jsonb_build_object('user_id', user_id, 'amount', amount, 'idempotency_key', key) $$;

CREATE FUNCTION storm.to_restock(product_id bigint, quantity bigint, key text DEFAULT NULL) RETURNS jsonb
    LANGUAGE sql
    AS $$ SELECT jsonb_build_object('product_id', product_id, 'quantity', quantity, 'idempotency_key', key) $$;

-- One call of a verb that changes orders of the user, and of no other; so it
-- may follow, in one transaction, another that has locked no stock.
CREATE FUNCTION storm.any_call(dice bigint, seed bigint, user_id bigint) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF dice <= 2 THEN
        PERFORM storm.call('place_order', storm.to_place(8, seed, user_id));
    ELSIF dice <= 3 THEN
        PERFORM storm.call('try_place_order', storm.to_place(8, seed, user_id));
    ELSIF dice <= 5 THEN
        PERFORM storm.call('reserve_order', storm.to_reserve(8, seed, user_id));
    ELSIF dice <= 7 THEN
        PERFORM storm.call('pay_order', storm.to_pay(seed, user_id));
    ELSIF dice <= 8 THEN
        PERFORM storm.call('release_order', storm.to_release(seed, user_id));
    ELSIF dice <= 9 THEN
        PERFORM storm.call('cancel_order', storm.to_cancel(seed, user_id));
    ELSE
        PERFORM storm.call('refund_order', storm.to_refund(seed, user_id));
    END IF;
END
$$;

-- Reserves and pays in one go.
CREATE FUNCTION storm.check_out(seed bigint, user_id bigint) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    answer jsonb := storm.call('reserve_order', storm.to_reserve(8, seed, user_id));
BEGIN
    IF answer IS NOT NULL THEN
        PERFORM storm.call('pay_order', jsonb_build_object('order_id', answer->'order_id', 'user_id', user_id,
                                                           'coupon_id', storm.some_coupon(user_id, seed / 3)));
    END IF;
END
$$;

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

-- The record with what its rows have in common.  restock and
-- create_coupon_campaign do not say whether they answered by a key: all calls
-- of a key but one did.
CREATE MATERIALIZED VIEW storm.told AS
    SELECT at, scope AS verb, outcome, arguments, answer, key,
           (arguments->>'user_id')::bigint AS user_id,
           coalesce(answer->>'order_id', arguments->>'order_id')::bigint AS order_id,
           (answer->>'amount')::bigint AS amount,
           (answer->>'balance')::bigint AS balance,
           outcome = 'ok' AND NOT coalesce((answer->>'replayed')::boolean,
               key IS NOT NULL AND row_number() OVER (PARTITION BY scope, outcome, key ORDER BY at) > 1) AS is_effect
    FROM (SELECT *, regexp_replace(verb, '^try_', '') AS scope, arguments->>'idempotency_key' AS key FROM storm.answer) a
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
    FROM storm.product p
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
    FROM shop.received_events
    WHERE type <> 'storm.probe';
