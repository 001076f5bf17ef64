-- What bench/replay works with, loaded from CSV beforehand: the tables
-- products, users, orders and order_lines of schema replay.
-- Variables: stock of each product, points of each user, orders to place.
SET search_path = replay;

ANALYZE;

CREATE EXTENSION shop;
SELECT shop.create_endpoint('platform', 'function:shop.receive_event');

-- The shop numbers its products itself.
CREATE TABLE catalogue AS
SELECT product_id AS csv_id, price_minor AS price,
       shop.create_product(coalesce(nullif(name, ''), stock_code), price_minor, :stock) AS product_id
FROM (SELECT * FROM products ORDER BY product_id) p;
ALTER TABLE catalogue ADD PRIMARY KEY (csv_id);

SELECT count(shop.charge_points(user_id, :points, idempotency_key => 'opening-balance')) FROM users;

-- The orders to place, numbered without gaps, with what they should come to
-- at the prices of the catalogue.
CREATE TABLE todo AS
SELECT row_number() OVER (ORDER BY o.order_seq) AS seq, o.user_id, o.ordered_at, o.idempotency_key,
       l.items, l.units, l.total
FROM (SELECT * FROM orders ORDER BY order_seq LIMIT :orders) o
JOIN (SELECT order_seq, sum(qty)::bigint AS units, sum(qty * price)::bigint AS total,
             jsonb_agg(jsonb_build_object('product_id', c.product_id, 'quantity', qty)) AS items
      FROM order_lines JOIN catalogue c ON c.csv_id = order_lines.product_id
      GROUP BY order_seq) l USING (order_seq);
ALTER TABLE todo ADD PRIMARY KEY (seq);

CREATE TABLE todo_line AS
SELECT seq, (item ->> 'product_id')::bigint AS product_id, (item ->> 'quantity')::bigint AS quantity
FROM todo, jsonb_array_elements(items) AS item;

CREATE TABLE answer (
    pass     integer,
    seq      bigint,
    outcome  text NOT NULL,
    order_id bigint,
    total    bigint,
    balance  bigint,
    replayed boolean,
    at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (pass, seq)
);

-- What was sold in the first pass, by the answers and the CSV alone: the
-- checks compare it with what the shop's tables say.
CREATE VIEW accepted AS
SELECT t.*, a.order_id FROM todo t JOIN answer a USING (seq) WHERE a.pass = 1 AND a.outcome = 'ok';
CREATE VIEW accepted_line AS
SELECT l.*, a.ordered_at, a.user_id FROM accepted a JOIN todo_line l USING (seq);

-- One order in one transaction, at the time it was really placed.
CREATE FUNCTION place(pass integer, seq bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    o replay.todo;
BEGIN
    SELECT * INTO o FROM replay.todo t WHERE t.seq = place.seq;
    IF NOT FOUND THEN
        RETURN;             -- the streams are not all of the same length
    END IF;
    PERFORM set_config('shop.test_clock', o.ordered_at::text, true);
    INSERT INTO replay.answer (pass, seq, outcome, order_id, total, balance, replayed)
    SELECT place.pass, place.seq, r.outcome, r.order_id, r.total, r.balance, r.replayed
    FROM shop.try_place_order(o.user_id, o.items, idempotency_key => o.idempotency_key) r;
END
$$;

-- Rows and contents of a table, in any order.
CREATE FUNCTION checksum(name text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    result text;
BEGIN
    EXECUTE format('SELECT count(*) || chr(47) || coalesce(sum(hashtextextended(t::text, 0)), 0) FROM %s t', name)
    INTO result;
    RETURN result;
END
$$;

ANALYZE;
