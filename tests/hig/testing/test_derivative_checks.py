"""Checks of the derivative: its existence, coupled samples, batches of passes, products J v."""

import functools

import pytest
import torch
from torch import nn

import hig
from hig.testing import check_simulator
from hig.testing._derivative_checks import backward_couples, count_passes
from hig.testing._simulator import Simulator
from tests.hig.testing.simulators import START, NotConverged, assert_fails, outcome

INPUTS = torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


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

# By the kind of fault: a simulator, the check that fails, and a pattern of its text.
WRONG = {
    "detached": (lambda x: x.detach() * 2, "differentiable", "no graph"),
    "written into": (written_into, "differentiable", "change in place.* -> let each step make new"),
    "numpy": (by_numpy, "differentiable", r"takes \.numpy\(\) .* -> .*hig\.black_box"),
    "refusing": (refusing, "differentiable", "ValueError: no gradients here -> it runs without"),
    "constant": (torch.ones_like, "differentiable", "stays the same .* -> compute it from the"),
    "another's": (lambda x: WEIGHT * 2, "differentiable", "stays the same where the inputs"),
    "flat": (lambda x: (50 * x).round() + 0 * x, "differentiable", "zero by every input"),
    "infinite": (lambda x: (x - x.detach()).abs().sqrt() + x, "differentiable", "NaN or Inf"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_found(name):
    assert_fails(*WRONG[name])


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


def test_inputs_without_derivative_are_named():
    report = check_simulator(lambda x, k: x * k.unsqueeze(1), START + 1, torch.arange(1, 5))
    assert report.passed
    report = check_simulator(lambda x, y: x + y.detach(), START, START + 1)
    assert report.checks[5].found == "gradients by inputs [0]; none by [1]"


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


@pytest.mark.parametrize(("boxed", "passes"), [(False, 4), (True, 3)])
def test_a_linear_black_box_is_not_called_for_the_check_of_layers(boxed, passes):
    matrix = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).double()

    def linearise(x):
        return x @ matrix.numpy(), lambda cotangent: cotangent @ matrix.numpy().T

    simulate = hig.black_box(linearise) if boxed else lambda x: x @ matrix
    assert count_passes(Simulator.of(simulate, [INPUTS])) == passes


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
        check = outcome(OneByOne.apply, INPUTS, "batched passes")
        assert check.verdict == "fail"
        assert "NotConverged: a batch" in check.found
        assert "chunk=1" in check.remedy

    def test_one_runs_no_batch(self):
        report = check_simulator(OneByOne.apply, INPUTS, chunk=1)
        assert report.passed, report
        assert not report.batched
        assert outcome(OneByOne.apply, INPUTS, "batched passes", chunk=1).verdict == "note"

    @pytest.mark.parametrize(("chunk", "error"), [(0, ValueError), (1.5, TypeError)])
    def test_wrong_ones(self, chunk, error):
        with pytest.raises(error, match="chunk"):
            check_simulator(torch.sin, INPUTS, chunk=chunk)
