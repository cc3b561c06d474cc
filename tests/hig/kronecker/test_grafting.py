"""Directions with the norms of Adam's steps, against norms of the steps written out."""

import pytest
import torch

from hig._kronecker.adam import adam_step
from hig._kronecker.grafting import graft_factors

RATE = 1e-9  # so small that a step on zero parameters is the step per unit of rate


@pytest.fixture
def layers():
    """Directions of two layers, the first with a bias."""
    generator = torch.Generator().manual_seed(0)
    shapes = [[(3, 2), (3,)], [(2, 3)]]
    return [
        {torch.zeros(s).double(): torch.randn(s, generator=generator).double() for s in layer}
        for layer in shapes
    ]


@pytest.fixture
def steps(layers):
    """Adam's steps of their parameters and of one more, which comes last."""
    parameters = [parameter for layer in layers for parameter in layer]
    parameters.append(torch.zeros(4).double())
    found = {}
    for number, parameter in enumerate(parameters):
        state = {}
        for factor in (1, -0.3):
            gradient = torch.linspace(-1, number + 1, parameter.numel()).double()
            found[parameter] = adam_step(
                state, factor * gradient.view_as(parameter), (0.9, 0.99), 1e-8
            )
    return found


def adams(steps, parameters):
    """Norm of what Adam does to these parameters, per unit of learning rate."""
    moved = []
    for parameter in parameters:
        trial = parameter.clone()
        steps[parameter].move(trial, RATE)
        moved.append(trial.flatten())
    return torch.cat(moved).norm().item() / RATE


def norm_of(layer):
    return torch.cat([direction.flatten() for direction in layer.values()]).norm().item()


def test_each_layer_has_the_norm_of_adams_step_there(layers, steps):
    rest = dict(list(steps.items())[-1:])
    factors, norm = graft_factors("layer", layers, steps, rest)
    for factor, layer in zip(factors, layers, strict=True):
        assert factor * norm_of(layer) == pytest.approx(adams(steps, layer), rel=1e-12)
    assert norm == pytest.approx(adams(steps, steps), rel=1e-12)


def test_all_layers_together_have_the_norm_of_adams_step(layers, steps):
    factors, norm = graft_factors("global", layers, steps, {})
    assert factors[0] == factors[1]
    together = {p: d for layer in layers for p, d in layer.items()}
    assert factors[0] * norm_of(together) == pytest.approx(adams(steps, together), rel=1e-12)
    assert norm == pytest.approx(adams(steps, together), rel=1e-12)


def test_no_graft_leaves_directions_as_they_are(layers, steps):
    rest = dict(list(steps.items())[-1:])
    factors, norm = graft_factors(None, layers, steps, rest)
    assert factors == [1.0, 1.0]
    squares = [norm_of(layer) ** 2 for layer in layers] + [adams(steps, rest) ** 2]
    assert norm == pytest.approx(sum(squares) ** 0.5, rel=1e-12)


@pytest.mark.parametrize("graft", ["global", "layer"])
def test_a_direction_of_zero_stays_zero(layers, steps, graft):
    still = [{p: torch.zeros_like(p) for p in layer} for layer in layers]
    assert graft_factors(graft, still, steps, {}) == ([0.0, 0.0], 0.0)


def test_without_layers_there_is_the_norm_of_adams_steps(steps):
    assert graft_factors("global", [], steps, steps) == ([], pytest.approx(adams(steps, steps)))
