"""Runs in copies of a process against runs in processes that begin from nothing."""

import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import hig
from experiments._study.process import run_module

MODULE = "experiments.conditioning_toy.submit_hig"


CODE = """
import sys
from pathlib import Path
from experiments._study.process import run_module
sys.exit(run_module(sys.argv[1], sys.argv[3:], Path(sys.argv[2])))
"""


def line(out, *given):
    return [*given, "--out", str(out), "--threads", "1", "--seed", "7"]


def wait_for(condition):
    end = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_results_are_those_of_a_run_from_a_shell(tmp_path):
    given = line(tmp_path / "copied", "--epochs", "3")
    assert run_module(MODULE, given, tmp_path / "log.txt") == 0
    shell = line(tmp_path / "shell", "--epochs", "3")
    subprocess.run([sys.executable, "-m", MODULE, *shell], check=True, capture_output=True)
    (copied,) = map(hig.load_results, (tmp_path / "copied").glob("*.pickle"))
    (whole,) = map(hig.load_results, (tmp_path / "shell").glob("*.pickle"))
    assert copied.keys() == whole.keys()
    for name in ("train_loss", "test_loss", "epochs"):  # between them evaluated by time
        np.testing.assert_array_equal(copied[name][[0, -1]], whole[name][[0, -1]])
    assert copied["origin"]["command"] == shlex.join(["python", "-m", MODULE, *given])
    assert copied["origin"]["revision"] == whole["origin"]["revision"]


def test_the_output_is_in_the_log(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("of an earlier try")
    assert run_module(MODULE, ["--seed", "x"], log) == 2
    text = log.read_text()
    assert "--seed" in text and "earlier" not in text
    assert run_module(MODULE, ["--help"], log) == 0
    assert "usage" in log.read_text()


def test_the_error_text_of_an_exit_is_status_1(tmp_path):
    log = tmp_path / "log.txt"
    given = line(tmp_path, "--epochs", "1", "--init-from", str(tmp_path / "none.weights"))
    assert run_module(MODULE, given, log) == 1
    assert log.read_text().count("error: ") == 1


def test_many_at_once_and_each_with_its_own_status(tmp_path):
    def ended(index):
        wrong = ["--no-such-option"] if index % 3 == 0 else ["--help"]
        return run_module("json.tool", wrong, tmp_path / f"{index}.txt")

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ended, range(60)))
    assert found == [2 if index % 3 == 0 else 0 for index in range(60)]


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_a_run_that_is_terminated_saves_and_says_so(tmp_path):
    log, status = tmp_path / "log.txt", []
    given = line(tmp_path, "--time-budget", "60", "--checkpoint-every", "0.01")
    thread = threading.Thread(target=lambda: status.append(run_module(MODULE, given, log)))
    thread.start()
    wait_for(lambda: list(tmp_path.glob("*.checkpoint")))
    (process,) = multiprocessing.active_children()
    os.kill(process.pid, signal.SIGTERM)
    thread.join(100)
    assert status == [128 + signal.SIGTERM], log.read_text()
    (results,) = map(hig.load_results, tmp_path.glob("*.pickle"))
    assert results["stopped"] == "terminated"


def study_of_a_long_run(out):
    """A process that runs one, and nothing else."""
    given = line(out, "--time-budget", "60", "--checkpoint-every", "0.01")
    command = [sys.executable, "-c", CODE, MODULE, str(out / "log.txt"), *given]
    return subprocess.Popen(command)


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_whose_study_has_gone_saves_and_ends(tmp_path, number):
    process = study_of_a_long_run(tmp_path)
    wait_for(lambda: list(tmp_path.glob("*.checkpoint")))
    process.send_signal(number)
    assert process.wait(100) == -number
    wait_for(lambda: list(tmp_path.glob("*.pickle")))
    (results,) = map(hig.load_results, tmp_path.glob("*.pickle"))
    assert results["stopped"] == "terminated" and list(tmp_path.glob("*.checkpoint"))
