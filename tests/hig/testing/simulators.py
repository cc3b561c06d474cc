"""Simulators that the checks are tried on, and what a report says about one check."""

import re

import torch

from hig.testing import check_simulator

START, CONTROLS = torch.zeros(4, 2), torch.linspace(-1, 1, 4 * 6).view(4, 6)
POINTS = torch.tensor([[1.0, 2.0], [2, 3], [-1, 2], [0.5, 4]])
GENERATOR = torch.Generator().manual_seed(5)
MIXED = torch.randn(6, 4, generator=GENERATOR, dtype=torch.float64)
INPUTS = torch.randn(4, 6, generator=GENERATOR, dtype=torch.float64)


def check_of(report, name="gradient check"):
    """The check of a name."""
    (check,) = [check for check in report.checks if check.name == name]
    return check


def outcome(simulate, inputs, name, **options):
    """The check of a name of a simulator."""
    return check_of(check_simulator(simulate, inputs, **options), name)


def assert_fails(simulate, name, text):
    """A check must fail, and its result or remedy match a pattern."""
    report = check_simulator(simulate, POINTS)
    assert not report.passed
    (failure,) = [failed for failed in report.failures if failed.name == name]
    assert re.search(text, f"{failure.found} -> {failure.remedy}"), failure
    assert failure.remedy
    assert str(report).splitlines()[-1].startswith("not ready")


def pendulum(state, controls):
    for control in controls.unbind(1):
        angle, speed = state.unbind(1)
        speed = speed + 0.1 * (control - angle.sin())
        state = torch.stack([angle + 0.1 * speed, speed], 1)
    return state


def smooth(x):
    return torch.tanh(x @ MIXED.to(x)) + x[:, :4].sin()


def kinked(x):
    return torch.relu(x @ MIXED.to(x)) + x[:, :4]


class Broken(torch.autograd.Function):
    """x³ with a derivative that is off by a thousandth."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, cotangent):
        return cotangent * 3.003 * ctx.saved_tensors[0] ** 2


class Scaled(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, cotangent):
        return cotangent * ctx.factor.to(cotangent), None


PLACES = {
    "all": (slice(None), slice(None)),
    "one column": (slice(None), 1),
    "one sample": (2, slice(None)),
    "one entry": (2, 1),
}


def factors(shape, place, error):
    found = torch.ones(shape, dtype=torch.float64)
    found[PLACES[place]] += error
    return found


class NotConverged(Exception):
    """As solvers raise: no subclass of RuntimeError."""
