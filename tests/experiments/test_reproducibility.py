"""Equal seeds give equal results: every problem, in processes that differ in all but the seed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import experiments
from experiments._problems import FOLDERS
from tests.problems.multitask.faces import write_faces

ROOT = Path(experiments.__file__).parents[1]
FIELDS = ["--batch-size=2", "--train-size=4", "--test-size=4"]
POINTS = ["--batch-size=8", "--width=4", "--depth=1", "--points-interior=16"]
SMALL = {
    "nonlinear_oscillators": ["--batch-size=8", "--train-size=16", "--time-steps=4", "--dt=0.5"],
    "quantum_dipole": ["--batch-size=4", "--train-size=8", "--test-size=4", "--time-steps=4"],
    "poisson": FIELDS,
    "poisson_source": FIELDS,
    "cart_pole": ["--batch-size=4", "--train-size=8", "--test-size=4", "--time-steps=12"],
    "burgers_control": ["--batch-size=4", "--train-size=8", "--test-size=4", "--time-steps=4"],
    "reaction_diffusion": ["--batch-size=4", "--train-size=8", "--test-size=4", "--window-steps=2"],
    "smoke_control": FIELDS,
    "conditioning_toy": ["--batch-size=4", "--train-size=8"],
    **{f"pinn/{name}": POINTS for name in ("burgers", "schroedinger", "kovasznay", "beltrami")},
    "multitask/toy": ["--start=3"],
    "multitask/celeba": ["--batch-size=4", "--width=2", "--data=faces"],
}
# Methods for problems that a Jacobian does not fit.
METHODS = {folder: ("adam", "config" if "multitask" in folder else "hig") for folder in FOLDERS}

# Ends after a few steps, whatever the length of an epoch, and prints every bit of the results.
CHILD = """
import json, sys
import hig
from experiments import submit
from experiments._problems import make
from experiments._run import loop
from problems import poisson

loop._budget_used_up = lambda options, epoch, seconds: "steps" if len(taken) >= 3 else None
poisson.POOL = 8
take, taken, found = loop.take_step, [], {}
# With epochs a schedule of the step size goes by them: without, it would go by time.
COMMON = ["--threads=1", "--quiet", "--save-weights", "--epochs=1000"]

def step(*given):
    taken.append(None)
    return take(*given)

loop.take_step = step
for folder, method, line in json.loads(sys.argv[1]):
    taken.clear()
    results = submit(make(folder), method, [*line, *COMMON])
    weights = hig.load_results(f"results/{results['problem']}/{results['weights_file']}")
    bits = {name: value.tobytes().hex() for name, value in weights["weights"].items()}
    for key in ("train_loss", "test_loss"):
        bits[key] = [float(results[key][place]).hex() for place in (0, -1)]
    found[f"{folder} {method}"] = bits
print(json.dumps(found))
"""


def outcomes(place, hash_seed, cases):
    """Bits by case and name, of a process of its own."""
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(cases)],
        cwd=place, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """Of all cases, in two processes, in which other ones come before."""
    place = tmp_path_factory.mktemp("equal")
    (place / "faces").mkdir()
    write_faces(place / "faces", [0] * 8 + [1] * 2 + [2] * 4)
    cases = [[folder, method, SMALL[folder]] for folder in FOLDERS for method in METHODS[folder]]
    return outcomes(place, "1", cases), outcomes(place, "2", cases[::-1])


@pytest.mark.parametrize("folder", FOLDERS)
def test_equal_seeds_give_equal_bits_in_another_process(folder, twice):
    first, second = twice
    for method in METHODS[folder]:
        case = f"{folder} {method}"
        assert first[case] == second[case]
        start, end = first[case]["train_loss"]
        assert start != end
