#!/usr/bin/env bash
# usage: tools/lint.sh recent|all [FILES_MAX]
#
# Formatting, the tidy test (layers, banned words, long files), clang-tidy, and clang's thread-safety
# analysis over core. `recent` gives clang-tidy the files touched in the last day before HEAD, their
# headers' includers not counted, at most FILES_MAX of them; `all` gives it every file.
set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null

scope=${1:?usage: tools/lint.sh recent|all}
failed=
step() { printf 'lint: %s\n' "$1"; }

step "clang-format"
tools/format.sh --check || failed=1

step "tidy"
python3 tools/tidy.py || failed=1

step "configuring build-lint and generating the protobuf headers"
CMAKE_ARGS='' tools/build.sh lint generated_headers >build-lint.log 2>&1 || { cat build-lint.log >&2; exit 1; }
rm -f build-lint.log

step "clang-tidy and thread safety ($scope)"
python3 tools/clang_tidy.py "$@" || failed=1

[ -z "$failed" ] || { echo "lint: failed" >&2; exit 1; }
echo "lint: clean"
