# A standby that is behind is promoted while events are on their way: all that it
# has arrives, repeated ones under the id they had, each key in its order.  Of a
# synchronous one, nothing that anybody was told is lost.
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

my @items = map { qq{[{"product_id": $_, "quantity": 1}, {"product_id": @{[$_ + 1]}, "quantity": 2}]} } 1 .. 19;

# A primary and its standby, with a webhook that is slow to answer.
sub start_pair
{
	my ($kind) = @_;
	my $primary = new_server("${kind}_primary", init => [ allows_streaming => 1 ],
		settings => [ 'log_statement = none', 'max_connections = 40' ]);
	$primary->start;
	open_for_delivery($primary, 'http://127.0.0.1:1/');
	my $receiver = start_receiver($primary);
	create_endpoint('webhook', $receiver->url('/delay?ms=30'), types => '{order.paid,event}',
		options => { in_flight => 8, backoff => 20, max_backoff => 200, max_attempts => 1000 });

	$primary->backup('backup');
	my $standby = PostgreSQL::Test::Cluster->new("${kind}_standby");
	$standby->init_from_backup($primary, 'backup', has_streaming => 1);
	$standby->start;
	await_sql(q{count(*) = 1 FROM pg_stat_replication WHERE state = 'streaming'}) or die 'no standby';
	if ($kind eq 'synchronous')
	{
		sql(sprintf q{ALTER SYSTEM SET synchronous_standby_names = '%s'}, $standby->name);
		sql('SELECT pg_reload_conf()');
		await_sql(q{sync_state = 'sync' FROM pg_stat_replication}) or die 'no synchronous standby';
	}
	return ($primary, $standby, $receiver);
}

# Four sessions, a user each, that order and remember what they were told.
sub start_orders
{
	my ($node) = @_;
	my @told;

	for my $user (1 .. 4)
	{
		my $sql = join '', map
		{
			sprintf "SELECT order_id FROM shop.place_order(%d, '%s', idempotency_key => 'order %d');\n"
			  . "SELECT shop.emit_event('event', 'test', 'user %d', '{}');\n",
			  $user, $items[ $_ % @items ], $_, $user
		} 1 .. 4000;
		my $told = { in => $sql, out => '', err => '' };

		$told->{harness} = IPC::Run::start(
			[ $node->installed_command('psql'), '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('shopdb'), '-f', '-' ],
			'<', \$told->{in}, '>', \$told->{out}, '2>', \$told->{err}, IPC::Run::timeout(PATIENCE));
		push @told, $told;
	}
	return @told;
}

for my $kind ('asynchronous', 'synchronous')
{
	my ($primary, $standby, $receiver) = start_pair($kind);
	my @sessions = start_orders($primary);

	# Some are delivered, and some are on their way; then the standby gets no more.
	my $pump = sub { $_->{harness}->pump_nb for @sessions };
	await(sub { $pump->(); $receiver->taken > 100 }) or die 'nothing is delivered';
	kill 'STOP', sql('SELECT pid FROM pg_stat_replication');
	my $taken = $receiver->taken;
	await(
		sub {
			$pump->();
			return $receiver->taken > $taken + 50 if $kind eq 'asynchronous';
			return sql(q{SELECT count(*) = 4 FROM pg_stat_activity WHERE backend_type = 'client backend' AND wait_event = 'SyncRep'}) eq 't';
		}) or die 'no end of it';
	disconnect();
	$primary->stop('immediate');
	eval { $_->{harness}->finish } for @sessions;
	my @told = map { $_->{out} =~ /^(\d+)$/mg } @sessions;
	$standby->promote;

	workers_run($standby, 'shopdb', PATIENCE, "$kind: the workers start by themselves");
	connect_to('shopdb', $standby);
	is(endpoint_has('webhook', 'pause_reason IS NULL'), 't', "$kind: a promoted standby is no copy");
	cmp_ok(sql(q{SELECT count(*) FROM shop.outbox o, shop.endpoint e
	              WHERE e.name = 'webhook' AND o.type = 'event' AND o.created_at >= e.created_at}), '>', 100, "$kind: it has events");
	await_done('webhook');
	await_done('platform');

	my @fates = fates('webhook');
	my %there = map { $_->[0] => 1 } @fates;
	my @taken = map { [ @$_{qw(id subject)} ] } grep { $_->{taken} } $receiver->journal;
	my @known = grep { $there{ $_->[0] } } @taken;
	is_deeply(by_key(first_copies(@known)), by_key(@fates), "$kind: every event that it has has arrived, in the order of its key");
	my %times;
	$times{ $_->[0] }++ for @known;
	note(scalar(grep { $_ > 1 } values %times), ' of ', scalar(@fates), ' events have arrived twice');
	my $lost = sql(sprintf q{SELECT count(*) FROM unnest('{%s}'::bigint[]) n WHERE NOT EXISTS (SELECT FROM shop.orders WHERE order_id = n)},
		join ',', @told);
	if ($kind eq 'synchronous')
	{
		is(scalar(@taken - @known), 0, "$kind: nothing has arrived that it does not have");
		is($lost, 0, sprintf '%s: none of the %d orders is lost that somebody was told of', $kind, scalar @told);
	}
	else
	{
		cmp_ok($lost, '>', 0, sprintf '%s: of the %d orders that somebody was told of, those are lost that it did not get', $kind, scalar @told);
	}

	# Whoever was told nothing asks again.
	my $again = sql(sprintf q{SELECT replayed FROM shop.place_order(1, '%s', idempotency_key => 'order 1')}, $items[1]);
	is($again, 't', "$kind: a key that was used is known");
	order($standby, 'shopdb', 3);
	await_done('webhook');
	healthy($standby, 'shopdb', "$kind: verify() finds nothing");

	disconnect();
	ok($receiver->stop, "$kind: the receiver ends well");
	$standby->stop;
	unlike(slurp_file($_->logfile), qr/PANIC|TRAP|was terminated by signal/, "$kind: no process crashed") for $primary, $standby;
}
done_testing();
