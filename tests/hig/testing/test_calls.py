"""Simulators whose calls disturb one another, and those that raise errors of their own."""

import itertools
import re

import numpy as np
import pytest
import torch

import hig
from hig.testing import check_simulator

INPUTS = torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def outcome(simulate, name="calls apart", **options):
    report = check_simulator(simulate, INPUTS, **options)
    (found,) = [check for check in report.checks if check.name == name]
    return found


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
    check = outcome(make())
    assert check.verdict == "fail"
    assert re.search(found, check.found), check
    assert remedy in check.remedy


def test_a_derivative_of_its_own_call_passes():
    def linearise(x):
        kept = x.copy()
        return np.sin(x), lambda cotangent: np.cos(kept) * cotangent

    assert outcome(hig.black_box(linearise)).verdict == "ok"


class NotConverged(Exception):
    """As solvers raise: no subclass of RuntimeError."""


class Raising(torch.autograd.Function):
    """2 x; its backward pass refuses some cotangents."""

    @staticmethod
    def forward(ctx, x, refuses):
        ctx.refuses = refuses
        return 2 * x

    @staticmethod
    def backward(ctx, cotangent):
        if ctx.refuses(cotangent):
            raise NotConverged("residual above tolerance")
        return 2 * cotangent, None

    @staticmethod
    def vmap(info, dims, x, refuses):
        raise NotImplementedError


def raising(refuses):
    return lambda x: Raising.apply(x, refuses)


def one_sample_is_zero(cotangent):
    return bool((cotangent == 0).all(1).any())


def forward_with(condition):
    def simulate(x):
        if condition(x):
            raise NotConverged("diverged")
        return x.sin()

    return simulate


class TestErrorsOfTheSimulator:
    @pytest.mark.parametrize(
        ("condition", "name", "verdict"),
        [
            (lambda x: True, "output", "fail"),
            (lambda x: x.dtype == torch.float32, "dtype kept", "note"),
            (lambda x: x.requires_grad, "differentiable", "fail"),
            (lambda x: not torch.equal(x.detach(), INPUTS.to(x)), "differentiable", "fail"),
        ],
    )
    def test_of_the_forward_pass(self, condition, name, verdict):
        check = outcome(forward_with(condition), name)
        assert check.verdict == verdict
        assert "NotConverged: diverged" in check.found

    def test_far_inputs_alone_are_no_failure(self):
        near = forward_with(lambda x: bool(((x.detach() - INPUTS.to(x)).abs() > 0.2).any()))
        report = check_simulator(near, INPUTS)
        assert report.passed, report

    def test_of_the_backward_pass(self):
        assert "NotConverged" in outcome(raising(lambda c: True), "differentiable").found

    def test_a_refusal_of_single_samples_is_a_note(self):
        check = outcome(raising(one_sample_is_zero), "samples apart")
        assert check.verdict == "note"
        assert "no sample influences another; it refuses cotangents of half" in check.found

    def test_a_refusal_of_zero_leaves_lanczos_out(self):
        report = check_simulator(raising(lambda c: not bool(c.detach().any())), INPUTS)
        assert report.passed, report
        assert report.methods == ("gram", "svd")

    @pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
    def test_interruptions_pass(self, interruption):
        def simulate(x):
            raise interruption

        with pytest.raises(interruption):
            check_simulator(simulate, INPUTS)

    def test_errors_of_the_checks_come_out(self, monkeypatch):
        monkeypatch.setattr("hig.testing._line.slope", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            check_simulator(torch.sin, INPUTS)


class OneByOne(torch.autograd.Function):
    """2 x; a batch of backward passes raises an error that is no RuntimeError."""

    generate_vmap_rule = False

    @staticmethod
    def forward(x):
        return 2 * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, cotangent):
        try:
            cotangent.detach().numpy()
        except RuntimeError as error:
            raise NotConverged("a batch") from error
        return 2 * cotangent


class TestChunk:
    def test_another_error_in_a_batch_names_chunk(self):
        check = outcome(OneByOne.apply, "batched passes")
        assert check.verdict == "fail"
        assert "NotConverged: a batch" in check.found
        assert "chunk=1" in check.remedy

    def test_one_runs_no_batch(self):
        report = check_simulator(OneByOne.apply, INPUTS, chunk=1)
        assert report.passed, report
        assert not report.batched
        assert outcome(OneByOne.apply, "batched passes", chunk=1).verdict == "note"

    @pytest.mark.parametrize(("chunk", "error"), [(0, ValueError), (1.5, TypeError)])
    def test_wrong_ones(self, chunk, error):
        with pytest.raises(error, match="chunk"):
            check_simulator(torch.sin, INPUTS, chunk=chunk)


class TestDeterministic:
    def test_rounding_between_two_calls_is_a_note(self):
        calls = itertools.count()

        def simulate(x):  # as sums whose order varies
            return x.sin() * (1 + next(calls) % 2 * 4 * torch.finfo(x.dtype).eps)

        for inputs in (INPUTS, INPUTS.float()):
            report = check_simulator(simulate, inputs)
            (check,) = [check for check in report.checks if check.name == "deterministic"]
            assert report.passed, report
            assert check.verdict == "note"
            assert "no more than rounding" in check.found

    @pytest.mark.parametrize("size", [1.0, 1e-4])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_chance_is_a_failure(self, size, dtype):
        generator = torch.Generator().manual_seed(0)

        def simulate(x):
            return x + size * torch.randn(x.shape, generator=generator).to(x)

        report = check_simulator(simulate, INPUTS.to(dtype))
        assert [failure.name for failure in report.failures] == ["deterministic"]

    def test_an_output_that_the_next_call_overwrites_hides_no_chance(self):
        buffer, generator = torch.zeros(4, 2), torch.Generator().manual_seed(0)

        def simulate(x):
            buffer.copy_(torch.randn(4, 2, generator=generator))
            return buffer.detach()

        report = check_simulator(simulate, INPUTS.float())
        assert "deterministic" in [failure.name for failure in report.failures]
