#!/usr/bin/env python3
"""Turns the English HTML pages of Debian's debian-handbook into plain text files.

usage: handbook.py HTML_FOLDER OUT_FOLDER

Each page becomes OUT_FOLDER/<page>.txt: paragraphs as one line each, blank lines between them, program
listings as they stand. Navigation, tables of contents and the index are left out. Pages of 500
characters or fewer are dropped; fewer than 100 pages left is an error, because then the package is not
the one we know.
"""

import html.parser
import pathlib
import sys

CHARACTERS_MIN = 500
PAGES_MIN = 100

BLOCKS = {
    "address", "blockquote", "br", "dd", "div", "dl", "dt", "h1", "h2", "h3", "h4", "h5", "h6", "hr",
    "li", "ol", "p", "pre", "table", "td", "th", "tr", "ul",
}
VOID = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta"}
SKIPPED_TAGS = {"head", "script", "style"}
SKIPPED_CLASSES = {"docnav", "toc", "index", "indexterm", "list-of-figures", "list-of-tables"}
SKIPPED_IDS = {"banner", "title"}


class PageText(html.parser.HTMLParser):
    """Collects the paragraphs of one page."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.paragraphs = []
        self._open = []  # (tag, whether it started a skipped part, whether it is a listing)
        self._words = []

    def handle_starttag(self, tag, attrs):
        if tag in BLOCKS:
            self._end_paragraph()
        if tag in VOID:
            return
        attributes = dict(attrs)
        classes = set((attributes.get("class") or "").split())
        skipped = (
            tag in SKIPPED_TAGS
            or bool(classes & SKIPPED_CLASSES)
            or attributes.get("id") in SKIPPED_IDS
        )
        self._open.append((tag, skipped, tag == "pre"))

    def handle_startendtag(self, tag, attrs):
        if tag in BLOCKS:
            self._end_paragraph()

    def handle_endtag(self, tag):
        if tag in BLOCKS:
            self._end_paragraph()
        while self._open:
            if self._open.pop()[0] == tag:
                break

    def handle_data(self, data):
        if not any(skipped for _, skipped, _ in self._open):
            self._words.append(data)

    def _end_paragraph(self):
        text = "".join(self._words)
        self._words = []
        if any(listing for _, _, listing in self._open):
            text = text.strip("\n")
        else:
            text = " ".join(text.split())
        if text.strip():
            self.paragraphs.append(text)


def page_text(markup):
    parser = PageText()
    parser.feed(markup)
    parser.close()
    parser._end_paragraph()
    return "\n\n".join(parser.paragraphs) + "\n"


def convert(source, target):
    """Returns (pages, characters) written."""
    pages = 0
    characters = 0
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob("*.html")):
        text = page_text(path.read_text(encoding="utf-8"))
        if len(text) <= CHARACTERS_MIN:
            continue
        (target / (path.stem + ".txt")).write_text(text, encoding="utf-8")
        pages += 1
        characters += len(text)
    return pages, characters


def main():
    if len(sys.argv) != 3:
        print("usage: handbook.py HTML_FOLDER OUT_FOLDER", file=sys.stderr)
        return 2
    pages, characters = convert(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
    if pages < PAGES_MIN:
        print(
            f"handbook: {sys.argv[1]}: {pages} English pages of more than {CHARACTERS_MIN} characters, "
            f"at least {PAGES_MIN} expected: another edition of debian-handbook?",
            file=sys.stderr,
        )
        return 1
    print(f"handbook: {pages} pages, {characters:,} characters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
