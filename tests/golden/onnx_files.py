"""ONNX models of small networks as exporters write them: `make golden`, or `python -B tests/golden/onnx_files.py`.

From both exporters of PyTorch, and written here in the manner of tf2onnx, MXNet and Caffe2. Weights are the formula's.
`logits.safetensors` holds what PyTorch computes in f64 for the input of each network; ONNX Runtime must agree with every
file before it is kept. (Not called onnx.py: that would hide the package.)
"""

import json
import shutil
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import timm
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from timm.layers import StdConv2d
from timm.models.resnetv2 import ResNetV2
from timm.models.vgg import VGG
from torch import nn
from torch.nn import functional as F

import formula
import generate
import nets

HERE = Path(__file__).resolve().parent / "onnx"
TOLERANCE = 2e-5
# Elements of the largest weight that is not made one number over and over, and of those that then stay in the file.
LARGE = 50_000
SMALL = 100


def arch(block, widths, depths, classes=5, **options) -> dict:
    stages = [{"block": block, "depth": d, "width": w} for w, d in zip(widths, depths)]
    return {
        "family": "resnet",
        "stem": {"kind": "conv7", "width": 4},
        "stages": stages,
        "shortcut": "projection",
        **options,
        "in_channels": 3,
        "num_classes": classes,
    }


# Networks by name: none has a width or depth that is in a table.
ARCHS = {
    "basic": arch("basic", (4, 6, 8), (1, 2, 1)),
    "bottleneck": arch("bottleneck", (2, 4), (2, 1)),
    "v1": arch("bottleneck", (2, 4), (2, 1), stride_in="conv1x1"),
    "grouped": arch("bottleneck", (4, 8), (1, 1), groups=2, group_width=32),
    "cifar": {**nets.cifar(8), "stem": {"kind": "conv3", "width": 4}, "stages": [
        {"block": "basic", "depth": 1, "width": w} for w in (4, 6, 8)
    ]},
    "plain": {**arch("basic", (4, 6), (1, 2)), "shortcut": "none"},
    # As `SAME` pads, and Caffe's rounding up.
    "same": arch("bottleneck", (2, 4), (2, 1), padding="one_sided"),
    "samepool": arch("bottleneck", (2, 4), (2, 1), padding="one_sided_pool"),
    "sameblocks": arch("basic", (2, 4), (2, 1), padding="one_sided_blocks"),
    # Every tensor is one number over and over.
    "filled": arch("bottleneck", (2, 4), (2, 1), stride_in="conv1x1"),
    "v2": {
        "family": "resnet_v2",
        "stem": {"kind": "norm_conv7", "width": 4},
        "block": "bottleneck",
        "stages": [{"depth": 2, "channels": 8}, {"depth": 1, "channels": 16}],
        "in_channels": 3,
        "num_classes": 5,
    },
    "bit": {
        "family": "resnet_v2",
        "stem": {"kind": "conv7_zero_padded", "width": 32},
        "block": "bottleneck",
        "stages": [{"depth": 1, "channels": 128}],
        "norm": "group",
        "standardize": 1e-8,
        "in_channels": 3,
        "num_classes": 5,
    },
    "vgg": {
        "family": "vgg",
        "stages": [{"depth": 1, "width": 4}, {"depth": 1, "width": 6}, {"depth": 1, "width": 8}],
        "in_channels": 3,
        "num_classes": 5,
    },
}
# Networks of timm that come in one size only.
WHOLE = ("inception_v3", "inception_v4", "inception_resnet_v2")
ARCHS |= {name: {"family": name, "in_channels": 3, "num_classes": 5} for name in WHOLE}
SIZE = 48
# VGG's head wants 7×7 pixels after three poolings, Inception's windows need some room.
SIZES = {"vgg": 56} | {name: 80 for name in WHOLE}


class PreActivation(nn.Module):
    """`resnet_model::ResNetV2` with the stem of GluonCV's networks."""

    class Block(nn.Module):
        def __init__(self, channels: int, out: int, stride: int, project: bool):
            super().__init__()
            inner = out // 4
            self.norm1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, inner, 1, bias=False)
            self.norm2, self.conv2 = nn.BatchNorm2d(inner), nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
            self.norm3, self.conv3 = nn.BatchNorm2d(inner), nn.Conv2d(inner, out, 1, bias=False)
            self.downsample = nn.ModuleDict({"conv": nn.Conv2d(channels, out, 1, stride, bias=False)} if project else {})

        def forward(self, x):
            y = F.relu(self.norm1(x))
            shortcut = self.downsample["conv"](y) if self.downsample else x
            y = F.relu(self.norm2(self.conv1(y)))
            return self.conv3(F.relu(self.norm3(self.conv2(y)))) + shortcut

    def __init__(self, arch: dict):
        super().__init__()
        width = arch["stem"]["width"]
        self.stem = nn.ModuleDict({
            "norm0": nn.BatchNorm2d(3), "conv": nn.Conv2d(3, width, 7, 2, 3, bias=False), "norm1": nn.BatchNorm2d(width),
        })
        self.stages, channels = nn.ModuleList(), width
        for i, stage in enumerate(arch["stages"]):
            blocks = nn.ModuleList()
            for j in range(stage["depth"]):
                blocks.append(self.Block(channels, stage["channels"], 2 if i and not j else 1, not j))
                channels = stage["channels"]
            self.stages.append(nn.ModuleDict({"blocks": blocks}))
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.ModuleDict({"fc": nn.Conv2d(channels, arch["num_classes"], 1)})

    def forward(self, x):
        x = F.relu(self.stem["norm1"](self.stem["conv"](self.stem["norm0"](x))))
        x = F.max_pool2d(x, 3, 2, 1)
        for stage in self.stages:
            for block in stage["blocks"]:
                x = block(x)
        return self.head["fc"](F.relu(self.norm(x)).mean((2, 3), keepdim=True)).flatten(1)


def bit(arch: dict) -> nn.Module:
    """timm's, with weights that are standardized in the graph."""
    return ResNetV2(
        [stage["depth"] for stage in arch["stages"]],
        channels=[stage["channels"] for stage in arch["stages"]],
        num_classes=arch["num_classes"],
        stem_chs=arch["stem"]["width"],
        stem_type="fixed",
        conv_layer=partial(StdConv2d, eps=arch["standardize"]),
    )


def vgg(arch: dict) -> nn.Module:
    """timm's, whose head is convolutions; its large weights are one number over and over."""
    return VGG([c for stage in arch["stages"] for c in [*[stage["width"]] * stage["depth"], "M"]], num_classes=5)


def network(name: str) -> tuple[nets.Net, np.ndarray]:
    arch = ARCHS[name]
    build = {"v2": PreActivation, "bit": bit, "vgg": vgg}.get(name, nets.Net)
    x = formula.input(2, 3, *[SIZES.get(name, SIZE)] * 2)
    if name in WHOLE:
        net = timm.create_model(name, num_classes=arch["num_classes"]).eval()
        formula.fill(net)
        # All but the biases are one number over and over, such that images neither vanish nor explode.
        for key, tensor in net.state_dict().items():
            if tensor.ndim and not key.endswith("bias"):
                tensor.fill_(0 if key.endswith("mean") else 1 / tensor[0].numel())
        net.arch = arch
        return net, x
    net = build(arch)
    net.arch = arch
    generate.fill_narrow(net, f"onnx-{name}", x)
    for tensor in net.state_dict().values():
        if name == "filled" or tensor.numel() > LARGE:
            tensor.fill_(tensor.flatten()[0])
    return net, x


def torchscript(net, x, path: Path, any_size=True, **options) -> None:
    torch.onnx.export(
        net, torch.from_numpy(x), path, dynamo=False, input_names=["image"], output_names=["scores"],
        dynamic_axes={"image": {0: "n"} | ({2: "h", 3: "w"} if any_size else {}), "scores": {0: "n"}}, **options,
    )


def dynamo(net, x, path: Path, **options) -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.onnx.export(
        net, (torch.from_numpy(x),), path, dynamo=True, dynamic_shapes=({0: batch},), verbose=False, **options
    )
    # Without the paths and stack traces of the machine that wrote it.
    model = onnx.load(path, load_external_data=not options.get("external_data"))
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]:
        del value.metadata_props[:]
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    if not options.get("external_data"):
        onnx.save(model, path)
    else:
        path.write_bytes(model.SerializeToString())


class Writer:
    """A graph written node by node."""

    def __init__(self, net: nets.Net):
        self.state = {name: t.numpy() for name, t in net.state_dict().items()}
        self.arch = net.arch
        self.nodes, self.weights, self.count = [], [], 0

    def node(self, op, *inputs, name=None, **attributes) -> str:
        self.count += 1
        out = name or f"t{self.count}"
        self.nodes.append(helper.make_node(op, list(inputs), [out], name=f"{out}_{op}", **attributes))
        return out

    def weight(self, name: str, values: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def folded(self, conv: str, norm: str) -> tuple[np.ndarray, np.ndarray]:
        s = self.state
        scale = s[f"{norm}.weight"].astype(np.float64) / np.sqrt(s[f"{norm}.running_var"].astype(np.float64) + 1e-5)
        weight = s[f"{conv}.weight"] * scale[:, None, None, None]
        return weight.astype(np.float32), (s[f"{norm}.bias"] - s[f"{norm}.running_mean"] * scale).astype(np.float32)

    def model(self, path: Path, output: str, opset: int, shape, name="image", ir=6, inputs=(), **options) -> None:
        image = helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        result = helper.make_tensor_value_info(output, TensorProto.FLOAT, [None, self.arch["num_classes"]])
        graph = helper.make_graph(self.nodes, "g", [image, *inputs], [result], self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], **options)
        model.ir_version = ir
        path.write_bytes(model.SerializeToString())

    def blocks(self):
        """Every block: its name, convolutions with strides, and the stride of its projection (None without one)."""
        for i, stage in enumerate(self.arch["stages"], 1):
            for j in range(stage["depth"]):
                step = 2 if i > 1 and j == 0 else 1
                name = f"layer{i}.{j}"
                v1 = self.arch.get("stride_in") == "conv1x1"
                strides = [step, 1] if stage["block"] == "basic" else ([step, 1, 1] if v1 else [1, step, 1])
                project = step if f"{name}.downsample.0.weight" in self.state else None
                yield name, strides, project


def tensorflow(net, path: Path, official=False, auto_pad=False) -> None:
    """As tf2onnx: NHWC images, paddings as nodes, folded norms, the projection first, a transposed matrix.

    `official`: as the networks of TensorFlow's own repository, which take NCHW images, pool as `SAME` and give the class too.
    `auto_pad`: `SAME` is left to the runtime.
    """
    w = Writer(net)
    padding = net.arch.get("padding", "symmetric")

    def same(kernel, stride):
        total = max(kernel - stride, 0)
        if auto_pad and stride > 1:
            return {"auto_pad": "SAME_UPPER"}
        return {"pads": [total // 2] * 2 + [total - total // 2] * 2}

    def conv(x, conv, norm, stride):
        weight, bias = w.folded(conv, norm)
        kernel = weight.shape[-1]
        pad, pads = kernel // 2, {"pads": [0] * 4}
        if padding == "one_sided" or (padding == "one_sided_blocks" and conv != "conv1"):
            pads = same(kernel, stride)
        elif pad and stride > 1:
            amounts = w.weight(f"{conv}/paddings", np.array([0, 0, pad, pad, 0, 0, pad, pad]))
            x = w.node("Pad", x, amounts)
        else:
            pads = {"pads": [pad] * 4}
        return w.node(
            "Conv", x, w.weight(f"{conv}/kernel", weight), w.weight(f"{conv}/BiasAdd", bias),
            strides=[stride] * 2, **pads, kernel_shape=list(weight.shape[2:]), group=1,
        )

    x = "input_1:0" if official else w.node("Transpose", "input_1:0", perm=[0, 3, 1, 2])
    x = w.node("Relu", conv(x, "conv1", "bn1", 2))
    if padding == "symmetric":
        x = w.node("Pad", x, w.weight("pool/paddings", np.array([0, 0, 1, 1, 0, 0, 1, 1])))
        x = w.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2])
    else:
        x = w.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], **same(3, 2))
    for name, strides, project in w.blocks():
        shortcut = conv(x, f"{name}.downsample.0", f"{name}.downsample.1", project) if project else x
        y = x
        for i, stride in enumerate(strides, 1):
            y = conv(y, f"{name}.conv{i}", f"{name}.bn{i}", stride)
            y = w.node("Relu", y) if i < len(strides) else y
        x = w.node("Relu", w.node("Add", shortcut, y))
    if official:
        x = w.node("Squeeze", w.node("ReduceMean", x, axes=[2, 3], keepdims=1), w.weight("axes", np.array([2, 3])))
    else:
        x = w.node("Transpose", x, perm=[0, 2, 3, 1])
        x = w.node("ReduceMean", x, axes=[1, 2], keepdims=0)
    x = w.node("MatMul", x, w.weight("dense/MatMul/ReadVariableOp:0", w.state["fc.weight"].T))
    x = w.node("Add", x, w.weight("dense/BiasAdd/ReadVariableOp:0", w.state["fc.bias"]))
    w.node("Softmax", x, name="Identity:0", axis=-1)
    shape = ["unk__1", 3, SIZE, SIZE] if official else ["unk__1", SIZE, SIZE, 3]
    w.model(path, "Identity:0", 13, shape, "input_1:0", 7, producer_name="tf2onnx")
    if official:
        model = onnx.load(path)
        model.graph.node.append(helper.make_node("ArgMax", [x], ["ArgMax:0"], axis=1, keepdims=0))
        model.graph.output.insert(0, helper.make_tensor_value_info("ArgMax:0", TensorProto.INT64, ["unk__1"]))
        path.write_bytes(model.SerializeToString())


def mxnet(net, path: Path) -> None:
    """As GluonCV's export: convolutions with bias before norms with `spatial`, weights among the inputs, operator set 7."""
    w = Writer(net)

    def conv(x, conv, norm, stride, bias):
        weight, name = w.state[f"{conv}.weight"], f"resnetv17_{conv.replace('.', '_')}"
        inputs = [x, w.weight(f"{name}_weight", weight)]
        mean = w.state[f"{norm}.running_mean"]
        if bias:
            shift = formula.uniform(name, len(weight)).astype(np.float32)
            inputs.append(w.weight(f"{name}_bias", shift))
            mean = mean + shift
        x = w.node("Conv", *inputs, strides=[stride] * 2, pads=[weight.shape[-1] // 2] * 4,
                   kernel_shape=list(weight.shape[2:]), dilations=[1, 1], group=1)
        names = ["gamma", "beta", "running_mean", "running_var"]
        values = [w.state[f"{norm}.weight"], w.state[f"{norm}.bias"], mean, w.state[f"{norm}.running_var"]]
        tensors = [w.weight(f"{name}_batchnorm_{n}", v) for n, v in zip(names, values)]
        return w.node("BatchNormalization", x, *tensors, epsilon=1e-5, momentum=0.9, spatial=1)

    x = w.node("Relu", conv("data", "conv1", "bn1", 2, False))
    x = w.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for name, strides, project in w.blocks():
        y = x
        for i, stride in enumerate(strides, 1):
            y = conv(y, f"{name}.conv{i}", f"{name}.bn{i}", stride, i != 2)
            y = w.node("Relu", y) if i < len(strides) else y
        shortcut = conv(x, f"{name}.downsample.0", f"{name}.downsample.1", project, False) if project else x
        x = w.node("Relu", w.node("Add", y, shortcut))
    x = w.node("Flatten", w.node("GlobalAveragePool", x))
    w.node("Gemm", x, w.weight("resnetv17_dense0_weight", w.state["fc.weight"]),
           w.weight("resnetv17_dense0_bias", w.state["fc.bias"]), name="resnetv17_dense0_fwd", transA=0, transB=1)
    inputs = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in w.weights]
    w.model(path, "resnetv17_dense0_fwd", 7, ["N", 3, SIZE, SIZE], "data", 3, inputs=inputs)


def mxnet_v2(net, path: Path) -> None:
    """As GluonCV's pre-activation networks: a norm of the input, the projection from what the block activates."""
    w = Writer(net)

    def norm(x, name, relu=True):
        names = ["gamma", "beta", "running_mean", "running_var"]
        parts = ["weight", "bias", "running_mean", "running_var"]
        tensors = [w.weight(f"{name}_{n}", w.state[f"{name}.{p}"]) for n, p in zip(names, parts)]
        x = w.node("BatchNormalization", x, *tensors, epsilon=1e-5, momentum=0.9, spatial=1)
        return w.node("Relu", x) if relu else x

    def conv(x, name, stride=1):
        weight = w.state[f"{name}.weight"]
        return w.node("Conv", x, w.weight(f"{name}_weight", weight), strides=[stride] * 2,
                      pads=[weight.shape[-1] // 2] * 4, kernel_shape=list(weight.shape[2:]), dilations=[1, 1], group=1)

    x = norm(conv(norm("data", "stem.norm0", False), "stem.conv", 2), "stem.norm1")
    x = w.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for i, stage in enumerate(net.arch["stages"]):
        for j in range(stage["depth"]):
            name, stride = f"stages.{i}.blocks.{j}", 2 if i and not j else 1
            y = norm(x, f"{name}.norm1")
            shortcut = x if j else conv(y, f"{name}.downsample.conv", stride)
            y = norm(conv(y, f"{name}.conv1"), f"{name}.norm2")
            y = norm(conv(y, f"{name}.conv2", stride), f"{name}.norm3")
            x = w.node("Add", conv(y, f"{name}.conv3"), shortcut)
    x = w.node("GlobalAveragePool", norm(x, "norm"))
    x = w.node("Reshape", x, w.weight("reshape_attr_tensor", np.array([0, -1])))
    w.node("Gemm", x, w.weight("dense0_weight", w.state["head.fc.weight"][:, :, 0, 0]),
           w.weight("dense0_bias", w.state["head.fc.bias"]), name="dense0_fwd", transA=0, transB=1)
    inputs = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in w.weights]
    w.model(path, "dense0_fwd", 8, ["N", 3, SIZE, SIZE], "data", 3, inputs=inputs)


def caffe2(net, path: Path, filled=False) -> None:
    """As Caffe2's: weights made by nodes that stand last, `Sum`, a mean over all pixels of a known size, `Reshape`.

    `filled`: weights are one number and a shape, as in the light models of the ONNX package.
    """
    w = Writer(net)
    constants = []

    def weight(name, values):
        if filled and values.dtype == np.float32:
            shape = w.weight(f"gpu_0/{name}__SHAPE", np.array(values.shape))
            tensor = helper.make_tensor("", TensorProto.FLOAT, [1], [values.flat[0]])
            constants.append(helper.make_node("ConstantOfShape", [shape], [f"gpu_0/{name}"], value=tensor))
        else:
            tensor = numpy_helper.from_array(np.ascontiguousarray(values), "")
            constants.append(helper.make_node("Constant", [], [f"gpu_0/{name}"], value=tensor))
        return f"gpu_0/{name}"

    def conv(x, conv, norm, stride):
        values = w.state[f"{conv}.weight"]
        x = w.node("Conv", x, weight(f"{conv}_w", values), strides=[stride] * 2, pads=[values.shape[-1] // 2] * 4,
                   kernel_shape=list(values.shape[2:]))
        parts = {"s": "weight", "b": "bias", "rm": "running_mean", "riv": "running_var"}
        tensors = [weight(f"{norm}_{k}", w.state[f"{norm}.{v}"]) for k, v in parts.items()]
        return w.node("BatchNormalization", x, *tensors, epsilon=1e-5)

    x = w.node("Relu", conv("gpu_0/data", "conv1", "bn1", 2))
    x = w.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    size = SIZE // 4
    for name, strides, project in w.blocks():
        y = x
        for i, stride in enumerate(strides, 1):
            y = conv(y, f"{name}.conv{i}", f"{name}.bn{i}", stride)
            y = w.node("Relu", y) if i < len(strides) else y
        shortcut = conv(x, f"{name}.downsample.0", f"{name}.downsample.1", project) if project else x
        x = w.node("Relu", w.node("Sum", y, shortcut))
        size //= max(strides)
    x = w.node("AveragePool", x, kernel_shape=[size, size], strides=[1, 1])
    x = w.node("Reshape", x, weight("shape", np.array([-1, w.state["fc.weight"].shape[1]])))
    x = w.node("Gemm", x, weight("pred_w", w.state["fc.weight"]), weight("pred_b", w.state["fc.bias"]), transB=1)
    w.node("Softmax", x, name="gpu_0/softmax_1")
    w.nodes += constants[::-1]
    w.model(path, "gpu_0/softmax_1", 9, [1, 3, SIZE, SIZE], "gpu_0/data", 4)
    # The checker and the runtime want nodes in order; the file has them as the converter must take them.
    model = onnx.load(path)
    ordered = sorted(model.graph.node, key=lambda n: not n.op_type.startswith("Constant"))
    del model.graph.node[:]
    model.graph.node.extend(ordered)
    SORTED[path.name] = model.SerializeToString()


MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


def small(net, x, path: Path) -> None:
    """PyTorch's export, its large weights made by nodes: one number over and over."""
    keep = {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
    torchscript(net, x, path, any_size=False, opset_version=17, **keep)
    model = onnx.load(path)
    nodes = []
    for tensor in list(model.graph.initializer):
        values = numpy_helper.to_array(tensor)
        if values.size <= SMALL or not (values == values.flat[0]).all():
            continue
        one = helper.make_tensor("", TensorProto.FLOAT, [1], [values.flat[0]])
        shape = numpy_helper.from_array(np.array(values.shape), f"{tensor.name}.shape")
        nodes.append(helper.make_node("ConstantOfShape", [shape.name], [tensor.name], value=one))
        model.graph.initializer.remove(tensor)
        model.graph.initializer.append(shape)
    nodes += list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    path.write_bytes(model.SerializeToString())


def prepared(net, x, path: Path) -> None:
    """PyTorch's export after nodes that normalize pixels of 0 to 255 with mean and std."""
    torchscript(net, x, path, opset_version=17)
    model = onnx.load(path)
    for name, values in [("mean", MEAN * 255), ("std", STD * 255)]:
        model.graph.initializer.append(numpy_helper.from_array(values.reshape(1, 3, 1, 1), name))
    nodes = [
        helper.make_node("Sub", ["image", "mean"], ["centred"]), helper.make_node("Div", ["centred", "std"], ["ready"]),
    ]
    for node in model.graph.node:
        node.input[:] = ["ready" if i == "image" else i for i in node.input]
    nodes += list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    path.write_bytes(model.SerializeToString())


# Models whose nodes stand in another order in the file.
SORTED: dict[str, bytes] = {}


def half(source: Path, path: Path, kind: str) -> None:
    """The model with weights of 16 bits: raw, or packed into `int32_data`."""
    model = onnx.load(source)
    inputs = []
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32:
            continue
        name = tensor.name
        if kind == "bf16":
            bits = (torch.from_numpy(values.copy()).bfloat16().view(torch.int16).numpy().astype(np.int32)) & 0xFFFF
            stored = TensorProto(name=f"{name}.16", dims=values.shape, data_type=TensorProto.BFLOAT16)
            stored.int32_data.extend(bits.ravel().tolist())
        else:
            half = values.astype(np.float16)
            stored = TensorProto(name=f"{name}.16", dims=values.shape, data_type=TensorProto.FLOAT16)
            if len(inputs) % 2:
                stored.raw_data = half.tobytes()
            else:
                stored.int32_data.extend(half.view(np.uint16).astype(np.int32).ravel().tolist())
        tensor.CopyFrom(stored)
        inputs.append(helper.make_node("Cast", [f"{name}.16"], [name], to=TensorProto.FLOAT))
    nodes = inputs + list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    path.write_bytes(model.SerializeToString())


def rounded(net: nets.Net, dtype) -> nets.Net:
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.to(dtype).float())
    return net


@torch.no_grad()
def main() -> None:
    warnings.simplefilter("ignore")
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir()
    keep = {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
    files = {
        "torchscript-7.onnx": ("basic", lambda n, x, p: torchscript(n, x, p, opset_version=7)),
        "torchscript-17.onnx": ("bottleneck", lambda n, x, p: torchscript(n, x, p, opset_version=17)),
        "torchscript-norms.onnx": ("basic", lambda n, x, p: torchscript(n, x, p, opset_version=13, **keep)),
        "torchscript-grouped.onnx": ("grouped", lambda n, x, p: torchscript(n, x, p, opset_version=17)),
        "torchscript-cifar.onnx": ("cifar", lambda n, x, p: torchscript(n, x, p, opset_version=17)),
        "torchscript-plain.onnx": ("plain", lambda n, x, p: torchscript(n, x, p, opset_version=17)),
        "dynamo-18.onnx": ("basic", lambda n, x, p: dynamo(n, x, p, opset_version=18, external_data=False)),
        "dynamo-21.onnx": ("v1", lambda n, x, p: dynamo(n, x, p, opset_version=21, external_data=False)),
        "dynamo-norms.onnx": (
            "bottleneck",
            lambda n, x, p: dynamo(n, x, p, opset_version=20, external_data=False, optimize=False),
        ),
        "dynamo-external.onnx": ("basic", lambda n, x, p: dynamo(n, x, p, opset_version=18, external_data=True)),
        "tensorflow.onnx": ("v1", lambda n, x, p: tensorflow(n, p)),
        "tensorflow-official.onnx": ("samepool", lambda n, x, p: tensorflow(n, p, official=True)),
        "tensorflow-blocks.onnx": ("sameblocks", lambda n, x, p: tensorflow(n, p)),
        "tensorflow-same.onnx": ("same", lambda n, x, p: tensorflow(n, p)),
        "tensorflow-auto.onnx": ("same", lambda n, x, p: tensorflow(n, p, auto_pad=True)),
        "torchscript-ceil.onnx": ("samepool", lambda n, x, p: torchscript(n, x, p, opset_version=17)),
        "mxnet.onnx": ("v1", lambda n, x, p: mxnet(n, p)),
        "filled.onnx": ("filled", lambda n, x, p: caffe2(n, p, filled=True)),
        "prepared.onnx": ("bottleneck", prepared),
        "mxnet-v2.onnx": ("v2", lambda n, x, p: mxnet_v2(n, p)),
        "caffe2.onnx": ("v1", lambda n, x, p: caffe2(n, p)),
        "torchscript-bit.onnx": ("bit", lambda n, x, p: torchscript(n, x, p, opset_version=17)),
        "dynamo-bit.onnx": ("bit", lambda n, x, p: dynamo(n, x, p, opset_version=20, external_data=False)),
        "timm-vgg.onnx": ("vgg", small),
        **{f"{name}.onnx": (name, small) for name in WHOLE},
    }
    logits, rows = {}, ["file\tnetwork\tlargest difference of ONNX Runtime's logits to PyTorch's"]
    for file, (name, write) in files.items():
        net, x = network(name)
        if name not in logits:
            logits[name] = generate.reference(net, x, lambda net, x: {"logits": net(x)})["logits"]
            net, x = network(name)
        write(net, x, HERE / file)
        rows.append(f"{file}\t{name}\t{agree(HERE / file, x, logits[name]):.1e}")
        print(rows[-1], flush=True)
    for kind, dtype in [("f16", torch.float16), ("bf16", torch.bfloat16)]:
        file, name = f"torchscript-{kind}.onnx", f"basic-{kind}"
        half(HERE / "torchscript-norms.onnx", HERE / file, kind)
        net, x = network("basic")
        logits[name] = generate.reference(rounded(net, dtype), x, lambda net, x: {"logits": net(x)})["logits"]
        rows.append(f"{file}\t{name}\t{agree(HERE / file, x, logits[name]):.1e}")
        print(rows[-1], flush=True)
    x = formula.input(2, 3, SIZE, SIZE)
    save_file({"input": x, **logits}, HERE / "logits.safetensors",
              {name: json.dumps(a, separators=(",", ":")) for name, a in ARCHS.items()})
    (HERE / "index.tsv").write_text("\n".join(rows) + "\n")


def agree(path: Path, x: np.ndarray, expected: np.ndarray) -> float:
    """How far ONNX Runtime is from `expected`; the checker must like the model too."""
    source = SORTED.get(path.name) or str(path)
    onnx.checker.check_model(onnx.load_from_string(source) if isinstance(source, bytes) else source)
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    (image,) = [i for i in session.get_inputs() if i.name not in {t.name for t in onnx.load(path).graph.initializer}][:1]
    batches = x[:1], x[1:]
    if path.name == "prepared.onnx":
        batches = [(b * STD[:, None, None] + MEAN[:, None, None]) * 255 for b in batches]
    if image.shape[-1] == 3:
        batches = [b.transpose(0, 2, 3, 1) for b in batches]
    found = np.concatenate([session.run(None, {image.name: b})[-1] for b in batches])
    if "softmax" in source[-200:].decode(errors="ignore").lower() if isinstance(source, bytes) else path.name.startswith("tensorflow"):
        e = np.exp(expected - expected.max(1, keepdims=True))
        expected = e / e.sum(1, keepdims=True)
    difference = float(np.abs(found - expected).max() / np.abs(expected).max())
    assert difference < TOLERANCE, (path, difference)
    return difference


if __name__ == "__main__":
    main()
