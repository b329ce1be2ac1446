/* Double spend. Withdraw 50 from a balance of 100, five times concurrently. A wait between reading
   and writing is enough to pay out 250. With a lock around check and update only two withdrawals
   succeed.

   cc 01_double_spend.c -o double_spend
   ./double_spend
   CONC_CLOCK=virtual ./double_spend     # without waiting

   It prints ../expected/04_sync/01_double_spend.txt.
   Hint: CONC_LOCKED(&lock) { ... } waits for the lock, and releases it when the block is left. */
#define CONC_STATIC
#include "../../conc_sync.h"

typedef struct {
    int balance;
    conc_lock lock;
} bank_account;

enum { AMOUNT = 50, APPROVED = 1, REFUSED = 0 };

static int withdraw_old_value(void *arg)
{
    bank_account *a = arg;
    int balance = a->balance;
    if (balance < AMOUNT)
        return REFUSED;
    CONC_TRY(conc_sleep(0.1));     /* the database */
    a->balance = balance - AMOUNT; /* whatever the others wrote meanwhile is lost */
    return APPROVED;
}

static int withdraw_unchecked(void *arg)
{
    bank_account *a = arg;
    if (a->balance < AMOUNT)
        return REFUSED;
    CONC_TRY(conc_sleep(0.1));
    a->balance -= AMOUNT; /* nothing is lost, but the check above is no longer true */
    return APPROVED;
}

/* Your turn: withdraw in such a way that no other withdrawal comes between check and update. */
static int withdraw_locked(void *arg)
{
    bank_account *a = arg;
    int result = REFUSED;
    CONC_LOCKED(&a->lock) {
        result = CONC_TRY(withdraw_unchecked(a));
    }
    return result;
}

static int attack(const char *how, conc_fn *withdraw)
{
    bank_account account = {.balance = 100};
    int results[5], approved = 0;
    CONC_TRY(conc_map_all(withdraw, &account, 5, 0, results)); /* 0: all get the same account */
    for (int i = 0; i < 5; i++)
        approved += results[i] == APPROVED;
    printf("%-17s %d approved, %d refused: %3d paid out of 100, balance %d\n", how, approved,
           5 - approved, approved * AMOUNT, account.balance);
    return 0;
}

static int app(void *arg)
{
    (void)arg;
    CONC_TRY(attack("Lost update:", withdraw_old_value));
    CONC_TRY(attack("Check, then act:", withdraw_unchecked));
    return attack("With a lock:", withdraw_locked);
}

int main(void) { return conc_main(app, NULL); }
