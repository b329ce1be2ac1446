/* conc.h - v0.1.0 - tasks, groups, cancellation and time on an event loop, for C - MIT licence
 *
 * What asyncio and trio give a Python program, in one header: tasks that are plain functions on their own small
 * stacks, groups that wait for all their children, cancellation that reaches every wait, timeouts that are scopes.
 *
 * Do this in exactly one C file, and include the header plainly everywhere else:
 *
 *     #define CONC_IMPLEMENTATION
 *     #include "conc.h"
 *
 *     static int hello(void *name)
 *     {
 *         CONC_TRY(conc_sleep(1));
 *         return printf("hello, %s\n", (char *)name);
 *     }
 *     static int app(void *arg)
 *     {
 *         (void)arg;
 *         return CONC_GATHER(CONC_CALL(hello, "you"), CONC_CALL(hello, "and you"));    -- both, in one second
 *     }
 *     int main(void) { return conc_main(app, NULL); }
 *
 * Nothing is to be linked or installed: cc file.c. C11 and later, GCC or Clang; a C++17 file can include and call the
 * declarations.
 *
 * Conventions, said once
 *   Results   0 or a count is success, a negative errno is failure. errno itself is left alone; each task has its own.
 *   Calling   a call that says nothing else may be made from any task; outside a run it returns -EPERM. In a function
 *             given to conc_post nothing may wait: what would wait returns -EPERM there.
 *   Waiting   "Waits" marks a checkpoint: the call may let other tasks run, and returns -ECANCELED, having had no
 *             effect, when a scope around it is cancelled or out of time: clean up and return.
 *   Threads   a task stays on the thread of its run. Only conc_post and the two hold calls may come from other threads.
 *   Time      is in seconds, as a double, rounded up to whole nanoseconds inside; nothing ever wakes early.
 *   Memory    an all-zero object is valid; options are its first fields, and zero is their default. `arg` is borrowed
 *             until the task ended. conc frees only what it allocated; out of memory is -ENOMEM, never an abort.
 *   Misuse    that can be told is -EINVAL (a bad argument, the wrong order), -EPERM (not the owner, not in a task),
 *             -EDEADLK (on oneself) or -EBUSY (in use), and changes nothing. A function that returned with a group or
 *             scope of its own still open has lost memory already: conc says which and where, and aborts.
 *
 * Options, all to be defined before the include that has CONC_IMPLEMENTATION
 *   CONC_STATIC          every function static: a private copy for this file, a world of its own
 *   CONC_API             put before every function; by default hidden visibility
 *   CONC_STACK_SIZE      bytes of a task's stack (256 KiB of address space, committed as touched)
 *   CONC_MALLOC(n), CONC_REALLOC(p, n), CONC_FREE(p)    all three or none (malloc, realloc, free)
 *   CONC_TLS             attribute of the one thread-local pointer, such as __attribute__((tls_model("initial-exec")))
 *   CONC_NO_ENV          the environment variables below are not read
 *   CONC_NO_EPOLL        the loop waits with poll(2), as it does wherever there is no epoll
 *   CONC_USE_UCONTEXT    stacks are switched by ucontext, as on processors without a switch of their own here
 *   CONC_SAVE_FPU        each task keeps its own floating-point control state (rounding, exception masks)
 *
 * Environment: CONC_DEBUG=1, CONC_CLOCK=virtual, CONC_SEED=7, CONC_POLL=poll|epoll, CONC_STACK=bytes override the
 * options of a run; they are not read in a set-user-ID program. A value that makes no sense fails the run: -EINVAL.
 *
 * Contents: >>version >>run >>time >>scopes >>groups >>tasks >>errors >>locals >>generators >>loops >>reports, then
 * the implementation, whose sections are listed where it starts, then the licence.
 * */
#ifndef CONC_H
#define CONC_H

/* A strict -std=c11 hides what the implementation needs of POSIX; this asks for it, before any system header. */
#if defined __STRICT_ANSI__ && !defined _DEFAULT_SOURCE
#define _DEFAULT_SOURCE 1
#endif

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifndef CONC_API
#ifdef CONC_STATIC
#define CONC_API static __attribute__((unused))
#else
#define CONC_API __attribute__((visibility("hidden")))
#endif
#endif

#define CONC_NODISCARD __attribute__((__warn_unused_result__))

/* "file.c:12", and " at file.c:12" behind a function's name: how tasks, groups and scopes say where they come from */
#define CONC__STRING(x) #x
#define CONC__LINE(x) CONC__STRING(x)
#define CONC__PLACE __FILE__ ":" CONC__LINE(__LINE__)
#define CONC__NAMED(fn) #fn " at " CONC__PLACE
#define CONC__JOIN(a, b) CONC__JOIN2(a, b)
#define CONC__JOIN2(a, b) a##b

/* ---- >>version ---------------------------------------------------------------------------------------------- */

#define CONC_VERSION_MAJOR 0
#define CONC_VERSION_MINOR 1
#define CONC_VERSION_PATCH 0
#define CONC_VERSION "0.1.0"

/* The version of the implementation that was linked; CONC_VERSION is that of the header. Callable from anywhere. */
CONC_API const char *conc_version(void);

/* ---- >>run -------------------------------------------------------------------------------------------------- */

typedef struct conc_loop conc_loop;   /* the event loop of one run; there is at most one in a thread */
typedef struct conc_task conc_task;   /* a running function with a stack of its own */
typedef struct conc_group conc_group; /* a set of tasks that are waited for together */
typedef struct conc_scope conc_scope; /* a stretch of code that can be cancelled or run out of time */
typedef struct conc_gen conc_gen;     /* a function that hands out items one by one */

/* The body of a task: 0 or more is success, negative is an error. */
typedef int conc_fn(void *arg);

/* What on_error is told. The strings are borrowed until the hook returns. */
typedef struct conc_failure {
    const char *task;  /* the task's name */
    const char *place; /* where it was spawned: "file.c:12" */
    const char *text;  /* conc_fail's words, or conc_strerror's */
    int rc;            /* the negative errno */
} conc_failure;

typedef struct conc_options {
    size_t stack_size;  /* bytes for a task, at least 1024; 0: CONC_STACK_SIZE. main_fn never gets less than that */
    bool virtual_clock; /* when nothing can run, time jumps to the next deadline; it starts at 0 */
    uint64_t seed;      /* not 0: ready tasks run in a random order that the seed repeats */
    bool debug;         /* checks and reports */
    double slow_step;   /* seconds; debug: report a task that holds the loop longer; 0: 0.1 */
    bool interrupt;     /* SIGINT or SIGTERM cancels main_fn, the run returns -EINTR (-ENOTSUP in this version) */
    const char *trace;  /* write a trace of all tasks to this file (-ENOTSUP in this version) */
    void (*on_error)(const conc_failure *f, void *user); /* errors nobody collected; NULL: print to stderr. It runs on
                                                            the loop, between two tasks, as a posted function does */
    void *user;                                          /* handed to on_error */
} conc_options;

/* Runs main_fn(arg) as the first task of a new loop on this thread, until it and every other task ended. Returns its
 * result. Errors: -EBUSY inside a run, -EINVAL (NULL function or senseless options), -ENOMEM, -ENOTSUP (a processor's
 * shadow stack is on), or that of the system call that failed; -EDEADLK when every task waited for ever. At the end
 * background tasks are cancelled and waited for, and generators left open are closed. Callable from any thread. */
CONC_API int conc_run(conc_fn *main_fn, void *arg);
CONC_API int conc_run_with(const conc_options *options, conc_fn *main_fn, void *arg);

/* For `return conc_main(app, NULL);` in main(): conc_run, then an exit status: 0, or 1 after it printed the error with
 * the task it came from, its place and text to stderr.
 *     int conc_main(conc_fn *main_fn, void *arg); */
#define conc_main(main_fn, ...) conc__main(CONC__NAMED(main_fn), (main_fn), __VA_ARGS__)
CONC_API int conc__main(const char *spawned, conc_fn *main_fn, void *arg);

/* A random number, low <= x < high (low when high is not above it). Repeats from run to run under a seed or on the
 * virtual clock; not for secrets. Outside a run it returns low. */
CONC_API double conc_random(double low, double high);

/* ---- >>time ------------------------------------------------------------------------------------------------- */

#define CONC_FOREVER 1e300 /* as a timeout: none; as a deadline: never */

/* Seconds on the loop's clock: monotonic with an arbitrary start, or the virtual clock. Outside a run the monotonic
 * one. */
CONC_API double conc_now(void);

/* Sleeps s seconds, or until conc_now() is t. Waits. What is already due yields once. NaN: -EINVAL. */
CONC_API int conc_sleep(double s);
CONC_API int conc_sleep_until(double t);

/* Lets every task that is ready run once (under a seed: some of them). Waits. */
CONC_API int conc_yield(void);

/* Holds the whole loop for s seconds, as a long computation or a blocking call would: for demonstrations and tests. On
 * the virtual clock it moves time by s. Then limits that passed meanwhile are in force. NaN: -EINVAL. Not a
 * checkpoint. */
CONC_API int conc_block(double s);

/* Returns when every other task waits and nothing is ready; time does not move for it. For tests. Waits. */
CONC_API int conc_settle(void);

/* ---- >>scopes ----------------------------------------------------------------------------------------------- */

typedef struct conc__wait conc__wait;

typedef struct conc__waits {
    conc__wait *first, *last;
} conc__waits;

typedef struct conc__timer {
    struct conc__timer *next, *prev; /* NULL next: not armed */
    int64_t at;                      /* ns */
    void (*fire)(struct conc__timer *timer);
} conc__timer;

/* One use each: zero it to use it again. The three flags stay readable after the end. */
struct conc_scope {
    bool cancel_called; /* it was cancelled, by a call or by its time limit */
    bool cancel_caught; /* its end turned -ECANCELED into -ETIMEDOUT or 0 */
    bool expired;       /* its time limit passed while it was open and not cancelled */
    /* private */
    bool shielded, effective, is_group;
    int state;
    conc_task *task;
    conc_scope *outer, *inner;
    conc__timer timer;
    const char *place;
};

/* Opens a scope for the calling task, inside those it has open. After timeout seconds (CONC_FOREVER: never; 0 or
 * less: at once) every checkpoint inside returns -ECANCELED until the scope is left.
 *     int conc_scope_begin(conc_scope *s, double timeout);
 * Errors: -EINVAL (NULL, NaN, used before). Not a checkpoint. */
#define conc_scope_begin(s, timeout) conc__scope_begin((s), (timeout), "the scope opened at " CONC__PLACE)
CONC_API int conc__scope_begin(conc_scope *s, double timeout, const char *place);

/* Leaves the task's innermost scope with the block's result, and returns the result to go on with. Only an -ECANCELED
 * that this scope caused is changed: to -ETIMEDOUT by its time limit, to 0 by conc_scope_cancel. When an outer scope
 * is cancelled too, -ECANCELED passes through. Errors, changing nothing: -EINVAL (not open, not the innermost), -EPERM
 * (another task's). Not a checkpoint. */
CONC_API int conc_scope_end(conc_scope *s, int rc) CONC_NODISCARD;

/* Cancels everything inside, until the scope is left; what waits there wakes up. Nothing happens to a scope that is
 * not open. From any task or posted function of the loop. */
CONC_API void conc_scope_cancel(conc_scope *s);

/* Sets the time limit anew, counted from now; takes effect at once, also while the task waits. Errors: -EINVAL (NaN,
 * not open, cancelled already). From any task or posted function of the loop. */
CONC_API int conc_scope_set_timeout(conc_scope *s, double s_from_now);

/* While on, cancels and time limits from outside do not reach the inside; the scope's own do. Takes effect at once,
 * also while the task waits. From any task or posted function of the loop. */
CONC_API void conc_scope_shield(conc_scope *s, bool on);

/* fn(arg) here and now, with s seconds to end in (asyncio.wait_for): its result, or -ETIMEDOUT once it ended after the
 * limit with -ECANCELED. Waits as fn does. -EINVAL: NULL fn, NaN. */
CONC_API int conc_timeout(double s, conc_fn *fn, void *arg);

/* fn(arg) here and now, with cancels from outside hidden: for cleaning up. grace bounds it, in seconds. Results as
 * above. */
CONC_API int conc_shield(double grace, conc_fn *fn, void *arg);

/* The nearest deadline that applies here, on conc_now's clock: CONC_FOREVER without one, -CONC_FOREVER once cancelled.
 * Outside a task CONC_FOREVER. */
CONC_API double conc_deadline(void);

/* Would a checkpoint here return -ECANCELED? For long computations. Outside a task: false. */
CONC_API bool conc_cancelled(void);

/* ---- >>groups ----------------------------------------------------------------------------------------------- */

/* One use each. The first field group is yours to set before the first spawn. */
struct conc_group {
    int limit;         /* children at once; a spawn over it waits; 0: no limit */
    bool keep_going;   /* a child's error does not cancel the others */
    size_t stack_size; /* bytes for each child, at least 1024; 0: the run's */
    int error;         /* the first failure: a child's, or the body's own */
    int error_count;   /* all failures */
    /* private */
    int live;
    bool cut_short, background;
    conc_task *children, *finished, *last_finished;
    int live_handles;
    const char *error_by;
    conc__waits room, next, empty;
    conc_scope scope;
    char text[128];
};

/* Opens the group here, as a scope of the calling task, which is its owner. The first spawn does the same.
 *     int conc_group_begin(conc_group *g);
 * Errors: -EINVAL (NULL, used before, negative limit). Not a checkpoint. */
#define conc_group_begin(g) conc__group_begin((g), "the group opened at " CONC__PLACE)
CONC_API int conc__group_begin(conc_group *g, const char *place);

/* Starts fn(arg) as a task of the group; g NULL: of the run's own background group, which the run's end cancels.
 * Returns 0 at once, and fn runs when the caller waits next; 0 guarantees that it runs. Waits only under a limit that
 * is reached.
 *     int conc_spawn(conc_group *g, conc_fn *fn, void *arg);
 * Errors, fn is not run and arg stays yours: -ECANCELED (the group is cancelled, or the caller while it waited for
 * room), -EINVAL (NULL fn, a group that was closed), -ENOMEM, -EPERM (another loop's group). */
#define conc_spawn(g, fn, ...) conc__spawn((g), CONC__NAMED(fn), (fn), __VA_ARGS__)
CONC_API int conc__spawn(conc_group *g, const char *spawned, conc_fn *fn, void *arg);

/* The same with a handle, in storage of yours, of any content, that stays where it is until the task was joined, was
 * returned by conc_group_next, or its group closed. -EBUSY: the handle is in use.
 *     int conc_spawn_task(conc_group *g, conc_task *t, conc_fn *fn, void *arg); */
#define conc_spawn_task(g, t, fn, ...) conc__spawn_task((g), (t), CONC__NAMED(fn), (fn), __VA_ARGS__)
CONC_API int conc__spawn_task(conc_group *g, conc_task *t, const char *spawned, conc_fn *fn, void *arg);

/* Starts fn as conc_spawn does, and waits until it called conc_started(value): returns value. When fn ended before
 * that its error is returned (-EINVAL if it had none) and the group is as before. A cancel of the caller cancels fn,
 * and is returned when fn ended. Waits.
 *     int conc_start(conc_group *g, conc_fn *fn, void *arg); */
#define conc_start(g, fn, ...) conc__start((g), CONC__NAMED(fn), (fn), __VA_ARGS__)
CONC_API int conc__start(conc_group *g, const char *spawned, conc_fn *fn, void *arg);

/* Tells the conc_start that started this task to go on with value, 0 or more. Errors: -EINVAL (not so started, said
 * twice, negative), -ECANCELED (the starter gave up). Not a checkpoint. */
CONC_API int conc_started(int value);

/* Waits for every child, those spawned meanwhile included, and closes the group. Returns the first error; else
 * -ECANCELED if an outer scope is cancelled and a member was cut short; else 0. A group that was never opened: 0.
 * Errors, changing nothing: -EINVAL (closed already, or a scope opened later is still open), -EPERM (not the owner).
 * Waits, and a cancel does not cut it short: it reaches the children. */
CONC_API int conc_group_wait(conc_group *g) CONC_NODISCARD;

/* The same with the body's own result: an error cancels the children first and is the group's first error (unless a
 * child's came before it). Returns rc when nothing failed. */
CONC_API int conc_group_end(conc_group *g, int rc) CONC_NODISCARD;

/* Cancels the children and the owner's body, until the group is closed; its own wait then returns 0. Nothing happens
 * to a group that is not open. From any task or posted function of the loop. */
CONC_API void conc_group_cancel(conc_group *g);

/* Waits for the next child to finish that has a handle and was not collected before: 1 and the handle in *t, in the
 * order of finishing; 0 when none is left. Errors: -EINVAL, -ECANCELED. */
CONC_API int conc_group_next(conc_group *g, conc_task **t) CONC_NODISCARD;

/* One call of a gather. result is its value, text its error in words ("" when it succeeded). */
typedef struct conc_call {
    conc_fn *fn;
    void *arg;
    int result;
    char text[96];
} conc_call;

/* All calls at once, each as a task; returns when all ended. The first error cancels the rest and is returned; 0 when
 * none failed. Every result is in its call. n 0 is 0 at once. Errors before anything ran: -EINVAL, -ENOMEM. Waits.
 *     int conc_gather(conc_call *calls, size_t n); */
#define conc_gather(...) conc__gather("conc_gather at " CONC__PLACE, __VA_ARGS__)
CONC_API int conc__gather(const char *spawned, conc_call *calls, size_t n);
CONC_API int conc__gather_unseen(const char *spawned, conc_call *calls, size_t n); /* the calls are nobody's to read */

/* The same, and errors cancel nothing (return_exceptions=True): 0, or -ECANCELED when the caller was cancelled.
 *     int conc_gather_all(conc_call *calls, size_t n); */
#define conc_gather_all(...) conc__gather_all("conc_gather_all at " CONC__PLACE, __VA_ARGS__)
CONC_API int conc__gather_all(const char *spawned, conc_call *calls, size_t n);

/* fn on each of count elements of size bytes, all at once, with the address of the element; otherwise as conc_gather.
 * size 0: every call gets args itself.
 *     int conc_map(conc_fn *fn, void *args, size_t count, size_t size); */
#define conc_map(fn, ...) conc__map(CONC__NAMED(fn), (fn), __VA_ARGS__)
CONC_API int conc__map(const char *spawned, conc_fn *fn, void *args, size_t count, size_t size);

/* As conc_gather_all; results (NULL: not wanted) has count places, which belong to the call until it returns.
 *     int conc_map_all(conc_fn *fn, void *args, size_t count, size_t size, int *results); */
#define conc_map_all(fn, ...) conc__map_all(CONC__NAMED(fn), (fn), __VA_ARGS__)
CONC_API int conc__map_all(const char *spawned, conc_fn *fn, void *args, size_t count, size_t size, int *results);

#define CONC_LEN(array) (sizeof(array) / sizeof((array)[0]))

/* conc_call calls[] = {CONC_CALL(f, &x), CONC_CALL(g, &y)}; or, when only the sum of it matters,
 * CONC_GATHER(CONC_CALL(...), ...) (C only: C++ has no array that lives for one expression). */
/* clang-format off */
#define CONC_CALL(fn, ...) {(fn), (__VA_ARGS__), 0, {0}}
/* clang-format on */
#define CONC_GATHER(...)                                                      \
    conc__gather_unseen(CONC__NAMED(CONC_GATHER), (conc_call[]){__VA_ARGS__}, \
                        sizeof((conc_call[]){__VA_ARGS__}) / sizeof(conc_call))
#define CONC_MAP(fn, array) conc_map(fn, (array), CONC_LEN(array), sizeof((array)[0]))
#define CONC_MAP_ALL(fn, array, results) conc_map_all(fn, (array), CONC_LEN(array), sizeof((array)[0]), (results))

/* ---- >>tasks ------------------------------------------------------------------------------------------------ */

/* All private. Tasks without a handle live at the top of their own stack, and end before name_copy. */
struct conc_task {
    conc_task *next; /* the ready queue */
    void *context[3];
    conc_loop *loop;
    struct conc__stack *stack;
    int error_number;
    bool pending, asked, marked;
    uint8_t state, sink_kind, cancels_in_a_row;
    bool has_handle, in_finished, collected, failed;
    uint16_t seal;
    conc__wait *wait;
    conc_scope *scope;
    const char *place; /* the scope's, for the report when the scope is lost */
    char *text;
    conc__waits joiners;
    const char *told_by;
    int result, last_rc;
    void *sink;
    struct conc__locals *locals;
    conc_fn *fn;
    void *arg;
    const char *name, *spawned;
    conc_group *group;
    conc_task *older, *younger;
    conc_task *next_marked;
    char name_copy[48];
    char text_copy[128];
};

/* Waits until the task ended; its result in *result (NULL: not wanted), its error text in conc_last_error. Never
 * cancels it; any number may join. Errors: -ECANCELED (the caller's own cancel; the target goes on), -EDEADLK
 * (oneself), -EINVAL. */
CONC_API int conc_join(conc_task *t, int *result);

/* Cancels the task's outermost scope: each of its checkpoints returns -ECANCELED from now on. Returns at once: 0, or
 * -EALREADY when it had ended, -EINVAL for no task, -EPERM for another loop's. From any task or posted function of the
 * loop. */
CONC_API int conc_cancel(conc_task *t);

/* Has the task ended? */
CONC_API bool conc_done(const conc_task *t);

/* The running task, valid until it ends; NULL in a posted function and outside a run. */
CONC_API conc_task *conc_self(void);

/* A task's name: what conc_set_name said (copied, 47 bytes at most), else its function and where it was spawned.
 * Borrowed; NULL for no task. A name for which there is no memory changes nothing. */
CONC_API const char *conc_name(const conc_task *t);
CONC_API void conc_set_name(conc_task *t, const char *name);

/* ---- >>errors ----------------------------------------------------------------------------------------------- */

/* Returns rc; the words (127 bytes at most) go with it to join, group, gather and on_error when the task's result is
 * rc.
 *     return conc_fail(-EPROTO, "line %d: no colon", line); */
CONC_API int conc_fail(int rc, const char *fmt, ...) __attribute__((__format__(__printf__, 2, 3)));

/* The error of a task that ended, in words: its conc_fail text, else conc_strerror's; "" without an error. Borrowed. */
CONC_API const char *conc_error_text(const conc_task *t);

/* The newest error that this task made or was told of by a join, group or gather, in words; "" when there was none.
 * Borrowed until the next one. */
CONC_API const char *conc_last_error(void);

/* Any negative errno, in words: what it means in conc where that differs from the system's. Borrowed for ever. From
 * anywhere. */
CONC_API const char *conc_strerror(int rc);

/* The value of expr; a negative one is returned from the calling function. A compound literal inside expr lives no
 * longer than the macro: a task that goes on must not be given one here. Not inside an open scope or group: there
 * CONC_TRY_IN(&s, expr) ends it with the error, and returns what the end returned. */
#define CONC_TRY(expr) CONC__TRY(expr, CONC__JOIN(conc__value, __COUNTER__))
#define CONC__TRY(expr, value)           \
    __extension__({                      \
        __typeof__(expr) value = (expr); \
        if (value < 0)                   \
            return (int)value;           \
        value;                           \
    })
#define CONC_TRY_IN(scope_or_group, expr) CONC__TRY_IN(scope_or_group, expr, CONC__JOIN(conc__value, __COUNTER__))
#define CONC__TRY_IN(s, expr, value)           \
    __extension__({                            \
        __typeof__(expr) value = (expr);       \
        if (value < 0)                         \
            return conc__end(s, (int)(value)); \
        value;                                 \
    })
#ifndef __cplusplus
/* clang-format off */
#define conc__end(s, rc) _Generic((s), conc_group *: conc_group_end, conc_scope *: conc_scope_end)((s), (rc))
/* clang-format on */
#endif

/* CONC_AUTO(conc_group, g) = {.limit = 5}; closes the object when the block is left, however that happens; the last
 * declared closes first. Here for conc_group (children are cancelled and waited for, their errors go to on_error) and
 * conc_gen; closing what was never opened, or closed before, does nothing. Not for conc_scope, whose end changes the
 * result. */
#define CONC_AUTO(type, name) __attribute__((cleanup(conc__auto_##type))) type name
CONC_API void conc__auto_conc_group(conc_group *g);
CONC_API void conc__auto_conc_gen(conc_gen *g);

/* ---- >>locals ----------------------------------------------------------------------------------------------- */

/* A value for each task, inherited: static conc_local request_id = {"request id"}; its address is the key. */
typedef struct conc_local {
    const char *name; /* for the reader of a dump; NULL is fine */
} conc_local;

/* Sets this task's value (borrowed). A task spawned later starts with the values of that moment; later sets on either
 * side are not seen by the other. Errors: -EINVAL (NULL key), -ENOMEM. */
CONC_API int conc_local_set(conc_local *key, const void *value);

/* This task's value, NULL when none was set. */
CONC_API void *conc_local_get(conc_local *key);

/* ---- >>generators ------------------------------------------------------------------------------------------- */

/* The body: emits items, returns 0 at the end or a negative error. */
typedef int conc_gen_fn(conc_gen *g, void *arg);

struct conc_gen {
    /* private */
    struct conc__gen *body;
    uint64_t run;
};

/* Opens a generator: fn(g, arg) will run in the consumer's task, on a stack of its own, from the first next on.
 * Errors: -EINVAL (NULL, open already), -ENOMEM. Close it with conc_gen_close. */
CONC_API int conc_gen_open(conc_gen *g, conc_gen_fn *fn, void *arg, size_t item_size);

/* In the body: hands a copy of item_size bytes to the consumer, and returns when it wants the next: 0. -ECANCELED: the
 * consumer is closing, clean up and return. -EINVAL: not in this generator's body, or a scope or group of the body is
 * open. */
CONC_API int conc_gen_emit(conc_gen *g, const void *item);

/* In the consumer: 1 and the next item, 0 at the end (and after it), negative the body's error. A cancel of the
 * consumer reaches the waits of the body. -EBUSY: another task, or the body itself, is inside; -EINVAL: not open.
 * Waits as the body does. */
CONC_API int conc_gen_next(conc_gen *g, void *item);

/* Ends the body, whose emit returns -ECANCELED, waits for its clean-up, and frees the stack. Returns 0, the error of
 * the clean-up, or -EINVAL when the body emitted again instead of ending (it is abandoned). Closing twice, or what was
 * never opened: 0. -EBUSY as above. The body's own waits still work while it cleans up. */
CONC_API int conc_gen_close(conc_gen *g);

/* ---- >>loops ------------------------------------------------------------------------------------------------ */

/* The loop of this thread's run; NULL outside one. */
CONC_API conc_loop *conc_loop_self(void);

/* Tells that somebody outside will post (the virtual clock goes on all the same): while held, waiting is no deadlock,
 * and the loop stays valid, even after its run, until it is released as often as held. From any thread. -EINVAL: NULL,
 * released too often. */
CONC_API int conc_loop_hold(conc_loop *l);
CONC_API int conc_loop_release(conc_loop *l);

/* Has l call fn(arg) between two tasks, in the order of posting. From any thread, not from a signal handler. A post
 * that returned 0 is run. Without a hold it is for those who know that the run still lasts. Errors: -EINVAL, -ENOMEM,
 * -ESHUTDOWN once the run is over. */
CONC_API int conc_post(conc_loop *l, void (*fn)(void *), void *arg);

/* Releases what conc handed over to be freed. NULL does nothing. From anywhere. */
CONC_API void conc_free(void *p);

/* ---- >>reports ---------------------------------------------------------------------------------------------- */

/* Counts of this thread's run; all zero outside one. */
typedef struct conc_stats {
    size_t tasks;       /* alive, main_fn and the caller included */
    size_t ready;       /* of these, waiting for their turn */
    size_t timers;      /* armed */
    size_t generators;  /* open */
    size_t holds;       /* conc_loop_hold without its release */
    size_t stacks;      /* in use, those of generators included */
    size_t stacks_kept; /* free, kept for the next spawn */
    size_t stack_bytes; /* address space of all of them */
    uint64_t spawned;   /* tasks, since the run began */
    uint64_t switches;  /* from task to task, about */
    uint64_t passes;    /* of the scheduler: posts, timers and descriptors are looked at once in each */
    uint64_t polls;     /* system calls to wait or look for events */
} conc_stats;

CONC_API void conc_get_stats(conc_stats *s);

/* Prints the tree of groups and tasks: what each waits for, who owns that, and where it was spawned. */
CONC_API void conc_dump(FILE *out);

#ifdef __cplusplus
}
static inline int conc__end(conc_group *g, int rc) { return conc_group_end(g, rc); }
static inline int conc__end(conc_scope *s, int rc) { return conc_scope_end(s, rc); }
#endif

#endif /* CONC_H */

/* ============================================================================================================== *
 *  The implementation
 *
 *  A task gives up the processor by switching straight to the next ready one; every 64 switches, or when none is
 *  ready, it switches to the scheduler instead, which runs on the thread's own stack and looks at posted functions, the
 *  clock and the descriptors. Everything that may need a deep stack (hooks, reports) runs there too.
 *
 *  Contents: >>config >>switch >>types >>sanitizers >>system >>poll >>stacks >>timers >>scheduler >>waits
 *  >>cancellation >>spawning >>finishing >>texts >>joining >>grouping >>gathering >>keys >>generating >>posting
 *  >>reporting >>running
 * ============================================================================================================== */

#if (defined CONC_IMPLEMENTATION || defined CONC_STATIC) && !defined CONC__IMPLEMENTED
#define CONC__IMPLEMENTED

#ifdef __cplusplus
#error "conc.h: the implementation is C; put CONC_IMPLEMENTATION into a .c file (C++ files include the declarations)"
#endif

/* ---- >>config ------------------------------------------------------------------------------------------------- */

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#ifndef MAP_ANONYMOUS
#error \
    "conc.h: a system header came before conc.h under a strict -std=c11: include conc.h first, or add -D_DEFAULT_SOURCE"
#endif

#ifdef __linux__
#include <sys/auxv.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#ifndef CONC_NO_EPOLL
#include <sys/epoll.h>
#endif
#elif !defined CONC_NO_EPOLL
#define CONC_NO_EPOLL
#endif

#if defined CONC_MALLOC && defined CONC_REALLOC && defined CONC_FREE
#elif !defined CONC_MALLOC && !defined CONC_REALLOC && !defined CONC_FREE
#define CONC_MALLOC(n) malloc(n)
#define CONC_REALLOC(p, n) realloc(p, n)
#define CONC_FREE(p) free(p)
#else
#error "conc.h: define all of CONC_MALLOC, CONC_REALLOC and CONC_FREE, or none"
#endif

#ifndef CONC_STACK_SIZE
#define CONC_STACK_SIZE (256 * 1024)
#endif
#ifndef CONC_TLS
#define CONC_TLS
#endif

enum {
    CONC__LEAST_STACK = 1024,        /* bytes */
    CONC__GUARDED_STACK = 16 * 1024, /* from here on a stack has a guard region and pages of its own */
    CONC__TURNS = 64,                /* switches between two looks of the scheduler */
    CONC__QUICK = 256,               /* checkpoints without a wait before one yields */
    CONC__SPIN = 16,                 /* refused checkpoints in a row that make a task one which ignores its cancel */
    CONC__CHOICE = 16,               /* under a seed: how many of the ready tasks the next is drawn from */
    CONC__NAME = 48,
    CONC__TEXT = 128
};

#define CONC__NEVER INT64_MAX

#if defined __SANITIZE_ADDRESS__
#define CONC__ASAN 1
#elif defined __has_feature
#if __has_feature(address_sanitizer)
#define CONC__ASAN 1
#endif
#endif
#if defined __SANITIZE_THREAD__
#define CONC__TSAN 1
#elif defined __has_feature
#if __has_feature(thread_sanitizer)
#define CONC__TSAN 1
#endif
#endif
#ifndef CONC__ASAN
#define CONC__ASAN 0
#endif
#ifndef CONC__TSAN
#define CONC__TSAN 0
#endif

#define CONC__UNLIKELY(x) __builtin_expect(!!(x), 0)
#define CONC__COLD __attribute__((cold, noinline))
#ifdef __OPTIMIZE__
#define CONC__FAST static inline __attribute__((always_inline)) /* worth it where a nanosecond counts */
#else
#define CONC__FAST static inline
#endif
#define CONC__CALLED __attribute__((noinline)) /* its frame lies below its caller's, which conc__find_lost relies on */

/* ---- >>switch ------------------------------------------------------------------------------------------------- */

/* conc__jump(from, to) saves where this stack stands in from, and goes on where `to` stands: {stack pointer, program
 * counter, frame pointer}. It pushes nothing, so the debug information of the place that waits holds for a parked stack
 * too; all other registers are declared as lost, so the compiler keeps only what it needs, on the stack. The jump is
 * indirect, without a return: a return would miss in the processor's return predictor.
 * conc__prepare(context, low, top, entry) makes a context that starts entry() on the stack below top. */

#if defined CONC_USE_UCONTEXT || !defined __LP64__ || defined __riscv_vector || \
    !(defined __x86_64__ || defined __aarch64__ || defined __riscv)
#define CONC__UCONTEXT 1
#else
#define CONC__UCONTEXT 0
#endif

/* Nothing is to be found above the first function of a stack: debuggers and unwinders stop there. */
#ifdef __GCC_HAVE_DWARF2_CFI_ASM
#define CONC__CFI(x) __asm__ volatile(".cfi_undefined " x)
#else
#define CONC__CFI(x) ((void)0)
#endif

#if CONC__UCONTEXT

#include <ucontext.h>

enum { CONC__SWITCH_ROOM = 2 * sizeof(ucontext_t) + 512 }; /* bytes that a parked stack needs more than elsewhere */
#define CONC__BOTTOM() ((void)0)

static void conc__prepare(void **context, char *low, char *top, void (*entry)(void))
{
    context[0] = top;
    context[1] = low;
    context[2] = (void *)(uintptr_t)entry;
}

static void conc__jump_first(ucontext_t *here, void **to)
{
    ucontext_t there;
    void (*entry)(void) = (void (*)(void))(uintptr_t)to[2];
    getcontext(&there);
    there.uc_stack.ss_sp = to[1];
    there.uc_stack.ss_size = (size_t)((char *)to[0] - (char *)to[1]);
    there.uc_link = NULL;
    makecontext(&there, entry, 0);
    swapcontext(here, &there);
}

/* The context of a parked stack lies on it, and context[0] points there; context[2] is NULL then. */
static void conc__jump(void **from, void **to)
{
    ucontext_t here;
    from[0] = &here;
    from[2] = NULL;
    if (to[2])
        conc__jump_first(&here, to);
    else
        swapcontext(&here, to[0]);
}

#else

enum { CONC__SWITCH_ROOM = 0 };

#if defined __x86_64__

#if defined __CET__ && (__CET__ & 1)
#define CONC__LANDING "endbr64\n\t"
#else
#define CONC__LANDING
#endif
#ifdef __AVX512F__
#define CONC__MORE_CLOBBERS                                                                                       \
    , "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", "xmm27", \
        "xmm28", "xmm29", "xmm30", "xmm31", "k0", "k1", "k2", "k3", "k4", "k5", "k6", "k7"
#else
#define CONC__MORE_CLOBBERS
#endif
#define CONC__BOTTOM() CONC__CFI("rip")

static inline __attribute__((always_inline)) void conc__jump(void **from, void **to)
{
    __asm__ volatile("leaq 1f(%%rip), %%rax\n\t"
                     "movq %%rsp, (%0)\n\t"
                     "movq %%rax, 8(%0)\n\t"
                     "movq %%rbp, 16(%0)\n\t"
                     "movq (%1), %%rsp\n\t"
                     "movq 16(%1), %%rbp\n\t"
                     "jmpq *8(%1)\n"
                     "1:\n\t" CONC__LANDING
                     : "+D"(from), "+S"(to)
                     :
                     : "rax", "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "xmm0", "xmm1",
                       "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12",
                       "xmm13", "xmm14", "xmm15", "st", "st(1)", "st(2)", "st(3)", "st(4)", "st(5)", "st(6)", "st(7)",
                       "cc", "memory" CONC__MORE_CLOBBERS);
}

static void conc__prepare(void **context, char *low, char *top, void (*entry)(void))
{
    (void)low;
    void **stack = (void **)(void *)(top - (uintptr_t)top % 16 - 8); /* as if it had been called */
    *stack = NULL;
    context[0] = stack;
    context[1] = (void *)(uintptr_t)entry;
    context[2] = NULL;
}

#elif defined __aarch64__

#ifdef __ARM_FEATURE_SVE
#define CONC__MORE_CLOBBERS \
    , "p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7", "p8", "p9", "p10", "p11", "p12", "p13", "p14", "p15"
#else
#define CONC__MORE_CLOBBERS
#endif
#if defined __linux__ && !defined __ANDROID__
#define CONC__X18 "x18",
#else
#define CONC__X18 /* the system's own */
#endif
#define CONC__BOTTOM() CONC__CFI("x30")

static inline __attribute__((always_inline)) void conc__jump(void **from, void **to)
{
    register void **out __asm__("x0") = from;
    register void **in __asm__("x1") = to;
    __asm__ volatile("adr x16, 1f\n\t"
                     "mov x17, sp\n\t"
                     "stp x17, x16, [%0]\n\t"
                     "str x29, [%0, #16]\n\t"
                     "ldp x17, x16, [%1]\n\t"
                     "ldr x29, [%1, #16]\n\t"
                     "mov sp, x17\n\t"
                     "mov x30, xzr\n\t"
                     "br x16\n"
                     "1:\n\t"
                     "hint #36\n\t" /* bti j: a no-op where there is no branch protection */
                     : "+r"(out), "+r"(in)
                     :
                     : "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13", "x14", "x15", "x16",
                       "x17", CONC__X18 "x19", "x20", "x21", "x22", "x23", "x24", "x25", "x26", "x27", "x28", "x30",
                       "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13", "v14",
                       "v15", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25", "v26", "v27", "v28",
                       "v29", "v30", "v31", "cc", "memory" CONC__MORE_CLOBBERS);
}

static void conc__prepare(void **context, char *low, char *top, void (*entry)(void))
{
    (void)low;
    context[0] = top - (uintptr_t)top % 16;
    context[1] = (void *)(uintptr_t)entry;
    context[2] = NULL;
}

#else /* RISC-V, 64 bits */

#define CONC__BOTTOM() CONC__CFI("ra")
#ifdef __riscv_flen
#define CONC__MORE_CLOBBERS                                                                                      \
    , "ft0", "ft1", "ft2", "ft3", "ft4", "ft5", "ft6", "ft7", "ft8", "ft9", "ft10", "ft11", "fa0", "fa1", "fa2", \
        "fa3", "fa4", "fa5", "fa6", "fa7", "fs0", "fs1", "fs2", "fs3", "fs4", "fs5", "fs6", "fs7", "fs8", "fs9", \
        "fs10", "fs11"
#else
#define CONC__MORE_CLOBBERS
#endif

static inline __attribute__((always_inline)) void conc__jump(void **from, void **to)
{
    register void **out __asm__("a0") = from;
    register void **in __asm__("a1") = to;
    __asm__ volatile("lla t0, 1f\n\t"
                     "sd sp, 0(%0)\n\t"
                     "sd t0, 8(%0)\n\t"
                     "sd s0, 16(%0)\n\t"
                     "ld sp, 0(%1)\n\t"
                     "ld t0, 8(%1)\n\t"
                     "ld s0, 16(%1)\n\t"
                     "li ra, 0\n\t"
                     "jr t0\n"
                     "1:\n\t"
                     : "+r"(out), "+r"(in)
                     :
                     : "ra", "t0", "t1", "t2", "t3", "t4", "t5", "t6", "a2", "a3", "a4", "a5", "a6", "a7", "s1", "s2",
                       "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10", "s11", "memory" CONC__MORE_CLOBBERS);
}

static void conc__prepare(void **context, char *low, char *top, void (*entry)(void))
{
    (void)low;
    context[0] = top - (uintptr_t)top % 16;
    context[1] = (void *)(uintptr_t)entry;
    context[2] = NULL;
}

#endif
#endif

/* Intel's shadow stack knows only calls and returns: under it these switches would kill the program. */
static bool conc__shadow_stack(void)
{
#if defined __x86_64__ && !CONC__UCONTEXT
    unsigned long pointer = 0;
    __asm__ volatile("rdsspq %0" : "+r"(pointer)); /* does nothing where there is none */
    return pointer != 0;
#else
    return false;
#endif
}

/* Floating-point control state, for CONC_SAVE_FPU. */
#if defined CONC_SAVE_FPU && defined __x86_64__
typedef struct conc__fpu {
    uint32_t sse;
    uint16_t x87;
} conc__fpu;
static inline void conc__fpu_save(conc__fpu *f)
{
    __asm__ volatile("stmxcsr %0\n\tfnstcw %1" : "=m"(f->sse), "=m"(f->x87));
}
static inline void conc__fpu_load(const conc__fpu *f)
{
    __asm__ volatile("ldmxcsr %0\n\tfldcw %1" : : "m"(f->sse), "m"(f->x87));
}
#elif defined CONC_SAVE_FPU && defined __aarch64__
typedef uint64_t conc__fpu;
static inline void conc__fpu_save(conc__fpu *f) { __asm__ volatile("mrs %0, fpcr" : "=r"(*f)); }
static inline void conc__fpu_load(const conc__fpu *f) { __asm__ volatile("msr fpcr, %0" : : "r"(*f)); }
#elif defined CONC_SAVE_FPU && defined __riscv_flen
typedef uint64_t conc__fpu;
static inline void conc__fpu_save(conc__fpu *f) { __asm__ volatile("frrm %0" : "=r"(*f)); }
static inline void conc__fpu_load(const conc__fpu *f) { __asm__ volatile("fsrm %0" : : "r"(*f)); }
#else /* not asked for */
typedef char conc__fpu;
static inline void conc__fpu_save(conc__fpu *f) { (void)f; }
static inline void conc__fpu_load(const conc__fpu *f) { (void)f; }
#endif

/* ---- >>types -------------------------------------------------------------------------------------------------- */

/* Why a task waits. */
typedef struct conc__wait_kind {
    const char *what;                                /* "joins": the dump's words, with whom() behind them */
    void (*whom)(FILE *out, const conc__wait *wait); /* NULL: the words suffice */
    bool (*cancel)(conc__wait *wait); /* a cancel came: true, wake it; false, it goes on. NULL: goes on */
} conc__wait_kind;

/* A task that waits, on its stack. Whoever decides how the wait ends takes it out of its list at that moment. */
struct conc__wait {
    conc__wait *next, *prev;
    conc__waits *list; /* NULL: in none */
    conc_task *task;
    const conc__wait_kind *kind;
    const void *on;
    int result;
};

/* The top of every stack. */
typedef struct conc__stack {
    struct conc__stack *next; /* free: the one freed before */
    struct conc__pool *pool;
    struct conc__slab *slab;
    char *low;                   /* the lowest byte that may be used */
    bool guarded, has_generator; /* a guard region lies below; a generator's body runs on it, not a task */
#if CONC__ASAN
    const void *asan_low;
    size_t asan_size;
    void *asan_frames;
#endif
#if CONC__TSAN
    void *tsan_fiber;
#endif
    uint32_t valgrind_id;
} conc__stack;

/* Stacks are carved from slabs, one mapping each. */
typedef struct conc__slab {
    struct conc__slab *next;
    struct conc__pool *pool;
    char *base;
    int carved;  /* stacks that were made so far, from below */
    int guarded; /* stacks whose guard region stands */
    int idle;    /* for how many looks of conc__pool_trim it was not used */
    int unused;  /* stacks in the free list, as conc__pool_count last found */
    bool leaving;
} conc__slab;

/* All stacks of one size. */
typedef struct conc__pool {
    struct conc__pool *next;
    size_t size, guard, stride;
    int per_slab;
    conc__slab *slabs; /* newest first; only the first may have stacks to carve */
    conc__stack *free;
} conc__pool;

enum { CONC__LEVELS = 11, CONC__SLOTS = 64 };

typedef struct conc__wheel {
    uint64_t elapsed;
    uint64_t occupied[CONC__LEVELS];
    conc__timer *slots[CONC__LEVELS][CONC__SLOTS];
    size_t count;
} conc__wheel;

typedef struct conc__post {
    struct conc__post *next;
    void (*fn)(void *);
    void *arg;
} conc__post;

/* A failed background task, until the end of the run. */
typedef struct conc__failed {
    struct conc__failed *next;
    const conc_task *task; /* only compared, never followed */
    const char *spawned;
    int rc;
    char name[CONC__NAME], text[CONC__TEXT];
} conc__failed;

typedef struct conc__locals {
    int references, count;
    struct {
        const conc_local *key;
        const void *value;
    } entries[];
} conc__locals;

struct conc__backend;

typedef void conc__switch_fn(conc_loop *l, conc__stack *from, void **from_context, conc__stack *to, void **to_context);

struct conc_loop {
    /* what a switch touches; neighbours are not written together, as a compiler would then join the writes in a vector
     * register, and the next read wait longer for it */
    conc_task *self; /* NULL while the scheduler runs */
    int *errno_at;
    conc_task *ready;
    int turns, quick;
    conc_task *last_ready;
    void *context[3]; /* the scheduler's */
    conc__switch_fn *switch_stacks;

    bool virtual_clock, seeded, debug, on_valgrind, doomed, over, refreshing;
    conc_task *spinners, *last_spinner; /* they ignore their cancel, and wait for the next round */
    uint64_t next_round; /* the pass in which it comes although other tasks are ready; each spinner puts it off */
    conc_task *marked, *last_marked;
    conc__waits settlers;
    void (*call)(conc_loop *l, void *arg);
    void *call_arg;
    conc__fpu fpu;    /* what a task starts with */
    void *scratch[3]; /* where a context goes that nobody will return to */
    int64_t now;
    uint64_t picks, draws; /* states of the two random generators */
    conc__stack thread_stack;
#if CONC__TSAN
    void *dead_fiber;
#endif

    conc_options options;
    conc__pool *pool, *pools; /* the tasks', and all */
    int64_t trimmed;
    bool to_trim;
    conc_group background;
    conc__failed *failed, **last_failed;
    conc_task main;
    conc_fn *main_fn;
    void *main_arg;
    const char *main_name;
    int rc;
    struct conc__gen *generators;
    uint64_t run; /* which of the process's runs this is */
    size_t generator_count;
    uint64_t spawned, finished, switches, passes, polls;
    conc__wheel wheel;

    const struct conc__backend *backend;
    int poll_fd, wake_out, wake_in;

    /* shared with other threads; under the mutex, but for a look at `posted` */
    pthread_mutex_t mutex;
    _Atomic(conc__post *) posted;
    conc__post *last_posted;
    size_t holds;
    bool asleep, closed, over_for_good; /* closed: posts are refused; over for good: the last release frees the loop */
};

static CONC_TLS _Thread_local conc_loop *conc__here;

/* used before they are written */
static void conc__wake(conc_loop *l, conc__wait *w, int result);
static void conc__run_posts(conc_loop *l);
static CONC__COLD void conc__deadlock(conc_loop *l);
static void conc__child_gone(conc_loop *l, conc_group *g);
static inline int64_t conc__time(const conc_loop *l);
static void conc__copy(char *to, size_t size, const char *from);
static CONC__COLD void conc__lost(conc_loop *l, const conc_task *t, const char *how);

/* ---- >>sanitizers --------------------------------------------------------------------------------------------- */

#if CONC__ASAN
void __sanitizer_start_switch_fiber(void **frames, const void *low, size_t size);
void __sanitizer_finish_switch_fiber(void *frames, const void **old_low, size_t *old_size);
void __asan_unpoison_memory_region(void const volatile *address, size_t size);
void __lsan_register_root_region(const void *address, size_t size);
void __lsan_unregister_root_region(const void *address, size_t size);
#endif
#if CONC__TSAN
void *__tsan_get_current_fiber(void);
void *__tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void *fiber);
void __tsan_switch_to_fiber(void *fiber, unsigned flags);
#endif

/* Called right before a jump: from this stack, NULL when it will not be returned to, to that one. */
static inline __attribute__((always_inline)) void conc__leaving(conc__stack *from, conc__stack *to)
{
#if CONC__ASAN
    __sanitizer_start_switch_fiber(from ? &from->asan_frames : NULL, to->asan_low, to->asan_size);
#endif
#if CONC__TSAN
    __tsan_switch_to_fiber(to->tsan_fiber, 0);
#endif
    (void)from;
    (void)to;
}

/* Called right after a jump arrived on this stack. */
static inline __attribute__((always_inline)) void conc__arrived(conc_loop *l, conc__stack *here)
{
#if CONC__ASAN
    const void *low;
    size_t size;
    __sanitizer_finish_switch_fiber(here->asan_frames, &low, &size);
    if (!l->thread_stack.asan_low) { /* the first jump of a run comes from the thread's own stack */
        l->thread_stack.asan_low = low;
        l->thread_stack.asan_size = size;
    }
#endif
#if CONC__TSAN
    if (l->dead_fiber)
        __tsan_destroy_fiber(l->dead_fiber);
    l->dead_fiber = NULL;
#endif
    (void)l;
    (void)here;
}

/* A stack is about to be used anew. */
static inline void conc__stack_begins(conc__stack *s)
{
#if CONC__ASAN
    s->asan_low = s->low;
    s->asan_size = (size_t)((char *)s - s->low);
    s->asan_frames = NULL;
#endif
#if CONC__TSAN
    s->tsan_fiber = __tsan_create_fiber(0);
#endif
    (void)s;
}

/* Its function is over; it may still run on the stack, but only up to the next jump. */
static inline void conc__stack_ends(conc_loop *l, conc__stack *s)
{
#if CONC__ASAN
    __asan_unpoison_memory_region(s->low, (size_t)((char *)s - s->low));
#endif
#if CONC__TSAN
    if (s->tsan_fiber == __tsan_get_current_fiber())
        l->dead_fiber = s->tsan_fiber; /* cannot be destroyed from inside */
    else
        __tsan_destroy_fiber(s->tsan_fiber);
#endif
    (void)l;
    (void)s;
}

/* A client request, as valgrind.h documents them, without that header: instructions that do nothing elsewhere, and mean
 * a call to Valgrind under it. Returns 0 without Valgrind. */
static CONC__COLD uintptr_t conc__valgrind(uintptr_t request, uintptr_t a, uintptr_t b)
{
    volatile uintptr_t call[6] = {request, a, b, 0, 0, 0};
    uintptr_t result = 0;
#if defined __x86_64__ && defined __LP64__ && defined __linux__
    __asm__ volatile("rolq $3, %%rdi\n\trolq $13, %%rdi\n\trolq $61, %%rdi\n\trolq $51, %%rdi\n\txchgq %%rbx, %%rbx"
                     : "+d"(result)
                     : "a"(&call[0])
                     : "cc", "memory");
#elif defined __aarch64__ && defined __LP64__ && defined __linux__
    __asm__ volatile("mov x3, %0\n\tmov x4, %1\n\t"
                     "ror x12, x12, #3\n\tror x12, x12, #13\n\tror x12, x12, #51\n\tror x12, x12, #61\n\t"
                     "orr x10, x10, x10\n\tmov %0, x3"
                     : "+r"(result)
                     : "r"(&call[0])
                     : "cc", "memory", "x3", "x4");
#endif
    (void)call;
    return result;
}

enum {
    CONC__VALGRIND_RUNS = 0x1001,
    CONC__VALGRIND_STACK = 0x1501,
    CONC__VALGRIND_NO_STACK = 0x1502,
    CONC__VALGRIND_DEFINED = 0x4d430002 /* Memcheck's */
};

/* A handle need not be set to anything, though it is read. */
static void conc__excuse(const conc_task *handle)
{
    conc__valgrind(CONC__VALGRIND_DEFINED, (uintptr_t)handle, sizeof *handle);
}

static bool conc__on_valgrind(void) { return conc__valgrind(CONC__VALGRIND_RUNS, 0, 0) != 0; }

static void conc__stack_told(conc__stack *s)
{
    s->valgrind_id = (uint32_t)conc__valgrind(CONC__VALGRIND_STACK, (uintptr_t)s->low, (uintptr_t)s);
}

static void conc__stack_untold(const conc__stack *s) { conc__valgrind(CONC__VALGRIND_NO_STACK, s->valgrind_id, 0); }

/* The code that switches is inlined where speed counts, but not under sanitizers, which may need registers of their
 * own. */
#if CONC__ASAN || CONC__TSAN || CONC__UCONTEXT || !defined __OPTIMIZE__
#define CONC__SWITCHES static __attribute__((noinline))
#else
#define CONC__SWITCHES static inline __attribute__((always_inline))
#endif

/* On every way into a switch, fast ones apart, this is called through the loop's switch_stacks: GCC works out which
 * static variables a call can change, does not count what an asm statement might, and would keep others' changes from
 * a task that waits; a call through a pointer can change them all. */
CONC__SWITCHES void conc__switch(conc_loop *l, conc__stack *from, void **from_context, conc__stack *to,
                                 void **to_context)
{
    conc__fpu fpu;
    conc__fpu_save(&fpu);
    conc__leaving(from, to);
    conc__jump(from_context, to_context);
    conc__fpu_load(&fpu);
    conc__arrived(l, from);
}

static void conc__switch_plainly(conc_loop *l, conc__stack *from, void **from_context, conc__stack *to,
                                 void **to_context)
{
    conc__switch(l, from, from_context, to, to_context);
}

/* ---- >>system ------------------------------------------------------------------------------------------------- */

static inline int64_t conc__clock(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void conc__doze(int64_t ns)
{
    struct timespec t = {(time_t)(ns / 1000000000), (long)(ns % 1000000000)};
    int saved = errno;
    nanosleep(&t, NULL);
    errno = saved;
}

/* Seconds to nanoseconds, rounded up, where a product that is a rounding error above a whole number counts as that
 * number. Saturates. */
static inline int64_t conc__ns(double s)
{
    double ns = s * 1e9;
    if (ns > 1 && ns < 9e15) /* from there on doubles are whole */
        return (int64_t)(ns + (0.999 - ns * 2.3e-16));
    if (!(s > 0))
        return 0;
    if (s > 9.2e9)
        return CONC__NEVER - 1;
    return ns > 1 ? (int64_t)ns : 1;
}

static inline int64_t conc__later(int64_t now, int64_t ns)
{
    return ns >= CONC__NEVER - 1 - now ? CONC__NEVER - 1 : now + ns;
}

static uint64_t conc__mix(uint64_t *state) /* splitmix64, Sebastiano Vigna, public domain algorithm */
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static void *conc__alloc(size_t size)
{
    int saved = errno;
    void *p = CONC_MALLOC(size);
    errno = saved;
    return p;
}

static const char *conc__env(const char *name)
{
#ifdef CONC_NO_ENV
    (void)name;
    return NULL;
#else
#ifdef __linux__
    if (getauxval(AT_SECURE))
        return NULL;
#endif
    const char *value = getenv(name);
    return value && *value ? value : NULL;
#endif
}

static size_t conc__page(void)
{
    static _Atomic size_t page;
    size_t size = atomic_load_explicit(&page, memory_order_relaxed);
    if (!size) {
        size = (size_t)sysconf(_SC_PAGESIZE);
        atomic_store_explicit(&page, size, memory_order_relaxed);
    }
    return size;
}

static void *conc__map_pages(size_t size)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
#ifdef MAP_NORESERVE
    flags |= MAP_NORESERVE;
#endif
#ifdef MAP_STACK
    flags |= MAP_STACK;
#endif
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
#ifdef MADV_NOHUGEPAGE
    madvise(p, size, MADV_NOHUGEPAGE); /* else the first byte of a stack could cost two megabytes */
#endif
#if CONC__ASAN
    __lsan_register_root_region(p, size);
#endif
    return p;
}

static void conc__unmap_pages(void *p, size_t size)
{
#if CONC__ASAN
    __lsan_unregister_root_region(p, size);
#endif
    munmap(p, size);
}

/* Makes n regions of size bytes, stride apart, fault when touched. False: the system has no more of them. */
static bool conc__guard(char *first, size_t size, size_t stride, int n)
{
    enum { INSTALL = 102 }; /* MADV_GUARD_INSTALL, Linux 6.13: needs no mapping of its own */
    int done = 0;
#ifdef __linux__
    while (done < n && madvise(first + (size_t)done * stride, size, INSTALL) == 0)
        done++;
#else
    (void)INSTALL;
#endif
    while (done < n && mprotect(first + (size_t)done * stride, size, PROT_NONE) == 0)
        done++;
    return done == n;
}

/* The descriptor that wakes a sleeping loop: an eventfd, or a pipe where there is none. */
static int conc__wake_open(conc_loop *l)
{
#ifdef __linux__
    l->wake_out = l->wake_in = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return l->wake_out < 0 ? -errno : 0;
#else
    int ends[2];
    if (pipe(ends))
        return -errno;
    l->wake_out = ends[0];
    l->wake_in = ends[1];
    for (int i = 0; i < 2; i++) {
        fcntl(ends[i], F_SETFD, FD_CLOEXEC);
        fcntl(ends[i], F_SETFL, O_NONBLOCK);
    }
    return 0;
#endif
}

static void conc__wake_close(conc_loop *l)
{
    if (l->wake_in >= 0 && l->wake_in != l->wake_out)
        close(l->wake_in);
    if (l->wake_out >= 0)
        close(l->wake_out);
}

static void conc__wake_up(conc_loop *l)
{
    uint64_t one = 1;
    ssize_t n = write(l->wake_in, &one, sizeof one); /* a full pipe wakes too */
    (void)n;
}

static void conc__wake_drain(conc_loop *l)
{
    uint64_t count[8];
    ssize_t n = read(l->wake_out, count, sizeof count);
    (void)n;
}

/* ---- >>poll --------------------------------------------------------------------------------------------------- */

/* How the loop waits for descriptors: same-named functions for each system call, of which a run uses one set. */
typedef struct conc__backend {
    const char *name;
    int (*open)(conc_loop *l);
    void (*close)(conc_loop *l);
    void (*wait)(conc_loop *l, int64_t ns); /* at most so long, 0: only look, CONC__NEVER: no limit */
} conc__backend;

static inline int conc__milliseconds(int64_t ns)
{
    return ns >= INT32_MAX * (int64_t)1000000 ? INT32_MAX : (int)((ns + 999999) / 1000000);
}

#if defined __linux__ && defined __LP64__ /* elsewhere the kernel's timespec is not the C library's */
#define CONC__NS_WAITS 1
#else
#define CONC__NS_WAITS 0
#endif

static int conc__poll_open(conc_loop *l)
{
    (void)l;
    return 0;
}

static void conc__poll_close(conc_loop *l) { (void)l; }

static void conc__poll_wait(conc_loop *l, int64_t ns)
{
    struct pollfd wake = {l->wake_out, POLLIN, 0};
#if CONC__NS_WAITS
    struct timespec limit = {ns / 1000000000, ns % 1000000000};
    int n = (int)syscall(SYS_ppoll, &wake, 1, ns == CONC__NEVER ? NULL : &limit, NULL, (size_t)8);
#else
    int n = poll(&wake, 1, ns == CONC__NEVER ? -1 : conc__milliseconds(ns));
#endif
    if (n > 0)
        conc__wake_drain(l);
}

static const conc__backend conc__poll = {"poll", conc__poll_open, conc__poll_close, conc__poll_wait};

#ifndef CONC_NO_EPOLL

static int conc__epoll_open(conc_loop *l)
{
    l->poll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (l->poll_fd < 0)
        return -errno;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = l};
    return epoll_ctl(l->poll_fd, EPOLL_CTL_ADD, l->wake_out, &event) ? -errno : 0;
}

static void conc__epoll_close(conc_loop *l)
{
    if (l->poll_fd >= 0)
        close(l->poll_fd);
}

static int conc__epoll_pause(conc_loop *l, struct epoll_event *events, int max, int64_t ns)
{
#if CONC__NS_WAITS && defined SYS_epoll_pwait2
    struct timespec limit = {ns / 1000000000, ns % 1000000000};
    int n = (int)syscall(SYS_epoll_pwait2, l->poll_fd, events, max, ns == CONC__NEVER ? NULL : &limit, NULL, (size_t)8);
    if (n >= 0 || errno != ENOSYS)
        return n;
#endif
    return epoll_wait(l->poll_fd, events, max, ns == CONC__NEVER ? -1 : conc__milliseconds(ns));
}

static void conc__epoll_wait(conc_loop *l, int64_t ns)
{
    struct epoll_event events[64];
    int n = conc__epoll_pause(l, events, 64, ns);
    for (int i = 0; i < n; i++)
        if (events[i].data.ptr == l)
            conc__wake_drain(l);
}

static const conc__backend conc__epoll = {"epoll", conc__epoll_open, conc__epoll_close, conc__epoll_wait};
#define CONC__BEST_BACKEND conc__epoll

#else
#define CONC__BEST_BACKEND conc__poll
#endif

/* ---- >>stacks ------------------------------------------------------------------------------------------------- */

/* A stack lies in its slot of a slab as [guard | room for frames | the task, if it has no handle | conc__stack |
 * stagger]. The tops are staggered inside their page, and the stride is an odd number of pages, so that the busy parts
 * of many stacks fall into different sets of the caches and the TLB. */

static const uint64_t conc__canary = 0x5ca1ab1e0ddba115u; /* at the low end of a stack without a guard region */

enum { CONC__CORE = offsetof(conc_task, name_copy), CONC__RECORD = sizeof(conc__stack), CONC__STAGGER = 64 * 47 };

static size_t conc__round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

static bool conc__stack_fits(size_t size) { return size >= CONC__LEAST_STACK && size <= SIZE_MAX / 128; }

static conc__pool *conc__pool_for(conc_loop *l, size_t size)
{
    for (conc__pool *p = l->pools; p; p = p->next)
        if (p->size == size)
            return p;
    if (!conc__stack_fits(size))
        return NULL;
    conc__pool *p = conc__alloc(sizeof *p);
    if (!p)
        return NULL;
    size_t page = conc__page(), room = size + CONC__CORE + CONC__RECORD + CONC__SWITCH_ROOM;
    *p = (conc__pool){.next = l->pools, .size = size};
    if (size < CONC__GUARDED_STACK) {
        p->stride = conc__round_up(room + sizeof conc__canary, 16);
        p->per_slab = (int)(1024 * 1024 / p->stride);
    } else {
        size_t pages = conc__round_up(room + CONC__STAGGER, page) / page;
        p->guard = (pages % 2 ? 2 : 1) * page;
        p->stride = pages * page + p->guard;
        size_t fit = (size_t)16 * 1024 * 1024 / p->stride;
        p->per_slab = fit < 1 ? 1 : fit > 64 ? 64 : (int)fit;
    }
    l->pools = p;
    return p;
}

static bool conc__slab_open(conc__pool *p)
{
    conc__slab *slab = conc__alloc(sizeof *slab);
    if (!slab)
        return false;
    char *base = conc__map_pages(p->stride * (size_t)p->per_slab);
    if (!base) {
        CONC_FREE(slab);
        return false;
    }
    *slab = (conc__slab){.next = p->slabs, .pool = p, .base = base};
    p->slabs = slab;
    return true;
}

static conc__stack *conc__stack_at(const conc__slab *slab, int i)
{
    conc__pool *p = slab->pool;
    size_t stagger = p->guard ? (size_t)(i % 48) * 64 : 0;
    return (conc__stack *)(void *)(slab->base + (size_t)(i + 1) * p->stride - stagger - CONC__RECORD);
}

static void conc__slab_close(conc__slab *slab)
{
    for (int i = 0; i < slab->carved; i++)
        conc__stack_untold(conc__stack_at(slab, i));
    conc__unmap_pages(slab->base, slab->pool->stride * (size_t)slab->pool->per_slab);
    CONC_FREE(slab);
}

/* Guard regions are made for a few stacks at a time, twice as many each time. */
static void conc__slab_guard(conc__slab *slab)
{
    static atomic_int told;
    conc__pool *p = slab->pool;
    int n = slab->guarded ? slab->guarded : 2;
    if (n > p->per_slab - slab->guarded)
        n = p->per_slab - slab->guarded;
    if (!conc__guard(slab->base + (size_t)slab->guarded * p->stride, p->guard, p->stride, n) &&
        !atomic_exchange(&told, 1))
        fprintf(stderr, "conc: the system has no more guard regions: stacks from here on go without one\n");
    slab->guarded += n;
}

static CONC__COLD conc__stack *conc__stack_carve(conc__pool *p)
{
    int saved = errno;
    bool opened = (p->slabs && p->slabs->carved < p->per_slab) || conc__slab_open(p);
    conc__slab *slab = p->slabs;
    if (opened && p->guard && slab->carved == slab->guarded)
        conc__slab_guard(slab);
    errno = saved;
    if (!opened)
        return NULL;
    conc__stack *s = conc__stack_at(slab, slab->carved);
    char *slot = slab->base + (size_t)slab->carved * p->stride;
    slab->carved++;
    *s = (conc__stack){
        .pool = p, .slab = slab, .low = slot + (p->guard ? p->guard : sizeof conc__canary), .guarded = p->guard != 0};
    if (!p->guard)
        *(uint64_t *)(void *)slot = conc__canary;
    conc__stack_told(s);
    return s;
}

/* Where the frames begin, from above, and what lives on a stack itself begins from below: a task, or a generator. With
 * the same place for all, what Valgrind knows of a stack holds for its next user. */
static inline char *conc__stack_top(conc__stack *s) { return (char *)s - CONC__CORE; }

static inline conc__stack *conc__stack_take(conc__pool *p)
{
    conc__stack *s = p->free;
    if (CONC__UNLIKELY(!s))
        s = conc__stack_carve(p);
    else
        p->free = s->next;
    if (CONC__UNLIKELY(!s))
        return NULL;
    s->slab->idle = 0;
    conc__stack_begins(s);
    return s;
}

static CONC__COLD void conc__overflowed(const char *name, size_t size)
{
    fprintf(stderr, "conc: the stack of %s overflowed: it has %zu bytes\n", name, size);
    abort();
}

static inline void conc__stack_give(conc_loop *l, conc__stack *s, const char *user)
{
    conc__pool *p = s->pool;
    if (CONC__UNLIKELY(!s->guarded && ((const uint64_t *)(const void *)s->low)[-1] != conc__canary))
        conc__overflowed(user, p->size);
    conc__stack_ends(l, s);
    s->next = p->free;
    p->free = s;
}

/* Takes the stacks of the slabs that leave out of the free list, and then the slabs away. */
static void conc__pool_sweep(conc__pool *p)
{
    for (conc__stack **at = &p->free; *at;)
        if ((*at)->slab->leaving)
            *at = (*at)->next;
        else
            at = &(*at)->next;
    for (conc__slab **at = &p->slabs; *at;) {
        conc__slab *slab = *at;
        if (slab->leaving) {
            *at = slab->next;
            conc__slab_close(slab);
        } else {
            at = &slab->next;
        }
    }
}

static void conc__pool_count(conc__pool *p)
{
    for (conc__slab *slab = p->slabs; slab; slab = slab->next)
        slab->unused = 0;
    for (conc__stack *s = p->free; s; s = s->next)
        s->slab->unused++;
}

/* Gives back what a burst needed: stacks are reused newest first, so a slab that nobody used for a while was for the
 * burst. True: there will be more to give back. */
static bool conc__pool_trim(conc__pool *p, int looks)
{
    enum { LONG = 8 };
    bool more = false, leaving = false;
    if (!p->slabs || !p->slabs->next)
        return false;
    conc__pool_count(p);
    for (conc__slab *s = p->slabs; s; s = s->next) {
        if (s->unused < s->carved || s == p->slabs)
            continue;
        s->idle = looks < LONG - s->idle ? s->idle + looks : LONG;
        if (s->idle == LONG)
            leaving = s->leaving = true;
        else
            more = true;
    }
    if (leaving)
        conc__pool_sweep(p);
    return more;
}

static bool conc__stacks_trim(conc_loop *l, int looks)
{
    bool more = false;
    for (conc__pool *p = l->pools; p; p = p->next)
        more |= conc__pool_trim(p, looks);
    return more;
}

static void conc__stacks_close(conc_loop *l)
{
    for (conc__pool *p = l->pools, *next; p; p = next) {
        next = p->next;
        for (conc__slab *s = p->slabs, *after; s; s = after) {
            after = s->next;
            conc__slab_close(s);
        }
        CONC_FREE(p);
    }
}

/* ---- >>timers ------------------------------------------------------------------------------------------------- */

/* A hierarchical timing wheel (Varghese and Lauck, "Hashed and Hierarchical Timing Wheels", 1987) over all 64 bits of
 * a nanosecond clock, six bits a level. A timer lies at the level of the highest digit in which its time and the
 * elapsed time differ, in the slot of that digit: so levels expire from the lowest up, a timer moves down at most ten
 * times, and timers of one time are always in one slot, in the order of arming. */

static bool conc__armed(const conc__timer *t) { return t->next != NULL; }

/* A timer keeps this place while the elapsed time moves: it is moved down when its digit is reached. */
static inline int conc__wheel_level(const conc__wheel *w, const conc__timer *t)
{
    return (63 - __builtin_clzll(((uint64_t)t->at ^ w->elapsed) | 1)) / 6;
}

static inline int conc__wheel_slot(const conc__timer *t, int level)
{
    return (int)((uint64_t)t->at >> (level * 6)) & (CONC__SLOTS - 1);
}

static inline void conc__wheel_insert(conc__wheel *w, conc__timer *t)
{
    int level = conc__wheel_level(w, t), slot = conc__wheel_slot(t, level);
    conc__timer *first = w->slots[level][slot];
    if (first) {
        conc__timer *last = first->prev;
        t->next = first;
        t->prev = last;
        last->next = t;
        first->prev = t;
    } else {
        t->next = t->prev = t;
        w->slots[level][slot] = t;
        w->occupied[level] |= (uint64_t)1 << slot;
    }
}

static inline void conc__wheel_remove(conc__wheel *w, conc__timer *t)
{
    int level = conc__wheel_level(w, t), slot = conc__wheel_slot(t, level);
    conc__timer *next = t->next, *prev = t->prev;
    if (next == t) {
        w->slots[level][slot] = NULL;
        w->occupied[level] &= ~((uint64_t)1 << slot);
    } else {
        next->prev = prev;
        prev->next = next;
        if (w->slots[level][slot] == t)
            w->slots[level][slot] = next;
    }
    t->next = NULL;
}

static inline void conc__arm(conc_loop *l, conc__timer *t, int64_t at, void (*fire)(conc__timer *))
{
    t->at = at;
    t->fire = fire;
    conc__wheel_insert(&l->wheel, t);
    l->wheel.count++;
}

static inline void conc__disarm(conc_loop *l, conc__timer *t)
{
    if (!conc__armed(t))
        return;
    conc__wheel_remove(&l->wheel, t);
    l->wheel.count--;
}

/* The first occupied slot: the time at which it begins, its level and number. False: no timer is armed. */
static bool conc__wheel_first(const conc__wheel *w, uint64_t *start, int *level, int *slot)
{
    for (int i = 0; i < CONC__LEVELS; i++)
        if (w->occupied[i]) { /* those of this level lie ahead of the elapsed digit, so the lowest bit is the first */
            int shift = i * 6;
            *level = i;
            *slot = __builtin_ctzll(w->occupied[i]);
            uint64_t above = shift + 6 < 64 ? w->elapsed >> (shift + 6) << (shift + 6) : 0;
            *start = above | (uint64_t)*slot << shift;
            return true;
        }
    return false;
}

/* Moves the timers of a slot that begins now to the levels below. */
static void conc__wheel_cascade(conc__wheel *w, uint64_t start, int level, int slot)
{
    conc__timer *t = w->slots[level][slot], *last = t->prev;
    w->slots[level][slot] = NULL;
    w->occupied[level] &= ~((uint64_t)1 << slot);
    w->elapsed = start;
    for (conc__timer *next;; t = next) {
        next = t->next;
        bool done = t == last;
        conc__wheel_insert(w, t);
        if (done)
            break;
    }
}

/* Fires every timer that is due, in the order of time and arming, and moves the elapsed time to now. */
static void conc__wheel_advance(conc_loop *l, int64_t now)
{
    conc__wheel *w = &l->wheel;
    uint64_t start;
    int level, slot;
    while (w->count && conc__wheel_first(w, &start, &level, &slot) && start <= (uint64_t)now) {
        conc__timer *t = w->slots[level][slot];
        if (level > 0 && (t->next != t || t->at > now)) {
            conc__wheel_cascade(w, start, level, slot);
        } else { /* the only one in its slot need not move down first */
            conc__disarm(l, t);
            t->fire(t);
        }
    }
    if ((uint64_t)now > w->elapsed)
        w->elapsed = (uint64_t)now;
}

/* A time not after the first timer's, and before it only when many timers share a slot; CONC__NEVER without one. */
static int64_t conc__wheel_next(const conc__wheel *w)
{
    uint64_t start;
    int level, slot;
    if (!conc__wheel_first(w, &start, &level, &slot))
        return CONC__NEVER;
    const conc__timer *first = w->slots[level][slot], *t = first;
    int64_t least = t->at;
    for (int looked = 0; (t = t->next) != first; looked++) {
        if (looked == 16)
            return (int64_t)start;
        if (t->at < least)
            least = t->at;
    }
    return least;
}

/* ---- >>scheduler ---------------------------------------------------------------------------------------------- */

static inline void conc__make_ready(conc_loop *l, conc_task *t)
{
    t->next = NULL;
    if (l->ready)
        l->last_ready->next = t;
    else
        l->ready = t;
    l->last_ready = t;
}

/* The running task stops here until it is resumed; somebody has it in a list, or it is ready. */
CONC__SWITCHES void conc__leave(conc_loop *l)
{
    conc_task *self = l->self, *next = l->ready;
    self->error_number = *l->errno_at;
    if (next && l->turns > 0) {
        l->turns--;
        l->ready = next->next;
        l->self = next;
        conc__switch(l, self->stack, self->context, next->stack, next->context);
    } else {
        l->self = NULL;
        l->switch_stacks(l, self->stack, self->context, &l->thread_stack, l->context);
    }
    *l->errno_at = self->error_number;
}

/* Behind every task that is ready. */
static void conc__pass(conc_loop *l)
{
    if (!l->ready)
        l->turns = 0; /* the others may wait for the clock */
    conc__make_ready(l, l->self);
    conc__leave(l);
}

/* A cancelled task wants to wait. It gets its -ECANCELED after the others had their turn; one that has ignored many
 * only when nothing else is ready, or now and then, and does not hold the virtual clock. */
static CONC__COLD int conc__refuse(conc_loop *l)
{
    conc_task *self = l->self;
    if (self->cancels_in_a_row < CONC__SPIN) {
        self->cancels_in_a_row++;
        conc__pass(l);
    } else {
        self->next = NULL;
        *(l->spinners ? &l->last_spinner->next : &l->spinners) = self;
        l->last_spinner = self;
        l->next_round += 4;
        conc__leave(l);
    }
    return -ECANCELED;
}

/* Not in a task: no run on this thread, or inside a posted function. */
static inline conc_loop *conc__in_task(void)
{
    conc_loop *l = conc__here;
    return l && l->self ? l : NULL;
}

/* At the start of a checkpoint, after its arguments were looked at: 0, or -ECANCELED when a cancel is pending. */
static inline int conc__checkpoint(conc_loop *l) { return CONC__UNLIKELY(l->self->pending) ? conc__refuse(l) : 0; }

/* A checkpoint that need not wait: after many of them in a row the others get their turn. */
static inline void conc__quick(conc_loop *l)
{
    if (CONC__UNLIKELY(--l->quick <= 0)) {
        l->quick = CONC__QUICK;
        conc__pass(l);
    }
}

static CONC__COLD int conc__yield_slowly(void)
{
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    int rc = conc__checkpoint(l);
    if (rc)
        return rc;
    conc__pass(l);
    return l->self->pending ? -ECANCELED : 0;
}

/* Compiled in line where it is called in this file: a task that returns from a call which another task left does so
 * against the processor's return predictor. */
CONC__SWITCHES int conc__yield(void)
{
    conc_loop *l = conc__here;
    conc_task *self, *next;
    if (CONC__UNLIKELY(!l || !(self = l->self) || self->pending || !(next = l->ready) || l->turns <= 0))
        return conc__yield_slowly();
    l->turns--;
    self->next = NULL;
    l->last_ready->next = self;
    l->last_ready = self;
    l->ready = next->next;
    l->self = next;
    self->error_number = *l->errno_at;
    conc__switch(l, self->stack, self->context, next->stack, next->context);
    *l->errno_at = self->error_number;
    return CONC__UNLIKELY(self->pending) ? -ECANCELED : 0;
}

CONC_API int conc_yield(void) { return conc__yield(); }
#define conc_yield() conc__yield()

/* Runs fn between two tasks, on the thread's own stack, while the caller stands still; in the scheduler, at once. */
static void conc__on_loop(conc_loop *l, void (*fn)(conc_loop *l, void *arg), void *arg)
{
    conc_task *self = l->self;
    if (!self) {
        fn(l, arg);
        return;
    }
    l->call = fn;
    l->call_arg = arg;
    self->error_number = *l->errno_at;
    /* l->self stays: it is resumed at once */
    l->switch_stacks(l, self->stack, self->context, &l->thread_stack, l->context);
    *l->errno_at = self->error_number;
}

/* The same for what only small stacks are too small for: the first call of a library function, for one, goes through
 * the dynamic linker and needs more than a kilobyte. */
static void conc__with_room(conc_loop *l, void (*fn)(conc_loop *l, void *arg), void *arg)
{
    if (l->self && !l->self->stack->guarded)
        conc__on_loop(l, fn, arg);
    else
        fn(l, arg);
}

typedef struct conc__misuse {
    const conc_task *task;
    const char *call, *why, *place;
} conc__misuse;

static void conc__tell_misuse(conc_loop *l, void *arg)
{
    const conc__misuse *m = arg;
    (void)l;
    fprintf(stderr, "conc: %s: %s: %s%s%s\n", m->task ? m->task->name : "the loop", m->call, m->why,
            m->place ? ": " : "", m->place ? m->place : "");
}

/* A call was wrong, and had no effect: rc. In debug mode that is said, with the object's place (NULL: it has none). */
static CONC__COLD int conc__misused(int rc, const char *call, const char *why, const char *place)
{
    conc_loop *l = conc__here;
    if (l && l->debug) {
        conc__misuse m = {l->self, call, why, place};
        conc__on_loop(l, conc__tell_misuse, &m);
    }
    return rc;
}

static void conc__resume(conc_loop *l, conc_task *t)
{
    l->self = t;
    do {
        conc__switch(l, &l->thread_stack, l->context, t->stack, t->context);
        if (!l->call)
            break;
        void (*call)(conc_loop *, void *) = l->call;
        t = l->self;
        l->call = NULL;
        l->self = NULL;
        call(l, l->call_arg);
        l->self = t;
    } while (true);
}

/* The next task to run: the one that has been ready longest, or under a seed one of the longest. */
static conc_task *conc__pick(conc_loop *l)
{
    conc_task **at = &l->ready;
    if (l->seeded && l->ready) {
        int n = 0;
        for (conc_task *t = l->ready; t && n < CONC__CHOICE; t = t->next)
            n++;
        for (int skip = (int)(conc__mix(&l->picks) % (uint64_t)n); skip; skip--)
            at = &(*at)->next;
    }
    conc_task *t = *at;
    if (t && t == l->last_ready && at != &l->ready)
        l->last_ready = (conc_task *)(void *)((char *)at - offsetof(conc_task, next));
    if (t)
        *at = t->next;
    return t;
}

static void conc__advance(conc_loop *l, int64_t now)
{
    l->now = now;
    conc__wheel_advance(l, now);
}

static void conc__poll_events(conc_loop *l, int64_t ns)
{
    pthread_mutex_lock(&l->mutex);
    bool sleeps = l->asleep = !l->posted && ns != 0 && (ns != CONC__NEVER || l->holds); /* else nothing could wake it */
    pthread_mutex_unlock(&l->mutex);
    l->polls++;
    l->backend->wait(l, sleeps ? ns : 0);
    pthread_mutex_lock(&l->mutex);
    l->asleep = false;
    pthread_mutex_unlock(&l->mutex);
}

static bool conc__held(conc_loop *l)
{
    pthread_mutex_lock(&l->mutex);
    bool held = l->holds > 0 || l->posted;
    pthread_mutex_unlock(&l->mutex);
    return held;
}

/* Nothing can run: something has to come from the clock or from outside, else every task waits for ever. */
static void conc__idle(conc_loop *l)
{
    enum { TRIM = 50000000 };
    int64_t next = conc__wheel_next(&l->wheel), limit = CONC__NEVER;
    if (atomic_load_explicit(&l->posted, memory_order_relaxed))
        return;
    if (l->settlers.first) {
        conc__wait *w = l->settlers.first;
        conc__wake(l, w, 0);
        return;
    }
    if (l->now - l->trimmed >= TRIM) {
        int64_t looks = (l->now - l->trimmed) / TRIM;
        l->trimmed = l->now;
        l->to_trim = conc__stacks_trim(l, looks < INT32_MAX ? (int)looks : INT32_MAX);
    }
    if (l->to_trim)
        limit = TRIM;
    if (l->virtual_clock && next != CONC__NEVER) {
        conc__advance(l, next > l->now ? next : l->now);
        return;
    }
    if (l->spinners)
        limit = 0;
    else if (next == CONC__NEVER && !conc__held(l)) {
        conc__deadlock(l);
        return;
    }
    if (next != CONC__NEVER && next - l->now < limit)
        limit = next - l->now;
    conc__poll_events(l, limit);
}

/* Reads the clock and fires what is due; the virtual clock moves elsewhere. */
static void conc__look(conc_loop *l)
{
    if (!l->virtual_clock)
        conc__advance(l, conc__clock());
}

/* The scheduler's look around. */
static void conc__tick(conc_loop *l)
{
    l->passes++;
    conc__run_posts(l);
    conc__look(l);
    if (!l->ready) {
        conc__idle(l);
        conc__run_posts(l);
        conc__look(l);
    }
    if (l->spinners && (!l->ready || l->passes >= l->next_round)) {
        *(l->ready ? &l->last_ready->next : &l->ready) = l->spinners;
        l->last_ready = l->last_spinner;
        l->spinners = NULL;
        l->next_round = l->passes + CONC__TURNS;
    }
}

/* Debug: one task a time, and one that holds the loop for long is named. */
static CONC__COLD void conc__resume_watched(conc_loop *l, conc_task *t)
{
    char name[CONC__NAME * 2];
    int64_t start = conc__time(l), most = conc__ns(l->options.slow_step);
    conc__copy(name, sizeof name, t->name); /* it may end */
    conc__resume(l, t);
    int64_t took = conc__time(l) - start;
    if (took > most)
        fprintf(stderr, "conc: %s held the loop for %.3f s\n", name, (double)took / 1e9);
}

static void conc__schedule(conc_loop *l)
{
    while (!l->over) {
        conc__tick(l);
        int turns = l->turns = l->seeded || l->debug ? 0 : CONC__TURNS;
        conc_task *t = conc__pick(l);
        if (!t)
            continue;
        if (l->debug)
            conc__resume_watched(l, t);
        else
            conc__resume(l, t);
        l->switches += 1 + (uint64_t)(turns - l->turns);
    }
}

/* ---- >>waits -------------------------------------------------------------------------------------------------- */

static void conc__append(conc__waits *list, conc__wait *w)
{
    w->list = list;
    w->next = NULL;
    w->prev = list->last;
    *(list->last ? &list->last->next : &list->first) = w;
    list->last = w;
}

static void conc__unlink(conc__wait *w)
{
    if (!w->list)
        return;
    *(w->prev ? &w->prev->next : &w->list->first) = w->next;
    *(w->next ? &w->next->prev : &w->list->last) = w->prev;
    w->list = NULL;
}

/* The running task waits until somebody wakes w. */
CONC__SWITCHES int conc__park(conc_loop *l, conc__wait *w)
{
    l->self->wait = w;
    conc__leave(l);
    return w->result;
}

static void conc__wake(conc_loop *l, conc__wait *w, int result)
{
    conc__unlink(w);
    w->result = result;
    w->task->wait = NULL;
    conc__make_ready(l, w->task);
}

static bool conc__cancel_plainly(conc__wait *w)
{
    (void)w;
    return true;
}

typedef struct conc__sleeper {
    conc__wait wait;
    conc__timer timer;
} conc__sleeper;

static conc__sleeper *conc__sleeper_of(conc__timer *t)
{
    return (conc__sleeper *)(void *)((char *)t - offsetof(conc__sleeper, timer));
}

static void conc__sleep_over(conc__timer *t) { conc__wake(conc__here, &conc__sleeper_of(t)->wait, 0); }

static bool conc__sleep_cancel(conc__wait *w)
{
    conc__disarm(conc__here, &((conc__sleeper *)(void *)w)->timer);
    return true;
}

static void conc__sleep_whom(FILE *out, const conc__wait *w)
{
    const conc__sleeper *s = (const conc__sleeper *)(const void *)w;
    if (conc__armed(&s->timer))
        fprintf(out, " for another %.9g s", (double)(s->timer.at - conc__here->now) / 1e9);
    else
        fprintf(out, " for ever");
}

static const conc__wait_kind conc__sleeping = {"sleeps", conc__sleep_whom, conc__sleep_cancel};
static const conc__wait_kind conc__settling = {"waits until all others wait (conc_settle)", NULL, conc__cancel_plainly};

/* Until this time of the loop's clock; CONC__NEVER: for ever. */
static int conc__sleep_to(conc_loop *l, int64_t at)
{
    int rc = conc__checkpoint(l);
    if (rc)
        return rc;
    conc__sleeper s = {.wait = {.task = l->self, .kind = &conc__sleeping}};
    if (at != CONC__NEVER)
        conc__arm(l, &s.timer, at, conc__sleep_over);
    return conc__park(l, &s.wait);
}

static inline int64_t conc__time(const conc_loop *l) { return l->virtual_clock ? l->now : conc__clock(); }

CONC_API double conc_now(void)
{
    conc_loop *l = conc__here;
    return (double)(l ? conc__time(l) : conc__clock()) / 1e9;
}

CONC_API int conc_sleep(double s)
{
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    if (__builtin_isnan(s))
        return -EINVAL;
    if (s >= CONC_FOREVER)
        return conc__sleep_to(l, CONC__NEVER);
    int64_t ns = conc__ns(s);
    return ns ? conc__sleep_to(l, conc__later(conc__time(l), ns)) : conc__yield_slowly();
}

CONC_API int conc_sleep_until(double t)
{
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    if (__builtin_isnan(t))
        return -EINVAL;
    if (t >= CONC_FOREVER)
        return conc__sleep_to(l, CONC__NEVER);
    int64_t at = conc__ns(t);
    for (int64_t more = 1; (double)at / 1e9 < t && at < CONC__NEVER - 8192;
         more *= 2) /* conc_now() would be a hair before t */
        at += more;
    return at > conc__time(l) ? conc__sleep_to(l, at) : conc__yield_slowly();
}

CONC_API int conc_block(double s)
{
    conc_loop *l = conc__here;
    if (!l)
        return -EPERM;
    if (__builtin_isnan(s))
        return -EINVAL;
    int64_t end = conc__later(conc__time(l), conc__ns(s));
    if (l->virtual_clock)
        l->now = end;
    else
        for (int64_t left; (left = end - conc__clock()) > 0;)
            conc__doze(left);
    conc__advance(l, conc__time(l));
    return 0;
}

CONC_API int conc_settle(void)
{
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    int rc = conc__checkpoint(l);
    if (rc)
        return rc;
    conc__wait w = {.task = l->self, .kind = &conc__settling};
    conc__append(&l->settlers, &w);
    return conc__park(l, &w);
}

/* ---- >>cancellation ------------------------------------------------------------------------------------------- */

/* A scope is in effect when it is cancelled, or one around it is that no shield hides. Each scope knows (`effective`),
 * and each task knows it of its innermost scope (`pending`), which is all that a checkpoint looks at. A change spreads
 * inward through the scopes of its task; at a group it marks the children, whose turn comes from a list, so depth
 * costs no stack. */

enum { CONC__FRESH, CONC__OPEN, CONC__CLOSED };

static conc_group *conc__group_of(conc_scope *s)
{
    return (conc_group *)(void *)((char *)s - offsetof(conc_group, scope));
}

/* Is what lies around the task's outermost scope cancelled? */
static bool conc__cancelled_outside(const conc_loop *l, const conc_task *t)
{
    return t->asked || (t->group && t->group->scope.effective) || l->doomed;
}

static bool conc__cancelled_around(const conc_loop *l, const conc_scope *s)
{
    return s->outer ? s->outer->effective : s->task && conc__cancelled_outside(l, s->task);
}

static void conc__mark(conc_loop *l, conc_task *t)
{
    if (t->marked)
        return;
    t->marked = true;
    t->next_marked = NULL;
    *(l->marked ? &l->last_marked->next_marked : &l->marked) = t;
    l->last_marked = t;
}

static void conc__set_pending(conc_loop *l, conc_task *t, bool pending)
{
    conc__wait *w = t->wait;
    if (t->pending == pending)
        return;
    t->pending = pending;
    t->cancels_in_a_row = 0;
    if (pending && w && w->kind->cancel && w->kind->cancel(w))
        conc__wake(l, w, -ECANCELED);
}

/* From scope s of task t inward (NULL: there is none), where `around` tells what comes from outside it. */
static void conc__spread(conc_loop *l, conc_task *t, conc_scope *s, bool around)
{
    for (; s; s = s->inner) {
        bool effective = s->cancel_called || (around && !s->shielded) || l->doomed;
        if (effective == s->effective && !l->doomed) /* doom goes through what was cancelled before, too */
            return;
        s->effective = around = effective;
        while (s->is_group && effective && conc__group_of(s)->room.first) /* who waits to spawn there is refused */
            conc__wake(l, conc__group_of(s)->room.first, -ECANCELED);
        if (s->is_group)
            for (conc_task *child = conc__group_of(s)->children; child; child = child->younger)
                conc__mark(l, child);
    }
    if (t)
        conc__set_pending(l, t, around);
}

static void conc__spread_marked(conc_loop *l)
{
    if (l->refreshing)
        return;
    l->refreshing = true;
    while (l->marked) {
        conc_task *t = l->marked;
        conc_scope *s = t->scope;
        l->marked = t->next_marked;
        t->marked = false;
        while (s && s->outer)
            s = s->outer;
        conc__spread(l, t, s, conc__cancelled_outside(l, t));
    }
    l->refreshing = false;
}

static void conc__scope_changed(conc_loop *l, conc_scope *s)
{
    conc__spread(l, s->task, s, conc__cancelled_around(l, s));
    conc__spread_marked(l);
}

static void conc__task_cancel(conc_loop *l, conc_task *t)
{
    t->asked = true;
    conc__mark(l, t);
    conc__spread_marked(l);
}

static void conc__cancel_scope(conc_loop *l, conc_scope *s)
{
    if (s->cancel_called)
        return;
    conc__disarm(l, &s->timer);
    s->cancel_called = true;
    conc__scope_changed(l, s);
}

static void conc__scope_expired(conc__timer *timer)
{
    conc_scope *s = (conc_scope *)(void *)((char *)timer - offsetof(conc_scope, timer));
    s->expired = true;
    conc__cancel_scope(conc__here, s);
}

/* seconds from now; the scope is open, not cancelled, and its timer not armed */
static inline void conc__set_limit(conc_loop *l, conc_scope *s, double seconds)
{
    int64_t ns = conc__ns(seconds);
    if (seconds >= CONC_FOREVER)
        return;
    if (ns)
        conc__arm(l, &s->timer, conc__later(conc__time(l), ns), conc__scope_expired);
    else
        conc__scope_expired(&s->timer);
}

/* A scope that lies below the frame of a call into conc, on the same stack, belongs to a function that has returned. */
static inline void conc__find_lost(conc_loop *l, const void *frame)
{
    conc_task *self = l->self;
    char *low = self->stack->low;
    if (CONC__UNLIKELY(self->scope && (uintptr_t)((char *)self->scope - low) < (uintptr_t)((const char *)frame - low)))
        conc__lost(l, self, "a function returned");
}

/* Puts a scope inside those the task has open. */
static inline void conc__scope_open(conc_loop *l, conc_scope *s, const char *place)
{
    conc_task *self = l->self;
    conc_scope *outer = self->scope;
    s->cancel_called = s->cancel_caught = s->expired = s->shielded = s->is_group = false;
    s->effective = self->pending;
    s->state = CONC__OPEN;
    s->task = self;
    s->outer = outer;
    s->inner = NULL;
    s->timer.next = NULL;
    s->place = self->place = place;
    if (outer)
        outer->inner = s;
    self->scope = s;
}

static inline void conc__scope_close(conc_loop *l, conc_scope *s)
{
    conc_task *self = l->self;
    conc_scope *outer = s->outer;
    conc__disarm(l, &s->timer);
    s->state = CONC__CLOSED;
    self->scope = outer;
    if (outer) {
        outer->inner = NULL;
        self->place = outer->place;
    }
    if (CONC__UNLIKELY(s->effective || s->shielded || self->pending))
        conc__set_pending(l, self, conc__cancelled_around(l, s));
}

CONC_API CONC__CALLED int conc__scope_begin(conc_scope *s, double timeout, const char *place)
{
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    if (!s || __builtin_isnan(timeout) || s->state != CONC__FRESH)
        return conc__misused(-EINVAL, "conc_scope_begin", "no number, or a scope that was used before", place);
    conc__find_lost(l, __builtin_frame_address(0));
    conc__scope_open(l, s, place);
    conc__set_limit(l, s, timeout);
    return 0;
}

CONC_API CONC__CALLED int conc_scope_end(conc_scope *s, int rc)
{
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    if (!s || s->state != CONC__OPEN)
        return conc__misused(-EINVAL, "conc_scope_end", "the scope is not open", NULL);
    if (s->task != l->self)
        return conc__misused(-EPERM, "conc_scope_end", "another task's scope", s->place);
    conc__find_lost(l, __builtin_frame_address(0));
    if (l->self->scope != s)
        return conc__misused(-EINVAL, "conc_scope_end", "not the innermost, which is", l->self->place);
    bool mine = s->cancel_called && (s->shielded || !conc__cancelled_around(l, s)) && !l->doomed;
    conc__scope_close(l, s);
    if (rc != -ECANCELED || !mine)
        return rc;
    s->cancel_caught = true;
    return s->expired ? -ETIMEDOUT : 0;
}

/* The loop on which an open scope may be changed from here; NULL: it may not. */
static conc_loop *conc__loop_of(const conc_scope *s)
{
    conc_loop *l = conc__here;
    return l && s && s->state == CONC__OPEN && (!s->task || s->task->loop == l) ? l : NULL;
}

CONC_API void conc_scope_cancel(conc_scope *s)
{
    conc_loop *l = conc__loop_of(s);
    if (l)
        conc__cancel_scope(l, s);
}

CONC_API int conc_scope_set_timeout(conc_scope *s, double s_from_now)
{
    conc_loop *l = conc__loop_of(s);
    if (!l)
        return conc__here ? -EINVAL : -EPERM;
    if (__builtin_isnan(s_from_now) || s->cancel_called)
        return -EINVAL;
    conc__disarm(l, &s->timer);
    conc__set_limit(l, s, s_from_now);
    return 0;
}

CONC_API void conc_scope_shield(conc_scope *s, bool on)
{
    conc_loop *l = conc__loop_of(s);
    if (!l)
        return;
    s->shielded = on;
    conc__scope_changed(l, s);
}

static int conc__call_in_scope(double s, bool shielded, conc_fn *fn, void *arg, const char *place)
{
    conc_scope scope = {0};
    if (!conc__in_task())
        return -EPERM;
    if (!fn)
        return conc__misused(-EINVAL, place, "no function", NULL);
    int rc = conc__scope_begin(&scope, s, place);
    if (rc)
        return rc;
    if (shielded)
        conc_scope_shield(&scope, true);
    return conc_scope_end(&scope, fn(arg));
}

CONC_API int conc_timeout(double s, conc_fn *fn, void *arg)
{
    return conc__call_in_scope(s, false, fn, arg, "the scope of conc_timeout");
}

CONC_API int conc_shield(double grace, conc_fn *fn, void *arg)
{
    return conc__call_in_scope(grace, true, fn, arg, "the scope of conc_shield");
}

/* The scopes that apply, from the inside out: a task's own, then its group and what that lies in. */
static conc_scope *conc__innermost(const conc_task *t)
{
    return t->scope ? t->scope : t->group ? &t->group->scope : NULL;
}

static conc_scope *conc__around(const conc_scope *s)
{
    if (s->outer)
        return s->outer;
    return s->task && s->task->group ? &s->task->group->scope : NULL;
}

CONC_API double conc_deadline(void)
{
    conc_loop *l = conc__in_task();
    if (!l)
        return CONC_FOREVER;
    if (l->self->pending)
        return -CONC_FOREVER;
    int64_t least = CONC__NEVER;
    for (const conc_scope *s = conc__innermost(l->self); s; s = conc__around(s)) {
        if (conc__armed(&s->timer) && s->timer.at < least)
            least = s->timer.at;
        if (s->shielded)
            break;
    }
    return least == CONC__NEVER ? CONC_FOREVER : (double)least / 1e9;
}

CONC_API bool conc_cancelled(void)
{
    conc_loop *l = conc__in_task();
    return l && l->self->pending;
}

/* ---- >>spawning ----------------------------------------------------------------------------------------------- */

enum { CONC__LIVE = 1, CONC__DONE = 2 }; /* a task's state; with the seal, so that storage that was never set is told */
enum { CONC__NO_SINK, CONC__CALL_SINK, CONC__RESULT_SINK, CONC__START_SINK };

static uint16_t conc__seal(const conc_task *t) { return (uint16_t)((uintptr_t)t >> 4 ^ 0xc0de); }

static bool conc__is_task(const conc_task *t)
{
    return t && t->seal == conc__seal(t) && (t->state == CONC__LIVE || t->state == CONC__DONE);
}

static void conc__task_main(void);

/* Fills in a task; it is not in any list yet. */
CONC__FAST void conc__task_init(conc_loop *l, conc_task *t, bool has_handle, conc__stack *stack, conc_fn *fn, void *arg,
                                const char *spawned)
{
    t->loop = l;
    t->stack = stack;
    t->error_number = 0;
    t->pending = t->asked = t->marked = false;
    t->state = CONC__LIVE;
    t->sink_kind = CONC__NO_SINK;
    t->cancels_in_a_row = 0;
    t->has_handle = has_handle;
    t->in_finished = t->collected = t->failed = false;
    t->seal = conc__seal(t);
    t->wait = NULL;
    t->scope = NULL;
    t->place = NULL;
    t->text = NULL;
    t->joiners.first = t->joiners.last = NULL;
    t->told_by = NULL;
    t->result = t->last_rc = 0;
    t->sink = NULL;
    t->locals = l->self ? l->self->locals : NULL;
    t->fn = fn;
    t->arg = arg;
    t->name = t->spawned = spawned;
    if (CONC__UNLIKELY(t->locals))
        t->locals->references++;
    l->spawned++;
}

static inline void conc__child_add(conc_group *g, conc_task *t)
{
    conc_task *first = g->children;
    t->group = g;
    t->younger = NULL;
    if (first) {
        conc_task *last = first->older; /* the first one's points to the last */
        t->older = last;
        last->younger = t;
        first->older = t;
    } else {
        t->older = t;
        g->children = t;
    }
    g->live++;
    if (t->has_handle)
        g->live_handles++;
}

static inline void conc__child_remove(conc_group *g, conc_task *t)
{
    conc_task *older = t->older, *younger = t->younger;
    if (t == g->children)
        g->children = younger;
    else
        older->younger = younger;
    if (younger)
        younger->older = older;
    else if (g->children)
        g->children->older = older;
    g->live--;
    if (t->has_handle)
        g->live_handles--;
}

static conc__pool *conc__pool_of(conc_loop *l, const conc_group *g)
{
    if (CONC__UNLIKELY(g->stack_size && g->stack_size != l->pool->size))
        return conc__pool_for(l, g->stack_size);
    return l->pool;
}

/* A task of an open group, ready to run. handle NULL: it lives on its own stack. NULL: no memory. */
CONC__FAST conc_task *conc__task_new(conc_loop *l, conc_group *g, conc_task *handle, conc_fn *fn, void *arg,
                                     const char *spawned)
{
    conc__pool *pool = conc__pool_of(l, g);
    conc__stack *stack = pool ? conc__stack_take(pool) : NULL;
    if (CONC__UNLIKELY(!stack))
        return NULL;
    char *top = conc__stack_top(stack);
    conc_task *t = handle ? handle : (conc_task *)(void *)top;
    conc__task_init(l, t, handle != NULL, stack, fn, arg, spawned);
    conc__prepare(t->context, stack->low, top, conc__task_main);
    conc__child_add(g, t);
    conc__make_ready(l, t);
    return t;
}

static const conc__wait_kind conc__wants_room = {"waits for room in its group's limit", NULL, conc__cancel_plainly};

static void conc__group_open(conc_loop *l, conc_group *g, const char *place)
{
    conc__scope_open(l, &g->scope, place);
    g->scope.is_group = true;
    g->error = g->error_count = 0;
    g->error_by = NULL;
    g->live = g->live_handles = 0;
    g->cut_short = g->background = false;
    g->children = g->finished = g->last_finished = NULL;
    g->room = g->next = g->empty = (conc__waits){NULL, NULL};
    g->text[0] = 0;
}

CONC_API CONC__CALLED int conc__group_begin(conc_group *g, const char *place)
{
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    if (!g || g->scope.state != CONC__FRESH || g->limit < 0 || (g->stack_size && !conc__stack_fits(g->stack_size)))
        return -EINVAL;
    conc__find_lost(l, __builtin_frame_address(0));
    conc__group_open(l, g, place);
    return 0;
}

/* The limit is reached: waits until a child's end hands its place over, which counts as live from then on. */
static int conc__wait_for_room(conc_loop *l, conc_group *g)
{
    if (!l->self)
        return -EPERM;
    int rc = conc__checkpoint(l);
    if (rc)
        return rc;
    conc__wait w = {.task = l->self, .kind = &conc__wants_room, .on = g};
    conc__append(&g->room, &w);
    rc = conc__park(l, &w);
    if (rc == 0)
        g->live--; /* the place is ours; the new task takes it right now */
    return rc;
}

static void conc__hand_over_room(conc_loop *l, conc_group *g)
{
    while (g->room.first && (g->live < g->limit || g->limit <= 0)) {
        g->live++;
        conc__wake(l, g->room.first, 0);
    }
}

/* May a task be spawned here now? Opens a fresh group, waits under a limit. 0: go on. */
static CONC__COLD int conc__enter_group(conc_loop *l, conc_group *g, const char *spawned)
{
    if (g->scope.state == CONC__FRESH) {
        if (!l->self)
            return -EPERM;
        int rc = conc__group_begin(g, spawned);
        if (rc)
            return rc;
    }
    if (g->scope.state != CONC__OPEN)
        return conc__misused(-EINVAL, "a spawn", "the group was closed before", spawned);
    if (g->scope.task && g->scope.task->loop != l)
        return conc__misused(-EPERM, "a spawn", "the group is another loop's", spawned);
    if (g->scope.effective)
        return -ECANCELED;
    if (g->limit > 0 && (g->live >= g->limit || g->room.first)) {
        int rc = conc__wait_for_room(l, g);
        if (rc)
            return rc;
        if (g->scope.effective) {
            conc__child_gone(l, g);
            return -ECANCELED;
        }
    }
    return 0;
}

/* If not, the storage gets a new task, and an error that the last one left no longer goes by its address. */
static CONC__COLD bool conc__handle_in_use(const conc_task *t)
{
    if (conc__is_task(t) && (t->state == CONC__LIVE || t->in_finished))
        return true;
    for (conc__failed *f = conc__here->failed; f; f = f->next)
        if (f->task == t)
            f->task = NULL;
    return false;
}

CONC__FAST int conc__spawn_in(conc_group *g, conc_task *handle, const char *spawned, conc_fn *fn, void *arg,
                              conc_task **out)
{
    conc_loop *l = conc__here;
    if (CONC__UNLIKELY(!l))
        return -EPERM;
    if (CONC__UNLIKELY(!fn))
        return conc__misused(-EINVAL, "a spawn", "no function", spawned);
    if (!g)
        g = &l->background;
    if (l->self)
        conc__find_lost(l, __builtin_frame_address(0));
    if (CONC__UNLIKELY(g->scope.state != CONC__OPEN || g->scope.effective || g->limit > 0 ||
                       g->scope.task != l->self)) {
        int rc = conc__enter_group(l, g, spawned);
        if (rc)
            return rc;
        if (handle && conc__handle_in_use(handle)) { /* by now */
            conc__child_gone(l, g);
            return -EBUSY;
        }
    }
    *out = conc__task_new(l, g, handle, fn, arg, spawned);
    if (CONC__UNLIKELY(!*out)) {
        conc__child_gone(l, g);
        return -ENOMEM;
    }
    return 0;
}

CONC_API CONC__CALLED int conc__spawn(conc_group *g, const char *spawned, conc_fn *fn, void *arg)
{
    conc_task *t;
    return conc__spawn_in(g, NULL, spawned, fn, arg, &t);
}

CONC_API CONC__CALLED int conc__spawn_task(conc_group *g, conc_task *handle, const char *spawned, conc_fn *fn,
                                           void *arg)
{
    conc_task *t;
    if (!conc__here)
        return -EPERM;
    if (!handle)
        return -EINVAL;
    if (CONC__UNLIKELY(conc__here->on_valgrind))
        conc__excuse(handle);
    if (CONC__UNLIKELY(handle->state != CONC__DONE || handle->in_finished || conc__here->failed) &&
        conc__handle_in_use(handle))
        return conc__misused(-EBUSY, "conc_spawn_task", "the handle is in use", spawned);
    return conc__spawn_in(g, handle, spawned, fn, arg, &t);
}

/* A conc_start that waits, on the starter's stack. */
typedef struct conc__starter {
    conc__wait wait;
    conc_task *child;
    bool given_up;
} conc__starter;

static bool conc__start_cancel(conc__wait *w)
{
    conc__starter *s = (conc__starter *)(void *)w;
    s->given_up = true;
    s->child->asked = true;
    conc__mark(conc__here, s->child);
    return false; /* the child has to end first */
}

static void conc__whom_task(FILE *out, const conc__wait *w) { fprintf(out, " %s", ((const conc_task *)w->on)->name); }

static const conc__wait_kind conc__starting = {"waits for the start of", conc__whom_task, conc__start_cancel};

CONC_API CONC__CALLED int conc__start(conc_group *g, const char *spawned, conc_fn *fn, void *arg)
{
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    if (!fn)
        return -EINVAL;
    int rc = conc__checkpoint(l);
    if (rc)
        return rc;
    conc__starter s = {.wait = {.task = l->self, .kind = &conc__starting}};
    rc = conc__spawn_in(g, NULL, spawned, fn, arg, &s.child);
    if (rc)
        return rc;
    s.wait.on = s.child;
    s.child->sink = &s;
    s.child->sink_kind = CONC__START_SINK;
    return conc__park(l, &s.wait);
}

CONC_API int conc_started(int value)
{
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    conc__starter *s = l->self->sink;
    if (l->self->sink_kind != CONC__START_SINK || value < 0)
        return conc__misused(-EINVAL, "conc_started", "not started by conc_start, said before, or negative", NULL);
    if (s->given_up)
        return -ECANCELED;
    l->self->sink_kind = CONC__NO_SINK;
    conc__wake(l, &s->wait, value);
    return 0;
}

/* ---- >>texts -------------------------------------------------------------------------------------------------- */

static void conc__copy(char *to, size_t size, const char *from)
{
    size_t n = strnlen(from, size - 1);
    memmove(to, from, n);
    to[n] = 0;
}

/* Where a task's newest error is put into words; NULL: no memory, and strerror has to do. */
static char *conc__text_room(conc_task *t)
{
    if (!t->text) {
        t->text = t->has_handle ? t->text_copy : conc__alloc(CONC__TEXT);
        if (t->text)
            t->text[0] = 0;
    }
    return t->text;
}

/* The task has made or been told of an error: text NULL or "" if it has no words of its own; by: whose it was. */
static void conc__tell(conc_task *t, int rc, const char *text, const char *by)
{
    t->last_rc = rc;
    t->told_by = by;
    if (t->text)
        t->text[0] = 0;
    if (text && *text && conc__text_room(t))
        conc__copy(t->text, CONC__TEXT, text);
}

/* Whose error rc, which comes out of this task, was at first: name and place. */
static const char *conc__origin(const conc_task *t, int rc)
{
    return t->last_rc == rc && t->told_by ? t->told_by : t->spawned;
}

/* The words that go with rc out of this task; "": none. */
static const char *conc__words(const conc_task *t, int rc) { return t->last_rc == rc && t->text ? t->text : ""; }

static const char *conc__words_or(const char *words, int rc) { return *words ? words : conc_strerror(rc); }

typedef struct conc__failing {
    conc_task *task;
    const char *fmt;
    va_list args;
    int rc;
} conc__failing;

static void conc__put_into_words(conc_loop *l, void *arg)
{
    conc__failing *f = arg;
    char text[CONC__TEXT];
    (void)l;
    vsnprintf(text, sizeof text, f->fmt, f->args);
    conc__tell(f->task, f->rc, text, NULL);
}

CONC_API int conc_fail(int rc, const char *fmt, ...)
{
    conc_loop *l = conc__in_task();
    if (!l || !fmt)
        return rc;
    conc__failing f = {.fmt = fmt, .rc = rc};
    int saved = errno;
    va_start(f.args, fmt);
    f.task = l->self;
    conc__with_room(l, conc__put_into_words, &f);
    va_end(f.args);
    errno = saved;
    return rc;
}

CONC_API const char *conc_error_text(const conc_task *t)
{
    if (!conc__is_task(t) || t->state != CONC__DONE || t->result >= 0)
        return "";
    return conc__words_or(conc__words(t, t->result), t->result);
}

CONC_API const char *conc_last_error(void)
{
    conc_loop *l = conc__in_task();
    if (!l || !l->self->last_rc)
        return "";
    return conc__words_or(conc__words(l->self, l->self->last_rc), l->self->last_rc);
}

CONC_API const char *conc_strerror(int rc)
{
    switch (rc) {
    case -ECANCELED: return "cancelled";
    case -ETIMEDOUT: return "out of time";
    case -EDEADLK: return "deadlock: it would wait for ever";
    case -EBUSY: return "in use already";
    case -EPERM: return "not allowed here: not in a task, or not the owner";
    case -ESHUTDOWN: return "the loop's run is over";
    case -EPIPE: return "closed";
    case -ENOTSUP: return "not supported here";
    case -EALREADY: return "already done";
    case -EMSGSIZE: return "longer than the limit";
    case -EOWNERDEAD: return "the owner died";
    default: break;
    }
    if (rc >= 0)
        return "success";
    const char *text = rc > -4096 ? strerror(-rc) : "Unknown error";
    return strncmp(text, "Unknown", 7) == 0 ? "unknown error" : text; /* else it lies in a buffer that is used again */
}

CONC_API const char *conc_name(const conc_task *t) { return conc__is_task(t) ? t->name : NULL; }

CONC_API void conc_set_name(conc_task *t, const char *name)
{
    if (!conc__is_task(t) || !name || t->state != CONC__LIVE)
        return;
    char *room = t->has_handle           ? t->name_copy
                 : t->name != t->spawned ? (char *)(uintptr_t)t->name
                                         : conc__alloc(CONC__NAME);
    if (!room)
        return;
    conc__copy(room, CONC__NAME, name);
    t->name = room;
}

CONC_API void conc_free(void *p) { CONC_FREE(p); }

CONC_API const char *conc_version(void) { return CONC_VERSION; }

/* "file.c:12" of "fn at file.c:12" */
static const char *conc__place_of(const char *spawned)
{
    const char *place = spawned;
    for (const char *at = spawned; (at = strstr(at, " at ")); at += 4)
        place = at + 4;
    return place;
}

/* ---- >>finishing ---------------------------------------------------------------------------------------------- */

static void conc__locals_release(conc__locals *locals)
{
    if (locals && --locals->references == 0)
        CONC_FREE(locals);
}

static void conc__call_hook(conc_loop *l, void *arg)
{
    const conc_failure *f = arg;
    int saved = errno;
    if (l->options.on_error)
        l->options.on_error(f, l->options.user);
    else if (strstr(f->task, f->place))
        fprintf(stderr, "conc: %s failed: %s\n", f->task, f->text);
    else
        fprintf(stderr, "conc: %s (spawned at %s) failed: %s\n", f->task, f->place, f->text);
    errno = saved;
}

/* An error that nobody collected. */
static void conc__report(conc_loop *l, const char *name, const char *spawned, int rc, const char *words)
{
    conc_failure f = {name, conc__place_of(spawned), conc__words_or(words, rc), rc};
    conc__on_loop(l, conc__call_hook, &f);
}

static void conc__report_task(conc_loop *l, const conc_task *t)
{
    conc__report(l, t->name, t->spawned, t->result, conc__words(t, t->result));
}

/* A background task failed and nobody has joined it: that is said at the end of the run. */
static void conc__remember(conc_loop *l, const conc_task *t)
{
    conc__failed *f = conc__alloc(sizeof *f);
    if (!f) {
        conc__report_task(l, t);
        return;
    }
    *f = (conc__failed){.task = t->has_handle ? t : NULL, .spawned = t->spawned, .rc = t->result};
    conc__copy(f->name, sizeof f->name, t->name);
    conc__copy(f->text, sizeof f->text, conc__words(t, t->result));
    *l->last_failed = f;
    l->last_failed = &f->next;
}

static void conc__forget(conc_loop *l, const conc_task *t)
{
    for (conc__failed **at = &l->failed, *f; (f = *at); at = &f->next)
        if (f->task == t) {
            *at = f->next;
            if (!f->next)
                l->last_failed = at;
            CONC_FREE(f);
            return;
        }
}

/* The group's error is its first; later ones belong to whoever collects their task, or to on_error. True: it was the
 * first. */
static bool conc__group_failed(conc_loop *l, conc_group *g, const conc_task *t, int rc)
{
    if (g->error_count++ == 0 && !g->background) {
        g->error = rc;
        g->error_by = conc__origin(t, rc);
        conc__copy(g->text, sizeof g->text, conc__words(t, rc));
        if (!g->keep_going)
            conc__cancel_scope(l, &g->scope);
        return true;
    }
    if (t->collected)
        return false;
    if (g->background)
        conc__remember(l, t);
    else if (!t->has_handle || t->state != CONC__DONE) /* else it may still be collected */
        conc__report(l, t->name, t->spawned, rc, conc__words(t, rc));
    return false;
}

/* A place in the group is free: wakes whom that concerns. */
static void conc__child_gone(conc_loop *l, conc_group *g)
{
    conc__hand_over_room(l, g);
    while (!g->live_handles && g->next.first)
        conc__wake(l, g->next.first, 0);
    while (!g->live && g->empty.first)
        conc__wake(l, g->empty.first, 0);
}

typedef struct conc__chooser { /* a conc_group_next that waits */
    conc__wait wait;
    conc_task *task;
} conc__chooser;

static void conc__list_finished(conc_loop *l, conc_group *g, conc_task *t)
{
    if (g->next.first) {
        conc__chooser *c = (conc__chooser *)(void *)g->next.first;
        c->task = t;
        conc__wake(l, &c->wait, 1);
        return;
    }
    t->in_finished = true;
    t->younger = NULL;
    t->older = g->last_finished;
    *(g->last_finished ? &g->last_finished->younger : &g->finished) = t;
    g->last_finished = t;
}

static void conc__unlist_finished(conc_group *g, conc_task *t)
{
    *(t->older ? &t->older->younger : &g->finished) = t->younger;
    *(t->younger ? &t->younger->older : &g->last_finished) = t->older;
    t->in_finished = false;
}

typedef struct conc__joiner { /* a conc_join that waits */
    conc__wait wait;
    int result;
} conc__joiner;

CONC__FAST void conc__tell_joiners(conc_loop *l, conc_task *t)
{
    for (conc__wait *w = t->joiners.first, *next; w; w = next) {
        next = w->next;
        ((conc__joiner *)(void *)w)->result = t->result;
        if (CONC__UNLIKELY(t->result < 0))
            conc__tell(w->task, t->result, conc__words(t, t->result), conc__origin(t, t->result));
        w->list = NULL; /* all of them leave it, so none is unlinked from its neighbours */
        w->result = 0;
        w->task->wait = NULL;
        conc__make_ready(l, w->task);
        t->collected = true;
    }
}

/* Hands the result to where it was asked for when the task was made. */
static void conc__fill_sink(conc_loop *l, conc_task *t)
{
    if (t->sink_kind == CONC__RESULT_SINK) {
        *(int *)t->sink = t->result;
        t->collected = true;
    } else if (t->sink_kind == CONC__CALL_SINK) {
        conc_call *call = t->sink;
        call->result = t->result;
        call->text[0] = 0;
        if (t->result < 0)
            conc__copy(call->text, sizeof call->text, conc__words_or(conc__words(t, t->result), t->result));
        t->collected = true;
    } else if (t->sink_kind ==
               CONC__START_SINK) { /* ended without conc_started: the starter's matter, not the group's */
        conc__starter *s = t->sink;
        int rc = t->failed ? t->result : s->given_up || t->result < 0 ? -ECANCELED : -EINVAL;
        conc__tell(s->wait.task, rc, conc__words(t, rc), conc__origin(t, t->result));
        conc__wake(l, &s->wait, rc);
        t->collected = true;
        t->failed = false;
    }
}

/* What a failed or cancelled child means to its group. */
static void conc__finish_badly(conc_loop *l, conc_task *t)
{
    conc_group *g = t->group;
    if (t->failed && g)
        t->failed = !conc__group_failed(l, g, t, t->result);
    else if (g && t->sink_kind != CONC__START_SINK)
        g->cut_short = true;
}

/* Tells of a result whoever waits for it. */
static CONC__COLD void conc__deliver(conc_loop *l, void *arg)
{
    conc_task *t = arg;
    if (t->sink_kind)
        conc__fill_sink(l, t);
    conc__tell_joiners(l, t);
    if (t->result < 0)
        conc__finish_badly(l, t);
}

static CONC__COLD void conc__free_strings(conc_loop *l, void *arg)
{
    conc_task *t = arg;
    (void)l;
    if (t->name != t->spawned)
        CONC_FREE((void *)(uintptr_t)t->name);
    CONC_FREE(t->text);
}

/* The function of a task has returned. When this is over the stack is free, and the task too unless it has a handle. */
static inline void conc__finish(conc_loop *l, conc_task *t, int rc)
{
    conc_group *g = t->group;
    if (CONC__UNLIKELY(t->scope))
        conc__lost(l, t, "it ended");
    t->result = rc;
    t->failed = rc < 0 && !(rc == -ECANCELED && t->pending);
    t->state = CONC__DONE;
    if (CONC__UNLIKELY(rc < 0 || t->sink_kind))
        conc__with_room(l, conc__deliver, t);
    else
        conc__tell_joiners(l, t);
    if (g) {
        conc__child_remove(g, t);
        if (t->has_handle && !t->collected && !g->background)
            conc__list_finished(l, g, t);
        if (g->room.first || g->next.first || g->empty.first)
            conc__child_gone(l, g);
    }
    if (CONC__UNLIKELY(t->locals))
        conc__locals_release(t->locals);
    t->locals = NULL;
    if (CONC__UNLIKELY(!t->has_handle && (t->name != t->spawned || t->text)))
        conc__with_room(l, conc__free_strings, t);
    conc__stack_give(l, t->stack, t->spawned);
    l->finished++;
}

/* The first function on a task's stack. */
static void conc__task_main(void)
{
    CONC__BOTTOM();
    conc_loop *l = conc__here;
    conc_task *t = l->self;
    conc__arrived(l, t->stack);
    conc__fpu_load(&l->fpu);
    *l->errno_at = 0;
    int rc = t->fn(t->arg);
    l = conc__here;
    if (CONC__UNLIKELY(!l)) {
        fprintf(stderr, "conc: a task returned in a forked child, where its loop is dead; end the child with _exit\n");
        abort();
    }
    conc__finish(l, t, rc);
    conc_task *next = l->ready;
    if (next && l->turns > 0) {
        l->turns--;
        l->ready = next->next;
        l->self = next;
        conc__leaving(NULL, next->stack);
        conc__jump(l->scratch, next->context);
    } else {
        l->self = NULL;
        conc__leaving(NULL, &l->thread_stack);
        conc__jump(l->scratch, l->context);
    }
    __builtin_unreachable();
}

/* ---- >>joining ------------------------------------------------------------------------------------------------ */

static const conc__wait_kind conc__joining = {"joins", conc__whom_task, conc__cancel_plainly};

/* Somebody takes the result of a task that has ended. */
static void conc__collect(conc_loop *l, conc_task *t)
{
    if (t->in_finished)
        conc__unlist_finished(t->group, t);
    if (t->failed && !t->collected && l->failed)
        conc__forget(l, t);
    t->collected = true;
}

CONC_API int conc_join(conc_task *t, int *result)
{
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    if (!conc__is_task(t))
        return -EINVAL;
    if (t == l->self)
        return conc__misused(-EDEADLK, "conc_join", "a task would wait for itself", NULL);
    int rc = conc__checkpoint(l);
    if (rc)
        return rc;
    conc__joiner j = {.wait = {.task = l->self, .kind = &conc__joining, .on = t}, .result = t->result};
    if (t->state == CONC__LIVE) {
        if (t->loop != l)
            return -EPERM;
        conc__append(&t->joiners, &j.wait);
        rc = conc__park(l, &j.wait);
        if (rc)
            return rc;
    } else {
        conc__collect(l, t);
        if (t->result < 0)
            conc__tell(l->self, t->result, conc__words(t, t->result), conc__origin(t, t->result));
        conc__quick(l);
    }
    if (result)
        *result = j.result;
    return 0;
}

CONC_API int conc_cancel(conc_task *t)
{
    conc_loop *l = conc__here;
    if (!l)
        return -EPERM;
    if (!conc__is_task(t))
        return -EINVAL;
    if (t->state == CONC__DONE)
        return -EALREADY;
    if (t->loop != l)
        return -EPERM;
    conc__task_cancel(l, t);
    return 0;
}

CONC_API bool conc_done(const conc_task *t) { return conc__is_task(t) && t->state == CONC__DONE; }

CONC_API conc_task *conc_self(void)
{
    conc_loop *l = conc__here;
    return l ? l->self : NULL;
}

/* ---- >>grouping ----------------------------------------------------------------------------------------------- */

static void conc__whom_group(FILE *out, const conc__wait *w)
{
    const conc_group *g = w->on;
    fprintf(out, " %d %s of the group at %s", g->live, g->live == 1 ? "child" : "children",
            conc__place_of(g->scope.place));
}

static const conc__wait_kind conc__closing = {"waits for", conc__whom_group, NULL};
static const conc__wait_kind conc__choosing = {"waits for the next to finish of", conc__whom_group,
                                               conc__cancel_plainly};

/* Yields once at least, and returns when no child is left. */
static void conc__wait_until_empty(conc_loop *l, conc_group *g)
{
    if (!g->live && !g->finished)
        conc__pass(l);
    while (g->live) {
        conc__wait w = {.task = l->self, .kind = &conc__closing, .on = g};
        conc__append(&g->empty, &w);
        conc__park(l, &w);
    }
}

/* The handles that nobody collected are free again; errors in them that are not the group's own go to on_error. */
static void conc__drop_finished(conc_loop *l, conc_group *g)
{
    while (g->finished) {
        conc_task *t = g->finished;
        conc__unlist_finished(g, t);
        if (t->failed)
            conc__report_task(l, t);
    }
}

/* Waits for the children of an open group, ends its scope, and returns what is to be returned when the body's result
 * was rc. */
static int conc__group_close(conc_loop *l, conc_group *g, int rc)
{
    do {
        conc__wait_until_empty(l, g);
        conc__drop_finished(l, g);
    } while (g->live); /* on_error may spawn */
    bool outside = conc__cancelled_around(l, &g->scope);
    conc__scope_close(l, &g->scope);
    if (g->error) {
        conc__tell(l->self, g->error, g->text, g->error_by);
        return g->error;
    }
    if (rc == -ECANCELED || g->cut_short)
        return outside ? -ECANCELED : rc < 0 ? 0 : rc;
    return rc;
}

/* 0: the calling task may close this group; 1: it was never opened. */
static int conc__may_close(conc_loop *l, const conc_group *g)
{
    if (!l)
        return -EPERM;
    if (!g || g->scope.state == CONC__CLOSED)
        return conc__misused(-EINVAL, "the end of a group", "it was closed before", g ? g->scope.place : NULL);
    if (g->scope.state == CONC__FRESH)
        return 1;
    if (g->scope.task != l->self)
        return conc__misused(-EPERM, "the end of a group", "it is another task's", g->scope.place);
    if (l->self->scope != &g->scope)
        return conc__misused(-EINVAL, "the end of a group", "something inside is still open", l->self->place);
    return 0;
}

CONC_API CONC__CALLED int conc_group_end(conc_group *g, int rc)
{
    conc_loop *l = conc__in_task();
    if (l)
        conc__find_lost(l, __builtin_frame_address(0));
    int may = conc__may_close(l, g);
    if (may < 0)
        return may;
    if (may == 1)
        conc__group_open(l, g, "the group opened by its end");
    if (rc < 0 && !(rc == -ECANCELED && g->scope.effective)) {
        conc__group_failed(l, g, l->self, rc);
        conc__cancel_scope(l, &g->scope);
    }
    return conc__group_close(l, g, rc);
}

CONC_API int conc_group_wait(conc_group *g) { return conc_group_end(g, 0); }

CONC_API void conc_group_cancel(conc_group *g)
{
    if (g)
        conc_scope_cancel(&g->scope);
}

CONC_API void conc__auto_conc_group(conc_group *g)
{
    conc_loop *l = conc__in_task();
    if (!l || g->scope.state != CONC__OPEN || g->scope.task != l->self)
        return;
    if (l->self->scope != &g->scope)
        conc__lost(l, l->self, "the block of a CONC_AUTO group ended");
    conc__cancel_scope(l, &g->scope);
    int rc = conc__group_close(l, g, 0);
    if (rc < 0 && g->error)
        conc__report(l, g->error_by, g->error_by, g->error, g->text);
}

CONC_API int conc_group_next(conc_group *g, conc_task **t)
{
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    if (!g || !t || g->scope.state == CONC__CLOSED)
        return -EINVAL;
    int rc = conc__checkpoint(l);
    if (rc)
        return rc;
    if (g->scope.state == CONC__FRESH)
        return 0;
    if (g->scope.task->loop != l)
        return -EPERM;
    if (g->finished) {
        *t = g->finished;
        conc__collect(l, *t);
        conc__quick(l);
        return 1;
    }
    if (!g->live_handles)
        return 0;
    conc__chooser c = {.wait = {.task = l->self, .kind = &conc__choosing, .on = g}};
    conc__append(&g->next, &c.wait);
    rc = conc__park(l, &c.wait);
    if (rc == 1)
        *t = c.task;
    return rc;
}

/* ---- >>gathering ---------------------------------------------------------------------------------------------- */

/* What a gather or map runs, and where the results go. */
typedef struct conc__batch {
    conc_call *calls; /* or: */
    conc_fn *fn;
    char *args;
    size_t size;
    int *results;
    size_t count;
    bool keep_going, seen; /* seen: the caller can read every result, so none is lost */
} conc__batch;

static conc_task *conc__batch_spawn(conc_loop *l, conc_group *g, const conc__batch *b, size_t i, const char *spawned)
{
    conc_fn *fn = b->calls ? b->calls[i].fn : b->fn;
    void *arg = b->calls ? b->calls[i].arg : b->size ? b->args + i * b->size : b->args;
    conc_task *t = conc__task_new(l, g, NULL, fn, arg, spawned);
    if (t && b->calls && b->seen) {
        t->sink = &b->calls[i];
        t->sink_kind = CONC__CALL_SINK;
    } else if (t && b->results) {
        t->sink = &b->results[i];
        t->sink_kind = CONC__RESULT_SINK;
    }
    return t;
}

/* Takes back tasks that were spawned since `last` was the last ready one; none of them has run. */
static void conc__unspawn(conc_loop *l, conc_group *g, conc_task *last)
{
    if (last)
        last->next = NULL;
    else
        l->ready = NULL;
    l->last_ready = last;
    while (g->children) {
        conc_task *t = g->children;
        conc__stack *stack = t->stack;
        conc__child_remove(g, t);
        conc__locals_release(t->locals);
        conc__stack_give(l, stack, t->name);
        l->finished++;
    }
}

static CONC__CALLED int conc__run_batch(conc_loop *l, const conc__batch *b, const char *spawned)
{
    int rc = conc__checkpoint(l);
    if (rc)
        return rc;
    if (!b->count) {
        conc__quick(l);
        return 0;
    }
    conc_group g = {.keep_going = b->keep_going};
    conc_task *last = l->ready ? l->last_ready : NULL;
    conc__find_lost(l, __builtin_frame_address(0));
    conc__group_open(l, &g, spawned);
    for (size_t i = 0; i < b->count; i++)
        if (!conc__batch_spawn(l, &g, b, i, spawned)) {
            conc__unspawn(l, &g, last);
            conc__scope_close(l, &g.scope);
            return -ENOMEM;
        }
    if (!b->keep_going)
        return conc__group_close(l, &g, 0);
    conc__wait_until_empty(l, &g);
    bool outside = conc__cancelled_around(l, &g.scope);
    conc__scope_close(l, &g.scope);
    if (g.error && !b->seen)
        conc__report(l, g.error_by, g.error_by, g.error, g.text);
    return outside && g.cut_short ? -ECANCELED : 0;
}

static int conc__run_calls(const char *spawned, conc_call *calls, size_t n, bool keep_going, bool seen)
{
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    if (!calls && n)
        return -EINVAL;
    for (size_t i = 0; i < n; i++)
        if (!calls[i].fn)
            return -EINVAL;
    conc__batch b = {.calls = calls, .count = n, .keep_going = keep_going, .seen = seen};
    return conc__run_batch(l, &b, spawned);
}

CONC_API int conc__gather(const char *spawned, conc_call *calls, size_t n)
{
    return conc__run_calls(spawned, calls, n, false, true);
}

CONC_API int conc__gather_unseen(const char *spawned, conc_call *calls, size_t n)
{
    return conc__run_calls(spawned, calls, n, false, false);
}

CONC_API int conc__gather_all(const char *spawned, conc_call *calls, size_t n)
{
    return conc__run_calls(spawned, calls, n, true, true);
}

static int conc__run_map(const char *spawned, conc__batch *b)
{
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    if (!b->fn || (!b->args && b->count && b->size))
        return -EINVAL;
    return conc__run_batch(l, b, spawned);
}

CONC_API int conc__map(const char *spawned, conc_fn *fn, void *args, size_t count, size_t size)
{
    conc__batch b = {.fn = fn, .args = args, .count = count, .size = size};
    return conc__run_map(spawned, &b);
}

CONC_API int conc__map_all(const char *spawned, conc_fn *fn, void *args, size_t count, size_t size, int *results)
{
    conc__batch b = {.fn = fn,
                     .args = args,
                     .count = count,
                     .size = size,
                     .results = results,
                     .keep_going = true,
                     .seen = results != NULL};
    return conc__run_map(spawned, &b);
}

/* ---- >>keys --------------------------------------------------------------------------------------------------- */

static conc__locals *conc__locals_with_room(const conc__locals *old, int count)
{
    conc__locals *fresh = conc__alloc(sizeof *fresh + (size_t)count * sizeof fresh->entries[0]);
    if (!fresh)
        return NULL;
    fresh->references = 1;
    fresh->count = old ? old->count : 0;
    if (old)
        memcpy(fresh->entries, old->entries, (size_t)old->count * sizeof old->entries[0]);
    return fresh;
}

CONC_API int conc_local_set(conc_local *key, const void *value)
{
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    if (!key)
        return -EINVAL;
    conc__locals *old = l->self->locals, *now = old;
    int i = 0, count = old ? old->count : 0;
    while (i < count && old->entries[i].key != key)
        i++;
    if (i == count || old->references > 1) { /* others see the old values: copy */
        now = conc__locals_with_room(old, count + (i == count));
        if (!now)
            return -ENOMEM;
        conc__locals_release(old);
        l->self->locals = now;
        now->count = count + (i == count);
    }
    now->entries[i].key = key;
    now->entries[i].value = value;
    return 0;
}

CONC_API void *conc_local_get(conc_local *key)
{
    conc_loop *l = conc__in_task();
    conc__locals *locals = l ? l->self->locals : NULL;
    for (int i = 0; locals && i < locals->count; i++)
        if (locals->entries[i].key == key)
            return (void *)(uintptr_t)locals->entries[i].value;
    return NULL;
}

/* ---- >>generating --------------------------------------------------------------------------------------------- */

/* The body of a generator runs in the task that consumes it, on a stack of its own: what it waits for, its
 * cancellation, its locals and errno are the consumer's. This lies at the top of that stack, so the body survives a
 * conc_gen that is gone. */
typedef struct conc__gen {
    conc_gen face; /* what the body is given */
    struct conc__gen *next, *prev;
    conc__stack *stack, *outside; /* its own; the consumer's, while it is inside */
    void *inner[3], *outer[3];    /* the contexts on them */
    conc_gen_fn *fn;
    void *arg;
    const void *emitted; /* where the item was put that the consumer copies; NULL: none */
    size_t item_size;
    conc_task *consumer;       /* who is inside; NULL: nobody */
    conc_scope *scope;         /* its innermost scope then */
    struct conc__gen *used_by; /* the generator whose body asked last, which may be gone by now; NULL: a task */
    int rc;
    bool started, ended, closing;
} conc__gen;

static conc__gen conc__exhausted; /* what a conc_gen points to whose body has ended */

/* The generator whose body runs on a stack; NULL: a task does. */
static conc__gen *conc__gen_on(conc__stack *s)
{
    return s->has_generator ? (conc__gen *)(void *)conc__stack_top(s) : NULL;
}

static void conc__gen_main(void)
{
    CONC__BOTTOM();
    conc_loop *l = conc__here;
    conc_task *self = l->self;
    conc__gen *g = conc__gen_on(self->stack);
    conc__arrived(l, g->stack);
    g->rc = g->fn(&g->face, g->arg);
    self = l->self; /* the last consumer need not be the first */
    if (self->scope != g->scope)
        conc__lost(l, self, "a generator ended");
    g->ended = true;
    conc__leaving(NULL, g->outside);
    conc__jump(l->scratch, g->outer);
    __builtin_unreachable();
}

/* NULL: not open, or in a run that is over, which has closed it */
static conc__gen *conc__gen_of(const conc_loop *l, const conc_gen *face)
{
    return face && face->run == l->run ? face->body : NULL;
}

CONC_API int conc_gen_open(conc_gen *face, conc_gen_fn *fn, void *arg, size_t item_size)
{
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    if (!face || !fn || (conc__gen_of(l, face) && face->body != &conc__exhausted))
        return -EINVAL;
    conc__stack *stack = conc__stack_take(l->pool);
    if (!stack)
        return -ENOMEM;
    _Static_assert(sizeof(conc__gen) <= CONC__CORE, "a generator lies where a task without a handle would");
    char *top = conc__stack_top(stack);
    conc__gen *g = (conc__gen *)(void *)top;
    *g = (conc__gen){
        .face = {g, l->run}, .next = l->generators, .stack = stack, .fn = fn, .arg = arg, .item_size = item_size};
    if (l->generators)
        l->generators->prev = g;
    l->generators = g;
    l->generator_count++;
    stack->has_generator = true;
    conc__prepare(g->inner, stack->low, top, conc__gen_main);
    face->body = g;
    face->run = l->run;
    return 0;
}

/* Runs the body until it emits or ends. */
static void conc__gen_enter(conc_loop *l, conc__gen *g)
{
    conc_task *self = l->self;
    g->started = true;
    g->emitted = NULL;
    g->consumer = self;
    g->scope = self->scope;
    g->used_by = conc__gen_on(self->stack);
    g->outside = self->stack;
    self->stack = g->stack;
    l->switch_stacks(l, g->outside, g->outer, g->stack, g->inner);
    self->stack = g->outside;
    g->consumer = NULL;
}

/* The body has ended, or is abandoned: its stack goes back, and its result comes out. */
static int conc__gen_free(conc_loop *l, conc__gen *g, conc_gen *face)
{
    int rc = g->rc;
    *(g->prev ? &g->prev->next : &l->generators) = g->next;
    if (g->next)
        g->next->prev = g->prev;
    l->generator_count--;
    g->stack->has_generator = false;
    conc__stack_give(l, g->stack, "a generator");
    if (face)
        face->body = &conc__exhausted;
    return rc;
}

CONC_API int conc_gen_emit(conc_gen *face, const void *item)
{
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    conc__gen *g = conc__gen_of(l, face);
    if (!g || g == &conc__exhausted || l->self->stack != g->stack || l->self->scope != g->scope ||
        (!item && g->item_size))
        return -EINVAL;
    g->emitted = item ? item : g;
    l->switch_stacks(l, g->stack, g->inner, g->outside, g->outer);
    return g->closing ? -ECANCELED : 0;
}

CONC_API int conc_gen_next(conc_gen *face, void *item)
{
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    int rc = conc__checkpoint(l);
    if (rc)
        return rc;
    conc__quick(l); /* before the look at the generator: others may close it meanwhile */
    conc__gen *g = conc__gen_of(l, face);
    if (!g || (!item && g->item_size))
        return -EINVAL;
    if (g == &conc__exhausted)
        return 0;
    if (g->consumer)
        return -EBUSY;
    conc__gen_enter(l, g);
    if (g->ended) {
        rc = conc__gen_free(l, g, face);
        return rc < 0 ? rc : 0;
    }
    if (g->item_size)
        memcpy(item, g->emitted, g->item_size);
    return 1;
}

static int conc__gen_finish(conc_loop *l, conc__gen *g, conc_gen *face)
{
    g->closing = true;
    if (g->started && !g->ended) {
        conc__gen_enter(l, g);
        if (!g->ended)
            g->rc = -EINVAL; /* it emitted again; nobody will go on there */
    }
    int rc = conc__gen_free(l, g, face);
    return rc < 0 && rc != -ECANCELED ? rc : 0;
}

CONC_API int conc_gen_close(conc_gen *face)
{
    conc_loop *l = conc__in_task();
    if (!face)
        return -EINVAL;
    conc__gen *g = l ? conc__gen_of(l, face) : face->body;
    if (!g || g == &conc__exhausted) {
        face->body = NULL;
        return 0;
    }
    if (!l)
        return -EPERM;
    if (g->consumer)
        return -EBUSY;
    int rc = conc__gen_finish(l, g, face);
    face->body = NULL;
    return rc;
}

CONC_API void conc__auto_conc_gen(conc_gen *g)
{
    int rc = conc_gen_close(g);
    conc_loop *l = conc__in_task();
    if (rc < 0 && l)
        conc__report(l, "a generator", l->self->spawned, rc, "");
}

static bool conc__gen_is_open(const conc_loop *l, const conc__gen *g)
{
    const conc__gen *open = g ? l->generators : NULL;
    while (open && open != g)
        open = open->next;
    return open != NULL;
}

/* The end of a run: consumers are closed before what they consume. */
static void conc__close_generators(conc_loop *l)
{
    while (l->generators) {
        conc__gen *g = l->generators;
        for (size_t n = l->generator_count; conc__gen_is_open(l, g->used_by) && n; n--)
            g = g->used_by;
        int rc = conc__gen_finish(l, g, NULL);
        if (rc < 0)
            conc__report(l, "a generator", "left open until the end of the run", rc, "");
    }
}

/* ---- >>posting ------------------------------------------------------------------------------------------------ */

CONC_API conc_loop *conc_loop_self(void) { return conc__here; }

static void conc__loop_free(conc_loop *l)
{
    pthread_mutex_destroy(&l->mutex);
    CONC_FREE(l);
}

CONC_API int conc_loop_hold(conc_loop *l)
{
    if (!l)
        return -EINVAL;
    pthread_mutex_lock(&l->mutex);
    l->holds++;
    pthread_mutex_unlock(&l->mutex);
    return 0;
}

CONC_API int conc_loop_release(conc_loop *l)
{
    if (!l)
        return -EINVAL;
    pthread_mutex_lock(&l->mutex);
    if (!l->holds) {
        pthread_mutex_unlock(&l->mutex);
        return -EINVAL;
    }
    bool last = --l->holds == 0 && l->over_for_good;
    if (!l->holds && l->asleep && !l->closed) /* without a hold its wait may have become a deadlock */
        conc__wake_up(l);
    pthread_mutex_unlock(&l->mutex);
    if (last)
        conc__loop_free(l);
    return 0;
}

CONC_API int conc_post(conc_loop *l, void (*fn)(void *), void *arg)
{
    if (!l || !fn)
        return -EINVAL;
    conc__post *p = conc__alloc(sizeof *p);
    if (!p)
        return -ENOMEM;
    *p = (conc__post){NULL, fn, arg};
    pthread_mutex_lock(&l->mutex);
    if (l->closed) {
        pthread_mutex_unlock(&l->mutex);
        CONC_FREE(p);
        return -ESHUTDOWN;
    }
    if (l->posted)
        l->last_posted->next = p;
    else
        atomic_store_explicit(&l->posted, p, memory_order_relaxed);
    l->last_posted = p;
    if (l->asleep) { /* under the mutex, so that the descriptor is still open */
        l->asleep = false;
        conc__wake_up(l);
    }
    pthread_mutex_unlock(&l->mutex);
    return 0;
}

static conc__post *conc__take_posts(conc_loop *l)
{
    pthread_mutex_lock(&l->mutex);
    conc__post *first = l->posted;
    atomic_store_explicit(&l->posted, NULL, memory_order_relaxed);
    pthread_mutex_unlock(&l->mutex);
    return first;
}

/* In the scheduler: those posted meanwhile wait for the next pass. */
static void conc__run_posts(conc_loop *l)
{
    if (!atomic_load_explicit(&l->posted, memory_order_relaxed))
        return;
    for (conc__post *p = conc__take_posts(l), *next; p; p = next) {
        next = p->next;
        p->fn(p->arg);
        CONC_FREE(p);
    }
}

/* ---- >>reporting ---------------------------------------------------------------------------------------------- */

static const char *conc__state_of(const conc_loop *l, const conc_task *t)
{
    return t == l->self ? "running" : t->wait ? t->wait->kind->what : t->state == CONC__DONE ? "ended" : "ready";
}

static void conc__print_task(FILE *out, const conc_loop *l, const conc_task *t, int depth)
{
    fprintf(out, "%*s%s: %s", depth * 2, "", t->name, conc__state_of(l, t));
    if (t->wait && t->wait->kind->whom)
        t->wait->kind->whom(out, t->wait);
    if (t->pending)
        fprintf(out, ", cancelled");
    if (t->name != t->spawned)
        fprintf(out, " (spawned at %s)", conc__place_of(t->spawned));
    fputc('\n', out);
}

static void conc__print_group(FILE *out, const conc_group *g, int depth)
{
    if (g->background)
        fprintf(out, "%*sbackground", depth * 2, "");
    else
        fprintf(out, "%*sgroup at %s", depth * 2, "", conc__place_of(g->scope.place));
    fprintf(out, ", %d %s%s:\n", g->live, g->live == 1 ? "child" : "children", g->scope.effective ? ", cancelled" : "");
}

/* The first group with children from scope s inward. */
static conc_group *conc__group_from(conc_scope *s)
{
    while (s && !(s->is_group && conc__group_of(s)->children))
        s = s->inner;
    return s ? conc__group_of(s) : NULL;
}

static conc_group *conc__first_group(const conc_task *t)
{
    conc_scope *s = t->scope;
    while (s && s->outer)
        s = s->outer;
    return conc__group_from(s);
}

/* The tree below a task, without recursion: it may be deep. */
static void conc__print_tree(FILE *out, const conc_loop *l, const conc_group *g, int depth)
{
    int top = depth;
    while (g) {
        conc__print_group(out, g, depth);
        const conc_task *t = g->children;
        for (;;) {
            conc__print_task(out, l, t, depth + 1);
            g = conc__first_group(t);
            if (g) { /* down */
                depth += 2;
                break;
            }
            while (!t->younger) { /* up: to the owner's next group, or to the owner's next sibling */
                const conc_group *up = t->group;
                g = up->background ? NULL : conc__group_from(up->scope.inner);
                if (g || depth == top)
                    break;
                depth -= 2;
                t = up->scope.task;
            }
            if (g || !t->younger)
                break;
            t = t->younger;
        }
    }
}

static void conc__print_all(conc_loop *l, FILE *out)
{
    conc__print_task(out, l, &l->main, 1);
    conc__print_tree(out, l, conc__first_group(&l->main), 2);
    if (l->background.children)
        conc__print_tree(out, l, &l->background, 1);
}

typedef struct conc__dump_call {
    FILE *out;
    conc_task *self;
} conc__dump_call;

static void conc__dump_on_loop(conc_loop *l, void *arg)
{
    conc__dump_call *d = arg;
    l->self = d->self; /* so that it shows as running */
    size_t tasks = (size_t)(l->spawned - l->finished);
    fprintf(d->out, "conc: %zu %s, time %.9f, %zu %s\n", tasks, tasks == 1 ? "task" : "tasks",
            (double)conc__time(l) / 1e9, l->wheel.count, l->wheel.count == 1 ? "timer" : "timers");
    conc__print_all(l, d->out);
    l->self = NULL;
}

CONC_API void conc_dump(FILE *out)
{
    conc_loop *l = conc__here;
    if (!out)
        return;
    if (!l) {
        fprintf(out, "conc: no run on this thread\n");
        return;
    }
    conc__dump_call d = {out, l->self};
    conc__on_loop(l, conc__dump_on_loop, &d);
}

/* Every task waits, and nothing is left that could wake one: says so, and cancels everything, through every shield. */
static CONC__COLD void conc__deadlock(conc_loop *l)
{
    fprintf(stderr, "conc: deadlock: every task waits, and nothing can wake one\n");
    conc__print_all(l, stderr);
    if (l->doomed) {
        fprintf(stderr, "conc: they were cancelled already, and do not end\n");
        abort();
    }
    l->doomed = true;
    conc__mark(l, &l->main);
    conc__spread(l, NULL, &l->background.scope, true);
    conc__spread_marked(l);
}

typedef struct conc__lost_call {
    const conc_task *task;
    const char *how;
} conc__lost_call;

static void conc__lost_on_loop(conc_loop *l, void *arg)
{
    const conc__lost_call *c = arg;
    (void)l;
    const char *place = c->task->place,
               *opened = strncmp(place, "the ", 4) == 0 ? "" : "the group of "; /* by its first spawn */
    fprintf(stderr, "conc: %s: %s, with %s%s still open\n", c->task->name, c->how, opened, place);
    abort();
}

/* The task's innermost scope is gone with the memory it lay in, and the loop still points there: there is no way on. */
static CONC__COLD void conc__lost(conc_loop *l, const conc_task *t, const char *how)
{
    conc__lost_call c = {t, how};
    conc__on_loop(l, conc__lost_on_loop, &c);
}

CONC_API void conc_get_stats(conc_stats *s)
{
    conc_loop *l = conc__here;
    if (!s)
        return;
    memset(s, 0, sizeof *s);
    if (!l)
        return;
    for (const conc_task *t = l->ready; t; t = t->next)
        s->ready++;
    for (conc__pool *p = l->pools; p; p = p->next) {
        conc__pool_count(p);
        for (const conc__slab *slab = p->slabs; slab; slab = slab->next) {
            s->stacks += (size_t)(slab->carved - slab->unused);
            s->stacks_kept += (size_t)slab->unused;
            s->stack_bytes += p->stride * (size_t)p->per_slab;
        }
    }
    s->tasks = (size_t)(l->spawned - l->finished);
    s->timers = l->wheel.count;
    s->generators = l->generator_count;
    pthread_mutex_lock(&l->mutex);
    s->holds = l->holds;
    pthread_mutex_unlock(&l->mutex);
    s->spawned = l->spawned;
    s->switches = l->switches;
    s->passes = l->passes;
    s->polls = l->polls;
}

/* ---- >>running ------------------------------------------------------------------------------------------------ */

CONC_API double conc_random(double low, double high)
{
    conc_loop *l = conc__here;
    if (!l || !(high > low))
        return low;
    double x = low + (high - low) * ((double)(conc__mix(&l->draws) >> 11) / 9007199254740992.0);
    return x < high ? x : low;
}

/* A number from the environment; false: it makes no sense, which is said. */
static bool conc__env_number(const char *name, uint64_t least, uint64_t *out)
{
    const char *text = conc__env(name);
    char *end;
    if (!text)
        return true;
    int saved = errno;
    errno = 0;
    unsigned long long n = strtoull(text, &end, 10);
    bool good = !errno && *end == 0 && text[0] >= '0' && text[0] <= '9' && n >= least;
    errno = saved;
    if (good)
        *out = n;
    else
        fprintf(stderr, "conc: %s=%s is not a number from %llu on\n", name, text, (unsigned long long)least);
    return good;
}

/* One of two words from the environment: *out becomes 0 or 1. */
static bool conc__env_word(const char *name, const char *zero, const char *one, int *out)
{
    const char *text = conc__env(name);
    if (!text)
        return true;
    *out = strcmp(text, one) == 0;
    if (*out || strcmp(text, zero) == 0)
        return true;
    fprintf(stderr, "conc: %s=%s is neither %s nor %s\n", name, text, zero, one);
    return false;
}

/* Fills in what the environment says and the defaults. */
static int conc__options_complete(conc_options *o, const conc__backend **backend)
{
    uint64_t seed = o->seed, stack = o->stack_size;
    int clock = o->virtual_clock, debug = o->debug, epoll = -1;
    if (!conc__env_number("CONC_SEED", 0, &seed) || !conc__env_number("CONC_STACK", CONC__LEAST_STACK, &stack) ||
        !conc__env_word("CONC_CLOCK", "real", "virtual", &clock) || !conc__env_word("CONC_DEBUG", "0", "1", &debug) ||
        !conc__env_word("CONC_POLL", "poll", "epoll", &epoll))
        return -EINVAL;
    *backend = epoll == 0 ? &conc__poll : &CONC__BEST_BACKEND;
    if (epoll == 1 && strcmp((*backend)->name, "epoll") != 0) {
        fprintf(stderr, "conc: CONC_POLL=epoll: this build has only poll\n");
        return -EINVAL;
    }
    o->seed = seed;
    o->stack_size = stack ? (size_t)stack : CONC_STACK_SIZE;
    o->virtual_clock = clock;
    o->debug = debug;
    o->slow_step = o->slow_step == 0 ? 0.1 : o->slow_step;
    if (!conc__stack_fits(o->stack_size) || !(o->slow_step > 0))
        return -EINVAL;
    return o->interrupt || o->trace || conc__env("CONC_TRACE") ? -ENOTSUP : 0;
}

/* In a forked child the loops it inherited are dead. */
static void conc__forget_loop(void) { conc__here = NULL; }

static void conc__watch_forks(void) { pthread_atfork(NULL, NULL, conc__forget_loop); }

static int conc__loop_open(conc_loop *l, const conc__backend *backend)
{
    static pthread_once_t forks = PTHREAD_ONCE_INIT;
    pthread_once(&forks, conc__watch_forks);
    l->pool = conc__pool_for(l, l->options.stack_size);
    if (!l->pool)
        return -ENOMEM;
    l->backend = backend;
    int rc = conc__wake_open(l);
    return rc ? rc : backend->open(l);
}

static void conc__loop_close(conc_loop *l)
{
    if (l->backend)
        l->backend->close(l);
    conc__stacks_close(l);
    pthread_mutex_lock(&l->mutex);
    l->closed = l->over_for_good = true;
    conc__wake_close(l);
    bool held = l->holds > 0;
    pthread_mutex_unlock(&l->mutex);
    if (!held)
        conc__loop_free(l);
}

static conc_loop *conc__loop_new(const conc_options *o)
{
    static atomic_uint_least64_t runs;
    conc_loop *l = conc__alloc(sizeof *l);
    if (!l)
        return NULL;
    memset(l, 0, sizeof *l);
    pthread_mutex_init(&l->mutex, NULL);
    l->poll_fd = l->wake_in = l->wake_out = -1;
    l->options = *o;
    l->virtual_clock = o->virtual_clock;
    l->seeded = o->seed != 0;
    l->debug = o->debug;
    l->on_valgrind = conc__on_valgrind();
    l->run = 1 + atomic_fetch_add_explicit(&runs, 1, memory_order_relaxed);
    l->quick = CONC__QUICK;
    l->errno_at = &errno;
    l->switch_stacks = conc__switch_plainly;
    l->now = o->virtual_clock ? 0 : conc__clock();
    l->wheel.elapsed = (uint64_t)l->now;
    l->trimmed = l->now;
    l->picks = l->draws = o->seed;
    if (!o->seed && !o->virtual_clock)
        l->draws = (uint64_t)conc__clock() ^ (uint64_t)(uintptr_t)l;
    l->last_failed = &l->failed;
    conc__fpu_save(&l->fpu);
#if CONC__TSAN
    l->thread_stack.tsan_fiber = __tsan_get_current_fiber();
#endif
    return l;
}

/* What is left when main_fn has returned; in its task. */
static void conc__wind_up(conc_loop *l)
{
    conc_task *self = l->self;
    if (self->scope)
        conc__lost(l, self, "main_fn returned");
    self->asked = false; /* its cancel is over: what follows waits */
    conc__mark(l, self);
    conc__spread_marked(l);
    conc__cancel_scope(l, &l->background.scope);
    if (l->background.live)
        conc__wait_until_empty(l, &l->background);
    conc__close_generators(l);
    while (l->failed) {
        conc__failed *f = l->failed;
        l->failed = f->next;
        conc__report(l, f->name, f->spawned, f->rc, f->text);
        CONC_FREE(f);
    }
    l->last_failed = &l->failed;
}

static int conc__main_task(void *arg)
{
    conc_loop *l = arg;
    int rc = l->main_fn(l->main_arg);
    if (conc__here != l)
        return rc; /* a forked child */
    conc__wind_up(l);
    l->over = true;
    return rc;
}

/* How a run ended, for conc_main. */
typedef struct conc__outcome {
    const char *by;
    char text[CONC__TEXT];
} conc__outcome;

static int conc__start_main(conc_loop *l)
{
    size_t size = l->options.stack_size < CONC_STACK_SIZE ? CONC_STACK_SIZE : l->options.stack_size;
    conc__pool *pool = conc__pool_for(l, size);
    conc__stack *stack = pool ? conc__stack_take(pool) : NULL;
    if (!stack)
        return -ENOMEM;
    conc__task_init(l, &l->main, true, stack, conc__main_task, l, l->main_name);
    l->background.scope.state = CONC__OPEN;
    l->background.scope.is_group = l->background.background = l->background.keep_going = true;
    l->background.scope.place = "background";
    conc__prepare(l->main.context, stack->low, conc__stack_top(stack), conc__task_main);
    conc__make_ready(l, &l->main);
    return 0;
}

/* Refuses posts from here on, and runs what was accepted. */
static void conc__last_posts(conc_loop *l)
{
    pthread_mutex_lock(&l->mutex);
    l->closed = true;
    pthread_mutex_unlock(&l->mutex);
    conc__run_posts(l);
}

static int conc__run_loop(conc_loop *l, conc__outcome *outcome)
{
    int rc = conc__start_main(l);
    if (rc)
        return rc;
    conc__here = l;
    conc__schedule(l);
    conc__last_posts(l);
    conc__here = NULL;
    rc = l->doomed ? -EDEADLK : l->main.result;
    if (rc < 0) {
        outcome->by = conc__origin(&l->main, rc);
        conc__copy(outcome->text, sizeof outcome->text, conc__words_or(conc__words(&l->main, rc), rc));
    }
    return rc;
}

static int conc__run(const conc_options *options, const char *spawned, conc_fn *main_fn, void *arg,
                     conc__outcome *outcome)
{
    conc_options o = options ? *options : (conc_options){0};
    const conc__backend *backend;
    if (conc__here)
        return -EBUSY;
    int rc = main_fn ? conc__options_complete(&o, &backend) : -EINVAL;
    if (rc == 0 && conc__shadow_stack())
        rc = -ENOTSUP;
    if (rc)
        return rc;
    int saved = errno;
    conc_loop *l = conc__loop_new(&o);
    if (!l)
        return -ENOMEM;
    l->main_name = spawned;
    l->main_fn = main_fn;
    l->main_arg = arg;
    rc = conc__loop_open(l, backend);
    if (rc == 0)
        rc = conc__run_loop(l, outcome);
    conc__loop_close(l);
    errno = saved;
    return rc;
}

CONC_API int conc_run_with(const conc_options *options, conc_fn *main_fn, void *arg)
{
    conc__outcome outcome;
    return conc__run(options, "main", main_fn, arg, &outcome);
}

CONC_API int conc_run(conc_fn *main_fn, void *arg) { return conc_run_with(NULL, main_fn, arg); }

CONC_API int conc__main(const char *spawned, conc_fn *main_fn, void *arg)
{
    conc__outcome outcome = {spawned, ""};
    int rc = conc__run(NULL, spawned, main_fn, arg, &outcome);
    if (rc < 0)
        fprintf(stderr, "conc: %s failed: %s\n", outcome.by, conc__words_or(outcome.text, rc));
    return rc < 0;
}

#endif /* CONC_IMPLEMENTATION */

/* ---- >>licence ------------------------------------------------------------------------------------------------ *
 *
 * MIT License
 *
 * Copyright (c) 2026 the conc authors
 *
 * Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
 * documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
 * rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to
 * permit persons to whom the Software is furnished to do so, subject to the following conditions:
 *
 * The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
 * Software.
 *
 * THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
 * WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS
 * OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
 * OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
 */
