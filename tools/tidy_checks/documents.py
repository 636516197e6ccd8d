"""Links in Markdown files that lead nowhere."""

import posixpath
import re

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def check(tree):
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
