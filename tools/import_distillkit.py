#!/usr/bin/env python3
"""Makes an export of top-k log-probabilities that DistillKit captured into Parquet files.

    tools/import_distillkit.py DATASET --label qwen3-235b --revision 2025-07 --tokenizer MODEL --to OUT.export
    coordinatorctl cache import OUT.export --dir cache

DATASET is a Parquet file or a folder of them, with the columns input_ids, compressed_logprobs and
bytepacked_indices (and compression_config.yaml beside them, or --config), or input_ids, token_ids and
top_values. Packed rows are taken apart by their column attention_mask, where there is one.

Needs numpy, pyarrow, and PyYAML for a configuration in YAML:  pip install --target FOLDER pyarrow pyyaml, then
PYTHONPATH=FOLDER. Encoding is left to `coordinatorctl cache convert`, which this runs: the codec then exists
once. What lies between them, plain arrays, is described in docs/formats.md; --plain keeps it.

The numbers are the log-probabilities that DistillKit's reader gets, before it rounds them to exact_dtype. Its
curves are fits, so a row's may sum to more than 1; such rows are shifted to sum to 1, and the report tells how
many and by how much.
"""
import argparse
import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile

try:
    import numpy as np
except ImportError:
    sys.exit("import_distillkit: needs numpy (pip install numpy)")

SHIFT_MAX = 0.25  # nats; beyond it the configuration is not the one that the rows were written with
ROWS_OF_A_BATCH = 256
FLOATS = {"float16": ("<f2", 2), "bfloat16": ("<u2", 2), "float32": ("<f4", 4), "float64": ("<f8", 8)}


class Refused(ValueError):
    """What is wrong with the input, in one line."""


def need(condition, what):
    if not condition:
        raise Refused(what)


# --- DistillKit's rows -----------------------------------------------------------------------------

def floats(data, dtype):
    """The last axis of bytes as float32 (float64 for float64)."""
    kind, width = FLOATS[dtype]
    values = np.ascontiguousarray(data).view(kind).reshape(*data.shape[:-1], data.shape[-1] // width)
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values if dtype == "float64" else values.astype(np.float32)


def unpack(data, bits, count):
    """`count` numbers of `bits` bits each, most significant bit first."""
    flat = np.unpackbits(data, axis=-1)[..., :count * bits].reshape(*data.shape[:-1], count, bits)
    return flat.astype(np.int64) @ (np.int64(1) << np.arange(bits - 1, -1, -1, dtype=np.int64))


class Layout:
    """Where the pieces of a row lie, from DistillKit's DistributionQuantizationConfig."""

    def __init__(self, config):
        try:
            self.vocabulary, self.k, self.exact = int(config["d"]), int(config["k"]), int(config["exact_k"])
            self.exact_dtype = config.get("exact_dtype", "float32")
            self.terms = config.get("polynomial_terms") or []
            self.term_dtype = config.get("term_dtype", "float32")
            self.bins = [(b["scale_dtype"], int(b["element_bits"]), int(b["num_elements"]))
                         for b in config.get("residual_bins") or []]
            self.delta, self.normalize = bool(config.get("delta_encoding", True)), bool(config.get("normalize_t"))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Refused("the compression configuration is malformed: %s" % error) from None
        need(1 < self.vocabulary <= 1 << 24 and 0 < self.k <= 65536 and 0 <= self.exact <= self.k,
             "the compression configuration has impossible sizes")
        need(all(t in FLOATS for t in [self.exact_dtype, self.term_dtype] + [b[0] for b in self.bins]) and
             all(t in ("sqrt", "exp") or type(t) is int for t in self.terms) and
             all(0 < b[1] <= 32 and b[2] > 0 for b in self.bins) and
             sum(b[2] for b in self.bins) <= self.k - self.exact,
             "the compression configuration asks for what this program does not know")
        self.index_bits = (self.vocabulary - 1).bit_length()
        self.index_bytes = (self.k * self.index_bits + 7) // 8
        self.row_bytes = (self.exact * FLOATS[self.exact_dtype][1] + len(self.terms) * FLOATS[self.term_dtype][1] +
                          sum(FLOATS[b[0]][1] + (b[1] * b[2] + 7) // 8 for b in self.bins))

    def logprobs(self, data):
        """[rows, row_bytes] of uint8 -> [rows, k] of float32."""
        at = 0

        def take(count):
            nonlocal at
            at += count
            return data[:, at - count:at]

        exact = floats(take(self.exact * FLOATS[self.exact_dtype][1]), self.exact_dtype)
        left = self.k - self.exact
        tail = np.zeros((len(data), left), dtype=np.float32)
        if self.terms:
            coefficients = floats(take(len(self.terms) * FLOATS[self.term_dtype][1]), self.term_dtype)
            t = np.linspace(0, 1, left, dtype=np.float32) if self.normalize else np.arange(left, dtype=np.float32)
            with np.errstate(over="ignore"):
                powers = [np.sqrt(t) if i == "sqrt" else np.exp(t) if i == "exp" else t ** np.float32(i)
                          for i in self.terms]
            for index, power in enumerate(powers):
                tail += power * coefficients[:, index:index + 1].astype(np.float32)
        begin = 0
        for dtype, bits, count in self.bins:
            scale = floats(take(FLOATS[dtype][1]), dtype).astype(np.float32)
            steps = unpack(take((bits * count + 7) // 8), bits, count)
            steps = steps * 2.0 - 1.0 if bits == 1 else steps - float(1 << (bits - 1))
            tail[:, begin:begin + count] += steps.astype(np.float32) * scale
            begin += count
        values = np.concatenate([exact.astype(np.float32), tail], axis=1)
        return np.cumsum(values, axis=1, dtype=np.float32) if self.delta else values

    def ids(self, data):
        return unpack(data, self.index_bits, self.k).astype(np.int32)


def matrix(column, width, dtype, what):
    """A list of rows of equal width as an array."""
    need(all(row is not None and len(row) == width for row in column),
         "%s: rows of another width than %d" % (what, width))
    return np.array(column, dtype=dtype).reshape(len(column), width)


# --- writing ---------------------------------------------------------------------------------------

class Plain:
    """The folder of plain arrays."""

    def __init__(self, folder, k):
        self.folder, self.k = folder, k
        self.files = {name: open(os.path.join(folder, name + ".bin"), "wb")
                      for name in ("lengths", "tokens", "ids", "logprobs")}
        self.documents = self.tokens = self.short = self.shifted = self.dropped = 0
        self.largest_shift = 0.0

    def add(self, tokens, ids, logprobs, where):
        """One document: n tokens, and rows of which the first n-1 count."""
        if len(tokens) < 2:
            self.short += 1
            return
        need(len(ids) >= len(tokens) - 1, "%s: %d rows for %d tokens" % (where, len(ids), len(tokens)))
        ids, logprobs = ids[:len(tokens) - 1], logprobs[:len(tokens) - 1].astype(np.float64)
        known = np.isfinite(logprobs)
        need(not np.any(np.isnan(logprobs) | (logprobs == np.inf)) and np.all(known.any(axis=1)),
             "%s: a row without log-probabilities" % where)
        totals = np.log(np.sum(np.exp(np.where(known, logprobs, -np.inf)), axis=1))
        shift = np.maximum(totals, 0)
        # A curve may also rise above 0 at its end.
        shift = np.maximum(shift, np.max(np.where(known, logprobs, -np.inf), axis=1))
        need(np.all(shift <= SHIFT_MAX),
             "%s: probabilities sum to %.3g: is this the configuration that the rows were written with, and are "
             "they log-probabilities?" % (where, np.exp(totals.max())))
        self.shifted += int(np.sum(shift > 1e-3))
        self.largest_shift = max(self.largest_shift, float(shift.max()))
        logprobs = np.minimum(logprobs - shift[:, None], 0)
        self.dropped += int(np.sum(~known))
        for name, values in (("tokens", np.asarray(tokens, dtype="<i4")),
                             ("ids", np.where(known, ids, -1).astype("<i4")),
                             ("logprobs", np.where(known, logprobs, 0).astype("<f4")),
                             ("lengths", np.array([len(tokens)], dtype="<u4"))):
            self.files[name].write(values.tobytes())
        self.documents += 1
        self.tokens += len(tokens)

    def close(self):
        for file in self.files.values():
            file.close()

    def finish(self, name, label, revision):
        self.close()
        need(self.documents > 0, "the dataset has no document of 2 tokens or more")
        with open(os.path.join(self.folder, "PLAIN.json"), "w", encoding="utf-8") as file:
            json.dump({"format": "stillhouse plain logits", "version": 1, "name": name, "label": label,
                       "revision": revision, "k": self.k}, file)


def split_packed(mask, length):
    """[begin, end) of the documents of a row: runs of one number in the mask, 0 being padding."""
    if mask is None:
        return [(0, length)]
    mask = np.asarray(mask)[:length]
    need(len(mask) == length, "attention_mask and input_ids differ in length")
    edges = [0, *(np.flatnonzero(np.diff(mask)) + 1).tolist(), length]
    return [(a, b) for a, b in zip(edges, edges[1:]) if mask[a] != 0]


def convert_rows(batch, layout, plain, where):
    columns = batch.to_pydict()
    for row, tokens in enumerate(columns["input_ids"]):
        here = "%s row %d" % (where, row)
        need(tokens is not None, "%s: no input_ids" % here)
        if layout is not None:
            width = layout.row_bytes
            logprobs = layout.logprobs(matrix(columns["compressed_logprobs"][row], width, np.uint8, here))
            ids = layout.ids(matrix(columns["bytepacked_indices"][row], layout.index_bytes, np.uint8, here))
        else:
            logprobs = matrix(columns["top_values"][row], plain.k, np.float32, here)
            ids = matrix(columns["token_ids"][row], plain.k, np.int64, here)
        need(len(ids) == len(logprobs), "%s: ids and log-probabilities differ in number" % here)
        for begin, end in split_packed(columns.get("attention_mask", [None] * (row + 1))[row], len(tokens)):
            plain.add(tokens[begin:end], ids[begin:end], logprobs[begin:end], here)


def parquet_files(dataset):
    files = [dataset] if os.path.isfile(dataset) else sorted(
        glob.glob(os.path.join(glob.escape(dataset), "**", "*.parquet"), recursive=True),
        key=lambda path: [(len(part), part) for part in path.split(os.sep)])  # data_2 before data_10
    need(files, "%s: no Parquet file" % dataset)
    return files


def read_config(path):
    with open(path, encoding="utf-8") as file:
        text = file.read()
    if path.endswith(".json"):
        return json.loads(text)
    try:
        import yaml
    except ImportError:
        raise Refused("reading %s needs PyYAML (pip install --target FOLDER pyyaml, PYTHONPATH=FOLDER), or give "
                      "--config as JSON" % path) from None
    return yaml.safe_load(text)


def find_layout(options, names):
    if {"compressed_logprobs", "bytepacked_indices"} <= names:
        folder = options.dataset if os.path.isdir(options.dataset) else os.path.dirname(options.dataset) or "."
        path = options.config or os.path.join(folder, "compression_config.yaml")
        need(os.path.exists(path), "%s: not there; give the capture's configuration with --config" % path)
        config = read_config(path)
        need(isinstance(config, dict), "%s: no configuration" % path)
        return Layout(config.get("logprob_compressor", config))
    need(not {"packed_indices", "exact_values"} <= names,
         "DistillKit's legacy format holds centred logits without their normaliser: log-probabilities cannot be had "
         "from it")
    need({"token_ids", "top_values"} <= names,
         "no columns compressed_logprobs and bytepacked_indices, nor token_ids and top_values; it has: %s" %
         ", ".join(sorted(names)))
    return None


def write_plain(options, folder):
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise Refused("needs pyarrow: pip install --target FOLDER pyarrow, then PYTHONPATH=FOLDER") from None
    files = parquet_files(options.dataset)
    names = set(parquet.ParquetFile(files[0]).schema_arrow.names)
    need("input_ids" in names, "%s: no column input_ids" % files[0])
    layout = find_layout(options, names)
    wanted = [name for name in ("input_ids", "attention_mask", "compressed_logprobs", "bytepacked_indices",
                                "token_ids", "top_values") if name in names]
    plain = None
    try:
        for path in files:
            for number, batch in enumerate(parquet.ParquetFile(path).iter_batches(ROWS_OF_A_BATCH, columns=wanted)):
                if plain is None:
                    k = layout.k if layout is not None else len(batch.column("top_values")[0].as_py()[0])
                    plain = Plain(folder, k)
                convert_rows(batch, layout, plain, "%s batch %d" % (path, number))
        need(plain is not None, "the dataset is empty")
        plain.finish(options.name, options.label, options.revision)
    finally:
        if plain is not None:
            plain.close()
    return plain


def run(options):
    program = options.coordinatorctl
    if program is None:
        built = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "build", "bin", "coordinatorctl")
        program = built if os.path.exists(built) else "coordinatorctl"
    parent = os.path.dirname(os.path.abspath(options.to))
    folder = options.plain or tempfile.mkdtemp(prefix="plain-", dir=parent)
    try:
        if options.plain:
            os.makedirs(folder)
        plain = write_plain(options, folder)
        print("%d documents, %d tokens; %d documents of one token left out; %d rows shifted to sum to 1, by at most "
              "%.2g nats; %d ids without a log-probability left out" %
              (plain.documents, plain.tokens, plain.short, plain.shifted, plain.largest_shift, plain.dropped))
        sys.stdout.flush()
        return subprocess.run([program, "cache", "convert", folder, "--to", options.to,
                               "--tokenizer", options.tokenizer]).returncode
    finally:
        if not options.plain:
            shutil.rmtree(folder, ignore_errors=True)


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Makes an export of logits that DistillKit captured.",
                                     epilog="Exit codes: as coordinatorctl; 1 when the dataset is refused.")
    parser.add_argument("dataset", metavar="DATASET", help="Parquet file, or folder of them")
    parser.add_argument("--label", required=True, help="the teacher, in your words; part of its identity")
    parser.add_argument("--revision", required=True, help="which state of it; part of its identity")
    parser.add_argument("--tokenizer", required=True, help="model, or folder of its tokenizer.json")
    parser.add_argument("--to", required=True, help="export to make; nothing may be there")
    parser.add_argument("--name", default="distillkit", help="of the job: a-z, 0-9, _ and -")
    parser.add_argument("--config", help="the capture's configuration; default: compression_config.yaml in DATASET")
    parser.add_argument("--plain", help="keep the plain arrays in this folder, which is made")
    parser.add_argument("--coordinatorctl", help="program; default: build/bin/coordinatorctl, or that of the PATH")
    options = parser.parse_args(arguments)
    try:
        return run(options)
    except (Refused, OSError, ValueError) as error:
        print("import_distillkit: %s" % error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
