"""Simulators whose calls disturb one another, and those whose calls do not."""

import re

import numpy as np
import pytest
import torch

import hig
from tests.hig.testing.simulators import outcome

INPUTS = torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Workspace:
    """sin(x) with one set of arrays for all calls."""

    def __init__(self):
        self.state = np.zeros((4, 2))
        self.gradient = np.zeros((4, 2))

    def run(self, x):
        self.state = x.copy()
        return np.sin(x)

    def pullback(self, cotangent):
        return np.cos(self.state) * cotangent


def last_run():
    """As fields of kernels and adjoint solvers: the pullback is that of the last run."""
    solver = Workspace()
    return hig.black_box(lambda x: (solver.run(x), solver.pullback))


def last_cheap_run():
    """The same where the run without a derivative overwrites the state too."""
    solver = Workspace()

    def linearise(x):
        kept = np.sin(x)
        solver.state = x.copy()
        return kept, lambda cotangent: np.cos(solver.state) * cotangent

    return hig.black_box(linearise, solver.run)


def view_on_a_workspace():
    """As libraries that return their own arrays, which the next call fills again."""
    derivative = np.zeros((4, 2))

    def linearise(x):
        np.cos(x, out=derivative)
        return np.sin(x), lambda cotangent: derivative * cotangent

    return hig.black_box(linearise)


class Buffered(torch.autograd.Function):
    """2 x, in buffers that every call uses again."""

    output = torch.zeros(4, 2, dtype=torch.float64)
    gradient = torch.zeros(4, 2, dtype=torch.float64)

    @staticmethod
    def forward(ctx, x, which):
        ctx.which = which
        if "output" not in which:
            return 2 * x
        Buffered.output = Buffered.output.detach().to(x.dtype)
        np.copyto(Buffered.output.numpy(), 2 * x.detach().numpy())
        return Buffered.output.view(4, 2)

    @staticmethod
    def backward(ctx, cotangent):
        if "gradient" not in ctx.which:
            return 2 * cotangent, None
        np.copyto(Buffered.gradient.numpy(), 2 * cotangent.numpy())
        return Buffered.gradient.view(4, 2), None


class InPlaceLater:
    """Keeps its input and writes into it when it is called again."""

    kept = None

    def __call__(self, x):
        if self.kept is not None and self.kept.shape == x.shape:
            self.kept.data.mul_(0.5)
        self.kept = x
        return 2 * x


def in_place_with_gradients(x):
    if x.requires_grad:
        x.data.mul_(2)
    return 3 * x


DISTURBED = {
    "last run": (last_run, "first of two calls is .* off", "last run"),
    "last cheap run": (last_cheap_run, "first of two calls is .* off", "last run"),
    "view on a workspace": (view_on_a_workspace, "first of two calls is .* off", "copy in every"),
    "output": (lambda: lambda x: Buffered.apply(x, "output"), "overwrites the output", "copy"),
    "gradient": (
        lambda: lambda x: Buffered.apply(x, "gradient"),
        "overwrites the gradient",
        "copies from the backward pass",
    ),
    "in place later": (InPlaceLater, r"inputs \[0\] change in place", "copy inputs"),
    "in place with gradients": (lambda: in_place_with_gradients, r"inputs \[0\]", "copy inputs"),
}


@pytest.mark.parametrize("name", DISTURBED)
def test_calls_that_disturb_one_another_fail(name):
    make, found, remedy = DISTURBED[name]
    check = outcome(make(), INPUTS, "call independence")
    assert check.verdict == "fail"
    assert re.search(found, check.found), check
    assert remedy in check.remedy


def test_a_derivative_of_its_own_call_passes():
    def linearise(x):
        kept = x.copy()
        return np.sin(x), lambda cotangent: np.cos(kept) * cotangent

    assert outcome(hig.black_box(linearise), INPUTS, "call independence").verdict == "ok"
