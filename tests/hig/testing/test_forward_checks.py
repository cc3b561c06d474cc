"""Checks of the simulation itself: output, dtype, device, inputs, chance, coupled samples."""

import itertools

import pytest
import torch

from hig.testing import check_simulator
from hig.testing._forward_checks import forward_couples
from hig.testing._simulator import Simulator
from tests.hig.testing.simulators import START, assert_fails

INPUTS = torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
counter = itertools.count()
# By the kind of fault: a simulator, the check that fails, and a pattern of its text.
WRONG = {
    "no tensor": (lambda x: (x, x), "output", "list of 2|tuple of 2"),
    "complex": (lambda x: torch.complex(x, x), "output", "view_as_real"),
    "scalar": (lambda x: x.sum(), "output", "first axis"),
    "batch lost": (lambda x: x.flatten(), "output", r"\(8,\) from 4 samples"),
    "not finite": (lambda x: x.sub(x[0, 0]).reciprocal(), "output", r"samples \[0\]"),
    "double": (lambda x: x.double(), "dtype preserved", "float32 inputs give torch.float64"),
    "in place": (lambda x: x.mul_(2) + 0, "inputs unchanged", "in place"),
    "chance": (lambda x: x + next(counter), "deterministic", "same random state"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_found(name):
    assert_fails(*WRONG[name])


def test_a_simulator_of_single_precision_alone():
    def simulate(x):
        if x.dtype != torch.float32:
            raise TypeError("float32 only")
        return x.sin()

    report = check_simulator(simulate, START + 1)
    assert report.passed
    assert [note.name for note in report.notes] == ["dtype preserved"]
    assert "in float32" in next(c.found for c in report.checks if c.name == "gradient check")


def test_random_numbers_of_torch_are_a_note():
    report = check_simulator(lambda x: x + torch.randn(x.shape, dtype=x.dtype), START)
    assert report.passed
    assert [note.name for note in report.notes] == ["deterministic"]


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_coupled_samples_are_found_at_their_own_scale(scale, dtype):
    def coupled(x, strength):
        return torch.cat([x, scale * (x[:, :1] + strength * x[:, :1].mean(0))], 1)

    inputs = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=dtype)
    for strength in (0.0, 0.1):
        simulator = Simulator.of(lambda x, s=strength: coupled(x, s), [inputs])
        assert forward_couples(simulator) is (strength > 0)
