"""Weights from a formula: the twin of crates/resnet-model/src/synthetic.rs, bit for bit.

A value depends only on the tensor's name, the element's index and the tensor's role, so that networks of any size can
be compared between the two languages without storing their weights.
"""

import math

import numpy as np
import torch

MASK = (1 << 64) - 1


def fnv1a(data: bytes) -> int:
    h = 0xCBF29CE484222325
    for byte in data:
        h = ((h ^ byte) * 0x100000001B3) & MASK
    return h


def uniform(name: str, count: int) -> np.ndarray:
    """The first `count` numbers of the sequence named `name`: float64 in [0, 1), multiples of 2^-24."""
    index = np.arange(1, count + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        z = np.uint64(fnv1a(name.encode())) + index * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float64) / float(1 << 24)


def bounds(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """The range of a tensor's values. The role follows from the name's last component and the number of dimensions."""
    last = name.rsplit(".", 1)[-1]
    fan_in = math.prod(shape[1:])
    if last == "weight" and len(shape) == 4:
        high = math.sqrt(6.0 / fan_in)
    elif last == "weight" and len(shape) == 2:
        high = math.sqrt(3.0 / fan_in)
    elif last in ("weight", "v") and len(shape) == 1:
        return 0.4, 0.8
    elif last == "running_var":
        return 0.7, 1.3
    elif last in ("bias", "running_mean", "pos_embed", "tau"):
        high = 0.2
    else:
        raise ValueError(f"no role for {name} {shape}")
    return -high, high


def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The values of one tensor, float32."""
    low, high = bounds(name, shape)
    flat = low + (high - low) * uniform(name, math.prod(shape))
    return flat.astype(np.float32).reshape(shape)


def input(*shape: int) -> np.ndarray:
    """An input batch, float32 in [-2, 2)."""
    return (-2.0 + 4.0 * uniform("input", math.prod(shape))).astype(np.float32).reshape(shape)


def fill(module: torch.nn.Module) -> torch.nn.Module:
    """Gives every tensor of the module's state dict its values by formula; returns the module in evaluation mode."""
    state = module.state_dict()
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            tensor.zero_()
        else:
            tensor.copy_(torch.from_numpy(values(name, tuple(tensor.shape))))
    return module.eval()
