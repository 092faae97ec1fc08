"""Writes data/bert.safetensors: what transformers makes of 1,000 texts of mixed length.

Usage: python bert.py MODEL_DIR MESSAGES.csv OUTPUT.safetensors

Most texts are single messages, some are several joined, up to 250 tokens. transformers runs in
double precision, one text at a time. Stored: `ids` (all texts, one after the other) and `lengths`;
`projected` [1000, 8], the mean of each text's last hidden states on the 8 columns of `directions`;
`hidden.0` to `hidden.2`, the whole last hidden states of the texts 0 to 2. The metadata hold the
versions, and how far transformers' own single precision is from this, as the test measures it.
Made with torch 2.11.0 and transformers 5.23.0.
"""

import csv
import random
import sys

import torch
import transformers
from safetensors.torch import save_file

folder, messages, output = sys.argv[1:]
transformers.logging.set_verbosity_error()
draw = random.Random(0)
torch.manual_seed(0)

with open(messages, newline="", encoding="utf-8") as file:
    texts = [row["text"] for row in csv.DictReader(file) if row["text"]]
draw.shuffle(texts)
parts = [1] * 900 + [draw.randint(2, 5) for _ in range(80)] + [12] * 20
joined = [" ".join(texts[i + j] for j in range(count)) for i, count in enumerate(parts)]
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
ids = tokenizer(joined, truncation=True, max_length=250)["input_ids"]


def encoder(dtype):
    model = transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False, dtype=dtype)
    return model.eval()


double, single = encoder(torch.float64), encoder(torch.float32)
directions = torch.randn(double.config.hidden_size, 8, dtype=torch.float64)
projected = torch.empty(len(ids), 8, dtype=torch.float64)
tensors = {}
distance = 0.0
with torch.no_grad():
    for i, row in enumerate(ids):
        row = torch.tensor([row])
        hidden = double(input_ids=row).last_hidden_state[0]
        projected[i] = hidden.mean(0) @ directions
        if i < 3:
            tensors[f"hidden.{i}"] = hidden.float()
        if i % 10 == 0:
            other = single(input_ids=row).last_hidden_state[0].double().mean(0) @ directions
            distance = max(distance, float((other - projected[i]).norm() / projected[i].norm()))

tensors |= {
    "ids": torch.tensor([token for row in ids for token in row], dtype=torch.int16),
    "lengths": torch.tensor([len(row) for row in ids], dtype=torch.int16),
    "directions": directions,
    "projected": projected,
}
metadata = {
    "torch": torch.__version__,
    "transformers": transformers.__version__,
    "largest relative error of transformers in single precision": f"{distance:.2e}",
}
save_file(tensors, output, metadata=metadata)
print(metadata, "tokens", sum(map(len, ids)), "longest", max(map(len, ids)))
