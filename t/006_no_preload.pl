# Without shared_preload_libraries there are no workers, and all SQL works;
# what workers do is done by call.  What is, and what is not, in the server log.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use ShopTest;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('no_preload');
$node->init;
$node->append_conf('postgresql.conf', "log_statement = none\ntimezone = 'UTC'\n");
$node->start;

# What a script has added to the server log.
sub log_of
{
	my ($sql) = @_;
	my $before = -s $node->logfile;
	my ($rc, $out, $err) = $node->psql('shopdb', $sql);

	return (substr(slurp_file($node->logfile), $before), $out, $err);
}

open_shop($node, 'shopdb');
is(value($node, 'shopdb', 'SELECT kind, pid, state FROM shop.workers ORDER BY kind'),
	"keeper||not running\nlauncher||not running\nrelay||not running", 'shop.workers shows that none runs');
is(value($node, 'shopdb', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'shop %'}), '0', 'and none does');

#
# The workers' jobs, by call
#

$node->safe_psql('shopdb', q{
	SELECT shop.place_order(1 + n % 50, jsonb_build_array(jsonb_build_object('product_id', 1 + n % 4, 'quantity', 1 + n % 4)))
	  FROM generate_series(1, 200) n});
is(value($node, 'shopdb', 'SELECT count(*) FROM shop.received_events'), '0', 'nothing is delivered by itself');
is(value($node, 'shopdb', 'SELECT pending FROM shop.outbox_metrics()'), '200', 'it waits');
is(value($node, 'shopdb', q{SELECT shop.deliver_events('platform', 10)}), '10', 'deliver_events() delivers as many as asked for');
is(value($node, 'shopdb', 'SELECT shop.deliver_events()'), '190', 'or all that is there');
is(value($node, 'shopdb', 'SELECT shop.deliver_events()'), '0', 'once');
is( value(
		$node, 'shopdb', q{
		SELECT count(*) FROM shop.orders o JOIN shop.received_events r ON r.type = 'order.paid' AND r.aggregateid = o.order_id::text
		 WHERE (r.data->>'total')::bigint = o.total}),
	'200', 'every order has arrived');
is(sqlstate_of($node, 'shopdb', q{SELECT shop.deliver_events('nobody')}), 'SH401', 'an unknown endpoint is refused');
is(value($node, 'shopdb', 'SELECT pending, retrying, dead, delivered_total FROM shop.outbox_metrics()'), '0|0|0|200',
	'outbox_metrics() shows it');

is(value($node, 'shopdb', 'SELECT count(*) FROM shop.top_products()'), '0', 'the popular products are as old as their last refresh');
is(value($node, 'shopdb', q{SELECT shop.refresh_popular_products() > now() - interval '1 minute'}), 't', 'refresh_popular_products()');
is( value($node, 'shopdb', 'SELECT rank, product_id, quantity, revenue FROM shop.top_products()'),
	"1|4|200|8000\n2|3|150|4500\n3|2|100|2000\n4|1|50|500", 'ranks what was sold');

is(value($node, 'shopdb', 'SELECT events_cleared FROM shop.run_maintenance()'), '0', 'run_maintenance() keeps what is not old');
is( value(
		$node, 'shopdb',
		q{SELECT shop.charge_points(1, 1); SET shop.outbox_retention = 0; SELECT events_cleared > 0 FROM shop.run_maintenance()}),
	value($node, 'shopdb', 'SELECT r FROM (SELECT max(entry_id), 1, 1, shop.point_balance(1), false FROM shop.point_entry) r') . "\nt",
	'and clears what is delivered and old');
is(value($node, 'shopdb', q{SELECT count(*), min(type) FROM shop.outbox}), '1|points.charged', 'but not what is still to be delivered');
is(value($node, 'shopdb', 'SELECT shop.deliver_events()'), '1', 'which can be delivered then');
healthy($node, 'shopdb', 'verify() finds nothing');

# A target that fails, in the caller's session.
$node->safe_psql(
	'shopdb', q{
	CREATE FUNCTION refuse(event jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;
	SELECT shop.create_endpoint('bad', 'function:public.refuse', options => '{"max_attempts": 2, "backoff": 1, "max_backoff": 1}');
	SELECT shop.emit_event('test.a', 'test', 'key', '{}');
});
is(value($node, 'shopdb', 'SELECT shop.deliver_events()'), '1', 'a target that fails does not count, nor hold up others');
$node->poll_query_until('shopdb', 'SELECT shop.deliver_events() = 0 AND count(*) = 1 FROM shop.dead_letters')
  or fail('it ends as a dead letter');
is(value($node, 'shopdb', 'SELECT endpoint, type, attempts, last_error FROM shop.dead_letters'), 'bad|test.a|2|P0001: no',
	'it ends as a dead letter');

#
# The log
#

my $short = q{shop.place_order(1, '[{"product_id": 1, "quantity": 2000000}]')};
my ($log, $out, $err) = log_of("SELECT $short");
like($err, qr/not enough units in stock/, 'the client gets a refusal');
is($log, '', 'the server log does not');
($log, $out, $err) = log_of("SELECT outcome FROM shop.try_place_order(1, '[{\"product_id\": 1, \"quantity\": 2000000}]')");
is($out, 'insufficient_stock', 'try_place_order() returns it');
is($log, '', 'the server log does not get it');

($log, $out, $err) = log_of("SET shop.log_refusals = on; SELECT $short");
like($log, qr/ERROR:  not enough units in stock/, 'with shop.log_refusals, refusals are logged');
($log, $out, $err) =
  log_of("SET shop.log_refusals = on; SELECT outcome FROM shop.try_place_order(1, '[{\"product_id\": 1, \"quantity\": 2000000}]')");
is($out, 'insufficient_stock', 'try_place_order() returns it');
is($log, '', 'what try_place_order() returns never is');
($log, $out, $err) = log_of(q{SELECT shop.place_order(1, '[]')});
like($log, qr/ERROR:  items/, 'bad input is logged');
($log, $out, $err) = log_of(qq{DO \$\$ BEGIN PERFORM $short; EXCEPTION WHEN SQLSTATE 'SH003' THEN NULL; END \$\$});
is("$log$err", '', 'a refusal can be caught by its code');

#
# Settings
#

is(sqlstate_of($node, 'shopdb', q{SELECT shop.version(); SET shop.foo = 1}), '42602', 'an unknown setting is refused');
is(sqlstate_of($node, 'shopdb', q{SET shop.foo = 1; SELECT shop.version(); SHOW shop.foo}), '42704', 'also one that was set too early');
is(value($node, 'shopdb', q{SELECT shop.version(); SHOW shop.worker}), "1.0\non", 'the setting of the workers does no harm');

$node->safe_psql('shopdb', q{CREATE ROLE clerk LOGIN; SELECT shop.grant_access('clerk', 'write')});
my %default = (test_clock => '', log_refusals => 'off', max_balance => '1e+15', currency => 'KRW');
my %value = (test_clock => '2020-01-01', log_refusals => 'on', max_balance => '5', currency => 'EUR');
for my $name (sort keys %default)
{
	is( sqlstate_of($node, 'shopdb', "SET SESSION AUTHORIZATION clerk; SELECT shop.point_balance(1); SET shop.$name = '$value{$name}'"),
		'42501', "shop.$name is not for clients");
	# Before the library is loaded, anybody can set a name that is not known yet.
	my ($rc, $stdout, $stderr) = $node->psql(
		'shopdb',
		"SET shop.$name = '$value{$name}'; SELECT shop.point_balance(1); SELECT session_user, current_setting('shop.$name')",
		extra_params => [ '-U', 'clerk' ]);
	is((split /\n/, $stdout)[-1], "clerk|$default{$name}", 'nor if it is set before the library is loaded');
}

#
# DROP EXTENSION
#

is(sqlstate_of($node, 'shopdb', 'DROP EXTENSION shop'), '55000', 'a shop with orders cannot be dropped by mistake');
is(sqlstate_of($node, 'shopdb', 'DROP EXTENSION IF EXISTS plpgsql, shop CASCADE'), '55000', 'nor among others');
is(value($node, 'shopdb', 'SELECT count(*) FROM shop.orders'), '200', 'its orders are there');
healthy($node, 'shopdb', 'verify() finds nothing');
is(sqlstate_of($node, 'shopdb', 'SET shop.allow_drop = on; DROP EXTENSION shop'), '', 'shop.allow_drop lets it be dropped');
is(value($node, 'shopdb', q{SELECT count(*) FROM pg_namespace WHERE nspname = 'shop'}), '0', 'nothing of it is left');
is(sqlstate_of($node, 'shopdb', 'CREATE EXTENSION shop'), '', 'it can be created again');
is(sqlstate_of($node, 'shopdb', 'DROP EXTENSION shop'), '', 'a shop without orders can be dropped');

$node->stop;
unlike(slurp_file($node->logfile), qr/PANIC|was terminated by signal/, 'no process crashed');
done_testing();
