"""Factors against explicit loops, powers against dense matrices."""

import pytest
import torch

from hig import DecompositionError
from hig._kronecker.factors import damped_power, input_factor, output_factor

DOUBLE = {"dtype": torch.float64}


def random(*shape):
    torch.manual_seed(sum(shape))
    return torch.randn(shape, **DOUBLE)


@pytest.mark.parametrize("bias", [False, True])
def test_input_factor(bias):
    patches = random(4, 2, 3, 5)
    expected = torch.zeros(2, 5 + bias, 5 + bias, **DOUBLE)
    for sample in patches:
        for group, positions in enumerate(sample):
            for row in positions:
                row = torch.cat([row, torch.ones(int(bias), **DOUBLE)])
                expected[group] += torch.outer(row, row) / (4 * 3)
    torch.testing.assert_close(input_factor(patches, bias), expected)


def test_output_factor():
    deltas = random(4, 2, 3, 5)
    expected = torch.zeros(2, 5, 5, **DOUBLE)
    for sample in deltas:
        for group, positions in enumerate(sample):
            for row in positions:
                expected[group] += torch.outer(row, row)
    torch.testing.assert_close(output_factor(deltas), expected)


def spd(groups, size):
    root = random(groups, size, 2 * size)
    return root @ root.mT


def dense_power(outputs, inputs, power, damping):
    """(S ⊗ A + λ mean)^-p of one group, for a matrix whose rows follow one another."""
    product = torch.kron(outputs, inputs)
    values, vectors = torch.linalg.eigh(product)
    values = values + damping * values.mean()
    return vectors @ torch.diag(values**-power) @ vectors.T


@pytest.mark.parametrize("power", [0.5, 0.75, 1.0])
@pytest.mark.parametrize("damping", [1e-12, 0.3])
def test_power_of_the_product(power, damping):
    outputs, inputs, matrix = spd(2, 3), spd(2, 4), random(2, 3, 4)
    found = damped_power(outputs, inputs, power, damping)(matrix)
    for group in range(2):
        dense = dense_power(outputs[group], inputs[group], power, damping)
        expected = (dense @ matrix[group].flatten()).view(3, 4)
        torch.testing.assert_close(found[group], expected, rtol=1e-9, atol=1e-12)


def test_without_damping_the_power_is_one_of_each_factor():
    outputs, inputs, matrix = spd(1, 3), spd(1, 4), random(1, 3, 4)
    found = damped_power(outputs, inputs, 0.75, 1e-14)(matrix)

    def each(factor):
        values, vectors = torch.linalg.eigh(factor)
        return vectors @ torch.diag_embed(values**-0.75) @ vectors.mT

    torch.testing.assert_close(found, each(outputs) @ matrix @ each(inputs), rtol=1e-9, atol=0)


def test_damping_is_relative():
    outputs, inputs, matrix = spd(1, 3), spd(1, 4), random(1, 3, 4)
    one = damped_power(outputs, inputs, 1.0, 0.1)(matrix)
    other = damped_power(100 * outputs, 0.1 * inputs, 1.0, 0.1)(matrix)
    torch.testing.assert_close(10 * other, one)


def test_a_layer_without_gradients_stays_where_it_is():
    found = damped_power(torch.zeros(1, 3, 3), spd(1, 4).float(), 0.75, 0.1)(torch.ones(1, 3, 4))
    assert torch.equal(found, torch.zeros(1, 3, 4))


def test_singular_factors_in_single_precision():
    row = torch.tensor([[[1.0, 2.0, 3.0]]])
    found = damped_power(row.mT @ row, torch.eye(2)[None], 0.75, 1e-6)
    assert found.scale.dtype == found.inputs.dtype == found.outputs.dtype == torch.float32
    assert bool(torch.isfinite(found(torch.ones(1, 3, 2))).all())


def test_a_decomposition_that_does_not_converge(monkeypatch):
    def refuse(_):
        raise torch.linalg.LinAlgError("no convergence")

    monkeypatch.setattr(torch.linalg, "eigh", refuse)
    with pytest.raises(DecompositionError, match=r"\(1, 3, 3\) matrix with largest entry .*lr"):
        damped_power(spd(1, 3), spd(1, 4), 0.75, 0.1)
