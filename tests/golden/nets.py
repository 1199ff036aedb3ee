"""Residual and plain networks in PyTorch from the JSON form of `resnet_model::Arch`, with torchvision's names.

Written from the paper (arXiv 1512.03385), independently of the Rust code that is tested against it.
"""

import torch
from torch import nn
from torch.nn import functional as F

EXPANSION = {"basic": 1, "bottleneck": 4}


def same(x, kernel: int, stride: int, value: float = 0):
    """TensorFlow's `SAME` padding."""
    total = [max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[2:]]
    (top, bottom), (left, right) = [(n // 2, n - n // 2) for n in total]
    return F.pad(x, (left, right, top, bottom), value=value)


class SameConv2d(nn.Conv2d):
    """A convolution whose padding is that, as in the networks of TensorFlow."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, padding: int, **options):
        super().__init__(channels, out, kernel, stride, 0, **options)

    def forward(self, x):
        return super().forward(same(x, self.kernel_size[0], self.stride[0]))


class Block(nn.Module):
    def __init__(self, arch: dict, kind: str, channels: int, width: int, stride: int):
        super().__init__()
        self.out = width * EXPANSION[kind]
        self.stride = stride
        self.shortcut = arch["shortcut"]
        norm = lambda channels: nn.BatchNorm2d(channels, arch.get("norm_eps", 1e-5))  # noqa: E731
        if kind == "basic":
            convs = [(channels, width, 3, stride, 1), (width, self.out, 3, 1, 1)]
        else:
            groups = arch.get("groups", 1)
            inner = width * arch.get("group_width", 64) // 64 * groups
            first, second = (stride, 1) if arch.get("stride_in") == "conv1x1" else (1, stride)
            convs = [(channels, inner, 1, first, 1), (inner, inner, 3, second, groups), (inner, self.out, 1, 1, 1)]
        self.depth = len(convs)
        for i, (cin, cout, kernel, step, groups) in enumerate(convs, 1):
            same = arch.get("padding") in ("one_sided", "one_sided_blocks")
            conv = (SameConv2d if same else nn.Conv2d)(cin, cout, kernel, step, kernel // 2, groups=groups, bias=False)
            setattr(self, f"conv{i}", conv)
            setattr(self, f"bn{i}", norm(cout))
        changes = stride != 1 or channels != self.out
        if self.shortcut == "projection_all" or (self.shortcut == "projection" and changes):
            self.downsample = nn.Sequential(nn.Conv2d(channels, self.out, 1, stride, bias=False), norm(self.out))

    def forward(self, x):
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            if i < self.depth:
                y = F.relu(y)
        if self.shortcut == "none":
            return F.relu(y)
        if hasattr(self, "downsample"):
            x = self.downsample(x)
        elif self.shortcut == "zero_pad":
            x = x[:, :, :: self.stride, :: self.stride]
            missing = self.out - x.shape[1]
            before = missing // 2
            x = F.pad(x, (0, 0, 0, 0, before, missing - before))
        return F.relu(y + x)


class Net(nn.Module):
    """`arch` as `resnet_model::Arch` is written in JSON."""

    def __init__(self, arch: dict):
        super().__init__()
        stem, width = arch["stem"]["kind"], arch["stem"]["width"]
        self.pool = stem == "conv7"
        kernel, stride = (7, 2) if self.pool else (3, 1)
        self.padding = arch.get("padding", "symmetric")
        conv = SameConv2d if self.padding == "one_sided" else nn.Conv2d
        self.conv1 = conv(arch["in_channels"], width, kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width, arch.get("norm_eps", 1e-5))
        channels = width
        self.stages = len(arch["stages"])
        for i, stage in enumerate(arch["stages"], 1):
            blocks = []
            for j in range(stage["depth"]):
                step = 2 if i > 1 and j == 0 else 1
                blocks.append(Block(arch, stage["block"], channels, stage["width"], step))
                channels = blocks[-1].out
            setattr(self, f"layer{i}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, arch["num_classes"]) if arch["num_classes"] else None

    def taps(self, x) -> dict[str, torch.Tensor]:
        """Every stage's output, by the name of its tap."""
        taps = {}
        x = F.relu(self.bn1(self.conv1(x)))
        if self.pool and self.padding == "symmetric":
            x = F.max_pool2d(x, 3, 2, 1)
        elif self.pool and self.padding == "one_sided_pool":
            x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        elif self.pool:
            x = F.max_pool2d(same(x, 3, 2, -torch.inf), 3, 2)
        taps["stem"] = x
        for i in range(1, self.stages + 1):
            x = getattr(self, f"layer{i}")(x)
            taps[f"layer{i}"] = x
        taps["pooled"] = x.mean((2, 3))
        if self.fc is not None:
            taps["logits"] = self.fc(taps["pooled"])
        return taps

    def forward(self, x):
        return list(self.taps(x).values())[-1]


def cifar(depth: int, in_channels: int = 3, num_classes: int = 10) -> dict:
    """The paper's network for CIFAR-10 (section 4.2), 6n + 2 layers deep."""
    n, rest = divmod(depth - 2, 6)
    assert rest == 0 and n > 0, depth
    return {
        "family": "resnet",
        "stem": {"kind": "conv3", "width": 16},
        "stages": [{"block": "basic", "depth": n, "width": w} for w in (16, 32, 64)],
        "shortcut": "zero_pad",
        "in_channels": in_channels,
        "num_classes": num_classes,
    }
