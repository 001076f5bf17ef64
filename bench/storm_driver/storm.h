/*
 * storm.h
 *		What the parts of the driver of bench/storm share.
 *
 *		driver.c	sessions, connections, the fate of every call
 *		calls.c		what to call: a seeded generator
 *		model.c		what the clients know, and whether an answer fits it
 *		history.c	what was called and answered, for the books
 */
#ifndef STORM_H
#define STORM_H

#include <libpq-fe.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define MAX_ARGUMENTS 10
#define MAX_CALLS 4
#define MAX_STEPS 10
#define N_USERS 2000
#define N_PRODUCTS 200
#define N_RECENT 16

typedef struct Verb
{
	const char *name;
	const char *arguments; /* their names, separated by blanks */
	bool is_read;
} Verb;

/* The columns of an answer that the model looks at. */
typedef enum Field
{
	FIELD_ORDER_ID,
	FIELD_USER_ID,
	FIELD_TOTAL,
	FIELD_BALANCE,
	FIELD_AMOUNT,
	FIELD_ENTRY_ID,
	FIELD_COUPON_ID,
	FIELD_CAMPAIGN_ID,
	FIELD_REFUND_ID,
	N_FIELDS
} Field;

/* A call and, once there is one, its answer. */
typedef struct Call
{
	const Verb *verb;
	char *value[MAX_ARGUMENTS]; /* NULL: SQL's NULL */
	bool lost;					/* a try of it has got no answer */
	bool is_shared;				/* other sessions may use the same key */
	const char *repeated;		/* the answer it had before, without `replayed` */
	char outcome[40];			/* ok, the condition or the SQLSTATE of a refusal; empty: none */
	char *answer;				/* the row, or the rows of a read, as JSON */
	char *detail;				/* of a refusal */
	int n_rows;
	int64_t field[N_FIELDS];
	bool has[N_FIELDS];
	bool replayed;
	char status[16];
} Call;

/* A step is a statement, or a call if that is NULL. */
typedef struct Step
{
	const char *statement;
	Call *call;
} Step;

/* What a session does as one: a call, or a transaction. */
typedef struct Work
{
	Step step[MAX_STEPS];
	int n_steps;
	Call call[MAX_CALLS];
	int n_calls;
	int64_t user;	  /* whose it is; 0: nobody's */
	bool rolls_back;  /* that is how the transaction ends */
	bool pays;		  /* its last call pays what the one before has reserved */
	int undone;		  /* the call that ROLLBACK TO undoes; -1: none */
	int at;			  /* the step that is next, or under way */
	bool committing;  /* COMMIT has been sent */
	bool unknown;	  /* and got no answer; the first call is repeated to know more */
	int attempts;	  /* how often it was begun again */
	bool alone;		  /* nobody else was at the user's when it began */
	uint32_t version; /* of the user, then */
} Work;

typedef struct Random
{
	uint64_t state;
} Random;

/* What calls.c knows of a session. */
typedef struct Caller
{
	int number;
	Random random;
	int64_t n_works;
	Call recent[N_RECENT]; /* answered, to be repeated */
	int n_recent;
} Caller;

/* calls.c */
extern const Verb verbs[];
extern int verb_index(const Verb *verb);
extern const char *argument_of(const Call *call, const char *name);
extern void work_new(Caller *caller, Work *work);
extern void work_free(Work *work);
extern void work_pay(Work *work);
extern void caller_remember(Caller *caller, const Call *call);
extern void call_clear(Call *call);

/* model.c */
typedef struct User
{
	int64_t balance;
	int64_t newest_order;
	int64_t n_coupons;
	int64_t order[N_RECENT]; /* the latest ones, to choose from */
	int64_t coupon[N_RECENT];
	int64_t n_orders;
	int busy;		  /* works under way, or of unknown fate */
	uint32_t version; /* counts works begun */
} User;

extern User users[N_USERS + 2];
extern int64_t newest_campaign;
extern int64_t newest_product;
extern void model_open(PGconn *conn);
extern const char *model_status(int64_t order_id);
extern void model_begin(Work *work);
extern void model_refused(const Work *work, const Call *call);
extern void model_read(const Work *work, const Call *call);
extern void model_apply(const Work *work, const Call *call);
extern void model_end(Work *work);

/* history.c */
typedef struct Buffer
{
	char *data;
	size_t length;
	size_t size;
} Buffer;

extern FILE *open_file(const char *directory, const char *name);
extern void buffer_add(Buffer *buffer, const char *format, ...) __attribute__((format(printf, 2, 3)));
extern void buffer_add_json(Buffer *buffer, const char *text);
extern void history_open(const char *directory);
extern void history_call(int session, const char *isolation, const Call *call, const char *outcome);
extern void history_close(void);
extern void violation(const Call *call, const char *format, ...) __attribute__((format(printf, 2, 3)));
extern void quit(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
extern int64_t n_violations;

#endif /* STORM_H */
