/*
 * webhook.c
 *		Signatures as Standard Webhooks has them.
 *
 * https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
 * A secret is "whsec_" and 24 to 64 bytes in base64; while one is replaced by
 * another there are two, separated by a space, and a signature by each.
 *
 * Takes no locks.
 */
#include "sink/sink.h"

#include "common/base64.h"
#include "common/hmac.h"
#include "common/sha2.h"
#include "error.h"
#include "lib/stringinfo.h"
#include "utils/resowner.h"

#define SECRET_PREFIX "whsec_"
#define SECRET_MIN 24
#define SECRET_MAX 64
#define MAX_SECRETS 2

typedef struct Secret
{
	uint8 bytes[SECRET_MAX];
	int length;
} Secret;

/* Decodes one secret of `length` characters; false if it is none. */
static bool
decode_secret(const char *text, int length, Secret *secret)
{
	int prefix = strlen(SECRET_PREFIX);
	ShopByte *decoded;
	int n;

	if (length <= prefix || strncmp(text, SECRET_PREFIX, prefix) != 0)
		return false;
	n = pg_b64_dec_len(length - prefix);
	decoded = palloc(n);
	n = pg_b64_decode(text + prefix, length - prefix, decoded, n);
	if (n < SECRET_MIN || n > SECRET_MAX)
		return false;
	memcpy(secret->bytes, decoded, n);
	secret->length = n;
	explicit_bzero(decoded, n);
	pfree(decoded);
	return true;
}

/* Decodes all secrets; returns how many, or 0 if one of them is none. */
static int
decode_secrets(const char *text, Secret *secrets)
{
	int n = 0;

	for (const char *start = text; *start;)
	{
		int length = strcspn(start, " ");

		if (n == MAX_SECRETS || !decode_secret(start, length, &secrets[n++]))
			return 0;
		start += length;
		start += strspn(start, " ");
	}
	return n;
}

void
shop_webhook_check_secret(const char *secret)
{
	Secret secrets[MAX_SECRETS];

	if (decode_secrets(secret, secrets) == 0)
		shop_reject("secret", "must be whsec_ and 24 to 64 bytes in base64, or two such secrets separated by a space");
}

static void
append_signature(StringInfo result, const Secret *secret, const char *signed_content, size_t length)
{
	uint8 digest[PG_SHA256_DIGEST_LENGTH];
	char encoded[64];
	pg_hmac_ctx *context = pg_hmac_create(PG_SHA256);
	int n;

	if (context == NULL || pg_hmac_init(context, secret->bytes, secret->length) < 0 ||
		pg_hmac_update(context, (const uint8 *) signed_content, length) < 0 ||
		pg_hmac_final(context, digest, sizeof(digest)) < 0)
		elog(ERROR, "could not sign a webhook: %s", context ? pg_hmac_error(context) : "out of memory");
	pg_hmac_free(context);
	n = pg_b64_encode((const ShopByte *) digest, sizeof(digest), encoded, sizeof(encoded) - 1);
	appendStringInfo(result, "%sv1,%.*s", result->len > 0 ? " " : "", n, encoded);
}

/* PostgreSQL's HMAC wants a resource owner, which there is none of outside of transactions. */
static ResourceOwner
own_resources(void)
{
	static ResourceOwner owner = NULL;
	ResourceOwner before = CurrentResourceOwner;

	if (owner == NULL)
		owner = ResourceOwnerCreate(NULL, "shop webhook");
	CurrentResourceOwner = owner;
	return before;
}

/* The value of webhook-signature for a message sent at `timestamp` (s). */
char *
shop_webhook_signature(const char *secret, const char *id, int64 timestamp, const char *body)
{
	Secret secrets[MAX_SECRETS];
	int n = decode_secrets(secret, secrets);
	ResourceOwner before = own_resources();
	StringInfoData content;
	StringInfoData result;

	initStringInfo(&content);
	initStringInfo(&result);
	appendStringInfo(&content, "%s." INT64_FORMAT ".%s", id, timestamp, body);
	for (int i = 0; i < n; i++)
		append_signature(&result, &secrets[i], content.data, content.len);
	CurrentResourceOwner = before;
	explicit_bzero(secrets, sizeof(secrets));
	pfree(content.data);
	return result.data;
}
