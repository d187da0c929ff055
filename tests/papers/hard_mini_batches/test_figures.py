"""The looks of the arms."""

import pytest

from hardtrain.papers.hard_mini_batches.figures import looks
from hardtrain.report import plotting


def test_an_arm_looks_the_same_in_every_profile():
    deltas, controls = ["δ = 1", "δ = 0.8", "δ = 0.5", "δ = 0.2"], ["random order", "random 0.2"]
    every = looks(deltas, [*controls, "random 0.5", "drawn anew"])
    fewer = looks(["δ = 1", "δ = 0.5", "δ = 0.2"], controls)
    assert fewer == {name: every[name] for name in fewer}
    assert list(fewer) == ["δ = 1", "δ = 0.5", "δ = 0.2", *controls]


def test_controls_have_another_hue_and_all_arms_differ():
    found = looks(["δ = 1", "δ = 0.5"], ["random order", "drawn anew"])
    blue = {style["color"] for style in plotting.variant_styles("hard_batches", 4)}
    assert [style["color"] in blue for style in found.values()] == [True, True, False, False]
    assert len({style["color"] for style in found.values()}) == 4


@pytest.mark.parametrize("deltas", [["δ = 1", "δ = 0.3"], [f"δ = 0.{i}" for i in range(1, 9)]])
def test_other_deltas_have_looks_too(deltas):
    assert list(looks(deltas, [])) == deltas
