/* tls.h - TLS for conc: an encrypted conc_stream, with OpenSSL 3
 *
 * A tls_connection contains a conc_stream, so everything that runs on a stream (lines, HTTP,
 * WebSocket) runs over TLS. A client always checks the server's certificate and name.
 *
 *     #define CONC_IMPLEMENTATION
 *     #include "conc_sync.h"
 *     #include "tls.h"
 *
 *     static int ask(void *context)
 *     {
 *         char *line;
 *         CONC_AUTO(tls_connection, t) = {0}; // closed when the function returns
 *         CONC_TRY(tls_connect(&t, context, "localhost:4433"));
 *         CONC_TRY(conc_stream_printf(&t.stream, "hello\n"));
 *         CONC_TRY(conc_stream_read_line(&t.stream, &line));
 *         return line ? printf("%s\n", line) : conc_fail(-EPROTO, "no answer");
 *     }
 *     int main(void)
 *     {
 *         CONC_AUTO(tls_context, context) = {.ca_file = "ca.pem"};
 *         if (tls_context_open_client(&context))
 *             return fprintf(stderr, "%s\n", context.error), 1;
 *         return conc_main(ask, &context);
 *     }
 *
 * A handler of a conc_server, with a context opened by tls_context_open_server:
 *
 *     static int serve_one(int fd, void *context)
 *     {
 *         CONC_AUTO(tls_connection, t) = {0};
 *         CONC_TRY(tls_accept(&t, context, fd));
 *         return (int)conc_stream_printf(&t.stream, "hello\n");
 *     }
 *
 * For STARTTLS, tls_upgrade encrypts a stream that is already open.
 *
 * Compile with -lssl -lcrypto (Debian: libssl-dev; Fedora: openssl-devel; Alpine: openssl-dev).
 * Names such as example.org are looked up if the program also includes conc_pool.h.
 *
 * Results   0, or a negative errno. The text, which names the peer and OpenSSL's reason, is in
 *           .error of the context or connection, and in conc_last_error, truncated to 127 bytes.
 *             -EACCES       the peer's certificate was refused: "localhost: certificate has
 *                           expired", "hostname mismatch", "self-signed certificate", ...
 *             -EPROTO       any other TLS error: no TLS at all, an altered record, an alert
 *             -ECONNRESET   the connection ended without TLS's close_notify: an attacker, or a
 *                           careless peer, may have cut off the rest
 *             -ETIMEDOUT    the handshake took longer than .handshake_timeout
 *             -EPIPE        a write after the connection has failed; .error says why
 *             -EINVAL, -EBUSY, -ENOMEM, and what conc_dial and the stream calls return
 * Waiting   tls_connect, tls_accept, tls_upgrade, tls_close, and conc's stream calls: cancels and
 *           time limits apply. tls_context_open_* read files and block: call them before the run,
 *           or through conc_offload. A handshake blocks the loop for at most 1 ms, or 5 ms with a
 *           4096-bit RSA key.
 * Cancel    in a handshake: nothing stays open (a stream passed to tls_upgrade becomes unusable).
 *           In a read: nothing is lost. In a write or flush: the connection stays usable; the next
 *           write, read, shutdown or close first sends the rest of the current record, at most 16
 *           KiB; a flush alone does not wait for it. A connection closed in a cancelled task sends
 *           no close_notify, so that its peer can tell that it was cut short.
 * Tasks     one task may read while others write. A context serves any number of connections, even
 *           of several threads' loops, and must stay open until their handshakes are over.
 * Stacks    a task needs 32 KiB for a handshake.
 *
 * TLS 1.2 and later, with OpenSSL's choice of ciphers. Renegotiation is refused; session tickets
 * and key updates are handled. Not covered: keys with a password, certificates chosen by the
 * client's SNI, revocation lists and OCSP, resuming sessions as a client, early data, continuing in
 * plain text after TLS, or after an error. */
#ifndef TLS_H
#define TLS_H

#ifndef CONC_SYNC_H
#error "include conc_sync.h before tls.h"
#endif
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#if OPENSSL_VERSION_NUMBER < 0x30000000L
#error "tls.h needs OpenSSL 3"
#endif
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- what you call ---- */

/* The settings that connections share. Set the options, then open it; do not move it while it is
 * open. Files are in PEM format. */
typedef struct tls_context {
    /* certificates trusted to sign the peer's. In a client NULL means the system's; to accept one
     * self-signed certificate, name its file. In a server NULL means that clients need none */
    const char *ca_file;
    /* this side's certificate, followed by those that lead to the trusted one. Required in a
     * server, optional in a client */
    const char *certificate_file;
    const char *key_file; /* its private key, without a password; NULL: in certificate_file */
    const char *alpn;     /* protocols in order of preference: "h2,http/1.1"; NULL: none */
    /* in a server with a ca_file: clients may lack a certificate; see connection.subject */
    bool client_may_be_anonymous;
    double handshake_timeout; /* seconds; 0: 60; CONC_FOREVER: no limit */
    char error[256];          /* why the open failed */
    /* private */
    bool server;
    SSL_CTX *ssl_context;
    unsigned char protocols[256]; /* alpn, in TLS's form */
    unsigned protocols_size;
} tls_context;

/* Reads the files and opens the context for clients or servers. Blocks. May be called anywhere.
 * Errors: -ENOENT and other system errors (a file), -EPROTO (its content), -EINVAL (already open, a
 * server without a certificate, alpn), -ENOMEM. */
static inline int tls_context_open_client(tls_context *c);
static inline int tls_context_open_server(tls_context *c);

/* Closes it. Open connections continue. May be called anywhere, twice, or on an unopened
 * context. */
static inline void tls_context_close(tls_context *c);

enum { TLS_NAME_SIZE = 32 };

/* One connection. You may set the stream's options limit and buffer_size before it is opened. Do
 * not move it until it is closed. */
typedef struct tls_connection {
    conc_stream stream; /* for reading and writing while the connection is open */
    /* read only: */
    char alpn[TLS_NAME_SIZE]; /* the negotiated protocol; "": none */
    char subject[256];        /* of the peer's certificate: "/CN=alice"; "": no certificate */
    char peer[260];           /* the server's name, or the client's address */
    char error[400];          /* the newest error */
    SSL *ssl;                 /* for OpenSSL's functions, such as SSL_get_version(t.ssl) */
    /* private */
    BIO *in, *out;      /* received, not yet decrypted; encrypted, not yet sent */
    conc_stream *plain; /* the stream for encrypted bytes */
    conc_stream own;    /* *plain, unless the caller passed one */
    int fd;             /* of own, else -1 */
    conc_lock sending;
    char chunk[4096]; /* bytes read from out; those from start to end are not yet in plain */
    int start, end;
    double handshake_timeout;
    bool is_open, feeding; /* feeding: a task is waiting for encrypted bytes */
    bool cut;              /* a write was cancelled, and the rest of its record is unsent */
    bool broken;           /* writing is impossible */
} tls_connection;

/* Connects to "host:port" and makes the handshake, in which the server must prove that it is
 * `host`. Waits. In TLS 1.3 a server reports only later that it refuses the client's certificate:
 * the first read returns the error. */
static inline int tls_connect(tls_connection *t, const tls_context *c, const char *address);

/* Makes a server's handshake on fd. The connection owns fd and closes it, even after an error.
 * Waits. */
static inline int tls_accept(tls_connection *t, const tls_context *c, int fd);

/* Makes the handshake on an open stream, for STARTTLS, a proxy, or TLS inside TLS. host is the name
 * that the server must prove; pass NULL if this side is the server. The caller still owns the
 * stream: do not use it any more, and close it after the connection. Bytes that it has read ahead
 * are treated as encrypted, so that nobody can inject plain text. Waits. */
static inline int tls_upgrade(tls_connection *t, const tls_context *c, conc_stream *plain,
                              const char *host);

/* Flushes, sends close_notify and closes; conc_stream_close(&t->stream) does the same. Does not
 * wait for the peer's close_notify: if the peer must have read everything, call
 * conc_stream_shutdown(&t->stream) and read until the end first. Returns what conc_stream_close
 * returns. -EBUSY: another task is making the handshake. */
static inline int tls_close(tls_connection *t);

CONC_AUTO_TYPE(tls_context, tls_context_close);
CONC_AUTO_TYPE(tls_connection, tls_close);

/* ---- errors ---- */

/* Describes OpenSSL's oldest error in *words and returns its errno. OpenSSL's error queue belongs
 * to the thread, so call this before anything that waits. */
static inline int tls__reason(const SSL *ssl, const char **words)
{
    unsigned long first = ERR_peek_error();
    int reason = ERR_GET_REASON(first), rc = -EPROTO;
    bool of_tls = ERR_GET_LIB(first) == ERR_LIB_SSL;
    *words = ERR_reason_error_string(first);
    if (ERR_SYSTEM_ERROR(first)) {
        *words = conc_strerror(-reason);
        rc = -reason;
    } else if (reason == ERR_R_MALLOC_FAILURE) {
        rc = -ENOMEM;
    } else if (of_tls && reason == SSL_R_CERTIFICATE_VERIFY_FAILED) {
        *words = X509_verify_cert_error_string(SSL_get_verify_result(ssl));
        rc = -EACCES;
    } else if (of_tls && reason == SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE) {
        rc = -EACCES;
    }
    if (!*words)
        *words = "unknown error of OpenSSL";
    ERR_clear_error();
    return rc;
}

/* Sets c->error and returns rc. */
static inline int tls__context_fail(tls_context *c, int rc, const char *what, const char *words)
{
    snprintf(c->error, sizeof c->error, "%s: %s", what, words);
    return conc_fail(rc, "%s", c->error);
}

/* Sets t->error and returns rc. A cancel leaves it unchanged. */
static inline int tls__fail(tls_connection *t, int rc, const char *words)
{
    if (rc == -ECANCELED)
        return rc;
    snprintf(t->error, sizeof t->error, "%s: %s", t->peer, words);
    return conc_fail(rc, "%s", t->error);
}

/* An OpenSSL call failed for good: marks the connection as broken. */
static inline int tls__broke(tls_connection *t)
{
    const char *words;
    int rc = tls__reason(t->ssl, &words);
    t->broken = true;
    return tls__fail(t, rc, words);
}

/* ---- contexts ---- */

/* Notes that a key has a password, for which OpenSSL would otherwise ask at the terminal. */
static inline int tls__no_password(char *buf, int size, int writing, void *asked)
{
    (void)buf, (void)size, (void)writing;
    *(bool *)asked = true;
    return -1;
}

/* Converts "h2,http/1.1" to "\2h2\10http/1.1". Returns 0 or -EINVAL. */
static inline int tls__pack_protocols(tls_context *c)
{
    const char *name = c->alpn;
    c->protocols_size = 0;
    while (name) {
        size_t n = strcspn(name, ",");
        bool fits = n > 0 && n < TLS_NAME_SIZE && c->protocols_size + n < sizeof c->protocols;
        if (!fits)
            return -EINVAL;
        c->protocols[c->protocols_size++] = (unsigned char)n;
        memcpy(c->protocols + c->protocols_size, name, n);
        c->protocols_size += (unsigned)n;
        name = name[n] ? name + n + 1 : NULL;
    }
    return 0;
}

/* Chooses among the protocols that a client offers. */
static inline int tls__choose_protocol(SSL *ssl, const unsigned char **chosen, unsigned char *size,
                                       const unsigned char *offered, unsigned offered_size,
                                       void *context)
{
    const tls_context *c = context;
    unsigned char *match;
    (void)ssl;
    if (SSL_select_next_proto(&match, size, c->protocols, c->protocols_size, offered,
                              offered_size) != OPENSSL_NPN_NEGOTIATED)
        return SSL_TLSEXT_ERR_ALERT_FATAL;
    *chosen = match;
    return SSL_TLSEXT_ERR_OK;
}

static inline int tls__use_protocols(tls_context *c)
{
    if (tls__pack_protocols(c))
        return tls__context_fail(c, -EINVAL, "alpn",
                                 "not names of 1 to 31 bytes, separated by commas");
    if (c->server && c->alpn)
        SSL_CTX_set_alpn_select_cb(c->ssl_context, tls__choose_protocol, c);
    else if (c->alpn && SSL_CTX_set_alpn_protos(c->ssl_context, c->protocols, c->protocols_size))
        return tls__context_fail(c, -ENOMEM, "alpn", "out of memory");
    return 0;
}

/* Trusts the system's certificates. OpenSSL's own default is a folder that it would read during
 * handshakes, so this first looks for the same certificates in one file. */
static inline int tls__trust_system(SSL_CTX *s)
{
    static const char *const bundles[] = {
        "/etc/ssl/certs/ca-certificates.crt",                /* Debian, Alpine, Arch */
        "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", /* Fedora, RHEL */
        "/etc/ssl/ca-bundle.pem",                            /* openSUSE */
        "/etc/ssl/cert.pem",                                 /* macOS, BSD */
    };
    bool by_environment = getenv("SSL_CERT_FILE") || getenv("SSL_CERT_DIR");
    for (size_t i = 0; i < CONC_LEN(bundles) && !by_environment; i++) {
        if (access(bundles[i], R_OK) == 0)
            return SSL_CTX_load_verify_file(s, bundles[i]);
    }
    return SSL_CTX_set_default_verify_paths(s);
}

/* Sets which certificates are trusted, and whether the peer needs one. */
static inline int tls__use_trust(tls_context *c)
{
    SSL_CTX *s = c->ssl_context;
    const char *what = c->ca_file, *words;
    int mode = SSL_VERIFY_PEER;
    if (c->server && !what)
        return 0;
    int ok = what ? SSL_CTX_load_verify_file(s, what) : tls__trust_system(s);
    if (ok && c->server) {
        STACK_OF(X509_NAME) *names = SSL_load_client_CA_file(what);
        SSL_CTX_set_client_CA_list(s, names); /* tells clients which authorities are accepted */
        ok = names != NULL;
    }
    if (!ok) {
        int rc = tls__reason(NULL, &words);
        return tls__context_fail(c, rc, what ? what : "the system's certificates", words);
    }
    if (c->server && !c->client_may_be_anonymous)
        mode |= SSL_VERIFY_FAIL_IF_NO_PEER_CERT;
    SSL_CTX_set_verify(s, mode, NULL);
    return 0;
}

/* Loads this side's certificate and key. */
static inline int tls__use_certificate(tls_context *c)
{
    SSL_CTX *s = c->ssl_context;
    const char *what = c->certificate_file, *words;
    bool has_password = false;
    if (!what && c->server)
        return tls__context_fail(c, -EINVAL, "certificate_file", "a server needs one");
    if (!what && c->key_file)
        return tls__context_fail(c, -EINVAL, "key_file", "there is no certificate_file");
    if (!what)
        return 0;
    SSL_CTX_set_default_passwd_cb(s, tls__no_password);
    SSL_CTX_set_default_passwd_cb_userdata(s, &has_password);
    bool ok = SSL_CTX_use_certificate_chain_file(s, what) == 1;
    if (ok) {
        what = c->key_file ? c->key_file : what;
        ok = SSL_CTX_use_PrivateKey_file(s, what, SSL_FILETYPE_PEM) == 1 &&
             SSL_CTX_check_private_key(s) == 1;
    }
    if (ok)
        return 0;
    int rc = tls__reason(NULL, &words);
    return tls__context_fail(c, rc, what, has_password ? "the key has a password" : words);
}

static inline int tls__context_open(tls_context *c, bool for_servers)
{
    if (!c)
        return conc_fail(-EINVAL, "no tls_context");
    if (c->ssl_context)
        return tls__context_fail(c, -EINVAL, "tls_context", "it is open already");
    ERR_clear_error();
    c->error[0] = 0;
    c->server = for_servers;
    c->ssl_context = SSL_CTX_new(for_servers ? TLS_server_method() : TLS_client_method());
    if (!c->ssl_context)
        return tls__context_fail(c, -ENOMEM, "tls_context", "out of memory");
    long system_minimum = SSL_CTX_get_min_proto_version(c->ssl_context);
    if (system_minimum < TLS1_2_VERSION)
        SSL_CTX_set_min_proto_version(c->ssl_context, TLS1_2_VERSION);
    SSL_CTX_set_options(c->ssl_context, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
    SSL_CTX_set_mode(c->ssl_context, SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_session_cache_mode(c->ssl_context, SSL_SESS_CACHE_OFF); /* tickets need none */
    SSL_CTX_set_session_id_context(c->ssl_context, (const unsigned char *)"conc", 4);
    int rc = tls__use_protocols(c);
    if (rc == 0)
        rc = tls__use_trust(c);
    if (rc == 0)
        rc = tls__use_certificate(c);
    if (rc)
        tls_context_close(c);
    return rc;
}

static inline int tls_context_open_client(tls_context *c) { return tls__context_open(c, false); }
static inline int tls_context_open_server(tls_context *c) { return tls__context_open(c, true); }

static inline void tls_context_close(tls_context *c)
{
    if (!c)
        return;
    SSL_CTX_free(c->ssl_context); /* open connections hold references */
    c->ssl_context = NULL;
}

/* ---- a connection's bytes ----
 *
 * OpenSSL works on two memory buffers, and never waits. Encrypted bytes move between them and the
 * plain stream:
 *
 *     stream.write -> SSL_write -> out -> chunk -> plain
 *     stream.read  <- SSL_read  <- in  <---------- plain
 *
 * No task waits inside OpenSSL, so two tasks are never in it at once. Reading may put bytes into
 * `out`, too: alerts. The task that moves bytes out of `out` holds the lock `sending`. */

/* Moves encrypted bytes to the plain stream. After an error the next call continues. */
static inline int tls__hand_over(tls_connection *t)
{
    for (;;) {
        if (t->start == t->end) {
            t->start = 0;
            t->end = BIO_read(t->out, t->chunk, sizeof t->chunk);
            if (t->end <= 0) {
                t->end = 0;
                return 0;
            }
        }
        ssize_t n = conc_stream_write(t->plain, t->chunk + t->start, (size_t)(t->end - t->start));
        if (n < 0)
            return (int)n;
        t->start += (int)n;
    }
}

/* The same, and waits until the system has accepted all of it. */
static inline int tls__send(tls_connection *t)
{
    int rc = tls__hand_over(t);
    if (rc == 0)
        rc = conc_stream_flush(t->plain);
    if (rc > 0)
        rc = -ECANCELED; /* cancelled after a part was sent */
    if (rc == 0)
        t->cut = false;
    if (rc == 0 || rc == -ECANCELED)
        return rc;
    t->broken = true;
    return tls__fail(t, rc, conc_last_error());
}

/* Called by a reader: moves the alerts that reading has produced to the plain stream, which sends
 * them in its next read. If a writer is active, it sends them instead, so that the reader need not
 * wait until the peer has read everything. An error is ignored: the next read meets it again. */
static inline void tls__answer(tls_connection *t)
{
    if (!BIO_pending(t->out) || conc_lock_try_acquire(&t->sending))
        return;
    (void)tls__hand_over(t);
    conc_lock_release(&t->sending);
}

/* Waits for encrypted bytes. -EAGAIN: another task is waiting for them already. */
static inline int tls__feed(tls_connection *t)
{
    char bytes[4096];
    if (t->feeding)
        return -EAGAIN;
    t->feeding = true;
    ssize_t n = conc_stream_read(t->plain, bytes, sizeof bytes);
    t->feeding = false;
    if (n > 0)
        return BIO_write(t->in, bytes, (int)n) == n ? 0 : tls__fail(t, -ENOMEM, "out of memory");
    if (n < 0)
        return tls__fail(t, (int)n, conc_last_error());
    t->broken = true;
    return tls__fail(t, -ECONNRESET, "the connection ended without close_notify");
}

/* Makes the handshake. If the peer has hung up, still reads its last alert, which says more than
 * the send error. */
static inline int tls__handshake(tls_connection *t)
{
    for (;;) {
        ERR_clear_error();
        int done = SSL_do_handshake(t->ssl), rc = 0;
        if (done != 1 && SSL_get_error(t->ssl, done) != SSL_ERROR_WANT_READ)
            rc = tls__broke(t);
        int sent = tls__send(t); /* after an error: the alert */
        bool hung_up = sent == -EPIPE || sent == -ECONNRESET;
        if (rc == 0 && !hung_up)
            rc = sent;
        if (rc || done == 1)
            return rc;
        CONC_TRY(tls__feed(t));
    }
}

/* Prepares for a write or shutdown after the handshake. If a message such as a session ticket has
 * arrived in part, OpenSSL needs the rest first. */
static inline int tls__ready_to_write(tls_connection *t)
{
    if (t->broken)
        return conc_fail(-EPIPE, "%s", t->error);
    CONC_TRY(tls__send(t)); /* the rest of a record whose writer was cancelled */
    return SSL_in_init(t->ssl) ? tls__handshake(t) : 0;
}

/* ---- the stream's transport ---- */

static inline ssize_t tls__read(void *self, void *buf, size_t n)
{
    tls_connection *t = self;
    for (;;) {
        size_t got = 0;
        int rc = 0;
        ERR_clear_error();
        int ok = SSL_read_ex(t->ssl, buf, n, &got);
        int why = SSL_get_error(t->ssl, ok);
        bool at_end = why == SSL_ERROR_ZERO_RETURN;
        if (!ok && !at_end && why != SSL_ERROR_WANT_READ)
            rc = tls__broke(t);
        tls__answer(t);
        if (rc || ok || at_end)
            return rc ? rc : (ssize_t)got;
        CONC_TRY(tls__feed(t));
    }
}

/* Writes one record. It fits into the plain stream's buffer, which is empty, so moving it there
 * does not wait, and the next read sends what a cancelled call has not. */
static inline ssize_t tls__write_in_turn(tls_connection *t, const void *buf, size_t n)
{
    const size_t most = 16000;
    size_t took = 0;
    CONC_TRY(tls__ready_to_write(t));
    ERR_clear_error();
    if (!SSL_write_ex(t->ssl, buf, n < most ? n : most, &took))
        return tls__broke(t);
    int rc = tls__send(t);
    t->cut = rc == -ECANCELED;
    if (rc && !t->cut)
        return rc;
    return (ssize_t)took; /* even if cancelled: the record is complete */
}

static inline ssize_t tls__write(void *self, const void *buf, size_t n)
{
    tls_connection *t = self;
    CONC_TRY(conc_lock_acquire(&t->sending));
    ssize_t took = tls__write_in_turn(t, buf, n);
    conc_lock_release(&t->sending);
    return took;
}

/* Sends close_notify, once. */
static inline int tls__shut_in_turn(tls_connection *t)
{
    CONC_TRY(tls__ready_to_write(t));
    ERR_clear_error();
    bool sent_before = SSL_get_shutdown(t->ssl) & SSL_SENT_SHUTDOWN;
    if (!sent_before && SSL_shutdown(t->ssl) < 0)
        return tls__broke(t);
    return tls__send(t);
}

static inline int tls__shutdown(void *self)
{
    tls_connection *t = self;
    CONC_TRY(conc_lock_acquire(&t->sending));
    int rc = tls__shut_in_turn(t);
    conc_lock_release(&t->sending);
    return rc;
}

/* Frees everything. First reads what the socket has received, such as a session ticket: with unread
 * bytes the system would reset the connection, and data in transit to the peer would be lost. */
static inline int tls__release(void *self)
{
    tls_connection *t = self;
    int rc = 0;
    for (int i = 0; i < 16 && t->fd >= 0; i++) {
        if (recv(t->fd, t->chunk, sizeof t->chunk, MSG_DONTWAIT) <= 0)
            break;
    }
    if (t->fd >= 0)
        rc = conc_stream_close(&t->own);
    SSL_free(t->ssl); /* and both buffers */
    t->ssl = NULL;
    t->is_open = false;
    return rc;
}

/* Closes the connection. No other call is running, so it needs no lock. It never waits for the
 * peer's bytes. After an error or a cancel it sends no close_notify, because that was no proper
 * end. */
static inline int tls__close(void *self)
{
    tls_connection *t = self;
    bool may_wait = conc_self() && !conc_cancelled(), may_send = !t->broken && !SSL_in_init(t->ssl);
    bool cut = t->cut;
    int rc = may_wait && may_send ? tls__shut_in_turn(t) : 0;
    int closed = tls__release(t);
    rc = rc ? rc : closed;
    bool peer_left = rc == -EPIPE || rc == -ECONNRESET;
    return peer_left && !cut ? 0 : rc; /* a peer that left misses nothing */
}

/* ---- opening ---- */

/* Sets the name that the server's certificate must have. An empty name, or one that begins with a
 * dot, would match more than one server. */
static inline int tls__expect(tls_connection *t, const char *host)
{
    X509_VERIFY_PARAM *checks = SSL_get0_param(t->ssl);
    if (!host || !*host || *host == '.')
        return tls__fail(t, -EINVAL,
                         "a client needs the server's name: tls_connect needs host:port");
    X509_VERIFY_PARAM_set_hostflags(checks, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    if (X509_VERIFY_PARAM_set1_ip_asc(checks, host)) /* 0: not an IP address */
        return 0;
    if (!SSL_set1_host(t->ssl, host) || !SSL_set_tlsext_host_name(t->ssl, host))
        return tls__fail(t, -EINVAL, "not a server's name, or out of memory");
    return 0;
}

/* Checks the arguments and creates OpenSSL's objects. */
static inline int tls__prepare(tls_connection *t, const tls_context *c, const char *host)
{
    if (!t)
        return conc_fail(-EINVAL, "no tls_connection");
    if (t->ssl)
        return conc_fail(-EBUSY, "the tls_connection is open");
    *t = (tls_connection){.stream = t->stream, .fd = -1};
    snprintf(t->peer, sizeof t->peer, "%s", host && *host ? host : "the peer");
    if (!c || !c->ssl_context)
        return tls__fail(t, -EINVAL, "no tls_context, or it is not open");
    if (c->server && host)
        return tls__fail(t, -EINVAL, "the context is a server's, so host must be NULL");
    ERR_clear_error();
    t->handshake_timeout = c->handshake_timeout != 0 ? c->handshake_timeout : 60;
    t->ssl = SSL_new(c->ssl_context);
    t->in = BIO_new(BIO_s_mem());
    t->out = BIO_new(BIO_s_mem());
    if (!t->ssl || !t->in || !t->out) {
        BIO_free(t->in);
        BIO_free(t->out);
        tls__release(t);
        return tls__fail(t, -ENOMEM, "out of memory");
    }
    SSL_set_bio(t->ssl, t->in, t->out); /* takes ownership of both */
    if (c->server) {
        SSL_set_accept_state(t->ssl);
        return 0;
    }
    SSL_set_connect_state(t->ssl);
    int rc = tls__expect(t, host);
    if (rc)
        tls__release(t);
    return rc;
}

static inline void tls__remember_peer(tls_connection *t)
{
    const unsigned char *name;
    unsigned size;
    X509 *certificate = SSL_get0_peer_certificate(t->ssl);
    SSL_get0_alpn_selected(t->ssl, &name, &size);
    if (size < sizeof t->alpn)
        memcpy(t->alpn, name ? name : (const unsigned char *)"", size);
    if (certificate)
        X509_NAME_oneline(X509_get_subject_name(certificate), t->subject, sizeof t->subject);
}

/* Opens the connection on the plain stream. After an error it is released. */
static inline int tls__open_on(tls_connection *t, conc_stream *plain)
{
    static const conc_transport transport = {tls__read, tls__write, tls__shutdown, tls__close};
    conc_scope limit = {0};
    t->plain = plain;
    int rc = conc_scope_begin(&limit, t->handshake_timeout);
    if (rc == 0)
        rc = conc_scope_end(&limit, tls__handshake(t));
    if (rc == -ETIMEDOUT && limit.expired)
        rc = tls__fail(t, rc, "the TLS handshake took too long");
    if (rc == 0) {
        tls__remember_peer(t);
        rc = conc_stream_open_on(&t->stream, &transport, t);
    }
    t->is_open = rc == 0;
    if (rc)
        (void)conc_timeout(0, tls__release, t); /* unsent data is dropped */
    return rc;
}

/* Opens the connection on fd, and closes fd after an error. */
static inline int tls__open_fd(tls_connection *t, int fd)
{
    int rc = conc_stream_open(&t->own, fd);
    if (rc == 0) {
        t->fd = fd;
        return tls__open_on(t, &t->own);
    }
    tls__release(t);
    conc_close(fd);
    return tls__fail(t, rc, conc_strerror(rc));
}

/* Copies the host of "localhost:443" or "[::1]:443" without port and brackets; "" if there is
 * none. */
static inline void tls__host_of(const char *address, char *host, size_t size)
{
    const char *colon = address ? strrchr(address, ':') : NULL;
    host[0] = 0;
    if (!colon || strncmp(address, "unix:", 5) == 0)
        return;
    size_t n = (size_t)(colon - address);
    if (n >= 2 && address[0] == '[' && address[n - 1] == ']') {
        address++;
        n -= 2;
    }
    if (n < size)
        snprintf(host, size, "%.*s", (int)n, address);
}

static inline int tls_connect(tls_connection *t, const tls_context *c, const char *address)
{
    char host[256];
    tls__host_of(address, host, sizeof host);
    CONC_TRY(tls__prepare(t, c, host));
    snprintf(t->peer, sizeof t->peer, "%s", address);
    int fd = conc_dial(address);
    if (fd >= 0)
        return tls__open_fd(t, fd);
    snprintf(t->error, sizeof t->error, "%s", conc_last_error()); /* which contains the address */
    tls__release(t);
    return fd;
}

static inline int tls_accept(tls_connection *t, const tls_context *c, int fd)
{
    int rc = tls__prepare(t, c, NULL);
    if (rc) {
        conc_close(fd);
        return rc;
    }
    (void)conc_address(fd, true, t->peer, sizeof t->peer);
    return tls__open_fd(t, fd);
}

static inline int tls_upgrade(tls_connection *t, const tls_context *c, conc_stream *plain,
                              const char *host)
{
    CONC_TRY(tls__prepare(t, c, host));
    return tls__open_on(t, plain);
}

static inline int tls_close(tls_connection *t)
{
    if (!t)
        return 0;
    if (t->ssl && !t->is_open)
        return conc_fail(-EBUSY, "%s: the handshake is in progress", t->peer);
    return conc_stream_close(&t->stream);
}

#endif
