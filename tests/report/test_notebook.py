"""Parameters, profiles, figure data, tables and the end of a notebook, without a kernel."""

import contextlib

import numpy as np
import pandas as pd
import pytest

from hardtrain import DataError, ParameterError, RunStore, StoreError
from hardtrain.papers.mini_batch_trimming import kept_samples
from hardtrain.report import notebook
from hardtrain.report.notebook import (
    check_parameters,
    choose_profile,
    figure_data,
    figure_folder,
    finish,
    save_table,
)
from hardtrain.runs import engines, sweep, train

PARAMETERS = """
profile: str = "quick"  # what stays None comes from the profile
datasets: list[str] = None
epochs: int = None
seeds: list[int] = None
keep: float = 0.5
share: float = None
use_committed: bool = True
"""
CHECK = "check_parameters(globals())"
PROFILES = {
    "quick": {"datasets": ["digits"], "epochs": 20, "seeds": [0, 1], "ablation_seeds": 1},
    "paper": {"datasets": ["digits"], "epochs": 150, "seeds": [0, 1, 2], "ablation_seeds": 3},
}


def run_cells(*sources, namespace=None):
    """What IPython does with cells: each source stands in ``In`` before it is executed."""
    namespace = {"In": [""], "check_parameters": check_parameters} if not namespace else namespace
    for source in sources:
        namespace["In"].append(source)
        with contextlib.suppress(SyntaxError):
            exec(source, namespace)
    return namespace


def run_with(injected):
    return run_cells(PARAMETERS, f"# Parameters\n{injected}\n", CHECK)


# --- parameters ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("injected", "text"),
    [
        ("epoch = 3", "unknown parameter 'epoch'; did you mean 'epochs'? known: profile, "),
        ("Seeds = [0]", "unknown parameter 'Seeds'; did you mean 'seeds'?"),
        ("epochs = 3\nkep = 0.1", "unknown parameter 'kep'; did you mean 'keep'?"),
        ('epochs = "3"', "epochs = '3' is str, not int"),
        ("epochs = 2.5", "epochs = 2.5 is float, not int"),
        ("epochs = True", "epochs = True is bool, not int"),
        ("epochs = -1", "epochs = -1 is less than 0"),
        ('keep = "1e-3"', "keep = '1e-3' is text; in YAML write 1.0e-3, not 1e-3"),
        ("keep = None", "keep = None is NoneType, not float"),
        ("profile = None", "profile = None is NoneType, not text"),
        ("use_committed = 1", "use_committed = 1 is int, not bool"),
        ("use_committed = None", "use_committed = None is NoneType, not bool"),
        ('seeds = "[0, 1]"', "seeds = '[0, 1]' is text, not a list; papermill takes lists with -y"),
        ("seeds = 3", "seeds = 3 is int, not a list"),
        ('seeds = [0, "1"]', "an entry of seeds = '1' is str, not int"),
        ("seeds = [0, 0]", "seeds = [0, 0] holds something twice"),
        ("datasets = [3]", "an entry of datasets = 3 is int, not text"),
    ],
)
def test_check_parameters_refuses_and_says_what_is_allowed(injected, text):
    with pytest.raises(ParameterError) as error:
        run_with(injected)
    assert text in str(error.value)


@pytest.mark.parametrize(
    "injected",
    ["epochs = 3", "epochs = None", "keep = 1", "seeds = [4]", "share = 0.1", "share = None"],
)
def test_check_parameters_accepts_declared_names_and_types(injected):
    run_with(injected)


def test_check_parameters_works_without_an_injected_cell():
    run_cells(PARAMETERS, CHECK)
    with pytest.raises(ParameterError, match="did you mean 'epochs'"):
        run_cells(PARAMETERS + "epoch = 3\n", CHECK)


def test_check_parameters_takes_only_the_two_cells_for_parameters():
    run_cells("import os\nscratch = 1", PARAMETERS, "results = 2", CHECK)


def test_check_parameters_again_in_the_same_kernel():
    cells = (PARAMETERS, "# Parameters\nepochs = None\n", f"{CHECK}\nprofiles = 1", "p = 1")
    namespace = run_cells(*cells)
    run_cells(*cells, namespace=namespace)  # all cells again
    run_cells(CHECK, namespace=namespace)  # this cell alone
    run_cells("a cell with an error", CHECK, namespace=namespace)
    run_cells(PARAMETERS, CHECK, namespace=namespace)
    with pytest.raises(ParameterError, match="epochs = '3'"):
        run_cells(PARAMETERS.replace("epochs: int = None", "epochs: int = '3'"), CHECK,
                  namespace=namespace)  # fmt: skip
    run_cells(*cells, namespace=namespace)  # the mistake is not remembered
    with pytest.raises(ParameterError, match="unknown parameter 'epoch'"):
        run_cells(PARAMETERS, "# Parameters\nepoch = 3\n", CHECK, namespace=namespace)
    run_cells(PARAMETERS, CHECK, namespace=namespace)  # nor is this one


# --- profiles ------------------------------------------------------------------------------------


def test_choose_profile_takes_the_named_profile_and_overrides_it():
    given = {"profile": "paper", "epochs": 3, "seeds": [2, 1], "datasets": None, "other": 7}
    p = choose_profile(PROFILES, given)
    assert (p.profile, p.epochs, p.seeds, p.ablation_seeds) == ("paper", 3, [2, 1], 3)
    assert p.changed == ["epochs", "seeds"]
    assert not hasattr(p, "other")
    assert PROFILES["paper"]["epochs"] == 150  # the profile itself stays


def test_choose_profile_does_not_call_an_equal_value_changed():
    p = choose_profile(PROFILES, {"profile": "quick", "epochs": 20, "seeds": [0, 1]})
    assert p.changed == []


def test_choose_profile_takes_zero_as_a_value():
    profiles = {"quick": {"train_size": 100}}
    p = choose_profile(profiles, {"profile": "quick", "train_size": 0})
    assert (p.train_size, p.changed) == (0, ["train_size"])


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"profile": "papr"}, "unknown profile 'papr'; did you mean 'paper'? known: quick, paper"),
        ({"profile": 3}, "profile = 3 is int, not text"),
        ({"profile": "quick", "seeds": []}, r"seeds = [] is empty; give at least one"),
        ({"profile": "quick", "seeds": [1, 2, 1]}, "seeds = [1, 2, 1] holds something twice"),
        ({"profile": "quick", "datasets": ["digit"]}, "did you mean 'digits'?"),
    ],
)
def test_choose_profile_refuses(given, text):
    with pytest.raises(ParameterError) as error:
        choose_profile(PROFILES, given)
    assert text in str(error.value)


def test_choose_profile_refuses_an_unknown_network():
    profiles = {"quick": {"networks": ["cnn_small"]}}
    assert choose_profile(profiles, {"profile": "quick"}).networks == ["cnn_small"]
    with pytest.raises(ParameterError, match="did you mean 'resnet18'"):
        choose_profile(profiles, {"profile": "quick", "networks": ["cnn_small", "resnet-18"]})


def test_choose_profile_needs_the_data_only_to_train(tmp_path, monkeypatch):
    def no_network(*_):
        raise OSError("network is unreachable")

    monkeypatch.setattr("socket.getaddrinfo", no_network)
    given = {"profile": "quick", "datasets": ["mnist"], "data_root": str(tmp_path)}
    assert choose_profile(PROFILES, given | {"use_committed": True}).datasets == ["mnist"]
    with pytest.raises(DataError, match="mnist"):
        choose_profile(PROFILES, given | {"use_committed": False})


# --- folders and figure data ---------------------------------------------------------------------


def test_figure_folder_is_out_dir_or_named_after_notebook_and_profile(tmp_path, monkeypatch):
    monkeypatch.setattr(notebook, "project_root", lambda: tmp_path / "repository")
    monkeypatch.delenv("HARDTRAIN_FIGURES", raising=False)
    assert figure_folder("01_a", "quick") == tmp_path / "repository" / "figures" / "01_a" / "quick"
    monkeypatch.setenv("HARDTRAIN_FIGURES", str(tmp_path / "drawn"))
    assert figure_folder("01_a", "quick") == tmp_path / "drawn" / "01_a" / "quick"
    assert (tmp_path / "drawn" / "01_a" / "quick").is_dir()
    monkeypatch.chdir(tmp_path)
    assert figure_folder("01_a", "quick", "a b/ä") == tmp_path / "a b" / "ä"


def test_figure_folder_refuses_a_place_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"could not make .*file"):
        figure_folder("01_a", "quick", tmp_path / "file" / "below")
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(StoreError, match="cannot be written"):
        figure_folder("01_a", "quick", tmp_path)


@pytest.fixture
def committed(tmp_path, monkeypatch):
    """The folder of a notebook's committed figures."""
    monkeypatch.setenv("HARDTRAIN_COMMITTED", str(tmp_path / "figures"))
    folder = tmp_path / "figures" / "01_a" / "quick"
    folder.mkdir(parents=True)
    return folder


def counted(calls):
    def make(factor=1):
        calls.append(factor)
        return {"values": factor * np.arange(3.0)}

    return make


def test_figure_data_is_read_from_the_committed_if_made_with_equal_settings(tmp_path, committed):
    calls = []
    make = counted(calls)
    first = figure_data("fig_1", make, committed, factor=2)
    assert first.keys() == {"values"}
    assert first["values"].tolist() == [0, 2, 4]
    assert calls == [2]

    again = figure_data("fig_1", make, tmp_path, factor=2)
    assert again["values"].tolist() == [0, 2, 4]
    assert calls == [2]
    assert (tmp_path / "fig_1.npz").read_bytes() == (committed / "fig_1.npz").read_bytes()

    assert figure_data("fig_1", make, tmp_path, factor=3)["values"].tolist() == [0, 3, 6]
    figure_data("fig_1", make, tmp_path, factor=2, use_committed=False)
    figure_data("fig_2", make, tmp_path, factor=2)
    assert calls == [2, 3, 2, 2]


def test_figure_data_does_not_tell_by_place(tmp_path, committed):
    made = []

    def make(folder, size):
        made.append(folder)
        return {"values": np.arange(size)}

    figure_data("fig_1", make, committed, place={"folder": "here"}, size=2)
    figure_data("fig_1", make, tmp_path, place={"folder": "there"}, size=2)
    assert made == ["here"]


def test_figure_data_tells_by_runs_and_artefact(tmp_path, committed, store, tiny_run, monkeypatch):
    trained, train_run = [], train.train_run
    monkeypatch.setattr(
        engines, "train_run", lambda run, *a: (trained.append(run), train_run(run, *a))[1]
    )
    mine = [tiny_run(method="trimming", keep=("sample_counts",), seed=seed) for seed in (0, 1)]
    arguments = {"artefact": "sample_counts", "store": store, "epochs": 2}
    arguments |= {"dataset": mine[0].dataset}
    make = kept_samples.kept_shares
    first = figure_data("fig_5", make, committed, runs=mine, **arguments)
    assert trained == mine
    counts = [sweep.load_artefact(run, "sample_counts", store) for run in mine]
    np.testing.assert_array_equal(
        first["least"], make(counts, epochs=2, dataset=mine[0].dataset)["least"]
    )

    elsewhere = RunStore(tmp_path / "other")
    again = figure_data("fig_5", make, tmp_path, runs=mine, **arguments | {"store": elsewhere})
    np.testing.assert_array_equal(first["quantiles"], again["quantiles"])
    assert trained == mine  # neither trained nor looked for in the store
    figure_data("fig_5", make, tmp_path, runs=mine[:1], **arguments | {"store": elsewhere})
    assert trained == [*mine, mine[0]]


# --- tables and the end --------------------------------------------------------------------------


def test_save_table_writes_csv_and_markdown(tmp_path):
    frame = pd.DataFrame({"arm": ["plain", "trim"], "error (%)": [1.5, 2.0]})
    shown = save_table(frame, tmp_path, "table_1_error", note="quick profile")
    assert pd.read_csv(tmp_path / "table_1_error.csv").equals(frame)
    text = (tmp_path / "table_1_error.md").read_text()
    assert "| plain | 1.5 |" in text
    assert "*quick profile*" in text
    assert shown.data == text
    plain = save_table(frame, tmp_path, "table_2").data
    assert "*" not in plain


@pytest.mark.parametrize("name", ["fig_1", "1_table", "table_1/a", "table_../a"])
def test_save_table_refuses_other_names(tmp_path, name):
    with pytest.raises(ParameterError, match="is not table_"):
        save_table(pd.DataFrame({"a": [1]}), tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_finish_names_what_is_missing_and_marks_the_end(tmp_path):
    (tmp_path / "results.csv").write_text("key\n1\n")
    (tmp_path / "fig_1.pdf").write_text("")
    promised = ["results.csv", "fig_1.pdf", "fig_1.png", "table_1.md"]
    with pytest.raises(StoreError, match=r"lacks fig_1.png, table_1.md$"):
        finish(tmp_path, promised)
    said = finish(tmp_path, promised[:2])
    assert said.startswith(f"{notebook.END_MARKER} 2 files, results.csv ")
    (tmp_path / "results.csv").write_text("key\n2\n")
    assert finish(tmp_path, promised[:2]) != said


def test_figure_data_tells_by_the_content_of_the_image_sets(tmp_path, committed):
    def sets(brightness):
        for split in ("train", "test"):
            images = np.full((6, 8, 8), brightness, np.uint8)
            np.savez(tmp_path / f"mine_{split}.npz", images=images, labels=np.arange(6) % 3)

    arguments = {"datasets": [str(tmp_path / "mine")], "train_size": 0, "test_size": 0}
    for brightness in (50, 90):
        sets(brightness)
        choose_profile({"quick": {}}, {"profile": "quick"})  # a notebook begins
        found = figure_data("fig_2", notebook.sample_images, committed, **arguments)
        assert found["images"].max() == brightness
    for split in ("train", "test"):
        (tmp_path / f"mine_{split}.npz").unlink()
    choose_profile({"quick": {}}, {"profile": "quick"})
    absent = figure_data("fig_2", notebook.sample_images, tmp_path, **arguments)
    assert absent["images"].max() == 90  # the data is not at hand: the committed picture


def test_figure_data_tells_by_the_version_of_the_computation(tmp_path, committed, monkeypatch):
    arguments = {"datasets": ["digits"], "train_size": 20, "test_size": 10}
    made = figure_data("fig_2", notebook.sample_images, committed, **arguments)
    assert made["described"][0].endswith("used: 20")
    monkeypatch.setattr(notebook, "load_dataset", None)  # whoever computes again fails
    figure_data("fig_2", notebook.sample_images, tmp_path, **arguments)
    monkeypatch.setattr(notebook, "VERSION", notebook.VERSION + 1)
    with pytest.raises(TypeError):
        figure_data("fig_2", notebook.sample_images, tmp_path, **arguments)


def test_check_parameters_gives_what_the_parameters_cell_declares():
    cell = 'profile: str = "quick"\nepochs: int = None'
    namespace = {"profile": "quick", "epochs": 3, "few": [0, 1], "In": ["", cell, "check"]}
    assert check_parameters(namespace) == {"profile": "quick", "epochs": 3}
