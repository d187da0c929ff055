"""One training step: eager, or on a GPU captured once and replayed.

A step is a hundred small kernels, and a GPU waits for the host to launch each of them. A CUDA graph
holds them all: it is launched at once, and does the same to the same memory. So whatever changes
from step to step lies in a tensor that is changed in place: batch, learning rate, noise's sigma.
"""

import contextlib
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from hardtrain.errors import ParameterError
from hardtrain.training.pieces import precision_context

WARM_UP = 3  # real steps before a capture, in which libraries and optimiser make what they keep
MOST_GRAPHS = 8  # that are kept; the oldest goes first


def replays(device: torch.device) -> bool:
    """Whether steps are replayed there: on CUDA devices, unless ``$HARDTRAIN_REPLAY`` is 0."""
    return device.type == "cuda" and os.environ.get("HARDTRAIN_REPLAY") != "0"


class Step:
    """The plain step: forward, backward, optimiser.

    ``step(batch, rate)`` gives the losses ``(B,)`` and the objective ``(1,)``, both detached.
    """

    def __init__(self, run: Any, model: nn.Module, method: Any, optimizer: torch.optim.Optimizer):
        self.run, self.method, self.optimizer = run, method, optimizer
        if run.compiled:  # or only the first eight networks of a process are
            torch.compiler.reset()
        self.model = torch.compile(model) if run.compiled else model
        self.device = next(model.parameters()).device
        self.precision = precision_context(run.precision, self.device)
        self.rate = torch.zeros((), device=self.device) if replays(self.device) else None

    def __call__(self, batch: Any, rate: float) -> tuple[Tensor, Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = rate if self.rate is None else self.rate.fill_(rate)
        self.method.advance()
        return self.take(batch)

    def take(self, batch: Any) -> tuple[Tensor, Tensor]:
        with self.precision:
            losses, loss = self.method.objective(self.model, batch)
        if not loss.requires_grad:
            raise ParameterError(
                f"method {self.run.method!r} gave a loss that depends on no parameter"
            )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return losses.detach(), loss.detach().view(1)


class ReplayedStep(Step):
    """The same, captured for each shape of batch and each ``method.graph_key()``, and replayed.

    The bits are those of eager steps with the same optimiser, but for kernels that add in any
    order. What cannot be captured is trained eagerly, with a warning.

    ``recorder`` captures: of a `CudaRecorder`'s form.
    """

    def __init__(self, *args: Any, recorder: Any = None):
        super().__init__(*args)
        self.recorder = recorder or CudaRecorder(self.device, self.method.generators)
        self.graphs: dict[tuple, _Graph] = {}
        self.taken: Counter[tuple] = Counter()  # eager steps
        self.captures = True

    def take(self, batch: Any) -> tuple[Tensor, Tensor]:
        shapes = [(part.shape, part.stride(), part.dtype) for part in _tensors(batch)]
        key = (*shapes, self.method.graph_key())
        if self.captures and key not in self.graphs and self.taken[key] >= WARM_UP:
            self._capture(key, batch)
        if key in self.graphs:
            return self.graphs[key](batch)
        self.taken[key] += 1
        with self.recorder.aside():
            losses, objective = super().take(batch)
        return losses.clone(), objective.clone()  # in memory of the stream in use

    def _capture(self, key: tuple, batch: Any) -> None:
        try:
            graph = _Graph(self.recorder, super().take, batch)
        except RuntimeError as error:
            warnings.warn(f"{self.run} is trained without CUDA graphs: {error}", stacklevel=2)
            self.captures = False
            self.graphs.clear()  # they draw from the generators as these were
            return
        if len(self.graphs) == MOST_GRAPHS:
            del self.graphs[next(iter(self.graphs))]
        self.graphs[key] = graph


class _Graph:
    """A captured step of a batch, with the memory that it reads and writes."""

    def __init__(self, recorder: Any, take: Callable[[Any], Sequence[Tensor]], batch: Any):
        self.batch = _cloned(batch)
        # one tensor, so that one copy is taken out
        self.replay, self.values = recorder.record(lambda: torch.cat([*take(self.batch)]))

    def __call__(self, batch: Any) -> tuple[Tensor, Tensor]:
        torch._foreach_copy_(list(_tensors(self.batch)), list(_tensors(batch)))
        self.replay()
        values = self.values.clone()
        return values[:-1], values[-1:]


class CudaRecorder:
    """Captures functions as CUDA graphs, which share their memory: only one runs at a time, and
    what they give is copied before the next."""

    def __init__(self, device: torch.device, generators: Sequence[torch.Generator]):
        self.generators = generators
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """On the stream of the captures, after all that is queued, and before all that will be."""
        before = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(before)
        with torch.cuda.stream(self.stream):
            yield
        before.wait_stream(self.stream)

    def record(self, function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """A function that does again what ``function`` would do now, and where its result lies.
        Nothing of it is done yet."""
        graph, device = torch.cuda.CUDAGraph(), self.stream.device
        if register := getattr(graph, "register_generator_state", None):  # newer torch sees them
            for generator in self.generators:
                register(generator)
        before = torch.cuda.current_stream(device)
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                values = function()
        except BaseException:
            self._end_capture(before)
            raise
        before.wait_stream(self.stream)
        return graph.replay, values

    def _end_capture(self, before: Any) -> None:
        """What torch before 2.13 leaves undone when a capture fails: its stream stays the current
        one, the allocator and the generators stay in the capture, and nothing draws any more."""
        torch.cuda.set_stream(before)
        device, core = self.stream.device.index, cast(Any, torch._C)
        end = getattr(core, "_cuda_endAllocateToPool", None)  # its name from torch 2.8
        with contextlib.suppress(RuntimeError):  # there is no capture
            (end or core._cuda_endAllocateCurrentStreamToPool)(device, self.pool)
        for generator in (torch.cuda.default_generators[device], *self.generators):
            generator.graphsafe_set_state(generator.clone_state())


def make_step(run: Any, model: nn.Module, method: Any, optimizer: torch.optim.Optimizer) -> Step:
    """The step for the model's device and what the method allows. A network of one's own may look
    at numbers on the host, which a replayed step would not: its steps are eager."""
    replayed = method.graph_key is not None and replays(next(model.parameters()).device)
    replayed = replayed and ":" not in run.network
    return (ReplayedStep if replayed else Step)(run, model, method, optimizer)


def _tensors(batch: Any) -> Iterator[Tensor]:
    """The tensors of a batch, also of one inside it."""
    for part in batch:
        if isinstance(part, Tensor):
            yield part
        else:
            yield from _tensors(part)


def _cloned(batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return batch.clone()
    return type(batch)(*map(_cloned, batch))
