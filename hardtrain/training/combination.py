"""Methods that act in different places, together in one run: ``method="trimming+gradient_noise"``.

A method acts in up to three places: it chooses which samples are in a batch, it decides how their
losses become one number, it changes the gradient before a step. Two that act in one place do not
combine, because one of them would be left out. An option has its own name, or ``METHOD_OPTION``
where two methods have one of that name.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from hardtrain.data.batches import Batches
from hardtrain.data.samplers import BalancedBatchSampler, UniformBatchSampler
from hardtrain.errors import ParameterError
from hardtrain.training.loop import Method
from hardtrain.training.pieces import mean_objective

_PLACES: dict[str, Callable[[Method], bool]] = {
    "choose which samples are in a batch": lambda method: (
        not isinstance(method.batches, Batches)
        or type(method.batches.batch_sampler) not in (UniformBatchSampler, BalancedBatchSampler)
    ),
    "decide how the losses of a batch become one number": lambda method: (
        method.objective is not mean_objective
    ),
    "change the gradient before a step": lambda method: bool(method.hooks),
}


def combined(name: str, functions: Mapping[str, Any]) -> Any:
    """The method ``name``, which does what each of ``functions`` does, in its place.

    Raises:
        ParameterError: one is named twice, or is ``plain``, which does nothing that could be added;
            when it is built, two act in one place.
    """
    if len(functions) <= name.count("+"):
        raise ParameterError(f"method = {name!r} names a method twice")
    if "plain" in functions:
        raise ParameterError(f"method = {name!r}: plain training is what methods change; leave it "
                             "out")  # fmt: skip
    own = {part: inspect.signature(function).parameters for part, function in functions.items()}
    times = Counter(option for options in own.values() for option in options)
    known = {}  # the combination's option: the method that has it, and its parameter there
    for part, options in own.items():
        for option in options.values():
            if option.kind is option.KEYWORD_ONLY:
                shared = times[option.name] > 1
                key = f"{part.rpartition(':')[2]}_{option.name}" if shared else option.name
                known[key] = (part, option)

    def method(run: Any, data: Any, model: Any, **options: Any) -> Method:
        parts = {}
        for part, function in functions.items():
            given = {known[k][1].name: v for k, v in options.items() if known[k][0] == part}
            parts[part] = function(run, data, model, **given)
        return _merged(name, parts)

    first = [p for p in next(iter(own.values())).values() if p.kind is not p.KEYWORD_ONLY]
    renamed = [option.replace(name=key) for key, (_, option) in known.items()]
    method.__signature__ = inspect.Signature([*first, *renamed])  # type: ignore[attr-defined]
    method.VERSION = [f.VERSION for f in functions.values()]  # type: ignore[attr-defined]
    return method


def _merged(name: str, parts: Mapping[str, Method]) -> Method:
    in_place = []
    for place, acts in _PLACES.items():
        acting = [part for part, method in parts.items() if acts(method)]
        if len(acting) > 1:
            both = " and ".join(acting)
            raise ParameterError(f"method = {name!r}: {both} both {place}; combine methods that "
                                 "act in different places")  # fmt: skip
        in_place.append(parts[acting[0] if acting else next(iter(parts))])
    chooses, decides, _ = in_place
    every = list(parts.values())

    def start_epoch(epoch: int) -> None:
        for method in every:
            method.start_epoch(epoch)

    def advance() -> None:
        for method in every:
            method.advance()

    def observe(indices: Any, losses: Any) -> None:
        for method in every:
            method.observe(indices, losses)

    return Method(
        chooses.batches,
        decides.objective,
        observe=observe,
        hooks=[hook for method in every for hook in method.hooks],
        start_epoch=start_epoch,
        log=lambda: {k: v for method in every for k, v in method.log().items()},
        state={f"{part}: {k}": v for part, m in parts.items() for k, v in m.state.items()},
        # who decides about the losses knows best what counted
        artefacts={k: v for m in (*every, decides) for k, v in m.artefacts.items()},
        # steps are replayed where all parts allow it
        graph_key=None
        if any(method.graph_key is None for method in every)
        else lambda: tuple(method.graph_key() for method in every if method.graph_key),
        advance=advance,
        generators=[generator for method in every for generator in method.generators],
        whole_passes=chooses.whole_passes,
        held_out=chooses.held_out,
    )
