"""Writes tests/formats/golden/ggml_blocks.safetensors: blocks of every GGUF tensor type that we read, and their
values as the `gguf` package of llama.cpp decodes them; and values that it encodes.

Run: python tools/golden/ggml_blocks.py OUT [SEED]
Needs numpy, gguf, safetensors. Per type "T.blocks" (the bytes) and "T.values" (fp32); for the types that we
write "T.from" and "T.encoded" too. Quants are random bytes, so that every bit of a block counts; scales are
finite halves, zero, negative and subnormal ones among them. Seed and versions stand in the file's metadata.
"""

import sys
from importlib import metadata

import gguf
import numpy
import safetensors.numpy

SEED = 20261129
BLOCKS = 12
# Where a block's half-precision numbers lie.
HALVES = {"F16": None, "BF16": None, "Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2],
          "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
ENCODED = ["F16", "BF16", "Q8_0"]


def scales(random, count):
    halves = random.normal(0, 0.05, count).astype(numpy.float16)
    halves[:4] = [0, -0.75, 6e-8, 1.0]
    return random.permutation(halves)


def blocks_of(random, name, kind):
    if HALVES[name] is None:
        count = 1024
        values = random.normal(0, 1, count).astype(numpy.float32)
        values[:6] = [0, -0.0, 65504, -1e-7, numpy.inf, 3e-5]
        return gguf.quants.quantize(values, kind).view(numpy.uint8)
    _, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (BLOCKS, size), numpy.uint8)
    for at in HALVES[name]:
        blocks[:, at:at + 2] = scales(random, BLOCKS).view(numpy.uint8).reshape(BLOCKS, 2)
    return blocks


def to_encode(random):
    values = random.normal(0, 1, (8, 32)).astype(numpy.float32)
    values[0] = 0
    values[1, 5:] = 0
    values[2] *= 1e-6
    values[3] = numpy.round(values[3] * 127 / 3) + 0.5  # ties, where the largest is 127 steps
    values[3, 7] = 127
    return values


def main():
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else SEED
    random = numpy.random.default_rng(seed)
    tensors = {}
    for name in HALVES:
        kind = gguf.GGMLQuantizationType[name]
        blocks = blocks_of(random, name, kind)
        tensors[name + ".blocks"] = blocks
        with numpy.errstate(over="ignore"):
            tensors[name + ".values"] = gguf.quants.dequantize(blocks, kind).astype(numpy.float32)
    for name in ENCODED:
        values = to_encode(random)
        tensors[name + ".from"] = values
        tensors[name + ".encoded"] = gguf.quants.quantize(values, gguf.GGMLQuantizationType[name]).view(numpy.uint8)
    versions = {name: metadata.version(name) for name in ("gguf", "numpy", "safetensors")}
    safetensors.numpy.save_file({name: numpy.ascontiguousarray(t) for name, t in tensors.items()}, sys.argv[1],
                                metadata={"seed": str(seed), **versions})


if __name__ == "__main__":
    main()
