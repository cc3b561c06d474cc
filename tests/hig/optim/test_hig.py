"""HIG and Gauss-Newton: the filtered step against the textbook, and the training with it."""

import pytest
import torch
from torch import nn

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


def test_gauss_newton_is_the_pseudo_inverse():
    network, closure = problem()
    expected = -0.3 * direction_of(network, closure, kappa=-1.0)
    optimizer = hig.GaussNewton(network.parameters(), lr=0.3, step_rule="fixed")
    assert relative_error(step_of(optimizer, closure), expected) < 1e-9


@pytest.mark.parametrize("step_rule", ["fixed", "trust", "line_search"])
@pytest.mark.parametrize("kind", [hig.HIG, hig.GaussNewton, hig.LevenbergMarquardt])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_lowers_the_loss(kind, step_rule, dtype):
    network, closure = problem(dtype=dtype)
    lr = 0.5 if step_rule == "fixed" else 1.0
    options = {} if kind is hig.LevenbergMarquardt else {"rcond": 1e-3}
    optimizer = kind(network.parameters(), lr=lr, step_rule=step_rule, **options)
    losses = [float(optimizer.step(closure)) for _ in range(30)]
    assert losses[-1] < 0.05 * losses[0]
    assert all(p.dtype == dtype for p in network.parameters())


def test_an_all_zero_jacobian_gives_a_zero_step():
    network = nn.Linear(3, 2).double()

    def closure():
        prediction = 0 * network(torch.ones(4, 3).double())
        return (prediction - 1).square().mean(), prediction

    for options in ({"step_rule": "fixed"}, {}, {"method": "gram"}, {"step_rule": "line_search"}):
        optimizer = hig.HIG(network.parameters(), **options)
        assert not step_of(optimizer, closure).any()
        assert optimizer.report.rank == 0


@pytest.mark.parametrize("build", [hig.HIG, hig.GaussNewton])
@pytest.mark.parametrize("step_rule", ["fixed", "trust", "line_search"])
def test_an_automatic_cut_off_is_reported_and_is_that_number(build, step_rule):
    torch.manual_seed(0)
    inputs, scales = torch.randn(8, 3), torch.tensor([1.0, 1e-3, 1e-9])
    rcond, steps = "auto", []
    for _ in range(2):
        torch.manual_seed(1)
        network = nn.Linear(3, 3)

        def closure(network=network):
            prediction = network(inputs) * scales
            return (prediction - 1).square().sum(1).mean(), prediction

        optimizer = build(network.parameters(), rcond=rcond, step_rule=step_rule)
        optimizer.step(closure)
        rcond = optimizer.report.rcond
        assert optimizer.report.rank == 8
        steps.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    assert torch.equal(*steps)


@pytest.mark.parametrize("kind", [hig.HIG, hig.GaussNewton])
def test_without_arguments_steps_are_measured_and_the_cut_off_is_found(kind):
    def moved(**options):
        network, inputs = build("mlp")
        optimizer = kind(network.parameters(), **options)
        for _ in range(3):
            optimizer.step(least_squares(network, inputs))
        return flat(network.parameters())

    given = moved(lr=1.0, rcond="auto", step_rule="trust")
    assert torch.equal(moved(), given)
    assert not torch.equal(moved(step_rule="fixed"), given)


@pytest.mark.parametrize("kind", [hig.HIG, hig.GaussNewton, hig.LevenbergMarquardt])
@pytest.mark.parametrize("place", ["argument", "group", "nowhere"])
def test_a_learning_rate_alone_is_one_of_the_fixed_rule(kind, place):
    """As in published settings, where it is in units of the loss."""
    lr = 0.01

    def moved(**options):
        network, inputs = build("mlp")
        params = list(network.parameters())
        if place == "group":
            params = [{"params": params, "lr": lr}]
        elif place == "argument":
            options["lr"] = lr
        optimizer = kind(params, rcond=1e-3, **options)
        optimizer.step(least_squares(network, inputs))
        return flat(network.parameters())

    assert torch.equal(moved(), moved(step_rule="trust" if place == "nowhere" else "fixed"))
    assert not torch.equal(moved(step_rule="trust"), moved(step_rule="fixed"))


def test_the_cut_off_follows_the_coarsest_precision():
    """Also that of a network in a simulator of a finer one; it never cuts more than 1e-2."""
    torch.manual_seed(0)
    rconds = []
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        network, inputs = nn.Linear(3, 2).to(dtype), torch.randn(8, 3).to(dtype)

        def closure(network=network, inputs=inputs):
            prediction = network(inputs).double()
            return (prediction - 1).square().sum(1).mean(), prediction

        optimizer = hig.HIG(network.parameters(), engine="rows")
        optimizer.step(closure)
        rconds.append(optimizer.report.rcond)
    assert rconds[0] < 1e-6 < rconds[1] < 1e-4 and rconds[2] == 1e-2
