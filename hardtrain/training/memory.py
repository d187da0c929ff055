"""What trainings note down beside their history, for the artefacts that figures need."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from hardtrain.data.batches import Batches
from hardtrain.data.images import ImageDataset
from hardtrain.errors import ParameterError
from hardtrain.strategies.active_bias import PredictionHistory
from hardtrain.strategies.distribution_matching import class_conditional_mmd, mmd
from hardtrain.training.evaluation import buffers_restored, in_mode
from hardtrain.training.pieces import class_losses, precision_context, train_transform
from hardtrain.training.randomness import generator

NUM_PHASES = 4  # what is noted down by phase is noted for each quarter of a training
NUM_LOGGED_PAIRS = 4  # of mini-batches whose distance distribution matching can log


class SumsByPhase:
    """What each sample got, summed in each quarter of a training: ``(NUM_PHASES, N)``.

    ``name`` is the array's in the artefact; ``dtype`` int32 for counts, float32 for weights.
    """

    def __init__(self, name: str, run: Any, data: ImageDataset, dtype: torch.dtype):
        self.name, self.num_epochs, self.phase = name, run.epochs, 0
        self.sums = torch.zeros(NUM_PHASES, len(data), dtype=dtype, device=data.labels.device)

    def start_epoch(self, epoch: int) -> None:
        self.phase = NUM_PHASES * epoch // self.num_epochs

    def add(self, indices: Tensor, amounts: Tensor) -> None:
        """Add ``amounts (B,)`` to the samples ``indices (B,)``; one that occurs twice gets both."""
        self.sums[self.phase].index_add_(0, indices, amounts.to(self.sums.dtype))

    def arrays(self) -> dict[str, Tensor]:
        return {self.name: self.sums.cpu()}

    def state_dict(self) -> dict[str, Tensor]:
        return {"sums": self.sums}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.sums.copy_(state["sums"])


class SampleTally:
    """How many samples went through the backward pass, and if the run keeps ``sample_counts``, how
    often each of them did, by quarter."""

    def __init__(self, run: Any, data: ImageDataset):
        self.total = 0
        self.counts = SumsByPhase("counts", run, data, torch.int32)
        self.keeps = "sample_counts" in run.keep
        self.start_epoch = self.counts.start_epoch
        self.artefacts = {"sample_counts": self.counts.arrays}

    def add(self, indices: Tensor, losses: Tensor) -> None:
        self.total += len(indices)
        if self.keeps:
            self.counts.add(indices, torch.ones_like(indices))

    def log(self) -> dict[str, float]:
        return {"samples": float(self.total)}

    def state_dict(self) -> dict:
        return {"total": self.total} | self.counts.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.total = state["total"]
        self.counts.load_state_dict(state)


class Snapshots:
    """Copies of a model's weights on the CPU after given steps of its training.

    ``note`` is called after each step. ``arrays``: ``steps (C,)``, and by its name each weight and
    buffer ``(C, ...)``, so that those of one C are a ``state_dict``.
    """

    def __init__(self, model: nn.Module, steps: Sequence[int]):
        self.model, self.steps = model, list(steps)
        self.num_steps = 0
        self.taken: list[dict[str, Tensor]] = []

    @classmethod
    def of_last_half(cls, model: nn.Module, num_steps: int, number: int) -> "Snapshots":
        """``number`` of them, evenly spread over the last half of the training, one at its end.

        Raises:
            ParameterError: fewer steps than that.
        """
        half = num_steps - num_steps // 2
        if number > half:
            raise ParameterError(
                f"checkpoints:{number} wants more than the {half} steps of the last half"
            )
        return cls(model, [num_steps // 2 + half * (i + 1) // number for i in range(number)])

    def note(self) -> None:
        self.num_steps += 1
        if self.num_steps in self.steps:
            weights = self.model.state_dict().items()
            self.taken.append({k: v.to("cpu", copy=True) for k, v in weights})

    def arrays(self) -> dict[str, Tensor]:
        weights = {k: torch.stack([taken[k] for taken in self.taken]) for k in self.taken[0]}
        return {"steps": torch.tensor(self.steps)} | weights

    def state_dict(self) -> dict:
        return {"num_steps": self.num_steps, "taken": self.taken}

    def load_state_dict(self, state: dict) -> None:
        self.num_steps, self.taken = state["num_steps"], list(state["taken"])


class BatchLog:
    """Which batch each update took, and at each epoch's start the stored loss of every batch
    beside the loss that the model would have on it now, in training mode as the stored one."""

    def __init__(self, run: Any, model: nn.Module, batches: Batches):
        self.model, self.data, self.sampler = model, batches.dataset, batches.batch_sampler
        self.transform, self.precision = batches.transform.without_augmentation(), run.precision
        self.ids: list[int] = []  # of the rounds begun, so the last ones may not be taken
        self.num_rounds = self.num_updates = 0
        self.stored: list[Tensor] = []
        self.recomputed: list[Tensor] = []

    def note_update(self) -> None:
        if self.num_rounds < self.sampler.round:
            self.ids += self.sampler.chosen
            self.num_rounds += 1
        self.num_updates += 1

    def compare(self, epoch: int) -> None:
        if epoch == 0:  # nothing is stored yet
            return
        autocast = precision_context(self.precision, self.data.images.device)
        with buffers_restored(self.model), in_mode(self.model, training=True), autocast:
            losses = [self._loss_now(batch) for batch in self._batches()]
        self.stored.append(self.sampler.losses.clone().cpu())
        self.recomputed.append(torch.stack(losses).cpu())

    def _batches(self) -> Sequence[Tensor]:
        """The indices of every batch, which reach the device in one copy."""
        batches = self.sampler.batches
        indices = torch.tensor(list(chain.from_iterable(batches)), device=self.data.images.device)
        return indices.split([len(batch) for batch in batches])

    def _loss_now(self, indices: Tensor) -> Tensor:
        inputs = self.transform(self.data.images.index_select(0, indices))
        return class_losses(self.model(inputs), self.data.labels[indices]).mean()

    def arrays(self) -> dict[str, Tensor]:
        """``ids (E N,)`` of the batches by update; ``stored``, ``recomputed (E - 1, N)``, nats."""
        empty = torch.zeros(0, self.sampler.num_batches)
        return {
            "ids": torch.tensor(self.ids[: self.num_updates]),
            "stored": torch.stack(self.stored) if self.stored else empty,
            "recomputed": torch.stack(self.recomputed) if self.recomputed else empty,
        }

    def state_dict(self) -> dict:
        names = ("ids", "num_rounds", "num_updates", "stored", "recomputed")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict) -> None:
        for name, value in state.items():
            setattr(self, name, list(value) if isinstance(value, list) else value)


class SmoothedScores:
    """A history of predictions, and the scores that follow from it, with the constant that is
    added to them: ``smoothing``, ``relative`` to the mean score when it is first asked for.

    ``score``: a function of the history; ``None`` where `now` is never called.
    """

    def __init__(self, data: ImageDataset, score: Any, smoothing: float, *, relative: bool = True):
        self.history = PredictionHistory(len(data), device=data.labels.device)
        self.score, self.smoothing, self.relative = score, smoothing, relative
        self.epsilon: Tensor | None = None

    def now(self) -> tuple[Tensor, Tensor]:
        """Scores ``(N,)``, of samples never seen the mean of the others, and the constant; if all
        are 0, the scores are 1, so that nothing divides by 0."""
        scores, seen = self.score(self.history), self.history.count > 0
        mean = scores.sum() / seen.sum()  # those never seen have score 0
        if self.epsilon is None:
            self.epsilon = self.smoothing * (mean if self.relative else torch.ones_like(mean))
        return scores.where(seen, mean).masked_fill(mean + self.epsilon == 0, 1), self.epsilon

    def arrays(self) -> dict[str, Tensor]:
        """``count``, ``mean``, ``variance (N,)`` of the true class's probability."""
        names = ("count", "mean", "variance")
        return {name: getattr(self.history, name).cpu() for name in names}

    def state_dict(self) -> dict:
        return {"history": self.history.state_dict(), "epsilon": self.epsilon}

    def load_state_dict(self, state: dict) -> None:
        self.history.load_state_dict(state["history"])
        self.epsilon = state["epsilon"]
        if self.epsilon is not None:
            self.epsilon = self.epsilon.to(self.history.count.device)


class DistanceLog:
    """MMD between ``model.features`` of fixed pairs of mini-batches, in evaluation mode."""

    def __init__(self, run: Any, data: ImageDataset, model: Any):
        self.data, self.model, self.precision = data, model, run.precision
        self.transform = train_transform(run, data).without_augmentation()
        size = min(run.batch_size, len(data) // 2)
        pairs = generator(run.seed, "logged pairs")
        self.pairs = [
            torch.randperm(len(data), generator=pairs)[: 2 * size].to(data.labels.device)
            for _ in range(NUM_LOGGED_PAIRS)
        ]

    def __call__(self) -> dict[str, float]:
        autocast = precision_context(self.precision, self.data.images.device)
        with in_mode(self.model, training=False), autocast:
            distances = torch.stack([self._distances(indices) for indices in self.pairs])
        joint, by_class = distances.mean(dim=0).tolist()
        return {"mmd": joint, "class_mmd": by_class}

    def _distances(self, indices: Tensor) -> Tensor:
        features = self.model.features(self.transform(self.data.images[indices]))
        x, y = features.chunk(2)
        x_labels, y_labels = self.data.labels[indices].chunk(2)
        by_class = class_conditional_mmd(x, x_labels, y, y_labels, self.data.num_classes)
        return torch.stack([mmd(x, y), by_class])
