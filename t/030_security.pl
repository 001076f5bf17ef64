# What workers must not be made to do, what nobody reads, and what ends nobody's
# workers: attacks that need a running server with workers, a log and dumps.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use ShopTest;
use Test::More;

my $node = new_server('security', settings => [ 'log_statement = none', q{shop.popular_interval = '1s'} ]);
$node->start;
open_shop($node, 'shopdb');
workers_run($node, 'shopdb', 60, 'the workers run');

sub sql
{
	my ($sql) = @_;
	return $node->safe_psql('shopdb', $sql);
}

sql(q{
	CREATE ROLE reader LOGIN;
	CREATE ROLE writer LOGIN;
	CREATE ROLE clerk LOGIN;
	SELECT shop.grant_access('reader', 'read'), shop.grant_access('writer', 'write'), shop.grant_access('clerk', 'admin');
	CREATE SCHEMA clerk AUTHORIZATION clerk;
});

#
# A relay is what it was after it has called a function
#

sql(q{
	SET ROLE clerk;
	CREATE TABLE clerk.caught (who text DEFAULT current_user);
	GRANT INSERT ON clerk.caught TO PUBLIC;
	GRANT USAGE ON SCHEMA clerk TO PUBLIC;
	CREATE FUNCTION clerk.planted(bigint, bigint) RETURNS boolean LANGUAGE plpgsql AS
		$$ BEGIN INSERT INTO clerk.caught DEFAULT VALUES; RETURN $1 OPERATOR(pg_catalog.=) $2; END $$;
	CREATE OPERATOR clerk.= (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = clerk.planted);
	CREATE FUNCTION clerk.litter(event jsonb) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		SET search_path = clerk, pg_catalog;
		SET statement_timeout = 1;
		PERFORM pg_catalog.pg_advisory_unlock_all();
		PERFORM pg_catalog.pg_advisory_lock(42);
		SET TRANSACTION READ ONLY;
	END $$;
	SELECT shop.create_endpoint('litter', 'function:clerk.litter', '{litter}');
	SELECT shop.emit_event('litter', 'a', 'b', '{}');
});
within($node, 'shopdb', 60, q{delivered_total = 1 FROM shop.endpoints WHERE name = 'litter'}, 'the relay calls a function that leaves much behind');
my $order = order($node, 'shopdb');
within($node, 'shopdb', 60, "EXISTS (SELECT FROM shop.received_events WHERE type = 'order.paid' AND aggregateid = '$order')", 'and goes on');
is(value($node, 'shopdb', 'SELECT count(*) FROM clerk.caught'), '0', 'none of its statements finds a planted operator');
is( value($node, 'shopdb', q{
		SELECT string_agg(classid::bigint::bit(32)::text || ' ' || objid, ',') FROM pg_locks
		 WHERE locktype = 'advisory' AND pid = (SELECT pid FROM shop.workers WHERE kind = 'relay')}),
	sprintf('%032b 0', 0x53480002), 'it holds its own advisory lock, and no other');
is(value($node, 'shopdb', q{SELECT last_error FROM shop.workers WHERE kind = 'relay'}), '', 'it has met no error');

#
# The owner of the extension is no superuser: neither are the workers.  Nor can
# a setting of the database make the keeper's refresh fail.
#

$node->safe_psql('postgres', 'CREATE ROLE owner SUPERUSER LOGIN; CREATE DATABASE plain OWNER owner');
$node->safe_psql('postgres', 'ALTER DATABASE plain SET quote_all_identifiers = on');
$node->safe_psql('plain', q{SET ROLE owner; CREATE EXTENSION shop});
$node->safe_psql('plain', q{ALTER ROLE owner NOSUPERUSER; SELECT pg_terminate_backend(pid) FROM shop.workers WHERE kind <> 'launcher'});
$node->safe_psql('plain', q{
	SET SESSION AUTHORIZATION owner;
	SELECT shop.create_product('a', 10, 100), shop.charge_points(1, 1000);
	SELECT shop.create_endpoint('platform', 'function:shop.receive_event');
	CREATE SCHEMA owned;
	CREATE TABLE owned.attempt (statement text, outcome text, who text);
	CREATE FUNCTION owned.climb() RETURNS trigger LANGUAGE plpgsql AS $$
	DECLARE
		statement text;
	BEGIN
		FOREACH statement IN ARRAY ARRAY['RESET SESSION AUTHORIZATION', 'SET SESSION AUTHORIZATION DEFAULT', 'RESET ROLE', 'SET ROLE NONE',
		                                 'ALTER ROLE owner SUPERUSER', 'COPY owned.attempt TO PROGRAM ''cat >/dev/null''']
		LOOP
			BEGIN
				EXECUTE statement;
				INSERT INTO owned.attempt VALUES (statement, 'it worked', current_user);
			EXCEPTION WHEN OTHERS THEN
				INSERT INTO owned.attempt VALUES (statement, sqlstate, current_user);
			END;
		END LOOP;
		RETURN NULL;
	END $$;
	CREATE CONSTRAINT TRIGGER climb_later AFTER INSERT ON shop.received_events DEFERRABLE INITIALLY DEFERRED
		FOR EACH ROW EXECUTE FUNCTION owned.climb();
	CREATE TRIGGER climb AFTER UPDATE ON shop.endpoint FOR EACH ROW WHEN (NEW.name = 'platform') EXECUTE FUNCTION owned.climb();
});
workers_run($node, 'plain', 60, 'the workers of an owner who is not a superuser run');
is(value($node, 'plain', 'SET SESSION AUTHORIZATION owner; SELECT count(*) FROM owned.attempt'), '0', 'nothing has been tried yet');
$order = value($node, 'plain', q{SET SESSION AUTHORIZATION owner; SELECT order_id FROM shop.place_order(1, '[{"product_id": 1, "quantity": 1}]')});
within($node, 'plain', 60, 'count(*) >= 12 FROM owned.attempt', 'its triggers run in the relay, at once and at commit');
is( value($node, 'plain', 'SELECT DISTINCT outcome, who FROM owned.attempt ORDER BY 1, 2'),
	'42501|owner', 'as that role, which they cannot leave');
is(value($node, 'plain', q{SELECT rolsuper FROM pg_roles WHERE rolname = 'owner'}), 'f', 'which is no superuser');
within($node, 'plain', 60, 'count(*) = 1 FROM shop.popular_products', 'the keeper does its work as that role');
$node->safe_psql('plain', 'DROP SCHEMA owned CASCADE');

# Row level security that the owner enables is for others; verbs, views and workers go on.
$node->safe_psql('plain', q{
	SET SESSION AUTHORIZATION owner;
	SELECT shop.grant_access('writer', 'write');
	DO $$
	DECLARE
		t regclass;
	BEGIN
		FOR t IN SELECT oid FROM pg_class WHERE relnamespace = 'shop'::regnamespace AND relkind = 'r' LOOP
			EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', t);
		END LOOP;
	END $$;
	GRANT SELECT ON shop.orders TO writer;
});
is( value($node, 'plain', q{
		SET SESSION AUTHORIZATION writer;
		SELECT total FROM shop.place_order(1, '[{"product_id": 1, "quantity": 2}]');
		SELECT available FROM shop.products;
		SELECT count(*) FROM shop.order_history(1);
		SELECT count(*) FROM shop.orders}),
	"20\n97\n2\n0", 'beside row level security, verbs and views see all rows and the role none');
within($node, 'plain', 60, q{count(*) = 2 FROM shop.received_events WHERE type = 'order.paid'}, 'and events are delivered');
healthy($node, 'plain', 'and the shop is healthy');
$node->safe_psql('postgres', 'DROP DATABASE plain');

#
# Who may create a database cannot end the workers of another by trying to copy it
#

my $pid = worker_pid($node, 'shopdb', 'relay');
$node->safe_psql('postgres', 'CREATE ROLE maker LOGIN CREATEDB');
is(sqlstate_of($node, 'postgres', 'SET SESSION AUTHORIZATION maker; CREATE DATABASE copy TEMPLATE shopdb'), '42501', 'it is refused');
is(worker_pid($node, 'shopdb', 'relay'), $pid, 'and the relay is the same');

#
# Secrets: not in the log, whatever is logged of statements, and in no list of them
#

my $secret = 'S3cret' . 'Marker';
my $kafka = qq({"headers": {"x": "$secret"}});
my $before = -s $node->logfile;
sql('CREATE FUNCTION public.hook(name text, secret text) RETURNS void LANGUAGE sql SET search_path = pg_catalog AS '
	  . q{$$ SELECT shop.create_endpoint(name, 'function:shop.receive_event', '{none}', secret) $$});
for my $setting ("log_statement = 'all'", 'log_min_duration_statement = 0', 'log_duration = on')
{
	for my $statement (
		"SELECT shop.CREATE_ENDPOINT('one', 'function:shop.receive_event', '{none}', '$secret')",
		"SELECT Shop.Set_Endpoint_Secret('one', '$secret')",
		"SELECT \"shop\".\"create_endpoint\"('two', 'http://localhost/', '{none}', options => '$kafka')",
		"PREPARE p AS SELECT shop.create_endpoint(\$1, 'function:shop.receive_event', '{none}', \$2);\nEXECUTE p('three', '$secret')",
		"PREPARE p AS SELECT shop.create_endpoint(\$1, 'http://localhost/', options => \$2);\nEXECUTE p('four', '$kafka')")
	{
		sql("SET $setting;\n$statement;\nRESET ALL;\nDEALLOCATE ALL;");
	}
	sql(q{SELECT shop.drop_endpoint(name) FROM shop.endpoints WHERE 'none' = ANY (types) OR name = 'four'});
}
# One that comes to it by a function of the application's is known once it is there.
sql("SET log_min_duration_statement = 0;\nSELECT public.hook('five', '$secret');");
# What fails before it gets there is in the log with its text.
$node->psql('shopdb', "SELECT shop.CREATE_ENDPOINT('six', 'function:shop.receive_event', '{none}', '$secret', '{bad');");
$node->psql('shopdb', "SELECT shop.CREATE_ENDPOINT('six', nobody, '{none}', '$secret');");
my $log = substr slurp_file($node->logfile), $before;
like($log, qr/statement: SELECT shop\.CREATE_ENDPOINT$/m, 'the log has the name of the function');
like($log, qr/statement: EXECUTE p$/m, 'of a prepared statement, its name');
like($log, qr/statement: SELECT public\.hook$/m, 'and of what calls it');
unlike($log, qr/$secret/, 'and no secret');

my $session = open_session($node, 'shopdb');
in_session($session, "SELECT shop.set_endpoint_secret('five', '$secret')");
my $activity = value($node, 'shopdb', 'SELECT string_agg(query, chr(10)) FROM pg_stat_activity WHERE pid <> pg_backend_pid()');
like($activity, qr/secrets of an endpoint/, 'pg_stat_activity shows that there was a statement with secrets');
unlike($activity, qr/$secret/, 'but none of them, not even to a superuser');
end_session($session);

#
# Dumps, by whoever may not read what is in them
#

for my $role ('reader', 'writer', 'clerk')
{
	my ($stdout, $stderr) = ('', '');
	my $done = IPC::Run::run([ $node->installed_command('pg_dump'), '-d', $node->connstr('shopdb'), '--role', $role ],
		'>', \$stdout, '2>', \$stderr);

	ok(!$done, "$role cannot dump the shop");
	like($stderr, qr/permission denied for (?:table|sequence)/, 'because of its rights');
	unlike($stdout . $stderr, qr/$secret/, 'and sees no secret');
}

healthy($node, 'shopdb', 'the shop is healthy');
$node->stop;
unlike(slurp_file($node->logfile), qr/PANIC|TRAP|was terminated by signal/, 'no process crashed');
done_testing();
