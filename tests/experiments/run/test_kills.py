"""Runs that are killed at any moment, among them while they write their files.

The suite kills a few times;
``HIG_KILLS=50 python -m pytest tests/experiments/run/test_kills.py`` does so as often as wanted, at
random moments, and with ``-s`` tells which.
"""

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import experiments
import hig
from experiments._run import checkpoint
from tests.experiments.run.test_training import assert_same

ROOT = Path(experiments.__file__).parents[1]
LINE = [
    "--batch-size=8", "--time-steps=8", "--dt=0.5", "--train-size=16", "--test-size=6",
    "--epochs=10", "--lr=0.1", "--step-rule=trust", "--checkpoint-every=1e-9", "--threads=1",
    "--save-weights", "--quiet",
]  # fmt: skip

# A run that writes a checkpoint after every step, and is killed at the given call of something or
# after so many milliseconds.
CHILD = """
import os, pathlib, signal, sys, threading
import hig
from experiments._run import checkpoint
from experiments._run import loop
from experiments import submit
from problems import NonlinearOscillators

checkpoint.SHARE = 1e9
moment, count = sys.argv[1], int(sys.argv[2])
calls = []

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def dying(module, name):
    original = getattr(module, name)

    def call(*given):
        calls.append(None)
        if len(calls) == count:
            kill()
        return original(*given)

    setattr(module, name, call)

places = {
    "step": (loop, "take_step"), "fsync": (os, "fsync"), "rename": (pathlib.Path, "replace"),
    "save": (checkpoint.torch, "save"), "results": (hig, "save_results"),
}
if moment == "time":
    timer = threading.Timer(count / 1000, kill)
    timer.daemon = True
    timer.start()
elif moment != "never":
    dying(*places[moment])
submit(NonlinearOscillators(), "hig", sys.argv[3:])
"""

# The weights are results too, and written first.
MOMENTS = [("step", 3), ("fsync", 2), ("rename", 4), ("time", 30), ("results", 2)]


def moments():
    """When to kill: the first ones are always the same."""
    yield from MOMENTS
    luck = random.Random(0)
    while True:
        moment = luck.choice(["step", "fsync", "rename", "save", "results", "time"])
        most = {"results": 2, "time": 120}.get(moment, 20)
        yield moment, luck.randint(1, most)


def start(moment, count, out):
    command = [sys.executable, "-c", CHILD, moment, str(count), *LINE, f"--out={out}", "--resume"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def check_files(folder):
    """Whatever is there is whole."""
    for path in folder.glob("*.checkpoint"):
        assert checkpoint._read(path, path.read_bytes())["state"]["steps"] > 0
    for path in [*folder.glob("*.pickle"), *folder.glob("*.weights")]:
        hig.load_results(path)


def outcome(folder):
    assert not list(folder.glob("*.checkpoint")) and not list(folder.glob(".*.checkpoint.*"))
    (results,), (weights,) = folder.glob("*.pickle"), folder.glob("*.weights")
    return hig.load_results(results), hig.load_results(weights)["weights"]


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(tmp_path):
    assert start("never", 0, tmp_path / "whole") == 0
    whole, weights = outcome(tmp_path / "whole")
    folder, runs = tmp_path / "0", 0
    kills, killed, when = int(os.environ.get("HIG_KILLS", len(MOMENTS))), Counter(), moments()
    ended = False
    while killed.total() < kills or not ended:
        moment = next(when) if killed.total() < kills else ("never", 0)
        ended = start(*moment, folder) == 0  # earlier than the moment, or never killed
        killed[moment[0]] += not ended
        check_files(folder)
        if ended:
            found, found_weights = outcome(folder)
            assert_same(whole, found)
            assert_same(weights, found_weights)
            runs += 1
            folder = tmp_path / str(runs)
    print(f"\n{killed.total()} kills, {dict(+killed)}, in {runs} runs")
    assert killed.total() == kills and (kills > len(MOMENTS) or runs == 1)
