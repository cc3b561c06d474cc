import subprocess
import sys

from problems import pinn


def test_every_public_name_is_there_and_documented():
    for name in pinn.__all__:
        assert (getattr(pinn, name).__doc__ or "").strip(), name


def test_no_simulation_package_is_imported():
    code = "import sys, problems.pinn; print([m for m in sys.modules if m[:3] in ('phi', 'sci')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
