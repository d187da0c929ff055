"""The comparison's tables: errors at equal samples and at equal time, one ranking, an answer."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from hardtrain.data.quality import UNEQUAL
from hardtrain.papers.compare import plan
from hardtrain.papers.compare.costs import sent_backward
from hardtrain.papers.compare.plan import BASELINES
from hardtrain.report import tables
from hardtrain.report.text import format_difference, format_interval, format_number
from hardtrain.runs.run import Run
from hardtrain.statistics import PairedDifference, detectable, holm_corrected, sampling_deviation

Cells = Mapping[str, Mapping[str, Sequence[Run]]]  # runs by setting and arm
Errors = Mapping[str, Mapping[str, pd.Series]]  # by setting and arm, by seed (%)
TO_SPARE = 1.02  # times plain training's time: what measured times can tell
LEARNED = 0.8  # of the error of always guessing one class: above, little was learned


class Judged(NamedTuple):
    """An arm's paired differences to plain training (points): on the data as it is, and the mean
    over the settings, their p corrected."""

    as_it_is: PairedDifference | None
    mean: PairedDifference | None

    @property
    def finding(self) -> str:
        """In a word or two: better, worse, or no difference shown."""
        words = tuple(map(_word, self))
        if words[0] == words[1]:
            return words[0]
        places = zip(words, ("as it is", "on average"), strict=True)
        return ", ".join(f"{word} {where}" for word, where in places if "no" not in word)


def with_balanced_error(results: pd.DataFrame) -> pd.DataFrame:
    """The results with ``balanced_error``: the mean over classes of the error of each."""

    def balanced(text: str) -> float:
        errors = [error for error in json.loads(text or "[]") if error is not None]
        return float(np.mean(errors)) if errors else math.nan

    return results.assign(balanced_error=results["per_class_error"].map(balanced))


def costs(timings: pd.DataFrame, arm: Sequence[Run]) -> tuple[float, float]:
    """Mean seconds of an arm's trainings, and of those that they needed before, which count too."""
    own = timings[timings["key"].isin([run.key for run in arm])]
    training = float((own["seconds"] - own["seconds_evaluating"]).mean())
    before = own["seconds_before"].mean() if "seconds_before" in own else math.nan
    return training, 0.0 if math.isnan(before) else float(before)


def at_equal_time(
    results: pd.DataFrame, history: pd.DataFrame, timings: pd.DataFrame, cells: Cells
) -> dict[str, dict[str, pd.Series]]:
    """By setting and arm the test errors (%) by seed at the last evaluation before plain training's
    mean time was over; nan without one. An arm's mean time goes evenly over its updates."""
    found: dict[str, dict[str, pd.Series]] = {}
    for setting, arms in cells.items():
        limit = sum(costs(timings, arms["plain"]))
        found[setting] = {}
        for name, arm in arms.items():
            training, before = costs(timings, arm)

            def error(_: Run, rows: pd.DataFrame, training=training, before=before) -> float:
                spent = before + training * rows["step"] / rows["step"].max()
                in_time = rows[spent <= limit * TO_SPARE]  # noqa: B023
                return 100 * in_time["test_error"].iloc[-1] if len(in_time) else math.nan

            found[setting][name] = tables.per_run(history, results, arm, error)
    return found


def error_table(
    results: pd.DataFrame, history: pd.DataFrame, cells: Cells, num_train: Mapping[str, int]
) -> pd.DataFrame:
    """Final test error at about equal samples, and its differences to plain training and to a
    random share. ``samples``: through the backward pass, relative to plain training; of the latter
    ``num_train`` an epoch, by setting."""
    labelled = {
        (setting, plan.label(name)): (setting, arm)
        for setting, arms in cells.items()
        for name, arm in arms.items()
    }
    baselines = {
        plan.label(base).lower(): {
            label: cells[setting][base] for label, (setting, _) in labelled.items()
        }
        for base in BASELINES
    }
    shown = {
        "test error (%)": tables.TEST_ERROR,
        "balanced error (%)": tables.Metric("balanced_error", scale=100),
    }
    rows = {label: arm for label, (_, arm) in labelled.items()}
    frame = tables.arms_table(results, rows, shown, names=("setting", "arm"), baselines=baselines)
    samples = []
    for setting, arm in labelled.values():
        plain = cells[setting]["plain"][0].epochs * num_train[setting]
        samples.append(sent_backward(history, arm, num_train[setting]).mean() / plain)
    frame.insert(2, "samples", [format_number(part, 2) for part in samples])
    return frame


def time_table(in_time: Errors, timings: pd.DataFrame, cells: Cells) -> pd.DataFrame:
    """Test error when plain training's time is over, everything counted, and what an arm costs.
    ``in_time``: from `at_equal_time`."""
    rows = []
    for setting, arms in cells.items():
        limit = sum(costs(timings, arms["plain"]))
        for name, arm in arms.items():
            values = in_time[setting][name].dropna()
            row = {
                "setting": setting,
                "arm": plan.label(name),
                "time of its whole training": format_number(sum(costs(timings, arm)) / limit, 2),
                "test error (%)": tables.describe_values(values, 2) if len(values) else "too late",
            }
            for base in BASELINES:
                gap = None if base == name else tables.paired(values, in_time[setting][base])
                row[f"minus {plan.label(base).lower()}"] = gap
            rows.append(row)
    digits = {f"minus {plan.label(base).lower()}": 2 for base in BASELINES}
    return tables.corrected_columns(pd.DataFrame(rows), digits)


def judged_by(test_counts: np.ndarray) -> tables.Metric:
    """The test error, or the balanced one where some test class has twice another's images."""
    present = test_counts[test_counts > 0]
    if present.max() >= UNEQUAL * present.min():
        return tables.Metric("balanced_error", scale=100)
    return tables.TEST_ERROR


def errors_by_seed(results: pd.DataFrame, cells: Cells, metric: tables.Metric) -> Errors:
    """By setting and arm the final errors (%) by seed."""
    return {
        setting: {
            name: metric.scale * tables.metric_by_seed(results, arm, metric.column)
            for name, arm in arms.items()
        }
        for setting, arms in cells.items()
    }


def mean_gaps(errors: Errors) -> dict[str, PairedDifference | None]:
    """By arm the paired difference to plain training (points), the mean over the settings."""
    (some,) = {tuple(arms) for arms in errors.values()}
    means = {name: tables.mean_over_arms([arms[name] for arms in errors.values()])
             for name in some}  # fmt: skip
    return {name: tables.paired(means[name], means["plain"]) for name in some if name != "plain"}


def judged(errors: Errors) -> dict[str, Judged]:
    """By arm its differences to plain training; p is corrected over both kinds of all arms."""
    first = next(iter(errors))  # the data as it is
    kinds = mean_gaps({first: errors[first]}), mean_gaps(errors)
    corrected = iter(holm_corrected([gap for gaps in kinds for gap in gaps.values()]))
    return {name: Judged(*pair) for name, *pair in zip(
        kinds[0], [next(corrected) for _ in kinds[0]], corrected, strict=True)}  # fmt: skip


def relative_cost(timings: pd.DataFrame, cells: Cells, name: str) -> float:
    """The time of an arm's trainings, relative to plain training's, over all settings."""
    own, plain = (
        sum(sum(costs(timings, arms[which])) for arms in cells.values())
        for which in (name, "plain")
    )
    return own / plain


def ranking_table(
    errors: Errors, in_time: Errors, timings: pd.DataFrame, cells: Cells
) -> pd.DataFrame:
    """One ranking, by the mean over the settings, best first; beside it the data as it is.

    Args:
        errors: final ones, from `errors_by_seed`.
        in_time: from `at_equal_time`.
    """
    found, later = judged(errors), mean_gaps(in_time)
    order = sorted(found, key=lambda name: found[name].mean.mean if found[name].mean else math.inf)
    frame = pd.DataFrame(
        {
            "arm": plan.label(name),
            "as it is, minus plain (points)": format_difference(found[name].as_it_is),
            "mean of the settings, minus plain (points)": format_difference(found[name].mean),
            "smallest mean that could be seen": format_number(smallest_effect(found, name), 2),
            "time": format_number(relative_cost(timings, cells, name), 2),
            "mean at equal time, minus plain (points)": _uncorrected(later[name]),
            "finding": found[name].finding,
        }
        for name in order
    )
    frame.attrs["questions"] = num_questions(found)
    return frame


def num_questions(found: Mapping[str, Judged]) -> int:
    return sum(gap is not None and not math.isnan(gap.p) for pair in found.values() for gap in pair)


def smallest_effect(found: Mapping[str, Judged], name: str) -> float:
    """The true mean difference (points) that these seeds would have found, 4 times in 5 or so."""
    gap, questions = found[name].mean, num_questions(found)
    effect = detectable(gap, questions=questions) if gap and questions else math.nan
    return effect if 0 < effect < math.inf else math.nan


def _uncorrected(gap: PairedDifference | None) -> str:
    return "too late" if gap is None else format_interval(gap, signed=True)


def answer(errors: Errors, in_time: Errors, timings: pd.DataFrame, cells: Cells) -> str:
    """The plain sentences: which arms beat plain training here by more than chance, at what cost,
    which were worse, and what could have been seen."""
    found, first = judged(errors), next(iter(errors))

    def those(word: str, where: int) -> str:
        gaps = {name: pair[where] for name, pair in found.items() if _word(pair[where]) == word}
        later = mean_gaps(in_time if where else {first: in_time[first]}) if gaps else {}
        texts = []
        for name in sorted(gaps, key=lambda name: gaps[name].mean):
            text = f"{plan.label(name)} ({gaps[name].mean:+.2f} points"
            if word == "better":
                text += f", {relative_cost(timings, cells, name):.2f} times the time; at equal "
                text += f"time: {_uncorrected(later[name])}"
            texts.append(f"{text})")
        return ", ".join(texts)

    sentences = []
    places = ("On the data as it is", "On average over the settings")[: len(errors)]
    for where, place in enumerate(places):
        better, worse = those("better", where), those("worse", where)
        text = f"better than plain training by more than chance: {better}"
        text = text if better else "no strategy beat plain training by more than chance"
        sentences.append(f"{place}, {text}.{f' Worse: {worse}.' if worse else ''}")
    num = len(next(iter(errors.values()))["plain"])
    could = {name: effect for name in found if (effect := smallest_effect(found, name)) > 0}
    if not could:
        return " ".join([*sentences, f"{num} seeds cannot tell an effect from chance."])
    least, most = (pick(could, key=could.__getitem__) for pick in (min, max))
    effects = f"{could[least]:.2f} points ({plan.label(least)})"
    if most != least:
        effects += f" to {could[most]:.2f} ({plan.label(most)})"
    sentences.append(
        f"With {num} seeds and {num_questions(found)} questions a mean effect below {effects} "
        "would mostly have been missed."
    )
    return " ".join(sentences)


def hardly_learned(errors: Errors, test_counts: np.ndarray) -> str:
    """A sentence where plain training, on the data as it is, is hardly better than guessing."""
    plain = next(iter(errors.values()))["plain"].dropna()
    if plain.empty or plain.mean() <= LEARNED * _by_guess(test_counts):
        return ""
    return (
        "**Plain training is hardly better than guessing here:** before any of this counts, give "
        "more minutes, epochs or images, or another lr."
    )


def cautions_table(
    results: pd.DataFrame, cells: Cells, errors: Errors, test_counts: np.ndarray
) -> pd.DataFrame:
    """What to know before believing the answer.

    Args:
        test_counts: test images of each class ``(K,)``.
    """
    arms, present = next(iter(cells.values())), test_counts[test_counts > 0]
    plain = next(iter(errors.values()))["plain"].dropna()
    metric, total = judged_by(test_counts), sum(len(arms["plain"]) for arms in cells.values())
    by = "the balanced error (at equal time: the test error)"
    moved = tables.metric_by_seed(results, arms["plain"], "test_error").mean()
    moved = 100 * sampling_deviation(moved, present.sum()) if moved >= 0 else math.nan

    def counted(chosen: pd.Series) -> str:
        keys = set(results.loc[chosen, "key"])
        counts = {name: sum(run.key in keys for other in cells.values() for run in other[name])
                  for name in arms}  # fmt: skip
        named = [f"{plan.label(name)} {count}" for name, count in counts.items() if count]
        return f"of {total} each: {', '.join(named)}" if named else "none"

    alike = [plan.label(name) for name in arms if name != "plain" and len(plain)
             and all(own[name].equals(own["plain"]) for own in errors.values())]  # fmt: skip
    rows = {
        "judged by": by if metric.column == "balanced_error" else "the test error",
        "test images of a class": f"{present.min()} to {present.max()}",
        "error of plain training, as it is (%)": tables.describe_values(plain, 2),
        "error of always guessing one class (%)": format_number(_by_guess(test_counts), 2),
        f"what another {present.sum()} test images would move it by (points, one standard "
        "deviation); seeds share this part": format_number(moved, 2),
        "trainings that diverged": counted(results["status"] == "diverged"),
        "that ended predicting one class only": counted(tables.one_class(results)),
        "as plain training in every one (some begin after two epochs)": ", ".join(alike) or "none",
    }
    return pd.DataFrame({"before believing it": rows.keys(), "here": rows.values()})


def _by_guess(test_counts: np.ndarray) -> float:
    """The error (%) of always saying one class, the largest."""
    if judged_by(test_counts).column == "balanced_error":
        return float(100 * (1 - 1 / np.count_nonzero(test_counts)))
    return float(100 * (1 - test_counts.max() / test_counts.sum()))


def _word(gap: PairedDifference | None) -> str:
    """By the corrected p value."""
    if gap is None or math.isnan(gap.p) or gap.p >= 0.05:
        return "no difference shown"
    return "better" if gap.mean < 0 else "worse"
