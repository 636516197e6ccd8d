#!/usr/bin/env python3
"""Encodes every file of a folder with the Python `tokenizers` package, on one thread.

usage: tokenizer_python.py TOKENIZER_JSON TEXT_FOLDER TIMES
Prints {"bytes", "seconds", "ids"}. Takes the package's fastest call, which computes no offsets.
"""

import json
import os
import pathlib
import sys
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

from tokenizers import Tokenizer  # noqa: E402


def main():
    tokenizer = Tokenizer.from_file(sys.argv[1])
    times = int(sys.argv[3])
    files = [path for path in sorted(pathlib.Path(sys.argv[2]).iterdir()) if path.name[0] != "."]
    texts = [path.read_text(encoding="utf-8") for path in files]
    size = sum(len(text.encode()) for text in texts)
    ids = 0
    start = time.perf_counter()
    for _ in range(times):
        for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            ids += len(encoding)
    seconds = time.perf_counter() - start
    print(json.dumps({"bytes": size * times, "seconds": seconds, "ids": ids}))


if __name__ == "__main__":
    main()
