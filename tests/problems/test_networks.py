import math

import pytest
import torch
from torch import nn

from problems._networks import dense_network


def test_layers_and_shapes():
    network = dense_network([4, 20, 20, 20, 96], nn.ReLU)
    assert [type(layer) for layer in network] == 3 * [nn.Linear, nn.ReLU] + [nn.Linear]
    assert sum(p.numel() for p in network.parameters()) == 2956
    assert network(torch.zeros(5, 4)).shape == (5, 96)


def test_initialisation_is_that_of_keras():
    linear = dense_network([300, 200], nn.Tanh)[0]
    limit = math.sqrt(6 / 500)
    assert not linear.bias.any()
    assert linear.weight.abs().max() <= limit
    assert linear.weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.02)


@pytest.mark.parametrize("widths", [[], [4], [4, 0, 2]])
def test_bad_widths(widths):
    with pytest.raises(ValueError, match="two positive numbers"):
        dense_network(widths, nn.ReLU)
