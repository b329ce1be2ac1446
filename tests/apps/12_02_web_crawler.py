#!/usr/bin/env python3
"""Tests of examples/12_projects/02_web_crawler.c."""
import re

import apps

PROGRAM = apps.compiled("12_projects/02_web_crawler.c")
LONG = 60 * apps.SLOW


def test_by_itself_it_crawls_its_own_site_though_a_worker_is_killed():
    done = apps.run(PROGRAM, limit=60)
    apps.check("0 rows differ from the site's graph" in done.stdout, done.stdout)
    apps.check("300 of 300 pages asked for" in done.stdout and " 0 forbidden ones" in done.stdout, done.stdout)
    apps.check(re.search(r"was killed \(signal 9\): another one takes its place", done.stderr), done.stderr)


apps.main(globals())
