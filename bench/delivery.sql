-- The database of bench/delivery: a shop, and what the bench writes down.

CREATE EXTENSION shop;
CREATE SCHEMA sample;

-- What a receiver got: when, in microseconds since 1970; the event's key and id.
CREATE UNLOGGED TABLE sample.arrival (at bigint, key text, id uuid);

-- When a client sent the statement that wrote an event, and had the answer.
CREATE UNLOGGED TABLE sample.call (key text, sent bigint, answered bigint);

-- As much as order.paid carries for an order of three lines.
CREATE FUNCTION sample.emit(key text, n bigint) RETURNS uuid
    LANGUAGE sql
    BEGIN ATOMIC
        SELECT shop.emit_event('sale.closed', 'sale', key, jsonb_build_object(
            'order_id', n, 'user_id', n % 10000, 'status', 'paid', 'currency', 'KRW', 'subtotal', 61000,
            'discount', 0, 'total', 61000, 'coupon_id', NULL, 'created_at', '2026-11-20T19:40:00.123456Z',
            'paid_at', '2026-11-20T19:40:00.123456Z', 'lines', jsonb_build_array(
                jsonb_build_object('product_id', 17, 'quantity', 2, 'unit_price', 4500, 'discount', 0, 'total', 9000),
                jsonb_build_object('product_id', 402, 'quantity', 1, 'unit_price', 32000, 'discount', 0, 'total', 32000),
                jsonb_build_object('product_id', 911, 'quantity', 2, 'unit_price', 10000, 'discount', 0, 'total', 20000))));
    END;

-- n events, of as many keys.
CREATE FUNCTION sample.backlog(events bigint, keys bigint) RETURNS bigint
    LANGUAGE sql
    BEGIN ATOMIC
        SELECT count(sample.emit((n % keys)::text, n)) FROM generate_series(1, events) n;
    END;

-- Events that the receiver has not got, or that it should not have.
CREATE VIEW sample.wrong AS
    SELECT o.id AS written, a.id AS received
    FROM (SELECT id FROM shop.outbox WHERE type = 'sale.closed') o
    FULL JOIN (SELECT DISTINCT id FROM sample.arrival) a USING (id)
    WHERE o.id IS NULL OR a.id IS NULL;
