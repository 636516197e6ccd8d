"""Writes tests/model/golden/tiny_llama/: a two-layer random Llama and its logits from `transformers`.

Run: python tools/golden/tiny_llama.py OUT_FOLDER TOKENIZER_JSON
Needs torch, transformers, safetensors. The versions used stand in the metadata of logits.safetensors.

The model is untied, has grouped queries and a head width that is not hidden / heads: what SmolLM2 does
not exercise. TOKENIZER_JSON is copied beside it so that the folder opens as a whole model.
"""

import os
import shutil
import sys

import safetensors.torch
import torch
import transformers

IDS = [[17, 300, 5, 5, 256, 41, 2, 299, 0, 8, 13, 21], [1], [271, 12, 319]]


def main():
    out, tokenizer = sys.argv[1:]
    torch.set_num_threads(1)
    torch.manual_seed(1234)
    config = transformers.LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=256,
        rope_theta=5000.0, rms_norm_eps=1e-5, tie_word_embeddings=False, bos_token_id=296,
        eos_token_id=296, attn_implementation="eager")
    model = transformers.LlamaForCausalLM(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = parameter.ndim == 1
            parameter.normal_(1.0 if norm else 0.0, 0.1 if norm else parameter.shape[-1] ** -0.5)
    os.makedirs(out, exist_ok=True)
    model.save_pretrained(out)
    os.remove(os.path.join(out, "generation_config.json"))
    shutil.copy(tokenizer, os.path.join(out, "tokenizer.json"))
    tensors = {}
    for i, ids in enumerate(IDS):
        with torch.no_grad():
            tensors[f"logits.{i}"] = model(torch.tensor([ids])).logits[0].contiguous()
        tensors[f"ids.{i}"] = torch.tensor(ids)
    safetensors.torch.save_file(tensors, os.path.join(out, "logits.safetensors"), metadata={
        "torch": torch.__version__, "transformers": transformers.__version__,
        "script": "tools/golden/tiny_llama.py"})


if __name__ == "__main__":
    main()
