/* Common errors, each with what happens and with the cure.
 *   cc 09_common_errors.c -o errors && ./errors        (CONC_CLOCK=virtual ./errors takes no time)
 */
#define CONC_STATIC
#include "../../conc.h"
#include <poll.h>

static int save(void *arg)
{
    (void)arg;
    CONC_TRY(conc_sleep(1));
    printf("  saved\n");
    return 0;
}

static int send_mail(void *arg)
{
    (void)arg;
    return conc_fail(-ECONNREFUSED, "the mail server is down");
}

/* 1. "coroutine was never awaited". In C a call is made, whatever is done with it; what gets
 * lost is its result. Where
 *    that is most often a mistake, as with conc_group_wait, the compiler warns. */

static int ignored_result(void *arg)
{
    (void)arg;
    send_mail(NULL);
    printf("  the mail is taken for sent\n");
    return 0;
}

static int passed_on(void *arg)
{
    (void)arg;
    CONC_TRY(send_mail(NULL));
    printf("  not reached\n");
    return 0;
}

/* 2. "Task was destroyed but it is pending", "Task exception was never retrieved". What nobody
 * waits for is cancelled
 *    when the run ends, and its error is reported then. A group waits. */

static int forgotten_tasks(void *arg)
{
    (void)arg;
    CONC_TRY(conc_spawn(NULL, save, NULL));
    CONC_TRY(conc_spawn(NULL, send_mail, NULL));
    printf("  nobody waits for the tasks\n");
    return 0;
}

static int awaited_tasks(void *arg)
{
    (void)arg;
    conc_group g = {.keep_going = true}; /* one failure does not cancel the other task */
    CONC_TRY_IN(&g, conc_spawn(&g, save, NULL));
    CONC_TRY_IN(&g, conc_spawn(&g, send_mail, NULL));
    return conc_group_wait(&g);
}

/* 3. "asyncio.run() cannot be called from a running event loop": there is one already. Just call
 * the function. */

static int nested_run(void *arg)
{
    (void)arg;
    int rc = conc_run(save, NULL);
    printf("  conc_run returns %s: %s\n", rc == -EBUSY ? "-EBUSY" : "something else",
           conc_strerror(rc));
    return 0;
}

static int plain_call(void *arg)
{
    (void)arg;
    return save(NULL);
}

/* 4. "This event loop is already running": it is somebody else's, that of a window toolkit, a
 * game or a notebook. conc_run
 *    would hold it up; conc_embed_step does what there is to do and returns. */

static int loop_of_a_game(void)
{
    conc_embed e = {0};
    CONC_TRY(conc_embed_begin(&e, NULL, save, NULL));
    do {
        struct pollfd events = {.fd = conc_embed_fd(&e), .events = POLLIN};
        poll(&events, 1, conc_embed_timeout(&e) < 0.02 ? 0 : 20); /* 50 pictures a second */
        /* here the game draws one */
    } while (conc_embed_step(&e) == 1);
    return conc_embed_end(&e);
}

static int reports;

static void on_error(const conc_failure *f, void *arg) /* without it they go to stderr */
{
    (void)arg;
    reports++;
    printf("  reported: %s: %s\n", f->task, f->text);
}

static void run(const char *title, conc_fn *fn)
{
    printf("%s\n", title);
    int rc = conc_run_with(&(conc_options){.on_error = on_error}, fn, NULL);
    printf("  the run returns %s\n", rc < 0 ? conc_strerror(rc) : "0");
}

int main(void)
{
    run("1. A result that nobody looks at", ignored_result);
    run("   passed on with CONC_TRY", passed_on);
    run("2. Tasks that nobody waits for", forgotten_tasks);
    run("   in a group", awaited_tasks);
    run("3. A run inside a run", nested_run);
    run("   a plain call", plain_call);
    printf("4. A run step by step, inside another loop\n");
    int rc = loop_of_a_game();
    printf("  the run returns %s\n", rc < 0 ? conc_strerror(rc) : "0");
    printf("5. A call that waits, outside of any run\n");
    printf("  conc_sleep in main: %s\n", conc_strerror(conc_sleep(1)));
    return reports == 1 ? rc < 0 : 1;
}
