/*
 * version.c
 *		Do the library and the SQL of the extension belong together?
 *
 * New files on disk do not reach a server that has the library preloaded until
 * it is restarted, and the SQL stays what it is until ALTER EXTENSION UPDATE.
 * In between, whatever would touch a table is refused.
 *
 * The extension's version is read once, and again when a function, or a table
 * that a plan needs, has changed.  Every upgrade script changes a function.
 *
 * Takes no locks but on the catalog.
 */
#include "version.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/pg_extension.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/rel.h"
#include "utils/syscache.h"

/* Is the extension known to be of the library's version? */
static bool known;

SHOP_FUNCTION(shop_version);

Datum
shop_version(PG_FUNCTION_ARGS)
{
	(void) fcinfo;
	PG_RETURN_TEXT_P(cstring_to_text(SHOP_VERSION));
}

/* The version of the extension in this database, "none" if it is not there. */
static char *
extension_version(void)
{
	Relation relation = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple tuple;
	char *version = "none";

	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber, F_NAMEEQ, CStringGetDatum("shop"));
	scan = systable_beginscan(relation, ExtensionNameIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		bool isnull;
		Datum value = heap_getattr(tuple, Anum_pg_extension_extversion, RelationGetDescr(relation), &isnull);

		version = TextDatumGetCString(value);
	}
	systable_endscan(scan);
	table_close(relation, AccessShareLock);
	return version;
}

static void
forget(Datum arg, int cache, uint32 hash)
{
	(void) arg;
	(void) cache;
	(void) hash;
	known = false;
}

static void
compare(void)
{
	static bool registered;
	char *version;

	if (!registered)
		CacheRegisterSyscacheCallback(PROCOID, forget, (Datum) 0);
	registered = true;

	/* Reading may find that something has changed, so it counts before that. */
	known = true;
	version = extension_version();
	if (strcmp(version, SHOP_VERSION) == 0)
		return;
	known = false;
	ereport(ERROR,
		(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			errmsg("extension shop is of version %s, but the loaded library of version %s", version, SHOP_VERSION),
			errdetail("{\"extension\": \"%s\", \"library\": \"%s\"}", version, SHOP_VERSION),
			errhint(
				"Restart the server to load the library that is installed, then run ALTER EXTENSION shop UPDATE.")));
}

/* Refuses to work with SQL of another version; `changed` says that some of it may be new. */
void
shop_check_version(bool changed)
{
	if (!known || changed)
		compare();
}
