"""A study of one curve without a training: trials, results and history by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from hardtrain.papers.data_parallelism.tuning import Curve, Tuned

HEAVY = Curve("digits", "mlp", "momentum")
NAN, INF = math.nan, math.inf


@pytest.fixture
def trials_of():
    """A function that makes the trials of a curve from steps by (batch size, seed)."""

    def make(steps, curve=HEAVY, lr=None, **columns):
        rows = [
            {"curve": curve, "batch_size": size, "seed": seed, "round": 0, "number": number,
             "key": f"{size}-{seed}-{number}", "lr": (lr or {}).get(size, 0.1), "momentum": 0.5,
             "effective_lr": 2 * (lr or {}).get(size, 0.1), "steps": float(value),
             "counted": True, "inside": True,
             "outcome": "reached" if value < INF else "not reached" if value == INF
             else "infeasible"} | columns
            for (size, seed), values in steps.items()
            for number, value in enumerate(values)
        ]  # fmt: skip
        return pd.DataFrame(rows)

    return make


@pytest.fixture
def tuned(trials_of):
    """Heavy ball at three batch sizes, two searches of two completed trials; their evaluations
    after 40, 80 and 120 steps, 1024 images an epoch."""
    steps = {(4, 0): [120, 80], (4, 1): [NAN, 80, 120], (16, 0): [40, INF], (16, 1): [80, 80],
             (64, 0): [INF, INF], (64, 1): [INF, INF]}  # fmt: skip
    trials = trials_of(steps, lr={4: 0.1, 16: 0.3, 64: 0.5})
    history = [
        {"key": row.key, "step": step, "epoch": step * row.batch_size / 1024,
         "validation_error": 0.15 if step >= row.steps else 0.6}
        for row in trials.itertuples() for step in (40, 80, 120)
        if row.outcome != "infeasible" or step < 80
    ]  # fmt: skip
    results = trials[["key"]].assign(test_error=np.linspace(0.1, 0.2, len(trials)))
    return Tuned(trials, results, pd.DataFrame(history))
