# A rush leaves small tables small: functions are called for many events at
# once, and the keeper vacuums what turns over faster than autovacuum comes by.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use ShopTest;
use Test::More;

# Whatever is vacuumed here, the keeper has done it.
my $node = new_server('rush', settings => [ 'autovacuum = off', 'log_statement = none' ]);
$node->start;
$node->safe_psql('postgres', q{ALTER SYSTEM SET shop.popular_interval = '1s'});
$node->reload;
open_shop($node, 'shopdb');
workers_run($node, 'shopdb', 5, 'the workers run');

# What is done to the rows of the endpoints is counted, and since when.
$node->safe_psql(
	'shopdb', q{
	CREATE SEQUENCE public.folded;
	CREATE FUNCTION public.count_update() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM nextval('public.folded'); RETURN NULL; END$$;
	CREATE TRIGGER count_update AFTER UPDATE ON shop.endpoint FOR EACH ROW WHEN (new.builtin) EXECUTE FUNCTION public.count_update();
	CREATE TABLE public.since AS SELECT clock_timestamp() AS at, sum(delivered_total) AS delivered FROM shop.endpoint WHERE builtin;
});

# An index of a column that changes: each change leaves an entry of it to vacuum.
$node->safe_psql('shopdb', 'CREATE INDEX ON shop.account (balance)');

# Somebody else's vacuum, or CREATE INDEX CONCURRENTLY, holds such a lock.
my $other = open_session($node, 'shopdb');
in_session($other, 'BEGIN; LOCK TABLE shop.account IN SHARE UPDATE EXCLUSIVE MODE');

my $load = start_load($node, 'shopdb', 300);

sub vacuums
{
	my ($table) = @_;
	return "pg_stat_get_vacuum_count('shop.$table'::regclass)";
}

sub vacuumed_again
{
	my ($table, $times, $name) = @_;
	my $before = value($node, 'shopdb', 'SELECT ' . vacuums($table));
	return within($node, 'shopdb', 60, vacuums($table) . " >= $before + $times", $name);
}

vacuumed_again($_, 1, "$_ is vacuumed") for qw(endpoint stock);
vacuumed_again('endpoint', 3, 'again and again');
within($node, 'shopdb', 60, q{pg_stat_get_tuples_updated('shop.account'::regclass) > 1000}, 'accounts are due too');
is(value($node, 'shopdb', 'SELECT ' . vacuums('account')), '0', 'what somebody has locked is not waited for');
unlike(slurp_file($node->logfile), qr/skipping vacuum/, 'nor is there a warning of it');

is(value($node, 'shopdb', q{SELECT pg_relation_size('shop.endpoint') / current_setting('block_size')::integer <= 40}),
	't', 'the endpoints take few pages');

# A cursor that has stopped in the middle of an index keeps a page of it, which
# a vacuum waits for if the index has entries to remove.  This one has: none
# were removed while the table was locked.
my $reader = open_session($node, 'shopdb');
in_session($reader, 'SET enable_seqscan = off; SET enable_sort = off; BEGIN; DECLARE c CURSOR FOR SELECT user_id FROM shop.account ORDER BY user_id; FETCH 1 FROM c');
in_session($other, 'COMMIT');
end_session($other);
within($node, 'shopdb', 60, q{EXISTS (SELECT FROM pg_stat_progress_vacuum WHERE relid = 'shop.account'::regclass)}, 'a vacuum meets a page that a cursor keeps');
vacuumed_again('endpoint', 3, 'it is not waited for either');
is(value($node, 'shopdb', 'SELECT ' . vacuums('account')), '0', 'its table is left out');
in_session($reader, 'COMMIT');
end_session($reader);
vacuumed_again('account', 1, 'and is vacuumed when it is free');

within($node, 'shopdb', 60, q{(SELECT sum(delivered_total) FROM shop.endpoint WHERE builtin) > delivered + 1000 FROM public.since},
	'sales are folded meanwhile');
# The view's refresh folds too, as often as once a second here.
is(value($node, 'shopdb', q{
	SELECT last_value <= 2 * (extract(epoch FROM clock_timestamp() - at) + 1), last_value > 1 FROM public.folded, public.since}),
	't|t', 'but no more often than once a second, and for the view');
is(value($node, 'shopdb', q{SELECT sum(pg_stat_get_vacuum_count(c::oid)) FROM unnest('{shop.outbox,shop.orders,shop.order_line}'::regclass[]) c}),
	'0', 'tables that grow are left to autovacuum');
is(value($node, 'shopdb', 'SELECT count(last_error) FROM shop.workers'), '0', 'no worker has met an error');

stop_load($load);
within(
	$node, 'shopdb', 60, q{NOT EXISTS (SELECT FROM shop.outbox o, shop.endpoint e WHERE NOT e.acked @> o.event_no)}, 'all is delivered');
healthy($node, 'shopdb', 'verify() finds nothing');

$node->stop;
done_testing();
