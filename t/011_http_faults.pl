# HTTP endpoints that fail in every way there is.  After each fault: what was
# committed is delivered, dead or waiting, as the fault has it, in the order of
# its key, and nothing else; the relay sends with no transaction open, ends when
# it is told to, and stands in the way of no DROP DATABASE.
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
use Time::HiRes qw(sleep time);

plan skip_all => missing('openssl') if missing('openssl');

# Short, so that the tests are; what hangs has less time.
my %options = (timeout => 5000, backoff => 10, max_backoff => 50, max_attempts => 1000);

# A resolver that knows no .invalid, and for slow.example is waiting for a name
# server that does not answer.
my $resolver = q{
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <string.h>
#include <unistd.h>

int
getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **result)
{
	int (*next)(const char *, const char *, const struct addrinfo *, struct addrinfo **) = dlsym(RTLD_NEXT, "getaddrinfo");

	if (name && strstr(name, ".invalid"))
		return EAI_NONAME;
	if (name && strstr(name, "slow.example"))
	{
		sleep(20);
		return EAI_AGAIN;
	}
	return next(name, service, hints, result);
}
};

my $node = new_server('http_faults', settings => ['log_statement = none']);
my $elsewhere = start_receiver($node);
append_to_file($node->basedir . '/resolver.c', $resolver);
system_or_bail(split(' ', $ENV{CC} // 'cc'), '-shared', '-fPIC', '-o', $node->basedir . '/resolver.so', $node->basedir . '/resolver.c');
{
	# The environment has a proxy, which is nothing to the relay.
	local @ENV{qw(http_proxy https_proxy all_proxy ALL_PROXY)} = ($elsewhere->url('')) x 4;
	local $ENV{LD_PRELOAD} = $node->basedir . '/resolver.so';
	$node->start;
}
open_for_delivery($node, 'http://127.0.0.1:1/');

my $certificates = make_certificates($node->basedir);
my $ca_file = $certificates->{ca}[0];
# The keys of the events of a case, and how many cases there were.
my $keys = [qw(a b c)];
my $cases = 0;
my @dismissed;

# An endpoint for the type of its name, with the options that all have.
sub create
{
	my ($name, $url, $added, $type) = @_;
	return create_endpoint($name, $url, types => sprintf('{"%s"}', $type // $name), options => { %options, %{ $added // {} } });
}

# Waits until the events of an endpoint have this fate, or the one of their key.
sub await_fate
{
	my ($name, $want) = @_;
	return await(sub { !grep { $_->[2] ne (ref $want ? $want->{ $_->[1] } : $want) } fates($name) });
}

# An entry of the journal that says that the event has been taken.
sub is_taken
{
	my ($entry, $taken_as) = @_;
	return $entry->{taken} || ($entry->{id} ne '' && $entry->{outcome} eq ($taken_as // ''));
}

# Tests that hold after every fault, whatever it is: at a receiver, with what the
# journal calls taken there, if that is not as usual.
sub check_events
{
	my ($name, $want, $receiver, $taken_as) = @_;
	my @fates = fates($name);
	my %committed = map { $_->[0] => 1 } @fates;
	my (@taken, @foreign);

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(join(', ', map { "$_->[1] $_->[2]" } @fates), join(', ', map { "$_->[1] " . (ref $want ? $want->{ $_->[1] } : $want) } @fates),
		"$name: each event is " . (ref $want ? 'what its key is' : $want));
	return if !$receiver;
	for my $entry ($receiver->journal)
	{
		my $id = $entry->{id} ne '' ? $entry->{id} : $entry->{webhook_id} =~ s/\+.*//r;

		push @foreign, $id if $id ne '' && !$committed{$id};
		push @taken, [ $id, $entry->{subject} ] if is_taken($entry, $taken_as);
	}
	is_deeply(by_key(first_copies(@taken)), by_key(grep { $_->[2] eq 'delivered' } @fates),
		"$name: they have arrived, in the order of their keys")
	  or diag(join "\n", (map { "@$_" } @fates), map { join ' ', @$_{qw(id subject attempt outcome)} } $receiver->journal);
	is("@foreign", '', "$name: nothing else has");
	return;
}

# Tests of the relay, while something is wrong.  It is ended each time, so that
# the next one has to find out by itself what is wrong; what is to be quick is
# tried with what takes its time.
sub check_relay
{
	my ($name, $hangs) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	sits_in_no_transaction($name);
	drops_in_time($name) if $hangs;
	ends_in_time($name) if $hangs;
	end_relay(relay_pid()) if !$hangs;
	return;
}

# Ends a receiver, without waiting for that.
sub dismiss
{
	my ($receiver) = @_;

	kill 'TERM', $receiver->pid;
	push @dismissed, $receiver;
	return;
}

# Invariants of the whole shop.
sub check_shop
{
	my ($name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is(sql('SELECT * FROM shop.verify() LIMIT 10'), '', "$name: verify() finds nothing");
}

# A case: an endpoint of its name, nine events, and what they come to.
#   at        target of the receiver; without it there is none
#   url       if it is not that of the receiver, or a function of it
#   control   what the receiver is told before
#   cure      what it is told afterwards, so that all is well
#   tls       certificate of the receiver
#   options   besides those that all have
#   want      delivered, dead, waiting or paused; or a hash of these by key
#   taken_as  outcome that is taken, other than 2xx
#   tries     how often each event has arrived when it is taken, or at all
#   error     what shop.endpoints says is wrong
#   silent    the receiver sees no request
#   idle      the relay has nothing to do in the end
#   hangs     what is promised of the relay must hold although something hangs
#   counted   tries are few: the relay is not ended before the last of them, as
#             that would be a try, too
sub try_fault
{
	my (%case) = @_;
	my ($name, $want) = @case{qw(name want)};
	my $receiver =
	  defined $case{at} ? start_receiver($node, $case{tls} ? (tls => $certificates->{ $case{tls} }) : ()) : undef;
	my $url = ref $case{url} ? $case{url}->($receiver) : $case{url} // $receiver->url($case{at});
	my $fate = $want eq 'paused' ? 'waiting' : $want;
	my $is_final = $want eq 'dead' || $want eq 'paused' || $case{counted};

	$cases++;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$receiver->control($case{control}) if $case{control};
	create($name, $url, $case{options});
	emit($name, $keys);
	await_trouble($name, $receiver, $want);

	check_relay($name, $case{hangs}) if !$is_final;
	await_pause($name) if $want eq 'paused';
	await_fate($name, $fate);
	check_relay($name, $case{hangs}) if $is_final;
	check_events($name, $fate, $receiver, $case{taken_as});
	check_answer(\%case, $receiver);
	check_cure(\%case, $receiver) if defined $case{cure};
	check_shop($name);
	drop_endpoint($name);
	dismiss($receiver) if $receiver;
	return;
}

# Waits until something has gone wrong, or could have.
sub await_trouble
{
	my ($name, $receiver, $want) = @_;

	return await(sub { $receiver->count->{connections} > 0 }) if $want eq 'delivered' && $receiver;
	return 1 if $want eq 'paused' || $want eq 'dead';
	return await_sql(
		sprintf q{count(*) > 0 FROM shop.delivery d JOIN shop.endpoint e USING (endpoint_id)
		           WHERE e.name = %s AND (attempts > 1 OR dead_at IS NOT NULL)}, literal($name));
}

# Waits until an endpoint is paused, and nothing is on its way.
sub await_pause
{
	my ($name) = @_;

	return await_sql(
		sprintf q{v.state = 'paused' AND e.inflight IS NULL FROM shop.endpoints v JOIN shop.endpoint e USING (name) WHERE name = %s},
		literal($name));
}

# A test that passes if shop.endpoints says it.
sub check_error
{
	my ($name, $error) = @_;
	my $says = '';

	await(sub { ($says = endpoint_has($name, 'coalesce(pause_reason, last_error)')) =~ $error });
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return like($says, $error, "$name: shop.endpoints says what is wrong");
}

sub check_answer
{
	my ($case, $receiver) = @_;
	my $name = $case->{name};

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	check_tries($case, $receiver) if $case->{tries};
	is_idle($name) if $case->{idle};
	check_error($name, $case->{error}) if $case->{error};
	is(sql(sprintf 'SELECT count(*) FROM shop.delivery JOIN shop.endpoint e USING (endpoint_id) WHERE e.name = %s', literal($name)),
		'0', "$name: no try is counted")
	  if $case->{want} eq 'paused';
	is($receiver->count->{requests}, 0, "$name: nothing is sent") if $case->{silent};
	return;
}

# How often each event has arrived: until it was taken, or at all.
sub check_tries
{
	my ($case, $receiver) = @_;
	my (%tries, %done);

	for my $entry ($receiver->journal)
	{
		my $id = $entry->{webhook_id};
		$tries{$id}++ if !$done{$id};
		$done{$id} ||= is_taken($entry, $case->{taken_as});
	}
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is(join(' ', values %tries), join(' ', ($case->{tries}) x (3 * @$keys)), "$case->{name}: after $case->{tries} tries each");
}

# Once the receiver is well, everything arrives.
sub check_cure
{
	my ($case, $receiver) = @_;
	my $name = $case->{name};

	$receiver->control($case->{cure});
	resume($name) if $case->{want} eq 'paused';
	sql(sprintf 'SELECT shop.redrive_all(%s)', literal($name)) if $case->{want} eq 'dead';
	await_fate($name, 'delivered');
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return check_events($name, 'delivered', $receiver, $case->{taken_as});
}

#
# Statuses
#

try_fault(name => "status $_", at => "/status/$_", want => 'delivered', tries => 1) for 200, 202, 204;
try_fault(name => "status $_, then 200", at => "/status/$_", want => 'delivered', tries => 1) for 100, 103;
try_fault(name => "status $_ twice", at => "/status/$_?times=2", want => 'delivered', tries => 3)
  for 408, 425, 429, 500, 502, 503, 504, 599;
try_fault(name => 'status 400 twice', at => '/status/400?times=2', want => 'delivered', tries => 3, counted => 1);
try_fault(name => "status $_ for good", at => "/status/$_", want => 'waiting', error => qr/^HTTP status $_$/, hangs => $_ == 503) for 429, 503;
try_fault(
	name => "status $_ until it is well",
	at => '/ok',
	control => "fault=/status/$_",
	want => 'dead',
	tries => 3,
	error => qr/^HTTP status $_$/,
	cure => 'fault=') for 400, 405, 409, 413, 415, 422;
try_fault(
	name => "status $_ until it is well",
	at => '/ok',
	control => "fault=/status/$_",
	want => 'paused',
	error => qr/^HTTP status $_$/,
	cure => 'fault=') for 301, 302, 304, 307, 308, 401, 403, 404, 410;
try_fault(
	name => 'no more tries than the options say',
	at => '/ok',
	control => 'fault=/status/503',
	options => { max_attempts => 4 },
	want => 'dead',
	tries => 4,
	error => qr/503/,
	cure => 'fault=');
try_fault(name => 'no more to try', at => '/status/422', want => 'dead', idle => 1);
try_fault(name => 'a single try', at => '/status/400', options => { max_attempts => 1 }, want => 'dead', tries => 1);

for my $to ($elsewhere->url('/ok'), '//127.0.0.1:' . $elsewhere->port . '/ok', 'file:///etc/passwd')
{
	try_fault(
		name => "redirect to $to",
		at => '/ok',
		control => "fault=/redirect?status=307&to=$to",
		want => 'paused',
		error => qr/^HTTP status 307$/,
		cure => 'fault=');
}

#
# Connections and answers
#

# For what takes as long as it may.
my %hurry = (options => { timeout => 150 });

try_fault(name => 'nobody listens', url => 'http://127.0.0.1:1/', want => 'waiting', error => qr/connect/i);
try_fault(name => 'nobody has the name', url => 'http://nobody.invalid/', want => 'waiting', error => qr/resolve/i);
try_fault(name => 'nobody listens for a moment', at => '/ok', control => 'stop-listening=0.5', want => 'delivered');
try_fault(name => "$_ twice", at => "/$_?times=2", want => 'delivered')
  for qw(reset-accept reset-headers reset-body reset-answer close truncate chunked-truncate garbage);
try_fault(name => "$_ for good", at => "/$_", want => 'waiting', error => qr/./)
  for qw(reset-answer close truncate garbage oversize-headers);
try_fault(name => 'lost twice', at => '/lost?times=2', want => 'delivered', tries => 1);
try_fault(name => 'reset before anything is read', at => '/ok', control => 'fault=/reset-accept?times=3', want => 'delivered');
try_fault(name => "$_ once", at => "/$_?times=1", want => 'delivered', %hurry) for qw(hang hang-connect);
try_fault(name => 'nothing is read', at => '/ok', control => 'fault=/hang-connect?times=1', want => 'delivered', %hurry);
try_fault(name => 'hang for good', at => '/hang', want => 'waiting', error => qr/time/i, hangs => 1, %hurry);
try_fault(name => 'a byte every 100 ms', at => '/slow?ms=100&times=1', want => 'delivered', %hurry);
try_fault(name => 'a byte a second', at => '/slow', want => 'waiting', error => qr/time/i, hangs => 1, %hurry);
try_fault(name => 'connections that hang', at => '/ok', control => 'fault=/hang-connect', want => 'waiting', error => qr/time/i, hangs => 1, %hurry);
try_fault(name => 'an answer that takes its time', at => '/delay?ms=100', want => 'delivered', tries => 1);
try_fault(name => 'an answer that comes too late', at => '/delay?ms=300&times=1', want => 'delivered', tries => 1, %hurry);
try_fault(name => $_->[0], at => $_->[1], want => 'delivered', tries => 1, taken_as => $_->[2])
  for [ 'an answer of 1 MiB', '/oversize', 'oversize' ],
  [ 'an answer of 64 KiB', '/oversize?bytes=65536', 'oversize' ],
  [ 'headers of 50 KiB', '/oversize-headers?bytes=50000', 'oversize-headers' ],
  [ 'no keep-alive', '/no-keepalive' ], [ 'an answer of HTTP/1.0', '/http10' ], [ '100 Continue', '/continue' ],
  [ 'no body', '/empty' ], [ 'headers that begin with a folded line', '/folded?every=2' ];

#
# TLS
#

my %ca = (options => { ca_file => $ca_file });
try_fault(name => 'a good certificate', at => '/ok', tls => 'good', want => 'delivered', tries => 1, %ca);
try_fault(name => 'a certificate of an authority unknown here', at => '/ok', tls => 'good', want => 'waiting', silent => 1, error => qr/certificate/i);
try_fault(name => $_->[0], at => '/ok', tls => $_->[1], want => 'waiting', silent => 1, error => qr/certificate/i, %ca)
  for [ 'a certificate that has expired', 'expired' ], [ 'a certificate of a stranger', 'stranger' ],
  [ 'a certificate of another host', 'other' ];
try_fault(
	name => 'an authority that is not there',
	at => '/ok',
	tls => 'good',
	options => { ca_file => "$ca_file.none" },
	want => 'waiting',
	silent => 1,
	error => qr/certificate/i);
try_fault(
	name => 'TLS to a plain port',
	at => '/ok',
	url => sub { $_[0]->url('/ok') =~ s/^http:/https:/r },
	want => 'waiting',
	error => qr/SSL|time/,
	options => { ca_file => $ca_file, timeout => 300 });
try_fault(name => 'plain to a port of TLS', at => '/ok', tls => 'good', url => sub { $_[0]->url('/ok') =~ s/^https:/http:/r }, want => 'waiting', silent => 1, error => qr/./);
try_fault(name => "$_ twice, in TLS", at => "/$_?times=2", tls => 'good', want => 'delivered', %ca) for qw(reset-body truncate close);
try_fault(name => 'a handshake that hangs', at => '/ok', tls => 'good', control => 'fault=/hang-connect?times=1', want => 'delivered', options => { ca_file => $ca_file, timeout => 150 });
try_fault(name => 'handshakes that hang', at => '/ok', tls => 'good', control => 'fault=/hang-connect', want => 'waiting', hangs => 1, error => qr/time/i, options => { ca_file => $ca_file, timeout => 150 });
try_fault(name => 'a handshake that is reset', at => '/ok', tls => 'good', control => 'fault=/reset-accept?times=2', want => 'delivered', %ca);

#
# One key among others
#

my %b_waits = (a => 'delivered', b => 'waiting', c => 'delivered');
my %b_dies = (a => 'delivered', b => 'dead', c => 'delivered');
try_fault(name => "$_ for one key", at => "/$_?key=b", want => {%b_waits}, error => qr/./, %hurry) for qw(status/503 close hang reset-answer);
try_fault(name => 'status 422 for one key', at => '/status/422?key=b', want => {%b_dies}, error => qr/422/);
try_fault(
	name => 'status 503 for one key, one at a time',
	at => '/status/503?key=b',
	options => { in_flight => 1 },
	want => {%b_waits});

# That all others have been delivered when it may go on is why it is the last.
try_fault(
	name => 'status 503 for one key, until it is well',
	at => '/ok',
	control => 'fault=/status/503?key=b',
	want => {%b_waits},
	error => qr/503/,
	cure => 'fault=');

# Every third request fails, whatever its key, and the relay is ended in between.
for my $batch (1, 5)
{
	my $name = "one in three fails, $batch at once";
	my $receiver = start_receiver($node);

	$cases++;
	create($name, $receiver->url('/status/503?every=3'), { batch => $batch, backoff => 5, max_backoff => 20 });
	sql("SELECT shop.emit_event('$name', 'test', 'key ' || n % 10, '{}') FROM generate_series(1, 200) n");
	$receiver->wait_for(20);
	sql("SELECT shop.emit_event('$name', 'test', 'key ' || $_ % 10, '{}')") for 1 .. 50;
	check_relay($name);
	sql("SELECT shop.emit_event('$name', 'test', 'key ' || $_ % 10, '{}')") for 1 .. 50;
	await_fate($name, 'delivered');
	check_events($name, 'delivered', $receiver);
	check_shop($name);
	drop_endpoint($name);
}

# A try that has met an endpoint that is to be paused is none.
{
	my $name = 'paused between two tries';
	my $receiver = start_receiver($node);

	$cases++;
	$receiver->control('fault=/status/503');
	create($name, $receiver->url, { backoff => 300, max_backoff => 300, max_attempts => 2 });
	emit($name, $keys);
	await_sql('count(*) = 3 FROM shop.delivery WHERE attempts = 1');
	$receiver->control('fault=/status/403');
	await_pause($name);
	is(sql('SELECT max(attempts) FROM shop.delivery WHERE dead_at IS NULL'), '1', "$name: the second is not counted");
	$receiver->control('fault=');
	resume($name);
	await_fate($name, 'delivered');
	check_events($name, 'delivered', $receiver);
	check_relay($name);
	check_shop($name);
	drop_endpoint($name);
}

#
# Batches
#

my %batch = (options => { batch => 4 });
try_fault(name => "$_, in batches", at => "/$_?times=1", want => 'delivered', %batch, counted => $_ eq 'status/400')
  for qw(status/503 status/400 lost truncate reset-body);
try_fault(name => 'status 413 for one key, in batches', at => '/status/413?key=b', want => {%b_dies}, error => qr/413/, %batch);
try_fault(
	name => 'status 401 until it is well, in batches',
	at => '/ok',
	control => 'fault=/status/401',
	want => 'paused',
	error => qr/401/,
	cure => 'fault=', %batch);

#
# Retry-After
#

# The shortest time between the first and the second arrival of an event, in seconds.
sub shortest_wait
{
	my ($receiver) = @_;
	my %at;

	push @{ $at{ $_->{id} } }, $_->{time} / 1_000_000 for $receiver->journal;
	my ($shortest) = sort { $a <=> $b } map { $_->[1] - $_->[0] } grep { @$_ > 1 } values %at;
	return $shortest // 0;
}

# A date has no fractions, so that 2 s from now may be 1 s from now.
for my $after ([ 'seconds', '/status/429?times=1&retry-after=1', 1 ], [ 'a date', '/status/503?times=1&retry-after=date%2b2', 1 ])
{
	my ($what, $at, $seconds) = @$after;
	my $name = "Retry-After with $what";
	my $receiver = start_receiver($node);

	$cases++;
	create($name, $receiver->url($at));
	sql("SELECT shop.emit_event('$name', 'test', k, '{}') FROM unnest('{a,b,c}'::text[]) k");
	await_fate($name, 'delivered');
	check_events($name, 'delivered', $receiver);
	cmp_ok(shortest_wait($receiver), '>=', $seconds - 0.1, "$name: it is asked again when it wants to be");
	check_relay($name);
	drop_endpoint($name);
}
try_fault(name => "Retry-After: $_", at => "/status/503?times=1&retry-after=$_", want => 'delivered', tries => 2) for 'soon', '0', '-7';
{
	my $name = 'Retry-After: a long time, for one key';
	my $receiver = start_receiver($node);

	$cases++;
	create($name, $receiver->url('/status/429?key=b&retry-after=999999999999'));
	emit($name, $keys);
	await_fate($name, {%b_waits});
	await_sql(q{count(*) = 3 FROM shop.delivery JOIN shop.endpoint e USING (endpoint_id) WHERE e.name LIKE 'Retry-After%'});
	check_events($name, {%b_waits}, $receiver);
	is_idle($name);
	is(sql(q{SELECT max(next_attempt_at) BETWEEN now() + interval '23 h' AND now() + interval '25 h' FROM shop.delivery WHERE next_attempt_at < 'infinity'}),
		't', "$name: a day is as long as it is listened to");
	drop_endpoint($name);
}

#
# Endpoints that take nothing, beside one that does
#

# The longest time that one of some new events of a type is on its way to a
# receiver, in seconds.
sub longest_way
{
	my ($receiver, $type) = @_;
	my %sent_at = map { @$_ } sql_list(
		sprintf q{SELECT json_build_array(shop.emit_event(%s, 'test', 'key ' || k, '{}'), extract(epoch FROM clock_timestamp()))
		            FROM generate_series(1, 8) k}, literal($type));
	my %arrived_at;

	await(
		sub {
			%arrived_at = map { $_->{id} => $_->{time} / 1_000_000 } grep { $sent_at{ $_->{id} } && $_->{taken} } $receiver->journal;
			return %arrived_at == %sent_at;
		}) or return PATIENCE;
	my ($longest) = sort { $b <=> $a } map { $arrived_at{$_} - $sent_at{$_} } keys %sent_at;
	return $longest;
}

# A test that passes if all events, some at a time, arrive at a good endpoint soon.
sub check_beside
{
	my ($name, $good) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	in_time(1, sub { longest_way($good, $name) }, "$name: events arrive at the good endpoint, in s, $_") for 1 .. 4;
	check_relay($name, 1);
	return;
}

my $good = start_receiver($node);
my $bad = start_receiver($node);
my %bad = (
	'nobody listens' => 'http://127.0.0.1:1/',
	'nobody has the name' => 'http://nobody.invalid/',
	'nobody says who has the name' => 'http://slow.example/',
	'not TLS' => $bad->url('/ok') =~ s/^http:/https:/r,
	map { $_ => $bad->url("/$_") } qw(hang hang-connect slow close status/503 status/400 status/410));
create('good', $good->url, {}, '*');
for my $what (sort keys %bad)
{
	$cases++;
	create("beside $what", $bad{$what}, { timeout => 1000 });
	check_beside("beside $what", $good);
	drop_endpoint("beside $what");
}

$cases++;
create("all: $_", $bad{$_}, { timeout => 1000 }, 'beside all of them') for sort keys %bad;
check_beside('beside all of them', $good);
await_fate('good', 'delivered');
check_events('good', 'delivered', $good);
drop_endpoint("all: $_") for sort keys %bad;
drop_endpoint('good');
check_shop('beside all of them');
ok($bad->kill && $good->stop, 'the receivers end');

#
# An endpoint that is broken, and recovers
#

for my $fault (qw(status/500 hang reset-accept))
{
	my $name = "broken by $fault";
	my $receiver = start_receiver($node);

	$cases++;
	$receiver->control("fault=/$fault");
	create($name, $receiver->url, { backoff => 200, max_backoff => 200, timeout => 100 });
	sql("SELECT shop.emit_event('$name', 'test', 'key ' || k % 60, '{}') FROM generate_series(1, 120) k");
	ok(await_sql("failures >= 20 FROM shop.endpoint WHERE name = '$name'"), "$name: it is seen to be");
	my $start = time;
	my $requests = $receiver->count->{requests};
	await(sub { $receiver->count->{requests} >= $requests + 3 });
	cmp_ok(time - $start, '>', 0.15, sprintf '%s: it is left alone, but for three probes in %.2f s', $name, time - $start);
	check_relay($name);
	$receiver->control('fault=');
	await_fate($name, 'delivered');
	check_events($name, 'delivered', $receiver);
	is(sql("SELECT state FROM shop.endpoints WHERE name = '$name'"), 'active', "$name: it has recovered");
	check_shop($name);
	drop_endpoint($name);
}

#
# A receiver that goes away, and comes back
#

for my $how (qw(killed stopped disconnected))
{
	my $name = "a receiver that is $how";
	my $receiver = start_receiver($node);

	$cases++;
	create($name, $receiver->url('/delay?ms=5'));
	sql("SELECT shop.emit_event('$name', 'test', 'key ' || k % 20, '{}') FROM generate_series(1, 300) k");
	$receiver->wait_for(50);
	if ($how eq 'killed')
	{
		$receiver->kill;
		check_relay($name);
		$receiver->start;
	}
	elsif ($how eq 'stopped')
	{
		kill 'STOP', $receiver->pid;
		check_relay($name, 1);
		kill 'CONT', $receiver->pid;
	}
	else
	{
		check_relay($name);
		$receiver->control('stop-listening=0');
	}
	await_fate($name, 'delivered');
	check_events($name, 'delivered', $receiver);
	check_shop($name);

	# A connection that has been closed while nobody used it.
	$receiver->control('stop-listening=0');
	sql("SELECT shop.emit_event('$name', 'test', 'key 1', '{}')");
	await_fate($name, 'delivered');
	check_events($name, 'delivered', $receiver);
	drop_endpoint($name);
}

#
# Dead letters, one by one
#

{
	my $name = 'redrive';
	my $receiver = start_receiver($node);

	$cases++;
	$receiver->control('fault=/status/422');
	create($name, $receiver->url);
	emit($name, $keys);
	await_fate($name, 'dead');
	$receiver->control('fault=');
	my @dead = map { $_->[0] } fates($name);
	is(sql("SELECT string_agg(DISTINCT attempts || ' ' || last_error, ', ') FROM shop.dead_letters WHERE endpoint = '$name'"),
		'3 HTTP status 422', 'redrive: the dead letters say why');
	is(sql("SELECT shop.redrive('$name', '$dead[3]')"), '1', 'redrive: one can be sent again');
	$receiver->wait_for(1);
	await_sql("count(*) = 8 FROM shop.dead_letters WHERE endpoint = '$name'");
	is(join(' ', map { $_->{id} } grep { $_->{taken} } $receiver->journal), $dead[3], 'redrive: that one arrives, under its old id');
	is(sqlstate_of($node, 'shopdb', "SELECT shop.redrive('$name', '$dead[3]')"), 'SH' . substr(sql(q{SELECT sqlstate FROM shop.error_codes() WHERE condition = 'dead_letter_not_found'}), 2),
		'redrive: then it is no dead letter any more');
	sql("SELECT shop.emit_event('$name', 'test', 'a', '{}')");
	$receiver->wait_for(2);
	is(sql("SELECT shop.redrive_all('$name', now() + interval '1 h')"), '0', 'redrive: none has died since in an hour');
	is(sql("SELECT shop.redrive_all('$name', now() - interval '1 h')"), '8', 'redrive: all others can be');
	await_fate($name, 'delivered');
	is($receiver->taken, 10, 'redrive: and arrive');
	check_relay($name);
	check_shop($name);
	drop_endpoint($name);
}

#
# More is due than there is room for
#

{
	my $name = 'more than there is room for';
	my $receiver = start_receiver($node);

	$cases++;
	create($name, $receiver->url('/hang'), { timeout => 30000 });
	sql("SELECT shop.pause_endpoint('$name')");
	sql("SELECT shop.emit_event('$name', 'test', 'key ' || k, '{}') FROM generate_series(1, 600) k");
	# As if all of them had been turned down before.
	sql(qq{
		WITH waiting AS (INSERT INTO shop.delivery (endpoint_id, event_no, event_id, aggregateid, attempts, next_attempt_at)
		    SELECT e.endpoint_id, o.event_no, o.id, o.aggregateid, 1, now() FROM shop.outbox o, shop.endpoint e WHERE o.type = '$name' AND e.name = '$name'
		    RETURNING event_no)
		UPDATE shop.endpoint SET acked = acked + (SELECT range_agg(int8range(event_no, event_no, '[]')) FROM waiting) WHERE name = '$name'});
	resume($name);
	await(sub { $receiver->journal >= 16 });
	is_idle($name);
	is(scalar $receiver->journal, 16, "$name: no more is on its way than may be");
	drop_endpoint($name);
	check_shop($name);
}

#
# A long queue behind an event that is on its way
#

{
	my $name = 'a long queue';
	my $receiver = start_receiver($node);
	my $rows_read = q{SELECT sum(pg_stat_get_tuples_returned(indexrelid)) FROM pg_index WHERE indrelid = 'shop.delivery'::regclass};

	$cases++;
	create($name, $receiver->url('/hang?key=deep'), { timeout => 30000 });
	sql("SELECT shop.pause_endpoint('$name')");
	sql("SELECT shop.emit_event('$name', 'test', 'deep', '{}') FROM generate_series(1, 2000) k");
	# As if the first had been turned down before.
	sql(qq{
		WITH waiting AS (INSERT INTO shop.delivery (endpoint_id, event_no, event_id, aggregateid, attempts, next_attempt_at)
		    SELECT e.endpoint_id, o.event_no, o.id, o.aggregateid, 1, CASE WHEN o.event_no = min(o.event_no) OVER () THEN now() ELSE 'infinity' END
		      FROM shop.outbox o, shop.endpoint e WHERE o.type = '$name' AND e.name = '$name'
		    RETURNING event_no)
		UPDATE shop.endpoint SET acked = acked + (SELECT range_agg(int8range(event_no, event_no, '[]')) FROM waiting) WHERE name = '$name'});
	resume($name);
	await(sub { $receiver->journal == 1 });
	my $before = sql($rows_read);
	for my $n (1 .. 10)
	{
		sql("SELECT shop.emit_event('$name', 'test', 'key $n', '{}')");
		await(sub { $receiver->taken == $n });
	}
	is($receiver->taken, 10, "$name: other keys pass");
	my $rows = sql($rows_read) - $before;
	ok($rows > 0 && $rows < 2000, "$name: it is not read for each of them, but $rows of its rows for all");
	drop_endpoint($name);
	check_shop($name);
}

#
# Paused while it is broken
#

{
	my $name = 'paused while it is broken';
	my $receiver = start_receiver($node);

	$cases++;
	$receiver->control('fault=/status/500');
	create($name, $receiver->url, { backoff => 60000, max_backoff => 60000 });
	sql("SELECT shop.emit_event('$name', 'test', 'key ' || k, '{}') FROM generate_series(1, 120) k");
	ok(await_sql("failures >= 20 AND inflight IS NOT NULL FROM shop.endpoint WHERE name = '$name'"), "$name: there is something left that was not sent");
	sql("SELECT shop.pause_endpoint('$name')");
	ok(await_sql("inflight IS NULL FROM shop.endpoint WHERE name = '$name'"), "$name: that is not counted as tried");
	$receiver->control('fault=');
	resume($name);
	ok(await_sql("delivered_total > 0 FROM shop.endpoint WHERE name = '$name'"), "$name: it goes on");
	is(sql("SELECT count(*) FROM shop.delivery JOIN shop.endpoint USING (endpoint_id) WHERE name = '$name' AND suspect"), '0', "$name: nothing is suspect");
	drop_endpoint($name);
	check_shop($name);
}

#
# While a request hangs
#

{
	my $name = 'while a request hangs';
	my $receiver = start_receiver($node);
	my $in_transaction = 0;

	$cases++;
	create($name, $receiver->url('/hang?times=2'), { timeout => 30000 });
	sql("SELECT shop.emit_event('$name', 'test', 'a', '{}')");
	await(sub { $receiver->journal });
	for (1 .. 20)
	{
		$in_transaction += sql(
			q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'shop relay'
			   AND (xact_start IS NOT NULL OR backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)});
		sleep 0.01;
	}
	# It may just have looked for other events.
	cmp_ok($in_transaction, '<', 10, "$name: the relay has no transaction open, but in $in_transaction of 20 looks");
	is(scalar $receiver->journal, 1, "$name: it still does");
	check_relay($name);
	await(sub { $receiver->journal > 1 });
	is_idle("$name again");
	check_relay("$name again", 1);
	await_fate($name, 'delivered');
	check_events($name, 'delivered', $receiver);
	is(keys %{ { map { $_->{webhook_id} => 1 } $receiver->journal } }, 1, "$name: every try has the same id");
	drop_endpoint($name);

	for my $verb (qw(pause_endpoint drop_endpoint))
	{
		my $what = "$verb() $name";
		my $hanging = start_receiver($node);

		$cases++;
		create($what, $hanging->url('/hang'), { timeout => 30000 });
		emit($what, $keys);
		await(sub { $hanging->journal });
		my $start = time;
		sql(sprintf 'SELECT shop.%s(%s)', $verb, literal($what));
		cmp_ok(time - $start, '<', 10, "$what: nobody waits for that, which would be 30 s");
		check_relay($what, 1);
		check_shop($what);
		drop_endpoint($what) if $verb eq 'pause_endpoint';
	}
}

cmp_ok($cases, '>=', 60, "there were $cases cases");
for my $receiver (@dismissed)
{
	$receiver->await(10, sub { !$receiver->pid }) or fail('a receiver has not ended');
}
is($elsewhere->count->{connections}, 0, 'nothing went to a proxy, or where a redirect said');
healthy($node, 'shopdb', 'verify() finds nothing');
disconnect();
$node->stop;
unlike(slurp_file($node->logfile), qr/PANIC|TRAP|was terminated by signal|server process .* exited with exit code/, 'no process crashed');
done_testing();
