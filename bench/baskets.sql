-- The database of suite baskets: the baskets of a real shop, loaded from CSV
-- beforehand (tables products, users, orders and order_lines of schema baskets),
-- for the shop and its peers.

CREATE EXTENSION shop;

-- The shop numbers its products itself.
CREATE TABLE baskets.catalogue AS
SELECT product_id AS csv_id, price_minor AS price,
       shop.create_product(coalesce(nullif(name, ''), stock_code), price_minor, 1000000000000) AS product_id
FROM (SELECT * FROM baskets.products ORDER BY product_id) p;
ALTER TABLE baskets.catalogue ADD PRIMARY KEY (csv_id);
SELECT count(shop.charge_points(user_id, 1000000000000000)) FROM baskets.users;
ANALYZE;

-- items is what a caller sends; lines and total are what only the bare
-- statement is given.
CREATE TABLE baskets.basket AS
SELECT row_number() OVER (ORDER BY order_seq) AS basket_id, o.user_id, l.items, l.lines, l.total
FROM baskets.orders o
JOIN (SELECT order_seq, sum(qty * price)::bigint AS total,
             jsonb_agg(jsonb_build_object('product_id', c.product_id, 'quantity', qty)) AS items,
             jsonb_agg(jsonb_build_object('product_id', c.product_id, 'quantity', qty, 'price', price) ORDER BY c.product_id) AS lines
      FROM baskets.order_lines l JOIN baskets.catalogue c ON c.csv_id = l.product_id
      GROUP BY order_seq) l USING (order_seq);
ALTER TABLE baskets.basket ADD PRIMARY KEY (basket_id);

\ir peers.sql
