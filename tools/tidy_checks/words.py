"""Banned words, each with what to write instead."""

import pathlib
import re

# (pattern over code without comments and literals, what to do, paths where it is right)
CODE = [
    (r"\bsleep_for\b|\bsleep_until\b|\busleep\b|\bnanosleep\b", "wait on a condition or an Executor timer", ()),
    (r"\bsystem_clock::now\b|\babsl::Now\b|\bgettimeofday\b", "take a common/clock.h Clock",
     ("common/clock.cc", "common/log.cc")),
    (r"\bsteady_clock::now\b", "take a common/clock.h Clock", ("common/", "bench/", "tests/")),
    (r"\bs?rand\s*\(", "use common/random.h with a seed", ()),
    (r"\bstd::regex\b", "parse by hand or use PCRE2", ()),
    (r"\bstd::(\w*mutex|condition_variable\w*|lock_guard|unique_lock|scoped_lock|shared_lock)\b",
     "use common/mutex.h, which clang's thread-safety analysis sees", ("common/mutex.h",)),
    (r"\babsl::(Mutex|CondVar|Notification|BlockingCounter)\b",
     "use common/mutex.h: ThreadSanitizer does not see Debian's absl::Mutex", ()),
    (r"\bassert\s*\(", "use SH_CHECK, which release builds keep", ()),
    (r"(?<!::)\bstd::(cout|cerr)\b", "use common/log.h, or the program's own output", ("tests/", "bench/")),
]

# (pattern over the whole text, what to do, paths where it is right)
TEXT = [
    (r"\b(FIXME|TODO|XXX)\b", "finish it, or write down what is missing where users read", ()),
    (r"-march=native", "dispatch at run time: login and compute nodes differ", ()),
    (r"(?<![\w.])/(work|farm|root)/", "a path of one machine", ()),
    (r"(?<![\w.])/home/\w+", "a path of one machine", ()),
    (r"\b[Ii]ssue #?\d+|\bfield[- ]notes\b|(?<![\w/])(design|style)\.md\b", "what the reader does not have", ()),
]

EXIT = re.compile(r"(?<![\w:.>])(?:std::)?(exit|quick_exit|abort)\s*\(")
MAIN = re.compile(r"\bint\s+main\s*\(")
INCLUDES = [
    (r"<(mutex|condition_variable|shared_mutex)>", "include common/mutex.h", ("common/mutex.h",)),
    (r"<regex>", "use PCRE2 or parse by hand", ()),
    (r"[<\"](absl/log/|absl/synchronization/)", "use common/log.h and common/mutex.h", ()),
    (r"[<\"]torch/torch\.h", "include the narrow ATen headers: this one costs 11 s a file", ()),
]


def _allowed(path, places):
    return any(path == place or (place.endswith("/") and path.startswith(place)) for place in places)


def _matches(path, text, rules):
    for pattern, instead, places in rules:
        if _allowed(path, places):
            continue
        for match in re.finditer(pattern, text):
            line = text.count("\n", 0, match.start()) + 1
            yield path, line, f"'{match.group(0).strip()}': {instead}"


def check(tree):
    this = "tools/tidy_checks/words.py"
    for path in tree.cpp():
        yield from _matches(path, tree.code(path), CODE)
        text = tree.text(path) or ""
        includes = "\n".join(l if l.lstrip().startswith("#include") else "" for l in text.split("\n"))
        yield from _matches(path, includes, INCLUDES)
        code = tree.code(path)
        if not MAIN.search(code) and path not in ("common/status.cc", "common/status.h"):
            for match in EXIT.finditer(code):
                line = code.count("\n", 0, match.start()) + 1
                yield path, line, f"'{match.group(1)}(': return a Status; only main leaves the process"
    for path in tree.paths:
        text = tree.text(path)
        if text is None or path == this or pathlib.PurePosixPath(path).suffix in (".json", ".jsonl"):
            continue
        if path.startswith("tests/tidy/"):
            continue
        yield from _matches(path, text, TEXT)
