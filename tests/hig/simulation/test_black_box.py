"""Simulators outside torch."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import nn

import hig
from tests.textbook import relative_error, textbook_jacobian


def by_pullback(angles, gains):
    sines, ones = np.sin(angles), np.ones((3, 2), angles.dtype)

    def pullback(cotangent):
        return np.cos(angles) * ((cotangent * gains) @ ones.T), cotangent * (sines @ ones)

    return (sines @ ones) * gains, pullback


def by_jacobians(angles, gains):
    sines, ones = np.sin(angles), np.ones((3, 2), angles.dtype)
    by_angles = gains[:, :, None] * np.cos(angles)[:, None, :]
    by_gains = (sines @ ones)[:, :, None] * np.eye(2, dtype=angles.dtype)
    return (sines @ ones) * gains, (by_angles, by_gains)


def in_torch(angles, gains):
    return (angles.sin() @ angles.new_ones(3, 2)) * gains


FORMS = {"pullback": by_pullback, "jacobians": by_jacobians}


def inputs(dtype=torch.float64, samples=5):
    torch.manual_seed(0)
    return torch.randn(samples, 3, dtype=dtype), torch.randn(samples, 2, dtype=dtype)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_those_of_torch(form, dtype):
    given = [value.requires_grad_() for value in inputs(dtype)]
    found, expected = hig.black_box(FORMS[form])(*given), in_torch(*given)
    assert found.dtype == dtype
    tolerance = 10 * torch.finfo(dtype).eps
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    cotangent = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(found, given, cotangent),
        torch.autograd.grad(expected, given, cotangent),
        strict=True,
    ):
        assert a.dtype == dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_by_one_input_alone(form):
    angles, gains = inputs()
    angles.requires_grad_()
    hig.black_box(FORMS[form])(angles, gains).sum().backward()
    found, angles.grad = angles.grad, None
    in_torch(angles, gains).sum().backward()
    assert relative_error(found, angles.grad) < 1e-14
    assert gains.grad is None


@pytest.mark.parametrize(
    ("form", "method"), [("pullback", "gram"), ("jacobians", "gram"), ("jacobians", "lanczos")]
)
def test_a_step_through_it_is_the_step_through_torch(form, method):
    steps = []
    for simulate in (hig.black_box(FORMS[form]), in_torch):
        torch.manual_seed(1)
        network = nn.Linear(3, 3, dtype=torch.float64)
        angles, gains = inputs()
        optimizer = hig.HIG(network.parameters(), method=method)

        def closure(network=network, angles=angles, gains=gains, simulate=simulate):
            prediction = simulate(network(angles), gains)
            return (prediction - gains).square().sum(1).mean(), prediction

        optimizer.step(closure)
        assert optimizer.report.engine == "layerwise"
        steps.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    assert relative_error(steps[0], steps[1]) < 1e-9


def test_a_report_says_why_passes_are_not_batched():
    network = nn.Linear(3, 3)
    angles, gains = inputs(torch.float32)
    simulate = hig.black_box(by_pullback)
    optimizer = hig.HIG(network.parameters())

    def closure():
        prediction = simulate(network(angles), gains)
        return prediction.square().mean(), prediction

    optimizer.step(closure)
    assert any("one cotangent at a time" in note for note in optimizer.report.notes)


def test_without_a_gradient_the_plain_simulation_is_called():
    def refused(*_):
        raise AssertionError("no derivative is wanted")

    angles, gains = inputs()
    simulate = hig.black_box(refused, lambda a, b: by_pullback(a, b)[0])
    expected = in_torch(angles, gains)
    assert relative_error(simulate(angles, gains), expected) < 1e-14
    with torch.no_grad():
        assert relative_error(simulate(angles.requires_grad_(), gains), expected) < 1e-14


def test_whole_numbers_have_no_gradient():
    def chosen(values, index):
        def pullback(cotangent):
            gradient = np.zeros_like(values)
            gradient[np.arange(len(values)), index] = cotangent[:, 0]
            return gradient, None

        return values[np.arange(len(values)), index][:, None], pullback

    values = torch.randn(4, 3, requires_grad=True)
    index = torch.tensor([0, 2, 1, 1])
    output = hig.black_box(chosen)(values, index)
    output.sum().backward()
    assert torch.equal(values.grad, nn.functional.one_hot(index, 3).float())


def test_none_is_zero():
    def linearise(a, b):
        return a + 0 * b, (np.broadcast_to(np.eye(2), (3, 2, 2)), None)

    a, b = (torch.randn(3, 2, requires_grad=True) for _ in range(2))
    hig.black_box(linearise)(a, b).sum().backward()
    assert torch.equal(a.grad, torch.ones(3, 2))
    assert b.grad is None or not b.grad.any()


class TestErrors:
    def test_arguments(self):
        with pytest.raises(TypeError, match="linearise must be a function of arrays, got 3"):
            hig.black_box(3)
        with pytest.raises(TypeError, match="simulate must be a function"):
            hig.black_box(by_pullback, "fast")

    def test_inputs(self):
        simulate = hig.black_box(lambda a: (a, lambda c: c))
        with pytest.raises(TypeError, match=r"takes tensors \(batch, \.\.\.\), got 2\.0"):
            simulate(2.0)
        with pytest.raises(TypeError, match="floating-point input"):
            simulate(torch.arange(3))

    @pytest.mark.parametrize("found", [np.zeros((3, 1)), (1, 2, 3), None])
    def test_what_linearise_returns(self, found):
        with pytest.raises(TypeError, match=r"must return \(output, derivative\)"):
            hig.black_box(lambda a: found)(torch.zeros(3, 1, requires_grad=True))

    @pytest.mark.parametrize("output", [np.zeros(()), np.zeros((2, 1))])
    def test_outputs_without_the_batch(self, output):
        with pytest.raises(ValueError, match="the 3 samples of its input first"):
            hig.black_box(lambda a: (output, lambda c: c))(torch.zeros(3, 1, requires_grad=True))

    def test_gradients_of_another_shape(self):
        output = hig.black_box(lambda a: (a, lambda c: c.T))(torch.zeros(3, 1, requires_grad=True))
        with pytest.raises(ValueError, match=r"by input 0 must have shape \(3, 1\), got \(1, 3\)"):
            output.sum().backward()

    def test_jacobians_of_another_shape(self):
        simulate = hig.black_box(lambda a: (a, np.ones((3, 1))))
        with pytest.raises(ValueError, match=r"must have shape \(3, 1, 1\), got \(3, 1\)"):
            simulate(torch.zeros(3, 1, requires_grad=True))

    def test_another_number_of_gradients(self):
        simulate = hig.black_box(lambda a, b: (a, lambda c: c))
        output = simulate(*(torch.zeros(3, 1, requires_grad=True) for _ in range(2)))
        with pytest.raises(ValueError, match="one array per input, 2, got 1"):
            output.sum().backward()

    def test_lanczos_by_products_says_what_is_missing(self):
        gain = nn.Parameter(torch.ones(3))
        optimizer = hig.HIG([gain], method="lanczos")
        angles, gains = inputs(torch.float32)
        simulate = hig.black_box(by_pullback)

        def closure():
            prediction = simulate(torch.hypot(angles, gain), gains)  # no product
            return prediction.square().mean(), prediction

        with pytest.raises(ValueError, match="method='gram'"):
            optimizer.step(closure)


def predator_and_prey(rates):
    """Populations (B, 2) at time 3 by SciPy, from the rates (B, 2) of growth and death."""
    runs = [integrated(flow, (0, 3), [1.0, 0.5], rate) for rate in rates]

    def pullback(cotangent):
        gradients = []
        for rate, run, final in zip(rates, runs, cotangent, strict=True):
            last = [*run.y[:, -1], *final, 0, 0]
            gradients.append(integrated(adjoint_flow, (3, 0), last, rate).y[4:, -1])
        return np.stack(gradients)

    return np.stack([run.y[:, -1] for run in runs]), pullback


def integrated(derivative, times, start, rate):
    return solve_ivp(derivative, times, start, args=(rate,), rtol=1e-11, atol=1e-12)


def flow(_, y, rate):
    return np.array([rate[0] * y[0] - y[0] * y[1], y[0] * y[1] - rate[1] * y[1]])


def adjoint_flow(time, state, rate):
    """Backwards: the state y, its adjoint a with a' = -Jᵀ a, and the gradient by the rates."""
    y, a = state[:2], state[2:4]
    jacobian = np.array([[rate[0] - y[1], -y[0]], [y[1], y[0] - rate[1]]])
    return np.concatenate([flow(time, y, rate), -a @ jacobian, [-y[0] * a[0], y[1] * a[1]]])


def test_an_ode_by_scipy_with_its_adjoint_passes_the_checks():
    torch.manual_seed(0)
    rates = 1 + 0.3 * torch.rand(3, 2, dtype=torch.float64)
    report = hig.testing.check_simulator(hig.black_box(predator_and_prey), rates)
    assert report.passed, report
    assert (report.engine, report.batched, report.passes) == ("layerwise", False, 2)
    leaf = rates.clone().requires_grad_()
    jacobian = textbook_jacobian(hig.black_box(predator_and_prey)(leaf), [leaf])
    assert torch.linalg.matrix_rank(jacobian) == 6


def test_a_network_is_trained_through_scipy():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)).double()
    simulate = hig.black_box(predator_and_prey)
    wanted = simulate(1 + 0.3 * torch.rand(6, 2, dtype=torch.float64))
    optimizer = hig.HIG(network.parameters(), step_rule="trust")

    def closure():
        prediction = simulate(1 + network(wanted) / 4)
        return (prediction - wanted).square().sum(1).mean(), prediction

    losses = [float(optimizer.step(closure)) for _ in range(14)]
    assert losses[-1] < 1e-3 * losses[0]
