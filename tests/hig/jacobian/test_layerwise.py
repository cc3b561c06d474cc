"""How captured calls are grouped into layers, and the blocks that the layers give."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hig._jacobian.capture import Capture
from hig._jacobian.layerwise import find_layers, layer_blocks
from hig._torch import batched_vjp as batched_vjp_module
from hig._torch.batched_vjp import BatchedVJP
from tests.hig.networks import LAYERED, build
from tests.textbook import relative_error, textbook_jacobian

SAMPLES = 4


def parameter(*shape):
    return nn.Parameter(torch.randn(*shape, dtype=torch.float64))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def captured(compute, *parameters):
    with Capture(parameters) as capture:
        prediction = compute()
    return capture.uses, prediction


def grouped(compute, *parameters):
    """Layers as (weight, bias, number of uses), with parameters given by their index."""
    uses, _ = captured(compute, *parameters)
    index = {id(p): i for i, p in enumerate(parameters)} | {id(None): None}
    return [(index[id(layer.weight)], index[id(layer.bias)], len(layer.uses))
            for layer in find_layers(uses, SAMPLES)]  # fmt: skip


def assert_blocks(compute, *parameters):
    """The blocks of all layers together against the textbook Jacobian."""
    uses, prediction = captured(compute, *parameters)
    layers = find_layers(uses, len(prediction))
    blocks = layer_blocks(layers, prediction, BatchedVJP())
    for layer, block in zip(layers, blocks, strict=True):
        expected = textbook_jacobian(prediction, layer.parameters)
        assert block.columns == expected.shape[1]
        assert relative_error(block.rows(slice(0, len(prediction))), expected) < 1e-13
    return layers


def x(*shape):
    return torch.randn(SAMPLES, *shape, dtype=torch.float64)


# -- grouping ----------------------------------------------------------------------------------


def test_a_weight_and_its_bias_are_one_layer():
    weight, bias = parameter(2, 3), parameter(2)
    inputs = x(3)
    assert grouped(lambda: F.linear(inputs, weight, bias), weight, bias) == [(0, 1, 1)]
    assert grouped(lambda: F.linear(inputs, weight, bias), weight) == [(0, None, 1)]
    assert grouped(lambda: F.linear(inputs, weight, bias), bias) == [(None, 0, 1)]
    assert grouped(lambda: F.linear(inputs, weight), weight, bias) == [(0, None, 1)]


def test_a_layer_used_again_is_still_one_layer():
    weight, bias = parameter(3, 3), parameter(3)
    inputs = x(3)

    def compute():
        return F.linear(F.linear(inputs, weight, bias).tanh(), weight, bias).tanh()

    assert grouped(compute, weight, bias) == [(0, 1, 2)]
    assert_blocks(compute, weight, bias)


def test_a_bias_used_elsewhere_stands_alone():
    first, second, bias = parameter(3, 3), parameter(3, 3), parameter(3)
    inputs = x(3)

    def compute():
        return F.linear(F.linear(inputs, first, bias).tanh(), second, bias).tanh()

    assert grouped(compute, first, second, bias) == [(0, None, 1), (1, None, 1), (None, 2, 2)]
    assert_blocks(compute, first, second, bias)


def test_a_weight_with_a_bias_only_sometimes():
    weight, bias = parameter(3, 3), parameter(3)
    inputs = x(3)

    def compute():
        return F.linear(F.linear(inputs, weight, bias).tanh(), weight).tanh()

    assert grouped(compute, weight, bias) == [(0, None, 2), (None, 1, 1)]
    assert_blocks(compute, weight, bias)


def test_a_weight_with_two_biases():
    weight, first, second = parameter(3, 3), parameter(3), parameter(3)
    inputs = x(3)

    def compute():
        return F.linear(F.linear(inputs, weight, first).tanh(), weight, second).tanh()

    assert grouped(compute, weight, first, second) == [(0, None, 2), (None, 1, 1), (None, 2, 1)]
    assert_blocks(compute, weight, first, second)


def test_a_bias_in_linear_layers_of_any_number_of_positions():
    first, second, bias = parameter(3, 3), parameter(3, 2), parameter(3)
    a, b = x(5, 3), x(2)

    def compute():
        return F.linear(a, first, bias).tanh().sum(1) + F.linear(b, second, bias).sin()

    layers = assert_blocks(compute, first, second, bias)
    assert [len(layer.uses) for layer in layers] == [1, 1, 2]


def test_a_bias_in_convolutions_of_different_groups():
    plain, grouped_weight, bias = parameter(4, 2, 3), parameter(4, 1, 2), parameter(4)
    inputs = x(2, 6)

    def compute():
        first = F.conv1d(inputs, plain, bias).tanh().sum(2)
        return first + F.conv1d(inputs, grouped_weight, bias, groups=2).sin().sum(2)

    layers = assert_blocks(compute, plain, grouped_weight, bias)
    assert [(layer.weight is None, layer.bias is None) for layer in layers] == [
        (False, True), (False, True), (True, False),
    ]  # fmt: skip


def test_a_convolution_of_different_stride_is_one_layer():
    weight = parameter(2, 2, 3)
    inputs = x(2, 7)

    def compute():
        first = F.conv1d(inputs, weight, padding=1).tanh()
        return F.conv1d(first, weight, stride=2).flatten(1).tanh()

    assert grouped(compute, weight) == [(0, None, 2)]
    assert_blocks(compute, weight)


# -- what is left out --------------------------------------------------------------------------


def test_a_weight_in_layers_of_different_groups_is_left_out():
    weight = parameter(4, 2, 3)
    inputs = x(2, 5)

    def compute():
        first = F.conv1d(inputs, weight)
        return F.conv1d(first.tanh(), weight, groups=2).flatten(1)

    assert len(captured(compute, weight)[0]) == 2
    assert grouped(compute, weight) == []
    assert_blocks(compute, weight)


def test_a_bias_of_linear_and_convolution_layers_is_left_out():
    weight, kernel, bias = parameter(3, 3), parameter(3, 2, 2), parameter(3)
    inputs = x(2, 4)

    def compute():
        return F.linear(F.conv1d(inputs, kernel, bias).tanh().sum(2), weight, bias)

    assert grouped(compute, weight, kernel, bias) == [(1, None, 1), (0, None, 1)]


@pytest.mark.parametrize("shape", [(5, 3), (3,)])
def test_a_leading_axis_that_holds_no_samples_is_left_out(shape):
    weight, bias = parameter(2, 3), parameter(2)
    inputs = torch.randn(*shape, dtype=torch.float64)
    assert grouped(lambda: F.linear(inputs, weight, bias), weight, bias) == []
    # Not even next to a proper use: all columns of a parameter take one route.
    proper = x(3)

    def both():
        return F.linear(proper, weight, bias) + F.linear(inputs, weight, bias).mean()

    assert grouped(both, weight, bias) == []


def test_a_convolution_without_a_batch_axis_is_left_out():
    kernel = parameter(2, SAMPLES, 2)
    inputs = torch.randn(SAMPLES, 5, dtype=torch.float64)  # channels, not samples
    assert grouped(lambda: F.conv1d(inputs, kernel), kernel) == []


def test_a_parameter_that_is_weight_and_bias_is_left_out():
    """No plain layer does this; the roles are swapped in what was captured."""
    weight, other, bias = parameter(3, 3), parameter(3, 3), parameter(3)
    inputs = x(3)
    uses, _ = captured(
        lambda: F.linear(F.linear(inputs, weight, bias), other, bias), weight, other, bias
    )
    for use in uses:
        if use.weight is other:
            object.__setattr__(use, "bias", weight)
    layers = find_layers(uses, SAMPLES)
    found = [p for layer in layers for p in layer.parameters]
    assert all(p is not weight for p in found)
    assert any(p is other for p in found)
    assert all(layer.bias is not weight for layer in layers)


def test_no_uses_no_layers():
    assert find_layers([], SAMPLES) == []
    assert layer_blocks([], torch.zeros(3, 2), BatchedVJP()) == []


# -- blocks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERED)
def test_blocks_of_networks(name):
    network, inputs = build(name)
    parameters = list(network.parameters())
    layers = assert_blocks(lambda: network(inputs), *parameters)
    covered = [id(p) for layer in layers for p in layer.parameters]
    assert sorted(covered) == sorted(id(p) for p in parameters)


def test_a_use_without_influence_adds_nothing():
    weight = parameter(3, 3)
    inputs = x(3)

    def compute():
        F.linear(2 * inputs, weight)  # a by-product that nobody uses
        return F.linear(inputs, weight).tanh()

    assert grouped(compute, weight) == [(0, None, 2)]
    assert_blocks(compute, weight)


def test_a_call_on_no_positions_adds_nothing():
    weight = parameter(3, 3)
    inputs, nothing = x(3), x(0, 3)

    def compute():
        return F.linear(inputs, weight).tanh() + F.linear(nothing, weight).sum(1)

    assert_blocks(compute, weight)


@pytest.mark.parametrize("chunk", [None, 1, 2])
def test_one_backward_pass_per_output_serves_all_layers(monkeypatch, chunk):
    network, inputs = build("mlp")
    uses, prediction = captured(lambda: network(inputs), *network.parameters())
    passes = []
    original = batched_vjp_module._grad

    def grad(output, inputs, cotangents, **options):
        passes.append(len(cotangents) if options else 1)
        return original(output, inputs, cotangents, **options)

    monkeypatch.setattr(batched_vjp_module, "_grad", grad)
    layer_blocks(find_layers(uses, len(prediction)), prediction, BatchedVJP(chunk))
    assert sum(passes) == prediction[0].numel() == 3
    assert len(passes) == {None: 1, 1: 3, 2: 2}[chunk]
