"""Makes tokenizers with the Python `tokenizers` package and records what they do, for tokenizer_test.

Run: python tokenizer_reference.py OUT_FOLDER [GGUF]

Each case is a folder OUT_FOLDER/<case>/ with tokenizer.json (but for the GGUF's, which the test opens
itself) and cases.bin: u32 count, then per string: text, ids, decoded text, decoded without special
tokens; each a u32 length and its bytes (ids are int32).
"""

import itertools
import os
import random
import struct
import sys

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

GPT2_ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace("{1,3}", "")
# Runs of characters of one class: a character of another class in another library moves their ends.
CLASSES = ["|".join(rf"\p{{{name}}}+" for name in names.split()) for names in (
    "Lu Ll Lt Lm Lo Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp", "L M N P S Z")] + [
        r"\s+|\d+|[^\s\p{L}\p{N}]+", r"(?i:s)|(?i:k)|\P{L}|\S+"]
LLAMACPP_DEFAULT = [
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+", r"[0-9][0-9][0-9]"]


def read_gguf_tokenizer(path):
    """Tokens, their types and the merges, by a reading of the format that shares no code with ours."""
    with open(path, "rb") as file:
        data = file.read(16 << 20)
    at = 0

    def take(form):
        nonlocal at
        value = struct.unpack_from("<" + form, data, at)[0]
        at += struct.calcsize("<" + form)
        return value

    def text():
        nonlocal at
        size = take("Q")
        at += size
        return data[at - size:at].decode()

    plain = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

    def value(kind):
        if kind == 8:
            return text()
        if kind == 9:
            element, count = take("I"), take("Q")
            return [value(element) for _ in range(count)]
        return take(plain[kind])

    assert data[:4] == b"GGUF"
    at = 16
    keys = take("Q")
    found = {}
    for _ in range(keys):
        key = text()
        found[key] = value(take("I"))
    return tuple(found["tokenizer.ggml." + name] for name in ("tokens", "token_type", "merges"))


class Strings:
    """Random Unicode strings that look for trouble."""

    WORDS = ["the", "of", "and", "Stillhouse", "don't", "WE'LL", "it's", "I've", "café", "naïve",
             "Übergröße", "привет", "日本語", "안녕하세요", "مرحبا", "नमस्ते", "e\u0301", "ﬁ", "Ω", "ſ'ſ"]
    SPACES = [" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u2003", "\u3000", "\u180e", "\u200b",
              "\u0085", "\u2028", "     ", "\n\n\n", "\x0b", "\x1c"]
    PIECES = ["0", "7", "12345", "3.14", "1e-5", "٣", "Ⅷ", "½", "²", "...", "!?", "--", "'", "\"",
              "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_", "|>", "<", "🙂", "👩‍👩‍👧", "🇩🇪",
              "\x00", "\x7f", "\ufeff", "\ufffd", "\U0010ffff", "\U000e0001", "def f(x):\n    return x"]

    def __init__(self, seed):
        self.random = random.Random(seed)

    def code_point(self):
        kind = self.random.random()
        if kind < 0.3:
            return chr(self.random.randrange(0x20, 0x7f))
        if kind < 0.5:
            return chr(self.random.randrange(0x00, 0x800))
        while True:
            code = self.random.randrange(0x10000 if kind < 0.8 else 0x110000)
            if not 0xd800 <= code < 0xe000:
                return chr(code)

    def next(self):
        parts = []
        for _ in range(self.random.randrange(0, 24)):
            kind = self.random.randrange(6)
            if kind == 0:
                parts.append(self.code_point())
            elif kind == 1:
                parts.append("".join(self.code_point() for _ in range(self.random.randrange(1, 9))))
            elif kind == 2:
                parts.append(self.random.choice(self.SPACES))
            elif kind == 3:
                parts.append(self.random.choice(self.PIECES))
            else:
                parts.append(self.random.choice(self.WORDS))
                if self.random.random() < 0.7:
                    parts.append(" ")
        return "".join(parts)


def field(raw):
    return struct.pack("<I", len(raw)) + raw


def record(folder, tokenizer, strings, save=True):
    os.makedirs(folder, exist_ok=True)
    if save:
        tokenizer.save(os.path.join(folder, "tokenizer.json"))
    with open(os.path.join(folder, "cases.bin"), "wb") as out:
        out.write(struct.pack("<I", len(strings)))
        for text, encoding in zip(strings, tokenizer.encode_batch(strings, add_special_tokens=False)):
            ids = encoding.ids
            out.write(field(text.encode()))
            out.write(field(struct.pack(f"<{len(ids)}i", *ids)))
            out.write(field(tokenizer.decode(ids, skip_special_tokens=False).encode()))
            out.write(field(tokenizer.decode(ids, skip_special_tokens=True).encode()))


def byte_level(use_regex=True):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


def trained(steps, strings, ignore_merges=False):
    """A tokenizer whose merges come from the strings, so that every piece boundary shows in the ids."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=3000, initial_alphabet=GPT2_ALPHABET,
                                             special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer.train_from_iterator(strings, trainer)
    tokenizer.add_tokens(["<|im_start|>"])
    return tokenizer


def class_probe(step):
    """A tokenizer whose ids show, for "a" + character, whether `step` cut between the two."""
    leads = [c for c in GPT2_ALPHABET if c != "a"]
    vocabulary = {c: i for i, c in enumerate(GPT2_ALPHABET)}
    merges = []
    for lead in leads:
        vocabulary["a" + lead] = len(vocabulary)
        merges.append(("a", lead))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([step, byte_level(use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def record_classes(path, every):
    """For each pattern the places of its matches among all code points: it, begins and ends in UTF-8."""
    places = list(itertools.accumulate((len(c.encode()) for c in every), initial=0))
    with open(path, "wb") as out:
        out.write(field(every.encode()))
        for pattern in CLASSES:
            runs = split(pattern, "removed", True).pre_tokenize_str(every)
            ends = [places[end] for _, place in runs for end in place]
            out.write(field(pattern.encode()) + field(struct.pack(f"<{len(ends)}I", *ends)))


def main():
    out = sys.argv[1]
    if len(sys.argv) > 2:
        tokens, types, merges = read_gguf_tokenizer(sys.argv[2])
        tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)},
                                         [tuple(merge.split(" ")) for merge in merges]))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), byte_level()])
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([token for token, kind in zip(tokens, types) if kind == 3])
        strings = Strings(20)
        texts = [strings.next() for _ in range(20000)]
        texts.append(" ".join(strings.next() for _ in range(3000)))
        texts += ["a" * 30000, " " * 30000, "1" * 3000, "ab" * 10000, "\n" * 3000 + "x"]
        record(os.path.join(out, "gguf"), tokenizer, texts, save=False)

    strings = Strings(21)
    corpus = [strings.next() for _ in range(1500)]
    digits = pre_tokenizers.Digits(individual_digits=False)
    for name, steps, ignore in [
            ("gpt2", [byte_level()], False),
            ("prefix_space", [digits, pre_tokenizers.ByteLevel(add_prefix_space=True)], False),
            ("digits", [digits, byte_level()], False),
            ("llama3", [split(LLAMA3), byte_level(False)], True),
            ("qwen2", [split(QWEN2), byte_level(False)], False),
            ("tiktoken", [split(LLAMA3, "removed", True), byte_level(False)], False),
            ("literal", [pre_tokenizers.Split("the", "isolated"), byte_level()], False),
            ("default", [split(p) for p in LLAMACPP_DEFAULT] + [byte_level(False)], False)]:
        record(os.path.join(out, name), trained(steps, corpus, ignore),
               [strings.next() for _ in range(1000)])

    # Every code point that any Unicode version has put to use, 64 to a string.
    codes = [c for c in range(0x33480) if not 0xd800 <= c < 0xe000] + list(range(0xe0000, 0xe0200))
    every = ["".join("a" + chr(c) for c in codes[i:i + 64]) for i in range(0, len(codes), 64)]
    record(os.path.join(out, "class_digits"), class_probe(pre_tokenizers.Digits(individual_digits=True)), every)
    word = class_probe(split("b"))
    word.add_tokens([AddedToken("bb", single_word=True, normalized=False)])
    record(os.path.join(out, "class_word"), word, [text.replace("a", " bb") for text in every])
    record_classes(os.path.join(out, "classes.bin"), "".join(map(chr, codes)))


if __name__ == "__main__":
    main()
