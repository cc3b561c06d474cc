"""Diagnoses agree with the steps that they predict."""

import random

import numpy as np
import pytest
import torch
from torch import nn

import hig
from hig._spectral.filters import noise_level
from hig._torch.random_state import RandomState
from tests.hig.networks import build, least_squares
from tests.textbook import relative_error, textbook_jacobian


def problem(dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)
    inputs, targets = torch.randn(6, 3, dtype=dtype), torch.randn(6, 2, dtype=dtype)
    scales = torch.tensor([1.0, 1e-3], dtype=dtype)

    def closure():
        prediction = network(inputs) * scales
        return (prediction - targets * scales).square().sum(1).mean(), prediction

    return network, closure


def test_spectrum_and_shapes():
    network, closure = problem()
    diagnosis = hig.diagnose(network.parameters(), closure)
    loss, prediction = closure()
    jacobian = textbook_jacobian(prediction, list(network.parameters()))
    expected = torch.linalg.svdvals(jacobian)
    assert relative_error(torch.from_numpy(diagnosis.singular_values), expected) < 1e-9
    assert diagnosis.loss == pytest.approx(loss.item())
    assert (diagnosis.rows, diagnosis.columns) == jacobian.shape
    assert diagnosis.engine == "layerwise"
    assert diagnosis.noise == pytest.approx(float(noise_level(expected, torch.float64)))
    assert [direction.kappa for direction in diagnosis.directions] == [-0.5, -1.0, 1.0]
    names = [direction.name for direction in diagnosis.directions]
    assert names == ["half-inverse", "Gauss-Newton", "gradient"]


@pytest.mark.parametrize("kappa", [-1.0, -0.5, 0.0, 1.0])
def test_changes_are_those_of_steps(kappa):
    network, closure = problem()
    (found,) = hig.diagnose(network.parameters(), closure, kappas=[kappa]).directions
    before = closure()[0].item()
    for index in (3, 12, 18):
        other, again = problem()
        optimizer = hig.HIG(
            other.parameters(), lr=found.step_sizes[index], kappa=kappa, step_rule="fixed"
        )
        optimizer.step(again)
        change = again()[0].item() - before
        assert found.achieved[index] == pytest.approx(change, rel=1e-6, abs=1e-14)


def test_the_model_is_exact_to_second_order_and_lowest_at_the_cauchy_step():
    network, closure = problem()
    for direction in hig.diagnose(network.parameters(), closure).directions:
        error = np.abs(direction.achieved - direction.predicted)
        assert error[0] < 2e-2 * abs(direction.predicted[0])
        # A smooth loss leaves a quadratic model by terms of at least second order of the network.
        assert (
            error[0] < 1.1 * error[6] * (direction.step_sizes[0] / direction.step_sizes[6]) ** 1.5
        )
        lowest = direction.step_sizes[np.argmin(direction.predicted)]
        assert lowest == pytest.approx(direction.cauchy, rel=0.5)


def test_a_linear_network_is_its_own_model():
    torch.manual_seed(0)
    network = nn.Linear(3, 2, dtype=torch.float64)
    inputs = torch.randn(6, 3, dtype=torch.float64)

    def closure():
        prediction = network(inputs)
        return prediction.square().sum(1).mean(), prediction

    for direction in hig.diagnose(network.parameters(), closure).directions:
        np.testing.assert_allclose(direction.predicted, direction.achieved, rtol=1e-7, atol=1e-12)
        assert direction.best == np.argmin(direction.predicted)


def test_nothing_is_changed():
    network, closure = problem()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    hig.diagnose(network.named_parameters(), closure)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_nothing_is_changed_when_the_closure_fails_midway():
    network, closure = problem()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    calls = []

    def failing():
        calls.append(None)
        if len(calls) > 5:
            raise RuntimeError("the solver did not converge")
        return closure()

    with pytest.raises(RuntimeError, match="did not converge"):
        hig.diagnose(network.parameters(), failing)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_a_loss_without_curvature_has_steps_around_one():
    network, closure = problem()

    def linear():
        _, prediction = closure()
        return prediction.sum(), prediction

    for direction in hig.diagnose(network.parameters(), linear).directions:
        assert direction.cauchy == 1.0
        assert (np.diff(direction.predicted) < 0).all()


def test_an_automatic_cut_off_and_other_exponents():
    network, closure = problem(torch.float32)
    diagnosis = hig.diagnose(network.parameters(), closure, kappas=[-0.25], rcond="auto")
    (direction,) = diagnosis.directions
    assert direction.name == "kappa -0.25"
    assert direction.rcond == pytest.approx(diagnosis.noise / diagnosis.singular_values[0])
    assert direction.rank == (diagnosis.singular_values > diagnosis.noise).sum()


def test_losses_that_are_not_finite_are_infinite_changes():
    network, closure = problem()

    def fragile():
        loss, prediction = closure()
        far = max(float(p.detach().abs().max()) for p in network.parameters()) > 5
        return loss * (float("nan") if far else 1.0), prediction

    directions = hig.diagnose(network.parameters(), fragile, kappas=[-1.0]).directions
    assert np.isinf(directions[0].achieved).any()
    assert np.isfinite(directions[0].achieved[directions[0].best])


def test_results_are_saved_and_the_text_tells(tmp_path):
    network, closure = problem()
    diagnosis = hig.diagnose(network.parameters(), closure)
    hig.save_results(tmp_path / "batch.pickle", diagnosis.results())
    loaded = hig.load_results(tmp_path / "batch.pickle")
    np.testing.assert_array_equal(loaded["singular_values"], diagnosis.singular_values)
    assert loaded["directions"][0]["name"] == "half-inverse"
    text = str(diagnosis)
    assert "J 12 x 50, engine layerwise" in text
    assert "of 12 may be rounding alone" in text
    assert len(text.splitlines()) == 5


def test_evaluations_that_differ_have_a_note():
    network, closure = problem()
    assert hig.diagnose(network.parameters(), closure).notes == []
    generator = torch.Generator().manual_seed(0)

    def differing():
        loss, prediction = closure()
        return loss * (1 + torch.rand((), generator=generator)), prediction

    diagnosis = hig.diagnose(network.parameters(), differing)
    (note,) = diagnosis.notes
    assert note.startswith("two evaluations of the closure at the same point differ")
    assert str(diagnosis).endswith(note)
    assert diagnosis.results()["notes"] == [note]


@pytest.mark.parametrize("draw", [np.random.mtrand._rand.rand, random.random])
def test_generators_of_numpy_and_python_are_left_as_they_were(draw):
    network, closure = problem()
    seen = []

    def drawing():
        seen.append(draw())
        loss, prediction = closure()
        return loss * seen[-1], prediction

    before = RandomState(torch.device("cpu"))
    diagnosis = hig.diagnose(network.parameters(), drawing)
    assert len(set(seen)) == 1 and not diagnosis.notes
    assert before.replay(draw) == draw() == seen[0]


def test_a_sketch_has_fewer_rows_and_the_loss_of_all_outputs():
    network, inputs = build("mlp")
    closure = least_squares(network, inputs)
    outputs = closure()[1].shape[1]
    diagnosis = hig.diagnose(network.parameters(), closure, sketch=1)
    assert (diagnosis.rows, diagnosis.fewer_rows) == (len(inputs), (len(inputs), 1, outputs, False))
    assert f"({len(inputs)} samples x 1 of {outputs} outputs)" in str(diagnosis)
    # The model has the curvature of all of them.
    for direction in diagnosis.directions:
        assert direction.achieved[0] == pytest.approx(direction.predicted[0], rel=0.02)
