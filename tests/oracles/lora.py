"""Expected outputs and gradients of a LoRA linear layer, and which modules a target names, from
Hugging Face peft.

    pip install torch==2.11.0 peft==0.21.2
    python tests/oracles/lora.py          # writes tests/oracles/data/lora.json

Inputs, weights and the gradient of the loss with respect to the output are numbers that float
holds exactly; everything is computed in double.
"""

import json
import pathlib

import peft
import torch
from peft.tuners.tuners_utils import check_target_module_exists

VARIANTS = [
    # rank, alpha, rslora, bias, shape of the input
    (1, 8, False, True, [4, 6]),
    (2, 8, False, True, [4, 6]),
    (2, 8, True, True, [4, 6]),
    (3, 1.5, False, False, [4, 6]),
    (3, 1.5, True, False, [2, 3, 6]),
    (4, 32, False, True, [2, 3, 6]),
    (8, 16, True, True, [2, 1, 2, 6]),
    (4, 4, False, True, [6]),
]
OUT_FEATURES = 5

PATHS = [
    "query", "encoder.layer.0.query", "encoder.layer.0.value", "encoder.layer.10.query",
    "encoder.layer.1.subquery", "encoder.layer.1.query.dense", "encoder.layer.1.output.dense",
    "query.key", "classifier",
]  # fmt: skip
TARGETS = [
    ["query"], ["query", "value"], ["output.dense"], ["dense"], ["layer.0.query"], ["uery"],
    ["encoder.layer.1"], [".query"], "query", ".*query", ".*\\.query", "query|classifier",
    "encoder\\.layer\\.[01]\\..*", ".*\\.(query|value)", "encoder",
]  # fmt: skip


class Model(torch.nn.Module):
    def __init__(self, in_features, bias):
        super().__init__()
        self.dense = torch.nn.Linear(in_features, OUT_FEATURES, bias=bias)

    def forward(self, x):
        return self.dense(x)


def floats(tensor):
    return {"shape": list(tensor.shape), "values": tensor.detach().flatten().tolist()}


def variant(rank, alpha, rslora, bias, shape):
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, use_rslora=rslora, target_modules=["dense"]
    )
    model = peft.get_peft_model(Model(shape[-1], bias), config)
    dense = model.base_model.model.dense
    torch.nn.init.normal_(dense.lora_B["default"].weight)
    model.double()
    x = torch.randn(shape).double().requires_grad_()
    y = model(x)
    gradient = torch.randn(y.shape).double()
    y.backward(gradient)
    a, b = dense.lora_A["default"].weight, dense.lora_B["default"].weight
    base = dense.base_layer
    assert base.weight.grad is None
    tensors = {"x": x, "weight": base.weight.detach().clone(), "A": a, "B": b, "y": y, "grad_y": gradient}
    tensors |= {"grad_x": x.grad, "grad_A": a.grad, "grad_B": b.grad}
    if bias:
        tensors["bias"] = base.bias
    model.merge_adapter()
    tensors["merged"] = base.weight
    settings = {"rank": rank, "alpha": alpha, "rslora": rslora}
    return settings | {name: floats(tensor) for name, tensor in tensors.items()}


def named(targets):
    config = peft.LoraConfig(target_modules=targets)
    return {
        "targets": targets,
        "paths": [path for path in PATHS if check_target_module_exists(config, path)],
    }


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    result = {
        "versions": {"peft": peft.__version__, "torch": torch.__version__.split("+")[0]},
        "paths": PATHS,
        "targets": [named(targets) for targets in TARGETS],
        "variants": [variant(*settings) for settings in VARIANTS],
    }
    path = pathlib.Path(__file__).parent / "data" / "lora.json"
    path.write_text(json.dumps(result, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
