"""Figure data: taken only if the same runs, settings, data and code made it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from hardtrain import ImageDataset, RunStore
from hardtrain.papers.mini_batch_trimming import kept_samples
from hardtrain.report import figure_data as module
from hardtrain.report import notebook
from hardtrain.report.figure_data import code_digest, figure_data, reached, stale
from hardtrain.report.notebook import choose_profile, sample_images
from hardtrain.runs import engines, sweep, train


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

    def make(data_root, size):
        made.append(data_root)
        return {"values": np.arange(size)}

    figure_data("fig_1", make, committed, data_root="here", size=2)
    figure_data("fig_1", make, tmp_path, data_root="there", size=2)
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
    monkeypatch.setattr(ImageDataset, "subset", None)  # whoever computes again fails
    figure_data("fig_2", notebook.sample_images, tmp_path, **arguments)
    monkeypatch.setattr("hardtrain.report.VERSION", 1000)
    with pytest.raises(TypeError):
        figure_data("fig_2", notebook.sample_images, tmp_path, **arguments)


@pytest.mark.parametrize("content", [b"", b"PK", b"no archive"])
def test_damaged_figure_data_is_made_again(tmp_path, committed, content):
    (committed / "fig_1.npz").write_bytes(content)
    np.save(committed / "bare.npy", np.arange(3))
    (committed / "fig_2.npz").write_bytes((committed / "bare.npy").read_bytes())
    for name in ("fig_1", "fig_2"):
        assert figure_data(name, counted([]), tmp_path)["values"].tolist() == [0, 1, 2]


# --- nothing stale -------------------------------------------------------------------------------

FIGURES = Path(__file__).resolve().parents[2] / "figures"
FOLDERS = sorted({path.parent for path in FIGURES.glob("*/quick/*.npz")})


def made_by(path):
    """The function that computed a committed file, and what stands beside its arrays."""
    about = module._about(path.read_bytes())
    return module._function(about["function"]), about


COMMITTED = [made_by(path) for folder in FOLDERS for path in sorted(folder.glob("*.npz"))]
COMPUTING = sorted(
    {
        item.__module__
        for make, _ in COMMITTED
        for item in reached(make)
        if item.__module__.split(".")[1] in module._COMPUTING
    }
)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.parent.name)
def test_committed_figure_data_was_computed_by_this_code(folder):
    assert stale(folder) == []


def test_figure_data_of_all_papers_is_covered():
    rooms = {name.split(".")[2] for name in COMPUTING if name.startswith("hardtrain.papers.")}
    assert rooms >= {folder.parent.name[3:] for folder in FOLDERS}
    assert len(COMPUTING) >= 15


@pytest.mark.parametrize("computing", COMPUTING)
def test_a_planted_change_in_any_computing_module_is_noticed(computing):
    def planted(item):
        text = module._source(item)
        ours = item.__module__ == computing
        return re.sub(r"\breturn ", "return 7 * ", text) if ours else text

    assert any(code_digest(make, planted) != about["code"] for make, about in COMMITTED)


@pytest.mark.parametrize("computing", COMPUTING)
def test_a_new_version_of_any_computing_room_makes_data_stale(computing, monkeypatch):
    room = computing
    while not hasattr(module.sys.modules[room], "VERSION"):
        room = room.rpartition(".")[0]
    assert room != "hardtrain"
    monkeypatch.setattr(module.sys.modules[room], "VERSION", 1000)
    versions = [json.loads(about["origin"])[3] for _, about in COMMITTED]
    now = [dict(module._versions(make)) for make, _ in COMMITTED]
    assert any(before != after for before, after in zip(versions, now, strict=True))


def test_code_digest_does_not_see_words():
    def text(item):
        return "# a comment\n" + module._source(item).replace('"""', '"""Other words. ', 1)

    assert code_digest(sample_images, text) == code_digest(sample_images)


def test_stale_names_a_function_that_is_gone(tmp_path):
    arrays = dict.fromkeys(("origin", "fingerprints", "code"), np.array(""))
    np.savez(tmp_path / "fig_1.npz", **arrays, function=np.array("hardtrain.report.text:gone"))
    np.savez(tmp_path / "fig_2.npz", **arrays, function=np.array("os:remove"))
    gone, foreign = stale(tmp_path)
    assert "hardtrain.report.text:gone is no function of ours" in gone
    assert "os:remove is no function of ours" in foreign


def test_stale_names_what_other_code_computed(tmp_path):
    sizes = {"datasets": ("digits",), "train_size": 20, "test_size": 20}
    figure_data("fig_1", sample_images, tmp_path, use_committed=False, **sizes)
    assert stale(tmp_path) == []
    with np.load(tmp_path / "fig_1.npz") as arrays:
        changed = dict(arrays) | {"code": np.array("0" * 20)}
    np.savez(tmp_path / "fig_1.npz", **changed)
    (line,) = stale(tmp_path)
    assert "hardtrain.report.notebook:sample_images reaches has changed since" in line


def test_figure_data_of_another_function_is_not_taken(tmp_path, committed):
    def doubled(factor):
        return {"values": 2 * factor * np.arange(3.0)}

    figure_data("fig_1", counted([]), committed, factor=1)
    assert figure_data("fig_1", doubled, tmp_path, factor=1)["values"].tolist() == [0, 2, 4]


def counted_up(*, size):
    return {"values": np.arange(size) % 7}


@pytest.mark.parametrize(
    "damage", ["empty", "flipped", "one bare array", "cut", "a folder", "words"]
)
def test_damaged_arrays_are_passed_over_with_a_line(tmp_path, monkeypatch, damage):
    folder = tmp_path / "figures" / "nb" / "quick"
    folder.mkdir(parents=True)
    monkeypatch.setenv("HARDTRAIN_COMMITTED", str(tmp_path / "figures"))
    figure_data("fig_9_x", counted_up, folder, size=500, use_committed=False)
    path = folder / "fig_9_x.npz"
    content = bytearray(path.read_bytes())
    if damage == "a folder":
        path.unlink()
        path.mkdir()
    elif damage == "words":
        with np.load(path) as arrays:
            changed = dict(arrays) | {"fingerprints": np.array("{no JSON")}
        np.savez(path, **changed)
    elif damage == "one bare array":
        with open(path, "wb") as file:
            np.save(file, np.zeros(3))
    else:
        for place in range(40, len(content) - 200, 3):
            content[place] ^= 0x55
        path.write_bytes({"empty": b"", "cut": content[:90]}.get(damage, content))
    with pytest.warns(UserWarning, match=r"not used: .*fig_9_x\.npz is torn, edited or none"):
        arrays = figure_data("fig_9_x", counted_up, tmp_path, size=500)
    assert (arrays["values"] == np.arange(500) % 7).all()
