import functools
import os
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import experiments
import hig
from experiments import submit
from experiments._cli import submit as submit_module
from experiments._problems import make
from problems import DataError, NonlinearOscillators, poisson
from problems.pinn import Burgers, Schroedinger

ROOT = Path(experiments.__file__).parents[1]
SCRIPTS = ROOT / "experiments" / "nonlinear_oscillators"
FIELDS = ["--batch-size=2", "--train-size=4", "--test-size=4"]
POINTS = ["--batch-size=8", "--width=4", "--depth=1"]
PROBLEM = ["--time-steps=8", "--dt=0.5", "--train-size=16", "--test-size=6"]
TINY = ["--epochs=1", "--batch-size=16", "--lr=0.01", *PROBLEM]
SMALL = {  # the options of a small run
    "nonlinear_oscillators": ["--batch-size=16", "--lr=0.01", *PROBLEM],
    "poisson": FIELDS,
    "poisson_source": FIELDS,
    "smoke_control": FIELDS,
    "quantum_dipole": ["--batch-size=4", "--train-size=8", "--time-steps=4"],
    "cart_pole": ["--batch-size=4", "--train-size=8", "--time-steps=12"],
    "burgers_control": ["--batch-size=4", "--train-size=8", "--time-steps=4"],
    "reaction_diffusion": ["--batch-size=4", "--train-size=8", "--window-steps=2"],
    "conditioning_toy": ["--batch-size=4", "--train-size=8"],
    "multitask/toy": ["--start=3"],
    **{
        f"pinn/{name}": [*POINTS, "--points-interior=8"]
        for name in ("burgers", "schroedinger", "kovasznay", "beltrami")
    },
}


def test_results_of_a_command_line(tmp_path):
    line = [*TINY, "--out", str(tmp_path), "--quiet", "--seed", "3"]
    results = submit(NonlinearOscillators(), "adam", line)
    assert results["seed"] == 3
    assert len(list(tmp_path.glob("nonlinear_oscillators_adam_*seed3.pickle"))) == 1


@pytest.mark.parametrize(
    ("stopped", "code"), [("interrupted", 130), ("non-finite: the loss", "error: non-finite")]
)
def test_exit_status(stopped, code, tmp_path, monkeypatch):
    monkeypatch.setattr(submit_module, "run", lambda *_: {"stopped": stopped})
    with pytest.raises(SystemExit) as stop:
        submit(NonlinearOscillators(), "adam", [*TINY, "--out", str(tmp_path)])
    assert str(stop.value.code).startswith(str(code))


def test_weights_that_do_not_fit_are_an_error_message(tmp_path):
    missing = ["--init-from", str(tmp_path / "none.weights")]
    with pytest.raises(SystemExit) as stop:
        submit(NonlinearOscillators(), "adam", [*TINY, *missing, "--out", str(tmp_path)])
    assert str(stop.value.code).startswith("error: no weights file")


def test_data_that_cannot_be_read_are_an_error_message(tmp_path, monkeypatch):
    def data(*_):
        raise DataError("there are no faces; get some")

    monkeypatch.setattr(NonlinearOscillators, "data", data)
    with pytest.raises(SystemExit) as stop:
        submit(NonlinearOscillators(), "adam", [*TINY, "--out", str(tmp_path)])
    assert stop.value.code == "error: there are no faces; get some"


@pytest.fixture(scope="module")
def quick_data():
    """Few fields to draw from, and the test data of a problem once for all its methods."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(poisson, "POOL", 8)
        for problem in (Burgers, Schroedinger):
            patch.setattr(problem, "solution", functools.cache(problem.solution))
        yield


@pytest.mark.usefixtures("quick_data")
@pytest.mark.parametrize("problem", SMALL)
def test_scripts_of_a_problem(problem, tmp_path, monkeypatch):
    folder = ROOT / "experiments" / problem
    for method in make(problem).settings:
        out = tmp_path / method
        line = ["--time-budget=1e-9", "--quiet", "--out", str(out), *SMALL[problem]]
        monkeypatch.setattr(sys, "argv", [method, *line])
        runpy.run_path(str(folder / f"submit_{method}.py"), run_name="__main__")
        (path,) = out.glob("*.pickle")
        results = hig.load_results(path)
        assert (results["problem"], results["method"]) == (folder.name, method)


@pytest.mark.parametrize(
    "call",
    [
        ["-m", "experiments.nonlinear_oscillators.submit_hig"],
        [str(SCRIPTS / "submit_adam.py")],
    ],
)
def test_both_ways_to_call_a_script(call, tmp_path):
    # As after an editable install, which puts the root of the project on the path.
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, *call, *TINY, "--out", "results"]
    done = subprocess.run(
        line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "stopped: epochs" in done.stderr
    (path,) = (tmp_path / "results").glob("*.pickle")
    assert hig.load_results(path)["origin"]["command"] == shlex.join(["python", *line[1:]])
