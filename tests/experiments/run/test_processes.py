"""Runs that several processes share, and what one process alone makes of the same calls."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import experiments
import hig
from experiments import submit
from experiments._methods import METHODS
from experiments._run import processes
from experiments._run.processes import Processes, ProcessesError, process_group
from experiments._run.runner import run
from problems import NonlinearOscillators
from problems.multitask import Toy
from tests.experiments.runs import TINY, settings

ROOT = Path(experiments.__file__).parents[1]
FOLDER = "experiments.nonlinear_oscillators"
SMALL = [
    "--epochs=2", "--batch-size=7", "--time-steps=8", "--dt=0.5", "--train-size=17",
    "--test-size=6", "--dtype=float64", "--threads=1",
]  # fmt: skip


def of(rank, size):
    """What a process of several has; nothing that it says reaches another."""
    processes = Processes()
    processes.rank, processes.size = rank, size
    return processes


def torchrun(script, *arguments, out, count=2):
    launch = ["torch.distributed.run", f"--nproc-per-node={count}", "--master-addr=127.0.0.1"]
    free = ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "-m", script]
    line = [sys.executable, "-m", *launch, *free, *SMALL, *arguments, f"--out={out}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(line, capture_output=True, text=True, env=environment, timeout=100)


METHOD_ARGUMENTS = {
    "hig": ["--lr=0.1", "--step-rule=trust", "--rcond=1e-3", "--save-weights"],
    "adam": ["--lr=0.01", "--tensorboard", "--quiet", "--summary"],
}


@pytest.mark.parametrize("method", METHOD_ARGUMENTS)
def test_torchrun_gives_the_results_of_one_process(method, tmp_path):
    extra = METHOD_ARGUMENTS[method]
    done = torchrun(f"{FOLDER}.submit_{method}", *extra, out=tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert len(re.findall("stopped: epochs", done.stderr)) == 1
    names = sorted(path.suffix for path in (tmp_path / "two").iterdir() if path.is_file())
    saved = "--save-weights" in extra
    assert names == ([".pickle", ".txt", ".txt", ".weights"] if saved else [".pickle", ".txt"])
    (path,) = (tmp_path / "two").glob("*.pickle")
    events = list((tmp_path / "two" / "tensorboard" / path.stem).glob("events*"))
    assert len(events) == ("--tensorboard" in extra)
    line = [*SMALL, *extra, "--quiet", f"--out={tmp_path / 'one'}"]
    two, one = hig.load_results(path), submit(NonlinearOscillators(), method, line)
    assert two["machine"]["processes"] == 2 and one["machine"]["processes"] == 1
    assert two["label"] == one["label"]
    for key in ("epochs", "train_loss", "test_loss"):
        np.testing.assert_allclose(two[key], one[key], rtol=1e-9)
    assert one["train_loss"][-1] < one["train_loss"][0]
    if method == "hig":
        np.testing.assert_allclose(two["step_size"], one["step_size"], rtol=1e-7)


def test_a_run_that_ends_early_is_saved_before_the_others_are_ended(tmp_path):
    done = torchrun(f"{FOLDER}.submit_hig", "--lr=1e12", out=tmp_path)
    assert done.returncode == 1
    assert "error: non-finite" in done.stderr
    (path,) = tmp_path.glob("*.pickle")
    assert hig.load_results(path)["stopped"].startswith("non-finite")


def test_the_samples_of_a_batch_are_dealt_out_in_order():
    batch = {"x": torch.arange(7), "y": torch.arange(14).view(7, 2)}
    shares = [of(rank, 3).share(batch) for rank in range(3)]
    assert [len(share["x"]) for share in shares] == [3, 2, 2]
    for key, value in batch.items():
        assert torch.equal(torch.cat([share[key] for share in shares]), value)
    assert Processes().share(batch) is batch


def test_weights_make_the_loss_of_the_batch():
    batch = {"x": torch.zeros(8)}
    share = of(1, 3).share(batch)
    assert of(1, 3).weight(TINY, share, batch) == 3 / 8
    summed = type("Summed", (type(TINY),), {"loss_reduction": "sum"})()
    assert of(1, 3).weight(summed, share, batch) == 1


def test_too_few_samples():
    with pytest.raises(ProcessesError, match="2 samples for 3 processes; take fewer"):
        of(0, 3).share({"x": torch.zeros(2)})


def test_a_last_batch_with_too_few_samples_is_refused_at_the_start(options, monkeypatch):
    monkeypatch.setattr("experiments._run.runner.Processes", lambda: of(0, 2))
    with pytest.raises(ProcessesError, match="1 samples for 2 processes"):
        run(replace(TINY, train_size=17), "hig", settings("hig", batch_size=8), options)
    assert not list(options.out.glob("*.pickle"))


@pytest.mark.parametrize("method", ["hig", "mconfig"])
def test_several_losses_are_not_shared(method):
    with pytest.raises(ProcessesError, match=r"several losses are no mean .* without torchrun"):
        of(1, 2).check(Toy(), METHODS[method])
    Processes().check(Toy(), METHODS[method])


def test_factored_steps_are_not_shared():
    with pytest.raises(ProcessesError, match=r"runs in one process, got 2; .* or take hig"):
        of(1, 2).check(TINY, METHODS["khig"])
    of(1, 2).check(TINY, METHODS["hig"])


def test_without_torchrun_there_is_no_group():
    with process_group("cpu"):
        assert not torch.distributed.is_initialized()
    assert Processes().first(0.5, 2, "cpu") == (0.5, 2)


def test_more_processes_than_devices(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(processes.dist, "is_torchelastic_launched", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ProcessesError, match="there are 2; start it with --nproc-per-node 2"):
        process_group("cuda").__enter__()
