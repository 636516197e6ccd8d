#!/usr/bin/env bash
# The core tests under the sanitizers, with fuzzing for seconds.
# usage: tools/sanitize.sh [asan] [tsan]   (both if none is named)
set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null

[ $# -gt 0 ] || set -- asan tsan
for sanitizer in "$@"; do
  printf '\n== core under %s (%d s so far)\n' "$sanitizer" "$SECONDS"
  # CUDA is asked for where it can be built; these presets leave it out.
  CMAKE_ARGS='' tools/build.sh "$sanitizer"
  tools/run_tests.sh "build-$sanitizer" -LE slow
done
