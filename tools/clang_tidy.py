#!/usr/bin/env python3
"""Runs clang-tidy with .clang-tidy, and clang's thread-safety analysis, over build-lint.

usage: tools/clang_tidy.py recent|all [FILES_MAX]

`recent`: clang-tidy on the sources touched in the last day before HEAD (or not committed yet). With
FILES_MAX, only the ones touched last, and the number left out is printed: a day that touched everything
would otherwise not fit into CI. Sources of core and of bench left out by that still get the thread-safety
analysis, which is a compiler warning and quick; nothing else in CI compiles the benchmarks.
CUDA sources are left out: clang 14 does not know this CUDA.
"""

import collections
import concurrent.futures
import json
import os
import pathlib
import shlex
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
BUILD = ROOT / "build-lint"
CORE = ("common", "proto", "transport", "recipe", "formats", "storage", "sharding", "dataset", "coordinator", "worker")
COMPILED = (*CORE, "bench")  # in any case
SECONDS_PER_FILE_MAX = 300


def git(*words):
    return subprocess.run(["git", "-C", str(ROOT), *words], check=True, capture_output=True, text=True).stdout


def recent_files():
    """What is not committed, then the paths changed by commits of the day before HEAD, newest first."""
    head_time = int(git("show", "-s", "--format=%ct", "HEAD"))
    touched = [line[3:] for line in git("status", "--porcelain").split("\n") if line]
    touched += git("log", f"--since={head_time - 24 * 3600}", "--name-only", "--format=", "HEAD").split("\n")
    return list(dict.fromkeys(path for path in touched if path))


def sources():
    """Path below the root → its compile command, for our .cc files."""
    commands = {}
    for entry in json.loads((BUILD / "compile_commands.json").read_text()):
        path = pathlib.Path(entry["directory"], entry["file"]).resolve()
        if path.suffix == ".cc" and path.is_relative_to(ROOT) and not path.is_relative_to(BUILD):
            commands[str(path.relative_to(ROOT))] = entry
    return commands


def run(words, directory):
    try:
        done = subprocess.run(words, cwd=directory, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=SECONDS_PER_FILE_MAX, check=False)
    except subprocess.TimeoutExpired:
        return f"gave up after {SECONDS_PER_FILE_MAX} s"
    return done.stdout if done.returncode else ""


def tidy(path, entry):
    text = run(["clang-tidy", "--quiet", "-p", str(BUILD), "--extra-arg=-Wthread-safety", path], ROOT)
    kept = [line for line in text.split("\n")
            if not line.endswith("treated as errors") and " warnings generated" not in line]
    return "\n".join(kept).strip()


def thread_safety(path, entry):
    words = shlex.split(entry["command"])
    while words and not words[0].endswith(("clang++", "clang++-14")):
        words.pop(0)  # ccache and what sets its environment
    output = words.index("-o")
    del words[output:output + 2]
    return run(words + ["-fsyntax-only", "-Wthread-safety", "-Werror=thread-safety"], entry["directory"]).strip()


def main():
    if len(sys.argv) not in (2, 3) or sys.argv[1] not in ("recent", "all"):
        print(__doc__, file=sys.stderr)
        return 2
    commands = sources()
    wanted = sorted(commands) if sys.argv[1] == "all" else [path for path in recent_files() if path in commands]
    files_max = int(sys.argv[2]) if len(sys.argv) == 3 else len(wanted)
    chosen = set(wanted[:files_max])
    if len(wanted) > files_max:
        print(f"clang-tidy: {len(wanted) - files_max} of {len(wanted)} files are left to `make lint`", flush=True)
    jobs = [(tidy, path) for path in sorted(chosen)]
    jobs += [(thread_safety, path) for path in sorted(set(commands) - chosen) if path.split("/")[0] in COMPILED]
    counts = collections.Counter(job.__name__ for job, _ in jobs)
    print(f"clang-tidy on {counts['tidy']} files, thread safety alone on {counts['thread_safety']}", flush=True)
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for (_, path), text in zip(jobs, pool.map(lambda job: job[0](job[1], commands[job[1]]), jobs)):
            if text:
                failed += 1
                print(f"{path}:\n{text}", flush=True)
    if failed:
        print(f"clang-tidy: {failed} files have findings")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
