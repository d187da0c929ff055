"""What each arm gains, what a sample costs, and the four at equal epochs, on numbers made up."""

import math

import numpy as np
import pandas as pd
import pytest
from papers.compare.test_tables import cells_of, history_of, noise, results_of, timings_of

from hardtrain.papers.compare import costs, gains, plan
from hardtrain.papers.compare.tables import at_equal_time


def found_for(effects, seconds=None):
    cells = cells_of(("as it is", "wrong labels"))
    level = noise(1, spread=0.005)
    results = results_of(cells, lambda *who: level(*who) + effects.get(who[1], 0.0))
    timings = timings_of(cells, seconds or {})
    in_time = at_equal_time(results, history_of(cells), timings, cells)
    return gains.gains(results, in_time, cells), cells, results


def test_planted_gains_are_said_against_both_baselines():
    found, *_ = found_for({"focal": -0.06, "trimming": 0.08, "random_share": -0.06})
    said = dict(zip(("focal", "trimming", "reducible_loss"), gains.sentences(found), strict=True))
    assert said["focal"].startswith("- **Focal loss**: at equal samples better than plain training")
    assert "and not told apart from the random share" in said["focal"]
    assert "worse than plain training (+7." in said["trimming"]
    # the made-up histories end alike, so at equal time there is no gain
    assert said["focal"].endswith("; at equal time no gain is seen.")
    assert "gain" not in said["trimming"]
    table = gains.gains_table(found).set_index("arm")
    assert table.index[0] == "Random share"
    mean = found["focal"]["equal samples, minus plain training"].mean
    assert table.loc["Focal loss"].iloc[0].startswith(f"{mean:+.2f}")


def test_a_gain_that_time_leaves_is_kept():
    found, cells, results = found_for({"focal": -0.06})
    history = history_of(cells)
    errors = results.set_index("key")["test_error"]
    history["test_error"] = history["key"].map(errors)  # from the first evaluation on
    in_time = at_equal_time(results, history, timings_of(cells, {"focal": 19.0}), cells)
    found = gains.gains(results, in_time, cells)
    assert gains.sentences(found)[0].endswith("; it keeps its gain.")


def test_an_arm_that_is_too_late_in_one_setting_is_not_compared_at_equal_time():
    cells = cells_of(("as it is", "wrong labels"))
    results = results_of(cells, lambda *_: 0.1)
    late = timings_of(cells, {}, before={"reducible_loss": 11.0})
    keys = {run.key for run in cells["wrong labels"]["reducible_loss"]}
    late.loc[late["key"].isin(keys), "seconds_before"] = math.nan
    in_time = at_equal_time(results, history_of(cells), late, cells)
    found = gains.gains(results, in_time, cells)
    assert found["reducible_loss"]["equal time, minus plain training"] is None
    assert "; at equal time too late, or not run" in gains.sentences(found)[-1]


def test_what_is_sent_backward_is_counted_or_every_sample_of_an_epoch():
    arms = cells_of()["as it is"]
    history = history_of({"as it is": arms}, samples={"random_share": 50})
    sent = {name: costs.sent_backward(history, arm, 60).tolist() for name, arm in arms.items()}
    assert sent["plain"] == [240.0] * 5
    assert sent["random_share"] == [200.0] * 5
    done = history[history["key"] != arms["plain"][0].key]
    assert len(costs.sent_backward(done, arms["plain"], 60)) == 4


def test_times_are_samples_at_their_measured_cost_and_what_came_before():
    arms = cells_of()["as it is"]
    history = history_of({"as it is": arms}, samples={"random_share": 50, "reducible_loss": 60})
    measured = {
        "names": np.array([*arms, costs.SMALL]),
        "seconds": np.array([[2.0, 3, 2, 2, 8, 1], [1, 1.5, 1, 1, 4, 0.5], [1, 9, 9, 9, 9, 9]]),
    }
    relative = costs.relative(measured)
    assert relative["random_share"] == 1.5
    assert relative[costs.SMALL] == 0.5
    rows = costs.as_timings(relative, history, arms, 60).set_index("key")
    assert rows.loc[arms["plain"][0].key, "seconds"] == 4 * 60
    assert rows.loc[arms["random_share"][0].key, "seconds"] == 1.5 * 200
    own = rows.loc[arms["reducible_loss"][0].key]
    assert own["seconds"] == 4 * 240
    assert own["seconds_before"] == 0.5 * 4 * 60  # both halves, four epochs
    assert math.isnan(rows.loc[arms["plain"][0].key, "seconds_before"])


@pytest.mark.parametrize("missing", [False, True])
def test_equal_epochs_stand_beside_the_papers_words(missing):
    longer = plan.at_equal_epochs({"dataset": "digits", "network": "mlp"}, range(5), 12)
    sent = dict(zip(longer, (1.0, 0.66, 0.64, 0.65), strict=True))
    level, cells = noise(3, spread=0.002), {"as it is": longer}
    shift = {"Random share": 0.03, "Dynamic pruning, fixed number": 0.02}
    results = results_of(cells, lambda *who: level(*who) + shift.get(who[1], 0.0))
    rows = [{"key": run.key, "samples": 12 * 60 * sent[name], "epoch": 12.0, "step": 9}
            for name, arm in longer.items() for run in arm]  # fmt: skip
    history = pd.DataFrame(rows)
    if missing:
        results, history = results[results["key"] == ""], history[history["key"] == ""]
    relative = dict.fromkeys(longer, 1.0) | {"Random share": 0.9, costs.SMALL: 1.0}
    table = gains.epochs_table(results, history, relative, longer, 60).set_index("arm")
    said = gains.lossless(results, longer, table.reset_index())
    if missing:
        assert set(table["test error (%)"]) == {"not run"}
        assert set(table["samples"]) == {"–"}
        assert said == []
        return
    assert table["samples"].tolist() == ["1.00", "0.66", "0.64", "0.65"]
    assert table["time"].tolist() == ["1.00", "0.66", "0.64", "0.58"]
    assert table["its paper"].tolist() == ["", gains.PRINTED, gains.PRINTED, ""]
    chance, fixed = said
    assert "sent 0.66 of the samples backward in 0.66 of plain training's time" in chance
    assert "not told apart from plain training" in chance
    assert "better than random share (-3." in chance
    assert "worse than plain training (+1.9" in fixed


def test_samples_costs_are_measured_for_every_arm():
    base = {"dataset": "digits", "network": "mlp", "train_size": 60, "batch_size": 16}
    arms = plan.planned(base, [0], 3, small_network="mlp", arms=["dynamic_pruning", "trimming"])
    runs = [arm[0] for arm in arms.values()]
    found = costs.sample_costs(runs, names=list(arms), small_network="mlp", repetitions=1)
    assert found["names"].tolist() == [*arms, costs.SMALL]
    assert found["seconds"].shape == (1, 5)
    assert (found["seconds"] > 0).all()
    assert set(costs.relative(found)) == {*arms, costs.SMALL}
    sent = [costs._train(costs.shortened(run)) for run in runs]
    assert sent[0] == 2 * 60
    assert sent[1] == 2 * 30
