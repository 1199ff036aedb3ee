"""The same ResNets through every CPU engine that one could pick instead: `make peers`.

Each engine is a separate process that loads a model once and then waits. In every round all of them run a few batches,
one engine after the other, in a new order, so that a machine that changes its speed changes it for all. Printed are
medians, the ratio of ours to the fastest peer, and how far each engine's logits are from PyTorch's.

Fair settings: f32 everywhere (OpenVINO and ncnn would use 16 bits where the CPU has them), the same number of threads,
weights packed before the clock starts, inputs already normalized.
"""

import argparse
import json
import os
import pathlib
import platform
import random
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WORK = ROOT / "target" / "peers"
sys.path.insert(0, str(HERE.parent / "golden"))

PYTHON_PEERS = ["torch", "onnxruntime", "openvino", "mnn", "ncnn"]
RUST_PEERS = ["candle", "tract", "rten"]


def prepare(depth: int, batch: int) -> None:
    """Writes the model with formula weights in every engine's format, its input and PyTorch's logits."""
    done = WORK / f"r{depth}-b{batch}.done"
    if done.exists():
        return
    import numpy as np
    import torch
    import torchvision
    from safetensors.torch import save_file

    import formula

    WORK.mkdir(parents=True, exist_ok=True)
    model = getattr(torchvision.models, f"resnet{depth}")().eval()
    formula.fill(model)
    x = torch.from_numpy(formula.input(batch, 3, 224, 224))
    with torch.no_grad():
        logits = model(x)
    stem = WORK / f"r{depth}-b{batch}"
    np.save(f"{stem}.input.npy", x.numpy())
    np.save(f"{stem}.logits.npy", logits.numpy())
    save_file({"input": x.contiguous(), "logits": logits.contiguous()}, f"{stem}.expected.safetensors")
    if not (WORK / f"r{depth}.pth").exists():
        torch.save(model.state_dict(), WORK / f"r{depth}.pth")
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, WORK / f"r{depth}.plain.safetensors")
    torch.onnx.export(model, (x,), f"{stem}.onnx", dynamo=False, input_names=["input"], output_names=["logits"])
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "check": True, "cwd": WORK}
    tools = pathlib.Path(sys.executable).parent
    subprocess.run(
        [tools / "mnnconvert", "-f", "ONNX", "--modelFile", f"{stem}.onnx", "--MNNModel", f"{stem}.mnn", "--bizCode", "x"],
        **quiet,
    )
    if batch == 1:
        # ncnn has no batches: it is given the images of a batch one after the other.
        torch.jit.trace(model, x).save(f"{stem}.pt")
        subprocess.run([tools / "pnnx", f"{stem}.pt", "inputshape=[1,3,224,224]", "fp16=0"], **quiet)
    done.touch()


def worker(engine: str, depth: int, batch: int, threads: int) -> None:
    """Loads the model, then runs as many batches as each line of standard input says and prints their times."""
    import numpy as np

    # Engines print to standard output as they like; what we say goes to a copy of it that they do not know.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    x = np.load(WORK / f"r{depth}-b{batch}.input.npy")
    expected = np.load(WORK / f"r{depth}-b{batch}.logits.npy")
    run = globals()[f"load_{engine}"](WORK / f"r{depth}-b{batch}", depth, threads, x)
    logits = np.array(run()).reshape(expected.shape)
    error = float(np.abs(logits - expected).max() / np.abs(expected).max())
    print(json.dumps({"error": error}), file=replies, flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            start = time.perf_counter()
            run()
            times.append((time.perf_counter() - start) * 1e3)
        print(json.dumps(times), file=replies, flush=True)


def load_torch(stem, depth, threads, x):
    import torch
    import torchvision

    import formula

    torch.set_num_threads(threads)
    model = getattr(torchvision.models, f"resnet{depth}")().eval()
    formula.fill(model)
    model = model.to(memory_format=torch.channels_last)
    x = torch.from_numpy(x).to(memory_format=torch.channels_last)

    def run():
        with torch.inference_mode():
            return model(x)

    return run


def load_onnxruntime(stem, depth, threads, x):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(f"{stem}.onnx", options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"input": x})[0]


def load_openvino(stem, depth, threads, x):
    import openvino

    core = openvino.Core()
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(core.read_model(f"{stem}.onnx"), "CPU", hints).create_infer_request()
    return lambda: request.infer({0: x})[0]


def load_mnn(stem, depth, threads, x):
    import MNN
    import MNN.expr as expr
    import MNN.nn as nn
    import MNN.numpy as mnp

    config = {"precision": "high", "backend": "CPU", "numThread": threads}
    manager = nn.create_runtime_manager((config,))
    net = nn.load_module_from_file(f"{stem}.mnn", ["input"], ["logits"], runtime_manager=manager)
    given = expr.convert(expr.const(x.copy(), list(x.shape), expr.NCHW), expr.NC4HW4)
    return lambda: net.forward(given).read()


def load_ncnn(stem, depth, threads, x):
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(net.opt, option, False)
    stem = WORK / f"r{depth}_b1"  # as pnnx spells it
    net.load_param(f"{stem}.ncnn.param")
    net.load_model(f"{stem}.ncnn.bin")
    arrays = [image.copy() for image in x]
    images = [ncnn.Mat(array) for array in arrays]

    def run(arrays=arrays):  # a Mat does not keep the array alive whose memory it reads
        import numpy as np

        results = []
        for image in images:
            extractor = net.create_extractor()
            extractor.input("in0", image)
            results.append(np.array(extractor.extract("out0")[1]))
        return results

    return run


class Peer:
    """A process that waits for the number of batches to run."""

    def __init__(self, engine: str, depth: int, batch: int, threads: int):
        self.engine = engine
        env = dict(os.environ, OMP_NUM_THREADS=str(threads), RAYON_NUM_THREADS=str(threads))
        # Old BLAS builds need these on some processors; here they would only slow torch down.
        env = {k: v for k, v in env.items() if not k.startswith("OPENBLAS_")}
        if engine in RUST_PEERS:
            command = [str(ROOT / "target/peers/rust/release/peer"), engine, str(WORK), str(depth), str(batch), str(threads)]
        else:
            command = [sys.executable, __file__, "--worker", engine, "--depths", str(depth), "--batches", str(batch), "--threads", str(threads)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env
        )
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{engine} did not start")
        self.error = json.loads(line)["error"]
        self.times: list[float] = []

    def run(self, iterations: int) -> None:
        self.process.stdin.write(f"{iterations}\n")
        self.process.stdin.flush()
        self.times += json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


class Ours:
    """`resnet-cli bench` on the converted checkpoint; one process a round."""

    def __init__(self, engine: str, depth: int, batch: int, threads: int):
        self.engine, self.times = engine, []
        isa = engine.partition("-")[2]
        self.weights = WORK / f"r{depth}.safetensors"
        if not self.weights.exists():
            subprocess.run([ROOT / "target/release/resnet-convert", WORK / f"r{depth}.pth"], check=True, stdout=subprocess.DEVNULL)
        self.command = [ROOT / "target/release/resnet-cli", "bench", "--weights", self.weights, "--json"]
        self.command += ["--batch", str(batch), "--threads", str(threads)] + (["--isa", isa] if isa else [])
        verify = [ROOT / "target/release/resnet-cli", "verify", self.weights, "--json", "--against"]
        found = subprocess.run(verify + [WORK / f"r{depth}-b{batch}.expected.safetensors"], capture_output=True)
        self.error = next(row["relative"] for row in json.loads(found.stdout) if row["name"] == "logits")

    def run(self, iterations: int) -> None:
        found = subprocess.run(self.command + ["--iters", str(iterations)], capture_output=True, check=True)
        self.times.append(json.loads(found.stdout)[0]["median_ms"])

    def close(self) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    numbers = lambda text: [int(n) for n in text.split(",")]
    parser.add_argument("--depths", type=numbers, default=[18, 34, 50, 101, 152])
    parser.add_argument("--batches", type=numbers, default=[1, 8])
    parser.add_argument("--threads", type=numbers, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", default=",".join(PYTHON_PEERS + RUST_PEERS))
    parser.add_argument("--ours", default="ours,ours-avx2")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker, args.depths[0], args.batches[0], args.threads[0])
        return
    peers = [p for p in args.peers.split(",") if p]
    rust = ROOT / "target/peers/rust/release/peer"
    peers = [p for p in peers if p not in RUST_PEERS or rust.exists()]
    ours = args.ours.split(",")
    print(f"{cpu()}, {time.strftime('%Y-%m-%d')}, median ms per batch; ratio: ours / fastest peer\n")
    columns = ours + peers
    print("| model | batch | threads | " + " | ".join(columns) + " | ratio | worst logits |")
    print("|---|---:|---:|" + "---:|" * len(columns) + "---:|---|")
    for depth in args.depths:
        for batch in args.batches:
            subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {str(HERE)!r}); import peers; peers.prepare({depth}, {batch}); peers.prepare({depth}, 1)"], check=True)
            for threads in args.threads:
                row(depth, batch, threads, ours, peers, args.rounds)


def row(depth, batch, threads, ours, peers, rounds) -> None:
    engines = {}
    for name in ours + peers:
        try:
            engines[name] = (Ours if name in ours else Peer)(name, depth, batch, threads)
        except Exception as error:  # one engine that does not start must not end the comparison
            print(f"{name}: {error}", file=sys.stderr)
    iterations = max(1, round(12 * 18 / depth / batch))
    for _ in range(rounds):
        for engine in random.sample(list(engines.values()), len(engines)):
            engine.run(iterations)
    medians = {name: statistics.median(engine.times) for name, engine in engines.items()}
    best = min(value for name, value in medians.items() if name in peers)
    worst = max(engines.values(), key=lambda e: e.error)
    cells = [f"{medians[name]:.1f}" if name in medians else "–" for name in ours + peers]
    ratio = medians[ours[0]] / best
    errors = f"ours {engines[ours[0]].error:.1e}, {worst.engine} {worst.error:.1e}"
    print(f"| ResNet-{depth} | {batch} | {threads} | " + " | ".join(cells) + f" | **{ratio:.2f}** | {errors} |", flush=True)
    for engine in engines.values():
        engine.close()


def cpu() -> str:
    try:
        for line in open("/proc/cpuinfo"):
            if line.startswith("model name"):
                return f"{line.split(':')[1].strip()}, {os.cpu_count()} cores"
    except OSError:
        pass
    return platform.processor()


if __name__ == "__main__":
    main()
