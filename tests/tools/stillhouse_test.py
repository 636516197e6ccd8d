"""tools/stillhouse.py against the C++ encoders and decoders: stillhouse_test.py WRITE_EXPORT COORDINATORCTL.

Exit code 77, which ctest shows as skipped, where this Python has no numpy.
"""
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import types
import unittest
import unittest.mock
from contextlib import redirect_stderr, redirect_stdout

try:
    import numpy as np
except ImportError:
    print("skipped: %s has no numpy (`make deps` brings one)" % sys.executable)
    sys.exit(77)

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
sys.path.insert(0, os.path.join(ROOT, "tools"))
import stillhouse  # noqa: E402

WRITE_EXPORT, COORDINATORCTL = sys.argv[1:3]


class PriorsTest(unittest.TestCase):
    """Rare contexts are met by few golden bytes: the tables themselves are compared."""

    def of_encoder(self, file):
        with open(os.path.join(ROOT, "storage", "codec", file), encoding="utf-8") as source:
            return re.findall(r'"([0-9a-f]{16})"', source.read())

    def test_counts(self):
        mine = [row[min(i, len(row) - 1)].ljust(16, "0") for row in stillhouse._COUNT_PRIORS for i in range(12)]
        self.assertEqual(mine, self.of_encoder("sampled.cc"))

    def test_lists_of_ids(self):
        self.assertEqual(stillhouse._GAP_PRIORS + stillhouse._TIMES_PRIORS, self.of_encoder("id_lists.cc"))


    def test_the_documented_ones(self):
        with open(os.path.join(ROOT, "docs", "formats.md"), encoding="utf-8") as text:
            tables = re.findall(r"^(?:[0-9a-f]{16}(?:  |$))+$", text.read(), re.MULTILINE)
        documented = [prior for line in tables for prior in line.split()]
        self.assertEqual(documented, self.of_encoder("id_lists.cc") + self.of_encoder("sampled.cc"))


class GoldenTest(unittest.TestCase):
    """The bytes that tests/storage holds the C++ encoders to."""

    def decode(self, canonical, payload, rows):
        return stillhouse.decode(stillhouse.Section(canonical), bytes.fromhex(payload), rows)

    def test_stats(self):
        rows = self.decode("stats", "01000e00180009000080c0090e00180000200200100700ffbf0000ff7f0d0018000200ffcf08"
                                    "11000c0100009003", 3)
        self.assertEqual(rows["entropy"].tolist(), [1.5, 2.25, 0])
        self.assertEqual(rows["top1_id"].tolist(), [7, 49151, 0])
        self.assertEqual(rows["next_logprob"].tolist(), [-0.5, -17.25, -3])

    def test_sampled(self):
        rows = self.decode("logits/sampled?draws=5", "04040501cd85c4737ff53f", 3)
        self.assertEqual(rows["offsets"].tolist(), [0, 3, 4, 6])
        self.assertEqual(rows["ids"].tolist(), [3, 10, 49151, 0, 3, 10])
        self.assertEqual(rows["counts"].tolist(), [1, 3, 1, 5, 1, 4])

    def test_top(self):
        rows = self.decode("logits/topk?k=3", "05040702b5c6dedba6d87ff53f0a13f807", 2)
        self.assertEqual(rows["offsets"].tolist(), [0, 3, 5])
        self.assertEqual(rows["ids"].tolist(), [3, 10, 49151, 0, 3])
        self.assertEqual((rows["logprobs"][:3].tobytes() + rows["residual"][:1].tobytes()).hex(),
                         "719708bf719770bfee12a9c0ee1281c0")

    def test_hidden(self):
        self.assertEqual(self.decode("hidden/last?hidden_size=1&dtype=bf16", "0300c0", 1)["values"].tolist(), [[-2]])
        rows = self.decode("hidden/3?hidden_size=3&dtype=int8", "06803f00007fff00000000", 2)
        self.assertEqual(rows["values"].tolist(), [[127, -1, 0], [0, 0, 0]])

    def test_names_that_are_unknown_are_refused(self):
        for canonical in ("", "stats?x=1", "logits/sampled", "logits/sampled?draws=0", "logits/topk?k=x", "other"):
            with self.assertRaises(stillhouse.Damaged):
                stillhouse.Section(canonical)


class StillhouseTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        subprocess.run([WRITE_EXPORT, cls.folder.name], check=True)
        cls.path = os.path.join(cls.folder.name, "export")
        with io.open(os.path.join(cls.folder.name, "expected.json")) as file:
            cls.expected = json.load(file)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def run_tool(self, *arguments):
        out, errors = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(errors):
            code = stillhouse.main(list(arguments))
        return code, out.getvalue(), errors.getvalue()

    def test_every_value_is_what_cpp_decodes(self):
        kinds = set()
        with stillhouse.open(self.path) as export:
            self.assertEqual(len(export), len(self.expected))
            for document, expected in zip(export.documents(), self.expected):
                self.assertEqual(document.key.hex(), expected["key"])
                self.assertEqual(document.tokens.tolist(), expected["tokens"])
                self.assertEqual(document.loss_mask.tolist(), expected["loss_mask"])
                for name in ("domain", "chunk", "held_out"):
                    self.assertEqual(getattr(document, name), expected[name])
                self.assertEqual(sorted(document.sections), sorted(expected["sections"]))
                for canonical, wanted in expected["sections"].items():
                    section = document.find(canonical)
                    rows = document.section(canonical)
                    kinds.add((section.kind, section.name))
                    self.assertEqual(
                        hashlib.sha256(stillhouse.canonical_values(section, rows)).hexdigest(), wanted["sha256"],
                        "%s of document %d" % (canonical, document.index))
                    for name, values in (wanted["rows"] or {}).items():
                        np.testing.assert_array_equal(rows[name], np.array(values, dtype=rows[name].dtype))
        self.assertEqual(len(kinds), 6)

    def test_tensors_where_asked_for(self):
        torch = types.SimpleNamespace(from_numpy=lambda array: ("tensor", array))
        with stillhouse.open(self.path) as export:
            document = export.document(1)
            arrays = document.section("logits/sampled?draws=50")
            with unittest.mock.patch.dict(sys.modules, torch=torch):
                tensors = document.section("logits/sampled?draws=50", torch=True)
            for name, (kind, array) in tensors.items():
                self.assertEqual((kind, array.dtype == np.uint16, array.flags.writeable), ("tensor", False, True))
                np.testing.assert_array_equal(array, arrays[name])

    def test_verify_gives_the_digest(self):
        with stillhouse.open(self.path) as export:
            counts = export.verify(decode=True)  # compares the digest with that of the C++ program
            self.assertEqual(counts["documents"], len(self.expected))
            self.assertEqual(export.artefact("tokenizer"), b"{}")
            self.assertGreater(len(export.manifest["files"]), 1)

    def damaged(self, name, change):
        path = os.path.join(self.path, name)
        with io.open(path, "rb") as file:
            good = file.read()
        bad = bytearray(good)
        change(bad)
        try:
            with io.open(path, "wb") as file:
                file.write(bad)
            code, _, errors = self.run_tool("verify", self.path)
        finally:
            with io.open(path, "wb") as file:
                file.write(good)
        self.assertEqual(code, 7)
        self.assertEqual(errors.count("\n"), 1)
        return errors

    def test_damage_is_named(self):
        def flip(at):
            def change(data):
                data[at] ^= 1
            return change

        self.assertIn("another SHA-256", self.damaged("sections-000000.bin", flip(5000)))
        self.assertIn("another SHA-256", self.damaged("artefact-000.bin", flip(0)))
        self.assertIn("cut short", self.damaged("sections-000001.bin", lambda data: data.__delitem__(slice(-8, None))))
        self.assertIn("no export file", self.damaged("sections-000000.bin", flip(0)))
        self.assertIn("plan.bin", self.damaged("plan.bin", flip(0)))
        self.assertIn("MANIFEST.json", self.damaged("MANIFEST.json", flip(0)))
        path, moved = (os.path.join(self.path, name) for name in ("plan.bin", "moved"))
        os.rename(path, moved)
        os.symlink(moved, path)
        code, _, errors = self.run_tool("verify", self.path)
        os.unlink(path)
        os.rename(moved, path)
        self.assertEqual((code, "plan.bin" in errors), (7, True))

    def test_payloads_are_not_trusted(self):
        rng = np.random.default_rng(1)
        with stillhouse.open(self.path) as export:
            for index in (3, 7):
                document = export.document(index)
                for canonical in document.sections:
                    section = export.specs[canonical]
                    payload, count = next(iter(export._payloads(document, section)))
                    for trial in range(30 if len(payload) < 1 << 20 else 3):
                        bad = bytearray(payload[:rng.integers(1, len(payload))] if trial % 2 else payload)
                        for at in rng.integers(0, len(bad), 3):
                            bad[at] ^= 1 << rng.integers(0, 8)
                        try:
                            stillhouse.decode(section, bytes(bad), count)
                        except stillhouse.Damaged:
                            pass

    def test_command_line(self):
        self.assertIn("tokenizer", self.run_tool("ls", self.path)[1])
        self.assertIn("logits/topk?k=24", self.run_tool("stat", self.path, "--seconds", "0.05")[1])
        self.assertIn("whole", self.run_tool("verify", self.path)[1])
        line = json.loads(self.run_tool("dump", self.path, "--document", "0", "--section", "stats")[1])
        self.assertEqual(line["tokens"], self.expected[0]["tokens"])
        self.assertEqual(self.run_tool("dump", self.path, "--document", "0", "--section", "x")[0], 3)
        self.assertEqual(self.run_tool("ls", os.path.join(self.path, "none"))[0], 7)

    def test_a_job_of_a_cache_directory(self):
        cache = os.path.join(self.folder.name, "cache")
        subprocess.run([COORDINATORCTL, "cache", "import", self.path, "--dir", cache], check=True,
                       stdout=subprocess.DEVNULL)
        with stillhouse.open_job("test", directory=cache, program=COORDINATORCTL) as export:
            with stillhouse.open(self.path) as first:
                for name in ("job", "digest", "plan", "artefacts"):
                    self.assertEqual(export.manifest[name], first.manifest[name])  # files: other sizes
            self.assertEqual(os.path.dirname(os.path.dirname(export.folder)), self.folder.name)
        self.assertFalse(os.path.exists(export.folder))
        with self.assertRaisesRegex(RuntimeError, "no job other"):
            stillhouse.open_job("other", directory=cache, program=COORDINATORCTL)
        self.assertEqual(sorted(os.listdir(self.folder.name)), ["cache", "expected.json", "export"])


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
