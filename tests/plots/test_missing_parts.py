"""What figures say of files without what they show, and of arrays of a wrong shape."""

from importlib import import_module

import numpy as np
import pytest

from plots._files import PlotError, load

# The part, and for whom it is.
MISSING = {
    "density": (r"example\.density", "a quantum problem"),
    "fields": (r"example\.truth", "a Poisson problem"),
    "flow": (r"example\.velocity", "a controlled flow"),
    "landscape": (r"example\.x", "toy problem of two losses"),
    "populations": (r"example\.populations", "a quantum problem"),
    "rank": ("rank", "such as HIG"),
    "robustness": (r"runs\.start", r"experiments\.robustness"),
    "saturation": ("test_activation_mean", "conditioning problem"),
    "smoke": (r"example\.start", "smoke control"),
    "spectrum": (r"spectrum\.epochs", "such as HIG"),
    "step_time": ("batch_size", "measurement of step times"),
    "trajectory": (r"example\.state", "kept an example"),
}
# An array of the example, and the shapes wanted and found.
SHAPES = {
    "density": ("target_density", (2, 7), (2, 3)),
    "fields": ("prediction", (2, 5, 6), (2, 6, 5)),
    "flow": ("uncontrolled_velocity", (2, 7), (2, 3)),
    "populations": ("target_populations", (2, 3), (2, 4)),
    "smoke": ("truth", (2, 5, 6), (2, 6, 5)),
    "trajectory": ("target", (2, 4), (2, 3)),
}
# What is missing from a file that is left out of several, as far as files can be.
LEFT_OUT = {
    "density": "example",
    "landscape": "test_position",
    "rank": "rank",
    "saturation": "test_activation_mean",
    "spectrum": "spectrum",
    "step_time": "seconds_per_step",
}


def module(figure):
    return import_module(f"plots.{figure}")


@pytest.mark.parametrize("figure", MISSING)
def test_what_is_missing_is_named(figure, run_file):
    part, whose = MISSING[figure]
    with pytest.raises(PlotError, match=f"no '{part}'.*{whose}"):
        module(figure).draw([run_file()])


@pytest.mark.parametrize("figure", SHAPES)
def test_shapes_that_do_not_fit(figure, full_run):
    key, wanted, found = SHAPES[figure]
    file = load(full_run)
    file.results["example"][key] = np.zeros(found)
    with pytest.raises(PlotError) as caught:
        module(figure).draw([file])
    for text in (f"'example.{key}'", f"shape {wanted}", f"found {found}"):
        assert text in str(caught.value)


@pytest.mark.parametrize("figure", SHAPES)
def test_an_example_that_is_not_there(figure, full_run, tmp_path, capsys):
    line = [full_run, "--out", str(tmp_path / "a.png"), "--example", "2"]
    assert module(figure).main(line) == 2
    assert "no example 2, only 0 to 1" in capsys.readouterr().err


@pytest.mark.parametrize("figure", LEFT_OUT)
def test_files_without_their_part_are_left_out_with_a_note(figure, full_run, run_file, capsys):
    draw, whole = module(figure).draw, load(full_run)
    expected = draw([whole]).axes
    found = draw([whole, run_file("bare", method="adam", label="Adam")]).axes
    assert [len(axes.lines) for axes in found] == [len(axes.lines) for axes in expected]
    assert f"has no '{LEFT_OUT[figure]}' and is left out" in capsys.readouterr().err
