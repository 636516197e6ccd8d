"""The row about loading: SmolLM2 in bfloat16, from the page cache, against Python `safetensors` and torch."""

import pathlib
import sys

from bench_rows.machine import medians, row

BASELINE = pathlib.Path(__file__).resolve().parent / "load_python.py"


def rows(bench):
    root = bench.root
    program = bench.programs / "libexec" / "stillhouse" / "load_bench"
    python = root / ".deps" / "parity" / "bin" / "python"
    models = sorted((root / ".deps" / "teacher").glob("*.gguf"))
    if not models or not python.exists():
        print("bench:   no teacher or no .deps/parity (`make deps`, `make parity` make them): left out",
              file=sys.stderr)
        return []
    folder = bench.data / "bf16"
    bench.check([str(program), str(folder), str(models[0])])
    ours = [str(program), str(folder)]
    theirs = [str(python), "-P", str(BASELINE), str(folder)]

    def gb_per_s(result):
        return result["bytes"] / result["seconds"] / 1e9

    sizes = {bench.run(command)["bytes"] for command in (ours, theirs)}
    if len(sizes) != 1:
        sys.exit(f"bench: ours and torch loaded different numbers of bytes: {sizes}")
    name = "load_gb_per_s"
    value = medians(bench.rounds(9), {name: lambda _: gb_per_s(bench.run(ours)),
                                      "torch": lambda _: gb_per_s(bench.run(theirs))})
    against = "`safetensors.torch.load_file` and a copy of each tensor, as loading into a model makes it"
    return [row(name, value[name], "GB/s", against, value["torch"], bench.show(ours))]
