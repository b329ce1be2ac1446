/* conc.h - v0.1.0 - tasks, groups, cancellation and time on an event loop, for C - MIT licence
 *
 * What asyncio and trio give a Python program, in one header: tasks that are plain functions on
 * their own small stacks, groups that wait for all their children, cancellation that reaches
 * every wait, timeouts that are scopes.
 *
 * Do this in exactly one C file, and just include the header everywhere else:
 *
 *     #define CONC_IMPLEMENTATION
 *     #include "conc.h"
 *
 *     static int hello(void *name)
 *     {
 *         CONC_TRY(conc_sleep(1));
 *         printf("hello, %s\n", (char *)name);
 *         return 0;
 *     }
 *     static int app(void *arg)
 *     {
 *         (void)arg;
 *         return CONC_GATHER(CONC_CALL(hello, "you"), CONC_CALL(hello, "and you")); // both in 1 s
 *     }
 *     int main(void) { return conc_main(app, NULL); }
 *
 * There is nothing to link or install: cc file.c. C11 or later, GCC or Clang; C++17 files can
 * include the header and call its functions.
 *
 * Conventions
 *   Results   0 or a count is success, a negative errno is failure. errno itself does not change;
 *             each task has its own.
 *   Calling   Any task may make any call; outside a run, every call returns -EPERM. The functions'
 *             comments name the exceptions. A function passed to conc_post must not wait: a call in
 *             it that would have to wait returns -EPERM.
 *   Waiting   "Waits" marks a checkpoint: the call may let other tasks run. If an enclosing scope
 *             has been cancelled or has timed out, the call has no effect and returns -ECANCELED:
 *             clean up and return.
 *   Threads   A task always runs on the thread of its run. Other threads may use a loop only
 *             through conc_post, conc_loop_run, conc_loop_hold and conc_loop_release.
 *   Forks     In a forked child, calls in tasks of the parent's runs return -EPERM. The child's own
 *             runs may use the same handles, groups, locks, queues and streams, which ignore
 *             whatever the parent's tasks hold or wait for. A stream keeps its buffered bytes, as a
 *             stdio FILE does.
 *   Time      Times are doubles in seconds, rounded up internally to whole nanoseconds. No wait
 *             ends early.
 *   Memory    An all-zero object is valid; its options are its first fields and default to zero.
 *             `arg` is borrowed until the task has ended. conc frees only what it allocated. If
 *             memory runs out, calls return -ENOMEM; conc never aborts because of it.
 *   Misuse    A call that conc recognizes as wrong changes nothing and returns -EINVAL (a bad
 *             argument, the wrong order), -EPERM (not the owner, not in a task), -EDEADLK (waiting
 *             for oneself) or -EBUSY (in use). If a function returns with its own group or scope
 *             still open, or the next iteration of a `for` or `while` reinitializes it, memory is
 *             already corrupt: conc reports which one it is and where it was opened, and aborts.
 *
 * Options: define them before including the header with CONC_IMPLEMENTATION
 *   CONC_STATIC          replaces CONC_IMPLEMENTATION: this file gets a private copy, in which all
 *                        functions are static; copies cannot share objects
 *   CONC_API             precedes every function's declaration; by default hidden visibility
 *   CONC_STACK_SIZE      bytes of a task's stack (256 KiB of address space, committed as touched;
 *                        64 KiB on 32 bits)
 *   CONC_GUARD_SIZE      bytes of address space below each stack that fault when touched, in whole
 *                        pages (64 KiB, 16 KiB on 32 bits; in debug mode at least 1 MiB, 64 KiB on
 *                        32 bits). With the compiler's -fstack-clash-protection, even a large frame
 *                        cannot reach past them unnoticed
 *   CONC_MALLOC(n), CONC_REALLOC(p, n), CONC_FREE(p)    all three or none (malloc, realloc, free)
 *   CONC_TLS             attribute of the thread-local variables, such as
 *                        __attribute__((tls_model("initial-exec")))
 *   CONC_NO_ENV          do not read the environment variables below
 *   CONC_NO_EPOLL        wait with poll(2) instead of epoll (Linux) or kqueue (macOS)
 *   CONC_USE_UCONTEXT    switch stacks with ucontext, as conc does on processors for which it
 *                        has no switching code of its own
 *   CONC_SAVE_FPU        each task keeps its own floating-point control state (rounding,
 *                        exception masks)
 *   CONC_GUARD_REPORT    report stack overflows even without debug mode (by a SIGSEGV handler)
 *   CONC_NO_DIAGNOSTICS  leave out debug mode, traces, dumps and backtraces, for small programs
 *                        and quick compiles: a run with .debug or .trace, even if set by the
 *                        environment, then returns -ENOTSUP, and a deadlock report omits the task
 *                        tree
 *
 * Environment: CONC_DEBUG=1, CONC_CLOCK=virtual, CONC_SEED=7, CONC_RANDOM=7, CONC_TRACE=file,
 * CONC_POLL=poll|epoll|kqueue, CONC_STACK=bytes override a run's options, except in a set-user-ID
 * program. If a value is invalid or unavailable on this system, the run fails with -EINVAL.
 *
 * Contents: >>version >>run >>time >>scopes >>groups >>tasks >>errors >>locals >>generators
 * >>descriptors >>streams >>signals >>loops >>embedding >>reports, then the implementation, which
 * lists its sections at its start, and the licence. */
#ifndef CONC_H
#define CONC_H

/* A strict -std=c11, and _POSIX_C_SOURCE or _XOPEN_SOURCE in any mode, hide declarations that the
 * implementation needs; this requests them before any system header. */
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE 1
#endif
#if defined __APPLE__ && !defined _DARWIN_C_SOURCE
#define _DARWIN_C_SOURCE 1
#endif

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifndef CONC_API
#if defined CONC_STATIC && defined __OPTIMIZE__
#define CONC_API static __attribute__((__unused__))
#elif defined CONC_STATIC
/* without optimization, GCC omits an unused function only if it is inline */
#define CONC_API static inline
#else
#define CONC_API __attribute__((__visibility__("hidden")))
#endif
#endif

#define CONC_NODISCARD __attribute__((__warn_unused_result__))

/* The location where a task, group or scope began, as "file.c:12", appended to the literal
 * `text`. */
#define CONC__STRING(x) #x
#define CONC__LINE(x) CONC__STRING(x)
#ifdef __FILE_NAME__ /* GCC 12, Clang 9: the file without its directories */
#define CONC__AT(text) text __FILE_NAME__ ":" CONC__LINE(__LINE__)
#else
#define CONC__AT(text)                                                              \
    __extension__({                                                                 \
        static char conc__room[sizeof(text __FILE__ ":" CONC__LINE(__LINE__)) + 1]; \
        conc__at(conc__room, text, __FILE__ ":" CONC__LINE(__LINE__));              \
    })
#endif
CONC_API const char *conc__at(char *room, const char *text, const char *place);
#define CONC__PLACE CONC__AT("")
/* The default name of a task: the function's name and the location. The function is the first,
 * second or third argument; the calling macro appends zeros, so that each of these macros gets
 * enough arguments. */
#define CONC__NAMED(fn) CONC__AT(#fn " at ")
#define CONC__NAMED_FIRST(fn, ...) CONC__NAMED(fn)
#define CONC__NAMED_SECOND(a, fn, ...) CONC__NAMED(fn)
#define CONC__NAMED_THIRD(a, b, fn, ...) CONC__NAMED(fn)
#define CONC__JOIN(a, b) CONC__JOIN2(a, b)
#define CONC__JOIN2(a, b) a##b

/* A variable that takes its value's type, and compile-time checks for macros. */
#ifdef __cplusplus
#define CONC__AUTO_VALUE auto
#define CONC__REQUIRE static_assert
#define CONC__IS_POINTER(value) conc__is_pointer<decltype(value)>::yes
#define CONC__IS_BYTES(value) __is_trivially_copyable(decltype(value))
#else
#define CONC__AUTO_VALUE __auto_type
#define CONC__REQUIRE _Static_assert
#define CONC__IS_POINTER(value) (__builtin_classify_type(value) == CONC__A_POINTER)
#define CONC__IS_BYTES(value) 1
enum { CONC__A_POINTER = 5 /* what __builtin_classify_type returns for a pointer */ };
#endif

/* Tests whether a macro's optional last arguments, passed as a string, were given. */
#define CONC__GIVEN(text) (sizeof(text) > 1)
/* Expands to the call if the arguments were given. The call is outside the inner block, so that
 * compound literals in it outlive that block. */
#define CONC__IF_GIVEN(text, otherwise, call) \
    (__extension__({ CONC__REQUIRE(CONC__GIVEN(text), otherwise); }), call)

/* ---- >>version ------------------------------------------------------------------------------ */

#define CONC_VERSION_MAJOR 0
#define CONC_VERSION_MINOR 1
#define CONC_VERSION_PATCH 0
#define CONC_VERSION "0.1.0"

/* Returns the version of the linked implementation; CONC_VERSION is the header's. Callable from
 * anywhere. */
CONC_API const char *conc_version(void);

/* ---- >>run ---------------------------------------------------------------------------------- */

/* the event loop of one run; a thread has at most one */
typedef struct conc_loop conc_loop;
typedef struct conc_task conc_task;   /* a running function with its own stack */
typedef struct conc_group conc_group; /* a set of tasks awaited together */
/* code between a begin and an end, which can be cancelled or time out */
typedef struct conc_scope conc_scope;
typedef struct conc_gen conc_gen; /* a function that emits items one by one */

/* The body of a task: 0 or more is success, negative is an error. */
typedef int conc_fn(void *arg);

/* What on_error receives. The strings are borrowed until the hook returns. */
typedef struct conc_failure {
    const char *task;  /* the task's name */
    const char *place; /* where it was spawned: "file.c:12" */
    const char *text;  /* the text of conc_fail, or of conc_strerror */
    int rc;            /* the negative errno */
} conc_failure;

typedef struct conc_options {
    /* bytes per task, at least 16384; 0: CONC_STACK_SIZE. main_fn's task gets at least
     * CONC_STACK_SIZE */
    size_t stack_size;
    bool virtual_clock; /* time starts at 0; when nothing can run, it jumps to the next deadline */
    uint64_t seed;      /* nonzero: ready tasks run in a random order that the seed reproduces */
    /* Checks for mistakes and reports them on stderr: tasks that block the loop, with a backtrace
     * taken while they do; leaked locks, generators and streams; background tasks whose arg is on
     * the stack of main_fn, which has returned; ignored cancellations; calls from the wrong thread;
     * stack overflow. Reports stack usage. `kill -USR2` prints the tasks. */
    bool debug;
    /* debug mode reports tasks that block the loop for more than this many seconds; 0: 0.1 */
    double slow_step;
    /* Seeds conc_random: the same seed yields the same numbers. 0: uses .seed if that is set, else
     * 1 on the virtual clock, else a number from the clock */
    uint64_t random;
    /* SIGINT or SIGTERM cancels main_fn, and the run returns -EINTR; a second one, at least 0.1 s
     * later, kills the program. Has no effect on a signal that the program handles or ignores when
     * the run begins, or that a conc_signals receives. On the real clock, main_fn may wait for the
     * signal by sleeping forever (conc_sleep(CONC_FOREVER)): this is not a deadlock, unless other
     * tasks are waiting for each other in a cycle. */
    bool interrupt;
    /* Traces all tasks to this file, in Chrome's trace event format, for Perfetto or about:tracing:
     * a row per task, with spans for its steps and waits and arrows from its wakers, on the loop's
     * clock. Runs that trace to one file at the same time, even in other processes, share it. If
     * the file cannot be opened, the run fails. If writing fails (a full disk), conc reports it and
     * continues untraced. NULL: no trace. */
    const char *trace;
    /* called for uncollected errors; NULL: print them to stderr. Runs on the loop, between tasks,
     * like a posted function */
    void (*on_error)(const conc_failure *f, void *user);
    void *user; /* passed to on_error */
} conc_options;

/* Runs main_fn(arg) as the first task of a new loop on this thread, and returns its result. After
 * main_fn has returned, cancels the background tasks, waits until every task has ended, and closes
 * open generators. Errors: -EBUSY (inside a run), -EINVAL (NULL function or invalid options),
 * -ENOMEM, -ENOTSUP (the processor's shadow stack is on), those of a failed system call, and
 * -EDEADLK (every task waited forever). Callable from any thread. */
CONC_API int conc_run(conc_fn *main_fn, void *arg);
CONC_API int conc_run_with(const conc_options *options, conc_fn *main_fn, void *arg);

/* Calls conc_run with .interrupt, for `return conc_main(app, NULL);` in main(). Returns an exit
 * status: 0 if main_fn returned no error, even if a signal cancelled it; 1 after an error, which it
 * prints to stderr with its task, location and text; 128 + n if signal n interrupted the run and
 * main_fn returned -ECANCELED. conc_set_exit_status replaces the first two.
 *     int conc_main(conc_fn *main_fn, void *arg); */
#define conc_main(...) conc__main(CONC__NAMED_FIRST(__VA_ARGS__, 0), __VA_ARGS__)
CONC_API int conc__main(const char *spawned, conc_fn *main_fn, void *arg);

/* Makes conc_main return this status instead of 0 or 1; conc_main still prints any error. Callable
 * from any task or posted function of conc_main's run; the last call counts. Has no effect under
 * conc_run, or if status is not in the range 0 to 255. */
CONC_API void conc_set_exit_status(int status);

/* Returns a random number x, low <= x < high (low if high <= low). The numbers are the same in
 * every run with the same .random or .seed, or on the virtual clock. Not for secrets. Outside a
 * run, returns low. */
CONC_API double conc_random(double low, double high);

/* ---- >>time --------------------------------------------------------------------------------- */

#define CONC_FOREVER 1e300 /* as a timeout: none; as a deadline: never */

/* Returns the time in seconds on the loop's clock, which is monotonic with an arbitrary start, or
 * virtual. Outside a run, returns the monotonic clock's time. */
CONC_API double conc_now(void);

/* Sleeps for s seconds, or until conc_now() reaches t. Waits; if that time has already come, yields
 * once. Errors: -EINVAL (NaN). */
CONC_API int conc_sleep(double s);
CONC_API int conc_sleep_until(double t);

/* Lets every ready task run once (with a seed, only some of them). Waits. Other calls that do not
 * have to wait let other tasks run only about once in 256 calls. So call conc_yield in a long
 * computation, and in a loop that makes such calls until another task has done something. */
CONC_API int conc_yield(void);

/* Blocks the whole loop for s seconds, as a long computation or a blocking call would: for
 * demonstrations and tests. The virtual clock advances by s. Time limits that expire during the
 * call take effect after it. Not a checkpoint. In a job of conc_pool.h, blocks the job's thread,
 * and returns -ECANCELED once the job is asked to stop. Errors: -EINVAL (NaN). */
CONC_API int conc_block(double s);

/* Waits until every other task is waiting and nothing is ready; time does not advance until then.
 * Functions that keep posting each other do not delay the return indefinitely. For tests. */
CONC_API int conc_settle(void);

/* ---- >>scopes ------------------------------------------------------------------------------- */

struct conc__wait_kind;
struct conc__waits;

/* A wait of a task. Whatever ends the wait also removes this object from its list. */
typedef struct conc__wait {
    struct conc__wait *next, *prev;
    struct conc__waits *list; /* NULL: in no list */
    conc_task *task;
    const struct conc__wait_kind *kind;
    const void *on; /* what the task is waiting for */
    /* meaning depends on the kind: an item's source or destination, the call's location, ... */
    void *item;
    int result; /* the result of the call that is waiting */
    /* meaning depends on the kind: the awaited events, later those that occurred, ... */
    int value;
} conc__wait;

typedef struct conc__waits {
    conc__wait *first, *last;
} conc__waits;

typedef struct conc__timer {
    struct conc__timer *next, *prev; /* NULL next: not armed */
    int64_t at;                      /* ns */
    void (*fire)(struct conc__timer *timer);
} conc__timer;

/* A scope can be used only once; to reuse it, zero it first. The three flags stay readable after
 * its end. */
struct conc_scope {
    bool cancel_called; /* it was cancelled, by a call or by its time limit */
    bool cancel_caught; /* its end turned -ECANCELED into -ETIMEDOUT or 0 */
    bool expired;       /* its time limit expired while it was open and not cancelled */
    /* private */
    bool shielded, effective, is_group;
    int state;
    conc_task *task;
    conc_scope *outer, *inner;
    conc__timer timer;
    const char *place;
};

/* Opens a scope for the calling task, inside the scopes that it already has open. After `timeout`
 * seconds (CONC_FOREVER: never; 0 or less: immediately) every checkpoint inside returns -ECANCELED
 * until the scope ends.
 *     int conc_scope_begin(conc_scope *s, double timeout);
 * Errors: -EINVAL (NULL, NaN, used before). Not a checkpoint. */
#define conc_scope_begin(...) conc__scope_begin(CONC__AT("the scope opened at "), __VA_ARGS__)
CONC_API int conc__scope_begin(const char *place, conc_scope *s, double timeout);

/* Ends the task's innermost scope. rc is the result of the block. Returns rc, unless it is an
 * -ECANCELED that this scope caused: then -ETIMEDOUT after its time limit, or 0 after
 * conc_scope_cancel. If an outer scope is cancelled too, -ECANCELED passes through. Errors (nothing
 * changes): -EINVAL (not open, not the innermost), -EPERM (another task's scope). Not a
 * checkpoint. */
CONC_API int conc_scope_end(conc_scope *s, int rc) CONC_NODISCARD;

/* Cancels everything inside the scope, until its end, and wakes the tasks waiting inside it. Does
 * nothing if the scope is not open. Callable from any task or posted function of the loop. */
CONC_API void conc_scope_cancel(conc_scope *s);

/* Replaces the time limit with one that starts now. Takes effect immediately, even while the task
 * is waiting. Errors: -EINVAL (NaN, not open, already cancelled). Callable from any task or posted
 * function of the loop. */
CONC_API int conc_scope_set_timeout(conc_scope *s, double s_from_now);

/* Turns the scope's shield on or off. While it is on, cancellations and time limits from outside do
 * not apply inside the scope; the scope's own still do. Takes effect immediately, even while the
 * task is waiting. Callable from any task or posted function of the loop. */
CONC_API void conc_scope_shield(conc_scope *s, bool on);

/* Calls fn(arg) with a limit of s seconds (asyncio.wait_for). Returns fn's result, or -ETIMEDOUT if
 * fn returned -ECANCELED because of the limit. Waits as fn does. Errors: -EINVAL (NULL fn, NaN). */
CONC_API int conc_timeout(double s, conc_fn *fn, void *arg);

/* For cleanup: calls fn(arg) with a time limit of `grace` seconds, shielded from outside
 * cancellation. Returns the same as conc_timeout. Also works in a job of conc_pool.h. */
CONC_API int conc_shield(double grace, conc_fn *fn, void *arg);

/* Returns the nearest deadline in effect for the caller, on conc_now's clock: CONC_FOREVER if there
 * is none, -CONC_FOREVER once the caller is cancelled. Outside a task, returns CONC_FOREVER. */
CONC_API double conc_deadline(void);

/* Returns whether a checkpoint would now return -ECANCELED. For long computations. Outside a task,
 * returns false. */
CONC_API bool conc_cancelled(void);

/* ---- >>groups ------------------------------------------------------------------------------- */

/* A group is used once. Set the first three fields before the first spawn. */
struct conc_group {
    int limit; /* maximum number of live children; spawns beyond it wait; 0: no limit */
    /* a child's error does not cancel the others; the group still returns the first error, even if
     * a conc_join has already returned it */
    bool keep_going;
    size_t stack_size; /* bytes for each child, at least 16384; 0: the run's */
    int error;         /* the first failure: a child's, or the body's own */
    int error_count;   /* number of failures */
    /* private */
    int live;
    bool cut_short, background;
    conc_task *children, *finished, *last_finished;
    int live_handles;
    const char *error_by;
    conc__waits room, next, empty;
    conc_scope scope;
    char text[128], error_name[48];
};

/* Opens the group as a scope of the calling task, which then owns it. Without this call, the first
 * spawn opens it.
 *     int conc_group_begin(conc_group *g);
 * Errors: -EINVAL (NULL, used before, negative limit). Not a checkpoint. */
#define conc_group_begin(...) conc__group_begin((__VA_ARGS__), CONC__AT("the group opened at "))
CONC_API int conc__group_begin(conc_group *g, const char *place);

/* Starts fn(arg) as a task of the group, or, if g is NULL, of the run's background group, which the
 * run cancels at its end. Returns 0 immediately: fn is then certain to run, once the caller waits.
 * Waits only if the group's limit is reached. A background task's error goes to on_error when the
 * task ends; if the task has a handle, only at the run's end, unless a task has joined it.
 *     int conc_spawn(conc_group *g, conc_fn *fn, void *arg);
 * On error fn does not run, the caller keeps arg, and a group that this call would have opened is
 * unchanged: -ECANCELED (the group is cancelled, or the caller while it waited for room), -EINVAL
 * (NULL fn, a closed group), -ENOMEM, -EPERM (another loop's group). */
#define conc_spawn(...) conc__spawn(CONC__NAMED_SECOND(__VA_ARGS__, 0, 0), __VA_ARGS__)
CONC_API int conc__spawn(const char *spawned, conc_group *g, conc_fn *fn, void *arg);

/* Like conc_spawn, but fn gets the address of a copy of arg's size bytes. The copy is on the task's
 * own stack, is aligned for any type of that size (up to 4096), and is valid until fn returns. arg
 * is borrowed until the call returns, because the copy is made after any wait for room. Additional
 * errors: -EINVAL (size is more than a quarter of the task's stack, or arg is NULL).
 *     int conc_spawn_copy(conc_group *g, conc_fn *fn, const void *arg, size_t size); */
#define conc_spawn_copy(...) conc__spawn_copy(CONC__NAMED_SECOND(__VA_ARGS__, 0, 0), __VA_ARGS__)
CONC_API int conc__spawn_copy(const char *spawned, conc_group *g, conc_fn *fn, const void *arg,
                              size_t size);

/* Calls conc_spawn_copy with a value:
 *     CONC_SPAWN(&g, fetch, (job){url, 3});
 *     CONC_SPAWN(&g, count, i);
 * A pointer, a string or another array does not compile, because only its address would be copied.
 * What a struct's pointers point to is not copied. */
#define CONC_SPAWN(g, fn, ...)                                              \
    CONC__SPAWN(g, fn, (__VA_ARGS__), CONC__JOIN(conc__value, __COUNTER__), \
                CONC__GIVEN(#__VA_ARGS__))
#define CONC__SPAWN(g, fn, expr, value, given)                                              \
    __extension__({                                                                         \
        CONC__REQUIRE(given, "CONC_SPAWN(group, function, value): the value is missing");   \
        CONC__AUTO_VALUE value = expr;                                                      \
        CONC__REQUIRE(!CONC__IS_POINTER(value),                                             \
                      "CONC_SPAWN copies a value, and this is a pointer, a string or an "   \
                      "array, which may be gone when the task runs: give it a struct or a " \
                      "number, or use conc_spawn_copy(group, fn, pointer, size) or "        \
                      "conc_spawn(group, fn, pointer)");                                    \
        CONC__REQUIRE(CONC__IS_BYTES(value),                                                \
                      "CONC_SPAWN copies bytes, and this type is not trivially copyable");  \
        conc__spawn_copy(CONC__NAMED(fn), (g), (fn), &value, sizeof value);                 \
    })

/* Like conc_spawn, with a handle: the caller's storage, which need not be initialized, and must not
 * move until the task is joined or returned by conc_group_next, or its group is closed. Additional
 * errors: -EBUSY (the handle is in use). If the function that declares the handle returns before
 * then, conc aborts with a report: in debug mode at the next wait, otherwise at the group's end.
 * The same happens if the handle is overwritten and reused: always in debug mode, otherwise if its
 * task is the group's first or last child.
 *     int conc_spawn_task(conc_group *g, conc_task *t, conc_fn *fn, void *arg); */
#define conc_spawn_task(...) conc__spawn_task(CONC__NAMED_THIRD(__VA_ARGS__, 0, 0, 0), __VA_ARGS__)
CONC_API int conc__spawn_task(const char *spawned, conc_group *g, conc_task *t, conc_fn *fn,
                              void *arg);

/* Starts fn as conc_spawn does, waits until it has called conc_started(value), and returns `value`.
 * If fn ends without that call, returns fn's error (-EINVAL if none) and leaves the group as it
 * was: unused if this call opened it and nothing else is in it. Cancelling the caller cancels fn;
 * the call then returns -ECANCELED once fn has ended. Waits.
 *     int conc_start(conc_group *g, conc_fn *fn, void *arg); */
#define conc_start(...) conc__start(CONC__NAMED_SECOND(__VA_ARGS__, 0, 0), __VA_ARGS__)
CONC_API int conc__start(const char *spawned, conc_group *g, conc_fn *fn, void *arg);

/* Makes the conc_start that started this task return value, which must be 0 or more. Errors:
 * -EINVAL (not started by conc_start, a second call, negative), -ECANCELED (the starter gave up).
 * Not a checkpoint. */
CONC_API int conc_started(int value);

/* Waits for every child, including any spawned during the wait, and closes the group. Returns the
 * first error; else -ECANCELED if an outer scope is cancelled and a member was interrupted; else 0.
 * For a group that was never opened, returns 0. Errors (nothing changes): -EINVAL (already closed,
 * or a scope opened later is still open), -EPERM (not the owner). Waits; cancellation does not cut
 * the wait short, but reaches the children. */
CONC_API int conc_group_wait(conc_group *g) CONC_NODISCARD;

/* Like conc_group_wait, but also takes the body's result into account. If rc is an error, the call
 * cancels the children first, and rc counts as the group's first error unless a child has already
 * failed. Returns rc if nothing failed. */
CONC_API int conc_group_end(conc_group *g, int rc) CONC_NODISCARD;

/* Cancels the children and the owner's body; the cancellation lasts until the group is closed. The
 * call that waits for the group then returns 0. Does nothing if the group is not open. Callable
 * from any task or posted function of the loop. */
CONC_API void conc_group_cancel(conc_group *g);

/* Waits until an uncollected child with a handle has ended, and collects it; children are collected
 * in order of completion. Returns 1, with the handle in *t and the child's error in
 * conc_last_error; 0 if none is left. Errors: -EINVAL, -EPERM (another run's group), -ECANCELED. */
CONC_API int conc_group_next(conc_group *g, conc_task **t) CONC_NODISCARD;

/* One call of a gather, which stores fn's result in `result`, and its error's text in `text` ("" on
 * success). */
typedef struct conc_call {
    conc_fn *fn;
    void *arg;
    int result;
    char text[96];
    /* its task's name, borrowed until the gather returns; NULL: the gather and its location.
     * CONC_CALL sets it to the function's name */
    const char *name;
} conc_call;

/* Runs all calls concurrently, each as a task, and returns when all have ended. The first error
 * cancels the others and is returned; 0 if none failed. Each call then holds its own result. If n
 * is 0, returns 0 immediately. Errors before anything has run: -EINVAL, -ENOMEM. Waits.
 *     int conc_gather(conc_call *calls, size_t n); */
#define conc_gather(...) conc__gather(CONC__AT("conc_gather at "), __VA_ARGS__)
CONC_API int conc__gather(const char *spawned, conc_call *calls, size_t n);
/* for CONC_GATHER, whose caller cannot read the calls afterwards */
CONC_API int conc__gather_unseen(const char *spawned, conc_call *calls, size_t n);

/* Like conc_gather, but an error cancels nothing (return_exceptions=True). Returns 0, or -ECANCELED
 * if the caller was cancelled.
 *     int conc_gather_all(conc_call *calls, size_t n); */
#define conc_gather_all(...) conc__gather_all(CONC__AT("conc_gather_all at "), __VA_ARGS__)
CONC_API int conc__gather_all(const char *spawned, conc_call *calls, size_t n);

/* Calls fn concurrently with the address of each of `count` elements of `size` bytes; otherwise
 * like conc_gather. If size is 0, every call gets args itself.
 *     int conc_map(conc_fn *fn, void *args, size_t count, size_t size); */
#define conc_map(...) conc__map(CONC__NAMED_FIRST(__VA_ARGS__, 0), __VA_ARGS__)
CONC_API int conc__map(const char *spawned, conc_fn *fn, void *args, size_t count, size_t size);

/* Like conc_map, with at most `limit` concurrent tasks (0: no limit). Calls start in order, as
 * earlier ones end; after an error, or once the caller is cancelled, no more start. Additional
 * errors: -EINVAL (a negative limit), and -ENOMEM even after some calls have started.
 *     int conc_map_limit(int limit, conc_fn *fn, void *args, size_t count, size_t size); */
#define conc_map_limit(...) conc__map_limit(CONC__NAMED_SECOND(__VA_ARGS__, 0, 0), __VA_ARGS__)
CONC_API int conc__map_limit(const char *spawned, int limit, conc_fn *fn, void *args, size_t count,
                             size_t size);

/* Like conc_map, but an error cancels nothing, as in conc_gather_all. results (NULL: not wanted) is
 * an array of `count` elements, borrowed until the call returns.
 *     int conc_map_all(conc_fn *fn, void *args, size_t count, size_t size, int *results); */
#define conc_map_all(...) conc__map_all(CONC__NAMED_FIRST(__VA_ARGS__, 0), __VA_ARGS__)
CONC_API int conc__map_all(const char *spawned, conc_fn *fn, void *args, size_t count, size_t size,
                           int *results);

#define CONC_LEN(...) (sizeof(__VA_ARGS__) / sizeof((__VA_ARGS__)[0]))

/* CONC_CALL initializes a conc_call:
 *     conc_call calls[] = {CONC_CALL(f, &x), CONC_CALL(g, &y)};
 * If only the overall result matters, use CONC_GATHER(CONC_CALL(...), ...) (only in C, because C++
 * has no array that lives for one expression). */
/* clang-format off */
#define CONC_CALL(fn, ...) {(fn), (__VA_ARGS__), 0, {0}, #fn}
/* clang-format on */
#define CONC_GATHER(...)                                                      \
    conc__gather_unseen(CONC__NAMED(CONC_GATHER), (conc_call[]){__VA_ARGS__}, \
                        sizeof((conc_call[]){__VA_ARGS__}) / sizeof(conc_call))
#define CONC_MAP(fn, ...)                                                           \
    CONC__IF_GIVEN(#__VA_ARGS__, "CONC_MAP(function, array): the array is missing", \
                   conc_map(fn, (__VA_ARGS__), CONC_LEN(__VA_ARGS__), sizeof((__VA_ARGS__)[0])))
#define CONC_MAP_LIMIT(limit, fn, ...)                                                  \
    CONC__IF_GIVEN(                                                                     \
        #__VA_ARGS__, "CONC_MAP_LIMIT(limit, function, array): an argument is missing", \
        conc_map_limit(limit, fn, (__VA_ARGS__), CONC_LEN(__VA_ARGS__), sizeof((__VA_ARGS__)[0])))
#define CONC_MAP_ALL(fn, array, ...)                                                               \
    CONC__IF_GIVEN(#__VA_ARGS__, "CONC_MAP_ALL(function, array, results): an argument is missing", \
                   conc_map_all(fn, (array), CONC_LEN(array), sizeof((array)[0]), (__VA_ARGS__)))

/* ---- >>tasks -------------------------------------------------------------------------------- */

/* Private: the saved registers of a stack that is not running, as {stack pointer, program counter,
 * frame pointer, base pointer}. */
typedef void *conc__context[4];

/* All fields are private. A task without a handle is stored at the top of its own stack and lacks
 * name_copy and all later fields. */
struct conc_task {
    conc_task *next; /* the ready queue */
    conc__context context;
    conc_loop *loop;
    struct conc__stack *stack;
    int error_number;
    bool pending, asked, marked;
    uint8_t state, sink_kind;
    uint16_t cancels_in_a_row;
    bool has_handle, in_finished, collected;
    bool failed; /* it ended with an error that its group, if it has one, has not recorded */
    uint16_t seal;
    bool name_allocated;  /* without a handle: conc_set_name allocated `name` */
    uint32_t errors_made; /* incremented by conc__set_error; never initialized */
    conc__wait *wait;
    conc_scope *scope;
    const char *place; /* the innermost scope's, for the report if that scope is lost */
    char *text;
    conc__waits joiners;
    const char *error_from;
    struct conc__holding *held;
    int result, last_rc;
    uint64_t serial; /* unique among the tasks of the process */
    /* when its wait began, on the loop's clock; exact only in debug mode or under a trace */
    int64_t since;
    uint64_t arrow; /* trace: the arrow that leads to its next step; 0: none */
    void *sink;
    struct conc__locals *locals;
    conc_fn *fn;
    void *arg;
    const char *name, *spawned;
    conc_group *group;
    conc_task *older, *younger;
    conc_task *next_marked;
    char name_copy[48];
    char text_copy[128 + 48];
};

/* Waits until the task has ended, and stores its result in *result (NULL: not wanted) and its error
 * text in conc_last_error. Returns 0. Any number of tasks may join it; joining never cancels it.
 * Errors: -ECANCELED (the caller was cancelled; the task continues), -EDEADLK (t is the caller),
 * -EPERM (another run's task, ended or not), -EINVAL. */
CONC_API int conc_join(conc_task *t, int *result);

/* Cancels the task: from now on its checkpoints return -ECANCELED, except inside shields. Does not
 * wait. Errors: -EALREADY (it has ended), -EINVAL (not a task), -EPERM (another loop's task).
 * Callable from any task or posted function of the loop. */
CONC_API int conc_cancel(conc_task *t);

/* Returns whether the task has ended. */
CONC_API bool conc_done(const conc_task *t);

/* Returns the running task, valid until it ends; NULL in a posted function and outside a run. */
CONC_API conc_task *conc_self(void);

/* conc_name returns a task's name: the one set by conc_set_name (copied, at most 47 bytes), else
 * its function and spawn location. Borrowed; NULL if there is no task. conc_set_name does nothing
 * if memory runs out. */
CONC_API const char *conc_name(const conc_task *t);
CONC_API void conc_set_name(conc_task *t, const char *name);

/* ---- >>errors ------------------------------------------------------------------------------- */

/* Returns rc, and records a text for it (at most 127 bytes). If the task returns rc, the text
 * reaches join, group, gather and on_error. If the task, or a posted function, sets a future to rc,
 * the text reaches the future's waiters. Outside any task or job, the text goes to this thread's
 * conc_last_error.
 *     return conc_fail(-EPROTO, "line %d: no colon", line); */
CONC_API int conc_fail(int rc, const char *fmt, ...) __attribute__((__format__(__printf__, 2, 3)));

/* Returns the error text of a task that has ended: conc_fail's, else conc_strerror's; "" on
 * success. Borrowed. */
CONC_API const char *conc_error_text(const conc_task *t);

/* Returns the text of this task's latest error, from conc_fail or any other conc call, including
 * joins, groups and gathers; "" if none. -ECANCELED does not replace the error before it. Outside a
 * run, returns the text of the thread's last run, of a conc_run that was refused, or of any call
 * since then; "" if none. Borrowed until the next error. */
CONC_API const char *conc_last_error(void);

/* Returns the text of any negative errno; for some, its meaning in conc instead of the system's
 * text. Static. Callable from anywhere. */
CONC_API const char *conc_strerror(int rc);

/* CONC_TRY(expr) is the value of expr, if that is not negative. A negative value is returned, as an
 * int, from the calling function, which must return int or ssize_t: as bool or size_t, an error
 * would look like success. Not for calls that return -1 and set errno, such as open(2), because -1
 * is -EPERM. A compound literal inside expr lives only until the macro ends: do not pass it to a
 * task that outlives the macro. Not inside an open scope or group: there, use CONC_TRY_IN(&s,
 * expr), which ends the scope with the error and returns the scope's result. */
#define CONC_TRY(...) CONC__TRY((__VA_ARGS__), CONC__JOIN(conc__value, __COUNTER__))
#define CONC__TRY(expr, value)         \
    __extension__({                    \
        CONC__AUTO_VALUE value = expr; \
        if (value < 0)                 \
            return (int)value;         \
        value;                         \
    })
#define CONC_TRY_IN(scope_or_group, ...) \
    CONC__TRY_IN(scope_or_group, (__VA_ARGS__), CONC__JOIN(conc__value, __COUNTER__))
#define CONC__TRY_IN(s, expr, value)           \
    __extension__({                            \
        CONC__AUTO_VALUE value = expr;         \
        if (value < 0)                         \
            return conc__end(s, (int)(value)); \
        value;                                 \
    })
#ifndef __cplusplus
/* clang-format off */
#define conc__end(s, rc) \
    _Generic((s), conc_group *: conc_group_end, conc_scope *: conc_scope_end)((s), (rc))
/* clang-format on */
#endif

/* CONC_AUTO(conc_group, g) = {.limit = 5}; closes the object on every exit from the block; the last
 * one declared is closed first. For conc_group (cancels the children and waits for them; their
 * errors go to on_error), conc_gen, conc_stream, conc_signals and types of the other headers.
 * Closing an unopened or closed object does nothing. Not for conc_scope, whose end changes the
 * result. */
#define CONC_AUTO(type, name) __attribute__((__cleanup__(conc__auto_##type), __unused__)) type name
CONC_API void conc__auto_conc_group(conc_group *g);
CONC_API void conc__auto_conc_gen(conc_gen *g);

/* CONC_AUTO_TYPE(fetch_client, fetch_close) at file scope makes CONC_AUTO work with your own type:
 * CONC_AUTO(fetch_client, c) = {0}; calls fetch_close(&c), and ignores its result, when the block
 * ends. The type's name must be one word, and closing an all-zero object must be harmless. An error
 * from `close` does not change conc_last_error. A semicolon may follow. */
#define CONC_AUTO_TYPE(type, close)                                          \
    static __attribute__((__unused__)) void conc__close_##type(void *object) \
    {                                                                        \
        (void)close((type *)object);                                         \
    }                                                                        \
    static __attribute__((__unused__)) void conc__auto_##type(type *object)  \
    {                                                                        \
        conc__close_quietly(conc__close_##type, object);                     \
    }                                                                        \
    __extension__ /* so that a semicolon after the macro causes no warning */
CONC_API void conc__close_quietly(void (*close)(void *), void *object);

/* ---- >>locals ------------------------------------------------------------------------------- */

/* The key of a per-task value that children inherit. conc identifies a key by its address:
 *     static conc_local request_id = {"request id"}; */
typedef struct conc_local {
    const char *name; /* shown in dumps; may be NULL */
} conc_local;

/* Sets this task's value for the key (borrowed). A task starts with the values its parent has at
 * the spawn; later changes in one do not affect the other. Errors: -EINVAL (NULL key), -ENOMEM. */
CONC_API int conc_local_set(conc_local *key, const void *value);

/* Returns this task's value for the key; NULL if none was set. */
CONC_API void *conc_local_get(conc_local *key);

/* ---- >>generators --------------------------------------------------------------------------- */

/* The body of a generator: emits items, and returns 0 at the end or a negative error. */
typedef int conc_gen_fn(conc_gen *g, void *arg);

struct conc_gen {
    /* private */
    struct conc__gen *body;
    uint64_t run;
};

/* Opens a generator: fn(g, arg) runs in the consumer's task, on its own stack, from the first
 * conc_gen_next on.
 *     int conc_gen_open(conc_gen *g, conc_gen_fn *fn, void *arg, size_t item_size);
 * Errors: -EINVAL (NULL, open already), -EBUSY (open in another thread's run), -ENOMEM. Close it
 * with conc_gen_close. */
#define conc_gen_open(...) conc__gen_open(CONC__NAMED_SECOND(__VA_ARGS__, 0, 0), __VA_ARGS__)
CONC_API int conc__gen_open(const char *opened, conc_gen *g, conc_gen_fn *fn, void *arg,
                            size_t item_size);

/* Called in the body: passes a copy of item_size bytes to the consumer, and returns 0 when the
 * consumer wants the next item. Errors: -ECANCELED (the consumer is closing the generator: clean up
 * and return; every later emit immediately returns the same), -EINVAL (not in this generator's
 * body, or a scope or group of the body is open). A body that tries to end a scope or group of its
 * consumer also gets -EINVAL. */
CONC_API int conc_gen_emit(conc_gen *g, const void *item);

/* Called in the consumer: returns 1 and stores the next item in *item, or returns 0 at the end and
 * from then on, or the body's error. Cancelling the consumer reaches the body's waits. Errors:
 * -EBUSY (another task, or the body itself, is in the generator), -EPERM (it belongs to another
 * run), -EINVAL (not open). Waits as the body does. */
CONC_API int conc_gen_next(conc_gen *g, void *item);

/* Ends the body (its emit returns -ECANCELED), waits for its cleanup, and frees the stack. Returns
 * 0 or the cleanup's error. The body's own waits still work during cleanup. If the body emits 1000
 * more times instead of returning, conc stops it: closes everything it opened, cancels its groups'
 * children and waits for them, reports this to on_error, returns -EINVAL, and keeps the stack until
 * the run ends. Returns 0 if the generator is already closed or was never opened, or its run is
 * over. Errors: -EBUSY and -EPERM as above. */
CONC_API int conc_gen_close(conc_gen *g);

/* ---- >>descriptors -------------------------------------------------------------------------- */

enum { CONC_READABLE = 1, CONC_WRITABLE = 2 };

/* Descriptors that conc opened (conc_listen, conc_accept, conc_dial) are non-blocking and
 * close-on-exec, and must be closed with conc_close. The calls in this section also take any other
 * descriptor. Each makes its system call first, and waits only if that would block. Several tasks
 * may wait on one descriptor; all continue when it is ready. No call raises SIGPIPE, which a run
 * blocks in its thread; writing to a broken pipe returns -EPIPE. A program that a task starts with
 * system(), popen() or posix_spawn() inherits the blocked signal; a conc_child of conc_pool.h does
 * not.
 *
 * A descriptor in blocking mode keeps that mode, except a listener (conc_accept), and does not
 * block the loop. For sockets and pipes, Linux has non-blocking calls. Terminals and named pipes
 * are opened a second time for each call. All others are polled with poll(2) first, and at most
 * PIPE_BUF bytes are written at a time. If a device takes a vector's buffers one by one, as an
 * eventfd does, only the first buffer is transferred. Two things can still block the loop: the
 * disk, with regular files and directories (conc_pool.h reads and writes files off the loop); and a
 * descriptor of another kind (inotify; pipes on other systems) that several processes share, if
 * another process takes the bytes after poll(2) has reported them.
 *
 * A descriptor can be reported ready even though a call would block: a socket with messages in its
 * error queue, a full Unix datagram peer, an eventfd whose counter has no room for the number. The
 * call then retries after a pause, which starts at 1 ms and grows to at most 64 ms.
 *
 * If a descriptor that conc did not open is closed with close(2), a task waiting for it gets -EBADF
 * within a quarter of a second (per 500 such descriptors). The poll(2) backend might miss the close
 * if the number is immediately reused by a file of the same kind and inode (all eventfds share
 * one). */

/* Waits until fd is ready for any of `events`, and returns those for which it is ready. End of
 * file, an error, or a hang-up by the peer makes it ready. With events 0, waits only for a hang-up
 * or an error, and returns 0. A regular file is always ready, and never hangs up. Errors: -EBADF
 * (not open, or closed during the wait), -EINVAL (other events), and system errors.
 *
 * Reports what poll(2) reports. If a descriptor is reported ready even though a call would block, a
 * loop of conc_wait_fd and recv(2) spins, because conc does not see the EAGAIN; conc_recv and the
 * like pause. */
CONC_API int conc_wait_fd(int fd, int events);

/* These are the POSIX calls, except that they wait instead of blocking or failing with EAGAIN. Each
 * returns a count, 0 at end of file, or a negative errno (-EBADF also if fd is closed during the
 * wait). Cancellation loses nothing: -ECANCELED means that no byte was transferred. With
 * MSG_DONTWAIT in flags, they return -EAGAIN instead of waiting; instead of MSG_WAITALL, use
 * conc_read_full. */
CONC_API ssize_t conc_read(int fd, void *buf, size_t n);
CONC_API ssize_t conc_write(int fd, const void *buf, size_t n);
CONC_API ssize_t conc_readv(int fd, const struct iovec *parts, int count);
CONC_API ssize_t conc_writev(int fd, const struct iovec *parts, int count);
CONC_API ssize_t conc_recv(int fd, void *buf, size_t n, int flags);
CONC_API ssize_t conc_send(int fd, const void *buf, size_t n, int flags);
CONC_API ssize_t conc_recvfrom(int fd, void *buf, size_t n, int flags, struct sockaddr *from,
                               socklen_t *from_size);
CONC_API ssize_t conc_sendto(int fd, const void *buf, size_t n, int flags,
                             const struct sockaddr *to, socklen_t to_size);

/* Transfer all n bytes. Return fewer at end of file (when reading), or if an error or cancellation
 * occurs after some were transferred; then the next call returns the error, or the next checkpoint
 * returns -ECANCELED. Otherwise as above. */
CONC_API ssize_t conc_read_full(int fd, void *buf, size_t n);
CONC_API ssize_t conc_write_full(int fd, const void *buf, size_t n);

/* Addresses: "127.0.0.1:8080", "[::1]:80", "[fe80::1%eth0]:80", "localhost:0" (127.0.0.1, or else
 * ::1), "unix:/run/x", and on Linux "unix:@x" for the abstract name x. For a malformed address,
 * calls return -EINVAL. Other host names are looked up if the program includes conc_pool.h;
 * otherwise calls return -EADDRNOTAVAIL. */

typedef struct conc_listen_options {
    /* maximum number of connections waiting to be accepted; 0: the system's maximum */
    int backlog;
    bool reuse_port; /* SO_REUSEPORT: several sockets share the port; ignored for "unix:" */
} conc_listen_options;

/* Opens a listening socket and returns its descriptor. The address may be reused immediately
 * (SO_REUSEADDR), IPv6 sockets are IPv6-only, TCP connections have TCP_NODELAY. Port 0 means any
 * free one; conc_address returns it. If no process is listening on a Unix socket's file, the file
 * is replaced, under a lock file PATH.conc-lock; if another process holds that lock, the call
 * blocks the loop for at most 50 ms. If the file system does not support locks, the socket's file
 * is kept, and the error is flock(2)'s. Errors: -EINVAL, -EADDRINUSE and other system errors. Not a
 * checkpoint. */
CONC_API int conc_listen(const char *address);
CONC_API int conc_listen_with(const char *address, const conc_listen_options *o);

/* Waits for a connection and returns its descriptor. If cancelled, leaves the connection for the
 * next accept. A listener in blocking mode becomes non-blocking, in all processes that share it:
 * otherwise the call would block the loop if another process took the connection first. */
CONC_API int conc_accept(int fd);

/* Connects and returns the descriptor, with TCP_NODELAY. Errors: -EINVAL, -ECONNREFUSED and other
 * system errors. Waits; the only time limit is the system's (-ETIMEDOUT). Cancellation leaves
 * nothing open. */
CONC_API int conc_dial(const char *address);

/* Writes a socket's own address, or its peer's, to buf, in the notation above. Errors: -ENOSPC
 * (size is too small; 120 bytes are always enough), -ENOTCONN, -ENOTSOCK, -EINVAL (NULL). Not a
 * checkpoint. Callable from anywhere. */
CONC_API int conc_address(int fd, bool peer, char *buf, size_t size);

/* Closes fd, which conc need not have opened, and wakes all tasks waiting on it with -EBADF: those
 * of this loop immediately, those of another loop shortly after. Not a checkpoint. Callable from
 * anywhere; outside a run it only closes. Errors: those of close(2); the descriptor is closed
 * anyway. Closing a socket that has an SO_LINGER time and unsent data blocks the loop for up to
 * that time, even in non-blocking mode: close such a socket with conc_offload. */
CONC_API int conc_close(int fd);

typedef struct conc_server {
    int fd; /* from conc_listen */
    /* serves one connection. conc_serve closes fd afterwards. The handler may close it earlier with
     * conc_close, but not with close(2), because conc_serve would then close a new file that reuses
     * the number */
    int (*handler)(int fd, void *arg);
    void *arg;
    /* maximum number of concurrent connections; more wait in the backlog; 0: no limit */
    int limit;
    /* the name of its tasks, borrowed until conc_serve returns. NULL: the handler's name, in debug
     * mode or under a trace, if the program has its symbols; otherwise conc_serve and its
     * location */
    const char *name;
} conc_server;

/* Accepts connections and starts a task for each. If cancelled, cancels the handlers and waits for
 * them; after conc_close(s->fd), waits for the handlers and returns 0. A handler's error goes to
 * on_error, and serving continues, as it does after an accept(2) error that affects only one
 * connection. If descriptors or memory run out, conc_serve retries ten times a second, and reports
 * this to on_error once, and again only after accepting has worked for a second. *s is read once.
 * The caller closes s->fd. Errors: -EINVAL, those of accept(2).
 *     int conc_serve(const conc_server *s); */
#define conc_serve(...) conc__serve((__VA_ARGS__), CONC__AT(CONC__CONNECTION_OF "conc_serve at "))
#define CONC__CONNECTION_OF "a connection of "
CONC_API int conc__serve(const conc_server *s, const char *connection);

/* ---- >>streams ------------------------------------------------------------------------------ */

typedef struct conc__buffer {
    char *data;
    size_t start, end, size; /* its bytes are those from start up to, not including, end */
} conc__buffer;

/* A buffered stream on any descriptor or on your own transport. Reading and writing are
 * independent. Set the first two fields before conc_stream_open. */
struct conc_stream {
    size_t limit;       /* longest record in bytes, without its delimiter; 0: 65,536 */
    size_t buffer_size; /* bytes read at a time, and buffered before a write waits; 0: 16,384 */
    /* private */
    int fd, state, read_error, write_error;
    conc__buffer in, out;
    char *ended; /* where a NUL has replaced a byte; `covered` holds that byte */
    char covered;
    bool at_end, writing;
    bool unreturned; /* no call has yet returned the error that ended writing */
    bool dropped;    /* the close dropped bytes */
    bool shut;       /* conc_stream_shutdown has ended the writing half */
    conc_task *reader;
    int inside; /* calls in progress that may wait */
    conc__waits writers, closers;
    uint64_t run;                 /* the run that opened it, or first used it in a forked child */
    struct conc__transported *on; /* NULL: a descriptor */
};
typedef struct conc_stream conc_stream;

/* Opens a stream on fd, which then belongs to the stream: conc_stream_close closes it.
 *     int conc_stream_open(conc_stream *s, int fd);
 * On error the caller keeps fd: -EINVAL (NULL, already open), -EBUSY (closed, but a task is still
 * using it), -EBADF. Not a checkpoint. The stream allocates memory only while it holds bytes. */
#define conc_stream_open(...) conc__stream_open(CONC__PLACE, __VA_ARGS__)
CONC_API int conc__stream_open(const char *place, conc_stream *s, int fd);

/* An alternative to a descriptor under a stream: TLS, a cipher, memory. The functions receive the
 * self passed to conc_stream_open_on, and run in tasks, where they may wait. On an error they
 * return a negative errno (with conc_fail's text); on cancellation, -ECANCELED, and the call must
 * then have had no effect. If one returns -EAGAIN, the stream calls it again after a pause, which
 * starts at 1 ms and grows to at most 64 ms. One read may run concurrently with one write or
 * shutdown, in another task. */
typedef struct conc_transport {
    /* like conc_read: waits for bytes, and returns their number, at most n; 0 at the end */
    ssize_t (*read)(void *self, void *buf, size_t n);
    /* like conc_write: waits until some of the n bytes are accepted, and returns how many; never 0.
     * After an error (also -ECANCELED or -EAGAIN), the next call passes the same bytes again,
     * perhaps followed by more, and perhaps at another address. A transport that packs bytes into
     * records accepts them once it has built the record, and begins the next call by sending what
     * is left of it. conc_stream_flush does not know about these bytes: where this matters, write
     * must return only when the record has been sent */
    ssize_t (*write)(void *self, const void *buf, size_t n);
    /* ends the writing half, so that the peer reads end of file. NULL: no separate halves */
    int (*shutdown)(void *self);
    /* releases self. Returns 0, or an error for conc_stream_close to return; self counts as
     * released either way. Called once, when no other call is in progress, in a task unless the
     * stream is closed outside one; in a cancelled task it cannot wait. NULL: nothing to release */
    int (*close)(void *self);
} conc_transport;

/* Opens a stream on a transport; all stream calls work on such a stream. *t is copied; self is
 * borrowed until conc_stream_close has called close with it. conc_stream_close makes transport
 * calls in progress in other tasks return -ECANCELED, as if those tasks were cancelled, and waits
 * for them. While a read waits, the stream's own task sends written data; if that fails, the stream
 * cancels the transport's read in the same way, and its own read returns the write's error.
 *     int conc_stream_open_on(conc_stream *s, const conc_transport *t, void *self);
 * Errors: -EINVAL (NULL, no read or write, already open), -EBUSY as above, -ENOMEM; on error, close
 * is not called. Not a checkpoint. */
#define conc_stream_open_on(...) conc__stream_open_on(CONC__PLACE, __VA_ARGS__)
CONC_API int conc__stream_open_on(const char *place, conc_stream *s, const conc_transport *t,
                                  void *self);

/* Reading. A read that must wait for bytes first starts sending written data, so a request need not
 * be flushed before its reply is read; the sending continues during the wait. A read that would
 * have to wait returns a write error that no call has returned yet, but only once. Available bytes
 * are returned before the error, and the read after it waits as usual. Cancellation loses no data:
 * bytes not yet returned can still be read. Bytes that arrived before an error are returned before
 * it. Errors: those of the descriptor, those of a write, -EBUSY (another task is reading), -EPIPE
 * (closed, perhaps during the wait), -EINVAL (never opened), -ENOMEM. */

/* Reads available bytes, at most n. Returns 0 at end of file, and immediately if n is 0. */
CONC_API ssize_t conc_stream_read(conc_stream *s, void *buf, size_t n);

/* Reads n bytes; fewer at end of file, or if cancellation or an error occurs after some were
 * read. */
CONC_API ssize_t conc_stream_read_full(conc_stream *s, void *buf, size_t n);

/* Reads up to and including a delimiter of n bytes. Returns the length; *data points to the bytes,
 * with a NUL after them, until the next call that reads or closes. At end of file, returns the
 * remaining bytes, without a delimiter; after that, 0 with *data NULL. Additional errors: -EMSGSIZE
 * (no delimiter within `limit` bytes; nothing is lost, because conc_stream_read can read them). */
CONC_API ssize_t conc_stream_read_until(conc_stream *s, const void *delimiter, size_t n,
                                        char **data);

/* Like conc_stream_read_until for lines, which end with "\n" or "\r\n"; the result omits that
 * ending:
 *     char *line;
 *     while (CONC_TRY(conc_stream_read_line(&s, &line)) >= 0 && line) ...
 * An empty line and end of file both have length 0, but at end of file line is NULL. */
CONC_API ssize_t conc_stream_read_line(conc_stream *s, char **line);

/* Writing. The buffer keeps bytes until it holds buffer_size of them, until a flush, or until a
 * read of the stream must wait. One call's bytes stay together: other tasks' writes wait for their
 * turn. Errors: those of the descriptor (the buffered bytes are dropped, and every later call
 * returns the same error, even if a read already has), -EPIPE (closed), -EINVAL, -ENOMEM. */

/* Writes n bytes and returns n, or fewer if cancelled after some were accepted. Waits until the
 * rest fits in the buffer. */
CONC_API ssize_t conc_stream_write(conc_stream *s, const void *buf, size_t n) CONC_NODISCARD;

/* Like conc_stream_write, for formatted text. Returns the text's length, or less if cancelled or
 * timed out after some bytes were accepted. */
CONC_API ssize_t conc_stream_printf(conc_stream *s, const char *fmt, ...)
    __attribute__((__format__(__printf__, 2, 3)));

/* Waits until the system has accepted all written data, and returns 0. If cancelled or timed out
 * first, returns how many bytes have been accepted, or -ECANCELED if none; the rest stays buffered
 * for the next flush. */
CONC_API int conc_stream_flush(conc_stream *s) CONC_NODISCARD;

/* Flushes, and ends the writing half, so that the peer reads end of file; reading continues to
 * work. Later writes return -EPIPE; a second call returns 0. A pipe's write end is closed. Waits.
 * On error the writing half stays open. Errors: -ECANCELED (unsent bytes are kept), -ENOTSOCK (not
 * a socket, pipe or transport with separate halves; everything was flushed), a write error, or an
 * error of shutdown(2). */
CONC_API int conc_stream_shutdown(conc_stream *s) CONC_NODISCARD;

/* Waits for any write in progress, flushes (unless the task is cancelled), closes, and frees the
 * buffers. Returns 0, the flush's error, or an earlier write error that no call has returned yet.
 * Tasks waiting on the stream get -EPIPE. The call returns once all of them have left the stream,
 * however long that takes; the caller may then free the conc_stream. If the peer does not read, the
 * flush waits until it is cancelled or times out: to drop such a peer, close the stream in
 * conc_timeout(0, fn, &s), or in a cancelled scope. Does nothing if the stream is already closed or
 * was never opened. Waits; do not call it again after an error. Outside a run, and in a posted
 * function, it neither flushes nor waits: the conc_stream must then remain valid until the tasks
 * inside have returned. */
CONC_API int conc_stream_close(conc_stream *s);
CONC_API void conc__auto_conc_stream(conc_stream *s);

/* ---- >>signals ------------------------------------------------------------------------------ */

/* Receives signals in a task. All fields are private. */
typedef struct conc_signals {
    conc_loop *loop; /* NULL: not open */
    uint64_t run;
    struct conc_signals *next, *prev;
    struct conc__signal_number *numbers;
    size_t count, turn;
    conc__waits waits;
} conc_signals;

/* Starts receiving these signals. None is lost, but the kernel may merge several with the same
 * number. Every open conc_signals, in any thread, gets each signal whose number it was opened with;
 * duplicate numbers count once. Blocked signals are unblocked in this thread. On error nothing has
 * changed: -EINVAL (NULL, n 0, already open, no such signal, or SIGKILL, SIGSTOP, SIGPIPE and fault
 * signals), -EBUSY (open in another thread's run), -ENOMEM, and system errors. Not a checkpoint. A
 * conc_signals on a task's stack must be closed before the function that declares it returns;
 * otherwise conc aborts with a report.
 *     int conc_signals_open(conc_signals *s, const int *numbers, size_t n); */
#define conc_signals_open(...) \
    conc__signals_open(CONC__AT("the conc_signals opened at "), __VA_ARGS__)
CONC_API int conc__signals_open(const char *place, conc_signals *s, const int *numbers, size_t n);

/* Waits for the next signal and returns its number. If several signals have arrived, their numbers
 * take turns. Errors: -EPIPE (not open, or closed during the wait). */
CONC_API int conc_signals_next(conc_signals *s) CONC_NODISCARD;

/* Restores the handlers and the mask from before conc_signals_open, except handlers that the
 * program has replaced since. Re-raises any signals that no receiver got. If s is already closed or
 * was never opened, does nothing and returns 0. Not a checkpoint. Errors: -EPERM (another run's
 * receiver). */
CONC_API int conc_signals_close(conc_signals *s);
CONC_API void conc__auto_conc_signals(conc_signals *s);

/* Waits for one signal that arrives from now on, and returns its number. Errors: those of
 * conc_signals_open and conc_signals_next. */
CONC_API int conc_wait_signal(int number);

/* ---- >>loops -------------------------------------------------------------------------------- */

/* Returns the loop of this thread's run; NULL outside one. */
CONC_API conc_loop *conc_loop_self(void);

/* A hold announces posts from another thread. While the loop is held, it is not a deadlock if all
 * tasks are waiting, and the loop remains valid, even after its run, until every hold is released.
 * The virtual clock does not stop for a hold. Callable from any thread. Errors: -EINVAL (NULL,
 * released too often), -EPERM (the loop belongs to the parent process). */
CONC_API int conc_loop_hold(conc_loop *l);
CONC_API int conc_loop_release(conc_loop *l);

/* Makes l call fn(arg) between tasks, in posting order. However many posts there are, l serves
 * timers, descriptors and signals in between. If the call returns 0, fn will run. Without a hold,
 * the caller must ensure that the run has not ended. Callable from any thread, but not from a
 * signal handler. Errors: -EINVAL, -ENOMEM, -ESHUTDOWN (the run is over), -EPERM (l belongs to the
 * parent process). */
CONC_API int conc_post(conc_loop *l, void (*fn)(void *), void *arg);

/* Called from another thread: starts fn(arg) as a background task of l, and returns fn's result
 * once the task has ended, with its error text in conc_last_error. The caller is a plain thread or
 * a job, which blocks, or a task of another loop, which waits; arg is borrowed until the call
 * returns. Cancelling that task or job cancels fn; the call still returns fn's result once fn has
 * ended. If l's run ends before fn, that also cancels fn. As with conc_post, the caller must ensure
 * that the run has not ended, or hold l. While a task is waiting in this call, its loop's virtual
 * clock stands still; a waiting job stops no clock. On error fn does not run: -EINVAL, -EDEADLK (l
 * is this thread's), -ESHUTDOWN (l's run is over or about to end), -ENOMEM, -ECANCELED (the calling
 * task is cancelled), -EPERM (in a posted function; or l belongs to the parent process).
 *     int conc_loop_run(conc_loop *l, conc_fn *fn, void *arg); */
#define conc_loop_run(...) conc__loop_run(CONC__NAMED_SECOND(__VA_ARGS__, 0, 0), __VA_ARGS__)
CONC_API int conc__loop_run(const char *spawned, conc_loop *l, conc_fn *fn, void *arg);

/* Frees memory that conc allocated for the caller. NULL does nothing. Callable from anywhere. */
CONC_API void conc_free(void *p);

/* ---- >>embedding ---------------------------------------------------------------------------- */

/* Embeds a run in a program with its own loop, the host. Repeatedly, until conc_embed_step returns
 * 0, the host waits until conc_embed_fd is readable, at most conc_embed_timeout seconds, and calls
 * conc_embed_step. For poll(2), round the timeout up, and turn CONC_FOREVER into -1:
 *     double s = conc_embed_timeout(&e);
 *     int ms = s > 1e6 ? -1 : (int)(s * 1000 + 0.999);
 * (kqueue does not report devices such as /dev/tty, nor, on macOS, named pipes: while a task is
 * waiting for one, the timeout is at most 20 ms.) Between the steps, conc treats the thread's other
 * code like a posted function: it may spawn, set and cancel, and calls that would wait return
 * -EPERM. To cancel the run from that code, let main_fn store conc_self(), and pass it to
 * conc_cancel. An embedded run does not detect deadlocks. All calls must come from the thread that
 * called conc_embed_begin. */
typedef struct conc_embed {
    /* private */
    conc_loop *loop; /* NULL: not begun */
} conc_embed;

/* Begins the run; main_fn starts with the first step. o: as for conc_run_with. Errors: -EBUSY (this
 * thread has a run, or e has one in any thread), -EINVAL, -ENOMEM, and -ENOTSUP if the loop uses
 * poll(2), which has no descriptor. On error e is unchanged. */
CONC_API int conc_embed_begin(conc_embed *e, const conc_options *o, conc_fn *main_fn, void *arg);

/* Returns the descriptor to poll for reading; the same one for the whole run. Errors: -EINVAL (not
 * begun), -EPERM (another thread, or a forked child). */
CONC_API int conc_embed_fd(conc_embed *e);

/* Returns the longest time to wait, in seconds: 0 if work is ready; CONC_FOREVER if only the
 * descriptor matters, for example while the virtual clock stands still for a job. Call it before
 * each wait. Returns CONC_FOREVER if the run has not begun; in another thread, -EPERM, which is
 * negative. */
CONC_API double conc_embed_timeout(conc_embed *e);

/* Runs whatever is ready, without waiting. Returns 1, or 0 once the run is over. Errors: -EINVAL
 * (not begun), -EPERM (in a task, another thread, or a forked child). */
CONC_API int conc_embed_step(conc_embed *e);

/* Ends the run and returns main_fn's result. If the run is not over, cancels main_fn and blocks the
 * thread until everything has ended. Errors as above; 0 if it was never begun. */
CONC_API int conc_embed_end(conc_embed *e);

/* ---- >>reports ------------------------------------------------------------------------------ */

/* Counts of this thread's run; outside a run, all are zero. */
typedef struct conc_stats {
    size_t tasks;       /* alive, main_fn and the caller included */
    size_t ready;       /* of these, ready to run; conc_get_stats counts them one by one */
    size_t timers;      /* armed */
    size_t generators;  /* open */
    size_t descriptors; /* that tasks are waiting for */
    size_t signals;     /* conc_signals that are open */
    size_t holds;       /* conc_loop_hold calls not yet released */
    size_t stacks;      /* in use, including generators' */
    size_t stacks_kept; /* free, kept for the next spawn */
    size_t stack_bytes; /* address space of all of them */
    size_t jobs_queued; /* jobs that have not begun, in all pools of the program */
    size_t peak;        /* the largest number of tasks alive at once */
    uint64_t spawned;   /* tasks spawned since the run began */
    uint64_t switches;  /* switches between tasks, approximately */
    /* rounds of the scheduler; each serves posts, timers and descriptors once */
    uint64_t passes;
    uint64_t polls; /* system calls that wait or poll for events */
    /* seconds since the run began, on its clock */
    /* in task steps; without .debug or .trace, all time but `idle`, so also the scheduler's */
    double running;
    /* in all completed waits of tasks; only with .debug or .trace */
    double waiting;
    /* while the loop slept, or its virtual clock jumped because every task was waiting */
    double idle;
} conc_stats;

CONC_API void conc_get_stats(conc_stats *s);

/* Prints the tree of groups and tasks: what each task is waiting for, which task owns it, how many
 * seconds the task has waited [in brackets], and where it was spawned. With more than 2000 tasks,
 * it instead prints how many are in each state at each location, largest number first. In debug
 * mode `kill -USR2` prints it to stderr, unless the program itself receives that signal. */
CONC_API void conc_dump(FILE *out);

#ifdef __cplusplus
}
/* the header may be included inside an extern "C" block, which templates do not allow */
extern "C++" {
static inline int conc__end(conc_group *g, int rc) { return conc_group_end(g, rc); }
static inline int conc__end(conc_scope *s, int rc) { return conc_scope_end(s, rc); }
template <class type> struct conc__is_pointer {
    static constexpr bool yes = false;
};
template <class type> struct conc__is_pointer<type *> {
    static constexpr bool yes = true;
};
}
#endif

#endif /* CONC_H */

/* ===============================================================================================

 *  The implementation
 *
 *  A task that waits switches straight to the next ready task. After a batch of 64 switches (fewer
 *  if steps are slow), or if no task is ready, it switches to the scheduler instead, which runs on
 *  the thread's own stack, calls posted functions, reads the clock and polls the descriptors.
 *  Hooks, reports and anything else that may need a deep stack also run on that stack.
 *
 *  run           one call to conc_run or conc_embed_begin; it has one loop, in one thread
 *  pass          one round of the scheduler: posts, signals, the clock, events, then a batch
 *  batch         tasks that run one after the other, with no pass in between
 *  step          a task's work from its resumption to its next switch
 *  budget        checkpoints that may succeed without a switch before the task must yield
 *  stepwise      debug mode or a trace: batches of one task, with every step timed
 *  to park       to stop a task until its wait is over; >>types lists the states of a task
 *  wait          a conc__wait on the stack of a parked task; its kind says how a cancel ends it
 *  to grant      to give a waiter what it waits for, and wake it; to wake: to end a wait
 *  spinner       a cancelled task that keeps calling checkpoints
 *  doomed        after a deadlock or a failure: every task is cancelled, through all shields
 *  to collect    to take the result of a finished task, so that its error is not reported
 *  sink          where a task's result goes besides joins; set by its spawn
 *  handle        a conc_task in the user's memory; without one, it is on the task's own stack
 *  place         a location in the source, "file.c:12"
 *  source        the subject of an error or a report: a task's name and its spawn's place
 *  record        a conc__holding: an object that is held or open, found by its address
 *  lent          a user's object on a stack, while conc still uses the object
 *  lost          memory in use whose function has returned; conc reports it and aborts
 *  inherited     in a forked child: belonging to the parent process
 *  stack cache   all stacks of one size, in slabs; a stack is in use, free or dropped
 *  poller        epoll, kqueue or poll(2); conc__fd_state lists the states of a descriptor
 *  post          a function that another thread, or the loop itself, makes the loop run
 *  hold          a promise of a post: waiting forever is then not a deadlock
 *  at work       a job in another thread, for which the virtual clock stands still
 *
 *  Contents: >>options >>switch >>types >>platform >>poller >>stacks >>timers >>loop
 *  >>waits >>scopes >>errors >>tasks >>groups >>locals >>generators >>descriptors >>net >>streams
 *  >>signals >>loops >>reports >>diagnostics >>run >>embedding
 * ============================================================================================== */

#if (defined CONC_IMPLEMENTATION || defined CONC_STATIC) && !defined CONC__IMPLEMENTED
#define CONC__IMPLEMENTED

#ifdef __cplusplus
#error "conc.h: define CONC_IMPLEMENTATION in a C file; a C++ file can only include the header"
#endif

/* ---- >>options ------------------------------------------------------------------------------ */

#include <arpa/inet.h>
#include <fcntl.h>
#include <float.h>
#include <limits.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* The first system header included decides what all of them declare. If one precedes conc.h, POSIX
 * 2008 suffices (perhaps requested by _POSIX_C_SOURCE or _XOPEN_SOURCE): the few declarations
 * beyond it follow. */
#if !defined MAP_ANONYMOUS && (!defined _POSIX_C_SOURCE || _POSIX_C_SOURCE < 200809L)
#error \
    "conc.h: an earlier system header hides POSIX: include conc.h first, or use -D_DEFAULT_SOURCE"
#endif
#if defined __linux__ && !defined __USE_MISC
long syscall(long number, ...);
int madvise(void *address, size_t size, int advice);
int mincore(void *address, size_t size, unsigned char *pages);
char *realpath(const char *path, char *resolved);
int sigaltstack(const stack_t *stack, stack_t *old);
#endif
#ifndef MAP_ANONYMOUS
#if !(defined __linux__ && (defined __x86_64__ || defined __i386__ || defined __arm__ || \
                            defined __aarch64__ || defined __riscv))
#error \
    "conc.h: an earlier system header hides mmap flags: include conc.h first, or -D_DEFAULT_SOURCE"
#endif
#define CONC__MAP_ANONYMOUS 0x20
#define CONC__MAP_STACK (0x20000 | 0x4000) /* MAP_STACK and MAP_NORESERVE */
#define CONC__MAP_POPULATE 0x8000
#define CONC__MADV_DONTNEED 4
#define CONC__MADV_NOHUGEPAGE 15
#define CONC__SA_ONSTACK 0x08000000
#define CONC__SS_DISABLE 2
#else
#define CONC__MAP_ANONYMOUS MAP_ANONYMOUS
#ifdef __linux__
#define CONC__MAP_STACK (MAP_STACK | MAP_NORESERVE)
#define CONC__MAP_POPULATE MAP_POPULATE
#define CONC__MADV_DONTNEED MADV_DONTNEED
#define CONC__MADV_NOHUGEPAGE MADV_NOHUGEPAGE
#else
#define CONC__MAP_STACK 0
#define CONC__MAP_POPULATE 0
#endif
#define CONC__SA_ONSTACK SA_ONSTACK
#define CONC__SS_DISABLE SS_DISABLE
#endif

/* The watchdog prints another thread's backtrace; /proc shows whether that thread can be
 * interrupted. */
#if defined __linux__ && defined __has_include
#if __has_include(<execinfo.h>)
#include <execinfo.h>
#define CONC__BACKTRACE
#endif
#endif

#ifdef __linux__
#include <link.h>
#include <sys/auxv.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#endif

/* The system's best way to wait for descriptors; poll(2) always exists. */
#if defined CONC_NO_EPOLL
#undef CONC__KQUEUE
#elif defined __APPLE__ || defined __FreeBSD__ || defined CONC__KQUEUE
#undef CONC__KQUEUE
#define CONC__KQUEUE 1
#include <sys/event.h>
#elif defined __linux__
#define CONC__EPOLL 1
#include <sys/epoll.h>
#endif

#if defined CONC_MALLOC && defined CONC_REALLOC && defined CONC_FREE
#elif !defined CONC_MALLOC && !defined CONC_REALLOC && !defined CONC_FREE
#define CONC_MALLOC(n) malloc(n)
#define CONC_REALLOC(p, n) realloc(p, n)
#define CONC_FREE(p) free(p)
#else
#error "conc.h: define all of CONC_MALLOC, CONC_REALLOC and CONC_FREE, or none"
#endif

#if UINTPTR_MAX > 0xffffffffu
#define CONC__SPACE(large, small) (large)
#else
#define CONC__SPACE(large, small) (small) /* there is little address space */
#endif
#ifndef CONC_STACK_SIZE
#define CONC_STACK_SIZE (CONC__SPACE(256, 64) * 1024)
#endif
#ifndef CONC_GUARD_SIZE
#define CONC_GUARD_SIZE (CONC__SPACE(64, 16) * 1024)
#endif
#define CONC__DEBUG_GUARD_SIZE (CONC__SPACE(1024, 64) * 1024)
#ifndef CONC_TLS
#define CONC_TLS
#endif

enum {
    CONC__LEAST_STACK = 16 * 1024, /* bytes */
    CONC__BATCH_MOST = 64,         /* maximum switches in a batch, between two scheduler passes */
    /* maximum number of consecutive checkpoints without a wait; the next one yields */
    CONC__BUDGET_MOST = 256,
    CONC__BATCH_NS = 1000000, /* ns; a batch that takes longer has slow steps */
    /* after this many consecutive passes that ran only posted functions, a pass runs none */
    CONC__FLOOD = 64,
    /* after this many consecutive refused checkpoints, a task counts as ignoring its
     * cancellation */
    CONC__SPINNER = 16,
    CONC__STUBBORN = 1000,  /* after this many, debug mode reports the task */
    CONC__PATIENCE = 50000, /* ns that a thread spins before it sleeps */
    /* after this many consecutive unsuccessful spins, a thread seldom spins */
    CONC__MISSES = 3,
    /* with a seed, the next task is drawn from at most this many ready tasks */
    CONC__CHOICE = 16,
    CONC__NO_STATUS = -1,                /* conc_set_exit_status was not called */
    CONC__NAME = 48,                     /* bytes for a task's name */
    CONC__TEXT = 128,                    /* bytes for an error's text */
    CONC__DESCRIPTION = CONC__NAME + 256 /* bytes for a task's description in reports */
};

/* No process has a larger address space, so a request for more bytes fails immediately with
 * -ENOMEM. */
#define CONC__ADDRESS_SPACE (SIZE_MAX >> (sizeof(size_t) == 8 ? 16 : 0))

_Static_assert(CONC_STACK_SIZE >= CONC__LEAST_STACK,
               "conc.h: CONC_STACK_SIZE must be at least 16384");

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
#if defined __has_feature
#if __has_feature(memory_sanitizer)
#define CONC__MSAN 1
#endif
#endif
#ifndef CONC__MSAN
#define CONC__MSAN 0
#endif

#define CONC__UNLIKELY(x) __builtin_expect(!!(x), 0)

/* The loop's conc__hooks; NULL unless debug mode or a trace is on. With CONC_NO_DIAGNOSTICS both
 * macros are constants, so that the compiler drops the code that depends on them. */
#ifdef CONC_NO_DIAGNOSTICS
#define CONC__HOOKS(l) ((const conc__hooks *)NULL)
#define CONC__DEBUGS(l) (false && (l)->diagnostics.debug)
#else
#define CONC__HOOKS(l) ((l)->scheduler.hooks)
#define CONC__DEBUGS(l) ((l)->diagnostics.debug)
#endif
/* CONC__HOOK(l, spawned(l, t)) calls the hook `spawned`, if debug mode or a trace is on. */
#define CONC__HOOK(l, call)                 \
    do {                                    \
        if (CONC__UNLIKELY(CONC__HOOKS(l))) \
            CONC__HOOKS(l)->call;           \
    } while (0)
/* Marks a function that may read memory poisoned by sanitizers, such as unused parts of stacks. */
#define CONC__UNSANITIZED __attribute__((no_sanitize("address", "thread")))
/* Each function of the implementation starts with one of these. CONC__TINY: its body is no larger
 * than a call, or it has a single caller, so inlining it saves compile time even without
 * optimization. CONC__FAST: it is on a hot path, so it is inlined with optimization. With -Os, the
 * compiler inlines both only where that makes the program smaller. CONC__COLD: it seldom runs.
 * CONC__CALLED: it must not be inlined, because conc__check_lost relies on its frame being below
 * its caller's; this also silences GCC's warnings about variables that the function sets only if it
 * returns 0. */
#ifdef __OPTIMIZE_SIZE__
#define CONC__TINY static inline
#else
#define CONC__TINY static inline __attribute__((always_inline))
#endif
#ifdef __OPTIMIZE__
#define CONC__PRIVATE static
#define CONC__FAST CONC__TINY
#define CONC__COLD static __attribute__((cold, noinline))
#define CONC__CALLED __attribute__((noinline))
#else
#define CONC__PRIVATE static inline /* like CONC_API: GCC omits it if it is unused */
#define CONC__FAST static inline
#define CONC__COLD static inline __attribute__((cold))
#define CONC__CALLED
#endif

/* ---- >>switch ------------------------------------------------------------------------------- */

/* conc__jump(from, to) saves the context of this stack in `from` and resumes the context `to`. It
 * pushes nothing, so the calling function's debug information also holds for a parked stack. It
 * ends in an indirect jump, because a return would be mispredicted. conc__prepare(context, low,
 * top, entry) makes a context that starts entry() on the stack below top.
 *
 * conc__jump may be inlined into any function, and the compiler may address that function's frame
 * by any of three registers: the stack pointer, the frame pointer (rbp, x29, s0) and Clang's base
 * pointer (rbx, x19, s1; for frames with an alignment or a size that the other two cannot serve).
 * All three must be unchanged afterwards. The context holds them, because Clang ignores them in a
 * clobber list. All other registers are clobbered: the compiler saves the ones it needs on the
 * stack. */

#if defined CONC_USE_UCONTEXT || !defined __LP64__ || defined __riscv_vector || \
    !(defined __x86_64__ || defined __aarch64__ || defined __riscv)
#define CONC__UCONTEXT 1
#else
#define CONC__UCONTEXT 0
#endif

/* Marks the first function of a stack as having no caller, so that debuggers and unwinders stop
 * there. */
#ifdef __GCC_HAVE_DWARF2_CFI_ASM
#define CONC__CFI(x) __asm__ volatile(".cfi_undefined " x)
#else
#define CONC__CFI(x) ((void)0)
#endif

#if CONC__UCONTEXT

#include <ucontext.h>

#define CONC__BOTTOM() ((void)0)

CONC__PRIVATE void conc__prepare(void **context, char *low, char *top, void (*entry)(void))
{
    context[0] = top;
    context[1] = low;
    context[2] = (void *)(uintptr_t)entry;
}

CONC__PRIVATE void conc__jump_first(ucontext_t *here, void **to)
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

/* context[0] of a parked stack points to its ucontext_t, which is on that stack; context[2] is then
 * NULL. For a new stack, conc__prepare has set all three. */
CONC__PRIVATE void conc__jump(void **from, void **to)
{
    ucontext_t here;
    from[0] = &here;
    from[2] = NULL;
    if (to[2]) {
        conc__jump_first(&here, to);
    } else { /* keep the thread's signal mask: swapcontext would restore the context's */
        pthread_sigmask(SIG_SETMASK, NULL, &((ucontext_t *)to[0])->uc_sigmask);
        swapcontext(&here, to[0]);
    }
}

#else

#if defined __x86_64__

#if defined __CET__ && (__CET__ & 1)
#define CONC__LANDING "endbr64\n\t"
#else
#define CONC__LANDING
#endif
#ifdef __AVX512F__
#define CONC__MORE_CLOBBERS                                                                       \
    , "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25",   \
        "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31", "k0", "k1", "k2", "k3", "k4", "k5", \
        "k6", "k7"
#else
#define CONC__MORE_CLOBBERS
#endif
#define CONC__BOTTOM() CONC__CFI("rip")
/* Wraps lines of AT&T syntax, each with its \n, so that they also assemble with -masm=intel, which
 * selects the second part of each "{a|b}". */
#define CONC__IN_ATT_SYNTAX(code) "{|.att_syntax prefix\n\t}" code "{|.intel_syntax noprefix\n\t}"

CONC__TINY void conc__jump(void **from, void **to)
{
    __asm__ volatile(CONC__IN_ATT_SYNTAX("leaq 1f(%%rip), %%rax\n\t"
                                         "movq %%rsp, (%%rdi)\n\t"
                                         "movq %%rax, 8(%%rdi)\n\t"
                                         "movq %%rbp, 16(%%rdi)\n\t"
                                         "movq %%rbx, 24(%%rdi)\n\t"
                                         "movq (%%rsi), %%rsp\n\t"
                                         "movq 16(%%rsi), %%rbp\n\t"
                                         "movq 24(%%rsi), %%rbx\n\t"
                                         "jmpq *8(%%rsi)\n"
                                         "1:\n\t" CONC__LANDING)
                     : "+D"(from), "+S"(to)
                     :
                     : "rax", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
                       "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",
                       "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "st", "st(1)",
                       "st(2)", "st(3)", "st(4)", "st(5)", "st(6)", "st(7)", "cc",
                       "memory" CONC__MORE_CLOBBERS);
}

CONC__PRIVATE void conc__prepare(void **context, char *low, char *top, void (*entry)(void))
{
    (void)low;
    /* aligned as after a call */
    void **stack = (void **)(void *)(top - (uintptr_t)top % 16 - 8);
    *stack = NULL;
    context[0] = stack;
    context[1] = (void *)(uintptr_t)entry;
    context[2] = NULL;
    context[3] = NULL;
}

#elif defined __aarch64__

#ifdef __ARM_FEATURE_SVE
#define CONC__MORE_CLOBBERS                                                                   \
    , "p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7", "p8", "p9", "p10", "p11", "p12", "p13", \
        "p14", "p15"
#else
#define CONC__MORE_CLOBBERS
#endif
#if defined __linux__ && !defined __ANDROID__
#define CONC__X18 "x18",
#else
#define CONC__X18 /* the system uses it */
#endif
#define CONC__BOTTOM() CONC__CFI("x30")

CONC__TINY void conc__jump(void **from, void **to)
{
    register void **out __asm__("x0") = from;
    register void **in __asm__("x1") = to;
    __asm__ volatile("adr x16, 1f\n\t"
                     "mov x17, sp\n\t"
                     "stp x17, x16, [%0]\n\t"
                     "stp x29, x19, [%0, #16]\n\t"
                     "ldp x17, x16, [%1]\n\t"
                     "ldp x29, x19, [%1, #16]\n\t"
                     "mov sp, x17\n\t"
                     "mov x30, xzr\n\t"
                     "br x16\n"
                     "1:\n\t"
                     "hint #36\n\t" /* bti j: a no-op without branch protection */
                     : "+r"(out), "+r"(in)
                     :
                     : "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13",
                       "x14", "x15", "x16", "x17", CONC__X18 "x20", "x21", "x22", "x23", "x24",
                       "x25", "x26", "x27", "x28", "x30", "v0", "v1", "v2", "v3", "v4", "v5", "v6",
                       "v7", "v8", "v9", "v10", "v11", "v12", "v13", "v14", "v15", "v16", "v17",
                       "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25", "v26", "v27", "v28",
                       "v29", "v30", "v31", "cc", "memory" CONC__MORE_CLOBBERS);
}

CONC__PRIVATE void conc__prepare(void **context, char *low, char *top, void (*entry)(void))
{
    (void)low;
    context[0] = top - (uintptr_t)top % 16;
    context[1] = (void *)(uintptr_t)entry;
    context[2] = NULL;
    context[3] = NULL;
}

#else /* RISC-V, 64 bits */

#define CONC__BOTTOM() CONC__CFI("ra")
#ifdef __riscv_flen
#define CONC__MORE_CLOBBERS                                                                        \
    , "ft0", "ft1", "ft2", "ft3", "ft4", "ft5", "ft6", "ft7", "ft8", "ft9", "ft10", "ft11", "fa0", \
        "fa1", "fa2", "fa3", "fa4", "fa5", "fa6", "fa7", "fs0", "fs1", "fs2", "fs3", "fs4", "fs5", \
        "fs6", "fs7", "fs8", "fs9", "fs10", "fs11"
#else
#define CONC__MORE_CLOBBERS
#endif

CONC__TINY void conc__jump(void **from, void **to)
{
    register void **out __asm__("a0") = from;
    register void **in __asm__("a1") = to;
    __asm__ volatile("lla t0, 1f\n\t"
                     "sd sp, 0(%0)\n\t"
                     "sd t0, 8(%0)\n\t"
                     "sd s0, 16(%0)\n\t"
                     "sd s1, 24(%0)\n\t"
                     "ld sp, 0(%1)\n\t"
                     "ld t0, 8(%1)\n\t"
                     "ld s0, 16(%1)\n\t"
                     "ld s1, 24(%1)\n\t"
                     "li ra, 0\n\t"
                     "jr t0\n"
                     "1:\n\t"
                     : "+r"(out), "+r"(in)
                     :
                     : "ra", "t0", "t1", "t2", "t3", "t4", "t5", "t6", "a2", "a3", "a4", "a5", "a6",
                       "a7", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10", "s11",
                       "memory" CONC__MORE_CLOBBERS);
}

CONC__PRIVATE void conc__prepare(void **context, char *low, char *top, void (*entry)(void))
{
    (void)low;
    context[0] = top - (uintptr_t)top % 16;
    context[1] = (void *)(uintptr_t)entry;
    context[2] = NULL;
    context[3] = NULL;
}

#endif
#endif

/* Returns whether Intel's shadow stack is on. It permits only calls and returns, so conc__jump
 * would kill the program. */
CONC__TINY bool conc__shadow_stack(void)
{
#if defined __x86_64__ && !CONC__UCONTEXT
    unsigned long pointer = 0;
    __asm__ volatile("rdsspq %0" : "+r"(pointer)); /* a no-op without a shadow stack */
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
CONC__TINY void conc__fpu_save(conc__fpu *f)
{
    __asm__ volatile("stmxcsr %0\n\tfnstcw %1" : "=m"(f->sse), "=m"(f->x87));
}
CONC__TINY void conc__fpu_load(const conc__fpu *f)
{
    __asm__ volatile("ldmxcsr %0\n\tfldcw %1" : : "m"(f->sse), "m"(f->x87));
}
#elif defined CONC_SAVE_FPU && defined __aarch64__
typedef uint64_t conc__fpu;
CONC__TINY void conc__fpu_save(conc__fpu *f) { __asm__ volatile("mrs %0, fpcr" : "=r"(*f)); }
CONC__TINY void conc__fpu_load(const conc__fpu *f) { __asm__ volatile("msr fpcr, %0" : : "r"(*f)); }
#elif defined CONC_SAVE_FPU && defined __riscv_flen
typedef uint64_t conc__fpu;
CONC__TINY void conc__fpu_save(conc__fpu *f) { __asm__ volatile("frrm %0" : "=r"(*f)); }
CONC__TINY void conc__fpu_load(const conc__fpu *f) { __asm__ volatile("fsrm %0" : : "r"(*f)); }
#else /* not requested, or unknown for this processor */
typedef char conc__fpu;
CONC__TINY void conc__fpu_save(conc__fpu *f) { (void)f; }
CONC__TINY void conc__fpu_load(const conc__fpu *f) { (void)f; }
#endif

/* ---- >>types -------------------------------------------------------------------------------- */

/* The subject of an error or report: the task's name at that time, the function it runs, and where
 * it was spawned. Both fields are the same pointer if the task has no name of its own. */
typedef struct conc__source {
    const char *name, *spawned;
} conc__source;

/* Why a task is waiting, and how cancellation affects the wait.
 *
 * To add a kind of wait:
 *   1. Define a conc__wait_kind, with .cancel unless the wait ignores cancellation.
 *   2. In the call that waits: conc__in_task, the argument checks, then conc__checkpoint.
 *   3. Put a conc__wait with .task, .kind and .on on the stack, and conc__append it to a list.
 *   4. conc__park(l, &w) returns the wake-up's result.
 *   5. A grant carries out the waiting call's whole effect and then calls conc__wake, which
 *      removes the wait from its list. A cancel arrives through conc__set_pending, which calls
 *      .cancel and, if that returns true, wakes the task. So .cancel never calls conc__wake itself;
 *      it may remove the wait from its list.
 *   6. If something outside the loop can end the wait, count it while it lasts, as l->outside and
 *      l->signals do: a loop in which nothing is counted and nothing can run is in a deadlock.
 *
 * Public calls also call conc__check_lost before they wait and conc__spend_budget if they need not
 * wait. For objects that other runs may reach, conc_sync.h has conc__may_wait in place of
 * conc__checkpoint, conc__wait_in for steps 3 and 4, and conc__ours for calls that do not wait. If
 * all waiters wait for the same condition, conc__wait_unless and conc__wake_all of conc_sync.h do
 * everything: conc_latch is the shortest example. For grants to single waiters, see conc_sem. */
typedef struct conc__wait_kind {
    /* for the dump, such as "joins"; details() prints the rest */
    const char *what;
    /* for the trace, if `what` makes no sense on its own; NULL: use `what` */
    const char *brief;
    void (*details)(FILE *out, const conc__wait *wait); /* NULL: nothing follows */
    /* called by a cancel. Returns whether to wake the task. NULL: keep waiting */
    bool (*cancel)(conc__wait *wait);
    /* called when this wait is woken, if its task has several: withdraws the others. NULL: it is
     * the task's only wait */
    void (*won)(conc__wait *wait);
    /* returns the only task that could end the wait. NULL: there is none */
    const conc_task *(*owner)(const conc__wait *wait);
} conc__wait_kind;

/* The `details` of a wait kind. With CONC_NO_DIAGNOSTICS, no tasks are printed, and the compiler
 * drops fn. */
#ifdef CONC_NO_DIAGNOSTICS
#define CONC__DETAILS(fn) (0 ? (fn) : NULL)
#else
#define CONC__DETAILS(fn) (fn)
#endif

/* Doubly linked lists: `next` and `prev` are the fields that link the items, NULL at the ends;
 * `first` points to the first item, or is NULL. If the list has a mutex, the caller holds it. */
#define CONC__LIST_PREPEND(first, item, next, prev) \
    do {                                            \
        (item)->prev = NULL;                        \
        (item)->next = (first);                     \
        if ((item)->next)                           \
            (item)->next->prev = (item);            \
        (first) = (item);                           \
    } while (0)

#define CONC__LIST_REMOVE(first, item, next, prev) \
    do {                                           \
        if ((item)->prev)                          \
            (item)->prev->next = (item)->next;     \
        else                                       \
            (first) = (item)->next;                \
        if ((item)->next)                          \
            (item)->next->prev = (item)->prev;     \
    } while (0)

/* The same for lists whose `last` points to the last item. */
#define CONC__QUEUE_APPEND(first, last, item, next, prev) \
    do {                                                  \
        (item)->next = NULL;                              \
        (item)->prev = (last);                            \
        if (last)                                         \
            (last)->next = (item);                        \
        else                                              \
            (first) = (item);                             \
        (last) = (item);                                  \
    } while (0)

#define CONC__QUEUE_REMOVE(first, last, item, next, prev) \
    do {                                                  \
        if (!(item)->next)                                \
            (last) = (item)->prev;                        \
        CONC__LIST_REMOVE(first, item, next, prev);       \
    } while (0)

#define CONC__HIGHEST_BIT (UINTPTR_MAX / 2 + 1)

/* A record of an object still in use: in debug mode, a lock that a task holds, or an open object
 * that must be closed; in any mode, an open conc_signals. The records form a radix tree keyed by
 * the object's address. */
typedef struct conc__holding {
    struct conc__holding *below[2]; /* by the next lower bit of the object's address */
    /* an older record of the same object, such as a rwlock read-locked twice */
    struct conc__holding *same;
    struct conc__holding *older, *newer; /* among all records */
    struct conc__holding *newest;        /* among all records; valid in the tree's root */
    const void *object;
    const char *what, *place; /* "a lock", and where it was acquired */
} conc__holding;

/* The top of every stack. */
typedef struct conc__stack {
    struct conc__stack *next; /* if free: the stack that was freed before it */
    struct conc__stack_cache *cache;
    struct conc__slab *slab;
    char *low;          /* the lowest byte that may be used */
    bool has_generator; /* runs a generator's body, not a task's */
#if CONC__ASAN
    const void *asan_low;
    size_t asan_size;
    void *asan_frames;
#endif
#if CONC__TSAN
    void *tsan_fiber;
    /* among the stacks vacated since the loop last slept */
    struct conc__stack *left_next, **left_at;
#endif
    uint32_t valgrind_id;
} conc__stack;

/* Stacks are carved from slabs, each a single mapping. A stack is in use; free, with its pages
 * still in memory; or dropped, with its pages returned to the system. The next use of a dropped
 * stack carves it again. */
typedef struct conc__slab {
    struct conc__slab *next, *prev;
    struct conc__slab *next_hole, *prev_hole; /* among the slabs with dropped stacks */
    struct conc__stack_cache *cache;
    char *base;
    int carved;       /* stacks carved so far, from below */
    int guarded;      /* stacks with a guard region */
    uint64_t dropped; /* a bit for each dropped stack */
} conc__slab;

/* All stacks of one size. */
typedef struct conc__stack_cache {
    struct conc__stack_cache *next;
    size_t size, guard, stride;
    int per_slab;
    conc__slab *slabs; /* newest first; only the first may have uncarved stacks */
    size_t slab_count;
    conc__slab *holes;
    conc__stack *free;
    /* this stack and all after it in `free` were free at the last trim; NULL: none */
    conc__stack *old;
    conc__stack *cold; /* removed from `free`, to be dropped */
    size_t resident;   /* stacks in use or free */
    bool trimmed;      /* the last trim left nothing to drop */
} conc__stack_cache;

enum { CONC__LEVELS = 11, CONC__SLOTS = 64 };

typedef struct conc__wheel {
    uint64_t elapsed;
    uint64_t occupied[CONC__LEVELS];
    conc__timer *slots[CONC__LEVELS][CONC__SLOTS];
    size_t armed, disarmed; /* call counts; their difference is the number of timers */
} conc__wheel;

/* A pause of the virtual clock while a child program runs: see conc__stand_still. */
typedef struct conc__standstill {
    int64_t began;   /* when the clock stopped, in real time; 0: it is running */
    int64_t until;   /* embedded: the host must wait until this real time; 0: no need */
    int64_t now;     /* the time on the loop's clock at `began` */
    size_t armed;    /* number of timers armed by then */
    unsigned starts; /* number of programs started by then */
} conc__standstill;

enum { CONC__SIGNALS = 65 }; /* one more than the highest signal number */

/* A function that a loop must run between task steps. */
typedef struct conc__post {
    struct conc__post *next;
    void (*run)(struct conc__post *post); /* may free the post: the loop is done with it */
} conc__post;

/* A source of events besides posts, polled while a loop spins before sleeping. */
typedef struct conc__idle_hook {
    struct conc__idle_hook *next;
    bool (*poll)(struct conc__idle_hook *self); /* true: an event occurred */
    /* called with true before the first poll, with false after the last */
    void (*enable)(struct conc__idle_hook *self, bool on);
} conc__idle_hook;

/* A function called at a run's end, after the last task: see conc__at_end. */
typedef struct conc__ending {
    struct conc__ending *next;
    void (*end)(conc_loop *l, struct conc__ending *self);
} conc__ending;

/* The tasks that were alive at the time when `spawned` tasks had been spawned and `finished` of
 * them had ended. */
typedef struct conc__census {
    uint64_t *serials; /* in order */
    size_t count;
    uint64_t spawned, finished;
} conc__census;

/* The error of a background task with a handle, kept until a join or the end of the run. The key is
 * the task's serial number, because the handle may be gone or reused. */
typedef struct conc__failed {
    struct conc__failed *next, *prev; /* in order of failure */
    struct conc__failed *same_slot;
    uint64_t serial;
    const char *spawned;
    int rc;
    char name[CONC__NAME], text[CONC__TEXT];
} conc__failed;

typedef struct conc__failures {
    conc__failed *first, *last;
    conc__failed **slots; /* a hash table; slot_count is a power of two, or 0 */
    size_t slot_count, count;
} conc__failures;

/* A node of a task's locals, which form a search tree by the bits of each key's hash. A task shares
 * with its parent the nodes that neither has changed since the spawn. A node is shared, and then
 * immutable, if it or a node above it has two or more references. */
typedef struct conc__locals {
    int references;
    const conc_local *key;
    const void *value;
    struct conc__locals *below[2]; /* by the next bit of the hash */
} conc__locals;

/* The life of a task. Only the loop's thread changes these states.
 *
 *   state    what holds                                    ends when
 *   ready    CONC__LIVE; in l->ready, or in l->spinners    the scheduler, or a task that parks,
 *            if it ignores its cancel; `wait` is NULL      switches to it: running
 *   running  CONC__LIVE; l->self points to it; `wait` is   conc__park: parked;
 *            NULL                                          conc__yield_to_ready: ready;
 *                                                          conc__task_end, when its function has
 *                                                          returned: ended
 *   parked   CONC__LIVE; `wait` points to a conc__wait     a grant, a timer or a cancel wakes it
 *            on its stack                                  (conc__wait_over): ready
 *   ended    CONC__DONE; `result` is set, the stack is     a join, conc_group_next or a sink takes
 *            free; without a handle, the task is gone too  the result: `collected` is set
 *
 * In its group, a task is among `children` until it ends. An ended, uncollected task with a handle
 * is then in the group's `finished` list (`in_finished`), until it is collected or the group
 * closes. The handle may be reused once the task has ended and is not in that list.
 *
 * The seal, a hash of the task's address, distinguishes a task from uninitialized storage. */
enum { CONC__LIVE = 1, CONC__DONE = 2 };
/* where a task's result goes besides joins: nowhere, to a conc_call, an int, a conc_start, or a
 * struct that begins with a pointer to a conc__returned_fn */
enum { CONC__NO_SINK, CONC__CALL_SINK, CONC__RESULT_SINK, CONC__START_SINK, CONC__FUNCTION_SINK };
typedef void conc__returned_fn(conc_task *t);

/* These change the seal of a task that has ended, and of one in its group's `finished` list.
 * Without them, overwriting one byte, the state, could make an ended task's handle look like a live
 * task's. */
enum { CONC__ENDED_SEAL = 0xffff, CONC__LISTED_SEAL = 0x5aa5 };

CONC__TINY uint16_t conc__seal(const conc_task *t)
{
    return (uint16_t)((uintptr_t)t >> 4 ^ 0xc0de);
}

CONC__PRIVATE bool conc__is_task(const conc_task *t)
{
    if (!t)
        return false;
    int difference = t->seal ^ conc__seal(t);
    switch (difference) {
    case 0: return t->state == CONC__LIVE;
    case CONC__ENDED_SEAL:
    case CONC__ENDED_SEAL ^ CONC__LISTED_SEAL: return t->state == CONC__DONE;
    default: return false;
    }
}

/* An event besides CONC_READABLE and CONC_WRITABLE: the peer hung up, or an error occurred. It
 * wakes every task waiting for the descriptor. */
enum { CONC__HANG_UP = 4 };

/* The lists of tasks waiting for a descriptor: one for each set of events (the empty set, 0, means
 * a hang-up alone), and one for tasks pausing because the descriptor was reported ready but
 * returned EAGAIN. */
enum { CONC__PAUSING = 4, CONC__FD_LISTS };

/* What the loop knows about a descriptor: its number, and the file that the number refers to.
 *
 *   state    what holds                                     changes
 *   UNKNOWN  the loop knows nothing about the file, and     a task waits: to FOREIGN, or to
 *            the poller does not have it; only pausing      REFUSED; conc opens a socket with
 *            tasks may be in the lists                      this number: to OWN
 *   FOREIGN  conc did not open it, and close(2) may close   conc__fd_confirm (a new wait, an event
 *            it without conc's knowledge; the poller has    or the rounds of conc__verify) finds
 *            it, and reports one event for each arming      another file, or none: to UNKNOWN
 *   REFUSED  as FOREIGN, but the poller refuses it,         fstat(2) finds another file, or none:
 *            because it is always ready; tasks may wait     to UNKNOWN
 *            only for a hang-up, and only a close ends
 *            such a wait
 *   OWN      conc opened it: a non-blocking socket that     a task waits: to EDGE
 *            conc_close closes; no task has waited yet
 *   EDGE     as OWN, but a task has waited, and the poller  as FOREIGN, but conc__fd_confirm asks
 *            reports every change                           the kernel only if another thread has
 *                                                           called conc_close for the number, or in
 *                                                           debug mode
 *
 * conc_close changes every state to UNKNOWN. `id` changes whenever the number comes to refer to
 * another file or none (conc__fd_gone), so number and id together identify the file: a task that
 * has waited, a server, and a kernel event's handler compare the id to see whether the file is
 * still the same. If another thread calls conc_close and may have meant this file or a later one
 * with the same number, an OWN descriptor becomes UNKNOWN and keeps its id. */
typedef enum conc__fd_state {
    CONC__FD_UNKNOWN,
    CONC__FD_FOREIGN,
    CONC__FD_REFUSED,
    CONC__FD_OWN,
    CONC__FD_EDGE
} conc__fd_state;

typedef struct conc__fd {
    conc__waits waits[CONC__FD_LISTS];
    struct conc__fd *next, *prev; /* among the descriptors that a task is waiting for */
    uint64_t inode;               /* with poll(2), or if REFUSED: identifies the file */
    uint32_t id;
    unsigned closings; /* conc__closings_of's value when the file was last known for certain */
    int number;
    int read_error, write_error; /* an error that the next call must return; 0: none */
    conc__fd_state state;
    bool tcp;     /* a TCP connection: after a short read, no bytes are left */
    bool drained; /* the last read found nothing more, and no event has occurred since */
    bool failed;  /* read_error or write_error is set */
    /* end of file or urgent data has arrived, so a short read may leave more to read */
    bool special;
    unsigned char filters; /* kqueue(2): its filters; see conc__kqueue_control */
    unsigned char came;    /* kqueue(2): the events of the current batch */
} conc__fd;

enum { CONC__FDS = 64 }; /* descriptors in each block of fds.blocks */

/* A free buffer of the usual size. */
typedef struct conc__spare {
    struct conc__spare *next;
} conc__spare;

struct conc__backend;

typedef void conc__switch_fn(conc_loop *l, conc__stack *from, void **from_context, conc__stack *to,
                             void **to_context);

/* The parts of a run's state. Other threads access only `shared`, job.idles and the atomic
 * fields. */
struct conc_loop {
    /* The fields that a switch uses are first. Fields written together must not be adjacent: the
     * compiler would merge the writes into one vector store, which would delay the next read. */
    conc_task *self; /* NULL while the scheduler runs */
    int *errno_at;   /* the address of errno on this thread */

    /* the ready tasks, and how long they may run */
    struct {
        conc_task *first;
        /* switches left until the next pass; checkpoints left until one yields */
        int switches_left, budget_left;
        conc_task *last;
    } ready;

    /* the scheduler, which runs on the thread's own stack */
    struct {
        conc__context context;
        conc__switch_fn *switch_stacks;
        /* &conc__diagnostics in debug mode or while a trace is written, else NULL. If set, a pass
         * runs one task, and every step is timed */
        const struct conc__hooks *hooks;
        bool stepping; /* embedded: a call from the host is running the scheduler */
        /* initial values of ready.switches_left and ready.budget_left; lower if steps are slow */
        int batch, budget;
        int flooded;       /* consecutive passes that ran only posted functions */
        int posted_rc;     /* the running posted function's latest error; 0: none */
        int64_t last_pass; /* time of the last pass, on the loop's clock */
        /* conc__on_loop: what the running task asked the scheduler to call; NULL: nothing */
        void (*call)(conc_loop *l, void *arg);
        void *call_arg;
        conc__stack stack;
        conc__context scratch; /* for contexts that are never resumed */
        conc__fpu fpu;         /* a task's initial state */
        conc__waits settlers;  /* tasks in conc_settle */
#if CONC__TSAN
        void *dead_fiber;
        /* the stacks whose fibers may have signals; see conc__fiber_take_signals */
        conc__stack *switched_from;
#endif
    } scheduler;

    /* tasks that ignore their cancellation; they run in rounds */
    struct {
        conc_task *first, *last;
        /* the pass in which they run even if other tasks are ready; each new spinner postpones
         * it */
        uint64_t next_round;
    } spinners;

    /* cancels that have not reached their tasks yet, and the doom, which cancels every task */
    struct {
        conc_task *marked, *last_marked; /* tasks that a cancel may have reached */
        bool refreshing;                 /* conc__spread_marked is emptying this list */
        bool doomed;                     /* every task is cancelled: the run has failed */
        int doom_rc;                     /* the error with which the run has failed; 0: none */
        char doom_text[CONC__TEXT];
    } cancels;

    /* counters of the run */
    struct {
        uint64_t spawned, finished; /* both start at conc__first_serial */
        /* most - finished is the largest number of tasks alive at once */
        uint64_t most;
        uint64_t switches, passes, polls;
        int64_t idled; /* how long the loop has slept, on its clock */
    } counters;

    /* the stacks of tasks */
    struct {
        conc__stack_cache *usual;  /* of the default size */
        conc__stack_cache *caches; /* of all sizes */
        int64_t trimmed;           /* when the caches were last trimmed */
        bool to_trim;              /* the last trim left stacks that the next may drop */
    } stacks;

    /* the open generators */
    struct {
        struct conc__gen *first;
        size_t count;
        void (*close_all)(conc_loop *l); /* NULL: none was opened */
        conc__stack *stopped;            /* stacks to keep until the run ends */
    } generators;

    /* the two random generators */
    struct {
        bool seeded;           /* the scheduler picks ready tasks at random */
        uint64_t picks, draws; /* the states: for the scheduler's picks, and for conc_random */
    } random;

    /* the run itself: its options, its main task, its end */
    struct {
        conc_options options;
        uint64_t number; /* the run's number in the process */
        conc_loop *next; /* in conc__live_runs */
        conc_task main;
        conc_fn *main_fn;
        void *main_arg;
        const char *main_name;
        conc_group background;
        conc__failures failures;
        int exit_status; /* set by conc_set_exit_status; CONC__NO_STATUS: not set */
        bool embedded;
        bool winding_up; /* main_fn has returned */
        bool over;       /* everything else has ended, too; the main task is about to end */
        int64_t began;   /* when the run began, on its clock */
        int64_t left;    /* embedded: when conc last returned to the host */
        conc__ending *endings;
    } run;

    /* the loop's clock, and the timers on it */
    struct {
        int64_t now;
        bool is_virtual;
        /* virtual: a task is retrying something, so conc__jump_clock must first let real time
         * pass */
        bool retried;
        conc__standstill standstill;
        conc__wheel wheel;
    } clock;

    /* the poller: how the loop waits for descriptors, and how other threads wake it */
    struct {
        const struct conc__backend *backend;
        int fd;                   /* of epoll or kqueue; -1: none */
        int wake_out, wake_in;    /* a pipe's ends, or the same eventfd twice; -1: none */
        int64_t polled;           /* when the loop last polled */
        struct pollfd *polls_for; /* poll(2) */
        size_t polls_room;
        /* epoll: how many events no task was waiting for, and how many came from files that this
         * process had already closed */
        unsigned unheard, orphans;
        bool apart; /* kqueue: tasks may be waiting for descriptors outside the queue */
        bool blind; /* the loop can no longer wait for descriptors */
    } poller;

    /* the descriptors that the loop knows, and the check that they still refer to the same files */
    struct {
        conc__fd **blocks; /* of CONC__FDS, by number */
        size_t block_count;
        conc__fd *watched, *last_watched; /* those that a task is waiting for */
        size_t watched_count, verify_count, unverified;
        /* since the last conc__verify, code ran that may have closed a descriptor */
        bool stirred;
        bool was_alone;         /* this was the only thread when conc__verify's last round began */
        int64_t verified;       /* when conc__verify last checked descriptors, on the real clock */
        int64_t verified_until; /* the same for conc__verify_until, on the virtual clock */
    } fds;

    /* free buffers of the usual size */
    struct {
        conc__spare *first;
        int count;
    } spares;

    /* waits for other threads and processes */
    struct {
        int awaited;       /* tasks waiting for another thread or process */
        int channel_waits; /* how many of these are waiting for a channel */
        int process_waits; /* tasks waiting for a child program to end, or for a FIFO's other end */
        unsigned misses;   /* consecutive unsuccessful spins */
        /* the thread to which a task last sent something was asleep: do not spin */
        bool woke;
        atomic_int at_work; /* virtual clock: number of jobs for which time stands still */
        conc__idle_hook *idle_hooks;
    } outside;

    /* the job in which this run was started */
    struct {
        /* the job, if a virtual clock stands still for it, else NULL */
        struct conc__job_context *context;
        bool idles; /* under the mutex: that clock may run until the next post */
        /* virtual clock: when the job's shield expires, on the real clock; CONC__NEVER: no limit */
        int64_t limit;
    } job;

    /* objects on stacks that must stay alive while something uses them */
    struct {
        bool any;                 /* one of these trees is not empty */
        conc__holding *receivers; /* the `signals.open` list, as a tree by address */
        conc__holding *handles;   /* debug: handles of tasks and jobs that may still be running */
    } lent;

    /* the signals that the run receives */
    struct {
        conc_signals *open;  /* the open receivers */
        conc__ending ending; /* closes the receivers; all zero: none was opened */
        /* delivers pending signals to the receivers; NULL: none was opened */
        void (*hand_out)(conc_loop *l);
        /* by signal number: the open receivers, and the arrival count up to which they have been
         * served */
        struct conc__signal_list {
            struct conc__signal_number *first;
            unsigned long handed;
        } received[CONC__SIGNALS];
        uint64_t unblocked; /* a bit for each signal that was blocked until a receiver opened */
        int waits;          /* tasks waiting for a signal */
        bool pipe_was_blocked, pipe_was_pending; /* SIGPIPE's state when the run began */
        /* conc's alternate stack for handlers; NULL: the thread already had one, or memory ran
         * out */
        void *stack;
        _Atomic(conc_loop *) *slot; /* where the handler finds this loop, or NULL */
        /* written by the handler: a signal arrived; one that asks for a dump arrived */
        atomic_bool came, dump_asked;
    } signals;

    /* interrupts: signals that cancel main_fn. The handler reads `numbers` and writes `pending` and
     * `first_at` */
    struct {
        /* a conc__interrupt_bit for each signal that interrupts this run */
        atomic_uint numbers;
        atomic_int pending;        /* the signal that must cancel main_fn; 0: none */
        _Atomic(int64_t) first_at; /* when the first signal arrived, on the real clock; 0: none */
        int by;                    /* the signal that interrupted this run; 0: none */
        bool late;                 /* that signal arrived after main_fn had returned */
        /* main_fn sleeps forever on purpose: only a signal or post wakes it */
        bool awaited;
    } interrupt;

    /* shared with other threads, under the mutex; `posted` may be read without it */
    struct {
        pthread_mutex_t mutex;
        _Atomic(conc__post *) posted;
        conc__post *last_posted;
        size_t holds; /* conc_loop_hold calls not yet released */
        /* closed: posts are refused; over_for_good: the last release frees the loop */
        bool asleep, closed, over_for_good;
    } shared;

    /* debug mode, the trace, and reports */
    struct {
        bool debug, on_valgrind;
        /* debug: conc's handlers for SIGUSR2 and for SIGSEGV are installed for this run */
        bool dumps_taken, faults_taken;
        bool lists_tasks; /* the current report has a line for each task */
        bool step_over;   /* stepwise: the resumed task has ended */
        /* stepwise: when the current step began; the total time of all steps; the total time of all
         * completed waits */
        int64_t step_began, ran, waited;
        /* debug: how much of the current step's time user hooks took */
        int64_t called;
        struct conc__trace *trace;       /* NULL: none is written */
        struct conc__watchdog *watchdog; /* debug */
        struct conc__usage *usages;      /* debug: the stacks' usage */
        conc__holding *opened;           /* debug: objects that must be closed before the end */
        /* the stack of a task that has just ended, and its lowest used byte; NULL: not needed */
        conc__stack *left_stack;
        char *left_used;
        conc__census census;
        /* while interrupt.awaited: when the loop last searched for cycles of tasks waiting for each
         * other, and how often it has paused since then */
        int64_t searched;
        uint64_t unsearched;
    } diagnostics;
};

static CONC_TLS _Thread_local conc_loop *conc__here;

/* The text of conc_last_error on this thread, outside any task or job. */
static CONC_TLS _Thread_local char conc__thread_text[CONC__TEXT];

static atomic_uint_least64_t conc__runs; /* runs so far in this process and its ancestors */
/* In a forked child, the runs up to this number were the parent's. Their tasks never continue in
 * the child, so whatever they left in locks, lists, groups and handles is ignored. 0: no fork. */
static uint64_t conc__inherited_runs;

/* The runs in progress of all threads of this process. */
static struct {
    pthread_mutex_t mutex;
    conc_loop *first;
} conc__live_runs = {PTHREAD_MUTEX_INITIALIZER, NULL};

struct conc__address;

/* A case of conc_select on a channel or a job of conc_pool.h. Other threads only notify the loop;
 * the loop's own thread decides whether the case is carried out. */
typedef struct conc__outside {
    enum { CONC__CASE_RECEIVES, CONC__CASE_SENDS, CONC__CASE_ENDS } kind;
    void *object;    /* a conc_channel or a conc_job */
    void *item;      /* where to store or read the item */
    conc_task *task; /* the task that receives an error's text */
    int result;      /* valid once the case has been carried out */
    void *owner;     /* the conc_case, for `notified` */
    /* Called on the loop after another thread has notified it. happened: the case was carried out;
     * otherwise an earlier end() returned true. */
    void (*notified)(struct conc__outside *o, bool happened);
} conc__outside;

typedef struct conc__outside_calls {
    int (*check)(const conc__outside *o); /* returns 0 if the case is valid */
    bool (*attempt)(conc__outside *o);    /* returns true if the case was carried out */
    /* returns 1 (carried out), 0 (a copy, *begun, waits until the case is carried out or end is
     * called), or an error */
    int (*begin)(conc_loop *l, conc__outside *o, conc__outside **begun);
    /* returns true if another thread has already notified the loop; `notified` will then still be
     * called */
    bool (*end)(conc__outside *o);
} conc__outside_calls;

/* The functions of conc_pool.h that this header calls. All are NULL if the program does not include
 * conc_pool.h. */
typedef struct conc__extension {
    const conc__outside_calls *outside; /* for conc_select */
    /* the locals of the job that is running on this thread; NULL: none */
    conc__locals **(*job_locals)(void);
    /* conc_block in a job; returns 1 if no job is running on this thread */
    int (*job_block)(int64_t ns);
    /* conc_shield in a job; returns false if no job is running on this thread */
    bool (*job_shield)(double grace, conc_fn *fn, void *arg, int *rc);
    /* called when a run begins on this thread, perhaps inside a job */
    int (*job_runs)(conc_loop *l);
    /* called with true when the run's tasks are waiting only for channels, so that l's job counts
     * as idle, and with false when that wait is over */
    void (*job_idles)(conc_loop *l, bool idles);
    void (*job_goes_on)(conc_loop *l); /* called under the mutex when the next post has arrived */
    /* called when l->job.limit has expired; returns the next limit */
    int64_t (*job_late)(conc_loop *l);
    /* conc_fail in a job; returns false if no job is running on this thread */
    bool (*job_fail)(int rc, const char *text);
    /* the latest error text of the job that is running on this thread, "" if none; NULL: no job is
     * running */
    const char *(*job_text)(void);
    /* looks up a host name: returns the number of addresses; release *found with conc_free */
    int (*resolve)(const char *text, struct conc__address **found);
    /* returns the number of jobs that have not begun, in all pools of the program */
    size_t (*jobs_queued)(void);
    /* returns whether this is a conc_job in use; the memory may have been overwritten */
    bool (*job_in_use)(const void *job);
    /* returns whether any task is waiting on a pipe of a running child program; sets *starts to the
     * number of programs started so far */
    bool (*pipe_awaited)(const conc_loop *l, unsigned *starts);
    /* the job that is running on this thread; NULL: none */
    struct conc__job_context *(*job_here)(void);
    /* called when a job begins or ends a wait for a task of l. If the virtual clock that the job
     * stops is l's, it may advance during the wait */
    void (*job_waits)(struct conc__job_context *job, const conc_loop *l, bool waits);
    bool (*job_cancelled)(void);
    /* called in a fault handler: reports a stack overflow of the running job, if that is the
     * cause */
    void (*job_overflows)(const char *address);
} conc__extension;

static conc__extension conc__extended;

/* Everything in debug mode, traces and dumps that the core calls. The section >>diagnostics fills
 * in the table; with CONC_NO_DIAGNOSTICS there is no such section, and the table is empty. */
typedef struct conc__hooks {
    /* Called as conc__diagnostics.dump(...), because these also serve runs without debug mode: */
    void (*dump)(conc_loop *l, FILE *out);
    /* prints the tasks, and a cycle of tasks waiting for each other */
    void (*deadlock)(conc_loop *l, FILE *out);
    void (*forget)(void); /* called in a forked child */

    /* Called by CONC__HOOK, in debug mode or while a trace is written. For a run: */
    int (*run_began)(conc_loop *l);  /* it begins */
    void (*run_ended)(conc_loop *l); /* it has ended, or has failed to begin */
    /* main_fn's frames were in the `size` bytes starting at `low` */
    void (*main_returned)(conc_loop *l, uintptr_t low, uintptr_t size);
    void (*close_generators)(conc_loop *l); /* open generators are about to be closed */
    void (*sleeps)(conc_loop *l);           /* the loop is about to wait for events */
    void (*idled)(conc_loop *l, int64_t from, int64_t to);
    /* calls run(arg), which calls the program's function fn on the loop, outside any task */
    void (*call)(conc_loop *l, const char *role, uintptr_t fn, void (*run)(void *), void *arg);
    /* finds the name of a function of the program. Returns false if its module has no symbols */
    bool (*name_function)(char name[CONC__NAME], uintptr_t fn);

    /* For a task, in the order of its life: */
    void (*spawned)(conc_loop *l, conc_task *t);
    void (*named)(conc_loop *l, const conc_task *t);
    void (*step)(conc_loop *l, conc_task *t); /* runs it through conc__resume, and times the step */
    void (*waited)(conc_loop *l, conc_task *t); /* its wait changes to another kind */
    void (*woken)(conc_loop *l, conc_task *t);  /* its wait is over */
    /* the task, or one of its scopes; t is NULL for the background group */
    void (*cancelled)(conc_loop *l, const conc_task *t, const char *why);
    void (*returned)(conc_loop *l, conc_task *t); /* its function has returned */
    void (*ended)(conc_loop *l, conc_task *t);    /* its stack is released next */

    /* For debug mode: objects that must be closed before the run ends, locks that a task must
     * release before it ends, and handles that must outlive their tasks and jobs. */
    void (*opened)(conc_loop *l, const void *object, const char *what, const char *place);
    void (*closed)(conc_loop *l, const void *object);
    void (*acquired)(conc_loop *l, conc_task *t, const void *lock, const char *what,
                     const char *place);
    void (*released)(conc_task *t, const void *lock);
    void (*handle_lent)(conc_loop *l, const void *handle, const char *what);
    void (*handle_reused)(conc_loop *l, const conc_task *handle); /* a new task uses the handle */
    /* the running task's stack is about to be lost below this address */
    void (*check_handles)(conc_loop *l, const conc_task *t, const void *below, const char *how);
    /* a generator's body has ended; reusable: its stack has been released */
    void (*stack_used)(conc_loop *l, conc__stack *s, conc__source user, bool reusable);
} conc__hooks;

static const conc__hooks conc__diagnostics;

/* declared here, defined below */
CONC__PRIVATE void conc__wake(conc_loop *l, conc__wait *w, int result);
CONC__PRIVATE void conc__run_posts(conc_loop *l);
CONC__PRIVATE int conc__post_to(conc_loop *l, conc__post *p);
CONC__COLD void conc__deadlock(conc_loop *l);
CONC__COLD bool conc__awaits_interrupt(conc_loop *l, int64_t *limit);
CONC__COLD void conc__doom(conc_loop *l, int rc);
CONC__PRIVATE void conc__child_gone(conc_loop *l, conc_group *g);
CONC__PRIVATE bool conc__gen_is_inside(const conc_loop *l, const conc_scope *s);
CONC__COLD int conc__gen_may_not_end(const conc_scope *s, const char *call);
static inline int64_t conc__time(const conc_loop *l);
CONC__PRIVATE void conc__copy(char *to, size_t size, const char *from);
CONC__PRIVATE void conc__fd_event(conc_loop *l, conc__fd *f, int ready, bool special);
CONC__PRIVATE void conc__fd_gone(conc_loop *l, conc__fd *f);
CONC__COLD void conc__fd_lost(conc_loop *l, conc__fd *f);
CONC__PRIVATE bool conc__fd_confirm(conc_loop *l, conc__fd *f);
CONC__FAST conc__fd *conc__fd_find(const conc_loop *l, int number);
CONC__PRIVATE int conc__fd_wanted(const conc__fd *f);
CONC__PRIVATE bool conc__fd_has_waits(const conc__fd *f);
CONC__TINY bool conc__fd_is_own(const conc__fd *f);
CONC__TINY bool conc__fd_is_polled(const conc__fd *f);
CONC__PRIVATE int conc__fd_ready(int number, int events);
static inline void conc__take_signals(conc_loop *l);
CONC__TINY void conc__fd_last(conc_loop *l, conc__fd *f);
CONC__COLD void conc__lost(conc_loop *l, const conc_task *t, const char *place, const char *how);
static const char conc__overwritten[] = "memory was overwritten";
#define CONC__HANDLE_OF "the handle of "
#define CONC__A_JOB "a job"
CONC__COLD void conc__holding_drop(conc__holding **tree, const void *object);
CONC__PRIVATE conc__holding **conc__holding_find(conc__holding **at, const void *object);
CONC__PRIVATE const char *conc__place_of(const char *spawned);
CONC__PRIVATE void conc__print_name(FILE *out, const conc_task *t);
CONC__PRIVATE const char *conc__describe(char *to, size_t size, conc__source source);
CONC__TINY conc__source conc__source_of(const conc_task *t);
CONC__COLD int conc__own_error(int rc);
CONC__FAST int conc__pass_error(conc_loop *l, int rc);
CONC__FAST int conc__pass_error_since(conc_loop *l, int rc, uint32_t before);
CONC__COLD int conc__misused(int rc, const char *call, const char *why, const char *place);

/* ---- >>platform ----------------------------------------------------------------------------- */

/* -- sanitizers -- */

#if CONC__ASAN
void __sanitizer_start_switch_fiber(void **frames, const void *low, size_t size);
void __sanitizer_finish_switch_fiber(void *frames, const void **old_low, size_t *old_size);
void __asan_unpoison_memory_region(void const volatile *address, size_t size);
void __lsan_register_root_region(const void *address, size_t size);
void __lsan_unregister_root_region(const void *address, size_t size);
#endif
#if CONC__MSAN
void __msan_unpoison(const volatile void *address, size_t size);
#endif
#if CONC__TSAN
void *__tsan_get_current_fiber(void);
void *__tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void *fiber);
void __tsan_switch_to_fiber(void *fiber, unsigned flags);
#endif

#if CONC__TSAN
/* TSan delays a signal until the running fiber calls one of TSan's functions; if that fiber waits
 * or ends first, the signal is lost. So every fiber that has run makes such a call before the loop
 * sleeps and before the fiber is destroyed. TSan also treats its own work on a fiber, such as
 * creating it, as running the fiber, and loses a signal that arrives during a fiber's first call
 * that might block. So signals are blocked during both, and a fiber begins with such a call. */
CONC__PRIVATE void conc__fiber_take_signals(void *fiber)
{
    void *here = __tsan_get_current_fiber();
    int saved = errno;
    if (fiber != here)
        __tsan_switch_to_fiber(fiber, 0);
    poll(NULL, 0, 0);
    if (fiber != here)
        __tsan_switch_to_fiber(here, 0);
    errno = saved;
}

CONC__PRIVATE void conc__block_signals(sigset_t *before)
{
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, before);
}

/* Returns a new fiber, or the thread's own. */
CONC__PRIVATE void *conc__fiber_begin(bool is_new)
{
    sigset_t before;
    conc__block_signals(&before);
    void *fiber = is_new ? __tsan_create_fiber(0) : __tsan_get_current_fiber();
    conc__fiber_take_signals(fiber);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return fiber;
}

CONC__PRIVATE void conc__fiber_destroy(void *fiber)
{
    sigset_t before;
    conc__block_signals(&before);
    conc__fiber_take_signals(fiber);
    __tsan_destroy_fiber(fiber);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

CONC__PRIVATE void conc__stack_unleave(conc__stack *s)
{
    if (!s->left_at)
        return;
    *s->left_at = s->left_next;
    if (s->left_next)
        s->left_next->left_at = s->left_at;
    s->left_at = NULL;
}

CONC__PRIVATE void conc__stack_leave(conc_loop *l, conc__stack *s)
{
    conc__stack_unleave(s);
    s->left_next = l->scheduler.switched_from;
    s->left_at = &l->scheduler.switched_from;
    if (l->scheduler.switched_from)
        l->scheduler.switched_from->left_at = &s->left_next;
    l->scheduler.switched_from = s;
}
#endif

/* Called before the loop sleeps. */
CONC__TINY void conc__delayed_signals(conc_loop *l)
{
#if CONC__TSAN
    sigset_t before;
    conc__block_signals(&before);
    while (l->scheduler.switched_from) {
        conc__stack *s = l->scheduler.switched_from;
        conc__stack_unleave(s);
        conc__fiber_take_signals(s->tsan_fiber);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
#endif
    (void)l;
}

/* Called right before a jump from one stack to another. from is NULL if the stack will never be
 * resumed. */
CONC__TINY void conc__leaving(conc_loop *l, conc__stack *from, conc__stack *to)
{
#if CONC__ASAN
    __sanitizer_start_switch_fiber(from ? &from->asan_frames : NULL, to->asan_low, to->asan_size);
#endif
#if CONC__TSAN
    if (from && from != &l->scheduler.stack)
        conc__stack_leave(l, from);
    __tsan_switch_to_fiber(to->tsan_fiber, 0);
#endif
    (void)l;
    (void)from;
    (void)to;
}

/* Called right after a jump to this stack. */
CONC__TINY void conc__arrived(conc_loop *l, conc__stack *here)
{
#if CONC__ASAN
    const void *low;
    size_t size;
    __sanitizer_finish_switch_fiber(here->asan_frames, &low, &size);
    if (!l->scheduler.stack.asan_low) { /* a run's first jump comes from the thread's own stack */
        l->scheduler.stack.asan_low = low;
        l->scheduler.stack.asan_size = size;
    }
#endif
#if CONC__TSAN
    if (l->scheduler.dead_fiber)
        conc__fiber_destroy(l->scheduler.dead_fiber);
    l->scheduler.dead_fiber = NULL;
#endif
    (void)l;
    (void)here;
}

/* Called before a stack gets a new user. */
CONC__TINY void conc__stack_begins(conc__stack *s)
{
#if CONC__ASAN
    s->asan_low = s->low;
    s->asan_size = (size_t)((char *)s - s->low);
    s->asan_frames = NULL;
#endif
#if CONC__TSAN
    s->tsan_fiber = conc__fiber_begin(true);
    s->left_at = NULL;
#endif
    (void)s;
}

/* Called when a stack's user ends. May run on that stack, just before the user leaves it for
 * good. */
CONC__TINY void conc__stack_ends(conc_loop *l, conc__stack *s)
{
#if CONC__ASAN
    __asan_unpoison_memory_region(s->low, (size_t)((char *)s - s->low));
#endif
#if CONC__TSAN
    conc__stack_unleave(s);
    if (s->tsan_fiber == __tsan_get_current_fiber())
        l->scheduler.dead_fiber = s->tsan_fiber; /* a fiber cannot destroy itself */
    else
        conc__fiber_destroy(s->tsan_fiber);
#endif
    (void)l;
    (void)s;
}

/* Makes a client request as valgrind.h documents it, but without that header, using instructions
 * that do nothing outside Valgrind. Returns 0 there. */
CONC__COLD uintptr_t conc__valgrind(uintptr_t request, uintptr_t a, uintptr_t b)
{
    volatile uintptr_t call[6] = {request, a, b, 0, 0, 0};
    uintptr_t result = 0;
#if defined __x86_64__ && defined __LP64__ && defined __linux__
    __asm__ volatile("{rolq $3, %%rdi|rol rdi, 3}\n\t{rolq $13, %%rdi|rol rdi, 13}\n\t"
                     "{rolq $61, %%rdi|rol rdi, 61}\n\t{rolq $51, %%rdi|rol rdi, 51}\n\t"
                     "{xchgq %%rbx, %%rbx|xchg rbx, rbx}"
                     : "+d"(result)
                     : "a"(&call[0])
                     : "cc", "memory");
#elif defined __aarch64__ && defined __LP64__ && defined __linux__
    __asm__ volatile(
        "mov x3, %0\n\tmov x4, %1\n\t"
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
    CONC__VALGRIND_UNDEFINED = 0x4d430001, /* Memcheck: the memory may be written */
    CONC__VALGRIND_DEFINED = 0x4d430002    /* may also be read */
};

/* Tells the checkers that reading an uninitialized handle is fine. */
CONC__PRIVATE void conc__mark_defined(const void *handle, size_t size)
{
#if CONC__MSAN
    __msan_unpoison(handle, size);
#endif
    conc__valgrind(CONC__VALGRIND_DEFINED, (uintptr_t)handle, size);
}

CONC__TINY bool conc__on_valgrind(void) { return conc__valgrind(CONC__VALGRIND_RUNS, 0, 0) != 0; }

CONC__TINY void conc__stack_register(conc__stack *s)
{
    s->valgrind_id =
        (uint32_t)conc__valgrind(CONC__VALGRIND_STACK, (uintptr_t)s->low, (uintptr_t)s);
}

CONC__TINY void conc__stack_unregister(const conc__stack *s)
{
    conc__valgrind(CONC__VALGRIND_NO_STACK, s->valgrind_id, 0);
}

/* Functions that switch stacks are inlined for speed, except under sanitizers, which may need
 * registers of their own. */
#if CONC__ASAN || CONC__TSAN || CONC__UCONTEXT || !defined __OPTIMIZE__
#define CONC__SWITCHES static __attribute__((noinline))
#else
#define CONC__SWITCHES static inline __attribute__((always_inline))
#endif

/* All but the fast paths call this through the loop's switch_stacks. GCC infers which static
 * variables a function can change, and ignores what an asm statement might do, so a task might not
 * see what other tasks changed while it waited. A call through a pointer may change any
 * variable. */
CONC__SWITCHES void conc__switch(conc_loop *l, conc__stack *from, void **from_context,
                                 conc__stack *to, void **to_context)
{
    conc__fpu fpu;
    conc__fpu_save(&fpu);
    conc__leaving(l, from, to);
    conc__jump(from_context, to_context);
    conc__fpu_load(&fpu);
    conc__arrived(l, from);
}

CONC__PRIVATE void conc__switch_plainly(conc_loop *l, conc__stack *from, void **from_context,
                                        conc__stack *to, void **to_context)
{
    conc__switch(l, from, from_context, to, to_context);
}

/* -- memory, threads, the clock -- */

/* The clock that stops while the machine is suspended. On macOS, CLOCK_MONOTONIC keeps counting
 * then, and its resolution is only one microsecond. */
#ifdef __APPLE__
#define CONC__CLOCK CLOCK_UPTIME_RAW
#else
#define CONC__CLOCK CLOCK_MONOTONIC
#endif

static inline int64_t conc__clock(void)
{
    struct timespec t;
    clock_gettime(CONC__CLOCK, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

CONC__PRIVATE void conc__thread_sleep(int64_t ns)
{
    struct timespec t = {(time_t)(ns / 1000000000), (long)(ns % 1000000000)};
    int saved = errno;
    nanosleep(&t, NULL);
    errno = saved;
}

/* Converts seconds to nanoseconds, rounding up, except that a rounding error just above a whole
 * number is dropped. Saturates. */
static inline int64_t conc__ns(double s)
{
    double ns = s * 1e9;
    if (ns > 1 && ns < 9e15) /* larger doubles are whole numbers */
        return (int64_t)(ns + (0.999 - ns * 2.3e-16));
    if (!(s > 0))
        return 0;
    if (s > 9.2e9)
        return CONC__NEVER - 1;
    if (ns <= 1)
        return 1;
    return (int64_t)ns;
}

/* Returns now + ns. Saturates below CONC__NEVER. */
CONC__TINY int64_t conc__later(int64_t now, int64_t ns)
{
    if (ns >= CONC__NEVER - 1 - now)
        return CONC__NEVER - 1;
    return now + ns;
}

CONC__TINY int64_t conc__sooner(int64_t a, int64_t b) { return a < b ? a : b; }

CONC__TINY int conc__lesser(int a, int b) { return a < b ? a : b; }

/* splitmix64 by Sebastiano Vigna, in the public domain */
CONC__PRIVATE uint64_t conc__random_bits(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

CONC__PRIVATE void *conc__alloc(size_t size)
{
    int saved = errno;
    void *p = CONC_MALLOC(size);
    errno = saved;
    return p;
}

/* -- system-dependent code: what only macOS does differently; then the Linux functions, and their
 * namesakes for other systems -- */

/* Returns whether this error means that the system lacks a call, or that a sandbox refuses it, so
 * that conc must do without the call. */
CONC__PRIVATE bool conc__refused(int error)
{
    return error == ENOSYS || error == EPERM || error == EACCES;
}

/* Returns whether the descriptor is open. If a sandbox refuses the query, assumes that it is. */
CONC__PRIVATE bool conc__is_open(int number)
{
    return fcntl(number, F_GETFD) >= 0 || errno != EBADF;
}

/* Moves a new descriptor out of the range 0 to 2: if the program was started with standard input or
 * output closed, the loop must not take their numbers. */
CONC__PRIVATE int conc__not_standard(int fd)
{
    if (fd < 0 || fd > 2)
        return fd;
    int other = fcntl(fd, F_DUPFD_CLOEXEC, 3), saved = errno;
    close(fd);
    errno = saved;
    return other;
}

/* Makes a new descriptor close-on-exec and non-blocking, where the call that opened it cannot. */
CONC__TINY void conc__set_modes(int fd)
{
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    fcntl(fd, F_SETFL, O_NONBLOCK);
}

/* Whether to make system calls that take a timespec: on 32 bits the kernel's struct may differ from
 * the C library's. */
#if defined __linux__ && defined __LP64__
#define CONC__NS_WAITS 1
#else
#define CONC__NS_WAITS 0
#endif

#ifdef __APPLE__

/* Keeps later writes to a broken pipe or socket from raising SIGPIPE. macOS has no per-call flag,
 * and sends the signal to the process even though this thread blocks it. */
CONC__PRIVATE void conc__no_pipe_signal(int fd)
{
    int saved = errno;
    fcntl(fd, F_SETNOSIGPIPE, 1);
    errno = saved;
}

/* Limits the bytes requested in one call: macOS refuses more than INT_MAX. */
CONC__TINY size_t conc__at_once(size_t n) { return n < INT_MAX ? n : INT_MAX; }

/* Returns whether fd is a named pipe, on which macOS's poll(2) and kqueue(2) do not report end of
 * file. Unnamed pipes have no device. */
CONC__PRIVATE bool conc__is_mute_pipe(int fd)
{
    struct stat st;
    return fstat(fd, &st) == 0 && S_ISFIFO(st.st_mode) && st.st_dev != 0;
}

/* Returns whether poll(2) has reported an open descriptor as invalid, or might have missed that one
 * is ready. On macOS it does that to devices, such as terminals, and to named pipes; select(2) can
 * wait for them. */
CONC__PRIVATE bool conc__poll_is_blind(const struct pollfd *polls, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (polls[i].revents & POLLNVAL && conc__is_open(polls[i].fd))
            return true;
    return n == 1 && !polls->revents && conc__is_mute_pipe(polls->fd);
}

/* Discards a blocked signal if it is pending in this thread. */
CONC__PRIVATE void conc__signal_discard(int number)
{
    int saved = errno;
    sigset_t set, pending;
    sigemptyset(&set);
    sigaddset(&set, number);
    if (sigpending(&pending) == 0 && sigismember(&pending, number))
        sigwait(&set, &number);
    errno = saved;
}

#else

/* Does nothing: sends use MSG_NOSIGNAL, and conc__drain_pipe_signal is called after writes. */
CONC__TINY void conc__no_pipe_signal(int fd) { (void)fd; }
CONC__TINY size_t conc__at_once(size_t n) { return n; }

CONC__TINY bool conc__is_mute_pipe(int fd)
{
    (void)fd;
    return false;
}

CONC__TINY bool conc__poll_is_blind(const struct pollfd *polls, size_t n)
{
    (void)polls, (void)n;
    return false;
}

/* Discards a pending signal, even one pending in another thread, by briefly ignoring it. */
CONC__PRIVATE void conc__signal_drop(int number)
{
    struct sigaction before, ignored;
    memset(&ignored, 0, sizeof ignored);
    ignored.sa_handler = SIG_IGN;
    if (sigaction(number, &ignored, &before) == 0)
        sigaction(number, &before, NULL);
}

/* Discards a blocked signal if it is pending. Does not wait, because another thread may have taken
 * a signal sent to the process. */
CONC__PRIVATE void conc__signal_discard(int number)
{
    int saved = errno;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, number);
    struct timespec now = {0, 0};
    if (sigtimedwait(&set, NULL, &now) < 0 && conc__refused(errno))
        conc__signal_drop(number);
    errno = saved;
}

#endif

#ifdef __linux__

enum { CONC__LINUX_NAMES = 1 }; /* local sockets: abstract names, and paths that need no NUL */

/* Returns whether this process may have more privileges than the process that set its
 * environment. */
CONC__TINY bool conc__is_privileged(void) { return getauxval(AT_SECURE) != 0; }

/* Returns the number of processors that this process may use, or 0 if it is unknown. */
CONC__TINY int conc__allowed_processors(void)
{
    unsigned long mask[128];
    int n = 0;
    long size = syscall(SYS_sched_getaffinity, 0, sizeof mask, mask);
    for (long i = 0; i < size / (long)sizeof mask[0]; i++)
        n += __builtin_popcountl(mask[i]);
    return n;
}

/* Returns the calling thread's number in /proc; 0: none. */
CONC__TINY long conc__thread_number(void) { return syscall(SYS_gettid); }

/* Returns whether this is the process's only thread, so that no other thread can close a descriptor
 * while it sleeps. */
CONC__TINY bool conc__is_only_thread(void)
{
    struct stat threads;
    return stat("/proc/self/task", &threads) == 0 && threads.st_nlink == 3;
}

/* Prevents huge pages: with them, the first byte of a stack could occupy two megabytes. */
CONC__TINY void conc__no_huge_pages(void *p, size_t size)
{
    madvise(p, size, CONC__MADV_NOHUGEPAGE);
}

/* Returns the memory of mapped pages to the system; the pages then read as zero. */
CONC__TINY bool conc__drop_pages(void *p, size_t size)
{
    return madvise(p, size, CONC__MADV_DONTNEED) == 0;
}

/* Returns whether a new guard region really faults: an emulator may ignore the call as mere advice.
 * Only the first call checks. */
CONC__TINY bool conc__guard_holds(const char *region)
{
    enum { HOLDS = 1, IGNORED };
    static atomic_int known;
    int answer = atomic_load_explicit(&known, memory_order_relaxed);
    if (!answer) {
        answer = IGNORED;
        if (conc__on_valgrind() || (access(region, F_OK) < 0 && errno == EFAULT))
            answer = HOLDS;
        atomic_store_explicit(&known, answer, memory_order_relaxed);
    }
    return answer == HOLDS;
}

/* Makes regions fault as conc__guard does, but without a mapping for each. Returns how many regions
 * it protected. */
CONC__TINY int conc__guard_cheaply(char *first, size_t size, size_t stride, int n)
{
    enum { INSTALL = 102 }; /* MADV_GUARD_INSTALL, Linux 6.13 */
    int done = 0;
    while (done < n && madvise(first + (size_t)done * stride, size, INSTALL) == 0)
        done++;
    if (done && !conc__guard_holds(first))
        return 0;
    return done;
}

/* Makes a pipe without pipe2; the kernel is called directly, because some C libraries implement
 * pipe with pipe2. Returns 0 or -1. */
CONC__TINY int conc__plain_pipe(int ends[2])
{
#ifdef SYS_pipe
    return (int)syscall(SYS_pipe, ends);
#else
    return socketpair(AF_UNIX, SOCK_STREAM, 0, ends);
#endif
}

/* Makes a pipe whose ends are close-on-exec. Returns 0 or -1. */
CONC__TINY int conc__pipe2(int ends[2]) { return (int)syscall(SYS_pipe2, ends, O_CLOEXEC); }

CONC__TINY int conc__eventfd(void) { return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); }

/* Reads an eventfd's count into *count. Returns 0, -ENOENT if fd is not an eventfd, or another
 * error. */
CONC__PRIVATE int conc__eventfd_count(int fd, uint64_t *count)
{
    char path[40], text[256];
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
    int info = open(path, O_RDONLY | O_CLOEXEC);
    if (info < 0)
        return -errno;
    ssize_t n = read(info, text, sizeof text - 1);
    close(info);
    text[n > 0 ? n : 0] = 0;
    const char *at = strstr(text, "eventfd-count:");
    if (!at)
        return -ENOENT;
    *count = strtoull(at + 14, NULL, 16);
    return 0;
}

/* Stores the path by which this process can open the descriptor's file again. Returns false if
 * there is none. */
CONC__PRIVATE bool conc__path_of(int fd, char *path, size_t size)
{
    snprintf(path, size, "/proc/self/fd/%d", fd);
    return true;
}

/* Describes the file, such as "anon_inode:[eventfd]", without a NUL. Returns the length, or -1 if
 * the file is unknown. */
CONC__PRIVATE ssize_t conc__file_behind(int fd, char *text, size_t size)
{
    char path[32];
    conc__path_of(fd, path, sizeof path);
    return readlink(path, text, size);
}

/* Returns whether fd is the master of a pseudo-terminal. */
CONC__PRIVATE bool conc__is_terminal_master(int fd)
{
    unsigned number;
    /* ioctl's prototype differs between C libraries */
    return syscall(SYS_ioctl, fd, TIOCGPTN, &number) == 0;
}

/* Calls poll(2) with a timeout in nanoseconds. */
CONC__TINY int conc__ppoll(struct pollfd *polls, size_t n, int64_t ns)
{
#if CONC__NS_WAITS
    struct timespec limit = {ns / 1000000000, ns % 1000000000};
    return (int)syscall(SYS_ppoll, polls, n, ns == CONC__NEVER ? NULL : &limit, NULL, (size_t)8);
#else
    (void)polls, (void)n, (void)ns;
    errno = ENOSYS;
    return -1;
#endif
}

/* Calls preadv2 or pwritev2 at the file's current position. */
CONC__PRIVATE ssize_t conc__io_flagged(int fd, const struct iovec *parts, int count, int access,
                                       int flags)
{
#ifdef SYS_preadv2
    long call = access == O_RDONLY ? SYS_preadv2 : SYS_pwritev2;
    return syscall(call, fd, parts, (long)count, -1L, -1L, flags);
#else
    (void)fd, (void)parts, (void)count, (void)access, (void)flags;
    errno = ENOSYS;
    return -1;
#endif
}

/* Opens a non-blocking TCP or local socket. */
CONC__PRIVATE int conc__socket(int family)
{
    return socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
}

/* Accepts a connection as a non-blocking socket. */
CONC__PRIVATE int conc__accept4(int fd)
{
    return (int)syscall(SYS_accept4, fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
}

#else

enum { CONC__LINUX_NAMES = 0 };

CONC__TINY bool conc__is_privileged(void)
{
#ifdef __APPLE__
    return issetugid() != 0;
#else
    return getuid() != geteuid() || getgid() != getegid();
#endif
}

CONC__TINY int conc__allowed_processors(void) { return 0; }
CONC__TINY long conc__thread_number(void) { return 0; }
CONC__TINY bool conc__is_only_thread(void) { return false; }
CONC__TINY void conc__no_huge_pages(void *p, size_t size) { (void)p, (void)size; }

/* On these systems madvise does not guarantee zeros, so the pages are mapped anew. */
CONC__PRIVATE bool conc__drop_pages(void *p, size_t size)
{
    int flags = MAP_PRIVATE | MAP_FIXED | CONC__MAP_ANONYMOUS | CONC__MAP_STACK;
    return mmap(p, size, PROT_READ | PROT_WRITE, flags, -1, 0) != MAP_FAILED;
}

CONC__TINY int conc__guard_cheaply(char *first, size_t size, size_t stride, int n)
{
    (void)first, (void)size, (void)stride, (void)n;
    return 0;
}

CONC__TINY int conc__plain_pipe(int ends[2]) { return pipe(ends); }

CONC__TINY int conc__pipe2(int ends[2])
{
    (void)ends;
    errno = ENOSYS;
    return -1;
}

CONC__TINY int conc__eventfd(void) { return -1; }

CONC__TINY int conc__eventfd_count(int fd, uint64_t *count)
{
    (void)fd, (void)count;
    return -ENOSYS;
}

/* Only terminals have such a path. */
CONC__PRIVATE bool conc__path_of(int fd, char *path, size_t size)
{
    return isatty(fd) && ttyname_r(fd, path, size) == 0;
}

CONC__TINY ssize_t conc__file_behind(int fd, char *text, size_t size)
{
    (void)fd, (void)text, (void)size;
    return -1;
}

CONC__PRIVATE bool conc__is_terminal_master(int fd)
{
#if defined TIOCPTYGNAME   /* macOS */
    char name[128];
    return ioctl(fd, TIOCPTYGNAME, name) == 0;
#elif defined TIOCPTMASTER /* FreeBSD */
    return ioctl(fd, TIOCPTMASTER) == 0;
#elif defined TIOCGPTN
    unsigned number;
    return ioctl(fd, TIOCGPTN, &number) == 0;
#else
    (void)fd;
    return false;
#endif
}

CONC__TINY int conc__ppoll(struct pollfd *polls, size_t n, int64_t ns)
{
    (void)polls, (void)n, (void)ns;
    errno = ENOSYS;
    return -1;
}

CONC__TINY ssize_t conc__io_flagged(int fd, const struct iovec *parts, int count, int access,
                                    int flags)
{
    (void)fd, (void)parts, (void)count, (void)access, (void)flags;
    errno = ENOSYS;
    return -1;
}

CONC__TINY int conc__accept4(int fd)
{
    (void)fd;
    errno = ENOSYS;
    return -1;
}

CONC__PRIVATE int conc__socket(int family)
{
    int fd = socket(family, SOCK_STREAM, 0);
    if (fd >= 0) {
        conc__set_modes(fd);
        conc__no_pipe_signal(fd); /* accepted connections inherit it */
    }
    return fd;
}

#endif

/* -- the same on all systems -- */

#ifdef CONC_NO_ENV
CONC__PRIVATE const char *conc__env(const char *name)
{
    (void)name;
    return NULL;
}
#else
CONC__PRIVATE const char *conc__env(const char *name)
{
    if (conc__is_privileged())
        return NULL;
    const char *value = getenv(name);
    if (!value || !*value)
        return NULL;
    return value;
}
#endif

/* Returns the number of processors that this process may use. */
CONC__PRIVATE int conc__processors(void)
{
    static atomic_int known;
    int n = atomic_load_explicit(&known, memory_order_relaxed);
    if (n)
        return n;
    int saved = errno;
    n = conc__allowed_processors();
    if (n <= 0)
        n = (int)sysconf(_SC_NPROCESSORS_ONLN);
    if (n <= 0)
        n = 1;
    errno = saved;
    atomic_store_explicit(&known, n, memory_order_relaxed);
    return n;
}

/* On a single processor, spinning is useless because no other thread can run at the same time. */
CONC__TINY bool conc__several_processors(void) { return conc__processors() > 1; }

/* Returns whether to spin before sleeping. *misses counts consecutive unsuccessful spins; the
 * caller resets it after a successful one. */
CONC__PRIVATE bool conc__should_spin(unsigned *misses)
{
    return conc__several_processors() && (++*misses <= CONC__MISSES || *misses % 64 == 0);
}

/* For the body of a spin loop. */
CONC__TINY void conc__relax(void)
{
#if defined __x86_64__ || defined __i386__
    __builtin_ia32_pause();
#elif defined __aarch64__
    /* takes as long as x86's pause; on most processors `yield` does nothing */
    __asm__ volatile("isb");
#else
    atomic_signal_fence(memory_order_seq_cst);
#endif
}

CONC__PRIVATE size_t conc__page(void)
{
    static _Atomic size_t page;
    size_t size = atomic_load_explicit(&page, memory_order_relaxed);
    if (!size) {
        size = (size_t)sysconf(_SC_PAGESIZE);
        atomic_store_explicit(&page, size, memory_order_relaxed);
    }
    return size;
}

CONC__PRIVATE void *conc__map_pages(size_t size)
{
    int flags = MAP_PRIVATE | CONC__MAP_ANONYMOUS | CONC__MAP_STACK;
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    conc__no_huge_pages(p, size);
#if CONC__ASAN
    __lsan_register_root_region(p, size);
#endif
    return p;
}

CONC__PRIVATE void conc__unmap_pages(void *p, size_t size)
{
#if CONC__ASAN
    __lsan_unregister_root_region(p, size);
#endif
    munmap(p, size);
}

/* Makes any access to n regions fault; each is `size` bytes long, and they start `stride` bytes
 * apart. Returns false if the system's limit is reached. */
CONC__PRIVATE bool conc__guard(char *first, size_t size, size_t stride, int n)
{
    int done = conc__guard_cheaply(first, size, stride, n);
    while (done < n && mprotect(first + (size_t)done * stride, size, PROT_NONE) == 0)
        done++;
    return done == n;
}

/* Starts a thread with all signals blocked: they are meant for the program's own threads. */
static inline int conc__quiet_thread(pthread_t *id, const pthread_attr_t *attributes,
                                     void *(*fn)(void *), void *arg)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(id, attributes, fn, arg);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return rc;
}

/* Returns the system clock's time ns from now, for calls that take an absolute time. */
CONC__PRIVATE struct timespec conc__real_time_in(int64_t ns)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    int64_t at = conc__later((int64_t)t.tv_sec * 1000000000 + t.tv_nsec, ns);
    return (struct timespec){(time_t)(at / 1000000000), (long)(at % 1000000000)};
}

/* Writes to stderr the text that snprintf, returning n, has written into a buffer of `size` bytes.
 * For signal handlers and the watchdog, which must not wait for stderr's lock. */
static inline void conc__write_stderr(const char *text, int n, size_t size)
{
    size_t length = 0;
    if (n >= 0)
        length = (size_t)n < size ? (size_t)n : size - 1;
    ssize_t rc = write(2, text, length);
    (void)rc;
}

/* Calls write(2) so that it fails with an error, not a fatal signal, if the file would exceed its
 * size limit or the pipe has no reader. */
static inline ssize_t conc__write_unharmed(int fd, const char *data, size_t n)
{
    static const int deadly[] = {SIGXFSZ, SIGPIPE};
    sigset_t both, before, already;
    sigemptyset(&both);
    sigemptyset(&already);
    for (size_t i = 0; i < CONC_LEN(deadly); i++)
        sigaddset(&both, deadly[i]);
    pthread_sigmask(SIG_BLOCK, &both, &before);
    sigpending(&already);
    conc__no_pipe_signal(fd);
    ssize_t written = write(fd, data, n);
    int saved = errno;
    for (size_t i = 0; i < CONC_LEN(deadly); i++)
        if (!sigismember(&already, deadly[i]))
            conc__signal_discard(deadly[i]);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = saved;
    return written;
}

/* Moves both descriptors out of the range 0 to 2. On failure, closes both. */
CONC__PRIVATE int conc__ends_not_standard(int ends[2])
{
    for (int i = 0; i < 2; i++) {
        ends[i] = conc__not_standard(ends[i]);
        if (ends[i] < 0) {
            int rc = -errno;
            close(ends[1 - i]);
            return rc;
        }
    }
    return 0;
}

/* Converts a system call's 0 or -1 to 0 or a negative errno. */
CONC__TINY int conc__failure(int rc) { return rc ? -errno : 0; }

CONC__PRIVATE int conc__pipe_otherwise(int ends[2])
{
    if (conc__plain_pipe(ends))
        return -errno;
    fcntl(ends[0], F_SETFD, FD_CLOEXEC);
    fcntl(ends[1], F_SETFD, FD_CLOEXEC);
    return 0;
}

/* Makes a pipe; both ends are close-on-exec. */
CONC__PRIVATE int conc__pipe(int ends[2])
{
    int rc = conc__failure(conc__pipe2(ends));
    if (conc__refused(-rc))
        rc = conc__pipe_otherwise(ends);
    if (rc)
        return rc;
    return conc__ends_not_standard(ends);
}

/* Opens the descriptor that wakes a sleeping loop: an eventfd, or a pipe if the system lacks or
 * refuses eventfds. */
CONC__PRIVATE int conc__wake_open(conc_loop *l)
{
    int ends[2];
    l->poller.wake_out = l->poller.wake_in = conc__not_standard(conc__eventfd());
    if (l->poller.wake_out >= 0)
        return 0;
    int rc = conc__pipe(ends);
    if (rc)
        return rc;
    l->poller.wake_out = ends[0];
    l->poller.wake_in = ends[1];
    conc__set_modes(ends[0]);
    conc__set_modes(ends[1]);
    return 0;
}

CONC__PRIVATE void conc__wake_close(conc_loop *l)
{
    if (l->poller.wake_in >= 0 && l->poller.wake_in != l->poller.wake_out)
        close(l->poller.wake_in);
    if (l->poller.wake_out >= 0)
        close(l->poller.wake_out);
}

CONC__PRIVATE void conc__wake_up(conc_loop *l)
{
    uint64_t one = 1;
    ssize_t n = write(l->poller.wake_in, &one, sizeof one); /* a full pipe wakes the loop, too */
    (void)n;
}

CONC__PRIVATE void conc__wake_drain(conc_loop *l)
{
    uint64_t count[64];
    while (read(l->poller.wake_out, count, sizeof count) == (ssize_t)sizeof count)
        continue; /* a pipe may hold more */
}

/* ---- >>poller ------------------------------------------------------------------------------- */

/* How the loop waits for descriptors. Each backend has a set of these functions, and a run uses one
 * set. */
typedef struct conc__backend {
    const char *name;
    int (*open)(conc_loop *l);
    /* adds f. Returns 0, 1 (refused, because f is always ready), or an error */
    int (*add)(conc_loop *l, conc__fd *f, int events);
    /* makes f, which is FOREIGN, report these events once. Returns false if the number is closed or
     * refers to another file */
    bool (*arm)(conc_loop *l, conc__fd *f, int events);
    /* returns whether the number still refers to the added file */
    bool (*confirm)(conc_loop *l, const conc__fd *f);
    /* removes f before conc closes it, because other processes may have the file open, too */
    void (*remove)(conc_loop *l, const conc__fd *f);
    /* waits for events for at most ns nanoseconds; 0: only polls; CONC__NEVER: no limit. Returns 0
     * or an error */
    int (*wait)(conc_loop *l, int64_t ns);
} conc__backend;

/* Converts a time limit to milliseconds for poll(2), rounding up. */
static inline int conc__milliseconds(int64_t ns)
{
    if (ns == CONC__NEVER)
        return -1;
    if (ns >= INT32_MAX * (int64_t)1000000)
        return INT32_MAX;
    return (int)((ns + 999999) / 1000000);
}

/* The sets of select(2), of any size. */
enum { CONC__SET_BITS = 8 * sizeof(long) };

CONC__PRIVATE void conc__set_add(unsigned long *set, int fd)
{
    set[fd / CONC__SET_BITS] |= 1ul << (fd % CONC__SET_BITS);
}

CONC__PRIVATE bool conc__set_has(const unsigned long *set, int fd)
{
    return set[fd / CONC__SET_BITS] >> (fd % CONC__SET_BITS) & 1;
}

/* Emulates poll(2) with select(2), which RLIMIT_NOFILE does not limit. Cannot wait for a hang-up
 * alone. */
CONC__PRIVATE int conc__select(struct pollfd *polls, size_t n, int64_t ns)
{
    const int64_t longest = (int64_t)86400 * 1000000000; /* a day; macOS refuses several years */
    int top = -1, closed = 0, count = 0;
    struct pollfd *end = polls + n;
    for (struct pollfd *p = polls; p < end; p++) {
        bool is_open = conc__is_open(p->fd);
        p->revents = is_open ? 0 : POLLNVAL;
        closed += !is_open;
        if (is_open && p->fd > top)
            top = p->fd;
    }
    size_t words = (size_t)(top + 1) / CONC__SET_BITS + 1, size = words * sizeof(long);
    unsigned long *reads = CONC_MALLOC(2 * size), *writes = reads + words;
    if (!reads)
        return -1;
    memset(reads, 0, 2 * size);
    for (struct pollfd *p = polls; p < end; p++) {
        if (!p->revents && p->events & POLLIN)
            conc__set_add(reads, p->fd);
        if (!p->revents && p->events & POLLOUT)
            conc__set_add(writes, p->fd);
    }
    int64_t pause = conc__sooner(ns, closed ? 0 : longest);
    struct timespec limit = {(time_t)(pause / 1000000000), (long)(pause % 1000000000)};
    bool is_limited = ns != CONC__NEVER || closed;
    int rc = pselect(top + 1, (fd_set *)(void *)reads, (fd_set *)(void *)writes, NULL,
                     is_limited ? &limit : NULL, NULL);
    for (struct pollfd *p = polls; p < end && rc >= 0; p++) {
        bool is_open = !p->revents;
        if (is_open && conc__set_has(reads, p->fd))
            p->revents |= POLLIN;
        if (is_open && conc__set_has(writes, p->fd))
            p->revents |= POLLOUT;
        count += p->revents != 0;
    }
    CONC_FREE(reads);
    if (rc < 0)
        return rc;
    return count;
}

/* Calls poll(2), or an equivalent, with a timeout in nanoseconds. */
CONC__PRIVATE int conc__poll_call(struct pollfd *polls, size_t n, int64_t ns)
{
    int rc = conc__ppoll(polls, n, ns);
    if (rc < 0 && conc__refused(errno))
        rc = poll(polls, (nfds_t)n, conc__milliseconds(ns));
    /* EINVAL: there are more descriptors than RLIMIT_NOFILE allows; it may have been lowered */
    bool refused = rc < 0 && (errno == EINVAL || conc__refused(errno));
    if (refused || (rc >= 0 && conc__poll_is_blind(polls, n)))
        rc = conc__select(polls, n, ns);
    return rc;
}

CONC__TINY short conc__poll_wanted(int events)
{
    short wanted = 0;
    if (events & CONC_READABLE)
        wanted |= POLLIN;
    if (events & CONC_WRITABLE)
        wanted |= POLLOUT;
    return wanted;
}

CONC__PRIVATE int conc__poll_got(const struct pollfd *p)
{
    if (p->revents & (POLLHUP | POLLERR))
        return CONC_READABLE | CONC_WRITABLE | CONC__HANG_UP;
    int ready = 0;
    if (p->revents & POLLIN)
        ready |= CONC_READABLE;
    if (p->revents & POLLOUT)
        ready |= CONC_WRITABLE;
    return ready;
}

CONC__PRIVATE int conc__poll_open(conc_loop *l)
{
    (void)l;
    return 0;
}

/* Closes the poller, whichever backend it uses. */
CONC__PRIVATE void conc__poller_close(conc_loop *l)
{
    if (l->poller.fd >= 0)
        close(l->poller.fd);
    l->poller.fd = -1;
    CONC_FREE(l->poller.polls_for);
}

/* Returns a number that identifies an open file; 0: not open. Each socket and pipe has its own
 * inode, but all eventfds share one, as do all timerfds and the like. For these, the number depends
 * only on the kind, so replacing one eventfd with another goes unnoticed. If a sandbox refuses
 * fstat, all files have the same number. */
CONC__PRIVATE uint64_t conc__inode_of(int number)
{
    struct stat st;
    if (fstat(number, &st))
        return errno != EBADF;
    uint64_t inode = (uint64_t)st.st_dev << 40 ^ (uint64_t)st.st_ino;
    char kind[64];
    ssize_t n = -1;
    if (!(st.st_mode & S_IFMT))
        n = conc__file_behind(number, kind, sizeof kind);
    for (ssize_t i = 0; i < n; i++)
        inode = inode * 31 + (unsigned char)kind[i];
    return inode + 1;
}

/* In conc__fd.filters, never with other bits: the loop waits for the descriptor with select(2). */
enum { CONC__APART = 8 };

CONC__PRIVATE int conc__poll_add(conc_loop *l, conc__fd *f, int events)
{
    (void)l;
    (void)events;
    f->filters = conc__is_mute_pipe(f->number) ? CONC__APART : 0;
    f->inode = conc__inode_of(f->number);
    if (!f->inode)
        return -EBADF;
    return 0;
}

CONC__PRIVATE bool conc__poll_confirm(conc_loop *l, const conc__fd *f)
{
    (void)l;
    return conc__inode_of(f->number) == f->inode;
}

CONC__PRIVATE bool conc__poll_arm(conc_loop *l, conc__fd *f, int events)
{
    (void)events;
    return conc__poll_confirm(l, f);
}

CONC__PRIVATE void conc__poll_remove(conc_loop *l, const conc__fd *f)
{
    (void)l;
    (void)f;
}

/* Makes room for n descriptors, and returns n, or fewer if memory runs out; the rest must wait. */
CONC__PRIVATE size_t conc__poll_room(conc_loop *l, size_t n)
{
    if (n > l->poller.polls_room) {
        struct pollfd *more = CONC_REALLOC(l->poller.polls_for, n * 2 * sizeof *more);
        if (!more)
            return l->poller.polls_room;
        l->poller.polls_for = more;
        l->poller.polls_room = n * 2;
    }
    return n;
}

CONC__PRIVATE void conc__poll_event(conc_loop *l, const struct pollfd *p)
{
    conc__fd *f = conc__fd_find(l, p->fd);
    if (!f || !conc__fd_has_waits(f))
        return;
    bool known = f->state != CONC__FD_FOREIGN || conc__poll_confirm(l, f);
    if (p->revents & POLLNVAL || !known)
        conc__fd_lost(l, f);
    else
        conc__fd_event(l, f, conc__poll_got(p), p->revents & (POLLHUP | POLLERR));
}

/* Returns the result of a wait whose system call failed: 0 if a signal interrupted it, otherwise
 * the error. The signal's handler may have closed descriptors, so those being waited for must be
 * verified. */
CONC__PRIVATE int conc__wait_failed(conc_loop *l)
{
    if (errno != EINTR)
        return -errno;
    l->fds.stirred = true;
    return 0;
}

CONC__PRIVATE int conc__poll_wait(conc_loop *l, int64_t ns)
{
    struct pollfd wake, *polls = &wake;
    size_t n = 1;
    bool apart = false;
    if (conc__poll_room(l, l->fds.watched_count + 1) > 1) {
        polls = l->poller.polls_for;
        for (conc__fd *f = l->fds.watched; f && n < l->poller.polls_room; f = f->next)
            if (conc__fd_has_waits(f)) {
                polls[n++] = (struct pollfd){f->number, conc__poll_wanted(conc__fd_wanted(f)), 0};
                apart |= f->filters & CONC__APART;
            }
    }
    polls[0] = (struct pollfd){l->poller.wake_out, POLLIN, 0};
    int count = apart ? conc__select(polls, n, ns) : conc__poll_call(polls, n, ns);
    if (count == 0)
        return 0;
    if (count < 0)
        return conc__wait_failed(l);
    if (polls[0].revents & POLLNVAL)
        return -EBADF;
    if (polls[0].revents)
        conc__wake_drain(l);
    for (size_t i = 1; i < n; i++)
        if (polls[i].revents)
            conc__poll_event(l, &polls[i]);
    return 0;
}

static const conc__backend conc__poll = {"poll",         conc__poll_open,    conc__poll_add,
                                         conc__poll_arm, conc__poll_confirm, conc__poll_remove,
                                         conc__poll_wait};

#ifdef CONC__EPOLL

#define CONC__WAKE_KEY UINT64_MAX

/* Makes an epoll instance that contains only the loop's wake-up descriptor. */
CONC__PRIVATE int conc__epoll_make(const conc_loop *l)
{
    int fd = conc__not_standard(epoll_create1(EPOLL_CLOEXEC));
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = CONC__WAKE_KEY};
    if (fd < 0)
        return -errno;
    if (epoll_ctl(fd, EPOLL_CTL_ADD, l->poller.wake_out, &event) == 0)
        return fd;
    int rc = -errno;
    close(fd);
    return rc;
}

CONC__PRIVATE int conc__epoll_open(conc_loop *l)
{
    l->poller.fd = conc__epoll_make(l);
    if (l->poller.fd < 0)
        return l->poller.fd;
    return 0;
}

/* Called after a refused call. Returns whether the system refuses epoll itself, not just this
 * file. */
CONC__COLD bool conc__epoll_is_refused(const conc_loop *l, int rc)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = CONC__WAKE_KEY};
    return conc__refused(-rc) &&
           epoll_ctl(l->poller.fd, EPOLL_CTL_MOD, l->poller.wake_out, &event) &&
           conc__refused(errno);
}

/* Switches the loop to poll(2), because a sandbox set up during the run refuses epoll. Returns
 * false if the loop is embedded: its host is waiting for the epoll descriptor. */
CONC__COLD bool conc__epoll_give_up(conc_loop *l)
{
    int numbers = (int)l->fds.block_count * CONC__FDS;
    if (l->run.embedded)
        return false;
    for (int i = 0; i < numbers; i++) {
        conc__fd *f = conc__fd_find(l, i);
        if (f && conc__fd_is_polled(f))
            f->inode = conc__inode_of(f->number);
    }
    l->poller.backend = &conc__poll;
    return true;
}

/* Registers a descriptor with epoll. If conc opened the descriptor, epoll reports every change
 * until it is closed; otherwise only one event, because close(2) may close it without conc's
 * knowledge. */
CONC__PRIVATE int conc__epoll_control(const conc_loop *l, const conc__fd *f, int what, int events)
{
    struct epoll_event e = {.data.u64 = (uint64_t)f->id << 32 | (uint32_t)f->number};
    if (conc__fd_is_own(f)) {
        e.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI | EPOLLET;
    } else {
        e.events = EPOLLONESHOT;
        if (events & CONC_READABLE)
            e.events |= EPOLLIN | EPOLLRDHUP;
        if (events & CONC_WRITABLE)
            e.events |= EPOLLOUT;
    }
    return conc__failure(epoll_ctl(l->poller.fd, what, f->number, &e));
}

CONC__PRIVATE int conc__epoll_add(conc_loop *l, conc__fd *f, int events)
{
    int rc = conc__epoll_control(l, f, EPOLL_CTL_ADD, events);
    if (rc == -EEXIST)
        rc = conc__epoll_control(l, f, EPOLL_CTL_MOD, events);
    if (rc < 0 && conc__epoll_is_refused(l, rc)) {
        if (!conc__epoll_give_up(l))
            return rc;
        return conc__poll_add(l, f, events);
    }
    if (rc == -EPERM) /* epoll refuses regular files */
        return 1;
    return rc;
}

CONC__PRIVATE bool conc__epoll_arm(conc_loop *l, conc__fd *f, int events)
{
    int rc = conc__epoll_control(l, f, EPOLL_CTL_MOD, events);
    if (rc < 0 && conc__epoll_is_refused(l, rc) && conc__epoll_give_up(l))
        return conc__poll_arm(l, f, events);
    return rc == 0;
}

/* Adds a descriptor that another thread may be closing. Either result is then correct, but TSan
 * would report a race. */
CONC__PRIVATE int conc__epoll_try_add(const conc_loop *l, int number, struct epoll_event *event)
{
#if CONC__TSAN
    return conc__failure((int)syscall(SYS_epoll_ctl, l->poller.fd, EPOLL_CTL_ADD, number, event));
#else
    return conc__failure(epoll_ctl(l->poller.fd, EPOLL_CTL_ADD, number, event));
#endif
}

/* epoll identifies an entry by the file and the number. Adding an existing entry again fails and
 * changes nothing, whereas modifying it would arm it for errors. */
CONC__PRIVATE bool conc__epoll_confirm(conc_loop *l, const conc__fd *f)
{
    struct epoll_event nothing = {.events = EPOLLONESHOT};
    int rc = conc__epoll_try_add(l, f->number, &nothing);
    if (rc == -EEXIST)
        return true;
    if (rc < 0 && conc__epoll_is_refused(l, rc) && conc__epoll_give_up(l))
        return conc__poll_confirm(l, f);
    if (rc == 0)
        epoll_ctl(l->poller.fd, EPOLL_CTL_DEL, f->number, &nothing);
    return false;
}

CONC__PRIVATE void conc__epoll_remove(conc_loop *l, const conc__fd *f)
{
    struct epoll_event nothing = {0};
    int rc = conc__failure(epoll_ctl(l->poller.fd, EPOLL_CTL_DEL, f->number, &nothing));
    if (rc < 0 && conc__epoll_is_refused(l, rc))
        conc__epoll_give_up(l);
}

/* Only epoll_pwait2 takes nanoseconds; old kernels lack it, and some sandboxes refuse it. */
CONC__PRIVATE int conc__epoll_pause(conc_loop *l, struct epoll_event *events, int max, int64_t ns)
{
#if CONC__NS_WAITS && defined SYS_epoll_pwait2
    static atomic_bool refused;
    /* TSan and Valgrind do not know the call */
    bool is_known = !CONC__TSAN && !l->diagnostics.on_valgrind;
    bool exact = ns > 0 && ns != CONC__NEVER && is_known;
    if (exact && !atomic_load_explicit(&refused, memory_order_relaxed)) {
        struct timespec limit = {ns / 1000000000, ns % 1000000000};
        int n = (int)syscall(SYS_epoll_pwait2, l->poller.fd, events, max, &limit, NULL, (size_t)8);
        if (n >= 0 || errno == EINTR)
            return n;
        n = epoll_wait(l->poller.fd, events, max, conc__milliseconds(ns));
        if (n >= 0)
            atomic_store_explicit(&refused, true, memory_order_relaxed);
        return n;
    }
#endif
    return epoll_wait(l->poller.fd, events, max, conc__milliseconds(ns));
}

/* Replaces the epoll instance with a new one. The old one would keep a file that this process
 * closed with close(2) but that another process still has open, because only the file's number
 * could remove it. An embedded loop keeps its instance, because the host knows the descriptor. */
CONC__PRIVATE void conc__epoll_renew(conc_loop *l)
{
    if (l->run.embedded)
        return;
    int fresh = conc__epoll_make(l);
    if (fresh < 0)
        return;
    int old = l->poller.fd, numbers = (int)l->fds.block_count * CONC__FDS;
    for (int i = 0; i < numbers; i++) {
        conc__fd *f = conc__fd_find(l, i);
        if (f && conc__fd_is_polled(f) && !conc__epoll_confirm(l, f))
            conc__fd_lost(l, f);
    }
    l->poller.fd = fresh;
    for (int i = 0; i < numbers; i++) {
        conc__fd *f = conc__fd_find(l, i);
        if (f && conc__fd_is_polled(f) && conc__epoll_add(l, f, conc__fd_wanted(f)))
            conc__fd_gone(l, f);
    }
    close(old);
}

/* Handles an event that no task is waiting for. known: the loop still has a record of the file,
 * which may have been closed; otherwise this process has closed it. */
CONC__PRIVATE void conc__epoll_unwanted(conc_loop *l, conc__fd *f, bool known)
{
    enum { CHECK = 64, RENEW = 16 };
    if (known && ++l->poller.unheard % CHECK == 0 && !conc__epoll_confirm(l, f))
        conc__fd_lost(l, f);
    l->poller.orphans += !known;
    if (l->poller.orphans >= RENEW) {
        l->poller.orphans = 0;
        conc__epoll_renew(l);
    }
}

CONC__PRIVATE void conc__epoll_event(conc_loop *l, const struct epoll_event *e)
{
    conc__fd *f = conc__fd_find(l, (int)(uint32_t)e->data.u64);
    bool known = f && f->id == e->data.u64 >> 32;
    bool wanted = known && conc__fd_has_waits(f);
    int ready = 0;
    if (e->events & (EPOLLIN | EPOLLRDHUP))
        ready |= CONC_READABLE;
    if (e->events & EPOLLOUT)
        ready |= CONC_WRITABLE;
    if (e->events & (EPOLLHUP | EPOLLERR))
        ready = CONC_READABLE | CONC_WRITABLE | CONC__HANG_UP;
    if (known)
        conc__fd_event(l, f, ready, e->events & (EPOLLHUP | EPOLLERR | EPOLLRDHUP | EPOLLPRI));
    if (!wanted)
        conc__epoll_unwanted(l, f, known);
}

CONC__PRIVATE int conc__epoll_wait(conc_loop *l, int64_t ns)
{
    struct epoll_event events[128];
    int n = conc__epoll_pause(l, events, 128, ns);
    if (n < 0 && conc__refused(errno) && conc__epoll_give_up(l))
        return conc__poll_wait(l, ns);
    if (n < 0)
        return conc__wait_failed(l);
    /* an event may make the loop switch to poll(2), which then finds the other events */
    for (int i = 0; i < n && l->poller.backend != &conc__poll; i++) {
        if (events[i].data.u64 == CONC__WAKE_KEY)
            conc__wake_drain(l);
        else
            conc__epoll_event(l, &events[i]);
    }
    return 0;
}

static const conc__backend conc__epoll = {"epoll",         conc__epoll_open,    conc__epoll_add,
                                          conc__epoll_arm, conc__epoll_confirm, conc__epoll_remove,
                                          conc__epoll_wait};
#define CONC__BEST_BACKEND conc__epoll

#elif defined CONC__KQUEUE

/* A descriptor can have two filters in the queue, for reading and for writing; conc__fd.filters
 * holds their events. The kernel removes both when the number is closed, even if the file has other
 * descriptors. So as long as a filter exists, the number refers to the same file.
 *
 *   filters            of                                 what they report
 *   CONC__CHANGES and  a file that conc opened, and one   every change (EV_CLEAR)
 *   both               where a task awaits a hang-up
 *   those that tasks   any other file                     one event for each arming (EV_DISPATCH),
 *   waited for                                            at once if it is ready
 *   CONC__APART        a device that kqueue refuses, and  nothing: the loop uses select(2) to wait
 *                      a macOS named pipe                 for the queue and for these */
enum { CONC__CHANGES = 4 };

/* A flag in conc__fd.came, besides the events: end of file, or urgent data (at which a read
 * stops). */
enum { CONC__SPECIAL = 4 };

CONC__PRIVATE int conc__kqueue_open(conc_loop *l)
{
    struct kevent wake = {
        .ident = (uintptr_t)l->poller.wake_out, .filter = EVFILT_READ, .flags = EV_ADD};
    int fd = conc__not_standard(kqueue());
    if (fd < 0)
        return -errno;
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    l->poller.fd = fd;
    if (kevent(fd, &wake, 1, NULL, 0, NULL) == 0)
        return 0;
    int rc = -errno;
    close(fd);
    l->poller.fd = -1;
    return rc;
}

/* Applies flags to f's filters for these events. The call takes no event from the queue, and makes
 * the changes even if a signal interrupts it. */
CONC__PRIVATE int conc__kqueue_control(const conc_loop *l, const conc__fd *f, int events, int flags)
{
    struct kevent changes[2];
    int n = 0;
    for (int event = CONC_READABLE; event <= CONC_WRITABLE; event++) {
        if (!(events & event))
            continue;
        changes[n] = (struct kevent){.ident = (uintptr_t)f->number, .flags = (unsigned short)flags};
        changes[n].filter = event == CONC_READABLE ? EVFILT_READ : EVFILT_WRITE;
        changes[n++].udata = (void *)(uintptr_t)f->id;
    }
    int rc = kevent(l->poller.fd, changes, n, NULL, 0, NULL);
    if (rc < 0 && errno != EINTR)
        return -errno;
    return 0;
}

/* Adds both filters, to report every change. macOS may refuse the write filter for a pipe whose
 * reader is gone; the read filter reports this. */
CONC__PRIVATE int conc__kqueue_add_changes(const conc_loop *l, conc__fd *f)
{
    enum { BOTH = CONC_READABLE | CONC_WRITABLE, FLAGS = EV_ADD | EV_ENABLE | EV_CLEAR };
    f->filters = BOTH | CONC__CHANGES;
    int rc = conc__kqueue_control(l, f, BOTH, FLAGS);
    if (rc == -EPIPE) {
        f->filters = CONC_READABLE | CONC__CHANGES;
        rc = conc__kqueue_control(l, f, CONC_READABLE, FLAGS);
    }
    return rc;
}

CONC__COLD int conc__kqueue_set_apart(conc_loop *l, conc__fd *f)
{
    int rc = conc__poll_add(l, f, 0);
    f->filters = CONC__APART;
    l->poller.apart = true;
    return rc;
}

/* Refuses a regular file: kqueue reports nothing at its end, even though it is always ready. */
CONC__PRIVATE int conc__kqueue_add(conc_loop *l, conc__fd *f, int events)
{
    struct stat st;
    f->filters = f->came = 0;
    if (conc__fd_is_own(f))
        return conc__kqueue_add_changes(l, f);
    bool known = fstat(f->number, &st) == 0;
    if (known && (S_ISREG(st.st_mode) || S_ISDIR(st.st_mode) || S_ISBLK(st.st_mode)))
        return 1;
    if (conc__is_mute_pipe(f->number))
        return conc__kqueue_set_apart(l, f);
    int rc = -EINVAL;
    if (events) {
        rc = conc__kqueue_control(l, f, events, EV_ADD | EV_ENABLE | EV_DISPATCH);
        f->filters = (unsigned char)events;
    } else {
        rc = conc__kqueue_add_changes(l, f);
    }
    if (rc == 0 || rc == -EBADF || rc == -ENOMEM)
        return rc;
    return conc__kqueue_set_apart(l, f);
}

CONC__PRIVATE bool conc__kqueue_confirm(conc_loop *l, const conc__fd *f)
{
    int event = f->filters & CONC_READABLE ? CONC_READABLE : CONC_WRITABLE;
    if (f->filters & CONC__APART)
        return conc__poll_confirm(l, f);
    return conc__kqueue_control(l, f, event, 0) == 0;
}

/* Adds filters to f. The existing filters show whether the number has referred to the same file all
 * along. If kqueue refuses the descriptor (for example, a pipe whose reader is gone), select(2)
 * reports it as ready. */
CONC__PRIVATE bool conc__kqueue_add_more(conc_loop *l, conc__fd *f, int events)
{
    int rc = conc__kqueue_control(l, f, events, EV_ADD | EV_ENABLE | EV_DISPATCH);
    if (!conc__kqueue_confirm(l, f))
        return false;
    if (rc)
        return conc__kqueue_set_apart(l, f) == 0;
    f->filters |= (unsigned char)events;
    return true;
}

/* Arms f for a task waiting only for a hang-up. With one event per arming, the loop would wake
 * repeatedly while there is something to read. */
CONC__PRIVATE bool conc__kqueue_arm_for_hang_up(conc_loop *l, conc__fd *f)
{
    int has = f->filters & (CONC_READABLE | CONC_WRITABLE);
    if (f->filters & CONC__CHANGES)
        return true; /* conc__verify checks whether it is the same file */
    if (conc__kqueue_control(l, f, has, EV_DELETE))
        return false;
    return conc__kqueue_add_changes(l, f) == 0 || conc__kqueue_set_apart(l, f) == 0;
}

CONC__PRIVATE bool conc__kqueue_arm(conc_loop *l, conc__fd *f, int events)
{
    int has = f->filters & events, lacks = events & ~has;
    if (f->filters & CONC__APART) {
        l->poller.apart = true;
        return conc__poll_confirm(l, f);
    }
    if (!events)
        return conc__kqueue_arm_for_hang_up(l, f);
    if (has && conc__kqueue_control(l, f, has, EV_ENABLE))
        return false;
    return !lacks || conc__kqueue_add_more(l, f, lacks);
}

/* Nothing to do: the kernel removes the filters when conc closes the descriptor. */
CONC__PRIVATE void conc__kqueue_remove(conc_loop *l, const conc__fd *f)
{
    (void)l;
    (void)f;
}

/* Waits at most *ns nanoseconds for events of the queue and of the descriptors outside it, and
 * handles the latter. After a wait, sets *ns to 0, so that the caller only polls the queue. */
CONC__COLD int conc__kqueue_wait_apart(conc_loop *l, int64_t *ns)
{
    enum { NAP = 10000000 };
    size_t n = 1, most = l->fds.watched_count + 1;
    if (conc__poll_room(l, most) < most) { /* out of memory: retry soon */
        *ns = conc__sooner(*ns, NAP);
        return 0;
    }
    for (conc__fd *f = l->fds.watched; f; f = f->next) {
        bool apart = f->state == CONC__FD_FOREIGN && f->filters & CONC__APART;
        short wanted = conc__poll_wanted(conc__fd_wanted(f));
        if (apart && wanted)
            l->poller.polls_for[n++] = (struct pollfd){f->number, wanted, 0};
    }
    l->poller.apart = n > 1;
    if (!l->poller.apart)
        return 0;
    l->poller.polls_for[0] = (struct pollfd){l->poller.fd, POLLIN, 0};
    int count = conc__select(l->poller.polls_for, n, *ns);
    *ns = 0;
    if (count < 0)
        return conc__wait_failed(l);
    for (size_t i = 1; i < n; i++)
        if (l->poller.polls_for[i].revents)
            conc__poll_event(l, &l->poller.polls_for[i]);
    return 0;
}

/* macOS refuses a limit of several years, and sometimes fails with ETIMEDOUT when a limit
 * expires. */
CONC__PRIVATE int conc__kqueue_pause(const conc_loop *l, struct kevent *events, int max, int64_t ns)
{
    const int64_t longest = (int64_t)86400 * 1000000000;
    int64_t pause = conc__sooner(ns, longest);
    struct timespec limit = {(time_t)(pause / 1000000000), (long)(pause % 1000000000)};
    int n = kevent(l->poller.fd, NULL, 0, events, max, ns == CONC__NEVER ? NULL : &limit);
    if (n < 0 && errno == ETIMEDOUT)
        return 0;
    return n;
}

/* Returns whether the event may also mean end of file or urgent data. On a system without a flag
 * for urgent data, any event may. */
CONC__PRIVATE bool conc__kqueue_is_special(const struct kevent *e)
{
#ifdef EV_OOBAND
    return e->flags & (EV_EOF | EV_OOBAND);
#else
    (void)e;
    return true;
#endif
}

/* Returns an event's file; NULL for the loop's wake-up descriptor, or a file that the loop has
 * forgotten. */
CONC__PRIVATE conc__fd *conc__kqueue_file(const conc_loop *l, const struct kevent *e)
{
    conc__fd *f = conc__fd_find(l, (int)e->ident);
    if (!f || f->id != (uint32_t)(uintptr_t)e->udata)
        return NULL;
    return f;
}

CONC__PRIVATE void conc__kqueue_note(conc_loop *l, const struct kevent *e)
{
    conc__fd *f = conc__kqueue_file(l, e);
    if (e->ident == (uintptr_t)l->poller.wake_out) {
        conc__wake_drain(l);
    } else if (f) {
        f->came |= e->filter == EVFILT_READ ? CONC_READABLE : CONC_WRITABLE;
        if (conc__kqueue_is_special(e))
            f->came |= CONC__SPECIAL;
    }
}

/* Reports all events that occurred for this event's file, and asks poll(2) whether it has hung
 * up. */
CONC__PRIVATE void conc__kqueue_event(conc_loop *l, const struct kevent *e)
{
    conc__fd *f = conc__kqueue_file(l, e);
    if (!f || !f->came)
        return;
    int ready = f->came & (CONC_READABLE | CONC_WRITABLE);
    bool special = f->came & CONC__SPECIAL;
    f->came = 0;
    if (f->waits[0].first && conc__fd_ready(f->number, 0) > 0)
        ready = CONC_READABLE | CONC_WRITABLE | CONC__HANG_UP;
    conc__fd_event(l, f, ready, special);
}

CONC__PRIVATE int conc__kqueue_wait(conc_loop *l, int64_t ns)
{
    struct kevent events[128];
    int rc = 0;
    if (l->poller.apart)
        rc = conc__kqueue_wait_apart(l, &ns);
    if (rc)
        return rc;
    int n = conc__kqueue_pause(l, events, 128, ns);
    if (n < 0)
        return conc__wait_failed(l);
    for (int i = 0; i < n; i++)
        conc__kqueue_note(l, &events[i]);
    for (int i = 0; i < n; i++)
        conc__kqueue_event(l, &events[i]);
    return 0;
}

static const conc__backend conc__kqueue = {
    "kqueue",         conc__kqueue_open,    conc__kqueue_add,
    conc__kqueue_arm, conc__kqueue_confirm, conc__kqueue_remove,
    conc__kqueue_wait};
#define CONC__BEST_BACKEND conc__kqueue

#else
#define CONC__BEST_BACKEND conc__poll
#endif

/* ---- >>stacks ------------------------------------------------------------------------------- */

/* The layout of a stack in its slot of a slab: [guard | room for frames | the task, if it has no
 * handle | conc__stack | stagger]. The tops are staggered within their page, and the stride is an
 * odd number of pages, so that the busy parts of many stacks use different cache and TLB sets. */

enum {
    CONC__CORE = offsetof(conc_task, name_copy),
    CONC__RECORD = sizeof(conc__stack),
    CONC__STAGGER = 64 * 47
};

CONC__TINY size_t conc__round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

CONC__TINY bool conc__stack_fits(size_t size)
{
    return size >= CONC__LEAST_STACK && size <= SIZE_MAX / 128;
}

/* Computes the guard size, stride and stacks per slab from c->size. */
CONC__PRIVATE void conc__stack_cache_lay_out(conc__stack_cache *c, bool debug)
{
    const size_t slab = (size_t)16 * 1024 * 1024;
    size_t page = conc__page();
    size_t top = CONC__CORE + CONC__RECORD + CONC__STAGGER;
    size_t pages = conc__round_up(c->size + top, page) / page;
    size_t guard = CONC_GUARD_SIZE;
    if (debug && guard < CONC__DEBUG_GUARD_SIZE)
        guard = CONC__DEBUG_GUARD_SIZE;
    if (guard < page)
        guard = page;
    c->guard = conc__round_up(guard, page);
    if ((pages + c->guard / page) % 2 == 0)
        c->guard += page;
    c->stride = pages * page + c->guard;
    c->per_slab = 64; /* conc__slab.dropped has one bit for each */
    if (slab / c->stride < 64)
        c->per_slab = (int)(slab / c->stride);
    if (c->per_slab < 1)
        c->per_slab = 1;
}

/* Returns the stack cache for this size, creating it if needed; NULL if the size is invalid or
 * memory runs out. */
CONC__PRIVATE conc__stack_cache *conc__stack_cache_for(conc_loop *l, size_t size)
{
    for (conc__stack_cache *c = l->stacks.caches; c; c = c->next)
        if (c->size == size)
            return c;
    if (!conc__stack_fits(size))
        return NULL;
    conc__stack_cache *c = conc__alloc(sizeof *c);
    if (!c)
        return NULL;
    *c = (conc__stack_cache){.next = l->stacks.caches, .size = size};
    conc__stack_cache_lay_out(c, CONC__DEBUGS(l));
    l->stacks.caches = c;
    return c;
}

CONC__PRIVATE bool conc__slab_open(conc__stack_cache *c)
{
    conc__slab *slab = conc__alloc(sizeof *slab);
    if (!slab)
        return false;
    char *base = conc__map_pages(c->stride * (size_t)c->per_slab);
    if (!base) {
        CONC_FREE(slab);
        return false;
    }
    *slab = (conc__slab){.cache = c, .base = base};
    CONC__LIST_PREPEND(c->slabs, slab, next, prev);
    c->slab_count++;
    return true;
}

CONC__PRIVATE conc__stack *conc__stack_at(const conc__slab *slab, int i)
{
    conc__stack_cache *c = slab->cache;
    size_t stagger = (size_t)(i % 48) * 64;
    char *end = slab->base + (size_t)(i + 1) * c->stride;
    return (conc__stack *)(void *)(end - stagger - CONC__RECORD);
}

CONC__PRIVATE void conc__slab_close(conc__slab *slab)
{
    for (int i = 0; i < slab->carved; i++)
        if (!(slab->dropped >> i & 1))
            conc__stack_unregister(conc__stack_at(slab, i));
    conc__unmap_pages(slab->base, slab->cache->stride * (size_t)slab->cache->per_slab);
    CONC_FREE(slab);
}

/* Creates guard regions for more stacks. Each call doubles the number of guarded stacks. */
CONC__PRIVATE void conc__slab_guard(conc__slab *slab)
{
    static atomic_int reported;
    conc__stack_cache *c = slab->cache;
    int n = slab->guarded ? slab->guarded : 2;
    if (n > c->per_slab - slab->guarded)
        n = c->per_slab - slab->guarded;
    char *first = slab->base + (size_t)slab->guarded * c->stride;
    if (!conc__guard(first, c->guard, c->stride, n) && !atomic_exchange(&reported, 1))
        fprintf(stderr, "conc: the system is out of guard regions; new stacks will have none\n");
    slab->guarded += n;
}

CONC__PRIVATE void conc__hole_open(conc__stack_cache *c, conc__slab *slab)
{
    CONC__LIST_PREPEND(c->holes, slab, next_hole, prev_hole);
}

CONC__PRIVATE void conc__hole_close(conc__stack_cache *c, const conc__slab *slab)
{
    CONC__LIST_REMOVE(c->holes, slab, next_hole, prev_hole);
}

/* Takes a dropped stack of the slab for reuse, and returns its index. */
CONC__PRIVATE int conc__hole_fill(conc__stack_cache *c, conc__slab *slab)
{
    int i = __builtin_ctzll(slab->dropped);
    slab->dropped &= slab->dropped - 1;
    if (!slab->dropped)
        conc__hole_close(c, slab);
    return i;
}

/* Carves the slab's next stack, with a guard region, and returns its index. */
CONC__TINY int conc__slab_carve(conc__slab *slab)
{
    if (slab->carved == slab->guarded)
        conc__slab_guard(slab);
    return slab->carved++;
}

CONC__COLD conc__stack *conc__stack_carve(conc__stack_cache *c)
{
    int saved = errno;
    conc__stack *s = c->cold;
    if (s) {
        c->cold = s->next;
        return s;
    }
    bool room = c->holes || (c->slabs && c->slabs->carved < c->per_slab) || conc__slab_open(c);
    if (!room) {
        errno = saved;
        return NULL;
    }
    conc__slab *slab = c->holes;
    int i;
    if (slab) {
        i = conc__hole_fill(c, slab);
    } else {
        slab = c->slabs;
        i = conc__slab_carve(slab);
    }
    errno = saved;
    s = conc__stack_at(slab, i);
    *s = (conc__stack){
        .cache = c, .slab = slab, .low = slab->base + (size_t)i * c->stride + c->guard};
    c->resident++;
    conc__stack_register(s);
    return s;
}

/* Returns the upper end of the frames, above which the stack's user, a task or generator, is
 * stored. It is the same for every user, so what Valgrind knows about the stack stays valid. */
CONC__TINY char *conc__stack_top(conc__stack *s) { return (char *)s - CONC__CORE; }

/* Returns an unused stack; NULL if memory runs out. */
static inline conc__stack *conc__stack_acquire(conc__stack_cache *c)
{
    conc__stack *s = c->free;
    if (CONC__UNLIKELY(!s))
        s = conc__stack_carve(c);
    else
        c->free = s->next;
    if (CONC__UNLIKELY(!s))
        return NULL;
    if (CONC__UNLIKELY(s == c->old))
        c->old = s->next;
    conc__stack_begins(s);
    return s;
}

/* Returns a stack to its cache. */
static inline void conc__stack_release(conc_loop *l, conc__stack *s)
{
    conc__stack_cache *c = s->cache;
    conc__stack_ends(l, s);
    s->next = c->free;
    c->free = s;
}

/* Returns how many stacks of the slab still have their pages. */
CONC__TINY int conc__slab_resident(const conc__slab *slab)
{
    return slab->carved - __builtin_popcountll(slab->dropped);
}

/* Drops a stack that is in no list: returns its pages to the system. Then unmaps the slab if all
 * its stacks are dropped and the cache has a newer slab. */
CONC__PRIVATE void conc__stack_drop(conc__stack *s)
{
    conc__slab *slab = s->slab;
    conc__stack_cache *c = s->cache;
    char *low = s->low;
    conc__stack_unregister(s);
    conc__drop_pages(low, c->stride - c->guard);
    if (!slab->dropped)
        conc__hole_open(c, slab);
    slab->dropped |= (uint64_t)1 << ((size_t)(low - slab->base) / c->stride);
    c->resident--;
    if (conc__slab_resident(slab) || slab == c->slabs)
        return;
    conc__hole_close(c, slab);
    slab->prev->next = slab->next; /* the slab is not the first one, so prev is not NULL */
    if (slab->next)
        slab->next->prev = slab->prev;
    c->slab_count--;
    conc__slab_close(slab);
}

enum {
    CONC__KEPT = 16,  /* free stacks that are never dropped */
    CONC__DROPS = 256 /* maximum number of stacks that one trim drops */
};

/* Drops stacks left over from a burst of tasks. Stacks are reused newest first, so a stack deeper
 * in `free` than any used since the last trim is not needed. */
CONC__PRIVATE void conc__stack_cache_trim(conc__stack_cache *c)
{
    conc__stack **at = &c->free;
    bool is_old = false; /* `at` has reached c->old */
    bool goes_on = c->cold != NULL;
    size_t kept = 0;
    for (; *at && !goes_on; at = &(*at)->next, kept++) {
        is_old |= *at == c->old;
        if (is_old && kept >= CONC__KEPT) {
            c->cold = *at;
            *at = NULL;
            break;
        }
    }
    for (int n = 0; c->cold && n < CONC__DROPS; n++) {
        conc__stack *s = c->cold;
        c->cold = s->next;
        conc__stack_drop(s);
    }
    if (!c->cold)
        c->old = c->free;
    c->trimmed = !goes_on && kept <= CONC__KEPT;
}

/* Returns whether there may be anything to trim. There is nothing if no stack has been used since a
 * trim that found nothing. */
CONC__PRIVATE bool conc__stack_cache_grew(const conc__stack_cache *c)
{
    bool unchanged = c->trimmed && c->free == c->old;
    return c->cold || (c->resident > CONC__KEPT && c->free && !unchanged);
}

/* Trims all caches. Returns whether more stacks must be dropped soon. */
CONC__PRIVATE bool conc__stacks_trim(conc_loop *l)
{
    bool soon = false;
    for (conc__stack_cache *c = l->stacks.caches; c; c = c->next) {
        if (conc__stack_cache_grew(c))
            conc__stack_cache_trim(c);
        soon |= c->cold != NULL;
    }
    return soon;
}

CONC__PRIVATE bool conc__stacks_grew(const conc_loop *l)
{
    for (const conc__stack_cache *c = l->stacks.caches; c; c = c->next)
        if (conc__stack_cache_grew(c))
            return true;
    return false;
}

CONC__PRIVATE void conc__stacks_close(conc_loop *l)
{
    for (conc__stack *s = l->generators.stopped; s; s = s->next)
        conc__stack_ends(l, s);
    for (conc__stack_cache *c = l->stacks.caches, *next; c; c = next) {
        next = c->next;
        for (conc__slab *s = c->slabs, *after; s; s = after) {
            after = s->next;
            conc__slab_close(s);
        }
        CONC_FREE(c);
    }
}

/* ---- >>timers ------------------------------------------------------------------------------- */

/* A hierarchical timing wheel (Varghese and Lauck, "Hashed and Hierarchical Timing Wheels", 1987)
 * over all 64 bits of a nanosecond clock, with one level for each digit of six bits. The level of a
 * timer is the highest digit in which its time and the elapsed time differ, and its slot is the
 * value of that digit. So the lowest occupied level expires first, a timer moves down at most ten
 * times, and timers with the same time are always in the same slot, in the order in which they were
 * armed. */

CONC__TINY bool conc__armed(const conc__timer *t) { return t->next != NULL; }

/* Returns a timer's level. The level and the slot change only when the elapsed time reaches the
 * slot: then the timer moves down, or fires. */
static inline int conc__wheel_level(const conc__wheel *w, const conc__timer *t)
{
    return (63 - __builtin_clzll(((uint64_t)t->at ^ w->elapsed) | 1)) / 6;
}

CONC__TINY int conc__wheel_slot(const conc__timer *t, int level)
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

CONC__TINY size_t conc__wheel_count(const conc__wheel *w) { return w->armed - w->disarmed; }

static inline void conc__arm(conc_loop *l, conc__timer *t, int64_t at, void (*fire)(conc__timer *))
{
    t->at = at;
    t->fire = fire;
    conc__wheel_insert(&l->clock.wheel, t);
    l->clock.wheel.armed++;
}

static inline void conc__disarm(conc_loop *l, conc__timer *t)
{
    if (!conc__armed(t))
        return;
    conc__wheel_remove(&l->clock.wheel, t);
    l->clock.wheel.disarmed++;
}

/* Finds the first occupied slot: its start time, level and number. Returns false if no timer is
 * armed. */
CONC__FAST bool conc__wheel_first(const conc__wheel *w, uint64_t *start, int *level, int *slot)
{
    int i = 0;
    while (i < CONC__LEVELS && !w->occupied[i])
        i++;
    if (i == CONC__LEVELS)
        return false;
    *level = i;
    /* the slots before the elapsed time's own digit are empty, so the lowest set bit marks the
     * first occupied slot */
    *slot = __builtin_ctzll(w->occupied[i]);
    int shift = i * 6;
    *start = (uint64_t)*slot << shift;
    if (shift + 6 < 64) /* the higher digits are those of the elapsed time */
        *start |= w->elapsed >> (shift + 6) << (shift + 6);
    return true;
}

/* Moves the elapsed time to the start of a slot, and the slot's timers to lower levels. */
CONC__PRIVATE void conc__wheel_cascade(conc__wheel *w, uint64_t start, int level, int slot)
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

/* Fires every timer that is due, in order of expiry and then of arming, and advances the elapsed
 * time to now. */
CONC__PRIVATE void conc__wheel_advance(conc_loop *l, int64_t now)
{
    conc__wheel *w = &l->clock.wheel;
    uint64_t start;
    int level, slot;
    while (conc__wheel_count(w) && conc__wheel_first(w, &start, &level, &slot) &&
           start <= (uint64_t)now) {
        conc__timer *t = w->slots[level][slot];
        if (level > 0 && (t->next != t || t->at > now)) {
            conc__wheel_cascade(w, start, level, slot);
        } else { /* due; a timer alone in its slot need not move down first */
            conc__disarm(l, t);
            t->fire(t);
        }
    }
    if ((uint64_t)now > w->elapsed)
        w->elapsed = (uint64_t)now;
}

/* Returns the time of the first timer, or an earlier time if many timers share its slot;
 * CONC__NEVER if no timer is armed. */
CONC__PRIVATE int64_t conc__wheel_next(const conc__wheel *w)
{
    uint64_t start;
    int level, slot;
    if (!conc__wheel_first(w, &start, &level, &slot))
        return CONC__NEVER;
    const conc__timer *first = w->slots[level][slot];
    int64_t least = first->at;
    int seen = 0;
    for (const conc__timer *t = first->next; t != first; t = t->next, seen++) {
        if (seen == 16)
            return (int64_t)start;
        if (t->at < least)
            least = t->at;
    }
    return least;
}

/* ---- >>loop --------------------------------------------------------------------------------- */

static inline void conc__make_ready(conc_loop *l, conc_task *t)
{
    t->next = NULL;
    if (l->ready.first)
        l->ready.last->next = t;
    else
        l->ready.first = t;
    l->ready.last = t;
}

/* Suspends the running task until it is resumed. The caller has made it ready, or has put it where
 * a waker will find it. */
CONC__SWITCHES void conc__leave(conc_loop *l)
{
    conc_task *self = l->self, *next = l->ready.first;
    self->error_number = *l->errno_at;
    if (next && l->ready.switches_left > 0) {
        l->ready.switches_left--;
        l->ready.first = next->next;
        l->self = next;
        conc__switch(l, self->stack, self->context, next->stack, next->context);
    } else {
        l->self = NULL;
        l->scheduler.switch_stacks(l, self->stack, self->context, &l->scheduler.stack,
                                   l->scheduler.context);
    }
    *l->errno_at = self->error_number;
}

/* Makes the next switch go to the scheduler. */
CONC__PRIVATE void conc__end_batch(conc_loop *l)
{
    /* the pass will also count the unused switches */
    l->counters.switches -= (uint64_t)l->ready.switches_left;
    l->ready.switches_left = 0;
}

/* Called when the running task has read the clock. If the last pass was too long ago, ends the
 * batch and uses up the budget. */
static inline void conc__time_passed(conc_loop *l, int64_t now)
{
    if (CONC__UNLIKELY(now - l->scheduler.last_pass > CONC__BATCH_NS)) {
        conc__end_batch(l);
        l->ready.budget_left = 1;
    }
}

/* Lets every ready task run before the running task continues. */
CONC__PRIVATE void conc__yield_to_ready(conc_loop *l)
{
    if (!l->ready.first) /* other tasks may be waiting for the clock */
        conc__end_batch(l);
    conc__make_ready(l, l->self);
    conc__leave(l);
}

CONC__COLD void conc__report_stubborn(conc_loop *l);

/* Refuses a cancelled task's checkpoint: returns -ECANCELED after the other ready tasks have run. A
 * task that has ignored many cancellations is a spinner: it runs only occasionally, or if no other
 * task is ready, and does not hold back the virtual clock. */
CONC__COLD int conc__refuse(conc_loop *l)
{
    conc_task *self = l->self;
    if (self->cancels_in_a_row < CONC__SPINNER) {
        self->cancels_in_a_row++;
        conc__yield_to_ready(l);
    } else {
        self->next = NULL;
        if (l->spinners.first)
            l->spinners.last->next = self;
        else
            l->spinners.first = self;
        l->spinners.last = self;
        l->spinners.next_round += 4;
        if (self->cancels_in_a_row < CONC__STUBBORN && ++self->cancels_in_a_row == CONC__STUBBORN)
            conc__report_stubborn(l);
        conc__leave(l);
    }
    return -ECANCELED;
}

/* Returns the calling task's loop; NULL if the caller is not a task. */
static inline conc_loop *conc__of_task(void)
{
    conc_loop *l = conc__here;
    return l && l->self ? l : NULL;
}

CONC__COLD conc_loop *conc__not_in_task(const char *call)
{
    conc__misused(-EPERM, call, "only a task may call it", NULL);
    return NULL;
}

/* Like conc__of_task, for a call that only tasks may make: otherwise sets the error text, and debug
 * mode reports the misuse. */
#define conc__in_task() conc__in_task_of(__func__)
static inline conc_loop *conc__in_task_of(const char *call)
{
    conc_loop *l = conc__here;
    if (CONC__UNLIKELY(!l || !l->self))
        return conc__not_in_task(call);
    return l;
}

/* Called at the start of a checkpoint, once its arguments are known to be valid. Returns 0, or
 * -ECANCELED if a cancel is pending. */
static inline int conc__checkpoint(conc_loop *l)
{
    if (CONC__UNLIKELY(l->self->pending))
        return conc__refuse(l);
    return 0;
}

/* Called at the end of a checkpoint that need not wait. Yields if many in a row have not waited. */
static inline void conc__spend_budget(conc_loop *l)
{
    if (CONC__UNLIKELY(--l->ready.budget_left <= 0)) {
        l->ready.budget_left = l->scheduler.budget;
        conc__yield_to_ready(l);
    }
}

CONC__COLD int conc__yield_slowly(void)
{
    conc_loop *l = conc__in_task_of("conc_yield");
    if (!l)
        return -EPERM;
    int rc = conc__checkpoint(l);
    if (rc)
        return rc;
    conc__yield_to_ready(l);
    if (l->self->pending)
        return -ECANCELED;
    return 0;
}

/* Inlined where this file calls it: otherwise each task would return through another task's call,
 * and the processor would mispredict the return. */
CONC__SWITCHES int conc__yield(void)
{
    conc_loop *l = conc__here;
    if (CONC__UNLIKELY(!l || !l->self || l->self->pending || !l->ready.first ||
                       l->ready.switches_left <= 0))
        return conc__yield_slowly();
    conc_task *self = l->self, *next = l->ready.first;
    l->ready.switches_left--;
    self->next = NULL;
    l->ready.last->next = self;
    l->ready.last = self;
    l->ready.first = next->next;
    l->self = next;
    self->error_number = *l->errno_at;
    conc__switch(l, self->stack, self->context, next->stack, next->context);
    *l->errno_at = self->error_number;
    if (CONC__UNLIKELY(self->pending))
        return -ECANCELED;
    return 0;
}

CONC_API int conc_yield(void) { return conc__yield(); }
#define conc_yield() conc__yield()

/* Runs fn on the thread's own stack, which is also the scheduler's. No task runs until fn
 * returns. */
CONC__PRIVATE void conc__on_loop(conc_loop *l, void (*fn)(conc_loop *l, void *arg), void *arg)
{
    conc_task *self = l->self;
    if (!self) {
        fn(l, arg);
        return;
    }
    l->scheduler.call = fn;
    l->scheduler.call_arg = arg;
    self->error_number = *l->errno_at;
    /* l->self is unchanged: conc__resume continues this task right after fn */
    l->scheduler.switch_stacks(l, self->stack, self->context, &l->scheduler.stack,
                               l->scheduler.context);
    *l->errno_at = self->error_number;
}

static atomic_int conc__debug_runs; /* runs of this process in debug mode */

typedef struct conc__misuse {
    const conc_task *task;
    const char *call, *why, *place;
} conc__misuse;

CONC__PRIVATE void conc__report_misuse(conc_loop *l, void *arg)
{
    const conc__misuse *m = arg;
    char who[CONC__DESCRIPTION] = "the loop";
    (void)l;
    if (m->task)
        conc__describe(who, sizeof who, conc__source_of(m->task));
    if (m->place)
        fprintf(stderr, "conc: %s: %s: %s: %s\n", who, m->call, m->why, m->place);
    else
        fprintf(stderr, "conc: %s: %s: %s\n", who, m->call, m->why);
}

/* Reports a task that ignores its cancellation, even without debug mode, because it may spin
 * forever. */
CONC__COLD void conc__report_stubborn(conc_loop *l)
{
    conc__misuse m = {l->self, "it was cancelled",
                      "1000 calls in a row returned -ECANCELED, but it continues", NULL};
    conc__on_loop(l, conc__report_misuse, &m);
}

/* Stores the public name of a call: conc_x for conc__x, which a macro calls, and for
 * conc__x_slowly. */
CONC__PRIVATE void conc__public_name(char name[CONC__NAME], const char *call)
{
    if (strncmp(call, "conc__", 6)) {
        conc__copy(name, CONC__NAME, call);
        return;
    }
    snprintf(name, CONC__NAME, "conc_%s", call + 6);
    char *slowly = strstr(name, "_slowly");
    if (slowly)
        *slowly = 0;
}

/* Refuses an invalid call: sets an error text that names the call, and returns rc. Debug mode also
 * reports the call, with the location `place` unless that is NULL. On a thread without a run, it
 * does so if any run of the process is in debug mode. */
CONC__COLD int conc__misused(int rc, const char *call, const char *why, const char *place)
{
    conc_loop *l = conc__here;
    char name[CONC__NAME];
    int saved = errno;
    conc__public_name(name, call);
    if (l && CONC__DEBUGS(l)) {
        conc__misuse m = {l->self, name, why, place};
        conc__on_loop(l, conc__report_misuse, &m);
    } else if (!l && atomic_load_explicit(&conc__debug_runs, memory_order_relaxed)) {
        const char *hint = rc == -EPERM ? "; conc_loop_run runs it in a task of a loop" : "";
        fprintf(stderr, "conc: a thread without a run: %s: %s%s\n", name, why, hint);
    }
    errno = saved;
    if (rc >= 0)
        return rc;
    return conc_fail(rc, "%s: %s", name, why);
}

/* Runs a task, and the tasks that it switches to, until one of them switches to the scheduler. Also
 * serves their calls to conc__on_loop. */
CONC__PRIVATE void conc__resume(conc_loop *l, conc_task *t)
{
    l->self = t;
    do {
        conc__switch(l, &l->scheduler.stack, l->scheduler.context, t->stack, t->context);
        if (!l->scheduler.call)
            break;
        void (*call)(conc_loop *, void *) = l->scheduler.call;
        t = l->self;
        l->scheduler.call = NULL;
        l->self = NULL;
        call(l, l->scheduler.call_arg);
        l->self = t;
    } while (true);
}

/* Removes a task from the ready queue and returns it: the first or, if the run has a seed, a random
 * one of the first CONC__CHOICE. Returns NULL if no task is ready. */
CONC__PRIVATE conc_task *conc__pick(conc_loop *l)
{
    conc_task **at = &l->ready.first;
    if (l->random.seeded && l->ready.first) {
        int n = 0;
        for (conc_task *t = l->ready.first; t && n < CONC__CHOICE; t = t->next)
            n++;
        for (int skip = (int)(conc__random_bits(&l->random.picks) % (uint64_t)n); skip; skip--)
            at = &(*at)->next;
    }
    conc_task *t = *at;
    if (t && t == l->ready.last && at != &l->ready.first)
        l->ready.last = (conc_task *)(void *)((char *)at - offsetof(conc_task, next));
    if (t)
        *at = t->next;
    return t;
}

CONC__PRIVATE void conc__advance(conc_loop *l, int64_t now)
{
    l->clock.now = now;
    conc__wheel_advance(l, now);
}

/* Returns whether a task is waiting for a descriptor, a signal, or another thread or process, so
 * that waiting forever is not a deadlock. */
CONC__PRIVATE bool conc__awaits_outside(const conc_loop *l)
{
    return l->fds.watched || l->signals.waits || l->outside.awaited;
}

/* Returns whether the loop's wake-up descriptor still refers to the loop's own file. The program
 * may have closed the descriptor and opened another file with the same number. */
CONC__PRIVATE bool conc__wake_is_ours(const conc_loop *l)
{
    char kind[32] = "";
    ssize_t n = conc__file_behind(l->poller.wake_out, kind, sizeof kind - 1);
    bool may_be_ours = n < 0 || strcmp(kind, "anon_inode:[eventfd]") == 0;
    return may_be_ours && conc__is_open(l->poller.wake_out);
}

/* Handles a failed wait for descriptors: cancels every task, and makes the run end with this error.
 * The program may have closed the loop's descriptor. */
CONC__COLD void conc__poller_failed(conc_loop *l, int rc)
{
    bool closed = rc == -EBADF || rc == -EINVAL;
    char why[40];
    conc__copy(why, sizeof why, conc_strerror(rc));
    snprintf(l->cancels.doom_text, sizeof l->cancels.doom_text,
             "the wait for descriptors failed: %s%s", why,
             closed ? "; the program closed the loop's own descriptor" : "");
    fprintf(stderr, "conc: %s; every task is cancelled\n", l->cancels.doom_text);
    pthread_mutex_lock(&l->shared.mutex);
    l->poller.blind = true;
    if (!conc__wake_is_ours(l))
        l->poller.wake_in = l->poller.wake_out = -1;
    pthread_mutex_unlock(&l->shared.mutex);
    if (closed)
        l->poller.fd = -1; /* it is closed, or refers to another file */
    conc__doom(l, rc);
}

/* Waits for events for at most ns nanoseconds, and handles them; 0: only polls. */
CONC__PRIVATE void conc__poll_wait_for(conc_loop *l, int64_t ns)
{
    enum { NAP = 1000000 };
    l->counters.polls++;
    int rc = 0;
    conc__delayed_signals(l);
    if (!l->poller.blind)
        rc = l->poller.backend->wait(l, ns);
    if (rc)
        conc__poller_failed(l, rc);
    else if (l->poller.blind && ns > 0)
        conc__thread_sleep(conc__sooner(ns, NAP)); /* the loop still checks for posts */
}

/* Polls for events, without waiting. */
CONC__PRIVATE void conc__poll_now(conc_loop *l)
{
    l->poller.polled = l->clock.now;
    conc__poll_wait_for(l, 0);
}

/* Returns whether there are jobs for which the virtual clock stands still. A job posts its result
 * before it leaves this count, so a caller that finds no such job, and then no post, may advance
 * the clock. */
CONC__TINY bool conc__at_work(conc_loop *l)
{
    return atomic_load_explicit(&l->outside.at_work, memory_order_acquire) > 0;
}

/* Spins briefly before the loop sleeps: being woken costs 50 us, and the other thread may finish
 * sooner. Returns whether an event occurred. */
CONC__PRIVATE bool conc__spin(conc_loop *l, int64_t ns, bool for_work)
{
    int64_t start = conc__clock(), most = ns < CONC__PATIENCE ? ns : CONC__PATIENCE;
    bool found = false;
    for (conc__idle_hook *o = l->outside.idle_hooks; o; o = o->next)
        o->enable(o, true);
    do {
        for (int i = 0; i < 32 && !found; i++) {
            conc__relax();
            found = atomic_load_explicit(&l->shared.posted, memory_order_relaxed) != NULL;
        }
        for (conc__idle_hook *o = l->outside.idle_hooks; o && !found; o = o->next)
            found = o->poll(o);
        found |= for_work && !conc__at_work(l);
    } while (!found && conc__clock() - start < most);
    for (conc__idle_hook *o = l->outside.idle_hooks; o; o = o->next)
        o->enable(o, false);
    /* events that occurred while a hook was enabled have not woken the loop */
    for (conc__idle_hook *o = l->outside.idle_hooks; o; o = o->next)
        found |= o->poll(o);
    if (found)
        l->outside.misses = 0;
    return found;
}

/* Returns whether the loop may sleep for ns. It may not if work has already arrived, or if nothing
 * could wake it. The caller holds the mutex. */
CONC__PRIVATE bool conc__may_sleep(conc_loop *l, int64_t ns, bool for_work)
{
    if (l->shared.posted || ns == 0)
        return false;
    if (for_work && !conc__at_work(l))
        return false;
    return ns != CONC__NEVER || l->shared.holds || conc__awaits_outside(l) || l->interrupt.awaited;
}

CONC__TINY void conc__was_idle(conc_loop *l, int64_t from, int64_t to)
{
    l->counters.idled += to - from;
    CONC__HOOK(l, idled(l, from, to));
}

/* Waits for events and posts for at most ns nanoseconds, and handles the events. If for_work, also
 * returns when the last job for which the virtual clock stands still is done.
 *
 * No post is missed: `posted` and `asleep` change under the mutex. conc__may_sleep sees an earlier
 * post; a later one finds `asleep` set and writes to the wake-up descriptor, which stays readable
 * (the pollers watch it level-triggered) until conc__wake_drain. */
CONC__PRIVATE void conc__poll_events(conc_loop *l, int64_t ns, bool for_work)
{
    bool spins =
        l->outside.awaited && ns > 0 && !l->outside.woke && conc__should_spin(&l->outside.misses);
    if (spins && conc__spin(l, ns, for_work))
        return;
    pthread_mutex_lock(&l->shared.mutex);
    bool sleeps = conc__may_sleep(l, ns, for_work);
    l->shared.asleep = sleeps;
    pthread_mutex_unlock(&l->shared.mutex);
    if (sleeps)
        CONC__HOOK(l, sleeps(l));
    int64_t start = sleeps ? conc__time(l) : 0;
    conc__poll_wait_for(l, sleeps ? ns : 0);
    if (sleeps) {
        l->clock.now = conc__time(l);
        conc__was_idle(l, start, l->clock.now);
    }
    pthread_mutex_lock(&l->shared.mutex);
    l->shared.asleep = false;
    pthread_mutex_unlock(&l->shared.mutex);
}

CONC__PRIVATE bool conc__has_holds(conc_loop *l)
{
    pthread_mutex_lock(&l->shared.mutex);
    bool held = l->shared.holds > 0 || l->shared.posted;
    pthread_mutex_unlock(&l->shared.mutex);
    return held;
}

/* Drops stacks left over from a burst, if a trim is due. Returns the time until the next call is
 * due. */
CONC__PRIVATE int64_t conc__trim(conc_loop *l)
{
    enum { EVERY = 200000000, SOON = 10000000 };
    if (!conc__stacks_grew(l))
        return CONC__NEVER;
    if (!l->clock.is_virtual)
        l->clock.now = conc__clock();
    if (l->clock.now - l->stacks.trimmed >= (l->stacks.to_trim ? SOON : EVERY)) {
        l->stacks.trimmed = l->clock.now;
        l->stacks.to_trim = conc__stacks_trim(l);
        if (!conc__stacks_grew(l))
            return CONC__NEVER;
    }
    return l->stacks.to_trim ? SOON : EVERY;
}

enum { CONC__VERIFY_EVERY = 250000000 };

/* If close(2) closes a descriptor that conc did not open, the poller does not notify the waiting
 * tasks. So the loop checks these descriptors, a few at a time: once when it becomes quiet, and
 * repeatedly if another thread, or an embedded loop's host, may close them. Returns whether some
 * must be checked now. */
CONC__PRIVATE bool conc__verify_due(conc_loop *l)
{
    if (!l->fds.verify_count)
        return false;
    if (l->fds.stirred)
        l->fds.was_alone = false;
    else if (!l->fds.unverified && l->fds.was_alone)
        return false;
    else if (!l->fds.unverified)
        l->fds.was_alone = !l->run.embedded && conc__is_only_thread();
    if (l->fds.stirred || !l->fds.unverified || l->fds.unverified > l->fds.watched_count)
        l->fds.unverified = l->fds.watched_count;
    l->fds.stirred = false;
    return true;
}

CONC__PRIVATE void conc__verify_some(conc_loop *l)
{
    enum { AT_ONCE = 512 };
    for (int n = 0; n < AT_ONCE && l->fds.unverified && l->fds.watched; n++, l->fds.unverified--) {
        conc__fd *f = l->fds.watched;
        conc__fd_last(l, f);
        conc__fd_confirm(l, f);
    }
}

/* Checks some descriptors, if a check is due. Returns the time until the next call is due. */
CONC__PRIVATE int64_t conc__verify(conc_loop *l)
{
    if (!conc__verify_due(l))
        return CONC__NEVER;
    int64_t now = conc__clock();
    if (now - l->fds.verified < CONC__VERIFY_EVERY)
        return CONC__VERIFY_EVERY - (now - l->fds.verified);
    l->fds.verified = now;
    conc__verify_some(l);
    return CONC__VERIFY_EVERY;
}

/* Virtual clock: checks as many descriptors as conc__verify would while the clock moves to
 * `then`. */
CONC__PRIVATE void conc__verify_until(conc_loop *l, int64_t then)
{
    if (then - l->fds.verified_until < CONC__VERIFY_EVERY)
        return;
    bool verifies = conc__verify_due(l);
    int64_t at = l->fds.verified_until;
    while (verifies && l->fds.unverified && then - at >= CONC__VERIFY_EVERY) {
        conc__verify_some(l);
        at += CONC__VERIFY_EVERY;
    }
    l->fds.verified_until = l->clock.now;
}

/* Polls the descriptors occasionally while ready tasks or posts keep the loop from sleeping. */
CONC__PRIVATE void conc__poll_sometimes(conc_loop *l)
{
    enum { EVERY = 50000, PASSES = 16 };
    bool is_time = l->clock.now - l->poller.polled >= EVERY ||
                   (l->clock.is_virtual && l->counters.passes % PASSES == 0);
    if (l->fds.watched && is_time) {
        conc__poll_now(l);
        conc__verify(l);
    }
}

/* Returns whether functions have been posted, but false once after CONC__FLOOD consecutive passes
 * that ran nothing else, so that timers and descriptors are served too. */
CONC__PRIVATE bool conc__has_posts(conc_loop *l)
{
    bool posted = atomic_load_explicit(&l->shared.posted, memory_order_relaxed) != NULL;
    if (!posted) {
        l->scheduler.flooded = 0;
        return false;
    }
    if (++l->scheduler.flooded < CONC__FLOOD)
        return true;
    l->scheduler.flooded = 0;
    return false;
}

/* A child program takes real time, which does not pass on the virtual clock. So while a task is
 * waiting for a running child to end, or on one of its pipes, the virtual clock jumps over d
 * seconds only after d real seconds. The period restarts whenever the clock moves, a timer is armed
 * or a program is started, because a time limit on one program does not apply to the next. Returns
 * how much longer the clock must stand still. */
CONC__PRIVATE int64_t conc__stand_still(conc_loop *l, int64_t next)
{
    unsigned starts = 0;
    bool pipe = conc__extended.pipe_awaited && conc__extended.pipe_awaited(l, &starts);
    if (!pipe && !l->outside.process_waits) {
        if (starts) /* a program may have ended since the last poll: handle its output first */
            conc__poll_now(l);
        return 0;
    }
    conc__standstill *s = &l->clock.standstill;
    int64_t clock = conc__clock();
    bool same = s->now == l->clock.now && s->armed == l->clock.wheel.armed && s->starts == starts;
    if (!s->began || !same)
        *s = (conc__standstill){clock, 0, l->clock.now, l->clock.wheel.armed, starts};
    int64_t left = next - l->clock.now - (clock - s->began);
    if (left < 0)
        return 0;
    return left;
}

enum { CONC__MOMENT = 1000000, CONC__APART_EVERY = 20000000 };

/* If the virtual clock may not yet jump to `next`, waits for events and returns true. An embedded
 * loop leaves the wait to its host. */
CONC__PRIVATE bool conc__stood_still(conc_loop *l, int64_t next)
{
    int64_t left = conc__stand_still(l, next);
    if (!left)
        return false;
    int64_t verify = conc__verify(l);
    if (l->run.embedded) {
        l->clock.standstill.until = conc__clock() + left;
        conc__poll_now(l); /* else a stale wake-up would wake the host immediately */
    } else {
        conc__poll_events(l, conc__sooner(left, verify), false);
    }
    return true;
}

/* Moves the virtual clock to the next deadline. A task may be retrying something that depends on
 * another process or thread, which gets some real time to make progress before each retry. */
CONC__PRIVATE void conc__jump_clock(conc_loop *l, int64_t next)
{
    int64_t before = l->clock.now;
    bool flooded = atomic_load_explicit(&l->shared.posted, memory_order_relaxed) != NULL;
    conc__verify_until(l, next);
    if (l->clock.retried && l->run.embedded)
        return; /* the host lets some real time pass before the next step */
    if (l->clock.retried && !l->ready.first) {
        l->clock.retried = false;
        conc__poll_events(l, CONC__MOMENT, false);
    }
    bool posted = !flooded && atomic_load_explicit(&l->shared.posted, memory_order_relaxed);
    if (l->ready.first || posted)
        return;
    if (conc__stood_still(l, next) || l->ready.first)
        return; /* first serve events that have arrived */
    conc__advance(l, next > before ? next : before);
    conc__was_idle(l, before, l->clock.now);
}

/* Sleeps until the next deadline, an event or a post, but not beyond the limit. Handles a deadlock
 * if none of these can occur. */
CONC__PRIVATE void conc__sleep_or_deadlock(conc_loop *l, int64_t next, int64_t limit)
{
    if (l->spinners.first || l->run.embedded || l->ready.first) {
        limit = 0;
    } else if (next == CONC__NEVER && !conc__awaits_outside(l) && !conc__has_holds(l)) {
        l->interrupt.awaited = conc__awaits_interrupt(l, &limit);
        if (!l->interrupt.awaited) {
            conc__deadlock(l);
            return;
        }
    }
    if (next != CONC__NEVER && next - l->clock.now < limit)
        limit = next > l->clock.now ? next - l->clock.now : 0;
    bool only_channels =
        l->outside.awaited == l->outside.channel_waits && !l->fds.watched && !l->signals.waits;
    bool job_idles = l->job.context && next == CONC__NEVER && l->outside.awaited && only_channels;
    if (job_idles)
        conc__extended.job_idles(l, true);
    conc__poll_events(l, limit, false);
    if (job_idles)
        conc__extended.job_idles(l, false);
    l->interrupt.awaited = false;
}

/* Virtual clock: returns the real time left until the end of the shield in which a job began this
 * run. */
CONC__COLD int64_t conc__until_job_limit(conc_loop *l)
{
    int64_t now = conc__clock();
    if (l->job.limit <= now)
        l->job.limit = conc__extended.job_late(l);
    if (l->job.limit == CONC__NEVER)
        return CONC__NEVER;
    return l->job.limit - now;
}

/* Called when no task is ready: waits for the clock, events or posts. Returns false if it has woken
 * a task from conc_settle; that task must continue before anything else can make a task ready. */
CONC__PRIVATE bool conc__idle(conc_loop *l)
{
    int64_t next = conc__wheel_next(&l->clock.wheel);
    bool at_work = conc__at_work(l); /* before the posts are checked: see conc__at_work */
    bool jumps = l->clock.is_virtual && next != CONC__NEVER;
    int64_t job_limit = CONC__NEVER;
    if (CONC__UNLIKELY(l->job.limit != CONC__NEVER))
        job_limit = conc__until_job_limit(l);
    if (conc__has_posts(l)) {
        conc__poll_sometimes(l);
        return true;
    }
    if (conc__awaits_outside(l) && (l->scheduler.settlers.first || jumps)) {
        conc__poll_now(l); /* serve ready descriptors before time moves */
        conc__take_signals(l);
        if (l->ready.first)
            return true;
    }
    if (l->scheduler.settlers.first) {
        conc__wake(l, l->scheduler.settlers.first, 0);
        return false;
    }
    int64_t limit = conc__trim(l);
    if (jumps && !at_work) {
        conc__jump_clock(l, next);
        return true;
    }
    limit = conc__sooner(limit, conc__verify(l));
    limit = conc__sooner(limit, job_limit);
    if (at_work)
        conc__poll_events(l, l->run.embedded || l->ready.first ? 0 : limit, true);
    else
        conc__sleep_or_deadlock(l, next, limit);
    return true;
}

/* Reads the clock and fires the timers that are due. A virtual clock moves in conc__jump_clock
 * instead. */
CONC__TINY void conc__read_clock(conc_loop *l)
{
    if (!l->clock.is_virtual)
        conc__advance(l, conc__clock());
}

/* Adapts the batch and the budget, so that the next pass occurs within CONC__BATCH_NS, or after a
 * single longer step. */
CONC__PRIVATE void conc__adapt_batch(conc_loop *l)
{
    int64_t took = l->clock.now - l->scheduler.last_pass;
    if (took > CONC__BATCH_NS) {
        l->scheduler.batch = 1 + (int)(l->scheduler.batch * (int64_t)(CONC__BATCH_NS / 2) / took);
        l->scheduler.budget = 1 + (int)(l->scheduler.budget * (int64_t)(CONC__BATCH_NS / 2) / took);
        if (l->ready.budget_left > l->scheduler.budget)
            l->ready.budget_left = l->scheduler.budget;
    } else if (took < CONC__BATCH_NS / 4) {
        bool awaits = conc__wheel_count(&l->clock.wheel) || conc__awaits_outside(l);
        int most = CONC__BATCH_MOST;
        if (!awaits) /* a pass would find nothing, and it costs a clock read */
            most *= 4;
        l->scheduler.batch = conc__lesser(l->scheduler.batch * 2, most);
        l->scheduler.budget = conc__lesser(l->scheduler.budget * 2, CONC__BUDGET_MOST);
    }
}

/* Serves everything but the ready tasks: posts, signals, the clock and descriptors. Sleeps if no
 * task is ready. */
CONC__PRIVATE void conc__tick(conc_loop *l)
{
    l->counters.passes++;
    conc__run_posts(l);
    conc__take_signals(l);
    conc__read_clock(l);
    conc__adapt_batch(l);
    if (l->ready.first) {
        l->scheduler.flooded = 0;
        conc__poll_sometimes(l);
    } else if (conc__idle(l)) {
        conc__run_posts(l);
        conc__take_signals(l);
        conc__read_clock(l);
    }
    if (l->spinners.first && (!l->ready.first || l->counters.passes >= l->spinners.next_round)) {
        if (l->ready.first)
            l->ready.last->next = l->spinners.first;
        else
            l->ready.first = l->spinners.first;
        l->ready.last = l->spinners.last;
        l->spinners.first = NULL;
        l->spinners.next_round = l->counters.passes + CONC__BATCH_MOST;
    }
    l->scheduler.last_pass = l->clock.now;
}

/* Makes a pass of the scheduler, then runs a batch of ready tasks. Returns false if none was
 * ready. */
CONC__PRIVATE bool conc__run_pass(conc_loop *l)
{
    conc__tick(l);
    int turns = l->scheduler.batch;
    if (l->random.seeded || CONC__HOOKS(l)) /* every switch goes through the scheduler */
        turns = 0;
    l->ready.switches_left = turns;
    conc_task *t = conc__pick(l);
    if (!t)
        return false;
    if (CONC__HOOKS(l))
        CONC__HOOKS(l)->step(l, t);
    else
        conc__resume(l, t);
    l->counters.switches += 1 + (uint64_t)(turns - l->ready.switches_left);
    l->fds.stirred = true;
    return true;
}

/* Registers end(l, e) to be called at the run's end, after the last task. */
CONC__PRIVATE void conc__at_end(conc_loop *l, conc__ending *e,
                                void (*end)(conc_loop *l, conc__ending *self))
{
    *e = (conc__ending){l->run.endings, end};
    l->run.endings = e;
}

CONC__PRIVATE void conc__schedule(conc_loop *l)
{
    while (!l->run.over)
        conc__run_pass(l);
}

/* ---- >>waits -------------------------------------------------------------------------------- */

/* In a forked child, returns whether this is the serial number of a task of the parent process.
 * Also returns true for 0, which is no task's serial number, because the first run has number 1. */
CONC__FAST bool conc__is_inherited(uint64_t serial)
{
    return CONC__UNLIKELY(serial >> 40 <= conc__inherited_runs);
}

/* Returns whether this is the number of a run in progress on another thread, whose objects this
 * thread must not touch. No run has the number 0. */
CONC__PRIVATE bool conc__run_is_elsewhere(const conc_loop *l, uint64_t run)
{
    if (!run || (l && l->run.number == run))
        return false;
    pthread_mutex_lock(&conc__live_runs.mutex);
    const conc_loop *other = conc__live_runs.first;
    while (other && other->run.number != run)
        other = other->run.next;
    pthread_mutex_unlock(&conc__live_runs.mutex);
    return other != NULL;
}

/* Returns whether this arbitrary pointer is the loop of a run in progress. */
CONC__PRIVATE bool conc__is_live(const conc_loop *l)
{
    pthread_mutex_lock(&conc__live_runs.mutex);
    const conc_loop *live = conc__live_runs.first;
    while (live && live != l)
        live = live->run.next;
    pthread_mutex_unlock(&conc__live_runs.mutex);
    return live != NULL;
}

CONC__PRIVATE void conc__append(conc__waits *list, conc__wait *w)
{
    w->list = list;
    CONC__QUEUE_APPEND(list->first, list->last, w, next, prev);
}

CONC__PRIVATE void conc__unlink(conc__wait *w)
{
    if (!w->list)
        return;
    CONC__QUEUE_REMOVE(w->list->first, w->list->last, w, next, prev);
    w->list = NULL;
}

/* Returns whether this subtree has an object inside an address range. All its objects are on the
 * inner side of the range's other end, so only `end` matters. inner: 1 if the range is above `end`,
 * 0 if below. bit: the address bit that selects a child of h. */
CONC__PRIVATE bool conc__holds_inside(const conc__holding *h, uintptr_t bit, uintptr_t end,
                                      int inner)
{
    for (; h; bit >>= 1) {
        uintptr_t object = (uintptr_t)h->object;
        int side = (end & bit) != 0;
        bool is_inside = inner ? object >= end : object <= end;
        if (is_inside)
            return true;
        if (side != inner && h->below[inner]) /* all objects of that child are inside */
            return true;
        h = h->below[side];
    }
    return false;
}

/* Returns whether a tree has an object at an address from `first` to `last`. */
CONC__PRIVATE bool conc__holds_between(const conc__holding *h, uintptr_t first, uintptr_t last)
{
    uintptr_t bit = CONC__HIGHEST_BIT;
    for (; h; bit >>= 1) {
        uintptr_t object = (uintptr_t)h->object;
        if (object >= first && object <= last)
            return true;
        if ((first ^ last) & bit)
            return conc__holds_inside(h->below[0], bit >> 1, first, 1) ||
                   conc__holds_inside(h->below[1], bit >> 1, last, 0);
        h = h->below[(first & bit) != 0];
    }
    return false;
}

/* Finds the newest record of an object on the running task's stack below an address; NULL if there
 * is none. */
CONC__PRIVATE const conc__holding *conc__find_below(const conc__holding *tree, const conc_task *t,
                                                    const void *below)
{
    uintptr_t low = (uintptr_t)t->stack->low, size = (uintptr_t)below - low;
    if (!conc__holds_between(tree, low, (uintptr_t)below - 1))
        return NULL;
    const conc__holding *h = tree->newest;
    while (h && (uintptr_t)h->object - low >= size)
        h = h->older;
    return h;
}

/* Aborts with a report if conc still uses an object on the running task's stack below this address,
 * where memory is about to be lost. */
CONC__COLD void conc__check_lent(conc_loop *l, const conc_task *t, const void *below,
                                 const char *how)
{
    const conc__holding *h = conc__find_below(l->lent.receivers, t, below);
    if (h)
        conc__lost(l, t, h->place, how);
    CONC__HOOK(l, check_handles(l, t, below, how));
}

/* Returns whether the task's innermost scope is below the frame of a call into conc, on the same
 * stack, which means that the function that opened the scope has returned. */
static inline bool conc__scope_is_lost(const conc_task *t, const void *frame)
{
    uintptr_t low = (uintptr_t)t->stack->low;
    return t->scope && (uintptr_t)t->scope - low < (uintptr_t)frame - low;
}

CONC__COLD void conc__check_lost_now(conc_loop *l, const void *frame)
{
    static const char how[] = "a function returned";
    if (conc__scope_is_lost(l->self, frame))
        conc__lost(l, l->self, l->self->place, how);
    conc__check_lent(l, l->self, frame, how);
}

static inline void conc__check_lost(conc_loop *l, const void *frame)
{
    if (CONC__UNLIKELY(l->lent.any || conc__scope_is_lost(l->self, frame)))
        conc__check_lost_now(l, frame);
}

/* Parks the running task until w is woken, and returns the wait's result. */
CONC__SWITCHES int conc__park(conc_loop *l, conc__wait *w)
{
    l->self->wait = w;
    l->self->since = l->clock.now;
    conc__leave(l);
    return w->result;
}

CONC__COLD void conc__report_woken(conc_loop *l, conc_task *t)
{
    if (t->wait)
        CONC__HOOK(l, woken(l, t));
}

/* Makes a task ready after its wait. */
CONC__TINY void conc__wait_over(conc_loop *l, conc_task *t)
{
    if (CONC__UNLIKELY(CONC__HOOKS(l)))
        conc__report_woken(l, t);
    t->wait = NULL;
    conc__make_ready(l, t);
}

/* Ends a wait with this result: removes it from its list and makes its task ready. */
CONC__PRIVATE void conc__wake(conc_loop *l, conc__wait *w, int result)
{
    if (CONC__UNLIKELY(w->kind->won))
        w->kind->won(w);
    conc__unlink(w);
    w->result = result;
    conc__wait_over(l, w->task);
}

/* Serves as .cancel for a wait that needs no further work when it is cancelled. */
CONC__PRIVATE bool conc__cancel_plainly(conc__wait *w)
{
    (void)w;
    return true;
}

typedef struct conc__sleeper {
    conc__wait wait;
    conc__timer timer;
} conc__sleeper;

CONC__TINY conc__sleeper *conc__sleeper_of(conc__timer *t)
{
    return (conc__sleeper *)(void *)((char *)t - offsetof(conc__sleeper, timer));
}

CONC__TINY void conc__sleep_over(conc__timer *t)
{
    conc__wake(conc__here, &conc__sleeper_of(t)->wait, 0);
}

CONC__PRIVATE bool conc__sleep_cancel(conc__wait *w)
{
    conc__disarm(conc__here, &((conc__sleeper *)(void *)w)->timer);
    return true;
}

CONC__PRIVATE void conc__sleep_details(FILE *out, const conc__wait *w)
{
    const conc__sleeper *s = (const conc__sleeper *)(const void *)w;
    if (conc__armed(&s->timer))
        fprintf(out, " for another %.9g s", (double)(s->timer.at - conc__here->clock.now) / 1e9);
    else
        fprintf(out, " forever");
}

static const conc__wait_kind conc__sleeping = {
    .what = "sleeps", .details = CONC__DETAILS(conc__sleep_details), .cancel = conc__sleep_cancel};
static const conc__wait_kind conc__settling = {
    .what = "waits until all other tasks are waiting (conc_settle)",
    .cancel = conc__cancel_plainly};

/* Sleeps until this time on the loop's clock; CONC__NEVER: forever. */
CONC__FAST int conc__sleep_to(conc_loop *l, int64_t at)
{
    int rc = conc__checkpoint(l);
    if (rc)
        return rc;
    conc__sleeper s = {.wait = {.task = l->self, .kind = &conc__sleeping}};
    if (at != CONC__NEVER)
        conc__arm(l, &s.timer, at, conc__sleep_over);
    return conc__park(l, &s.wait);
}

static inline int64_t conc__time(const conc_loop *l)
{
    return l->clock.is_virtual ? l->clock.now : conc__clock();
}

CONC_API double conc_now(void)
{
    conc_loop *l = conc__here;
    if (!l)
        return (double)conc__clock() / 1e9;
    int64_t now = conc__time(l);
    conc__time_passed(l, now);
    return (double)now / 1e9;
}

CONC_API CONC__CALLED int conc_sleep(double s)
{
    conc_loop *l = conc__in_task();
    int64_t ns = conc__ns(s);
    if (!l)
        return -EPERM;
    if (__builtin_isnan(s))
        return conc__misused(-EINVAL, __func__, "the time is not a number", NULL);
    conc__check_lost(l, __builtin_frame_address(0));
    if (!ns)
        return conc__yield_slowly();
    int64_t at = CONC__NEVER;
    if (s < CONC_FOREVER)
        at = conc__later(conc__time(l), ns);
    return conc__sleep_to(l, at);
}

/* Sleeps before the caller retries something that depends on another process or thread. */
CONC__PRIVATE int conc__sleep_to_retry(conc_loop *l, double s)
{
    int rc = conc_sleep(s);
    l->clock.retried = l->clock.is_virtual;
    return rc;
}

CONC_API CONC__CALLED int conc_sleep_until(double t)
{
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    if (__builtin_isnan(t))
        return conc__misused(-EINVAL, __func__, "the time is not a number", NULL);
    conc__check_lost(l, __builtin_frame_address(0));
    int64_t at = t >= CONC_FOREVER ? CONC__NEVER : conc__ns(t);
    /* compensate for rounding: after the sleep, conc_now() must not return less than t */
    for (int64_t more = 1; (double)at / 1e9 < t && at < CONC__NEVER - 8192; more *= 2)
        at += more;
    if (at <= conc__time(l))
        return conc__yield_slowly();
    return conc__sleep_to(l, at);
}

CONC__PRIVATE void conc__thread_sleep_until(int64_t end)
{
    int64_t left = end - conc__clock();
    while (left > 0) {
        conc__thread_sleep(left);
        left = end - conc__clock();
    }
}

CONC_API int conc_block(double s)
{
    conc_loop *l = conc__here;
    bool may_be_job = !l && conc__extended.job_block;
    if ((l || may_be_job) && __builtin_isnan(s))
        return conc__misused(-EINVAL, __func__, "the time is not a number", NULL);
    int rc = may_be_job ? conc__extended.job_block(conc__ns(s)) : 1;
    if (rc <= 0)
        return rc;
    if (!l)
        return conc__misused(-EPERM, "conc_block", "there is neither a loop nor a job", NULL);
    int64_t end = conc__later(conc__time(l), conc__ns(s));
    if (l->clock.is_virtual)
        l->clock.now = end;
    else
        conc__thread_sleep_until(end);
    conc__advance(l, conc__time(l));
    conc__time_passed(l, l->clock.now);
    return 0;
}

CONC_API CONC__CALLED int conc_settle(void)
{
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    conc__check_lost(l, __builtin_frame_address(0));
    int rc = conc__checkpoint(l);
    if (rc)
        return rc;
    conc__wait w = {.task = l->self, .kind = &conc__settling};
    conc__append(&l->scheduler.settlers, &w);
    return conc__park(l, &w);
}

/* ---- >>scopes ------------------------------------------------------------------------------- */

/* The state of cancellation. Only the loop's thread reads and changes it.
 *
 *   field          of     means                                        changed by
 *   cancel_called  scope  this scope was cancelled, or its deadline    conc__cancel_scope, once
 *                         passed (then `expired` is set too)
 *   shielded       scope  cancels from outside do not apply            conc_scope_shield
 *   asked          task   conc_cancel was called on the task, or its   conc__task_cancel,
 *                         starter was cancelled; cleared for main_fn   conc__start_cancel;
 *                         when it returns                              conc__wind_up
 *   doomed         loop   a deadlock or a failure cancels everything   conc__doom, once
 *   effective      scope  a cancel applies inside the scope            conc__scope_open,
 *                                                                      conc__spread
 *   pending        task   a cancel applies where the task is now       conc__set_pending
 *
 * The last two are computed from the others:
 *
 *   around     the outer scope's `effective`; for a task's outermost scope, and for a task without
 *              a scope: asked || effective of the scope of the task's group || doomed
 *   effective  cancel_called || (around && !shielded) || doomed
 *   pending    `effective` of the task's innermost scope; without a scope, `around`
 *
 * So cancel_called implies effective, and asked implies pending unless a shielded scope is in
 * between. Neither converse holds. The `effective` of an ended scope is meaningless.
 *
 * A checkpoint tests only `pending`. A change spreads inward through its task's scopes. At a group
 * it adds the children to a list of tasks to update, so deep nesting needs no deep recursion. */

enum { CONC__FRESH, CONC__OPEN, CONC__CLOSED };

/* Returns whether a task of the parent process opened this scope. */
CONC__FAST bool conc__scope_is_inherited(const conc_scope *s)
{
    return CONC__UNLIKELY(conc__inherited_runs) && s->state == CONC__OPEN && s->task &&
           conc__is_inherited(s->task->serial);
}

CONC__TINY conc_group *conc__group_of(conc_scope *s)
{
    return (conc_group *)(void *)((char *)s - offsetof(conc_group, scope));
}

/* Returns whether a cancel applies outside the task's outermost scope. */
CONC__PRIVATE bool conc__cancelled_outside(const conc_loop *l, const conc_task *t)
{
    return t->asked || (t->group && t->group->scope.effective) || l->cancels.doomed;
}

CONC__PRIVATE bool conc__cancelled_around(const conc_loop *l, const conc_scope *s)
{
    if (s->outer)
        return s->outer->effective;
    return s->task && conc__cancelled_outside(l, s->task);
}

/* Appends a task to the list of tasks that conc__spread_marked will update. */
CONC__PRIVATE void conc__mark(conc_loop *l, conc_task *t)
{
    if (t->marked)
        return;
    t->marked = true;
    t->next_marked = NULL;
    if (l->cancels.marked)
        l->cancels.last_marked->next_marked = t;
    else
        l->cancels.marked = t;
    l->cancels.last_marked = t;
}

CONC__PRIVATE void conc__set_pending(conc_loop *l, conc_task *t, bool pending)
{
    conc__wait *w = t->wait;
    /* doom ends even waits that ignored an earlier cancel */
    bool doomed = pending && l->cancels.doomed;
    if (t->pending == pending && !doomed)
        return;
    t->pending = pending;
    t->cancels_in_a_row = 0;
    if (pending && w && w->kind->cancel && w->kind->cancel(w))
        conc__wake(l, w, -ECANCELED);
}

/* Updates scope s of task t and all scopes inside it, then the task. `around` says whether a cancel
 * applies just outside s, or just outside the task's scopes if s is NULL. */
CONC__PRIVATE void conc__spread(conc_loop *l, conc_task *t, conc_scope *s, bool around)
{
    for (; s; s = s->inner) {
        bool effective = s->cancel_called || (around && !s->shielded) || l->cancels.doomed;
        /* doom must reach even waits that ignored an earlier cancel */
        if (effective == s->effective && !l->cancels.doomed)
            return;
        s->effective = around = effective;
        /* refuse tasks waiting to spawn into this group */
        while (s->is_group && effective && conc__group_of(s)->room.first)
            conc__wake(l, conc__group_of(s)->room.first, -ECANCELED);
        if (s->is_group)
            for (conc_task *child = conc__group_of(s)->children; child; child = child->younger)
                conc__mark(l, child);
    }
    if (t)
        conc__set_pending(l, t, around);
}

CONC__PRIVATE void conc__spread_marked(conc_loop *l)
{
    if (l->cancels.refreshing)
        return;
    l->cancels.refreshing = true;
    while (l->cancels.marked) {
        conc_task *t = l->cancels.marked;
        conc_scope *s = t->scope;
        l->cancels.marked = t->next_marked;
        t->marked = false;
        while (s && s->outer)
            s = s->outer;
        conc__spread(l, t, s, conc__cancelled_outside(l, t));
    }
    l->cancels.refreshing = false;
}

CONC__PRIVATE void conc__scope_changed(conc_loop *l, conc_scope *s)
{
    conc__spread(l, s->task, s, conc__cancelled_around(l, s));
    conc__spread_marked(l);
}

CONC__PRIVATE void conc__task_cancel(conc_loop *l, conc_task *t)
{
    if (t->asked)
        return;
    t->asked = true;
    CONC__HOOK(l, cancelled(l, t, "cancel"));
    conc__mark(l, t);
    conc__spread_marked(l);
}

CONC__PRIVATE void conc__cancel_scope(conc_loop *l, conc_scope *s)
{
    if (s->cancel_called)
        return;
    conc__disarm(l, &s->timer);
    s->cancel_called = true;
    CONC__HOOK(l, cancelled(l, s->task, s->expired ? "timeout" : "cancel"));
    conc__scope_changed(l, s);
}

CONC__PRIVATE void conc__scope_expired(conc__timer *timer)
{
    conc_scope *s = (conc_scope *)(void *)((char *)timer - offsetof(conc_scope, timer));
    s->expired = true;
    conc__cancel_scope(conc__here, s);
}

/* Sets a scope's deadline, in seconds from now. The scope must be open and not cancelled, and its
 * timer not armed. */
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

/* Opens a scope inside the running task's innermost one. Aborts if the innermost one was
 * overwritten: a variable declared with an initializer in a loop is reinitialized in each
 * iteration, even if it holds an open scope. */
static inline void conc__scope_open(conc_loop *l, conc_scope *s, const char *place)
{
    conc_task *self = l->self;
    conc_scope *outer = self->scope;
    if (CONC__UNLIKELY(outer && outer->state != CONC__OPEN))
        conc__lost(l, self, self->place, conc__overwritten);
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

/* Handles the rare cases of conc_scope_begin: resets a scope that a task of the parent process left
 * open, and reports invalid arguments. */
CONC__COLD int conc__scope_renew(conc_scope *s, double timeout, const char *place)
{
    static const char call[] = "conc_scope_begin";
    if (!s)
        return conc__misused(-EINVAL, call, "no scope", place);
    if (__builtin_isnan(timeout))
        return conc__misused(-EINVAL, call, "the timeout is not a number", place);
    if (!conc__scope_is_inherited(s) && s->state != CONC__FRESH)
        return conc__misused(-EINVAL, call, "the scope was already used", place);
    *s = (conc_scope){.state = CONC__FRESH};
    return 0;
}

CONC_API CONC__CALLED int conc__scope_begin(const char *place, conc_scope *s, double timeout)
{
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    int rc = 0;
    if (CONC__UNLIKELY(!s || s->state != CONC__FRESH || __builtin_isnan(timeout)))
        rc = conc__scope_renew(s, timeout, place);
    if (rc)
        return rc;
    conc__check_lost(l, __builtin_frame_address(0));
    conc__scope_open(l, s, place);
    conc__set_limit(l, s, timeout);
    return 0;
}

/* Returns 0 if the running task may end the scope, else an error. */
CONC__COLD int conc__scope_may_end(conc_loop *l, const conc_scope *s)
{
    static const char call[] = "conc_scope_end";
    if (!s || s->state != CONC__OPEN)
        return conc__misused(-EINVAL, call, "the scope is not open", NULL);
    if (s->task != l->self)
        return conc__misused(-EPERM, call, "the scope belongs to another task", s->place);
    if (l->self->scope != s)
        return conc__misused(-EINVAL, call, "something inside it is still open", l->self->place);
    if (conc__gen_is_inside(l, s))
        return conc__gen_may_not_end(s, call);
    return 0;
}

/* Completes conc_scope_end for a body that failed with rc. */
CONC__COLD int conc__scope_end_failed(conc_loop *l, conc_scope *s, int rc)
{
    bool mine =
        s->cancel_called && (s->shielded || !conc__cancelled_around(l, s)) && !l->cancels.doomed;
    conc__scope_close(l, s);
    if (rc != -ECANCELED || !mine)
        return conc__pass_error(l, rc);
    s->cancel_caught = true;
    if (s->expired)
        return conc__own_error(-ETIMEDOUT);
    return 0;
}

CONC_API CONC__CALLED int conc_scope_end(conc_scope *s, int rc)
{
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    conc__check_lost(l, __builtin_frame_address(0));
    bool innermost = s && s == l->self->scope && s->state == CONC__OPEN;
    if (CONC__UNLIKELY(!innermost || l->self->stack->has_generator)) {
        int wrong = conc__scope_may_end(l, s);
        if (wrong)
            return wrong;
    }
    if (CONC__UNLIKELY(rc < 0))
        return conc__scope_end_failed(l, s, rc);
    conc__scope_close(l, s);
    return rc;
}

/* Returns the loop of a scope; NULL if the scope is not open, or if this thread must not change
 * it. */
CONC__PRIVATE conc_loop *conc__loop_of(const conc_scope *s, const char *call)
{
    conc_loop *l = conc__here;
    if (!s || s->state != CONC__OPEN)
        return NULL;
    if (l && (!s->task || s->task->loop == l))
        return l;
    conc__misused(0, call, "it belongs to another loop", s->place);
    return NULL;
}

CONC__PRIVATE void conc__scope_cancel(conc_scope *s, const char *call)
{
    conc_loop *l = conc__loop_of(s, call);
    if (l)
        conc__cancel_scope(l, s);
}

CONC_API void conc_scope_cancel(conc_scope *s) { conc__scope_cancel(s, "conc_scope_cancel"); }

CONC_API int conc_scope_set_timeout(conc_scope *s, double s_from_now)
{
    conc_loop *l = conc__here;
    if (!l)
        return conc__misused(-EPERM, __func__, "only a task may call it", NULL);
    if (!s || s->state != CONC__OPEN)
        return conc__misused(-EINVAL, __func__, "the scope is not open", NULL);
    if (s->task && s->task->loop != l)
        return conc__misused(-EPERM, __func__, "it belongs to another loop", s->place);
    if (__builtin_isnan(s_from_now))
        return conc__misused(-EINVAL, __func__, "the timeout is not a number", s->place);
    if (s->cancel_called)
        return conc__misused(-EINVAL, __func__, "the scope is already cancelled", s->place);
    conc__disarm(l, &s->timer);
    conc__set_limit(l, s, s_from_now);
    return 0;
}

CONC_API void conc_scope_shield(conc_scope *s, bool on)
{
    conc_loop *l = conc__loop_of(s, "conc_scope_shield");
    if (!l)
        return;
    s->shielded = on;
    conc__scope_changed(l, s);
}

CONC__PRIVATE int conc__call_in_scope(double s, bool shielded, conc_fn *fn, void *arg,
                                      const char *place)
{
    conc_scope scope = {0};
    const char *call = shielded ? "conc_shield" : "conc_timeout";
    conc_loop *l = conc__in_task_of(call);
    if (!l)
        return -EPERM;
    if (!fn)
        return conc__misused(-EINVAL, call, "no function", NULL);
    if (__builtin_isnan(s))
        return conc__misused(-EINVAL, call, "the time is not a number", NULL);
    int rc = conc__scope_begin(place, &scope, s);
    if (rc)
        return rc;
    if (shielded)
        conc_scope_shield(&scope, true);
    uint32_t before = l->self->errors_made;
    rc = fn(arg);
    return conc_scope_end(&scope, conc__pass_error_since(l, rc, before));
}

CONC_API int conc_timeout(double s, conc_fn *fn, void *arg)
{
    return conc__call_in_scope(s, false, fn, arg, "the scope of conc_timeout");
}

CONC_API int conc_shield(double grace, conc_fn *fn, void *arg)
{
    int rc = 0;
    bool may_be_job = !conc__here && conc__extended.job_shield;
    if (may_be_job && conc__extended.job_shield(grace, fn, arg, &rc))
        return rc;
    return conc__call_in_scope(grace, true, fn, arg, "the scope of conc_shield");
}

/* Returns the scope of a task's group, or NULL. */
CONC__PRIVATE conc_scope *conc__scope_of_group(const conc_task *t)
{
    if (!t || !t->group)
        return NULL;
    return &t->group->scope;
}

/* The next two functions walk the scopes that apply to a task from the inside out: its own, then
 * its group's scope and the scopes around that. */
CONC__PRIVATE conc_scope *conc__innermost(const conc_task *t)
{
    if (t->scope)
        return t->scope;
    return conc__scope_of_group(t);
}

CONC__PRIVATE conc_scope *conc__around(const conc_scope *s)
{
    if (s->outer)
        return s->outer;
    return conc__scope_of_group(s->task);
}

CONC_API double conc_deadline(void)
{
    conc_loop *l = conc__of_task();
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
    if (least == CONC__NEVER)
        return CONC_FOREVER;
    return (double)least / 1e9;
}

CONC_API bool conc_cancelled(void)
{
    conc_loop *l = conc__of_task();
    return l && l->self->pending;
}

/* ---- >>errors ------------------------------------------------------------------------------- */

static pthread_mutex_t conc__places = PTHREAD_MUTEX_INITIALIZER; /* guards writes of conc__at */

/* For compilers without __FILE_NAME__: writes a string and a location, without its directories,
 * into the caller's buffer. The buffer's first byte, set last, marks the rest as complete. */
CONC_API const char *conc__at(char *room, const char *text, const char *place)
{
    if (__atomic_load_n(room, __ATOMIC_ACQUIRE))
        return room + 1;
    pthread_mutex_lock(&conc__places);
    if (!__atomic_load_n(room, __ATOMIC_RELAXED)) {
        const char *slash = strrchr(place, '/');
        strcpy(room + 1, text);
        strcat(room + 1, slash ? slash + 1 : place);
        __atomic_store_n(room, 1, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&conc__places);
    return room + 1;
}

CONC__PRIVATE void conc__copy(char *to, size_t size, const char *from)
{
    size_t n = strnlen(from, size - 1);
    memmove(to, from, n);
    to[n] = 0;
}

CONC__TINY conc__source conc__source_of(const conc_task *t)
{
    return (conc__source){t->name, t->spawned};
}

/* Copies a task's own name; "" if it has none. */
CONC__PRIVATE void conc__keep_name(char to[CONC__NAME], conc__source source)
{
    conc__copy(to, CONC__NAME, source.name == source.spawned ? "" : source.name);
}

CONC__TINY conc__source conc__kept_source(const char *name, const char *spawned)
{
    return (conc__source){*name ? name : spawned, spawned};
}

/* Returns the buffer for a task's latest error text, followed by the name of the task where the
 * error originated; NULL if memory runs out. */
CONC__PRIVATE char *conc__text_buffer(conc_task *t)
{
    if (!t->text) {
        _Static_assert(sizeof t->text_copy == CONC__TEXT + CONC__NAME, "a text and a name");
        if (t->has_handle)
            t->text = t->text_copy;
        else
            t->text = conc__alloc(CONC__TEXT + CONC__NAME);
        if (t->text)
            t->text[0] = t->text[CONC__TEXT] = 0;
    }
    return t->text;
}

/* Makes rc the task's latest error. text: the error's own; NULL or "": none. by: the task where the
 * error originated; {NULL, NULL}: t itself. */
CONC__PRIVATE void conc__set_error(conc_task *t, int rc, const char *text, conc__source by)
{
    bool in_words = text && *text;
    if (rc == -ECANCELED && !in_words && t->last_rc)
        return; /* keep the text of the error that caused the cancel */
    t->errors_made++;
    t->last_rc = rc;
    t->error_from = by.spawned;
    if (t->text)
        t->text[0] = t->text[CONC__TEXT] = 0;
    if ((in_words || by.name != by.spawned) && conc__text_buffer(t)) {
        conc__copy(t->text, CONC__TEXT, in_words ? text : "");
        conc__keep_name(t->text + CONC__TEXT, by);
    }
}

/* Returns the task in which error rc, returned by t, originated. The strings are borrowed from
 * t. */
CONC__PRIVATE conc__source conc__origin(const conc_task *t, int rc)
{
    if (t->last_rc != rc || !t->error_from)
        return conc__source_of(t);
    const char *name = t->text ? t->text + CONC__TEXT : "";
    return conc__kept_source(name, t->error_from);
}

/* Returns the text of error rc, returned by t; "" if it has none. */
CONC__PRIVATE const char *conc__error_text(const conc_task *t, int rc)
{
    if (t->last_rc != rc || !t->text)
        return "";
    return t->text;
}

/* If t, which has ended, returned an error, makes that the latest error of `task`. */
CONC__FAST void conc__set_error_of(conc_task *task, const conc_task *t)
{
    if (CONC__UNLIKELY(t->result < 0))
        conc__set_error(task, t->result, conc__error_text(t, t->result),
                        conc__origin(t, t->result));
}

CONC__PRIVATE const char *conc__text_or(const char *words, int rc)
{
    return *words ? words : conc_strerror(rc);
}

/* Does conc_fail's work outside any task: in a job, on a plain thread, in a posted function, or
 * between the steps of an embedded run. */
CONC__PRIVATE void conc__fail_outside(int rc, const char *text)
{
    bool may_be_job = !conc__here && conc__extended.job_fail;
    bool in_job = may_be_job && conc__extended.job_fail(rc, text);
    if (!in_job)
        conc__copy(conc__thread_text, sizeof conc__thread_text, rc < 0 ? text : "");
    if (conc__here)
        conc__here->scheduler.posted_rc = rc;
}

CONC_API int conc_fail(int rc, const char *fmt, ...)
{
    conc_loop *l = conc__of_task();
    char text[CONC__TEXT];
    int saved = errno;
    va_list args;
    if (!fmt)
        return conc__own_error(rc);
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    if (l)
        conc__set_error(l->self, rc, text, (conc__source){NULL, NULL});
    else
        conc__fail_outside(rc, text);
    errno = saved;
    return rc;
}

/* Makes rc, an error of conc itself, the latest error, and returns it. Its text is conc_strerror's,
 * not that of an earlier error with the same number. */
CONC__COLD int conc__own_error(int rc)
{
    conc_loop *l = conc__of_task();
    if (!l)
        return conc_fail(rc, "%s", conc_strerror(rc));
    conc__set_error(l->self, rc, NULL, (conc__source){NULL, NULL});
    return rc;
}

/* Returns rc, the result of a call. An error other than -ECANCELED becomes the task's latest. */
CONC__FAST int conc__wait_result(int rc)
{
    bool failed = rc < 0 && rc != -ECANCELED;
    if (CONC__UNLIKELY(failed))
        return conc__own_error(rc);
    return rc;
}

/* Returns rc, the result of a user's function. If it is an error other than the task's latest, it
 * becomes the latest. -ECANCELED does not: the text of the error that caused the cancellation says
 * more. */
CONC__FAST int conc__pass_error(conc_loop *l, int rc)
{
    bool is_new = rc < 0 && rc != -ECANCELED && l->self->last_rc != rc;
    if (CONC__UNLIKELY(is_new))
        return conc__own_error(rc);
    return rc;
}

/* Like conc__pass_error, for a function that began when the task's `errors_made` was `before`. If
 * that has not changed, the function set no error, and the latest error's text does not describe
 * rc. */
CONC__FAST int conc__pass_error_since(conc_loop *l, int rc, uint32_t before)
{
    bool silent = rc < 0 && rc != -ECANCELED && l->self->errors_made == before;
    if (CONC__UNLIKELY(silent))
        return conc__own_error(rc);
    return conc__pass_error(l, rc);
}

/* Returns strerror's text only if it is constant: the next call of strerror would overwrite any
 * other. */
CONC__PRIVATE const char *conc__system_text(int rc)
{
    if (rc <= -4096)
        return "unknown error";
    const char *text = strerror(-rc);
    if (strncmp(text, "Unknown", 7) == 0)
        return "unknown error";
    return text;
}

/* Returns rc, the result of a system call. Records an error with the system's text, which may
 * differ from conc_strerror's, and with `about`, the name of the call's object (NULL: none). */
CONC__PRIVATE int conc__system_failed(int rc, const char *about)
{
    if (rc >= 0 || rc == -ECANCELED)
        return rc;
    const char *words = conc__system_text(rc);
    if (about && !*about)
        about = "\"\"";
    if (about)
        return conc_fail(rc, "%.80s: %s", about, words);
    return conc_fail(rc, "%s", words);
}

CONC_API const char *conc_error_text(const conc_task *t)
{
    if (!conc__is_task(t) || t->state != CONC__DONE || t->result >= 0)
        return "";
    return conc__text_or(conc__error_text(t, t->result), t->result);
}

CONC__PRIVATE const char *conc__last_error_outside(void)
{
    const char *job = NULL;
    if (!conc__here && conc__extended.job_text)
        job = conc__extended.job_text();
    return job ? job : conc__thread_text;
}

CONC_API const char *conc_last_error(void)
{
    conc_loop *l = conc__of_task();
    if (!l)
        return conc__last_error_outside();
    int rc = l->self->last_rc;
    if (!rc)
        return "";
    const char *words = conc__error_text(l->self, rc);
    if (rc == -ECANCELED)
        return words;
    return conc__text_or(words, rc);
}

CONC_API const char *conc_strerror(int rc)
{
    switch (rc) {
    case -ECANCELED: return "cancelled";
    case -ETIMEDOUT: return "timed out";
    case -EDEADLK: return "deadlock: it would wait forever";
    case -EBUSY: return "already in use";
    case -EPERM:
        return "not allowed here: not in a task, or not the owner (or a call that sets errno "
               "returned -1)";
    case -ESHUTDOWN: return "the loop's run is over";
    case -EPIPE: return "closed";
    case -ENOTSUP: return "not supported here";
    case -EALREADY: return "already done";
    case -EMSGSIZE: return "a record longer than the limit of its stream, or of its buffer";
    case -EOWNERDEAD: return "the owner died";
    case -EOVERFLOW: return "the count would leave its range";
    default: break;
    }
    if (rc >= 0)
        return "success";
    return conc__system_text(rc);
}

/* Renames a task that has not ended. The name is borrowed until the task ends. */
CONC__TINY void conc__call_by(conc_loop *l, conc_task *t, const char *name)
{
    t->name = name;
    CONC__HOOK(l, named(l, t));
}

/* Returns the buffer for the name of a task without a handle; NULL if memory runs out. */
CONC__PRIVATE char *conc__name_buffer(conc_task *t)
{
    if (t->name_allocated)
        return (char *)(uintptr_t)t->name;
    char *buffer = conc__alloc(CONC__NAME);
    t->name_allocated = buffer != NULL;
    return buffer;
}

CONC_API const char *conc_name(const conc_task *t) { return conc__is_task(t) ? t->name : NULL; }

CONC_API void conc_set_name(conc_task *t, const char *name)
{
    if (!conc__is_task(t) || !name || t->state != CONC__LIVE)
        return;
    if (t->loop != conc__here) {
        conc__misused(0, "conc_set_name", "the task belongs to another run", NULL);
        return;
    }
    char *buffer = t->name_copy;
    if (!t->has_handle)
        buffer = conc__name_buffer(t);
    if (!buffer)
        return;
    conc__copy(buffer, CONC__NAME, name);
    conc__call_by(t->loop, t, buffer);
}

CONC_API void conc_free(void *p)
{
    int saved = errno;
    CONC_FREE(p);
    errno = saved;
}

CONC_API const char *conc_version(void) { return CONC_VERSION; }

/* Returns the location "file.c:12" in "fn at file.c:12". */
CONC__PRIVATE const char *conc__place_of(const char *spawned)
{
    const char *place = spawned, *at;
    while ((at = strstr(place, " at ")))
        place = at + strlen(" at ");
    return place;
}

/* Writes what follows a task's name in reports: the location of its spawn, or "" if the name
 * already contains that. */
CONC__PRIVATE void conc__describe_spawn(char *to, size_t size, conc__source source)
{
    const char *place = conc__place_of(source.spawned);
    if (strcmp(source.name, source.spawned) == 0)
        *to = 0;
    else if (place == source.spawned) /* a run's "main" */
        snprintf(to, size, " (%s)", place);
    else
        snprintf(to, size, " (spawned at %s)", place);
}

/* Describes a task for a report: its current name, without control characters, and the location of
 * its spawn. If the text is too long, truncates the name. Returns `to`. May run in a signal
 * handler. */
CONC__PRIVATE const char *conc__describe(char *to, size_t size, conc__source source)
{
    char spawn[CONC__DESCRIPTION - CONC__NAME];
    conc__describe_spawn(spawn, sizeof spawn, source);
    const char *place = conc__place_of(source.spawned);
    size_t name = strlen(source.name), end;
    if (!*spawn && place != source.spawned) { /* truncate the function's name, not " at f.c:12" */
        conc__copy(spawn, sizeof spawn, place - strlen(" at "));
        name = (size_t)(place - source.spawned) - strlen(" at ");
    }
    end = strlen(spawn);
    if (name > size - 1 - end)
        name = size - 1 - end;
    memcpy(to, source.name, name);
    memcpy(to + name, spawn, end + 1);
    for (unsigned char *c = (unsigned char *)to; *c; c++) {
        if (*c < ' ' || *c == 0x7f)
            *c = '?';
    }
    return to;
}

/* Prints a task's description in a line about another task. If the report has a line for each task,
 * omits the location of the spawn, which is in the task's own line. */
CONC__PRIVATE void conc__print_name(FILE *out, const conc_task *t)
{
    char text[CONC__DESCRIPTION];
    conc__source source = conc__source_of(t);
    if (conc__here->diagnostics.lists_tasks && source.name != source.spawned)
        source.spawned = source.name;
    fputs(conc__describe(text, sizeof text, source), out);
}

/* ---- >>tasks -------------------------------------------------------------------------------- */

CONC__PRIVATE void conc__task_main(void);

/* Returns the serial number of a run's first task. */
CONC__TINY uint64_t conc__first_serial(const conc_loop *l) { return l->run.number << 40; }

/* Does this serial number belong to a task of this run? */
CONC__FAST bool conc__is_of_run(const conc_loop *l, uint64_t serial)
{
    return serial - conc__first_serial(l) < 1ull << 40;
}

/* Initializes a task that is not in any list yet. */
CONC__FAST void conc__task_init(conc_loop *l, conc_task *t, bool has_handle, conc__stack *stack,
                                conc_fn *fn, void *arg, const char *spawned)
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
    t->error_from = NULL;
    t->held = NULL;
    t->result = t->last_rc = 0;
    t->sink = NULL;
    t->locals = l->self ? l->self->locals : NULL;
    t->fn = fn;
    t->arg = arg;
    t->name = t->spawned = spawned;
    t->name_allocated = false;
    if (CONC__UNLIKELY(t->locals)) /* atomic: jobs in other threads share it */
        __atomic_fetch_add(&t->locals->references, 1, __ATOMIC_RELAXED);
    t->serial = l->counters.spawned++;
    if (CONC__UNLIKELY(l->counters.spawned > l->counters.most))
        l->counters.most = l->counters.spawned;
}

static inline void conc__child_add(conc_group *g, conc_task *t)
{
    conc_task *first = g->children;
    t->group = g;
    t->younger = NULL;
    if (first) {
        conc_task *last = first->older; /* the first child's `older` is the last child */
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

/* Is this handle the group's first or last child? A call that spawns with a handle checks this,
 * which detects most handles that were overwritten while their task was alive, for example by a
 * block that initializes them. */
static inline bool conc__is_at_an_end(const conc_group *g, const conc_task *t)
{
    const conc_task *first = g->children;
    return first && (first == t || first->older == t);
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

CONC__PRIVATE conc__stack_cache *conc__stack_cache_of(conc_loop *l, const conc_group *g)
{
    if (CONC__UNLIKELY(g->stack_size && g->stack_size != l->stacks.usual->size))
        return conc__stack_cache_for(l, g->stack_size);
    return l->stacks.usual;
}

/* Creates a ready task in an open group. The task is stored in the handle or, if that is NULL, on
 * its own stack. Returns NULL if out of memory. */
CONC__FAST conc_task *conc__task_new(conc_loop *l, conc_group *g, conc_task *handle, conc_fn *fn,
                                     void *arg, const char *spawned)
{
    conc__stack_cache *cache = conc__stack_cache_of(l, g);
    if (CONC__UNLIKELY(!cache))
        return NULL;
    conc__stack *stack = conc__stack_acquire(cache);
    if (CONC__UNLIKELY(!stack))
        return NULL;
    if (handle && CONC__UNLIKELY(conc__is_at_an_end(g, handle)))
        conc__lost(l, l->self, CONC__HANDLE_OF "a task", conc__overwritten);
    char *top = conc__stack_top(stack);
    conc_task *t = handle ? handle : (conc_task *)(void *)top;
    conc__task_init(l, t, handle != NULL, stack, fn, arg, spawned);
    conc__prepare(t->context, stack->low, top, conc__task_main);
    conc__child_add(g, t);
    conc__make_ready(l, t);
    CONC__HOOK(l, spawned(l, t));
    return t;
}

static const conc__wait_kind conc__wants_room = {.what = "waits for room under its group's limit",
                                                 .cancel = conc__cancel_plainly};

CONC__PRIVATE void conc__group_open(conc_loop *l, conc_group *g, const char *place)
{
    conc__scope_open(l, &g->scope, place);
    g->scope.is_group = true;
    g->error = g->error_count = 0;
    g->error_by = NULL;
    g->error_name[0] = 0;
    g->live = g->live_handles = 0;
    g->cut_short = g->background = false;
    g->children = g->finished = g->last_finished = NULL;
    g->room = g->next = g->empty = (conc__waits){NULL, NULL};
    g->text[0] = 0;
}

/* Resets a group to its state before it was opened. */
CONC__PRIVATE void conc__group_renew(conc_group *g)
{
    *g = (conc_group){.limit = g->limit, .keep_going = g->keep_going, .stack_size = g->stack_size};
}

/* Undoes the opening of a group whose first spawn or start failed. */
CONC__COLD void conc__group_unopen(conc_loop *l, conc_group *g)
{
    conc__scope_close(l, &g->scope);
    conc__group_renew(g);
}

/* Returns why this group cannot be opened; NULL: it can be. */
CONC__PRIVATE const char *conc__group_is_wrong(const conc_group *g)
{
    if (!g)
        return "no group";
    if (g->scope.state != CONC__FRESH)
        return "the group was already used";
    if (g->limit < 0)
        return "the limit is negative";
    if (g->stack_size && !conc__stack_fits(g->stack_size))
        return "the stack size is out of range";
    return NULL;
}

CONC_API CONC__CALLED int conc__group_begin(conc_group *g, const char *place)
{
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    if (g && conc__scope_is_inherited(&g->scope))
        conc__group_renew(g);
    const char *wrong = conc__group_is_wrong(g);
    if (wrong)
        return conc__misused(-EINVAL, __func__, wrong, place);
    conc__check_lost(l, __builtin_frame_address(0));
    conc__group_open(l, g, place);
    return 0;
}

/* Waits in a full group until a child ends. The child's slot still counts in g->live until the
 * waiter continues, so that no other spawn can take it. */
CONC__PRIVATE int conc__wait_for_room(conc_loop *l, conc_group *g)
{
    int rc = conc__checkpoint(l);
    if (rc)
        return rc;
    conc__wait w = {.task = l->self, .kind = &conc__wants_room, .on = g};
    conc__append(&g->room, &w);
    rc = conc__park(l, &w);
    if (rc == 0)
        g->live--; /* the new task is about to take the slot */
    return rc;
}

CONC__PRIVATE void conc__grant_room(conc_loop *l, conc_group *g)
{
    while (g->room.first && (g->live < g->limit || g->limit <= 0)) {
        g->live++;
        conc__wake(l, g->room.first, 0);
    }
}

/* Prepares a group for a spawn by `call`: opens the group if it is unused, and waits if it is full.
 * Returns 0 if the spawn may proceed, or an error. */
CONC__COLD int conc__enter_group(conc_loop *l, conc_group *g, const char *call, const char *spawned)
{
    if (g->scope.state == CONC__FRESH) {
        if (!l->self)
            return conc__misused(-EPERM, call, "only a task may open a group", spawned);
        const char *wrong = conc__group_is_wrong(g);
        if (wrong)
            return conc__misused(-EINVAL, call, wrong, spawned);
        conc__group_open(l, g, spawned);
        if (!g->scope.effective)
            return 0;
        conc__group_unopen(l, g);
        return -ECANCELED;
    }
    if (g->scope.state != CONC__OPEN)
        return conc__misused(-EINVAL, call, "the group is already closed", spawned);
    if (g->scope.task && g->scope.task->loop != l)
        return conc__misused(-EPERM, call, "the group belongs to another loop", spawned);
    if (g->scope.effective)
        return -ECANCELED;
    if (g->limit > 0 && (g->live >= g->limit || g->room.first)) {
        if (!l->self)
            return conc__misused(-EPERM, call, "the group is full, and only a task may wait",
                                 spawned);
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

/* Does this storage hold a task that has not ended, or that is in its group's `finished` list? The
 * storage may be uninitialized, so this reads only the seal and the state. */
CONC__FAST bool conc__handle_in_use(const conc_task *t)
{
    int difference = t->seal ^ conc__seal(t);
    bool lives = difference == 0 && t->state == CONC__LIVE;
    bool listed = difference == (CONC__ENDED_SEAL ^ CONC__LISTED_SEAL) && t->state == CONC__DONE;
    return CONC__UNLIKELY(lives || listed);
}

/* Returns whether a handle that looks in use may be reused: in a forked child, it may if its task
 * belongs to the parent process. If so, resets that task's open scopes, which would otherwise seem
 * to belong to the new task. */
CONC__COLD bool conc__handle_taken_over(const conc_task *t)
{
    if (!conc__is_inherited(t->serial))
        return false;
    conc_scope *s = t->state == CONC__LIVE ? t->scope : NULL;
    while (s) {
        conc_scope *outer = s->outer;
        if (s->is_group)
            conc__group_renew(conc__group_of(s));
        else
            *s = (conc_scope){.state = CONC__FRESH};
        s = outer;
    }
    return true;
}

CONC__FAST int conc__spawn_in(conc_group *g, conc_task *handle, const char *call,
                              const char *spawned, conc_fn *fn, void *arg, conc_task **out)
{
    conc_loop *l = conc__here;
    if (CONC__UNLIKELY(!l))
        return conc__misused(-EPERM, call, "there is no run on this thread", spawned);
    if (CONC__UNLIKELY(!fn))
        return conc__misused(-EINVAL, call, "no function", spawned);
    if (!g)
        g = &l->run.background;
    if (l->self)
        conc__check_lost(l, __builtin_frame_address(0));
    bool opens = false;
    if (CONC__UNLIKELY(g->scope.state != CONC__OPEN || g->scope.effective || g->limit > 0 ||
                       g->scope.task != l->self)) {
        if (conc__scope_is_inherited(&g->scope))
            conc__group_renew(g);
        opens = g->scope.state == CONC__FRESH;
        int rc = conc__enter_group(l, g, call, spawned);
        if (rc)
            return rc;
        bool waited = g->limit > 0 && handle;
        if (waited && conc__handle_in_use(handle) && !conc__is_inherited(handle->serial)) {
            conc__child_gone(l, g);
            return conc__misused(-EBUSY, call, "the handle is in use", spawned);
        }
    }
    *out = conc__task_new(l, g, handle, fn, arg, spawned);
    if (CONC__UNLIKELY(!*out)) {
        conc__child_gone(l, g);
        if (opens)
            conc__group_unopen(l, g);
        return conc__own_error(-ENOMEM);
    }
    return 0;
}

CONC_API CONC__CALLED int conc__spawn(const char *spawned, conc_group *g, conc_fn *fn, void *arg)
{
    conc_task *t;
    return conc__spawn_in(g, NULL, "conc_spawn", spawned, fn, arg, &t);
}

/* Returns the address for a task's copy of its argument, at the top of its stack, above the frames.
 * A type's size is a multiple of its alignment, so the size's lowest set bit is a sufficient
 * alignment. */
CONC__PRIVATE char *conc__copy_at(conc__stack *s, size_t size)
{
    enum { LEAST = 64, MOST = 4096 }; /* vectors and cache lines; a page */
    uintptr_t fit = size & ~(size - 1), top = (uintptr_t)conc__stack_top(s) - size;
    if (fit < LEAST)
        fit = LEAST;
    if (fit > MOST)
        fit = MOST;
    return (char *)(top - top % fit);
}

/* Copies a task's argument to the task's stack, before the task runs. */
CONC__PRIVATE void conc__copy_argument(conc_task *t, const void *arg, size_t size)
{
    enum { ENTRY = 256 }; /* conc__prepare's data below the top, and a red zone */
    char *copy = conc__copy_at(t->stack, size);
    /* an earlier task's frames may have been here */
    if (CONC__UNLIKELY(t->loop->diagnostics.on_valgrind))
        conc__valgrind(CONC__VALGRIND_UNDEFINED, (uintptr_t)copy - ENTRY, size + ENTRY);
    if (size)
        memcpy(copy, arg, size);
    t->arg = copy;
    conc__prepare(t->context, t->stack->low, copy, conc__task_main);
}

CONC_API CONC__CALLED int conc__spawn_copy(const char *spawned, conc_group *g, conc_fn *fn,
                                           const void *arg, size_t size)
{
    static const char call[] = "conc_spawn_copy";
    conc_loop *l = conc__here;
    conc_task *t;
    if (l) {
        size_t stack = g && g->stack_size ? g->stack_size : l->stacks.usual->size;
        if (!arg && size)
            return conc__misused(-EINVAL, call, "nothing to copy", spawned);
        if (size > stack / 4)
            return conc__misused(-EINVAL, call, "the copy needs more than a quarter of the stack",
                                 spawned);
    }
    int rc = conc__spawn_in(g, NULL, call, spawned, fn, NULL, &t);
    if (rc == 0)
        conc__copy_argument(t, arg, size);
    return rc;
}

CONC_API CONC__CALLED int conc__spawn_task(const char *spawned, conc_group *g, conc_task *handle,
                                           conc_fn *fn, void *arg)
{
    conc_task *t;
    if (!conc__here)
        return conc__misused(-EPERM, "conc_spawn_task", "there is no run on this thread", spawned);
    if (!handle)
        return conc__misused(-EINVAL, __func__, "no handle", spawned);
    if (CONC__MSAN || CONC__UNLIKELY(conc__here->diagnostics.on_valgrind))
        conc__mark_defined(handle, sizeof *handle);
    if (conc__handle_in_use(handle) && !conc__handle_taken_over(handle))
        return conc__misused(-EBUSY, "conc_spawn_task", "the handle is in use", spawned);
    CONC__HOOK(conc__here, handle_reused(conc__here, handle));
    int rc = conc__spawn_in(g, handle, "conc_spawn_task", spawned, fn, arg, &t);
    if (rc == 0)
        CONC__HOOK(conc__here, handle_lent(conc__here, handle, spawned));
    return rc;
}

/* A conc_start in progress, on the caller's stack. */
typedef struct conc__starter {
    conc__wait wait;
    conc_task *child;
    bool given_up;
} conc__starter;

CONC__PRIVATE bool conc__start_cancel(conc__wait *w)
{
    conc__starter *s = (conc__starter *)(void *)w;
    s->given_up = true;
    s->child->asked = true;
    conc__mark(conc__here, s->child);
    return false; /* conc_start keeps waiting until the child has ended */
}

CONC__PRIVATE void conc__waited_task_details(FILE *out, const conc__wait *w)
{
    fputc(' ', out);
    conc__print_name(out, w->on);
}

CONC__PRIVATE const conc_task *conc__task_waited_for(const conc__wait *w) { return w->on; }

static const conc__wait_kind conc__starting = {.what = "waits for the start of",
                                               .brief = "waits for a start",
                                               .details = CONC__DETAILS(conc__waited_task_details),
                                               .cancel = conc__start_cancel,
                                               .owner = conc__task_waited_for};

/* Is this group the running task's innermost scope, with no children and no failures? */
CONC__PRIVATE bool conc__is_untouched(const conc_loop *l, const conc_group *g)
{
    bool innermost = l->self->scope == &g->scope, empty = !g->live && !g->finished;
    return innermost && empty && !g->error_count;
}

CONC_API CONC__CALLED int conc__start(const char *spawned, conc_group *g, conc_fn *fn, void *arg)
{
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    if (!fn)
        return conc__misused(-EINVAL, __func__, "no function", spawned);
    int rc = conc__checkpoint(l);
    if (rc)
        return rc;
    conc__check_lost(l, __builtin_frame_address(0));
    conc__starter s = {.wait = {.task = l->self, .kind = &conc__starting}};
    bool opens = g && (g->scope.state == CONC__FRESH || conc__scope_is_inherited(&g->scope));
    rc = conc__spawn_in(g, NULL, "conc_start", spawned, fn, arg, &s.child);
    if (rc)
        return rc;
    s.wait.on = s.child;
    s.child->sink = &s;
    s.child->sink_kind = CONC__START_SINK;
    if (CONC__UNLIKELY(l->self->pending)) { /* cancelled after room was granted */
        conc__start_cancel(&s.wait);
        conc__spread_marked(l);
    }
    rc = conc__park(l, &s.wait);
    if (rc < 0 && opens && conc__is_untouched(l, g))
        conc__group_unopen(l, g);
    return rc;
}

CONC_API int conc_started(int value)
{
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    conc__starter *s = l->self->sink;
    if (l->self->sink_kind != CONC__START_SINK || value < 0)
        return conc__misused(-EINVAL, "conc_started",
                             "the task was not started by conc_start, has already reported its "
                             "start, or reports a negative value",
                             NULL);
    if (s->given_up)
        return -ECANCELED;
    l->self->sink_kind = CONC__NO_SINK;
    conc__wake(l, &s->wait, value);
    return 0;
}

/* Releases a reference to a tree of locals. The recursion is at most 64 levels deep, one for each
 * bit of the hash. */
CONC__PRIVATE void conc__locals_release(conc__locals *locals)
{
    while (locals && __atomic_sub_fetch(&locals->references, 1, __ATOMIC_ACQ_REL) == 0) {
        conc__locals *right = locals->below[1];
        conc__locals_release(locals->below[0]);
        CONC_FREE(locals);
        locals = right;
    }
}

/* Calls run(arg), which calls the program's function fn, outside any task. role: what fn is, for
 * reports. */
CONC__PRIVATE void conc__call_outside(conc_loop *l, const char *role, uintptr_t fn,
                                      void (*run)(void *), void *arg)
{
    if (CONC__UNLIKELY(CONC__HOOKS(l)))
        CONC__HOOKS(l)->call(l, role, fn, run, arg);
    else
        run(arg);
}

typedef struct conc__reported {
    conc_failure failure;
    conc__source source;
    const conc_options *options;
} conc__reported;

CONC__PRIVATE void conc__call_hook(void *arg)
{
    const conc__reported *r = arg;
    r->options->on_error(&r->failure, r->options->user);
}

CONC__PRIVATE void conc__report_on_loop(conc_loop *l, void *arg)
{
    conc__reported *r = arg;
    char who[CONC__DESCRIPTION];
    int saved = errno;
    if (l->run.options.on_error) {
        uintptr_t fn = (uintptr_t)l->run.options.on_error;
        conc__call_outside(l, "the on_error hook", fn, conc__call_hook, r);
    } else {
        conc__describe(who, sizeof who, r->source);
        fprintf(stderr, "conc: %s failed: %s\n", who, r->failure.text);
    }
    errno = saved;
}

/* Reports an uncollected error: calls on_error, or else writes to stderr. */
CONC__PRIVATE void conc__report(conc_loop *l, conc__source source, int rc, const char *words)
{
    conc__reported r = {
        .failure = {source.name, conc__place_of(source.spawned), conc__text_or(words, rc), rc},
        .source = source,
        .options = &l->run.options};
    conc__on_loop(l, conc__report_on_loop, &r);
}

CONC__PRIVATE void conc__report_task(conc_loop *l, const conc_task *t)
{
    conc__report(l, conc__source_of(t), t->result, conc__error_text(t, t->result));
}

/* A copy of a task's latest error. */
typedef struct conc__kept_error {
    int rc;
    uint32_t errors_made;
    const char *error_from;
    char text[CONC__TEXT], name[CONC__NAME];
} conc__kept_error;

/* Saves the task's latest error, which the task may be about to return, before closing something
 * whose own error is discarded. */
CONC__PRIVATE void conc__error_keep(conc__kept_error *kept, const conc_task *t)
{
    kept->rc = t->last_rc;
    kept->errors_made = t->errors_made;
    kept->error_from = t->error_from;
    conc__copy(kept->text, sizeof kept->text, conc__error_text(t, t->last_rc));
    conc__keep_name(kept->name, conc__origin(t, t->last_rc));
}

CONC__PRIVATE void conc__error_restore(conc_task *t, const conc__kept_error *kept)
{
    conc__source by = {NULL, NULL};
    if (kept->error_from)
        by = conc__kept_source(kept->name, kept->error_from);
    t->last_rc = 0;
    conc__set_error(t, kept->rc, kept->text, by);
    t->errors_made = kept->errors_made;
}

/* Reports that the running task could not close something properly. */
CONC__PRIVATE void conc__report_close(conc_loop *l, const char *what, int rc)
{
    char text[CONC__TEXT];
    snprintf(text, sizeof text, "closing %s failed: %s", what,
             conc__text_or(conc__error_text(l->self, rc), rc));
    conc__report(l, conc__source_of(l->self), rc, text);
}

CONC__PRIVATE conc__failed **conc__failure_slot(const conc__failures *all, uint64_t serial)
{
    return &all->slots[serial & (all->slot_count - 1)];
}

/* Doubles a full hash table. Serial numbers are consecutive, so they fill the slots evenly. If
 * memory runs out, leaves the table unchanged. Returns false if there is no table at all. */
CONC__PRIVATE bool conc__failures_grow(conc__failures *all)
{
    enum { LEAST = 64 };
    if (all->count < all->slot_count)
        return true;
    conc__failures more = *all;
    more.slot_count = all->slot_count ? all->slot_count * 2 : LEAST;
    more.slots = conc__alloc(more.slot_count * sizeof(conc__failed *));
    if (!more.slots)
        return all->slot_count > 0;
    memset(more.slots, 0, more.slot_count * sizeof(conc__failed *));
    for (conc__failed *f = all->first; f; f = f->next) {
        conc__failed **slot = conc__failure_slot(&more, f->serial);
        f->same_slot = *slot;
        *slot = f;
    }
    CONC_FREE(all->slots);
    *all = more;
    return true;
}

/* Keeps the error of a background task with a handle until a join collects it or the end of the run
 * reports it. */
CONC__PRIVATE void conc__failure_add(conc_loop *l, const conc_task *t)
{
    conc__failures *all = &l->run.failures;
    conc__failed *f = NULL;
    if (conc__failures_grow(all))
        f = conc__alloc(sizeof *f);
    if (!f) {
        conc__report_task(l, t);
        return;
    }
    conc__failed **slot = conc__failure_slot(all, t->serial);
    *f = (conc__failed){
        .same_slot = *slot, .serial = t->serial, .spawned = t->spawned, .rc = t->result};
    conc__keep_name(f->name, conc__source_of(t));
    conc__copy(f->text, sizeof f->text, conc__error_text(t, t->result));
    *slot = f;
    CONC__QUEUE_APPEND(all->first, all->last, f, next, prev);
    all->count++;
}

CONC__PRIVATE void conc__failure_remove(conc__failures *all, conc__failed *f)
{
    conc__failed **at = conc__failure_slot(all, f->serial);
    while (*at != f)
        at = &(*at)->same_slot;
    *at = f->same_slot;
    CONC__QUEUE_REMOVE(all->first, all->last, f, next, prev);
    all->count--;
    CONC_FREE(f);
}

/* Discards the kept error of a task that a join has collected. */
CONC__PRIVATE void conc__failure_forget(conc_loop *l, const conc_task *t)
{
    conc__failures *all = &l->run.failures;
    conc__failed *f = *conc__failure_slot(all, t->serial);
    while (f && f->serial != t->serial)
        f = f->same_slot;
    if (f)
        conc__failure_remove(all, f);
}

/* Reports, at the end of the run, the errors that no join has collected. */
CONC__PRIVATE void conc__report_failures(conc_loop *l)
{
    conc__failures *all = &l->run.failures;
    while (all->first) {
        conc__failed *f = all->first;
        conc__report(l, conc__kept_source(f->name, f->spawned), f->rc, f->text);
        conc__failure_remove(all, f);
    }
    CONC_FREE(all->slots);
    *all = (conc__failures){0};
}

/* Counts an error of the group's body or of a child. Returns true if this is the first error: it
 * becomes the group's, and cancels the group unless keep_going is set. Any other error is reported
 * unless a join, a sink or conc_group_next has collected it or still can. */
CONC__PRIVATE bool conc__group_failed(conc_loop *l, conc_group *g, const conc_task *t, int rc)
{
    if (g->error_count++ == 0 && !g->background) {
        g->error = rc;
        conc__source by = conc__origin(t, rc);
        g->error_by = by.spawned;
        conc__keep_name(g->error_name, by);
        conc__copy(g->text, sizeof g->text, conc__error_text(t, rc));
        if (!g->keep_going)
            conc__cancel_scope(l, &g->scope);
        return true;
    }
    if (t->collected)
        return false;
    if (g->background && t->has_handle)
        conc__failure_add(l, t);
    else if (!t->has_handle || t->state != CONC__DONE) /* otherwise it can still be collected */
        conc__report(l, conc__source_of(t), rc, conc__error_text(t, rc));
    return false;
}

/* Called when g->live has decreased. Passes the free slot on. If no child with a handle is left,
 * wakes the tasks in conc_group_next; if no child at all is left, those that are waiting for the
 * group. */
CONC__PRIVATE void conc__child_gone(conc_loop *l, conc_group *g)
{
    conc__grant_room(l, g);
    while (!g->live_handles && g->next.first)
        conc__wake(l, g->next.first, 0);
    while (!g->live && g->empty.first)
        conc__wake(l, g->empty.first, 0);
}

/* A conc_group_next in progress, on the caller's stack. */
typedef struct conc__chooser {
    conc__wait wait;
    conc_task *task;
} conc__chooser;

CONC__PRIVATE void conc__list_finished(conc_loop *l, conc_group *g, conc_task *t)
{
    if (g->next.first) {
        conc__chooser *c = (conc__chooser *)(void *)g->next.first;
        c->task = t;
        conc__set_error_of(c->wait.task, t);
        conc__wake(l, &c->wait, 1);
        return;
    }
    t->in_finished = true;
    t->seal ^= CONC__LISTED_SEAL;
    CONC__QUEUE_APPEND(g->finished, g->last_finished, t, younger, older);
}

CONC__PRIVATE void conc__unlist_finished(conc_group *g, conc_task *t)
{
    CONC__QUEUE_REMOVE(g->finished, g->last_finished, t, younger, older);
    t->in_finished = false;
    t->seal ^= CONC__LISTED_SEAL;
}

CONC__FAST void conc__wake_joiners(conc_loop *l, conc_task *t, const conc__hooks *hooks)
{
    for (conc__wait *w = t->joiners.first, *next; w; w = next) {
        if (CONC__UNLIKELY(w->kind->won))
            w->kind->won(w); /* may withdraw later waits in this list */
        next = w->next;
        w->value = t->result;
        conc__set_error_of(w->task, t);
        w->list = NULL; /* all waits leave the list, so their links need no update */
        w->result = 0;
        if (hooks && w->task->wait)
            hooks->woken(l, w->task);
        w->task->wait = NULL;
        conc__make_ready(l, w->task);
        t->collected = true;
    }
}

CONC__PRIVATE void conc__fill_call(conc_call *call, const conc_task *t)
{
    call->result = t->result;
    call->text[0] = 0;
    if (t->result < 0) {
        const char *words = conc__text_or(conc__error_text(t, t->result), t->result);
        conc__copy(call->text, sizeof call->text, words);
    }
}

/* Ends a conc_start whose task has ended without calling conc_started. The error goes to the
 * starter, not to the group. */
CONC__PRIVATE void conc__start_failed(conc_loop *l, conc__starter *s, conc_task *t)
{
    int rc = -EINVAL;
    if (t->failed)
        rc = t->result;
    else if (s->given_up || t->result < 0)
        rc = -ECANCELED;
    conc__set_error(s->wait.task, rc, conc__error_text(t, rc), conc__origin(t, t->result));
    conc__wake(l, &s->wait, rc);
    t->failed = false;
}

/* Passes the task's result to its sink. */
CONC__PRIVATE void conc__set_sink(conc_loop *l, conc_task *t)
{
    switch (t->sink_kind) {
    case CONC__RESULT_SINK: *(int *)t->sink = t->result; break;
    case CONC__CALL_SINK: conc__fill_call(t->sink, t); break;
    case CONC__START_SINK: conc__start_failed(l, t->sink, t); break;
    case CONC__FUNCTION_SINK:
        t->collected = true;
        (*(conc__returned_fn **)t->sink)(t);
        return;
    default: return;
    }
    t->collected = true;
}

/* Notifies the group of a failed or cancelled child. */
CONC__PRIVATE void conc__child_failed(conc_loop *l, conc_task *t)
{
    conc_group *g = t->group;
    if (t->failed && g)
        t->failed = !conc__group_failed(l, g, t, t->result);
    else if (g && t->sink_kind != CONC__START_SINK)
        g->cut_short = true;
}

/* Passes the result of a finished task to its sink, its joiners and its group. */
CONC__COLD void conc__deliver(conc_loop *l, conc_task *t)
{
    CONC__HOOK(l, returned(l, t));
    if (t->sink_kind)
        conc__set_sink(l, t);
    conc__wake_joiners(l, t, CONC__HOOKS(l));
    if (t->result < 0)
        conc__child_failed(l, t);
    CONC__HOOK(l, ended(l, t));
}

CONC__COLD void conc__free_strings(conc_task *t)
{
    if (t->name_allocated)
        CONC_FREE((void *)(uintptr_t)t->name);
    CONC_FREE(t->text);
}

/* Hashes an address. Each step is invertible, so no two addresses have the same hash. */
CONC__PRIVATE uint64_t conc__address_hash(const void *address)
{
    uint64_t x = (uint64_t)(uintptr_t)address * 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 32) * 0xd6e8feb86659fd93u;
    return x ^ x >> 32;
}

/* Returns the tree's link to an object's newest record, or the link where it would be inserted. */
CONC__PRIVATE conc__holding **conc__holding_find(conc__holding **at, const void *object)
{
    uintptr_t bit = CONC__HIGHEST_BIT, address = (uintptr_t)object;
    for (; *at && (*at)->object != object; bit >>= 1)
        at = &(*at)->below[(address & bit) != 0];
    return at;
}

/* Records an object in a tree. If out of memory, does nothing, and reports will not mention the
 * object. */
CONC__COLD void conc__holding_add(conc__holding **tree, const void *object, const char *what,
                                  const char *place)
{
    conc__holding *h = conc__alloc(sizeof *h);
    if (!h)
        return;
    conc__holding **at = conc__holding_find(tree, object);
    *h = (conc__holding){.object = object, .what = what, .place = place, .same = *at};
    if (*tree)
        h->older = (*tree)->newest;
    if (h->older)
        h->older->newer = h;
    if (h->same)
        memcpy(h->below, h->same->below, sizeof h->below);
    *at = h;
    (*tree)->newest = h;
}

/* Removes a record from its tree. An older record of the same object takes its place or, if there
 * is none, a leaf below it does. */
CONC__PRIVATE void conc__holding_remove(conc__holding **at)
{
    conc__holding *h = *at, *other = h->same;
    if (!other) {
        conc__holding **leaf = at;
        while ((*leaf)->below[0] || (*leaf)->below[1])
            leaf = &(*leaf)->below[!(*leaf)->below[0]];
        other = *leaf;
        *leaf = NULL;
    }
    if (other == h)
        return;
    memcpy(other->below, h->below, sizeof h->below);
    *at = other;
}

CONC__COLD void conc__holding_drop(conc__holding **tree, const void *object)
{
    conc__holding **at = conc__holding_find(tree, object), *h = *at;
    if (!h)
        return;
    conc__holding *newest = h->newer ? (*tree)->newest : h->older;
    if (h->newer)
        h->newer->older = h->older;
    if (h->older)
        h->older->newer = h->newer;
    conc__holding_remove(at);
    if (*tree)
        (*tree)->newest = newest;
    CONC_FREE(h);
}

/* Ends a task whose function has returned rc. Afterwards the stack is free, and so is the task if
 * it has no handle. */
static inline void conc__task_end(conc_loop *l, conc_task *t, int rc)
{
    conc_group *g = t->group;
    if (CONC__UNLIKELY(t->scope))
        conc__lost(l, t, t->place, "it ended");
    if (CONC__UNLIKELY(l->lent.any))
        conc__check_lent(l, t, t->stack, "it ended");
    t->result = rc;
    t->failed = rc < 0 && !(rc == -ECANCELED && t->pending);
    t->state = CONC__DONE;
    t->seal ^= CONC__ENDED_SEAL;
    if (CONC__UNLIKELY(rc < 0 || t->sink_kind || CONC__HOOKS(l)))
        conc__deliver(l, t);
    else
        conc__wake_joiners(l, t, NULL);
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
        conc__free_strings(t);
    conc__stack_release(l, t->stack);
    l->counters.finished++;
    l->counters.most++;
}

/* Runs the task, as the first function on its stack. conc__task_end frees the stack, but nothing
 * reuses it before the jump. */
CONC__PRIVATE void conc__task_main(void)
{
    CONC__BOTTOM();
    conc_loop *l = conc__here;
    conc_task *t = l->self;
    conc__arrived(l, t->stack);
    conc__fpu_load(&l->scheduler.fpu);
    *l->errno_at = 0;
    int rc = t->fn(t->arg);
    l = conc__here;
    if (CONC__UNLIKELY(!l)) {
        fprintf(stderr, "conc: a task returned in a forked child, where its loop is dead; end the "
                        "child with _exit\n");
        abort();
    }
    conc__task_end(l, t, rc);
    conc_task *next = l->ready.first;
    if (next && l->ready.switches_left > 0) {
        l->ready.switches_left--;
        l->ready.first = next->next;
        l->self = next;
        conc__leaving(l, NULL, next->stack);
        conc__jump(l->scheduler.scratch, next->context);
    } else {
        l->self = NULL;
        conc__leaving(l, NULL, &l->scheduler.stack);
        conc__jump(l->scheduler.scratch, l->scheduler.context);
    }
    __builtin_unreachable();
}

static const conc__wait_kind conc__joining = {.what = "joins",
                                              .details = CONC__DETAILS(conc__waited_task_details),
                                              .cancel = conc__cancel_plainly,
                                              .owner = conc__task_waited_for};

/* Collects a finished task. Its error becomes the running task's latest. */
CONC__PRIVATE void conc__collect(conc_loop *l, conc_task *t)
{
    if (t->in_finished)
        conc__unlist_finished(t->group, t);
    if (t->failed && !t->collected && l->run.failures.count)
        conc__failure_forget(l, t);
    t->collected = true;
    conc__set_error_of(l->self, t);
}

CONC_API CONC__CALLED int conc_join(conc_task *t, int *result)
{
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    if (!conc__is_task(t))
        return conc__misused(-EINVAL, "conc_join", "no task was spawned with this handle", NULL);
    if (CONC__UNLIKELY(!conc__is_of_run(l, t->serial)))
        return conc__misused(-EPERM, "conc_join", "the task belongs to another run", NULL);
    if (t == l->self)
        return conc__misused(-EDEADLK, "conc_join", "a task would wait for itself", NULL);
    int rc = conc__checkpoint(l);
    if (rc)
        return rc;
    conc__wait w = {.task = l->self, .kind = &conc__joining, .on = t, .value = t->result};
    if (t->state == CONC__LIVE) {
        conc__check_lost(l, __builtin_frame_address(0));
        conc__append(&t->joiners, &w);
        rc = conc__park(l, &w);
        if (rc)
            return rc;
    } else {
        conc__collect(l, t);
        conc__spend_budget(l);
    }
    if (result)
        *result = w.value;
    return 0;
}

CONC_API int conc_cancel(conc_task *t)
{
    conc_loop *l = conc__here;
    if (!l)
        return conc__misused(-EPERM, "conc_cancel", "this is not the task's loop", NULL);
    if (!conc__is_task(t))
        return conc__misused(-EINVAL, __func__, "no task was spawned with this handle", NULL);
    if (t->state == CONC__DONE)
        return conc__own_error(-EALREADY);
    if (t->loop != l)
        return conc__misused(-EPERM, "conc_cancel", "the task belongs to another loop", NULL);
    conc__task_cancel(l, t);
    return 0;
}

CONC_API bool conc_done(const conc_task *t) { return conc__is_task(t) && t->state == CONC__DONE; }

CONC_API conc_task *conc_self(void)
{
    conc_loop *l = conc__here;
    return l ? l->self : NULL;
}

/* ---- >>groups ------------------------------------------------------------------------------- */

CONC__PRIVATE void conc__children_details(FILE *out, const conc__wait *w)
{
    const conc_group *g = w->on;
    const char *children = g->live == 1 ? "child" : "children";
    fprintf(out, " %d %s of the group at %s", g->live, children, conc__place_of(g->scope.place));
}

static const conc__wait_kind conc__closing = {.what = "waits for",
                                              .brief = "waits for its children",
                                              .details = CONC__DETAILS(conc__children_details)};
static const conc__wait_kind conc__choosing = {.what = "waits for the next to finish of",
                                               .brief = "waits for its next child",
                                               .details = CONC__DETAILS(conc__children_details),
                                               .cancel = conc__cancel_plainly};

/* Returns the task in which the group's error originated. */
CONC__TINY conc__source conc__group_source(const conc_group *g)
{
    return conc__kept_source(g->error_name, g->error_by);
}

/* Waits until no child is alive. Yields first if there are no live or finished children. */
CONC__PRIVATE void conc__wait_until_empty(conc_loop *l, conc_group *g)
{
    if (!g->live && !g->finished)
        conc__yield_to_ready(l);
    while (g->live) {
        conc__wait w = {.task = l->self, .kind = &conc__closing, .on = g};
        conc__append(&g->empty, &w);
        conc__park(l, &w);
    }
}

/* Removes the uncollected tasks from the `finished` list, so that their handles may be reused.
 * Reports their errors, except the group's own. */
CONC__PRIVATE void conc__drop_finished(conc_loop *l, conc_group *g)
{
    while (g->finished) {
        conc_task *t = g->finished;
        conc__unlist_finished(g, t);
        if (t->failed)
            conc__report_task(l, t);
    }
}

/* Waits for the children of an open group and ends its scope. rc is the body's result. Returns the
 * group's result. */
CONC__PRIVATE int conc__group_close(conc_loop *l, conc_group *g, int rc)
{
    do {
        conc__wait_until_empty(l, g);
        conc__drop_finished(l, g);
    } while (g->live); /* on_error may have spawned children */
    bool outside = conc__cancelled_around(l, &g->scope);
    conc__scope_close(l, &g->scope);
    if (g->error) {
        conc__set_error(l->self, g->error, g->text, conc__group_source(g));
        return g->error;
    }
    bool was_cut_short = rc == -ECANCELED || g->cut_short;
    if (was_cut_short && outside)
        return -ECANCELED;
    if (was_cut_short && rc < 0) /* the group's own cancellation cut it short */
        return 0;
    return rc;
}

/* Checks whether `call` may close this group from the running task. Returns 0 if so, 1 if the group
 * was never opened, or an error. */
CONC__PRIVATE int conc__may_close(conc_loop *l, const conc_group *g, const char *call)
{
    if (!l)
        return -EPERM;
    if (!g)
        return conc__misused(-EINVAL, call, "no group", NULL);
    if (g->scope.state == CONC__CLOSED)
        return conc__misused(-EINVAL, call, "the group is already closed", g->scope.place);
    if (g->scope.state == CONC__FRESH)
        return 1;
    if (conc__scope_is_inherited(&g->scope))
        return 1; /* the parent process opened it, not this one */
    if (g->scope.task != l->self)
        return conc__misused(-EPERM, call, "the group belongs to another task", g->scope.place);
    if (l->self->scope != &g->scope)
        return conc__misused(-EINVAL, call, "something inside is still open", l->self->place);
    if (CONC__UNLIKELY(conc__gen_is_inside(l, &g->scope)))
        return conc__gen_may_not_end(&g->scope, call);
    return 0;
}

/* Aborts with a report if a handle of the group is below a call's frame on the same stack, because
 * the function that declared it has returned. Compares a handle's address before reading the
 * handle, which may have been overwritten. Checks only the first few of each list, to bound the
 * cost for large groups. */
CONC__COLD void conc__check_lost_handles(conc_loop *l, const conc_group *g, const void *frame)
{
    enum { CHECKED = 16 };
    static const char how[] = "a function that held a task's handle has returned";
    const conc_task *lists[] = {g->children, g->finished};
    uintptr_t low = (uintptr_t)l->self->stack->low, size = (uintptr_t)frame - low;
    for (size_t i = 0; i < CONC_LEN(lists); i++) {
        int left = CHECKED;
        for (const conc_task *t = lists[i]; t && left; t = t->younger, left--)
            if ((uintptr_t)t - low < size)
                conc__lost(l, l->self, l->self->place, how);
    }
}

CONC__PRIVATE CONC__CALLED int conc__group_finish(conc_group *g, int rc, const char *call)
{
    conc_loop *l = conc__in_task_of(call);
    if (l)
        conc__check_lost(l, __builtin_frame_address(0));
    int may = conc__may_close(l, g, call);
    if (may < 0)
        return may;
    if (may == 0 && (g->live_handles || g->finished))
        conc__check_lost_handles(l, g, __builtin_frame_address(0));
    if (may == 1)
        conc__group_open(l, g, "the group opened by conc_group_wait or conc_group_end");
    if (rc < 0 && !(rc == -ECANCELED && g->scope.effective)) {
        conc__group_failed(l, g, l->self, rc);
        conc__cancel_scope(l, &g->scope);
    }
    return conc__group_close(l, g, rc);
}

CONC_API int conc_group_end(conc_group *g, int rc)
{
    return conc__group_finish(g, rc, "conc_group_end");
}

CONC_API int conc_group_wait(conc_group *g) { return conc__group_finish(g, 0, "conc_group_wait"); }

CONC_API void conc_group_cancel(conc_group *g)
{
    if (g)
        conc__scope_cancel(&g->scope, "conc_group_cancel");
}

CONC_API void conc__auto_conc_group(conc_group *g)
{
    conc_loop *l = conc__of_task();
    if (!l || g->scope.state != CONC__OPEN || g->scope.task != l->self)
        return;
    if (l->self->scope != &g->scope)
        conc__lost(l, l->self, l->self->place, "the block of a CONC_AUTO group ended");
    conc__cancel_scope(l, &g->scope);
    conc__kept_error kept;
    conc__error_keep(&kept, l->self);
    conc__group_close(l, g, 0);
    if (g->error)
        conc__report(l, conc__group_source(g), g->error, g->text);
    conc__error_restore(l->self, &kept);
}

CONC_API void conc__close_quietly(void (*closes)(void *), void *object)
{
    conc_loop *l = conc__of_task();
    conc__kept_error kept;
    if (l)
        conc__error_keep(&kept, l->self);
    closes(object);
    if (l && conc__here == l)
        conc__error_restore(l->self, &kept);
}

CONC_API CONC__CALLED int conc_group_next(conc_group *g, conc_task **t)
{
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    if (!g || !t)
        return conc__misused(-EINVAL, __func__, "no group, or nowhere to put the task", NULL);
    if (g->scope.state == CONC__CLOSED)
        return conc__misused(-EINVAL, __func__, "the group is already closed", g->scope.place);
    int rc = conc__checkpoint(l);
    if (rc)
        return rc;
    conc__check_lost(l, __builtin_frame_address(0));
    if (g->scope.state == CONC__FRESH || conc__scope_is_inherited(&g->scope))
        return 0;
    if (g->scope.task->loop != l)
        return conc__misused(-EPERM, "conc_group_next", "the group belongs to another run",
                             g->scope.place);
    if (g->finished) {
        *t = g->finished;
        conc__collect(l, *t);
        conc__spend_budget(l);
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

/* Can this be an array of `count` elements of this size? Elements of size 0 need no memory. */
CONC__PRIVATE bool conc__is_array(const void *elements, size_t count, size_t size)
{
    if (!count || !size)
        return true;
    return elements && count <= (size_t)PTRDIFF_MAX / size;
}

/* The work of a gather or map, and its results. */
typedef struct conc__batch {
    conc_call *calls; /* NULL: a map, which the next four fields describe */
    conc_fn *fn;
    char *args;
    size_t size;
    int *results;
    size_t count;
    int limit;             /* maximum number of concurrent tasks; 0: no limit */
    bool keep_going, seen; /* seen: the caller can read every result, so none is reported */
} conc__batch;

CONC__PRIVATE conc_task *conc__call_spawn(conc_loop *l, conc_group *g, conc_call *call, bool seen,
                                          const char *spawned)
{
    conc_task *t = conc__task_new(l, g, NULL, call->fn, call->arg, spawned);
    if (t && call->name)
        conc__call_by(l, t, call->name);
    if (t && seen) {
        t->sink = call;
        t->sink_kind = CONC__CALL_SINK;
    }
    return t;
}

/* Spawns the task for element i. Returns NULL if memory runs out. */
CONC__PRIVATE conc_task *conc__batch_spawn(conc_loop *l, conc_group *g, const conc__batch *b,
                                           size_t i, const char *spawned)
{
    if (b->calls)
        return conc__call_spawn(l, g, &b->calls[i], b->seen, spawned);
    void *arg = b->args;
    if (b->size)
        arg = b->args + i * b->size;
    conc_task *t = conc__task_new(l, g, NULL, b->fn, arg, spawned);
    if (t && b->results) {
        t->sink = &b->results[i];
        t->sink_kind = CONC__RESULT_SINK;
    }
    return t;
}

/* Removes all children of the group, none of which has run. last: the task at the end of the ready
 * queue before the first spawn; NULL: none. */
CONC__PRIVATE void conc__unspawn(conc_loop *l, conc_group *g, conc_task *last)
{
    if (last)
        last->next = NULL;
    else
        l->ready.first = NULL;
    l->ready.last = last;
    while (g->children) {
        conc_task *t = g->children;
        conc__stack *stack = t->stack;
        conc__child_remove(g, t);
        conc__locals_release(t->locals);
        conc__stack_release(l, stack);
        l->counters.finished++;
        l->counters.most++;
    }
}

/* Spawns tasks for the elements from `next` on, as earlier tasks end. Returns 0, or the error that
 * stopped it. */
CONC__PRIVATE int conc__batch_go_on(conc_loop *l, conc_group *g, const conc__batch *b, size_t next,
                                    const char *spawned)
{
    for (size_t i = next; i < b->count; i++) {
        int rc = 0;
        if (g->live >= g->limit)
            rc = conc__wait_for_room(l, g);
        if (rc == 0 && g->scope.effective)
            rc = -ECANCELED; /* cancelled after room was granted */
        if (rc)
            return rc;
        if (!conc__batch_spawn(l, g, b, i, spawned)) {
            rc = conc__own_error(-ENOMEM);
            conc__group_failed(l, g, l->self, rc);
            return rc;
        }
    }
    return 0;
}

CONC__PRIVATE CONC__CALLED int conc__run_batch(conc_loop *l, const conc__batch *b,
                                               const char *spawned)
{
    int rc = conc__checkpoint(l);
    if (rc)
        return rc;
    if (!b->count) {
        conc__spend_budget(l);
        return 0;
    }
    bool limited = b->limit && (size_t)b->limit < b->count;
    size_t at_once = limited ? (size_t)b->limit : b->count;
    if (at_once > CONC__ADDRESS_SPACE / l->stacks.usual->size)
        return conc__own_error(-ENOMEM); /* the address space cannot hold that many stacks */
    conc_group g = {.limit = b->limit, .keep_going = b->keep_going};
    conc_task *last = l->ready.first ? l->ready.last : NULL;
    conc__check_lost(l, __builtin_frame_address(0));
    conc__group_open(l, &g, spawned);
    for (size_t i = 0; i < at_once; i++) {
        if (!conc__batch_spawn(l, &g, b, i, spawned)) {
            conc__unspawn(l, &g, last);
            conc__scope_close(l, &g.scope);
            return conc__own_error(-ENOMEM);
        }
    }
    if (limited)
        rc = conc__batch_go_on(l, &g, b, at_once, spawned);
    if (!b->keep_going)
        return conc__group_close(l, &g, rc);
    conc__wait_until_empty(l, &g);
    bool outside = conc__cancelled_around(l, &g.scope);
    conc__scope_close(l, &g.scope);
    if (g.error && !b->seen)
        conc__report(l, conc__group_source(&g), g.error, g.text);
    if (outside && g.cut_short)
        return -ECANCELED;
    return 0;
}

CONC__PRIVATE int conc__run_calls(const char *spawned, conc_call *calls, size_t n, bool keep_going,
                                  bool seen)
{
    const char *call = keep_going ? "conc_gather_all" : "conc_gather";
    conc_loop *l = conc__in_task_of(call);
    if (!l)
        return -EPERM;
    if (!conc__is_array(calls, n, sizeof *calls))
        return conc__misused(-EINVAL, call, "no calls, or an invalid number of them", spawned);
    for (size_t i = 0; i < n; i++)
        if (!calls[i].fn)
            return conc__misused(-EINVAL, call, "a call without a function", spawned);
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

CONC__PRIVATE int conc__run_map(const char *spawned, conc__batch *b, const char *call)
{
    conc_loop *l = conc__in_task_of(call);
    if (!l)
        return -EPERM;
    if (!b->fn)
        return conc__misused(-EINVAL, call, "no function", spawned);
    if (b->limit < 0)
        return conc__misused(-EINVAL, call, "the limit is negative", spawned);
    bool results_fit = !b->results || conc__is_array(b->results, b->count, sizeof *b->results);
    if (!conc__is_array(b->args, b->count, b->size) || !results_fit)
        return conc__misused(-EINVAL, call, "no elements, or an invalid number of them", spawned);
    return conc__run_batch(l, b, spawned);
}

CONC_API int conc__map(const char *spawned, conc_fn *fn, void *args, size_t count, size_t size)
{
    conc__batch b = {.fn = fn, .args = args, .count = count, .size = size};
    return conc__run_map(spawned, &b, "conc_map");
}

CONC_API int conc__map_limit(const char *spawned, int limit, conc_fn *fn, void *args, size_t count,
                             size_t size)
{
    conc__batch b = {.fn = fn, .args = args, .count = count, .size = size, .limit = limit};
    return conc__run_map(spawned, &b, "conc_map_limit");
}

CONC_API int conc__map_all(const char *spawned, conc_fn *fn, void *args, size_t count, size_t size,
                           int *results)
{
    conc__batch b = {.fn = fn,
                     .args = args,
                     .count = count,
                     .size = size,
                     .results = results,
                     .keep_going = true,
                     .seen = results != NULL};
    return conc__run_map(spawned, &b, "conc_map_all");
}

/* ---- >>locals ------------------------------------------------------------------------------- */

CONC__PRIVATE bool conc__locals_are_shared(const conc__locals *locals)
{
    return __atomic_load_n(&locals->references, __ATOMIC_ACQUIRE) > 1;
}

CONC__PRIVATE void conc__locals_share(conc__locals *locals)
{
    if (locals)
        __atomic_fetch_add(&locals->references, 1, __ATOMIC_RELAXED);
}

/* Returns a copy of the nodes on the path from `old` to the key, with the value set in the last.
 * The copy shares all other nodes. Returns NULL if memory runs out. */
CONC__PRIVATE conc__locals *conc__locals_with(const conc__locals *old, const conc_local *key,
                                              const void *value, uint64_t hash)
{
    conc__locals *top = NULL, **end = &top;
    bool found = false;
    while (!found) {
        conc__locals *copy = conc__alloc(sizeof *copy);
        if (!copy) {
            conc__locals_release(top);
            return NULL;
        }
        found = !old || old->key == key;
        *copy = (conc__locals){.references = 1, .key = key, .value = value};
        if (!found) {
            copy->key = old->key;
            copy->value = old->value;
        }
        for (unsigned way = 0; old && way < 2; way++) {
            if (found || way != (hash & 1)) {
                copy->below[way] = old->below[way];
                conc__locals_share(copy->below[way]);
            }
        }
        *end = copy;
        end = &copy->below[hash & 1];
        if (old)
            old = old->below[hash & 1];
        hash >>= 1;
    }
    return top;
}

/* Returns the root of the running task's locals, or of the locals of this thread's job. NULL:
 * neither exists. */
CONC__PRIVATE conc__locals **conc__locals_here(void)
{
    conc_loop *l = conc__here;
    if (l && l->self)
        return &l->self->locals;
    if (l || !conc__extended.job_locals)
        return NULL;
    return conc__extended.job_locals();
}

CONC_API int conc_local_set(conc_local *key, const void *value)
{
    conc__locals **at = conc__locals_here();
    if (!at)
        return conc__misused(-EPERM, "conc_local_set", "only a task may call it", NULL);
    if (!key)
        return conc__misused(-EINVAL, __func__, "no key", NULL);
    uint64_t hash = conc__address_hash(key);
    for (; *at && !conc__locals_are_shared(*at); hash >>= 1) {
        if ((*at)->key == key) {
            (*at)->value = value;
            return 0;
        }
        at = &(*at)->below[hash & 1];
    }
    conc__locals *old = *at, *now = conc__locals_with(old, key, value, hash);
    if (!now)
        return conc__own_error(-ENOMEM);
    *at = now;
    conc__locals_release(old);
    return 0;
}

CONC_API void *conc_local_get(conc_local *key)
{
    conc__locals **at = conc__locals_here();
    if (!at)
        return NULL;
    const conc__locals *locals = *at;
    for (uint64_t hash = conc__address_hash(key); locals && locals->key != key; hash >>= 1)
        locals = locals->below[hash & 1];
    if (!locals)
        return NULL;
    return (void *)(uintptr_t)locals->value;
}

/* ---- >>generators --------------------------------------------------------------------------- */

/* A generator's body runs in its consumer's task, on a stack of its own. Its waits, cancels, locals
 * and errno are those of that task. This struct is at the top of the body's stack, so it stays
 * valid even if the user's conc_gen is gone. */
typedef struct conc__gen {
    conc_gen face; /* the conc_gen passed to the body */
    struct conc__gen *next, *prev;
    conc__stack *stack, *outside; /* the body's stack; the consumer's, while the body runs */
    conc__context inner, outer;   /* the body's and the consumer's contexts */
    conc_gen_fn *fn;
    void *arg;
    const void *emitted; /* the item that the consumer copies; NULL: none */
    size_t item_size;
    conc_task *consumer; /* the task that is running the body; NULL: none */
    conc_scope *scope;   /* the consumer's innermost scope when it entered the body */
    /* the generator whose body last entered this one; NULL: a task entered it, or that generator
     * has been freed */
    struct conc__gen *used_by;
    struct conc__gen *sources, *next_source, *prev_source; /* the generators that this one uses */
    const char *opened;                                    /* "fn at file.c:12" */
    int rc, late_emits;
    bool started, ended, closing, stopped;
    bool gone; /* closed when the run ended; a conc_gen may still point to it */
} conc__gen;

enum { CONC__LATE_EMITS = 1000 }; /* emits tolerated during a close before the body is stopped */

static conc__gen conc__exhausted; /* every conc_gen whose body has finished points here */

/* Returns the generator whose body runs on this stack, or NULL if it is a task's own stack. */
CONC__PRIVATE conc__gen *conc__gen_on(conc__stack *s)
{
    if (!s->has_generator)
        return NULL;
    return (conc__gen *)(void *)conc__stack_top(s);
}

/* Returns true if a generator's body is running and s is its consumer's innermost scope, which the
 * body must not close. */
CONC__PRIVATE bool conc__gen_is_inside(const conc_loop *l, const conc_scope *s)
{
    return l->self->stack->has_generator && conc__gen_on(l->self->stack)->scope == s;
}

CONC__COLD int conc__gen_may_not_end(const conc_scope *s, const char *call)
{
    static const char why[] = "a generator's body cannot close what its consumer opened";
    return conc_fail(conc__misused(-EINVAL, call, why, s->place), "%s", why);
}

CONC__PRIVATE conc__source conc__gen_source(const conc__gen *g)
{
    return (conc__source){g->opened, g->opened};
}

/* Called after the body has returned. Reports and aborts if the body left something open on its
 * stack. */
CONC__PRIVATE void conc__gen_find_lost(conc_loop *l, const conc__gen *g)
{
    char how[CONC__NAME + CONC__TEXT];
    if (l->self->scope == g->scope && !l->lent.any)
        return;
    snprintf(how, sizeof how, "the generator %s ended", g->opened);
    if (l->self->scope != g->scope)
        conc__lost(l, l->self, l->self->place, how);
    conc__check_lent(l, l->self, g->stack, how);
}

CONC__PRIVATE void conc__gen_main(void)
{
    CONC__BOTTOM();
    conc_loop *l = conc__here;
    conc__gen *g = conc__gen_on(l->self->stack);
    conc__arrived(l, g->stack);
    g->rc = g->fn(&g->face, g->arg);
    conc__gen_find_lost(l, g);
    g->ended = true;
    conc__leaving(l, NULL, g->outside);
    conc__jump(l->scheduler.scratch, g->outer);
    __builtin_unreachable();
}

/* Is the generator open in another thread's run? */
CONC__PRIVATE bool conc__gen_is_elsewhere(const conc_loop *l, const conc_gen *face)
{
    bool open = face->body && face->body != &conc__exhausted;
    return open && conc__run_is_elsewhere(l, face->run);
}

/* Returns the generator that is open in `face`, or conc__exhausted if its body has finished.
 * Returns NULL if none is open there in this run, or if the end of the run has closed it. */
CONC__PRIVATE conc__gen *conc__gen_of(const conc_loop *l, const conc_gen *face)
{
    if (!face || face->run != l->run.number || !face->body)
        return NULL;
    if (face->body->gone)
        return NULL;
    return face->body;
}

/* Returns the error for a conc_gen that is not open in this run, or whose body is not the
 * caller. */
CONC__COLD int conc__gen_unusable(const conc_loop *l, const conc_gen *face, const char *call)
{
    if (face && conc__gen_is_elsewhere(l, face))
        return conc__misused(-EPERM, call, "the generator belongs to another run", NULL);
    return conc__misused(-EINVAL, call, "no generator is open there, or the caller is not its body",
                         NULL);
}

CONC__PRIVATE void conc__gen_link(conc_loop *l, conc__gen *g)
{
    CONC__LIST_PREPEND(l->generators.first, g, next, prev);
}

CONC__PRIVATE void conc__gen_unlink(conc_loop *l, conc__gen *g)
{
    CONC__LIST_REMOVE(l->generators.first, g, next, prev);
}

/* Records which generator's body entered g last (NULL: a task did), because the end of the run must
 * close consumers first. */
CONC__PRIVATE void conc__gen_set_user(conc__gen *g, conc__gen *user)
{
    if (g->used_by == user)
        return;
    if (g->used_by)
        CONC__LIST_REMOVE(g->used_by->sources, g, next_source, prev_source);
    g->used_by = user;
    if (user)
        CONC__LIST_PREPEND(user->sources, g, next_source, prev_source);
}

CONC__PRIVATE void conc__close_generators(conc_loop *l);

CONC_API CONC__CALLED int conc__gen_open(const char *opened, conc_gen *face, conc_gen_fn *fn,
                                         void *arg, size_t item_size)
{
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    if (!face || !fn)
        return conc__misused(-EINVAL, __func__, "no generator, or no function", opened);
    if (item_size > PTRDIFF_MAX)
        return conc__misused(-EINVAL, __func__, "an invalid item size", opened);
    if (conc__gen_of(l, face) && face->body != &conc__exhausted)
        return conc__misused(-EINVAL, __func__, "the generator is open", opened);
    if (conc__gen_is_elsewhere(l, face))
        return conc__misused(-EBUSY, "conc_gen_open", "it is open in another thread's run", NULL);
    conc__check_lost(l, __builtin_frame_address(0));
    conc__stack *stack = conc__stack_acquire(l->stacks.usual);
    if (!stack)
        return conc__own_error(-ENOMEM);
    _Static_assert(sizeof(conc__gen) <= CONC__CORE,
                   "a generator must fit in the space for a task at the top of a stack");
    char *top = conc__stack_top(stack);
    conc__gen *g = (conc__gen *)(void *)top;
    *g = (conc__gen){.face = {g, l->run.number},
                     .stack = stack,
                     .fn = fn,
                     .arg = arg,
                     .item_size = item_size,
                     .opened = opened};
    conc__gen_link(l, g);
    l->generators.count++;
    l->generators.close_all = conc__close_generators;
    stack->has_generator = true;
    conc__prepare(g->inner, stack->low, top, conc__gen_main);
    face->body = g;
    face->run = l->run.number;
    CONC__HOOK(l, opened(l, g, "a generator", conc__place_of(opened)));
    return 0;
}

/* Runs the body until it emits or ends. */
CONC__PRIVATE void conc__gen_enter(conc_loop *l, conc__gen *g)
{
    conc_task *self = l->self;
    g->started = true;
    g->emitted = NULL;
    g->consumer = self;
    g->scope = self->scope;
    conc__gen_set_user(g, conc__gen_on(self->stack));
    g->outside = self->stack;
    self->stack = g->stack;
    l->scheduler.switch_stacks(l, g->outside, g->outer, g->stack, g->inner);
    self->stack = g->outside;
    g->consumer = NULL;
}

/* Releases the stack of a finished body. Keeps it until the run ends if the body was stopped,
 * because its variables may still be referenced, or if a conc_gen may still point to it. */
CONC__PRIVATE void conc__gen_give_stack(conc_loop *l, conc__gen *g)
{
    conc__stack *stack = g->stack;
    bool is_kept = g->stopped || g->gone;
    if (is_kept) {
        stack->next = l->generators.stopped;
        l->generators.stopped = stack;
    } else {
        conc__stack_release(l, stack);
        stack->has_generator = false;
    }
    if (!g->stopped)
        CONC__HOOK(l, stack_used(l, stack, conc__gen_source(g), !is_kept));
}

/* Frees a generator whose body has ended, was stopped or never started, and returns the body's
 * result. */
CONC__PRIVATE int conc__gen_free(conc_loop *l, conc__gen *g, conc_gen *face)
{
    int rc = g->rc;
    conc__gen_unlink(l, g);
    conc__gen_set_user(g, NULL);
    while (g->sources)
        conc__gen_set_user(g->sources, NULL);
    l->generators.count--;
    CONC__HOOK(l, closed(l, g));
    g->gone = !face;
    conc__gen_give_stack(l, g);
    if (face)
        face->body = &conc__exhausted;
    return rc;
}

/* Handles a conc_gen_emit by a body that is being closed or has a scope or group open. */
CONC__COLD int conc__gen_emit_badly(conc_loop *l, conc__gen *g, const void *frame)
{
    conc__check_lost(l, frame);
    if (!g->closing)
        return conc__misused(-EINVAL, "conc_gen_emit", "a scope or group of the body is open",
                             l->self->place);
    if (++g->late_emits < CONC__LATE_EMITS)
        return -ECANCELED;
    g->stopped = true;
    l->scheduler.switch_stacks(l, g->stack, g->inner, g->outside, g->outer);
    __builtin_unreachable();
}

CONC_API CONC__CALLED int conc_gen_emit(conc_gen *face, const void *item)
{
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    conc__gen *g = conc__gen_of(l, face);
    if (!g || g == &conc__exhausted || l->self->stack != g->stack)
        return conc__gen_unusable(l, face, "conc_gen_emit");
    if (CONC__UNLIKELY(g->closing || l->self->scope != g->scope))
        return conc__gen_emit_badly(l, g, __builtin_frame_address(0));
    if (!item && g->item_size)
        return conc__misused(-EINVAL, __func__, "no item", conc__place_of(g->opened));
    g->emitted = item ? item : g;
    l->scheduler.switch_stacks(l, g->stack, g->inner, g->outside, g->outer);
    if (g->closing)
        return -ECANCELED;
    return 0;
}

CONC_API CONC__CALLED int conc_gen_next(conc_gen *face, void *item)
{
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    int rc = conc__checkpoint(l);
    if (rc)
        return rc;
    conc__spend_budget(l); /* other tasks may run and close the generator: look it up afterwards */
    conc__gen *g = conc__gen_of(l, face);
    if (!g)
        return conc__gen_unusable(l, face, "conc_gen_next");
    if (!item && g->item_size)
        return conc__misused(-EINVAL, __func__, "nowhere to put the item",
                             conc__place_of(g->opened));
    if (g == &conc__exhausted)
        return 0;
    if (g->consumer)
        return conc__misused(-EBUSY, __func__, "this or another task is inside it",
                             conc__place_of(g->opened));
    conc__check_lost(l, __builtin_frame_address(0));
    uint32_t before = l->self->errors_made;
    conc__gen_enter(l, g);
    if (g->ended) {
        rc = conc__gen_free(l, g, face);
        if (rc >= 0)
            return 0;
        return conc__pass_error_since(l, rc, before);
    }
    if (g->item_size)
        memcpy(item, g->emitted, g->item_size);
    return 1;
}

/* Closes all scopes and groups that a stopped body has left open. */
CONC__COLD void conc__gen_unwind(conc_loop *l, conc__gen *g)
{
    g->consumer = l->self; /* closing may wait, and other tasks must not enter the body */
    while (l->self->scope != g->scope) {
        conc_scope *s = l->self->scope;
        if (s->is_group)
            conc__auto_conc_group(conc__group_of(s));
        else
            conc__scope_close(l, s);
    }
    g->consumer = NULL;
}

/* Ends the body and frees the generator. Sets *stopped if the body did not return and had to be
 * stopped. Returns 0 or the body's error, which becomes the task's latest, with its text. */
CONC__PRIVATE int conc__gen_finish(conc_loop *l, conc__gen *g, conc_gen *face, bool *stopped)
{
    conc_task *self = l->self;
    const char *words = "";
    int before = self->last_rc;
    g->closing = true;
    self->last_rc = 0;
    if (g->started)
        conc__gen_enter(l, g);
    *stopped = g->stopped;
    if (*stopped) {
        conc__gen_unwind(l, g);
        g->rc = -EINVAL;
        self->last_rc = 0;
        words = "it emitted 1000 times while being closed, and was stopped";
    }
    int rc = conc__gen_free(l, g, face);
    if (rc > 0 || rc == -ECANCELED)
        rc = 0;
    if (rc && self->last_rc != rc)
        conc__set_error(self, rc, words, (conc__source){NULL, NULL});
    else if (!self->last_rc)
        self->last_rc = before;
    return rc;
}

CONC_API CONC__CALLED int conc_gen_close(conc_gen *face)
{
    conc_loop *l = conc__here;
    if (!face)
        return conc__misused(-EINVAL, __func__, "no generator", NULL);
    conc__gen *g = l ? conc__gen_of(l, face) : NULL;
    if (!g && conc__gen_is_elsewhere(l, face))
        return conc__misused(-EPERM, "conc_gen_close", "the generator belongs to another run",
                             NULL);
    if (!g)
        return 0;
    if (g == &conc__exhausted) {
        face->body = NULL;
        return 0;
    }
    if (!l->self)
        return conc__misused(-EPERM, "conc_gen_close", "only a task may call it", NULL);
    if (g->consumer)
        return conc__misused(-EBUSY, __func__, "this or another task is inside it",
                             conc__place_of(g->opened));
    conc__check_lost(l, __builtin_frame_address(0));
    bool stopped;
    conc__source source = conc__gen_source(g);
    int rc = conc__gen_finish(l, g, face, &stopped);
    if (stopped)
        conc__report(l, source, rc, conc__error_text(l->self, rc));
    face->body = NULL;
    return rc;
}

/* Closes a generator at a point where no call can return its error. The error goes to on_error, and
 * the task's latest error does not change. */
CONC__PRIVATE void conc__gen_close_unseen(conc_loop *l, conc__gen *g, conc_gen *face)
{
    conc__source source = conc__gen_source(g);
    conc__kept_error kept;
    bool stopped;
    conc__error_keep(&kept, l->self);
    int rc = conc__gen_finish(l, g, face, &stopped);
    if (rc < 0)
        conc__report(l, source, rc, conc__error_text(l->self, rc));
    conc__error_restore(l->self, &kept);
}

CONC_API void conc__auto_conc_gen(conc_gen *face)
{
    conc_loop *l = conc__of_task();
    conc__gen *g = l ? conc__gen_of(l, face) : NULL;
    if (g && g != &conc__exhausted && !g->consumer)
        conc__gen_close_unseen(l, g, face);
    else if (g && g->consumer)
        conc__report(l, conc__gen_source(g), -EBUSY, "");
    face->body = NULL;
}

/* Closes all generators at the end of a run, each before the generators that it uses. The walk
 * along used_by moves every generator it visits to the front of the list, so it visits none
 * twice. */
CONC__PRIVATE void conc__close_generators(conc_loop *l)
{
    while (l->generators.first) {
        conc__gen *g = l->generators.first;
        while (g->used_by) {
            g = g->used_by;
            conc__gen_unlink(l, g);
            conc__gen_link(l, g);
        }
        conc__gen_close_unseen(l, g, NULL);
    }
}

/* ---- >>descriptors -------------------------------------------------------------------------- */

/* -- waiting; >>types has the table of a descriptor's states -- */

CONC__FAST conc__fd *conc__fd_find(const conc_loop *l, int number)
{
    size_t block = (size_t)number / CONC__FDS;
    bool has_entry = number >= 0 && block < l->fds.block_count && l->fds.blocks[block];
    if (!has_entry)
        return NULL;
    return &l->fds.blocks[block][number % CONC__FDS];
}

CONC__PRIVATE bool conc__fds_grow(conc_loop *l, size_t blocks)
{
    if (blocks <= l->fds.block_count)
        return true;
    conc__fd **more = CONC_REALLOC(l->fds.blocks, blocks * 2 * sizeof *more);
    if (!more)
        return false;
    memset(more + l->fds.block_count, 0, (blocks * 2 - l->fds.block_count) * sizeof *more);
    l->fds.blocks = more;
    l->fds.block_count = blocks * 2;
    return true;
}

/* Returns the table's entry for the number of an open descriptor, creating it if necessary. Returns
 * NULL if memory runs out. */
CONC__PRIVATE conc__fd *conc__fd_of(conc_loop *l, int number)
{
    size_t block = (size_t)number / CONC__FDS;
    if (!conc__fds_grow(l, block + 1))
        return NULL;
    if (!l->fds.blocks[block]) {
        conc__fd *fresh = conc__alloc(CONC__FDS * sizeof *fresh);
        if (!fresh)
            return NULL;
        memset(fresh, 0, CONC__FDS * sizeof *fresh);
        for (int i = 0; i < CONC__FDS; i++)
            fresh[i].number = (int)block * CONC__FDS + i;
        l->fds.blocks[block] = fresh;
    }
    return &l->fds.blocks[block][number % CONC__FDS];
}

CONC__PRIVATE void conc__fds_free(conc_loop *l)
{
    for (size_t i = 0; i < l->fds.block_count; i++)
        CONC_FREE(l->fds.blocks[i]);
    CONC_FREE(l->fds.blocks);
}

/* Returns an id that changes when the number comes to refer to another file, provided that
 * conc__fd_note was called for the number. */
CONC__PRIVATE uint32_t conc__fd_id(const conc_loop *l, int number)
{
    const conc__fd *f = conc__fd_find(l, number);
    return f ? f->id : 0;
}

/* Creates an open descriptor's entry, so that its id changes when it is closed. Returns 0 or
 * -ENOMEM. */
CONC__PRIVATE int conc__fd_note(conc_loop *l, int number)
{
    int saved = errno;
    bool open = number >= 0 && conc__is_open(number);
    errno = saved;
    if (open && !conc__fd_of(l, number))
        return conc__own_error(-ENOMEM);
    return 0;
}

CONC__TINY bool conc__fd_is_own(const conc__fd *f)
{
    return f->state == CONC__FD_OWN || f->state == CONC__FD_EDGE;
}

/* Is the descriptor registered with the poller? */
CONC__TINY bool conc__fd_is_polled(const conc__fd *f)
{
    return f->state == CONC__FD_FOREIGN || f->state == CONC__FD_EDGE;
}

/* State of a descriptor number that all threads share. A descriptor that conc opened in one thread
 * may be closed in another, after which the number may refer to another file. */
typedef struct conc__shared_fd {
    atomic_uint closings; /* how many times conc_close was called for the number */
    atomic_uint run; /* low bits of the number of the run in which it is in state EDGE; 0: none */
} conc__shared_fd;

/* A number below CONC__COUNTED has its own entry. Larger numbers share CONC__SHARED entries, by
 * their remainders. */
enum { CONC__COUNTED = 65536, CONC__SHARED = 1024 };

static conc__shared_fd conc__shared_fds[CONC__COUNTED + CONC__SHARED];

CONC__PRIVATE conc__shared_fd *conc__shared_fd_of(int number)
{
    if (number < CONC__COUNTED)
        return &conc__shared_fds[number];
    return &conc__shared_fds[CONC__COUNTED + number % CONC__SHARED];
}

CONC__TINY atomic_uint *conc__closings_of(int number)
{
    return &conc__shared_fd_of(number)->closings;
}

/* Publishes whether this loop's poller has the number, so that another thread's conc_close notifies
 * the loop. */
CONC__PRIVATE void conc__fd_publish_edge(const conc_loop *l, const conc__fd *f, bool has)
{
    unsigned run = (unsigned)l->run.number;
    atomic_uint *at = &conc__shared_fd_of(f->number)->run;
    if (has)
        atomic_store(at, run);
    else
        atomic_compare_exchange_strong(at, &run, 0);
}

/* Returns true if no thread has called conc_close for the number since the loop last checked it. A
 * false result may be wrong if other numbers share the counter. */
CONC__PRIVATE bool conc__fd_not_closed(const conc__fd *f)
{
    return f->closings == atomic_load_explicit(conc__closings_of(f->number), memory_order_relaxed);
}

/* Is it certain, without asking the kernel, that the poller reports this descriptor's events? Debug
 * mode asks the kernel anyway, to report files that were not closed with conc_close. */
CONC__PRIVATE bool conc__fd_is_certain(const conc_loop *l, const conc__fd *f)
{
    return f->state == CONC__FD_EDGE && conc__fd_not_closed(f) && !CONC__DEBUGS(l);
}

/* Does conc__verify check the descriptor while tasks are waiting for it? */
CONC__PRIVATE bool conc__fd_is_verified(const conc_loop *l, const conc__fd *f)
{
    bool foreign = f->state == CONC__FD_FOREIGN || f->state == CONC__FD_REFUSED;
    return foreign || (f->state == CONC__FD_EDGE && CONC__DEBUGS(l));
}

CONC__TINY bool conc__fd_is_listed(const conc_loop *l, const conc__fd *f)
{
    return f->prev || l->fds.watched == f;
}

CONC__PRIVATE void conc__fd_unlist(conc_loop *l, conc__fd *f)
{
    CONC__QUEUE_REMOVE(l->fds.watched, l->fds.last_watched, f, next, prev);
    f->next = f->prev = NULL;
    l->fds.watched_count--;
    l->fds.verify_count -= conc__fd_is_verified(l, f);
}

CONC__FAST void conc__fd_list(conc_loop *l, conc__fd *f)
{
    CONC__QUEUE_APPEND(l->fds.watched, l->fds.last_watched, f, next, prev);
    l->fds.watched_count++;
    l->fds.verify_count += conc__fd_is_verified(l, f);
}

CONC__TINY void conc__fd_last(conc_loop *l, conc__fd *f)
{
    conc__fd_unlist(l, f);
    conc__fd_list(l, f);
}

/* Returns the events, except hang-ups, that tasks are waiting for. */
CONC__PRIVATE int conc__fd_wanted(const conc__fd *f)
{
    enum { BOTH = CONC_READABLE | CONC_WRITABLE };
    if (f->waits[BOTH].first)
        return BOTH;
    int wanted = 0;
    if (f->waits[CONC_READABLE].first)
        wanted |= CONC_READABLE;
    if (f->waits[CONC_WRITABLE].first)
        wanted |= CONC_WRITABLE;
    return wanted;
}

/* Is a task waiting for an event or a hang-up of the descriptor? */
CONC__PRIVATE bool conc__fd_has_waits(const conc__fd *f)
{
    return conc__fd_wanted(f) || f->waits[0].first;
}

/* Called when a wait for f has ended. Removes f from the list of watched descriptors if no task is
 * waiting for it any more. */
CONC__PRIVATE void conc__fd_left(conc_loop *l, conc__fd *f)
{
    bool waits = conc__fd_has_waits(f) || f->waits[CONC__PAUSING].first;
    if (!waits && conc__fd_is_listed(l, f))
        conc__fd_unlist(l, f);
}

CONC__PRIVATE void conc__fd_append(conc_loop *l, conc__fd *f, conc__wait *w, int list)
{
    w->on = f;
    if (!conc__fd_is_listed(l, f))
        conc__fd_list(l, f);
    conc__append(&f->waits[list], w);
}

/* Wakes all tasks in one of f's lists, and reduces each wait's value to the events that are
 * ready. */
CONC__PRIVATE void conc__fd_wake(conc_loop *l, conc__fd *f, int list, int ready, int result)
{
    conc__waits *waits = &f->waits[list];
    while (waits->first) {
        waits->first->value &= ready;
        conc__wake(l, waits->first, result);
    }
}

/* Forgets a file that the number no longer refers to. Its waiters get -EBADF. */
CONC__PRIVATE void conc__fd_gone(conc_loop *l, conc__fd *f)
{
    f->id++;
    for (int list = 0; list < CONC__FD_LISTS; list++)
        conc__fd_wake(l, f, list, 0, -EBADF);
    conc__fd_left(l, f);
    if (f->state == CONC__FD_EDGE)
        conc__fd_publish_edge(l, f, false);
    f->state = CONC__FD_UNKNOWN;
    f->tcp = f->drained = f->failed = f->special = false;
    f->read_error = f->write_error = 0;
}

/* Like conc__fd_gone, for a file that was closed without a conc_close on this loop. Debug mode
 * reports it if conc opened the file and no other thread's conc_close closed it. */
CONC__COLD void conc__fd_lost(conc_loop *l, conc__fd *f)
{
    char what[64];
    snprintf(what, sizeof what, "descriptor %d, which conc opened", f->number);
    if (conc__fd_is_own(f) && conc__fd_not_closed(f))
        conc__misused(-EBADF, what, "it was closed, but not with conc_close", NULL);
    conc__fd_gone(l, f);
}

/* Registers a socket that conc opened, and returns its number. If memory runs out, closes the
 * socket and returns -ENOMEM. */
CONC__PRIVATE int conc__fd_adopt(conc_loop *l, int number, bool tcp)
{
    conc__fd *f = conc__fd_of(l, number);
    if (!f) {
        close(number);
        return -ENOMEM;
    }
    conc__fd_lost(l, f);
    f->closings = atomic_load(conc__closings_of(number));
    f->state = CONC__FD_OWN;
    f->tcp = tcp;
    return number;
}

/* Like conc__fd_confirm, for a file that conc opened and the poller does not have. If the number
 * shares its counter with others, one of those may be the one that was closed; in that case the
 * loop merely forgets what it knew about the file. */
CONC__PRIVATE bool conc__fd_own_confirm(conc_loop *l, conc__fd *f)
{
    if (conc__fd_not_closed(f))
        return true;
    if (f->number < CONC__COUNTED) {
        conc__fd_gone(l, f);
        return false;
    }
    f->state = CONC__FD_UNKNOWN;
    return true;
}

/* Does the number still refer to the same file? If not, its waiters get -EBADF. */
CONC__PRIVATE bool conc__fd_confirm(conc_loop *l, conc__fd *f)
{
    if (f->state == CONC__FD_UNKNOWN || conc__fd_is_certain(l, f))
        return true;
    if (f->state == CONC__FD_OWN)
        return conc__fd_own_confirm(l, f);
    int saved = errno;
    unsigned closings = atomic_load(conc__closings_of(f->number));
    bool same;
    if (f->state == CONC__FD_REFUSED)
        same = conc__inode_of(f->number) == f->inode;
    else
        same = l->poller.backend->confirm(l, f);
    if (same)
        f->closings = closings;
    else
        conc__fd_lost(l, f);
    errno = saved;
    return same;
}

/* Like conc__fd_confirm. If f is FOREIGN, also arms the poller for these events. */
CONC__PRIVATE bool conc__fd_arm(conc_loop *l, conc__fd *f, int events)
{
    if (f->state != CONC__FD_FOREIGN)
        return conc__fd_confirm(l, f);
    int saved = errno;
    bool same = l->poller.backend->arm(l, f, events | conc__fd_wanted(f));
    if (!same)
        conc__fd_gone(l, f);
    errno = saved;
    return same;
}

/* Called when the kernel reports that f is ready. special: the report may include an end of file,
 * urgent data or an error. */
CONC__PRIVATE void conc__fd_event(conc_loop *l, conc__fd *f, int ready, bool special)
{
    f->special |= special;
    f->drained = false;
    if (ready & CONC__HANG_UP)
        conc__fd_wake(l, f, 0, 0, 0);
    for (int list = CONC_READABLE; list < CONC__PAUSING; list++)
        if (list & ready)
            conc__fd_wake(l, f, list, ready, 0);
    conc__fd_left(l, f);
    if (f->state == CONC__FD_FOREIGN && conc__fd_has_waits(f))
        conc__fd_arm(l, f, 0);
}

/* Adds f, which is UNKNOWN or OWN, to the poller. Returns the same values as conc__fd_watch. */
CONC__PRIVATE int conc__fd_add(conc_loop *l, conc__fd *f, int events)
{
    if (f->state == CONC__FD_OWN)
        conc__fd_own_confirm(l, f);
    /* publish it first, so that another thread's conc_close notifies this loop */
    if (f->state == CONC__FD_OWN)
        conc__fd_publish_edge(l, f, true);
    int rc = l->poller.backend->add(l, f, events);
    if (rc < 0 || (rc == 1 && events))
        return rc;
    if (rc == 1) {
        f->state = CONC__FD_REFUSED;
        f->inode = conc__inode_of(f->number);
    } else if (f->state == CONC__FD_OWN) {
        f->state = CONC__FD_EDGE;
    } else {
        f->state = CONC__FD_FOREIGN;
    }
    if (conc__fd_is_listed(l, f)) /* a task is pausing */
        l->fds.verify_count += conc__fd_is_verified(l, f);
    return 0;
}

/* The slow path of conc__fd_watch. */
CONC__PRIVATE int conc__fd_watch_slowly(conc_loop *l, int number, int events, conc__fd **out)
{
    conc__fd *f = *out;
    if (!f) {
        if (number < 0 || !conc__is_open(number))
            return -EBADF;
        f = *out = conc__fd_of(l, number);
        if (!f)
            return -ENOMEM;
    }
    if (conc__fd_is_polled(f) && conc__fd_arm(l, f, events))
        return 0;
    if (f->state == CONC__FD_REFUSED && conc__fd_confirm(l, f))
        return events != 0;
    return conc__fd_add(l, f, events);
}

/* Makes the poller report the events. Returns 0 if the caller may add a wait to *out's lists, 1 if
 * the file is always ready for these events, or an error. */
CONC__PRIVATE int conc__fd_watch(conc_loop *l, int number, int events, conc__fd **out)
{
    conc__fd *f = *out = conc__fd_find(l, number);
    if (f && conc__fd_is_certain(l, f))
        return 0;
    int saved = errno, rc = conc__fd_watch_slowly(l, number, events, out);
    errno = saved;
    return rc;
}

CONC__PRIVATE bool conc__fd_cancel(conc__wait *w)
{
    conc__fd *f = (conc__fd *)(uintptr_t)w->on;
    conc__unlink(w);
    conc__fd_left(conc__here, f);
    return true;
}

CONC__PRIVATE void conc__fd_details(FILE *out, const conc__wait *w)
{
    static const char *const what[] = {"hang up", "be readable", "be writable",
                                       "be readable or writable"};
    fprintf(out, " descriptor %d to %s", ((const conc__fd *)w->on)->number, what[w->value & 3]);
}

static const conc__wait_kind conc__watching = {.what = "waits for",
                                               .brief = "waits for a descriptor",
                                               .details = CONC__DETAILS(conc__fd_details),
                                               .cancel = conc__fd_cancel};

/* Called when a wait for f has ended. Returns the events that occurred, or -EBADF if the number now
 * refers to another file. */
CONC__PRIVATE int conc__fd_got(conc_loop *l, conc__fd *f, uint32_t id, const conc__wait *w)
{
    if (f->id != id || !conc__fd_confirm(l, f))
        return -EBADF;
    return w->value;
}

/* Waits until the descriptor is ready for any of the events. Returns those that occurred, or an
 * error. */
CONC__PRIVATE CONC__CALLED int conc__fd_park(conc_loop *l, int number, int events)
{
    conc__fd *f = NULL;
    conc__check_lost(l, __builtin_frame_address(0));
    int rc = conc__checkpoint(l);
    if (rc == 0)
        rc = conc__fd_watch(l, number, events, &f);
    if (rc == 1)
        return events;
    if (rc)
        return rc;
    conc__wait w = {.task = l->self, .kind = &conc__watching, .value = events};
    uint32_t id = f->id;
    conc__fd_append(l, f, &w, events);
    rc = conc__park(l, &w);
    if (rc)
        return rc;
    return conc__fd_got(l, f, id, &w);
}

/* Makes these events end the wait w as well. */
CONC__PRIVATE void conc__fd_widen(conc_loop *l, conc__wait *w, int events)
{
    conc__fd *f = (conc__fd *)(uintptr_t)w->on;
    conc__unlink(w);
    w->value |= events;
    conc__append(&f->waits[w->value], w);
    conc__fd_arm(l, f, events);
}

/* Ends the wait w for a descriptor as if the descriptor were ready. */
CONC__PRIVATE void conc__fd_wake_one(conc_loop *l, conc__wait *w)
{
    conc__fd *f = (conc__fd *)(uintptr_t)w->on;
    conc__wake(l, w, 0);
    conc__fd_left(l, f);
}

/* Polls a descriptor once, without waiting. Returns those of the events that are ready, 0 if none,
 * or an error. If `events` is 0, polls for CONC__HANG_UP. */
CONC__PRIVATE int conc__fd_ready(int number, int events)
{
    struct pollfd p = {number, conc__poll_wanted(events), 0};
    int n, saved = errno, wanted = events ? events : CONC__HANG_UP;
    do
        n = conc__poll_call(&p, 1, 0);
    while (n < 0 && errno == EINTR);
    int rc = n < 0 ? -errno : conc__poll_got(&p) & wanted;
    errno = saved;
    if (p.revents & POLLNVAL)
        return -EBADF;
    return rc;
}

typedef struct conc__pause {
    conc__wait wait;
    conc__timer timer;
} conc__pause;

CONC__PRIVATE void conc__pause_over(conc__timer *t)
{
    conc__pause *p = (conc__pause *)(void *)((char *)t - offsetof(conc__pause, timer));
    conc_loop *l = conc__here;
    conc__fd_wake_one(l, &p->wait);
    l->clock.retried = l->clock.is_virtual;
}

CONC__PRIVATE void conc__pause_won(conc__wait *w)
{
    conc__disarm(conc__here, &((conc__pause *)(void *)w)->timer);
}

CONC__PRIVATE bool conc__pause_cancel(conc__wait *w)
{
    conc__pause_won(w);
    return conc__fd_cancel(w);
}

static const conc__wait_kind conc__pausing = {.what = "pauses, and waits for",
                                              .brief = "pauses before it tries a descriptor again",
                                              .details = CONC__DETAILS(conc__fd_details),
                                              .cancel = conc__pause_cancel,
                                              .won = conc__pause_won};

/* Sleeps for ns nanoseconds. Returns early, with -EBADF, if the descriptor is closed. */
CONC__PRIVATE int conc__fd_pause(conc_loop *l, conc__fd *f, int events, int64_t ns)
{
    int rc = conc__checkpoint(l);
    if (rc)
        return rc;
    conc__pause p = {.wait = {.task = l->self, .kind = &conc__pausing, .value = events}};
    uint32_t id = f->id;
    conc__fd_append(l, f, &p.wait, CONC__PAUSING);
    conc__arm(l, &p.timer, conc__later(conc__time(l), ns), conc__pause_over);
    rc = conc__park(l, &p.wait);
    if (rc)
        return rc;
    return conc__fd_got(l, f, id, &p.wait);
}

/* What a call remembers about its descriptor from one try to the next. */
typedef struct conc__retry {
    int ready;     /* the events that the last wake-up reported */
    int64_t pause; /* how long the call paused before its last try, in nanoseconds */
} conc__retry;

/* Waits before a call retries; *p is all zero before the first wait. Returns the events, or an
 * error.
 *
 * A descriptor may be reported ready even though the call would block: it has messages in its error
 * queue, its peer's buffer is full, or it is always ready. Any further wait would end at once. So
 * if the call would still block after a wake-up, and poll(2) still reports the event, the call
 * pauses. */
CONC__FAST int conc__fd_await(conc_loop *l, int number, int events, conc__retry *p)
{
    enum { LEAST = 1000000, MOST = 64000000 };
    conc__fd *f = conc__fd_find(l, number);
    int woken_for = p->ready & events, seeming = 0, rc;
    if (f && woken_for)
        seeming = conc__fd_ready(number, woken_for);
    if (seeming < 0)
        return seeming;
    /* Another reader has taken the reported data, and more has arrived since. Events do not end a
     * pause, so the next try must ask the kernel. */
    if (seeming & CONC_READABLE)
        f->drained = false;
    if (seeming) {
        p->pause = p->pause ? p->pause * 2 : LEAST;
        if (p->pause > MOST)
            p->pause = MOST;
        rc = conc__fd_pause(l, f, seeming, p->pause);
    } else {
        p->pause = 0;
        rc = conc__fd_park(l, number, events);
    }
    p->ready = rc > 0 ? rc : 0;
    return rc;
}

CONC_API CONC__CALLED int conc_wait_fd(int fd, int events)
{
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    if (events & ~(CONC_READABLE | CONC_WRITABLE))
        return conc__misused(-EINVAL, __func__, "unknown events", NULL);
    if (CONC__UNLIKELY(fd < 0))
        return conc__own_error(-EBADF);
    int rc = conc__checkpoint(l);
    if (rc)
        return rc;
    conc__check_lost(l, __builtin_frame_address(0));
    rc = conc__fd_ready(fd, events);
    if (rc == 0) {
        rc = conc__fd_park(l, fd, events);
    } else {
        conc__spend_budget(l);
        if (rc > 0)
            rc &= events;
    }
    if (CONC__UNLIKELY(rc < 0))
        return conc__system_failed(rc, NULL);
    return rc;
}

/* Posted to a loop when a conc_close in another thread may have closed a file that the loop's tasks
 * are waiting for. */
typedef struct conc__far_close {
    conc__post post;
    int number;
} conc__far_close;

CONC__PRIVATE void conc__closed_elsewhere(conc__post *p)
{
    conc_loop *l = conc__here;
    conc__fd *f = conc__fd_find(l, ((conc__far_close *)(void *)p)->number);
    CONC_FREE(p);
    if (!f || f->state != CONC__FD_EDGE)
        return;
    /* if the close is certain, do not ask the kernel: a new file may have reused the number */
    bool certain = f->number < CONC__COUNTED && !conc__fd_not_closed(f);
    if (certain || !l->poller.backend->confirm(l, f))
        conc__fd_gone(l, f);
}

/* Notifies the run whose poller has the number, unless that run has ended or is l's own. If memory
 * runs out, the run's tasks keep waiting. */
CONC__COLD void conc__notify_close(const conc_loop *l, unsigned run, int number)
{
    if (!run || (l && run == (unsigned)l->run.number))
        return;
    conc__far_close *c = conc__alloc(sizeof *c);
    if (!c)
        return;
    *c = (conc__far_close){{NULL, conc__closed_elsewhere}, number};
    int rc = -ESHUTDOWN;
    pthread_mutex_lock(&conc__live_runs.mutex);
    for (conc_loop *to = conc__live_runs.first; to && rc; to = to->run.next)
        if ((unsigned)to->run.number == run)
            rc = conc__post_to(to, &c->post);
    pthread_mutex_unlock(&conc__live_runs.mutex);
    if (rc)
        CONC_FREE(c);
}

CONC_API int conc_close(int fd)
{
    conc_loop *l = conc__here;
    int saved = errno;
    if (fd < 0)
        return conc__own_error(-EBADF);
    conc__fd *f = l ? conc__fd_find(l, fd) : NULL;
    /* if another process shares the file, its events would continue after the close */
    if (f && conc__fd_is_polled(f))
        l->poller.backend->remove(l, f);
    if (f)
        conc__fd_gone(l, f);
    atomic_fetch_add(conc__closings_of(fd), 1);
    atomic_uint *run = &conc__shared_fd_of(fd)->run;
    unsigned before = atomic_load(run);
    int rc = close(fd);
    if (rc)
        rc = errno == EINTR ? 0 : -errno;
    unsigned after = atomic_load(run);
    if (CONC__UNLIKELY(before))
        conc__notify_close(l, before, fd);
    /* a run has since registered this file, or a new one with the same number */
    if (CONC__UNLIKELY(after != before))
        conc__notify_close(l, after, fd);
    errno = saved;
    return conc__system_failed(rc, NULL);
}

/* -- reading and writing -- */

/* The arguments of a call that receives or sends with one system call. */
typedef struct conc__io {
    int fd;
    int flags; /* MSG_... flags of a socket call */
    bool any;  /* any file is allowed, as with read(2) and write(2), not only a socket */
    int count; /* number of buffers in `parts` */
    const struct iovec *parts;
    struct sockaddr *address; /* NULL: none */
    socklen_t *address_size;
} conc__io;

/* Tries once to receive or send. Returns a count, or an error: -EAGAIN if the call would block. */
typedef ssize_t conc__io_fn(conc_loop *l, const conc__io *io);

#ifdef IOV_MAX
enum { CONC__PARTS = IOV_MAX };
#else
enum { CONC__PARTS = 1024 }; /* Linux's; its headers define IOV_MAX only for X/Open */
#endif

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0
#endif

CONC__PRIVATE bool conc__io_is_empty(const conc__io *io)
{
    for (int i = 0; i < io->count; i++)
        if (io->parts[i].iov_len)
            return false;
    return true;
}

/* Turns a system call's -1 and errno into an error, and restores errno. */
static inline ssize_t conc__io_result(conc_loop *l, ssize_t n, int saved)
{
    if (CONC__UNLIKELY(n < 0)) {
        n = -*l->errno_at;
        if (n == -EWOULDBLOCK)
            n = -EAGAIN;
        *l->errno_at = saved;
    }
    return n;
}

/* Discards the SIGPIPE that a write to a broken pipe left pending, because the run blocks that
 * signal. If one was already pending when the run began, leaves it pending. */
CONC__PRIVATE void conc__drain_pipe_signal(const conc_loop *l)
{
    if (!l->signals.pipe_was_pending)
        conc__signal_discard(SIGPIPE);
}

/* Returns, once, the error that ended an earlier call after it had transferred some bytes. Returns
 * 0 if the number now refers to another file. */
CONC__COLD ssize_t conc__io_kept_error(conc_loop *l, conc__fd *f, int *error)
{
    int rc = 0;
    if (conc__fd_confirm(l, f))
        rc = *error;
    *error = 0;
    f->failed = f->read_error || f->write_error;
    return rc;
}

/* Keeps a socket's error for the next call, because the kernel reports it only once. Does not keep
 * a cancellation, which concerns only the task, nor -EBADF after a close. Keeps no error for other
 * kinds of file: their calls fail again anyway, and a program may close such a file and open
 * another under the same number without the loop noticing. */
CONC__PRIVATE void conc__io_keep_error(conc_loop *l, int fd, int events, int rc)
{
    conc__fd *f;
    struct stat st;
    if (rc == -ECANCELED || rc == -EBADF)
        return;
    if (fstat(fd, &st) || !S_ISSOCK(st.st_mode))
        return;
    if (conc__fd_watch(l, fd, 0, &f))
        return;
    if (events == CONC_READABLE)
        f->read_error = rc;
    else
        f->write_error = rc;
    f->failed = true;
}

/* -- files in blocking mode that are not sockets. Other processes may share them, so conc leaves
 * their flags unchanged. For pipes, Linux has a non-blocking call (RWF_NOWAIT). Terminals and named
 * pipes are opened a second time. All other files are checked with poll(2) first, and at most
 * PIPE_BUF bytes are written at a time. That blocks the loop only if another process takes the
 * bytes or the room first. -- */

enum { CONC__READS = O_RDONLY, CONC__WRITES = O_WRONLY };

/* Does the error mean that the process or the system has run out of a resource? */
CONC__PRIVATE bool conc__is_lack(int rc)
{
    switch (rc) {
    case -EMFILE:
    case -ENFILE:
    case -ENOBUFS:
    case -ENOMEM:
#ifdef ENOSR
    case -ENOSR:
#endif
        return true;
    default: return false;
    }
}

enum { CONC__NO_WAIT = 8, CONC__SYNC = 2 }; /* RWF_NOWAIT; RWF_DSYNC, which only affects disks */

/* Does the system support CONC__NO_WAIT? Linux before 4.13 reports EINVAL both for an unknown flag
 * and for a call that can never succeed. */
CONC__COLD bool conc__knows_no_wait(void)
{
    enum { YES = 1, NO };
    static atomic_int known;
    char byte;
    struct iovec part = {&byte, 1};
    int answer = atomic_load_explicit(&known, memory_order_relaxed), ends[2];
    if (answer || conc__pipe(ends))
        return answer == YES;
    conc__io_flagged(ends[0], &part, 1, CONC__READS, CONC__NO_WAIT);
    bool knows = errno == EAGAIN || errno == EOPNOTSUPP;
    answer = knows ? YES : NO;
    close(ends[0]);
    close(ends[1]);
    atomic_store_explicit(&known, answer, memory_order_relaxed);
    return answer == YES;
}

/* Tries once without blocking, and stores the result in *n. Returns false if the file or the system
 * does not support that. */
CONC__PRIVATE bool conc__io_no_wait(const conc__io *io, int access, ssize_t *n)
{
    *n = conc__io_flagged(io->fd, io->parts, io->count, access, CONC__NO_WAIT);
    int error = errno;
    bool wrong_file = error == EOPNOTSUPP || error == ESPIPE;
    if (*n < 0 && error == EINVAL)
        wrong_file = !conc__knows_no_wait();
    errno = error;
    return *n >= 0 || (!wrong_file && !conc__refused(error));
}

/* Opens fd's named pipe or terminal a second time, in non-blocking mode. Returns -1 if that is
 * impossible, as for a pseudo-terminal's master. */
CONC__PRIVATE int conc__io_reopen(int fd, int access, const struct stat *st)
{
    char path[64];
    bool terminal = S_ISCHR(st->st_mode) && isatty(fd);
    if (!terminal && !S_ISFIFO(st->st_mode))
        return -1;
    if (terminal && conc__is_terminal_master(fd))
        return -1;
    if (!conc__path_of(fd, path, sizeof path))
        return -1;
    return open(path, access | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
}

CONC__PRIVATE const struct iovec *conc__io_first_part(const conc__io *io)
{
    const struct iovec *part = io->parts;
    while (!part->iov_len)
        part++;
    return part;
}

/* Is this a write to an eventfd whose counter has no room for the number being written? poll(2)
 * only reports whether there is room for 1. For the largest number, which is invalid, the write
 * returns an error. */
CONC__PRIVATE bool conc__io_is_full_eventfd(const conc__io *io, const struct stat *st)
{
    uint64_t more, count = 0;
    const struct iovec *part = conc__io_first_part(io);
    if (st->st_mode & S_IFMT || part->iov_len < sizeof more)
        return false;
    memcpy(&more, part->iov_base, sizeof more);
    int rc = conc__eventfd_count(io->fd, &count);
    if (conc__is_lack(rc))
        return more > 1; /* unknown: let the caller retry */
    return rc == 0 && more != UINT64_MAX && more > UINT64_MAX - 1 - count;
}

CONC__PRIVATE ssize_t conc__io_plain(const conc__io *io, int fd, int access)
{
    if (access == CONC__READS)
        return readv(fd, io->parts, io->count);
    return writev(fd, io->parts, io->count);
}

/* Reads or writes the first `count` buffers of a file that poll(2) reports as ready. A device may
 * handle the buffers one by one, and block at the second. Linux refuses any flag for such a device;
 * in that case, transfers only the first buffer. */
CONC__PRIVATE ssize_t conc__io_parts(const conc__io *io, int count, int access)
{
    const struct iovec *part = conc__io_first_part(io);
    if (count > 1) {
        ssize_t n = conc__io_flagged(io->fd, io->parts, count, access, CONC__SYNC);
        bool refused = errno == EOPNOTSUPP || errno == EINVAL || conc__refused(errno);
        if (n >= 0 || !refused)
            return n;
    }
    if (access == CONC__READS)
        return read(io->fd, part->iov_base, part->iov_len);
    return write(io->fd, part->iov_base, part->iov_len);
}

/* Writes at most `most` bytes, for which poll(2) has reported room: as many whole buffers as
 * possible, or a piece of the first. */
CONC__PRIVATE ssize_t conc__io_write_some(const conc__io *io, size_t most)
{
    size_t n = 0;
    int i = 0;
    while (i < io->count && io->parts[i].iov_len <= most - n)
        n += io->parts[i++].iov_len;
    if (n)
        return conc__io_parts(io, i, CONC__WRITES);
    return write(io->fd, conc__io_first_part(io)->iov_base, most);
}

/* Reads only the bytes that a terminal already has, because in raw mode a read may wait until all
 * requested bytes have arrived. */
CONC__PRIVATE ssize_t conc__io_read_some(const conc__io *io)
{
    const struct iovec *part = conc__io_first_part(io);
    int there = 0;
    if (ioctl(io->fd, FIONREAD, &there) || there <= 0)
        return conc__io_parts(io, io->count, CONC__READS);
    size_t most = part->iov_len, n = (size_t)there;
    if (n > most)
        n = most;
    return read(io->fd, part->iov_base, n);
}

/* Reads or writes a file that does not support RWF_NOWAIT. */
CONC__PRIVATE ssize_t conc__io_polled(const conc__io *io, int access, const struct stat *st)
{
    bool writes = access == CONC__WRITES;
    int ready = conc__fd_ready(io->fd, writes ? CONC_WRITABLE : CONC_READABLE);
    bool full = ready > 0 && writes && conc__io_is_full_eventfd(io, st);
    if (ready <= 0 || full) {
        errno = ready < 0 ? -ready : EAGAIN;
        return -1;
    }
    int fd = conc__io_reopen(io->fd, access, st);
    if (fd >= 0) {
        ssize_t n = conc__io_plain(io, fd, access);
        int saved = errno;
        close(fd);
        errno = saved;
        return n;
    }
    bool terminal = S_ISCHR(st->st_mode) && isatty(io->fd);
    if (writes)
        return conc__io_write_some(io, terminal ? 1 : PIPE_BUF);
    if (terminal)
        return conc__io_read_some(io);
    return conc__io_parts(io, io->count, access);
}

CONC__PRIVATE ssize_t conc__io_blocking(const conc__io *io, int access)
{
    struct stat st = {0};
    ssize_t n;
    bool known = fstat(io->fd, &st) == 0;
    if (!known && !conc__refused(errno))
        return -1;
    if (S_ISREG(st.st_mode) || S_ISBLK(st.st_mode) || S_ISDIR(st.st_mode))
        return conc__io_plain(io, io->fd, access);
    bool tried = conc__io_no_wait(io, access, &n);
    bool perhaps_on_disk = !known && n < 0 && errno == EAGAIN; /* if so, ask poll(2) too */
    if (tried && !perhaps_on_disk)
        return n;
    return conc__io_polled(io, access, &st);
}

/* -- one try -- */

/* Tries once to read or write a file that is not a socket. */
CONC__PRIVATE ssize_t conc__io_file(const conc__io *io, int access)
{
    int flags = fcntl(io->fd, F_GETFL);
    if (flags < 0 && conc__refused(errno))
        flags = O_RDWR; /* a sandbox refused the call, so the file may be in blocking mode */
    if (flags < 0)
        return -1;
    if ((flags & O_ACCMODE) != access && (flags & O_ACCMODE) != O_RDWR) {
        errno = EBADF; /* a wait would never end */
        return -1;
    }
    if (flags & O_NONBLOCK || conc__io_is_empty(io))
        return conc__io_plain(io, io->fd, access);
    return conc__io_blocking(io, access);
}

/* Returns the header for sendmsg and recvmsg. */
static inline struct msghdr conc__io_message(const conc__io *io)
{
    struct msghdr message = {.msg_iov = (struct iovec *)(uintptr_t)io->parts};
    message.msg_iovlen = (__typeof__(message.msg_iovlen))io->count;
    return message;
}

static inline ssize_t conc__io_recv(const conc__io *io)
{
    if (io->count == 1)
        return recvfrom(io->fd, io->parts->iov_base, io->parts->iov_len, io->flags | MSG_DONTWAIT,
                        io->address, io->address_size);
    struct msghdr message = conc__io_message(io);
    return recvmsg(io->fd, &message, io->flags | MSG_DONTWAIT);
}

static inline ssize_t conc__io_send_call(const conc__io *io)
{
    int flags = io->flags | MSG_DONTWAIT | MSG_NOSIGNAL;
    if (io->count == 1)
        return sendto(io->fd, io->parts->iov_base, io->parts->iov_len, flags, io->address,
                      io->address ? *io->address_size : 0);
    struct msghdr message = conc__io_message(io);
    return sendmsg(io->fd, &message, flags);
}

#ifdef __APPLE__
/* Sends on a stream socket in blocking mode, at most as many bytes as poll(2) reports room for:
 * such a socket blocks despite MSG_DONTWAIT. */
CONC__COLD ssize_t conc__io_send_some(const conc__io *io)
{
    int least = 1, ready = conc__fd_ready(io->fd, CONC_WRITABLE);
    socklen_t size = sizeof least;
    if (ready <= 0) {
        errno = ready < 0 ? -ready : EAGAIN;
        return -1;
    }
    if (getsockopt(io->fd, SOL_SOCKET, SO_SNDLOWAT, &least, &size) || least < 1)
        least = 1;
    struct iovec part = *conc__io_first_part(io);
    conc__io some = *io;
    if (part.iov_len > (size_t)least)
        part.iov_len = (size_t)least;
    some.parts = &part;
    some.count = 1;
    return conc__io_send_call(&some);
}

CONC__PRIVATE ssize_t conc__io_send(const conc__io *io)
{
    int kind = 0, flags = fcntl(io->fd, F_GETFL);
    socklen_t size = sizeof kind;
    bool blocks = flags >= 0 && !(flags & O_NONBLOCK) && !conc__io_is_empty(io) &&
                  getsockopt(io->fd, SOL_SOCKET, SO_TYPE, &kind, &size) == 0;
    if (blocks && kind == SOCK_STREAM)
        return conc__io_send_some(io);
    return conc__io_send_call(io);
}
#else
static inline ssize_t conc__io_send(const conc__io *io) { return conc__io_send_call(io); }
#endif

/* The slow path of conc__receive, for any file. */
CONC__PRIVATE ssize_t conc__receive_slowly(conc_loop *l, const conc__io *io)
{
    conc__fd *f = conc__fd_find(l, io->fd);
    if (f && f->failed && f->read_error) {
        ssize_t rc = conc__io_kept_error(l, f, &f->read_error);
        if (rc)
            return rc;
    }
    bool nothing = io->any && conc__io_is_empty(io); /* a socket call would consume a datagram */
    int saved = errno;
    ssize_t n;
    do {
        bool no_socket = nothing;
        n = -1;
        if (!nothing) {
            n = conc__io_recv(io);
            no_socket = n < 0 && errno == ENOTSOCK;
            if (no_socket && f && conc__fd_is_own(f))
                conc__fd_lost(l, f); /* the number was reused */
        }
        if (no_socket && io->any)
            n = conc__io_file(io, CONC__READS);
    } while (n < 0 && errno == EINTR);
    n = conc__io_result(l, n, saved);
    errno = saved; /* the socket call may have changed it */
    return n;
}

/* Receives bytes without waiting. A TCP connection that returned fewer bytes than requested has no
 * more until the poller reports an event (epoll(7) says so). Until then, conc makes no system call
 * for it, which saves a server one call per request. */
static inline ssize_t conc__receive(conc_loop *l, const conc__io *io)
{
    conc__fd *f = conc__fd_find(l, io->fd);
    size_t room = 0;
    if (io->count == 1)
        room = io->parts->iov_len;
    if (CONC__UNLIKELY(!f || !conc__fd_is_own(f) || f->failed || !room))
        return conc__receive_slowly(l, io);
    if (f->drained && !io->flags)
        return -EAGAIN;
    int saved = *l->errno_at;
    ssize_t n;
    do
        n = conc__io_recv(io);
    while (n < 0 && *l->errno_at == EINTR);
    n = conc__io_result(l, n, saved);
    if (CONC__UNLIKELY(n == -ENOTSOCK))
        return conc__receive_slowly(l, io);
    if (f->tcp && f->state == CONC__FD_EDGE && !f->special && !io->flags)
        f->drained = n == -EAGAIN || (n > 0 && (size_t)n < room);
    return n;
}

/* The slow path of conc__send, for any file. */
CONC__PRIVATE ssize_t conc__send_slowly(conc_loop *l, const conc__io *io)
{
    conc__fd *f = conc__fd_find(l, io->fd);
    if (f && f->failed && f->write_error) {
        ssize_t rc = conc__io_kept_error(l, f, &f->write_error);
        if (rc)
            return rc;
    }
    int saved = errno;
    ssize_t n;
    conc__no_pipe_signal(io->fd);
    do {
        n = conc__io_send(io);
        bool file = n < 0 && errno == ENOTSOCK;
        if (file && f && conc__fd_is_own(f))
            conc__fd_lost(l, f);
        if (file && io->any) {
            n = conc__io_file(io, CONC__WRITES);
            if (n < 0 && errno == EPIPE)
                conc__drain_pipe_signal(l);
        }
    } while (n < 0 && errno == EINTR);
    n = conc__io_result(l, n, saved);
    errno = saved;
    return n;
}

/* Sends bytes without waiting. */
static inline ssize_t conc__send(conc_loop *l, const conc__io *io)
{
    conc__fd *f = conc__fd_find(l, io->fd);
    if (CONC__UNLIKELY(!f || !conc__fd_is_own(f) || f->failed))
        return conc__send_slowly(l, io);
    int saved = *l->errno_at;
    ssize_t n;
    do
        n = conc__io_send(io);
    while (n < 0 && *l->errno_at == EINTR);
    n = conc__io_result(l, n, saved);
    if (CONC__UNLIKELY(n == -ENOTSOCK))
        return conc__send_slowly(l, io);
    return n;
}

/* Like conc__send, but sends no empty message: writev(2) sends none, unlike write(2). */
CONC__PRIVATE ssize_t conc__send_parts(conc_loop *l, const conc__io *io)
{
    if (!conc__io_is_empty(io))
        return conc__send(l, io);
    int saved = errno;
    return conc__io_result(l, conc__io_file(io, CONC__WRITES), saved);
}

/* -- the calls -- */

/* Waits and retries until a try succeeds or fails. */
CONC__FAST ssize_t conc__io_wait(conc_loop *l, conc__io_fn *once, int events, const conc__io *io)
{
    conc__retry retry = {0, 0};
    ssize_t n;
    do {
        int rc = conc__fd_await(l, io->fd, events, &retry);
        if (rc < 0)
            return rc;
        n = once(l, io);
    } while (n == -EAGAIN);
    return n;
}

CONC__FAST ssize_t conc__io_run_of(const char *call, conc__io_fn *once, int events,
                                   const conc__io *io)
{
    conc_loop *l = conc__in_task_of(call);
    if (!l)
        return -EPERM;
    bool valid = io->count >= 0 && io->count <= CONC__PARTS && (io->parts || !io->count);
    if (!valid)
        return conc__misused(-EINVAL, call, "no parts, or an invalid number of them", NULL);
    if (io->count == 1 && !conc__is_array(io->parts->iov_base, io->parts->iov_len, 1))
        return conc__misused(-EINVAL, call, "no buffer, or an invalid size", NULL);
    int rc = conc__checkpoint(l);
    if (rc)
        return rc;
    ssize_t n = once(l, io);
    if (n == -EAGAIN && !(io->flags & MSG_DONTWAIT))
        n = conc__io_wait(l, once, events, io);
    if (CONC__UNLIKELY(n == -EAGAIN))
        conc__own_error(-EAGAIN);
    else if (CONC__UNLIKELY(n < 0))
        conc__system_failed((int)n, NULL);
    if (n >= 0 || !l->self->pending)
        conc__spend_budget(l);
    return n;
}
#define conc__io_run(...) conc__io_run_of(__func__, __VA_ARGS__)

CONC_API ssize_t conc_readv(int fd, const struct iovec *parts, int count)
{
    const conc__io io = {.fd = fd, .any = true, .parts = parts, .count = count};
    return conc__io_run(conc__receive, CONC_READABLE, &io);
}

CONC_API ssize_t conc_writev(int fd, const struct iovec *parts, int count)
{
    const conc__io io = {.fd = fd, .any = true, .parts = parts, .count = count};
    return conc__io_run(conc__send_parts, CONC_WRITABLE, &io);
}

CONC_API ssize_t conc_read(int fd, void *buf, size_t n)
{
    const struct iovec part = {buf, conc__at_once(n)};
    const conc__io io = {.fd = fd, .any = true, .parts = &part, .count = 1};
    return conc__io_run(conc__receive, CONC_READABLE, &io);
}

CONC_API ssize_t conc_write(int fd, const void *buf, size_t n)
{
    const struct iovec part = {(void *)(uintptr_t)buf, conc__at_once(n)};
    const conc__io io = {.fd = fd, .any = true, .parts = &part, .count = 1};
    return conc__io_run(conc__send, CONC_WRITABLE, &io);
}

CONC_API ssize_t conc_recvfrom(int fd, void *buf, size_t n, int flags, struct sockaddr *from,
                               socklen_t *from_size)
{
    const struct iovec part = {buf, conc__at_once(n)};
    const conc__io io = {.fd = fd,
                         .flags = flags,
                         .parts = &part,
                         .count = 1,
                         .address = from,
                         .address_size = from ? from_size : NULL};
    return conc__io_run(conc__receive, CONC_READABLE, &io);
}

CONC_API ssize_t conc_sendto(int fd, const void *buf, size_t n, int flags,
                             const struct sockaddr *to, socklen_t to_size)
{
    const struct iovec part = {(void *)(uintptr_t)buf, conc__at_once(n)};
    const conc__io io = {.fd = fd,
                         .flags = flags,
                         .parts = &part,
                         .count = 1,
                         .address = (struct sockaddr *)(uintptr_t)to,
                         .address_size = &to_size};
    return conc__io_run(conc__send, CONC_WRITABLE, &io);
}

CONC_API ssize_t conc_recv(int fd, void *buf, size_t n, int flags)
{
    const struct iovec part = {buf, conc__at_once(n)};
    const conc__io io = {.fd = fd, .flags = flags, .parts = &part, .count = 1};
    return conc__io_run(conc__receive, CONC_READABLE, &io);
}

CONC_API ssize_t conc_send(int fd, const void *buf, size_t n, int flags)
{
    const struct iovec part = {(void *)(uintptr_t)buf, conc__at_once(n)};
    const conc__io io = {.fd = fd, .flags = flags, .parts = &part, .count = 1};
    return conc__io_run(conc__send, CONC_WRITABLE, &io);
}

/* Repeats the call until n bytes are transferred, or until end of file or an error. If some bytes
 * have been transferred, returns their count, and the next call returns the error. */
CONC__PRIVATE ssize_t conc__io_full(const char *call, conc__io_fn *once, int events, int fd,
                                    char *bytes, size_t n)
{
    enum { AT_ONCE = 1024 * 1024 }; /* a larger piece would block the loop for too long */
    size_t done = 0;
    if (!conc__in_task_of(call))
        return -EPERM;
    if (!conc__is_array(bytes, n, 1))
        return conc__misused(-EINVAL, call, "no buffer, or an invalid size", NULL);
    do {
        size_t left = n - done;
        struct iovec part = {NULL, left < AT_ONCE ? left : AT_ONCE};
        if (n)
            part.iov_base = bytes + done;
        const conc__io io = {.fd = fd, .any = true, .parts = &part, .count = 1};
        ssize_t got = conc__io_run_of(call, once, events, &io);
        if (got < 0 && done)
            conc__io_keep_error(conc__here, fd, events, (int)got);
        if (got <= 0)
            return done ? (ssize_t)done : got;
        done += (size_t)got;
    } while (done < n);
    return (ssize_t)done;
}

CONC_API CONC__CALLED ssize_t conc_read_full(int fd, void *buf, size_t n)
{
    return conc__io_full(__func__, conc__receive, CONC_READABLE, fd, buf, n);
}

CONC_API ssize_t conc_write_full(int fd, const void *buf, size_t n)
{
    return conc__io_full(__func__, conc__send, CONC_WRITABLE, fd, (char *)(uintptr_t)buf, n);
}

CONC__PRIVATE int conc__accept_call(int fd)
{
    int got = conc__accept4(fd);
    if (got >= 0 || !conc__refused(errno))
        return got;
    got = accept(fd, NULL, NULL);
    if (got >= 0) {
        conc__set_modes(got);
        conc__no_pipe_signal(got);
    }
    return got;
}

/* Returns whether fd is a listening socket, and sets errno if not. On any other socket, a wait for
 * connections would never end. */
CONC__PRIVATE bool conc__listens(int fd)
{
    int listens = 0;
    socklen_t size = sizeof listens;
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size))
        return false;
    errno = EINVAL;
    return listens;
}

/* Switches a blocking listener to non-blocking mode, because another process that shares it may
 * accept the connection first. Returns 0, or -1 and errno. If a sandbox refuses the change, fails
 * with EAGAIN unless a connection is pending. */
CONC__PRIVATE int conc__unblock_listener(int fd, int flags)
{
    bool refused = flags < 0;
    if (!refused && fcntl(fd, F_SETFL, flags | O_NONBLOCK)) {
        refused = conc__refused(errno);
        if (!refused)
            return -1;
    }
    if (!refused)
        return 0;
    int ready = conc__fd_ready(fd, CONC_READABLE);
    if (ready > 0)
        return 0;
    errno = ready < 0 ? -ready : EAGAIN;
    return -1;
}

/* Tries once to accept a connection. Even a listener that conc opened may be in blocking mode,
 * because the program can change that. */
CONC__PRIVATE int conc__accept_once(int fd, bool own)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 && !conc__refused(errno))
        return -1;
    bool blocks = flags < 0 || !(flags & O_NONBLOCK);
    if ((blocks || !own) && !conc__listens(fd))
        return -1;
    if (blocks && conc__unblock_listener(fd, flags))
        return -1;
    return conc__accept_call(fd);
}

/* Accepts a connection without waiting, and registers it. */
CONC__PRIVATE ssize_t conc__accept(conc_loop *l, const conc__io *io)
{
    conc__fd *f = conc__fd_find(l, io->fd);
    bool own = f && conc__fd_is_own(f);
    int saved = errno;
    ssize_t n;
    do
        n = conc__accept_once(io->fd, own);
    while (n < 0 && errno == EINTR);
    n = conc__io_result(l, n, saved);
    if (n == -ENOTSOCK && own) {
        conc__fd_gone(l, f);
        return conc__accept(l, io);
    }
    *l->errno_at = saved; /* accept4 may have failed before accept succeeded */
    if (n < 0)
        return n;
    return conc__fd_adopt(l, (int)n, f && f->tcp);
}

CONC_API int conc_accept(int fd)
{
    const conc__io io = {.fd = fd};
    return (int)conc__io_run(conc__accept, CONC_READABLE, &io);
}

/* ---- >>net ---------------------------------------------------------------------------------- */

/* -- addresses -- */

typedef struct conc__address {
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
        struct sockaddr_un local;
        char bytes[sizeof(struct sockaddr_un) + 1]; /* even the longest path ends in a NUL */
    } as;
    socklen_t size;
} conc__address;

enum { CONC__ADDRESSES = 2 }; /* maximum for one text without a name lookup: localhost has two */

CONC__PRIVATE bool conc__parse_port(const char *text, in_port_t *port)
{
    unsigned n = 0;
    int digits = 0;
    while (text[digits] >= '0' && text[digits] <= '9' && digits < 6)
        n = n * 10 + (unsigned)(text[digits++] - '0');
    *port = htons((uint16_t)n);
    return digits > 0 && digits < 6 && n < 65536 && !text[digits];
}

CONC__PRIVATE int conc__parse_local(const char *path, conc__address *out)
{
    struct sockaddr_un *a = &out->as.local;
    size_t room = sizeof a->sun_path, n = strnlen(path, room + 1);
    bool abstract = path[0] == '@';
    size_t longest = room - 1;
    if (CONC__LINUX_NAMES)
        longest = room; /* neither an abstract name nor a path that fills it needs a NUL */
    if (abstract && !CONC__LINUX_NAMES)
        return -EINVAL;
    if (n < 1 + (size_t)abstract || n > longest)
        return -EINVAL;
    a->sun_family = AF_UNIX;
    memcpy(a->sun_path, path, n);
    if (abstract)
        a->sun_path[0] = 0;
    else if (n < room)
        n++;
    out->size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n);
    return 1;
}

CONC__PRIVATE int conc__set_v4(const char *host, in_port_t port, conc__address *out)
{
    out->as.v4.sin_family = AF_INET;
    out->as.v4.sin_port = port;
    out->size = sizeof out->as.v4;
    if (inet_pton(AF_INET, host, &out->as.v4.sin_addr) != 1)
        return -EINVAL;
    return 1;
}

/* Returns the number of a zone, given by name or number; 0 if there is no such zone. */
CONC__PRIVATE uint32_t conc__parse_zone(const char *zone)
{
    uint64_t n = 0;
    size_t length = strlen(zone), i = 0;
    uint32_t named = 0;
    if (length < IF_NAMESIZE) /* if_nametoindex may truncate a longer name */
        named = if_nametoindex(zone);
    if (named)
        return named;
    while (zone[i] >= '0' && zone[i] <= '9' && n <= UINT32_MAX)
        n = n * 10 + (unsigned)(zone[i++] - '0');
    if (i < length || n > UINT32_MAX)
        return 0;
    return (uint32_t)n;
}

/* Parses an IPv6 address, and strips the zone from `host`. */
CONC__PRIVATE int conc__set_v6(char *host, in_port_t port, conc__address *out)
{
    char *zone = strchr(host, '%');
    if (zone) {
        *zone++ = 0;
        out->as.v6.sin6_scope_id = conc__parse_zone(zone);
        if (!out->as.v6.sin6_scope_id)
            return -EINVAL;
    }
    out->as.v6.sin6_family = AF_INET6;
    out->as.v6.sin6_port = port;
    out->size = sizeof out->as.v6;
    if (inet_pton(AF_INET6, host, &out->as.v6.sin6_addr) != 1)
        return -EINVAL;
    return 1;
}

/* Is this a host name? If its last label has only digits, it is a malformed address instead. */
CONC__PRIVATE bool conc__is_host_name(const char *host)
{
    static const char valid[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_";
    const char *last = strrchr(host, '.');
    size_t n = strlen(host);
    if (n == 0 || n > 253)
        return false;
    if (host[0] == '.' || host[0] == '-' || strstr(host, ".."))
        return false;
    if (strspn(host, valid) != n)
        return false;
    if (!last || !last[1])
        last = host;
    return strspn(last, ".0123456789") != strlen(last);
}

/* Parses the text of an address into at most CONC__ADDRESSES socket addresses. Returns their count,
 * -EINVAL if the text is malformed, or -EADDRNOTAVAIL if it contains a host name. */
CONC__PRIVATE int conc__parse_address(const char *text, conc__address *out)
{
    char host[256];
    in_port_t port;
    memset(out, 0, CONC__ADDRESSES * sizeof *out);
    if (strncmp(text, "unix:", 5) == 0)
        return conc__parse_local(text + 5, out);
    const char *colon = strrchr(text, ':');
    if (!colon || colon == text || !conc__parse_port(colon + 1, &port))
        return -EINVAL;
    size_t n = (size_t)(colon - text);
    if (n >= sizeof host)
        return -EINVAL;
    memcpy(host, text, n);
    host[n] = 0;
    if (host[0] == '[' && host[n - 1] == ']') {
        host[n - 1] = 0;
        return conc__set_v6(host + 1, port, out);
    }
    if (strcmp(host, "localhost") == 0) {
        char loopback[] = "::1";
        return conc__set_v4("127.0.0.1", port, out) + conc__set_v6(loopback, port, out + 1);
    }
    if (conc__set_v4(host, port, out) == 1)
        return 1;
    if (conc__is_host_name(host))
        return -EADDRNOTAVAIL;
    return -EINVAL;
}

/* -- listening -- */

CONC__PRIVATE int conc__set_option(int fd, int level, int option)
{
    int on = 1;
    if (setsockopt(fd, level, option, &on, sizeof on))
        return -errno;
    return 0;
}

/* ---- the file of a Unix socket ----
 *
 * A socket file outlives its process, and the next process that listens there must remove it. Two
 * processes that do so at the same time must not remove each other's new file. So each holds a lock
 * on a second file beside the path from before bind(2) until after listen(2), because between the
 * two calls a new socket file looks like one that no process is listening on. If a process dies,
 * the system releases its lock, and the next process reuses the lock file. */

typedef struct conc__path_lock {
    char name[sizeof(struct sockaddr_un) + 16];
    int fd;      /* -1: the path is not locked */
    int refused; /* why it is not locked: flock(2)'s error; 0: no lock file could be created */
} conc__path_lock;

enum { CONC__LOCK_TRIES = 50 }; /* a millisecond apart */

/* Does the name still refer to the locked file? If the file was removed before the lock was
 * acquired, the lock protects nothing. */
CONC__PRIVATE bool conc__locks_its_name(const conc__path_lock *k)
{
    struct stat here, there;
    if (fstat(k->fd, &here) || lstat(k->name, &there))
        return conc__refused(errno); /* a sandbox refused the call: assume that it does */
    return here.st_dev == there.st_dev && here.st_ino == there.st_ino;
}

/* Tries once to lock the path. Returns 1 if the lock was acquired, 0 if another process holds it
 * (try again), or an error if the file system or a sandbox does not allow locks. In the last case,
 * also removes the lock file, because no process can use it. */
CONC__PRIVATE int conc__lock_once(const conc__path_lock *k)
{
    int rc = 0;
    if (flock(k->fd, LOCK_EX | LOCK_NB))
        rc = -errno;
    else if (conc__locks_its_name(k))
        return 1;
    bool failed = rc < 0 && rc != -EWOULDBLOCK && rc != -EINTR;
    if (failed)
        unlink(k->name);
    close(k->fd);
    if (failed)
        return rc;
    return 0;
}

/* Locks the path if the directory permits a lock file and the system permits locks. Returns 0
 * whether or not the lock was acquired; -EADDRINUSE if another process is about to listen there; or
 * another error. */
CONC__PRIVATE int conc__lock_path(const conc__address *a, conc__path_lock *k)
{
    int locked = 0;
    k->refused = 0;
    snprintf(k->name, sizeof k->name, "%s.conc-lock",
             a->as.bytes + offsetof(struct sockaddr_un, sun_path));
    for (int i = 0; i < CONC__LOCK_TRIES && !locked; i++) {
        k->fd = open(k->name, O_RDONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0444);
        if (k->fd < 0) {
            if (conc__is_lack(-errno))
                return -errno;
            return 0;
        }
        locked = conc__lock_once(k);
        if (!locked)
            conc__thread_sleep(1000000);
    }
    if (locked != 1)
        k->fd = -1;
    if (locked < 0)
        k->refused = locked;
    if (locked == 0)
        return -EADDRINUSE;
    return 0;
}

CONC__PRIVATE void conc__unlock_path(const conc__path_lock *k)
{
    if (k->fd < 0)
        return;
    unlink(k->name);
    close(k->fd);
}

/* Is there a socket file at the path? If so, *st describes it. */
CONC__PRIVATE bool conc__is_socket_file(const conc__address *a, struct stat *st)
{
    const char *path = a->as.bytes + offsetof(struct sockaddr_un, sun_path);
    return lstat(path, st) == 0 && S_ISSOCK(st->st_mode);
}

/* Returns 1 if there is a socket file that no process is listening on, and describes it in *st; 0
 * if there is none; or an error if the check ran out of resources. */
CONC__PRIVATE int conc__is_stale(const conc__address *a, struct stat *st)
{
    if (!conc__is_socket_file(a, st))
        return 0;
    int fd = conc__socket(AF_UNIX);
    if (fd < 0)
        return -errno;
    int rc = 0;
    if (connect(fd, &a->as.any, a->size))
        rc = -errno;
    close(fd);
    if (conc__is_lack(rc))
        return rc;
    return rc == -ECONNREFUSED;
}

/* Removes the socket file that *st describes, unless another has replaced it since. Returns true if
 * it was removed. */
CONC__PRIVATE bool conc__unlink_stale(const conc__address *a, const struct stat *st)
{
    struct stat now;
    if (!conc__is_socket_file(a, &now))
        return false;
    if (st->st_dev != now.st_dev || st->st_ino != now.st_ino)
        return false;
    return unlink(a->as.local.sun_path) == 0;
}

CONC__PRIVATE int conc__bind(int fd, const conc__address *a)
{
    if (bind(fd, &a->as.any, a->size))
        return -errno;
    return 0;
}

/* Like conc__bind, for a path. Replaces a stale socket file if the path is locked. */
CONC__PRIVATE int conc__bind_path(int fd, const conc__address *a, const conc__path_lock *k)
{
    struct stat st;
    int rc = conc__bind(fd, a);
    if (rc != -EADDRINUSE || (k->fd < 0 && !k->refused))
        return rc;
    int stale = conc__is_stale(a, &st);
    if (stale < 0)
        return stale;
    if (stale && k->fd < 0)
        return k->refused;
    if (stale && conc__unlink_stale(a, &st))
        return conc__bind(fd, a);
    return rc;
}

CONC__PRIVATE int conc__listen_on_path(int fd, const conc__address *a, int backlog)
{
    conc__path_lock k;
    int rc = conc__lock_path(a, &k);
    if (rc == 0)
        rc = conc__bind_path(fd, a, &k);
    if (rc == 0 && listen(fd, backlog))
        rc = -errno;
    conc__unlock_path(&k);
    return rc;
}

CONC__PRIVATE int conc__listen_on_port(int fd, const conc__address *a, int backlog)
{
    int rc = conc__bind(fd, a);
    if (rc == 0 && listen(fd, backlog))
        rc = -errno;
    return rc;
}

/* Sets the options of a socket that is to listen on a port. Returns 0, or an error if a required
 * option cannot be set; ignores failures to set the others. */
CONC__PRIVATE int conc__set_up_port(int fd, int family, const conc_listen_options *o)
{
    int rc = 0;
    conc__set_option(fd, SOL_SOCKET, SO_REUSEADDR);
    conc__set_option(fd, IPPROTO_TCP, TCP_NODELAY); /* accepted connections inherit it */
    if (family == AF_INET6)
        rc = conc__set_option(fd, IPPROTO_IPV6, IPV6_V6ONLY);
#ifdef SO_REUSEPORT
    if (rc == 0 && o->reuse_port)
        rc = conc__set_option(fd, SOL_SOCKET, SO_REUSEPORT);
#else
    if (o->reuse_port)
        rc = -ENOPROTOOPT;
#endif
    return rc;
}

CONC__PRIVATE int conc__listen_at(const conc__address *a, const conc_listen_options *o)
{
    int family = a->as.any.sa_family, fd = conc__socket(family);
    int backlog = o->backlog ? o->backlog : SOMAXCONN;
    bool path = family == AF_UNIX && a->as.local.sun_path[0];
    if (fd < 0)
        return -errno;
    int rc = 0;
    if (family != AF_UNIX)
        rc = conc__set_up_port(fd, family, o);
    if (rc == 0 && path)
        rc = conc__listen_on_path(fd, a, backlog);
    else if (rc == 0)
        rc = conc__listen_on_port(fd, a, backlog);
    if (rc == 0)
        return fd;
    close(fd);
    return rc;
}

/* The addresses that a text refers to. */
typedef struct conc__addresses {
    conc__address own[CONC__ADDRESSES];
    conc__address *all; /* points to own, or to memory from a host name lookup */
    int count;
} conc__addresses;

/* Resolves the text of an address. Returns the number of addresses, or an error with a text. Waits
 * while it looks up a host name. */
CONC__PRIVATE int conc__addresses_of(const char *text, conc__addresses *found)
{
    found->all = found->own;
    const char *shown = *text ? text : "\"\"";
    int count = conc__parse_address(text, found->own);
    if (count == -EADDRNOTAVAIL && conc__extended.resolve) {
        found->all = NULL;
        count = conc__extended.resolve(text, &found->all);
    } else if (count == -EINVAL) {
        conc_fail(count, "%.90s: malformed address", shown);
    } else if (count < 0) {
        conc_fail(count, "%.60s: only conc_pool.h looks up host names", shown);
    }
    found->count = count > 0 ? count : 0;
    return count;
}

CONC__PRIVATE void conc__addresses_free(conc__addresses *found)
{
    if (found->all != found->own)
        conc_free(found->all);
}

CONC__PRIVATE int conc__listen(conc_loop *l, const char *text, const conc_listen_options *o)
{
    conc__addresses found;
    int rc = conc__addresses_of(text, &found);
    for (int i = 0; i < found.count; i++) {
        const conc__address *a = &found.all[i];
        rc = conc__listen_at(a, o);
        if (rc >= 0)
            rc = conc__fd_adopt(l, rc, a->as.any.sa_family != AF_UNIX);
        if (rc >= 0 || rc == -EADDRINUSE)
            break;
    }
    if (found.count)
        conc__system_failed(rc, text);
    conc__addresses_free(&found);
    return rc;
}

CONC_API int conc_listen_with(const char *address, const conc_listen_options *options)
{
    static const conc_listen_options usual;
    conc_loop *l = conc__here;
    const conc_listen_options *o = options ? options : &usual;
    int saved = errno;
    if (!l)
        return conc__misused(-EPERM, "conc_listen", "there is no loop", NULL);
    if (!address || o->backlog < 0)
        return conc__misused(-EINVAL, "conc_listen", "no address, or a negative backlog", NULL);
    int rc = conc__listen(l, address, o);
    errno = saved;
    return rc;
}

CONC_API int conc_listen(const char *address) { return conc_listen_with(address, NULL); }

/* -- connecting -- */

/* Opens a socket that can connect to the address. */
CONC__PRIVATE int conc__socket_for(conc_loop *l, const conc__address *a)
{
    bool tcp = a->as.any.sa_family != AF_UNIX;
    int fd = conc__socket(a->as.any.sa_family);
    if (fd < 0)
        return -errno;
    fd = conc__fd_adopt(l, fd, tcp);
    if (fd >= 0 && tcp)
        conc__set_option(fd, IPPROTO_TCP, TCP_NODELAY);
    return fd;
}

CONC__PRIVATE int conc__connect_call(int fd, const conc__address *a)
{
    if (connect(fd, &a->as.any, a->size))
        return -errno;
    return 0;
}

/* Connects the socket to the address, and waits until it is connected. Returns 0 or an error. */
CONC__PRIVATE int conc__connect_socket(conc_loop *l, int fd, const conc__address *a)
{
    int rc = conc__connect_call(fd, a), why = 0;
    socklen_t size = sizeof why;
    double pause = 0.001;
    while (rc == -EAGAIN) { /* a Unix socket's backlog is full: no event reports when it has room */
        rc = conc__sleep_to_retry(l, pause);
        if (rc == 0)
            rc = conc__connect_call(fd, a);
        if (pause < 0.05)
            pause *= 2;
    }
    if (rc != -EINPROGRESS)
        return rc;
    rc = conc__fd_park(l, fd, CONC_WRITABLE);
    if (rc < 0)
        return rc;
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &why, &size))
        return -errno;
    return -why;
}

/* Is the socket connected to itself? This is a TCP simultaneous open: it happens if no process is
 * listening on the peer's port and the system gives the client the same port. */
CONC__PRIVATE bool conc__is_its_own_peer(int fd, const conc__address *a)
{
    conc__address own = {.size = sizeof own.as}, peer = {.size = sizeof peer.as};
    if (a->as.any.sa_family == AF_UNIX || getsockname(fd, &own.as.any, &own.size))
        return false;
    if (own.as.v4.sin_port != a->as.v4.sin_port) /* IPv6 has the port at the same offset */
        return false;
    if (getpeername(fd, &peer.as.any, &peer.size) || own.as.v4.sin_port != peer.as.v4.sin_port)
        return false;
    if (own.as.any.sa_family == AF_INET6)
        return memcmp(&own.as.v6.sin6_addr, &peer.as.v6.sin6_addr, 16) == 0;
    return own.as.v4.sin_addr.s_addr == peer.as.v4.sin_addr.s_addr;
}

/* Makes a close reset the connection, so that it leaves no port in TIME_WAIT. */
CONC__PRIVATE void conc__reset_connection(int fd)
{
    struct linger at_once = {1, 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
}

enum { CONC__CONNECTS = 3 }; /* attempts to get a socket that is not connected to itself */

/* Connects to one address. Returns the descriptor, or an error with nothing left open. */
CONC__PRIVATE int conc__connect(conc_loop *l, const conc__address *a)
{
    for (int i = 0; i < CONC__CONNECTS; i++) {
        int fd = conc__socket_for(l, a);
        if (fd < 0)
            return fd;
        int rc = conc__connect_socket(l, fd, a);
        if (rc == 0 && !conc__is_its_own_peer(fd, a))
            return fd;
        if (rc == 0)
            conc__reset_connection(fd);
        if (rc != -EBADF) /* otherwise another task has closed it */
            conc_close(fd);
        if (rc)
            return rc;
    }
    return -ECONNREFUSED;
}

/* ---- several addresses: RFC 8305 ----
 *
 * Each attempt is a task. The first starts immediately; each of the others starts 250 ms after the
 * previous one, or as soon as an attempt has failed. The first to connect wins, and the others are
 * cancelled. */

typedef struct conc__race {
    conc_group group;
    const conc__address *addresses;
    int begun;              /* attempts started so far */
    int failures;           /* failed attempts that have not yet been replaced */
    int error;              /* the error of the first address */
    int fd;                 /* -1: none has connected yet */
    conc__sleeper *waiting; /* the starting task's wait between two attempts; NULL: none */
} conc__race;

static const int64_t conc__attempt_delay = 250000000;

/* Reorders the addresses so that their families alternate, beginning with the first address's
 * family. */
CONC__PRIVATE void conc__interleave(conc__address *a, int count)
{
    for (int i = 1; i < count; i++) {
        int other = i;
        while (other < count && a[other].as.any.sa_family == a[i - 1].as.any.sa_family)
            other++;
        if (other == count)
            return;
        conc__address next = a[other];
        memmove(a + i + 1, a + i, (size_t)(other - i) * sizeof *a);
        a[i] = next;
    }
}

CONC__PRIVATE int conc__attempt(void *arg)
{
    conc__race *r = arg;
    conc_loop *l = conc__here;
    int saved = errno, which = r->begun++, fd = conc__connect(l, &r->addresses[which]);
    if (fd >= 0 && r->fd >= 0) {
        conc_close(fd); /* another attempt has connected, too */
    } else if (fd >= 0) {
        r->fd = fd;
        conc_group_cancel(&r->group);
    } else {
        r->failures++;
        if (which == 0)
            r->error = fd;
    }
    if (r->waiting && conc__armed(&r->waiting->timer)) {
        conc__disarm(l, &r->waiting->timer);
        conc__wake(l, &r->waiting->wait, 0);
    }
    errno = saved;
    return 0;
}

/* Waits until the next attempt is due. Returns 0 or -ECANCELED. */
CONC__PRIVATE int conc__race_pause(conc_loop *l, conc__race *r)
{
    conc__sleeper s = {.wait = {.task = l->self, .kind = &conc__sleeping}};
    int rc = 0;
    if (!r->failures) {
        rc = conc__checkpoint(l);
        if (rc)
            return rc;
        conc__arm(l, &s.timer, conc__later(conc__time(l), conc__attempt_delay), conc__sleep_over);
        r->waiting = &s;
        rc = conc__park(l, &s.wait);
        r->waiting = NULL;
    }
    if (r->failures)
        r->failures--;
    return rc;
}

CONC__PRIVATE int conc__connect_any(conc_loop *l, conc__addresses *found)
{
    conc__race r = {.group = {.keep_going = true}, .addresses = found->all, .fd = -1};
    conc__interleave(found->all, found->count);
    conc__group_open(l, &r.group, "conc_dial");
    int rc = 0;
    for (int i = 0; i < found->count && rc == 0 && r.fd < 0; i++) {
        if (r.group.scope.effective) {
            rc = -ECANCELED;
            break;
        }
        if (!conc__task_new(l, &r.group, NULL, conc__attempt, &r, "conc_dial")) {
            if (i == 0)
                r.error = -ENOMEM;
            break; /* attempts in progress may still succeed */
        }
        if (i + 1 < found->count)
            rc = conc__race_pause(l, &r);
    }
    if (rc)
        conc__cancel_scope(l, &r.group.scope);
    rc = conc__group_close(l, &r.group, rc);
    if (r.fd >= 0)
        return r.fd;
    if (rc)
        return rc;
    return r.error;
}

CONC__PRIVATE int conc__dial(conc_loop *l, const char *address)
{
    conc__addresses found;
    int rc = conc__addresses_of(address, &found);
    if (found.count == 1)
        rc = conc__connect(l, found.all);
    else if (found.count)
        rc = conc__connect_any(l, &found);
    if (found.count)
        conc__system_failed(rc, address);
    conc__addresses_free(&found);
    return rc;
}

CONC_API int conc_dial(const char *address)
{
    conc_loop *l = conc__in_task();
    int saved = errno;
    if (!l)
        return -EPERM;
    if (!address)
        return conc__misused(-EINVAL, __func__, "no address", NULL);
    int rc = conc__checkpoint(l);
    if (rc)
        return rc;
    rc = conc__dial(l, address);
    errno = saved;
    if (rc >= 0)
        conc__spend_budget(l);
    return rc;
}

CONC__PRIVATE void conc__print_address(const conc__address *a, char *buf, size_t size)
{
    char host[64], zone[IF_NAMESIZE + 1] = "%";
    const char *path = a->as.bytes + offsetof(struct sockaddr_un, sun_path);
    size_t n = a->size - offsetof(struct sockaddr_un, sun_path);
    if (a->as.any.sa_family == AF_INET) {
        inet_ntop(AF_INET, &a->as.v4.sin_addr, host, sizeof host);
        snprintf(buf, size, "%s:%u", host, ntohs(a->as.v4.sin_port));
    } else if (a->as.any.sa_family == AF_INET6) {
        inet_ntop(AF_INET6, &a->as.v6.sin6_addr, host, sizeof host);
        if (!a->as.v6.sin6_scope_id || !if_indextoname(a->as.v6.sin6_scope_id, zone + 1))
            zone[0] = 0;
        snprintf(buf, size, "[%s%s]:%u", host, zone, ntohs(a->as.v6.sin6_port));
    } else if (a->size <= offsetof(struct sockaddr_un, sun_path)) {
        snprintf(buf, size, "unix:");
    } else if (*path) {
        snprintf(buf, size, "unix:%.*s", (int)n, path);
    } else {
        snprintf(buf, size, "unix:@%.*s", (int)n - 1, path + 1);
    }
}

CONC__PRIVATE int conc__socket_address(int fd, bool peer, conc__address *a)
{
    if (peer)
        return getpeername(fd, &a->as.any, &a->size);
    return getsockname(fd, &a->as.any, &a->size);
}

CONC__PRIVATE int conc__address_text(int fd, bool peer, char *buf, size_t size)
{
    conc__address a;
    char text[160];
    memset(&a, 0, sizeof a);
    a.size = sizeof a.as;
    if (conc__socket_address(fd, peer, &a))
        return -errno;
    int family = a.as.any.sa_family;
    if (family != AF_INET && family != AF_INET6 && family != AF_UNIX)
        return -EAFNOSUPPORT;
    conc__print_address(&a, text, sizeof text);
    if (strlen(text) >= size)
        return -ENOSPC;
    memcpy(buf, text, strlen(text) + 1);
    return 0;
}

CONC_API CONC__CALLED int conc_address(int fd, bool peer, char *buf, size_t size)
{
    int saved = errno;
    if (!buf)
        return conc__misused(-EINVAL, __func__, "no buffer", NULL);
    int rc = conc__address_text(fd, peer, buf, size);
    errno = saved;
    return conc__system_failed(rc, NULL);
}

/* -- serving -- */

/* Serves one connection. The task's field `sink` holds the descriptor: a task spawned without a
 * sink has no other use for it. */
CONC__PRIVATE int conc__serve_one(void *arg)
{
    const conc_server *s = arg;
    conc_loop *l = conc__here;
    conc_task *self = l->self;
    int fd = (int)(intptr_t)self->sink;
    conc__fd *f = conc__fd_find(l, fd);
    uint32_t id = f->id;
    int rc = s->handler(fd, s->arg);
    if (conc__here != l)
        return rc; /* this is a forked child */
    if (f->id == id && conc__fd_confirm(l, f))
        conc_close(fd); /* the handler has not closed it */
    if (rc >= 0)
        return 0;
    if (rc == -ECANCELED && self->pending)
        return rc;
    conc__report(l, conc__source_of(self), rc, conc__error_text(self, rc));
    return 0;
}

CONC__PRIVATE int conc__serve_spawn(conc_loop *l, conc_group *g, const conc_server *s, int fd,
                                    const char *connection)
{
    conc_task *t = NULL;
    int rc = -ECANCELED;
    if (!g->scope.effective) {
        t = conc__task_new(l, g, NULL, conc__serve_one, (void *)(uintptr_t)s, connection);
        rc = -ENOMEM;
    }
    if (!t) {
        conc_close(fd);
        return rc;
    }
    t->sink = (void *)(intptr_t)fd;
    if (s->name)
        conc__call_by(l, t, s->name);
    return 0;
}

/* conc_serve's record of failures to accept connections. */
typedef struct conc__accepting {
    int failures; /* consecutive failures to accept */
    bool reported;
    double works_since; /* time of the first connection after the last report; 0: none yet */
} conc__accepting;

/* conc_serve pauses after CONC__REFUSALS consecutive failures, and reports them after
 * CONC__REFUSALS_REPORTED. */
enum { CONC__REFUSALS = 16, CONC__REFUSALS_REPORTED = 1000 };

/* Does this accept(2) error affect only one connection, which is gone, and not the listener? */
CONC__PRIVATE bool conc__is_of_one_connection(int rc)
{
    switch (rc) {
    case -ECONNABORTED:
    case -ECONNRESET:
    case -EPERM: /* a firewall */
    case -EPROTO:
    case -ENOPROTOOPT:
    case -EPROTONOSUPPORT:
    case -EOPNOTSUPP:
    case -ENETDOWN:
    case -ENETUNREACH:
    case -EHOSTDOWN:
    case -EHOSTUNREACH:
#ifdef ENONET
    case -ENONET:
#endif
#ifdef ESOCKTNOSUPPORT
    case -ESOCKTNOSUPPORT:
#endif
    case -ETIMEDOUT: return true;
    default: return false;
    }
}

/* Reports an error. Later errors are reported only after accepting has worked for a second. */
CONC__PRIVATE void conc__serve_report(conc_loop *l, int rc, conc__accepting *a, const char *spawned)
{
    char text[CONC__TEXT];
    if (a->reported && a->works_since > 0 && conc_now() - a->works_since >= 1)
        a->reported = false;
    if (!a->reported) {
        snprintf(text, sizeof text, "%s: a connection was not accepted: %s", spawned,
                 conc__text_or(conc__error_text(l->self, rc), rc));
        conc__report(l, conc__source_of(l->self), rc, text);
    }
    a->reported = true;
    a->works_since = 0;
}

/* Handles a failure to accept a connection. Returns 0, perhaps after a pause, if the error affected
 * only one connection or a resource had run out. Otherwise returns the error, which ends
 * serving. */
CONC__PRIVATE int conc__serve_again(conc_loop *l, int rc, conc__accepting *a, const char *spawned)
{
    if (conc__is_lack(rc)) {
        conc__serve_report(l, rc, a, spawned);
        return conc__sleep_to_retry(l, 0.1);
    }
    if (!conc__is_of_one_connection(rc))
        return rc;
    if (++a->failures == CONC__REFUSALS_REPORTED)
        conc__serve_report(l, rc, a, spawned);
    if (a->failures >= CONC__REFUSALS)
        return conc_sleep(0.001);
    return 0;
}

CONC__PRIVATE void conc__serve_works(conc__accepting *a)
{
    a->failures = 0;
    if (a->reported && a->works_since <= 0)
        a->works_since = conc_now();
}

/* Accepts connections until conc_close, a cancel, or a listener error. */
CONC__PRIVATE int conc__serve_all(conc_loop *l, conc_group *g, const conc_server *s,
                                  const char *connection)
{
    conc__accepting a = {0};
    const char *spawned = connection + sizeof CONC__CONNECTION_OF - 1;
    int rc = conc__fd_note(l, s->fd);
    uint32_t id = conc__fd_id(l, s->fd);
    while (rc == 0) {
        if (s->limit && g->live >= s->limit)
            rc = conc__wait_for_room(l, g);
        if (rc || conc__fd_id(l, s->fd) != id)
            return rc; /* 0: the listener was closed with conc_close */
        int fd = conc_accept(s->fd);
        if (fd == -EBADF && conc__fd_id(l, s->fd) != id)
            return 0;
        rc = fd;
        if (fd >= 0)
            rc = conc__serve_spawn(l, g, s, fd, connection);
        if (rc == 0)
            conc__serve_works(&a);
        else
            rc = conc__serve_again(l, rc, &a, spawned);
    }
    return rc;
}

CONC_API CONC__CALLED int conc__serve(const conc_server *server, const char *connection)
{
    const char *spawned = connection + sizeof CONC__CONNECTION_OF - 1;
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    if (!server || !server->handler || server->limit < 0)
        return conc__misused(-EINVAL, __func__, "no handler, or a negative limit", spawned);
    conc_server s = *server;
    conc_group g = {.limit = s.limit, .keep_going = true};
    int rc = conc__checkpoint(l);
    if (rc)
        return rc;
    conc__check_lost(l, __builtin_frame_address(0));
    conc__group_open(l, &g, spawned);
    char name[CONC__NAME];
    if (!s.name && CONC__HOOKS(l) && CONC__HOOKS(l)->name_function(name, (uintptr_t)s.handler))
        s.name = name;
    rc = conc__serve_all(l, &g, &s, connection);
    if (rc)
        conc__cancel_scope(l, &g.scope);
    int end = conc__group_close(l, &g, rc);
    if (end == 0 && rc != -ECANCELED)
        end = rc;
    return conc__pass_error(l, end);
}

/* ---- >>streams ------------------------------------------------------------------------------ */

/* PIECE: bytes transferred at a time; after each piece other tasks may run. */
enum {
    CONC__RECORD_LIMIT = 65536,
    CONC__BUFFER = 16384,
    CONC__SPARES = 64,
    CONC__PIECE = 64 * 1024
};

/* Changes a buffer's size. Allocates one byte more, for a NUL. */
CONC__PRIVATE int conc__buffer_resize(conc__buffer *b, size_t size)
{
    int saved = errno;
    char *data = NULL;
    if (size < PTRDIFF_MAX)
        data = CONC_REALLOC(b->data, size + 1);
    errno = saved;
    if (!data)
        return -ENOMEM;
    b->data = data;
    b->size = size;
    return 0;
}

/* Enlarges a buffer to `size`. Reuses a free buffer of the usual size if the loop has one. */
CONC__PRIVATE int conc__buffer_grow(conc_loop *l, conc__buffer *b, size_t size)
{
    conc__spare *spare = l->spares.first;
    if (size == CONC__BUFFER && spare && !b->data) {
        l->spares.first = spare->next;
        l->spares.count--;
        b->data = (char *)spare;
        b->size = size;
        return 0;
    }
    return conc__buffer_resize(b, size);
}

CONC__PRIVATE void conc__buffer_drop(conc_loop *l, conc__buffer *b)
{
    if (!b->data)
        return;
    if (b->size == CONC__BUFFER && l && l->spares.count < CONC__SPARES) {
        conc__spare *spare = (conc__spare *)(void *)b->data;
        spare->next = l->spares.first;
        l->spares.first = spare;
        l->spares.count++;
    } else {
        conc_free(b->data);
    }
    *b = (conc__buffer){NULL, 0, 0, 0};
}

CONC__PRIVATE void conc__spares_free(conc_loop *l)
{
    for (conc__spare *s = l->spares.first, *next; s; s = next) {
        next = s->next;
        CONC_FREE(s);
    }
}

CONC__PRIVATE size_t conc__buffered(const conc__buffer *b) { return b->end - b->start; }

/* Moves the buffered bytes to the buffer's beginning. */
CONC__PRIVATE void conc__buffer_pack(conc__buffer *b)
{
    size_t n = conc__buffered(b);
    if (n && b->start)
        memmove(b->data, b->data + b->start, n);
    b->start = 0;
    b->end = n;
}

enum { CONC__STREAM_FRESH, CONC__STREAM_OPEN, CONC__STREAM_CLOSED };

/* The state of a stream on a transport. It exists until the stream is closed, all tasks have left
 * the stream, and the transport's close has returned.
 *
 * At most one read is in progress, called by the stream's reader, and at most one write or
 * shutdown, called by the task whose turn it is to write or by the sender. A write sends from the
 * beginning of the buffer. During the write the buffer does not move, but other tasks may append to
 * it.
 *
 * The sender is a background task that sends the buffer while another task reads. It starts if the
 * buffer holds bytes and a task is reading or about to read. Without it, two peers that each send a
 * lot before they read would block each other. If writing fails, and no call has returned the error
 * yet, the sender cancels a waiting read, which then returns the error. */
typedef struct conc__transported {
    conc_transport calls;
    void *self;
    conc_stream *stream;
    conc_scope *reading, *sending; /* scopes around the calls in progress; NULL: none */
    conc__waits senders;           /* tasks waiting until `sending` is NULL */
    conc__waits starters;          /* the reader, while it waits for the sender to begin */
    bool has_sender, sender_began;
    bool interrupted; /* the sender cancelled the read in progress */
    bool abandoned;   /* the close could not wait: the last task to leave calls `close` */
    char read_words[CONC__TEXT], write_words[CONC__TEXT];
} conc__transported;

/* Takes over a parent's stream in a forked child, where none of the parent's tasks is running. */
CONC__COLD void conc__stream_take_over(conc_stream *s)
{
    s->inside = 0;
    s->reader = NULL;
    s->writing = false;
    s->writers = s->closers = (conc__waits){NULL, NULL};
    s->run = conc__here ? conc__here->run.number : UINT64_MAX;
    if (s->on) {
        s->on->reading = s->on->sending = NULL;
        s->on->senders = s->on->starters = (conc__waits){NULL, NULL};
        s->on->has_sender = s->on->sender_began = s->on->abandoned = false;
    }
}

CONC__PRIVATE void conc__stream_renew(conc_stream *s)
{
    if (CONC__UNLIKELY(s->run <= conc__inherited_runs))
        conc__stream_take_over(s);
}

CONC__PRIVATE int conc__stream_state(conc_stream *s, const char *call)
{
    if (s)
        conc__stream_renew(s);
    if (!s || s->state == CONC__STREAM_FRESH)
        return conc__misused(-EINVAL, call, "no stream, or it was never opened", NULL);
    if (s->state != CONC__STREAM_OPEN)
        return conc__own_error(-EPIPE);
    return 0;
}

/* Makes rc, which a stream call is about to return, the task's latest error. A system or transport
 * error, which ends reading or writing for good, keeps its text. */
CONC__COLD void conc__stream_failed(const conc_stream *s, int rc, bool of_reading)
{
    bool ended = of_reading || rc == s->write_error;
    conc_loop *l = conc__of_task();
    if (ended && s->on && l) {
        const char *words = of_reading ? s->on->read_words : s->on->write_words;
        conc__set_error(l->self, rc, words, (conc__source){NULL, NULL});
    } else if (ended) {
        conc__system_failed(rc, NULL);
    } else if (rc != -ECANCELED) {
        conc__own_error(rc);
    }
}

CONC__PRIVATE int conc__transport_end(conc_loop *l, conc_stream *s);

/* Called when the last task leaves a closed stream. Wakes the tasks that are waiting in
 * conc_stream_close. Their waits return 1 if nothing is left to do, or 0 if the task that closed
 * the stream must end its transport. If that task is not waiting, ends the transport itself. */
CONC__COLD void conc__stream_left(conc_loop *l, conc_stream *s)
{
    if (s->on && s->on->abandoned) {
        int rc = conc__transport_end(l, s);
        if (rc < 0 && rc != -ECANCELED)
            conc__report_close(l, "a stream", rc);
        return;
    }
    int done = !s->on;
    for (conc__wait *w = s->closers.first, *next; w; w = next) {
        next = w->next;
        conc__wake(l, w, done);
    }
}

/* Ends a call that may wait. If the stream was closed during the call, the caller must not use the
 * stream again. */
static inline void conc__stream_exit(conc_loop *l, conc_stream *s)
{
    s->inside--;
    if (CONC__UNLIKELY(s->state == CONC__STREAM_CLOSED && !s->inside))
        conc__stream_left(l, s);
}

/* Ends a call that may wait, and returns `result`. If that is an error, records it. It must not be
 * an error from a read. */
CONC__PRIVATE ssize_t conc__stream_leave(conc_loop *l, conc_stream *s, ssize_t result)
{
    if (CONC__UNLIKELY(result < 0))
        conc__stream_failed(s, (int)result, false);
    conc__stream_exit(l, s);
    return result;
}

/* Begins a call that may wait. conc_stream_close waits until the call has ended. Returns 0 or an
 * error. */
CONC__PRIVATE int conc__stream_enter(conc_loop *l, conc_stream *s, const char *call)
{
    if (!l)
        return -EPERM;
    int rc = conc__stream_state(s, call);
    if (rc)
        return rc;
    s->inside++;
    rc = conc__checkpoint(l);
    if (rc)
        conc__stream_leave(l, s, rc);
    return rc;
}

/* Called between two pieces of a long call that has not waited, to let other tasks run. Returns 0,
 * -EPIPE if one of them has closed the stream, or -ECANCELED. */
CONC__PRIVATE int conc__stream_pass(conc_loop *l, const conc_stream *s)
{
    conc__spend_budget(l);
    if (s->state != CONC__STREAM_OPEN)
        return -EPIPE;
    return conc__checkpoint(l);
}

CONC__PRIVATE size_t conc__piece(size_t n) { return n < CONC__PIECE ? n : CONC__PIECE; }

/* Returns 0 if the stream may be opened, or an error. */
CONC__PRIVATE int conc__stream_may_open(const conc_loop *l, conc_stream *s, const char *call)
{
    if (!l)
        return conc__misused(-EPERM, call, "there is no loop", NULL);
    if (!s || s->state == CONC__STREAM_OPEN)
        return conc__misused(-EINVAL, call, "no stream, or it is already open", NULL);
    conc__stream_renew(s);
    if (s->inside || s->on)
        return conc__misused(-EBUSY, call, "other tasks are still using the stream", NULL);
    return 0;
}

/* Initializes an open stream on the transport, or on the descriptor if `on` is NULL. */
CONC__PRIVATE void conc__stream_begin_life(conc_loop *l, conc_stream *s, int fd,
                                           conc__transported *on, const char *place)
{
    size_t limit = s->limit ? s->limit : CONC__RECORD_LIMIT;
    size_t buffer_size = s->buffer_size ? s->buffer_size : CONC__BUFFER;
    if (limit > PTRDIFF_MAX / 4)
        limit = PTRDIFF_MAX / 4; /* so that sums cannot overflow */
    *s = (conc_stream){.limit = limit,
                       .buffer_size = buffer_size,
                       .fd = fd,
                       .on = on,
                       .state = CONC__STREAM_OPEN,
                       .run = l->run.number};
    CONC__HOOK(l, opened(l, s, "a stream", place));
}

CONC_API int conc__stream_open(const char *place, conc_stream *s, int fd)
{
    conc_loop *l = conc__here;
    int rc = conc__stream_may_open(l, s, "conc_stream_open");
    if (rc)
        return rc;
    const conc__fd *f = conc__fd_find(l, fd);
    bool own = f && conc__fd_is_own(f);
    if (fd < 0 || (!own && conc__fd_ready(fd, CONC_READABLE) < 0))
        return conc__own_error(-EBADF);
    conc__stream_begin_life(l, s, fd, NULL, place);
    return 0;
}

CONC_API int conc__stream_open_on(const char *place, conc_stream *s, const conc_transport *t,
                                  void *self)
{
    static const char call[] = "conc_stream_open_on";
    conc_loop *l = conc__here;
    int rc = conc__stream_may_open(l, s, call);
    if (rc)
        return rc;
    if (!t || !t->read || !t->write)
        return conc__misused(-EINVAL, call, "no transport, or one that cannot read or write", NULL);
    conc__transported *on = conc__alloc(sizeof *on);
    if (!on)
        return conc__own_error(-ENOMEM);
    *on = (conc__transported){.calls = *t, .self = self, .stream = s};
    conc__stream_begin_life(l, s, -1, on, place);
    return 0;
}

/* Makes room for more bytes in the read buffer, which may grow up to `most`. */
CONC__PRIVATE int conc__stream_room(conc_loop *l, conc_stream *s, size_t most)
{
    conc__buffer *b = &s->in;
    if (!b->data)
        return conc__buffer_grow(l, b, s->buffer_size);
    if (b->end < b->size && b->start < b->end)
        return 0;
    conc__buffer_pack(b);
    if (b->end < b->size)
        return 0;
    if (b->size < most / 2)
        most = b->size * 2;
    return conc__buffer_grow(l, b, most);
}

/* Appends as many of the bytes as fit to the write buffer. Returns their count, or -ENOMEM. */
CONC__PRIVATE ssize_t conc__stream_keep(conc_loop *l, conc_stream *s, const char *bytes, size_t n)
{
    conc__buffer *b = &s->out;
    size_t room = s->buffer_size - conc__buffered(b), count = n;
    if (count > room)
        count = room;
    if (!count)
        return 0;
    if (!b->data && conc__buffer_grow(l, b, s->buffer_size))
        return -ENOMEM;
    if (count > b->size - b->end)
        conc__buffer_pack(b);
    memcpy(b->data + b->end, bytes, count);
    b->end += count;
    return (ssize_t)count;
}

/* Records that writing has failed for good, drops the write buffer, and returns rc. */
CONC__PRIVATE int conc__stream_broke(conc_loop *l, conc_stream *s, int rc)
{
    s->write_error = rc;
    s->unreturned = true;
    conc__buffer_drop(l, &s->out);
    return rc;
}

/* Called when a stream call is about to return rc. If that is the write error, records that a call
 * has returned it. */
CONC__PRIVATE int conc__stream_returns(conc_stream *s, int rc)
{
    if (rc == s->write_error)
        s->unreturned = false;
    return rc;
}

CONC__PRIVATE void conc__stream_details(FILE *out, const conc__wait *w)
{
    const conc_stream *s = w->on;
    if (s->on)
        fputs(" a transport", out);
    else
        fprintf(out, " descriptor %d", s->fd);
}

static const conc__wait_kind conc__queueing = {.what = "waits for its turn to write to",
                                               .brief = "waits for its turn to write",
                                               .details = CONC__DETAILS(conc__stream_details),
                                               .cancel = conc__cancel_plainly};

/* ---- a transport ---- */

/* Waits before retrying a transport that returned -EAGAIN. */
CONC__PRIVATE int conc__transport_pause(conc_loop *l, double *seconds)
{
    int rc = conc__sleep_to_retry(l, *seconds);
    *seconds *= 2;
    if (*seconds > 0.064)
        *seconds = 0.064;
    return rc;
}

/* Calls a transport function through `once`, repeating the call after -EAGAIN, and returns its
 * result. An error becomes the task's latest. The call runs in a scope, stored in *scope, that
 * conc_stream_close can cancel. */
CONC__PRIVATE ssize_t conc__transport_call(conc_loop *l, const conc__transported *on,
                                           conc_scope **scope,
                                           ssize_t (*once)(const conc__transported *on,
                                                           const struct iovec *part),
                                           const struct iovec *part)
{
    conc_scope s = {0};
    uint32_t before = l->self->errors_made;
    int saved = errno;
    double pause = 0.001;
    conc__scope_open(l, &s, "the scope around a stream's transport");
    *scope = &s;
    ssize_t result = once(on, part);
    while (result == -EAGAIN) {
        result = conc__transport_pause(l, &pause);
        if (result == 0)
            result = once(on, part);
    }
    *scope = NULL;
    if (result < 0)
        conc__pass_error_since(l, (int)result, before);
    else if ((size_t)result > part->iov_len)
        result = conc__misused(-EINVAL, "a transport's function", "it returned more than n", NULL);
    int wrong = conc_scope_end(&s, 0); /* an error if the function left a scope or group open */
    if (wrong)
        result = wrong;
    errno = saved;
    return result;
}

CONC__PRIVATE ssize_t conc__transport_read_once(const conc__transported *on,
                                                const struct iovec *part)
{
    return on->calls.read(on->self, part->iov_base, part->iov_len);
}

CONC__PRIVATE ssize_t conc__transport_write_once(const conc__transported *on,
                                                 const struct iovec *part)
{
    ssize_t n = on->calls.write(on->self, part->iov_base, part->iov_len);
    if (n == 0)
        return conc__misused(-EINVAL, "a transport's write", "it returned 0", NULL);
    return n;
}

CONC__PRIVATE ssize_t conc__transport_shut_once(const conc__transported *on,
                                                const struct iovec *part)
{
    int rc = on->calls.shutdown(on->self);
    (void)part;
    return rc < 0 ? rc : 0;
}

/* Waits until no call is sending. Returns 0 if the caller may send, or an error. */
CONC__PRIVATE int conc__transport_may_send(conc_loop *l, conc_stream *s)
{
    conc__transported *on = s->on;
    while (on->sending) {
        conc__wait w = {.task = l->self, .kind = &conc__queueing, .on = s};
        conc__append(&on->senders, &w);
        int rc = conc__park(l, &w);
        if (rc)
            return rc;
    }
    if (s->state != CONC__STREAM_OPEN)
        return -EPIPE;
    return s->write_error;
}

/* Passes bytes to the transport; no other call may be sending. Returns how many it accepted, or an
 * error. */
CONC__PRIVATE ssize_t conc__transport_write(conc_loop *l, conc_stream *s, const char *bytes,
                                            size_t n)
{
    conc__transported *on = s->on;
    const struct iovec part = {(void *)(uintptr_t)bytes, n};
    ssize_t sent = conc__transport_call(l, on, &on->sending, conc__transport_write_once, &part);
    if (on->senders.first)
        conc__wake(l, on->senders.first, 0);
    if (sent >= 0)
        return sent;
    if (s->state != CONC__STREAM_OPEN)
        return -EPIPE;
    if (sent == -ECANCELED)
        return sent;
    conc__copy(on->write_words, sizeof on->write_words, conc__error_text(l->self, (int)sent));
    return conc__stream_broke(l, s, (int)sent);
}

/* Sends a piece of the buffer, waiting if necessary. Returns 1 if more is left, 0 if the buffer is
 * empty, or an error. */
CONC__PRIVATE int conc__transport_push_piece(conc_loop *l, conc_stream *s)
{
    conc__buffer *b = &s->out;
    int rc = conc__transport_may_send(l, s);
    if (rc)
        return rc;
    if (b->start < b->end) {
        conc__buffer_pack(b); /* its bytes must not move while being sent */
        ssize_t sent = conc__transport_write(l, s, b->data, conc__piece(b->end));
        if (sent < 0)
            return (int)sent;
        b->start += (size_t)sent;
    }
    if (b->start < b->end)
        return 1;
    conc__buffer_drop(l, b);
    return 0;
}

/* Makes a waiting read return a write error that no call has returned yet. A read that is about to
 * begin tries first, because bytes may be available. */
CONC__PRIVATE void conc__transport_break_read(conc_loop *l, conc_stream *s)
{
    conc__transported *on = s->on;
    while (s->unreturned && s->reader) {
        bool waits = s->reader->wait != NULL;
        on->interrupted |= waits && on->reading;
        if (waits && on->reading)
            conc__cancel_scope(l, on->reading);
        if (waits || conc_yield())
            return;
    }
}

CONC__PRIVATE int conc__transport_sender(void *arg)
{
    conc__transported *on = arg;
    conc_stream *s = on->stream;
    conc_loop *l = conc__here;
    int rc = 1;
    on->sender_began = true;
    if (on->starters.first)
        conc__wake(l, on->starters.first, 0);
    while (rc == 1) {
        rc = conc__transport_push_piece(l, s);
        if (rc == 1 && conc__stream_pass(l, s))
            rc = 0;
    }
    conc__transport_break_read(l, s);
    on->has_sender = false;
    conc__stream_exit(l, s);
    return 0;
}

/* Starts the sender if it is needed. Returns 0 or the error from spawning it, which is not
 * recorded. */
CONC__PRIVATE int conc__transport_start_sender(conc_loop *l, conc_stream *s)
{
    conc__transported *on = s->on;
    conc__kept_error kept;
    bool wanted = s->state == CONC__STREAM_OPEN && (conc__buffered(&s->out) || s->unreturned);
    if (!wanted || on->has_sender || s->writing)
        return 0;
    conc__error_keep(&kept, l->self);
    int rc = conc__spawn("a stream's sender", NULL, conc__transport_sender, on);
    conc__error_restore(l->self, &kept);
    if (rc)
        return rc;
    on->has_sender = true;
    on->sender_began = false;
    s->inside++;
    return 0;
}

static const conc__wait_kind conc__starting_sender = {
    .what = "starts to send what was written to a stream", .cancel = conc__cancel_plainly};

CONC__PRIVATE int conc__stream_flush_in_turn(conc_loop *l, conc_stream *s);

/* Called before a read waits. Starts the sender, and waits until it is running, so that the
 * transport's write is called before its read. If the sender cannot be started, the reader sends
 * the buffer. Returns 0 if the read may begin, or an error. */
CONC__PRIVATE int conc__transport_send_first(conc_loop *l, conc_stream *s)
{
    conc__transported *on = s->on;
    int rc = 0;
    if (conc__transport_start_sender(l, s)) {
        rc = conc__stream_flush_in_turn(l, s);
        bool cancelled = rc > 0 || rc == -ECANCELED;
        rc = 0;
        if (cancelled)
            rc = -ECANCELED;
        else if (s->unreturned)
            rc = s->write_error;
    } else if (on->has_sender && !on->sender_began) {
        conc__wait w = {.task = l->self, .kind = &conc__starting_sender, .on = s};
        conc__append(&on->starters, &w);
        rc = conc__park(l, &w);
    }
    if (s->state != CONC__STREAM_OPEN)
        return -EPIPE;
    return rc;
}

/* Returns the result of a read whose transport call was cancelled before it took any bytes. If the
 * task itself is cancelled, that is -ECANCELED. Otherwise the sender cancelled the call, and the
 * result is the write error or, if another task's call has already returned that, -EAGAIN, so that
 * the caller reads again. */
CONC__PRIVATE int conc__transport_cancelled(const conc_loop *l, const conc_stream *s)
{
    if (!s->on->interrupted || l->self->pending)
        return -ECANCELED;
    if (s->unreturned)
        return s->write_error;
    return -EAGAIN;
}

/* Reads bytes from the transport. Returns their count, 0 at end of file, or an error: -EAGAIN if
 * the caller must try again. */
CONC__PRIVATE ssize_t conc__transport_take(conc_loop *l, conc_stream *s, const struct iovec *part)
{
    conc__transported *on = s->on;
    on->interrupted = false;
    ssize_t got = conc__transport_call(l, on, &on->reading, conc__transport_read_once, part);
    if (s->state != CONC__STREAM_OPEN)
        return -EPIPE;
    if (got == -ECANCELED)
        return conc__transport_cancelled(l, s);
    s->at_end = got == 0;
    s->read_error = got < 0 ? (int)got : 0;
    if (got < 0)
        conc__copy(on->read_words, sizeof on->read_words, conc__error_text(l->self, (int)got));
    return got;
}

/* Tries once to do what conc__stream_pull does, on a transport. Returns -EAGAIN if the caller must
 * try again. */
CONC__PRIVATE ssize_t conc__transport_try_pull(conc_loop *l, conc_stream *s, char *to, size_t n)
{
    int rc = conc__transport_send_first(l, s);
    if (rc == 0 && !to)
        rc = conc__stream_room(l, s, n);
    if (rc)
        return rc;
    struct iovec part = {to, n};
    if (!to)
        part = (struct iovec){s->in.data + s->in.end, conc__piece(s->in.size - s->in.end)};
    ssize_t got = conc__transport_take(l, s, &part);
    if (!to && got > 0)
        s->in.end += (size_t)got;
    if (!conc__buffered(&s->in))
        conc__buffer_drop(l, &s->in);
    return got;
}

CONC__PRIVATE ssize_t conc__transport_pull(conc_loop *l, conc_stream *s, char *to, size_t n)
{
    ssize_t got;
    do
        got = conc__transport_try_pull(l, s, to, n);
    while (got == -EAGAIN);
    return got;
}

/* Called when it is the task's turn to write, with bytes that do not fit in the buffer. Fills the
 * buffer, sends from a full one, or sends the bytes themselves if it is empty. Returns how many of
 * the bytes were sent or buffered, or an error. */
CONC__PRIVATE ssize_t conc__transport_put(conc_loop *l, conc_stream *s, const char *bytes, size_t n)
{
    size_t kept = conc__buffered(&s->out);
    if (kept && kept < s->buffer_size)
        return conc__stream_keep(l, s, bytes, n);
    if (kept) {
        int pushed = conc__transport_push_piece(l, s);
        return pushed < 0 ? pushed : 0;
    }
    int rc = conc__transport_may_send(l, s);
    if (rc)
        return rc;
    return conc__transport_write(l, s, bytes, conc__piece(n));
}

/* Ends the transport's writing half. Called when it is the task's turn to write, after a flush. */
CONC__PRIVATE int conc__transport_shut(conc_loop *l, conc_stream *s)
{
    conc__transported *on = s->on;
    const struct iovec none = {NULL, 0};
    int rc = conc__transport_may_send(l, s);
    if (rc)
        return rc;
    rc = (int)conc__transport_call(l, on, &on->sending, conc__transport_shut_once, &none);
    if (on->senders.first)
        conc__wake(l, on->senders.first, 0);
    return rc;
}

/* Cancels the transport calls in progress. */
CONC__PRIVATE void conc__transport_interrupt(conc_loop *l, conc__transported *on)
{
    if (l && on->reading)
        conc__cancel_scope(l, on->reading);
    if (l && on->sending)
        conc__cancel_scope(l, on->sending);
}

/* Called when all tasks have left the closed stream. Frees the stream's memory, calls the
 * transport's close, and returns its result. */
CONC__PRIVATE int conc__transport_end(conc_loop *l, conc_stream *s)
{
    conc__transported *on = s->on;
    conc_task *self = l ? l->self : NULL;
    uint32_t before = self ? self->errors_made : 0;
    int saved = errno, rc = 0;
    conc__buffer_drop(l, &s->in);
    conc__buffer_drop(l, &s->out);
    int (*ends)(void *) = on->calls.close; /* `close(` might be a macro */
    if (ends)
        rc = ends(on->self);
    if (rc > 0)
        rc = 0;
    if (rc && self)
        conc__pass_error_since(l, rc, before);
    s->on = NULL;
    while (s->closers.first)
        conc__wake(l, s->closers.first, 1);
    conc_free(on);
    errno = saved;
    return rc;
}

/* ---- sending ---- */

/* Sends a piece of the buffer; on a descriptor, without waiting. Returns 1 if more is left, 0 if
 * the buffer is empty, -EAGAIN, or the error that ends writing. */
CONC__PRIVATE int conc__stream_push_piece(conc_loop *l, conc_stream *s)
{
    conc__buffer *b = &s->out;
    if (s->on)
        return conc__transport_push_piece(l, s);
    if (b->start == b->end) {
        conc__buffer_drop(l, b);
        return 0;
    }
    const struct iovec part = {b->data + b->start, conc__piece(b->end - b->start)};
    ssize_t n = conc__send(l, &(conc__io){.fd = s->fd, .any = true, .parts = &part, .count = 1});
    if (n == -EAGAIN)
        return -EAGAIN;
    if (n < 0)
        return conc__stream_broke(l, s, (int)n);
    b->start += (size_t)n;
    if (b->start < b->end)
        return 1;
    conc__buffer_drop(l, b);
    return 0;
}

/* Sends as much of the buffer as possible without waiting. Its callers soon let other tasks run. */
CONC__PRIVATE int conc__stream_push(conc_loop *l, conc_stream *s)
{
    int rc = conc__stream_push_piece(l, s);
    for (; rc == 1; rc = conc__stream_push_piece(l, s))
        l->ready.budget_left--;
    return rc;
}

/* Waits for bytes. Sends the buffer first, because the peer may need it before it replies. If
 * sending fails, returns without waiting. */
CONC__PRIVATE int conc__stream_await(conc_loop *l, conc_stream *s, conc__retry *p)
{
    int events = CONC_READABLE;
    if (conc__buffered(&s->out) && !s->writing && conc__stream_push(l, s) == -EAGAIN)
        events |= CONC_WRITABLE;
    if (!conc__buffered(&s->in))
        conc__buffer_drop(l, &s->in);
    if (s->unreturned)
        return 0;
    int rc = conc__fd_await(l, s->fd, events, p);
    if (s->state != CONC__STREAM_OPEN)
        return -EPIPE;
    if (rc > 0 && rc & CONC_WRITABLE && !s->writing)
        conc__stream_push(l, s);
    return rc;
}

/* Does what conc__stream_pull does, on a descriptor and without waiting. Returns -EAGAIN if it
 * would block. */
CONC__PRIVATE ssize_t conc__stream_receive(conc_loop *l, conc_stream *s, char *to, size_t n)
{
    struct iovec part = {to, n};
    if (!to) {
        int rc = conc__stream_room(l, s, n);
        if (rc)
            return rc;
        part = (struct iovec){s->in.data + s->in.end, conc__piece(s->in.size - s->in.end)};
    }
    ssize_t got =
        conc__receive(l, &(conc__io){.fd = s->fd, .any = true, .parts = &part, .count = 1});
    if (got == -EAGAIN)
        return got;
    s->at_end = got == 0;
    s->read_error = got < 0 ? (int)got : 0;
    if (!to && got > 0)
        s->in.end += (size_t)got;
    return got;
}

/* Waits for bytes and reads them: at most n into `to`, or, if `to` is NULL, into the buffer, which
 * may grow up to n. Returns their count, 0 at end of file, or an error. Instead of waiting, returns
 * a write error that no call has returned yet. */
CONC__PRIVATE ssize_t conc__stream_pull(conc_loop *l, conc_stream *s, char *to, size_t n)
{
    conc__retry retry = {0, 0};
    if (s->at_end || s->read_error)
        return s->read_error;
    if (s->on)
        return conc__transport_pull(l, s, to, n);
    for (;;) {
        conc__fd *f = conc__fd_find(l, s->fd);
        bool broken = s->unreturned;
        if (f && broken)
            /* ask the kernel: bytes may have arrived without an event, and must be returned before
             * the error */
            f->drained = false;
        /* if drained, do not even acquire a buffer */
        if (!f || !f->drained) {
            ssize_t got = conc__stream_receive(l, s, to, n);
            if (got != -EAGAIN)
                return got;
        }
        int rc = conc__stream_await(l, s, &retry);
        if (rc < 0)
            return rc;
        if (broken)
            return s->write_error;
    }
}

/* Begins `call`, which reads. Returns 0 or the call's error. */
CONC__PRIVATE int conc__stream_begin(conc_loop *l, conc_stream *s, const char *call)
{
    if (!l)
        return -EPERM;
    int rc = conc__stream_state(s, call);
    if (rc == 0 && s->reader)
        rc = conc__misused(-EBUSY, call, "another task is reading", NULL);
    if (rc == 0)
        rc = conc__stream_enter(l, s, call);
    if (rc)
        return rc;
    /* yield now, not later: another task's read would make the returned data invalid */
    conc__spend_budget(l);
    if (s->state != CONC__STREAM_OPEN)
        rc = -EPIPE;
    else if (s->reader)
        rc = conc__misused(-EBUSY, call, "another task is reading", NULL);
    if (rc)
        return (int)conc__stream_leave(l, s, rc);
    if (s->ended)
        *s->ended = s->covered;
    s->ended = NULL;
    s->reader = l->self;
    return 0;
}

/* Records the error that a read returns: its own, or a write error that no call has returned
 * yet. */
CONC__COLD void conc__stream_read_failed(conc_stream *s, int rc)
{
    bool of_reading = s->read_error && rc == s->read_error;
    conc__stream_failed(s, rc, of_reading);
    if (!of_reading)
        conc__stream_returns(s, rc);
}

CONC__PRIVATE ssize_t conc__stream_done(conc_loop *l, conc_stream *s, ssize_t result)
{
    s->reader = NULL;
    if (CONC__UNLIKELY(result < 0))
        conc__stream_read_failed(s, (int)result);
    conc__stream_exit(l, s);
    return result;
}

/* Moves at most n bytes from the read buffer to `to`. Returns their count. */
CONC__PRIVATE size_t conc__stream_copy(conc_stream *s, char *to, size_t n)
{
    size_t there = conc__buffered(&s->in), count = n < there ? n : there;
    if (count)
        memcpy(to, s->in.data + s->in.start, count);
    s->in.start += count;
    return count;
}

CONC__COLD int conc__bad_buffer(const char *call)
{
    return conc__misused(-EINVAL, call, "no buffer, or an invalid size", NULL);
}

CONC_API CONC__CALLED ssize_t conc_stream_read(conc_stream *s, void *buf, size_t n)
{
    conc_loop *l = conc__in_task();
    int rc = conc__stream_begin(l, s, __func__);
    if (rc)
        return rc;
    if (!conc__is_array(buf, n, 1))
        return conc__stream_done(l, s, conc__bad_buffer(__func__));
    ssize_t got = (ssize_t)conc__stream_copy(s, buf, n);
    if (got || !n)
        return conc__stream_done(l, s, got);
    if (n >= s->buffer_size)
        return conc__stream_done(l, s, conc__stream_pull(l, s, buf, n));
    got = conc__stream_pull(l, s, NULL, s->buffer_size);
    if (got > 0)
        got = (ssize_t)conc__stream_copy(s, buf, n);
    return conc__stream_done(l, s, got);
}

CONC_API CONC__CALLED ssize_t conc_stream_read_full(conc_stream *s, void *buf, size_t n)
{
    conc_loop *l = conc__in_task();
    int rc = conc__stream_begin(l, s, __func__);
    if (rc)
        return rc;
    if (!conc__is_array(buf, n, 1))
        return conc__stream_done(l, s, conc__bad_buffer(__func__));
    size_t done = conc__stream_copy(s, buf, n);
    ssize_t got = 0;
    while (done < n) {
        got = conc__stream_pull(l, s, (char *)buf + done, conc__piece(n - done));
        if (got <= 0)
            break;
        done += (size_t)got;
        got = 0;
        if (done < n)
            got = conc__stream_pass(l, s);
        if (got)
            break;
    }
    if (done)
        got = (ssize_t)done;
    return conc__stream_done(l, s, got);
}

typedef struct conc__record {
    const char *delimiter;
    size_t size;    /* size of the delimiter */
    size_t slack;   /* maximum size of a record's terminator */
    bool line;      /* a line, returned without its terminator */
    size_t scanned; /* bytes at the start of the buffer in which no delimiter begins */
} conc__record;

/* Finds the delimiter in the buffer. Returns its offset from the start, or SIZE_MAX. */
CONC__PRIVATE size_t conc__record_find(const conc__buffer *b, conc__record *r)
{
    const char *first = b->data + b->start, *at = first + r->scanned;
    size_t left = conc__buffered(b) - r->scanned;
    while (left >= r->size) {
        const char *hit = memchr(at, r->delimiter[0], left - r->size + 1);
        if (!hit)
            break;
        if (r->size == 1 || memcmp(hit, r->delimiter, r->size) == 0)
            return (size_t)(hit - first);
        left -= (size_t)(hit + 1 - at);
        at = hit + 1;
    }
    r->scanned = 0;
    if (conc__buffered(b) >= r->size)
        r->scanned = conc__buffered(b) - r->size + 1;
    return SIZE_MAX;
}

/* Removes the first `total` bytes from the buffer. *data points to the first `length` of them, with
 * a NUL after them. Returns length. */
static inline ssize_t conc__record_take(conc_stream *s, size_t length, size_t total, char **data)
{
    char *first = s->in.data + s->in.start;
    if (length == total) { /* otherwise the NUL replaces a byte of the terminator */
        s->ended = first + length;
        s->covered = *s->ended;
    }
    first[length] = 0;
    *data = first;
    s->in.start += total;
    return (ssize_t)length;
}

/* Takes the last record, which ends at end of file without a delimiter. */
CONC__PRIVATE ssize_t conc__record_rest(conc_stream *s, size_t n, char **data)
{
    if (!n)
        return 0;
    if (n > s->limit)
        return -EMSGSIZE;
    return conc__record_take(s, n, n, data);
}

/* Takes the record whose delimiter begins at `at`. */
CONC__PRIVATE ssize_t conc__record_found(conc_stream *s, const conc__record *r, size_t at,
                                         char **data)
{
    bool cr = r->line && at && s->in.data[s->in.start + at - 1] == '\r';
    size_t length = at - cr, total = at + r->size;
    if (length > s->limit)
        return -EMSGSIZE;
    if (!r->line)
        length = total;
    return conc__record_take(s, length, total, data);
}

CONC__PRIVATE ssize_t conc__record_read(conc_loop *l, conc_stream *s, conc__record *r, char **data)
{
    for (;;) {
        size_t there = conc__buffered(&s->in), at = SIZE_MAX;
        if (there)
            at = conc__record_find(&s->in, r);
        if (at != SIZE_MAX)
            return conc__record_found(s, r, at, data);
        if (there >= s->limit + r->slack)
            return -EMSGSIZE;
        ssize_t got = conc__stream_pull(l, s, NULL, s->limit + r->slack);
        if (got > 0)
            got = conc__stream_pass(l, s);
        else if (got == 0)
            return conc__record_rest(s, there, data);
        if (got < 0)
            return got;
    }
}

CONC__PRIVATE ssize_t conc__stream_record(const char *call, conc_stream *s, conc__record *r,
                                          char **data)
{
    conc_loop *l = conc__in_task_of(call);
    int rc = conc__stream_begin(l, s, call);
    if (rc)
        return rc;
    return conc__stream_done(l, s, conc__record_read(l, s, r, data));
}

CONC_API CONC__CALLED ssize_t conc_stream_read_until(conc_stream *s, const void *delimiter,
                                                     size_t n, char **data)
{
    conc__record r = {.delimiter = delimiter, .size = n, .slack = n};
    if (!conc__in_task())
        return -EPERM;
    if (!data || !delimiter || !n || n > PTRDIFF_MAX / 4)
        return conc__misused(-EINVAL, __func__, "no delimiter, or nowhere to put the data", NULL);
    *data = NULL;
    return conc__stream_record("conc_stream_read_until", s, &r, data);
}

/* Can a call use the buffers immediately? Not if a closed stream, a cancel, or another task's call
 * must be handled first. */
static inline bool conc__stream_is_idle(const conc_loop *l, const conc_stream *s)
{
    return l && s && s->state == CONC__STREAM_OPEN && !l->self->pending && !s->reader &&
           l->ready.budget_left > 1;
}

/* Takes the next line if it is already buffered, as happens when clients do not wait for each
 * reply. Otherwise returns -1. */
static inline ssize_t conc__stream_next_line(conc_loop *l, conc_stream *s, char **line)
{
    if (!conc__stream_is_idle(l, s) || s->in.start == s->in.end)
        return -1;
    if (s->ended)
        *s->ended = s->covered;
    s->ended = NULL;
    const char *first = s->in.data + s->in.start,
               *end = memchr(first, '\n', conc__buffered(&s->in));
    if (!end)
        return -1;
    size_t length = (size_t)(end - first), cr = length && end[-1] == '\r';
    if (length - cr > s->limit)
        return -1;
    l->ready.budget_left--;
    return conc__record_take(s, length - cr, length + 1, line);
}

/* The slow path of conc_stream_read_line. Inlined, it would make the fast path save registers. */
CONC__PRIVATE CONC__CALLED ssize_t conc__stream_line(conc_stream *s, char **line)
{
    conc__record r = {.delimiter = "\n", .size = 1, .slack = 2, .line = true};
    if (!conc__in_task_of("conc_stream_read_line"))
        return -EPERM;
    if (!line)
        return conc__misused(-EINVAL, "conc_stream_read_line", "nowhere to put the line", NULL);
    *line = NULL;
    return conc__stream_record("conc_stream_read_line", s, &r, line);
}

CONC_API CONC__CALLED ssize_t conc_stream_read_line(conc_stream *s, char **line)
{
    ssize_t length = -1;
    if (line)
        length = conc__stream_next_line(conc__of_task(), s, line);
    if (CONC__UNLIKELY(length < 0))
        return conc__stream_line(s, line);
    return length;
}

/* Returns 0 if a call may write, or the call's error. */
CONC__PRIVATE int conc__stream_writable(const conc_stream *s)
{
    if (s->state != CONC__STREAM_OPEN || s->shut)
        return -EPIPE;
    return s->write_error;
}

/* Begins a call that writes. Returns 0 or the call's error. */
CONC__PRIVATE int conc__stream_begin_writing(conc_loop *l, conc_stream *s, const char *call)
{
    int rc = conc__stream_enter(l, s, call);
    if (rc == 0 && (s->write_error || s->shut))
        rc = (int)conc__stream_leave(l, s, conc__stream_returns(s, conc__stream_writable(s)));
    return rc;
}

/* Waits for the calling task's turn to write. Returns 0 or an error. */
CONC__PRIVATE int conc__stream_turn(conc_loop *l, conc_stream *s)
{
    if (s->writing) {
        conc__wait w = {.task = l->self, .kind = &conc__queueing, .on = s};
        conc__append(&s->writers, &w);
        int rc = conc__park(l, &w);
        if (rc)
            return rc;
    }
    s->writing = true;
    return 0;
}

/* If a read is waiting, sends what has been written since its wait began. (The read itself sent the
 * buffer before that.) */
CONC__PRIVATE void conc__stream_send_for_reader(conc_loop *l, conc_stream *s)
{
    if (s->on) { /* if there is no memory for a sender, the next read or write sends the bytes */
        if (s->on->reading && conc__buffered(&s->out))
            conc__transport_start_sender(l, s);
        return;
    }
    conc__wait *w = NULL;
    if (s->reader && !s->writing)
        w = s->reader->wait;
    bool for_fd = w && (w->kind == &conc__watching || w->kind == &conc__pausing);
    if (!for_fd)
        return;
    int rc = conc__stream_push(l, s);
    if (rc == -EAGAIN && w->kind == &conc__watching)
        conc__fd_widen(l, w, CONC_WRITABLE);
    else if (rc < 0 && rc != -EAGAIN)
        conc__fd_wake_one(l, w); /* the read returns the error */
}

/* Passes the turn to write to the next waiting task. */
CONC__PRIVATE void conc__stream_turn_over(conc_loop *l, conc_stream *s)
{
    if (s->writers.first) {
        conc__wake(l, s->writers.first, 0);
        return;
    }
    s->writing = false;
    conc__stream_send_for_reader(l, s);
}

/* Sends the buffer and then the given bytes; on a descriptor, without waiting. Returns how many of
 * the given bytes were accepted, or an error. */
CONC__PRIVATE ssize_t conc__stream_send(conc_loop *l, conc_stream *s, const char *bytes, size_t n)
{
    conc__buffer *b = &s->out;
    if (s->on)
        return conc__transport_put(l, s, bytes, n);
    size_t kept = conc__buffered(b);
    struct iovec parts[2];
    conc__io io = {.fd = s->fd, .any = true, .parts = parts};
    if (kept)
        parts[io.count++] = (struct iovec){b->data + b->start, kept};
    parts[io.count++] = (struct iovec){(void *)(uintptr_t)bytes, conc__piece(n)};
    ssize_t sent = conc__send(l, &io);
    if (sent == -EAGAIN)
        return sent;
    if (sent < 0)
        return conc__stream_broke(l, s, (int)sent);
    if ((size_t)sent < kept) {
        b->start += (size_t)sent;
        return 0;
    }
    conc__buffer_drop(l, b);
    return sent - (ssize_t)kept;
}

/* Sends or buffers some of the bytes; on a descriptor, without waiting. Returns how many, or an
 * error. Sets *blocks if the descriptor accepts no more at present. */
CONC__PRIVATE ssize_t conc__stream_put_some(conc_loop *l, conc_stream *s, const char *bytes,
                                            size_t n, bool *blocks)
{
    *blocks = false;
    if (n > s->buffer_size - conc__buffered(&s->out)) {
        ssize_t sent = conc__stream_send(l, s, bytes, n);
        if (sent != -EAGAIN)
            return sent;
        *blocks = true;
    }
    return conc__stream_keep(l, s, bytes, n);
}

/* Sends or buffers all n bytes. Called when it is the task's turn to write. */
CONC__PRIVATE ssize_t conc__stream_put(conc_loop *l, conc_stream *s, const char *bytes, size_t n)
{
    conc__retry retry = {0, 0};
    size_t done = 0;
    int rc = 0;
    while (rc >= 0) {
        bool blocks;
        ssize_t took = conc__stream_put_some(l, s, bytes + done, n - done, &blocks);
        bool counts = took == -ENOMEM || took == -ECANCELED; /* if so, return the count so far */
        if (counts && done)
            return (ssize_t)done;
        if (took < 0)
            return took;
        done += (size_t)took;
        if (done == n)
            return (ssize_t)n;
        if (blocks)
            rc = conc__fd_await(l, s->fd, CONC_WRITABLE, &retry);
        else
            rc = conc__stream_pass(l, s);
        if (s->state != CONC__STREAM_OPEN)
            return -EPIPE;
    }
    if (done)
        return (ssize_t)done;
    return rc;
}

CONC__PRIVATE ssize_t conc__stream_write_bytes(conc_loop *l, conc_stream *s, const char *bytes,
                                               size_t n)
{
    ssize_t took;
    if (!s->writing && n <= s->buffer_size - conc__buffered(&s->out)) {
        took = conc__stream_keep(l, s, bytes, n);
        conc__stream_send_for_reader(l, s);
    } else {
        took = conc__stream_turn(l, s);
        if (took)
            return took;
        took = conc__stream_writable(s);
        if (took == 0)
            took = conc__stream_put(l, s, bytes, n);
        conc__stream_turn_over(l, s);
    }
    if (took < 0)
        return conc__stream_returns(s, (int)took);
    conc__spend_budget(l);
    return took;
}

CONC__PRIVATE CONC__CALLED ssize_t conc__stream_write_slowly(conc_stream *s, const void *buf,
                                                             size_t n)
{
    conc_loop *l = conc__in_task();
    int rc = conc__stream_begin_writing(l, s, __func__);
    if (rc)
        return rc;
    if (!conc__is_array(buf, n, 1))
        return conc__stream_leave(l, s, conc__bad_buffer(__func__));
    return conc__stream_leave(l, s, conc__stream_write_bytes(l, s, buf, n));
}

CONC_API ssize_t conc_stream_write(conc_stream *s, const void *buf, size_t n)
{
    conc_loop *l = conc__of_task();
    if (!conc__stream_is_idle(l, s) || s->writing)
        return conc__stream_write_slowly(s, buf, n);
    bool fits = s->out.data && n <= s->out.size - s->out.end;
    if (!fits || !buf)
        return conc__stream_write_slowly(s, buf, n);
    memcpy(s->out.data + s->out.end, buf, n);
    s->out.end += n;
    l->ready.budget_left--;
    return (ssize_t)n;
}

/* Formats into newly allocated memory, and stores its address in *text. Returns the length, -EINVAL
 * or -ENOMEM. */
CONC__PRIVATE int conc__format(char **text, const char *fmt, va_list args)
{
    va_list again;
    int saved = errno;
    va_copy(again, args);
    int length = vsnprintf(NULL, 0, fmt, args);
    *text = NULL;
    if (length < 0) {
        length = -EINVAL;
    } else {
        *text = conc__alloc((size_t)length + 1);
        if (*text)
            vsnprintf(*text, (size_t)length + 1, fmt, again);
        else
            length = -ENOMEM;
    }
    va_end(again);
    errno = saved;
    return length;
}

CONC_API ssize_t conc_stream_printf(conc_stream *s, const char *fmt, ...)
{
    conc_loop *l = conc__in_task();
    char *text;
    va_list args;
    int rc = conc__stream_begin_writing(l, s, __func__);
    if (rc)
        return rc;
    if (!fmt)
        return conc__stream_leave(l, s, conc__misused(-EINVAL, __func__, "no format", NULL));
    va_start(args, fmt);
    ssize_t n = conc__format(&text, fmt, args);
    va_end(args);
    if (n >= 0) {
        n = conc__stream_write_bytes(l, s, text, (size_t)n);
        conc_free(text);
    }
    return conc__stream_leave(l, s, n);
}

/* Waits until the buffer is sent. Called when it is the task's turn to write. If cancelled after
 * some bytes were sent, returns their count. */
CONC__PRIVATE int conc__stream_flush_all(conc_loop *l, conc_stream *s)
{
    conc__retry retry = {0, 0};
    size_t before = conc__buffered(&s->out);
    for (;;) {
        int rc = conc__stream_push_piece(l, s);
        if (rc == -EAGAIN)
            rc = conc__fd_await(l, s->fd, CONC_WRITABLE, &retry);
        else if (rc == 1)
            rc = conc__stream_pass(l, s);
        else if (rc != -ECANCELED)
            return rc;
        if (s->state != CONC__STREAM_OPEN)
            return -EPIPE;
        size_t done = before - conc__buffered(&s->out);
        if (rc == -ECANCELED && done)
            return done < INT_MAX ? (int)done : INT_MAX;
        if (rc < 0)
            return rc;
    }
}

/* Waits for the task's turn to write, and then until the buffer is sent. */
CONC__PRIVATE int conc__stream_flush_in_turn(conc_loop *l, conc_stream *s)
{
    int rc = conc__stream_turn(l, s);
    if (rc)
        return rc;
    rc = conc__stream_writable(s);
    if (rc == 0)
        rc = conc__stream_flush_all(l, s);
    else if (s->shut && s->state == CONC__STREAM_OPEN)
        rc = 0; /* the shutdown has flushed */
    conc__stream_turn_over(l, s);
    return rc;
}

CONC__PRIVATE int conc__stream_flush(conc_loop *l, conc_stream *s)
{
    return conc__stream_returns(s, conc__stream_flush_in_turn(l, s));
}

CONC_API int conc_stream_flush(conc_stream *s)
{
    conc_loop *l = conc__in_task();
    int rc = conc__stream_enter(l, s, __func__);
    if (rc)
        return rc;
    rc = conc__stream_flush(l, s);
    if (rc == 0)
        conc__spend_budget(l);
    return (int)conc__stream_leave(l, s, rc);
}

/* Is fd a pipe's write end? */
CONC__PRIVATE bool conc__is_write_end(int fd)
{
    struct stat st;
    if (fstat(fd, &st) || !S_ISFIFO(st.st_mode))
        return false;
    return (fcntl(fd, F_GETFL) & O_ACCMODE) == O_WRONLY;
}

/* Ends the writing half of the stream's descriptor. Returns 0 or an error. */
CONC__PRIVATE int conc__stream_end_half_of(conc_stream *s)
{
    int saved = errno, rc = 0;
    if (shutdown(s->fd, SHUT_WR))
        rc = -errno;
    bool closes = rc == -ENOTSOCK && conc__is_write_end(s->fd);
    errno = saved;
    if (closes) {
        rc = conc_close(s->fd);
        s->fd = -1;
        s->shut = true;
        return rc;
    }
    if (rc == -ENOTSOCK)
        return conc_fail(rc, "the stream's descriptor %d has no separate writing half", s->fd);
    return conc__system_failed(rc, "shutdown");
}

/* Ends the stream's writing half. Called when it is the task's turn to write, after a flush. */
CONC__PRIVATE int conc__stream_end_half(conc_loop *l, conc_stream *s)
{
    int rc = 0;
    if (!s->on)
        rc = conc__stream_end_half_of(s);
    else if (s->on->calls.shutdown)
        rc = conc__transport_shut(l, s);
    else
        rc = conc_fail(-ENOTSOCK, "the stream's transport has no separate writing half");
    if (rc == 0)
        s->shut = true;
    return rc;
}

/* Flushes and ends the writing half. Records an error with its text. */
CONC__PRIVATE int conc__stream_end_writing(conc_loop *l, conc_stream *s)
{
    int rc = conc__stream_turn(l, s);
    if (rc == -ECANCELED)
        return rc;
    if (rc)
        return conc__own_error(rc);
    if (!s->shut) { /* no other task has ended writing in the meantime */
        rc = conc__stream_writable(s);
        if (rc == 0)
            rc = conc__stream_flush_all(l, s);
        if (rc < 0)
            conc__stream_failed(s, rc, false);
        if (rc == 0)
            rc = conc__stream_end_half(l, s);
    }
    conc__stream_turn_over(l, s);
    if (rc > 0)
        rc = -ECANCELED;
    return conc__stream_returns(s, rc);
}

CONC_API int conc_stream_shutdown(conc_stream *s)
{
    conc_loop *l = conc__in_task();
    int rc = conc__stream_enter(l, s, __func__);
    if (rc)
        return rc;
    if (!s->shut)
        rc = conc__stream_end_writing(l, s);
    if (rc == 0)
        conc__spend_budget(l);
    conc__stream_leave(l, s, 0);
    return rc;
}

/* Flushes before a close. No other task may run between the flush and the close, because what it
 * wrote would be lost. Also returns 0 if another task has meanwhile closed the stream without
 * dropping any data. */
CONC__PRIVATE int conc__stream_flush_last(conc_loop *l, conc_stream *s)
{
    int rc = conc__stream_enter(l, s, "conc_stream_close");
    if (rc)
        return rc;
    rc = conc__stream_flush(l, s);
    if (s->state != CONC__STREAM_OPEN && !s->dropped)
        rc = 0;
    return (int)conc__stream_leave(l, s, rc);
}

static const conc__wait_kind conc__vacating = {
    .what = "waits until no task is using the stream that it closed"};

/* Waits until other tasks' calls have ended and, if another task ends the transport, until it has
 * done so; by then the stream's memory may be gone. A cancel does not end the wait, because the
 * close has already woken those calls. Outside a task, does not wait. */
CONC__PRIVATE void conc__stream_vacate(conc_loop *l, conc_stream *s, bool ends_transport)
{
    bool other_ends = s->on && !ends_transport;
    if (!l || !l->self)
        return;
    if (!s->inside && !other_ends)
        return;
    int done = 0;
    while (!done) {
        conc__wait w = {.task = l->self, .kind = &conc__vacating, .on = s};
        conc__append(&s->closers, &w);
        done = conc__park(l, &w) || ends_transport;
    }
}

/* Ends the transport. Called by the task that closed the stream, after the others have left. If it
 * could not wait for them, the last of them ends the transport instead. The flush's error remains
 * the latest. */
CONC__PRIVATE int conc__stream_end_transport(conc_loop *l, conc_stream *s, int flushed)
{
    conc__kept_error kept;
    if (s->inside) {
        s->on->abandoned = true;
        return 0;
    }
    if (!flushed || !l || !l->self)
        return conc__transport_end(l, s);
    conc__error_keep(&kept, l->self);
    int rc = conc__transport_end(l, s);
    conc__error_restore(l->self, &kept);
    return rc;
}

/* Closes the stream. On a descriptor, also frees the stream's memory and returns conc_close's
 * result. */
CONC__PRIVATE int conc__stream_shut(conc_loop *l, conc_stream *s)
{
    s->state = CONC__STREAM_CLOSED;
    s->dropped = conc__buffered(&s->out);
    if (l)
        CONC__HOOK(l, closed(l, s));
    while (s->writers.first)
        conc__wake(l, s->writers.first, -EPIPE);
    s->ended = NULL;
    if (s->on) {
        conc__transport_interrupt(l, s->on);
        return 0;
    }
    int rc = 0;
    if (s->fd >= 0) /* a pipe's end may already be closed */
        rc = conc_close(s->fd);
    s->fd = -1;
    conc__buffer_drop(l, &s->in);
    conc__buffer_drop(l, &s->out);
    return rc;
}

CONC_API int conc_stream_close(conc_stream *s)
{
    conc_loop *l = conc__here;
    int rc = 0, closed = 0;
    if (!s || s->state == CONC__STREAM_FRESH)
        return 0;
    conc__stream_renew(s);
    bool open = s->state == CONC__STREAM_OPEN;
    bool kept = open && (conc__buffered(&s->out) || s->writing);
    if (kept && l && l->self && !l->self->pending)
        rc = conc__stream_flush_last(l, s);
    bool shuts = s->state == CONC__STREAM_OPEN; /* no other task has closed it in the meantime */
    if (shuts) {
        closed = conc__stream_shut(l, s);
        if (rc == 0 && s->unreturned) {
            rc = s->write_error;
            conc__stream_failed(s, rc, false);
        }
    }
    bool ends_transport = shuts && s->on;
    conc__stream_vacate(l, s, ends_transport);
    if (ends_transport)
        closed = conc__stream_end_transport(l, s, rc);
    if (rc == 0)
        return closed;
    if (rc > 0)
        return -ECANCELED;
    return rc;
}

CONC_API void conc__auto_conc_stream(conc_stream *s)
{
    conc_loop *l = conc__of_task();
    conc__kept_error kept;
    if (l)
        conc__error_keep(&kept, l->self);
    int rc = conc_stream_close(s);
    if (rc < 0 && rc != -ECANCELED && l)
        conc__report_close(l, "a stream", rc);
    if (l)
        conc__error_restore(l->self, &kept);
}

/* ---- >>signals ------------------------------------------------------------------------------ */

enum { CONC__SIGNAL_LOOPS = 256, CONC__SIGNAL_STACK = 65536 };

/* The loops that signals wake; NULL marks a free slot. When all slots are taken, another block is
 * added. Blocks are never freed, because a handler may be reading them at any time. */
typedef struct conc__signal_loops {
    _Atomic(conc_loop *) loops[CONC__SIGNAL_LOOPS];
    _Atomic(struct conc__signal_loops *) more;
} conc__signal_loops;

/* For each signal number, one atomic word directs the handler. It holds the flags below and, above
 * them, a count of the received signals.
 *
 *   state         flags             disposition    what the handler does with a signal
 *   free          none              the program's  restores that, and re-raises the signal
 *   interrupting  INTERRUPTS        conc's         interrupts the runs that it may interrupt, or
 *                                                  kills the process
 *   dumping       DUMPS             conc's         makes runs in debug mode print their tasks
 *   received      RECEIVES and any  conc's         counts it, and wakes the loops
 *   restoring     RESTORING         changing       sets AGAIN, so that it is re-raised afterwards
 *
 *   from           change           made by
 *   not restoring  a flag is set    conc__signal_enter, under the mutex; it then sets the handler
 *   any            one is cleared   conc__signal_leave, under the mutex, for the role's last user
 *   free           restoring, free  conc__signal_restore, called by conc__signal_leave once no flag
 *                                   is left, and by the handler if it finds the number free
 *
 * The handler finds a number free if the last user left after the kernel had called the handler, or
 * if a library saved conc's handler and reinstalled it. The handler chooses what to do by one
 * atomic read of the word, so a signal never has two of these effects. It changes a disposition
 * only to kill the process, in a forked child, or while restoring, which conc__signal_enter waits
 * for. */
enum { CONC__RECEIVES, CONC__INTERRUPTS, CONC__DUMPS, CONC__ROLES };

#define CONC__ROLE(role) (1ul << (role))
#define CONC__ALL_ROLES (CONC__ROLE(CONC__ROLES) - 1)
#define CONC__RESTORING (1ul << 3)
#define CONC__AGAIN (1ul << 4)
#define CONC__CAME_ONE (1ul << 5)
#define CONC__CAME(word) ((word) & ~(CONC__CAME_ONE - 1))

/* A signal number that an open conc_signals receives. */
struct conc__signal_number {
    int number;
    unsigned long seen; /* the number's count when opened, plus one for each signal returned */
    conc_signals *receiver;
    struct conc__signal_number *next, *prev; /* list of the loop's receivers of this number */
};

CONC__TINY uint64_t conc__signal_bit(int number) { return (uint64_t)1 << (number - 1); }

/* What the process does with one signal number. All but `word` is written under the mutex. */
typedef struct conc__signal {
    _Atomic unsigned long word;
    int users[CONC__ROLES];  /* number of users by role: open conc_signals, or runs */
    unsigned long handed;    /* the highest `seen`: no receiver has returned later signals */
    struct sigaction before; /* the disposition before conc's handler */
} conc__signal;

/* Shared by all loops, because signals belong to the process. */
static struct conc__signalling {
    pthread_mutex_t mutex;
    conc__signal numbers[CONC__SIGNALS];
    atomic_int process; /* id of the process that installed the handlers, to detect a fork */
    conc__signal_loops reached;
    atomic_int running; /* number of running handlers; a loop that one may read must not be freed */
    int faults;         /* number of runs that report stack overflows */
    /* number of runs whose watchdog may signal the run's thread to get its frames */
    int questions;
} conc__signalling = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static const int conc__interrupting[] = {SIGINT, SIGTERM};

CONC__PRIVATE void conc__on_signal(int number);

CONC__PRIVATE bool conc__signal_is_ours(int number, struct sigaction *now)
{
    return sigaction(number, NULL, now) == 0 && !(now->sa_flags & SA_SIGINFO) &&
           now->sa_handler == conc__on_signal;
}

/* Returns whether the program has left the signal's disposition at its default. */
CONC__PRIVATE bool conc__signal_is_default(int number)
{
    struct sigaction now = {.sa_handler = SIG_DFL};
    if (conc__signal_is_ours(number, &now))
        now = conc__signalling.numbers[number].before;
    return !(now.sa_flags & SA_SIGINFO) && now.sa_handler == SIG_DFL;
}

/* Re-raises a signal that conc's handler caught but that conc has no use for. */
CONC__PRIVATE void conc__signal_again(int number)
{
    if (kill(getpid(), number))
        raise(number); /* a sandbox may refuse kill */
}

/* If the number is free, restores the disposition that it had before conc's handler, unless the
 * program has since changed it. Also runs in the handler, so it uses only atomics and system
 * calls. */
CONC__PRIVATE void conc__signal_restore(int number)
{
    conc__signal *n = &conc__signalling.numbers[number];
    struct sigaction now;
    unsigned long was = atomic_load(&n->word), free = CONC__CAME(was);
    if (!atomic_compare_exchange_strong(&n->word, &free, free | CONC__RESTORING))
        return;
    if (conc__signal_is_ours(number, &now))
        sigaction(number, &n->before, NULL);
    was = atomic_fetch_and(&n->word, ~(CONC__RESTORING | CONC__AGAIN));
    if (was & CONC__AGAIN)
        conc__signal_again(number);
}

/* Performs the signal's default action at once. Unblocks the signal first, because the kernel
 * blocks it while its handler runs. */
CONC__PRIVATE void conc__signal_kills(int number)
{
    struct sigaction usual;
    sigset_t set;
    memset(&usual, 0, sizeof usual);
    usual.sa_handler = SIG_DFL;
    sigaction(number, &usual, NULL);
    sigemptyset(&set);
    sigaddset(&set, number);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    raise(number);
}

CONC__TINY unsigned conc__interrupt_bit(int number) { return number == SIGINT ? 1 : 2; }

/* Interrupts a run. Returns whether the signal kills the process instead, because the run was
 * already interrupted and has not ended. One Ctrl+C may arrive twice, from the terminal and from a
 * parent, so signals within 0.1 s count as one. */
CONC__PRIVATE bool conc__interrupt(conc_loop *l, int number)
{
    enum { ONE = 100000000 };
    int64_t now = conc__clock(), first = 0;
    if (!(atomic_load(&l->interrupt.numbers) & conc__interrupt_bit(number)))
        return false;
    if (!atomic_compare_exchange_strong(&l->interrupt.first_at, &first, now))
        return now - first >= ONE;
    atomic_store(&l->interrupt.pending, number);
    return false;
}

/* Passes a signal to a loop and wakes it. Returns whether the signal kills the process. */
CONC__PRIVATE bool conc__signal_reaches_loop(conc_loop *l, int number, unsigned long role)
{
    bool kills = role == CONC__INTERRUPTS && conc__interrupt(l, number);
    if (role == CONC__DUMPS)
        atomic_store(&l->signals.dump_asked, true);
    atomic_store(&l->signals.came, true);
    conc__wake_up(l);
    return kills;
}

/* Passes a signal to all loops. Returns whether it kills the process. */
CONC__PRIVATE bool conc__signal_reaches(int number, unsigned long role)
{
    bool kills = false;
    atomic_fetch_add(&conc__signalling.running, 1);
    conc__signal_loops *all = &conc__signalling.reached;
    for (; all; all = atomic_load(&all->more))
        for (int i = 0; i < CONC__SIGNAL_LOOPS; i++) {
            conc_loop *l = atomic_load(&all->loops[i]);
            if (l)
                kills |= conc__signal_reaches_loop(l, number, role);
        }
    atomic_fetch_sub(&conc__signalling.running, 1);
    return kills;
}

/* Counts a signal if it has receivers, or sets AGAIN while its disposition is being restored.
 * Returns the previous word. */
CONC__PRIVATE unsigned long conc__signal_comes(conc__signal *n)
{
    unsigned long was = atomic_load(&n->word), next;
    do {
        next = was;
        if (was & CONC__ROLE(CONC__RECEIVES))
            next = was + CONC__CAME_ONE;
        else if (was & CONC__RESTORING)
            next = was | CONC__AGAIN;
    } while (!atomic_compare_exchange_weak(&n->word, &was, next));
    return was;
}

/* Handles every signal that conc uses. May run in any thread at any time, so it uses only atomics
 * and system calls. */
CONC__PRIVATE void conc__on_signal(int number)
{
    conc__signal *n = &conc__signalling.numbers[number];
    int saved = errno;
    /* in a forked child, before its fork hook has run */
    if (atomic_load(&conc__signalling.process) != getpid()) {
        sigaction(number, &n->before, NULL);
        conc__signal_again(number);
        errno = saved;
        return;
    }
    unsigned long was = conc__signal_comes(n);
    if (was & CONC__ROLE(CONC__RECEIVES)) {
        conc__signal_reaches(number, CONC__RECEIVES);
    } else if (was & CONC__ROLE(CONC__INTERRUPTS)) {
        if (conc__signal_reaches(number, CONC__INTERRUPTS))
            conc__signal_kills(number);
    } else if (was & CONC__ROLE(CONC__DUMPS)) {
        conc__signal_reaches(number, CONC__DUMPS);
    } else if (!(was & CONC__RESTORING)) {
        conc__signal_restore(number);
        conc__signal_again(number);
    }
    errno = saved;
}

/* Sets a role's flag, and clears the flags in `without`. Returns the previous word. */
CONC__PRIVATE unsigned long conc__signal_flag(conc__signal *n, int role, unsigned long without)
{
    unsigned long was = atomic_load(&n->word);
    for (;;) {
        if (was & CONC__RESTORING) { /* another thread's handler is restoring the disposition */
            sched_yield();
            was = atomic_load(&n->word);
        } else if (atomic_compare_exchange_weak(&n->word, &was,
                                                (was & ~without) | CONC__ROLE(role))) {
            return was;
        }
    }
}

/* Adds a user of the number, even on error, and installs the handler. Sets *came to the count of
 * signals so far. The caller holds the mutex. */
CONC__PRIVATE int conc__signal_enter(int number, int role, unsigned long *came)
{
    conc__signal *n = &conc__signalling.numbers[number];
    struct sigaction now, ours;
    unsigned long without = 0;
    if (!conc__signal_is_ours(number, &now)) {
        n->before = now;
        /* the program may have replaced conc's handler; if so, the signal no longer interrupts */
        if (role == CONC__RECEIVES)
            without = CONC__ALL_ROLES;
    }
    memset(&ours, 0, sizeof ours);
    ours.sa_handler = conc__on_signal;
    ours.sa_flags = SA_RESTART | CONC__SA_ONSTACK;
    sigfillset(&ours.sa_mask);
    atomic_store(&conc__signalling.process, getpid());
    *came = CONC__CAME(conc__signal_flag(n, role, without));
    if (role == CONC__RECEIVES && n->users[role] == 0)
        n->handed = *came;
    n->users[role]++;
    if (sigaction(number, &ours, NULL))
        return -errno;
    return 0;
}

/* Removes a user of the number. The role's last user restores the former disposition if the number
 * is then free. The caller holds the mutex. */
CONC__PRIVATE void conc__signal_leave(int number, int role)
{
    conc__signal *n = &conc__signalling.numbers[number];
    if (--n->users[role])
        return;
    unsigned long was = atomic_fetch_and(&n->word, ~CONC__ROLE(role));
    conc__signal_restore(number);
    if (role == CONC__RECEIVES && CONC__CAME(was) != n->handed)
        conc__signal_again(number); /* no receiver has returned it, and none is left */
}

/* Takes a free slot for the loop, and returns it, or NULL if memory runs out. */
CONC__PRIVATE _Atomic(conc_loop *) *conc__signal_slot_take(conc_loop *l)
{
    conc__signal_loops *all = &conc__signalling.reached, *more, *none;
    for (;; all = more) {
        for (int i = 0; i < CONC__SIGNAL_LOOPS; i++) {
            conc_loop *free = NULL;
            if (atomic_compare_exchange_strong(&all->loops[i], &free, l))
                return &all->loops[i];
        }
        none = NULL;
        more = atomic_load(&all->more);
        if (more)
            continue;
        more = conc__alloc(sizeof *more);
        if (!more)
            return NULL;
        memset(more, 0, sizeof *more);
        if (!atomic_compare_exchange_strong(&all->more, &none, more)) {
            CONC_FREE(more);
            more = none;
        }
    }
}

/* Makes signals wake this loop. A signal frame takes up to 12 KiB on processors with large
 * registers, so handlers run on their own stack, not a task's. */
CONC__PRIVATE int conc__signals_reach(conc_loop *l)
{
    stack_t none = {0}, now;
    if (l->signals.slot)
        return 0;
    l->signals.slot = conc__signal_slot_take(l);
    if (!l->signals.slot)
        return -ENOMEM;
    if (sigaltstack(NULL, &now) == 0 && now.ss_flags & CONC__SS_DISABLE)
        none.ss_sp = l->signals.stack = conc__map_pages(CONC__SIGNAL_STACK);
    none.ss_size = CONC__SIGNAL_STACK;
    if (l->signals.stack)
        sigaltstack(&none, NULL);
    return 0;
}

CONC__PRIVATE void conc__signals_unreach(conc_loop *l)
{
    stack_t none = {.ss_flags = CONC__SS_DISABLE}, now;
    if (!l->signals.slot)
        return;
    atomic_store(l->signals.slot, NULL);
    while (atomic_load(&conc__signalling.running))
        sched_yield();
    if (l->signals.stack) {
        if (sigaltstack(NULL, &now) == 0 && now.ss_sp == l->signals.stack)
            sigaltstack(&none, NULL);
        conc__unmap_pages(l->signals.stack, CONC__SIGNAL_STACK);
    }
    l->signals.slot = NULL;
}

/* Returns the number of a signal that s has not returned yet, and counts that signal as returned;
 * 0: none. */
CONC__PRIVATE int conc__signals_find(conc_signals *s)
{
    for (size_t i = 0; i < s->count; i++) {
        struct conc__signal_number *n = &s->numbers[(s->turn + i) % s->count];
        conc__signal *all = &conc__signalling.numbers[n->number];
        unsigned long came = CONC__CAME(atomic_load(&all->word));
        if (n->seen == came)
            continue;
        n->seen += CONC__CAME_ONE;
        s->turn = (s->turn + i + 1) % s->count;
        pthread_mutex_lock(&conc__signalling.mutex);
        if (came - n->seen < came - all->handed)
            all->handed = n->seen;
        pthread_mutex_unlock(&conc__signalling.mutex);
        return n->number;
    }
    return 0;
}

/* Cancels main_fn because of a signal. If main_fn was already cancelled, it ends because of that
 * cancel, not because of the signal; if it has already returned, the signal is late. */
CONC__PRIVATE void conc__interrupt_main(conc_loop *l, int number)
{
    if (l->run.winding_up) {
        l->interrupt.by = number;
        l->interrupt.late = true;
    } else if (!l->run.main.asked) {
        l->interrupt.by = number;
        conc__task_cancel(l, &l->run.main);
    }
}

/* Wakes tasks waiting for this signal, if it has arrived since the last call. */
CONC__PRIVATE void conc__signal_hand_out(conc_loop *l, int number)
{
    struct conc__signal_list *list = &l->signals.received[number];
    if (!list->first)
        return;
    unsigned long came = CONC__CAME(atomic_load(&conc__signalling.numbers[number].word));
    if (list->handed == came)
        return;
    list->handed = came;
    for (struct conc__signal_number *n = list->first; n; n = n->next) {
        conc_signals *s = n->receiver;
        while (s->waits.first) {
            int found = conc__signals_find(s);
            if (!found)
                break;
            l->signals.waits--;
            conc__wake(l, s->waits.first, found);
        }
    }
}

CONC__PRIVATE void conc__signals_hand_out(conc_loop *l)
{
    for (int number = 1; number < CONC__SIGNALS && l->signals.open; number++)
        conc__signal_hand_out(l, number);
}

/* Called by the scheduler: handles signals that have arrived. */
CONC__COLD void conc__take_signals_now(conc_loop *l)
{
    atomic_store(&l->signals.came, false);
    int interrupt = atomic_exchange(&l->interrupt.pending, 0);
    if (interrupt)
        conc__interrupt_main(l, interrupt);
    if (atomic_exchange(&l->signals.dump_asked, false) && l->diagnostics.dumps_taken)
        conc_dump(stderr);
    if (l->signals.open)
        l->signals.hand_out(l);
}

static inline void conc__take_signals(conc_loop *l)
{
    if (CONC__UNLIKELY(atomic_load_explicit(&l->signals.came, memory_order_relaxed)))
        conc__take_signals_now(l);
}

/* Returns 0 if a task can receive this signal number, -EINVAL if it cannot, or the system's
 * error. */
CONC__PRIVATE int conc__signal_may_be_received(int number)
{
    static const int never[] = {SIGKILL, SIGSTOP, SIGPIPE, SIGSEGV, SIGBUS, SIGFPE, SIGILL};
    struct sigaction now;
    for (size_t i = 0; i < CONC_LEN(never); i++)
        if (number == never[i])
            return -EINVAL;
    if (number <= 0 || number >= CONC__SIGNALS)
        return -EINVAL;
    if (sigaction(number, NULL, &now))
        return -errno;
    return 0;
}

CONC__PRIVATE void conc__signal_block(int number)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, number);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
}

/* Unblocks a signal in this thread, and records whether it was blocked. */
CONC__PRIVATE void conc__signal_unblock(conc_loop *l, int number)
{
    sigset_t set, before;
    sigemptyset(&set);
    sigemptyset(&before);
    sigaddset(&set, number);
    pthread_sigmask(SIG_UNBLOCK, &set, &before);
    if (sigismember(&before, number) == 1)
        l->signals.unblocked |= conc__signal_bit(number);
}

CONC__PRIVATE int conc__signal_subscribe(conc_loop *l, struct conc__signal_number *n)
{
    struct conc__signal_list *list = &l->signals.received[n->number];
    int rc = conc__signal_enter(n->number, CONC__RECEIVES, &n->seen);
    CONC__LIST_PREPEND(list->first, n, next, prev);
    conc__signal_unblock(l, n->number);
    return rc;
}

/* Unsubscribes a receiver from one number. When the loop's last receiver of the number is closed,
 * blocks the signal again if it was blocked before the first was opened. */
CONC__PRIVATE void conc__signal_unsubscribe(conc_loop *l, const struct conc__signal_number *n)
{
    struct conc__signal_list *list = &l->signals.received[n->number];
    CONC__LIST_REMOVE(list->first, n, next, prev);
    if (!list->first && l->signals.unblocked & conc__signal_bit(n->number)) {
        l->signals.unblocked &= ~conc__signal_bit(n->number);
        conc__signal_block(n->number);
    }
    conc__signal_leave(n->number, CONC__RECEIVES);
}

/* Subscribes to numbers until one fails. Sets *taken to their count, including the one that
 * failed. */
CONC__PRIVATE int conc__signals_subscribe(conc_loop *l, const conc_signals *s, size_t *taken)
{
    int rc = 0;
    for (*taken = 0; rc == 0 && *taken < s->count; ++*taken)
        rc = conc__signal_subscribe(l, &s->numbers[*taken]);
    return rc;
}

/* Unsubscribes from the first n numbers, in reverse order. */
CONC__PRIVATE void conc__signals_unsubscribe(conc_loop *l, const conc_signals *s, size_t n)
{
    while (n--)
        conc__signal_unsubscribe(l, &s->numbers[n]);
}

typedef struct conc__signal_call {
    conc_signals *s;
    const int *numbers;
    size_t n;
    int rc;
} conc__signal_call;

static const char conc__bad_number[] = "no task can receive this signal number";

/* Initializes the receiver with each number once, in the caller's order. */
CONC__PRIVATE int conc__signals_fill(conc_loop *l, const conc__signal_call *c)
{
    conc_signals *s = c->s;
    uint64_t left = 0;
    for (size_t i = 0; i < c->n; i++) {
        int rc = conc__signal_may_be_received(c->numbers[i]);
        if (rc)
            return rc;
        left |= conc__signal_bit(c->numbers[i]);
    }
    size_t count = (size_t)__builtin_popcountll(left);
    struct conc__signal_number *list = conc__alloc(count * sizeof *list);
    if (!list)
        return -ENOMEM;
    *s = (conc_signals){.numbers = list, .run = l->run.number};
    for (size_t i = 0; left; i++) {
        int number = c->numbers[i];
        if (left & conc__signal_bit(number))
            list[s->count++] = (struct conc__signal_number){.number = number, .receiver = s};
        left &= ~conc__signal_bit(number);
    }
    return 0;
}

CONC__PRIVATE void conc__signals_link(conc_loop *l, conc_signals *s)
{
    s->loop = l;
    CONC__LIST_PREPEND(l->signals.open, s, next, prev);
}

CONC__PRIVATE void conc__signals_unlink(conc_loop *l, const conc_signals *s)
{
    CONC__LIST_REMOVE(l->signals.open, s, next, prev);
}

CONC__PRIVATE void conc__signals_close_all(conc_loop *l, conc__ending *e);

CONC__PRIVATE void conc__open_signals(conc_loop *l, void *arg)
{
    conc__signal_call *c = arg;
    conc_signals *s = c->s;
    size_t taken = 0;
    int saved = errno;
    c->rc = conc__signals_fill(l, c);
    bool filled = c->rc == 0;
    if (filled)
        c->rc = conc__signals_reach(l);
    if (c->rc == 0) {
        pthread_mutex_lock(&conc__signalling.mutex);
        c->rc = conc__signals_subscribe(l, s, &taken);
        if (c->rc)
            conc__signals_unsubscribe(l, s, taken);
        pthread_mutex_unlock(&conc__signalling.mutex);
    }
    if (c->rc == 0) {
        l->signals.hand_out = conc__signals_hand_out;
        if (!l->signals.ending.end)
            conc__at_end(l, &l->signals.ending, conc__signals_close_all);
        conc__signals_link(l, s);
    } else if (filled) {
        CONC_FREE(s->numbers);
        *s = (conc_signals){0};
    }
    errno = saved;
}

CONC_API int conc__signals_open(const char *place, conc_signals *s, const int *numbers, size_t n)
{
    conc_loop *l = conc__here;
    conc__signal_call c = {s, numbers, n, 0};
    if (!l)
        return conc__misused(-EPERM, "conc_signals_open", "there is no loop", NULL);
    bool is_open = s && s->loop && s->run == l->run.number;
    if (!s || is_open || !n || !conc__is_array(numbers, n, sizeof *numbers))
        return conc__misused(-EINVAL, "conc_signals_open",
                             "no signal numbers, or the receiver is already open", NULL);
    if (s->loop && conc__run_is_elsewhere(l, s->run))
        return conc__misused(-EBUSY, "conc_signals_open", "it is open in another thread's run",
                             NULL);
    if (*conc__holding_find(&l->lent.receivers, s)) /* s was set to zero while it was open */
        conc__lost(l, l->self, (*conc__holding_find(&l->lent.receivers, s))->place,
                   conc__overwritten);
    conc__on_loop(l, conc__open_signals, &c);
    if (c.rc == 0) {
        conc__holding_add(&l->lent.receivers, s, "signals", place);
        l->lent.any = true;
    }
    if (c.rc == -EINVAL)
        return conc__misused(-EINVAL, "conc_signals_open", conc__bad_number, NULL);
    const char *call = conc__refused(-c.rc) ? "rt_sigaction" : NULL;
    return conc__system_failed(c.rc, call);
}

CONC__PRIVATE bool conc__receive_cancel(conc__wait *w)
{
    (void)w;
    conc__here->signals.waits--;
    return true;
}

static const conc__wait_kind conc__receiving = {.what = "waits for a signal",
                                                .cancel = conc__receive_cancel};

CONC_API CONC__CALLED int conc_signals_next(conc_signals *s)
{
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    if (!s)
        return conc__misused(-EINVAL, __func__, "no conc_signals", NULL);
    int rc = conc__checkpoint(l);
    if (rc)
        return rc;
    if (!s->loop)
        return conc__own_error(-EPIPE);
    if (s->loop != l || s->run != l->run.number)
        return conc__misused(-EPERM, "conc_signals_next", "it belongs to another run", NULL);
    conc__check_lost(l, __builtin_frame_address(0));
    if (!s->waits.first)
        rc = conc__signals_find(s);
    if (rc) {
        conc__spend_budget(l);
        return rc;
    }
    conc__wait w = {.task = l->self, .kind = &conc__receiving, .on = s};
    conc__append(&s->waits, &w);
    l->signals.waits++;
    return conc__wait_result(conc__park(l, &w));
}

CONC__PRIVATE void conc__close_signals(conc_loop *l, void *arg)
{
    conc_signals *s = ((conc__signal_call *)arg)->s;
    int saved = errno;
    conc__signals_unlink(l, s);
    pthread_mutex_lock(&conc__signalling.mutex);
    conc__signals_unsubscribe(l, s, s->count);
    pthread_mutex_unlock(&conc__signalling.mutex);
    CONC_FREE(s->numbers);
    errno = saved;
}

CONC_API int conc_signals_close(conc_signals *s)
{
    conc_loop *l = conc__here;
    conc__signal_call c = {.s = s};
    if (!s)
        return conc__misused(-EINVAL, __func__, "no conc_signals", NULL);
    if (!s->loop)
        return 0;
    if (!l || s->loop != l || s->run != l->run.number)
        return conc__misused(-EPERM, "conc_signals_close", "it belongs to another run", NULL);
    while (s->waits.first) {
        l->signals.waits--;
        conc__wake(l, s->waits.first, -EPIPE);
    }
    conc__on_loop(l, conc__close_signals, &c);
    conc__holding_drop(&l->lent.receivers, s);
    l->lent.any = l->lent.receivers || l->lent.handles;
    s->numbers = NULL;
    s->loop = NULL;
    return 0;
}

CONC_API void conc__auto_conc_signals(conc_signals *s) { conc_signals_close(s); }

CONC__PRIVATE void conc__signals_close_all(conc_loop *l, conc__ending *e)
{
    (void)e;
    while (l->signals.open)
        conc_signals_close(l->signals.open);
}

CONC_API int conc_wait_signal(int number)
{
    conc_signals s = {0};
    conc_loop *l = conc__in_task();
    if (!l)
        return -EPERM;
    if (conc__signal_may_be_received(number) == -EINVAL)
        return conc__misused(-EINVAL, __func__, conc__bad_number, NULL);
    int rc = conc__checkpoint(l);
    if (rc == 0)
        rc = conc_signals_open(&s, &number, 1);
    if (rc)
        return rc;
    rc = conc_signals_next(&s);
    conc_signals_close(&s);
    return rc;
}

/* Stops handling the run's interrupt signals. The caller holds the mutex. */
CONC__PRIVATE void conc__interrupts_leave(conc_loop *l)
{
    unsigned numbers = atomic_load(&l->interrupt.numbers);
    for (size_t i = 0; i < CONC_LEN(conc__interrupting); i++) {
        int number = conc__interrupting[i];
        if (numbers & conc__interrupt_bit(number))
            conc__signal_leave(number, CONC__INTERRUPTS);
    }
    /* only now: until then, the handler interrupts this run, and no signal is lost */
    atomic_store(&l->interrupt.numbers, 0);
}

/* Called when a run begins: lets SIGINT and SIGTERM interrupt it unless the program handles or
 * ignores them. */
CONC__PRIVATE int conc__interrupts_open(conc_loop *l)
{
    unsigned long came;
    if (!l->run.options.interrupt)
        return 0;
    int rc = conc__signals_reach(l);
    if (rc)
        return rc;
    pthread_mutex_lock(&conc__signalling.mutex);
    for (size_t i = 0; i < CONC_LEN(conc__interrupting) && rc == 0; i++) {
        int number = conc__interrupting[i];
        if (!conc__signal_is_default(number))
            continue;
        atomic_fetch_or(&l->interrupt.numbers, conc__interrupt_bit(number));
        rc = conc__signal_enter(number, CONC__INTERRUPTS, &came);
    }
    if (rc)
        conc__interrupts_leave(l);
    pthread_mutex_unlock(&conc__signalling.mutex);
    if (rc)
        snprintf(conc__thread_text, sizeof conc__thread_text, "rt_sigaction: %s",
                 conc__system_text(rc));
    return rc;
}

/* Called when a run ends: from now on, no signal reaches the run. */
CONC__PRIVATE void conc__signals_end(conc_loop *l)
{
    pthread_mutex_lock(&conc__signalling.mutex);
    conc__interrupts_leave(l);
    pthread_mutex_unlock(&conc__signalling.mutex);
    conc__signals_unreach(l);
    int late = atomic_load(&l->interrupt.pending); /* it arrived after the scheduler's last check */
    if (late) {
        l->interrupt.by = late;
        l->interrupt.late = true;
    }
}

/* Called in a forked child: forgets the parent's loops, and restores the signal dispositions that
 * conc's handlers replaced. */
CONC__PRIVATE void conc__signals_forget(void)
{
    struct sigaction now;
    for (int number = 1; number < CONC__SIGNALS; number++) {
        conc__signal *n = &conc__signalling.numbers[number];
        bool used = false;
        for (int role = 0; role < CONC__ROLES; role++) {
            used |= n->users[role] > 0;
            n->users[role] = 0;
        }
        if (used && conc__signal_is_ours(number, &now))
            sigaction(number, &n->before, NULL);
        atomic_store(&n->word, 0);
    }
    conc__signal_loops *all = &conc__signalling.reached;
    for (; all; all = atomic_load(&all->more))
        for (int i = 0; i < CONC__SIGNAL_LOOPS; i++)
            atomic_store(&all->loops[i], NULL);
    atomic_store(&conc__signalling.running, 0);
    conc__signalling.faults = conc__signalling.questions = 0;
    pthread_mutex_init(&conc__signalling.mutex, NULL);
}

/* Blocks SIGPIPE in the run's thread, because conc returns an error for a broken pipe. */
CONC__PRIVATE void conc__pipe_signal_block(conc_loop *l)
{
    sigset_t pipe, before;
    sigemptyset(&pipe);
    sigemptyset(&before);
    sigaddset(&pipe, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe, &before);
    l->signals.pipe_was_blocked = sigismember(&before, SIGPIPE) == 1;
    l->signals.pipe_was_pending = l->signals.pipe_was_blocked && sigpending(&before) == 0 &&
                                  sigismember(&before, SIGPIPE) == 1;
}

/* Discards a SIGPIPE that the program's own writes left pending, then unblocks it. */
CONC__PRIVATE void conc__pipe_signal_unblock(const conc_loop *l)
{
    sigset_t pipe;
    conc__drain_pipe_signal(l);
    sigemptyset(&pipe);
    sigaddset(&pipe, SIGPIPE);
    if (!l->signals.pipe_was_blocked)
        pthread_sigmask(SIG_UNBLOCK, &pipe, NULL);
}

/* -- stack overflows -- */

#if defined CONC_GUARD_REPORT || !defined CONC_NO_DIAGNOSTICS

/* Reports that a task has used up its stack; t is NULL if the task is unknown. Allocates nothing,
 * because it may run in a signal handler. */
CONC__COLD void conc__report_overflow(const conc_task *t, const conc__stack *s)
{
    char name[CONC__DESCRIPTION] = "a task", text[sizeof name + 256];
    const char *which = s->has_generator ? "its generator's stack" : "its stack";
    size_t size = s->cache->size;
    if (t)
        conc__describe(name, sizeof name, conc__source_of(t));
    int n = snprintf(
        text, sizeof text,
        "conc: stack overflow: %s used all %zu bytes of %s: raise conc_options.stack_size, "
        "conc_group.stack_size, or CONC_STACK=%zu in the environment\n",
        name, size, which, size * 2);
    conc__write_stderr(text, n, sizeof text);
}

/* Returns the stack whose guard region contains an address, or NULL. */
CONC__PRIVATE conc__stack *conc__stack_above(const conc_loop *l, const char *address)
{
    for (const conc__stack_cache *p = l->stacks.caches; p; p = p->next)
        for (const conc__slab *slab = p->slabs; slab; slab = slab->next) {
            uintptr_t from = (uintptr_t)address - (uintptr_t)slab->base;
            if (from < p->stride * (size_t)slab->carved && from % p->stride < p->guard)
                return conc__stack_at(slab, (int)(from / p->stride));
        }
    return NULL;
}

/* The fault signals, and their dispositions before conc's handler. */
static struct sigaction conc__fault_before[2];
static const int conc__fault_numbers[] = {SIGSEGV, SIGBUS};

/* Returns whether the former handler, which conc's handler calls, has in turn called conc's
 * handler. */
CONC__PRIVATE bool conc__fault_comes_back(const siginfo_t *info)
{
    static _Atomic uintptr_t last_info, last_frame;
    uintptr_t frame = (uintptr_t)__builtin_frame_address(0),
              before = atomic_exchange(&last_info, (uintptr_t)info);
    return before == (uintptr_t)info && frame < atomic_exchange(&last_frame, frame);
}

/* Restores the default action, which ends the process: a faulting instruction faults again when it
 * is repeated, and a signal that was sent is raised again. */
CONC__PRIVATE void conc__fault_kills(int number, bool was_sent)
{
    struct sigaction usual;
    memset(&usual, 0, sizeof usual);
    usual.sa_handler = SIG_DFL;
    sigaction(number, &usual, NULL);
    if (was_sent)
        raise(number);
}

/* Handles a fault, on the alternate stack: reports a stack overflow, and then applies the former
 * disposition. By default, the process ends. */
CONC__PRIVATE void conc__on_fault(int number, siginfo_t *info, void *context)
{
    const conc_loop *l = conc__here;
    bool was_sent = info->si_code <= 0;
    const conc__stack *s = NULL;
    const struct sigaction *before = &conc__fault_before[number == SIGBUS];
    if (conc__fault_comes_back(info)) {
        conc__fault_kills(number, was_sent);
        return;
    }
    if (l && !was_sent)
        s = conc__stack_above(l, info->si_addr);
    if (s)
        conc__report_overflow(l->self, s);
    else if (!was_sent && conc__extended.job_overflows)
        conc__extended.job_overflows(info->si_addr);
    if (before->sa_flags & SA_SIGINFO)
        before->sa_sigaction(number, info, context);
    else if (before->sa_handler != SIG_DFL && before->sa_handler != SIG_IGN)
        before->sa_handler(number);
    else if (before->sa_handler == SIG_DFL || !was_sent)
        conc__fault_kills(number, was_sent);
    /* prevents a tail call, because conc__fault_comes_back compares frames */
    atomic_signal_fence(memory_order_seq_cst);
}

CONC__PRIVATE bool conc__fault_is_ours(int number)
{
    struct sigaction now;
    return sigaction(number, NULL, &now) == 0 && (now.sa_flags & SA_SIGINFO) &&
           now.sa_sigaction == conc__on_fault;
}

CONC__TINY bool conc__faults_wanted(const conc_loop *l)
{
#ifdef CONC_GUARD_REPORT
    (void)l;
    return true;
#else
    return CONC__DEBUGS(l);
#endif
}

/* Installs the fault handler for the first run that wants it. The last such run removes it, unless
 * the program has since installed its own. */
CONC__TINY void conc__faults_open(conc_loop *l)
{
    if (!conc__faults_wanted(l))
        return;
    if (conc__signals_reach(l)) /* no memory for the handler's own stack: no report */
        return;
    pthread_mutex_lock(&conc__signalling.mutex);
    for (size_t i = 0; i < CONC_LEN(conc__fault_numbers) && conc__signalling.faults == 0; i++) {
        struct sigaction ours;
        memset(&ours, 0, sizeof ours);
        ours.sa_sigaction = conc__on_fault;
        ours.sa_flags = SA_SIGINFO | CONC__SA_ONSTACK | SA_NODEFER;
        if (!conc__fault_is_ours(conc__fault_numbers[i]))
            sigaction(conc__fault_numbers[i], &ours, &conc__fault_before[i]);
    }
    conc__signalling.faults++;
    l->diagnostics.faults_taken = true;
    pthread_mutex_unlock(&conc__signalling.mutex);
}

CONC__TINY void conc__faults_restore(void)
{
    for (size_t i = 0; i < CONC_LEN(conc__fault_numbers); i++)
        if (conc__fault_is_ours(conc__fault_numbers[i]))
            sigaction(conc__fault_numbers[i], &conc__fault_before[i], NULL);
}

CONC__TINY void conc__faults_close(conc_loop *l)
{
    if (!l->diagnostics.faults_taken)
        return;
    l->diagnostics.faults_taken = false;
    pthread_mutex_lock(&conc__signalling.mutex);
    conc__signalling.faults--;
    if (conc__signalling.faults == 0)
        conc__faults_restore();
    pthread_mutex_unlock(&conc__signalling.mutex);
}

#else

CONC__TINY void conc__faults_open(conc_loop *l) { (void)l; }
CONC__TINY void conc__faults_close(conc_loop *l) { (void)l; }
CONC__TINY void conc__faults_restore(void) {}

#endif

/* ---- >>loops -------------------------------------------------------------------------------- */

CONC_API conc_loop *conc_loop_self(void) { return conc__here; }

CONC__TINY void conc__loop_free(conc_loop *l)
{
    pthread_mutex_destroy(&l->shared.mutex);
    CONC_FREE(l);
}

/* Returns 0 if the call may use this loop, which may be another thread's, or an error. A forked
 * child must not use a parent's loop, because the loop's mutex may be held by a thread that does
 * not exist in the child. */
CONC__PRIVATE int conc__loop_check(const conc_loop *l, const char *call)
{
    if (!l)
        return conc__misused(-EINVAL, call, "no loop", NULL);
    if (l->run.number <= conc__inherited_runs)
        return conc_fail(-EPERM, "the loop belongs to the parent process");
    return 0;
}

CONC_API int conc_loop_hold(conc_loop *l)
{
    int rc = conc__loop_check(l, __func__);
    if (rc)
        return rc;
    pthread_mutex_lock(&l->shared.mutex);
    l->shared.holds++;
    pthread_mutex_unlock(&l->shared.mutex);
    return 0;
}

CONC_API int conc_loop_release(conc_loop *l)
{
    int rc = conc__loop_check(l, __func__);
    if (rc)
        return rc;
    pthread_mutex_lock(&l->shared.mutex);
    if (!l->shared.holds) {
        pthread_mutex_unlock(&l->shared.mutex);
        return conc__misused(-EINVAL, __func__, "the loop is not held", NULL);
    }
    bool last = --l->shared.holds == 0 && l->shared.over_for_good;
    /* without holds, the loop's wait may be a deadlock: wake it to check */
    if (!l->shared.holds && l->shared.asleep && !l->shared.closed)
        conc__wake_up(l);
    pthread_mutex_unlock(&l->shared.mutex);
    if (last)
        conc__loop_free(l);
    return 0;
}

/* Makes l run the post, which must stay valid until it runs. Any thread may call this. Returns 0,
 * or -ESHUTDOWN if the run is over. */
CONC__PRIVATE int conc__post_to(conc_loop *l, conc__post *p)
{
    p->next = NULL;
    pthread_mutex_lock(&l->shared.mutex);
    if (l->shared.closed) {
        pthread_mutex_unlock(&l->shared.mutex);
        return -ESHUTDOWN;
    }
    if (l->shared.posted)
        l->shared.last_posted->next = p;
    else
        atomic_store_explicit(&l->shared.posted, p, memory_order_relaxed);
    l->shared.last_posted = p;
    if (CONC__UNLIKELY(l->job.idles))
        conc__extended.job_goes_on(l);
    /* see conc__poll_events; the mutex keeps the wake-up descriptor open */
    if (l->shared.asleep) {
        l->shared.asleep = false;
        conc__wake_up(l);
    }
    pthread_mutex_unlock(&l->shared.mutex);
    return 0;
}

typedef struct conc__posted_call {
    conc__post post;
    void (*fn)(void *);
    void *arg;
} conc__posted_call;

CONC__PRIVATE void conc__run_posted_call(conc__post *p)
{
    conc__posted_call *call = (conc__posted_call *)(void *)p;
    conc__here->scheduler.posted_rc = 0;
    conc__call_outside(conc__here, "the posted function", (uintptr_t)call->fn, call->fn, call->arg);
    CONC_FREE(call);
}

CONC_API int conc_post(conc_loop *l, void (*fn)(void *), void *arg)
{
    if (!fn)
        return conc__misused(-EINVAL, __func__, "no function", NULL);
    int rc = conc__loop_check(l, __func__);
    if (rc)
        return rc;
    conc__posted_call *call = conc__alloc(sizeof *call);
    if (!call)
        return conc__own_error(-ENOMEM);
    *call = (conc__posted_call){{NULL, conc__run_posted_call}, fn, arg};
    rc = conc__post_to(l, &call->post);
    if (rc == 0)
        return 0;
    CONC_FREE(call);
    return conc__own_error(rc);
}

/* A call to conc_loop_run, on the caller's stack. The thread of `loop` starts the task and stores
 * its result. If the caller is cancelled, `stop` is posted, once. The caller is notified once the
 * task has ended and no `stop` is pending; from then on no other thread uses this struct. */
typedef struct conc__remote {
    conc__returned_fn *returned; /* the task's sink: CONC__FUNCTION_SINK */
    conc__post start, stop;      /* posted to `loop` */
    conc__post answer;           /* posted to `caller` */
    conc_fn *fn;
    void *arg;
    const char *spawned;
    conc_loop *loop, *caller;      /* `caller` is NULL for a plain thread or a job */
    struct conc__job_context *job; /* the calling job; NULL: none */
    conc__wait wait;               /* the calling task's wait */
    conc_task *task;               /* runs fn; used only by the thread of `loop` */
    pthread_mutex_t mutex;         /* protects the rest */
    pthread_cond_t changed;        /* signalled when `answered` is set */
    enum { CONC__GOES_ON, CONC__TO_STOP, CONC__STOPPED } state;
    bool ended, answered;
    int result;
    char text[CONC__TEXT]; /* the error's text; "": the standard one */
} conc__remote;

CONC__PRIVATE void conc__remote_answer(conc__remote *r)
{
    if (r->job && r->task)
        conc__extended.job_waits(r->job, r->loop, false);
    if (r->caller) {
        conc__post_to(r->caller, &r->answer); /* cannot fail: the caller's run outlasts its tasks */
        return;
    }
    pthread_mutex_lock(&r->mutex);
    r->answered = true;
    pthread_cond_signal(&r->changed);
    pthread_mutex_unlock(&r->mutex);
}

CONC__PRIVATE void conc__remote_end(conc__remote *r, int result, const char *words)
{
    r->result = result;
    conc__copy(r->text, sizeof r->text, words);
    pthread_mutex_lock(&r->mutex);
    r->ended = true;
    bool unused = r->state != CONC__TO_STOP;
    pthread_mutex_unlock(&r->mutex);
    if (unused)
        conc__remote_answer(r);
}

CONC__PRIVATE void conc__remote_returned(conc_task *t)
{
    conc__remote_end(t->sink, t->result, conc__error_text(t, t->result));
}

CONC__PRIVATE void conc__remote_starts(conc__post *p)
{
    conc__remote *r = (conc__remote *)(void *)((char *)p - offsetof(conc__remote, start));
    conc_loop *l = conc__here;
    if (l->run.background.scope.effective) {
        conc__remote_end(r, -ESHUTDOWN, "");
        return;
    }
    conc_task *t = conc__task_new(l, &l->run.background, NULL, r->fn, r->arg, r->spawned);
    if (!t) {
        conc__remote_end(r, -ENOMEM, "");
        return;
    }
    t->sink = r;
    t->sink_kind = CONC__FUNCTION_SINK;
    r->task = t;
    if (r->job)
        conc__extended.job_waits(r->job, l, true);
}

CONC__PRIVATE void conc__remote_stops(conc__post *p)
{
    conc__remote *r = (conc__remote *)(void *)((char *)p - offsetof(conc__remote, stop));
    pthread_mutex_lock(&r->mutex);
    r->state = CONC__STOPPED;
    bool ended = r->ended;
    pthread_mutex_unlock(&r->mutex);
    if (ended)
        conc__remote_answer(r);
    else
        conc__task_cancel(conc__here, r->task);
}

/* Asks the other loop to cancel fn, because the caller is cancelled. The caller holds r->mutex. The
 * other run cannot end before `ended` is set. */
CONC__PRIVATE void conc__remote_stop(conc__remote *r)
{
    if (r->state == CONC__GOES_ON && !r->ended && conc__post_to(r->loop, &r->stop) == 0)
        r->state = CONC__TO_STOP;
}

CONC__PRIVATE bool conc__remote_cancel(conc__wait *w)
{
    conc__remote *r = w->item;
    pthread_mutex_lock(&r->mutex);
    conc__remote_stop(r);
    pthread_mutex_unlock(&r->mutex);
    return false; /* fn must end first */
}

CONC__PRIVATE void conc__remote_details(FILE *out, const conc__wait *w)
{
    const conc__remote *r = w->item;
    fprintf(out, " %s", r->spawned);
}

static const conc__wait_kind conc__runs_elsewhere = {.what = "waits for a task of another loop:",
                                                     .brief = "waits for another loop",
                                                     .details = CONC__DETAILS(conc__remote_details),
                                                     .cancel = conc__remote_cancel};

CONC__PRIVATE void conc__remote_answered(conc__post *p)
{
    conc__remote *r = (conc__remote *)(void *)((char *)p - offsetof(conc__remote, answer));
    conc__wake(conc__here, &r->wait, 0);
}

/* Makes the calling task wait. While it waits, its loop's virtual clock stands still. */
CONC__PRIVATE void conc__remote_wait_task(conc_loop *caller, conc__remote *r)
{
    r->wait =
        (conc__wait){.task = caller->self, .kind = &conc__runs_elsewhere, .on = r->loop, .item = r};
    int holds = caller->clock.is_virtual; /* a real clock cannot stand still */
    caller->outside.awaited++;
    atomic_fetch_add_explicit(&caller->outside.at_work, holds, memory_order_relaxed);
    if (conc__post_to(r->loop, &r->start))
        r->result = -ESHUTDOWN;
    else
        conc__park(caller, &r->wait);
    atomic_fetch_sub_explicit(&caller->outside.at_work, holds, memory_order_relaxed);
    caller->outside.awaited--;
}

/* Makes the calling thread sleep. In a job, it checks at intervals whether the job is cancelled. */
CONC__PRIVATE void conc__remote_wait_thread(conc__remote *r)
{
    enum { CHECK = 20000000 }; /* ns */
    if (conc__post_to(r->loop, &r->start)) {
        r->result = -ESHUTDOWN;
        return;
    }
    pthread_mutex_lock(&r->mutex);
    while (!r->answered) {
        if (!r->job || r->state != CONC__GOES_ON) {
            pthread_cond_wait(&r->changed, &r->mutex);
            continue;
        }
        struct timespec until = conc__real_time_in(CHECK);
        pthread_cond_timedwait(&r->changed, &r->mutex, &until);
        if (conc__extended.job_cancelled())
            conc__remote_stop(r);
    }
    pthread_mutex_unlock(&r->mutex);
}

/* Returns 0, or the error that conc_loop_run must return on this thread. */
CONC__PRIVATE int conc__remote_may_run(const conc_loop *l, conc_fn *fn, const char *spawned)
{
    static const char call[] = "conc_loop_run";
    conc_loop *here = conc__here;
    if (!fn)
        return conc__misused(-EINVAL, call, "no function", spawned);
    int rc = conc__loop_check(l, call);
    if (rc)
        return rc;
    if (here == l)
        return conc__misused(-EDEADLK, call, "the loop would wait for itself", spawned);
    if (here && !conc__in_task_of(call))
        return -EPERM;
    if (here)
        return conc__checkpoint(here);
    if (conc__extended.job_cancelled && conc__extended.job_cancelled())
        return -ECANCELED;
    return 0;
}

CONC_API CONC__CALLED int conc__loop_run(const char *spawned, conc_loop *l, conc_fn *fn, void *arg)
{
    conc_loop *here = conc__here;
    int rc = conc__remote_may_run(l, fn, spawned);
    if (rc)
        return rc;
    conc__remote r = {.returned = conc__remote_returned,
                      .start = {NULL, conc__remote_starts},
                      .stop = {NULL, conc__remote_stops},
                      .answer = {NULL, conc__remote_answered},
                      .fn = fn,
                      .arg = arg,
                      .spawned = spawned,
                      .loop = l,
                      .caller = here,
                      .mutex = PTHREAD_MUTEX_INITIALIZER,
                      .changed = PTHREAD_COND_INITIALIZER};
    if (here) {
        conc__check_lost(here, __builtin_frame_address(0));
        conc__remote_wait_task(here, &r);
    } else {
        if (conc__extended.job_here)
            r.job = conc__extended.job_here();
        conc__remote_wait_thread(&r);
    }
    pthread_cond_destroy(&r.changed);
    pthread_mutex_destroy(&r.mutex);
    if (r.result >= 0)
        return r.result;
    if (here)
        conc__set_error(here->self, r.result, r.text, (conc__source){spawned, spawned});
    else
        conc_fail(r.result, "%s", conc__text_or(r.text, r.result));
    return r.result;
}

CONC__PRIVATE conc__post *conc__take_posts(conc_loop *l, conc__post **last)
{
    pthread_mutex_lock(&l->shared.mutex);
    conc__post *first = l->shared.posted;
    *last = l->shared.last_posted;
    atomic_store_explicit(&l->shared.posted, NULL, memory_order_relaxed);
    pthread_mutex_unlock(&l->shared.mutex);
    return first;
}

/* Puts posts back in front of those that have arrived since. */
CONC__PRIVATE void conc__put_posts_back(conc_loop *l, conc__post *first, conc__post *last)
{
    pthread_mutex_lock(&l->shared.mutex);
    last->next = l->shared.posted;
    if (!last->next)
        l->shared.last_posted = last;
    atomic_store_explicit(&l->shared.posted, first, memory_order_relaxed);
    pthread_mutex_unlock(&l->shared.mutex);
}

/* Called by the scheduler: runs posts, but no more than a batch of them, so that timers and
 * descriptors do not wait. Posts that arrive in the meantime wait for the next pass. */
CONC__PRIVATE void conc__run_posts(conc_loop *l)
{
    if (!atomic_load_explicit(&l->shared.posted, memory_order_relaxed))
        return;
    conc__post *last, *p = conc__take_posts(l, &last);
    int64_t began = l->clock.now;
    l->fds.stirred = true;
    for (int n = 0; p && n < l->scheduler.batch && l->clock.now - began <= CONC__BATCH_NS; n++) {
        conc__post *next = p->next;
        p->run(p);
        p = next;
    }
    if (p)
        conc__put_posts_back(l, p, last);
}

/* ---- >>reports ------------------------------------------------------------------------------ */

/* -- the tree of tasks -- */

/* Returns the first group with children among s and the scopes inside it; NULL: none. */
CONC__PRIVATE conc_group *conc__group_from(conc_scope *s)
{
    while (s && !(s->is_group && conc__group_of(s)->children))
        s = s->inner;
    if (!s)
        return NULL;
    return conc__group_of(s);
}

CONC__PRIVATE conc_group *conc__first_group(const conc_task *t)
{
    conc_scope *s = t->scope;
    while (s && s->outer)
        s = s->outer;
    return conc__group_from(s);
}

/* Returns the task after t in the tree below a task or a group: children come before younger
 * siblings. Returns NULL if t is the last. */
CONC__PRIVATE const conc_task *conc__task_after(const conc_task *t)
{
    const conc_group *g = conc__first_group(t);
    while (!g) {
        if (t->group && t->younger)
            return t->younger;
        if (!t->group || t->group->background)
            return NULL;
        g = conc__group_from(t->group->scope.inner);
        t = t->group->scope.task;
    }
    return g->children;
}

CONC__PRIVATE bool conc__is_in_tree(const conc_task *first, const conc_task *t)
{
    while (first && first != t)
        first = conc__task_after(first);
    return first;
}

CONC__PRIVATE int conc__serial_order(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Updates the census to include all live tasks. Returns false if memory runs out. */
CONC__PRIVATE bool conc__census_update(conc_loop *l)
{
    conc__census *c = &l->diagnostics.census;
    const conc_task *roots[] = {&l->run.main, l->run.background.children};
    if (c->serials && c->spawned == l->counters.spawned && c->finished == l->counters.finished)
        return true;
    CONC_FREE(c->serials);
    *c = (conc__census){.spawned = l->counters.spawned, .finished = l->counters.finished};
    c->serials =
        conc__alloc((size_t)(l->counters.spawned - l->counters.finished) * sizeof *c->serials);
    if (!c->serials)
        return false;
    for (size_t i = 0; i < CONC_LEN(roots); i++)
        for (const conc_task *t = roots[i]; t; t = conc__task_after(t))
            c->serials[c->count++] = t->serial;
    qsort(c->serials, c->count, sizeof *c->serials, conc__serial_order);
    return true;
}

/* Returns whether t, with this serial number, is a live task of the loop. t may be NULL or
 * dangling. Reports call this for the owner of each awaited lock, so it searches the census or, if
 * there is no memory for one, walks through all tasks. Inline because only other modules call
 * it. */
static inline bool conc__lives(conc_loop *l, const conc_task *t, uint64_t serial)
{
    const conc__census *c = &l->diagnostics.census;
    if (!t)
        return false;
    if (conc__census_update(l))
        return bsearch(&serial, c->serials, c->count, sizeof *c->serials, conc__serial_order);
    bool is_there =
        conc__is_in_tree(&l->run.main, t) || conc__is_in_tree(l->run.background.children, t);
    return is_there && t->serial == serial;
}

/* -- deadlocks -- */

/* Returns the next task, after `last`, that t is waiting for; NULL: none. A task that waits for a
 * group waits for each of its children. */
CONC__PRIVATE const conc_task *conc__blocker(const conc_task *t, const conc_task *last)
{
    const conc__wait *w = t->wait;
    if (!w)
        return NULL;
    bool is_group = w->kind == &conc__closing;
    if (is_group && last)
        return last->younger;
    if (is_group)
        return ((const conc_group *)w->on)->children;
    if (last || !w->kind->owner)
        return NULL;
    return w->kind->owner(w);
}

/* A cycle of tasks: each waits for the next one, and the last for the first. `next`, which waiting
 * tasks do not use otherwise, leads from the last one back to the first. */
typedef struct conc__cycle {
    conc_task *first, *last;
} conc__cycle;

/* Searches for a cycle among the tasks that t waits for, directly or indirectly. Returns false if
 * there is none. `marked` is set in each task that was visited. In a task on the path from t,
 * `next` points to the task before it, and `next_marked` to the task itself. */
CONC__PRIVATE bool conc__find_cycle(conc_task *t, conc__cycle *cycle)
{
    const conc_task *last = NULL;
    t->next = NULL;
    t->marked = true;
    t->next_marked = t;
    while (t) {
        conc_task *to = (conc_task *)(uintptr_t)conc__blocker(t, last);
        if (to && to->marked && to->next_marked == to) {
            *cycle = (conc__cycle){to, t};
            return true;
        }
        if (to && !to->marked) {
            to->next = t;
            to->marked = true;
            to->next_marked = to;
            t = to;
            last = NULL;
        } else if (to) {
            last = to;
        } else {
            last = t;
            t->next_marked = NULL;
            t = t->next;
        }
    }
    return false;
}

/* Finds a cycle of tasks that are waiting for each other. Returns false if there is none. */
CONC__PRIVATE bool conc__find_deadlock(conc_loop *l, conc__cycle *cycle)
{
    const conc_task *roots[] = {&l->run.main, l->run.background.children};
    bool found = false;
    for (size_t i = 0; i < CONC_LEN(roots); i++)
        for (const conc_task *t = roots[i]; t && !found; t = conc__task_after(t))
            found = !t->marked && conc__find_cycle((conc_task *)(uintptr_t)t, cycle);
    for (size_t i = 0; i < CONC_LEN(roots); i++)
        for (const conc_task *t = roots[i]; t; t = conc__task_after(t))
            ((conc_task *)(uintptr_t)t)->marked = false;
    return found;
}

/* Returns whether the loop may pause without searching for a cycle now, and limits the pause to the
 * time until the next search. Because a search visits every task, and other threads' posts may end
 * pauses very often, a search is due only every 50 ms, or earlier once there has been one pause for
 * every TASKS tasks. */
CONC__PRIVATE bool conc__search_can_wait(conc_loop *l, int64_t *limit)
{
    enum { TASKS = 64, EVERY = 50 * 1000 * 1000 }; /* ns */
    int64_t now = conc__clock(), left = l->diagnostics.searched + EVERY - now;
    if (left <= 0 ||
        ++l->diagnostics.unsearched * TASKS >= l->counters.spawned - l->counters.finished) {
        l->diagnostics.searched = now;
        l->diagnostics.unsearched = 0;
        return false;
    }
    if (left < *limit)
        *limit = left;
    return true;
}

/* Called when every task is waiting. Returns whether main_fn is meant to sleep until a signal
 * interrupts it: false if a shield blocks the cancel, or if other tasks are waiting for each other
 * in a cycle. */
CONC__COLD bool conc__awaits_interrupt(conc_loop *l, int64_t *limit)
{
    const conc__wait *w = l->run.main.wait;
    conc__cycle cycle;
    if (l->clock.is_virtual || !atomic_load(&l->interrupt.numbers) || !w)
        return false;
    bool shielded = false;
    for (const conc_scope *s = l->run.main.scope; s; s = s->outer)
        shielded |= s->shielded;
    if (shielded || w->kind != &conc__sleeping)
        return false;
    return conc__search_can_wait(l, limit) || !conc__find_deadlock(l, &cycle);
}

CONC__COLD void conc__print_deadlock(conc_loop *l, FILE *out)
{
    flockfile(out); /* keep other threads' lines out */
    fprintf(out, "conc: deadlock: every task waits, and nothing can wake any of them\n");
    if (conc__diagnostics.deadlock)
        conc__diagnostics.deadlock(l, out);
    if (l->cancels.doomed)
        fprintf(out, "conc: all tasks have already been cancelled but have not ended\n");
    funlockfile(out);
}

/* Cancels every task, through every shield. The run ends with the rc of the first call. */
CONC__COLD void conc__doom(conc_loop *l, int rc)
{
    l->cancels.doomed = true;
    if (!l->cancels.doom_rc)
        l->cancels.doom_rc = rc;
    conc__mark(l, &l->run.main);
    conc__spread(l, NULL, &l->run.background.scope, true);
    conc__spread_marked(l);
}

/* Reports that every task is waiting and nothing can wake any of them, and cancels them all. Aborts
 * if it has already done so once. */
CONC__COLD void conc__deadlock(conc_loop *l)
{
    int saved = errno;
    conc__print_deadlock(l, stderr);
    if (l->cancels.doomed)
        abort();
    conc__doom(l, -EDEADLK);
    errno = saved;
}

/* -- lost objects -- */

typedef struct conc__lost_call {
    const conc_task *task;
    const char *place, *how;
} conc__lost_call;

/* Explains why a function returned with something open: usually because CONC_TRY found an error. */
CONC__PRIVATE void conc__explain_early_return(const conc_task *t, bool is_scope)
{
    int rc = t->last_rc;
    if (!rc && t->pending)
        rc = -ECANCELED;
    if (rc < 0)
        fprintf(stderr, "conc: its latest error: %s\n", conc__text_or(conc__error_text(t, rc), rc));
    if (is_scope && rc < 0)
        fprintf(stderr,
                "conc: an early return, such as CONC_TRY's, leaves it open: inside a scope or "
                "group use CONC_TRY_IN(&it, ...), which ends it first\n");
    else if (is_scope)
        fprintf(stderr, "conc: conc_group_wait, conc_group_end or conc_scope_end is missing before "
                        "that return\n");
}

CONC__PRIVATE void conc__lost_on_loop(conc_loop *l, void *arg)
{
    const conc__lost_call *c = arg;
    const char *place = c->place ? c->place : "the enclosing scope or group";
    bool is_spawn = strncmp(place, "the ", 4) != 0; /* a group's place is that of its first spawn */
    const char *opened = is_spawn ? "the group of " : "";
    bool is_handle = strncmp(place, CONC__HANDLE_OF, strlen(CONC__HANDLE_OF)) == 0;
    char who[CONC__DESCRIPTION] = "the loop";
    (void)l;
    if (c->task)
        conc__describe(who, sizeof who, conc__source_of(c->task));
    fprintf(stderr, "conc: %s: %s, with %s%s still %s\n", who, c->how, opened, place,
            is_handle ? "in use" : "open");
    bool is_scope = !is_handle && strncmp(place, "the conc_", 9) != 0;
    if (c->how == conc__overwritten && is_scope)
        fprintf(stderr,
                "conc: either some of its bytes were overwritten, or the function that "
                "declared it returned before conc_group_wait, conc_group_end or conc_scope_end\n");
    else if (c->how == conc__overwritten && is_handle)
        fprintf(stderr, "conc: either some of its bytes were overwritten, or the function that "
                        "declared it returned before the task ended\n");
    else if (c->task && c->how != conc__overwritten)
        conc__explain_early_return(c->task, is_scope);
    abort();
}

/* Reports that the memory of an object is lost while conc still uses it, and aborts. t: the
 * object's task; NULL: the loop. place: what the object is, and where it was opened. how: how it
 * was lost. */
CONC__COLD void conc__lost(conc_loop *l, const conc_task *t, const char *place, const char *how)
{
    conc__lost_call c = {t, place, how};
    conc__on_loop(l, conc__lost_on_loop, &c);
}

/* -- statistics and dumps -- */

/* Counts the stacks: one for each task, and one for each generator that is open or was stopped. */
CONC__PRIVATE void conc__count_stacks(const conc_loop *l, conc_stats *s)
{
    size_t all = 0;
    s->stacks = (size_t)(l->counters.spawned - l->counters.finished) + l->generators.count;
    for (const conc__stack *stack = l->generators.stopped; stack; stack = stack->next)
        s->stacks++;
    for (const conc__stack_cache *p = l->stacks.caches; p; p = p->next) {
        all += p->resident;
        s->stack_bytes += p->stride * (size_t)p->per_slab * p->slab_count;
    }
    s->stacks_kept = all - s->stacks;
}

CONC_API void conc_get_stats(conc_stats *s)
{
    conc_loop *l = conc__here;
    if (!s)
        return;
    memset(s, 0, sizeof *s);
    if (!l)
        return;
    for (const conc_task *t = l->ready.first; t; t = t->next)
        s->ready++;
    conc__count_stacks(l, s);
    s->tasks = (size_t)(l->counters.spawned - l->counters.finished);
    s->timers = conc__wheel_count(&l->clock.wheel);
    s->generators = l->generators.count;
    s->descriptors = l->fds.watched_count;
    for (const conc_signals *open = l->signals.open; open; open = open->next)
        s->signals++;
    pthread_mutex_lock(&l->shared.mutex);
    s->holds = l->shared.holds;
    pthread_mutex_unlock(&l->shared.mutex);
    s->spawned = l->counters.spawned - conc__first_serial(l);
    s->switches = l->counters.switches;
    s->passes = l->counters.passes;
    s->polls = l->counters.polls;
    s->peak = (size_t)(l->counters.most - l->counters.finished);
    if (conc__extended.jobs_queued)
        s->jobs_queued = conc__extended.jobs_queued();
    int64_t now = conc__time(l), ran = now - l->run.began - l->counters.idled;
    if (CONC__HOOKS(l)) {
        ran = l->diagnostics.ran;
        if (l->self)
            ran += now - l->diagnostics.step_began;
    }
    s->idle = (double)l->counters.idled / 1e9;
    s->waiting = (double)l->diagnostics.waited / 1e9;
    s->running = (double)ran / 1e9;
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
    int saved = errno;
    if (conc__diagnostics.dump)
        conc__diagnostics.dump(l, out);
    else
        fprintf(out, "conc: no dump: the program was built with CONC_NO_DIAGNOSTICS\n");
    errno = saved;
}

/* ---- >>diagnostics -------------------------------------------------------------------------- */

#ifndef CONC_NO_DIAGNOSTICS

/* -- dumps and reports -- */

CONC__PRIVATE const char *conc__state_of(const conc_loop *l, const conc_task *t)
{
    if (t == l->self)
        return "running";
    if (t->wait)
        return t->wait->kind->what;
    if (t->state == CONC__DONE)
        return "ended";
    return "ready";
}

/* Indents by two columns per level. From a certain depth on, prints the level's number instead, so
 * that the tree stays readable and the size of the dump linear. */
CONC__PRIVATE void conc__indent(FILE *out, int depth)
{
    enum { DEEPEST = 24 };
    if (depth <= DEEPEST)
        fprintf(out, "%*s", depth * 2, "");
    else
        fprintf(out, "%*s(level %d) ", DEEPEST * 2, "", depth);
}

CONC__PRIVATE void conc__print_task(FILE *out, const conc_loop *l, const conc_task *t, int depth)
{
    char text[CONC__DESCRIPTION];
    conc__source source = conc__source_of(t);
    conc__indent(out, depth);
    fprintf(out, "%s: %s", conc__describe(text, sizeof text, (conc__source){t->name, t->name}),
            conc__state_of(l, t));
    if (t->wait && t->wait->kind->details)
        t->wait->kind->details(out, t->wait);
    if (t->wait)
        fprintf(out, " [%.3f s]", (double)(conc__time(l) - t->since) / 1e9);
    if (t->pending)
        fprintf(out, ", cancelled");
    conc__describe_spawn(text, sizeof text, source);
    fprintf(out, "%s\n", text);
}

CONC__PRIVATE void conc__print_group(FILE *out, const conc_group *g, int depth)
{
    conc__indent(out, depth);
    if (g->background)
        fprintf(out, "background");
    else
        fprintf(out, "group at %s", conc__place_of(g->scope.place));
    fprintf(out, ", %d %s", g->live, g->live == 1 ? "child" : "children");
    fputs(g->scope.effective ? ", cancelled:\n" : ":\n", out);
}

/* Prints a group, the groups inside it, and all tasks below them. Not recursive, because the tree
 * may be deep. */
CONC__PRIVATE void conc__print_tree(FILE *out, const conc_loop *l, const conc_group *g, int depth)
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
            /* up: to the owner's next group, or to the owner's next sibling */
            while (!t->younger) {
                const conc_group *up = t->group;
                g = NULL;
                if (!up->background)
                    g = conc__group_from(up->scope.inner);
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

/* Tasks in the same state that were spawned at the same line. */
typedef struct conc__crowd {
    const char *spawned, *state;
    size_t count;
    const conc_task *first; /* the one that has waited longest */
} conc__crowd;

enum { CONC__CROWDS = 256, CONC__CROWDED = 2000 };

/* Counts a task in its crowd. Returns false if it needs a new crowd and there is no room for
 * one. */
CONC__PRIVATE bool conc__crowd_add(const conc_loop *l, conc__crowd *crowds, size_t *n,
                                   const conc_task *t)
{
    const char *state = conc__state_of(l, t);
    size_t i = 0;
    while (i < *n && (crowds[i].spawned != t->spawned || crowds[i].state != state))
        i++;
    if (i == CONC__CROWDS)
        return false;
    if (i == *n)
        crowds[(*n)++] = (conc__crowd){t->spawned, state, 0, t};
    crowds[i].count++;
    if (t->since < crowds[i].first->since)
        crowds[i].first = t;
    return true;
}

CONC__PRIVATE int conc__crowd_order(const void *a, const void *b)
{
    size_t x = ((const conc__crowd *)a)->count, y = ((const conc__crowd *)b)->count;
    return (x < y) - (x > y);
}

/* Summarizes the tasks when there are very many: how many are in each state, by where they were
 * spawned, and which has waited longest. */
CONC__PRIVATE void conc__print_crowds(conc_loop *l, FILE *out)
{
    conc__crowd *crowds = conc__alloc(CONC__CROWDS * sizeof *crowds);
    size_t n = 0, others = 0;
    const conc_task *roots[] = {&l->run.main, l->run.background.children};
    for (size_t i = 0; i < CONC_LEN(roots); i++)
        for (const conc_task *t = roots[i]; t; t = conc__task_after(t))
            others += !crowds || !conc__crowd_add(l, crowds, &n, t);
    if (n)
        qsort(crowds, n, sizeof *crowds, conc__crowd_order);
    for (size_t i = 0; i < n; i++) {
        fprintf(out, "  %zu x %s: %s", crowds[i].count, crowds[i].spawned, crowds[i].state);
        if (crowds[i].first->wait) {
            fprintf(out, "; the longest waiting:\n");
            conc__print_task(out, l, crowds[i].first, 2);
        } else {
            fputc('\n', out);
        }
    }
    if (others)
        fprintf(out, "  %zu others\n", others);
    CONC_FREE(crowds);
}

CONC__PRIVATE void conc__print_all(conc_loop *l, FILE *out)
{
    l->diagnostics.lists_tasks = false;
    if (l->counters.spawned - l->counters.finished > CONC__CROWDED) {
        conc__print_crowds(l, out);
        return;
    }
    l->diagnostics.lists_tasks = true;
    conc__print_task(out, l, &l->run.main, 1);
    conc__print_tree(out, l, conc__first_group(&l->run.main), 2);
    if (l->run.background.children)
        conc__print_tree(out, l, &l->run.background, 1);
}

typedef struct conc__dump_call {
    FILE *out;
    conc_task *self;
} conc__dump_call;

CONC__PRIVATE void conc__dump_on_loop(conc_loop *l, void *arg)
{
    conc__dump_call *d = arg;
    l->self = d->self; /* the dump shows it as running */
    size_t tasks = (size_t)(l->counters.spawned - l->counters.finished),
           timers = conc__wheel_count(&l->clock.wheel);
    const char *task_word = tasks == 1 ? "task" : "tasks";
    const char *timer_word = timers == 1 ? "timer" : "timers";
    flockfile(d->out); /* keep other threads' lines out */
    fprintf(d->out, "conc: %zu %s, time %.9f, %zu %s\n", tasks, task_word,
            (double)conc__time(l) / 1e9, timers, timer_word);
    conc__print_all(l, d->out);
    funlockfile(d->out);
    l->self = NULL;
}

CONC__COLD void conc__dump(conc_loop *l, FILE *out)
{
    conc__dump_call d = {out, l->self};
    conc__on_loop(l, conc__dump_on_loop, &d);
}

CONC__PRIVATE void conc__print_cycle(FILE *out, const conc_loop *l, const conc__cycle *cycle)
{
    conc_task *at = cycle->last, *after = NULL; /* `next` leads back: reverse the path */
    while (after != cycle->first) {
        conc_task *before = at->next;
        at->next = after;
        after = at;
        at = before;
    }
    enum { MOST = 20 };
    int n = 0;
    fprintf(out, "conc: a cycle: each waits for the next, and the last for the first:\n");
    for (const conc_task *t = cycle->first; t; t = t->next, n++)
        if (n < MOST || !t->next)
            conc__print_task(out, l, t, 1);
        else if (n == MOST)
            fprintf(out, "  ... and so on ...\n");
}

CONC__COLD void conc__print_tasks_of_deadlock(conc_loop *l, FILE *out)
{
    conc__cycle cycle;
    conc__print_all(l, out);
    if (conc__find_deadlock(l, &cycle))
        conc__print_cycle(out, l, &cycle);
}

/* -- traces -- */

/* A trace is a JSON array in Chromium's "Trace Event Format", with one event per line. The buffer
 * is written when it is full, and occasionally before the loop sleeps. If the program is killed,
 * the closing bracket is missing, which viewers accept.
 *
 * Each run that writes to the file holds a shared lock of it, and appends whole events. A run that
 * gets the exclusive lock is alone: the first truncates the file, and the last closes the
 * bracket. */

enum { CONC__TRACE_BUFFER = 262144, CONC__TRACE_EVENT = 512 };

/* Further runs of the process number their rows from multiples of this. The product fits in the 32
 * bits that viewers use. */
enum { CONC__TRACE_ROWS = 10000000, CONC__TRACE_RUNS = 400 };

typedef struct conc__trace {
    int fd; /* -1: writing has failed */
    size_t used;
    int64_t written; /* when the buffer was last written */
    int64_t origin;  /* the time that the trace calls 0, on the loop's clock */
    uint64_t arrows;
    uint64_t first_row; /* the loop's */
    char row[32];       /* ,"pid":77,"tid": */
    size_t row_size;
    char buffer[CONC__TRACE_BUFFER];
} conc__trace;

CONC__PRIVATE void conc__trace_write(conc_loop *l, void *arg)
{
    conc__trace *tr = arg;
    size_t done = 0;
    int saved = errno;
    while (tr->fd >= 0 && done < tr->used) {
        ssize_t n = conc__write_unharmed(tr->fd, tr->buffer + done, tr->used - done);
        if (n > 0)
            done += (size_t)n;
        else if (n == 0 || errno != EINTR) {
            const char *why = n ? strerror(errno) : "nothing could be written";
            fprintf(stderr, "conc: the trace ends here: %s\n", why);
            close(tr->fd);
            tr->fd = -1;
        }
    }
    tr->used = 0;
    tr->written = l->clock.now;
    errno = saved;
}

/* Called before the loop sleeps: writes the buffer if that is overdue, in case the program is
 * killed. */
CONC__COLD void conc__trace_catch_up(conc_loop *l)
{
    enum { EVERY = 500000000 };
    if (l->diagnostics.trace && l->clock.now - l->diagnostics.trace->written >= EVERY)
        conc__trace_write(l, l->diagnostics.trace);
}

CONC__FAST char *conc__put(char *to, const char *text)
{
    size_t n = strlen(text); /* a constant for a literal, because this is inlined */
    memcpy(to, text, n);
    return to + n;
}

/* Writes a number with at least `least` digits, zero-padded, in pairs of digits from the last one
 * backwards. Returns the end. */
CONC__PRIVATE char *conc__put_number(char *to, uint64_t n, int least)
{
    static const char pairs[] = "000102030405060708091011121314151617181920212223242526272829303132"
                                "3334353637383940414243444546"
                                "474849505152535455565758596061626364656667686970717273747576777879"
                                "8081828384858687888990919293949596979899";
    int digits = 1;
    for (uint64_t limit = 10; digits < 20 && n >= limit; limit *= 10)
        digits++;
    if (digits < least)
        digits = least;
    char *end = to + digits;
    for (to = end; digits >= 2; digits -= 2, n /= 100) {
        to -= 2;
        memcpy(to, pairs + n % 100 * 2, 2);
    }
    if (digits)
        to[-1] = (char)('0' + n % 10);
    return end;
}

/* Writes nanoseconds as microseconds with three decimals. Returns the end. */
CONC__PRIVATE char *conc__put_time(char *to, int64_t ns)
{
    uint64_t n = ns > 0 ? (uint64_t)ns : 0;
    to = conc__put_number(to, n / 1000, 1);
    *to = '.';
    return conc__put_number(to + 1, n % 1000, 3);
}

/* Returns the length of the UTF-8 character that begins with this byte; 0: invalid. */
CONC__PRIVATE int conc__utf8_length(unsigned char first)
{
    if (first < 0x80)
        return 1;
    if (first < 0xc2 || first >= 0xf5)
        return 0;
    if (first < 0xe0)
        return 2;
    if (first < 0xf0)
        return 3;
    return 4;
}

/* Returns the length of the UTF-8 character at p; 0: none. */
CONC__PRIVATE int conc__utf8(const unsigned char *p)
{
    int length = conc__utf8_length(p[0]);
    for (int i = 1; i < length; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    bool overlong = (p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xf0 && p[1] < 0x90);
    bool surrogate = p[0] == 0xed && p[1] > 0x9f, too_large = p[0] == 0xf4 && p[1] > 0x8f;
    if (overlong || surrogate || too_large)
        return 0;
    return length;
}

/* Writes a name as the text of a JSON string, shortened to fit in an event. Returns the end. */
CONC__PRIVATE char *conc__put_name(char *to, const char *name)
{
    static const char hex[] = "0123456789abcdef";
    const unsigned char *at = (const unsigned char *)name;
    for (char *end = to + CONC__TRACE_EVENT / 2; *at && to < end;) {
        int n = conc__utf8(at);
        if (*at < ' ') {
            to = conc__put(to, "\\u00");
            *to++ = hex[*at >> 4];
            *to++ = hex[*at & 15];
        } else if (n == 0) {
            *to++ = '?';
        } else {
            if (*at == '"' || *at == '\\')
                *to++ = '\\';
            memcpy(to, at, (size_t)n);
            to += n;
        }
        at += n ? n : 1;
    }
    return to;
}

/* Begins an event, and returns where the caller writes the rest of it before it calls
 * conc__trace_put; NULL if the trace has ended. */
CONC__FAST char *conc__trace_room(conc_loop *l, const char *name)
{
    conc__trace *tr = l->diagnostics.trace;
    if (CONC__UNLIKELY(tr->used + CONC__TRACE_EVENT > sizeof tr->buffer))
        conc__trace_write(l, tr);
    if (tr->fd < 0)
        return NULL;
    return conc__put(conc__put(tr->buffer + tr->used, ",\n{\"name\":\""), name);
}

CONC__PRIVATE void conc__trace_put(conc__trace *tr, char *end)
{
    tr->used = (size_t)(end - tr->buffer);
}

/* Returns a task's row. Row 0 is the loop's; the tasks' rows begin at 1, in the order of the
 * spawns. */
CONC__PRIVATE uint64_t conc__row_of(const conc_loop *l, const conc_task *t)
{
    if (!t)
        return 0;
    return t->serial - conc__first_serial(l) + 1;
}

CONC__PRIVATE char *conc__put_row(const conc_loop *l, char *to, uint64_t row)
{
    /* copies more than the row, because a constant size is quicker to copy */
    memcpy(to, l->diagnostics.trace->row, sizeof l->diagnostics.trace->row);
    return conc__put_number(to + l->diagnostics.trace->row_size,
                            l->diagnostics.trace->first_row + row, 1);
}

CONC__FAST void conc__trace_span(conc_loop *l, uint64_t row, const char *name, int64_t from,
                                 int64_t to)
{
    char *at = conc__trace_room(l, name);
    if (!at)
        return;
    at = conc__put_time(conc__put(at, "\",\"ph\":\"X\",\"ts\":"),
                        from - l->diagnostics.trace->origin);
    at = conc__put_time(conc__put(at, ",\"dur\":"), to - from);
    conc__trace_put(l->diagnostics.trace, conc__put(conc__put_row(l, at, row), "}"));
}

/* Writes the start of an arrow (phase "s") or its end ("f"), which binds to the enclosing span. */
CONC__PRIVATE void conc__trace_arrow(conc_loop *l, uint64_t row, const char *phase, int64_t when,
                                     uint64_t number)
{
    char *at = conc__trace_room(l, "wakes");
    if (!at)
        return;
    at = conc__put(conc__put(conc__put(at, "\",\"cat\":\"conc\",\"ph\":\""), phase), "\",\"ts\":");
    at = conc__put_row(l, conc__put_time(at, when - l->diagnostics.trace->origin), row);
    at = conc__put_number(conc__put(at, ",\"id\":"), number, 1);
    conc__trace_put(l->diagnostics.trace, conc__put(at, *phase == 'f' ? ",\"bp\":\"e\"}" : "}"));
}

CONC__PRIVATE void conc__trace_instant(conc_loop *l, uint64_t row, const char *what)
{
    char *at = conc__trace_room(l, what);
    if (!at)
        return;
    at = conc__put_time(conc__put(at, "\",\"ph\":\"i\",\"ts\":"),
                        conc__time(l) - l->diagnostics.trace->origin);
    conc__trace_put(l->diagnostics.trace, conc__put(conc__put_row(l, at, row), ",\"s\":\"t\"}"));
}

CONC__PRIVATE void conc__trace_row(conc_loop *l, uint64_t row, const char *name)
{
    char *at = conc__trace_room(l, "thread_name");
    if (!at)
        return;
    at = conc__put_row(l, conc__put(at, "\",\"ph\":\"M\""), row);
    at = conc__put_name(conc__put(at, ",\"args\":{\"name\":\""), name);
    conc__trace_put(l->diagnostics.trace, conc__put(at, "\"}}"));
}

CONC__COLD void conc__trace_task(conc_loop *l, const conc_task *t)
{
    conc__trace_row(l, conc__row_of(l, t), t->name);
}

CONC__COLD void conc__trace_cancel(conc_loop *l, const conc_task *t, const char *why)
{
    if (l->diagnostics.trace && t)
        conc__trace_instant(l, conc__row_of(l, t), why);
}

CONC__COLD void conc__trace_idle(conc_loop *l, int64_t from, int64_t to)
{
    if (l->diagnostics.trace && to > from)
        conc__trace_span(l, 0, "idle", from, to);
}

/* Begins an arrow from the running task, if any, to t's next step, which the running task
 * caused. */
CONC__PRIVATE void conc__trace_leads(conc_loop *l, conc_task *t)
{
    if (!l->self)
        return;
    t->arrow = ++l->diagnostics.trace->arrows;
    conc__trace_arrow(l, conc__row_of(l, l->self), "s", conc__time(l), t->arrow);
}

/* Reads the beginning of a trace that other runs are writing. Returns when the first of them began,
 * on the real clock; 0: unknown; -1: the last of them has closed the bracket. */
CONC__PRIVATE int64_t conc__trace_began(const char *path)
{
    char text[CONC__TRACE_EVENT], last[2] = "";
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return 0;
    ssize_t n = pread(fd, text, sizeof text - 1, 0); /* fails for a pipe, whose bytes stay */
    if (n > 2 && fstat(fd, &st) == 0 && pread(fd, last, 2, st.st_size - 2) == 2 && *last == ']')
        n = -1;
    close(fd);
    if (n < 0)
        return *last == ']' ? -1 : 0;
    text[n] = 0;
    const char *at = strstr(text, "\"began\":");
    return at ? strtoll(at + 8, NULL, 10) : 0;
}

/* Locks the file: exclusively if no other run is writing to it, which empties it and makes *began
 * -1; or shared, and *began is what conc__trace_began returns. Waits briefly while another run
 * begins or ends the trace. -EBUSY. */
CONC__PRIVATE int conc__trace_lock(int fd, const char *path, int64_t *began)
{
    enum { TRIES = 1000, PAUSE = 1000000 };
    for (int tries = 0; tries < TRIES; tries++) {
        if (flock(fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) {
            int rc = ftruncate(fd, 0); /* fails for a pipe or a device */
            (void)rc;
            *began = -1;
            return 0;
        }
        if (flock(fd, LOCK_SH | LOCK_NB) == 0) {
            *began = conc__trace_began(path);
            if (*began >= 0)
                return 0;
        }
        conc__thread_sleep(PAUSE);
    }
    return -EBUSY;
}

/* Opens and locks the file. Returns its descriptor, or an error. */
CONC__TINY int conc__trace_file(const char *path, int64_t *began)
{
    int fd = conc__not_standard(open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666));
    if (fd < 0)
        return -errno;
    int rc = conc__trace_lock(fd, path, began);
    if (rc == 0)
        return fd;
    close(fd);
    return rc;
}

/* Writes the first event of a trace, which tells later runs that share it when it began. */
CONC__TINY void conc__trace_begin(conc_loop *l)
{
    conc__trace *tr = l->diagnostics.trace;
    int64_t began = l->clock.is_virtual ? 0 : l->run.began;
    tr->used =
        (size_t)snprintf(tr->buffer, sizeof tr->buffer,
                         "[\n{\"name\":\"thread_name\",\"ph\":\"M\"%s0,\"args\":{\"name\":\"loop\","
                         "\"began\":%lld}}",
                         tr->row, (long long)began);
    conc__trace_write(l, tr);
    if (tr->fd >= 0)
        flock(tr->fd, LOCK_SH);
}

/* Adds the run to a trace that another run has begun. */
CONC__TINY void conc__trace_join(conc_loop *l, int64_t began)
{
    static atomic_uint joined;
    conc__trace *tr = l->diagnostics.trace;
    unsigned run = 1 + atomic_fetch_add(&joined, 1) % (CONC__TRACE_RUNS - 1);
    tr->first_row = (uint64_t)run * CONC__TRACE_ROWS;
    tr->arrows = (uint64_t)getpid() << 30 | tr->first_row; /* viewers match them by number alone */
    if (began > 0 && !l->clock.is_virtual)
        tr->origin = began;
    conc__trace_row(l, 0, "loop");
}

CONC__PRIVATE int conc__trace_open(conc_loop *l, const char *path)
{
    int64_t began = -1;
    if (!path)
        return 0;
    conc__trace *tr = conc__alloc(sizeof *tr);
    if (!tr)
        return -ENOMEM;
    tr->fd = conc__trace_file(path, &began);
    if (tr->fd < 0) {
        int rc = tr->fd;
        const char *words = conc__system_text(rc);
        fprintf(stderr, "conc: %s: cannot write a trace there: %s\n", path, words);
        snprintf(conc__thread_text, sizeof conc__thread_text, "%.80s: %s", path, words);
        CONC_FREE(tr);
        return rc;
    }
    tr->arrows = tr->first_row = 0;
    tr->written = l->clock.now;
    tr->origin = l->run.began;
    tr->row_size =
        (size_t)snprintf(tr->row, sizeof tr->row, ",\"pid\":%ld,\"tid\":", (long)getpid());
    l->diagnostics.trace = tr;
    tr->used = 0;
    if (began < 0)
        conc__trace_begin(l);
    else
        conc__trace_join(l, began);
    return 0;
}

CONC__PRIVATE void conc__trace_close(conc_loop *l)
{
    conc__trace *tr = l->diagnostics.trace;
    if (!tr)
        return;
    conc__trace_write(l, tr);
    if (tr->fd >= 0 && (flock(tr->fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK)) {
        conc__trace_put(tr, conc__put(tr->buffer, "\n]\n"));
        conc__trace_write(l, tr);
    }
    if (tr->fd >= 0) {
        flock(tr->fd, LOCK_UN); /* a forked child may have the descriptor, too */
        close(tr->fd);
    }
    CONC_FREE(tr);
    l->diagnostics.trace = NULL;
}

/* -- the use of stacks -- */

/* Debug mode: the stack usage of all tasks that were spawned at the same line with stacks of the
 * same size. */
typedef struct conc__usage {
    struct conc__usage *next;
    const char *spawned;
    size_t most, size, users;
    char name[CONC__NAME]; /* name of the task that used the most */
} conc__usage;

/* Returns the lowest page of a stack that was ever touched. Searches downwards, and ends after an
 * untouched gibibyte, because a stack may be very large. */
CONC__PRIVATE char *conc__first_resident(conc__stack *s)
{
    enum { GAP = 1 << 30 };
    unsigned char pages[1024];
    size_t page = conc__page();
    char *top = conc__stack_top(s), *lowest = top;
    char *at = s->low + conc__round_up((size_t)(top - s->low), page);
    while (at > s->low && (at > lowest || lowest - at < GAP)) {
        size_t n = (size_t)(at - s->low) / page, i = 0;
        if (n > sizeof pages)
            n = sizeof pages;
        at -= n * page;
        if (mincore(at, n * page, (void *)pages)) /* assume that all of it was touched */
            return top - s->low < GAP ? s->low : top - GAP;
        while (i < n && !(pages[i] & 1))
            i++;
        if (i < n)
            lowest = at + i * page;
    }
    return lowest;
}

/* Returns the lowest word of a stack that has ever been written: the first nonzero one, because
 * untouched memory reads as zero. Not sanitized, because frames may still be poisoned. */
CONC__UNSANITIZED CONC__PRIVATE char *conc__stack_lowest(conc__stack *s)
{
    const uint64_t *at = (const uint64_t *)(void *)conc__first_resident(s),
                   *top = (const uint64_t *)(void *)conc__stack_top(s);
    while (at < top && *at == 0)
        at++;
    return (char *)(uintptr_t)at;
}

/* Records how many bytes of a stack were used. If memory runs out, only the report is
 * incomplete. */
CONC__PRIVATE void conc__usage_add(conc_loop *l, conc__source user, size_t size, size_t used)
{
    conc__usage *u = l->diagnostics.usages;
    while (u && (u->spawned != user.spawned || u->size != size))
        u = u->next;
    if (!u) {
        u = conc__alloc(sizeof *u);
        if (!u)
            return;
        *u = (conc__usage){.next = l->diagnostics.usages, .spawned = user.spawned, .size = size};
        l->diagnostics.usages = u;
    }
    u->users++;
    if (used > u->most) {
        u->most = used;
        conc__keep_name(u->name, user);
    }
}

/* Called before a stack is released: records its usage. Returns the address from which the stack
 * must be cleared for its next user; NULL: no clearing is needed. */
CONC__COLD char *conc__usage_note(conc_loop *l, conc__stack *s, conc__source user)
{
    if (l->diagnostics.on_valgrind) /* Valgrind treats unwritten memory as undefined */
        return NULL;
    char *lowest = conc__stack_lowest(s);
    conc__usage_add(l, user, s->cache->size, (size_t)(conc__stack_top(s) - lowest));
    return lowest;
}

/* Clears a stack from this address up. In a large range, many pages may never have been touched,
 * and writing to them would allocate memory, so such a range is returned to the system instead. */
CONC__PRIVATE void conc__stack_clear(conc__stack *s, char *from)
{
    enum { MANY = 1024 * 1024 }; /* bytes */
    size_t page = conc__page();
    char *top = conc__stack_top(s);
    if (!from)
        return;
    char *first = from - (size_t)(from - s->low) % page;
    char *last = top - (size_t)(top - s->low) % page;
    if (top - from > MANY && conc__drop_pages(first, (size_t)(last - first)))
        from = last;
    memset(from, 0, (size_t)(top - from));
}

CONC__COLD void conc__stack_used(conc_loop *l, conc__stack *s, conc__source user, bool reusable)
{
    char *used = NULL;
    if (l->diagnostics.debug)
        used = conc__usage_note(l, s, user);
    if (reusable)
        conc__stack_clear(s, used);
}

/* Reports the stack usage at the end of the run, the largest first, and frees the records. */
CONC__PRIVATE void conc__usage_report(conc_loop *l)
{
    enum { LINES = 20 };
    char who[CONC__DESCRIPTION];
    for (int line = 0; l->diagnostics.usages; line++) {
        conc__usage **most = &l->diagnostics.usages;
        for (conc__usage **at = most; *at; at = &(*at)->next)
            if ((*at)->most > (*most)->most)
                most = at;
        conc__usage *u = *most;
        *most = u->next;
        conc__describe(who, sizeof who, conc__kept_source(u->name, u->spawned));
        if (line < LINES)
            fprintf(stderr, "conc: stacks: %zu of %zu bytes used by %s (%zu of them)\n", u->most,
                    u->size, who, u->users);
        CONC_FREE(u);
    }
}

/* -- backtraces -- */

/* These functions find where another thread is executing, and the names of the functions on its
 * stack. They must not crash, whatever state that thread is in, so they read memory through the
 * kernel, which returns an error for an invalid address, read files piece by piece, and allocate
 * nothing. Only on Linux; elsewhere reports have no frames. */

enum { CONC__FRAMES = 32 };

#ifdef __linux__

/* The function that contains an address, and its module: the program or a library. */
typedef struct conc__symbol {
    char module[PATH_MAX], name[128];
    uint64_t offset, address; /* the address, relative to the function and to the module */
} conc__symbol;

CONC__PRIVATE bool conc__read_at(int fd, void *to, size_t n, uint64_t at)
{
    return pread(fd, to, n, (off_t)at) == (ssize_t)n;
}

/* A mapping, from a line of /proc/self/maps. */
typedef struct conc__map_line {
    uintptr_t low, high;
    uint64_t offset;
    char rights[5], path[PATH_MAX];
} conc__map_line;

/* Returns whether this line of /proc/self/maps describes a mapping that contains the address; if
 * so, stores the mapping in *m. */
CONC__PRIVATE bool conc__map_parse(const char *line, uintptr_t address, conc__map_line *m)
{
    unsigned long low, high;
    unsigned long long offset;
    int path = 0;
    int got = sscanf(line, "%lx-%lx %4s %llx %*s %*s %n", &low, &high, m->rights, &offset, &path);
    if (got < 4 || address < low || address >= high)
        return false;
    m->low = low;
    m->high = high;
    m->offset = offset;
    conc__copy(m->path, sizeof m->path, path ? line + path : "");
    return true;
}

/* Finds the mapping that contains an address. Returns false if there is none. */
CONC__PRIVATE bool conc__map_find(uintptr_t address, conc__map_line *m)
{
    char text[PATH_MAX + 128];
    size_t kept = 0;
    bool found = false;
    int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    while (!found) {
        ssize_t n = read(fd, text + kept, sizeof text - 1 - kept);
        if (n <= 0)
            break;
        text[kept + (size_t)n] = 0;
        char *line = text, *end = strchr(line, '\n');
        while (end && !found) {
            *end = 0;
            found = conc__map_parse(line, address, m);
            line = end + 1;
            end = strchr(line, '\n');
        }
        kept = strlen(line);
        memmove(text, line, kept + 1);
    }
    close(fd);
    return found;
}

/* Converts an offset in a module's file to the address that its symbol table uses for it;
 * UINT64_MAX: none. */
CONC__PRIVATE uint64_t conc__module_address(int fd, const ElfW(Ehdr) * header, uint64_t offset)
{
    for (int i = 0; i < header->e_phnum; i++) {
        ElfW(Phdr) part;
        if (!conc__read_at(fd, &part, sizeof part, header->e_phoff + (uint64_t)i * sizeof part))
            break;
        if (part.p_type == PT_LOAD && offset >= part.p_offset &&
            offset < part.p_offset + part.p_filesz)
            return part.p_vaddr + (offset - part.p_offset);
    }
    return UINT64_MAX;
}

/* Returns whether this is the symbol of a function that contains the address. */
CONC__PRIVATE bool conc__symbol_covers(const ElfW(Sym) * symbol, uint64_t address)
{
    uint64_t size = symbol->st_size ? symbol->st_size : 1;
    if ((symbol->st_info & 15) != STT_FUNC || symbol->st_shndx == SHN_UNDEF)
        return false;
    return address >= symbol->st_value && address - symbol->st_value < size;
}

/* Searches one symbol table for the function that contains s->address. */
CONC__PRIVATE bool conc__symbol_in(int fd, const ElfW(Shdr) * table, const ElfW(Shdr) * names,
                                   conc__symbol *s)
{
    enum { AT_ONCE = 64 };
    ElfW(Sym) some[AT_ONCE];
    uint64_t count = table->sh_size / sizeof some[0];
    for (uint64_t i = 0; i < count; i += AT_ONCE) {
        uint64_t n = count - i < AT_ONCE ? count - i : AT_ONCE, k = 0;
        if (!conc__read_at(fd, some, (size_t)n * sizeof some[0],
                           table->sh_offset + i * sizeof some[0]))
            return false;
        while (k < n && !conc__symbol_covers(&some[k], s->address))
            k++;
        if (k == n)
            continue;
        ssize_t got =
            pread(fd, s->name, sizeof s->name - 1, (off_t)(names->sh_offset + some[k].st_name));
        s->name[got > 0 ? got : 0] = 0;
        s->offset = s->address - some[k].st_value;
        return s->name[0] != 0;
    }
    return false;
}

CONC__PRIVATE bool conc__section_at(int fd, const ElfW(Ehdr) * header, uint64_t i,
                                    ElfW(Shdr) * section)
{
    return conc__read_at(fd, section, sizeof *section, header->e_shoff + i * sizeof *section);
}

/* Searches the symbol tables of an open file. */
CONC__PRIVATE void conc__symbol_search(int fd, const ElfW(Ehdr) * header, conc__symbol *s)
{
    ElfW(Shdr) table, names;
    for (int i = 0; i < header->e_shnum; i++) {
        if (!conc__section_at(fd, header, (uint64_t)i, &table))
            return;
        bool has_symbols = table.sh_type == SHT_SYMTAB || table.sh_type == SHT_DYNSYM;
        if (!has_symbols || table.sh_link >= header->e_shnum)
            continue;
        if (conc__section_at(fd, header, table.sh_link, &names) &&
            conc__symbol_in(fd, &table, &names, s))
            return;
    }
}

/* Finds the name of the function at an offset in a module's file. */
CONC__PRIVATE void conc__symbol_name(conc__symbol *s, const char *file, uint64_t offset)
{
    ElfW(Ehdr) header;
    int fd = open(file, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    bool is_elf = conc__read_at(fd, &header, sizeof header, 0) &&
                  memcmp(header.e_ident, ELFMAG, SELFMAG) == 0 &&
                  header.e_shentsize == sizeof(ElfW(Shdr));
    if (is_elf) {
        s->address = conc__module_address(fd, &header, offset);
        if (s->address != UINT64_MAX)
            conc__symbol_search(fd, &header, s);
    }
    close(fd);
}

/* Finds the module and function of an address. Returns false if there is no code at the address. */
CONC__PRIVATE bool conc__symbol_at(uintptr_t address, conc__symbol *s)
{
    static conc__map_line m; /* static, to keep the stack small; protected by conc__report_mutex */
    s->name[0] = s->module[0] = 0;
    s->address = address;
    if (!conc__map_find(address, &m) || m.rights[2] != 'x')
        return false;
    const char *slash = strrchr(m.path, '/');
    conc__copy(s->module, sizeof s->module, slash ? slash + 1 : m.path);
    if (m.path[0] == '/')
        conc__symbol_name(s, m.path, address - m.low + m.offset);
    return true;
}

/* Returns whether a call instruction ends at this address. On processors whose instructions conc
 * does not know, may also return true for other addresses. */
CONC__PRIVATE bool conc__follows_call(int memory, uintptr_t address)
{
#if defined __x86_64__
    unsigned char code[7];
    if (!conc__read_at(memory, code, sizeof code, address - sizeof code))
        return false;
    if (code[2] == 0xe8)
        return true;
    for (int size = 2; size <= 7; size++) /* call through a register, or memory: ff /2 */
        if (code[7 - size] == 0xff && (code[8 - size] >> 3 & 7) == 2)
            return true;
    return false;
#elif defined __aarch64__
    uint32_t code;
    return conc__read_at(memory, &code, sizeof code, address - sizeof code) &&
           ((code & 0xfc000000u) == 0x94000000u || (code & 0xfffffc1fu) == 0xd63f0000u);
#else
    return memory >= 0 && address % 2 == 0;
#endif
}

/* Reads a file from the thread's directory in /proc; `text` is "" if that fails. */
CONC__PRIVATE void conc__thread_file(long thread, const char *name, char *text, size_t size)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/task/%ld/%s", thread, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = 0;
    if (fd >= 0) {
        n = read(fd, text, size - 1);
        close(fd);
    }
    text[n > 0 ? n : 0] = 0;
}

/* Returns whether the thread is in a system call, and if so, stores its stack pointer and program
 * counter. A signal would cut such a call short, so its frames are found by searching its stack. */
CONC__PRIVATE bool conc__in_system_call(long thread, uintptr_t *sp, uintptr_t *pc)
{
    char text[256];
    static conc__map_line m;
    unsigned long stack, code;
    conc__thread_file(thread, "syscall", text, sizeof text);
    if (sscanf(text, "%*d %*s %*s %*s %*s %*s %*s %lx %lx", &stack, &code) != 2 ||
        !conc__map_find(stack, &m) || m.rights[1] != 'w')
        return false;
    *sp = stack;
    *pc = code;
    return true;
}

#else

CONC__PRIVATE bool conc__in_system_call(long thread, uintptr_t *sp, uintptr_t *pc)
{
    (void)thread, (void)sp, (void)pc;
    return false;
}

#endif

/* -- the watchdog -- */

/* Debug mode: what the loop's thread is running: a task's step, or a call of one of the program's
 * functions outside any task. A call may interrupt a step. */
typedef struct conc__held_by {
    int64_t began;         /* on the real clock; 0: nothing is running */
    const conc_task *task; /* may have ended: compare it, never dereference it; NULL: a call */
    const char *role;      /* what the program uses fn for: "the posted function" */
    uintptr_t fn;
    bool reported;
} conc__held_by;

/* Debug mode: a thread that watches for a step that takes too long. It checks several times within
 * the time that a step may take. */
typedef struct conc__watchdog {
    pthread_t id, of;
    long of_number;
    pthread_mutex_t mutex; /* protects the rest, except `frames` */
    pthread_cond_t changed;
    bool ends, asks;
    int64_t most; /* how long a step may take, in ns */
    conc__held_by step;
    char name[CONC__DESCRIPTION]; /* a copy, because the task may end during the step */
#ifdef CONC__BACKTRACE
    sem_t answered; /* valid while `asks` is set */
    int count;
    void *frames[CONC__FRAMES];
#endif
} conc__watchdog;

static pthread_mutex_t conc__report_mutex = PTHREAD_MUTEX_INITIALIZER; /* one report at a time */
/* the watchdog that is waiting for its thread's frames */
static _Atomic(conc__watchdog *) conc__questioner;

/* Describes the code at an address, as far as it is known: "function+0x12 (module+0x345)". The
 * caller holds conc__report_mutex. */
CONC__PRIVATE void conc__name_code(char *text, size_t size, uintptr_t address)
{
    unsigned long long number = address;
#ifdef __linux__
    static conc__symbol s;
    if (conc__symbol_at(address, &s)) {
        unsigned long long in_module = s.address, in_function = s.offset;
        if (s.name[0])
            snprintf(text, size, "%s+0x%llx (%s+0x%llx)", s.name, in_function, s.module, in_module);
        else
            snprintf(text, size, "%s+0x%llx", s.module, in_module);
        return;
    }
#endif
    snprintf(text, size, "0x%llx", number);
}

/* Finds the name of a function of the program. Returns false if its module has no symbol for it. */
CONC__COLD bool conc__name_function(char name[CONC__NAME], uintptr_t fn)
{
    char code[PATH_MAX + 256];
    int saved = errno;
    pthread_mutex_lock(&conc__report_mutex);
    conc__name_code(code, sizeof code, fn);
    pthread_mutex_unlock(&conc__report_mutex);
    errno = saved;
    char *offset = strstr(code, "+0x0 (");
    if (!offset)
        return false;
    *offset = 0;
    conc__copy(name, CONC__NAME, code);
    return true;
}

/* Describes what blocks the loop. The caller holds conc__report_mutex. */
CONC__PRIVATE void conc__name_step(char *text, size_t size, const conc__held_by *step,
                                   const char *task)
{
    char code[PATH_MAX + 256];
    if (!step->role) {
        conc__copy(text, size, task);
        return;
    }
    conc__name_code(code, sizeof code, step->fn);
    char *offset = strstr(code, "+0x0 ("); /* a function's own address: its name suffices */
    if (offset)
        *offset = 0;
    size_t role = strlen(step->role);
    conc__copy(text, size, step->role);
    conc__copy(text + role, size - role, " ");
    conc__copy(text + role + 1, size - role - 1, code);
}

#ifdef __linux__
CONC__PRIVATE void conc__print_frame(int number, uintptr_t address)
{
    char code[PATH_MAX + 256], text[sizeof code + 32];
    conc__name_code(code, sizeof code, address);
    conc__write_stderr(text, snprintf(text, sizeof text, "    #%d %s\n", number, code),
                       sizeof text);
}

/* Prints the frames of a thread in a system call: the words on its stack that look like return
 * addresses. Returns their number. */
CONC__PRIVATE int conc__frames_on_stack(uintptr_t sp, uintptr_t pc)
{
    enum { WORDS = 4096 };
    static conc__symbol s;
    int n = 0, memory = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
    conc__print_frame(n++, pc);
    for (int i = 0; i < WORDS && n < CONC__FRAMES && memory >= 0; i++, sp += sizeof(uintptr_t)) {
        uintptr_t word;
        if (!conc__read_at(memory, &word, sizeof word, sp))
            break;
        if (word < 4096 || !conc__follows_call(memory, word) || !conc__symbol_at(word - 1, &s))
            continue;
        conc__print_frame(n++, word - 1);
        if (strcmp(s.name, "conc__task_main") == 0 || strcmp(s.name, "conc__gen_main") == 0)
            break;
    }
    if (memory >= 0)
        close(memory);
    return n;
}
#endif

#ifdef CONC__BACKTRACE
/* Returns the address at which a signal interrupted the thread; 0: unknown on this system. */
CONC__PRIVATE uintptr_t conc__interrupted_at(const void *context)
{
#if defined __linux__ && defined __x86_64__
    /* element 16 of its first member, whose name differs between C libraries */
    return ((const uintptr_t *)(const void *)&((const ucontext_t *)context)->uc_mcontext)[16];
#elif defined __linux__ && defined __aarch64__
    return (uintptr_t)((const ucontext_t *)context)->uc_mcontext.pc;
#elif defined __linux__ && defined __riscv
    return (uintptr_t)((const ucontext_t *)context)->uc_mcontext.__gregs[0];
#else
    (void)context;
    return 0;
#endif
}

/* Stores this thread's frames for the watchdog. Called in a signal handler. */
CONC__COLD void conc__store_frames(conc__watchdog *d, const void *context)
{
    enum { OF_HANDLER = 3, MORE = 8 }; /* the frames of this function, its caller and the kernel */
    void *all[CONC__FRAMES + MORE];
    uintptr_t at = conc__interrupted_at(context);
    int n = backtrace(all, CONC__FRAMES + MORE), first = 1;
    while (first < n && (uintptr_t)all[first] != at)
        first++;
    if (first >= n)
        first = OF_HANDLER;
    d->count = n > first ? n - first : 0;
    if (d->count > CONC__FRAMES)
        d->count = CONC__FRAMES;
    memcpy(d->frames, all + first, (size_t)d->count * sizeof all[0]);
}

/* Handles SIGURG: stores this thread's frames if a watchdog has asked for them. */
CONC__PRIVATE void conc__on_question(int number, siginfo_t *info, void *context)
{
    int saved = errno;
    conc__watchdog *d = NULL;
    (void)number, (void)info;
    if (conc__here)
        d = atomic_exchange(&conc__questioner, NULL);
    if (d) {
        conc__store_frames(d, context);
        sem_post(&d->answered);
    }
    errno = saved;
}

CONC__PRIVATE bool conc__is_question(const struct sigaction *a)
{
    return (a->sa_flags & SA_SIGINFO) && a->sa_sigaction == conc__on_question;
}

/* Returns whether the watchdog may signal its thread. It may not if the thread is sleeping, because
 * the signal would cut the sleep short, nor if the program uses or blocks the signal. */
CONC__PRIVATE bool conc__may_ask(const conc__watchdog *d)
{
    struct sigaction now;
    char text[4096];
    unsigned long long blocked;
    if (!d->asks || sigaction(SIGURG, NULL, &now) || !conc__is_question(&now))
        return false;
    /* Valgrind runs one thread at a time, so the loop's thread never seems to run */
    if (conc__on_valgrind())
        return true;
    conc__thread_file(d->of_number, "status", text, sizeof text);
    const char *running = strstr(text, "\nState:\tR");
    if (!running)
        return false;
    const char *mask = strstr(running, "\nSigBlk:");
    if (!mask || sscanf(mask, "\nSigBlk: %llx", &blocked) != 1)
        return false;
    return !(blocked >> (SIGURG - 1) & 1);
}

/* Signals the thread to get its frames, and prints them. Returns their number. If this interrupts a
 * system call, the call is restarted. */
CONC__PRIVATE int conc__frames_by_question(conc__watchdog *d)
{
    int n = 0;
    struct timespec limit = conc__real_time_in(200000000);
    atomic_store(&conc__questioner, d);
    bool answered = pthread_kill(d->of, SIGURG) == 0;
    while (answered && sem_timedwait(&d->answered, &limit))
        answered = errno == EINTR;
    if (!answered && !atomic_exchange(&conc__questioner, NULL))
        answered = sem_wait(&d->answered) == 0; /* the handler has just picked up the request */
    /* minus 1: if a function ends with the call, the return address is the next function's */
    for (; answered && n < d->count; n++)
        conc__print_frame(n, (uintptr_t)d->frames[n] - (n > 0));
    return n;
}
#endif

/* Reports a step that is taking too long. The caller holds d->mutex, so the step cannot end. */
CONC__PRIVATE void conc__watchdog_report(conc__watchdog *d)
{
    char name[CONC__DESCRIPTION], text[sizeof name + 128];
    int frames = 0;
    uintptr_t sp, pc;
    pthread_mutex_lock(&conc__report_mutex);
    conc__name_step(name, sizeof name, &d->step, d->name);
    bool sleeps = !conc__on_valgrind() && conc__in_system_call(d->of_number, &sp, &pc);
    const char *where = "at:";
    if (sleeps)
        where = "in a system call, called from (some of these may have returned):";
    double seconds = (double)(conc__clock() - d->step.began) / 1e9;
    int n = snprintf(text, sizeof text, "conc: %s has blocked the loop for %.3f s so far, %s\n",
                     name, seconds, where);
    conc__write_stderr(text, n, sizeof text);
#ifdef __linux__
    if (sleeps)
        frames = conc__frames_on_stack(sp, pc);
#endif
#ifdef CONC__BACKTRACE
    if (!sleeps && conc__may_ask(d))
        frames = conc__frames_by_question(d);
#endif
    if (!frames)
        conc__write_stderr("    (no backtrace available)\n", 29, 64);
    pthread_mutex_unlock(&conc__report_mutex);
}

CONC__PRIVATE void *conc__watchdog_main(void *arg)
{
    enum { LEAST = 1000000 };
    conc__watchdog *d = arg;
    int64_t pause = d->most / 4 > LEAST ? d->most / 4 : LEAST;
    pthread_mutex_lock(&d->mutex);
    while (!d->ends) {
        struct timespec limit = conc__real_time_in(pause);
        pthread_cond_timedwait(&d->changed, &d->mutex, &limit);
        bool unreported = !d->ends && d->step.began && !d->step.reported;
        if (unreported && conc__clock() - d->step.began > d->most) {
            d->step.reported = true;
            conc__watchdog_report(d);
        }
    }
    pthread_mutex_unlock(&d->mutex);
    return NULL;
}

#ifdef CONC__BACKTRACE
static struct sigaction conc__question_before;

CONC__PRIVATE bool conc__has_handler(const struct sigaction *a)
{
    return a->sa_flags & SA_SIGINFO || (a->sa_handler != SIG_DFL && a->sa_handler != SIG_IGN);
}

/* Installs the handler for questions, unless it is already installed. The caller holds the
 * mutex. */
CONC__PRIVATE bool conc__questions_install(void)
{
    struct sigaction now, ours;
    if (sigaction(SIGURG, NULL, &now))
        return false;
    if (conc__is_question(&now))
        return true;
    if (conc__has_handler(&now))
        return false;
    conc__question_before = now;
    memset(&ours, 0, sizeof ours);
    ours.sa_sigaction = conc__on_question;
    ours.sa_flags = SA_SIGINFO | SA_RESTART | CONC__SA_ONSTACK;
    return sigaction(SIGURG, &ours, NULL) == 0;
}
#endif

/* Installs the handler of SIGURG. Returns false if the program handles that signal, or if there is
 * no alternate stack. */
CONC__PRIVATE bool conc__questions_open(const conc_loop *l, conc__watchdog *d)
{
#ifdef CONC__BACKTRACE
    stack_t stack;
    void *frames[4];
    if (!l->signals.slot || sigaltstack(NULL, &stack) || stack.ss_flags & CONC__SS_DISABLE)
        return false;
    backtrace(frames, 4); /* the first call may load a library */
    pthread_mutex_lock(&conc__signalling.mutex);
    bool taken = conc__questions_install();
    conc__signalling.questions += taken;
    pthread_mutex_unlock(&conc__signalling.mutex);
    if (taken)
        sem_init(&d->answered, 0, 0);
    return taken;
#else
    (void)l, (void)d;
    return false;
#endif
}

CONC__PRIVATE void conc__questions_close(conc__watchdog *d)
{
#ifdef CONC__BACKTRACE
    struct sigaction now, *covered = &conc__signalling.numbers[SIGURG].before;
    pthread_mutex_lock(&conc__signalling.mutex);
    bool last = --conc__signalling.questions == 0;
    if (last && sigaction(SIGURG, NULL, &now) == 0 && conc__is_question(&now))
        sigaction(SIGURG, &conc__question_before, NULL);
    if (last && conc__is_question(covered)) /* an open conc_signals will restore this */
        *covered = conc__question_before;
    pthread_mutex_unlock(&conc__signalling.mutex);
    sem_destroy(&d->answered);
#else
    (void)d;
#endif
}

CONC__PRIVATE void conc__watchdog_close(conc_loop *l)
{
    conc__watchdog *d = l->diagnostics.watchdog;
    pthread_mutex_lock(&d->mutex);
    d->ends = true;
    pthread_cond_signal(&d->changed);
    pthread_mutex_unlock(&d->mutex);
    if (!pthread_equal(d->id, d->of)) /* equal: it was not started */
        pthread_join(d->id, NULL);
    if (d->asks)
        conc__questions_close(d);
    pthread_cond_destroy(&d->changed);
    pthread_mutex_destroy(&d->mutex);
    CONC_FREE(d);
    l->diagnostics.watchdog = NULL;
}

CONC__PRIVATE int conc__watchdog_open(conc_loop *l)
{
    conc__watchdog *d = conc__alloc(sizeof *d);
    if (!d)
        return -ENOMEM;
    memset(d, 0, sizeof *d);
    pthread_mutex_init(&d->mutex, NULL);
    pthread_cond_init(&d->changed, NULL);
    d->of = pthread_self();
    d->of_number = conc__thread_number();
    d->most = conc__ns(l->run.options.slow_step);
    d->asks = conc__questions_open(l, d);
    int rc = conc__quiet_thread(&d->id, NULL, conc__watchdog_main, d);
    l->diagnostics.watchdog = d;
    if (rc) {
        d->id = d->of;
        conc__watchdog_close(l);
        return -EAGAIN;
    }
    return 0;
}

/* -- steps -- */

/* Called when a task has been created. */
CONC__COLD void conc__spawned(conc_loop *l, conc_task *t)
{
    t->arrow = 0;
    if (!l->diagnostics.trace)
        return;
    conc__trace_task(l, t);
    conc__trace_instant(l, conc__row_of(l, l->self), "spawn");
    conc__trace_leads(l, t);
}

/* Called when a task's wait ends or becomes another kind of wait: counts and traces the time since
 * the last such change. */
CONC__COLD void conc__waited(conc_loop *l, conc_task *t)
{
    const conc__wait_kind *kind = t->wait->kind;
    int64_t now = conc__time(l);
    l->diagnostics.waited += now - t->since;
    const char *name = kind->brief ? kind->brief : kind->what;
    if (l->diagnostics.trace)
        conc__trace_span(l, conc__row_of(l, t), name, t->since, now);
    t->since = now;
}

/* Called when a task's wait is over. */
CONC__COLD void conc__woken(conc_loop *l, conc_task *t)
{
    conc__waited(l, t);
    if (l->diagnostics.trace)
        conc__trace_leads(l, t);
}

/* Called when the running task has ended, before its stack is released. */
CONC__COLD void conc__step_ends(conc_loop *l, conc_task *t)
{
    if (CONC__UNLIKELY(l->lent.handles && t->has_handle)) {
        conc__holding_drop(&l->lent.handles, t);
        l->lent.any = l->lent.receivers || l->lent.handles;
    }
    l->diagnostics.step_over = true;
    l->diagnostics.left_stack = t->stack;
    l->diagnostics.left_used = NULL;
    if (l->diagnostics.debug)
        l->diagnostics.left_used = conc__usage_note(l, t->stack, conc__source_of(t));
}

CONC__PRIVATE void conc__step_watched(conc_loop *l, const conc_task *t)
{
    conc__watchdog *d = l->diagnostics.watchdog;
    pthread_mutex_lock(&d->mutex);
    conc__describe(d->name, sizeof d->name, conc__source_of(t));
    d->step = (conc__held_by){.began = conc__clock(), .task = t};
    pthread_mutex_unlock(&d->mutex);
}

/* Called when a task of this loop is named or renamed. */
CONC__COLD void conc__named(conc_loop *l, const conc_task *t)
{
    conc__watchdog *d = l->diagnostics.watchdog;
    if (l->diagnostics.trace)
        conc__trace_task(l, t);
    if (!d)
        return;
    pthread_mutex_lock(&d->mutex);
    if (d->step.began && d->step.task == t)
        conc__describe(d->name, sizeof d->name, conc__source_of(t));
    pthread_mutex_unlock(&d->mutex);
}

/* Ends a step, which took this many ns, and reports it if that is too long. `interrupted` becomes
 * the current step again. */
CONC__PRIVATE void conc__step_ended(conc_loop *l, int64_t took, const conc__held_by *interrupted)
{
    char name[CONC__DESCRIPTION];
    conc__watchdog *d = l->diagnostics.watchdog;
    pthread_mutex_lock(&d->mutex);
    conc__held_by over = d->step;
    d->step = *interrupted;
    pthread_mutex_unlock(&d->mutex);
    if (took <= d->most)
        return;
    pthread_mutex_lock(&conc__report_mutex);
    conc__name_step(name, sizeof name, &over, d->name);
    pthread_mutex_unlock(&conc__report_mutex);
    fprintf(stderr, "conc: %s blocked the loop for %.3f s\n", name, (double)took / 1e9);
}

/* Calls run(arg), which calls the program's function fn on the loop, outside any task. In debug
 * mode this call is a step of its own, whose time is not counted for the interrupted task. */
CONC__COLD void conc__call_watched(conc_loop *l, const char *role, uintptr_t fn,
                                   void (*run)(void *), void *arg)
{
    conc__watchdog *d = l->diagnostics.watchdog;
    if (!d) {
        run(arg);
        return;
    }
    int64_t start = conc__time(l), began = conc__clock(), before = l->diagnostics.called;
    pthread_mutex_lock(&d->mutex);
    conc__held_by interrupted = d->step;
    d->step = (conc__held_by){.began = began, .role = role, .fn = fn};
    pthread_mutex_unlock(&d->mutex);
    l->diagnostics.called = 0;
    run(arg);
    if (conc__here != l)
        return; /* a forked child */
    int64_t took = conc__time(l) - start;
    if (interrupted.began)
        interrupted.began += conc__clock() - began;
    conc__step_ended(l, took - l->diagnostics.called, &interrupted);
    l->diagnostics.called = before + took;
}

/* Runs and measures a task's step. */
CONC__COLD void conc__step(conc_loop *l, conc_task *t)
{
    uint64_t row = conc__row_of(l, t);
    if (l->diagnostics.watchdog)
        conc__step_watched(l, t);
    int64_t start = l->diagnostics.step_began = conc__time(l);
    if (t->arrow) {
        conc__trace_arrow(l, row, "f", start, t->arrow);
        t->arrow = 0;
    }
    l->clock.now = start;
    l->diagnostics.step_over = false;
    l->diagnostics.called = 0;
    conc__resume(l, t);
    int64_t end = conc__time(l);
    l->diagnostics.ran += end - start;
    if (l->diagnostics.step_over)
        conc__stack_clear(l->diagnostics.left_stack, l->diagnostics.left_used);
    else
        t->since = end;
    if (l->diagnostics.trace)
        conc__trace_span(l, row, "running", start, end);
    if (l->diagnostics.watchdog)
        conc__step_ended(l, end - start - l->diagnostics.called, &(conc__held_by){0});
}

/* -- what is open -- */

CONC__COLD void conc__opened(conc_loop *l, const void *object, const char *what, const char *place)
{
    if (l->diagnostics.debug)
        conc__holding_add(&l->diagnostics.opened, object, what, place);
}

CONC__COLD void conc__closed(conc_loop *l, const void *object)
{
    conc__holding_drop(&l->diagnostics.opened, object);
}

/* Reports and forgets objects that were opened in the run and not closed. only: their kind; NULL:
 * any. */
CONC__PRIVATE void conc__opened_report(conc_loop *l, const char *only)
{
    if (!l->diagnostics.opened)
        return;
    for (conc__holding *h = l->diagnostics.opened->newest, *older; h; h = older) {
        older = h->older;
        if (only && strcmp(h->what, only) != 0)
            continue;
        if (conc__here == l)
            fprintf(stderr, "conc: %s was left open, opened at %s\n", h->what, h->place);
        conc__holding_drop(&l->diagnostics.opened, h->object);
    }
}

CONC__COLD void conc__generators_left(conc_loop *l) { conc__opened_report(l, "a generator"); }

CONC__COLD void conc__acquired(conc_loop *l, conc_task *t, const void *lock, const char *what,
                               const char *place)
{
    if (l->diagnostics.debug)
        conc__holding_add(&t->held, lock, what, place);
}

CONC__COLD void conc__released(conc_task *t, const void *lock)
{
    conc__holding_drop(&t->held, lock);
}

/* Reports the locks that a task still held when it ended, and that will never be released. */
CONC__COLD void conc__report_held(conc_loop *l, conc_task *t)
{
    char who[CONC__DESCRIPTION];
    (void)l;
    int saved = errno;
    conc__describe(who, sizeof who, conc__source_of(t));
    while (t->held) {
        const conc__holding *h = t->held->newest;
        fprintf(stderr, "conc: %s ended while holding %s acquired at %s\n", who, h->what, h->place);
        conc__holding_drop(&t->held, h->object);
    }
    errno = saved;
}

CONC__PRIVATE bool conc__is_on_own_stack(const conc_task *self, const char *at)
{
    return self && at >= self->stack->low && at < conc__stack_top(self->stack);
}

/* Debug mode: records a handle, which must outlive its task or job. what: the task's name, or
 * CONC__A_JOB. A job's handle is recorded only if it is on the running task's stack, because jobs
 * end in other threads, which do not drop the record. */
CONC__COLD void conc__lend_handle(conc_loop *l, const void *handle, const char *what)
{
    bool is_job = strcmp(what, CONC__A_JOB) == 0;
    if (!l->diagnostics.debug)
        return;
    if (is_job && !conc__is_on_own_stack(l->self, handle))
        return;
    conc__holding_drop(&l->lent.handles, handle); /* left by an earlier job, which has ended */
    conc__holding_add(&l->lent.handles, handle, "a handle", what);
    l->lent.any = l->lent.receivers || l->lent.handles;
}

/* Returns whether the object is no longer in use even though its record exists. That happens only
 * with jobs, because they end in other threads. A job whose handle was overwritten counts as
 * ended. */
CONC__PRIVATE bool conc__lent_is_over(const conc__holding *h)
{
    return strcmp(h->place, CONC__A_JOB) == 0 && !conc__extended.job_in_use(h->object);
}

/* Called when a handle is reused for a new task: aborts with a report if its former task is still
 * alive, because then the handle was overwritten. */
CONC__COLD void conc__find_overwritten(conc_loop *l, const conc_task *handle)
{
    const conc__holding *h = *conc__holding_find(&l->lent.handles, handle);
    char what[CONC__DESCRIPTION];
    if (!h || strcmp(h->place, CONC__A_JOB) == 0)
        return;
    snprintf(what, sizeof what, CONC__HANDLE_OF "%s", h->place);
    conc__lost(l, l->self, what, conc__overwritten);
}

/* Aborts with a report if a handle on the running task's stack below this address is in use. */
CONC__COLD void conc__check_handles(conc_loop *l, const conc_task *t, const void *below,
                                    const char *how)
{
    char handle[CONC__DESCRIPTION];
    const conc__holding *h = conc__find_below(l->lent.handles, t, below);
    while (h && conc__lent_is_over(h)) {
        conc__holding_drop(&l->lent.handles, h->object);
        h = conc__find_below(l->lent.handles, t, below);
    }
    if (h) {
        snprintf(handle, sizeof handle, CONC__HANDLE_OF "%s", h->place);
        conc__lost(l, t, handle, how);
    }
}

/* A range of addresses. */
typedef struct conc__range {
    uintptr_t low, size;
} conc__range;

CONC__PRIVATE void conc__report_lost_args(conc_loop *l, void *arg)
{
    enum { LINES = 20 };
    const conc__range *memory = arg;
    char who[CONC__DESCRIPTION];
    size_t found = 0;
    for (const conc_task *t = l->run.background.children; t; t = conc__task_after(t))
        if ((uintptr_t)t->arg - memory->low < memory->size && found++ < LINES)
            fprintf(stderr,
                    "conc: %s: its arg points to a local variable of main_fn, which has returned\n",
                    conc__describe(who, sizeof who, conc__source_of(t)));
    if (found > LINES)
        fprintf(stderr, "conc: so do the args of %zu others\n", found - LINES);
}

CONC__COLD void conc__find_lost_args(conc_loop *l, uintptr_t low, uintptr_t size)
{
    conc__range memory = {low, size};
    if (l->diagnostics.debug)
        conc__on_loop(l, conc__report_lost_args, &memory);
}

/* -- the run -- */

CONC__PRIVATE void conc__dumps_open(conc_loop *l)
{
    unsigned long came;
    pthread_mutex_lock(&conc__signalling.mutex);
    if (conc__signal_is_default(SIGUSR2)) {
        conc__signal_enter(SIGUSR2, CONC__DUMPS, &came);
        l->diagnostics.dumps_taken = true;
    }
    pthread_mutex_unlock(&conc__signalling.mutex);
}

CONC__PRIVATE void conc__dumps_close(conc_loop *l)
{
    if (!l->diagnostics.dumps_taken)
        return;
    pthread_mutex_lock(&conc__signalling.mutex);
    conc__signal_leave(SIGUSR2, CONC__DUMPS);
    pthread_mutex_unlock(&conc__signalling.mutex);
}

/* Called in a forked child, which has no watchdogs: resets the mutex, which one of the parent's
 * watchdogs may have held. */
CONC__COLD void conc__diagnosis_forget(void)
{
    pthread_mutex_init(&conc__report_mutex, NULL);
    atomic_store(&conc__questioner, NULL);
}

/* Called when a run begins: starts the diagnostics that it requested. */
CONC__COLD int conc__diagnosis_open(conc_loop *l)
{
    int rc = conc__trace_open(l, l->run.options.trace);
    if (rc || !l->diagnostics.debug)
        return rc;
    conc__dumps_open(l);
    rc = conc__watchdog_open(l);
    if (rc == 0)
        atomic_fetch_add(&conc__debug_runs, 1);
    return rc;
}

/* Called when a run has ended or failed to begin: stops its diagnostics and prints the reports. */
CONC__COLD void conc__diagnosis_close(conc_loop *l)
{
    if (l->diagnostics.watchdog) {
        atomic_fetch_sub(&conc__debug_runs, 1);
        conc__watchdog_close(l);
    }
    conc__dumps_close(l);
    conc__opened_report(l, NULL);
    while (l->lent.handles) /* these handles belong to jobs that have ended */
        conc__holding_drop(&l->lent.handles, l->lent.handles->newest->object);
    conc__usage_report(l);
    conc__trace_close(l);
}

static const conc__hooks conc__diagnostics = {.dump = conc__dump,
                                              .deadlock = conc__print_tasks_of_deadlock,
                                              .forget = conc__diagnosis_forget,
                                              .run_began = conc__diagnosis_open,
                                              .run_ended = conc__diagnosis_close,
                                              .main_returned = conc__find_lost_args,
                                              .close_generators = conc__generators_left,
                                              .sleeps = conc__trace_catch_up,
                                              .idled = conc__trace_idle,
                                              .call = conc__call_watched,
                                              .name_function = conc__name_function,
                                              .spawned = conc__spawned,
                                              .named = conc__named,
                                              .step = conc__step,
                                              .waited = conc__waited,
                                              .woken = conc__woken,
                                              .cancelled = conc__trace_cancel,
                                              .returned = conc__report_held,
                                              .ended = conc__step_ends,
                                              .opened = conc__opened,
                                              .closed = conc__closed,
                                              .acquired = conc__acquired,
                                              .released = conc__released,
                                              .handle_lent = conc__lend_handle,
                                              .handle_reused = conc__find_overwritten,
                                              .check_handles = conc__check_handles,
                                              .stack_used = conc__stack_used};

#endif /* CONC_NO_DIAGNOSTICS */

/* ---- >>run ---------------------------------------------------------------------------------- */

CONC_API double conc_random(double low, double high)
{
    conc_loop *l = conc__here;
    if (!l || !(high > low))
        return low;
    double share = (double)(conc__random_bits(&l->random.draws) >> 11) / 9007199254740992.0;
    double x = low + (high - low) * share;
    if (high / 2 - low / 2 > DBL_MAX / 2) /* high - low may overflow */
        x = low * (1 - share) + high * share;
    if (x < high)
        return x;
    return low;
}

/* Reads a number from an environment variable into *out, if the variable is set. Reports an invalid
 * number and returns false. */
CONC__PRIVATE bool conc__env_number(const char *name, uint64_t least, uint64_t *out)
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
        fprintf(stderr, "conc: %s=%s: must be a number, at least %llu\n", name, text,
                (unsigned long long)least);
    return good;
}

/* Reads one of two words from an environment variable, and sets *out to 0 or 1. Reports any other
 * word and returns false. */
CONC__PRIVATE bool conc__env_word(const char *name, const char *zero, const char *one, int *out)
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

/* Finds the poller that CONC_POLL names. If there is no such poller, reports that and returns
 * false. */
CONC__PRIVATE bool conc__env_backend(const conc__backend **out)
{
    const char *text = conc__env("CONC_POLL"), *best = CONC__BEST_BACKEND.name;
    *out = &CONC__BEST_BACKEND;
    if (!text || strcmp(text, best) == 0)
        return true;
    *out = &conc__poll;
    if (strcmp(text, conc__poll.name) == 0)
        return true;
    if (best == conc__poll.name)
        fprintf(stderr, "conc: CONC_POLL=%s: this build has only poll\n", text);
    else
        fprintf(stderr, "conc: CONC_POLL=%s is neither poll nor %s\n", text, best);
    return false;
}

/* In debug mode, reports an invalid call to open a run. conc__misused cannot, because there is no
 * loop yet. */
CONC__PRIVATE int conc__run_misused(const conc_options *o, const char *call, const char *why)
{
    if (o->debug)
        fprintf(stderr, "conc: %s: %s\n", call, why);
    return -EINVAL;
}

/* Applies the environment variables. Reports an invalid value and returns false. */
CONC__PRIVATE bool conc__options_from_env(conc_options *o)
{
    uint64_t seed = o->seed, stack = o->stack_size;
    int clock = o->virtual_clock, debug = o->debug;
    bool valid = conc__env_number("CONC_SEED", 0, &seed) &&
                 conc__env_number("CONC_RANDOM", 0, &o->random) &&
                 conc__env_number("CONC_STACK", CONC__LEAST_STACK, &stack) &&
                 conc__env_word("CONC_CLOCK", "real", "virtual", &clock) &&
                 conc__env_word("CONC_DEBUG", "0", "1", &debug);
    o->seed = seed;
    o->stack_size = (size_t)stack;
    o->virtual_clock = clock;
    o->debug = debug;
    return valid;
}

/* Applies the environment variables, and then the defaults. */
CONC__PRIVATE int conc__options_complete(conc_options *o, const conc__backend **backend,
                                         const char *call)
{
    if (!conc__options_from_env(o) || !conc__env_backend(backend))
        return -EINVAL;
    if (!o->stack_size)
        o->stack_size = CONC_STACK_SIZE;
    if (o->slow_step == 0)
        o->slow_step = 0.1;
    if (!conc__stack_fits(o->stack_size))
        return conc__run_misused(o, call, "the stack size is out of range");
    if (!(o->slow_step > 0))
        return conc__run_misused(o, call, "slow_step is not a positive number");
    if (conc__env("CONC_TRACE"))
        o->trace = conc__env("CONC_TRACE");
    if (conc__diagnostics.run_began || (!o->debug && !o->trace))
        return 0;
    fprintf(stderr,
            "conc: %s: debug mode and traces are unavailable: "
            "the program was built with CONC_NO_DIAGNOSTICS\n",
            call);
    return -ENOTSUP;
}

/* Called in a forked child: forgets all runs, because only the parent continues them. */
CONC__PRIVATE void conc__forget_loop(void)
{
    conc_loop *l = conc__here;
    if (l)
        conc__pipe_signal_unblock(l);
    for (int number = 1; l && number < CONC__SIGNALS; number++)
        if (l->signals.unblocked & conc__signal_bit(number))
            conc__signal_block(number);
    conc__here = NULL;
    pthread_mutex_init(&conc__places, NULL);
    pthread_mutex_init(&conc__live_runs.mutex, NULL);
    conc__live_runs.first = NULL;
    conc__inherited_runs = atomic_load(&conc__runs);
    conc__signals_forget();
    conc__faults_restore();
    atomic_store(&conc__debug_runs, 0);
    if (conc__diagnostics.forget)
        conc__diagnostics.forget();
}

/* Calls fn once; other threads wait until it has returned. If the process forks during the call,
 * the child calls fn too, because the thread that called it exists only in the parent; with
 * pthread_once the child would wait forever. */
CONC__PRIVATE void conc__once(atomic_int *once, void (*fn)(void))
{
    enum { DONE = -1 }; /* 0: not begun; otherwise the id of the process that is calling fn */
    int state = atomic_load(once);
    while (state != DONE) {
        int process = (int)getpid();
        if (state != process && atomic_compare_exchange_strong(once, &state, process)) {
            fn();
            atomic_store(once, DONE);
        }
        sched_yield();
        state = atomic_load(once);
    }
}

CONC__PRIVATE void conc__watch_forks(void) { pthread_atfork(NULL, NULL, conc__forget_loop); }

/* Opens the poller. If the system refuses it, uses poll(2) instead. In that case an embedded run
 * fails, because poll(2) has no descriptor that the host could wait for. */
CONC__PRIVATE int conc__poller_open(conc_loop *l, const conc__backend *backend)
{
    l->poller.backend = backend;
    int rc = backend->open(l);
    if (!conc__refused(-rc))
        return rc;
    if (l->run.embedded)
        return -ENOTSUP;
    l->poller.fd = -1;
    l->poller.backend = &conc__poll;
    return conc__poll.open(l);
}

CONC__PRIVATE int conc__loop_open(conc_loop *l, const conc__backend *backend)
{
    static atomic_int forks;
    conc__once(&forks, conc__watch_forks);
    l->stacks.usual = conc__stack_cache_for(l, l->run.options.stack_size);
    if (!l->stacks.usual)
        return -ENOMEM;
    int rc = conc__wake_open(l);
    if (rc)
        return rc;
    return conc__poller_open(l, backend);
}

CONC__PRIVATE void conc__loop_close(conc_loop *l)
{
    conc__poller_close(l);
    conc__stacks_close(l);
    conc__fds_free(l);
    conc__spares_free(l);
    CONC_FREE(l->diagnostics.census.serials);
    pthread_mutex_lock(&l->shared.mutex);
    l->shared.closed = l->shared.over_for_good = true;
    conc__wake_close(l);
    bool held = l->shared.holds > 0;
    pthread_mutex_unlock(&l->shared.mutex);
    if (!held)
        conc__loop_free(l);
}

/* Returns the initial state of conc_random: from options.random or else the seed, both of which
 * count from 1. If neither is set, uses seed 1 on the virtual clock, and otherwise the clock and
 * the address l, which differ from run to run. */
CONC__PRIVATE uint64_t conc__first_draw(const conc_options *o, const conc_loop *l)
{
    if (o->random)
        return o->random - 1;
    if (o->seed)
        return o->seed - 1;
    if (o->virtual_clock)
        return 0;
    return (uint64_t)conc__clock() ^ (uint64_t)(uintptr_t)l;
}

CONC__PRIVATE conc_loop *conc__loop_new(const conc_options *o)
{
    conc_loop *l = conc__alloc(sizeof *l);
    if (!l)
        return NULL;
    memset(l, 0, sizeof *l);
    pthread_mutex_init(&l->shared.mutex, NULL);
    l->poller.fd = l->poller.wake_in = l->poller.wake_out = -1;
    l->run.options = *o;
    l->clock.is_virtual = o->virtual_clock;
    l->random.seeded = o->seed != 0;
    l->diagnostics.debug = o->debug;
    if (o->debug || o->trace)
        l->scheduler.hooks = &conc__diagnostics;
    l->diagnostics.on_valgrind = conc__on_valgrind();
    l->run.number = 1 + atomic_fetch_add_explicit(&conc__runs, 1, memory_order_relaxed);
    l->counters.spawned = l->counters.finished = l->counters.most = conc__first_serial(l);
    l->errno_at = &errno;
    l->scheduler.switch_stacks = conc__switch_plainly;
    l->scheduler.batch = CONC__BATCH_MOST;
    l->scheduler.budget = CONC__BUDGET_MOST;
    if (!o->virtual_clock) {
        l->clock.now = conc__clock();
        l->scheduler.batch = 1; /* the duration of steps is not known yet */
        l->scheduler.budget /= CONC__BATCH_MOST;
    }
    l->ready.budget_left = l->scheduler.budget;
    l->job.limit = CONC__NEVER;
    l->clock.wheel.elapsed = (uint64_t)l->clock.now;
    l->stacks.trimmed = l->fds.verified = l->poller.polled = l->run.began = l->scheduler.last_pass =
        l->clock.now;
    l->random.picks = o->seed;
    l->random.draws = conc__first_draw(o, l);
    l->run.exit_status = CONC__NO_STATUS;
    conc__fpu_save(&l->scheduler.fpu);
#if CONC__TSAN
    l->scheduler.stack.tsan_fiber = conc__fiber_begin(false);
#endif
    return l;
}

/* Called when main_fn has returned to `frame`: aborts with a report if an object in the frames
 * below is still in use. Handles there are not read, because they may have been overwritten. */
CONC__PRIVATE void conc__find_lost_of_main(conc_loop *l, const void *frame)
{
    static const char how[] = "its function returned";
    conc_task *self = l->self;
    uintptr_t low = (uintptr_t)self->stack->low, size = (uintptr_t)frame - low;
    if (self->scope)
        conc__lost(l, self, self->place, how);
    if (l->lent.any)
        conc__check_lent(l, self, frame, how);
    const conc_task *t = NULL;
    if (l->run.background.live_handles)
        t = l->run.background.children;
    for (; t; t = t->younger)
        if ((uintptr_t)t - low < size)
            conc__lost(l, self, CONC__HANDLE_OF "a background task", how);
    CONC__HOOK(l, main_returned(l, low, size));
}

/* Ends everything that is left after main_fn has returned. Called in main_fn's task. */
CONC__PRIVATE void conc__wind_up(conc_loop *l)
{
    conc_task *self = l->self;
    l->run.winding_up = true;
    self->asked = false; /* clear its cancellation, so that the calls below can wait */
    conc__mark(l, self);
    conc__spread_marked(l);
    conc__cancel_scope(l, &l->run.background.scope);
    if (l->run.background.live)
        conc__wait_until_empty(l, &l->run.background);
    CONC__HOOK(l, close_generators(l)); /* reports them first: closing one may close others */
    if (l->generators.close_all)
        l->generators.close_all(l);
    conc__report_failures(l);
}

CONC__PRIVATE int conc__main_task(void *arg)
{
    conc_loop *l = arg;
    int rc = l->run.main_fn(l->run.main_arg);
    if (conc__here != l)
        return rc; /* a forked child */
    conc__find_lost_of_main(l, __builtin_frame_address(0));
    conc__wind_up(l);
    l->run.over = true;
    return rc;
}

/* How a run ended, for conc_main to report. */
typedef struct conc__outcome {
    char by[CONC__DESCRIPTION], text[CONC__TEXT];
    int signal;      /* the signal that interrupted the run; 0: none */
    int exit_status; /* from conc_set_exit_status; CONC__NO_STATUS: none */
} conc__outcome;

CONC__PRIVATE int conc__start_main(conc_loop *l)
{
    size_t size = l->run.options.stack_size;
    if (size < CONC_STACK_SIZE)
        size = CONC_STACK_SIZE;
    conc__stack_cache *cache = conc__stack_cache_for(l, size);
    if (!cache)
        return -ENOMEM;
    conc__stack *stack = conc__stack_acquire(cache);
    if (!stack)
        return -ENOMEM;
    conc__task_init(l, &l->run.main, true, stack, conc__main_task, l, l->run.main_name);
    l->run.background.scope.state = CONC__OPEN;
    l->run.background.scope.is_group = l->run.background.background = l->run.background.keep_going =
        true;
    l->run.background.scope.place = "background";
    conc__prepare(l->run.main.context, stack->low, conc__stack_top(stack), conc__task_main);
    conc__make_ready(l, &l->run.main);
    CONC__HOOK(l, named(l, &l->run.main));
    return 0;
}

/* Refuses further posts, and runs those that were accepted. */
CONC__PRIVATE void conc__last_posts(conc_loop *l)
{
    pthread_mutex_lock(&l->shared.mutex);
    l->shared.closed = true;
    pthread_mutex_unlock(&l->shared.mutex);
    while (atomic_load_explicit(&l->shared.posted, memory_order_relaxed))
        conc__run_posts(l);
}

CONC__PRIVATE void conc__run_enlist(conc_loop *l)
{
    pthread_mutex_lock(&conc__live_runs.mutex);
    l->run.next = conc__live_runs.first;
    conc__live_runs.first = l;
    pthread_mutex_unlock(&conc__live_runs.mutex);
}

CONC__PRIVATE void conc__run_delist(conc_loop *l)
{
    pthread_mutex_lock(&conc__live_runs.mutex);
    for (conc_loop **at = &conc__live_runs.first; *at; at = &(*at)->run.next)
        if (*at == l) {
            *at = l->run.next;
            break;
        }
    pthread_mutex_unlock(&conc__live_runs.mutex);
}

CONC_API void conc_set_exit_status(int status)
{
    conc_loop *l = conc__here;
    if (!l)
        conc__misused(0, __func__, "only a task of the run may call it", NULL);
    else if (status < 0 || status > 255)
        conc__misused(0, __func__, "an exit status is a number from 0 to 255", NULL);
    else
        l->run.exit_status = status;
}

/* Called when a run has ended or failed to begin: makes its error text the thread's own. rc: the
 * run's result, or why it failed to begin. */
CONC__PRIVATE void conc__keep_run_text(int rc, const char *text)
{
    if (rc >= 0) {
        *conc__thread_text = 0;
        return;
    }
    /* text may be conc__thread_text itself */
    conc__copy(conc__thread_text, sizeof conc__thread_text, text);
    conc_fail(rc, "%s", text); /* in a job, this is also the job's error */
}

/* Opens a run, and makes it the current run of this thread. */
CONC__PRIVATE int conc__open_run(conc_loop **out, bool embedded, const char *call,
                                 const conc_options *options, const char *spawned, conc_fn *main_fn,
                                 void *arg)
{
    conc_options o = options ? *options : (conc_options){0};
    const conc__backend *backend;
    int rc = conc__options_complete(&o, &backend, call);
    if (rc == 0 && !main_fn)
        rc = conc__run_misused(&o, call, "no function");
    if (rc == 0 && (conc__shadow_stack() || (embedded && backend == &conc__poll)))
        rc = -ENOTSUP;
    if (rc)
        return rc;
    conc_loop *l = conc__loop_new(&o);
    if (!l)
        return -ENOMEM;
    l->run.embedded = embedded;
    l->run.left = l->run.began;
    l->shared.asleep = embedded; /* a post wakes the host */
    l->run.main_name = spawned;
    l->run.main_fn = main_fn;
    l->run.main_arg = arg;
    rc = conc__loop_open(l, backend);
    if (rc == 0)
        conc__faults_open(l);
    if (rc == 0 && CONC__HOOKS(l))
        rc = CONC__HOOKS(l)->run_began(l);
    if (rc == 0)
        rc = conc__start_main(l);
    if (rc == 0)
        rc = conc__interrupts_open(l);
    if (rc == 0 && conc__extended.job_runs)
        rc = conc__extended.job_runs(l);
    if (rc) {
        CONC__HOOK(l, run_ended(l));
        conc__faults_close(l);
        conc__signals_end(l);
        conc__loop_close(l);
        return rc;
    }
    conc__pipe_signal_block(l);
    conc__run_enlist(l);
    conc__here = *out = l;
    return 0;
}

CONC__PRIVATE int conc__begin(conc_loop **out, bool embedded, const conc_options *options,
                              const char *spawned, conc_fn *main_fn, void *arg)
{
    const char *call = embedded ? "conc_embed_begin" : "conc_run";
    if (conc__here)
        return conc__misused(-EBUSY, call, "a run is open on this thread", NULL);
    *conc__thread_text = 0; /* a call that fails may set it */
    int rc = conc__open_run(out, embedded, call, options, spawned, main_fn, arg);
    if (rc)
        conc__keep_run_text(rc, conc__text_or(conc__thread_text, rc));
    return rc;
}

/* Returns the text of the run's error. */
CONC__PRIVATE const char *conc__run_text(const conc_loop *l, int rc)
{
    if (*l->cancels.doom_text)
        return l->cancels.doom_text;
    return conc__text_or(conc__error_text(&l->run.main, rc), rc);
}

/* Ends a run. Returns its result, and sets *outcome. */
CONC__PRIVATE int conc__end_run(conc_loop *l, conc__outcome *outcome)
{
    conc__last_posts(l);
    while (l->run.endings) {
        conc__ending *e = l->run.endings;
        l->run.endings = e->next;
        e->end(l, e);
    }
    CONC__HOOK(l, run_ended(l));
    conc__faults_close(l);
    conc__signals_end(l);
    conc__run_delist(l);
    conc__here = NULL;
    conc__pipe_signal_unblock(l);
    int rc = l->run.main.result;
    if (l->cancels.doomed)
        rc = l->cancels.doom_rc;
    outcome->exit_status = l->run.exit_status;
    if (l->interrupt.late || (l->interrupt.by && rc == -ECANCELED)) {
        rc = -EINTR;
        outcome->signal = l->interrupt.by;
        conc__copy(outcome->text, sizeof outcome->text, conc_strerror(rc));
    } else if (rc < 0) {
        conc__describe(outcome->by, sizeof outcome->by, conc__origin(&l->run.main, rc));
        conc__copy(outcome->text, sizeof outcome->text, conc__run_text(l, rc));
    }
    conc__loop_close(l);
    conc__keep_run_text(rc, outcome->text);
    return rc;
}

CONC__PRIVATE int conc__run(const conc_options *options, const char *spawned, conc_fn *main_fn,
                            void *arg, conc__outcome *outcome)
{
    int saved = errno;
    conc_loop *l = NULL; /* silences a false warning of GCC */
    int rc = conc__begin(&l, false, options, spawned, main_fn, arg);
    if (rc == 0) {
        conc__schedule(l);
        rc = conc__end_run(l, outcome);
    } else if (!conc__here) {
        conc__copy(outcome->text, sizeof outcome->text, conc__thread_text);
    }
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
    const conc_options o = {.interrupt = true};
    conc__outcome outcome = {.exit_status = CONC__NO_STATUS};
    conc__describe(outcome.by, sizeof outcome.by, (conc__source){spawned, spawned});
    int rc = conc__run(&o, spawned, main_fn, arg, &outcome);
    if (outcome.signal)
        return 128 + outcome.signal;
    int saved = errno;
    if (rc < 0)
        fprintf(stderr, "conc: %s failed: %s\n", outcome.by, conc__text_or(outcome.text, rc));
    errno = saved;
    if (outcome.exit_status == CONC__NO_STATUS)
        return rc < 0;
    return outcome.exit_status;
}

/* ---- >>embedding ---------------------------------------------------------------------------- */

CONC_API int conc_embed_begin(conc_embed *e, const conc_options *options, conc_fn *main_fn,
                              void *arg)
{
    if (!e)
        return conc__misused(-EINVAL, __func__, "no conc_embed", NULL);
    if (conc__is_live(e->loop))
        return conc__misused(-EBUSY, "conc_embed_begin", "it already has a run", NULL);
    conc_loop *l = NULL;
    int saved = errno, rc = conc__begin(&l, true, options, "main", main_fn, arg);
    errno = saved;
    if (rc == 0)
        e->loop = l;
    return rc;
}

/* Returns 0, -EINVAL if e has no run, or -EPERM if its run is another thread's. */
CONC__PRIVATE int conc__embed_check(const conc_embed *e)
{
    if (!e || !e->loop)
        return -EINVAL;
    if (e->loop != conc__here)
        return -EPERM;
    return 0;
}

/* Returns 0 if the caller may take a step or end the run; otherwise the call's error. */
CONC__PRIVATE int conc__embed_usable(const conc_embed *e, const char *call)
{
    int rc = conc__embed_check(e);
    if (rc == -EINVAL)
        return conc__misused(rc, call, "this conc_embed has no run", NULL);
    bool is_inside = rc == 0 && (e->loop->self || e->loop->scheduler.stepping);
    if (rc == -EPERM || is_inside)
        return conc__misused(-EPERM, call, "call it between two steps, on the run's thread", NULL);
    return rc;
}

CONC_API int conc_embed_fd(conc_embed *e)
{
    int rc = conc__embed_check(e);
    if (rc)
        return conc__misused(rc, __func__, "this conc_embed has no run on this thread", NULL);
    return e->loop->poller.fd;
}

/* Returns whether a step would find work to do. */
CONC__PRIVATE bool conc__embed_is_due(conc_loop *l, bool at_work)
{
    bool ready = l->run.over || l->ready.first || l->spinners.first || l->scheduler.settlers.first;
    bool stands = at_work || l->clock.retried || l->clock.standstill.until > conc__clock();
    bool jumps = l->clock.is_virtual && !stands && conc__wheel_next(&l->clock.wheel) != CONC__NEVER;
    return ready || jumps || atomic_load(&l->shared.posted) || atomic_load(&l->signals.came);
}

CONC_API double conc_embed_timeout(conc_embed *e)
{
    int rc = conc__embed_check(e);
    if (rc == -EPERM)
        return rc;
    if (rc)
        return CONC_FOREVER;
    conc_loop *l = e->loop;
    if (conc__embed_is_due(l, conc__at_work(l)))
        return 0;
    int64_t next = CONC__NEVER, now = conc__clock(), verify = l->fds.verified + CONC__VERIFY_EVERY;
    if (!l->clock.is_virtual)
        next = conc__wheel_next(&l->clock.wheel);
    /* the host may have closed a descriptor. While l->clock.retried is set, the virtual clock is
     * about to jump, and conc__jump_clock verifies the descriptors */
    if (l->fds.verify_count && !l->clock.retried && verify < next)
        next = verify;
    if (l->clock.retried && now + CONC__MOMENT < next)
        next = now + CONC__MOMENT;
    if (l->poller.apart && now + CONC__APART_EVERY < next)
        next = now + CONC__APART_EVERY; /* the host does not see descriptors outside the queue */
    if (l->clock.standstill.until > now && l->clock.standstill.until < next)
        next = l->clock.standstill.until;
    if (next == CONC__NEVER)
        return CONC_FOREVER;
    if (next <= now)
        return 0;
    return (double)(next - now) / 1e9;
}

CONC_API int conc_embed_step(conc_embed *e)
{
    enum { PASSES = 16 }; /* maximum; then the host continues */
    int rc = conc__embed_usable(e, "conc_embed_step"), saved = errno;
    if (rc)
        return rc;
    conc_loop *l = e->loop;
    l->scheduler.stepping = true;
    l->clock.retried = false;
    l->clock.standstill.until = 0;
    l->scheduler.last_pass = conc__time(l);
    conc__was_idle(l, l->run.left, l->scheduler.last_pass);
    int64_t start = l->run.left = l->scheduler.last_pass;
    for (int i = 0; i < PASSES && l->run.left - start < CONC__BATCH_NS && !l->run.over; i++) {
        if (!conc__run_pass(l))
            break;
        l->run.left = conc__time(l);
    }
    l->scheduler.stepping = false;
    l->run.left = conc__time(l);
    pthread_mutex_lock(&l->shared.mutex);
    l->shared.asleep = !l->shared.posted; /* a post wakes the host */
    pthread_mutex_unlock(&l->shared.mutex);
    errno = saved;
    return !l->run.over;
}

CONC_API int conc_embed_end(conc_embed *e)
{
    conc__outcome outcome = {0};
    if (e && !e->loop)
        return 0;
    int rc = conc__embed_usable(e, "conc_embed_end"), saved = errno;
    if (rc)
        return rc;
    conc_loop *l = e->loop;
    l->run.embedded = false;
    l->scheduler.stepping = true;
    conc__was_idle(l, l->run.left, conc__time(l));
    conc__take_signals(l); /* an interrupt since the last step counts as the reason for the end */
    if (!l->run.winding_up)
        conc__task_cancel(l, &l->run.main);
    conc__schedule(l);
    rc = conc__end_run(l, &outcome);
    e->loop = NULL;
    errno = saved;
    return rc;
}

#endif /* CONC_IMPLEMENTATION */

/* ---- >>licence ------------------------------------------------------------------------------- *
 *
 * MIT License
 *
 * Copyright (c) 2026 the conc authors
 *
 * Permission is hereby granted, free of charge, to any person obtaining a copy of this software
 * and associated documentation files (the "Software"), to deal in the Software without
 * restriction, including without limitation the rights to use, copy, modify, merge, publish,
 * distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the
 * Software is furnished to do so, subject to the following conditions:
 *
 * The above copyright notice and this permission notice shall be included in all copies or
 * substantial portions of the Software.
 *
 * THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING
 * BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
 * NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM,
 * DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
 * OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
 */
