/* test_redis.c - examples/common/redis.h: hiredis in tasks. Each test has its own redis-server, or
 * a small server in the same run that misbehaves.
 *
 * Needs -lhiredis, and the program redis-server.
 */
#define TEST_SYNC
#include "server.h"

#include "redis.h"

static char port_text[16], address[32];
static const char *server_argv[] = {"redis-server", "--port", port_text, "--bind", "127.0.0.1",
                                    "--save",       "",       "--dir",   ".",      "--unixsocket",
                                    "socket",       NULL,     NULL,      NULL};
static server real;

/* With more options; each test runs in its own process. */
static void start_server(void)
{
    real = (server){.argv = server_argv, .port = server_free_port()};
    snprintf(port_text, sizeof port_text, "%d", real.port);
    snprintf(address, sizeof address, "127.0.0.1:%d", real.port);
    server_make_folder(&real);
    server_start(&real);
}

static void stop_server(void)
{
    int status;
    server_signal(&real, SIGSTOP);
    CHECK_INT(waitpid(real.pid, &status, WUNTRACED), real.pid);
    CHECK(WIFSTOPPED(status));
}

static void run_body(void (*body)(void), const conc_options *options)
{
    test_task t = {body};
    int fds = test_count_fds();
    CHECK_INT(conc_run_with(options, test_call_body, &t), 0);
    CHECK_INT(test_count_fds(), fds);
}

static void with_server(void (*body)(void))
{
    start_server();
    run_body(body, &(conc_options){0});
    server_end(&real);
}

/* main_fn of a run on the real clock, beside a redis-server; or without one */
#define REAL_TEST(name)                      \
    static void body_##name(void);           \
    TEST(name) { with_server(body_##name); } \
    static void body_##name(void)
#define FAKE_TEST(name)                                       \
    static void body_##name(void);                            \
    TEST(name) { run_body(body_##name, &(conc_options){0}); } \
    static void body_##name(void)
#define ORDERED_FAKE_TEST(name)                                       \
    static void body_##name(void);                                    \
    ORDERED_TEST(name) { run_body(body_##name, &(conc_options){0}); } \
    static void body_##name(void)

/* ---- calls ---- */

/* A command in its own task, and the result. */
typedef struct call {
    redis_client *c;
    const char *format, *word;
    conc_task task;
    int rc, type;
    long long integer;
    char text[64], words[128];
} call;

static int do_call(void *arg)
{
    call *k = arg;
    CONC_AUTO(redis_reply, r) = NULL;
    k->rc = redis_command(k->c, &r, k->format, k->word);
    snprintf(k->words, sizeof k->words, "%s", conc_last_error());
    if (r) {
        k->type = r->type;
        k->integer = r->integer;
        snprintf(k->text, sizeof k->text, "%s", r->str ? r->str : "");
    }
    return 0;
}

static void begin_call(conc_group *g, call *k)
{
    k->rc = 1;
    CHECK_INT(conc_spawn_task(g, &k->task, do_call, k), 0);
}

static call make_call(redis_client *c, const char *format, const char *word)
{
    call k = {.c = c, .format = format, .word = word};
    CHECK_INT(do_call(&k), 0);
    return k;
}

static void check_text(redis_client *c, const char *format, const char *word, const char *text)
{
    call k = make_call(c, format, word);
    CHECK_INT(k.rc, 0);
    CHECK_STR(k.text, text);
}

static void check_integer(redis_client *c, const char *format, const char *word, long long n)
{
    call k = make_call(c, format, word);
    CHECK_INT(k.rc, 0);
    CHECK_INT(k.type, REDIS_REPLY_INTEGER);
    CHECK_INT(k.integer, n);
}

/* Waits until the server has this many connections, including the client's own. */
static void wait_for_connections(redis_client *c, int n)
{
    int found = -1;
    while (found != n) {
        CONC_AUTO(redis_reply, r) = NULL;
        CHECK_INT(redis_command(c, &r, "CLIENT LIST"), 0);
        found = 0;
        for (const char *at = r->str; (at = strchr(at, '\n')) != NULL; at++)
            found++;
    }
}

/* ---- a server that misbehaves ---- */

typedef struct fake {
    const char *says[4]; /* after each request, including the first; then it closes or hangs */
    size_t size;         /* length of a message that contains NULs; 0: strlen */
    bool at_once, hangs;
    int connections, requests;
    int fd;
    char address[128];
    conc_server server;
} fake;

static int misbehave(int fd, void *arg)
{
    fake *f = arg;
    char buf[4096];
    f->connections++;
    for (int i = 0; i < 4 && f->says[i]; i++) {
        if (!f->at_once) {
            if (CONC_TRY(conc_read(fd, buf, sizeof buf)) == 0)
                return 0;
            f->requests++;
        }
        size_t n = strlen(f->says[i]);
        if (conc_write_full(fd, f->says[i], n) != (ssize_t)n)
            return 0;
    }
    while (f->hangs && CONC_TRY(conc_read(fd, buf, sizeof buf)) > 0)
        f->requests++;
    return 0;
}

static int run_fake(void *arg)
{
    fake *f = arg;
    return conc_serve(&f->server);
}

static void start_fake(conc_group *g, fake *f)
{
    f->fd = conc_listen("127.0.0.1:0");
    CHECK(f->fd >= 0);
    CHECK_INT(conc_address(f->fd, false, f->address, sizeof f->address), 0);
    f->server = (conc_server){.fd = f->fd, .handler = misbehave, .arg = f};
    CHECK_INT(conc_spawn(g, run_fake, f), 0);
}

static void end_fake(conc_group *g, fake *f)
{
    conc_group_cancel(g);
    CHECK_INT(conc_group_wait(g), 0);
    conc_close(f->fd);
}

/* ---- commands ---- */

REAL_TEST(each_kind_of_reply_is_returned_as_by_hiredis)
{
    CONC_AUTO(redis_client, c) = {.address = address};
    CONC_AUTO(redis_reply, r) = NULL;
    CHECK_INT(redis_command(&c, &r, "SET %s %b", "k", "a\0\r\nb", (size_t)5), 0);
    CHECK_INT(r->type, REDIS_REPLY_STATUS);
    CHECK_STR(r->str, "OK");
    CHECK_INT(redis_command(&c, &r, "GET k"), 0);
    CHECK_INT(r->type, REDIS_REPLY_STRING);
    CHECK_INT(r->len, 5);
    CHECK(memcmp(r->str, "a\0\r\nb", 5) == 0);
    CHECK_INT(redis_command(&c, &r, "APPEND k %s", r->str), 0); /* from the freed reply */
    CHECK_INT(r->integer, 6);
    CHECK_INT(redis_command(&c, &r, "GET none"), 0);
    CHECK_INT(r->type, REDIS_REPLY_NIL);
    CHECK_INT(redis_command(&c, NULL, "RPUSH list 1 2 %d", 3), 0);
    CHECK_INT(redis_command(&c, &r, "LRANGE list 0 -1"), 0);
    CHECK_INT(r->type, REDIS_REPLY_ARRAY);
    CHECK_INT(r->elements, 3);
    CHECK_STR(r->element[2]->str, "3");
    CHECK_INT(redis_reply_free(&r), 0);
    CHECK(r == NULL);
    CHECK_INT(redis_reply_free(&r), 0);
}

REAL_TEST(a_command_of_words_can_contain_any_bytes)
{
    CONC_AUTO(redis_client, c) = {.address = address};
    CONC_AUTO(redis_reply, r) = NULL;
    const char *set[] = {"SET", "a key", "\0%s \r\n"};
    const char *get[] = {"GET", "a key"};
    CHECK_INT(redis_command_argv(&c, NULL, 3, set, (size_t[]){3, 5, 6}), 0);
    CHECK_INT(redis_command_argv(&c, &r, 2, get, NULL), 0);
    CHECK_INT(r->len, 6);
    CHECK(memcmp(r->str, "\0%s \r\n", 6) == 0);
}

REAL_TEST(an_error_reply_is_an_error_with_its_text_and_the_client_continues)
{
    CONC_AUTO(redis_client, c) = {.address = address};
    CONC_AUTO(redis_reply, r) = NULL;
    CHECK_INT(redis_command(&c, NULL, "SET k word"), 0);
    CHECK_INT(redis_command(&c, &r, "INCR k"), -EIO);
    CHECK_STR(conc_last_error(), "INCR: ERR value is not an integer or out of range");
    CHECK_INT(r->type, REDIS_REPLY_ERROR);
    CHECK_STR(r->str, "ERR value is not an integer or out of range");
    CHECK_INT(redis_command(&c, NULL, "LPUSH k 1"), -EIO);
    CHECK_CONTAINS(conc_last_error(), "LPUSH: WRONGTYPE");
    CHECK_INT(redis_command(&c, NULL, "%s", ""), -EIO); /* a word without a letter */
    check_text(&c, "GET %s", "k", "word");
}

REAL_TEST(a_unix_socket_is_an_address_too)
{
    char path[128];
    snprintf(path, sizeof path, "unix:%s/socket", real.folder);
    CONC_AUTO(redis_client, c) = {.address = path};
    check_text(&c, "ECHO %s", "here", "here");
}

REAL_TEST(invalid_commands_are_refused_and_lose_nothing)
{
    static const char *const refused[] = {
        "SUBSCRIBE a",  "psubscribe a",     "SSUBSCRIBE a",      "Unsubscribe",
        "PUNSUBSCRIBE", "SUNSUBSCRIBE",     "MONITOR",           "SYNC",
        "PSYNC ? -1",   "client reply off", "CLIENT REPLY SKIP", ""};
    CONC_AUTO(redis_client, c) = {.address = address};
    CONC_AUTO(redis_reply, r) = NULL;
    CHECK_INT(redis_command(&c, &r, "PING"), 0);
    for (size_t i = 0; i < CONC_LEN(refused); i++) {
        CHECK_INT(redis_command(&c, NULL, refused[i]), -EINVAL);
        check_text(&c, "ECHO %s", refused[i], refused[i]);
    }
    CHECK_INT(redis_command(NULL, NULL, "PING"), -EINVAL);
    CHECK_INT(redis_command(&c, NULL, NULL), -EINVAL);
    CHECK_INT(redis_command(&c, NULL, "SET %y"), -EINVAL);
    CHECK_INT(redis_command_argv(&c, NULL, 0, (const char *[]){"PING"}, NULL), -EINVAL);
    CHECK_INT(redis_command_argv(&c, NULL, 1, NULL, NULL), -EINVAL);
    check_text(&c, "CLIENT %s", "GETNAME", "");
    CHECK_INT(redis_close(NULL), 0);
    CHECK_INT(redis_pipeline_close(NULL), 0);
    CHECK_INT(redis_subscription_close(NULL), 0);
}

FAKE_TEST(invalid_options_are_refused_before_anything_is_opened)
{
    redis_client wrong[] = {{.database = -1},  {.attempts = -1},        {.delay = -1},
                            {.max_delay = -1}, {.connect_timeout = -1}, {.timeout = -1},
                            {.user = "name"},  {.address = "nonsense"}};
    for (size_t i = 0; i < CONC_LEN(wrong); i++) {
        CHECK_INT(redis_command(&wrong[i], NULL, "PING"), -EINVAL);
        CHECK_INT(redis_close(&wrong[i]), 0);
    }
    CHECK_CONTAINS(conc_last_error(), "nonsense");
}

TEST(outside_a_run_a_command_is_refused_and_a_close_is_harmless)
{
    redis_client c = {0};
    redis_pipeline p = {0};
    redis_subscription s = {.from = &c};
    redis_message m;
    CHECK_INT(redis_command(&c, NULL, "PING"), -EPERM);
    CHECK_INT(redis_pipeline_add(&p, "PING"), 0);
    CHECK_INT(redis_pipeline_run(&c, &p), -EPERM);
    CHECK_INT(redis_subscribe(&s, "a"), -EPERM);
    CHECK_INT(redis_next_message(&s, &m), -EPERM);
    CHECK_INT(redis_close(&c), 0);
    CHECK_INT(redis_close(&c), 0);
    CHECK_INT(redis_pipeline_close(&p), 0);
    CHECK_INT(redis_subscription_close(&s), 0);
    CHECK_INT(redis_subscription_close(&s), 0);
}

/* ---- authentication ---- */

static void use_passwords(void)
{
    redis_client none = {.address = address}, wrong = {.address = address, .password = "guess"},
                 right = {.address = address, .password = "secret", .database = 3};
    CHECK_INT(redis_command(&none, NULL, "PING"), -EACCES);
    CHECK_CONTAINS(conc_last_error(), "PING: NOAUTH");
    CHECK_INT(redis_command(&wrong, NULL, "PING"), -EACCES);
    CHECK_CONTAINS(conc_last_error(), address);
    CHECK_CONTAINS(conc_last_error(), "AUTH: WRONGPASS");
    check_text(&right, "ECHO %s", "in", "in");
    CHECK_INT(redis_command(&right, NULL, "ACL SETUSER ann on >pw ~* +get +echo"), 0);
    redis_client ann = {.address = address, .user = "ann", .password = "pw"};
    check_text(&ann, "ECHO %s", "in", "in");
    CHECK_INT(redis_command(&ann, NULL, "SET a 1"), -EACCES);
    CHECK_CONTAINS(conc_last_error(), "SET: NOPERM");
    redis_client lost = {.address = address, .user = "ann", .password = "pw", .database = 1};
    CHECK_INT(redis_command(&lost, NULL, "ECHO a"), -EACCES); /* that user may not select */
    CHECK_CONTAINS(conc_last_error(), "SELECT: NOPERM");
    redis_close(&none), redis_close(&wrong), redis_close(&right), redis_close(&ann);
    CHECK_INT(redis_close(&lost), 0);
}

TEST(a_password_is_needed_and_a_wrong_one_is_refused)
{
    server_argv[11] = "--requirepass";
    server_argv[12] = "secret";
    with_server(use_passwords);
}

REAL_TEST(the_password_and_the_database_apply_again_after_a_reconnect)
{
    CONC_AUTO(redis_client, other) = {.address = address};
    CONC_AUTO(redis_client,
              c) = {.address = address, .user = "default", .password = "any", .database = 5};
    CHECK_INT(redis_command(&c, NULL, "SET k five"), 0);
    CHECK_INT(redis_command(&other, NULL, "SET k zero"), 0);
    CHECK_INT(redis_command(&other, NULL, "CLIENT KILL TYPE normal SKIPME yes"), 0);
    /* its receiver sees the end: the next command does not fail any more */
    CHECK_INT(conc_settle(), 0);
    check_text(&c, "GET %s", "k", "five");
    wait_for_connections(&other, 2);
}

REAL_TEST(a_missing_database_is_the_servers_error_and_is_not_retried)
{
    CONC_AUTO(redis_client, c) = {.address = address, .database = 99};
    CHECK_INT(redis_command(&c, NULL, "PING"), -EIO);
    CHECK_CONTAINS(conc_last_error(), "SELECT: ERR DB index is out of range");
    c.database = 0;
    check_text(&c, "ECHO %s", "in", "in");
}

/* ---- many commands at once ---- */

typedef struct echo {
    redis_client *c;
    int number;
} echo;

static int echo_itself(void *arg)
{
    echo *e = arg;
    CONC_AUTO(redis_reply, r) = NULL;
    for (int i = 0; i < 3; i++) {
        CONC_TRY(redis_command(e->c, &r, "ECHO %d/%d", e->number, i));
        char wanted[32];
        snprintf(wanted, sizeof wanted, "%d/%d", e->number, i);
        CHECK_STR(r->str, wanted);
        CONC_TRY(redis_command(e->c, NULL, "INCR count"));
    }
    return 0;
}

REAL_TEST(a_thousand_tasks_share_one_connection_and_each_gets_its_own_replies)
{
    CONC_AUTO(redis_client, c) = {.address = address};
    static echo echoes[1000];
    for (int i = 0; i < 1000; i++)
        echoes[i] = (echo){&c, i};
    CHECK_INT(CONC_MAP(echo_itself, echoes), 0);
    check_text(&c, "GET %s", "count", "3000");
    wait_for_connections(&c, 1);
}

static int set_large(void *arg)
{
    echo *e = arg;
    enum { SIZE = 300000 };
    CONC_AUTO(redis_reply, r) = NULL;
    char *value = malloc(SIZE);
    memset(value, 'a' + e->number, SIZE);
    CHECK_INT(redis_command(e->c, NULL, "SET k%d %b", e->number, value, (size_t)SIZE), 0);
    CHECK_INT(redis_command(e->c, &r, "GET k%d", e->number), 0);
    CHECK_INT(r->len, SIZE);
    CHECK(memcmp(r->str, value, SIZE) == 0);
    free(value);
    return 0;
}

REAL_TEST(large_values_of_several_tasks_go_whole_both_ways)
{
    CONC_AUTO(redis_client, c) = {.address = address};
    echo echoes[20];
    for (int i = 0; i < 20; i++)
        echoes[i] = (echo){&c, i};
    CHECK_INT(CONC_MAP(set_large, echoes), 0);
}

/* ---- cancels and time limits ---- */

static void check_cancelled_calls(redis_client *c, const char *format)
{
    static char words[20][16];
    static call calls[20];
    conc_group g = {0};
    stop_server();
    for (int i = 0; i < 20; i++) {
        snprintf(words[i], sizeof words[i], "w%d", i);
        calls[i] = (call){.c = c, .format = format, .word = words[i]};
        begin_call(&g, &calls[i]);
    }
    CHECK_INT(conc_settle(), 0);
    for (int i = 0; i < 20; i += 2)
        CHECK_INT(conc_cancel(&calls[i].task), 0);
    CHECK_INT(conc_settle(), 0);
    server_signal(&real, SIGCONT);
    CHECK_INT(conc_group_wait(&g), 0);
    for (int i = 0; i < 20; i++) {
        CHECK_INT(calls[i].rc, i % 2 ? 0 : -ECANCELED);
        CHECK_STR(calls[i].text, i % 2 ? words[i] : "");
    }
    check_text(c, format, "after", "after");
}

REAL_TEST(replies_to_cancelled_commands_are_dropped_and_no_other_task_gets_them)
{
    CONC_AUTO(redis_client, c) = {.address = address};
    check_text(&c, "ECHO %s", "first", "first");
    check_cancelled_calls(&c, "ECHO %s");
    check_cancelled_calls(&c, "ECHO %s");
    wait_for_connections(&c, 1);
}

static int run_twice_cancelled(void *arg)
{
    CHECK_INT(redis_command(arg, NULL, "INCR never"), -ECANCELED);
    redis_pipeline p = {0};
    CHECK_INT(redis_pipeline_add(&p, "INCR never"), 0);
    CHECK_INT(redis_pipeline_run(arg, &p), -ECANCELED);
    CHECK_INT(redis_pipeline_close(&p), 0);
    return -ECANCELED;
}

REAL_TEST(a_command_that_is_cancelled_before_it_is_sent_never_reaches_the_server)
{
    CONC_AUTO(redis_client, c) = {.address = address};
    CHECK_INT(conc_timeout(0, run_twice_cancelled, &c), -ETIMEDOUT); /* not connected */
    check_text(&c, "ECHO %s", "first", "first");
    CHECK_INT(conc_timeout(0, run_twice_cancelled, &c), -ETIMEDOUT);
    check_text(&c, "ECHO %s", "next", "next");
    check_integer(&c, "EXISTS %s", "never", 0);
}

REAL_TEST(a_command_behind_one_that_is_being_sent_can_be_withdrawn)
{
    CONC_AUTO(redis_client, c) = {.address = address};
    enum { SIZE = 20 << 20 };
    char *large = malloc(SIZE + 1);
    memset(large, 'x', SIZE);
    large[SIZE] = 0;
    call set = {.c = &c, .format = "SET large %s", .word = large},
         withdrawn = {.c = &c, .format = "INCR %s", .word = "never"},
         last = {.c = &c, .format = "STRLEN %s", .word = "large"};
    conc_group g = {0};
    check_text(&c, "ECHO %s", "first", "first");
    stop_server();
    begin_call(&g, &set);
    CHECK_INT(conc_settle(), 0);
    begin_call(&g, &withdrawn);
    begin_call(&g, &last);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_cancel(&withdrawn.task), 0);
    CHECK_INT(conc_cancel(&set.task), 0); /* half of it is sent, so the rest must be */
    CHECK_INT(conc_settle(), 0);
    server_signal(&real, SIGCONT);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(set.rc, -ECANCELED);
    CHECK_INT(withdrawn.rc, -ECANCELED);
    CHECK_INT(last.rc, 0);
    CHECK_INT(last.integer, SIZE);
    check_integer(&c, "EXISTS %s", "never", 0);
    free(large);
}

REAL_TEST(cancelled_commands_that_were_not_sent_are_withdrawn)
{
    CONC_AUTO(redis_client, c) = {.address = address};
    CONC_AUTO(redis_reply, r) = NULL;
    /* a command has 16,384 bytes, which are sent at once: some are sent as a whole, others not */
    enum { COUNT = 1000, SIZE = 16384 - 33 };
    static call calls[COUNT];
    char word[SIZE + 1] = {0};
    memset(word, 'x', SIZE);
    conc_group g = {0};
    CHECK_INT(redis_command(&c, NULL, "PING"), 0);
    stop_server();
    for (int i = 0; i < COUNT; i++) {
        calls[i] = (call){.c = &c, .format = "APPEND k %s", .word = word};
        begin_call(&g, &calls[i]);
    }
    CHECK_INT(conc_settle(), 0);
    for (int i = 0; i < COUNT; i++)
        CHECK_INT(conc_cancel(&calls[i].task), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    server_signal(&real, SIGCONT);
    CHECK_INT(redis_command(&c, &r, "STRLEN k"), 0);
    CHECK_INT(r->integer % SIZE, 0);
    CHECK(r->integer > 0 && r->integer < COUNT * SIZE);
}

static redisReply *make_reply(const char *text)
{
    void *reply = NULL;
    redisReader *reader = redisReaderCreate();
    CHECK_INT(redisReaderFeed(reader, text, strlen(text)), REDIS_OK);
    CHECK_INT(redisReaderGetReply(reader, &reply), REDIS_OK);
    redisReaderFree(reader);
    return reply;
}

REAL_TEST(a_reply_that_came_before_the_cancel_is_kept)
{
    redis_client c = {.address = address};
    call k = {.c = &c, .format = "INCR %s", .word = "k"},
         late = {.c = &c, .format = "INCR %s", .word = "k"};
    conc_group g = {0};
    check_text(&c, "ECHO %s", "first", "first");
    stop_server();
    begin_call(&g, &k);
    CHECK_INT(conc_settle(), 0);
    begin_call(&g, &late);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(redis__deliver(c.link, make_reply(":7\r\n")), 0);
    CHECK_INT(conc_cancel(&k.task), 0);
    CHECK_INT(conc_cancel(&late.task), 0);
    CHECK_INT(redis__deliver(c.link, make_reply(":8\r\n")), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(k.rc, 0);
    CHECK_INT(k.integer, 7);
    CHECK_INT(late.rc == 0 ? late.integer : 8, 8);
    CHECK_INT(redis_close(&c), 0);
}

static int ask(void *arg) { return redis_command(arg, NULL, "PING"); }

static int ask_two(void *arg)
{
    CONC_AUTO(redis_pipeline, p) = {0};
    CONC_TRY(redis_pipeline_add(&p, "PING"));
    CONC_TRY(redis_pipeline_add(&p, "PING"));
    return redis_pipeline_run(arg, &p);
}

static int subscribe_more(void *arg) { return redis_subscribe(arg, "more"); }
static int subscribe_pattern(void *arg) { return redis_subscribe_pattern(arg, "more*"); }
static int unsubscribe_a(void *arg) { return redis_unsubscribe(arg, "a"); }
static int unsubscribe_p(void *arg) { return redis_unsubscribe_pattern(arg, "p*"); }

static int next(void *arg)
{
    redis_message m;
    return redis_next_message(arg, &m);
}

/* A scope's limit, and then a cancel, end a call that waits for a stopped server. */
static void check_ends(conc_fn *fn, void *arg)
{
    conc_task t;
    conc_group g = {0};
    int rc = 1;
    CHECK_INT(conc_timeout(0.01, fn, arg), -ETIMEDOUT);
    CHECK_INT(conc_timeout(0, fn, arg), -ETIMEDOUT);
    CHECK_INT(conc_spawn_task(&g, &t, fn, arg), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK(!conc_done(&t));
    CHECK_INT(conc_cancel(&t), 0);
    CHECK_INT(conc_join(&t, &rc), 0);
    CHECK_INT(rc, -ECANCELED);
    CHECK_INT(conc_group_wait(&g), 0);
}

REAL_TEST(a_limit_and_a_cancel_end_every_call_that_waits_and_the_objects_stay_usable)
{
    CONC_AUTO(redis_client, c) = {.address = address};
    CONC_AUTO(redis_client, unconnected) = {.address = address, .database = 1};
    CONC_AUTO(redis_subscription, s) = {.from = &c};
    CHECK_INT(ask(&c), 0);
    CHECK_INT(redis_subscribe(&s, "a"), 0);
    CHECK_INT(redis_subscribe(&s, "b"), 0);
    stop_server();
    check_ends(ask, &c);
    check_ends(ask_two, &c);
    check_ends(ask, &unconnected);
    check_ends(next, &s);
    CHECK_INT(conc_timeout(0.01, unsubscribe_a, &s), -ETIMEDOUT);
    check_ends(subscribe_more, &s);
    check_ends(subscribe_pattern, &s);
    server_signal(&real, SIGCONT);
    CHECK_INT(ask(&c), 0);
    CHECK_INT(ask_two(&c), 0);
    CHECK_INT(ask(&unconnected), 0);
    CHECK_INT(next(&s), -ECONNRESET);
    check_integer(&c, "PUBLISH %s 1", "a", 0);
    check_integer(&c, "PUBLISH %s 1", "more", 0);
    check_integer(&c, "PUBLISH %s 1", "b", 1);
    CHECK_INT(next(&s), 0);
}

REAL_TEST(an_unsubscribe_that_is_cancelled_is_done_when_the_connection_is_renewed)
{
    CONC_AUTO(redis_client, c) = {.address = address};
    CONC_AUTO(redis_subscription, s) = {.from = &c};
    conc_task t;
    conc_group g = {0};
    int rc = 1;
    CHECK_INT(redis_subscribe(&s, "a"), 0);
    CHECK_INT(redis_subscribe_pattern(&s, "p*"), 0);
    stop_server();
    CHECK_INT(conc_spawn_task(&g, &t, unsubscribe_p, &s), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_cancel(&t), 0);
    CHECK_INT(conc_join(&t, &rc), 0);
    CHECK_INT(rc, -ECANCELED);
    CHECK_INT(conc_group_wait(&g), 0);
    server_signal(&real, SIGCONT);
    CHECK_INT(next(&s), -ECONNRESET);
    check_integer(&c, "PUBLISH %s 1", "p1", 0);
    check_integer(&c, "PUBLISH %s 1", "a", 1);
}

REAL_TEST(a_server_that_hangs_is_given_up_after_the_clients_timeout)
{
    CONC_AUTO(redis_client, c) = {.address = address, .timeout = 0.05};
    call first = {.c = &c, .format = "ECHO %s", .word = "a"},
         second = {.c = &c, .format = "ECHO %s", .word = "b"};
    conc_group g = {0};
    check_text(&c, "ECHO %s", "a", "a");
    CHECK_INT(conc_sleep(0.1), 0); /* nothing is asked: no limit */
    check_text(&c, "CLIENT %s", "ID", "");
    redis__link *before = c.link;
    stop_server();
    begin_call(&g, &first);
    CHECK_INT(conc_settle(), 0);
    begin_call(&g, &second);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(first.rc, -ETIMEDOUT);
    CHECK_CONTAINS(first.words, "the server did not answer in time");
    CHECK_INT(second.rc, -ECONNRESET);
    CHECK_CONTAINS(second.words, address);
    CHECK(before->error == -ETIMEDOUT);
    server_signal(&real, SIGCONT);
    check_text(&c, "ECHO %s", "a", "a");
}

REAL_TEST(cancelled_commands_do_not_delay_the_clients_timeout)
{
    CONC_AUTO(redis_client, c) = {.address = address, .timeout = 0.05};
    int rc = -ETIMEDOUT, limits = 0;
    CHECK_INT(ask(&c), 0);
    stop_server();
    while (rc == -ETIMEDOUT && limits++ < 100)
        rc = conc_timeout(0.01, ask, &c); /* the first is at the head, so a later one gets this: */
    CHECK_INT(rc, -ECONNRESET);
    server_signal(&real, SIGCONT);
}

FAKE_TEST(a_server_that_does_not_answer_AUTH_is_given_up_after_connect_timeout)
{
    conc_group g = {0};
    fake f = {.hangs = true};
    start_fake(&g, &f);
    CONC_AUTO(redis_client, c) = {.address = f.address,
                                  .password = "p",
                                  .connect_timeout = 0.02,
                                  .attempts = 3,
                                  .delay = 0.01};
    CHECK_INT(ask(&c), -ETIMEDOUT);
    CHECK_CONTAINS(conc_last_error(), f.address);
    CHECK_CONTAINS(conc_last_error(), "no connection within 0.02 s");
    CHECK_INT(f.connections, 3);
    end_fake(&g, &f);
}

/* ---- a server that disappears ---- */

REAL_TEST(a_command_in_flight_is_lost_with_its_server_and_the_next_one_reconnects)
{
    CONC_AUTO(redis_client, c) = {.address = address, .attempts = 1000, .delay = 0.01};
    call lost = {.c = &c, .format = "INCR %s", .word = "n"};
    conc_group g = {0};
    check_integer(&c, "INCR %s", "n", 1);
    stop_server();
    begin_call(&g, &lost);
    CHECK_INT(conc_settle(), 0);
    server_kill(&real);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(lost.rc, -ECONNRESET);
    CHECK_CONTAINS(lost.words, address);
    server_launch(&real);
    check_integer(&c, "INCR %s", "n", 1);
}

REAL_TEST(an_unsent_command_is_sent_on_the_next_connection)
{
    CONC_AUTO(redis_client, c) = {.address = address, .attempts = 1000, .delay = 0.01};
    enum { SIZE = 20 << 20 };
    char *large = malloc(SIZE + 1);
    memset(large, 'x', SIZE);
    large[SIZE] = 0;
    call set = {.c = &c, .format = "SET large %s", .word = large},
         unsent = {.c = &c, .format = "INCR %s", .word = "n"};
    conc_group g = {0};
    CHECK_INT(ask(&c), 0);
    stop_server();
    begin_call(&g, &set);
    CHECK_INT(conc_settle(), 0);
    begin_call(&g, &unsent);
    CHECK_INT(conc_settle(), 0);
    server_kill(&real);
    server_launch(&real);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(set.rc, -ECONNRESET);
    CHECK_INT(unsent.rc, 0);
    CHECK_INT(unsent.integer, 1);
    free(large);
}

/* Refused connections on the virtual clock: returns how long the attempts take together. */
static double time_attempts(redis_client *c, int tasks)
{
    static call calls[100];
    conc_group g = {0};
    double start = conc_now();
    for (int i = 0; i < tasks; i++) {
        calls[i] = (call){.c = c, .format = "PING"};
        begin_call(&g, &calls[i]);
    }
    CHECK_INT(conc_group_wait(&g), 0);
    for (int i = 0; i < tasks; i++) {
        CHECK_INT(calls[i].rc, -ECONNREFUSED);
        CHECK_CONTAINS(calls[i].words, c->address);
    }
    return conc_now() - start;
}

TASK_TEST(the_pauses_between_attempts_double_up_to_the_longest)
{
    snprintf(address, sizeof address, "127.0.0.1:%d", server_free_port());
    CONC_AUTO(redis_client, c) = {.address = address, .attempts = 5, .delay = 1, .max_delay = 3};
    double t = time_attempts(&c, 1);
    CHECK(t >= 0.5 + 1 + 1.5 + 1.5 && t <= 1 + 2 + 3 + 3);
    t = time_attempts(&c, 1); /* the next command waits before its first attempt */
    CHECK(t >= 5 * 1.5 && t <= 5 * 3);
}

TASK_TEST(tasks_that_wait_for_one_connection_share_its_failure)
{
    snprintf(address, sizeof address, "127.0.0.1:%d", server_free_port());
    CONC_AUTO(redis_client, c) = {.address = address, .attempts = 3, .delay = 1};
    double t = time_attempts(&c, 100);
    CHECK(t >= 0.5 + 1 && t <= 1 + 2);
}

REAL_TEST(a_task_that_is_cancelled_while_it_connects_leaves_that_to_the_next)
{
    CONC_AUTO(redis_client, c) = {.address = address, .database = 1};
    call first = {.c = &c, .format = "ECHO %s", .word = "a"},
         second = {.c = &c, .format = "ECHO %s", .word = "b"};
    conc_group g = {0};
    stop_server();
    begin_call(&g, &first);
    begin_call(&g, &second);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_cancel(&first.task), 0);
    server_signal(&real, SIGCONT);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(first.rc, -ECANCELED);
    CHECK_INT(second.rc, 0);
    CHECK_STR(second.text, "b");
}

/* Two commands at once to a server that misbehaves, after one that it answers: the result of each,
 * and the error text of the second. */
static void check_misbehaviour(fake *f, size_t limit, int first_rc, int second_rc,
                               const char *words)
{
    conc_group g = {0}, calls = {0};
    f->says[1] = f->says[0];
    f->says[0] = "+PONG\r\n";
    start_fake(&g, f);
    CONC_AUTO(redis_client, c) = {.address = f->address, .reply_limit = limit};
    CHECK_INT(redis_command(&c, NULL, "PING"), 0);
    call first = {.c = &c, .format = "PING"}, second = {.c = &c, .format = "PING"};
    begin_call(&calls, &first);
    begin_call(&calls, &second);
    CHECK_INT(conc_group_wait(&calls), 0);
    CHECK_INT(first.rc, first_rc);
    CHECK_INT(second.rc, second_rc);
    CHECK_CONTAINS(second.words, f->address);
    CHECK_CONTAINS(second.words, words);
    end_fake(&g, f);
}

ORDERED_FAKE_TEST(garbage_is_an_error_and_closes_the_connection)
{
    check_misbehaviour(&(fake){.says = {"HTTP/1.1 400 Bad Request\r\n\r\n"}, .hangs = true}, 0,
                       -EPROTO, -ECONNRESET, "Protocol error");
    check_misbehaviour(&(fake){.says = {"+PONG\r\n:12x\r\n"}, .hangs = true}, 0, 0, -EPROTO,
                       "Bad integer value");
    check_misbehaviour(&(fake){.says = {"*-5\r\n"}, .hangs = true}, 0, -EPROTO, -ECONNRESET,
                       "length out of range");
}

FAKE_TEST(an_unrequested_reply_closes_the_connection)
{
    conc_group g = {0};
    fake f = {.says = {"+OK\r\n+OK\r\n"}, .hangs = true};
    start_fake(&g, &f);
    CONC_AUTO(redis_client, c) = {.address = f.address};
    CHECK_INT(ask(&c), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(c.link->error, -EPROTO);
    CHECK_INT(ask(&c), 0); /* on a new connection */
    CHECK_INT(f.connections, 2);
    end_fake(&g, &f);
}

REAL_TEST(a_connection_that_cannot_be_written_to_is_lost)
{
    CONC_AUTO(redis_client, c) = {.address = address};
    CHECK_INT(ask(&c), 0);
    stop_server();
    CHECK_INT(shutdown(c.link->fd, SHUT_WR), 0);
    CHECK_INT(ask(&c), -ECONNRESET);
    server_signal(&real, SIGCONT);
    CHECK_INT(ask(&c), 0);
}

FAKE_TEST(a_reply_to_half_a_command_is_none)
{
    conc_group g = {0};
    fake f = {.says = {"+OK\r\n"}, .at_once = true, .hangs = true};
    enum { SIZE = 20 << 20 };
    char *large = calloc(1, SIZE);
    start_fake(&g, &f);
    CONC_AUTO(redis_client, c) = {.address = f.address};
    CHECK_INT(redis_command(&c, NULL, "SET k %b", large, (size_t)SIZE), -EPROTO);
    CHECK_CONTAINS(conc_last_error(), "an unrequested reply: OK");
    end_fake(&g, &f);
    free(large);
}

FAKE_TEST(the_text_of_a_server_that_refuses_the_connection_is_quoted)
{
    conc_group g = {0};
    fake f = {.says = {"-ERR max number of clients reached\r\n"}, .at_once = true};
    start_fake(&g, &f);
    CONC_AUTO(redis_client, c) = {.address = f.address};
    int rc = ask(&c);
    CHECK(rc == -EPROTO || rc == -EIO); /* the error comes before the command was sent, or after */
    CHECK_CONTAINS(conc_last_error(), "ERR max number of clients reached");
    CONC_AUTO(redis_client, selects) = {.address = f.address, .database = 1};
    CHECK_INT(ask(&selects), -EIO);
    CHECK_CONTAINS(conc_last_error(), "SELECT: ERR max number of clients reached");
    end_fake(&g, &f);
}

ORDERED_FAKE_TEST(a_server_that_closes_early_loses_the_commands_in_flight)
{
    check_misbehaviour(&(fake){.says = {""}}, 0, -ECONNRESET, -ECONNRESET, "closed the connection");
    check_misbehaviour(&(fake){.says = {"$10\r\nhalf"}}, 0, -ECONNRESET, -ECONNRESET,
                       "closed the connection");
    check_misbehaviour(&(fake){.says = {"+PONG\r\n"}}, 0, 0, -ECONNRESET, "closed the connection");
}

ORDERED_FAKE_TEST(a_reply_over_the_limit_is_refused_however_it_comes)
{
    static char line[3000], bulk[3000];
    memset(line, 'x', sizeof line - 1);
    memset(bulk, 'x', sizeof bulk - 1);
    line[0] = '+';
    memcpy(bulk, "$100000000\r\n", 12);
    check_misbehaviour(&(fake){.says = {line}, .hangs = true}, 1000, -EMSGSIZE, -ECONNRESET,
                       "longer than 1000 bytes");
    check_misbehaviour(&(fake){.says = {bulk}, .hangs = true}, 1000, -EMSGSIZE, -ECONNRESET,
                       "longer than 1000 bytes");
    check_misbehaviour(&(fake){.says = {"*2000000000\r\n"}, .hangs = true}, 0, -EMSGSIZE,
                       -ECONNRESET, "longer than 67108864 bytes");
    check_misbehaviour(&(fake){.says = {"*2\r\n*200\r\n"}, .hangs = true}, 600, -EMSGSIZE,
                       -ECONNRESET, "longer than 600 bytes");
}

REAL_TEST(a_reply_as_long_as_the_limit_is_accepted)
{
    CONC_AUTO(redis_client, c) = {.address = address,
                                  .reply_limit = 100 + 8}; /* "$100\r\n", "\r\n" */
    CONC_AUTO(redis_reply, r) = NULL;
    char value[102] = {0};
    memset(value, 'x', 101);
    for (int i = 0; i < 100; i++) { /* earlier ones do not count */
        CHECK_INT(redis_command(&c, &r, "ECHO %b", value, (size_t)100), 0);
        CHECK_INT(r->len, 100);
        CHECK_INT(redis_command(&c, &r, "TIME"), 0);
        CHECK_INT(r->elements, 2);
    }
    CHECK_INT(redis_command(&c, &r, "ECHO %s", value), -EMSGSIZE);
    CHECK(r == NULL);
    CHECK_INT(redis_command(&c, &r, "ECHO %b", value, (size_t)100), 0);
}

/* ---- blocking commands ---- */

static void wait_until_blocked(redis_client *c)
{
    CONC_AUTO(redis_reply, r) = NULL;
    do
        CHECK_INT(redis_command(c, &r, "CLIENT LIST"), 0);
    while (!strstr(r->str, "cmd=blpop"));
}

REAL_TEST(a_blocking_client_waits_for_an_element_while_others_continue)
{
    CONC_AUTO(redis_client, c) = {.address = address};
    CONC_AUTO(redis_client, blocks) = {.address = address, .blocking = true, .timeout = 0.01};
    CONC_AUTO(redis_reply, r) = NULL;
    call pop = {.c = &blocks, .format = "BLPOP %s 0", .word = "list"};
    conc_group g = {0};
    begin_call(&g, &pop);
    wait_until_blocked(&c);
    CHECK_INT(redis_command(&blocks, &r, "PING"), -EBUSY);
    CHECK_INT(conc_sleep(0.05), 0); /* no timeout applies */
    CHECK(!conc_done(&pop.task));
    check_integer(&c, "RPUSH %s 1", "list", 1);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(pop.rc, 0);
    CHECK_INT(pop.type, REDIS_REPLY_ARRAY);
    check_text(&blocks, "ECHO %s", "again", "again");
}

REAL_TEST(the_server_forgets_a_blocking_command_that_was_cancelled)
{
    CONC_AUTO(redis_client, c) = {.address = address};
    CONC_AUTO(redis_client, blocks) = {.address = address, .blocking = true};
    call pop = {.c = &blocks, .format = "BLPOP %s 0", .word = "list"};
    conc_group g = {0};
    begin_call(&g, &pop);
    wait_until_blocked(&c);
    CHECK_INT(conc_cancel(&pop.task), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(pop.rc, -ECANCELED);
    wait_for_connections(&c, 1);
    check_integer(&c, "RPUSH %s 1", "list", 1);
    check_integer(&c, "LLEN %s", "list", 1);
    check_text(&blocks, "LPOP %s", "list", "1");
}

/* ---- pipelines ---- */

REAL_TEST(a_pipeline_has_a_reply_for_each_command_and_may_run_again)
{
    CONC_AUTO(redis_client, c) = {.address = address};
    CONC_AUTO(redis_pipeline, p) = {0};
    const char *get[] = {"GET", "n"};
    CHECK_INT(redis_pipeline_run(&c, &p), -EINVAL);
    CHECK_INT(redis_pipeline_add(&p, "INCRBY n %d", 5), 0);
    CHECK_INT(redis_pipeline_add_argv(&p, 2, get, NULL), 0);
    CHECK_INT(redis_pipeline_add(&p, "MONITOR"), -EINVAL);
    CHECK_INT(redis_pipeline_add(&p, "%y"), -EINVAL);
    CHECK_INT(redis_pipeline_add(&p, NULL), -EINVAL);
    CHECK_INT(redis_pipeline_add(NULL, "PING"), -EINVAL);
    CHECK_INT(redis_pipeline_add_argv(&p, 0, get, NULL), -EINVAL);
    CHECK_INT(redis_pipeline_run(&c, NULL), -EINVAL);
    for (int i = 1; i <= 2; i++) {
        CHECK_INT(redis_pipeline_run(&c, &p), 0);
        CHECK_INT(p.count, 2);
        CHECK_INT(p.replies[0]->integer, 5 * i);
        CHECK_STR(p.replies[1]->str, i == 1 ? "5" : "10");
    }
    CHECK_INT(redis_pipeline_close(&p), 0);
    CHECK_INT(redis_pipeline_add(&p, "ECHO again"), 0);
    CHECK_INT(redis_pipeline_run(&c, &p), 0);
    CHECK_STR(p.replies[0]->str, "again");
}

REAL_TEST(the_first_error_of_a_pipeline_is_returned_and_all_replies_are_there)
{
    CONC_AUTO(redis_client, c) = {.address = address};
    CONC_AUTO(redis_pipeline, p) = {0};
    CHECK_INT(redis_pipeline_add(&p, "SET k word"), 0);
    CHECK_INT(redis_pipeline_add(&p, "INCR k"), 0);
    CHECK_INT(redis_pipeline_add(&p, "LPUSH k 1"), 0);
    CHECK_INT(redis_pipeline_add(&p, "GET k"), 0);
    CHECK_INT(redis_pipeline_run(&c, &p), -EIO);
    CHECK_STR(conc_last_error(), "command 1: ERR value is not an integer or out of range");
    CHECK_INT(p.replies[2]->type, REDIS_REPLY_ERROR);
    CHECK_STR(p.replies[3]->str, "word");
}

REAL_TEST(a_pipeline_that_is_cancelled_or_lost_in_the_middle_keeps_the_replies_that_came)
{
    CONC_AUTO(redis_client, c) = {.address = address};
    CONC_AUTO(redis_pipeline, p) = {0};
    conc_group g = {0};
    CHECK_INT(redis_pipeline_run(&c, &p), -EINVAL);
    for (int i = 0; i < 3; i++)
        CHECK_INT(redis_pipeline_add(&p, "ECHO %d", i), 0);
    fake f = {.says = {"+0\r\n+1\r\n"}};
    start_fake(&g, &f);
    redis_client half = {.address = f.address};
    CHECK_INT(redis_pipeline_run(&half, &p), -ECONNRESET);
    CHECK_STR(p.replies[1]->str, "1");
    CHECK(p.replies[2] == NULL);
    CHECK_INT(redis_close(&half), 0);
    f.hangs = true;
    conc_scope limit = {0};
    CHECK_INT(conc_scope_begin(&limit, 0.05), 0);
    CHECK_INT(conc_scope_end(&limit, redis_pipeline_run(&half, &p)), -ETIMEDOUT);
    CHECK_STR(p.replies[1]->str, "1");
    CHECK(p.replies[2] == NULL);
    CHECK_INT(redis_pipeline_run(&c, &p), 0);
    CHECK_STR(p.replies[2]->str, "2");
    CHECK_INT(redis_close(&half), 0);
    end_fake(&g, &f);
}

/* Moves 1 from one account to the other, and checks that no other task intervened. */
static int transfer(void *arg)
{
    echo *e = arg;
    CONC_AUTO(redis_pipeline, p) = {0};
    CONC_TRY(redis_pipeline_add(&p, "MULTI"));
    CONC_TRY(redis_pipeline_add(&p, "DECR from"));
    CONC_TRY(redis_pipeline_add(&p, "INCR to"));
    CONC_TRY(redis_pipeline_add(&p, "EXEC"));
    CONC_TRY(redis_pipeline_run(e->c, &p));
    redis_reply both = p.replies[3];
    CHECK_INT(both->elements, 2);
    CHECK_INT(both->element[0]->integer + both->element[1]->integer, 0);
    return 0;
}

REAL_TEST(transactions_of_many_tasks_do_not_mix)
{
    CONC_AUTO(redis_client, c) = {.address = address};
    CONC_AUTO(redis_pipeline, p) = {0};
    static echo echoes[200];
    for (int i = 0; i < 200; i++)
        echoes[i] = (echo){&c, i};
    CHECK_INT(CONC_GATHER(CONC_CALL(echo_itself, &echoes[0]), CONC_CALL(transfer, &echoes[1])), 0);
    CHECK_INT(CONC_MAP(transfer, echoes), 0);
    check_text(&c, "GET %s", "to", "201");
    CHECK_INT(redis_pipeline_add(&p, "MULTI"), 0);
    CHECK_INT(redis_pipeline_add(&p, "INCR to"), 0);
    CHECK_INT(redis_pipeline_add(&p, "INCR"), 0);
    CHECK_INT(redis_pipeline_add(&p, "EXEC"), 0);
    CHECK_INT(redis_pipeline_run(&c, &p), -EIO);
    CHECK_CONTAINS(p.replies[3]->str, "EXECABORT");
    check_text(&c, "GET %s", "to", "201");
}

REAL_TEST(a_pipeline_of_many_thousand_commands_runs_in_one_go)
{
    CONC_AUTO(redis_client, c) = {.address = address};
    CONC_AUTO(redis_pipeline, p) = {0};
    enum { N = 5000 };
    static char value[1000];
    memset(value, 'v', sizeof value);
    for (int i = 0; i < N; i++)
        CHECK_INT(redis_pipeline_add(&p, "ECHO %d-%b", i, value, sizeof value), 0);
    CHECK_INT(redis_pipeline_run(&c, &p), 0);
    for (int i = 0; i < N; i++) {
        CHECK(p.replies[i]->len > sizeof value);
        CHECK_INT(atoi(p.replies[i]->str), i);
    }
}

/* ---- publish and subscribe ---- */

static void check_message(redis_subscription *s, const char *channel, const char *pattern,
                          const char *data)
{
    redis_message m;
    CHECK_INT(redis_next_message(s, &m), 0);
    CHECK_STR(m.channel, channel);
    CHECK_STR(m.data, data);
    CHECK_INT(m.size, strlen(data));
    if (pattern)
        CHECK_STR(m.pattern, pattern);
    else
        CHECK(m.pattern == NULL);
}

REAL_TEST(messages_of_channels_and_patterns_come_in_order_until_the_unsubscribe)
{
    CONC_AUTO(redis_client, c) = {.address = address};
    CONC_AUTO(redis_subscription, s) = {.from = &c};
    redis_message m;
    CHECK_INT(redis_subscribe(&s, "news"), 0);
    CHECK_INT(redis_subscribe(&s, "news"), 0);
    CHECK_INT(redis_subscribe_pattern(&s, "w*"), 0);
    check_integer(&c, "PUBLISH news %s", "one", 1);
    check_integer(&c, "PUBLISH weather %s", "rain", 1);
    CHECK_INT(redis_subscribe(&s, "weather"), 0); /* the messages arrived before its confirmation */
    check_integer(&c, "PUBLISH weather %s", "sun", 2);
    check_message(&s, "news", NULL, "one");
    check_message(&s, "weather", "w*", "rain");
    check_message(&s, "weather", NULL, "sun");
    CHECK_INT(redis_unsubscribe(&s, "weather"), 0); /* the second one arrived before that */
    check_message(&s, "weather", "w*", "sun");
    CHECK_INT(redis_unsubscribe_pattern(&s, "w*"), 0);
    CHECK_INT(redis_unsubscribe_pattern(&s, "w*"), -ENOENT);
    CHECK_INT(redis_unsubscribe(&s, "w*"), -ENOENT);
    check_integer(&c, "PUBLISH weather %s", "snow", 0);
    CHECK_INT(redis_command(&c, NULL, "PUBLISH news %b", "a\0b", (size_t)3), 0);
    CHECK_INT(redis_next_message(&s, &m), 0);
    CHECK_INT(m.size, 3);
    CHECK(memcmp(m.data, "a\0b", 4) == 0);
    CHECK_INT(redis_unsubscribe(&s, "news"), 0);
    CHECK_INT(redis_next_message(&s, &m), -EINVAL);
    CHECK_INT(redis_subscribe(&s, NULL), -EINVAL);
    CHECK_INT(redis_next_message(&s, NULL), -EINVAL);
    CHECK_INT(redis_next_message(NULL, &m), -EINVAL);
    CHECK_INT(redis_subscribe(&(redis_subscription){0}, "news"), -EINVAL);
}

static int publish_many(void *arg)
{
    for (int i = 0; i < 1000; i++)
        CONC_TRY(redis_command(arg, NULL, "PUBLISH news %d", i));
    return 0;
}

REAL_TEST(a_thousand_messages_arrive_in_order_next_to_their_sender)
{
    CONC_AUTO(redis_client, c) = {.address = address};
    CONC_AUTO(redis_subscription, s) = {.from = &c};
    redis_message m;
    conc_group g = {0};
    CHECK_INT(redis_subscribe(&s, "news"), 0);
    CHECK_INT(conc_spawn(&g, publish_many, &c), 0);
    for (int i = 0; i < 1000; i++) {
        CHECK_INT(redis_next_message(&s, &m), 0);
        CHECK_INT(atoi(m.data), i);
    }
    CHECK_INT(conc_group_wait(&g), 0);
}

REAL_TEST(a_second_task_may_not_use_a_subscription)
{
    CONC_AUTO(redis_client, c) = {.address = address};
    CONC_AUTO(redis_subscription, s) = {.from = &c};
    conc_group g = {0};
    CHECK_INT(redis_subscribe(&s, "a"), 0);
    CHECK_INT(conc_spawn(&g, next, &s), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(next(&s), -EBUSY);
    CHECK_INT(redis_subscribe(&s, "b"), -EBUSY);
    CHECK_INT(redis_unsubscribe(&s, "a"), -EBUSY);
    check_integer(&c, "PUBLISH %s 1", "a", 1);
    CHECK_INT(conc_group_wait(&g), 0);
}

REAL_TEST(subscriptions_are_renewed_after_a_restart_and_the_subscriber_is_notified)
{
    CONC_AUTO(redis_client, c) = {.address = address, .attempts = 1000, .delay = 0.01};
    CONC_AUTO(redis_subscription, s) = {.from = &c};
    CHECK_INT(redis_subscribe(&s, "a"), 0);
    CHECK_INT(redis_subscribe(&s, "b"), 0);
    CHECK_INT(redis_subscribe_pattern(&s, "p*"), 0);
    CHECK_INT(redis_unsubscribe(&s, "b"), 0);
    server_kill(&real);
    server_launch(&real);
    CHECK_INT(next(&s), -ECONNRESET);
    CHECK_CONTAINS(conc_last_error(), "the connection was lost");
    check_integer(&c, "PUBLISH %s one", "a", 1);
    check_integer(&c, "PUBLISH %s two", "b", 0);
    check_integer(&c, "PUBLISH %s three", "p1", 1);
    check_message(&s, "a", NULL, "one");
    check_message(&s, "p1", "p*", "three");
}

REAL_TEST(a_subscription_that_cannot_be_renewed_returns_an_error_and_retries)
{
    CONC_AUTO(redis_client, c) = {.address = address, .attempts = 2, .delay = 0.01};
    CONC_AUTO(redis_subscription, s) = {.from = &c};
    CHECK_INT(redis_subscribe(&s, "a"), 0);
    server_kill(&real);
    CHECK_INT(next(&s), -ECONNREFUSED);
    CHECK_INT(redis_subscribe(&s, "b"), -ECONNREFUSED);
    CHECK_INT(next(&s), -ECONNREFUSED);
    server_start(&real);
    CHECK_INT(redis_subscribe(&s, "b"), 0);
    CHECK_INT(next(&s), -ECONNRESET);
    check_integer(&c, "PUBLISH %s one", "a", 1);
    check_message(&s, "a", NULL, "one");
}

REAL_TEST(a_cancel_loses_no_message)
{
    CONC_AUTO(redis_client, c) = {.address = address};
    CONC_AUTO(redis_subscription, s) = {.from = &c};
    CHECK_INT(redis_subscribe(&s, "a"), 0);
    for (int i = 0; i < 50; i++) {
        conc_task t;
        conc_group g = {0};
        int rc = 1;
        CHECK_INT(conc_spawn_task(&g, &t, next, &s), 0);
        CHECK_INT(conc_settle(), 0);
        check_integer(&c, "PUBLISH %s one", "a", 1);
        conc_cancel(&t);
        CHECK_INT(conc_join(&t, &rc), 0);
        CHECK_INT(conc_group_wait(&g), 0);
        if (rc != 0) {
            CHECK_INT(rc, -ECANCELED);
            check_message(&s, "a", NULL, "one");
        }
    }
}

REAL_TEST(a_subscription_on_a_server_that_hangs_is_renewed_and_one_that_is_quiet_is_not)
{
    CONC_AUTO(redis_client, c) = {.address = address, .timeout = 0.05};
    CONC_AUTO(redis_subscription, s) = {.from = &c};
    CHECK_INT(redis_subscribe(&s, "a"), 0);
    CHECK_INT(conc_timeout(0.3, next, &s), -ETIMEDOUT); /* the server answers each PING */
    redis_client plain = {.address = address};
    check_integer(&plain, "PUBLISH %s one", "a", 1);
    check_message(&s, "a", NULL, "one");
    stop_server();
    int rc = conc_timeout(0.5, next, &s); /* lost after 0.1 s, and its renewal waits */
    CHECK_INT(rc, -ETIMEDOUT);
    server_signal(&real, SIGCONT);
    CHECK_INT(next(&s), -ECONNRESET);
    check_integer(&plain, "PUBLISH %s two", "a", 1);
    check_message(&s, "a", NULL, "two");
    CHECK_INT(redis_close(&plain), 0);
}

FAKE_TEST(garbage_and_other_replies_do_no_harm_to_a_subscriber)
{
    conc_group g = {0};
    fake f = {.says = {"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n"
                       "*3\r\n$7\r\nmessage\r\n$1\r\na\r\n:5\r\n"
                       "*0\r\n:1\r\n$-1\r\n*1\r\n$7\r\nmessage\r\n"
                       "*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nx\r\nnonsense\r\n"},
              .hangs = true};
    start_fake(&g, &f);
    redis_client c = {.address = f.address};
    CONC_AUTO(redis_subscription, s) = {.from = &c};
    CHECK_INT(redis_subscribe(&s, "a"), 0);
    check_message(&s, "a", NULL, "x");
    CHECK_INT(next(&s), -ECONNRESET);
    check_message(&s, "a", NULL, "x");
    CHECK_INT(f.connections, 2);
    end_fake(&g, &f);
}

FAKE_TEST(a_subscription_whose_new_connection_is_lost_at_once_is_not_renewed)
{
    static const char confirmation[] = "*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n";
    conc_group g = {0};
    fake f = {.says = {confirmation}};
    start_fake(&g, &f);
    redis_client c = {.address = f.address, .attempts = 1, .delay = 0.01};
    CONC_AUTO(redis_subscription, s) = {.from = &c};
    CHECK_INT(redis_subscribe(&s, "a"), 0);
    f.says[0] = NULL;
    CHECK_INT(next(&s), -ENOTCONN);
    CHECK_INT(next(&s), -ENOTCONN);
    f.says[0] = confirmation;
    CHECK_INT(next(&s), -ECONNRESET);
    end_fake(&g, &f);
}

/* ---- the end ---- */

REAL_TEST(a_close_ends_the_calls_of_other_tasks_and_the_objects_can_be_used_again)
{
    redis_client c = {.address = address}, connecting = {.address = address, .database = 1},
                 pausing = {.address = "127.0.0.1:1", .delay = 100, .max_delay = 100};
    redis_subscription s = {.from = &c};
    conc_group g = {0};
    call calls[] = {{.c = &c, .format = "PING"},          {.c = &c, .format = "PING"},
                    {.c = &connecting, .format = "PING"}, {.c = &connecting, .format = "PING"},
                    {.c = &pausing, .format = "PING"},    {.c = &pausing, .format = "PING"}};
    conc_task listener;
    int rc = 1;
    CHECK_INT(ask(&c), 0);
    CHECK_INT(redis_subscribe(&s, "a"), 0);
    stop_server();
    for (size_t i = 0; i < CONC_LEN(calls); i++)
        begin_call(&g, &calls[i]);
    CHECK_INT(conc_spawn_task(&g, &listener, next, &s), 0);
    g.keep_going = true;
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_sleep(0.05), 0);
    CHECK_INT(redis_subscription_close(&s), 0);
    CHECK_INT(redis_close(&connecting), 0);
    CHECK_INT(redis_close(&pausing), 0);
    CHECK_INT(redis_close(&c), 0);
    CHECK_INT(redis_close(&c), 0);
    for (size_t i = 0; i < CONC_LEN(calls); i++) {
        CHECK(conc_done(&calls[i].task));
        CHECK_INT(calls[i].rc, -EPIPE);
        CHECK_CONTAINS(calls[i].words, "the client was closed");
    }
    CHECK_INT(conc_join(&listener, &rc), 0);
    CHECK_INT(rc, -EPIPE);
    CHECK_INT(conc_group_wait(&g), -EPIPE);
    server_signal(&real, SIGCONT);
    CHECK_INT(ask(&c), 0);
    CHECK_INT(redis_subscribe(&s, "a"), 0);
    CHECK_INT(redis_subscription_close(&s), 0);
    CHECK_INT(redis_close(&c), 0);
}

static int close_it(void *arg) { return redis_close(arg); }

REAL_TEST(a_close_in_a_cancelled_task_closes_too)
{
    redis_client c = {.address = address};
    call k = {.c = &c, .format = "PING"};
    conc_group g = {0};
    CHECK_INT(ask(&c), 0);
    stop_server();
    begin_call(&g, &k);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_timeout(0, close_it, &c), 0);
    CHECK(c.link == NULL);
    CHECK(conc_done(&k.task));
    CHECK_INT(k.rc, -EPIPE);
    CHECK_INT(conc_group_wait(&g), 0);
}

static redis_client kept;
static redis_subscription kept_subscription = {.from = &kept};

static int ask_in_the_background(void *arg)
{
    int rc = redis_command(arg, NULL, "BLPOP none 0");
    CHECK(rc == -ECANCELED || rc == -ECONNRESET);
    return rc == -ECANCELED ? rc : 0;
}

static void leave_open(void)
{
    CHECK_INT(ask(&kept), 0);
    CHECK_INT(redis_subscribe(&kept_subscription, "a"), 0);
    check_integer(&kept, "PUBLISH %s one", "a", 1);
    check_message(&kept_subscription, "a", NULL, "one");
    CHECK_INT(conc_spawn(NULL, ask_in_the_background, &kept), 0);
    CHECK_INT(conc_yield(), 0);
}

TEST(a_client_that_is_left_open_works_in_the_next_run)
{
    test_task t = {leave_open};
    start_server();
    kept.address = address;
    int fds = test_count_fds();
    for (int i = 0; i < 3; i++) {
        CHECK_INT(conc_run(test_call_body, &t), 0);
        CHECK_INT(test_count_fds(), fds + 1); /* the subscription's */
        CHECK_INT(redis_subscription_close(&kept_subscription), 0);
        CHECK_INT(test_count_fds(), fds);
    }
    CHECK_INT(redis_close(&kept), 0);
    server_end(&real);
}

/* ---- the loop ---- */

#define SLOW_STEP (SANITIZED ? 0.05 : 0.01)

static void work(void)
{
    CONC_AUTO(redis_client, c) = {.address = address};
    CONC_AUTO(redis_subscription, s) = {.from = &c};
    call late = {.c = &c, .format = "ECHO %s", .word = "late"};
    conc_group g = {0};
    echo echoes[20];
    for (int i = 0; i < 20; i++)
        echoes[i] = (echo){&c, i};
    CHECK_INT(redis_subscribe(&s, "a"), 0);
    CHECK_INT(CONC_MAP(echo_itself, echoes), 0);
    CHECK_INT(CONC_MAP(transfer, echoes), 0);
    stop_server(); /* a call that blocked would now block the loop */
    begin_call(&g, &late);
    CHECK_INT(conc_timeout(3 * SLOW_STEP, next, &s), -ETIMEDOUT);
    server_signal(&real, SIGCONT);
    CHECK_INT(conc_group_wait(&g), 0);
    check_integer(&c, "PUBLISH %s one", "a", 1);
    check_message(&s, "a", NULL, "one");
}

static void work_in_debug_mode(void)
{
    start_server();
    run_body(work, &(conc_options){.debug = true, .slow_step = SLOW_STEP});
    server_end(&real);
}

/* On a busy machine a step may take long without any fault; one that blocks always does. */
TEST(no_call_blocks_the_loop)
{
    static char text[65536];
    for (int i = 0; i < 10; i++) {
        CHECK_INT(test_in_process(work_in_debug_mode, text, sizeof text), 0);
        CHECK(!strstr(text, "left"));
        if (!strstr(text, "blocked the loop"))
            break;
        if (i == 9)
            test_fail(__FILE__, __LINE__, "a step was slow each time:\n%s", text);
    }
}
