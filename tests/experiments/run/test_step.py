from dataclasses import replace

import pytest
import torch

from experiments._methods import METHODS
from experiments._run.step import repeatable_step, take_step
from problems import NonlinearOscillators

TINY = NonlinearOscillators(time_steps=8, dt=0.5, train_size=4, test_size=1)


@pytest.mark.parametrize("name", ["hig", "adam", "lbfgs"])
def test_returns_the_loss_before_the_step(name):
    torch.manual_seed(0)
    network, method = TINY.network(), METHODS[name]
    batch, _ = TINY.data(torch.Generator().manual_seed(0))
    batch = {key: value.float() for key, value in batch.items()}
    optimizer = method.optimizer(list(network.parameters()), TINY.settings[name])
    before = TINY.loss(TINY.predict(network, batch), batch)
    weights = [parameter.detach().clone() for parameter in network.parameters()]
    loss = take_step(TINY, method, network, optimizer, batch)
    assert loss.item() == pytest.approx(before.item(), rel=1e-5)
    assert not loss.requires_grad
    assert any(not torch.equal(p, w) for p, w in zip(network.parameters(), weights, strict=True))


@pytest.mark.parametrize("name", ["hig", "gn", "lm", "adam"])
def test_repeatable_steps_start_from_the_same_weights(name, monkeypatch):
    calls = []
    predict = NonlinearOscillators.predict
    monkeypatch.setattr(
        NonlinearOscillators, "predict", lambda *args: calls.append(1) or predict(*args)
    )
    torch.manual_seed(0)
    network = TINY.network()
    batch, _ = TINY.data(torch.Generator().manual_seed(0))
    batch = {key: value.float() for key, value in batch.items()}
    settings = TINY.settings[name]
    settings = replace(settings, lr=settings.lr / 32)  # meant for batches of 128, and these are 4
    step = repeatable_step(TINY, METHODS[name], network, settings, batch)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    first = step()
    assert any(not torch.equal(p, w) for p, w in zip(network.parameters(), before, strict=True))
    for _ in range(3):
        assert torch.equal(step(), first)
    # No step is rejected over and over again: its time would be that of many.
    assert len(calls) <= 4 * 3


class Focused(NonlinearOscillators):
    def focus(self, network, batch):
        return {key: value[:1] for key, value in batch.items()}


@pytest.mark.parametrize("name", ["hig", "adam"])
def test_steps_on_what_the_problem_chooses(name):
    torch.manual_seed(0)
    network, method = TINY.network(), METHODS[name]
    batch, _ = TINY.data(torch.Generator().manual_seed(0))
    batch = {key: value.float() for key, value in batch.items()}
    problem = Focused(time_steps=8, dt=0.5)
    optimizer = method.optimizer(list(network.parameters()), TINY.settings[name])
    first = problem.focus(network, batch)
    before = TINY.loss(TINY.predict(network, first), first)
    assert len(first["start"]) == 1
    loss = take_step(problem, method, network, optimizer, batch)
    assert loss.item() == pytest.approx(before.item(), rel=1e-5)
