"""Runs with the trust rule on batches whose target may be the network's output elsewhere."""

import copy
import functools

import pytest
import torch
from torch import nn

import hig
from hig._step.earlier_points import Point
from tests.textbook import flat

RETURN = "back to the parameters before them"
KINDS = {
    "hig": lambda p: hig.HIG(p, step_rule="trust"),
    "hig momentum": lambda p: hig.HIG(p, step_rule="trust", momentum=0.5),
    "gn": lambda p: hig.GaussNewton(p, step_rule="trust", rcond=1e-3),
    "gn projected": lambda p: hig.GaussNewton(
        p, step_rule="trust", rcond=1e-3, momentum=0.5, momentum_kind="projected"
    ),
    "lm": lambda p: hig.LevenbergMarquardt(p, step_rule="trust"),
    "lm momentum": lambda p: hig.LevenbergMarquardt(p, step_rule="trust", momentum=0.5),
    # Products need the graph at the present parameters, which a look elsewhere ends.
    "gn lanczos": lambda p: hig.GaussNewton(
        p, step_rule="trust", rcond=1e-3, method="lanczos", engine="rows"
    ),
    "multi": lambda p: hig.MultiHIG(p, step_rule="trust"),
}
EACH = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
MULTI = hig.MultiHIG


def move(network, place):
    """Set the parameters to copies of a vector."""
    nn.utils.vector_to_parameters(place.clone(), network.parameters())


class Run:
    """A network that is trained on batches whose target may be its own output elsewhere."""

    def __init__(self, make, dtype=torch.float64):
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).to(dtype)
        self.optimizer = make(self.network.parameters())

    def closure(self, number, target=None, calls=None):
        """Batch of a number; the target is a constant, or that of other parameters."""
        generator = torch.Generator().manual_seed(number)
        dtype = next(self.network.parameters()).dtype
        inputs = torch.randn(5, 4, generator=generator, dtype=torch.float64).to(dtype)
        wanted = torch.ones((), dtype=dtype)
        if target is not None:
            other = copy.deepcopy(self.network)
            move(other, target)
            wanted = other(inputs).detach()

        def closure():
            if calls is not None:
                calls()
            prediction = self.network(inputs)
            loss = (prediction - wanted).square().sum()
            pair = loss, prediction
            return [pair] if isinstance(self.optimizer, MULTI) else pair

        return closure

    def step(self, number, target=None, calls=None):
        """Take a step; return whether it went back to the safe point."""
        self.optimizer.step(self.closure(number, target, calls))
        return any(RETURN in note for note in self.optimizer.report.notes)

    def point(self, point):
        states = [self.optimizer.state.get(p, {}) for p in self.network.parameters()]
        return None if any(point not in s for s in states) else flat(s[point] for s in states)

    def at(self):
        return flat(self.network.parameters()).clone()

    def stored(self):
        """Everything that is kept per parameter."""
        return [dict(self.optimizer.state.get(p, {})) for p in self.network.parameters()]

    def copy(self):
        """Return a run that goes on from here as this one does."""
        twin = copy.copy(self)
        twin.network, twin.optimizer = copy.deepcopy((self.network, self.optimizer))
        return twin


@functools.cache
def _warmed(make, dtype, steps):
    run = Run(make, dtype)
    for number in range(steps):
        run.step(number)
    return run, torch.get_rng_state()


def warm(make, dtype=torch.float64, steps=6):
    """Return a run that has taken some steps, and its safe point.

    A copy of the one run that took them: as good, as the test of resumed runs shows.
    """
    run, random_state = _warmed(make, dtype, steps)
    torch.set_rng_state(random_state)
    twin = run.copy()
    return twin, twin.point(Point.SAFE)
