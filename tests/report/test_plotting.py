"""Figures: what they draw, and that the same figure is the same file."""

import io
import os
import subprocess
import sys

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import colors
from matplotlib.figure import Figure
from matplotlib.text import Text

from hardtrain import ParameterError, Run, StoreError
from hardtrain.report.embedding import plot_embedding
from hardtrain.report.plotting import (
    _METHODS,
    arm_differences,
    band,
    beside_printed,
    image_grid,
    intervals,
    learning_curves,
    log_axis,
    method_label,
    method_style,
    save,
    use_style,
    variant_styles,
)
from hardtrain.statistics import PairedDifference, mean_interval

TWO = ("plain", "trimming")


@pytest.fixture(autouse=True)
def _own_settings():
    with matplotlib.rc_context({"backend": "agg"}):
        yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


def lightness(colour):
    """CIE L* in 0..100: what is left of a colour in a grey print."""
    rgb = np.array(colors.to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return 116 * np.cbrt(luminance) - 16 if luminance > 0.008856 else 903.3 * luminance


def curves(shift=0.0, panels=1):
    use_style()
    fig = Figure(figsize=(3.5 * panels, 2.8))
    for ax in fig.subplots(1, panels, squeeze=False).flat:
        values = np.random.default_rng(0).random((5, 30)) + shift
        for method in ("plain", "trimming"):
            band(ax, np.arange(30), values, method=method)
        ax.set(xlabel="epoch", ylabel="test error (%)", title="δ = 0.5")
        ax.legend()
    return fig


# --- style -----------------------------------------------------------------------------------


def test_use_style_keeps_inline_figures_small_and_fonts_embedded():
    use_style()
    assert matplotlib.rcParams["pdf.fonttype"] == 42
    assert matplotlib.rcParams["svg.hashsalt"]
    assert matplotlib.rcParams["figure.constrained_layout.use"]
    width, height = Figure(figsize=(7, 2.8)).canvas.get_width_height()
    assert width * height < 150_000


def test_method_style_is_unique_to_each_method():
    for key in ("color", "linestyle", "marker"):
        assert len({str(method_style(method)[key]) for method in _METHODS}) == len(_METHODS)


@pytest.mark.parametrize(
    ("first", "second"),
    [("plain", method) for method in _METHODS if method != "plain"]
    + [
        ("itdm_joint", "itdm_class"),
        ("active_bias_sampling", "active_bias_weighting"),
        ("subset", "subset_random"),
    ],
)
def test_method_style_of_methods_that_meet_differs_in_grey(first, second):
    lightnesses = [lightness(method_style(method)["color"]) for method in (first, second)]
    assert abs(lightnesses[0] - lightnesses[1]) > 15


def test_method_style_and_label_name_the_nearest_method():
    for function in (method_style, method_label):
        with pytest.raises(ParameterError, match="did you mean 'hard_batches'"):
            function("hard_batch")
    assert method_label("plain") == "Plain training"


def test_method_style_cannot_be_changed_from_outside():
    method_style("plain")["color"] = "red"
    assert method_style("plain")["color"] == "#000000"


def test_variant_styles_go_from_dark_to_light():
    for method in _METHODS:
        styles = variant_styles(method, 4)
        levels = [lightness(style["color"]) for style in styles]
        assert (np.diff(levels) > 6).all()
        assert levels[-1] < 90  # still visible on white
        assert len({str(style["linestyle"]) for style in styles}) == 4
    with pytest.raises(ParameterError, match="num = 9 is more than 8"):
        variant_styles("plain", 9)


# --- save ------------------------------------------------------------------------------------

SAVE_ONE = """
import sys
import numpy as np
from matplotlib.figure import Figure
from hardtrain.report.embedding import plot_embedding
from hardtrain.report.plotting import band, save, use_style
use_style()
fig = Figure(figsize=(7, 2.8))
left, right = fig.subplots(1, 2)
band(left, np.arange(9), np.random.default_rng(0).random((5, 9)), method="trimming")
left.set(xlabel="δ", title="$x^2$")
left.legend()
points = np.random.default_rng(0).normal(size=(100, 2))
plot_embedding(right, points, np.arange(100) % 4, ["cat", "dog", "elk", "fly"], marked=[3])
save(fig, out_dir, "fig_1_test")
"""


def saved(fig, folder, name):
    """The files that `save` wrote, PDF first."""
    save(fig, folder, name)
    return [folder / f"{name}.{suffix}" for suffix in ("pdf", "png")]


def test_save_writes_the_same_bytes_in_every_process(tmp_path):
    hidden = ("DISPLAY", "MPLBACKEND", "PYTHONHASHSEED")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"PYTHONHASHSEED": "7", "SOURCE_DATE_EPOCH": "7"}
    if os.environ.get("PYTHONHASHSEED") == "7":
        environment["PYTHONHASHSEED"] = "8"
    code = f"out_dir = {str(tmp_path / 'there')!r}" + SAVE_ONE
    code += "sys.exit('matplotlib.pyplot' in sys.modules)"  # the import needs no display
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
    matplotlib.rcdefaults()
    exec(SAVE_ONE, {"out_dir": tmp_path / "here"})
    for suffix in ("pdf", "png"):
        here, there = (tmp_path / side / f"fig_1_test.{suffix}" for side in ("here", "there"))
        assert here.read_bytes() == there.read_bytes()


def test_save_leaves_an_unchanged_file_untouched(tmp_path):
    fig = curves(panels=2)
    assert fig.get_layout_engine() is not None  # the one that moves a little at each drawing
    paths = saved(fig, tmp_path / "new" / "folder", "fig_2_a")
    before = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in paths]
    save(fig, paths[0].parent, "fig_2_a")  # the same figure, drawn again
    save(curves(panels=2), paths[0].parent, "fig_2_a")
    assert [(path.stat().st_ino, path.stat().st_mtime_ns) for path in paths] == before
    assert sorted(path.name for path in paths[0].parent.iterdir()) == ["fig_2_a.pdf", "fig_2_a.png"]


def test_save_replaces_a_file_whose_data_changed(tmp_path):
    old = [path.read_bytes() for path in saved(curves(), tmp_path, "fig_2")]
    new = [path.read_bytes() for path in saved(curves(shift=0.1), tmp_path, "fig_2")]
    assert old[0] != new[0]
    assert old[1] != new[1]


def test_save_writes_no_date_and_no_version_and_whole_fonts(tmp_path):
    pdf, png = (path.read_bytes() for path in saved(curves(panels=2), tmp_path, "fig_2"))
    for word in (b"CreationDate", b"atplotlib", b"tEXt", b"tIME"):
        assert word not in pdf + png
    assert pdf.startswith(b"%PDF")
    assert b"/CIDFontType2" in pdf or b"/TrueType" in pdf
    assert b"/Type3" not in pdf
    assert len(png) < 100_000


def test_save_does_not_depend_on_the_settings_of_the_caller(tmp_path):
    fig = curves()
    first = [path.read_bytes() for path in saved(fig, tmp_path, "fig_2_a")]
    matplotlib.rcParams.update({"savefig.bbox": "tight", "savefig.dpi": 30, "pdf.fonttype": 3})
    second = [path.read_bytes() for path in saved(fig, tmp_path, "fig_2_b")]
    assert first == second
    assert matplotlib.rcParams["pdf.fonttype"] == 3


def test_save_keeps_the_old_file_when_the_disk_refuses(tmp_path, monkeypatch):
    old = [path.read_bytes() for path in saved(curves(), tmp_path, "fig_2")]

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(StoreError, match="No space left"):
        save(curves(shift=0.1), tmp_path, "fig_2")
    assert [(tmp_path / f"fig_2.{suffix}").read_bytes() for suffix in ("pdf", "png")] == old
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["2_a", "fig_", "fig_/a", "../fig_1", "fig_1.png", "fig 1"])
def test_save_rejects_other_names(tmp_path, name):
    with pytest.raises(ParameterError, match="name must be"):
        save(Figure(), tmp_path / "new", name)
    assert not (tmp_path / "new").exists()


# --- band ------------------------------------------------------------------------------------


def test_band_draws_the_mean_and_the_t_interval():
    ax = Figure().subplots()
    line = band(ax, [5, 6], [[1.0, 0.0], [2.0, 0.5], [3.0, 0.1]], method="trimming")
    np.testing.assert_allclose(line.get_xydata(), [[5, 2.0], [6, 0.2]])
    assert line.get_label() == "Mini-batch trimming"
    assert line.get_color() == method_style("trimming")["color"]
    corners = ax.collections[0].get_paths()[0].vertices
    heights = sorted(set(corners[corners[:, 0] == 5][:, 1]))
    np.testing.assert_allclose(heights, [2 - 2.48414, 2 + 2.48414], atol=1e-5)
    interval = mean_interval([0.0, 0.5, 0.1])
    heights = sorted(set(corners[corners[:, 0] == 6][:, 1]))
    np.testing.assert_allclose(heights, [interval.low, interval.high])


def test_band_of_logarithms_is_a_geometric_mean():
    ax = Figure().subplots()
    line = band(ax, [5], [[1.0], [4.0]], log=True)
    assert line.get_ydata()[0] == pytest.approx(2.0)
    with pytest.raises(ParameterError, match="positive"):
        band(ax, [5], [[1.0], [0.0]], log=True)


def test_band_of_one_seed_is_a_line():
    ax = Figure().subplots()
    line = band(ax, [1, 2], [[0.5, 0.4]], label="one", color="red")
    assert (line.get_label(), line.get_color()) == ("one", "red")
    assert len(ax.collections) == 0


def test_band_lets_the_caller_override_the_style():
    line = band(Figure().subplots(), [1], [[0.5]], method="plain", label="mine", color="#112233")
    assert (line.get_label(), line.get_color(), line.get_marker()) == ("mine", "#112233", "o")


def test_band_without_a_finished_run_says_so_in_the_legend():
    line = band(Figure().subplots(), [], np.zeros((0, 0)), method="plain")
    assert line.get_label() == "Plain training: no finished run"
    assert len(line.get_xdata()) == 0


@pytest.mark.parametrize(
    ("x", "values", "arguments"),
    [
        ([1, 2], [0.5, 0.4], {}),
        ([1, 2], [[0.5, np.nan]], {}),
        ([1, 2], [[0.5, 0.4]], {"method": "plane"}),
    ],
)
def test_band_rejects(x, values, arguments):
    with pytest.raises(ParameterError):
        band(Figure().subplots(), x, values, **arguments)


# --- image_grid ------------------------------------------------------------------------------


def test_image_grid_shows_each_image_with_its_caption():
    images = np.arange(5 * 3 * 4 * 4).reshape(5, 3, 4, 4).astype(np.uint8)
    fig = image_grid(images, ["a", "b", "c", "d", "e"], columns=3)
    assert [ax.get_xlabel() for ax in fig.axes] == ["a", "b", "c", "d", "e"]
    for ax, image in zip(fig.axes, images, strict=True):
        np.testing.assert_array_equal(ax.images[0].get_array(), image.transpose(1, 2, 0))


def test_image_grid_does_not_smooth_or_rescale_grey():
    fig = image_grid(np.array([[[[100, 150], [150, 100]]]], dtype=np.uint8), [""], size=1.0)
    fig.canvas.draw()
    pixels = np.asarray(fig.canvas.buffer_rgba())[..., :3]
    found, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    inside = {tuple(c) for c, n in zip(found.tolist(), counts, strict=True) if n > 100}
    assert inside == {(100, 100, 100), (150, 150, 150), (255, 255, 255)}


@pytest.mark.parametrize("names", [["$$", "dog"], [r"$\frac$", "_x"], ["US$_5 to US$_9", "a^b"]])
def test_names_with_dollar_signs_are_shown_as_written(tmp_path, names):
    fig = image_grid(np.zeros((2, 1, 8, 8), dtype=np.uint8), names)
    left, right = Figure().subplots(1, 2)
    left.set_title(f"{names[0]}, plain")
    plot_embedding(right, np.eye(4)[:, :2], [0, 0, 1, 1], names)
    assert [text.get_text() for text in right.get_legend().get_texts()] == names
    for number, figure in enumerate((fig, left.figure)):
        save(figure, tmp_path, f"fig_{number}", note=f"changed: {names[0]}")
        shown = [text for text in figure.findobj(Text) if names[0] in text.get_text()]
        assert len(shown) == (2, 3)[number]
        assert not any(text.get_parse_math() for text in shown)


@pytest.mark.parametrize("drawn_before", [False, True])
def test_ticks_of_a_logarithmic_axis_stay_powers(tmp_path, drawn_before):
    ax = Figure().subplots()
    ax.set(xscale="log", xlim=(1e-3, 1))
    if drawn_before:
        ax.figure.savefig(io.BytesIO())
    save(ax.figure, tmp_path, "fig_1_log")
    assert all(text.get_parse_math() for text in ax.get_xticklabels() if text.get_text())


def test_image_grid_captions_are_inside_the_figure():
    fig = image_grid(np.zeros((7, 1, 8, 8), dtype=np.uint8), titles=["ab\ncd"] * 7, columns=4)
    fig.canvas.draw()
    for ax in fig.axes:
        box = ax.xaxis.label.get_window_extent()
        assert 0 <= box.x0 < box.x1 <= fig.bbox.x1
        assert 0 <= box.y0 < box.y1 <= fig.bbox.y1


# --- axes and rows ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "texts"),
    [
        ((0.02, 0.6), ["0.02", "0.05", "0.1", "0.2", "0.5"]),
        ((60, 3), ["5", "10", "20", "50"]),
        ((0.5e-5, 2), ["1e-05", "0.0001", "0.001", "0.01", "0.1", "1"]),
        ((2.19, 2.41), ["2.2", "2.3", "2.4"]),
        ((0.21, 0.99), ["0.3", "0.4", "0.5", "0.7"]),
        ((11.5, 32), ["12", "15", "20", "30"]),
    ],
)
def test_log_axis_has_plain_numbers_over_any_range(limits, texts):
    ax = Figure().subplots()
    log_axis(ax.yaxis)
    ax.set_ylim(limits)
    assert [label.get_text() for label in ax.get_yticklabels()] == texts
    assert ax.get_yscale() == "log"
    assert not len(ax.get_yticks(minor=True))


def test_log_axis_has_fewer_numbers_side_by_side():
    ax = Figure().subplots()
    for axis in (ax.xaxis, ax.yaxis):
        log_axis(axis)
    ax.set(xlim=(0.9, 110), ylim=(0.9, 110))
    assert [len(ticks) for ticks in (ax.get_xticks(), ax.get_yticks())] == [3, 7]


def test_intervals_of_a_single_seed_have_a_marker_and_say_that_there_is_no_bar():
    ax = Figure().subplots()
    found = [mean_interval(own) for own in ([0.2], [0.1, 0.3], [9.0])]
    intervals(ax, ["one", "two", "far"], found)
    assert [container.has_xerr for container in ax.containers] == [False, True, False]
    assert [(text.get_text(), text.xy) for text in ax.texts] == [
        ("one seed, no interval", (0.2, 0)),
        ("one seed, no interval", (9.0, 2)),
    ]
    assert [text.get_ha() for text in ax.texts] == ["left", "right"], "inside the axes"


def test_the_papers_number_has_no_methods_colour():
    ax = Figure().subplots()
    beside_printed(ax, ["a"], [None], [0.3])
    (paper,) = [line for line in ax.lines if line.get_label() == "paper"]
    assert paper.get_markerfacecolor() == "none"
    others = [method_style(method)["color"] for method in _METHODS if method != "plain"]
    assert paper.get_markeredgecolor() not in others


def test_intervals_of_equal_differences_say_so_in_place_of_a_bar():
    few = PairedDifference(0.3, -np.inf, np.inf, 0.25, 3)
    many, other = PairedDifference(0.0, 0.0, 0.0, 1.0, 10), PairedDifference(0.1, 0, 0.2, 0.05, 5)
    ax = Figure().subplots()
    intervals(ax, ["few", "many", "other", "none"], [few, many, other, None], missing="none run")
    none, *equal = ax.texts
    assert [(text.get_text(), text.xy) for text in equal] == [
        ("equal in every seed", (0.3, 0)),
        ("equal in every seed", (0.0, 1)),
    ]
    assert (none.get_text(), none.get_position()) == ("none run", (0.99, 3))
    assert not ax.containers[0].has_xerr
    over = Figure().subplots()  # what is drawn over another's rows says nothing in them
    intervals(over, ["other", "none"], [other, None])
    assert not any(text.get_text() for text in over.texts)


def test_intervals_run_from_the_top_down():
    ax = Figure().subplots()
    intervals(ax, ["first", "second"], [mean_interval([0.1, 0.3]), mean_interval([0.5, 0.7])])
    rows = {label.get_text(): label.get_position()[1] for label in ax.get_yticklabels()}
    heights = [container[0].get_ydata()[0] for container in ax.containers]
    assert heights == [rows["first"], rows["second"]]
    screen = [ax.transData.transform((0, rows[name]))[1] for name in ("first", "second")]
    assert screen[0] > screen[1]


def test_learning_curves_draw_an_arm_each_in_percent():
    arms = {name: [Run(dataset="digits", network="mlp", method=name)] for name in TWO}
    history = pd.DataFrame(
        {"key": run.key, "epoch": 1, "test_error": 0.1 + 0.1 * i}
        for i, (run,) in enumerate(arms.values())
    )
    ax = Figure().subplots()
    learning_curves(ax, history, arms)
    labels = [method_label(name) for name in TWO]
    assert [line.get_label() for line in ax.lines] == labels
    assert [float(line.get_ydata()[0]) for line in ax.lines] == pytest.approx([10, 20])
    styles = {name: {"color": "red"} for name in TWO}
    learning_curves(ax, history, arms, scale=1, styles=styles)
    assert [line.get_label() for line in ax.lines[2:]] == list(TWO)
    assert float(ax.lines[2].get_ydata()[0]) == pytest.approx(0.1)


def test_arm_differences_are_to_the_baseline():
    arms = {name: [Run(dataset="digits", network="mlp", method=name)] for name in TWO}
    results = pd.DataFrame(
        {"key": run.key, "seed": 0, "status": "finished", "test_error": 0.1 + 0.1 * i}
        for i, (run,) in enumerate(arms.values())
    )
    ax = Figure().subplots()
    for baseline in arms.values():
        arm_differences(ax, results, arms, baseline)
    means = [float(container[0].get_xdata()[0]) for container in ax.containers]
    assert means == pytest.approx([0, 10, -10, 0])


def test_intervals_have_bars_from_bound_to_bound():
    ax = Figure().subplots()
    interval = mean_interval([0.1, 0.3, 0.2])
    intervals(ax, ["one"], [interval])
    (bar,) = ax.containers[0][2]
    ((start, end),) = bar.get_segments()
    np.testing.assert_allclose([start[0], end[0]], [interval.low, interval.high])


def test_rows_of_intervals_have_styles_of_their_own():
    gaps = [mean_interval([0.1, 0.3]), None, mean_interval([0.2, 0.5])]
    styles = [{"color": name, "marker": "s"} for name in ("red", "green", "blue")]
    ax = Figure().subplots()
    intervals(ax, ["a", "b", "c"], gaps, color="black", styles=styles)
    assert [bar.lines[0].get_color() for bar in ax.containers] == ["red", "blue"]
    assert [bar.lines[0].get_marker() for bar in ax.containers] == ["s", "s"]
    beside = Figure().subplots()
    beside_printed(beside, ["a", "b", "c"], gaps, [0.1, 0.2, 0.3], styles=styles)
    assert [bar.lines[0].get_color() for bar in beside.containers[:2]] == ["red", "blue"]
    assert "here, 95 % interval" in beside.get_legend_handles_labels()[1]
