"""Networks and simulators in different precisions, and steps under autocast."""

import pytest
import torch
from torch import nn

import hig
from hig._torch.autograd_graph import coarsest_dtype, reachable_nodes
from tests.textbook import flat, relative_error, textbook_jacobian, textbook_power


def network_of(dtype):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2)).to(dtype)


def inputs_of(dtype):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(12, 3, generator=generator, dtype=torch.float64).to(dtype)


def simulate(state):
    for _ in range(20):
        state = state + 0.1 * torch.sin(state.flip(-1))
    return state


def under_autocast(network):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return simulate(network(inputs_of(torch.float32)).float())


CASES = {
    "coarse simulator": (
        torch.float64, lambda net: simulate(net(inputs_of(torch.float64)).float())
    ),
    "coarse in the middle": (
        torch.float64, lambda net: simulate(net(inputs_of(torch.float64)).float()).double()
    ),
    "fine simulator": (torch.float32, lambda net: simulate(net(inputs_of(torch.float32)).double())),
}  # fmt: skip


def closure_of(network, predict):
    def closure():
        prediction = predict(network)
        return (prediction - 1).square().sum(1).mean(), prediction

    return closure


@pytest.mark.parametrize(("dtype", "predict"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("engine", ["auto", "layerwise"])
def test_single_and_double_precision_go_layer_by_layer(dtype, predict, engine):
    network, exact = network_of(dtype), network_of(torch.float64)
    prediction = simulate(exact(inputs_of(torch.float64)))
    gradient = 2 * (prediction - 1).detach().flatten() / 12
    expected = textbook_power(
        textbook_jacobian(prediction, exact.parameters()), gradient, -0.5, 1e-2
    )
    before = flat(network.parameters())
    optimizer = hig.HIG(network.parameters(), rcond=1e-2, engine=engine, step_rule="fixed")
    optimizer.step(closure_of(network, predict))
    assert optimizer.report.engine == "layerwise"
    assert not optimizer.report.notes
    moved = (before - flat(network.parameters())).double()
    assert relative_error(moved, expected) < 1e-3


def coupled(predict):
    return lambda network: predict(network) - 1e-2 * predict(network).mean(0)


@pytest.mark.parametrize(("dtype", "predict"), CASES.values(), ids=CASES)
def test_samples_that_influence_one_another_are_seen(dtype, predict):
    network = network_of(dtype)
    closure = closure_of(network, coupled(predict))
    optimizer = hig.HIG(network.parameters(), rcond=1e-2, step_rule="fixed")
    optimizer.step(closure)
    assert optimizer.report.engine == "rows"
    assert "influence one another" in optimizer.report.notes[0]
    assert "torch.float" not in optimizer.report.notes[0]


def test_a_half_type_is_named():
    network = network_of(torch.float32)
    closure = closure_of(network, under_autocast)
    optimizer = hig.HIG(network.parameters(), rcond=1e-1, step_rule="fixed")
    optimizer.step(closure)
    assert optimizer.report.engine == "rows"
    (note,) = optimizer.report.notes
    assert "computed in torch.bfloat16" in note
    assert "influence" not in note
    with pytest.raises(hig.SampleDependenceError, match=r"computed in torch.bfloat16"):
        hig.HIG(network.parameters(), engine="layerwise", step_rule="fixed").step(closure)


class Rounds(torch.autograd.Function):
    """To another type and back, by a function of the user's."""

    @staticmethod
    def forward(ctx, x, dtype):
        ctx.dtype = dtype
        return x.to(dtype)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.double(), None


@pytest.mark.parametrize(
    ("compute", "expected"),
    [
        (lambda x: x.sin(), torch.float64),
        (lambda x: x.float().sin().double(), torch.float32),
        (lambda x: x.float().sin().bfloat16().double(), torch.bfloat16),
        (lambda x: x.to(torch.complex64).abs().double(), torch.float32),
        (lambda x: x.to(torch.complex64).to(torch.complex128).abs(), torch.float32),
        (lambda x: Rounds.apply(x, torch.float16).double(), torch.float16),
        (lambda x: x, torch.float64),
    ],
)
def test_the_coarsest_type(compute, expected):
    x = torch.ones(3, dtype=torch.float64, requires_grad=True)
    found = compute(x)
    assert coarsest_dtype(reachable_nodes(found), found.dtype) == expected


# -- a step inside of autocast ----------------------------------------------------------------


def plain_closure(network, dtype=torch.float32):
    x = inputs_of(dtype)

    def closure():
        prediction = network(x).to(dtype)
        return (prediction - 1).square().sum(1).mean(), prediction

    return closure


STEPS = {
    "fixed": lambda p: hig.HIG(p, rcond=0.1, engine="rows", step_rule="fixed"),
    "lanczos": lambda p: hig.HIG(p, rcond=0.1, engine="rows", method="lanczos", step_rule="trust"),
    "trust": lambda p: hig.HIG(p, rcond=0.1, engine="rows", step_rule="trust"),
    "levenberg": lambda p: hig.LevenbergMarquardt(
        p, damping=1.0, engine="rows", lr=0.5, step_rule="fixed"
    ),
}


@pytest.mark.parametrize("make", STEPS.values(), ids=STEPS)
def test_the_closure_alone_is_under_autocast(make):
    results = []
    for outside in (False, True):
        network = network_of(torch.float32)
        optimizer, closure = make(network.parameters()), plain_closure(network)

        def inside(closure=closure):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return closure()

        for _ in range(3):
            if outside:
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    optimizer.step(closure)
            else:
                optimizer.step(inside)
        results.append(flat(network.parameters()))
    assert torch.equal(*results)


def test_trials_under_autocast_see_the_parameters_that_are_tried():
    """Autocast keeps what it has cast until its context ends."""
    network = network_of(torch.float32)
    optimizer, closure = (
        hig.LevenbergMarquardt(network.parameters(), lr=0.5, step_rule="fixed"),
        plain_closure(network),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(3):
            optimizer.step(closure)
            assert optimizer.report.gain_ratio > 0.2


def test_record_under_autocast():
    results = []
    for outside in (False, True):
        network = network_of(torch.float32)
        closure = plain_closure(network)
        with hig.record(network.parameters()) as record, torch.autocast("cpu", torch.bfloat16):
            loss, prediction = closure()
        with torch.autocast("cpu", torch.bfloat16, enabled=outside):
            record.backward(loss, prediction, filter=hig.HalfInverse(rcond=0.1), engine="rows")
        results.append(flat(p.grad for p in network.parameters()))
    assert torch.equal(*results)
