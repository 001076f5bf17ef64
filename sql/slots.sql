-- Empty slots go, the units and slot 0 stay.
\set ECHO none
\i sql/setup.inc
\set ECHO all
SELECT shop.create_product('Tea', 10, 9) AS tea \gset
SELECT shop.create_product('Cup', 10, 0) AS cup \gset
SELECT balance FROM shop.charge_points(1, 1000);
BEGIN;
UPDATE shop.stock SET on_hand = 2 WHERE product_id = :tea;
INSERT INTO shop.stock (product_id, slot, on_hand) VALUES (:tea, 1, 3), (:tea, 5, 0), (:tea, 63, 4), (:cup, 7, 0);
COMMIT;
-- More than any one slot holds, and all there is
SELECT total FROM shop.place_order(1, format('[{"product_id": %s, "quantity": 9}]', :tea)::jsonb);
SELECT slot, on_hand FROM shop.stock WHERE product_id = :tea ORDER BY slot;
SELECT * FROM shop.verify();
SELECT slots_merged FROM shop.run_maintenance();
SELECT product_id, slot, on_hand FROM shop.stock ORDER BY product_id, slot;
SELECT slots_merged FROM shop.run_maintenance();
SELECT * FROM shop.verify();
-- A slot with a unit is no empty slot
SELECT shop.restock(:tea, 2);
BEGIN;
UPDATE shop.stock SET on_hand = 0 WHERE product_id = :tea AND slot = 0;
INSERT INTO shop.stock (product_id, slot, on_hand) VALUES (:tea, 2, 1), (:tea, 3, 0), (:tea, 4, 1);
COMMIT;
SELECT slots_merged FROM shop.run_maintenance();
SELECT slot, on_hand FROM shop.stock WHERE product_id = :tea ORDER BY slot;
SELECT available FROM shop.get_product(:tea);
SELECT refused(format('SELECT shop.place_order(1, ''[{"product_id": %s, "quantity": 3}]'')', :tea));
SELECT total FROM shop.place_order(1, format('[{"product_id": %s, "quantity": 2}]', :tea)::jsonb);
-- and what becomes of it after
SELECT shop.restock(:tea, 1);
SELECT slots_merged FROM shop.run_maintenance();
SELECT slot, on_hand FROM shop.stock WHERE product_id = :tea ORDER BY slot;
-- A product without its slot 0 is one that verify() tells of
BEGIN;
DELETE FROM shop.stock WHERE product_id = :cup;
SELECT invariant, subject FROM shop.verify() ORDER BY invariant COLLATE "C";
ROLLBACK;
-- A unit that came or went by no verb as well
BEGIN;
UPDATE shop.stock SET on_hand = on_hand + 1 WHERE product_id = :tea;
SELECT invariant, subject, detail FROM shop.verify();
ROLLBACK;
SELECT * FROM shop.verify();
