"""Reads an exported folder with the Python `safetensors` and `tokenizers` packages; prints JSON.

Run: python read_folder.py FOLDER TEXT
{"metadata": …, "tensors": {name: [dtype, shape, sum]}, "ids": […], "text": …}
"""

import json
import os
import sys

import numpy
import safetensors
import tokenizers


def values(raw, dtype, shape):
    if dtype == "BF16":
        wide = numpy.frombuffer(raw, numpy.uint16).astype(numpy.uint32) << 16
        return wide.view(numpy.float32).reshape(shape)
    return numpy.frombuffer(raw, {"F32": numpy.float32, "F16": numpy.float16}[dtype]).reshape(shape)


def main():
    folder, text = sys.argv[1:]
    path = os.path.join(folder, "model.safetensors")
    with open(path, "rb") as file:
        tensors = {name: [t["dtype"], t["shape"],
                          float(values(bytes(t["data"]), t["dtype"], t["shape"]).sum(dtype="float64"))]
                   for name, t in safetensors.deserialize(file.read())}
    with safetensors.safe_open(path, "numpy") as opened:
        metadata = opened.metadata()
        assert set(opened.keys()) == set(tensors)
    tokenizer = tokenizers.Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    print(json.dumps({"metadata": metadata, "tensors": tensors, "ids": ids,
                      "text": tokenizer.decode(ids, skip_special_tokens=False)}))


if __name__ == "__main__":
    main()
