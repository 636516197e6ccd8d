#!/usr/bin/env python3
"""Loads model.safetensors of a folder with Python `safetensors` into torch tensors of their own.

usage: load_python.py FOLDER
Prints {"bytes", "seconds"}. load_file alone maps the file and reads nothing, so each tensor is copied, as
load_state_dict copies it into a model's parameter.
"""

import json
import pathlib
import sys
import time

import safetensors.torch
import torch  # noqa: F401  (imported outside of what is measured)


def main():
    path = pathlib.Path(sys.argv[1]) / "model.safetensors"
    start = time.perf_counter()
    tensors = {name: tensor.clone() for name, tensor in safetensors.torch.load_file(path).items()}
    seconds = time.perf_counter() - start
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    print(json.dumps({"bytes": size, "seconds": seconds}))


if __name__ == "__main__":
    main()
