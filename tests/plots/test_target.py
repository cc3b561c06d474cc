"""Figure of times to a target."""

import numpy as np
import pytest

from plots import target
from plots._files import PlotError


@pytest.fixture
def run(run_file):
    def make(losses, method="hig", label="HIG", seed=0, **changes):
        time = np.arange(float(len(losses)))
        curves = {
            "time": time,
            "epochs": time,
            "test_loss": np.array(losses, dtype=float),
        } | changes
        name = f"{label}{seed}".replace("(", "").replace(")", "")
        return run_file(name, method=method, label=label, seed=seed, **curves)

    return make


def points(axes, marker):
    """Times by line of the axis of the methods, of one kind of marks."""
    found = {}
    for line in axes.lines:
        if line.get_marker() == marker and len(line.get_xdata()):
            filled = line.get_markerfacecolor() != "white"
            found.setdefault(int(line.get_ydata()[0]), {})[filled] = np.ravel(line.get_xdata())
    return found


def test_first_evaluation_at_the_target_for_every_seed(run):
    files = [run([9, 5, 1, 2], seed=0), run([9, 9, 2, 1], seed=1), run([9, 9, 9, 0.5], seed=2)]
    (axes,) = target.draw(files, 1.0).axes
    assert points(axes, "o")[0][False].tolist() == [2, 3, 3]
    assert points(axes, "o")[0][True].tolist() == [3]
    assert axes.get_title(loc="left") == "test loss 1"
    assert axes.get_xlabel() == "training time (s)" and axes.get_xscale() == "log"
    assert axes.collections[0].get_segments()[0][:, 0].tolist() == [2, 3]


def test_runs_that_do_not_get_there_are_crossed_and_counted(run):
    files = [run([9, 1], seed=0), run([9, 5, 5], seed=1), run([9, 5, 5], seed=2)]
    (axes,) = target.draw(files, 1.0).axes
    assert points(axes, "x")[0][True].tolist() == [2, 2]
    assert True not in points(axes, "o")[0]  # most seeds do not: there is no median
    assert [text.get_text() for text in axes.texts] == ["1 of 3"]


def test_without_a_target_it_is_where_adam_ends(run):
    files = [run([9, 1]), run([9, 4], "adam", "Adam (lr 1)"), run([9, 2], "gn", "GN")]
    (axes,) = target.draw(files).axes
    assert axes.get_title(loc="left") == "test loss 4, where Adam ends"
    assert [text.get_text() for text in axes.get_yticklabels()] == ["HIG", "GN", "Adam (lr 1)"]
    (axes,) = target.draw([run([9, 3]), run([9, 1], "adam", "Adam")]).axes
    assert axes.get_title(loc="left") == "test loss 3, where HIG ends"
    (axes,) = target.draw([run([9, 3])]).axes
    assert axes.get_title(loc="left") == "test loss 3, where HIG ends"


def test_of_two_adams_the_better_one_counts_and_is_named(run):
    adams = [run([9, end], "adam", f"Adam (lr {end})") for end in (4, 3)]
    (axes,) = target.draw([run([9, 1]), *adams]).axes
    assert axes.get_title(loc="left") == "test loss 3, where Adam (lr 3) ends"


def test_a_long_title_has_two_lines(run):
    adams = [run([9, end], "adam", f"Adam (batch 128, cosine, lr {end})") for end in (4, 3)]
    (axes,) = target.draw([run([9, 1]), *adams]).axes
    first, second = axes.get_title(loc="left").splitlines()
    assert (first, second[-7:]) == ("test loss 3", "3) ends")


def test_problems_have_panels_with_targets_of_their_own(run):
    files = [run([9, 3]), run([9, 5], problem="poisson")]
    titles = [axes.get_title(loc="left") for axes in target.draw(files).axes]
    assert titles == [
        "nonlinear oscillators: test loss 3, where HIG ends",
        "poisson: test loss 5, where HIG ends",
    ]


def test_a_target_below_which_a_run_begins_needs_a_linear_axis(run):
    (axes,) = target.draw([run([9, 3])], 10.0).axes
    assert axes.get_xscale() == "linear" and points(axes, "o")[0][True].tolist() == [0]


def test_pretraining_counts(run):
    (axes,) = target.draw([run([9, 3], pretraining_time=10.0)], 3.0).axes
    assert points(axes, "o")[0][True].tolist() == [11]


def test_nothing_finite_has_no_target(run):
    with pytest.raises(PlotError, match=r"no method ends at a finite test loss on .*give --target"):
        target.draw([run([9, np.nan])])
