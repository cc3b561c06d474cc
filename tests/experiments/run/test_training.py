"""Runs that are interrupted and resumed equal runs that are not, bit for bit."""

import signal
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

import hig
from experiments import run
from experiments._methods import METHODS
from experiments._run import loop, setup
from problems import NonlinearOscillators
from problems.multitask import Toy
from problems.pinn import Burgers
from tests.experiments.clocks import SteppingClock
from tests.experiments.runs import TINY, Fresh, settings

TIMES = {"time", "epoch_time", "step_time", "simulation_time", "resumed_at"}
TIMES |= {"machine", "origin", "sim_par"}
SMALL_BURGERS = Burgers(points_interior=16, points_boundary=4, points_initial=4, width=6, depth=2)
SINGLE = [name for name, method in METHODS.items() if not method.several_losses]


def interrupted_after(steps, monkeypatch, number=signal.SIGINT):
    """Let the signal come during a step, once."""
    original, count = loop.take_step, []

    def step(*given):
        count.append(None)
        if len(count) == steps:
            signal.raise_signal(number)
        return original(*given)

    monkeypatch.setattr(loop, "take_step", step)


def whole_and_in_parts(problem, method, settings, options, monkeypatch, parts=(5,)):
    """The results of a run without and with interruptions, before these steps of each part."""
    out = options.out
    whole = run(problem, method, settings, replace(options, out=out / "whole"))
    options = replace(options, out=out / "parts")
    for steps in parts:
        with monkeypatch.context() as patch:
            interrupted_after(steps, patch)
            results = run(problem, method, settings, options)
        assert results["stopped"] == "interrupted"
        assert len(list(options.out.glob("*.checkpoint"))) == 1
        options = replace(options, resume=True)
    resumed = run(problem, method, settings, options)
    assert len(resumed["resumed_at"]) == len(parts)
    assert not list(options.out.glob("*.checkpoint"))
    return whole, resumed


def assert_same(first, second, where="results"):
    """Every number but times, to the last bit."""
    assert type(first) is type(second), where
    if isinstance(first, dict):
        assert first.keys() - TIMES == second.keys() - TIMES, where
        for key in first.keys() - TIMES:
            assert_same(first[key], second[key], f"{where}[{key!r}]")
    elif isinstance(first, np.ndarray):
        assert first.dtype == second.dtype and first.shape == second.shape, where
        assert first.tobytes() == second.tobytes(), where
    else:
        assert first == second or first != first, where


def assert_same_runs(whole, resumed, out):
    assert_same(whole, resumed)
    kept = [hig.load_results(out / name / whole["weights_file"]) for name in ("whole", "parts")]
    assert_same(kept[0]["weights"], kept[1]["weights"])


@pytest.fixture
def kept(options):
    return replace(options, save_weights=True, epochs=6)


@pytest.mark.parametrize("method", SINGLE)
def test_every_method_for_one_loss(method, kept, monkeypatch):
    chosen = settings(method)
    if "schedule" in METHODS[method].options:
        chosen = replace(chosen, schedule="cosine")
    whole, resumed = whole_and_in_parts(TINY, method, chosen, kept, monkeypatch, parts=(3, 2))
    assert_same_runs(whole, resumed, kept.out)


@pytest.mark.parametrize("rule", ["trust", "line_search"])
def test_step_rules_keep_their_memory(rule, kept, monkeypatch):
    chosen = settings("hig", step_rule=rule)
    whole, resumed = whole_and_in_parts(TINY, "hig", chosen, kept, monkeypatch)
    assert_same_runs(whole, resumed, kept.out)


@pytest.mark.parametrize("method", ["hig", "lm"])
@pytest.mark.parametrize("kind", ["plain", "projected"])
def test_last_directions_are_kept(method, kind, kept, monkeypatch):
    chosen = settings(method, momentum=0.5, momentum_kind=kind)
    whole, resumed = whole_and_in_parts(TINY, method, chosen, kept, monkeypatch)
    assert_same_runs(whole, resumed, kept.out)
    assert (whole["sim_par"]["momentum"], whole["sim_par"]["momentum_kind"]) == (0.5, kind)


@pytest.mark.parametrize("method", Toy.settings)
def test_every_method_for_several_losses(method, kept, monkeypatch):
    monkeypatch.setattr(Toy, "example", lambda *_: {})  # slow to draw
    problem = Toy(start=2)
    chosen = problem.settings[method]
    short = replace(kept, epochs=1)  # of a hundred steps
    parts = (4, 6) if METHODS[method].closure == "turns" else (7,)
    whole, resumed = whole_and_in_parts(problem, method, chosen, short, monkeypatch, parts)
    assert_same_runs(whole, resumed, kept.out)


def test_one_turn_is_too_few_for_momenta(kept, monkeypatch):
    monkeypatch.setattr(Toy, "example", lambda *_: {})
    problem, short = Toy(), replace(kept, epochs=1)
    whole, resumed = whole_and_in_parts(
        problem, "mconfig", problem.settings["mconfig"], short, monkeypatch, parts=(1,)
    )
    assert_same_runs(whole, resumed, kept.out)


@dataclass(frozen=True)
class Pools(Fresh):
    """Draws for several batches at a time, and rarely."""

    def batches(self, train, size, generator):
        while True:
            for batch in self._draw(5 * size, generator)["x"].split(size):
                yield {"x": batch.to(train["x"])}


@pytest.mark.parametrize("problem", [Fresh(), Pools()])
@pytest.mark.parametrize("steps", [1, 5, 7])
def test_fresh_samples_and_a_time_budget(problem, steps, kept, monkeypatch):
    """With a clock of a second per step, both runs have as many steps."""
    monkeypatch.setattr(setup, "TrainingClock", SteppingClock)
    for evaluate_every in (None, 3.0):
        options = replace(
            kept, epochs=None, time_budget=12.0, evaluate_every=evaluate_every,
            out=kept.out / str(evaluate_every),
        )  # fmt: skip
        chosen = problem.settings["sgd"]
        whole, resumed = whole_and_in_parts(problem, "sgd", chosen, options, monkeypatch, (steps,))
        assert_same_runs(whole, resumed, options.out)
        assert resumed["time"].tolist() == whole["time"].tolist()
        assert resumed["resumed_at"].tolist() == [steps]


def test_a_running_average(kept, monkeypatch):
    averaged = replace(kept, average=0.7)
    whole, resumed = whole_and_in_parts(TINY, "adam", settings("adam"), averaged, monkeypatch)
    assert_same_runs(whole, resumed, kept.out)


@dataclass(frozen=True)
class Shaken(NonlinearOscillators):
    """Its losses depend on torch's random numbers."""

    def predict(self, network, batch):
        prediction = super().predict(network, batch)
        return prediction + 0.01 * torch.randn(prediction.shape) if network.training else prediction


@pytest.mark.parametrize("method", ["adam", "hig"])
def test_random_numbers_of_the_step(method, kept, monkeypatch):
    problem = Shaken(time_steps=8, dt=0.5, train_size=16, test_size=6)
    chosen = settings(method, rcond=1e-2) if method == "hig" else settings(method)
    whole, resumed = whole_and_in_parts(problem, method, chosen, kept, monkeypatch)
    assert_same_runs(whole, resumed, kept.out)


def test_starting_from_weights(kept, monkeypatch):
    first = run(TINY, "sgd", settings("sgd"), replace(kept, epochs=1))
    second_options = replace(kept, init_from=kept.out / first["weights_file"])
    whole, resumed = whole_and_in_parts(TINY, "adam", settings("adam"), second_options, monkeypatch)
    assert_same_runs(whole, resumed, kept.out)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", ["adam", "hig", "mconfig", "minmax"])
def test_cuda(method, kept, monkeypatch):
    problem = SMALL_BURGERS if METHODS[method].several_losses else TINY
    chosen = (
        settings(method) if problem is TINY else replace(problem.settings[method], batch_size=16)
    )
    on_gpu = replace(kept, device="cuda")
    whole, resumed = whole_and_in_parts(problem, method, chosen, on_gpu, monkeypatch)
    np.testing.assert_allclose(resumed["test_loss"], whole["test_loss"], rtol=1e-3)
