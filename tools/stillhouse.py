#!/usr/bin/env python3
"""Reads what `coordinatorctl cache export` wrote: sections of a teacher as arrays, by document.

One file, needs numpy and nothing else; give torch=True to get tensors, where torch is installed.

    import stillhouse
    with stillhouse.open("handbook.export") as export:
        for document in export.documents():            # in the order of the plan
            document.tokens, document.loss_mask        # int32, uint8
            for name in document.sections:
                rows = document.section(name)          # a dict of arrays, see Section

Row t is the teacher's state after token t; its label is token t+1, counted where loss_mask[t+1] is 1. A
document of n tokens has n-1 rows.

The bytes are described in docs/formats.md. Nothing here trusts a file: Damaged says what is wrong with it.
Decoding is numpy's for stats and hidden states; ids are decoded symbol by symbol, which takes some
milliseconds a hundred rows (`stillhouse.py stat EXPORT` measures it). For more, decode once and keep arrays.
"""
import argparse
import bisect
import hashlib
import io
import json
import mmap
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time

import numpy as np

VERSION = 1  # of MANIFEST.json and of section files
PART_BYTES = 4 << 20
TOP_IDS_MAX = 1 << 20


class Damaged(ValueError):
    """The export is not what its manifest says, or a payload is malformed."""


def _need(condition, what):
    if not condition:
        raise Damaged(what)


# --- names and identities -----------------------------------------------------------------------

def _field(data):
    return struct.pack("<Q", len(data)) + data


def section_key(teacher, document_key, canonical):
    """The identity of a section: 32 bytes. `teacher` and `document_key` are 32 bytes."""
    return hashlib.sha256(_field(b"stillhouse section 1") + teacher + document_key +
                          _field(canonical.encode()) + _field(b"all positions")).digest()


class Section:
    """What a canonical name says: `name` without parameters, `kind` and `parameters`.

    Arrays of a section of n rows:
      stats           entropy, logsumexp, top1_logprob, next_logprob (float32), top1_id (int32), each [n]
      logits/sampled  offsets [n+1] (int64); ids (int32) and counts (uint16) of row r at
                      offsets[r]:offsets[r+1], ids ascending, counts summing to `draws`
      logits/topk,    offsets [n+1]; ids (int32) and logprobs (float32) of row r likewise; residual [n]
      logits/topp     (float32): log-probability of all other ids together
      hidden/…        values [n, hidden_size] (float32, exactly the bfloat16 that were stored)
    """

    def __init__(self, canonical):
        self.canonical = canonical
        self.name, _, text = canonical.partition("?")
        self.parameters = dict(item.partition("=")[::2] for item in text.split("&") if item)
        try:
            if self.name == "stats" and not text:
                self.kind, row = "stats", 20
            elif self.name == "logits/sampled":
                self.kind = "sampled"
                self.draws = self._number("draws")
                row = 4 + 6 * self.draws
            elif self.name in ("logits/topk", "logits/topp"):
                self.kind = "top"
                self.k = self._number("k" if self.name == "logits/topk" else "k_max")
                row = 8 + 8 * self.k
            elif self.name.startswith("hidden/"):
                self.kind = "hidden"
                self.hidden_size = self._number("hidden_size")
                row = 2 * self.hidden_size
            else:
                raise KeyError
        except (KeyError, ValueError):
            raise Damaged("'%s' is no section that this program knows" % canonical[:100]) from None
        self.rows_per_part = PART_BYTES // row
        _need(self.rows_per_part > 0, "'%s' has rows that are too long" % canonical[:100])

    def _number(self, key):
        value = int(self.parameters[key])
        if value < 1:
            raise ValueError
        return value


# --- bits, varints, the range coder ---------------------------------------------------------------

def _varint(data, at):
    value = shift = 0
    while True:
        _need(at < len(data) and shift < 64, "a payload is cut short")
        byte = data[at]
        at += 1
        value |= (byte & 0x7f) << shift
        shift += 7
        if byte < 0x80:
            return value, at


class _Bits:
    """Bits of a byte string, least significant first."""

    def __init__(self, data):
        self.value = int.from_bytes(data[:4096], "little")
        self.data, self.next = data, 4096
        self.left = 8 * min(len(data), 4096)

    def get(self, width):
        if width > self.left:  # shifting a short number is cheap, one of the whole payload is not
            block = self.data[self.next:self.next + 4096]
            self.value |= int.from_bytes(block, "little") << self.left
            self.left += 8 * len(block)
            self.next += 4096
            _need(width <= self.left, "a payload is cut short")
        value = self.value & ((1 << width) - 1)
        self.value >>= width
        self.left -= width
        return value

    def at_end(self):
        return self.next >= len(self.data) and self.left < 8 and self.value == 0


class _Model:
    """What is known of the distribution of a symbol from 0 to 15."""
    __slots__ = ("weights", "below", "interval", "until")

    def __init__(self, weights):
        self.weights = list(weights)
        self.interval = 2
        self.rebuild()

    def rebuild(self):
        weights = self.weights
        total = sum(weights)
        if total > 1 << 15:
            self.weights = weights = [(w + 1) // 2 for w in weights]
            total = sum(weights)
        scale = (((1 << 15) - 16) << 32) // total
        below, before = [], 0
        for symbol, weight in enumerate(weights):
            below.append((before * scale >> 32) + symbol)
            before += weight
        below.append(1 << 15)
        self.below = below
        self.until = self.interval


def _prior(digits):
    return [((181 if d % 2 else 128) << (d // 2)) >> 7 for d in (int(c, 16) for c in digits)]


def _geometric(eighths):
    weights, rest = [], 512 << 8
    for symbol in range(16):
        beyond = rest // (eighths + 8) * eighths
        weights.append(max(1, (rest - beyond if symbol < 15 else rest) >> 8))
        rest = beyond
    return weights


class _Models:
    """Models by number, each made when it is first used."""

    def __init__(self, priors):
        self.priors = priors
        self.models = [None] * len(priors)

    def __getitem__(self, number):
        model = self.models[number]
        if model is None:
            model = self.models[number] = _Model(self.priors[number])
        return model


class _Symbols:
    """The range decoder."""

    def __init__(self, data):
        self.size = len(data)
        self.data = data + bytes(16)
        self.code = int.from_bytes(self.data[:4], "big")
        self.range = 0xffffffff
        self.next = 4

    def get(self, model):
        unit = self.range >> 15
        below = model.below
        symbol = bisect.bisect_right(below, min(self.code // unit, 32767)) - 1
        low = below[symbol]
        code = self.code - low * unit
        width = (below[symbol + 1] - low) * unit
        while width < 1 << 24:
            width <<= 8
            code = (code << 8 | self.data[self.next]) & 0xffffffff
            self.next += 1
            _need(self.next <= self.size + 3, "a payload is cut short")
        self.code, self.range = code, width
        model.weights[symbol] += 16
        model.until -= 1
        if model.until == 0:
            model.interval = min(model.interval * 2, 256)
            model.rebuild()
        return symbol

    def at_end(self):
        return self.next == self.size + 3


def _magnitude(model, symbols, bits):
    symbol = symbols.get(model)
    if symbol < 4:
        return symbol
    if symbol < 15:
        return ((2 + (symbol & 1)) << (symbol // 2 - 1)) + bits.get(symbol // 2 - 1)
    width = bits.get(5)
    return 191 + ((1 << width) | bits.get(width))


# --- lists of ids -------------------------------------------------------------------------------

_GAP_PRIORS = """fedb842000000000 deeda73000000000 cdedca6200000000 bcdedca620000000 9acdedc950000000
79bcdedb82000000 689bddeda4000000 578acdedc7200000 647abceed9300000 65669bdedbb73210""".split()
_TIMES_PRIORS = """fdbaa88764530000 fdb9977553200000 fdb9977431000000 fda8855210000000 fc97643110000000
fc86632000000000 fb75521000000000 fb74411000000000 fb74310000000000 fa73641100000000""".split()
_GAPS = [_prior(_GAP_PRIORS[min(i, 9)]) for i in range(16)]
_TIMES = [_prior(_TIMES_PRIORS[min(i, 9)]) for i in range(16)]
_ROWS = ([[64] * (i + 1) + [0] * (15 - i) for i in range(16)] +
         [_geometric(2 * i + 1) for i in range(16)] +
         [_geometric(20 if i % 2 == 0 else 28) for i in range(64)])


def _rows_of_id(row_count, times, models, symbols, bits, out):
    at = 0
    for wanted in range(times, 0, -1):
        available = row_count - at
        if available == wanted:
            out.extend(range(at, at + wanted))
            return
        if wanted == 1:
            shift = max(0, (available - 1).bit_length() - 4)
            context = (available - 1) >> shift
        else:
            quarters = 4 * (available - wanted) // (wanted + 1)
            shift = max(0, quarters.bit_length() - 4)
            context = 16 + quarters if shift == 0 else (
                32 + 2 * (shift - 1) + (quarters >> (shift + 2)) % 2)
        model = models[context]
        more = units = symbols.get(model)
        while more == 15 and wanted > 1 and units <= row_count:
            more = symbols.get(model)
            units += more
        skipped = (units << shift) + bits.get(shift)
        _need(skipped <= available - wanted, "a list of ids names a row beyond the last")
        at += skipped
        out.append(at)
        at += 1


def _id_lists(distinct, row_count, ids_max, symbols, bits):
    """offsets, ids and, for each, whether it is in 1 (0), 2 to 7 (1) or more (2) rows."""
    gap_models, times_models, row_models = _Models(_GAPS), _Models(_TIMES), _Models(_ROWS)
    ids, lengths, rows = [], [], []
    last = before = 4
    current = -1
    for _ in range(distinct):
        symbol = symbols.get(gap_models[(last + before) // 2])
        last, before = symbol, last
        width = symbol if symbol < 15 else bits.get(5)
        current += 1 << width | bits.get(width)
        _need(current < 1 << 24, "an id is beyond every vocabulary")
        times = _magnitude(times_models[symbol], symbols, bits) + 1
        _need(times <= row_count and len(rows) + times <= ids_max, "more ids than the rows can hold")
        _rows_of_id(row_count, times, row_models, symbols, bits, rows)
        ids.append(current)
        lengths.append(times)
    rows = np.array(rows, dtype=np.int64)
    lengths = np.array(lengths, dtype=np.int64)
    order = np.argsort(rows, kind="stable")  # ids ascend within a row because the lists do
    often = np.where(lengths == 1, 0, np.where(lengths < 8, 1, 2))
    offsets = np.zeros(row_count + 1, dtype=np.int64)
    np.cumsum(np.bincount(rows, minlength=row_count), out=offsets[1:])
    return (offsets, np.repeat(np.array(ids, dtype=np.int32), lengths)[order],
            np.repeat(often, lengths)[order])


def _streams(payload):
    distinct, at = _varint(payload, 1)
    size, at = _varint(payload, at)
    _need(at + size <= len(payload), "a payload is cut short")
    return distinct, _Symbols(payload[at:at + size]), _Bits(payload[at + size:])


def _check_end(symbols, bits):
    _need(symbols.at_end() and bits.at_end(), "bytes of a payload are left over")


# --- codecs -------------------------------------------------------------------------------------

_COUNT_PRIORS = [row.split() for row in """
ff ff ff ff fbf faaf f987e fa559e fa4048f f860988f f0507009e f8608600af
ff ff ff ff edf faaf fb8af eb77bf fa848af e95070bf e8557759f ea7800059f
ff ff ff ff ecf cccf bc9bf c799cf ba78bbf c7077aaf c8846069f c9559057af
fe fe fcc fbab fa8ab fa86ba f9779aa fb8766b9 fa87768aa fa735687b7 fa7426468ab fa72746484d
ff ff fde fccd fbbdc fba9db fc99bdd fb9899dc fa97799cd fb877579dc fb7766658bd fa93764277f
ff ff fef fdee eccee ebbbed ebbbbed eb9aaaed eba79abdd eba88589ed eb9887668bf ea87756658f
fb4 fb853 fb87632 fb867641 fb86766310 fb7666754 fb86657663 fa856566761 fb856474687 fb756652689 fa7863753ac
fd83 fda873 fca9975 fca898741 fc9898965 fb98889884 fb988788961 fb978788a86 fb9676779aa fb97777689c fb67856676d
fea64 fdca964 fdbab985 fdbabaa75 fdbabab991 fcbababaa7 fca9b9baba5 fca9a9aabba fca9a9a9bbc eba8a8989ae eca8888798f
""".strip().split("\n")]
_COUNTS = [_prior(row[min(i, len(row) - 1)].ljust(16, "0")) for row in _COUNT_PRIORS for i in range(16)]


def _decode_sampled(section, payload, row_count):
    distinct, symbols, bits = _streams(payload)
    draws = section.draws
    offsets, ids, often = _id_lists(distinct, row_count, row_count * draws, symbols, bits)
    models = _Models(_COUNTS)
    counts = []
    ends, often = offsets.tolist(), often.tolist()
    for row in range(row_count):
        at, end = ends[row], ends[row + 1]
        left = end - at
        _need(0 < left <= draws, "a row has no draws, or too many")
        spare = draws - left
        while left > 1 and spare > 0:
            quarters = 4 * spare // left
            if quarters >= 4:
                width = quarters.bit_length()
                quarters = min(15, 2 * width - 2 + (quarters >> (width - 2)) % 2)
            group = 0 if left == 2 else 1 if left < 5 else 2
            more = _magnitude(models[(group * 3 + often[at]) * 16 + quarters], symbols, bits)
            _need(more <= spare, "a row has more draws than it should")
            counts.append(1 + more)
            spare -= more
            at += 1
            left -= 1
        counts.extend([1] * (left - 1))
        counts.append(1 + spare)
    _check_end(symbols, bits)
    return {"offsets": offsets, "ids": ids, "counts": np.array(counts, dtype=np.uint16)}


def _level_tables():
    runs = ((224, 384, 8), (192, 256, 4), (128, 128, 2), (0, 0, 1))
    nats = []
    for level in range(256):
        begin, first, step = next(run for run in runs if run[0] <= level)
        nats.append(first + (level - begin) * step)
    power, at, probability = 1 << 62, 0, []
    for level in range(256):
        while at < nats[level]:
            power = (power * 0x3e07ead5116baf23 + (1 << 61)) >> 62
            at += 1
        probability.append((power + (1 << 21)) >> 22)
    return np.array(nats, dtype=np.int64), np.array(probability, dtype=np.int64)


_ONE = 1 << 40
_NATS32, _PROBABILITY = _level_tables()


def _divide(a, b):  # towards zero, as C++ does
    return a // b if a >= 0 else -(-a // b)


def _ln_fixed(total):
    """ln(total / 2^40) * 2^40, in integers, so that every machine gives the same."""
    exponent = total.bit_length() - 41
    m = total >> exponent if exponent >= 0 else total << -exponent
    if m >= 1554944255988:
        m >>= 1
        exponent += 1
    y = _divide((m - _ONE) * _ONE, m + _ONE)
    square = _divide(y * y, _ONE)
    power = series = y
    for n in range(3, 14, 2):
        power = _divide(power * square, _ONE)
        series += _divide(power, n)
    return 2 * series + exponent * 762123384786


def _decode_top(section, payload, row_count):
    distinct, symbols, bits = _streams(payload)
    ids_max = min(TOP_IDS_MAX, row_count * section.k)
    offsets, ids, often = _id_lists(distinct, row_count, ids_max, symbols, bits)
    models, residual_model = _Models([[8] * 16] * 51), _Model([8] * 16)
    levels, residuals = [], []
    ends, often = offsets.tolist(), often.tolist()
    for row in range(row_count):
        _need(0 < ends[row + 1] - ends[row] <= section.k, "a row has no ids, or too many")
        previous = 16
        for i in range(ends[row], ends[row + 1]):
            previous = symbols.get(models[previous * 3 + often[i]])
            levels.append(previous << 4 | bits.get(4))
        residuals.append(symbols.get(residual_model) << 4 | bits.get(4))
    _check_end(symbols, bits)
    levels, residuals = np.array(levels, dtype=np.int64), np.array(residuals, dtype=np.int64)
    totals = np.add.reduceat(_PROBABILITY[levels], offsets[:-1]) + _PROBABILITY[residuals]
    shifts = np.array([_ln_fixed(total) for total in totals.tolist()], dtype=np.int64)
    _need(np.all(np.abs(shifts) <= _ONE // 4), "the probabilities of a row do not sum to 1")

    def logprobs(of, shift):
        nats = _NATS32[of] * (_ONE // 32) + shift
        return (-nats.astype(np.float64) / _ONE).astype(np.float32)

    return {"offsets": offsets, "ids": ids,
            "logprobs": logprobs(levels, np.repeat(shifts, np.diff(offsets))),
            "residual": logprobs(residuals, shifts)}


def _decode_stats(_, payload, row_count):
    at, columns = 1, []
    for _ in range(5):
        least, at = _varint(payload, at)
        _need(at < len(payload) and payload[at] <= 40 and least < 1 << 40, "a column is malformed")
        width = payload[at]
        size = (row_count * width + 7) // 8
        packed = np.frombuffer(payload, dtype=np.uint8, count=-1, offset=at + 1)[:size]
        _need(len(packed) == size, "a payload is cut short")
        bits = np.unpackbits(packed, bitorder="little")
        _need(not bits[row_count * width:].any(), "bits of a payload are left over")
        values = bits[:row_count * width].reshape(row_count, width).astype(np.int64)
        values = values @ (np.int64(1) << np.arange(width, dtype=np.int64))
        columns.append(values + ((least >> 1) ^ -(least & 1)))
        at += 1 + size
    _need(at == len(payload), "bytes of a payload are left over")
    _need(np.all((columns[2] >= 0) & (columns[2] < 1 << 24)), "an id is beyond every vocabulary")
    values = [column.astype(np.float64) / 4096 for column in columns]
    names = ("entropy", "logsumexp", "top1_id", "top1_logprob", "next_logprob")
    return {name: columns[i].astype(np.int32) if i == 2 else values[i].astype(np.float32)
            for i, name in enumerate(names)}


def _from_bf16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _decode_hidden(section, payload, row_count):
    width = section.hidden_size
    if payload[0] == 3:
        _need(len(payload) == 1 + 2 * row_count * width, "hidden states of another size")
        values = _from_bf16(np.frombuffer(payload, dtype="<u2", offset=1))
        _need(np.all(np.isfinite(values)), "a value is not finite")
        return {"values": values.reshape(row_count, width)}
    groups = (width + 63) // 64
    _need(len(payload) == 1 + row_count * (2 * groups + width), "hidden states of another size")
    scales = np.frombuffer(payload, dtype="<u2", offset=1, count=row_count * groups)
    _need(np.all(scales <= 0x7881), "a scale is negative, too large or no number")
    steps = np.frombuffer(payload, dtype=np.int8, offset=1 + 2 * len(scales)).reshape(row_count, width)
    _need(not np.any(steps == -128), "a byte of -128")
    scales = np.repeat(_from_bf16(scales).reshape(row_count, groups), 64, axis=1)[:, :width]
    bits = (steps.astype(np.float32) * scales).view(np.uint32)
    bits = (bits + np.uint32(0x7fff) + ((bits >> 16) & 1)) >> 16 << 16  # to the nearest bfloat16
    values = bits.view(np.float32)
    _need(np.all(np.isfinite(values)), "a value is not finite")
    return {"values": values}


_DECODERS = {("stats", 1): _decode_stats, ("hidden", 3): _decode_hidden, ("sampled", 4): _decode_sampled,
             ("top", 5): _decode_top, ("hidden", 6): _decode_hidden}


def decode(section, payload, row_count):
    """The arrays of one part. `section` is a Section."""
    _need(len(payload) > 0, "a payload is empty")
    _need(0 < row_count <= section.rows_per_part, "a part has too many rows")
    decoder = _DECODERS.get((section.kind, payload[0]))
    _need(decoder, "codec %d of %s is not known to this program" % (payload[0], section.name))
    return decoder(section, payload, row_count)


def _join(section, parts):
    """Parts one after another."""
    if len(parts) == 1:
        return parts[0]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if "offsets" in joined:
        begins = np.cumsum([0] + [part["offsets"][-1] for part in parts])
        joined["offsets"] = np.concatenate(
            [[0]] + [part["offsets"][1:] + begin for part, begin in zip(parts, begins)])
    return joined


def canonical_values(section, rows):
    """What digests are made of: bytes, row by row (docs/formats.md)."""
    if section.kind == "hidden":
        return (rows["values"].view(np.uint32) >> 16).astype("<u2").tobytes()
    if section.kind == "stats":
        names = ("entropy", "logsumexp", "top1_id", "top1_logprob", "next_logprob")
        return np.rec.fromarrays([rows[n] for n in names], formats=["<f4", "<f4", "<i4", "<f4", "<f4"]
                                 ).tobytes()
    value, size = ("counts", "<u2") if section.kind == "sampled" else ("logprobs", "<f4")
    entries = np.rec.fromarrays([rows["ids"], rows[value]], formats=["<i4", size]).tobytes()
    width, offsets, out = len(entries) // max(1, len(rows["ids"])), rows["offsets"].tolist(), []
    for row in range(len(offsets) - 1):
        out += [struct.pack("<I", offsets[row + 1] - offsets[row]),
                entries[offsets[row] * width:offsets[row + 1] * width]]
        if section.kind == "top":
            out.append(rows["residual"][row].astype("<f4").tobytes())
    return b"".join(out)


# --- files --------------------------------------------------------------------------------------

_INDEX = np.dtype([("key", "u1", (32,)), ("row_begin", "<u4"), ("row_count", "<u4"), ("offset", "<u8"),
                   ("record_bytes", "<u4"), ("spec", "<u4")])
_HEADER, _FOOTER, _RECORD = struct.Struct("<8sIIII"), struct.Struct("<QQQ8s8s"), struct.Struct("<4sBBHII32sIII")
_PLAN = struct.Struct("<8sIIQ32sIIIIIIIIQQQ")


def _map(folder, name):
    """A regular file of the export, and no link out of it, as a memory map."""
    path = os.path.join(folder, name)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Damaged("%s: %s" % (path, error.strerror)) from None
    with io.open(fd, "rb") as file:
        info = os.fstat(fd)
        _need(info.st_mode & 0o170000 == 0o100000 and info.st_size > 0, "%s: not a file of data" % path)
        return mmap.mmap(fd, 0, access=mmap.ACCESS_READ)


class _Plan:
    def __init__(self, data):
        _need(len(data) >= _PLAN.size, "plan.bin is cut short")
        (magic, version, self.vocabulary, size, self.tokenizer, self.max_tokens, self.shuffle_window,
         self.documents, self.chunks, self.training_chunks, batches, domains, domain_bytes, tokens, self.seed,
         _) = _PLAN.unpack_from(data)
        _need(magic == b"SHPLAN\r\n" and version == 1, "plan.bin is no plan of version 1")
        at = _PLAN.size

        def take(dtype, count, shape=None):
            nonlocal at
            dtype = np.dtype(dtype)
            _need(count * dtype.itemsize <= len(data) - at, "plan.bin is cut short")
            array = np.frombuffer(data, dtype=dtype, count=count, offset=at)
            at += count * dtype.itemsize
            return array if shape is None else array.reshape(shape)

        self.keys = take("u1", 32 * self.documents, (self.documents, 32))
        self.offsets = take("<u8", self.documents + 1).astype(np.int64)
        self.document_domains = take("<u4", self.documents)
        self.chunk_begins = take("<u4", self.chunks + 1).astype(np.int64)
        take("<u4", self.chunks + 1)
        take("u1", 12 * batches)
        ends = take("<u4", domains).tolist()
        self.tokens = take("<i4", tokens)
        self.loss_mask = take("u1", tokens)
        names = take("u1", domain_bytes).tobytes()
        _need(size == len(data) == (at + 7) // 8 * 8 + 8, "plan.bin has another size than it states")
        for array, last, what in ((self.offsets, tokens, "tokens"), (self.chunk_begins, self.documents, "chunks")):
            _need(array[0] == 0 and array[-1] == last and np.all(np.diff(array) >= (2 if what == "tokens" else 1)),
                  "plan.bin: %s are not in order" % what)
        _need(0 < self.training_chunks <= self.chunks, "plan.bin has no training chunk")
        _need(all(a <= b for a, b in zip([0] + ends, ends)) and (not ends or ends[-1] == len(names)) and
              (self.documents == 0 or self.document_domains.max() < domains), "plan.bin: domains are malformed")
        self.domains = [names[a:b].decode("utf-8", "replace") for a, b in zip([0] + ends, ends)]
        self.training_documents = int(self.chunk_begins[self.training_chunks])


class _SectionFile:
    def __init__(self, data, name, specs):
        self.data, self.name = data, name
        _need(len(data) >= _HEADER.size + _FOOTER.size, "%s is cut short" % name)
        magic, version, header, count, _ = _HEADER.unpack_from(data)
        _need(magic == b"SHEXPT\r\n" and version == VERSION, "%s is no export file of version %d" % (name, VERSION))
        index, records, size, _, end = _FOOTER.unpack_from(data, len(data) - _FOOTER.size)
        _need(end == b"SHEXEND\n" and size == len(data) and header <= min(index, 1 << 20) and
              index + records * _INDEX.itemsize + _FOOTER.size == size, "%s is cut short" % name)
        found, at = [], _HEADER.size
        for _ in range(min(count, 1000)):
            length, at = _varint(data[:header], at)
            found.append(bytes(data[at:at + length]).decode("ascii", "replace"))
            at += length
        _need(found == specs, "%s lists other sections than the job" % name)
        self.index = np.frombuffer(data, dtype=_INDEX, count=records, offset=index)
        ends = self.index["offset"].astype(np.int64) + self.index["record_bytes"]
        _need(np.all(self.index["offset"] >= header) and np.all(self.index["offset"] < index) and
              np.all(ends <= index) and np.all(self.index["record_bytes"] > 68),
              "the index of %s names bytes that are no records" % name)

    def payload(self, row, section_key_, row_begin, row_count):
        entry = self.index[row]
        at, size = int(entry["offset"]), int(entry["record_bytes"])
        magic, version, codec, _, _, _, key, begin, rows, length = _RECORD.unpack_from(self.data, at)
        _need(magic == b"SHrc" and version == 1 and key == section_key_ and begin == row_begin and
              rows == row_count and length == size - 68, "%s: another record at %d" % (self.name, at))
        payload = self.data[at + 60:at + 60 + length]
        _need(payload[0] == codec, "%s: another codec at %d" % (self.name, at))
        return payload


class Document:
    """A document of the plan: tokens, loss_mask, and what the teacher said about it."""

    def __init__(self, export, index):
        plan = export.plan
        begin, end = plan.offsets[index], plan.offsets[index + 1]
        self._export, self.index = export, index
        self.key = plan.keys[index].tobytes()
        self.tokens, self.loss_mask = plan.tokens[begin:end], plan.loss_mask[begin:end]
        self.domain = plan.domains[plan.document_domains[index]]
        self.held_out = index >= plan.training_documents
        self.rows = int(end - begin) - 1
        # Canonical names of what the job captured of it.
        self.sections = export.job["held_out_sections" if self.held_out else "sections"]

    @property
    def chunk(self):
        return int(np.searchsorted(self._export.plan.chunk_begins, self.index, side="right")) - 1

    def find(self, name):
        """The Section of this name, canonical or without parameters."""
        for canonical in self.sections:
            if name in (canonical, canonical.partition("?")[0]):
                return self._export.specs[canonical]
        raise KeyError("document %d has no section '%s'; it has: %s" % (self.index, name, ", ".join(self.sections)))

    def section(self, name, torch=False):
        """Its arrays (see Section); with torch=True tensors, counts being int32."""
        section = self.find(name)
        rows = _join(section, [decode(section, payload, count)
                               for payload, count in self._export._payloads(self, section)])
        if torch:
            import torch as module
            rows = {key: module.from_numpy(value.astype(np.int32) if value.dtype == np.uint16 else value)
                    for key, value in rows.items()}
        return rows


class Export:
    """An open export. `manifest`, `job` and `specs` (canonical name -> Section) say what it holds."""

    def __init__(self, folder):
        self.folder = folder
        self._temporary = None
        text = _map(folder, "MANIFEST.json")
        try:
            self.manifest = json.loads(text[:].decode())
            _need(self.manifest["format"] == "stillhouse export" and self.manifest["version"] == VERSION,
                  "%s is no export of version %d" % (folder, VERSION))
            self.job = self.manifest["job"]
            self.teacher = bytes.fromhex(self.job["teacher"])
            names = sorted(set(self.job["sections"] + self.job["held_out_sections"]))
            self.specs = {name: Section(name) for name in names}
            self.files = [self.manifest["plan"]] + self.manifest["artefacts"] + self.manifest["files"]
            expected = (["plan.bin"] + ["artefact-%03d.bin" % i for i in range(len(self.manifest["artefacts"]))] +
                        ["sections-%06d.bin" % i for i in range(len(self.manifest["files"]))])
            _need([file["name"] for file in self.files] == expected and len(self.teacher) == 32,
                  "MANIFEST.json names other files than an export has")
            self.artefacts = {file["artefact"]: file["name"] for file in self.manifest["artefacts"]}
        except (KeyError, TypeError, AttributeError, UnicodeDecodeError, RecursionError, ValueError) as error:
            if isinstance(error, Damaged):
                raise
            raise Damaged("MANIFEST.json is malformed: %s" % error) from None
        self.plan = _Plan(_map(folder, "plan.bin"))
        _need(self.plan.documents == self.manifest["documents"], "plan.bin has another number of documents")
        self._files = [_SectionFile(_map(folder, file["name"]), file["name"], names)
                       for file in self.manifest["files"]]
        index = np.concatenate([file.index for file in self._files] or [np.zeros(0, _INDEX)])
        files = np.repeat(np.arange(len(self._files)), [len(file.index) for file in self._files])
        rows = np.concatenate([np.arange(len(file.index)) for file in self._files] or [np.zeros(0, int)])
        prefixes = np.ascontiguousarray(index["key"][:, :8]).view(">u8").ravel()
        order = np.lexsort((index["row_begin"], prefixes))
        self._prefixes = prefixes[order].astype(np.uint64)
        self._places = np.stack([files, rows], axis=1)[order]

    def close(self):
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __len__(self):
        return self.plan.documents

    def document(self, index):
        if not 0 <= index < len(self):
            raise IndexError("no document %d; there are %d" % (index, len(self)))
        return Document(self, index)

    def documents(self):
        """All of them in the order of the plan: training chunks, then held-out ones."""
        for index in range(len(self)):
            yield Document(self, index)

    def artefact(self, name):
        """The bytes of an artefact of the teacher: lm_head/bf16 (safetensors), tokenizer, …"""
        return _map(self.folder, self.artefacts[name])[:]

    def _payloads(self, document, section):
        key = section_key(self.teacher, document.key, section.canonical)
        prefix = np.uint64(int.from_bytes(key[:8], "big"))
        at = int(np.searchsorted(self._prefixes, prefix))
        row = 0
        while at < len(self._prefixes) and self._prefixes[at] == prefix and row < document.rows:
            file, place = self._places[at]
            entry = self._files[file].index[place]
            if entry["key"].tobytes() == key:
                count = min(section.rows_per_part, document.rows - row)
                yield self._files[file].payload(place, key, row, count), count
                row += count
            at += 1
        _need(row == document.rows, "%s of document %d is missing" % (section.name, document.index))

    def verify(self, decode=False):
        """Raises Damaged unless sizes, hashes, document keys and all sections are as they should be; with
        decode=True, every value is decoded, too, and the digest of the job computed. Returns counts."""
        for file in self.files:
            data = _map(self.folder, file["name"])
            _need(len(data) == file["bytes"], "%s has another size than the manifest states" % file["name"])
            _need(hashlib.sha256(data).hexdigest() == file["sha256"],
                  "%s has another SHA-256 than the manifest states" % file["name"])
        _need(self.files[0]["sha256"] == self.job["plan"], "plan.bin is not the plan of the job")
        values, rows = {}, 0
        for document in self.documents():
            key = hashlib.sha256(_field(b"stillhouse document v1") + self.plan.tokenizer +
                                 _field(b"positions from 0") + struct.pack("<Q", len(document.tokens)) +
                                 document.tokens.tobytes()).digest()
            _need(key == document.key, "document %d has another key than its tokens give" % document.index)
            for name in document.sections:
                section = self.specs[name]
                section_id = section_key(self.teacher, key, name)
                if section_id in values:
                    continue
                digest = hashlib.sha256()
                for payload, count in self._payloads(document, section):
                    if decode:
                        digest.update(canonical_values(section, _DECODE(section, payload, count)))
                values[section_id] = digest.digest()
                rows += document.rows
        _need(len(values) == self.manifest["sections"] and rows == self.manifest["rows"],
              "the export has %d sections of %d rows, and not what its manifest states" % (len(values), rows))
        if decode:
            total = hashlib.sha256(_field(b"stillhouse job digest 1"))
            for section_id in sorted(values):
                total.update(section_id + values[section_id])
            _need(total.hexdigest() == self.manifest["digest"],
                  "the values have another digest than the manifest states")
        return {"documents": len(self), "sections": len(values), "rows": rows, "decoded": decode}


_DECODE = decode  # `verify` has an argument of that name


def open(path):  # noqa: A001: the name that users expect
    """Opens the folder of an export."""
    return Export(os.fspath(path))


def open_job(job, recipe=None, coordinator=None, server=None, directory=None, folder=None, program=None):
    """Exports a job of a live or resting cache into a folder that goes when the result is closed, and opens it.

    Exactly one of recipe, coordinator (the path of coordinator.json), server (an address) and directory says
    where the job is, as for `coordinatorctl cache export`, which this runs: what servers speak is not for numpy
    alone. The folder is made in `folder`; else beside the cache directory, or beside recipe or coordinator.json.
    """
    given = {"--recipe": recipe, "--coordinator": coordinator, "--server": server, "--dir": directory}
    chosen = [(flag, os.fspath(value)) for flag, value in given.items() if value is not None]
    if len(chosen) != 1:
        raise ValueError("say where the job is: one of recipe, coordinator, server, directory")
    if program is None:
        built = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "build", "bin", "coordinatorctl")
        program = built if os.path.exists(built) else "coordinatorctl"
    if folder is None:
        folder = "." if server is not None else os.path.dirname(os.path.abspath(chosen[0][1]))
    temporary = tempfile.mkdtemp(prefix="stillhouse-", dir=folder)
    try:
        target = os.path.join(temporary, "export")
        done = subprocess.run([program, "cache", "export", job, "--to", target, *chosen[0]],
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip() or "coordinatorctl ended with code %d" % done.returncode)
        export = Export(target)
        export._temporary = temporary
        return export
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


# --- command line -------------------------------------------------------------------------------

def _ls(export, _):
    print("job %s, digest %s" % (export.job["name"], export.manifest["digest"]))
    for kind in ("sections", "held_out_sections"):
        print("%s: %s" % (kind.replace("_", "-"), ", ".join(export.job[kind])))
    for file in export.files:
        print("%12d  %s%s" % (file["bytes"], file["name"], "  " + file["artefact"] if "artefact" in file else ""))


def _stat(export, options):
    held_out = len(export) - export.plan.training_documents
    print("%d documents, %d of them held out; %d tokens" % (len(export), held_out, len(export.plan.tokens)))
    print("%-40s %9s %12s %14s %10s" % ("section", "documents", "rows", "payload bytes", "rows/s"))
    for name, section in export.specs.items():
        documents = rows = size = decoded = 0
        spent = 0.0
        for document in export.documents():
            if name not in document.sections:
                continue
            documents += 1
            rows += document.rows
            for payload, count in export._payloads(document, section):
                size += len(payload)
                if spent < options.seconds:
                    begin = time.process_time()
                    decode(section, payload, count)
                    spent += time.process_time() - begin
                    decoded += count
        print("%-40s %9d %12d %14d %10d" % (name, documents, rows, size, decoded / spent if spent else 0))
    print("sizes and what was decoded are checked here, not every byte: `verify` does that")


def _verify(export, options):
    counts = export.verify(decode=options.decode)
    print("%(documents)d documents, %(sections)d sections, %(rows)d rows: whole" % counts +
          (", decoded, digest " + export.manifest["digest"] if options.decode else ""))


def _dump(export, options):
    documents = [export.document(options.document)] if options.document is not None else export.documents()
    for document in documents:
        names = [options.section] if options.section else document.sections
        line = {"document": document.index, "key": document.key.hex(), "domain": document.domain,
                "held_out": document.held_out, "tokens": document.tokens.tolist(),
                "loss_mask": document.loss_mask.tolist(), "sections": {}}
        for name in names:
            rows = document.section(name)
            line["sections"][document.find(name).canonical] = {key: value.tolist() for key, value in rows.items()}
        print(json.dumps(line))


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Looks into an export of a Stillhouse cache.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, function, what in (("ls", _ls, "its files"), ("stat", _stat, "what it holds, and how fast it decodes"),
                                 ("verify", _verify, "sizes, hashes, keys; exit code 7 when damaged"),
                                 ("dump", _dump, "JSON, a line a document")):
        added = verbs.add_parser(verb, help=what)
        added.add_argument("export", metavar="EXPORT", help="folder that `coordinatorctl cache export` wrote")
        added.set_defaults(function=function)
        if verb == "stat":
            added.add_argument("--seconds", type=float, default=1, help="of processor time, a section")
        if verb == "verify":
            added.add_argument("--decode", action="store_true", help="decode every value and compare the digest")
        if verb == "dump":
            added.add_argument("--document", type=int, help="only this one")
            added.add_argument("--section", help="only this one")
    options = parser.parse_args(arguments)
    try:
        with open(options.export) as export:
            options.function(export, options)
        sys.stdout.flush()
    except Damaged as error:
        print("stillhouse: %s" % error, file=sys.stderr)
        return 7
    except (KeyError, IndexError) as error:
        print("stillhouse: %s" % error.args[0], file=sys.stderr)
        return 3
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
