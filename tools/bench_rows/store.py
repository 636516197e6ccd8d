"""Rows about reading and writing: the cache, a flat file, np.memmap, LMDB."""

import pathlib
import subprocess
import sys
import time

from bench_rows.machine import MemoryLimit, drop_pages, medians, row, speed, warm_pages

RECORD = 768 << 10  # 2,048 tokens of top-64
MEMMAP = pathlib.Path(__file__).resolve().parent / "memmap.py"


def _memmap(bench, path, records, count, seed, limit=None):
    command = [sys.executable, "-P", str(MEMMAP), str(path), str(records), str(RECORD), str(count), str(seed)]
    return speed(bench.run(command, limit))


def write_rows(bench):
    """Durable puts, as a server takes them, against appending to one file."""
    rows = []
    small = {"records": bench.size(12288, 256), "record_bytes": 32 << 10, "put": 32}
    large = {"records": bench.size(1024, 16), "record_bytes": 1 << 20, "put": 8}
    earlier = bench.size(10000, 50)
    flat = bench.data / "flat"
    bench.store("fill-ingested", dir=bench.data / "many", records=earlier, record_bytes=64 << 10)
    cases = [
        ("small_ingest_mb_per_s", "flat append of the same records, fdatasync every 256 MiB", small,
         bench.data / "small"),
        ("ingest_mb_per_s", f"the same, after {earlier:,} files of 64 KB were ingested", large,
         bench.data / "many"),
    ]
    for name, against, data, cache in cases:
        def ours(number, data=data, cache=cache):
            return speed(bench.store("ingest-cache", dir=cache, first=(number + 1) * 10**6, **data))

        def theirs(number, data=data):
            del number
            result = speed(bench.store("ingest-flat", dir=flat, records=data["records"],
                                       record_bytes=data["record_bytes"]))
            flat.unlink()
            return result

        value = medians(bench.rounds(5), {name: ours, "flat": theirs})
        command = bench.show(bench.store_command("ingest-cache", dir="DIR", **data))
        rows.append(row(name, value[name], "MB/s", against, value["flat"], command))
    return rows


def _fill(bench, records):
    data = {"records": records, "record_bytes": RECORD}
    for mode in ("cache", "lmdb", "flat"):
        bench.store(f"fill-{mode}", dir=bench.data / mode, **data)


def warm_rows(bench):
    """Shuffled records that lie in the page cache."""
    records = bench.size(1365, 40)
    _fill(bench, records)
    for name in ("cache", "lmdb", "flat"):
        warm_pages(bench.data / name)
    name = "read_shuffled_warm_mb_per_s"
    data = {"records": records, "record_bytes": RECORD, "count": records}
    value = medians(bench.rounds(7), {
        name: lambda seed: speed(bench.store("read-cache", dir=bench.data / "cache", seed=seed, **data)),
        "np.memmap": lambda seed: _memmap(bench, bench.data / "flat", records, records, seed),
        "lmdb": lambda seed: speed(bench.store("read-lmdb", dir=bench.data / "lmdb", seed=seed, **data)),
    })
    command = bench.show(bench.store_command("read-cache", dir="DIR", **data))
    return [
        row(name, value[name], "MB/s", "np.memmap, each record summed in place", value["np.memmap"], command),
        row("warm_vs_lmdb_mb_per_s", value[name], "MB/s", "LMDB, each record summed in place, unverified",
            value["lmdb"], command),
    ]


def cold_rows(bench):
    """Shuffled records of a cache larger than the memory that the reader may use."""
    records = bench.size(4096, 40)
    count = bench.size(512, 20)
    limit = MemoryLimit(bench.size(256 << 20, 128 << 20))
    _fill(bench, records)
    data = {"records": records, "record_bytes": RECORD, "count": count}

    def cold(name, run):
        def timed(seed):
            drop_pages(bench.data / name)
            return run(seed)
        return timed

    def ours(seed):
        return speed(bench.store("read-cache", limit, dir=bench.data / "cache", seed=seed, **data))

    def lmdb(**more):
        return lambda seed: speed(
            bench.store("read-lmdb", limit, dir=bench.data / "lmdb", seed=seed, **data, **more))

    def memmap(seed):
        return _memmap(bench, bench.data / "flat", records, count, seed, limit)

    name = "read_shuffled_cold_mb_per_s"
    try:
        value = medians(bench.rounds(3), {
            name: cold("cache", ours),
            "np.memmap": cold("flat", memmap),
            "lmdb": cold("lmdb", lmdb()),
            "lmdb norda": cold("lmdb", lmdb(no_readahead=True)),
        })
    finally:
        limit.close()
    command = bench.show(bench.store_command("read-cache", dir="DIR", **data))
    of = f"{records * RECORD / 2**30:.1f} GiB of 768 KB records; {limit.kind}"
    return [
        row(name, value[name], "MB/s", f"LMDB, default flags, {of}", value["lmdb"], command),
        row(name, value[name], "MB/s", f"np.memmap, default flags, {of}", value["np.memmap"], command),
        row("cold_vs_lmdb_norda_mb_per_s", value[name], "MB/s", f"LMDB, MDB_NORDAHEAD, {of}",
            value["lmdb norda"], command),
    ]


def open_rows(bench):
    """Opening and reading one record, under a limit of 1,024 open files."""
    data = {"records": bench.size(100000, 2000), "record_bytes": 4 << 10}
    bench.store("fill-cache", dir=bench.data / "chunks", **data)

    def seconds(number):
        del number
        drop_pages(bench.data / "chunks")
        opened = bench.store("open-cache", open_files=1024, dir=bench.data / "chunks", **data)
        return max(opened["read_only_seconds"], opened["writable_seconds"])

    name = "open_100k_chunks_s"
    value = medians(bench.rounds(5), {name: seconds})
    command = bench.show(bench.store_command("open-cache", dir="DIR", **data))
    return [row(name, value[name], "s", None, None, f"ulimit -n 1024; {command}")]


def client_rows(bench):
    """A client of a server on this machine, against reading in its own process."""
    records = bench.size(1365, 40)
    data = {"records": records, "record_bytes": RECORD}
    cache = bench.data / "cache"
    bench.store("fill-cache", dir=cache, **data)
    warm_pages(cache)

    data["batch"] = 5  # some 4 MB, as a student asks; the client has four such reads in flight

    def in_process(seed):
        return speed(bench.store("read-cache", dir=cache, seed=seed, count=records, owned=True, **data))

    def client(seed):
        ready = bench.data / "ready.json"
        socket = bench.data / "socket"
        socket.mkdir(mode=0o700, exist_ok=True)
        address = f"ipc://{socket / 'cache.sock'}"
        ready.unlink(missing_ok=True)
        with subprocess.Popen([bench.cache_server, "--dir", cache, "--listen", address,
                               "--ready-file", ready], stderr=subprocess.DEVNULL) as server:
            try:
                deadline = time.monotonic() + 60
                while not ready.exists():
                    if server.poll() is not None or time.monotonic() > deadline:
                        sys.exit("bench: the cache server does not start")
                    time.sleep(0.01)
                return speed(bench.store("read-client", address=address, seed=seed, count=records, **data))
            finally:
                server.terminate()

    name = "client_read_mb_per_s"
    value = medians(bench.rounds(5), {name: client, "in process": in_process})
    command = bench.show(bench.store_command("read-client", address="ADDRESS", count=records, **data))
    return [row(name, value[name], "MB/s", "the same read in process, into memory of its own",
                value["in process"], command)]
