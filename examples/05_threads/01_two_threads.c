/* Two threads. One prints the numbers 0 to 4, the other the letters A to E, in parallel, with half
   a second after each line. When both have ended, main prints "Done!".

   cc 01_two_threads.c -o two_threads
   ./two_threads

   It prints what ../expected/05_threads/01_two_threads.awk allows; which thread is faster differs.
   Hint: pthread_create starts a thread, pthread_join waits for it to end. Start both before joining
   one. If main returns without joining, the program ends, and all threads with it. */
#define _POSIX_C_SOURCE 200809L /* for nanosleep under -std=c11 */
#include <pthread.h>
#include <stdio.h>
#include <time.h>

static void half_a_second(void) { nanosleep(&(struct timespec){0, 500000000}, NULL); }

static void *print_numbers(void *arg)
{
    for (int i = 0; i < 5; i++) {
        printf("Number: %d\n", i);
        half_a_second();
    }
    return arg;
}

/* Your turn: print "Letter: A" to "Letter: E", with half a second after each; return arg. */
static void *print_letters(void *arg)
{
    for (const char *letter = "ABCDE"; *letter; letter++) {
        printf("Letter: %c\n", *letter);
        half_a_second();
    }
    return arg;
}

/* Your turn: start a thread for each of the two functions, wait for both, print "Done!". */
int main(void)
{
    pthread_t thread1, thread2;
    if (pthread_create(&thread1, NULL, print_numbers, NULL) != 0 ||
        pthread_create(&thread2, NULL, print_letters, NULL) != 0)
        return 1;
    pthread_join(thread1, NULL);
    pthread_join(thread2, NULL);
    printf("Done!\n");
    return 0;
}
