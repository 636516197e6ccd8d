#!/usr/bin/env bash
# What CI runs besides `make test`: lint. `make sanitize` runs the core tests under the sanitizers, and
# `make test-quickstart` the whole quickstart: neither fits into CI's hour on 2 cores yet.
set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null

tools/setup/setup.sh lint
tools/lint.sh recent 60  # about 6 minutes on 2 cores
