"""Pullbacks are called no more often than they must be, and their contract is checked."""

import numpy as np
import pytest
import torch
from torch import nn

import hig
from hig._simulation.pullback import EVERY, FIRST, Contract, Pullback
from tests.textbook import relative_error

BATCH, OUT, IN = 5, 3, 4


class Counted:
    """A pullback by matrices (B, OUT, IN), or by one that mixes samples."""

    def __init__(self, dtype=torch.float64, coupling=0.0, noise=0.0):
        generator = torch.Generator().manual_seed(0)
        self.matrices = torch.randn(BATCH, OUT, IN, generator=generator, dtype=dtype)
        self.coupling, self.noise, self.calls = coupling, noise, 0

    def __call__(self, cotangent):
        self.calls += 1
        gradient = torch.einsum("bo,boi->bi", cotangent, self.matrices)
        gradient = gradient + self.coupling * gradient.roll(1, 0)
        # A solver of this tolerance.
        return [gradient * (1 + self.noise * torch.sin(1e6 * gradient)), None]


def cotangents(dtype=torch.float64, count=OUT):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, BATCH, OUT, generator=generator, dtype=dtype)


def linearised(call, contract, known, more):
    """The calls that a few more cotangents cost, and their gradients."""
    pullback = Pullback(call, contract)
    for cotangent in known:
        pullback(cotangent)
    before = call.calls
    return [pullback(cotangent)[0] for cotangent in more], call.calls - before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_known_is_not_asked_for(dtype):
    call, contract = Counted(dtype), Contract()
    known, more = cotangents(dtype), cotangents(dtype, 6)[3:]
    calls = []
    for _ in range(EVERY):
        found, count = linearised(call, contract, known, more)
        calls.append(count)
        for own, cotangent in zip(found, more, strict=True):
            assert own.dtype == dtype
            assert relative_error(own, call(cotangent)[0]) < 1e3 * torch.finfo(dtype).eps
    assert contract.holds
    assert calls == [len(more)] * FIRST + [0] * (EVERY - FIRST - 1) + [len(more)]


def test_cotangents_of_any_scale():
    call, contract = Counted(), Contract(used=FIRST)
    one_hot = [torch.eye(OUT, dtype=torch.float64)[k].expand(BATCH, OUT) for k in range(OUT)]
    scales = torch.logspace(-9, 9, BATCH * OUT, dtype=torch.float64).view(BATCH, OUT)
    (found,), calls = linearised(call, contract, one_hot, [scales])
    assert calls == 0
    torch.testing.assert_close(found, call(scales)[0], rtol=1e-13, atol=0)


def test_what_is_new_in_one_sample_is_asked_for():
    call, contract = Counted(), Contract(used=FIRST)
    known = cotangents()[:1]
    new = 2 * known[0]
    new[3] = torch.ones(OUT)
    (found,), calls = linearised(call, contract, known, [new])
    assert calls == 1
    assert torch.equal(found, call(new)[0])


def test_what_is_nearly_known_is_not_made_of_rounding():
    call, contract = Counted(torch.float32), Contract(used=FIRST)
    first, second, third = cotangents(torch.float32)
    near = first + 3e-5 * second
    (found,), _ = linearised(call, contract, [first, near], [second])
    assert relative_error(found, call(second)[0]) < 1e-5
    assert third.isfinite().all()


@pytest.mark.parametrize("coupling", [1e-10, 1e-5, 1.0])
def test_samples_that_influence_one_another_are_noticed(coupling):
    call, contract = Counted(coupling=coupling), Contract()
    more = cotangents(count=4)[3:]
    (found,), _ = linearised(call, contract, cotangents(), more)
    assert not contract.holds
    assert torch.equal(found, call(more[0])[0])
    assert linearised(call, contract, cotangents(), more)[1] == 1


@pytest.mark.parametrize("noise", [1e-12, 1e-9])
def test_the_tolerance_of_a_solver_is_no_coupling(noise):
    contract = Contract()
    linearised(Counted(noise=noise), contract, cotangents(), cotangents(count=4)[3:])
    assert contract.holds
    assert contract.independent
    contract = Contract()
    both = Counted(noise=noise, coupling=1e-10)
    linearised(both, contract, cotangents(), cotangents(count=4)[3:])
    assert not contract.holds


def test_a_pullback_that_is_not_linear():
    contract = Contract()
    linearised(Counted(noise=0.5), contract, cotangents(), cotangents(count=4)[3:])
    assert not contract.holds


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("scale", [1.0, 1e-12])
def test_a_step_calls_it_once_per_output(outputs, scale):
    """As often as `check_simulator` says, and the weak output is checked all the same."""
    calls = [0]

    def linearise(p):
        def pullback(c):
            calls[0] += 1
            return np.cos(p) * c

        return np.sin(p), pullback

    box = hig.black_box(linearise)

    def simulate(p):
        return torch.cat([box(p)[:, :1] * scale, box(p)[:, 1:]], 1) if outputs > 1 else box(p)

    report = hig.testing.check_simulator(box, torch.rand(4, outputs))
    assert report.passes == outputs
    network, x = nn.Linear(3, outputs), torch.randn(4, 3)
    optimizer = hig.HIG(network.parameters(), rcond=1e-15)

    def closure():
        prediction = simulate(network(x))
        return prediction.square().sum(1).mean(), prediction

    for _ in range(FIRST):
        optimizer.step(closure)
    calls[0] = 0
    optimizer.step(closure)
    boxes = 2 if outputs > 1 else 1
    assert calls[0] <= outputs * boxes
    assert optimizer.report.engine == "layerwise"


def test_a_box_with_coupled_samples_goes_row_by_row():
    def linearise(p):
        return p + 1e-3 * np.roll(p, 1, 0), lambda c: c + 1e-3 * np.roll(c, -1, 0)

    box = hig.black_box(linearise)
    report = hig.testing.check_simulator(box, torch.rand(4, 2))
    assert (report.engine, report.passes) == ("rows", 8)
    network, x = nn.Linear(3, 2), torch.randn(4, 3)
    optimizer = hig.HIG(network.parameters(), lr=1e-2)

    def closure():
        prediction = box(network(x))
        return prediction.square().sum(1).mean(), prediction

    for _ in range(20):
        optimizer.step(closure)
        assert "rows" in optimizer.report.engine
