from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiments._run.recorder import JacobianRecorder, Recorder


def report(rows=4, rank=3, notes=(), scale=1.0):
    values = scale * torch.arange(rows, 0, -1, dtype=torch.float64)
    return SimpleNamespace(
        rows=rows,
        columns=9,
        rank=rank,
        step_size=0.5,
        rcond=1e-6,
        singular_values=values,
        notes=list(notes),
    )


def test_published_keys():
    recorder = Recorder()
    for epoch, seconds in [(0.0, 0.0), (1.0, 2.0), (1.5, 3.5)]:
        recorder.evaluation(epoch, seconds, 1.0 / (1 + epoch), test_loss=2.0, metrics={})
    results = recorder.results()
    assert results["epochs"].tolist() == [0, 1, 1.5]
    assert results["time"].tolist() == [0, 2, 3.5]
    assert results["epoch_time"].tolist() == [2, 1.5]
    assert results["simulation_time"] == 3.5
    assert results["train_loss"].tolist() == [1, 0.5, 0.4]
    assert all(results[key].dtype == np.float64 for key in ("epochs", "time", "test_loss"))


def test_metrics_are_stacked_over_the_evaluations():
    recorder = Recorder()
    for value in (1.0, 2.0, 4.0):
        metrics = {"distance": np.array(value), "spread": np.array([value, -value])}
        recorder.evaluation(value, value, 0.0, 0.0, metrics)
    results = recorder.results()
    assert results["test_distance"].tolist() == [1, 2, 4]
    assert results["test_spread"].tolist() == [[1, -1], [2, -2], [4, -4]]


def test_no_metric_takes_the_place_of_the_loss():
    with pytest.raises(ValueError, match=r"a metric is named 'loss', .* rename it"):
        Recorder().evaluation(0.0, 0.0, 0.0, 0.0, {"loss": np.array(1.0)})


def test_steps_and_spectra():
    recorder = JacobianRecorder()
    for step in range(70):
        short = step % 10 == 9  # the last batch of every epoch is shorter
        recorder.step(step / 10, step + 1.0, report(rows=2 if short else 4, scale=1 + step))
    results = recorder.results()
    assert results["step_time"].tolist() == list(range(1, 71))
    assert results["rank"].dtype == np.int64
    assert (results["rows"], results["columns"]) == (4, 9)
    # After 1, 4, 16 and 64 steps and at the last whole batch, in passes before the step.
    assert results["spectrum"]["epochs"].tolist() == [0.0, 0.3, 1.5, 6.3, 6.8]
    assert results["spectrum"]["singular_values"].shape == (5, 4)
    assert results["spectrum"]["singular_values"][1].tolist() == [16, 12, 8, 4]
    assert results["spectrum"]["rcond"] == 1e-6


def test_a_short_batch_does_not_cost_a_spectrum():
    recorder = JacobianRecorder()
    for step, rows in enumerate([4, 4, 4, 2, 4, 4]):
        recorder.step(step / 4, step + 1.0, report(rows))
    assert recorder.results()["spectrum"]["epochs"].tolist() == [0.0, 1.0, 1.25]


def test_a_single_step_gives_one_spectrum():
    recorder = JacobianRecorder()
    recorder.step(0.0, 1.0, report())
    assert recorder.results()["spectrum"]["singular_values"].shape == (1, 4)


def test_notes_once_each_in_order():
    recorder = JacobianRecorder()
    for notes in (["b"], ["a", "b"], ["a"]):
        recorder.step(0.0, 1.0, report(notes=notes))
    assert recorder.results()["notes"] == ["b", "a"]


def test_several_losses_of_one_jacobian():
    whole = report(notes=["a"])
    whole.step_size = None
    recorder = JacobianRecorder()
    recorder.step(0.0, 1.0, SimpleNamespace(parts=[whole], step_size=0.25))
    results = recorder.results()
    assert results["step_size"].tolist() == [0.25]
    assert (results["rank"].tolist(), results["rows"], results["notes"]) == ([3], 4, ["a"])


def test_several_jacobians_have_no_one_rank():
    recorder = JacobianRecorder()
    recorder.step(0.0, 1.0, SimpleNamespace(parts=[report(), report()], step_size=0.25))
    assert recorder.results() == {}


def test_nothing_recorded():
    assert JacobianRecorder().results() == {}


def test_a_rank_that_cannot_be_found_leaves_no_half_of_a_step():
    class Undecided:
        step_size = 0.5

        @property
        def rank(self):
            raise ArithmeticError("no convergence")

    recorder = JacobianRecorder()
    recorder.step(0.0, 1.0, report())
    with pytest.raises(ArithmeticError):
        recorder.step(0.5, 2.0, Undecided())
    results = recorder.results()
    assert len(results["step_time"]) == len(results["rank"]) == len(results["step_size"]) == 1
