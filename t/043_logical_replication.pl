# The shop's tables, replicated by publication and subscription to another
# server, of the same or a newer major: the replica is the same shop, sends
# nothing while it is one, and takes over when it is told to.
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

my $publisher = new_server('publisher', init => [ allows_streaming => 'logical' ], settings => ['log_statement = none']);
$publisher->start;
open_for_delivery($publisher, 'http://127.0.0.1:1/');
my $receiver = start_receiver($publisher);
create_endpoint('webhook', $receiver->url, types => '{*}', options => { backoff => 10, max_backoff => 10, max_attempts => 1000 });
order($publisher, 'shopdb', $_) for 1 .. 10;
await_done('webhook');

is( sql(q{
		SELECT count(*) FROM pg_class c WHERE relnamespace = 'shop'::regnamespace AND relkind = 'r'
		 AND NOT (relreplident = 'd' AND EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary))}),
	'0', 'every table of the shop has a replica identity');
sql('CREATE PUBLICATION shop FOR TABLES IN SCHEMA shop');

my $replica = new_server('replica', settings => [ 'log_statement = none', 'max_worker_processes = 32', 'shop.popular_interval = 1' ]);
$replica->start;
$replica->safe_psql('postgres', 'CREATE DATABASE shopdb');
$replica->safe_psql('shopdb', 'CREATE EXTENSION shop');
workers_run($replica, 'shopdb', PATIENCE, 'the workers of the replica run');
$replica->safe_psql('shopdb', sprintf q{CREATE SUBSCRIPTION shop CONNECTION '%s' PUBLICATION shop}, $publisher->connstr('shopdb') =~ s/'/''/gr);

sub catch_up
{
	my $lsn = sql('SELECT pg_current_wal_insert_lsn()');

	await_sql("confirmed_flush_lsn >= '$lsn' FROM pg_replication_slots WHERE slot_name = 'shop'") or die 'no replication';
	return;
}

$replica->wait_for_subscription_sync($publisher, 'shop', 'shopdb');

#
# A replica
#

# Every verb, among them those that update and delete.
sql(q{
	SELECT shop.create_product('new', 5, 100), shop.set_price(1, 11), shop.restock(2, 5);
	SELECT shop.create_coupon_campaign('ten', 'percent', 10, 100, now() - interval '1 hour', now() + interval '1 day');
	SELECT shop.issue_coupon(1, u) FROM generate_series(1, 5) u;
	SELECT shop.place_order(1, '[{"product_id": 9, "quantity": 3}]', coupon_id => 1);
	SELECT shop.refund_order(max(order_id), '[{"product_id": 9, "quantity": 1}]', 'broken') FROM shop.orders;
	SELECT shop.reserve_order(3, '[{"product_id": 7, "quantity": 4}]', '1 day');
	SELECT shop.pay_order(max(order_id), 3) FROM shop.orders;
	SELECT shop.reserve_order(4, '[{"product_id": 7, "quantity": 4}]', '1 day');
	SELECT shop.release_order(max(order_id), 4) FROM shop.orders;
	SELECT shop.cancel_order(2)});
my $load = start_load($publisher, 'shopdb', 3, 200);
load_ended($load);
await_done('webhook');
await_done('platform');
await_sql(q{NOT EXISTS (SELECT FROM shop.outbox o, shop.endpoint e WHERE builtin AND NOT e.acked @> o.event_no
		AND o.type LIKE 'order.%')}) or die 'sales are not folded';

# One that waits, one that is new.
$receiver->control('fault=/status/503');
emit('event', ['key']);
await_sql('count(*) FILTER (WHERE attempts > 0) > 0 FROM shop.delivery') or die 'no retry';
sql('ALTER DATABASE shopdb SET shop.worker = off');
await_sql(q{count(pid) = 0 FROM shop.workers WHERE kind <> 'launcher'}) or die 'the workers do not end';
order($publisher, 'shopdb', 4);
my $requests = $receiver->count->{requests};
$receiver->control('fault=');
catch_up();

is(checksums($replica, 'shopdb'), checksums($publisher, 'shopdb'), 'all rows of the replica are the same');
my $now = value($replica, 'shopdb', 'SELECT clock_timestamp()');
within($replica, 'shopdb', PATIENCE, qq{count(*) = 2 FROM shop.workers WHERE kind <> 'launcher' AND last_cycle_at > timestamptz '$now'},
	'the workers of the replica have looked');
is(value($replica, 'shopdb', 'SELECT name, state, pause_reason FROM shop.endpoints ORDER BY name'),
	"platform|paused|copied from another database\nwebhook|paused|copied from another database", 'its endpoints are paused');
is($receiver->count->{requests}, $requests, 'and nothing is sent');
is(checksums($replica, 'shopdb'), checksums($publisher, 'shopdb'), 'nor has anything been written');
is(value($replica, 'shopdb', q{SELECT DISTINCT invariant FROM shop.verify()}), 'sequence: ahead of its table',
	'verify() finds only that sequences are not replicated');

#
# Which takes over
#

my $sequences = $publisher->safe_psql('shopdb', q{
	SELECT format('SELECT setval(%L, %s);', format('%I.%I', schemaname, sequencename), last_value)
	  FROM pg_sequences WHERE schemaname = 'shop' AND last_value IS NOT NULL});
disconnect();
$replica->safe_psql('shopdb', 'DROP SUBSCRIPTION shop');
$replica->safe_psql('shopdb', $sequences);
$publisher->stop;
healthy($replica, 'shopdb', 'with the sequences verify() finds nothing');
my @journal = $receiver->journal;
$replica->safe_psql('shopdb', 'SELECT shop.resume_endpoint(name) FROM shop.endpoints');
connect_to('shopdb', $replica);
order($replica, 'shopdb', 3);
await_done('webhook');
await_done('platform');
my %n;
$n{ $_->{id} }++ for grep { $_->{taken} } $receiver->journal;
is_deeply(\%n, { map { $_->[0] => 1 } fates('webhook') }, 'the receiver has got every event once, from the one or the other');
sql('SELECT shop.refresh_popular_products()');
is(value($replica, 'shopdb', q{
	SELECT sum(quantity) = (SELECT sum(l.quantity - l.refunded_quantity)
	                          FROM shop.orders o, LATERAL shop.order_lines(o.order_id) l WHERE o.status IN ('paid', 'refunded'))
	  FROM shop.popular_products}), 't', 'its popular products are right');
healthy($replica, 'shopdb', 'verify() finds nothing');

disconnect();
ok($receiver->stop, 'the receiver ends well');
$replica->stop;
unlike(slurp_file($_->logfile), qr/PANIC|TRAP|was terminated by signal/, 'no process crashed') for $publisher, $replica;
done_testing();
