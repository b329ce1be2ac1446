# Each task starts before it is completed, the results are in order, three work at a time: 2 s.
FILENAME == ARGV[1] { next }
{ at[$0] = FNR; last = $0; count++ }
END {
    for (n = 0; n < 5; n++) {
        start = "Task " n " starting"
        end = "Task " n " completed"
        if (!(start in at)) print "\"" start "\" is missing."
        if (!(end in at)) print "\"" end "\" is missing."
        else if (at[end] < at[start]) print "\"" end "\" comes before \"" start "\"."
        else if (n > 0 && at[end] < at["Task " (n - 1) " completed"])
            print "The results are not in the order of the tasks."
    }
    if (last !~ /^[0-9.]+ seconds$/) print "The last line is not the number of seconds."
    else if (last != "2.0 seconds")
        print "All takes 2.0 seconds if three work at a time; here it is " last "."
    if (count > 11) print "There are " count " lines, and 11 are wanted."
}
