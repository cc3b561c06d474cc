"""Runs with the trust rule: first steps, data that change, and states of the former rule."""

import copy

import pytest
import torch
from torch import nn

import hig
from hig._step.trust import Trust
from tests.hig.networks import build, least_squares
from tests.textbook import flat, step_of


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", [hig.HIG, hig.GaussNewton, hig.LevenbergMarquardt])
def test_the_first_step_of_an_untrained_network_lowers_the_loss(kind, seed):
    """Its direction may be good for a small part of the way only; that is found within the step."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2)
    )
    inputs = torch.randn(64, 4)
    target = torch.stack([(2 * inputs[:, 0]).sin() * inputs[:, 1], inputs[:, 2] * inputs[:, 3]], 1)
    optimizer = kind(network.parameters(), step_rule="trust")

    def closure():
        prediction = network(inputs)
        return 0.5 * (prediction - target).square().sum(), prediction

    before = float(optimizer.step(closure))
    assert optimizer.report.step_size > 0
    assert float(closure()[0].detach()) < before


KINDS = {
    "hig": lambda p, rule: hig.HIG(p, lr=0.4 if rule == "fixed" else 1.0, step_rule=rule),
    "gn": lambda p, rule: hig.GaussNewton(p, step_rule=rule),
    "lm": lambda p, rule: hig.LevenbergMarquardt(p, step_rule=rule),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rule", ["fixed", "trust", "line_search"])
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("solved", [False, True])
def test_new_data_after_an_exact_fit_are_learned_within_twenty_steps(make, rule, dtype, solved):
    torch.manual_seed(0)
    network = nn.Linear(1, 1).to(dtype)
    x = torch.linspace(-1, 1, 40, dtype=dtype)[:, None]
    target = network(x).detach() if solved else 2 * x - 1  # a loss of exactly zero at the start

    def closure():
        prediction = network(x)
        return 0.5 * (prediction - target).square().sum(), prediction

    optimizer = make(network.parameters(), rule)
    for _ in range(70):
        optimizer.step(closure)
        assert flat(network.parameters()).isfinite().all()
    for steps_before, change in ((0, 3.0), (30, 1e-2), (30, 1e3)):
        for _ in range(steps_before):
            optimizer.step(closure)
        target = target + change * (0.5 - x)
        start = float(closure()[0].detach())
        for _ in range(20):
            optimizer.step(closure)
        assert float(closure()[0].detach()) < 0.01 * start


FORMER = ("fraction", "steps", "batches", "slope", "curvature", "end", "reach")


@pytest.mark.parametrize("before", [0, 9])
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_a_checkpoint_of_the_former_rule_goes_on(make, before):
    """It has neither ceiling nor safe point, and no damping but in Levenberg-Marquardt."""
    network, inputs = build("mlp")
    closure = least_squares(network, inputs)
    optimizer = make(network.parameters(), "trust")
    for _ in range(12):
        optimizer.step(closure)
    state = copy.deepcopy(optimizer.state_dict())
    rule = state["state"]["step_rule"]
    state["state"]["step_rule"] = {name: rule[name] for name in FORMER}
    for key in ["progress", *(key for key in state["state"] if isinstance(key, int))]:
        del state["state"][key]
    if not isinstance(optimizer, hig.LevenbergMarquardt):
        state["state"].pop("damping", None)
    loaded = make(network.parameters(), "trust")
    for _ in range(before):  # which are forgotten
        loaded.step(closure)
    loaded.load_state_dict(state)
    assert loaded.state["step_rule"]["fraction"] == rule["fraction"]
    assert loaded.state["step_rule"]["steps"] == 12
    assert loaded.state["step_rule"]["ceiling"] == 0.1  # that of a new run
    with torch.no_grad():
        network[0].weight.mul_(0.5)
    losses = [float(loaded.step(closure)) for _ in range(20)]
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("seed", range(3))
def test_after_the_kink_of_a_loss_other_data_are_learned(seed):
    """Short steps there, in float32, hid their gain for ever: the loss is not curved."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4))
    inputs, targets = torch.randn(2, 16, 4), torch.randn(16, 4)
    optimizer, losses = hig.HIG(network.parameters()), []
    for step in range(140):
        other = int(step >= 100)

        def closure(other=other):
            prediction = network(inputs[other])
            return (prediction - 3 * other - targets).abs().sum(1).mean(), prediction

        losses.append(float(optimizer.step(closure)))
    assert losses[120] < losses[100] - 0.1
    assert losses[-1] < 0.9 * losses[100]


def test_a_learning_rate_of_zero_moves_nothing():
    network, inputs = build("mlp")
    closure = least_squares(network, inputs)
    for make in (hig.HIG, hig.GaussNewton):
        optimizer = make(network.parameters(), lr=0.0, step_rule="trust")
        for _ in range(4):
            assert not step_of(optimizer, closure).any()
        assert optimizer.state["step_rule"] == Trust().state  # it has learned nothing
        optimizer.param_groups[0]["lr"] = 1.0  # after a warm-up
        step = step_of(optimizer, closure)
        nn.utils.vector_to_parameters(flat(network.parameters()) - step, network.parameters())
        other = make(network.parameters(), step_rule="trust")
        torch.testing.assert_close(step_of(other, closure), step, rtol=1e-9, atol=1e-12)


# -- losses that are not finite -------------------------------------------------------------------


def after_ten_steps(kind):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    optimizer = kind(network.parameters(), step_rule="trust", momentum=0.5)
    scale = [1.0]

    def closure():
        prediction = network(inputs) * scale[0]
        return (prediction - inputs.sin()).square().sum(1).mean(), prediction

    for _ in range(10):
        inputs = torch.randn(32, 2).double()
        optimizer.step(closure)
    return network, optimizer, closure, scale


@pytest.mark.parametrize("kind", [hig.HIG, hig.GaussNewton, hig.LevenbergMarquardt])
def test_parameters_at_which_the_loss_is_not_finite_go_back_to_the_safe_point(kind):
    network, optimizer, closure, _ = after_ten_steps(kind)
    parameters = list(network.parameters())
    safe = torch.cat([optimizer.state[p]["safe_point"].flatten() for p in parameters])
    with torch.no_grad():
        parameters[0].fill_(torch.nan)
    ceiling = optimizer.state["step_rule"]["ceiling"]
    optimizer.step(closure)
    assert any("back to the parameters before" in note for note in optimizer.report.notes)
    assert optimizer.state["step_rule"]["ceiling"] <= max(ceiling / 2, 0.02)
    assert optimizer.report.step_size > 0
    # The step begins there, along a direction without the momentum of what was given up.
    direction = torch.cat([optimizer.state[p]["direction"].flatten() for p in parameters])
    moved = safe - flat(parameters)
    assert torch.allclose(moved, optimizer.report.step_size * direction, rtol=1e-9, atol=1e-12)
    twin_network, twin, twin_closure, _ = after_ten_steps(kind)
    nn.utils.vector_to_parameters(safe, twin_network.parameters())
    for parameter in twin_network.parameters():
        del twin.state[parameter]["direction"]
    twin.step(twin_closure)
    expected = [twin.state[p]["direction"].flatten() for p in twin_network.parameters()]
    assert torch.allclose(direction, torch.cat(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", [hig.HIG, hig.GaussNewton, hig.LevenbergMarquardt])
def test_a_loss_that_is_not_finite_at_the_safe_point_either_is_refused(kind):
    network, optimizer, closure, scale = after_ten_steps(kind)
    scale[0] = torch.inf
    before, state = flat(network.parameters()).clone(), copy.deepcopy(optimizer.state_dict())
    with pytest.raises(hig.NonFiniteError, match="unchanged"):
        optimizer.step(closure)
    assert torch.equal(flat(network.parameters()), before)
    now = optimizer.state_dict()["state"]
    assert now["step_rule"] == state["state"]["step_rule"]
    for index in range(4):
        for name, value in state["state"][index].items():
            assert torch.equal(now[index][name], value)
