"""The input pipeline compared with torchvision: `make peers-train`.

JPEG files of 500×375 pixels become batches: random part resized to 224×224, flipped, normalized. torchvision's DataLoader
has as many workers as we have threads. Both are processes that wait in between; they make an epoch in turn.
"""

import argparse
import io
import json
import pathlib
import statistics
import sys
import time

import train

IMAGES = 480
SIZE = (375, 500)


def photographs(folder: pathlib.Path) -> None:
    """Pictures with detail at every scale, which compress about as well as photographs do (100 kB)."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for number in range(IMAGES):
        path = folder / f"class{number % 4}" / f"{number:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = np.zeros((*SIZE, 3))
        for scale in (1, 2, 4, 8, 16, 32, 64, 128):
            noise = random.normal(size=(SIZE[0] // scale + 2, SIZE[1] // scale + 2, 3)) * 9 * scale**0.5
            noise[..., 1:] = 0.7 * noise[..., :1] + 0.3 * noise[..., 1:]
            planes = [Image.fromarray(noise[..., c].astype(np.float32)).resize(SIZE[::-1], Image.BICUBIC) for c in range(3)]
            picture += np.stack([np.asarray(plane) for plane in planes], -1)
        image = Image.fromarray(np.clip(128 + picture, 0, 255).astype(np.uint8))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90, subsampling="4:2:0")
        path.write_bytes(buffer.getvalue())


def worker(folder: str, workers: int, batch: int) -> None:
    import torch
    from torchvision import datasets, transforms

    normalize = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    steps = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor(), normalize]
    loader = torch.utils.data.DataLoader(
        datasets.ImageFolder(folder, transforms.Compose(steps)),
        batch_size=batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=True,
    )
    for _ in sys.stdin:
        start = time.perf_counter()
        images, sample = 0, 0.0
        for x, _ in loader:
            images += len(x)
            sample += float(x.flatten()[x.numel() // 2])
        print(json.dumps({"seconds": time.perf_counter() - start, "images": images, "sample": sample}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the input pipeline against torchvision.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--pipeline", default=str(train.ROOT / "target/release/examples/pipeline"), help="our program")
    parser.add_argument("--worker", help="for internal use")
    args = parser.parse_args()
    if args.worker:
        return worker(args.worker, args.threads, args.batch)
    folder = train.WORK / "photographs"
    if not (folder / f"class{(IMAGES - 1) % 4}" / f"{IMAGES - 1:04}.jpg").exists():
        photographs(folder)
    sizes = [path.stat().st_size for path in folder.glob("*/*.jpg")]
    common = ["--threads", str(args.threads), "--batch", str(args.batch)]
    commands = {
        "ours": [args.pipeline, *common, str(folder)],
        "torchvision": [sys.executable, "-B", __file__, *common, "--worker", str(folder)],
    }
    sides = {side: train.Process(command, args.threads) for side, command in commands.items()}
    for process in sides.values():
        process.ask(1)
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(args.rounds):
        for side, process in sides.items():
            answer = process.ask(1)
            rates[side].append(answer["images"] / answer["seconds"])
    median = {side: statistics.median(row) for side, row in rates.items()}
    print(f"input pipeline, {len(sizes)} JPEG of {SIZE[1]}x{SIZE[0]} ({statistics.mean(sizes) / 1000:.0f} kB), {args.threads} "
          f"threads or workers, {args.rounds} epochs each: ours {median['ours']:.0f} images/s, torchvision "
          f"{median['torchvision']:.0f}: {median['ours'] / median['torchvision']:.2f} times as many")
    for process in sides.values():
        process.end()


if __name__ == "__main__":
    main()
