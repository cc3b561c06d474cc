"""Faults in any part of a step: all parameters are as before it, to the last bit."""

import copy

import pytest
import torch

import hig
from tests.faults import OUTPUTS, OutOfMemoryAt, count, no_convergence, places, same
from tests.hig.networks import build
from tests.textbook import flat

KINDS = {
    "hig": (hig.HIG, {}),
    "hig trust": (hig.HIG, {"step_rule": "trust"}),
    "hig line search": (hig.HIG, {"step_rule": "line_search"}),
    "hig rows": (hig.HIG, {"engine": "rows", "method": "gram"}),
    "hig lanczos": (hig.HIG, {"method": "lanczos"}),
    "hig, momentum": (hig.HIG, {"momentum": 0.5, "step_rule": "trust"}),
    "hig, projected momentum": (hig.HIG, {"momentum": 0.5, "momentum_kind": "projected"}),
    "gn": (hig.GaussNewton, {}),
    "lm": (hig.LevenbergMarquardt, {"lr": 0.5}),
    "lm, steps too long": (hig.LevenbergMarquardt, {"lr": 50.0}),
    "lm, projected momentum": (
        hig.LevenbergMarquardt,
        {"lr": 0.5, "momentum": 0.5, "momentum_kind": "projected"},
    ),
    "lm trust": (hig.LevenbergMarquardt, {"step_rule": "trust"}),
    "lm lanczos": (hig.LevenbergMarquardt, {"method": "lanczos"}),
    "khig": (hig.KroneckerHIG, {"lr": 0.01}),
    "multihig": (hig.MultiHIG, {}),
    "multihig trust": (hig.MultiHIG, {"step_rule": "trust"}),
    "multihig, a prediction each": (hig.MultiHIG, {}),
}
EVERY = pytest.mark.parametrize("kind", KINDS)


def started(kind):
    """A network, an optimizer after its first step, and what makes closures for it."""
    network, inputs = build("mlp", torch.float32)
    make, options = KINDS[kind]
    optimizer = make(network.parameters(), **options)

    def closure(spoil=lambda output: output, scale=1.0):
        prediction = spoil(network(inputs))
        losses = [
            scale * (prediction - target).square().sum() / len(inputs) for target in (0.3, -0.2)
        ]
        if kind == "multihig, a prediction each":
            second = spoil(network(inputs[:3]))
            return [(losses[0], prediction), (scale * second.square().mean(), second)]
        if make is hig.MultiHIG:
            return [(loss, prediction) for loss in losses]
        return losses[0], prediction

    optimizer.step(closure)
    return network, optimizer, closure


def goes_on(network, optimizer, closure):
    """Whether the next step is one, and all numbers are finite."""
    before = flat(network.parameters()).clone()
    loss = optimizer.step(closure)
    after = flat(network.parameters())
    moved = not torch.equal(after, before)
    return moved and bool(torch.isfinite(after).all()) and bool(torch.isfinite(loss))


@EVERY
@pytest.mark.parametrize("fault", [name for name in OUTPUTS if name != "no rank"])
def test_numbers_that_are_not_finite(kind, fault):
    network, optimizer, closure = started(kind)
    before, memory = flat(network.parameters()).clone(), copy.deepcopy(optimizer.state_dict())
    with pytest.raises(hig.NonFiniteError):
        optimizer.step(lambda: closure(OUTPUTS[fault]))
    count(torch.equal(flat(network.parameters()), before))
    assert same(optimizer.state_dict(), memory)
    assert goes_on(network, optimizer, closure)


@EVERY
@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite(kind, scale):
    network, optimizer, closure = started(kind)
    before, memory = flat(network.parameters()).clone(), copy.deepcopy(optimizer.state_dict())
    with pytest.raises(hig.NonFiniteError):
        optimizer.step(lambda: closure(scale=scale))
    count(torch.equal(flat(network.parameters()), before))
    assert same(optimizer.state_dict(), memory)
    assert goes_on(network, optimizer, closure)


@EVERY
def test_outputs_that_do_not_depend_on_the_network(kind):
    network, optimizer, closure = started(kind)
    before = flat(network.parameters()).clone()
    loss = optimizer.step(lambda: closure(OUTPUTS["no rank"]))
    after = flat(network.parameters())
    if kind == "khig" or "momentum" in kind:  # which go along earlier gradients
        count(bool(torch.isfinite(after).all()))
    else:
        count(torch.equal(after, before))
    assert bool(torch.isfinite(loss))
    # One step may still be too long for the memory of a rule, and is then not taken.
    assert goes_on(network, optimizer, closure) or goes_on(network, optimizer, closure)


@EVERY
def test_a_decomposition_that_does_not_converge(kind, monkeypatch):
    network, optimizer, closure = started(kind)
    before = flat(network.parameters()).clone()
    if KINDS[kind][0] is hig.LevenbergMarquardt and "lanczos" not in kind:
        with no_convergence(monkeypatch):  # it solves, and decomposes for its report alone
            optimizer.step(closure)
            with pytest.raises(hig.DecompositionError):
                _ = optimizer.report.singular_values
    else:
        with no_convergence(monkeypatch), pytest.raises(hig.DecompositionError):
            optimizer.step(closure)
        count(torch.equal(flat(network.parameters()), before))
    assert goes_on(network, optimizer, closure)


@EVERY
def test_memory_that_runs_out_anywhere_in_a_step(kind):
    network, optimizer, closure = started(kind)
    twin_network, twin, twin_closure = started(kind)
    before, memory = flat(network.parameters()).clone(), copy.deepcopy(optimizer.state_dict())
    with OutOfMemoryAt() as none:
        twin.step(twin_closure)
    whole = flat(twin_network.parameters())
    raised = 0
    for place in places(none.operations):
        expected = whole  # backward passes that do not fit together are made in smaller batches
        try:
            with OutOfMemoryAt(place):
                optimizer.step(closure)
        except RuntimeError as error:
            assert "allocate" in str(error)
            raised, expected = raised + 1, before
        found = flat(network.parameters())
        count(torch.equal(found, before) if expected is before else torch.allclose(found, whole))
        start(network, before)
        optimizer.load_state_dict(copy.deepcopy(memory))
    assert raised > 10
    assert goes_on(network, optimizer, closure)


@torch.no_grad()
def start(network, values):
    sizes = [parameter.numel() for parameter in network.parameters()]
    for parameter, part in zip(network.parameters(), values.split(sizes), strict=True):
        parameter.copy_(part.view_as(parameter))
