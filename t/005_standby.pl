# A streaming standby serves reads and nothing else; promoted, it delivers.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use ShopTest;
use Test::More;

my $primary = new_server('primary', init => [ allows_streaming => 1 ]);
$primary->start;
open_shop($primary, 'shopdb');
workers_run($primary, 'shopdb', 5, 'the workers run on the primary');
order($primary, 'shopdb', $_) for 1 .. 20;
within($primary, 'shopdb', 5, q{count(*) = 20 FROM shop.received_events WHERE type = 'order.paid'}, 'and deliver');
$primary->safe_psql('shopdb', 'SELECT shop.refresh_popular_products()');

$primary->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'backup', has_streaming => 1);
$standby->start;

sub catch_up
{
	my $lsn = $primary->lsn('insert');
	$standby->poll_query_until('postgres', "SELECT pg_last_wal_replay_lsn() >= '$lsn'") or die 'no replay';
	return;
}

#
# While it is a standby
#

my $last = order($primary, 'shopdb', 4);
within($primary, 'shopdb', 5, "EXISTS (SELECT FROM shop.received_events WHERE aggregateid = '$last')", 'the primary goes on');
catch_up();

is(value($standby, 'shopdb', q{SELECT name, price FROM shop.get_product(4)}), 'product 4|40', 'get_product() works on the standby');
is(value($standby, 'shopdb', 'SELECT status, total FROM shop.get_order(' . $last . ')'), 'paid|40', 'so does get_order()');
is(value($standby, 'shopdb', 'SELECT count(*) FROM shop.top_products(5)'), '5', 'and top_products()');
is( value($standby, 'shopdb', 'SELECT balance FROM shop.point_history(1) LIMIT 1'),
	value($primary, 'shopdb', 'SELECT shop.point_balance(1)'),
	'and point_history()');
is(value($standby, 'shopdb', 'SELECT pending FROM shop.outbox_metrics()'), '0', 'and outbox_metrics()');
healthy($standby, 'shopdb', 'and verify()');
is(sqlstate_of($standby, 'shopdb', 'SELECT shop.get_product(4711)'), 'SH001', 'reads refuse what they refuse on the primary');

my $item = q{'[{"product_id": 1, "quantity": 1}]'};
for my $call ("place_order(1, $item)", "try_place_order(1, $item)", 'charge_points(1, 1)', 'use_points(1, 1)',
	q{create_product('x', 1)}, 'restock(1, 1)', 'set_price(1, 1)', q{emit_event('a.b', 'c', 'd', '{}')},
	q{create_endpoint('x', 'function:shop.receive_event')}, q{pause_endpoint('platform')},
	'deliver_events()', 'refresh_popular_products()', 'run_maintenance()')
{
	my ($verb) = $call =~ /^(\w+)/;
	is(sqlstate_of($standby, 'shopdb', "SELECT shop.$call"), '25006', "$verb() does not run on the standby");
}
is(value($standby, 'shopdb', q{SELECT count(pid) FROM shop.workers}), '0', 'no worker runs on the standby');
is(value($standby, 'shopdb', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'shop %'}), '0', 'nor a process of another name');

# The standby follows what happens to the primary's databases and workers.
$primary->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE shopdb');
$primary->safe_psql('postgres', 'DROP DATABASE copy');
workers_run($primary, 'shopdb', 5, 'the workers of the primary come back');
catch_up();

#
# Promoted in the middle of it: what the primary had not delivered is delivered here
#

$primary->safe_psql('shopdb', 'ALTER DATABASE shopdb SET shop.worker = off');
within($primary, 'shopdb', 5, q{count(pid) = 0 FROM shop.workers WHERE kind <> 'launcher'}, 'the primary does not deliver any more');
my $outstanding = order($primary, 'shopdb', 5);
catch_up();
$primary->stop('immediate');
$standby->promote;

$standby->safe_psql('postgres', 'ALTER DATABASE shopdb SET shop.worker = on');
workers_run($standby, 'shopdb', 5, 'the workers start on the promoted server');
within($standby, 'shopdb', 5, "EXISTS (SELECT FROM shop.received_events WHERE aggregateid = '$outstanding')",
	'what was outstanding is delivered');
my $order = order($standby, 'shopdb', 6);
within($standby, 'shopdb', 5, "EXISTS (SELECT FROM shop.received_events WHERE aggregateid = '$order')", 'and what is new');
is(value($standby, 'shopdb', q{SELECT state FROM shop.endpoints}), 'active', 'a promoted standby is no copy');
within(
	$standby, 'shopdb', 5, q{NOT EXISTS
		(SELECT FROM shop.orders o
		   FULL JOIN (SELECT aggregateid, count(*) AS n FROM shop.received_events
		               WHERE type = 'order.paid' GROUP BY 1) r ON r.aggregateid = o.order_id::text
		  WHERE r.n IS DISTINCT FROM 1 OR o.order_id IS NULL)},
	'every order has exactly one event at the platform');
healthy($standby, 'shopdb', 'verify() finds nothing');

#
# Failover under load, workers on: they start by themselves
#

$standby->backup('backup');
my $next = PostgreSQL::Test::Cluster->new('next');
$next->init_from_backup($standby, 'backup', has_streaming => 1);
$next->start;
my $load = start_load($standby, 'shopdb', 60);
$next->poll_query_until('shopdb', 'SELECT count(*) > 1000 FROM shop.orders') or die 'no orders';
$standby->stop('immediate');
load_ended($load);
$next->promote;
workers_run($next, 'shopdb', 5, 'after a failover under load the workers start by themselves');
within(
	$next, 'shopdb', 15, q{NOT EXISTS
		(SELECT FROM shop.orders o
		   FULL JOIN (SELECT aggregateid, count(*) AS n FROM shop.received_events
		               WHERE type = 'order.paid' GROUP BY 1) r ON r.aggregateid = o.order_id::text
		  WHERE r.n IS DISTINCT FROM 1 OR o.order_id IS NULL)},
	'every order that is there has exactly one event at the platform');
healthy($next, 'shopdb', 'verify() finds nothing');

$next->stop;
done_testing();
