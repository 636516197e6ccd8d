"""Trains tokenizers of many kinds with the Python `tokenizers` package and records what they do, for
tokenizer_variants_test.

Run: python tokenizer_variants.py OUT_FOLDER STRINGS [GGUF]

Writes OUT_FOLDER/strings.bin (u32 count, the sizes as u32, the strings) and for each tokenizer a folder
with tokenizer.json (but for "smollm2", which is the GGUF's) and cases.bin, all u32 unless said otherwise:
  for each string its number of ids; all ids; for those of every fourth string
  the first character and the one after the last;
  twice, with and without special tokens: the sizes of the decoded strings, their bytes;
  the ids put before a text: count, ids; those put after it;
  streams: count, for each: ids: count, ids; chunks: for each id i32 size (-1: none, -2: it was refused,
  and the stream ends), bytes.
"""

import itertools
import json
import os
import random
import struct
import sys

import numpy
import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from tokenizer_reference import (GPT2_ALPHABET, LLAMA3, QWEN2, Strings, byte_level,  # noqa: E402
                                 read_gguf_tokenizer, split)

DEEPSEEK = [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
            r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
            r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""]
O200K = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])
STREAMS = 1500
OFFSETS_EVERY = 4


def fragments(seed):
    """Pieces of text that look for trouble, to be put together at random."""
    strings = Strings(seed)
    choose = strings.random
    marks = [chr(c) for c in list(range(0x300, 0x346)) + [0x591, 0x5b0, 0x64b, 0x655, 0x93c, 0x94d, 0xe38,
                                                         0x3099, 0x302a, 0x1d165, 0x20d0, 0x11938]]
    jamo = [chr(c) for c in [*range(0x1100, 0x1113), *range(0x1161, 0x1176), 0x11a8, 0xac00]]
    compatible = list("ﬁﬃ①㍿ｱ½²ℌ㎏ŉǆﷺ︙") + ["\u212b", "\u2126", "\u0344", "\u0958", "\ufb2c", "\U0001d15e",
                                              "\U0002f800", "\u1e9b\u0323", "\u0f77", "\u0340", "\u037e"]
    edge = ["\ud7ff", "\ue000", "\ufffe", "\uffff", "\ufdd0", "\u200d", "\ufe0f", "👩\u200d🚀", "🏳️\u200d🌈", "▁",
            "▁▁", "<0x41>", "<unk>", "<s>", "</s>", "<mask>", " <mask> ", "word", "wordy", " word ", "[X]", "ﬁx",
            "caf\u00e9tok", "'S", "'LL", "'ſ", "'Re", "' d", "\r", "\r\n\r\n", " \n ", "\t\t\n", "1,234", "１２", "〇一"]
    pool = []
    for _ in range(1500):
        pool.append("".join(strings.code_point() for _ in range(choose.randrange(1, 5))))
    for _ in range(500):
        pool.append(choose.choice(Strings.WORDS) + " " * choose.randrange(2))
        pool.append(choose.choice(Strings.SPACES) if choose.random() < 0.3 else " " + choose.choice(Strings.WORDS))
        pool.append(choose.choice(Strings.PIECES))
        pool.append(choose.choice(edge))
        pool.append(choose.choice("aAeoÅᾳकがｶ") + "".join(choose.choices(marks, k=choose.randrange(1, 4))))
    for _ in range(250):
        pool.append("".join(choose.choices(jamo, k=choose.randrange(1, 4))))
        pool.append(choose.choice(compatible))
    return pool


def make_strings(count, seed):
    pool = fragments(seed)
    choose = random.Random(seed)
    texts = ["".join(choose.choices(pool, k=choose.randrange(0, 5))) for _ in range(count)]
    # Where the code points lie that have a normal form of their own, or may get one.
    codes = [*range(0x3400), *range(0xa640, 0xac40), *range(0xf900, 0x12000), *range(0x16100, 0x16f00),
             *range(0x1d100, 0x1f200), *range(0x2f800, 0x2fa80), *range(0xe0000, 0xe0200)]
    texts += ["".join(map(chr, codes[i:i + 256])) for i in range(0, len(codes), 256)]
    texts += ["a" * 20000, " " * 20000, "▁" * 5000, "1" * 3000, "ab" * 5000, "\n" * 3000 + "x",
              "e\u0301" * 2000, "a" + "\u0301" * 3000, "\U0001f469\u200d" * 2000, " a" * 5000, "<mask>" * 500,
              "\u1100\u1161\u11a8" * 1000]
    return texts


def train(tokenizer, corpus, special, alphabet, **options):
    options = {"vocab_size": 2000, **options}
    trainer = tokenizers.trainers.BpeTrainer(initial_alphabet=alphabet, special_tokens=special,
                                             show_progress=False, **options)
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def byte_level_tokenizer(corpus, steps, normalizer=None, special=("<|endoftext|>",), **options):
    tokenizer = Tokenizer(models.BPE(**options))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    tokenizer.decoder = decoders.ByteLevel()
    return train(tokenizer, corpus, list(special), GPT2_ALPHABET)


def with_model(tokenizer, change):
    """The tokenizer with its model's JSON changed: what the trainer cannot make."""
    data = json.loads(tokenizer.to_str())
    change(data["model"])
    return Tokenizer.from_str(json.dumps(data))


def with_byte_tokens(tokenizer, count=256):
    """<0x00> and on, after the first three tokens, as SentencePiece has them."""
    def change(model):
        shift = {t: i if i < 3 else i + count for t, i in model["vocab"].items()}
        model["vocab"] = {**shift, **{f"<0x{b:02X}>": 3 + b for b in range(count)}}
        model.update(byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    return with_model(tokenizer, change)


LLAMA_NORMALIZER = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
LLAMA_DECODER = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]


def sentencepiece_tokenizer(corpus, normalizer=None, step=None, decoder=None, byte_tokens=256):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    # Trained in words, as SentencePiece is; what the file says is set after.
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always" if step else "never")
    train(tokenizer, corpus, ["<unk>", "<s>", "</s>"], ["▁"], vocab_size=1500, limit_alphabet=200)
    if byte_tokens:
        tokenizer = with_byte_tokens(tokenizer, byte_tokens)
    data = json.loads(tokenizer.to_str())
    data["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(data))
    if step is not None:
        tokenizer.pre_tokenizer = step
    tokenizer.decoder = decoder or decoders.Sequence(LLAMA_DECODER)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return tokenizer


def gpt2(corpus):
    tokenizer = byte_level_tokenizer(corpus, [pre_tokenizers.ByteLevel(add_prefix_space=True)])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True, add_prefix_space=True)
    return tokenizer


def roberta(corpus):
    """Added tokens with all their flags, without a normalizer."""
    tokenizer = byte_level_tokenizer(corpus, [byte_level()])
    tokenizer.add_tokens([AddedToken("<mask>", lstrip=True, special=True), AddedToken("word", single_word=True),
                          AddedToken("[X]", rstrip=True, normalized=False), AddedToken("<s>", normalized=False),
                          AddedToken("</s>", special=True, normalized=False, lstrip=True, rstrip=True), "日本"])
    ids = tokenizer.get_vocab()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", ids["</s>"]), ("<s>", ids["<s>"]),
                                                            trim_offsets=True, add_prefix_space=False)
    return tokenizer


def llama3(corpus):
    tokenizer = byte_level_tokenizer(corpus, [split(LLAMA3), byte_level(False)], special=["<s>", "</s>"],
                                     ignore_merges=True)
    # Tokens that no merge makes: only `ignore_merges` finds them.
    def change(model):
        for token in ["Ġword", "Stillhouse", "Ġ日本èªŀ"]:
            model["vocab"].setdefault(token, len(model["vocab"]))
    tokenizer = with_model(tokenizer, change)
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=True, add_prefix_space=False),
        processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)])])
    return tokenizer


def qwen2(corpus):
    tokenizer = byte_level_tokenizer(corpus, [split(QWEN2), byte_level(False)], normalizers.NFC())
    tokenizer.add_tokens([AddedToken("caf\u00e9tok"), AddedToken("e\u0301", normalized=True),
                          AddedToken("<|im_start|>", special=True, normalized=False)])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False, add_prefix_space=False)
    return tokenizer


def deepseek(corpus):
    return byte_level_tokenizer(corpus, [split(p) for p in DEEPSEEK] + [byte_level(False)])


def o200k(corpus):
    return byte_level_tokenizer(corpus, [split(O200K, "removed", True), byte_level(False)])


def nfkc(corpus):
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(r"\s{2,}"), " "),
                                       normalizers.Replace("don't", "do not")])
    tokenizer = byte_level_tokenizer(corpus, [
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Split("the", "merged_with_previous"),
        split(r"\s", "merged_with_next"), byte_level(False)], normalizer)
    tokenizer.add_tokens([AddedToken("ﬁx"), AddedToken("<mask>", lstrip=True, rstrip=True, special=True)])
    return tokenizer


def nfd(corpus):
    """The other behaviours, inverted too; empty matches; ByteLevel twice, and not last."""
    return byte_level_tokenizer(corpus, [
        split(r"[\p{L}\p{M}]", "contiguous"), split(r"\p{P}*", "merged_with_next"),
        split(r"\p{Lu}", "merged_with_previous", True),
        byte_level(True), pre_tokenizers.Digits(), split("Ġ+", "contiguous", True)],
        normalizers.Sequence([normalizers.NFD()]))


def nfkd(corpus):
    """Few byte tokens, and an unknown token for the rest."""
    tokenizer = byte_level_tokenizer(corpus, [byte_level()], normalizers.NFKD(), special=["<unk>", "<s>", "</s>"])
    def change(model):
        gone = set(GPT2_ALPHABET[::3])
        kept = [t for t in sorted(model["vocab"], key=model["vocab"].get) if not gone & set(t) or t[0] == "<" != t]
        model["vocab"] = {t: i for i, t in enumerate(kept)}
        model["merges"] = [m for m in model["merges"] if not {m[0], m[1], m[0] + m[1]} - set(kept)]
        model.update(unk_token="<unk>")
    tokenizer = with_model(tokenizer, change)
    return tokenizer


def llama2(corpus):
    return sentencepiece_tokenizer(corpus, normalizer=normalizers.Sequence(LLAMA_NORMALIZER))


def mistral(corpus):
    return sentencepiece_tokenizer(corpus, step=pre_tokenizers.Metaspace(prepend_scheme="first", split=False))


def metaspace(corpus):
    """Without byte tokens, so that characters are unknown; and with only some of them."""
    return sentencepiece_tokenizer(corpus, normalizers.NFKC(), pre_tokenizers.Metaspace(prepend_scheme="always"),
                                   decoders.Metaspace(prepend_scheme="always"), byte_tokens=0)


def some_bytes(corpus):
    step = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(prepend_scheme="first"), pre_tokenizers.Digits()])
    return sentencepiece_tokenizer(corpus, step=step, byte_tokens=200)


def smollm2(path):
    tokens, types, merges = read_gguf_tokenizer(path)
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)},
                                     [tuple(merge.split(" ")) for merge in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level()])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([token for token, kind in zip(tokens, types) if kind == 3])
    return tokenizer


def words(values, kind=numpy.uint32):
    return numpy.fromiter(values, dtype=kind).tobytes()


def affixes(tokenizer):
    ids = tokenizer.encode("x").ids
    bare = tokenizer.encode("x", add_special_tokens=False).ids
    at = next(i for i in range(len(ids)) if ids[i:i + len(bare)] == bare)
    return ids[:at], ids[at + len(bare):]


def stream(tokenizer, ids):
    decoder = decoders.DecodeStream(skip_special_tokens=False)
    out = [words([len(ids)]), words(ids)]
    for one in ids:
        try:
            chunk = decoder.step(tokenizer, one)
        except Exception:  # pylint: disable=broad-exception-caught
            out.append(struct.pack("<i", -2))
            break
        raw = (chunk or "").encode()
        out.append(struct.pack("<i", -1 if chunk is None else len(raw)) + raw)
    return b"".join(out)


def record(folder, tokenizer, texts, save):
    os.makedirs(folder, exist_ok=True)
    if save:
        tokenizer.save(os.path.join(folder, "tokenizer.json"))
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    ids = [encoding.ids for encoding in encodings]
    choose = random.Random(5)
    used = sorted(set(itertools.chain.from_iterable(ids[:20000])))
    streams = ids[:STREAMS] + [choose.choices(used, k=choose.randrange(1, 12)) for _ in range(STREAMS)]
    if "<0x80>" in tokenizer.get_vocab():
        streams += [[choose.randrange(3 + 0x61, 3 + 200) if choose.random() < 0.7 else choose.choice(used)
                     for _ in range(choose.randrange(1, 12))] for _ in range(STREAMS)]
    with open(os.path.join(folder, "cases.bin"), "wb") as out:
        out.write(words(map(len, ids)))
        out.write(words(itertools.chain.from_iterable(ids)))
        flat = itertools.chain.from_iterable
        out.write(words(flat(flat(encoding.offsets for encoding in encodings[::OFFSETS_EVERY]))))
        for skip in (False, True):
            decoded = [text.encode() for text in tokenizer.decode_batch(ids, skip_special_tokens=skip)]
            out.write(words(map(len, decoded)))
            out.write(b"".join(decoded))
        for affix in affixes(tokenizer):
            out.write(words([len(affix)]) + words(affix))
        out.write(words([len(streams)]))
        for one in streams:
            out.write(stream(tokenizer, one))


def main():
    out, count = sys.argv[1], int(sys.argv[2])
    texts = make_strings(count, 31)
    raw = [text.encode() for text in texts]
    with open(os.path.join(out, "strings.bin"), "wb") as file:
        file.write(words([len(raw)]) + words(map(len, raw)) + b"".join(raw))
    makers = [gpt2, roberta, llama3, qwen2, deepseek, o200k, nfkc, nfd, nfkd, llama2, mistral, metaspace, some_bytes]
    second = os.fork()  # two processes share the work
    for maker in makers[0 if second else 1::2]:
        record(os.path.join(out, maker.__name__), maker(texts[:3000]), texts, save=True)
    if second:
        if len(sys.argv) > 3:
            record(os.path.join(out, "smollm2"), smollm2(sys.argv[3]), texts, save=False)
        _, status = os.waitpid(second, 0)
        sys.exit(1 if status else 0)


if __name__ == "__main__":
    main()
