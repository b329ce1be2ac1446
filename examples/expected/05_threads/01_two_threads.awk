# Each line once, the lines of each thread in order, both threads at the same time, "Done!" last.
function in_order(lines,    n, line, i) {
    n = split(lines, line, "|")
    for (i = 1; i <= n; i++) {
        wanted++
        if (!(line[i] in at)) print "\"" line[i] "\" is missing."
        else if (i > 1 && line[i - 1] in at && at[line[i]] < at[line[i - 1]])
            print "\"" line[i] "\" comes before \"" line[i - 1] "\"."
    }
}
FILENAME == ARGV[1] { next }
{ at[$0] = FNR; printed++ }
END {
    in_order("Number: 0|Number: 1|Number: 2|Number: 3|Number: 4|Done!")
    in_order("Letter: A|Letter: B|Letter: C|Letter: D|Letter: E|Done!")
    if (printed > 11) print "Eleven lines are wanted, and " printed " are printed."
    if (printed < 11 && "Done!" in at) print "Main ends before the threads have ended: join both."
    if (printed == 11 && (at["Number: 4"] < at["Letter: A"] || at["Letter: E"] < at["Number: 0"]))
        print "The threads run one after the other: start both before you join one."
}
