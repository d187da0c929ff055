"""What the process does with memory that a training step frees."""

import ctypes
import os
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_")


def keep_freed_memory() -> bool:
    """Have the process keep what it frees for its next use, as PyTorch does on a GPU.

    By default glibc hands large freed blocks back to the system, and a step that needs much memory
    pays for its pages anew: up to a fifth of a step with two mini-batches, next to nothing of a
    plain one. The price is that the process stays at its peak of memory. For the rest of the
    process; no number changes.

    Returns:
        Whether it was done: not under another C library, nor where the environment says what to
        do, in one of ``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_MAX_``, ``MALLOC_MMAP_THRESHOLD_``.

    Example:
        >>> keep_freed_memory() in (True, False)
        True
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _VARIABLES):
        return False
    libc = ctypes.CDLL(None)
    never_shrinks = libc.mallopt(_M_TRIM_THRESHOLD, -1)
    nothing_outside_the_heap = libc.mallopt(_M_MMAP_MAX, 0)
    return bool(never_shrinks and nothing_outside_the_heap)
