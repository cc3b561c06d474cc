import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

import hig
from experiments._methods import METHODS, MuonAdamW
from problems import NonlinearOscillators, Settings
from problems.pinn import Burgers

SINGLE = [name for name, method in METHODS.items() if not method.several_losses]
SEVERAL = [name for name, method in METHODS.items() if method.several_losses]


def test_every_method_has_settings():
    assert set(NonlinearOscillators.settings) == set(SINGLE)
    assert set(SEVERAL) < set(Burgers.settings)


@pytest.mark.parametrize("name", SINGLE)
def test_settings_fit_the_options_of_the_method(name):
    settings = NonlinearOscillators.settings[name]
    options = {"rcond", "kappa", "damping", "engine", "method", "step_rule", "schedule"}
    options |= {"momentum", "momentum_kind", "graft"}
    for option in options - set(METHODS[name].options):
        assert getattr(settings, option) is None, f"{name} does not take {option}"
    complete = METHODS[name].complete(settings)
    left = {option for option in METHODS[name].options if getattr(complete, option) is None}
    assert left <= {"sketch", "momentum", "momentum_kind"}  # None is a choice of the optimiser


def test_complete_keeps_what_is_set():
    complete = METHODS["hig"].complete(Settings(batch_size=8, lr=2.0, rcond=1e-3))
    assert (complete.rcond, complete.kappa, complete.step_rule) == (1e-3, -0.5, "fixed")
    assert complete.batch_size == 8


def test_jacobian_methods_get_their_options():
    parameters = list(nn.Linear(2, 2).parameters())
    settings = Settings(batch_size=8, lr=0.25, rcond=1e-3, kappa=-0.75, damping=0.5)
    half_inverse = METHODS["hig"].optimizer(parameters, settings)
    assert isinstance(half_inverse, hig.HIG)
    assert half_inverse.param_groups[0]["lr"] == 0.25
    assert (half_inverse.filter.kappa, half_inverse.filter.rcond) == (-0.75, 1e-3)
    gauss_newton = METHODS["gn"].optimizer(parameters, settings)
    assert (gauss_newton.filter.kappa, gauss_newton.filter.rcond) == (-1.0, 1e-3)
    assert METHODS["lm"].optimizer(parameters, settings).filter.damping == 0.5


@pytest.mark.parametrize("name", ["hig", "gn", "lm"])
def test_steps_for_one_loss_get_their_momentum(name):
    parameters = list(nn.Linear(2, 2).parameters())
    settings = Settings(batch_size=8, lr=1.0, momentum=0.5, momentum_kind="projected")
    momentum = METHODS[name].optimizer(parameters, settings)._options
    assert (momentum.momentum, momentum.momentum_kind) == (0.5, "projected")
    assert METHODS[name].optimizer(parameters, Settings(8, lr=1.0))._options.momentum is None
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\), got 1.0"):
        Settings(8, lr=1.0, momentum=1.0)


@pytest.mark.parametrize("name", ["hig", "gn", "lm", "multihig"])
def test_lanczos_gets_its_steps(name):
    parameters = list(nn.Linear(2, 2).parameters())
    settings = Settings(batch_size=8, lr=1.0, method="lanczos", lanczos_steps=7)
    assert METHODS[name].optimizer(parameters, settings)._options.method == hig.Lanczos(steps=7)
    default = METHODS[name].optimizer(parameters, replace(settings, lanczos_steps=None))
    assert default._options.method == hig.Lanczos()
    assert (
        METHODS[name].optimizer(parameters, replace(settings, method="gram"))._options.method
        == "gram"
    )


def test_kronecker_steps_get_their_options_and_report_on_no_jacobian():
    torch.manual_seed(0)
    network, inputs = nn.Linear(3, 2).double(), torch.randn(16, 3).double()
    method = METHODS["khig"]
    settings = Settings(
        batch_size=16, lr=0.05, kappa=-1.0, damping=0.5, graft="layer", schedule="cosine"
    )
    optimizer = method.optimizer(list(network.parameters()), settings)
    options = {"kappa": -1.0, "damping": 0.5, "graft": "layer"}
    expected = hig.KroneckerHIG(network.parameters(), lr=0.05, **options)

    def closure():
        prediction = network(inputs)
        return prediction.square().sum(), prediction

    start = [p.detach().clone() for p in network.parameters()]
    optimizer.step(closure)
    moved = [p.detach().clone() for p in network.parameters()]
    with torch.no_grad():
        for p, value in zip(network.parameters(), start, strict=True):
            p.copy_(value)
    expected.step(closure)
    for p, value in zip(network.parameters(), moved, strict=True):
        assert torch.equal(p, value)
    assert not method.jacobian and METHODS["hig"].jacobian and METHODS["lm"].jacobian


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.closure == "backward"])
def test_baselines_decrease_a_quadratic(name):
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    inputs = torch.randn(16, 3)
    optimizer = METHODS[name].optimizer(list(network.parameters()), Settings(16, lr=0.05))
    losses = []

    def closure():
        optimizer.zero_grad()
        loss = network(inputs).square().sum(1).mean()
        loss.backward()
        return loss

    for _ in range(12):
        losses.append(optimizer.step(closure).item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", SEVERAL)
def test_several_losses_decrease(name):
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    inputs = torch.randn(16, 3)
    method = METHODS[name]
    optimizer = method.optimizer(list(network.parameters()), Settings(16, lr=0.05))
    predictions = [lambda: network(inputs)[:, :1], lambda: 10 * network(inputs)[:, 1:] - 1]

    def pairs():
        return [(p.square().mean(), p) for p in (predict() for predict in predictions)]

    def losses(index=None):
        found = [loss for loss, _ in pairs()]
        return found if index is None else found[index]

    before = float(sum(losses()).detach())
    for _ in range(40):
        if method.closure == "turns":
            optimizer.step(losses, 2)
        else:
            optimizer.step(pairs if method.closure == "pairs" else losses)
    assert float(sum(losses()).detach()) < 0.8 * before
    for group in optimizer.param_groups:
        assert group["lr"] == 0.05


def test_muon_moves_matrices_and_biases():
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = MuonAdamW(list(network.parameters()), lr=0.01)
    before = [p.detach().clone() for p in network.parameters()]
    inputs = torch.randn(5, 3)

    def closure():
        optimizer.zero_grad()
        loss = network(inputs).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert [len(part.param_groups[0]["params"]) for part in optimizer.parts] == [2, 2]
    assert all((p != b).all() for p, b in zip(network.parameters(), before, strict=True))
    optimizer.zero_grad()
    assert all(p.grad is None for p in network.parameters())


def test_muon_without_biases():
    network = nn.Linear(3, 2, bias=False)
    assert len(MuonAdamW(list(network.parameters()), lr=0.01).parts) == 1


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(ImportError, match="pip install"):
        METHODS["soap"].optimizer(list(nn.Linear(2, 2).parameters()), Settings(8, lr=0.1))
