/* conc inside another loop, here GLib's: a GSource waits for the run's descriptor, and each
 * dispatch runs what is ready. A callback of GLib's wakes a task, and tasks and callbacks share the
 * thread.
 *   cc 05_glib_loop.c -o glib_loop $(pkg-config --cflags --libs glib-2.0) && ./glib_loop
 */
#define CONC_STATIC
#include "../../conc_sync.h"
#include <glib.h>

/* ---- The source: for any program with GLib -------------------------------------------------- */

typedef struct {
    GSource source;
    conc_embed run;
    gpointer descriptor;
} conc_source;

static gboolean prepare(GSource *source, gint *milliseconds)
{
    double s = conc_embed_timeout(&((conc_source *)source)->run);
    *milliseconds = s > 3600 ? -1 : (gint)(s * 1000 + 0.999); /* none; or rounded up */
    return s == 0;
}

static gboolean check(GSource *source)
{
    conc_source *s = (conc_source *)source;
    bool readable = g_source_query_unix_fd(source, s->descriptor) != 0;
    return readable || conc_embed_timeout(&s->run) == 0;
}

static gboolean dispatch(GSource *source, GSourceFunc over, gpointer data)
{
    if (conc_embed_step(&((conc_source *)source)->run) == 1)
        return G_SOURCE_CONTINUE;
    over(data);
    return G_SOURCE_REMOVE;
}

static GSourceFuncs functions = {.prepare = prepare, .check = check, .dispatch = dispatch};

/* ---- The program ---------------------------------------------------------------------------- */

static conc_event clicked;

static void tell(void *event) { conc_event_set(event); }

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
    return printf("task: done\n");
}

static gboolean over(gpointer loop)
{
    g_main_loop_quit(loop);
    return G_SOURCE_REMOVE;
}

int main(void)
{
    GMainLoop *loop = g_main_loop_new(NULL, FALSE);
    conc_source *s = (conc_source *)g_source_new(&functions, sizeof *s);
    int rc = conc_embed_begin(&s->run, NULL, app, NULL);
    if (rc) {
        fprintf(stderr, "%s\n", conc_last_error());
        return 1;
    }
    s->descriptor = g_source_add_unix_fd(&s->source, conc_embed_fd(&s->run), G_IO_IN);
    g_source_set_callback(&s->source, over, loop, NULL);
    g_source_attach(&s->source, NULL);
    g_main_loop_run(loop);
    rc = conc_embed_end(&s->run);
    g_source_unref(&s->source);
    g_main_loop_unref(loop);
    return rc < 0;
}
