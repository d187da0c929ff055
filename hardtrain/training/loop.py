"""One plain training loop."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from hardtrain.data.batches import Batch, Batches
from hardtrain.errors import DivergedError, ParameterError, RecordError
from hardtrain.training.pieces import ChosenBatches, endless, precision_context
from hardtrain.training.randomness import global_state, set_global_state

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
        held_out: see :class:`HeldOut`; who trains gives it before it calls `fit`.
    """

    batches: Batches | ChosenBatches
    objective: Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]
    observe: Callable[[Tensor, Tensor], None] = nothing
    hooks: Sequence[Callable[[torch.optim.Optimizer], Any]] = ()
    start_epoch: Callable[[int], None] = nothing
    log: Callable[[], Mapping[str, float]] = dict
    state: Mapping[str, Any] = field(default_factory=dict)
    artefacts: Mapping[str, Callable[[], Mapping[str, Tensor]]] = field(default_factory=dict)
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
            and at the end.
        checkpoint: what ``save_checkpoint`` was given earlier: training goes on from there, with
            the bits that it would have had without a pause.
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
    trace = _Trace(run, device)
    parts = {"model": model, "optimizer": optimizer, "trace": trace}
    history: list[dict] = []
    first_epoch = step = 0  # step: the next one
    # before the checkpoint is loaded, which may hold the hooks' state
    handles = [hook(optimizer) for hook in method.hooks]
    if checkpoint is not None:
        try:
            first_epoch = checkpoint["epoch"]
            step = checkpoint["step"]
            history += checkpoint["history"]
            _load_states(parts, checkpoint)
            _load_states(method.state, checkpoint["method"])
            set_global_state(checkpoint["rng"], device)
        except Exception as error:
            raise RecordError(
                f"its checkpoint cannot be used here ({type(error).__name__}: {error})"
            ) from error
    batches = endless(method.batches)
    model.train()

    def evaluation(epochs: float) -> dict:
        row = {"epoch": epochs, "step": step, "lr": optimizer.param_groups[0]["lr"]}
        row |= trace.read(step - 1)
        scores = dict(evaluate(model))
        trace.require_finite(sum(scores.values()), step - 1, epoch)
        return row | scores | dict(method.log())

    try:
        for epoch in range(first_epoch, run.epochs):
            method.start_epoch(epoch)
            first, is_last = epoch * steps_per_epoch, epoch + 1 == run.epochs
            one_pass = method.batches if method.whole_passes else islice(batches, steps_per_epoch)
            for planned, batch in enumerate(one_pass, first):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(run, planned, steps_per_epoch)
                with precision_context(run.precision, device):
                    losses, loss = method.objective(model, batch)
                _require_gradient(run, loss)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                method.observe(batch.indices, losses.detach())
                trace.add(losses.detach(), loss.detach(), epoch)
                step += 1
                if run.evaluate_unit == "step" and step % run.evaluate_every == 0:
                    history.append(evaluation((planned + 1) / steps_per_epoch))
            is_due = run.evaluate_unit == "epoch" and (epoch + 1) % run.evaluate_every == 0
            if (is_due or is_last) and trace.losses:
                history.append(evaluation(float(epoch + 1)))
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
    gradient) or ``adamw`` (decoupled), over the parameters that want a gradient."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    settings = {"lr": run.lr, "weight_decay": run.weight_decay}
    if run.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=run.momentum, nesterov=run.nesterov, **settings)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[run.optimizer](
        parameters, **settings
    )


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


def _require_gradient(run: Any, loss: Tensor) -> None:
    if not loss.requires_grad:
        raise ParameterError(f"method {run.method!r} gave a loss that depends on no parameter")


class _Trace:
    """Losses since the last evaluation, left on the device until they are read."""

    def __init__(self, run: Any, device: torch.device):
        self.run, self.device = run, device
        self.losses: list[Tensor] = []
        self.objectives: list[Tensor] = []
        self.epochs: list[int] = []

    def add(self, losses: Tensor, objective: Tensor, epoch: int) -> None:
        self.losses.append(losses)
        self.objectives.append(objective)
        self.epochs.append(epoch)

    def read(self, step: int) -> dict[str, float]:
        """Means over what was added up to ``step``, which is then forgotten."""
        self.check(step)
        row = {
            "train_loss": torch.cat(self.losses).cpu().double().mean().item(),
            "objective": torch.stack(self.objectives).cpu().double().mean().item(),
        }
        self.losses, self.objectives, self.epochs = [], [], []
        return row

    def check(self, step: int) -> None:
        """Raise if a loss was not finite; ``step`` is the last."""
        if not self.losses:
            return
        if torch.cat([*self.losses, torch.stack(self.objectives)]).isfinite().all():
            return
        first = step + 1 - len(self.losses)
        added = zip(self.losses, self.objectives, self.epochs, strict=True)
        for bad, (losses, objective, epoch) in enumerate(added, first):
            if not (losses.isfinite().all() and objective.isfinite()):
                self.require_finite(math.nan, bad, epoch)

    def require_finite(self, loss: float, step: int, epoch: int) -> None:
        if not math.isfinite(loss):
            raise DivergedError(
                f"{self.run}: the loss is not finite, first in epoch {epoch}, step {step} "
                "(both from 0)",
                epoch=epoch,
                step=step,
            )

    def state_dict(self) -> dict:
        return {name: list(getattr(self, name)) for name in ("losses", "objectives", "epochs")}

    def load_state_dict(self, state: Mapping) -> None:
        self.losses = [losses.to(self.device) for losses in state["losses"]]
        self.objectives = [objective.to(self.device) for objective in state["objectives"]]
        self.epochs = list(state["epochs"])


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
