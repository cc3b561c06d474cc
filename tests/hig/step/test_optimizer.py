"""The optimisers behave as torch's do, and never leave parameters half-changed."""

import pytest
import torch

import hig
from tests.hig.networks import build, least_squares
from tests.textbook import flat, relative_error, step_of, textbook_jacobian, textbook_power


def problem(name="mlp", dtype=torch.float64):
    network, inputs = build(name, dtype)
    return network, least_squares(network, inputs)


def direction_of(network, closure, kappa=-0.5, rcond=1e-6):
    loss, prediction = closure()
    (gradient,) = torch.autograd.grad(loss, prediction, retain_graph=True)
    jacobian = textbook_jacobian(prediction, network.parameters())
    return textbook_power(jacobian, gradient.flatten(), kappa, rcond)


@pytest.mark.parametrize("kind", [hig.HIG, hig.LevenbergMarquardt, hig.KroneckerHIG])
def test_the_loss_is_that_before_the_step_and_gradients_are_left_as_they_were(kind):
    network, closure = problem()
    first = next(network.parameters())
    first.grad = torch.ones_like(first)
    expected = closure()[0].detach()
    loss = kind(network.parameters()).step(closure)
    assert torch.equal(loss, expected) and not loss.requires_grad
    assert torch.equal(first.grad, torch.ones_like(first))
    assert all(p.grad is None for p in list(network.parameters())[1:])


def test_groups_share_one_jacobian_and_have_their_own_learning_rate():
    network, closure = problem()
    direction = direction_of(network, closure)
    groups = [{"params": network[0].parameters(), "lr": 0.2}, {"params": network[2].parameters()}]
    groups.append({"params": network[4].parameters(), "lr": 0.0})
    step = step_of(hig.HIG(groups, lr=0.1, step_rule="fixed"), closure)
    sizes = [sum(p.numel() for p in network[i].parameters()) for i in (0, 2, 4)]
    for part, expected, lr in zip(
        step.split(sizes), direction.split(sizes), (0.2, 0.1, 0.0), strict=True
    ):
        assert torch.allclose(part, -lr * expected, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("other", [0.25, 0.0])
@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        (hig.HIG, "trust"),
        (hig.HIG, "line_search"),
        (hig.MultiHIG, "trust"),
        (hig.LevenbergMarquardt, "fixed"),
    ],
)
def test_groups_of_several_learning_rates_are_refused_where_steps_are_measured(kind, rule, other):
    """Scaled group by group a direction need not lead downhill: rules would stall."""
    network, closure = problem()
    start = flat(network.parameters()).clone()
    groups = [{"params": network[0].parameters()}, {"params": network[2].parameters(), "lr": other}]
    optimizer = kind(groups, step_rule=rule)
    match = rf"must have one lr, got {other:g}, 1: .* requires_grad_\(False\), or use step_rule"
    with pytest.raises(ValueError, match=match):
        optimizer.step(closure)
    assert torch.equal(flat(network.parameters()), start)
    network[2].requires_grad_(False)  # frozen ones do not count
    optimizer.step(several(closure) if kind is hig.MultiHIG else closure)
    assert not torch.equal(flat(network.parameters()), start)


def several(closure):
    return lambda: [closure()]


def test_a_diagnosis_of_several_learning_rates_is_refused():
    network, closure = problem()
    groups = [{"params": network[0].parameters(), "lr": 0.5}, {"params": network[2].parameters()}]
    with pytest.raises(ValueError, match=r"must have one lr, got 0\.5, 1: .*hig\.diagnose"):
        hig.diagnose(groups, closure)


@pytest.mark.parametrize("route", ["svd", "gram"])
def test_rules_measure_the_step_along_all_groups(route):
    network, closure = problem()
    groups = [{"params": network[i].parameters()} for i in (0, 2, 4)]
    optimizer = hig.HIG(groups, step_rule="trust", rcond=1e-3, method=route)
    loss = float(optimizer.step(closure))
    # Along the true step the quadratic model is right to second order: a gain ratio near one.
    assert optimizer.report.gain_ratio == pytest.approx(1, abs=0.3)
    assert closure()[0].item() < loss


def test_frozen_parameters_stay():
    network, closure = problem()
    network[0].weight.requires_grad_(False)
    network[2].bias.requires_grad_(False)
    frozen = flat([network[0].weight, network[2].bias]).clone()
    moved = flat([network[0].bias, network[2].weight]).clone()
    hig.HIG(network.parameters(), step_rule="fixed").step(closure)
    assert torch.equal(flat([network[0].weight, network[2].bias]), frozen)
    assert not torch.equal(flat([network[0].bias, network[2].weight]), moved)


def test_schedulers_change_the_step():
    network, closure = problem()
    optimizer = hig.HIG(network.parameters(), lr=1.0, step_rule="fixed")
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.1)
    optimizer.step(closure)
    scheduler.step()
    expected = -0.1 * direction_of(network, closure)
    assert relative_error(step_of(optimizer, closure), expected) < 1e-8


def test_named_parameters_are_named_in_notes():
    network, inputs = build("batch norm")
    optimizer = hig.HIG(network.named_parameters(), step_rule="fixed")
    optimizer.step(least_squares(network, inputs))
    assert any("0.weight" in note for note in optimizer.report.notes)


def test_a_step_depends_on_nothing_but_its_inputs():
    state = torch.get_rng_state()
    steps = []
    for _ in range(2):
        network, closure = problem()
        torch.set_rng_state(state)
        steps.append(step_of(hig.HIG(network.parameters(), step_rule="trust"), closure))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(*steps)


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_a_parameter_given_twice_counts_once():
    network, closure = problem()
    expected = -direction_of(network, closure)
    parameters = list(network.parameters())
    optimizer = hig.HIG(parameters + parameters[:1], method="svd", step_rule="fixed")
    optimizer.step(closure)
    assert optimizer.report.columns == sum(p.numel() for p in parameters)
    network_again, _ = problem()
    change = flat(parameters) - flat(network_again.parameters())
    assert relative_error(change, expected) < 1e-9


@pytest.mark.parametrize("step_rule", ["fixed", "trust", "line_search"])
@pytest.mark.parametrize(
    "kind", [hig.HIG, hig.GaussNewton, hig.LevenbergMarquardt, hig.MultiHIG, hig.KroneckerHIG]
)
@pytest.mark.parametrize(
    ("dtype", "lr"), [(torch.float32, 3e38), (torch.float64, 1e308), (torch.float64, 1e200)]
)
def test_steps_too_large_for_the_dtype_leave_no_infinite_parameter(kind, step_rule, dtype, lr):
    network, closure = problem(dtype=dtype)
    with torch.no_grad():
        network[-1].weight.mul_(1e10)  # so that directions are large
    several = kind is hig.MultiHIG
    options = {} if kind is hig.KroneckerHIG else {"step_rule": step_rule}
    optimizer = kind(network.parameters(), lr=lr, **options)
    before = flat(network.parameters()).clone()
    try:
        optimizer.step((lambda: [closure()]) if several else closure)
    except hig.NonFiniteError:
        assert torch.equal(flat(network.parameters()), before)
    assert flat(network.parameters()).isfinite().all()


@pytest.mark.parametrize("kind", [hig.HIG, hig.GaussNewton, hig.KroneckerHIG])
def test_an_overflow_of_the_parameters_is_an_error(kind):
    network, closure = problem(dtype=torch.float32)
    before = [p.detach().clone() for p in network.parameters()]
    options = {} if kind is hig.KroneckerHIG else {"step_rule": "fixed"}
    options |= {"kappa": 1.0} if kind is hig.HIG else {}
    with torch.no_grad():
        network[-1].weight.mul_(1e3)
        before = [p.detach().clone() for p in network.parameters()]
    with pytest.raises(hig.NonFiniteError, match=r"a step of size .*; use a smaller lr"):
        kind(network.parameters(), lr=3e38, **options).step(closure)
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), before, strict=True))
