/* Inside the loop. Start three tasks that take 2 s each, and see where they are: in the ready queue
   at first, in the timers while they sleep. Then wait for the third one's result. (The loop never
   interrupts a task: see 10_who_interrupts.c.)

   cc 05_loop_anatomy.c -o anatomy
   ./anatomy
   CONC_CLOCK=virtual ./anatomy     # without waiting

   It prints ../expected/01_start/05_loop_anatomy.txt.
   Hint: a spawned task does not start before its spawner waits. */
#define CONC_STATIC
#include "../../conc.h"

/* The words of asyncio, in C:
   coroutine    a function int f(void *) that may wait. It needs no mark such as `async def`,
                and it is no object: it is called, or given to a task.
   event loop   what conc_main begins. It runs one ready task after the other; when none is ready,
                it sleeps until a timer is due, or input or output is possible.
   task         a call that runs beside its caller, on a stack of its own; the loop schedules it.
                It can be cancelled.
   future       the task's handle: conc_join waits for the result in it.
   await        every call that waits, such as conc_sleep or conc_join. It sets the calling task
                aside, lets the others run, and returns when the result is there. */

static void show(const char *when)
{
    conc_stats s;
    conc_get_stats(&s);
    printf("%s: %zu ready, %zu at the timers\n", when, s.ready, s.timers);
}

/* Your turn: for the number 1 print "1 starts", wait for 2 s, print "1 done", and return 101. */
static int fetch(void *number)
{
    printf("%d starts\n", *(int *)number);
    CONC_TRY(conc_sleep(2)); /* from the ready queue to the timers, and back to the queue's end */
    printf("%d done\n", *(int *)number);
    return 100 + *(int *)number;
}

/* Your turn: spawn a task of the group for each of the numbers, and show("Spawned"). Wait for 1 s,
   and show("1 s later"). Then join the third task, and return what fetch returned in it. */
static int third_result(conc_group *g, conc_task tasks[3], int numbers[3])
{
    int result = 0;
    for (size_t i = 0; i < 3; i++)
        CONC_TRY(conc_spawn_task(g, &tasks[i], fetch, &numbers[i]));
    show("Spawned");
    CONC_TRY(conc_sleep(1)); /* the three begin now */
    show("1 s later");
    CONC_TRY(conc_join(&tasks[2], &result)); /* the handle is the future */
    return result;
}

static int app(void *arg)
{
    (void)arg;
    int numbers[] = {1, 2, 3};
    conc_task tasks[3] = {0};
    conc_group g = {0};
    printf("Result of 3: %d\n", CONC_TRY_IN(&g, third_result(&g, tasks, numbers)));
    return conc_group_wait(&g);
}

int main(void) { return conc_main(app, NULL); }
