-- The database of most suites of bench/bench: the shop, with products and users,
-- and what other ways to place an order need.

CREATE EXTENSION shop;

-- 1,000 products for the orders of three lines, and one hot product for each
-- number of clients that fights over one: 1001, 1002, 1003.
SELECT count(shop.create_product('product ' || n, 100 + n % 900, 1000000000)) FROM generate_series(1, 1003) n;
SELECT count(shop.charge_points(n, 1000000000000)) FROM generate_series(1, 10000) n;

\ir peers.sql
