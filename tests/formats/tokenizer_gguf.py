"""GGUF files with tokenizers of each kind, and what the Python `tokenizers` package makes of them.

Run: python tokenizer_gguf.py make FOLDER    writes FOLDER/<kind>.gguf (no tensors), <kind>.json (the same
                                             tokenizer, made without a GGUF) and strings.bin
     python tokenizer_gguf.py check FOLDER   compares <kind>.json with <kind>/tokenizer.json, which the test
                                             has written, and records the ids in <kind>.bin
Formats of the .bin files: as tokenizer_variants.py writes them, ids only.
"""

import itertools
import json
import os
import random
import struct
import sys

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from tokenizer_reference import LLAMA3, LLAMACPP_DEFAULT, QWEN2, byte_level, split  # noqa: E402
from tokenizer_variants import (LLAMA_DECODER, LLAMA_NORMALIZER, byte_level_tokenizer, make_strings,  # noqa: E402
                                train, words)

NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6
GPT2_KINDS = {
    "smollm": ([pre_tokenizers.Digits(individual_digits=True), byte_level()], None),
    "llama-bpe": ([split(LLAMA3), byte_level(False)], None),
    "qwen2": ([split(QWEN2), byte_level(False)], normalizers.NFC()),
    "default": ([split(p) for p in LLAMACPP_DEFAULT] + [byte_level(False)], None)}
# Only a tokenizer.json, whose added tokens say `normalized: true`; the first two can be written as GGUF.
JSON_ONLY = ["llama-normalized", "gpt2-normalized", "llama-legacy"]


def text(value):
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def write_gguf(path, fields):
    """A GGUF of metadata alone. Values: str, bool, int (u32), or lists of str, int (i32), float (f32)."""
    out = [struct.pack("<4sIQQ", b"GGUF", 3, 0, len(fields))]
    for key, value in fields.items():
        out.append(text("tokenizer.ggml." + key))
        if isinstance(value, str):
            out.append(struct.pack("<I", 8) + text(value))
        elif isinstance(value, bool):
            out.append(struct.pack("<I?", 7, value))
        elif isinstance(value, int):
            out.append(struct.pack("<II", 4, value))
        elif isinstance(value[0], str):
            out.append(struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value)))
        else:
            kind, form = (6, "f") if isinstance(value[0], float) else (5, "i")
            out.append(struct.pack(f"<IIQ{len(value)}{form}", 9, kind, len(value), *value))
    with open(path, "wb") as file:
        file.write(b"".join(out))


def by_id(tokenizer):
    return [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]


def template(tokenizer, token):
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B", special_tokens=[(token, tokenizer.token_to_id(token))])


def make_gpt2(folder, kind, corpus):
    steps, normalizer = GPT2_KINDS[kind]
    tokenizer = byte_level_tokenizer(corpus, steps, normalizer, special=["<s>", "</s>"],
                                     ignore_merges=kind == "llama-bpe")
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.add_tokens([AddedToken("[X]", normalized=False)])
    if kind == "llama-bpe":
        template(tokenizer, "<s>")
    tokens = by_id(tokenizer)
    kinds = [CONTROL if t in ("<s>", "</s>", "<|endoftext|>") else USER if t == "[X]" else NORMAL for t in tokens]
    merges = [" ".join(m) for m in json.loads(tokenizer.to_str())["model"]["merges"]]
    tokenizer.save(os.path.join(folder, kind + ".json"))
    write_gguf(os.path.join(folder, kind + ".gguf"), {
        "model": "gpt2", "pre": kind, "tokens": tokens, "token_type": kinds, "merges": merges,
        "bos_token_id": 0, "eos_token_id": 1})


def piece_merges(tokens, scores, normal):
    """As `transformers` orders them."""
    merges = []
    for token in tokens:
        if token not in normal:
            continue
        splits = [(token[:i], token[i:], scores[token]) for i in range(1, len(token))]
        splits = [s for s in splits if s[0] in scores and s[1] in scores]
        merges += sorted(splits, key=lambda s: (scores[s[0]], scores[s[1]]), reverse=True)
    return [m[:2] for m in sorted(merges, key=lambda m: m[2], reverse=True)]


def make_llama(folder, name, corpus, prefix, normalized=False):
    trained = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    train(trained, corpus, ["<unk>", "<s>", "</s>"], ["▁"], vocab_size=1500, limit_alphabet=200)
    # Scores know no merges beside those that follow from the pieces, among which [X] is in a GGUF.
    learned = [t for t in by_id(trained)[3:] if not ("[X" in t or "X]" in t or t == "<0x41>")]
    long = [t for t in learned if len(t) > 1]
    normal = long + [t for t in learned if len(t) == 1]
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + normal
    if not normalized:  # else a token beside the model's own
        tokens.append("[X]")
    kinds = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(normal) + [USER] * (not normalized)
    scores = [0.0] * 259 + [-float(i) for i in range(len(normal))] + [0.0] * (not normalized)
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = piece_merges(tokens, dict(zip(tokens, scores)), set(normal) | {"[X]"})
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(LLAMA_NORMALIZER) if prefix else LLAMA_NORMALIZER[1]
    tokenizer.decoder = decoders.Sequence(LLAMA_DECODER if prefix else LLAMA_DECODER[:3])
    tokenizer.add_special_tokens([AddedToken(t, normalized=normalized, special=True) for t in tokens[:3]])
    tokenizer.add_tokens([AddedToken("[X]", normalized=normalized)])
    template(tokenizer, "<s>")
    tokenizer.save(os.path.join(folder, name + ".json"))
    if normalized:
        return
    write_gguf(os.path.join(folder, name + ".gguf"), {
        "model": "llama", "pre": "default", "tokens": tokens, "token_type": kinds, "scores": scores,
        "add_space_prefix": prefix, "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0})


def make_gpt2_normalized(folder, corpus):
    """Tokens of both flags, which do not overlap, and no normalizer."""
    tokenizer = byte_level_tokenizer(corpus, GPT2_KINDS["smollm"][0], None, special=["<s>", "</s>"])
    tokenizer.add_tokens([AddedToken("[X]", normalized=True), AddedToken("  ", normalized=True),
                          AddedToken("<|endoftext|>", normalized=False, special=True)])
    tokenizer.save(os.path.join(folder, "gpt2-normalized.json"))


def all_strings():
    """Beside others, some that are mostly added tokens, halves of them, and what may stand around them."""
    choose = random.Random(43)
    parts = ["<s>", "</s>", "<unk>", "[X]", "<|endoftext|>", " ", " ", "  ", "▁", "\n", "\t", "\u00a0", "a", "the", "é",
             "e\u0301", "\u0338", "<s", "s>", "<", ">", "[X", "]", "<0x41>", "日", "\x00", "\u212a"]
    texts = ["".join(choose.choices(parts, k=choose.randrange(1, 9))) for _ in range(3000)]
    return make_strings(5000, 41) + texts


def make(folder):
    texts = all_strings()
    raw = [one.encode() for one in texts]
    with open(os.path.join(folder, "strings.bin"), "wb") as file:
        file.write(words([len(raw)]) + words(map(len, raw)) + b"".join(raw))
    for kind in GPT2_KINDS:
        make_gpt2(folder, kind, texts[:2000])
    make_llama(folder, "llama", texts[:2000], True)
    make_llama(folder, "llama-plain", texts[:2000], False)
    make_llama(folder, "llama-normalized", texts[:2000], False, normalized=True)
    make_llama(folder, "llama-legacy", texts[:2000], True, normalized=True)
    make_gpt2_normalized(folder, texts[:2000])


def check(folder):
    texts = all_strings()
    for kind in [*GPT2_KINDS, "llama", "llama-plain", *JSON_ONLY]:
        expected = Tokenizer.from_file(os.path.join(folder, kind + ".json"))
        written = Tokenizer.from_file(os.path.join(folder, kind, "tokenizer.json"))
        ids = [encoding.ids for encoding in written.encode_batch(texts)]
        if ids != [encoding.ids for encoding in expected.encode_batch(texts)]:
            sys.exit(f"{kind}: the written tokenizer gives other ids")
        for skip in (False, True):
            options = {"skip_special_tokens": skip}
            if written.decode_batch(ids, **options) != expected.decode_batch(ids, **options):
                sys.exit(f"{kind}: the written tokenizer gives other text")
        with open(os.path.join(folder, kind + ".bin"), "wb") as file:
            file.write(words(map(len, ids)) + words(itertools.chain.from_iterable(ids)))


if __name__ == "__main__":
    {"make": make, "check": check}[sys.argv[1]](sys.argv[2])
