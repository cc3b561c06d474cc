"""The nonlinear oscillators against data stored from the reference implementation."""

from pathlib import Path

import numpy as np
import pytest
import torch

import hig
from problems.nonlinear_oscillators import NonlinearOscillators
from tests.textbook import flat, relative_error, step_of, textbook_jacobian

GOLDEN = Path(__file__).parent / "golden" / "nonlinear_oscillators.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as data:
        return dict(data)


def load(golden, dtype):
    """Problem, network and batch of the reference run; weights are stored (in, out)."""
    problem = NonlinearOscillators()
    network = problem.network().to(dtype)
    with torch.no_grad():
        for index, parameter in enumerate(network.parameters()):
            parameter.copy_(torch.from_numpy(golden[f"w{index}"].T))
    batch = {
        "start": torch.from_numpy(golden["x"]).to(dtype),
        "target": torch.from_numpy(golden["y_target"]).to(dtype),
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_prediction_loss_and_loss_gradient(golden, dtype):
    _, closure = load(golden, dtype)
    loss, prediction = closure()
    (gradient,) = torch.autograd.grad(loss, prediction)
    np.testing.assert_allclose(prediction.detach(), golden["y_pred"], rtol=1e-5, atol=2e-6)
    assert loss.item() == pytest.approx(golden["loss_per_sample"].mean(), rel=1e-5)
    assert relative_error(gradient, torch.from_numpy(golden["dloss_dy"])) < 1e-5


def test_singular_values(golden):
    network, closure = load(golden, torch.float64)
    optimizer = hig.HIG(network.parameters(), rcond=1e-5)
    optimizer.step(closure)
    found = optimizer.report.singular_values.numpy()
    np.testing.assert_allclose(found, golden["singular_values"], rtol=1e-4, atol=1e-6 * found[0])


@pytest.mark.parametrize("rcond", [1e-3, 1e-5])
@pytest.mark.parametrize("engine", ["layerwise", "rows"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_step_and_rank(golden, rcond, engine, dtype):
    network, closure = load(golden, dtype)
    optimizer = hig.HIG(network.parameters(), lr=1.0, rcond=rcond, engine=engine)
    step = step_of(optimizer, closure)
    expected = torch.from_numpy(golden[f"hig_update_rcond{rcond:g}"])
    found = in_keras_order(network, step).double()
    # What is stored is the direction; the step subtracts it.
    assert relative_error(-found, expected) < 1e-4
    assert optimizer.report.rank == int(golden[f"hig_rank_rcond{rcond:g}"])


def test_the_step_goes_downhill(golden):
    network, closure = load(golden, torch.float64)
    loss, prediction = closure()
    (gradient,) = torch.autograd.grad(loss, prediction, retain_graph=True)
    descent = textbook_jacobian(prediction, network.parameters()).T @ gradient.flatten()
    step = step_of(hig.HIG(network.parameters(), lr=1.0), closure)
    assert step @ descent < 0
    assert flat(network.parameters()).isfinite().all()
