"""Figure of solutions on a grid."""

import numpy as np
import pytest

from plots import solution
from plots._files import PlotError

FLOW = {"x": 3, "y": 4, "z": 5, "t": 6}


def panels_of(figure, files):
    """Reference, predictions and errors as they are drawn, and the axes of the last two."""
    above, below = figure.axes[: 1 + files], figure.axes[2 + files : 2 + 2 * files]
    images = [axes.collections[0] for axes in (*above, *below)]
    return images[0], images[1 : 1 + files], images[1 + files :], above, below


def field(file, key, shape, unknown=0):
    return file.results["example"][key][:, unknown].reshape(shape)


def test_reference_once_and_predictions_above_their_errors(solved_run):
    files = [solved_run("a"), solved_run("b", method="adam", label="Adam (batch 500)")]
    prediction = files[1].results["example"]["prediction"]
    prediction += 1.0
    figure = solution.draw(files)
    reference, predictions, errors, above, below = panels_of(figure, 2)
    truth = field(files[0], "solution", (4, 3))
    np.testing.assert_array_equal(reference.get_array(), truth)  # time to the right
    across, up = reference.get_coordinates().transpose(2, 0, 1)
    # Cells around the points of the grid.
    np.testing.assert_allclose(across[0], [-0.25, 0.25, 0.75, 1.25])
    np.testing.assert_allclose(up[:, 0], np.linspace(-1 / 6, 7 / 6, 5))
    for file, found, error, axes in zip(files, predictions, errors, below, strict=True):
        own = field(file, "prediction", (4, 3))
        np.testing.assert_array_equal(found.get_array(), own)
        np.testing.assert_array_equal(error.get_array(), np.abs(own - truth))
        assert axes.get_title() == f"error, MSE {np.mean((own - truth) ** 2):.2g}"
    assert [axes.get_title() for axes in above] == ["reference", "HIG", "Adam (batch 500)"]
    assert (above[0].get_xlabel(), above[0].get_ylabel()) == ("t", "x")
    assert not figure.axes[3].texts
    assert [bar.get_ylabel() for bar in figure.axes[-2:]] == ["u", "absolute error"]


@pytest.mark.parametrize(("count", "columns"), [(4, 4), (5, 3), (7, 4)])
def test_many_files_continue_below(count, columns, solved_run):
    files = [solved_run(f"f{i}", label=f"run {i}") for i in range(count)]
    figure = solution.draw(files)
    grid = np.array(figure.axes[: -2 * (1 + (count > 4))]).reshape(-1, 1 + columns)
    assert len(grid) == (2 if count <= 4 else 4)
    assert figure.get_size_inches()[0] < 11
    above = [axes.get_title() for axes in grid[::2, 1:].ravel() if axes.axison]
    assert above == [file.label for file in files]
    below = [axes for axes in grid[1::2, 1:].ravel() if axes.axison]
    assert len(below) == count and all("MSE" in axes.get_title() for axes in below)
    assert all(axes.get_xlabel() == "t" for axes in below)
    assert [axes.axison for axes in grid[:, 0]] == [True] + [False] * (len(grid) - 1)


def test_scales_are_shared_and_those_of_the_values_are_of_the_reference(solved_run):
    files = [solved_run("a"), solved_run("b")]
    files[1].results["example"]["prediction"] *= 10
    reference, predictions, errors, *_ = panels_of(solution.draw(files), 2)
    largest = np.abs(files[0].results["example"]["solution"]).max()
    assert {image.get_clim() for image in (reference, *predictions)} == {(-largest, largest)}
    assert errors[0].get_clim() == errors[1].get_clim()
    low, high = errors[0].get_clim()
    assert high == max(image.get_array().max() for image in errors)
    assert 0 < low <= 0.1 * high
    assert np.mean([image.get_array() < low for image in errors]) < 0.1
    assert reference.get_cmap() != errors[0].get_cmap()


@pytest.mark.parametrize(("sign", "ends"), [(1, (0.5, 2.0)), (-1, (-2.0, -0.5))])
def test_values_of_one_sign_take_the_scale_from_end_to_end(sign, ends, solved_run):
    values = sign * np.linspace(0.5, 2.0, 12)[:, None]
    file = solved_run(changes={"solution": values, "prediction": values + 0.1})
    assert panels_of(solution.draw([file]), 1)[0].get_clim() == ends


@pytest.mark.parametrize(
    ("shift", "scale", "ends"),
    [(0.0, 0.5, "neither"), (0.0, 2.0, "both"), (0.5, 1.0, "max"), (-0.5, 1.0, "min")],
)
def test_the_bar_of_the_colours_shows_predictions_beyond(shift, scale, ends, solved_run):
    values = np.linspace(-1.0, 1.0, 12)[:, None]
    file = solved_run(changes={"solution": values, "prediction": scale * values + shift})
    _, (prediction,), *_ = panels_of(solution.draw([file]), 1)
    assert prediction.colorbar.extend == ends


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_solutions_without_an_error(value, solved_run, tmp_path):
    values = np.full((12, 1), value)
    file = solved_run(changes={"solution": values, "prediction": values})
    figure = solution.draw([file])
    reference, _, (error,), *_ = panels_of(figure, 1)
    assert reference.get_clim() == (value - 0.5, value + 0.5)
    assert error.get_clim() == (0.1, 1.0)
    figure.savefig(tmp_path / "figure.png")  # nothing that a logarithm would refuse
    assert np.all(error.to_rgba(error.get_array())[..., 3] == 1)


def test_a_plane_of_more_coordinates_is_stated(solved_run):
    file = solved_run(unknowns=("u", "p"), sides=FLOW)
    figure = solution.draw([file], unknown="p", at={"z": 0.2})
    reference, (prediction,), _, above, below = panels_of(figure, 1)
    cut = np.s_[:, :, 1, 5]
    truth = field(file, "solution", (3, 4, 5, 6), 1)[cut]
    found = field(file, "prediction", (3, 4, 5, 6), 1)[cut]
    np.testing.assert_array_equal(reference.get_array(), truth.T)  # x to the right
    np.testing.assert_array_equal(prediction.get_array(), found.T)
    assert below[0].get_title() == f"error, MSE {np.mean((found - truth) ** 2):.2g}"
    (held,) = figure.axes[2].texts  # below the reference, where nothing else is
    assert held.get_text() == "at z = 0.25\nt = 1"
    assert (above[0].get_xlabel(), above[0].get_ylabel()) == ("x", "y")
    assert figure.axes[-2].get_ylabel() == "p"


def test_space_has_one_scale_and_time_its_own(solved_run):
    assert panels_of(solution.draw([solved_run(sides=FLOW)]), 1)[3][0].get_aspect() == 1.0
    assert panels_of(solution.draw([solved_run()]), 1)[3][0].get_aspect() == "auto"


def test_modulus(solved_run):
    file = solved_run(unknowns=("real", "imaginary"))
    figure = solution.draw([file], unknown="modulus")
    reference, _, (error,), *_ = panels_of(figure, 1)
    parts = [field(file, key, (4, 3), i) for key in ("solution", "prediction") for i in (0, 1)]
    truth, found = np.hypot(*parts[:2]), np.hypot(*parts[2:])
    np.testing.assert_allclose(reference.get_array(), truth)
    np.testing.assert_allclose(error.get_array(), np.abs(found - truth))
    assert figure.axes[-2].get_ylabel() == "modulus"


def test_long_labels_are_wrapped(solved_run):
    label = "Levenberg–Marquardt (batch 500, damping 0.001, after Adam)"
    title = panels_of(solution.draw([solved_run(label=label)]), 1)[3][1].get_title()
    lines = title.splitlines()
    assert lines[0] == "Levenberg–Marquardt" and " ".join(lines) == label
    assert max(map(len, lines)) <= 22


def test_different_problems_are_refused(solved_run):
    with pytest.raises(PlotError, match="different problems"):
        solution.draw([solved_run("a"), solved_run("b", problem="burgers")])


def test_files_without_an_example_are_left_out_with_a_note(solved_run, run_file, capsys):
    solution.draw([solved_run(), run_file("bare")])
    assert "has no 'example' and is left out" in capsys.readouterr().err


def test_options_reach_the_figure(solved_run, tmp_path, monkeypatch):
    seen, draw = [], solution.draw
    monkeypatch.setattr(solution, "draw", lambda f, *options: seen.append(options) or draw(f))
    arguments = [str(solved_run().path), "--out", str(tmp_path / "a.png")]
    assert solution.main(arguments) == 0
    assert solution.main([*arguments, "--unknown", "p", "--at", "t=0.5", "z=-1"]) == 0
    assert seen == [(None, {}), ("p", {"t": 0.5, "z": -1.0})]
