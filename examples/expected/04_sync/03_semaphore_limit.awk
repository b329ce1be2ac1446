# awk -f 03_semaphore_limit.awk STDERR STDOUT: prints what is wrong with the output.
function finish() {
    if (limit && !done) print "With a semaphore of " limit " the last line is missing, such as \"6 s: 12 done, at most " limit " at once\"."
    if (limit && begun != 12) print "With a semaphore of " limit " " begun + 0 " downloads begin instead of 12."
    limit = done = begun = most = 0
}
FILENAME == ARGV[1] { next }
/^A semaphore of [0-9]+:$/ { finish(); limit = $4 + 0; seen[limit]++; next }
/^[0-9]+ s: download [0-9]+, [0-9]+ under way$/ {
    number = $4 + 0
    begun++
    if (last[limit, number]++) print "Download " number " begins twice with a semaphore of " limit "."
    if ($5 > most) most = $5 + 0
    if ($5 > limit) print "With a semaphore of " limit " " $5 " downloads are under way."
    next
}
/^[0-9]+ s: 12 done, at most [0-9]+ at once$/ {
    done = 1
    if (most < limit) print "With a semaphore of " limit " only " most " downloads are under way at once."
    if ($1 < 24 / limit || $1 > 24 / limit + 3) print "With a semaphore of " limit " all take " $1 " s."
    next
}
{ print "The line \"" $0 "\" is not expected." }
END {
    finish()
    if (seen[5] != 1) print "It should try a semaphore of 5."
    if (seen[10] != 1) print "It should try a semaphore of 10."
}
