#!/usr/bin/env bash
# Opens what we export in the live transformers package: the converted teacher, and the quickstart's
# students where there are some.
set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
teacher=.deps/teacher/SmolLM2-135M-Instruct.Q4_1.gguf
build/bin/modelctl convert "$teacher" --out "$folder/teacher"
printf '{"ids": [504, 5621, 314, 5441, 327, 2082, 30]}\n{"ids": [17]}\n' >"$folder/ids.jsonl"

models=("$folder/teacher")
for student in build/quickstart/students/*/config.json; do
  [ ! -f "$student" ] || models+=("$(dirname "$student")")
done
for model in "${models[@]}"; do
  build/bin/modelctl logits "$model" --ids "$folder/ids.jsonl" --out "$folder/logits.safetensors" --dtype fp32
  .deps/parity/bin/python tools/parity.py "$model" "$folder/ids.jsonl" "$folder/logits.safetensors"
done
