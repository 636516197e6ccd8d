#!/usr/bin/env bash
# What `make test` leaves out: lint, and the core tests under the sanitizers with fuzzing for seconds. The
# whole quickstart, which takes a quarter of an hour, is `make test-quickstart`.
set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null

phase() { printf '\n== %s (%d s so far)\n' "$1" "$SECONDS"; }

phase "lint"
tools/setup/setup.sh lint
tools/lint.sh recent 60  # about 6 minutes on 2 cores

for sanitizer in asan tsan; do
  phase "core under $sanitizer"
  # CUDA is asked for where it can be built; these presets leave it out.
  CMAKE_ARGS='' tools/build.sh "$sanitizer"
  tools/run_tests.sh "build-$sanitizer" -LE slow
done
