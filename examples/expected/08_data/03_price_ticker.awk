# awk -f 03_price_ticker.awk STDERR STDOUT: prints what is wrong with the output.
FILENAME == ARGV[1] { next }
{ line[++lines] = $0 }
function is_price(text) { return text ~ /^[0-9]+\.[05] s: [0-9]+\.[0-9][0-9]$/ }
END {
    for (n = 1; n <= lines && is_price(line[n]); n++) {
        split(line[n], word, " ")
        if (sprintf("%.1f", n / 2) != word[1])
            print "Price " n " should come at " sprintf("%.1f", n / 2) " s, not at " word[1] " s: one every 0.5 s."
        cents = int(word[3] * 100 + 0.5)
        last = n == 1 ? 10000 : price[n - 1]
        if (cents < last - 200 || cents > last + 100)
            print "Price " n " should be 2.00 less to 1.00 more than the last, which is " last / 100 "."
        price[n] = cents
        if (n > 1 && last < 9700) print "Nothing should come after the first price below 97.00."
    }
    prices = n - 1
    if (prices == 0) {
        print "The first line should be a price, as \"0.5 s: 99.50\"; it is \"" line[1] "\"."
        exit
    }
    if (price[prices] >= 9700) print "The last price should be below 97.00."
    end = sprintf("%.1f", prices / 2)
    if (line[n] != end " s: ticker closed")
        print "After the last price the ticker should say \"" end " s: ticker closed\", not \"" line[n] "\"."
    if (line[n + 1] != end " s: stopped, the price is below 97.00")
        print "The last line should be \"" end " s: stopped, the price is below 97.00\"."
    if (lines > n + 1) print "There are lines after that: \"" line[n + 2] "\"."
}
