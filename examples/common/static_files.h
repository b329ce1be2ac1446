/* static_files.h - serves a folder's files with http.h
 *
 *     static int answer(http_connection *http, void *arg) // GET /files/css/site.css
 *     {
 *         static const static_files site = {.folder = "/srv/www"};
 *         char path[512];
 *         CONC_TRY(http_decode_path(http, path, sizeof path));
 *         return static_files_answer(&site, http, path + strlen("/files/"));
 *     }
 *
 * Serves regular files below the folder, and index.html for a folder. A path with a segment that
 *   begins with a dot (such as "..") or is a symbolic link gets 404. Responses have a Content-Type
 *   from the name's suffix, Content-Length, ETag, Last-Modified and Accept-Ranges. If-None-Match,
 *   or else If-Modified-Since, may be answered with 304; a single Range, with or without If-Range,
 *   with 206 or 416. Several ranges get the whole file.
 * Waiting. Files are opened and read in threads (conc_offload), 64 KiB at a time, so a slow disk
 *   delays no other task. With a slow client the reading waits. If a file shrinks meanwhile, its
 *   response is cut short.
 * Include conc.h, conc_pool.h and http.h before. */
#ifndef STATIC_FILES_H
#define STATIC_FILES_H

#if !defined HTTP_H || !defined CONC_POOL_H
#error "static_files.h: include conc_pool.h and http.h first"
#endif

#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* ---- what you call -------------------------------------------------------------------------- */

typedef struct static_files {
    const char *folder;
    const char *cache_control; /* value of this header; NULL: none */
} static_files;

/* Answers GET or HEAD for the file at this path, which is decoded and relative to the folder. A
 * folder's path without a slash at the end is redirected to the one with it. Waits. */
static inline int static_files_answer(const static_files *s, http_connection *http,
                                      const char *path);

/* The same for one file at any path; cache_control may be NULL. */
static inline int static_files_answer_file(http_connection *http, const char *path,
                                           const char *cache_control);

/* Returns the path of the file of this name, in the folder of the source file (pass __FILE__) or
 * else in the current one; NULL: in neither. The next call overwrites the path. */
static inline char *static_files_beside(const char *source, const char *name);

/* ---- implementation: finding the file ------------------------------------------------------- */

enum { STATIC_FILES__PIECE = 65536 }; /* bytes read at a time */

typedef struct static_files__file {
    const char *folder, *path;
    int fd; /* -1: there is none */
    bool is_folder;
    struct stat about;
    /* reading */
    char *piece;
    off_t at;
    size_t want;
} static_files__file;

/* Opens a segment below the folder, and closes the folder. Returns a descriptor or -errno.
 * O_NONBLOCK: else opening a FIFO would wait for its other end. */
static inline int static_files__step(int folder, const char *segment)
{
    int fd = openat(folder, segment, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    int rc = fd < 0 ? -errno : fd;
    close(folder);
    return rc;
}

/* Determines what the open file is. */
static inline int static_files__look(static_files__file *f)
{
    int rc = fstat(f->fd, &f->about) ? -errno : 0;
    f->is_folder = rc == 0 && S_ISDIR(f->about.st_mode);
    bool is_other = rc == 0 && !f->is_folder && !S_ISREG(f->about.st_mode);
    return is_other ? -ENOENT : rc;
}

/* Opens a file by its path. Runs in a thread. */
static inline int static_files__open(void *arg)
{
    static_files__file *f = arg;
    f->fd = open(f->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    return f->fd < 0 ? -errno : static_files__look(f);
}

/* Opens a file segment by segment, so that no link leads out of the folder. Runs in a thread. */
static inline int static_files__open_below(void *arg)
{
    static_files__file *f = arg;
    char segment[256];
    int fd = open(f->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    for (const char *at = f->path; *at;) {
        size_t n = strcspn(at, "/");
        bool is_hidden = *at == '.' || n == 0 || n >= sizeof segment;
        if (is_hidden) {
            close(fd);
            return -ENOENT;
        }
        memcpy(segment, at, n);
        segment[n] = 0;
        fd = CONC_TRY(static_files__step(fd, segment));
        at += n + (at[n] == '/');
    }
    bool wants_index = !*f->path || f->path[strlen(f->path) - 1] == '/';
    if (wants_index)
        fd = CONC_TRY(static_files__step(fd, "index.html"));
    f->fd = fd;
    return static_files__look(f);
}

static inline char *static_files_beside(const char *source, const char *name)
{
    static char path[1024];
    const char *slash = strrchr(source, '/');
    int n = slash ? (int)(slash + 1 - source) : 0;
    snprintf(path, sizeof path, "%.*s%s", n, source, name);
    if (access(path, R_OK))
        snprintf(path, sizeof path, "%s", name);
    return access(path, R_OK) ? NULL : path;
}

static inline int static_files__close(static_files__file *f)
{
    if (f->fd >= 0)
        close(f->fd);
    free(f->piece);
    return 0;
}
CONC_AUTO_TYPE(static_files__file, static_files__close);

static inline int static_files__read(void *arg)
{
    static_files__file *f = arg;
    ssize_t n = pread(f->fd, f->piece, f->want, f->at);
    return n < 0 ? -errno : (int)n;
}

/* ---- implementation: headers ---------------------------------------------------------------- */

static inline const char *static_files__type(const char *path)
{
    static const char *const types[][2] = {
        {".html", "text/html; charset=utf-8"},
        {".css", "text/css; charset=utf-8"},
        {".js", "text/javascript; charset=utf-8"},
        {".mjs", "text/javascript; charset=utf-8"},
        {".json", "application/json"},
        {".txt", "text/plain; charset=utf-8"},
        {".md", "text/markdown; charset=utf-8"},
        {".csv", "text/csv; charset=utf-8"},
        {".c", "text/plain; charset=utf-8"},
        {".h", "text/plain; charset=utf-8"},
        {".svg", "image/svg+xml"},
        {".png", "image/png"},
        {".jpg", "image/jpeg"},
        {".jpeg", "image/jpeg"},
        {".gif", "image/gif"},
        {".webp", "image/webp"},
        {".ico", "image/x-icon"},
        {".woff2", "font/woff2"},
        {".wasm", "application/wasm"},
        {".pdf", "application/pdf"},
        {".mp4", "video/mp4"},
    };
    const char *end = strrchr(path, '.');
    if (!*path || path[strlen(path) - 1] == '/')
        end = ".html";
    for (size_t i = 0; end && i < sizeof types / sizeof *types; i++)
        if (strcasecmp(end, types[i][0]) == 0)
            return types[i][1];
    return "application/octet-stream";
}

/* Is the file unchanged since that date? No if the date is malformed. */
static inline bool static_files__is_not_newer(time_t modified, const char *date)
{
    char month[4] = "", zone[4] = "";
    static const char months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
    struct tm g = {0};
    int n = sscanf(date, "%*3s, %2d %3s %4d %2d:%2d:%2d %3s", &g.tm_mday, month, &g.tm_year,
                   &g.tm_hour, &g.tm_min, &g.tm_sec, zone);
    const char *found = strstr(months, month);
    bool is_date = n == 7 && strlen(month) == 3 && found && strcmp(zone, "GMT") == 0;
    if (!is_date)
        return false;
    g.tm_mon = (int)(found - months) / 3;
    g.tm_year -= 1900;
    return modified <= timegm(&g);
}

/* Is the tag in a list such as "a", W/"b", or is the list "*"? */
static inline bool static_files__lists(const char *list, const char *tag)
{
    size_t n = strlen(tag);
    if (strcmp(list, "*") == 0)
        return true;
    for (const char *at = strstr(list, tag); at; at = strstr(at + n, tag)) {
        bool begins = at == list || strchr(", /", at[-1]);
        if (begins && (at[n] == 0 || strchr(", ", at[n])))
            return true;
    }
    return false;
}

static inline bool static_files__is_unchanged(http_connection *http, const static_files__file *f,
                                              const char *tag)
{
    const char *tags = http_header(http, "If-None-Match");
    const char *since = http_header(http, "If-Modified-Since");
    if (tags)
        return static_files__lists(tags, tag);
    return since && static_files__is_not_newer(f->about.st_mtime, since);
}

/* Reads a number and advances *at past it; -1: there are no digits. */
static inline int64_t static_files__digits(const char **at)
{
    const char *digits = *at;
    size_t n = strspn(digits, "0123456789");
    *at += n;
    if (n == 0)
        return -1;
    return n > 18 ? INT64_MAX : strtoll(digits, NULL, 10);
}

/* Parses "bytes=0-99", "bytes=100-" or "bytes=-5". Returns 1 and sets the range; 0: send the whole
 * file; -1: the range has no byte of the file. */
static inline int static_files__range(const char *text, int64_t size, int64_t *first, int64_t *last)
{
    if (strncmp(text, "bytes=", 6) != 0)
        return 0;
    const char *at = text + 6;
    int64_t from = static_files__digits(&at);
    if (*at++ != '-')
        return 0;
    int64_t to = static_files__digits(&at);
    bool is_empty = from < 0 && to < 0, is_backward = from >= 0 && to >= 0 && to < from;
    if (*at || is_empty || is_backward)
        return 0; /* several ranges, or an invalid one */
    if (from < 0) {
        from = to < size ? size - to : 0; /* the last `to` bytes */
        to = to == 0 ? -2 : size - 1;
    }
    if (from >= size || to == -2)
        return -1;
    *first = from;
    *last = to < 0 || to >= size ? size - 1 : to;
    return 1;
}

/* ---- implementation: answering -------------------------------------------------------------- */

/* Sends the bytes from first to last in pieces. Reads the next piece when the client has accepted
 * this one. */
static inline int static_files__send(http_connection *http, static_files__file *f, int64_t first,
                                     int64_t last)
{
    f->at = (off_t)first;
    f->piece = malloc(STATIC_FILES__PIECE);
    if (!f->piece)
        return conc_fail(-ENOMEM, "out of memory");
    while (f->at <= last) {
        int64_t left = last - f->at + 1;
        f->want = left < STATIC_FILES__PIECE ? (size_t)left : STATIC_FILES__PIECE;
        int n = CONC_TRY(conc_offload(static_files__read, f));
        if (n == 0)
            return conc_fail(-EIO, "%s has been truncated", f->path);
        CONC_TRY(http_write(http, f->piece, (size_t)n));
        f->at += n;
    }
    return 0;
}

static inline int static_files__answer_whole(http_connection *http, static_files__file *f,
                                             const char *tag, const char *date)
{
    char header[80];
    int64_t size = (int64_t)f->about.st_size, first = 0, last = size - 1;
    const char *range = http_header(http, "Range"), *only_if = http_header(http, "If-Range");
    int is_part = 0, status = 200;
    bool may_be_part = range && strcmp(http->method, "GET") == 0;
    if (only_if && strcmp(only_if, tag) != 0 && strcmp(only_if, date) != 0)
        may_be_part = false;
    if (may_be_part)
        is_part = static_files__range(range, size, &first, &last);
    if (is_part < 0) {
        snprintf(header, sizeof header, "bytes */%lld", (long long)size);
        CONC_TRY(http_set_header(http, "Content-Range", header));
        return http_respond(http, 416, NULL, 0);
    }
    if (is_part) {
        snprintf(header, sizeof header, "bytes %lld-%lld/%lld", (long long)first, (long long)last,
                 (long long)size);
        CONC_TRY(http_set_header(http, "Content-Range", header));
        status = 206;
    }
    CONC_TRY(http_set_header(http, "Content-Type", static_files__type(f->path)));
    CONC_TRY(http_begin(http, status, last - first + 1));
    if (strcmp(http->method, "HEAD") != 0)
        CONC_TRY(static_files__send(http, f, first, last));
    return http_end(http);
}

static inline int static_files__answer_found(http_connection *http, static_files__file *f,
                                             const char *cache_control)
{
    char tag[64], date[HTTP_DATE];
    const struct timespec *t = &f->about.st_mtim;
    snprintf(tag, sizeof tag, "\"%llx-%llx-%llx\"",
             (unsigned long long)t->tv_sec * 1000000000 + (unsigned long long)t->tv_nsec,
             (unsigned long long)f->about.st_size, (unsigned long long)f->about.st_ino);
    http_date(f->about.st_mtime, date);
    CONC_TRY(http_set_header(http, "ETag", tag));
    CONC_TRY(http_set_header(http, "Last-Modified", date));
    CONC_TRY(http_set_header(http, "Accept-Ranges", "bytes"));
    CONC_TRY(http_set_header(http, "X-Content-Type-Options", "nosniff"));
    if (cache_control)
        CONC_TRY(http_set_header(http, "Cache-Control", cache_control));
    if (static_files__is_unchanged(http, f, tag))
        return http_respond(http, 304, NULL, 0);
    return static_files__answer_whole(http, f, tag, date);
}

static inline int static_files__redirect(http_connection *http)
{
    char location[1100];
    if (strlen(http->path) > 1024)
        return http_printf(http, 414, "the path is too long\n");
    /* Begin with a single slash: two would name another host. */
    snprintf(location, sizeof location, "/%s/", http->path + strspn(http->path, "/"));
    CONC_TRY(http_set_header(http, "Location", location));
    return http_respond(http, 301, NULL, 0);
}

/* Opens the file in a thread, and answers. */
static inline int static_files__answer(http_connection *http, static_files__file *f, conc_fn *open,
                                       const char *cache_control)
{
    int rc = conc_offload(open, f);
    bool is_none = rc == -ENOENT || rc == -ENOTDIR || rc == -ELOOP || rc == -EACCES || rc == -ENXIO;
    if (is_none)
        return http_printf(http, 404, "there is no such file\n");
    if (rc < 0)
        return conc_fail(rc, "%s: %s", f->path, conc_strerror(rc));
    if (f->is_folder)
        return static_files__redirect(http);
    return static_files__answer_found(http, f, cache_control);
}

static inline int static_files_answer(const static_files *s, http_connection *http,
                                      const char *path)
{
    CONC_AUTO(static_files__file, f) = {.folder = s->folder, .path = path, .fd = -1};
    return static_files__answer(http, &f, static_files__open_below, s->cache_control);
}

static inline int static_files_answer_file(http_connection *http, const char *path,
                                           const char *cache_control)
{
    CONC_AUTO(static_files__file, f) = {.path = path, .fd = -1};
    return static_files__answer(http, &f, static_files__open, cache_control);
}

#endif
