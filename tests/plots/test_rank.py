"""Rank figure."""

import numpy as np
import pytest

from plots import rank
from plots._files import PlotError, load


def test_ranks_over_time_below_the_rows(full_run):
    file = load(full_run)
    (axes,) = rank.draw([file]).axes
    steps, median, rows = axes.lines
    np.testing.assert_array_equal(steps.get_ydata(), file.results["rank"])
    np.testing.assert_array_equal(steps.get_xdata(), file.results["step_time"])
    np.testing.assert_array_equal(median.get_ydata(), file.results["rank"])  # few steps
    assert median.get_label() == "HIG"
    assert set(rows.get_ydata()) == {40} and rows.get_linestyle() == "--"
    assert rows.get_label() == "rows (40)"
    assert axes.get_xlabel() == "training time (s)"
    assert axes.get_ylim()[1] > 40


def test_running_median_of_many_steps(run_file):
    values = np.full(500, 30)
    values[::7] = 1
    file = run_file(rank=values, rows=64)
    (axes,) = rank.draw([file], x="steps").axes
    assert set(axes.lines[1].get_ydata()) == {30.0}
    assert axes.lines[0].get_xdata()[[0, -1]].tolist() == [1, 500]
    assert axes.get_xlabel() == "steps"


def test_seeds_share_a_name_and_methods_with_other_rows_a_line(run_file):
    shared = {"rank": np.arange(5), "step_time": np.arange(5.0)}
    files = [run_file(f"s{i}", rows=64, **shared) for i in range(2)]
    files.append(run_file("gn", method="gn", label="GN", rows=128, **shared))
    figure = rank.draw(files)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["HIG", "GN", "rows (64)", "rows (128)"]
    lines = figure.axes[0].lines
    assert lines[1].get_color() == lines[3].get_color() != lines[5].get_color()


def test_problems_have_their_own_panels(run_file):
    shared = {"rank": np.arange(5), "step_time": np.arange(5.0)}
    files = [
        run_file("a", rows=64, **shared),
        run_file("b", problem="poisson", rows=512, **shared),
        run_file("c", problem="poisson", method="gn", label="GN", rows=512, **shared),
    ]
    figure = rank.draw(files)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["nonlinear oscillators", "poisson"]
    assert [len(axes.lines) for axes in figure.axes] == [3, 5]
    assert [axes.get_ylim()[1] < 100 for axes in figure.axes] == [True, False]
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["HIG", "GN", "rows (64)", "rows (512)"]


def test_steps_of_a_file_that_keeps_but_some(run_file):
    some = {"rank": np.arange(3), "step_time": np.arange(3.0), "step": np.array([10, 20, 30])}
    (axes,) = rank.draw([run_file(rows=9, **some)], x="steps").axes
    assert axes.lines[0].get_xdata().tolist() == [10, 20, 30]


def test_unfit_parts(run_file):
    file = run_file(rank=np.arange(5), rows=9, step_time=np.arange(4.0))
    with pytest.raises(PlotError, match="4 entries for 5 ranks; use --x steps"):
        rank.draw([file])
