import subprocess
import sys

import pytest

import problems


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_phiflow_is_imported_by_those_who_need_it_alone():
    done = run(
        "import sys, problems; from problems import NonlinearOscillators\n"
        "print('phi' in sys.modules)\n"
        "from problems import Poisson, PoissonSource\n"
        "print('phi' in sys.modules, Poisson.name, PoissonSource.name)\n"
        "from phi import math\n"
        "print(math.random_normal(math.spatial(x=1)).default_backend.name, math.get_precision())\n"
    )
    assert done.stdout.splitlines() == ["False", "True poisson poisson_source", "numpy 32"]


@pytest.mark.parametrize("ask", ["from problems import Poisson", "import problems.poisson_source"])
def test_without_phiflow_the_error_tells_what_to_install(ask):
    done = run(f"import sys; sys.modules['phi'] = None\n{ask}")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: ")
    assert "'phi' is not installed; pip install 'hig[problems]'" in last


def test_every_public_name_is_there_and_documented():
    for name in problems.__all__:
        assert (getattr(problems, name).__doc__ or "").strip(), name


def test_other_names_are_missing():
    with pytest.raises(AttributeError, match="module 'problems' has no attribute 'Poison'"):
        _ = problems.Poison
