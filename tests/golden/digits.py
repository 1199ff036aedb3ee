"""Gives tests/golden/digits.safetensors the bundled model's logits as PyTorch computes them: after `make train-digits`."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_tensors

import nets

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent.parent / "weights" / "digits_resnet20.safetensors"


@torch.no_grad()
def main() -> None:
    net = nets.Net(nets.cifar(20, in_channels=1))
    net.load_state_dict(load_tensors(MODEL))
    # The reference is computed in f64, so that its rounding error is negligible.
    net = net.double().eval()
    with safe_open(MODEL, "pt") as file:
        preprocess = json.loads(file.metadata()["resnet"])["preprocess"]
    golden = load_file(HERE / "digits.safetensors")
    x = torch.from_numpy(golden["images"]).double()[:, None] / 255
    x = (x - preprocess["mean"][0]) / preprocess["std"][0]
    logits = torch.cat([net(part) for part in x.split(250)])
    right = int((logits.argmax(1).numpy() == golden["labels"]).sum())
    top = logits.topk(2).values
    print(f"{right} of {len(x)} right, smallest margin {float((top[:, 0] - top[:, 1]).min()):.1e}")
    save_file(golden | {"logits": logits.float().numpy()}, HERE / "digits.safetensors")


if __name__ == "__main__":
    main()
