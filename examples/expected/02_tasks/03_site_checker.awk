# awk -f 03_site_checker.awk STDERR STDOUT: prints what is wrong with the output.
function expect(n, text) {
    if (line[n] != text) print "Line " n " should be \"" text "\"; it is \"" line[n] "\"."
}
BEGIN { n = split("google.com github.com stackoverflow.com python.org asyncio-docs.com", url, " ") }
FILENAME == ARGV[1] { next }
{ line[++lines] = $0; times[$0]++; if (!($0 in at)) at[$0] = lines }
END {
    for (i = 1; i <= n; i++) {
        text = "Checking " url[i] "..."
        up = times["✅ " url[i] " is online"]
        down = times["❌ " url[i] " is offline"]
        if (times[text] != 1) print "There should be one line \"" text "\"."
        else if (at[text] > n) print "The checks do not all begin before the first has ended: make them at once."
        if (up + down != 1)
            print "There should be one line \"✅ " url[i] " is online\" or \"❌ " url[i] " is offline\"."
        online += up
    }
    same_order = 1
    for (i = 1; i <= n; i++) {
        split(line[i], check, " ")
        sub(/\.\.\.$/, "", check[2])
        split(line[n + i], result, " ")
        if (check[2] != result[2]) same_order = 0
    }
    expect(2 * n + 1, "")
    expect(2 * n + 2, "=== Website Status Report ===")
    expect(2 * n + 3, "Online: " online + 0 "/" n)
    expect(2 * n + 4, "Offline: " n - online "/" n)
    last = line[2 * n + 5]
    if (last !~ /^Response time: [0-9]+\.[0-9] seconds$/)
        print "Line " 2 * n + 5 " should be \"Response time: 2.3 seconds\", with the time of the slowest check."
    else {
        split(last, word, " ")
        if (same_order && word[3] * 2 == int(word[3] * 2))
            print "The results come in the order of the checks, after " word[3] " s: is the time random?"
        if (word[3] < 1 || word[3] > 3) print "All checks together took " word[3] " s; the slowest takes 1 to 3 s."
    }
    if (lines != 2 * n + 5) print "It prints " lines + 0 " lines; " 2 * n + 5 " are expected."
}
