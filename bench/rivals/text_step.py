"""The training step of federated_text against transformers + peft: same machine, model, batches,
initial adapters and threads, in turns.

Usage: text_step.py PROGRAM MODEL_DIR [--turns 31] [--threads 2]

PROGRAM is the bench text_step of the build tree. A step is forward, backward and AdamW in fp32:
masked mean pooling and a linear head on the encoder, LoRA (r 8, alpha 16) on query and value, the
model's own dropout 0, and no attention mask for the rival where nothing is padded. Two batches of
16 texts from examples/federated_text/messages.csv: "full", joined and cut to 64 tokens, and "mixed",
single messages padded to the longest.
"""

import argparse
import csv
import pathlib
import random
import statistics
import subprocess
import tempfile
import time

import peft
import torch
import transformers
from safetensors.torch import save_file

arguments = argparse.ArgumentParser(usage=__doc__)
arguments.add_argument("program")
arguments.add_argument("model")
arguments.add_argument("--turns", type=int, default=31)
arguments.add_argument("--threads", type=int, default=torch.get_num_threads())
arguments = arguments.parse_args()

torch.set_num_threads(arguments.threads)
torch.manual_seed(0)
transformers.logging.set_verbosity_error()
MESSAGES = pathlib.Path(__file__).parents[2] / "examples/federated_text/messages.csv"


def make_batches():
    """Name -> ids, mask (None when nothing is padded), labels."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
    with MESSAGES.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    random.Random(0).shuffle(rows)
    names = sorted({row["label"] for row in rows})
    texts = [row["text"] for row in rows]
    labels = torch.tensor([names.index(row["label"]) for row in rows[:16]])
    joined = [" ".join(texts[i : i + 16]) for i in range(0, 16 * 16, 16)]
    full = tokenizer(joined, truncation=True, max_length=64, return_tensors="pt")
    mixed = tokenizer(
        texts[:16], padding=True, truncation=True, max_length=64, return_tensors="pt"
    )
    batches = {
        "full": (full["input_ids"], None, labels),
        "mixed": (mixed["input_ids"], mixed["attention_mask"], labels),
    }
    return batches, len(names)


class Rival:
    """transformers + peft."""

    def __init__(self, classes):
        encoder = transformers.AutoModel.from_pretrained(
            arguments.model,
            attn_implementation="sdpa",
            dtype=torch.float32,
            add_pooling_layer=False,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        lora = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"])
        self.encoder = peft.get_peft_model(encoder, lora)
        self.head = torch.nn.Linear(encoder.config.hidden_size, classes)
        for name, parameter in self.encoder.named_parameters():
            if "lora_B" in name:  # zero at first, which would hide half of a disagreement
                torch.nn.init.normal_(parameter, std=0.02)
        self.encoder.train()
        adapters = [p for p in self.encoder.parameters() if p.requires_grad]
        groups = [
            {"params": list(self.head.parameters()), "lr": 5e-3},
            {"params": adapters, "lr": 2e-3},
        ]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0)

    def adapters(self):
        """What is trained, under the names of droppeft."""
        state = {f"classifier.{n}": p.detach().clone() for n, p in self.head.named_parameters()}
        for name, parameter in self.encoder.named_parameters():
            if parameter.requires_grad:
                name = name.removeprefix("base_model.model.")
                name = name.replace(".lora_A.default.weight", ".lora.A")
                name = name.replace(".lora_B.default.weight", ".lora.B")
                state[f"bert.{name}"] = parameter.detach().clone()
        return state

    def step(self, ids, mask, labels):
        """Loss, and milliseconds of forward, backward and optimiser."""
        start = time.perf_counter()
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        if mask is None:
            pooled = hidden.mean(1)
        else:
            weights = mask.unsqueeze(-1).float()
            pooled = (hidden * weights).sum(1) / weights.sum(1)
        loss = torch.nn.functional.cross_entropy(self.head(pooled), labels)
        forward = time.perf_counter()
        self.optimizer.zero_grad()
        loss.backward()
        backward = time.perf_counter()
        self.optimizer.step()
        end = time.perf_counter()
        times = (forward - start, backward - forward, end - backward)
        return loss.item(), *(1e3 * seconds for seconds in times)


class Ours:
    """The program text_step."""

    def __init__(self, batches, adapters, folder):
        workload = dict(adapters)
        for name, (ids, mask, labels) in batches.items():
            workload[f"batch.{name}.ids"] = ids
            workload[f"batch.{name}.labels"] = labels
            if mask is not None:
                workload[f"batch.{name}.mask"] = mask.float()
        save_file({n: t.clone() for n, t in workload.items()}, folder / "workload")
        command = [arguments.program, arguments.model, folder / "workload", str(arguments.threads)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.ask("")

    def ask(self, line):
        if line:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{arguments.program} ended")
        return answer

    def step(self, name):
        return tuple(float(part) for part in self.ask(name).split())


def interval_of_median(values):
    """A 95 % interval from order statistics (binomial, conservative)."""
    values, n = sorted(values), len(values)
    term, below, rank = 0.5**n, 0.0, 0
    while below + term <= 0.025:
        below += term
        rank += 1
        term *= (n - rank + 1) / rank
    rank = max(rank, 1)
    return values[rank - 1], values[n - rank]


def main():
    batches, classes = make_batches()
    rival = Rival(classes)
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(batches, rival.adapters(), pathlib.Path(folder))
        print(
            f"torch {torch.__version__}, transformers {transformers.__version__}, "
            f"peft {peft.__version__}, {torch.backends.cpu.get_cpu_capability()}, "
            f"{arguments.threads} threads"
        )
        results = {name: [] for name in batches}
        worst = 0.0
        for turn in range(-3, arguments.turns):  # three to warm up
            for name, batch in batches.items():
                # Turn by turn the other one goes first.
                if turn % 2:
                    mine, theirs = ours.step(name), rival.step(*batch)
                else:
                    theirs, mine = rival.step(*batch), ours.step(name)
                worst = max(worst, abs(mine[0] - theirs[0]) / abs(theirs[0]))
                if turn >= 0:
                    results[name].append((mine[1:], theirs[1:]))
        for name, turns in results.items():
            ids, mask, _ = batches[name]
            tokens = ids.numel() if mask is None else int(mask.sum())
            print(f"\n{name}: {ids.shape[0]} x {ids.shape[1]}, {tokens} tokens; median ms")
            print("              forward  backward  optimiser    step")
            for label, side in (("droppeft", 0), ("transformers", 1)):
                parts = [statistics.median(turn[side][i] for turn in turns) for i in range(3)]
                total = statistics.median(sum(turn[side]) for turn in turns)
                print(f"{label:12} {parts[0]:9.1f} {parts[1]:9.1f} {parts[2]:10.2f} {total:7.1f}")
            ratios = [sum(theirs) / sum(mine) for mine, theirs in turns]
            low, high = interval_of_median(ratios)
            print(
                f"transformers / droppeft: {statistics.median(ratios):.3f}, "
                f"95 % interval {low:.3f} to {high:.3f}, {len(turns)} turns"
            )
        print(f"\nlargest relative difference of a loss, over {arguments.turns + 3} steps: {worst:.1e}")
        if not worst < 1e-3:
            raise SystemExit("the two did not compute the same steps")


main()
