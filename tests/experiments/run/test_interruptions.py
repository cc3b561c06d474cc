"""What a run that is cut short leaves behind, and what the next one makes of it."""

import errno
import signal
from dataclasses import replace

import pytest

from experiments import run, submit
from experiments._run import checkpoint
from experiments._run.checkpoint import CheckpointError
from experiments._run.runner import ResultsError
from hig.files import _atomic
from problems import NonlinearOscillators
from tests.experiments.run.test_training import assert_same, interrupted_after
from tests.experiments.runs import TINY, Failing, settings

ADAM = settings("adam")


@pytest.fixture
def loud(options):
    return replace(options, quiet=False)


def one(folder, pattern):
    (path,) = folder.glob(pattern)
    return path


def full(_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("number", "stopped"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")]
)
def test_signals_end_a_run_after_the_step(number, stopped, loud, saved, monkeypatch, capsys):
    before = signal.getsignal(number)
    interrupted_after(4, monkeypatch, number)
    results = run(TINY, "adam", ADAM, loud)
    assert results["stopped"] == saved()["stopped"] == stopped
    assert results["epochs"].tolist() == [0, 1, 2]
    checkpoint = one(loud.out, "*.checkpoint")
    assert f"{checkpoint}: --resume goes on from it" in capsys.readouterr().err
    assert signal.getsignal(number) == before


LINE = [
    "--batch-size=8", "--time-steps=8", "--dt=0.5", "--train-size=16", "--test-size=6", "--epochs=3"
]  # fmt: skip


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_exit_status(number, status, tmp_path, monkeypatch):
    interrupted_after(2, monkeypatch, number)
    with pytest.raises(SystemExit) as stop:
        submit(NonlinearOscillators(), "adam", [*LINE, f"--out={tmp_path}", "--quiet"])
    assert stop.value.code == status
    results = submit(NonlinearOscillators(), "adam", [*LINE, f"--out={tmp_path}", "--resume"])
    assert results["stopped"] == "epochs" and len(results["resumed_at"]) == 1


def test_a_run_without_a_checkpoint_starts_afresh_and_says_so(loud, capsys):
    results = run(TINY, "adam", ADAM, replace(loud, resume=True))
    assert "there is no checkpoint" in capsys.readouterr().err
    assert_same(results, run(TINY, "adam", ADAM, loud))


def interrupted(options, monkeypatch):
    with monkeypatch.context() as patch:
        interrupted_after(3, patch)
        run(TINY, "adam", ADAM, options)
    return one(options.out, "*.checkpoint")


def test_other_settings_are_refused(loud, monkeypatch, capsys):
    path = interrupted(loud, monkeypatch)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"epochs is 4, there 3; go on with the command line"):
        run(TINY, "adam", ADAM, replace(loud, resume=True, epochs=4))
    assert path.read_bytes() == before


def test_a_new_run_tells_that_it_will_overwrite(loud, monkeypatch, capsys):
    path = interrupted(loud, monkeypatch)
    capsys.readouterr()
    run(TINY, "adam", ADAM, loud)
    assert f"{path} of an interrupted run will be overwritten" in capsys.readouterr().err
    assert not path.exists()


@pytest.mark.parametrize("data", [b"", b"hig checkpoint 2\nabc"])
def test_damaged_checkpoints_are_an_error_message(data, tmp_path, monkeypatch):
    interrupted_after(2, monkeypatch)
    line = [*LINE, f"--out={tmp_path}", "--quiet"]
    with pytest.raises(SystemExit):
        submit(NonlinearOscillators(), "adam", line)
    one(tmp_path, "*.checkpoint").write_bytes(data)
    with pytest.raises(SystemExit, match=r"error: .*\.checkpoint .*start afresh remove it"):
        submit(NonlinearOscillators(), "adam", [*line, "--resume"])


def test_after_an_error_the_checkpoint_stays(failing, options, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHARE", 1e9)
    monkeypatch.setattr(Failing, "error", RuntimeError("out of memory"))
    options = replace(options, checkpoint_every=1e-9)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(failing, "adam", ADAM, options)
    Failing.calls.clear()
    monkeypatch.setattr(Failing, "error", None)
    monkeypatch.setattr(Failing, "predict", NonlinearOscillators.predict)
    resumed = run(failing, "adam", ADAM, replace(options, resume=True))
    assert_same(run(failing, "adam", ADAM, options), resumed)


def test_a_diverging_run_would_diverge_again(failing, options, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHARE", 1e9)
    results = run(failing, "adam", ADAM, replace(options, checkpoint_every=1e-9))
    assert results["stopped"].startswith("non-finite")
    assert not list(options.out.glob("*.checkpoint"))


def test_checkpoints_that_cannot_be_written_do_not_end_the_run(options, monkeypatch, capsys):
    monkeypatch.setattr(checkpoint, "SHARE", 1e9)
    monkeypatch.setattr(checkpoint.hig.files, "write_atomically", lambda *_: full(_))
    results = run(TINY, "adam", ADAM, replace(options, checkpoint_every=1e-9))
    assert results["stopped"] == "epochs"
    assert "no checkpoint, " in (text := capsys.readouterr().err)
    assert "No space left on device; there is none yet" in text


@pytest.mark.parametrize("weights", [False, True])
def test_results_that_cannot_be_written_leave_everything_as_it_was(weights, options, monkeypatch):
    options = replace(options, save_weights=weights)
    monkeypatch.setattr(checkpoint, "SHARE", 1e9)
    path = interrupted(options, monkeypatch)
    before = {file.name: file.read_bytes() for file in options.out.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(_atomic.os, "fsync", full)
        with pytest.raises(
            ResultsError, match=r"No space left on device.*make room and go on with"
        ):
            run(TINY, "adam", ADAM, replace(options, resume=True))
    assert {file.name: file.read_bytes() for file in options.out.iterdir()} == before
    resumed = run(TINY, "adam", ADAM, replace(options, resume=True))
    assert_same(run(TINY, "adam", ADAM, options), resumed)
    assert not path.exists()
