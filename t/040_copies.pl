# A webhook hears of every event once, from the shop that it was made for: not
# from a restored dump, nor from a copy of the database, whatever runs or is
# called there.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Delivery;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Receiver;
use ShopTest;
use Test::More;

plan skip_all => missing() if missing();

my $node = new_server('copies', settings => [ 'log_statement = none', 'shop.popular_interval = 1' ]);
$node->start;
open_for_delivery($node, 'http://127.0.0.1:1/');
my $receiver = start_receiver($node);
my @port = ('-h', $node->host, '-p', $node->port);
my $dump = $node->basedir . '/shop.dump';

# The source, in which something is delivered, something has failed and waits,
# and something is new.
create_endpoint('webhook', $receiver->url, types => '{event}', options => { backoff => 10, max_backoff => 10, max_attempts => 1000 });
emit('event', ['delivered']);
await_done('webhook');
$receiver->control('fault=/status/503');
emit('event', ['retried']);
await_sql(q{count(*) FILTER (WHERE attempts > 0) > 0 FROM shop.delivery}) or die 'no retry';
sql('ALTER DATABASE shopdb SET shop.worker = off');
await_sql(q{count(pid) = 0 FROM shop.workers WHERE kind <> 'launcher'}) or die 'the workers do not end';
emit('event', ['new']);
my $requests = $receiver->count->{requests};
my $rows = checksums($node, 'shopdb');

#
# Copies, with workers, all of which would be sent to a receiver that is well again
#

$receiver->control('fault=');
$node->command_ok([ 'pg_dump', @port, '-Fc', '-f', $dump, 'shopdb' ], 'pg_dump');
$node->safe_psql('postgres', 'CREATE DATABASE restored TEMPLATE template0');
$node->command_ok([ 'pg_restore', @port, '-e', '-d', 'restored', $dump ], 'pg_restore');
disconnect();
$node->safe_psql('postgres', 'CREATE DATABASE cloned TEMPLATE shopdb');
connect_to('shopdb');

# A relay has looked for endpoints and for events after this.
sub workers_have_looked
{
	my ($db) = @_;
	my $now = value($node, $db, 'SELECT clock_timestamp()');

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return within($node, $db, PATIENCE, qq{count(*) = 2 FROM shop.workers WHERE kind <> 'launcher' AND last_cycle_at > timestamptz '$now'},
		"$db: the workers have looked");
}

for my $db ('restored', 'cloned')
{
	is(checksums($node, $db), $rows, "$db: all rows are the same");
	$node->safe_psql('postgres', "ALTER DATABASE $db SET shop.worker = on");
	workers_run($node, $db, PATIENCE, "$db: the workers run");
	workers_have_looked($db);
	is(value($node, $db, q{SELECT pause_reason FROM shop.endpoints WHERE name = 'webhook'}),
		'copied from another database', "$db: the webhook is paused, with a reason");
	is(value($node, $db, q{SELECT shop.deliver_events()}), '0', "$db: nothing is delivered by call");
	$node->safe_psql($db, q{SELECT shop.emit_event('event', 'test', 'copy', '{}')});
	order($node, $db, 3);
	$node->safe_psql($db, 'SELECT shop.run_maintenance(), shop.refresh_popular_products()');
	workers_have_looked($db);
	is($receiver->count->{requests}, $requests, "$db: nothing has been sent");
	healthy($node, $db, "$db: verify() finds nothing");
}

#
# The source goes on as if they were not there
#

sql('ALTER DATABASE shopdb SET shop.worker = on');
await_done('webhook');
my %times;
$times{ $_->{id} }++ for grep { $_->{taken} } $receiver->journal;
is_deeply(\%times, { map { $_->[0] => 1 } fates('webhook') }, 'the receiver has got each event of the source once, and no other');
my $taken = $receiver->taken;

# Whoever wants a copy to send says so.
is(value($node, 'restored', q{SELECT state FROM shop.resume_endpoint('webhook')}), 'active', 'an endpoint of a copy is resumed');
connect_to('restored');
await_done('webhook');
is($receiver->taken, $taken + 1, 'the receiver has got the event of the copy');
$times{ $_->{id} }++ for grep { $_->{taken} } $receiver->journal;
is(scalar(grep { !$times{ $_->[0] } } fates('webhook')), 0, 'and the others under the ids that it knows');

disconnect();
ok($receiver->stop, 'the receiver ends well');
$node->stop;
unlike(slurp_file($node->logfile), qr/PANIC|TRAP|was terminated by signal/, 'no process crashed');
done_testing();
