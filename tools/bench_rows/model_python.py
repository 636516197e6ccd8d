#!/usr/bin/env python3
"""The runs of bench/model_bench.cc with `transformers`, on the same ids.

usage: model_python.py forward MODEL BATCH LENGTH TIMES
       model_python.py generate MODEL PROMPT TOKENS TIMES
Prints the same line of JSON. bf16, scaled-dot-product attention, static shapes, no gradients, the
number of threads that OMP_NUM_THREADS says.
"""

import json
import os
import sys
import time

import torch
from transformers import AutoModelForCausalLM


def id_at(number, vocabulary):
    return (number * 2654435761 + 12345) % (1 << 32) % vocabulary


def timed(run, times):
    run()
    start = time.perf_counter()
    for _ in range(times):
        result = run()
    return time.perf_counter() - start, result


def main():
    mode, path = sys.argv[1:3]
    first, second, times = (int(word) for word in sys.argv[3:6])
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    vocabulary = model.config.vocab_size
    with torch.inference_mode():
        if mode == "forward":
            ids = torch.tensor([id_at(i, vocabulary) for i in range(first * second)]).reshape(first, second)
            seconds, logits = timed(lambda: model(ids, use_cache=False).logits, times)
            result = {"tokens": first * second * times, "top1": logits[0].argmax(-1).tolist()}
        else:
            ids = torch.tensor([[id_at(i, vocabulary) for i in range(first)]])
            seconds, text = timed(
                lambda: model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                                       min_new_tokens=second, max_new_tokens=second, eos_token_id=None,
                                       pad_token_id=0), times)
            result = {"tokens": second * times, "ids": text[0, first:].tolist()}
    print(json.dumps({**result, "seconds": seconds}))


if __name__ == "__main__":
    main()
