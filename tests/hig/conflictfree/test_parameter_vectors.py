"""Parameters and gradients as vectors: same order, same length, nothing shared, nothing lost."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hig.conflictfree import (
    apply_gradient_vector,
    apply_gradient_vector_para_based,
    apply_para_vector,
    get_gradient_vector,
    get_para_vector,
)
from tests.hig.conflictfree.matrices import random_matrix
from tests.textbook import flat

SHAPES = st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=1, max_size=4)


def reached_in_part():
    """A network whose second layer has no gradients."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1), nn.Linear(2, 1))
    for index in (0, 2):
        for parameter in network[index].parameters():
            parameter.grad = torch.randn_like(parameter)
    return network


@given(SHAPES, st.integers(0, 2**32 - 1))
def test_parameters_and_gradients_come_back(shapes, seed):
    parameters = [torch.zeros(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    size = sum(map(math.prod, shapes))
    vector = random_matrix((1, size), seed)[0]
    apply_para_vector(parameters, vector)
    apply_gradient_vector_para_based(parameters, -vector)
    assert torch.equal(get_para_vector(parameters), vector)
    assert torch.equal(flat(parameters), vector)
    assert all(p.requires_grad and p.is_leaf for p in parameters)
    assert torch.equal(get_gradient_vector(parameters), -vector)
    with pytest.raises(ValueError, match=rf"have {size} entries"):
        apply_para_vector(parameters, random_matrix((1, size + 1), seed)[0])
    assert torch.equal(get_para_vector(parameters), vector)


def test_missing_gradients():
    network = reached_in_part()
    first, last = (flat(p.grad for p in network[i].parameters()) for i in (0, 2))
    assert torch.equal(get_gradient_vector(network), torch.cat([first, last]))
    expected = torch.cat([first, torch.zeros(4), last])
    assert torch.equal(get_gradient_vector(network, none_grad_mode="zero"), expected)
    with pytest.raises(RuntimeError, match=r"shape \(1, 3\) has no gradient"):
        get_gradient_vector(network, none_grad_mode="raise")
    with pytest.raises(RuntimeError, match="call backward first"):
        get_gradient_vector(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("mode", "middle"),
    [("pad_value", torch.arange(9.0, 13)), ("pad_zero", torch.zeros(4)), ("skip", None)],
)
def test_gradients_for_all_parameters(mode, middle):
    network = reached_in_part()
    apply_gradient_vector(network, torch.arange(16.0), "zero", mode)
    found = [p.grad for p in network[1].parameters()]
    if middle is None:
        assert found == [None, None]
    else:
        assert torch.equal(flat(found), middle)
    assert torch.equal(flat(p.grad for p in network[0].parameters()), torch.arange(9.0))
    assert torch.equal(flat(p.grad for p in network[2].parameters()), torch.arange(13.0, 16))


def test_gradients_for_reached_parameters():
    network = reached_in_part()
    apply_gradient_vector(network, torch.arange(12.0))
    assert [p.grad for p in network[1].parameters()] == [None, None]
    assert torch.equal(flat(p.grad for p in network[2].parameters()), torch.arange(9.0, 12))
    apply_gradient_vector_para_based(network, torch.arange(16.0))
    assert torch.equal(get_gradient_vector(network, "raise"), torch.arange(16.0))


@pytest.mark.parametrize("length", [11, 13, 16])
def test_a_vector_of_another_length_is_refused_before_anything_changes(length):
    network = reached_in_part()
    before = get_gradient_vector(network)
    with pytest.raises(ValueError, match=rf"shape \({length},\).*have 12 entries.*none_grad_mode"):
        apply_gradient_vector(network, torch.zeros(length))
    assert torch.equal(get_gradient_vector(network), before)
    with pytest.raises(ValueError, match="have 16 entries"):
        apply_para_vector(network, torch.zeros(15))


def test_parameters_outside_the_network():
    network, viscosity = nn.Linear(2, 1), nn.Parameter(torch.tensor(0.3))
    everything = [*network.parameters(), viscosity, viscosity]
    apply_gradient_vector_para_based(everything, torch.arange(4.0))
    assert viscosity.grad == 3
    assert torch.equal(get_gradient_vector(iter(everything)), torch.arange(4.0))
    assert get_para_vector(viscosity).shape == (1,)


def test_frozen_parameters_have_entries_and_never_get_a_gradient():
    network = nn.Linear(2, 1)
    network.bias.requires_grad_(False)
    apply_gradient_vector_para_based(network, torch.ones(3))
    assert network.bias.grad is None
    assert torch.equal(network.weight.grad, torch.ones(1, 2))


def test_dtypes_and_memory_layouts():
    conv = nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last)
    double = nn.Parameter(torch.ones(2, dtype=torch.float64))
    vector = get_para_vector([*conv.parameters(), double])
    assert vector.dtype == torch.float64
    apply_gradient_vector_para_based([*conv.parameters(), double], vector)
    assert conv.weight.grad.dtype == torch.float32
    assert torch.equal(conv.weight.grad, conv.weight)
    assert double.grad.dtype == torch.float64


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda n: get_gradient_vector(n, "drop"), ValueError, "none_grad_mode must be one of"),
        (lambda n: apply_gradient_vector(n, 0, "raise"), ValueError, "got 'raise'"),
        (lambda n: apply_gradient_vector(n, 0, "zero", "padding"), ValueError, "zero_grad_mode"),
        (lambda n: get_para_vector([]), ValueError, "there is no parameter"),
        (lambda n: get_para_vector([3]), TypeError, "got int"),
        (lambda n: apply_para_vector(n, [1.0, 2.0]), TypeError, "para_vec must be"),
        (lambda n: get_para_vector(torch.ones(2, dtype=torch.cfloat)), TypeError, "complex64"),
    ],
)
def test_what_is_refused(call, error, match):
    with pytest.raises(error, match=match):
        call(reached_in_part())


def test_gradients_of_all_kinds_are_written():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, 2)).to(
        memory_format=torch.channels_last
    )
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    network[1].double()
    held = [parameter.grad for parameter in network.parameters()]
    vector = torch.arange(float(sum(gradient.numel() for gradient in held)))
    apply_gradient_vector(network, vector)
    assert all(p.grad is one for p, one in zip(network.parameters(), held, strict=True))
    assert torch.equal(torch.cat([one.reshape(-1).float() for one in held]), vector)
