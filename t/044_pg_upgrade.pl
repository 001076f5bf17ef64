# pg_upgrade: the shop is the same afterwards, and its endpoints, which are then
# on another server, are paused until they are resumed.
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

chomp(my $bindir = `"$ENV{PG_CONFIG}" --bindir`);
plan skip_all => 'needs pg_upgrade' if !-x "$bindir/pg_upgrade";

my $old = new_server('old', settings => ['log_statement = none']);
$old->start;
open_for_delivery($old, 'http://127.0.0.1:1/');
my $receiver = start_receiver($old);
create_endpoint('webhook', $receiver->url, types => '{event}', secret => 'whsec_' . 'c2VjcmV0' x 4, options => { backoff => 10, max_backoff => 10, max_attempts => 1000 });
order($old, 'shopdb', $_) for 1 .. 20;
sql(q{SELECT shop.reserve_order(3, '[{"product_id": 7, "quantity": 4}]', '1 day')});
emit('event', ['delivered']);
await_done('webhook');
await_done('platform');
sql('SELECT shop.refresh_popular_products()');
$receiver->control('fault=/status/503');
emit('event', ['tried']);
await_sql('count(*) FILTER (WHERE attempts > 0) > 0 FROM shop.delivery') or die 'no retry';
sql('ALTER DATABASE shopdb SET shop.worker = off');
await_sql(q{count(pid) = 0 FROM shop.workers WHERE kind <> 'launcher'}) or die 'the workers do not end';
emit('event', ['new']);
sql('ALTER DATABASE shopdb SET shop.worker = on');
disconnect();

my $ranking = 'SELECT rank, product_id, quantity, revenue FROM shop.popular_products ORDER BY rank';

sub pg_upgrade
{
	my ($new, @option) = @_;

	# It writes its logs, and scripts, to where it is.
	chdir $new->basedir or die $!;
	my $ok = $new->command_ok(
		[
			'pg_upgrade', '--no-sync', '-d', $old->data_dir, '-D', $new->data_dir, '-b', $bindir, '-B', $bindir,
			'-p', $old->port, '-P', $new->port, '-s', $new->host, @option
		],
		"pg_upgrade @option");
	return $ok;
}

$old->stop;

# With its workers stopped nothing changes any more.
$old->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$old->start;
my ($rows, $sequences, $order) = (checksums($old, 'shopdb'), sequences($old, 'shopdb'), value($old, 'shopdb', $ranking));
$old->stop;
$old->append_conf('postgresql.conf', "shared_preload_libraries = 'shop'");
my $requests = $receiver->count->{requests};
$receiver->control('fault=');

# The new server may have the library preloaded, or not yet.
my $preloaded = new_server('preloaded');
pg_upgrade($preloaded, '--check');
pg_upgrade($preloaded);
my $new = new_server('new', settings => [ 'log_statement = none', "shared_preload_libraries = ''" ]);
pg_upgrade($new);
is($receiver->count->{requests}, $requests, 'no server that pg_upgrade has started has sent anything');

#
# The upgraded server
#

$preloaded->append_conf('postgresql.conf', "shared_preload_libraries = ''");
for my $server ($preloaded, $new)
{
	$server->start;
	is(checksums($server, 'shopdb'), $rows, 'all rows are the same');
	is(sequences($server, 'shopdb'), $sequences, 'all sequences go on where they were');
	is(value($server, 'shopdb', $ranking), $order, 'the popular products are the same');
	healthy($server, 'shopdb', 'verify() finds nothing');
}
$preloaded->stop;
$new->append_conf('postgresql.conf', "shared_preload_libraries = 'shop'");
$new->restart;
workers_run($new, 'shopdb', PATIENCE, 'the workers start by themselves');
connect_to('shopdb', $new);
is(sql(q{SELECT DISTINCT pause_reason FROM shop.endpoints}), 'copied from another database', 'the endpoints are paused');
my $now = sql('SELECT clock_timestamp()');
order($new, 'shopdb', 5);
await_sql("last_cycle_at > timestamptz '$now' FROM shop.workers WHERE kind = 'relay'") or die 'the relay does not look';
is($receiver->count->{requests}, $requests, 'nothing is sent');
sql(q{SELECT shop.resume_endpoint(name) FROM shop.endpoints WHERE pause_reason = 'copied from another database'});
await_done('webhook');
await_done('platform');
my %n;
$n{ $_->{id} }++ for grep { $_->{taken} } $receiver->journal;
is_deeply(\%n, { map { $_->[0] => 1 } fates('webhook') }, 'once resumed, they get what is outstanding, and nothing twice');
is(sql(q{SELECT status FROM shop.pay_order((SELECT order_id FROM shop.order_history(3) WHERE status = 'reserved'), 3)}),
	'paid', 'what was reserved before is paid');
healthy($new, 'shopdb', 'verify() finds nothing');

disconnect();
ok($receiver->stop, 'the receiver ends well');
$new->stop;
unlike(slurp_file($_->logfile), qr/PANIC|TRAP|was terminated by signal/, 'no process crashed') for $old, $preloaded, $new;
done_testing();
