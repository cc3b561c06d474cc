"""Gradients of several losses: every way gives the same matrix."""

import pytest
import torch
from torch import nn

from hig.conflictfree import loss_gradients
from hig.conflictfree._loss_gradients import METHODS, _fewer_launches
from tests.textbook import relative_error, textbook_jacobian

METHOD = pytest.mark.parametrize("method", METHODS)


def heads(losses=3, dtype=torch.float64):
    """A trunk with a head per loss."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    network = nn.ModuleList([trunk, *(nn.Linear(8, 1) for _ in range(losses))]).to(dtype)
    features = network[0](torch.randn(5, 2, dtype=dtype))
    return network, [head(features).square().mean() for head in network[1:]]


def groups(losses=3):
    """A network evaluated on other points for each loss."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    points = torch.randn(losses, 5, 2, dtype=torch.float64)
    return network, [network(x).square().mean() for x in points]


@METHOD
@pytest.mark.parametrize("problem", [heads, groups])
@pytest.mark.parametrize("losses", [1, 2, 4])
def test_one_row_per_loss(problem, losses, method):
    network, values = problem(losses)
    expected = textbook_jacobian(torch.stack(values), network.parameters())
    for given in (network, network.parameters(), list(network.parameters())):
        found = loss_gradients(values, given, method=method, retain_graph=True)
        assert relative_error(found, expected) < 1e-14
        assert found.dtype == torch.float64
        assert not found.requires_grad
    assert all(p.grad is None for p in network.parameters())


@METHOD
def test_a_tensor_of_losses(method):
    network, values = heads()
    found = loss_gradients(torch.stack(values), network, method=method, retain_graph=True)
    expected = loss_gradients(values, network)
    assert relative_error(found, expected) < 1e-14
    network, values = heads()
    shaped = [value.reshape(1, 1) for value in values]
    assert relative_error(loss_gradients(shaped, network, method=method), expected) < 1e-14
    twice = loss_gradients([network[1].weight.sum()] * 2, network, method=method)
    assert torch.equal(twice[0], twice[1])


@METHOD
def test_unreached_frozen_and_outside_parameters(method):
    network, scale, unused = (
        nn.Linear(2, 1),
        nn.Parameter(torch.ones(3)),
        nn.Parameter(torch.ones(2)),
    )
    network.bias.requires_grad_(False)
    losses = [network(torch.ones(1, 2)).sum(), scale.sum() * 2]
    found = loss_gradients(losses, [*network.parameters(), unused, scale], method=method)
    assert torch.equal(found, torch.tensor([[1.0, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 2, 2, 2]]))


@METHOD
def test_a_graph_that_refuses_batches(method):
    class Refusing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, cotangent):
            return cotangent * 2 * (cotangent.sum().item() < 1e9)

    parameter = nn.Parameter(torch.arange(3.0))
    inner = Refusing.apply(parameter * 1)
    found = loss_gradients([inner.sum(), inner.square().sum()], [parameter], method=method)
    assert torch.equal(found, torch.tensor([[2.0, 2, 2], [0, 4, 8]]))


@METHOD
def test_a_broken_graph_says_so(method):
    parameter = nn.Parameter(torch.ones(3))
    inner = parameter.exp()
    losses = [inner.square().sum(), inner.sum()]
    inner.data  # noqa: B018
    with torch.no_grad():
        inner.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss_gradients(losses, [parameter], method=method)


@METHOD
def test_graphs_are_kept_on_request(method):
    network, losses = heads()
    first = loss_gradients(losses, network, method=method, retain_graph=True)
    assert torch.equal(first, loss_gradients(losses, network, method=method))


def test_graphs_are_freed():
    network, losses = heads()
    loss_gradients(losses, network, method="separate")
    with pytest.raises(RuntimeError, match="second time"):
        loss_gradients(losses, network, method="separate")


@pytest.mark.parametrize(
    ("problem", "losses", "expected"),
    [
        (heads, 1, False),
        (heads, 4, True),
        (heads, 10, True),
        (groups, 2, False),
        (groups, 9, False),
    ],
)
def test_shared_graphs_are_distinguished_from_separate_ones(problem, losses, expected):
    assert _fewer_launches(problem(losses)[1]) == expected


@pytest.mark.cuda
@METHOD
def test_on_a_gpu(method):
    network, _ = heads(dtype=torch.float32)
    network = network.cuda()
    features = network[0](torch.randn(5, 2).cuda())
    losses = [head(features).square().mean() for head in network[1:]]
    found = loss_gradients(losses, network, method=method, retain_graph=True)
    assert found.is_cuda
    expected = textbook_jacobian(torch.stack(losses), network.parameters())
    assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize(
    ("losses", "error", "match"),
    [
        ([], ValueError, "at least one loss"),
        ([1.0], TypeError, "loss 0 must be a real floating-point tensor, got float"),
        ([torch.ones(2, requires_grad=True)], ValueError, r"scalar, got shape \(2,\)"),
        ([torch.ones(())], ValueError, "loss 0 carries no gradient graph"),
    ],
)
def test_what_is_refused(losses, error, match):
    network = nn.Linear(1, 1)
    with pytest.raises(error, match=match):
        loss_gradients(losses, network)
    _, values = heads()
    with pytest.raises(ValueError, match="method must be one of"):
        loss_gradients(values, network, method="fast")
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        loss_gradients(values, [torch.ones(2)])


def test_graphs_of_their_own_are_freed():
    """Only graphs that a later loss needs are kept."""
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    inputs = torch.randn(3, 2)
    apart = [first(inputs).square().sum(), second(inputs).square().sum()]
    loss_gradients(apart, [*first.parameters(), *second.parameters()])
    for loss in apart:
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()
    hidden = first(inputs).square()
    shared = [hidden.sum(), (2 * hidden).sum(), second(inputs).square().sum()]
    loss_gradients(shared, [*first.parameters(), *second.parameters()])  # does not raise
