# A base backup, brought forward to a transaction or a time: the shop as it was
# then.  It is at home, as what replaces a lost server has to be; beside the
# living original it is started without the library, and paused, first.
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

my $node = new_server('original', init => [ has_archiving => 1, allows_streaming => 1 ], settings => ['log_statement = none']);
$node->start;
open_for_delivery($node, 'http://127.0.0.1:1/');
my $receiver = start_receiver($node);

create_endpoint('webhook', $receiver->url, types => '{event}', options => { backoff => 10, max_backoff => 10, max_attempts => 1000 });
emit('event', ['before the backup']);
await_done('webhook');
$node->backup('base');
order($node, 'shopdb', $_) for 1 .. 20;
await_done('platform');
sql('SELECT shop.refresh_popular_products()');

# What is there at the target: something delivered, something tried, something new.
emit('event', ['delivered']);
await_done('webhook');
$receiver->control('fault=/status/503');
emit('event', ['tried']);
await_sql('count(*) FILTER (WHERE attempts > 0) > 0 FROM shop.delivery') or die 'no retry';
emit('event', ['new']);
my $last = order($node, 'shopdb', 5);
await_done('platform');

# The target: the last transaction that is to be in it, and the time after it.
my $xid = sql('SELECT pg_current_xact_id()');
my $books = checksums_of_books($node);
my $time = sql('SELECT clock_timestamp()');
$receiver->control('fault=');
await_done('webhook');

# What happens after the target is forgotten in a copy.
my $forgotten = order($node, 'shopdb', 6);
emit('event', ['forgotten']);
await_done('webhook');
sql(q{SELECT pg_switch_wal()});
my $segment = sql('SELECT pg_walfile_name(pg_current_wal_lsn())');
sql(q{CHECKPOINT; SELECT pg_switch_wal()});
await_sql("last_archived_wal >= '$segment' FROM pg_stat_archiver") or die 'nothing is archived';
disconnect();
my $requests = $receiver->count->{requests};

# The tables that delivery does not write to.
sub checksums_of_books
{
	my ($server) = @_;
	return join "\n", grep { !/^(?:endpoint|delivery|product_sales)\|/ } split /\n/, checksums($server, 'shopdb');
}

# The backup on another server, brought forward.
sub recover
{
	my ($name, $target) = @_;
	my $copy = PostgreSQL::Test::Cluster->new($name);

	$copy->init_from_backup($node, 'base', has_restoring => 1, standby => 0);
	$copy->append_conf('postgresql.conf', "$target\nrecovery_target_action = promote\narchive_mode = off\n");
	return $copy;
}

sub has_target
{
	my ($copy, $name) = @_;

	$copy->poll_query_until('shopdb', 'SELECT NOT pg_is_in_recovery()') or die 'no end of recovery';
	is(checksums_of_books($copy), $books, "$name: the books are those of the target");
	is(value($copy, 'shopdb', "SELECT count(*) FROM shop.orders WHERE order_id = $forgotten"), '0', "$name: what came later is not there");
	is(value($copy, 'shopdb', 'SELECT count(*) FROM shop.top_products(5)'), '5', "$name: the popular products are there");
	healthy($copy, 'shopdb', "$name: verify() finds nothing");
	return;
}

#
# Beside the original: without the library nothing runs, so all can be paused
#

my $staging = recover('staging', "recovery_target_xid = '$xid'");
$staging->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$staging->start;
has_target($staging, 'staging');
is(value($staging, 'shopdb', q{SELECT count(*) FROM shop.endpoints WHERE state = 'paused'}), '0', 'staging: it is at home');
$staging->safe_psql('shopdb', 'SELECT shop.pause_endpoint(name) FROM shop.endpoints');
$staging->append_conf('postgresql.conf', "shared_preload_libraries = 'shop'");
$staging->restart;
workers_run($staging, 'shopdb', PATIENCE, 'staging: the workers run');
my $now = value($staging, 'shopdb', 'SELECT clock_timestamp()');
$staging->safe_psql('shopdb', q{SELECT shop.emit_event('event', 'test', 'staging', '{}')});
order($staging, 'shopdb', 7);
within($staging, 'shopdb', PATIENCE, qq{last_cycle_at > timestamptz '$now' FROM shop.workers WHERE kind = 'relay'}, 'staging: the relay looks');
is($receiver->count->{requests}, $requests, 'staging: nothing is sent');
healthy($staging, 'shopdb', 'staging: verify() finds nothing');
$staging->stop;

#
# Instead of the original, which is lost: what was not acknowledged at the target is sent again
#

$node->stop('immediate');
my @journal = $receiver->journal;
my %known = map { $_->{id} => 1 } @journal;
my $rescue = recover('rescue', "recovery_target_time = '$time'");
$rescue->start;
has_target($rescue, 'rescue');
workers_run($rescue, 'shopdb', PATIENCE, 'rescue: the workers start by themselves');
connect_to('shopdb', $rescue);
await_done('webhook');
my @again = ($receiver->journal)[ @journal .. $receiver->journal - 1 ];
is(join(' ', sort map { $_->{subject} } @again), 'new new new tried tried tried', 'rescue: what was not acknowledged at the target is sent again');
is(scalar(grep { !$known{ $_->{id} } } @again), 0, 'rescue: under the ids that the receiver knows');

# Its numbers are given out again, unless they are moved past those of the lost server.
my $reused = order($rescue, 'shopdb', 6);
cmp_ok($reused, '<=', $forgotten + 32, 'rescue: order numbers go on from the target');
sql(sprintf q{SELECT setval('shop.orders_order_id_seq', %d)}, $forgotten + 1_000_000);
cmp_ok(order($rescue, 'shopdb', 6), '>', $forgotten + 1_000_000, 'rescue: or from where they are told to');
emit('event', ['new shop']);
await_done('webhook');
await_done('platform');
healthy($rescue, 'shopdb', 'rescue: verify() finds nothing');

disconnect();
ok($receiver->stop, 'the receiver ends well');
$rescue->stop;
unlike(slurp_file($_->logfile), qr/PANIC|TRAP|was terminated by signal/, 'no process crashed') for $node, $staging, $rescue;
done_testing();
