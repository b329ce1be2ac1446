# awk -f restaurant.awk draws output: the restaurant's output follows from its random draws. Prints what does not.
function expect(line, text) { if (line != text) print "expected \"" text "\", found \"" line "\"" }
function add(time, line) { times[++events] = time; lines[events] = line }
BEGIN {
    orders = split("Alice Bob Charlie Diana", customer, " ")
    dishes = split("appetizer,main course,dessert", dish, ",")
    split("Appetizer,Main course,Dessert", ready, ",")
    split("1 3 1", low, " ")
    split("2 5 3", high, " ")
}
FNR == NR && !($1 == 0 && $2 == 1) { low_drawn[++draws] = $1; high_drawn[draws] = $2; drawn[draws] = $3 }
FNR == NR { next }
{ out[FNR] = $0 }
END {
    if (draws != orders * dishes) print "expected " (orders * dishes) " draws, found " draws + 0
    expect(out[1], "=== Restaurant Opening ===")
    line = 2
    for (o = 1; o <= orders; o++) expect(out[line++], "Starting order " o " for " customer[o])
    for (o = 1; o <= orders; o++) {
        longest = 0
        for (d = 1; d <= dishes; d++) {
            n = (o - 1) * dishes + d
            expect(out[line++], "Preparing " dish[d] " for order " o "...")
            if (low_drawn[n] != low[d] || high_drawn[n] != high[d] || drawn[n] < low[d] || drawn[n] >= high[d])
                print dish[d] " of order " o " took " drawn[n]
            add(drawn[n], "✓ " ready[d] " ready for order " o sprintf(" (%.1fs)", drawn[n]))
            if (drawn[n] > longest) longest = drawn[n]
        }
        add(longest, "🔔 Order " o " complete for " customer[o] sprintf("! (%.1fs)", longest))
        sum += longest
        if (longest > total) total = longest
    }
    for (k = 1; k <= events; k++) { # in the order of their times; an order after its last dish
        first = 0
        for (i = 1; i <= events; i++)
            if (!shown[i] && (!first || times[i] < times[first])) first = i
        shown[first] = 1
        expect(out[line++], lines[first])
    }
    expect(out[line++], "")
    expect(out[line++], "=== Service Complete ===")
    expect(out[line++], sprintf("All orders served in %.1f seconds", total))
    expect(out[line++], sprintf("Average order time: %.1f seconds", sum / orders))
    if (FNR != line - 1) print "expected " (line - 1) " lines, found " FNR
}
