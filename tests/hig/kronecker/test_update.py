"""Updates of layers and of the parameters next to them, against the parts they are made of."""

import pytest
import torch
from torch import nn

import hig
from hig._kronecker.adam import adam_step
from hig._kronecker.eigenbasis import eigenbasis_steps, refresh_eigenbasis
from hig._kronecker.layer_state import refresh_power
from hig._kronecker.update import move, restored_after_errors
from tests.hig.networks import build, least_squares
from tests.textbook import flat, step_of

DOUBLE = {"dtype": torch.float64}
GROUP = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-6}


def factors(size, seed):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(1, size, 2 * size, generator=generator, **DOUBLE)
    return root @ root.mT


@pytest.fixture
def parameters():
    """A weight with factors and its bias, and a parameter of another kind."""
    torch.manual_seed(0)
    return [torch.randn(shape, **DOUBLE) for shape in [(2, 3), (2,), (4,)]]


def layer_state(graft):
    state = {
        "outputs": factors(2, 1), "inputs": factors(4, 2), "updates": 1, "bias": 1,
    }  # fmt: skip
    refresh_power(state, 0.0, 0.75, 0.1, graft)
    return state


def moved(parameters, graft, gradients, group=None, state=None):
    states = {parameter: {} for parameter in parameters}
    states[parameters[0]] = state or layer_state(graft)
    groups = [{**GROUP, **(group or {}), "params": parameters}]
    before = [parameter.clone() for parameter in parameters]
    pairs = dict(zip(parameters, gradients, strict=False))
    result = move(states, groups, parameters, pairs, graft, 0.95)
    changes = [p - b for p, b in zip(parameters, before, strict=True)]
    return result, changes, states


def gradients_of(parameters, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=generator, **DOUBLE) for p in parameters]


def test_a_layer_goes_along_adams_step_in_the_eigenbasis(parameters):
    gradients = gradients_of(parameters)
    state = layer_state("eigenbasis")
    matrix = torch.cat([gradients[0], gradients[1][:, None]], 1)[None]
    steps = eigenbasis_steps([{**state, "step": 1}], [[matrix, matrix]], 0.95, [GROUP["eps"]])
    result, changes, _ = moved(parameters, "eigenbasis", gradients)
    factor = float(steps.adam_norms[0] / steps.norms[0])
    expected = -0.1 * factor * steps.directions[0][0]
    torch.testing.assert_close(changes[0], expected[:, :-1])
    torch.testing.assert_close(changes[1], expected[:, -1])
    assert result.layers == 1 and result.by_adam == [parameters[2]]
    assert result.grafts == pytest.approx([factor])
    assert result.norm == pytest.approx(float(flat(changes).norm()) / 0.1)


@pytest.mark.parametrize("graft", ["eigenbasis", "layer", "global", None])
def test_a_parameter_without_factors_takes_the_step_of_adam(parameters, graft):
    gradients = gradients_of(parameters)
    twin = parameters[2].clone()
    adam_step({}, gradients[2], GROUP["betas"], GROUP["eps"]).move(twin, 0.1)
    moved(parameters, graft, gradients)
    assert torch.equal(parameters[2], twin)


def test_powers_of_means_have_the_norm_of_adams_step(parameters):
    gradients = gradients_of(parameters)
    twins = [parameter.clone() for parameter in parameters]
    for twin, gradient in zip(twins, gradients, strict=True):
        adam_step({}, gradient, GROUP["betas"], GROUP["eps"]).move(twin, 0.1)
    expected = (flat(twins[:2]) - flat(parameters[:2])).norm()
    _, changes, _ = moved(parameters, "layer", gradients)
    torch.testing.assert_close(flat(changes[:2]).norm(), expected)


def test_a_frozen_bias_stays(parameters):
    gradients = gradients_of(parameters)
    result, changes, _ = moved(parameters[:2], "eigenbasis", gradients[:1])
    assert changes[0].any() and not changes[1].any() and result.by_adam == []


def test_only_moments_that_are_needed_are_kept(parameters):
    state = layer_state("eigenbasis")
    _, _, states = moved(parameters, "eigenbasis", gradients_of(parameters), state=state)
    assert "moment" in state and "exp_avg_sq" not in state and "exp_avg" in state
    assert "exp_avg_sq" in states[parameters[2]]
    moved(parameters, "layer", gradients_of(parameters), state=state)
    assert "moment" not in state and "exp_avg_sq" in state


def test_a_parameter_that_loses_its_factors_does_not_jump(parameters):
    """Adam's second moments begin where the mean has a history, far above the last gradient."""
    state = layer_state("eigenbasis")
    states = {parameters[0]: state, parameters[1]: {}}
    groups = [{**GROUP, "params": parameters[:2]}]
    gradients = gradients_of(parameters[:2])
    for _ in range(20):
        move(states, groups, parameters, dict(zip(parameters, gradients, strict=False)),
             "eigenbasis", 0.95)  # fmt: skip
    state.pop("scale")
    small = {p: 1e-9 * g for p, g in zip(parameters, gradients, strict=False)}
    before = flat(parameters[:2])
    result = move(states, groups, parameters, small, "eigenbasis", 0.95)
    assert len(result.by_adam) == 2
    assert float((flat(parameters[:2]) - before).abs().max()) <= 0.1 * (1 + 1e-9)


@pytest.mark.parametrize("graft", ["eigenbasis", "layer"])
def test_no_first_step_of_a_layer_is_a_jump(graft):
    """Also if it is found after many steps, with a mean from before."""
    network, inputs = build("mlp")
    closure = least_squares(network, inputs)
    optimizer = hig.KroneckerHIG(network.parameters(), lr=0.01, graft=graft)
    for parameter in network.parameters():  # as steps without factors leave it
        optimizer.state[parameter] |= {
            "step": 500, "exp_avg": torch.full_like(parameter, 10.0),
            "exp_avg_sq": torch.full_like(parameter, 100.0),
        }  # fmt: skip
    size = sum(p.numel() for p in network.parameters())
    for _ in range(5):
        assert float(step_of(optimizer, closure).norm()) <= 0.011 * size**0.5


def test_groups_of_layers_with_other_settings(parameters):
    gradients = gradients_of(parameters)
    states = {p: {} for p in parameters}
    states[parameters[0]] = layer_state("eigenbasis")
    groups = [
        {**GROUP, "params": parameters[:1]},
        {"lr": 0.3, "betas": (0.5, 0.5), "eps": 1e-3, "params": parameters[1:]},
    ]
    before = [p.clone() for p in parameters]
    move(states, groups, parameters, dict(zip(parameters, gradients, strict=True)),
         "eigenbasis", 0.95)  # fmt: skip
    split = [p - b for p, b in zip(parameters, before, strict=True)]
    expected = before[2].clone()
    adam_step({}, gradients[2], (0.5, 0.5), 1e-3).move(expected, 0.3)
    assert torch.equal(parameters[2], expected)
    for p, b in zip(parameters, before, strict=True):
        p.copy_(b)
    _, together, _ = moved(parameters, "eigenbasis", gradients)
    torch.testing.assert_close(split[0], together[0])
    torch.testing.assert_close(split[1], 3 * together[1])


def test_steps_beyond_the_numbers_of_the_parameters_raise():
    network = nn.Linear(2, 2).half()
    states = {network.weight: {}, network.bias: {}}
    groups = [{**GROUP, "lr": 6e3, "params": list(network.parameters())}]
    gradients = {p: torch.ones(p.shape) for p in network.parameters()}
    with torch.no_grad(), pytest.raises(hig.NonFiniteError, match="NaN or Inf in the parameters"):
        for _ in range(12):
            move(states, groups, groups[0]["params"], gradients, "eigenbasis", 0.95)


def test_parameters_are_restored_after_errors_alone():
    parameter = torch.ones(2)
    with pytest.raises(KeyError), restored_after_errors([parameter]):
        parameter.add_(1)
        raise KeyError
    assert torch.equal(parameter, torch.ones(2))
    with restored_after_errors([parameter]):
        parameter.add_(1)
    assert torch.equal(parameter, torch.full((2,), 2.0))


def test_a_refreshed_basis_does_not_depend_on_the_scale_of_its_factors():
    one, other = {}, {}
    refresh_eigenbasis(one, factors(3, 1), factors(4, 2), 0.75, 0.1)
    refresh_eigenbasis(other, 2**20 * factors(3, 1), factors(4, 2) / 2**30, 0.75, 0.1)
    for name in ("output_basis", "input_basis"):
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-12)
