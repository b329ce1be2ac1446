/* test_names.c - conc_resolve, and conc_dial and conc_listen by name: names that resolve, error
 * texts for those that do not, and a loop that continues during a lookup. Most names are known
 * only to this file, which replaces getaddrinfo(3); some tests use the system's names, and those
 * of a hosts file if nss_wrapper is installed.
 *
 * Seeds: 2 (jobs are threads)
 * Not under: ucontext, no-epoll, save-fpu, aarch64-bti, riscv64, poll, gcc-asan, single, clang,
 * static, valgrind (how tasks switch and wait is tested elsewhere)
 */
#define _GNU_SOURCE 1 /* EAI_ADDRFAMILY and others */
#include <netdb.h>

static int look_up(const char *host, const char *port, const struct addrinfo *hints,
                   struct addrinfo **found);

#define getaddrinfo look_up
/* the default; such an option gives this file its own implementation */
#define CONC_STACK_SIZE (256 * 1024)
#include "pool_test.h"

#include "io_test.h"
#undef getaddrinfo

#include <arpa/inet.h>
#include <net/if.h>
#include <semaphore.h>

enum { UNDECIDED = 100000, MOST = 8 };

/* ---- names that only this file knows ---- */

typedef struct known {
    const char *host;
    const char *addresses[5];
    int error;        /* instead of the addresses */
    int error_number; /* errno, if it says more */
    bool held;        /* waits at the gate first */
} known;

static const known names[] = {
    {.host = "one.test", .addresses = {"127.0.0.3"}},
    {.host = "two.test", .addresses = {"127.0.0.1", "127.0.0.2"}},
    {.host = "turned.test", .addresses = {"127.0.0.2", "127.0.0.1"}},
    {.host = "three.test", .addresses = {"127.0.0.7", "::7", "127.0.0.8"}},
    {.host = "mixed.test", .addresses = {"::1", "127.0.0.2"}},
    {.host = "race.test", .addresses = {"127.0.0.5", "127.0.0.6", "127.0.0.7", "127.0.0.8"}},
    {.host = "families.test", .addresses = {"127.0.0.5", "127.0.0.6", "127.0.0.7", "::1"}},
    {.host = "held.test", .addresses = {"127.0.0.9"}, .held = true},
    {.host = "unknown.test", .error = EAI_NONAME},
    {.host = "silent.test", .error = EAI_AGAIN},
    {.host = "failing.test", .error = EAI_FAIL},
    {.host = "poor.test", .error = EAI_MEMORY},
    {.host = "broken.test", .error = EAI_SYSTEM, .error_number = EMFILE},
    {.host = "speechless.test", .error = EAI_SYSTEM},
    {.host = "empty.test"},
    {.host = "many.test"}, /* 127.0.1.1 to 127.0.1.20 */
};

static sem_t gate;
static atomic_int lookups, at_the_gate, past_the_gate;

__attribute__((constructor)) static void make_gate(void) { sem_init(&gate, 0, 0); }

enum { MANY = 20 };

static int find_many(const char *port, const struct addrinfo *hints, struct addrinfo **end)
{
    int rc = 0;
    for (int i = 1; i <= MANY && rc == 0; i++) {
        char address[32];
        snprintf(address, sizeof address, "127.0.1.%d", i);
        rc = getaddrinfo(address, port, hints, end);
        while (rc == 0 && *end)
            end = &(*end)->ai_next;
    }
    return rc;
}

static int find_addresses(const known *k, const char *port, const struct addrinfo *hints,
                          struct addrinfo **found)
{
    struct addrinfo **end = found;
    if (strcmp(k->host, "many.test") == 0)
        return find_many(port, hints, found);
    for (size_t i = 0; i < CONC_LEN(k->addresses) && k->addresses[i]; i++) {
        int rc = getaddrinfo(k->addresses[i], port, hints, end);
        if (rc != 0)
            return rc;
        while (*end)
            end = &(*end)->ai_next;
    }
    return 0;
}

/* getaddrinfo(3), for the implementation in this file. */
static int look_up(const char *host, const char *port, const struct addrinfo *hints,
                   struct addrinfo **found)
{
    lookups++;
    for (size_t i = 0; host && i < CONC_LEN(names); i++) {
        if (strcmp(host, names[i].host) != 0)
            continue;
        if (names[i].held) {
            at_the_gate++;
            while (sem_wait(&gate) != 0)
                continue;
            past_the_gate++;
        }
        errno = names[i].error_number;
        return names[i].error ? names[i].error : find_addresses(&names[i], port, hints, found);
    }
    return getaddrinfo(host, port, hints, found);
}

static void open_gate(int n)
{
    for (int i = 0; i < n; i++)
        CHECK_INT(sem_post(&gate), 0);
}

/* ---- answers ---- */

typedef struct answer {
    const char *host, *port;
    struct sockaddr_storage out[MOST];
    int rc;
} answer;

/* Returns a numeric address such as "127.0.0.1 80", valid for four calls. */
static const char *text_of(const struct sockaddr_storage *a)
{
    static char texts[4][128];
    static int next;
    char host[96], port[16], *text = texts[next++ % 4];
    socklen_t size =
        a->ss_family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
    CHECK_INT(getnameinfo((const struct sockaddr *)a, size, host, sizeof host, port, sizeof port,
                          NI_NUMERICHOST | NI_NUMERICSERV),
              0);
    snprintf(text, sizeof texts[0], "%s %s", host, port);
    return text;
}

static int resolves(void *arg)
{
    answer *a = arg;
    a->rc = UNDECIDED;
    a->rc = conc_resolve(a->host, a->port, a->out, MOST);
    return a->rc < 0 ? a->rc : 0;
}

static answer ask(const char *host, const char *port)
{
    answer a = {.host = host, .port = port};
    (void)resolves(&a);
    return a;
}

static void check_one(const char *host, const char *port, const char *expected)
{
    answer a = ask(host, port);
    CHECK_INT(a.rc, 1);
    CHECK_STR(text_of(&a.out[0]), expected);
}

/* Returns "host:port", valid for four calls. */
static const char *at(const char *host, int port)
{
    static char texts[4][128];
    static int next;
    char *text = texts[next++ % 4];
    snprintf(text, sizeof texts[0], "%s:%d", host, port);
    return text;
}

static void wait_for_gate(int n)
{
    while (at_the_gate < n)
        turn(1);
}

/* ---- numeric addresses, and names of the system ---- */

TASK_TEST(numeric_addresses_need_no_lookup)
{
    check_one("127.0.0.1", "8080", "127.0.0.1 8080");
    check_one("10.20.30.40", "0", "10.20.30.40 0");
    check_one("255.255.255.255", "65535", "255.255.255.255 65535");
    check_one("0.0.0.0", "1", "0.0.0.0 1");
    check_one("::1", "443", "::1 443");
    check_one("::", "80", ":: 80");
    check_one("2001:db8::a:b", "80", "2001:db8::a:b 80");
}

TASK_TEST(an_address_may_name_its_interface)
{
    unsigned index = if_nametoindex("lo");
    if (index == 0)
        return;
    answer a = ask("fe80::1%lo", "80");
    CHECK_INT(a.rc, 1);
    CHECK_INT(((struct sockaddr_in6 *)&a.out[0])->sin6_scope_id, index);
}

static bool is_loopback(const struct sockaddr_storage *a)
{
    if (a->ss_family == AF_INET6)
        return IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)a)->sin6_addr);
    return a->ss_family == AF_INET &&
           ntohl(((const struct sockaddr_in *)a)->sin_addr.s_addr) >> 24 == 127;
}

TASK_TEST(localhost_is_this_machine)
{
    answer a = ask("localhost", "80");
    CHECK(a.rc >= 1 && a.rc <= MOST);
    for (int i = 0; i < a.rc; i++) {
        CHECK(is_loopback(&a.out[i]));
        for (int k = 0; k < i; k++)
            CHECK(memcmp(&a.out[i], &a.out[k], sizeof a.out[i]) != 0);
    }
}

TASK_TEST(this_machines_name_has_the_systems_addresses_for_it)
{
    char host[256] = "";
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found = NULL;
    int n = 0;
    CHECK_INT(gethostname(host, sizeof host - 1), 0);
    if (getaddrinfo(host, "80", &hints, &found) != 0)
        return; /* it has none */
    answer a = ask(host, "80");
    for (struct addrinfo *f = found; f; f = f->ai_next, n++)
        CHECK(n >= MOST || memcmp(&a.out[n], f->ai_addr, f->ai_addrlen) == 0);
    CHECK_INT(a.rc, n);
    freeaddrinfo(found);
}

TASK_TEST(an_unknown_name_has_an_error_text)
{
    setenv("RES_OPTIONS", "timeout:1 attempts:1", 1); /* where no server replies */
    answer a = ask("no-such-host.invalid", "80");
    CHECK_INT(a.rc, -EADDRNOTAVAIL);
    CHECK_CONTAINS(conc_last_error(), "no-such-host.invalid");
    CHECK(strlen(conc_last_error()) > strlen("no-such-host.invalid") + 5);
}

TASK_TEST(a_malformed_name_is_refused)
{
    char longest[1200];
    memset(longest, 'a', sizeof longest);
    longest[sizeof longest - 1] = 0;
    setenv("RES_OPTIONS", "timeout:1 attempts:1", 1);
    CHECK_INT(ask(longest, "80").rc, -EADDRNOTAVAIL);
    CHECK_INT(ask("two words", "80").rc, -EADDRNOTAVAIL);
    CHECK_INT(ask("1.2.3.4.5", "80").rc, -EADDRNOTAVAIL);
    CHECK_INT(ask("256.0.0.1", "80").rc, -EADDRNOTAVAIL);
}

/* ---- arguments ---- */

TASK_TEST(an_invalid_port_is_refused_without_a_lookup)
{
    static const char *const wrong[] = {
        "",    "65536", "99999", "4294967376", "18446744073709551696", "-1", "+80", " 80", "80 ",
        "80x", "x80",   "0x50",  "8.0",        "no-such-service"};
    for (size_t i = 0; i < CONC_LEN(wrong); i++) {
        answer a = {.host = "127.0.0.1", .port = wrong[i]};
        memset(a.out, 0x55, sizeof a.out);
        answer before = a;
        if (resolves(&a) != -EINVAL)
            test_fail(__FILE__, __LINE__, "port \"%s\": %d", wrong[i], a.rc);
        CHECK(memcmp(a.out, before.out, sizeof a.out) == 0);
        CHECK_INT(ask("two.test", wrong[i]).rc, -EINVAL);
    }
    CHECK_INT(ask("two.test", "080").rc, 2);
}

TASK_TEST(invalid_arguments_are_refused)
{
    struct sockaddr_storage out[1];
    CHECK_INT(conc_resolve(NULL, "80", out, 1), -EINVAL);
    CHECK_INT(conc_resolve("127.0.0.1", NULL, out, 1), -EINVAL);
    CHECK_INT(conc_resolve(NULL, NULL, NULL, 0), -EINVAL);
    CHECK_INT(conc_resolve("127.0.0.1", "80", NULL, 1), -EINVAL);
    CHECK_INT(lookups, 0);
}

TASK_TEST(as_many_as_fit_are_returned_and_all_are_counted)
{
    struct sockaddr_storage out[5];
    for (size_t max = 0; max <= 4; max++) {
        static const char *const expected[] = {"127.0.0.7 80", "::7 80", "127.0.0.8 80"};
        memset(out, 0x55, sizeof out);
        struct sockaddr_storage untouched = out[4];
        CHECK_INT(conc_resolve("three.test", "80", out, max), 3);
        for (size_t i = 0; i < 5; i++)
            if (i < max && i < 3)
                CHECK_STR(text_of(&out[i]), expected[i]);
            else
                CHECK(memcmp(&out[i], &untouched, sizeof untouched) == 0);
    }
    CHECK_INT(conc_resolve("three.test", "80", NULL, 0), 3);
}

TASK_TEST(errno_is_preserved)
{
    errno = 77;
    CHECK_INT(ask("two.test", "80").rc, 2);
    CHECK_INT(ask("unknown.test", "80").rc, -EADDRNOTAVAIL);
    CHECK_INT(ask("two.test", "x").rc, -EINVAL);
    CHECK_INT(errno, 77);
}

/* ---- errors ---- */

TASK_TEST(the_error_text_tells_an_unknown_name_from_a_missing_server)
{
    static const char *const failing[] = {"unknown.test", "silent.test", "failing.test"};
    char words[3][256];
    for (size_t i = 0; i < CONC_LEN(failing); i++) {
        CHECK_INT(ask(failing[i], "80").rc, -EADDRNOTAVAIL);
        CHECK_CONTAINS(conc_last_error(), failing[i]);
        const char *at = strstr(conc_last_error(), failing[i]);
        snprintf(words[i], sizeof words[i], "%s", at + strlen(failing[i]));
    }
    CHECK(strlen(words[0]) > 5 && strlen(words[1]) > 5);
    CHECK(strcmp(words[0], words[1]) != 0);
}

TASK_TEST(a_lack_of_memory_or_descriptors_is_reported_as_such)
{
    CHECK_INT(ask("poor.test", "80").rc, -ENOMEM);
    int rc = ask("broken.test", "80").rc;
    CHECK(rc == -EMFILE || rc == -EADDRNOTAVAIL);
}

TASK_TEST(an_answer_without_an_address_is_no_address)
{
    static const char *const none[] = {"speechless.test", "empty.test"};
    for (size_t i = 0; i < CONC_LEN(none); i++) {
        CHECK_INT(ask(none[i], "80").rc, -EADDRNOTAVAIL);
        CHECK_INT(conc_resolve(none[i], "80", NULL, 0), -EADDRNOTAVAIL);
        CHECK_INT(conc_dial(at(none[i], 80)), -EADDRNOTAVAIL);
        CHECK_INT(conc_listen(at(none[i], 80)), -EADDRNOTAVAIL);
    }
}

/* ---- the loop continues ---- */

TASK_TEST(the_loop_continues_during_a_lookup)
{
    answer a = {.host = "held.test", .port = "80"};
    conc_group g = {0};
    CHECK_INT(conc_spawn(&g, resolves, &a), 0);
    wait_for_gate(1);
    turn(1000);
    CHECK_INT(a.rc, UNDECIDED);
    check_one("one.test", "1", "127.0.0.3 1");
    CHECK_INT(a.rc, UNDECIDED);
    open_gate(1);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(a.rc, 1);
    CHECK_STR(text_of(&a.out[0]), "127.0.0.9 80");
}

TASK_TEST(fifty_tasks_look_up_names_at_once)
{
    static answer a[50];
    for (size_t i = 0; i < CONC_LEN(a); i++)
        a[i] = (answer){.host = i % 2 ? "three.test" : "turned.test", .port = "80"};
    CHECK_INT(CONC_MAP(resolves, a), 0);
    for (size_t i = 0; i < CONC_LEN(a); i++) {
        CHECK_INT(a[i].rc, i % 2 ? 3 : 2);
        CHECK_STR(text_of(&a[i].out[1]), i % 2 ? "::7 80" : "127.0.0.1 80");
    }
}

TASK_TEST(after_a_cancel_no_name_is_looked_up)
{
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    conc_scope_cancel(&s);
    CHECK_INT(ask("two.test", "80").rc, -ECANCELED);
    CHECK_INT(conc_dial("two.test:80"), -ECANCELED);
    CHECK_INT(conc_listen("one.test:0"), -ECANCELED);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), 0);
    CHECK_INT(lookups, 0);
}

static int asks_and_is_cancelled(void *arg)
{
    answer *a = arg;
    conc_group g = {0};
    *a = (answer){.host = "held.test", .port = "80"};
    CHECK_INT(conc_spawn(&g, resolves, a), 0);
    wait_for_gate(1);
    conc_group_cancel(&g);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(a->rc, -ECANCELED);
    CHECK_INT(past_the_gate, 0);
    check_one("one.test", "1", "127.0.0.3 1");
    return 0;
}

static int asks_again(void *arg)
{
    (void)arg;
    check_one("one.test", "1", "127.0.0.3 1");
    return 0;
}

TEST(a_cancel_returns_at_once_and_neither_it_nor_the_end_of_the_run_waits_for_the_answer)
{
    answer a;
    conc_options virtual = {.virtual_clock = true};
    CHECK_INT(conc_run_with(&virtual, asks_and_is_cancelled, &a), 0);
    CHECK_INT(past_the_gate, 0);
    memset(&a, 0x55, sizeof a); /* a late answer must not arrive here */
    answer untouched = a;
    open_gate(1);
    while (past_the_gate == 0)
        sched_yield();
    CHECK_INT(conc_run(asks_again, NULL), 0);
    CHECK(memcmp(&a, &untouched, sizeof a) == 0);
}

enum { HANGING = 40 };

TASK_TEST(lookups_that_never_end_do_not_block_later_ones)
{
    static answer a[HANGING];
    for (int i = 0; i < HANGING; i++) {
        conc_group g = {0};
        a[i] = (answer){.host = "held.test", .port = "80"};
        CHECK_INT(conc_spawn(&g, resolves, &a[i]), 0);
        wait_for_gate(i + 1);
        conc_group_cancel(&g);
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(a[i].rc, -ECANCELED);
    }
    check_one("one.test", "1", "127.0.0.3 1");
    CHECK_INT(past_the_gate, 0);
    open_gate(HANGING);
}

static int real_limit(void *arg)
{
    answer *a = arg;
    CHECK_INT(conc_timeout(0.01, resolves, a), -ETIMEDOUT);
    CHECK_INT(a->rc, -ECANCELED);
    CHECK_INT(past_the_gate, 0);
    return 4;
}

TEST(a_limit_does_not_wait_for_the_answer)
{
    answer a = {.host = "held.test", .port = "80"};
    unsetenv("CONC_CLOCK");
    CHECK_INT(conc_run(real_limit, &a), 4);
    open_gate(1);
}

/* ---- outside tasks ---- */

static int asks_elsewhere(void *arg)
{
    answer *a = arg;
    if (conc_resolve("unknown.test", "80", a->out, MOST) != -EADDRNOTAVAIL)
        return -EPROTO;
    (void)resolves(a);
    return a->rc;
}

static int asks_in_a_run(void *arg) { return conc_run(asks_elsewhere, arg); }

static void *asks_in_a_thread(void *arg)
{
    asks_elsewhere(arg);
    return NULL;
}

TEST(outside_a_run_the_call_blocks_its_thread)
{
    answer a = {.host = "two.test", .port = "80"};
    pthread_t t;
    CHECK_INT(asks_elsewhere(&a), 2);
    a.rc = UNDECIDED;
    CHECK_INT(pthread_create(&t, NULL, asks_in_a_thread, &a), 0);
    CHECK_INT(pthread_join(t, NULL), 0);
    CHECK_INT(a.rc, 2);
    CHECK_STR(text_of(&a.out[1]), "127.0.0.2 80");
}

TASK_TEST(jobs_look_up_names_directly_or_in_their_own_runs)
{
    answer a = {.host = "two.test", .port = "80"};
    CHECK_INT(conc_offload(asks_elsewhere, &a), 2);
    CHECK_STR(text_of(&a.out[1]), "127.0.0.2 80");
    CHECK_INT(conc_offload(asks_in_a_run, &a), 2);
    CHECK_STR(text_of(&a.out[0]), "127.0.0.1 80");
}

static bool posted_ran;

static void ask_in_a_post(void *arg)
{
    struct sockaddr_storage out[1];
    (void)arg;
    CHECK_INT(conc_resolve("two.test", "80", out, 1), -EPERM);
    CHECK_INT(conc_dial("two.test:80"), -EPERM);
    CHECK_INT(conc_listen("one.test:0"), -EPERM);
    CHECK_INT(lookups, 0);
    int fd = conc_listen("127.0.0.1:0"); /* this needs no lookup */
    CHECK(fd >= 0);
    CHECK_INT(conc_close(fd), 0);
    posted_ran = true;
}

TASK_TEST(a_posted_function_cannot_look_up_names)
{
    CHECK_INT(conc_post(conc_loop_self(), ask_in_a_post, NULL), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK(posted_ran);
}

/* ---- conc_dial and conc_listen by name ---- */

static int port_of(int fd)
{
    char address[120];
    CHECK_INT(conc_address(fd, false, address, sizeof address), 0);
    return atoi(strrchr(address, ':') + 1);
}

/* Sends data both ways between fd and the connection accepted at listener, then closes all
 * three. */
static void check_connected(int listener, int fd)
{
    char text[8] = "";
    CHECK(fd >= 0);
    int peer = conc_accept(listener);
    CHECK(peer >= 0);
    CHECK_INT(conc_write(fd, "there", 6), 6);
    CHECK_INT(conc_read_full(peer, text, 6), 6);
    CHECK_STR(text, "there");
    CHECK_INT(conc_write(peer, "again", 6), 6);
    CHECK_INT(conc_read_full(fd, text, 6), 6);
    CHECK_STR(text, "again");
    CHECK_INT(conc_close(fd), 0);
    CHECK_INT(conc_close(peer), 0);
    CHECK_INT(conc_close(listener), 0);
}

TASK_TEST(names_can_be_listened_at_and_dialled)
{
    int listener = conc_listen("one.test:0");
    char address[120];
    CHECK(listener >= 0);
    CHECK_INT(conc_address(listener, false, address, sizeof address), 0);
    CHECK_STR(address, at("127.0.0.3", port_of(listener)));
    CHECK(fcntl(listener, F_GETFD) & FD_CLOEXEC);
    CHECK(fcntl(listener, F_GETFL) & O_NONBLOCK);
    int fd = conc_dial(at("one.test", port_of(listener)));
    CHECK(fd >= 0 && (fcntl(fd, F_GETFD) & FD_CLOEXEC) && (fcntl(fd, F_GETFL) & O_NONBLOCK));
    check_connected(listener, fd);
}

TASK_TEST(names_can_be_listened_at_with_options)
{
    conc_listen_options options = {.reuse_port = true};
    int first = conc_listen_with("one.test:0", &options);
    CHECK(first >= 0);
    int second = conc_listen_with(at("one.test", port_of(first)), &options);
    CHECK(second >= 0);
    CHECK_INT(conc_listen(at("one.test", port_of(first))), -EADDRINUSE);
    CHECK_INT(conc_close(first), 0);
    CHECK_INT(conc_close(second), 0);
}

TASK_TEST(localhost_is_dialled_as_before)
{
    int listener = conc_listen("localhost:0");
    CHECK(listener >= 0);
    check_connected(listener, conc_dial(at("localhost", port_of(listener))));
}

/* Listens at this address only, and dials each of these names. */
static void check_all_addresses_are_tried(const char *address, const char *const *hosts, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        char peer[120];
        int listener = conc_listen(at(address, 0)), port = port_of(listener);
        int fds = test_count_fds(), fd = conc_dial(at(hosts[i], port));
        if (fd < 0)
            test_fail(__FILE__, __LINE__, "conc_dial of %s, which is at %s, returned %d", hosts[i],
                      address, fd);
        CHECK_INT(test_count_fds(), fds + 1);
        CHECK_INT(conc_address(fd, true, peer, sizeof peer), 0);
        CHECK_STR(peer, at(address, port));
        check_connected(listener, fd);
    }
}

TASK_TEST(all_addresses_of_a_name_are_dialled_until_one_answers)
{
    static const char *const at_second[] = {"two.test", "turned.test", "mixed.test"};
    static const char *const at_first[] = {"two.test", "turned.test"};
    CHECK_INT(ask("one.test", "80").rc, 1); /* opens what the module itself keeps open */
    check_all_addresses_are_tried("127.0.0.2", at_second, CONC_LEN(at_second));
    check_all_addresses_are_tried("127.0.0.1", at_first, CONC_LEN(at_first));
}

TASK_TEST(the_twentieth_address_of_a_name_is_dialled_too)
{
    static const char *const many[] = {"many.test"};
    CHECK_INT(conc_resolve("many.test", "80", NULL, 0), MANY);
    check_all_addresses_are_tried("127.0.1.1", many, 1);
    check_all_addresses_are_tried("127.0.1.20", many, 1);
}

TASK_TEST(if_no_address_answers_the_error_is_returned_and_nothing_stays_open)
{
    int listener = conc_listen("127.0.0.1:0"), port = port_of(listener);
    CHECK_INT(conc_close(listener), 0);
    CHECK_INT(ask("one.test", "80").rc, 1);
    int fds = test_count_fds();
    CHECK_INT(conc_dial(at("one.test", port)), -ECONNREFUSED);
    CHECK_INT(conc_dial(at("two.test", port)), -ECONNREFUSED);
    CHECK_INT(test_count_fds(), fds);
}

TASK_TEST(unknown_names_are_neither_dialled_nor_listened_at)
{
    static const char *const unknown[] = {"unknown.test", "silent.test"};
    CHECK_INT(ask("one.test", "80").rc, 1);
    int fds = test_count_fds();
    for (size_t i = 0; i < CONC_LEN(unknown); i++) {
        CHECK_INT(conc_dial(at(unknown[i], 80)), -EADDRNOTAVAIL);
        CHECK_CONTAINS(conc_last_error(), unknown[i]);
        CHECK_INT(conc_listen(at(unknown[i], 0)), -EADDRNOTAVAIL);
        CHECK_CONTAINS(conc_last_error(), unknown[i]);
    }
    CHECK_INT(conc_dial("poor.test:80"), -ENOMEM);
    CHECK_INT(test_count_fds(), fds);
}

TASK_TEST(a_name_without_a_port_is_malformed_and_not_looked_up)
{
    static const char *const wrong[] = {"two.test",    "two.test:",   "two.test:99999",
                                        "two.test:x",  "two.test:-1", "two.test:+1",
                                        "two.test: 1", ":80",         "two.test:80:80"};
    for (size_t i = 0; i < CONC_LEN(wrong); i++) {
        int dialled = conc_dial(wrong[i]), listened = conc_listen(wrong[i]);
        if (dialled != -EINVAL || listened != -EINVAL)
            test_fail(__FILE__, __LINE__, "\"%s\": conc_dial %d, conc_listen %d", wrong[i], dialled,
                      listened);
    }
    CHECK_INT(lookups, 0);
}

typedef struct dialler {
    const char *address;
    bool listens;
    int rc;
} dialler;

static int dials_or_listens(void *arg)
{
    dialler *d = arg;
    d->rc = UNDECIDED;
    d->rc = d->listens ? conc_listen(d->address) : conc_dial(d->address);
    return 0;
}

TASK_TEST(a_cancelled_dial_or_listen_by_name_returns_at_once)
{
    CHECK_INT(ask("one.test", "80").rc, 1);
    int fds = test_count_fds();
    for (int i = 0; i < 2; i++) {
        dialler d = {.address = "held.test:80", .listens = i};
        conc_group g = {0};
        CHECK_INT(conc_spawn(&g, dials_or_listens, &d), 0);
        wait_for_gate(i + 1);
        conc_group_cancel(&g);
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(d.rc, -ECANCELED);
    }
    CHECK_INT(past_the_gate, 0);
    CHECK_INT(test_count_fds(), fds);
    open_gate(2);
}

/* ---- several addresses at once ---- */

/* Ports where a connection hangs in the middle of the handshake, because the backlog is full. */
typedef struct hole {
    int l, clients[4];
} hole;

static hole open_hole(const char *host, int port)
{
    hole h;
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    socklen_t size = sizeof a;
    CHECK_INT(inet_pton(AF_INET, host, &a.sin_addr), 1);
    h.l = socket(AF_INET, SOCK_STREAM, 0);
    CHECK_INT(bind(h.l, (struct sockaddr *)&a, size), 0);
    CHECK_INT(listen(h.l, 0), 0);
    CHECK_INT(getsockname(h.l, (struct sockaddr *)&a, &size), 0);
    for (size_t i = 0; i < CONC_LEN(h.clients); i++) {
        h.clients[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        CHECK(h.clients[i] >= 0);
        (void)connect(h.clients[i], (struct sockaddr *)&a, size);
    }
    return h;
}

static void close_hole(const hole *h)
{
    for (size_t i = 0; i < CONC_LEN(h->clients); i++)
        CHECK_INT(close(h->clients[i]), 0);
    CHECK_INT(close(h->l), 0);
}

/* Dials a name whose last address has a listener and some of whose others never reply. Returns the
 * time taken, in 1/100 s. */
static int time_race(const char *name, const char *last, const char *const *holes, size_t n)
{
    hole h[4];
    char peer[120];
    int l = conc_listen(at(last, 0)), port = port_of(l);
    CHECK_INT(ask(name, "80").rc, 4);
    for (size_t i = 0; i < n; i++)
        h[i] = open_hole(holes[i], port);
    int fds = test_count_fds();
    double start = conc_now();
    int fd = conc_dial(at(name, port));
    double end = conc_now();
    CHECK(fd >= 0);
    CHECK_INT(test_count_fds(), fds + 1);
    CHECK_INT(conc_address(fd, true, peer, sizeof peer), 0);
    CHECK_STR(peer, at(last, port));
    check_connected(l, fd);
    for (size_t i = 0; i < n; i++)
        close_hole(&h[i]);
    return (int)((end - start) * 100 + 0.5);
}

static const char *const race_hosts[] = {"127.0.0.5", "127.0.0.6", "127.0.0.7", "127.0.0.8"};

TASK_TEST(the_next_address_is_tried_after_a_quarter_of_a_second_or_at_once_when_one_fails)
{
    for (size_t i = 0; i <= 3; i++) /* the others refuse */
        CHECK_INT(time_race("race.test", "127.0.0.8", race_hosts, i), 25 * i);
    for (size_t i = 0; i < 3; i++)
        CHECK_INT(time_race("race.test", "127.0.0.8", race_hosts + i, 1), 25);
}

TASK_TEST(the_first_address_that_answers_is_enough)
{
    CHECK_INT(time_race("race.test", "127.0.0.5", race_hosts + 1, 3), 0);
    CHECK_INT(time_race("race.test", "127.0.0.6", race_hosts + 2, 2), 0);
}

TASK_TEST(address_families_take_turns)
{
    int l = conc_listen("[::1]:0");
    if (l < 0)
        return; /* no IPv6 here */
    CHECK_INT(conc_close(l), 0);
    CHECK_INT(time_race("families.test", "[::1]", race_hosts, 3), 25);
}

static int dials_and_closes(void *name)
{
    int fd = conc_dial(name);
    return fd < 0 ? fd : conc_close(fd);
}

static void check_limit(char *where, double limit)
{
    double start = conc_now();
    int fds = test_count_fds();
    CHECK_INT(conc_timeout(limit, dials_and_closes, where), -ETIMEDOUT);
    CHECK_TIME(start + limit);
    CHECK_INT(test_count_fds(), fds);
    conc_group g = {0};
    dialler d = {.address = where};
    CHECK_INT(conc_spawn(&g, dials_or_listens, &d), 0);
    CHECK_INT(conc_sleep(limit), 0);
    conc_group_cancel(&g);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(d.rc, -ECANCELED);
    CHECK_INT(test_count_fds(), fds);
}

TASK_TEST(a_limit_or_a_cancel_ends_all_attempts)
{
    hole h[4] = {open_hole(race_hosts[0], 0)};
    int port = port_of(h[0].l);
    char where[64];
    for (int i = 1; i < 4; i++)
        h[i] = open_hole(race_hosts[i], port);
    snprintf(where, sizeof where, "race.test:%d", port);
    CHECK_INT(ask("race.test", "80").rc, 4);
    for (int i = 1; i < 12; i++)
        check_limit(where, 0.1 * i);
    for (int i = 0; i < 4; i++)
        close_hole(&h[i]);
}

TASK_TEST(the_error_is_that_of_the_first_address)
{
    int l = conc_listen("127.0.0.5:0"), port = port_of(l);
    CHECK_INT(conc_close(l), 0);
    CHECK_INT(conc_dial(at("race.test", port)), -ECONNREFUSED);
    CHECK_CONTAINS(conc_last_error(), at("race.test", port));
    CHECK_CONTAINS(conc_last_error(), strerror(ECONNREFUSED));
    CHECK_INT(conc_timeout(10, dials_and_closes, "race.test:0"), -ECONNREFUSED);
}

/* ---- names from a hosts file, in this program executed anew with nss_wrapper loaded before the C
 * library ---- */

enum { SKIPPED = 77 };

static bool has_wrapper(void)
{
    char line[1024];
    bool has = false;
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && fgets(line, sizeof line, maps))
        has = has || strstr(line, "nss_wrapper") != NULL;
    if (maps)
        fclose(maps);
    return has;
}

static void body_with_hosts(void)
{
    static const char *const both[] = {"both.example"};
    struct sockaddr_storage out[MOST];
    check_one("one.example", "80", "127.0.0.4 80");
    check_one("six.example", "80", "::1 80");
    CHECK_INT(conc_resolve("both.example", "80", out, MOST), 2);
    CHECK_INT(ask("other.invalid", "80").rc, -EADDRNOTAVAIL);
    CHECK_CONTAINS(conc_last_error(), "other.invalid");
    check_all_addresses_are_tried("127.0.0.1", both, 1);
    check_all_addresses_are_tried("127.0.0.2", both, 1);
    int listener = conc_listen("one.example:0");
    CHECK(listener >= 0);
    check_connected(listener, conc_dial(at("one.example", port_of(listener))));
}

/* Runs before main, in the program that was executed anew. */
__attribute__((constructor)) static void run_with_hosts(void)
{
    if (!getenv("TEST_NAMES_WITH_HOSTS"))
        return;
    make_gate();
    if (!has_wrapper())
        _exit(SKIPPED);
    test_in_task(body_with_hosts);
    _exit(0);
}

static char hosts_path[128];

static void execute_anew(void)
{
    char options[512], program[4096] = "";
    const char *old = getenv("ASAN_OPTIONS");
    snprintf(options, sizeof options, "%s%sverify_asan_link_order=0", old ? old : "",
             old ? ":" : "");
    setenv("ASAN_OPTIONS", options, 1);
    setenv("LD_PRELOAD", "libnss_wrapper.so", 1);
    setenv("NSS_WRAPPER_HOSTS", hosts_path, 1);
    setenv("RES_OPTIONS", "timeout:1 attempts:1", 1);
    setenv("TEST_NAMES_WITH_HOSTS", "1", 1);
    /* under Valgrind, /proc/self/exe itself would execute Valgrind */
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    if (n > 0)
        execl(program, "test_names", (char *)NULL);
    _exit(SKIPPED);
}

TEST(names_from_a_hosts_file_are_found_dialled_and_listened_at)
{
    static const char hosts[] = "127.0.0.1 both.example\n127.0.0.2 both.example\n"
                                "127.0.0.4 one.example\n::1 six.example\n";
    static char text[8192];
    if (SANITIZED)
        return; /* nss_wrapper loads its own C library, which sanitizers forbid */
    snprintf(hosts_path, sizeof hosts_path, "%s/conc_XXXXXX", P_tmpdir);
    int fd = mkstemp(hosts_path);
    CHECK(fd >= 0);
    CHECK_INT(write(fd, hosts, sizeof hosts - 1), sizeof hosts - 1);
    CHECK_INT(close(fd), 0);
    int status = test_in_process(execute_anew, text, sizeof text);
    CHECK_INT(unlink(hosts_path), 0);
    if (!WIFEXITED(status) || (WEXITSTATUS(status) != 0 && WEXITSTATUS(status) != SKIPPED))
        test_fail(__FILE__, __LINE__, "status 0x%x:\n%s", (unsigned)status, text);
}
