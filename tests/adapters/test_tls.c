/* test_tls.c - examples/common/tls.h: handshakes that must succeed or fail, with itself and with
 * openssl s_server, openssl s_client and curl; both directions at once; cancels and limits in each
 * call that waits; peers that hang, lie, flood and disappear.
 *
 * Needs -lssl
 * Needs -lcrypto
 */
#define TEST_SYNC
#define TEST_POOL
#include "server.h"
#include "tls.h"

#include <sys/resource.h>

enum { BIG = 300000 };

static char pattern[BIG];

/* ---- certificates ---- */

static char folder[] = "/tmp/conc-tls-XXXXXX";
static pid_t folder_owner;

static const char make_certificates[] =
    "set -e; cd \"$0\"; exec 2>log\n"
    "new_key() { openssl ecparam -genkey -name prime256v1 -noout -out $1; }\n"
    "root() { openssl req -x509 -key $2 -subj /CN=$1 -addext subjectAltName=$3 -days 2 -out "
    "$1.pem; }\n"
    "leaf() {\n" /* name, alternative name, days, CA, its key */
    "  openssl req -new -key key.pem -subj /CN=$1 -addext subjectAltName=$2 -out request\n"
    "  openssl x509 -req -in request -CA $4.pem -CAkey $5 -days $3 -copy_extensions copy -out "
    "$1.pem\n"
    "}\n"
    "new_key key.pem; new_key ca.key; new_key other.key\n"
    "root ca ca.key DNS:ca; root other other.key DNS:other; root self key.pem DNS:localhost\n"
    "leaf server DNS:localhost,IP:127.0.0.1 2 ca ca.key\n"
    "leaf expired DNS:localhost -1 ca ca.key\n"
    "leaf elsewhere DNS:example.org 2 ca ca.key\n"
    "leaf wild DNS:*.example.org,DNS:w*.example.net 2 ca ca.key\n"
    "leaf alice DNS:alice 2 ca ca.key\n"
    "leaf mallory DNS:mallory 2 other other.key\n"
    "cat server.pem >long.pem; for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 "
    "23\n"
    "do cat ca.pem >>long.pem; done\n"
    "openssl ec -in key.pem -aes128 -passout pass:secret -out locked.key\n"
    "echo this is no certificate >garbage.pem\n";

__attribute__((constructor)) static void set_up(void)
{
    for (size_t i = 0; i < BIG; i++)
        pattern[i] = (char)('a' + (i * 2654435761u >> 16) % 26);
    if (!mkdtemp(folder))
        abort();
    folder_owner = getpid();
    pid_t child = fork();
    int status = -1;
    if (child == 0) {
        execlp("sh", "sh", "-c", make_certificates, folder, (char *)NULL);
        _exit(127);
    }
    if (child < 0 || waitpid(child, &status, 0) != child || status) {
        fprintf(stderr, "the certificates could not be made: %s/log\n", folder);
        abort();
    }
}

__attribute__((destructor)) static void clean_up(void)
{
    char command[64];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    if (folder_owner == getpid() && system(command))
        perror(command);
}

static const char *path(const char *name)
{
    static char room[16][64];
    static int next;
    char *text = room[next++ % 16];
    snprintf(text, sizeof room[0], "%s/%s", folder, name);
    return text;
}

/* ---- runs ----
 *
 * TLS_TEST runs on the virtual clock, REAL_TEST against other programs. Neither leaves a descriptor
 * behind, and CONC_DEBUG=1 reports steps that hold the loop for more than 10 ms. */

static void run_checked(void (*body)(void), bool virtual_clock)
{
    conc_options options = {.virtual_clock = virtual_clock, .slow_step = 0.01};
    test_task t = {body};
    int before = test_count_fds();
    CHECK_INT(conc_run_with(&options, test_call_body, &t), 0);
    CHECK_INT(test_count_fds(), before);
}

#define RUN_TEST(name, virtual_clock)                     \
    static void in_##name(void);                          \
    TEST(name) { run_checked(in_##name, virtual_clock); } \
    static void in_##name(void)
#define TLS_TEST(name) RUN_TEST(name, true)
#define REAL_TEST(name) RUN_TEST(name, false)

static tls_context client_context(void)
{
    tls_context c = {.ca_file = path("ca.pem")};
    CHECK_INT(tls_context_open_client(&c), 0);
    return c;
}

static void open_server_context(tls_context *c, const char *certificate)
{
    c->certificate_file = path(certificate);
    c->key_file = path("key.pem");
    CHECK_INT(tls_context_open_server(c), 0);
    CHECK_STR(c->error, "");
}

/* ---- two ends of one connection ---- */

typedef struct pair {
    tls_context contexts[2]; /* to open, if they are not open: client, server */
    const char *certificate; /* the server's; NULL: server.pem */
    const char *host;        /* NULL: localhost */
    int fds[2];
    conc_stream plain; /* the client's */
    tls_connection client, server;
    int client_rc, server_rc;
    bool client_done;
} pair;

static int open_client(void *arg)
{
    pair *p = arg;
    CHECK_INT(conc_stream_open(&p->plain, p->fds[0]), 0);
    p->client_rc =
        tls_upgrade(&p->client, &p->contexts[0], &p->plain, p->host ? p->host : "localhost");
    p->client_done = true;
    if (p->client_rc)
        conc_stream_close(&p->plain);
    return 0;
}

static int open_server(void *arg)
{
    pair *p = arg;
    p->server_rc = tls_accept(&p->server, &p->contexts[1], p->fds[1]);
    return 0;
}

static void prepare_pair(pair *p)
{
    if (!p->contexts[0].ssl_context && !p->contexts[0].ca_file)
        p->contexts[0].ca_file = path("ca.pem");
    if (!p->contexts[0].ssl_context)
        CHECK_INT(tls_context_open_client(&p->contexts[0]), 0);
    if (!p->contexts[1].ssl_context)
        open_server_context(&p->contexts[1], p->certificate ? p->certificate : "server.pem");
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, p->fds), 0);
}

/* Runs both handshakes at once, with their results in *p. */
static void try_pair(pair *p)
{
    prepare_pair(p);
    CHECK_INT(CONC_GATHER(CONC_CALL(open_client, p), CONC_CALL(open_server, p)), 0);
}

static void open_pair(pair *p)
{
    try_pair(p);
    CHECK_STR(p->client.error, "");
    CHECK_STR(p->server.error, "");
    CHECK_INT(p->client_rc, 0);
    CHECK_INT(p->server_rc, 0);
}

static void close_pair(pair *p)
{
    CHECK_INT(tls_close(&p->client), 0);
    CHECK_INT(conc_stream_close(&p->plain), 0);
    CHECK_INT(tls_close(&p->server), 0);
    tls_context_close(&p->contexts[0]);
    tls_context_close(&p->contexts[1]);
}

static void say(tls_connection *t, const char *line)
{
    CHECK_INT(conc_stream_printf(&t->stream, "%s\n", line), strlen(line) + 1);
    CHECK_INT(conc_stream_flush(&t->stream), 0);
}

static void hear(tls_connection *t, const char *expected)
{
    char *line = NULL;
    CHECK_INT(conc_stream_read_line(&t->stream, &line), strlen(expected));
    CHECK_STR(line, expected);
}

static void hear_end(tls_connection *t)
{
    char byte;
    CHECK_INT(conc_stream_read(&t->stream, &byte, 1), 0);
}

/* ---- calls in separate tasks ---- */

typedef struct call {
    tls_connection *t;
    size_t count;
    int key_updates; /* one before so many pieces */
    ssize_t rc;
    bool done;
} call;

/* Writes the pattern in pieces, and flushes. */
static int write_pattern(void *arg)
{
    call *c = arg;
    size_t done = 0;
    for (int i = 1; done < c->count; i++) {
        size_t n = c->count - done < 9999 ? c->count - done : 9999;
        if (c->key_updates && i % c->key_updates == 0)
            CHECK_INT(SSL_key_update(c->t->ssl, SSL_KEY_UPDATE_REQUESTED), 1);
        CHECK_INT(conc_stream_write(&c->t->stream, pattern + done, n), n);
        done += n;
    }
    c->rc = conc_stream_flush(&c->t->stream);
    c->done = true;
    return 0;
}

/* Reads count bytes, which must be the pattern's. */
static int read_pattern(void *arg)
{
    call *c = arg;
    char bytes[7777];
    for (size_t done = 0; done < c->count;) {
        size_t n = c->count - done < sizeof bytes ? c->count - done : sizeof bytes;
        ssize_t got = conc_stream_read(&c->t->stream, bytes, n);
        CHECK(got > 0);
        CHECK(memcmp(bytes, pattern + done, (size_t)got) == 0);
        done += (size_t)got;
    }
    c->done = true;
    return 0;
}

static int read_something(void *arg)
{
    call *c = arg;
    char bytes[100];
    c->rc = conc_stream_read(&c->t->stream, bytes, sizeof bytes);
    c->done = true;
    return c->rc == -ECANCELED ? -ECANCELED : 0;
}

static int close_it(void *t) { return tls_close(t); }
static int shut_it(void *t) { return conc_stream_shutdown(&((tls_connection *)t)->stream); }

/* ---- a server in the same run ---- */

typedef struct host {
    int fd;
    char address[120];
    tls_context *context;
    int (*serve)(tls_connection *t);
    int results[8], count; /* of tls_accept */
    conc_group group;
} host;

static int serve_one(int fd, void *arg)
{
    host *h = arg;
    CONC_AUTO(tls_connection, t) = {0};
    int rc = tls_accept(&t, h->context, fd);
    h->results[h->count++ % 8] = rc;
    return rc ? 0 : h->serve(&t);
}

static int serve(void *arg)
{
    host *h = arg;
    return conc_serve(&(conc_server){.fd = h->fd, .handler = serve_one, .arg = h});
}

static void open_host(host *h, tls_context *context, int (*serve_connection)(tls_connection *t))
{
    h->fd = conc_listen("localhost:0");
    CHECK(h->fd >= 0);
    CHECK_INT(conc_address(h->fd, false, h->address, sizeof h->address), 0);
    h->context = context;
    h->serve = serve_connection;
    CHECK_INT(conc_spawn(&h->group, serve, h), 0);
}

static void close_host(host *h)
{
    conc_group_cancel(&h->group);
    CHECK_INT(conc_group_wait(&h->group), 0);
    CHECK_INT(conc_close(h->fd), 0);
}

static int port_of(const char *address) { return atoi(strrchr(address, ':') + 1); }

static int echo_lines(tls_connection *t)
{
    char *line;
    for (;;) {
        CONC_TRY(conc_stream_read_line(&t->stream, &line));
        if (!line)
            return 0;
        CONC_TRY(conc_stream_printf(&t->stream, "you said %s\n", line));
        CONC_TRY(conc_stream_flush(&t->stream));
    }
}

/* ---- contexts ---- */

static void check_context(tls_context c, bool server, int rc, const char *words)
{
    CHECK_INT(server ? tls_context_open_server(&c) : tls_context_open_client(&c), rc);
    CHECK_CONTAINS(c.error, words);
    CHECK_STR(conc_last_error(), c.error);
    CHECK(c.ssl_context == NULL);
    tls_context_close(&c);
}

TEST(a_context_reports_which_file_it_could_not_use_and_why)
{
    const char *key = path("key.pem"), *server = path("server.pem"), *garbage = path("garbage.pem");
    check_context((tls_context){.ca_file = path("none.pem")}, false, -ENOENT,
                  "none.pem: No such file or directory");
    check_context((tls_context){.ca_file = garbage}, false, -EPROTO, "garbage.pem: ");
    check_context((tls_context){.certificate_file = path("none.pem")}, true, -ENOENT, "none.pem");
    check_context((tls_context){.certificate_file = garbage}, true, -EPROTO, "garbage.pem: ");
    check_context((tls_context){.certificate_file = server, .key_file = path("none.key")}, true,
                  -ENOENT, "none.key");
    check_context((tls_context){.certificate_file = server, .key_file = path("ca.key")}, true,
                  -EPROTO, "ca.key: key values mismatch");
    check_context((tls_context){.certificate_file = server}, true, -EPROTO, "server.pem: ");
    check_context((tls_context){.certificate_file = server, .key_file = path("locked.key")}, true,
                  -EPROTO, "locked.key: the key has a password");
    check_context((tls_context){.certificate_file = server, .key_file = key, .ca_file = garbage},
                  true, -EPROTO, "garbage.pem: ");
    check_context((tls_context){.key_file = key}, false, -EINVAL, "no certificate_file");
    check_context((tls_context){0}, true, -EINVAL, "a server needs one");
}

TEST(a_list_of_protocols_must_be_names_separated_by_commas)
{
    static const char *const bad[] = {
        "", ",", "h2,", ",h2", "h2,,http/1.1", "a-name-of-thirty-two-characters."};
    char many[400] = "a";
    for (size_t i = 0; i < CONC_LEN(bad); i++)
        check_context((tls_context){.alpn = bad[i]}, false, -EINVAL, "alpn: ");
    for (size_t i = 1; i < sizeof many - 1; i++)
        many[i] = i % 2 ? ',' : 'a';
    check_context((tls_context){.alpn = many}, false, -EINVAL, "alpn: ");
    tls_context good = {.alpn = "a-name-of-thirtyone-characters.,h2"};
    CHECK_INT(tls_context_open_client(&good), 0);
    CHECK_INT(good.protocols_size, 35);
    CHECK(memcmp(good.protocols, "\37a-name-of-thirtyone-characters.\2h2", 35) == 0);
    tls_context_close(&good);
}

TEST(a_context_is_opened_once_and_closed_any_number_of_times)
{
    tls_context c = {0};
    tls_context_close(NULL);
    tls_context_close(&c);
    CHECK_INT(tls_context_open_client(&c), 0); /* with the system's certificates */
    CHECK_INT(tls_context_open_client(&c), -EINVAL);
    CHECK_INT(tls_context_open_server(&c), -EINVAL);
    CHECK_CONTAINS(c.error, "open already");
    CHECK(c.ssl_context != NULL);
    tls_context_close(&c);
    tls_context_close(&c);
    CHECK_INT(tls_context_open_client(NULL), -EINVAL);
}

/* ---- verifying the peer ---- */

static void check_refused(pair p, const char *words)
{
    try_pair(&p);
    CHECK_INT(p.client_rc, -EACCES);
    CHECK_STR(p.client.error, words);
    CHECK(p.client.ssl == NULL && p.server.ssl == NULL);
    CHECK_INT(p.server_rc, -EPROTO); /* it has been told */
    CHECK_CONTAINS(p.server.error, "alert");
    close_pair(&p);
}

TLS_TEST(a_server_must_prove_its_identity)
{
    check_refused((pair){.certificate = "expired.pem"}, "localhost: certificate has expired");
    check_refused((pair){.certificate = "elsewhere.pem"}, "localhost: hostname mismatch");
    check_refused((pair){.certificate = "self.pem"}, "localhost: self-signed certificate");
    check_refused((pair){.contexts = {{.ca_file = path("other.pem")}}},
                  "localhost: unable to get local issuer certificate");
    check_refused((pair){.host = "127.0.0.2"}, "127.0.0.2: IP address mismatch");
    check_refused((pair){.host = "example.org", .certificate = "wild.pem"},
                  "example.org: hostname mismatch");
    check_refused((pair){.host = "a.b.example.org", .certificate = "wild.pem"},
                  "a.b.example.org: hostname mismatch");
    check_refused((pair){.host = "www.example.net", .certificate = "wild.pem"},
                  "www.example.net: hostname mismatch");
}

TLS_TEST(the_text_of_a_refusal_is_the_tasks_latest_error)
{
    pair p = {.certificate = "expired.pem"};
    prepare_pair(&p);
    CHECK_INT(conc_spawn(NULL, open_server, &p), 0);
    CHECK_INT(conc_stream_open(&p.plain, p.fds[0]), 0);
    CHECK_INT(tls_upgrade(&p.client, &p.contexts[0], &p.plain, "localhost"), -EACCES);
    CHECK_STR(conc_last_error(), "localhost: certificate has expired");
    CHECK_INT(conc_stream_close(&p.plain), 0);
    CHECK_INT(conc_settle(), 0);
    close_pair(&p);
}

static void check_accepted(pair p, const char *subject, const char *asked_for)
{
    open_pair(&p);
    const char *name = SSL_get_servername(p.server.ssl, TLSEXT_NAMETYPE_host_name);
    CHECK_STR(name ? name : "", asked_for);
    CHECK_STR(p.client.subject, subject);
    CHECK_STR(p.client.peer, p.host ? p.host : "localhost");
    close_pair(&p);
}

TLS_TEST(names_wildcards_addresses_and_a_trusted_self_signed_certificate_are_accepted)
{
    check_accepted((pair){0}, "/CN=server", "localhost");
    check_accepted((pair){.host = "127.0.0.1"}, "/CN=server", "");
    check_accepted((pair){.host = "LocalHost"}, "/CN=server", "LocalHost");
    check_accepted((pair){.host = "www.example.org", .certificate = "wild.pem"}, "/CN=wild",
                   "www.example.org");
    check_accepted((pair){.contexts = {{.ca_file = path("self.pem")}}, .certificate = "self.pem"},
                   "/CN=self", "localhost");
}

static void check_bad_host(tls_connection *t, tls_context *c, conc_stream *plain, const char *name)
{
    CHECK_INT(tls_upgrade(t, c, plain, name), -EINVAL);
    CHECK_CONTAINS(t->error, "a client needs the server's name");
    CHECK(t->ssl == NULL);
}

TLS_TEST(an_empty_name_does_not_skip_the_check_and_invalid_arguments_change_nothing)
{
    tls_context client = client_context(), server = {0}, closed = {0};
    tls_connection t = {0};
    conc_stream plain = {0};
    int fds[2];
    open_server_context(&server, "server.pem");
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    CHECK_INT(conc_stream_open(&plain, fds[0]), 0);
    check_bad_host(&t, &client, &plain, NULL);
    check_bad_host(&t, &client, &plain, "");
    check_bad_host(&t, &client, &plain, ".localhost");
    CHECK_INT(tls_upgrade(&t, &server, &plain, "localhost"), -EINVAL);
    CHECK_INT(tls_upgrade(&t, &closed, &plain, "localhost"), -EINVAL);
    CHECK_INT(tls_upgrade(&t, NULL, &plain, "localhost"), -EINVAL);
    CHECK_INT(tls_upgrade(&t, &client, NULL, "localhost"), -EINVAL);
    CHECK_INT(tls_upgrade(NULL, &client, &plain, "localhost"), -EINVAL);
    CHECK_INT(tls_connect(&t, &client, NULL), -EINVAL);
    CHECK_INT(tls_connect(&t, &client, "localhost"), -EINVAL);
    CHECK_CONTAINS(t.error, "host:port");
    CHECK_INT(tls_connect(&t, &server, "localhost:443"), -EINVAL);
    CHECK_INT(tls_connect(&t, &server, NULL), -EINVAL);
    CHECK_INT(tls_connect(NULL, &client, "localhost:443"), -EINVAL);
    CHECK_INT(tls_connect(&t, &client, ":443"), -EINVAL);
    CHECK_INT(tls_connect(&t, &client, "unix:/run/x"), -EINVAL);
    CHECK_INT(tls_connect(&t, &closed, "localhost:1"), -EINVAL);
    CHECK_INT(tls_connect(&t, &client, "localhost:port"), -EINVAL);
    CHECK_CONTAINS(t.error, "localhost:port");
    CHECK_INT(tls_accept(&t, &client, fds[1]), -EINVAL); /* which closes fds[1] */
    CHECK_INT(tls_accept(&t, &server, -1), -EBADF);
    CHECK_INT(tls_close(&t), 0);
    CHECK_INT(tls_close(NULL), 0);
    char byte;
    CHECK_INT(conc_stream_read(&plain, &byte, 1), 0); /* nothing was sent */
    CHECK_INT(conc_stream_close(&plain), 0);
    tls_context_close(&client);
    tls_context_close(&server);
}

static void check_host(const char *address, const char *expected)
{
    char host[16];
    tls__host_of(address, host, sizeof host);
    CHECK_STR(host, expected);
}

TEST(the_servers_name_is_the_address_without_its_port)
{
    check_host("example.org:443", "example.org");
    check_host("[::1]:443", "::1");
    check_host("fifteen-letters:1", "fifteen-letters");
    check_host("sixteen--letters:1", "");
    check_host("localhost", "");
    check_host("unix:/run/x:443", "");
    check_host(":443", "");
    check_host("", "");
    check_host(NULL, "");
}

TLS_TEST(a_second_open_of_a_connection_is_refused_and_the_first_continues)
{
    pair p = {0};
    int fds[2];
    open_pair(&p);
    CHECK_INT(tls_connect(&p.client, &p.contexts[0], "localhost:1"), -EBUSY);
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    CHECK_INT(tls_accept(&p.server, &p.contexts[1], fds[0]), -EBUSY);
    CHECK_INT(close(fds[1]), 0);
    say(&p.client, "hello");
    hear(&p.server, "hello");
    close_pair(&p);
}

TLS_TEST(a_refused_connection_names_its_address)
{
    tls_context c = client_context();
    tls_connection t = {0};
    char address[40];
    snprintf(address, sizeof address, "127.0.0.1:%d", server_free_port());
    CHECK_INT(tls_connect(&t, &c, address), -ECONNREFUSED);
    CHECK_CONTAINS(t.error, address);
    CHECK_STR(conc_last_error(), t.error);
    CHECK_INT(tls_close(&t), 0);
    tls_context_close(&c);
}

/* ---- client certificates ---- */

static pair with_client_certificate(const char *name, bool may_be_anonymous)
{
    pair p = {
        .contexts = {{.ca_file = path("ca.pem")},
                     {.ca_file = path("ca.pem"), .client_may_be_anonymous = may_be_anonymous}}};
    if (name) {
        p.contexts[0].certificate_file = path(name);
        p.contexts[0].key_file = path("key.pem");
    }
    return p;
}

TLS_TEST(a_server_that_asks_for_certificates_knows_its_clients)
{
    pair p = with_client_certificate("alice.pem", false);
    open_pair(&p);
    CHECK_STR(p.server.subject, "/CN=alice");
    close_pair(&p);
    p = with_client_certificate("alice.pem", true);
    open_pair(&p);
    CHECK_STR(p.server.subject, "/CN=alice");
    close_pair(&p);
    p = with_client_certificate(NULL, true);
    open_pair(&p);
    CHECK_STR(p.server.subject, "");
    close_pair(&p);
}

static void check_client_refused(const char *name, bool may_be_anonymous, const char *words,
                                 const char *alert)
{
    pair p = with_client_certificate(name, may_be_anonymous);
    char byte;
    try_pair(&p);
    CHECK_INT(p.server_rc, -EACCES);
    CHECK_CONTAINS(p.server.error, words);
    CHECK_INT(p.client_rc, 0); /* it cannot know yet */
    CHECK_INT(conc_stream_read(&p.client.stream, &byte, 1), -EPROTO);
    CHECK_CONTAINS(p.client.error, alert);
    CHECK_STR(conc_last_error(), p.client.error);
    close_pair(&p);
}

TLS_TEST(a_client_with_no_or_an_unknown_certificate_is_refused_with_an_alert)
{
    check_client_refused(NULL, false, "peer did not return a certificate", "certificate required");
    check_client_refused("mallory.pem", false, "unable to get local issuer certificate",
                         "unknown ca");
    check_client_refused("mallory.pem", true, "unable to get local issuer certificate",
                         "unknown ca");
}

/* ---- protocols ---- */

static pair with_protocols(const char *client, const char *server)
{
    return (pair){.contexts = {{.alpn = client}, {.alpn = server}}};
}

TLS_TEST(both_sides_agree_on_the_servers_favourite_of_the_clients_protocols)
{
    pair p = with_protocols("http/1.1,h2", "smtp,h2,http/1.1");
    open_pair(&p);
    CHECK_STR(p.client.alpn, "h2");
    CHECK_STR(p.server.alpn, "h2");
    close_pair(&p);
    p = with_protocols("http/1.1", NULL);
    open_pair(&p);
    CHECK_STR(p.client.alpn, "");
    close_pair(&p);
    p = with_protocols(NULL, "h2");
    open_pair(&p);
    CHECK_STR(p.server.alpn, "");
    close_pair(&p);
    p = with_protocols("http/1.1", "h2");
    try_pair(&p);
    CHECK_INT(p.client_rc, -EPROTO);
    CHECK_CONTAINS(p.client.error, "no application protocol");
    CHECK_INT(p.server_rc, -EPROTO);
    close_pair(&p);
}

/* ---- bytes ---- */

static void limit_version(pair *p, int version)
{
    prepare_pair(p);
    CHECK_INT(close(p->fds[0]) + close(p->fds[1]), 0);
    CHECK_INT(SSL_CTX_set_max_proto_version(p->contexts[1].ssl_context, version), 1);
}

static void check_both_ways(int version, int key_updates)
{
    pair p = {0};
    limit_version(&p, version);
    open_pair(&p);
    CHECK_INT(SSL_version(p.client.ssl), version);
    call to_server = {.t = &p.client, .count = BIG, .key_updates = key_updates},
         to_client = {.t = &p.server, .count = BIG, .key_updates = key_updates};
    CHECK_INT(CONC_GATHER(CONC_CALL(write_pattern, &to_server),
                          CONC_CALL(write_pattern, &to_client),
                          CONC_CALL(read_pattern, &(call){.t = &p.server, .count = BIG}),
                          CONC_CALL(read_pattern, &(call){.t = &p.client, .count = BIG})),
              0);
    CHECK_INT(to_server.rc, 0);
    CHECK_INT(to_client.rc, 0);
    close_pair(&p);
}

TLS_TEST(two_tasks_on_each_side_read_and_write_at_once) { check_both_ways(TLS1_3_VERSION, 0); }

TLS_TEST(two_tasks_on_each_side_read_and_write_at_once_with_tls_1_2)
{
    check_both_ways(TLS1_2_VERSION, 0);
}

TLS_TEST(both_sides_may_ask_for_new_keys_while_they_read_and_write)
{
    check_both_ways(TLS1_3_VERSION, 2);
}

static int write_then_read(void *arg)
{
    tls_connection *t = arg;
    call c = {.t = t, .count = BIG};
    CHECK_INT(conc_stream_write(&t->stream, pattern, BIG), BIG);
    return read_pattern(&c);
}

TLS_TEST(two_peers_that_write_a_lot_before_reading_do_not_deadlock)
{
    pair p = {.client = {.stream = {.buffer_size = BIG}},
              .server = {.stream = {.buffer_size = BIG}}};
    open_pair(&p);
    CHECK_INT(
        CONC_GATHER(CONC_CALL(write_then_read, &p.client), CONC_CALL(write_then_read, &p.server)),
        0);
    close_pair(&p);
}

TLS_TEST(a_request_for_new_keys_is_answered_before_the_next_record)
{
    pair p = {0};
    open_pair(&p);
    for (int i = 0; i < 100; i++) {
        CHECK_INT(SSL_key_update(p.server.ssl, SSL_KEY_UPDATE_REQUESTED), 1);
        say(&p.server, "new keys, please");
        hear(&p.client, "new keys, please");
        say(&p.client, "here they are");
        hear(&p.server, "here they are");
    }
    close_pair(&p);
}

static int flood_with_updates(void *arg)
{
    tls_connection *t = arg;
    for (;;) {
        CHECK_INT(SSL_key_update(t->ssl, SSL_KEY_UPDATE_REQUESTED), 1);
        CONC_TRY(conc_stream_write(&t->stream, "x", 1));
        CONC_TRY(conc_stream_flush(&t->stream));
    }
}

static int read_on(void *arg)
{
    tls_connection *t = arg;
    char bytes[100];
    for (;;)
        CONC_TRY(conc_stream_read(&t->stream, bytes, sizeof bytes));
}

static int flood(void *arg)
{
    pair *p = arg;
    return CONC_GATHER(CONC_CALL(flood_with_updates, &p->server), CONC_CALL(read_on, &p->client));
}

TLS_TEST(a_peer_that_asks_for_new_keys_without_end_and_never_reads_fills_no_memory)
{
    pair p = {0};
    int small = 1; /* the system's minimum */
    open_pair(&p);
    CHECK_INT(setsockopt(p.fds[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small), 0);
    CHECK_INT(setsockopt(p.fds[1], SOL_SOCKET, SO_SNDBUF, &small, sizeof small), 0);
    CHECK_INT(conc_timeout(1, flood, &p), -ETIMEDOUT);
    CHECK(BIO_pending(p.client.out) < 1000);
    CHECK_INT(conc_timeout(0, close_it, &p.client), 0);
    CHECK_INT(conc_timeout(0, close_it, &p.server), 0);
    CHECK_INT(conc_stream_close(&p.plain), -EPIPE); /* it has answers that are no longer wanted */
    close_pair(&p);
}

/* ---- the end ---- */

TLS_TEST(a_half_that_is_shut_down_is_the_end_for_the_peer_which_may_still_write)
{
    pair p = {0};
    open_pair(&p);
    CHECK_INT(conc_stream_printf(&p.client.stream, "last words\n"), 11);
    CHECK_INT(conc_stream_shutdown(&p.client.stream), 0);
    CHECK_INT(conc_stream_shutdown(&p.client.stream), 0);
    CHECK_INT(conc_stream_write(&p.client.stream, "x", 1), -EPIPE);
    hear(&p.server, "last words");
    hear_end(&p.server);
    call to_client = {.t = &p.server, .count = BIG};
    CHECK_INT(CONC_GATHER(CONC_CALL(write_pattern, &to_client),
                          CONC_CALL(read_pattern, &(call){.t = &p.client, .count = BIG})),
              0);
    CHECK_INT(tls_close(&p.server), 0);
    hear_end(&p.client);
    close_pair(&p);
}

TLS_TEST(a_close_sends_close_notify_and_so_does_conc_stream_close)
{
    for (int i = 0; i < 2; i++) {
        pair p = {0};
        open_pair(&p);
        CHECK_INT(conc_stream_printf(&p.server.stream, "bye\n"), 4);
        CHECK_INT(i ? conc_stream_close(&p.server.stream) : tls_close(&p.server), 0);
        CHECK(p.server.ssl == NULL);
        hear(&p.client, "bye");
        hear_end(&p.client);
        CHECK_INT(tls_close(&p.server), 0);
        close_pair(&p);
    }
}

/* Removes the other side of p's server, as if the network had failed. */
static void cut(pair *p) { CHECK_INT(shutdown(p->fds[1], SHUT_RDWR), 0); }

TLS_TEST(an_end_without_close_notify_is_an_error_after_the_bytes_that_came)
{
    pair p = {0};
    char byte;
    open_pair(&p);
    say(&p.server, "Content-Length: 100");
    cut(&p);
    hear(&p.client, "Content-Length: 100");
    for (int i = 0; i < 2; i++) {
        CHECK_INT(conc_stream_read(&p.client.stream, &byte, 1), -ECONNRESET);
        CHECK_STR(conc_last_error(), "localhost: the connection ended without close_notify");
        CHECK_STR(p.client.error, conc_last_error());
    }
    CHECK_INT(conc_stream_write(&p.client.stream, "x", 1), 1);
    CHECK_INT(conc_stream_flush(&p.client.stream), -EPIPE);
    CHECK_INT(conc_timeout(0, close_it, &p.server), 0);
    close_pair(&p);
}

TLS_TEST(a_truncated_record_is_no_end_either)
{
    pair p = {0};
    char byte, record[100];
    open_pair(&p);
    say(&p.server, "whole");
    hear(&p.client, "whole");
    say(&p.server, "half of this is lost");
    ssize_t n = recv(p.fds[0], record, sizeof record, 0);
    CHECK(n > 30 && n < 100);
    CHECK_INT(send(p.fds[1], record, (size_t)n - 1, 0), n - 1);
    cut(&p);
    CHECK_INT(conc_stream_read(&p.client.stream, &byte, 1), -ECONNRESET);
    CHECK_INT(conc_timeout(0, close_it, &p.server), 0);
    close_pair(&p);
}

TLS_TEST(writing_to_a_peer_that_has_left_is_an_error_and_no_signal)
{
    pair p = {0};
    open_pair(&p);
    CHECK_INT(conc_timeout(0, close_it, &p.server), 0);
    CHECK_INT(conc_stream_write(&p.client.stream, "x", 1), 1);
    CHECK_INT(conc_stream_flush(&p.client.stream), -EPIPE);
    CHECK_STR(conc_last_error(), "localhost: Broken pipe");
    CHECK_INT(conc_stream_write(&p.client.stream, "x", 1), -EPIPE);
    close_pair(&p);
}

TLS_TEST(the_last_bytes_of_a_peer_that_has_left_are_read_before_its_end)
{
    pair p = {0};
    open_pair(&p);
    say(&p.server, "farewell");
    CHECK_INT(tls_close(&p.server), 0);
    hear(&p.client, "farewell");
    hear_end(&p.client);
    CHECK_INT(tls_close(&p.client), 0); /* its close_notify reaches no peer */
    close_pair(&p);
}

/* ---- peers that lie ---- */

TLS_TEST(an_altered_record_is_an_error_and_the_peer_gets_an_alert)
{
    static const char forged[37] = "\27\3\3\0\40 this is not what the key made";
    pair p = {0};
    char byte;
    open_pair(&p);
    say(&p.server, "true");
    CHECK_INT(send(p.fds[1], forged, 37, 0), 37);
    hear(&p.client, "true");
    CHECK_INT(conc_stream_read(&p.client.stream, &byte, 1), -EPROTO);
    CHECK_CONTAINS(p.client.error, "localhost: ");
    CHECK_CONTAINS(p.client.error, "bad record mac");
    CHECK_INT(conc_stream_flush(&p.client.stream), 0);
    CHECK_INT(tls_close(&p.client), 0);
    CHECK_INT(conc_stream_close(&p.plain), 0);
    CHECK_INT(conc_stream_read(&p.server.stream, &byte, 1), -EPROTO);
    CHECK_CONTAINS(p.server.error, "alert bad record mac");
    close_pair(&p);
}

/* A handshake peer that sends `text`, repeatedly if it `floods`, and then ends. */
static void check_handshake_with(const char *text, size_t n, bool as_server, const char *words)
{
    pair p = {0};
    prepare_pair(&p);
    CHECK_INT(send(p.fds[as_server ? 0 : 1], text, n, 0), n);
    CHECK_INT(shutdown(p.fds[as_server ? 0 : 1], SHUT_WR), 0);
    CHECK_INT(as_server ? open_server(&p) : open_client(&p), 0);
    CHECK_INT(as_server ? p.server_rc : p.client_rc, words ? -EPROTO : -ECONNRESET);
    const char *error = as_server ? p.server.error : p.client.error;
    CHECK_CONTAINS(error, words ? words : "the connection ended without close_notify");
    CHECK_INT(close(p.fds[as_server ? 0 : 1]), 0);
    close_pair(&p);
}

TLS_TEST(garbage_in_place_of_a_handshake_is_an_error_on_both_sides)
{
    static const char http[] = "HTTP/1.0 400 Bad Request\r\n\r\n", get[] = "GET / HTTP/1.0\r\n\r\n";
    static const char huge[] = "\26\3\3\0\4\1\377\377\377"; /* a message of 16 MB follows */
    for (int as_server = 0; as_server < 2; as_server++) {
        check_handshake_with(pattern, 20000, as_server, as_server ? "" : "wrong version number");
        check_handshake_with("", 0, as_server, NULL);
        check_handshake_with("\26\3\1", 3, as_server, NULL);
        check_handshake_with(huge, 9, as_server, as_server ? "excessive message size" : "");
    }
    check_handshake_with(http, sizeof http - 1, false, "wrong version number");
    check_handshake_with(get, sizeof get - 1, true, "http request");
}

static int write_handshake_forever(void *arg)
{
    static char record[5 + 16384] = "\26\3\3\100"; /* a handshake record of 16 KiB */
    int fd = *(int *)arg;
    record[5] = 11; /* a Certificate, of 16 MB */
    record[6] = record[7] = record[8] = (char)0xff;
    for (;;)
        CONC_TRY(conc_write_full(fd, record, sizeof record));
}

TLS_TEST(a_server_that_sends_too_much_in_the_handshake_is_cut_off)
{
    pair p = {0};
    conc_group g = {0};
    prepare_pair(&p);
    CHECK_INT(conc_spawn(&g, write_handshake_forever, &p.fds[1]), 0);
    open_client(&p);
    CHECK_INT(p.client_rc, -EPROTO);
    CHECK_INT(conc_group_wait(&g), -EPIPE); /* the client has closed */
    CHECK_INT(close(p.fds[1]), 0);
    close_pair(&p);
}

/* ---- time limits and cancels ---- */

static int connect_to(void *arg)
{
    host *h = arg;
    tls_connection t = {0};
    int rc = tls_connect(&t, h->context, h->address);
    CHECK(t.ssl == NULL);
    CHECK_INT(tls_close(&t), 0);
    if (rc == -ETIMEDOUT)
        CHECK_CONTAINS(t.error, ": the TLS handshake took too long");
    return rc;
}

TLS_TEST(a_server_that_never_answers_is_given_up_after_a_limit_of_either_kind)
{
    tls_context c = {.ca_file = path("ca.pem")};
    host silent = {.context = &c};
    conc_group g = {0};
    conc_task task;
    int rc;
    silent.fd = conc_listen("localhost:0"); /* connections arrive, and none is accepted */
    CHECK_INT(conc_address(silent.fd, false, silent.address, sizeof silent.address), 0);
    CHECK_INT(tls_context_open_client(&c), 0);
    CHECK_INT(connect_to(&silent), -ETIMEDOUT);
    CHECK_TIME(60);
    c.handshake_timeout = 5;
    CHECK_INT(connect_to(&silent), -ETIMEDOUT);
    CHECK_TIME(65);
    c.handshake_timeout = CONC_FOREVER;
    CHECK_INT(conc_timeout(100, connect_to, &silent), -ETIMEDOUT);
    CHECK_TIME(165);
    CHECK_INT(conc_spawn_task(&g, &task, connect_to, &silent), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_cancel(&task), 0);
    CHECK_INT(conc_join(&task, &rc), 0);
    CHECK_INT(rc, -ECANCELED);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_TIME(165);
    CHECK_INT(conc_close(silent.fd), 0);
    tls_context_close(&c);
}

TLS_TEST(a_client_that_never_speaks_is_given_up_too)
{
    pair p = {.contexts = {{0}, {.handshake_timeout = 3}}};
    prepare_pair(&p);
    open_server(&p);
    CHECK_INT(p.server_rc, -ETIMEDOUT);
    CHECK_TIME(3);
    CHECK_CONTAINS(p.server.error, "the TLS handshake took too long");
    CHECK_INT(close(p.fds[0]), 0);
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, p.fds), 0);
    CHECK_INT(conc_timeout(1, open_server, &p), 0);
    CHECK_INT(p.server_rc, -ECANCELED);
    CHECK_TIME(4);
    CHECK_INT(close(p.fds[0]), 0);
    close_pair(&p);
}

/* Cancels the client's or the server's handshake after this many turns; returns whether it
 * completed. */
static bool cancel_handshake_after(int turns, bool of_server)
{
    pair p = {0};
    conc_group g = {0};
    conc_task client, server, *cancelled = of_server ? &server : &client;
    prepare_pair(&p);
    CHECK_INT(conc_spawn_task(&g, &client, open_client, &p), 0);
    CHECK_INT(conc_spawn_task(&g, &server, open_server, &p), 0);
    for (int i = 0; i < turns; i++)
        CHECK_INT(conc_yield(), 0);
    int rc = conc_cancel(cancelled);
    CHECK_INT(conc_group_wait(&g), 0);
    int its = of_server ? p.server_rc : p.client_rc, other = of_server ? p.client_rc : p.server_rc;
    CHECK(its == 0 || its == -ECANCELED);
    CHECK(other == 0 || (other == -ECONNRESET && its == -ECANCELED));
    CHECK(p.client_rc == 0 ? p.client.ssl != NULL : p.client.ssl == NULL);
    CHECK(p.server_rc == 0 ? p.server.ssl != NULL : p.server.ssl == NULL);
    CHECK_INT(conc_timeout(0, close_it, &p.client), 0);
    CHECK_INT(conc_timeout(0, close_it, &p.server), 0);
    close_pair(&p);
    return rc == -EALREADY;
}

TLS_TEST(a_handshake_may_be_cancelled_at_any_time)
{
    for (int of_server = 0; of_server < 2; of_server++) {
        int turns = 0;
        while (!cancel_handshake_after(turns, of_server))
            turns++;
        CHECK(turns >= 2 && turns < 100);
    }
}

/* What a client sends first. */
static int make_client_hello(char *bytes, int size)
{
    tls_context c = client_context();
    SSL *ssl = SSL_new(c.ssl_context);
    BIO *in = BIO_new(BIO_s_mem()), *out = BIO_new(BIO_s_mem());
    SSL_set_bio(ssl, in, out);
    SSL_set_connect_state(ssl);
    CHECK_INT(SSL_do_handshake(ssl), -1);
    int n = BIO_read(out, bytes, size);
    SSL_free(ssl);
    tls_context_close(&c);
    return n;
}

TLS_TEST(a_client_that_never_reads_is_given_up_while_the_servers_certificates_are_being_sent)
{
    pair p = {.contexts = {{0}, {.handshake_timeout = 3}}, .certificate = "long.pem"};
    char hello[1000];
    int small = 1, n = make_client_hello(hello, sizeof hello);
    prepare_pair(&p);
    CHECK_INT(setsockopt(p.fds[1], SOL_SOCKET, SO_SNDBUF, &small, sizeof small), 0);
    CHECK_INT(send(p.fds[0], hello, (size_t)n, 0), n);
    open_server(&p);
    CHECK_INT(p.server_rc, -ETIMEDOUT);
    CHECK_TIME(3);
    char first[6000];
    ssize_t sent = recv(p.fds[0], first, sizeof first, 0);
    CHECK(sent > 0 && sent < 6000); /* a part of 12 KB */
    CHECK_INT(close(p.fds[0]), 0);
    close_pair(&p);
}

TLS_TEST(a_close_during_the_handshake_is_refused)
{
    pair p = {0};
    conc_group g = {0};
    prepare_pair(&p);
    CHECK_INT(conc_spawn(&g, open_server, &p), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(tls_close(&p.server), -EBUSY);
    CHECK_INT(tls_accept(&p.server, &p.contexts[1], -1), -EBUSY);
    CHECK_INT(open_client(&p), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(p.server_rc, 0);
    say(&p.client, "still here");
    hear(&p.server, "still here");
    close_pair(&p);
}

TLS_TEST(a_read_that_was_cancelled_or_timed_out_loses_nothing)
{
    pair p = {0};
    conc_group g = {0};
    conc_task task;
    int rc;
    open_pair(&p);
    call reader = {.t = &p.client};
    CHECK_INT(conc_timeout(1, read_something, &reader), -ETIMEDOUT);
    CHECK_TIME(1);
    CHECK_INT(conc_spawn_task(&g, &task, read_something, &reader), 0);
    CHECK_INT(conc_settle(), 0);
    say(&p.server, "just in time"); /* the bytes are available when the cancel comes */
    CHECK_INT(conc_cancel(&task), 0);
    CHECK_INT(conc_join(&task, &rc), 0);
    CHECK_INT(rc, -ECANCELED);
    CHECK_INT(conc_group_wait(&g), 0);
    hear(&p.client, "just in time");
    close_pair(&p);
}

/* Keeps little in transit, so that a writer soon has to wait. */
static void make_narrow(pair *p)
{
    int small = 1;
    CHECK_INT(setsockopt(p->fds[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small), 0);
}

/* Writes as much of the pattern after `done` as the peer accepts in a second. */
static size_t write_for_a_second(tls_connection *t, size_t done)
{
    conc_scope limit = {0};
    CHECK_INT(conc_scope_begin(&limit, 1), 0);
    ssize_t took = conc_stream_write(&t->stream, pattern + done, BIG - done);
    CHECK_INT(conc_scope_end(&limit, took < 0 ? (int)took : 0), took < 0 ? -ETIMEDOUT : 0);
    CHECK(limit.expired);
    return took < 0 ? 0 : (size_t)took;
}

TLS_TEST(after_interrupted_writes_the_peer_has_the_counted_bytes_and_later_ones)
{
    pair p = {0};
    conc_group g = {0};
    size_t done = 0;
    open_pair(&p);
    make_narrow(&p);
    for (int i = 0; i < 20; i++) {
        done += write_for_a_second(&p.client, done);
        CHECK(done > 0 && done < BIG - 100);
        CHECK_TIME(i + 1);
    }
    CHECK(done < 100000); /* cancelled calls do not pile up records */
    CHECK_INT(conc_stream_write(&p.client.stream, pattern + done, 100), 100);
    call reader = {.t = &p.server, .count = done + 100};
    CHECK_INT(conc_spawn(&g, read_pattern, &reader), 0);
    CHECK_INT(conc_stream_shutdown(&p.client.stream), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    hear_end(&p.server);
    close_pair(&p);
}

TLS_TEST(a_cancelled_writers_rest_does_not_delay_a_reader)
{
    pair p = {0};
    open_pair(&p);
    make_narrow(&p);
    CHECK(write_for_a_second(&p.client, 0) > 0);
    say(&p.server, "hello");
    hear(&p.client, "hello");
    CHECK_TIME(1);
    CHECK_INT(conc_timeout(0, close_it, &p.client), 0);
    CHECK_INT(conc_timeout(0, close_it, &p.server), 0);
    CHECK_INT(conc_stream_close(&p.plain), -EPIPE); /* the rest of a record */
    close_pair(&p);
}

TLS_TEST(an_interrupted_flush_continues_in_the_next_one_or_in_the_close)
{
    for (int closes = 0; closes < 2; closes++) {
        pair p = {.client = {.stream = {.buffer_size = BIG}}};
        conc_group g = {0};
        conc_scope limit = {0};
        open_pair(&p);
        make_narrow(&p);
        CHECK_INT(conc_stream_write(&p.client.stream, pattern, BIG), BIG);
        CHECK_INT(conc_scope_begin(&limit, 1), 0);
        int rc = conc_stream_flush(&p.client.stream);
        CHECK(rc > 0 && rc < BIG);
        CHECK_INT(conc_scope_end(&limit, 0), 0);
        call reader = {.t = &p.server, .count = BIG};
        CHECK_INT(conc_spawn(&g, read_pattern, &reader), 0);
        if (!closes) {
            CHECK_INT(conc_stream_flush(&p.client.stream), 0);
            CHECK_INT(conc_stream_shutdown(&p.client.stream), 0);
        } else {
            CHECK_INT(tls_close(&p.client), 0);
        }
        CHECK_INT(conc_group_wait(&g), 0);
        hear_end(&p.server);
        close_pair(&p);
    }
}

TLS_TEST(the_rest_of_an_interrupted_flush_is_sent_while_the_next_read_waits)
{
    pair p = {0};
    conc_group g = {0};
    conc_scope limit = {0};
    open_pair(&p);
    make_narrow(&p);
    CHECK_INT(conc_stream_write(&p.client.stream, pattern, 15000), 15000);
    CHECK_INT(conc_scope_begin(&limit, 1), 0);
    CHECK_INT(conc_stream_flush(&p.client.stream), 0); /* while the record is made */
    CHECK_INT(conc_scope_end(&limit, 0), 0);
    CHECK(limit.expired); /* otherwise this tests nothing */
    call reader = {.t = &p.client};
    CHECK_INT(conc_spawn(&g, read_something, &reader), 0);
    CHECK_INT(read_pattern(&(call){.t = &p.server, .count = 15000}), 0);
    say(&p.server, "thanks");
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(reader.rc, 7);
    close_pair(&p);
}

TLS_TEST(a_shutdown_that_timed_out_is_completed_later)
{
    pair p = {.client = {.stream = {.buffer_size = BIG}}};
    conc_group g = {0};
    open_pair(&p);
    make_narrow(&p);
    CHECK_INT(conc_stream_write(&p.client.stream, pattern, BIG), BIG);
    CHECK_INT(conc_timeout(1, shut_it, &p.client), -ETIMEDOUT);
    CHECK_TIME(1);
    call reader = {.t = &p.server, .count = BIG};
    CHECK_INT(conc_spawn(&g, read_pattern, &reader), 0);
    CHECK_INT(conc_stream_shutdown(&p.client.stream), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    hear_end(&p.server);
    close_pair(&p);
}

/* Reads until the error, and returns the number of bytes. */
static size_t read_until_error(tls_connection *t, ssize_t rc)
{
    char bytes[5000];
    for (size_t total = 0;;) {
        ssize_t n = conc_stream_read(&t->stream, bytes, sizeof bytes);
        if (n <= 0) {
            CHECK_INT(n, rc);
            return total;
        }
        total += (size_t)n;
    }
}

TLS_TEST(a_close_under_a_limit_frees_everything_and_the_peer_learns_that_it_was_cut_short)
{
    pair p = {.client = {.stream = {.buffer_size = BIG}}};
    open_pair(&p);
    make_narrow(&p);
    CHECK_INT(conc_stream_write(&p.client.stream, pattern, BIG), BIG);
    CHECK_INT(conc_timeout(1, close_it, &p.client), -ETIMEDOUT);
    CHECK_TIME(1);
    CHECK(p.client.ssl == NULL);
    CHECK_INT(conc_timeout(0, close_it, &p.client), 0);
    CHECK_INT(shutdown(p.fds[0], SHUT_RDWR), 0);
    CHECK(read_until_error(&p.server, -ECONNRESET) < BIG);
    conc_stream_close(&p.plain);
    close_pair(&p);
}

TLS_TEST(a_close_beside_a_reader_and_a_writer_wakes_both)
{
    pair p = {0};
    conc_group g = {0};
    open_pair(&p);
    call reader = {.t = &p.server};
    conc_scope cancelled = {0};
    CHECK_INT(conc_spawn(&g, read_something, &reader), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK_INT(conc_scope_begin(&cancelled, CONC_FOREVER), 0);
    conc_scope_cancel(&cancelled);
    CHECK_INT(tls_close(&p.server), 0);
    CHECK_INT(conc_scope_end(&cancelled, -ECANCELED), 0);
    CHECK(p.server.ssl == NULL);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(reader.rc, -EPIPE);
    close_pair(&p);
}

static void close_posted(void *t) { CHECK_INT(tls_close(t), 0); }

TLS_TEST(a_close_in_a_posted_function_frees_everything_and_waits_for_nothing)
{
    pair p = {0};
    open_pair(&p);
    CHECK_INT(conc_post(conc_loop_self(), close_posted, &p.server), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK(p.server.ssl == NULL);
    close_pair(&p);
}

TLS_TEST(contexts_may_be_closed_before_their_connections)
{
    pair p = {0};
    open_pair(&p);
    tls_context_close(&p.contexts[0]);
    tls_context_close(&p.contexts[1]);
    say(&p.client, "hello");
    hear(&p.server, "hello");
    close_pair(&p);
}

/* ---- a session ticket in two parts ---- */

typedef struct relay {
    pair *p;
    int from, to; /* what the server sends */
    conc_event go;
    int late; /* records that came after the client's handshake */
} relay;

static int relay_records(void *arg)
{
    relay *r = arg;
    unsigned char record[5 + 16640];
    for (;;) {
        ssize_t n = CONC_TRY(conc_read_full(r->from, record, 5));
        if (n < 5)
            return 0;
        size_t length = (size_t)(record[3] << 8 | record[4]);
        CHECK_INT(conc_read_full(r->from, record + 5, length), length);
        if (r->p->client_done && r->late++ == 1)
            CONC_TRY(conc_event_wait(&r->go));
        CHECK_INT(conc_write_full(r->to, record, length + 5), length + 5);
    }
}

static int relay_bytes(void *arg)
{
    relay *r = arg;
    char bytes[1000];
    for (;;) {
        ssize_t n = CONC_TRY(conc_read(r->to, bytes, sizeof bytes));
        if (n == 0)
            return 0;
        CHECK_INT(conc_write_full(r->from, bytes, (size_t)n), n);
    }
}

static int say_hello(void *arg)
{
    call *c = arg;
    say(c->t, "hello");
    c->done = true;
    return 0;
}

static void check_ticket_in_parts(bool with_reader)
{
    /* the ticket contains the client's certificate, and does not fit into one record */
    pair p = with_client_certificate("alice.pem", false);
    relay r = {.p = &p};
    conc_group relays = {0}, g = {0};
    prepare_pair(&p);
    CHECK_INT(SSL_CTX_set_max_send_fragment(p.contexts[1].ssl_context, 512), 1);
    int server_fds[2];
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, server_fds), 0);
    r.to = p.fds[1];
    r.from = server_fds[0];
    p.fds[1] = server_fds[1];
    CHECK_INT(conc_spawn(&relays, relay_records, &r), 0);
    CHECK_INT(conc_spawn(&relays, relay_bytes, &r), 0);
    CHECK_INT(CONC_GATHER(CONC_CALL(open_client, &p), CONC_CALL(open_server, &p)), 0);
    CHECK_INT(p.client_rc + p.server_rc, 0);

    call reader = {.t = &p.client}, writer = {.t = &p.client};
    if (with_reader) {
        CHECK_INT(conc_spawn(&g, read_something, &reader), 0);
        CHECK_INT(conc_sleep(1), 0);
        CHECK(SSL_in_init(p.client.ssl)); /* otherwise this tests nothing */
    }
    CHECK_INT(conc_spawn(&g, say_hello, &writer), 0);
    CHECK_INT(conc_sleep(1), 0);
    CHECK(r.late == 2);
    CHECK_INT(writer.done, !with_reader); /* the first part has not been read */
    conc_event_set(&r.go);
    hear(&p.server, "hello");
    say(&p.server, "hello, too");
    if (!with_reader)
        hear(&p.client, "hello, too");
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(reader.rc, with_reader ? 11 : 0);
    conc_group_cancel(&relays);
    CHECK_INT(conc_group_wait(&relays), 0);
    CHECK_INT(conc_timeout(0, close_it, &p.client), 0);
    CHECK_INT(conc_timeout(0, close_it, &p.server), 0);
    CHECK_INT(close(r.from) + close(r.to), 0);
    close_pair(&p);
}

TLS_TEST(a_writer_waits_until_a_session_ticket_that_a_reader_has_begun_is_there)
{
    check_ticket_in_parts(true);
}

TLS_TEST(a_writer_without_a_reader_does_not_wait_for_session_tickets)
{
    check_ticket_in_parts(false);
}

/* ---- STARTTLS, and TLS in TLS ---- */

static void check_line(conc_stream *s, const char *expected)
{
    char *line = NULL;
    CHECK_INT(conc_stream_read_line(s, &line), strlen(expected));
    CHECK_STR(line, expected);
}

static int start_tls_server(void *arg)
{
    pair *p = arg;
    conc_stream plain = {0};
    CHECK_INT(conc_stream_open(&plain, p->fds[1]), 0);
    check_line(&plain, "STARTTLS");
    CHECK_INT(conc_stream_printf(&plain, "220 go ahead\r\n"), 14); /* flushed by the handshake */
    p->server_rc = tls_upgrade(&p->server, &p->contexts[1], &plain, NULL);
    if (p->server_rc == 0) {
        say(&p->server, "secret");
        CHECK_INT(tls_close(&p->server), 0);
    }
    CHECK_INT(conc_stream_close(&plain), 0);
    return 0;
}

static int start_tls_client(void *arg)
{
    pair *p = arg;
    CHECK_INT(conc_stream_open(&p->plain, p->fds[0]), 0);
    CHECK_INT(conc_stream_printf(&p->plain, "STARTTLS\r\n"), 10);
    check_line(&p->plain, "220 go ahead");
    CHECK_INT(tls_upgrade(&p->client, &p->contexts[0], &p->plain, "localhost"), 0);
    hear(&p->client, "secret");
    hear_end(&p->client);
    return 0;
}

TLS_TEST(a_plain_stream_continues_with_tls)
{
    pair p = {0};
    prepare_pair(&p);
    CHECK_INT(CONC_GATHER(CONC_CALL(start_tls_client, &p), CONC_CALL(start_tls_server, &p)), 0);
    CHECK_INT(p.server_rc, 0);
    close_pair(&p);
}

TLS_TEST(plain_text_injected_after_starttls_is_never_mistaken_for_encrypted_data)
{
    static const char injected[] = "STARTTLS\r\nMAIL FROM:<mallory>\r\n";
    pair p = {0};
    prepare_pair(&p);
    CHECK_INT(send(p.fds[0], injected, sizeof injected - 1, 0), sizeof injected - 1);
    CHECK_INT(start_tls_server(&p), 0);
    CHECK_INT(p.server_rc, -EPROTO);
    CHECK_INT(close(p.fds[0]), 0);
    close_pair(&p);
}

static int open_inner_client(void *arg)
{
    tls_connection *t = arg;
    tls_context c = client_context();
    tls_connection inner = {0};
    CHECK_INT(tls_upgrade(&inner, &c, &t->stream, "localhost"), 0);
    hear(&inner, "a secret within a secret");
    hear_end(&inner);
    CHECK_INT(tls_close(&inner), 0);
    tls_context_close(&c);
    return 0;
}

static int open_inner_server(void *arg)
{
    pair *p = arg;
    tls_connection inner = {0};
    CHECK_INT(tls_upgrade(&inner, &p->contexts[1], &p->server.stream, NULL), 0);
    say(&inner, "a secret within a secret");
    CHECK_INT(tls_close(&inner), 0);
    return 0;
}

TLS_TEST(tls_runs_over_tls)
{
    pair p = {0};
    open_pair(&p);
    CHECK_INT(
        CONC_GATHER(CONC_CALL(open_inner_client, &p.client), CONC_CALL(open_inner_server, &p)), 0);
    close_pair(&p);
}

/* ---- bytes in transit at a close ---- */

enum { UNDER_WAY = 200000 };

static conc_event client_has_left;

static int read_late(tls_connection *t)
{
    call c = {.t = t, .count = UNDER_WAY};
    CONC_TRY(conc_event_wait(&client_has_left));
    CHECK_INT(read_pattern(&c), 0);
    hear_end(t);
    conc_event_clear(&client_has_left);
    return 0;
}

TLS_TEST(unread_session_tickets_do_not_lose_bytes_in_transit)
{
    tls_context server = {0}, client = client_context();
    host h = {0};
    tls_connection t = {0};
    int room = 2 * UNDER_WAY;
    open_server_context(&server, "server.pem");
    open_host(&h, &server, read_late);
    CHECK_INT(tls_connect(&t, &client, h.address), 0);
    CHECK_INT(conc_settle(), 0); /* the tickets arrive */
    CHECK_INT(setsockopt(t.fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof room), 0);
    CHECK_INT(conc_stream_write(&t.stream, pattern, UNDER_WAY), UNDER_WAY);
    CHECK_INT(tls_close(&t), 0);
    conc_event_set(&client_has_left);
    while (conc_event_is_set(&client_has_left))
        CHECK_INT(conc_sleep(1), 0);
    close_host(&h);
    tls_context_close(&client);
    tls_context_close(&server);
}

/* ---- many ---- */

typedef struct crowd {
    host *h;
    tls_context *context;
    int ready;
    conc_event all_are_connected;
} crowd;

enum { CROWD = 1000 };

static int one_of_many(void *arg)
{
    crowd *c = arg;
    CONC_AUTO(tls_connection, t) = {0};
    CONC_TRY(tls_connect(&t, c->context, c->h->address));
    if (++c->ready == CROWD)
        conc_event_set(&c->all_are_connected);
    CONC_TRY(conc_event_wait(&c->all_are_connected));
    say(&t, "me");
    hear(&t, "you said me");
    CHECK_INT(conc_stream_shutdown(&t.stream), 0);
    hear_end(&t);
    return tls_close(&t);
}

REAL_TEST(a_thousand_connections_share_two_contexts)
{
    tls_context server = {.handshake_timeout = CONC_FOREVER}, client = client_context();
    host h = {0};
    struct rlimit files = {4096, 4096};
    if (setrlimit(RLIMIT_NOFILE, &files)) {
        getrlimit(RLIMIT_NOFILE, &files);
        CHECK(files.rlim_cur >= 2 * CROWD + 50);
    }
    open_server_context(&server, "server.pem");
    client.handshake_timeout = CONC_FOREVER;
    open_host(&h, &server, echo_lines);
    crowd c = {.h = &h, .context = &client};
    CHECK_INT(conc_map(one_of_many, &c, CROWD, 0), 0);
    CHECK_INT(h.count, CROWD);
    close_host(&h);
    tls_context_close(&client);
    tls_context_close(&server);
}

/* ---- openssl s_server ---- */

typedef struct peer {
    server process;
    char port[24], address[32];
    const char *argv[24];
} peer;

static void start_s_server(peer *p, const char *certificate, const char *const *extra)
{
    const char *const argv[] = {"openssl", "s_server",        "-accept", p->port,
                                "-cert",   path(certificate), "-key",    path("key.pem")};
    size_t n = CONC_LEN(argv);
    p->process.port = server_free_port();
    snprintf(p->port, sizeof p->port, "%d", p->process.port);
    snprintf(p->address, sizeof p->address, "localhost:%d", p->process.port);
    memcpy(p->argv, argv, sizeof argv);
    while (*extra)
        p->argv[n++] = *extra++;
    p->process.argv = p->argv;
    server_make_folder(&p->process);
    server_start(&p->process);
}

#define S_SERVER(p, certificate, ...) \
    start_s_server(p, certificate, (const char *const[]){__VA_ARGS__, NULL})

static void reverse_with(peer *p, int version)
{
    tls_context c = client_context();
    tls_connection t = {0};
    CHECK_INT(tls_connect(&t, &c, p->address), 0);
    CHECK_INT(SSL_version(t.ssl), version);
    CHECK_STR(t.subject, "/CN=server");
    CHECK_STR(t.peer, p->address);
    for (int i = 0; i < 3; i++) {
        CHECK_INT(conc_stream_printf(&t.stream, "abcd\n"), 5);
        hear(&t, "dcba");
    }
    CHECK_INT(tls_close(&t), 0);
    tls_context_close(&c);
}

static void in_s_server_1_3(void)
{
    peer p = {0};
    S_SERVER(&p, "server.pem", "-rev");
    reverse_with(&p, TLS1_3_VERSION);
    reverse_with(&p, TLS1_3_VERSION);
    server_end(&p.process);
}

static void in_s_server_1_2(void)
{
    peer p = {0};
    S_SERVER(&p, "server.pem", "-rev", "-tls1_2");
    reverse_with(&p, TLS1_2_VERSION);
    server_end(&p.process);
}

TEST(a_client_talks_with_openssls_server) { run_checked(in_s_server_1_3, false); }

TEST(a_client_talks_with_openssls_server_of_tls_1_2) { run_checked(in_s_server_1_2, false); }

REAL_TEST(a_client_refuses_an_expired_certificate_and_an_old_protocol_of_openssls_server)
{
    tls_context c = client_context();
    tls_connection t = {0};
    peer p = {0}, old = {0};
    char words[80];
    S_SERVER(&p, "expired.pem", "-rev");
    CHECK_INT(tls_connect(&t, &c, p.address), -EACCES);
    snprintf(words, sizeof words, "%s: certificate has expired", p.address);
    CHECK_STR(t.error, words);
    server_end(&p.process);
    S_SERVER(&old, "server.pem", "-rev", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0");
    CHECK_INT(tls_connect(&t, &c, old.address), -EPROTO);
    CHECK_CONTAINS(t.error, "protocol version");
    server_end(&old.process);
    tls_context_close(&c);
}

static int ask_until_it_works(void *arg)
{
    peer *p = arg;
    tls_context c = client_context();
    tls_connection t = {0};
    CHECK_INT(tls_connect(&t, &c, p->address), 0);
    say(&t, "ab");
    hear(&t, "ba");
    server_kill(&p->process);
    char byte;
    CHECK_INT(conc_stream_read(&t.stream, &byte, 1), -ECONNRESET);
    CHECK_CONTAINS(t.error, p->address);
    tls_close(&t);
    CHECK_INT(tls_connect(&t, &c, p->address), -ECONNREFUSED);
    server_start(&p->process);
    CHECK_INT(tls_connect(&t, &c, p->address), 0);
    say(&t, "cd");
    hear(&t, "dc");
    CHECK_INT(tls_close(&t), 0);
    tls_context_close(&c);
    return 0;
}

REAL_TEST(a_connection_ends_with_its_server_and_the_next_one_finds_it_again)
{
    peer p = {0};
    S_SERVER(&p, "server.pem", "-rev");
    CHECK_INT(ask_until_it_works(&p), 0);
    server_end(&p.process);
}

REAL_TEST(a_server_that_was_stopped_is_given_up_and_found_again)
{
    tls_context c = {.ca_file = path("ca.pem"), .handshake_timeout = 0.2};
    tls_connection t = {0};
    peer p = {0};
    S_SERVER(&p, "server.pem", "-rev");
    CHECK_INT(tls_context_open_client(&c), 0);
    server_signal(&p.process, SIGSTOP);
    CHECK_INT(tls_connect(&t, &c, p.address), -ETIMEDOUT);
    CHECK(t.ssl == NULL);
    server_signal(&p.process, SIGCONT);
    c.handshake_timeout = CONC_FOREVER;
    CHECK_INT(tls_connect(&t, &c, p.address), 0);
    call reader = {.t = &t};
    server_signal(&p.process, SIGSTOP);
    CHECK_INT(conc_timeout(0.1, read_something, &reader), -ETIMEDOUT);
    server_signal(&p.process, SIGCONT);
    say(&t, "xyz");
    hear(&t, "zyx");
    CHECK_INT(tls_close(&t), 0);
    server_end(&p.process);
    tls_context_close(&c);
}

REAL_TEST(a_page_of_openssls_server_is_read_to_its_end)
{
    tls_context c = client_context();
    tls_connection t = {0};
    peer p = {0};
    char *line;
    bool found = false;
    S_SERVER(&p, "server.pem", "-www");
    CHECK_INT(tls_connect(&t, &c, p.address), 0);
    CHECK_INT(conc_stream_printf(&t.stream, "GET / HTTP/1.0\r\n\r\n"), 18);
    hear(&t, "HTTP/1.0 200 ok");
    while (conc_stream_read_line(&t.stream, &line) >= 0 && line)
        found |= strstr(line, "TLSv1.3") != NULL;
    CHECK(found);
    hear_end(&t); /* it was the end, and no error */
    CHECK_INT(tls_close(&t), 0);
    server_end(&p.process);
    tls_context_close(&c);
}

/* ---- openssl s_client and curl ---- */

/* Runs a program with this input; returns its exit status, and stores its output in out. */
static int run_program(const char *const *argv, const char *in, char *out, size_t size)
{
    conc_child c = {.argv = argv, .input = CONC_PIPE, .output = CONC_PIPE, .error = CONC_PIPE};
    conc_child_io io = {.in = in, .in_size = in ? strlen(in) : 0};
    int status = -1, rc = conc_child_start(&c);
    if (rc)
        return rc;
    CHECK_INT(conc_child_communicate(&c, &io, &status), 0);
    snprintf(out, size, "%s%s", io.out, io.error);
    conc_free(io.out);
    conc_free(io.error);
    CHECK_INT(conc_child_close(&c), 0);
    CHECK(WIFEXITED(status));
    return WEXITSTATUS(status);
}

/* Starts a server and s_client, with these arguments after those that name the server. */
static int run_s_client(host *h, const char *in, char *out, size_t size, const char *const *extra)
{
    const char *argv[24] = {"openssl",
                            "s_client",
                            "-connect",
                            h->address,
                            "-servername",
                            "localhost",
                            "-CAfile",
                            path("ca.pem"),
                            "-verify_hostname",
                            "localhost",
                            "-verify_return_error"};
    size_t n = 0;
    while (argv[n])
        n++;
    while (*extra)
        argv[n++] = *extra++;
    return run_program(argv, in, out, size);
}

#define S_CLIENT(h, in, out, ...) \
    run_s_client(h, in, out, sizeof out, (const char *const[]){__VA_ARGS__, NULL})

static int echo_one_line(tls_connection *t)
{
    char *line;
    CONC_TRY(conc_stream_read_line(&t->stream, &line));
    return (int)conc_stream_printf(&t->stream, "you said %s\n", line);
}

static void check_s_client(tls_context *server, const char *version, const char *name)
{
    host h = {0};
    char out[20000];
    open_host(&h, server, echo_one_line);
    CHECK_INT(S_CLIENT(&h, "hello\n", out, "-quiet", version), 0);
    CHECK_CONTAINS(out, "you said hello\n");
    CHECK_INT(S_CLIENT(&h, "hello\n", out, "-ign_eof", version, "-alpn", "x,http/1.1"), 0);
    CHECK_CONTAINS(out, name);
    CHECK_CONTAINS(out, "ALPN protocol: http/1.1");
    CHECK_CONTAINS(out, "Verify return code: 0 (ok)");
    CHECK_CONTAINS(out, "you said hello\n");
    CHECK_INT(h.count, 2);
    CHECK_INT(h.results[0] + h.results[1], 0);
    close_host(&h);
}

REAL_TEST(openssls_client_talks_with_a_server)
{
    tls_context server = {.alpn = "http/1.1"};
    open_server_context(&server, "server.pem");
    check_s_client(&server, "-tls1_3", "New, TLSv1.3");
    check_s_client(&server, "-tls1_2", "New, TLSv1.2");
    tls_context_close(&server);
}

REAL_TEST(openssls_client_shows_its_certificate_or_is_refused)
{
    tls_context server = {.ca_file = path("ca.pem")};
    host h = {0};
    char out[20000];
    open_server_context(&server, "server.pem");
    open_host(&h, &server, echo_one_line);
    CHECK_INT(
        S_CLIENT(&h, "hello\n", out, "-quiet", "-cert", path("alice.pem"), "-key", path("key.pem")),
        0);
    CHECK_CONTAINS(out, "you said hello\n");
    CHECK(S_CLIENT(&h, "hello\n", out, "-ign_eof", "-tls1_2") != 0);
    CHECK_CONTAINS(out, "Acceptable client certificate CA names\nCN = ca\n");
    CHECK_CONTAINS(out, "alert handshake failure");
    CHECK_INT(h.results[0], 0);
    CHECK_INT(h.results[1], -EACCES);
    close_host(&h);
    tls_context_close(&server);
}

static void check_resumption(host *h, const char *version)
{
    const char *alice = path("alice.pem"), *key = path("key.pem"), *session = path("session");
    char out[20000];
    CHECK_INT(S_CLIENT(h, "hello\n", out, "-ign_eof", version, "-cert", alice, "-key", key,
                       "-sess_out", session),
              0);
    CHECK_CONTAINS(out, "you said hello\n");
    CHECK_INT(S_CLIENT(h, "hello\n", out, "-ign_eof", version, "-sess_in", session), 0);
    CHECK_CONTAINS(out, "Reused, TLS");
    CHECK_CONTAINS(out, "you said hello\n");
}

REAL_TEST(openssls_client_resumes_a_session)
{
    tls_context server = {.ca_file = path("ca.pem")};
    host h = {0};
    open_server_context(&server, "server.pem");
    open_host(&h, &server, echo_one_line);
    check_resumption(&h, "-tls1_3");
    check_resumption(&h, "-tls1_2");
    close_host(&h);
    tls_context_close(&server);
}

REAL_TEST(a_client_of_tls_1_1_is_refused)
{
    tls_context server = {0};
    host h = {0};
    char out[20000];
    open_server_context(&server, "server.pem");
    open_host(&h, &server, echo_one_line);
    CHECK(S_CLIENT(&h, "hello\n", out, "-quiet", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0") != 0);
    CHECK_CONTAINS(out, "alert protocol version");
    CHECK_INT(h.results[0], -EPROTO);
    close_host(&h);
    tls_context_close(&server);
}

static int echo_until_error(tls_connection *t)
{
    CHECK_INT(echo_lines(t), -EPROTO);
    CHECK_CONTAINS(t->error, "alert handshake failure"); /* the client gives up */
    return 0;
}

REAL_TEST(renegotiation_is_refused)
{
    tls_context server = {0};
    host h = {0};
    open_server_context(&server, "server.pem");
    open_host(&h, &server, echo_until_error);
    const char *argv[] = {"openssl", "s_client", "-connect",     h.address,
                          "-tls1_2", "-CAfile",  path("ca.pem"), NULL};
    conc_child c = {.argv = argv, .input = CONC_PIPE, .output = CONC_PIPE, .error = CONC_PIPE};
    int status;
    char out[20000] = "";
    CHECK_INT(conc_child_start(&c), 0);
    CHECK_INT(conc_write(c.input, "R\n", 2), 2); /* its input stays open */
    CHECK(conc_read_full(c.error, out, sizeof out - 1) > 0);
    CHECK_CONTAINS(out, "no renegotiation");
    CHECK_INT(conc_child_wait(&c, &status), 0);
    CHECK(status != 0);
    CHECK_INT(conc_child_close(&c), 0);
    CHECK_INT(h.results[0], 0);
    close_host(&h);
    tls_context_close(&server);
}

TLS_TEST(a_server_cannot_make_a_client_renegotiate)
{
    pair p = {0};
    char byte;
    limit_version(&p, TLS1_2_VERSION);
    SSL_CTX_clear_options(p.contexts[1].ssl_context, SSL_OP_NO_RENEGOTIATION);
    open_pair(&p);
    CHECK_INT(SSL_renegotiate(p.server.ssl), 1);
    CHECK_INT(SSL_do_handshake(p.server.ssl), 1); /* that only asks */
    say(&p.server, "hello");
    hear(&p.client, "hello");
    say(&p.client, "no");
    CHECK_INT(conc_stream_read(&p.server.stream, &byte, 1), -EPROTO);
    CHECK_CONTAINS(p.server.error, "no renegotiation");
    close_pair(&p);
}

/* As much of SMTP as s_client -starttls smtp needs. */
static int serve_smtp(int fd, void *context)
{
    CONC_AUTO(conc_stream, plain) = {0};
    CONC_AUTO(tls_connection, t) = {0}; /* is closed first */
    char *line = NULL;
    CONC_TRY(conc_stream_open(&plain, fd));
    CONC_TRY(conc_stream_printf(&plain, "220 here\r\n"));
    CONC_TRY(conc_stream_read_line(&plain, &line));
    CHECK_CONTAINS(line, "EHLO");
    CONC_TRY(conc_stream_printf(&plain, "250-here\r\n250 STARTTLS\r\n"));
    check_line(&plain, "STARTTLS");
    CONC_TRY(conc_stream_printf(&plain, "220 go ahead\r\n"));
    CONC_TRY(tls_upgrade(&t, context, &plain, NULL));
    return echo_one_line(&t);
}

static int serve_with_smtp(void *server) { return conc_serve(server); }

REAL_TEST(openssls_client_starts_tls_in_the_middle_of_smtp)
{
    tls_context context = {0};
    conc_server server = {.handler = serve_smtp, .arg = &context};
    conc_group g = {0};
    host h = {0};
    char out[20000];
    open_server_context(&context, "server.pem");
    server.fd = conc_listen("localhost:0");
    CHECK_INT(conc_address(server.fd, false, h.address, sizeof h.address), 0);
    CHECK_INT(conc_spawn(&g, serve_with_smtp, &server), 0);
    CHECK_INT(S_CLIENT(&h, "hello\n", out, "-quiet", "-starttls", "smtp"), 0);
    CHECK_CONTAINS(out, "you said hello\n");
    conc_group_cancel(&g);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(conc_close(server.fd), 0);
    tls_context_close(&context);
}

static int answer_http(tls_connection *t)
{
    char *line;
    do
        CONC_TRY(conc_stream_read_line(&t->stream, &line));
    while (line && *line);
    return (int)conc_stream_printf(&t->stream,
                                   "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n"
                                   "Connection: close\r\n\r\n%.*s",
                                   BIG, BIG, pattern);
}

REAL_TEST(curl_gets_a_page_by_https)
{
    static char out[BIG + 1000];
    tls_context server = {.alpn = "http/1.1"};
    host h = {0};
    char url[140];
    open_server_context(&server, "server.pem");
    open_host(&h, &server, answer_http);
    snprintf(url, sizeof url, "https://localhost:%d/", port_of(h.address));
    const char *argv[] = {"curl", "-sS",      "--noproxy",    "*", "--max-time",
                          "10",   "--cacert", path("ca.pem"), url, NULL};
    int rc = run_program(argv, NULL, out, sizeof out);
    if (rc == -ENOENT) {
        fprintf(stderr, "there is no curl\n");
    } else {
        CHECK_INT(rc, 0);
        CHECK_INT(strlen(out), BIG);
        CHECK(memcmp(out, pattern, BIG) == 0);
        CHECK_INT(h.results[0], 0);
    }
    close_host(&h);
    tls_context_close(&server);
}

/* ---- the loop is not blocked ---- */

static pair of_debug_mode[2] = {{.certificate = "server.pem"}, {.certificate = "expired.pem"}};

static int talk_in_debug_mode(void *arg)
{
    pair *good = &of_debug_mode[0], *expired = &of_debug_mode[1];
    call writer = {.t = &good->client, .count = 50000, .key_updates = 3},
         reader = {.t = &good->server, .count = 50000};
    (void)arg;
    open_pair(good);
    CHECK_INT(CONC_GATHER(CONC_CALL(write_pattern, &writer), CONC_CALL(read_pattern, &reader)), 0);
    close_pair(good);
    try_pair(expired);
    CHECK_INT(expired->client_rc, -EACCES);
    close_pair(expired);
    return 0;
}

static void in_debug_mode(void)
{
    conc_options o = {.debug = true, .slow_step = SANITIZED ? 0.05 : 0.01};
    for (int i = 0; i < 2; i++) { /* which reads files */
        of_debug_mode[i].contexts[0].ca_file = path("ca.pem");
        CHECK_INT(tls_context_open_client(&of_debug_mode[i].contexts[0]), 0);
        open_server_context(&of_debug_mode[i].contexts[1], of_debug_mode[i].certificate);
    }
    CHECK_INT(conc_run_with(&o, talk_in_debug_mode, NULL), 0);
}

/* Returns debug mode's first report besides the summary of stacks, or "". */
static const char *first_report(char *text)
{
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        if (strncmp(line, "conc: stacks: ", 14) != 0)
            return line;
    }
    return "";
}

TEST(debug_mode_reports_nothing)
{
    char text[10000];
    const char *report = NULL;
    for (int i = 0; i < 20 && (!report || *report); i++) { /* a busy machine may stop any step */
        CHECK_INT(test_in_process(in_debug_mode, text, sizeof text), 0);
        report = first_report(text);
    }
    CHECK_STR(report, "");
}
