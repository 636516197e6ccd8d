#!/usr/bin/env bash
# Compares with the live packages transformers and gguf: every kind of decoder by logits and gradients computed
# anew; every tensor type of GGUF by random blocks; and what we export: one model of each kind, the converted
# teacher, and the quickstart's students where there are some.
set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null

python=.deps/parity/bin/python
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

$python tools/golden/decoders.py "$folder/decoders" 2>"$folder/log" || { cat "$folder/log" >&2; exit 1; }
STILLHOUSE_GOLDEN_DECODERS=$folder/decoders build/tests/model_golden_test --gtest_brief=1 \
  --gtest_filter='Decoders/*'

seed=$RANDOM
$python tools/golden/ggml_blocks.py "$folder/blocks.safetensors" "$seed"
echo "parity: blocks of every GGUF type, seed $seed"
STILLHOUSE_GOLDEN_BLOCKS=$folder/blocks.safetensors build/tests/formats_test --gtest_brief=1 \
  --gtest_filter='Types/Ggml*'

# convert_and_compare MODEL IDS
convert_and_compare() {
  local export=$folder/export logits=$folder/logits.safetensors
  rm -rf "$export" "$logits"
  build/bin/modelctl convert "$1" --out "$export"
  build/bin/modelctl logits "$1" --ids "$2" --out "$logits" --dtype fp32
  echo "parity: $(basename "$1")"
  $python tools/parity.py "$export" "$2" "$logits"
}

# gguf_and_compare MODEL: as a GGUF of each type, read by llama.cpp's package and by us.
gguf_and_compare() {
  local dtype file=$folder/model.gguf back=$folder/back
  for dtype in fp32 fp16 bf16 q8_0; do
    rm -rf "$file" "$back"
    build/bin/modelctl convert "$1" --out "$file" --dtype "$dtype"
    build/bin/modelctl convert "$file" --out "$back" --dtype fp32
    build/bin/modelctl diff "$file" "$back" >/dev/null
    $python tools/gguf_parity.py "$file" "$back"
  done
}

# Longer than the windows and the original lengths of these models.
ids=$(seq -s ', ' 5 7 278)
printf '{"ids": [%s]}\n{"ids": [17]}\n' "$ids" >"$folder/long.jsonl"
$python tools/golden/decoders.py --folders tests/model/golden/tiny_llama/tokenizer.json "$folder/models" \
  2>"$folder/log" || { cat "$folder/log" >&2; exit 1; }
for model in "$folder"/models/*; do
  convert_and_compare "$model" "$folder/long.jsonl"
done

printf '{"ids": [504, 5621, 314, 5441, 327, 2082, 30]}\n{"ids": [17]}\n' >"$folder/ids.jsonl"
convert_and_compare .deps/teacher/SmolLM2-135M-Instruct.Q4_1.gguf "$folder/ids.jsonl"
gguf_and_compare .deps/teacher/SmolLM2-135M-Instruct.Q4_1.gguf
for student in build/quickstart/students/*/config.json; do
  [ ! -f "$student" ] || convert_and_compare "$(dirname "$student")" "$folder/ids.jsonl"
done
