"""After a step no graph, Jacobian or Gram matrix is alive, although Python's collector is off."""

import contextlib
import gc
import weakref
from typing import ClassVar

import pytest
import torch
from torch import nn

import hig

SAMPLES = 6


class Token:
    """Something that a graph holds, and that can be looked at weakly."""


class Marked(torch.autograd.Function):
    """The identity; its node in the graph holds a token."""

    tokens: ClassVar = weakref.WeakSet()

    @staticmethod
    def forward(ctx, x):
        ctx.token = Token()
        Marked.tokens.add(ctx.token)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


@pytest.fixture(autouse=True)
def without_the_collector():
    gc.collect()
    Marked.tokens.clear()
    gc.disable()
    yield
    gc.enable()


def problem(outputs=2, fail=()):
    """A closure whose graph holds tokens; it raises in the calls of the given numbers."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, outputs))
    inputs, calls = torch.randn(SAMPLES, 3), []

    def closure():
        calls.append(1)
        if len(calls) in fail:
            raise ZeroDivisionError("the simulator")
        prediction = Marked.apply(network(inputs)).sin()
        return prediction.square().mean(), prediction

    return network, closure


def square_tensors():
    """Matrices of the size of a Gram matrix that are alive."""
    rows = 2 * SAMPLES
    gc_tensors = (item for item in gc.get_objects() if type(item) is torch.Tensor)
    return [t for t in gc_tensors if t.shape == (rows, rows)]


class Several(hig.MultiHIG):
    """Takes a closure of one loss and makes two of it, of one prediction or of two."""

    each = False

    def step(self, closure):
        def both():
            loss, prediction = closure()
            other = prediction.exp() if self.each else prediction
            return [(loss, prediction), (other.square().mean(), other)]

        return super().step(both)


class SeveralEach(Several):
    each = True


STEPS = {
    "fixed": hig.HIG,
    "rows": lambda p: hig.HIG(p, engine="rows"),
    "chunk": lambda p: hig.HIG(p, engine="rows", chunk=1),
    "svd": lambda p: hig.HIG(p, method="svd"),
    "gram": lambda p: hig.HIG(p, method="gram", rcond="auto"),
    "lanczos": lambda p: hig.HIG(p, method="lanczos"),
    "products": lambda p: hig.HIG(p, method="lanczos", engine="rows", step_rule="trust"),
    "trust": lambda p: hig.GaussNewton(p, step_rule="trust"),
    "line_search": lambda p: hig.HIG(p, step_rule="line_search"),
    "momentum": lambda p: hig.HIG(p, momentum=0.9, momentum_kind="projected", step_rule="trust"),
    "levenberg": hig.LevenbergMarquardt,
    "levenberg_rows": lambda p: hig.LevenbergMarquardt(p, engine="rows", momentum=0.5),
    "levenberg_lanczos": lambda p: hig.LevenbergMarquardt(p, method="lanczos"),
    "levenberg_cut": lambda p: hig.LevenbergMarquardt(p, rcond=1e-6, lr=0.5),
    "kronecker": lambda p: hig.KroneckerHIG(p, probe_every=1),
    "several": Several,
    "several_each": SeveralEach,
    "several_trust": lambda p: Several(p, step_rule="trust"),
}


@pytest.mark.parametrize("make", STEPS.values(), ids=STEPS)
def test_after_a_step(make):
    network, closure = problem()
    optimizer = make(network.parameters())
    for _ in range(3):
        optimizer.step(closure)
        assert not Marked.tokens


@pytest.mark.parametrize("make", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("call", [1, 2])
def test_after_a_step_that_raised(make, call):
    network, closure = problem(fail=[call])
    optimizer = make(network.parameters())
    with contextlib.suppress(ZeroDivisionError):
        for _ in range(2):
            optimizer.step(closure)
    assert not Marked.tokens
    optimizer.step(closure)
    assert not Marked.tokens


class Broken(torch.autograd.Function):
    """The identity, whose derivative is NaN or raises."""

    @staticmethod
    def forward(ctx, x, raises):
        ctx.raises = raises
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        if ctx.raises:
            raise ZeroDivisionError("the derivative")
        return gradient * float("nan"), None


@pytest.mark.parametrize("make", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("raises", [False, True])
def test_after_a_derivative_that_failed(make, raises):
    network, closure = problem()

    def broken():
        _, prediction = closure()
        prediction = Broken.apply(prediction, raises)
        return prediction.square().mean(), prediction

    optimizer = make(network.parameters())
    with contextlib.suppress(ZeroDivisionError, hig.NonFiniteError, ValueError):
        optimizer.step(broken)
        pytest.fail("a step was taken")
    assert not Marked.tokens


def coupled(outer):
    def closure():
        _, prediction = outer()
        prediction = prediction - prediction.mean(0)
        return prediction.square().mean(), prediction

    return closure


def test_after_factors_that_were_not_exact():
    network, closure = problem()
    optimizer = hig.HIG(network.parameters())
    optimizer.step(coupled(closure))
    assert optimizer.report.engine == "rows"
    assert not Marked.tokens
    with contextlib.suppress(hig.SampleDependenceError):
        hig.HIG(network.parameters(), engine="layerwise").step(coupled(closure))
    assert not Marked.tokens


@pytest.mark.parametrize("filter", [hig.HalfInverse(), hig.Damped(1e-3)])
@pytest.mark.parametrize("options", [{}, {"engine": "rows"}, {"method": "lanczos"}])
def test_record(filter, options):
    network, closure = problem()

    def recorded():
        with hig.record(network.parameters()) as record:
            loss, prediction = closure()
        record.backward(loss, prediction, filter=filter, **options)
        return record.report

    report = recorded()
    assert not Marked.tokens
    assert not square_tensors()
    assert float(report.loss) > 0


def test_diagnose():
    network, closure = problem()
    hig.diagnose(network.parameters(), closure)
    assert not Marked.tokens
    network, closure = problem(fail=[3])
    with contextlib.suppress(ZeroDivisionError):
        hig.diagnose(network.parameters(), closure)
        pytest.fail("the third call raises")
    assert not Marked.tokens


def test_half_inverse():
    generator = torch.Generator().manual_seed(0)
    jacobian = torch.randn(2 * SAMPLES, 40, generator=generator)
    before = len(square_tensors())
    hig.half_inverse(jacobian, torch.ones(2 * SAMPLES), method="gram")
    assert len(square_tensors()) == before


GRAM_ROUTES = ["fixed", "gram", "rows", "trust", "levenberg", "levenberg_rows", "several"]


@pytest.mark.parametrize("name", GRAM_ROUTES)
def test_gram_matrices(name):
    """Of damped steps one is held until the next step, for its singular values."""
    network, closure = problem()
    optimizer, reports = STEPS[name](network.parameters()), []
    for _ in range(3):
        optimizer.step(closure)
        reports.append(optimizer.report)
        held = len(square_tensors())
        assert held == ("levenberg" in name)
    del optimizer
    assert not square_tensors()
