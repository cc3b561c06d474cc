"""Solutions on a grid, and planes through them."""

import numpy as np
import pytest

from plots import _on_grid
from plots._files import PlotError

FLOW = {"x": 3, "y": 4, "z": 5, "t": 6}


def test_points_in_any_order_become_an_array(solved_run):
    file = solved_run(unknowns=("u", "v"), sides={"x": 4, "t": 3})
    example = file.results["example"]
    shuffled = np.random.default_rng(1).permutation(12)
    for key in ("points", "prediction", "solution"):
        example[key] = example[key][shuffled]
    one = _on_grid.read(file)
    assert [axis.tolist() for axis in one.axes] == [
        np.linspace(0, 1, 4).tolist(),
        [0.0, 0.5, 1.0],
    ]
    assert one.prediction.shape == one.reference.shape == (4, 3, 2)
    for (x, t), prediction, reference in zip(
        example["points"], example["prediction"], example["solution"], strict=True
    ):
        place = round(3 * x), round(2 * t)
        np.testing.assert_array_equal(one.prediction[place], prediction)
        np.testing.assert_array_equal(one.reference[place], reference)


@pytest.mark.parametrize(
    ("points", "found"),
    [
        ([[0, 0], [0, 1], [1, 0], [1, 0.5]], "2 x 3"),
        ([[0, 0], [0, 1], [1, 0], [1, 0]], "2 x 2"),
        ([[0, 0], [1, 0], [2, 0], [3, 0]], "4 x 1"),
    ],
)
def test_points_that_are_no_full_grid(points, found, solved_run):
    changes = {"points": points, "prediction": np.ones((4, 1)), "solution": np.ones((4, 1))}
    file = solved_run(changes=changes)
    text = rf"the 4 points of .*run\.pickle are not a full grid: they have {found} different places"
    with pytest.raises(PlotError, match=text):
        _on_grid.read(file)


def test_scattered_points_of_many_coordinates(solved_run):
    points = np.random.default_rng(0).random((1000, 7))  # 10^21 combinations
    changes = {"points": points, "coordinates": list("abcdefg")}
    changes |= dict.fromkeys(("prediction", "solution"), np.ones((1000, 1)))
    with pytest.raises(PlotError, match="not a full grid"):
        _on_grid.read(solved_run(changes=changes))


@pytest.mark.parametrize("key", ["points", "prediction", "solution"])
def test_what_is_not_finite(key, solved_run):
    file = solved_run()
    file.results["example"][key][2, 0] = np.nan
    text = rf"1 of \d+ values of 'example\.{key}' in .* not finite; leave the file out"
    with pytest.raises(PlotError, match=text):
        _on_grid.read(file)


def test_missing_and_unfit_parts(solved_run, run_file, full_run):
    with pytest.raises(PlotError, match=r"no 'example\.points'.*physics-informed"):
        _on_grid.read(run_file("bare"))
    file = solved_run(changes={"prediction": np.ones((12, 2))})
    with pytest.raises(PlotError, match=r"prediction' .* \(12, 1\) .*\(12, 2\), found \(12, 2\)"):
        _on_grid.read(file)
    file = solved_run(changes={"solution": np.ones((11, 1))})
    with pytest.raises(PlotError, match=r"'example\.solution' .* \(12, 1\) .* found \(11, 1\)"):
        _on_grid.read(file)
    with pytest.raises(PlotError, match=r"'example\.unknowns' .* 1 names, found 2"):
        _on_grid.read(solved_run(changes={"unknowns": ["u", "v"]}))


def test_unknowns_by_name(solved_run):
    one = _on_grid.read(solved_run(unknowns=("u", "p")))
    for name, index in ((None, 0), ("u", 0), ("p", 1)):
        prediction, reference = one.unknown(name)
        np.testing.assert_array_equal(prediction, one.prediction[..., index])
        np.testing.assert_array_equal(reference, one.reference[..., index])
    with pytest.raises(PlotError, match="no unknown 'modulus'; --unknown can be u, p here"):
        one.unknown("modulus")


def test_the_modulus_of_a_complex_unknown(solved_run):
    one = _on_grid.read(solved_run(unknowns=("real", "imaginary")))
    for found, parts in zip(one.unknown("modulus"), (one.prediction, one.reference), strict=True):
        np.testing.assert_allclose(found, np.abs(parts[..., 0] + 1j * parts[..., 1]))
    with pytest.raises(PlotError, match="can be real, imaginary, modulus here"):
        one.unknown("phase")


@pytest.mark.parametrize(
    ("sides", "at", "across", "up", "index", "held"),
    [
        ({"x": 4, "t": 3}, {}, "t", "x", np.s_[:, :], {}),
        ({"x": 4, "y": 3}, {}, "x", "y", np.s_[:, :], {}),
        (FLOW, {}, "x", "y", np.s_[:, :, 2, 5], {"z": 0.5, "t": 1.0}),
        (FLOW, {"t": 0.21, "z": 0.9}, "x", "y", np.s_[:, :, 4, 1], {"z": 1.0, "t": 0.2}),
        (FLOW, {"y": 0.3}, "x", "z", np.s_[:, 1, :, 5], {"y": 1 / 3, "t": 1.0}),
        (FLOW, {"y": 0, "x": 1}, "t", "z", np.s_[2, 0, :, :], {"x": 1.0, "y": 0.0}),
    ],
)
def test_planes(sides, at, across, up, index, held, solved_run):
    one = _on_grid.read(solved_run(sides=sides))
    plane = _on_grid.plane(one, at)
    assert (plane.across, plane.up) == (across, up)
    assert plane.held == pytest.approx(held, abs=1e-5)
    array = one.reference[..., 0]
    expected = array[index] if across == "t" else array[index].T
    np.testing.assert_array_equal(plane.cut(array), expected)
    assert plane.cut(array).shape == (sides[up], sides[across])


def test_a_middle_that_is_zero_but_for_rounding_is_said_to_be_zero(solved_run):
    file = solved_run(sides={"x": 3, "y": 3, "z": 3})
    points = file.results["example"]["points"]
    points[:, 2] = np.select([points[:, 2] == 0, points[:, 2] == 1], [-1, 1], -5.6e-17)
    assert str(_on_grid.plane(_on_grid.read(file), {}).held["z"]) == "0.0"


def test_planes_that_are_not_there(solved_run):
    one = _on_grid.read(solved_run(sides=FLOW))
    with pytest.raises(PlotError, match="no coordinate 's'; --at can hold x, y, z, t here"):
        _on_grid.plane(one, {"s": 1.0})
    with pytest.raises(PlotError, match=r"--at holds x and y and z of x, y, z, t, .* leave some"):
        _on_grid.plane(one, {"x": 0.0, "y": 0.0, "z": 0.0})
    for value in (1.5, np.nan):
        with pytest.raises(PlotError, match=rf"t={value} is outside .* t=\.\.\. .* 0 to 1"):
            _on_grid.plane(one, {"t": value})


def test_files_of_one_problem_may_differ_by_rounding(solved_run):
    files = [solved_run("a"), solved_run("b")]
    example = files[1].results["example"]
    for key in ("points", "solution"):
        example[key] = np.float32(example[key])
    grids = [_on_grid.read(file) for file in files]
    assert not np.array_equal(grids[0].reference, grids[1].reference)
    _on_grid.require_one_problem(files, grids)  # does not raise


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"problem": "burgers"}, "problems, nonlinear_oscillators and burgers"),
        ({"unknowns": ("v",)}, "problems"),
        ({"sides": {"x": 4, "t": 5}}, "grids, 4 x 3 and 4 x 5"),
        ({"changes": {"solution": np.ones((12, 1))}}, "references, as of other parameters"),
    ],
)
def test_files_of_different_problems(other, text, solved_run):
    files = [solved_run("a"), solved_run("b", **other)]
    with pytest.raises(PlotError, match=rf"b\.pickle show different {text}.*; draw a figure of"):
        _on_grid.require_one_problem(files, [_on_grid.read(file) for file in files])


def test_files_on_grids_of_one_size_and_different_places(solved_run):
    files = [solved_run("a"), solved_run("b")]
    files[1].results["example"]["points"][:, 1] *= 2
    with pytest.raises(PlotError, match="show different grids; draw"):
        _on_grid.require_one_problem(files, [_on_grid.read(file) for file in files])
