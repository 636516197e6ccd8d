#!/usr/bin/env bash
# What CI runs besides `make test`: lint, and the core tests under AddressSanitizer and
# UndefinedBehaviorSanitizer with fuzzing for seconds. `make sanitize` adds ThreadSanitizer, and
# `make test-quickstart` the whole quickstart: neither fits into CI's hour on 2 cores yet.
set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null

printf '\n== lint\n'
tools/setup/setup.sh lint
tools/lint.sh recent 60  # about 6 minutes on 2 cores
tools/sanitize.sh asan
