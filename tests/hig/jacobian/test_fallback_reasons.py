"""Parameters that are not taken layer by layer come with a reason that is true."""

import pytest
import torch
from torch import nn

import hig


def notes_of(make, parameters, **options):
    optimizer = hig.HIG(parameters, **options)
    optimizer.step(lambda: (lambda prediction: (prediction.square().mean(), prediction))(make()))
    return [note for note in optimizer.report.notes if note.startswith("rows engine for ")]


def mlp(*layers):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 6), *layers, nn.Tanh(), nn.Linear(6, 1)).double()


def slope(network, points):
    points = points.clone().requires_grad_()
    value = network(points)
    (slope,) = torch.autograd.grad(value.sum(), points, create_graph=True)
    return value + slope[:, :1]


POINTS = torch.linspace(-1, 1, 14, dtype=torch.float64).view(7, 2)


def test_derivatives_of_the_network():
    network = mlp()
    (note,) = notes_of(lambda: slope(network, POINTS), network.parameters())
    assert "create_graph=True" in note
    assert "batch normalisation" not in note
    assert note.startswith("rows engine for parameter 0 (6, 2), parameter 1 (6,)")


def test_batch_normalisation():
    network = mlp(nn.BatchNorm1d(6))
    notes = notes_of(lambda: network(POINTS), network.named_parameters())
    assert any(
        note.startswith("rows engine for 0.weight") and "(batch normalisation)" in note
        for note in notes
    )
    assert any("for 1.weight, 1.bias: no linear" in note for note in notes)


def test_another_coupling_of_samples():
    network = mlp()
    (note,) = notes_of(lambda: network(POINTS) - network(POINTS).mean(), network.parameters())
    assert note.endswith("samples influence one another, or a weight is used elsewhere than in the "
                         "linear or convolution calls seen")  # fmt: skip


def test_groups_of_points_that_are_joined_behind_the_network():
    network = mlp()
    groups = POINTS[:4], POINTS[4:]

    def prediction():
        return torch.cat([network(group) for group in groups])

    (note,) = notes_of(prediction, network.parameters())
    assert "leading axes of 4, 3, the prediction has 7 samples; call the network once" in note


def test_a_parameter_outside_of_layers():
    network, scale = mlp(), torch.ones(1, dtype=torch.float64, requires_grad=True)
    (note,) = notes_of(lambda: scale * network(POINTS), [*network.parameters(), scale])
    assert note == (
        "rows engine for parameter 4 (1,): no linear or convolution call was seen to use it as "
        "weight or bias"
    )


def test_a_use_that_is_no_layer_call():
    weight = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, dtype=torch.float64, requires_grad=True)

    def prediction():
        hidden = nn.functional.linear(POINTS, weight, bias).tanh()
        return hidden @ weight

    (note,) = notes_of(prediction, [weight, bias])
    assert "or a weight is used elsewhere" in note


def test_layers_of_different_shape():
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 2, dtype=torch.float64)

    def prediction():
        hidden = nn.functional.linear(POINTS, weight, bias)
        kernel = torch.ones(3, 2, 1, dtype=torch.float64)
        return hidden + nn.functional.conv1d(POINTS[:, :, None], kernel, bias)[..., 0]

    (note,) = notes_of(prediction, [bias])
    assert "layers of different shape" in note


def test_nothing_to_say_where_rows_were_asked_for():
    network = mlp()
    assert not notes_of(lambda: slope(network, POINTS), network.parameters(), engine="rows")
    with pytest.raises(hig.SampleDependenceError, match="derivatives of the network"):
        notes_of(lambda: slope(network, POINTS), network.parameters(), engine="layerwise")
