"""Gradient noise: Gaussian noise, smaller from step to step, on the gradient of a large mini-batch.

Jaiswal, Taura, "Overcoming Generalization Gap in Large Mini-Batch Training of Deep Neural
Networks".
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor
from torch.optim import Optimizer

from hardtrain.strategies import _checks

_Buffer = tuple[Tensor, list[Tensor]]


def plain_noise(
    gradients: Sequence[Tensor], step: int, alpha: float, gamma: float, generator: Generator
) -> None:
    """What :class:`GradientNoise` does before each step; to read, and to test the hook against."""
    sigma = math.sqrt(alpha / (1 + step) ** gamma)
    sizes = [gradient.numel() for gradient in gradients]
    noise = torch.empty(sum(sizes), device=generator.device)
    noise.normal_(0, sigma, generator=generator)
    for gradient, part in zip(gradients, noise.split(sizes), strict=True):
        gradient += part.view_as(gradient)


# That was the method; below is the hook. It draws the same numbers in the same order into a buffer
# that stays, one for each dtype, and adds all parts in one operation; under a gradient scaler it
# scales them, and takes back what it drew for a step that the scaler skipped.


class GradientNoise:
    r"""Adds Gaussian noise to every gradient just before the optimiser's step.

    .. math:: g \leftarrow g + \epsilon_t, \quad \epsilon_t \sim N(0, \sigma_t^2 I), \quad
              \sigma_t^2 = \frac{\alpha}{(1 + t)^\gamma}, \quad t = 0, 1, \dots

    Independent for each coordinate, tensor and step. It is a hook of the optimiser: the training
    loop stays as it is. Clipping done there comes before the noise; weight decay and momentum
    come after. Parameters without a gradient get none.

    Args:
        optimizer: its gradients have any shape and float dtype, all on one device.
        alpha: α >= 0, the variance at t = 0, in squared gradient units (no standard deviation);
            0 draws nothing and leaves training as it is, bit for bit.
        gamma: γ >= 0; 0 is noise that stays.
        generator: on the gradients' device, for this hook alone. By default one of its own,
            seeded from ``torch.initial_seed()``; two hooks in a program need two explicit ones.
            Under ``torch.distributed`` every rank needs an explicit one.
        hook: false where steps come with a closure, as Lightning's do: then `add` is called on the
            ready gradients before each step, in ``on_before_optimizer_step``.
        capturable: the step can be captured as a CUDA graph: σ lies in a tensor on the device, and
            :meth:`advance` must be called before each step or replay. Not under a gradient scaler.

    Under ``DistributedDataParallel`` all ranks add the same noise to the same averaged gradient,
    as one process would: their generators must be equally seeded, or the replicas drift apart.
    That is looked at in the first step. Ranks that hold different weights (sharded) need different
    seeds.

    Under ``torch.amp.GradScaler`` it is the noise of unscaled training, bit for bit at scales
    2^k: fused optimisers get gradients times the loss scale, so the noise is scaled, too, and a
    step that the scaler skips changes neither t nor the next draw. Whether a fused optimiser on a
    GPU skipped is read at its next step (or by ``step``, ``variance``, ``state_dict``) from a copy
    queued one step earlier: the host may wait for that, never for the newest forward and backward.

    It costs two operations a step for any number of tensors (of one dtype), a third for the loss
    scale, and memory for one more copy of the gradients.

    Raises:
        ValueError: ``alpha`` or ``gamma`` negative or not finite; no generator under
            ``torch.distributed``; a state that does not fit; an optimiser that has a noise already,
            or takes no hook, as after accelerate's ``prepare``. From ``optimizer.step``: a
            closure or ``grad_scaler`` argument (gradients change after the hook), no gradient at
            all, a sparse one, one on another device than the generator; equal gradients but
            unequal generators on the ranks.
        TypeError: an argument of the wrong type; a gradient that is not float16 to float64.

    Source:
        Section 3.1, step 2 (no numbered equation): α = 1e-5, γ = 0.55. The text says that the
        variance "decays exponentially"; its formula, as here, is a power law: 0.28 α at t = 9,
        0.022 α at t = 999. The paper leaves open what t counts: here optimiser steps, as in the
        gradient noise hook of Chainer, with which it was made.

    Example:
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> noise = GradientNoise(optimizer, alpha=0.01, gamma=0.55)
        >>> model(torch.ones(4, 3)).sum().backward()
        >>> optimizer.step()  # the noise is added here
        >>> print(f"{noise.variance:.5f}")
        0.00683
        >>> noise.remove()
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        alpha: float = 1e-5,
        gamma: float = 0.55,
        generator: Generator | None = None,
        hook: bool = True,
        capturable: bool = False,
    ) -> None:
        _checks.instance("optimizer", optimizer, Optimizer)
        if hasattr(optimizer, "_gradient_noise"):
            raise ValueError("optimizer has a gradient noise already; call its remove() first")
        if hook and not hasattr(optimizer, "_optimizer_step_pre_hooks"):
            raise ValueError(
                f"optimizer takes no hooks ({type(optimizer).__name__}); give the one that it "
                "wraps, before accelerator.prepare, or hook=False and call add() before each step"
            )
        self.alpha = _checks.not_negative("alpha", alpha)
        self.gamma = _checks.not_negative("gamma", gamma)
        self._generator = _own_generator(optimizer) if generator is None else generator
        _checks.instance("generator", self._generator, Generator)
        self._step = 0
        self._sigma = torch.zeros((), device=self._generator.device) if capturable else None
        self._undecided: _Undecided | None = None
        self._layout: list[tuple] = []
        self._buffers: list[_Buffer] = []
        self._optimizer = optimizer
        self._handle = optimizer.register_step_pre_hook(self._hook) if hook else None
        optimizer._gradient_noise = self  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        return _checks.shown(self, alpha=self.alpha, gamma=self.gamma)

    @property
    def step(self) -> int:
        """t of the next step: the number of steps taken, without those that a scaler skipped."""
        self._decide()
        return self._step

    @property
    def variance(self) -> float:
        """Variance of the next step's noise, in squared units of the unscaled gradient."""
        return self.alpha / (1 + self.step) ** self.gamma

    def advance(self) -> None:
        """Set σ for the step that comes, and count it; with ``capturable`` only."""
        if self._sigma is None:
            raise ValueError("advance needs capturable = True; otherwise each step does it itself")
        self._sigma.fill_(math.sqrt(self.variance))
        self._step += 1

    def remove(self) -> None:
        """Take the noise off the optimiser, and free its memory."""
        if self._handle is not None:
            self._handle.remove()
        if getattr(self._optimizer, "_gradient_noise", None) is self:
            del self._optimizer._gradient_noise  # type: ignore[attr-defined]
        self._layout, self._buffers = [], []

    def add(self) -> None:
        """Add the noise of one step to the gradients as they are, unscaled; with ``hook=False``.

        Every call counts as a step, one that a scaler skips too.
        """
        if self._handle is not None:
            raise RuntimeError("the noise is added by a hook of the optimiser; to call add() "
                               "yourself, make it with hook=False")  # fmt: skip
        self._before_step(self._optimizer)

    def state_dict(self) -> dict:
        """t and the generator's state; ``optimizer.state_dict()`` holds neither."""
        return {"step": self.step, "generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping) -> None:
        """Go on from ``state``, with the noise that training would have had without a pause."""
        if not {"step", "generator"} <= set(state):
            raise ValueError(f"state must have 'step' and 'generator'; got {list(state)}")
        # noise goes on only on the kind of device that it was saved on
        name = f"state['generator'] of a generator on {self._generator.device}"
        own = self._generator.get_state()
        _checks.tensor(name, state["generator"], own.shape, dtypes=[own.dtype])
        self._generator.set_state(state["generator"].cpu())
        self._step, self._undecided = state["step"], None

    def _hook(self, optimizer: Optimizer, args: tuple, kwargs: dict[str, Any]) -> None:
        if "grad_scaler" in kwargs or any(callable(a) for a in (*args, *kwargs.values())):
            raise ValueError(
                "optimizer.step must be called without closure and grad_scaler, which change the "
                f"gradients after the noise was added; got {', '.join(kwargs) or 'a closure'}. "
                "Otherwise, as in Lightning: GradientNoise(..., hook=False), and its add() when "
                "the gradients are ready, in on_before_optimizer_step"
            )
        self._before_step(optimizer)

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            raise ValueError("optimizer must have a parameter with a gradient; got none")
        if self._sigma is not None:
            if getattr(optimizer, "found_inf", None) is not None:
                raise ValueError("capturable = True is not for gradient scalers; got one")
            if self.alpha > 0:
                self._add_noise(gradients, self._sigma, None)
            return
        sigma = math.sqrt(self.variance)
        # set by a scaler if the optimiser is fused: it unscales, and steps or skips, by itself
        scale = getattr(optimizer, "grad_scale", None)
        found_inf = getattr(optimizer, "found_inf", None)
        undecided = None
        if found_inf is not None:
            undecided = _Undecided(self._generator.get_state(), *_copy_to_host(found_inf))
        if sigma > 0:
            self._add_noise(gradients, sigma, scale)
        self._step += 1
        self._undecided = undecided
        if undecided is not None and undecided.event is None:
            self._decide()

    def _add_noise(
        self, gradients: list[Tensor], sigma: float | Tensor, scale: Tensor | None
    ) -> None:
        layout = [
            (g.dtype, g.device, g.shape, g.stride() if g.layout == torch.strided else None)
            for g in gradients
        ]
        if layout != self._layout:
            self._layout, self._buffers = [], []  # frees the old ones first
            _check_ranks(gradients, self._generator)
            self._buffers = _flat_buffers(gradients, self._generator.device)
            self._layout = layout
        for flat, views in self._buffers:
            if isinstance(sigma, Tensor):
                flat.normal_(generator=self._generator).mul_(sigma)
            else:
                flat.normal_(0, sigma, generator=self._generator)
            if scale is not None:
                # a scale of shape () would first become float16, where the usual 65536 is infinite
                flat.mul_(scale.view(1) if flat.dtype == torch.float16 else scale)
            torch._foreach_add_([g for g in gradients if g.dtype == flat.dtype], views)

    def _decide(self) -> None:
        """If a scaler skipped the last step, take back its count and its draw."""
        undecided, self._undecided = self._undecided, None
        if undecided is None:
            return
        if undecided.event is not None:
            undecided.event.synchronize()
        if undecided.skipped.tolist():
            self._generator.set_state(undecided.before)
            self._step -= 1


class _Undecided(NamedTuple):
    """A step that a scaler may have skipped."""

    before: Tensor  # the generator's state
    skipped: Tensor
    event: torch.cuda.Event | None  # after which that can be read


def _flat_buffers(gradients: list[Tensor], device: torch.device) -> list[_Buffer]:
    """For each dtype a buffer, and views of it in the shapes of the gradients of that dtype."""
    for gradient in gradients:
        _check_gradient(gradient, device)
    buffers = []
    for dtype in dict.fromkeys(gradient.dtype for gradient in gradients):
        mine = [gradient for gradient in gradients if gradient.dtype == dtype]
        sizes = [gradient.numel() for gradient in mine]
        flat = torch.empty(sum(sizes), dtype=dtype, device=mine[0].device)
        # in each gradient's memory order: foreach kernels add only like to like in one go
        strides = [torch.empty_like(gradient, device="meta").stride() for gradient in mine]
        parts = zip(flat.split(sizes), mine, strides, strict=True)
        buffers.append((flat, [part.as_strided(g.shape, stride) for part, g, stride in parts]))
    return buffers


def _check_gradient(gradient: Tensor, device: torch.device) -> None:
    name = f"the gradient of shape {tuple(gradient.shape)}"
    if type(gradient) is not Tensor or gradient.layout != torch.strided:
        got = f"{type(gradient).__name__}, {gradient.layout}"
        raise ValueError(f"{name} must be dense (nn.Embedding: sparse=False); got {got}")
    _checks.tensor(name, gradient, gradient.shape)
    if gradient.device.type != device.type or device.index not in (None, gradient.device.index):
        raise ValueError(
            f"{name} must be on {device}, where the generator is; got {gradient.device}. Make the "
            "hook when the model is on its device"
        )


def _check_ranks(gradients: list[Tensor], generator: Generator) -> None:
    """Ranks with the same gradients must draw the same noise."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    norms = torch.stack([norm.float() for norm in torch._foreach_norm(gradients)]).cpu()
    ranks: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(ranks, (norms, generator.get_state()))
    replicas = all(torch.equal(norms, others) for others, _ in ranks)
    if replicas and not all(torch.equal(ranks[0][1], state) for _, state in ranks):
        raise ValueError(
            "generator must be equally seeded on all ranks, whose gradients are equal; got "
            "generators in different states"
        )


def _copy_to_host(value: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """A copy, and if it is only queued, the event after which it is there."""
    if not value.is_cuda:
        return value.cpu(), None
    copy, event = value.to("cpu", non_blocking=True), torch.cuda.Event()
    event.record(torch.cuda.current_stream(value.device))
    return copy, event


def _own_generator(optimizer: Optimizer) -> Generator:
    _checks.equal_on_ranks(None)
    device = next(p for group in optimizer.param_groups for p in group["params"]).device
    # not the seed itself: the first weights were drawn with it, and the noise would resemble them
    digest = hashlib.sha256(f"{torch.initial_seed()}/gradient noise".encode()).digest()
    return Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)
