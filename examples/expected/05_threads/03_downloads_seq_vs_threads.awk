# One by one in order; in threads all start before one is done.
# It calls compare_groups of ../groups.awk.
FILENAME == ARGV[1] { next }
{ printed[++count] = $0 }
END {
    compare_groups("Downloading url1...|Done: url1|Downloading url2...|Done: url2|" \
        "Downloading url3...|Done: url3|Sequential: 6.0 seconds|" \
        "Downloading url1...;Downloading url2...;Downloading url3...|" \
        "Done: url1;Done: url2;Done: url3|Threads: 2.0 seconds|" \
        "Downloading url1...|Done: url1|Downloading url2...|Done: url2|" \
        "Downloading url3...|Done: url3|Downloading url4...|Done: url4|" \
        "Downloading url5...|Done: url5|Sequential: 5.0 seconds|" \
        "Downloading url1...;Downloading url2...;Downloading url3...;" \
        "Downloading url4...;Downloading url5...|" \
        "Done: url1;Done: url2;Done: url3;Done: url4;Done: url5|Threads: 1.0 seconds", \
        printed, count)
}
