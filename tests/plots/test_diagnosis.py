"""Figure of a diagnosis."""

import numpy as np
import pytest
import torch

import hig
from plots import diagnosis
from plots._files import PlotError, load


@pytest.fixture
def file(tmp_path):
    torch.manual_seed(0)
    network, inputs = torch.nn.Linear(3, 2), torch.randn(6, 3)

    def closure():
        prediction = network(inputs).tanh() * torch.tensor([1.0, 1e-4])
        return (prediction - 1).square().sum(1).mean(), prediction

    found = hig.diagnose(network.parameters(), closure, kappas=(-0.5, -1.0, 0.25))
    hig.save_results(tmp_path / "batch.pickle", found.results())
    return load(tmp_path / "batch.pickle")


def test_spectrum_cut_and_noise(file):
    left, _ = diagnosis.draw([file]).axes
    values, cut = left.lines
    np.testing.assert_array_equal(values.get_ydata(), file.results["singular_values"])
    largest = file.results["singular_values"][0]
    assert set(cut.get_ydata()) == {file.results["directions"][0]["rcond"] * largest}
    assert left.get_yscale() == "log"
    (span,) = left.patches
    assert span.get_y() + span.get_height() == pytest.approx(file.results["noise"])
    assert left.get_ylim()[0] < file.results["noise"]


def test_measured_and_modelled_losses_in_one_colour(file):
    _, right = diagnosis.draw([file]).axes
    *curves, _ = right.lines
    before = file.results["loss"]
    for number, direction in enumerate(file.results["directions"]):
        achieved, predicted = curves[2 * number : 2 * number + 2]
        for line, key in ((achieved, "achieved"), (predicted, "predicted")):
            np.testing.assert_allclose(line.get_ydata(), 1 + direction[key] / before)
            np.testing.assert_allclose(
                line.get_xdata(), direction["step_sizes"] / direction["cauchy"]
            )
        assert achieved.get_color() == predicted.get_color()
        assert achieved.get_label().startswith(f"{direction['name']}, ")
    assert len({line.get_color() for line in curves}) == 3


def test_files_below_one_another(file):
    assert len(diagnosis.draw([file, file]).axes) == 4


def test_another_file_is_refused(run_file):
    with pytest.raises(PlotError, match=r"hig\.diagnose"):
        diagnosis.draw([run_file()])


def test_command_line(file, tmp_path, capsys):
    out = tmp_path / "batch.png"
    assert diagnosis.main([str(file.path), "--out", str(out)]) == 0
    assert out.stat().st_size > 1000
