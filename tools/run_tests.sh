#!/usr/bin/env bash
# Runs the tests of one build folder. usage: tools/run_tests.sh FOLDER [ctest option…]
set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null

folder=${1:?usage: tools/run_tests.sh FOLDER [ctest option…]}
shift
export TSAN_OPTIONS="suppressions='$PWD/tests/tsan.supp' halt_on_error=1 second_deadlock_stack=1"
export ASAN_OPTIONS="detect_stack_use_after_return=1 strict_string_checks=1"
export UBSAN_OPTIONS="print_stacktrace=1"
ctest --test-dir "$folder" -j2 --output-on-failure --no-tests=error "$@"
