# What an HTTP endpoint gets when nothing is wrong: each event once, soon, in
# order, as CloudEvents with signatures; and what nobody gets: the secrets.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Delivery;
use JSON::PP;
use MIME::Base64 qw(encode_base64);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Receiver;
use ShopTest;
use Test::More;
use Time::HiRes qw(time);

plan skip_all => missing() if missing();

my $node = new_server('http', settings => [ 'log_statement = none', 'log_min_messages = debug1', 'log_error_verbosity = verbose' ]);
$node->start;
open_for_delivery($node, 'http://127.0.0.1:1/');

my $secret = 'whsec_' . encode_base64('a secret of the shop and of the receiver', '');
my $other_secret = 'whsec_' . encode_base64('the one that comes after it, next month', '');
my $receiver = start_receiver($node, record => 1);
my $signed = start_receiver($node, secret => $secret, record => 1);
my $next = start_receiver($node, secret => $other_secret);

# Creates an endpoint at a target of the receiver.
sub endpoint
{
	my ($name, $at, $target, %arg) = @_;

	return create_endpoint($name, $at->url($target), types => '{*}', %arg);
}

# Emits one event; returns its id.
sub event
{
	my ($type, $key, $payload, $priority) = @_;

	return sql(sprintf q{SELECT shop.emit_event(%s, 'test', %s, %s, %d)},
		literal($type), literal($key), literal($payload // '{}'), $priority // 0);
}

# What has been taken at a target, in order.
sub taken
{
	my ($at, $target) = @_;
	return grep { $_->{target} eq $target && $_->{taken} } $at->journal;
}

# A test that passes if so many different events arrive there.
sub arrive
{
	my ($at, $target, $n, $name) = @_;
	my $count = sub { my %ids = map { $_->{id} => 1 } taken($at, $target); return scalar keys %ids; };
	my $start = time;

	$at->await(20, sub { $count->() >= $n });
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is($count->(), $n, sprintf '%s (%.1f s)', $name, time - $start);
}

# The requests to a target, whole.
sub requests
{
	my ($at, $target) = @_;
	return grep { $_->{target} eq $target } $at->requests;
}

# The relay has looked at all endpoints after this.
sub relay_goes_by
{
	my $event = event('round', 'round');

	$receiver->await(20, sub { grep { $_->{id} eq $event } taken($receiver, '/ok/round') }) or die 'no round';
	return;
}

# A test that passes if these events have arrived there, each once, with those
# of each key in order.
sub complete
{
	my ($at, $target, $type, $name) = @_;
	my @wanted = sql_list(
		sprintf 'SELECT json_build_array(id, aggregateid) FROM shop.outbox WHERE type LIKE %s ORDER BY event_no', literal($type));

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is_deeply(by_key(map { utf8::encode(my $key = $_->{subject}); [ $_->{id}, $key ] } taken($at, $target)), by_key(@wanted), $name);
}

endpoint('round', $receiver, '/ok/round', types => '{round}');

#
# Beside a function that is slow
#

# The answer is there after a tenth of the time that the relay is away, and the limit is a third of it.
endpoint('beside', $receiver, '/delay?ms=300', types => '{beside}', options => { timeout => 1000 });
sql(q{CREATE FUNCTION public.slow(event jsonb) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(3)'});
create_endpoint('slow', 'function:public.slow', types => '{slow}');
event('beside', 'key');
$receiver->await(20, sub { requests($receiver, '/delay?ms=300') });
event('slow', 'key');
ok(await_sql(q{delivered_total = 1 FROM shop.endpoint WHERE name = 'slow'}), 'the relay was in a slow function');
ok(await_sql(q{delivered_total = 1 FROM shop.endpoint WHERE name = 'beside'}), 'beside it an event is delivered');
is(scalar requests($receiver, '/delay?ms=300'), 1, 'once: its answer was there in time');
is(sql(q{SELECT last_error FROM shop.endpoint WHERE name = 'beside'}), '', 'and nothing went wrong');
drop_endpoint($_) for qw(beside slow);

#
# A url that this build does not know, as after a change of the library
#

endpoint('unknown', $receiver, '/ok/unknown', types => '{unknown}');
my $relay_before = relay_pid();
sql(q{UPDATE shop.endpoint SET url = 'unknown://127.0.0.1/' WHERE name = 'unknown'});
event('unknown', 'key');
ok(await_sql(q{state = 'paused' AND pause_reason = 'this build cannot deliver to such a url' FROM shop.endpoints WHERE name = 'unknown'}),
	'an endpoint that cannot be delivered to is paused');
relay_goes_by();
is(relay_pid(), $relay_before, 'and holds up no other');
drop_endpoint('unknown');

#
# One event
#

endpoint('one', $receiver, '/ok/one', types => '{one.*}');
my $payload = q{{"text": "a \"b\" \\\\ é ☃ 😀\n", "number": 12345678901234567890.50, "list": [1, null, true, {}]}};
my $id = event('one.a', 'key', $payload);
arrive($receiver, '/ok/one', 1, 'an event arrives');
my ($request) = requests($receiver, '/ok/one');
is($request->{method}, 'POST', 'it is posted');
utf8::decode(my $body = $request->{body});
is( value(
		$node, 'shopdb', sprintf q{
		SELECT %s::jsonb = jsonb_build_object(
		           'specversion', '1.0', 'id', id, 'source', '/shop/shopdb', 'type', type, 'subject', aggregateid,
		           'time', to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
		           'datacontenttype', 'application/json', 'aggregatetype', aggregatetype, 'data', payload)
		  FROM shop.outbox WHERE id = %s}, literal($request->{body}), literal($id)),
	't', 'the body is a CloudEvent with all that the outbox has') or diag($body);
like($body, qr/12345678901234567890\.50/, 'its numbers are what they were');
like($body, qr/\x{e9} \x{2603} \x{1f600}/, 'its characters too');
my $headers = $request->{headers};
like($headers->{'content-type'}, qr{^application/cloudevents\+json(; ?charset=utf-8)?$}i, 'the content type is that of an event');
is($headers->{'webhook-id'}, $id, 'the message has the id of the event');
cmp_ok(abs($headers->{'webhook-timestamp'} - time), '<', 60, 'and a time, in seconds');
ok(!exists $headers->{'webhook-signature'}, 'without a secret there is no signature');
ok(!exists $headers->{traceparent}, 'and no trace');
ok(!exists $headers->{expect}, 'it does not wait to be asked for the body');
like($headers->{'user-agent'}, qr{^shop/1\.0}, 'it says who sends it');
is($headers->{'content-length'}, length $request->{body}, 'and how much');

my $order = order($node, 'shopdb', 3, 7);
endpoint('orders', $receiver, '/ok/orders', types => '{order.*}');
$order = order($node, 'shopdb', 4, 7);
arrive($receiver, '/ok/orders', 1, 'an order arrives, and none from before the endpoint was made');
my ($entry) = taken($receiver, '/ok/orders');
is("$entry->{type} $entry->{subject}", "order.paid $order", 'with its number as subject');
my $event = decode_json((requests($receiver, '/ok/orders'))[0]{body});
is($event->{aggregatetype}, 'order', 'and with what it is of');
like($event->{time}, qr/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$/, 'the time is in UTC with six decimals');

my $key = qq{a "b"\t\\c\n\x{e9}};
utf8::encode(my $encoded = $key);
event('one.b', $encoded);
arrive($receiver, '/ok/one', 2, 'a key may have any characters');
is((taken($receiver, '/ok/one'))[1]{subject}, $key, 'which it keeps');

sql(q{SELECT shop.emit_event('one.c', 'test', 'key', jsonb_build_object('x', repeat('0123456789', 30000)))});
arrive($receiver, '/ok/one', 3, 'an event may be big');
like((requests($receiver, '/ok/one'))[2]{body}, qr/"(?:0123456789){30000}"/, 'nothing of it is missing');

sql(q{BEGIN; SELECT shop.emit_event('one.d', 'test', 'key', '{}'); ROLLBACK;
	  BEGIN; SAVEPOINT s; SELECT shop.emit_event('one.e', 'test', 'key', '{}'); ROLLBACK TO s; COMMIT});
for (1 .. 20)
{
	event('one.f', "key $_");
	$receiver->await(20, sub { taken($receiver, '/ok/one') == 3 + $_ }) && await_sql(is_done('one')) or last;
}
complete($receiver, '/ok/one', 'one.%', 'what is committed arrives once, in order; what is rolled back does not');
my %sent_at = map { $_->{id} => $_->{time} } taken($receiver, '/ok/one');
my @delays = sort { $a <=> $b } map { my ($n, $at) = split /\|/; $sent_at{$n} - $at } split /\n/,
  sql(q{SELECT id, extract(epoch FROM created_at) * 1000000 FROM shop.outbox WHERE type = 'one.f'});
cmp_ok($delays[10], '<', 200_000, sprintf 'each at once: half of them within %.1f ms', $delays[10] / 1000);
is(keys %{ { map { $_->{connection} => 1 } taken($receiver, '/ok/one') } }, 1, 'all of them on one connection');
is( value($node, 'shopdb', q{SELECT state, delivered_total, last_error IS NULL FROM shop.endpoints WHERE name = 'one'}),
	'active|23|t', 'and counted');

# The body is UTF-8, whatever the database is in.
$node->safe_psql('postgres', q{CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0});
$node->safe_psql(
	'latin', sprintf q{
	SET client_encoding = 'UTF8';
	CREATE EXTENSION shop;
	SELECT shop.create_endpoint('latin', %s, secret => %s);
	SELECT shop.emit_event('test.latin', 'test', 'Zoé', '{"name": "é"}');
}, literal($signed->url('/ok/latin')), literal($secret));
arrive($signed, '/ok/latin', 1, 'an event of a database in another encoding arrives');
($entry) = taken($signed, '/ok/latin');
is($entry && $entry->{subject}, "Zo\x{e9}", 'and is the same in UTF-8');
is($entry && $entry->{signature}, 'ok', 'signed as it was sent');
$node->safe_psql('postgres', 'DROP DATABASE latin');

# SQL_ASCII takes any bytes; an event that could not be sent would hold up all others.
$node->safe_psql('postgres', q{CREATE DATABASE bytes ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0});
$node->safe_psql(
	'bytes', sprintf q{
	CREATE EXTENSION shop;
	SELECT shop.create_endpoint('bytes', %s, secret => %s);
	SELECT shop.emit_event('test.bytes', 'test', E'Zo\xc3\xa9 \x80', jsonb_build_object('name', E'\xff'));
	SELECT shop.emit_event('test.bytes', 'test', 'next', '{}');
}, literal($signed->url('/ok/bytes')), literal($secret));
arrive($signed, '/ok/bytes', 2, 'events of a database without an encoding arrive');
($entry) = grep { $_->{subject} ne 'next' } taken($signed, '/ok/bytes');
is($entry && $entry->{subject}, "Zo\x{e9} \x{fffd}", 'with a replacement character for what is none');
is($entry && $entry->{signature}, 'ok', 'signed as it was sent');
$node->safe_psql('postgres', 'DROP DATABASE bytes');

#
# Signatures
#

endpoint('signed', $signed, '/ok/signed', types => '{sign.a}', secret => $secret);
event('sign.a', "key $_", qq({"name": "caf\xc3\xa9 $_"})) for 1 .. 5;
arrive($signed, '/ok/signed', 5, 'signed events arrive');
is_deeply([ map { $_->{signature} } taken($signed, '/ok/signed') ], [ ('ok') x 5 ], 'the receiver finds the signatures good');
is_deeply(
	[ map { $_->{headers}{'webhook-signature'} } requests($signed, '/ok/signed') ],
	[ map { signature($secret, $_) } requests($signed, '/ok/signed') ],
	'they are those of the one secret');

endpoint('rotating', $signed, '/ok/both', types => '{sign.b}', secret => "$secret $other_secret");
endpoint('rotated', $next, '/ok/both', types => '{sign.b}', secret => "$secret $other_secret");
event('sign.b', 'key');
arrive($signed, '/ok/both', 1, 'with two secrets, a receiver that knows the old one takes it');
arrive($next, '/ok/both', 1, 'so does one that knows the new one');
($request) = requests($signed, '/ok/both');
is( $request->{headers}{'webhook-signature'},
	signature($secret, $request) . ' ' . signature($other_secret, $request),
	'there is a signature of each');
is(value($node, 'shopdb', q{SELECT bool_and(signed) FROM shop.endpoints WHERE name IN ('signed', 'rotating')}), 't',
	'shop.endpoints says that they are signed');

endpoint('again', $signed, '/status/503?times=2&again', types => '{sign.d}', secret => $secret, options => { backoff => 20 });
event('sign.d', 'key');
arrive($signed, '/status/503?times=2&again', 1, 'an event that is tried again arrives');
my @tries = grep { $_->{target} =~ /again/ } $signed->journal;
is(join(', ', map { "$_->{attempt} $_->{outcome} $_->{signature}" } @tries), '1 503 ok, 2 503 ok, 3 200 ok', 'signed each time');
is(keys %{ { map { $_->{webhook_id} => 1 } @tries } }, 1, 'under the same id');

# A secret that the receiver does not know, until it is replaced.
endpoint('wrong', $signed, '/ok/wrong', types => '{sign.c}', secret => $other_secret);
event('sign.c', 'key');
within($node, 'shopdb', 20, q{state = 'paused' AND pause_reason = 'HTTP status 401' FROM shop.endpoints WHERE name = 'wrong'},
	'a signature that is not good pauses the endpoint');
sql(sprintf q{UPDATE shop.endpoint SET secret = %s WHERE name = 'wrong'}, literal($secret));
sql(q{SELECT shop.resume_endpoint('wrong')});
arrive($signed, '/ok/wrong', 1, 'with another secret the event arrives');

#
# Which events, and to whom
#

endpoint('all', $receiver, '/ok/all');
endpoint('exact', $receiver, '/ok/exact', types => '{which.a}');
endpoint('prefix', $receiver, '/ok/prefix', types => '{which.*}');
endpoint('some', $receiver, '/ok/some', types => '{which.b,points.charged,"which._"}');
endpoint('closed', $receiver, '/ok/closed', types => '{which.*}');
sql(q{SELECT shop.pause_endpoint('closed')});
sql(q{SELECT shop.emit_event(type, 'test', 'key ' || n % 3, '{}')
        FROM generate_series(1, 10) n, unnest('{which.a,which.b,which,whichever,which.a.c}'::text[]) type});
sql('SELECT shop.charge_points(1, 10)');
arrive($receiver, '/ok/all', 51, 'an endpoint for all types gets all');
arrive($receiver, '/ok/exact', 10, 'an endpoint for a type gets that');
arrive($receiver, '/ok/prefix', 30, 'an endpoint for types that begin so gets those');
arrive($receiver, '/ok/some', 11, 'an endpoint for some types gets those');
is_deeply([ sort keys %{ { map { $_->{type} => 1 } taken($receiver, '/ok/some') } } ], [ 'points.charged', 'which.b' ], 'and no other');
complete($receiver, '/ok/prefix', 'which.%', 'in order');
is(scalar taken($receiver, '/ok/closed'), 0, 'an endpoint that is paused gets nothing');
sql(q{SELECT shop.resume_endpoint('closed')});
arrive($receiver, '/ok/closed', 30, 'but all of it when it goes on');
within(
	$node, 'shopdb', 10,
	q{string_agg(name || ' ' || delivered_total, ', ' ORDER BY name) = 'all 51, closed 30, exact 10, prefix 30, some 11'
	   FROM shop.endpoints WHERE name IN ('all', 'closed', 'exact', 'prefix', 'some')},
	'each has its own count');
sql(q{SELECT shop.drop_endpoint('all')});

endpoint('late', $receiver, '/ok/late', types => '{which.*,late}',
	options => { from_start => JSON::PP::true, in_flight => 1 });
endpoint('now', $receiver, '/ok/now', types => '{which.*,late}');
event('late', 'key');
arrive($receiver, '/ok/late', 31, 'with from_start an endpoint gets what was there before it');
arrive($receiver, '/ok/now', 1, 'without, what comes');
is((taken($receiver, '/ok/late'))[-1]{type}, 'late', 'the old before the new');

#
# Options
#

my $password = 'Bearer p4ssw0rd-of-the-platform';
endpoint('headers', $receiver, '/ok/headers', types => '{header}',
	options => { headers => { 'Authorization' => $password, 'X-Shop' => 'one; two="3"', 'X-Empty' => '', 'User-Agent' => 'us' } });
event('header', 'key');
arrive($receiver, '/ok/headers', 1, 'an event arrives with headers of its own');
$headers = (requests($receiver, '/ok/headers'))[0]{headers};
is($headers->{authorization}, $password, 'as they were given');
is($headers->{'x-shop'}, 'one; two="3"', 'whatever is in them');
is($headers->{'x-empty'}, '', 'or if nothing is');
is($headers->{'user-agent'}, 'us', 'even one that there is anyway');
for my $bad ('Host', 'content-type', 'Webhook-Signature', 'traceparent', 'Transfer-Encoding', 'a b', "a\nb", '')
{
	(my $name = $bad) =~ s/\n/\\n/;
	is(sqlstate_of($node, 'shopdb',
			sprintf 'SELECT shop.create_endpoint(%s, %s, options => %s)',
			map { literal($_) } 'bad', $receiver->url, encode_json({ headers => { $bad => 'x' } })),
		'22023', "but not one called '$name'");
}
is(sqlstate_of($node, 'shopdb', sprintf 'SELECT shop.create_endpoint(%s, %s, options => %s)',
		map { literal($_) } 'bad', $receiver->url, encode_json({ headers => { 'X-A' => "x\r\nX-B: y" } })),
	'22023', 'nor one that is two');

endpoint('few', $receiver, '/delay?ms=20&few', types => '{few}', options => { in_flight => 3 });
sql(q{SELECT shop.emit_event('few', 'test', 'key ' || n, '{}') FROM generate_series(1, 60) n});
arrive($receiver, '/delay?ms=20&few', 60, 'many events arrive at once');
my $connections = keys %{ { map { $_->{connection} => 1 } taken($receiver, '/delay?ms=20&few') } };
ok($connections > 1 && $connections <= 3, "on $connections connections, no more than the options allow");

endpoint('batch', $signed, '/ok/batch', types => '{batch}', secret => $secret, options => { batch => 20 });
sql(q{SELECT shop.pause_endpoint('batch')});
sql(q{SELECT shop.emit_event('batch', 'test', 'key ' || n % 7, jsonb_build_object('n', n)) FROM generate_series(1, 205) n});
sql(q{SELECT shop.resume_endpoint('batch')});
arrive($signed, '/ok/batch', 205, 'batches arrive');
complete($signed, '/ok/batch', 'batch', 'with each event once, in order');
my @batches = requests($signed, '/ok/batch');
my @sizes = map { scalar @{ decode_json($_->{body}) } } @batches;
ok(!(grep { $_ > 20 } @sizes), 'none is bigger than the options allow');
cmp_ok(scalar @sizes, '<', 30, "there are few of them: @sizes");
like($_, qr{^application/cloudevents-batch\+json}, 'the content type is that of a batch') for $batches[0]{headers}{'content-type'};
is(keys %{ { map { $_->{headers}{'webhook-id'} => 1 } @batches } }, scalar @batches, 'each has an id of its own');
ok(!(grep { $_->{signature} ne 'ok' } taken($signed, '/ok/batch')), 'and a good signature');
event('batch', 'key');
arrive($signed, '/ok/batch', 206, 'a single event arrives');
is(ref decode_json((requests($signed, '/ok/batch'))[-1]{body}), 'ARRAY', 'as a batch of one');

#
# Traces
#

my $trace = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01';
endpoint('traced', $receiver, '/ok/traced', types => '{trace}');
endpoint('traced together', $receiver, '/ok/traces', types => '{trace}', options => { batch => 10 });
sql("SET shop.traceparent = '$trace'");
event('trace', 'key');
sql('RESET shop.traceparent');
event('trace', 'key');
arrive($receiver, '/ok/traced', 2, 'events of a trace arrive');
arrive($receiver, '/ok/traces', 2, 'also in batches');
my @traced = requests($receiver, '/ok/traced');
is($traced[0]{headers}{traceparent}, $trace, 'the trace is a header');
is(decode_json($traced[0]{body})->{traceparent}, $trace, 'and an attribute');
is($traced[1]{headers}{traceparent}, undef, 'the next event is of none');
ok(!exists decode_json($traced[1]{body})->{traceparent}, 'in neither way');
is((map { @{ decode_json($_->{body}) } } requests($receiver, '/ok/traces'))[0]{traceparent}, $trace, 'in a batch it is an attribute');
is((requests($receiver, '/ok/traces'))[0]{headers}{traceparent}, undef, 'and no header');
is(sqlstate_of($node, 'shopdb', qq{SET shop.traceparent = E'$trace\\r\\nX-Own: 1'}), '22023', 'what is no trace is refused');

#
# Priorities
#

endpoint('urgent', $receiver, '/ok/urgent', types => '{urgent.*}', options => { in_flight => 1 });
sql(q{SELECT shop.pause_endpoint('urgent')});
sql(q{SELECT shop.emit_event('urgent.no', 'test', 'key ' || n, '{}') FROM generate_series(1, 3000) n});
sql(q{SELECT shop.emit_event('urgent.' || p, 'test', 'urgent ' || p || ' ' || n, '{}', p) FROM generate_series(1, 9, 4) p, generate_series(1, 3) n});
sql(q{SELECT shop.emit_event('urgent.key', 'test', 'key 2999', '{}', 9)});
sql(q{SELECT shop.resume_endpoint('urgent')});
$receiver->await(20, sub { taken($receiver, '/ok/urgent') >= 12 });
my @first = map { $_->{type} =~ s/urgent\.//r } (taken($receiver, '/ok/urgent'))[ 0 .. 10 ];
is(join(' ', (sort @first[ 0 .. 4 ]), @first[ 5 .. 10 ]),
	'9 9 9 key no 5 5 5 1 1 1', 'what is urgent leaves before a backlog, the most urgent first');
like("@first", qr/no.*key/, 'with what is ahead of it in its key');
sql(q{SELECT shop.drop_endpoint('urgent')});

#
# Pause, resume and drop while events are on their way
#

my $slow = '/delay?ms=20&pause';
endpoint('pause', $receiver, $slow, types => '{pause}', options => { in_flight => 2 });
sql(q{SELECT shop.emit_event('pause', 'test', 'key ' || n % 10, '{}') FROM generate_series(1, 60) n});
$receiver->await(20, sub { taken($receiver, $slow) >= 5 });
sql(q{SELECT shop.pause_endpoint('pause')});
within($node, 'shopdb', 10, q{inflight IS NULL FROM shop.endpoint WHERE name = 'pause'}, 'a pause waits for what is on its way');
my $sent = taken($receiver, $slow);
cmp_ok($sent, '<', 60, "$sent events have left");
relay_goes_by();
is(scalar taken($receiver, $slow), $sent, 'no more leave during the pause');
is(value($node, 'shopdb', q{SELECT state, delivered_total, pending >= 60 - delivered_total
	                          FROM shop.outbox_metrics() WHERE endpoint = 'pause'}),
	"paused|$sent|t", 'those that left are counted, the others wait');
sql(q{SELECT shop.resume_endpoint('pause')});
arrive($receiver, $slow, 60, 'the others leave afterwards');
complete($receiver, $slow, 'pause', 'each once, in order');
within($node, 'shopdb', 10, q{delivered_total = 60 AND inflight IS NULL FROM shop.endpoint WHERE name = 'pause'}, 'all are counted');

# Somebody keeps the endpoint locked while an answer is waiting to be recorded.
$slow = '/delay?ms=100&lock';
endpoint('lock', $receiver, $slow, types => '{lock}');
event('lock', 'key');
$receiver->await(20, sub { taken($receiver, $slow) });
my $locker = open_session($node, 'shopdb');
in_session($locker, q{BEGIN; SELECT shop.drop_endpoint('lock')});
my $relay = worker_pid($node, 'shopdb', 'relay');

event('lock', 'key');
relay_goes_by();
is_idle('while an endpoint is locked');
in_session($locker, 'ROLLBACK');
arrive($receiver, $slow, 2, 'when it is free, the next event leaves');
complete($receiver, $slow, 'lock', 'and the first one not again');

$slow = '/delay?ms=20&drop';
endpoint('drop', $receiver, $slow, types => '{drop}', options => { in_flight => 2 });
sql(q{SELECT shop.emit_event('drop', 'test', 'key ' || n % 10, '{}') FROM generate_series(1, 60) n});
$receiver->await(20, sub { taken($receiver, $slow) >= 5 });
is(sql(q{SELECT name FROM shop.drop_endpoint('drop')}), 'drop', 'an endpoint can be dropped while it is sent to');
relay_goes_by();
relay_goes_by();
$sent = taken($receiver, $slow);
relay_goes_by();
ok($sent < 60 && taken($receiver, $slow) == $sent, "then no more events leave: $sent have");
endpoint('drop', $receiver, '/ok/again', types => '{drop}');
event('drop', 'key');
arrive($receiver, '/ok/again', 1, 'a new one of its name gets what comes');

# Dropped in between, with the answer not recorded yet.
in_session($locker, q{BEGIN; SELECT shop.drop_endpoint('lock')});
event('lock', 'key');
relay_goes_by();
in_session($locker, 'COMMIT');
end_session($locker);
relay_goes_by();
is(worker_pid($node, 'shopdb', 'relay'), $relay, 'all this was one relay');

#
# Who may send where
#

$node->safe_psql('shopdb', q{
	CREATE ROLE clerk LOGIN;
	CREATE ROLE reader LOGIN;
	SELECT shop.grant_access('clerk', 'admin'), shop.grant_access('reader', 'read');
});
my $create = sprintf q{SET ROLE clerk; SELECT shop.create_endpoint('clerk', %s)}, literal($receiver->url('/ok/clerk'));
is(sqlstate_of($node, 'shopdb', $create), '42501', 'a role may not choose a host');
$node->safe_psql('postgres', q{ALTER SYSTEM SET shop.allowed_hosts = '*.shop.example, 127.0.0.1'});
$node->reload;
$node->poll_query_until('shopdb', q{SELECT current_setting('shop.allowed_hosts') <> ''}) or die;
is(sqlstate_of($node, 'shopdb', $create), '', 'unless it is one that is allowed');
for my $host (qw(localhost 127.0.0.2 shop.example 127.0.0.1.shop.example.com 127.0.0.1@localhost))
{
	isnt(sqlstate_of($node, 'shopdb', "SELECT shop.create_endpoint('$host', 'http://$host/')"), '', "not $host");
}
$node->safe_psql('postgres', 'ALTER SYSTEM RESET shop.allowed_hosts');
$node->reload;

#
# A copy of the database does not send
#

my $before = taken($receiver, '/ok/one');
sql('SELECT 1');
disconnect();
timed($node, 'postgres', 10, 'CREATE DATABASE copy TEMPLATE shopdb', 'the database can be copied');
connect_to('shopdb');
$node->safe_psql('copy', q{ALTER DATABASE copy SET shop.worker = on; SELECT shop.emit_event('one.g', 'test', 'key', '{}')});
workers_run($node, 'copy', 10, 'the copy has workers');
within($node, 'copy', 10, q{last_cycle_at IS NOT NULL FROM shop.workers WHERE kind = 'relay'}, 'which run');
is(value($node, 'copy', q{SELECT count(*) FROM shop.endpoints WHERE state <> 'paused'}), '0', 'there all endpoints are paused');
event('one.h', 'key');
arrive($receiver, '/ok/one', $before + 1, 'the original sends');
is((taken($receiver, '/ok/one'))[-1]{type}, 'one.h', 'the copy does not');
timed($node, 'postgres', 5, 'DROP DATABASE copy', 'it can be dropped');

#
# Nobody reads a secret, or a header
#

my $marker = 'S3cretMarker';
my $hidden = 'whsec_' . encode_base64($marker x 3, '');
my $encoded_secret = substr $hidden, 6;
my $hidden_header = "Basic ${marker}Header";
endpoint('hidden', $receiver, '/status/400?hidden', types => '{hidden}', secret => $hidden,
	options => { max_attempts => 1, headers => { 'X-Token' => $hidden_header } });
event('hidden', 'key');
within($node, 'shopdb', 20, q{count(*) = 1 FROM shop.dead_letters WHERE endpoint = 'hidden'}, 'there is a dead letter');
($request) = requests($receiver, '/status/400?hidden');
is($request->{headers}{'x-token'}, $hidden_header, 'the header was sent');

my $all = '';
my $owner = value($node, 'shopdb', 'SELECT current_user');
for my $role ('reader', 'clerk', $owner)
{
	for my $relation (split /\n/,
		sql(
			qq{SELECT c.oid::regclass FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
		        WHERE nspname = 'shop' AND relkind IN ('v', 'r', 'm')
		          AND (relkind = 'v' OR '$role' <> '$owner') AND has_table_privilege('$role', c.oid, 'SELECT')}))
	{
		$all .= $node->safe_psql('shopdb', "SET ROLE $role; SELECT t::text FROM $relation t");
	}
	for my $call ('shop.outbox_metrics()', 'shop.verify()', q{shop.pause_endpoint('hidden')}, q{shop.resume_endpoint('hidden')})
	{
		my ($rc, $out, $err) = $node->psql('shopdb', "SET ROLE $role; SELECT t::text FROM $call t");
		$all .= $out . $err;
	}
	is(sqlstate_of($node, 'shopdb', "SET ROLE $role; SELECT secret, options FROM shop.endpoint"), '42501', "$role cannot read the table")
	  if $role ne $owner;
}
ok($all =~ /hidden/, 'all that they can read has the endpoint');
ok($all =~ /X-Token\W+\*\*\*/, 'and the name of its header');

# What is refused, and what is wrong.
my $wrong = 'shop.create_endpoint(\'hidden 2\', \'http://127.0.0.1/\'';
for my $statement (
	"SELECT shop.create_endpoint('hidden', 'http://127.0.0.1/', secret => '$hidden')",
	"SELECT shop.create_endpoint('hidden 2', 'function:nobody.none', secret => '$hidden')",
	"SELECT $wrong, secret => '$hidden ?')",
	"SELECT $wrong, secret => '$encoded_secret')",
	qq{SELECT $wrong, options => '{"headers": {"X Y": "$hidden_header"}}')},
	qq{SELECT $wrong, options => '{"headers": ["$hidden_header"]}')})
{
	my ($rc, $out, $err) = $node->psql('shopdb', "\\set VERBOSITY verbose\n$statement");

	isnt($err, '', 'what is wrong is an error') if $err eq '';
	# psql shows what it has sent.
	$all .= $out . $err =~ s/^LINE .*\n.*\n?//mgr;
}

# Whoever has sent these is told them again, but the log is for others too.
for my $statement (
	"DO \$\$ BEGIN PERFORM $wrong, secret => '$hidden ?'); END \$\$",
	"PREPARE p AS SELECT $wrong, '{*}', \$1, \$2); EXECUTE p('$hidden', '{\"headers\": [\"$hidden_header\"]}')",
	qq!SELECT $wrong, '{*}', '$hidden', '{"headers": {"X": "$hidden_header"},')!,
	qq!SELECT $wrong, '{*}', NULL, '{"headers": {"X": $marker}}')!,
	"SELECT shop.set_endpoint_secret('hidden', '$hidden ?')")
{
	my ($rc, $out, $err) = $node->psql('shopdb', $statement);

	isnt($err, '', 'what is wrong is an error') if $err eq '';
}
# Nor are those in it that are logged for their own sake.
$node->safe_psql('shopdb', "SET log_statement = 'all';\n$_;\nDEALLOCATE ALL;")
  for "PREPARE p AS SELECT shop.set_endpoint_secret('hidden', \$1);\nEXECUTE p('$hidden')",
  "SELECT shop.set_endpoint_secret('hidden', '$hidden')",
  "SELECT $wrong, '{none}', '$hidden', '{\"headers\": {\"X\": \"$hidden_header\"}}')";
$all .= value($node, 'shopdb', 'SELECT string_agg(a::text, chr(10)) FROM pg_stat_activity a WHERE pid <> pg_backend_pid()');
$all .= slurp_file($node->logfile);
ok($all =~ /statement: SELECT shop.set_endpoint_secret$/m, 'of a statement that is logged, the log has the function');
ok($all !~ /\Q$encoded_secret\E/, 'a secret is in no view, no error and no log');
ok($all !~ /\Q$marker\E/, 'neither is a header');
ok($all !~ /\Q$password\E/, 'of any endpoint');

sql(q{SELECT shop.drop_endpoint('hidden')});
within($node, 'shopdb', 20,
	q{bool_and(state <> 'failing') AND sum(retrying + dead) = 0 FROM shop.outbox_metrics()}, 'nothing waits for a retry');
healthy($node, 'shopdb', 'verify() finds nothing');
disconnect();
ok($_->stop, 'the receiver ends well') for $receiver, $signed, $next;
$node->stop;
unlike(slurp_file($node->logfile), qr/PANIC|TRAP|was terminated by signal|exited with exit code [^01]/, 'no process crashed');
done_testing();
