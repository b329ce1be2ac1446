# All five are computed by workers; the results are in order.
# It calls compare_groups of ../groups.awk.
FILENAME == ARGV[1] { next }
{ printed[++count] = $0 }
END {
    compare_groups("Computing square of 1;Computing square of 2;Computing square of 3;" \
        "Computing square of 4;Computing square of 5|" \
        "Result: 1|Result: 4|Result: 9|Result: 16|Result: 25|5 of 5 by workers", \
        printed, count)
}
