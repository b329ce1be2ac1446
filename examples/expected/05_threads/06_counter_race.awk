# Something is lost without a lock, and nothing with a lock or an atomic.
function line(number, how, lossy,    wanted) {
    wanted = how ": Final counter: 200000, lost: 0"
    if (number > count) print "The line \"" how ": ...\" is missing."
    else if (index(printed[number], how ": Final counter: ") != 1)
        print "Line " number " does not begin with \"" how ": Final counter: \"."
    else if (lossy && printed[number] !~ /: [0-9]+, lost: [1-9][0-9]*$/)
        print "Nothing was lost without a lock: add_one and without_lock are to stay as they are."
    else if (!lossy && printed[number] != wanted)
        print how " the counter comes to 200000, and nothing is lost."
}
FILENAME == ARGV[1] { next }
{ printed[++count] = $0 }
END {
    line(1, "Without a lock", 1)
    line(2, "With a lock", 0)
    line(3, "With an atomic", 0)
    if (count > 3) print "There are more than three lines."
}
