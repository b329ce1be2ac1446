# awk -f 08_restaurant_bonus.awk STDERR STDOUT: prints what is wrong with the output.
BEGIN {
    n = split("steak fish roast pasta", name, " ")
    split("4 3 5 3.5", seconds, " ")
    for (i = 1; i <= n; i++) takes[name[i]] = seconds[i]
}
FILENAME == ARGV[1] { next }
/^[0-9]+\.[0-9]s: preparing [a-z]+\.\.\.$/ {
    sub(/\.\.\.$/, "", $3)
    if ($3 in from) print "The " $3 " is prepared twice."
    from[$3] = $1 + 0
    if (++cooking > 2) print "After " $1 + 0 " s three dishes are on the two stoves."
    if (cooking > peak) peak = cooking
    next
}
/^[0-9]+\.[0-9]s: ✓ [a-z]+ ready$/ {
    cooking--
    ready[$3]++
    end = $1 + 0
    spent = end - from[$3] - takes[$3]
    if (spent < -0.01 || spent > 0.01) print "The " $3 " is ready " end - from[$3] " s after it was begun, not " takes[$3] " s."
    next
}
{ print "The line \"" $0 "\" is not expected." }
END {
    for (i = 1; i <= n; i++) {
        if (!(name[i] in from)) print "A line such as \"0.0s: preparing " name[i] "...\" is missing."
        if (ready[name[i]] != 1) print "There should be one line such as \"4.0s: ✓ " name[i] " ready\"."
        if (from[name[i]] > latest) latest = from[name[i]]
    }
    if (peak == 1) print "The dishes are made one by one; there are two stoves."
    if (latest > 5) print "A stove is free while a dish waits for one."
}
