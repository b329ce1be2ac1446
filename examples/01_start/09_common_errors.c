/* A forgotten result. In Python a call without `await` does nothing: "coroutine was never awaited".
   In C the call is made anyway, but its result is lost: here the mail was not sent, and its sender
   does not know. Write the careful function, which passes the error on.

   cc 09_common_errors.c -o forgotten
   ./forgotten

   It prints ../expected/01_start/09_common_errors.txt.
   Hint: CONC_TRY(call) returns the call's error, if any, from your function. If ignoring a result
   is always a mistake, as with conc_group_wait, the compiler warns. */
#define CONC_STATIC
#include "../../conc.h"

static int send_mail(void *arg)
{
    (void)arg;
    return conc_fail(-ECONNREFUSED, "the mail server is down");
}

static int careless(void)
{
    send_mail(NULL); /* the mistake */
    printf("The mail is sent\n");
    return 0;
}

/* Your turn: send the mail, and print "The mail is sent" only if it is. Return the error if not. */
static int careful(void)
{
    CONC_TRY(send_mail(NULL));
    printf("The mail is sent\n");
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    int rc = careless();
    printf("careless: %s\n", rc < 0 ? conc_last_error() : "no error");
    rc = careful();
    printf("careful: %s\n", rc < 0 ? conc_last_error() : "no error");
    return 0;
}

int main(void) { return conc_main(app, NULL); }
