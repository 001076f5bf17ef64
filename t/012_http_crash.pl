# The relay is ended between the receiver's answer and its own note of it, again
# and again: by a signal, and by one that takes the whole server along.  Every
# event arrives, repeated ones under the id they had, each key in its order, and
# nothing that a crash took back.
#
# CRASHES=n: how often, in all.
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

my $crashes = $ENV{CRASHES} // 100;
my $kills = int($crashes / 10);
my $locks = int($crashes * 4 / 10);
my $ends = $crashes - $kills - $locks;

# All events come at last, however often that takes.
my %options = (timeout => 5000, backoff => 20, max_backoff => 200, max_attempts => 1000);

my $node = new_server('http_crash', settings => [ 'log_statement = none', 'restart_after_crash = on' ]);
$node->start;
open_for_delivery($node, 'http://127.0.0.1:1/');
my ($single, $batch);

# Events of a type go to a target of a receiver of their own.
sub endpoint
{
	my ($name, $type, $target, $added) = @_;
	my $receiver = start_receiver($node);

	create_endpoint($name, $receiver->url($target), types => "{$type}", options => { %options, %{ $added // {} } });
	return $receiver;
}

# Some events of forty keys, from four sessions; what a crash loses of them nobody
# waits for.
sub start_events
{
	local $ENV{PGOPTIONS} = '-c synchronous_commit=off';
	return start_pgbench($node, 'shopdb', q{\set key random(1, 10)
\set undo random(1, 10)
BEGIN;
SELECT shop.emit_event('load', 'test', 'client ' || :client_id || ' key ' || :key, '{}');
\if :undo = 1
ROLLBACK;
\else
COMMIT;
\endif
}, '-c', 4, '-R', 400, '-t', 8);
}

# Does something while both receivers have got some of the events, and are about
# to answer.
sub amid_events
{
	my ($action) = @_;
	my @before = map { $_->count->{requests} } $single, $batch;
	my $load = start_events();

	await(sub { $single->count->{requests} > $before[0] && $batch->count->{requests} > $before[1] }) or die 'no requests';
	$action->();
	load_ended($load);
	return;
}

# How many events a receiver has got more than once.
sub repeated
{
	my ($receiver) = @_;
	my %n;

	$n{ $_->{id} }++ for grep { $_->{taken} } $receiver->journal;
	return scalar grep { $_ > 1 } values %n;
}

# Tests that an endpoint's events have all arrived, once all is quiet.
sub check
{
	my ($name, $receiver) = @_;
	my @fates = fates($name);
	my %is_committed = map { $_->[0] => 1 } @fates;
	my ($foreign, $renamed) = (0, 0);
	my @taken;

	for my $entry ($receiver->journal)
	{
		$foreign++ if $entry->{id} ne '' && !$is_committed{ $entry->{id} };
		$renamed++ if $entry->{events} == 1 && $entry->{webhook_id} !~ /^\Q$entry->{id}\E(?:\+0)?$/;
		push @taken, [ @$entry{qw(id subject)} ] if $entry->{taken};
	}
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is_deeply(by_key(first_copies(@taken)), by_key(@fates),
		sprintf '%s: all of %d events have arrived, in the order of their keys', $name, scalar @fates);
	is($foreign, 0, "$name: none that was never committed, or was lost in a crash");
	is($renamed, 0, "$name: each under its id, however often");
	is(sql(qq{SELECT retrying, dead FROM shop.outbox_metrics() WHERE endpoint = '$name'}), '0|0', "$name: none is left");
	return;
}

#
# The answer has come, but the endpoint is locked when the relay wants to note it
#

my $locked = endpoint('locked', 'locked', '/delay?ms=50');
my $locker = open_session($node, 'shopdb');
my ($rounds, $missed) = (0, 0);
while ($rounds < $locks && $missed < 200)
{
	my $relay = relay_pid();
	await_sql(q{inflight IS NULL AND NOT EXISTS (SELECT FROM shop.delivery d WHERE d.endpoint_id = e.endpoint_id)
	             FROM shop.endpoint e WHERE name = 'locked'}) or die 'no end';
	my $requests = $locked->count->{requests};
	sql(sprintf q{SELECT shop.emit_event('locked', 'test', 'key %d', '{}')}, $rounds % 3);
	await(sub { $locked->count->{requests} > $requests }) or die 'no request';
	if (in_session($locker, q{BEGIN; SELECT inflight IS NOT NULL FROM shop.endpoint WHERE name = 'locked' FOR UPDATE}) eq 't')
	{
		# What it tries to do next is to note the answer.
		my $now = sql('SELECT clock_timestamp()');
		await_sql("state_change > '$now' FROM pg_stat_activity WHERE pid = $relay") or die 'no answer';
		end_relay($relay);
		$rounds++;
	}
	else
	{
		$missed++;
	}
	in_session($locker, 'ROLLBACK');
}
end_session($locker);
is($rounds, $locks, "$locks times the relay was ended with an answer that it had not noted");
await_done('locked');
is(repeated($locked), $locks, 'that many events came again');
check('locked', $locked);

#
# Many requests are on their way
#

$single = endpoint('single', 'load', '/delay?ms=20');
$batch = endpoint('batch', 'load', '/delay?ms=20&batch', { batch => 10, in_flight => 4 });
amid_events(sub { end_relay(relay_pid()) }) for 1 .. $ends;
await_done($_) for 'single', 'batch';
cmp_ok(repeated($single), '>', $ends / 2, sprintf '%d events came again after %d ends of the relay', repeated($single), $ends);
cmp_ok(repeated($batch), '>', $ends / 2, sprintf '%d came again in batches', repeated($batch));
check('single', $single);
check('batch', $batch);
is(sql('SELECT * FROM shop.verify()'), '', 'verify() finds nothing');

#
# The relay is killed, and with it the server
#

my $before = repeated($single);
for (1 .. $kills)
{
	my $relay = relay_pid();
	amid_events(sub { kill 'KILL', $relay });
	disconnect();
	await(sub { kill(0, $relay) == 0 }) or die 'the relay is still there';
	connect_to('shopdb');
}
await_done($_) for 'single', 'batch';
cmp_ok(repeated($single), '>=', $before + $kills / 2,
	sprintf '%d events came again after %d crashes of the server', repeated($single) - $before, $kills);
check('single', $single);
check('batch', $batch);
is(sql('SELECT * FROM shop.verify()'), '', 'verify() finds nothing');

#
# Two events that end whoever sends them, among others
#

my $poison = endpoint('poison', 'poison', '/hang?key=poison', { max_attempts => 6, timeout => 30000 });
my $both_are_dead = q{count(*) = 2 FROM shop.dead_letters WHERE endpoint = 'poison' AND aggregateid = 'poison'};
my $tries = sub { return scalar grep { $_->{subject} eq 'poison' } $poison->journal };
$rounds = 0;
sql(q{SELECT shop.emit_event('poison', 'test', k, '{}') FROM unnest('{poison,good,better,best,poison}'::text[]) k});
while ($rounds < 20)
{
	await(sub { $tries->() > $rounds || sql("SELECT $both_are_dead") eq 't' }) or last;
	last if $tries->() <= $rounds;
	end_relay(relay_pid());
	$rounds++;
}
within($node, 'shopdb', 60, $both_are_dead, 'what ends its sender each time is a dead letter in the end');
ok($rounds >= 6 && $rounds <= 12, "after $rounds ends of the relay, where 6 tries each are allowed");
is(join(' ', sort keys %{ { map { $_->{subject} => 1 } grep { $_->{taken} } $poison->journal } }),
	'best better good', 'the others have arrived');
is(sql(q{SELECT string_agg(DISTINCT aggregateid, ' ') FROM shop.dead_letters}), 'poison', 'they have not died with it');
sql(q{SELECT shop.redrive_all('poison')});
ok(await(sub { $tries->() > $rounds }), 'it can be sent again');
drop_endpoint('poison');

within($node, 'shopdb', 60, q{bool_and(state = 'active') FROM shop.endpoints}, 'all endpoints are well');
healthy($node, 'shopdb', 'verify() finds nothing');
disconnect();
$node->stop;
unlike(slurp_file($node->logfile), qr/PANIC|TRAP|was terminated by signal (?!9)/, 'no process crashed but those that were killed');
done_testing();
