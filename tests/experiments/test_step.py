import pytest
import torch

from experiments._methods import METHODS
from experiments._step import take_step
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
