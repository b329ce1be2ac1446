# Both start, both have finished, then main goes on.
# The groups of lines come in this order; the lines of a group (between ";") in any.
function compare(text,    groups, group, n, size, g, i, left, line, place) {
    n = split(text, groups, "|")
    for (g = 1; g <= n; g++) {
        size = split(groups[g], group, ";")
        left = ";" groups[g] ";"
        for (i = 0; i < size; i++) {
            line = ";" printed[++at] ";"
            place = index(left, line)
            if (at > count || !place) return tell(at, left)
            left = substr(left, 1, place) substr(left, place + length(line))
        }
    }
    if (count > at) print "Nothing is wanted after line " at ", but there is \"" printed[at + 1] "\"."
}
function tell(at, left,    is) {
    gsub(/^;|;$/, "", left)
    gsub(/;/, "\" or \"", left)
    is = at > count ? "missing" : "\"" printed[at] "\""
    print "Line " at " is " is "; wanted here: \"" left "\"."
}
FILENAME == ARGV[1] { next }
{ printed[++count] = $0 }
END {
    compare("Process Process-1 starting;Process Process-2 starting|" \
        "Process Process-1 finished, counter is 1;Process Process-2 finished, counter is 1|" \
        "All processes completed, here counter is 0|Exit statuses: 0 and 0")
}
