"""Steps with Kronecker factors in any precision: autocast, half, mixed, complex."""

import copy

import pytest
import torch
from torch import nn

import hig
from tests.textbook import flat, relative_error, step_of

DOUBLE = {"dtype": torch.float64}


def network_of(dtype=torch.float64, fan_in=3):
    torch.manual_seed(0)
    layers = nn.Linear(fan_in, 8), nn.Tanh(), nn.Linear(8, 2)
    return nn.Sequential(*layers).to(dtype)


def closure_of(predict, target=0.3):
    def closure():
        prediction = predict()
        return (prediction.double() - target).square().sum(), prediction

    return closure


def first_step(predict):
    """The first step of a network in float64 whose prediction is given."""
    network = network_of()
    optimizer = hig.KroneckerHIG(network.parameters(), lr=0.01)
    return step_of(optimizer, closure_of(lambda: predict(network)))


HALF = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("where", ["inside", "around"])
def test_autocast(dtype, where):
    network = network_of(torch.float32)
    torch.manual_seed(1)
    inputs = torch.randn(8, 3)
    optimizer = hig.KroneckerHIG(network.parameters(), lr=0.01)

    def closure():
        with torch.autocast("cpu", dtype=dtype):
            prediction = network(inputs)
        return (prediction.float() - 1).square().mean(), prediction

    losses = []
    for _ in range(50):
        with torch.autocast("cpu", dtype=dtype, enabled=where == "around"):
            losses.append(float(optimizer.step(closure)))
    assert losses[-1] < 0.1 * losses[0]
    assert optimizer.report.layers == 2 and optimizer.report.notes == []
    for parameter in network.parameters():
        assert parameter.dtype == torch.float32
        kept = [v for v in optimizer.state[parameter].values() if torch.is_tensor(v)]
        assert kept and all(value.dtype == torch.float32 for value in kept)


def test_autocast_changes_a_step_by_its_rounding_alone():
    network = network_of(torch.float32)
    again = copy.deepcopy(network)
    torch.manual_seed(1)
    inputs = torch.randn(64, 3)

    def lower():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return again(inputs)

    # Not in the eigenbasis: Adam's first step is as long for coordinates that are rounding.
    options = {"lr": 0.01, "graft": "layer"}
    optimizer = hig.KroneckerHIG(network.parameters(), **options)
    expected = step_of(optimizer, closure_of(lambda: network(inputs)))
    found = step_of(hig.KroneckerHIG(again.parameters(), **options), closure_of(lower))
    assert relative_error(found.double(), expected.double()) < 16 * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("graft", ["eigenbasis", "global", "layer"])
def test_half_precision_parameters(dtype, graft):
    network = network_of(dtype)
    torch.manual_seed(1)
    inputs = torch.randn(8, 3, dtype=dtype)
    optimizer = hig.KroneckerHIG(network.parameters(), lr=0.01, graft=graft)
    closure = closure_of(lambda: network(inputs), target=1.0)
    losses = [float(optimizer.step(closure)) for _ in range(50)]
    assert losses[-1] < 0.1 * losses[0]
    assert all(p.dtype == dtype for p in network.parameters())
    state = optimizer.state[network[0].weight]
    assert state["inputs"].dtype == state["scale"].dtype == state["exp_avg"].dtype == torch.float32


def test_a_step_out_of_the_numbers_of_float16_is_taken_back():
    network = network_of(torch.float16)
    inputs = torch.ones(8, 3, dtype=torch.float16)
    optimizer = hig.KroneckerHIG(network.parameters(), lr=6e4)
    start = flat(network.parameters())
    with pytest.raises(hig.NonFiniteError, match="leaves NaN or Inf in the parameters"):
        for _ in range(4):  # of some hundred thousand in all
            start = flat(network.parameters())
            optimizer.step(closure_of(lambda: network(inputs)))
    assert torch.equal(flat(network.parameters()), start)


@pytest.mark.parametrize(
    ("network_dtype", "simulator_dtype"),
    [(torch.float64, torch.float32), (torch.float32, torch.float64)],
)
def test_a_simulator_in_another_precision(network_dtype, simulator_dtype):
    network = network_of(network_dtype)
    torch.manual_seed(1)
    inputs = torch.randn(8, 3, dtype=network_dtype)
    expected = first_step(lambda n: n(inputs.double()).sin())
    optimizer = hig.KroneckerHIG(network.parameters(), lr=0.01)
    found = step_of(optimizer, closure_of(lambda: network(inputs).to(simulator_dtype).sin()))
    assert optimizer.report.layers == 2 and optimizer.report.notes == []
    assert relative_error(found.double(), expected) < 1e-3
    assert optimizer.state[network[0].weight]["inputs"].dtype == network_dtype


class Spectral(nn.Module):
    """A real layer, complex weights and a frozen complex phase."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 6, **DOUBLE)
        self.weights = nn.Parameter(torch.randn(4, dtype=torch.complex128))
        self.mixing = nn.Linear(4, 4, dtype=torch.complex128)
        phase = torch.polar(torch.ones(4, **DOUBLE), torch.linspace(0, 1, 4, **DOUBLE))
        self.phase = nn.Parameter(phase, requires_grad=False)
        self.count = nn.Parameter(torch.tensor(2), requires_grad=False)

    def forward(self, x):
        found = torch.fft.rfft(self.layer(x)) * self.weights * self.phase
        return self.count * torch.fft.irfft(self.mixing(found), n=6)


def test_complex_parameters_take_the_steps_of_adam():
    torch.manual_seed(0)
    network, inputs = Spectral(), torch.randn(5, 4, **DOUBLE)
    optimizer = hig.KroneckerHIG(network.named_parameters(), lr=0.01, eps=1e-6)
    closure = closure_of(lambda: network(inputs))
    trained = {n: p for n, p in network.named_parameters() if p.is_complex() and p.requires_grad}
    frozen = network.phase.clone()
    twins = {n: p.detach().clone().requires_grad_() for n, p in trained.items()}
    adam = torch.optim.Adam(twins.values(), lr=0.01, eps=1e-6)
    losses = []
    for _ in range(60):
        gradients = torch.autograd.grad(closure()[0], trained.values())
        for n, g in zip(trained, gradients, strict=True):
            twins[n].grad = g
        adam.step()
        losses.append(float(optimizer.step(closure)))
        for n, p in trained.items():
            torch.testing.assert_close(p.detach(), twins[n].detach(), rtol=1e-10, atol=1e-12)
    assert losses[-1] < 0.1 * losses[0]
    assert optimizer.report.layers == 1
    assert optimizer.report.left_to_adam.keys() == trained.keys()
    assert torch.equal(network.phase, frozen)


def test_the_default_dtype_does_not_matter():
    inputs = torch.randn(6, 3, **DOUBLE)
    expected = first_step(lambda n: n(inputs))
    network = network_of()
    optimizer = hig.KroneckerHIG(network.parameters(), lr=0.01)
    torch.set_default_dtype(torch.float16)
    try:
        found = step_of(optimizer, closure_of(lambda: network(inputs)))
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)
