/* Deadlock. Alice pays 30 to Bob while Bob pays 10 to Alice, and each takes the locks of both. With
   -DBROKEN they wait for each other for ever. Mend it: all take the locks in the same order.

   cc -DBROKEN 07_deadlock.c -o hangs
   ./hangs     # a watchdog ends it after 2 s
   cc 07_deadlock.c -o deadlock
   ./deadlock

   It prints what stands in ../expected/05_threads/07_deadlock.txt.
   Hint: whose lock comes first must not depend on who pays. Each account has a number. */
#define _POSIX_C_SOURCE 200809L /* for nanosleep under -std=c11 */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

typedef struct {
    int number, money;
    pthread_mutex_t lock;
} account;

static account alice = {1, 100, PTHREAD_MUTEX_INITIALIZER};
static account bob = {2, 100, PTHREAD_MUTEX_INITIALIZER};

static void take(account *a)
{
    pthread_mutex_lock(&a->lock);
    nanosleep(&(struct timespec){0, 100000000}, NULL); /* the other thread gets as far meanwhile */
}

static void take_both(account *from, account *to)
{
#ifdef BROKEN
    take(from);
    take(to);
#else
    take(from->number < to->number ? from : to);
    take(from->number < to->number ? to : from);
#endif
}

static void pay(account *from, account *to, int amount)
{
    take_both(from, to);
    from->money -= amount;
    to->money += amount;
    pthread_mutex_unlock(&from->lock); /* for the unlocks any order will do */
    pthread_mutex_unlock(&to->lock);
}

static void *alice_pays(void *arg) { return pay(&alice, &bob, 30), arg; }
static void *bob_pays(void *arg) { return pay(&bob, &alice, 10), arg; }

static void watchdog(int signal)
{
    static const char said[] = "Deadlock: each thread holds a lock and waits for the other's\n";
    (void)signal;
    _exit(write(STDERR_FILENO, said, sizeof said - 1) < 0 ? 2 : 1);
}

int main(void)
{
    pthread_t thread1, thread2;
    signal(SIGALRM, watchdog);
    alarm(2);
    if (pthread_create(&thread1, NULL, alice_pays, NULL) != 0 ||
        pthread_create(&thread2, NULL, bob_pays, NULL) != 0)
        return 1;
    pthread_join(thread1, NULL);
    pthread_join(thread2, NULL);
    printf("Both have paid: Alice has %d, Bob has %d\n", alice.money, bob.money);
    return 0;
}
