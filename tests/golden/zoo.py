"""Reference values for every architecture of the zoo: timm's, torchvision's and our own PyTorch networks with weights
from the formula (formula.py).

Writes zoo_params.tsv (per model: tensors, parameters, a hash of the ordered names and shapes, multiply-adds at 224
pixels), zoo_pyramids.tsv (per model of timm: channels and stride of its feature pyramid) and zoo.safetensors (per model:
the first logits, a projection of all of them, samples of every stage).
Run from the repository's root: `python tests/golden/zoo.py [NAME…]`; with names, only those are regenerated.
"""

import sys
from pathlib import Path

import formula
import nets
import numpy as np
import timm
import torch
import torchvision
from safetensors.numpy import load_file, save_file
from timm.layers import BatchNormAct2d, create_conv2d
from timm.layers.attention_pool2d import AttentionPool2d
from timm.models._manipulate import adapt_input_conv
from timm.models.resnetv2 import ResNetV2
from torch import nn

HERE = Path(__file__).parent
LOGITS = 64
SAMPLES = 16

# Options of `Arch::with`, as timm's constructors spell them. `adapt4` is a stem that timm adapts to 4 input channels.
OPTIONS = {
    "os8": dict(output_stride=8),
    "os16": dict(output_stride=16),
    "max": dict(global_pool="max"),
    "avgmax": dict(global_pool="avgmax"),
    "catavgmax": dict(global_pool="catavgmax"),
    "classes0": dict(num_classes=0),
    "in1": dict(in_chans=1),
    "adapt1": dict(in_chans=1),
    "adapt4": dict(in_chans=4),
}
ENDS = "classes0 adapt1"
POOLS = "catavgmax"
STRIDES = "os8"

# Networks whose shortcuts, pools and blocks meet the options differently; every family has those that timm gives it.
WITH_OPTIONS = {
    "test_resnet": f"{ENDS} {POOLS} {STRIDES} max avgmax in1 adapt4",
    "resnet18": "os16",
    "resnet50": "os8",
    "resnet50d": "os8",
    "resnetaa50d": "os16",
    "resnetblur50": "os8",
    "resnetv2_18": f"{ENDS} {POOLS} {STRIDES}",
    "resnetv2_18d": "os16",
    "resnetv2_50": "os8",
    "resnetv2_50x1_bit": f"{ENDS} {POOLS} {STRIDES}",
    "preresnet164_cifar": f"{ENDS} {POOLS}",
    "inception_v3": f"{ENDS} {POOLS}",
    "inception_v4": f"{ENDS} {POOLS}",
    "inception_resnet_v2": f"{ENDS} {POOLS}",
    # Dilated, timm's attention has a position for each of the pixels that there are then; ours has those of training.
    "resnet50_clip": ENDS,
    "resnet50_clip_gap": f"{POOLS} {STRIDES}",
    "resnet20_cifar": ENDS,
    "vgg11": ENDS,
}


def preresnet(depth: int, num_classes: int = 10, in_chans: int = 3, **options) -> nn.Module:
    """The pre-activation CIFAR network of arXiv 1603.05027: a 3×3 stem, the stride in the first 1×1 convolution."""
    layers = [(depth - 2) // 9] * 3
    net = ResNetV2(
        layers,
        channels=(64, 128, 256),
        num_classes=num_classes,
        in_chans=in_chans,
        stem_chs=16,
        conv_layer=create_conv2d,
        norm_layer=BatchNormAct2d,
        **options,
    )
    net.stem = nn.Sequential()
    net.stem.add_module("conv", nn.Conv2d(in_chans, 16, 3, 1, 1, bias=False))
    for stage in net.stages:
        block = stage.blocks[0]
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    return net


def plain(depths: list[int]) -> nn.Module:
    stages = [{"block": "basic", "depth": d, "width": 64 << i} for i, d in enumerate(depths)]
    stem = {"kind": "conv7", "width": 64}
    return nets.Net(
        {"family": "resnet", "stem": stem, "stages": stages, "shortcut": "none", "in_channels": 3, "num_classes": 1000}
    )


def cifar(depth: int, **changes) -> nn.Module:
    return nets.Net(nets.cifar(depth) | changes)


def inception_v3() -> nn.Module:
    """torchvision's, whose auxiliary head is for training only; pretrained weights come with `transform_input`, which
    is part of the preprocessing here."""
    return torchvision.models.inception_v3(weights=None, aux_logits=False, init_weights=False)


def builders() -> dict:
    table = {}
    for module in ("resnet", "resnetv2"):
        for name in timm.list_models(module=module):
            table[name] = lambda name=name: timm.create_model(name)
    for name in timm.list_models("*_clip*", module="byobnet"):
        table[name] = lambda name=name: timm.create_model(name)
    for name in ("inception_v4", "inception_resnet_v2"):
        table[name] = lambda name=name: timm.create_model(name)
    for depth in (11, 13, 16, 19):
        for name in (f"vgg{depth}", f"vgg{depth}_bn"):
            table[name] = lambda name=name: getattr(torchvision.models, name)(weights=None, init_weights=False)
    table["inception_v3"] = inception_v3
    table["plain18"] = lambda: plain([2, 2, 2, 2])
    table["plain34"] = lambda: plain([3, 4, 6, 3])
    for depth in (20, 32, 44, 56, 110, 1202):
        table[f"resnet{depth}_cifar"] = lambda depth=depth: cifar(depth)
        table[f"plain{depth}_cifar"] = lambda depth=depth: cifar(depth, shortcut="none")
    # The network of the paper on identity mappings, which timm's class makes and timm has no name for.
    table["resnetv2_200"] = lambda: ResNetV2([3, 24, 36, 3], conv_layer=create_conv2d, norm_layer=BatchNormAct2d)
    for depth in (164, 1001):
        table[f"preresnet{depth}_cifar"] = lambda depth=depth: preresnet(depth)
    for model, options in WITH_OPTIONS.items():
        for option in options.split():
            table[f"{model}+{option}"] = lambda model=model, option=option: with_option(model, OPTIONS[option])
    return table


def with_option(name: str, options: dict) -> nn.Module:
    """A network with one of timm's options, which our own networks and torchvision's spell otherwise."""
    if name == "preresnet164_cifar":
        return preresnet(164, **options)
    if name == "resnet20_cifar":
        renamed = {"num_classes": "num_classes", "in_chans": "in_channels"}
        return cifar(20, **{renamed[key]: value for key, value in options.items()})
    if name == "vgg11":
        model = torchvision.models.vgg11(weights=None, init_weights=False)
        if options.get("num_classes") == 0:
            model.classifier[6] = nn.Identity()
        if "in_chans" in options:
            model.features[0] = nn.Conv2d(options["in_chans"], 64, 3, 1, 1)
        return model
    return timm.create_model(name, **options)


def in_channels(name: str) -> int:
    option = name.partition("+")[2]
    return OPTIONS[option].get("in_chans", 3) if option else 3


def adapted(name: str, model: nn.Module) -> nn.Module:
    """The filled network of three channels, its stem adapted to those of `model` by timm."""
    state = fill(builders()[name.partition("+")[0]]()).state_dict()
    for key, tensor in model.state_dict().items():
        if tensor.shape != state[key].shape:
            state[key] = adapt_input_conv(tensor.shape[1], state[key])
    model.load_state_dict(state)
    return model.eval()


def pyramid(name: str) -> str | None:
    """Channels and stride of every level of timm's feature pyramid, if it is timm's and has one."""
    base, _, option = name.partition("+")
    if base not in timm.list_models() or base.startswith("vgg"):
        return None
    with torch.device("meta"):
        model = timm.create_model(base, features_only=True, **OPTIONS.get(option, {}))
    return " ".join(f"{level['num_chs']}/{level['reduction']}" for level in model.feature_info.info)


def size(name: str) -> tuple[int, int]:
    """Height and width of the input: small, not square, and such that every stage has pixels."""
    if "inception" in name:
        return (75, 107)
    if "+os" in name:
        return (64, 96)
    # Its norms are over the pixels of a channel: two of them make f32 lose three digits, in PyTorch too.
    if name == "resnetv2_50d_frn":
        return (128, 128)
    name = name.partition("+")[0]
    # CLIP's position embeddings as they are, then resampled: fewer pixels, and more along the height than there are.
    if name == "resnet50_clip":
        return (224, 224)
    if name == "resnet50x4_clip":
        return (320, 32)
    if name in ("resnet1202_cifar", "plain1202_cifar", "preresnet1001_cifar"):
        return (16, 8)
    return (64, 32)


def stages(name: str, model: nn.Module) -> list[str]:
    """The modules whose results are sampled: those of our taps."""
    name = name.partition("+")[0]
    for stem in ("layer1", "stages.0"):
        root = stem.split(".")[0].rstrip("1")
        found = [m for m, _ in model.named_modules() if m.startswith(root) and m.count(".") == stem.count(".")]
        if found:
            return found
    if name == "inception_v3":
        pools = ["maxpool1", "maxpool2"] if hasattr(model, "maxpool1") else ["Pool1", "Pool2"]
        return [*pools, "Mixed_5d", "Mixed_6e", "Mixed_7c"]
    if name == "inception_v4":
        return ["features.2", "features.3", "features.9", "features.17", "features.21"]
    if name == "inception_resnet_v2":
        return ["conv2d_2b", "conv2d_4a", "repeat", "repeat_1", "conv2d_7b"]
    if name.startswith("vgg"):
        return [m for m, layer in model.named_modules() if isinstance(layer, nn.MaxPool2d)]
    raise ValueError(name)


def bounds(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """As formula.bounds, and efficient channel attention's convolution over channels."""
    if len(shape) == 3 and name.endswith(".weight"):
        shape = (*shape, 1)
    return formula.bounds(name, shape)


def fill(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                tensor.zero_()
                continue
            low, high = bounds(name, tuple(tensor.shape))
            values = low + (high - low) * formula.uniform(name, tensor.numel())
            tensor.copy_(torch.from_numpy(values.astype(np.float32).reshape(tuple(tensor.shape))))
    return model.eval()


def macs(model: nn.Module, channels: int, pixels: int) -> int:
    """Multiply-adds of convolutions and fully connected layers, counted as the modules run."""
    total = 0

    def count(module, _, output):
        nonlocal total
        # An attention pool wants the result of one token; timm asks for all of them.
        tokens = output.shape[1] if module in one_token else 1
        total += output.numel() // tokens * module.weight[0].numel()

    pools = [m for m in model.modules() if isinstance(m, AttentionPool2d)]
    one_token = [m for pool in pools for m in (pool.q, pool.proj)]

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv1d, nn.Linear)):
            module.register_forward_hook(count)
    model(torch.zeros(1, channels, pixels, pixels, device="meta"))
    return total


def parameters(name: str, build) -> str:
    with torch.device("meta"):
        model = build().eval()
    state = model.state_dict()
    lines = "".join(f"{key} {'x'.join(map(str, tensor.shape))}\n" for key, tensor in state.items())
    count = sum(p.numel() for p in model.parameters())
    channels = in_channels(name)
    # VGG's 7×7 mean and the CIFAR networks' stem want no special size.
    return f"{name}\t{len(state)}\t{count}\t{formula.fnv1a(lines.encode()):016x}\t{macs(model, channels, 224)}"


def samples(tensor: torch.Tensor) -> np.ndarray:
    """Values spread evenly over a tensor."""
    flat = tensor.flatten()
    return flat[[i * len(flat) // SAMPLES for i in range(SAMPLES)]].numpy().astype(np.float32)


@torch.no_grad()
def reference(name: str, build) -> dict[str, np.ndarray]:
    model = adapted(name, build()) if "+adapt" in name else fill(build())
    # In f64: BiT loses 3e-5 in f32. The largest network takes 8 GB.
    model = model.double()
    seen = {}
    modules = dict(model.named_modules())
    names = stages(name, model)
    for module in names:
        modules[module].register_forward_hook(lambda _, __, y, module=module: seen.__setitem__(module, samples(y)))
    x = torch.from_numpy(formula.input(2, in_channels(name), *size(name))).double()
    y = model(x)
    weights = torch.from_numpy(formula.uniform("projection", y.numel()) - 0.5)
    projection = (y.flatten().double() * weights).sum() / weights.norm()
    second = y[1].flatten()
    out = {"logits": second[:LOGITS].numpy(), "projection": np.array([projection], dtype=np.float32)}
    out |= {f"tap{i}": seen[module] for i, module in enumerate(names)}
    assert all(np.isfinite(v).all() for v in out.values()), name
    return {f"{name}/{key}": value.astype(np.float32) for key, value in out.items()}


def table_of(path: Path) -> dict[str, str]:
    """Lines by their first column."""
    return dict(line.split("\t", 1) for line in path.read_text().splitlines()) if path.exists() else {}


def main():
    table = builders()
    only = sys.argv[1:]
    params, pyramids, values = HERE / "zoo_params.tsv", HERE / "zoo_pyramids.tsv", HERE / "zoo.safetensors"
    rows, levels = table_of(params), table_of(pyramids)
    tensors = load_file(values) if values.exists() else {}
    for name, build in table.items():
        if only and name not in only:
            continue
        print(name, flush=True)
        rows[name] = parameters(name, build).split("\t", 1)[1]
        if found := pyramid(name):
            levels[name] = found
        tensors = {k: v for k, v in tensors.items() if not k.startswith(f"{name}/")} | reference(name, build)
        # After each, so that a run that is cut short keeps what it has.
        rows = {name: row for name, row in rows.items() if name in table}
        params.write_text("".join(f"{name}\t{rows[name]}\n" for name in sorted(rows)))
        pyramids.write_text("".join(f"{name}\t{levels[name]}\n" for name in sorted(levels) if name in table))
        save_file({k: v for k, v in sorted(tensors.items()) if k.split("/")[0] in table}, values)


if __name__ == "__main__":
    main()
