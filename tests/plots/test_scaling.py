"""Figure of growing steps."""

import numpy as np
import pytest

from plots import scaling
from plots._files import PlotError, ResultFile


def measured(tmp_path, axis="rows", label="HIG", power=2.0):
    size = np.array([256.0, 128, 512, 1024])
    results = {
        "method": label,
        "label": label,
        "axis": axis,
        "size": size,
        "seconds_per_step": 1e-6 * size**power,
        "seconds_per_step_min": 0.5e-6 * size**power,
        "seconds_per_step_max": 2e-6 * size**power,
        "peak_bytes": 8 * size**2,
    }
    return ResultFile(tmp_path / f"{axis}_{label}.pickle", results)


def test_lines_bands_and_exponents(tmp_path):
    figure = scaling.draw([measured(tmp_path), measured(tmp_path, label="Adam", power=1.0)])
    time, memory = figure.axes
    assert [line.get_xdata().tolist() for line in time.lines] == [[128, 256, 512, 1024]] * 2
    assert time.lines[0].get_ydata()[0] == pytest.approx(1e-6 * 128**2)
    assert memory.lines[0].get_ydata()[-1] == pytest.approx(8e-9 * 1024**2)
    assert [text.get_text() for text in time.texts] == ["2.00", "1.00"]
    assert len(time.collections) == 2
    assert time.get_xlabel() == "rows of the Jacobian"
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"HIG", "Adam"}


def test_a_row_of_panels_for_each_axis(tmp_path):
    figure = scaling.draw([measured(tmp_path), measured(tmp_path, axis="parameters")])
    assert len(figure.axes) == 4
    assert figure.axes[2].get_xlabel() == "parameters"


def test_exponent_of_the_largest_half():
    size = np.array([1.0, 10, 100, 1000])
    assert scaling.exponent(size, np.array([5, 5, 7.0, 70])) == pytest.approx(1)
    assert np.isnan(scaling.exponent(size[:2], size[:2]))


def test_unfit_files(tmp_path):
    file = measured(tmp_path)
    file.results["peak_bytes"] = np.array([1.0, 0, 1, 1])
    with pytest.raises(PlotError, match=r"must be 4 positive numbers, found .*measure again"):
        scaling.draw([file])
    file = measured(tmp_path, axis="colour")
    with pytest.raises(
        PlotError, match="grows 'colour', not one of parameters, rows, fields, outputs"
    ):
        scaling.draw([file])
    file.results.pop("axis")
    with pytest.raises(PlotError, match=r"Give the result files of python -m experiments\.scaling"):
        scaling.draw([file])
