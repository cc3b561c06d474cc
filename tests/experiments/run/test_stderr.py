"""What is told on stderr never ends a run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import experiments
import hig
from experiments._run.stderr import Unfailing, unfailing_stderr

ROOT = Path(experiments.__file__).parents[1]
LINE = [
    "--train-size=64", "--test-size=8", "--batch-size=64", "--epochs=2", "--threads=1",
    "--checkpoint-every=1e-9",
]  # fmt: skip


def closed_pipe():
    read, write = os.pipe()
    os.dup2(write, 2)
    os.close(read)
    os.close(write)


def full_disk():
    os.dup2(os.open("/dev/full", os.O_WRONLY), 2)


def nothing():
    os.close(2)


@pytest.mark.parametrize("prepared", [closed_pipe, full_disk, nothing])
def test_a_run_ends_as_it_would(prepared, tmp_path):
    if prepared is full_disk and not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    command = [sys.executable, "-m", "experiments.conditioning_toy.submit_hig", *LINE]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, f"--out={tmp_path}"],
        env=environment, preexec_fn=prepared, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    (result,) = tmp_path.glob("*.pickle")
    assert hig.load_results(result)["stopped"] == "epochs"
    assert {path.suffix for path in tmp_path.iterdir()} == {".pickle", ".txt"}


class Broken:
    encoding = "utf-8"
    closed = False

    def write(self, text):
        raise BrokenPipeError("nobody reads")

    flush = isatty = lambda self: self.write("")


def test_a_broken_stream_stays_replaced(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Broken())
    with unfailing_stderr():
        print("lost", file=sys.stderr)
        assert not sys.stderr.isatty() and sys.stderr.encoding == "utf-8"
    assert sys.stderr.failed
    sys.stderr.flush()


@pytest.mark.parametrize("stream", [None, "whole"])
def test_others_are_put_back_or_replaced_by_nothing(stream, monkeypatch, capsys):
    before = sys.stderr if stream else None
    monkeypatch.setattr(sys, "stderr", before)
    with unfailing_stderr():
        print("told", file=sys.stderr)
    if stream is None:
        assert isinstance(sys.stderr, Unfailing)
        sys.stderr.close()
    else:
        assert sys.stderr is before
    assert capsys.readouterr().err == ("told\n" if stream else "")
