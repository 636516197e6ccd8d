"""What `modelctl tokenize --offsets` should print, by the Python `tokenizers` package.

Run: python tokenize_reference.py TOKENIZER_JSON SPECIAL <TEXTS.jsonl    SPECIAL: 1 to add special tokens, else 0
"""

import itertools
import json
import sys

import tokenizers


def main():
    tokenizer = tokenizers.Tokenizer.from_file(sys.argv[1])
    for line in sys.stdin:
        text = json.loads(line)["text"]
        encoding = tokenizer.encode(text, add_special_tokens=sys.argv[2] == "1")
        at = [0, *itertools.accumulate(len(c.encode()) for c in text)]  # bytes before each character
        print(json.dumps({"ids": encoding.ids, "offsets": [[at[a], at[b]] for a, b in encoding.offsets]}))


if __name__ == "__main__":
    main()
