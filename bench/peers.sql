-- Plain copies of the tables of the shop, for other ways to place an order, a
-- schema each: twin for a PL/pgSQL function, app for an application that sends
-- one statement after the other, pipeline for one that sends them at once,
-- floor for a single statement that checks nothing.

CREATE SCHEMA twin;
CREATE SCHEMA app;
CREATE SCHEMA pipeline;
CREATE SCHEMA floor;
CREATE SCHEMA bench;

-- The same columns, indexes, checks, storage parameters and rows.
DO $$
DECLARE
    peer text;
    name text;
    options text[];
    identity record;
BEGIN
    FOREACH peer IN ARRAY '{twin,app,pipeline,floor}'::text[] LOOP
        FOREACH name IN ARRAY '{product,stock,stock_movement,account,point_entry,orders,order_line,outbox}'::text[] LOOP
            EXECUTE format('CREATE TABLE %I.%I (LIKE shop.%I INCLUDING ALL)', peer, name, name);
            SELECT reloptions INTO options FROM pg_class WHERE oid = format('shop.%I', name)::regclass;
            IF options IS NOT NULL THEN
                EXECUTE format('ALTER TABLE %I.%I SET (%s)', peer, name, array_to_string(options, ', '));
            END IF;
            EXECUTE format('INSERT INTO %I.%I SELECT * FROM shop.%I', peer, name, name);
            FOR identity IN
                SELECT attname FROM pg_attribute
                WHERE attrelid = format('%I.%I', peer, name)::regclass AND attidentity <> ''
            LOOP
                EXECUTE format('SELECT setval(pg_get_serial_sequence(%L, %L), coalesce(max(%I), 0) + 1) FROM %I.%I',
                               format('%I.%I', peer, name), identity.attname, identity.attname, peer, name);
            END LOOP;
        END LOOP;
    END LOOP;
END
$$;

-- What place_order does, by hand: the same checks, the same rows, no statement
-- too many.  The debit is the lock on the account.
CREATE FUNCTION twin.place_order(
    p_user_id bigint, p_items jsonb, p_expected_total bigint DEFAULT NULL, p_key text DEFAULT NULL,
    OUT order_id bigint, OUT total bigint, OUT balance bigint)
    LANGUAGE plpgsql
    AS $$
#variable_conflict use_column
DECLARE
    v_order_id bigint;
    v_total bigint;
    v_balance bigint;
    v_products bigint[];
    v_quantities integer[];
    v_prices bigint[];
    v_lines integer[];
    v_json jsonb;
    v_known bigint;
    v_valid boolean;
    v_on_sale boolean;
    v_available boolean;
    v_now timestamptz := clock_timestamp();
BEGIN
    IF p_key IS NOT NULL THEN
        SELECT o.order_id, o.total, o.balance INTO v_order_id, v_total, v_balance
        FROM twin.orders o WHERE o.user_id = p_user_id AND o.idempotency_key = p_key;
        IF FOUND THEN
            order_id := v_order_id;
            total := v_total;
            balance := v_balance;
            RETURN;
        END IF;
    END IF;

    -- LIMIT keeps the planner from reading all products, for a hundred items.
    SELECT array_agg(i.product_id), array_agg(i.quantity), array_agg(p.price), array_agg(i.line_no),
           sum(p.price * i.quantity), count(p.price),
           bool_and(i.quantity > 0), bool_and(p.status = 'on_sale'), bool_and(s.on_hand >= i.quantity),
           jsonb_agg(jsonb_build_object('product_id', i.product_id, 'quantity', i.quantity, 'unit_price', p.price,
                                        'discount', 0, 'total', p.price * i.quantity) ORDER BY i.line_no)
    INTO v_products, v_quantities, v_prices, v_lines, v_total, v_known, v_valid, v_on_sale, v_available, v_json
    FROM (SELECT product_id, sum(quantity)::integer AS quantity, min(ordinality)::integer AS line_no
          FROM ROWS FROM (jsonb_to_recordset(p_items) AS (product_id bigint, quantity integer)) WITH ORDINALITY
          GROUP BY product_id ORDER BY product_id) i
    LEFT JOIN LATERAL (SELECT price, status FROM twin.product WHERE product_id = i.product_id LIMIT 1) p ON true
    LEFT JOIN LATERAL (SELECT on_hand FROM twin.stock
                       WHERE product_id = i.product_id AND location_id = 1 AND slot = 0 LIMIT 1) s ON true;
    IF v_valid IS NOT TRUE THEN
        RAISE EXCEPTION 'malformed items';
    ELSIF v_known <> cardinality(v_products) THEN
        RAISE EXCEPTION 'product does not exist';
    ELSIF NOT v_on_sale THEN
        RAISE EXCEPTION 'product is not on sale';
    ELSIF NOT v_available THEN
        RAISE EXCEPTION 'not enough units in stock';
    ELSIF v_total <> p_expected_total THEN
        RAISE EXCEPTION 'total differs from the expected total';
    END IF;

    UPDATE twin.account a SET balance = a.balance - v_total
    WHERE a.user_id = p_user_id AND a.balance >= v_total
    RETURNING a.balance INTO v_balance;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'not enough points';
    END IF;

    INSERT INTO twin.orders (user_id, status, subtotal, discount, total, balance, expected_total, created_at, paid_at,
                             idempotency_key)
    VALUES (p_user_id, 'paid', v_total, 0, v_total, v_balance, p_expected_total, v_now, v_now, p_key)
    RETURNING orders.order_id INTO v_order_id;

    INSERT INTO twin.point_entry (user_id, amount, balance, kind, order_id, created_at)
    VALUES (p_user_id, -v_total, v_balance, 'order', v_order_id, v_now);

    INSERT INTO twin.order_line (order_id, line_no, product_id, quantity, unit_price, discount)
    SELECT v_order_id, t.line_no, t.product_id, t.quantity, t.price, 0
    FROM unnest(v_lines, v_products, v_quantities, v_prices) t(line_no, product_id, quantity, price);

    INSERT INTO twin.outbox (type, aggregatetype, aggregateid, payload, created_at)
    VALUES ('order.paid', 'order', v_order_id::text,
            jsonb_build_object('order_id', v_order_id, 'user_id', p_user_id, 'status', 'paid', 'currency', 'KRW',
                               'subtotal', v_total, 'discount', 0, 'total', v_total, 'coupon_id', NULL,
                               'created_at', v_now, 'paid_at', v_now, 'lines', v_json),
            v_now);

    -- In the order of the products, so without deadlocks; quicker than one
    -- UPDATE of all of them, which would be planned anew each time.
    FOR i IN 1 .. cardinality(v_products) LOOP
        UPDATE twin.stock s SET on_hand = s.on_hand - v_quantities[i]
        WHERE s.product_id = v_products[i] AND s.location_id = 1 AND s.slot = 0 AND s.on_hand >= v_quantities[i];
        IF NOT FOUND THEN
            RAISE EXCEPTION 'not enough units in stock';
        END IF;
    END LOOP;

    order_id := v_order_id;
    total := v_total;
    balance := v_balance;
END
$$;

-- The sums that must hold for a peer, as verify() has them for the shop: a row
-- for every one that does not.
CREATE FUNCTION bench.broken(peer text) RETURNS TABLE (sum text, subject bigint)
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM set_config('search_path', quote_ident(peer), true);
    RETURN QUERY EXECUTE $check$
        SELECT 'stock = units put in - units sold', p.product_id
        FROM product p
        LEFT JOIN (SELECT product_id, sum(on_hand) AS units FROM stock GROUP BY product_id) s USING (product_id)
        LEFT JOIN (SELECT product_id, sum(quantity) AS units FROM stock_movement GROUP BY product_id) m USING (product_id)
        LEFT JOIN (SELECT product_id, sum(quantity) AS units FROM order_line GROUP BY product_id) l USING (product_id)
        WHERE s.units IS DISTINCT FROM coalesce(m.units, 0) - coalesce(l.units, 0)
        UNION ALL
        SELECT 'balance = sum of the ledger', a.user_id
        FROM account a
        LEFT JOIN (SELECT user_id, sum(amount) AS amount FROM point_entry GROUP BY user_id) e USING (user_id)
        WHERE a.balance IS DISTINCT FROM e.amount
        UNION ALL
        SELECT 'total = sum of the lines = ledger entry', o.order_id
        FROM orders o
        LEFT JOIN (SELECT order_id, sum(unit_price * quantity) AS total FROM order_line GROUP BY order_id) l USING (order_id)
        LEFT JOIN (SELECT order_id, sum(amount) AS amount, count(*) AS entries FROM point_entry
                   WHERE kind = 'order' GROUP BY order_id) e USING (order_id)
        WHERE o.total IS DISTINCT FROM l.total OR o.total IS DISTINCT FROM -e.amount OR e.entries <> 1
        UNION ALL
        SELECT 'one event an order', o.order_id
        FROM orders o
        FULL JOIN (SELECT aggregateid, count(*) AS events FROM outbox WHERE type = 'order.paid' GROUP BY aggregateid) e
            ON e.aggregateid = o.order_id::text
        WHERE e.events IS DISTINCT FROM 1 OR o.order_id IS NULL
        $check$;
END
$$;

-- Pages of a table, or a materialized view, of what it keeps outside of its rows,
-- and of its indexes; without the maps of free space, which a new table lacks.
CREATE FUNCTION bench.pages(relation regclass) RETURNS bigint
    LANGUAGE sql
    AS $$
    SELECT sum(pg_relation_size(r) / 8192)::bigint
    FROM (SELECT relation AS r
          UNION ALL SELECT reltoastrelid FROM pg_class WHERE oid = relation AND reltoastrelid <> 0
          UNION ALL SELECT indexrelid FROM pg_index
                    WHERE indrelid IN (SELECT unnest(ARRAY[oid, reltoastrelid]) FROM pg_class WHERE oid = relation)) x
$$;

-- How many times the size of a fresh copy is it?
CREATE FUNCTION bench.bloat(relation regclass) RETURNS numeric
    LANGUAGE plpgsql
    AS $$
DECLARE
    copied numeric;
    options text[] := (SELECT reloptions FROM pg_class WHERE oid = relation);
BEGIN
    EXECUTE format('CREATE TABLE bench.copy (LIKE %s INCLUDING ALL)', relation);
    IF options IS NOT NULL THEN
        EXECUTE format('ALTER TABLE bench.copy SET (%s)', array_to_string(options, ', '));
    END IF;
    EXECUTE format('INSERT INTO bench.copy SELECT * FROM %s', relation);
    copied := bench.pages('bench.copy');
    DROP TABLE bench.copy;
    RETURN bench.pages(relation) / copied;
END
$$;
