# For the properties of exercises: compares printed[1] to printed[count] with groups of lines. The
# groups, between "|", come in this order; the lines of a group, between ";", in any.
function compare_groups(text, printed, count,    groups, group, n, size, g, i, at, left, line, place) {
    n = split(text, groups, "|")
    for (g = 1; g <= n; g++) {
        size = split(groups[g], group, ";")
        left = ";" groups[g] ";"
        for (i = 0; i < size; i++) {
            line = ";" printed[++at] ";"
            place = index(left, line)
            if (at > count || !place) return tell_group(at, left, printed, count)
            left = substr(left, 1, place) substr(left, place + length(line))
        }
    }
    if (count > at) print "Nothing is wanted after line " at ", but there is \"" printed[at + 1] "\"."
}
function tell_group(at, left, printed, count,    is) {
    gsub(/^;|;$/, "", left)
    gsub(/;/, "\" or \"", left)
    is = at > count ? "missing" : "\"" printed[at] "\""
    print "Line " at " is " is "; wanted here: \"" left "\"."
}
