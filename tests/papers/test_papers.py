"""The printed numbers: complete, readable, and equal to what the papers print."""

from importlib import resources

import pandas as pd
import pytest

from hardtrain import ParameterError
from hardtrain.papers import TABLES, dataset_name, erratum, load_table, network_name, not_run

ROWS = {
    "trimming_table1": 6,
    "hard_minibatches_table1": 4,
    "hard_minibatches_table2": 5,
    "hard_minibatches_table3": 20,
    "hard_minibatches_table4": 20,
    "hard_minibatches_table5": 20,
    "hard_minibatches_table6": 5,
    "hard_minibatches_text": 17,
    "gradient_noise_table1": 5,
    "gradient_noise_table2": 4,
    "gradient_noise_text": 3,
    "itdm_table1": 4,
    "itdm_table2": 3,
    "data_parallelism_goals": 9,
    "itdm_table3": 3,
    "itdm_table4": 9,
    "itdm_table5": 9,
    "itdm_text": 36,
}


def cell(table, column, **where):
    rows = load_table(table)
    for name, value in where.items():
        rows = rows[rows[name] == value]
    assert len(rows) == 1
    return rows[column].iloc[0]


def test_tables_are_the_files_of_the_package():
    files = {p.name for p in resources.files("hardtrain.papers").iterdir()}
    assert {f"{name}.csv" for name in TABLES} == {name for name in files if name.endswith(".csv")}
    assert set(TABLES) == set(ROWS)


@pytest.mark.parametrize("name", TABLES)
def test_load_table_has_all_rows_and_no_stray_dash(name):
    table = load_table(name)
    assert len(table) == ROWS[name]
    assert not (table.astype(object) == "-").any(axis=None)


def test_load_table_gives_new_frames():
    table = load_table("trimming_table1")
    table.loc[0, "baseline_error"] = 0.0
    assert load_table("trimming_table1").loc[0, "baseline_error"] == 5.87


def test_load_table_names_the_nearest_table():
    with pytest.raises(ParameterError, match="did you mean 'trimming_table1'"):
        load_table("trimming_table_1")


@pytest.mark.parametrize(
    ("dataset", "network", "baseline", "trimmed"),
    [
        ("SVHN", "Resnet-34", 5.87, 5.76),
        ("SVHN", "Densenet-121", 4.62, 4.42),
        ("CIFAR-10", "Resnet-34", 17.43, 17.01),
        ("CIFAR-10", "Densenet-121", 10.10, 10.19),
        ("CIFAR-100", "Resnet-34", 48.19, 47.72),
        ("CIFAR-100", "Densenet-121", 32.95, 32.18),
    ],
)
def test_trimming_table_is_as_printed(dataset, network, baseline, trimmed):
    where = {"dataset": dataset, "network": network}
    assert cell("trimming_table1", "baseline_error", **where) == baseline
    assert cell("trimming_table1", "trimmed_error", **where) == trimmed


def test_trimming_improves_five_of_six_cells():
    table = load_table("trimming_table1")
    worse = table[table["trimmed_error"] >= table["baseline_error"]]
    assert worse[["dataset", "network"]].to_numpy().tolist() == [["CIFAR-10", "Densenet-121"]]


def test_hard_minibatch_tables_have_numbers_and_nan_for_dashes():
    table = load_table("hard_minibatches_table3")
    assert (table["delta_e"].isna() == (table["delta"] == 1.0)).all()
    assert table.drop(columns="network").dtypes.map(pd.api.types.is_numeric_dtype).all()
    assert cell("hard_minibatches_table3", "test_top1", network="ResNet-50", delta=0.5) == 64.6
    assert cell("hard_minibatches_table4", "epoch", network="Efficient Net B4", delta=0.5) == 42
    assert cell("hard_minibatches_table5", "train_ci", network="MobilenetV3-S", delta=0.2) == 16.2
    assert load_table("hard_minibatches_table1")["ddt_seconds"].isna().tolist() == [True] + 3 * [
        False
    ]


def test_hard_minibatch_epoch_gains_follow_the_relative_formula():
    # one cell by hand: ResNet-18, delta 0.5, (80 - 77) / 77 * 100 = 3.896, printed truncated
    assert cell("hard_minibatches_table3", "delta_e", network="ResNet-18", delta=0.5) == 3.89


def test_cifar100_rows_of_the_efficientnets_copy_cifar10():
    columns = ["delta", "train_top1", "train_ci", "test_top1", "test_ci"]
    three, four = load_table("hard_minibatches_table3"), load_table("hard_minibatches_table4")
    for network in three["network"].unique():
        same = (
            three[three["network"] == network][columns].to_numpy()
            == four[four["network"] == network][columns].to_numpy()
        ).all()
        assert same == network.startswith("Efficient")


def test_itdm_tables_are_as_printed():
    assert load_table("itdm_table1")["KMNIST"].tolist() == [94.42, 94.19, 0.196, 0.227]
    assert pd.isna(cell("itdm_table4", "lambda", network="VGG13", row="w/o"))
    assert cell("itdm_table4", "acc", network="VGG13", row="B") == 92.72
    assert cell("itdm_table5", "acc_arrow", network="MOBILENET", row="W") == "down"
    assert pd.isna(cell("itdm_table4", "acc_arrow", network="Mobilenet", row="W"))


def test_gradient_noise_tables_are_as_printed():
    assert cell("gradient_noise_table2", "accuracy_pct", condition="noise", batch_size=64) == 72.07
    table = load_table("gradient_noise_text")
    assert table["accuracy_pct"].tolist() == [74.45, 70.29, 67.86]
    assert load_table("gradient_noise_table1")["minibatch_size"].max() == 32768


@pytest.mark.parametrize(
    ("printed", "ours"),
    [
        ("Resnet-34", "resnet34"),
        ("Densenet-121", "densenet121"),
        ("ResNet-18", "resnet18"),
        ("RESNET18", "resnet18"),
        ("ResNet-50", "resnet50"),
        ("Efficient Net B4", "efficientnet_b4"),
        ("EfficientNet-B4", "efficientnet_b4"),
        ("EfficientNetV2-S", "efficientnetv2_s"),
        ("MobilenetV3-S", "mobilenetv3_small"),
        ("MobileNetV3-S", "mobilenetv3_small"),
        ("MOBILENET", "mobilenet"),
        ("Mobilenet", "mobilenet"),
        ("VGG13", "vgg13"),
        ("mobilenetv3_small", "mobilenetv3_small"),
    ],
)
def test_network_name_knows_the_printed_spelling(printed, ours):
    assert network_name(printed) == ours


def test_every_printed_network_and_dataset_is_known():
    networks, datasets = set(), set()
    for name in TABLES:
        table = load_table(name)
        networks |= set(table.get("network", pd.Series(dtype=str)).dropna())
        datasets |= set(table.get("dataset", pd.Series(dtype=str)).dropna())
    assert {network_name(n) for n in networks} == {
        *("resnet18", "resnet34", "resnet50", "densenet121", "efficientnet_b4"),
        *("efficientnetv2_s", "mobilenetv3_small", "mobilenet", "vgg13"),
    }
    assert {dataset_name(n) for n in [*datasets, "QMNIST", "STL-10"]} == {
        *("svhn", "cifar10", "cifar100", "stl10", "qmnist", "kmnist", "fashion-mnist"),
    }


def test_dataset_name_rejects_the_unknown():
    with pytest.raises(ParameterError, match="unknown image set 'CIFAR-1000'"):
        dataset_name("CIFAR-1000")


def test_network_name_rejects_the_unknown_and_an_image_sets_abbreviation():
    with pytest.raises(ParameterError, match="did you mean 'resnet50'"):
        network_name("ResNet-52")
    with pytest.raises(ParameterError, match="unknown network 'FMNIST'"):
        network_name("FMNIST")


def test_not_run_is_the_command_that_runs_it():
    assert not_run("svhn") == "run -p profile paper -y 'datasets: [svhn]'"


def test_erratum_is_a_sentence_with_a_link_to_its_heading():
    text = erratum("001-6")
    assert text.startswith("The method is 3.2 times slower per iteration, so fewer epochs do not")
    assert text.endswith(
        "([001-6](../hardtrain/papers/errata.md"
        "#001-6-the-method-is-32-times-slower-per-iteration-so-fewer-epochs-do-not-mean-less-time))"
    )
    with pytest.raises(ParameterError, match="did you mean '001-6'"):
        erratum("001_6")
