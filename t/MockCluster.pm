# Brokers of Kafka for the TAP tests: mock_cluster.c, with faults on demand, and
# the numbers of Kafka's protocol.
package MockCluster;

use strict;
use warnings;

use Exporter 'import';
use File::Basename qw(dirname);
use File::Spec;
use IPC::Open2;

# A kind of request.
use constant { PRODUCE => 0, INIT_PRODUCER_ID => 22 };

# What its answer may say.
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
	CLUSTER_AUTHORIZATION_FAILED => 31,
	OUT_OF_ORDER => 45,
	STORAGE_ERROR => 56,
};

our @EXPORT = qw(
  PRODUCE INIT_PRODUCER_ID DISCONNECT NO_ERROR UNKNOWN_TOPIC NOT_LEADER REQUEST_TIMED_OUT TOO_LARGE
  NOT_ENOUGH_REPLICAS NOT_ENOUGH_REPLICAS_AFTER_APPEND TOPIC_AUTHORIZATION_FAILED CLUSTER_AUTHORIZATION_FAILED
  OUT_OF_ORDER STORAGE_ERROR is_alive
);

my $source = File::Spec->catfile(dirname(File::Spec->rel2abs(__FILE__)), 'mock_cluster.c');

# Compiles the program; returns what the compiler says, if it says anything.
sub build
{
	my ($program, $flags) = @_;
	my $cc = $ENV{CC} // 'cc';

	return scalar `$cc -std=gnu99 -O2 $flags -o $program $source -lrdkafka -lpthread 2>&1`;
}

# Starts a cluster of so many brokers.
sub start
{
	my ($program, $n) = @_;
	my $self = bless {}, __PACKAGE__;

	$self->{pid} = open2($self->{out}, $self->{in}, $program, $n);
	$self->{in}->autoflush;
	($self->{brokers}) = ($self->{out}->getline // '') =~ /^brokers (.*)/ or die 'no mock cluster';
	return $self;
}

# Their addresses.
sub brokers
{
	my ($self) = @_;
	return $self->{brokers};
}

# The lines that a command prints.
sub command
{
	my ($self, $command) = @_;
	my @line;

	$self->{in}->print("$command\n");
	while (defined(my $line = $self->{out}->getline))
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
	my ($self, @code) = @_;
	return $self->command(join ' ', 'errors', PRODUCE, @code);
}

# The messages of a topic, in the order of their partitions.
sub messages
{
	my ($self, $topic) = @_;

	return map {
		my ($partition, $offset, $key, $value, @headers) = split /\t/, $_, -1;
		{
			partition => $partition,
			key => $key,
			value => $value,
			headers => \@headers,
			header => { map { split /=/, $_, 2 } @headers },
		}
	} $self->command("read $topic");
}

# Ends it; returns whether it ended well.
sub stop
{
	my ($self) = @_;

	close $self->{in};
	return waitpid($self->{pid}, 0) == $self->{pid} && $? == 0;
}

# Is a process there?  A zombie whom nobody buries is not.
sub is_alive
{
	my ($pid) = @_;

	open my $file, '<', "/proc/$pid/stat" or return 0;
	return (<$file> // ') X') !~ /\) [ZX]/;
}

1;
