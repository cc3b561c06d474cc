"""Steps for several losses, as a run takes them."""

import pytest
import torch

from experiments import Options, run
from experiments._methods import METHODS
from experiments._methods.several_losses import Alternating, Combined
from experiments._run.step import take_step
from problems import NonlinearOscillators, Settings
from problems.pinn import Burgers

TINY = Burgers(points_interior=16, points_boundary=4, points_initial=4, width=6, depth=2)
SEVERAL = [name for name, method in METHODS.items() if method.several_losses]


def prepared(name, **settings):
    torch.manual_seed(0)
    network = TINY.network()
    train, _ = TINY.data(torch.Generator().manual_seed(0))
    batch = {key: value.float() for key, value in train.items()}
    method = METHODS[name]
    optimizer = method.optimizer(list(network.parameters()), Settings(16, **settings))
    return network, batch, method, optimizer


def test_the_sum_of_the_gradients_makes_it_adam():
    networks = []
    for name in ("adam", "config"):
        network, batch, method, optimizer = prepared(name, lr=0.01)
        if name == "config":
            optimizer.operator = lambda matrix: matrix.sum(0)
        losses = [float(take_step(TINY, method, network, optimizer, batch)) for _ in range(5)]
        networks.append((losses, network.state_dict()))
    (first, weights), (second, others) = networks
    assert first == pytest.approx(second, rel=1e-5)
    for name in weights:
        torch.testing.assert_close(weights[name], others[name], rtol=1e-4, atol=1e-6)


def test_alternating_takes_the_losses_in_turn():
    network, batch, method, optimizer = prepared("mconfig", lr=0.01)
    assert isinstance(optimizer, Alternating)
    expected = [float(loss.detach()) for loss in TINY.losses(network, batch)]
    found = [float(take_step(TINY, method, network, optimizer, batch)) for _ in range(2)]
    assert found == pytest.approx(expected[:2], rel=1e-6)  # nothing moves before the third
    before = float(TINY.batch_loss(network, batch).detach())
    for _ in range(60):
        take_step(TINY, method, network, optimizer, batch)
    assert float(TINY.batch_loss(network, batch).detach()) < before


def test_config_keeps_its_report():
    network, batch, method, optimizer = prepared("config", lr=0.01)
    assert isinstance(optimizer, Combined)
    take_step(TINY, method, network, optimizer, batch)
    assert optimizer.operator.report.smallest_cosine > 0


@pytest.mark.parametrize("name", SEVERAL)
def test_results_of_a_run(name, tmp_path):
    settings = TINY.settings[name]
    options = Options(out=tmp_path, epochs=4, quiet=True)
    results = run(TINY, name, Settings(16, lr=1e-3, rcond=settings.rcond), options)
    assert results["stopped"] == "epochs"
    assert results["tested_by"] == "mean squared error"
    assert ("rank" in results) == (name in ("hig", "gn", "lm", "multihig"))
    if "smallest_cosine" in results:  # weighted sums know of none
        assert len(results["smallest_cosine"]) == len(results["epochs"])
    assert ("smallest_cosine" in results) == (name not in ("minmax", "relobralo", "lra"))


def test_a_problem_with_one_loss_is_refused(tmp_path):
    oscillators = NonlinearOscillators()
    object.__setattr__(oscillators, "settings", {"config": Settings(16, lr=1e-3)})
    with pytest.raises(ValueError, match="several losses"):
        run(oscillators, "config", Settings(16, lr=1e-3), Options(out=tmp_path, epochs=1))
