"""What gradients may be like, and the surroundings in which operators are called."""

import copy
import pickle

import pytest
import torch
from torch import nn

from hig.conflictfree import (
    ConFIGOperator,
    IMTLGOperator,
    PCGradOperator,
    PseudoMomentumOperator,
    SeparateMomentumOperator,
    backward,
    get_gradient_vector,
)
from hig.conflictfree._gradient_matrix import CHUNK_ENTRIES
from tests.hig.conflictfree.matrices import random_matrix
from tests.textbook import relative_error

OPERATORS = pytest.mark.parametrize("kind", [ConFIGOperator, PCGradOperator, IMTLGOperator])
MEMORIES = pytest.mark.parametrize("kind", [PseudoMomentumOperator, SeparateMomentumOperator])
SHAPES = [(1, 9), (2, 9), (3, 9), (5, 9), (2, CHUNK_ENTRIES), (5, CHUNK_ENTRIES)]


@OPERATORS
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_form_gives_the_same(kind, shape, dtype):
    rows = random_matrix(shape, dtype=dtype)
    expected = kind().calculate_gradient(rows.double())
    before = rows.clone()
    rounding = 64 * torch.finfo(torch.float64).eps + torch.finfo(dtype).eps  # of Gram and result
    columns = rows.T.contiguous()
    for grads in (
        rows, list(rows), tuple(rows), iter(rows), columns.T, list(columns.T),
        [row.clone().requires_grad_() for row in rows], rows.clone().requires_grad_(),
        [nn.Parameter(row) for row in rows],
    ):  # fmt: skip
        found = kind().calculate_gradient(grads)
        assert found.dtype == dtype
        assert not found.requires_grad
        assert found.is_contiguous()
        assert relative_error(found.double(), expected) < rounding
        found.zero_()  # the direction is no window on the gradients
    assert torch.equal(rows, before)


@OPERATORS
@pytest.mark.parametrize("shape", [(2, CHUNK_ENTRIES), (3, 9)])
def test_a_sum_without_conflict_is_right_to_rounding(kind, shape):
    """The shortest way of PCGrad: no partial sum is longer than the whole."""
    rows = random_matrix(shape, dtype=torch.float32).abs()
    found = PCGradOperator().calculate_gradient(list(rows))
    assert relative_error(found.double(), rows.double().sum(0)) < torch.finfo(torch.float32).eps


@OPERATORS
def test_gradients_of_two_dtypes(kind):
    rows = random_matrix((3, 9))
    found = kind().calculate_gradient([rows[0], rows[1].float().double(), rows[2].float()])
    assert found.dtype == torch.float64


@OPERATORS
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_modes(kind, mode):
    rows = random_matrix((3, 9))
    with mode():
        found = kind().calculate_gradient(rows)
    assert torch.equal(found, kind().calculate_gradient(rows))


@OPERATORS
@pytest.mark.parametrize("shape", SHAPES)
def test_the_default_device_and_dtype_do_not_matter(kind, shape):
    rows = random_matrix(shape, dtype=torch.float32)
    expected = kind().calculate_gradient(rows)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            for grads in (rows, list(rows)):
                assert torch.equal(kind().calculate_gradient(grads), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@OPERATORS
def test_autocast_does_not_matter(kind):
    rows = random_matrix((5, 300), dtype=torch.float32)
    expected = kind().calculate_gradient(rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(kind().calculate_gradient(rows), expected)


@OPERATORS
def test_copies_of_operators(kind):
    rows, operator = random_matrix((3, 9)), kind()
    expected = operator.calculate_gradient(rows)
    copies = [copy.copy(operator), copy.deepcopy(operator), pickle.loads(pickle.dumps(operator))]
    for other in copies:
        assert other.report == operator.report
        assert torch.equal(other.calculate_gradient(rows), expected)


@MEMORIES
def test_copies_of_operators_with_a_memory(kind):
    rows, operator = random_matrix((6, 9)), kind(2)
    for step in range(4):
        operator.calculate_gradient(step % 2, rows[step])
    copies = [copy.deepcopy(operator), pickle.loads(pickle.dumps(operator))]
    expected = operator.calculate_gradient(0, rows[4])
    for other in copies:
        assert torch.equal(other.calculate_gradient(0, rows[4]), expected)


@MEMORIES
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_with_a_memory(kind, dtype):
    """Second moments of small gradients do not vanish: they are kept in float32."""
    rows = 1e-3 * random_matrix((8, 9), dtype=dtype)
    half, single = kind(2), kind(2)
    for step, row in enumerate(rows):
        found = half.calculate_gradient(step % 2, row)
        expected = single.calculate_gradient(step % 2, row.float())
        assert found.dtype == dtype
        assert half.m[0].dtype == torch.float32
    assert relative_error(found.double(), expected.double()) < torch.finfo(dtype).eps


def test_sparse_gradients_of_embeddings():
    table, head = nn.Embedding(5, 2, sparse=True), nn.Linear(2, 1)
    network = nn.Sequential(table, head)
    losses = [network(torch.tensor([k])).square().sum() for k in (1, 3)]
    backward(losses, network, PCGradOperator(), retain_graph=True)
    found = get_gradient_vector(network)
    backward(losses, network, PCGradOperator())
    assert torch.allclose(get_gradient_vector(network), 2 * found)
    assert table.weight.grad.layout == torch.strided
