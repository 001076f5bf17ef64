/*
 * compat.h
 *		Everything that differs between the PostgreSQL majors the extension
 *		compiles against, and nothing else.
 */
#ifndef SHOP_COMPAT_H
#define SHOP_COMPAT_H

#include "catalog/pg_database.h"
#include "catalog/pg_proc.h"
#include "storage/proc.h"
#include "utils/acl.h"

/* The number that tells this backend from the others running now, from 0. */
#if PG_VERSION_NUM >= 170000
#define SHOP_BACKEND_NUMBER() (MyProcNumber)
#else
#include "storage/backendid.h"
#define SHOP_BACKEND_NUMBER() (MyBackendId)
#endif

/* May this role call this function? */
#if PG_VERSION_NUM >= 160000
#define SHOP_MAY_EXECUTE(proc, role) (object_aclcheck(ProcedureRelationId, (proc), (role), ACL_EXECUTE) == ACLCHECK_OK)
#else
#define SHOP_MAY_EXECUTE(proc, role) (pg_proc_aclcheck((proc), (role), ACL_EXECUTE) == ACLCHECK_OK)
#endif

/* Does this role own this database? */
#if PG_VERSION_NUM >= 160000
#define SHOP_OWNS_DATABASE(database, role) object_ownercheck(DatabaseRelationId, (database), (role))
#else
#define SHOP_OWNS_DATABASE(database, role) pg_database_ownercheck((database), (role))
#endif

/* DecodeDateTime() got an argument for details that we do not want. */
#if PG_VERSION_NUM >= 160000
#define SHOP_DECODE_DATETIME(field, ftype, nf, dtype, tm, fsec, tz) \
	DecodeDateTime((field), (ftype), (nf), (dtype), (tm), (fsec), (tz), &(DateTimeErrorExtra){0})
#else
#define SHOP_DECODE_DATETIME(field, ftype, nf, dtype, tm, fsec, tz) \
	DecodeDateTime((field), (ftype), (nf), (dtype), (tm), (fsec), (tz))
#endif

/* Before 16, PGDLLEXPORT is empty on Unix; the library is built with hidden symbols. */
#if PG_VERSION_NUM < 160000
#undef PGDLLEXPORT
#define PGDLLEXPORT __attribute__((visibility("default")))
#endif

/* Declares a function that SQL can call. */
#define SHOP_FUNCTION(name) \
	extern PGDLLEXPORT Datum name(PG_FUNCTION_ARGS); \
	PG_FUNCTION_INFO_V1(name)

/* A server built with gcc names its printf format in a way that clang does not know. */
#ifdef __clang__
#undef PG_PRINTF_ATTRIBUTE
#define PG_PRINTF_ATTRIBUTE printf
#endif

/* An index scan got room for statistics that we do not collect. */
#if PG_VERSION_NUM >= 180000
#define SHOP_INDEX_BEGINSCAN(table, index, snapshot, keys) \
	index_beginscan((table), (index), (snapshot), NULL, (keys), 0)
#else
#define SHOP_INDEX_BEGINSCAN(table, index, snapshot, keys) index_beginscan((table), (index), (snapshot), (keys), 0)
#endif

/* An update tells which kinds of index want an entry for the new version of the row. */
#if PG_VERSION_NUM >= 160000
#define SHOP_UPDATED_INDEXES TU_UpdateIndexes
#define SHOP_ANY_INDEX_UPDATED(indexes) ((indexes) != TU_None)
#define SHOP_INSERT_INDEX_ENTRIES(result, row, estate, indexes) \
	ExecInsertIndexTuples((result), (row), (estate), true, false, NULL, NIL, (indexes) == TU_Summarizing)
#else
#define SHOP_UPDATED_INDEXES bool
#define SHOP_ANY_INDEX_UPDATED(indexes) (indexes)
#define SHOP_INSERT_INDEX_ENTRIES(result, row, estate, indexes) \
	((void) (indexes), ExecInsertIndexTuples((result), (row), (estate), true, false, NULL, NIL))
#endif

/* A proc number names a process's entry in shared memory. */
#if PG_VERSION_NUM >= 170000
#define SHOP_PROC_BY_NUMBER(n) GetPGProcByNumber(n)
#else
#define SHOP_PROC_BY_NUMBER(n) (&ProcGlobal->allProcs[n])
#endif
#if PG_VERSION_NUM >= 170000
#define SHOP_MY_PROC_NUMBER() (MyProcNumber)
#else
#define SHOP_MY_PROC_NUMBER() (MyProc->pgprocno)
#endif

/* A function that does not return; this comes first in its declaration. */
#if PG_VERSION_NUM >= 180000
#define SHOP_NORETURN pg_noreturn
#else
#define SHOP_NORETURN pg_attribute_noreturn()
#endif

/* Is this process a background worker? */
#if PG_VERSION_NUM >= 170000
#define SHOP_IS_BACKGROUND_WORKER() AmBackgroundWorkerProcess()
#else
#define SHOP_IS_BACKGROUND_WORKER() (IsBackgroundWorker)
#endif

/* A primary key may be deferrable; ours are not. */
#if PG_VERSION_NUM >= 180000
#define SHOP_PRIMARY_KEY_INDEX(table) RelationGetPrimaryKeyIndex((table), false)
#else
#define SHOP_PRIMARY_KEY_INDEX(table) RelationGetPrimaryKeyIndex(table)
#endif

/* What base64 is made of. */
#if PG_VERSION_NUM >= 180000
typedef uint8 ShopByte;
#else
typedef char ShopByte;
#endif

/* What a setting's check hook hands over is freed by PostgreSQL, since 16 with pfree(). */
#if PG_VERSION_NUM >= 160000
#define SHOP_SETTING_ALLOC(size) guc_malloc(LOG, (size))
#else
#define SHOP_SETTING_ALLOC(size) malloc(size)
#endif

#endif /* SHOP_COMPAT_H */
