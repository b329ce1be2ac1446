# awk -f 06_download_manager_bonus.awk STDERR STDOUT: prints what is wrong with the output.
BEGIN {
    n = split("image.jpg document.pdf music.mp3 archive.zip movie.mp4", name, " ")
    split("5 10 50 300 500", size, " ")
}
FILENAME == ARGV[1] { next }
{ line[++lines] = $0 }
END {
    for (i = 1; i <= n; i++) {
        if (line[i] !~ /^[0-9]+\.[0-9][0-9]s: ✓ [^ ]* downloaded$/ || index(line[i], " " name[i] " ") == 0) {
            print "Line " i " should be like \"0.20s: ✓ " name[i] " downloaded\"; it is \"" line[i] "\"."
            continue
        }
        time = line[i] + 0
        done += size[i]
        if (done > 100 * time + 5 + 0.5) print "After " time " s " done " MB are there: more than 100 MB a second."
        if (i == 1 && time > 0.35) print name[i] " waits until larger files are done: all should get 5 MB in turn."
        if (i == n && (time < 8.645 || time > 8.655)) print "All files take " time " s instead of 8.65 s."
    }
    if (lines != n) print "It prints " lines + 0 " lines; " n " are expected."
}
