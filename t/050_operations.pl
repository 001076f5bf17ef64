# What docs/operations.md says: its blocks are run, those about trouble on a
# server that has it; its lists are those of the server; the queries of the
# exporter and the dashboard fit together.
use strict;
use warnings;

use CPAN::Meta::YAML;
use FindBin;
use JSON::PP;
use lib $FindBin::RealBin;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use ShopTest;
use Test::More;

my $docs = "$FindBin::RealBin/../docs";
my $text = slurp_file("$docs/operations.md");
my %blocks = $text =~ /^```\w+ ([\w-]+)\n(.*?)^```$/msg;
my %used;

# A block of the page, by its name.
sub block
{
	my ($name) = @_;

	$used{$name} = 1;
	return $blocks{$name} // die "no block $name";
}

my $node = PostgreSQL::Test::Cluster->new('operations');
$node->init(allows_streaming => 1);
$node->append_conf('postgresql.conf',
	block('preload') . "max_prepared_transactions = 4\nautovacuum = off\nstatement_timeout = '60s'\ntimezone = 'UTC'\n");
$node->start;

# Runs a block, with values for its variables; an alert needs no patience here.
sub run_block
{
	my ($name, %arg) = @_;
	my $sql = block($name);

	$sql =~ s/interval '[^']*'/interval '0'/g if $arg{now};
	return ($arg{node} // $node)->safe_psql($arg{db} // 'shopdb', $sql,
		extra_params => [ map { ('-v', "$_=$arg{set}{$_}") } keys %{ $arg{set} // {} } ]);
}

# The cells of the first column of the table that begins with this head.
sub first_column
{
	my ($head) = @_;
	my ($rows) = $text =~ /^\| $head \|.*\n\|[-|]+\n((?:\|.*\n)+)/m or die "no table $head";

	return [ $rows =~ /^\| `([^`]+)`/mg ];
}

#
# Install
#

$node->safe_psql('postgres', 'CREATE DATABASE shopdb');
run_block('install');
workers_run($node, 'shopdb', 60, 'the extension brings its workers');
is(value($node, 'shopdb', q{SELECT has_function_privilege('app', 'shop.place_order(bigint, jsonb, bigint, bigint, text)', 'EXECUTE'),
	has_function_privilege('app', 'shop.restock(bigint, integer, text)', 'EXECUTE'),
	has_function_privilege('operator', 'shop.restock(bigint, integer, text)', 'EXECUTE')}), 't|f|t', 'and the roles their rights');
is(run_block('verify'), '', 'all is well');

$node->safe_psql('postgres', 'CREATE DATABASE owned');
run_block('owner', db => 'owned');
is(value($node, 'owned', q{SELECT rolsuper FROM pg_extension JOIN pg_roles r ON r.oid = extowner WHERE extname = 'shop'}), 'f', 'the owner is no superuser');
workers_run($node, 'owned', 60, 'and has workers');
$node->safe_psql('postgres', 'DROP DATABASE owned');

#
# The lists
#

my ($settings) = $text =~ /^\| setting \|.*\n\|[-|]+\n((?:\|.*\n)+)/m;
is( join("\n", map { /^\| `([\w.]+)` \| (?:`([^`]*)`)?/ ? "$1|" . ($2 // '') : $_ } split /\n/, $settings),
	value($node, 'shopdb', q{SELECT name, boot_val FROM pg_settings WHERE name LIKE 'shop.%' ORDER BY name COLLATE "C"}),
	'every setting is there, with its default');
is(join(' ', grep { !/^(idle|running|starting|backing off|stopped|not running)$/ } @{ first_column('state') }), '', 'states of workers');
my $source = slurp_file("$FindBin::RealBin/../src/worker/shared.c");
for my $state (@{ first_column('state') })
{
	like($source, qr/"\Q$state\E"/, "$state is a state");
}
is(scalar @{ first_column('state') }, 6, 'and there is no other');
is( join("\n", @{ first_column('column') }),
	value($node, 'shopdb', q{SELECT proargnames[n] FROM pg_proc, generate_series(1, 9) n WHERE proname = 'outbox_metrics' ORDER BY n}),
	'every column of outbox_metrics() is there');

#
# A shop at work
#

$node->safe_psql(
	'shopdb', q{
	SELECT count(shop.create_product('product ' || n, 10, 100000)) FROM generate_series(1, 50) n;
	SELECT count(shop.charge_points(u, 1000000)) FROM generate_series(1, 100) u;
	SELECT shop.create_endpoint('platform', 'function:shop.receive_event');
});
my $order = order($node, 'shopdb');
my $delivered = "EXISTS (SELECT FROM shop.received_events WHERE type = 'order.paid' AND aggregateid = '%s')";
within($node, 'shopdb', 60, sprintf($delivered, $order), 'an order arrives');

my $relay = worker_pid($node, 'shopdb', 'relay');
run_block('setting');
within($node, 'shopdb', 60, "pid <> $relay FROM shop.workers WHERE kind = 'relay'", 'the workers are started again for a setting');
is(value($node, 'shopdb', 'SHOW shop.outbox_retention'), '3d', 'which new sessions have');

like(run_block('upgrade'), qr/^1\.0$/m, 'there is nothing to upgrade');

#
# Monitoring
#

run_block('monitor');
is(sqlstate_of($node, 'shopdb', "SET SESSION AUTHORIZATION shop_monitor; SELECT $_"), '42501', "the monitor cannot see $_")
  for 'secret FROM shop.endpoint', '* FROM shop.outbox', 'shop.verify()', 'shop.pause_endpoint(NULL)';

my %metrics;
my $queries = CPAN::Meta::YAML->read_string(slurp_file("$docs/postgres_exporter.yaml"))->[0];
for my $name (sort keys %$queries)
{
	my $columns = [ map { keys %$_ } @{ $queries->{$name}{metrics} } ];
	my %usage = map { my ($column) = keys %$_; $column => $_->{$column}{usage} } @{ $queries->{$name}{metrics} };
	my @rows = map { decode_json($_) } split /\n/,
	  $node->safe_psql('shopdb', "SET SESSION AUTHORIZATION shop_monitor;\nSELECT row_to_json(q) FROM ($queries->{$name}{query}) q");

	ok(@rows > 0, "$name has rows");
	is_deeply([ sort keys %{ $rows[0] } ], [ sort @$columns ], 'of the columns that it announces');
	is(scalar(grep { my $row = $_; grep { $usage{$_} ne 'LABEL' && ($row->{$_} // '') !~ /^-?[\d.]+(?:e[-+]?\d+)?$/ } keys %$row } @rows),
		0, 'all of them numbers, but the labels');
	$metrics{"${name}_$_"} = 1 for grep { $usage{$_} ne 'LABEL' } @$columns;
}
my $dashboard = decode_json(slurp_file("$docs/grafana.json"));
my @expressions = map { $_->{expr} } map { @{ $_->{targets} } } @{ $dashboard->{panels} };
ok(@expressions > 0, 'the dashboard has panels');
is(join(' ', grep { !$metrics{$_} } map { /\b(shop_\w+)/g } @expressions), '', 'of what the exporter brings');
is(join(' ', grep { my $metric = $_; !/live_rows/ && !grep { /\b$metric\b/ } @expressions } sort keys %metrics), '', 'and of all of it');

# Nothing to alert of on a healthy server.
my @alerts = grep { /^alert-/ } sort keys %blocks;
within($node, 'shopdb', 60, q{bool_and(pending = 0) AND bool_and(pid IS NOT NULL) FROM shop.outbox_metrics(), shop.workers}, 'nothing waits');
is(run_block($_), '', "$_ is silent") for @alerts;

#
# Trouble: workers
#

$node->safe_psql('shopdb', 'ALTER DATABASE shopdb SET shop.worker = off');
within($node, 'shopdb', 60, q{count(pid) = 0 FROM shop.workers WHERE kind <> 'launcher'}, 'the workers are switched off');
$order = order($node, 'shopdb');
within($node, 'shopdb', 60, q{bool_and(state = 'not running') FROM shop.workers WHERE kind <> 'launcher'}, 'and gone');
like(run_block('alert-worker'), qr/^relay\|not running/m, 'alert-worker: it does not run');
like(run_block('alert-late', now => 1), qr/^platform\|\d+\|0\|\d\d:/m, 'alert-late: events wait');
like(run_block('events'), qr/^relay\|not running.*^platform\|active\|[1-9]/ms, 'the symptom of events that do not arrive');
like(run_block('by-call'), qr/^[1-9]/, 'delivery by call');
is(value($node, 'shopdb', 'SELECT ' . sprintf($delivered, $order)), 't', 'delivers');
run_block('workers-on');
workers_run($node, 'shopdb', 60, 'workers-on brings the workers back');

# Somebody has the lock of the relay.
my $session = open_session($node, 'shopdb');
$relay = worker_pid($node, 'shopdb', 'relay');
in_session($session, "SELECT pg_terminate_backend($relay, 10000); SELECT pg_advisory_lock(1397227522, 0)");
within($node, 'shopdb', 60, q{count(*) > 0 FROM shop.workers WHERE state = 'backing off' AND last_error IS NOT NULL}, 'a relay that ends in an error is started after a pause');
like(run_block('restarting'), qr/^relay\|backing off\|another relay is running/, 'restarting: and says why');
end_session($session);
workers_run($node, 'shopdb', 180, 'it comes back when the reason is gone');

#
# Trouble: endpoints
#

$node->safe_psql(
	'shopdb', q{
	CREATE TABLE public.open (x boolean);
	CREATE FUNCTION public.take(event jsonb) RETURNS void LANGUAGE plpgsql AS
		$$ BEGIN IF NOT EXISTS (SELECT FROM public.open) THEN RAISE EXCEPTION 'the receiver is closed'; END IF; END $$;
	SELECT shop.create_endpoint('closed', 'function:public.take', '{order.paid}', options => '{"max_attempts": 1}');
});
$order = order($node, 'shopdb');
within($node, 'shopdb', 60, q{dead = 1 FROM shop.outbox_metrics() WHERE endpoint = 'closed'}, 'an event is given up');
like(run_block('alert-dead'), qr/^closed\|1\|.*the receiver is closed$/, 'alert-dead: it was');
like(run_block('dead-letters'), qr/^closed\|.*the receiver is closed\|1\|/, 'dead-letters: for this reason');
$node->safe_psql('shopdb', 'INSERT INTO public.open VALUES (true)');
is(run_block('redrive', set => { endpoint => 'closed' }), '1', 'redrive: sends it again');
within($node, 'shopdb', 60, q{dead = 0 AND retrying = 0 AND delivered_total = 1 FROM shop.outbox_metrics() WHERE endpoint = 'closed'}, 'and it arrives');
is(run_block('alert-dead'), '', 'alert-dead is silent again');

$node->safe_psql('shopdb', q{SELECT shop.pause_endpoint('closed')});
$order = order($node, 'shopdb');
like(run_block('alert-paused'), qr/^closed\|[1-9]/, 'alert-paused: an endpoint takes nothing');
like(run_block('paused'), qr/^closed\|paused by /, 'paused: who has done it');
like(run_block('disk-full'), qr/^outbox\|\d+ \w+\n.*^closed\|paused\|[1-9]/ms, 'disk-full: it keeps the events');
is(run_block('resume', set => { endpoint => 'closed' }), 'active', 'resume: goes on');
within($node, 'shopdb', 60, q{delivered_total = 2 FROM shop.outbox_metrics() WHERE endpoint = 'closed'}, 'with what was kept');

$node->safe_psql('shopdb', q{SELECT shop.create_endpoint('left', 'function:public.take'); SELECT shop.pause_endpoint('left')});
order($node, 'shopdb');
within($node, 'shopdb', 60, q{bool_and(pending = 0) FROM shop.outbox_metrics() WHERE endpoint <> 'left'}, 'all others are past it');
{
	# Two hours later.
	local $ENV{PGOPTIONS} = '-c shop.test_clock=' . value($node, 'shopdb', q{SELECT to_char(now() + interval '2 hours', 'YYYY-MM-DD"T"HH24:MI:SSOF')});

	like(run_block('clear', set => { endpoint => 'left' }), qr/^[1-9]\d*$/m, 'clear: removes what was kept for an endpoint that nobody wants');
}

#
# Trouble: orders
#

is(run_block('retryable'), "40001|t|503\n40P01|t|503", 'retryable: what may be called again');
$node->safe_psql('shopdb', q{ALTER ROLE app IN DATABASE shopdb SET default_transaction_isolation = 'repeatable read'});
my @first = map { open_session($node, 'shopdb') } 1 .. 2;
in_session($_, 'SET SESSION AUTHORIZATION app; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT shop.point_balance(1)') for @first;
my $buy = q{SELECT total FROM shop.place_order(1, '[{"product_id": 1, "quantity": 1}]')};
is(in_session($first[0], "$buy; COMMIT"), '10', 'of two at REPEATABLE READ one is served');
in_session($first[1], "\\set VERBOSITY sqlstate\n$buy");
like($first[1]{err}, qr/40001/, 'the other fails with 40001');
end_session($_) for @first;
is(run_block('isolation'), 'shopdb|app|default_transaction_isolation=repeatable read', 'isolation: who asked for it');

my $few = value($node, 'shopdb', q{SELECT shop.create_product('few', 10, 3)});
$node->safe_psql('shopdb', qq{SELECT shop.reserve_order(1, '[{"product_id": $few, "quantity": 3}]')});
is(sqlstate_of($node, 'shopdb', qq{SELECT shop.place_order(2, '[{"product_id": $few, "quantity": 1}]')}), 'SH003', 'stock is refused');
like(run_block('held', set => { product_id => $few }), qr/^0\|3\|\d{4}-/, 'held: it is reserved, and until when');

# An old transaction, a prepared one and a slot.
$session = open_session($node, 'shopdb');
in_session($session, 'SET application_name = holder; BEGIN; SELECT shop.charge_points(3, 1)');
$node->safe_psql('shopdb', q{BEGIN; SELECT shop.charge_points(4, 1); PREPARE TRANSACTION 'forgotten'; SELECT pg_create_physical_replication_slot('idle', true)});
my $old = run_block('alert-old', now => 1);
like($old, qr/^\d+\|\w+\|idle in transaction\|/m, 'alert-old: an open transaction');
like($old, qr/^forgotten\|\w+\|prepared\|/m, 'alert-old: a prepared one');
like($old, qr/^idle\|\|slot\|/m, 'alert-old: a slot');
like(run_block('disk-full'), qr/^idle\|f\|\d+/m, 'disk-full: which keeps the log');
like(run_block('drop-database', set => { database => 'shopdb' }), qr/client backend\|idle in transaction.*^forgotten\|\w+\|prepared transaction/ms,
	'drop-database: who is there');
like(run_block('end-it', now => 1), qr/^t$/m, 'end-it: ends the transaction');
eval { end_session($session) };
within($node, 'shopdb', 60, q{count(*) = 0 FROM pg_stat_activity WHERE application_name = 'holder'}, 'which is gone');
$node->safe_psql('shopdb', q{ROLLBACK PREPARED 'forgotten'; SELECT pg_drop_replication_slot('idle')});

#
# Vacuum, sizes
#

$node->safe_psql('shopdb', q{UPDATE shop.outbox_cleared SET events = events; SELECT pg_stat_force_next_flush()});
is(run_block('dead'), '', 'dead: no table is full of dead rows');
$node->safe_psql('shopdb', q{DO $$ BEGIN FOR i IN 1 .. 150 LOOP UPDATE shop.account SET balance = balance; END LOOP; END $$});
within($node, 'shopdb', 60, q{n_dead_tup > 11000 FROM pg_stat_all_tables WHERE relid = 'shop.account'::regclass}, 'one that is');
like(run_block('dead'), qr/^account\|/m, 'dead: is shown');
$node->safe_psql('shopdb', 'VACUUM FULL shop.account');

# Figures of an order of three lines.  With the log, they do not depend on the machine.
$node->safe_psql('shopdb', 'CHECKPOINT');
my $measure = q{SELECT sum(pg_total_relation_size(oid)), pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0') FROM pg_class WHERE relnamespace = 'shop'::regnamespace AND relkind = 'r' AND relname <> 'received_events'};
$node->safe_psql('shopdb', q{SELECT shop.pause_endpoint('platform'); SELECT shop.pause_endpoint('closed')});
my ($bytes, $log) = split /\|/, value($node, 'shopdb', $measure);
$node->safe_psql(
	'shopdb', q{
	SET synchronous_commit = off;
	DO $$ BEGIN FOR n IN 1 .. 3000 LOOP
		PERFORM shop.place_order(1 + n % 100, jsonb_build_array(jsonb_build_object('product_id', 1 + n % 50, 'quantity', 1),
			jsonb_build_object('product_id', 1 + (n + 7) % 50, 'quantity', 1), jsonb_build_object('product_id', 1 + (n + 13) % 50, 'quantity', 1)));
		COMMIT;
	END LOOP; END $$});
my ($bytes_after, $log_after) = split /\|/, value($node, 'shopdb', $measure);
note(sprintf '%d bytes an order, %d of the log', ($bytes_after - $bytes) / 3000, ($log_after - $log) / 3000);
cmp_ok(($bytes_after - $bytes) / 3000, '<', 2 * 1700, 'an order takes about what the page says, in the tables');
cmp_ok(($bytes_after - $bytes) / 3000, '>', 1700 / 2, 'and not much less');
cmp_ok(($log_after - $log) / 3000, '<', 2 * 3000, 'and in the log');
like(run_block('disk'), qr/^30\d\d\|\d+ kB\n(?:\w+\|\d+\n?){6}$/, 'disk: what it is here');
like(run_block('memory'), qr/^\d+ (?:kB|MB)$/, 'memory: what every order touches');
$node->safe_psql('shopdb', q{SELECT shop.resume_endpoint('platform'); SELECT shop.resume_endpoint('closed')});

# Too few workers.
my $small = PostgreSQL::Test::Cluster->new('small');
$small->init;
$small->append_conf('postgresql.conf', "shared_preload_libraries = 'shop'\nmax_worker_processes = 3\n");
$small->start;
$small->safe_psql('postgres', 'CREATE EXTENSION shop');
within($small, 'postgres', 60, q{count(*) = 1 FROM shop.workers WHERE last_error LIKE 'no free background worker slot%'}, 'with too few slots, workers says so');
$small->append_conf('postgresql.conf', "max_worker_processes = 5\n");
$small->restart;
workers_run($small, 'postgres', 60, 'four for the shop and one for PostgreSQL are enough');
$small->stop;

#
# Dump and restore; a base backup; fail-over
#

within($node, 'shopdb', 60, 'bool_and(pending = 0) FROM shop.outbox_metrics()', 'all is delivered');
{
	local $ENV{PGHOST} = $node->host;
	local $ENV{PGPORT} = $node->port;
	local $ENV{PATH} = $node->config_data('--bindir') . ":$ENV{PATH}";
	my ($out, $err) = ('', '');

	ok(IPC::Run::run([ 'bash', '-ec', block('dump') ], '>', \$out, '2>', \$err, init => sub { chdir $node->basedir }), 'dump: is restored') or diag($err);
}
is(value($node, 'restored', 'SELECT count(*), sum(total) FROM shop.orders'), value($node, 'shopdb', 'SELECT count(*), sum(total) FROM shop.orders'), 'with all orders');
like(run_block('copy', db => 'restored'), qr/^closed\|paused\|copied from another database$/m, 'copy: its endpoints are paused');
is(value($node, 'restored', q{SELECT string_agg(DISTINCT state, ' ') FROM shop.endpoints}), 'active', 'until they are resumed');
is(run_block('verify', db => 'restored'), '', 'and it is healthy');

$node->backup('backup');
my $copy = PostgreSQL::Test::Cluster->new('copy');
$copy->init_from_backup($node, 'backup');
$copy->append_conf('postgresql.conf', "shared_preload_libraries = ''\n");
$copy->start;
is(value($copy, 'shopdb', q{SELECT string_agg(DISTINCT state, ' ') FROM shop.workers}), 'not running', 'a base backup without the library preloaded has no workers');
$copy->stop;

my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'backup', has_streaming => 1);
$standby->start;
$node->wait_for_catchup($standby, 'replay', $node->lsn('insert'));
is(value($standby, 'shopdb', q{SELECT kind, state FROM shop.workers ORDER BY 1}), "keeper|not running\nlauncher|stopped\nrelay|not running", 'nor has a standby');
$node->stop('immediate');
$standby->promote;
workers_run($standby, 'shopdb', 60, 'a promoted one has');
like(run_block('promoted', node => $standby), qr/^f\n(?:\w+\|(?:idle|running)\n){3}(?:\w+\|active\n?){2}$/, 'promoted: all is as it should be');
$standby->stop;

is(join(' ', grep { !$used{$_} } sort keys %blocks), '', 'every block of the page was run');
is(scalar(() = $text =~ /^```\w/mg), scalar(keys %blocks), 'and each has a name of its own');
done_testing();
