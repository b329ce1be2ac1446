# Both start, then Bob has finished, then Alice.
# It calls compare_groups of ../groups.awk.
FILENAME == ARGV[1] { next }
{ printed[++count] = $0 }
END {
    compare_groups("Worker Alice starting;Worker Bob starting|" \
        "Worker Bob finished|Worker Alice finished", \
        printed, count)
}
