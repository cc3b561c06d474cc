"""Result files of the published training scripts, which pickled with older Python and numpy."""

import pickle

import numpy as np
import pytest

import hig
from experiments.__main__ import main
from experiments._saved import comparison
from experiments._saved.result_files import ResultFileError
from experiments._saved.runs import completed, read_runs
from plots import loss

LOSSES = [0.959, 0.0344, 2.6e-3, 1.1e-3]


def published(**changes):
    """Lists of Python floats, an array, numbers of numpy and settings, as those scripts wrote."""
    return {
        "epochs": 3,
        "train_loss": np.array(LOSSES, np.float32),
        "test_loss": [np.float32(value) for value in LOSSES],
        "epoch_time": [40.0, 41.5, 41.0],
        "simulation_time": np.float64(122.5),
        "sim_par": {"bs": 128, "lr": 1.0, "rcond": 1e-6, "optimizer": "HIG", "layers": [20, 20]},
        **changes,
    }


def write(path, results, protocol=4, spelling=b"numpy.core."):
    data = pickle.dumps(results, protocol=protocol)
    assert data.count(b"numpy._core.")
    if protocol < 4:
        data = data.replace(b"numpy._core.", spelling)
    else:  # names have their lengths before them, and frames theirs
        data = data.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_they_are_loaded_drawn_and_compared(protocol, tmp_path, capsys):
    path = write(tmp_path / "hig_oscillators.pickle", published(), protocol)
    assert b"numpy._core" not in path.read_bytes()
    found = hig.load_results(path)
    assert found["sim_par"] == published()["sim_par"] and found["epochs"] == 3
    assert found["test_loss"] == published()["test_loss"]
    np.testing.assert_array_equal(found["train_loss"], published()["train_loss"])
    assert loss.main([str(path), "--x", "both", "--out", str(tmp_path / "loss.png")]) == 0
    assert (tmp_path / "loss.png").stat().st_size > 1000
    assert main(["compare", str(path), "--target", "0.03"]) == 0
    row = capsys.readouterr().out.splitlines()[-1]
    cells = ["hig_oscillators", "1", "0.0011", "0.0011", "122", "–", "3", "81.5, 1 of 1"]
    assert [cell.strip() for cell in row.strip("|").split("|")] == [*cells, "not recorded"]


@pytest.mark.parametrize(
    ("changes", "epochs", "time"),
    [
        ({}, [0, 1, 2, 3], [0, 40, 81.5, 122.5]),
        ({"epochs": [0, 2, 4, 6], "epoch_time": [1.0] * 6}, [0, 2, 4, 6], [0, 2, 4, 6]),
        ({"epochs": 4, "epoch_time": [1.0, 2.0, 3.0, 4.0]}, [1, 2, 3, 4], [1, 3, 6, 10]),
        ({"epochs": 6, "epoch_time": 2.0, "simulation_time": 9.0}, [0, 2, 4, 6], [0, 3, 6, 9]),
    ],
)
def test_epochs_and_times(changes, epochs, time, tmp_path):
    (run,) = read_runs([write(tmp_path / "a.pickle", published(**changes))], "test")
    np.testing.assert_allclose(run.results["epochs"], epochs)
    np.testing.assert_allclose(run.seconds, time)


def test_a_folder_of_them(tmp_path):
    for name in ("hig", "adam"):
        write(tmp_path / f"{name}.pickle", published())
    assert [run.experiment[-1] for run in read_runs([tmp_path], "test")] == ["adam", "hig"]
    assert "## problem not named" in comparison.tables(read_runs([tmp_path], "test"), "test")


def test_values_that_are_not_numbers_are_reported_and_other_results_stay(tmp_path):
    with pytest.raises(ResultFileError, match=r"a\.pickle are not numbers"):
        completed(tmp_path / "a.pickle", published(epochs="three"))
    assert completed(tmp_path / "a.pickle", {"label": "HIG"}) == {"label": "HIG"}
