"""Simulators with their inputs: arguments, errors of the user's code, copies, sizes of inputs."""

import pytest
import torch

from hig.testing import check_simulator
from hig.testing._simulator import Simulator, nearby, typical_sizes
from tests.hig.testing.simulators import CONTROLS, START, NotConverged, outcome, pendulum

INPUTS = torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_nothing_of_the_caller_is_touched():
    before = torch.get_rng_state()
    leaf = torch.ones(4, 2, requires_grad=True)
    check_simulator(lambda x: x + torch.randn(4, 2), leaf)
    assert torch.equal(torch.get_rng_state(), before)
    assert leaf.grad is None
    assert torch.equal(leaf, torch.ones(4, 2))


class TestArguments:
    @pytest.mark.parametrize(
        ("given", "error", "text"),
        [
            ((3, START), TypeError, "simulate must be a function"),
            ((pendulum,), TypeError, "at least one floating-point input"),
            ((pendulum, 2.0), TypeError, r"got 2\.0; bind other"),
            ((pendulum, torch.arange(4)), TypeError, "at least one floating-point input"),
            ((pendulum, START[:1]), ValueError, "at least 2 samples as first axis, got 1 s"),
            ((pendulum, START, CONTROLS[:3]), ValueError, "got 3, 4 samples; bind"),
            (
                (pendulum, START, torch.tensor(0.1)),
                ValueError,
                r"input 1 must be \(batch, ...\), got shape \(\); bind .* a time step",
            ),
            ((pendulum, START, CONTROLS.double()), ValueError, "one dtype and device"),
        ],
    )
    def test_wrong_ones(self, given, error, text):
        with pytest.raises(error, match=text):
            check_simulator(*given)


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
            (lambda x: x.dtype == torch.float32, "dtype preserved", "note"),
            (lambda x: x.requires_grad, "differentiable", "fail"),
            (lambda x: not torch.equal(x.detach(), INPUTS.to(x)), "differentiable", "fail"),
        ],
    )
    def test_of_the_forward_pass(self, condition, name, verdict):
        check = outcome(forward_with(condition), INPUTS, name)
        assert check.verdict == verdict
        assert "NotConverged: diverged" in check.found

    def test_far_inputs_alone_are_no_failure(self):
        near = forward_with(lambda x: bool(((x.detach() - INPUTS.to(x)).abs() > 0.2).any()))
        report = check_simulator(near, INPUTS)
        assert report.passed, report

    def test_of_the_backward_pass(self):
        assert "NotConverged" in outcome(raising(lambda c: True), INPUTS, "differentiable").found

    def test_a_refusal_of_single_samples_is_a_note(self):
        check = outcome(raising(one_sample_is_zero), INPUTS, "sample independence")
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
        monkeypatch.setattr("hig.testing._line.slope", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            check_simulator(torch.sin, INPUTS)


def test_calls_are_counted_and_have_the_same_random_numbers():
    simulator = Simulator.of(lambda x: x.mul_(2) + torch.randn(4, 2), [START + 1])
    first, second = simulator(START + 1), simulator(START + 1)
    assert torch.equal(first, second)
    assert bool((simulator.inputs[0] == 1).all())
    leaves, output = simulator.with_graph([START + 1])
    assert torch.equal(output.detach(), first) and leaves[0].grad_fn is None
    (gradient,) = simulator.pulled_back(output, leaves, torch.ones(4, 2))
    assert torch.equal(gradient, torch.full((4, 2), 2.0))
    assert (simulator.calls.simulations, simulator.calls.passes) == (3, 1)


def test_unused_inputs_have_a_gradient_of_zero():
    simulator = Simulator.of(lambda x, k, y: x * k[:, None], [START, torch.arange(4), START + 1])
    assert simulator.floating == [0, 2]
    leaves, output = simulator.with_graph(simulator.inputs)
    for gradient, leaf in zip(
        simulator.pulled_back(output, leaves, torch.ones(4, 2)), leaves, strict=True
    ):
        assert gradient.shape == leaf.shape
    assert not gradient.any()


def test_inputs_nearby_are_moved_in_proportion_to_their_size():
    numbers, table = torch.tensor([[1e-8, 1e8], [2e-8, 3e8]]), torch.tensor([3, 4])
    moved, same = nearby([numbers, table])
    assert torch.equal(same, table)
    relative = (moved - numbers).abs() / numbers
    assert float(relative.min()) > 0 and float(relative.max()) < 0.1
    again, _ = nearby([numbers, table])
    other, _ = nearby([numbers, table], seed=1)
    assert torch.equal(moved, again) and not torch.equal(moved, other)


def test_sizes_of_single_zeros_are_those_of_their_neighbours():
    found = typical_sizes(torch.tensor([[0.0, 1e6], [1e-3, 2e6], [2e-3, 0.0]]))
    assert found.dtype == torch.float64
    assert 1e-4 < float(found[0, 0]) < 1e-2  # not those of the other column
    assert 0 < float(found[2, 1]) < 2e6
    assert float(found[1, 1]) == 2e6
    assert torch.equal(typical_sizes(torch.zeros(2, 3)), torch.ones(2, 3, dtype=torch.float64))
