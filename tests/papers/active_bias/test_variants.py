"""Active Bias: its arms and their names, formulas, styles and runs."""

import numpy as np
import pytest

from hardtrain import Run, load_artefact
from hardtrain.papers.active_bias import variants
from hardtrain.training.methods import ACTIVE_BIAS_VARIANTS


def test_arms_are_the_variants_of_the_method():
    names = {name.removeprefix("SGD-") for name in variants.VARIANTS}
    assert names | {"uniform"} == set(ACTIVE_BIAS_VARIANTS)
    assert variants.formula_table()["name"].tolist() == list(variants.ARMS)
    assert len(variants.ARMS) == 11
    kinds = {"S": "sampling", "W": "weighting", "I": "sampling"}
    for name in variants.VARIANTS:
        assert variants.ARMS[name].kind == kinds[name.removeprefix("SGD-")[0]]


def test_formula_table_says_what_is_verified_and_what_is_not():
    table = variants.formula_table().set_index("name")
    assert table["status"].str.contains("from memory").all()  # nothing is verified in full
    verified = table.index[table["status"].str.contains("score verified")]
    assert set(verified) == {"SGD-SPV", "SGD-WPV"}
    assert set(table.loc[verified, "score s"]) == {"√(v + v²/(n − 1))"}


@pytest.mark.parametrize("name", variants.ARMS)
def test_arm_method_makes_a_run_of_its_variant(name):
    run = Run(
        dataset="digits",
        network="cnn_small",
        **variants.arm_method(name, smoothing=0.3, burn_in=0.2),
        keep=variants.artefacts(name, 0.3),
    )
    if name == variants.SCAN:
        assert (run.method, dict(run.options)) == ("plain", {})
        return
    assert run.method == "active_bias"
    short = name.removeprefix("SGD-")
    assert run.options["variant"] == {"Uni": "uniform"}.get(short, short)
    assert run.options["relative"] == (name == variants.UNIFORM)  # added as it is, where it counts
    is_baseline = name == variants.UNIFORM  # takes no reading, so that its key depends on none
    assert (run.options["smoothing"] == 0.3, run.options["burn_in"] == 0.2) == (
        not is_baseline,
        not is_baseline,
    )


def test_arm_styles_tell_scores_apart_in_each_way():
    names = [variants.SCAN, variants.UNIFORM, "SGD-SD", "SGD-ISD", "SGD-SE", "SGD-SPV", "SGD-STC"]
    for key in ("color", "linestyle", "marker"):
        assert len({variants.arm_style(name)[key] for name in names}) == len(names)
    looks = [variants.arm_style(name) for name in variants.ARMS]
    assert all(a != b for i, a in enumerate(looks) for b in looks[:i])
    drawn, weighted = variants.arm_style("SGD-SD"), variants.arm_style("SGD-WD")
    assert {key for key in drawn if drawn[key] != weighted[key]} == {"linestyle", "fillstyle"}


def test_readings_table_shows_the_largest_effects():
    effects = {"variance": np.array([0.001, 0.02, np.nan]), "scope": np.array([0.1, 0.05, np.nan])}
    table = variants.readings_table(effects).set_index("detail")["to change it"]
    assert "by more than 2 %" in table["variance"]
    assert "± 10 %" in table["mean weight 1"]
    none = {name: np.array([np.nan]) for name in effects}
    assert "by more than 0 %" in variants.readings_table(none)["to change it"][2]


def test_first_biased_epoch_is_the_methods(store, tiny_run):
    # 8 epochs, two a quarter; half of them burn-in, so that emphasis begins with quarter 2
    options = {"variant": "WD", "smoothing": 0.0, "burn_in": 0.5}
    run = tiny_run(method="active_bias", options=options, epochs=8, keep=("emphasis",))
    emphasis = load_artefact(run, "emphasis", store)["emphasis"]
    assert variants.first_biased_epoch(8, 0.5) == 4
    assert (emphasis[:2] == 2).all()
    assert (np.ptp(emphasis[2:], axis=1) > 0.1).all()
    # two epochs of burn-in are the least
    run = tiny_run(method="active_bias", options=options | {"burn_in": 0.0}, epochs=8,
                   keep=("emphasis",))  # fmt: skip
    emphasis = load_artefact(run, "emphasis", store)["emphasis"]
    assert variants.first_biased_epoch(8, 0.0) == 2
    assert (emphasis[0] == 2).all()
    assert np.ptp(emphasis[1]) > 0.1
