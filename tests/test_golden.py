"""The published problems against data stored from the reference implementation."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import hig
from problems import NonlinearOscillators, Poisson, Problem, QuantumDipole
from tests.textbook import flat, relative_error, step_of, textbook_jacobian

GOLDEN = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Case:
    """A problem, where its batch is stored, and how exact the stored float32 data is."""

    problem: Problem
    keys: Mapping[str, str]
    outputs: float = 1e-5
    steps: float = 1e-4


CASES = {
    "nonlinear_oscillators": Case(NonlinearOscillators(), {"start": "x", "target": "y_target"}),
    # The reference loses digits over 384 float32 steps: float64 differs from it by 2e-4 and 7e-4.
    "quantum_dipole": Case(
        QuantumDipole(), {"start": "x", "target": "y_target"}, outputs=5e-4, steps=2e-3
    ),
    "poisson": Case(Poisson(), {"truth": "x_gt", "target": "y_target"}),
}
each_case = pytest.mark.parametrize("name", CASES)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@cache
def golden_of(name):
    with np.load(GOLDEN / f"{name}.npz") as data:
        return dict(data)


def load(name, dtype):
    """Network and closure of the reference run; weights are stored (in, out)."""
    golden, problem = golden_of(name), CASES[name].problem
    network = problem.network().to(dtype)
    with torch.no_grad():
        for index, parameter in enumerate(network.parameters()):
            parameter.copy_(torch.from_numpy(golden[f"w{index}"].T))
    batch = {
        key: torch.from_numpy(golden[stored]).to(dtype) for key, stored in CASES[name].keys.items()
    }

    def closure():
        prediction = problem.predict(network, batch)
        return problem.loss(prediction, batch), prediction

    return network, closure


def in_keras_order(network, vector):
    """Flatten a vector over our parameters as the reference does: (in, out) weights."""
    parts = vector.split([p.numel() for p in network.parameters()])
    shaped = [part.view_as(p) for part, p in zip(parts, network.parameters(), strict=True)]
    return torch.cat([(t.T if t.ndim == 2 else t).flatten() for t in shaped])


@each_case
@each_dtype
def test_prediction_loss_and_loss_gradient(name, dtype):
    golden, case = golden_of(name), CASES[name]
    _, closure = load(name, dtype)
    loss, prediction = closure()
    (gradient,) = torch.autograd.grad(loss, prediction)
    assert prediction.dtype == loss.dtype == dtype
    assert relative_error(prediction.detach(), torch.from_numpy(golden["y_pred"])) < case.outputs
    per_sample = golden["loss_per_sample"]
    expected = per_sample.sum() if case.problem.loss_reduction == "sum" else per_sample.mean()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert relative_error(gradient, torch.from_numpy(golden["dloss_dy"])) < case.outputs


@each_case
def test_singular_values(name):
    network, closure = load(name, torch.float64)
    optimizer = hig.HIG(network.parameters(), rcond=1e-5, step_rule="fixed")
    optimizer.step(closure)
    found = optimizer.report.singular_values.numpy()
    expected = golden_of(name)["singular_values"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * found[0])


@each_case
@each_dtype
@pytest.mark.parametrize("rcond", [1e-3, 1e-5])
@pytest.mark.parametrize("engine", ["layerwise", "rows"])
def test_step_and_rank(name, dtype, rcond, engine):
    golden = golden_of(name)
    network, closure = load(name, dtype)
    optimizer = hig.HIG(network.parameters(), lr=1.0, rcond=rcond, engine=engine, step_rule="fixed")
    step = step_of(optimizer, closure)
    expected = torch.from_numpy(golden[f"hig_update_rcond{rcond:g}"])
    found = in_keras_order(network, step).double()
    # What is stored is the direction; the step subtracts it.
    assert relative_error(-found, expected) < CASES[name].steps
    assert optimizer.report.rank == int(golden[f"hig_rank_rcond{rcond:g}"])


@each_case
def test_the_step_goes_downhill(name):
    network, closure = load(name, torch.float64)
    loss, prediction = closure()
    (gradient,) = torch.autograd.grad(loss, prediction, retain_graph=True)
    descent = textbook_jacobian(prediction, network.parameters()).T @ gradient.flatten()
    step = step_of(hig.HIG(network.parameters(), lr=1.0, step_rule="fixed"), closure)
    assert step @ descent < 0
    assert flat(network.parameters()).isfinite().all()
