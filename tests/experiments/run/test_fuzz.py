"""Thousands of mutated files: each is loaded or refused by name, and nothing of it is run.

The suite tries some hundred of each kind; ``HIG_FUZZ=20000 python -m pytest
tests/experiments/run/test_fuzz.py -s`` as many as wanted, and prints how they ended.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import experiments
from tests.experiments.run.fuzzing import KINDS

ROOT = Path(experiments.__file__).parents[1]
SCRIPT = "tests.experiments.run.fuzzing"
COUNT = int(os.environ.get("HIG_FUZZ", 300))


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_files_are_loaded_or_refused(kind, tmp_path):
    command = [sys.executable, "-m", SCRIPT, kind, "0", str(COUNT), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    last = (tmp_path / "last").read_text() if (tmp_path / "last").exists() else "none"
    again = f"python -m {SCRIPT} {kind} {last} 1 FOLDER repeats it"
    assert done.returncode == 0, f"case {last}: {done.returncode}; {again}\n{done.stderr[-3000:]}"
    ends = json.loads(done.stdout)
    print(f"\n{kind}: {ends}")
    del ends["slowest"]
    assert sum(ends.values()) == COUNT
    assert {"loaded"} < ends.keys()  # neither all nor none
