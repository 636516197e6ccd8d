"""The rows about pieces of a step: the optimizer's update, and the head with its loss."""

import os
import pathlib
import sys

from bench_rows.machine import medians, row

BASELINE = pathlib.Path(__file__).resolve().parent / "kernels_python.py"
CHUNKS = (64, 128, 256, 512, 1024, 2048)  # rows that PyTorch takes at a time, tried in this order


def rows(bench):
    ours = bench.programs / "libexec" / "stillhouse" / "kernel_bench"
    python = bench.root / ".deps" / "parity" / "bin" / "python"
    if not ours.exists() or not python.exists():
        print("bench:   no kernel_bench or .deps/parity (`tools/setup/setup.sh parity`): left out", file=sys.stderr)
        return []
    os.environ["OMP_NUM_THREADS"] = str(os.cpu_count())
    # Memory that a pass gives back stays with both, or PyTorch would spend its time on fresh pages.
    keep = ["env", "MALLOC_MMAP_MAX_=0", "MALLOC_TRIM_THRESHOLD_=1073741824"]
    return [*_adamw(bench, [str(ours)], [*keep, str(python), "-P", str(BASELINE)]),
            *_loss(bench, [str(ours)], [*keep, str(python), "-P", str(BASELINE)])]


def _adamw(bench, ours, theirs):
    size = [str(bench.size(60_000_000, 1_000_000)), str(bench.size(10, 1))]
    copy, step, torch = [*ours, "copy", *size], [*ours, "adamw", *size], [*theirs, "adamw", *size]
    value = medians(bench.rounds(5), {
        "copy": lambda _: _rate(bench.run(copy), "bytes") / 1e9,
        "adamw": lambda _: _rate(bench.run(step), "bytes") / 1e9,
        "torch": lambda _: _rate(bench.run(torch), "parameters") / 1e6,
    })
    return [row("adamw_gb_per_s", value["adamw"], "GB/s", "memory copied by as many threads, read and written",
                value["copy"], bench.show(step)),
            row("adamw_vs_torch", value["adamw"] * 1000 / 30, "M parameters/s",
                "torch.optim.AdamW(fused=True), which writes no bf16 weights", value["torch"], bench.show(torch))]


def _loss(bench, ours, theirs):
    size = [str(bench.size(2048, 256)), str(bench.size(6, 1))]
    own = [*ours, "loss", *size]
    peak = bench.run(own)["peak_bytes"]
    # As much memory as ours, or the next step above.
    for chunk in CHUNKS:
        torch = [*theirs, "loss", *size, str(chunk)]
        their_peak = bench.run(torch)["peak_bytes"]
        if their_peak >= peak:
            break
    value = medians(bench.rounds(5), {"loss": lambda _: _rate(bench.run(own), "rows"),
                                      "torch": lambda _: _rate(bench.run(torch), "rows")})
    against = f"PyTorch, {chunk} rows at a time: the fewest that take as much memory, or as near as it comes"
    return [row("loss_tokens_per_s", value["loss"], "tokens/s", against, value["torch"], bench.show(own)),
            row("loss_peak_bytes", peak, "B", against, their_peak, bench.show(own))]


def _rate(result, what):
    return result[what] / result["seconds"]
