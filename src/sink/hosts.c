/*
 * hosts.c
 *		shop.allowed_hosts: which hosts events may be sent to.
 *
 * The server reaches hosts that a role cannot, so a role that may create
 * endpoints does not get to choose any of them.  While the setting is empty, a
 * superuser and the owner of the extension may name any host, others none.
 * Else it is a list of hosts for everybody: names, or *.example.com for all
 * below example.com.
 *
 * Takes no locks.
 */
#include "sink/hosts.h"

#include "error.h"
#include "miscadmin.h"
#include "utils/varlena.h"

static bool
matches(const char *host, const char *pattern)
{
	size_t length = strlen(host);
	size_t suffix = strlen(pattern) - 1;

	if (pattern[0] != '*' || pattern[1] != '.')
		return pg_strcasecmp(host, pattern) == 0;
	return length > suffix && pg_strcasecmp(host + length - suffix, pattern + 1) == 0;
}

static bool
is_listed(const char *host)
{
	List *patterns;
	ListCell *cell;

	if (!SplitGUCList(pstrdup(shop_allowed_hosts), ',', &patterns))
		return false;
	foreach (cell, patterns)
		if (matches(host, lfirst(cell)))
			return true;
	return false;
}

/* Refuses a host that the role must not name. */
void
shop_hosts_check(const char *host, Oid role)
{
	bool allowed = *shop_allowed_hosts ? is_listed(host) : superuser_arg(role) || role == GetUserId();

	if (!allowed)
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE), errmsg("host is not in shop.allowed_hosts"),
						   errdetail("{\"argument\": \"url\", \"host\": %s}", shop_json_string(host)),
						   errhint("Have a superuser add the host to shop.allowed_hosts.")));
}
