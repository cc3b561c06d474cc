"""Numerical faults in a run: steps that are left out, and the events that are noted."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

import hig
from experiments import run
from experiments._methods import METHODS
from experiments._run import checkpoint, loop
from experiments._run.checkpoint import CheckpointError
from experiments._run.faults import Faults, kind_of
from experiments._run.options import Options
from experiments._run.processes import Processes, ProcessesError
from experiments._run.progress import Progress
from experiments._run.setup import DATA_STREAM, generator, prepare
from problems import Settings
from problems._several_losses import SeveralLosses
from tests.experiments.run.test_training import assert_same, whole_and_in_parts
from tests.experiments.runs import TINY, settings
from tests.faults import OUTPUTS, OutOfMemoryAt, count, no_convergence, places, same


@dataclass(frozen=True)
class Two(SeveralLosses):
    """Two losses of one small network, for every method; a sample of the data may be NaN."""

    bad_sample: int = -1
    time_budget: float = 1.0

    name: ClassVar[str] = "two"
    settings: ClassVar[Mapping[str, Settings]] = {
        name: Settings(batch_size=4, lr=0.3 if method.jacobian else 0.01)
        for name, method in METHODS.items()
    }
    factor: ClassVar[float] = 1.0

    @property
    def loss_names(self):
        return ("first", "second")

    def network(self):
        return torch.nn.Sequential(
            torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)
        )

    def data(self, generator):
        train, test = (torch.rand(n, 2, generator=generator, dtype=torch.float64) for n in (12, 6))
        if self.bad_sample >= 0:
            train[self.bad_sample] = math.nan
        return {"x": train}, {"x": test}

    def predict(self, network, batch):
        return network(batch["x"]) - batch["x"].square()

    def loss(self, prediction, batch):
        return self.factor * prediction.square().mean(0).sum()

    def losses(self, network, batch):
        return list(self.factor * self.predict(network, batch).square().mean(0))

    def single_loss(self, network, batch, index):
        return self.losses(network, batch)[index]

    def loss_pairs(self, network, batch):
        prediction = self.predict(network, batch)
        return [(loss, prediction) for loss in self.factor * prediction.square().mean(0)]


TWO = Two()
ADAM = TWO.settings["adam"]


def begun(method, options, steps=3, **changes):
    """A run after its first evaluation and some steps, and where it is."""
    options = replace(options, **changes)
    chosen = METHODS[method].complete(TWO.settings[method])
    training = prepare(TWO, METHODS[method], chosen, options, None, Processes())
    progress = Progress("", options)
    loop._evaluate(training, progress, 0.0)
    for _ in range(steps):
        loop._step(training, next(training.batches), progress)
    return training, progress


def where(training):
    """All that a step changes."""
    parts = [part for part in (training.network, training.average) if part is not None]
    return copy.deepcopy([part.state_dict() for part in (*parts, training.optimizer)])


def numbers(training):
    return torch.cat([parameter.detach().flatten() for parameter in training.network.parameters()])


def check(training, before, faults):
    """Checks that a fault has left the step out, or that the step has been taken whole."""
    if len(training.faults.events) > faults:
        count(same(where(training), before))
    else:
        count(bool(torch.isfinite(numbers(training)).all()))


def continues(training, progress):
    faults = len(training.faults.events)
    loop._step(training, next(training.batches), progress)
    return len(training.faults.events) == faults and bool(torch.isfinite(numbers(training)).all())


@pytest.fixture
def skipping(options):
    return replace(options, on_fault="skip", max_faults=1000)


@pytest.mark.parametrize("method", METHODS)
def test_no_fault_in_a_step_harms_a_method(method, skipping, monkeypatch):
    training, progress = begun(method, skipping, average=0.5 if method == "adam" else None)

    def step(fault, spoilt=lambda batch: batch):
        before, faults = where(training), len(training.faults.events)
        loop._step(training, spoilt(next(training.batches)), progress)
        survives = fault == "no rank" or "decomposition" in fault
        assert survives or len(training.faults.events) > faults, fault
        check(training, before, faults)

    for fault, spoil in OUTPUTS.items():
        hook = training.network.register_forward_hook(lambda *given, s=spoil: s(given[-1]))
        step(fault)
        hook.remove()
        assert continues(training, progress), fault
    step("NaN in the data", lambda batch: {"x": batch["x"] * math.nan})
    with monkeypatch.context() as patch:
        patch.setattr(Two, "factor", math.nan)
        step("NaN in the loss")
    with no_convergence(monkeypatch):
        step("a decomposition that does not converge")
    assert continues(training, progress)


@pytest.mark.parametrize("method", METHODS)
def test_memory_that_runs_out_anywhere_in_a_step(method, skipping, monkeypatch):
    training, progress = begun(method, skipping)
    take_step = loop.take_step

    def step(place):
        mode = OutOfMemoryAt(place)

        def within(*given):
            with mode:
                return take_step(*given)

        with monkeypatch.context() as patch:
            patch.setattr(loop, "take_step", within)
            loop._step(training, next(training.batches), progress)
        return mode

    for place in places(step(None).operations, most=12):
        before, faults = where(training), len(training.faults.events)
        step(place)
        check(training, before, faults)
    assert len(training.faults.events) > 6
    assert {event["kind"] for event in training.faults.events} == {"out of memory"}
    assert continues(training, progress)


@pytest.mark.parametrize("method", METHODS)
def test_without_faults_skipping_changes_nothing(method, options):
    plain = run(TWO, method, TWO.settings[method], options)
    skipping = replace(options, on_fault="skip")
    assert_same(plain, run(TWO, method, TWO.settings[method], skipping))


def test_faults_are_recorded_and_reported(options, saved, capsys):
    loud = replace(options, on_fault="skip", quiet=False)
    results = run(Two(bad_sample=5), "adam", ADAM, loud)
    assert results["stopped"] == "epochs"
    steps = [e for e in saved()["faults"] if e["during"] == "step"]
    assert [e["step"] for e in steps] == [1, 4, 7]  # the second of three batches
    assert [e["epoch"] for e in steps] == pytest.approx([1 / 3, 4 / 3, 7 / 3])
    assert {(e["kind"], e["done"], e["step_size"]) for e in steps} == {
        ("non-finite", "skipped", 0.01)
    }
    assert all(0 < e["seconds"] <= results["simulation_time"] for e in steps)
    assert "batch loss at epoch 0.6667 is nan" in steps[0]["text"]
    others = [e for e in saved()["faults"] if e["during"] == "evaluation"]
    assert [(e["step"], e["done"]) for e in others] == [(n, "noted") for n in (0, 3, 6, 9)]
    text = capsys.readouterr().err
    assert text.count(" of 10 that are survived, in ") == 7
    assert "fault 2 of 10 that are survived, in step 1: the batch loss at epoch" in text
    assert "faults 7 non-finite" in text


def test_a_sample_that_is_left_out_has_no_part_in_the_run(options):
    """Adam on the batches that are left, step for step."""
    results = run(Two(bad_sample=5), "adam", ADAM, replace(options, on_fault="skip"))
    torch.manual_seed(0)
    network = TWO.network()
    train, test = TWO.data(generator(0, DATA_STREAM))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(3):
        for start in (0, 8):
            optimizer.zero_grad()
            TWO.batch_loss(network, {"x": train["x"][start : start + 4].float()}).backward()
            optimizer.step()
    with torch.no_grad():
        expected = TWO.batch_loss(network, {"x": test["x"].float()})
    assert results["test_loss"][-1] == float(expected)


@pytest.mark.parametrize("most", [1, 3])
def test_faults_without_end_end_a_run(most, options):
    limited = replace(options, epochs=50, on_fault="skip", max_faults=most)
    results = run(Two(bad_sample=5), "hig", TWO.settings["hig"], limited)
    assert results["stopped"].startswith("non-finite: ")
    done = [event["done"] for event in results["faults"]]
    assert len(done) == most + 1 and done.index("ended") == most


@pytest.mark.parametrize("method", ["adam", "hig"])
def test_by_default_the_first_fault_ends_a_run(method, options, capsys):
    results = run(Two(bad_sample=5), method, TWO.settings[method], options)
    (event,) = results["faults"]
    assert (event["done"], event["during"], event["step"]) == ("ended", "evaluation", 0)
    assert results["stopped"] == f"non-finite: {event['text']}"
    assert not capsys.readouterr().err


@pytest.mark.parametrize("method", ["adam", "hig", "mconfig"])
def test_skipping_runs_resume_bit_for_bit(method, options, monkeypatch):
    long = replace(options, epochs=4, on_fault="skip", max_faults=40)
    problem = Two(bad_sample=5)
    whole, resumed = whole_and_in_parts(
        problem, method, problem.settings[method], long, monkeypatch, (5, 2)
    )
    assert_same(*(_without_times(results) for results in (whole, resumed)))


def _without_times(results):
    faults = [{k: v for k, v in event.items() if k != "seconds"} for event in results["faults"]]
    return results | {"faults": faults}


def fails_once(step, error, monkeypatch):
    take_step, calls = loop.take_step, []

    def failing(*given):
        calls.append(None)
        if len(calls) == step:
            raise error
        return take_step(*given)

    monkeypatch.setattr(loop, "take_step", failing)


@pytest.mark.parametrize("error", [MemoryError("cannot allocate"), RuntimeError("out of memory")])
def test_a_run_that_a_fault_has_ended_resumes_under_another_policy(error, options, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHARE", 1e9)
    options = replace(options, checkpoint_every=1e-9)
    fails_once(5, error, monkeypatch)
    with pytest.raises(type(error)):
        run(TWO, "adam", ADAM, options)
    monkeypatch.undo()
    fails_once(1, error, monkeypatch)
    results = run(TWO, "adam", ADAM, replace(options, resume=True, on_fault="skip"))
    assert results["stopped"] == "epochs"
    assert [(e["step"], e["done"], e["kind"]) for e in results["faults"]] == [
        (4, "skipped", "out of memory")
    ]


@pytest.mark.parametrize(("factor", "loads"), [(1.0, True), (0.25, False)])
def test_checkpoints_of_the_former_policy_restore(factor, loads, options, monkeypatch):
    """They resume as if the policy had been another one, unless it has changed the step size."""
    monkeypatch.setattr(checkpoint, "SHARE", 1e9)
    state_dict = Faults.state_dict
    monkeypatch.setattr(
        Faults, "state_dict",
        lambda self: state_dict(self) | {"factor": factor, "kept": [{}, {}]},
    )  # fmt: skip
    options = replace(options, checkpoint_every=1e-9)
    fails_once(5, MemoryError("cannot allocate"), monkeypatch)
    with pytest.raises(MemoryError):
        run(TWO, "adam", ADAM, options)
    monkeypatch.undo()
    resumed = replace(options, resume=True)
    if loads:
        assert run(TWO, "adam", ADAM, resumed)["stopped"] == "epochs"
    else:
        with pytest.raises(CheckpointError, match=r"to 0.25 times --lr; remove the file and start"):
            run(TWO, "adam", ADAM, resumed)


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_other_errors_of_the_simulator_are_errors(policy, options, saved, monkeypatch):
    fails_once(3, RuntimeError("the grid is too coarse"), monkeypatch)
    with pytest.raises(RuntimeError, match="too coarse"):
        run(TWO, "adam", ADAM, replace(options, on_fault=policy))
    assert saved()["stopped"] == "failed: the grid is too coarse"
    assert "faults" not in saved()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (hig.NonFiniteError(), "non-finite"),
        (hig.DecompositionError(), "decomposition"),
        (torch.linalg.LinAlgError(), "decomposition"),
        (torch.OutOfMemoryError(), "out of memory"),
        (RuntimeError("CUDA error: out of memory"), "out of memory"),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "out of memory"),
        (MemoryError(), "out of memory"),
        (RuntimeError("shapes do not match"), None),
    ],
)
def test_kinds(error, kind):
    assert kind_of(error) == kind


def test_several_processes_do_not_go_back(options, monkeypatch):
    monkeypatch.setattr(Processes, "__init__", lambda self: vars(self).update(rank=0, size=2))
    with pytest.raises(ProcessesError, match="--on-fault skip takes one process, got 2"):
        run(TINY, "adam", settings("adam"), replace(options, on_fault="skip"))


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"on_fault": "restore"}, "on_fault must be one of .*, got 'restore'"),
        ({"max_faults": 0}, "max_faults must be at least 1, got 0; take on_fault='raise'"),
    ],
)
def test_options_out_of_range(wrong, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        Options(out=tmp_path, epochs=1, **wrong)


def test_the_default_copies_nothing():
    class Untouched:
        def state_dict(self):
            raise AssertionError("nothing is to be looked at")

    faults = Faults("raise", 10, [Untouched()])
    faults.before_step()
    faults.require_finite()
