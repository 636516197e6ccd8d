#!/usr/bin/env bash
# clang-format on every C++ and CUDA file that git knows. usage: tools/format.sh [--check]
set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null

mode=(-i)
[ "${1:-}" != --check ] || mode=(--dry-run --Werror)
git ls-files -z -- '*.cc' '*.h' '*.cu' '*.cuh' | xargs -0 -r clang-format "${mode[@]}"
