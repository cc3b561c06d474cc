"""Runs that several processes share, and what one process alone makes of the same calls."""

import errno
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
from experiments import Options, submit
from experiments._methods import METHODS
from experiments._run import checkpoint, processes
from experiments._run.checkpoint import CheckpointError
from experiments._run.processes import Processes, ProcessesError, process_group
from experiments._run.runner import run
from problems import NonlinearOscillators
from problems.multitask import Toy
from tests.experiments.run.test_training import (
    Shaken,
    assert_same,
    assert_same_runs,
    interrupted_after,
    whole_and_in_parts,
)
from tests.experiments.runs import TINY, settings
from tests.hig.processes import run as on_processes

ROOT = Path(experiments.__file__).parents[1]
FOLDER = "experiments.nonlinear_oscillators"
SMALL = [
    "--epochs=2", "--batch-size=7", "--time-steps=8", "--dt=0.5", "--train-size=17",
    "--test-size=6", "--dtype=float64", "--threads=1",
]  # fmt: skip


def of(rank, size):
    """One of several processes, without communication."""
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
    "hig": ["--lr=0.1", "--step-rule=trust", "--rcond=1e-3", "--save-weights", "--tensorboard"],
    "adam": ["--lr=0.01"],
    "khig": ["--lr=0.01"],
}


def assert_results_of_one_process(two, method, folder):
    line = [*SMALL, *METHOD_ARGUMENTS[method], "--quiet", f"--out={folder}"]
    one = submit(NonlinearOscillators(), method, line)
    assert two["machine"]["processes"] == 2 and one["machine"]["processes"] == 1
    assert two["label"] == one["label"]
    for key in ("epochs", "train_loss", "test_loss"):
        np.testing.assert_allclose(two[key], one[key], rtol=1e-9)
    assert one["train_loss"][-1] < one["train_loss"][0]
    if method == "hig":
        np.testing.assert_allclose(two["step_size"], one["step_size"], rtol=1e-7)


def test_torchrun_gives_the_results_of_one_process(tmp_path):
    extra = [*METHOD_ARGUMENTS["hig"], "--quiet", "--summary"]
    done = torchrun(f"{FOLDER}.submit_hig", *extra, out=tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert len(re.findall("stopped: epochs", done.stderr)) == 1
    names = sorted(path.suffix for path in (tmp_path / "two").iterdir() if path.is_file())
    assert names == [".pickle", ".txt", ".txt", ".weights"]
    (path,) = (tmp_path / "two").glob("*.pickle")
    assert len(list((tmp_path / "two" / "tensorboard" / path.stem).glob("events*"))) == 1
    assert_results_of_one_process(hig.load_results(path), "hig", tmp_path / "one")


def run_of_several(rank, folder, methods):
    lines = {
        method: [*SMALL, *METHOD_ARGUMENTS[method], "--quiet", f"--out={folder}"]
        for method in methods
    }
    return [submit(NonlinearOscillators(), method, line) for method, line in lines.items()]


def test_a_shared_batch_gives_the_step_of_one_process(tmp_path):
    methods = ["adam", "khig"]
    first, _ = on_processes(run_of_several, 2, tmp_path, tmp_path / "two", methods)
    for method, results in zip(methods, first, strict=True):
        assert_results_of_one_process(results, method, tmp_path / "one")


SHAKEN = Shaken(time_steps=8, dt=0.5, train_size=16, test_size=6)


def whole_and_resumed(rank, folder, method):
    """A run of this process and the other ones, and one that stops after five steps and resumes.

    Its shares of 4 and 3 samples draw different random numbers. A third run is left stopped.
    """
    chosen = settings(method, batch_size=7)
    options = Options(out=folder, epochs=4, save_weights=True, quiet=True)
    with pytest.MonkeyPatch.context() as patch:
        whole, resumed = whole_and_in_parts(SHAKEN, method, chosen, options, patch)
        interrupted_after(2, patch)
        run(SHAKEN, method, chosen, replace(options, out=folder / "left"))
    if rank == 0:
        assert_same_runs(whole, resumed, folder)
    else:
        assert_same(whole, resumed)
    return resumed


@pytest.mark.parametrize("method", ["adam", "hig"])
def test_processes_resume_from_one_checkpoint(method, tmp_path):
    first, second = on_processes(whole_and_resumed, 2, tmp_path, tmp_path, method)
    for key in ("train_loss", "test_loss", "resumed_at"):  # seconds of the first one's clock
        assert first[key].tolist() == second[key].tolist()
    options = Options(out=tmp_path / "left", epochs=4, save_weights=True, quiet=True, resume=True)
    with pytest.raises(CheckpointError, match="processes is 1, there 2; resume with the command"):
        run(SHAKEN, method, settings(method, batch_size=7), options)


def unwritten_and_unread(rank, folder):
    """A run whose first process cannot write; and what is read where the first one has a file."""
    options = Options(out=folder / str(rank), epochs=2, quiet=True, checkpoint_every=1e-9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "SHARE", 1e9)
        patch.setattr(checkpoint, "save", no_space if rank == 0 else wrong_process)
        results = run(TINY, "adam", settings("adam"), options)
    alone = folder / f"{rank}.checkpoint"
    if rank == 0:
        checkpoint.save(alone, {}, {"steps": 3})
    return results["stopped"], checkpoint.load(alone, {})


def no_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def wrong_process(*_):
    raise AssertionError("another process than the first one writes")


def test_a_first_process_that_cannot_write_and_others_that_have_no_file(tmp_path):
    found = on_processes(unwritten_and_unread, 2, tmp_path, tmp_path)
    assert found == [("epochs", {"steps": 3})] * 2
    assert [path.suffix for path in (tmp_path / "0").iterdir()].count(".pickle") == 1


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
    with pytest.raises(ProcessesError, match=r"several losses are not a mean .* without torchrun"):
        of(1, 2).check(Toy(), METHODS[method])
    Processes().check(Toy(), METHODS[method])


def test_without_torchrun_there_is_no_group():
    with process_group("cpu"):
        assert not torch.distributed.is_initialized()
    assert Processes().first(0.5, 2, True) == (0.5, 2, True)
    assert Processes().hand_out(b"a") == b"a" and Processes().hand_out(None) is None
    assert Processes().each(torch.ones(2)).tolist() == [[1, 1]]


def test_more_processes_than_devices(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(processes.dist, "is_torchelastic_launched", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ProcessesError, match="there are 2; start it with --nproc-per-node 2"):
        process_group("cuda").__enter__()
