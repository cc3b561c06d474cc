"""Figure of ablations."""

import numpy as np
import pytest

from plots import ablation
from plots._files import PlotError


@pytest.fixture
def runs(run_file):
    """Runs that end at given losses, of settings given by keyword; seeds are numbered."""

    def make(ends, problem="toy", method="hig", **settings):
        label = f"{method.upper()} ({settings})"
        return [
            run_file(
                f"{problem}_{method}_{settings}_{seed}".replace("/", ""),
                problem=problem, method=method, label=label, seed=seed,
                time=np.arange(2.0), epochs=np.arange(2.0), test_loss=np.array([1.0, end]),
                sim_par={"lr": 1.0, "seed": seed, **settings},
            )
            for seed, end in enumerate(ends)
        ]  # fmt: skip

    return make


def lines(axes):
    return {line.get_label(): line for line in axes.lines}


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_medians_and_ranges_of_numbers(runs):
    files = [*runs([1, 3, 2], kappa=-1.0), *runs([0.5, 0.1], kappa=0.0), *runs([4], kappa=1.0)]
    figure = ablation.draw(files)
    (axes,) = figure.axes
    assert lines(axes)["HIG"].get_xdata().tolist() == [-1, 0, 1]
    assert lines(axes)["HIG"].get_ydata().tolist() == [2, 0.3, 4]
    ranges = [one.get_segments()[0][:, 1].tolist() for one in axes.collections]
    assert ranges == [[1, 3], [0.1, 0.5]]
    assert (axes.get_xscale(), axes.get_yscale(), axes.get_xlabel()) == ("linear", "log", "kappa")
    assert [text.get_text() for text in axes.get_xticklabels()] == ["-1", "0", "1"]
    assert legend(figure) == ["HIG", "min–max of seeds"]
    assert axes.get_ylabel() == "test loss at the end"


def test_numbers_of_several_decades_have_a_logarithmic_axis(runs):
    files = [*runs([1], batch_size=16), *runs([2], batch_size=128)]
    assert ablation.draw(files).axes[0].get_xscale() == "log"


def test_texts_stand_side_by_side_after_numbers(runs):
    files = [*runs([3], rcond="auto"), *runs([1], rcond=1e-2), *runs([2], rcond=1e-4)]
    (axes,) = ablation.draw(files).axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0.0001", "0.01", "auto"]
    assert lines(axes)["HIG"].get_ydata().tolist() == [2, 1, 3]
    assert lines(axes)["_HIG"].get_ydata().tolist() == [2, 1]  # no line leads to a text


def test_seeds_that_are_not_finite_are_marked_at_the_top(runs):
    files = [*runs([1, 2, np.nan], kappa=-1.0), *runs([np.nan, np.nan, 1], kappa=0.0)]
    figure = ablation.draw(files)
    (axes,) = figure.axes
    assert lines(axes)["HIG"].get_ydata().tolist() == [2]
    marks = [line for line in axes.lines if line.get_label() == "_not finite"]
    assert [line.get_xdata()[0] for line in marks] == [-1, 0]
    assert "a seed is not finite" in legend(figure)


def test_problems_have_panels_and_methods_colours(runs):
    both = {"hig": 1.0, "gn": 2.0}
    files = [
        file
        for problem in ("toy", "poisson")
        for method, end in both.items()
        for rule in ("fixed", "trust")
        for file in runs([end], problem, method, step_rule=rule)
    ]
    figure = ablation.draw(files)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["toy", "poisson"]
    assert legend(figure) == ["HIG", "GN"]
    colours = [lines(figure.axes[0])[name].get_color() for name in ("HIG", "GN")]
    assert colours[0] != colours[1]


def test_what_else_differs_makes_lines_of_its_own(runs):
    files = [file for k in (-1.0, 0.0) for r in (1, 2) for file in runs([r], kappa=k, rcond=r)]
    assert legend(ablation.draw(files, ["kappa"])) == ["HIG, rcond 1", "HIG, rcond 2"]


def test_two_settings_make_a_map(runs):
    ends = {(-1.0, 0.1): 4.0, (-1.0, 0.2): np.nan, (0.0, 0.1): 1.0}
    files = [file for (k, r), end in ends.items() for file in runs([end], kappa=k, rcond=r)]
    figure = ablation.draw(files)
    axes, bar = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("kappa", "rcond")
    cells = axes.collections[0].get_array()
    assert cells[0].tolist() == [4.0, 1.0] and cells.mask[1].all()
    assert {text.get_text() for text in axes.texts} == {"4", "1", "×"}
    (frame,) = axes.lines
    assert frame.get_xdata().min() == 1.0 and frame.get_ydata().max() == 1.0  # around the lowest
    assert bar.get_ylabel() == "test loss at the end"
    turned = ablation.draw(files, ["rcond", "kappa"]).axes[0]
    assert turned.collections[0].get_array()[:, 0].tolist() == [4.0, 1.0]


def test_one_or_two_settings(runs):
    with pytest.raises(PlotError, match="must be one or two, got 0: these files differ in none"):
        ablation.draw(runs([1, 2]))
    files = [*runs([1], a=1, b=1, c=1), *runs([1], a=2, b=2, c=2)]
    with pytest.raises(PlotError, match="got 3: these files differ in a, b, c"):
        ablation.draw(files)
    with pytest.raises(PlotError, match="no setting 'd'"):
        ablation.draw(files, ["d"])


def test_command_line(runs, tmp_path):
    paths = [str(file.path) for file in [*runs([1], kappa=1, lr=1), *runs([2], kappa=2, lr=2)]]
    out = tmp_path / "figure.png"
    assert ablation.main([*paths, "--out", str(out)]) == 0  # both differ: a map
    assert ablation.main([*paths, "--setting", "kappa", "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
