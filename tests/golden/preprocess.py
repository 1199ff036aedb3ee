"""Pictures in every form that Pillow reads, and what the evaluation transforms of torchvision and timm make of them.

Written with Python 3.11, pillow 13.0.0, numpy 2.4.6, torch 2.15.0, torchvision 0.29.2, timm 1.0.31.

python3 preprocess.py OUT writes OUT/*.png|jpg|webp|bmp|gif, OUT/crops.bin (8-bit crops, one after the other) and
OUT/cases.json: for each picture the size and the hash of `exif_transpose` and `convert("RGB")`, and a list of
transforms in the form of `Preprocess`, each with the position of its crop or, for large ones, its hash.
"""

import io
import json
import pathlib
import struct
import sys
import zlib

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data.transforms import CenterCropOrPad, ResizeKeepRatio
from torchvision import transforms as T
from torchvision.transforms import InterpolationMode

MODES = {
    "nearest": InterpolationMode.NEAREST,
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "lanczos": InterpolationMode.LANCZOS,
}
MEAN, STD = [0.4, 0.5, 0.6], [0.25, 0.2, 0.3]


def fnv(data: bytes) -> str:
    """FNV-1a in 64 bits."""
    h = 0xCBF29CE484222325
    for byte in data:
        h = (h ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{h:016x}"


def scene(width: int, height: int, seed: int, channels: int = 3) -> np.ndarray:
    """A picture with slopes, edges, discs and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    out = np.empty((height, width, channels))
    for c in range(channels):
        a, b, phase = rng.uniform(-1, 1, 3)
        out[..., c] = 128 + 90 * np.sin((a * x / width + b * y / height) * 5 + phase * 3)
    for _ in range(6):
        cx, cy, r = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(2, max(3, min(width, height) / 3))
        out[(x - cx) ** 2 + (y - cy) ** 2 < r * r] = rng.uniform(0, 255, channels)
    out += rng.normal(0, 6, out.shape)
    return out.clip(0, 255).astype(np.uint8)


def picture(width: int, height: int, seed: int, mode: str = "RGB") -> Image.Image:
    pixels = scene(width, height, seed, {"L": 1, "LA": 2, "RGB": 3}.get(mode, 4))
    return Image.fromarray(pixels[..., 0] if mode == "L" else pixels, mode)


def encode(image: Image.Image, form: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def png16(width: int, height: int, color_type: int, seed: int) -> bytes:
    """A PNG of 16-bit color, which Pillow cannot write."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[color_type]
    rng = np.random.default_rng(seed)
    pixels = scene(width, height, seed, channels).astype(np.uint16) * 257 ^ rng.integers(0, 256, (height, width, channels), np.uint16)
    if color_type == 0:
        pixels >>= np.arange(height, dtype=np.uint16)[:, None, None] % 12  # levels below and above 255
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def patch(data: bytes, old: bytes, new: bytes) -> bytes:
    assert data.count(old) == 1, (old, data.count(old))
    return data.replace(old, new)


def pictures() -> dict[str, bytes]:
    out = {}
    for width, height in [(61, 47), (48, 64), (20, 13), (3, 90), (97, 31), (36, 36), (1, 1)]:
        out[f"rgb-{width}x{height}.png"] = encode(picture(width, height, width), "PNG")
    out["grey.png"] = encode(picture(45, 50, 1, "L"), "PNG")
    out["grey-alpha.png"] = encode(picture(40, 39, 2, "LA"), "PNG")
    out["alpha.png"] = encode(picture(44, 37, 3, "RGBA"), "PNG")
    palette = picture(50, 41, 4).quantize(30)
    out["palette.png"] = encode(palette, "PNG")
    out["palette-alpha.png"] = encode(palette, "PNG", transparency=bytes(range(0, 240, 8)))
    out["palette-4.png"] = encode(picture(43, 41, 5).quantize(11), "PNG", bits=4)
    out["one-bit.png"] = encode(picture(51, 40, 6, "L").convert("1"), "PNG")
    out["grey-key.png"] = encode(picture(40, 44, 7, "L"), "PNG", transparency=128)
    for name, color_type in [("grey", 0), ("rgb", 2), ("grey-alpha", 4), ("alpha", 6)]:
        out[f"{name}-16.png"] = png16(28, 27, color_type, 8 + color_type)
    out["turned.png"] = encode(picture(33, 45, 9), "PNG", exif=exif(6))

    for subsampling, name in [(0, "444"), (1, "422"), (2, "420")]:
        out[f"{name}.jpg"] = encode(picture(63, 50, 20 + subsampling), "JPEG", quality=85, subsampling=subsampling)
        # Two samples across: too few for smooth upsampling.
        out[f"{name}-narrow.jpg"] = encode(picture(4, 37, 30 + subsampling), "JPEG", quality=70, subsampling=subsampling)
    square = picture(64, 64, 23)
    # Another geometry with the same number of blocks: a scrambled picture, but a valid file.
    sof = b"\x03\x01%b\x00\x02\x11\x01\x03\x11\x01"
    out["440.jpg"] = patch(encode(square, "JPEG", quality=80, subsampling=1), sof % b"\x21", sof % b"\x12")
    out["411.jpg"] = patch(encode(square, "JPEG", quality=80, subsampling=2), sof % b"\x22", sof % b"\x41")
    out["progressive.jpg"] = encode(picture(59, 66, 24), "JPEG", quality=80, progressive=True)
    out["progressive-grey.jpg"] = encode(picture(41, 33, 25, "L"), "JPEG", quality=90, progressive=True)
    out["grey.jpg"] = encode(picture(47, 38, 26, "L"), "JPEG", quality=60)
    out["restarts.jpg"] = encode(picture(70, 45, 27), "JPEG", quality=75, restart_marker_blocks=2)
    out["rgb.jpg"] = encode(picture(41, 42, 28), "JPEG", quality=90, keep_rgb=True)
    out["extreme.jpg"] = encode(Image.fromarray(np.random.default_rng(1).integers(0, 2, (40, 40, 3), np.uint8) * 255), "JPEG", quality=12)
    cmyk = encode(picture(43, 46, 29, "CMYK"), "JPEG", quality=85)
    out["cmyk.jpg"] = cmyk
    adobe = cmyk.index(b"Adobe") + 11
    out["ycck.jpg"] = cmyk[:adobe] + b"\x02" + cmyk[adobe + 1 :]
    for orientation in range(1, 9):
        out[f"orientation-{orientation}.jpg"] = encode(picture(40, 25, 40), "JPEG", quality=50, exif=exif(orientation))
    out["orientation-9.jpg"] = encode(picture(40, 25, 40), "JPEG", quality=50, exif=exif(9))

    out["lossless.webp"] = encode(picture(43, 40, 50), "WEBP", lossless=True, exif=exif(8))
    out["lossy.webp"] = encode(picture(61, 45, 51), "WEBP", quality=80)
    out["lossy-alpha.webp"] = encode(picture(45, 43, 52, "RGBA"), "WEBP", quality=80)
    out["24.bmp"] = encode(picture(35, 33, 60), "BMP")
    out["32.bmp"] = encode(picture(23, 21, 61, "RGBA"), "BMP")
    out["grey.bmp"] = encode(picture(37, 38, 62, "L"), "BMP")
    out["palette.bmp"] = encode(picture(37, 33, 63).quantize(16), "BMP")
    out["one-bit.bmp"] = encode(picture(37, 38, 64, "L").convert("1"), "BMP")
    gif = encode(picture(39, 37, 70).quantize(40), "GIF", transparency=5)
    out["palette.gif"] = encode(picture(45, 36, 71).quantize(64), "GIF")
    out["animated.gif"] = encode(picture(38, 36, 72).quantize(32), "GIF", save_all=True, append_images=[picture(38, 36, 73).quantize(32)])
    out["interlaced.gif"] = encode(picture(41, 39, 74, "L"), "GIF", interlace=1)
    # The frame is in a corner of a larger canvas, with and without a transparent color.
    opaque = encode(picture(39, 37, 70).quantize(40), "GIF")
    for name, data in [("corner.gif", opaque), ("corner-key.gif", gif)]:
        larger = data[:6] + struct.pack("<HH", 50, 44) + data[10:]
        out[name] = patch(larger, struct.pack("<BHHHH", 0x2C, 0, 0, 39, 37), struct.pack("<BHHHH", 0x2C, 7, 5, 39, 37))
    return out


def transform(preprocess: dict):
    """The transform that a `Preprocess` describes, up to the 8-bit crop."""
    (kind, size), = preprocess["resize"].items()
    crop, mode = preprocess["crop"], MODES[preprocess["filter"]]
    if kind == "shorter_side":
        steps = [T.Resize(size, interpolation=mode), T.CenterCrop(crop)]
    elif kind == "exact":
        steps = [T.Resize(size, interpolation=mode), T.CenterCrop(crop)]
    elif kind == "cover":
        steps = [ResizeKeepRatio(size, interpolation=preprocess["filter"]), T.CenterCrop(crop)]
    else:
        fill = tuple(round(255 * v) for v in preprocess["mean"])
        steps = [ResizeKeepRatio(size, interpolation=preprocess["filter"], longest=1.0), CenterCropOrPad(crop, fill=fill)]
    return T.Compose(steps)


def describe(kind: str, size, crop: list[int], filter: str, channels: str = "rgb") -> dict:
    n = 1 if channels == "grey" else 3
    return {"resize": {kind: size}, "crop": crop, "filter": filter, "channels": channels, "mean": MEAN[:n], "std": STD[:n]}


def main(out: pathlib.Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for old in out.iterdir():
        old.unlink()
    crops, cases = bytearray(), []
    for name, data in pictures().items():
        (out / name).write_bytes(data)
        turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        rgb = turned.convert("RGB")
        case = {"file": name, "size": [rgb.height, rgb.width], "decoded": fnv(rgb.tobytes()), "crops": []}

        def add(preprocess: dict, stored: bool) -> None:
            source = turned.convert("L") if preprocess["channels"] == "grey" else rgb
            crop = transform(preprocess)(source)
            entry = {"preprocess": preprocess}
            pixels = crop.tobytes()
            if stored:
                entry["at"] = len(crops)
                crops.extend(pixels)
            else:
                entry["hash"] = fnv(pixels)
            if preprocess["channels"] == "rgb":
                tensor = T.Normalize(preprocess["mean"], preprocess["std"])(T.ToTensor()(crop))
                entry["tensor"] = fnv(tensor.to(torch.float32).numpy().astype("<f4").tobytes())
            case["crops"].append(entry)

        for filter in ("bilinear", "bicubic"):
            add(describe("shorter_side", 21, [18, 18], filter), True)
        if name.startswith("rgb-"):
            for filter in MODES:
                add(describe("shorter_side", 27, [24, 24], filter, "grey"), False)
                add(describe("shorter_side", 232, [224, 224], filter), False)
                # Smaller than the crop, by odd and even numbers of pixels; one side only; not square.
                add(describe("shorter_side", 20, [33, 34], filter), False)
                add(describe("shorter_side", 31, [28, 61], filter), False)
                add(describe("exact", [40, 31], [32, 32], filter), False)
                if name != "rgb-3x90.png":
                    add(describe("cover", [30, 45], [26, 39], filter), False)
                    add(describe("contain", [40, 40], [35, 35], filter), False)
        cases.append(case)
    (out / "crops.bin").write_bytes(crops)
    (out / "cases.json").write_text(json.dumps(cases, separators=(",", ":")).replace('{"file"', '\n{"file"') + "\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "preprocess")
