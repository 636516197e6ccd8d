# Two commands are all a user needs: `make quickstart` and `make test`. `make help` names the others.
# Each prints what it will do and then does it; none reads standard input.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory
# More -D options for CMake, e.g. CMAKE_ARGS=-DSTILLHOUSE_REQUIRE_CUDA=ON
export CMAKE_ARGS

.PHONY: help quickstart test test-all sanitize test-quickstart bench lint lint-all format parity deps build clean distclean

help:  ## this list
	@echo "Stillhouse. What you can make:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | awk -F'|' '{ printf "  %-16s %s\n", $$1, $$2 }'

quickstart: build  ## one teacher, one cache, two students, on this machine: 3 to 15 minutes after the build
	@python3 tools/quickstart.py

test: build  ## build and run the fast tests: at most 6 minutes when built
	@tools/run_tests.sh build -LE slow

test-all: deps  ## what CI runs besides: lint, and the core tests under sanitizers
	@tools/test_all.sh

sanitize: deps  ## the core tests under ASan+UBSan and TSan, fuzzing for seconds: about 20 minutes at first
	@tools/setup/setup.sh lint
	@tools/sanitize.sh

test-quickstart: build  ## the quickstart, twice, with its results checked: 5 to 20 minutes
	@tools/run_tests.sh build -L slow

bench:  ## the figures of docs/benchmarks.md: about 45 minutes; needs 12 GB of disk
	@tools/bench.sh

lint:  ## formatting, layering, clang-tidy on what was touched lately, thread safety
	@tools/setup/setup.sh lint
	@tools/lint.sh recent

lint-all:  ## the same with clang-tidy on every file
	@tools/setup/setup.sh lint
	@tools/lint.sh all

format:  ## clang-format on every file of ours
	@tools/setup/setup.sh lint
	@tools/format.sh

parity: build  ## opens exported models in the live transformers package (a large download)
	@tools/setup/setup.sh parity
	@tools/parity.sh

deps:  ## install what the build needs, and nothing else
	@tools/setup/setup.sh

build: deps  ## configure and build preset full in build/
	@tools/build.sh full

clean:  ## remove what was built; .deps stays
	@rm -rf build build-*/

distclean: clean  ## remove .deps too
	@rm -rf .deps
