#!/usr/bin/env bash
# Configures (only when needed) and builds one preset.
# usage: tools/build.sh PRESET [ninja target…]
set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null

preset=${1:?usage: tools/build.sh PRESET [target…]}
shift
folder=build-$preset
[ "$preset" != full ] || folder=build

# What the build was configured with; a change asks for it again.
asked="$(sha256sum <CMakePresets.json | cut -d' ' -f1) ${CMAKE_ARGS:-}"
if [ ! -f "$folder/build.ninja" ] || [ "$(cat "$folder/.configured" 2>/dev/null)" != "$asked" ]; then
  [ -d "$folder" ] || echo "build: configuring and building $folder/; the first time takes about 10 minutes on 2 cores, and 0.8 GB"
  mkdir -p "$folder"
  # shellcheck disable=SC2086
  cmake --preset "$preset" ${CMAKE_ARGS:-} >"$folder/configure.log" 2>&1 || {
    cat "$folder/configure.log" >&2
    exit 1
  }
  grep -E '^-- (CUDA|NCCL|MPI|LibTorch):' "$folder/configure.log" || true
  printf '%s\n' "$asked" >"$folder/.configured"
fi
ninja -C "$folder" -j "${JOBS:-$(nproc)}" "$@"
