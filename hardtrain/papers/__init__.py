"""The numbers that the papers print, one CSV file per printed table, to the printed digit.

A printed dash and an empty cell are both nan. `acc_delta` (itdm) and `delta_e` (hard mini-batches)
stand without sign, as printed; where the papers give a direction, it is in the arrow columns.
``..._text`` holds numbers and claims of a paper's text; those of hard mini-batches say beside each
claim on which cells it is recomputed.
"""

import re
from importlib import resources

import pandas as pd

from hardtrain import checks
from hardtrain.data.images import DATASETS
from hardtrain.errors import unknown_name
from hardtrain.networks import NETWORKS

_FOLDER = resources.files(__name__)
TABLES = tuple(sorted(file.name[:-4] for file in _FOLDER.iterdir() if file.name.endswith(".csv")))


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
    with _FOLDER.joinpath(f"{name}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file, na_values=["-", ""], keep_default_na=False)


def erratum(number: str) -> str:
    """A finding of ``errata.md`` as a sentence in Markdown, with a link to the rest of it.

    Raises:
        ParameterError: no such number; the text names the nearest one.

    Example:
        >>> print(erratum("003-6"))  # doctest: +ELLIPSIS
        "Overall smaller test loss" has one tie: QMNIST, 0.037 and 0.037. ([003-6](../hardtrain/...
    """
    text = _FOLDER.joinpath("errata.md").read_text(encoding="utf-8")
    headings = dict(re.findall(r"^### (\S+) (.+)$", text, flags=re.MULTILINE))
    sentence = headings[checks.choice("erratum", number, headings)]
    anchor = re.sub(r"[^\w -]", "", f"{number} {sentence}".lower()).replace(" ", "-")
    return f"{sentence} ([{number}](../hardtrain/papers/errata.md#{anchor}))"


def not_run(dataset: str) -> str:
    """What would give a paper's cell a number of ours.

    Example:
        >>> not_run("svhn")
        "run -p profile paper -y 'datasets: [svhn]'"
    """
    return f"run -p profile paper -y 'datasets: [{dataset}]'"


def network_name(printed: str) -> str:
    """Our name of a network that a paper spells its own way; our own names pass unchanged.

    Raises:
        ParameterError: no network of ours; the text names the nearest one.

    Example:
        >>> network_name("Efficient Net B4"), network_name("MobilenetV3-S")
        ('efficientnet_b4', 'mobilenetv3_small')
    """
    return _our_name("network", printed, NETWORKS, mobilenetv3s="mobilenetv3_small")


def dataset_name(printed: str) -> str:
    """Our name of an image set that a paper spells its own way; our own names pass unchanged.

    Raises:
        ParameterError: no image set of ours; the text names the nearest one.

    Example:
        >>> dataset_name("CIFAR-10"), dataset_name("FMNIST")
        ('cifar10', 'fashion-mnist')
    """
    return _our_name("image set", printed, DATASETS, fmnist="fashion-mnist")


def _our_name(kind: str, printed: str, names: tuple[str, ...], **abbreviations: str) -> str:
    """The name that is spelled alike but for case, blanks, hyphens and underscores."""
    known = {_folded(name): name for name in names} | abbreviations
    if _folded(printed) not in known:
        raise unknown_name(kind, printed, names)
    return known[_folded(printed)]


def _folded(name: str) -> str:
    return re.sub("[ _-]", "", name.lower())
