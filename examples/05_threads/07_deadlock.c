/* Deadlock. Alice pays 30 to Bob while Bob pays 10 to Alice, and each takes the locks of both. With
   -DBROKEN they wait for each other forever. Fix it: all take the locks in the same order.

   cc 07_deadlock.c -o deadlock
   ./deadlock
   cc -DBROKEN 07_deadlock.c -o hangs && ./hangs     # with the bug; a watchdog ends it after 2 s

   It prints ../expected/05_threads/07_deadlock.txt.
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

typedef struct {
    account *from, *to;
    int amount;
} payment;

static void *pay(void *arg)
{
    payment *p = arg;
#ifdef BROKEN
    take(p->from);
    take(p->to);
#else
    take(p->from->number < p->to->number ? p->from : p->to);
    take(p->from->number < p->to->number ? p->to : p->from);
#endif
    p->from->money -= p->amount;
    p->to->money += p->amount;
    pthread_mutex_unlock(&p->from->lock); /* for the unlocks any order will do */
    pthread_mutex_unlock(&p->to->lock);
    return NULL;
}

static void watchdog(int signal)
{
    static const char said[] = "Deadlock: each thread holds a lock and waits for the other's\n";
    (void)signal;
    _exit(write(STDERR_FILENO, said, sizeof said - 1) < 0 ? 2 : 1);
}

int main(void)
{
    pthread_t thread1, thread2;
    payment to_bob = {&alice, &bob, 30}, to_alice = {&bob, &alice, 10};
    signal(SIGALRM, watchdog);
    alarm(2);
    if (pthread_create(&thread1, NULL, pay, &to_bob) != 0 ||
        pthread_create(&thread2, NULL, pay, &to_alice) != 0)
        return 1;
    pthread_join(thread1, NULL);
    pthread_join(thread2, NULL);
    printf("Both have paid: Alice has %d, Bob has %d\n", alice.money, bob.money);
    return 0;
}
