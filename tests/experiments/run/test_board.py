"""Event files of runs, read back with TensorBoard's own reader."""

import itertools
import sys
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from experiments import run, submit
from experiments._run import board, setup
from experiments._run.board import Board, BoardError, folder_of
from hig import MultiStepReport, StepReport
from problems import NonlinearOscillators
from tests.experiments.clocks import SteppingClock
from tests.experiments.run.test_training import interrupted_after
from tests.experiments.runs import TINY, Fresh, settings

TEXT = "run/text_summary"


@pytest.fixture
def shown(options):
    return replace(options, tensorboard=True)


def events(folder):
    """Of a run: its scalars by name, as pairs of steps and values, and its text."""
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = found.Tags()
    scalars = {name: [(e.step, e.value) for e in found.Scalars(name)] for name in tags["scalars"]}
    text = "".join(
        value.decode() for e in found.Tensors(TEXT) for value in e.tensor_proto.string_val
    ) if TEXT in tags["tensors"] else ""  # fmt: skip
    return scalars, text


def of_run(out):
    (result,) = out.glob("*.pickle")
    return events(folder_of(result))


def paired(steps, values):
    return [(step, float(np.float32(value))) for step, value in zip(steps, values, strict=True)]


def test_evaluations_are_those_of_the_result_file(shown):
    results = run(TINY, "adam", settings("adam"), shown)
    scalars, _ = of_run(shown.out)
    steps = [0, 2, 4, 6]
    assert scalars == {
        "loss/train": paired(steps, results["train_loss"]),
        "loss/test": paired(steps, results["test_loss"]),
        "progress/epoch": paired(steps, results["epochs"]),
        "progress/training_seconds": paired(steps, results["time"]),
    }


def test_steps_of_a_jacobian_method(shown, monkeypatch):
    monkeypatch.setattr(board, "INTERVAL", 0.0)
    results = run(TINY, "hig", settings("hig", step_rule="trust"), shown)
    scalars, _ = of_run(shown.out)
    steps = range(1, 7)
    assert scalars["step/rank"] == paired(steps, results["rank"])
    assert scalars["step/step_size"] == paired(steps, results["step_size"])
    spectrum = results["spectrum"]
    cut_off = spectrum["rcond"] * spectrum["singular_values"][0].max()
    assert scalars["step/cut_off"][0] == (1, pytest.approx(cut_off, rel=1e-6))
    assert scalars["step/loss"][0][1] == pytest.approx(results["train_loss"][0], rel=0.5)


def test_metrics_by_number_and_not_those_of_whole_fields(shown, monkeypatch):
    def metrics(self, network, batch):
        return {"pair": torch.tensor([1.0, 2.0]), "one": torch.ones(()), "field": torch.ones(9, 9)}

    monkeypatch.setattr(Fresh, "metrics", metrics)
    run(Fresh(), "sgd", Fresh.settings["sgd"], shown)
    scalars, _ = of_run(shown.out)
    tests = {name: pairs[0] for name, pairs in scalars.items() if name.startswith("test/")}
    assert tests == {"test/pair/0": (0, 1.0), "test/pair/1": (0, 2.0), "test/one": (0, 1.0)}


def test_settings_are_a_text(shown):
    results = run(TINY, "hig", settings("hig", rcond=1e-4), shown)
    _, text = of_run(shown.out)
    for group, name in [("sim_par", "rcond"), ("machine", "torch"), ("origin", "command")]:
        assert f"| {group} | {name} | `{results[group][name]}` |" in text


def test_a_run_overwrites_the_events_of_the_one_before_and_nothing_else(shown):
    for seed in (0, 1, 0):
        run(TINY, "adam", settings("adam"), replace(shown, seed=seed))
        for folder in (shown.out / "tensorboard").iterdir():
            (folder / "notes").touch()
    folders = sorted((shown.out / "tensorboard").iterdir())
    assert [folder.name[-5:] for folder in folders] == ["seed0", "seed1"]
    for folder in folders:
        assert len(list(folder.glob("events*"))) == 1 and (folder / "notes").exists()
        assert len(events(folder)[0]["loss/test"]) == 4


class Numbers:
    """Of as many digits each: files are read in the order of their names, also within a second."""

    def __init__(self):
        self.get = itertools.count(1000).__next__


@pytest.fixture
def in_order(monkeypatch):
    monkeypatch.setattr(event_file_writer, "_global_uid", Numbers())


@pytest.mark.usefixtures("in_order")
def test_a_resumed_run_appends_its_events(shown, monkeypatch):
    with monkeypatch.context() as patch:
        interrupted_after(3, patch)
        run(TINY, "adam", settings("adam"), shown)
    assert [step for step, _ in of_run(shown.out)[0]["loss/test"]] == [0, 2]
    results = run(TINY, "adam", settings("adam"), replace(shown, resume=True))
    assert of_run(shown.out)[0]["loss/test"] == paired([0, 2, 4, 6], results["test_loss"])


def report(rank=2, **changes):
    values = torch.tensor([4.0, 2.0, 1.0])
    return StepReport(
        torch.tensor(0.5), "rows", "rows", 3, 9, lambda: values, (0.3, 0.1)[rank - 2], **changes
    )


def test_steps_are_written_at_a_bounded_rate(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(board, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with closing(Board(tmp_path, 0, pytest.fail)) as found:
        for step in range(1, 101):
            found.stepped(step, report())
            now[0] += 0.125
    steps = [step for step, _ in events(tmp_path)[0]["step/rank"]]
    assert steps == list(range(1, 101, 8))


def test_what_a_step_has_and_the_jacobians_of_several_losses(tmp_path):
    one = report(damping=0.25, step_size=0.5, gain_ratio=0.75)
    several = MultiStepReport(
        torch.ones(2), [report(2), report(3)], torch.ones(2), torch.ones(2), step_size=0.125
    )
    for name, given in {"one": one, "several": several}.items():
        with closing(Board(tmp_path / name, 0, pytest.fail)) as found:
            found.stepped(1, given)
    values = [{tag: pairs[0][1] for tag, pairs in events(tmp_path / n)[0].items()} for n in (
        "one", "several")]  # fmt: skip
    cut_offs = [float(np.float32(4 * rcond)) for rcond in (0.3, 0.1)]
    assert values[0] == {
        "step/loss": 0.5, "step/rank": 2.0, "step/cut_off": cut_offs[0], "step/damping": 0.25,
        "step/step_size": 0.5, "step/gain_ratio": 0.75,
    }  # fmt: skip
    assert values[1] == {
        "step/loss": 2.0, "step/rank/0": 2.0, "step/rank/1": 3.0, "step/step_size": 0.125,
        "step/cut_off/0": cut_offs[0], "step/cut_off/1": cut_offs[1],
    }  # fmt: skip


def test_a_step_without_a_cut_off_computes_no_singular_values(tmp_path):
    damped = StepReport(torch.tensor(0.5), "rows", "rows", 3, 9, pytest.fail, 0.0, damping=0.25)
    with closing(Board(tmp_path, 0, pytest.fail)) as found:
        found.stepped(1, damped)
    assert events(tmp_path)[0].keys() == {"step/loss", "step/rank", "step/damping"}


def test_writing_takes_no_training_time(shown, monkeypatch):
    running, written = [], []

    class Watched(SteppingClock):
        def __enter__(self):
            running.append(None)

        def __exit__(self, *error):
            running.pop()
            super().__exit__(*error)

    def write(self, write, original=Board._write):
        assert not running
        written.append(None)
        original(self, write)

    monkeypatch.setattr(setup, "TrainingClock", Watched)
    monkeypatch.setattr(Board, "_write", write)
    run(TINY, "hig", settings("hig"), shown)
    assert len(written) > 5


def test_a_full_disk_costs_the_events_and_not_the_run(shown, monkeypatch, capsys):
    writer, flushed = board.writer_class(), []

    def flush(self):
        flushed.append(None)
        if len(flushed) > 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "flush", flush)
    results = run(TINY, "adam", settings("adam"), shown)
    assert results["stopped"] == "epochs" and len(flushed) == 3
    error = capsys.readouterr().err
    assert error.count("nothing more for TensorBoard, ") == 1 and "No space left" in error


def test_a_file_in_the_place_of_the_folder(shown):
    (shown.out / "tensorboard").write_text("not a folder")
    with pytest.raises(BoardError, match=r"cannot be written to: .*; give another --out, or"):
        run(TINY, "adam", settings("adam"), shown)


@pytest.fixture
def without_tensorboard(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)


def test_without_the_package_the_error_names_it_before_data_are_made(
    tmp_path, without_tensorboard, monkeypatch
):
    monkeypatch.setattr(NonlinearOscillators, "data", pytest.fail)
    with pytest.raises(SystemExit) as stop:
        submit(NonlinearOscillators(), "adam", ["--tensorboard", f"--out={tmp_path}"])
    assert stop.value.code.startswith("error: --tensorboard needs the package tensorboard, ")
    assert "pip install 'hig[tensorboard]', or leave out" in stop.value.code


def test_runs_that_do_not_ask_for_it_need_no_package(options, without_tensorboard):
    run(TINY, "adam", settings("adam"), options)
    assert not (options.out / "tensorboard").exists()
