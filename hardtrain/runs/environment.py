"""Where a run was trained: what its last bits depend on besides its seed."""

import ctypes
import functools
import os
import platform
from collections.abc import Mapping
from importlib import metadata

import numpy as np
import torch

from hardtrain._version import __version__


def merged(before: Mapping[str, str | int], now: Mapping[str, str | int]) -> dict[str, str | int]:
    """The environments of a run that was resumed: where they differ, all that took part.

    Example:
        >>> merged({"threads": 1, "torch": "2.6"}, {"threads": 2, "torch": "2.6"})
        {'threads': '1, 2', 'torch': '2.6'}
    """
    both = dict(now)
    for name, value in now.items():
        parts = str(before.get(name, value)).split(", ")
        if str(value) not in parts:
            both[name] = ", ".join([*parts, str(value)])
        elif name in before:
            both[name] = before[name]
    return both


@functools.cache
def keep_freed_memory() -> None:
    """Let the CPU's allocator keep what is freed, for the rest of the process, as CUDA's does.

    By default glibc hands large blocks back to the system after each step and pays for their pages
    anew in the next. ``$MALLOC_...`` of the user's own stand.
    """
    if platform.libc_ver()[0] == "glibc" and not any(n.startswith("MALLOC_") for n in os.environ):
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no blocks outside the heap
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: the heap never shrinks


def environment(device: torch.device) -> dict[str, str | int]:
    """What a run's last bits depend on besides its seed."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "torchvision": _version_of("torchvision"),
        "timm": _version_of("timm"),
        "python": platform.python_version(),
        "hardtrain": __version__,
    }


@functools.lru_cache
def _version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"
