from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from experiments._run.evaluation import evaluating, loss_per_sample, mean_loss, metrics
from problems import NonlinearOscillators, slices

TINY = NonlinearOscillators(time_steps=8, train_size=10, test_size=1)


@pytest.mark.parametrize(("size", "lengths"), [(4, [4, 4, 2]), (5, [5, 5]), (20, [10])])
def test_slices_cover_every_sample_once(size, lengths):
    data = {"start": torch.arange(10), "target": torch.arange(10) * 2}
    batches = list(slices(data, size))
    assert [len(batch["start"]) for batch in batches] == lengths
    assert torch.equal(torch.cat([batch["target"] for batch in batches]), data["target"])


@dataclass(frozen=True)
class Summed(NonlinearOscillators):
    loss_reduction: ClassVar[str] = "sum"

    def loss(self, prediction, batch):
        return len(prediction) * super().loss(prediction, batch)


@dataclass(frozen=True)
class Measured(NonlinearOscillators):
    def metrics(self, network, batch):
        assert not network.training
        return {"controls": network(batch["target"]).mean(0)}


@pytest.mark.parametrize("kind", [NonlinearOscillators, Summed])
def test_mean_loss_does_not_depend_on_chunk_and_reduction(kind):
    problem = kind(time_steps=8, train_size=10, test_size=1)
    data, _ = problem.data(torch.Generator().manual_seed(0))
    network = problem.network().double()
    whole = NonlinearOscillators.loss(problem, problem.predict(network, data), data).item()
    for chunk in (1, 3, 10, 64):
        assert mean_loss(problem, network, data, chunk) == pytest.approx(whole, rel=1e-13)


class Otherwise(NonlinearOscillators):
    def data_loss(self, network, data, chunk):
        assert not network.training
        assert not torch.is_grad_enabled()
        return len(data["start"]) + chunk / 100


def test_a_problem_may_record_something_else():
    data, _ = TINY.data(torch.Generator().manual_seed(0))
    assert mean_loss(Otherwise(), TINY.network(), data, 50) == 10.5


def test_mean_loss_evaluates_and_restores_the_mode():
    problem = NonlinearOscillators(time_steps=8, train_size=4, test_size=1)
    data, _ = problem.data(torch.Generator().manual_seed(0))
    network = nn.Sequential(problem.network(), nn.Dropout(0.5)).double()
    assert mean_loss(problem, network, data) == mean_loss(problem, network, data)
    assert network.training


def test_loss_per_sample():
    batch = {"start": torch.zeros(4, 2)}
    assert loss_per_sample(NonlinearOscillators(), 6.0, batch) == 6.0
    assert loss_per_sample(Summed(), 6.0, batch) == 1.5


def test_metrics_are_evaluated_in_numpy_without_a_graph():
    problem = Measured(time_steps=8, train_size=4, test_size=1)
    data, _ = problem.data(torch.Generator().manual_seed(0))
    single = {key: value.float() for key, value in data.items()}
    network = problem.network()
    controls = metrics(problem, network, single)["controls"]
    assert (controls.shape, controls.dtype) == ((8,), np.float64)
    expected = network(single["target"]).mean(0)
    torch.testing.assert_close(torch.from_numpy(controls).float(), expected.detach())
    assert network.training
    assert metrics(NonlinearOscillators(), network, single) == {}


def test_metrics_do_not_change_with_the_network():
    @dataclass(frozen=True)
    class Weighed(NonlinearOscillators):
        def metrics(self, network, batch):
            return {"bias": network[-1].bias}

    network = Weighed().network().double()
    before = metrics(Weighed(), network, {})["bias"]
    with torch.no_grad():
        network[-1].bias.add_(1)
    assert (before == 0).all()


def test_the_mode_is_restored_after_an_error():
    network = nn.Dropout()
    with pytest.raises(KeyboardInterrupt), evaluating(network):
        raise KeyboardInterrupt
    assert network.training
    assert torch.is_grad_enabled()
