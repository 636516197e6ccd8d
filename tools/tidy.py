#!/usr/bin/env python3
"""Checks of the source tree that no compiler makes. Prints `path:line: what` and exits 1 on any finding.

usage: tools/tidy.py [--root FOLDER] [--report]

  --report   print the findings, but exit 0

Reads the edge table of cmake/Layers.cmake and the CMakeLists.txt files, so a new folder needs no change
here. What is checked: banned words, includes against the edge table, heavy headers confined to their
folders, files and functions that are too long, sources and tests that no CMakeLists.txt names, paths
of one machine, links in the documents that lead nowhere.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from tidy_checks import documents, layers, listed, shape, tree, words  # noqa: E402

CHECKS = (words.check, layers.check, shape.check, listed.check, documents.check)


def findings(root):
    sources = tree.Tree(root)
    found = []
    for check in CHECKS:
        found.extend(check(sources))
    return sorted(set(found))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parents[1])
    parser.add_argument("--report", action="store_true", help="print the findings, but exit 0")
    options = parser.parse_args()
    found = findings(options.root)
    for path, line, what in found:
        print(f"{path}:{line}: {what}")
    if found:
        print(f"tidy: {len(found)} findings")
    return 0 if options.report or not found else 1


if __name__ == "__main__":
    sys.exit(main())
