#!/usr/bin/env python3
"""Reads shuffled records of a flat file through np.memmap, each summed in place as 64-bit words.

usage: memmap.py FILE RECORDS RECORD_BYTES COUNT SEED
Prints {"bytes", "seconds", "sum"}.
"""

import json
import sys
import time

import numpy


def main():
    path = sys.argv[1]
    records, record_bytes, count, seed = map(int, sys.argv[2:])
    words = record_bytes // 8
    data = numpy.memmap(path, dtype=numpy.uint64, mode="r")
    order = numpy.random.default_rng(seed).permutation(records)[:count]
    total = 0
    start = time.perf_counter()
    for record in order:
        total += int(data[record * words:(record + 1) * words].sum())
    seconds = time.perf_counter() - start
    print(json.dumps({"bytes": count * record_bytes, "seconds": seconds, "sum": total % 2**64}))


if __name__ == "__main__":
    main()
