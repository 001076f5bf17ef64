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
use lib $FindBin::RealBin;

use Delivery;
use File::Basename qw(dirname);
use File::Copy qw(copy);
use File::Path qw(make_path);
use JSON::PP;
use MockCluster;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use ShopTest;
use Test::More;
use Time::HiRes qw(sleep time);

# Short, so that the tests are; a test that needs more says so.
my %options = (timeout => 1500, backoff => 20, max_backoff => 300, max_attempts => 1000);
my %settings = ('socket.keepalive.enable' => JSON::PP::true, 'reconnect.backoff.max.ms' => 100, 'retry.backoff.ms' => 20, 'topic.metadata.refresh.fast.interval.ms' => 50);

my $dir = PostgreSQL::Test::Utils::tempdir;

plan skip_all => 'needs a C compiler, librdkafka and its headers' if MockCluster::build("$dir/mock_cluster", '') ne '';
plan skip_all => 'needs /proc' if !-e "/proc/$$/stat";

# The brokers of the mock cluster do not look at sequence numbers: they would take
# a later batch of a partition after one that failed, and what they take tells the
# producer that they have taken all before it.  So there is one at a time where
# single ones fail.
my %one_at_a_time = (settings => { 'max.in.flight' => 1 });

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
open_for_delivery($node, 'kafka://127.0.0.1:1/t');

# Something that hangs must not hang the tests.
local $SIG{ALRM} = sub { BAIL_OUT('the tests take too long') };
alarm 600;

my %case; # cluster and topic of each endpoint

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

# The messages of an endpoint's topic, in the order of their partitions.
sub messages
{
	my ($name) = @_;
	return $case{$name}{cluster}->messages($case{$name}{topic});
}

my $cluster = MockCluster::start("$dir/mock_cluster", 3);
my $calm_cluster = MockCluster::start("$dir/mock_cluster", 1);

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
	$case{$name}{cluster}->command("topic $topic $partitions") if $partitions;
	create_endpoint(
		$name,
		'kafka://' . $case{$name}{cluster}->brokers . "/$topic",
		types => $arg{types} // qq({"$name"}),
		options => { %options, %{ $arg{options} // {} }, kafka => { %settings, %{ $arg{settings} // {} } } });
	return;
}

# So many keys.
sub keys_of
{
	my ($n) = @_;
	return [ map { "key $_" } 1 .. $n ];
}

sub json_of_size
{
	my ($size) = @_;
	return encode_json({ text => 'x' x $size });
}

# Events of an endpoint from four sessions, some 20 keys in each, one transaction in ten
# rolled back, until stop_load().
sub start_emitting
{
	my ($name) = @_;
	my $event = sprintf q{SELECT shop.emit_event(%s, 'test', 'key ' || :client_id || ' ' || :key, '{"n": 1}');}, literal($name);

	return start_pgbench($node, 'shopdb', qq{\\set key random(1, 20)
\\set undo random(1, 10)
BEGIN;
$event
$event
\\if :undo = 1
ROLLBACK;
\\else
COMMIT;
\\endif
}, '-c', 4, '-R', 200, '-T', 600);
}

sub delivered_total
{
	my ($name) = @_;
	return endpoint_has($name, 'delivered_total');
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
	my @messages = messages($name);
	my $wanted = by_key(grep { $_->[2] eq 'delivered' } @fates);
	my $got = by_key(first_copies(map { [ $_->{header}{ce_id} // '', $_->{key} ] } @messages));
	my %partition;

	$partition{ $_->{key} }{ $_->{partition} } = 1 for @messages;
	for my $key (@{ $arg{redriven} // [] })
	{
		@$_ = sort @$_ for grep { $_ } $wanted->{$key}, $got->{$key};
	}
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(scalar(grep { $_->[2] eq 'dead' } @fates), $arg{dead} // 0, "$name: " . ($arg{dead} // 'no') . ' event is dead');
	is(scalar(grep { $_->[2] eq 'waiting' } @fates), 0, "$name: none waits");
	is_deeply($got, $wanted, sprintf '%s: %d events have arrived, in the order of their keys, and nothing else (%d messages)',
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
	drop_endpoint($name);
	return @messages;
}

#
# Processes
#

# The programs that the relay has started and that are alive.
sub programs
{
	my $parent = relay_pid();
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
	my $gone = await(sub { !grep { is_alive($_) } @pid });

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(@pid > 0 && $gone, "$name: no program is left behind");
}

# Tests of the relay while something is wrong: it sits in no transaction, or,
# if it has much to do, in none for long; and others are served.
sub check_relay
{
	my ($name, $busy) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	sits_in_no_transaction($name, $busy);
	my $id = sql(q{SELECT shop.emit_event('beside', 'test', 'key ' || pg_backend_pid(), '{}')});
	ok(await_sql("EXISTS (SELECT FROM shop.received_events WHERE event_id = '$id')"), "$name: a function beside it is called");
	ok(await_sql(is_done('beside')), "$name: another Kafka endpoint gets its event");
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
emit('partitions', keys_of(100)) for 1 .. 5;
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
emit('a program that is stopped', keys_of(10));
await_done('a program that is stopped');
my ($stopped) = programs_but(@before);
kill STOP => $stopped;
emit('a program that is stopped', keys_of(100), json_of_size(2000));
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
	emit($name, keys_of(10));
	await_done($name);
	$case{fault}->();
	emit($name, keys_of(10));
	if ($case{failing})
	{
		ok(await_sql(is_failing($name, $case{failing})), "$name: shop.endpoints says so")
		  or diag(endpoint_has($name, 'last_error'));
	}
	check_relay($name);
	emit($name, keys_of(10));
	$case{cure}->() if $case{cure};
	emit($name, keys_of(10));
	finish($name);
	return;
}

# Waits until an endpoint has delivered more than it has now.
sub await_progress
{
	my ($name) = @_;
	my $total = delivered_total($name);

	await(sub { delivered_total($name) > $total }) or die "$name: no progress";
	return;
}

# Leaders of the partitions of a topic: the broker of each.
sub lead
{
	my ($name, @broker) = @_;
	$cluster->command("leader $case{$name}{topic} $_ $broker[$_]") for 0 .. $#broker;
	return;
}

create('one broker down', partitions => 3);
lead('one broker down', 1, 2, 3);
emit('one broker down', keys_of(30));
await_done('one broker down');
$cluster->command('down 2');
emit('one broker down', keys_of(30));
ok( await_sql(
		q{count(DISTINCT o.aggregateid) BETWEEN 1 AND 29 AND count(*) = 3 * count(DISTINCT o.aggregateid)
		  FROM shop.outbox o JOIN shop.endpoint e ON e.name = o.type LEFT JOIN shop.delivery d USING (endpoint_id, event_no)
		 WHERE o.type = 'one broker down' AND (d.event_no IS NOT NULL OR NOT e.acked @> o.event_no)}),
	'one broker down: keys of its partition wait, no others');
check_relay('one broker down');
$cluster->command('up 2');
finish('one broker down');

try_fault(
	'all brokers down',
	fault => sub { $cluster->command('down -1') },
	failing => 'timed out.*(refused|disconnected|failed)',
	cure => sub { $cluster->command('up -1') });

$cluster->command('topic brokers-that-come-up-late 2');
$cluster->command('down -1');
create('brokers that come up late', partitions => 0);
emit('brokers that come up late', keys_of(10));
ok(await_sql(is_failing('brokers that come up late', 'timed out')), 'brokers that come up late: shop.endpoints says so');
check_relay('brokers that come up late');
$cluster->command('up -1');
finish('brokers that come up late');

create('brokers that go down in turn', partitions => 4);
$load = start_emitting('brokers that go down in turn');
for my $broker (1, 2, 3, 1, 2, 3)
{
	await_progress('brokers that go down in turn');
	$cluster->command("down $broker");
	sleep 0.2;
	$cluster->command("up $broker");
}
stop_load($load);
finish('brokers that go down in turn');

create('leaders that move', partitions => 2, %one_at_a_time);
$load = start_emitting('leaders that move');
for my $round (1 .. 6)
{
	await_progress('leaders that move');
	lead('leaders that move', 1 + $round % 3, 1 + ($round + 1) % 3);
}
check_relay('leaders that move', 'busy');
stop_load($load);
finish('leaders that move');

try_fault(
	'no leader',
	%one_at_a_time,
	fault => sub { lead('no leader', -1, -1) },
	failing => 'timed out',
	cure => sub { lead('no leader', 1, 2) });

try_fault(
	'not enough replicas',
	%one_at_a_time,
	fault => sub { $cluster->fail_writes((NOT_ENOUGH_REPLICAS) x 900) },
	failing => 'timed out',
	cure => sub { $cluster->command('clear ' . PRODUCE) });

for my $fault (
	[ 'replicas lost after it was written', NOT_ENOUGH_REPLICAS_AFTER_APPEND ],
	[ 'a request that timed out with the broker', REQUEST_TIMED_OUT ],
	[ 'a broker that leads no more', NOT_LEADER ],
	[ 'a connection that breaks before the answer', DISCONNECT ])
{
	my ($name, $code) = @$fault;
	try_fault($name, %one_at_a_time, fault => sub { $cluster->fail_writes(($code) x 3) });
}

try_fault(
	'answers slower than the time-out',
	options => { timeout => 500 },
	fault => sub { $cluster->command('rtt -1 2000') },
	failing => 'timed out',
	cure => sub { $cluster->command('rtt -1 0') });

try_fault(
	'a producer out of step',
	%one_at_a_time,
	fault => sub { $cluster->fail_writes(OUT_OF_ORDER) },
	failing => 'sequence number');

ok(await(sub { !is_alive($stopped) }), 'a program that is stopped: it is killed');
ok(await_sql(is_failing('a program that is stopped', 'shop_kafka does not answer')), 'a program that is stopped: shop.endpoints says so');
finish('a program that is stopped');

#
# The endpoint
#

# Waits until an endpoint is paused for that reason; nothing is lost.
sub check_paused
{
	my ($name, $reason) = @_;
	my $paused = await_sql(is_paused($name));

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok($paused, "$name: the endpoint is paused");
	like(endpoint_has($name, 'pause_reason'), $reason, "$name: it says why");
	is(sql(sprintf 'SELECT count(*) FROM shop.delivery JOIN shop.endpoint e USING (endpoint_id) WHERE e.name = %s', literal($name)),
		'0', "$name: no try is counted");
	check_relay($name);
	return;
}

# The mock cluster would make one that was never there.
create('no topic', settings => { 'topic.metadata.propagation.max.ms' => 500 });
$cluster->command('topic_error no-topic ' . UNKNOWN_TOPIC);
emit('no topic', keys_of(10));
check_paused('no topic', qr/unknown topic/i);
$cluster->command('topic_error no-topic ' . NO_ERROR);
emit('no topic', keys_of(10));
resume('no topic');
finish('no topic');

create('no right to write', %one_at_a_time);
emit('no right to write', keys_of(10));
await_done('no right to write');
$cluster->fail_writes(TOPIC_AUTHORIZATION_FAILED);
emit('no right to write', keys_of(10));
check_paused('no right to write', qr/authorization failed/i);
resume('no right to write');
finish('no right to write');

my @bad = (
	[ 'a bad value', 'linger.ms' ], [ 'no such setting', 'no.such.setting' ], [ 'a setting that loads code', 'plugin.library.paths' ]);
for (@bad)
{
	my ($name, $setting) = @$_;

	create($name, settings => { $setting => 'topsecret' });
	emit($name, keys_of(10));
	check_paused($name, qr/\Q$setting\E/);
	resume($name);
	check_paused($name, qr/\Q$setting\E/);
}
is(sql(q{SELECT count(*) FROM shop.endpoints e WHERE e::text LIKE '%topsecret%'}), '0', 'settings are not shown');
is(sql(q{SELECT count(*) FROM shop.workers w WHERE w::text LIKE '%topsecret%'}), '0', 'nor in errors');
ok(slurp_file($node->logfile) !~ /topsecret/, 'nor in the log');
is(join(' ', map { delivered_total($_->[0]) } @bad), '0 0 0', 'bad settings: nothing was sent');
drop_endpoint($_->[0]) for @bad;

#
# Messages
#

create('too large');
emit('too large', keys_of(3));
sql(sprintf q{SELECT shop.emit_event('too large', 'test', 'key 1', %s)}, literal(json_of_size(1_500_000)));
emit('too large', keys_of(3));
await_done('too large');
is(sql(q{SELECT attempts FROM shop.dead_letters WHERE endpoint = 'too large'}), '3', 'too large: dead after three tries');
like(sql(q{SELECT last_error FROM shop.dead_letters WHERE endpoint = 'too large'}), qr/too large/i, 'too large: it says why');
check_events('too large', dead => 1);
sql(q{SELECT shop.redrive_all('too large')});
finish('too large', dead => 1);

create('too large for the topic', %one_at_a_time);
emit('too large for the topic', keys_of(3));
await_done('too large for the topic');
$cluster->fail_writes((TOO_LARGE) x 3);
sql(q{SELECT shop.emit_event('too large for the topic', 'test', 'key 1', '{}')});
await_done('too large for the topic');
emit('too large for the topic', keys_of(3));
check_relay('too large for the topic');
is(sql(q{SELECT attempts FROM shop.dead_letters WHERE endpoint = 'too large for the topic'}), '3', 'too large for the topic: dead after three tries');
await_done('too large for the topic');
check_events('too large for the topic', dead => 1);
sql(q{SELECT shop.redrive_all('too large for the topic')});
finish('too large for the topic', redriven => ['key 1']);

#
# The program
#

@before = programs();
create('a program that is killed', partitions => 4);
$load = start_emitting('a program that is killed');
for my $n (1 .. 4)
{
	my @program;
	await_progress('a program that is killed');
	ok(await(sub { (@program = programs_but(@before)) == 1 }), "a program that is killed: it runs, $n");
	kill KILL => @program;
	check_relay('a program that is killed', 'busy') if $n == 1;
}
stop_load($load);
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
	emit($name, keys_of(10));
	ok(await_sql(is_failing($name, $failing)), "$name: shop.endpoints says so")
	  or diag(endpoint_has($name, 'last_error'));
	check_relay($name);
	use_program(undef);
	emit($name, keys_of(10));
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
emit('an event that ends the program', keys_of(3));
sql(q{SELECT shop.emit_event('an event that ends the program', 'test', 'key 1', '{"n": "deadly"}')});
emit('an event that ends the program', keys_of(3));

create('pause and resume', partitions => 4);
$load = start_emitting('pause and resume');
await_progress('pause and resume');
sql(q{SELECT shop.pause_endpoint('pause and resume')});
ok(await_sql(q{inflight IS NULL FROM shop.endpoint WHERE name = 'pause and resume'}), 'pause and resume: what is on its way comes to an end');
stop_load($load);
my $total = delivered_total('pause and resume');
emit('pause and resume', keys_of(10));
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
sub end_relay_of
{
	my ($name) = @_;
	my @program = programs();

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ends_in_time($name);
	all_gone($name, @program);
	return;
}

# What it had not heard of, the next one sends one by one.
create('a relay that is ended', types => '{order.*}', partitions => 4, options => { in_flight => 50 });
$load = start_load($node, 'shopdb', 600, 200);
for (1 .. 4)
{
	await_progress('a relay that is ended');
	end_relay_of('a relay that is ended');
}
stop_load($load);
finish('a relay that is ended');

create('a relay that is ended while brokers are down');
emit('a relay that is ended while brokers are down', keys_of(10));
await_done('a relay that is ended while brokers are down');
$cluster->command('down -1');
emit('a relay that is ended while brokers are down', keys_of(10));
drops_in_time('brokers are down');
check_relay('a relay that is ended while brokers are down');
end_relay_of('a relay that is ended while brokers are down');
check_relay('a relay that is ended while brokers are down');
$cluster->command('up -1');
finish('a relay that is ended while brokers are down');

create('a relay that is ended while its program is stopped');
emit('a relay that is ended while its program is stopped', keys_of(10));
await_done('a relay that is ended while its program is stopped');
kill STOP => programs();
emit('a relay that is ended while its program is stopped', keys_of(10));
end_relay_of('a relay that is ended while its program is stopped');
finish('a relay that is ended while its program is stopped');

@before = programs();
create('drop', partitions => 4);
$load = start_emitting('drop');
await_progress('drop');
my @dropped = programs_but(@before);
drop_endpoint('drop');
stop_load($load);
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
$load = start_emitting('a server that is stopped');
await_progress('a server that is stopped');
my @left = programs();
$node->stop('immediate');
all_gone('a server that is stopped', @left);
stop_load($load);
$node->start;
connect_to('shopdb');
wake_launcher();
emit('a server that is stopped', keys_of(10));
finish('a server that is stopped');

create('a relay that is killed', partitions => 4);
$load = start_emitting('a relay that is killed');
await_progress('a relay that is killed');
@left = programs();
kill KILL => relay_pid();
all_gone('a relay that is killed', @left);
stop_load($load);
connect_to('shopdb');
wake_launcher();
emit('a relay that is killed', keys_of(10));
finish('a relay that is killed');

#
# Other databases
#

create('copied');
emit('copied', keys_of(10));
await_done('copied');
my $copies = 0;

# How many messages come from a database.
sub sent_by
{
	my ($db) = @_;
	return scalar grep { $_->{header}{ce_source} eq "/shop/$db" } messages('copied');
}

# A copy of the database sends nothing until it is told to, and then for itself;
# it is dropped while its brokers are down.  Returns how long that takes.
sub drop_copy
{
	disconnect();
	$node->safe_psql('postgres', 'CREATE DATABASE copydb TEMPLATE shopdb; ALTER DATABASE copydb SET shop.worker = on');
	connect_to('copydb');
	emit('copied', keys_of(10));
	ok(await_sql(q{bool_and(last_cycle_at > (SELECT max(created_at) FROM shop.outbox)) FROM shop.workers WHERE kind = 'relay'}),
		'copied: the relay of the copy goes by');
	ok(await_sql(is_paused('copied')), 'copied: the endpoint is paused there');
	is(sent_by('copydb'), 30 * $copies++, 'copied: nothing is sent');
	disconnect();

	connect_to('shopdb');
	emit('copied', keys_of(10));
	await_done('copied');
	check_events('copied') if $copies == 1;
	disconnect();

	connect_to('copydb');
	resume('copied');
	await_done('copied');
	is(sent_by('copydb'), 30 * $copies, 'copied: until it is resumed there');
	$cluster->command('down -1');
	emit('copied', keys_of(10));
	ok(await_sql(is_failing('copied', 'timed out')), 'copied: brokers are down');
	my @left = programs();
	disconnect();

	connect_to('shopdb');
	my $start = time;
	sql('DROP DATABASE copydb');
	my $elapsed = time - $start;
	all_gone('copied', @left);
	$cluster->command('up -1');
	return $elapsed;
}

in_time(1, \&drop_copy, 'copied: the copy is dropped, in s');
healthy($node, 'shopdb', 'copied: verify() finds nothing');
drop_endpoint('copied');

$node->safe_psql('postgres', q{CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0});
$node->safe_psql('latin', 'CREATE EXTENSION shop');
disconnect();
connect_to('latin');
create('latin');
sql(q{SET client_encoding = 'UTF8'; SELECT shop.emit_event('latin', 'test', 'schlüssel', '{"text": "é"}')});
await_done('latin');
is(join(' ', map { "$_->{key} $_->{value} $_->{header}{ce_subject}" } messages('latin')), 'schlüssel {"text": "é"} schlüssel', 'messages are UTF-8, whatever the database is');
disconnect();

connect_to('shopdb');
check_events('beside');
disconnect();
$node->stop;
done_testing();
