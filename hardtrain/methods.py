"""One short function per method: puts a strategy into the loop's sockets.

A method is ``name(run, data, model, **options) -> Method``; ``Run.method`` is the function's name
and ``Run.options`` its keyword arguments. ``VERSION`` is part of a run's key: raise it when a
change here or in the strategy changes a run's numbers.
"""

import hashlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hardtrain import checks
from hardtrain.data import Batch, Batches, ImageDataset, Transform, UniformBatchSampler
from hardtrain.errors import ParameterError
from hardtrain.strategies.gradient_noise import GradientNoise
from hardtrain.strategies.hard_batches import HardBatchSampler
from hardtrain.strategies.trimming import TrimmedLoss, num_kept, trim
from hardtrain.training import Method, precision_context

NUM_PHASES = 4  # sample counts are kept for each quarter of a training


def version(number: int) -> Callable:
    """Mark a function as a method, with the version of its numbers."""

    def mark(function: Callable) -> Callable:
        function.VERSION = number
        return function

    return mark


@version(1)
def plain(run, data: ImageDataset, model) -> Method:
    """Ordinary training: the mean cross-entropy of uniformly drawn batches."""
    batches, state = uniform_batches(run, data)
    return Method(batches, mean_objective, state=state)


@version(1)
def trimming(run, data: ImageDataset, model, *, start: float = 1.0, end: float = 0.2) -> Method:
    """Mini-batch trimming (Fassold): the mean over the hardest part of each batch, a part that
    falls linearly by epoch from ``start`` to ``end``."""
    batches, state = uniform_batches(run, data)
    trimmed = TrimmedLoss(start=start, end=end, num_epochs=run.epochs)
    kept = SampleCounts(len(data), data.labels.device)
    phase = 0

    def start_epoch(epoch):
        nonlocal phase
        phase = NUM_PHASES * epoch // run.epochs
        trimmed.set_epoch(epoch)

    def objective(model, batch):
        losses = sample_losses(model, batch)
        return losses, trim(losses, trimmed.keep)

    def observe(indices, losses):
        kept.add(phase, indices[losses.topk(num_kept(trimmed.keep, len(losses))).indices])

    counting = "sample_counts" in run.keep
    return Method(
        batches,
        objective,
        observe=observe if counting else None,
        start_epoch=start_epoch,
        log=lambda: {"keep": trimmed.keep},
        state=state | {"kept": kept},
        artefacts={"sample_counts": kept.arrays},
    )


@version(1)
def hard_batches(
    run,
    data: ImageDataset,
    model,
    *,
    delta: float = 0.5,
    order: str = "loss",
    shuffled: bool = True,
) -> Method:
    """Hard mini-batches (Sahayam et al.): after a first pass over all of them, each round trains
    on the ``delta`` part of the fixed mini-batches whose stored loss is highest.

    ``shuffled``: one random permutation before the mini-batches are cut, else file order. With
    ``delta=1`` and ``order="index"`` it is plain training on fixed mini-batches.
    """
    drawn, augmentation = generator(run.seed, "order"), generator(run.seed, "augmentation")
    sampler = HardBatchSampler(
        len(data),
        run.batch_size,
        delta,
        order=order,
        drop_last=run.drop_last,
        generator=drawn if shuffled else None,
    )
    transform = train_transform(run, data)
    batches = Batches(
        data, transform, sampler, generator=augmentation, channels_last=run.channels_last
    )
    log = BatchLog(sampler, model, data, transform.without_augmentation(), run.precision)
    logging = "batch_log" in run.keep

    def observe(indices, losses):
        if logging:
            log.note_update()
        sampler.update(indices, losses.mean())

    return Method(
        batches,
        mean_objective,
        observe=observe,
        start_epoch=log.compare if logging else None,
        state={"sampler": sampler, "augmentation": augmentation, "log": log},
        artefacts={"batch_log": log.arrays},
    )


@version(1)
def gradient_noise(
    run, data: ImageDataset, model, *, alpha: float = 1e-5, gamma: float = 0.55
) -> Method:
    """Gaussian gradient noise (Jaiswal, Taura): plain training with noise of the variance
    ``alpha / (1 + t) ** gamma`` added to every gradient before step t."""
    batches, state = uniform_batches(run, data)
    device = data.images.device
    drawn = torch.Generator(device).manual_seed(derived_seed(run.seed, "noise"))
    noise = Attached(lambda optimizer: GradientNoise(
        optimizer, alpha=alpha, gamma=gamma, generator=drawn
    ))  # fmt: skip
    return Method(batches, mean_objective, hooks=[noise.attach], state=state | {"noise": noise})


# --- pieces that methods share ------------------------------------------------------------------


def sample_losses(model, batch) -> Tensor:
    """Cross-entropy of each sample of a batch ``(B,)``, in float32 under autocast too."""
    return cross_entropy(model(batch.inputs).float(), batch.targets, reduction="none")


def mean_objective(model, batch) -> tuple[Tensor, Tensor]:
    """The losses of a batch and their mean: what plain training minimises."""
    losses = sample_losses(model, batch)
    return losses, losses.mean()


def uniform_batches(run, data: ImageDataset) -> tuple[Batches, dict]:
    """Batches drawn without replacement, and the generators that a checkpoint must hold."""
    order, augmentation = generator(run.seed, "order"), generator(run.seed, "augmentation")
    sampler = UniformBatchSampler(
        len(data), run.batch_size, drop_last=run.drop_last, generator=order
    )
    batches = Batches(
        data,
        train_transform(run, data),
        sampler,
        generator=augmentation,
        channels_last=run.channels_last,
    )
    return batches, {"order": order, "augmentation": augmentation}


def train_transform(run, data: ImageDataset) -> Transform:
    """The run's resize, augmentation and normalisation, from the training images."""
    crop, flip = "crop" in run.augment, "flip" in run.augment
    return Transform.of(data, size=run.image_size, crop_padding=4 if crop else 0, flip=flip)


def generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator for one purpose of one run; different purposes are independent."""
    return torch.Generator().manual_seed(derived_seed(seed, purpose))


def derived_seed(seed: int, purpose: str) -> int:
    """A 63-bit seed from a run's seed and a purpose.

    Example:
        >>> derived_seed(0, "order") == derived_seed(0, "order") != derived_seed(0, "noise")
        True
    """
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class Attached:
    """A hook that exists only once the optimiser does, as a part of a method's state."""

    def __init__(self, make: Callable):
        self.make, self.hook = make, None

    def attach(self, optimizer: torch.optim.Optimizer):
        self.hook = self.make(optimizer)
        return self.hook

    def state_dict(self) -> dict:
        return self.hook.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.hook.load_state_dict(state)


class SampleCounts:
    """How often each sample counted, by phase of the training: ``counts (P, N)``."""

    def __init__(self, num_samples: int, device: torch.device):
        self.counts = torch.zeros(NUM_PHASES, num_samples, dtype=torch.int32, device=device)

    def add(self, phase: int, indices: Tensor) -> None:
        self.counts[phase].index_add_(0, indices, torch.ones_like(indices, dtype=torch.int32))

    def arrays(self) -> dict[str, Tensor]:
        return {"counts": self.counts.cpu()}

    def state_dict(self) -> dict[str, Tensor]:
        return {"counts": self.counts}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.counts.copy_(state["counts"])


class BatchLog:
    """Which batch each update took, and at each epoch's start the stored loss of every batch
    beside the loss that the model would have on it now, in training mode as the stored one."""

    def __init__(
        self,
        sampler: HardBatchSampler,
        model,
        data: ImageDataset,
        transform: Transform,
        precision: str,
    ):
        self.sampler, self.model, self.data, self.transform = sampler, model, data, transform
        self.autocast = precision_context(precision, data.images.device)
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
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        with torch.no_grad(), self.autocast():
            losses = [self._loss_now(batch) for batch in self.sampler.batches]
        for buffer, before in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(before)  # batch-norm's running statistics saw nothing of this
        self.stored.append(self.sampler.losses.clone().cpu())
        self.recomputed.append(torch.stack(losses).cpu())

    def _loss_now(self, batch: list[int]) -> Tensor:
        indices = torch.tensor(batch, device=self.data.images.device)
        inputs = self.transform(self.data.images.index_select(0, indices))
        return sample_losses(self.model, Batch(inputs, self.data.labels[indices], indices)).mean()

    def arrays(self) -> dict[str, Tensor]:
        """``ids (E N,)`` of the batches by update; ``stored``, ``recomputed (E - 1, N)``, nats."""
        empty = torch.zeros(0, self.sampler.num_batches)
        stored, recomputed = (
            torch.stack(losses) if losses else empty for losses in (self.stored, self.recomputed)
        )
        ids = torch.tensor(self.ids[: self.num_updates])
        return {"ids": ids, "stored": stored, "recomputed": recomputed}

    def state_dict(self) -> dict:
        names = ("ids", "num_rounds", "num_updates", "stored", "recomputed")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict) -> None:
        for name, value in state.items():
            setattr(self, name, list(value) if isinstance(value, list) else value)


# --- look-up by name ----------------------------------------------------------------------------


def methods() -> dict[str, Callable]:
    """Every method of this module by name."""
    return {name: f for name, f in globals().items() if hasattr(f, "VERSION")}


def find_method(name: str) -> Callable:
    """The method called ``name``; the error names the nearest one."""
    known = methods()
    return known[checks.choice("method", name, known)]


def default_options(name: str) -> dict:
    """A method's options and their defaults."""
    parameters = inspect.signature(find_method(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def checked_options(name: str, options: Mapping) -> dict:
    """A method's options, its defaults where ``options`` says nothing, in the order of their
    names and each in the type of its default; refuses one that the method does not have."""
    known = default_options(name)
    if not isinstance(options, Mapping):
        raise ParameterError(f"options = {options!r} is not a mapping of option names to values")
    for option in options:
        if not known:
            raise ParameterError(f"method {name!r} has no options; got {option!r}")
        checks.choice(f"option of method {name!r}", option, known)
    check = {float: checks.number, bool: checks.flag, str: checks.text}
    return {
        option: check.get(type(default), partial(checks.integer, low=0))(
            option, options.get(option, default)
        )
        for option, default in sorted(known.items())
    }
