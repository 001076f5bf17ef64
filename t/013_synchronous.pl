# With a synchronous standby an event leaves when the standby has it, however
# the transaction that wrote it was committed: what a receiver has got, no
# failover takes back.  Nor what a repeated call has been told.
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

my $primary = new_server('primary', init => [ allows_streaming => 1 ], settings => ['log_statement = none']);
$primary->start;
open_for_delivery($primary, 'http://127.0.0.1:1/');
my $receiver = start_receiver($primary);
create_endpoint('first', $receiver->url, types => '{event}');

$primary->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'backup', has_streaming => 1);
$standby->start;
sql(q{ALTER SYSTEM SET synchronous_standby_names = 'standby'});
sql('SELECT pg_reload_conf()');
await_sql(q{sync_state = 'sync' FROM pg_stat_replication}) or die 'no synchronous standby';

# Nothing that this session does waits for the standby.
sql('SET synchronous_commit = off');
my $writer = open_session($primary, 'shopdb');
my $writer_pid = in_session($writer, 'SELECT pg_backend_pid()');
my $sent = 0;

sub stop_standby
{
	$standby->stop('fast');
	await_sql('count(*) = 0 FROM pg_stat_replication') or die 'the standby does not leave';
	return;
}

# The writer commits an event, and may have to wait for the standby.
sub write_event
{
	my ($synchronous_commit) = @_;

	$writer->{in} .= "SET synchronous_commit = $synchronous_commit;\n"
	  . "SELECT shop.emit_event('event', 'test', 'key', '{}');\n";
	$writer->{harness}->pump_nb;
	return;
}

# A condition: that process waits for the standby.
sub waits
{
	my ($pid) = @_;
	return "coalesce(wait_event = 'SyncRep', false) FROM pg_stat_activity WHERE pid = $pid";
}

# Tests that nothing has been sent, by a relay that has had the occasion to.
sub is_held_back
{
	my ($name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is($receiver->count->{requests}, $sent, "$name: nothing has been sent");
}

# Tests that the event is sent once the standby has it.
sub leaves_with_standby
{
	my ($name) = @_;

	$standby->start;
	$sent++;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	# Until its commit has been let go, nobody sees that there is an event.
	$receiver->wait_for($sent);
	await_done('first');
	is($receiver->taken, $sent, "$name: with the standby it leaves");
	return;
}

write_event('on');
ok($receiver->wait_for(++$sent), 'an event arrives while the standby is there');
await_done('first');

#
# Its own transaction waits for the standby
#

stop_standby();
write_event('on');
ok(await_sql(waits($writer_pid)), 'synchronous: its commit waits');
my $now = sql(q{SELECT shop.pause_endpoint('platform'); SELECT clock_timestamp()}) =~ s/.*\n//sr;
ok(await_sql("last_cycle_at > '$now' FROM shop.workers WHERE kind = 'relay'"), 'synchronous: the relay looks');
is_held_back('synchronous');
leaves_with_standby('synchronous');

#
# It does not, but the relay does
#

for my $how ('local', 'off')
{
	stop_standby();
	write_event($how);
	ok(await_sql(waits(relay_pid())), "$how: the relay waits for the standby");
	is_held_back($how);
	leaves_with_standby($how);
}

# The wait is given up, and then the event is there for everybody on the primary.
stop_standby();
write_event('on');
ok(await_sql(waits($writer_pid)), 'given up: its commit waits');
sql("SELECT pg_cancel_backend($writer_pid)");
ok(await_sql(waits(relay_pid())), 'given up: the relay waits for the standby');
is_held_back('given up');

#
# A relay that is ended while it waits
#

ends_in_time('ended');
ok(await_sql(waits(relay_pid())), 'ended: the next relay waits as well');
is_held_back('ended');

leaves_with_standby('ended');

# Nor does it go on when somebody cancels its wait.
stop_standby();
write_event('off');
await_sql(waits(relay_pid())) or die 'no wait';
sql('SELECT pg_cancel_backend(' . relay_pid() . ')');
ok(!await(sub { $receiver->count->{requests} > $sent }, 1), 'cancelled: nothing has been sent');
leaves_with_standby('cancelled');

#
# An event that is tried again is no different
#

$receiver->control('fault=/status/503');
write_event('on');
await_sql(q{count(*) > 0 FROM shop.delivery}) or die 'no retry';
stop_standby();
ok(await_sql(waits(relay_pid())), 'a retry: the relay waits for the standby');
my $tries = $receiver->count->{requests};
$receiver->control('fault=');
ends_in_time('a retry');
ok(await_sql(waits(relay_pid())), 'a retry: the next relay waits as well');
is($receiver->count->{requests}, $tries, 'a retry: nothing has been sent');
leaves_with_standby('a retry');

#
# A call whose wait was cut short, and that is repeated by its key
#

my $item = q{'[{"product_id": 1, "quantity": 1}]'};
my $order = sql("SELECT order_id FROM shop.place_order(2, $item)");
my $reserved = sql("SELECT order_id FROM shop.reserve_order(2, $item)");
my $campaign = q{'c', 'fixed', 1, 9, '2020-01-01', '2100-01-01'};
my $campaign_id = sql("SELECT shop.create_coupon_campaign($campaign)");
my $repeater = open_session($primary, 'shopdb');
my $repeater_pid = in_session($repeater, 'SELECT pg_backend_pid()');

for my $call (
	"place_order(1, $item, idempotency_key => 'k')", "reserve_order(1, $item, idempotency_key => 'k')",
	"pay_order($reserved, 2, idempotency_key => 'k')", "refund_order($order, $item, idempotency_key => 'k')",
	"cancel_order($reserved)", q{charge_points(1, 7, 'k')}, q{use_points(1, 7, idempotency_key => 'k')},
	"issue_coupon($campaign_id, 1, 'k')", "create_coupon_campaign($campaign, idempotency_key => 'k')",
	q{restock(1, 7, 'k')}, q{create_product('x', 7, idempotency_key => 'k')})
{
	my ($verb) = $call =~ /^(\w+)/;

	stop_standby();
	$writer->{in} .= "SET synchronous_commit = on;\nSELECT FROM shop.$call;\n";
	$writer->{harness}->pump_nb;
	await_sql(waits($writer_pid)) or die "$verb: no wait";
	sql("SELECT pg_cancel_backend($writer_pid)");
	await_sql("coalesce(wait_event <> 'SyncRep', true) FROM pg_stat_activity WHERE pid = $writer_pid") or die "$verb: no end";
	$repeater->{in} .= "SELECT FROM shop.$call;\n";
	$repeater->{harness}->pump_nb;
	ok(await_sql(waits($repeater_pid), 10), "$verb: repeated, it waits for the standby");
	$standby->start;
	ok(await_sql("state = 'idle' FROM pg_stat_activity WHERE pid = $repeater_pid"), "$verb: with the standby it is answered");
}
end_session($repeater);

healthy($primary, 'shopdb', 'verify() finds nothing');
end_session($writer);
disconnect();
ok($receiver->stop, 'the receiver ends well');
$standby->stop;
$primary->stop('immediate');
unlike(slurp_file($primary->logfile), qr/PANIC|TRAP|was terminated by signal/, 'no process crashed');
done_testing();
