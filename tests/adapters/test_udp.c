/* test_udp.c - udp.h: packets arrive whole, and packets that the kernel drops are counted. */
#define TEST_POOL
#include "../conc_test.h"

#include "udp.h"

static int open_pair(int *to)
{
    char address[64];
    int fd = udp_listen("127.0.0.1:0");
    CHECK(fd >= 0);
    CHECK_INT(conc_address(fd, false, address, sizeof address), 0);
    *to = udp_dial(address);
    CHECK(*to >= 0);
    return fd;
}

TASK_TEST(packets_arrive_whole_followed_by_a_nul)
{
    int to, fd = open_pair(&to);
    char packet[8];
    uint64_t dropped = 0;
    CHECK_INT(conc_send(to, "hello", 5, 0), 5);
    CHECK_INT(conc_send(to, "", 0, 0), 0);
    CHECK_INT(conc_send(to, "too long for it", 15, 0), 15);
    CHECK_INT(udp_receive(fd, packet, sizeof packet, &dropped), 5);
    CHECK_STR(packet, "hello");
    CHECK_INT(udp_receive(fd, packet, sizeof packet, &dropped), 0);
    CHECK_INT(udp_receive(fd, packet, sizeof packet, &dropped), 7);
    CHECK_STR(packet, "too lon");
    CHECK_INT(dropped, 0);
    conc_close(to);
    conc_close(fd);
}

#ifdef SO_RXQ_OVFL
TASK_TEST(dropped_packets_are_counted)
{
    enum { SENT = 3000 };
    int to, fd = open_pair(&to);
    char packet[2000] = "";
    uint64_t dropped = 0, received = 0;
    for (int round = 1; round <= 2; round++) {
        for (int i = 0; i < SENT; i++)
            CHECK_INT(conc_send(to, packet, sizeof packet, 0), (int)sizeof packet);
        CHECK_INT(udp_receive(fd, packet, sizeof packet, &dropped), (int)sizeof packet - 1);
        received++;
        while (recv(fd, packet, sizeof packet, MSG_DONTWAIT) > 0)
            received++;
        CHECK_INT(conc_send(to, "x", 1, 0), 1); /* the count comes with the next packet */
        CHECK_INT(udp_receive(fd, packet, sizeof packet, &dropped), 1);
        received++;
        CHECK(dropped > 0);
        CHECK_INT(received + dropped, round * (SENT + 1));
    }
    conc_close(to);
    conc_close(fd);
}
#endif

static int receive_for_ever(void *fd)
{
    char packet[8];
    uint64_t dropped = 0;
    while (CONC_TRY(udp_receive(*(int *)fd, packet, sizeof packet, &dropped)) >= 0)
        continue;
    return 0;
}

TASK_TEST(a_receiver_can_be_cancelled_while_packets_come)
{
    int to, fd = open_pair(&to);
    for (int i = 0; i < 20; i++)
        conc_send(to, "x", 1, 0);
    CHECK_INT(conc_timeout(0.1, receive_for_ever, &fd), -ETIMEDOUT);
    conc_close(to);
    conc_close(fd);
}

TASK_TEST(errors_have_a_text)
{
    CHECK_INT(udp_listen("nonsense"), -EINVAL);
    CHECK_CONTAINS(conc_last_error(), "\"nonsense\" is no address");
    CHECK_INT(udp_listen(":80"), -EINVAL);
    int to, fd = open_pair(&to);
    char address[64];
    CHECK_INT(conc_address(fd, false, address, sizeof address), 0);
    CHECK_INT(udp_listen(address), -EADDRINUSE);
    CHECK_CONTAINS(conc_last_error(), address);
    conc_close(to);
    conc_close(fd);
    int six = udp_listen("[::1]:0");
    CHECK(six >= 0 || six == -EADDRNOTAVAIL || six == -EAFNOSUPPORT);
    if (six >= 0)
        conc_close(six);
}
