"""The checks find what is wrong with a simulator, and nothing where all is well."""

import functools
import itertools
import re

import pytest
import torch
from torch import nn

import hig
from hig.testing import assert_simulator, check_simulator
from hig.testing._derivative_checks import backward_couples
from hig.testing._simulator import Simulator

START, CONTROLS = torch.zeros(4, 2), torch.linspace(-1, 1, 4 * 6).view(4, 6)


def pendulum(state, controls):
    for control in controls.unbind(1):
        angle, speed = state.unbind(1)
        speed = speed + 0.1 * (control - angle.sin())
        state = torch.stack([angle + 0.1 * speed, speed], 1)
    return state


def verdicts(report):
    return {check.name: check.verdict for check in report.checks}


def test_a_good_simulator_passes_every_check():
    report = check_simulator(pendulum, START, CONTROLS)
    assert set(verdicts(report).values()) == {"ok"}
    assert report.passed
    assert (report.engine, report.batched, report.passes) == ("layerwise", True, 3)
    assert report.methods == ("gram", "svd", "lanczos")
    assert "ready: engine layerwise, 3 backward passes a step in batches" in str(report)
    assert len(str(report).splitlines()) == len(report.checks) + 1


def test_integers_stay_integers():
    table = torch.linspace(0, 1, 5)

    def simulate(state, place):
        return pendulum(state, CONTROLS.to(state)) + table.to(state)[place].unsqueeze(1)

    assert check_simulator(simulate, START, torch.tensor([0, 1, 4, 2])).passed


def test_nothing_of_the_caller_is_touched():
    before = torch.get_rng_state()
    leaf = torch.ones(4, 2, requires_grad=True)
    check_simulator(lambda x: x + torch.randn(4, 2), leaf)
    assert torch.equal(torch.get_rng_state(), before)
    assert leaf.grad is None
    assert torch.equal(leaf, torch.ones(4, 2))


class Broken(torch.autograd.Function):
    """x³ with a derivative that is off by a thousandth."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, cotangent):
        return cotangent * 3.003 * ctx.saved_tensors[0] ** 2


class ByNumpy(torch.autograd.Function):
    """2 x, whose backward pass leaves torch."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, cotangent):
        return torch.from_numpy(2 * cotangent.numpy())


def written_into(x):
    """A loop that writes into its state."""
    state = x.clone()
    for _ in range(3):
        state[:, 1] += 0.1 * state[:, 0].sin()
        state[:, 0] += 0.1 * state[:, 1]
    return state


def by_numpy(x):
    return torch.from_numpy(x.numpy() * 2)


def refusing(x):
    if x.requires_grad:
        raise ValueError("no gradients here")
    return 2 * x


WEIGHT = nn.Parameter(torch.ones(4, 2))
counter = itertools.count()
# What is wrong, the check that fails, and a word of what it says.
WRONG = {
    "no tensor": (lambda x: (x, x), "output", "list of 2|tuple of 2"),
    "complex": (lambda x: torch.complex(x, x), "output", "view_as_real"),
    "scalar": (lambda x: x.sum(), "output", "first axis"),
    "batch lost": (lambda x: x.flatten(), "output", r"\(8,\) from 4 samples"),
    "not finite": (lambda x: x.sub(x[0, 0]).reciprocal(), "output", r"samples \[0\]"),
    "double": (lambda x: x.double(), "dtype kept", "float32 inputs give torch.float64"),
    "in place": (lambda x: x.mul_(2) + 0, "inputs unchanged", "in place"),
    "chance": (lambda x: x + next(counter), "deterministic", "same random state"),
    "detached": (lambda x: x.detach() * 2, "differentiable", "no graph"),
    "written into": (written_into, "differentiable", "change in place.* -> let each step make new"),
    "numpy": (by_numpy, "differentiable", r"takes \.numpy\(\) .* -> .*hig\.black_box"),
    "refusing": (refusing, "differentiable", "ValueError: no gradients here -> it runs without"),
    "constant": (torch.ones_like, "differentiable", "stays the same .* -> compute it from the"),
    "another's": (lambda x: WEIGHT * 2, "differentiable", "stays the same where the inputs"),
    "flat": (lambda x: (50 * x).round() + 0 * x, "differentiable", "zero by every input"),
    "infinite": (lambda x: (x - x.detach()).abs().sqrt() + x, "differentiable", "NaN or Inf"),
    "wrong": (Broken.apply, "gradients right", r"input 0 only within 1e-03"),
    "cut": (lambda x: x * x.detach().sin(), "gradients right", r"\.detach\(\).*a transposed Jac"),
    "wrong and tiny": (lambda x: 1e-8 * Broken.apply(x), "gradients right", "input 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_found_and_told(name):
    simulate, check, text = WRONG[name]
    report = check_simulator(simulate, torch.tensor([[1.0, 2.0], [2, 3], [-1, 2], [0.5, 4]]))
    assert not report.passed
    (failure,) = [failed for failed in report.failures if failed.name == check]
    assert re.search(text, f"{failure.found} -> {failure.remedy}"), failure
    assert failure.remedy
    assert str(report).splitlines()[-1].startswith("not ready")


def test_a_derivative_is_refused_where_only_one_of_two_inputs_is_wrong():
    report = check_simulator(lambda x, y: x.sin() + Broken.apply(y), START + 1, START + 2)
    assert [failure.name for failure in report.failures] == ["gradients right"]
    assert "by input 1" in report.failures[0].found


def test_small_wrong_parts_are_not_hidden_by_large_right_ones():
    def simulate(x):
        return torch.stack([1e5 * x[:, 0], 1e-3 * Broken.apply(x[:, 1])], 1)

    def fixed(x):
        return torch.stack([1e5 * x[:, 0], 1e-3 * x[:, 1] ** 3], 1)

    assert check_simulator(fixed, START + 1).passed
    parts = [lambda x, k=k: simulate(torch.stack([x[:, 0], x[:, 0]], 1))[:, k] for k in (0, 1)]
    verdict = [check_simulator(part, START[:, :1] + 1).passed for part in parts]
    assert verdict == [True, False]


def test_chance_leaves_out_what_two_calls_would_tell():
    report = check_simulator(lambda x: x + next(counter), START)
    assert [failure.name for failure in report.failures] == ["deterministic"]
    assert list(verdicts(report))[-1] == "differentiable"


def test_time_as_the_first_axis_is_suspected():
    """As many times as samples: the shape alone does not tell."""

    def states(x, controls):
        found = []
        for control in controls.unbind(1):
            x = x + control[:, None]
            found.append(x)
        return torch.stack(found)

    hint = "the first axis must be the batch: is it time instead"
    (note,) = check_simulator(states, START, CONTROLS[:, :4]).notes
    assert f"{hint}, in (4, 4, 2)?" in note.remedy
    (note,) = check_simulator(lambda x: x - x.mean(0), START).notes
    assert hint not in note.remedy
    assert check_simulator(lambda x: x.cos(), torch.ones(3, 3)).checks[-3].remedy == ""


COUPLED = {
    "mean": lambda x: x - x.mean(0),
    "cumulative": lambda x: x.cumsum(0),
    "step of the worst sample": lambda x: x / (1 + x.abs().max()),
    "normalised": lambda x: nn.functional.batch_norm(x, None, None, training=True),
}


@pytest.mark.parametrize("name", COUPLED)
def test_samples_that_influence_one_another_are_noted(name):
    report = check_simulator(COUPLED[name], torch.randn(6, 3, generator=torch.manual_seed(1)))
    assert report.passed
    assert [note.name for note in report.notes] == ["samples apart"]
    assert (report.engine, report.passes) == ("rows", 18)


FIELD = torch.randn(3, 40, 50, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("weak", [1.0, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fields_are_checked_in_few_passes_for_weak_couplings_too(weak, dtype):
    """A derivative alone that leads to other samples, in one row of the outputs."""

    def simulate(x, strength):
        y = x + 0.1 * torch.tanh(x.roll(1, 2) + x.roll(1, 1))
        others = y[:, 3] - y[:, 3].detach()
        row = weak * (y[:, 3] + strength * (others - others.mean(0)))
        return torch.cat([y[:, :3], row.unsqueeze(1), y[:, 4:]], 1)

    for strength in (0.0, 1e-2):
        simulator = Simulator.of(functools.partial(simulate, strength=strength), [FIELD.to(dtype)])
        assert backward_couples(simulator) is (strength > 0)
        assert simulator.calls.passes + simulator.calls.simulations < 20


def test_the_engine_is_that_of_a_step():
    """What the report says against what a step on the same simulator does."""
    for simulate in (pendulum, lambda s, c: pendulum(s, c) - pendulum(s, c).mean(0)):
        report = check_simulator(simulate, START, CONTROLS)
        network = nn.Linear(2, 6)
        optimizer = hig.HIG(network.parameters())

        def closure(network=network, simulate=simulate):
            prediction = simulate(START, network(CONTROLS[:, :2]))
            return prediction.square().mean(), prediction

        optimizer.step(closure)
        assert optimizer.report.engine == report.engine


def test_random_numbers_of_torch_are_a_note():
    report = check_simulator(lambda x: x + torch.randn(x.shape, dtype=x.dtype), START)
    assert report.passed
    assert [note.name for note in report.notes] == ["deterministic"]


def test_passes_that_cannot_be_batched_are_a_note():
    report = check_simulator(ByNumpy.apply, START + 1)
    assert report.passed
    assert "batched passes" in [note.name for note in report.notes]
    assert not report.batched
    assert "one by one" in str(report)


def test_a_derivative_without_a_second_one_leaves_lanczos_out():
    simulate = hig.black_box(lambda x: (2 * x, lambda c: 2 * c))
    report = check_simulator(simulate, START + 1)
    assert report.passed
    assert report.methods == ("gram", "svd")


def test_inputs_without_derivative_are_told():
    report = check_simulator(lambda x, k: x * k.unsqueeze(1), START + 1, torch.arange(1, 5))
    assert report.passed
    report = check_simulator(lambda x, y: x + y.detach(), START, START + 1)
    assert report.checks[5].found == "gradients by inputs [0]; none by [1]"


def test_a_simulator_of_single_precision_alone():
    def simulate(x):
        if x.dtype != torch.float32:
            raise TypeError("float32 only")
        return x.sin()

    report = check_simulator(simulate, START + 1)
    assert report.passed
    assert [note.name for note in report.notes] == ["dtype kept"]
    assert "in float32" in next(c.found for c in report.checks if c.name == "gradients right")


class TestAssertions:
    def test_a_good_simulator(self):
        assert assert_simulator(pendulum, START, CONTROLS, allow=()).passed

    def test_a_failure_brings_the_whole_report(self):
        with pytest.raises(AssertionError, match="fail  differentiable"):
            assert_simulator(lambda x: x.detach(), START)

    def test_notes_as_wanted(self):
        def coupled(x):
            return x - x.mean(0)

        assert_simulator(coupled, START)
        assert_simulator(coupled, START, allow=("samples apart",))
        with pytest.raises(AssertionError, match="samples influence one another"):
            assert_simulator(coupled, START, allow=())
        with pytest.raises(ValueError, match="allow names no check 'sample'"):
            assert_simulator(coupled, START, allow=("sample",))


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


@pytest.mark.cuda
def test_on_a_gpu():
    report = check_simulator(pendulum, START.cuda(), CONTROLS.cuda())
    assert report.passed, report
    moved = check_simulator(lambda s, c: pendulum(s, c).cpu(), START.cuda(), CONTROLS.cuda())
    assert "device kept" in [failure.name for failure in moved.failures]
