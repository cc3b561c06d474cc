"""From several losses to ``.grad``."""

import pytest
import torch
from torch import nn

import hig
from hig.conflictfree import (
    ConFIGOperator,
    EqualWeight,
    IMTLGOperator,
    LatestLossRecorder,
    PCGradOperator,
    PseudoMomentumOperator,
    backward,
    get_gradient_vector,
    loss_gradients,
)
from tests.hig.conflictfree.test_loss_gradients import METHOD, groups, heads
from tests.textbook import flat, relative_error


@METHOD
@pytest.mark.parametrize("problem", [heads, groups])
@pytest.mark.parametrize("kind", [ConFIGOperator, PCGradOperator, IMTLGOperator])
def test_the_direction_is_added_to_grad(kind, problem, method):
    network, losses = problem()
    expected = kind()(loss_gradients(losses, network, retain_graph=True))
    operator = kind()
    backward(losses, network, operator, method=method, retain_graph=True)
    assert relative_error(flat(p.grad for p in network.parameters()), expected) < 1e-12
    assert len(operator.report.cosines) == 3
    backward(losses, network.parameters(), operator, method=method)
    assert relative_error(flat(p.grad for p in network.parameters()), 2 * expected) < 1e-12


def test_config_is_the_default_and_a_plain_function_will_do():
    network, losses = heads()
    matrix = loss_gradients(losses, network, retain_graph=True)
    backward(losses, network, retain_graph=True)
    assert torch.equal(flat(p.grad for p in network.parameters()), ConFIGOperator()(matrix))
    network.zero_grad()
    backward(losses, network, lambda rows: rows.sum(0))
    assert torch.equal(flat(p.grad for p in network.parameters()), matrix.sum(0))


@METHOD
def test_parameters_that_some_losses_or_none_reach(method):
    network, unused, scale = (
        nn.Linear(2, 1),
        nn.Parameter(torch.ones(2)),
        nn.Parameter(torch.ones(1)),
    )
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    losses = [network(torch.ones(1, 2)).square().sum(), (network.weight * scale).sum()]
    backward(losses, [*network.parameters(), unused, frozen, scale], method=method)
    assert unused.grad is None
    assert frozen.grad is None
    assert scale.grad.shape == (1,)
    assert network.bias.grad is not None


@METHOD
@pytest.mark.parametrize("operator", [ConFIGOperator(), lambda rows: rows.sum(0)])
def test_a_non_finite_gradient_leaves_grad_alone(operator, method):
    network = nn.Linear(2, 1)
    network.weight.grad = torch.ones(1, 2)
    losses = [network(torch.ones(1, 2)).sum(), network.weight.sum() * float("nan")]
    with pytest.raises(hig.NonFiniteError, match=r"loss .*1 \(2 entries\) of 3"):
        backward(losses, network, operator, method=method)
    assert torch.equal(network.weight.grad, torch.ones(1, 2))
    assert network.bias.grad is None


def test_losses_reach_the_operator_without_their_graph():
    seen = []

    class Weights(EqualWeight):
        def get_weights(self, gradients, losses=None, device=None):
            seen.extend(losses)
            return super().get_weights(gradients, losses, device)

    network, losses = heads()
    backward(iter(losses), network, ConFIGOperator(Weights()))
    assert seen == losses
    assert not any(loss.requires_grad for loss in seen)


@pytest.mark.parametrize("recorder", [None, LatestLossRecorder(3)])
def test_an_operator_with_a_memory_sees_all_losses(recorder):
    operator = PseudoMomentumOperator(3, loss_recorder=recorder)
    other = PseudoMomentumOperator(3)
    for _ in range(2):
        network, losses = heads()
        matrix = loss_gradients(losses, network, retain_graph=True)
        backward(losses, network, operator)
        expected = other.calculate_gradient(range(3), matrix)
        assert torch.equal(flat(p.grad for p in network.parameters()), expected)
    if recorder:
        assert recorder.current_losses == losses


def test_an_operator_that_returns_something_else():
    network, losses = heads()
    with pytest.raises(ValueError, match=r"must map \(3, \d+\) to one of shape"):
        backward(losses, network, lambda rows: rows)
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize("given", [1, 3])
def test_a_memory_for_another_number_of_losses_is_refused(given):
    network, losses = heads()
    with pytest.raises(ValueError, match=rf"for 2 losses, got {given}; .*Operator\({given}\)"):
        backward(losses[:given], network, PseudoMomentumOperator(2))
    assert all(p.grad is None for p in network.parameters())


@METHOD
def test_losses_of_another_network_are_refused(method):
    network, losses = heads()
    with pytest.raises(ValueError, match="no loss depends on any of the 2 parameters"):
        backward(losses, nn.Linear(2, 2).double(), method=method)
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize(
    ("of", "match"),
    [
        (lambda losses: losses[0], r"got a tensor of shape \(\); pass a list"),
        (lambda losses: dict(enumerate(losses)), r"got dict; pass list\(losses.values\(\)\)"),
        (lambda losses: 1.0, "must be a list of scalars, got 1.0"),
        (lambda losses: [float(loss.detach()) for loss in losses], "got float; compute it from"),
    ],
)
def test_what_is_no_list_of_losses(of, match):
    network, losses = heads()
    with pytest.raises(TypeError, match=match):
        backward(of(losses), network)


def test_what_is_no_operator():
    network, losses = heads()
    with pytest.raises(TypeError, match="operator must be an object"):
        backward(losses, network, ConFIGOperator)
    assert all(p.grad is None for p in network.parameters())


def test_nothing_that_requires_a_gradient():
    network = nn.Linear(2, 2)
    losses = list(network(torch.ones(2)))
    parameters = network.parameters()
    assert len(list(parameters)) == 2
    with pytest.raises(ValueError, match=r"generator such as network.parameters"):
        backward(losses, parameters)
    network.requires_grad_(False)
    with pytest.raises(ValueError, match=r"all 2 are frozen; call requires_grad_"):
        backward(list(network(torch.ones(2))), network)
    with pytest.raises(TypeError, match="a module or tensors, got 3"):
        backward(losses, 3)


@pytest.mark.cuda
@METHOD
@pytest.mark.parametrize("kind", [ConFIGOperator, PCGradOperator, IMTLGOperator])
def test_the_same_on_a_gpu(kind, method):
    results = []
    for device in ("cpu", "cuda"):
        network, _ = groups()
        network = network.to(device)
        torch.manual_seed(1)
        points = torch.randn(3, 5, 2, dtype=torch.float64).to(device)
        operator = kind()
        backward([network(x).square().mean() for x in points], network, operator, method=method)
        assert all(p.grad.device.type == device for p in network.parameters())
        results.append(flat(p.grad for p in network.parameters()).cpu())
    assert relative_error(*results) < 1e-9


def test_sparse_gradients_of_embeddings():
    table, head = nn.Embedding(5, 2, sparse=True), nn.Linear(2, 1)
    network = nn.Sequential(table, head)
    losses = [network(torch.tensor([k])).square().sum() for k in (1, 3)]
    backward(losses, network, PCGradOperator(), retain_graph=True)
    found = get_gradient_vector(network)
    backward(losses, network, PCGradOperator())
    assert torch.allclose(get_gradient_vector(network), 2 * found)
    assert table.weight.grad.layout == torch.strided
