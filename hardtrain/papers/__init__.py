"""The numbers that the papers print, one CSV file per printed table, to the printed digit.

A printed dash and an empty cell are both nan. `acc_delta` (itdm) and `delta_e` (hard mini-batches)
stand without sign, as printed; where the papers give a direction, it is in the arrow columns.
"""

import math
from importlib import resources

import pandas as pd

from hardtrain import checks
from hardtrain.errors import unknown_name

TABLES = (
    "trimming_table1",
    "hard_minibatches_table1",
    "hard_minibatches_table2",
    "hard_minibatches_table3",
    "hard_minibatches_table4",
    "hard_minibatches_table5",
    "hard_minibatches_table6",
    "gradient_noise_table1",
    "gradient_noise_table2",
    "gradient_noise_text",
    "itdm_table1",
    "itdm_table2",
    "itdm_table3",
    "itdm_table4",
    "itdm_table5",
)

# printed spelling in lower case, without blanks, hyphens and underscores -> our name
_NETWORKS = {
    "resnet18": "resnet18",
    "resnet34": "resnet34",
    "resnet50": "resnet50",
    "densenet121": "densenet121",
    "efficientnetb4": "efficientnet_b4",
    "efficientnetv2s": "efficientnetv2_s",
    "mobilenetv3s": "mobilenetv3_small",
    "mobilenet": "mobilenet",
    "vgg13": "vgg13",
}
_DATASETS = {
    "svhn": "svhn",
    "cifar10": "cifar10",
    "cifar100": "cifar100",
    "stl10": "stl10",
    "qmnist": "qmnist",
    "kmnist": "kmnist",
    "fmnist": "fashion-mnist",
}
ITDM_ARMS = {
    "w/o": "without",
    "w/o ITDM": "without",
    "w/ ITDM": "with",
    "B": "best",
    "W": "worst",
}


def load_table(name: str) -> pd.DataFrame:
    """One printed table, its columns numeric wherever every printed cell is a number.

    Args:
        name: one of ``TABLES``.

    Returns:
        A new frame; rows and columns in the file's order, errors and accuracies in % as printed.

    Raises:
        ParameterError: unknown name; the text names the nearest known one.

    Example:
        >>> print(load_table("trimming_table1").head(2))
            dataset       network  baseline_error  trimmed_error
        0      SVHN     Resnet-34            5.87           5.76
        1      SVHN  Densenet-121            4.62           4.42
    """
    if name not in TABLES:
        raise unknown_name("table", name, TABLES)
    with resources.files(__name__).joinpath(f"{name}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file, na_values=["-", ""], keep_default_na=False)


def hard_minibatch_rows(dataset: str) -> pd.DataFrame:
    """Table 3, 4 or 5 of the hard-mini-batch paper, by our name of its image set.

    Returns:
        The table with our network names, ``speed_up``: the printed Δe (%) with the sign that
        follows from the printed epochs; nan for δ = 1, and ``copied``: whether the accuracies are
        those of the same row of table 3 (errata 001-3).

    Raises:
        ParameterError: a set that the paper does not have.

    Example:
        >>> rows = hard_minibatch_rows("stl10")
        >>> rows.loc[rows["network"] == "resnet50", ["epoch", "speed_up"]].values.tolist()
        [[99.0, nan], [98.0, 2.0], [97.0, 3.0], [100.0, -0.0]]
    """
    numbers = {"cifar10": 3, "cifar100": 4, "stl10": 5}
    if dataset not in numbers:
        raise unknown_name("image set of the paper", dataset, numbers)
    rows = load_table(f"hard_minibatches_table{numbers[dataset]}")
    rows["network"] = rows["network"].map(network_name)
    first = rows.groupby("network")["epoch"].transform("first")  # of δ = 1
    slower = rows["epoch"] > first
    accuracies = ["train_top1", "train_ci", "test_top1", "test_ci"]
    same = (rows[accuracies] == load_table("hard_minibatches_table3")[accuracies]).all(axis=1)
    return rows.assign(
        speed_up=rows["delta_e"].where(~slower, -rows["delta_e"]),
        copied=same & (dataset != "cifar10"),
    )


def itdm_rows(table: int) -> pd.DataFrame:
    """Table 1, 2, 3, 4 or 5 of the ITDM paper, one row for each data set, network and arm.

    Returns:
        ``dataset``, ``network`` (our names; the paper's own networks are cnn2 in table 1, cnn5 in
        tables 2 and 3); ``arm``: "without" or "with" ITDM, or its "best" or "worst" λ of five by
        accuracy; ``lambda``: 0 without, nan where not printed; ``accuracy`` (%),
        ``cross_entropy`` (nats). Then the printed differences to "without", with the sign that
        follows from the values beside them, positive is better: ``accuracy_gain`` (points) and
        ``cross_entropy_drop``, nan in table 1 and without ITDM, where table 3 has one by mistake
        (errata 003-7).

    Raises:
        ParameterError: a table that the paper does not have.

    Example:
        >>> rows = itdm_rows(5)
        >>> print(rows.loc[rows["arm"] == "worst", ["network", "lambda", "accuracy_gain"]])
             network  lambda  accuracy_gain
        2   resnet18     0.8           0.41
        5      vgg13     0.4           0.06
        8  mobilenet     0.8          -0.16
    """
    rows = load_table(f"itdm_table{checks.integer('table', table, 1, 5)}")
    if table == 1:  # it has a column for each set, and no differences
        cells = rows.set_index(["metric", "setting"])
        rows = pd.DataFrame(
            {"dataset": name, "row": row, "acc": cells.at[("Acc", row), name]}
            | {"ce": cells.at[("CE", row), name]}
            for name in cells
            for row in ("w/o ITDM", "w/ ITDM")
        ).assign(**dict.fromkeys(["lambda", "acc_delta", "ce_delta"], math.nan))
    arm = rows["row"].map(ITDM_ARMS)
    networks = {1: "cnn2", 2: "cnn5", 3: "cnn5"}.get(table) or rows["network"].map(network_name)
    rows = rows.assign(dataset=rows["dataset"].map(dataset_name), network=networks)
    base = rows.groupby(["dataset", "network"])[["acc", "ce"]].transform("first")  # "without"
    gain = rows["acc_delta"].mask(rows["acc"] < base["acc"], -rows["acc_delta"])
    drop = rows["ce_delta"].mask(rows["ce"] > base["ce"], -rows["ce_delta"])
    columns = {"dataset": rows["dataset"], "network": rows["network"], "arm": arm}
    columns["lambda"] = rows["lambda"].mask(arm == "without", 0.0)  # section 4.2: vanilla SGD
    columns |= {"accuracy": rows["acc"], "cross_entropy": rows["ce"]}
    columns |= {"accuracy_gain": gain, "cross_entropy_drop": drop.mask(arm == "without")}
    return pd.DataFrame(columns)


def network_name(printed: str) -> str:
    """Our name of a network that a paper spells its own way; our own names pass unchanged.

    Example:
        >>> network_name("Efficient Net B4"), network_name("MobilenetV3-S")
        ('efficientnet_b4', 'mobilenetv3_small')
    """
    return _lookup("network", printed, _NETWORKS)


def dataset_name(printed: str) -> str:
    """Our name of an image set that a paper spells its own way; our own names pass unchanged.

    Example:
        >>> dataset_name("CIFAR-10"), dataset_name("FMNIST")
        ('cifar10', 'fashion-mnist')
    """
    return _lookup("image set", printed, _DATASETS)


def _lookup(kind: str, printed: str, names: dict[str, str]) -> str:
    if printed in names.values():
        return printed
    folded = str(printed).lower().replace(" ", "").replace("-", "").replace("_", "")
    if folded not in names:
        raise unknown_name(kind, printed, names.values())
    return names[folded]
