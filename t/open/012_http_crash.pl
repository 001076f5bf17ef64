# The relay is ended between the receiver's answer and its own note of it, again
# and again: by a signal, and by one that takes the whole server along.  Every
# event arrives, repeated ones under the id they had, each key in its order, and
# nothing that a crash took back.
#
# CRASHES=n: how often, in all.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/..";

use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Receiver;
use ShopTest;
use Test::More;
use Time::HiRes qw(sleep time);

plan skip_all => 'needs a C compiler and the headers of OpenSSL'
  if system('echo "#include <openssl/ssl.h>" | ${CC:-cc} -E - >/dev/null 2>&1') != 0;

my $crashes = $ENV{CRASHES} // 100;
my $kills = int($crashes / 10);
my $locks = int($crashes * 4 / 10);
my $ends = $crashes - $kills - $locks;

# All events come at last, however often that takes.
my %options = (timeout => 2000, backoff => 20, max_backoff => 200, max_attempts => 1000);

my $node = new_server('http_crash', settings => [ 'log_statement = none', 'restart_after_crash = on' ]);
$node->start;
open_shop($node, 'shopdb');
if (sqlstate_of($node, 'shopdb', q{SELECT shop.create_endpoint('probe', 'http://127.0.0.1:1/', '{none}')}) eq '0A000')
{
	$node->stop;
	plan skip_all => 'this build has no http:// endpoints';
}
$node->safe_psql('shopdb', q{SELECT shop.drop_endpoint('probe')});
workers_run($node, 'shopdb', 10, 'the workers run');
my $session = open_session($node, 'shopdb');
my ($single, $batch);

# In a session of its own, which saves a process for each statement.
sub sql
{
	my ($statement) = @_;
	$session->{err} = '';
	my $result = in_session($session, $statement);

	die "$statement: $session->{err}" if $session->{err} =~ /ERROR|FATAL/;
	return $result;
}

# Waits until a condition is true; returns whether it is.
sub await
{
	my ($condition, $seconds) = @_;
	my $start = time;

	while (!$condition->())
	{
		return 0 if time - $start > ($seconds // 30);
		sleep 0.005;
	}
	return 1;
}

sub await_sql
{
	my ($condition, $seconds) = @_;
	return await(sub { sql("SELECT $condition") eq 't' }, $seconds);
}

# Events of a type go to a target of a receiver of their own.
sub endpoint
{
	my ($name, $type, $target, $added) = @_;
	my $receiver = start_receiver($node);

	sql(sprintf q{SELECT shop.create_endpoint('%s', '%s', '{%s}', options => '%s')},
		$name, $receiver->url($target), $type, encode_json({ %options, %{ $added // {} } }));
	return $receiver;
}

# The relay that runs now, and is not the one before.
sub next_relay
{
	my ($before) = @_;
	my $pid;

	await(
		sub {
			$pid = sql(q{SELECT pid FROM shop.workers WHERE kind = 'relay' AND pid IS NOT NULL});
			return $pid ne '' && $pid ne ($before // '');
		}) or die 'no relay';
	return $pid;
}

# Ends a relay; the next one starts at once.
sub end_relay
{
	my ($pid) = @_;

	kill 'TERM', $pid;
	await(sub { kill(0, $pid) == 0 }) or die 'the relay does not end';
	sql('ALTER DATABASE shopdb SET shop.worker = on');
	return;
}

# Events of forty keys, some hundred a second; what a crash loses of them nobody
# waits for.
sub start_events
{
	my $script = $node->basedir . '/events.pgbench';

	append_to_file(
		$script, q{\set key random(1, 10)
\set undo random(1, 10)
BEGIN;
SELECT shop.emit_event('load', 'test', 'client ' || :client_id || ' key ' || :key, '{}');
\if :undo = 1
ROLLBACK;
\else
COMMIT;
\endif
}) if !-e $script;

	my $load = { out => '', err => '' };
	local $ENV{PGOPTIONS} = '-c synchronous_commit=off';
	$load->{harness} = IPC::Run::start(
		[
			$node->installed_command('pgbench'), '-n', '-c', 4, '-R', 200, '-T', 600, '-f', $script, $node->connstr('shopdb')
		],
		'<', \undef, '>', \$load->{out}, '2>', \$load->{err},
		IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	return $load;
}

sub stop_events
{
	my ($load) = @_;

	$load->{harness}->signal('TERM');
	eval { $load->{harness}->finish };
	return;
}

# Waits until both receivers have got more, and are about to answer.
sub more_requests
{
	for my $receiver ($single, $batch)
	{
		my $requests = $receiver->count->{requests};
		await(sub { $receiver->count->{requests} > $requests + 2 }) or die 'no requests';
	}
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
	my ($name, $receiver, $type) = @_;
	my %committed = %{
		decode_json(
			sql(
				qq{SELECT coalesce(json_object_agg(key, ids), '{}')
				     FROM (SELECT aggregateid AS key, json_agg(id ORDER BY event_no) AS ids FROM shop.outbox WHERE type = '$type' GROUP BY 1) k})) };
	my %is_committed = map { $_ => 1 } map { @$_ } values %committed;
	my (%arrived, %seen);
	my ($foreign, $renamed) = (0, 0);

	for my $entry ($receiver->journal)
	{
		$foreign++ if $entry->{id} ne '' && !$is_committed{ $entry->{id} };
		$renamed++ if $entry->{events} == 1 && $entry->{webhook_id} !~ /^\Q$entry->{id}\E(?:\+0)?$/;
		push @{ $arrived{ $entry->{subject} } }, $entry->{id} if $entry->{taken} && !$seen{ $entry->{id} }++;
	}
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is_deeply(\%arrived, \%committed, sprintf '%s: all of %d events have arrived, in the order of their keys', $name, scalar keys %is_committed);
	is($foreign, 0, "$name: none that was never committed, or was lost in a crash");
	is($renamed, 0, "$name: each under its id, however often");
	is(sql(qq{SELECT retrying, dead FROM shop.outbox_metrics() WHERE endpoint = '$name'}), '0|0', "$name: none is left");
	return;
}

sub await_delivery
{
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return within(
		$node, 'shopdb', 30,
		q{bool_and(m.retrying = 0 AND inflight IS NULL
		           AND NOT EXISTS (SELECT FROM shop.outbox o WHERE NOT e.acked @> o.event_no))
		   FROM shop.endpoint e JOIN shop.outbox_metrics() m ON m.endpoint = e.name},
		'everything is delivered');
}

#
# The answer has come, but the endpoint is locked when the relay wants to note it
#

my $locked = endpoint('locked', 'locked', '/delay?ms=50');
my $locker = open_session($node, 'shopdb');
my $relay;
my ($rounds, $missed) = (0, 0);
while ($rounds < $locks && $missed < 50)
{
	$relay = next_relay($relay);
	await_sql(q{inflight IS NULL AND NOT EXISTS (SELECT FROM shop.delivery d WHERE d.endpoint_id = e.endpoint_id)
	             FROM shop.endpoint e WHERE name = 'locked'}) or die 'no end';
	my $requests = $locked->count->{requests};
	sql(sprintf q{SELECT shop.emit_event('locked', 'test', 'key %d', '{}')}, $rounds % 3);
	await(sub { $locked->count->{requests} > $requests }) or die 'no request';
	if (in_session($locker, q{BEGIN; SELECT inflight IS NOT NULL FROM shop.endpoint WHERE name = 'locked' FOR UPDATE}) eq 't')
	{
		# The receiver lets it wait for 50 ms.
		sleep 0.08;
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
await_delivery();
is(repeated($locked), $locks, 'that many events came again');
check('locked', $locked, 'locked');

#
# Many requests are on their way
#

$single = endpoint('single', 'load', '/delay?ms=20');
$batch = endpoint('batch', 'load', '/delay?ms=20&batch', { batch => 10, in_flight => 4 });
my $load = start_events();
for (1 .. $ends)
{
	$relay = next_relay($relay);
	more_requests();
	end_relay($relay);
}
stop_events($load);
await_delivery();
cmp_ok(repeated($single), '>', $ends / 2, sprintf '%d events came again after %d ends of the relay', repeated($single), $ends);
cmp_ok(repeated($batch), '>', $ends / 2, sprintf '%d came again in batches', repeated($batch));
check('single', $single, 'load');
check('batch', $batch, 'load');
is(sql('SELECT * FROM shop.verify()'), '', 'verify() finds nothing');

#
# The relay is killed, and with it the server
#

my $before = repeated($single);
for (1 .. $kills)
{
	$load = start_events();
	$relay = next_relay();
	more_requests();
	kill 'KILL', $relay;
	stop_events($load);
	end_session($session);
	$node->poll_query_until('shopdb', "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $relay") or die 'no server';
	$session = open_session($node, 'shopdb');
}
await_delivery();
cmp_ok(repeated($single), '>=', $before + $kills / 2,
	sprintf '%d events came again after %d crashes of the server', repeated($single) - $before, $kills);
check('single', $single, 'load');
check('batch', $batch, 'load');
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
	$relay = next_relay($relay);
	await(sub { $tries->() > $rounds || sql("SELECT $both_are_dead") eq 't' }) or last;
	last if $tries->() <= $rounds;
	end_relay($relay);
	$rounds++;
}
within($node, 'shopdb', 10, $both_are_dead, 'what ends its sender each time is a dead letter in the end');
ok($rounds >= 6 && $rounds <= 12, "after $rounds ends of the relay, where 6 tries each are allowed");
is(join(' ', sort keys %{ { map { $_->{subject} => 1 } grep { $_->{taken} } $poison->journal } }),
	'best better good', 'the others have arrived');
is(sql(q{SELECT string_agg(DISTINCT aggregateid, ' ') FROM shop.dead_letters}), 'poison', 'they have not died with it');
sql(q{SELECT shop.redrive_all('poison')});
ok(await(sub { $tries->() > $rounds }), 'it can be sent again');
sql(q{SELECT shop.drop_endpoint('poison')});

within($node, 'shopdb', 10, q{bool_and(state = 'active') FROM shop.endpoints}, 'all endpoints are well');
healthy($node, 'shopdb', 'verify() finds nothing');
end_session($session);
$node->stop;
unlike(slurp_file($node->logfile), qr/PANIC|TRAP|was terminated by signal (?!9)/, 'no process crashed but those that were killed');
done_testing();
