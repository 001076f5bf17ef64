# Statements that need a database to themselves succeed at once although
# workers are connected to it; a copy of the database does not deliver.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use ShopTest;
use Test::More;

my $node = new_server('databases');
$node->start;
my $tablespace = $node->basedir . '/tablespace';
mkdir $tablespace or die;
$node->safe_psql('postgres', "CREATE TABLESPACE side LOCATION '$tablespace'");

sub received
{
	my ($order_id) = @_;
	return "EXISTS (SELECT FROM shop.received_events WHERE type = 'order.paid' AND aggregateid = '$order_id')";
}

# The shop of a database is at work.
sub delivers
{
	my ($db, $name) = @_;
	my $order = order($node, $db);

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return within($node, $db, 5, received($order), $name);
}

sub worker_count
{
	my ($db) = @_;
	return value($node, 'postgres',
		"SELECT count(*) FROM pg_stat_activity WHERE datname = '$db' AND backend_type IN ('shop relay', 'shop keeper')");
}

#
# With workers at work
#

open_shop($node, 'shopdb');
workers_run($node, 'shopdb', 5, 'the workers run');
delivers('shopdb', 'and deliver');
my $relay = worker_pid($node, 'shopdb', 'relay');

timed($node, 'postgres', 2, 'CREATE DATABASE other', 'CREATE DATABASE of another database');
timed($node, 'postgres', 2, 'DROP DATABASE other', 'DROP DATABASE of another database');
is(worker_pid($node, 'shopdb', 'relay'), $relay, 'which is no reason to end workers');

timed($node, 'postgres', 5, 'CREATE DATABASE copy TEMPLATE shopdb', 'CREATE DATABASE with the shop as template');
workers_run($node, 'shopdb', 5, 'the workers of the template come back');
delivers('shopdb', 'and deliver');

timed($node, 'postgres', 5, 'ALTER DATABASE shopdb RENAME TO shop_new', 'ALTER DATABASE RENAME');
workers_run($node, 'shop_new', 5, 'the workers come back under the new name');
delivers('shop_new', 'and deliver');
is(value($node, 'shop_new', 'SELECT state FROM shop.endpoints'), 'active', 'a renamed database is no copy');

timed($node, 'postgres', 5, 'ALTER DATABASE shop_new SET TABLESPACE side', 'ALTER DATABASE SET TABLESPACE');
workers_run($node, 'shop_new', 5, 'the workers come back');
delivers('shop_new', 'and deliver');
timed($node, 'postgres', 5, 'ALTER DATABASE shop_new RENAME TO shopdb', 'ALTER DATABASE RENAME again');

#
# A statement that fails leaves the workers as they were
#

workers_run($node, 'shopdb', 5, 'the workers come back');
my $client = open_session($node, 'shopdb');
is(sqlstate_of($node, 'postgres', 'DROP DATABASE shopdb'), '55006', 'DROP DATABASE fails while a client is connected');
workers_run($node, 'shopdb', 5, 'the workers come back');
delivers('shopdb', 'and deliver');
is(sqlstate_of($node, 'postgres', 'ALTER DATABASE shopdb RENAME TO shop_new'), '55006', 'so does RENAME');
workers_run($node, 'shopdb', 5, 'the workers come back after that too');
end_session($client);
is(sqlstate_of($node, 'postgres', 'ALTER DATABASE shopdb RENAME TO postgres'), '42P04', 'a RENAME to a name that is taken fails');
workers_run($node, 'shopdb', 5, 'the workers come back after that too');

# Who has no right to drop a database cannot end its workers either.
$node->safe_psql('postgres', 'CREATE ROLE nobody LOGIN');
$relay = worker_pid($node, 'shopdb', 'relay');
is(sqlstate_of($node, 'postgres', 'SET ROLE nobody; DROP DATABASE shopdb'), '42501', 'DROP DATABASE without the right to');
is(worker_pid($node, 'shopdb', 'relay'), $relay, 'does not end the workers');
is(sqlstate_of($node, 'postgres', 'BEGIN; DROP DATABASE shopdb'), '25001', 'DROP DATABASE in a transaction');
workers_run($node, 'shopdb', 5, 'leaves the workers running');

# A client that is killed in the middle of its DROP DATABASE.
$client = open_session($node, 'shopdb');
my $dropper = open_session($node, 'postgres');
my $pid = in_session($dropper, 'SELECT pg_backend_pid()');
$dropper->{in} .= "DROP DATABASE shopdb;\n";
$dropper->{harness}->pump_nb;
$node->poll_query_until('postgres', "SELECT state = 'active' AND query LIKE 'DROP%' FROM pg_stat_activity WHERE pid = $pid") or die;
$node->poll_query_until('postgres', q{SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = 'shopdb' AND backend_type LIKE 'shop %'}) or die;
is(value($node, 'postgres', "SELECT pg_terminate_backend($pid, 10000)"), 't', 'a client that drops the database is ended');
end_session($dropper);
workers_run($node, 'shopdb', 5, 'the workers come back');
end_session($client);

#
# The copy
#

within($node, 'copy', 2, q{pg_backend_pid() > 0}, 'the copy can be connected to');
is(value($node, 'copy', 'SELECT name, state, pause_reason IS NOT NULL FROM shop.endpoints'),
	'platform|paused|t', 'its endpoints are paused, with a reason');
my $copied = order($node, 'copy');
my $had = value($node, 'copy', 'SELECT count(*) FROM shop.received_events');
is(value($node, 'copy', 'SELECT shop.deliver_events()'), '0', 'deliver_events() delivers nothing to them');
delivers('shopdb', 'the source goes on');
is(worker_count('copy'), '0', 'the copy has no workers');

$node->safe_psql('postgres', 'ALTER DATABASE copy SET shop.worker = on');
workers_run($node, 'copy', 5, 'it gets them by ALTER DATABASE SET shop.worker');
within($node, 'copy', 5, q{bool_and(last_cycle_at IS NOT NULL) FROM shop.workers}, 'they run');
order($node, 'copy', 3);
within($node, 'copy', 5, q{(SELECT acked @> (SELECT max(event_no) FROM shop.outbox) FROM shop.endpoint WHERE builtin)},
	'they do what stays within the copy');
is(value($node, 'copy', 'SELECT count(*) FROM shop.received_events'), $had, 'but deliver nothing');
healthy($node, 'copy', 'verify() finds nothing in the copy');
is(value($node, 'copy', q{SELECT state, pause_reason IS NULL FROM shop.resume_endpoint('platform')}),
	'active|t', 'resume_endpoint() adopts an endpoint');
within($node, 'copy', 5, received($copied), 'then it gets what was waiting');
delivers('copy', 'and what is new');
delivers('shopdb', 'the source goes on');
is(value($node, 'shopdb', 'SELECT count(*) FROM shop.received_events r WHERE NOT EXISTS (SELECT FROM shop.outbox o WHERE o.id = r.event_id)'),
	'0', 'with its own events only');
healthy($node, 'copy', 'verify() finds nothing in the copy');

#
# DROP
#

# Right after the workers were told to start, and again while they do.
for my $try (1 .. 3)
{
	open_shop($node, 'brief');
	timed($node, 'postgres', 5, 'DROP DATABASE brief', "DROP DATABASE of a shop that was just made, $try");
}
timed($node, 'postgres', 5, 'DROP DATABASE copy WITH (FORCE)', 'DROP DATABASE WITH (FORCE)');
timed($node, 'postgres', 5, 'CREATE DATABASE copy TEMPLATE shopdb', 'the name can be used again');
timed($node, 'postgres', 5, 'ALTER DATABASE copy SET shop.worker = on', 'with workers');
workers_run($node, 'copy', 5, 'which come up');
timed($node, 'postgres', 5, 'DROP DATABASE copy', 'DROP DATABASE');
timed($node, 'postgres', 5, 'DROP DATABASE shopdb', 'DROP DATABASE of the source');
is(value($node, 'postgres', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type IN ('shop relay', 'shop keeper')}),
	'0', 'no worker is left');

open_shop($node, 'shopdb');
workers_run($node, 'shopdb', 5, 'a new shop gets its workers');
delivers('shopdb', 'and delivers');
healthy($node, 'shopdb', 'verify() finds nothing');

$node->stop;
unlike(slurp_file($node->logfile), qr/PANIC|was terminated by signal/, 'no process crashed');
done_testing();
