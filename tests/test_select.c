/* test_select.c - conc_select: of any mix of queues, events, tasks, descriptors and time, exactly
 * one case happens, even if several become ready at the moment when the caller is cancelled; the
 * others have no effect.
 *
 * Not under: ucontext, save-fpu, aarch64-bti, riscv64, gcc-asan (how tasks switch and wait is
 * tested elsewhere)
 */
#define TEST_SYNC
#include "io_test.h"

/* ---- a scene has one object of each kind, and a task that selects over all of them ---- */

enum { GET, PUT, EVENT, JOIN, FD, AFTER, KINDS };
enum { ITEM = 5, LYING = 9, OURS = 77, SECONDS = 10, RESULT = 42 };

typedef struct scene {
    conc_group group;
    conc_queue empty, full;
    conc_event event, go;
    int ends[2];
    conc_task target, selector;
    int to, from;
    conc_case cases[KINDS];
    int n, chosen, next, target_rc;
    bool over;
} scene;

static int ends_when_told(void *arg)
{
    scene *s = arg;
    CHECK_INT(conc_event_wait(&s->go), 0);
    return s->target_rc;
}

static void open_scene(scene *s)
{
    *s = (scene){
        .empty = CONC_QUEUE(int, 1), .full = CONC_QUEUE(int, 1), .from = OURS, .target_rc = RESULT};
    s->group.keep_going = true;
    CHECK_INT(conc_queue_try_put(&s->full, &(int){LYING}), 0);
    CHECK_INT(pipe(s->ends), 0);
    CHECK_INT(conc_spawn_task(&s->group, &s->target, ends_when_told, s), 0);
    CHECK_INT(conc_settle(), 0);
}

static void close_scene(scene *s)
{
    conc_event_set(&s->go);
    CHECK_INT(conc_group_wait(&s->group), s->group.error);
    conc_queue_destroy(&s->empty);
    conc_queue_destroy(&s->full);
    io_close(s->ends);
}

static conc_case case_of(scene *s, int kind)
{
    switch (kind) {
    case GET: return (conc_case)CONC_CASE_GET(&s->empty, &s->to);
    case PUT: return (conc_case)CONC_CASE_PUT(&s->full, &s->from);
    case EVENT: return (conc_case)CONC_CASE_EVENT(&s->event);
    case JOIN: return (conc_case)CONC_CASE_JOIN(&s->target);
    case FD: return (conc_case)CONC_CASE_FD(s->ends[0], CONC_READABLE);
    default: return (conc_case)CONC_CASE_AFTER(SECONDS);
    }
}

/* Cases of all kinds, with the one at `first` in front. */
static void fill_cases(scene *s, int first)
{
    s->n = KINDS;
    for (int i = 0; i < KINDS; i++)
        s->cases[i] = case_of(s, (first + i) % KINDS);
}

static void make_ready(scene *s, int kind)
{
    int item = ITEM;
    switch (kind) {
    case GET: CHECK_INT(conc_queue_try_put(&s->empty, &item), 0); break;
    case PUT: CHECK_INT(conc_queue_try_get(&s->full, &item), 0); break;
    case EVENT: conc_event_set(&s->event); break;
    case JOIN: conc_event_set(&s->go); break;
    case FD: io_send(s->ends[1], "x"); break;
    default: CHECK_INT(conc_block(SECONDS), 0); break;
    }
}

static int result_of(int kind) { return kind == JOIN ? RESULT : kind == FD ? CONC_READABLE : 0; }

/* The empty queue: was the item put, and did the select take it? */
static void check_get(scene *s, bool put, bool taken)
{
    CHECK_INT(s->to, taken ? ITEM : 0);
    CHECK_INT(conc_queue_len(&s->empty), put && !taken);
}

/* The full queue: was its item taken, and did the select put its own? */
static void check_put(scene *s, bool room, bool done)
{
    int item = 0;
    CHECK_INT(conc_queue_len(&s->full), !room || done);
    if (!room || done)
        CHECK_INT(conc_queue_try_get(&s->full, &item), 0);
    CHECK_INT(item, done ? OURS : room ? 0 : LYING);
}

static int selects(void *arg)
{
    scene *s = arg;
    s->chosen = conc_select(s->cases, (size_t)s->n);
    s->over = true;
    s->next = conc_yield();
    return 0;
}

static void start_selector(scene *s)
{
    CHECK_INT(conc_spawn_task(&s->group, &s->selector, selects, s), 0);
    CHECK_INT(conc_settle(), 0);
}

/* ---- one case is ready, or several ---- */

IO_TEST(the_case_that_becomes_ready_is_the_one_that_happens)
{
    for (int kind = 0; kind < KINDS; kind++)
        for (int first = 0; first < KINDS; first++) {
            scene s;
            conc_stats before, after;
            open_scene(&s);
            fill_cases(&s, first);
            conc_get_stats(&before);
            start_selector(&s);
            CHECK(!s.over);
            make_ready(&s, kind);
            CHECK_INT(conc_join(&s.selector, NULL), 0);
            conc_get_stats(&after);
            CHECK_INT(s.chosen, (kind - first + KINDS) % KINDS);
            CHECK_INT(s.cases[s.chosen].result, result_of(kind));
            CHECK_INT(s.next, 0);
            check_get(&s, kind == GET, kind == GET);
            check_put(&s, kind == PUT, kind == PUT);
            CHECK_INT(after.timers, before.timers);
            CHECK_INT(after.descriptors, before.descriptors);
            close_scene(&s);
        }
}

IO_TEST(only_the_first_of_several_ready_cases_happens)
{
    for (int first = 0; first < KINDS; first++) {
        scene s;
        open_scene(&s);
        for (int kind = 0; kind < KINDS; kind++)
            make_ready(&s, kind);
        CHECK_INT(conc_settle(), 0);
        fill_cases(&s, first);
        for (int i = 0; i < KINDS; i++)
            if (s.cases[i].seconds > 0)
                s.cases[i].seconds = 0;
        CHECK_INT(conc_select(s.cases, KINDS), 0);
        CHECK_INT(s.cases[0].result, result_of(first));
        check_get(&s, true, first == GET);
        check_put(&s, true, first == PUT);
        CHECK_INT(io_available(s.ends[0]), 1);
        close_scene(&s);
    }
}

IO_TEST(a_ready_case_behind_others_that_are_not_happens_at_once)
{
    for (int kind = 0; kind < KINDS; kind++) {
        scene s;
        open_scene(&s);
        if (kind != AFTER)
            make_ready(&s, kind);
        CHECK_INT(conc_settle(), 0);
        fill_cases(&s, kind + 1);
        if (kind == AFTER)
            s.cases[KINDS - 1].seconds = -1;
        double now = conc_now();
        CHECK_INT(conc_select(s.cases, KINDS), KINDS - 1);
        CHECK_INT(s.cases[KINDS - 1].result, result_of(kind));
        CHECK_TIME(now);
        close_scene(&s);
    }
}

/* ---- several events and a cancel in one moment ---- */

typedef struct cause {
    int kind;
    void (*happen)(scene *s);
    int result;
} cause;

static void get_gets_ready(scene *s) { make_ready(s, GET); }
static void put_gets_ready(scene *s) { make_ready(s, PUT); }
static void event_gets_ready(scene *s) { make_ready(s, EVENT); }
static void time_passes(scene *s) { make_ready(s, AFTER); }
static void get_is_closed(scene *s) { conc_queue_close(&s->empty); }
static void put_is_closed(scene *s) { conc_queue_close(&s->full); }
static void fd_is_closed(scene *s) { CHECK_INT(conc_close(s->ends[0]), 0); }

static const cause causes[] = {
    {GET, get_gets_ready, 0},   {PUT, put_gets_ready, 0},     {EVENT, event_gets_ready, 0},
    {AFTER, time_passes, 0},    {GET, get_is_closed, -EPIPE}, {PUT, put_is_closed, -EPIPE},
    {FD, fd_is_closed, -EBADF},
};

/* The events of one moment: the causes that are not NULL, with a cancel before one of them (3: no
 * cancel), and finally the end of the task that causes them, for which the select waits too. */
typedef struct moment {
    scene *s;
    const cause *causes[2];
    int cancel_before;
} moment;

static int happens(void *arg)
{
    moment *m = arg;
    CHECK_INT(conc_event_wait(&m->s->go), 0);
    for (int i = 0; i < 3; i++) {
        if (i == m->cancel_before)
            CHECK_INT(conc_cancel(&m->s->selector), 0);
        if (i < 2 && m->causes[i])
            m->causes[i]->happen(m->s);
    }
    return RESULT;
}

static void run_moment(const cause *one, const cause *two, int cancel_before)
{
    scene s;
    moment m = {&s, {one, two}, cancel_before};
    conc_task actor;
    conc_stats before, after;
    open_scene(&s);
    CHECK_INT(conc_spawn_task(&s.group, &actor, happens, &m), 0);
    fill_cases(&s, 0);
    s.cases[JOIN].task = &actor;
    conc_get_stats(&before);
    start_selector(&s);
    conc_event_set(&s.go);
    CHECK_INT(conc_join(&s.selector, NULL), 0);
    conc_get_stats(&after);
    const cause *first = one ? one : two;
    int cancels = one ? cancel_before == 0 : two ? cancel_before <= 1 : cancel_before <= 2;
    int chosen = cancels ? -ECANCELED : first ? first->kind : JOIN;
    CHECK_INT(s.chosen, chosen);
    CHECK_INT(s.next, cancel_before < 3 ? -ECANCELED : 0);
    if (chosen >= 0)
        CHECK_INT(s.cases[chosen].result, first ? first->result : RESULT);
    bool put = (one && one->happen == get_gets_ready) || (two && two->happen == get_gets_ready);
    bool room = (one && one->happen == put_gets_ready) || (two && two->happen == put_gets_ready);
    bool won = !cancels && first && first->result == 0;
    check_get(&s, put, won && chosen == GET);
    check_put(&s, room, won && chosen == PUT);
    CHECK_INT(after.timers, before.timers);
    CHECK_INT(after.descriptors, before.descriptors);
    if ((one && one->kind == FD) || (two && two->kind == FD))
        s.ends[0] = dup(s.ends[1]); /* until the scene closes */
    close_scene(&s);
}

TASK_TEST(the_first_of_two_simultaneous_events_happens_and_a_cancel_counts_if_it_comes_before)
{
    enum { MORE = CONC_LEN(causes) };
    for (int cancel_before = 0; cancel_before <= 3; cancel_before++)
        for (int i = 0; i <= MORE; i++)
            for (int j = 0; j <= MORE; j++)
                if (i == MORE || j == MORE || causes[i].kind != causes[j].kind)
                    run_moment(i < MORE ? &causes[i] : NULL, j < MORE ? &causes[j] : NULL,
                               cancel_before);
}

static int ends_and_cancels_in_between(void *arg)
{
    scene *s = arg;
    conc_event_set(&s->go);
    /* the target ends, and the selector runs after this task */
    CHECK_INT(conc_yield(), 0);
    CHECK(conc_done(&s->target) && !s->over);
    return conc_cancel(&s->selector);
}

ORDERED_TASK_TEST(the_end_of_a_task_wins_over_a_later_cancel)
{
    scene s;
    open_scene(&s);
    fill_cases(&s, 0);
    start_selector(&s);
    CHECK_INT(conc_spawn(&s.group, ends_and_cancels_in_between, &s), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(s.chosen, JOIN);
    CHECK_INT(s.cases[JOIN].result, RESULT);
    CHECK_INT(s.next, -ECANCELED);
    close_scene(&s);
}

IO_TEST(bytes_that_no_task_waits_for_any_more_stay_in_the_pipe)
{
    scene s;
    open_scene(&s);
    fill_cases(&s, 0);
    start_selector(&s);
    io_send(s.ends[1], "x"); /* the loop notices that when it polls */
    CHECK_INT(conc_cancel(&s.selector), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(s.chosen, -ECANCELED);
    io_expect(s.ends[0], "x");
    close_scene(&s);
}

TASK_TEST(a_time_limit_around_a_select_takes_nothing)
{
    for (int late = 0; late <= 1; late++) {
        scene s;
        open_scene(&s);
        fill_cases(&s, 0);
        CHECK_INT(conc_timeout(late ? SECONDS + 1 : 1, selects, &s), 0);
        CHECK_INT(s.chosen, late ? AFTER : -ECANCELED);
        check_get(&s, false, false);
        check_put(&s, false, false);
        close_scene(&s);
    }
}

static int selects_and_tells(void *arg)
{
    scene *s = arg;
    return s->chosen = conc_select(s->cases, (size_t)s->n);
}

TASK_TEST(a_select_that_times_out_gets_etimedout_from_the_scope)
{
    scene s;
    open_scene(&s);
    fill_cases(&s, 0);
    CHECK_INT(conc_timeout(1, selects_and_tells, &s), -ETIMEDOUT);
    CHECK_TIME(1);
    close_scene(&s);
}

/* ---- what the losing cases leave behind ---- */

typedef struct getter {
    conc_queue *queue;
    int rc, item, order;
    bool selects;
    conc_task task;
} getter;

static int gets_so_far;

static int gets_one(void *arg)
{
    getter *g = arg;
    conc_case c[] = {CONC_CASE_AFTER(CONC_FOREVER), CONC_CASE_GET(g->queue, &g->item)};
    g->rc = g->selects ? conc_select(c, CONC_LEN(c)) : conc_queue_get(g->queue, &g->item);
    if (g->selects && g->rc >= 0)
        g->rc = g->rc == 1 ? c[1].result : 4711;
    g->order = ++gets_so_far;
    return 0;
}

TASK_TEST(a_select_waits_at_a_queue_in_order_with_others)
{
    conc_queue q = CONC_QUEUE(int, 4);
    conc_group g = {0};
    getter getters[4];
    for (int i = 0; i < 4; i++) {
        getters[i] = (getter){.queue = &q, .selects = i % 2 == 0};
        CHECK_INT(conc_spawn(&g, gets_one, &getters[i]), 0);
        CHECK_INT(conc_settle(), 0);
    }
    for (int i = 0; i < 4; i++)
        CHECK_INT(conc_queue_try_put(&q, &i), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    for (int i = 0; i < 4; i++) {
        CHECK_INT(getters[i].rc, 0);
        CHECK_INT(getters[i].item, i);
    }
    conc_queue_destroy(&q);
}

TASK_TEST(after_a_select_the_losing_queues_serve_later_tasks)
{
    scene s;
    int item = 0;
    getter later = {.queue = &s.empty};
    open_scene(&s);
    fill_cases(&s, 0);
    start_selector(&s);
    CHECK_INT(conc_spawn(&s.group, gets_one, &later), 0);
    CHECK_INT(conc_settle(), 0);
    make_ready(&s, EVENT);
    make_ready(&s, GET); /* in the same moment: it is the next select's */
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(s.chosen, EVENT);
    CHECK_INT(later.rc, 0);
    CHECK_INT(later.item, ITEM);
    CHECK_INT(s.to, 0);
    CHECK_INT(conc_queue_get(&s.full, &item), 0);
    CHECK_INT(item, LYING);
    CHECK_INT(conc_queue_try_get(&s.full, &item), -EAGAIN);
    close_scene(&s);
}

static int fails_at_once(void *arg)
{
    (void)arg;
    return conc_fail(-EIO, "no such luck");
}

static int failures_told;
static void count_failure(const conc_failure *f, void *user)
{
    (void)user;
    CHECK_INT(f->rc, -EIO);
    failures_told++;
}

/* A background task fails, and a select waits for its end and an event that is set; arg: the end
 * comes first. */
static int selects_over_a_failed_task(void *arg)
{
    conc_task t;
    conc_event set = {0};
    bool join_first = *(bool *)arg;
    conc_event_set(&set);
    CHECK_INT(conc_spawn_task(NULL, &t, fails_at_once, NULL), 0);
    CHECK_INT(conc_settle(), 0);
    conc_case join = CONC_CASE_JOIN(&t), event = CONC_CASE_EVENT(&set);
    conc_case c[] = {join_first ? join : event, join_first ? event : join};
    CHECK_INT(conc_select(c, 2), 0);
    CHECK_INT(c[0].result, join_first ? -EIO : 0);
    return 0;
}

TEST(a_failure_counts_as_collected_only_if_the_join_is_what_happened)
{
    for (int join_first = 0; join_first <= 1; join_first++) {
        bool first = join_first;
        conc_options o = {.virtual_clock = true, .on_error = count_failure};
        failures_told = 0;
        CHECK_INT(conc_run_with(&o, selects_over_a_failed_task, &first), 0);
        CHECK_INT(failures_told, !join_first);
    }
}

typedef struct hurried {
    conc_event *event;
    conc_queue *queue;
    int chosen, item;
} hurried;

static int selects_over_borrowed_things(void *arg)
{
    hurried *h = arg;
    conc_case c[] = {CONC_CASE_GET(h->queue, &h->item), CONC_CASE_EVENT(h->event),
                     CONC_CASE_AFTER(5)};
    h->chosen = conc_select(c, CONC_LEN(c));
    return 0;
}

TASK_TEST(all_objects_of_a_select_may_be_freed_once_one_case_has_happened)
{
    conc_group g = {0};
    hurried h = {calloc(1, sizeof *h.event), calloc(1, sizeof *h.queue), -1, 0};
    CHECK(h.event && h.queue);
    CHECK_INT(conc_spawn(&g, selects_over_borrowed_things, &h), 0);
    CHECK_INT(conc_settle(), 0);
    conc_event_set(h.event);
    conc_queue_destroy(h.queue);
    free(h.event);
    free(h.queue);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(h.chosen, 1);
}

/* ---- queues ---- */

static conc_queue four[4];

typedef struct share {
    int got[100], count;
} share;

static int takes_from_all_four(void *arg)
{
    share *s = arg;
    for (;;) {
        int items[4] = {-1, -1, -1, -1};
        conc_case c[] = {CONC_CASE_GET(&four[0], &items[0]), CONC_CASE_GET(&four[1], &items[1]),
                         CONC_CASE_GET(&four[2], &items[2]), CONC_CASE_GET(&four[3], &items[3])};
        int i = CONC_TRY(conc_select(c, 4));
        if (c[i].result == -EPIPE)
            return 0;
        CHECK_INT(c[i].result, 0);
        for (int k = 0; k < 4; k++)
            CHECK(k == i ? items[k] >= 0 : items[k] == -1);
        s->got[s->count++] = items[i];
        CHECK_INT(conc_yield(), 0);
    }
}

TASK_TEST(items_that_many_selects_take_from_many_queues_arrive_once)
{
    static share shares[20];
    int seen[100] = {0}, sum = 0;
    conc_group g = {0};
    memset(shares, 0, sizeof shares);
    for (int i = 0; i < 4; i++)
        four[i] = (conc_queue)CONC_QUEUE(int, 2);
    for (int i = 0; i < 20; i++)
        CHECK_INT(conc_spawn(&g, takes_from_all_four, &shares[i]), 0);
    for (int i = 0; i < 100; i++)
        CHECK_INT(conc_queue_put(&four[i % 7 % 4], &i), 0);
    CHECK_INT(conc_settle(), 0);
    for (int i = 0; i < 4; i++) {
        CHECK_INT(conc_queue_len(&four[i]), 0);
        conc_queue_close(&four[i]);
    }
    CHECK_INT(conc_group_wait(&g), 0);
    for (int i = 0; i < 20; i++)
        for (int k = 0; k < shares[i].count; k++)
            seen[shares[i].got[k]]++, sum++;
    CHECK_INT(sum, 100);
    for (int i = 0; i < 100; i++)
        CHECK_INT(seen[i], 1);
    for (int i = 0; i < 4; i++)
        conc_queue_destroy(&four[i]);
}

static int selects_both_ways(void *arg)
{
    scene *s = arg;
    conc_case c[] = {CONC_CASE_PUT(&s->full, &s->from), CONC_CASE_GET(&s->empty, &s->to),
                     CONC_CASE_GET(&s->full, &s->to)};
    s->chosen = conc_select(c, 3);
    return 0;
}

TASK_TEST(a_select_may_put_into_the_queue_it_gets_from)
{
    scene s;
    open_scene(&s);
    CHECK_INT(selects_both_ways(&s), 0);
    CHECK_INT(s.chosen, 2); /* full: there is an item to get */
    CHECK_INT(s.to, LYING);
    CHECK_INT(selects_both_ways(&s), 0);
    CHECK_INT(s.chosen, 0); /* empty: there is room */
    check_put(&s, true, true);
    close_scene(&s);
}

TASK_TEST(a_closed_queue_is_ready)
{
    conc_queue q = CONC_QUEUE(int, 3);
    int item = ITEM, to = 0;
    conc_case get[] = {CONC_CASE_AFTER(1), CONC_CASE_GET(&q, &to)},
              put[] = {CONC_CASE_AFTER(1), CONC_CASE_PUT(&q, &item)};
    CHECK_INT(conc_select(put, 2), 1);
    conc_queue_close(&q);
    CHECK_INT(conc_select(put, 2), 1);
    CHECK_INT(put[1].result, -EPIPE);
    CHECK_INT(conc_select(get, 2), 1); /* a queued item goes first */
    CHECK_INT(get[1].result, 0);
    CHECK_INT(to, ITEM);
    to = 0;
    CHECK_INT(conc_select(get, 2), 1);
    CHECK_INT(get[1].result, -EPIPE);
    CHECK_INT(to, 0);
    CHECK_TIME(0);
    conc_queue_destroy(&q);
}

TASK_TEST(a_put_without_memory_is_the_result_of_its_case)
{
    conc_queue q = {.item_size = SIZE_MAX / 4, .capacity = 0};
    conc_case c[] = {CONC_CASE_AFTER(CONC_FOREVER), CONC_CASE_PUT(&q, &q)};
    CHECK_INT(conc_select(c, 2), 1);
    CHECK_INT(c[1].result, -ENOMEM);
    CHECK_INT(conc_queue_len(&q), 0);
}

TASK_TEST(a_queue_that_only_counts_needs_no_item)
{
    conc_queue q = {.capacity = 1};
    conc_case put = CONC_CASE_PUT(&q, NULL), get = CONC_CASE_GET(&q, NULL);
    CHECK_INT(conc_select(&put, 1), 0);
    CHECK_INT(conc_queue_len(&q), 1);
    CHECK_INT(conc_select(&get, 1), 0);
    CHECK_INT(conc_queue_len(&q), 0);
}

static bool less_int(const void *a, const void *b) { return *(const int *)a < *(const int *)b; }

TASK_TEST(a_select_gets_the_item_that_a_get_would)
{
    conc_queue by_priority = CONC_QUEUE(int, 0, .less = less_int);
    conc_queue last_first = CONC_QUEUE(int, 0, .kind = CONC_QUEUE_LIFO);
    int items[] = {3, 1, 2}, to = 0;
    conc_case priority = CONC_CASE_GET(&by_priority, &to), last = CONC_CASE_GET(&last_first, &to);
    for (int i = 0; i < 3; i++) {
        CHECK_INT(conc_queue_try_put(&by_priority, &items[i]), 0);
        CHECK_INT(conc_queue_try_put(&last_first, &items[i]), 0);
    }
    for (int i = 0; i < 3; i++) {
        CHECK_INT(conc_select(&priority, 1), 0);
        CHECK_INT(to, i + 1);
        CHECK_INT(conc_select(&last, 1), 0);
        CHECK_INT(to, items[2 - i]);
    }
    conc_queue_destroy(&by_priority);
    conc_queue_destroy(&last_first);
}

TASK_TEST(an_item_that_a_select_took_needs_a_task_done)
{
    scene s;
    open_scene(&s);
    s.cases[0] = case_of(&s, GET);
    s.n = 1;
    start_selector(&s);
    make_ready(&s, GET);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_queue_task_done(&s.empty), 0);
    CHECK_INT(conc_queue_join(&s.empty), 0);
    close_scene(&s);
}

/* ---- tasks ---- */

static int returns(void *arg) { return *(int *)arg; }
static int sleeps_and_fails(void *arg)
{
    int rc = conc_sleep(*(double *)arg);
    return rc ? rc : conc_fail(-EIO, "no such luck");
}

TASK_TEST(a_task_that_has_ended_is_ready_with_its_result)
{
    int results[] = {3, 0, -EIO, -ECANCELED};
    for (size_t i = 0; i < CONC_LEN(results); i++) {
        conc_task t;
        conc_group g = {.keep_going = true};
        CHECK_INT(conc_spawn_task(&g, &t, returns, &results[i]), 0);
        conc_case c[] = {CONC_CASE_AFTER(1), CONC_CASE_JOIN(&t)};
        for (int again = 0; again < 3; again++) { /* waits, and then finds it ended */
            c[1].result = 4711;
            CHECK_INT(conc_select(c, 2), 1);
            CHECK_INT(c[1].result, results[i]);
            CHECK(conc_done(&t));
        }
        CHECK_INT(conc_group_wait(&g), g.error);
        CHECK_TIME(0);
    }
}

TASK_TEST(a_select_returns_a_failed_tasks_error_text)
{
    for (int ended = 0; ended <= 1; ended++) {
        conc_task t;
        conc_group g = {.keep_going = true};
        CHECK_INT(conc_spawn_task(&g, &t, sleeps_and_fails, &(double){1}), 0);
        CHECK_INT(conc_sleep(ended * 2), 0);
        conc_case c[] = {CONC_CASE_JOIN(&t)};
        CHECK_INT(conc_select(c, 1), 0);
        CHECK_INT(c[0].result, -EIO);
        CHECK_STR(conc_last_error(), "no such luck");
        CHECK_INT(conc_group_wait(&g), -EIO);
    }
}

TASK_TEST(a_select_does_not_disturb_the_task_that_it_waits_for)
{
    conc_task t;
    conc_group g = {.keep_going = true};
    CHECK_INT(conc_spawn_task(&g, &t, sleeps_and_fails, &(double){2.5}), 0);
    conc_case c[] = {CONC_CASE_JOIN(&t), CONC_CASE_AFTER(1)};
    CHECK_INT(conc_select(c, 2), 1);
    CHECK_INT(conc_select(c, 2), 1);
    CHECK_INT(conc_select(c, 2), 0);
    CHECK_TIME(2.5);
    CHECK_INT(conc_group_wait(&g), -EIO);
}

static int selects_over_its_own_end(void *arg)
{
    int item = 0;
    conc_queue *q = arg;
    conc_case c[] = {CONC_CASE_GET(q, &item), CONC_CASE_JOIN(conc_self())};
    CHECK_INT(conc_select(c, 2), -EDEADLK);
    CHECK_INT(item, 0);
    return 0;
}

TASK_TEST(a_select_on_its_own_tasks_end_is_a_reported_deadlock)
{
    conc_queue q = CONC_QUEUE(int, 1);
    CHECK_INT(conc_queue_try_put(&q, &(int){1}), 0);
    CHECK_INT(selects_over_its_own_end(&q), 0);
    CHECK_INT(conc_queue_len(&q), 1);
    conc_queue_destroy(&q);
}

/* ---- time ---- */

TASK_TEST(the_nearest_time_happens_and_of_equal_ones_the_first)
{
    static const double times[][3] = {
        {3, 2, 1}, {1, 2, 3}, {2, 1, 1}, {1, 1, 1}, {CONC_FOREVER, 5, CONC_FOREVER}};
    static const int chosen[] = {2, 0, 1, 0, 1};
    double now = 0;
    for (size_t i = 0; i < CONC_LEN(times); i++) {
        conc_case c[] = {CONC_CASE_AFTER(times[i][0]), CONC_CASE_AFTER(times[i][1]),
                         CONC_CASE_AFTER(times[i][2])};
        CHECK_INT(conc_select(c, 3), chosen[i]);
        CHECK_INT(c[chosen[i]].result, 0);
        CHECK_TIME(now += times[i][chosen[i]]);
    }
}

TASK_TEST(a_time_that_is_due_lets_earlier_cases_happen)
{
    conc_event e = {0};
    conc_case c[] = {CONC_CASE_EVENT(&e), CONC_CASE_AFTER(0)},
              past[] = {CONC_CASE_EVENT(&e), CONC_CASE_AFTER(-1e300)};
    CHECK_INT(conc_select(c, 2), 1); /* a check, without waiting */
    CHECK_INT(conc_select(past, 2), 1);
    conc_event_set(&e);
    CHECK_INT(conc_select(c, 2), 0);
    CHECK_INT(conc_select(past, 2), 0);
    CHECK_TIME(0);
}

/* ---- two cases on one object ---- */

IO_TEST(the_first_of_two_cases_on_one_object_happens)
{
    for (int kind = 0; kind < KINDS; kind++) {
        scene s;
        int other = 0, others = OURS + 1, left = 0;
        open_scene(&s);
        s.cases[0] = case_of(&s, kind);
        s.cases[1] = case_of(&s, kind);
        s.cases[1].to = &other;
        s.cases[1].from = &others;
        s.n = 2;
        start_selector(&s);
        make_ready(&s, kind);
        if (kind == GET)
            make_ready(&s, GET); /* one more than the first case takes */
        CHECK_INT(conc_join(&s.selector, NULL), 0);
        CHECK_INT(s.chosen, 0);
        CHECK_INT(s.cases[0].result, result_of(kind));
        CHECK_INT(other, 0);
        if (kind == GET)
            CHECK_INT(conc_queue_try_get(&s.empty, &left), 0);
        if (kind == PUT)
            CHECK_INT(conc_queue_try_get(&s.full, &left), 0), CHECK_INT(left, OURS);
        close_scene(&s);
    }
}

TASK_TEST(a_queue_closed_under_two_cases_of_each_select_wakes_all_once)
{
    scene scenes[3];
    open_scene(&scenes[0]);
    for (int i = 0; i < 3; i++) {
        if (i)
            open_scene(&scenes[i]);
        scenes[i].n = 3;
        for (int k = 0; k < 3; k++)
            scenes[i].cases[k] = case_of(&scenes[0], k < 2 ? GET : EVENT);
        start_selector(&scenes[i]);
    }
    conc_queue_close(&scenes[0].empty);
    conc_event_set(&scenes[0].event);
    CHECK_INT(conc_settle(), 0);
    for (int i = 0; i < 3; i++) {
        CHECK_INT(scenes[i].chosen, 0);
        CHECK_INT(scenes[i].cases[0].result, -EPIPE);
    }
    for (int i = 2; i >= 0; i--)
        close_scene(&scenes[i]);
}

TASK_TEST(several_selects_with_two_cases_on_one_task_all_see_its_end)
{
    scene scenes[4];
    for (int i = 0; i < 4; i++) {
        open_scene(&scenes[i]);
        scenes[i].n = 3;
        for (int k = 0; k < 3; k++)
            scenes[i].cases[k] =
                k == i % 3 ? case_of(&scenes[i], EVENT) : case_of(&scenes[0], JOIN);
        start_selector(&scenes[i]);
    }
    conc_event_set(&scenes[0].go);
    CHECK_INT(conc_settle(), 0);
    for (int i = 0; i < 4; i++) {
        CHECK_INT(scenes[i].chosen, i % 3 == 0);
        CHECK_INT(scenes[i].cases[scenes[i].chosen].result, RESULT);
    }
    for (int i = 3; i >= 0; i--)
        close_scene(&scenes[i]);
}

/* ---- descriptors ---- */

static const int masks[] = {CONC_READABLE, CONC_WRITABLE, CONC_READABLE | CONC_WRITABLE};

typedef struct watch {
    conc_case cases[3];
    int n, chosen;
} watch;

static int watches(void *arg)
{
    watch *w = arg;
    w->chosen = conc_select(w->cases, (size_t)w->n);
    return 0;
}

IO_TEST(each_kind_of_descriptor_can_be_selected_for_either_direction)
{
    for (io_kind kind = 0; kind < IO_KINDS; kind++) {
        int end[2];
        io_open(kind, end);
        conc_case read = CONC_CASE_FD(end[0], CONC_READABLE),
                  write = CONC_CASE_FD(end[1], CONC_WRITABLE);
        conc_case both[] = {read, write}, quiet[] = {read, CONC_CASE_AFTER(1)};
        CHECK_INT(conc_select(both, 2), 1); /* there is room to write, but nothing to read */
        CHECK_INT(both[1].result, CONC_WRITABLE);
        CHECK_INT(conc_select(quiet, 2), 1);
        io_send(end[1], "x");
        CHECK_INT(conc_select(both, 2), 0);
        CHECK_INT(both[0].result, CONC_READABLE);
        CHECK_INT(conc_close(end[1]), 0);
        io_expect(end[0], "x");
        CHECK_INT(conc_select(both, 2), 0); /* the end of file */
        CHECK_INT(both[0].result, CONC_READABLE);
        CHECK_INT(conc_close(end[0]), 0);
    }
}

IO_TEST(two_cases_on_one_socket_tell_which_direction_is_ready)
{
    for (int readable_first = 0; readable_first <= 1; readable_first++)
        for (int fill = 0; fill <= 1; fill++) {
            int end[2];
            conc_group g = {0};
            io_open(IO_FREE_SOCKET, end);
            CHECK(io_fill(end[0]) > 0); /* neither readable nor writable */
            watch w = {{CONC_CASE_FD(end[0], readable_first ? CONC_READABLE : CONC_WRITABLE),
                        CONC_CASE_FD(end[0], readable_first ? CONC_WRITABLE : CONC_READABLE),
                        CONC_CASE_FD(end[0], CONC_READABLE)},
                       3,
                       -1};
            CHECK_INT(conc_spawn(&g, watches, &w), 0);
            CHECK_INT(conc_settle(), 0);
            CHECK_INT(w.chosen, -1);
            if (fill)
                io_send(end[1], "x");
            else
                CHECK(io_drain(end[1]) > 0);
            CHECK_INT(conc_group_wait(&g), 0);
            int ready = fill ? CONC_READABLE : CONC_WRITABLE;
            CHECK_INT(w.chosen, fill == readable_first ? 0 : 1);
            CHECK_INT(w.cases[w.chosen].result, ready);
            io_close(end);
        }
}

IO_TEST(several_selects_on_one_descriptor_all_continue)
{
    int end[2];
    conc_group g = {0};
    watch w[3];
    io_open(IO_SOCKET, end);
    for (int i = 0; i < 3; i++) {
        w[i] = (watch){{CONC_CASE_FD(end[0], CONC_READABLE), CONC_CASE_FD(end[0], CONC_READABLE),
                        CONC_CASE_AFTER(5)},
                       3,
                       -1};
        CHECK_INT(conc_spawn(&g, watches, &w[i]), 0);
    }
    CHECK_INT(conc_settle(), 0);
    io_send(end[1], "x");
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_TIME(0);
    for (int i = 0; i < 3; i++)
        CHECK_INT(w[i].chosen, 0);
    io_close(end);
}

IO_TEST(a_listening_socket_is_readable_when_a_client_dials)
{
    char where[128];
    int l = conc_listen("127.0.0.1:0");
    CHECK(l >= 0);
    CHECK_INT(conc_address(l, false, where, sizeof where), 0);
    conc_group g = {0};
    watch w = {{CONC_CASE_FD(l, CONC_READABLE), CONC_CASE_AFTER(CONC_FOREVER)}, 2, -1};
    CHECK_INT(conc_spawn(&g, watches, &w), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(w.chosen, -1);
    int fd = conc_dial(where);
    CHECK(fd >= 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(w.chosen, 0);
    int accepted = conc_accept(l);
    CHECK(accepted >= 0);
    CHECK_INT(conc_close(accepted), 0);
    CHECK_INT(conc_close(fd), 0);
    CHECK_INT(conc_close(l), 0);
}

IO_TEST(a_wait_for_a_hang_up_of_a_file_that_has_none_ends_when_it_is_closed)
{
    int fd = open("/dev/null", O_RDONLY);
    conc_group g = {0};
    watch w = {{CONC_CASE_FD(fd, 0), CONC_CASE_AFTER(CONC_FOREVER)}, 2, -1};
    CHECK_INT(conc_spawn(&g, watches, &w), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK_INT(w.chosen, -1);
    CHECK_INT(conc_close(fd), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(w.chosen, 0);
    CHECK_INT(w.cases[0].result, -EBADF);
}

IO_TEST(a_descriptor_that_is_closed_meanwhile_is_the_result)
{
    for (io_kind kind = 0; kind < IO_KINDS; kind++)
        for (int reuse = 0; reuse <= 1; reuse++) {
            int end[2];
            conc_group g = {0};
            conc_stats s;
            io_open(kind, end);
            watch w = {{CONC_CASE_AFTER(5), CONC_CASE_FD(end[0], CONC_READABLE),
                        CONC_CASE_FD(end[0], CONC_READABLE)},
                       3,
                       -1};
            CHECK_INT(conc_spawn(&g, watches, &w), 0);
            CHECK_INT(conc_settle(), 0);
            CHECK_INT(conc_close(end[0]), 0);
            if (reuse) /* another file has the number before the task runs */
                CHECK_INT(dup2(end[1], end[0]), end[0]);
            CHECK_INT(conc_group_wait(&g), 0);
            CHECK_INT(w.chosen, 1);
            CHECK_INT(w.cases[1].result, -EBADF);
            conc_get_stats(&s);
            CHECK_INT(s.descriptors, 0);
            CHECK_INT(s.timers, 0);
            if (reuse)
                CHECK_INT(conc_close(end[0]), 0);
            CHECK_INT(conc_close(end[1]), 0);
        }
}

IO_TEST(a_descriptor_closed_in_the_moment_that_another_case_happens_is_not_missed_later)
{
    int end[2];
    conc_group g = {0};
    conc_event e = {0};
    io_open(IO_PIPE, end);
    watch w = {{CONC_CASE_FD(end[0], CONC_READABLE), CONC_CASE_EVENT(&e)}, 2, -1};
    CHECK_INT(conc_spawn(&g, watches, &w), 0);
    CHECK_INT(conc_settle(), 0);
    conc_event_set(&e);
    CHECK_INT(conc_close(end[0]), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(w.chosen, 1);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(conc_select(w.cases, 1), 0); /* it is not open any more */
    CHECK_INT(w.cases[0].result, -EBADF);
    CHECK_INT(conc_close(end[1]), 0);
}

IO_TEST(files_that_cannot_be_waited_for_are_always_ready)
{
    static const char *const names[] = {"/dev/null", "/dev/zero", __FILE__};
    for (size_t i = 0; i < CONC_LEN(names); i++)
        for (size_t k = 0; k < CONC_LEN(masks); k++) {
            int fd = open(names[i], O_RDONLY);
            if (fd < 0)
                continue; /* the source file may be elsewhere */
            conc_case c[] = {CONC_CASE_AFTER(CONC_FOREVER), CONC_CASE_FD(fd, masks[k])};
            CHECK_INT(conc_select(c, 2), 1);
            CHECK_INT(c[1].result, masks[k]);
            CHECK_INT(conc_close(fd), 0);
        }
}

/* ---- arrays ---- */

IO_TEST(an_array_of_cases_can_be_used_again_and_again)
{
    scene s;
    conc_stats before, after;
    open_scene(&s);
    fill_cases(&s, 0);
    conc_get_stats(&before);
    static const int rounds[] = {GET, AFTER, PUT, GET, FD, AFTER, EVENT, PUT, FD, GET};
    for (size_t i = 0; i < 100; i++) {
        int kind = rounds[i % CONC_LEN(rounds)], item = 0;
        s.to = 0;
        s.chosen = -1;
        CHECK_INT(conc_spawn_task(&s.group, &s.selector, selects, &s), 0);
        CHECK_INT(conc_settle(), 0);
        CHECK_INT(s.chosen, -1);
        make_ready(&s, kind);
        CHECK_INT(conc_join(&s.selector, NULL), 0);
        CHECK_INT(s.chosen, kind);
        CHECK_INT(s.cases[kind].result, result_of(kind));
        CHECK_INT(s.to, kind == GET ? ITEM : 0);
        conc_event_clear(&s.event);
        if (kind == FD)
            io_expect(s.ends[0], "x");
        CHECK_INT(conc_queue_len(&s.full), 1);
        CHECK_INT(conc_queue_try_get(&s.empty, &item), -EAGAIN);
    }
    conc_get_stats(&after);
    CHECK_INT(after.timers, before.timers);
    CHECK_INT(after.descriptors, before.descriptors);
    close_scene(&s);
}

enum { MANY = 1000 };
static conc_case many[MANY];

static int selects_over_many(void *arg)
{
    *(int *)arg = conc_select(many, MANY);
    return 0;
}

TASK_TEST(a_thousand_cases_work)
{
    static conc_queue queues[MANY];
    static int items[MANY];
    static const int ready[] = {0, 1, MANY / 2, MANY - 1};
    conc_stats stats;
    for (int i = 0; i < MANY; i++) {
        queues[i] = (conc_queue)CONC_QUEUE(int, 1);
        many[i] = (conc_case)CONC_CASE_GET(&queues[i], &items[i]);
    }
    many[3] = (conc_case)CONC_CASE_AFTER(7);
    for (size_t i = 0; i < CONC_LEN(ready); i++)
        for (int waits = 0; waits <= 1; waits++) {
            int k = ready[i], item = 2 * k + waits + 1, chosen = -1;
            conc_group g = {0};
            CHECK_INT(conc_spawn(&g, selects_over_many, &chosen), 0);
            if (waits)
                CHECK_INT(conc_settle(), 0);
            CHECK_INT(conc_queue_try_put(&queues[k], &item), 0);
            CHECK_INT(conc_group_wait(&g), 0);
            CHECK_INT(chosen, k);
            CHECK_INT(items[k], item);
            CHECK_INT(many[k].result, 0);
            CHECK_INT(conc_queue_len(&queues[k]), 0);
        }
    CHECK_INT(conc_select(many, MANY), 3);
    CHECK_TIME(7);
    conc_get_stats(&stats);
    CHECK_INT(stats.timers, 0);
    for (int i = 0; i < MANY; i++) { /* no task waits in any of the queues */
        CHECK_INT(conc_queue_try_put(&queues[i], &i), 0);
        CHECK_INT(conc_queue_len(&queues[i]), 1);
        conc_queue_destroy(&queues[i]);
    }
}

IO_TEST(a_select_runs_on_small_stacks)
{
    scene s;
    open_scene(&s);
    for (int kind = 0; kind < KINDS; kind++) {
        conc_group g = {.stack_size = 16384};
        fill_cases(&s, 0);
        s.over = false;
        CHECK_INT(conc_spawn(&g, selects, &s), 0);
        CHECK_INT(conc_settle(), 0);
        CHECK(!s.over);
        make_ready(&s, kind);
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(s.chosen, kind);
        conc_event_clear(&s.event);
        if (kind == JOIN) /* it stays ready */
            break;
    }
    close_scene(&s);
}

/* ---- mistakes ---- */

TASK_TEST(an_invalid_case_fails_the_select_and_nothing_happens)
{
    conc_queue q = CONC_QUEUE(int, 1), senseless = CONC_QUEUE(int, 1, .kind = CONC_QUEUE_PRIORITY);
    int item = ITEM, to = 0;
    conc_task nobody = {0};
    struct {
        conc_case bad;
        int rc;
    } mistakes[] = {
        {{.what = 0}, -EINVAL},
        {{.what = -1}, -EINVAL},
        {{.what = CONC__AFTER + 1}, -EINVAL},
        {CONC_CASE_GET(NULL, &to), -EINVAL},
        {CONC_CASE_GET(&q, NULL), -EINVAL},
        {CONC_CASE_PUT(NULL, &item), -EINVAL},
        {CONC_CASE_PUT(&q, NULL), -EINVAL},
        {CONC_CASE_GET(&senseless, &to), -EINVAL},
        {CONC_CASE_EVENT(NULL), -EINVAL},
        {CONC_CASE_JOIN(NULL), -EINVAL},
        {CONC_CASE_JOIN(&nobody), -EINVAL},
        {CONC_CASE_JOIN(conc_self()), -EDEADLK},
        {CONC_CASE_FD(-1, CONC_READABLE), -EBADF},
        {CONC_CASE_FD(0, -1), -EINVAL},
        {CONC_CASE_FD(0, 4 | CONC_READABLE), -EINVAL},
        {CONC_CASE_AFTER(__builtin_nan("")), -EINVAL},
    };
    CHECK_INT(conc_queue_try_put(&q, &item), 0);
    for (size_t i = 0; i < CONC_LEN(mistakes); i++) {
        conc_case good = CONC_CASE_GET(&q, &to);
        conc_case c[] = {good, mistakes[i].bad}, turned[] = {mistakes[i].bad, good};
        CHECK_INT(conc_select(c, 2), mistakes[i].rc);
        CHECK_INT(conc_select(turned, 2), mistakes[i].rc);
        CHECK_INT(conc_queue_len(&q), 1);
        CHECK_INT(to, 0);
    }
    CHECK_INT(conc_select(NULL, 0), -EINVAL);
    CHECK_INT(conc_select(NULL, 1), -EINVAL);
    conc_case ready = CONC_CASE_GET(&q, &to);
    CHECK_INT(conc_select(&ready, 0), -EINVAL);
    CHECK_INT(conc_select(&ready, (size_t)-1), -EINVAL);
    CHECK_INT(conc_queue_len(&q), 1);
    conc_queue_destroy(&q);
}

TASK_TEST(a_descriptor_that_is_not_open_is_ready_with_an_error)
{
    conc_case c[] = {CONC_CASE_AFTER(1), CONC_CASE_FD(200, CONC_READABLE)};
    CHECK_INT(fcntl(200, F_GETFD), -1);
    CHECK_INT(conc_select(c, 2), 1);
    CHECK_INT(c[1].result, -EBADF);
}

TASK_TEST(in_a_cancelled_task_no_ready_case_happens)
{
    for (int kind = 0; kind < KINDS; kind++) {
        scene s;
        conc_scope scope = {0};
        open_scene(&s);
        make_ready(&s, kind);
        CHECK_INT(conc_settle(), 0);
        CHECK_INT(conc_scope_begin(&scope, 0), 0);
        fill_cases(&s, 0);
        CHECK_INT(conc_select(s.cases, KINDS), -ECANCELED);
        CHECK_INT(conc_select(&s.cases[kind], 1), -ECANCELED);
        CHECK_INT(conc_scope_end(&scope, -ECANCELED), -ETIMEDOUT);
        check_get(&s, kind == GET, false);
        check_put(&s, kind == PUT, false);
        close_scene(&s);
    }
}

static void selects_in_a_post(void *arg)
{
    conc_case c = CONC_CASE_AFTER(0);
    *(int *)arg = conc_select(&c, 1);
}

TASK_TEST(a_posted_function_cannot_select)
{
    int rc = 0;
    CHECK_INT(conc_post(conc_loop_self(), selects_in_a_post, &rc), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(rc, -EPERM);
}

TEST(outside_a_run_there_is_no_select)
{
    conc_case c = CONC_CASE_AFTER(0);
    CHECK_INT(conc_select(&c, 1), -EPERM);
}

/* ---- reports ---- */

static int waits_for_the_event(void *arg) { return conc_event_wait(arg); }

static int deadlocks(void *arg)
{
    conc_group g = {0};
    conc_task other;
    int item = 0, *at = &item;
    conc_event e = {0};
    (void)arg;
    conc_queue empty = CONC_QUEUE(int, 1), full = CONC_QUEUE(int, 1);
    CHECK_INT(conc_queue_try_put(&full, &item), 0);
    CHECK_INT(conc_spawn_task(&g, &other, waits_for_the_event, &e), 0);
    conc_case c[] = {CONC_CASE_GET(&empty, at), CONC_CASE_PUT(&full, at), CONC_CASE_EVENT(&e),
                     CONC_CASE_JOIN(&other), CONC_CASE_AFTER(CONC_FOREVER)};
    int rc = conc_select(c, CONC_LEN(c));
    CHECK_INT(rc, -ECANCELED);
    conc_queue_destroy(&full);
    return conc_group_end(&g, rc);
}

static void run_into_a_deadlock(void)
{
    conc_options o = {.virtual_clock = true};
    CHECK_INT(conc_run_with(&o, deadlocks, NULL), -EDEADLK);
}

TASK_TEST(a_dump_shows_what_a_select_waits_for)
{
    scene s;
    char *text = NULL, expected[64];
    size_t size;
    open_scene(&s);
    fill_cases(&s, 0);
    start_selector(&s);
    FILE *out = open_memstream(&text, &size);
    CHECK(out != NULL);
    conc_dump(out);
    fclose(out);
    snprintf(expected, sizeof expected, "descriptor %d", s.ends[0]);
    CHECK_CONTAINS(text, expected);
    CHECK_CONTAINS(text, "ends_when_told");
    CHECK_CONTAINS(text, "an event");
    CHECK_CONTAINS(text, "10 s");
    free(text);
    make_ready(&s, EVENT);
    close_scene(&s);
}

TEST(a_deadlock_is_reported_with_all_that_a_select_waits_for)
{
    static char report[65536];
    int status = test_in_process(run_into_a_deadlock, report, sizeof report);
    if (status)
        test_fail(__FILE__, __LINE__, "status 0x%x:\n%s", (unsigned)status, report);
    static const char *const words[] = {"the first of",        "queue's item",
                                        "room in a queue",     "an event",
                                        "waits_for_the_event", "a time that never comes"};
    for (size_t i = 0; i < CONC_LEN(words); i++)
        CHECK_CONTAINS(report, words[i]);
}

/* ---- a handle of another run ---- */

static conc_task earlier;

static int breaks_at_once(void *arg)
{
    (void)arg;
    return conc_fail(-EIO, "it broke");
}

static int leaves_an_ended_task(void *arg)
{
    conc_group g = {.keep_going = true};
    (void)arg;
    CHECK_INT(conc_spawn_task(&g, &earlier, breaks_at_once, NULL), 0);
    CHECK_INT(conc_group_wait(&g), -EIO);
    return 0;
}

static int selects_the_ended_task(void *arg)
{
    conc_case c[] = {CONC_CASE_JOIN(&earlier), CONC_CASE_AFTER(1)};
    (void)arg;
    return conc_select(c, 2);
}

TEST(the_join_of_a_task_of_an_earlier_run_is_refused)
{
    conc_options o = {.virtual_clock = true};
    CHECK_INT(conc_run_with(&o, leaves_an_ended_task, NULL), 0);
    CHECK_INT(conc_run_with(&o, selects_the_ended_task, NULL), -EPERM);
}

static int breaks_in_a_second(void *arg)
{
    CONC_TRY(conc_sleep(1));
    return breaks_at_once(arg);
}

TASK_TEST(joining_a_failed_task_returns_its_error_text_whether_or_not_it_waits)
{
    conc_task t;
    conc_group g = {.keep_going = true};
    CHECK_INT(conc_spawn_task(&g, &t, breaks_in_a_second, NULL), 0);
    for (int i = 0; i < 2; i++) {
        conc_case c[] = {CONC_CASE_JOIN(&t), CONC_CASE_AFTER(5)};
        (void)conc_fail(-EINVAL, "an older error");
        CHECK_INT(conc_select(c, 2), 0);
        CHECK_INT(c[0].result, -EIO);
        CHECK_STR(conc_last_error(), "it broke");
    }
    CHECK_INT(conc_group_wait(&g), -EIO);
}
