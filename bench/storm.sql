-- The database of bench/storm: few products and few users, so that everyone
-- is in everyone's way, and the storm's own record of what every call was told.

CREATE EXTENSION shop;
CREATE SCHEMA storm;

-- What the callers know; a row is committed with the call it tells of, so it
-- survives a crash if and only if the effect of the call does.
CREATE TABLE storm.answer (
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    verb       text NOT NULL,
    outcome    text NOT NULL DEFAULT 'ok',
    replayed   boolean,
    user_id    bigint,
    product_id bigint,
    order_id   bigint,
    amount     bigint,          -- points, or units
    balance    bigint,
    event_id   uuid,
    key        text,
    items      jsonb
);

-- Every event the platform should get, exactly once even without its help.
CREATE TABLE storm.received (
    n     bigint GENERATED ALWAYS AS IDENTITY,
    event jsonb NOT NULL
);

CREATE FUNCTION storm.receive(event jsonb) RETURNS void
    LANGUAGE sql
    AS 'INSERT INTO storm.received (event) VALUES (event)';

CREATE FUNCTION storm.condition(code text) RETURNS text
    LANGUAGE sql STABLE
    AS 'SELECT condition FROM shop.error_codes() WHERE sqlstate = code';

-- Units of each product at the start: three are nearly sold out, and the last
-- one costs nothing.
CREATE TABLE storm.product (product_id bigint PRIMARY KEY, units bigint NOT NULL);

INSERT INTO storm.product
SELECT shop.create_product('product ' || n, CASE WHEN n = 20 THEN 0 ELSE n * 10 END,
                           CASE WHEN n <= 3 THEN n * 20 ELSE 200000 END),
       CASE WHEN n <= 3 THEN n * 20 ELSE 200000 END
FROM generate_series(1, 20) n;

-- Users above 180 have no account until one of the clients charges it.
INSERT INTO storm.answer (verb, user_id, amount)
SELECT 'charge_points', user_id, amount
FROM generate_series(1, 180) u, LATERAL shop.charge_points(u, CASE WHEN u % 10 = 0 THEN 1000 ELSE 100000 END);

-- One basket a seed: 1 to 10 of the 20 products, in any order; a few have a
-- product twice, or one that does not exist.
CREATE FUNCTION storm.basket(seed bigint) RETURNS jsonb
    LANGUAGE sql IMMUTABLE
    AS $$
    SELECT jsonb_agg(jsonb_build_object('product_id', CASE WHEN seed % 200 = 7 AND p = 1 THEN 999 ELSE p END,
                                        'quantity', 1 + abs(hashint8extended(p, seed + 1)) % 3)
                     ORDER BY hashint8extended(p, seed + 2))
    FROM (SELECT CASE WHEN seed % 50 = 3 AND n = 1 THEN 20 ELSE n END AS p
          FROM generate_series(1, 20) n
          ORDER BY hashint8extended(n, seed) LIMIT 1 + seed % 10) chosen
    $$;

-- A call of place_order.  Of ten, four carry no key; three a key of their own;
-- two a key that the user has used a short while ago, most likely with the
-- same arguments; and one is made by several clients at the same moment.
CREATE FUNCTION storm.call(
    dice bigint, seed bigint, INOUT user_id bigint, OUT items jsonb, OUT expected_total bigint, OUT key text)
    LANGUAGE plpgsql
    AS $$
DECLARE
    tick bigint := extract(epoch FROM clock_timestamp()) * 20;
    other bigint := seed;
BEGIN
    IF dice <= 3 THEN
        key := 'own ' || seed;
    ELSIF dice <= 5 THEN
        key := 'again ' || tick / 40 || ' ' || seed % 5;
        other := abs(hashtextextended(key, user_id));
        IF seed % 25 = 0 THEN
            other := other + 1;
        END IF;
    ELSIF dice <= 6 THEN
        key := 'same ' || tick || ' ' || seed % 3;
        other := abs(hashtextextended(key, 0));
        user_id := 1 + other % 200;
    ELSIF dice = 7 AND seed % 5 = 0 THEN
        expected_total := 500;
    END IF;
    items := storm.basket(other);
END
$$;

CREATE FUNCTION storm.place_order(dice bigint, seed bigint, user_id bigint) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    c record;
    r record;
    refusal text;
BEGIN
    SELECT * INTO c FROM storm.call(dice, seed, user_id);
    BEGIN
        SELECT * INTO r FROM shop.place_order(c.user_id, c.items, NULL, c.expected_total, c.key);
    EXCEPTION WHEN OTHERS THEN
        refusal := storm.condition(SQLSTATE);
        IF refusal IS NULL OR SQLSTATE NOT LIKE 'SH%' THEN
            RAISE;
        END IF;
    END;
    IF refusal IS NULL THEN
        INSERT INTO storm.answer (verb, replayed, user_id, order_id, amount, balance, key, items)
        VALUES ('place_order', r.replayed, c.user_id, r.order_id, r.total, r.balance, c.key, c.items);
    ELSE
        INSERT INTO storm.answer (verb, outcome, user_id, key, items)
        VALUES ('place_order', refusal, c.user_id, c.key, c.items);
    END IF;
END
$$;

-- The other verbs that may refuse; a negative amount uses points.
CREATE FUNCTION storm.book_points(user_id bigint, points bigint, key text) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    r record;
    refusal text;
    verb text := CASE WHEN points > 0 THEN 'charge_points' ELSE 'use_points' END;
BEGIN
    BEGIN
        IF points > 0 THEN
            SELECT * INTO r FROM shop.charge_points(user_id, points, key);
        ELSE
            SELECT * INTO r FROM shop.use_points(user_id, -points, 'storm', key);
        END IF;
    EXCEPTION WHEN OTHERS THEN
        refusal := storm.condition(SQLSTATE);
        IF refusal IS NULL OR SQLSTATE NOT LIKE 'SH%' THEN
            RAISE;
        END IF;
    END;
    IF refusal IS NULL THEN
        INSERT INTO storm.answer (verb, replayed, user_id, amount, balance, key)
        VALUES (verb, r.replayed, user_id, r.amount, r.balance, key);
    ELSE
        INSERT INTO storm.answer (verb, outcome, user_id, key) VALUES (verb, refusal, user_id, key);
    END IF;
END
$$;

CREATE FUNCTION storm.restock(product_id bigint, units integer, key text) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    refusal text := 'ok';
BEGIN
    BEGIN
        PERFORM shop.restock(product_id, units, key);
    EXCEPTION WHEN OTHERS THEN
        refusal := storm.condition(SQLSTATE);
        IF refusal IS NULL OR SQLSTATE NOT LIKE 'SH%' THEN
            RAISE;
        END IF;
    END;
    INSERT INTO storm.answer (verb, outcome, product_id, amount, key)
    VALUES ('restock', refusal, product_id, units, key);
END
$$;

-- The record, each effect once: what was answered again by key is left out.
CREATE VIEW storm.placed AS
    SELECT order_id, user_id, amount AS total, items FROM storm.answer
    WHERE verb IN ('place_order', 'try_place_order') AND outcome = 'ok' AND NOT replayed;

CREATE VIEW storm.booked AS
    SELECT user_id, amount FROM storm.answer
    WHERE verb IN ('charge_points', 'use_points') AND outcome = 'ok' AND replayed IS NOT TRUE
    UNION ALL
    SELECT user_id, -total FROM storm.placed;

CREATE VIEW storm.restocked AS
    SELECT product_id, amount FROM storm.answer WHERE verb = 'restock' AND outcome = 'ok' AND key IS NULL
    UNION ALL
    (SELECT DISTINCT ON (key) product_id, amount FROM storm.answer
     WHERE verb = 'restock' AND outcome = 'ok' AND key IS NOT NULL);

CREATE VIEW storm.sold AS
    SELECT order_id, (i->>'product_id')::bigint AS product_id, sum((i->>'quantity')::bigint) AS units
    FROM storm.placed, jsonb_array_elements(items) i
    GROUP BY order_id, (i->>'product_id')::bigint;

SELECT name FROM shop.create_endpoint('platform', 'function:shop.receive_event', options => '{"from_start": true}');
SELECT name FROM shop.create_endpoint('ledger', 'function:storm.receive', options => '{"from_start": true}');
