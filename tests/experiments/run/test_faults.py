"""Numerical faults in a run: what is left out, what goes back, and what is noted."""

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
    """Whether a fault has left the step out; without one the step has been taken whole."""
    if len(training.faults.events) > faults:
        count(same(where(training), before))
    else:
        count(bool(torch.isfinite(numbers(training)).all()))


def goes_on(training, progress):
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
        assert goes_on(training, progress), fault
    step("NaN in the data", lambda batch: {"x": batch["x"] * math.nan})
    with monkeypatch.context() as patch:
        patch.setattr(Two, "factor", math.nan)
        step("NaN in the loss")
    with no_convergence(monkeypatch):
        step("a decomposition that does not converge")
    assert goes_on(training, progress)


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
    assert goes_on(training, progress)


@pytest.mark.parametrize("method", ["hig", "adam", "soap", "mconfig"])
def test_restored_runs_go_back_to_the_last_evaluation(method, options):
    training, progress = begun(method, options, steps=0, on_fault="restore", average=0.5)
    for _ in range(3):
        loop._step(training, next(training.batches), progress)
    loop._evaluate(training, progress, 1.0)
    before = where(training)
    for _ in range(2):  # what is kept serves more than once
        for _ in range(4):
            loop._step(training, next(training.batches), progress)
        loop._step(training, {"x": next(training.batches)["x"] * math.nan}, progress)
        count(same(where(training), before))
        assert goes_on(training, progress)
    assert [event["done"] for event in training.faults.events] == ["restored", "restored"]
    expected = TWO.settings[method].lr / 4
    assert training.faults.events[-1]["step_size"] == expected
    assert {group["lr"] for group in training.optimizer.param_groups} == {expected}


@pytest.mark.parametrize("method", METHODS)
def test_without_faults_a_policy_changes_nothing(method, options):
    plain = run(TWO, method, TWO.settings[method], options)
    for policy in ("skip", "restore") if method in ("adam", "lm") else ("skip",):
        chosen = replace(options, on_fault=policy)
        assert_same(plain, run(TWO, method, TWO.settings[method], chosen))


def test_faults_are_noted_and_told(options, saved, capsys):
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
    assert text.count("\nfault ") + text.startswith("fault ") == 7
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


def test_there_may_be_nothing_to_go_back_to(options):
    results = run(Two(bad_sample=5), "adam", ADAM, replace(options, on_fault="restore"))
    assert [event["done"] for event in results["faults"]] == ["ended"]


DIVERGING = settings("sgd", lr=1e4)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_smaller_steps_save_a_diverging_run(schedule, options):
    long = replace(options, epochs=20, on_fault="restore", max_faults=40)
    results = run(TINY, "sgd", replace(DIVERGING, schedule=schedule), long)
    assert results["stopped"] == "epochs"
    sizes = [event["step_size"] for event in results["faults"]]
    assert sizes == [1e4 / 2 ** (n + 1) for n in range(len(sizes))] and len(sizes) > 3
    assert all(map(math.isfinite, results["train_loss"]))


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_restored_runs_go_on_bit_for_bit(schedule, options, monkeypatch):
    long = replace(options, epochs=12, on_fault="restore", max_faults=40)
    chosen = replace(DIVERGING, schedule=schedule)
    whole, resumed = whole_and_in_parts(TINY, "sgd", chosen, long, monkeypatch, (7, 6))
    assert len(whole["faults"]) > 3
    assert_same(*(_without_times(results) for results in (whole, resumed)))


@pytest.mark.parametrize("method", ["adam", "hig", "mconfig"])
def test_skipping_runs_go_on_bit_for_bit(method, options, monkeypatch):
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
def test_a_run_that_a_fault_has_ended_goes_on_under_another_policy(error, options, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHARE", 1e9)
    options = replace(options, checkpoint_every=1e-9)
    fails_once(5, error, monkeypatch)
    with pytest.raises(type(error)):
        run(TWO, "adam", ADAM, options)
    monkeypatch.undo()
    fails_once(1, error, monkeypatch)
    results = run(TWO, "adam", ADAM, replace(options, resume=True, on_fault="restore"))
    assert results["stopped"] == "epochs"
    assert [(e["step"], e["done"], e["kind"]) for e in results["faults"]] == [
        (4, "restored", "out of memory")
    ]


@pytest.mark.parametrize("policy", ["skip", "restore"])
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
    for policy in ("skip", "restore"):
        with pytest.raises(ProcessesError, match=f"--on-fault {policy} takes one process, got 2"):
            run(TINY, "adam", settings("adam"), replace(options, on_fault=policy))


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"on_fault": "ignore"}, "on_fault must be one of .*, got 'ignore'"),
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
    faults.evaluated()
    faults.require_finite()
