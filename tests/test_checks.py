"""What each check of a parameter lets through, and what its refusal says."""

import math
import os

import numpy as np
import pytest

from hardtrain import HardtrainError, ParameterError, Run, checks
from hardtrain.errors import unknown_name
from hardtrain.networks import NETWORKS


@pytest.mark.parametrize("value", [1, 7, 10])
def test_integer_gives_back_what_is_in_range(value):
    assert checks.integer("epochs", value, low=1, high=10) is value


def test_integer_takes_numpys_integers_as_ints():
    value = checks.integer("num_classes", np.arange(10).max() + 1, low=1)
    assert value == 10
    assert type(value) is int
    with pytest.raises(ParameterError, match="bool, not int"):
        checks.integer("epochs", np.bool_(True), low=1)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "epochs = 0 is less than 1"),
        (-3, "epochs = -3 is less than 1"),
        (11, "epochs = 11 is more than 10"),
        (2.0, "epochs = 2.0 is float, not int"),
        (2.5, "epochs = 2.5 is float, not int"),
        ("3", "epochs = '3' is str, not int"),
        (True, "epochs = True is bool, not int"),
        (None, "epochs = None is NoneType, not int"),
        ([3], "epochs = [3] is list, not int"),
    ],
)
def test_integer_refuses_other_types_and_ranges(value, text):
    with pytest.raises(ParameterError) as caught:
        checks.integer("epochs", value, low=1, high=10)
    assert str(caught.value) == text


def test_integer_ends_where_a_generator_takes_no_seed():
    assert checks.integer("seed", 2**63 - 1, low=0) == 2**63 - 1
    with pytest.raises(ParameterError, match=r"seed = 9223372036854775808 is more than"):
        checks.integer("seed", 2**63, low=0)


def test_number_gives_a_float():
    value = checks.number("lr", 1, 0, above=True)
    assert value == 1.0
    assert type(value) is float
    assert checks.number("momentum", 0, 0, below=1) == 0.0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("1e-3", "lr = '1e-3' is text; in YAML write 1.0e-3, not 1e-3"),
        (True, "lr = True is bool, not float"),
        (None, "lr = None is NoneType, not float"),
        ([0.1], "lr = [0.1] is list, not float"),
        (1j, "lr = 1j is complex, not float"),
        (math.nan, "lr = nan is not finite"),
        (math.inf, "lr = inf is not finite"),
        (-math.inf, "lr = -inf is not finite"),
        (10**309, f"lr = {10**309} is not finite"),
        (0, "lr = 0 is not more than 0"),
        (-0.5, "lr = -0.5 is not more than 0"),
        (2, "lr = 2 is not less than 2"),
    ],
)
def test_number_refuses_text_nan_and_what_is_out_of_range(value, text):
    with pytest.raises(ParameterError) as caught:
        checks.number("lr", value, 0, above=True, below=2)
    assert str(caught.value) == text


def test_number_with_its_lower_end_allowed_says_at_least():
    assert checks.number("weight_decay", 0.0, 0) == 0.0
    with pytest.raises(ParameterError, match="weight_decay = -1 is not at least 0"):
        checks.number("weight_decay", -1, 0)


@pytest.mark.parametrize("value", [np.float64(0.05), np.float32(0.5), np.int64(1)])
def test_number_takes_numpys_numbers_as_floats(value):
    given = checks.number("lr", value, 0, above=True, below=2)
    assert (given, type(given)) == (float(value), float)
    assert Run("digits", "mlp", lr=value).key == Run("digits", "mlp", lr=float(value)).key
    with pytest.raises(ParameterError, match="lr = inf is not finite"):
        checks.number("lr", np.float32("inf"))
    for other in (np.bool_(True), np.array(0.5)):
        with pytest.raises(ParameterError, match="not float"):
            checks.number("lr", other)


@pytest.mark.parametrize("value", [0, 1, "true", None])
def test_flag_takes_only_bools(value):
    assert checks.flag("nesterov", True) is True
    with pytest.raises(ParameterError, match=r"nesterov = .* not bool"):
        checks.flag("nesterov", value)


@pytest.mark.parametrize("value", [0, None, b"digits", ["digits"]])
def test_text_takes_only_text(value):
    assert checks.text("dataset", "digits") == "digits"
    with pytest.raises(ParameterError, match=r"dataset = .* not text"):
        checks.text("dataset", value)


def test_text_takes_no_bytes_of_another_encoding():
    with pytest.raises(ParameterError, match=r"dataset = 'caf\\udce9' holds what is no character"):
        checks.text("dataset", os.fsdecode(b"caf\xe9"))


def test_choice_names_the_nearest():
    known = ("sgd", "adam", "adamw")
    assert checks.choice("optimizer", "adam", iter(known)) == "adam"
    with pytest.raises(ParameterError) as caught:
        checks.choice("optimizer", "Adam", known)
    assert str(caught.value) == (
        "unknown optimizer 'Adam'; did you mean 'adam'? known: sgd, adam, adamw"
    )
    with pytest.raises(ParameterError, match="not text"):
        checks.choice("optimizer", ["adam"], known)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("0, 1", "is text, not a list; papermill takes lists with -y"),
        (3, "seeds = 3 is int, not a list"),
        ({0: 1}, "is dict, not a list"),
        (None, "is NoneType, not a list"),
        ([0, 1, 0], "seeds = [0, 1, 0] holds something twice"),
        ([[1], [1]], "holds something twice"),
    ],
)
def test_listed_refuses_scalars_and_duplicates(value, text):
    with pytest.raises(ParameterError) as caught:
        checks.listed("seeds", value)
    assert text in str(caught.value)


def test_listed_gives_a_tuple_in_the_given_order():
    assert checks.listed("seeds", [2, 0, 1]) == (2, 0, 1)
    assert checks.listed("seeds", ()) == ()


def test_a_parameter_error_is_a_value_error():
    assert issubclass(ParameterError, ValueError)
    assert issubclass(ParameterError, HardtrainError)


def test_unknown_name_finds_the_original_of_nearly_every_typo():
    letters = "aeknst0258-_"
    right = total = 0
    for name in NETWORKS:
        typos = {name.upper(), name.replace("_", "-")}
        for i in range(len(name)):
            typos |= {name[:i] + name[i + 1 :]}
            typos |= {name[:i] + letter + name[i + 1 :] for letter in letters}
        for typo in typos - set(NETWORKS):
            right += f"did you mean {name!r}?" in str(unknown_name("network", typo, NETWORKS))
            total += 1
    assert right / total > 0.95  # resnet38 is one edit from two networks


def test_unknown_name_far_from_all_gives_only_the_known():
    text = str(unknown_name("network", "zzz", ["resnet18", "vgg13"]))
    assert text == "unknown network 'zzz'; known: resnet18, vgg13"
