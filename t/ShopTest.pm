# What the TAP tests share: servers, a small shop, waiting with a bound.
package ShopTest;

use strict;
use warnings;

use Exporter 'import';
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

our @EXPORT = qw(
  new_server open_shop order sqlstate_of
  value within timed healthy checksums sequences workers_run worker_pid
  open_session in_session end_session
  own_installation
  start_pgbench start_load stop_load load_ended
);

my $scripts = 0;

# A server that is not started yet, with the library preloaded and `settings`
# added; `init` goes to init().
sub new_server
{
	my ($name, %arg) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	$node->init(@{ $arg{init} // [] });
	$node->append_conf(
		'postgresql.conf', join "\n",
		"shared_preload_libraries = 'shop'",
		'max_worker_processes = 16',
		"timezone = 'UTC'",
		# A statement that hangs must not hang the tests.
		"statement_timeout = '60s'",
		@{ $arg{settings} // [] }, '');
	return $node;
}

# The extension, 20 products (1 .. 20, at 10 x their number), 50 users with
# points, and the embedded data platform as an endpoint.
sub open_shop
{
	my ($node, $db) = @_;

	$node->safe_psql('postgres', "CREATE DATABASE $db") if $db ne 'postgres';
	$node->safe_psql(
		$db, q{
		CREATE EXTENSION shop;
		SELECT shop.create_product('product ' || n, n * 10, 1000000) FROM generate_series(1, 20) n;
		SELECT shop.charge_points(u, 1000000000) FROM generate_series(1, 50) u;
		SELECT shop.create_endpoint('platform', 'function:shop.receive_event');
	});
	return;
}

# Places an order of one unit; returns its order_id.
sub order
{
	my ($node, $db, $product, $user) = @_;

	return value($node, $db,
		sprintf q{SELECT order_id FROM shop.place_order(%d, '[{"product_id": %d, "quantity": 1}]')},
		$user // 1, $product // 1);
}

sub value
{
	my ($node, $db, $sql) = @_;
	return $node->safe_psql($db, $sql);
}

# The SQLSTATE that a statement fails with; empty if it does not fail.
sub sqlstate_of
{
	my ($node, $db, $sql) = @_;
	my ($rc, $out, $err) = $node->psql($db, "\\set VERBOSITY sqlstate\n$sql");

	return $err =~ /(?:ERROR|FATAL):\s+(\w{5})\s*$/m ? $1 : '';
}

# A test that passes if the condition becomes true before the time is over.
# While the server does not accept connections, the condition is false.
sub within
{
	my ($node, $db, $seconds, $condition, $name) = @_;
	my $start = time;
	my ($rc, $out, $err) = (0, '', '');

	do
	{
		sleep 0.03 if $out ne '';
		# psql may end before it has read the condition.
		($rc, $out, $err) = eval { $node->psql($db, "SELECT $condition") };
		$out = 'error' if !defined $rc || $rc != 0;
	} while ($out ne 't' && time - $start < $seconds);

	my $elapsed = time - $start;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok($out eq 't', sprintf('%s (%.1f of %g s)', $name, $elapsed, $seconds)) or diag("$condition: $out ", $err // '');
	return $out eq 't';
}

# A test that passes if the statement succeeds in less than that.
sub timed
{
	my ($node, $db, $seconds, $sql, $name) = @_;
	my $start = time;
	my ($rc, $out, $err) = $node->psql($db, $sql, on_error_stop => 1);
	my $elapsed = time - $start;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok($rc == 0 && $elapsed < $seconds, sprintf('%s (%.1f of %g s)', $name, $elapsed, $seconds))
	  or diag("$sql: $err");
	return $rc == 0;
}

sub healthy
{
	my ($node, $db, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is(value($node, $db, 'SELECT * FROM shop.verify() LIMIT 10'), '', $name);
}

# A checksum of the rows of every table of the shop.  The built-in subscriber
# moves to a copy with its first event, so its row may differ.
sub checksums
{
	my ($node, $db) = @_;
	my $tables = value($node, $db,
		q{SELECT string_agg(quote_ident(relname), ' ' ORDER BY relname) FROM pg_class WHERE relnamespace = 'shop'::regnamespace AND relkind = 'r'});
	my $sql = join ' UNION ALL ', map
	{
		my $filter = $_ eq 'endpoint' ? 'WHERE NOT builtin' : '';
		"SELECT '$_', count(*), md5(string_agg(r, E'\n' ORDER BY r)) FROM (SELECT to_jsonb(t)::text COLLATE \"C\" AS r FROM shop.$_ t $filter) x"
	} split / /, $tables;

	return value($node, $db, $sql);
}

# The numbers of endpoints do not matter as long as they are ahead, which is
# verify()'s business.
sub sequences
{
	my ($node, $db) = @_;
	return value($node, $db, q{
		SELECT sequencename, last_value FROM pg_sequences
		 WHERE schemaname = 'shop' AND sequencename <> 'endpoint_endpoint_id_seq' ORDER BY 1});
}

# A test that passes if relay and keeper of the database come up in time.
sub workers_run
{
	my ($node, $db, $seconds, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return within(
		$node, $db, $seconds,
		q{count(*) = 2 FROM shop.workers JOIN pg_stat_activity a USING (pid)
		  WHERE backend_type = 'shop ' || kind AND a.datname = current_database()}, $name);
}

sub worker_pid
{
	my ($node, $db, $kind) = @_;
	return value($node, $db, "SELECT pid FROM shop.workers WHERE kind = '$kind'");
}

# A copy of the installation of PostgreSQL below a directory; it finds its files
# from where its programs are.  Returns its directories, and what a
# PostgreSQL::Test::Cluster wants as install_path.
sub own_installation
{
	my ($root) = @_;
	my %own;

	for my $name (qw(bindir sharedir pkglibdir))
	{
		chomp(my $dir = `"$ENV{PG_CONFIG}" --$name`);
		$own{$name} = "$root$dir";
		PostgreSQL::Test::Utils::system_or_bail('mkdir', '-p', $own{$name});
		PostgreSQL::Test::Utils::system_or_bail('cp', '-RL', "$dir/.", $own{$name});
	}
	plan skip_all => 'the programs of PostgreSQL are not in a directory bin' if $own{bindir} !~ m{^(.*)/bin$};
	$own{install_path} = $1;
	return %own;
}

# A psql that stays connected.
sub open_session
{
	my ($node, $db) = @_;
	my $session = { in => '', out => '', err => '', n => 0 };

	$session->{harness} = IPC::Run::start(
		[ $node->installed_command('psql'), '-XAtq', '-d', $node->connstr($db), '-f', '-' ],
		'<', \$session->{in}, '>', \$session->{out}, '2>', \$session->{err},
		IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	in_session($session, 'SELECT');
	return $session;
}

# Runs SQL in it, and waits for the end; returns the output.
sub in_session
{
	my ($session, $sql) = @_;
	my $mark = 'end of query ' . ++$session->{n};

	$session->{out} = '';
	$session->{in} .= "$sql;\n\\echo $mark\n";
	$session->{harness}->pump until $session->{out} =~ s/^\Q$mark\E\n//m;
	chomp $session->{out};
	return $session->{out};
}

sub end_session
{
	my ($session) = @_;

	$session->{in} .= "\\q\n";
	eval { $session->{harness}->finish };
	return;
}

# pgbench in the background, with a script and options.
sub start_pgbench
{
	my ($node, $db, $script, @options) = @_;
	my $file = $node->basedir . '/' . ++$scripts . '.pgbench';
	my $load = { out => '', err => '' };

	PostgreSQL::Test::Utils::append_to_file($file, $script);
	$load->{harness} = IPC::Run::start(
		[ $node->installed_command('pgbench'), '-n', @options, '-f', $file, $node->connstr($db) ],
		'<', \undef, '>', \$load->{out}, '2>', \$load->{err},
		IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	return $load;
}

# Orders of three lines, one in ten rolled back, at a rate that a small machine
# can follow.
sub start_load
{
	my ($node, $db, $seconds, $rate) = @_;

	return start_pgbench($node, $db, q{\set user random(1, 50)
\set a random(1, 20)
\set b random(1, 20)
\set c random(1, 20)
\set key random(1, 1000000000)
\set undo random(1, 10)
BEGIN;
SELECT shop.place_order(:user, '[{"product_id": :a, "quantity": 2}, {"product_id": :b, "quantity": 1}, {"product_id": :c, "quantity": 1}]', idempotency_key => ':key');
\if :undo = 1
SELECT shop.charge_points(:user, 100);
ROLLBACK;
\else
COMMIT;
\endif
}, '-c', 8, '-R', $rate // 1000, '-T', $seconds);
}

# Ends it before its time.
sub stop_load
{
	my ($load) = @_;

	$load->{harness}->signal('TERM');
	load_ended($load);
	return;
}

# Waits for its end, which may have been an error of the server's.
sub load_ended
{
	my ($load) = @_;

	eval { $load->{harness}->finish };
	note($load->{out});
	return;
}

1;
