"""Gradient operators: forms of gradients, surroundings of calls, and what their base does."""

import copy
import pickle

import pytest
import torch
from torch import nn

import hig
from hig.conflictfree import (
    ConFIGOperator,
    GradientOperator,
    IMTLGOperator,
    PCGradOperator,
)
from hig.conflictfree._gradient_matrix import CHUNK_ENTRIES
from hig.conflictfree._gradient_operator import combine
from tests.hig.conflictfree.matrices import random_matrix
from tests.textbook import relative_error

OPERATORS = pytest.mark.parametrize("kind", [ConFIGOperator, PCGradOperator, IMTLGOperator])
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


# -- the base class, and callables of other packages -----------------------------------------------


class Mean(GradientOperator):
    """The mean of the gradients, weighted by the losses if there are any."""

    def calculate_gradient(self, grads, losses=None):
        rows = torch.stack(list(grads))
        return rows.mean(0) if losses is None else torch.tensor(losses, dtype=rows.dtype) @ rows


def test_the_base_class_has_no_rule_and_no_state():
    operator = GradientOperator()
    with pytest.raises(NotImplementedError, match="GradientOperator must define calculate_gradi"):
        operator(torch.ones(2, 3))
    assert operator.report is None and operator.state_dict() == {}
    operator.load_state_dict({})


@pytest.mark.parametrize("losses", [None, [2.0, 3.0]])
def test_an_operator_is_called_like_a_function_and_updates_a_network(losses):
    rows, network = random_matrix((2, 6)), nn.Linear(5, 1).double()
    expected = Mean().calculate_gradient(rows, losses)
    assert torch.equal(Mean()(rows, losses), expected)
    Mean().update_gradient(network, rows, losses)
    assert torch.equal(torch.cat([p.grad.reshape(-1) for p in network.parameters()]), expected)
    with pytest.raises(ValueError, match=r"vector has shape \(4,\)"):
        Mean().update_gradient(network, rows[:, :4], losses)
    assert torch.equal(torch.cat([p.grad.reshape(-1) for p in network.parameters()]), expected)


def test_combine_gives_losses_to_operators_and_not_to_functions():
    rows = random_matrix((2, 4))
    assert torch.equal(combine(Mean(), rows, [2.0, 3.0]), 2 * rows[0] + 3 * rows[1])
    assert torch.equal(combine(lambda matrix: matrix[1], rows, [2.0, 3.0]), rows[1])


@pytest.mark.parametrize("operator", [Mean(), ConFIGOperator(), lambda matrix: matrix.sum(0)])
def test_combine_raises_or_passes_on_what_is_not_finite(operator):
    rows = random_matrix((2, 4))
    rows[1, 0] = float("inf")
    if not isinstance(operator, Mean):  # one of the user's may do what it likes with them
        with pytest.raises(hig.NonFiniteError, match="loss 1"):
            combine(operator, rows)
    assert not combine(operator, rows, non_finite="pass").isfinite().all()


@pytest.mark.parametrize(("value", "error"), [(None, TypeError), (torch.ones(3), ValueError)])
def test_combine_checks_what_a_function_returns(value, error):
    with pytest.raises(error, match=r"the operator must map \(2, 4\)"):
        combine(lambda matrix: value, random_matrix((2, 4)))
