/* test_children_chdir.c - conc_child.dir with a C library whose posix_spawn cannot change the
 * directory: fork(2) must give the same results, error texts and descriptors.
 *
 * Seeds: 2 (it starts programs)
 * Not under: ucontext, no-epoll, save-fpu, poll, aarch64, aarch64-bti, riscv64, valgrind,
 * gcc-asan, single, clang, static (how tasks switch and wait is tested elsewhere)
 */
#define _GNU_SOURCE 1
#define CONC__NO_SPAWN_CHDIR
#include "pool_test.h"

#define ARGV(...) \
    (const char *const[]) { __VA_ARGS__, (const char *)0 }

static void check_output(conc_child c, const char *expected)
{
    conc_child_io io = {0};
    int status = -1;
    c.output = CONC_PIPE;
    CHECK_INT(conc_child_start(&c), 0);
    CHECK_INT(conc_child_communicate(&c, &io, &status), 0);
    CHECK_INT(status, 0);
    CHECK_STR(io.out, expected);
    conc_free(io.out);
    CHECK_INT(conc_child_close(&c), 0);
}

TASK_TEST(a_program_runs_where_it_is_told_to)
{
    const char *const env[] = {"A=b", NULL};
    check_output((conc_child){.argv = ARGV("pwd"), .dir = "/proc"}, "/proc\n");
    check_output((conc_child){.argv = ARGV("/bin/pwd"), .dir = "/"}, "/\n");
    check_output((conc_child){.argv = ARGV("printenv"), .env = env, .dir = "/"}, "A=b\n");
    check_output((conc_child){.argv = ARGV("sh", "-c", "test $$ = $(ps -o pgid= $$)"),
                              .dir = "/",
                              .group = true},
                 "");
}

static void make_script(const char *directory, const char *text)
{
    char path[128];
    snprintf(path, sizeof path, "%s/who", directory);
    unlink(path);
    make_file(path, text, strlen(text), 0755);
}

TASK_TEST(it_is_searched_for_in_this_programs_path)
{
    char here[64] = "/tmp/conc-test-XXXXXX", there[64] = "/tmp/conc-test-XXXXXX";
    char given[128], own[1024];
    CHECK(mkdtemp(here) && mkdtemp(there));
    make_script(here, "#!/bin/sh\necho here\n");
    make_script(there, "#!/bin/sh\necho there\n");
    snprintf(given, sizeof given, "PATH=%s:/usr/bin:/bin", there);
    const char *const env[] = {given, NULL};
    snprintf(own, sizeof own, "/no/such/directory:%s:%s", here, getenv("PATH"));
    CHECK_INT(setenv("PATH", own, 1), 0);
    check_output((conc_child){.argv = ARGV("who"), .env = env, .dir = "/"}, "here\n");
    make_script(here, "echo this is no program");
    conc_child c = {.argv = ARGV("who"), .env = env, .dir = "/"};
    CHECK_INT(conc_child_start(&c), -ENOEXEC);
    CHECK_INT(conc_child_close(&c), 0);
    CHECK_INT(chdir(here) | unlink("who") | rmdir(here), 0);
    CHECK_INT(chdir(there) | unlink("who") | rmdir(there), 0);
}

static void ignore_it(int number) { (void)number; }

TASK_TEST(it_inherits_what_it_should)
{
    int ends[2];
    CHECK_INT(pipe(ends), 0);
    CHECK_INT(dup2(ends[0], 100), 100);
    signal(SIGUSR1, ignore_it);
    signal(SIGUSR2, SIG_IGN);
    check_output((conc_child){.argv = ARGV("ls", "/proc/self/fd"), .dir = "/"}, "0\n1\n2\n3\n");
    check_output((conc_child){.argv = ARGV("sh", "-c", "kill -USR2 $$; echo lives"), .dir = "/"},
                 "lives\n");
    conc_child c = {.argv = ARGV("sh", "-c", "kill -USR1 $$; echo lives"), .dir = "/"};
    int status = 0;
    CHECK_INT(conc_child_start(&c), 0);
    CHECK_INT(conc_child_wait(&c, &status), 0);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGUSR1);
    CHECK_INT(conc_child_close(&c), 0);
    CHECK_INT(close(100), 0);
    CHECK_INT(close(ends[0]), 0);
    CHECK_INT(close(ends[1]), 0);
}

static void check_words(conc_child c, int rc, const char *words)
{
    int fds = test_count_fds();
    CHECK_INT(conc_child_start(&c), rc);
    CHECK_CONTAINS(conc_last_error(), words);
    CHECK_INT(test_count_fds(), fds);
    check_no_children();
}

TASK_TEST(an_error_names_what_is_missing)
{
    check_output((conc_child){.argv = ARGV("true"), .dir = "/"}, "");
    check_words((conc_child){.argv = ARGV("/no/such/program"), .dir = "/"}, -ENOENT,
                "/no/such/program: ");
    check_words((conc_child){.argv = ARGV("true"), .dir = "/no/such/directory"}, -ENOENT,
                "the directory /no/such/directory: ");
    check_words((conc_child){.argv = ARGV("/"), .dir = "/"}, -EACCES, "/: ");
}
