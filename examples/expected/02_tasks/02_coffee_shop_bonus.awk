# awk -f 02_coffee_shop_bonus.awk STDERR STDOUT: prints what is wrong with the output.
function seconds(text) { sub(/.*\(/, "", text); sub(/s\)$/, "", text); return text + 0 }
BEGIN {
    n = split("Alice Bob Charlie", customer, " ")
    split("Espresso Latte Cappuccino", drink, " ")
}
FILENAME == ARGV[1] { next }
{ line[++lines] = $0; if (!($0 in at)) at[$0] = lines }
END {
    for (i = 1; i <= n; i++) {
        text = "Starting to make " drink[i] " for " customer[i] "..."
        if (!(text in at)) print "The line \"" text "\" is missing."
        else if (at[text] > n) print "The drinks do not all start before the first is ready: make them at once."
        begin = customer[i] ", your " drink[i] " is ready! ("
        found = 0
        for (k = 1; k <= lines; k++) {
            if (index(line[k], begin) != 1 || line[k] !~ /\([0-9]+\.[0-9]s\)$/) continue
            found++
            time = seconds(line[k])
            if (time < 2 || time > 6) print "The " drink[i] " took " time " s; it should be 2 to 6 s."
            if (time > longest) longest = time
            taken[i] = time
        }
        if (found != 1) print "One line should be \"" begin "3.1s)\", with the time that it took."
    }
    if (taken[1] != "" && taken[1] == taken[2] && taken[2] == taken[3]) print "All drinks took the same time: is it random?"
    for (k = n + 2; k < lines; k++)
        if (seconds(line[k]) < seconds(line[k - 1])) print "The drinks do not become ready in the order of their times."
    if (line[lines] !~ /^All drinks prepared in [0-9]+\.[0-9] seconds$/)
        print "The last line should be \"All drinks prepared in 5.3 seconds\", with the time of all."
    else {
        split(line[lines], word, " ")
        if (word[5] + 0 != longest) print "All took " word[5] " s, but the longest took " longest " s."
    }
    if (lines != 2 * n + 1) print "It prints " lines + 0 " lines; " 2 * n + 1 " are expected."
}
