#!/usr/bin/env python3
"""The rival of step.cpp: the LoRA training step of BERT-large by PyTorch, transformers and peft.

python3 bench/cuda/peft_step.py [--json FILE]

LoRA (r 8, alpha 16, dropout 0.1) on query and value, adapters in fp32 over a base in fp32 or bf16,
16 x 128 random tokens, mean pooling and a linear head, the model's own dropout 0, PyTorch's fused
AdamW; eager, and by torch.compile with CUDA graphs ("reduce-overhead").
"""

import argparse
import json
import statistics
import time

import peft
import torch
import transformers

SEQUENCES, LENGTH, STEPS, REPETITIONS = 16, 128, 8, 21


def make_step(dtype, compiled):
    torch.manual_seed(1)
    config = transformers.BertConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
        hidden_dropout_prob=0, attention_probs_dropout_prob=0, attn_implementation="sdpa")
    bert = transformers.BertModel(config, add_pooling_layer=False).to("cuda", dtype)
    bert = peft.get_peft_model(bert, peft.LoraConfig(
        r=8, lora_alpha=16, lora_dropout=0.1, target_modules=["query", "value"]))
    head = torch.nn.Linear(1024, 2).cuda()
    trained = [p for p in [*bert.parameters(), *head.parameters()] if p.requires_grad]
    assert all(p.dtype == torch.float32 for p in trained)
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    ids = torch.randint(config.vocab_size, (SEQUENCES, LENGTH), device="cuda")
    labels = torch.randint(2, (SEQUENCES,), device="cuda")
    encoder = torch.compile(bert, mode="reduce-overhead") if compiled else bert
    bert.train()

    def step():
        hidden = encoder(input_ids=ids).last_hidden_state.float()
        loss = torch.nn.functional.cross_entropy(head(hidden.mean(1)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def seconds_of(step):
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(STEPS):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / STEPS


parser = argparse.ArgumentParser(description=__doc__,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--json", default="/dev/null")
arguments = parser.parse_args()
with open(arguments.json, "w") as out:
    for dtype, name in (torch.float32, "fp32"), (torch.bfloat16, "bf16"):
        for compiled in False, True:
            who = "torch.compile + peft" if compiled else "eager PyTorch + peft"
            try:
                step = make_step(dtype, compiled)
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                seconds_of(step)
                peak = torch.cuda.max_memory_allocated() - before
                seconds_of(step)
                seconds = statistics.median(seconds_of(step) for _ in range(REPETITIONS))
            except Exception as error:  # what does not run here is said, and the rest is measured
                print(f"{who}, {name}: does not run: {error}".splitlines()[0], flush=True)
                continue
            print(f"{1e3 * seconds:8.2f} ms, {1e-6 * peak:8.0f} MB  {who}, {name}", flush=True)
            print(json.dumps({"who": who, "dtype": name, "layers": 24, "seconds": seconds,
                              "peak": peak}), file=out, flush=True)
