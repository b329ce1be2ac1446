# Each model has the same results, and for each there is a line with its times.
function model(name,    result, i, n) {
    times = name ": started in [0-9.]+ ms, requests [0-9.]+ s, sums [0-9.]+ s"
    if (printed[++at] !~ "^" times "$") print "Line " at " is not that of the times of " name "."
    n = split("1, 333332833333500000|4, 1124998875000250000|9, 2666664666667000000|" \
        "16, 8999995500000500000", result, "|")
    for (i = 1; i <= n; i++)
        if (printed[++at] != "  " result[i])
            print "Line " at " has another result than \"" result[i] "\": does fn get each job by " name "?"
    split(printed[at - 4], word, " ")
    if (name != "Processes" && word[7] != "1.00")
        print "Four requests by " name " take 1.00 s when all wait at once; here it is " word[7] " s."
}
FILENAME == ARGV[1] { next }
{ printed[++count] = $0 }
END {
    model("Tasks")
    model("Threads")
    model("Processes")
    if (count > at) print "There are more than " at " lines."
}
