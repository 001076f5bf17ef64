-- A shop with a history: the database of suites popular and history.
-- Variable: orders, so many of one line each, up to four days ago; if there
-- are any, also 100,000 orders of the last three days, the same whatever the
-- number of the older ones.
--
-- The rows are written as place_order would have left them and the keeper would
-- have folded and cleared away their events, and must satisfy verify().

CREATE EXTENSION shop;

SELECT count(shop.create_product('product ' || n, 100 + n % 900, 1000000000)) FROM generate_series(1, 1000) n;
SELECT count(shop.charge_points(n, 1000000000000)) FROM generate_series(1, 10000) n;

SELECT now() AS now, CASE WHEN :orders > 0 THEN :orders + 100000 ELSE 0 END AS everything \gset

-- One user after the other buys.  What an order holds follows from how many
-- came after it.
CREATE TABLE paid AS
SELECT order_id, user_id, product_id, quantity, price, price * quantity AS total,
       (1000000000000 - sum(price * quantity) OVER (PARTITION BY user_id ORDER BY order_id))::bigint AS balance, at
FROM (SELECT n AS order_id, 1 + (n - 1) % 10000 AS user_id, 1 + (:everything - n) % 1000 AS product_id,
             (1 + (:everything - n) % 3)::integer AS quantity, 100 + (1 + (:everything - n) % 1000) % 900 AS price,
             CASE WHEN n > :orders
                  THEN timestamptz :'now' - interval '70 hours' * ((:everything - n) / 100000.0)
                  ELSE timestamptz :'now' - interval '4 days' - interval '1 second' * (:orders - n) END AS at
      FROM generate_series(1, :everything::bigint) n) o;

INSERT INTO shop.orders (order_id, user_id, subtotal, total, balance, created_at, paid_at, status)
SELECT order_id, user_id, total, total, balance, at, at, 'paid' FROM paid ORDER BY order_id;
INSERT INTO shop.order_line (order_id, product_id, unit_price, quantity, line_no)
SELECT order_id, product_id, price, quantity, 1 FROM paid ORDER BY order_id;
INSERT INTO shop.point_entry (user_id, amount, balance, order_id, created_at, kind)
SELECT user_id, -total, balance, order_id, at, 'order' FROM paid ORDER BY order_id;
INSERT INTO shop.product_sales (hour, product_id, quantity, revenue)
SELECT date_trunc('hour', at, 'UTC'), product_id, sum(quantity), sum(total) FROM paid GROUP BY 1, 2;
UPDATE shop.stock s SET on_hand = on_hand - p.units
FROM (SELECT product_id, sum(quantity) AS units FROM paid GROUP BY product_id) p WHERE p.product_id = s.product_id;
UPDATE shop.account a SET balance = p.balance
FROM (SELECT DISTINCT ON (user_id) user_id, balance FROM paid ORDER BY user_id, order_id DESC) p WHERE p.user_id = a.user_id;
SELECT setval('shop.orders_order_id_seq', :everything + 1, false);
INSERT INTO shop.outbox_cleared (created_upto, events) SELECT :'now', :everything WHERE :everything > 0;
DROP TABLE paid;
