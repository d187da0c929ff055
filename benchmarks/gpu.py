"""What a GPU does with hardtrain: the same bits replayed, eager and after a pause; step times.

    OUT=FOLDER python -m benchmarks.gpu [--seconds 150] [--device cpu --tiny]

Writes ``$OUT/gpu.md``, and ``$OUT/gpu.jsonl``, a line for each check as soon as it is done. The
checks run in processes of their own: an error of CUDA spoils a process, and the next one goes on
behind the check that met it. ``--device cpu --tiny`` checks the script itself, in a minute.
"""

import argparse
import contextlib
import dataclasses
import importlib.machinery
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import types
import warnings
from collections import Counter
from pathlib import Path

PARSER = argparse.ArgumentParser(description=__doc__.split("\n")[0])
PARSER.add_argument("--seconds", type=float, default=150)
PARSER.add_argument("--device", default="cuda")
PARSER.add_argument("--tiny", action="store_true")
PARSER.add_argument("--only", default="", help="checks whose name contains this")
PARSER.add_argument("--until", type=float, help="(inner) when to stop")
ARGS = PARSER.parse_args()
OUT = Path(os.environ.get("OUT", "build/gpu"))
LOG = OUT / "gpu.jsonl"
CUDA = ARGS.device.startswith("cuda")

if ARGS.until:
    with contextlib.suppress(ImportError):
        import platformdirs  # noqa: F401
    if "platformdirs" not in sys.modules:  # a bare machine has it not
        stub = types.ModuleType("platformdirs")
        stub.__spec__ = importlib.machinery.ModuleSpec("platformdirs", None)
        stub.user_cache_path = lambda name: Path("/tmp") / name
        sys.modules["platformdirs"] = stub
    import numpy as np
    import torch

    from hardtrain import ImageDataset, ParameterError, Run, RunStore, run_missing
    from hardtrain.data.images import resolve_device
    from hardtrain.networks import build_network
    from hardtrain.runs.train import build, environment
    from hardtrain.training import loop, randomness, step

    DEVICE = resolve_device(ARGS.device)
    if not CUDA:
        torch.set_num_threads(1)


def main() -> None:
    """Run the checks in processes, as long as there is time, and write the tables."""
    OUT.mkdir(parents=True, exist_ok=True)
    LOG.unlink(missing_ok=True)
    until = time.time() + ARGS.seconds - 5
    command = [sys.executable, "-m", "benchmarks.gpu", *sys.argv[1:], "--until", str(until)]
    for _ in range(6):
        if time.time() > until - 10:
            break
        process = subprocess.Popen(command)
        try:
            if process.wait(timeout=max(1, until + 2 - time.time())) == 0:
                break
        except subprocess.TimeoutExpired:
            process.kill()
    last = {row["check"]: row for row in map(json.loads, LOG.read_text().splitlines())}
    text = report(list(last.values()))
    (OUT / "gpu.md").write_text(text)
    print(text)


def child() -> int:
    """Do the checks that no process before has begun."""
    begun = set()
    if LOG.exists():
        begun = {json.loads(line)["check"] for line in LOG.read_text().splitlines()}
    for name, check in checks().items():
        if name in begun or ARGS.only not in name:
            continue
        if time.time() > ARGS.until - 3:
            write({"check": name, "ok": None, "found": "no time left"})
            continue
        write({"check": name, "ok": None, "found": "begun"})
        began = time.perf_counter()
        try:
            row = {"check": name, "ok": True} | check()
        except Exception as error:
            row = {"check": name, "ok": False, "found": f"{type(error).__name__}: {error}"[:300]}
        write(row | {"seconds": round(time.perf_counter() - began, 1)})
        if "CUDA error" in str(row.get("found")):
            return 3
        if CUDA:
            torch.cuda.empty_cache()
    return 0


def write(row: dict) -> None:
    with open(LOG, "a") as file:
        file.write(json.dumps(row) + "\n")


def report(rows: list[dict]) -> str:
    """Two tables: what is right, and how fast it is."""
    machine = next((row["machine"] for row in rows if "machine" in row), "")
    lines = [f"# On one GPU\n\n{machine}\n", "| check | right | found |", "|---|---|---|"]
    right = {True: "yes", False: "**no**", None: "not run"}
    for row in rows:
        if "ms" not in row:
            lines.append(f"| {row['check']} | {right[row['ok']]} | {row.get('found', '')} |")
    lines += ["", TIMES, ""]
    lines.append("| step | eager, ms | replayed, ms | ratio | s per 50,000 images, replayed |")
    lines.append("|---|---:|---:|---:|---:|")
    for row in rows:
        if "ms" in row:
            eager, replayed = row["ms"]
            per_epoch = replayed * 50 / row["batch_size"]
            lines.append(
                f"| {row['check']} | {eager:.2f} | {replayed:.2f} | {replayed / eager:.2f} | "
                f"{per_epoch:.2f} |"
            )
    return "\n".join(lines) + "\n"


TIMES = (
    "Medians of whole steps of `fit`, batches included; cnn2: 28x28 pixels, batches of 150; the "
    "others: 32x32 and 128."
)


def checks() -> dict:
    """All checks by name, the most important first."""
    small = "cnn_small_bn" if ARGS.tiny else "cnn5"
    found = {"machine": machine}
    for name, fields in METHODS.items():
        found[f"bits: {name}"] = lambda f=fields: bits(make(small, **f))
    found["float32 is float32"] = precision
    for name in ("cnn2", "cnn_small_bn", "resnet18"):
        for setting, fields in SETTINGS.items():
            found[f"{name}, {setting}"] = lambda n=name, f=fields: times(n, **f)
    for name in ("hard batches", "noise", "match by class", "joint match", "weighted"):
        found[f"cnn2, {name}"] = lambda f=METHODS[name]: times("cnn2", **f)
    half = METHODS["trimming"] | {"options": {"start": 0.5, "end": 0.5}}
    found["cnn2, trimming to a half"] = lambda: times("cnn2", **half)
    for name in ("plain", "trimming", "noise", "match by class", "drawn"):
        found[f"waits: {name}"] = lambda f=METHODS[name]: waits(make(small, **f))
    found["paused here, resumed on a CPU"] = resumed_elsewhere
    found["too large for the card"] = too_large
    for name in () if ARGS.tiny else ("resnet18", "densenet121", "mobilenetv3_small"):
        fields = {"precision": "bfloat16", "channels_last": True, "epochs": 3, "lr": 1e-3}
        found[f"bits: {name}, bf16"] = lambda n=name, f=fields: bits(make(n, **f), 32, 3)
    return found


METHODS = {
    "plain": {"momentum": 0.9, "nesterov": True, "schedule": "cosine"},
    "adam": {"optimizer": "adam", "lr": 1e-3, "warmup_epochs": 2},
    "adamw, crop, bf16": {
        "optimizer": "adamw", "lr": 1e-3, "augment": "crop+flip", "precision": "bfloat16",
        "channels_last": True,
    },
    "tf32": {"precision": "tf32"},
    "ghost batch-norm": {"ghost_batch_size": 8, "network": "cnn_small_bn"},
    "trimming": {"method": "trimming", "keep": ("sample_counts",)},
    "hard batches": {"method": "hard_batches", "keep": ("batch_log",)},
    "noise": {"method": "gradient_noise", "options": {"alpha": 1e-3}},
    "match by class": {"method": "distribution_matching", "balanced": True},
    "joint match": {"method": "distribution_matching", "options": {"by_class": False}},
    "the code's match": {"method": "distribution_matching", "options": {"reading": "code"}},
    "weighted": {"method": "active_bias", "options": {"variant": "WPV"}, "augment": "crop"},
    "drawn": {"method": "active_bias", "options": {"variant": "SPV"}},
    "unbiased": {"method": "active_bias", "options": {"variant": "ISD"}},
}  # fmt: skip
SETTINGS = {
    "float32": {},
    "tf32": {"precision": "tf32"},
    "bf16": {"precision": "bfloat16"},
    "tf32, channels_last": {"precision": "tf32", "channels_last": True},
    "bf16, channels_last": {"precision": "bfloat16", "channels_last": True},
}


def machine() -> dict:
    facts = environment(DEVICE)
    more = f", cuDNN {torch.backends.cudnn.version()}, {os.cpu_count()} CPU cores"
    return {"machine": f"{facts['device']}, torch {facts['torch']}, Python {facts['python']}{more}"}


def images(num: int, side: int, channels: int, device: object = None) -> "ImageDataset":
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(num) % 10)
    pixels = rng.integers(0, 128, (num, side, side, 3)) + 12 * labels[:, None, None, None]
    pixels = pixels.astype(np.uint8)
    data = ImageDataset.from_arrays(pixels if channels == 3 else pixels[..., 0], labels)
    return data.to(device or DEVICE)


def make(network: str, /, **fields: object) -> "Run":
    usual = {"epochs": 4 if ARGS.tiny else 6, "batch_size": 16, "lr": 0.01, "evaluate_every": 10**6}
    return Run("arrays", **{"network": network} | usual | fields)


def train(run, data, *, eager=False, checkpoint=None, save=None, progress=None):
    """The model and history of a training without evaluation."""
    made, loop.make_step = loop.make_step, step.Step if eager else loop.make_step
    seed = randomness.derived_seed(run.seed, "torch")
    try:
        with randomness.isolated_randomness(seed, DEVICE, precision=run.precision):
            model, method = build(run, data, data)
            history = loop.fit(
                run, model, method, lambda model: {},
                checkpoint=checkpoint, save_checkpoint=save, progress=progress,
            )  # fmt: skip
    finally:
        loop.make_step = made
    return model, history


def bits(run: "Run", side: int = 28, channels: int = 1) -> dict:
    """Eager, replayed, replayed again, and paused after half of the epochs: how much differs?"""
    data, saved = images(16 * 5 + 8, side, channels), []  # five batches of 16 and one of 8

    def save(state: dict) -> None:
        if state["epoch"] == run.epochs // 2:
            file = io.BytesIO()
            torch.save(state, file)
            saved.append(file.getvalue())

    eager, _ = train(run, data, eager=True)
    model, history = train(run, data, save=save)
    again, _ = train(run, data)
    state = torch.load(io.BytesIO(saved[0]), weights_only=True, map_location="cpu")
    resumed, _ = train(run, data, checkpoint=state)
    differ = {
        name: distance(model, other)
        for name, other in (("eager", eager), ("again", again), ("resumed", resumed))
    }
    finite = np.isfinite(history[-1]["train_loss"])
    shown = ", ".join(f"{k}: {v:.0e}" for k, v in differ.items() if v) or "the same bits"
    # a history of predictions adds what a batch holds twice in any order
    most = 1e-5 if run.method == "active_bias" else 0.0
    return {"ok": bool(finite and max(differ.values()) <= most), "found": shown}


def distance(a, b) -> float:
    """Largest difference of parameters and buffers, relative to the largest of its tensor."""
    worst = 0.0
    for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
        if not torch.equal(x, y):
            x, y = x.double(), y.double()
            worst = max(worst, ((x - y).abs().max() / x.abs().max().clamp(min=1e-30)).item())
    return worst


def precision() -> dict:
    """Relative error of ResNet-18's logits against float64 on the CPU."""
    torch.manual_seed(0)
    model = build_network("cnn_small_bn" if ARGS.tiny else "resnet18", 10, 3).eval()
    inputs = torch.randn(16, 3, 32, 32)
    exact, errors = model.double()(inputs.double()), {}
    model.float().to(DEVICE)
    for name in ("float32", "tf32"):
        with randomness.repeatable_kernels(name), torch.no_grad():
            logits = model(inputs.to(DEVICE)).cpu().double()
        errors[name] = ((logits - exact).abs().max() / exact.abs().max()).item()
    return {
        "ok": errors["float32"] < 1e-5 and (not CUDA or errors["tf32"] > 1e-4),
        "found": ", ".join(f"{name}: error {error:.0e}" for name, error in errors.items()),
    }


def resumed_elsewhere() -> dict:
    """A training with noise from this device's generator goes on, or starts over, on a CPU."""
    store = RunStore(tempfile.mkdtemp(), checkpoint_seconds=0)
    run = Run(
        "digits", "cnn_small", "gradient_noise", epochs=3, train_size=300, device=ARGS.device
    )  # fmt: skip
    fit = loop.fit

    def stopped(*args, save_checkpoint, **kwargs):
        def save(state: dict) -> None:
            save_checkpoint(state)
            raise KeyboardInterrupt

        return fit(*args, save_checkpoint=save, **kwargs)

    loop.fit = stopped
    with contextlib.suppress(KeyboardInterrupt):
        run_missing([run], store, use_committed=False)
    loop.fit = fit
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        again = dataclasses.replace(run, device="cpu")
        status = run_missing([again], store, use_committed=False)["status"][0]
    over = [str(w.message) for w in seen if "starts over" in str(w.message)]
    return {"ok": status == "finished" and len(over) == CUDA, "found": "".join(over)[-120:]}


def too_large() -> dict:
    """A run that does not fit into 2 GB is named."""
    if not CUDA:
        return {"ok": None, "found": "no GPU"}
    torch.cuda.set_per_process_memory_fraction(2e9 / torch.cuda.mem_get_info()[1])
    run = Run("digits", "resnet18", batch_size=1400, image_size=64, device=ARGS.device)
    try:
        run_missing([run], RunStore(tempfile.mkdtemp()), use_committed=False)
    except ParameterError as error:
        return {"found": str(error)[:100]}
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return {"ok": False, "found": "it was trained"}


def times(network: str, **fields: object) -> dict:
    """Milliseconds of a step, eager and replayed."""
    side, channels, batch_size, steps = {
        "cnn2": (28, 1, 150, 80), "cnn_small_bn": (32, 3, 128, 80), "resnet18": (32, 3, 128, 40),
    }[network]  # fmt: skip
    if ARGS.tiny:
        network, batch_size, steps = "cnn_small_bn", 8, 5
    data = images(batch_size * steps, side, channels)
    fields = fields | {"batch_size": batch_size, "epochs": 4, "lr": 1e-4, "keep": ()}
    run = make(network, **fields)
    found = []
    for eager in (True, False):
        ends = []

        def progress(_: int, ends: list = ends) -> None:
            if CUDA:
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

        train(run, data, eager=eager, progress=progress)
        of_epochs = [b - a for a, b in itertools.pairwise(ends)]
        found.append(1000 * statistics.median(of_epochs) / steps)
    return {"ms": found, "batch_size": batch_size}


def waits(run: "Run") -> dict:
    """Of trainings of 8 and of 24 steps an epoch: the difference is what a step waits for."""
    counts = []
    for steps in (8, 24):
        data, places = images(16 * steps, 28, 1), Counter()
        train(run, data)  # first uses: tables are moved, constants made
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if CUDA:
                torch.cuda.set_sync_debug_mode("warn")
            try:
                train(run, data, save=lambda state: None)
            finally:
                if CUDA:
                    torch.cuda.set_sync_debug_mode("default")
        for warning in caught:
            if "synchronizing" in str(warning.message):
                places[f"{Path(warning.filename).name}:{warning.lineno}"] += 1
        counts.append(places)
    more = counts[1] - counts[0]
    per_step = sum(more.values()) / (16 * run.epochs)
    return {"ok": per_step == 0, "found": f"{per_step:.2f} a step {dict(more.most_common(3))}"}


if __name__ == "__main__":
    if ARGS.until:
        sys.exit(child())
    main()
