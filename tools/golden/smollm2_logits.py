"""Writes tests/model/golden/smollm2_logits.safetensors: SmolLM2's logits as `transformers` has them.

Run: python tools/golden/smollm2_logits.py GGUF OUT
Needs torch, transformers, gguf, accelerate, safetensors. The versions used stand in the file's metadata.

The model is the GGUF itself (transformers dequantises it to fp32), computed in fp32 on the CPU with
eager attention. For each prompt `i` the file has `ids.i` (int64), `positions.i` (int64) and `logits.i`
[positions, vocabulary] in fp32.
"""

import os
import sys

import safetensors.torch
import torch
import transformers

# "The teacher is paid for once." and "def add(a, b):\n    return" in SmolLM2's ids, by and large; what
# matters is that they are fixed.
PROMPTS = [
    ([504, 5621, 314, 5441, 327, 2082, 30], [0, 6]),
    ([1604, 803, 24, 81, 28, 330, 2069, 198, 258, 1003, 253, 1232, 330, 198, 198, 12], [7, 15]),
]


def main():
    gguf, out = sys.argv[1:]
    torch.set_num_threads(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        os.path.dirname(gguf) or ".", gguf_file=os.path.basename(gguf), dtype=torch.float32,
        attn_implementation="eager")
    model.eval()
    tensors = {}
    for i, (ids, positions) in enumerate(PROMPTS):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0]
        assert logits.dtype == torch.float32
        tensors[f"ids.{i}"] = torch.tensor(ids)
        tensors[f"positions.{i}"] = torch.tensor(positions)
        tensors[f"logits.{i}"] = logits[positions].contiguous()
    safetensors.torch.save_file(tensors, out, metadata={
        "torch": torch.__version__, "transformers": transformers.__version__,
        "script": "tools/golden/smollm2_logits.py", "model": os.path.basename(gguf)})


if __name__ == "__main__":
    main()
