"""Figure of a controlled quantum state."""

import numpy as np

from plots import density
from plots._files import load


def test_density_profile_and_control(full_run):
    file = load(full_run)
    example = file.results["example"]
    above, profile, below, empty, bar = density.draw([file], example=1).axes
    (image,) = above.collections
    np.testing.assert_array_equal(image.get_array(), example["density"][1].T)
    time, position = image.get_coordinates().transpose(2, 0, 1)
    np.testing.assert_array_equal(time[0], example["time"])
    np.testing.assert_array_equal(position[:, 0], example["position"])
    (final,) = profile.lines
    np.testing.assert_array_equal(final.get_xdata(), example["density"][1, -1])
    np.testing.assert_array_equal(final.get_ydata(), example["position"])
    (target,) = profile.collections
    assert target.get_paths()[0].vertices[:, 0].max() == example["target_density"][1].max()
    (control,) = below.patches
    np.testing.assert_array_equal(control.get_data().values, example["control"][1])
    np.testing.assert_array_equal(control.get_data().edges, example["time"])
    assert (above.get_ylabel(), below.get_ylabel()) == ("position", "control")
    assert (below.get_xlabel(), bar.get_ylabel()) == ("time", "probability density")
    assert [text.get_text() for text in empty.get_legend().get_texts()] == ["target", "final"]


def test_shared_axes(full_run):
    above, profile, below, *_ = density.draw([load(full_run)]).axes
    assert above.get_shared_x_axes().joined(above, below)
    assert above.get_shared_y_axes().joined(above, profile)
    assert above.get_xlim() == (0.0, 12.0) and above.get_ylim() == (0.1, 1.9)


def test_files_side_by_side_share_the_colours(full_run):
    files = [load(full_run) for _ in range(3)]
    files[1].results["example"]["target_density"] *= 5
    files[2].results["label"] = "Adam"
    axes = density.draw(files).axes
    assert len(axes) == 13
    assert [one.get_title(loc="left") for one in axes[:6:2]] == ["HIG", "HIG", "Adam"]
    highest = files[1].results["example"]["target_density"][0].max()
    assert {one.collections[0].get_clim() for one in axes[:6:2]} == {(0.0, highest)}
    assert all(one.get_xlim() == (0.0, 1.05 * highest) for one in axes[1:6:2])


def test_a_title_only_where_files_are_compared(full_run):
    assert density.draw([load(full_run)]).axes[0].get_title(loc="left") == ""
