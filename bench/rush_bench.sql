-- The database of the second part of bench/rush: the shop, and the tables of
-- those who issue coupons without it.

CREATE EXTENSION shop;
CREATE SCHEMA rush;

-- 1 has more coupons than can be issued; 2 is sold out by bench/rush.
SELECT shop.create_coupon_campaign('for all', 'fixed', 1000, 1000000000000, now() - interval '1 hour',
                                   now() + interval '30 days', valid_for => '7 days');
SELECT shop.create_coupon_campaign('for the first', 'fixed', 1000, :coupons, now() - interval '1 hour',
                                   now() + interval '30 days', valid_for => '7 days');

-- The same columns, indexes and storage parameters.
CREATE TABLE rush.plain_coupon (LIKE shop.coupon INCLUDING ALL) WITH (fillfactor = 90);
CREATE TABLE rush.coupon (LIKE shop.coupon INCLUDING ALL) WITH (fillfactor = 90);

-- A campaign as an application would keep it, with what is left in its row.
CREATE TABLE rush.campaign (
    campaign_id bigint PRIMARY KEY,
    remaining   bigint NOT NULL CHECK (remaining >= 0),
    starts_at   timestamptz NOT NULL,
    ends_at     timestamptz NOT NULL,
    valid_for   interval NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);
INSERT INTO rush.campaign
SELECT campaign_id, usage_limit, starts_at, ends_at, valid_for FROM shop.coupon_campaign WHERE campaign_id = 1;
