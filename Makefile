# conc is a header: nothing here needs to be built to use it.
#
#     make test            installs what the tests need (on Debian), then runs all of them
#     make quick           each test file once, with gcc, in about a minute
#     make amalgamate      writes single_include/conc.h anew
#     make format          formats all C files; make check-format only says what it would change
#     make bench           the benchmarks
#     make pictures        takes the pictures of the programs' pages anew, with Chromium
#     make clean           removes build/

help:
	@sed -n 's/^#  *make /make /p' Makefile

test:
	@tests/setup.sh
	@tests/run.py

quick:
	@tests/run.py --quick

amalgamate:
	@./amalgamate.py

format:
	@tests/format.sh --fix

check-format:
	@tests/format.sh

bench:
	@tests/bench/run.sh
	@tests/bench/run_io.sh
	@tests/bench/run_pool.sh

pictures:
	@tests/pictures.py

clean:
	rm -rf build

.PHONY: help test quick amalgamate format check-format bench pictures clean
