import json

import pytest

from experiments import __main__ as command
from experiments._cli import catalogue
from experiments._cli.catalogue import entry, text
from experiments._problems import FOLDERS, make
from problems import NonlinearOscillators
from tests.experiments.runs import Fresh


def listed(capsys, *arguments):
    assert command.main(["list", *arguments]) == 0
    return capsys.readouterr().out


def test_all_problems_in_a_table_that_fits_a_terminal(capsys):
    lines = listed(capsys).splitlines()
    scripts = [line.split()[2] for line in lines if line.startswith("python -m")]
    assert scripts == [
        f"experiments.{folder.replace('/', '.')}.submit_<method>," for folder in FOLDERS
    ]
    assert max(len(line) for line in lines if ": " not in line) <= 100
    rows = [line for line in lines if " published" in line or " our own" in line]
    assert len(rows) == sum(len(make(folder).settings) for folder in FOLDERS)


def test_one_problem_by_its_folder_or_its_name(capsys):
    by_name = listed(capsys, "--problem", "kovasznay")
    assert by_name == listed(capsys, "--problem", "pinn/kovasznay")
    assert by_name.count("python -m") == 1
    with pytest.raises(SystemExit) as stop:
        command.main(["list", "--problem", "kovasnay"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "unknown problem 'kovasnay'; known are nonlinear_oscillators, " in error


def test_json_has_every_setting_that_a_method_has(capsys):
    (found,) = json.loads(listed(capsys, "--problem", "nonlinear_oscillators", "--json"))
    assert found == entry("nonlinear_oscillators", NonlinearOscillators())
    assert found["time_budget"] == NonlinearOscillators.time_budget
    assert found["methods"]["adam"] == {
        "label": "Adam",
        "published": True,
        "settings": {"batch_size": 512, "lr": 3e-4, "schedule": "constant"},
    }
    settings = found["methods"]["hig"]["settings"]
    assert settings["rcond"] == 1e-6 and settings["engine"] == "auto"
    assert not found["methods"]["sgd"]["published"]


def test_the_columns_of_a_table():
    lines = text(entry("fresh", Fresh())).splitlines()
    assert lines[0] == "fresh: Small problems that the tests of a run share."
    assert lines[1] == "python -m experiments.fresh.submit_<method>, by default for 1 s"
    assert lines[3].split() == ["sgd", "SGD", "4", "0.01", "constant", "our", "own"]
    assert lines[4].split("  ")[-2:] == ["our own", "rcond 1e-06, kappa -0.5"]
    assert lines[2].index("values") == lines[3].index("our own") == lines[4].index("our own")


def test_a_route_of_its_own_and_a_number_of_epochs_are_shown():
    burgers = text(entry("pinn/burgers", make("pinn/burgers")))
    assert "rcond 1e-12, kappa -0.5, gram" in burgers
    assert "engine" not in burgers and "lanczos" not in burgers
    assert ", by default for 600 epochs" in text(entry("multitask/toy", make("multitask/toy")))


def test_what_cannot_be_imported_is_left_out_with_a_note(capsys, monkeypatch):
    def without_phiflow(folder):
        if folder.startswith(("poisson", "burgers")):
            raise ModuleNotFoundError("No module named 'phi'")
        return make(folder)

    monkeypatch.setattr(catalogue, "make", without_phiflow)
    assert command.main(["list"]) == 0
    printed = capsys.readouterr()
    assert "poisson" not in printed.out and "quantum_dipole" in printed.out
    assert (
        "note: poisson is left out: No module named 'phi'; get the missing package" in printed.err
    )
    assert command.main(["list", "--problem", "poisson"]) == 1
