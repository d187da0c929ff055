"""Papers about training on hard samples: the strategies, one training loop, and its records.

Strategies for anyone's own loop (``help`` of each has an example); they need torch alone:

- trim, TrimmedLoss, trimmed_backward: only the hardest part of each mini-batch counts.
- HardBatchSampler: after one full pass, the mini-batches of highest loss only.
- GradientNoise: Gaussian noise on the gradient of a large mini-batch, smaller from step to step.
- mmd, class_conditional_mmd: a term of the loss, to give two mini-batches' features one
  distribution.
- PredictionHistory, prediction_deviation, threshold_closeness, difficulty, easiness,
  sample_weights, sampling_probabilities, WeightedBatchSampler: active bias, which emphasises
  samples whose prediction is uncertain.
- predictive_entropy, mutual_information, variation_ratio, error_count, select_subset: the part of
  a data set on which an ensemble disagrees.
- PruningBatchSampler: leaves out some samples of low loss, and counts others in their place.
- select_reducible: of a large batch, what is still to be learnt, and can be.
- SelectiveBackprop: the higher a sample's loss ranks, the more probably it counts.
- RankBatchSampler: each rank's part of every batch of these samplers.

The others (``Run``, ``run_missing``, ``fit``, ``load_dataset``, tables) need what the extra
``notebooks`` brings: ``pip install 'hardtrain[notebooks]'``; without it, ``dir`` leaves them out.
"""

# Which name lives where, __init__.pyi says, to type checkers and to this module, which imports a
# name's home when the name is first used.

import ast
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

_CONTENTS = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
_HOMES = {
    alias.name: line.module
    for line in _CONTENTS.body
    if isinstance(line, ast.ImportFrom)
    for alias in line.names
}
_WITH_TORCH_ALONE = ("hardtrain.strategies.", "hardtrain.errors")
_OTHERS_NEED = "filelock numpy pandas PIL platformdirs psutil scipy tqdm"
_COMPLETE = all(map(find_spec, _OTHERS_NEED.split()))
__all__ = sorted(
    name
    for name, home in _HOMES.items()
    if name != "__version__" and (_COMPLETE or home.startswith(_WITH_TORCH_ALONE))
)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        close = get_close_matches(name, _HOMES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise AttributeError(f"module 'hardtrain' has no attribute {name!r}{hint}", name=name)
    try:
        value = getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        # no AttributeError, whose text `from hardtrain import NAME` would not show
        raise ModuleNotFoundError(
            f"hardtrain.{name} needs {error.name}: pip install 'hardtrain[notebooks]'",
            name=error.name,
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
