import dataclasses

import numpy as np
import pytest
import torch

import hig
from problems.quantum_dipole import TARGETS, QuantumDipole
from tests.textbook import flat, relative_error, step_of, textbook_jacobian, textbook_power

SMALL = {"time_steps": 12, "grid_points": 8, "hidden": (6,), "train_size": 5, "test_size": 3}


def batch_of(problem, samples=3, dtype=torch.float64):
    torch.manual_seed(0)
    network = problem.network().to(dtype)
    train, _ = problem.data(torch.Generator().manual_seed(0))
    return network, {key: value[:samples].to(dtype) for key, value in train.items()}


def closure_of(problem, network, batch):
    def closure():
        prediction = problem.predict(network, batch)
        return problem.loss(prediction, batch), prediction

    return closure


def test_published_size():
    problem = QuantumDipole()
    parameters = sum(p.numel() for p in problem.network().parameters())
    train, test = problem.data(torch.Generator().manual_seed(0))
    assert parameters == 9484
    assert train["target"].shape == test["start"].shape == (1024, 14, 2)
    assert problem.spacing == pytest.approx(2 / 15)


@pytest.mark.parametrize("target", TARGETS)
def test_data(target):
    problem = QuantumDipole(target=target)
    train, test = problem.data(torch.Generator().manual_seed(1))
    for data in (train, test):
        for wave in data.values():
            norms = wave.square().sum((1, 2))
            torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-14)
            assert (wave[..., 1] == 0).all()
        populations = (data["target"][..., 0] @ problem.eigenstates(14).T).square()
        inside = populations[:, [n - 1 for n in TARGETS[target]]]
        torch.testing.assert_close(inside.sum(1), torch.ones_like(inside[:, 0]))
        assert (inside > 0).all()


def test_eigenstates_are_stationary_without_a_field():
    problem = QuantumDipole()
    states = problem.eigenstates(14).to(torch.complex128)
    control = torch.zeros(14, dtype=torch.float64)
    after = problem.textbook_step(states, control)
    energies = (4 / problem.spacing**2) * torch.sin(
        torch.arange(1, 15) * torch.pi * problem.spacing / 4
    ) ** 2
    phase = (1 - 0.5j * problem.dt * energies) / (1 + 0.5j * problem.dt * energies)
    torch.testing.assert_close(after, phase[:, None] * states, rtol=0, atol=1e-6)


def test_step_of_the_schroedinger_equation():
    """Against the exact exponential of H: Crank–Nicolson errs in the third order of dt."""
    errors = []
    for dt in (1e-3, 5e-4):
        problem = QuantumDipole(dt=dt, grid_points=8)
        control = torch.tensor([1.7], dtype=torch.float64)
        x = problem.spacing * torch.arange(1, 7, dtype=torch.float64)
        upper = torch.diag(torch.ones(5, dtype=torch.float64), 1)
        laplace = (upper + upper.T - 2 * torch.eye(6, dtype=torch.float64)) / problem.spacing**2
        hamiltonian = -laplace + 1.7 * torch.diag(x)
        exact = torch.linalg.matrix_exp(-1j * dt * hamiltonian)
        errors.append((problem.step_matrices(control)[0] - exact).abs().max())
    assert 7.5 < errors[0] / errors[1] < 8.5


@pytest.mark.parametrize("samples", [3, 40])  # without a graph by matrices, by elimination
@pytest.mark.parametrize("trajectory", [True, False])
def test_fast_rollout_equals_one_dense_solve_after_the_other(trajectory, samples):
    problem = QuantumDipole(**(SMALL | {"train_size": samples}))
    network, batch = batch_of(problem, samples)
    controls = network(batch["target"].flatten(1)).detach()
    fast = problem._simulate(batch["start"], controls, trajectory)
    with torch.no_grad():
        without_graph = problem._simulate(batch["start"], controls, trajectory)
    slow = dataclasses.replace(problem, rollout="loop")._simulate(
        batch["start"], controls, trajectory
    )
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-13)
    torch.testing.assert_close(without_graph, slow, rtol=0, atol=1e-13)


def test_written_derivative_of_the_step_equals_the_differentiated_one():
    problem = QuantumDipole(**SMALL)
    torch.manual_seed(0)
    control = torch.randn(4, 3, dtype=torch.float64)
    states = torch.randn(5, 3, 6, dtype=torch.complex128)
    matrices = problem.step_matrices(control)
    for t in range(4):
        states[t + 1] = (matrices[t] @ states[t].unsqueeze(-1)).squeeze(-1)
    written = hig.LinearStep(problem.step_matrices, problem.step_change)
    differentiated = hig.LinearStep(problem.step_matrices)
    found, expected = (
        step.control_jacobians(matrices, states, control) for step in (written, differentiated)
    )
    assert found.shape == (4, 3, 6, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("engine", ["auto", "rows"])
def test_step_equals_the_textbook(engine):
    problem = QuantumDipole(**SMALL)
    network, batch = batch_of(problem)
    slow = closure_of(dataclasses.replace(problem, rollout="loop"), network, batch)
    loss, prediction = slow()
    (gradient,) = torch.autograd.grad(loss, prediction, retain_graph=True)
    jacobian = textbook_jacobian(prediction, network.parameters())
    expected = -0.5 * textbook_power(jacobian, gradient.flatten(), -0.5, 1e-5)
    optimizer = hig.HIG(network.parameters(), lr=0.5, rcond=1e-5, engine=engine, step_rule="fixed")
    found = step_of(optimizer, closure_of(problem, network, batch))
    assert relative_error(found, expected) < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norm_is_kept(dtype):
    problem = QuantumDipole()
    network, batch = batch_of(problem, 40, dtype)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3)  # strong fields
        prediction = problem.predict(network, batch)
        density = problem.example(network, batch)["density"] * problem.spacing
    assert prediction.dtype == dtype
    norms = prediction.double().square().sum((1, 2))
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    assert (norms - 1).abs().max() < tolerance
    assert np.abs(density.sum(-1) - 1).max() < tolerance


def test_loss_is_the_missing_fidelity():
    problem = QuantumDipole()
    torch.manual_seed(0)
    psi, target = torch.randn(2, 5, 14, dtype=torch.complex128)
    target = target / target.norm(dim=1, keepdim=True)
    psi = psi / psi.norm(dim=1, keepdim=True)
    expected = (1 - (target.conj() * psi).sum(1).abs().square()).mean()
    batch = {"target": torch.view_as_real(target)}
    found = problem.loss(torch.view_as_real(psi), batch)
    assert found.item() == pytest.approx(expected.item(), rel=1e-13)
    turned = problem.loss(torch.view_as_real(psi * np.exp(0.7j)), batch)
    assert turned.item() == pytest.approx(found.item(), rel=1e-13)
    assert problem.loss(batch["target"], batch).item() == pytest.approx(0, abs=1e-14)
    assert problem.loss(torch.view_as_real(psi).float(), batch).dtype == torch.float32


def test_a_perfect_prediction_loses_nothing_to_float32():
    problem = QuantumDipole()
    train, _ = problem.data(torch.Generator().manual_seed(0))
    batch = {"target": train["target"].float()}
    assert abs(problem.loss(batch["target"], batch).item()) < 3e-8


def test_projection_correction_scales_gradients_and_leaves_the_loss():
    torch.manual_seed(0)
    prediction, target = torch.randn(2, 5, 14, 2, dtype=torch.float64)
    prediction.requires_grad_()
    target = target / target.square().sum((1, 2), keepdim=True).sqrt()
    batch = {"target": target}
    losses, gradients = [], []
    for correction in (False, True):
        loss = QuantumDipole(projection_correction=correction).loss(prediction, batch)
        losses.append(loss.item())
        gradients.append(torch.autograd.grad(loss, prediction)[0])
    assert losses[0] == losses[1]
    scale = 1 / (prediction * target).sum((1, 2)).abs()
    torch.testing.assert_close(gradients[1], scale[:, None, None] * gradients[0])


def test_projection_correction_stays_finite_without_overlap():
    problem = QuantumDipole(projection_correction=True)
    prediction = torch.zeros(1, 14, 2, dtype=torch.float64, requires_grad=True)
    loss = problem.loss(prediction, {"target": torch.ones(1, 14, 2, dtype=torch.float64)})
    (gradient,) = torch.autograd.grad(loss, prediction)
    assert gradient.isfinite().all()


def test_example():
    problem = QuantumDipole(**SMALL)
    network, batch = batch_of(problem, 2, torch.float32)
    example = problem.example(network, batch)
    assert example["density"].shape == (2, 13, 6)
    assert example["populations"].shape == (2, 13, 5)
    assert example["time"].shape == (13,)
    assert example["control"].shape == (2, 12)
    np.testing.assert_allclose(example["populations"][:, 0], [[1, 0, 0, 0, 0]] * 2, atol=1e-6)
    np.testing.assert_allclose(example["target_populations"].sum(1), 1, rtol=1e-6)
    final = problem.predict(network, batch).detach().double().square().sum(-1) / problem.spacing
    np.testing.assert_allclose(example["density"][:, -1], final, atol=1e-5)


def test_training_without_the_graph_of_the_loop():
    """Adam's gradient through the fast rollout is that through the dense solves."""
    problem = QuantumDipole(**SMALL)
    network, batch = batch_of(problem)
    gradients = []
    for rollout in ("auto", "loop"):
        loss, _ = closure_of(dataclasses.replace(problem, rollout=rollout), network, batch)()
        gradients.append(flat(torch.autograd.grad(loss, list(network.parameters()))))
    assert relative_error(*gradients) < 1e-12


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"dt": -0.1}, "dt must be positive and finite, got -0.1; the default is 0.05"),
        ({"hidden": (20, 0)}, "each of hidden must be at least 1, got 0"),
        ({"target": "state4"}, "target must be one of superposition, state2, state3"),
        ({"rollout": "fast"}, "rollout must be 'auto' or 'loop', got 'fast'"),
        ({"grid_points": 4}, "grid_points must be at least 5 for the target superposition"),
    ],
)
def test_wrong_parameters(changes, match):
    with pytest.raises(ValueError, match=match):
        QuantumDipole(**changes)
