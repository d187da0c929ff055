"""One plain training loop."""

import math
from bisect import bisect_right
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from hardtrain.data.batches import Batches, PairedBatches
from hardtrain.errors import DivergedError, ParameterError, RecordError
from hardtrain.training.pieces import ChosenBatches, endless
from hardtrain.training.randomness import global_state, set_global_state
from hardtrain.training.step import make_step, replays

VERSION = 1  # raise it when a change of the loop, the schedules or the seeding changes numbers


def nothing(*_: Any) -> None:
    """In a socket that a method leaves empty."""


@dataclass
class HeldOut:
    """What a method wants before its first step: of every training sample the loss by a model that
    has not seen it. Two small trainings give it, plain, on one half each, scoring the other.

    ``network``, ``epochs``: of the two; ``take``: called with the losses ``(N,)``, nats.
    """

    network: str
    epochs: int
    take: Callable[[Tensor], Any]


@dataclass
class Method:
    """What a strategy puts into the loop's sockets.

    Attributes:
        batches: who is here; one pass per ``iter()``. Its length at the start of training is
            the number of steps of an epoch, whatever later passes yield.
        whole_passes: an epoch is one pass instead, of at most that length.
        objective: who counts: ``(model, batch) -> (losses (B,), loss ())``, nats.
        observe: what is remembered: ``(indices (B,), losses (B,) detached) -> None``.
        hooks: functions of the optimiser, called once before training; each returns a handle
            with ``remove()``.
        start_epoch: called with the epoch (from 0) before its first batch.
        log: numbers of the method for the history, read at each evaluation.
        state: what a checkpoint must hold, by name: objects with ``state_dict`` and
            ``load_state_dict``, or ``torch.Generator``.
        artefacts: functions that give arrays at the end of training, by artefact name.
        graph_key: what a step depends on besides tensors that are changed in place: on a GPU, a
            step is captured for each of its values and replayed (see `step`). ``None``: each step
            runs the objective anew, as it must if that looks at numbers on the host.
        advance: called before each step, for what a replayed one cannot do by itself.
        generators: on the device, from which a step draws.
        held_out: see :class:`HeldOut`; who trains gives it before it calls `fit`.
    """

    batches: Batches | PairedBatches | ChosenBatches
    objective: Callable[[nn.Module, Any], tuple[Tensor, Tensor]]
    observe: Callable[[Tensor, Tensor], None] = nothing
    hooks: Sequence[Callable[[torch.optim.Optimizer], Any]] = ()
    start_epoch: Callable[[int], None] = nothing
    log: Callable[[], Mapping[str, float]] = dict
    state: Mapping[str, Any] = field(default_factory=dict)
    artefacts: Mapping[str, Callable[[], Mapping[str, Tensor]]] = field(default_factory=dict)
    graph_key: Callable[[], Hashable] | None = None
    advance: Callable[[], None] = nothing
    generators: Sequence[torch.Generator] = ()
    whole_passes: bool = False
    held_out: HeldOut | None = None


def fit(
    run: Any,
    model: nn.Module,
    method: Method,
    evaluate: Callable[[nn.Module], Mapping[str, float]],
    *,
    checkpoint: Mapping[str, Any] | None = None,
    save_checkpoint: Callable[[dict], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[dict]:
    """Train ``model`` for ``run.epochs`` epochs.

    Args:
        run: a ``Run``, or anything with its fields: optimiser, schedule, epochs, precision.
        model: on the device it is to be trained on; trained in place.
        method: see :class:`Method`.
        evaluate: gives numbers for the history, such as ``test_loss`` and ``test_error``, and
            leaves the model in training mode; called every ``run.evaluate_every`` epochs or steps
            (but see ``Run.evaluate_last``) and at the end.
        checkpoint: what ``save_checkpoint`` was given earlier: training goes on from there, with
            the bits that it would have had without a pause; on a GPU on the same card, driver and
            torch, but for histories of predictions, where a GPU adds what a batch holds twice in
            any order (1e-12).
        save_checkpoint: called at each epoch's end with a state that ``torch.save`` takes and
            ``torch.load(weights_only=True)`` gives back.
        progress: called at each epoch's end with the number of finished epochs.

    Returns:
        The history: one row per evaluation with ``epoch`` (finished ones) and ``step``, ``lr``,
        ``train_loss`` (mean per-sample loss of the batches since the row before), ``objective``
        (mean of what was minimised), what ``evaluate`` gives and what the method logs.

    Raises:
        DivergedError: a loss was not finite; names the first bad step.
        ParameterError: an epoch of 0 batches, or an objective that depends on no parameter.
        RecordError: ``checkpoint`` does not fit the model and the method.

    Randomness: torch's global generator (dropout) is the caller's to seed and to fork; its state
    is part of the checkpoint. The loop itself waits for the device at evaluations and at the ends
    of epochs only.
    """
    device = next(model.parameters()).device
    optimizer = make_optimizer(run, model)
    steps_per_epoch = len(method.batches)
    if steps_per_epoch == 0:
        raise ParameterError(
            f"0 batches an epoch: batch_size = {run.batch_size} is more than the "
            f"{len(method.batches.dataset)} training samples, and drop_last is set"
        )
    is_evaluated = _evaluations(run, steps_per_epoch)
    trace = _Trace(run, device)
    parts = {"model": model, "optimizer": optimizer, "trace": trace}
    history: list[dict] = []
    first_epoch = step = 0  # step: the next one
    # before the checkpoint is loaded, which may hold the hooks' state
    handles = [hook(optimizer) for hook in method.hooks]
    if checkpoint is not None:
        try:
            first_epoch = checkpoint["epoch"]
            step = checkpoint.get("step", first_epoch * steps_per_epoch)
            history += checkpoint["history"]
            _load_states(parts, _of_kind(optimizer, checkpoint))
            trace.starts = trace.starts or [e * steps_per_epoch for e in range(first_epoch + 1)]
            _load_states(method.state, checkpoint["method"])
            set_global_state(checkpoint["rng"], device)
        except Exception as error:
            raise RecordError(
                f"its checkpoint cannot be used here ({type(error).__name__}: {error})"
            ) from error
    batches = endless(method.batches)
    take_step = make_step(run, model, method, optimizer)
    model.train()

    def evaluation(epochs: float, rate: float) -> dict:
        row = {"epoch": epochs, "step": step, "lr": rate} | trace.read(step - 1)
        scores = dict(evaluate(model))
        trace.require_finite(sum(scores.values()), step - 1)
        logged = dict(method.log())
        if taken := sorted(logged.keys() & {"key", "digest", *row, *scores}):
            raise ParameterError(f"method {run.method!r} logs {taken[0]!r}, which is taken")
        return row | scores | logged

    try:
        for epoch in range(first_epoch, run.epochs):
            method.start_epoch(epoch)
            first, is_last = epoch * steps_per_epoch, epoch + 1 == run.epochs
            one_pass = method.batches if method.whole_passes else islice(batches, steps_per_epoch)
            for planned, batch in enumerate(one_pass, first):
                rate = learning_rate(run, planned, steps_per_epoch)
                losses, objective = take_step(batch, rate)  # forward, backward, optimiser
                method.observe(batch.indices, losses)
                trace.add(losses, objective)
                step += 1
                is_due = is_evaluated(step)
                if method.whole_passes:  # whose ends come below
                    is_due = run.evaluate_unit == "step" and step % run.evaluate_every == 0
                if is_due:
                    history.append(evaluation((planned + 1) / steps_per_epoch, rate))
            is_due = is_last or (
                run.evaluate_unit == "epoch" and is_evaluated(first + steps_per_epoch)
            )
            if method.whole_passes and is_due and trace.values:
                history.append(evaluation(float(epoch + 1), rate))
            trace.end_epoch(step)
            if save_checkpoint is not None and not is_last:
                trace.check(step - 1)
                state = {"epoch": epoch + 1, "step": step, "history": history}
                state |= {"rng": global_state(device), "method": _states(method.state)}
                save_checkpoint(state | _states(parts))
            if progress is not None:
                progress(epoch + 1)
    except DivergedError as error:
        error.history = history  # the evaluations before it
        raise
    finally:
        for handle in handles:
            handle.remove()
    return history


def make_optimizer(run: Any, model: nn.Module) -> torch.optim.Optimizer:
    """The run's optimiser: ``sgd`` (momentum, Nesterov), ``adam`` (weight decay as L2 in the
    gradient) or ``adamw`` (decoupled), over the parameters that want a gradient. Where steps are
    replayed, of the fused kind, which reads its numbers from tensors."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    settings: dict[str, Any] = {"lr": run.lr, "weight_decay": run.weight_decay}
    fused = True if replays(parameters[0].device) else None  # None: as torch chooses
    if run.optimizer == "sgd":
        settings |= {"momentum": run.momentum, "nesterov": run.nesterov}
        return torch.optim.SGD(parameters, fused=fused, **settings)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[run.optimizer]
    optimizer = kind(parameters, fused=fused, capturable=bool(fused), **settings)
    optimizer._warned_capturable_if_run_uncaptured = True  # the first steps are not captured
    return optimizer


def learning_rate(run: Any, step: int, steps_per_epoch: int) -> float:
    r"""The learning rate of a step (from 0): a pure function, so there is no state to resume.

    With :math:`e` the epoch of the step (from 0), :math:`E` the number of epochs and
    :math:`\gamma` ``run.gamma``: ``constant``; ``step``: :math:`\gamma^{\lfloor e/s \rfloor}` for
    :math:`s` ``run.step_epochs``; ``multistep``: :math:`\gamma` to the number of
    ``run.milestones`` that are at most :math:`e`; ``cosine``: :math:`(1 + \cos(\pi t / T)) / 2`
    over the steps :math:`t` after the warm-up; ``linear``: straight from 1 to :math:`\gamma` over
    the first :math:`s` epochs by step, then :math:`\gamma` (:math:`s` counts from the start of
    training, with a warm-up too). During the first ``run.warmup_epochs`` epochs the rate grows
    linearly by step and reaches the full rate at their end.
    """
    epoch = step // steps_per_epoch
    warmup_steps = run.warmup_epochs * steps_per_epoch
    if step < warmup_steps:
        return run.lr * (step + 1) / warmup_steps
    if run.schedule == "step":
        return run.lr * run.gamma ** (epoch // run.step_epochs)
    if run.schedule == "multistep":
        return run.lr * run.gamma ** sum(epoch >= milestone for milestone in run.milestones)
    if run.schedule == "linear":
        fallen = min(1, step / (run.step_epochs * steps_per_epoch))
        return run.lr * (1 + (run.gamma - 1) * fallen)
    if run.schedule == "cosine":
        progress = (step - warmup_steps) / (run.epochs * steps_per_epoch - warmup_steps)
        return run.lr * (1 + math.cos(math.pi * progress)) / 2
    return run.lr


def _evaluations(run: Any, steps_per_epoch: int) -> Callable[[int], bool]:
    """Whether a training is evaluated after so many steps; see ``Run.evaluate_last``."""
    num_steps = run.epochs * steps_per_epoch
    interval = run.evaluate_every * (steps_per_epoch if run.evaluate_unit == "epoch" else 1)
    # the end is the last one, on the grid of steps or not
    first = (-(-num_steps // interval) - run.evaluate_last + 1) * interval

    def is_evaluated(steps: int) -> bool:
        if steps == num_steps or (run.evaluate_last and steps % steps_per_epoch == 0):
            return True
        return steps % interval == 0 and (not run.evaluate_last or steps >= first)

    return is_evaluated


class _Trace:
    """Losses since the last evaluation, left on the device until they are read: of each step its
    losses and behind them its objective; of finished epochs one tensor for all steps."""

    def __init__(self, run: Any, device: torch.device):
        self.run, self.device = run, device
        self.values: list[Tensor] = []
        self.sizes: list[int] = []  # of each step
        self.starts = [0]  # the first step of each epoch

    def add(self, losses: Tensor, objective: Tensor) -> None:
        self.values += losses, objective
        self.sizes.append(losses.numel() + 1)

    def end_epoch(self, step: int) -> None:
        """``step`` is the first of the next one."""
        self.values = [torch.cat(self.values)] if self.values else []
        self.starts.append(step)

    def read(self, step: int) -> dict[str, float]:
        """Means over what was added up to ``step``, which is then forgotten."""
        values = torch.cat(self.values).cpu()
        self._require_finite(values, step)
        is_objective = torch.zeros(len(values), dtype=torch.bool)
        is_objective[torch.tensor(self.sizes).cumsum(0) - 1] = True
        self.values, self.sizes = [], []
        return {
            "train_loss": values[~is_objective].double().mean().item(),
            "objective": values[is_objective].double().mean().item(),
        }

    def check(self, step: int) -> None:
        """Raise if a loss was not finite; ``step`` is the last."""
        if self.values:
            self._require_finite(torch.cat(self.values).cpu(), step)

    def _require_finite(self, values: Tensor, step: int) -> None:
        if not values.isfinite().all():
            first = step + 1 - len(self.sizes)
            for bad, of_step in enumerate(values.split(self.sizes), first):
                if not of_step.isfinite().all():
                    self.require_finite(math.nan, bad)

    def require_finite(self, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            epoch = bisect_right(self.starts, step) - 1
            raise DivergedError(
                f"{self.run}: the loss is not finite, first in epoch {epoch}, step {step} "
                "(both from 0)",
                epoch=epoch,
                step=step,
            )

    def state_dict(self) -> dict:
        return {name: list(getattr(self, name)) for name in ("values", "sizes", "starts")}

    def load_state_dict(self, state: Mapping) -> None:
        self.starts = list(state.get("starts", ()))
        if "losses" in state:  # two tensors a step, in checkpoints of version 0.1
            for losses, objective in zip(state["losses"], state["objectives"], strict=True):
                self.add(losses.to(self.device), objective.view(1).to(self.device))
            return
        self.values = [values.to(self.device) for values in state["values"]]
        self.sizes = list(state["sizes"])


def _of_kind(optimizer: torch.optim.Optimizer, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint, with an optimiser fused as this one is, whether its steps were replayed or
    not."""
    saved, kinds = checkpoint["optimizer"], ("fused", "foreach", "capturable")
    groups = [
        group | {kind: own[kind] for kind in kinds if kind in own}
        for group, own in zip(saved["param_groups"], optimizer.param_groups, strict=True)
    ]
    return {**checkpoint, "optimizer": saved | {"param_groups": groups}}


def _states(parts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: part.get_state() if isinstance(part, torch.Generator) else part.state_dict()
        for name, part in parts.items()
    }


def _load_states(parts: Mapping[str, Any], states: Mapping[str, Any]) -> None:
    for name, part in parts.items():
        if isinstance(part, torch.Generator):
            part.set_state(states[name])
        else:
            part.load_state_dict(states[name])
