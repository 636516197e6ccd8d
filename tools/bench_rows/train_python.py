#!/usr/bin/env python3
"""Training steps of bench/student_step_bench.cc with `transformers`: the same shape, batch and dtype.

usage: train_python.py default|best FOLDER STEPS

  default  as its documentation trains with PyTorch: bf16 autocast over fp32 weights, AdamW
  best     the same with torch.compile and the fused AdamW; run it with tcmalloc preloaded

Half of the model in FOLDER (its first 15 layers), 2,048 rows a step in two micro-batches of four
documents of 256 rows, without padding; scaled-dot-product attention; gradients clipped to norm 1.
Prints one line of JSON: {"rows", "seconds"}. The number of threads is OMP_NUM_THREADS'.
"""

import json
import os
import sys
import time

import torch
from transformers import AutoModelForCausalLM

LAYERS, DOCUMENTS, ROWS, MICRO_BATCHES = 15, 8, 256, 2
WARM_UP = 2


def main():
    mode, folder, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
    best = {"default": False, "best": True}[mode]
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    model.model.layers = model.model.layers[:LAYERS]
    model.config.num_hidden_layers = LAYERS
    model.config.use_cache = False
    model.train()
    ids = torch.randint(model.config.vocab_size, (DOCUMENTS, ROWS + 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, betas=(0.9, 0.95), weight_decay=0.01,
                                  fused=best)
    run = torch.compile(model) if best else model

    def step():
        for batch in ids.chunk(MICRO_BATCHES):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = run(input_ids=batch[:, :-1]).logits
                loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
            (loss / MICRO_BATCHES).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=not best)

    for _ in range(WARM_UP):
        step()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    print(json.dumps({"rows": DOCUMENTS * ROWS * steps, "seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main()
