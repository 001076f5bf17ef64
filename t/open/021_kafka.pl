# What a Kafka endpoint gets, and what becomes of it when brokers, topics,
# messages, settings, the program that speaks to Kafka, the relay or the server
# fail.  After each fault: what was committed is in the topic, in the order of
# its key, and nothing else is; and meanwhile nobody else was held up.
#
# The brokers are those of a mock cluster, whose faults come on demand, and the
# server is one whose program can be taken away and replaced.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/..";

use File::Basename qw(dirname);
use File::Copy qw(copy);
use File::Path qw(make_path);
use IPC::Open2;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use ShopTest;
use Test::More;
use Time::HiRes qw(sleep time);

# Of Kafka's protocol: a kind of request, and what its answer may say.
use constant PRODUCE => 0;
use constant {
	DISCONNECT => -195,
	NO_ERROR => 0,
	UNKNOWN_TOPIC => 3,
	NOT_LEADER => 6,
	REQUEST_TIMED_OUT => 7,
	TOO_LARGE => 10,
	NOT_ENOUGH_REPLICAS => 19,
	NOT_ENOUGH_REPLICAS_AFTER_APPEND => 20,
	TOPIC_AUTHORIZATION_FAILED => 29,
	OUT_OF_ORDER => 45,
};

# Short, so that the tests are; a test that needs more says so.
my %options = (timeout => 1500, backoff => 20, max_backoff => 300, max_attempts => 1000);
my %settings = ('reconnect.backoff.max.ms' => 100, 'retry.backoff.ms' => 20, 'topic.metadata.refresh.fast.interval.ms' => 50);

my $dir = PostgreSQL::Test::Utils::tempdir;
my @cc = split ' ', $ENV{CC} // 'cc';

plan skip_all => "needs a C compiler (@cc)" if system("@cc --version >/dev/null 2>&1") != 0;
plan skip_all => 'needs librdkafka and its headers'
  if system("@cc -O2 -o $dir/mock_cluster $FindBin::RealBin/../mock_cluster.c -lrdkafka -lpthread >$dir/cc.log 2>&1") != 0;
plan skip_all => 'needs /proc' if !-e "/proc/$$/stat";

#
# The server, in a copy of its installation where shop_kafka can be another one
#

sub pg_config
{
	my ($what) = @_;

	chomp(my $value = `${\ ($ENV{PG_CONFIG} // 'pg_config')} --$what`);
	return $value;
}

# Server and pg_ctl look for everything beside themselves, where links do not
# take them in; all else is links.
sub copy_installation
{
	my ($to) = @_;
	my %from = map { $_ => pg_config($_) } qw(bindir pkglibdir sharedir);

	for my $from (@from{qw(bindir pkglibdir)})
	{
		make_path("$to$from");
		for my $file (grep { -e } glob "$from/*")
		{
			my $copy = "$to$file";
			if ($file =~ m{/(?:postgres|pg_ctl)$})
			{
				copy($file, $copy) && chmod 0755, $copy or die "$copy: $!";
			}
			else
			{
				symlink $file, $copy or die "$copy: $!";
			}
		}
	}
	make_path(dirname("$to$from{sharedir}"));
	symlink $from{sharedir}, "$to$from{sharedir}" or die "$from{sharedir}: $!";
	return (dirname("$to$from{bindir}"), "$to$from{pkglibdir}/shop_kafka");
}

plan skip_all => 'there is no program shop_kafka' if !-x pg_config('pkglibdir') . '/shop_kafka';
my ($installation, $program) = copy_installation("$dir/copy");
my $real_program = readlink $program;

my $node = PostgreSQL::Test::Cluster->new('kafka', install_path => $installation);
$node->init;
$node->append_conf(
	'postgresql.conf', q{
	shared_preload_libraries = 'shop'
	max_worker_processes = 16
	timezone = 'UTC'
	log_statement = none
	statement_timeout = '60s'
	restart_after_crash = on
});
$node->start;
open_shop($node, 'shopdb');
if (sqlstate_of($node, 'shopdb', q{SELECT shop.create_endpoint('probe', 'kafka://127.0.0.1:1/t', '{none}')}) eq '0A000')
{
	$node->stop;
	plan skip_all => 'this build has no kafka:// endpoints';
}
$node->safe_psql('shopdb', q{SELECT shop.drop_endpoint('probe')});
workers_run($node, 'shopdb', 10, 'the workers run');

# Something that hangs must not hang the tests.
local $SIG{ALRM} = sub { BAIL_OUT('the tests take too long') };
alarm 400;

my $session = open_session($node, 'shopdb');
my %case; # cluster and topic of each endpoint

# In a session of its own, which saves a process for each statement.
sub sql
{
	my ($statement) = @_;
	$session->{err} = '';
	my $result = in_session($session, $statement);

	die "$statement: $session->{err}" if $session->{err} =~ /ERROR|FATAL/;
	return $result;
}

sub literal
{
	my ($text) = @_;
	return q{'} . $text =~ s/'/''/gr . q{'};
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
	my ($seconds, $condition) = @_;
	my $end = time + $seconds;

	while (!$condition->())
	{
		return 0 if time > $end;
		sleep 0.02;
	}
	return 1;
}

sub await_sql
{
	my ($seconds, $condition) = @_;
	return await($seconds, sub { sql("SELECT $condition") eq 't' });
}

# Puts another program, a script, in the place of shop_kafka; or the real one,
# or with an empty string none.
sub use_program
{
	my ($script) = @_;

	unlink $program, "$program.new";
	if (!defined $script)
	{
		symlink $real_program, $program or die $!;
	}
	elsif ($script ne '')
	{
		append_to_file("$program.new", $script);
		chmod 0755, "$program.new" or die $!;
		rename "$program.new", $program or die $!;
	}
	return;
}

#
# The brokers
#

# A cluster of so many brokers.
sub start_cluster
{
	my ($n) = @_;
	my $cluster = {};

	$cluster->{pid} = open2(my $out, my $in, "$dir/mock_cluster", $n);
	@$cluster{qw(in out)} = ($in, $out);
	$in->autoflush;
	($cluster->{brokers}) = (<$out> // '') =~ /^brokers (.*)/ or BAIL_OUT('no mock cluster');
	return $cluster;
}

# The lines that a command prints.
sub mock
{
	my ($cluster, $command) = @_;
	my @line;

	$cluster->{in}->print("$command\n");
	while (defined(my $line = $cluster->{out}->getline))
	{
		chomp $line;
		return @line if $line eq 'ok';
		die "$command: $line" if $line =~ /^error/;
		push @line, $line;
	}
	die "$command: no mock cluster";
}

# The next requests to write fail so.
sub fail_writes
{
	my ($cluster, @code) = @_;
	mock($cluster, join ' ', 'errors', PRODUCE, @code);
	return;
}

# The messages of an endpoint's topic, in the order of their partitions.
sub messages
{
	my ($name) = @_;

	return map {
		my ($partition, $offset, $key, $value, @header) = split /\t/, $_, -1;
		{ partition => $partition, key => $key, value => $value, header => { map { split /=/, $_, 2 } @header } }
	} mock($case{$name}{cluster}, "read $case{$name}{topic}");
}

my $cluster = start_cluster(3);
my $calm_cluster = start_cluster(1);

#
# Endpoints and events
#

# An endpoint that gets the events of its name, and its topic:
#   cluster     if it is another one
#   partitions  of the topic, 2 if not given; 0: there is no topic yet
#   types       if it gets others
#   options, settings  besides those that all have
sub create
{
	my ($name, %arg) = @_;
	my $topic = $name =~ s/[^a-z0-9]+/-/gr;
	my $partitions = $arg{partitions} // 2;

	$case{$name} = { cluster => $arg{cluster} // $cluster, topic => $topic };
	mock($case{$name}{cluster}, "topic $topic $partitions") if $partitions;
	sql(
		sprintf 'SELECT shop.create_endpoint(%s, %s, %s, options => %s)',
		literal($name), literal("kafka://$case{$name}{cluster}{brokers}/$topic"), literal($arg{types} // qq({"$name"})),
		literal(encode_json({ %options, %{ $arg{options} // {} }, kafka => { %settings, %{ $arg{settings} // {} } } })));
	return;
}

# Three events of each key, in three transactions; more are rolled back.
sub emit
{
	my ($name, $keys, $payload) = @_;
	my $events = sprintf q{SELECT count(shop.emit_event(%s, 'test', 'key ' || k, %s)) FROM generate_series(1, %d) k},
	  literal($name), literal($payload // '{}'), $keys // 10;

	sql("$events; BEGIN; $events; ROLLBACK; BEGIN; $events; SAVEPOINT s; $events; ROLLBACK TO s; COMMIT; $events");
	return;
}

sub json_of_size
{
	my ($size) = @_;
	return encode_json({ text => 'x' x $size });
}

# Events of an endpoint from four sessions, some 20 keys in each, one transaction in ten
# rolled back.
sub start_emitting
{
	my ($name, $seconds) = @_;
	my $script = "$dir/$name.pgbench";
	my $event = sprintf q{SELECT shop.emit_event(%s, 'test', 'key ' || :client_id || ' ' || :key, '{"n": 1}');}, literal($name);
	my $load = { out => '', err => '' };

	append_to_file(
		$script, qq{\\set key random(1, 20)
\\set undo random(1, 10)
BEGIN;
$event
$event
\\if :undo = 1
ROLLBACK;
\\else
COMMIT;
\\endif
}) if !-e $script;
	$load->{harness} = IPC::Run::start(
		[ $node->installed_command('pgbench'), '-n', '-c', 4, '-R', 400, '-T', $seconds, '-f', $script, $node->connstr('shopdb') ],
		'<', \undef, '>', \$load->{out}, '2>', \$load->{err},
		IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	return $load;
}

# What has become of the events an endpoint has subscribed to: a list of [ id, key, state ], in order.
sub fates
{
	my ($name) = @_;

	return @{
		json(
			sql(
				sprintf q{
				SELECT coalesce(json_agg(json_build_array(o.id, o.aggregateid,
				           CASE WHEN d.dead_at IS NOT NULL THEN 'dead' WHEN d.event_no IS NOT NULL OR NOT e.acked @> o.event_no
				                THEN 'waiting' ELSE 'delivered' END) ORDER BY o.event_no), '[]')
				  FROM shop.endpoint e
				  JOIN shop.outbox o ON (o.created_at >= e.created_at OR e.options @> '{"from_start": true}')
				       AND EXISTS (SELECT FROM unnest(e.types) t WHERE t = o.type OR (t LIKE '%%.*' AND starts_with(o.type, left(t, -1))))
				  LEFT JOIN shop.delivery d USING (endpoint_id, event_no)
				 WHERE e.name = %s}, literal($name))) };
}

sub endpoint_id
{
	my ($name) = @_;
	return sprintf '(SELECT endpoint_id FROM shop.endpoint WHERE name = %s)', literal($name);
}

sub delivered_total
{
	my ($name) = @_;
	return sql(sprintf 'SELECT delivered_total FROM shop.endpoints WHERE name = %s', literal($name));
}

sub drop
{
	my ($name) = @_;
	sql(sprintf 'SELECT shop.drop_endpoint(%s)', literal($name));
	return;
}

# A condition: all events of an endpoint are delivered or dead.
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
	my ($name, $seconds) = @_;

	$seconds //= 30;
	my $start = time;
	my $done = await_sql($seconds, is_done($name));
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok($done, sprintf '%s: all events are done with (%.1f of %g s)', $name, time - $start, $seconds)
	  or diag(sql(sprintf 'SELECT to_json(e) FROM shop.endpoint e WHERE name = %s', literal($name)),
		sql('SELECT to_json(d) FROM shop.delivery d LIMIT 5'));
	return $done;
}

# A condition: the endpoint has failed, so says shop.endpoints.
sub is_failing
{
	my ($name, $pattern) = @_;

	return sprintf q{coalesce(last_error ~* %s, false) FROM shop.endpoints WHERE name = %s}, literal($pattern), literal($name);
}

sub is_paused
{
	my ($name) = @_;
	return sprintf q{state = 'paused' FROM shop.endpoints WHERE name = %s}, literal($name);
}

# Tests that what is delivered has arrived, in the order of its keys, each in a
# partition of its own, that nothing else has, and that all else is dead.
#   dead     how many are; 0 if not given
#   redriven keys with events that were, and may have been overtaken
# Returns the messages.
sub check_events
{
	my ($name, %arg) = @_;
	my @fates = fates($name);
	my (%wanted, %got, %seen, %partition);

	for (@fates)
	{
		push @{ $wanted{ $_->[1] } }, $_->[0] if $_->[2] eq 'delivered';
	}
	my @messages = messages($name);
	for my $message (@messages)
	{
		my $id = $message->{header}{ce_id} // '';
		$partition{ $message->{key} }{ $message->{partition} } = 1;
		push @{ $got{ $message->{key} } }, $id if !$seen{$id}++;
	}
	for my $key (@{ $arg{redriven} // [] })
	{
		@$_ = sort @$_ for grep { $_ } $wanted{$key}, $got{$key};
	}
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(scalar(grep { $_->[2] eq 'dead' } @fates), $arg{dead} // 0, "$name: " . ($arg{dead} // 'no') . ' event is dead');
	is(scalar(grep { $_->[2] eq 'waiting' } @fates), 0, "$name: none waits");
	is_deeply(\%got, \%wanted, sprintf '%s: %d events have arrived, in the order of their keys, and nothing else (%d messages)',
		$name, scalar(@fates) - ($arg{dead} // 0), scalar @messages);
	is(scalar(grep { keys %$_ > 1 } values %partition), 0, "$name: each key has one partition");
	healthy($node, 'shopdb', "$name: verify() finds nothing");
	return @messages;
}

# The end of a case: all has arrived, and the endpoint goes.  Returns the messages.
sub finish
{
	my ($name, %arg) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	await_done($name);
	my @messages = check_events($name, %arg);
	drop($name);
	return @messages;
}

#
# Processes
#

# Is it there?  A zombie whom nobody buries is not.
sub is_alive
{
	my ($pid) = @_;

	open my $file, '<', "/proc/$pid/stat" or return 0;
	return (<$file> // ') X') !~ /\) [ZX]/;
}

sub relay
{
	my $pid = '';
	await(20, sub { ($pid = sql(q{SELECT pid FROM shop.workers WHERE kind = 'relay'})) ne '' }) or die 'no relay';
	return $pid;
}

# The programs that the relay has started and that are alive.
sub programs
{
	my $parent = relay();
	my @program;

	for my $stat (glob '/proc/[0-9]*/stat')
	{
		open my $file, '<', $stat or next;
		my $line = <$file> // next;
		push @program, $1 if $line =~ /^(\d+) \(.*\) ([A-Z]) (\d+)/ && $2 !~ /[ZX]/ && $3 == $parent;
	}
	return @program;
}

# Those that were not there before.
sub programs_but
{
	my (@before) = @_;
	my %before = map { $_ => 1 } @before;

	return grep { !$before{$_} } programs();
}

sub all_gone
{
	my ($name, @pid) = @_;
	my $gone = await(3, sub { !grep { is_alive($_) } @pid });

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(@pid > 0 && $gone, "$name: no program is left behind");
}

# The launcher starts workers again when it is woken by that, and at once.
sub wake_launcher
{
	sql('ALTER DATABASE shopdb SET shop.worker = on');
	return;
}

# A session and workers, after all sessions were ended.
sub reconnect
{
	await(30, sub { ($node->psql('shopdb', 'SELECT 1'))[0] == 0 }) or BAIL_OUT('the server is gone');
	$session = open_session($node, 'shopdb');
	wake_launcher();
	return;
}

# Tests of the relay while something is wrong: it sits in no transaction, or,
# if it has much to do, in none for long; and others are served.
sub check_relay
{
	my ($name, $busy) = @_;
	my $none = $busy ? q{coalesce(xact_start > clock_timestamp() - interval '0.5 s', true)}
	  : 'xact_start IS NULL AND backend_xmin IS NULL AND backend_xid IS NULL';

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok( await_sql(
			1,
			qq{count(*) > 0 AND bool_and($none) FROM pg_stat_activity
			   WHERE backend_type = 'shop relay' AND datname = current_database()}),
		"$name: the relay has no transaction open");
	my $id = sql(q{SELECT shop.emit_event('beside', 'test', 'key ' || pg_backend_pid(), '{}')});
	my $start = time;
	my $received = await_sql(5, "EXISTS (SELECT FROM shop.received_events WHERE event_id = '$id')");
	ok($received, sprintf '%s: a function beside it is called (%.2f s)', $name, time - $start);
	$start = time;
	ok(await_sql(5, is_done('beside')), sprintf '%s: another Kafka endpoint gets its event (%.2f s)', $name, time - $start);
	return;
}

create('beside', cluster => $calm_cluster);

#
# Nothing is wrong
#

create('arrival', types => '{arrival.*}');
my $traceparent = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01';
my $data = '{"text": "a \"b\" é ☃ 😀", "number": 12345678901234567890.50, "list": [1, null, true, {}]}';
my $id = sql(sprintf q{SET shop.traceparent = '%s'; SELECT shop.emit_event('arrival.one', 'cart', 'schlüssel 1', %s)}, $traceparent, literal($data));
sql(q{RESET shop.traceparent; SELECT shop.emit_event('arrival.two', 'cart', repeat('k', 255), 'null')});
my %arrived;
push @{ $arrived{ $_->{header}{ce_type} } }, $_ for finish('arrival');
is(join(' ', map { scalar @$_ } values %arrived), '1 1', 'an event arrives once');
my $message = $arrived{'arrival.one'}[0];
is($message->{key}, 'schlüssel 1', 'its key is the aggregateid');
is_deeply(json($message->{value}), json($data), 'its value is the data');
like($message->{value}, qr/12345678901234567890\.50/, 'numbers are what they were');
my $expected = json(
	sql(
		sprintf q{
		SELECT json_build_object('content-type', 'application/json', 'ce_specversion', '1.0', 'ce_id', id, 'ce_type', type,
		           'ce_source', '/shop/shopdb', 'ce_subject', aggregateid, 'ce_aggregatetype', aggregatetype,
		           'ce_time', to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), 'ce_traceparent', %s::text)
		  FROM shop.outbox WHERE id = %s}, literal($traceparent), literal($id)));
is_deeply($message->{header}, $expected, 'its attributes are headers');
$message = $arrived{'arrival.two'}[0];
is($message->{key}, 'k' x 255, 'a key may be long');
is($message->{value}, 'null', 'null is a value');
ok(!exists $message->{header}{ce_traceparent}, 'no traceparent, no header');

create('filter', types => '{filter.a,filter.b.*}');
sql(qq{SELECT shop.emit_event('filter.$_', 'test', '$_', '{}')}) for qw(a a.c b b.c b.d.e bc);
sql(q{SELECT shop.emit_event('filters', 'test', 'filters', '{}')});
is(join(' ', sort map { $_->{key} } finish('filter')), 'a b.c b.d.e', 'types are those asked for');

create('orders', types => '{order.*}', partitions => 4);
my $load = start_load($node, 'shopdb', 2);
load_ended($load);
finish('orders');

create('partitions', partitions => 7);
emit('partitions', 100) for 1 .. 5;
my %used = map { $_->{partition} => 1 } finish('partitions');
is(scalar keys %used, 7, 'keys are spread over the partitions');

sql(q{BEGIN; SELECT shop.emit_event('from start', 'test', k, '{}') FROM unnest('{a,b,a}'::text[]) k; COMMIT});
create('from start', options => { from_start => JSON::PP::true });
finish('from start');

#
# A program that is stopped, while the tests go on: more than its pipe can hold waits
#

my @before = programs();
create('a program that is stopped', cluster => $calm_cluster, partitions => 4);
emit('a program that is stopped');
await_done('a program that is stopped');
my ($stopped) = programs_but(@before);
kill STOP => $stopped;
emit('a program that is stopped', 100, json_of_size(2000));
check_relay('a program that is stopped');

#
# Brokers
#

# A case: an endpoint with events before, during and after a fault.
#   fault, cure  code
#   failing      what shop.endpoints says meanwhile; if not given, nobody waits for it
#   partitions, options, settings  as for create()
sub try_fault
{
	my ($name, %case) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	create($name, %case);
	emit($name);
	await_done($name);
	$case{fault}->();
	emit($name);
	if ($case{failing})
	{
		ok(await_sql(20, is_failing($name, $case{failing})), "$name: shop.endpoints says so")
		  or diag(sql(sprintf 'SELECT last_error FROM shop.endpoints WHERE name = %s', literal($name)));
	}
	check_relay($name);
	emit($name);
	$case{cure}->() if $case{cure};
	emit($name);
	finish($name);
	return;
}

# Leaders of the partitions of a topic: the broker of each.
sub lead
{
	my ($name, @broker) = @_;
	mock($cluster, "leader $case{$name}{topic} $_ $broker[$_]") for 0 .. $#broker;
	return;
}

create('one broker down', partitions => 3);
lead('one broker down', 1, 2, 3);
emit('one broker down', 30);
await_done('one broker down');
mock($cluster, 'down 2');
emit('one broker down', 30);
ok( await_sql(
		20,
		q{count(DISTINCT o.aggregateid) BETWEEN 1 AND 29 AND count(*) = 3 * count(DISTINCT o.aggregateid)
		  FROM shop.outbox o JOIN shop.endpoint e ON e.name = o.type LEFT JOIN shop.delivery d USING (endpoint_id, event_no)
		 WHERE o.type = 'one broker down' AND (d.event_no IS NOT NULL OR NOT e.acked @> o.event_no)}),
	'one broker down: keys of its partition wait, no others');
check_relay('one broker down');
mock($cluster, 'up 2');
finish('one broker down');

try_fault(
	'all brokers down',
	fault => sub { mock($cluster, 'down -1') },
	failing => 'timed out.*(refused|disconnected|failed)',
	cure => sub { mock($cluster, 'up -1') });

mock($cluster, 'topic brokers-that-come-up-late 2');
mock($cluster, 'down -1');
create('brokers that come up late', partitions => 0);
emit('brokers that come up late');
ok(await_sql(20, is_failing('brokers that come up late', 'timed out')), 'brokers that come up late: shop.endpoints says so');
check_relay('brokers that come up late');
mock($cluster, 'up -1');
finish('brokers that come up late');

create('brokers that go down in turn', partitions => 4);
$load = start_emitting('brokers that go down in turn', 2);
for my $broker (1, 2, 3, 1, 2, 3)
{
	mock($cluster, "down $broker");
	sleep 0.2;
	mock($cluster, "up $broker");
	sleep 0.2;
}
load_ended($load);
finish('brokers that go down in turn');

create('leaders that move', partitions => 2);
$load = start_emitting('leaders that move', 2);
for my $round (1 .. 6)
{
	lead('leaders that move', 1 + $round % 3, 1 + ($round + 1) % 3);
	sleep 0.2;
}
check_relay('leaders that move', 'busy');
load_ended($load);
finish('leaders that move');

try_fault(
	'no leader',
	fault => sub { lead('no leader', -1, -1) },
	failing => 'timed out',
	cure => sub { lead('no leader', 1, 2) });

try_fault(
	'not enough replicas',
	fault => sub { fail_writes($cluster, (NOT_ENOUGH_REPLICAS) x 900) },
	failing => 'timed out',
	cure => sub { mock($cluster, 'clear ' . PRODUCE) });

for my $fault (
	[ 'replicas lost after it was written', NOT_ENOUGH_REPLICAS_AFTER_APPEND ],
	[ 'a request that timed out with the broker', REQUEST_TIMED_OUT ],
	[ 'a broker that leads no more', NOT_LEADER ],
	[ 'a connection that breaks before the answer', DISCONNECT ])
{
	my ($name, $code) = @$fault;
	try_fault($name, fault => sub { fail_writes($cluster, ($code) x 3) });
}

try_fault(
	'answers slower than the time-out',
	options => { timeout => 500 },
	fault => sub { mock($cluster, 'rtt -1 2000') },
	failing => 'timed out',
	cure => sub { mock($cluster, 'rtt -1 0') });

try_fault(
	'a producer out of step',
	fault => sub { fail_writes($cluster, OUT_OF_ORDER) },
	failing => 'sequence number');

ok(await(15, sub { !is_alive($stopped) }), 'a program that is stopped: it is killed');
ok(await_sql(15, is_failing('a program that is stopped', 'shop_kafka does not answer')), 'a program that is stopped: shop.endpoints says so');
finish('a program that is stopped');

#
# The endpoint
#

# Waits until an endpoint is paused for that reason; nothing is lost.
sub check_paused
{
	my ($name, $reason) = @_;
	my $paused = await_sql(20, is_paused($name));

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok($paused, "$name: the endpoint is paused");
	like(sql(sprintf 'SELECT pause_reason FROM shop.endpoints WHERE name = %s', literal($name)), $reason, "$name: it says why");
	is(sql(sprintf 'SELECT count(*) FROM shop.delivery WHERE endpoint_id = %s', endpoint_id($name)), '0', "$name: no try is counted");
	check_relay($name);
	return;
}

sub resume
{
	my ($name) = @_;
	sql(sprintf 'SELECT shop.resume_endpoint(%s)', literal($name));
	return;
}

# The mock cluster would make one that was never there.
create('no topic', settings => { 'topic.metadata.propagation.max.ms' => 500 });
mock($cluster, 'topic_error no-topic ' . UNKNOWN_TOPIC);
emit('no topic');
check_paused('no topic', qr/unknown topic/i);
mock($cluster, 'topic_error no-topic ' . NO_ERROR);
emit('no topic');
resume('no topic');
finish('no topic');

create('no right to write');
emit('no right to write');
await_done('no right to write');
fail_writes($cluster, TOPIC_AUTHORIZATION_FAILED);
emit('no right to write');
check_paused('no right to write', qr/authorization failed/i);
resume('no right to write');
finish('no right to write');

my @bad = (
	[ 'a bad value', 'linger.ms' ], [ 'no such setting', 'no.such.setting' ], [ 'a setting that loads code', 'plugin.library.paths' ]);
for (@bad)
{
	my ($name, $setting) = @$_;

	create($name, settings => { $setting => 'topsecret' });
	emit($name);
	check_paused($name, qr/\Q$setting\E/);
	resume($name);
	check_paused($name, qr/\Q$setting\E/);
}
is(sql(q{SELECT count(*) FROM shop.endpoints e WHERE e::text LIKE '%topsecret%'}), '0', 'settings are not shown');
is(sql(q{SELECT count(*) FROM shop.workers w WHERE w::text LIKE '%topsecret%'}), '0', 'nor in errors');
ok(slurp_file($node->logfile) !~ /topsecret/, 'nor in the log');
is(join(' ', map { delivered_total($_->[0]) } @bad), '0 0 0', 'bad settings: nothing was sent');
drop($_->[0]) for @bad;

#
# Messages
#

create('too large');
emit('too large', 3);
sql(sprintf q{SELECT shop.emit_event('too large', 'test', 'key 1', %s)}, literal(json_of_size(1_500_000)));
emit('too large', 3);
await_done('too large');
is(sql(q{SELECT attempts FROM shop.dead_letters WHERE endpoint = 'too large'}), '3', 'too large: dead after three tries');
like(sql(q{SELECT last_error FROM shop.dead_letters WHERE endpoint = 'too large'}), qr/too large/i, 'too large: it says why');
check_events('too large', dead => 1);
sql(q{SELECT shop.redrive_all('too large')});
finish('too large', dead => 1);

create('too large for the topic');
emit('too large for the topic', 3);
await_done('too large for the topic');
fail_writes($cluster, (TOO_LARGE) x 3);
sql(q{SELECT shop.emit_event('too large for the topic', 'test', 'key 1', '{}')});
await_done('too large for the topic');
emit('too large for the topic', 3);
check_relay('too large for the topic');
is(sql(q{SELECT attempts FROM shop.dead_letters WHERE endpoint = 'too large for the topic'}), '3', 'too large for the topic: dead after three tries');
await_done('too large for the topic');
check_events('too large for the topic', dead => 1);
sql(q{SELECT shop.redrive_all('too large for the topic')});
finish('too large for the topic', redriven => ['key 1']);

#
# The program
#

# Progress of an endpoint, from whatever it has delivered now.
sub await_progress
{
	my ($name) = @_;
	my $total = delivered_total($name);
	return await(20, sub { delivered_total($name) > $total });
}

@before = programs();
create('a program that is killed', partitions => 4);
$load = start_emitting('a program that is killed', 3);
for my $n (1 .. 4)
{
	my @program;
	await_progress('a program that is killed');
	ok(await(10, sub { (@program = programs_but(@before)) == 1 }), "a program that is killed: it runs, $n");
	kill KILL => @program;
	check_relay('a program that is killed', 'busy') if $n == 1;
}
load_ended($load);
finish('a program that is killed');

# A case: another program is in the place of shop_kafka, for a while.
#   script   what it does; empty: there is none
#   failing  what shop.endpoints says
sub try_program
{
	my ($name, $script, $failing) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	use_program($script);
	create($name);
	emit($name);
	ok(await_sql(20, is_failing($name, $failing)), "$name: shop.endpoints says so")
	  or diag(sql(sprintf 'SELECT last_error FROM shop.endpoints WHERE name = %s', literal($name)));
	check_relay($name);
	use_program(undef);
	emit($name);
	finish($name);
	return;
}

try_program('a program that is missing', '', 'could not start shop_kafka: No such file');
try_program('a program that cannot be run', "#!$dir/no/interpreter\n", 'could not start shop_kafka');
try_program('a program that ends at once', "#!/bin/sh\nexit 1\n", 'shop_kafka ended');
try_program('a program that talks nonsense', "#!/bin/sh\nexec yes nonsense\n", 'no frame');
try_program('a program without memory', "#!/bin/sh\nulimit -v 10000\nexec $real_program\n", 'shop_kafka ended');

# One event ends it, whenever it comes: that one is dead in the end, no other is.  It takes
# some time, in which the tests go on.
use_program(qq{#!$^X
my \$pid = open my \$to, '|-', '$real_program' or die;
while (sysread STDIN, my \$chunk, 1000000)
{
	kill KILL => \$pid, \$\$ if \$chunk =~ /deadly/;
	syswrite \$to, \$chunk;
}
});
create('an event that ends the program', options => { max_attempts => 3 });
emit('an event that ends the program', 3);
sql(q{SELECT shop.emit_event('an event that ends the program', 'test', 'key 1', '{"n": "deadly"}')});
emit('an event that ends the program', 3);

create('pause and resume', partitions => 4);
$load = start_emitting('pause and resume', 2);
await_progress('pause and resume');
sql(q{SELECT shop.pause_endpoint('pause and resume')});
ok(await_sql(5, q{inflight IS NULL FROM shop.endpoint WHERE name = 'pause and resume'}), 'pause and resume: what is on its way comes to an end');
load_ended($load);
my $total = delivered_total('pause and resume');
emit('pause and resume');
check_relay('pause and resume');
is(delivered_total('pause and resume'), $total, 'pause and resume: nothing is sent meanwhile');
my %sent = map { $_->{header}{ce_id} => 1 } messages('pause and resume');
is(scalar keys %sent, $total, 'pause and resume: as the topic has it');
resume('pause and resume');
finish('pause and resume');

await_done('an event that ends the program');
check_relay('an event that ends the program');
is(sql(q{SELECT attempts FROM shop.dead_letters WHERE endpoint = 'an event that ends the program'}), '3', 'an event that ends the program: dead after three tries');
check_events('an event that ends the program', dead => 1);
use_program(undef);
kill KILL => programs();
sql(q{SELECT shop.redrive_all('an event that ends the program')});
finish('an event that ends the program', redriven => ['key 1']);

#
# The relay
#

# Ends it, in time, and looks for what it leaves behind.
sub end_relay
{
	my ($name) = @_;
	my @program = programs();
	my $start = time;
	my $ended = sql(q{SELECT pg_terminate_backend(pid, 1000) FROM shop.workers WHERE kind = 'relay'});

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok($ended eq 't', sprintf '%s: the relay ends (%.2f of 1 s)', $name, time - $start);
	all_gone($name, @program);
	wake_launcher();
	return;
}

create('a relay that is ended', types => '{order.*}', partitions => 4);
$load = start_load($node, 'shopdb', 3);
for (1 .. 4)
{
	await_progress('a relay that is ended');
	end_relay('a relay that is ended');
}
load_ended($load);
finish('a relay that is ended');

create('a relay that is ended while brokers are down');
emit('a relay that is ended while brokers are down');
await_done('a relay that is ended while brokers are down');
mock($cluster, 'down -1');
emit('a relay that is ended while brokers are down');
sql('CREATE DATABASE other');
timed($node, 'postgres', 1, 'DROP DATABASE other', 'brokers are down: another database is dropped');
check_relay('a relay that is ended while brokers are down');
end_relay('a relay that is ended while brokers are down');
check_relay('a relay that is ended while brokers are down');
mock($cluster, 'up -1');
finish('a relay that is ended while brokers are down');

create('a relay that is ended while its program is stopped');
emit('a relay that is ended while its program is stopped');
await_done('a relay that is ended while its program is stopped');
kill STOP => programs();
emit('a relay that is ended while its program is stopped');
end_relay('a relay that is ended while its program is stopped');
finish('a relay that is ended while its program is stopped');

@before = programs();
create('drop', partitions => 4);
$load = start_emitting('drop', 1);
await_progress('drop');
my @dropped = programs_but(@before);
drop('drop');
load_ended($load);
check_relay('drop');
all_gone('drop', @dropped);
is(sql('SELECT count(*) FROM shop.delivery LEFT JOIN shop.endpoint e USING (endpoint_id) WHERE e.endpoint_id IS NULL'), '0', 'drop: no delivery is left');
is( sql(
		sprintf q{SELECT count(*) FROM unnest(%s::uuid[]) id WHERE NOT EXISTS (SELECT FROM shop.outbox o WHERE o.id = id)},
		literal('{' . join(',', map { $_->{header}{ce_id} } messages('drop')) . '}')),
	'0', 'drop: what was sent was committed');
healthy($node, 'shopdb', 'drop: verify() finds nothing');

#
# The server
#

create('a server that is stopped', partitions => 4);
$load = start_emitting('a server that is stopped', 2);
await_progress('a server that is stopped');
my @left = programs();
$node->stop('immediate');
all_gone('a server that is stopped', @left);
load_ended($load);
$node->start;
reconnect();
emit('a server that is stopped');
finish('a server that is stopped');

create('a relay that is killed', partitions => 4);
$load = start_emitting('a relay that is killed', 2);
await_progress('a relay that is killed');
@left = programs();
kill KILL => relay();
all_gone('a relay that is killed', @left);
load_ended($load);
reconnect();
emit('a relay that is killed');
finish('a relay that is killed');

#
# Other databases
#

create('copied');
emit('copied');
await_done('copied');
end_session($session);
$node->safe_psql('postgres', 'CREATE DATABASE copydb TEMPLATE shopdb; ALTER DATABASE copydb SET shop.worker = on');
$session = open_session($node, 'copydb');
emit('copied');
ok(await_sql(20, q{bool_and(last_cycle_at > (SELECT max(created_at) FROM shop.outbox)) FROM shop.workers WHERE kind = 'relay'}),
	'copied: the relay of the copy goes by');
ok(await_sql(1, is_paused('copied')), 'copied: the endpoint is paused there');
my $there = $session;
$session = open_session($node, 'shopdb');
emit('copied');
await_done('copied');
check_events('copied');
$session = $there;
resume('copied');
await_done('copied');
is(scalar(grep { $_->{header}{ce_source} eq '/shop/copydb' } messages('copied')), 30, 'copied: until it is resumed there');
mock($cluster, 'down -1');
emit('copied');
ok(await_sql(10, is_failing('copied', 'timed out')), 'copied: brokers are down');
@left = programs();
end_session($session);
$session = open_session($node, 'shopdb');
timed($node, 'postgres', 1, 'DROP DATABASE copydb', 'copied: a database is dropped while its brokers are down');
all_gone('copied', @left);
mock($cluster, 'up -1');
healthy($node, 'shopdb', 'copied: verify() finds nothing');
drop('copied');

$node->safe_psql('postgres', q{CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0});
$node->safe_psql('latin', 'CREATE EXTENSION shop');
$session = open_session($node, 'latin');
create('latin');
sql(q{SET client_encoding = 'UTF8'; SELECT shop.emit_event('latin', 'test', 'schlüssel', '{"text": "é"}')});
await_done('latin');
is(join(' ', map { "$_->{key} $_->{value} $_->{header}{ce_subject}" } messages('latin')), 'schlüssel {"text": "é"} schlüssel', 'messages are UTF-8, whatever the database is');
end_session($session);

$session = open_session($node, 'shopdb');
check_events('beside');
end_session($session);
$node->stop;
done_testing();
