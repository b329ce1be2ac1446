# Without a lock something is lost of both; with it both come to 5.
function line(number, how, what, lossy,    start, n) {
    start = how ": Final count (" what "): "
    if (number > count) {
        print "The line \"" start "...\" is missing."
        return
    }
    n = substr(printed[number], length(start) + 1)
    if (index(printed[number], start) != 1)
        print "Line " number " does not begin with \"" start "\"."
    else if (!lossy && n != "5")
        print how " the " what " comes to 5, not to " n "."
    else if (lossy && n !~ /^[1-4]$/)
        print how " the " what " comes to 1, 2, 3 or 4, not to " n ": do all five run at once?"
}
FILENAME == ARGV[1] { next }
{ printed[++count] = $0 }
END {
    line(1, "Without a lock", "dict", 1)
    line(2, "Without a lock", "value", 1)
    line(3, "With a lock", "dict", 0)
    line(4, "With a lock", "value", 0)
    if (count > 4) print "There are more than four lines."
}
