"""Products with a Jacobian that is never formed."""

import pytest
import torch

from hig._jacobian.products import ProductBlock
from hig._torch.batched_vjp import BatchedVJP
from tests.hig.networks import ALL, build
from tests.textbook import relative_error, textbook_jacobian


def problem(name):
    network, inputs = build(name)
    parameters = list(network.parameters())
    prediction = network(inputs)
    return prediction, parameters, textbook_jacobian(prediction, parameters)


@pytest.mark.parametrize("name", [name for name in ALL if name != "attention"])
def test_products_with_the_textbook_jacobian(name):
    prediction, parameters, expected = problem(name)
    block = ProductBlock(prediction, parameters, BatchedVJP())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(2):  # the graph of the first product serves for all
            direction = torch.randn(block.columns, generator=generator).double()
            weights = torch.randn(len(expected), generator=generator).double()
            assert relative_error(block.jvp(direction), expected @ direction) < 1e-12
            assert relative_error(block.vjp(weights), expected.T @ weights) < 1e-12


def test_a_parameter_without_influence_has_a_column_of_zeros():
    prediction, parameters, expected = problem("mlp")
    idle = torch.ones(3, dtype=torch.float64, requires_grad=True)
    block = ProductBlock(prediction, [idle, *parameters], BatchedVJP())
    direction = torch.randn(block.columns, dtype=torch.float64)
    assert relative_error(block.jvp(direction), expected @ direction[3:]) < 1e-12
    alone = ProductBlock(prediction, [idle], BatchedVJP())
    assert not alone.jvp(torch.ones(3, dtype=torch.float64)).any()


def test_a_linear_prediction():
    # Its gradients do not depend on the parameters, but on the cotangent all the same.
    weight = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    inputs = torch.randn(5, 3, dtype=torch.float64)
    prediction = inputs @ weight.T
    expected = textbook_jacobian(prediction, [weight])
    direction = torch.randn(6, dtype=torch.float64)
    block = ProductBlock(prediction, [weight], BatchedVJP())
    assert relative_error(block.jvp(direction), expected @ direction) < 1e-14


def test_float32_products_come_in_float64():
    network, inputs = build("mlp", dtype=torch.float32)
    block = ProductBlock(network(inputs), list(network.parameters()), BatchedVJP())
    direction = torch.randn(block.columns, dtype=torch.float64)
    found = block.jvp(direction)
    assert found.dtype == torch.float64
    network = network.double()
    expected = textbook_jacobian(network(inputs.double()), list(network.parameters()))
    assert relative_error(found, expected @ direction) < 1e-5


def test_no_second_derivative():
    prediction, parameters, _ = problem("attention")
    block = ProductBlock(prediction, parameters, BatchedVJP())
    with pytest.raises(ValueError, match=r"attention.*; use method='gram'") as caught:
        block.jvp(torch.ones(block.columns, dtype=torch.float64))
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_out_of_memory_passes_as_it_is(monkeypatch):
    prediction, parameters, _ = problem("mlp")
    block = ProductBlock(prediction, parameters, BatchedVJP())

    def full(*_, **__):
        raise torch.OutOfMemoryError("not enough memory")

    monkeypatch.setattr(torch.autograd, "grad", full)
    with pytest.raises(torch.OutOfMemoryError):
        block.jvp(torch.ones(block.columns, dtype=torch.float64))
