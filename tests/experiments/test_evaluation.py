import pytest
import torch
from torch import nn

from experiments._evaluation import mean_loss, slices
from problems import NonlinearOscillators


@pytest.mark.parametrize(("size", "lengths"), [(4, [4, 4, 2]), (5, [5, 5]), (20, [10])])
def test_slices_cover_every_sample_once(size, lengths):
    data = {"start": torch.arange(10), "target": torch.arange(10) * 2}
    batches = list(slices(data, size))
    assert [length for _, length in batches] == lengths
    assert [len(batch["start"]) for batch, _ in batches] == lengths
    assert torch.equal(torch.cat([batch["target"] for batch, _ in batches]), data["target"])


def test_mean_loss_does_not_depend_on_the_chunk():
    problem = NonlinearOscillators(time_steps=8, train_size=10, test_size=1)
    data, _ = problem.data(torch.Generator().manual_seed(0))
    network = problem.network().double()
    whole = problem.loss(problem.predict(network, data), data).item()
    for chunk in (1, 3, 10, 64):
        assert mean_loss(problem, network, data, chunk) == pytest.approx(whole, rel=1e-13)


def test_mean_loss_evaluates_and_restores_the_mode():
    problem = NonlinearOscillators(time_steps=8, train_size=4, test_size=1)
    data, _ = problem.data(torch.Generator().manual_seed(0))
    network = nn.Sequential(problem.network(), nn.Dropout(0.5)).double()
    assert mean_loss(problem, network, data) == mean_loss(problem, network, data)
    assert network.training
