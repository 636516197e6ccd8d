"""Writes tests/formats/golden/llama_export.json: what `transformers` itself saves for three configs.

Run: python tools/golden/llama_export.py OUT
Needs torch, transformers, safetensors. For each config: config.json as save_pretrained writes it, and
every tensor of model.safetensors with dtype and shape. The versions used stand in the file.
"""

import json
import os
import struct
import sys
import tempfile

import torch
import transformers

TINY = dict(vocab_size=320, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
            rms_norm_eps=1e-5, rope_theta=10000.0, bos_token_id=296, eos_token_id=296)
SMOLLM2 = dict(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
               num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192,
               rms_norm_eps=1e-5, rope_theta=100000.0, bos_token_id=1, eos_token_id=2,
               pad_token_id=2)
CASES = {
    "tiny": (dict(TINY, tie_word_embeddings=True), torch.float32),
    "tiny_untied_bf16": (dict(TINY, tie_word_embeddings=False), torch.bfloat16),
    "smollm2": (dict(SMOLLM2, tie_word_embeddings=True), torch.bfloat16),
}


def saved(options, dtype):
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**options)).to(dtype)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        with open(os.path.join(folder, "config.json")) as file:
            config = json.load(file)
        with open(os.path.join(folder, "model.safetensors"), "rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    metadata = header.pop("__metadata__")
    return {"config": config, "metadata": metadata,
            "tensors": {name: [t["dtype"], t["shape"]] for name, t in sorted(header.items())}}


def main():
    result = {"versions": {"torch": torch.__version__, "transformers": transformers.__version__},
              "cases": {name: saved(*case) for name, case in CASES.items()}}
    with open(sys.argv[1], "w") as out:
        json.dump(result, out, indent=1)
        out.write("\n")


if __name__ == "__main__":
    main()
