/* parked.c - two threads with a run each. When all_parked() is called all tasks wait, except for
 * the two that block their threads there, and one that has not started. A debugger then examines
 * them: the program never ends by itself. */
#ifndef CONC_STATIC
#define CONC_IMPLEMENTATION
#endif
#ifdef NO_GUARD_ADVICE /* guard regions are made by mprotect */
#include <errno.h>
#include <sys/mman.h>
static int refuse(void *at, size_t size, int advice)
{
    (void)at, (void)size, (void)advice;
    errno = EINVAL;
    return -1;
}
#define madvise refuse
#endif
#include "conc_sync.h"

#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>

static conc_lock lock;
static conc_queue jobs = CONC_QUEUE(int, 1);
static conc_task sleeping, stubborn_task;
static sem_t other_parked, never;

static volatile int depth; /* does something after a call, which is then no tail call */

__attribute__((noinline)) static int deepest(void)
{
    int rc = conc_sleep(CONC_FOREVER);
    depth--;
    return rc;
}

__attribute__((noinline)) static int deeper(void)
{
    int rc = deepest();
    depth--;
    return rc;
}

__attribute__((noinline)) static int deep(void)
{
    int rc = deeper();
    depth--;
    return rc;
}

static int dives(void *arg)
{
    (void)arg;
    conc_set_name(conc_self(), "the diver");
    int rc = deep();
    depth--;
    return rc;
}

static int sleeps(void *arg)
{
    (void)arg;
    return conc_sleep(CONC_FOREVER);
}

static int sleeps_an_hour(void *arg)
{
    (void)arg;
    return conc_sleep(3600);
}

static int locks(void *arg)
{
    (void)arg;
    CONC_LOCKED(&lock) {
        CONC_TRY(conc_sleep(CONC_FOREVER));
    }
    return 0;
}

static int joins(void *arg)
{
    int rc = conc_join(arg, NULL);
    depth--;
    return rc;
}

static int gets(void *arg)
{
    int job;
    (void)arg;
    return conc_queue_get(&jobs, &job);
}

static int emits(conc_gen *g, void *arg)
{
    (void)arg;
    CONC_TRY(conc_sleep(CONC_FOREVER));
    return conc_gen_emit(g, NULL);
}

static int consumes(void *arg)
{
    conc_gen g = {0};
    CONC_TRY(conc_gen_open(&g, emits, arg, 0));
    int rc = conc_gen_next(&g, NULL);
    conc_gen_close(&g);
    return rc;
}

static int shields(void *arg) { return conc_shield(CONC_FOREVER, sleeps, arg); }

/* It cannot end before its child, which no cancel reaches. */
static int is_stubborn(void *arg)
{
    conc_group g = {0};
    CONC_TRY_IN(&g, conc_spawn(&g, shields, arg));
    return conc_group_wait(&g);
}

static int nests(void *arg)
{
    conc_group outer = {0}, inner = {0};
    CONC_TRY_IN(&outer, conc_spawn(&outer, gets, arg));
    CONC_TRY_IN(&inner, conc_spawn(&inner, locks, arg));
    CONC_TRY_IN(&inner, conc_spawn(&inner, dives, arg));
    int rc = conc_group_wait(&inner);
    return conc_group_end(&outer, rc);
}

static int never_starts(void *arg)
{
    (void)arg;
    return 0;
}

__attribute__((noinline)) static void all_parked(void) { __asm__ volatile(""); }

static int app(void *arg)
{
    conc_group g = {0};
    CONC_TRY_IN(&g, conc_spawn_task(&g, &sleeping, sleeps, arg));
    CONC_TRY_IN(&g, conc_spawn(&g, sleeps_an_hour, arg));
    CONC_TRY_IN(&g, conc_spawn(&g, joins, &sleeping));
    CONC_TRY_IN(&g, conc_spawn(&g, locks, arg));
    CONC_TRY_IN(&g, conc_settle()); /* it owns the lock that the next one waits for */
    CONC_TRY_IN(&g, conc_spawn(&g, nests, arg));
    CONC_TRY_IN(&g, conc_spawn(&g, consumes, arg));
    CONC_TRY_IN(&g, conc_spawn_task(&g, &stubborn_task, is_stubborn, arg));
    CONC_TRY_IN(&g, conc_spawn(NULL, sleeps, arg));
    CONC_TRY_IN(&g, conc_settle());
    CONC_TRY_IN(&g, conc_cancel(&stubborn_task));
    CONC_TRY_IN(&g, conc_settle());
    CONC_TRY_IN(&g, conc_spawn(&g, never_starts, arg));
    sem_wait(&other_parked);
    all_parked();
    return conc_group_wait(&g);
}

/* Blocks the other thread once everything else there waits. */
static int announces(void *arg)
{
    int rc = conc_settle();
    sem_post(&other_parked);
    sem_wait(arg);
    return rc;
}

static int other_app(void *arg)
{
    conc_group g = {0};
    CONC_TRY_IN(&g, conc_spawn(&g, sleeps_an_hour, arg));
    CONC_TRY_IN(&g, conc_spawn(&g, announces, &never));
    return conc_group_wait(&g);
}

static void *other_thread(void *arg)
{
    conc_options o = {.virtual_clock = true};
    if (conc_run_with(&o, other_app, arg))
        fprintf(stderr, "the other thread's run failed\n");
    return NULL;
}

__attribute__((noinline)) static void no_run_yet(void) { __asm__ volatile("nop"); }

int main(void)
{
    pthread_t other;
    no_run_yet();
    sem_init(&other_parked, 0, 0);
    sem_init(&never, 0, 0);
    if (pthread_create(&other, NULL, other_thread, NULL))
        return 1;
    conc_options o = {.virtual_clock = true};
    return conc_run_with(&o, app, NULL) != 0;
}
