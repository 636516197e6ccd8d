#!/usr/bin/env bash
# What CI runs besides `make test`: lint, the whole quickstart with its results checked, then the core
# tests under ASan with UBSan, and under TSan.
set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null

tools/setup/setup.sh lint  # clang, for both
tools/lint.sh recent 60  # about 6 minutes on 2 cores
make test-quickstart
tools/sanitize.sh
printf '\ntest-all: passed in %d s\n' "$SECONDS"
