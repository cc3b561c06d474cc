from pathlib import Path

import pytest

import experiments
from experiments._methods import METHODS
from experiments._problems import FOLDERS, PROBLEMS, make
from problems import Problem, SeveralLosses

SINGLE = {name for name, method in METHODS.items() if not method.several_losses}
OF_POINTS = {"adam", "hig", "gn", "lm"} | (set(METHODS) - SINGLE)
FEWER = {
    "smoke_control": {"hig", "gn", "khig", "adam", "soap", "muon", "lbfgs"},
    "burgers_control": {"hig", "gn", "khig", "adam", "soap", "muon", "lbfgs"},
    "reaction_diffusion": {"hig", "gn", "lm", "khig", "adam", "soap", "muon", "lbfgs"},
    "cart_pole": {"hig", "gn", "lm", "khig", "adam", "soap", "muon", "lbfgs"},
    "conditioning_toy": {"hig", "gn", "lm", "khig", "adam", "soap", "muon", "lbfgs"},
}
EXPERIMENTS = Path(experiments.__file__).parent


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_problem_is_made_with_its_defaults(name):
    problem = PROBLEMS[name]()
    assert isinstance(problem, Problem)
    assert problem == type(problem)()
    assert problem.name == name


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_of_scripts_has_its_problem(folder):
    problem = make(folder)
    assert problem.name == folder.rpartition("/")[2]
    assert isinstance(problem, SeveralLosses) == ("/" in folder)
    scripts = {path.stem for path in (EXPERIMENTS / folder).glob("submit_*.py")}
    assert scripts == {f"submit_{method}" for method in problem.settings}
    if not folder.startswith("multitask/"):
        expected = FEWER.get(folder, OF_POINTS if "/" in folder else SINGLE)
        assert set(problem.settings) == expected


def test_no_folder_of_scripts_is_left_out():
    found = {path.parent.relative_to(EXPERIMENTS) for path in EXPERIMENTS.rglob("submit_*.py")}
    assert {folder.as_posix() for folder in found} == set(FOLDERS)
