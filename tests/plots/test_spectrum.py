"""Spectrum figure."""

import numpy as np
import pytest
import torch

from hig._spectral.filters import noise_level
from plots import spectrum
from plots._files import PlotError, load


def test_normalised_values_and_the_cut_off(full_run):
    file = load(full_run)
    (axes,) = spectrum.draw([file], moments=3).axes
    *curves, cut_off = axes.lines
    values = file.results["spectrum"]["singular_values"]
    assert [line.get_label() for line in curves] == ["epoch 0", "epoch 2", "epoch 5"]
    for line, index in zip(curves, (0, 2, 5), strict=True):
        np.testing.assert_allclose(line.get_ydata(), values[index] / values[index, 0])
        np.testing.assert_array_equal(line.get_xdata(), np.arange(1, 41))
    assert set(cut_off.get_ydata()) == {1e-6}
    assert cut_off.get_label() == "cut-off 1e-6" and cut_off.get_linestyle() == "--"
    assert axes.get_yscale() == "log"
    assert len({line.get_color() for line in curves}) == 3


def test_a_cut_off_has_few_digits(full_run):
    file = load(full_run)
    file.results["spectrum"]["rcond"] = 1.1345011281488299e-7
    assert spectrum.draw([file]).axes[0].lines[-1].get_label() == "cut-off 1.1e-7"


def test_rounding_is_shaded_where_the_file_has_the_dtype(full_run, run_file):
    file = load(full_run)
    assert not spectrum.draw([file]).axes[0].patches
    file.results["sim_par"]["dtype"] = "float32"
    values = file.results["spectrum"]["singular_values"]
    small = 1e-20 * np.ones((1, 3)), {"dtype": "float64"}
    other = {"epochs": [0], "singular_values": small[0] * [[1e20, 1, 1]], "rcond": 0.0}
    other = run_file("other", spectrum=other, sim_par=small[1])
    first, second = spectrum.draw([file, other], moments=2).axes
    for axes, rows, dtype in (
        (first, values[[0, -1]], torch.float32),
        (second, other.results["spectrum"]["singular_values"], torch.float64),
    ):
        (shade,) = axes.patches
        rows = torch.tensor(rows, dtype=torch.float64)
        expected = max(float(noise_level(row, dtype) / row.max()) for row in rows)
        assert shade.get_y() + shade.get_height() == pytest.approx(expected)
        assert axes.get_legend().get_texts()[-1].get_text() == "may be rounding"
        assert axes.get_ylim()[0] == shade.get_y() < 1e-20  # what lies lowest is still seen


@pytest.mark.parametrize(
    ("epoch", "text"),
    [(0, "0"), (0.09375, "0.094"), (0.46875, "0.47"), (1.96875, "1.97"), (2048, "2048")],
)
def test_epochs_have_few_digits(run_file, epoch, text):
    file = run_file(spectrum={"epochs": [epoch], "singular_values": [[2.0, 1.0]], "rcond": 0})
    assert spectrum.draw([file]).axes[0].lines[0].get_label() == f"epoch {text}"


def test_files_side_by_side_and_all_moments(full_run):
    first, second = spectrum.draw([load(full_run)] * 2, moments=50).axes
    assert len(first.lines) == len(second.lines) == 7
    assert first.get_title(loc="left") == "HIG"


def test_zero_singular_values_and_no_cut_off(run_file, capsys):
    values = np.array([[0.0, 0.0], [4.0, 0.0]])
    file = run_file(spectrum={"epochs": [0, 1], "singular_values": values, "rcond": 0.0})
    (axes,) = spectrum.draw([file]).axes
    (line,) = axes.lines
    np.testing.assert_array_equal(line.get_ydata(), [1.0, np.nan])
    assert "every singular value at epoch 0 is zero" in capsys.readouterr().err


def test_parts_that_do_not_fit(run_file):
    file = run_file(spectrum={"epochs": [0], "singular_values": np.ones((2, 3)), "rcond": 0.1})
    with pytest.raises(PlotError, match="1 epochs for 2 rows"):
        spectrum.draw([file])
