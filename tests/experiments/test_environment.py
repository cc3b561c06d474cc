import os
import subprocess
import sys

import pytest

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
SHOW = f"import os; print(*(os.environ.get(name) for name in {NAMES}))"


def printed(code, **given):
    environment = {key: value for key, value in os.environ.items() if key not in NAMES} | given
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ["PASSIVE", "1000"]),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ["ACTIVE", "None"]),
        ({"GOMP_SPINCOUNT": "7"}, ["PASSIVE", "7"]),
    ],
)
def test_waiting_threads_sleep_soon_unless_told_otherwise(given, expected):
    assert printed(f"import experiments; {SHOW}", **given) == expected


def test_it_is_settled_before_torch_is_imported():
    probe = f"""
import os, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            {SHOW.replace("import os; ", "")}
        return None

sys.meta_path.insert(0, Watch())
import experiments
"""
    assert printed(probe) == ["PASSIVE", "1000"]
