import math
from pathlib import Path

import numpy as np
import pytest
import torch

from problems import NonlinearOscillators

GOLDEN = Path(__file__).parents[1] / "golden" / "nonlinear_oscillators.npz"
DTYPES = [torch.float32, torch.float64]


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as data:
        return dict(data)


def golden_network(problem, golden, dtype):
    network = problem.network().to(dtype)
    with torch.no_grad():
        for i, parameter in enumerate(network.parameters()):
            parameter.copy_(torch.from_numpy(golden[f"w{i}"].T))  # Keras keeps (in, out)
    return network


def relative_error(actual, expected):
    return np.abs(actual.detach().numpy() - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("dtype", DTYPES)
def test_golden_forward_loss_and_loss_gradient(golden, dtype):
    problem = NonlinearOscillators()
    network = golden_network(problem, golden, dtype)
    batch = {
        "start": torch.from_numpy(golden["x"]).to(dtype),
        "target": torch.from_numpy(golden["y_target"]).to(dtype),
    }
    prediction = problem.predict(network, batch)
    loss = problem.loss(prediction, batch)
    (loss_gradient,) = torch.autograd.grad(loss, prediction)
    assert prediction.dtype == loss.dtype == dtype
    assert relative_error(prediction, golden["y_pred"]) < 1e-5
    assert loss.item() == pytest.approx(golden["loss_per_sample"].mean(), rel=1e-5)
    assert relative_error(loss_gradient, golden["dloss_dy"]) < 1e-5


def slow_derivative(state, force, count):
    """Sample by sample and oscillator by oscillator, as the equations are written."""
    x, v = state[:count], state[count:]
    derivative = np.zeros_like(state)
    for i in range(count):
        derivative[i] = v[i]
        derivative[count + i] = -x[i]
        if i + 1 < count:
            derivative[count + i] += (x[i + 1] - x[i]) ** 3
        if i > 0:
            derivative[count + i] += (x[i - 1] - x[i]) ** 3
        if i == count - 1:
            derivative[count + i] += force
    return derivative


def slow_simulation(state, controls, dt, count, substeps):
    h = dt / substeps
    for u in controls:
        for _ in range(substeps):
            k1 = slow_derivative(state, 3 * u, count)
            k2 = slow_derivative(state + h / 2 * k1, 3 * u, count)
            k3 = slow_derivative(state + h / 2 * k2, 3 * u, count)
            k4 = slow_derivative(state + h * k3, 3 * u, count)
            state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return state


def random_case(count, samples=3, steps=12):
    generator = torch.Generator().manual_seed(count)
    start = torch.rand(samples, 2 * count, generator=generator, dtype=torch.float64)
    controls = torch.randn(samples, steps, generator=generator, dtype=torch.float64)
    return start, controls


def simulate(problem, start, controls):
    batch = {"start": start, "target": start}
    return problem.predict(lambda target: controls, batch)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize(("substeps", "tolerance"), [(1, 1e-13), (20, 1e-3)])
def test_agrees_with_a_slow_simulation(count, substeps, tolerance):
    problem = NonlinearOscillators(oscillators=count, time_steps=12)
    start, controls = random_case(count)
    expected = [
        slow_simulation(s.numpy(), c.numpy(), problem.dt, count, substeps)
        for s, c in zip(start, controls, strict=True)
    ]
    np.testing.assert_allclose(simulate(problem, start, controls), expected, atol=tolerance)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_step_takes_batches_single_states_and_vmap(count, dtype):
    problem = NonlinearOscillators(oscillators=count)
    start, controls = (t.to(dtype) for t in random_case(count))
    control = controls[:, 0]
    batched = problem.step(start, control)
    assert batched.shape == start.shape
    assert batched.dtype == dtype
    torch.testing.assert_close(torch.func.vmap(problem.step)(start, control), batched)
    for s, u, expected in zip(start, control, batched, strict=True):
        torch.testing.assert_close(problem.step(s, u), expected)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_step_jacobian_under_vmap_and_vjp(count):
    problem = NonlinearOscillators(oscillators=count)
    start, controls = random_case(count)
    control = controls[:, 0]
    jacobian = torch.func.vmap(torch.func.jacrev(problem.step, argnums=(0, 1)))(start, control)
    _, pullback = torch.func.vjp(problem.step, start, control)
    cotangents = torch.eye(2 * count, dtype=start.dtype)[:, None].expand(-1, len(start), -1)
    for one, other in zip(jacobian, torch.func.vmap(pullback)(cotangents), strict=True):
        torch.testing.assert_close(one, other.transpose(0, 1))
    assert torch.autograd.gradcheck(
        problem.step, (start.requires_grad_(), control.clone().requires_grad_())
    )


def test_example():
    problem = NonlinearOscillators(time_steps=8, train_size=3, test_size=1)
    train, _ = problem.data(torch.Generator().manual_seed(0))
    network = problem.network().double()
    example = problem.example(network, train)
    shapes = {key: np.shape(value) for key, value in example.items()}
    assert shapes == {
        "time": (9,),
        "control_time": (8,),
        "state": (3, 9, 4),
        "target": (3, 4),
        "control": (3, 8),
        "state_names": (4,),
    }
    assert example["state_names"] == ["x1", "x2", "v1", "v2"]
    assert example["time"][-1] == 1.0
    np.testing.assert_allclose(example["state"][:, 0], train["start"])
    final = problem.predict(network, train).detach()
    np.testing.assert_allclose(example["state"][:, -1], final, rtol=1e-12)


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("oscillators", 2.5, "oscillators must be a whole number, got 2.5; the default is 2"),
        ("oscillators", "2", "oscillators must be a whole number, got '2'"),
        ("oscillators", True, "oscillators must be a whole number, got True"),
        ("dt", None, "dt must be a number, positive and finite, got None"),
        ("hidden", 20, r"hidden must be a tuple, got 20; the default is \(20, 20, 20\)"),
        ("hidden", (20, 2.5), "each of hidden must be a whole number, got 2.5"),
        ("rollout", 3, "rollout must be a text, got 3; the default is 'auto'"),
    ],
)
def test_parameters_must_be_of_their_kind(field, value, match):
    with pytest.raises(TypeError, match=match):
        NonlinearOscillators(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [("oscillators", 0), ("dt", -0.1), ("dt", math.nan), ("dt", math.inf), ("hidden", (20, 0))],
)
def test_parameters_must_be_positive(field, value):
    with pytest.raises(ValueError, match=f"{field} must be .*, got"):
        NonlinearOscillators(**{field: value})
