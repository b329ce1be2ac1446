# awk -f site_checker.awk draws output: the site checker's output follows from its random draws. Prints what does not.
function expect(line, text) { if (line != text) print "expected \"" text "\", found \"" line "\"" }
BEGIN { sites = split("google.com github.com stackoverflow.com python.org asyncio-docs.com", url, " ") }
FNR == NR && $1 == 1 && $2 == 3 { delay[++delays] = $3 }
FNR == NR && $1 == 0 && $2 == 1 { status[++statuses] = $3 }
FNR == NR { next }
{ out[FNR] = $0 }
END {
    if (delays != sites || statuses != sites) print "expected " sites " delays and results, found " delays + 0 " and " statuses + 0
    for (i = 1; i <= sites; i++) expect(out[i], "Checking " url[i] "...")
    for (k = 1; k <= sites; k++) {
        next_one = 0
        for (i = 1; i <= sites; i++)
            if (!done[i] && (!next_one || delay[i] < delay[next_one])) next_one = i
        done[next_one] = 1
        last = delay[next_one]
        if (last < 1 || last >= 3) print "delay " last " is not in [1, 3)"
        up = status[k] < 0.8
        online += up
        expect(out[sites + k], (up ? "✅ " : "❌ ") url[next_one] " is " (up ? "online" : "offline"))
    }
    expect(out[11], "")
    expect(out[12], "=== Website Status Report ===")
    expect(out[13], "Online: " online "/" sites)
    expect(out[14], "Offline: " (sites - online) "/" sites)
    expect(out[15], sprintf("Response time: %.1f seconds", last))
    if (FNR != 15) print "expected 15 lines, found " FNR
}
