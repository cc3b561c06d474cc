"""Gradients of all parameters, against autograd's own."""

import pytest
import torch

import hig
from hig._kronecker.gradients import parameter_gradients
from tests.hig.networks import build, least_squares


@pytest.mark.parametrize("keep_graph", [False, True])
@pytest.mark.parametrize("name", ["mlp", "conv2d", "feedback", "embedding"])
def test_gradients_are_those_of_autograd(name, keep_graph):
    network, inputs = build(name)
    closure, parameters = least_squares(network, inputs), list(network.parameters())
    expected = torch.autograd.grad(closure()[0], parameters)
    loss, prediction = closure()
    found = parameter_gradients(loss, prediction, parameters, keep_graph)
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(found[parameter], gradient)
    if keep_graph:
        torch.autograd.grad(prediction.sum(), parameters)
    else:
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(prediction.sum(), parameters)


def test_parameters_that_are_not_used_or_frozen_in_the_closure_are_left_out():
    network, inputs = build("mlp")
    parameters, unused = list(network.parameters()), torch.ones(2, requires_grad=True)
    loss, prediction = least_squares(network, inputs)()
    parameters[0].requires_grad_(False)
    found = parameter_gradients(loss, prediction, [*parameters, unused], False)
    assert list(map(id, found)) == list(map(id, parameters[1:]))


def test_half_precision_gradients_are_in_float32():
    weight = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    prediction = weight * torch.arange(3, dtype=torch.bfloat16)
    found = parameter_gradients(prediction.sum(), prediction, [weight], False)
    assert torch.equal(found[weight], torch.arange(3.0))


def test_numbers_that_are_not_finite_are_named():
    weight = torch.zeros(3, requires_grad=True)
    prediction = weight + 0
    with pytest.raises(hig.NonFiniteError, match="the gradient of the loss"):
        parameter_gradients(prediction.sqrt().sum(), prediction, [weight], False)


def test_all_parameters_frozen():
    weight = torch.ones(2, requires_grad=True)
    prediction = 2 * weight
    with pytest.raises(ValueError, match="frozen or uninitialized after the closure"):
        parameter_gradients(prediction.sum(), prediction, [torch.ones(2)], False)
