#!/usr/bin/env bash
# Builds preset release and runs every benchmark in it. More words go to each of them, for example
#   tools/bench.sh --benchmark_filter=Sampled
set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null

tools/build.sh release
for program in build-release/bench/*_bench; do
  printf '\n== %s\n' "$(basename "$program")"
  "$program" --benchmark_min_time=0.5 --benchmark_counters_tabular=true "$@"
done
