"""Every notebook, executed with small parameters: it trains, is found done, and refuses nonsense.

A new notebook is one entry in ``NOTEBOOKS``. Kernels start slowly, so what needs none is executed
cell by cell in this process.
"""

import io
import itertools
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from click.testing import CliRunner
from papermill.cli import papermill as papermill_command

from hardtrain import DataError, ParameterError, Run, RunStore, run_missing, write_results
from hardtrain.report import plotting, timing
from hardtrain.report.notebook import END_MARKER
from hardtrain.runs.committed import damaged, read_csv
from hardtrain.training import loop

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
SMALL = {"epochs": 2, "seeds": [0, 1], "train_size": 200, "test_size": 100}


@dataclass(frozen=True)
class Notebook:
    """What a notebook must do with the parameters ``SMALL``."""

    num_runs: int
    figures: tuple[str, ...]
    tables: tuple[str, ...]
    arrays: tuple[str, ...]
    run: Run  # one of those that it trains
    times: tuple[str, ...] = ()  # what holds times, which are not the same again
    smaller: dict = field(default_factory=dict)  # more parameters that ``SMALL`` needs
    falling: bool = True  # all losses do; not where a search tries learning rates
    needed: int = 0  # trainings that others need before them, and no table shows

    @property
    def files(self) -> set[str]:
        pairs = itertools.product(self.figures, ("pdf", "png"))
        pairs = [*pairs, *itertools.product(self.tables, ("csv", "md"))]
        pairs += itertools.product(self.arrays, ("npz",))
        written = {"checksums.json", "results.csv", "history.csv", "timings.csv"}
        written |= {".".join(pair) for pair in pairs}
        return written | {"claims.csv"} if "fig_0_answer" in self.figures else written


NOTEBOOKS = {
    "01_mini_batch_trimming": Notebook(
        # seeds x (main, wrong labels, falling shares, constant shares, SGD)
        num_runs=2 * (3 + 3 + 4 + 2 + 2),
        figures=(
            "fig_0_answer", "fig_1_schedule", "fig_2_samples", "fig_3_test_error",
            "fig_4_last_share", "fig_5_kept_shares", "fig_6_kept_samples", "fig_7_tsne",
            "fig_8_step_time", "fig_9_equal_time", "fig_10_controls",
        ),
        tables=(
            "table_1_test_error", "table_2_last_share", "table_3_optimizers", "table_4_features",
            "table_5_printed", "table_6_controls", "table_7_step_time", "table_8_kept_shares",
        ),
        arrays=(
            "fig_2_samples", "fig_5_kept_shares", "fig_7_tsne", "fig_8_step_time",
        ),
        run=Run(
            dataset="digits", network="cnn_small", method="trimming", options={"end": 0.2},
            seed=1, epochs=2, batch_size=128, train_size=200, test_size=100, optimizer="adam",
            lr=0.001, weight_decay=0.0001, schedule="multistep", milestones=(1,), gamma=0.5,
        ),
        times=("fig_8_step_time", "table_7_step_time", "claims"),
    ),
    "02_hard_mini_batches": Notebook(
        num_runs=2 * (4 + 4 + 4),  # seeds x (deltas, controls, some with wrong labels)
        figures=(
            "fig_0_answer", "fig_1_convergence", "fig_2_timeline", "fig_3_accuracy",
            "fig_6_clock", "fig_7_choices", "fig_8_staleness", "fig_9_label_noise",
        ),
        tables=(
            "table_1_time", "table_2_networks", "table_3_cifar10", "table_4_cifar100",
            "table_5_stl10", "table_11_digits", "table_6_best_delta", "table_7_convergence",
            "table_8_stress", "table_9_audit", "table_10_claims", "table_12_staleness",
        ),
        arrays=(
            "samples", "fig_2_timeline", "table_1_time", "table_2_networks",
        ),
        run=Run(
            dataset="digits", network="cnn_small", method="hard_batches", seed=1, epochs=2,
            options={"delta": 0.5, "order": "loss"}, batch_size=32, train_size=200,
            test_size=100, lr=0.01, momentum=0.9, stem="imagenet", evaluate_train=True,
        ),
        times=("table_1_time", "claims"),
    ),
    "03_gradient_noise": Notebook(
        # seeds x (two rates of decay; as many updates, remedies, grid, constant noise; MLPs)
        num_runs=2 * (2 * 6 + 2 + 5 + 8 + 1 + 10),
        figures=(
            "fig_0_answer", "fig_1_minima", "fig_2_same_rate", "fig_3_sharpness",
            "fig_4_batch_sizes", "fig_5_iterations", "fig_6_interpolation", "fig_7_noise",
            "fig_8_directions", "fig_9_own_noise", "fig_10_grid", "fig_11_remedies",
        ),
        tables=(
            "table_1_literature", "table_2_accuracy", "table_3_differences", "table_4_share",
            "table_5_sharpness", "table_6_own_noise", "table_7_controls", "table_8_grid",
            "table_9_remedies", "table_10_claims", "table_11_between", "table_12_directions",
            "table_13_iterations",
        ),
        arrays=(
            "data_sets", "fig_6_interpolation", "fig_2_same_rate", "fig_8_directions",
            "fig_3_sharpness", "fig_9_own_noise", "table_6_own_noise",
        ),
        run=Run(
            dataset="digits", network="cnn_small_bn", method="gradient_noise",
            options={"alpha": 1e-5, "gamma": 0.55}, seed=1, epochs=2, batch_size=128, lr=0.256,
            schedule="multistep", milestones=(1,), gamma=0.9, train_size=256, test_size=100,
            stem="imagenet", evaluate_train=True,
        ),
        smaller={"train_size": 256},  # which its batch sizes divide
    ),
    "04_distribution_matching": Notebook(
        # seeds x (every weight, jointly with 1 and 5 kernels, controls, without batch-norm)
        num_runs=2 * (6 + 2 + 4 + 4),
        figures=(
            "fig_0_answer", "fig_1_curves", "fig_2_tsne_joint", "fig_3_weights",
            "fig_6_tsne_class", "fig_8_calibration", "fig_9_classes", "fig_10_distance",
            "fig_11_controls",
        ),
        tables=(
            "table_1_joint", "table_6_weights", "table_7_features", "table_8_calibration",
            "table_8_bins", "table_9_classes", "table_9_controls", "table_10_collapse",
            "table_11_audit", "table_12_claims", "table_13_protocol", "table_14_digits",
            "table_15_overfitting",
        ),
        arrays=(
            "data_sets", "fig_8_calibration", "table_8_calibration", "table_7_features",
            "table_7_joint", "fig_2_tsne_digits", "fig_6_tsne_digits",
        ),
        run=Run(
            dataset="digits", network="cnn_small_bn", method="distribution_matching", seed=1,
            epochs=2, options={"weight": 0.4}, batch_size=150, lr=0.2, momentum=0.5,
            schedule="multistep", gamma=0.2, milestones=(1, 2), balanced=True, train_size=200,
            test_size=100,
        ),
    ),
    "05_data_parallelism": Notebook(
        # curves x batch sizes x searches x trials, one in place of one that diverges, and pilots
        # of two networks and of wrong labels
        num_runs=5 * 4 * 2 * 2 + 1 + 3 * 4,
        figures=(
            "fig_0_answer", "fig_1_steps", "fig_2_rates", "fig_3_budgets", "fig_4_comparisons",
            "fig_7_trials", "fig_8_noisy_quadratic", "fig_9_curves",
        ),
        tables=(
            "table_1_best", "table_2_regimes", "table_3_rules", "table_4_budgets",
            "table_5_comparisons", "table_6_noisy_quadratic", "table_7_goals", "table_8_scale",
        ),
        arrays=("fig_1_sizes", "fig_8_noisy_quadratic"),
        run=Run(
            dataset="digits", network="mlp", seed=1, epochs=16, batch_size=32, drop_last=True,
            lr=0.101, momentum=0.4651, nesterov=True, schedule="linear", gamma=1.0,
            step_epochs=16, evaluate_every=3, evaluate_unit="step", train_size=200,
            test_size=100, validation_size=400,
        ),
        smaller={"batch_sizes": [8, 32, 64, 128], "num_trials": 2, "max_rounds": 1},
        falling=False,
    ),
    "06_active_bias": Notebook(
        # seeds x (arms x labels, two variants twice x settings but for the one of the arms)
        num_runs=2 * (11 * 3 + 4 * 5),
        figures=(
            "fig_0_answer", "fig_1_scores", "fig_3_differences", "fig_4_curves",
            "fig_5_trade_off", "fig_6_wrong_labels", "fig_7_emphasised", "fig_8_correlations",
            "fig_9_sensitivity",
        ),
        tables=(
            "table_1_formulas", "table_2_test_error", "table_3_reduction", "table_4_trade_off",
            "table_5_directions", "table_6_sensitivity", "table_7_readings", "table_8_rises",
            "table_9_settings", "table_10_correlations",
        ),
        arrays=(
            "samples", "fig_6_wrong_labels", "fig_7_emphasised", "fig_8_correlations",
            "table_7_readings",
        ),
        run=Run(
            dataset="digits", network="cnn_small", method="active_bias", seed=1, epochs=2,
            options={"variant": "SPV", "smoothing": 0.2, "burn_in": 0.075, "relative": False},
            batch_size=32, lr=0.03, momentum=0.9, schedule="multistep", milestones=(2,),
            train_size=200, test_size=100, label_noise=0.3,
        ),
    ),
    "07_subset_search": Notebook(
        # trainings of two ensembles: on all data, on three parts, with wrong labels; seeds x
        # (all data, sizes x ways to choose, longer ones, fewer members, transfer, wrong labels);
        # the largest subsets by variation ratio and error count are the same
        num_runs=2 * 3 * 5 + 2 * (1 + 3 * 9 - 1 + 6 + 5 + 6 + 4),
        figures=(
            "fig_0_answer", "fig_1_test_error", "fig_2_members", "fig_3_budget", "fig_4_transfer",
            "fig_5_samples", "fig_6_overlap", "fig_7_label_errors", "fig_9_suspects",
        ),
        tables=(
            "table_1_test_error", "table_2_budget", "table_3_members", "table_4_transfer",
            "table_5_scores", "table_6_label_errors", "table_7_wrong_labels",
            "table_8_ensembles",
        ),
        arrays=(
            "samples", "fig_8_labels_digits", "fig_5_samples", "fig_9_suspects",
            *(f"{name}_{number}" for number in range(2) for name in (
                "fig_1_scores_digits", "fig_1_grown_digits_0", "fig_1_grown_digits_1",
                "fig_1_grown_digits_2", "fig_2_members", "fig_7_label_errors")),
        ),
        run=Run(
            dataset="digits", network="cnn_small", seed=1, epochs=2, batch_size=16, lr=0.05,
            momentum=0.9, nesterov=True, weight_decay=0.0005, schedule="cosine",
            train_size=200, test_size=100,
        ),
        smaller={"num_ensembles": 2, "batch_size": 16},
    ),
    "08_compare": Notebook(
        num_runs=(3 * 20 + 4) * 2,  # settings x arms, and four at equal epochs, x seeds
        needed=3 * 2 * 2,  # for reducible loss, on the halves of each setting
        figures=("fig_1_samples", "fig_2_differences", "fig_3_curves", "fig_4_classes"),
        tables=("table_1_arms", "table_2_equal_samples", "table_3_equal_time", "table_4_gains",
                "table_5_equal_epochs", "table_6_ranking", "table_7_cautions"),
        arrays=("fig_1_samples", "fig_1_unbalanced", "table_3_costs"),
        times=("fig_3_curves", "table_3", "table_4_gains", "table_5", "table_6_ranking"),
        run=Run(
            dataset="digits", network="cnn_small_bn", seed=1, epochs=2, batch_size=32, lr=0.05,
            momentum=0.9, train_size=200, test_size=100,
        ),
        falling=False,  # some minimise something else
    ),
}  # fmt: skip

# runs in the kernel before the first cell: no network, and times are measured only once. A kernel
# that fails to run it only warns, so it leaves a file; so does each measurement.
STARTUP = """
import pathlib
import socket
from hardtrain.report import timing

def refuse(*args, **kwargs):
    raise OSError("network is unreachable")

def once(functions, *_, **__):
    pathlib.Path("measured").touch()
    return measure(functions, 1, warmup=0)

socket.getaddrinfo = refuse
measure, timing.interleaved = timing.interleaved, once
pathlib.Path("started").touch()
"""


@dataclass(frozen=True)
class Place:
    """Folders of one notebook's executions; the working folder is none of ours."""

    folder: Path

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def records(self) -> dict[str, int]:
        """Names of the trained runs, and when each was written."""
        paths = self.folder.glob("runs/records/*.json")
        return {path.name: path.stat().st_mtime_ns for path in paths}

    def drawn(self) -> list[str]:
        """Every figure, table or result, wherever it was written to."""
        paths = [*self.out.rglob("*"), *(self.folder / "figures").rglob("*")]
        return sorted(path.name for path in paths if path.is_file())

    def parameters(self, stem: str, **given) -> dict:
        small = SMALL | NOTEBOOKS[stem].smaller
        start = {"profile": "quick", "use_committed": False, "out_dir": str(self.out)}
        return small | start | given

    def set_environment(self, patch: pytest.MonkeyPatch) -> None:
        patch.setenv("IPYTHONDIR", str(self.folder / "ipython"))
        patch.setenv("HARDTRAIN_RUNS", str(self.folder / "runs"))
        patch.setenv("HARDTRAIN_FIGURES", str(self.folder / "figures"))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", str(FOLDER.parent), prepend=os.pathsep)  # this checkout

    def execute(self, stem: str, **given) -> tuple[int, str]:
        """In a kernel, with papermill: its exit code and the error, if any."""
        startup = self.folder / "ipython" / "profile_default" / "startup"
        startup.mkdir(parents=True)
        (startup / "small.py").write_text(STARTUP)
        command = [str(FOLDER / f"{stem}.ipynb"), str(self.folder / f"{stem}.ipynb")]
        command += ["-k", "python3", "--cwd", str(self.folder), "--no-progress-bar"]
        command += ["--execution-timeout", "300", "-y", json.dumps(self.parameters(stem, **given))]
        with pytest.MonkeyPatch.context() as patch:
            self.set_environment(patch)
            result = CliRunner().invoke(papermill_command, command)
        assert (self.folder / "started").is_file(), result.output
        return result.exit_code, str(result.exception or "")

    def execute_here(self, stem: str, **given) -> object:
        """In this process, without drawing; the value of the last cell."""
        first, *others, last = (
            cell.source
            for cell in nbformat.read(FOLDER / f"{stem}.ipynb", 4).cells
            if cell.cell_type == "code"
        )
        lines = [f"{name} = {value!r}" for name, value in self.parameters(stem, **given).items()]
        injected = "\n".join(["# Parameters", *lines])
        namespace = {"In": [""]}
        measure = timing.interleaved
        with pytest.MonkeyPatch.context() as patch, matplotlib.rc_context({"backend": "agg"}):
            self.set_environment(patch)
            patch.chdir(self.folder)
            patch.setattr(plotting, "save", touch)
            patch.setattr(timing, "interleaved", lambda f, *_, **__: measure(f, 1, warmup=0))
            patch.setattr("socket.getaddrinfo", refuse)
            try:
                for source in (first, injected, *others):
                    namespace["In"].append(source)
                    exec(source, namespace)
                namespace["In"].append(last)
                return eval(last, namespace)
            finally:
                plt.close("all")


def touch(_, folder, name, *__):
    for suffix in ("pdf", "png"):
        Path(folder, f"{name}.{suffix}").touch()


def refuse(*_, **__):
    raise OSError("network is unreachable")


def contents(folder: Path) -> dict[str, bytes]:
    """All that is the same again: neither how long something took, nor pictures."""
    paths = [path for path in folder.iterdir() if path.suffix in (".csv", ".md", ".npz")]
    return {path.name: path.read_bytes() for path in paths if path.name != "timings.csv"}


def assert_trained(folder: Path, run: Run, store: RunStore, falling: bool = True) -> None:
    """The numbers in ``folder`` come from training: the losses fall (if not of all runs, then of
    ``run``), and ``run``, trained here and now, ends with the same."""
    history = read_csv(folder / "history.csv")
    if not falling:
        history = history[history["key"] == run.key]
        assert len(history)
    for _, losses in history.sort_values("epoch").groupby("key")["train_loss"]:
        assert losses.iloc[-1] < losses.iloc[0]
    results = read_csv(folder / "results.csv").set_index("key")
    again = run_missing([run], store, use_committed=False).iloc[0]
    for name in ("train_loss", "test_loss", "test_error"):
        assert results.loc[run.key, name] == pytest.approx(again[name], rel=1e-5)


@pytest.fixture(scope="module", params=NOTEBOOKS)
def executed(request, tmp_path_factory):
    """A notebook's name and the place where it was executed once, from an empty store."""
    place = Place(tmp_path_factory.mktemp("executed"))
    exit_code, error = place.execute(request.param)
    assert exit_code == 0, error
    return request.param, place


# --- a notebook that works -----------------------------------------------------------------------


def test_notebook_writes_what_it_promises(executed):
    stem, place = executed
    written = {path.name: path.stat().st_size for path in place.out.glob("[!.]*")}
    assert set(written) == NOTEBOOKS[stem].files
    assert damaged(place.out) == []
    assert all(written.values())
    assert not (place.folder / "figures").exists()  # out_dir was given
    last = nbformat.read(place.folder / f"{stem}.ipynb", 4).cells[-1]
    assert END_MARKER in last.outputs[0].data["text/plain"]
    assert (place.folder / "measured").is_file() == bool(NOTEBOOKS[stem].times)


def test_notebook_trains_each_run_once(executed):
    stem, place = executed
    assert len(place.records()) == NOTEBOOKS[stem].num_runs + NOTEBOOKS[stem].needed
    assert len(read_csv(place.out / "results.csv")) == NOTEBOOKS[stem].num_runs


def test_notebook_shows_numbers_of_the_training_loop(executed, store):
    stem, place = executed
    assert_trained(place.out, NOTEBOOKS[stem].run, store, NOTEBOOKS[stem].falling)


def assert_same_arrays(ours, others):
    ours, others = (np.load(io.BytesIO(content)) for content in (ours, others))
    assert ours.files == others.files
    for name in ours.files:
        if ours[name].dtype.kind == "f":
            np.testing.assert_allclose(ours[name], others[name], rtol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(ours[name], others[name], err_msg=name)


def test_notebook_again_trains_nothing_and_writes_the_same(executed):
    stem, place = executed
    records, files = place.records(), contents(place.out)
    assert END_MARKER in place.execute_here(stem)
    assert place.records() == records
    again = contents(place.out)
    assert again.keys() == files.keys()
    for name in again:
        if name.startswith(NOTEBOOKS[stem].times):
            continue
        if name.endswith(".npz"):  # eigenvalues agree to the sixth digit from process to process
            assert_same_arrays(again[name], files[name])
        else:
            assert again[name] == files[name], name


def test_the_comparison_answers_for_little_data_of_ones_own_in_a_given_time(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("IPython.display.display", lambda what: print(what.data))
    monkeypatch.setattr("hardtrain.papers.compare.plan.within", lambda *_: (2, [0, 1]))
    images = np.random.default_rng(0).integers(0, 99, (45, 8, 10), dtype=np.uint8)
    labels = np.array(3 * (8 * ["ant"] + 4 * ["bee"] + 3 * ["cat"]))
    images[labels == "bee"] += 99
    np.savez(tmp_path / "mine.npz", images=images, labels=labels)
    place = Place(tmp_path)
    given = {"datasets": [str(tmp_path / "mine.npz")], "minutes": 0.05, "batch_size": 12}
    given |= dict.fromkeys(("epochs", "seeds", "train_size", "test_size"))
    assert END_MARKER in place.execute_here("08_compare", **given)
    said = capsys.readouterr().out
    assert "train_size: 36 in place of the profile's 400; there are no more images" in said
    assert "8x10 is no square: images are resized to 8x8" in said
    assert "0.05 minutes are too few: this takes about 1" in said
    assert "On the data as it is, " in said
    assert "balanced" in (place.out / "table_7_cautions.csv").read_text()
    assert "2 epochs, 2 seeds (in 0.05 minutes)" in (place.out / "table_6_ranking.md").read_text()


@pytest.mark.parametrize("stem", ["03_gradient_noise", "04_distribution_matching"])
def test_notebook_with_train_false_shows_what_there_is(stem, tmp_path):
    """Here nothing: tables say so, figures stay empty or are left out, claims are not run."""
    place = Place(tmp_path)
    assert END_MARKER in place.execute_here(stem, train=False)
    assert not place.records()
    assert set(read_csv(place.out / "claims.csv")["finding"]) == {"not run"}


def test_numbers_of_no_training_are_noticed(tmp_path, store, monkeypatch):
    """A test of `assert_trained`: a stub in place of the loop must not pass."""

    def stub(run, model, method, evaluate, **_):
        numbers = {**evaluate(model), "train_loss": 1.0}
        return [{"epoch": epoch + 1, "step": epoch + 1} | numbers for epoch in range(run.epochs)]

    run = NOTEBOOKS["01_mini_batch_trimming"].run
    with monkeypatch.context() as patch:
        patch.setattr(loop, "fit", stub)
        write_results(run_missing([run], store, use_committed=False), store, tmp_path)
    with pytest.raises(AssertionError):
        assert_trained(tmp_path, run, RunStore(tmp_path / "other"))
    honest = RunStore(tmp_path / "honest")
    write_results(run_missing([run], honest, use_committed=False), honest, tmp_path)
    assert_trained(tmp_path, run, RunStore(tmp_path / "another"))


# --- a notebook that refuses ---------------------------------------------------------------------


REFUSED = {
    "misspelt": ({"epoch": 3}, ["unknown parameter 'epoch'", "did you mean 'epochs'?"]),
    "type": ({"epochs": "3"}, ["epochs = '3' is str, not int"]),
    "data set": (
        {"datasets": ["digit"]}, ["unknown data set 'digit'", "did you mean 'digits'?"]
    ),
    "network": (
        {"networks": ["cnn-small"]}, ["unknown network 'cnn-small'", "did you mean 'cnn_small'?"]
    ),
    "no data": (
        {"datasets": ["mnist"]}, ["mnist_train.npz", "data", "unreachable", "HARDTRAIN_DATA"]
    ),
}  # fmt: skip
FIRST, *OTHERS = NOTEBOOKS
PAIRS = [(FIRST, fault) for fault in REFUSED] + [(stem, "no data") for stem in OTHERS]


@pytest.mark.parametrize(("stem", "fault"), PAIRS)
def test_notebook_refuses_before_it_trains_or_draws(tmp_path, stem, fault):
    (tmp_path / "data").mkdir()
    place = Place(tmp_path)
    parameters, texts = REFUSED[fault]
    began = time.perf_counter()
    exit_code, error = place.execute(stem, data_root=str(tmp_path / "data"), **parameters)
    assert time.perf_counter() - began < 60  # nothing waits for a network that is not there
    assert exit_code != 0
    for text in texts:
        assert text in error
    assert place.records() == {}
    assert place.drawn() == []


@pytest.mark.parametrize("fault", [fault for fault in REFUSED if fault != "no data"])
@pytest.mark.parametrize("stem", OTHERS)
def test_notebook_without_a_kernel_refuses_the_same(tmp_path, stem, fault):
    place = Place(tmp_path)
    parameters, texts = REFUSED[fault]
    with pytest.raises((ParameterError, DataError)) as error:
        place.execute_here(stem, **parameters)
    for text in texts:
        assert text in str(error.value)
    assert place.records() == {}
    assert place.drawn() == []
