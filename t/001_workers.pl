# The workers on a server that has the library preloaded: they come up by
# themselves, deliver what commits at once, refresh the popular products, come
# back after they were ended, and leave when they are told to.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use ShopTest;
use Test::More;

# The timer behind deadlock_timeout wakes a process that has waited for a lock,
# which would hide it if that has lost what it should be woken by.
my $node = new_server('workers', settings => [ 'max_prepared_transactions = 10', q{deadlock_timeout = '30s'} ]);
$node->start;

# What the data platform of a database has of an order.
sub received
{
	my ($order_id) = @_;
	return "EXISTS (SELECT FROM shop.received_events WHERE type = 'order.paid' AND aggregateid = '$order_id')";
}

# Every paid order has exactly one event at the platform.
my $all_received = q{NOT EXISTS
	(SELECT FROM shop.orders o
	   FULL JOIN (SELECT aggregateid, count(*) AS n FROM shop.received_events
	               WHERE type = 'order.paid' GROUP BY 1) r ON r.aggregateid = o.order_id::text
	  WHERE r.n IS DISTINCT FROM 1 OR o.order_id IS NULL)};

sub set_system
{
	my ($name, $value) = @_;
	$node->safe_psql('postgres', "ALTER SYSTEM SET $name = $value");
	$node->reload;
	return;
}

#
# Start
#

open_shop($node, 'shopdb');
within(
	$node, 'shopdb', 5,
	q{count(*) = 3 FROM shop.workers WHERE pid IS NOT NULL AND state IN ('idle', 'running')},
	'CREATE EXTENSION starts the workers');
is( value(
		$node, 'shopdb', q{
		SELECT kind, backend_type, datname FROM shop.workers JOIN pg_stat_activity USING (pid) ORDER BY kind}),
	"keeper|shop keeper|shopdb\nlauncher|shop launcher|\nrelay|shop relay|shopdb",
	'pg_stat_activity shows them');
within($node, 'shopdb', 5, q{bool_and(last_cycle_at > now() - interval '1 minute') FROM shop.workers},
	'all of them have run a cycle');
is(value($node, 'shopdb', 'SELECT count(last_error) FROM shop.workers'), '0', 'none has met an error');

#
# Delivery is prompt: woken by the commit, not found by the relay's poll
#

for (1 .. 20)
{
	my $order = order($node, 'shopdb', $_);
	$node->poll_query_until('shopdb', 'SELECT ' . received($order)) or die 'event lost';
}
is( value(
		$node, 'shopdb', q{
		SELECT count(*), max(received_at - occurred_at) < interval '2 s', avg(received_at - occurred_at) < interval '0.5 s'
		  FROM shop.received_events WHERE type = 'order.paid'}),
	'20|t|t', 'each of 20 single orders arrives at once');

within(
	$node, 'shopdb', 5,
	q{count(*) = 0 FROM pg_stat_activity
	   WHERE backend_type LIKE 'shop %' AND (xact_start IS NOT NULL OR backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)},
	'an idle worker holds no transaction');

my $before = value($node, 'shopdb', 'SELECT count(*) FROM shop.received_events');
$node->safe_psql('shopdb',
	q{BEGIN; SELECT shop.place_order(1, '[{"product_id": 1, "quantity": 1}]'); ROLLBACK;
	  BEGIN; SAVEPOINT s; SELECT shop.place_order(1, '[{"product_id": 1, "quantity": 1}]'); ROLLBACK TO s; COMMIT;});
my $order = order($node, 'shopdb');
within($node, 'shopdb', 2, received($order), 'an event after a rollback arrives');
is(value($node, 'shopdb', 'SELECT count(*) FROM shop.received_events'), $before + 1, 'what is rolled back sends nothing');

#
# Numbers that are drawn early and committed late
#

my $session = open_session($node, 'shopdb');
my $late = in_session($session,
	q{BEGIN; SELECT order_id FROM shop.place_order(2, '[{"product_id": 2, "quantity": 1}]')});
$order = order($node, 'shopdb');
within($node, 'shopdb', 2, received($order), 'an open transaction does not hold up a later event');
# The relay goes over the hole more than once.
for (1 .. 3)
{
	$order = order($node, 'shopdb');
	$node->poll_query_until('shopdb', 'SELECT ' . received($order)) or die 'event lost';
}
in_session($session, 'COMMIT');
end_session($session);
within($node, 'shopdb', 2, received($late), 'what commits late arrives at once');

my $prepared = value($node, 'shopdb',
	q{BEGIN; SELECT order_id FROM shop.place_order(3, '[{"product_id": 3, "quantity": 1}]');
	  PREPARE TRANSACTION 'order'});
$order = order($node, 'shopdb');
within($node, 'shopdb', 2, received($order), 'a prepared transaction does not hold up a later event');
is(value($node, 'shopdb', 'SELECT ' . received($prepared)), 'f', 'a prepared transaction has sent nothing');
$node->safe_psql('shopdb', q{COMMIT PREPARED 'order'});
within($node, 'shopdb', 10, received($prepared), 'the event of a prepared transaction arrives');

$node->safe_psql('shopdb',
	q{BEGIN; SELECT shop.place_order(3, '[{"product_id": 3, "quantity": 1}]'); PREPARE TRANSACTION 'order';
	  ROLLBACK PREPARED 'order'});
within(
	$node, 'shopdb', 15,
	q{NOT EXISTS (SELECT FROM unnest((SELECT '{(,)}'::int8multirange - acked FROM shop.endpoint WHERE name = 'platform')) gap
	              WHERE NOT upper_inf(gap))},
	'the holes of what was rolled back close');

#
# The popular products
#

set_system('shop.popular_interval', 1);
order($node, 'shopdb', 7) for 1 .. 3;
within($node, 'shopdb', 5, q{quantity = 4 FROM shop.popular_products WHERE product_id = 7},
	'the keeper refreshes the popular products, every second by now');
order($node, 'shopdb', 8) for 1 .. 6;
within($node, 'shopdb', 5, q{quantity = 7 FROM shop.popular_products WHERE product_id = 8}, 'and goes on doing so');

my ($refreshed, $cycle) = split /\|/,
  value($node, 'shopdb', q{
	SELECT (SELECT coalesce(max(refreshed_at), 'epoch') FROM shop.popular_products),
	       (SELECT last_cycle_at FROM shop.workers WHERE kind = 'keeper')});
within($node, 'shopdb', 5, qq{last_cycle_at > '$cycle'::timestamptz + interval '2 s' FROM shop.workers WHERE kind = 'keeper'},
	'the keeper keeps its new interval');
is( value(
		$node, 'shopdb', qq{
		SELECT max(refreshed_at) = '$refreshed' OR date_trunc('hour', now()) <> date_trunc('hour', '$refreshed'::timestamptz)
		  FROM shop.popular_products}),
	't', 'it does not refresh when nothing was sold');
set_system('shop.popular_interval', 3);

# A refresh changes the view's row in pg_class, as GRANT does.
$node->safe_psql('shopdb', 'CREATE ROLE reader');
$session = open_session($node, 'shopdb');
my $granter = open_session($node, 'shopdb');
in_session($session, 'BEGIN; SELECT shop.refresh_popular_products()');
$granter->{in} .= "SELECT shop.grant_access('reader', 'read');\n";
$granter->{harness}->pump_nb;
$node->poll_query_until('shopdb', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE '%grant_access%' AND wait_event_type = 'Lock'})
  or die;
in_session($session, 'COMMIT');
end_session($session);
end_session($granter);
is(value($node, 'shopdb', q{SELECT has_table_privilege('reader', 'shop.popular_products', 'SELECT')}), 't',
	'a role can be given access during a refresh');

#
# Whoever ends comes back
#

for my $kind (qw(relay keeper launcher))
{
	my $pid = worker_pid($node, 'shopdb', $kind);
	is(value($node, 'shopdb', "SELECT pg_terminate_backend($pid, 5000)"), 't', "the $kind can be terminated");
	within($node, 'shopdb', 5,
		"pid <> $pid AND pid IN (SELECT pid FROM pg_stat_activity) FROM shop.workers WHERE kind = '$kind'",
		"the $kind is back");
	$order = order($node, 'shopdb', 9);
	within($node, 'shopdb', 2, received($order), "delivery goes on after the $kind was ended");
}

my $relay = worker_pid($node, 'shopdb', 'relay');
is(value($node, 'shopdb', "SELECT pg_cancel_backend($relay)"), 't', 'the relay can be cancelled');
$order = order($node, 'shopdb', 9);
within($node, 'shopdb', 5, received($order), 'delivery goes on after that');

#
# Endpoints that fail
#

$node->safe_psql(
	'shopdb', q{
	CREATE SEQUENCE calls;
	CREATE TABLE flaky_events (n serial, id uuid PRIMARY KEY, key text);
	CREATE TABLE poison (key text);
	CREATE FUNCTION flaky(event jsonb) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		IF EXISTS (SELECT FROM public.poison WHERE key = event->>'subject') THEN
			PERFORM nextval('public.calls');
			RAISE EXCEPTION 'cannot take %', event->>'subject';
		END IF;
		INSERT INTO public.flaky_events (id, key) VALUES ((event->>'id')::uuid, event->>'subject');
	END $$;
	INSERT INTO poison VALUES ('bad');
	SELECT shop.create_endpoint('flaky', 'function:public.flaky', '{test.*}',
	                            options => '{"max_attempts": 3, "backoff": 100, "max_backoff": 200}');
	SELECT shop.create_endpoint('patient', 'function:public.flaky', '{patient.*}',
	                            options => '{"max_attempts": 1000, "backoff": 100, "max_backoff": 200}');
});
$node->poll_query_until('shopdb', q{SELECT pid IS NOT NULL FROM shop.workers WHERE kind = 'relay'}) or die;
$relay = worker_pid($node, 'shopdb', 'relay');

$node->safe_psql('shopdb', q{SELECT shop.emit_event('test.a', 'test', 'bad', '{"n": 1}')});
within($node, 'shopdb', 10, q{count(*) = 1 FROM shop.dead_letters WHERE endpoint = 'flaky'},
	'what cannot be delivered ends as a dead letter');
is(value($node, 'shopdb', q{SELECT attempts, last_error FROM shop.dead_letters}),
	'3|P0001: cannot take bad', 'after as many tries as the options say');
is(value($node, 'shopdb', 'SELECT last_value FROM calls'), '3', 'each of them a call of the target');

$node->safe_psql(
	'shopdb', q{
	SELECT shop.emit_event('test.b', 'test', 'bad', '{"n": 2}');
	SELECT shop.emit_event('test.c', 'test', 'good', '{}');
	SELECT shop.emit_event('test.d', 'test', 'bad', '{"n": 3}');
});
within($node, 'shopdb', 2, q{count(*) = 1 FROM flaky_events WHERE key = 'good'}, 'a failing key does not hold up another');
within($node, 'shopdb', 2, q{count(*) = 4 FROM shop.received_events WHERE type LIKE 'test.%'},
	'a failing endpoint does not hold up another');
within($node, 'shopdb', 10, q{count(*) = 3 FROM shop.dead_letters WHERE endpoint = 'flaky'},
	'events that queued behind a dead letter are tried after it');
is(value($node, 'shopdb', q{SELECT dead, retrying, pending FROM shop.outbox_metrics() WHERE endpoint = 'flaky'}),
	'3|0|0', 'outbox_metrics() counts them');

$node->safe_psql('shopdb', q{SELECT shop.emit_event('patient.' || n, 'test', 'bad', '{}') FROM generate_series(1, 5) n});
within($node, 'shopdb', 5, q{retrying = 5 FROM shop.outbox_metrics() WHERE endpoint = 'patient'},
	'a failed event waits for its retry, those of its key behind it');
$node->safe_psql('shopdb', 'DELETE FROM poison');
within($node, 'shopdb', 5, q{count(*) = 5 FROM flaky_events WHERE key = 'bad'}, 'a retry delivers them once the target is well');
is( value(
		$node, 'shopdb',
		q{SELECT string_agg(o.type, ' ' ORDER BY f.n) FROM flaky_events f JOIN shop.outbox o USING (id) WHERE f.key = 'bad'}),
	'patient.1 patient.2 patient.3 patient.4 patient.5',
	'in their order');

my $dead = value($node, 'shopdb', q{SELECT event_id FROM shop.dead_letters WHERE type = 'test.b'});
is(value($node, 'shopdb', qq{SELECT shop.redrive('flaky', '$dead')}), '1', 'a dead letter can be sent again');
within($node, 'shopdb', 2, qq{count(*) = 1 FROM flaky_events WHERE id = '$dead'}, 'and arrives under its old id');
is(value($node, 'shopdb', q{SELECT shop.redrive_all('flaky')}), '2', 'so can all the others');
within($node, 'shopdb', 2, q{count(*) = 8 FROM flaky_events WHERE key = 'bad'}, 'which arrive');
is(value($node, 'shopdb', 'SELECT count(*) FROM shop.dead_letters'), '0', 'then there is no dead letter');

# Many bad keys among many good ones, at an endpoint with a long back-off.
$node->safe_psql(
	'shopdb', q{
	INSERT INTO poison SELECT 'bad ' || n FROM generate_series(10, 400, 10) n;
	TRUNCATE flaky_events;
	SELECT shop.create_endpoint('slow', 'function:public.flaky', '{slow.*}', options => '{"backoff": 60000}');
	SELECT shop.emit_event('slow.a', 'test', CASE WHEN n % 10 = 0 THEN 'bad ' ELSE 'good ' END || n, '{}')
	  FROM generate_series(1, 400) n;
});
within($node, 'shopdb', 4, q{count(*) = 360 FROM flaky_events}, 'forty failing keys do not hold up the others');
within($node, 'shopdb', 4, q{retrying = 40 FROM shop.outbox_metrics() WHERE endpoint = 'slow'}, 'and wait for their retries');
is(worker_pid($node, 'shopdb', 'relay'), $relay, 'the relay survives failing endpoints');

# An endpoint that takes nothing at all.
$node->safe_psql(
	'shopdb', q{
	CREATE FUNCTION broken(event jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM 1 / 0; END $$;
	SELECT shop.create_endpoint('broken', 'function:public.broken', options => '{"backoff": 100, "max_backoff": 1000}');
	TRUNCATE flaky_events;
	SELECT shop.emit_event('test.f', 'test', 'key ' || n, '{}') FROM generate_series(1, 200) n;
});
within($node, 'shopdb', 4, q{count(*) = 200 FROM flaky_events WHERE key LIKE 'key %'}, 'an endpoint that takes nothing holds up no other');
within($node, 'shopdb', 2, q{state = 'failing' AND last_error LIKE '22012%' FROM shop.endpoints WHERE name = 'broken'},
	'it is shown as failing');
$order = order($node, 'shopdb', 4);
within($node, 'shopdb', 2, received($order), 'new orders arrive while it fails');
$node->safe_psql('shopdb',
	q{CREATE OR REPLACE FUNCTION broken(event jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN END $$});
within($node, 'shopdb', 10, q{retrying = 0 AND pending = 0 FROM shop.outbox_metrics() WHERE endpoint = 'broken'},
	'once it is well, it gets all it has missed');
is(value($node, 'shopdb', q{SELECT delivered_total FROM shop.endpoints WHERE name = 'broken'}), '201', 'each event once');

is( value(
		$node, 'shopdb',
		q{SELECT state, pause_reason FROM shop.pause_endpoint('flaky')})
	, 'paused|paused by ' . value($node, 'shopdb', 'SELECT current_user'), 'an endpoint can be paused');
$node->safe_psql('shopdb', q{TRUNCATE flaky_events; SELECT shop.emit_event('test.g', 'test', 'key', '{}')});
within($node, 'shopdb', 2, q{count(*) = 1 FROM shop.received_events WHERE type = 'test.g'}, 'the others go on');
is(value($node, 'shopdb', 'SELECT count(*) FROM flaky_events'), '0', 'a paused endpoint gets nothing');
$node->safe_psql('shopdb', q{SELECT shop.resume_endpoint('flaky')});
within($node, 'shopdb', 2, 'count(*) = 1 FROM flaky_events', 'a resumed endpoint gets what it has missed, at once');

# What waits inside the relay must not eat what wakes it.
$node->safe_psql(
	'shopdb', q{
	CREATE TABLE gate ();
	CREATE FUNCTION wait_at_gate(event jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN LOCK TABLE public.gate; END $$;
	SELECT shop.create_endpoint('gate', 'function:public.wait_at_gate', '{gate.*}');
});
$session = open_session($node, 'shopdb');
in_session($session, 'BEGIN; LOCK TABLE gate');
$node->safe_psql('shopdb', q{SELECT shop.emit_event('gate.a', 'test', 'key', '{}')});
$node->poll_query_until('shopdb', q{SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE backend_type = 'shop relay' AND datname = 'shopdb'})
  or die;
$node->safe_psql('shopdb', q{
	TRUNCATE flaky_events;
	SELECT shop.create_endpoint('late', 'function:public.flaky', '{late.*}');
	SELECT shop.emit_event('late.a', 'test', 'key', '{}');
});
in_session($session, 'COMMIT');
end_session($session);
within($node, 'shopdb', 2, 'count(*) = 1 FROM flaky_events', 'an endpoint made while the relay waits for a lock gets its event at once');

# A target that hangs is given up on, and not once for every event.
$node->safe_psql(
	'shopdb', q{
	CREATE FUNCTION hang(event jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(600); END $$;
	SELECT shop.create_endpoint('hang', 'function:public.hang', '{hang.*}', options => '{"timeout": 300}');
	SELECT shop.emit_event('hang.a', 'test', 'key ' || n, '{}') FROM generate_series(1, 100) n;
});
$order = order($node, 'shopdb');
within($node, 'shopdb', 4, received($order), 'an endpoint that hangs holds up no other for long');
$order = order($node, 'shopdb');
within($node, 'shopdb', 4, received($order), 'nor again');
within($node, 'shopdb', 15, q{last_error LIKE '57014%' FROM shop.endpoints WHERE name = 'hang'}, 'it is shown as what it is');
$node->safe_psql('shopdb', q{SELECT shop.drop_endpoint('hang')});

#
# Two databases; who a function is called as
#

$node->safe_psql('postgres', q{
	CREATE ROLE owner SUPERUSER LOGIN;
	CREATE ROLE clerk LOGIN;
	CREATE DATABASE shop2 OWNER owner;
});
$node->safe_psql(
	'shop2', q{
	SET ROLE owner;
	CREATE EXTENSION shop;
	SELECT shop.create_product('a', 10, 100), shop.charge_points(1, 1000);
	SELECT shop.create_endpoint('platform', 'function:shop.receive_event');
	CREATE TABLE who (current text, session text);
	CREATE FUNCTION note_who(event jsonb) RETURNS void LANGUAGE sql AS 'INSERT INTO public.who VALUES (current_user, session_user)';
	GRANT INSERT ON who TO clerk;
	SELECT shop.grant_access('clerk', 'admin');
});
workers_run($node, 'shop2', 5, 'a second database gets workers of its own');
workers_run($node, 'shopdb', 1, 'the first keeps its own');
$node->safe_psql('shop2', q{SET ROLE clerk; SELECT shop.create_endpoint('who', 'function:public.note_who')});
my $order2 = order($node, 'shop2');
$order = order($node, 'shopdb');
within($node, 'shop2', 2, received($order2), 'its events arrive there');
within($node, 'shopdb', 2, received($order), 'those of the first arrive where they belong');
within($node, 'shop2', 2, 'count(*) = 1 FROM who', 'a function endpoint of a role is called');
is(value($node, 'shop2', 'SELECT * FROM who'), 'clerk|owner', 'as the role that made it, by the owner of the extension');

#
# shop.worker
#

for my $change ([ 'SET shop.worker = off', 'SET shop.worker = on' ], [ 'RESET shop.worker', q{SET shop.worker = 'true'} ])
{
	$node->safe_psql('shop2', "ALTER DATABASE shop2 $change->[0]");
	within($node, 'shop2', 5, q{count(*) = 0 FROM pg_stat_activity WHERE datname = 'shop2' AND backend_type LIKE 'shop %'},
		"$change->[0] ends the workers of a database");
	is(value($node, 'shop2', q{SELECT count(pid) FROM shop.workers WHERE kind <> 'launcher'}), '0', 'shop.workers shows it');
	$order2 = order($node, 'shop2');
	workers_run($node, 'shopdb', 1, 'other databases keep theirs');
	is(value($node, 'shop2', 'SELECT ' . received($order2)), 'f', 'nothing is delivered without');
	$node->safe_psql('shop2', "ALTER DATABASE shop2 $change->[1]");
	workers_run($node, 'shop2', 5, "$change->[1] starts them again");
	within($node, 'shop2', 2, received($order2), 'delivery goes on');
}

#
# DROP EXTENSION and again
#

is(sqlstate_of($node, 'shop2', 'DROP EXTENSION shop'), '55000', 'a shop with orders cannot be dropped by mistake');
workers_run($node, 'shop2', 5, 'its workers stay');
timed($node, 'shop2', 5, 'SET shop.allow_drop = on; DROP EXTENSION shop', 'shop.allow_drop lets it be dropped, with workers at work');
within($node, 'shop2', 10, q{count(*) = 0 FROM pg_stat_activity WHERE datname = 'shop2' AND backend_type IN ('shop relay', 'shop keeper')},
	'the workers of a dropped shop end');
$node->safe_psql(
	'shop2', q{
	CREATE EXTENSION shop;
	SELECT shop.create_product('a', 10, 100), shop.charge_points(1, 1000);
	SELECT shop.create_endpoint('platform', 'function:shop.receive_event');
});
workers_run($node, 'shop2', 10, 'a new shop in its place gets workers');
$order2 = order($node, 'shop2');
within($node, 'shop2', 2, received($order2), 'and delivers');

# In one transaction, under the feet of running workers.
timed(
	$node, 'shop2', 5, q{
	BEGIN;
	SET LOCAL shop.allow_drop = on;
	DROP EXTENSION shop;
	CREATE EXTENSION shop;
	SELECT shop.create_product('a', 10, 100), shop.charge_points(1, 1000);
	SELECT shop.create_endpoint('platform', 'function:shop.receive_event');
	COMMIT;},
	'dropped and created again in one transaction');
$order2 = order($node, 'shop2');
within($node, 'shop2', 10, received($order2), 'the workers serve the new shop');

within($node, 'shopdb', 5, $all_received, 'every order has exactly one event at the platform');
within($node, 'shop2', 5, $all_received, 'in both databases');
healthy($node, 'shopdb', 'verify() finds nothing');
healthy($node, 'shop2', 'nor in the other database');

$node->stop;
done_testing();
