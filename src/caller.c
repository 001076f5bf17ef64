/*
 * caller.c
 *		Who has called a function, and becoming its owner.
 *
 * Inside of a SECURITY DEFINER function nobody can tell whose call it is.
 * GetOuterUserId() is the session's role, which may be another: a worker
 * calls the functions of endpoints, autovacuum those of indexes, a superuser
 * those of triggers, all of them as somebody else.  So a function that acts
 * for its caller is called as that role, and becomes its owner by itself.
 *
 * Takes no locks.
 */
#include "caller.h"

#include "access/htup_details.h"
#include "catalog/pg_proc.h"
#include "miscadmin.h"
#include "utils/syscache.h"

static Oid
function_owner(Oid function)
{
	HeapTuple tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	Oid owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", function);
	owner = ((Form_pg_proc) GETSTRUCT(tuple))->proowner;
	ReleaseSysCache(tuple);
	return owner;
}

/* From here on as SECURITY DEFINER would have it; an error takes it back with the (sub)transaction. */
ShopCaller
shop_become_owner(FunctionCallInfo fcinfo)
{
	ShopCaller caller;

	GetUserIdAndSecContext(&caller.role, &caller.security);
	SetUserIdAndSecContext(function_owner(fcinfo->flinfo->fn_oid), caller.security | SECURITY_LOCAL_USERID_CHANGE);
	return caller;
}

void
shop_become_caller(ShopCaller caller)
{
	SetUserIdAndSecContext(caller.role, caller.security);
}
