"""Figure of trajectories over a landscape."""

import numpy as np
import pytest

from plots import landscape
from plots._files import PlotError
from tests.plots.conftest import descent_results


@pytest.fixture
def descent(run_file):
    """Writes the run of a method from a start and loads it."""

    def writer(method="adam", label="Adam", start=1, **changes):
        ending = f" (start {start})" if start > 1 else ""
        results = descent_results(start) | changes
        return run_file(f"{method}{start}", method=method, label=label + ending, **results)

    return writer


def panels_of(figure):
    return [axes for axes in figure.axes if axes.get_title(loc="left")]


def test_trajectory_over_the_landscape(descent):
    file = descent()
    figure = landscape.draw([file])
    (axes,) = panels_of(figure)
    front, path, start, end = axes.lines
    np.testing.assert_array_equal(front.get_xydata(), file.results["example"]["front"])
    np.testing.assert_array_equal(path.get_xydata(), file.results["test_position"])
    assert start.get_xydata().tolist() == [[-2.0, 1.0]]
    assert end.get_xydata().tolist() == [[1.0, 0.0]]
    assert axes.get_aspect() == 1.0
    assert (figure.get_supxlabel(), figure.get_supylabel()) == ("$x$", "$y$")
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["from start 1", "start", "end", "Pareto front"]


def test_the_landscape_is_the_sum_of_the_losses(descent):
    file = descent()
    (axes,) = panels_of(landscape.draw([file]))
    example = file.results["example"]
    sums = example["landscape"].sum(2)
    filled, _ = axes.collections
    assert filled.levels[0] <= sums.min() and filled.levels[-1] >= sums.max()
    # The lowest region is where the sum is lowest, with x to the right.
    lowest = filled.get_paths()[np.searchsorted(filled.levels, sums.min(), side="right") - 1]
    i, j = np.unravel_index(sums.argmin(), sums.shape)
    corner = np.array([example["x"][i], example["y"][j]])
    assert np.abs(lowest.vertices - corner).sum(1).min() < 1e-9


def test_a_panel_per_method_with_all_its_starts(descent):
    files = [descent(method, label, start) for method, label in
             [("adam", "Adam"), ("config", "ConFIG")] for start in (1, 2, 5)]  # fmt: skip
    figure = landscape.draw(files)
    panels = panels_of(figure)
    assert [axes.get_title(loc="left") for axes in panels] == ["Adam", "ConFIG"]
    paths = [[line for line in axes.lines if len(line.get_xdata()) == 9] for axes in panels]
    assert [len(lines) for lines in paths] == [3, 3]
    colours = [[line.get_color() for line in lines] for lines in paths]
    assert colours[0] == colours[1] and len(set(colours[0])) == 3
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[:3] == ["from start 1", "from start 2", "from start 5"]


def test_many_methods_take_rows(descent):
    files = [descent(str(number), f"Method {number}") for number in range(5)]
    figure = landscape.draw(files)
    panels = panels_of(figure)
    assert len(panels) == 5 and len(figure.axes) == 6  # and the colour bar
    tops = {round(axes.get_subplotspec().get_position(figure).y1, 3) for axes in panels}
    assert len(tops) == 2
    # Three above two: the lowest of every column says where x is.
    labelled = [axes.xaxis.get_tick_params()["labelbottom"] for axes in panels]
    assert labelled == [False] * 2 + [True] * 3


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("Adam", "Adam"),
        ("Adam (start 2)", "Adam"),
        ("Adam (lr 0.1, start 2)", "Adam (lr 0.1)"),
        ("Adam (lr 0.1, start 2, scale 0.5)", "Adam (lr 0.1, scale 0.5)"),
        ("Adam (start 2, scale 0.5, float64)", "Adam (scale 0.5, float64)"),
    ],
)
def test_labels_without_their_start(label, expected):
    assert landscape.without_start(label) == expected


def test_unfit_parts(descent):
    with pytest.raises(PlotError, match=r"'test_position' in .* shape \(n, 2\), found \(9, 3\)"):
        landscape.draw([descent(test_position=np.zeros((9, 3)))])
    file = descent()
    file.results["example"]["landscape"] = np.zeros((4, 5, 2))
    with pytest.raises(PlotError, match=r"shape \(5, 4, 2\) like the grid, found \(4, 5, 2\)"):
        landscape.draw([file])
