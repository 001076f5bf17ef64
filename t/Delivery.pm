# What the tests of delivery share: a shop and a session in it, endpoints and
# their events, what has become of them, and the relay.
package Delivery;

use strict;
use warnings;

use Exporter 'import';
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use ShopTest;
use Test::More;
use Time::HiRes qw(sleep time);

our @EXPORT = qw(
  open_for_delivery connect_to disconnect sql sql_list literal json await await_sql
  create_endpoint drop_endpoint resume emit endpoint_has fates by_key first_copies is_done await_done
  PATIENCE relay_pid end_relay wake_launcher sits_in_no_transaction is_idle in_time ends_in_time drops_in_time
);

# What is waited for comes soon, or never: nothing depends on how fast the machine is.
use constant PATIENCE => 180;

# Times that are promised are measured; a machine that is busy may miss them now
# and then, but not so often in a row.
use constant ATTEMPTS => 3;

my ($node, $session);

# A shop in the database shopdb of a server that has been started; skips the
# test if this build knows no endpoint of that url.
sub open_for_delivery
{
	($node, my $url) = @_;

	open_shop($node, 'shopdb');
	if (sqlstate_of($node, 'shopdb', "SELECT shop.create_endpoint('probe', '$url', '{none}')") eq '0A000')
	{
		$node->stop;
		plan skip_all => 'this build has no ' . $url =~ s{//.*}{//}r . ' endpoints';
	}
	$node->safe_psql('shopdb', q{SELECT shop.drop_endpoint('probe')});
	workers_run($node, 'shopdb', 60, 'the workers run');
	connect_to('shopdb');
	return;
}

#
# SQL
#

# A session that stays, which saves a process for each statement; on another
# server, if one is named.
sub connect_to
{
	my ($db, $server) = @_;

	$node = $server if $server;

	# While the server starts, psql may end before it has read what it is told.
	await(sub { my ($rc) = eval { $node->psql($db, 'SELECT 1') }; return defined $rc && $rc == 0; }) or BAIL_OUT('the server is gone');
	$session = open_session($node, $db);
	return;
}

sub disconnect
{
	end_session($session);
	return;
}

sub sql
{
	my ($statement) = @_;
	$session->{err} = '';
	my $result = in_session($session, $statement);

	die "$statement: $session->{err}" if $session->{err} =~ /ERROR|FATAL/;
	return $result;
}

# A list of lists, made of a query of JSON arrays.
sub sql_list
{
	my ($query) = @_;
	return @{ json(sql("SELECT coalesce(json_agg(j), '[]') FROM ($query) q(j)")) };
}

sub literal
{
	my ($text) = @_;
	return defined $text ? q{'} . $text =~ s/'/''/gr . q{'} : 'NULL';
}

# JSON as it comes from psql: its characters are bytes, as everywhere here.
sub json
{
	my ($text) = @_;
	return JSON::PP->new->decode($text);
}

# Waits until a condition is true; returns whether it is.
sub await
{
	my ($condition, $seconds) = @_;
	my $start = time;

	while (!$condition->())
	{
		return 0 if time - $start > ($seconds // PATIENCE);
		sleep 0.01;
	}
	return 1;
}

sub await_sql
{
	my ($condition, $seconds) = @_;
	return await(sub { sql("SELECT $condition") eq 't' }, $seconds);
}

#
# Endpoints and events
#

# An endpoint for events of its name, or of other types.
sub create_endpoint
{
	my ($name, $url, %arg) = @_;

	return sql(
		sprintf 'SELECT state FROM shop.create_endpoint(%s, %s, %s, %s, %s)',
		map { literal($_) } $name, $url, $arg{types} // qq({"$name"}), $arg{secret}, encode_json($arg{options} // {}));
}

sub drop_endpoint
{
	my ($name) = @_;
	return sql(sprintf 'SELECT shop.drop_endpoint(%s)', literal($name));
}

sub resume
{
	my ($name) = @_;
	return sql(sprintf 'SELECT shop.resume_endpoint(%s)', literal($name));
}

# Three events of each key, in three transactions; more are rolled back.
sub emit
{
	my ($type, $keys, $payload) = @_;
	my $events = sprintf q{SELECT count(shop.emit_event(%s, 'test', k, %s)) FROM json_array_elements_text(%s) k},
	  map { literal($_) } $type, $payload // '{}', encode_json($keys);

	sql("$events; BEGIN; $events; ROLLBACK; BEGIN; $events; SAVEPOINT s; $events; ROLLBACK TO s; COMMIT; $events");
	return;
}

# What shop.endpoints says of it.
sub endpoint_has
{
	my ($name, $column) = @_;
	return sql(sprintf 'SELECT %s FROM shop.endpoints WHERE name = %s', $column, literal($name));
}

# What has become of the events that an endpoint has subscribed to: a list of
# [ id, key, delivered or dead or waiting ], in their order.
sub fates
{
	my ($name) = @_;

	return sql_list(
		sprintf q{
		SELECT json_build_array(o.id, o.aggregateid,
		           CASE WHEN d.dead_at IS NOT NULL THEN 'dead' WHEN d.event_no IS NOT NULL OR NOT e.acked @> o.event_no
		                THEN 'waiting' ELSE 'delivered' END)
		  FROM shop.endpoint e
		  JOIN shop.outbox o ON (o.created_at >= e.created_at OR e.options @> '{"from_start": true}')
		       AND EXISTS (SELECT FROM unnest(e.types) t
		                    WHERE t IN ('*', o.type) OR (t LIKE '%%.*' AND starts_with(o.type, left(t, -1))))
		  LEFT JOIN shop.delivery d USING (endpoint_id, event_no)
		 WHERE e.name = %s
		 ORDER BY o.event_no}, literal($name));
}

# From [ id, key ] in some order to a hash of the ids of each key, in that order.
sub by_key
{
	my %ids;
	push @{ $ids{ $_->[1] } }, $_->[0] for @_;
	return \%ids;
}

# Of several of the same id, the first.
sub first_copies
{
	my %seen;
	return grep { !$seen{ $_->[0] }++ } @_;
}

# A condition: all events are delivered or dead.
sub is_done
{
	my ($name) = @_;

	return sprintf q{
		NOT EXISTS (SELECT FROM shop.delivery d WHERE d.endpoint_id = e.endpoint_id AND dead_at IS NULL)
		AND NOT EXISTS (SELECT FROM shop.outbox o WHERE NOT e.acked @> o.event_no) AND e.inflight IS NULL
		FROM shop.endpoint e WHERE name = %s}, literal($name);
}

sub await_done
{
	my ($name) = @_;
	my $start = time;
	my $done = await_sql(is_done($name));

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok($done, sprintf '%s: all events are done with (%.1f s)', $name, time - $start)
	  or diag(sql(sprintf 'SELECT to_json(e) FROM shop.endpoint e WHERE name = %s', literal($name)),
		sql('SELECT to_json(d) FROM shop.delivery d LIMIT 5'));
	return $done;
}

#
# The relay
#

# The one that runs, or comes up.
sub relay_pid
{
	my $pid;

	await(sub { ($pid = sql(q{SELECT pid FROM shop.workers WHERE kind = 'relay'})) ne '' }) or die 'no relay';
	return $pid;
}

# The launcher starts workers again when it is woken by that, and at once.
sub wake_launcher
{
	sql('ALTER DATABASE shopdb SET shop.worker = on');
	return;
}

# Ends a relay, and returns how long that took; the next one starts at once.
sub end_relay
{
	my ($pid) = @_;
	my $start = time;

	CORE::kill('TERM', $pid);
	await(sub { CORE::kill(0, $pid) == 0 }) or die 'the relay does not end';
	my $elapsed = time - $start;
	wake_launcher();
	return $elapsed;
}

# A test that passes if the relay is found without a transaction; or, if it has
# much to do, in none for long.
sub sits_in_no_transaction
{
	my ($name, $busy) = @_;
	my $none = $busy ? q{coalesce(xact_start > clock_timestamp() - interval '0.5 s', true)}
	  : 'xact_start IS NULL AND backend_xmin IS NULL AND backend_xid IS NULL';

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(
		await_sql(
			qq{count(*) > 0 AND bool_and($none) FROM pg_stat_activity
			   WHERE backend_type = 'shop relay' AND datname = current_database()}),
		"$name: the relay has no transaction open");
}

# How much of the processor the relay uses, for half a second.
sub load_of_relay
{
	my $relay = relay_pid();
	# Clock ticks, 100 a second.
	my $ticks = sub { my @stat = split ' ', slurp_file("/proc/$relay/stat") =~ s/.*\)//sr; return $stat[11] + $stat[12]; };
	my ($before, $start) = ($ticks->(), time);

	sql('SELECT pg_sleep(0.5)');
	return ($ticks->() - $before) / 100 / (time - $start);
}

# A test that passes if the relay does not use the processor much.
sub is_idle
{
	my ($name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return in_time(0.2, \&load_of_relay, "$name: the relay has nothing to do");
}

# A test that passes if what the code returns, a time mostly, is below a limit,
# now or when it is tried again.
sub in_time
{
	my ($limit, $measure, $name) = @_;
	my @measured;

	while (@measured < ATTEMPTS && (!@measured || $measured[-1] >= $limit))
	{
		push @measured, $measure->();
	}
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return cmp_ok($measured[-1], '<', $limit, "$name: " . join ', ', map { sprintf '%.2f', $_ } @measured);
}

# A test that passes if SIGTERM ends the relay within the second that is
# promised, whatever it is waiting for; the next one starts at once.
sub ends_in_time
{
	my ($name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return in_time(1, sub { end_relay(relay_pid()) }, "$name: the relay ends, in s");
}

# A test that passes if another database is dropped within the second that is
# promised: the relay of this one is in nobody's way.
sub drops_in_time
{
	my ($name) = @_;
	my $drop = sub {
		sql('CREATE DATABASE neighbour');
		my $start = time;
		sql('DROP DATABASE neighbour');
		return time - $start;
	};

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return in_time(1, $drop, "$name: another database is dropped, in s");
}

1;
