# shop_kafka speaks its protocol to the letter, delivers every message it has
# acknowledged, keeps the order of each key, and says what became of the rest,
# whatever happens to the brokers, to its pipes or to itself.
#
# It needs no server: the program and a mock cluster of Kafka brokers, whose
# faults come on demand, are compiled here.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Errno qw(EAGAIN EINTR);
use Fcntl qw(F_GETFL F_SETFL O_NONBLOCK);
use File::Temp;
use IO::Socket::INET;
use MockCluster;
use POSIX qw(:sys_wait_h);
use Test::More;
use Time::HiRes qw(sleep time);

# Classes of failures.
use constant { LATER => 0, NEVER => 1, ENDPOINT => 2 };

# The limits of the program.
use constant { MAX_FRAME => 16 * 1024 * 1024, MAX_HELD => 20000 };

my $top = "$FindBin::RealBin/..";
my $directory = File::Temp->newdir('shop_kafka_XXXXXX', TMPDIR => 1);
my $cc = $ENV{CC} // 'cc';
my $owner = $$;
my %running;
my $serial = 0;
my $brokers;
my $cluster;

$SIG{PIPE} = 'IGNORE';
# Something that hangs must not hang the tests.
$SIG{ALRM} = sub { BAIL_OUT('the tests take too long') };
alarm 600;

END
{
	my $status = $?;
	if (defined $owner && $$ == $owner)
	{
		kill KILL => keys %running;
		waitpid $_, 0 for keys %running;
	}
	$? = $status;
}

#
# Programs
#

# What the compiler says, if it says anything.
sub compile
{
	my ($compiler, $to, @file) = @_;

	return scalar `$compiler -std=gnu99 -O2 -Wall -Wextra -Werror -o $directory/$to @file -lrdkafka -lpthread 2>&1`;
}

sub can_compile
{
	open my $file, '>', "$directory/probe.c" or die $!;
	print $file "#include <librdkafka/rdkafka.h>\nint main(void) { return rd_kafka_version() == 0; }\n";
	close $file;
	return compile($cc, 'probe', "$directory/probe.c") eq '' && system("$directory/probe") == 0;
}

# A process with pipes; what it writes to its standard error goes to a file,
# unless there is a handle for it.
sub spawn
{
	my ($error, @command) = @_;
	my $process = { buffer => '', delivered => {}, failed => {}, errors => [], pings => 0 };

	pipe my $their_in, my $in or die $!;
	pipe my $out, my $their_out or die $!;
	if (!$error)
	{
		$process->{log} = "$directory/log." . ++$serial;
		open $error, '>', $process->{log} or die $!;
	}
	my $pid = fork // die $!;
	if ($pid == 0)
	{
		POSIX::dup2(fileno $their_in, 0);
		POSIX::dup2(fileno $their_out, 1);
		POSIX::dup2(fileno $error, 2);
		exec @command or POSIX::_exit(127);
	}
	$running{$pid} = 1;
	for my $handle ($in, $out)
	{
		fcntl $handle, F_SETFL, fcntl($handle, F_GETFL, 0) | O_NONBLOCK or die $!;
	}
	@$process{qw(pid in out)} = ($pid, $in, $out);
	return $process;
}

# The exit code, or the signal as a negative number; undef if it goes on.
sub ended
{
	my ($process, $seconds) = @_;
	my $end = time + $seconds;

	while (!exists $process->{status} && time < $end)
	{
		if (waitpid($process->{pid}, WNOHANG) == $process->{pid})
		{
			delete $running{ $process->{pid} };
			$process->{status} = $? & 127 ? -($? & 127) : $? >> 8;
		}
		else
		{
			sleep 0.01;
		}
	}
	return $process->{status};
}

sub log_of
{
	my ($process) = @_;
	local $/;
	open my $file, '<', $process->{log} or die $!;
	return <$file> // '';
}

#
# The mock cluster
#

sub mock
{
	my ($command) = @_;
	return $cluster->command($command);
}

sub new_topic
{
	my ($partitions) = @_;
	my $topic = 'topic' . ++$serial;

	mock("topic $topic $partitions");
	return $topic;
}

sub messages
{
	my ($topic) = @_;
	return $cluster->messages($topic);
}

#
# The protocol
#

sub string
{
	my ($string) = @_;
	return pack 'L/a*', $string;
}

sub pairs
{
	my (@pair) = @_;
	return pack('L', @pair / 2) . join '', map { string($_) } @pair;
}

sub frame
{
	my ($kind, $body) = @_;
	return pack 'La*', 1 + length $body, $kind . $body;
}

sub configure
{
	my ($topic, @setting) = @_;
	return frame('C', string($topic) . pairs(@setting));
}

sub message
{
	my ($tag, $key, $value, @header) = @_;
	return frame('M', pack('Q', $tag) . string($key) . string($value) . pairs(@header));
}

sub wait_for
{
	my ($process, $seconds, @which) = @_;
	my ($read, $write) = ('', '');

	vec($read, fileno $process->{out}, 1) = 1 if grep { $_ eq 'out' } @which;
	vec($write, fileno $process->{in}, 1) = 1 if grep { $_ eq 'in' } @which;
	return select($read, $write, undef, $seconds > 0 ? $seconds : 0) > 0;
}

# Reads what there is; false at the end.
sub take_answers
{
	my ($process) = @_;
	my $n = sysread $process->{out}, $process->{buffer}, 1 << 20, length $process->{buffer};
	my $position = 0;

	return 0 if defined $n && $n == 0;
	while (length($process->{buffer}) >= $position + 4)
	{
		my $size = unpack 'L', substr $process->{buffer}, $position, 4;
		last if length($process->{buffer}) < $position + 4 + $size;
		take_answer($process, unpack 'aa*', substr $process->{buffer}, $position + 4, $size);
		$position += 4 + $size;
	}
	substr $process->{buffer}, 0, $position, '';
	return 1;
}

sub take_answer
{
	my ($process, $kind, $body) = @_;

	if ($kind eq 'D')
	{
		my $tag = unpack 'Q', $body;
		fail("message $tag is answered twice") if $process->{delivered}{$tag}++ || $process->{failed}{$tag};
	}
	elsif ($kind eq 'F')
	{
		my ($tag, $class, $error) = unpack 'QCL/a*', $body;
		fail("message $tag is answered twice") if $process->{delivered}{$tag} || $process->{failed}{$tag};
		$process->{failed}{$tag} = { class => $class, error => $error };
	}
	elsif ($kind eq 'P') { $process->{pings}++ }
	elsif ($kind eq 'R') { $process->{ready}++ }
	elsif ($kind eq 'X') { $process->{refused} = unpack 'L/a*', $body }
	elsif ($kind eq 'E') { push @{ $process->{errors} }, { at => time, text => unpack 'L/a*', $body } }
	else { fail("an answer of kind $kind") }
	return;
}

# Writes and reads until the condition is true and all is written; false if
# time is over or the program is.
sub talk
{
	my ($process, $bytes, $seconds, $condition) = @_;
	my $end = time + $seconds;
	my $written = 0;

	while (1)
	{
		my $left = length($bytes) - $written;
		return 1 if $left == 0 && $condition->();
		return 0 if time >= $end;
		wait_for($process, $end - time, 'out', $left > 0 ? 'in' : ());
		if ($left > 0)
		{
			my $n = syswrite $process->{in}, $bytes, $left, $written;
			return 0 if !defined $n && $! != EAGAIN && $! != EINTR;
			$written += $n // 0;
		}
		return 0 if !take_answers($process) && !$condition->();
	}
}

sub answered
{
	my ($process) = @_;
	return keys(%{ $process->{delivered} }) + keys(%{ $process->{failed} });
}

# Sends messages and waits until that many have been answered.
sub deliver
{
	my ($process, $seconds, @message) = @_;
	my $wanted = answered($process) + @message;

	return talk($process, join('', @message), $seconds, sub { answered($process) >= $wanted });
}

sub answers_ping
{
	my ($process, $seconds) = @_;
	my $before = $process->{pings};

	return talk($process, frame('P', ''), $seconds, sub { $process->{pings} > $before });
}

# Settings that find out quickly.
sub settings
{
	my (%setting) = @_;

	return (
		'bootstrap.servers' => $brokers,
		'message.timeout.ms' => 20000,
		'reconnect.backoff.max.ms' => 200,
		'retry.backoff.ms' => 50,
		%setting);
}

# The program, configured.
sub start
{
	my ($topic, %setting) = @_;
	my $process = spawn(undef, "$directory/shop_kafka");

	talk($process, configure($topic, settings(%setting)), 10, sub { $process->{ready} })
	  or die 'the program does not start: ' . ($process->{refused} // log_of($process));
	return $process;
}

# It has nothing left to do, and does it.
sub stop
{
	my ($process) = @_;

	close $process->{in};
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is(ended($process, 5), 0, 'it ends with its input');
}

sub all_delivered
{
	my ($process, $n, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(scalar keys %{ $process->{failed} }, 0, "$name: none fails") or diag(explain($process->{failed}));
	return is(scalar keys %{ $process->{delivered} }, $n, "$name: all are delivered");
}

# A test that passes if message `tag` failed with that class and such an error.
sub failed_so
{
	my ($process, $tag, $class, $error, $name) = @_;
	my $failed = $process->{failed}{$tag} // { class => -1, error => 'has not failed' };

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is($failed->{class}, $class, "$name: class $class") or diag($failed->{error});
	return like($failed->{error}, $error, "$name: the error says why");
}

# The values 1 .. n of every key arrived, and the first copies of them in that
# order: a connection that breaks may leave a second one with a broker that
# does not look for them, as those of the mock cluster do not.
sub in_order
{
	my ($topic, $keys, $n, $name) = @_;
	my (%seen, %order, %partition);

	for my $message (messages($topic))
	{
		$partition{ $message->{key} }{ $message->{partition} } = 1;
		push @{ $order{ $message->{key} } }, $message->{value} if !$seen{ $message->{key} }{ $message->{value} }++;
	}
	my @bad = grep { "@{ $order{$_} // [] }" ne join ' ', 1 .. $n } map { "key$_" } 1 .. $keys;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(scalar @bad, 0, "$name: the order of each key is kept") or diag("$bad[0]: @{ $order{$bad[0]} // [] }");
	return is(scalar(grep { keys %$_ > 1 } values %partition), 0, "$name: each key has one partition");
}

# Values first .. last of each of so many keys; tags count on from first.
sub series
{
	my ($keys, $first, $last) = @_;

	return map {
		my $value = $_;
		map { message($value * $keys + $_, "key$_", $value) } 1 .. $keys
	} $first .. $last;
}

#
# What is needed
#

plan skip_all => "no C compiler ($cc)" if system("$cc --version >/dev/null 2>&1") != 0;
plan skip_all => 'librdkafka and its headers are not installed' if !can_compile();

is(compile($cc, 'shop_kafka', glob "$top/src/kafka/*.c"), '', "$cc compiles the program without a warning");
is(MockCluster::build("$directory/mock_cluster", '-Wall -Wextra -Werror'), '', "$cc compiles the mock cluster");
for my $other (grep { $_ ne $cc && system("$_ --version >/dev/null 2>&1") == 0 } 'gcc', 'clang')
{
	is(compile($other, 'other', glob "$top/src/kafka/*.c"), '', "$other does, too");
}

# One that counts the lines it runs.
if ($ENV{SHOP_KAFKA_PROGRAM})
{
	unlink "$directory/shop_kafka";
	symlink $ENV{SHOP_KAFKA_PROGRAM}, "$directory/shop_kafka" or die "$ENV{SHOP_KAFKA_PROGRAM}: $!";
}

$cluster = MockCluster::start("$directory/mock_cluster", 3);
$brokers = $cluster->brokers;

subtest 'messages arrive as they are' => sub {
	my $topic = new_topic(4);
	my $process = start($topic);

	ok(answers_ping($process, 1), 'a ping is answered');
	deliver(
		$process, 10,
		message(1, 'order-1', '{"n": 1}', ce_id => 'a', ce_type => 'order.paid'),
		message(~0, 'order-1', 'x' x 500000),
		message(2, '', ''));
	all_delivered($process, 3, 'three messages');
	my @message = sort { length $a->{value} <=> length $b->{value} } messages($topic);
	is($message[0]{value} // '', '', 'an empty one');
	is($message[1]{key}, 'order-1', 'the key');
	is($message[1]{value}, '{"n": 1}', 'the value');
	is("@{ $message[1]{headers} }", 'ce_id=a ce_type=order.paid', 'the headers');
	is(length $message[2]{value}, 500000, 'a long one');
	is($message[1]{partition}, $message[2]{partition}, 'a key has one partition');
	stop($process);
};

subtest 'order' => sub {
	my $topic = new_topic(4);
	my $process = start($topic);

	deliver($process, 30, series(20, 1, 250));
	all_delivered($process, 5000, '250 messages of 20 keys');
	in_order($topic, 20, 250, '20 keys');
	stop($process);
};

#
# Brokers
#

subtest 'a broker goes down and comes back' => sub {
	my $topic = new_topic(3);
	my $process = start($topic);

	mock("leader $topic $_ " . ($_ + 1)) for 0 .. 2;
	deliver($process, 10, series(10, 1, 10));
	mock('down 2');
	ok(!deliver($process, 2, series(10, 11, 20)), 'some messages have to wait');
	ok(answers_ping($process, 1), 'pings meanwhile are answered');
	ok(scalar @{ $process->{errors} }, 'the endpoint has an error to show');
	mock('up 2');
	ok(talk($process, '', 15, sub { answered($process) == 200 }), 'then they go');
	all_delivered($process, 200, 'all');
	in_order($topic, 10, 20, 'a broker that was down');
	stop($process);
};

subtest 'all brokers go down' => sub {
	my $topic = new_topic(3);
	my $process = start($topic, 'message.timeout.ms' => 2500);

	deliver($process, 10, message(1, 'a', '1'));
	mock('down -1');
	deliver($process, 10, message(2, 'a', '2'));
	failed_so($process, 2, LATER, qr/timed out: .*(refused|Disconnected|failed)/i, 'a message that runs out of time');
	ok(answers_ping($process, 1), 'pings are answered');
	my @error = @{ $process->{errors} };
	ok(scalar @error, 'the endpoint has an error to show');
	is(scalar(grep { $error[$_]{at} - $error[ $_ - 1 ]{at} < 0.9 } 1 .. $#error), 0, 'once a second at most');
	mock('up -1');
	deliver($process, 20, message(3, 'a', '3'));
	ok($process->{delivered}{3}, 'the next one is delivered when they are back');
	stop($process);
};

subtest 'brokers that come up late' => sub {
	my $topic = new_topic(3);

	mock('down -1');
	my $process = start($topic);
	ok(!deliver($process, 1, series(3, 1, 5)), 'messages wait for them');
	mock('up -1');
	ok(talk($process, '', 15, sub { answered($process) == 15 }), 'and go when they are there');
	all_delivered($process, 15, 'all');
	in_order($topic, 3, 5, 'messages that waited');
	stop($process);
};

subtest 'order across restarts of brokers' => sub {
	my $topic = new_topic(4);
	my $process = start($topic);

	for my $round (1 .. 6)
	{
		my $broker = 1 + $round % 3;
		talk($process, join('', series(10, 50 * $round - 49, 50 * $round)), 20, sub { 1 });
		mock("down $broker");
		talk($process, '', 0.2, sub { 0 });
		mock("up $broker");
	}
	ok(talk($process, '', 20, sub { answered($process) == 3000 }), 'all are answered');
	all_delivered($process, 3000, 'six restarts');
	in_order($topic, 10, 300, 'six restarts');
	stop($process);
};

subtest 'leaders move' => sub {
	my $topic = new_topic(2);
	my $process = start($topic, 'max.in.flight' => 1);

	for my $round (1 .. 6)
	{
		talk($process, join('', series(10, 20 * $round - 19, 20 * $round)), 20, sub { 1 });
		mock("leader $topic $_ " . (1 + ($round + $_) % 3)) for 0, 1;
		talk($process, '', 0.1, sub { 0 });
	}
	ok(talk($process, '', 20, sub { answered($process) == 1200 }), 'all are answered');
	all_delivered($process, 1200, 'six moves');
	in_order($topic, 10, 120, 'six moves');
	mock("leader $topic $_ -1") for 0, 1;
	stop($process);
};

subtest 'a partition without a leader' => sub {
	my $topic = new_topic(1);

	mock("leader $topic 0 -1");
	my $process = start($topic, 'message.timeout.ms' => 1500);
	deliver($process, 10, message(1, 'a', '1'));
	failed_so($process, 1, LATER, qr/timed out/, 'nobody to send it to');
	mock("leader $topic 0 1");
	deliver($process, 10, message(2, 'a', '2'));
	ok($process->{delivered}{2}, 'delivered once there is a leader');
	stop($process);
};

# Errors that pass, one after another.  The brokers of the mock cluster would
# take a later batch of a partition before the one that failed, as they do not
# look at sequence numbers; so there is one at a time.
for my $case (
	[ 'not enough replicas', NOT_ENOUGH_REPLICAS ],
	[ 'not enough replicas after it was written', NOT_ENOUGH_REPLICAS_AFTER_APPEND ],
	[ 'a request that timed out with the broker', REQUEST_TIMED_OUT ],
	[ 'a broker that leads no more', NOT_LEADER ],
	[ 'a disk that fails', STORAGE_ERROR ],
	[ 'a connection that breaks before the answer', DISCONNECT ])
{
	my ($name, $code) = @$case;

	subtest $name => sub {
		my $topic = new_topic(2);
		my $process = start($topic, 'max.in.flight' => 1);

		deliver($process, 10, series(5, 1, 1));
		mock('errors ' . PRODUCE . " $code $code $code");
		deliver($process, 20, series(5, 2, 20));
		all_delivered($process, 100, $name);
		in_order($topic, 5, 20, $name);
		stop($process);
	};
}

subtest 'not enough replicas for long' => sub {
	my $topic = new_topic(1);
	my $process = start($topic, 'message.timeout.ms' => 1500);

	mock('errors ' . PRODUCE . (' ' . NOT_ENOUGH_REPLICAS) x 900);
	deliver($process, 10, message(1, 'a', '1'));
	failed_so($process, 1, LATER, qr/timed out/, 'replicas that do not come back');
	stop($process);
	mock('clear ' . PRODUCE);
};

subtest 'answers slower than the time-out' => sub {
	my $topic = new_topic(1);
	my $process = start($topic, 'message.timeout.ms' => 1000);

	deliver($process, 10, message(1, 'a', '1'));
	mock('rtt -1 3000');
	deliver($process, 10, message(2, 'a', '2'));
	failed_so($process, 2, LATER, qr/timed out \(possibly delivered\)/, 'an answer that comes too late');
	ok(answers_ping($process, 1), 'pings are answered');
	mock('rtt -1 0');
	deliver($process, 20, message(3, 'a', '3'));
	ok($process->{delivered}{3}, 'the next one is delivered when they are fast again');
	stop($process);
};

subtest 'slow answers' => sub {
	my $topic = new_topic(1);
	my $process = start($topic);

	deliver($process, 10, message(1, 'a', '1'));
	mock('rtt -1 1500');
	ok(!deliver($process, 0.5, message(2, 'a', '2')), 'a message waits for its own');
	ok(answers_ping($process, 0.5), 'a ping does not');
	ok(talk($process, '', 5, sub { $process->{delivered}{2} }), 'it is delivered in the end');
	mock('rtt -1 0');
	stop($process);
};

#
# Messages
#

subtest 'a message that is too large' => sub {
	my $topic = new_topic(2);
	my $process = start($topic);

	deliver($process, 10, message(1, 'a', '1'), message(2, 'a', 'x' x 1_500_000), message(3, 'a', '3'));
	failed_so($process, 2, NEVER, qr/too large/, 'larger than the producer takes');
	ok($process->{delivered}{1} && $process->{delivered}{3}, 'those beside it are delivered');
	mock('errors ' . PRODUCE . ' ' . TOO_LARGE);
	deliver($process, 10, message(4, 'a', '4'));
	failed_so($process, 4, NEVER, qr/too large/, 'larger than the topic takes');
	deliver($process, 10, message(5, 'a', '5'));
	ok($process->{delivered}{5}, 'the next one is delivered');
	stop($process);
};

subtest 'a batch that is too large' => sub {
	my $topic = new_topic(1);
	my $process = start($topic, 'linger.ms' => 100);

	deliver($process, 10, message(1, 'a', '0'));
	mock('errors ' . PRODUCE . ' ' . TOO_LARGE);
	deliver($process, 10, map { message(1 + $_, 'key1', $_) } 1 .. 100);
	all_delivered($process, 101, 'a hundred messages, one of which may have been it');

	# The hundred, then fifty, 25, 12, 6, 3 and 1 of them.
	mock('errors ' . PRODUCE . (' ' . TOO_LARGE) x 7);
	deliver($process, 20, map { message(200 + $_, 'key1', 100 + $_) } 1 .. 100);
	failed_so($process, 201, NEVER, qr/too large/, 'the one that is');
	is(scalar keys %{ $process->{delivered} }, 200, 'all others are delivered');
	my @value = map { $_->{value} } grep { $_->{key} eq 'key1' } messages($topic);
	is("@value", join(' ', 1 .. 100, 102 .. 200), 'in their order');
	stop($process);
};

subtest 'a producer that has little room' => sub {
	my $topic = new_topic(2);
	my $process = start($topic, 'queue.buffering.max.messages' => 10, 'queue.buffering.max.kbytes' => 1);

	deliver($process, 20, series(5, 1, 100));
	all_delivered($process, 500, 'fifty times what it has room for');
	in_order($topic, 5, 100, 'messages that waited for room');
	deliver($process, 10, message(1, 'a', 'x' x 5000));
	failed_so($process, 1, NEVER, qr/too large/, 'one that never has room');
	stop($process);
};

#
# Endpoints
#

subtest 'a topic that is not there' => sub {
	my $topic = new_topic(1);

	mock("topic_error $topic " . UNKNOWN_TOPIC);
	my $process = start($topic, 'topic.metadata.propagation.max.ms' => 500);

	deliver($process, 10, message(1, 'a', '1'));
	failed_so($process, 1, ENDPOINT, qr/unknown topic/i, 'a message for it');
	deliver($process, 10, message(2, 'a', '2'));
	failed_so($process, 2, ENDPOINT, qr/unknown topic/i, 'another one');
	stop($process);
};

subtest 'no right to write' => sub {
	my $topic = new_topic(1);
	my $process = start($topic);

	deliver($process, 10, message(1, 'a', '1'));
	mock('errors ' . PRODUCE . ' ' . TOPIC_AUTHORIZATION_FAILED);
	deliver($process, 10, message(2, 'a', '2'));
	failed_so($process, 2, ENDPOINT, qr/authorization failed/i, 'to the topic');
	stop($process);
};

# A broker that takes nobody's password.
sub distrustful_broker
{
	my $listener = IO::Socket::INET->new(Listen => 5, LocalAddr => '127.0.0.1', Proto => 'tcp') or die $!;
	my $pid = fork // die $!;

	if ($pid != 0)
	{
		$running{$pid} = 1;
		return ($pid, $listener->sockport);
	}
	while (my $client = $listener->accept)
	{
		my ($length, $request);
		while (read($client, $length, 4) && read($client, $request, unpack 'N', $length))
		{
			my ($api, $version, $id) = unpack 'nnN', $request;
			my $answer = pack 'N', $id;
			# ApiVersions, SaslHandshake, SaslAuthenticate
			$answer .= pack 'nN(nnn)*', $version > 0 ? 35 : 0, 4, 18, 0, 0, 17, 0, 1, 36, 0, 0, 3, 0, 2 if $api == 18;
			$answer .= pack 'nNn/a*', 0, 1, 'PLAIN' if $api == 17;
			$answer .= pack 'nn/a*N', 58, 'wrong password', 0 if $api == 36;
			print $client pack 'N/a*', $answer;
			$client->flush;
		}
	}
	POSIX::_exit(0);
}

subtest 'a wrong password' => sub {
	my ($pid, $port) = distrustful_broker();
	my $process = start(
		'topic',
		'bootstrap.servers' => "127.0.0.1:$port",
		'message.timeout.ms' => 1500,
		'security.protocol' => 'sasl_plaintext',
		'sasl.mechanism' => 'PLAIN',
		'sasl.username' => 'user-of-the-shop',
		'sasl.password' => 'open-sesame');

	deliver($process, 10, message(1, 'a', '1'));
	failed_so($process, 1, ENDPOINT, qr/timed out: .*authentication/i, 'a message');
	like($process->{errors}[0]{text} // '', qr/authentication/i, 'the endpoint has an error to show');
	my $said = join ' ', log_of($process), $process->{failed}{1}{error}, map { $_->{text} } @{ $process->{errors} };
	unlike($said, qr/open-sesame|user-of-the-shop/, 'which keeps the secrets');
	stop($process);
	kill KILL => $pid;
};

#
# The end of a producer
#

subtest 'a producer that is out of step' => sub {
	my $topic = new_topic(1);
	my $process = start($topic, 'linger.ms' => 50);

	deliver($process, 10, message(1, 'a', '1'));
	mock('errors ' . PRODUCE . ' ' . OUT_OF_ORDER);
	deliver($process, 10, map { message($_, 'a', $_) } 2 .. 20);
	is(ended($process, 5), 3, 'it exits for a new one to be started');
	is(scalar keys %{ $process->{failed} }, 19, 'all that is outstanding is answered');
	failed_so($process, $_, LATER, qr/sequence number/, 'a message') for 2, 20;
	like($process->{errors}[-1]{text} // '', qr/sequence number/, 'the endpoint has an error to show');

	$process = start($topic);
	deliver($process, 10, map { message($_, 'a', $_) } 2 .. 20);
	all_delivered($process, 19, 'the next one');
	stop($process);
};

subtest 'no right to be idempotent' => sub {
	my $topic = new_topic(1);

	mock('errors ' . INIT_PRODUCER_ID . ' ' . CLUSTER_AUTHORIZATION_FAILED);
	my $process = spawn(undef, "$directory/shop_kafka");
	talk($process, configure($topic, settings()) . message(1, 'a', '1'), 10, sub { answered($process) == 1 });
	is(ended($process, 5), 3, 'it exits');
	failed_so($process, 1, ENDPOINT, qr/authorization failed/i, 'a new one would do no better');
};

subtest 'killed' => sub {
	my $topic = new_topic(2);
	my $process = start($topic, 'linger.ms' => 2);
	my @message = series(10, 1, 200);

	talk($process, join('', @message), 20, sub { answered($process) > 500 });
	kill KILL => $process->{pid};
	is(ended($process, 5), -9, 'it is dead');
	take_answers($process) for 1 .. 3;
	my %done = %{ $process->{delivered} };

	$process = start($topic);
	deliver($process, 20, grep { !$done{ unpack 'x5Q', $_ } } @message);
	is(keys(%{ $process->{delivered} }) + keys(%done), 2000, 'the next one delivers what was not acknowledged');
	my %value;
	$value{"$_->{key} $_->{value}"} = 1 for messages($topic);
	is(scalar keys %value, 2000, 'all have arrived');
	stop($process);
};

subtest 'stopped' => sub {
	my $process = start(new_topic(1));

	kill STOP => $process->{pid};
	ok(!answers_ping($process, 1), 'a ping is not answered');
	kill CONT => $process->{pid};
	ok(talk($process, '', 2, sub { $process->{pings} == 1 }), 'until it goes on');
	kill STOP => $process->{pid};
	kill KILL => $process->{pid};
	is(ended($process, 5), -9, 'it can be killed');
};

subtest 'signals' => sub {
	my $topic = new_topic(1);
	my $process = start($topic);

	kill $_ => $process->{pid} for 'INT', 'HUP', 'PIPE';
	ok(answers_ping($process, 1), 'some are nothing to it');
	mock('down -1');
	for my $signal ('TERM', 'QUIT')
	{
		$process = start($topic);
		deliver($process, 0.3, message(1, 'a', '1'));
		my $start = time;
		kill $signal => $process->{pid};
		is(ended($process, 5), 143, "SIG$signal ends it");
		cmp_ok(time - $start, '<', 1, 'at once');
	}
	mock('up -1');
};

#
# Pipes
#

subtest 'the end of the input' => sub {
	my $topic = new_topic(1);
	my $process = start($topic, 'linger.ms' => 10000);

	talk($process, join('', map { message($_, 'a', $_) } 1 .. 50), 10, sub { 1 });
	close $process->{in};
	talk($process, '', 5, sub { 0 });
	is(ended($process, 5), 0, 'it ends');
	all_delivered($process, 50, 'messages that lingered');

	$process = start($topic);
	deliver($process, 10, message(1, 'a', '1'));
	mock('down -1');
	talk($process, message(2, 'a', '2'), 10, sub { 1 });
	close $process->{in};
	my $start = time;
	is(ended($process, 5), 0, 'it ends, with brokers out of reach');
	cmp_ok(time - $start, '<', 2.5, 'soon');
	mock('up -1');

	$process = start($topic);
	talk($process, substr(message(3, 'a', '3'), 0, -1), 5, sub { 1 });
	stop($process);
};

subtest 'its parent is killed' => sub {
	my $topic = new_topic(1);
	my $parent = fork // die $!;

	if ($parent == 0)
	{
		my $process = start($topic);
		deliver($process, 10, message(1, 'a', '1'));
		open my $file, '>', "$directory/child" or POSIX::_exit(1);
		print $file $process->{pid};
		close $file;
		rename "$directory/child", "$directory/child.pid";
		sleep 60;
		POSIX::_exit(0);
	}
	sleep 0.05 while !-e "$directory/child.pid" && waitpid($parent, WNOHANG) == 0;
	open my $file, '<', "$directory/child.pid" or die $!;
	my $child = <$file>;
	kill KILL => $parent;
	waitpid $parent, 0;
	my $end = time + 5;
	sleep 0.05 while is_alive($child) && time < $end;
	ok(!is_alive($child), 'it goes away');
};

subtest 'nobody listens' => sub {
	my $process = start(new_topic(1));

	close $process->{out};
	is(ended($process, 5), 0, 'it ends');
};

sub memory_of
{
	my ($process) = @_;

	open my $file, '<', "/proc/$process->{pid}/status" or return;
	return (map { /^VmRSS:\s+(\d+)/ } <$file>)[0];
}

# Writes until nothing is taken any more for a while; the bytes.
sub write_until_full
{
	my ($process, $bytes, $limit) = @_;
	my $written = 0;

	while ($written < $limit && wait_for($process, 0.7, 'in'))
	{
		my $offset = $written % length $bytes;
		$written += syswrite($process->{in}, $bytes, length($bytes) - $offset, $offset) // 0;
	}
	return $written;
}

subtest 'answers that nobody reads' => sub {
	my $process = start(new_topic(1));
	my $ping = frame('P', '');
	my $before = memory_of($process);
	my $written = write_until_full($process, $ping x 10000, 100_000_000);

	cmp_ok($written, '<', 2_000_000, 'it stops reading');
	cmp_ok(memory_of($process) - $before, '<', 10_000, 'and does not grow') if $before;
	$written -= $written % length $ping;
	ok(talk($process, '', 20, sub { $process->{pings} >= $written / length $ping }), 'it goes on when they are read');
	kill KILL => $process->{pid};
};

subtest 'more messages than it can get rid of' => sub {
	my $topic = new_topic(3);
	my $process = start($topic, 'message.timeout.ms' => 60000);
	my @message = map { message($_, 'key' . $_ % 7, 'x' x 50) } 1 .. 40000;

	mock('down -1');
	talk($process, join('', @message[ 0 .. 14999 ]), 10, sub { 1 });
	ok(answers_ping($process, 1), 'pings behind them are answered');
	kill KILL => $process->{pid};

	$process = start($topic, 'message.timeout.ms' => 60000);
	my $bytes = join '', @message;
	my $written = write_until_full($process, $bytes, length $bytes);
	cmp_ok($written / length $message[-1], '<', MAX_HELD + 8000, 'it stops reading');
	mock('up -1');
	ok( talk($process, substr($bytes, $written), 60, sub { answered($process) == 40000 }),
		'it goes on when there is room');
	all_delivered($process, 40000, 'all');
	stop($process);
};

subtest 'hung up while it does not read' => sub {
	my $process = start(new_topic(1));

	write_until_full($process, frame('P', '') x 10000, 100_000_000);
	my $start = time;
	close $process->{in};
	is(ended($process, 5), 0, 'it ends');
	cmp_ok(time - $start, '<', 2.5, 'soon');
};

subtest 'a log that nobody reads' => sub {
	pipe my $read, my $write or die $!;
	my $flags = fcntl $write, F_GETFL, 0;
	fcntl $write, F_SETFL, $flags | O_NONBLOCK;
	1 while syswrite $write, 'x' x 4096;
	fcntl $write, F_SETFL, $flags;

	mock('down -1');
	my $process = spawn($write, "$directory/shop_kafka");
	talk($process, configure(new_topic(1), settings()), 10, sub { $process->{ready} });
	ok(talk($process, '', 5, sub { @{ $process->{errors} } }), 'there is something to log');
	ok(answers_ping($process, 1), 'it does not wait for that');
	mock('up -1');
	stop($process);
};

#
# Requests
#

subtest 'malformed requests' => sub {
	my $good = configure('topic', settings());
	my $start = pack('Q', 1) . string('a') . string('1');
	my @case = (
		[ 'no kind', pack 'L', 0 ],
		[ 'an unknown kind', $good . frame('Z', '') ],
		[ 'an unknown kind, first', frame('Z', '') ],
		[ 'a message, first', message(1, 'a', '1') ],
		[ 'a ping, first', frame('P', '') ],
		[ 'a second configuration', $good x 2 ],
		[ 'a ping with a body', $good . frame('P', 'x') ],
		[ 'a message without a body', $good . frame('M', '') ],
		[ 'a message without a value', $good . frame('M', pack('Q', 1) . string('a')) ],
		[ 'a string longer than its frame', $good . frame('M', pack('Q', 1) . pack('L', 1000) . 'a') ],
		[ 'a string of 4 GiB', $good . frame('M', pack('Q', 1) . pack('L', 0xFFFFFFFF) . 'a') ],
		[ 'fewer headers than it says', $good . frame('M', $start . pack('L', 2) . string('h') . string('v')) ],
		[ '4 G headers', $good . frame('M', $start . pack('L', 0xFFFFFFFF)) ],
		[ 'bytes after the headers', $good . frame('M', $start . pairs() . 'x') ],
		[ 'bytes after the settings', frame('C', string('topic') . pairs(settings()) . 'x') ],
		[ 'fewer settings than it says', frame('C', string('topic') . pack('L', 3)) ],
		[ 'a frame that is too large', $good . pack('L', MAX_FRAME + 1) . 'M' ],
		[ 'a frame of 4 GiB', $good . pack('L', 0xFFFFFFFF) . 'M' ],
	);

	for my $case (@case)
	{
		my ($name, $bytes) = @$case;
		my $process = spawn(undef, "$directory/shop_kafka");
		talk($process, $bytes, 5, sub { 0 });
		is(ended($process, 5), 2, "$name: it exits");
		like(log_of($process), qr/^shop_kafka\[\d+\]: malformed request: .*\n\z/, "$name: it says why");
	}
};

subtest 'large frames' => sub {
	my $process = start(new_topic(1), 'message.max.bytes' => 20_000_000);
	my $room = MAX_FRAME - length(message(1, 'a', '')) + 4;

	deliver($process, 20, message(1, 'a', 'x' x $room));
	ok($process->{delivered}{1}, 'the largest one');
	deliver($process, 10, message(2, 'a', '2'));
	ok($process->{delivered}{2}, 'a small one after it');
	stop($process);
};

# Requests in any pieces.
subtest 'byte by byte' => sub {
	my $process = spawn(undef, "$directory/shop_kafka");
	my $bytes = configure(new_topic(1), settings()) . message(1, 'a', '1', h => 'v') . frame('P', '');

	talk($process, $_, 5, sub { 1 }) for split //, $bytes;
	ok(talk($process, '', 10, sub { $process->{pings} && answered($process) }), 'all is understood');
	stop($process);
};

#
# Settings
#

# What it says to a request to configure; empty if it accepts.
sub refusal
{
	my ($topic, @setting) = @_;
	my $process = spawn(undef, "$directory/shop_kafka");

	talk($process, configure($topic, @setting), 10, sub { $process->{ready} || defined $process->{refused} });
	my $refused = $process->{refused};
	if (defined $refused)
	{
		my $status = ended($process, 5);
		$refused .= " (exit $status)" if $status != 1;
		$refused .= ' (log)' if log_of($process) =~ /topsecret/;
	}
	kill KILL => $process->{pid};
	return $refused // '';
}

subtest 'bad settings' => sub {
	my @case = (
		[ [ 'bootstrap.servers' => '' ], qr/^setting bootstrap.servers is missing$/ ],
		[ [ 'no.such.setting' => 'topsecret' ], qr/^there is no setting no.such.setting$/ ],
		[ [ 'linger.ms' => 'topsecret' ], qr/^the value of setting linger.ms is not valid/ ],
		[ [ 'acks' => 'topsecret' ], qr/^the value of setting acks is not valid/ ],
		[ [ 'message.max.bytes' => '-1' ], qr/^the value of setting message.max.bytes is not valid/ ],
		[ [ "sasl.password\0" => 'topsecret' ], qr/^the name of a setting is not valid$/ ],
		[ [ 'sasl.password' => "topsecret\0" ], qr/^the value of setting sasl.password is not valid/ ],
		[ [ 'top secret' => 'x' ], qr/^the name of a setting is not valid$/ ],
		[ [ '' => 'x' ], qr/^the name of a setting is not valid$/ ],
		[ [ 'acks' => '1' ], qr/acks/ ],
		[ [ 'security.protocol' => 'ssl', 'ssl.ca.location' => '/topsecret/ca.pem' ], qr/ssl.ca.location/ ],
		[ [ 'security.protocol' => 'ssl', 'ssl.key.pem' => 'topsecret' ], qr/ssl.key.pem/ ],
		[ [ 'security.protocol' => 'sasl_ssl', 'sasl.mechanism' => 'topsecret' ], qr/mechanism/i ],
		[ [ 'dr_msg_cb' => 'topsecret' ], qr/^the (name|value) of/ ],
		[ [ 'opaque' => 'topsecret' ], qr/^the value of setting opaque is not valid, or it cannot be set$/ ],
	);
	for my $case (@case)
	{
		my ($setting, $reason) = @$case;
		my $refusal = refusal('topic', settings(), @$setting);
		(my $name = $setting->[-2]) =~ s/\0/\\0/;
		like($refusal, $reason, "'$name' is told to be wrong");
		unlike($refusal, qr/topsecret/, 'and its value is not shown');
	}
	like(refusal($_, settings()), qr/^the name of the topic is not valid$/, 'a bad topic')
	  for '', 'a/b', "a\0b", 'x' x 250;
	is(refusal('a.b-C_9', settings()), '', 'a good one');
};

subtest 'refused settings' => sub {
	for my $name (
		'plugin.library.paths', 'interceptors', 'ssl.engine.location', 'ssl.engine.id',
		'ssl.providers', 'ssl_engine_callback_data', 'sasl.kerberos.kinit.cmd', 'sasl.kerberos.keytab',
		'sasl.kerberos.principal', 'sasl.kerberos.min.time.before.relogin', 'sasl.oauthbearer.method', 'sasl.oauthbearer.config',
		'sasl.oauthbearer.token.endpoint.url', 'enable.sasl.oauthbearer.unsecure.jwt', 'offset.store.path', 'offset.store.method',
		'debug', 'log.queue', 'enabled_events', 'delivery.report.only.error',
		'queuing.strategy', 'transactional.id', 'internal.termination.signal', 'test.mock.num.brokers',
		'ut_handle_ProduceResponse')
	{
		like(
			refusal('topic', settings(), $name, 'topsecret'),
			$name =~ /[A-Z]/ ? qr/^the name of a setting is not valid$/ : qr/^setting \Q$name\E is refused: [^(]+$/, $name);
	}
};

subtest 'settings of the caller' => sub {
	is(refusal('topic', settings('enable.idempotence' => 'false', 'acks' => '1')), '', 'override those of the program');
	is( refusal(
			'topic',
			settings(
				'security.protocol' => 'sasl_ssl', 'sasl.mechanism' => 'SCRAM-SHA-512',
				'sasl.username' => 'a', 'sasl.password' => 'b', 'compression.codec' => 'zstd',
				'client.id' => 'shop', 'partitioner' => 'murmur2_random')),
		'', 'may be any others');
};

# librdkafka goes on without a thread that it could not start, and does not try
# again; the program then ends, so that a new one can.
subtest 'no thread to be had' => sub {
	my $topic = new_topic(1);

	open my $file, '>', "$directory/threads.c" or die $!;
	print $file <<'END';
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <threads.h>

/* The first so many threads can be started, whichever way. */
static int may_start(void)
{
	static int left = -1;

	if (left < 0)
		left = atoi(getenv("THREADS"));
	return left-- > 0;
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *arg)
{
	int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *) = dlsym(RTLD_NEXT, "pthread_create");

	return may_start() ? real(thread, attributes, start, arg) : EAGAIN;
}

int thrd_create(thrd_t *thread, thrd_start_t start, void *arg)
{
	int (*real)(thrd_t *, thrd_start_t, void *) = dlsym(RTLD_NEXT, "thrd_create");

	return may_start() ? real(thread, start, arg) : thrd_nomem;
}
END
	close $file;
	is(scalar `$cc -shared -fPIC -o $directory/threads.so $directory/threads.c 2>&1`, '', 'compiles');
	my %ended;
	for my $threads (0 .. 8)
	{
		local $ENV{LD_PRELOAD} = "$directory/threads.so";
		local $ENV{THREADS} = $threads;
		my $process = spawn(undef, "$directory/shop_kafka");
		# Deaf to messages or not even ready: either it delivers, or it ends.
		talk($process, configure($topic, settings('message.timeout.ms' => 5000)) . message(1, 'key', "value $threads"),
			30, sub { $process->{delivered}{1} || exists $process->{failed}{1} });
		# It may lack the thread of a broker that it has no need of yet.
		my $delivers = $process->{delivered}{1};
		close $process->{in} if $delivers;
		my $status = ended($process, 30) // 'hangs';
		$ended{$status}++;
		# Without its first one, librdkafka crashes; that ends it too.
		ok($status =~ ($delivers ? qr/^[03]$/ : qr/^(3|4|-11)$/), "with $threads threads: $status") or diag(log_of($process));
	}
	ok($ended{0}, 'with enough of them it delivers');
	ok($ended{3}, 'without one for a broker it ends as failed for good');
	ok($ended{4}, 'and with none at all because of the system');
};

ok($cluster->stop, 'the mock cluster ends');
done_testing();
