/*
 * access.c
 *		grant_access(): which functions and views a reader, an application and
 *		an administrator may use.
 *
 * Every function of the schema stands in the table below, so that none is
 * granted, or forgotten, by accident.
 *
 * Locks: the view popular_products against a refresh.
 */
#include "shop.h"

#include "catalog/namespace.h"
#include "error.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "query.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

typedef enum Access
{
	ACCESS_READ,
	ACCESS_WRITE,
	ACCESS_ADMIN,
	ACCESS_OWNER /* granted to nobody */
} Access;

static const struct
{
	const char *function;
	Access access;
} functions[] = {
	{"cancel_order", ACCESS_WRITE},
	{"charge_points", ACCESS_WRITE},
	{"clock", ACCESS_READ},
	{"create_coupon_campaign", ACCESS_ADMIN},
	{"create_endpoint", ACCESS_ADMIN},
	{"create_product", ACCESS_ADMIN},
	{"deliver_events", ACCESS_ADMIN},
	{"drop_endpoint", ACCESS_ADMIN},
	{"emit_event", ACCESS_WRITE},
	{"error_codes", ACCESS_READ},
	{"fold_sales", ACCESS_OWNER},
	{"get_order", ACCESS_READ},
	{"get_product", ACCESS_READ},
	{"grant_access", ACCESS_OWNER},
	{"guard_drop", ACCESS_OWNER},
	{"is_home", ACCESS_ADMIN},
	{"issue_coupon", ACCESS_WRITE},
	{"order_changes", ACCESS_READ},
	{"order_history", ACCESS_READ},
	{"order_lines", ACCESS_READ},
	{"order_transitions", ACCESS_READ},
	{"outbox_metrics", ACCESS_ADMIN},
	{"pause_endpoint", ACCESS_ADMIN},
	{"pay_order", ACCESS_WRITE},
	{"place_order", ACCESS_WRITE},
	{"point_balance", ACCESS_READ},
	{"point_history", ACCESS_READ},
	{"receive_event", ACCESS_ADMIN},
	{"receive_events", ACCESS_ADMIN},
	{"redrive", ACCESS_ADMIN},
	{"redrive_all", ACCESS_ADMIN},
	{"refresh_popular_products", ACCESS_ADMIN},
	{"refund_order", ACCESS_WRITE},
	{"release_order", ACCESS_WRITE},
	{"reserve_order", ACCESS_WRITE},
	{"restock", ACCESS_ADMIN},
	{"resume_endpoint", ACCESS_ADMIN},
	{"run_maintenance", ACCESS_ADMIN},
	{"set_endpoint_secret", ACCESS_ADMIN},
	{"set_price", ACCESS_ADMIN},
	{"set_product_status", ACCESS_ADMIN},
	{"top_products", ACCESS_READ},
	{"try_issue_coupon", ACCESS_WRITE},
	{"try_place_order", ACCESS_WRITE},
	{"use_points", ACCESS_WRITE},
	{"user_coupons", ACCESS_READ},
	{"verify", ACCESS_ADMIN},
	{"version", ACCESS_READ},
	{"worker_status", ACCESS_ADMIN},
};

static const struct
{
	const char *relation;
	Access access;
} relations[] = {
	{"coupon_campaigns", ACCESS_READ},
	{"dead_letters", ACCESS_ADMIN},
	{"endpoints", ACCESS_ADMIN},
	{"outbox", ACCESS_ADMIN},
	{"popular_products", ACCESS_READ},
	{"product_sales", ACCESS_ADMIN},
	{"products", ACCESS_READ},
	{"received_events", ACCESS_ADMIN},
	{"workers", ACCESS_ADMIN},
};

SHOP_FUNCTION(shop_grant_access);

static void
run_grant(const char *privilege, const char *kind, const char *name, const char *role)
{
	char *sql = psprintf("GRANT %s ON %s %s TO %s", privilege, kind, name, role);

	if (SPI_execute(sql, false, 0) != SPI_OK_UTILITY)
		elog(ERROR, "could not run \"%s\"", sql);
}

static Access
parse_access(const char *access)
{
	if (strcmp(access, "read") == 0)
		return ACCESS_READ;
	if (strcmp(access, "write") == 0)
		return ACCESS_WRITE;
	if (strcmp(access, "admin") == 0)
		return ACCESS_ADMIN;
	shop_reject("access", "must be read, write or admin");
}

/* A refresh updates the view's row in pg_class, as GRANT does, which does not wait for it. */
static void
wait_for_refresh(void)
{
	LockRelationOid(get_relname_relid("popular_products", get_namespace_oid("shop", false)), ShareUpdateExclusiveLock);
}

/* Grants what this access takes and what the ones below it do. */
Datum
shop_grant_access(PG_FUNCTION_ARGS)
{
	Access access;
	const char *role;

	shop_arg_required(fcinfo, 0, "role");
	access = parse_access(shop_arg_text(fcinfo, 1, "access"));
	role = quote_identifier(GetUserNameFromId(PG_GETARG_OID(0), false));
	shop_write_verb("grant_access()");

	SPI_connect();
	wait_for_refresh();
	run_grant("USAGE", "SCHEMA", "shop", role);
	for (size_t i = 0; i < lengthof(functions); i++)
		if (functions[i].access <= access)
			run_grant("EXECUTE", "FUNCTION", psprintf("shop.%s", functions[i].function), role);
	for (size_t i = 0; i < lengthof(relations); i++)
		if (relations[i].access <= access)
			run_grant("SELECT", "TABLE", psprintf("shop.%s", relations[i].relation), role);
	SPI_finish();
	PG_RETURN_VOID();
}
