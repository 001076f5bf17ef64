# The keeper ends reservations that nobody paid, waits for nobody meanwhile,
# and finds them again after a crash.
use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use ShopTest;
use Test::More;

my $node = new_server('reservations', settings => ['restart_after_crash = on']);
$node->start;
open_shop($node, 'shopdb');
workers_run($node, 'shopdb', 5, 'the workers run');

# Reserves one unit of each product; returns the order_id.
sub reserve
{
	my ($user, $expires_in, @product) = @_;
	my $items = join ', ', map { qq({"product_id": $_, "quantity": 1}) } @product;

	return value($node, 'shopdb', "SELECT order_id FROM shop.reserve_order($user, '[$items]', '$expires_in')");
}

# What the row says, not what reads make of it.
sub is_status
{
	my ($order, $status) = @_;
	return "status = '$status' FROM shop.orders WHERE order_id = $order";
}

sub units
{
	my ($product) = @_;
	return value($node, 'shopdb', "SELECT sum(on_hand) FROM shop.stock WHERE product_id = $product");
}

#
# Nobody else comes by
#

my $order = reserve(1, '1 second', 1, 2);
is(units(1), '999999', 'the units are out of stock');
within($node, 'shopdb', 15, is_status($order, 'expired'), 'the keeper ends it');
is(units(1), '1000000', 'and its units are back');
within($node, 'shopdb', 5,
	"count(*) = 1 FROM shop.received_events WHERE type = 'order.expired' AND aggregateid = '$order'",
	'the platform hears of it, once');
is(value($node, 'shopdb', 'SELECT count(*) FROM shop.stock_hold'), '0', 'nothing is held any more');

#
# The keeper passes by what is locked
#

my $buyer = open_session($node, 'shopdb');
my $locked = reserve(1, '2 seconds', 3, 4);
in_session($buyer, 'BEGIN');
in_session($buyer, q{SELECT status FROM shop.place_order(2, '[{"product_id": 3, "quantity": 1}]')});
my $free = reserve(1, '2 seconds', 4, 5);
within($node, 'shopdb', 15, is_status($free, 'expired'), 'it ends the next one');
is(value($node, 'shopdb', 'SELECT ' . is_status($locked, 'reserved')), 't', 'not the one whose product a buyer has locked');
is(value($node, 'shopdb', "SELECT status FROM shop.get_order($locked)"), 'expired', 'which is over all the same');
timed($node, 'shopdb', 2, q{SELECT shop.place_order(3, '[{"product_id": 4, "quantity": 1}]')},
	'nobody waits for the other product of it');
is( value(
		$node, 'shopdb',
		q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'shop keeper' AND (wait_event_type = 'Lock' OR state LIKE 'idle in%')}),
	'0', 'the keeper waits for no lock and sits in no transaction');
in_session($buyer, 'COMMIT');
end_session($buyer);
within($node, 'shopdb', 15, is_status($locked, 'expired'), 'it ends that one when the buyer is done');

#
# Many at once
#

$node->safe_psql('shopdb', q{
	SELECT shop.reserve_order(1 + n % 50, '[{"product_id": 6, "quantity": 1}, {"product_id": 7, "quantity": 2}]', '2 seconds')
	  FROM generate_series(1, 500) n});
within($node, 'shopdb', 20, q{count(*) = 0 FROM shop.stock_hold}, 'five hundred of them go in little time');
is( value(
		$node, 'shopdb',
		q{SELECT count(*) FROM shop.outbox WHERE type = 'order.expired' AND payload @> '{"lines": [{"product_id": 7}]}'}),
	'500', 'each with its event');
healthy($node, 'shopdb', 'verify() finds nothing');

#
# A crash
#

my $to_pay = reserve(1, '1 day', 8);
my $to_end = reserve(2, '1 second', 8);
$node->stop('immediate');
$node->start;
is(value($node, 'shopdb', "SELECT status FROM shop.pay_order($to_pay, 1)"), 'paid', 'what was reserved before a crash is paid after it');
within($node, 'shopdb', 20, is_status($to_end, 'expired'), 'and what was over is ended');
is(units(8), '999999', 'all units are accounted for');
healthy($node, 'shopdb', 'verify() finds nothing');

$node->stop;
done_testing();
