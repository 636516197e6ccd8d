"""Links in Markdown files that lead nowhere, and the edge table of docs/architecture.md."""

import posixpath
import re

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


EDGES = re.compile(r"<!-- edges: [^>]*-->\n(.*?)<!-- end of edges -->", re.S)


def edge_table(edges):
    """cmake/Layers.cmake as Markdown."""
    lines = ["| library | may use |", "|---|---|"]
    for name, used in edges.items():
        lines.append(f"| `{name}` | {', '.join(f'`{other}`' for other in used) or '–'} |")
    return "\n".join(lines) + "\n"


def _check_edge_table(tree):
    path = "docs/architecture.md"
    if path not in tree.paths:
        return
    match = EDGES.search(tree.text(path))
    if not match or match.group(1) != edge_table(tree.edges):
        yield path, 1, "its edge table is not that of cmake/Layers.cmake; it should be:\n" + edge_table(tree.edges)


def check(tree):
    yield from _check_edge_table(tree)
    known = set(tree.paths)
    folders = {posixpath.dirname(p) for p in known}
    folders |= {posixpath.dirname(f) for f in folders}
    for path in tree.paths:
        if not path.endswith(".md"):
            continue
        text = re.sub(r"^```.*?^```", lambda m: re.sub(r"[^\n]", "", m.group(0)), tree.text(path), flags=re.S | re.M)
        for match in LINK.finditer(text):
            target = match.group(1).split("#", 1)[0]
            if not target or re.match(r"[a-z]+:", target):
                continue
            full = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
            if full not in known and full not in folders:
                yield path, text.count("\n", 0, match.start()) + 1, f"the link to {target} leads nowhere"
