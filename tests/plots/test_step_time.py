"""Figure of step times."""

import numpy as np
import pytest

from plots import step_time
from plots._files import PlotError, load


def test_a_line_in_a_band_by_ascending_batch_size(full_run):
    figure = step_time.draw([load(full_run)])
    (axes,) = figure.axes
    (line,) = axes.lines
    assert line.get_xdata().tolist() == [64, 128, 256]
    assert line.get_ydata().tolist() == [0.1, 0.2, 0.4]
    (band,) = axes.collections
    low, high = np.sort(band.get_paths()[0].vertices[:, 1])[[0, -1]]
    assert (low, high) == pytest.approx((0.05, 0.8))
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("batch size", "time per step (s)")
    assert axes.xaxis.get_major_formatter()(64.0) == "64"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["HIG", "min–max"]


def test_methods_have_their_colours_and_problems_their_panels(full_run):
    files = [load(full_run) for _ in range(3)]
    files[1].results.update(method="adam", label="Adam")
    files[1].results["seconds_per_step"] = 0.1 * files[1].results["seconds_per_step"]
    files[2].results["problem"] = "poisson"
    figure = step_time.draw(files)
    first, second = figure.axes
    assert [len(first.lines), len(second.lines)] == [2, 1]
    assert first.lines[0].get_color() == second.lines[0].get_color() != first.lines[1].get_color()
    assert first.get_title(loc="left") == "nonlinear oscillators"
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["HIG", "Adam", "min–max"]  # from the slowest to the fastest


def test_unfit_parts(full_run):
    file = load(full_run)
    file.results["seconds_per_step_max"] = [1.0]
    with pytest.raises(
        PlotError, match=r"_max' in .* must be 3 positive numbers, found \[1\.\]; measure"
    ):
        step_time.draw([file])
    file = load(full_run)
    file.results["seconds_per_step_min"] = [1.0, 0.0, 1.0]
    with pytest.raises(
        PlotError, match=r"_min' .* must be 3 positive numbers, found \[1\. 0\. 1\.\]"
    ):
        step_time.draw([file])
