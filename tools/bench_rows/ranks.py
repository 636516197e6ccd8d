"""The rows about several ranks on one machine: collectives, and a step that two of them share."""

import os
import re
import subprocess
import sys

from bench_rows.machine import medians, row

LINE = re.compile(r"^(\S+ ?\S*)\s{2,}(\S.*\S)\s+median\s+([\d.]+)", re.M)
BYTES = 4 * (32 << 20)  # what communicator_bench reduces, in fp32


def rows(bench):
    programs = bench.programs / "libexec" / "stillhouse"
    if not (programs / "communicator_bench").exists():
        print("bench:   no communicator_bench (it needs MPI): left out", file=sys.stderr)
        return []
    # We measure as whoever runs this, in a container as root; both variables say that this is meant.
    mpirun = ["env", "OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1", "mpirun", "--oversubscribe",
              "--bind-to", "none", "-n", "2"]
    return [*_collectives(bench, programs, mpirun), *_shared_step(bench, programs, mpirun)]


def _collectives(bench, programs, mpirun):
    ranks = [*mpirun, str(programs / "communicator_bench"), "mpi"]
    threads = [str(programs / "communicator_bench"), "2"]
    ours, theirs, floor = [], [], []
    for _ in range(bench.rounds(3)):
        found = _medians_of(ranks)
        ours.append(found["reduce-scatter fp32", "ours"])
        theirs.append(found["reduce-scatter fp32", "MPI's own"])
        floor.append(_medians_of(threads)["reduce-scatter fp32", "ours"])
    value = medians(len(ours), {"reduce-scatter": lambda i: BYTES / ours[i] / 1e6,
                                "MPI_Reduce_scatter": lambda i: BYTES / theirs[i] / 1e6,
                                "threads": lambda i: BYTES / floor[i] / 1e6})
    command = bench.show(ranks)
    return [row("reduce_scatter_gb_per_s", value["reduce-scatter"], "GB/s", "MPI_Reduce_scatter, 128 MiB of fp32",
                value["MPI_Reduce_scatter"], command),
            row("shm_floor_reduce_scatter_gb_per_s", value["reduce-scatter"], "GB/s",
                "two threads of one process, which copy nothing", value["threads"], bench.show(threads))]


def _medians_of(command):
    """{(what, whose): median in ms} of one run."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"bench: exit code {done.returncode} of {' '.join(command)}")
    return {(what.strip(), whose): float(ms) for what, whose, ms in LINE.findall(done.stdout)}


def _shared_step(bench, programs, mpirun):
    models = sorted((bench.root / ".deps" / "teacher").glob("*.gguf"))
    step = programs / "student_step_bench"
    cores = os.cpu_count()
    if not models or not step.exists() or cores < 2:
        print("bench:   no teacher, no student_step_bench, or one core: two_ranks_over_one is left out",
              file=sys.stderr)
        return []
    words = [str(step), "ce", str(models[0]), str(bench.size(6, 1))]
    one = ["env", f"OMP_NUM_THREADS={cores // 2 * 2}", *words]
    two = ["env", f"OMP_NUM_THREADS={cores // 2}", *mpirun[1:], *words]
    value = medians(bench.rounds(5), {"one rank": lambda _: _seconds(bench.run(one)),
                                      "two ranks": lambda _: _seconds(bench.run(two))})
    return [row("two_ranks_over_one", value["two ranks"], "s/token", "one rank with as many threads in all",
                value["one rank"], bench.show(two))]


def _seconds(result):
    return result["seconds"] / result["rows"]
