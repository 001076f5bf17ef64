# A dump restored into another database is the same shop: every row, every
# sequence, the popular products.  It does not deliver until it is told to.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use ShopTest;
use Test::More;

# Workers look often, so that one that is in the way of a restore is seen.
my $node = new_server('dump', settings => [ 'shop.popular_interval = 1', 'max_worker_processes = 32' ]);
$node->start;
my $dir = $node->basedir;

sub received
{
	my ($order_id) = @_;
	return "EXISTS (SELECT FROM shop.received_events WHERE type = 'order.paid' AND aggregateid = '$order_id')";
}

# Units that were paid for and not given back.
my $all_counted = q{sum(quantity) = (
	SELECT sum(l.quantity - l.refunded_quantity)
	  FROM shop.orders o, LATERAL shop.order_lines(o.order_id) l WHERE o.status IN ('paid', 'refunded'))
	FROM shop.popular_products};

my $ranking = 'SELECT rank, product_id, name, quantity, revenue FROM shop.popular_products ORDER BY rank';

#
# A shop with something of everything
#

open_shop($node, 'shopdb');
$node->safe_psql(
	'shopdb', q{
	SELECT shop.place_order(1 + n % 50, jsonb_build_array(
			jsonb_build_object('product_id', 1 + n % 20, 'quantity', 1 + n % 3),
			jsonb_build_object('product_id', 1 + (n + 7) % 20, 'quantity', 1)), idempotency_key => 'key ' || n)
	  FROM generate_series(1, 3000) n;
	SELECT shop.use_points(1, 10, E'tab\t, quote '' and \\backslash');
	SELECT shop.restock(3, 17, 'restock');
	SELECT shop.set_price(2, 25), shop.set_product_status(5, 'suspended');
	SELECT shop.create_coupon_campaign('ten', 'percent', 10, 100, now() - interval '1 hour', now() + interval '1 day',
		min_subtotal => 10, max_discount => 50, idempotency_key => 'campaign');
	SELECT shop.create_coupon_campaign('short', 'fixed', 5, 10, now() - interval '1 hour', now() + interval '1 day', '1 microsecond');
	SELECT shop.issue_coupon(c, u, 'coupon ' || c) FROM generate_series(1, 2) c, generate_series(1, 5) u;
	SELECT shop.place_order(1, '[{"product_id": 9, "quantity": 3}]', coupon_id => (SELECT min(coupon_id) FROM shop.user_coupons(1) WHERE status = 'usable'));
	SELECT shop.refund_order(max(order_id), '[{"product_id": 9, "quantity": 1}]', 'broken', false, 'refund') FROM shop.orders;
	SELECT shop.place_order(2, '[{"product_id": 8, "quantity": 2}]');
	SELECT shop.cancel_order(max(order_id), 2, 'by mistake') FROM shop.orders;
	SELECT shop.reserve_order(3, '[{"product_id": 7, "quantity": 4}, {"product_id": 6, "quantity": 1}]', '1 day', 'reserved');
	SELECT shop.reserve_order(4, '[{"product_id": 6, "quantity": 1}]', '1 day');
	SELECT shop.release_order(max(order_id), 4) FROM shop.orders;
	SELECT shop.reserve_order(5, '[{"product_id": 6, "quantity": 1}]', '1 day');
	SELECT shop.pay_order(max(order_id), 5, idempotency_key => 'paid') FROM shop.orders;
	SELECT shop.reserve_order(6, '[{"product_id": 6, "quantity": 1}]', '1 microsecond');
	CREATE FUNCTION refuse(event jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
	SELECT shop.create_endpoint('dead', 'function:public.refuse', '{test.*}', 'secret', '{"max_attempts": 1}');
	SELECT shop.create_endpoint('later', 'function:public.refuse', '{test.*}', options => '{"backoff": 86400000, "max_backoff": 86400000}');
	SELECT shop.emit_event('test.a', 'test', 'key', '{"a": [1, 2.50, null, "x"]}', 9);
});
within($node, 'shopdb', 20, q{bool_and(pending = 0) AND sum(dead) = 1 AND sum(retrying) = 1 FROM shop.outbox_metrics()},
	'the shop has delivered, failed, and given up');
within($node, 'shopdb', 10, $all_counted,
	'its popular products are there');
# What has not been delivered at the time of the dump.
$node->safe_psql('shopdb', q{SELECT shop.pause_endpoint('platform')});
my $outstanding = order($node, 'shopdb', 4);
within($node, 'shopdb', 10, $all_counted,
	'the last order is counted');
$node->safe_psql('shopdb', 'ALTER DATABASE shopdb SET shop.worker = off');
within($node, 'shopdb', 5, q{count(pid) = 0 FROM shop.workers WHERE kind <> 'launcher'}, 'the shop stands still');
$node->safe_psql('shopdb', q{SELECT shop.resume_endpoint('platform')});
healthy($node, 'shopdb', 'verify() finds nothing in the source');

my $source_rows = checksums($node, 'shopdb');
my $source_sequences = sequences($node, 'shopdb');
my $source_ranking = value($node, 'shopdb', $ranking);
is(scalar(split /\n/, $source_ranking), 20, 'all products are ranked');

#
# Dumps of all kinds
#

my @port = ('-h', $node->host, '-p', $node->port);

$node->command_ok([ 'pg_dump', @port, '-f', "$dir/plain.sql", 'shopdb' ], 'pg_dump');
$node->command_ok([ 'pg_dump', @port, '--inserts', '-f', "$dir/inserts.sql", 'shopdb' ], 'pg_dump --inserts');
$node->command_ok([ 'pg_dump', @port, '-Fc', '-f', "$dir/custom.dump", 'shopdb' ], 'pg_dump -Fc');
$node->command_ok([ 'pg_dump', @port, '-Fd', '-j2', '-f', "$dir/directory.dump", 'shopdb' ], 'pg_dump -Fd -j2');
$node->command_ok([ 'pg_dump', @port, '-e', 'shop', '-f', "$dir/extension.sql", 'shopdb' ], 'pg_dump -e shop');
# The schema belongs to the extension, and what belongs to an extension is
# dumped with that only: a trap that the documentation has to tell of.
$node->command_ok([ 'pg_dump', @port, '-n', 'shop', '-f', "$dir/schema.sql", 'shopdb' ], 'pg_dump -n shop');
unlike(slurp_file("$dir/schema.sql"), qr/^(?:COPY|INSERT|CREATE)/m, 'which has no rows, unless -e shop is there too');
$node->command_ok([ 'pg_dump', @port, '-e', 'shop', '-n', 'shop', '-f', "$dir/both.sql", 'shopdb' ], 'pg_dump -e shop -n shop');
$node->command_ok([ 'pg_dump', @port, '-s', '-f', "$dir/empty.sql", 'shopdb' ], 'pg_dump -s');
$node->command_ok([ 'pg_dumpall', @port, '-f', "$dir/all.sql" ], 'pg_dumpall');
like(slurp_file("$dir/all.sql"), qr/^ALTER DATABASE shopdb SET "?shop\.worker"? TO 'off'/m, 'which keeps the setting of the workers');
unlike(slurp_file("$dir/plain.sql"), qr/CREATE (?:TABLE|FUNCTION|TYPE|MATERIALIZED VIEW) shop\./, 'a dump has the rows, and not the objects of the extension');

sub psql_file
{
	my ($db, $file, @option) = @_;
	return [ 'psql', '-XAtq', @port, '-v', 'ON_ERROR_STOP=1', @option, '-d', $db, '-f', $file ];
}

my %restore = (
	plain => sub { psql_file($_[0], "$dir/plain.sql") },
	single => sub { psql_file($_[0], "$dir/plain.sql", '-1') },
	inserts => sub { psql_file($_[0], "$dir/inserts.sql") },
	custom => sub { [ 'pg_restore', @port, '-e', '-j2', '-d', $_[0], "$dir/custom.dump" ] },
	extension => sub { psql_file($_[0], "$dir/extension.sql") },
	schema => sub { psql_file($_[0], "$dir/both.sql") },
	directory => sub { [ 'pg_restore', @port, '-e', '-j2', '-d', $_[0], "$dir/directory.dump" ] });

# A relay that was to be woken when its database went must not leave that to
# the relay of the database that comes next, which is one being restored.
open_shop($node, 'brief');
workers_run($node, 'brief', 5, 'a shop runs for a while');
$node->safe_psql(
	'brief', q{
	SELECT pg_terminate_backend(pid, 5000) FROM shop.workers WHERE kind = 'relay';
	SELECT shop.place_order(1, '[{"product_id": 1, "quantity": 1}]');
});
$node->safe_psql('postgres', 'DROP DATABASE brief');

for my $kind ('template', sort keys %restore)
{
	my $db = "copy_$kind";

	if ($kind eq 'template')
	{
		$node->safe_psql('postgres', "CREATE DATABASE $db TEMPLATE shopdb");
	}
	else
	{
		$node->safe_psql('postgres', "CREATE DATABASE $db TEMPLATE template0");
		$node->command_ok($restore{$kind}->($db), "restore: $kind");
	}
	# Workers of the copy may touch what is theirs; what is compared is not.
	is(checksums($node, $db), $source_rows, "$kind: all rows are the same");
	is(sequences($node, $db), $source_sequences, "$kind: all sequences go on where they were");
	is(value($node, $db, $ranking), $source_ranking, "$kind: the popular products are the same");
	is( value($node, $db, q{SELECT count(*), bool_and(state = 'paused'), bool_and(pause_reason IS NOT NULL) FROM shop.endpoints}),
		'3|t|t', "$kind: the endpoints are paused, with a reason");
	healthy($node, $db, "$kind: verify() finds nothing");
	my $placed = order($node, $db, 6);
	is(value($node, $db, "SELECT status FROM shop.get_order($placed)"), 'paid', "$kind: an order is placed");
	healthy($node, $db, "$kind: verify() finds nothing after it");
}
is( value(
		$node, 'copy_plain',
		q{SELECT count(*) FROM shop.endpoint WHERE secret = 'secret'})
	, '1', 'a secret is restored with its endpoint');

#
# Life of the copy
#

$node->safe_psql('shopdb', q{ALTER DATABASE shopdb SET shop.worker = on});
workers_run($node, 'shopdb', 5, 'the source goes back to work');
within($node, 'shopdb', 5, received($outstanding), 'and delivers');

$node->safe_psql('copy_plain', 'ALTER DATABASE copy_plain SET shop.worker = on');
workers_run($node, 'copy_plain', 10, 'the copy gets workers');
my $had = value($node, 'copy_plain', 'SELECT count(*) FROM shop.received_events');
my $new = order($node, 'copy_plain', 6);
is(value($node, 'copy_plain', "SELECT $new > (SELECT max(order_id) FROM shop.orders WHERE order_id <> $new)"),
	't', 'an order in the copy gets a number of its own');
is( value(
		$node, 'copy_plain', q{
		SELECT replayed FROM shop.place_order(1 + 77 % 50, jsonb_build_array(
			jsonb_build_object('product_id', 1 + 77 % 20, 'quantity', 1 + 77 % 3),
			jsonb_build_object('product_id', 1 + (77 + 7) % 20, 'quantity', 1)), idempotency_key => 'key 77')}),
	't', 'a key that was used in the source is known');
is( value(
		$node, 'copy_plain', q{
		SELECT string_agg(replayed::text, ' ') FROM (
			SELECT replayed FROM shop.reserve_order(3, '[{"product_id": 7, "quantity": 4}, {"product_id": 6, "quantity": 1}]', '1 day', 'reserved')
			UNION ALL
			SELECT replayed FROM shop.issue_coupon(2, 5, 'coupon 2')
			UNION ALL
			SELECT replayed FROM shop.refund_order((SELECT max(order_id) FROM shop.order_history(1) WHERE coupon_id IS NOT NULL),
				'[{"product_id": 9, "quantity": 1}]', 'broken', false, 'refund')) x}),
	'true true true', 'so are those of reservations, coupons and refunds');
is( value(
		$node, 'copy_plain', q{
		SELECT status FROM shop.pay_order((SELECT order_id FROM shop.order_history(3) WHERE status = 'reserved'), 3)}),
	'paid', 'what was reserved in the source is paid in the copy');
within($node, 'copy_plain', 10, $all_counted,
	'the copy counts its sales');
is(value($node, 'copy_plain', 'SELECT count(*) FROM shop.received_events'), $had, 'and delivers nothing');
my $order = order($node, 'shopdb', 6);
within($node, 'shopdb', 2, received($order), 'while the source does');
healthy($node, 'copy_plain', 'verify() finds nothing in the copy');

is(value($node, 'copy_plain', q{SELECT state FROM shop.pause_endpoint('platform')}), 'paused', 'an endpoint of the copy can be paused');
is(value($node, 'copy_plain', q{SELECT state FROM shop.resume_endpoint('platform')}), 'active', 'and resumed');
within($node, 'copy_plain', 5, received($outstanding) . ' AND ' . received($new), 'then it gets what is outstanding');
is( value(
		$node, 'copy_plain', q{
		SELECT count(*) FROM shop.outbox o FULL JOIN shop.received_events r ON r.event_id = o.id
		 WHERE (o.created_at > (SELECT created_at FROM shop.endpoints WHERE name = 'platform') OR r.event_id IS NOT NULL)
		   AND (o.id IS NULL OR r.event_id IS NULL)}),
	'0', 'all of it, and nothing else');
healthy($node, 'copy_plain', 'verify() finds nothing in the copy');

# Without workers, by call.
is(value($node, 'copy_custom', q{SELECT shop.deliver_events()}), '0', 'nothing is delivered from a copy by call');
is(value($node, 'copy_custom', q{SELECT state FROM shop.resume_endpoint('platform')}), 'active', 'until it is resumed');
$node->safe_psql('copy_custom', 'SELECT shop.deliver_events()');
is(value($node, 'copy_custom', 'SELECT ' . received($outstanding)), 't', 'then it is');
healthy($node, 'copy_custom', 'verify() finds nothing in the copy');

#
# What must fail, and what must not
#

$node->safe_psql('postgres', 'CREATE DATABASE hostile TEMPLATE template0');
$node->safe_psql('hostile', q{
	CREATE SCHEMA shop;
	CREATE TABLE shop.orders (order_id bigint);
	CREATE FUNCTION shop.version() RETURNS text LANGUAGE sql AS 'SELECT ''planted''';
});
$node->command_fails(psql_file('hostile', "$dir/plain.sql"), 'a restore into a planted schema fails');
is(value($node, 'hostile', q{SELECT count(*) FROM pg_extension WHERE extname = 'shop'}), '0', 'and does not adopt it');

$node->safe_psql('postgres', 'CREATE DATABASE empty TEMPLATE template0');
$node->command_ok(psql_file('empty', "$dir/empty.sql"), 'restore: schema only');
$node->safe_psql('empty', q{SELECT shop.create_product('a', 10, 100), shop.charge_points(1, 1000)});
order($node, 'empty');
healthy($node, 'empty', 'which is an empty shop that works');

# A dump of the copy is as good as one of the source.
$node->safe_psql('postgres', 'CREATE DATABASE again TEMPLATE template0');
my $copied = checksums($node, 'copy_inserts');
$node->command_ok([ 'pg_dump', @port, '-f', "$dir/again.sql", 'copy_inserts' ], 'pg_dump of a copy');
$node->command_ok(psql_file('again', "$dir/again.sql"), 'restore of it');
is(checksums($node, 'again'), $copied, 'all rows are the same');

# All of it into another server.
my $other = new_server('other');
$other->start;
$other->command_ok([ 'psql', '-XAtq', '-h', $other->host, '-p', $other->port, '-d', 'postgres', '-f', "$dir/all.sql" ],
	'pg_dumpall into another server');
is( value(
		$other, 'shopdb',
		q{SELECT count(*), bool_and(state = 'paused'), bool_and(pause_reason IS NOT NULL) FROM shop.endpoints})
	, '3|t|t', 'the endpoints are paused there');
is(value($other, 'shopdb', $ranking), $source_ranking, 'the popular products are the same');
healthy($other, 'shopdb', 'verify() finds nothing there');
$other->stop;

$node->stop;
unlike(slurp_file($node->logfile), qr/PANIC|was terminated by signal/, 'no process crashed');
done_testing();
