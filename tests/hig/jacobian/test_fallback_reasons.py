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


POINTS = torch.linspace(-1, 1, 14, dtype=torch.float64).view(7, 2)


def less_mean(network):
    return network(POINTS) - network(POINTS).mean()


def test_batch_normalisation():
    network = mlp(nn.BatchNorm1d(6))
    (note,) = notes_of(lambda: network(POINTS), network.named_parameters())
    assert note == (
        "rows engine for 0.weight, 0.bias: samples influence one another (batch normalisation)"
    )


def test_another_coupling_of_samples():
    network = mlp()
    (note,) = notes_of(lambda: less_mean(network), network.parameters())
    assert note.startswith("rows engine for parameter 0 (6, 2), parameter 1 (6,)")
    assert note.endswith("samples influence one another")


def test_a_coarse_part_of_the_simulator():
    network = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1))

    def prediction():
        return network(POINTS.float()).half().float() - network(POINTS.float()).half().mean()

    (note,) = notes_of(prediction, network.parameters())
    assert "computed in torch.float16, whose rounding hides" in note


@pytest.mark.parametrize(
    ("function", "name"), [(torch.pow, "Pow"), (torch.atan2, "Atan2"), (torch.hypot, "Hypot")]
)
def test_operations_that_are_no_product(function, name):
    network, other = mlp(), torch.full((1,), 2.0, dtype=torch.float64, requires_grad=True)
    (note,) = notes_of(
        lambda: function(network(POINTS).exp(), other), [*network.parameters(), other]
    )
    assert note.startswith("rows engine for parameter 4 (1,): it is used by ")
    assert name in note
    assert note.endswith("which is no product that can be told apart by sample")


def test_nothing_to_say_where_rows_were_asked_for():
    network = mlp()
    assert not notes_of(lambda: less_mean(network), network.parameters(), engine="rows")
    with pytest.raises(hig.SampleDependenceError, match="samples influence one another"):
        notes_of(lambda: less_mean(network), network.parameters(), engine="layerwise")
