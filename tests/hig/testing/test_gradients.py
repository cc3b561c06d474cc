"""Right derivatives of inexact simulators pass with a note that says why; wrong ones fail."""

import pytest
import torch

import hig
from hig.testing import check_simulator
from tests.hig.testing.simulators import (
    INPUTS,
    PLACES,
    START,
    Broken,
    Scaled,
    assert_fails,
    check_of,
    factors,
    kinked,
    smooth,
)

# Units of inputs and outputs that lie 16 orders of magnitude apart.
UNITS_IN = 10.0 ** torch.tensor([-8, 8, 0, 3, -5, 1], dtype=torch.float64)
UNITS_OUT = 10.0 ** torch.tensor([8, -8, 0, -3], dtype=torch.float64)


@pytest.mark.parametrize("error", [-2, -1, 3e-3])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("end", ["inputs", "outputs"])
@pytest.mark.parametrize("model", [smooth, kinked])
def test_wrong_parts_of_a_derivative_fail(model, end, place, error):
    """Opposite, missing or inexact, in any unit, of all inputs or outputs or of a single one."""

    def simulate(x):
        z = x / UNITS_IN.to(x)
        if end == "inputs":
            return model(Scaled.apply(z, factors(z.shape, place, error))) * UNITS_OUT.to(x)
        y = model(z) * UNITS_OUT.to(x)
        return Scaled.apply(y, factors(y.shape, place, error))

    report = check_simulator(simulate, INPUTS * UNITS_IN)
    assert not report.passed
    # All of it missing is found before.
    assert {failure.name for failure in report.failures} <= {"gradient check", "differentiable"}


@pytest.mark.parametrize("model", [smooth, kinked])
def test_right_ones_in_any_unit_pass(model):
    def simulate(x):
        return model(x / UNITS_IN.to(x)) * UNITS_OUT.to(x)

    for dtype in (torch.float32, torch.float64):
        report = check_simulator(simulate, (INPUTS * UNITS_IN).to(dtype))
        assert {check.verdict for check in report.checks} == {"ok"}, report


def test_signs_and_missing_parts_are_named():
    def flipped(x):
        return smooth(Scaled.apply(x, factors(x.shape, "all", -2)))

    assert "its sign is the opposite" in check_of(check_simulator(flipped, INPUTS)).remedy

    def cut(x):
        return torch.cat([smooth(x[:2]), smooth(x[2:].detach())])

    failure = check_of(check_simulator(cut, INPUTS))
    assert failure.verdict == "fail"
    assert "in samples [" in failure.found
    assert "none arrives there" in failure.remedy


@pytest.mark.parametrize("kept", [4e-3, 2e-2])
def test_wrong_in_single_precision_fails(kept):
    def simulate(x):
        if x.dtype != torch.float32:
            raise TypeError("float32 only")
        return smooth(Scaled.apply(x, factors(x.shape, "all", kept)))

    failure = check_of(check_simulator(simulate, INPUTS.float()))
    assert failure.verdict == "fail"
    assert "in float32" in failure.found


# Noise that is the same in every call: of phases far too fast to be followed.
def noisy(y, x, level):
    phases = 1e9 * x.detach().sum(1, keepdim=True).double() * torch.arange(1, y.shape[1] + 1)
    return y * (1 + level * phases.sin()).to(y)


def jumping(y, x, level):
    return y + level * (20 * x.detach().sum(1, keepdim=True)).floor().remainder(3).to(y)


@pytest.mark.parametrize("level", [1e-14, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4])
@pytest.mark.parametrize("disturb", [noisy, jumping])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_and_jumps_are_a_note(disturb, level, dtype):
    report = check_simulator(lambda x: disturb(smooth(x), x, level), INPUTS.to(dtype))
    assert report.passed, report
    found = check_of(report)
    if level >= 1e-6 and disturb is noisy:  # a jump may lie too far away to be seen
        assert found.verdict == "note"
        named = float(found.found.rpartition("noisy by ")[2].split()[0])
        assert level / 20 < named < 20 * level
        assert "tolerance" in found.remedy
        assert ".detach()" not in found.remedy


@pytest.mark.parametrize("disturb", [noisy, jumping])
@pytest.mark.parametrize("error", [-2, 0.3, 0.02])
def test_noise_does_not_hide_what_is_larger(disturb, error):
    def simulate(x):
        return disturb(smooth(Scaled.apply(x, factors(x.shape, "all", error))), x, 1e-6)

    assert check_of(check_simulator(simulate, INPUTS)).verdict == "fail"


def test_single_precision_inside_is_a_note():
    """As of kernels that are compiled for float32, whatever is given."""
    report = check_simulator(lambda x: smooth(x.float()).to(x), INPUTS)
    assert report.passed, report
    assert "single precision inside" in check_of(report).remedy


def test_an_error_that_no_step_reduces_is_a_note_where_it_is_small():
    report = check_simulator(lambda x: smooth(Scaled.apply(x, torch.tensor(1 + 5e-5))), INPUTS)
    found = check_of(report)
    assert (report.passed, found.verdict) == (True, "note")
    assert "within 5e-05" in found.found
    assert "tolerance" in found.remedy


def test_large_constants_next_to_small_changes():
    report = check_simulator(lambda x: 1e9 + smooth(x), INPUTS)
    assert report.passed, report


# Dormand and Prince, "A family of embedded Runge-Kutta formulae", 1980.
NODES = (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)
STAGES = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR = (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def weighed(slopes, weights):
    return torch.tensordot(torch.tensor(weights, dtype=slopes[0].dtype), torch.stack(slopes), 1)


def integrated(flow, state, end, rtol):
    """The state at the end, by steps that are chosen without a derivative and shared by all."""
    time, step = 0.0, 0.05
    while time < end - 1e-12:
        step = min(step, end - time)
        slopes = []
        for node, weights in zip(NODES, STAGES, strict=True):
            new = state + step * weighed(slopes, weights) if slopes else state
            slopes.append(flow(time + node * step, new))
        error = step * weighed(slopes, ERROR)
        scale = 1e-2 * rtol + rtol * torch.maximum(state.abs(), new.abs())
        size = float((error / scale).detach().square().mean().sqrt())
        if size < 1:
            state, time = new, time + step
        step *= min(5.0, max(0.2, 0.9 * max(size, 1e-10) ** -0.2))
    return state


def van_der_pol(force, rtol, end=1.5):
    start = torch.tensor([[1.0, 0.0]], dtype=force.dtype).expand(len(force), 2)

    def flow(_, y):
        velocity = y[:, 1]
        return torch.stack([velocity, 3 * (1 - y[:, 0] ** 2) * velocity - y[:, 0] + force[:, 0]], 1)

    return integrated(flow, start, end, rtol)


def pendulum(control, rtol, end=2.0):
    start = control.new_zeros(len(control), 2)

    def flow(time, y):
        force = control[:, 0] + control[:, 0] * torch.tensor(3.0 * time).cos()
        return torch.stack([y[:, 1], force - y[:, 0].sin()], 1)

    return integrated(flow, start, end, rtol)


FORCES = 0.7 + 0.6 * torch.rand(4, 1, generator=torch.Generator().manual_seed(0)).double()


class TestAdaptiveSteps:
    @pytest.mark.parametrize(
        ("system", "rtol", "end"),
        [
            (pendulum, 1e-3, 2.0),
            (pendulum, 1e-6, 1.0),
            (van_der_pol, 1e-2, 1.5),
            (van_der_pol, 1e-3, 1.5),
            (van_der_pol, 1e-4, 1.5),
            (van_der_pol, 1e-6, 0.8),
            (van_der_pol, 1e-10, 0.3),
        ],
    )
    def test_a_right_derivative(self, system, rtol, end):
        report = check_simulator(lambda u: system(u, rtol, end), FORCES)
        assert report.passed, report
        found = check_of(report)
        if found.verdict == "note":
            assert "adaptive step control" in found.remedy or "smaller steps do not" in found.found
            assert float(found.found.partition("within ")[2].split()[0]) < 100 * rtol

    def test_a_right_one_by_steps_of_single_samples(self):
        def apart(u):
            return torch.cat([van_der_pol(one, 1e-3) for one in u.split(1)])

        report = check_simulator(apart, FORCES[:2])
        assert report.passed, report

    @pytest.mark.parametrize("system", [van_der_pol, pendulum])
    @pytest.mark.parametrize(("rtol", "error", "end"), [(1e-3, 1.0, 1.0), (1e-6, 0.01, 0.6)])
    def test_a_wrong_one(self, system, rtol, error, end):
        factor = torch.tensor(1 + error, dtype=torch.float64)
        report = check_simulator(lambda u: system(Scaled.apply(u, factor), rtol, end), FORCES)
        assert [failure.name for failure in report.failures] == ["gradient check"]


def test_a_tolerance_is_the_first_suspect_of_small_errors():
    """As of a solver whose steps stay the same as far as one can see."""
    for error, first in ((4e-3, True), (0.3, False)):
        factor = torch.tensor(1 + error, dtype=torch.float64)
        found = check_of(check_simulator(lambda u, f=factor: smooth(Scaled.apply(u, f)), INPUTS))
        assert found.verdict == "fail"
        assert "rtol" in found.remedy
        assert found.remedy.startswith("if a solver with a tolerance") is first


def test_sensitivities_that_the_step_control_does_not_see():
    """Variational equations in a black box, right to the tolerance of the solver alone."""

    def linearise(forces):
        given = torch.from_numpy(forces)

        def flow(_, y):
            x, v, dx, dv = y.unbind(1)
            damping = 3 * (1 - x**2)
            rates = [v, damping * v - x + given[:, 0], dv, damping * dv - (6 * x * v + 1) * dx + 1]
            return torch.stack(rates, 1)

        start = torch.tensor([[1.0, 0, 0, 0]]).double().expand(len(given), 4)
        ends = integrated(flow, start, 1.5, 1e-4).numpy()
        return ends[:, :2], ends[:, 2:, None]

    found = check_of(check_simulator(hig.black_box(linearise), FORCES))
    assert found.verdict == "note"
    assert "of the sensitivities too" in found.remedy


# By the kind of fault: a simulator, the check that fails, and a pattern of its text.
WRONG = {
    "wrong": (Broken.apply, "gradient check", r"input 0 only within 1e-03"),
    "cut": (lambda x: x * x.detach().sin(), "gradient check", r"\.detach\(\).*a transposed Jac"),
    "wrong and tiny": (lambda x: 1e-8 * Broken.apply(x), "gradient check", "input 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_found(name):
    assert_fails(*WRONG[name])


def test_a_derivative_is_refused_where_only_one_of_two_inputs_is_wrong():
    report = check_simulator(lambda x, y: x.sin() + Broken.apply(y), START + 1, START + 2)
    assert [failure.name for failure in report.failures] == ["gradient check"]
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


@pytest.mark.parametrize("entries", [2, 6])
def test_outputs_of_a_sum_of_entries_are_not_called_rounded(entries):
    """Entries that move by equal amounts with random signs would cancel in the sum."""
    torch.manual_seed(0)
    a, b = torch.randn(4, 3), torch.randn(4, entries)
    report = hig.testing.check_simulator(lambda a, b: torch.tanh(a * b.sum(1, keepdim=True)), a, b)
    assert report.passed
    assert "rounding hides" not in str(report)
