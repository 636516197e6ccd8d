"""Sources that no CMakeLists.txt names: they are never built, and tests among them never run."""

import pathlib
import re


def _named(tree):
    """Paths that the CMake files name, whatever the command."""
    return {tree.named(cmake, part) for cmake, _, words in tree.commands()
            for word in words for part in word.split(";") if re.search(r"\.(cc|cu|py|sh)$", part)}


def _python_test_named(tree, path):
    """Python tests are named by path, or without their ending in a loop."""
    path = pathlib.PurePosixPath(path)
    words = {word for cmake, _, words in tree.commands() for word in words
             if pathlib.PurePosixPath(cmake).parent == path.parent}
    return path.stem.removesuffix("_test") in words or any(word.endswith(path.name) for word in words)


def check(tree):
    named = _named(tree)
    for path in tree.paths:
        if path.endswith((".cc", ".cu")) and path not in named:
            kind = "test" if path.startswith("tests/") else "source"
            yield path, 1, f"no CMakeLists.txt names this {kind} file"
        elif path.startswith("tests/") and path.endswith("_test.py") and not _python_test_named(tree, path):
            yield path, 1, "no CMakeLists.txt names this test file"
        elif path.endswith(".h") and tree.library_of(path) is None and not path.startswith(("tests/", "bench/")):
            yield path, 1, "a header in a folder that cmake/Layers.cmake does not know"
