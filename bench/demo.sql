-- What bench/demo starts with: a small shop, always the same.
CREATE EXTENSION shop;
CREATE SCHEMA demo;

-- Products 1 to 19 have stock to spare; of product 20 there are 50.
SELECT shop.create_product(name, price, stock)
FROM (VALUES
    ('green tea, 100 g', 8900, 100000), ('coffee beans, 1 kg', 24000, 100000), ('honey, 500 g', 15000, 100000),
    ('rice, 10 kg', 38000, 100000), ('sesame oil', 12500, 100000), ('apples, 3 kg', 21000, 100000),
    ('dried seaweed, 10 sheets', 3900, 100000), ('noodles, 5 packs', 5200, 100000), ('olive oil', 17800, 100000),
    ('sea salt, 1 kg', 4300, 100000), ('dark chocolate', 6700, 100000), ('walnuts, 400 g', 11900, 100000),
    ('tea cup', 13000, 100000), ('tea pot', 42000, 100000), ('wooden spoon', 5900, 100000),
    ('kitchen knife', 67000, 100000), ('linen apron', 29000, 100000), ('cook book', 26500, 100000),
    ('gift box', 9900, 100000), ('limited edition mug', 19000, 50)) AS product (name, price, stock);

SELECT shop.create_endpoint('platform', 'function:shop.receive_event');

-- Every tenth of the 200 customers has little to spend.
SELECT count(shop.charge_points(user_id, CASE WHEN user_id % 10 = 0 THEN 100000 ELSE 10000000 END))
FROM generate_series(1, 200) AS user_id;

CREATE TABLE demo.answer (
    outcome text NOT NULL,
    at      timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE demo.repeated (order_id bigint, status text, total bigint, balance bigint, replayed boolean);

CREATE TABLE demo.coupon (outcome text NOT NULL, user_id bigint, coupon_id bigint);
