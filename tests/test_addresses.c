/* conc_listen, conc_listen_with, conc_dial and conc_address: addresses of every family, malformed
 * addresses, and leaks when listening or connecting fails.
 *
 * Seeds: 10 (hardly anything depends on the order of tasks)
 * Not under: save-fpu, aarch64-bti (both change only stack switching)
 */
#define _GNU_SOURCE 1 /* getifaddrs, struct tcp_info */
#include "io_test.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <sys/stat.h>
#include <sys/un.h>

/* Does this machine have this address? */
static bool can_bind(int family, const void *address, socklen_t size)
{
    int fd = socket(family, SOCK_STREAM, 0);
    bool can = fd >= 0 && bind(fd, address, size) == 0;
    if (fd >= 0)
        close(fd);
    return can;
}

static bool has_ipv6(void)
{
    struct sockaddr_in6 a = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    return can_bind(AF_INET6, &a, sizeof a);
}

/* The test's own directory, and paths in it. */
static char directory[64];

static void make_directory(void)
{
    snprintf(directory, sizeof directory, "%s/conc_XXXXXX", P_tmpdir);
    CHECK(mkdtemp(directory) != NULL);
}

static const char *path_of(const char *name)
{
    static char paths[4][256];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", directory, name);
    return path;
}

static const char *unix_of(const char *name)
{
    static char texts[4][300];
    static int next;
    char *text = texts[next++ % 4];
    snprintf(text, sizeof texts[0], "unix:%s", path_of(name));
    return text;
}

static void remove_directory(const char *name)
{
    CHECK_INT(unlink(path_of(name)), 0);
    CHECK_INT(rmdir(directory), 0);
}

static bool exists(const char *name)
{
    struct stat st;
    return lstat(path_of(name), &st) == 0;
}

/* Returns conc_address's text, valid for four calls. */
static const char *address_of(int fd, bool peer)
{
    static char texts[4][128];
    static int next;
    char *text = texts[next++ % 4];
    CHECK_INT(conc_address(fd, peer, text, sizeof texts[0]), 0);
    return text;
}

static int listens(const char *address)
{
    int fd = conc_listen(address);
    if (fd < 0)
        test_fail(__FILE__, __LINE__, "conc_listen(\"%s\") returned %d", address, fd);
    return fd;
}

static int dials(const char *address)
{
    int fd = conc_dial(address);
    if (fd < 0)
        test_fail(__FILE__, __LINE__, "conc_dial(\"%s\") returned %d", address, fd);
    return fd;
}

/* Parses "127.0.0.1:8080" into the port 8080; fails if the host is a different one. */
static int port_of(const char *address, const char *host)
{
    char *end = NULL;
    size_t n = strlen(host);
    if (strncmp(address, host, n) != 0 || address[n] != ':')
        test_fail(__FILE__, __LINE__, "\"%s\" is not a port of %s", address, host);
    long port = strtol(address + n + 1, &end, 10);
    CHECK(*end == 0 && end > address + n + 1);
    return (int)port;
}

static const char *with_port(const char *host, int port)
{
    static char text[128];
    snprintf(text, sizeof text, "%s:%d", host, port);
    return text;
}

static int option_of(int fd, int level, int name)
{
    int value = -1;
    socklen_t size = sizeof value;
    CHECK_INT(getsockopt(fd, level, name, &value, &size), 0);
    return value;
}

static void check_conc_s_own(int fd)
{
    CHECK(fcntl(fd, F_GETFL) & O_NONBLOCK);
    CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
}

/* ---- round trips ---- */

/* Listens at `address`, connects, and sends hello both ways; `host` is the resulting address
 * without its port. */
static void talk(const char *address, const char *host)
{
    int l = listens(address);
    const char *where = address_of(l, false);
    CHECK(port_of(where, host) > 0);
    int dialled = dials(where), accepted = conc_accept(l);
    CHECK(accepted >= 0);
    CHECK_STR(address_of(dialled, true), where);
    CHECK_STR(address_of(accepted, false), where);
    CHECK_STR(address_of(accepted, true), address_of(dialled, false));
    CHECK(port_of(address_of(dialled, false), host) > 0);
    check_conc_s_own(l);
    check_conc_s_own(dialled);
    check_conc_s_own(accepted);
    CHECK(option_of(dialled, IPPROTO_TCP, TCP_NODELAY));
    CHECK(option_of(accepted, IPPROTO_TCP, TCP_NODELAY));
    CHECK(option_of(l, SOL_SOCKET, SO_REUSEADDR));
    CHECK_INT(conc_write(dialled, "hello", 5), 5);
    io_expect(accepted, "hello");
    CHECK_INT(conc_write(accepted, "you", 3), 3);
    io_expect(dialled, "you");
    CHECK_INT(conc_close(dialled), 0);
    CHECK_INT(conc_read(accepted, (char[1]){0}, 1), 0);
    CHECK_INT(conc_close(accepted), 0);
    CHECK_INT(conc_close(l), 0);
}

IO_TEST(port_0_chooses_a_free_one_that_can_be_dialled) { talk("127.0.0.1:0", "127.0.0.1"); }

IO_TEST(localhost_is_127_0_0_1) { talk("localhost:0", "127.0.0.1"); }

IO_TEST(ipv6_addresses_are_in_brackets)
{
    if (!has_ipv6())
        return;
    talk("[::1]:0", "[::1]");
    talk("[0:0:0:0:0:0:0:1]:0", "[::1]");
    talk("[0000::0.0.0.1]:0", "[::1]");
}

IO_TEST(localhost_is_also_reached_by_ipv6)
{
    if (!has_ipv6())
        return;
    int l = listens("[::1]:0");
    int fd = dials(with_port("localhost", port_of(address_of(l, false), "[::1]")));
    CHECK_STR(address_of(fd, true), address_of(l, false));
    CHECK_INT(conc_close(fd), 0);
    CHECK_INT(conc_close(l), 0);
}

IO_TEST(all_addresses_of_a_machine_are_listened_on)
{
    int l = listens("0.0.0.0:0"), port = port_of(address_of(l, false), "0.0.0.0");
    CHECK(port > 0);
    int fd = dials(with_port("127.0.0.1", port)), accepted = conc_accept(l);
    CHECK(accepted >= 0);
    CHECK_STR(address_of(accepted, false), address_of(fd, true));
    CHECK_INT(conc_close(fd), 0);
    CHECK_INT(conc_close(accepted), 0);
    CHECK_INT(conc_close(l), 0);
}

IO_TEST(ipv6_is_for_ipv6_only)
{
    int l6 = -1, l4 = -EADDRINUSE, port = 0;
    if (!has_ipv6())
        return;
    for (int tries = 0; l4 == -EADDRINUSE && tries < 100; tries++) { /* other programs use ports */
        if (l6 >= 0)
            CHECK_INT(conc_close(l6), 0);
        l6 = listens("[::]:0");
        port = port_of(address_of(l6, false), "[::]");
        CHECK(option_of(l6, IPPROTO_IPV6, IPV6_V6ONLY));
        l4 = conc_listen(with_port("0.0.0.0", port));
    }
    CHECK(l4 >= 0);
    CHECK_INT(conc_close(l4), 0);
    CHECK_INT(conc_dial(with_port("127.0.0.1", port)), -ECONNREFUSED);
    CHECK_INT(conc_close(l6), 0);
}

/* Finds an address that needs a zone, "fe80::1%eth0", and adds brackets; returns false if there is
 * none. */
static bool find_link_local(char *host, size_t size)
{
    struct ifaddrs *all = NULL;
    bool found = false;
    if (getifaddrs(&all))
        return false;
    for (struct ifaddrs *a = all; a && !found; a = a->ifa_next) {
        struct sockaddr_in6 six;
        char text[INET6_ADDRSTRLEN];
        if (!a->ifa_addr || a->ifa_addr->sa_family != AF_INET6)
            continue;
        memcpy(&six, a->ifa_addr, sizeof six);
        found = IN6_IS_ADDR_LINKLOCAL(&six.sin6_addr) && can_bind(AF_INET6, &six, sizeof six) &&
                inet_ntop(AF_INET6, &six.sin6_addr, text, sizeof text);
        if (found)
            snprintf(host, size, "[%s%%%s]", text, a->ifa_name);
    }
    freeifaddrs(all);
    return found;
}

IO_TEST(a_link_local_address_has_its_zone)
{
    char host[96], text[112];
    if (!find_link_local(host, sizeof host))
        return;
    snprintf(text, sizeof text, "%s:0", host);
    talk(text, host);
    unsigned zone = if_nametoindex(strtok(strchr(host, '%') + 1, "]"));
    *strchr(host, '%') = 0;
    snprintf(text, sizeof text, "%s%%%u]:0", host, zone); /* by its number */
    int l = listens(text);
    CHECK_INT(conc_close(l), 0);
}

/* ---- Unix sockets ---- */

/* The same as `talk` for addresses without a port; the client's socket has no name. */
static void talk_unix(const char *address)
{
    int l = listens(address), dialled = dials(address), accepted = conc_accept(l);
    CHECK(accepted >= 0);
    CHECK_STR(address_of(l, false), address);
    CHECK_STR(address_of(dialled, true), address);
    CHECK_STR(address_of(accepted, false), address);
    CHECK_INT(strncmp(address_of(dialled, false), "unix:", 5), 0);
    check_conc_s_own(l);
    check_conc_s_own(dialled);
    check_conc_s_own(accepted);
    CHECK_INT(conc_write(dialled, "hello", 5), 5);
    io_expect(accepted, "hello");
    CHECK_INT(conc_close(dialled), 0);
    CHECK_INT(conc_close(accepted), 0);
    CHECK_INT(conc_close(l), 0);
}

IO_TEST(a_unix_socket_has_a_path)
{
    make_directory();
    talk_unix(unix_of("socket"));
    talk_unix(unix_of("socket")); /* the last socket's file still exists */
    remove_directory("socket");
}

IO_TEST(the_path_of_a_unix_socket_may_have_107_bytes_and_colons)
{
    char name[108];
    make_directory();
    memset(name, 'x', sizeof name);
    name[107 - strlen(path_of(""))] = 0;
    memcpy(name, "a:80:[@]", 8);
    CHECK_INT(strlen(path_of(name)), 107);
    talk_unix(unix_of(name));
    remove_directory(name);
}

#ifdef __linux__

/* The kernel accepts a path without room for its NUL, and abstract names have none. */
IO_TEST(a_path_or_an_abstract_name_may_have_the_maximum_length)
{
    char name[130], file[112];
    make_directory();
    memset(file, 'x', sizeof file);
    file[108 - strlen(path_of(""))] = 0;
    CHECK_INT(strlen(path_of(file)), 108);
    talk_unix(unix_of(file));
    talk_unix(unix_of(file));
    int l = listens(unix_of(file));
    CHECK_INT(conc_listen(unix_of(file)), -EADDRINUSE);
    CHECK_INT(conc_close(l), 0);
    for (int i = 106; i <= 107; i++) {
        snprintf(name, sizeof name, "unix:@%0*d", i, (int)getpid());
        talk_unix(name);
    }
    strcat(name, "x");
    CHECK_INT(conc_listen(name), -EINVAL);
    CHECK_INT(conc_dial(name), -EINVAL);
    strcat(file, "x");
    CHECK_INT(conc_listen(unix_of(file)), -EINVAL);
    file[strlen(file) - 1] = 0;
    remove_directory(file);
}

#endif

IO_TEST(a_path_that_is_too_long_is_refused)
{
    static char text[100000];
    snprintf(text, sizeof text, "unix:/%0200d", 0);
    for (int i = 0; i < 2; i++) {
        int rc = conc_listen(text);
        CHECK(rc == -EINVAL || rc == -ENAMETOOLONG);
        CHECK_INT(conc_dial(text), rc);
        memset(text + 5, 'x', sizeof text - 6);
    }
}

#ifdef __linux__

IO_TEST(an_abstract_name_leaves_no_file)
{
    char name[64];
    snprintf(name, sizeof name, "unix:@conc test %d", (int)getpid());
    for (int i = 0; i < 2; i++) {
        talk_unix(name);
        int l = listens(name);
        CHECK_INT(conc_listen(name), -EADDRINUSE);
        CHECK_INT(conc_close(l), 0);
        CHECK_INT(conc_dial(name), -ECONNREFUSED);
    }
}

#endif

IO_TEST(a_socket_file_without_a_listener_is_replaced)
{
    make_directory();
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    snprintf(a.sun_path, sizeof a.sun_path, "%s", path_of("stale"));
    int stale = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK_INT(bind(stale, (struct sockaddr *)&a, sizeof a), 0);
    CHECK_INT(close(stale), 0);
    CHECK(exists("stale"));
    CHECK_INT(conc_dial(unix_of("stale")), -ECONNREFUSED);
    talk_unix(unix_of("stale"));
    remove_directory("stale");
}

/* Connects until a peer greets: a refused listen may have connected before. */
static void check_alive(int l, const char *address)
{
    int fd = dials(address);
    char c = 0;
    CHECK_INT(conc_write(fd, "!", 1), 1);
    while (c != '!') {
        int accepted = conc_accept(l);
        CHECK(accepted >= 0);
        CHECK(conc_read(accepted, &c, 1) >= 0);
        CHECK_INT(conc_close(accepted), 0);
    }
    CHECK_INT(conc_close(fd), 0);
}

IO_TEST(a_socket_file_with_a_listener_is_not_replaced)
{
    make_directory();
    const char *address = unix_of("busy");
    int l = listens(address);
    for (int i = 0; i < 3; i++) {
        CHECK_INT(conc_listen(address), -EADDRINUSE);
        CHECK(exists("busy"));
        check_alive(l, address);
    }
    CHECK_INT(conc_close(l), 0);
    remove_directory("busy");
}

static int dials_and_closes(void *address)
{
    int fd = conc_dial(address);
    return fd < 0 ? fd : conc_close(fd);
}

IO_TEST(a_socket_file_whose_backlog_is_full_is_not_replaced_either)
{
    make_directory();
    char *address = (char *)(uintptr_t)unix_of("full");
    conc_listen_options one = {.backlog = 1};
    int l = conc_listen_with(address, &one), rc = 0;
    CHECK(l >= 0);
    for (int i = 0; i < 10 && rc == 0; i++)
        rc = conc_timeout(1, dials_and_closes, address);
    CHECK_INT(rc, -ETIMEDOUT);
    CHECK_INT(conc_listen(address), -EADDRINUSE);
    CHECK(exists("full"));
    CHECK_INT(conc_close(l), 0);
    remove_directory("full");
}

IO_TEST(a_file_that_is_not_a_socket_is_not_replaced)
{
    make_directory();
    int file = open(path_of("file"), O_CREAT | O_WRONLY, 0600);
    CHECK(file >= 0);
    CHECK_INT(write(file, "dear", 4), 4);
    CHECK_INT(close(file), 0);
    CHECK_INT(conc_listen(unix_of("file")), -EADDRINUSE);
    CHECK_INT(conc_listen(unix_of("")), -EADDRINUSE);
    CHECK_INT(conc_listen(unix_of("none/socket")), -ENOENT);
    struct stat st;
    CHECK_INT(stat(path_of("file"), &st), 0);
    CHECK(S_ISREG(st.st_mode));
    CHECK_INT(st.st_size, 4);
    CHECK_INT(conc_dial(unix_of("file")), -ECONNREFUSED);
    CHECK_INT(conc_dial(unix_of("none")), -ENOENT);
    remove_directory("file");
}

IO_TEST(a_socket_of_another_type_is_not_replaced_while_it_is_open)
{
    make_directory();
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    snprintf(a.sun_path, sizeof a.sun_path, "%s", path_of("datagrams"));
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    CHECK_INT(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
    CHECK_INT(conc_listen(unix_of("datagrams")), -EADDRINUSE);
    CHECK(exists("datagrams"));
    CHECK_INT(close(fd), 0);
    talk_unix(unix_of("datagrams"));
    remove_directory("datagrams");
}

/* ---- malformed addresses ---- */

static const char *const malformed[] = {
    "",
    ":",
    "::",
    "80",
    "localhost",
    "localhost:",
    "127.0.0.1",
    "127.0.0.1:",
    ":80",
    "127.0.0.1:http",
    "127.0.0.1:-1",
    "127.0.0.1:+80",
    "127.0.0.1: 80",
    "127.0.0.1:80 ",
    "127.0.0.1:80\n",
    " 127.0.0.1:80",
    "127.0.0.1:8 0",
    "127.0.0.1:80x",
    "127.0.0.1:0x50",
    "127.0.0.1:80.0",
    "127.0.0.1:65536",
    "127.0.0.1:99999",
    "127.0.0.1:4294967376",
    "127.0.0.1:18446744073709551696",
    "127.0.0.1:80:90",
    "127.0.0.1/80",
    "tcp:127.0.0.1:80",
    "http://127.0.0.1:80",
    "[::1]",
    "[::1]80",
    "[::1]:",
    "[::1]:x",
    "[::1]:65536",
    "[::1]:80x",
    "[::1]x:80",
    "x[::1]:80",
    "[::1:80",
    "::1]:80",
    "::1:80",
    "[]:80",
    "[:]:80",
    "[:::]:80",
    "[:::1]:80",
    "[1::2::3]:80",
    "[1:2:3:4:5:6:7:8:9]:80",
    "[12345::1]:80",
    "[g::1]:80",
    "[127.0.0.1]:80",
    "[localhost]:80",
    "[[::1]]:80",
    "[ ::1]:80",
    "[::1%]:80",
    "[%lo]:80",
    "[fe80::1%no such zone]:80",
    "[fe80::1%0]:80",
    "[fe80::1%1x]:80",
    "[fe80::1%-1]:80",
    "[fe80::1%4294967296]:80",
    "[fe80::1%4294967297]:80",
    "[fe80::1%1000000000001]:80",
    "[fe80::1%18446744073709551617]:80",
    "[fe80::1%00000000000000000000000000]:80",
    "unix:",
    "unix:@",
    "unix",
    "unix/x",
    "UNIX:/x",
};

IO_TEST(a_malformed_address_is_refused)
{
    for (size_t i = 0; i < CONC_LEN(malformed); i++) {
        int fds = test_count_fds(), rc = conc_listen(malformed[i]);
        if (rc != -EINVAL)
            test_fail(__FILE__, __LINE__, "conc_listen(\"%s\") returned %d", malformed[i], rc);
        rc = conc_dial(malformed[i]);
        if (rc != -EINVAL)
            test_fail(__FILE__, __LINE__, "conc_dial(\"%s\") returned %d", malformed[i], rc);
        CHECK_INT(test_count_fds(), fds);
    }
    CHECK_INT(conc_listen(NULL), -EINVAL);
    CHECK_INT(conc_listen_with(NULL, &(conc_listen_options){.backlog = 1}), -EINVAL);
    CHECK_INT(conc_dial(NULL), -EINVAL);
}

/* It must not matter whether a name or a number is malformed. */
static const char *const doubtful[] = {
    "256.0.0.1:80",  "1.2.3:80", "127.0.0.1.:80", "0x7f.1:80",       "a b:80", "127.0.0.1 :80",
    "local host:80", "-:80",     ".:80",          "example..com:80", "*:80",   "ex[ample:80"};

static void check_no_address(const char *text)
{
    int rc = conc_listen(text);
    if (rc != -EINVAL && rc != -EADDRNOTAVAIL)
        test_fail(__FILE__, __LINE__, "conc_listen(\"%.99s\") returned %d", text, rc);
    CHECK_INT(conc_dial(text), rc);
}

IO_TEST(a_doubtful_address_is_refused_too)
{
    static char text[100000];
    for (size_t i = 0; i < CONC_LEN(doubtful); i++)
        check_no_address(doubtful[i]);
    static const char *const formats[] = {"%0*d:80", "127.0.0.1:8%0*d", "[%0*d]:80", "[::%0*d]:80",
                                          "[fe80::1%%%0*d]:80"};
    for (size_t i = 0; i < CONC_LEN(formats); i++)
        for (int length = 1; length < 90000; length = length * 5 / 3 + 7) {
            if (length == 1 && i == 1) /* port 80 */
                continue;
            char format[64];
            snprintf(format, sizeof format, "%s", formats[i]);
            snprintf(text, sizeof text, format, length, 0);
            if (!(length < 5 && i == 3) && !(length < 60 && i == 4) && !(i == 0))
                check_no_address(text);
        }
}

IO_TEST(another_host_name_is_not_known)
{
    static const char *const names[] = {"example.com:80", "localhost.example:80", "www:80",
                                        "xn--bcher-kva.example:8080"};
    for (size_t i = 0; i < CONC_LEN(names); i++) {
        CHECK_INT(conc_listen(names[i]), -EADDRNOTAVAIL);
        CHECK_INT(conc_dial(names[i]), -EADDRNOTAVAIL);
    }
}

/* ---- querying addresses ---- */

IO_TEST(an_address_needs_its_length_and_not_a_byte_more)
{
    char buf[128];
    int l = listens("127.0.0.1:0");
    size_t n = strlen(address_of(l, false));
    for (size_t size = 0; size <= n; size++) {
        memset(buf, '#', sizeof buf);
        CHECK_INT(conc_address(l, false, buf, size), -ENOSPC);
        for (size_t i = size; i < sizeof buf; i++)
            CHECK_INT(buf[i], '#');
    }
    memset(buf, '#', sizeof buf);
    CHECK_INT(conc_address(l, false, buf, n + 1), 0);
    CHECK_INT(buf[n], 0);
    CHECK_INT(buf[n + 1], '#');
    CHECK_INT(conc_close(l), 0);
}

IO_TEST(only_a_socket_has_an_address_and_only_a_connected_one_a_peer)
{
    char buf[120];
    int p[2], l = listens("127.0.0.1:0"), fd = socket(AF_INET, SOCK_STREAM, 0);
    io_open(IO_PIPE, p);
    errno = 77;
    CHECK_INT(conc_address(p[0], false, buf, sizeof buf), -ENOTSOCK);
    CHECK_INT(conc_address(p[0], true, buf, sizeof buf), -ENOTSOCK);
    CHECK_INT(conc_address(l, true, buf, sizeof buf), -ENOTCONN);
    CHECK_INT(conc_address(fd, true, buf, sizeof buf), -ENOTCONN);
    CHECK_INT(conc_address(-1, false, buf, sizeof buf), -EBADF);
    CHECK_INT(conc_address(l, false, NULL, sizeof buf), -EINVAL);
    CHECK_INT(conc_address(fd, false, buf, sizeof buf), 0);
    CHECK_STR(buf, "0.0.0.0:0");
    CHECK_INT(errno, 77);
    CHECK_INT(conc_close(l), 0);
    CHECK_INT(conc_close(fd), 0);
    io_close(p);
}

IO_TEST(a_pair_of_sockets_has_no_name)
{
    int s[2];
    io_open(IO_SOCKET, s);
    CHECK_INT(strncmp(address_of(s[0], false), "unix:", 5), 0);
    CHECK_INT(strncmp(address_of(s[0], true), "unix:", 5), 0);
    io_close(s);
}

TEST(outside_a_run_an_address_can_be_queried_and_nothing_opened)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK_STR(address_of(fd, false), "0.0.0.0:0");
    CHECK_INT(conc_listen("127.0.0.1:0"), -EPERM);
    CHECK_INT(conc_listen_with("127.0.0.1:0", NULL), -EPERM);
    CHECK_INT(conc_dial(address_of(fd, false)), -EPERM);
    CHECK_INT(close(fd), 0);
}

static int posted_listener;

static void listens_posted(void *arg)
{
    posted_listener = conc_listen(arg);
    CHECK(posted_listener >= 0);
    CHECK(port_of(address_of(posted_listener, false), "127.0.0.1") > 0);
    CHECK_INT(conc_dial(address_of(posted_listener, false)), -EPERM);
}

IO_TEST(a_posted_function_may_listen)
{
    CHECK_INT(conc_post(conc_loop_self(), listens_posted, (char[]){"127.0.0.1:0"}), 0);
    CHECK_INT(conc_settle(), 0);
    int fd = dials(address_of(posted_listener, false)), accepted = conc_accept(posted_listener);
    CHECK(accepted >= 0);
    CHECK_INT(conc_close(fd), 0);
    CHECK_INT(conc_close(accepted), 0);
    CHECK_INT(conc_close(posted_listener), 0);
}

/* ---- listening ---- */

IO_TEST(a_port_in_use_is_refused_and_nothing_stays_open)
{
    int l = listens("127.0.0.1:0");
    for (int i = 0; i < 3; i++)
        CHECK_INT(conc_listen(address_of(l, false)), -EADDRINUSE);
    CHECK_INT(conc_listen("192.0.2.1:0"), -EADDRNOTAVAIL); /* an address of another machine */
    CHECK_INT(conc_close(l), 0);
}

IO_TEST(an_address_may_be_used_again_at_once)
{
    char where[128];
    int l = listens("127.0.0.1:0");
    snprintf(where, sizeof where, "%s", address_of(l, false));
    for (int i = 0; i < 3; i++) {
        int fd = dials(where), accepted = conc_accept(l);
        /* the side that closes first leaves the address in TIME_WAIT */
        CHECK_INT(conc_close(accepted), 0);
        CHECK_INT(conc_read(fd, (char[1]){0}, 1), 0);
        CHECK_INT(conc_close(fd), 0);
        CHECK_INT(conc_close(l), 0);
        l = listens(where);
    }
    CHECK_INT(conc_close(l), 0);
}

#ifdef SO_REUSEPORT

IO_TEST(with_reuse_port_several_sockets_share_the_port)
{
    char where[128];
    conc_listen_options shared = {.reuse_port = true};
    int a = conc_listen_with("127.0.0.1:0", &shared);
    CHECK(a >= 0);
    CHECK(option_of(a, SOL_SOCKET, SO_REUSEPORT));
    snprintf(where, sizeof where, "%s", address_of(a, false));
    int b = conc_listen_with(where, &shared);
    CHECK(b >= 0);
    CHECK_INT(conc_listen(where), -EADDRINUSE);
    CHECK_INT(conc_listen_with(where, &(conc_listen_options){.backlog = 5}), -EADDRINUSE);
    CHECK_INT(conc_close(a), 0);
    int fd = dials(where), accepted = conc_accept(b);
    CHECK(accepted >= 0);
    CHECK_INT(conc_close(fd), 0);
    CHECK_INT(conc_close(accepted), 0);
    CHECK_INT(conc_close(b), 0);
}

#endif

#ifdef __linux__

/* For a listening socket the kernel reports the backlog in the field that counts a connection's
 * lost packets. */
static void check_backlog(const char *address, const conc_listen_options *o, unsigned expected)
{
    struct tcp_info info;
    socklen_t size = sizeof info;
    int l = conc_listen_with(address, o);
    CHECK(l >= 0);
    memset(&info, 0, sizeof info);
    /* emulators report less */
    bool told = getsockopt(l, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 &&
                size >= offsetof(struct tcp_info, tcpi_sacked) + sizeof info.tcpi_sacked;
    if (told && expected)
        CHECK_INT(info.tcpi_sacked, expected);
    CHECK_INT(conc_close(l), 0);
}

static unsigned system_s_backlog(void)
{
    unsigned n = 0;
    FILE *f = fopen("/proc/sys/net/core/somaxconn", "r");
    if (f && fscanf(f, "%u", &n) != 1)
        n = 0;
    if (f)
        fclose(f);
    return n;
}

IO_TEST(the_backlog_is_as_requested_or_the_systems_maximum)
{
    check_backlog("127.0.0.1:0", &(conc_listen_options){.backlog = 7}, 7);
    check_backlog("127.0.0.1:0", &(conc_listen_options){.backlog = 0}, system_s_backlog());
    check_backlog("127.0.0.1:0", NULL, system_s_backlog());
}

#endif

/* ---- connecting ---- */

IO_TEST(a_refused_connection_leaves_nothing_open)
{
    char where[128];
    int l = listens("127.0.0.1:0"), fds = test_count_fds();
    snprintf(where, sizeof where, "%s", address_of(l, false));
    CHECK_INT(conc_close(l), 0);
    for (int i = 0; i < 5; i++) {
        CHECK_INT(conc_dial(where), -ECONNREFUSED);
        CHECK_INT(test_count_fds(), fds - 1);
    }
    CHECK(conc_dial("127.0.0.1:0") < 0);
    CHECK_INT(conc_dial(with_port("localhost", port_of(where, "127.0.0.1"))), -ECONNREFUSED);
    CHECK_INT(test_count_fds(), fds - 1);
}

/* Returns a port where a connection hangs in the middle of the handshake, because the backlog of
 * one is full. */
typedef struct full_port {
    int l, clients[8], count;
    char where[128];
} full_port;

static void open_full_port(full_port *p)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof a;
    p->count = 0;
    p->l = socket(AF_INET, SOCK_STREAM, 0);
    CHECK_INT(bind(p->l, (struct sockaddr *)&a, size), 0);
    CHECK_INT(listen(p->l, 0), 0);
    CHECK_INT(getsockname(p->l, (struct sockaddr *)&a, &size), 0);
    snprintf(p->where, sizeof p->where, "%s", address_of(p->l, false));
    for (int i = 0; i < 8; i++) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        CHECK(fd >= 0);
        (void)connect(fd, (struct sockaddr *)&a, size);
        p->clients[p->count++] = fd;
    }
}

static void close_full_port(full_port *p)
{
    for (int i = 0; i < p->count; i++)
        CHECK_INT(close(p->clients[i]), 0);
    CHECK_INT(conc_close(p->l), 0);
}

IO_TEST(a_connection_that_hangs_can_be_timed_out_and_leaves_nothing_open)
{
    full_port p;
    open_full_port(&p);
    int fds = test_count_fds();
    for (int i = 1; i <= 3; i++) {
        CHECK_INT(conc_timeout(0.5, dials_and_closes, p.where), -ETIMEDOUT);
        CHECK_TIME(0.5 * i);
        CHECK_INT(test_count_fds(), fds);
    }
    close_full_port(&p);
}

IO_TEST(localhost_is_dialled_at_its_second_address_when_the_first_does_not_answer)
{
    full_port p;
    open_full_port(&p);
    int port = port_of(p.where, "127.0.0.1"), l = conc_listen(with_port("[::1]", port));
    if (l >= 0) { /* IPv6 works, and the port is free */
        int fds = test_count_fds(), fd = dials(with_port("localhost", port));
        CHECK_TIME(0.25);
        CHECK_STR(address_of(fd, true), with_port("[::1]", port));
        CHECK_INT(test_count_fds(), fds + 1);
        CHECK_INT(conc_close(fd), 0);
        CHECK_INT(conc_close(l), 0);
    }
    close_full_port(&p);
}

/* ---- error texts ---- */

static void check_words(int rc, int expected, const char *about, const char *words)
{
    CHECK_INT(rc, expected);
    CHECK_CONTAINS(conc_last_error(), about);
    CHECK_CONTAINS(conc_last_error(), words);
}

IO_TEST(an_error_names_the_address_and_has_the_systems_text)
{
    int l = listens("127.0.0.1:0");
    const char *where = address_of(l, false);
    check_words(conc_listen(where), -EADDRINUSE, where, strerror(EADDRINUSE));
    CHECK_INT(conc_close(l), 0);
    check_words(conc_dial(where), -ECONNREFUSED, where, strerror(ECONNREFUSED));
    check_words(conc_dial("unix:/nowhere/x"), -ENOENT, "unix:/nowhere/x", strerror(ENOENT));
    check_words(conc_listen("unix:/nowhere/x"), -ENOENT, "unix:/nowhere/x", strerror(ENOENT));
    check_words(conc_dial("127.0.0.1"), -EINVAL, "127.0.0.1", "malformed");
    check_words(conc_listen("127.0.0.1:x"), -EINVAL, "127.0.0.1:x", "malformed");
    check_words(conc_dial("[fe80::1%nope]:80"), -EINVAL, "[fe80::1%nope]:80", "malformed");
}

typedef struct dialler {
    const char *address;
    int fd;
} dialler;

static int dials_it(void *arg)
{
    dialler *d = arg;
    d->fd = conc_dial(d->address);
    return 0;
}

IO_TEST(a_connection_that_hangs_can_be_cancelled_and_leaves_nothing_open)
{
    full_port p;
    open_full_port(&p);
    int fds = test_count_fds();
    for (int settled = 0; settled < 2; settled++) {
        conc_group g = {0};
        conc_task task;
        dialler d = {p.where, 77};
        CHECK_INT(conc_spawn_task(&g, &task, dials_it, &d), 0);
        CHECK_INT(settled ? conc_settle() : conc_yield(), 0);
        CHECK_INT(conc_cancel(&task), 0);
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(d.fd, -ECANCELED);
        CHECK_INT(test_count_fds(), fds);
    }
    close_full_port(&p);
}

/* ST-12: {dial; some turns; cancel} ends in a connection or in nothing. */
static void race_dial(const char *where, int turns)
{
    conc_group g = {0};
    conc_task task;
    int fds = test_count_fds();
    dialler d = {where, 77};
    CHECK_INT(conc_spawn_task(&g, &task, dials_it, &d), 0);
    for (int i = 0; i < turns; i++)
        CHECK_INT(conc_yield(), 0);
    (void)conc_cancel(&task);
    CHECK_INT(conc_group_wait(&g), 0);
    if (d.fd >= 0)
        CHECK_INT(conc_close(d.fd), 0);
    else
        CHECK_INT(d.fd, -ECANCELED);
    CHECK_INT(test_count_fds(), fds);
}

IO_TEST(a_dial_that_is_cancelled_at_once_made_a_connection_or_nothing)
{
    make_directory();
    int tcp = listens("127.0.0.1:0"), local = listens(unix_of("socket"));
    for (int turns = 0; turns < 6; turns++) {
        race_dial(address_of(tcp, false), turns);
        race_dial(address_of(local, false), turns);
    }
    for (int i = 0; i < 2; i++) { /* a retry works */
        int fd = dials(address_of(i ? tcp : local, false));
        CHECK_INT(conc_close(fd), 0);
        CHECK_INT(conc_close(i ? tcp : local), 0);
    }
    remove_directory("socket");
}

static int dials_in_a_cancelled_scope(void *address) { return conc_dial(address); }

IO_TEST(in_a_cancelled_scope_no_address_is_dialled)
{
    conc_scope s = {0};
    int l = listens("127.0.0.1:0");
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    conc_scope_cancel(&s);
    char *where = (char *)(uintptr_t)address_of(l, false);
    CHECK_INT(dials_in_a_cancelled_scope(where), -ECANCELED);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), 0);
    CHECK_INT(accept(l, NULL, NULL), -1);
    CHECK_INT(conc_close(l), 0);
}

/* With a full backlog connect(2) on a Unix socket fails with EAGAIN, and poll cannot tell when
 * there is room. */
REAL_IO_TEST(a_dial_waits_for_room_in_the_backlog_of_a_unix_socket)
{
    make_directory();
    char *address = (char *)(uintptr_t)unix_of("socket");
    conc_group g = {0};
    dialler d[6];
    int l = conc_listen_with(address, &(conc_listen_options){.backlog = 1});
    CHECK(l >= 0);
    for (int i = 0; i < 6; i++) {
        d[i] = (dialler){address, 77};
        CHECK_INT(conc_spawn(&g, dials_it, &d[i]), 0);
    }
    CHECK_INT(conc_settle(), 0);
    int waiting = 0;
    for (int i = 0; i < 6; i++)
        waiting += d[i].fd == 77;
    CHECK(waiting >= 3);
    for (int i = 0; i < 6; i++) {
        int fd = conc_accept(l);
        CHECK(fd >= 0);
        CHECK_INT(conc_close(fd), 0);
    }
    CHECK_INT(conc_group_wait(&g), 0);
    for (int i = 0; i < 6; i++)
        CHECK_INT(conc_close(d[i].fd), 0);
    CHECK_INT(conc_close(l), 0);
    remove_directory("socket");
}

/* ---- small stacks ---- */

typedef struct small_client {
    const char *address;
    int rc;
} small_client;

static int opens_and_closes(void *arg)
{
    small_client *c = arg;
    static char where[128];
    int l = conc_listen(c->address);
    c->rc = conc_address(l, false, where, sizeof where);
    int dialled = conc_dial(where), accepted = conc_accept(l);
    if (dialled < 0 || accepted < 0)
        c->rc = -EPROTO;
    c->rc |= conc_close(dialled) | conc_close(accepted) | conc_close(l);
    return 0;
}

IO_TEST(a_task_with_the_smallest_stack_listens_and_dials)
{
    conc_group g = {.stack_size = IO_SMALLEST_STACK};
    small_client c = {"127.0.0.1:0", 77};
    CHECK_INT(conc_spawn(&g, opens_and_closes, &c), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(c.rc, 0);
}

/* ---- errno ---- */

IO_TEST(errno_is_preserved_whether_an_address_works_or_not)
{
    static const char *const texts[] = {"[fe80::1%nope]:80", "[fe80::1%lo]:0", "nope",
                                        "1.2.3:4",           "127.0.0.1:1",    "localhost:1",
                                        "unix:/nope/x",      "127.0.0.1:0",    "unix:"};
    char room[128];
    for (size_t i = 0; i < CONC_LEN(texts); i++) {
        errno = 77;
        int dialled = conc_dial(texts[i]);
        CHECK_INT(errno, 77);
        int l = conc_listen(texts[i]);
        CHECK_INT(errno, 77);
        (void)conc_address(l, false, room, sizeof room);
        (void)conc_address(l, true, room, sizeof room);
        CHECK_INT(errno, 77);
        (void)conc_close(dialled);
        (void)conc_close(l);
        CHECK_INT(errno, 77);
    }
}
