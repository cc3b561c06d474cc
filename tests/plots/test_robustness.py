"""Figure of every seed."""

import itertools

import numpy as np
import pytest

from plots import _style, robustness
from plots._files import PlotError, ResultFile


def made(tmp_path, label="before", problems=("Oscillators",), batches=(128, 64), **changes):
    """Runs of three seeds, with HIG and Levenberg-Marquardt; ends by method and seed."""
    ends = {"hig": (0.002, 0.004, 1.0), "lm": (0.004, np.nan, 1e9)} | changes.pop("ends", {})
    rows = [
        (title, batch, method, seed, end)
        for title in problems
        for batch in batches
        for method, of_seeds in ends.items()
        for seed, end in enumerate(of_seeds)
    ]
    title, batch, method, seed, end = map(list, zip(*rows, strict=True))
    count, names = len(rows), {"hig": "HIG", "lm": "Levenberg–Marquardt"}
    runs = {
        "title": title,
        "batch": np.array(batch),
        "method": method,
        "method_label": [names[name] for name in method],
        "rule": ["trust"] * count,
        "cutoff": [""] * count,
        "rate": [""] * count,
        "seconds": np.full(count, 15.0),
        "dtype": ["float32"] * count,
        "seed": np.array(seed),
        "start": np.full(count, 2.0),
        "end": np.array(end),
        "limit": np.full(count, 0.2),
        "lost": ~(np.array(end) <= 0.2),
    }
    results = {"label": label, "runs": runs | changes}
    return ResultFile(tmp_path / f"{label}.pickle", results)


def points(axes, marker):
    """Heights of the dots of a shape, in axes with as many collections as shapes and groups."""
    shapes = {"o": 0, "x": 1, "^": 2}
    found = axes.collections[shapes[marker] :: 3]
    return [sorted(part.get_offsets()[:, 1].tolist()) for part in found]


def test_a_dot_for_each_seed_and_its_shape(tmp_path):
    figure = robustness.draw([made(tmp_path)])
    wide, half = figure.axes
    assert wide.get_title(loc="left") == "Oscillators\nbatch 128, 15 s"
    assert half.get_title(loc="left") == "Oscillators\nbatch 64, 15 s"
    assert [text.get_text() for text in wide.get_xticklabels()] == ["HIG", "Levenberg–\nMarquardt"]
    # Over the start of 2. The one at 5e8 is above the panel, as the one that is not finite.
    assert points(wide, "o") == [[0.001, 0.002], [0.002]]
    assert points(wide, "x") == [[0.5], []]
    assert points(wide, "^") == [[], [0.97, 0.97]]
    assert [text.get_text() for text in wide.texts] == ["1/3", "2/3"]
    low, high = wide.get_ylim()
    assert wide.get_yscale() == "log" and low < 0.001 and 1 < high < 1e3


def test_medians_leave_lost_runs_out(tmp_path):
    (axes,) = robustness.draw([made(tmp_path, batches=(8,))]).axes
    heights = {tuple(line.get_ydata()) for line in axes.lines if line.get_color() == "black"}
    assert heights == {(0.0015, 0.0015), (0.002, 0.002)}
    limits = [line.get_ydata()[0] for line in axes.lines if line.get_color() == "#D55E00"]
    assert limits == [0.1, 0.1]


def test_groups_without_any_run_that_is_not_lost(tmp_path):
    ends = {"hig": (5.0, np.nan), "lm": (0.001, 0.001)}
    (axes,) = robustness.draw([made(tmp_path, batches=(8,), ends=ends)]).axes
    medians = [line for line in axes.lines if line.get_color() == "black"]
    assert len(medians) == 1 and [text.get_text() for text in axes.texts] == ["2/2"]


def test_two_labels_have_two_colours_and_places(tmp_path):
    files = [made(tmp_path, "before"), made(tmp_path, "after", batches=(128,))]
    figure = robustness.draw(files)
    wide, half = figure.axes
    assert len(wide.collections) == 2 * 2 * 3 and len(half.collections) == 2 * 3
    before, after = wide.collections[0], wide.collections[3]
    assert before.get_facecolor()[0, :3].tolist() != after.get_facecolor()[0, :3].tolist()
    assert before.get_offsets()[:, 0].max() < after.get_offsets()[:, 0].min()
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[:2] == ["before", "after"] and "above, or not finite" in texts


def test_a_row_for_each_problem(tmp_path):
    figure = robustness.draw([made(tmp_path, problems=("A", "B", "C"))])
    titles = [axes.get_title(loc="left").partition("\n")[0] for axes in figure.axes]
    assert titles == ["A", "A", "B", "B", "C", "C"]
    figure = robustness.draw([made(tmp_path, problems=("A", "B", "C", "D"), batches=(8,))])
    assert [axes.get_visible() for axes in figure.axes] == [True] * 4 + [False] * 2


def test_settings_that_differ_are_named(tmp_path):
    file = made(tmp_path, batches=(8,), cutoff=["1e-4"] * 3 + [""] * 3, rate=["0.5"] * 3 + [""] * 3)
    file.results["runs"]["rule"] = ["trust"] * 3 + ["line_search"] * 3
    file.results["runs"]["dtype"] = ["float64"] * 6
    (axes,) = robustness.draw([file]).axes
    assert [text.get_text() for text in axes.get_xticklabels()] == [
        "HIG\ntrust\nrcond 1e-4\nlr 0.5",
        "Levenberg–\nMarquardt\nline search",
    ]
    assert axes.get_title(loc="left") == "Oscillators\nbatch 8, 15 s, float64"


def test_names_of_many_settings_do_not_overlap(tmp_path):
    count = 6
    runs = {
        "method": ["gn"] * count,
        "method_label": ["Gauss–Newton"] * count,
        "rule": ["trust"] * count,
        "cutoff": [f"1e-{k}" for k in range(count)],
    }
    with _style.look():  # sizes of letters are those at the time of drawing
        figure = robustness.draw([made(tmp_path, batches=(8,), **runs)])
        figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].get_xticklabels()]
    assert len(boxes) == count
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_unfit_files(tmp_path):
    with pytest.raises(PlotError, match="do not fit together"):
        robustness.draw([made(tmp_path, batches=(8,), start=np.zeros(6))])
    with pytest.raises(PlotError, match="do not fit together"):
        robustness.draw([made(tmp_path, batches=(8,), rule=["trust"])])
    file = ResultFile(tmp_path / "x.pickle", {"label": "x"})
    with pytest.raises(PlotError, match=r"Give the result files of python -m experiments\.robust"):
        robustness.draw([file])
