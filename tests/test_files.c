/* test_files.c - conc_file_read, conc_file_write and conc_file_append: whole files of every kind,
 * errors that leave everything unchanged, and a loop that continues meanwhile.
 *
 * Seeds: 2 (jobs are threads)
 * Not under: ucontext, no-epoll, save-fpu, aarch64-bti, riscv64, poll, gcc-asan, single, clang,
 * static, valgrind (how tasks switch and wait is tested elsewhere)
 */
#define _GNU_SOURCE 1 /* setresuid */
#include "pool_test.h"

#include <grp.h>
#include <poll.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/xattr.h>

enum { UNDECIDED = 1000, MEGABYTES_10 = 10 * 1024 * 1024 };

/* ---- the test's own directory, in which no file may be left ---- */

static void remove_names(const char *path)
{
    char name[PATH_MAX];
    DIR *d = opendir(path);
    CHECK(d != NULL);
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        CHECK((size_t)snprintf(name, sizeof name, "%s/%s", path, e->d_name) < sizeof name);
        if (unlink(name) != 0) {
            remove_names(name);
            CHECK_INT(rmdir(name), 0);
        }
    }
    closedir(d);
}

/* Runs body with the directory, in a task or not. Descriptors must not leak. */
static void in_directory(void (*body)(void), bool in_task, bool virtual_clock)
{
    test_task t = {body};
    conc_options options = {.virtual_clock = virtual_clock};
    if (!virtual_clock)
        unsetenv("CONC_CLOCK");
    make_directory();
    int fds = test_count_fds();
    if (in_task)
        CHECK_INT(conc_run_with(&options, test_call_body, &t), 0);
    else
        body();
    CHECK_INT(test_count_fds(), fds);
    remove_names(directory);
    CHECK_INT(rmdir(directory), 0);
}

#define FILE_TESTS_(name, in_task, virtual_clock)                            \
    static void body_of_##name(void);                                        \
    TEST(name) { in_directory(body_of_##name, (in_task), (virtual_clock)); } \
    static void body_of_##name(void)
#define FILE_TEST(name) FILE_TESTS_(name, true, true)
#define REAL_FILE_TEST(name) FILE_TESTS_(name, true, false)
#define THREAD_FILE_TEST(name) FILE_TESTS_(name, false, false) /* outside any run */

/* ---- plain system calls ---- */

static void make_text(const char *name, const char *text)
{
    make_file(path_of(name), text, strlen(text), 0644);
}

/* The file's contents, read with read(2). */
static char *contents(const char *path, size_t *size)
{
    size_t room = 4096, n = 0;
    char *data = malloc(room + 1);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0 && data != NULL);
    for (ssize_t got; (got = read(fd, data + n, room - n)) > 0;)
        if ((n += (size_t)got) == room)
            CHECK((data = realloc(data, (room *= 2) + 1)) != NULL);
    CHECK_INT(close(fd), 0);
    data[n] = 0;
    *size = n;
    return data;
}

static void check_contents(const char *path, const void *expected, size_t size)
{
    size_t n = 0;
    char *data = contents(path, &n);
    CHECK_INT(n, size);
    CHECK(size == 0 || memcmp(data, expected, size) == 0);
    free(data);
}

static void check_text(const char *name, const char *text)
{
    check_contents(path_of(name), text, strlen(text));
}

static mode_t mode_of(const char *path)
{
    struct stat st;
    CHECK_INT(stat(path, &st), 0);
    return st.st_mode & 07777;
}

static bool is_link(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0 && S_ISLNK(st.st_mode);
}

static bool exists(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0;
}

/* Bytes of a pattern in which no two pages are equal. */
static char *pattern(size_t size)
{
    char *data = malloc(size + 1);
    CHECK(data != NULL);
    for (size_t i = 0; i < size; i++)
        data[i] = (char)(i ^ i >> 8 ^ i >> 16);
    return data;
}

/* Continues as a user for whom permissions matter; returns false if that is impossible here. */
static bool without_privileges(void)
{
    enum { NOBODY = 65534 };
    if (geteuid() != 0)
        return true;
    return chown(directory, NOBODY, NOBODY) == 0 && setresgid(NOBODY, NOBODY, NOBODY) == 0 &&
           setresuid(NOBODY, NOBODY, NOBODY) == 0 &&
           prctl(PR_SET_DUMPABLE, 1) == 0; /* LeakSanitizer must be able to inspect the process */
}

/* ---- the calls ---- */

static int write_text(const char *path, const char *text)
{
    return conc_file_write(path, text, strlen(text));
}
static int append_text(const char *path, const char *text)
{
    return conc_file_append(path, text, strlen(text));
}

static void check_reads(const char *path, const void *expected, size_t size)
{
    void *data = NULL;
    size_t n = 12345;
    CHECK_INT(conc_file_read(path, &data, &n), 0);
    CHECK_INT(n, size);
    CHECK(data != NULL);
    CHECK(memcmp(data, expected, size) == 0);
    CHECK_INT(((char *)data)[size], 0);
    conc_free(data);
}

static void check_reads_text(const char *path, const char *text)
{
    check_reads(path, text, strlen(text));
}

static void check_read_fails(const char *path, int rc)
{
    static char old;
    void *data = &old;
    CHECK_INT(conc_file_read(path, &data, NULL), rc);
    CHECK(data == NULL);
}

/* Both calls that write must fail, and must leave the directory unchanged. */
static void check_write_fails(const char *path, int rc)
{
    int names = count_names(directory);
    CHECK_INT(write_text(path, "new"), rc);
    CHECK_INT(count_names(directory), names);
    CHECK_INT(append_text(path, "new"), rc);
    CHECK_INT(count_names(directory), names);
}

/* ---- round trips ---- */

FILE_TEST(a_written_file_is_read_back)
{
    static const size_t sizes[] = {0,     1,     2,     4095,    4096,        4097,
                                   65535, 65536, 65537, 1000000, MEGABYTES_10};
    char *data = pattern(MEGABYTES_10);
    for (size_t i = 0; i < CONC_LEN(sizes); i++) {
        CHECK_INT(conc_file_write(path_of("a"), data, sizes[i]), 0);
        check_contents(path_of("a"), data, sizes[i]);
        check_reads(path_of("a"), data, sizes[i]);
    }
    CHECK_INT(write_text(path_of("a"), "short again"), 0);
    check_reads_text(path_of("a"), "short again");
    CHECK_INT(count_names(directory), 1);
    free(data);
}

FILE_TEST(an_empty_file_is_a_file)
{
    CHECK_INT(conc_file_write(path_of("written"), NULL, 0), 0);
    CHECK_INT(conc_file_append(path_of("appended"), NULL, 0), 0);
    check_reads(path_of("written"), "", 0);
    check_reads(path_of("appended"), "", 0);
    CHECK_INT(count_names(directory), 2);
    CHECK_INT(write_text(path_of("written"), "full"), 0);
    CHECK_INT(conc_file_write(path_of("written"), "", 0), 0);
    check_reads(path_of("written"), "", 0);
}

FILE_TEST(bytes_that_are_zero_are_bytes)
{
    static const char data[] = "a\0b\0\0c";
    CHECK_INT(conc_file_write(path_of("a"), data, sizeof data), 0);
    CHECK_INT(conc_file_append(path_of("a"), data, 2), 0);
    check_reads(path_of("a"), "a\0b\0\0c\0a", sizeof data + 2);
}

FILE_TEST(the_size_is_optional)
{
    void *data = NULL;
    make_text("a", "abc");
    CHECK_INT(conc_file_read(path_of("a"), &data, NULL), 0);
    CHECK_STR((char *)data, "abc");
    conc_free(data);
}

FILE_TEST(appended_bytes_are_at_the_end)
{
    char *data = pattern(MEGABYTES_10);
    CHECK_INT(append_text(path_of("a"), "one"), 0);
    check_text("a", "one");
    CHECK_INT(append_text(path_of("a"), " two"), 0);
    CHECK_INT(append_text(path_of("a"), ""), 0);
    check_text("a", "one two");
    CHECK_INT(conc_file_append(path_of("a"), data, MEGABYTES_10), 0);
    CHECK_INT(append_text(path_of("a"), "end"), 0);
    size_t n = 0;
    char *all = contents(path_of("a"), &n);
    CHECK_INT(n, MEGABYTES_10 + 10);
    CHECK(memcmp(all, "one two", 7) == 0 && memcmp(all + 7, data, MEGABYTES_10) == 0);
    CHECK_STR(all + n - 3, "end");
    CHECK_INT(count_names(directory), 1);
    free(all);
    free(data);
}

FILE_TEST(an_empty_path_has_an_error_text)
{
    void *data;
    CHECK_INT(conc_file_write("", "a", 1), -ENOENT);
    CHECK_CONTAINS(conc_last_error(), "\"\": ");
    CHECK_CONTAINS(conc_last_error(), strerror(ENOENT));
    CHECK_INT(conc_file_write(NULL, "a", 1), -EINVAL);
    CHECK_STR(conc_last_error(), strerror(EINVAL));
    CHECK_INT(conc_file_read("", &data, NULL), -ENOENT);
    CHECK_CONTAINS(conc_last_error(), "\"\": ");
}

FILE_TEST(errno_is_preserved)
{
    errno = 77;
    check_read_fails(path_of("missing"), -ENOENT);
    CHECK_INT(write_text(path_of("a"), "a"), 0);
    CHECK_INT(errno, 77);
    CHECK_INT(append_text(path_of("a"), "a"), 0);
    CHECK_INT(write_text(path_of("missing/a"), "a"), -ENOENT);
    CHECK_INT(errno, 77);
}

/* ---- errors ---- */

FILE_TEST(a_missing_file_is_an_error)
{
    check_read_fails(path_of("missing"), -ENOENT);
    check_read_fails(path_of("missing/deeper"), -ENOENT);
    check_read_fails("", -ENOENT);
    make_text("a", "a");
    check_read_fails(path_of("a/deeper"), -ENOTDIR);
    CHECK_INT(count_names(directory), 1);
}

FILE_TEST(a_directory_is_not_a_file)
{
    CHECK_INT(mkdir(path_of("d"), 0700), 0);
    make_text("d/inside", "kept");
    check_read_fails(path_of("d"), -EISDIR);
    check_write_fails(path_of("d"), -EISDIR);
    CHECK_INT(count_names(path_of("d")), 1);
    check_text("d/inside", "kept");
    CHECK_INT(mkdir(path_of("empty"), 0700), 0);
    check_write_fails(path_of("empty"), -EISDIR);
    CHECK_INT(count_names(path_of("empty")), 0);
}

FILE_TEST(without_the_directory_nothing_is_written)
{
    check_write_fails(path_of("missing/a"), -ENOENT);
    check_write_fails("", -ENOENT);
    make_text("a", "a");
    check_write_fails(path_of("a/deeper"), -ENOTDIR);
    check_text("a", "a");
}

static const char *long_name(size_t n)
{
    static char name[PATH_MAX];
    CHECK(n < sizeof name);
    memset(name, 'n', n);
    name[n] = 0;
    return name;
}

FILE_TEST(a_name_that_is_too_long_is_an_error)
{
    char path[2 * PATH_MAX] = "/";
    check_read_fails(path_of(long_name(NAME_MAX + 1)), -ENAMETOOLONG);
    check_write_fails(path_of(long_name(NAME_MAX + 1)), -ENAMETOOLONG);
    while (strlen(path) < PATH_MAX)
        strcat(path, "./");
    check_read_fails(path, -ENAMETOOLONG);
    check_write_fails(path, -ENAMETOOLONG);
}

FILE_TEST(the_longest_name_works)
{
    const char *name = path_of(long_name(NAME_MAX));
    CHECK_INT(write_text(name, "one"), 0);
    CHECK_INT(write_text(name, "two"), 0);
    CHECK_INT(append_text(name, " three"), 0);
    check_reads_text(name, "two three");
    CHECK_INT(count_names(directory), 1);
}

FILE_TEST(the_longest_path_works)
{
    char path[PATH_MAX] = "";
    snprintf(path, sizeof path, "%s", directory);
    while (strlen(path) + 4 < PATH_MAX)
        strcat(path, "/.");
    strcat(path, strlen(path) % 2 ? "/a" : "/ab");
    CHECK(strlen(path) + 2 >= PATH_MAX);
    CHECK_INT(write_text(path, "one"), 0);
    CHECK_INT(write_text(path, "two"), 0);
    CHECK_INT(append_text(path, " three"), 0);
    check_reads_text(path, "two three");
    CHECK_INT(count_names(directory), 1);
}

FILE_TEST(a_path_without_a_directory_is_in_the_working_directory)
{
    CHECK_INT(chdir(directory), 0);
    CHECK_INT(write_text("a", "one"), 0);
    CHECK_INT(write_text("a", "two"), 0);
    CHECK_INT(append_text("a", " three"), 0);
    check_reads_text("a", "two three");
    check_text("a", "two three");
    CHECK_INT(count_names("."), 1);
    CHECK_INT(chdir("/"), 0);
}

FILE_TEST(invalid_arguments_are_refused)
{
    static char old;
    void *data = &old;
    size_t size = 3;
    make_text("a", "kept");
    CHECK_INT(conc_file_read(path_of("a"), NULL, &size), -EINVAL);
    CHECK_INT(conc_file_read(NULL, &data, &size), -EINVAL);
    CHECK(data == NULL);
    CHECK_INT(conc_file_write(NULL, "x", 1), -EINVAL);
    CHECK_INT(conc_file_append(NULL, "x", 1), -EINVAL);
    CHECK_INT(conc_file_write(path_of("a"), NULL, 1), -EINVAL);
    CHECK_INT(conc_file_append(path_of("a"), NULL, 1), -EINVAL);
    check_text("a", "kept");
    CHECK_INT(count_names(directory), 1);
}

FILE_TEST(without_permission_nothing_is_read_or_written)
{
    if (!without_privileges())
        return;
    make_file(path_of("secret"), "secret", 6, 0);
    make_file(path_of("constant"), "constant", 8, 0444);
    check_read_fails(path_of("secret"), -EACCES);
    CHECK_INT(append_text(path_of("secret"), "new"), -EACCES);
    CHECK_INT(append_text(path_of("constant"), "new"), -EACCES);
    check_text("constant", "constant");
    CHECK_INT(mkdir(path_of("d"), 0700), 0);
    make_text("d/old", "old");
    CHECK_INT(chmod(path_of("d"), 0500), 0);
    check_write_fails(path_of("d/new"), -EACCES);
    CHECK_INT(write_text(path_of("d/old"), "new"), 0); /* it can be written, but not replaced */
    check_text("d/old", "new");
    CHECK_INT(count_names(path_of("d")), 1);
    CHECK_INT(chmod(path_of("d"), 0700), 0);
}

FILE_TEST(a_file_that_grows_too_large_leaves_the_old_one_and_nothing_else)
{
    struct rlimit limit = {100000, RLIM_INFINITY};
    char *data = pattern(MEGABYTES_10);
    make_text("a", "old");
    signal(SIGXFSZ, SIG_DFL); /* which would end the program */
    CHECK_INT(setrlimit(RLIMIT_FSIZE, &limit), 0);
    CHECK_INT(conc_file_write(path_of("a"), data, MEGABYTES_10), -EFBIG);
    CHECK_INT(conc_file_write(path_of("new"), data, MEGABYTES_10), -EFBIG);
    check_text("a", "old");
    CHECK_INT(count_names(directory), 1);
    CHECK_INT(conc_file_append(path_of("a"), data, MEGABYTES_10), -EFBIG);
    limit.rlim_cur = RLIM_INFINITY;
    CHECK_INT(setrlimit(RLIMIT_FSIZE, &limit), 0);
    free(data);
}

FILE_TEST(without_a_descriptor_nothing_is_read_or_written)
{
    struct rlimit old, limit;
    int fds[256], n = 0;
    make_text("a", "old");
    check_reads_text(path_of("a"), "old"); /* opens what the module itself needs */
    CHECK_INT(getrlimit(RLIMIT_NOFILE, &old), 0);
    limit = (struct rlimit){64, old.rlim_max};
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &limit), 0);
    while (n < 256 && (fds[n] = open("/dev/null", O_RDONLY)) >= 0)
        n++;
    check_read_fails(path_of("a"), -EMFILE);
    CHECK_INT(write_text(path_of("a"), "new"), -EMFILE);
    CHECK_INT(append_text(path_of("a"), "new"), -EMFILE);
    while (n > 0)
        CHECK_INT(close(fds[--n]), 0);
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &old), 0);
    check_text("a", "old");
    CHECK_INT(count_names(directory), 1);
}

FILE_TEST(a_full_device_is_an_error)
{
    if (!exists("/dev/full"))
        return;
    CHECK_INT(write_text("/dev/full", "new"), -ENOSPC);
    CHECK_INT(append_text("/dev/full", "new"), -ENOSPC);
    CHECK(exists("/dev/full"));
}

/* ---- permissions and links ---- */

FILE_TEST(a_new_file_has_the_permissions_that_the_mask_leaves)
{
    static const mode_t masks[] = {022, 077, 0, 027};
    for (size_t i = 0; i < CONC_LEN(masks); i++) {
        mode_t old = umask(masks[i]);
        CHECK_INT(write_text(path_of("written"), "x"), 0);
        CHECK_INT(append_text(path_of("appended"), "x"), 0);
        CHECK_INT(mode_of(path_of("written")), 0666 & ~masks[i]);
        CHECK_INT(mode_of(path_of("appended")), 0666 & ~masks[i]);
        CHECK_INT(umask(old), masks[i]);
        CHECK_INT(unlink(path_of("written")), 0);
        CHECK_INT(unlink(path_of("appended")), 0);
    }
}

FILE_TEST(a_file_keeps_its_permissions)
{
    static const mode_t modes[] = {0600, 0640, 0644, 0666, 0755, 0777, 0700};
    for (size_t i = 0; i < CONC_LEN(modes); i++) {
        make_file(path_of("a"), "old", 3, modes[i]);
        CHECK_INT(write_text(path_of("a"), "new"), 0);
        CHECK_INT(mode_of(path_of("a")), modes[i]);
        CHECK_INT(append_text(path_of("a"), "er"), 0);
        CHECK_INT(mode_of(path_of("a")), modes[i]);
        check_text("a", "newer");
        CHECK_INT(unlink(path_of("a")), 0);
    }
}

/* Does the directory contain a file that other users may open? */
typedef struct spy {
    atomic_bool done;
    int looks, seen;
} spy;

static void *spies(void *arg)
{
    for (spy *s = arg; !s->done; s->looks++) {
        DIR *d = opendir(directory);
        for (struct dirent *e; d && (e = readdir(d)) != NULL;) {
            struct stat st;
            if (e->d_name[0] != '.' || strlen(e->d_name) > 2)
                s->seen += fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
                           (st.st_mode & 077) != 0;
        }
        if (d)
            closedir(d);
    }
    return NULL;
}

FILE_TEST(other_users_cannot_open_a_private_file_while_it_is_written)
{
    char *data = pattern(MEGABYTES_10);
    spy s = {.seen = 0};
    pthread_t t;
    mode_t old = umask(0);
    make_file(path_of("a"), "old", 3, 0600);
    CHECK_INT(pthread_create(&t, NULL, spies, &s), 0);
    for (int i = 0; i < 5; i++)
        CHECK_INT(conc_file_write(path_of("a"), data, MEGABYTES_10), 0);
    s.done = true;
    CHECK_INT(pthread_join(t, NULL), 0);
    CHECK(s.looks > 0);
    CHECK_INT(s.seen, 0);
    CHECK_INT(mode_of(path_of("a")), 0600);
    umask(old);
    free(data);
}

FILE_TEST(a_reader_with_the_old_file_open_still_sees_it)
{
    char text[8] = "";
    make_text("a", "old");
    CHECK_INT(link(path_of("a"), path_of("other name")), 0);
    int fd = open(path_of("a"), O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0);
    CHECK_INT(write_text(path_of("a"), "newer"), 0);
    CHECK_INT(read(fd, text, sizeof text - 1), 3);
    CHECK_STR(text, "old");
    check_text("other name", "old");
    check_text("a", "newer");
    CHECK_INT(close(fd), 0);
}

FILE_TEST(through_a_link_its_target_is_replaced_and_the_link_stays)
{
    CHECK_INT(mkdir(path_of("d"), 0700), 0);
    make_file(path_of("d/target"), "old", 3, 0640);
    CHECK_INT(symlink("target", path_of("d/near")), 0);
    CHECK_INT(symlink("d/near", path_of("chain")), 0);
    CHECK_INT(symlink(path_of("d/target"), path_of("absolute")), 0);
    static const char *const links[] = {"d/near", "chain", "absolute"};
    for (size_t i = 0; i < CONC_LEN(links); i++) {
        CHECK_INT(write_text(path_of(links[i]), links[i]), 0);
        check_text("d/target", links[i]);
        CHECK_INT(append_text(path_of(links[i]), "+"), 0);
        CHECK(is_link(path_of("d/near")) && is_link(path_of("chain")) &&
              is_link(path_of("absolute")));
        CHECK(!is_link(path_of("d/target")));
        CHECK_INT(mode_of(path_of("d/target")), 0640);
        size_t n;
        char *text = contents(path_of(links[i]), &n);
        check_reads_text(path_of(links[i]), text);
        CHECK_INT(text[n - 1], '+');
        free(text);
    }
    CHECK_INT(count_names(path_of("d")), 2);
    CHECK_INT(count_names(directory), 3);
}

FILE_TEST(through_a_dangling_link_its_target_is_created)
{
    CHECK_INT(symlink("target", path_of("link")), 0);
    check_read_fails(path_of("link"), -ENOENT);
    CHECK_INT(write_text(path_of("link"), "new"), 0);
    CHECK(is_link(path_of("link")));
    check_text("target", "new");
    CHECK_INT(unlink(path_of("target")), 0);
    CHECK_INT(append_text(path_of("link"), "newer"), 0);
    CHECK(is_link(path_of("link")));
    check_text("target", "newer");
    CHECK_INT(count_names(directory), 2);
}

FILE_TEST(a_link_to_itself_is_an_error)
{
    CHECK_INT(symlink("loop", path_of("loop")), 0);
    check_read_fails(path_of("loop"), -ELOOP);
    check_write_fails(path_of("loop"), -ELOOP);
    CHECK(is_link(path_of("loop")));
}

/* ---- other than regular files ---- */

FILE_TEST(the_null_device_stays_what_it_is)
{
    struct stat st;
    CHECK_INT(write_text("/dev/null", "gone"), 0);
    CHECK_INT(append_text("/dev/null", "gone"), 0);
    check_reads_text("/dev/null", "");
    CHECK_INT(stat("/dev/null", &st), 0);
    CHECK(S_ISCHR(st.st_mode));
    CHECK_INT(symlink("/dev/null", path_of("link")), 0);
    CHECK_INT(write_text(path_of("link"), "gone"), 0);
    CHECK(is_link(path_of("link")));
    CHECK_INT(count_names(directory), 1);
}

FILE_TEST(files_of_proc_are_read_whole_although_their_size_is_0)
{
    static const char *const constant[] = {"/proc/filesystems", "/proc/version",
                                           "/proc/self/cmdline", "/proc/self/environ",
                                           "/proc/sys/kernel/ostype"};
    for (size_t i = 0; i < CONC_LEN(constant); i++) {
        size_t n = 0;
        if (access(constant[i], R_OK) != 0)
            continue;
        char *text = contents(constant[i], &n);
        check_reads(constant[i], text, n);
        free(text);
    }
    void *maps = NULL;
    size_t n = 0;
    CHECK_INT(conc_file_read("/proc/self/smaps", &maps, &n), 0);
    CHECK(n > 4096);
    CHECK_INT(strlen(maps), n);
    CHECK_CONTAINS((char *)maps, "[stack]");
    CHECK_CONTAINS((char *)maps, "VmFlags");
    conc_free(maps);
}

/* One call, as a task. */
typedef struct call {
    const char *path;
    const char *text; /* to be written; NULL: the file is read */
    bool append;
    void *data;
    size_t size;
    int rc, next; /* results of the call, and of the checkpoint after it */
    conc_task task;
} call;

static int calls(void *arg)
{
    call *c = arg;
    size_t n = c->text ? strlen(c->text) : 0;
    c->rc = UNDECIDED;
    int rc = !c->text    ? conc_file_read(c->path, &c->data, &c->size)
             : c->append ? conc_file_append(c->path, c->text, n)
                         : conc_file_write(c->path, c->text, n);
    c->next = conc_yield();
    c->rc = rc;
    return 0;
}

/* Opens the other end of a FIFO as soon as a job has opened the first: the loop runs meanwhile. */
static int open_writer(const char *path)
{
    for (int fd;;) {
        if ((fd = open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC)) >= 0)
            return fd;
        CHECK_INT(errno, ENXIO);
        CHECK_INT(conc_yield(), 0);
    }
}

FILE_TEST(the_loop_continues_while_a_read_waits)
{
    call c = {.path = path_of("fifo")};
    conc_group g = {0};
    CHECK_INT(mkfifo(c.path, 0600), 0);
    CHECK_INT(conc_spawn(&g, calls, &c), 0);
    int fd = open_writer(c.path);
    turn(1000);
    CHECK_INT(write(fd, "abc", 3), 3);
    turn(1000);
    CHECK_INT(c.rc, UNDECIDED); /* the end of the file has not come yet */
    CHECK_INT(write(fd, "def", 3), 3);
    CHECK_INT(close(fd), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(c.rc, 0);
    CHECK_INT(c.size, 6);
    CHECK_STR((char *)c.data, "abcdef");
    conc_free(c.data);
}

REAL_FILE_TEST(timers_fire_while_a_read_waits)
{
    call c = {.path = path_of("fifo")};
    conc_group g = {0};
    CHECK_INT(mkfifo(c.path, 0600), 0);
    CHECK_INT(conc_spawn(&g, calls, &c), 0);
    int fd = open_writer(c.path);
    for (int i = 0; i < 20; i++)
        CHECK_INT(conc_sleep(0.001), 0);
    CHECK_INT(c.rc, UNDECIDED);
    CHECK_INT(close(fd), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(c.rc, 0);
    CHECK_INT(c.size, 0);
    conc_free(c.data);
}

FILE_TEST(a_named_pipe_accepts_a_megabyte_and_stays_a_pipe)
{
    size_t size = 1024 * 1024;
    struct stat st;
    char *text = malloc(size + 1);
    CHECK(text != NULL);
    memset(text, 'x', size);
    text[size] = 0;
    for (int append = 0; append < 2; append++) {
        call writer = {.path = path_of("fifo"), .text = text, .append = append},
             reader = {.path = path_of("fifo")};
        CHECK_INT(mkfifo(writer.path, 0600), 0);
        CHECK_INT(CONC_GATHER(CONC_CALL(calls, &writer), CONC_CALL(calls, &reader)), 0);
        CHECK_INT(writer.rc, 0);
        CHECK_INT(reader.rc, 0);
        CHECK_INT(reader.size, size);
        CHECK(memcmp(reader.data, text, size) == 0);
        CHECK_INT(lstat(writer.path, &st), 0);
        CHECK(S_ISFIFO(st.st_mode));
        CHECK_INT(count_names(directory), 1);
        CHECK_INT(unlink(writer.path), 0);
        conc_free(reader.data);
    }
    free(text);
}

/* ---- a program whose standard output is closed ---- */

static bool is_closed(int fd) { return fcntl(fd, F_GETFD) < 0 && errno == EBADF; }

static int close_output(void)
{
    int kept = fcntl(1, F_DUPFD_CLOEXEC, 200);
    CHECK(kept >= 0);
    CHECK_INT(close(1), 0);
    return kept;
}

static void restore_output(int kept)
{
    CHECK_INT(dup2(kept, 1), 1);
    CHECK_INT(close(kept), 0);
}

FILE_TEST(a_file_that_is_being_written_is_not_the_standard_output)
{
    static char text[1024 * 1024 + 1], got[sizeof text];
    memset(text, 'x', sizeof text - 1);
    for (int append = 0; append < 2; append++) {
        conc_group g = {0};
        call writer = {.path = path_of("fifo"), .text = text, .append = append};
        CHECK_INT(mkfifo(writer.path, 0600), 0);
        int fd = open(writer.path, O_RDWR | O_NONBLOCK | O_CLOEXEC), kept = close_output();
        CHECK_INT(conc_spawn(&g, calls, &writer), 0);
        /* not everything fits: the file stays open */
        CHECK_INT(conc_wait_fd(fd, CONC_READABLE), CONC_READABLE);
        CHECK(is_closed(1));
        CHECK_INT(conc_read_full(fd, got, sizeof text - 1), sizeof text - 1);
        CHECK_INT(conc_group_wait(&g), 0);
        restore_output(kept);
        CHECK_INT(writer.rc, 0);
        CHECK_INT(close(fd), 0);
        CHECK_INT(unlink(writer.path), 0);
    }
}

/* Does one of the directory's files have contents already? */
static bool something_is_written(DIR *d)
{
    struct stat st;
    bool found = false;
    rewinddir(d);
    for (struct dirent *e; !found && (e = readdir(d)) != NULL;)
        found = fstatat(dirfd(d), e->d_name, &st, 0) == 0 && S_ISREG(st.st_mode) && st.st_size > 0;
    return found;
}

FILE_TEST(a_new_file_that_is_being_written_is_not_the_standard_output)
{
    char *text = malloc(MEGABYTES_10 + 1);
    CHECK(text != NULL);
    memset(text, 'x', MEGABYTES_10);
    text[MEGABYTES_10] = 0;
    conc_group g = {0};
    call writer = {.path = path_of("a"), .text = text, .rc = UNDECIDED};
    DIR *d = opendir(directory);
    CHECK(d != NULL);
    int kept = close_output();
    CHECK_INT(conc_spawn(&g, calls, &writer), 0);
    while (writer.rc == UNDECIDED) {
        if (something_is_written(d))
            CHECK(is_closed(1));
        CHECK_INT(conc_yield(), 0);
    }
    CHECK_INT(conc_group_wait(&g), 0);
    restore_output(kept);
    CHECK_INT(writer.rc, 0);
    closedir(d);
    free(text);
}

/* A reader of a FIFO that reads some bytes and leaves. */
typedef struct leaver {
    const char *path;
    pthread_t thread;
    int rc;
} leaver;

static void *reads_and_leaves(void *arg)
{
    leaver *l = arg;
    char bytes[100];
    int fd = open(l->path, O_RDONLY | O_CLOEXEC);
    l->rc = fd < 0 || read(fd, bytes, sizeof bytes) <= 0 || close(fd) != 0;
    return NULL;
}

static int write_until_it_breaks(const char *path)
{
    leaver l = {.path = path};
    char *data = pattern(MEGABYTES_10);
    CHECK_INT(mkfifo(l.path, 0600), 0);
    CHECK_INT(pthread_create(&l.thread, NULL, reads_and_leaves, &l), 0);
    int rc = conc_file_write(l.path, data, MEGABYTES_10);
    CHECK_INT(pthread_join(l.thread, NULL), 0);
    CHECK_INT(l.rc, 0);
    CHECK_INT(unlink(l.path), 0);
    free(data);
    return rc;
}

FILE_TEST(a_pipe_whose_reader_leaves_is_an_error_and_no_signal)
{
    CHECK_INT(write_until_it_breaks(path_of("fifo")), -EPIPE);
}

THREAD_FILE_TEST(outside_a_run_a_broken_pipe_is_no_signal_either)
{
    CHECK_INT(write_until_it_breaks(path_of("fifo")), -EPIPE);
}

/* ---- whole or not at all ---- */

enum { VERSIONS = 200 };

typedef struct version {
    char text[30000];
    size_t size;
} version;

static version versions[2];

static void make_versions(void)
{
    for (size_t i = 0; i < 2; i++) {
        versions[i].size = i ? sizeof versions[i].text : 1000;
        memset(versions[i].text, i ? 'b' : 'a', versions[i].size);
    }
}

static bool is_a_version(const char *data, size_t size)
{
    for (size_t i = 0; i < 2; i++)
        if (size == versions[i].size && memcmp(data, versions[i].text, size) == 0)
            return true;
    return false;
}

/* Other readers meanwhile: a task through conc, and a thread with plain calls. */
typedef struct looker {
    const char *path;
    atomic_bool *done;
    int looks, broken;
    bool may_miss; /* it may not exist */
} looker;

static int looks(void *arg)
{
    for (looker *l = arg; !*l->done; l->looks++) {
        void *data = NULL;
        size_t size = 0;
        CHECK_INT(conc_file_read(l->path, &data, &size), 0);
        l->broken += !is_a_version(data, size);
        conc_free(data);
    }
    return 0;
}

static void *looks_plainly(void *arg)
{
    static char text[sizeof(version)];
    for (looker *l = arg; !*l->done; l->looks++) {
        size_t size = 0;
        int fd = open(l->path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 && l->may_miss && errno == ENOENT)
            continue;
        for (ssize_t n; fd >= 0 && (n = read(fd, text + size, sizeof text - size)) > 0;)
            size += (size_t)n;
        l->broken += fd < 0 || close(fd) != 0 || !is_a_version(text, size);
    }
    return NULL;
}

FILE_TEST(a_reader_sees_the_old_file_or_the_new_one_while_it_is_written)
{
    atomic_bool done = false;
    looker task = {.path = path_of("a"), .done = &done}, thread = task;
    pthread_t t;
    conc_group g = {0};
    make_versions();
    CHECK_INT(conc_file_write(task.path, versions[0].text, versions[0].size), 0);
    CHECK_INT(pthread_create(&t, NULL, looks_plainly, &thread), 0);
    CHECK_INT(conc_spawn(&g, looks, &task), 0);
    for (int i = 0; i < (getenv("TEST_ONCE") ? VERSIONS / 10 : VERSIONS); i++)
        CHECK_INT(conc_file_write(task.path, versions[i % 2].text, versions[i % 2].size), 0);
    done = true;
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(pthread_join(t, NULL), 0);
    CHECK(task.looks > 0);
    CHECK_INT(task.broken, 0);
    CHECK_INT(thread.broken, 0);
    CHECK_INT(count_names(directory), 1);
}

FILE_TEST(a_reader_of_a_dangling_link_sees_nothing_or_the_whole_file)
{
    atomic_bool done = false;
    pthread_t t;
    looker thread = {.path = path_of("link"), .done = &done, .may_miss = true};
    char target[PATH_MAX];
    snprintf(target, sizeof target, "%s", path_of("target"));
    make_versions();
    CHECK_INT(symlink("target", thread.path), 0);
    CHECK_INT(pthread_create(&t, NULL, looks_plainly, &thread), 0);
    for (int i = 0; i < 50; i++) {
        CHECK_INT(conc_file_write(thread.path, versions[i % 2].text, versions[i % 2].size), 0);
        CHECK(is_link(thread.path));
        CHECK_INT(unlink(target), 0);
    }
    done = true;
    CHECK_INT(pthread_join(t, NULL), 0);
    CHECK_INT(thread.broken, 0);
}

/* ---- many at once ---- */

static int writes_versions(void *arg)
{
    for (int i = 0; i < 20; i++)
        CONC_TRY(conc_file_write(arg, versions[i % 2].text, versions[i % 2].size));
    return 0;
}

FILE_TEST(many_writers_of_one_file_leave_only_the_last_ones_contents)
{
    char path[PATH_MAX];
    make_versions();
    snprintf(path, sizeof path, "%s", path_of("a"));
    CHECK_INT(conc_map(writes_versions, path, 8, 0), 0);
    size_t n = 0;
    char *data = contents(path, &n);
    CHECK(is_a_version(data, n));
    CHECK_INT(count_names(directory), 1);
    free(data);
}

enum { WRITERS = 8, RECORDS = 25, RECORD = 5000 };

typedef struct recorder {
    const char *path;
    int number;
} recorder;

/* A record is a letter repeated many times, and a newline. */
static int appends_records(void *arg)
{
    recorder *r = arg;
    char record[RECORD];
    memset(record, 'a' + r->number, RECORD);
    record[RECORD - 1] = '\n';
    for (int i = 0; i < RECORDS; i++)
        CONC_TRY(conc_file_append(r->path, record, RECORD));
    return 0;
}

static void check_records(const char *path)
{
    int counts[WRITERS] = {0};
    size_t n = 0;
    char *data = contents(path, &n);
    CHECK_INT(n, WRITERS * RECORDS * RECORD);
    for (size_t at = 0; at < n; at += RECORD) {
        int number = data[at] - 'a';
        CHECK(number >= 0 && number < WRITERS);
        for (size_t i = 0; i < RECORD - 1; i++)
            CHECK_INT(data[at + i], data[at]);
        CHECK_INT(data[at + RECORD - 1], '\n');
        counts[number]++;
    }
    for (int i = 0; i < WRITERS; i++)
        CHECK_INT(counts[i], RECORDS);
    free(data);
}

FILE_TEST(records_that_eight_tasks_append_stay_whole)
{
    recorder r[WRITERS];
    for (int i = 0; i < WRITERS; i++)
        r[i] = (recorder){path_of("log"), i};
    const char *path = r[0].path;
    CHECK_INT(CONC_MAP(appends_records, r), 0);
    check_records(path);
}

FILE_TEST(records_that_eight_jobs_append_stay_whole)
{
    recorder r[WRITERS];
    CONC_AUTO(conc_pool, pool) = {.threads = 4};
    CHECK_INT(conc_pool_open(&pool), 0);
    for (int i = 0; i < WRITERS; i++)
        r[i] = (recorder){path_of("log"), i};
    CHECK_INT(conc_pool_map(&pool, appends_records, r, WRITERS, sizeof r[0]), 0);
    check_records(r[0].path);
}

/* ---- outside tasks ---- */

static int round_trip(void *arg)
{
    const char *path = arg;
    void *data = NULL;
    size_t size = 0;
    CONC_TRY(conc_file_write(path, "abc", 3));
    CONC_TRY(conc_file_append(path, "def", 3));
    CONC_TRY(conc_file_read(path, &data, &size));
    bool right = size == 6 && strcmp(data, "abcdef") == 0;
    conc_free(data);
    if (conc_file_read("/nowhere/at/all", &data, NULL) != -ENOENT || data != NULL)
        return -EPROTO;
    return right ? 6 : -EPROTO;
}

static void *round_trips(void *arg) { return round_trip(arg) == 6 ? arg : NULL; }

static int run_round_trip(void *arg) { return conc_run(round_trip, arg); }

THREAD_FILE_TEST(outside_a_run_the_calls_block_their_thread)
{
    char path[PATH_MAX];
    pthread_t t;
    void *result = NULL;
    snprintf(path, sizeof path, "%s", path_of("a"));
    CHECK_INT(round_trip(path), 6);
    CHECK_INT(pthread_create(&t, NULL, round_trips, path), 0);
    CHECK_INT(pthread_join(t, &result), 0);
    CHECK(result == path);
    CHECK_INT(conc_run(round_trip, path), 6);
    CHECK_INT(round_trip(path), 6);
    CHECK_INT(count_names(directory), 1);
}

FILE_TEST(jobs_call_directly_or_in_their_own_runs)
{
    char path[PATH_MAX];
    CONC_AUTO(conc_pool, pool) = {.threads = 1};
    snprintf(path, sizeof path, "%s", path_of("a"));
    CHECK_INT(conc_pool_open(&pool), 0);
    CHECK_INT(conc_pool_run(&pool, round_trip, path), 6);
    CHECK_INT(conc_pool_run(&pool, run_round_trip, path), 6);
    CHECK_INT(conc_offload(round_trip, path), 6);
    CHECK_INT(conc_offload(run_round_trip, path), 6);
    CHECK_INT(count_names(directory), 1);
}

/* Emulators (of a build without Check) crash when a forked process starts threads, and Valgrind
 * misses the parent's threads. */
static bool forked_processes_are_real(void)
{
    const char *preloaded = getenv("LD_PRELOAD");
#ifdef CONC_TEST_PLAIN
    bool emulated = true;
#else
    bool emulated = false;
#endif
    return !emulated && (!preloaded || !strstr(preloaded, "vgpreload"));
}

/* A forked process has none of the threads, and starts its own. */
static char forked_path[PATH_MAX];

static void round_trip_of_a_forked_process(void)
{
    alarm(10);
    _exit(conc_run(round_trip, forked_path) == 6 ? 0 : 1);
}

static void plain_round_trip_of_a_forked_process(void)
{
    alarm(10);
    _exit(round_trip(forked_path) == 6 && conc_run(round_trip, forked_path) == 6 ? 0 : 1);
}

FILE_TEST(a_forked_process_reads_and_writes_in_its_own_run)
{
    static char text[4096];
    if (!forked_processes_are_real())
        return;
    snprintf(forked_path, sizeof forked_path, "%s", path_of("a"));
    for (int i = 0; i < 3; i++) {
        CHECK_INT(round_trip(forked_path), 6);
        CHECK_INT(test_in_process(round_trip_of_a_forked_process, text, sizeof text), 0);
        CHECK_STR(text, "");
    }
}

THREAD_FILE_TEST(a_process_that_was_forked_outside_a_run_reads_and_writes)
{
    static char text[4096];
    if (!forked_processes_are_real())
        return;
    snprintf(forked_path, sizeof forked_path, "%s", path_of("a"));
    CHECK_INT(conc_run(round_trip, forked_path), 6);
    CHECK_INT(test_in_process(plain_round_trip_of_a_forked_process, text, sizeof text), 0);
    CHECK_STR(text, "");
    CHECK_INT(conc_run(round_trip, forked_path), 6);
}

static bool posted_ran;

static void call_in_a_post(void *arg)
{
    static char old;
    void *data = &old;
    size_t size = 0;
    CHECK_INT(conc_file_read(arg, &data, &size), -EPERM);
    CHECK(data == NULL);
    CHECK_INT(conc_file_write(arg, "new", 3), -EPERM);
    CHECK_INT(conc_file_append(arg, "new", 3), -EPERM);
    posted_ran = true;
}

FILE_TEST(a_posted_function_does_nothing_with_files)
{
    char path[PATH_MAX];
    make_text("a", "old");
    snprintf(path, sizeof path, "%s", path_of("a"));
    CHECK_INT(conc_post(conc_loop_self(), call_in_a_post, path), 0);
    CHECK_INT(conc_settle(), 0);
    CHECK(posted_ran);
    check_text("a", "old");
    CHECK_INT(count_names(directory), 1);
}

/* ---- cancels ---- */

FILE_TEST(a_cancel_before_the_call_means_that_nothing_is_done)
{
    static char old;
    void *data = &old;
    conc_scope s = {0};
    make_text("a", "old");
    CHECK_INT(conc_scope_begin(&s, CONC_FOREVER), 0);
    conc_scope_cancel(&s);
    CHECK_INT(conc_file_read(path_of("a"), &data, NULL), -ECANCELED);
    CHECK(data == NULL);
    CHECK_INT(write_text(path_of("a"), "new"), -ECANCELED);
    CHECK_INT(append_text(path_of("a"), "new"), -ECANCELED);
    CHECK_INT(write_text(path_of("new"), "new"), -ECANCELED);
    CHECK_INT(append_text(path_of("new"), "new"), -ECANCELED);
    CHECK_INT(conc_scope_end(&s, -ECANCELED), 0);
    check_text("a", "old");
    CHECK_INT(count_names(directory), 1);
}

FILE_TEST(a_write_that_has_begun_is_awaited_and_not_undone)
{
    char *text = malloc(MEGABYTES_10 + 1);
    CHECK(text != NULL);
    memset(text, 'x', MEGABYTES_10);
    text[MEGABYTES_10] = 0;
    call c = {.path = path_of("a"), .text = text, .rc = UNDECIDED};
    conc_group g = {0};
    DIR *d = opendir(directory);
    CHECK(d != NULL);
    CHECK_INT(conc_spawn_task(&g, &c.task, calls, &c), 0);
    while (!something_is_written(d))
        turn(1);
    conc_cancel(&c.task);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK(c.rc == 0);
    check_text("a", text);
    closedir(d);
    free(text);
}

/* Opens a file whose lease (fcntl(2)) makes every task that opens it wait; -1: this file system has
 * no leases. */
static int lease_of(const char *name)
{
    make_text(name, "old");
    signal(SIGIO, SIG_IGN); /* it comes when a process opens the file */
    int fd = open(path_of(name), O_RDWR | O_CLOEXEC);
    CHECK(fd >= 0);
    if (fcntl(fd, F_SETLEASE, F_WRLCK) == 0)
        return fd;
    printf("no lease: %s\n", strerror(errno));
    CHECK_INT(close(fd), 0);
    return -1;
}

static void end_lease(int fd)
{
    CHECK_INT(fcntl(fd, F_SETLEASE, F_UNLCK), 0);
    CHECK_INT(close(fd), 0);
}

/* Until a call waits at the file. */
static void wait_for_opener(int fd)
{
    while (fcntl(fd, F_GETLEASE) == F_WRLCK)
        CHECK_INT(conc_sleep(0.001), 0);
}

static int calls_with_a_limit(void *arg)
{
    call *c = arg;
    conc_scope s = {0};
    c->rc = UNDECIDED;
    CHECK_INT(conc_scope_begin(&s, 0.01), 0);
    int rc = c->text ? conc_file_append(c->path, c->text, strlen(c->text))
                     : conc_file_read(c->path, &c->data, &c->size);
    c->next = conc_yield();
    c->rc = conc_scope_end(&s, rc);
    CHECK(s.expired);
    return 0;
}

/* Reads and appends to a file that makes them wait, while a cancel comes or a limit passes. */
static void check_held_call(bool appends, bool limited)
{
    call c = {.path = path_of("held"), .text = appends ? "new" : NULL, .append = appends};
    conc_group g = {0};
    int fd = lease_of("held");
    if (fd < 0)
        return;
    CHECK_INT(conc_spawn_task(&g, &c.task, limited ? calls_with_a_limit : calls, &c), 0);
    wait_for_opener(fd);
    if (!limited)
        CHECK_INT(conc_cancel(&c.task), 0);
    CHECK_INT(conc_sleep(0.02), 0);
    CHECK_INT(c.rc, UNDECIDED);
    end_lease(fd);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(c.rc, 0);
    CHECK_INT(c.next, -ECANCELED); /* seen at the next checkpoint */
    CHECK(appends || (c.size == 3 && strcmp(c.data, "old") == 0));
    conc_free(c.data);
    check_text("held", appends ? "oldnew" : "old");
    CHECK_INT(unlink(path_of("held")), 0);
}

REAL_FILE_TEST(a_call_that_has_begun_is_awaited_despite_a_cancel_or_a_limit)
{
    for (int how = 0; how < 4; how++)
        check_held_call(how & 1, how & 2);
}

/* Reads are waiting on all threads for files. */
REAL_FILE_TEST(a_queued_call_does_nothing_when_it_is_cancelled)
{
    enum { MANY = 32 };
    static call c[MANY], behind;
    char path[PATH_MAX], other[PATH_MAX];
    conc_group g = {0};
    int fd = lease_of("held");
    if (fd < 0)
        return;
    snprintf(path, sizeof path, "%s", path_of("held"));
    snprintf(other, sizeof other, "%s", path_of("other"));
    make_text("other", "old");
    for (int i = 0; i < MANY; i++) {
        c[i] = (call){.path = path};
        CHECK_INT(conc_spawn(&g, calls, &c[i]), 0);
    }
    wait_for_opener(fd);
    behind = (call){.path = other, .text = "new", .append = true};
    CHECK_INT(conc_spawn_task(&g, &behind.task, calls_with_a_limit, &behind), 0);
    while (behind.rc != -ETIMEDOUT)
        CHECK_INT(conc_sleep(0.001), 0);
    check_text("other", "old");
    end_lease(fd);
    CHECK_INT(conc_group_wait(&g), 0);
    for (int i = 0; i < MANY; i++) {
        CHECK_INT(c[i].rc, 0);
        CHECK_STR((char *)c[i].data, "old");
        conc_free(c[i].data);
    }
    check_text("other", "old");
}

FILE_TEST(a_cancel_ends_a_read_of_a_file_without_an_end)
{
    call c = {.path = "/dev/zero"};
    conc_group g = {0};
    CHECK_INT(conc_spawn_task(&g, &c.task, calls, &c), 0);
    turn(10);
    CHECK_INT(c.rc, UNDECIDED);
    CHECK_INT(conc_cancel(&c.task), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(c.rc, -ECANCELED);
    CHECK(c.data == NULL);
}

FILE_TEST(a_cancel_ends_a_wait_for_the_other_end_of_a_pipe)
{
    for (int how = 0; how < 4; how++) {
        call c = {.path = path_of("fifo"), .text = how < 2 ? NULL : "text", .append = how == 3};
        conc_group g = {0};
        int fd = -1;
        CHECK_INT(mkfifo(c.path, 0600), 0);
        CHECK_INT(conc_spawn_task(&g, &c.task, calls, &c), 0);
        if (how == 1) { /* there is a writer, which writes nothing more */
            fd = open_writer(c.path);
            CHECK_INT(write(fd, "abc", 3), 3);
        }
        turn(100);
        CHECK_INT(c.rc, UNDECIDED);
        CHECK_INT(conc_cancel(&c.task), 0);
        CHECK_INT(conc_group_wait(&g), 0);
        CHECK_INT(c.rc, -ECANCELED);
        CHECK(c.data == NULL);
        if (fd >= 0)
            CHECK_INT(close(fd), 0);
        CHECK_INT(unlink(c.path), 0);
    }
}

static int reads_pipe(void *path)
{
    void *data;
    return conc_file_read(path, &data, NULL);
}

static int writes_pipe(void *path) { return write_text(path, "text"); }
static int appends_to_pipe(void *path) { return append_text(path, "text"); }

/* On the virtual clock, too, the other end has real time to open it. */
static void check_limits_come(void)
{
    conc_fn *const fns[] = {reads_pipe, writes_pipe, appends_to_pipe};
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s", path_of("fifo"));
    CHECK_INT(mkfifo(path, 0600), 0);
    for (size_t i = 0; i < CONC_LEN(fns); i++) {
        double start = conc_now(), real = test_real_seconds();
        CHECK_INT(conc_timeout(0.02, fns[i], path), -ETIMEDOUT);
        CHECK(conc_now() - start > 0.0199);
        CHECK(test_real_seconds() - real >= 0.02);
    }
    CHECK_INT(unlink(path), 0);
}

static int writes_pipe_for_a_while(void *path) { return conc_timeout(0.2, writes_pipe, path); }

/* The clock stands still for real time, while the host sleeps. */
THREAD_FILE_TEST(a_host_does_not_spin_while_a_pipe_has_no_other_end)
{
    conc_options options = {.virtual_clock = true};
    conc_embed e = {0};
    char path[PATH_MAX];
    int steps = 0;
    snprintf(path, sizeof path, "%s", path_of("fifo"));
    CHECK_INT(mkfifo(path, 0600), 0);
    int rc = conc_embed_begin(&e, &options, writes_pipe_for_a_while, path);
    if (rc == -ENOTSUP) /* poll(2) */
        return;
    for (CHECK_INT(rc, 0); (rc = conc_embed_step(&e)) > 0; steps++) {
        double timeout = conc_embed_timeout(&e);
        struct pollfd p = {.fd = conc_embed_fd(&e), .events = POLLIN};
        poll(&p, 1, timeout < 10 ? (int)(timeout * 1000) + 1 : 10000);
    }
    CHECK_INT(rc, 0);
    CHECK_INT(conc_embed_end(&e), -ETIMEDOUT);
    CHECK(steps < 200);
    CHECK_INT(unlink(path), 0);
}

FILE_TEST(a_limit_on_a_pipe_without_its_other_end_passes) { check_limits_come(); }
REAL_FILE_TEST(a_limit_on_a_pipe_without_its_other_end_passes_in_real_time) { check_limits_come(); }

static void *opens_late(void *path)
{
    char text[8] = "";
    nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    int fd = open(path, O_RDONLY);
    CHECK_INT(read(fd, text, sizeof text), 4);
    CHECK_STR(text, "text");
    close(fd);
    return NULL;
}

FILE_TEST(a_reader_that_comes_late_gets_what_is_written)
{
    pthread_t t;
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s", path_of("fifo"));
    CHECK_INT(mkfifo(path, 0600), 0);
    CHECK_INT(pthread_create(&t, NULL, opens_late, path), 0);
    CHECK_INT(conc_timeout(1000, writes_pipe, path), 0);
    CHECK_INT(pthread_join(t, NULL), 0);
}

FILE_TEST(a_cancel_ends_a_read_of_a_terminal)
{
    int control = posix_openpt(O_RDWR | O_NOCTTY);
    if (control < 0 || grantpt(control) || unlockpt(control))
        return;
    call c = {.path = ptsname(control)};
    conc_group g = {0};
    int fd = open(c.path, O_RDWR | O_NOCTTY);
    CHECK(fd >= 0);
    CHECK_INT(conc_spawn_task(&g, &c.task, calls, &c), 0);
    turn(100);
    CHECK_INT(write(control, "line\n", 5), 5);
    turn(100);
    CHECK_INT(c.rc, UNDECIDED);
    CHECK_INT(conc_cancel(&c.task), 0);
    CHECK_INT(conc_group_wait(&g), 0);
    CHECK_INT(c.rc, -ECANCELED);
    CHECK_INT(close(fd), 0);
    CHECK_INT(close(control), 0);
}

static const char *terminal;

static void use_terminal_of_nobody(void)
{
    /* it has no terminal, and the next one that it opens may become its controlling terminal */
    CHECK(setsid() > 0);
    CHECK_INT(write_text(terminal, "text"), 0);
    check_reads(terminal, "line\n", 5);
    CHECK_INT(open("/dev/tty", O_RDWR | O_CLOEXEC), -1);
}

THREAD_FILE_TEST(a_terminal_that_is_read_does_not_become_this_programs)
{
    static char text[4096];
    int control = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (control < 0 || grantpt(control) || unlockpt(control))
        return;
    terminal = ptsname(control);
    int fd = open(terminal, O_RDWR | O_NOCTTY | O_CLOEXEC);
    CHECK(fd >= 0);
    CHECK_INT(write(control, "line\n\4", 6), 6); /* and its end */
    CHECK_INT(test_in_process(use_terminal_of_nobody, text, sizeof text), 0);
    CHECK_STR(text, "");
    CHECK_INT(close(fd), 0);
    CHECK_INT(close(control), 0);
}

/* ---- files that cannot be replaced ---- */

FILE_TEST(files_of_proc_are_written)
{
    size_t n;
    CHECK_INT(write_text("/proc/self/comm", "conc-files"), 0);
    char *text = contents("/proc/self/comm", &n);
    CHECK_STR(text, "conc-files\n");
    free(text);
    CHECK(write_text("/proc/no-such-file", "x") < 0);
}

FILE_TEST(a_file_that_is_a_mount_point_is_written_over)
{
    make_text("a", "on the disk");
    make_text("b", "mounted, and longer");
    if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
        mount(path_of("b"), path_of("a"), NULL, MS_BIND, NULL))
        return;
    CHECK_INT(write_text(path_of("a"), "new"), 0);
    check_text("a", "new");
    check_text("b", "new");
    CHECK_INT(umount2(path_of("a"), MNT_DETACH), 0);
    check_text("a", "on the disk");
    CHECK_INT(count_names(directory), 2);
}

FILE_TEST(a_group_that_cannot_be_kept_gives_nothing_away)
{
    enum { NOBODY = 65534, OTHERS = 4 };
    static const mode_t modes[][2] = {{0660, 0600}, {0640, 0600}, {0664, 0644}, {0644, 0644},
                                      {0604, 0600}, {0666, 0666}, {02770, 0700}};
    for (size_t i = 0; i < CONC_LEN(modes); i++) {
        char name[8];
        snprintf(name, sizeof name, "%zu", i);
        make_file(path_of(name), "old", 3, 0600);
        if (chown(path_of(name), NOBODY, OTHERS))
            return;
        CHECK_INT(chmod(path_of(name), modes[i][0]), 0);
    }
    CHECK_INT(setgroups(0, NULL), 0);
    if (!without_privileges())
        return;
    for (size_t i = 0; i < CONC_LEN(modes); i++) {
        char name[8];
        struct stat st;
        snprintf(name, sizeof name, "%zu", i);
        CHECK_INT(write_text(path_of(name), "new"), 0);
        CHECK_INT(stat(path_of(name), &st), 0);
        CHECK_INT(st.st_gid, NOBODY);
        CHECK_INT(st.st_mode & 07777, modes[i][1]);
    }
}

/* user::rw-, user:4:rw-, group::---, mask::rw-, other::---: mode 0660 */
static const unsigned char access_list[] = {
    2, 0, 0,   0,   1,   0,   6,  0, 255, 255, 255, 255, 2,   0,   6,  0, 4, 0, 0,   0,   4,   0,
    0, 0, 255, 255, 255, 255, 16, 0, 6,   0,   255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255};

FILE_TEST(a_file_keeps_its_access_control_list)
{
    unsigned char got[sizeof access_list + 1];
    make_text("a", "old");
    if (setxattr(path_of("a"), "system.posix_acl_access", access_list, sizeof access_list, 0))
        return; /* not on this file system */
    CHECK_INT(mode_of(path_of("a")), 0660);
    CHECK_INT(write_text(path_of("a"), "new"), 0);
    CHECK_INT(getxattr(path_of("a"), "system.posix_acl_access", got, sizeof got),
              sizeof access_list);
    CHECK(memcmp(got, access_list, sizeof access_list) == 0);
    CHECK_INT(mode_of(path_of("a")), 0660);
}

/* More calls than there can be threads: the last ones do not start before the gate, a FIFO without
 * a writer, opens. */
enum { CROWD = 48 };

static int count_decided(const call *c)
{
    int n = 0;
    for (int i = 0; i < CROWD; i++)
        n += c[i].rc != UNDECIDED;
    return n;
}

FILE_TEST(each_of_many_cancelled_calls_did_all_or_nothing)
{
    static call readers[CROWD], writers[CROWD];
    static char names[CROWD][PATH_MAX];
    conc_group g = {0};
    int written = 0, taken_back = 0;
    char fifo[PATH_MAX];
    snprintf(fifo, sizeof fifo, "%s", path_of("fifo"));
    CHECK_INT(mkfifo(fifo, 0600), 0);
    for (int i = 0; i < CROWD; i++) {
        char name[16];
        snprintf(name, sizeof name, "new%d", i);
        snprintf(names[i], sizeof names[i], "%s", path_of(name));
        readers[i] = (call){.path = fifo, .rc = UNDECIDED};
        writers[i] = (call){.path = names[i], .text = "new", .append = i % 2, .rc = UNDECIDED};
        CHECK_INT(conc_spawn_task(&g, &readers[i].task, calls, &readers[i]), 0);
    }
    int fd = open_writer(fifo); /* at least one has begun */
    for (int i = 0; i < CROWD; i++)
        CHECK_INT(conc_spawn_task(&g, &writers[i].task, calls, &writers[i]), 0);
    turn(2);
    for (int i = 0; i < CROWD; i++) {
        (void)conc_cancel(&writers[i].task);
        (void)conc_cancel(&readers[i].task);
    }
    while (count_decided(writers) < CROWD || count_decided(readers) == 0)
        turn(1);
    CHECK_INT(close(fd), 0);
    /* a job that opened it after that close waits for another one */
    while (count_decided(readers) < CROWD) {
        if ((fd = open(fifo, O_WRONLY | O_NONBLOCK | O_CLOEXEC)) >= 0)
            CHECK_INT(close(fd), 0);
        turn(1);
    }
    CHECK_INT(conc_group_wait(&g), 0);
    for (int i = 0; i < CROWD; i++) {
        CHECK(writers[i].rc == 0 || writers[i].rc == -ECANCELED);
        CHECK_INT(exists(names[i]), writers[i].rc == 0);
        written += writers[i].rc == 0;
        CHECK(readers[i].rc == 0 || readers[i].rc == -ECANCELED);
        CHECK_INT(readers[i].data != NULL, readers[i].rc == 0);
        taken_back += readers[i].rc == -ECANCELED;
        conc_free(readers[i].data);
    }
    CHECK(taken_back > 0);
    CHECK_INT(count_names(directory), 1 + written);
}

/* ---- beside jobs of the program's own ---- */

typedef struct hanging_jobs {
    atomic_int entered, opened;
} hanging_jobs;

static int hangs(void *arg)
{
    hanging_jobs *h = arg;
    h->entered++;
    while (!h->opened)
        nap();
    return 0;
}

static int offloads_a_hanging_job(void *arg) { return conc_offload(hangs, arg); }

FILE_TEST(files_do_not_wait_for_offloaded_jobs_that_hang_on_all_threads)
{
    hanging_jobs h = {0};
    conc_group g = {0};
    void *data = NULL;
    int n = (int)sysconf(_SC_NPROCESSORS_ONLN) + 4;
    n = n < 32 ? n : 32;
    for (int i = 0; i < n + 5; i++)
        CHECK_INT(conc_spawn(&g, offloads_a_hanging_job, &h), 0);
    while (h.entered < n)
        turn(1);
    CHECK_INT(conc_file_write(path_of("new"), "one", 3), 0);
    CHECK_INT(conc_file_append(path_of("new"), "two", 3), 0);
    CHECK_INT(conc_file_read(path_of("new"), &data, NULL), 0);
    CHECK_STR(data, "onetwo");
    conc_free(data);
    CHECK_INT(h.entered, n);
    h.opened = 1;
    CHECK_INT(conc_group_wait(&g), 0);
}
