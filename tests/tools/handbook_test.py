#!/usr/bin/env python3
"""tools/setup/handbook.py on pages written here."""

import pathlib
import subprocess
import sys
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "tools" / "setup" / "handbook.py"
sys.path.insert(0, str(SCRIPT.parent))

import handbook  # noqa: E402

PAGE = """<html><head><title>Not text</title></head><body>
<div id="banner">Download</div><p id="title">Banner</p><ul class="docnav"><li>Prev</li><li>Next</li></ul>
<div class="toc"><dl><dt>1.1. Contents</dt></dl></div>
<div class="section"><h2>1. Disks &amp; files</h2><a class="indexterm"></a>
<div class="para">
   One  sentence with <em>emphasis</em>,<br/>
   broken.
</div><pre class="screen">$ df -h
  used</pre><p>Last.</p></div></body></html>
"""


class HandbookTest(unittest.TestCase):
    def test_keeps_text_and_drops_navigation(self):
        self.assertEqual(
            handbook.page_text(PAGE),
            "1. Disks & files\n\nOne sentence with emphasis,\n\nbroken.\n\n$ df -h\n  used\n\nLast.\n")

    def convert(self, pages, words):
        with tempfile.TemporaryDirectory() as folder:
            source = pathlib.Path(folder, "in")
            source.mkdir()
            for number in range(pages):
                (source / f"page{number}.html").write_text(f"<html><body><p>{'word ' * words}</p></body></html>")
            run = subprocess.run([sys.executable, str(SCRIPT), str(source), str(pathlib.Path(folder, "out"))],
                                 capture_output=True, text=True, check=False)
            written = len(list(pathlib.Path(folder, "out").glob("*.txt")))
        return run, written

    def test_too_few_pages_is_an_error(self):
        run, _ = self.convert(pages=99, words=200)
        self.assertEqual(run.returncode, 1)
        self.assertEqual(run.stderr.count("\n"), 1)
        self.assertIn("99 English pages", run.stderr)

    def test_enough_pages(self):
        run, written = self.convert(pages=100, words=200)
        self.assertEqual((run.returncode, written), (0, 100), run.stderr)

    def test_short_pages_do_not_count(self):
        run, written = self.convert(pages=120, words=100)  # 500 characters and a newline less
        self.assertEqual((run.returncode, written), (1, 0))


if __name__ == "__main__":
    unittest.main()
