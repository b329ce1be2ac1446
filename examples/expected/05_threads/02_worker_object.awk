# Both run, both have finished, then there are the results.
# It calls compare_groups of ../groups.awk.
FILENAME == ARGV[1] { next }
{ printed[++count] = $0 }
END {
    compare_groups("Thread Thread-1 is running;Thread Thread-2 is running|" \
        "Thread Thread-1 finished;Thread Thread-2 finished|Results: 9 and 16", \
        printed, count)
}
