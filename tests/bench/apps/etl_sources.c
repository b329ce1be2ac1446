/* etl_sources FOLDER COUNT: three sources for etl_conc and etl_python in FOLDER, COUNT records
 * each; it then serves the fourth, a feed, whose address it prints, until its input ends. */
#define CONC_STATIC
#include "../../../conc_pool.h"
#include "../../../conc_sync.h"
#include "../../../examples/common/sqlite.h"

#include "../../../examples/common/payment_sources.h"

static int serve(void *arg)
{
    char **argv = arg, address[120];
    int64_t count = strtoll(argv[2], NULL, 10);
    CONC_TRY(payment_make_sources(argv[1], count));
    int fd = CONC_TRY(conc_listen("127.0.0.1:0"));
    CONC_TRY(conc_address(fd, false, address, sizeof address));
    printf("%s\n", address);
    fflush(stdout);
    return payment_serve_feed(fd, count);
}

/* The input ends when the program that started this one has ended. */
static int end_with_input(void *arg)
{
    char byte;
    (void)arg;
    CONC_TRY(conc_read(STDIN_FILENO, &byte, 1));
    _exit(0);
}

static int app(void *arg)
{
    CONC_TRY(conc_spawn(NULL, end_with_input, NULL));
    return serve(arg);
}

int main(int argc, char **argv) { return argc == 3 ? conc_main(app, argv) : 2; }
