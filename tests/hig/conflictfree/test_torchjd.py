"""TorchJD: its aggregators in our plumbing, our operators in its own, and the same numbers."""

import pytest
import torch
from torch import nn
from torchjd import aggregation
from torchjd.autojac import backward as jacobian_backward
from torchjd.autojac import jac_to_grad, mtl_backward

from hig.conflictfree import (
    AlternatingBackward,
    ConFIGOperator,
    IMTLGOperator,
    PCGradOperator,
    PseudoMomentumOperator,
    SeparateMomentumOperator,
    backward,
    loss_gradients,
)
from tests.hig.conflictfree.matrices import STRUCTURES, random_matrix
from tests.hig.conflictfree.test_loss_gradients import heads
from tests.textbook import flat, relative_error

OPERATORS = [ConFIGOperator, PCGradOperator, IMTLGOperator]
AGGREGATORS = [
    aggregation.ConFIG,
    aggregation.PCGrad,
    aggregation.IMTLG,
    aggregation.AlignedMTL,
    aggregation.MGDA,
    aggregation.Mean,
    aggregation.Sum,
]


@pytest.mark.parametrize("shape", [(1, 9), (2, 5), (3, 40), (8, 300)])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize(
    ("operator", "aggregator"),
    [
        (ConFIGOperator(), aggregation.ConFIG()),
        (ConFIGOperator(use_least_square=False), aggregation.ConFIG()),
        (IMTLGOperator(), aggregation.IMTLG()),
    ],
)
def test_the_same_numbers(operator, aggregator, structure, shape):
    rows = STRUCTURES[structure](shape)
    if shape[0] == 8 and isinstance(operator, IMTLGOperator) and structure == "badly scaled":
        rows = rows / rows.norm(dim=1, keepdim=True).sqrt()  # its Gram matrix is not scaled
    assert relative_error(operator(rows), aggregator(rows)) < 1e-6


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("seed", range(5))
def test_pcgrad_of_two_losses(structure, seed):
    """With more, theirs takes them in random order."""
    rows = STRUCTURES[structure]((2, 30), seed)
    assert relative_error(PCGradOperator()(rows), aggregation.PCGrad()(rows)) < 1e-6


@pytest.mark.parametrize("kind", AGGREGATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_aggregators_in_backward(kind, dtype):
    network, losses = heads(2, dtype)
    expected = kind()(loss_gradients(losses, network, retain_graph=True))
    backward(losses, network, kind())
    assert torch.equal(flat(p.grad for p in network.parameters()), expected)


@pytest.mark.parametrize("kind", AGGREGATORS)
@pytest.mark.parametrize("momentum", [PseudoMomentumOperator, SeparateMomentumOperator])
def test_aggregators_with_a_memory(momentum, kind):
    operator = momentum(2, gradient_operator=kind())
    for step, gradient in enumerate(random_matrix((6, 9))):
        direction = operator.calculate_gradient(step % 2, gradient)
    assert direction.dtype == torch.float64
    assert torch.isfinite(direction).all()
    assert direction.any()
    assert operator.report is None
    copy = momentum(2, gradient_operator=kind())
    copy.load_state_dict(operator.state_dict())
    assert torch.equal(torch.stack(copy.m), torch.stack(operator.m))
    network = nn.Linear(2, 1)
    alternating = AlternatingBackward(network, 2, momentum(2, gradient_operator=kind()))
    for _ in range(2):
        alternating.backward(network(torch.ones(1, 2)).square().sum())
    assert network.weight.grad.any()


@pytest.mark.parametrize("kind", OPERATORS)
def test_operators_in_their_backward(kind):
    network, losses = heads()
    expected = kind()(loss_gradients(losses, network, retain_graph=True))
    operator = kind()
    jacobian_backward(losses, inputs=list(network.parameters()))
    jac_to_grad(list(network.parameters()), operator)
    assert relative_error(flat(p.grad for p in network.parameters()), expected) < 1e-12
    assert len(operator.report.cosines) == 3


@pytest.mark.parametrize("kind", OPERATORS)
def test_operators_in_their_multi_task_backward(kind):
    torch.manual_seed(0)
    trunk, first, second = nn.Linear(3, 4), nn.Linear(4, 1), nn.Linear(4, 1)
    features = trunk(torch.randn(5, 3))
    losses = [head(features.tanh()).square().mean() for head in (first, second)]
    expected = kind()(loss_gradients(losses, trunk, retain_graph=True))
    mtl_backward(losses, features=features)
    jac_to_grad(list(trunk.parameters()), kind())
    assert relative_error(flat(p.grad for p in trunk.parameters()), expected) < 1e-5
    assert first.weight.grad is not None
