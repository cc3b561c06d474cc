"""Figure of populations."""

import numpy as np
import pytest

from plots import populations
from plots._files import PlotError, load

NAMES = ["n = 1", "n = 2", "n = 3"]


def named_lines(axes):
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def test_populations_and_their_targets(full_run):
    file = load(full_run)
    example = file.results["example"]
    figure = populations.draw([file], example=1)
    (axes,) = figure.axes
    lines = named_lines(axes)
    assert list(lines) == [*NAMES, "others"]
    for index, name in enumerate(NAMES):
        np.testing.assert_array_equal(lines[name].get_ydata(), example["populations"][1, :, index])
        np.testing.assert_array_equal(lines[name].get_xdata(), example["time"])
    rest = 1 - example["populations"][1].sum(-1)
    np.testing.assert_allclose(lines["others"].get_ydata(), rest)
    markers = [line for line in axes.lines if line.get_marker() == "o"]
    assert [float(line.get_ydata()[0]) for line in markers] == [0.1, 0.9, 0.0]
    assert {float(line.get_xdata()[0]) for line in markers} == {12.0}
    assert [line.get_color() for line in markers] == [lines[name].get_color() for name in NAMES]
    assert axes.get_ylim() == (0.0, 1.0)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == [*NAMES, "others", "target"]


def test_no_line_for_others_where_there_are_none(full_run):
    file = load(full_run)
    shown = file.results["example"]["populations"]
    shown /= shown.sum(-1, keepdims=True)
    (axes,) = populations.draw([file]).axes
    assert list(named_lines(axes)) == NAMES


def test_files_side_by_side(full_run):
    axes = populations.draw([load(full_run)] * 3).axes
    assert [one.get_title(loc="left") for one in axes] == ["HIG"] * 3
    assert axes[0].get_shared_y_axes().joined(axes[0], axes[2])


def test_as_many_names_as_populations(full_run):
    file = load(full_run)
    file.results["example"]["population_names"] = ["n = 1"]
    with pytest.raises(PlotError, match=r"'example\.population_names'.* 3 names, found 1"):
        populations.draw([file])
