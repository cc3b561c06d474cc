"""Figure of a controlled flow."""

import numpy as np
import pytest

from plots import flow
from plots._files import PlotError, load


def test_velocity_force_and_profiles(full_run):
    file = load(full_run)
    example = file.results["example"]
    figure = flow.draw([file], example=1)
    velocity, force, profile = figure.axes
    bars = [bar for one in (velocity, force) for bar in one.child_axes]
    time = example["time"]
    for axes, key, at in ((velocity, "velocity", time), (force, "force", time[1:] - 0.5)):
        (image,) = axes.collections
        np.testing.assert_array_equal(image.get_array(), example[key][1].T)
        # Cells lie around their places.
        edges = image.get_coordinates()[0, :, 0]
        np.testing.assert_allclose((edges[1:] + edges[:-1]) / 2, at)
        highest = np.abs(example[key][1]).max()
        assert image.get_clim() == (-highest, highest)
        assert axes.get_xlim() == (0.0, 12.0)
    shown = {line.get_label(): line.get_xydata().T for line in profile.lines}
    expected = {
        "target": example["target_velocity"][1],
        "final": example["velocity"][1, -1],
        "no force": example["uncontrolled_velocity"][1],
        "start": example["velocity"][1, 0],
    }
    assert [text.get_text() for text in profile.get_legend().get_texts()] == list(expected)
    for label, values in expected.items():
        np.testing.assert_array_equal(shown[label], [example["position"], values])
    assert [bar.get_ylabel() for bar in bars] == ["velocity", "force"]
    figure.draw_without_rendering()
    for bar, axes in zip(bars, (velocity, force), strict=True):  # close to their panels
        places = bar.get_position(), axes.get_position()
        assert 0 < places[0].x0 - places[1].x1 < 0.1 * places[1].width
        assert (places[0].y0, places[0].y1) == pytest.approx((places[1].y0, places[1].y1))
    assert [one.get_xlabel() for one in (velocity, force, profile)] == ["", "time", "position"]


def test_a_phase(full_run):
    files = [load(full_run) for _ in range(2)]
    example = files[1].results["example"]
    for name in ("velocity", "uncontrolled_velocity", "target_velocity"):
        example[name.replace("velocity", "phase")] = example.pop(name)
    figure = flow.draw(files[1:])
    assert figure.axes[0].child_axes[0].get_ylabel() == figure.axes[2].get_ylabel() == "phase"
    np.testing.assert_array_equal(figure.axes[2].lines[0].get_ydata(), example["target_phase"][0])
    with pytest.raises(PlotError, match="different quantities, phase and velocity; draw"):
        flow.draw(files)


def test_files_side_by_side_share_the_colours(full_run):
    files = [load(full_run) for _ in range(2)]
    files[1].results["example"]["velocity"] *= 5
    files[1].results["label"] = "Adam"
    axes = flow.draw(files).axes
    assert [one.get_title(loc="left") for one in axes[:2]] == ["HIG", "Adam"]
    highest = np.abs(files[1].results["example"]["velocity"][0]).max()
    assert {one.collections[0].get_clim() for one in axes[:2]} == {(-highest, highest)}
    assert flow.draw(files[:1]).axes[0].get_title(loc="left") == ""
