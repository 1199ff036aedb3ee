"""Writers of checkpoint containers that today's PyTorch only reads, and edits of those that it writes."""

import io
import pickle
import pickletools
import struct
import tarfile
import zipfile

import torch

# What every zip from `torch.save` has: records start at multiples of 64 bytes, times are zero.
ALIGNMENT = 64


def write_zip(path, records: dict[str, bytes]) -> None:
    """A stored, aligned zip, as PyTorch's writer lays it out."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as out:
        for name, data in records.items():
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            start = out.fp.tell() + 30 + len(name.encode())
            pad = -(start + 4) % ALIGNMENT
            info.extra = b"FB" + struct.pack("<H", pad) + b"Z" * pad
            out.writestr(info, data)


def read_zip(path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:
        return {info.filename: file.read(info) for info in file.infolist()}


class Old:
    """A tensor that pickles as PyTorch before 0.4 wrote it."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor

    def __reduce__(self):
        t = self.tensor
        return torch._utils._rebuild_tensor, (t._typed_storage(), t.storage_offset(), tuple(t.shape), t.stride())


def storage_class(dtype: torch.dtype):
    names = {
        torch.float32: "FloatStorage",
        torch.float64: "DoubleStorage",
        torch.float16: "HalfStorage",
        torch.bfloat16: "BFloat16Storage",
        torch.int64: "LongStorage",
    }
    return getattr(torch, names[dtype])


def little_endian(storage: torch.UntypedStorage) -> bytes:
    return bytes(torch.empty(0, dtype=torch.uint8).set_(storage).numpy())


class Storages(pickle.Pickler):
    """Pickles an object, replacing its storages by what `refer(number, storage)` gives."""

    def __init__(self, file, refer):
        super().__init__(file, protocol=2)
        self.refer = refer
        self.found: dict[int, torch.storage.TypedStorage] = {}

    def persistent_id(self, obj):
        if not isinstance(obj, torch.storage.TypedStorage):
            return None
        address = obj._cdata
        self.found.setdefault(address, obj)
        return self.refer(list(self.found).index(address), obj)


def dump(obj, refer) -> tuple[bytes, list]:
    file = io.BytesIO()
    pickler = Storages(file, refer)
    pickler.dump(obj)
    return file.getvalue(), list(pickler.found.values())


def pointer(number: int) -> str:
    """A storage key of the early zips and of the legacy stream: an address in decimal."""
    return str(94_650_000_000_000 + 1_328 * number)


def write_early_zip(path, obj) -> None:
    """The zip of PyTorch 1.4 to 1.6: root `archive`, addresses for keys, no byte order. torchvision's V1 files."""

    def refer(number, storage):
        return ("storage", storage_class(storage.dtype), pointer(number), "cpu", storage._size())

    data, storages = dump(obj, refer)
    records = {"archive/data.pkl": data}
    for number, storage in enumerate(storages):
        records[f"archive/data/{pointer(number)}"] = little_endian(storage._untyped_storage)
    write_zip(path, records | {"archive/version": b"3\n"})


def write_legacy_views(path, tensors: dict[str, torch.Tensor]) -> None:
    """The legacy stream of PyTorch 0.1.10 to 0.3: `_rebuild_tensor`, and views of one root storage.

    All tensors must be contiguous f32; their values go one after the other into the root storage.
    """
    root, total = pointer(0), sum(t.numel() for t in tensors.values())
    starts, offset = {}, 0
    for tensor in tensors.values():
        starts[tensor._typed_storage()._cdata] = (offset, tensor.numel())
        offset += tensor.numel()

    def refer(number, storage):
        view = (pointer(number + 1), *starts[storage._cdata])
        return ("storage", torch.FloatStorage, root, "cpu", total, view)

    data, _ = dump({name: Old(tensor) for name, tensor in tensors.items()}, refer)
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 8}}
    head = [0x1950A86A20F9469CFC6C, 1001, system]
    with open(path, "wb") as out:
        for part in head:
            pickle.dump(part, out, protocol=2)
        out.write(data)
        pickle.dump([root], out, protocol=2)
        out.write(struct.pack("<q", total))
        for tensor in tensors.values():
            out.write(tensor.numpy().tobytes())


def settle_legacy(path, dtypes: dict[str, torch.dtype]) -> None:
    """Rewrites a legacy stream of today's PyTorch: its storage keys are addresses, which differ from run to run."""
    with open(path, "rb") as file:
        starts = [0]
        for _ in range(5):
            for _ in pickletools.genops(file):
                pass
            starts.append(file.tell())
        file.seek(0)
        data = file.read()
    head, body = data[: starts[3]], data[starts[3] : starts[4]]
    keys, offset, blobs = pickle.loads(data[starts[4] : starts[5]]), starts[5], {}
    for key in keys:
        (count,) = struct.unpack_from("<q", data, offset)
        end = offset + 8 + count * dtypes[key].itemsize
        blobs[key], offset = data[offset:end], end
    assert offset == len(data)

    def text(key):
        return b"X" + struct.pack("<I", len(key)) + key.encode()

    order = sorted(keys, key=lambda key: body.index(text(key)))
    for number, key in enumerate(order):
        body = body.replace(text(key), text(pointer(number)))
    with open(path, "wb") as out:
        out.write(head + body)
        pickle.dump([pointer(number) for number in range(len(order))], out, protocol=2)
        out.write(b"".join(blobs[key] for key in order))


def write_tar(path, tensors: dict[str, torch.Tensor]) -> None:
    """The tar of PyTorch 0.1.9 and older. The first f32 tensor's storage is a view of a larger one."""
    storages, rows, keys = [], [], {}
    first, *rest = tensors.items()
    number = 1
    for name, tensor in rest:
        storages.append((number, tensor.dtype, tensor.numpy().tobytes()))
        rows.append((number + 1, number, tensor))
        keys[name] = number + 1
        number += 2
    lead, root, view = 3, number, number + 1
    storages.append((root, torch.float32, bytes(4 * lead) + first[1].numpy().tobytes()))
    rows.append((number + 2, view, first[1]))
    keys[first[0]] = number + 2

    out = io.BytesIO()
    pickle.dump(len(storages), out, protocol=2)
    for key, dtype, data in storages:
        pickle.dump((key, "cpu", storage_class(dtype)), out, protocol=2)
        out.write(struct.pack("<q", len(data) // dtype.itemsize) + data)
    pickle.dump([(view, root, lead, first[1].numel())], out, protocol=2)
    members = {"storages": out.getvalue()}

    out = io.BytesIO()
    pickle.dump(len(rows), out, protocol=2)
    for key, storage, tensor in rows:
        kind = getattr(torch, storage_class(tensor.dtype).__name__.replace("Storage", "Tensor"))
        pickle.dump((key, storage, kind), out, protocol=2)
        dims = tensor.ndim
        out.write(struct.pack("<ii", dims, 0))
        out.write(struct.pack(f"<{2 * dims + 1}q", *tensor.shape, *tensor.stride(), 0))
    members["tensors"] = out.getvalue()

    class Tensors(pickle.Pickler):
        def persistent_id(self, obj):
            return str(obj.key) if isinstance(obj, Reference) else None

    out = io.BytesIO()
    Tensors(out, protocol=2).dump({name: Reference(keys[name]) for name in tensors})
    members["pickle"] = out.getvalue()
    system = {"protocol_version": 1000, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 8}}
    members["sys_info"] = pickle.dumps(system, protocol=2)

    with tarfile.open(path, "w:", format=tarfile.USTAR_FORMAT) as tar:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            info = tarfile.TarInfo(name)
            info.size = len(members[name])
            tar.addfile(info, io.BytesIO(members[name]))


class Reference:
    """Stands for a tensor of the tar form."""

    def __init__(self, key: int):
        self.key = key


def to_big_endian(source, path, dtypes: dict[str, torch.dtype]) -> None:
    """The same zip as a big-endian machine writes it; `dtypes` by storage key."""
    records = read_zip(source)
    for name, data in records.items():
        folder, _, key = name.rpartition("/")
        if folder.endswith("/data"):
            size = dtypes[key].itemsize
            records[name] = b"".join(data[i : i + size][::-1] for i in range(0, len(data), size))
        elif key == "byteorder":
            records[name] = b"big"
    write_zip(path, records)


def without_debug_files(source, path) -> None:
    """The same TorchScript zip without the `.debug_pkl` records, which hold paths of this machine."""
    write_zip(path, {n: data for n, data in read_zip(source).items() if not n.endswith(".debug_pkl")})
