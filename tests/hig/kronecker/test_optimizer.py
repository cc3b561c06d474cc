"""The Kronecker step: exact where the factorisation is, Adam's elsewhere, and well-behaved."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

import hig
from tests.hig.networks import build, least_squares
from tests.textbook import flat, relative_error, step_of, textbook_jacobian

DOUBLE = {"dtype": torch.float64}
EXACT = {"damping": 1e-14, "graft": None, "betas": (0.0, 0.0)}


def problem(name="mlp", dtype=torch.float64):
    network, inputs = build(name, dtype)
    return network, least_squares(network, inputs)


def linear_physics(bias, samples=8):
    """Prediction C (W x + b), with probes U of Uᵀ U = samples: there S ⊗ A is JᵀJ."""
    torch.manual_seed(0)
    network = nn.Linear(3, 2, bias=bias).double()
    physics = torch.randn(4, 2, **DOUBLE)
    inputs, target = torch.randn(samples, 3, **DOUBLE), torch.randn(samples, 4, **DOUBLE)
    orthogonal = torch.linalg.qr(torch.randn(samples, 4, **DOUBLE)).Q * samples**0.5

    def closure():
        prediction = network(inputs) @ physics.T
        return (prediction - target).pow(4).sum(), prediction

    return network, closure, lambda _: orthogonal


def dense_direction(network, closure, kappa):
    """(JᵀJ)^((kappa - 1) / 2) Jᵀ g."""
    loss, prediction = closure()
    (gradient,) = torch.autograd.grad(loss, prediction, retain_graph=True)
    jacobian = textbook_jacobian(prediction, network.parameters())
    values, vectors = torch.linalg.eigh(jacobian.T @ jacobian)
    power = vectors @ torch.diag(values ** ((kappa - 1) / 2)) @ vectors.T
    return power @ (jacobian.T @ gradient.flatten())


@pytest.mark.parametrize("kappa", [-1.0, -0.5, 0.0, 1.0])
@pytest.mark.parametrize("bias", [False, True])
def test_exact_where_the_factorisation_is(kappa, bias):
    network, closure, root = linear_physics(bias)
    expected = -0.3 * dense_direction(network, closure, kappa)
    optimizer = hig.KroneckerHIG(
        network.parameters(), lr=0.3, kappa=kappa, metric_root=root, **EXACT
    )
    assert relative_error(step_of(optimizer, closure), expected) < 1e-9


@pytest.mark.parametrize("name", ["mlp", "conv2d", "feedback", "shared", "depthwise", "tied"])
@pytest.mark.parametrize("graft", ["global", "layer"])
def test_steps_have_the_norm_of_adam(name, graft):
    network, closure = problem(name)
    again, closure_again = problem(name)
    adam = torch.optim.Adam(again.parameters(), lr=0.01)
    optimizer = hig.KroneckerHIG(network.parameters(), lr=0.01, graft=graft)
    for _ in range(3):
        again.load_state_dict(network.state_dict())  # both see the same gradients
        before = flat(again.parameters())
        adam.zero_grad()
        closure_again()[0].backward()
        adam.step()
        expected = float((flat(again.parameters()) - before).norm())
        assert float(step_of(optimizer, closure).norm()) == pytest.approx(expected, rel=1e-9)
        assert optimizer.report.step_norm == pytest.approx(expected / 0.01, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "left"), [("layer norm", ["1.weight"]), ("viscosity", ["viscosity"])]
)
def test_other_parameters_take_the_steps_of_adam(name, left):
    network, closure = problem(name)
    optimizer = hig.KroneckerHIG(network.parameters(), lr=0.01, eps=1e-6)
    others = {n: p for n, p in network.named_parameters() if n in left}
    twins = {n: p.detach().clone().requires_grad_() for n, p in others.items()}
    adam = torch.optim.Adam(twins.values(), lr=0.01, eps=1e-6)
    for _ in range(4):
        gradients = torch.autograd.grad(closure()[0], others.values())
        for n, g in zip(others, gradients, strict=True):
            twins[n].grad = g
        adam.step()
        optimizer.step(closure)
        for n, p in others.items():
            torch.testing.assert_close(p.detach(), twins[n].detach(), rtol=1e-12, atol=0)
    assert optimizer.report.others == len(others)


def test_when_factors_are_updated_and_decomposed():
    network, closure = problem()
    optimizer = hig.KroneckerHIG(network.parameters(), decay=0.75, probe_every=3, refresh_every=6)
    seen = []
    for _ in range(13):
        optimizer.step(closure)
        seen.append((optimizer.report.probed, optimizer.report.refreshed))
    assert [i for i, (probed, _) in enumerate(seen) if probed] == [0, 1, 2, 3, 6, 9, 12]
    # After 1, 2, 4, ... steps; where factors come only every three, when they do.
    assert [i for i, (_, refreshed) in enumerate(seen) if refreshed] == [0, 1, 2, 6, 12]


def test_factors_are_running_means_without_bias_to_zero():
    network, closure = problem("narrow")
    optimizer = hig.KroneckerHIG(network.parameters(), lr=0.0, decay=0.5, graft=None)
    optimizer.step(closure)
    weight = network[0].weight
    once = {k: optimizer.state[weight][k].clone() for k in ("inputs", "scale")}
    optimizer.step(closure)
    state = optimizer.state[weight]
    torch.testing.assert_close(state["inputs"] / 0.75, once["inputs"] / 0.5)  # lr 0: same inputs
    assert state["updates"] == 2


def test_freezing_and_thawing_between_steps():
    network, closure = problem()
    optimizer = hig.KroneckerHIG(network.parameters(), lr=0.01, decay=0.0, probe_every=4)
    optimizer.step(closure)
    bias = network[2].bias
    bias.requires_grad_(False)
    before = bias.clone()
    for _ in range(4):  # the last of these makes factors without the bias
        optimizer.step(closure)
    assert torch.equal(bias, before)
    assert optimizer.state[network[2].weight]["inputs"].shape == (1, 8, 8)
    bias.requires_grad_(True)
    for _ in range(4):
        optimizer.step(closure)
    assert not torch.equal(bias, before)
    assert optimizer.state[network[2].weight]["inputs"].shape == (1, 9, 9)


def test_groups_have_their_own_learning_rate():
    network, closure = problem()
    start = copy.deepcopy(network.state_dict())
    whole = step_of(hig.KroneckerHIG(network.parameters(), lr=0.01), closure)
    network.load_state_dict(start)
    groups = [
        {"params": network[0].parameters(), "lr": 0.02},
        {"params": [network[2].weight], "lr": 0.0},
        {"params": [network[2].bias, *network[4].parameters()]},
    ]
    optimizer = hig.KroneckerHIG(groups, lr=0.01)
    parts = step_of(optimizer, closure)
    factors = [2.0] * 40 + [0.0] * 64 + [1.0] * 35
    torch.testing.assert_close(parts, whole * torch.tensor(factors, **DOUBLE))


def test_a_parameter_of_a_skipped_branch_waits():
    torch.manual_seed(0)
    first, second = nn.Linear(3, 2), nn.Linear(3, 2)
    inputs = torch.randn(4, 3)
    optimizer = hig.KroneckerHIG([*first.parameters(), *second.parameters()], lr=0.1)

    def closure_of(layer):
        def closure():
            prediction = layer(inputs)
            return prediction.square().sum(), prediction

        return closure

    before = flat(second.parameters())
    optimizer.step(closure_of(first))
    assert torch.equal(flat(second.parameters()), before)
    optimizer.step(closure_of(second))
    assert not torch.equal(flat(second.parameters()), before)
    assert optimizer.report.layers == 1


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"damping": 0.0}, "damping must be positive and finite, got 0.0"),
        ({"graft": "adam"}, "graft must be one of .*'global'.*, got 'adam'"),
        ({"probe_every": 0}, "probe_every must be at least 1, got 0; try 10"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\] must be in \[0, 1\), got 1.0; \(0.9, 0.999\)"),
    ],
)
def test_options_out_of_range(options, text):
    with pytest.raises(ValueError, match=text):
        hig.KroneckerHIG(nn.Linear(2, 2).parameters(), **options)


def test_closures_that_do_not_fit():
    network, closure = problem()
    optimizer = hig.KroneckerHIG(network.parameters())
    other, other_closure = build("narrow")[0], problem("narrow")[1]
    with pytest.raises(ValueError, match="depends on none of the parameters"):
        hig.KroneckerHIG(other.parameters()).step(other_closure)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="none of the optimizer's parameters requires a gradient"):
        optimizer.step(closure)


def test_sparse_parameters_are_refused():
    with pytest.raises(TypeError, match=r"sparse_coo; make it one with .to_dense\(\)"):
        hig.KroneckerHIG([torch.eye(2).to_sparse().requires_grad_()])


def test_a_network_that_the_closure_does_not_initialize():
    elsewhere = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="frozen or uninitialized after the closure"):
        hig.KroneckerHIG(nn.LazyLinear(3).parameters()).step(
            lambda: (2 * elsewhere.sum(), elsewhere)
        )


def test_no_graph_outlives_a_step_without_layers():
    """The reasons must not refer to it, nor a cycle: the garbage collector is disabled."""
    scale, inputs, graphs = nn.Parameter(torch.ones(3)), torch.randn(5, 3), []
    optimizer = hig.KroneckerHIG([scale], decay=0.0)

    class Token:
        """Lives as long as the graph."""

    class Marked(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.token = Token()
            graphs.append(weakref.ref(ctx.token))
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    def closure():
        prediction = Marked.apply(inputs * scale)
        return prediction.square().sum(), prediction

    gc.collect()
    gc.disable()
    try:
        with pytest.warns(UserWarning, match="found no layer"):
            optimizer.step(closure)
        optimizer.step(closure)
        assert [graph() for graph in graphs] == [None, None]
    finally:
        gc.enable()
