"""Training steps compared with PyTorch: `make peers-train`.

Each side is a process that starts with the same weights and sees the same batches. The processes take turns: in every
round each runs a few steps while the others wait, so that changes in machine speed affect all of them. The output has
the differences from PyTorch in f64 after ten steps, medians of the step times with their ratio, and the peak memory.
PyTorch runs in its fastest configuration here, channels_last (and in NCHW, for comparison).

f64 is the reference because a deep network whose branches are all active from the start amplifies rounding differences:
with `--start formula` PyTorch's two layouts differ from each other and from f64 as much as we do. At the start of
training (`--start fresh`: torchvision's initialization, last norm of each block at zero) the network is stable.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WORK = ROOT / "target" / "peers"
sys.path.insert(0, str(HERE.parent / "golden"))

STEPS = 10
# So small that a ReLU whose input changes sign by rounding has no visible effect.
RATE = 1e-3
SAVED = "after.{}.safetensors"


def weights(name: str, start: str) -> pathlib.Path:
    """Initial weights: by formula, or as torchvision initializes them."""
    import torch
    import torchvision
    from safetensors.torch import save_file

    import formula

    path = WORK / f"{name}.{start}.safetensors"
    if not path.exists():
        WORK.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        model = getattr(torchvision.models, name)(zero_init_residual=start == "fresh")
        if start == "formula":
            formula.fill(model)
        with torch.no_grad():
            for key, tensor in model.state_dict().items():
                if key.endswith("running_mean"):
                    tensor.zero_()
                elif key.endswith("running_var"):
                    tensor.fill_(1)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    return path


def worker(name: str, form: str, start: pathlib.Path, batch: int, threads: int, rate: float) -> None:
    """What crates/resnet-train/examples/step.rs does, in PyTorch."""
    import numpy as np
    import torch
    import torchvision
    from safetensors.torch import load_file, save_file

    import formula

    torch.set_num_threads(threads)
    model = getattr(torchvision.models, name)()
    model.load_state_dict(load_file(start))
    last = torch.channels_last if form == "channels_last" else torch.contiguous_format
    dtype = torch.float64 if form == "f64" else torch.float32
    model = model.to(dtype=dtype, memory_format=last).train()
    x = torch.from_numpy(formula.input(10 * batch, 3, 224, 224)).to(dtype=dtype, memory_format=last)
    y = torch.from_numpy((np.floor(formula.uniform("classes", 10 * batch) * 1000)).astype(np.int64))
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 1e-4}, {"params": others, "weight_decay": 0.0}]
    sgd = torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True)
    step = 0
    for line in sys.stdin:
        if int(line) == 0:
            if step == STEPS:
                save_file({k: v.contiguous() for k, v in model.state_dict().items()}, WORK / SAVED.format(form))
            print(json.dumps({"peak_kb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}), flush=True)
            continue
        seconds, losses = [], []
        for _ in range(int(line)):
            at = step % 10 * batch
            start = time.perf_counter()
            sgd.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x[at : at + batch]), y[at : at + batch])
            losses.append(loss.item())
            forward = time.perf_counter() - start
            loss.backward()
            both = time.perf_counter() - start
            sgd.step()
            seconds.append([time.perf_counter() - start, forward, both - forward])
            step += 1
        print(json.dumps({"seconds": seconds, "losses": losses}), flush=True)


class Process:
    def __init__(self, command: list[str], threads: int):
        env = os.environ | {"OMP_NUM_THREADS": str(threads)}
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def ask(self, count: int) -> dict:
        self.child.stdin.write(f"{count}\n")
        self.child.stdin.flush()
        line = self.child.stdout.readline()
        if not line:
            sys.exit(f"{self.child.args[0]} ended")
        return json.loads(line)

    def end(self) -> None:
        self.child.stdin.close()
        self.child.wait()


def differences(name: str, forms: list[str], losses: dict[str, list[float]]) -> None:
    """How far everybody is from PyTorch in f64 after the first steps."""
    from safetensors.torch import load_file

    exact = {k: v.double() for k, v in load_file(WORK / SAVED.format("f64")).items()}
    for form in forms:
        found = load_file(WORK / SAVED.format(form))
        loss = max(abs(a - b) for a, b in zip(losses[form], losses["f64"]))
        worst = max(
            (float((found[k].double() - v).abs().max() / v.abs().max()), k) for k, v in exact.items() if v.ndim > 1
        )
        kept = [k for k in exact if "num_batches" not in k]
        distance = sum(float((found[k].double() - exact[k]).square().sum()) for k in kept) ** 0.5
        length = sum(float(exact[k].square().sum()) for k in kept) ** 0.5
        print(f"{name}, {STEPS} steps, {form} against PyTorch in f64: losses differ by at most {loss:.1e}; all parameters by "
              f"{distance / length:.1e} of their length, matrices by at most {worst[0]:.1e} of their largest ({worst[1]})",
              flush=True)


def compare(name: str, args) -> None:
    start, rate = weights(name, args.start), args.rate
    common = ["--threads", str(args.threads), "--batch", str(args.batch), "--lr", str(rate)]
    save = str(WORK / SAVED.format("ours"))
    commands = {"ours": [args.step, "--weights", str(start), "--save", save, *common, name]}
    for form in ["f64", *args.forms]:
        commands[form] = [sys.executable, "-B", __file__, "--worker", name, "--weights", str(start), "--form", form, *common]
    exact = Process(commands.pop("f64"), args.threads)
    losses = {"f64": exact.ask(STEPS)["losses"]}
    exact.ask(0)
    exact.end()
    sides = {side: Process(command, args.threads) for side, command in commands.items()}
    for side, process in sides.items():
        losses[side] = process.ask(STEPS)["losses"]
        process.ask(0)
    print(f"{name}, rate {rate:g}, losses:", {side: [round(x, 5) for x in row] for side, row in losses.items()})
    differences(name, list(sides), losses)
    times: dict[str, list] = {side: [] for side in sides}
    for _ in range(args.rounds):
        for side, process in sides.items():
            times[side] += process.ask(args.steps)["seconds"]
    peak = {side: process.ask(0)["peak_kb"] / 1024 for side, process in sides.items()}
    median = {} if not args.rounds else {side: [statistics.median(row[i] for row in rows) for i in range(3)] for side, rows in times.items()}
    for side, (total, forward, backward) in median.items():
        ratio = "" if side == "ours" else f"; ours takes {median['ours'][0] / total:.2f} of it, {peak['ours'] / peak[side]:.2f} of the memory"
        print(f"{name} {side}: {total:.3f} s a step (forward {forward:.3f}, backward {backward:.3f}), "
              f"peak {peak[side]:.0f} MB{ratio}", flush=True)
    for process in sides.values():
        process.end()


def main() -> None:
    parser = argparse.ArgumentParser(description="Time training steps against PyTorch.")
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--forms", nargs="+", default=["channels_last", "nchw"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3, help="steps per round")
    parser.add_argument("--step", default=str(ROOT / "target/release/examples/step"), help="our program")
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--start", choices=["fresh", "formula"], default="fresh", help="initial weights")
    for flag in ["--worker", "--form", "--weights"]:
        parser.add_argument(flag, help="for internal use")
    args = parser.parse_args()
    if args.worker:
        worker(args.worker, args.form, args.weights, args.batch, args.threads, args.rate)
    else:
        for name in args.models:
            compare(name, args)


if __name__ == "__main__":
    main()
