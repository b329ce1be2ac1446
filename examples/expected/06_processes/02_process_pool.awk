# All five are computed by workers; the results are in order.
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
    compare("Computing square of 1;Computing square of 2;Computing square of 3;" \
        "Computing square of 4;Computing square of 5|" \
        "Result: 1|Result: 4|Result: 9|Result: 16|Result: 25|5 of 5 by workers")
}
