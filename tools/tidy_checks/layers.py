"""Includes against the edge table, and heavy headers confined to the folders that own them."""

import re

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"]+)[>"]', re.M)

# (header pattern, name, folders that may include it, may it stand in a header of theirs?)
CONFINED = [
    (r"\.pb\.h$", "protobuf messages",
     ("proto", "transport", "storage/service", "coordinator", "worker"), False),
    (r"^google/protobuf/", "protobuf", ("proto", "transport", "storage/service", "coordinator", "worker"), False),
    (r"^rocksdb/", "RocksDB", ("storage",), False),
    (r"^zmq", "ZeroMQ", ("transport",), False),
    (r"^nccl\.h$", "NCCL", ("sharding",), False),
    (r"^mpi\.h$", "MPI", ("sharding", "bench"), False),
    (r"^spdlog/", "spdlog", ("common",), False),
    (r"^CLI/", "CLI11", ("common",), False),
    (r"^yaml-cpp/", "yaml-cpp", ("recipe",), False),
    (r"^(torch|ATen|c10|caffe2)/", "LibTorch", ("model", "teacher_pool", "student", "bench"), True),
]
TORCH = re.compile(r"^(torch|ATen|c10|caffe2)/")
PROTOBUF = re.compile(r"\.pb\.h$|^google/protobuf/")


def _includes(tree, path):
    text = tree.text(path) or ""
    for match in INCLUDE.finditer(text):
        yield text.count("\n", 0, match.start()) + 1, match.group(2)


def _program_uses(tree):
    """source path → libraries its program or test declares, by sh_program and sh_test."""
    uses = {}
    for cmake, command, words in tree.commands():
        if command not in ("sh_program", "sh_test") or not words:
            continue
        section = None
        sources, used = [], []
        for word in words[1:]:
            if word in ("SOURCES", "USES", "LINKS", "LABELS", "ARGS", "PROGRAMS", "TIMEOUT", "LIBEXEC"):
                section = word
            elif section == "SOURCES":
                sources.append(word)
            elif section == "USES":
                used.append(word)
        for source in sources:
            uses.setdefault(tree.named(cmake, source), set()).update(used)
    return uses


def _edge_findings(tree):
    uses = _program_uses(tree)
    for path in tree.cpp():
        own = tree.library_of(path)
        if path in uses:
            allowed, where = tree.reachable(uses[path]), "its USES in CMakeLists.txt"
            allowed |= {own} if own else set()
        elif own:
            allowed, where = {own, *tree.edges.get(own, ())}, "cmake/Layers.cmake"
        else:
            continue
        for line, header in _includes(tree, path):
            target = tree.library_of(header)
            if target and target not in allowed:
                yield path, line, f"includes {header}, but {target} is not in {where}"


def _confined(tree, path):
    folder = path[len("tests/"):] if path.startswith("tests/") else path
    is_header = path.endswith((".h", ".cuh"))
    for line, header in _includes(tree, path):
        for pattern, name, owners, in_headers in CONFINED:
            if not re.search(pattern, header):
                continue
            if not any(folder.startswith(owner + "/") for owner in owners):
                yield path, line, f"includes {header}: {name} belongs to {', '.join(owners)}"
            elif is_header and not in_headers:
                yield path, line, f"includes {header}: {name} stays in .cc files"


def _reached_headers(tree, path, seen):
    """Every foreign header that `path` sees through headers of ours."""
    if path in seen or path not in tree.paths:
        return
    seen.add(path)
    for _, header in _includes(tree, path):
        yield header
        yield from _reached_headers(tree, header, seen)


def check(tree):
    yield from _edge_findings(tree)
    for path in tree.cpp():
        yield from _confined(tree, path)
        headers = set(_reached_headers(tree, path, set()))
        if any(TORCH.search(h) for h in headers) and any(PROTOBUF.search(h) for h in headers):
            yield path, 1, "sees both LibTorch and protobuf, whose headers LibTorch shadows"
