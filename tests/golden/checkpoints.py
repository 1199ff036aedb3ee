"""One small network in every form in which checkpoints come; every file is read back with PyTorch and compared."""

import argparse
import io
import pickle
import shutil
from collections import OrderedDict
from pathlib import Path

import numpy
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import containers
import formula
import nets

# A part of the names of the counters, which files of PyTorch before 0.4.1 lack.
COUNTERS = "num_batches_tracked"

ARCH = {
    "family": "resnet",
    "stem": {"kind": "conv7", "width": 4},
    "stages": [{"block": "basic", "depth": 1, "width": w} for w in (4, 6, 8)],
    "shortcut": "projection",
    "in_channels": 3,
    "num_classes": 5,
}


def network() -> nn.Module:
    net = formula.fill(nets.Net(ARCH))
    for name, tensor in net.state_dict().items():
        if name.endswith(COUNTERS):
            tensor.fill_(1234)
    # Values that a conversion through another type or a sum would change: -0, a subnormal, f16's largest.
    net.state_dict()["conv1.weight"].view(-1)[:3] = torch.tensor([-0.0, 1e-40, 65504.0])
    return net


def copies(tensors) -> OrderedDict:
    """The same tensors, each with a separate storage of exactly its size."""
    return OrderedDict((name, tensor.detach().clone()) for name, tensor in tensors.items())


def shared(tensors) -> OrderedDict:
    """The same values as views of one storage with gaps, convolutions stored in the order height, width, in, out."""
    total = sum(t.numel() + 2 for t in tensors.values() if t.dtype == torch.float32)
    flat, out, offset = torch.full((total,), torch.nan), OrderedDict(), 2
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            out[name] = tensor.clone()
            continue
        axes = (2, 3, 1, 0) if tensor.ndim == 4 else tuple(range(tensor.ndim))
        stored = tensor.permute(axes)
        view = flat[offset : offset + tensor.numel()].view(stored.shape)
        view.copy_(stored)
        back = [axes.index(i) for i in range(tensor.ndim)]
        out[name] = view.permute(back)
        offset += tensor.numel() + 2
    return out


def huggingface(name: str) -> str:
    """The name in Hugging Face transformers' `ResNetForImageClassification`."""
    head, last = name.rsplit(".", 1)
    if head == "fc":
        return f"classifier.1.{last}"
    if head in ("conv1", "bn1"):
        return f"resnet.embedder.embedder.{'convolution' if head == 'conv1' else 'normalization'}.{last}"
    layer, block, *rest = head.split(".")
    base = f"resnet.encoder.stages.{int(layer[5:]) - 1}.layers.{block}"
    if rest[0] == "downsample":
        return f"{base}.shortcut.{'convolution' if rest[1] == '0' else 'normalization'}.{last}"
    kind = "convolution" if rest[0].startswith("conv") else "normalization"
    return f"{base}.layer.{int(rest[0][-1]) - 1}.{kind}.{last}"


def save_on_cuda(obj, path) -> None:
    """Saves as on a machine whose tensors lie on the first CUDA device."""
    original = torch.serialization.location_tag
    torch.serialization.location_tag = lambda storage: "cuda:0"
    try:
        torch.save(obj, path)
    finally:
        torch.serialization.location_tag = original


def training_state(tensors) -> dict:
    """A training script's checkpoint: weights, their moving average, the optimizer's momentum, the arguments."""
    net = network()
    optimizer = torch.optim.SGD(net.fc.parameters(), lr=0.1, momentum=0.9)
    net(torch.zeros(1, 3, 32, 32)).sum().backward()
    optimizer.step()
    return {
        "epoch": 90,
        "arch": "narrow",
        "best_acc1": 71.3,
        "model": OrderedDict((n, t + 1) for n, t in tensors.items()),
        "model_ema": copies(tensors),
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(arch="narrow", lr=0.1, resume=None, gpus=[0, 1], amp=True),
    }


def lightning(state_dict) -> dict:
    return {
        "epoch": 3,
        "global_step": 1200,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": state_dict,
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'val_acc'}": {"best_model_score": torch.tensor(0.98)}},
        "optimizer_states": [],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 0.1, "classes": ["a", "b"], "milestones": (30, 60)},
    }


class Folder:
    """Writes the files, reads each with PyTorch, compares, and keeps the index."""

    def __init__(self, path: Path):
        self.path = path
        self.rows = ["file\tcontainer\tdialect\texpected\tabsent\twhat it is"]

    def expect(self, name: str, tensors) -> None:
        save_file({n: t.contiguous() for n, t in tensors.items()}, self.path / f"{name}.safetensors")

    def save(self, file: str, obj, text: str, **options) -> None:
        """Saves an object in the format given by the file's extension, and adds it."""
        if file.endswith(".safetensors"):
            save_file(obj, self.path / file, metadata={"format": "pt"})
        elif file.startswith("legacy"):
            torch.save(obj, self.path / file, _use_new_zipfile_serialization=False)
            dtypes = {str(t.untyped_storage()._cdata): t.dtype for t in obj.values()}
            containers.settle_legacy(self.path / file, dtypes)
        else:
            torch.save(obj, self.path / file)
        self.add(file, text, **options)

    def add(
        self,
        file: str,
        text: str,
        *,
        container=None,
        dialect="torchvision",
        expected="expected",
        absent=None,
        get=None,
        rename=None,
    ) -> None:
        """Reads a file and compares its tensors with the expected ones, bit by bit.

        `get` takes the tensors out of what PyTorch reads; `absent` is a part of the names that the file lacks;
        `rename` turns expected names into the file's.
        """
        container = container or container_of(file)
        read = read_back(self.path / file, container)
        read = get(read) if get else read
        expected_tensors = load_file(self.path / f"{expected}.safetensors")
        expected_tensors = {n: t for n, t in expected_tensors.items() if not absent or absent not in n}
        expected_tensors = {rename(n) if rename else n: t for n, t in expected_tensors.items()}
        assert sorted(read) == sorted(expected_tensors), (file, sorted(read), sorted(expected_tensors))
        for name, tensor in expected_tensors.items():
            found = read[name].detach()
            assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape), (file, name)
            assert bits(found).equal(bits(tensor)), (file, name)
        self.rows.append("\t".join([file, container, dialect, f"{expected}.safetensors", absent or "-", text]))


def container_of(file: str) -> str:
    if file.endswith(".safetensors"):
        return "safetensors"
    return {"legacy": "torch legacy", "tar": "torch tar"}.get(file.split("-")[0].split(".")[0], "torch zip")


def read_back(path: Path, container: str):
    if container == "safetensors":
        return load_file(path)
    if container == "torchscript":
        return torch.jit.load(path).state_dict()
    if container.endswith("arrays"):
        arrays = numpy.load(path, allow_pickle=True)
        return {n: torch.from_numpy(a.astype(a.dtype.newbyteorder("="))) for n, a in arrays.items()}
    return torch.load(path, map_location="cpu", weights_only=False)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


def generate(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    folder = Folder(path)
    net = network()
    # With `_metadata`, as every state dict since PyTorch 0.4.
    state = net.state_dict()
    tensors = copies(state)
    folder.expect("expected", tensors)
    dtypes_and_layouts(folder, state, tensors)
    old_forms(folder, net, state, tensors)
    wrappers(folder, tensors)
    other_forms(folder, state, tensors)
    numpy_forms(folder, tensors)
    (path / "index.tsv").write_text("\n".join(folder.rows) + "\n")


def parameters(net, tensors) -> OrderedDict:
    """The tensors that are trained as `nn.Parameter`, the others as they are."""
    trained = dict(net.named_parameters())
    return OrderedDict((n, nn.Parameter(t) if n in trained else t) for n, t in tensors.items())


def floats(tensors) -> OrderedDict:
    """Without the integer counters."""
    return OrderedDict((n, t.clone()) for n, t in tensors.items() if t.is_floating_point())


def dtypes_and_layouts(folder, state, tensors) -> None:
    folder.save("zip.pth", state, "`torch.save` of a state dict")
    folder.save("zip-dict.pth", dict(tensors), "a plain dict")
    folder.save("zip-bare.pth", floats(tensors), "no counters, no `_metadata`", absent=COUNTERS)

    text = "convolutions f16, norms f32; torchvision's Wide ResNet V1"
    mixed = OrderedDict((n, t.half() if t.ndim > 1 else t) for n, t in tensors.items())
    folder.expect("expected-f16-mix", mixed)
    folder.save("legacy-f16-mix.pth", mixed, text, expected="expected-f16-mix")
    for short, dtype in [("bf16", torch.bfloat16), ("f64", torch.float64)]:
        # Thirds: f64 values that f32 cannot hold.
        cast = OrderedDict((n, (t.double() / 3).to(dtype) if t.is_floating_point() else t) for n, t in tensors.items())
        folder.expect(f"expected-{short}", cast)
        folder.save(f"zip-{short}.pth", cast, f"all values {short}", expected=f"expected-{short}")

    views = shared(tensors)
    folder.save("zip-views.pth", views, "views with gaps of one storage, convolutions with permuted strides")
    folder.save("legacy-views.pth", views, "the same in the legacy stream")


def old_forms(folder, net, state, tensors) -> None:
    folder.save("legacy.pth", state, "the stream of PyTorch before 1.6; torchvision's ResNeXt V1")
    folder.save("zip-parameters.pth", parameters(net, tensors), "values are Parameters")
    containers.write_early_zip(folder.path / "zip-early.pth", parameters(net, floats(tensors)))
    text = "root `archive`, addresses for keys, Parameters, no counters; torchvision's ResNet V1"
    folder.add("zip-early.pth", text, absent=COUNTERS)
    containers.write_legacy_views(folder.path / "legacy-0.3.pth", floats(tensors))
    folder.add("legacy-0.3.pth", "`_rebuild_tensor`, storages that are views of a root", absent=COUNTERS)
    containers.write_tar(folder.path / "tar-0.1.pth", floats(tensors))
    folder.add("tar-0.1.pth", "the tar of PyTorch 0.1.9 and older, one storage a view", absent=COUNTERS)


def wrappers(folder, tensors) -> None:
    def prefixed(prefix):
        return OrderedDict((prefix + n, t) for n, t in tensors.items())

    def inside(key):
        return lambda saved: saved[key]

    folder.save(
        "wrapped-module.pth",
        {"state_dict": prefixed("module."), "epoch": 1},
        "`state_dict`, names with `module.` (DataParallel)",
        get=inside("state_dict"),
        rename=lambda n: f"module.{n}",
    )
    folder.save(
        "wrapped-ema.pth",
        training_state(tensors),
        "`model` (every value one more), `model_ema` (the expected values), optimizer, argparse arguments",
        get=inside("model_ema"),
    )
    folder.save(
        "lightning.ckpt",
        lightning(prefixed("model.")),
        "as Lightning writes: `state_dict`, names with `model.`",
        get=inside("state_dict"),
        rename=lambda n: f"model.{n}",
    )
    text = "names with `_orig_mod.` (torch.compile)"
    folder.save("compiled.pth", prefixed("_orig_mod."), text, rename=lambda n: f"_orig_mod.{n}")


def other_forms(folder, state, tensors) -> None:
    path = folder.path
    save_on_cuda(state, path / "zip-cuda.pth")
    folder.add("zip-cuda.pth", "tensors tagged `cuda:0`")
    dtypes = {str(i): t.dtype for i, t in enumerate(state.values())}
    containers.to_big_endian(path / "zip.pth", path / "zip-big-endian.pth", dtypes)
    folder.add("zip-big-endian.pth", "as written on a big-endian machine")

    net = network()
    text = "`torch.save(model)`: a pickled module of class `nets.Net`"
    folder.save("whole-module.pt", net, text, get=lambda module: module.state_dict())
    script = io.BytesIO()
    torch.jit.save(torch.jit.trace(net, torch.zeros(1, 3, 32, 32)), script)
    containers.without_debug_files(script, path / "torchscript.pt")
    folder.add("torchscript.pt", "`torch.jit.save` of a traced module", container="torchscript")

    named = OrderedDict((huggingface(n), t) for n, t in tensors.items())
    hf = {"dialect": "huggingface", "rename": huggingface}
    folder.save("plain.safetensors", tensors, "safetensors without a description")
    folder.save("huggingface.bin", named, "names of Hugging Face transformers", **hf)
    folder.save("huggingface.safetensors", named, "the same as safetensors", **hf)
    body = OrderedDict((n.removeprefix("resnet."), t) for n, t in named.items() if n.startswith("resnet."))
    folder.save(
        "huggingface-body.safetensors",
        body,
        "transformers' `ResNetModel`: no `resnet.`, no head",
        dialect="huggingface",
        absent="fc.",
        rename=lambda n: huggingface(n).removeprefix("resnet."),
    )


def numpy_forms(folder, tensors) -> None:
    """Pickles as Detectron writes them, of every protocol that holds bytes, and numpy's own archives."""
    path = folder.path
    arrays = {n: t.numpy() for n, t in tensors.items()}
    # One matrix in Fortran order, as transposed ones are.
    arrays["fc.weight"] = numpy.asfortranarray(arrays["fc.weight"])
    for protocol in range(2, 6):
        file = f"arrays-{protocol}.pkl"
        (path / file).write_bytes(pickle.dumps(arrays, protocol=protocol))
        folder.add(file, f"numpy arrays pickled with protocol {protocol}", container="pickle of arrays")
    swapped = {n: a.astype(a.dtype.newbyteorder(">")) for n, a in arrays.items()}
    (path / "arrays-big-endian.pkl").write_bytes(pickle.dumps(swapped, protocol=4))
    folder.add("arrays-big-endian.pkl", "big-endian numpy arrays", container="pickle of arrays")
    for file, save in [("arrays.npz", numpy.savez), ("arrays-deflated.npz", numpy.savez_compressed)]:
        save(path / file, **arrays)
        folder.add(file, f"`numpy.{save.__name__}`", container="archive of numpy arrays")
