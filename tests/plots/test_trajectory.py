"""Trajectory figure."""

import numpy as np

from plots import trajectory
from plots._files import load


def test_positions_targets_and_force(full_run):
    file = load(full_run)
    example = file.results["example"]
    above, below = trajectory.draw([file], example=1).axes
    labelled = [line for line in above.lines if not line.get_label().startswith("_")]
    assert [line.get_label() for line in labelled] == ["x1", "x2"]
    for index, line in enumerate(labelled):
        np.testing.assert_array_equal(line.get_ydata(), example["state"][1, :, index])
    dotted = [line for line in above.lines if line.get_linestyle() == ":"]
    assert [line.get_ydata()[0] for line in dotted] == example["target"][1, :2].tolist()
    (force,) = below.patches
    np.testing.assert_array_equal(force.get_data().values, example["control"][1])
    np.testing.assert_array_equal(force.get_data().edges, example["time"])
    assert above.get_shared_x_axes().joined(above, below)
    assert (above.get_ylabel(), below.get_ylabel()) == ("position", "control")
    assert below.get_xlabel() == "time"


def test_files_are_columns(full_run):
    axes = trajectory.draw([load(full_run)] * 3).axes
    assert len(axes) == 6
    assert [one.get_title(loc="left") for one in axes[:3]] == ["HIG"] * 3


def test_other_names_show_every_state(full_run):
    file = load(full_run)
    file.results["example"]["state_names"] = list("abcd")
    above, _ = trajectory.draw([file]).axes
    labels = [line.get_label() for line in above.lines if not line.get_label().startswith("_")]
    assert labels == list("abcd")
    assert above.get_ylabel() == "state"


def test_targets_at_one_value_are_all_seen(full_run):
    file = load(full_run)
    file.results["example"]["target"][0, :2] = 0.0
    above, _ = trajectory.draw([file]).axes
    rings = [line for line in above.lines if line.get_marker() == "o"]
    assert rings[0].get_markersize() > rings[1].get_markersize() + 1
    assert rings[0].get_markerfacecolor() == "none"
    assert rings[0].get_color() != rings[1].get_color()
