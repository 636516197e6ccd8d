#!/usr/bin/env bash
# Builds preset release and measures: the rows of docs/benchmarks.md into build/bench/results.json,
# then the other google-benchmark programs. More words go to tools/bench.py:
#   tools/bench.sh --quick        everything for a moment; no figure of it counts
#   tools/bench.sh --only read
set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null

tools/setup/setup.sh bench parity
tools/build.sh release
.deps/bench/bin/python tools/bench.py "$@"
[ $# = 0 ] || exit 0
for program in codec_bench adamw_bench; do
  [ -x "build-release/bench/$program" ] || continue
  printf '\n== %s\n' "$program"
  "build-release/bench/$program" --benchmark_min_time=0.5 --benchmark_counters_tabular=true
done
