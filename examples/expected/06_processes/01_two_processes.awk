# Both start, both have finished, then main goes on.
# It calls compare_groups of ../groups.awk.
FILENAME == ARGV[1] { next }
{ printed[++count] = $0 }
END {
    compare_groups("Process Process-1 starting;Process Process-2 starting|" \
        "Process Process-1 finished, counter is 1;Process Process-2 finished, counter is 1|" \
        "All processes completed, here counter is 0|Exit statuses: 0 and 0", \
        printed, count)
}
