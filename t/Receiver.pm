# An HTTP receiver of events for the TAP tests: receiver.c, built and started in
# the test's directory, its journal, and certificates to try it with.
package Receiver;

use strict;
use warnings;

use Digest::SHA qw(hmac_sha256);
use Exporter 'import';
use File::Basename qw(dirname);
use File::Spec;
use HTTP::Tiny;
use JSON::PP;
use MIME::Base64 qw(decode_base64 encode_base64);
use POSIX qw(WNOHANG);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

our @EXPORT = qw(missing signature start_receiver make_certificates);

my $source = File::Spec->catfile(dirname(File::Spec->rel2abs(__FILE__)), 'receiver.c');

# The columns of the journal, in their order.
my @columns = qw(time target webhook_id type subject events attempt signature outcome id connection);

my %unescape = (t => "\t", n => "\n", r => "\r", '\\' => '\\');
my $started = 0;

# Of this kind they are made in no time.
my @new_key = ('-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1');

# What it needs and this machine does not have, and the same of other programs;
# empty if all is there.
sub missing
{
	my (@programs) = @_;

	return 'needs a C compiler and the headers of OpenSSL'
	  if system('echo "#include <openssl/ssl.h>" | ${CC:-cc} -E - >/dev/null 2>&1') != 0;
	for my $program (@programs)
	{
		my $command = $ENV{ uc $program } || $program;
		return "needs $program" if system("command -v $command >/dev/null 2>&1") != 0;
	}
	return '';
}

# The signature of a request, its headers and its body, of one secret, as
# Standard Webhooks has it.
sub signature
{
	my ($whsec, $sent) = @_;
	my $content = join '.', $sent->{headers}{'webhook-id'}, $sent->{headers}{'webhook-timestamp'}, $sent->{body};

	return 'v1,' . encode_base64(hmac_sha256($content, decode_base64($whsec =~ s/^whsec_//r)), '');
}

# Starts a receiver in a directory, or in that of a PostgreSQL::Test::Cluster.
# Options:
#   secret   a whsec_ secret, or several as an array
#   tls      [ certificate file, key file ]
#   port     one that is free, if not given
#   record   keep the requests whole, for requests()
sub start_receiver
{
	my ($where, %option) = @_;
	my $dir = File::Spec->rel2abs(ref $where ? $where->basedir : $where);
	my $secrets = $option{secret} // [];
	my $self = bless {
		dir => $dir,
		name => "$dir/receiver_" . ++$started,
		port => $option{port} // 0,
		tls => $option{tls},
		record => $option{record},
		secrets => ref $secrets ? $secrets : [$secrets],
	}, __PACKAGE__;

	build($dir);
	return $self->start;
}

# Builds the program, if the directory does not have it yet.
sub build
{
	my ($dir) = @_;
	my @cc = split ' ', $ENV{CC} // 'cc';

	return if -x "$dir/receiver";
	system_or_bail(@cc, '-O2', '-o', "$dir/receiver.new", $source, '-lssl', '-lcrypto');
	rename("$dir/receiver.new", "$dir/receiver") or die "$dir/receiver: $!";
	return;
}

# Starts it, again if need be: on the same port and with the same journal, but
# with its counts at zero.
sub start
{
	my ($self) = @_;
	my $name = $self->{name};
	my @command = (
		"$self->{dir}/receiver", '--with-parent', '--port', $self->{port},
		'--journal', "$name.journal", '--port-file', "$name.port",
		map { ('--secret', $_) } @{ $self->{secrets} });

	push @command, '--tls', @{ $self->{tls} } if $self->{tls};
	push @command, '--record', "$name.record" if $self->{record};
	unlink "$name.port", "$name.port.control";
	$self->{pid} = fork // die "fork: $!";
	if ($self->{pid} == 0)
	{
		no warnings 'exec';
		exec { $command[0] } @command;
		POSIX::_exit(127);
	}
	$self->{owner} = $$;
	$self->await($PostgreSQL::Test::Utils::timeout_default, sub { !$self->{pid} || -e "$name.port" });
	BAIL_OUT("$name does not start") if !$self->{pid} || !-e "$name.port";
	chomp($self->{port} = slurp_file("$name.port"));
	chomp($self->{control_port} = slurp_file("$name.port.control"));
	return $self;
}

sub pid
{
	my ($self) = @_;
	return $self->{pid};
}

sub port
{
	my ($self) = @_;
	return $self->{port};
}

# The address of a path; `host` is another name for the machine.
sub url
{
	my ($self, $path, $host) = @_;

	return sprintf '%s://%s:%d%s', $self->{tls} ? 'https' : 'http', $host // '127.0.0.1', $self->{port},
	  $path // '/ok';
}

# What it has seen so far, in order: a hash for each line, by the names of the
# columns, and `path`, the target without its query, and `taken`, whether the
# receiver has the event now.
sub journal
{
	my ($self) = @_;
	my @journal;

	my ($lines) = read_lines("$self->{name}.journal", 0);
	for my $line (@$lines)
	{
		my %entry;
		@entry{@columns} = @$line;
		utf8::decode($_) for values %entry;
		($entry{path}) = $entry{target} =~ /^([^?]*)/;
		$entry{taken} = is_taken(@entry{qw(id outcome)});
		push @journal, \%entry;
	}
	return @journal;
}

# The requests as they came (option `record`): time, target, method, headers
# (with their names in lower case), body.
sub requests
{
	my ($self) = @_;
	my @requests;

	my ($lines) = read_lines("$self->{name}.record", 0);
	for my $line (@$lines)
	{
		my %request;
		@request{qw(time target head body)} = @$line;
		my ($first, @headers) = split /\r\n/, delete $request{head};
		($request{method}) = split / /, $first;
		$request{headers} = { map { /^([^:]+):[ \t]*(.*?)[ \t]*$/ ? (lc $1 => $2) : () } @headers };
		push @requests, \%request;
	}
	return @requests;
}

sub is_taken
{
	my ($id, $outcome) = @_;
	return $id ne '' && $outcome =~ /^(?:2\d\d|lost)$/ ? 1 : 0;
}

# The complete lines of such a file from an offset on, as lists of their columns;
# and the offset after them.
sub read_lines
{
	my ($file, $offset) = @_;
	my @lines;

	open my $in, '<:raw', $file or die "$file: $!";
	seek $in, $offset, 0;
	while (defined(my $line = <$in>))
	{
		last if $line !~ s/\n\z//;
		$offset += length($line) + 1;
		push @lines, [ map { s/\\(.)/$unescape{$1}/gr } split /\t/, $line, -1 ];
	}
	close $in;
	return (\@lines, $offset);
}

# Waits until it has taken so many different events; returns whether it has.
sub wait_for
{
	my ($self, $n_events, $seconds) = @_;

	return $self->await($seconds // $PostgreSQL::Test::Utils::timeout_default, sub { $self->taken >= $n_events });
}

# How many different events it has taken.
sub taken
{
	my ($self) = @_;
	my $lines;

	# The journal may be long, so only what is new of it is read.
	($lines, $self->{offset}) = read_lines("$self->{name}.journal", $self->{offset} // 0);
	for my $line (@$lines)
	{
		my %entry;
		@entry{@columns} = @$line;
		$self->{taken}{ $entry{id} } = 1 if is_taken(@entry{qw(id outcome)});
	}
	return scalar keys %{ $self->{taken} };
}

# Waits until a condition is true; returns whether it is.
sub await
{
	my ($self, $seconds, $condition) = @_;
	my $start = time;

	while (!$condition->())
	{
		return 0 if time - $start > $seconds;
		$self->reap;
		sleep 0.01;
	}
	return 1;
}

# A line for /control: fault=TARGET, fault=, stop-listening=SECONDS.
sub control
{
	my ($self, $line) = @_;
	my $response = http()->post("http://127.0.0.1:$self->{control_port}/control", { content => "$line\n" });

	die "$line: $response->{status} $response->{content}" if !$response->{success};
	return;
}

# How many requests, events, different ids of events, connections since it was
# started.
sub count
{
	my ($self) = @_;
	my $response = http()->get("http://127.0.0.1:$self->{control_port}/count");

	die "$response->{status} $response->{content}" if !$response->{success};
	return decode_json($response->{content});
}

# No proxy, whatever the environment says.
sub http
{
	return HTTP::Tiny->new(
		timeout => $PostgreSQL::Test::Utils::timeout_default,
		proxy => undef,
		http_proxy => undef,
		https_proxy => undef);
}

# Ends it; returns whether it ended well.
sub stop
{
	my ($self) = @_;
	return $self->end('TERM') && $self->{status} == 0;
}

sub kill    ## no critic (ProhibitBuiltinHomonyms)
{
	my ($self) = @_;
	return $self->end('KILL');
}

sub end
{
	my ($self, $signal) = @_;

	$self->reap;
	return 0 if !$self->{pid};
	CORE::kill($signal, $self->{pid});
	return 1 if $self->await(10, sub { !$self->{pid} });
	CORE::kill('KILL', $self->{pid});
	waitpid($self->{pid}, 0);
	delete $self->{pid};
	return 0;
}

# Forgets the process if it has ended.
sub reap
{
	my ($self) = @_;

	return if !$self->{pid} || waitpid($self->{pid}, WNOHANG) == 0;
	$self->{status} = $?;
	delete $self->{pid};
	return;
}

# Not in a process that the test has forked; and the test's own status stays.
sub DESTROY
{
	my ($self) = @_;
	local ($?, $!, $@);

	$self->kill if $self->{pid} && $self->{owner} == $$;
	return;
}

# Certificates: ca, our own authority; good, for localhost and 127.0.0.1;
# expired, the same but years ago; other, for another host; stranger, as good but
# of an authority that nobody knows.  Returns a hash from these names to
# [ certificate file, key file ], as the option `tls` has it.
sub make_certificates
{
	my $dir = File::Spec->rel2abs($_[0]);
	my $here = 'DNS:localhost,IP:127.0.0.1';
	my %names = (good => $here, expired => $here, stranger => $here, other => 'DNS:other.example');
	my %files = map { $_ => [ "$dir/$_.pem", "$dir/$_.key" ] } qw(ca unknown), keys %names;

	make_authority($dir, $_, @{ $files{$_} }) for qw(ca unknown);
	for my $name (sort keys %names)
	{
		my ($certificate, $key) = @{ $files{$name} };
		my $books = $name eq 'stranger' ? "$dir/unknown.cnf" : "$dir/ca.cnf";
		my $end = $name eq 'expired' ? '20200201000000Z' : '20491231000000Z';

		append_to_file("$dir/$name.ext", "subjectAltName = $names{$name}\nextendedKeyUsage = serverAuth\n");
		openssl(
			'req', '-new', @new_key, '-config', $books, '-subj', "/CN=$name", '-keyout', $key, '-out', "$dir/$name.csr");
		openssl(
			'ca', '-batch', '-notext', '-config', $books, '-extfile', "$dir/$name.ext",
			'-startdate', '20200101000000Z', '-enddate', $end, '-in', "$dir/$name.csr", '-out', $certificate);
	}
	delete $files{unknown};
	return \%files;
}

# An authority with the books that `openssl ca` wants: no other command of it
# makes a certificate that has expired.
sub make_authority
{
	my ($dir, $name, $certificate, $key) = @_;

	append_to_file("$dir/$name.index", '');
	append_to_file(
		"$dir/$name.cnf", qq{
[req]
prompt = no
encrypt_key = no
distinguished_name = subject
x509_extensions = authority
[subject]
CN = $name
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[ca]
default_ca = books
[books]
database = $dir/$name.index
rand_serial = yes
new_certs_dir = $dir
certificate = $certificate
private_key = $key
default_md = sha256
policy = anything
unique_subject = no
[anything]
commonName = supplied
});
	openssl(
		'req', '-x509', '-new', @new_key, '-days', 3650, '-config', "$dir/$name.cnf",
		'-subj', "/CN=shop test $name", '-keyout', $key, '-out', $certificate);
	return;
}

sub openssl
{
	my (@arguments) = @_;

	system_or_bail($ENV{OPENSSL} || 'openssl', @arguments);
	return;
}

1;
