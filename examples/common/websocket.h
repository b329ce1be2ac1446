/* websocket.h - WebSockets (RFC 6455) on a conc_stream, framed by wslay
 *
 *     #define CONC_STATIC
 *     #include "conc_sync.h"
 *     #include "websocket.h"
 *
 *     static int echo(http_connection *http, void *arg)
 *     {
 *         (void)arg;
 *         websocket_message m;
 *         CONC_AUTO(websocket, w) = {.max_message = 4096};
 *         if (websocket_accept(&w, http))
 *             return 0; // it was refused, and the client has been told
 *         while (CONC_TRY(websocket_receive(&w, &m)) > 0)
 *             CONC_TRY(websocket_send(&w, m.type, m.data, m.size));
 *         return 0;
 *     }
 *
 * is an answer function for http_serve, see http.h. A client opens a stream, on a socket or with
 * tls.h:
 *
 *     CONC_AUTO(websocket, w) = {.stream = &stream};
 *     CONC_TRY(websocket_connect(&w, "/echo", "localhost:8080"));
 *     CONC_TRY(websocket_printf(&w, "hello"));
 *     CONC_TRY(websocket_receive(&w, &m));
 *     CONC_TRY(websocket_end(&w, 1000, "goodbye"));
 *
 * Compile with -lwslay -lcrypto -lhttp_parser (Debian: libwslay-dev libssl-dev libhttp-parser-dev).
 *
 * Frames   wslay joins fragments, masks, answers pings and closes, and checks what RFC 6455
 *          requires. Violations are closed with 1002 (the protocol), 1007 (text that is not UTF-8)
 *          or 1009 (a message over max_message).
 * Closing  websocket_end closes properly. After the peer's close websocket_receive returns 0, and
 *          close_code and close_reason hold its code and reason: 1005 is a close without a code,
 *          1006 an end without a close. websocket_close alone just ends the connection, which the
 *          peer sees as 1006.
 * Silence  websocket_receive sends a ping when no byte has arrived for ping_interval, and gives up
 *          after another ping_interval. It also answers the peer's pings and closes, so one task
 *          should always be in websocket_receive, even if the program only sends.
 * Tasks    one task may receive while any number send; messages are sent whole, in call order. A
 *          second websocket_receive returns -EBUSY.
 * Errors   all calls return 0 or a count, or a negative errno, with a text in .error and
 *          conc_last_error.
 *            -EPROTO       the peer broke the protocol, or refused the handshake
 *            -EMSGSIZE     its message was over max_message
 *            -ETIMEDOUT    it was silent, or did not answer a close
 *            -EPIPE        the connection is closed
 *            -ENOBUFS      more than max_unsent is waiting to be sent; this message was not sent
 *            -EINVAL, -EBUSY, -ENOMEM, -EPERM, and those of the stream
 * Waiting  all calls here wait. A cancel in websocket_receive loses nothing. In websocket_send,
 *          -ECANCELED means that nothing of the message was sent; if part of it was, the call
 *          returns 0, and the next call that sends or receives sends the rest first. A cancel in
 *          websocket_accept or websocket_connect closes the websocket; in websocket_end, the close
 *          frame may have been sent.
 * Memory   about 10 KiB per connection, plus messages in transit.
 *
 * Not covered: extensions (compression), subprotocols, messages passed in parts, websockets over
 * HTTP/2. websocket_send does not check that text is UTF-8. wslay 1.1.1 accepts the close codes
 * 1000 to 1011 and 3000 to 4999, not the newer 1012 to 1014.
 */
#ifndef WEBSOCKET_H
#define WEBSOCKET_H

#ifndef CONC_SYNC_H
#error "websocket.h: include conc_sync.h first"
#endif

#include "http.h"

#include <openssl/evp.h>
#include <openssl/rand.h>
#include <openssl/sha.h>
#include <wslay/wslay.h>

/* ---- what you call -------------------------------------------------------------------------- */

enum { WEBSOCKET_TEXT = 1, WEBSOCKET_BINARY = 2 };

typedef struct websocket {
    /* Options, to be set before it is opened. 0: the default. CONC_FOREVER: no time limit */
    conc_stream *stream;  /* a client's, open; websocket_close closes it. A server takes http's */
    size_t max_message;   /* bytes of a received message, else closed with 1009; 1 MiB */
    size_t max_unsent;    /* bytes that wait in websocket_send, for all tasks; 1 MiB */
    double ping_interval; /* seconds of silence before a ping, then before giving up; 30 */
    double close_timeout; /* seconds for the last frames in each direction; 5 */

    /* Read only */
    int close_code;         /* the peer's close code, or the one sent to it; 0: open */
    char close_reason[124]; /* the peer's reason, or "" */
    char error[160];        /* the newest error of the connection; "": none */

    /* private */
    wslay_event_context_ptr wslay;
    int state, failure; /* failure: what calls return in state FAILED */
    conc_lock sending;  /* the owner writes to the stream */
    conc_event over;    /* no longer OPEN */
    conc_event left;    /* inside is 0 */
    http__text frames;  /* whole frames to send */
    http__text going;   /* frames that the owner of `sending` is writing; `gone` bytes are
                           written */
    http__text text;    /* the message being received, or the one that was returned */
    size_t gone, unsent;
    unsigned char head[2]; /* of the frame being received: its first bytes, of which */
    int head_size;         /* so many have arrived */
    uint64_t frame_left;   /* bytes still missing after them */
    ssize_t came;          /* what the newest read of the stream returned */
    int inside;            /* calls that have not returned */
    int broken;            /* the error after which wslay cannot receive */
    bool refused;          /* a callback here has refused the received data */
    bool reading;          /* a call is receiving */
    bool control;          /* the frame being received is a ping, pong or close */
    bool silent;           /* the newest read got nothing for ping_interval */
    bool pinged;           /* a ping was sent, and no byte has arrived since */
    int type;      /* of the message in text, if it is complete and not returned yet; else 0 */
    bool returned; /* `text` is a message that the caller has borrowed */
    bool no_memory, is_client;
} websocket;

/* A message. data is followed by a NUL, and valid until the next receive or close. */
typedef struct websocket_message {
    int type; /* WEBSOCKET_TEXT, which is UTF-8, or WEBSOCKET_BINARY */
    const char *data;
    size_t size;
} websocket_message;

/* Accepts a request for a websocket, in an answer function of http.h, and takes over its stream. If
 * it refuses the request, the client gets 400 or 426, and the result is -EPROTO. After an error the
 * answer function need only return. */
static inline int websocket_accept(websocket *w, http_connection *http);

/* Opens a client on w->stream: requests target ("/chat?room=1") of host ("localhost:8080") and
 * waits for the response. -EPROTO: the server refused, and .error has its status line, or it does
 * not speak WebSocket. */
static inline int websocket_connect(websocket *w, const char *target, const char *host);

/* Waits for a message. Returns 1 with the message in *m, or 0 if the connection was closed or has
 * ended. */
static inline int websocket_receive(websocket *w, websocket_message *m);

/* Sends a message of this type. Returns 0 when the system has accepted all of it. */
static inline int websocket_send(websocket *w, int type, const void *data, size_t size);

/* Sends formatted text as a message. */
static inline int websocket_printf(websocket *w, const char *format, ...)
    __attribute__((__format__(__printf__, 2, 3)));

/* Sends a close with this code, usually 1000, and a reason of at most 123 bytes, or NULL. Then
 * waits until the peer has closed, too, dropping messages until then. A client then waits for the
 * server to end the connection. -ETIMEDOUT: there was no answer within close_timeout. On a closed
 * websocket it does nothing. Call websocket_close in any case. */
static inline int websocket_end(websocket *w, int code, const char *reason);

/* Closes the stream, makes the calls of other tasks return -EPIPE, waits until they have returned,
 * and frees everything. Closing twice, or an unopened websocket, does nothing. Returns the error of
 * the stream's close; the stream is closed all the same. */
static inline int websocket_close(websocket *w);
CONC_AUTO_TYPE(websocket, websocket_close);

/* ---- implementation: state and errors ------------------------------------------------------- */

enum websocket__state {
    WEBSOCKET__NEW,    /* accept, connect -> OPEN */
    WEBSOCKET__OPEN,   /* -> CLOSED: the peer's close or end; -> FAILED */
    WEBSOCKET__CLOSED, /* receive returns 0, send -EPIPE */
    WEBSOCKET__FAILED  /* both return `failure` */
};

static inline void websocket__set_defaults(websocket *w)
{
    w->max_message = w->max_message ? w->max_message : 1 << 20;
    w->max_unsent = w->max_unsent ? w->max_unsent : 1 << 20;
    w->ping_interval = w->ping_interval > 0 ? w->ping_interval : 30;
    w->close_timeout = w->close_timeout > 0 ? w->close_timeout : 5;
}

/* OPEN -> CLOSED or FAILED. */
static inline void websocket__leave_open(websocket *w, int state, int code)
{
    if (w->state != WEBSOCKET__OPEN)
        return;
    w->state = state;
    w->close_code = code;
    conc_event_set(&w->over);
}

__attribute__((__format__(__printf__, 3, 4))) static inline int
websocket__fail(websocket *w, int rc, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(w->error, sizeof w->error, format, args);
    va_end(args);
    w->failure = rc;
    websocket__leave_open(w, WEBSOCKET__FAILED, WSLAY_CODE_ABNORMAL_CLOSURE);
    return conc_fail(rc, "%s", w->error);
}

/* The stream failed: marks the websocket as failed. A cancel changes nothing. */
static inline int websocket__failed(websocket *w, int rc, const char *doing)
{
    if (rc == -ECANCELED)
        return rc;
    return websocket__fail(w, rc, "%s: %s", doing, conc_last_error());
}

/* Begins a public call, which websocket__leave ends if this returns 0. */
static inline int websocket__enter(websocket *w, const char *call)
{
    if (!w || w->state == WEBSOCKET__NEW)
        return conc_fail(-EINVAL, "%s: the websocket is not open", call);
    if (!conc_self())
        return conc_fail(-EPERM, "%s: not in a task", call);
    w->inside++;
    conc_event_clear(&w->left);
    return 0;
}

static inline int websocket__leave(websocket *w, int rc)
{
    if (--w->inside == 0)
        conc_event_set(&w->left);
    return rc;
}

/* ---- implementation: what wslay calls ------------------------------------------------------- */

/* Returns how many bytes wslay may read. It parses all it has, and would answer a close before the
 * message in front of it was returned. So it gets one frame at a time, whose length is in its first
 * bytes (RFC 6455, 5.2); websocket__on_frame sets the length of a long frame. */
static inline size_t websocket__wanted(const websocket *w, size_t room)
{
    uint64_t wanted = w->head_size < 2 ? (uint64_t)(2 - w->head_size) : w->frame_left;
    return wanted < room ? (size_t)wanted : room;
}

static inline void websocket__count(websocket *w, const uint8_t *bytes, size_t n)
{
    enum { MASKED = 0x80, LENGTH = 0x7f, TWO_MORE = 126, EIGHT_MORE = 127 };
    if (w->head_size == 2) {
        w->frame_left -= n;
    } else {
        memcpy(w->head + w->head_size, bytes, n);
        w->head_size += (int)n;
        int length = w->head[1] & LENGTH;
        w->frame_left = w->head[1] & MASKED ? 4 : 0;
        if (length == TWO_MORE)
            w->frame_left += 2 + 1; /* and the first byte of its data */
        else if (length == EIGHT_MORE)
            w->frame_left += 8 + 1;
        else
            w->frame_left += (uint64_t)length;
    }
    if (w->head_size == 2 && w->frame_left == 0)
        w->head_size = 0;
}

/* Waits for bytes from the peer and returns how many. wslay 1.1.1 mishandles a close that arrives
 * in parts, so control frames are read whole. */
static inline ssize_t websocket__wait(websocket *w, uint8_t *buf, size_t size)
{
    conc_scope limit = {0};
    ssize_t n;
    bool is_control = w->head_size == 2 && wslay_is_ctrl_frame(w->head[0]);
    size = websocket__wanted(w, size);
    CONC_TRY(conc_scope_begin(&limit, w->ping_interval));
    if (is_control)
        n = conc_stream_read_full(w->stream, buf, size);
    else
        n = conc_stream_read(w->stream, buf, size);
    int rc = conc_scope_end(&limit, n < 0 ? (int)n : 0);
    w->silent = rc == -ETIMEDOUT && limit.expired;
    return rc < 0 ? rc : n;
}

/* Reads bytes for wslay. Whatever the reason for none, wslay is told WOULDBLOCK, so that it can
 * continue after a cancel; `came` keeps the reason. Reads nothing while a message is to be returned
 * or a pong to be sent. */
static inline ssize_t websocket__read(wslay_event_context_ptr wslay, uint8_t *buf, size_t size,
                                      int flags, void *arg)
{
    websocket *w = arg;
    (void)flags;
    w->came = -EAGAIN;
    w->silent = false;
    if (!w->type && !wslay_event_want_write(wslay))
        w->came = websocket__wait(w, buf, size);
    if (w->came > 0) {
        w->pinged = false;
        websocket__count(w, buf, (size_t)w->came);
        return w->came;
    }
    wslay_event_set_error(wslay, WSLAY_ERR_WOULDBLOCK);
    return -1;
}

static inline ssize_t websocket__keep(wslay_event_context_ptr wslay, const uint8_t *data,
                                      size_t size, int flags, void *arg)
{
    websocket *w = arg;
    (void)flags;
    if (http__append(&w->frames, data, size) == 0)
        return (ssize_t)size;
    wslay_event_set_error(wslay, WSLAY_ERR_CALLBACK_FAILURE);
    return -1;
}

static inline int websocket__mask(wslay_event_context_ptr wslay, uint8_t *buf, size_t size,
                                  void *arg)
{
    (void)wslay;
    (void)arg;
    return RAND_bytes(buf, (int)size) == 1 ? 0 : -1;
}

/* Refuses what wslay itself would accept: a message that is too long in all, and a close with half
 * a code. */
static inline void websocket__on_frame(wslay_event_context_ptr wslay,
                                       const struct wslay_event_on_frame_recv_start_arg *frame,
                                       void *arg)
{
    websocket *w = arg;
    uint16_t code = 0;
    w->control = wslay_is_ctrl_frame(frame->opcode);
    if (frame->payload_length > 125) { /* see websocket__count */
        w->head_size = 2;
        w->frame_left = frame->payload_length - 1;
    }
    if (frame->opcode == WSLAY_CONNECTION_CLOSE && frame->payload_length == 1)
        code = WSLAY_CODE_PROTOCOL_ERROR;
    if (!w->control && frame->payload_length > w->max_message - w->text.n)
        code = WSLAY_CODE_MESSAGE_TOO_BIG;
    if (code) {
        w->refused = true;
        wslay_event_queue_close(wslay, code, NULL, 0);
        wslay_event_shutdown_read(wslay);
    }
}

static inline void websocket__on_chunk(wslay_event_context_ptr wslay,
                                       const struct wslay_event_on_frame_recv_chunk_arg *chunk,
                                       void *arg)
{
    websocket *w = arg;
    if (w->control || !wslay_event_get_read_enabled(wslay))
        return;
    if (http__append(&w->text, chunk->data, chunk->data_length)) {
        w->no_memory = true;
        wslay_event_shutdown_read(wslay);
    }
}

static inline void websocket__on_message(wslay_event_context_ptr wslay,
                                         const struct wslay_event_on_msg_recv_arg *message,
                                         void *arg)
{
    websocket *w = arg;
    if (message->opcode == WSLAY_CONNECTION_CLOSE && message->msg_length > 2)
        memcpy(w->close_reason, message->msg + 2, message->msg_length - 2);
    bool of_data = message->opcode == WSLAY_TEXT_FRAME || message->opcode == WSLAY_BINARY_FRAME;
    if (!of_data || !wslay_event_get_read_enabled(wslay))
        return;
    if (http__append(&w->text, "", 0)) { /* the NUL of an empty message */
        w->no_memory = true;
        wslay_event_shutdown_read(wslay);
        return;
    }
    w->type = message->opcode;
}

/* Makes a new wslay context. Messages are collected here, because wslay would allocate memory for
 * each fragment, however small. */
static inline int websocket__init(websocket *w)
{
    static const struct wslay_event_callbacks callbacks = {
        websocket__read,      websocket__keep,     websocket__mask,
        websocket__on_frame,  websocket__on_chunk, NULL,
        websocket__on_message};
    wslay_event_context_free(w->wslay);
    w->wslay = NULL;
    int rc;
    if (w->is_client)
        rc = wslay_event_context_client_init(&w->wslay, &callbacks, w);
    else
        rc = wslay_event_context_server_init(&w->wslay, &callbacks, w);
    if (rc) {
        w->wslay = NULL;
        return -ENOMEM;
    }
    wslay_event_config_set_no_buffering(w->wslay, 1);
    return 0;
}

/* ---- implementation: sending ---------------------------------------------------------------- */

/* Writes `going`, or, if it is empty, `frames`. The caller owns `sending`. */
static inline int websocket__write_going(websocket *w)
{
    if (!w->going.n) {
        w->going = w->frames; /* frames may grow, and move, while this waits */
        w->frames = (http__text){NULL, 0, 0};
    }
    while (w->gone < w->going.n) {
        w->gone += (size_t)CONC_TRY(
            conc_stream_write(w->stream, w->going.data + w->gone, w->going.n - w->gone));
    }
    http__free(&w->going);
    w->gone = 0;
    return conc_stream_flush(w->stream);
}

/* Writes and flushes all frames, including those added meanwhile. The caller owns `sending`. After
 * a cancel the rest stays for the next call. */
static inline int websocket__write(websocket *w)
{
    int rc = 0;
    bool has_more = w->going.n || w->frames.n;
    while (has_more && rc >= 0) {
        rc = websocket__write_going(w); /* more than 0: a cancel cut the flush short */
        has_more = rc > 0 || w->frames.n;
    }
    return rc < 0 ? websocket__failed(w, rc, "sending") : 0;
}

/* Encodes what is queued in wslay into `frames`. */
static inline int websocket__encode(websocket *w)
{
    if (wslay_event_send(w->wslay) == 0)
        return 0;
    return websocket__fail(w, -ENOMEM, "out of memory");
}

/* Sends pongs, pings and closes. If another task is sending, that task sends them, too; `wait`
 * waits for it. */
static inline int websocket__send_frames(websocket *w, bool wait)
{
    CONC_TRY(websocket__encode(w));
    if (!w->going.n && !w->frames.n)
        return 0;
    int rc = conc_lock_try_acquire(&w->sending);
    if (rc == -EAGAIN && !wait)
        return 0;
    if (rc == -EAGAIN)
        rc = conc_lock_acquire(&w->sending);
    CONC_TRY(rc);
    rc = websocket__write(w);
    conc_lock_release(&w->sending);
    return rc;
}

/* Sends a message. The caller owns `sending`. */
static inline int websocket__send(websocket *w, int type, const void *data, size_t size)
{
    struct wslay_event_msg message = {(uint8_t)type, data, size};
    CONC_TRY(websocket__write(w)); /* what a cancel has left */
    if (w->state == WEBSOCKET__FAILED)
        return conc_fail(w->failure, "%s", w->error);
    int rc = wslay_event_queue_msg(w->wslay, &message);
    if (rc == WSLAY_ERR_NO_MORE_MSG)
        return conc_fail(-EPIPE, "websocket_send: the connection is closed");
    if (rc)
        return conc_fail(-ENOMEM, "out of memory");
    CONC_TRY(websocket__encode(w));
    rc = websocket__write(w);
    if (rc != -ECANCELED)
        return rc;
    if (w->gone || !w->going.n)
        return 0; /* part of it was sent, and the rest has to follow */
    http__free(&w->going);
    return rc;
}

static inline int websocket_send(websocket *w, int type, const void *data, size_t size)
{
    CONC_TRY(websocket__enter(w, "websocket_send"));
    bool is_valid = (type == WEBSOCKET_TEXT || type == WEBSOCKET_BINARY) && (data || !size);
    if (!is_valid)
        return websocket__leave(w, conc_fail(-EINVAL, "websocket_send: a bad type, or no data"));
    if (w->unsent && w->unsent + size > w->max_unsent)
        return websocket__leave(w, conc_fail(-ENOBUFS, "%zu bytes wait to be sent", w->unsent));
    w->unsent += size;
    int rc = conc_lock_acquire(&w->sending);
    if (rc == 0) {
        rc = websocket__send(w, type, data, size);
        conc_lock_release(&w->sending);
    }
    w->unsent -= size;
    return websocket__leave(w, rc);
}

static inline int websocket_printf(websocket *w, const char *format, ...)
{
    va_list args;
    http__text text = {NULL, 0, 0};
    va_start(args, format);
    int rc = http__vprint(&text, format, args);
    va_end(args);
    if (rc == 0)
        rc = websocket_send(w, WEBSOCKET_TEXT, text.data, text.n);
    http__free(&text);
    return rc;
}

/* ---- implementation: receiving -------------------------------------------------------------- */

/* Shuts down the sending side, and reads until the peer has done so, too: a close while bytes
 * arrive would reset the connection, and the peer might lose the last frame. */
static inline int websocket__linger(void *arg)
{
    websocket *w = arg;
    char waste[4096];
    CONC_TRY(websocket__send_frames(w, true));
    if (w->is_client && w->state == WEBSOCKET__CLOSED)
        CONC_TRY(conc_stream_flush(w->stream)); /* the server ends the connection first */
    else
        CONC_TRY(conc_stream_shutdown(w->stream));
    while (CONC_TRY(conc_stream_read(w->stream, waste, sizeof waste)) > 0)
        continue;
    return 0;
}

static inline int websocket__send_last(void *arg) { return websocket__send_frames(arg, true); }

/* Sends the close that wslay has queued because the peer broke the rules, and ends the
 * connection. */
static inline int websocket__refuse(websocket *w)
{
    if (w->no_memory || w->broken == WSLAY_ERR_NOMEM)
        return websocket__fail(w, -ENOMEM, "out of memory");
    if (w->broken) { /* a malformed frame: wslay's close lacks a code, so use a new context */
        if (websocket__init(w))
            return websocket__fail(w, -ENOMEM, "out of memory");
        wslay_event_queue_close(w->wslay, WSLAY_CODE_PROTOCOL_ERROR, NULL, 0);
    }
    CONC_TRY(websocket__encode(w));
    int code = wslay_event_get_status_code_sent(w->wslay), rc = -EPROTO;
    const char *why = "the peer broke the protocol";
    if (code == WSLAY_CODE_INVALID_FRAME_PAYLOAD_DATA)
        why = "the peer's text is not UTF-8";
    if (code == WSLAY_CODE_MESSAGE_TOO_BIG) {
        why = "the peer's message is too long";
        rc = -EMSGSIZE;
    }
    websocket__leave_open(w, WEBSOCKET__FAILED, code);
    conc_timeout(w->close_timeout, websocket__linger, w);
    return websocket__fail(w, rc, "%s: closed with %d", why, code);
}

/* Answers the peer's close. */
static inline int websocket__answer_close(websocket *w)
{
    int code = wslay_event_get_status_code_received(w->wslay);
    CONC_TRY(websocket__encode(w));
    websocket__leave_open(w, WEBSOCKET__CLOSED, code);
    conc_timeout(w->close_timeout, websocket__send_last, w);
    return 0;
}

/* Handles ping_interval without a byte: sends a ping, or gives up. */
static inline int websocket__silent(websocket *w)
{
    struct wslay_event_msg ping = {WSLAY_PING, NULL, 0};
    if (w->pinged)
        return websocket__fail(w, -ETIMEDOUT, "the peer was silent for %g s, and after a ping",
                               w->ping_interval);
    w->pinged = true;
    wslay_event_queue_msg(w->wslay, &ping);
    return 0;
}

/* Waits for a message, a close, or another reason to check again. */
static inline int websocket__advance(websocket *w)
{
    w->came = -EAGAIN;
    if (wslay_event_get_read_enabled(w->wslay))
        w->broken = wslay_event_recv(w->wslay);
    if (wslay_event_get_close_received(w->wslay) && !w->refused)
        return websocket__answer_close(w);
    if (!wslay_event_get_read_enabled(w->wslay))
        return w->type ? 0 : websocket__refuse(w);
    if (w->silent)
        return websocket__silent(w);
    if (w->came == 0)
        websocket__leave_open(w, WEBSOCKET__CLOSED, WSLAY_CODE_ABNORMAL_CLOSURE);
    if (w->came < 0 && w->came != -EAGAIN)
        return websocket__failed(w, (int)w->came, "receiving");
    return 0;
}

static inline int websocket__send_now(void *arg) { return websocket__send_frames(arg, false); }

/* Sends pending frames. Waits for a peer that does not read only as long as for one that does not
 * write. */
static inline int websocket__send_soon(websocket *w)
{
    bool must_send = w->going.n || w->frames.n || wslay_event_want_write(w->wslay);
    int rc = must_send ? conc_timeout(w->ping_interval, websocket__send_now, w) : 0;
    if (rc == -ETIMEDOUT)
        return websocket__fail(w, rc, "the peer does not read");
    return rc;
}

static inline int websocket__receive(websocket *w)
{
    while (!w->type) {
        if (w->state == WEBSOCKET__CLOSED)
            return 0;
        if (w->state == WEBSOCKET__FAILED)
            return conc_fail(w->failure, "%s", w->error);
        CONC_TRY(websocket__send_soon(w));
        CONC_TRY(websocket__advance(w));
    }
    return 1;
}

static inline int websocket_receive(websocket *w, websocket_message *m)
{
    if (m)
        *m = (websocket_message){0, NULL, 0};
    CONC_TRY(websocket__enter(w, "websocket_receive"));
    if (!m)
        return websocket__leave(w, conc_fail(-EINVAL, "websocket_receive: no message to fill in"));
    if (w->reading)
        return websocket__leave(w, conc_fail(-EBUSY, "websocket_receive: another task is in it"));
    w->reading = true;
    if (w->returned)
        http__free(&w->text);
    w->returned = false;
    int rc = websocket__receive(w);
    if (rc > 0) {
        *m = (websocket_message){w->type, w->text.data, w->text.n};
        w->type = 0;
        w->returned = true;
    }
    w->reading = false;
    return websocket__leave(w, rc);
}

/* ---- implementation: closing ---------------------------------------------------------------- */

static inline int websocket__finish(void *arg)
{
    websocket *w = arg;
    CONC_TRY(websocket__send_frames(w, true));
    while (w->state == WEBSOCKET__OPEN && !w->reading) {
        websocket_message dropped;
        CONC_TRY(websocket_receive(w, &dropped));
    }
    CONC_TRY(conc_event_wait(&w->over));
    if (w->is_client && w->state == WEBSOCKET__CLOSED)
        return websocket__linger(w);
    return 0;
}

static inline int websocket__end(websocket *w, int code, const char *reason)
{
    bool may_send = (code >= 1000 && code <= 1014 && (code < 1004 || code > 1006)) ||
                    (code >= 3000 && code <= 4999);
    size_t size = reason ? strlen(reason) : 0;
    if (!may_send || size > 123)
        return conc_fail(-EINVAL, "websocket_end: a bad code %d, or a reason of %zu bytes", code,
                         size);
    if (w->state != WEBSOCKET__OPEN)
        return 0;
    int rc = wslay_event_queue_close(w->wslay, (uint16_t)code, (const uint8_t *)reason, size);
    if (rc == WSLAY_ERR_NOMEM)
        return conc_fail(-ENOMEM, "out of memory");
    CONC_TRY(websocket__encode(w));
    rc = conc_timeout(w->close_timeout, websocket__finish, w);
    if (rc == -ETIMEDOUT && w->state == WEBSOCKET__OPEN)
        return websocket__fail(w, rc, "the peer did not answer the close within %g s",
                               w->close_timeout);
    return w->state == WEBSOCKET__CLOSED && rc != -ECANCELED ? 0 : rc;
}

static inline int websocket_end(websocket *w, int code, const char *reason)
{
    CONC_TRY(websocket__enter(w, "websocket_end"));
    return websocket__leave(w, websocket__end(w, code, reason));
}

static inline void websocket__free(websocket *w)
{
    wslay_event_context_free(w->wslay);
    w->wslay = NULL;
    http__free(&w->frames);
    http__free(&w->going);
    http__free(&w->text);
    w->gone = 0;
    w->stream = NULL;
    w->state = WEBSOCKET__NEW;
}

static inline int websocket__close_stream(void *stream) { return conc_stream_close(stream); }

static inline int websocket_close(websocket *w)
{
    if (!w || !w->stream)
        return 0;
    if (w->state == WEBSOCKET__OPEN)
        websocket__fail(w, -EPIPE, "the websocket was closed here");
    double limit = w->failure == -ETIMEDOUT ? 0 : w->close_timeout; /* 0: the peer does not read */
    int rc = conc_self() ? conc_timeout(limit, websocket__close_stream, w->stream)
                         : conc_stream_close(w->stream);
    conc_scope shield = {0};
    if (w->inside && conc_scope_begin(&shield, CONC_FOREVER) == 0) {
        conc_scope_shield(&shield, true);
        rc = conc_scope_end(&shield, conc_event_wait(&w->left)) < 0 ? -EPERM : rc;
    }
    websocket__free(w);
    return rc;
}

/* ---- implementation: the handshake ---------------------------------------------------------- */

enum { WEBSOCKET__KEY = 16, WEBSOCKET__TEXT_SIZE = 32 };

/* Computes the proof, of 28 characters, that a server has understood the client's key of 24
 * characters. */
static inline void websocket__proof(const char *key, char proof[WEBSOCKET__TEXT_SIZE])
{
    char words[64];
    unsigned char digest[SHA_DIGEST_LENGTH];
    int n = snprintf(words, sizeof words, "%.24s258EAFA5-E914-47DA-95CA-C5AB0DC85B11", key);
    SHA1((unsigned char *)words, (size_t)n, digest);
    EVP_EncodeBlock((unsigned char *)proof, digest, sizeof digest);
}

/* Is the key the base64 of 16 bytes? */
static inline bool websocket__is_key(const char *key)
{
    unsigned char bytes[WEBSOCKET__KEY + 2];
    bool has_form = strlen(key) == 24 && strcmp(key + 22, "==") == 0 && !strchr(key, ' ');
    return has_form && EVP_DecodeBlock(bytes, (const unsigned char *)key, 24) == sizeof bytes;
}

static inline int websocket__refuse_request(http_connection *http, int status, const char *why)
{
    if (status == 426)
        CONC_TRY(http_set_header(http, "Sec-WebSocket-Version", "13"));
    CONC_TRY(http_printf(http, status, "%s\n", why));
    return conc_fail(-EPROTO, "%s", why);
}

static inline int websocket__open(websocket *w, conc_stream *stream, bool is_client)
{
    *w = (websocket){.stream = stream,
                     .max_message = w->max_message,
                     .max_unsent = w->max_unsent,
                     .ping_interval = w->ping_interval,
                     .close_timeout = w->close_timeout,
                     .is_client = is_client};
    websocket__set_defaults(w);
    if (websocket__init(w))
        return conc_fail(-ENOMEM, "out of memory");
    w->state = WEBSOCKET__OPEN;
    conc_event_set(&w->left);
    return 0;
}

static inline int websocket_accept(websocket *w, http_connection *http)
{
    char proof[WEBSOCKET__TEXT_SIZE];
    if (!w || !http || w->state != WEBSOCKET__NEW)
        return conc_fail(-EINVAL, "websocket_accept: no request, or open already");
    const char *key = http_header(http, "Sec-WebSocket-Key");
    const char *version = http_header(http, "Sec-WebSocket-Version");
    bool asks = http->upgrade && strcasecmp(http->upgrade, "websocket") == 0;
    if (!asks)
        return websocket__refuse_request(http, 426, "This is for WebSocket clients.");
    if (strcmp(http->method, "GET") != 0)
        return websocket__refuse_request(http, 400, "A WebSocket begins with GET.");
    if (!version || strcmp(version, "13") != 0)
        return websocket__refuse_request(http, 426, "Only version 13 of WebSocket is supported.");
    if (!key || !websocket__is_key(key))
        return websocket__refuse_request(http, 400, "Sec-WebSocket-Key is missing or malformed.");
    websocket__proof(key, proof);
    conc_stream *stream = http->stream;
    CONC_TRY(http_set_header(http, "Sec-WebSocket-Accept", proof));
    int rc = http_upgrade(http, "websocket");
    if (rc == 0)
        rc = websocket__open(w, stream, false);
    if (rc)
        conc_stream_close(stream);
    return rc;
}

/* The relevant headers of a server's response. */
typedef struct websocket__answer {
    const char *field;
    size_t size;
    bool is_websocket, has_proof, has_more;
    char proof[WEBSOCKET__TEXT_SIZE];
} websocket__answer;

static inline bool websocket__is(const char *text, size_t size, const char *word)
{
    return size == strlen(word) && strncasecmp(text, word, size) == 0;
}

static inline int websocket__on_field(http_parser *parser, const char *text, size_t size)
{
    websocket__answer *a = parser->data;
    a->field = text;
    a->size = size;
    return 0;
}

static inline int websocket__on_value(http_parser *parser, const char *text, size_t size)
{
    websocket__answer *a = parser->data;
    while (size && text[size - 1] == ' ')
        size--;
    if (websocket__is(a->field, a->size, "Upgrade"))
        a->is_websocket = websocket__is(text, size, "websocket");
    if (websocket__is(a->field, a->size, "Sec-WebSocket-Accept"))
        a->has_proof = size == strlen(a->proof) && memcmp(text, a->proof, size) == 0;
    if (websocket__is(a->field, a->size, "Sec-WebSocket-Extensions") ||
        websocket__is(a->field, a->size, "Sec-WebSocket-Protocol"))
        a->has_more = true; /* than was requested */
    return 0;
}

static inline int websocket__read_answer(websocket *w, const char *key)
{
    websocket__answer answer = {0};
    http_parser parser;
    http_parser_settings settings;
    char *head;
    ssize_t n = CONC_TRY(conc_stream_read_until(w->stream, "\r\n\r\n", 4, &head));
    websocket__proof(key, answer.proof);
    http_parser_settings_init(&settings);
    settings.on_header_field = websocket__on_field;
    settings.on_header_value = websocket__on_value;
    http_parser_init(&parser, HTTP_RESPONSE);
    parser.data = &answer;
    size_t done = head ? http_parser_execute(&parser, &settings, head, (size_t)n) : 0;
    if (parser.http_errno || done == 0)
        return conc_fail(-EPROTO, "the server does not speak HTTP, or ended the connection");
    if (!parser.upgrade || parser.status_code != 101)
        return conc_fail(-EPROTO, "the server refused: %.80s", strtok(head, "\r\n"));
    bool is_right = answer.is_websocket && answer.has_proof && !answer.has_more;
    return is_right ? 0 : conc_fail(-EPROTO, "the server's handshake is wrong");
}

static inline int websocket__ask(websocket *w, const char *target, const char *host)
{
    unsigned char bytes[WEBSOCKET__KEY];
    char key[WEBSOCKET__TEXT_SIZE];
    if (RAND_bytes(bytes, sizeof bytes) != 1)
        return conc_fail(-EIO, "no random bytes");
    EVP_EncodeBlock((unsigned char *)key, bytes, sizeof bytes);
    CONC_TRY(conc_stream_printf(w->stream,
                                "GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\n"
                                "Connection: Upgrade\r\nSec-WebSocket-Key: %s\r\n"
                                "Sec-WebSocket-Version: 13\r\n\r\n",
                                target, host, key));
    return websocket__read_answer(w, key);
}

static inline int websocket_connect(websocket *w, const char *target, const char *host)
{
    bool is_complete = w && target && host && w->stream && w->state == WEBSOCKET__NEW;
    if (!is_complete)
        return conc_fail(-EINVAL, "websocket_connect: no stream, target or host, or it is open");
    bool is_clean = *target == '/' && *host && target[strcspn(target, " \r\n")] == 0 &&
                    host[strcspn(host, " \r\n")] == 0;
    if (!is_clean)
        return conc_fail(-EINVAL, "websocket_connect: a bad target or host");
    CONC_TRY(websocket__open(w, w->stream, true));
    int rc = websocket__ask(w, target, host);
    if (rc == 0)
        return 0;
    snprintf(w->error, sizeof w->error, "%s: %s", host, conc_last_error());
    conc_stream_close(w->stream);
    websocket__free(w);
    return conc_fail(rc, "%s", w->error);
}

#endif
