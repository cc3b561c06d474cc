"""Loss figure."""

import numpy as np
import pytest
from matplotlib.colors import to_rgba

from plots import loss
from plots._files import PlotError


def named_lines(axes):
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_one_line_for_each_method(run_file):
    files = [run_file("a"), run_file("b", method="adam", label="Adam", factor=10.0)]
    figure = loss.draw(files)
    (axes,) = figure.axes
    lines = named_lines(axes)
    assert set(lines) == {"HIG", "Adam"} and not axes.collections
    np.testing.assert_allclose(lines["HIG"].get_ydata(), files[0].results["test_loss"])
    np.testing.assert_allclose(lines["HIG"].get_xdata(), files[0].results["time"])
    assert axes.get_yscale() == "log" and axes.get_xscale() == "linear"
    assert axes.get_xlabel() == "training time (s)"
    assert axes.get_ylabel() == "test loss per data point"
    assert legend_of(figure) == ["HIG", "Adam"]  # in the order of all figures


@pytest.mark.parametrize(("points", "marked"), [(1, True), (11, True), (12, False)])
@pytest.mark.parametrize("seeds", [1, 2])
def test_few_points_have_markers(run_file, points, marked, seeds):
    files = [run_file(f"s{i}", seed=i, points=points) for i in range(seeds)]
    (axes,) = loss.draw(files).axes
    assert (axes.lines[0].get_marker() == "o") == marked


def test_seeds_become_a_median_in_a_band(run_file):
    figure = loss.draw([run_file(f"s{i}", seed=i, factor=10.0**i) for i in range(3)])
    (axes,) = figure.axes
    (line,) = axes.lines
    (band,) = axes.collections
    np.testing.assert_allclose(line.get_ydata(), 10 * run_file().results["test_loss"])
    edges = band.get_paths()[0].vertices
    assert edges[:, 1].max() == pytest.approx(100.0)
    assert band.get_facecolor()[0][:3] == pytest.approx(to_rgba(line.get_color())[:3])
    assert legend_of(figure) == ["HIG", "min–max of seeds"]


def test_variants_share_a_colour_and_differ_in_dashes(run_file):
    files = [run_file("a"), run_file("b", label="HIG (trust)"), run_file("c", method="adam")]
    lines = loss.draw(files).axes[0].lines
    assert lines[0].get_color() == lines[1].get_color() != lines[2].get_color()
    assert lines[0].get_linestyle() != lines[1].get_linestyle()


def test_both_axes_both_quantities(run_file):
    figure = loss.draw([run_file()], x="both", quantity="both")
    time, epochs = figure.axes
    assert (time.get_xlabel(), epochs.get_xlabel()) == ("training time (s)", "epochs")
    test, train = epochs.lines
    np.testing.assert_allclose(train.get_ydata(), 0.5 * test.get_ydata())
    assert epochs.lines[0].get_xdata()[-1] == 16.0
    assert legend_of(figure) == ["HIG", "test", "train"]
    assert time.get_ylabel() == "loss per data point"


def test_steps_are_batches(run_file):
    settings = {"train_size": 100, "batch_size": 64}  # 2 steps an epoch
    files = [
        run_file("a", sim_par=settings),
        run_file("b", method="adam", label="Adam", sim_par={**settings, "batch_size": 10}),
    ]
    time, steps = loss.draw(files, x=("time", "steps")).axes
    assert (time.get_xlabel(), steps.get_xlabel()) == ("training time (s)", "steps")
    assert [line.get_xdata()[-1] for line in steps.lines] == [32, 160]
    (axes,) = loss.draw(files, x="steps").axes
    assert axes.lines[0].get_xdata().tolist() == (4 * np.arange(9)).tolist()


def test_train_alone(run_file):
    (axes,) = loss.draw([run_file()], quantity="train").axes
    assert axes.get_ylabel() == "train loss per data point"
    assert axes.lines[0].get_ydata()[0] == 0.5


def test_another_quantity(run_file):
    distance = np.linspace(2.0, 1.0, 9)
    file = run_file(test_l1_distance=distance)
    (axes,) = loss.draw([file], quantity="l1_distance").axes
    assert axes.get_ylabel() == "test l1 distance"
    assert axes.lines[0].get_ydata().tolist() == distance.tolist()


def test_cosines_are_drawn_on_a_linear_axis_where_there_are_any(run_file, capsys):
    cosine = np.array([np.nan, *np.linspace(0.5, -0.3, 8)])
    file = run_file("a", smallest_cosine=cosine)
    figure = loss.draw([file, run_file("b", method="adam")], quantity="smallest_cosine")
    (axes,) = figure.axes
    assert (axes.get_ylabel(), axes.get_yscale()) == ("smallest cosine", "linear")
    (line,) = axes.lines
    assert line.get_ydata().tolist() == cosine[1:].tolist()
    assert "b.pickle has no 'smallest_cosine' and is left out" in capsys.readouterr().err
    seeds = [run_file(f"s{i}", seed=i, smallest_cosine=cosine + i) for i in range(3)]
    (line,) = loss.draw(seeds, quantity="smallest_cosine").axes[0].lines
    np.testing.assert_allclose(line.get_ydata(), 1 + cosine[1:])


def test_what_a_problem_is_tested_by(run_file):
    files = [run_file("a", tested_by="mean squared error"), run_file("b", problem="poisson")]
    labels = [axes.get_ylabel() for axes in loss.draw(files).axes]
    assert labels == ["mean squared error", "test loss per data point"]
    labels = [loss.draw(files[:1], quantity=q).axes[0].get_ylabel() for q in ("train", "both")]
    assert labels == ["train loss", "loss"]


def test_an_unknown_quantity_names_those_that_are_there(run_file, tmp_path, capsys):
    path = str(run_file(test_l1_distance=np.ones(9)).path)
    assert loss.main([path, "--quantity", "l2", "--out", str(tmp_path / "a.png")]) == 2
    error = capsys.readouterr().err
    assert f"{path} has no 'test_l2'" in error
    assert "--quantity can be test, train, l1_distance here" in error


def test_pretraining_comes_before_in_time_but_not_in_epochs(run_file):
    files = [run_file("a", method="adam", label="Adam"), run_file("b", pretraining_time=8.0)]
    time, epochs = loss.draw(files, x="both").axes
    first, after = time.lines
    assert after.get_xdata()[0] == first.get_xdata()[-1] == 8.0
    assert time.get_xlim()[0] == 0.0
    assert [line.get_xdata()[0] for line in epochs.lines] == [0.0, 0.0]
    (axes,) = loss.draw(files, log_x=True).axes
    assert [len(line.get_xdata()) for line in axes.lines] == [8, 9]


def test_problems_have_their_own_panels(run_file):
    figure = loss.draw([run_file("a"), run_file("b", problem="poisson", factor=5.0)])
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "nonlinear oscillators",
        "poisson",
    ]
    assert [len(axes.lines) for axes in figure.axes] == [1, 1]


def test_log_x_drops_the_start(run_file):
    (axes,) = loss.draw([run_file()], log_x=True).axes
    assert axes.get_xscale() == "log"
    assert axes.lines[0].get_xdata()[0] == 1.0


def test_seeds_without_a_common_range(run_file):
    late = run_file("late", seed=1, time=np.linspace(20.0, 30.0, 9))
    with pytest.raises(PlotError, match="2 files labelled 'HIG' cover no common range"):
        loss.draw([run_file(), late])


def test_options_reach_the_figure(run_file, tmp_path, monkeypatch):
    path = str(run_file().path)
    seen = []
    monkeypatch.setattr(loss, "draw", lambda files, *options: seen.append(options) or _Blank())
    options = ["--x", "both", "--quantity", "mse", "--log-x", "--linear", "--component", "u", "p"]
    assert loss.main([path, "--out", str(tmp_path / "a.png"), *options]) == 0
    assert loss.main([path, "--out", str(tmp_path / "a.png")]) == 0
    assert seen == [("both", "mse", True, True, ["u", "p"]), ("time", "test", False, False, None)]


def test_components_have_a_line_each(run_file):
    values = np.stack([np.linspace(2, 1, 9), np.linspace(4, 3, 9), np.linspace(6, 5, 9)], 1)
    file = run_file(test_mse=values, example={"unknowns": ["u", "v", "p"]})
    (axes,) = loss.draw([file], quantity="mse").axes
    lines = named_lines(axes)
    assert list(lines) == ["HIG, u", "HIG, v", "HIG, p"]
    assert lines["HIG, p"].get_ydata().tolist() == values[:, 2].tolist()
    assert axes.get_ylabel() == "test mse"
    (axes,) = loss.draw([file], quantity="mse", component=["p"]).axes
    assert list(named_lines(axes)) == ["HIG, p"]


def test_values_of_either_sign_on_a_linear_axis(run_file, capsys):
    values = np.linspace(1.0, -7.0, 9)
    file = run_file(test_loss=values)
    (axes,) = loss.draw([file], linear=True).axes
    assert axes.get_yscale() == "linear" and axes.lines[0].get_ydata().tolist() == values.tolist()
    assert capsys.readouterr().err == ""
    loss.draw([file])
    assert "left out; --linear shows those of either sign" in capsys.readouterr().err


def test_step_sizes_stand_at_the_ends_of_their_steps(run_file, capsys):
    steps = {"step_size": np.linspace(1.0, 0.1, 20), "step_time": np.linspace(0.4, 8.0, 20)}
    files = [run_file("a", **steps), run_file("b", method="adam", label="Adam")]
    time, epochs = loss.draw(files, x="both", quantity="step_size").axes
    assert time.lines[0].get_xdata().tolist() == steps["step_time"].tolist()
    np.testing.assert_allclose(epochs.lines[0].get_xdata(), 0.8 * np.arange(1, 21))
    assert time.get_ylabel() == "step size"
    assert "b.pickle has no 'step_size' and is left out" in capsys.readouterr().err


def test_less_than_a_decade_has_plain_numbers(run_file):
    file = run_file(test_loss=np.linspace(52.0, 31.5, 9))
    for axes in loss.draw([file], x="both").axes:
        low, high = axes.get_ylim()
        ticks = [tick for tick in axes.get_yticks() if low <= tick <= high]
        assert len(ticks) > 2
        assert all(text.isdigit() for text in axes.yaxis.get_major_formatter().format_ticks(ticks))
        assert len(axes.get_yticks(minor=True)) == 0


def test_legends_have_one_order(run_file):
    methods = {"mconfig": "M-ConFIG", "adam": "Adam", "config": "ConFIG", "gn": "Gauss–Newton"}
    files = [run_file(m, method=m, label=label) for m, label in methods.items()]
    files.append(run_file("z", method="adam", label="Adam (batch 2)"))
    expected = ["Gauss–Newton", "ConFIG", "M-ConFIG", "Adam", "Adam (batch 2)"]
    assert legend_of(loss.draw(files)) == legend_of(loss.draw(files[::-1])) == expected


class _Blank:
    def savefig(self, path):
        pass
