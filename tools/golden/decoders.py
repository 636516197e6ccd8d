"""Writes tests/model/golden/decoders/: tiny random decoders, their logits and gradients from `transformers`.

Run: python tools/golden/decoders.py OUT                with transformers 5: everything
     python tools/golden/decoders.py --dialect 4 OUT    with transformers 4: adds its config.json of each case
     python tools/golden/decoders.py --folders TOKENIZER_JSON OUT    whole models, a folder a case, with
                                                        its vocabulary and padding rows (`make parity`)
Needs torch, transformers, safetensors. The versions used stand in OUT/configs.json.

OUT/configs.json has for each case its config.json as save_pretrained writes it and the file of its weights;
OUT/WEIGHTS.safetensors the weights (bfloat16) under their Hugging Face names, `ids` (int64), and for each case
that uses them, in fp32 on the CPU with eager attention,
  CASE/logits       [positions, vocabulary] at `positions`
  CASE/grad/NAME    the gradient of a parameter, of the mean cross-entropy of each next id over the first
                    REAL ids (the other rows of the vocabulary are padding)
and in configs.json `bf16_error`: how far the same model in bfloat16 is off, largest difference over largest
logit. Heads are few and odd, heads of 20, and windows and original lengths shorter than the text.
"""

import argparse
import json
import os
import shutil
import tempfile

import safetensors.torch
import torch
import transformers

SEED = 20
TOKENS = 40
REAL = 131
POSITIONS = list(range(1, TOKENS, 2))

BASE = dict(vocab_size=136, hidden_size=48, intermediate_size=32, num_hidden_layers=2, num_attention_heads=3,
            num_key_value_heads=1, head_dim=20, max_position_embeddings=64, rms_norm_eps=1e-5, rope_theta=500.0,
            bos_token_id=1, eos_token_id=2)
LLAMA = dict(BASE, model_type="llama", tie_word_embeddings=False)
QWEN2 = dict(BASE, model_type="qwen2", tie_word_embeddings=True)
QWEN3 = dict(BASE, model_type="qwen3", tie_word_embeddings=False, num_attention_heads=6, num_key_value_heads=2,
             head_dim=10)
MISTRAL = dict(BASE, model_type="mistral", tie_word_embeddings=False)


def scaled(kind, positions=64, **numbers):
    return dict(LLAMA, max_position_embeddings=positions, rope_scaling=dict(numbers, rope_type=kind))


# The weights of a case: those of the first case of the same file.
CASES = {
    "llama": ("llama", LLAMA),
    "llama_linear": ("llama", scaled("linear", positions=16, factor=4.0)),
    "llama_dynamic": ("llama", scaled("dynamic", positions=16, factor=4.0)),
    "llama_yarn": ("llama", scaled("yarn", factor=4.0, original_max_position_embeddings=16)),
    "llama_yarn_mscale": ("llama", scaled("yarn", factor=6.0, original_max_position_embeddings=12, beta_fast=8.0,
                                          beta_slow=0.5, mscale=1.5, mscale_all_dim=0.5, truncate=False)),
    "llama_llama3": ("llama", scaled("llama3", factor=8.0, original_max_position_embeddings=24,
                                     low_freq_factor=1.0, high_freq_factor=4.0)),
    "llama_biased": ("llama_biased", dict(LLAMA, tie_word_embeddings=True, attention_bias=True, mlp_bias=True)),
    "qwen2": ("qwen2", QWEN2),
    "qwen2_window": ("qwen2", dict(QWEN2, use_sliding_window=True, sliding_window=8, max_window_layers=1)),
    "qwen3": ("qwen3", QWEN3),
    "qwen3_window": ("qwen3", dict(QWEN3, use_sliding_window=True, sliding_window=9,
                                   layer_types=["sliding_attention", "full_attention"])),
    "mistral": ("llama", dict(MISTRAL, sliding_window=8)),
}
# What has its gradient in the file, where the model has it: the embedding once per file of weights.
GRADIENTS = ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.q_proj.bias",
             "model.layers.0.self_attn.k_proj.bias", "model.layers.1.self_attn.v_proj.bias",
             "model.layers.1.self_attn.o_proj.bias", "model.layers.1.self_attn.q_norm.weight",
             "model.layers.0.self_attn.k_norm.weight", "model.layers.1.self_attn.k_proj.weight",
             "model.layers.0.mlp.gate_proj.bias", "model.layers.0.mlp.down_proj.bias",
             "model.layers.0.input_layernorm.weight", "model.norm.weight"]


def make_model(options):
    options = json.loads(json.dumps(options))
    config = transformers.AutoConfig.for_model(options.pop("model_type"), **options)
    config._attn_implementation = "eager"
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()


def saved_config(model):
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
    config.pop("transformers_version")
    return config


def draw(model):
    """Random weights that bfloat16 holds exactly; tied ones once."""
    generator = torch.Generator().manual_seed(SEED)
    weights = {}
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if name.endswith(".bias"):
            values *= 0.3
        elif parameter.ndim == 1:
            values = 1 + 0.2 * values
        else:
            values *= parameter.shape[-1] ** -0.5
        weights[name] = values.bfloat16()
    return weights


def logits_of(model, ids):
    return model(ids.unsqueeze(0), use_cache=False).logits[0]


def compute(case, model, ids, tensors):
    """Adds the case's tensors; returns how far bfloat16 is off."""
    logits = logits_of(model, ids)
    assert logits.dtype == torch.float32
    loss = torch.nn.functional.cross_entropy(logits[:-1, :REAL], ids[1:])
    loss.backward()
    expected = logits.detach()[POSITIONS].contiguous()
    first = not any("/" in name for name in tensors)
    parameters = dict(model.named_parameters())
    for name in GRADIENTS + ["model.embed_tokens.weight"] * first:
        if name in parameters:
            tensors[f"{case}/grad/{name}"] = parameters[name].grad.clone()
    tensors[f"{case}/logits"] = expected
    with torch.no_grad():
        coarse = logits_of(model.bfloat16(), ids)[POSITIONS].float()
    return float((coarse - expected).abs().max() / expected.abs().max())


def write_all(out):
    generator = torch.Generator().manual_seed(SEED + 1)
    ids = torch.randint(0, REAL, (TOKENS,), generator=generator)
    files, cases = {}, {}
    for case, (weights, options) in CASES.items():
        model = make_model(options)
        if weights not in files:
            files[weights] = dict(draw(model), ids=ids, positions=torch.tensor(POSITIONS))
        drawn = {name: tensor.float() for name, tensor in files[weights].items() if name.startswith(("model.", "lm_"))}
        model.load_state_dict(drawn, strict=not options["tie_word_embeddings"])
        model.tie_weights()
        config = saved_config(model)
        error = compute(case, model, ids, files[weights])
        cases[case] = {"weights": weights, "bf16_error": error, "transformers5": config}
    for name, tensors in files.items():
        path = os.path.join(out, name + ".safetensors")
        safetensors.torch.save_file(tensors, path)
        os.chmod(path, 0o644)
    return {"script": "tools/golden/decoders.py", "seed": SEED, "real": REAL,
            "versions": {"torch": torch.__version__, "transformers": [transformers.__version__]}, "cases": cases}


def write_folders(out, tokenizer):
    for case, (_, options) in CASES.items():
        model = make_model(dict(options, vocab_size=320))
        model.load_state_dict({name: tensor.float() for name, tensor in draw(model).items()}, strict=False)
        folder = os.path.join(out, case)
        model.save_pretrained(folder)
        shutil.copy(tokenizer, os.path.join(folder, "tokenizer.json"))
        with open(os.path.join(folder, "tokenizer_config.json"), "w", encoding="utf-8") as file:
            json.dump({"tokenizer_class": "PreTrainedTokenizerFast"}, file)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--dialect", choices=["4"])
    parser.add_argument("--folders", metavar="TOKENIZER_JSON")
    parser.add_argument("out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.makedirs(arguments.out, exist_ok=True)
    if arguments.folders:
        write_folders(arguments.out, arguments.folders)
        return
    path = os.path.join(arguments.out, "configs.json")
    if arguments.dialect:
        with open(path, encoding="utf-8") as file:
            result = json.load(file)
        result["versions"]["transformers"].append(transformers.__version__)
        for case, (_, options) in CASES.items():
            result["cases"][case]["transformers4"] = saved_config(make_model(options))
    else:
        result = write_all(arguments.out)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
