"""The progress bar of a sweep."""

from types import SimpleNamespace

from hardtrain import Run
from hardtrain.runs.progress import Progress


def test_progress_counts_each_finished_epoch_once():
    runs = [Run("digits", "mlp", epochs=3, seed=seed) for seed in (0, 1)]
    moved = []
    with Progress(runs) as progress:
        bar, progress._bar = progress._bar, SimpleNamespace(update=moved.append)
        for epochs in (1, 2, 3):
            progress(runs[0], epochs)
        progress(runs[1], 2)  # a resumed run
        progress._bar = bar
    assert moved == [1, 1, 1, 2]
