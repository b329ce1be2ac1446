/* A program that stops in stop_here() while a task sleeps in deep_inside(): a debugger examines
 * that task's stack. */
#define CONC_IMPLEMENTATION
#include "conc.h"

static conc_task sleeper;

/* Its frame has a base pointer if the compiler uses one. */
__attribute__((noinline)) static int deep_inside(size_t size)
{
    _Alignas(64) char aligned[64];
    char sized[size];
    memset(aligned, 42, sizeof aligned);
    __asm__ volatile("" : : "r"(aligned), "r"(sized) : "memory");
    int rc = conc_sleep(5);
    return rc + aligned[0] - 42;
}

static int sleep_deep_inside(void *arg)
{
    (void)arg;
    int rc = deep_inside(8);
    return rc ? -EIO : 0;
}

__attribute__((noinline)) static void stop_here(void) { __asm__ volatile(""); }

static int app(void *arg)
{
    conc_group g = {0};
    CONC_TRY_IN(&g, conc_spawn_task(&g, &sleeper, sleep_deep_inside, arg));
    CONC_TRY_IN(&g, conc_settle());
    stop_here();
    return conc_group_wait(&g);
}

int main(void)
{
    conc_options o = {.virtual_clock = true};
    return conc_run_with(&o, app, NULL) != 0;
}
