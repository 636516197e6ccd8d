#!/usr/bin/env python3
"""Reads a GGUF file of ours with the `gguf` package of llama.cpp and compares it with a folder.

usage: gguf_parity.py GGUF MODEL_FOLDER

MODEL_FOLDER is the file as we read it, in fp32 (`modelctl convert GGUF --out MODEL_FOLDER`). Every tensor must be
equal to the last bit, and the metadata say what config.json says.
"""

import json
import pathlib
import sys

import gguf
import numpy
import safetensors.numpy

NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk",
         "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
         "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
KEYS = {"block_count": "num_hidden_layers", "context_length": "max_position_embeddings",
        "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size", "vocab_size": "vocab_size",
        "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim", "attention.value_length": "head_dim",
        "rope.dimension_count": "head_dim", "rope.freq_base": "rope_theta",
        "attention.layer_norm_rms_epsilon": "rms_norm_eps"}


def file_name(name):
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


def hugging_face_rows(values, heads):
    """Undoes LlamaModel.permute of llama.cpp's converter."""
    shape = values.shape
    return values.reshape(heads, shape[0] // heads // 2, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def main():
    path, folder = sys.argv[1:]
    reader = gguf.GGUFReader(path)
    with open(pathlib.Path(folder) / "config.json", encoding="utf-8") as file:
        config = json.load(file)
    architecture = reader.get_field("general.architecture").contents()
    problems = []
    for key, ours in KEYS.items():
        value = reader.get_field(f"{architecture}.{key}").contents()
        if not numpy.isclose(value, config[ours], rtol=1e-6, atol=0):
            problems.append(f"{key} is {value}, config.json says {config[ours]}")
    rows = len(reader.get_field("tokenizer.ggml.tokens").contents())
    if rows != config["vocab_size"]:
        problems.append(f"{rows} tokens for {config['vocab_size']} rows")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    wanted = safetensors.numpy.load_file(pathlib.Path(folder) / "model.safetensors")
    extra = set(tensors) - {file_name(name) for name in wanted} - {"rope_freqs.weight"}
    if extra:
        problems.append(f"tensors that the folder lacks: {sorted(extra)}")
    kinds = set()
    for name, values in wanted.items():
        tensor = tensors[file_name(name)]
        kinds.add(tensor.tensor_type.name)
        read = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(values.shape)
        if architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
            key = "num_attention_heads" if ".q_proj." in name else "num_key_value_heads"
            read = hugging_face_rows(read, config[key])
        if not numpy.array_equal(read.astype(numpy.float32).view(numpy.uint32), values.view(numpy.uint32)):
            problems.append(f"{name} differs by up to {abs(read - values).max():.2e}")
    for problem in problems:
        print(f"parity: {path}: {problem}", file=sys.stderr)
    if not problems:
        print(f"parity: {pathlib.Path(path).name}: {len(wanted)} tensors ({', '.join(sorted(kinds))}) as the gguf "
              f"package reads them")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
