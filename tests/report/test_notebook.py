"""Parameters, profiles, figure data, tables and the end of a notebook, without a kernel."""

import contextlib
import threading
from functools import partial

import numpy as np
import pandas as pd
import pytest
from helpers import colours, save_set
from matplotlib.figure import Figure

from hardtrain import DataError, ParameterError, StoreError, checks
from hardtrain.report import notebook
from hardtrain.report.claims import Claim
from hardtrain.report.notebook import Notebook, check_parameters, choose_profile
from hardtrain.runs.committed import damaged
from hardtrain.statistics import PairedDifference

PARAMETERS = """
profile: str = "quick"  # what stays None comes from the profile
datasets: list[str] = None
epochs: int = None
seeds: list[int] = None
keep: float = 0.5
share: float = None
use_committed: bool = True
train: bool = True
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
        ('seeds = [0, "1"]', "entry of seeds = '1' is str, not int"),
        ("seeds = [0, 0]", "seeds = [0, 0] holds something twice"),
        ("datasets = [3]", "entry of datasets = 3 is int, not text"),
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


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("epoch: int = 3", "the name of a parameter is no name: 'epoch: int = 3'"),
        ("profile: int = 3", "the name of a parameter is no name: 'profile: int = 3'"),
        ("epochs, keep = [1, 2]", "is no name: 'epochs, keep = [1, 2]'"),
        ("epochs = keep = 1", "is no name: 'epochs = keep = 1'"),
        ("import math; epochs = 3", "is no name: 'import math'"),
        ("epochs = 3; scratch = 1", "unknown parameter 'scratch'"),
    ],
)
def test_code_in_the_name_of_a_parameter_is_refused(given, text):
    """papermill writes a name into a cell as it is given."""
    with pytest.raises(ParameterError) as error:
        run_with(given)
    assert text in str(error.value)


def test_types_are_checked_where_cells_leave_no_history():
    for source, text in (("epochs: int = '3'", "epochs = '3' is str"),
                         ("seeds: list[int] = 3", "seeds = 3 is int, not a list")):  # fmt: skip
        namespace = {}
        exec(f"profile: str = 'quick'\n{source}", namespace)
        with pytest.raises(ParameterError, match=text):
            check_parameters(namespace)
    exec(PARAMETERS, namespace)
    assert check_parameters(namespace) == []


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


SIZES = {"train_size": 1024, "test_size": 100, "validation_size": 400}


@pytest.mark.parametrize(
    ("num", "sizes", "expected"),
    [
        ((60, 20), {}, {"train_size": 45, "test_size": 20, "validation_size": 15}),
        ((500, 200), {"train_size": 0},
         {"train_size": 0, "test_size": 100, "validation_size": 125}),
        ((2000, 200), {}, SIZES),
        ((300, 50), {"validation_size": 0, "train_size": 256},
         {"train_size": 256, "test_size": 50, "validation_size": 0}),
    ],
)  # fmt: skip
def test_a_profiles_sizes_are_cut_to_what_the_data_have(tmp_path, capsys, num, sizes, expected):
    for split, count in zip(("train", "test"), num, strict=True):
        save_set(tmp_path / f"mine_{split}.npz", *colours(num=count))
    profile = {"datasets": [str(tmp_path / "mine"), "digits"]} | SIZES | sizes
    p = choose_profile({"quick": profile}, {"profile": "quick"})
    assert {name: getattr(p, name) for name in SIZES} == expected
    said = capsys.readouterr().out.splitlines()
    cut = [name for name in SIZES if expected[name] != profile[name]]
    assert sorted(line.partition(":")[0] for line in said) == sorted(cut)
    assert p.changed == []


def test_a_size_that_was_given_is_refused_by_its_name(tmp_path):
    for split in ("train", "test"):
        save_set(tmp_path / f"mine_{split}.npz", *colours(num=60))
    profiles = {"quick": {"datasets": [str(tmp_path / "mine")]} | SIZES}
    with pytest.raises(ParameterError, match="train_size = 50 is more than the 45 there are"):
        choose_profile(profiles, {"profile": "quick", "train_size": 50})
    with pytest.raises(ParameterError, match="test_size = 100 is more than the 60 there are"):
        choose_profile(profiles, {"profile": "quick", "test_size": 100})


# --- a notebook at work --------------------------------------------------------------------------

BOOK = PARAMETERS.replace("share: float = None", "share: float = None\ntrain_size: int = None") + (
    'device: str = "cpu"\nengine: str = "local"\ndata_root: str = None\nout_dir: str = None\n'
)
SETTINGS = {
    "quick": {
        "datasets": ["digits"],
        "epochs": 20,
        "seeds": [0, 1],
        "train_size": 0,
        "test_size": 9,
    },
}


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A function: a notebook whose user injected these lines."""
    monkeypatch.setenv("HARDTRAIN_FIGURES", str(tmp_path))
    monkeypatch.setenv("HARDTRAIN_RUNS", str(tmp_path / "runs"))

    def begin(injected="", **options):
        namespace = run_cells(BOOK, f"# Parameters\n{injected}\n", "book = 0")
        return Notebook("01_a", SETTINGS, namespace, **options)

    return begin


def test_notebook_says_in_its_caption_which_precision_it_took(book, monkeypatch):
    monkeypatch.setitem(SETTINGS["quick"], "precision", "bfloat16")
    assert book().caption.endswith("9 test images, bfloat16")
    monkeypatch.setitem(SETTINGS["quick"], "precision", "float32")
    assert book().caption.endswith("9 test images")


def test_notebook_says_in_its_caption_what_was_changed(book):
    assert book().caption == "quick profile: 20 epochs, 2 seeds, all training and 9 test images"
    changed = book("epochs = 3\nkeep = 0.1\ndevice = 'auto'\ntrain_size = 100").caption
    assert changed.startswith(
        "quick profile (changed: epochs, train_size, keep): 3 epochs, 2 seeds,"
    )
    assert changed.endswith("100 training and 9 test images")


def test_notebook_checks_settings_and_each_entry_of_lists(book):
    below = partial(checks.number, low=0, below=1)
    book(allowed={"keep": below, "seeds": partial(checks.integer, low=0)})
    with pytest.raises(ParameterError, match=r"keep = 1\.5 is not less than 1"):
        book("keep = 1.5", allowed={"keep": below})
    with pytest.raises(ParameterError, match="entry of seeds = 2 is not less than 1"):
        book("seeds = [0, 2]", allowed={"seeds": below})


def test_notebook_gives_figure_data_the_places_that_it_takes(book, tmp_path):
    made = []

    def make(size, data_root=None, device=None):
        made.append((size, data_root, device))
        return {"values": np.arange(size)}

    assert book("data_root = 'x'").figure_data("fig_1", make, size=2)["values"].tolist() == [0, 1]
    assert made == [(2, "x", "cpu")]
    book().figure_data("fig_2", lambda size: {"values": np.arange(size)}, size=2)
    assert (tmp_path / "01_a" / "quick" / "fig_2.npz").is_file()


def test_notebook_trains_what_is_missing_and_knows_what_it_wrote(book, tiny_run, capsys):
    mine = book()
    runs = [tiny_run(seed=seed, epochs=1) for seed in (0, 1)]
    history = mine.results([*runs, runs[0]])[1]
    assert capsys.readouterr().out == "2 runs, of which 0 diverged\n"
    assert list(history["key"].unique()) == [run.key for run in runs]
    mine.save_table(pd.DataFrame({"a": [1]}), "table_1_a")
    fig = Figure()
    ax = fig.subplots()
    ax.axhline(0)
    ax.errorbar([], [])
    mine.save_figure(fig, "fig_2_b")
    assert capsys.readouterr().out == "fig_2_b: not drawn, nothing of it was run\n"
    ax.plot([1, 2], [3, 4])
    mine.save_figure(fig, "fig_1_a", "a note")
    said = mine.finish()
    assert not (mine.out / "fig_2_b.png").exists()
    assert said.startswith(f"{notebook.END_MARKER} 7 files, results.csv ")
    assert mine.caption in (mine.out / "table_1_a.md").read_text()
    (mine.out / "results.csv").write_text("key\n2\n")
    assert mine.finish() != said
    for name in ("fig_1_a.png", "table_1_a.md"):
        (mine.out / name).unlink()
    with pytest.raises(StoreError, match=r"lacks fig_1_a.png, table_1_a.md$"):
        mine.finish()


def test_nothing_is_trained_where_train_is_false(book, tiny_run, capsys, monkeypatch):
    runs = [tiny_run(seed=seed, epochs=1, keep=("features",)) for seed in (0, 1)]
    book().run(runs[:1])
    monkeypatch.setattr("hardtrain.runs.sweep._ENGINES", {"local": lambda *_: 1 / 0})
    mine = book("train = False")
    results, history = mine.results(runs)
    assert results["seed"].tolist() == [0]
    assert set(history["key"]) == {runs[0].key}
    assert capsys.readouterr().out == (
        "1 of 2 runs not run; papermill 01_a.ipynb OUT.ipynb -p profile quick trains them\n"
        "1 runs, of which 0 diverged\n"
    )
    assert mine.caption.endswith("; 1 of 2 runs so far")
    make = {"name": "fig_1", "make": first_features, "artefact": "features"}
    assert mine.figure_data(**make, runs=runs) is None
    assert capsys.readouterr().out == (
        "fig_1: not drawn, since 1 of 2 runs have no 'features' here\n"
    )
    assert mine.figure_data(**make, runs=runs[:1])["first"].size == 1
    nothing, _ = mine.results([tiny_run(seed=7)])
    assert nothing.empty
    assert {"key", "test_error", "seed"} <= set(nothing.columns)
    assert "fig_1.npz" in mine._written


def first_features(artefacts):
    return {"first": artefacts[0]["features"][:1, 0]}


def test_claims_are_written_and_fill_the_findings(book, monkeypatch):
    shown = []
    for kind in ("display", "update_display"):
        monkeypatch.setattr(
            f"IPython.display.{kind}", lambda what, display_id: shown.append((display_id, what))
        )
    mine = book()
    mine.findings()
    gap = PairedDifference(-0.4, -0.7, -0.1, 0.01, 10, 0.2)
    table = mine.claims([Claim("It helps.", "error (points)", "lower", gap)])
    assert [name for name, _ in shown] == ["findings", "findings"]
    assert "**supports:** It helps." in shown[1][1].data
    assert mine.caption in shown[1][1].data
    assert "| It helps. |" in table.data
    written = pd.read_csv(mine.out / "claims.csv")
    assert written["scale"].tolist() == [f"digits, {mine.caption}"]
    mine.p.networks = ["cnn2", "cnn5"]
    mine.claims(
        [Claim("It helps.", "error (points)", "lower", gap, scale=scale) for scale in ("", "a")]
    )
    written = pd.read_csv(mine.out / "claims.csv")
    assert written["scale"].tolist() == [f"digits, cnn2, cnn5, {mine.caption}", "digits, a"]
    assert "claims.csv" in mine._written


def test_sentences_are_shown_as_one_paragraph(book, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    mine = book()
    mine.say("It is 3.2 %.", "", "So be it.")
    mine.say("", "")
    assert [paragraph.data for paragraph in shown] == ["It is 3.2 %. So be it."]


def test_the_note_of_a_table_counts_its_questions(book):
    frame = pd.DataFrame({"a": [1]})
    frame.attrs["questions"] = 4
    mine = book()
    mine.save_table(frame, "table_1_a", note="three seeds")
    mine.save_table(frame, "table_2_a", note="")
    corrected = "p values Holm-corrected over 4 questions*"
    assert f"*three seeds; {corrected}" in (mine.out / "table_1_a.md").read_text()
    assert f"*{corrected}" in (mine.out / "table_2_a.md").read_text()


def test_notebook_works_where_cells_leave_no_history(book, monkeypatch):
    namespace = run_cells(BOOK)
    del namespace["In"]
    assert Notebook("01_a", SETTINGS, namespace).p.epochs == 20


@pytest.mark.parametrize("name", ["profile", "device", "data_root", "out_dir", "use_committed"])
def test_a_notebook_that_lacks_a_common_parameter_says_so(book, name):
    namespace = run_cells(BOOK)
    del namespace[name]
    with pytest.raises(ParameterError, match=f"the parameters lack '{name}'"):
        Notebook("01_a", SETTINGS, namespace)


def test_parameters_of_an_unknown_type_are_refused():
    with pytest.raises(ParameterError, match="unknown type of epochs 'exit'"):
        run_cells(PARAMETERS.replace("epochs: int", "epochs: exit"), "", CHECK)


# --- folders and tables -------------------------------------------------------------------------


def test_files_go_to_out_dir_or_are_named_after_notebook_and_profile(book, tmp_path, monkeypatch):
    assert book().out == tmp_path / "01_a" / "quick"
    assert book().out.is_dir()
    monkeypatch.chdir(tmp_path)
    assert book("out_dir = 'a b/ä'").out == tmp_path / "a b" / "ä"
    monkeypatch.setattr(notebook, "project_root", lambda: tmp_path / "repository")
    monkeypatch.delenv("HARDTRAIN_FIGURES")
    assert book().out == tmp_path / "repository" / "figures" / "01_a" / "quick"


def test_changed_parameters_never_touch_the_committed_files(book, tmp_path, tiny_run, monkeypatch):
    for injected in ("epochs = 3", "keep = 0.1", "seeds = [0]\nuse_committed = False"):
        assert book(injected).out == tmp_path / "01_a" / "quick+changes"
    for injected in ("", "epochs = 20", "use_committed = False", "device = 'auto'"):
        assert book(injected).out == tmp_path / "01_a" / "quick"
    assert book(f"epochs = 3\nout_dir = {str(tmp_path / 'mine')!r}").out == tmp_path / "mine"
    # what stands in such a folder does not count as committed
    monkeypatch.setenv("HARDTRAIN_COMMITTED", str(tmp_path))
    changed = book("epochs = 3")
    run = tiny_run(epochs=1)
    changed.results([run])
    assert changed.run([run])["source"].item() == "store"
    book().results([run])
    assert changed.run([run])["source"].item() == str(tmp_path / "01_a" / "quick")


def test_runs_that_the_profile_no_longer_has_leave_its_folder(book, tiny_run, tmp_path):
    for changes, left in (("", 1), ("epochs = 3", 2), (f"out_dir = {str(tmp_path / 'o')!r}", 2)):
        one = book(changes)
        for seed in (0, 1):
            one.results([tiny_run(seed=seed, epochs=1)])
        assert len(pd.read_csv(one.out / "results.csv")) == left, changes
        one.results([tiny_run(seed=0, epochs=1), tiny_run(seed=1, epochs=1)])
        assert len(pd.read_csv(one.out / "results.csv")) == 2


def test_rows_of_a_table_that_is_complete_are_all_that_stay(book, tiny_run):
    """As a search asks for runs in stages; where nothing is trained, none are known to be gone."""
    runs = [tiny_run(seed=seed, epochs=1) for seed in range(3)]
    mine = book()
    mine.results(mine.run(runs))
    mine.trains = False
    mine.results(mine.run(runs[:1]))
    assert set(pd.read_csv(mine.out / "results.csv")["seed"]) == {0, 1, 2}
    mine.trains = True
    mine.results(mine.run(runs[:2]))
    assert set(pd.read_csv(mine.out / "results.csv")["seed"]) == {0, 1}


def test_two_programs_that_draw_into_one_folder_leave_it_whole(book, tiny_run):
    books = [book(), book()]
    store_results = [tiny_run(seed=seed, epochs=1) for seed in range(2)]
    for one in books:
        one.results(store_results)

    def draw(one, number):
        for again in range(5):
            one.save_table(pd.DataFrame({"error": [number + again / 10]}), "table_1_error")
            fig = Figure()
            fig.subplots().plot([number, again])
            one.save_figure(fig, "fig_1_number")
        one.finish()

    threads = [threading.Thread(target=draw, args=pair) for pair in zip(books, (1, 2), strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {"fig_1_number.pdf", "fig_1_number.png"} <= {p.name for p in books[0].out.iterdir()}
    assert damaged(books[0].out) == []


def test_a_finished_notebook_vouches_for_its_files(book, tiny_run):
    mine = book()
    mine.results([tiny_run(epochs=1)])
    mine.save_table(pd.DataFrame({"a": [1]}), "table_1_a")
    mine.finish()
    assert damaged(mine.out) == []
    (mine.out / "table_1_a.csv").write_text("a\n2\n")
    assert damaged(mine.out) == [f"{mine.out / 'table_1_a.csv'} is missing, torn or edited"]


def test_a_note_says_where_a_table_mixes_environments(book, tiny_run, monkeypatch):
    mine = book()
    first = mine.run([tiny_run(epochs=1)])
    assert len(first) == 1
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    mine.results([tiny_run(epochs=1), tiny_run(epochs=1, seed=1)])
    assert "runs of 2 environments (device, threads, cpu_capability, torch): 1 on" in mine.caption


def test_a_folder_that_cannot_be_written_is_refused(book, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"could not make .*file"):
        book(f"out_dir = {str(tmp_path / 'file' / 'below')!r}")
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(StoreError, match="cannot be written"):
        book()


def test_save_table_writes_csv_and_markdown(book):
    mine = book()
    frame = pd.DataFrame({"arm": ["plain", "trim"], "error (%)": [1.5, 2.0]})
    shown = mine.save_table(frame, "table_1_error", note="five seeds")
    assert pd.read_csv(mine.out / "table_1_error.csv").equals(frame)
    text = (mine.out / "table_1_error.md").read_text()
    assert "| plain | 1.5 |" in text
    assert "*five seeds*" in text
    assert shown.data == text
    assert "*" not in mine.save_table(frame, "table_2", note="").data


@pytest.mark.parametrize("name", ["fig_1", "1_table", "table_1/a", "table_../a"])
def test_save_table_refuses_other_names(book, name):
    mine = book()
    with pytest.raises(ParameterError, match="is not table_"):
        mine.save_table(pd.DataFrame({"a": [1]}), name)
    assert list(mine.out.iterdir()) == []
