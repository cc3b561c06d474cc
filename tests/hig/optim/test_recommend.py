"""Recommendations from one batch: which step, and what each costs."""

import random

import pytest
import torch
from torch import nn

import hig
from tests.textbook import flat


def problem(samples=40, outputs=5, weak=1e-4, wide=16):
    """A network before outputs of which all but the first are scaled down."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, wide), nn.Tanh(), nn.Linear(wide, outputs)).double()
    inputs = torch.randn(samples, 3, dtype=torch.float64)
    scales = torch.full((outputs,), weak, dtype=torch.float64)
    scales[0] = 1

    def closure():
        prediction = network(inputs) * scales
        return (prediction - 0.1).square().sum(1).mean(), prediction

    return network, closure


def steps(found):
    return [cost.step for cost in found.costs]


def test_few_rows_that_are_badly_conditioned_have_the_exact_step():
    network, closure = problem()
    found = hig.recommend(network.parameters(), closure)
    assert found.first == "hig.HIG(...)"
    assert set(steps(found)) == {"torch.optim.Adam(...)", "hig.HIG(...)", "hig.KroneckerHIG(...)"}
    assert all(cost.measured for cost in found.costs)
    assert found.weak > 0.5
    assert found.costs == sorted(found.costs, key=lambda cost: cost.gradients)
    text = str(found)
    assert "200 rows, exact" in text and "try first: hig.HIG(...)" in text
    assert "2 layers, 0 other parameters" in text


def test_many_rows_have_a_sketch_and_the_estimate_of_the_exact_step():
    network, closure = problem(samples=128, outputs=20)
    found = hig.recommend(network.parameters(), closure)
    assert found.first == "hig.HIG(..., sketch=2)"
    exact = next(cost for cost in found.costs if cost.step == "hig.HIG(...)")
    sketch = next(cost for cost in found.costs if cost.step == found.first)
    assert not exact.measured and exact.about == "2560 rows, exact"
    assert exact.gradients > sketch.gradients > 0
    assert "256 rows: 128 samples x 2 of 20 outputs" in str(found)
    assert "about" in str(found) and "an exact step takes the time of" in found.reason


def test_few_controls_have_the_exact_step():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    inputs, shapes = torch.randn(20, 3).double(), torch.randn(3, 60).double()

    def closure():
        prediction = torch.sin(network(inputs) @ shapes) * torch.logspace(0, -6, 60).double()
        return prediction.square().sum(1).mean(), prediction

    found = hig.recommend(network.parameters(), closure)
    assert "60 rows, exact: 20 samples x 3 controls for 60 outputs" in str(found)
    assert found.first in ("hig.HIG(...)", "hig.KroneckerHIG(...)")


def test_well_conditioned_problems_have_cheap_steps():
    network, closure = problem(samples=4, outputs=2, weak=1.0)
    assert hig.recommend(network.parameters(), closure).first == "hig.KroneckerHIG(...)"
    weights = nn.Parameter(torch.eye(3, dtype=torch.float64))
    inputs = torch.randn(3, 3, dtype=torch.float64)

    def quadratic():
        prediction = inputs + weights
        return prediction.square().sum(1).mean(), prediction

    found = hig.recommend([weights], quadratic)
    assert found.first == "torch.optim.Adam(...)" and found.weak == 0
    assert "hig.KroneckerHIG(...)" not in steps(found)


def test_nothing_is_changed():
    network, inner = problem()
    norm = nn.BatchNorm1d(5).double()
    kept = flat(network.parameters()).clone(), norm.running_mean.clone()
    noise = []

    def closure():
        loss, prediction = inner()
        norm(prediction.detach())
        noise.append((torch.rand(()).item(), random.random()))
        return loss, prediction

    groups = [{"params": list(network.parameters()), "lr": 0.1}]
    states = torch.get_rng_state(), random.getstate()
    hig.recommend(groups, closure)
    assert torch.equal(flat(network.parameters()), kept[0])
    assert torch.equal(norm.running_mean, kept[1])
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert groups[0].keys() == {"params", "lr"}
    assert all(parameter.grad is None for parameter in network.parameters())


def test_errors_leave_the_parameters():
    network, closure = problem()
    with pytest.raises(TypeError, match="closure"):
        hig.recommend(network.parameters(), 3)
    with pytest.raises(hig.NonFiniteError, match="the prediction holds NaN"):
        hig.recommend(
            network.parameters(), lambda: (lambda y: (y.sum(), y))(closure()[1] * float("nan"))
        )
