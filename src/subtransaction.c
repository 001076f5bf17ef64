/*
 * subtransaction.c
 *		Runs work in a subtransaction, and undoes it if it fails.
 *
 * Undoing gives back the locks too, which is why stock.c uses it as well.
 */
#include "subtransaction.h"

#include "access/xact.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

/*
 * Runs work(arg); what it did stays if it returns true, and is undone if it
 * returns false or raises an error.  Returns the error, for the caller to
 * judge: what is not the caller's to handle goes on with ReThrowError().
 */
ErrorData *
shop_subtransaction(bool (*work)(void *arg), void *arg)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		if (work(arg))
			ReleaseCurrentSubTransaction();
		else
			RollbackAndReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return error;
}
