"""Writes the golden files of this folder: `make golden`, or `python -B tests/golden/generate.py [PART …]`.

Reference numbers are computed in f64 and rounded to f32 once, so that they do not depend on a machine's kernels and
carry no rounding error; agreement of PyTorch's f32 result is checked here.
"""

import hashlib
import importlib.metadata
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torchvision
from safetensors.numpy import save_file

import checkpoints
import formula
import nets

HERE = Path(__file__).resolve().parent

# Full-size networks whose logits are stored; the weights are the formula's.
FULL = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "wide_resnet50_2"]
# torchvision's networks that the zoo knows.
ZOO = FULL[:6] + ["resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"]
# How far PyTorch's own f32 results may lie from the f64 ones, relative to the largest magnitude.
F32_TOLERANCE = 2e-5


@torch.no_grad()
def reference(net, x: np.ndarray, run) -> dict[str, np.ndarray]:
    """What `run(net, x)` gives in f64, rounded to f32; fails when PyTorch's f32 results are far from it."""
    single = run(net, torch.from_numpy(x))
    double = run(net.double(), torch.from_numpy(x).double())
    net.float()
    for name, value in double.items():
        error = float((single[name] - value).abs().max() / value.abs().max())
        assert error < F32_TOLERANCE, (name, error)
    return {name: value.float().contiguous().numpy() for name, value in double.items()}


def torchvision_taps(net, x) -> dict[str, torch.Tensor]:
    taps = {"stem": net.maxpool(net.relu(net.bn1(net.conv1(x))))}
    for i in range(1, 5):
        taps[f"layer{i}"] = getattr(net, f"layer{i}")(list(taps.values())[-1])
    taps["pooled"] = taps["layer4"].mean((2, 3))
    taps["logits"] = net.fc(taps["pooled"])
    return taps


def logits() -> None:
    """Logits of the full networks, and all taps of two of them at small sizes."""
    out = {}
    for model in FULL:
        net = formula.fill(getattr(torchvision.models, model)(weights=None))
        shapes = {model: (1, 3, 224, 224)}
        if model == "resnet50":
            shapes[f"{model}_n2_193x161"] = (2, 3, 193, 161)
        for name, shape in shapes.items():
            out[name] = reference(net, formula.input(*shape), lambda net, x: {"logits": net(x)})["logits"]
            spread = out[name].std() / np.abs(out[name]).max()
            print(f"{name}: largest {np.abs(out[name]).max():.3f}, std / largest {spread:.3f}", flush=True)
    save_file(out, HERE / "logits.safetensors")

    out = {}
    for model, shape in [("resnet18", (1, 3, 48, 48)), ("resnet50", (1, 3, 40, 33))]:
        net = formula.fill(getattr(torchvision.models, model)(weights=None))
        taps = reference(net, formula.input(*shape), torchvision_taps)
        out |= {f"{model}.{tap}": value for tap, value in taps.items()}
    save_file(out, HERE / "taps.safetensors")


def formula_hashes() -> None:
    """Hashes of tensors by formula, one of every role, so that its two versions stay the same."""
    cases = {
        "conv1.weight": (64, 3, 7, 7),
        "layer4.2.conv2.weight": (512, 512, 3, 3),
        "fc.weight": (1000, 2048),
        "fc.bias": (1000,),
        "bn1.weight": (64,),
        "bn1.bias": (64,),
        "bn1.running_mean": (64,),
        "bn1.running_var": (64,),
    }
    tensors = {name: formula.values(name, shape) for name, shape in cases.items()}
    tensors["input"] = formula.input(1, 3, 224, 224)
    rows = ["name\tshape\tfirst value\tFNV-1a hash of all values' little-endian bytes"]
    for name, values in tensors.items():
        hashed = formula.fnv1a(values.astype("<f4").tobytes())
        rows.append(f"{name}\t{'x'.join(map(str, values.shape))}\t{values.flat[0]}\t{hashed:016x}")
    (HERE / "formula.tsv").write_text("\n".join(rows) + "\n")


def narrow_archs() -> dict[str, tuple[dict, tuple[int, ...]]]:
    """Small networks that together use every option of the family, and the shapes of their inputs."""

    def arch(block, widths, depths, shortcut, stem="conv7", classes=10, channels=3, **options):
        blocks = block if isinstance(block, list) else [block] * len(widths)
        stages = [{"block": b, "depth": d, "width": w} for b, d, w in zip(blocks, depths, widths)]
        return {
            "family": "resnet",
            "stem": {"kind": stem, "width": 8},
            "stages": stages,
            "shortcut": shortcut,
            **options,
            "in_channels": channels,
            "num_classes": classes,
        }

    basic, bottleneck = ([8, 12, 16, 20], [1, 2, 1, 1]), ([4, 6, 8, 10], [1, 2, 1, 1])
    large, small = (2, 3, 45, 27), (2, 3, 15, 11)
    v1 = {"stride_in": "conv1x1"}
    return {
        "basic-projection": (arch("basic", *basic, "projection"), large),
        "basic-projection-all": (arch("basic", [8, 12, 16], [1, 2, 1], "projection_all"), large),
        "basic-zero-pad": (arch("basic", [8, 13, 16], [1, 2, 1], "zero_pad"), large),
        "basic-one-sided": (arch("basic", *basic, "projection", padding="one_sided"), (2, 3, 64, 32)),
        "bottleneck-one-sided-blocks": (
            arch("bottleneck", *bottleneck, "projection", padding="one_sided_blocks"), (2, 3, 64, 32)
        ),
        "bottleneck-one-sided-pool": (
            arch("bottleneck", *bottleneck, "projection", padding="one_sided_pool"), (2, 3, 46, 27)
        ),
        "basic-plain": (arch("basic", [8, 12, 16], [1, 2, 1], "none"), large),
        "bottleneck-projection": (arch("bottleneck", *bottleneck, "projection"), large),
        "bottleneck-projection-v1": (arch("bottleneck", *bottleneck, "projection", **v1), large),
        "bottleneck-projection-all-v1": (arch("bottleneck", *bottleneck, "projection_all", **v1), large),
        "bottleneck-zero-pad": (arch("bottleneck", *bottleneck, "zero_pad"), large),
        "bottleneck-plain": (arch("bottleneck", *bottleneck, "none"), large),
        "cifar-zero-pad": (arch("basic", [8, 12, 16], [2, 1, 1], "zero_pad", "conv3"), small),
        "cifar-plain": (arch("basic", [8, 12, 16], [2, 1, 1], "none", "conv3"), small),
        "cifar-bottleneck": (arch("bottleneck", *bottleneck, "projection", "conv3"), small),
        "grouped": (arch("bottleneck", [4, 8, 8], [1, 2, 1], "projection", groups=4, group_width=32), large),
        "wide": (arch("bottleneck", [4, 6, 8], [1, 1, 1], "projection", group_width=128), large),
        "mixed-blocks": (arch(["basic", "bottleneck"], [8, 6], [1, 2], "projection"), large),
        "grey-headless": (arch("basic", [8, 12], [1, 1], "projection", classes=0, channels=1), (1, 1, 30, 41)),
        "large-eps": (arch("basic", [8, 12], [1, 1], "projection", norm_eps=0.001), large),
    }


@torch.no_grad()
def fill_narrow(net, seed: str, x: np.ndarray) -> None:
    """Values by formula, norm factors of both signs; running statistics about those of `x`, so that signals live on."""
    formula.fill(net)
    uniform = {
        name: torch.from_numpy(formula.uniform(f"{seed}/{name}", tensor.numel())).reshape(tensor.shape)
        for name, tensor in net.state_dict().items()
    }
    for name, tensor in net.state_dict().items():
        if tensor.ndim > 1:
            low, high = formula.bounds(name, tuple(tensor.shape))
            tensor.copy_(low + (high - low) * uniform[name])
        elif name.endswith("weight"):
            tensor.copy_(1.5 * uniform[name] - 0.3)
        elif name.endswith("bias"):
            tensor.copy_(uniform[name] - 0.5)
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    net.double().train()(torch.from_numpy(x).double())
    for name, tensor in net.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_((tensor * (0.7 + 0.6 * uniform[name])).clamp(min=0.01))
        elif name.endswith("running_mean"):
            tensor.add_(0.2 * (uniform[name] - 0.5))
        elif name.endswith("num_batches_tracked"):
            tensor.fill_(7)
    net.float().eval()


def narrow() -> None:
    """Narrow networks: weights, input, every stage's output."""
    folder = HERE / "narrow"
    folder.mkdir(exist_ok=True)
    for file, (arch, shape) in narrow_archs().items():
        net = nets.Net(arch)
        x = formula.input(*shape)
        fill_narrow(net, file, x)
        tensors = {name: tensor.numpy().copy() for name, tensor in net.state_dict().items()}
        tensors |= {"input": x} | reference(net, x, nets.Net.taps)
        save_file(tensors, folder / f"{file}.safetensors", {"arch": json.dumps(arch, separators=(",", ":"))})


def zoo() -> None:
    """Names and shapes of torchvision's networks, in the order of their state dicts."""
    rows = ["model\ttensors\tparameters\tsha256"]
    for model in ZOO:
        with torch.device("meta"):
            net = getattr(torchvision.models, model)(weights=None)
        shape = lambda t: "x".join(map(str, t.shape)) or "scalar"  # noqa: E731
        listing = "".join(f"{name} {shape(tensor)}\n" for name, tensor in net.state_dict().items())
        parameters = sum(p.numel() for p in net.parameters())
        digest = hashlib.sha256(listing.encode()).hexdigest()
        rows.append(f"{model}\t{len(net.state_dict())}\t{parameters}\t{digest}")
        if model in ("resnet18", "resnet50"):
            (HERE / f"zoo-{model}.txt").write_text(listing)
    (HERE / "zoo.tsv").write_text("\n".join(rows) + "\n")


def containers() -> None:
    """One small network in every form that `torch.save` has had."""
    checkpoints.generate(HERE / "checkpoints")


PARTS = {"formula": formula_hashes, "logits": logits, "narrow": narrow, "zoo": zoo, "checkpoints": containers}


def main() -> None:
    pinned = [line.split("==") for line in (HERE / "requirements.txt").read_text().splitlines() if "==" in line]
    for package, version in pinned:
        found = importlib.metadata.version(package)
        if found != version:
            sys.exit(f"{package} is {found}, expected {version}: see tests/golden/requirements.txt")
    torch.set_num_threads(1)
    parts = sys.argv[1:] or list(PARTS)
    if unknown := set(parts) - set(PARTS):
        sys.exit(f"unknown part {sorted(unknown)}, known are {list(PARTS)}")
    for part in parts:
        print(f"{part}: {PARTS[part].__doc__}", flush=True)
        PARTS[part]()


if __name__ == "__main__":
    main()
