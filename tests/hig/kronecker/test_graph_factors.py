"""Factors of weights by the products of the graph."""

import copy

import pytest
import torch
from torch import nn

import hig
from hig._jacobian.layerwise import Layer
from hig._kronecker.graph_factors import combined
from hig._kronecker.layer_factors import LayerFactors
from tests.hig.field_networks import build
from tests.textbook import flat, relative_error


def layers_of(name, steps=3):
    network, predict = build(name)
    optimizer = hig.KroneckerHIG(network.named_parameters(), lr=0.01)

    def closure():
        prediction = predict(network, torch.float64)
        return (prediction - 1).square().sum(1).mean(), prediction

    losses = [float(optimizer.step(closure)) for _ in range(steps)]
    return optimizer, network, losses


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("gated recurrent cell", set()),
        ("recurrent, time first", set()),
        ("attention", {"layers.0.norm1.weight", "layers.0.norm2.weight"}),
        ("operator network", {"bias"}),
        ("transposed convolution", set()),
        ("embedding", set()),
        ("tied", set()),
        ("recomputed", {"1.weight"}),
        ("group norm", {"1.weight"}),
    ],
)
def test_layers_of_networks_of_the_field(name, left):
    optimizer, network, losses = layers_of(name, steps=30)
    assert set(optimizer.report.left_to_adam) == left
    assert optimizer.report.layers + len(left) <= len(list(network.parameters()))
    assert losses[-1] < losses[0]


def test_a_weight_used_one_way_has_the_factors_of_its_captured_call():
    """As (in, out), which no call of a layer shows, and as the weight of a linear layer."""
    torch.manual_seed(0)
    x = torch.randn(8, 3, dtype=torch.float64)
    weight = torch.randn(4, 3, dtype=torch.float64)
    by_call, by_graph = nn.Parameter(weight.clone()), nn.Parameter(weight.T.clone())
    states = []
    for parameter, predict in (
        (by_call, lambda: nn.functional.linear(x, by_call)),
        (by_graph, lambda: x @ by_graph),
    ):
        optimizer = hig.KroneckerHIG([parameter], lr=0.01)

        def closure(predict=predict):
            prediction = torch.tanh(predict())
            return prediction.square().sum(), prediction

        for _ in range(3):
            optimizer.step(closure)
        states.append(optimizer.state[parameter])
    call, graph = states
    assert relative_error(graph["outputs"], call["inputs"]) < 1e-12  # of its first axis
    assert relative_error(graph["inputs"], call["outputs"]) < 1e-12
    assert relative_error(by_graph.detach().T, by_call.detach()) < 1e-9


def test_two_ways_are_scaled_alike():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(2, 3))

    def moment(size):
        root = torch.randn(1, size, size, dtype=torch.float64)
        return root @ root.mT

    layer = Layer(weight, None, ())
    straight = LayerFactors(layer, moment(2), moment(3), 5)
    swapped = LayerFactors(layer, 1e6 * moment(3), moment(2), 7, swapped=True)
    (both,) = combined([straight, swapped])

    def eigenvalue(factor):
        return factor.diagonal(dim1=1, dim2=2).mean()

    for left, right in ((straight.outputs, straight.inputs), (swapped.inputs, swapped.outputs)):
        scale = (eigenvalue(right) / eigenvalue(left)).sqrt()
        both.outputs.sub_(scale * left)
        both.inputs.sub_(right / scale / 2)
    assert both.outputs.abs().max() < 1e-6 and both.inputs.abs().max() < 1e-6
    (alone,) = combined([swapped])
    assert torch.equal(alone.outputs, swapped.inputs) and not alone.swapped


def test_other_shapes_of_what_has_no_gradient():
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(2, 2, 3))
    optimizer = hig.KroneckerHIG([kernel], lr=0.01)
    for length, stride in ((5, 1), (3, 2), (5, 1), (3, 2)):
        x = torch.randn(4, 2, length)

        def closure(x=x, stride=stride):
            y = nn.functional.conv_transpose1d(x, kernel, stride=stride).flatten(1)
            return y.square().sum(1).mean(), y

        optimizer.step(closure)
    assert optimizer.report.layers == 1


def test_residuals_with_derivatives_train_all_weights():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    points = torch.rand(40, 2, dtype=torch.float64)
    optimizer = hig.KroneckerHIG(network.parameters(), lr=0.02)

    def closure():
        x = points.clone().requires_grad_()
        u = network(x)
        (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        residual = torch.cat([first[:, 0] + u[:, 0] - x[:, 1], network(points[:9])[:, 0]])
        return residual.square().mean(), residual

    losses = [float(optimizer.step(closure).detach()) for _ in range(60)]
    assert losses[-1] < 0.05 * losses[0]
    assert optimizer.report.layers == 3 and not optimizer.report.remarks  # one number has none
    before = flat(network.parameters())
    twin = copy.deepcopy(optimizer)  # products of graphs are found again
    state = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(state)
    optimizer.step(closure)
    assert not torch.equal(before, flat(network.parameters()))
    assert len(twin.state) == len(optimizer.state)
