"""Papers about training on hard samples: the strategies, one training loop, and its records."""

__version__ = "0.1.0"

from hardtrain.data.images import ImageDataset, load_dataset
from hardtrain.errors import (
    DataError,
    DivergedError,
    HardtrainError,
    ParameterError,
    RecordError,
    StoreError,
)
from hardtrain.networks import build_network
from hardtrain.runs.results import load_history, load_timings, write_results
from hardtrain.runs.run import Run
from hardtrain.runs.store import RunStore
from hardtrain.runs.sweep import load_artefact, run_missing
from hardtrain.strategies.active_bias import (
    PredictionHistory,
    WeightedBatchSampler,
    sample_weights,
    sampling_probabilities,
)
from hardtrain.strategies.distribution_matching import class_conditional_mmd, mmd
from hardtrain.strategies.gradient_noise import GradientNoise
from hardtrain.strategies.hard_batches import HardBatchSampler
from hardtrain.strategies.subset_selection import select_subset
from hardtrain.strategies.trimmed_backward import trimmed_backward
from hardtrain.strategies.trimming import TrimmedLoss, trim
from hardtrain.training.evaluation import evaluate
from hardtrain.training.loop import fit

__all__ = [
    "DataError",
    "DivergedError",
    "GradientNoise",
    "HardBatchSampler",
    "HardtrainError",
    "ImageDataset",
    "ParameterError",
    "PredictionHistory",
    "RecordError",
    "Run",
    "RunStore",
    "StoreError",
    "TrimmedLoss",
    "WeightedBatchSampler",
    "build_network",
    "class_conditional_mmd",
    "evaluate",
    "fit",
    "load_artefact",
    "load_dataset",
    "load_history",
    "load_timings",
    "mmd",
    "run_missing",
    "sample_weights",
    "sampling_probabilities",
    "select_subset",
    "trim",
    "trimmed_backward",
    "write_results",
]
