-- What somebody has added to the tables that are updated with every order.
\set ECHO none
\i sql/setup.inc
\set ECHO all
SELECT shop.create_product('Tea', 10, 1000) AS tea \gset
SELECT shop.create_product('Cup', 10, 1000) AS cup \gset
SELECT balance FROM shop.charge_points(1, 10000);
SELECT format('[{"product_id": %s, "quantity": 1}, {"product_id": %s, "quantity": 2}]', :tea, :cup) AS items \gset
CREATE VIEW public.books AS
    SELECT (SELECT balance FROM shop.account WHERE user_id = 1), (SELECT sum(on_hand) FROM shop.stock WHERE product_id = 1) AS tea,
           (SELECT sum(on_hand) FROM shop.stock WHERE product_id = 2) AS cups, (SELECT count(*) FROM shop.stock WHERE slot > 0) AS slots;

-- Triggers of every kind see every change, of a row once
CREATE TABLE public.seen (n bigint GENERATED ALWAYS AS IDENTITY, saw text);
CREATE FUNCTION public.see() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.seen (saw) VALUES (concat_ws(' ', TG_TABLE_NAME, TG_WHEN, TG_LEVEL,
        CASE WHEN TG_LEVEL = 'ROW' THEN coalesce((to_jsonb(OLD) ->> 'on_hand'), to_jsonb(OLD) ->> 'balance') || ' to '
                                     || coalesce((to_jsonb(NEW) ->> 'on_hand'), to_jsonb(NEW) ->> 'balance') END));
    RETURN NEW;
END $$;
CREATE TRIGGER see AFTER UPDATE ON shop.stock FOR EACH ROW EXECUTE FUNCTION public.see();
SELECT total FROM shop.place_order(1, :'items');
CREATE TRIGGER see_each BEFORE UPDATE ON shop.account FOR EACH ROW EXECUTE FUNCTION public.see();
CREATE TRIGGER see_all AFTER UPDATE ON shop.account REFERENCING NEW TABLE AS changed EXECUTE FUNCTION public.see();
SELECT total FROM shop.place_order(1, :'items');
SELECT balance FROM shop.use_points(1, 40, 'gift');
SELECT saw FROM public.seen ORDER BY n;
SELECT * FROM public.books;
-- and may have their way
CREATE FUNCTION public.veto() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not more than % at once', NEW.on_hand - OLD.on_hand; END $$;
CREATE TRIGGER veto BEFORE UPDATE ON shop.stock FOR EACH ROW WHEN (OLD.on_hand - NEW.on_hand > 5) EXECUTE FUNCTION public.veto();
SELECT total FROM shop.place_order(1, format('[{"product_id": %s, "quantity": 5}]', :tea)::jsonb);
SELECT refused(format($$ SELECT shop.place_order(1, '[{"product_id": %s, "quantity": 6}]') $$, :tea));
SELECT * FROM public.books;
DROP TRIGGER veto ON shop.stock;
DROP TRIGGER see ON shop.stock;
DROP TRIGGER see_each ON shop.account;
DROP TRIGGER see_all ON shop.account;
TRUNCATE public.seen;

-- Constraints
ALTER TABLE shop.stock ADD CONSTRAINT reserve CHECK (on_hand >= 900 OR product_id <> 1);
SELECT total FROM shop.place_order(1, format('[{"product_id": %s, "quantity": 93}]', :tea)::jsonb);
SELECT refused(format($$ SELECT shop.place_order(1, '[{"product_id": %s, "quantity": 1}]') $$, :tea));
ALTER TABLE shop.stock DROP CONSTRAINT reserve;
ALTER TABLE shop.account ADD CONSTRAINT deposit CHECK (balance >= 8600);
SELECT refused($$ SELECT shop.use_points(1, 500, 'gift') $$);
ALTER TABLE shop.account DROP CONSTRAINT deposit;
SELECT * FROM public.books;

-- Columns keep what they have, and those that are computed are
ALTER TABLE shop.stock ADD COLUMN shelf text, ADD COLUMN doubled bigint GENERATED ALWAYS AS (on_hand * 2) STORED;
UPDATE shop.stock SET shelf = 'B7';
SELECT total FROM shop.place_order(1, :'items');
SELECT product_id, slot, on_hand, shelf, doubled FROM shop.stock ORDER BY product_id, slot;
ALTER TABLE shop.stock DROP COLUMN doubled;
SELECT total FROM shop.place_order(1, :'items');
SELECT product_id, slot, on_hand, shelf FROM shop.stock ORDER BY product_id, slot;

-- Indexes find the new value, and no longer the old one
CREATE INDEX by_units ON shop.stock (on_hand);
CREATE INDEX scarce ON shop.stock ((on_hand % 100)) WHERE on_hand > 10;
SELECT total FROM shop.place_order(1, :'items');
SET enable_seqscan = off;
SELECT product_id, on_hand FROM shop.stock WHERE on_hand BETWEEN 1 AND 1000 ORDER BY on_hand;
SELECT product_id, on_hand FROM shop.stock WHERE on_hand % 100 > 0 AND on_hand > 10 ORDER BY on_hand % 100;
RESET enable_seqscan;

-- A publication without a way to tell rows apart stops every update
SET client_min_messages = error;
CREATE PUBLICATION everything FOR TABLE shop.account;
ALTER TABLE shop.account REPLICA IDENTITY NOTHING;
SELECT refused($$ SELECT shop.use_points(1, 10, 'gift') $$);
ALTER TABLE shop.account REPLICA IDENTITY DEFAULT;
SELECT balance FROM shop.use_points(1, 10, 'gift');
DROP PUBLICATION everything;
RESET client_min_messages;

-- Rules and forced row security are a statement's
CREATE RULE seen AS ON UPDATE TO shop.account DO ALSO INSERT INTO public.seen (saw) VALUES ('rule ' || NEW.balance);
SELECT balance FROM shop.use_points(1, 10, 'gift');
SELECT saw FROM public.seen;
DROP RULE seen ON shop.account;
SELECT * FROM public.books;
SELECT * FROM shop.verify();
DROP VIEW public.books;
DROP FUNCTION public.see, public.veto;
DROP TABLE public.seen;
