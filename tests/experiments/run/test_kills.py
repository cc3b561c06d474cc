"""Runs that are killed at any moment, among them while they write their files.

The suite kills a few times;
``HIG_KILLS=50 python -m pytest tests/experiments/run/test_kills.py`` does so as often as wanted, at
random moments, and with ``-s`` prints which.
"""

import os
import random
import signal
from collections import Counter

import hig
from experiments._run import checkpoint
from experiments._study.process import run_module
from tests.experiments.run.test_training import assert_same

LINE = [
    "--batch-size=8", "--time-steps=8", "--dt=0.5", "--train-size=16", "--test-size=6",
    "--epochs=10", "--lr=0.1", "--step-rule=trust", "--checkpoint-every=1e-9", "--threads=1",
    "--save-weights", "--quiet",
]  # fmt: skip

# The weights are results too, and written first.
MOMENTS = [("step", 3), ("fsync", 2), ("rename", 4), ("time", 10), ("results", 2)]


def moments():
    """When to kill: the first ones are always the same."""
    yield from MOMENTS
    luck = random.Random(0)
    while True:
        moment = luck.choice(["step", "fsync", "rename", "save", "results", "time"])
        most = {"results": 2, "time": 120}.get(moment, 20)
        yield moment, luck.randint(1, most)


def start(moment, count, out):
    """Run until it ends or is killed, in a copy of a process that has imported torch already."""
    line = [moment, str(count), *LINE, f"--out={out}", "--resume"]
    log = out.with_suffix(".log")
    status = run_module("tests.experiments.run.killed", line, log)
    assert status in (0, -signal.SIGKILL), log.read_text()
    return status


def check_files(folder):
    """Checks that all files are whole."""
    for path in folder.glob("*.checkpoint"):
        assert checkpoint._read(path, path.read_bytes())["state"]["steps"] > 0
    for path in [*folder.glob("*.pickle"), *folder.glob("*.weights")]:
        hig.load_results(path)


def outcome(folder):
    assert not list(folder.glob("*.checkpoint")) and not list(folder.glob(".*.checkpoint.*"))
    (results,), (weights,) = folder.glob("*.pickle"), folder.glob("*.weights")
    return hig.load_results(results), hig.load_results(weights)["weights"]


def test_a_killed_run_resumes_and_ends_as_if_it_had_not_been(tmp_path):
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
    assert killed.total() == kills
