"""The papers' methods, one short function each: puts a strategy into the loop's sockets.

A method is ``name(run, data, model, *, option: type = default, ...) -> Method``; ``Run.method`` is
the function's name and ``Run.options`` its options (one of your own: see `lookup`). Its version is
part of a run's key: raise it when a change here or in the strategy changes a run's numbers. What
the papers' methods are compared with stands in `peers`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from hardtrain import checks
from hardtrain.data.batches import Batch, PairedBatch, PairedBatches
from hardtrain.data.images import ImageDataset
from hardtrain.data.samplers import BiasedBatchSampler
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
from hardtrain.training import memory, pieces
from hardtrain.training.lookup import version
from hardtrain.training.loop import Method, nothing
from hardtrain.training.pieces import mean_objective, sample_losses, uniform_batches
from hardtrain.training.randomness import derived_seed, generator
from hardtrain.training.step import replays


@version(1)
def plain(run: Any, data: ImageDataset, model: nn.Module) -> Method:
    """Ordinary training: the mean cross-entropy of uniformly drawn batches."""
    batches, state = uniform_batches(run, data)
    return Method(batches, mean_objective, state=state, graph_key=nothing)


@version(1)
def trimming(
    run: Any,
    data: ImageDataset,
    model: nn.Module,
    *,
    start: float = 1.0,
    end: float = 0.2,
    share: str = "hardest",
) -> Method:
    """Mini-batch trimming (Fassold): the mean over the hardest part of each batch, a part that
    falls linearly by epoch from ``start`` to ``end``. The control, ``share="random"``, takes as
    large a part of each batch at random."""
    checks.choice("share", share, ("hardest", "random"))
    batches, state = uniform_batches(run, data)
    trimmed = TrimmedLoss(start=start, end=end, num_epochs=run.epochs)
    kept = memory.SumsByPhase("counts", run, data, torch.int32)
    losses_of = memory.SumsByPhase("losses", run, data, torch.float32)
    draws, drawn = generator(run.seed, "share"), torch.empty(0)
    if share == "random":
        state |= {"draws": draws}

    def start_epoch(epoch: int) -> None:
        trimmed.set_epoch(epoch)
        kept.start_epoch(epoch)
        losses_of.start_epoch(epoch)

    def objective(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        nonlocal drawn
        losses = sample_losses(model, batch)
        if share == "hardest":
            return losses, trim(losses, trimmed.keep)
        order = torch.randperm(len(losses), generator=draws)
        drawn = order[: num_kept(trimmed.keep, len(losses))].sort().values
        drawn = drawn.to(losses.device, non_blocking=True)
        return losses, losses[drawn].mean()

    def count(indices: Tensor, losses: Tensor) -> None:
        number = num_kept(trimmed.keep, len(losses))
        counted = losses.topk(number).indices if share == "hardest" else drawn
        kept.add(indices[counted], torch.ones_like(counted))
        losses_of.add(indices, losses)

    return Method(
        batches,
        objective,
        observe=count if "sample_counts" in run.keep else nothing,
        start_epoch=start_epoch,
        log=lambda: {"keep": trimmed.keep},
        state=state | {"kept": kept, "losses": losses_of},
        artefacts={"sample_counts": lambda: kept.arrays() | losses_of.arrays()},
        # a random share is drawn on the host, anew each step: no graph of it can be replayed
        graph_key=(lambda: trimmed.keep) if share == "hardest" else None,
    )


@version(1)
def hard_batches(
    run: Any,
    data: ImageDataset,
    model: nn.Module,
    *,
    delta: float = 0.5,
    order: str = "loss",
    shuffled: bool = True,
) -> Method:
    """Hard mini-batches (Sahayam et al.): after a first pass over all of them, each round trains
    on the ``delta`` part of the fixed mini-batches whose stored loss is highest.

    ``shuffled``: one random permutation before the mini-batches are cut, else file order. With
    ``delta=1`` and ``order="index"`` it is plain training on fixed mini-batches. The control,
    ``order="random"``, draws each round's part at random.
    """
    sampler = HardBatchSampler(
        len(data),
        run.batch_size,
        delta,
        order=order,
        drop_last=run.drop_last,
        generator=generator(run.seed, "order") if shuffled else None,
        draws=generator(run.seed, "rounds") if order == "random" else None,
    )
    batches, state = pieces.augmented_batches(run, data, sampler)
    log = memory.BatchLog(run, model, batches)
    logging = "batch_log" in run.keep

    def observe(indices: Tensor, losses: Tensor) -> None:
        if logging:
            log.note_update()
        sampler.update(indices, losses.mean())

    return Method(
        batches,
        mean_objective,
        observe=observe,
        start_epoch=log.compare if logging else nothing,
        state={"sampler": sampler, **state, "log": log},
        artefacts={"batch_log": log.arrays},
        graph_key=nothing,
    )


@version(1)
def gradient_noise(
    run: Any, data: ImageDataset, model: nn.Module, *, alpha: float = 1e-5, gamma: float = 0.55
) -> Method:
    """Gaussian gradient noise (Jaiswal, Taura): plain training with noise of the variance
    ``alpha / (1 + t) ** gamma`` added to every gradient before step t."""
    batches, state = uniform_batches(run, data)
    device = data.images.device
    draws = torch.Generator(device).manual_seed(derived_seed(run.seed, "noise"))
    options: dict[str, Any] = {"alpha": alpha, "gamma": gamma, "generator": draws}
    options["capturable"] = replays(device)
    noise = pieces.Attached(lambda optimizer: GradientNoise(optimizer, **options))
    return Method(
        batches,
        mean_objective,
        hooks=[noise.attach],
        state=state | {"noise": noise},
        graph_key=nothing,
        advance=(lambda: noise.hook.advance()) if replays(device) else nothing,
        generators=[draws],
    )


@version(1)
def distribution_matching(
    run: Any,
    data: ImageDataset,
    model: Any,  # with ``features`` and ``classifier``
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

    def distance(x: Tensor, x_labels: Tensor, y: Tensor, y_labels: Tensor) -> Tensor:
        classes = (x_labels, y_labels, data.num_classes) if by_class else ()
        bandwidth = None  # the median as printed, over the pairs i < j
        if reading == "code":
            bandwidth = median_bandwidth(x, y, *classes, diagonal=True)
        if not by_class:
            return mmd(x, y, scales=scales, bandwidth=bandwidth)
        sides = (x, x_labels, y, y_labels)
        return class_conditional_mmd(*sides, data.num_classes, scales=scales, bandwidth=bandwidth)

    def objective(model: Any, batch: PairedBatch) -> tuple[Tensor, Tensor]:
        features = model.features(batch.inputs)
        losses = pieces.class_losses(model.classifier(features), batch.targets)
        second = batch.second
        with torch.set_grad_enabled(not stop_gradient):
            second_features = model.features(second.inputs)
        match = distance(features, batch.targets, second_features, second.targets)
        return losses, losses.mean() + weight * match

    return Method(
        PairedBatches(batches, pieces.endless(partners)) if weight else batches,
        objective if weight else mean_objective,
        log=memory.DistanceLog(run, data, model) if log_distance else dict,
        state=state | partner_state,
        graph_key=nothing,
    )


# variant: the score of a sample's history, and whether samples are "drawn" or "weighted" by it, or
# drawn, and weighted so that the gradient stays "unbiased"
ACTIVE_BIAS_VARIANTS = {
    "uniform": (None, "drawn"),
    "SD": (difficulty, "drawn"),
    "ISD": (difficulty, "unbiased"),
    "SE": (easiness, "drawn"),
    "SPV": (prediction_deviation, "drawn"),
    "STC": (threshold_closeness, "drawn"),
    "WD": (difficulty, "weighted"),
    "WE": (easiness, "weighted"),
    "WPV": (prediction_deviation, "weighted"),
    "WTC": (threshold_closeness, "weighted"),
}


@version(1)
def active_bias(
    run: Any,
    data: ImageDataset,
    model: nn.Module,
    *,
    variant: str = "WPV",
    smoothing: float = 1.0,
    burn_in: float = 0.1,
    relative: bool = True,
) -> Method:
    """Active Bias (Chang, Learned-Miller, McCallum): samples are drawn (S...) or weighted (W...)
    by what their true class's probability has been so far.

    ``variant``: D difficulty, E easiness, PV the deviation of the probabilities, TC closeness to
    the threshold; ISD draws as SD and weights the losses so that the gradient stays unbiased;
    ``uniform`` draws with replacement, all alike. The scan, each sample once an epoch, is the
    method ``plain``. ``smoothing`` is added to each score; with ``relative`` it is in units of the
    mean score at the end of the burn-in. That scans for the part ``burn_in`` of the epochs, at
    least two: the deviation of one probability says nothing. A training that ends before is the
    plain scan. Probabilities and weights are renewed at each epoch's start.
    """
    checks.choice("variant", variant, ACTIVE_BIAS_VARIANTS)
    checks.number("smoothing", smoothing, low=0)
    checks.number("burn_in", burn_in, low=0, below=1)
    score, form = ACTIVE_BIAS_VARIANTS[variant]
    num_samples, device = len(data), data.labels.device
    batches, state = uniform_batches(run, data)
    draws = generator(run.seed, "draws")
    uniform = torch.full((num_samples,), 1 / num_samples, dtype=torch.float64, device=device)
    drawn = WeightedBatchSampler(uniform, run.batch_size, generator=draws)
    sampler = BiasedBatchSampler(batches.batch_sampler, drawn.tensors)
    if form != "weighted":
        batches.batch_sampler = sampler
    first_epoch = 0 if score is None else max(2, round(burn_in * run.epochs))
    scores = memory.SmoothedScores(data, score, smoothing, relative=relative)
    weights = torch.ones(num_samples, device=device)
    emphasis = memory.SumsByPhase("emphasis", run, data, torch.float32)

    def start_epoch(epoch: int) -> None:
        emphasis.start_epoch(epoch)
        sampler.biased = epoch >= first_epoch
        if not sampler.biased or score is None:
            return
        values, epsilon = scores.now()
        if form == "weighted":
            weights.copy_(sample_weights(values, epsilon))
            return
        drawn.probabilities = sampling_probabilities(values, epsilon)
        if form == "unbiased":
            weights.copy_(importance_weights(drawn.probabilities))

    def objective(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        losses = sample_losses(model, batch)
        return losses, (weights[batch.indices] * losses).mean()

    def observe(indices: Tensor, losses: Tensor) -> None:
        if score is not None or "prediction_history" in run.keep:
            # a loss that is not a number is the loop's to find, at its next look at the losses
            scores.history.update(indices, torch.exp(-losses).nan_to_num().clamp(max=1))
        if "emphasis" in run.keep:
            emphasis.add(indices, weights[indices])

    return Method(
        batches,
        objective,
        observe=observe,
        start_epoch=start_epoch,
        state=state | {"draws": draws, "scores": scores, "emphasis": emphasis},
        artefacts={"emphasis": emphasis.arrays, "prediction_history": scores.arrays},
        graph_key=nothing,
    )
