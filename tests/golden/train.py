"""Writes what ten steps of training give in PyTorch: `python -B tests/golden/train.py`.

Narrow networks, SGD with Nesterov momentum and decay on matrices, training-mode batch norm, cross entropy. The reference
runs in f64; PyTorch's own f32 run must stay within half of what our tests allow.
"""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from torch.nn import functional as F

import formula
import nets

HERE = Path(__file__).resolve().parent
STEPS, BATCH, CLASSES = 10, 6, 5
SETTINGS = {"momentum": 0.9, "weight_decay": 1e-2}


def arch(block: str, widths: list[int], **options) -> dict:
    return {
        "family": "resnet",
        "stem": {"kind": "conv7", "width": 8},
        "stages": [{"block": block, "depth": 2 if i < 2 else 1, "width": w} for i, w in enumerate(widths)],
        "shortcut": "projection",
        **options,
        "in_channels": 3,
        "num_classes": CLASSES,
    }


# Learning rates are so small that a ReLU whose input changes sign by rounding stays within the tests' tolerances:
# perturbing all weights by 3e-7 changes losses by at most 2e-5.
NETS = {
    "basic": (arch("basic", [8, 16, 24]), (49, 56), 2e-3),
    "bottleneck": (arch("bottleneck", [8, 8, 16]), (56, 49), 1e-3),
    "grouped": (arch("bottleneck", [8, 8], groups=4, group_width=64), (48, 40), 5e-4),
}


def run(net, x, y, rate: float) -> list[float]:
    matrices = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": SETTINGS["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
    sgd = torch.optim.SGD(groups, lr=rate, momentum=SETTINGS["momentum"], nesterov=True)
    net.train()
    losses = []
    for step in range(STEPS):
        sgd.zero_grad()
        loss = F.cross_entropy(net(x[step]), y[step])
        loss.backward()
        sgd.step()
        losses.append(loss.item())
    return losses


def start(description: dict) -> nets.Net:
    net = formula.fill(nets.Net(description))
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name.endswith("running_mean"):
                tensor.zero_()
            elif name.endswith("running_var"):
                tensor.fill_(1)
    return net


def main() -> None:
    torch.set_num_threads(1)
    folder = HERE / "train"
    folder.mkdir(exist_ok=True)
    for name, (description, size, rate) in NETS.items():
        x = formula.input(STEPS * BATCH, 3, *size).reshape(STEPS, BATCH, 3, *size)
        y = (np.floor(formula.uniform("classes", STEPS * BATCH) * CLASSES)).astype(np.int64).reshape(STEPS, BATCH)
        single, double = start(description), start(description).double()
        losses = run(double, torch.from_numpy(x).double(), torch.from_numpy(y), rate)
        f32 = run(single, torch.from_numpy(x), torch.from_numpy(y), rate)
        worst = max(abs(a - b) for a, b in zip(f32, losses))
        relative = {}
        for (key, a), b in zip(single.state_dict().items(), double.state_dict().values()):
            if a.dtype.is_floating_point:
                relative[key] = float((a - b).abs().max() / b.abs().max())
        print(f"{name}: losses {losses[0]:.4f} to {losses[-1]:.4f}, f32 differs by {worst:.1e}, weights by "
              f"{max(relative.values()):.1e}")
        assert worst < 5e-5 and max(relative.values()) < 5e-4, (worst, max(relative, key=relative.get))
        tensors = {k: v.float().numpy() if v.dtype.is_floating_point else v.numpy() for k, v in double.state_dict().items()}
        tensors["losses"] = np.array(losses, dtype=np.float64)
        meta = {"arch": description, "size": size, "steps": STEPS, "batch": BATCH, "classes": CLASSES, "rate": rate}
        meta |= SETTINGS
        save_file(tensors, folder / f"{name}.safetensors", {"run": json.dumps(meta, separators=(",", ":"))})


if __name__ == "__main__":
    main()
