"""Where a training's random numbers come from: its seed, and nothing that the caller shares."""

import contextlib
import hashlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def derived_seed(seed: int, purpose: str) -> int:
    """A 63-bit seed from a run's seed and a purpose.

    Example:
        >>> derived_seed(0, "order") == derived_seed(0, "order") != derived_seed(0, "noise")
        True
    """
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator for one purpose of one run; different purposes are independent."""
    return torch.Generator().manual_seed(derived_seed(seed, purpose))


_ONE_THREAD = threading.RLock()


@contextlib.contextmanager
def isolated_randomness(
    seed: int, device: torch.device, *, precision: str = "float32"
) -> Iterator[None]:
    """Seed torch's global generators for one run, on whose device all is done, in
    `repeatable_kernels`, and leave them as they were found. Threads share those, so that one comes
    after the other."""
    devices = [device] if device.type == "cuda" else []
    current = torch.cuda.device(device) if devices else contextlib.nullcontext()
    forked = torch.random.fork_rng(devices=devices)
    with _ONE_THREAD, current, forked, repeatable_kernels(precision):
        # not torch.manual_seed, which would seed all GPUs
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed(seed)
        yield


@contextlib.contextmanager
def repeatable_kernels(precision: str = "float32") -> Iterator[None]:
    """Ask cuDNN for the same kernels every time, allow TensorFloat32 for the precision ``"tf32"``
    only, and leave torch's settings as they were found."""
    settings = _settings(precision)
    found = [getattr(place, name) for place, name, _ in settings]
    older: list[tuple[Any, bool]] = []  # flags that newer torch compares with these
    places: list[Any] = [torch.backends.cudnn, torch.backends.cuda.matmul]
    for place in places:
        with contextlib.suppress(RuntimeError):  # they differ already
            older.append((place, place.allow_tf32))
    try:
        for place, _ in older:
            place.allow_tf32 = precision == "tf32"
        for place, name, value in settings:
            setattr(place, name, value)
        yield
    finally:
        for place, value in older:
            place.allow_tf32 = value
        for (place, name, _), value in zip(settings, found, strict=True):
            setattr(place, name, value)


def _settings(precision: str) -> list[tuple[Any, str, Any]]:
    """Attributes of torch's backends, and their values while a run is trained."""
    cudnn: Any = torch.backends.cudnn
    mkldnn: Any = torch.backends.mkldnn
    matmul = torch.backends.cuda.matmul
    settings: list[tuple[Any, str, Any]] = [(cudnn, "enabled", True), (cudnn, "benchmark", False)]
    settings += [(cudnn, "deterministic", True)]
    tf32 = precision == "tf32"
    if not hasattr(mkldnn, "matmul"):  # before torch 2.9
        return settings
    on_gpu, on_cpu = (cudnn.conv, cudnn.rnn, matmul), (mkldnn.conv, mkldnn.rnn, mkldnn.matmul)
    settings += [(place, "fp32_precision", "tf32" if tf32 else "ieee") for place in on_gpu]
    return settings + [(place, "fp32_precision", "ieee") for place in on_cpu]


def global_state(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's global generators, of the CPU and of ``device``."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_global_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Put back what `global_state` gave on this kind of device.

    Raises:
        ValueError: it gave that on another, whose generators draw other numbers.
    """
    if ("cuda" in state) != (device.type == "cuda"):
        saved = "a CUDA device" if "cuda" in state else "the CPU"
        raise ValueError(f"it was saved on {saved}, and draws other numbers on {device}")
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
