"""tools/import_distillkit.py: import_distillkit_test.py COORDINATORCTL TOKENIZER.

Rows are written here as DistillKit writes them; from there they go through `cache convert` and `cache import`.
Exit code 77, which ctest shows as skipped, where this Python has no numpy. Reading Parquet itself is tested where
pyarrow is installed.
"""
import io
import json
import os
import subprocess
import sys
import tempfile
import unittest
from contextlib import redirect_stderr, redirect_stdout

try:
    import numpy as np
except ImportError:
    print("skipped: %s has no numpy (`make deps` brings one)" % sys.executable)
    sys.exit(77)
try:
    import pyarrow
    import pyarrow.parquet
except ImportError:
    pyarrow = None

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tools"))
import import_distillkit  # noqa: E402
import stillhouse  # noqa: E402

COORDINATORCTL, TOKENIZER = sys.argv[1:3]
VOCABULARY, K = 290, 12
CONFIG = {"d": VOCABULARY, "k": K, "exact_k": 4, "exact_dtype": "float32", "polynomial_terms": [0, 1, "sqrt"],
          "term_dtype": "float32", "delta_encoding": False, "error_diffusion": False,
          "residual_bins": [{"scale_dtype": "float16", "element_bits": 7, "num_elements": 5},
                            {"scale_dtype": "float32", "element_bits": 3, "num_elements": 3}]}


def pack(numbers, bits):
    shifts = np.arange(bits - 1, -1, -1)
    return np.packbits(((numbers[..., None] >> shifts) & 1).astype(np.uint8).reshape(len(numbers), -1), axis=-1)


def write_row(logprobs, config):
    """[rows, k], descending, to the bytes of compressed_logprobs."""
    values = logprobs.astype(np.float32)
    if config["delta_encoding"]:
        values = np.concatenate([values[:, :1], np.diff(values, axis=1)], axis=1)
    exact, tail = values[:, :config["exact_k"]], values[:, config["exact_k"]:]
    chunks = [np.ascontiguousarray(exact).view(np.uint8)]
    if config["polynomial_terms"]:
        t = np.arange(tail.shape[1], dtype=np.float32)
        basis = np.stack([np.sqrt(t) if i == "sqrt" else t ** i for i in config["polynomial_terms"]], axis=1)
        fit = np.linalg.lstsq(basis, tail.T, rcond=None)[0].T.astype(np.float32)
        chunks.append(np.ascontiguousarray(fit).view(np.uint8))
        tail = tail - fit @ basis.T
    begin = 0
    for dtype, bits, count in ((b["scale_dtype"], b["element_bits"], b["num_elements"])
                               for b in config["residual_bins"]):
        part = tail[:, begin:begin + count]
        begin += count
        scale = (np.abs(part).max(axis=1, keepdims=True) / (1 << (bits - 1))).astype(dtype)
        scale[scale == 0] = 1
        half = 1 << (bits - 1)
        steps = np.clip(np.round(part / scale.astype(np.float32)), -half, half - 1).astype(np.int64) + half
        chunks += [np.ascontiguousarray(scale).view(np.uint8), pack(steps, bits)]
    return np.concatenate(chunks, axis=1)


def capture(rng, tokens):
    """What a teacher says: ids by falling log-probability, of whole distributions."""
    logits = rng.normal(size=(tokens, VOCABULARY)) * 3
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    ids = np.argsort(-logprobs, axis=1)[:, :K]
    return ids, np.take_along_axis(logprobs, ids, axis=1)


class Batch:
    def __init__(self, columns):
        self.columns = columns

    def to_pydict(self):
        return self.columns


def columns_of(rng, lengths, rows_less=0):
    columns = {"input_ids": [], "compressed_logprobs": [], "bytepacked_indices": []}
    truth = []
    for length in lengths:
        ids, logprobs = capture(rng, length)
        columns["input_ids"].append(rng.integers(0, VOCABULARY, length).tolist())
        columns["compressed_logprobs"].append(write_row(logprobs, CONFIG)[:length - rows_less].tolist())
        columns["bytepacked_indices"].append(pack(ids, 9)[:length - rows_less].tolist())
        truth.append((ids, logprobs))
    return columns, truth


class LayoutTest(unittest.TestCase):
    def test_rows_come_back(self):
        ids, logprobs = capture(np.random.default_rng(1), 50)
        for changes in ({}, {"delta_encoding": True, "polynomial_terms": [], "residual_bins": [
                {"scale_dtype": "float32", "element_bits": 16, "num_elements": 8}]},
                        {"polynomial_terms": [0, 1, 2], "residual_bins": []}):
            config = {**CONFIG, **changes}
            layout = import_distillkit.Layout(config)
            data = write_row(logprobs, config)
            self.assertEqual(data.shape[1], layout.row_bytes)
            decoded = layout.logprobs(data)
            np.testing.assert_allclose(decoded[:, :4], logprobs[:, :4], atol=1e-5)
            np.testing.assert_allclose(decoded, logprobs, atol=0.1 if config["residual_bins"] else 0.6)
            np.testing.assert_array_equal(layout.ids(pack(ids, 9)), ids)

    def test_bfloat16_and_signs(self):
        np.testing.assert_array_equal(import_distillkit.floats(np.array([[0x80, 0xbf]], np.uint8), "bfloat16"), [[-1]])
        for bad in ({}, {**CONFIG, "k": 0}, {**CONFIG, "exact_k": 99}, {**CONFIG, "polynomial_terms": ["cos"]},
                    {**CONFIG, "term_dtype": "int4"}, {**CONFIG, "residual_bins": [{}]}):
            with self.assertRaises(import_distillkit.Refused):
                import_distillkit.Layout(bad)

    def test_packed_rows_are_taken_apart(self):
        self.assertEqual(import_distillkit.split_packed([1, 1, 1, 2, 2, 0, 0], 7), [(0, 3), (3, 5)])
        self.assertEqual(import_distillkit.split_packed(None, 7), [(0, 7)])


class ImportTest(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.addCleanup(self.temporary.cleanup)
        self.folder = self.temporary.name

    def at(self, name):
        return os.path.join(self.folder, name)

    def plain(self, columns, layout=CONFIG):
        os.mkdir(self.at("plain"))
        plain = import_distillkit.Plain(self.at("plain"), K)
        self.addCleanup(plain.close)
        import_distillkit.convert_rows(Batch(columns), import_distillkit.Layout(layout), plain, "test")
        plain.finish("logits", "teacher", "1")
        return plain

    def convert(self):
        return subprocess.run([COORDINATORCTL, "cache", "convert", self.at("plain"), "--to", self.at("export"),
                               "--tokenizer", TOKENIZER, "-o", "json"], capture_output=True, text=True)

    def compare(self, columns, truth):
        """Every document of the export with what was captured; the export with what a cache makes of it."""
        by_tokens = {tuple(tokens): rows for tokens, rows in zip(columns["input_ids"], truth)}
        with stillhouse.open(self.at("export")) as export:
            export.verify(decode=True)
            self.assertEqual(len(export), len(by_tokens))
            for document in export.documents():
                ids, logprobs = by_tokens[tuple(document.tokens.tolist())]
                rows = document.section("logits/topk")
                for row in range(document.rows):
                    order = np.argsort(ids[row])
                    begin, end = rows["offsets"][row:row + 2]
                    np.testing.assert_array_equal(rows["ids"][begin:end], ids[row][order])
                    np.testing.assert_allclose(rows["logprobs"][begin:end], logprobs[row][order], atol=0.2)
                    residual = np.log(1 - np.exp(logprobs[row]).sum())
                    self.assertLess(abs(np.exp(rows["residual"][row]) - np.exp(residual)), 0.03)
            digest = export.manifest["digest"]
        subprocess.run([COORDINATORCTL, "cache", "import", self.at("export"), "--dir", self.at("cache")], check=True,
                       stdout=subprocess.DEVNULL)
        found = subprocess.run([COORDINATORCTL, "cache", "digest", "logits", "--dir", self.at("cache")],
                               capture_output=True, text=True).stdout
        self.assertEqual(found.strip(), digest)

    def test_from_rows_to_a_cache(self):
        columns, truth = columns_of(np.random.default_rng(2), [2, 17, 60, 1, 33], rows_less=1)
        plain = self.plain(columns)
        self.assertEqual((plain.documents, plain.tokens, plain.short), (4, 112, 1))
        converted = self.convert()
        self.assertEqual(converted.returncode, 0, converted.stderr)
        del columns["input_ids"][3], truth[3]
        self.compare(columns, truth)
        teacher = json.loads(converted.stdout)["teacher"]
        with open(self.at("plain/PLAIN.json"), encoding="utf-8") as file:
            described = json.load(file)
        with open(self.at("plain/PLAIN.json"), "w", encoding="utf-8") as file:
            json.dump({**described, "revision": "2"}, file)
        os.rename(self.at("export"), self.at("first"))
        self.assertNotEqual(json.loads(self.convert().stdout)["teacher"], teacher)

    def refused(self, name, change):
        path = self.at("plain/" + name)
        with open(path, "rb") as file:
            good = file.read()
        with open(path, "wb") as file:
            file.write(change(good))
        done = self.convert()
        with open(path, "wb") as file:
            file.write(good)
        self.assertEqual(done.returncode, 7, done.stderr)
        self.assertEqual(done.stderr.count("\n"), 1)
        self.assertFalse(os.path.exists(self.at("export")))
        return done.stderr

    def test_plain_arrays_are_not_trusted(self):
        columns, _ = columns_of(np.random.default_rng(3), [5, 9])
        self.plain(columns)
        number = np.array([70000], "<i4").tobytes()
        self.assertIn("has the id 70000", self.refused("tokens.bin", lambda data: number + data[4:]))
        self.assertIn("row 0: id 70000", self.refused("ids.bin", lambda data: number + data[4:]))
        self.assertIn("no id, or one twice", self.refused("ids.bin", lambda data: data[4:8] + data[4:]))
        self.assertIn("log-probability of", self.refused(
            "logprobs.bin", lambda data: np.array([np.nan], "<f4").tobytes() + data[4:]))
        self.assertIn("sum to", self.refused("logprobs.bin", lambda data: bytes(8) + data[8:]))
        self.assertIn("should have", self.refused("logprobs.bin", lambda data: data[:-4]))
        self.assertIn("a document of 0 tokens", self.refused("lengths.bin", lambda data: bytes(4) + data[4:]))
        self.assertIn("no array of lengths", self.refused("lengths.bin", lambda data: b""))
        self.assertIn("k is no number", self.refused("PLAIN.json", lambda data: data.replace(b'"k": 12', b'"k": 0')))
        self.assertIn("version 1", self.refused("PLAIN.json", lambda data: b"{}"))

    def test_rows_that_are_no_distributions_are_refused(self):
        columns, _ = columns_of(np.random.default_rng(4), [6])
        columns["compressed_logprobs"][0] = write_row(np.zeros((6, K)), CONFIG).tolist()
        with self.assertRaisesRegex(import_distillkit.Refused, "test row 0: probabilities sum to"):
            self.plain(columns)

    def test_without_pyarrow_it_says_so(self):
        if pyarrow is not None:
            self.skipTest("pyarrow is installed")
        errors = io.StringIO()
        with redirect_stderr(errors):
            code = import_distillkit.main([self.folder, "--label", "t", "--revision", "1", "--tokenizer", TOKENIZER,
                                           "--to", self.at("export")])
        self.assertEqual(code, 1)
        self.assertIn("pip install --target FOLDER pyarrow", errors.getvalue())

    @unittest.skipIf(pyarrow is None, "no pyarrow")
    def test_parquet(self):
        columns, truth = columns_of(np.random.default_rng(5), [20, 30, 40])
        os.mkdir(self.at("data"))
        pyarrow.parquet.write_table(pyarrow.table(columns), self.at("data/data_0.parquet"))
        with open(self.at("config.json"), "w", encoding="utf-8") as file:
            json.dump(CONFIG, file)
        out = io.StringIO()
        with redirect_stdout(out):
            code = import_distillkit.main(
                [self.at("data"), "--label", "t", "--revision", "1", "--tokenizer", TOKENIZER, "--name", "logits",
                 "--to", self.at("export"), "--config", self.at("config.json"), "--coordinatorctl", COORDINATORCTL])
        self.assertEqual(code, 0)
        self.assertIn("3 documents, 90 tokens", out.getvalue())
        self.compare(columns, truth)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
