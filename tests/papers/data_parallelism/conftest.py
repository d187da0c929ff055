"""A study of one curve without a training: searches, runs, results and history by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from hardtrain.papers.data_parallelism.search import Search
from hardtrain.papers.data_parallelism.tuning import Curve, Protocol, Tuned


@pytest.fixture(scope="session")
def tuned():
    """Heavy ball at three batch sizes, two trials each: steps 120 and 80; 40 and not reached;
    not reached and diverged."""
    curve = Curve("digits", "mlp", "momentum")
    protocol = Protocol({"digits": 1024}, 1, 1, 1, seeds=[0], base={})
    points = [
        {"lr": 0.1, "final_fraction": 0.5, "one_minus_momentum": 0.25},
        {"lr": 0.3, "final_fraction": 1.0, "one_minus_momentum": 1.0},
    ]
    searches, runs, results, history = {}, {}, [], []
    for size, steps in {4: (120, 80), 16: (40, math.inf), 64: (math.inf, math.inf)}.items():
        cell = (curve, size)
        runs[cell] = [protocol.run(*cell, point, i) for i, point in enumerate(points)]
        trials = pd.DataFrame(points).assign(round=0, steps=np.array(steps, dtype=float))
        best = None if size == 64 else points[int(np.argmin(steps))]
        searches[cell] = Search(trials, best, min(steps), size == 4, {})
        for run, first in zip(runs[cell], steps, strict=True):
            lost = size == 64 and run.lr == 0.3
            row = {"key": run.key, "batch_size": size, "momentum": run.momentum}
            row |= {"status": "diverged" if lost else "finished"}
            results.append(row | {"diverged_epoch": 0.0, "diverged_step": 7.0})
            history += [
                {
                    "key": run.key,
                    "epoch": step * size / 1024,
                    "step": step,
                    "test_error": 0.15 if step >= first else 0.6,
                }
                for step in (40, 80, 120)
                if not lost
            ]
    return Tuned(searches, runs, pd.DataFrame(results), pd.DataFrame(history))
