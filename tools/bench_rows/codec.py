"""Rows about the codecs, on what the teacher says about real text."""

import json
import os
import subprocess
import sys

from bench_rows.machine import row

DISTILLKIT_BYTES = 312  # a token: its recommended format, k = 128, ids of 17 bits
ID_BYTES = 3            # a unique id of the draws, as samplers store it: 17 bits and a count of 7


def teacher_rows(bench):
    """The captured rows, made once where there is a teacher; None: the benchmarks make rows up."""
    root = bench.root
    rows = bench.data.parent / "teacher_rows.bin"
    capture = bench.programs / "libexec" / "stillhouse" / "capture_rows"
    models = sorted((root / ".deps" / "teacher").glob("*.gguf"))
    if rows.exists():
        return rows
    if bench.quick or not capture.exists() or not models:
        return None
    command = [str(capture), str(models[0]), str(root / ".deps" / "corpus"), str(rows)]
    if subprocess.run(command, check=False).returncode != 0:
        sys.exit("bench: the teacher's rows could not be captured")
    return rows


def _medians(program, rounds, quick):
    """{benchmark: its median over interleaved repetitions}, with all its counters."""
    command = [str(program), "--benchmark_format=json", f"--benchmark_repetitions={rounds}",
               "--benchmark_enable_random_interleaving=true",
               f"--benchmark_min_time={0.01 if quick else 0.3}", "--benchmark_report_aggregates_only=true"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        sys.exit(f"bench: exit code {done.returncode} of {' '.join(command)}")
    found = {}
    for result in json.loads(done.stdout)["benchmarks"]:
        if result.get("aggregate_name") == "median":
            found[result["run_name"]] = result
    return found, command


def rows(bench):
    rows_file = teacher_rows(bench)
    variable = ""
    if rows_file is not None:
        os.environ["STILLHOUSE_BENCH_ROWS"] = str(rows_file)
        variable = f"STILLHOUSE_BENCH_ROWS={bench.show([rows_file])} "
    found, command = _medians(bench.programs / "bench" / "codec_rows_bench", bench.rounds(5) + 1, bench.quick)
    command = variable + bench.show(command)
    source = found["DecodeSampled"]["label"]
    print(f"bench:   rows of {source}", file=sys.stderr)
    sampled, top = found["DecodeSampled"], found["DecodeTop64"]
    result = [row("codec_sampled_bytes_per_token", sampled["bytes_per_token"], "B",
                  f"{ID_BYTES} bytes for each of {sampled['unique_ids_per_token']:.1f} unique ids; {source}",
                  ID_BYTES * sampled["unique_ids_per_token"], command)]
    for name, flags in (("cache_bytes_per_token", {}), ("cache_bytes_per_token_with_stats", {"stats": True})):
        store = bench.store("fill-rows", dir=bench.data / name, **flags)
        result.append(row(name, store["bytes"] / store["tokens"], "B", None, None,
                          variable + bench.show(bench.store_command("fill-rows", dir="DIR", **flags))))
    result.append(row("codec_topk64_bytes_per_token", top["bytes_per_token"], "B",
                      f"DistillKit's recommended format, k = 128: {DISTILLKIT_BYTES} B", DISTILLKIT_BYTES, command))
    result.append(row("codec_topk64_kl_nats", top["kl"], "nats", None, None, command))
    for kind, short in (("sampled", "Sampled"), ("topk64", "Top64")):
        for verb in ("decode", "encode"):
            ours = found[verb.capitalize() + short]["items_per_second"]
            zstd = found["Zstd" + verb.capitalize() + short]
            against = f"zstd level 3 on the plain form ({zstd['bytes_per_token']:.1f} B a token)"
            result.append(row(f"codec_{kind}_{verb}_tokens_per_s", ours, "tokens/s", against,
                              zstd["items_per_second"], command))
    return result
