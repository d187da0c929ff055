"""Active Bias: shares, ranks, goals, differences, verdicts against numbers worked out by hand."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from hardtrain import ParameterError, PredictionHistory, Run, load_artefact, load_dataset
from hardtrain.papers.active_bias import emphasis as bias
from hardtrain.papers.active_bias import tables as bias_tables
from hardtrain.runs.train import load_data, training_set
from hardtrain.statistics import PairedDifference
from hardtrain.strategies.active_bias import prediction_deviation
from hardtrain.training.methods import ACTIVE_BIAS_VARIANTS

T2 = 4.302653  # quantile 0.975 of Student's t with 2 degrees of freedom


def arm(name, seeds=(0, 1, 2), *, epochs=4, **fields):
    method = bias.arm_method(name, smoothing=1.0, burn_in=0.1)
    return [
        Run(dataset="digits", network="cnn_small", seed=seed, epochs=epochs, **method, **fields)
        for seed in seeds
    ]


def rows(runs, errors):
    """Results of runs; an error of ``None`` is a diverged run."""
    return [
        {
            "key": run.key,
            "seed": run.seed,
            "status": "diverged" if error is None else "finished",
            "test_error": math.nan if error is None else error,
        }
        for run, error in zip(runs, errors, strict=True)
    ]


def course(run, errors, losses=None):
    """The history of a run: its test error after each epoch, last epoch first."""
    losses = errors if losses is None else losses
    return [
        {"key": run.key, "epoch": epoch, "test_error": error, "train_set_loss": loss}
        for epoch, (error, loss) in enumerate(zip(errors, losses, strict=True), start=1)
    ][::-1]


# --- names and formulas --------------------------------------------------------------------------


def test_arms_are_the_variants_of_the_method():
    variants = {name.removeprefix("SGD-") for name in bias.VARIANTS}
    assert variants | {"uniform"} == set(ACTIVE_BIAS_VARIANTS)
    table = bias.formula_table()
    assert table["name"].tolist() == list(bias.ARMS)
    assert len(bias.ARMS) == len(set(bias.ARMS)) == 11
    kinds = {"S": "sampling", "W": "weighting", "I": "sampling"}
    for name in bias.VARIANTS:
        assert bias.arm_kind(name) == kinds[name.removeprefix("SGD-")[0]]


def test_formula_table_says_what_is_verified_and_what_is_not():
    table = bias.formula_table().set_index("name")
    assert table["status"].str.contains("from memory").all()  # nothing is verified in full
    verified = table.index[table["status"].str.contains("score verified")]
    assert set(verified) == {"SGD-SPV", "SGD-WPV"}
    assert set(table.loc[verified, "score s"]) == {"√(v + v²/(n − 1))"}


@pytest.mark.parametrize("name", bias.ARMS)
def test_arm_method_makes_a_run_of_its_variant(name):
    run = Run(
        dataset="digits",
        network="cnn_small",
        **bias.arm_method(name, smoothing=0.3, burn_in=0.2),
    )
    if name == bias.SCAN:
        assert (run.method, dict(run.options)) == ("plain", {})
        return
    assert run.method == "active_bias"
    short = name.removeprefix("SGD-")
    assert run.options["variant"] == {"Uni": "uniform"}.get(short, short)
    is_baseline = name == bias.UNIFORM  # takes no reading, so that its key depends on none
    assert (run.options["smoothing"] == 0.3, run.options["burn_in"] == 0.2) == (
        not is_baseline,
        not is_baseline,
    )


def test_arm_styles_tell_scores_apart_in_each_way():
    names = [bias.SCAN, bias.UNIFORM, "SGD-SD", "SGD-ISD", "SGD-SE", "SGD-SPV", "SGD-STC"]
    for key in ("color", "linestyle", "marker"):
        assert len({bias.arm_style(name)[key] for name in names}) == len(names)
    assert bias.arm_style("SGD-WD") == bias.arm_style("SGD-SD")


def test_unknown_arm_names_the_nearest():
    for function in (bias.arm_kind, bias.arm_style):
        with pytest.raises(ParameterError, match="did you mean 'SGD-WPV'"):
            function("SGD-WVP")


def test_readings_table_shows_the_largest_effects():
    effects = {"variance": np.array([0.001, 0.02, np.nan]), "scope": np.array([0.1, 0.05, np.nan])}
    table = bias.readings_table(effects).set_index("detail")["to change it"]
    assert "by more than 2 %" in table["variance"]
    assert "± 10 %" in table["mean weight 1"]
    none = {name: np.array([np.nan]) for name in effects}
    assert "by more than 0 %" in bias.readings_table(none)["to change it"][2]


# --- from artefacts ------------------------------------------------------------------------------


def test_first_biased_epoch_is_the_methods(store, tiny_run):
    # 8 epochs, two a quarter; half of them burn-in, so that emphasis begins with quarter 2
    options = {"variant": "WD", "smoothing": 0.0, "burn_in": 0.5}
    run = tiny_run(method="active_bias", options=options, epochs=8, keep=("emphasis",))
    emphasis = load_artefact(run, "emphasis", store)["emphasis"]
    assert bias.first_biased_epoch(8, 0.5) == 4
    assert (emphasis[:2] == 2).all()
    assert (np.ptp(emphasis[2:], axis=1) > 0.1).all()
    # two epochs of burn-in are the least
    run = tiny_run(method="active_bias", options=options | {"burn_in": 0.0}, epochs=8,
                   keep=("emphasis",))  # fmt: skip
    emphasis = load_artefact(run, "emphasis", store)["emphasis"]
    assert bias.first_biased_epoch(8, 0.0) == 2
    assert (emphasis[0] == 2).all()
    assert np.ptp(emphasis[1]) > 0.1


@pytest.mark.parametrize("train_size", [0, 30])
def test_wrong_labels_are_those_that_a_run_trains_on(tiny_run, tiny_set, train_size):
    run = tiny_run(label_noise=0.3, seed=2, train_size=train_size)
    clean = load_data(run)[0]
    data = load_dataset(tiny_set, "train").subset(train_size)
    given, wrong = bias._wrong_labels(data, 0.3, 2)
    np.testing.assert_array_equal(given, training_set(run, clean).labels.numpy())
    np.testing.assert_array_equal(wrong, given != clean.labels.numpy())
    assert wrong.sum() == round(0.3 * len(data))
    assert (bias._wrong_labels(data, 0.3, 3)[1] != wrong).any()
    assert not bias._wrong_labels(data, 0.0, 2)[1].any()


def test_emphasis_shares_by_fraction_name_and_seed(tiny_set):
    data = load_dataset(tiny_set, "train")
    alike = np.ones((4, 60))
    artefacts, wanted = [], []
    for fraction in (0.1, 0.5):
        for weight in (1.0, 3.0):  # of the wrong labels
            for seed in (4, 5):
                wrong = bias._wrong_labels(data, fraction, seed)[1]
                artefacts.append({"emphasis": np.where(wrong, weight * alike, alike)})
                wanted.append(weight * fraction / (weight * fraction + 1 - fraction))
    artefacts[3] = None
    found = bias.emphasis_shares(
        artefacts, fractions=[0.1, 0.5], names=["a", "b"], seeds=[4, 5], epochs=8, dataset=tiny_set
    )["shares"]
    wanted[3] = np.nan
    assert found.shape == (2, 2, 2, 4)
    np.testing.assert_allclose(found, np.reshape(wanted, (2, 2, 2, 1)).repeat(4, axis=3))


def test_emphasis_shares_of_quarters_without_an_epoch_are_nan(tiny_set):
    # 2 epochs fall into the first and the third quarter; in the third, only sample 0 counts
    wrong = bias._wrong_labels(load_dataset(tiny_set, "train").subset(30), 0.2, 0)[1]
    emphasis = np.zeros((4, 30))
    emphasis[0] = 1
    emphasis[2, np.flatnonzero(wrong)[0]] = 30
    found = bias.emphasis_shares(
        [{"emphasis": emphasis}], fractions=[0.2], names=["a"], seeds=[0], epochs=2,
        dataset=tiny_set, train_size=30,
    )["shares"][0, 0, 0]  # fmt: skip
    np.testing.assert_allclose(found, [0.2, np.nan, 1.0, np.nan])
    assert bias.last_phase(2) == 2


@pytest.fixture
def emphasised(tiny_set):
    def make(artefacts, **changes):
        settings = dict(fraction=0.3, seed=1, epochs=8, burn_in=0.5, num_shown=3)
        names = [str(i) for i in range(len(artefacts))]
        return bias.emphasised_samples(
            artefacts, names=names, dataset=tiny_set, **(settings | changes)
        )

    return make


def test_emphasised_samples_are_the_highest_of_their_quarters(emphasised, tiny_set):
    emphasis = np.zeros((4, 60))
    emphasis[1, 50] = 99  # before the burn-in ends
    emphasis[2, [7, 3, 9]] = [4, 6, 4]  # its quarter
    emphasis[3, [11, 12, 5]] = [1, 2, 3]
    found = emphasised([{"emphasis": np.zeros((4, 60))}, {"emphasis": emphasis}])
    assert found["indices"].tolist() == [[[0, 1, 2]] * 2, [[3, 7, 9], [5, 12, 11]]]
    assert found["emphasis"][1].tolist() == [[3, 2, 2], [1.5, 1, 0.5]]  # per epoch
    data = load_dataset(tiny_set, "train")
    given, wrong = bias._wrong_labels(data, 0.3, 1)
    np.testing.assert_array_equal(found["wrong"], wrong[found["indices"]])
    named = found["indices"].ravel()
    np.testing.assert_array_equal(found["images"], data.images[named].numpy())
    for title, index in zip(found["titles"][6:], named[6:], strict=True):
        lines = title.split("\n")
        assert lines[1] == data.class_names[given[index]]
        assert lines[2:] == ([f"is {data.class_names[data.labels[index]]}"] * int(wrong[index]))
    assert [title.split("\n")[0] for title in found["titles"][6:9]] == ["3.0 ×", "2.0 ×", "2.0 ×"]


def test_emphasised_samples_mark_wrong_labels(emphasised, tiny_set):
    data = load_dataset(tiny_set, "train")
    _, wrong = bias._wrong_labels(data, 0.3, 1)
    one = int(np.flatnonzero(wrong)[4])
    emphasis = np.zeros((4, 60))
    emphasis[3, one] = 1
    found = emphasised([{"emphasis": emphasis}], num_shown=1)
    assert found["indices"][0, 1].tolist() == [one]
    assert found["wrong"][0, 1].tolist() == [True]
    assert found["titles"][1].endswith(f"is {data.class_names[data.labels[one]]}")


def test_emphasised_samples_of_a_diverged_or_short_training(emphasised, tiny_set):
    data = load_dataset(tiny_set, "train")
    seed = next(s for s in range(99) if bias._wrong_labels(data, 0.3, s)[1][0])
    emphasis = np.zeros((4, 60))
    emphasis[2, 8] = 1
    found = emphasised([{"emphasis": emphasis}, None], epochs=2, num_shown=100, seed=seed)
    assert found["wrong"][0].any()
    assert found["indices"].shape == (2, 2, 60)
    assert found["indices"][0, :, 0].tolist() == [8, 8]  # no early quarter, so twice the last
    assert np.isnan(found["emphasis"][1]).all()
    assert not found["wrong"][1].any()


@pytest.fixture
def histories():
    """A history of 60 samples with 2 to 6 probabilities, some never seen, and its lists."""
    rng = np.random.default_rng(0)
    lists = [rng.random(rng.integers(2, 7)).tolist() if i % 7 else [] for i in range(60)]
    history = PredictionHistory(60)
    for i, values in enumerate(lists):
        for value in values:
            history.update(torch.tensor([i]), torch.tensor([value], dtype=torch.float64))
    arrays = {k: getattr(history, k).numpy() for k in ("count", "mean", "variance")}
    return history, arrays, lists


def test_restored_history_gives_the_same_scores(histories):
    history, arrays, _ = histories
    again = bias.restored_history(arrays)
    for score in bias.SCORES.values():
        torch.testing.assert_close(score(again), score(history))
    torch.testing.assert_close(again.variance, history.variance, equal_nan=True)
    again.update(torch.tensor([1]), torch.tensor([0.5]))  # it goes on, too
    assert again.count[1] == len(histories[2][1]) + 1


def rank_correlation(first, second):
    """Pearson's of the ranks, ties at their mean."""
    ranks = [
        [sum(b < a for b in values) + (sum(b == a for b in values) - 1) / 2 for a in values]
        for values in (first, second)
    ]
    return np.corrcoef(*ranks)[0, 1]


def test_score_correlations_match_ranks_in_a_loop(histories, tiny_set):
    _, arrays, lists = histories
    found = bias.score_correlations(
        [arrays, arrays, None, arrays], fractions=[0.0, 0.4], seeds=[1, 2], dataset=tiny_set
    )["correlations"]
    assert found.shape == (2, 2, 5, 4)
    seen = [values for values in lists if values]
    means = [math.fsum(values) / len(values) for values in seen]
    variances = [
        sum((x - mean) ** 2 for x in values) / len(values)
        for values, mean in zip(seen, means, strict=True)
    ]
    columns = [
        [1 - mean for mean in means],
        means,
        [mean * (1 - mean) for mean in means],
        [math.sqrt(v + v * v / (len(x) - 1)) for v, x in zip(variances, seen, strict=True)],
    ]
    flags = bias._wrong_labels(load_dataset(tiny_set, "train"), 0.4, 2)[1]
    flags = [float(flag) for flag, values in zip(flags, lists, strict=True) if values]
    wanted = [[rank_correlation(a, b) for b in columns] for a in [*columns, flags]]
    np.testing.assert_allclose(found[1, 1], wanted, atol=1e-12)
    np.testing.assert_allclose(found[0, 0, :4], wanted[:4], atol=1e-12)
    assert found[0, 0, 0, 1] == pytest.approx(-1)
    assert np.isnan(found[0, :, 4]).all()  # no label is wrong
    assert np.isnan(found[1, 0]).all()  # diverged


def test_reading_effects_match_plain_weights(histories):
    _, arrays, _ = histories
    found = bias.reading_effects([arrays, None], smoothing=0.5, batch_size=60, num_batches=5)
    weights = []
    for shift in (0, 1):
        scores = [
            math.sqrt(v * n / (n - shift) + (v * n / (n - shift)) ** 2 / (n - 1)) if n else 0.0
            for v, n in zip(arrays["variance"], arrays["count"], strict=True)
        ]
        mean = sum(scores) / 60
        weights.append([(s + 0.5 * mean) / (1.5 * mean) for s in scores])
    largest = max(abs(b - a) / a for a, b in zip(*weights, strict=True))
    np.testing.assert_allclose(found["variance"], [largest, np.nan], rtol=1e-5)
    np.testing.assert_allclose(found["scope"], [0, np.nan], atol=1e-7)  # the batch is the set
    assert largest > 0.01


def test_reading_effects_scope_is_the_spread_of_means(histories):
    _, arrays, _ = histories
    settings = dict(smoothing=0.5, batch_size=10, num_batches=4000)
    found = bias.reading_effects([arrays], **settings)["scope"][0]
    scores = prediction_deviation(bias.restored_history(arrays)).numpy()
    weights = (scores + 0.5 * scores.mean()) / (1.5 * scores.mean())
    # of a mean of 10 out of 60 without replacement; a standard deviation is good to 1/sqrt(2n)
    exact = weights.std(ddof=1) * math.sqrt((1 - 10 / 60) / 10)
    assert found == pytest.approx(exact, rel=5 / math.sqrt(2 * 4000))
    assert bias.reading_effects([arrays], **settings, seed=1)["scope"][0] != found


def test_reading_effects_without_scores_are_nan(histories):
    _, arrays, _ = histories
    flat = arrays | {"variance": 0 * arrays["variance"]}
    found = bias.reading_effects([flat], smoothing=1.0, batch_size=8)
    assert np.isnan([*found["variance"], *found["scope"]]).all()


# --- from results and histories ------------------------------------------------------------------


def test_goals_are_the_means_of_finished_runs():
    runs = arm(bias.SCAN)
    history = pd.DataFrame(
        course(runs[0], [0.9, 0.5, 0.2, 0.1], [2.0, 1.0, 0.5, 0.1])
        + course(runs[1], [0.7, 0.3, 0.2, 0.1], [2.0, 2.0, 0.5, 0.1])
        + course(runs[2], [0.1])  # diverged after that
    )
    assert bias_tables.goal_levels(history, runs, 2) == {"train_set_loss": 1.5, "test_error": 0.4}
    for empty in (history[history["key"] == runs[2].key], pd.DataFrame({"key": []})):
        assert all(math.isnan(level) for level in bias_tables.goal_levels(empty, runs, 2).values())


def test_epochs_to_goal_is_the_first_at_or_below():
    runs = arm(bias.SCAN, (0, 1, 2, 3))
    history = pd.DataFrame(
        course(runs[0], [0.9, 0.4, 0.5, 0.1])
        + course(runs[1], [0.7, 0.6, 0.5, 0.5])
        + course(runs[2], [0.1])
        + course(runs[3], [0.3, 0.6, 0.5, 0.5])
    )
    results = pd.DataFrame(rows(runs, [0.1, 0.5, None, 0.5]))
    found = bias_tables.epochs_to_goal(history, results, runs, "test_error", 0.4)
    assert found["epochs"].to_dict() == {0: 2, 1: 4, 3: 1}
    assert found["reached"].to_dict() == {0: True, 1: False, 3: True}
    never = bias_tables.epochs_to_goal(history, results, runs, "test_error", math.nan)
    assert never["epochs"].tolist() == [4, 4, 4]
    assert not never["reached"].any()
    none = bias_tables.epochs_to_goal(
        history, results[results["seed"] == 2], runs, "test_error", 1.0
    )
    assert len(none) == 0


@pytest.fixture
def found():
    """Speed and damage of all arms, three seeds: easy 2 epochs slower and 6 points less damage,
    hard as fast and 3 points more, uncertain between, seeds differing."""
    shifts = {"E": (2, -6, 0.0), "D": (0, 3, 0.0), "PV": (1, -3, 0.5), "TC": (1, -3, 0.5)}
    epochs, damage, clean, reached = {}, {}, {}, {}
    for name in bias.ARMS:
        slow, harm, gain = shifts.get(name.removeprefix("SGD-")[1:], (0, 0, 0))
        epochs[name] = pd.Series({0: 10.0 + slow, 1: 11.0 + slow, 2: 15.0 + slow + 0.5 * slow})
        damage[name] = pd.Series({0: 9.0 + harm, 1: 12.0 + harm, 2: 8.0 + 1.1 * harm})
        clean[name] = pd.Series({0: 5.0 - gain, 1: 6.0 + gain, 2: 4.0})
        reached[name] = pd.Series({0: True, 1: name != "SGD-SE", 2: True})
    noisy = {name: clean[name] + damage[name] for name in bias.ARMS}
    return {"train_set_loss": epochs, "train_set_loss reached": reached, "test_error": epochs,
            "damage": damage, "clean error": clean, "noisy error": noisy}  # fmt: skip


def test_trade_off_by_hand():
    clean = {"a": arm(bias.SCAN, evaluate_train=True), "b": arm("SGD-WE", evaluate_train=True)}
    noisy = {"a": arm(bias.SCAN, label_noise=0.3), "b": arm("SGD-WE", label_noise=0.3)}
    results = pd.DataFrame(
        rows(clean["a"], [0.1, 0.1, 0.1])
        + rows(clean["b"], [0.2, None, 0.1])
        + rows(noisy["a"], [0.4, 0.3, 0.2])
        + rows(noisy["b"], [0.25, 0.3, None])
    )
    curve = [0.9, 0.4, 0.2, 0.1]
    history = pd.DataFrame(
        [row for runs in clean.values() for run in runs for row in course(run, curve, curve[::-1])]
    )
    goals = {"train_set_loss": 0.3, "test_error": 0.3}
    found = bias_tables.trade_off(results, history, clean, noisy, goals)
    assert found["test_error"]["b"].to_dict() == {0: 3, 2: 3}
    assert found["train_set_loss"]["a"].tolist() == [1, 1, 1]  # another column
    assert found["test_error reached"]["a"].all()
    assert found["damage"]["a"].to_dict() == pytest.approx({0: 30, 1: 20, 2: 10})
    assert found["damage"]["b"].to_dict() == pytest.approx({0: 5})  # the only seed with both
    assert found["clean error"]["b"].to_dict() == pytest.approx({0: 20, 2: 10})
    assert found["noisy error"]["b"].to_dict() == pytest.approx({0: 25, 1: 30})


def test_pooled_difference_pairs_the_means_of_groups(found):
    gap = bias_tables.pooled_difference(found["damage"], ("SGD-SE", "SGD-WD"), (bias.SCAN,))
    np.testing.assert_allclose(gap.mean, np.mean([-1.5, -1.5, -1.65]))
    half = T2 * np.std([-1.5, -1.5, -1.65], ddof=1) / math.sqrt(3)
    np.testing.assert_allclose(gap.half_width, half, rtol=1e-6)
    alone = {"a": pd.Series({0: 1.0}), "b": pd.Series({1: 1.0}), "c": pd.Series(dtype=float)}
    assert bias_tables.pooled_difference(alone, ["a"], ["b"]) is None
    assert bias_tables.pooled_difference(alone, ["a"], ["c"]) is None


def results_of(*pairs):
    return pd.DataFrame([row for runs, errors in pairs for row in rows(runs, errors)])


def test_reduction_is_relative_to_the_baseline():
    plain, other = arm(bias.SCAN), arm("SGD-WPV")
    results = results_of((plain, [0.10, 0.20, 0.30]), (other, [0.08, 0.19, 0.24]))
    gap = bias_tables.reduction(results, other, plain)
    assert gap.mean == pytest.approx(100 * 0.03 / 0.20)  # positive: better
    assert gap.half_width == pytest.approx(
        100 * T2 * np.std([0.02, 0.01, 0.06], ddof=1) / math.sqrt(3) / 0.20, rel=1e-6
    )
    worse = bias_tables.reduction(results, plain, other)
    assert worse.mean == pytest.approx(-100 * 0.03 / 0.17)


def test_reduction_needs_common_seeds_and_an_error():
    plain, other = arm(bias.SCAN), arm("SGD-WPV")
    results = results_of((plain, [0.1, None, 0.9]), (other, [0.05, 0.4, None]))
    gap = bias_tables.reduction(results, other, plain)
    assert (gap.mean, gap.n) == (pytest.approx(50), 1)  # of 0.1, not of the mean with 0.9
    results = results_of((plain, [0.1, None, None]), (other, [None, 0.4, 0.4]))
    assert bias_tables.reduction(results, other, plain) is None
    results = results_of((plain, [0.0, 0.0, 0.0]), (other, [0.0, 0.4, 0.4]))
    assert bias_tables.reduction(results, other, plain) is None


@pytest.mark.parametrize(
    ("interval", "word", "text"),
    [
        ((5, 2, 8), "same direction", "inside the printed 1 to 18 %"),
        ((18, 17, 19), "same direction", "inside"),
        ((30, 20, 40), "same direction", "outside"),
        ((0.5, 0.2, 0.8), "same direction", "outside"),
        ((5, -1, 11), "no difference seen", "measured +5 [-1, +11] %, n = 5"),
        ((0, 0, 0), "no difference seen", "outside"),
        ((-5, -8, -2), "opposite", "outside"),
    ],
)
def test_range_verdict_words(interval, word, text):
    found = PairedDifference(*map(float, interval), p=0.5, n=5)
    outcome = bias_tables.range_verdict(found, (1.0, 18.0), comparable=True)
    assert outcome.word == word
    assert text in outcome.reason


def test_range_verdict_refuses_what_cannot_be_compared():
    found = PairedDifference(5.0, 2.0, 8.0, p=0.01, n=5)
    outcome = bias_tables.range_verdict(found, (1.0, 18.0), comparable=False, reason="quick")
    assert outcome == ("not comparable", "quick")
    few = bias_tables.range_verdict(found._replace(n=2), (1.0, 18.0), comparable=True)
    assert few == ("not comparable", "2 of at least 3 seeds")
    assert bias_tables.range_verdict(None, (1.0, 18.0), comparable=True).word == "not comparable"


# --- tables --------------------------------------------------------------------------------------


def test_error_table_compares_with_each_baseline():
    arms = {bias.SCAN: arm(bias.SCAN), bias.UNIFORM: arm(bias.UNIFORM), "SGD-WD": arm("SGD-WD")}
    results = results_of(
        (arms[bias.SCAN], [0.10, 0.12, 0.14]),
        (arms[bias.UNIFORM], [0.20, 0.22, 0.24]),
        (arms["SGD-WD"], [0.11, 0.12, 0.16]),
    )
    table = bias_tables.error_table(results, arms, baselines=(bias.SCAN, bias.UNIFORM)).set_index(
        "arm"
    )
    assert table.loc["SGD-WD", "test error (%)"].startswith("13.00 ± ")
    assert table.loc["SGD-WD", "minus SGD-Scan (points)"].startswith("+1.00 ± ")
    assert table.loc["SGD-WD", "minus SGD-Uni (points)"].startswith("-9.00 ± ")
    assert table.loc[bias.SCAN, "minus SGD-Scan (points)"] == ""
    assert table.loc[bias.SCAN, "minus SGD-Uni (points)"].startswith("-10.00 ± ")
    assert table.loc[bias.SCAN, "p (SGD-Uni)"] == "< 0.001"
    assert table.loc["SGD-WD", "p (SGD-Scan)"] == "0.225"  # t = sqrt(3), 2 degrees of freedom
    one = results[results["seed"] == 0]
    table = bias_tables.error_table(one, arms, baselines=(bias.SCAN,)).set_index("arm")
    assert table.loc["SGD-WD", "minus SGD-Scan (points)"] == "+1.00 (n = 1)"
    assert table.loc["SGD-WD", "p (SGD-Scan)"] == ""


def test_reduction_table_shows_the_uncertain_arms_beside_the_print():
    arms = {name: arm(name) for name in bias.ARMS}
    pairs = [(runs, [0.10, 0.20, 0.30]) for runs in arms.values()]
    pairs[bias.ARMS.index("SGD-WTC")] = (arms["SGD-WTC"], [0.09, 0.18, 0.27])
    pairs[bias.ARMS.index(bias.UNIFORM)] = (arms[bias.UNIFORM], [0.05, 0.10, 0.15])
    results = results_of(*pairs)
    table = bias_tables.reduction_table(results, arms, comparable=True).set_index("arm")
    assert table.index.tolist() == list(bias_tables.GROUPS["uncertain"])
    assert set(table["printed (%)"]) == {"1 to 18"}
    assert table.loc["SGD-WTC", "here, to SGD-Scan (%)"].startswith("+10.0 ± ")
    assert table.loc["SGD-WTC", "here, to SGD-Uni (%)"].startswith("-80.0 ± ")
    assert table.loc["SGD-SPV", "verdict"] == "no difference seen"
    table = bias_tables.reduction_table(results, arms, comparable=False, reason="quick")
    assert set(table["verdict"]) == {"not comparable"}
    assert set(table["why"]) == {"quick"}


def test_trade_off_table_by_hand(found):
    shares = {"SGD-WD": np.array([0.3, 0.5, np.nan]), "SGD-SE": np.array([np.nan] * 3)}
    table = bias_tables.trade_off_table(found, shares).set_index("arm")
    assert table.index.tolist() == list(bias.ARMS)
    row = table.loc["SGD-SE"]
    assert row["to the training loss (epochs)"].endswith("(n = 3), 2 of 3 got there")
    assert row["minus SGD-Scan, to the training loss"].startswith("+2.3 ± ")
    assert row["minus SGD-Scan, damage"].startswith("-6.2 ± ")
    assert row["emphasis on wrong labels (%)"] == "–"
    assert table.loc["SGD-WD", "emphasis on wrong labels (%)"].startswith("40.0 ± ")
    assert table.loc["SGD-WD", "damage (points)"].startswith("12.8 ± ")
    assert table.loc[bias.SCAN, "minus SGD-Scan, damage"] == ""


def test_claims_table_says_what_is_seen(found):
    table = bias_tables.claims_table(found)
    seen = table.set_index(["the review", "measured"])["seen"].to_dict()
    loss, damage = "epochs to a training loss, clean labels", "damage by wrong labels (points)"
    assert seen["easy first is robust to outliers", damage] == "yes"
    assert seen["easy first slows training down", loss] == "yes"
    assert seen["hard first is prone to outliers", damage] == "yes"
    assert seen["hard first accelerates training on clean data", loss] == "no difference seen"
    assert seen["uncertain: more robust than hard first", damage] == "yes"
    assert seen["uncertain: less robust than easy first", damage] == "yes"
    assert seen["uncertain: faster than easy first", loss] == "yes"
    assert seen["uncertain: slower than hard first", loss] == "yes"
    errors = ["test error, clean labels (points)", "test error, wrong labels (points)"]
    assert [seen["uncertain reduces the error", text] for text in errors] == [
        "no difference seen",
        "yes",
    ]
    assert len(table) == 14
    first = table.iloc[0]
    assert (first["difference"], first["stated"]) == ("easy first − SGD-Scan", "below 0")
    assert first["here"].startswith("-6.20 ± ")


def test_claims_table_sees_the_opposite_and_too_few(found):
    found["damage"] = {name: -values for name, values in found["damage"].items()}
    table = bias_tables.claims_table(found).set_index(["the review", "measured"])["seen"]
    assert table["easy first is robust to outliers"].tolist() == ["opposite"]
    assert table["hard first is prone to outliers"].tolist() == ["opposite"]
    two = {k: {name: x[:2] for name, x in v.items()} for k, v in found.items()}
    assert set(bias_tables.claims_table(two)["seen"]) == {"too few seeds"}
    none = {k: {name: x[:0] for name, x in v.items()} for k, v in found.items()}
    assert set(bias_tables.claims_table(none)["here"]) == {"no pair"}


def test_sensitivity_table_has_a_row_for_each_setting():
    plain, other = arm(bias.SCAN), arm("SGD-WPV")
    noisy = arm(bias.SCAN, label_noise=0.3)
    results = results_of(
        (plain, [0.1, 0.1, 0.1]), (noisy, [0.4, 0.4, 0.4]), (other, [0.2, 0.3, 0.4])
    )
    settings = {("clean", "SGD-WPV", 0.2, 0.1): other, ("noisy", "SGD-WPV", 1.0, 0.1): other}
    table = bias_tables.sensitivity_table(results, settings, {"clean": plain, "noisy": noisy})
    assert table["labels"].tolist() == ["clean", "noisy"]
    assert table["smoothing"].tolist() == [0.2, 1.0]
    gaps = table["minus SGD-Scan (points)"]
    assert gaps[0].startswith("+20.00 ± ")
    assert gaps[1].startswith("-10.00 ± ")
    alone = results[results["key"] != plain[0].key][:2]
    table = bias_tables.sensitivity_table(alone, settings, {"clean": plain, "noisy": noisy})
    assert table["minus SGD-Scan (points)"].tolist() == ["no pair", "no pair"]
    assert table["test error (%)"].tolist() == ["not run", "not run"]
