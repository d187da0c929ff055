"""A part of a training set as a short text, so that a run can say what it was trained on."""

import base64
import binascii
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hardtrain import checks
from hardtrain.errors import ParameterError
from hardtrain.files import sha256


def pack(indices: ArrayLike, num_samples: int) -> str:
    """Indices ``(n,)`` of ``num_samples`` samples as text: a bit a sample, in base 64. Their order
    is not kept.

    Raises:
        ParameterError: no index, one that is out of range, or one that occurs twice.

    Example:
        >>> pack([0, 3], 10)
        'kAA='
        >>> unpack("kAA=", 10).tolist()
        [0, 3]
    """
    indices = np.asarray(indices)
    if indices.ndim != 1 or len(indices) == 0 or indices.dtype.kind not in "iu":
        raise ParameterError(
            f"indices are {indices.dtype} {indices.shape}; wanted integers (n,), n >= 1"
        )
    if indices.min() < 0 or indices.max() >= num_samples:
        raise ParameterError(f"indices reach {indices.min()}..{indices.max()}, not within "
                             f"0..{num_samples - 1}")  # fmt: skip
    chosen = np.zeros(num_samples, bool)
    chosen[indices] = True
    if chosen.sum() < len(indices):
        raise ParameterError("indices hold a sample twice")
    return base64.b64encode(np.packbits(chosen).tobytes()).decode()


def unpack(subset: str, num_samples: int) -> np.ndarray:
    """The indices, ascending, that `pack` was given.

    Raises:
        ParameterError: the text is of another number of samples, or none of `pack`.
    """
    bits = np.unpackbits(np.frombuffer(_bytes(subset), np.uint8))
    if len(bits) != -(-num_samples // 8) * 8 or bits[num_samples:].any() or not bits.any():
        raise ParameterError(f"subset is not one of {num_samples} training samples")
    return np.flatnonzero(bits)


def name(subset: str) -> str:
    """A short name of a subset, for tables: "s" and a part of its hash; empty for all samples.

    Example:
        >>> name("kAA="), name("")
        ('s558de9808c8', '')
    """
    # the letter, because a table would read 12 digits or 1e23 as a number
    return f"s{sha256(subset.encode())[:11]}" if subset else ""


def check(name: str, value: Any) -> str:
    """A text of `pack`, or the empty one."""
    if checks.text(name, value) and not any(_bytes(value)):
        raise ParameterError(f"{name} = {value[:20]!r} has no sample")
    return value


def _bytes(subset: str) -> bytes:
    try:
        return base64.b64decode(subset, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ParameterError(f"subset = {subset[:20]!r} is none that subsets.pack wrote") from error
