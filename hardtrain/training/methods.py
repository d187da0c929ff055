"""One short function per method: puts a strategy into the loop's sockets.

A method is ``name(run, data, model, **options) -> Method``; ``Run.method`` is the function's name
and ``Run.options`` its keyword arguments. ``VERSION`` is part of a run's key: raise it when a
change here or in the strategy changes a run's numbers.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain, repeat

import torch

from hardtrain import checks
from hardtrain.data.batches import Batches
from hardtrain.data.images import ImageDataset
from hardtrain.data.samplers import BiasedBatchSampler
from hardtrain.errors import ParameterError
from hardtrain.strategies.active_bias import (
    WeightedBatchSampler,
    difficulty,
    easiness,
    importance_weights,
    prediction_deviation,
    sample_weights,
    sampling_probabilities,
    threshold_closeness,
)
from hardtrain.strategies.distribution_matching import class_conditional_mmd, median_bandwidth, mmd
from hardtrain.strategies.gradient_noise import GradientNoise
from hardtrain.strategies.hard_batches import HardBatchSampler
from hardtrain.strategies.trimming import TrimmedLoss, num_kept, trim
from hardtrain.training.loop import Method
from hardtrain.training.memory import (
    NUM_PHASES,
    BatchLog,
    DistanceLog,
    Emphasis,
    SampleCounts,
    SmoothedScores,
)
from hardtrain.training.pieces import (
    Attached,
    class_losses,
    derived_seed,
    generator,
    mean_objective,
    sample_losses,
    train_transform,
    uniform_batches,
)

ACTIVE_BIAS_SCORES = {
    "D": difficulty,
    "E": easiness,
    "PV": prediction_deviation,
    "TC": threshold_closeness,
}
ACTIVE_BIAS_VARIANTS = (
    "uniform", "SD", "ISD", "SE", "SPV", "STC", "WD", "WE", "WPV", "WTC",
)  # fmt: skip


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


@version(1)
def distribution_matching(
    run,
    data: ImageDataset,
    model,
    *,
    weight: float = 0.8,
    by_class: bool = True,
    num_scales: int = 5,
    reading: str = "paper",
    stop_gradient: bool = False,
    log_distance: bool = False,
) -> Method:
    """In-training distribution matching (Li et al.): cross-entropy of a batch S1 plus ``weight``
    times the MMD between the last hidden layer's features of S1 and of another batch S2.

    S2 is drawn independently of S1 and goes through the network on its own, in training mode; the
    gradient of the MMD flows through both (through S1 alone with ``stop_gradient``). S2 never
    enters the cross-entropy. ``weight=0`` draws no S2 and is plain training.

    ``by_class``: the mean MMD over the classes, else of the whole batches. The kernels' widths are
    1, 2, 4, ... ``num_scales`` of them, times the median; ``reading="code"`` takes the median over
    the full matrix of distances, with its diagonal. ``log_distance``: the history gets ``mmd`` and
    ``class_mmd``, in evaluation mode, means over fixed pairs of mini-batches, always with the
    five kernels and the median of the paper.
    """
    checks.number("weight", weight, low=0)
    checks.integer("num_scales", num_scales, low=1, high=16)
    checks.choice("reading", reading, ("paper", "code"))
    scales = [2**power for power in range(num_scales)]
    batches, state = uniform_batches(run, data)
    partners, partner_state = uniform_batches(run, data, prefix="second ")
    partner = chain.from_iterable(repeat(partners))

    def distance(features, labels, other, other_labels):
        sides, options = (features, other), {"scales": scales}
        if by_class:
            sides = (features, labels, other, other_labels, data.num_classes)
        if reading == "code":
            classes = (labels, other_labels, data.num_classes) if by_class else ()
            options["bandwidth"] = median_bandwidth(features, other, *classes, diagonal=True)
        return (class_conditional_mmd if by_class else mmd)(*sides, **options)

    def objective(model, batch):
        if weight == 0:
            return mean_objective(model, batch)
        features = model.features(batch.inputs)
        losses = class_losses(model.classifier(features), batch.targets)
        second = next(partner)
        with torch.set_grad_enabled(not stop_gradient):
            theirs = model.features(second.inputs)
        match = distance(features, batch.targets, theirs, second.targets)
        return losses, losses.mean() + weight * match

    return Method(
        batches,
        objective,
        log=DistanceLog(run, data, model) if log_distance else dict,
        state=state | partner_state,
    )


@version(1)
def active_bias(
    run,
    data: ImageDataset,
    model,
    *,
    variant: str = "WPV",
    smoothing: float = 1.0,
    burn_in: float = 0.1,
) -> Method:
    """Active Bias (Chang, Learned-Miller, McCallum): samples are drawn (S...) or weighted (W...)
    by what their true class's probability has been so far.

    ``variant``: D difficulty, E easiness, PV the deviation of the probabilities, TC closeness to
    the threshold; ISD draws as SD and weights the losses so that the gradient stays unbiased;
    ``uniform`` draws with replacement, all alike. The scan, each sample once an epoch, is the
    method ``plain``. ``smoothing`` is relative to the mean score at the end of the burn-in, which
    scans for the part ``burn_in`` of the epochs, at least two: the deviation of one probability
    says nothing. A training that ends before is the plain scan. Probabilities and weights are
    renewed at each epoch's start.
    """
    checks.choice("variant", variant, ACTIVE_BIAS_VARIANTS)
    checks.number("smoothing", smoothing, low=0)
    checks.number("burn_in", burn_in, low=0, below=1)
    num_samples, device = len(data), data.labels.device
    batches, state = uniform_batches(run, data)
    uniform = torch.full((num_samples,), 1 / num_samples, dtype=torch.float64, device=device)
    draws = generator(run.seed, "draws")
    drawn = WeightedBatchSampler(uniform, run.batch_size, generator=draws)
    sampler = BiasedBatchSampler(batches.batch_sampler, drawn)
    weighting = variant.startswith("W")
    if not weighting:
        batches.batch_sampler = sampler
    score = ACTIVE_BIAS_SCORES.get(variant.lstrip("ISW"))
    scores = SmoothedScores(num_samples, device, score, smoothing)
    remembering = score is not None or "prediction_history" in run.keep
    emphasis = Emphasis(num_samples, device)
    first_epoch = 0 if score is None else max(2, round(burn_in * run.epochs))
    weights, phase = torch.ones(num_samples, device=device), 0

    def start_epoch(epoch):
        nonlocal weights, phase
        phase = NUM_PHASES * epoch // run.epochs
        sampler.biased = epoch >= first_epoch
        if epoch < first_epoch or score is None:
            return
        found, epsilon = scores.now()
        if weighting:
            weights = sample_weights(found, epsilon)
        else:
            drawn.probabilities = sampling_probabilities(found, epsilon)
            if variant == "ISD":
                weights = importance_weights(drawn.probabilities)

    def objective(model, batch):
        losses = sample_losses(model, batch)
        return losses, (weights[batch.indices] * losses).mean()

    def observe(indices, losses):
        if remembering:
            # a loss that is not a number is the loop's to find, at its next look at the losses
            scores.history.update(indices, torch.exp(-losses).nan_to_num().clamp(max=1))
        if "emphasis" in run.keep:
            emphasis.add(phase, indices, weights[indices])

    return Method(
        batches,
        objective,
        observe=observe,
        start_epoch=start_epoch,
        state=state | {"draws": draws, "scores": scores, "emphasis": emphasis},
        artefacts={"emphasis": emphasis.arrays, "prediction_history": scores.arrays},
    )


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
