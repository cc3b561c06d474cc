import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import hig
from problems import CartPole
from problems.cart_pole import WEIGHTS
from tests.textbook import relative_error, step_of, textbook_jacobian, textbook_power

SMALL = CartPole(time_steps=8, looks=2, apart=3, hidden=(6,), train_size=5, test_size=3)


def random_states(samples=4):
    """Cart and pole in any position and motion."""
    unit = torch.rand((samples, 4), generator=torch.Generator().manual_seed(2)).double()
    return (2 * unit - 1) * torch.tensor([1, 2, torch.pi, 6], dtype=torch.float64)


def random_controls(samples=4, steps=12):
    generator = torch.Generator().manual_seed(3)
    return torch.randn((samples, steps), generator=generator).double()


def batch_of(problem, dtype=torch.float64):
    torch.manual_seed(0)
    network = problem.network().to(dtype)
    train, _ = problem.data(torch.Generator().manual_seed(0))
    return network, {key: value.to(dtype) for key, value in train.items()}


def run(problem, state, controls):
    for control in controls.unbind(1):
        state = problem.step(state, control)
    return state


def lagrange(_, state, force):
    """From the energies: the mass matrix times the accelerations is the sum of the forces."""
    cart, pole, half = 1.0, 0.1, 0.5
    _, v, angle, spin = state
    coupling = pole * half * math.cos(angle)
    masses = [[cart + pole, coupling], [coupling, 4 / 3 * pole * half**2]]
    forces = [force + pole * half * spin**2 * math.sin(angle), pole * 9.8 * half * math.sin(angle)]
    speed_change, spin_change = np.linalg.solve(masses, forces)
    return [v, speed_change, spin, spin_change]


def test_agrees_with_scipy_on_the_equations_of_lagrange():
    problem, start, controls = CartPole(dt=0.01), random_states(), random_controls()
    expected = []
    for state, sequence in zip(start.numpy(), controls.numpy(), strict=True):
        for control in sequence:
            span, force = (0, problem.dt), problem.force_gain * control
            found = solve_ivp(
                lagrange, span, state, "DOP853", args=(force,), rtol=1e-11, atol=1e-11
            )
            state = found.y[:, -1]
        expected.append(state)
    np.testing.assert_allclose(run(problem, start, controls), expected, rtol=0, atol=2e-7)


def test_the_default_step_is_short_enough_for_a_swing():
    start = torch.tensor([[0, 0, torch.pi, 0]], dtype=torch.float64)
    push = random_controls(1, 60)
    coarse = run(CartPole(), start, push)
    fine = run(CartPole(dt=0.05 / 16), start, push.repeat_interleave(16, 1))
    torch.testing.assert_close(coarse, fine, rtol=0, atol=0.02)


def test_full_turns_and_places_do_not_matter():
    problem, start, controls = CartPole(), random_states(), random_controls()
    moved = torch.tensor([3, 0, -4 * torch.pi, 0], dtype=torch.float64)
    there = run(problem, start, controls)
    torch.testing.assert_close(run(problem, start + moved, controls), there + moved)
    torch.testing.assert_close(problem.observe(start + moved)[:, 1:], problem.observe(start)[:, 1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_simulator_is_ready_for_half_inverse_steps(dtype):
    def simulate(start, controls):
        return hig.rollout(CartPole().step, start, controls)

    inputs = random_states(3).to(dtype), random_controls(3, 4).to(dtype)
    report = hig.testing.assert_simulator(simulate, *inputs, allow=())
    assert (report.engine, report.batched, report.passes) == ("layerwise", True, 5)


def test_each_decision_is_made_on_the_state_of_its_time():
    network, batch = batch_of(SMALL)
    example = SMALL.example(network, batch)
    controls = torch.from_numpy(example["control"])
    state = batch["start"]
    for time, control in enumerate(controls.unbind(1)):
        np.testing.assert_allclose(state[:, [0, 2]], example["state"][:, time], atol=1e-12)
        torch.testing.assert_close(network(SMALL.observe(state))[:, 0], control)
        state = SMALL.step(state, control)
    assert controls.std(1).min() > 0


def test_prediction_is_what_is_left_to_do():
    network, batch = batch_of(SMALL)
    states, controls = SMALL._simulate(network, batch["start"])
    prediction = SMALL.predict(network, batch)
    assert prediction.shape == (5, 11)
    for place, time in enumerate((5, 8)):
        x, v, angle, spin = states[:, time].unbind(1)
        missed = torch.stack([x, v, angle.cos() - 1, angle.sin(), spin], 1)
        found = prediction[:, 5 * place : 5 * place + 5]
        torch.testing.assert_close(found, missed * missed.new_tensor(WEIGHTS))
    torch.testing.assert_close(prediction[:, -1] ** 2, 1e-3 * controls.square().mean(1))
    loss = SMALL.loss(prediction, batch)
    assert loss.item() == pytest.approx(prediction.square().sum().item() / 5)


def test_nothing_is_left_to_do_upright_without_effort():
    network, batch = batch_of(SMALL)
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    prediction = SMALL.predict(network, {"start": torch.zeros_like(batch["start"])})
    assert not prediction.any()
    SMALL.loss(SMALL.predict(network, batch), batch).backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_pumping_a_swing_lowers_the_loss():
    """Or hanging at rest would be a minimum, which no method would leave."""
    problem = CartPole(spread=0.1, effort=1e-6, train_size=32)
    _, batch = batch_of(problem)
    hanging = problem.loss(problem.predict(lambda seen: 0 * seen[:, :1], batch), batch)
    pumped = problem.loss(problem.predict(lambda seen: 0.2 * seen[:, 4:], batch), batch)
    assert pumped < 0.99 * hanging


@pytest.mark.parametrize("engine", ["auto", "rows"])
def test_step_through_all_uses_of_the_weights_equals_the_textbook(engine):
    network, batch = batch_of(SMALL)

    def closure():
        prediction = SMALL.predict(network, batch)
        return SMALL.loss(prediction, batch), prediction

    loss, prediction = closure()
    (gradient,) = torch.autograd.grad(loss, prediction, retain_graph=True)
    jacobian = textbook_jacobian(prediction, network.parameters())
    expected = -textbook_power(jacobian, gradient.flatten(), -0.5, 1e-4)
    optimizer = hig.HIG(network.parameters(), rcond=1e-4, engine=engine, step_rule="fixed")
    assert relative_error(step_of(optimizer, closure), expected) < 1e-9
    assert optimizer.report.engine == {"auto": "layerwise"}.get(engine, engine)


def test_a_rollout_notices_that_the_step_trains_something():
    network, batch = batch_of(SMALL)
    turns = torch.zeros(5, 8, dtype=torch.float64, requires_grad=True)

    def step(state, _):
        return SMALL.step(state, network(SMALL.observe(state)).squeeze(-1))

    found = hig.rollout(step, batch["start"], turns)
    expected = SMALL._simulate(network, batch["start"])[0][:, -1]
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="method='jacobians' cannot be used"):
        hig.rollout(step, batch["start"], turns, method="jacobians")


def test_example():
    network, batch = batch_of(SMALL, torch.float32)
    batch["start"][0, 2] += 2 * torch.pi
    example = SMALL.example(network, batch)
    assert {key: np.shape(value) for key, value in example.items()} == {
        "time": (9,),
        "control_time": (8,),
        "state": (5, 9, 2),
        "target": (5, 2),
        "control": (5, 8),
        "state_names": (2,),
    }
    assert example["time"][-1] == pytest.approx(8 * 0.05)
    np.testing.assert_allclose(example["state"][:, 0], batch["start"][:, [0, 2]])
    turns = example["target"][:, 1] / (2 * np.pi)
    np.testing.assert_allclose(turns, turns.round(), atol=1e-12)
    assert np.abs(example["state"][:, -1, 1] - example["target"][:, 1]).max() <= np.pi
    assert not example["target"][:, 0].any()


def test_times_that_count_must_lie_in_the_simulation():
    with pytest.raises(ValueError, match=r"time_steps must be more than .* = 2 \* 5, got 10; let"):
        CartPole(time_steps=10)
    assert dataclasses.replace(SMALL, time_steps=4).time_steps == 4


def test_starts_are_spread_about_hanging_at_rest():
    train, _ = CartPole(train_size=40, spread=0.2).data(torch.Generator().manual_seed(4))
    deviation = train["start"] - torch.tensor([0, 0, torch.pi, 0])
    assert 0.15 < deviation.abs().max() <= 0.2 + 1e-6
    assert deviation.min() < -0.1


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [("looks", 0, ValueError), ("apart", 2.5, TypeError), ("spread", -0.1, ValueError)],
)
def test_parameters_must_be_of_their_kind(field, value, error):
    with pytest.raises(error, match=f"{field} must be .*, got"):
        CartPole(**{field: value})
