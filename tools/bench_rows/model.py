"""The rows about decoders: SmolLM2-135M in bf16, ours and `transformers` on the same folder and ids."""

import os
import pathlib
import sys

from bench_rows.machine import medians, row

BASELINE = pathlib.Path(__file__).resolve().parent / "model_python.py"


def _speed(result):
    return result["tokens"] / result["seconds"]


def rows(bench):
    root = bench.root
    ours = bench.programs / "libexec" / "stillhouse" / "model_bench"
    python = root / ".deps" / "parity" / "bin" / "python"
    models = sorted((root / ".deps" / "teacher").glob("*.gguf"))
    if not models or not ours.exists() or not python.exists():
        print("bench:   no teacher, model_bench or .deps/parity (`tools/setup/setup.sh parity`): left out",
              file=sys.stderr)
        return []
    os.environ["OMP_NUM_THREADS"] = str(os.cpu_count())
    folder = bench.data / "model"
    modelctl = bench.programs / "bin" / "modelctl"
    bench.check([str(modelctl), "convert", str(models[0]), "--out", str(folder), "--dtype", "bf16"])
    made = []
    for name, mode, sizes, same, at_least in (
            ("forward_tokens_per_s", "forward", [8, 256, bench.size(3, 1)], "top1", 0.9),
            ("generate_tokens_per_s", "generate", [32, bench.size(128, 16), 1], "ids", 0.0)):
        words = [mode, str(folder), *map(str, sizes)]
        mine, theirs = [str(ours), *words], [str(python), "-P", str(BASELINE), *words]
        a, b = bench.run(mine)[same], bench.run(theirs)[same]
        agreement = sum(x == y for x, y in zip(a, b)) / max(len(a), len(b))
        print(f"bench:   {name}: {agreement:.0%} of the {same} agree", file=sys.stderr)
        if agreement < at_least:
            sys.exit(f"bench: {name}: ours and transformers' say different things")
        value = medians(bench.rounds(5), {
            name: lambda _, command=mine: _speed(bench.run(command)),
            "transformers": lambda _, command=theirs: _speed(bench.run(command)),
        })
        against = f"transformers, bf16, scaled-dot-product attention, {os.cpu_count()} threads"
        made.append(row(name, value[name], "tokens/s", against, value["transformers"], bench.show(mine)))
    return made
