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
 * Nothing is to be linked or installed: cc file.c. C11 and later, GCC or Clang; a C++17 file can include and call
 * the declarations.
 *
 * Conventions, said once
 *   Results   0 or a count is success, a negative errno is failure. errno itself is left alone, and each task has its own.
 *   Calling   a call that says nothing else may be made from any task; outside a run it returns -EPERM. In a function
 *             given to conc_post nothing may wait: what would wait returns -EPERM there.
 *   Waiting   "Waits" marks a checkpoint: the call may let other tasks run, and returns -ECANCELED, having had no effect,
 *             when a scope around it is cancelled or out of time. -ECANCELED always means "clean up and return".
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
 * Contents: >>version >>run >>time >>scopes >>groups >>tasks >>errors >>locals >>generators >>loops >>reports,
 * then the implementation, whose sections are listed where it starts, then the licence.
 */
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
    void *user;         /* handed to on_error */
} conc_options;

/* Runs main_fn(arg) as the first task of a new loop on this thread, until it and every other task ended. Returns its
 * result. Errors: -EBUSY inside a run, -EINVAL (NULL function or senseless options), -ENOMEM, -ENOTSUP (a processor's
 * shadow stack is on), or that of the system call that failed; -EDEADLK when every task waited for ever. At the end
 * background tasks are cancelled and waited for, and generators left open are closed. Callable from any thread. */
CONC_API int conc_run(conc_fn *main_fn, void *arg);
CONC_API int conc_run_with(const conc_options *options, conc_fn *main_fn, void *arg);

/* For `return conc_main(app, NULL);` in main(): conc_run, then an exit status: 0, or 1 after it printed the error with
 * its task, place and text to stderr. */
CONC_API int conc_main(conc_fn *main_fn, void *arg);

/* A random number, low <= x < high (low when high is not above it). Repeats from run to run under a seed or on the virtual
 * clock; not for secrets. Outside a run it returns low. */
CONC_API double conc_random(double low, double high);

/* ---- >>time ------------------------------------------------------------------------------------------------- */

#define CONC_FOREVER 1e300 /* as a timeout: none; as a deadline: never */

/* Seconds on the loop's clock: monotonic with an arbitrary start, or the virtual clock. Outside a run the monotonic one. */
CONC_API double conc_now(void);

/* Sleeps s seconds, or until conc_now() is t. Waits. What is already due yields once. NaN: -EINVAL. */
CONC_API int conc_sleep(double s);
CONC_API int conc_sleep_until(double t);

/* Lets every task that is ready run once. Waits. */
CONC_API int conc_yield(void);

/* Holds the whole loop for s seconds, as a long computation or a blocking call would: for demonstrations and tests. On the
 * virtual clock it moves time by s. Then limits that passed meanwhile are in force. NaN: -EINVAL. Not a checkpoint. */
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
    int slot;
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
#define conc_scope_begin(s, timeout) conc__scope_begin((s), (timeout), CONC__PLACE)
CONC_API int conc__scope_begin(conc_scope *s, double timeout, const char *place);

/* Leaves the task's innermost scope with the block's result, and returns the result to go on with. Only an -ECANCELED that
 * this scope caused is changed: to -ETIMEDOUT by its time limit, to 0 by conc_scope_cancel. When an outer scope is
 * cancelled too, -ECANCELED passes through. Errors, changing nothing: -EINVAL (not open, not the innermost), -EPERM
 * (another task's). Not a checkpoint. */
CONC_API int conc_scope_end(conc_scope *s, int rc) CONC_NODISCARD;

/* Cancels everything inside, until the scope is left; what waits there wakes up. Nothing happens to a scope that is not open.
 * From any task or posted function of the loop. */
CONC_API void conc_scope_cancel(conc_scope *s);

/* Sets the time limit anew, counted from now; takes effect at once, also while the task waits. Errors: -EINVAL (NaN, not
 * open, cancelled already). From any task or posted function of the loop. */
CONC_API int conc_scope_set_timeout(conc_scope *s, double s_from_now);

/* While on, cancels and time limits from outside do not reach the inside; the scope's own do. Takes effect at once, also
 * while the task waits. From any task or posted function of the loop. */
CONC_API void conc_scope_shield(conc_scope *s, bool on);

/* fn(arg) here and now, with s seconds to end in (asyncio.wait_for): its result, or -ETIMEDOUT once it ended after the limit
 * with -ECANCELED. Waits as fn does. -EINVAL: NULL fn, NaN. */
CONC_API int conc_timeout(double s, conc_fn *fn, void *arg);

/* fn(arg) here and now, with cancels from outside hidden: for cleaning up. grace bounds it, in seconds. Results as above. */
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
    bool cut_short, closing, background;
    conc_task *children, *finished, *last_finished;
    conc__waits room, next, empty;
    conc_scope scope;
    char text[128];
};

/* Opens the group here, as a scope of the calling task, which is its owner. The first spawn does the same.
 *     int conc_group_begin(conc_group *g);
 * Errors: -EINVAL (NULL, used before, negative limit). Not a checkpoint. */
#define conc_group_begin(g) conc__group_begin((g), CONC__PLACE)
CONC_API int conc__group_begin(conc_group *g, const char *place);

/* Starts fn(arg) as a task of the group; g NULL: of the run's own background group, which the run's end cancels. Returns 0
 * at once, and fn runs when the caller waits next; 0 guarantees that it runs. Waits only under a limit that is reached.
 *     int conc_spawn(conc_group *g, conc_fn *fn, void *arg);
 * Errors, fn is not run and arg stays yours: -ECANCELED (the group is cancelled, or the caller while it waited for room),
 * -EINVAL (NULL fn, a group that was closed), -ENOMEM, -EPERM (another loop's group). */
#define conc_spawn(g, fn, ...) conc__spawn((g), CONC__NAMED(fn), (fn), __VA_ARGS__)
CONC_API int conc__spawn(conc_group *g, const char *spawned, conc_fn *fn, void *arg);

/* The same with a handle, in storage of yours that stays where it is until the task was joined, was returned by
 * conc_group_next, or its group closed. -EBUSY: the handle is in use.
 *     int conc_spawn_task(conc_group *g, conc_task *t, conc_fn *fn, void *arg); */
#define conc_spawn_task(g, t, fn, ...) conc__spawn_task((g), (t), CONC__NAMED(fn), (fn), __VA_ARGS__)
CONC_API int conc__spawn_task(conc_group *g, conc_task *t, const char *spawned, conc_fn *fn, void *arg);

/* Starts fn as conc_spawn does, and waits until it called conc_started(value): returns value. When fn ended before that its
 * error is returned (-EINVAL if it had none) and the group is as before. A cancel of the caller cancels fn, and is
 * returned when fn ended. Waits.
 *     int conc_start(conc_group *g, conc_fn *fn, void *arg); */
#define conc_start(g, fn, ...) conc__start((g), CONC__NAMED(fn), (fn), __VA_ARGS__)
CONC_API int conc__start(conc_group *g, const char *spawned, conc_fn *fn, void *arg);

/* Tells the conc_start that started this task to go on with value, 0 or more. Errors: -EINVAL (not so started, said twice,
 * negative), -ECANCELED (the starter gave up). Not a checkpoint. */
CONC_API int conc_started(int value);

/* Waits for every child, those spawned meanwhile included, and closes the group. Returns the first error; else -ECANCELED if
 * an outer scope is cancelled and a member was cut short; else 0. A group that was never opened: 0. Errors, changing
 * nothing: -EINVAL (closed already, or a scope opened later is still open), -EPERM (not the owner). Waits, and a cancel
 * does not cut it short: it reaches the children. */
CONC_API int conc_group_wait(conc_group *g) CONC_NODISCARD;

/* The same with the body's own result: an error cancels the children first and is the group's first error (unless a child's
 * came before it). Returns rc when nothing failed. */
CONC_API int conc_group_end(conc_group *g, int rc) CONC_NODISCARD;

/* Cancels the children and the owner's body, until the group is closed; its own wait then returns 0. Nothing happens to a group
 * that is not open. From any task or posted function of the loop. */
CONC_API void conc_group_cancel(conc_group *g);

/* Waits for the next child to finish that has a handle and was not collected before: 1 and the handle in *t, in the order of
 * finishing; 0 when none is left. Errors: -EINVAL, -ECANCELED. */
CONC_API int conc_group_next(conc_group *g, conc_task **t) CONC_NODISCARD;

/* One call of a gather. result is its value, text its error in words ("" when it succeeded). */
typedef struct conc_call {
    conc_fn *fn;
    void *arg;
    int result;
    char text[96];
} conc_call;

/* All calls at once, each as a task; returns when all ended. The first error cancels the rest and is returned; 0 when none
 * failed. Every result is in its call. n 0 is 0 at once. Errors before anything ran: -EINVAL, -ENOMEM. Waits.
 *     int conc_gather(conc_call *calls, size_t n); */
#define conc_gather(...) conc__gather("conc_gather at " CONC__PLACE, __VA_ARGS__)
CONC_API int conc__gather(const char *spawned, conc_call *calls, size_t n);

/* The same, and errors cancel nothing (return_exceptions=True): 0, or -ECANCELED when the caller was cancelled.
 *     int conc_gather_all(conc_call *calls, size_t n); */
#define conc_gather_all(...) conc__gather_all("conc_gather_all at " CONC__PLACE, __VA_ARGS__)
CONC_API int conc__gather_all(const char *spawned, conc_call *calls, size_t n);

/* fn on each of count elements of size bytes, all at once, with the address of the element; otherwise as conc_gather. size 0:
 * every call gets args itself.
 *     int conc_map(conc_fn *fn, void *args, size_t count, size_t size); */
#define conc_map(fn, ...) conc__map(CONC__NAMED(fn), (fn), __VA_ARGS__)
CONC_API int conc__map(const char *spawned, conc_fn *fn, void *args, size_t count, size_t size);

/* As conc_gather_all; results (NULL: not wanted) has count places, which belong to the call until it returns.
 *     int conc_map_all(conc_fn *fn, void *args, size_t count, size_t size, int *results); */
#define conc_map_all(fn, ...) conc__map_all(CONC__NAMED(fn), (fn), __VA_ARGS__)
CONC_API int conc__map_all(const char *spawned, conc_fn *fn, void *args, size_t count, size_t size, int *results);

#define CONC_LEN(array) (sizeof(array) / sizeof((array)[0]))

/* conc_call calls[] = {CONC_CALL(f, &x), CONC_CALL(g, &y)}; or, when only the sum of it matters, CONC_GATHER(CONC_CALL(...), ...)
 * (C only: C++ has no array that lives for one expression). */
#define CONC_CALL(fn, ...) {(fn), (__VA_ARGS__), 0, {0}}
#define CONC_GATHER(...) \
    conc_gather((conc_call[]){__VA_ARGS__}, sizeof((conc_call[]){__VA_ARGS__}) / sizeof(conc_call))
#define CONC_MAP(fn, array) conc_map(fn, (array), CONC_LEN(array), sizeof((array)[0]))
#define CONC_MAP_ALL(fn, array, results) conc_map_all(fn, (array), CONC_LEN(array), sizeof((array)[0]), (results))

/* ---- >>tasks ------------------------------------------------------------------------------------------------ */

/* All private. Tasks without a handle live at the top of their own stack, and end before name_copy. */
struct conc_task {
    conc_task *next; /* the ready queue */
    void *context[3];
    conc_loop *loop;
    conc__wait *wait;
    conc_scope *scope;
    int error_number;
    bool pending, asked, marked, owns_text;
    struct conc__stack *stack;
    conc_fn *fn;
    void *arg;
    int result, last_rc;
    conc_group *group;
    conc_task *older, *younger;
    conc_task *next_marked;
    conc__waits joiners;
    const char *name, *spawned;
    char *text;
    struct conc__locals *locals;
    void *sink;
    uint8_t state, sink_kind, cancels_in_a_row;
    bool has_handle, in_finished, collected, failed, ready;
    uintptr_t seal;
    char name_copy[48];
    char text_copy[128];
};

/* Waits until the task ended; its result in *result (NULL: not wanted), its error text in conc_last_error. Never cancels it;
 * any number may join. Errors: -ECANCELED (the caller's own cancel; the target goes on), -EDEADLK (oneself), -EINVAL. */
CONC_API int conc_join(conc_task *t, int *result);

/* Cancels the task's outermost scope: each of its checkpoints returns -ECANCELED from now on. Returns at once: 0, or -EALREADY
 * when it had ended, -EINVAL for no task, -EPERM for another loop's. From any task or posted function of the loop. */
CONC_API int conc_cancel(conc_task *t);

/* Has the task ended? */
CONC_API bool conc_done(const conc_task *t);

/* The running task, valid until it ends; NULL in a posted function and outside a run. */
CONC_API conc_task *conc_self(void);

/* A task's name: what conc_set_name said (copied, 47 bytes at most), else its function and where it was spawned. Borrowed; NULL
 * for no task. A name for which there is no memory changes nothing. */
CONC_API const char *conc_name(const conc_task *t);
CONC_API void conc_set_name(conc_task *t, const char *name);

/* ---- >>errors ----------------------------------------------------------------------------------------------- */

/* Returns rc; the words (127 bytes at most) go with it to join, group, gather and on_error when the task's result is rc.
 *     return conc_fail(-EPROTO, "line %d: no colon", line); */
CONC_API int conc_fail(int rc, const char *fmt, ...) __attribute__((__format__(__printf__, 2, 3)));

/* The error of a task that ended, in words: its conc_fail text, else conc_strerror's; "" without an error. Borrowed. */
CONC_API const char *conc_error_text(const conc_task *t);

/* The newest error that this task made or was told of by a join, group or gather, in words; "" when there was none. Borrowed until
 * the next one. */
CONC_API const char *conc_last_error(void);

/* Any negative errno, in words: what it means in conc where that differs from the system's. Borrowed for ever. From anywhere. */
CONC_API const char *conc_strerror(int rc);

/* The value of expr; a negative one is returned from the calling function. Not inside an open scope or group: there
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
#define conc__end(s, rc) _Generic((s), conc_group *: conc_group_end, conc_scope *: conc_scope_end)((s), (rc))
#endif

/* CONC_AUTO(conc_group, g) = {.limit = 5}; closes the object when the block is left, however that happens; the last declared closes
 * first. Here for conc_group (children are cancelled and waited for, their errors go to on_error) and conc_gen; closing what was
 * never opened, or closed before, does nothing. Not for conc_scope, whose end changes the result. */
#define CONC_AUTO(type, name) __attribute__((cleanup(conc__auto_##type))) type name
CONC_API void conc__auto_conc_group(conc_group *g);
CONC_API void conc__auto_conc_gen(conc_gen *g);

/* ---- >>locals ----------------------------------------------------------------------------------------------- */

/* A value for each task, inherited: static conc_local request_id = {"request id"}; its address is the key. */
typedef struct conc_local {
    const char *name; /* for the reader of a dump; NULL is fine */
} conc_local;

/* Sets this task's value (borrowed). A task spawned later starts with the values of that moment; later sets on either side are
 * not seen by the other. Errors: -EINVAL (NULL key), -ENOMEM. */
CONC_API int conc_local_set(conc_local *key, const void *value);

/* This task's value, NULL when none was set. */
CONC_API void *conc_local_get(conc_local *key);

/* ---- >>generators ------------------------------------------------------------------------------------------- */

/* The body: emits items, returns 0 at the end or a negative error. */
typedef int conc_gen_fn(conc_gen *g, void *arg);

struct conc_gen {
    /* private */
    struct conc__gen *body;
};

/* Opens a generator: fn(g, arg) will run in the consumer's task, on a stack of its own, from the first next on. Errors: -EINVAL
 * (NULL, open already), -ENOMEM. Close it with conc_gen_close. */
CONC_API int conc_gen_open(conc_gen *g, conc_gen_fn *fn, void *arg, size_t item_size);

/* In the body: hands a copy of item_size bytes to the consumer, and returns when it wants the next: 0. -ECANCELED: the consumer is
 * closing, clean up and return. -EINVAL: not in this generator's body, or a scope or group of the body is open. */
CONC_API int conc_gen_emit(conc_gen *g, const void *item);

/* In the consumer: 1 and the next item, 0 at the end (and after it), negative the body's error. A cancel of the consumer reaches
 * the waits of the body. -EBUSY: another task, or the body itself, is inside; -EINVAL: not open. Waits as the body does. */
CONC_API int conc_gen_next(conc_gen *g, void *item);

/* Ends the body, whose emit returns -ECANCELED, waits for its clean-up, and frees the stack. Returns 0, the error of the clean-up, or
 * -EINVAL when the body emitted again instead of ending (it is abandoned). Closing twice, or what was never opened: 0. -EBUSY as
 * above. The body's own waits still work while it cleans up. */
CONC_API int conc_gen_close(conc_gen *g);

/* ---- >>loops ------------------------------------------------------------------------------------------------ */

/* The loop of this thread's run; NULL outside one. */
CONC_API conc_loop *conc_loop_self(void);

/* Tells that somebody outside will post: while held, waiting is no deadlock, and the loop stays valid, even after its run, until it
 * is released as often as held. From any thread. -EINVAL: NULL, released too often. */
CONC_API int conc_loop_hold(conc_loop *l);
CONC_API int conc_loop_release(conc_loop *l);

/* Has l call fn(arg) between two tasks, in the order of posting. From any thread, not from a signal handler. A post that returned 0 is
 * run. Without a hold it is for those who know that the run still lasts. Errors: -EINVAL, -ENOMEM, -ESHUTDOWN once the run is over. */
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
