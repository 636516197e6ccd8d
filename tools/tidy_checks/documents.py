"""Links in Markdown files that lead nowhere, the edge table of docs/architecture.md, and recipe keys that
docs/recipe.md leaves out."""

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


# A key as recipe/recipe.cc reads it: `f.Integer("steps", …)` or `ReadPath(f, "output", …)`.
KEY = re.compile(r"""\b[fg]\.[A-Z]\w*(?:<\w+>)?\(\s*"(\w+)"|\bReadPath\([fg],\s*"(\w+)\"""")


def _check_recipe_keys(tree):
    source, document = "recipe/recipe.cc", "docs/recipe.md"
    if source not in tree.paths or document not in tree.paths:
        return
    written = {key for path in re.findall(r"`([a-z_.]+)`", tree.text(document)) for key in path.split(".")}
    text = tree.text(source)
    for match in KEY.finditer(text):
        key = match.group(1) or match.group(2)
        if key not in written:
            yield source, text.count("\n", 0, match.start()) + 1, f"the key {key} is not in {document}"


def check(tree):
    yield from _check_edge_table(tree)
    yield from _check_recipe_keys(tree)
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
