"""Files of runs that are cut short, and resuming from them."""

import errno
import signal
from dataclasses import replace

import pytest

from experiments import run, submit
from experiments._run import checkpoint, loop
from experiments._run.checkpoint import CheckpointError
from experiments._run.places import ResultsError
from hig.files import _atomic_write as _atomic
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
    assert f"{checkpoint}: --resume continues from it" in capsys.readouterr().err
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


def test_a_run_without_a_checkpoint_starts_from_the_beginning(loud, capsys):
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
    with pytest.raises(
        CheckpointError, match=r"epochs is 4, there 3; resume with the command line"
    ):
        run(TINY, "adam", ADAM, replace(loud, resume=True, epochs=4))
    assert path.read_bytes() == before


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"epochs": 1},
            r"of another run: epochs is 1, there 3; resume .* and --resume, or to start",
        ),
        ({}, r"of a run of this command line that was cut short; resume it with --resume, or"),
    ],
)
def test_a_new_run_does_not_start_over_a_checkpoint(changes, match, options, monkeypatch):
    path = interrupted(options, monkeypatch)
    before = contents(options.out)
    with pytest.raises(CheckpointError, match=match + ".* remove it, or give another --out"):
        run(TINY, "adam", ADAM, replace(options, **changes))
    assert contents(options.out) == before
    path.unlink()
    assert run(TINY, "adam", ADAM, replace(options, **changes))["stopped"] == "epochs"


def untrained(*_):
    raise AssertionError("a run that is over was repeated")


def test_a_finished_run_is_not_repeated(loud, monkeypatch, capsys):
    results = run(TINY, "adam", ADAM, loud)
    before = contents(loud.out)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "take_step", untrained)
        again = run(TINY, "adam", ADAM, replace(loud, resume=True, threads=1))
        again = run(TINY, "adam", ADAM, replace(loud, resume=True, quiet=True))
    assert_same(results, again)
    assert contents(loud.out) == before
    (printed,) = capsys.readouterr().err.splitlines()
    result = one(loud.out, "*.pickle")
    assert printed == f"{result} is of this command line and finished: nothing to do"


def test_finished_runs_of_other_settings_are_repeated(options, monkeypatch):
    run(TINY, "adam", ADAM, options)
    for changes in ({"epochs": 2}, {"epochs": 2, "save_weights": True}, {"evaluate_every": 1.0}):
        options = replace(options, resume=True, **changes)
        assert run(TINY, "adam", ADAM, options)["sim_par"]["epochs"] == options.epochs
        with monkeypatch.context() as patch:
            patch.setattr(loop, "take_step", untrained)
            run(TINY, "adam", ADAM, options)
    one(options.out, "*.weights").unlink()
    run(TINY, "adam", ADAM, options)
    one(options.out, "*.weights")
    one(options.out, "*.pickle").write_bytes(b"garbage")
    assert run(TINY, "adam", ADAM, options)["stopped"] == "epochs"


@pytest.mark.parametrize("ending", [".pickle", ".txt", ".checkpoint", "_network.weights"])
@pytest.mark.parametrize("resume", [False, True])
def test_what_is_in_the_way_is_found_at_the_start(ending, resume, options, monkeypatch):
    run(TINY, "adam", ADAM, options)
    result = one(options.out, "*.pickle")
    for file in options.out.iterdir():
        file.unlink()
    folder = result.with_name(result.stem + ending)
    folder.mkdir()
    monkeypatch.setattr(loop, "take_step", untrained)
    options = replace(options, save_weights=True, resume=resume)
    with pytest.raises(ResultsError, match=f"{folder.name} is a folder; give another --out"):
        run(TINY, "adam", ADAM, options)
    assert list(options.out.iterdir()) == [folder]


@pytest.mark.parametrize("data", [b"", b"hig checkpoint 2\nabc"])
def test_damaged_checkpoints_are_an_error_message(data, tmp_path, monkeypatch):
    interrupted_after(2, monkeypatch)
    line = [*LINE, f"--out={tmp_path}", "--quiet"]
    with pytest.raises(SystemExit):
        submit(NonlinearOscillators(), "adam", line)
    one(tmp_path, "*.checkpoint").write_bytes(data)
    with pytest.raises(SystemExit, match=r"error: .*\.checkpoint .*start again remove it"):
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


def test_a_diverging_run_keeps_what_was_before_the_fault(failing, options, monkeypatch, capsys):
    monkeypatch.setattr(checkpoint, "SHARE", 1e9)
    options = replace(options, checkpoint_every=1e-9, summary=True)
    results = run(failing, "adam", ADAM, options)
    assert results["stopped"].startswith("non-finite")
    kept = one(options.out, "*.before_fault")
    assert not list(options.out.glob("*.checkpoint"))
    assert f"left   {kept}: --resume continues from it" in capsys.readouterr().err
    again = run(failing, "adam", ADAM, replace(options, resume=True))  # meets it again
    assert again["stopped"] == results["stopped"] and kept.exists()
    Failing.calls.clear()
    surviving = replace(options, resume=True, on_fault="skip", max_faults=100)
    surviving_run = run(failing, "adam", ADAM, surviving)
    assert surviving_run["stopped"] == "epochs" and len(surviving_run["resumed_at"]) == 1
    assert not kept.exists()


@pytest.mark.parametrize("weights", [False, True])
def test_results_that_cannot_be_written_leave_everything_as_it_was(weights, options, monkeypatch):
    options = replace(options, save_weights=weights)
    monkeypatch.setattr(checkpoint, "SHARE", 1e9)
    path = interrupted(options, monkeypatch)
    before = {file.name: file.read_bytes() for file in options.out.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(_atomic.os, "fsync", full)
        with pytest.raises(
            ResultsError,
            match=r"No space left on device.*\.checkpoint: make room and continue with",
        ):
            run(TINY, "adam", ADAM, replace(options, resume=True))
    assert {file.name: file.read_bytes() for file in options.out.iterdir()} == before
    resumed = run(TINY, "adam", ADAM, replace(options, resume=True))
    assert_same(run(TINY, "adam", ADAM, options), resumed)
    assert not path.exists()


def test_results_that_cannot_be_written_and_no_checkpoint(options, monkeypatch):
    monkeypatch.setattr(_atomic.os, "fsync", full)
    with pytest.raises(ResultsError, match="there is no checkpoint: make room and run it again"):
        run(TINY, "adam", ADAM, options)
