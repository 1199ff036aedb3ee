"""Training steps beside PyTorch's: `make peers-train`.

Both sides are processes that begin with the same weights, see the same batches and wait in between; in every round each
takes a few steps, one after the other, so that a machine that changes its speed changes it for both. Printed are the
largest differences of the losses and of the parameters over the first ten steps, then medians of the step times and
their ratio, and the peak memory of both. PyTorch runs as it is fastest here: channels_last (and NCHW, for comparison).
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
# So small that a rectifier whose input changes its sign by rounding does not show.
RATES = {"resnet18": 1e-3, "resnet50": 1e-4}


def weights(name: str) -> pathlib.Path:
    """Weights by formula, running statistics at rest."""
    import torch
    import torchvision
    from safetensors.torch import save_file

    import formula

    path = WORK / f"{name}.start.safetensors"
    if not path.exists():
        WORK.mkdir(parents=True, exist_ok=True)
        model = formula.fill(getattr(torchvision.models, name)())
        with torch.no_grad():
            for key, tensor in model.state_dict().items():
                if key.endswith("running_mean"):
                    tensor.zero_()
                elif key.endswith("running_var"):
                    tensor.fill_(1)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    return path


def worker(name: str, form: str, batch: int, threads: int, rate: float) -> None:
    """What crates/resnet-train/examples/step.rs does, in PyTorch."""
    import numpy as np
    import torch
    import torchvision
    from safetensors.torch import load_file

    import formula

    torch.set_num_threads(threads)
    model = getattr(torchvision.models, name)()
    model.load_state_dict(load_file(WORK / f"{name}.start.safetensors"))
    last = torch.channels_last if form == "channels_last" else torch.contiguous_format
    model = model.to(memory_format=last).train()
    x = torch.from_numpy(formula.input(10 * batch, 3, 224, 224)).to(memory_format=last)
    y = torch.from_numpy((np.floor(formula.uniform("classes", 10 * batch) * 1000)).astype(np.int64))
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 1e-4}, {"params": others, "weight_decay": 0.0}]
    sgd = torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True)
    step = 0
    for line in sys.stdin:
        if int(line) == 0:
            sums = {k: [float(v.double().sum()), float(v.double().abs().sum())] for k, v in model.state_dict().items()}
            print(json.dumps({"sums": sums, "peak_kb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}), flush=True)
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


def compare(name: str, args) -> None:
    start, rate = weights(name), RATES.get(name, 1e-3)
    ours = [args.step, "--weights", str(start), "--threads", str(args.threads), "--batch", str(args.batch)]
    commands = {"ours": [*ours, "--rate", str(rate), name]}
    for form in args.forms:
        own = [sys.executable, "-B", __file__, "--worker", name, "--form", form, "--rate", str(rate)]
        commands[form] = [*own, "--threads", str(args.threads), "--batch", str(args.batch)]
    sides = {side: Process(command, args.threads) for side, command in commands.items()}
    first = {side: process.ask(STEPS) for side, process in sides.items()}
    sums = {side: process.ask(0) for side, process in sides.items()}
    print(f"{name}, losses:", {side: [round(x, 5) for x in answer["losses"]] for side, answer in first.items()})
    for form in args.forms:
        losses = max(abs(a - b) for a, b in zip(first["ours"]["losses"], first[form]["losses"]))
        worst = max(
            (abs(a - b) / max(scale, 1e-30), key)
            for key, (total, scale) in sums[form]["sums"].items()
            for a, b in zip(sums["ours"]["sums"][key], (total, scale))
        )
        print(f"{name}, {STEPS} steps against {form}: losses differ by at most {losses:.1e}, "
              f"sums of parameters by {worst[0]:.1e} of their magnitude ({worst[1]})", flush=True)
    times: dict[str, list] = {side: [] for side in sides}
    for _ in range(args.rounds):
        for side, process in sides.items():
            times[side] += process.ask(args.steps)["seconds"]
    peak = {side: process.ask(0)["peak_kb"] / 1024 for side, process in sides.items()}
    median = {side: [statistics.median(row[i] for row in rows) for i in range(3)] for side, rows in times.items()}
    for side, (total, forward, backward) in median.items():
        ratio = "" if side == "ours" else f"; ours takes {median['ours'][0] / total:.2f} of it, {peak['ours'] / peak[side]:.2f} of the memory"
        print(f"{name} {side}: {total:.3f} s a step (forward {forward:.3f}, backward {backward:.3f}), "
              f"peak {peak[side]:.0f} MB{ratio}", flush=True)
    for process in sides.values():
        process.child.stdin.close()
        process.child.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="Time training steps beside PyTorch.")
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--forms", nargs="+", default=["channels_last", "nchw"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3, help="steps per round")
    parser.add_argument("--step", default=str(ROOT / "target/release/examples/step"), help="our program")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--form", default="channels_last")
    parser.add_argument("--worker", help="for internal use")
    args = parser.parse_args()
    if args.worker:
        worker(args.worker, args.form, args.batch, args.threads, args.rate)
    else:
        for name in args.models:
            compare(name, args)


if __name__ == "__main__":
    main()
