/*
 * webhook.c
 *		libFuzzer: secrets of webhooks, and signatures with those that are good.
 */
#include "server.h"

#include <assert.h>

ResourceOwner CurrentResourceOwner;

#include "../src/sink/webhook.c"

ResourceOwner
ResourceOwnerCreate(ResourceOwner parent, const char *name)
{
	(void) parent;
	(void) name;
	return NULL;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *secret = string_of(data, size);

	if (setjmp(rejected) == 0)
	{
		shop_webhook_check_secret(secret);
		assert(strncmp(shop_webhook_signature(secret, "id", 1, "body"), "v1,", 3) == 0);
	}
	free_chunks();
	return 0;
}
