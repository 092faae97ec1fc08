#!/usr/bin/env python3
"""What bench/cuda/run.sh measured, as a page: python3 bench/cuda/results.py FOLDER > results.md"""

import json
import pathlib
import sys

NORM, LORA = 90, 85  # per cent that are asked of the norm family and of LoRA's linear map


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def main(folder):
    gpu = (folder / "gpu.csv").read_text().splitlines()[1]
    tests = [line.split("]")[1].strip() for line in (folder / "tests.txt").read_text().splitlines()
             if "test cases" in line]
    kernels = lines(folder / "kernels.jsonl")
    copy = next(k for k in kernels if (k["kernel"], k["shape"], k["dtype"]) == ("copy", "large", "fp32"))
    print(f"""# The device kernels and the step on a GPU, as measured

Written by `bench/cuda/run.sh`, which builds, tests, checks against double arithmetic and times.

{gpu}. Tests: {"; ".join(tests)}.

## Kernels

Each in CUDA graphs over rotated buffers of random numbers, timed by events, in random order; medians
of 31. MiniLM, BERT-base, BERT-large: [1024, 384], [2048, 768], [2048, 1024]; large: [65536, 1024].
%: for rows that move memory, of the copy bandwidth, {copy["bytes"] / copy["seconds"] * 1e-9:.0f} GB/s of a large
copy (a copy as small as the row's is below: what a launch alone costs shows there); for those that
multiply, of the rate of cuBLAS's product of that shape and type. Asked: {NORM} % of dropout_add_norm, {LORA} %
of lora_linear, forward and backward together. GB/s: of the least bytes that must move.

| kernel | shape | dtype | us | % | GB/s |
|---|---|---|---|---|---|""")
    for k in kernels:
        print(f"| {k['kernel']} | {k['shape']} | {k['dtype']} | {1e6 * k['seconds']:.2f} ± "
              f"{1e6 * k['quartiles']:.2f} | {k['percent']:.1f} | {1e-9 * k['bytes'] / k['seconds']:.0f} |")

    print("""
LoRA's linear map in all: seconds of cuBLAS's two products of its operations over those of forward and
backward, with adapters and dropout.

| shape | dtype | % |
|---|---|---|""")
    named = {(k["kernel"], k["shape"], k["dtype"]): k for k in kernels}
    for (kernel, shape, dtype), plain in named.items():
        if kernel != "linear":
            continue
        both = [named[f"lora_linear, {way}", shape, dtype] for way in ("forward", "backward")]
        rate = sum(k["flops"] for k in both) / sum(k["seconds"] for k in both)
        print(f"| {shape} | {dtype} | {100 * rate * plain['seconds'] / plain['flops']:.1f} |")

    steps = lines(folder / "step.jsonl")
    eager = {s["dtype"]: s["seconds"] for s in steps if s["who"] == "eager LibTorch" and s["layers"] == 24}
    print("""
## The step of BERT-large

LoRA (rank 8, dropout 0.1) on query and value, 16 x 128 tokens; forward, backward and AdamW. Fewer
layers: a codebook of 8 plans. % of the limit: the frozen products and attention at the rate of LibTorch's
product of [2048, 1024] by [1024, 4096]. peft runs as a program of its own, after the others. Asked: 3 x
eager LibTorch with graphs.

| dtype | layers | who | ms | x eager LibTorch | % of the limit | peak MB |
|---|---|---|---|---|---|---|""")
    for s in steps + lines(folder / "peft.jsonl"):
        limit = f"{100 * s['limit'] / s['seconds']:.1f}" if "limit" in s else ""
        print(f"| {s['dtype']} | {s['layers']} | {s['who']} | {1e3 * s['seconds']:.2f} | "
              f"{eager[s['dtype']] / s['seconds']:.2f} | {limit} | {1e-6 * s['peak']:.0f} |")


if len(sys.argv) != 2:
    sys.exit(__doc__)
main(pathlib.Path(sys.argv[1]))
