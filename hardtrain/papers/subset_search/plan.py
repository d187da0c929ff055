"""Subset search: the trainings of a profile, from ensembles to the targets that they choose.

Every seed's subset comes from an ensemble of that seed's own, as far as there are as many: then
an interval over seeds holds the luck of the selection, too. ``profile`` has the notebook's
parameters as attributes. ``book`` trains and keeps arrays: a ``report.notebook.Notebook``, or
anything with its ``run`` and ``figure_data``.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hardtrain.papers.subset_search import ensembles, selection
from hardtrain.papers.subset_search.ensembles import SPOKEN, ensemble_of
from hardtrain.runs.run import Run

Arrays = Mapping[str, np.ndarray]


class Search(NamedTuple):
    """What one data set's search has chosen and trains; see `search`."""

    run: Run  # the target on all data, of the first seed
    labels: np.ndarray  # (N,)
    ensembles: list[list[Run]]  # on all data
    scores: list[Arrays | None]  # of each of them
    grown: dict[float, list[np.ndarray]]  # by size, for each ensemble the build-up's subset
    on_parts: list[Run]  # the build-up's trainings
    chosen: dict[tuple[str, float], dict[int, np.ndarray]]  # by kind and size, then by seed
    arms: dict[tuple[str, float], list[Run]]  # the targets of the same; ("all data", 1.0) too


def plain_run(profile: Any, dataset: str, **places: Any) -> Run:
    """A target on all data: SGD with Nesterov momentum and a cosine schedule, a common recipe."""
    p = profile
    recipe = dict(lr=p.lr, momentum=p.momentum, nesterov=True, weight_decay=p.weight_decay)
    recipe |= dict(schedule="cosine", augment=p.augment, precision=p.precision)
    sizes = dict(epochs=p.epochs, batch_size=p.batch_size, channels_last=p.channels_last)
    sizes |= dict(train_size=p.train_size, test_size=p.test_size)
    sizes |= dict(evaluate_every=-(-p.epochs // 2))
    return Run(dataset=dataset, network=p.networks[0], **recipe, **sizes, **places)


def ensembles_on(run: Run, profile: Any, num_samples: int) -> list[list[Run]]:
    """The profile's ensembles, each a list of trainings, on the samples of ``run``."""
    size = (profile.ensemble_runs, profile.checkpoints, num_samples)
    return [ensemble_of(run, *size, number=number) for number in range(profile.num_ensembles)]


def scored(
    book: Any, name: str, make: Callable, groups: Sequence[Sequence[Run]], **settings: Any
) -> list[Arrays | None]:
    """Train ensembles; for each the arrays that ``make`` gives, kept as ``NAME_0.npz`` and so on.
    ``None`` where runs are missing and nothing is to be trained."""
    if not groups:
        return []
    book.run([run for group in groups for run in group])
    return [
        book.figure_data(f"{name}_{i}", make, runs=runs, artefact=runs[0].keep[0], **settings)
        for i, runs in enumerate(groups)
    ]


def search(book: Any, run: Run, profile: Any) -> Search:
    """Train a data set's ensembles, score its samples by them, and plan the targets.

    Args:
        book: see above.
        run: from `plain_run`.
        profile: with ``num_ensembles``, ``ensemble_runs``, ``checkpoints``, ``acquisition``,
            ``kinds`` (of subsets, as `selection.candidates` names them), ``fractions``,
            ``start``, ``seeds``.
    """
    stem = Path(run.dataset).stem
    arrays = book.figure_data(f"fig_8_labels_{stem}", selection.training_labels, runs=[run])
    labels = arrays["labels"].astype(int)
    groups = ensembles_on(run, profile, len(labels))
    scores = scored(book, f"fig_1_scores_{stem}", ensembles.score_arrays, groups)
    grown, on_parts = {}, []
    if "build-up" in profile.kinds:
        grown, on_parts = build_up(book, run, profile, len(labels))
    chosen = {(kind, size): {} for size in profile.fractions for kind in kinds_of(profile)}
    for fraction in profile.fractions:
        size = selection.subset_size(run, len(labels), fraction)
        for seed, number in ensemble_by_seed(profile).items():
            part = grown[fraction][number] if fraction in grown else None
            options = (labels, size, seed, profile.acquisition, part)
            for kind, indices in selection.candidates(scores[number], *options).items():
                if (kind, fraction) in chosen:
                    chosen[kind, fraction][seed] = indices
    whole = dict.fromkeys(profile.seeds, np.arange(len(labels)))
    arms = {("all data", 1.0): selection.targets(run, whole, len(labels))}
    arms |= {key: selection.targets(run, part, len(labels)) for key, part in chosen.items()}
    return Search(run, labels, groups, scores, grown, on_parts, chosen, arms)


def build_up(
    book: Any, run: Run, profile: Any, num_samples: int
) -> tuple[dict[float, list[np.ndarray]], list[Run]]:
    """By size the subset that each ensemble has grown to, and the trainings for that.

    It begins with a random part ``start``; an ensemble on that chooses what is added, up to the
    smallest of ``fractions``; a new one on that; and so on. It ends where runs are missing and
    nothing is to be trained.
    """
    first = ensembles_on(run, profile, num_samples)
    size = selection.subset_size(run, num_samples, profile.start)
    chosen = [selection.choose(np.zeros(num_samples), size, seed=group[0].seed) for group in first]
    grown, trained = {}, []
    for step, fraction in enumerate(profile.fractions):
        parts = [selection.on_subset(run, indices, num_samples) for indices in chosen]
        groups = [
            ensembles_on(part, profile, len(indices))[number]
            for number, (part, indices) in enumerate(zip(parts, chosen, strict=True))
        ]
        name = f"fig_1_grown_{Path(run.dataset).stem}_{step}"
        scores = scored(book, name, ensembles.score_arrays, groups)
        trained += [run for group in groups for run in group]
        if None in scores:
            break
        size = selection.subset_size(run, num_samples, fraction)
        chosen = [
            selection.grow(indices, found[profile.acquisition], size, seed=group[0].seed)
            for indices, found, group in zip(chosen, scores, first, strict=True)
        ]
        grown[fraction] = chosen
    return grown, trained


def kinds_of(profile: Any) -> list[str]:
    """The kinds of subsets that are trained on: by the profile's ``acquisition`` and random ones
    always."""
    return list(dict.fromkeys([SPOKEN[profile.acquisition], "random", *profile.kinds]))


def ensemble_by_seed(profile: Any) -> dict[int, int]:
    """Which ensemble chooses for each seed: in turn.

    Example:
        >>> from types import SimpleNamespace
        >>> ensemble_by_seed(SimpleNamespace(seeds=[3, 4, 5], num_ensembles=2))
        {3: 0, 4: 1, 5: 0}
    """
    return {seed: i % profile.num_ensembles for i, seed in enumerate(profile.seeds)}


def by_members(found: Search, profile: Any, fewer: Sequence[Arrays | None], size: int) -> dict:
    """Targets on the subsets that the first members of each seed's ensemble choose.

    Args:
        found: from `search`.
        fewer: for each ensemble what `selection.subsets_by_members` gives.
        size: of the subsets.

    Returns:
        Runs by function of ``profile.compared`` and number of members. A seed whose ensemble is
        missing, or lost a training and so has other numbers of members, has none.
    """
    known = [arrays for arrays in fewer if arrays is not None]
    reached = known[0]["num_members"].tolist() if known else []
    seeds = {
        seed: fewer[number]
        for seed, number in ensemble_by_seed(profile).items()
        if fewer[number] is not None and fewer[number]["num_members"].tolist() == reached
    }
    arms = {}
    for function in profile.compared:
        for row, count in enumerate(reached):
            parts = {
                seed: selection.choose(selection.ranks_of(arrays, row, function), size, seed=seed)
                for seed, arrays in seeds.items()
            }
            arms[function, count] = selection.targets(found.run, parts, len(found.labels))
    return arms
