"""The training step of federated_text against transformers + peft: same machine, model, batches,
initial adapters and threads, in turns.

Usage: text_step.py PROGRAM MODEL_DIR [--models MiniLM BERT-base] [--dtypes fp32 bf16] [--compile]
[--turns 31] [--threads 2] [--json FILE]

PROGRAM is the bench text_step of the build tree, MODEL_DIR has MiniLM. A step is forward, backward
and AdamW: masked mean pooling and a linear head on the encoder, LoRA (r 8, alpha 16) on query and
value, the model's own dropout 0, and no attention mask for the rival where nothing is padded.

MiniLM meets two batches of 16 texts from examples/federated_text/messages.csv: joined and cut to 64
tokens ("full"), and single messages padded to the longest ("mixed"). BERT-base, with weights at
random, meets 8 x 128 random tokens. bf16: our weights and activations are bf16, adapters and head
fp32; the rival is taken both ways, its weights in bf16 with adapters in fp32, and everything in
fp32 under autocast. --compile: torch.compile of the rival's encoder, too. Peaks are bytes of
tensors that one step allocates, ours by droppeft::MemoryMeter, the rival's by PyTorch's profiler.
"""

import argparse
import csv
import pathlib
import random
import statistics
import tempfile
import time
import typing

import peft
import torch
import transformers
from safetensors.torch import save_file
from turns import Program, peak_bytes, ratio_of, record, take_turns, write

MESSAGES = pathlib.Path(__file__).parents[2] / "examples/federated_text/messages.csv"
# Largest difference of the first two losses, as a share of them; the second one has seen gradients
# and optimiser.
AGREEMENT = {"fp32": 1e-3, "bf16": 5e-2}


class Batch(typing.NamedTuple):
    ids: torch.Tensor
    mask: torch.Tensor | None  # None when nothing is padded
    labels: torch.Tensor

    def padded(self):
        return self.mask is not None

    def tokens(self):
        return int(self.mask.sum()) if self.padded() else self.ids.numel()


class Model(typing.NamedTuple):
    folder: pathlib.Path
    batches: dict
    classes: int


def minilm(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with MESSAGES.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    random.Random(0).shuffle(rows)
    names = sorted({row["label"] for row in rows})
    texts = [row["text"] for row in rows]
    labels = torch.tensor([names.index(row["label"]) for row in rows[:16]])
    joined = [" ".join(texts[i : i + 16]) for i in range(0, 16 * 16, 16)]
    options = {"truncation": True, "max_length": 64, "return_tensors": "pt"}
    full = tokenizer(joined, **options)
    mixed = tokenizer(texts[:16], padding=True, **options)
    batches = {
        "full": Batch(full["input_ids"], None, labels),
        "mixed": Batch(mixed["input_ids"], mixed["attention_mask"], labels),
    }
    return Model(folder, batches, len(names))


def bert_base(folder):
    """Writes the model to `folder`."""
    model = transformers.BertModel(transformers.BertConfig(), add_pooling_layer=False)
    model.save_pretrained(folder)
    ids = torch.randint(1000, model.config.vocab_size, (8, 128))
    return Model(folder, {"full": Batch(ids, None, torch.randint(2, (8,)))}, 2)


class Rival:
    """transformers + peft."""

    def __init__(self, model, dtype, autocast, compiled):
        self.autocast = autocast
        encoder = transformers.AutoModel.from_pretrained(
            model.folder,
            attn_implementation="sdpa",
            dtype=dtype,
            add_pooling_layer=False,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        lora = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"])
        self.encoder = peft.get_peft_model(encoder, lora)
        self.head = torch.nn.Linear(encoder.config.hidden_size, model.classes)
        for name, parameter in self.encoder.named_parameters():
            if "lora_B" in name:  # zero at first, which would hide half of a disagreement
                torch.nn.init.normal_(parameter, std=0.02)
        self.encoder.train()
        self.run_encoder = torch.compile(self.encoder) if compiled else self.encoder

    def trained(self):
        """Parameters under the names of droppeft."""
        state = {f"classifier.{n}": p for n, p in self.head.named_parameters()}
        for name, parameter in self.encoder.named_parameters():
            if parameter.requires_grad:
                name = name.removeprefix("base_model.model.")
                name = name.replace(".lora_A.default.weight", ".lora.A")
                name = name.replace(".lora_B.default.weight", ".lora.B")
                state[f"bert.{name}"] = parameter
        return state

    def start(self, adapters):
        """With these, and a new optimiser."""
        with torch.no_grad():
            for name, parameter in self.trained().items():
                parameter.copy_(adapters[name])
        lora = [p for p in self.encoder.parameters() if p.requires_grad]
        groups = [
            {"params": list(self.head.parameters()), "lr": 5e-3},
            {"params": lora, "lr": 2e-3},
        ]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0)

    def loss(self, batch):
        hidden = self.run_encoder(
            input_ids=batch.ids, attention_mask=batch.mask
        ).last_hidden_state.float()
        if batch.padded():
            weights = batch.mask.unsqueeze(-1).float()
            pooled = (hidden * weights).sum(1) / weights.sum(1)
        else:
            pooled = hidden.mean(1)
        return torch.nn.functional.cross_entropy(self.head(pooled), batch.labels)

    def step(self, batch):
        """Loss, and seconds of forward, backward and optimiser."""
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            loss = self.loss(batch)
        forward = time.perf_counter()
        self.optimizer.zero_grad()
        loss.backward()
        backward = time.perf_counter()
        self.optimizer.step()
        end = time.perf_counter()
        return loss.item(), forward - start, backward - forward, end - backward

    def peak(self, batch):
        self.optimizer.zero_grad()
        return peak_bytes(lambda: self.step(batch))


class Ours:
    """The program text_step."""

    def __init__(self, arguments, model, dtype, adapters, folder):
        workload = dict(adapters)
        for name, batch in model.batches.items():
            workload[f"batch.{name}.ids"] = batch.ids
            workload[f"batch.{name}.labels"] = batch.labels
            if batch.padded():
                workload[f"batch.{name}.mask"] = batch.mask.float()
        save_file({n: t.clone() for n, t in workload.items()}, folder / "workload")
        command = [arguments.program, model.folder, folder / "workload", arguments.threads, dtype]
        self.program = Program(command)

    def step(self, name):
        return tuple(float(part) for part in self.program.ask(name).split())

    def peak(self, name):
        return int(self.program.ask("peak " + name))


def make_rivals(model, dtype, compiled):
    """By name; and the adapters to start with."""
    ways = {"fp32": [("", torch.float32, False)]}
    ways["bf16"] = [(", bf16 weights", torch.bfloat16, False), (", autocast", torch.float32, True)]
    rivals = {}
    for way, weights, autocast in ways[dtype]:
        for suffix in ["", ", torch.compile"] if compiled else [""]:
            name = "transformers + peft" + way + suffix
            rivals[name] = Rival(model, weights, autocast, bool(suffix))
    adapters = {n: p.detach().clone() for n, p in next(iter(rivals.values())).trained().items()}
    return rivals, adapters


def check(work, first):
    """That all computed the same steps, from what their first two gave."""
    for name, turns in first.items():
        pairs = list(zip(first["droppeft"], turns))
        worst = max(abs(our[0] / their[0] - 1) for our, their in pairs)
        if not worst < AGREEMENT[work[2]]:
            raise SystemExit(f"{', '.join(work)}: losses of droppeft and {name} differ by {worst}")


def compare(work, batch, ours, rivals, batch_name, turns):
    """Prints the steps of a batch; returns their records."""
    sides = {"droppeft": lambda: ours.step(batch_name)}
    sides |= {name: (lambda rival=rival: rival.step(batch)) for name, rival in rivals.items()}
    check(work, take_turns(sides, 2, warm_up=0))
    results = take_turns(sides, turns, warm_up=1)
    peaks = {"droppeft": ours.peak(batch_name)}
    peaks |= {name: rival.peak(batch) for name, rival in rivals.items()}
    times = {name: [sum(turn[1:]) for turn in results[name]] for name in sides}
    print(f"\n{', '.join(work)}: {batch.tokens()} tokens; median ms, peak MB")
    print(f"{'':45} forward  backward  optimiser    step  peak  of ours, 95 %")
    records = []
    for name in sides:
        parts = [1e3 * statistics.median(turn[i] for turn in results[name]) for i in (1, 2, 3)]
        ratio = ratio_of(times[name], times["droppeft"])
        print(
            f"{name:45} {parts[0]:7.1f} {parts[1]:9.1f} {parts[2]:10.2f} "
            f"{1e3 * statistics.median(times[name]):7.1f} {1e-6 * peaks[name]:5.0f} "
            f"{ratio[0]:.3f} ({ratio[1]:.3f} to {ratio[2]:.3f})"
        )
        more = {"peak_bytes": peaks[name]} | ({} if name == "droppeft" else {"ratio": ratio})
        records.append(record("text_step", work, name, times[name], **more))
    return records


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--models", nargs="+", default=["MiniLM", "BERT-base"])
    parser.add_argument("--dtypes", nargs="+", choices=AGREEMENT, default=list(AGREEMENT))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--turns", type=int, default=31)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"peft {peft.__version__}, {torch.backends.cpu.get_cpu_capability()}, "
        f"{arguments.threads} threads"
    )
    records = []
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            model = minilm(arguments.model) if name == "MiniLM" else bert_base(folder)
            for dtype in arguments.dtypes:
                rivals, adapters = make_rivals(model, dtype, arguments.compile)
                for batch_name, batch in model.batches.items():
                    shape = f"{name} {batch.ids.shape[0]} x {batch.ids.shape[1]}"
                    work = "lora_step", shape + (", padded" if batch.padded() else ""), dtype
                    for rival in rivals.values():
                        rival.start(adapters)
                    ours = Ours(arguments, model, dtype, adapters, folder)
                    records += compare(work, batch, ours, rivals, batch_name, arguments.turns)
                    ours.program.close()
    write(records, arguments.json)


if __name__ == "__main__":
    main()
