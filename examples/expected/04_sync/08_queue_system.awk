# awk -f 08_queue_system.awk STDERR STDOUT: prints what is wrong with the output.
FILENAME == ARGV[1] { next }
/^task [1-5]\.[0-9]+: (processed|failed)$/ {
    if (seen[$2]++) print "Task " $2 " is done twice."
    done[$3]++
    all++
    next
}
/^[0-9]+ processed, [0-9]+ failed: [0-9]+ in [0-9.]+ s, [0-9.]+ a second$/ {
    counts = 1
    if ($1 != done["processed"] + 0 || $3 != done["failed"] + 0)
        print "It reports " $1 " processed and " $3 " failed; the lines say " done["processed"] + 0 " and " done["failed"] + 0 "."
    seconds = $7
    next
}
/^Average: [0-9.]+ s waiting \+ [0-9.]+ s processing = [0-9.]+ s latency$/ {
    averages = 1
    waiting = $2
    processing = $6
    next
}
{ print "The line \"" $0 "\" is not expected." }
END {
    for (p = 1; p <= 3; p++) {
        missing = 0
        for (n = 1; n <= 20; n++)
            if (!seen[p "." n ":"]) missing++
        if (missing) print "Of 20 lines such as \"task " p ".5: processed\" " missing " are missing."
    }
    if (all > 60) print "There are " all " tasks; 3 producers make 60."
    if (all && !done["failed"]) print "No task fails."
    if (done["failed"] > 25) print done["failed"] " of 60 tasks fail; it should be about 10 %."
    if (!counts || !averages) {
        print "The report at the end is missing."
        exit
    }
    if (processing < 0.2 || processing > 0.4)
        print "Processing takes " processing " s on average; with 0.1 to 0.5 s each it is about 0.3 s."
    if (waiting < 0.3) print "The tasks wait " waiting " s; count from the creation of a task until it is taken."
    if (waiting > 10) print "The tasks wait " waiting " s on average, which is too long: is it the sum of all seconds?"
    shortest = processing * all / 3
    if (seconds > shortest + 0.8) print "All take " seconds " s; three workers at once need about " shortest " s."
    if (seconds < shortest - 0.05) print "All take " seconds " s; with three workers it cannot be less than " shortest " s."
}
