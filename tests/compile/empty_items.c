/* Items without bytes are put and received with NULL, which GCC notices when it inlines the
 * calls. */
#define CONC_STATIC
#include "all.h"

static conc_channel channel = {.capacity = 4};

static int app(void *arg)
{
    conc_queue queue = {.capacity = 1};
    (void)arg;
    CONC_TRY(conc_channel_try_send(&channel, NULL));
    CONC_TRY(conc_channel_try_recv(&channel, NULL));
    int rc = conc_queue_try_put(&queue, NULL);
    conc_queue_destroy(&queue);
    conc_channel_destroy(&channel);
    return rc;
}

int main(void) { return conc_run(app, NULL); }
