// C++17 calls everything that conc.h declares; the implementation, in C, is linked from impl.c.
// run.sh checks that no declared function is missing here. The tests in C check what the functions
// do.
#include "all.h"

#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <unistd.h>

#define CHECK(condition) ((condition) ? (void)0 : failed(__LINE__, #condition))

static int failures;

static void failed(int line, const char *condition)
{
    std::fprintf(stderr, "calls.cpp:%d: not true: %s\n", line, condition);
    failures++;
}

static bool about(double a, double b) { return std::fabs(a - b) < 1e-6; }

static int nothing(void *) { return 0; }
static int forever(void *) { return conc_sleep(CONC_FOREVER); }
static int add_one(void *arg) { return ++*static_cast<int *>(arg); }
static int refuse(void *) { return conc_fail(-EPROTO, "line %d: no colon", 12); }

static int time_and_run(void *)
{
    CHECK(std::strcmp(conc_version(), CONC_VERSION) == 0);
    CHECK(conc_run(nothing, nullptr) == -EBUSY);
    CHECK(conc_loop_self() && conc_self());
    double start = conc_now();
    CHECK(conc_sleep(1) == 0 && conc_sleep_until(start + 3) == 0 && conc_block(1) == 0);
    CHECK(conc_yield() == 0 && conc_settle() == 0);
    CHECK(about(conc_now() - start, 4));
    double x = conc_random(2, 3);
    CHECK(x >= 2 && x < 3);
    return 0;
}

static int scopes(void *)
{
    conc_scope s{};
    CHECK(conc_scope_begin(&s, CONC_FOREVER) == 0);
    CHECK(conc_scope_set_timeout(&s, 2) == 0);
    CHECK(about(conc_deadline(), conc_now() + 2) && !conc_cancelled());
    conc_scope_shield(&s, true);
    int rc = conc_sleep(5);
    CHECK(rc == -ECANCELED && conc_cancelled());
    CHECK(conc_scope_end(&s, rc) == -ETIMEDOUT && s.expired);

    conc_scope c{};
    CHECK(conc_scope_begin(&c, 1) == 0);
    conc_scope_cancel(&c);
    CHECK(conc_scope_end(&c, conc_yield()) == 0 && c.cancel_called && c.cancel_caught);

    CHECK(conc_timeout(1, forever, nullptr) == -ETIMEDOUT);
    int n = 0;
    CHECK(conc_shield(1, add_one, &n) == 1);
    return 0;
}

struct both {
    int a, b;
};

static int adds_both(void *arg)
{
    const both *v = static_cast<both *>(arg);
    return v->a + v->b;
}

static int copies(void *)
{
    conc_group g{};
    both v{1, 2};
    CHECK(conc_spawn_copy(&g, adds_both, &v, sizeof v) == 0);
    CHECK(CONC_SPAWN(&g, adds_both, (both{3, 4})) == 0 && CONC_SPAWN(&g, adds_both, v) == 0);
    int got = CONC_TRY_IN(&g, [&] { return adds_both(&v); }());
    CHECK(got == 3);
    return conc_group_wait(&g);
}

static int start_me(void *) { return conc_started(42) == 0 ? conc_sleep(1) : -EPROTO; }

static int groups(void *)
{
    int n = 0;
    conc_group g{};
    g.limit = 5;
    g.keep_going = true;
    CHECK(conc_group_begin(&g) == 0);
    CHECK(conc_spawn(&g, add_one, &n) == 0);
    conc_task one{}, two{}, three{};
    CHECK(conc_spawn_task(&g, &one, add_one, &n) == 0);
    CHECK(conc_spawn_task(&g, &two, refuse, nullptr) == 0);
    CHECK(conc_spawn_task(&g, &three, forever, nullptr) == 0);
    conc_set_name(&three, "three");
    CHECK(std::strcmp(conc_name(&three), "three") == 0);
    CHECK(conc_start(&g, start_me, nullptr) == 42);
    conc_task *next = nullptr;
    CHECK(conc_group_next(&g, &next) == 1 && next == &one);
    int result = 0;
    CHECK(conc_join(&two, &result) == 0 && result == -EPROTO && conc_done(&two));
    CHECK(std::strcmp(conc_error_text(&two), "line 12: no colon") == 0);
    CHECK(std::strcmp(conc_last_error(), "line 12: no colon") == 0);
    CHECK(conc_cancel(&three) == 0);
    CHECK(conc_group_end(&g, 0) == -EPROTO && n == 2 && g.error_count == 1);

    conc_group cancelled{};
    CHECK(conc_spawn(&cancelled, forever, nullptr) == 0);
    conc_group_cancel(&cancelled);
    CHECK(conc_group_wait(&cancelled) == 0);
    return 0;
}

// Functions without a name may have commas in them; a task's name ends at the first one.
static int lambdas(void *)
{
    conc_group g{};
    conc_task t{};
    int numbers[] = {1, 2};
    CHECK(conc_map(
              [](void *n) -> int {
                  int one = 1, two = 2;
                  return *static_cast<int *>(n) += one + two;
              },
              numbers, 2, sizeof numbers[0]) == 0);
    CHECK(numbers[0] == 4 && numbers[1] == 5);
    CHECK(conc_spawn_task(
              &g, &t,
              [](void *) {
                  int five = 5, six = 6;
                  return five + six;
              },
              nullptr) == 0);
    CHECK(std::strncmp(conc_name(&t), "[](void *) { int five = 5", 25) == 0);
    CHECK(conc_spawn(
              &g,
              [](void *n) {
                  int *a = static_cast<int *>(n), b = 1;
                  return *a += b;
              },
              numbers) == 0);
    CHECK(CONC_SPAWN(&g, ([](void *n) {
              int a = *static_cast<int *>(n), b = 1;
              return a + b;
          }),
                     numbers[0]) == 0);
    CHECK(CONC_MAP([](void *n) { return ++*static_cast<int *>(n); }, numbers) == 0 &&
          numbers[1] == 6);
    int result = 0;
    CHECK(conc_join(&t, &result) == 0 && result == 11 && conc_group_wait(&g) == 0 &&
          numbers[0] == 6);
    return 0;
}

static int gathers(void *)
{
    int n = 0, m = 0, numbers[] = {1, 2, 3}, results[CONC_LEN(numbers)];
    conc_call calls[] = {CONC_CALL(add_one, &n), CONC_CALL(add_one, &m)};
    CHECK(conc_gather(calls, CONC_LEN(calls)) == 0 && calls[1].result == 1);
    CHECK(conc_gather_all(calls, CONC_LEN(calls)) == 0 && calls[1].result == 2);
    CHECK(CONC_MAP(add_one, numbers) == 0 && numbers[2] == 4);
    CHECK(CONC_MAP_ALL(add_one, numbers, results) == 0 && results[2] == 5);
    CHECK(conc_map(add_one, numbers, 1, sizeof numbers[0]) == 0);
    CHECK(conc_map_limit(2, add_one, numbers, 0, sizeof numbers[0]) == 0);
    CHECK(CONC_MAP_LIMIT(2, nothing, numbers) == 0);
    CHECK(conc_map_all(add_one, numbers, 1, sizeof numbers[0], results) == 0 && results[0] == 5);
    return 0;
}

static int tries(void *arg)
{
    conc_scope s{};
    int got = CONC_TRY(add_one(arg));
    CHECK(got == 1);
    CONC_TRY(conc_scope_begin(&s, CONC_FOREVER));
    CONC_TRY_IN(&s, refuse(nullptr));
    return 0;
}

static int tries_in_a_group(void *)
{
    CONC_AUTO(conc_group, g) = {};
    CONC_TRY(conc_spawn(&g, forever, nullptr));
    CONC_TRY_IN(&g, refuse(nullptr));
    return 0;
}

static int locals(void *)
{
    static conc_local key = {"key"};
    int value = 7;
    CHECK(conc_local_set(&key, &value) == 0 && conc_local_get(&key) == &value);
    return 0;
}

static int three_numbers(conc_gen *g, void *)
{
    for (int i = 1; i <= 3; i++)
        CONC_TRY(conc_gen_emit(g, &i));
    return 0;
}

static int generators(void *)
{
    CONC_AUTO(conc_gen, g) = {};
    CHECK(conc_gen_open(&g, three_numbers, nullptr, sizeof(int)) == 0);
    int item = 0, sum = 0;
    while (conc_gen_next(&g, &item) == 1)
        sum += item;
    CHECK(sum == 6 && conc_gen_close(&g) == 0);
    return 0;
}

struct client {
    int *closed;
};

static void close_client(client *c) { add_one(c->closed); }

CONC_AUTO_TYPE(client, close_client);

static void close_by_itself()
{
    int closed = 0;
    {
        CONC_AUTO(client, c) = {&closed};
        CHECK(c.closed && closed == 0);
    }
    CHECK(closed == 1);
}

static void posted(void *arg) { add_one(arg); }

static int loops(void *)
{
    int n = 0;
    conc_loop *loop = conc_loop_self();
    CHECK(conc_loop_hold(loop) == 0);
    CHECK(conc_post(loop, posted, &n) == 0);
    CHECK(conc_loop_run(loop, nothing, nullptr) == -EDEADLK);
    CHECK(conc_sleep(1) == 0 && n == 1);
    CHECK(conc_loop_release(loop) == 0);
    conc_free(nullptr);
    return 0;
}

static int reports(void *)
{
    conc_stats stats{};
    conc_get_stats(&stats);
    CHECK(stats.tasks >= 1);
    CHECK(std::strlen(conc_strerror(-ETIMEDOUT)) > 0);
    std::FILE *out = std::tmpfile();
    CHECK(out != nullptr);
    conc_dump(out);
    CHECK(std::ftell(out) > 0);
    std::fclose(out);
    return 0;
}

static int descriptors(void *)
{
    int ends[2];
    char a[8];
    iovec in = {a, 2}, out = {const_cast<char *>("yz"), 2};
    CHECK(pipe(ends) == 0 && conc_write(ends[1], "x", 1) == 1 &&
          conc_writev(ends[1], &out, 1) == 2);
    CHECK(conc_wait_fd(ends[0], CONC_READABLE) == CONC_READABLE);
    CHECK(conc_read(ends[0], a, 1) == 1 && conc_readv(ends[0], &in, 1) == 2 && a[0] == 'y');
    CHECK(conc_write_full(ends[1], "abc", 3) == 3 && conc_read_full(ends[0], a, 3) == 3);
    CHECK(conc_close(ends[0]) == 0 && conc_close(ends[1]) == 0);
    return 0;
}

static int echo(int fd, void *)
{
    char a[8];
    ssize_t n = conc_recv(fd, a, sizeof a, 0);
    return conc_send(fd, a, static_cast<size_t>(n), 0) == n ? 0 : -EIO;
}

static int serve(void *arg)
{
    conc_server s{};
    s.fd = *static_cast<int *>(arg);
    s.handler = echo;
    return conc_serve(&s);
}

static int streams(void *)
{
    conc_group g{};
    char address[120], a[8], *text = nullptr;
    int listener = conc_listen("127.0.0.1:0");
    conc_listen_options options{};
    int other = conc_listen_with("127.0.0.1:0", &options);
    CHECK(other >= 0 && conc_address(other, false, address, sizeof address) == 0);
    int client = conc_dial(address), accepted = conc_accept(other);
    CHECK(client >= 0 && accepted >= 0 && conc_sendto(client, "1", 1, 0, nullptr, 0) == 1);
    CHECK(conc_recvfrom(accepted, a, 1, 0, nullptr, nullptr) == 1);
    CHECK(conc_close(accepted) == 0 && conc_close(client) == 0 && conc_close(other) == 0);

    CHECK(conc_address(listener, false, address, sizeof address) == 0);
    CHECK(conc_spawn(&g, serve, &listener) == 0);
    CONC_AUTO(conc_stream, s){};
    CHECK(conc_stream_open(&s, conc_dial(address)) == 0);
    CHECK(conc_stream_write(&s, "a\nb", 3) == 3 && conc_stream_printf(&s, "|%d", 12) == 3);
    CHECK(conc_stream_flush(&s) == 0);
    CHECK(conc_stream_read_line(&s, &text) == 1 && text[0] == 'a');
    CHECK(conc_stream_read_until(&s, "|", 1, &text) == 2 && text[0] == 'b');
    CHECK(conc_stream_read(&s, a, 1) == 1 && conc_stream_read_full(&s, a, 1) == 1 && a[0] == '2');
    CHECK(conc_stream_shutdown(&s) == 0);
    CHECK(conc_stream_close(&s) == 0 && conc_close(listener) == 0);

    static const conc_transport echoes = {[](void *self, void *buf, size_t) {
                                              *static_cast<char *>(buf) =
                                                  *static_cast<char *>(self);
                                              return ssize_t{1};
                                          },
                                          [](void *self, const void *buf, size_t) {
                                              *static_cast<char *>(self) =
                                                  *static_cast<const char *>(buf);
                                              return ssize_t{1};
                                          },
                                          nullptr, nullptr};
    char wire = 0;
    CONC_AUTO(conc_stream, on){};
    CHECK(conc_stream_open_on(&on, &echoes, &wire) == 0 && conc_stream_write(&on, "e", 1) == 1);
    CHECK(conc_stream_read(&on, a, 1) == 1 && a[0] == 'e');
    return conc_group_wait(&g);
}

static int signals(void *)
{
    CONC_AUTO(conc_signals, s){};
    const int numbers[] = {SIGUSR1};
    CHECK(conc_signals_open(&s, numbers, 1) == 0 && raise(SIGUSR1) == 0);
    CHECK(conc_signals_next(&s) == SIGUSR1 && conc_signals_close(&s) == 0);
    CHECK(conc_wait_signal(SIGKILL) == -EINVAL);
    return 0;
}

static bool is_less(const void *a, const void *b)
{
    return *static_cast<const int *>(a) < *static_cast<const int *>(b);
}

static int locks(void *)
{
    conc_lock l{};
    CHECK(conc_lock_acquire(&l) == 0 && conc_lock_owner(&l) == conc_self() &&
          conc_lock_try_acquire(&l) == -EDEADLK);
    CHECK(conc_lock_release(&l) == 0);
    CONC_LOCKED(&l) {
        CHECK(conc_lock_owner(&l) == conc_self());
        break;
    }
    CHECK(!conc_lock_owner(&l));
    conc_rwlock rw{};
    CHECK(conc_rwlock_acquire_read(&rw) == 0 && conc_rwlock_try_acquire_read(&rw) == 0);
    CHECK(conc_rwlock_try_acquire_write(&rw) == -EAGAIN);
    CHECK(conc_rwlock_release(&rw) == 0 && conc_rwlock_release(&rw) == 0);
    CHECK(conc_rwlock_acquire_write(&rw) == 0 && conc_rwlock_release(&rw) == 0);
    conc_sem s{};
    s.permits = 1;
    CHECK(conc_sem_acquire(&s) == 0 && conc_sem_try_acquire(&s) == -EAGAIN &&
          conc_sem_release(&s) == 0);
    CONC_PERMIT(&s) {
        CHECK(s.permits == 0);
    }
    conc_limiter limiter{};
    limiter.rate = 10;
    CHECK(conc_limiter_acquire(&limiter, 1) == 0 &&
          conc_limiter_try_acquire(&limiter, 1) == -EAGAIN);
    return s.permits;
}

static int notify(void *c)
{
    conc_cond_notify(static_cast<conc_cond *>(c), 0);
    conc_cond_notify_all(static_cast<conc_cond *>(c));
    return 0;
}

static int events(void *)
{
    void *value = nullptr;
    conc_event e{};
    conc_event_set(&e);
    CHECK(conc_event_wait(&e) == 0 && conc_event_is_set(&e));
    conc_event_clear(&e);
    CHECK(!conc_event_is_set(&e));
    conc_lock l{};
    conc_cond c{};
    conc_group g{};
    CHECK(conc_lock_acquire(&l) == 0 && conc_spawn(&g, notify, &c) == 0);
    CHECK(conc_cond_wait(&c, &l) == 0 && conc_lock_release(&l) == 0 && conc_group_wait(&g) == 0);
    conc_barrier b{};
    b.parties = 1;
    CHECK(conc_barrier_wait(&b) == 0);
    conc_latch latch{};
    CHECK(conc_latch_add(&latch, 1) == 0 && conc_latch_done(&latch) == 0 &&
          conc_latch_wait(&latch) == 0);
    conc_future f{};
    CHECK(!conc_future_is_set(&f) && conc_future_set(&f, 5, &f) == 0);
    CHECK(conc_future_wait(&f, &value) == 5 && value == &f);
    return 0;
}

static int queues(void *)
{
    int item = 3, out = 0;
    CONC_AUTO(conc_queue, q){};
    q.item_size = sizeof item;
    q.less = is_less;
    CHECK(CONC_PUT(&q, item + 1) == 0 && conc_queue_get(&q, &out) == 0 && out == 4 &&
          conc_queue_task_done(&q) == 0);
    CHECK(conc_queue_put(&q, &item) == 0 && conc_queue_try_put(&q, &item) == 0 &&
          conc_queue_len(&q) == 2);
    CHECK(conc_queue_get(&q, &out) == 0 && conc_queue_try_get(&q, &out) == 0 && out == 3);
    CHECK(conc_queue_task_done(&q) == 0 && conc_queue_task_done(&q) == 0 &&
          conc_queue_join(&q) == 0);
    conc_case cases[] = {CONC_CASE_PUT(&q, &item), CONC_CASE_AFTER(1)};
    CHECK(conc_select(cases, CONC_LEN(cases)) == 0 && cases[0].result == 0);
    static conc_queue urgent = CONC_QUEUE(int, 3, .less = is_less);
    static conc_sem permits = CONC_SEM(1, .max = 1);
    static conc_barrier alone = CONC_BARRIER(1);
    conc_event never{};
    conc_case others[] = {CONC_CASE_GET(&urgent, &out), CONC_CASE_EVENT(&never),
                          CONC_CASE_JOIN(conc_self()), CONC_CASE_FD(-1, CONC_READABLE)};
    CHECK(urgent.less == is_less && urgent.capacity == 3 && urgent.item_size == sizeof(int));
    CHECK(conc_sem_release(&permits) == -EOVERFLOW && conc_barrier_wait(&alone) == 0);
    CHECK(conc_select(others, CONC_LEN(others)) == -EDEADLK);
    conc_queue_close(&q);
    conc_queue_destroy(&q);
    return 0;
}

static ssize_t echo(const void *in, size_t in_size, void *out, size_t)
{
    std::memcpy(out, in, in_size);
    return static_cast<ssize_t>(in_size);
}

static int pools(void *)
{
    int numbers[2] = {1, 2}, results[2] = {}, result = 0;
    CONC_AUTO(conc_pool, p){};
    p.threads = 2;
    conc_job j{};
    CHECK(conc_pool_open(&p) == 0 && conc_pool_run(&p, add_one, numbers) == 2);
    CHECK(conc_pool_submit(&p, &j, add_one, numbers) == 0 && conc_job_wait(&j, &result) == 0 &&
          result == 3);
    conc_case cases[] = {CONC_CASE_JOB(&j)};
    CHECK(conc_select(cases, 1) == 0 && cases[0].result == 3);
    CHECK(conc_job_done(&j) && conc_job_cancel(&j) == -EALREADY && !conc_job_cancelled());
    CHECK(conc_pool_map(&p, add_one, numbers, 2, sizeof numbers[0]) == 0);
    CHECK(conc_pool_map_all(&p, add_one, numbers, 2, sizeof numbers[0], results) == 0 &&
          results[0] == 5);
    CHECK(conc_offload(add_one, numbers) == 6 &&
          conc_offload_abandon(add_one, numbers, nullptr) == 7);
    return conc_pool_close(&p);
}

static int processes(void *)
{
    int numbers[2] = {1, 2}, results[2] = {}, result = 0;
    char out[3] = "";
    void *shared = conc_shared_alloc(10);
    CONC_AUTO(conc_procs, p){};
    p.workers = 1;
    conc_job j{};
    CHECK(shared && conc_procs_open(&p) == 0 &&
          conc_procs_run(&p, add_one, numbers, sizeof numbers[0]) == 2);
    CHECK(conc_procs_submit(&p, &j, add_one, numbers, sizeof numbers[0]) == 0);
    CHECK(conc_job_wait(&j, &result) == 0 && result == 3 && numbers[0] == 3);
    CHECK(conc_procs_map(&p, add_one, numbers, 2, sizeof numbers[0]) == 0);
    CHECK(conc_procs_map_all(&p, add_one, numbers, 2, sizeof numbers[0], results) == 0 &&
          results[0] == 5);
    CHECK(conc_procs_call(&p, echo, "ab", 3, out, sizeof out) == 3 && std::strcmp(out, "ab") == 0);
    conc_shared_free(shared);
    return conc_procs_close(&p);
}

static int channels(void *)
{
    int item = 3, out = 0;
    CONC_AUTO(conc_channel, c){};
    c.item_size = sizeof item;
    c.capacity = 2;
    CHECK(conc_channel_send(&c, &item) == 0 && conc_channel_try_send(&c, &item) == 0);
    CHECK(conc_channel_recv(&c, &out) == 0 && conc_channel_try_recv(&c, &out) == 0 && out == 3);
    conc_case cases[] = {CONC_CASE_RECV(&c, &out), CONC_CASE_SEND(&c, &item)};
    CHECK(conc_select(cases, 2) == 1 && conc_select(cases, 2) == 0 && out == 3);
    conc_channel_close(&c);
    conc_channel_destroy(&c);
    return 0;
}

static int outside(void *)
{
    const char *const argv[] = {"cat", nullptr};
    char path[] = "/tmp/conc_calls_XXXXXX";
    void *data = nullptr;
    size_t size = 0;
    int status = -1;
    sockaddr_storage address{};
    close(mkstemp(path));
    CHECK(conc_file_write(path, "a", 1) == 0 && conc_file_append(path, "b", 1) == 0);
    CHECK(conc_file_read(path, &data, &size) == 0 && size == 2 &&
          std::strcmp(static_cast<char *>(data), "ab") == 0);
    conc_free(data);
    unlink(path);
    CHECK(conc_resolve("127.0.0.1", "80", &address, 1) >= 1);
    CONC_AUTO(conc_child, c){};
    c.argv = argv;
    c.input = CONC_NULL;
    CHECK(conc_child_start(&c) == 0 && conc_child_wait(&c, &status) == 0 && status == 0);
    CHECK(conc_child_kill(&c, SIGTERM) == -EALREADY);
    CHECK(conc_child_close(&c) == 0);
    conc_child_io io{};
    c.input = CONC_NULL; /* a start has stored -1 there */
    c.error = 0;
    c.group = true;
    c.grace = 1;
    c.output = CONC_PIPE;
    CHECK(conc_child_start(&c) == 0 && conc_child_communicate(&c, &io, &status) == 0);
    CHECK(io.out_size == 0 && *io.out == 0 && !io.error);
    conc_free(io.out);
    return conc_child_close(&c);
}

static void embedding()
{
    conc_embed e{};
    CHECK(conc_embed_begin(&e, nullptr, nothing, nullptr) == 0);
    CHECK(conc_embed_fd(&e) >= 0 && conc_embed_timeout(&e) >= 0);
    while (conc_embed_step(&e) == 1)
        continue;
    CHECK(conc_embed_end(&e) == 0);
}

static int app(void *)
{
    int n = 0;
    time_and_run(nullptr);
    scopes(nullptr);
    groups(nullptr);
    lambdas(nullptr);
    gathers(nullptr);
    CHECK(tries(&n) == -EPROTO && tries_in_a_group(nullptr) == -EPROTO);
    locals(nullptr);
    generators(nullptr);
    loops(nullptr);
    CHECK(copies(nullptr) == 0);
    close_by_itself();
    reports(nullptr);
    descriptors(nullptr);
    streams(nullptr);
    signals(nullptr);
    CHECK(locks(nullptr) == 1 && events(nullptr) == 0 && queues(nullptr) == 0);
    CHECK(pools(nullptr) == 0 && processes(nullptr) == 0 && channels(nullptr) == 0 &&
          outside(nullptr) == 0);
    return 0;
}

static void count_error(const conc_failure *f, void *user)
{
    CHECK(f->rc == -EPROTO);
    add_one(user);
}

static int leave_an_error(void *)
{
    return conc_spawn(nullptr, refuse, nullptr) == 0 ? conc_yield() : -EPROTO;
}

static int set_status(void *)
{
    conc_set_exit_status(3);
    return 0;
}

int main()
{
    int errors = 0;
    conc_options options{};
    options.virtual_clock = true;
    CHECK(conc_run_with(&options, app, nullptr) == 0);
    options.on_error = count_error;
    options.user = &errors;
    CHECK(conc_run_with(&options, leave_an_error, nullptr) == 0 && errors == 1);
    embedding();
    CHECK(conc_run(nothing, nullptr) == 0 && conc_main(nothing, nullptr) == 0);
    CHECK(conc_main(set_status, nullptr) == 3);
    return failures != 0;
}
