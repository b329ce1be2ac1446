/* test_datagrams.c - examples/common/datagrams.h: UDP with verified peer addresses; and
 * ticker.h.
 *
 * Needs -lcrypto */
#define TEST_SYNC
#include "../conc_test.h"

#include "datagrams.h"
#include "ticker.h"

/* A TCP listener with a UDP server beside it, and a socket that is connected to the latter. */
typedef struct bench {
    datagrams d;
    int listener, like, silent; /* silent: peers that ended because of silence */
    conc_group group;
} bench;

static int echo(datagram_peer *peer, void *arg)
{
    char data[DATAGRAM_MOST];
    ssize_t n;
    bench *b = arg;
    while ((n = CONC_TRY(datagram_receive(peer, data, sizeof data))) > 0)
        CONC_TRY(datagram_send(peer, data, (size_t)n));
    b->silent++;
    return 0;
}

static int serve(void *arg) { return datagrams_serve(arg); }

static int begin(bench *b, int (*handler)(datagram_peer *, void *))
{
    char address[64];
    b->listener = CONC_TRY(conc_listen("127.0.0.1:0"));
    CONC_TRY(conc_address(b->listener, false, address, sizeof address));
    b->like = CONC_TRY(conc_dial(address));
    b->d.handler = handler;
    b->d.arg = b;
    CONC_TRY(datagrams_open(&b->d, b->listener));
    return conc_spawn(&b->group, serve, &b->d);
}

static void end(bench *b)
{
    conc_group_cancel(&b->group);
    CHECK_INT(conc_group_wait(&b->group), 0);
    CHECK_INT(b->d.count, 0);
    CHECK_INT(datagrams_close(&b->d), 0);
    CHECK_INT(datagrams_close(&b->d), 0);
    conc_close(b->listener);
    conc_close(b->like);
}

static int run_echo(void *arg)
{
    bench b = {.d.silence = 30};
    datagram_client clients[20] = {{0}};
    char data[DATAGRAM_MOST];
    (void)arg;
    CONC_TRY(begin(&b, echo));
    for (int i = 0; i < 20; i++)
        CHECK_INT(datagram_dial(&clients[i], b.like), 0);
    CHECK_INT(b.d.count, 20);
    for (int round = 0; round < 10; round++)
        for (int i = 0; i < 20; i++) {
            size_t size = (size_t)(round == 0 ? DATAGRAM_MOST : 1 + i);
            memset(data, 'a' + i, sizeof data);
            CHECK_INT(datagram_client_send(&clients[i], data, size), 0);
            memset(data, 0, sizeof data);
            CHECK_INT(datagram_client_receive(&clients[i], data, sizeof data), size);
            CHECK_INT(data[size - 1], 'a' + i);
        }
    CHECK_INT(datagram_client_send(&clients[0], data, 0), -EMSGSIZE);
    CHECK_INT(datagram_client_send(&clients[0], data, DATAGRAM_MOST + 1), -EMSGSIZE);
    for (int i = 0; i < 20; i++)
        CHECK_INT(datagram_client_close(&clients[i]), 0);
    end(&b);
    return 0;
}

TEST(each_client_has_its_own_task) { CHECK_INT(conc_run(run_echo, NULL), 0); }

static int run_silent(void *arg)
{
    bench b = {.d.silence = 0.05};
    datagram_client c = {0};
    char data[8];
    (void)arg;
    CONC_TRY(begin(&b, echo));
    CHECK_INT(datagram_dial(&c, b.like), 0);
    while (b.d.count > 0)
        CONC_TRY(conc_sleep(0.01));
    CHECK_INT(b.silent, 1);
    CHECK_INT(datagram_client_send(&c, "lost", 4), 0); /* the server has forgotten it */
    while (b.d.count == 0) { /* the client sends HELLO as soon as it learns that */
        conc_scope s = {0};
        CONC_TRY(conc_scope_begin(&s, 0.02));
        ssize_t n = datagram_client_receive(&c, data, sizeof data);
        CHECK_INT(conc_scope_end(&s, (int)n), -ETIMEDOUT);
    }
    CHECK_INT(datagram_client_send(&c, "back", 4), 0);
    CHECK_INT(datagram_client_receive(&c, data, sizeof data), 4);
    datagram_client_close(&c);
    end(&b);
    return 0;
}

TEST(a_silent_client_is_forgotten_and_comes_back) { CHECK_INT(conc_run(run_silent, NULL), 0); }

/* A socket that has not proven its address. */
static int stranger(const bench *b)
{
    struct sockaddr_storage to = {0};
    socklen_t size = sizeof to;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    CHECK_INT(getpeername(b->like, (struct sockaddr *)&to, &size), 0);
    CHECK_INT(connect(fd, (struct sockaddr *)&to, size), 0);
    return fd;
}

static int run_strangers(void *arg)
{
    bench b = {0};
    unsigned char hello[DATAGRAM__HELLO] = {0, DATAGRAM__IS_HELLO}, first[64], second[64];
    (void)arg;
    CONC_TRY(begin(&b, echo));
    int one = stranger(&b), other = stranger(&b);
    for (int size = 0; size <= DATAGRAM_MOST; size = size * 2 + 1) { /* no answer is longer */
        char data[DATAGRAM_MOST] = "garbage";
        CHECK_INT(conc_send(one, data, (size_t)size, 0), size);
        if (size > 2) {
            ssize_t n = conc_recv(one, first, sizeof first, 0);
            CHECK_INT(n, 2);
            CHECK_INT(first[1], DATAGRAM__IS_FORGOTTEN);
        }
    }
    CHECK_INT(conc_send(one, hello, sizeof hello, 0), sizeof hello);
    CHECK_INT(conc_recv(one, first, sizeof first, 0), 10);
    CHECK_INT(conc_send(other, hello, sizeof hello, 0), sizeof hello);
    CHECK_INT(conc_recv(other, second, sizeof second, 0), 10);
    CHECK(memcmp(first, second, 10) != 0);
    memcpy(hello + 2, first + 2, 8); /* another peer's cookie: it gets its own again */
    CHECK_INT(conc_send(other, hello, sizeof hello, 0), sizeof hello);
    CHECK_INT(conc_recv(other, first, sizeof first, 0), 10);
    CHECK(memcmp(first, second, 10) == 0);
    CHECK_INT(b.d.count, 0);
    memcpy(hello + 2, second + 2, 8);
    for (int i = 0; i < 3; i++) { /* twice counts once */
        CHECK_INT(conc_send(other, hello, sizeof hello, 0), sizeof hello);
        CHECK_INT(conc_recv(other, first, sizeof first, 0), 2);
        CHECK_INT(first[1], DATAGRAM__IS_READY);
        CHECK_INT(b.d.count, 1);
    }
    CHECK(b.d.strange > 5);
    conc_close(one);
    conc_close(other);
    end(&b);
    return 0;
}

TEST(an_address_without_its_cookie_gets_little_and_is_not_a_peer)
{
    CHECK_INT(conc_run(run_strangers, NULL), 0);
}

static int sleep_long(datagram_peer *peer, void *arg)
{
    (void)peer;
    (void)arg;
    return conc_sleep(100);
}

static int run_flood(void *arg)
{
    bench b = {.d.limit = 1};
    datagram_client c = {0}, refused = {0};
    (void)arg;
    CONC_TRY(begin(&b, sleep_long));
    CHECK_INT(datagram_dial(&c, b.like), 0);
    for (int i = 0; i < 50; i++) {
        CHECK_INT(datagram_client_send(&c, "x", 1), 0);
        CONC_TRY(conc_yield());
    }
    while (b.d.lost < 50 - DATAGRAM_QUEUE)
        CONC_TRY(conc_sleep(0.01));
    CHECK_INT(b.d.lost, 50 - DATAGRAM_QUEUE);
    conc_scope s = {0};
    CONC_TRY(conc_scope_begin(&s, 0.1));
    int rc = datagram_dial(&refused, b.like);
    CHECK_INT(conc_scope_end(&s, rc), -ETIMEDOUT);
    datagram_client_close(&refused);
    datagram_client_close(&c);
    end(&b);
    return 0;
}

TEST(a_flood_waits_nowhere_and_the_limit_holds) { CHECK_INT(conc_run(run_flood, NULL), 0); }

static int run_refused(void *arg)
{
    bench b = {0};
    datagrams second = {0};
    datagram_client c = {0};
    char data[8];
    (void)arg;
    CONC_TRY(begin(&b, echo));
    CHECK_INT(datagrams_open(&second, b.listener), -EADDRINUSE);
    CHECK_INT(datagrams_close(&second), 0);
    CHECK_INT(datagram_dial(&c, b.like), 0);
    conc_group_cancel(&b.group);
    CHECK_INT(conc_group_wait(&b.group), 0);
    CHECK_INT(datagrams_close(&b.d), 0);
    CHECK_INT(datagram_client_send(&c, "x", 1), 0);
    CHECK_INT(datagram_client_receive(&c, data, sizeof data), -ECONNREFUSED);
    datagram_client_close(&c);
    conc_close(b.listener);
    conc_close(b.like);
    return 0;
}

TEST(a_port_in_use_and_a_missing_server_are_errors) { CHECK_INT(conc_run(run_refused, NULL), 0); }

TASK_TEST(ticks_do_not_drift_and_a_long_pause_is_skipped)
{
    static ticker_lateness late;
    ticker t = {.interval = 0.05, .late = &late};
    ticker_start(&t, 1);
    for (int i = 0; i < 10; i++) {
        CHECK_INT(ticker_wait(&t), 0);
        CHECK_TIME(1 + 0.05 * i);
        conc_block(0.03);
    }
    conc_block(0.1); /* the next ones are late, and catch up */
    CHECK_INT(ticker_wait(&t), 0);
    CHECK_TIME(1.58);
    for (int i = 0; i < 3; i++)
        CHECK_INT(ticker_wait(&t), 0);
    CHECK_TIME(1.65);
    conc_block(10.02); /* too much: the ticks continue from here */
    CHECK_INT(ticker_wait(&t), 0);
    CHECK_TIME(11.67);
    CHECK_INT(ticker_wait(&t), 0);
    CHECK_TIME(11.72);
    CHECK(t.skipped > 9.9 && t.skipped < 10);
    CHECK_INT(late.ticks, 16);
    CHECK(ticker_percentile(&late, 0.5) < 0.001);
    CHECK(ticker_percentile(&late, 1) >= 1);
    conc_scope s = {0};
    CHECK_INT(conc_scope_begin(&s, 0.01), 0);
    CHECK_INT(ticker_wait(&t), -ECANCELED);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), -ETIMEDOUT);
    CHECK_INT(ticker_wait(&t), 0);
    CHECK_TIME(11.77);
}
