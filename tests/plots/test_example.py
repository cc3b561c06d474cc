"""One example out of a result file."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from plots import _example
from plots._files import PlotError

LAYOUT = {"state": ("examples", "times", "states"), "time": ("times",), "target": ("examples",)}


def example_file(run_file, **changes):
    state = np.arange(24.0).reshape(2, 3, 4)
    example = {"state": state, "time": np.arange(3), "target": [5, 6], "names": ["a", "b"]}
    return run_file(example=example | changes)


def test_arrays_of_the_example_chosen(run_file):
    parts = _example.read(example_file(run_file), LAYOUT, 1, "")
    assert list(parts) == list(LAYOUT)
    np.testing.assert_array_equal(parts["state"], np.arange(12.0, 24.0).reshape(3, 4))
    assert parts["time"].tolist() == [0, 1, 2] and parts["target"] == 6
    assert parts["time"].dtype == np.float64


@pytest.mark.parametrize("example", [-1, 2])
def test_no_such_example(run_file, example):
    text = f"no example {example}, only 0 to 1; change --example"
    with pytest.raises(PlotError, match=text):
        _example.read(example_file(run_file), LAYOUT, example, "")


def test_axes_of_one_name_have_one_length(run_file):
    text = r"'example\.time' in .* must have shape \(3,\) next to 'state' of shape .*4,"
    with pytest.raises(PlotError, match=text):
        _example.read(example_file(run_file, time=np.arange(4)), LAYOUT, 0, "")
    with pytest.raises(PlotError, match=r"'example\.target'.*\(2,\).* found \(3,\); run the"):
        _example.read(example_file(run_file, target=[1, 2, 3]), LAYOUT, 0, "")


def test_missing_and_odd_parts(run_file):
    with pytest.raises(PlotError, match=r"no 'example\.other'.* Try again"):
        _example.read(example_file(run_file), {"other": ("examples",)}, 0, "Try again")
    with pytest.raises(PlotError, match=r"1 dimension.*\(2, 3, 4\)\. Try again"):
        _example.read(example_file(run_file), {"state": ("examples",)}, 0, "Try again")


def test_targets_and_equal_ones():
    """One value has a dotted line; of equal values each has every so many of the dots."""
    axes = Figure().subplots()
    colours = ["black", "red", "green", "blue"]
    _example.draw_targets(axes, 2.0, np.array([0.0, 1.0, 0.0, 1e-12]), colours)
    lines, markers = axes.lines[::2], axes.lines[1::2]
    assert [line.get_color() for line in lines] == [m.get_color() for m in markers] == colours
    assert [marker.get_xydata().tolist() for marker in markers[:2]] == [[[2, 0]], [[2, 1]]]
    sizes = [marker.get_markersize() for marker in markers]
    assert sizes[0] > sizes[2] > sizes[3] == sizes[1]
    assert lines[1].get_linestyle() == ":"
    patterns = [lines[i]._unscaled_dash_pattern for i in (0, 2, 3)]
    starts = [start for start, _ in patterns]
    for _, (on, off) in patterns:  # the dots of one fall into the gaps of the others
        assert (on, (on + off) / 3) == pytest.approx((1.0, starts[1] - starts[0]))
    assert np.diff(starts) == pytest.approx(starts[1])


def test_names(run_file):
    file = example_file(run_file)
    assert _example.names(file, "names", 2, "") == ["a", "b"]
    with pytest.raises(PlotError, match=r"'example\.names'.* must have 3 names, found 2"):
        _example.names(file, "names", 3, "")
    with pytest.raises(PlotError, match=r"no 'example\.other'.* Try again"):
        _example.names(file, "other", 2, "Try again")
