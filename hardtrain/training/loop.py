"""One plain training loop."""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hardtrain.data.batches import Batch, Batches
from hardtrain.errors import DivergedError, ParameterError
from hardtrain.training.evaluation import precision_context

VERSION = 1  # raise it when a change of the loop, the schedules or the seeding changes numbers


@dataclass
class Method:
    """What a strategy puts into the loop's sockets.

    Attributes:
        batches: who is here; one pass per ``iter()``. Its length at the start of training is
            the number of steps of an epoch, whatever later passes yield.
        objective: who counts: ``(model, batch) -> (losses (B,), loss ())``, nats.
        observe: what is remembered: ``(indices (B,), losses (B,) detached) -> None``.
        hooks: functions of the optimiser, called once before training; each returns a handle
            with ``remove()``.
        start_epoch: called with the epoch (from 0) before its first batch.
        log: numbers of the method for the history, read at each evaluation.
        state: what a checkpoint must hold, by name: objects with ``state_dict`` and
            ``load_state_dict``, or ``torch.Generator``.
        artefacts: functions that give arrays at the end of training, by artefact name.
    """

    batches: Batches
    objective: Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]
    observe: Callable[[Tensor, Tensor], None] | None = None
    hooks: Sequence[Callable[[torch.optim.Optimizer], Any]] = ()
    start_epoch: Callable[[int], None] | None = None
    log: Callable[[], Mapping[str, float]] = dict
    state: Mapping[str, Any] = field(default_factory=dict)
    artefacts: Mapping[str, Callable[[], Mapping[str, Tensor]]] = field(default_factory=dict)


def fit(
    run,
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
    num_steps = run.epochs * steps_per_epoch
    trace = _Trace()
    history: list[dict] = []
    first_epoch = 0
    # before the checkpoint is loaded, which may hold the hooks' state
    handles = [hook(optimizer) for hook in method.hooks]
    if checkpoint is not None:
        first_epoch = checkpoint["epoch"]
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        history += checkpoint["history"]
        trace.load_state_dict(checkpoint["trace"], device)
        _load_states(method.state, checkpoint["method"])
        _set_global_rng(checkpoint["rng"], device)
    evaluate_steps = run.evaluate_every * (steps_per_epoch if run.evaluate_unit == "epoch" else 1)
    autocast = precision_context(run.precision, device)
    stream = itertools.chain.from_iterable(itertools.repeat(method.batches))
    model.train()
    try:
        for epoch in range(first_epoch, run.epochs):
            if method.start_epoch is not None:
                method.start_epoch(epoch)
            start = epoch * steps_per_epoch
            # the range comes first: when it ends, no batch has been drawn for nothing
            for step, batch in zip(range(start, start + steps_per_epoch), stream, strict=False):
                rate = learning_rate(run, step, steps_per_epoch)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                with autocast():
                    losses, loss = method.objective(model, batch)
                if step == first_epoch * steps_per_epoch and not loss.requires_grad:
                    raise ParameterError(
                        f"method {run.method!r} gave a loss that depends on no parameter"
                    )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses = losses.detach()
                trace.add(losses, loss)
                if method.observe is not None:
                    method.observe(batch.indices, losses)
                done = step + 1
                if done % evaluate_steps == 0 or done == num_steps:
                    row = {"epoch": done / steps_per_epoch, "step": done, "lr": rate}
                    row |= trace.read(run, done, steps_per_epoch)
                    found = dict(evaluate(model))
                    _require_finite(run, sum(found.values()), done - 1, steps_per_epoch)
                    history.append(row | found | dict(method.log()))
            if save_checkpoint is not None and epoch + 1 < run.epochs:
                trace.check(run, (epoch + 1) * steps_per_epoch, steps_per_epoch)
                save_checkpoint(
                    {
                        "epoch": epoch + 1,
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "history": history,
                        "trace": trace.state_dict(),
                        "method": {name: _state(item) for name, item in method.state.items()},
                        "rng": _global_rng(device),
                    }
                )
            if progress is not None:
                progress(epoch + 1)
    except DivergedError as error:
        error.history = history  # the evaluations before it
        raise
    finally:
        for handle in handles:
            handle.remove()
    return history


def make_optimizer(run, model: nn.Module) -> torch.optim.Optimizer:
    """The run's optimiser: ``sgd`` (momentum, Nesterov), ``adam`` (weight decay as L2 in the
    gradient) or ``adamw`` (decoupled), over the parameters that want a gradient."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    settings = {"lr": run.lr, "weight_decay": run.weight_decay}
    if run.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=run.momentum, nesterov=run.nesterov, **settings)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[run.optimizer](
        parameters, **settings
    )


def learning_rate(run, step: int, steps_per_epoch: int) -> float:
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


@contextlib.contextmanager
def isolated_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators for one run, ask cuDNN for repeatable kernels, and leave
    both as they were found."""
    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
    ):
        # not torch.manual_seed, which would seed all GPUs
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


class _Trace:
    """Losses since the last evaluation, left on the device until they are read."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.objectives: list[Tensor] = []

    def add(self, losses: Tensor, objective: Tensor) -> None:
        self.losses.append(losses)
        self.objectives.append(objective.detach())

    def read(self, run, done: int, steps_per_epoch: int) -> dict[str, float]:
        """Means over what was added, which is then forgotten."""
        self.check(run, done, steps_per_epoch)
        row = {
            "train_loss": torch.cat(self.losses).cpu().double().mean().item(),
            "objective": torch.stack(self.objectives).cpu().double().mean().item(),
        }
        self.losses, self.objectives = [], []
        return row

    def check(self, run, done: int, steps_per_epoch: int) -> None:
        """Raise if a loss was not finite; ``done`` steps are finished."""
        if not self.losses:
            return
        if torch.cat([*self.losses, torch.stack(self.objectives)]).isfinite().all():
            return
        for step, values in enumerate(
            zip(self.losses, self.objectives, strict=True), start=done - len(self.losses)
        ):
            if not all(value.isfinite().all() for value in values):
                _require_finite(run, math.nan, step, steps_per_epoch)

    def state_dict(self) -> dict:
        return {"losses": list(self.losses), "objectives": list(self.objectives)}

    def load_state_dict(self, state: Mapping, device: torch.device) -> None:
        self.losses = [losses.to(device) for losses in state["losses"]]
        self.objectives = [objective.to(device) for objective in state["objectives"]]


def _require_finite(run, loss: float, step: int, steps_per_epoch: int) -> None:
    if not math.isfinite(loss):
        epoch = step // steps_per_epoch
        raise DivergedError(
            f"{run}: the loss is not finite, first in epoch {epoch}, step {step} (both from 0)",
            epoch=epoch,
            step=step,
        )


def _state(item: Any) -> Any:
    return item.get_state() if isinstance(item, torch.Generator) else item.state_dict()


def _load_states(items: Mapping[str, Any], states: Mapping[str, Any]) -> None:
    for name, item in items.items():
        if isinstance(item, torch.Generator):
            item.set_state(states[name])
        else:
            item.load_state_dict(states[name])


def _global_rng(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_global_rng(state: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:  # not if the pause was on a CPU
        torch.cuda.set_rng_state(state["cuda"], device)
