#!/usr/bin/env bash
# What `make test` leaves out: lint, the core tests under the sanitizers with fuzzing for seconds, and the
# slow tests. These come last, so that their summary closes the output.
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

phase "slow tests"
tools/build.sh full
tools/run_tests.sh build -L slow
