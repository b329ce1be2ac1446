/* Download manager, pause and resume. Download a file of 500 MB in pieces of 50 MB, which take 0.5
   s each. Pause after 1.2 s, and resume after 3.2 s. Data in flight still arrives.

   cc 15_pause_resume_bonus.c -o downloads
   ./downloads
   CONC_CLOCK=virtual ./downloads     # without waiting

   It prints ../expected/02_tasks/15_pause_resume_bonus.txt.
   Hint: conc_event_wait returns immediately while the event is set. After conc_event_clear it waits
   until the event is set again. */
#define CONC_STATIC
#include "../../conc_sync.h"

static conc_event running; /* set: go on; clear: pause */
static double start;

static void say(const char *what) { printf("%.1fs: %s\n", conc_now() - start, what); }

/* Your turn: receive 500 MB. Before each 50 MB wait while the download is paused; after them print
   "0.5s: 50 MB". */
static int download(void *arg)
{
    (void)arg;
    for (int mb = 50; mb <= 500; mb += 50) {
        CONC_TRY(conc_event_wait(&running));
        CONC_TRY(conc_sleep(0.5));
        printf("%.1fs: %d MB\n", conc_now() - start, mb);
    }
    return 0;
}

/* Your turn: pause the download after 1.2 s, again after 2.2 s (which changes nothing), and resume
   it after 3.2 s. Say "pause" and "resume". */
static int user(void *arg)
{
    (void)arg;
    CONC_TRY(conc_sleep(1.2));
    say("pause");
    conc_event_clear(&running);
    CONC_TRY(conc_sleep(1));
    say("pause");
    conc_event_clear(&running);
    CONC_TRY(conc_sleep(1));
    say("resume");
    conc_event_set(&running);
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    start = conc_now();
    conc_event_set(&running);
    return CONC_GATHER(CONC_CALL(download, NULL), CONC_CALL(user, NULL));
}

int main(void) { return conc_main(app, NULL); }
