#!/usr/bin/env python3
"""Measures the cache against what one would use otherwise, and writes build/bench/results.json.

usage: tools/bench.py [--quick] [--only PART] [--programs FOLDER] [--data FOLDER] [--out FOLDER]

  --quick     tiny data sets and one round: shows that everything runs; no figure of it counts
  --only      codec, write, read, cold, open, client, tokenize, model, load, train, kernels or ranks; other
              rows stay as they were

Ours and each baseline take turns in every round; a row's value is the median of ours over the rounds,
its ratio that median over the baseline's. Prints the table of docs/benchmarks.md, with the rows that
miss their aim marked; a miss is no failure of the run.
"""

import argparse
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from bench_rows import codec, kernels, load, machine, model, ranks, report, store, tokenizer, train  # noqa: E402

PARTS = {
    "codec": codec.rows,
    "write": store.write_rows,
    "read": store.warm_rows,
    "cold": store.cold_rows,
    "open": store.open_rows,
    "client": store.client_rows,
    "tokenize": tokenizer.rows,
    "model": model.rows,
    "load": load.rows,
    "train": train.rows,
    "kernels": kernels.rows,
    "ranks": ranks.rows,
}


def main():
    root = pathlib.Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", action="append", choices=sorted(PARTS))
    parser.add_argument("--programs", type=pathlib.Path, default=root / "build-release")
    parser.add_argument("--data", type=pathlib.Path, default=root / "build" / "bench" / "data")
    parser.add_argument("--out", type=pathlib.Path, default=root / "build" / "bench")
    options = parser.parse_args()
    bench = machine.Bench(options.programs, options.data, options.quick)
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / "results.json"
    rows = json.loads(results.read_text(encoding="utf-8")) if options.only and results.exists() else []
    for name, measure in PARTS.items():
        if options.only and name not in options.only:
            continue
        print(f"bench: {name} …", file=sys.stderr, flush=True)
        with bench.clean_data():
            rows = report.merge(rows, measure(bench))
        results.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    table = report.table(rows, bench.machine())
    (options.out / "table.md").write_text(table, encoding="utf-8")
    print(table, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
