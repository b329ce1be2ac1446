# awk -f 07_restaurant.awk STDERR STDOUT: prints what is wrong with the output.
# find BEGIN: the number of the only line that begins so; its seconds go to time
function find(begin, what,    k, found) {
    for (k = 1; k <= lines; k++)
        if (index(line[k], begin) == 1) { if (found) print "The line \"" line[k] "\" is there twice."; found = k }
    if (!found) print "The line \"" begin what "\" is missing."
    time = line[found]
    sub(/.*\(/, "", time)
    time = time + 0
    return found
}
BEGIN {
    orders = split("Alice Bob Charlie Diana", customer, " ")
    dishes = split("appetizer,main course,dessert", dish, ",")
    split("Appetizer,Main course,Dessert", ready, ",")
    split("1 3 1", low, " ")
    split("2 5 3", high, " ")
}
FILENAME == ARGV[1] { next }
{ line[++lines] = $0 }
END {
    if (line[1] != "=== Restaurant Opening ===") print "The first line should be \"=== Restaurant Opening ===\"."
    for (o = 1; o <= orders; o++) {
        begins = find("Starting order " o " for " customer[o], "")
        ends = find("🔔 Order " o " complete for " customer[o] "! (", "4.5s)")
        taken = time
        longest = 0
        for (d = 1; d <= dishes; d++) {
            first = find("Preparing " dish[d] " for order " o "...", "")
            last = find("✓ " ready[d] " ready for order " o " (", "1.5s)")
            if (first && last && (time < low[d] || time > high[d]))
                print "The " dish[d] " of order " o " took " time " s; it should be " low[d] " to " high[d] " s."
            if (first && last && o > 1 && time == former[d]) same[d]++
            former[d] = time
            if (time > longest) longest = time
            if (first && begins && first < begins) print "Order " o " starts before its dishes."
            if (last && ends && last > ends) print "Order " o " is complete before its " dish[d] " is ready."
            if (first > last_first) last_first = first
            if (last && (!first_last || last < first_last)) first_last = last
        }
        if (ends && taken != longest)
            print "Order " o " took " taken " s, and its longest dish " longest " s: make its dishes at once."
        sum += taken
        if (taken > total) total = taken
    }
    if (same[1] == orders - 1 && same[2] == orders - 1 && same[3] == orders - 1)
        print "The dishes of all orders took the same times: are they random?"
    if (first_last && last_first > first_last) print "Not all dishes are begun when the first is ready: serve all orders at once."
    if (line[lines - 2] != "=== Service Complete ===") print "\"=== Service Complete ===\" is missing before the last two lines."
    split(line[lines - 1], word, " ")
    if (line[lines - 1] !~ /^All orders served in [0-9.]+ seconds$/ || word[5] + 0 != total)
        print "The last line but one should be \"All orders served in " total " seconds\"; it is \"" line[lines - 1] "\"."
    split(line[lines], word, " ")
    if (line[lines] !~ /^Average order time: [0-9.]+ seconds$/ || word[4] < sum / orders - 0.11 || word[4] > sum / orders + 0.11)
        print "The last line should be \"Average order time: 4.9 seconds\", with the mean of the four; it is \"" line[lines] "\"."
    if (lines != 37) print "It prints " lines + 0 " lines; 37 are expected."
}
