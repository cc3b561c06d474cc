"""Trials see the same numbers as the step, and build no graph that they do not need."""

import copy
import pickle
import random

import pytest
import torch
from torch import nn

import hig
from hig._step import evaluation
from hig._step.evaluation import Evaluation, Graph, Watch
from tests.hig.closures import NUMPY
from tests.hig.graph_closures import CLOSURES, DIFFERING, OPTIMIZERS, mlp, points, problem
from tests.textbook import flat, relative_error

pytestmark = pytest.mark.filterwarnings(
    "ignore:Using .torch.compile.module.* global hooks:UserWarning"
)

NOTE = "two evaluations of the closure at the same point differ"
REPEATING = [name for name in CLOSURES if name not in DIFFERING]
# In other last digits rules may decide otherwise.
SAME_DIGITS = [name for name in REPEATING if name != "black_box_in_other_last_digits"]
BY_OPTIMIZER = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


def noted(optimizer):
    return any(NOTE in note for note in optimizer.report.notes)


# -- which graph ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLOSURES)
def test_no_more_graph_than_is_needed(name):
    network, closure = problem(name)
    optimizer = OPTIMIZERS["trust"](network.parameters())
    required = [p.requires_grad for p in network.parameters()]
    for _ in range(3):
        optimizer.step(closure)
        assert optimizer._watch.graph is CLOSURES[name][1]
        assert noted(optimizer) == (name in DIFFERING)
        assert [p.requires_grad for p in network.parameters()] == required


@pytest.mark.parametrize("name", SAME_DIGITS)
@BY_OPTIMIZER
def test_steps_are_those_with_a_full_graph(name, make, monkeypatch):
    """As before there were trials without one: the same draws, buffers and parameters."""
    results = []
    for checked in (True, False):
        if not checked:
            monkeypatch.setattr(Evaluation, "check", lambda *_: None)
        network, closure = problem(name)
        optimizer = make([p for p in network.parameters() if p.requires_grad])
        for generator in (torch.manual_seed, NUMPY.seed, random.seed):
            generator(3)
        losses = [float(optimizer.step(closure)) for _ in range(4)]
        draws = float(torch.rand(())), NUMPY.rand(), random.random()
        outside = [b.double().flatten() for b in network.buffers()]
        results.append((flat(network.parameters()), losses, draws, outside))
    (parameters, losses, draws, outside), expected = results
    assert relative_error(parameters, expected[0]) < 1e-9
    assert losses == pytest.approx(expected[1], rel=1e-9)
    assert draws == expected[2]
    assert all(map(torch.allclose, outside, expected[3]))


@BY_OPTIMIZER
def test_a_black_box_is_linearised_once_a_step(make):
    calls = {"linearise": 0, "simulate": 0}

    def linearise(p):
        calls["linearise"] += 1
        return p**2, lambda cotangent: 2 * p * cotangent

    def simulate(p):
        calls["simulate"] += 1
        return p**2

    network, inputs = mlp(), points(8, 2)
    box = hig.black_box(linearise, simulate)

    def closure():
        prediction = box(network(inputs))
        return (prediction - 1).square().sum(1).mean(), prediction

    optimizer = make(network.parameters())
    for _ in range(100):  # with some checks among them
        optimizer.step(closure)
    assert calls["linearise"] == 100
    assert calls["simulate"] == optimizer._watch._evaluations


def test_an_early_second_check():
    """A head of zeros hides a term that is added where gradients are on."""
    network, inputs = mlp(), points(8, 2)
    nn.init.zeros_(network[-1].weight)
    nn.init.zeros_(network[-1].bias)

    def closure():
        prediction = network(inputs)
        if prediction.requires_grad:
            prediction = prediction + 0.3 * prediction.tanh()
        return (prediction - 1).square().mean(), prediction

    optimizer = hig.LevenbergMarquardt(network.parameters(), lr=0.5, step_rule="fixed")
    for _ in range(10):
        optimizer.step(closure)
    assert optimizer._watch.graph is Graph.FULL
    assert not noted(optimizer)


def test_half_precision_and_autocast():
    """Casts that a trial made without a graph are not found by code that needs one."""
    torch.manual_seed(0)
    network, inputs = mlp().float(), points(8, 2).float()

    def closure():
        prediction = network(inputs)
        return (prediction.float() - 1).square().mean(), prediction

    optimizer = hig.LevenbergMarquardt(network.parameters(), lr=0.5, step_rule="fixed")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(3):
            optimizer.step(closure)
            assert optimizer._watch.graph is Graph.NONE
            assert not noted(optimizer)
            gradients = torch.autograd.grad(network(inputs).sum(), list(network.parameters()))
            assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("engine", ["auto", "rows"])
@pytest.mark.parametrize("several", [False, True])
def test_several_losses(engine, several):
    network, inputs = mlp(), points(8, 2)

    def closure():
        prediction = network(inputs)
        other = prediction.exp() if several else prediction
        return [
            (prediction.square().mean(), prediction),
            ((other - 1).square().mean(), other),
            (prediction.abs().square().mean(), prediction),
        ]

    optimizer = hig.MultiHIG(network.parameters(), engine=engine, step_rule="trust")
    optimizer.step(closure)
    assert optimizer._watch.graph is Graph.NONE
    assert not optimizer.report.notes
    generator = torch.Generator().manual_seed(0)

    def differing():
        noise = torch.randn((), generator=generator).double()
        return [(loss * (1 + noise), prediction) for loss, prediction in closure()]

    optimizer = hig.MultiHIG(network.parameters(), engine=engine, step_rule="trust")
    optimizer.step(differing)
    (note,) = optimizer.report.notes
    assert NOTE in note and note in str(optimizer.report)


# -- errors ---------------------------------------------------------------------------------------


@BY_OPTIMIZER
def test_a_graph_that_is_needed_in_some_trials_only(make):
    """A penalty that begins away from the start: its derivative raises there without a graph."""
    network, inputs = mlp(), points(8, 2)
    start, seen = flat(network.parameters()).clone(), []

    def closure():
        x = inputs.clone().requires_grad_()
        prediction = network(x)
        if not torch.equal(flat(network.parameters()), start):
            prediction = prediction + torch.autograd.grad(prediction.sum(), x, create_graph=True)[0]
            seen.append(prediction.requires_grad)
        return prediction.square().mean(), prediction

    optimizer = make(network.parameters())
    optimizer.step(closure)
    assert seen and all(seen)
    assert optimizer._watch.graph is Graph.FULL


class Refusal(Exception):
    """An error of a user."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, RuntimeError, OSError, Refusal])
@pytest.mark.parametrize("call", [2, 3, 4])
@pytest.mark.parametrize("name", ["plain", "differentiated_by_inputs", "asserts"])
@BY_OPTIMIZER
def test_errors_leave_no_trace(make, name, call, error):
    network, closure = problem(name)
    before, calls = flat(network.parameters()).clone(), []

    def breaks():
        calls.append(1)
        outcome = closure()
        if len(calls) >= call:
            raise error("simulator")
        return outcome

    optimizer = make(network.parameters())
    with pytest.raises(error, match="simulator"):
        for _ in range(3):
            before = flat(network.parameters()).clone()
            optimizer.step(breaks)
    assert torch.equal(flat(network.parameters()), before)
    assert all(p.requires_grad for p in network.parameters())
    assert torch.is_grad_enabled()
    optimizer.step(closure)
    assert optimizer._watch.graph in (CLOSURES[name][1], Graph.FULL)


def test_memory_that_runs_out_is_no_missing_graph():
    network, closure = problem("plain")
    calls = []

    def runs_out():
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return closure()

    with pytest.raises(torch.OutOfMemoryError):
        hig.HIG(network.parameters(), step_rule="trust").step(runs_out)


# -- the note -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DIFFERING)
@BY_OPTIMIZER
def test_evaluations_that_differ_have_a_note_in_every_step(name, make):
    network, closure = problem(name)
    optimizer = make(network.parameters())
    for _ in range(20):
        optimizer.step(closure)
        assert noted(optimizer)
        assert NOTE in str(optimizer.report)


@pytest.mark.parametrize("noise", [1e-7, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_has_no_note(noise, dtype):
    """Sums in another order differ in the last digits, noise in more than half of them."""
    network, inputs = mlp().to(dtype), points(64, 2).to(dtype)
    generator = torch.Generator().manual_seed(0)

    def closure():
        prediction = network(inputs)
        prediction = prediction * (1 + noise * torch.randn(64, 2, generator=generator).to(dtype))
        return (prediction - 0.3).square().mean(), prediction

    optimizer = hig.HIG(network.parameters(), step_rule="trust")
    optimizer.step(closure)
    assert noted(optimizer) == (noise > torch.finfo(dtype).eps ** 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_the_floor_of_a_batch_rounding_is_no_difference(dtype):
    """There the loss is rounding alone: two sums in another order have no digit in common."""
    torch.manual_seed(0)
    network, inputs = nn.Linear(2, 2).to(dtype), points(8, 2).to(dtype)
    target = nn.Linear(2, 2).to(dtype)(inputs).detach()
    flips = iter([False, True] * 10**4)

    def closure():
        x = torch.cat([inputs, torch.ones(8, 1, dtype=dtype)], 1)
        weight = torch.cat([network.weight, network.bias[:, None]], 1)
        order = [2, 1, 0] if next(flips) else [0, 1, 2]
        prediction = sum(x[:, i, None] * weight[None, :, i] for i in order)
        return 0.5 * (prediction - target).square().sum(), prediction

    optimizer = hig.LevenbergMarquardt(network.parameters(), step_rule="fixed")
    for _ in range(150):
        loss = float(optimizer.step(closure))
        assert not noted(optimizer)
        assert optimizer._watch.graph is Graph.NONE
    assert loss < 1e-3 * torch.finfo(dtype).eps


def test_the_note_goes_when_evaluations_repeat():
    network, inputs = mlp(), points(8, 2)
    noise = [points(100, 8, 2)]

    def closure():
        prediction = network(inputs)
        if noise:
            prediction = prediction + noise[0][torch.randint(100, (1,), generator=generator)[0]]
        return prediction.square().mean(), prediction

    generator = torch.Generator().manual_seed(0)
    optimizer = hig.LevenbergMarquardt(network.parameters(), lr=0.5, step_rule="fixed")
    optimizer.step(closure)
    assert noted(optimizer) and optimizer._watch.graph is Graph.FULL
    noise.clear()
    for _ in range(2 * evaluation._PAUSE):
        optimizer.step(closure)
    assert not noted(optimizer) and optimizer._watch.graph is Graph.NONE
    noise.append(points(100, 8, 2))  # noise that begins late
    for _ in range(2 * evaluation._PAUSE):
        optimizer.step(closure)
    assert noted(optimizer)


@pytest.mark.parametrize("draw", [NUMPY.randn, random.random])
@pytest.mark.parametrize("every", [1, 2, 10])
def test_draws_that_begin_late(draw, every):
    network, inputs = mlp(), points(8, 2)
    steps, seen = [], []

    def closure():
        late = len(steps) > evaluation._FIRST_STEPS and len(steps) % every == 0
        seen.append(draw() if late else 0.0)
        prediction = network(inputs) + seen[-1]
        return prediction.square().mean(), prediction

    optimizer = hig.LevenbergMarquardt(network.parameters(), lr=0.5, step_rule="fixed")
    for _ in range(evaluation._FIRST_STEPS + every * evaluation._STEPS_BETWEEN):
        assert not optimizer._watch.draws
        steps.append(1)
        optimizer.step(closure)
        if optimizer._watch.draws:
            break
    for _ in range(every):
        steps.append(1)
        seen.clear()
        optimizer.step(closure)
        assert len(seen) > 1 and len(set(seen)) == 1
    assert seen[0] and not noted(optimizer)


def test_a_rule_that_does_not_measure_reads_no_generator(monkeypatch):
    monkeypatch.delattr(Watch, "random_state")
    network, closure = problem("loader")
    optimizer = hig.HIG(network.parameters(), step_rule="fixed")
    optimizer.step(closure)
    assert not optimizer.report.notes


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_know_as_much(copied):
    network, closure = problem("asserts")
    optimizer = hig.HIG(network.parameters(), step_rule="trust")
    optimizer.step(closure)
    twin = copied(optimizer)
    assert vars(twin._watch) == vars(optimizer._watch)
