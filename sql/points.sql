-- Points: accounts and their ledger.
\set ECHO none
\i sql/setup.inc
\set ECHO all
--
-- charge_points
--
SELECT shop.point_balance(1) AS no_account;
SELECT * FROM shop.charge_points(1, 1000);
SELECT * FROM shop.charge_points(user_id => 1, amount => 1);
SELECT shop.point_balance(1);
-- Users are the application's: any bigint
SELECT user_id, balance FROM shop.charge_points(0, 5);
SELECT user_id, balance FROM shop.charge_points(-9223372036854775808, 6);
SELECT user_id, balance FROM shop.charge_points(9223372036854775807, 7);
SELECT user_id, balance FROM shop.account ORDER BY user_id;
-- Bad input
SELECT * FROM refusal('SELECT shop.charge_points(1, 0)');
SELECT * FROM refusal('SELECT shop.charge_points(1, -5)');
SELECT * FROM refusal('SELECT shop.charge_points(1, -9223372036854775808)');
SELECT * FROM refusal('SELECT shop.charge_points(1, NULL)');
SELECT * FROM refusal('SELECT shop.charge_points(NULL, 1)');
-- The minimum
SET shop.min_charge = 500;
SELECT * FROM refusal('SELECT shop.charge_points(1, 499)');
SELECT balance FROM shop.charge_points(1, 500);
-- below 1 is bad input, not too little
SELECT refused('SELECT shop.charge_points(1, 0)');
RESET shop.min_charge;
-- The limit: 1000 + 1 + 500 = 1501 so far
SET shop.max_balance = 2000;
SELECT * FROM refusal('SELECT shop.charge_points(1, 500)');
SELECT balance FROM shop.charge_points(1, 499);
SELECT refused('SELECT shop.charge_points(1, 1)');
SELECT refused('SELECT shop.charge_points(1, 9223372036854775807)');
SELECT refused('SELECT shop.charge_points(22, 2001)');
SELECT shop.point_balance(22) AS still_no_account, count(*) FROM shop.account WHERE user_id = 22;
-- The minimum comes first
SET shop.min_charge = 3000;
SELECT refused('SELECT shop.charge_points(22, 2500)');
RESET shop.min_charge;
RESET shop.max_balance;
-- A balance above a limit that was lowered stays, and can be used
SET shop.max_balance = 100;
SELECT refused('SELECT shop.charge_points(1, 1)');
SELECT balance FROM shop.use_points(1, 100);
RESET shop.max_balance;
-- The largest balance there is: 10^15
SELECT balance FROM shop.charge_points(2, 999999999999999);
SELECT refused('SELECT shop.charge_points(2, 2)');
SELECT balance FROM shop.charge_points(2, 1);
SELECT refused('SELECT shop.charge_points(2, 9223372036854775807)');
SELECT shop.point_balance(2);

--
-- use_points: 1900 there are
--
SELECT * FROM shop.use_points(1, 900, 'gift');
SELECT * FROM shop.use_points(user_id => 1, amount => 1, reason => NULL);
SELECT * FROM refusal('SELECT shop.use_points(1, 1000)');
SELECT balance FROM shop.use_points(1, 999, '');
SELECT refused('SELECT shop.use_points(1, 1)');
SELECT shop.point_balance(1);
-- No account: short by all of it, and none is opened
SELECT refused('SELECT shop.use_points(77, 1)');
SELECT count(*) FROM shop.account WHERE user_id = 77;
SELECT refused('SELECT shop.use_points(1, 9223372036854775807)');
SELECT * FROM refusal('SELECT shop.use_points(1, 0)');
SELECT refused('SELECT shop.use_points(1, -1)');
SELECT refused('SELECT shop.use_points(1, -9223372036854775808)');
SELECT refused('SELECT shop.use_points(1, NULL)');
SELECT refused('SELECT shop.use_points(NULL, 1)');
SELECT * FROM refusal('SELECT shop.use_points(1, 1, repeat(''x'', 1001))');
SELECT balance FROM shop.charge_points(1, 10);
SELECT balance FROM shop.use_points(1, 1, repeat('x', 1000));
-- shop.min_charge is for charges
SET shop.min_charge = 500;
SELECT balance FROM shop.use_points(1, 1);
RESET shop.min_charge;

--
-- point_history: newest first, every entry with the balance after it
--
SET shop.test_clock = '2026-11-20 10:00:00.000001+00';
SELECT entry_id FROM shop.charge_points(3, 100) \gset first_
SELECT balance FROM shop.use_points(3, 30, 'first');
SET shop.test_clock = '2026-11-20 10:00:00.000002+00';
SELECT entry_id FROM shop.use_points(3, 20, E'line\n"two"') \gset third_
SELECT balance FROM shop.charge_points(3, 5);
RESET shop.test_clock;
SELECT amount, balance, kind, reason, order_id, created_at FROM shop.point_history(3);
SELECT sum(amount) = shop.point_balance(3) AS adds_up FROM shop.point_history(3);
-- Pages: before is exclusive
SELECT amount FROM shop.point_history(3, "limit" => 2);
SELECT amount FROM shop.point_history(3, before => :third_entry_id, "limit" => 2);
SELECT amount FROM shop.point_history(3, :first_entry_id, 2);
SELECT amount FROM shop.point_history(3, NULL, 1);
SELECT count(*) FROM shop.point_history(3, NULL, NULL);
SELECT count(*) FROM shop.point_history(3, 9223372036854775807, 1000);
SELECT count(*) FROM shop.point_history(3, -1);
SELECT count(*) FROM shop.point_history(4711);
SELECT * FROM refusal('SELECT shop.point_history(3, NULL, 0)');
SELECT * FROM refusal('SELECT shop.point_history(3, NULL, 1001)');
SELECT refused('SELECT shop.point_history(3, NULL, -1)');
SELECT refused('SELECT shop.point_history(NULL)');
SELECT refused('SELECT shop.point_balance(NULL)');
-- Fifty unless told otherwise
SELECT count(e.balance) FROM generate_series(1, 60) n, shop.charge_points(4, n) e;
SELECT count(*), min(amount), max(amount) FROM shop.point_history(4);

--
-- Isolation levels, savepoints, read-only transactions
--
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT balance FROM shop.charge_points(5, 10);
SELECT balance FROM shop.charge_points(5, 10);
SELECT balance FROM shop.use_points(5, 15);
SELECT shop.point_balance(5);
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT balance FROM shop.charge_points(6, 10);
SAVEPOINT s;
SELECT balance FROM shop.charge_points(6, 10);
SELECT shop.use_points(6, 21);
ROLLBACK TO s;
SELECT balance FROM shop.use_points(6, 5);
SELECT amount, balance FROM shop.point_history(6);
COMMIT;
SELECT shop.point_balance(6);
BEGIN READ ONLY;
SELECT shop.point_balance(6);
SELECT count(*) FROM shop.point_history(6);
SELECT * FROM refusal('SELECT shop.charge_points(6, 10)');
SELECT * FROM refusal('SELECT shop.use_points(6, 1)');
-- Even a call that could only be refused or repeated
SELECT refused('SELECT shop.use_points(6, 1000)');
COMMIT;
-- A rolled back charge opens no account
BEGIN;
SELECT balance FROM shop.charge_points(88, 10);
ROLLBACK;
SELECT count(*) FROM shop.account WHERE user_id = 88;
SELECT balance FROM shop.charge_points(88, 10);
SELECT * FROM shop.verify();
