"""Running the benchmark programs: rounds, page cache, memory limits, and what machine this is."""

import contextlib
import json
import os
import pathlib
import platform
import resource
import shutil
import statistics
import subprocess
import sys

CGROUP = pathlib.Path("/sys/fs/cgroup")


class MemoryLimit:
    """A memory control group below our own, version 1 or 2. `kind` says how, or why not."""

    def __init__(self, limit):
        self.limit = limit
        self.folder = None
        self.kind = "no memory control group could be made: page cache dropped before each run instead"
        for own, version in self._own_groups():
            folder = own / f"stillhouse-bench-{os.getpid()}"
            limit_file = "memory.max" if version == 2 else "memory.limit_in_bytes"
            try:
                folder.mkdir()
            except OSError:
                continue
            try:
                (folder / limit_file).write_text(str(limit))
            except OSError:
                folder.rmdir()
                continue
            self.folder = folder
            self.kind = f"cgroup v{version}, {limit_file} = {limit >> 20} MiB"
            break

    @staticmethod
    def _own_groups():
        """The control groups of this process that may hold a memory limit."""
        lines = pathlib.Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        for line in lines:
            _, controllers, path = line.split(":", 2)
            if "memory" in controllers.split(","):
                yield CGROUP / "memory" / path.lstrip("/"), 1
            elif controllers == "":
                yield CGROUP / path.lstrip("/"), 2

    def join(self):
        """Called in the child, before it runs its program."""
        if self.folder is not None:
            (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def close(self):
        if self.folder is not None:
            self.folder.rmdir()


class Bench:
    """Where programs and data lie, and how long to measure."""

    root = pathlib.Path(__file__).resolve().parents[2]

    def __init__(self, programs, data, quick):
        self.programs = programs
        self.data = data
        self.quick = quick
        self.store_bench = programs / "libexec" / "stillhouse" / "store_bench"
        self.cache_server = programs / "libexec" / "stillhouse" / "cache_server"

    def rounds(self, usual):
        return 1 if self.quick else usual

    def size(self, usual, quick):
        return quick if self.quick else usual

    @contextlib.contextmanager
    def clean_data(self):
        shutil.rmtree(self.data, ignore_errors=True)
        self.data.mkdir(parents=True)
        try:
            yield
        finally:
            shutil.rmtree(self.data, ignore_errors=True)

    def store(self, mode, limit=None, open_files=None, **options):
        """Runs store_bench; its one line of JSON."""
        return self.run(self.store_command(mode, **options), limit, open_files)

    def store_command(self, mode, **options):
        command = [str(self.store_bench), mode]
        for name, value in options.items():
            flag = "--" + name.replace("_", "-")
            command += [flag] if value is True else [flag, str(value)]
        return command

    @staticmethod
    def check(command):
        """Runs a command that prints nothing."""
        if subprocess.run(command, check=False).returncode != 0:
            sys.exit(f"bench: failed: {' '.join(command)}")

    @staticmethod
    def run(command, limit=None, open_files=None):
        def prepare():
            if limit is not None:
                limit.join()
            if open_files is not None:
                resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))

        done = subprocess.run(command, stdout=subprocess.PIPE, preexec_fn=prepare, check=False)
        if done.returncode != 0:
            sys.exit(f"bench: exit code {done.returncode} of {' '.join(command)}")
        return json.loads(done.stdout.decode("utf-8").strip().splitlines()[-1])

    def show(self, command):
        """A command as one would type it in the repository's root."""
        return " ".join(str(word).replace(str(self.root) + "/", "") for word in command)

    def machine(self):
        model, flags = "", set()
        for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                model = value.strip()
            elif name.strip() == "flags":
                flags = set(value.split())
        vectors = [f for f in ("sse2", "avx2", "avx512f", "avx512bw", "avx512vl") if f in flags]
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        load = os.getloadavg()[0]
        return (f"{model}, {os.cpu_count()} cores ({', '.join(vectors)}), {memory:.0f} GiB of memory, "
                f"Linux {platform.release()}; load average at the end {load:.1f}")


def files_of(path):
    return [path] if path.is_file() else [p for p in sorted(path.rglob("*")) if p.is_file()]


def drop_pages(path):
    """Takes the files below `path` out of the page cache."""
    for file in files_of(path):
        fd = os.open(file, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def warm_pages(path):
    """Brings them in."""
    for file in files_of(path):
        with open(file, "rb", buffering=0) as opened:
            while opened.read(8 << 20):
                pass


def speed(result):
    """MB/s of a run."""
    return result["bytes"] / result["seconds"] / 1e6


def median(values):
    return statistics.median(values)


def medians(rounds, runs):
    """{name: median of what runs[name](round) gives}, the runs taking turns."""
    values = {name: [] for name in runs}
    for number in range(rounds):
        for name, run in runs.items():
            values[name].append(run(number))
    for name, all_values in values.items():
        print(f"bench:   {name}: {', '.join(f'{v:.4g}' for v in all_values)}", file=sys.stderr, flush=True)
    return {name: median(all_values) for name, all_values in values.items()}


def row(name, value, unit, against=None, baseline=None, command=""):
    return {
        "name": name,
        "value": round(value, 6),
        "unit": unit,
        "against": against,
        "ratio": None if baseline is None else round(value / baseline, 4),
        "command": command,
    }
