"""The comparison's tables on numbers that are made up: equal time, one ranking, planted effects."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hardtrain import paired_difference
from hardtrain.papers.compare import figures, plan
from hardtrain.papers.compare import tables as compare_tables

SEEDS = [0, 1, 2, 3, 4]
NAMES = ("plain", "random_share", "focal", "trimming", "reducible_loss")


def cells_of(settings=("as it is",)):
    found = {}
    for number, setting in enumerate(settings):
        base = {"dataset": "digits", "network": "mlp", "lr": 0.01 * (number + 1)}
        arms = plan.planned(base, SEEDS, 4, small_network="mlp")
        found[setting] = {name: arms[name] for name in NAMES}
    return found


def results_of(cells, error):
    """``error(setting, arm, seed)`` as the final test error."""
    rows = [
        {"key": run.key, "status": "finished", "seed": run.seed,
         "test_error": error(setting, name, run.seed)}
        for setting, arms in cells.items() for name, arm in arms.items() for run in arm
    ]  # fmt: skip
    frame = pd.DataFrame(rows)
    classes = [json.dumps([value, value + 0.2, None]) for value in frame["test_error"]]
    return compare_tables.with_balanced_error(frame.assign(per_class_error=classes))


def timings_of(cells, seconds, before=None):
    rows = [
        {"key": run.key, "seconds": seconds.get(name, 10.0) + 1, "seconds_evaluating": 1.0,
         "seconds_before": (before or {}).get(name, math.nan)}
        for arms in cells.values() for name, arm in arms.items() for run in arm
    ]  # fmt: skip
    return pd.DataFrame(rows)


def history_of(cells, num=4, samples=None):
    """Errors that fall 40, 30, 20, 10 % over four evaluations of 8 updates each."""
    rows = []
    for arms in cells.values():
        for name, arm in arms.items():
            for run in arm:
                for i in range(1, num + 1):
                    counted = {} if name not in (samples or {}) else {"samples": samples[name] * i}
                    rows.append({"key": run.key, "epoch": i * run.epochs / num, "step": 8 * i,
                                 "test_error": 0.5 - 0.1 * i} | counted)  # fmt: skip
    return pd.DataFrame(rows)


def noise(seed, spread=0.02):
    rng = np.random.default_rng(seed)
    draws = {}
    return lambda setting, name, s: draws.setdefault(
        (setting, name, s), 0.2 + spread * rng.normal()
    )


def test_balanced_error_is_the_mean_over_classes_that_there_are():
    results = results_of(cells_of(), lambda *_: 0.1)
    assert results["balanced_error"].tolist() == pytest.approx([0.2] * len(results))


def test_errors_stand_beside_both_baselines_and_the_samples_that_were_sent_backward():
    cells = cells_of()
    results = results_of(
        cells, lambda _, name, seed: 0.2 + 0.01 * (seed - 2 - 5 * (name == "focal"))
    )
    history = history_of(cells, samples={"random_share": 50, "reducible_loss": 25})
    table = compare_tables.error_table(results, history, cells, {"as it is": 50})
    rows = table.set_index("arm")
    assert rows.loc["Focal loss", "test error (%)"].startswith("15.00 ±")
    assert rows.loc["Focal loss", "test error (%) minus plain training"].startswith("-5.00")
    assert rows.loc["Random share", "test error (%) minus plain training"].startswith(
        "+0.00 in each"
    )
    assert rows.loc["Plain training", "test error (%) minus plain training"] == ""
    # plain: 4 epochs of 50 samples
    assert rows["samples"].tolist() == ["1.00", "1.00", "1.00", "1.00", "0.50"]


def test_equal_time_stops_who_takes_longer_and_counts_what_came_before():
    cells = cells_of()
    results, history = results_of(cells, lambda *_: 0.1), history_of(cells)
    seconds = {"plain": 10.0, "random_share": 5.0, "focal": 21.0, "trimming": 13.0,
               "reducible_loss": 8.0}  # fmt: skip
    timings = timings_of(cells, seconds, before={"reducible_loss": 5.0})
    errors = compare_tables.at_equal_time(results, history, timings, cells)["as it is"]
    found = {name: set(values.round(6)) for name, values in errors.items()}
    # of four evaluations: all; all, in half the time; 1 (at 5.25 of 10); 3 (at 9.75); 2 (at 5 + 4)
    assert found == {"plain": {10.0}, "random_share": {10.0}, "focal": {40.0}, "trimming": {20.0},
                     "reducible_loss": {30.0}}  # fmt: skip
    late = timings_of(cells, seconds, before={"reducible_loss": 9.0})
    table = compare_tables.time_table(results, history, late, cells).set_index("arm")
    assert table.loc["Reducible loss", "test error (%)"] == "too late"
    assert table.loc["Reducible loss", "time of its whole training"] == "1.70"
    assert table.loc["Focal loss", "minus plain training"].startswith("+30.00")


def test_the_smallest_effect_is_found_with_the_stated_power():
    rng = np.random.default_rng(0)
    deviation, n = 1.0, 6
    # the spread of one experiment is the true one
    values = stats.zscore(rng.normal(size=n), ddof=1) * deviation
    gap = paired_difference(dict(enumerate(values)), dict.fromkeys(range(n), 0.0))
    effect = compare_tables.smallest_effect(gap)
    found = stats.ttest_1samp(rng.normal(effect, deviation, (20_000, n)), 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(compare_tables.POWER, abs=0.03)
    assert math.isnan(compare_tables.smallest_effect(None))


def test_planted_help_and_harm_are_found_and_said():
    cells = cells_of(("as it is", "wrong labels"))
    level, effects = noise(1, spread=0.005), {"focal": -0.06, "trimming": 0.08}
    results = results_of(cells, lambda *who: level(*who) + effects.get(who[1], 0.0))
    timings = timings_of(cells, {"focal": 15.0})
    table = compare_tables.ranking_table(results, timings, cells).set_index("arm")
    assert table.index.tolist()[0] == "Focal loss"
    assert table["finding"].to_dict() == {
        "Focal loss": "better",
        "Mini-batch trimming": "worse",
        "Random share": "no difference shown",
        "Reducible loss": "no difference shown",
    }
    assert table.loc["Focal loss", "time"] == "1.50"
    said = compare_tables.answer(results, cells, timings)
    assert said.startswith("Better than plain training here, by more than chance: Focal loss (-6.")
    assert "1.50 times the time). Worse: Mini-batch trimming. With these seeds" in said


def test_none_is_said_where_plain_training_is_best():
    cells = cells_of()
    level = noise(2, spread=0.005)
    results = results_of(cells, lambda *who: level(*who) + 0.05 * (who[1] != "plain"))
    said = compare_tables.answer(results, cells, timings_of(cells, {}))
    assert said.startswith("None beat plain training here by more than chance. Worse: ")


def test_pure_noise_has_a_winner_in_at_most_one_of_twenty_comparisons():
    cells = cells_of()
    empty = results_of(cells, lambda *_: 0.2)
    rng = np.random.default_rng(3)
    winners = 0
    for _ in range(200):
        results = empty.assign(test_error=0.2 + 0.02 * rng.normal(size=len(empty)))
        gaps = compare_tables.differences_to_plain(results, cells)
        corrected = compare_tables.holm_corrected(list(gaps.values()))
        winners += any(compare_tables._finding(gap) == "better" for gap in corrected)
    # half of 5 % find something worse instead; 10 of 200 would be the whole 5 %
    assert winners <= 10


def test_changes_by_class_are_paired_differences_in_points():
    cells = cells_of()["as it is"]
    errors = {"plain": [0.1, 0.2, 0.0], "focal": [0.0, 0.3, 0.0]}
    arms = {name: cells[name] for name in errors}
    rows = [
        {"key": run.key, "status": "finished", "seed": run.seed,
         "per_class_error": json.dumps(errors[name])}
        for name, arm in arms.items() for run in arm
    ]  # fmt: skip
    changes = figures.change_by_class(pd.DataFrame(rows), arms)
    assert changes.tolist() == [[0, 0, 0], pytest.approx([-10, 10, 0])]
