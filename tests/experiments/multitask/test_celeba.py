"""The scripts for CelebA, on a small folder in its own format."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

import experiments
import hig
from tests.problems.multitask.faces import write_faces

SCRIPTS = Path(experiments.__file__).parent / "multitask" / "celeba"
METHODS = {path.stem.removeprefix("submit_") for path in SCRIPTS.glob("submit_*.py")}
SMALL = ["--width=2", "--batch-size=12", "--quiet"]
LENGTHS = {method: ["--epochs=3", "--lr=0.01", "--train-size=24"] for method in METHODS}
# One loss per step: forty steps before the first with momenta of all.
LENGTHS["mconfig"] = ["--epochs=100", "--lr=0.001", "--train-size=12"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """60 training images, 4 for validation and 20 for the test."""
    place = tmp_path_factory.mktemp("celeba")
    write_faces(place, [0] * 60 + [1] * 4 + [2] * 20)
    return place


@pytest.fixture
def submit(tmp_path, monkeypatch):
    """Runs a script with arguments; returns the results that it has written."""

    def call(method, *line):
        script = str(SCRIPTS / f"submit_{method}.py")
        monkeypatch.setattr(sys, "argv", [script, *SMALL, *line, "--out", str(tmp_path / method)])
        runpy.run_path(script, run_name="__main__")
        (path,) = (tmp_path / method).glob("*.pickle")
        return hig.load_results(path)

    return call


def test_there_is_a_script_for_every_published_method():
    assert {"adam", "pcgrad", "imtlg", "config", "mconfig"} == METHODS


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_run(method, folder, submit):
    results = submit(method, "--data", str(folder), *LENGTHS[method])
    assert (results["problem"], results["method"]) == ("celeba", method)
    assert results["stopped"] == "epochs"
    assert results["train_loss"][-1] < results["train_loss"][0]
    assert results["test_f1"].shape == (results["sim_par"]["epochs"] + 1, 40)
    assert ((results["test_f1"] >= 0) & (results["test_f1"] <= 1)).all()
    np.testing.assert_allclose(results["test_mean_f1"], results["test_f1"].mean(1))
    assert results["example"]["tasks"][31] == "Smiling"
    assert results["sim_par"]["folder"] == str(folder)
    # The folder of the images is not a setting that distinguishes runs.
    assert str(folder) not in results["label"]


def test_what_can_be_seen_is_learnt(folder, submit):
    results = submit("adam", "--data", str(folder), "--epochs=30", "--lr=0.003", "--width=4")
    seen, positives = results["test_f1"][-1, :3], results["test_f1"][-1, 3]
    assert (seen > 0.8).all()  # of twenty images that it was not trained on
    assert positives == 0  # a task without any


def test_a_run_repeats(folder, submit):
    runs = [
        submit("config", "--data", str(folder), "--epochs=1", "--train-size=20") for _ in range(2)
    ]
    assert runs[0]["train_loss"].tolist() == runs[1]["train_loss"].tolist()


@pytest.mark.parametrize("line", [[], ["--data", "nowhere"]])
def test_without_data_there_is_an_error_message(line, submit):
    with pytest.raises(SystemExit) as stop:
        submit("adam", *line)
    text = str(stop.value.code)
    assert text.startswith("error: ") and "https://mmlab.ie.cuhk.edu.hk/projects/CelebA" in text
