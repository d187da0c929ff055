"""What a row of the table of speeds holds, and how it is shown."""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np


def ratios_of(times: Mapping[Hashable, Sequence[float]], a: Hashable, b: Hashable) -> list[float]:
    """Of each round: time of ``a`` / time of ``b``, below 1 where ``a`` is faster."""
    return [x / y for x, y in zip(times[a], times[b], strict=True)]


def shown(what: str, measured: object, target: str, device: str = "cpu") -> dict:
    """A row: of ratios the median and the quartiles; counts are whole; a text says why there is
    nothing."""
    quartiles = ""
    if isinstance(measured, list):
        low, middle, high = np.quantile(measured, [0.25, 0.5, 0.75])
        quartiles = f"{low:.2f} to {high:.2f}" if len(measured) > 1 else ""
        measured = float(middle)
    value = f"{measured:.2f}" if isinstance(measured, float) else str(measured)
    row = {"what": what, "device": device, "measured": value}
    return row | {"half of the rounds": quartiles, "target": target}
