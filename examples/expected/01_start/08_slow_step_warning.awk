# Of the tasks only draw_poster is reported, once, for 0.3 s; both pictures are drawn in 0.65 s.
FILENAME == ARGV[1] {
    if (!/ blocked the loop for /) next
    if ($2 == "draw_poster" && /for 0\.300 s/) poster++
    else print "There should be no such report: " $0
    next
}
{ printed[$0]++; lines++ }
END {
    if (poster != 1)
        print "draw_poster should be reported once, for 0.300 s, and is " poster + 0 " times: is debug mode on?"
    if (printed["poster drawn"] != 1) print "\"poster drawn\" should be printed once."
    if (printed["strips drawn"] != 1) print "\"strips drawn\" should be printed once."
    if (printed["0.65 seconds"] != 1) print "All of it should take 0.65 seconds: 0.05 and 0.3 and six times 0.05."
    if (lines > 3) print "More is printed than that."
}
