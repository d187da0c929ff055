"""What the papers' methods are compared with, in the form of `methods`: peers and controls.

They leave samples out of the backward pass, so an epoch, a pass over the data, has fewer updates
than one of plain training; the learning rate's schedule is as long as their own epochs. The history
counts the samples that went through it: ``samples``.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hardtrain import checks
from hardtrain.data.batches import Batch
from hardtrain.data.images import ImageDataset
from hardtrain.data.samplers import ShareBatchSampler, UniformBatchSampler
from hardtrain.errors import ParameterError
from hardtrain.strategies.dynamic_pruning import PruningBatchSampler
from hardtrain.strategies.reducible_loss import select_reducible
from hardtrain.strategies.selective_backprop import SelectiveBackprop
from hardtrain.training import memory, pieces
from hardtrain.training.evaluation import buffers_restored, in_mode
from hardtrain.training.lookup import version
from hardtrain.training.loop import HeldOut, Method, nothing
from hardtrain.training.pieces import mean_objective, sample_losses, uniform_batches
from hardtrain.training.randomness import generator


@version(1)
def focal(run: Any, data: ImageDataset, model: nn.Module, *, gamma: float = 2.0) -> Method:
    """Focal loss (Lin et al., arXiv 1708.02002), without its weights of classes: the loss of a
    sample times (1 - p) ** ``gamma``, with p the probability of its class."""
    checks.number("gamma", gamma, low=0)
    batches, state = uniform_batches(run, data)

    def objective(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        losses = sample_losses(model, batch)
        # 1 - p, exact for p near 1, and above 0, where a power has a gradient
        missing = -torch.expm1(-losses.clamp(min=torch.finfo(losses.dtype).tiny))
        return losses, (missing**gamma * losses).mean()

    return Method(batches, objective, state=state, graph_key=nothing)


@version(1)
def random_share(run: Any, data: ImageDataset, model: nn.Module, *, share: float = 0.5) -> Method:
    """A random share of the data, drawn anew each epoch (RS2: Okanovic et al., ICLR 2024): the
    control of every method that leaves samples out."""
    order = generator(run.seed, "order")
    sampler = ShareBatchSampler(
        share, len(data), run.batch_size, drop_last=run.drop_last, generator=order
    )
    batches, state = pieces.augmented_batches(run, data, sampler)
    return _counted(run, data, batches, {"order": order} | state, graph_key=nothing)


@version(1)
def dynamic_pruning(
    run: Any,
    data: ImageDataset,
    model: nn.Module,
    *,
    ratio: float = 0.5,
    pruned_part: float = 0.875,
    reading: str = "paper",
) -> Method:
    """Dynamic pruning (InfoBatch): an epoch leaves out each sample of a loss below the mean with
    probability ``ratio``, and weights those of them that stay; the last epochs are whole.

    ``reading``: ``"paper"``, by chance, or ``"code"``, a fixed number of them. ``ratio=0`` is plain
    training.
    """
    sampler = PruningBatchSampler(
        len(data),
        run.batch_size,
        ratio=ratio,
        num_epochs=run.epochs,
        pruned_part=pruned_part,
        reading=reading,
        drop_last=run.drop_last,
        generator=generator(run.seed, "order"),
    )
    batches, state = pieces.augmented_batches(run, data, sampler)

    def objective(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        losses = sample_losses(model, batch)
        return losses, (sampler.weights(batch.indices) * losses).mean()

    def update(indices: Tensor, losses: Tensor) -> None:
        # a loss that is not finite is the loop's to find, at its next look at the losses
        sampler.update(indices, losses.nan_to_num())

    everything = {"sampler": sampler, **state}
    return _counted(run, data, batches, everything, objective, update, whole_passes=True)


@version(1)
def selective_backprop(
    run: Any, data: ImageDataset, model: nn.Module, *, beta: float = 1.0, history: int = 1024
) -> Method:
    """Selective-Backprop (Jiang et al.): each batch is scored by a forward pass; a sample is taken
    with a probability that grows with the rank of its loss among the last ``history``, to the power
    ``beta``; a batch that is full goes forward again, and backward."""
    candidates, state = uniform_batches(run, data)
    draws = generator(run.seed, "draws")
    selective = SelectiveBackprop(beta=beta, history=history, generator=draws)

    def choose(batch: Batch) -> Tensor:
        return selective.choose(_scores(run, model, batch, training=True))

    batches = pieces.ChosenBatches(candidates, choose, run.batch_size, drop_last=run.drop_last)
    everything = {**state, "draws": draws, "selective": selective}
    return _counted(run, data, batches, everything, whole_passes=True)


@version(1)
def reducible_loss(
    run: Any,
    data: ImageDataset,
    model: nn.Module,
    *,
    share: float = 0.1,
    reading: str = "evaluation",
    small_network: str = "cnn_small",
    small_epochs: int = 0,
) -> Method:
    """Reducible loss (RHO-LOSS): of a large batch, scored by a forward pass, the ``share`` whose
    loss is highest above its irreducible loss goes forward again, and backward.

    The irreducible losses are those of two small trainings on one half each, which score the other:
    plain ones of ``small_network``, as long as this one or of ``small_epochs``. ``reading``: in
    which mode, ``"evaluation"`` or ``"training"``, batch-norm and dropout are while scoring.
    """
    checks.number("share", share, low=0, above=True, below=1)
    checks.choice("reading", reading, ("evaluation", "training"))
    checks.integer("small_epochs", small_epochs, low=0)
    order = generator(run.seed, "order")
    large = min(len(data), round(run.batch_size / share))
    rest = 0 if run.drop_last else len(data) % large
    normalises = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    if reading == "training" and normalises and 1 in (rest, large):
        raise ParameterError(
            f"share = {share} leaves one candidate of {len(data)} by itself, which cannot be "
            "normalised; change batch_size or share, or set drop_last"
        )
    sampler = UniformBatchSampler(len(data), large, drop_last=run.drop_last, generator=order)
    candidates, state = pieces.augmented_batches(run, data, sampler)
    irreducible = torch.zeros(len(data), device=data.labels.device)

    def choose(batch: Batch) -> Tensor:
        losses = _scores(run, model, batch, training=reading == "training")
        count = max(1, round(share * len(losses)))
        return select_reducible(losses, irreducible[batch.indices], count)

    batches = pieces.ChosenBatches(candidates, choose, run.batch_size, drop_last=run.drop_last)
    state = {"order": order} | state
    held_out = HeldOut(small_network, small_epochs or run.epochs, irreducible.copy_)
    return _counted(run, data, batches, state, held_out=held_out, whole_passes=True)


def _counted(
    run: Any,
    data: ImageDataset,
    batches: Any,
    state: Mapping[str, Any],
    objective: Callable = mean_objective,
    update: Callable[[Tensor, Tensor], None] = nothing,
    **about: Any,
) -> Method:
    """A method that counts the samples which went through it, after ``update`` has seen them."""
    tally = memory.SampleTally(run, data)

    def observe(indices: Tensor, losses: Tensor) -> None:
        update(indices, losses)
        tally.add(indices, losses)

    return Method(
        batches,
        objective,
        observe=observe,
        start_epoch=tally.start_epoch,
        log=tally.log,
        state={**state, "tally": tally},
        artefacts=tally.artefacts,
        **about,
    )


def _scores(run: Any, model: nn.Module, batch: Batch, *, training: bool) -> Tensor:
    """The losses of candidates, without a gradient; batch-norm's statistics stay as they are."""
    precision = pieces.precision_context(run.precision, batch.inputs.device)
    with buffers_restored(model), in_mode(model, training=training), precision:
        return sample_losses(model, batch)
