# From one version to the next: what is upgraded is what is installed anew, and a
# library does not serve the SQL of another version.  Version 1000, of this source
# and a script of this test, is built in an installation of its own.
use strict;
use warnings;

use Cwd qw(abs_path);
use FindBin;
use lib $FindBin::RealBin;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use ShopTest;
use Test::More;

use constant PATIENCE => 180;

my $source = abs_path("$FindBin::RealBin/..");
chomp(my $pgxs = `"$ENV{PG_CONFIG}" --pgxs`);

plan skip_all => 'needs the sources' if !-e "$source/Makefile" || !-e "$source/shop.control";
plan skip_all => 'needs a compiler and the headers of PostgreSQL'
  if !-e $pgxs || system('command -v "${CC:-cc}" >/dev/null 2>&1') != 0;

my ($version) = slurp_file("$source/shop.control") =~ /^default_version = '(.*)'$/m;
my $item = q{'[{"product_id": 1, "quantity": 1}]'};

#
# An installation, and two libraries for it
#

my $tmp = PostgreSQL::Test::Utils::tempdir();
my %own = own_installation("$tmp/root");
my $extensions = "$own{sharedir}/extension";
my $library = "$own{pkglibdir}/shop.so";

system_or_bail('sh', '-c',
	"mkdir '$tmp/tree' && tar -C '$source' -cf - Makefile shop.control shop--*.sql src sql specs shop.so 2>/dev/null | tar -C '$tmp/tree' -xf -");
write_file("$tmp/tree/shop.control", slurp_file("$source/shop.control") =~ s/^default_version = .*/default_version = '1000'/mr);
# Objects that are there are as good; only the version is another one.
system_or_bail('make', '-s', '-C', "$tmp/tree", "PG_CONFIG=$ENV{PG_CONFIG}", 'shop.so');
system_or_bail('cp', $library, "$tmp/old.so");
system_or_bail('cp', "$tmp/tree/shop.so", "$tmp/new.so");

# What a version 1000 would bring, and the script that takes a shop there.
my $added = q{
ALTER TABLE shop.product ADD COLUMN weight integer DEFAULT 0;
COMMENT ON COLUMN shop.product.weight IS 'in grams';
CREATE FUNCTION shop.heavy(product_id bigint) RETURNS boolean LANGUAGE sql STABLE
    BEGIN ATOMIC SELECT weight > 1000 FROM shop.product p WHERE p.product_id = heavy.product_id; END;
REVOKE ALL ON FUNCTION shop.heavy(bigint) FROM PUBLIC;
};
my ($pattern) = slurp_file("$source/src/README.md") =~ /^```sql\n(.*?shop\.version\(\).*?)^```$/ms;
ok($pattern, 'src/README.md has the pattern of an upgrade script');
my $upgrade = $pattern =~ s/'1\.1'/'1000'/gr;
like($upgrade, qr/'1000'/, 'which names its version');

sub write_file
{
	my ($file, $text) = @_;

	unlink $file;
	append_to_file($file, $text);
	return;
}

# Replaces files by renaming, as packages do: who has them open keeps them.
sub install
{
	my ($name, $default_version) = @_;

	system_or_bail('cp', "$tmp/$name.so", "$library.new");
	rename "$library.new", $library or die $!;
	write_file("$extensions/shop.control",
		slurp_file("$source/shop.control") =~ s/^default_version = .*/default_version = '$default_version'/mr);
	return;
}

write_file("$extensions/shop--$version--1000.sql", "$upgrade$added");
write_file("$extensions/shop--1000.sql", slurp_file("$source/shop--$version.sql") . $added);
# One that does not look which library is there.
write_file("$extensions/shop--$version--careless.sql", "ALTER FUNCTION shop.version() COST 1;\n");

my $node = PostgreSQL::Test::Cluster->new('versions', install_path => $own{install_path});
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'shop'\nmax_worker_processes = 32\n");

# All there is of the extension's objects, as pg_upgrade sees them, but for their oids.
sub catalog
{
	my ($db) = @_;
	my $file = "$tmp/$db.sql";

	$node->command_ok([ 'pg_dump', '--binary-upgrade', '-s', '-f', $file, $node->connstr($db) ], "pg_dump of $db");
	my $dump = slurp_file($file);
	$dump =~ s/^(?:SELECT pg_catalog\.(?:binary_upgrade_set_|setval\()|SET relfrozenxid = ).*\n//mg;
	$dump =~ s/\b\d{5,}\b/oid/g;
	$dump =~ s/^\\(?:un)?restrict .*\n//mg;
	$dump =~ s/\b\Q$db\E\b/this_database/g;
	return [ split /\n/, $dump . value($node, $db, q{SELECT string_agg(c::regclass::text, ' ' ORDER BY c::regclass::text) FROM pg_extension, unnest(extconfig) c WHERE extname = 'shop'}) ];
}

# A test that passes if a call is refused with both versions, and so are the workers.
sub refuses
{
	my ($db, $extension, $lib, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	for my $call ("place_order(1, $item)", "try_place_order(1, $item)", 'get_product(1)', 'charge_points(1, 1)', 'restock(1, 1)',
		'deliver_events()', 'run_maintenance()', 'refresh_popular_products()')
	{
		my ($rc, $out, $err) = $node->psql($db, "\\set VERBOSITY verbose\nSELECT shop.$call");
		like($err,
			qr/ERROR:  55000: extension shop is of version \Q$extension\E, but the loaded library of version \Q$lib\E\nDETAIL:  \{"extension": "\Q$extension\E", "library": "\Q$lib\E"\}\nHINT:  Restart/,
			"$name: $call");
	}
	is(value($node, $db, 'SELECT shop.version()'), $lib, "$name: version() is that of the library");
	within($node, $db, PATIENCE, qq{count(*) = 2 FROM shop.workers WHERE kind <> 'launcher' AND state = 'backing off'
			AND last_error = 'extension shop is of version $extension, but the loaded library of version $lib'},
		"$name: the workers say so, and wait");
	return;
}

# A test that passes if all of a shop works.
sub works
{
	my ($db, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$node->safe_psql($db, "ALTER DATABASE $db SET shop.worker = on");
	workers_run($node, $db, PATIENCE, "$name: the workers run");
	my $order = order($node, $db);
	within($node, $db, PATIENCE, qq{EXISTS (SELECT FROM shop.received_events WHERE type = 'order.paid' AND aggregateid = '$order')},
		"$name: an order is placed and delivered");
	healthy($node, $db, "$name: verify() finds nothing");
	return;
}

#
# New files on disk, the old library in memory
#

$node->start;
open_shop($node, 'shopdb');
open_shop($node, 'careless');
my $session = open_session($node, 'careless');
is(in_session($session, "SELECT status FROM shop.place_order(1, $item)"), 'paid', 'a session has placed an order');
works('shopdb', 'before');

install('new', '1000');
works('shopdb', 'with new files');
my ($rc, $out, $err) = $node->psql('shopdb', "\\set VERBOSITY verbose\nALTER EXTENSION shop UPDATE");
like($err, qr/ERROR:  55000: the loaded library of shop is of version \Q$version\E\nHINT:  Restart the server/, 'ALTER EXTENSION waits for a restart');
is(value($node, 'shopdb', q{SELECT extversion FROM pg_extension WHERE extname = 'shop'}), $version, 'and changes nothing');
works('shopdb', 'after that');

$node->safe_psql('careless', q{ALTER EXTENSION shop UPDATE TO 'careless'});
refuses('careless', 'careless', $version, 'an old library');
$session->{err} = '';
in_session($session, "SELECT shop.place_order(1, $item)");
like($session->{err}, qr/extension shop is of version careless/, 'an old library: so does the session that has placed an order');
end_session($session);
$node->safe_psql('postgres', 'DROP DATABASE careless');

#
# The new library, the old SQL; then the new SQL
#

$node->restart;
refuses('shopdb', $version, '1000', 'a new library');
healthy($node, 'shopdb', 'a new library: verify() finds nothing');
$session = open_session($node, 'shopdb');
in_session($session, "SELECT shop.place_order(1, $item)");
$node->safe_psql('shopdb', 'ALTER EXTENSION shop UPDATE');
is(in_session($session, "SELECT status FROM shop.place_order(1, $item)"), 'paid', 'after ALTER EXTENSION the same session places an order');
end_session($session);
works('shopdb', 'the new version');

open_shop($node, 'fresh');
is_deeply(catalog('shopdb'), catalog('fresh'), 'what was upgraded is what is installed anew');

#
# Back to the old library
#

install('old', $version);
$node->restart;
refuses('shopdb', '1000', $version, 'the old library again');

#
# Every upgrade script that there is leads to what is installed anew
#

for my $file (map { s{.*/}{}r } glob "$source/shop--*--*.sql")
{
	my ($from, $to) = $file =~ /^shop--(.*)--(.*)\.sql$/;

	like(slurp_file("$source/$file"), qr/^\Q${\($pattern =~ s{'1\.1'}{'$to'}gr)}\E/m, "$file begins like the pattern");
}
for my $from (grep { $_ ne $version } map { /shop--([^-]*)\.sql$/ } glob "$source/shop--*.sql")
{
	my $db = 'from_' . $from =~ s/\W/_/gr;

	$node->safe_psql('postgres', "CREATE DATABASE $db");
	$node->safe_psql($db, "CREATE EXTENSION shop VERSION '$from'; ALTER EXTENSION shop UPDATE TO '$version'");
	$node->safe_psql('postgres', 'CREATE DATABASE current') if value($node, 'postgres', q{SELECT count(*) FROM pg_database WHERE datname = 'current'}) == 0;
	$node->safe_psql('current', 'CREATE EXTENSION IF NOT EXISTS shop');
	is_deeply(catalog($db), catalog('current'), "upgraded from $from is installed anew");
}

$node->stop;
unlike(slurp_file($node->logfile), qr/PANIC|TRAP|was terminated by signal/, 'no process crashed');
done_testing();
