/* GLib's loop. A program with its own loop, such as a GTK one, can have tasks as well: a GSource
   waits for the run's descriptor, and each dispatch runs ready tasks, in the same thread. A GLib
   callback wakes a task.

   cc 05_glib_loop.c -o glib_loop $(pkg-config --cflags --libs glib-2.0)
   ./glib_loop

   It prints ../expected/09_io/05_glib_loop.txt.
   Hint: conc_embed_step runs ready tasks, and returns 1 while more remains. conc_post makes the
   loop call tell(&clicked) between two tasks. */
#define CONC_STATIC
#include "../../conc_sync.h"
#include <glib.h>

typedef struct {
    GSource source;
    conc_embed run;
    gpointer descriptor;
} conc_source;

static gboolean prepare(GSource *source, gint *milliseconds) /* how long to wait at most */
{
    double s = conc_embed_timeout(&((conc_source *)source)->run);
    *milliseconds = s > 3600 ? -1 : (gint)(s * 1000 + 0.999); /* none; or rounded up */
    return s == 0;
}

static gboolean check(GSource *source) /* after the wait: is there something to do? */
{
    conc_source *s = (conc_source *)source;
    bool readable = g_source_query_unix_fd(source, s->descriptor) != 0;
    return readable || conc_embed_timeout(&s->run) == 0;
}

/* Your turn: let the tasks take a step. Return G_SOURCE_CONTINUE, or, when the run is over,
   G_SOURCE_REMOVE. */
static gboolean dispatch(GSource *source, GSourceFunc callback, gpointer data)
{
    (void)callback, (void)data;
    int more = conc_embed_step(&((conc_source *)source)->run);
    return more == 1 ? G_SOURCE_CONTINUE : G_SOURCE_REMOVE;
}

static conc_event clicked;

static void tell(void *event) { conc_event_set(event); }

/* Your turn: print "callback: a click", and post tell for the event clicked to the loop. Return
   G_SOURCE_REMOVE: there is just one click. */
static gboolean click(gpointer loop)
{
    printf("callback: a click\n");
    conc_post(loop, tell, &clicked); /* the task goes on in the next dispatch */
    return G_SOURCE_REMOVE;
}

static int app(void *arg)
{
    (void)arg;
    g_timeout_add(100, click, conc_loop_self());
    printf("task: waits for a click\n");
    CONC_TRY(conc_event_wait(&clicked));
    CONC_TRY(conc_sleep(0.1));
    printf("task: done\n");
    return 0;
}

int main(void)
{
    static GSourceFuncs functions = {.prepare = prepare, .check = check, .dispatch = dispatch};
    conc_source *s = (conc_source *)g_source_new(&functions, sizeof *s);
    if (conc_embed_begin(&s->run, NULL, app, NULL) < 0)
        return 1;
    s->descriptor = g_source_add_unix_fd(&s->source, conc_embed_fd(&s->run), G_IO_IN);
    g_source_attach(&s->source, NULL);
    while (!g_source_is_destroyed(&s->source)) /* as in gtk_main */
        g_main_context_iteration(NULL, TRUE);
    int rc = conc_embed_end(&s->run);
    g_source_unref(&s->source);
    if (rc < 0)
        fprintf(stderr, "The run failed: %s\n", conc_strerror(rc));
    return rc < 0;
}
