# Nothing is lost and nothing is done twice when the server stops in the middle
# of it: a restart, an immediate shutdown, a crash, a relay that is ended again
# and again, all of it under load.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use ShopTest;
use Test::More;
use Time::HiRes qw(sleep time);

my $node = new_server('restart', settings => [ 'restart_after_crash = on', 'log_statement = none' ]);
$node->start;
open_shop($node, 'shopdb');
workers_run($node, 'shopdb', 5, 'the workers run');

# Waits until so many more orders have been placed.
sub more_orders
{
	my ($n) = @_;
	my $before = value($node, 'shopdb', 'SELECT count(*) FROM shop.orders');

	$node->poll_query_until('shopdb', "SELECT count(*) >= $before + $n FROM shop.orders") or die 'no orders';
	return;
}

# What is promised of a server that has just come up.
sub survived
{
	my ($what) = @_;
	my $received = value($node, 'shopdb', 'SELECT count(*) FROM shop.received_events');

	order($node, 'shopdb');
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	within($node, 'shopdb', 5, "count(*) > $received FROM shop.received_events", "delivery goes on after $what");
	return;
}

# To be called when nobody places orders any more.
sub complete
{
	my ($what) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	within(
		$node, 'shopdb', 30, q{NOT EXISTS
			(SELECT FROM shop.orders o
			   FULL JOIN (SELECT aggregateid, count(*) AS n FROM shop.received_events
			               WHERE type = 'order.paid' GROUP BY 1) r ON r.aggregateid = o.order_id::text
			  WHERE r.n IS DISTINCT FROM 1 OR o.order_id IS NULL)},
		"every order has exactly one event at the platform after $what");
	is( value(
			$node, 'shopdb', q{
			SELECT count(*) FROM shop.received_events r FULL JOIN shop.outbox o ON o.id = r.event_id
			 WHERE o.created_at > (SELECT created_at FROM shop.endpoints) AND (o.id IS NULL OR r.event_id IS NULL)}),
		'0', 'the platform has what the outbox has');
	healthy($node, 'shopdb', "verify() finds nothing after $what");
	return;
}

#
# An orderly restart
#

my $load = start_load($node, 'shopdb', 60);
more_orders(500);
$node->restart;
survived('a restart');
workers_run($node, 'shopdb', 5, 'the workers run again');
load_ended($load);
complete('a restart');

#
# An immediate shutdown
#

for my $round (1 .. 3)
{
	$load = start_load($node, 'shopdb', 60);
	more_orders(300 * $round);
	$node->stop('immediate');
	load_ended($load);
	$node->start;
	survived("immediate shutdown $round");
}
complete('immediate shutdowns');

# With a backlog, and dead in the middle of it.
$node->safe_psql('shopdb', q{SELECT shop.pause_endpoint('platform')});
$load = start_load($node, 'shopdb', 3);
load_ended($load);
$node->safe_psql('shopdb', q{SELECT shop.resume_endpoint('platform')});
$node->stop('immediate');
$node->start;
survived('an immediate shutdown with a backlog');
complete('an immediate shutdown with a backlog');

#
# A backend that is killed: all others are ended, the server recovers by itself
#

for my $round (1 .. 2)
{
	$load = start_load($node, 'shopdb', 60);
	more_orders(500);
	my $victim = value($node, 'shopdb',
		q{SELECT pid FROM pg_stat_activity
		   WHERE backend_type = 'client backend' AND datname = 'shopdb' AND pid <> pg_backend_pid() LIMIT 1});
	kill('KILL', $victim) == 1 or die;
	load_ended($load);
	$node->poll_query_until('shopdb', "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $victim") or die;
	survived("crash $round");
	workers_run($node, 'shopdb', 5, 'the workers run again');
}
complete('crashes');

#
# The relay, ended at any time
#

$load = start_load($node, 'shopdb', 14);
my $start = time;
my $kills = 0;
while (time - $start < 14)
{
	$kills += value($node, 'shopdb',
		q{SELECT count(*) FROM shop.workers WHERE kind = 'relay' AND pid IS NOT NULL AND pg_terminate_backend(pid, 5000)});
	# The launcher lets a worker rest that ends so often; this makes it try again.
	$node->safe_psql('postgres', 'ALTER DATABASE shopdb SET shop.worker = on');
	sleep rand(1.0);
}
load_ended($load);
cmp_ok($kills, '>', 5, 'the relay was ended many times');
$node->safe_psql('postgres', 'ALTER DATABASE shopdb SET shop.worker = on');
complete("$kills ends of the relay");

$node->stop;
unlike(slurp_file($node->logfile), qr/PANIC|TRAP|was terminated by signal (?!9)/, 'no process crashed but those that were killed');
done_testing();
