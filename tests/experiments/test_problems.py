import subprocess
import sys

import pytest

from experiments._problems import PROBLEMS
from problems import Problem


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_problem_is_made_with_its_defaults(name):
    problem = PROBLEMS[name]()
    assert isinstance(problem, Problem)
    assert problem == type(problem)()
    assert problem.name == name


def test_nothing_is_imported_before_it_is_asked_for():
    code = "import sys, experiments._problems; print([m for m in sys.modules if m[:3] == 'phi'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
