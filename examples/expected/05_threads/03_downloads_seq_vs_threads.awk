# One by one in order; in threads all start before one is done.
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
    compare("Downloading url1...|Done: url1|Downloading url2...|Done: url2|" \
        "Downloading url3...|Done: url3|Sequential: 6.0 seconds|" \
        "Downloading url1...;Downloading url2...;Downloading url3...|" \
        "Done: url1;Done: url2;Done: url3|Threads: 2.0 seconds|" \
        "Downloading url1...|Done: url1|Downloading url2...|Done: url2|" \
        "Downloading url3...|Done: url3|Downloading url4...|Done: url4|" \
        "Downloading url5...|Done: url5|Sequential: 5.0 seconds|" \
        "Downloading url1...;Downloading url2...;Downloading url3...;" \
        "Downloading url4...;Downloading url5...|" \
        "Done: url1;Done: url2;Done: url3;Done: url4;Done: url5|Threads: 1.0 seconds")
}
