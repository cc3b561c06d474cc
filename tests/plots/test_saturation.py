"""Figure of activations."""

import numpy as np
import pytest

from plots import saturation
from plots._files import PlotError, load


def test_mean_and_spread_of_every_neuron(full_run):
    results = load(full_run).results
    figure = saturation.draw([load(full_run)])
    above, below = figure.axes
    for axes, key in ((above, "test_activation_mean"), (below, "test_activation_spread")):
        drawn = np.stack([line.get_ydata() for line in axes.lines], axis=1)
        np.testing.assert_array_equal(drawn, results[key])
        np.testing.assert_array_equal(axes.lines[0].get_xdata(), results["time"])
    colours = [line.get_color() for line in above.lines]
    assert len(set(colours)) == 7 and colours == [line.get_color() for line in below.lines]
    assert above.get_ylim() == (-1.05, 1.05) and below.get_ylim()[0] == 0.0
    assert (above.get_ylabel(), below.get_ylabel()) == ("mean activation", "spread")
    assert below.get_xlabel() == "training time (s)"
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == [f"neuron {i}" for i in range(1, 8)]


def test_files_side_by_side_over_epochs(full_run):
    axes = saturation.draw([load(full_run)] * 3, x="epochs").axes
    assert [one.get_title(loc="left") for one in axes[:3]] == ["HIG"] * 3
    assert axes[3].get_xlabel() == "epochs"
    assert axes[3].lines[0].get_xdata()[-1] == 16.0


def test_log_x_drops_the_start(full_run):
    above, below = saturation.draw([load(full_run)], log_x=True).axes
    assert above.get_xscale() == below.get_xscale() == "log"
    assert above.lines[0].get_xdata()[0] == 1.0
    assert above.lines[0].get_ydata()[0] == load(full_run).results["test_activation_mean"][1, 0]


def test_unfit_parts(run_file):
    mean = {"test_activation_mean": np.zeros((9, 7))}
    file = run_file(**mean, test_activation_spread=np.zeros((9, 6)))
    with pytest.raises(PlotError, match=r"must have shape \(9, 7\) .* found \(9, 6\)"):
        saturation.draw([file])
    file = run_file(**mean, test_activation_spread=np.zeros((9, 7)), time=np.arange(4.0))
    with pytest.raises(PlotError, match=r"'time' in .* has 4 entries for 9 evaluations"):
        saturation.draw([file])


def test_nothing_but_the_start_has_no_place_on_a_log_axis(run_file):
    start = {"test_activation_mean": np.zeros((1, 7)), "test_activation_spread": np.ones((1, 7))}
    file = run_file(points=1, **start)
    with pytest.raises(PlotError, match=r"no evaluation after the start.*; leave --log-x out"):
        saturation.draw([file], log_x=True)
