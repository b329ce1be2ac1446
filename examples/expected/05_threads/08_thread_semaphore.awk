# Each of the five acquires it and releases it, and there are two inside at a time, never three.
FILENAME == ARGV[1] { next }
{ times[$0]++ }
/ acquired semaphore$/ { if (++inside > most) most = inside }
/ released semaphore$/ {
    inside--
    if (!times[$1 " acquired semaphore"]) print $1 " releases what it has not acquired."
}
!/^Thread-[0-4] (acquired|released) semaphore$/ { print "\"" $0 "\" is not wanted." }
END {
    for (i = 0; i < 5; i++) {
        name = "Thread-" i
        if (times[name " acquired semaphore"] != 1) print name " does not acquire the semaphore once."
        if (times[name " released semaphore"] != 1) print name " does not release the semaphore once."
    }
    if (most > 2) print most " threads are inside at the same time, and two are allowed."
    if (most == 1) print "There is never more than one inside: do all start before you join one?"
}
