/* Two private copies in one program, this one's and that of copy_b.c: a run of one inside a task
 * of the other, and one run after the other. They do not know each other.
 */
#define CONC_STATIC
#include "all.h"

int copy_b(void);

static int app(void *arg)
{
    int rc = copy_b();
    CONC_TRY(conc_sleep(0.001));
    (void)arg;
    return rc == 5 && conc_loop_self() ? 3 : -EPROTO;
}

int main(void)
{
    return conc_run(app, NULL) != 3 || copy_b() != 5 || conc_run(app, NULL) != 3 ||
           conc_loop_self();
}
