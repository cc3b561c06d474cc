import subprocess
import sys

import pytest

import hig.conflictfree
import problems.multitask
import problems.pinn


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


def test_others_bring_in_no_package_that_they_do_not_need():
    done = run(
        "import sys\n"
        "import problems.pinn; print([m for m in sys.modules if m[:3] in ('phi', 'sci')])\n"
        "import problems.multitask; print({'phi', 'PIL'} & set(sys.modules))\n"
        "import experiments._problems; print([m for m in sys.modules if m[:3] == 'phi'])\n"
    )
    assert done.stdout.splitlines() == ["[]", "set()", "[]"], done.stderr


def test_without_phiflow_the_error_names_what_to_install():
    done = run(
        "import sys; sys.modules['phi'] = None\n"
        "try:\n"
        "    from problems import Poisson\n"
        "except ModuleNotFoundError as error:\n"
        "    print(error)\n"
        "import problems.poisson_source\n"
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: ")
    for text in (done.stdout, last):
        assert "'phi' is not installed; pip install 'hig[problems]'" in text


@pytest.mark.parametrize("module", [problems, problems.multitask, problems.pinn, hig.conflictfree])
def test_every_public_name_is_there_and_documented(module):
    for name in module.__all__:
        assert (getattr(module, name).__doc__ or "").strip(), name


def test_other_names_are_missing():
    with pytest.raises(AttributeError, match="module 'problems' has no attribute 'Poison'"):
        _ = problems.Poison
