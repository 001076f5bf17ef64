# What is packed says what it is: one version everywhere, metadata as PGXN wants
# it, and a Debian package with which, and nothing else, a shop runs.
use strict;
use warnings;

use Cwd qw(abs_path);
use FindBin;
use lib $FindBin::RealBin;

use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use ShopTest;
use Test::More;

my $source = abs_path("$FindBin::RealBin/..");
plan skip_all => 'needs the sources' if !-e "$source/META.json" || !-d "$source/debian";

#
# The version, which is shop.control's
#

my ($version) = slurp_file("$source/shop.control") =~ /^default_version = '(\d+\.\d+(?:\.\d+)?)'$/m;
ok($version, 'shop.control has a version');
my $semver = $version =~ /\..*\./ ? $version : "$version.0";
my $meta = JSON::PP->new->decode(slurp_file("$source/META.json"));

ok(-e "$source/shop--$version.sql", 'the install script has it');
is($meta->{version}, $semver, 'META.json has it');
is_deeply([ @{ $meta->{provides}{shop} }{qw(version file)} ], [ $semver, "shop--$version.sql" ], 'and what it provides');
like(slurp_file("$source/debian/changelog"), qr/\Ashop \(\Q$version\E-\d+\) /, 'the changelog of the Debian package has it');
like(slurp_file("$source/CHANGELOG.md"), qr/\A# Changelog\n\n## \Q$version\E /, 'CHANGELOG.md has it');

#
# META.json, by https://pgxn.org/spec/
#

is_deeply([ grep { !defined $meta->{$_} } qw(name version abstract maintainer license provides meta-spec) ], [], 'META.json has all it must have');
like($meta->{name}, qr{\A[^\s/\\[:cntrl:]]{2,}\z}, 'a name');
is_deeply([ grep { !/\A\d+\.\d+\.\d+\z/ } $meta->{version}, $meta->{'meta-spec'}{version}, $meta->{provides}{shop}{version},
		values %{ $meta->{prereqs}{runtime}{requires} } ], [], 'versions of three numbers');
like($meta->{license}, qr/\A(?:agpl_3|apache_2_0|artistic_2|bsd|freebsd|gpl_[123]|lgpl_[23]_[01]|mit|mozilla_1_[01]|postgresql|open_source|restricted|unrestricted|unknown)\z/, 'a license it knows');
ok(-e "$source/$meta->{provides}{shop}{$_}", "the $_ is there") for qw(file docfile);
is_deeply([ grep { ref || !/\A[^\/\\[:cntrl:]]{1,255}\z/ } @{ $meta->{tags} } ], [], 'tags');
is_deeply([ grep { !/\A(?:abstract|description|generated_by|license|maintainer|meta-spec|name|no_index|prereqs|provides|release_status|resources|tags|version|x_\w+)\z/i } keys %$meta ],
	[], 'and nothing else');

#
# The Debian package, built, unpacked and run
#

SKIP:
{
	skip 'needs dpkg-buildpackage, debhelper and postgresql-server-dev-all', 1
	  if grep { system("command -v $_ >/dev/null 2>&1") != 0 } qw(dpkg-buildpackage dh pg_buildext dh_pgxs_test);
	chomp(my $major = `"$ENV{PG_CONFIG}" --version`);
	$major =~ s/^\D*(\d+).*/$1/;
	skip "pg_buildext does not build for $major", 1 if `pg_buildext supported-versions` !~ /^$major$/m;

	my $tmp = PostgreSQL::Test::Utils::tempdir();
	system_or_bail('sh', '-c',
		"mkdir '$tmp/shop' && tar -C '$source' -cf - Makefile shop.control shop--*.sql META.json README.md CHANGELOG.md debian src sql specs expected | tar -C '$tmp/shop' -xf -");
	{
		local %ENV = (PATH => $ENV{PATH}, HOME => $tmp, LC_ALL => 'C.UTF-8', DEB_BUILD_OPTIONS => 'noautodbgsym');
		command_ok([ 'sh', '-c', "cd '$tmp/shop' && make -s clean && pg_buildext updatecontrol && dpkg-buildpackage -b -us -uc -d" ], 'make deb');
	}
	my ($deb) = glob "$tmp/postgresql-$major-shop_$version-*.deb";
	ok($deb, "postgresql-$major-shop of this version") or skip 'no package', 1;
	system_or_bail('dpkg', '-x', $deb, "$tmp/package");
	like(`dpkg -f '$deb' Depends`, qr/postgresql-$major.*libcurl4.*librdkafka1|libcurl4.*librdkafka1.*postgresql-$major/, 'it depends on the server and the libraries');

	# All that is of the extension here comes from the package.
	my %own = own_installation("$tmp/root");
	unlink "$own{pkglibdir}/shop.so", "$own{pkglibdir}/shop_kafka", glob "$own{sharedir}/extension/shop*";
	my %packed = (
		"$tmp/package/usr/lib/postgresql/$major/lib" => $own{pkglibdir},
		"$tmp/package/usr/share/postgresql/$major/extension" => "$own{sharedir}/extension");
	system_or_bail('cp', '-R', "$_/.", $packed{$_}) for keys %packed;
	ok(-x "$own{pkglibdir}/shop_kafka", 'it has the program shop_kafka');

	my $node = PostgreSQL::Test::Cluster->new('packages', install_path => $own{install_path});
	$node->init;
	$node->append_conf('postgresql.conf', "shared_preload_libraries = 'shop'\nmax_worker_processes = 16\n");
	$node->start;
	open_shop($node, 'shopdb');
	workers_run($node, 'shopdb', 60, 'the workers run');
	my $order = order($node, 'shopdb');
	within($node, 'shopdb', 60, "EXISTS (SELECT FROM shop.received_events WHERE type = 'order.paid' AND aggregateid = '$order')",
		'an order is placed and delivered');
	is(value($node, 'shopdb', 'SELECT shop.version()'), $version, 'the library has the version');
	healthy($node, 'shopdb', 'verify() finds nothing');
	$node->stop;
}
done_testing();
