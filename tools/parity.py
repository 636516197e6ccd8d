#!/usr/bin/env python3
"""Opens one exported model in transformers and compares.

usage: parity.py MODEL_FOLDER IDS_JSONL LOGITS_SAFETENSORS

No key may be missing or unexpected, the logits of each line of IDS_JSONL must agree with ours within
1e-5 of the largest, and the tokenizer must give the ids of a text back as the same text.
"""

import json
import sys

import safetensors.torch
import torch
import transformers

LOGITS_RELATIVE_MAX = 1e-5
TEXT = "Distil 3 models, don't wait: naïve café №42\n\tindented  twice"


def main():
    folder, ids_path, logits_path = sys.argv[1:]
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True, local_files_only=True)
    problems = [f"{kind}: {sorted(info[kind])}" for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
                if info.get(kind)]
    ours = safetensors.torch.load_file(logits_path)
    worst = 0.0
    with open(ids_path, encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            with torch.no_grad():
                theirs = model(torch.tensor([json.loads(line)["ids"]])).logits[0]
            difference = (ours[f"logits.{number}"] - theirs).abs().max() / theirs.abs().max()
            worst = max(worst, float(difference))
    if not worst <= LOGITS_RELATIVE_MAX:
        problems.append(f"logits differ by {worst:.2e} of the largest, at most {LOGITS_RELATIVE_MAX:.0e}")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    if tokenizer.decode(ids, clean_up_tokenization_spaces=False) != TEXT:
        problems.append("the tokenizer does not give the text back")
    for problem in problems:
        print(f"parity: {folder}: {problem}", file=sys.stderr)
    if not problems:
        print(f"parity: {folder}: {sum(p.numel() for p in model.parameters()):,} parameters, all keys, "
              f"logits within {worst:.1e}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
