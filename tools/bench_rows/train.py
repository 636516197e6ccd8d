"""The rows about training: half of SmolLM2-135M in bf16, ours and `transformers` on the same shapes."""

import os
import pathlib
import sys

from bench_rows.machine import medians, row

BASELINE = pathlib.Path(__file__).resolve().parent / "train_python.py"
TCMALLOC = ("/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4", "/usr/lib/x86_64-linux-gnu/libtcmalloc.so.4")


def _speed(result):
    return result["rows"] / result["seconds"]


def rows(bench):
    root = bench.root
    ours = bench.programs / "libexec" / "stillhouse" / "student_step_bench"
    python = root / ".deps" / "parity" / "bin" / "python"
    models = sorted((root / ".deps" / "teacher").glob("*.gguf"))
    tcmalloc = next((path for path in TCMALLOC if os.path.exists(path)), None)
    if not models or not ours.exists() or not python.exists() or tcmalloc is None:
        print("bench:   no teacher, student_step_bench, libtcmalloc_minimal4 or .deps/parity "
              "(`tools/setup/setup.sh parity`): left out", file=sys.stderr)
        return []
    threads = os.environ["OMP_NUM_THREADS"] = str(os.cpu_count())
    folder = bench.data / "train"
    bench.check([str(bench.programs / "bin" / "modelctl"), "convert", str(models[0]), "--out", str(folder),
                 "--dtype", "bf16"])
    steps = str(bench.size(6, 1))

    def step(mode):
        return [str(ours), mode, str(models[0]), steps]

    def theirs(mode):
        return [str(python), "-P", str(BASELINE), mode, str(folder), steps]

    def best(_):
        return _speed(bench.run(["env", f"LD_PRELOAD={tcmalloc}", *theirs("best")]))

    runs = {mode: lambda _, mode=mode: _speed(bench.run(step(mode)))
            for mode in ("ce", "sampled", "topk64", "hidden_last", "teacher_head")}
    runs["peak"] = lambda _: _flops(bench.run(step("peak")))
    runs["share"] = lambda _: _flops(bench.run(step("ce")))
    runs["default"] = lambda _: _speed(bench.run(theirs("default")))
    runs["best"] = best
    value = medians(bench.rounds(3), runs)
    seconds = {mode: 1 / value[mode] for mode in runs if mode not in ("peak", "share")}
    command = bench.show(step("ce"))
    made = [
        row("train_tokens_per_s_vs_default", value["ce"], "tokens/s",
            f"transformers, bf16 autocast, AdamW, {threads} threads", value["default"], command),
        row("train_tokens_per_s_vs_best", value["ce"], "tokens/s",
            "the same with torch.compile, fused AdamW and tcmalloc", value["best"], bench.show(theirs("best"))),
        row("train_share_of_peak", value["share"], "GFLOP/s",
            "the fastest product of square bf16 matrices (1,024, 2,048, 4,096)",
            value["peak"], bench.show(step("peak"))),
    ]
    for name in ("sampled", "topk64"):
        made.append(row(f"distill_{name}_over_ce_step", seconds[name], "s/token", "the step with cross-entropy",
                        seconds["ce"], bench.show(step(name))))
    made.append(row("distill_hidden_last_over_ce_step", seconds["hidden_last"], "s/token",
                    "that step and the teacher's head times its states", seconds["ce"] + seconds["teacher_head"],
                    bench.show(step("hidden_last"))))
    return made


def _flops(result):
    return result["flops"] / result["seconds"] / 1e9
