# A receiver that offers HTTP/2 gets its events over it, as it would without.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Delivery;
use IPC::Run;
use JSON::PP;
use MIME::Base64 qw(encode_base64);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Receiver;
use ShopTest;
use Test::More;

# Debian has it where servers are.
$ENV{PATH} .= ':/usr/sbin';
plan skip_all => missing('openssl', 'nghttpd') if missing('openssl', 'nghttpd');

my $node = new_server('http2', settings => ['log_statement = none']);
$node->start;
open_for_delivery($node, 'http://127.0.0.1:1/');

my $dir = $node->basedir;
my $certificates = make_certificates($dir);
my $port = PostgreSQL::Test::Cluster::get_free_port();
my $secret = 'whsec_' . encode_base64('a secret of the shop and of the receiver', '');
append_to_file("$dir/events", 'it takes them');

# Starts the server, which writes down all it reads; returns its process and the
# name of that file.
my $starts = 0;
sub start_server
{
	my $log = "$dir/nghttpd." . ++$starts;
	my $server = IPC::Run::start(
		[ 'nghttpd', '--verbose', '--hexdump', '--address=127.0.0.1', "--htdocs=$dir", $port, reverse @{ $certificates->{good} } ],
		'<', \undef, '>', $log, '2>&1');

	await(sub { -e $log && slurp_file($log) =~ /listen/ }) or die 'no nghttpd';
	return ($server, $log);
}

# The requests that it has read: headers and body of each, in their order.
sub requests
{
	my ($log) = @_;
	my $text = slurp_file($log);
	my $bytes = join '', map { pack 'H*', s/\s//gr } $text =~ /^[0-9a-f]{8}  ([0-9a-f ]{47,48})  \|/mg;
	my %request;

	$request{$1}{headers}{$2} = $3 while $text =~ /recv \(stream_id=(\d+)\) (\S+): (.*)/g;
	substr $bytes, 0, length "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", '';
	while (length $bytes)
	{
		my ($high, $low, $type, $flags, $stream) = unpack 'CnCCN', substr $bytes, 0, 9, '';
		my $body = substr $bytes, 0, $high << 16 | $low, '';
		$request{$stream}{body} .= $body if $type == 0;
	}
	return map { $request{$_} } sort { $a <=> $b } keys %request;
}

# Tests that these are the events of a type, signed, in their order.
sub are_events
{
	my ($name, $type, @requests) = @_;
	my @ids = sql_list(sprintf 'SELECT to_json(id) FROM shop.outbox WHERE type = %s ORDER BY event_no', literal($type));
	my @bodies = map { decode_json($_->{body}) } @requests;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is_deeply([ map { $_->{id} } @bodies ], \@ids, "$name: the events have arrived, in order");
	is_deeply([ map { $_->{headers}{'webhook-id'} } @requests ], \@ids, "$name: under their ids");
	is_deeply([ map { $_->{headers}{'webhook-signature'} } @requests ], [ map { signature($secret, $_) } @requests ],
		"$name: their signatures are good");
	is_deeply([ map { $_->{headers}{'content-length'} } @requests ], [ map { length $_->{body} } @requests ], "$name: they are whole");
	return;
}

my ($server, $log) = start_server();
create_endpoint(
	'http2', "https://127.0.0.1:$port/events",
	types => '{first,second}',
	secret => $secret,
	options => { ca_file => $certificates->{ca}[0], in_flight => 1, backoff => 20, max_backoff => 100, max_attempts => 1000 });
emit('first', [ 'key', "cl\xc3\xa9" ], "{\"text\": \"\xe2\x98\x83\"}");
await_done('http2');
is(endpoint_has('http2', 'delivered_total'), '6', 'six events are delivered');
my @protocols = slurp_file($log) =~ /^The negotiated protocol: (.*)/mg;
is("@protocols", 'h2', 'over one connection, of HTTP/2');
my @requests = requests($log);
is(join(' ', map { "$_->{headers}{':method'} $_->{headers}{':path'}" } @requests), join(' ', ('POST /events') x 6), 'they were posted');
are_events('HTTP/2', 'first', @requests);

#
# A server that goes away, and comes back
#

$server->kill_kill;
emit('second', ['key']);
ok(await_sql(q{last_error IS NOT NULL FROM shop.endpoints WHERE name = 'http2'}), 'without the server they wait');
($server, $log) = start_server();
await_done('http2');
are_events('again', 'second', requests($log));

healthy($node, 'shopdb', 'verify() finds nothing');
disconnect();
$server->kill_kill;
$node->stop;
unlike(slurp_file($node->logfile), qr/PANIC|TRAP|was terminated by signal/, 'no process crashed');
done_testing();
