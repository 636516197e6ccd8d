#!/usr/bin/env python3
"""The pieces of bench/kernel_bench.cc with PyTorch.

usage: kernels_python.py adamw PARAMETERS TIMES
       kernels_python.py loss ROWS TIMES CHUNK

  adamw  torch.optim.AdamW(fused=True) on one fp32 tensor; it writes no bf16 weights
  loss   cross-entropy of SmolLM2's head (49,152 by 576) in bf16, CHUNK rows at a time, each chunk's
         backward pass before the next one's forward pass, gradients in bf16

Prints one line of JSON. The number of threads is OMP_NUM_THREADS'.
"""

import json
import os
import sys
import time

import torch

VOCABULARY, HIDDEN = 49152, 576


def peak_bytes():
    with open("/proc/self/status", encoding="utf-8") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM:"))


def reset_peak():
    with open("/proc/self/clear_refs", "w", encoding="utf-8") as file:
        file.write("5")


def timed(times, body):
    start = time.perf_counter()
    for _ in range(times):
        body()
    return time.perf_counter() - start


def adamw(parameters, times):
    values = torch.full((parameters,), 1e-3, requires_grad=True)
    values.grad = torch.full((parameters,), 1e-3)
    optimizer = torch.optim.AdamW([values], lr=5e-4, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    optimizer.step()
    return {"parameters": parameters * times, "seconds": timed(times, optimizer.step)}


def loss(rows, times, chunk):
    head = torch.randn(VOCABULARY, HIDDEN, dtype=torch.bfloat16, requires_grad=True)
    hidden = torch.randn(rows, HIDDEN, dtype=torch.bfloat16)
    labels = torch.randint(VOCABULARY, (rows,))

    def one_pass():
        head.grad = None
        leaf = hidden.detach().requires_grad_()
        for begin in range(0, rows, chunk):
            end = min(begin + chunk, rows)
            logits = torch.nn.functional.linear(leaf[begin:end], head)
            value = torch.nn.functional.cross_entropy(logits.float(), labels[begin:end], reduction="sum")
            (value / rows).backward()

    reset_peak()
    before = peak_bytes()
    one_pass()
    peak = peak_bytes() - before
    return {"rows": rows * times, "seconds": timed(times, one_pass), "peak_bytes": peak}


def main():
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    torch.manual_seed(1)
    mode, *numbers = sys.argv[1:]
    print(json.dumps({"adamw": adamw, "loss": loss}[mode](*map(int, numbers))))


if __name__ == "__main__":
    main()
