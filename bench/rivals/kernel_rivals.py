"""Kernels of droppeft against what Python programs use: PyTorch eager and compiled, peft,
bitsandbytes, Liger, torchtune and DINOv2; on the CPU, taking turns with the benches of the build
tree.

Usage: kernel_rivals.py FOLDER [--quick] [--turns 15] [--threads 2] [--json FILE]

FOLDER has the benches dropout, dropout_add_norm and lora_linear; where one is missing, its rivals
are timed alone. A turn is the mean of some calls on buffers that are rotated beyond the caches,
after one call to warm up. Dropout 0.1, LoRA of rank 8; each rival does what its users would write.

Layer dropout of others drops rows of the batch: torchtune's LayerDropout(0.5) around a block, and
DINOv2's way, half of the rows through each residual branch and added back with index_add. They run
on a stack of frozen pre-norm blocks; what is told is the share of the ideal saving,
(1 - time / time without dropout) / share dropped. --quick: MiniLM's shape, fp32, 3 turns.
"""

import argparse
import copy
import json
import math
import pathlib
import statistics
import time
import typing

import peft
import torch
from torch.nn.functional import dropout, layer_norm
from turns import Program, peak_bytes, ratio_of, record, take_turns, write

RATE, RANK, CALLS = 0.1, 8, 4
BEYOND_CACHES = 256e6


class Shape(typing.NamedTuple):
    rows: int
    length: int
    width: int
    heads: int
    layers: int

    def tokens(self):
        return self.rows * self.length


SHAPES = {
    "MiniLM": Shape(16, 64, 384, 12, 6),
    "BERT-base": Shape(8, 128, 768, 12, 12),
    "BERT-large": Shape(4, 128, 1024, 16, 24),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Rotated:
    """What `make` makes, so often that together they exceed the caches; one after the other."""

    def __init__(self, bytes_of_one, make):
        self.made = [make() for _ in range(1 + math.ceil(BEYOND_CACHES / bytes_of_one))]
        self.at = 0

    def next(self):
        """The next one, its gradients forgotten."""
        self.at += 1
        tensors = self.made[self.at % len(self.made)]
        for tensor in tensors:
            tensor.grad = None
        return tensors


class Rival(typing.NamedTuple):
    """function(prepare()) is what is timed."""

    prepare: typing.Callable
    function: typing.Callable

    def seconds(self):
        self.function(self.prepare())
        prepared = [self.prepare() for _ in range(CALLS)]
        start = time.perf_counter()
        for one in prepared:
            self.function(one)
        return (time.perf_counter() - start) / CALLS

    def peak(self):
        prepared = self.prepare()
        return peak_bytes(lambda: self.function(prepared))


def inputs(shape, dtype, count):
    """`count` tensors [tokens, width], the last of them a gradient from above."""
    size = shape.tokens(), shape.width

    def make():
        tensors = [torch.randn(size, dtype=dtype) for _ in range(count)]
        return [tensor.requires_grad_() for tensor in tensors[:-1]] + tensors[-1:]

    return Rotated(count * math.prod(size) * dtype.itemsize, make)


def dropout_rivals(shape, dtype):
    buffers = inputs(shape, dtype, 2)
    compiled = torch.compile(lambda x: dropout(x, RATE), dynamic=False)
    with_x = {
        "eager PyTorch": lambda: lambda tensors: dropout(tensors[0], RATE),
        "torch.compile": lambda: lambda tensors: compiled(tensors[0]),
    }
    return {who: lambda make=make: Rival(buffers.next, make()) for who, make in with_x.items()}


def add_norms(shape, dtype):
    """Who -> what makes f(branch, residual)."""
    weight = torch.randn(shape.width, dtype=dtype)
    bias = torch.randn(shape.width, dtype=dtype)

    def eager(branch, residual):
        return layer_norm(dropout(branch, RATE) + residual, [shape.width], weight, bias)

    def liger():
        from liger_kernel.transformers import LigerLayerNorm

        norm = LigerLayerNorm(shape.width).to(dtype)
        norm(torch.randn(2, shape.width, dtype=dtype))
        return lambda branch, residual: norm(dropout(branch, RATE) + residual)

    return {
        "eager PyTorch": lambda: eager,
        "torch.compile": lambda: torch.compile(eager, dynamic=False),
        "Liger": liger,
    }


def add_norm_forward_rivals(shape, dtype):
    buffers = inputs(shape, dtype, 3)

    def rival(make):
        norm = make()
        return Rival(buffers.next, lambda tensors: norm(*tensors[:2]))

    return {who: lambda make=make: rival(make) for who, make in add_norms(shape, dtype).items()}


def add_norm_backward_rivals(shape, dtype):
    buffers = inputs(shape, dtype, 3)

    def rival(make):
        norm = make()

        def forward():
            *given, gradient = buffers.next()
            return norm(*given), gradient

        return Rival(forward, lambda prepared: prepared[0].backward(prepared[1]))

    return {who: lambda make=make: rival(make) for who, make in add_norms(shape, dtype).items()}


def lora_linear_rivals(shape, dtype):
    buffers = inputs(shape, dtype, 2)

    class Model(torch.nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.query = linear

        def forward(self, x):
            return self.query(x)

    def adapted(model):
        lora = peft.LoraConfig(r=RANK, target_modules=["query"], lora_dropout=RATE)
        return peft.get_peft_model(model, lora).train()

    def plain():
        return adapted(Model(torch.nn.Linear(shape.width, shape.width, dtype=dtype)))

    def nf4():
        import bitsandbytes

        linear = bitsandbytes.nn.Linear4bit(
            shape.width, shape.width, compute_dtype=dtype, quant_type="nf4"
        )
        model = Model(linear.to("cpu"))
        model.is_loaded_in_4bit = True
        return adapted(model)

    def rival(make):
        model = make()

        def step(tensors):
            x, gradient = tensors
            model(x).backward(gradient)

        def prepare():
            model.zero_grad()
            return buffers.next()

        return Rival(prepare, step)

    return {
        "peft": lambda: rival(plain),
        "peft, torch.compile": lambda: rival(lambda: torch.compile(plain(), dynamic=False)),
        "peft on bitsandbytes' NF4": lambda: rival(nf4),
    }


# Kernel -> bench of the build tree, rivals.
KERNELS = {
    "dropout": ("dropout", dropout_rivals),
    "dropout_add_norm_forward": ("dropout_add_norm", add_norm_forward_rivals),
    "dropout_add_norm_backward": ("dropout_add_norm", add_norm_backward_rivals),
    "lora_linear": ("lora_linear", lora_linear_rivals),
}


def failure(work, who, error):
    kernel, shape, dtype = work
    reason = str(error).strip().split("\n")[0]
    told = {"kernel": kernel, "shape": shape, "dtype": dtype, "who": who}
    return {"program": "kernel_rivals", **told, "failed": f"does not run on this CPU: {reason}"}


def against_ours(work, program, makers, turns):
    """Records of the rivals that run, each with its ratio to ours, and of those that do not."""
    records, rivals = [], {}
    for who, make in makers.items():
        try:
            rival = make()
            rival.seconds()
            rivals[who] = rival
        except Exception as error:  # whatever a package does where it was not made for
            records.append(failure(work, who, error))
    sides = {who: rival.seconds for who, rival in rivals.items()}
    row = "/".join([*work, "droppeft"])
    paired = program is not None and row in json.loads(program.first)
    if paired:
        sides["droppeft"] = lambda: float(program.ask(row))
    times = take_turns(sides, turns, warm_up=1)
    for who, rival in rivals.items():
        more = {"ratio": ratio_of(times[who], times["droppeft"])} if paired else {}
        more["peak_bytes"] = rival.peak()
        records.append(record("kernel_rivals", work, who, times[who], **more))
    return records


def drop_rows_in_branches(block, x):
    """DINOv2's way: a random half of the rows through each residual branch, its output scaled up
    and added in place of all."""
    for branch in (
        lambda y: block._sa_block(block.norm1(y), None, None),
        lambda y: block._ff_block(block.norm2(y)),
    ):
        kept = torch.randperm(len(x))[: len(x) // 2]
        x = x.index_add(0, kept, branch(x[kept]), alpha=len(x) / len(kept))
    return x


class Stack:
    """Frozen pre-norm blocks; forward and backward of their input."""

    def __init__(self, shape):
        layer = torch.nn.TransformerEncoderLayer(
            shape.width,
            shape.heads,
            4 * shape.width,
            dropout=0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        ).requires_grad_(False)
        self.blocks = [copy.deepcopy(layer) for _ in range(shape.layers)]
        self.x = torch.randn(shape.rows, shape.length, shape.width, requires_grad=True)

    def run(self, call):
        x = self.x
        for block in self.blocks:
            x = call(block, x)
        x.sum().backward()
        self.x.grad = None

    def seconds(self, call):
        start = time.perf_counter()
        self.run(call)
        return time.perf_counter() - start


def torchtune_dropout():
    from torchtune.modules.layer_dropout import LayerDropout

    return LayerDropout(prob=0.5, seed=0).train()


def layer_dropout_savings(name, turns):
    """Share of the ideal saving when rows are dropped at the rate 1/2."""
    stack, work = Stack(SHAPES[name]), ("step_skip", name, "fp32")
    dropped, records = [], []
    sides = {"all": lambda: stack.seconds(lambda block, x: block(x))}
    calls = {"DINOv2's way, 1/2 of the rows": drop_rows_in_branches}
    try:
        layer_dropout = torchtune_dropout()

        def tune(block, x):
            y = layer_dropout(block, x)
            dropped.append(1 - float(layer_dropout.inferred))
            return y

        calls["torchtune LayerDropout(0.5)"] = tune
    except ImportError as error:
        records.append(failure(work, "torchtune LayerDropout(0.5)", error))
    for who, call in calls.items():

        def side(call=call):
            dropped.clear()
            return stack.seconds(call), statistics.mean(dropped or [0.5])

        sides[who] = side
    results = take_turns(sides, turns, warm_up=1)
    everything = peak_bytes(lambda: stack.run(lambda block, x: block(x)))
    for who, call in calls.items():
        shares = [
            100 * (1 - seconds / full) / share
            for (seconds, share), full in zip(results[who], results["all"])
        ]
        spread = statistics.stdev(shares) * math.sqrt(math.pi / 2 / len(shares))
        times = [seconds for seconds, _ in results[who]]
        more = {"percent": statistics.median(shares), "percent_error": spread}
        more |= {"peak_bytes": peak_bytes(lambda: stack.run(call)), "full_bytes": everything}
        records.append(record("kernel_rivals", work, who, times, **more))
    return records


def show(records):
    for each in records:
        name = f"{each['kernel']}, {each['shape']}, {each['dtype']}, {each['who']}: "
        if "failed" in each:
            print(name + each["failed"])
            continue
        text = f"{1e3 * each['seconds']:.3f} ms +- {1e3 * each['error']:.3f}"
        if "ratio" in each:
            text += ", {:.2f} times droppeft's ({:.2f} to {:.2f})".format(*each["ratio"])
        if "percent" in each:
            text += f", {each['percent']:.0f} +- {each['percent_error']:.0f} % of the ideal saving"
        print(f"{name}{text}, peak {1e-6 * each['peak_bytes']:.1f} MB", flush=True)


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.turns = 3
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    programs = {}
    for name in {bench for bench, _ in KERNELS.values()}:
        path = arguments.folder / name
        programs[name] = Program([path, "--serve"]) if path.exists() else None
    records = []
    for name in ["MiniLM"] if arguments.quick else SHAPES:
        for dtype in ["fp32"] if arguments.quick else DTYPES:
            for kernel, (bench, rivals) in KERNELS.items():
                torch.compiler.reset()
                makers = rivals(SHAPES[name], DTYPES[dtype])
                work = kernel, name, dtype
                found = against_ours(work, programs[bench], makers, arguments.turns)
                show(found)
                records += found
        found = layer_dropout_savings(name, arguments.turns)
        show(found)
        records += found
    write(records, arguments.json)


if __name__ == "__main__":
    main()
