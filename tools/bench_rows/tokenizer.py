"""The row about the tokenizer: SmolLM2's on the handbook, against the Python `tokenizers` package."""

import pathlib
import sys

from bench_rows.machine import medians, row, speed

BASELINE = pathlib.Path(__file__).resolve().parent / "tokenizer_python.py"


def rows(bench):
    root = bench.root
    program = bench.programs / "libexec" / "stillhouse" / "tokenize_bench"
    python = root / ".deps" / "venv" / "bin" / "python"
    models = sorted((root / ".deps" / "teacher").glob("*.gguf"))
    texts = root / ".deps" / "corpus"
    if not models or not texts.exists() or not python.exists():
        print("bench:   no teacher, text or .deps/venv (`make deps` makes them): left out", file=sys.stderr)
        return []
    times = bench.size(5, 1)
    written = bench.data / "tokenizer"
    ours = [str(program), str(models[0]), str(texts), str(times)]
    theirs = [str(python), "-P", str(BASELINE), str(written / "tokenizer.json"), str(texts), str(times)]
    bench.check([*ours, str(written)])
    ids = {bench.run(command)["ids"] for command in (ours, theirs)}
    if len(ids) != 1:
        sys.exit(f"bench: ours and the package's made different numbers of ids: {ids}")
    name = "tokenize_mb_per_s"
    value = medians(bench.rounds(5), {name: lambda _: speed(bench.run(ours)),
                                      "tokenizers": lambda _: speed(bench.run(theirs))})
    against = f"Python `tokenizers`, `encode_batch_fast`, the same text {times} times, one thread"
    return [row(name, value[name], "MB/s", against, value["tokenizers"], bench.show(ours))]
