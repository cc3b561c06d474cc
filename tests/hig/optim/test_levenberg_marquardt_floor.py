"""Levenberg-Marquardt at the floor of a batch: the damping stays, and comes back."""

import copy
import math

import pytest
import torch
from torch import nn

import hig

UNSEEN = "below the rounding of the loss"
SCALES = {
    "half": lambda r: 0.5 * r.square().sum(),
    "sum": lambda r: r.square().sum(),
    "mean": lambda r: r.square().mean(),
    "offset": lambda r: 0.5 * r.square().sum() + 1e6,
    "tiny": lambda r: 1e-20 * r.square().sum(),
    "huge": lambda r: 1e20 * r.square().sum(),
}
# A step of fixed length needs half the sum; a line search needs a few doublings for another scale.
KINDS = [
    *(("fixed", scale) for scale in ("half", "offset", "huge")),
    *(("trust", scale) for scale in SCALES),
    *(("line_search", scale) for scale in ("half", "sum", "mean", "offset")),
]
MOMENTA = [{}, {"momentum": 0.5}, {"momentum": 0.5, "momentum_kind": "projected"}]


def first_damping(rule):
    """That of the straight line, whose largest singular value has the square 40."""
    return 0.4 if rule == "trust" else 1e-3


def straight_line(dtype, noise, scale):
    """A linear fit whose data can be changed: network, data, closure, sum of squares."""
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 40, dtype=dtype)[:, None]
    noise = noise * torch.randn(40, 1, dtype=dtype)
    data = {"y": 2 * x - 1 + noise, "next": 0.5 - 3 * x + noise}
    network = nn.Linear(1, 1).to(dtype)

    def closure():
        residual = network(x) - data["y"]
        return SCALES[scale](residual), residual

    return network, data, closure, lambda: float(closure()[1].detach().square().sum())


# With momentum an exact fit in float64 takes more steps to its floor than there are here.
PRECISIONS = [
    *((dtype, noise, {}) for dtype in (torch.float32, torch.float64) for noise in (0.1, 0.0)),
    *((dtype, 0.1, m) for dtype in (torch.float32, torch.float64) for m in MOMENTA[1:]),
    *((torch.float32, 0.0, momentum) for momentum in MOMENTA[1:]),
]


@pytest.mark.parametrize(("dtype", "noise", "momentum"), PRECISIONS)
@pytest.mark.parametrize(("rule", "scale"), KINDS)
def test_the_damping_stays_at_the_floor_and_comes_back(dtype, noise, rule, scale, momentum):
    network, data, closure, error = straight_line(dtype, noise, scale)
    optimizer = hig.LevenbergMarquardt(network.parameters(), step_rule=rule, **momentum)
    dampings, unseen = [], []
    for _ in range(70):
        optimizer.step(closure)
        dampings.append(optimizer.report.damping)
        unseen.append(any(UNSEEN in note for note in optimizer.report.notes))
    floor = unseen.index(True)
    assert sum(unseen[floor:]) > 0.5 * len(unseen[floor:])
    assert max(dampings[floor:]) <= 100 * dampings[floor]
    assert min(dampings) > 1e-14
    data["y"] = data["next"]
    start = error()
    for _ in range(20):
        optimizer.step(closure)
    # The float32 loss of 1e6 shows no gain below 0.4.
    floor = 2.0 if scale == "offset" and dtype == torch.float32 else 0.01 * start
    assert error() < 40 * noise**2 + floor


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rule", "scale"), KINDS)
@pytest.mark.parametrize("momentum", MOMENTA, ids=lambda m: m.get("momentum_kind", str(len(m))))
def test_a_loss_of_zero_changes_nothing_until_the_data_do(dtype, rule, scale, momentum):
    network, data, closure, error = straight_line(dtype, 0.0, scale)
    with torch.no_grad():  # of numbers that floats hold exactly
        network.weight.fill_(2)
        network.bias.fill_(-1)
    data["y"] = closure()[1].detach() + data["y"]
    before = copy.deepcopy(network.state_dict())
    optimizer = hig.LevenbergMarquardt(network.parameters(), step_rule=rule, **momentum)
    for _ in range(10):
        optimizer.step(closure)
        assert optimizer.report.damping == pytest.approx(first_damping(rule), rel=1e-6)
        notes = [note for note in optimizer.report.notes if UNSEEN in note]
        assert len(notes) == (2 if rule == "trust" else 1)  # of the fraction, and of the damping
        assert len(set(notes)) == len(notes) and sum("damping stays" in note for note in notes) == 1
        assert not math.isnan(optimizer.report.gain_ratio or 0)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    data["y"] = data["next"]
    start = error()
    for _ in range(20):
        optimizer.step(closure)
    assert error() < max(0.01 * start, 2.0 if scale == "offset" else 0)


@pytest.mark.parametrize("saved", [1e30, 1e-30, 1e12])
@pytest.mark.parametrize("rule", ["fixed", "trust", "line_search"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_saved_damping_that_is_out_of_bounds_comes_back(saved, rule, dtype):
    network, _, closure, error = straight_line(dtype, 0.0, "half")
    optimizer = hig.LevenbergMarquardt(network.parameters(), step_rule=rule)
    state = optimizer.state_dict()
    state["state"]["damping"]["value"] = saved
    optimizer.load_state_dict(state)
    start = error()
    for _ in range(20):
        optimizer.step(closure)
    assert 1e-14 < optimizer.report.damping < 1e6
    assert error() < 0.01 * start


def test_a_run_goes_on_from_a_state_saved_at_the_floor():
    network, data, closure, _ = straight_line(torch.float64, 0.1, "half")
    optimizer = hig.LevenbergMarquardt(network.parameters(), step_rule="trust", momentum=0.3)
    for _ in range(30):
        optimizer.step(closure)
    parameters, state = copy.deepcopy(network.state_dict()), copy.deepcopy(optimizer.state_dict())
    assert isinstance(state["state"]["damping"]["value"], float)
    data["y"] = data["next"]
    expected = [float(optimizer.step(closure)) for _ in range(10)]
    other = hig.LevenbergMarquardt(network.parameters(), step_rule="trust", momentum=0.3)
    network.load_state_dict(parameters)
    other.load_state_dict(state)
    assert [float(other.step(closure)) for _ in range(10)] == expected


@pytest.mark.parametrize("rule", ["fixed", "trust", "line_search"])
def test_a_learning_rate_of_zero_changes_nothing(rule):
    """As in the first step of some warm-ups."""
    network, _, closure, error = straight_line(torch.float64, 0.1, "half")
    optimizer = hig.LevenbergMarquardt(network.parameters(), lr=0.0, step_rule=rule)
    start = error()
    for _ in range(5):
        optimizer.step(closure)
    assert optimizer.report.damping == pytest.approx(first_damping(rule))
    assert optimizer.report.step_size == 0
    assert error() == start


def count_closures(rule, steps, lr=1.0):
    """The closure calls of some steps from the floor of a batch."""
    network, _, closure, _ = straight_line(torch.float64, 0.1, "half")
    calls = []

    def counted():
        calls.append(1)
        return closure()

    optimizer = hig.LevenbergMarquardt(network.parameters(), lr=lr, step_rule=rule)
    for _ in range(30):
        optimizer.step(closure)
    for _ in range(steps):
        optimizer.step(counted)
    return len(calls)


def test_a_step_at_the_floor_evaluates_once():
    assert count_closures("fixed", 10) == 20


class Refuses:
    """Takes no step."""

    measures = True

    def __init__(self):
        self.state = {"takes": 0}

    def take(self, trial):
        self.state["takes"] += 1
        trial.move(0)


def test_a_rule_that_found_no_step_is_asked_twice_at_most():
    network, _, closure, _ = straight_line(torch.float64, 0.1, "half")
    rule = Refuses()
    optimizer = hig.LevenbergMarquardt(network.parameters(), step_rule=rule)
    optimizer.step(closure)
    assert rule.state["takes"] == 2
    assert optimizer.report.damping == pytest.approx(16e-3)
