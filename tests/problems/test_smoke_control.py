import numpy as np
import pytest
import torch

import hig
import hig.testing
from problems import SmokeControl, smoke_control
from problems._incompressible import divergence
from tests.textbook import relative_error, step_of, textbook_jacobian, textbook_power

SMALL = {"size": 8, "observed": 4, "time_steps": 3, "train_size": 4, "test_size": 2}

# Of torch, when PhiFlow makes the matrix of the pressure.
by_phiflow = pytest.mark.filterwarnings("ignore:Sparse (invariant|CSR):UserWarning")


def case(samples=3, dtype=torch.float64, seed=0, **parameters):
    """A problem with starts and controls that push the smoke over more than a cell in a step."""
    problem = SmokeControl(**{**SMALL, **parameters})
    generator = torch.Generator().manual_seed(seed)
    shape = samples, problem.time_steps, problem.controls
    controls = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    start = problem.data(generator)[0]["start"][:samples]
    return problem, start.to(dtype), controls.to(dtype)


@by_phiflow
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-8)])
@pytest.mark.parametrize("parameters", [{}, {"size": 12, "eddies": 3, "time_steps": 5}])
def test_densities_and_gradients_are_those_of_phiflow(parameters, dtype, tolerance):
    problem, start, controls = case(dtype=dtype, **parameters)
    start.requires_grad_()
    controls.requires_grad_()
    weights = torch.randn(start.shape, generator=torch.Generator().manual_seed(5)).to(dtype)
    found, expected = (p.simulate(start, controls) for p in (problem, problem.plain()))
    assert found.dtype == expected.dtype == dtype
    assert relative_error(found.detach(), expected.detach()) < tolerance
    assert relative_error(start.detach(), expected.detach()) > 0.1  # something has moved
    gradients = (
        torch.autograd.grad((density * weights).sum(), [start, controls])
        for density in (found, expected)
    )
    for one, other in zip(*gradients, strict=True):
        assert relative_error(one, other) < tolerance


@by_phiflow
def test_default_grid_against_phiflow():
    problem, start, controls = case(
        samples=2, size=32, observed=8, time_steps=8, train_size=2, test_size=1
    )
    expected = problem.plain().simulate(start, controls / 3)
    assert relative_error(problem.simulate(start, controls / 3), expected) < 1e-8


@by_phiflow
def test_batched_passes_through_phiflow():
    problem, start, controls = case(samples=2, time_steps=2)
    controls.requires_grad_()
    cotangents = torch.eye(16, dtype=torch.float64).view(16, 1, 4, 4).expand(-1, 2, -1, -1)
    found, expected = (
        torch.autograd.grad(
            p.observe(p.simulate(start, controls)), controls, cotangents, is_grads_batched=True
        )[0]
        for p in (problem.plain(), problem)
    )
    assert relative_error(found, expected) < 1e-8


def test_ready_for_half_inverse_steps():
    problem, start, controls = case(dtype=torch.float32)

    def simulate(start, controls):
        return problem.observe(problem.simulate(start, controls))

    # torch 2.11 has no second derivative of grid_sample.
    report = hig.testing.assert_simulator(simulate, start, controls, allow=("products J v",))
    assert report.batched and report.engine == "layerwise"


def test_samples_do_not_influence_one_another():
    problem, start, controls = case()
    together = problem.simulate(start, controls)
    for i in range(3):
        alone = problem.simulate(start[i : i + 1], controls[i : i + 1])
        torch.testing.assert_close(alone[0], together[i])


def test_forces_are_free_of_divergence_and_as_strong_as_set():
    problem = SmokeControl(size=64, eddies=3, force=0.7)
    controls = torch.eye(9, dtype=torch.float64)[None]
    for force, (k, m) in zip(problem._forces(controls), np.ndindex(3, 3), strict=True):
        assert divergence(force).abs().max() < 1e-14
        x, y = (part.abs().max() for part in force)
        largest = [0.7 * (1 + axis) / (1 + max(k, m)) for axis in (m, k)]
        assert [float(x), float(y)] == pytest.approx(largest, rel=5e-3)


def test_smoke_rises_and_is_kept():
    problem = SmokeControl(train_size=8, test_size=1)
    start = problem.data(torch.Generator().manual_seed(0))[0]["start"]
    idle = torch.zeros(8, 8, 4, dtype=torch.float64)
    end = problem.simulate(start, idle)
    height = torch.arange(32, dtype=torch.float64)
    before, after = ((d * height).sum((1, 2)) / d.sum((1, 2)) for d in (start, end))
    assert (after > before + 1).all()
    # No force, no other motion: what starts in the middle stays symmetric.
    middle = torch.exp(-((height - 15.5) / 4).square())
    middle = (middle[:, None] * middle)[None]
    risen = problem.simulate(middle, idle[:1])
    torch.testing.assert_close(risen, risen.flip(1))
    # The interpolation makes no new extremes, and keeps the mass but for some per cent.
    assert end.min() >= 0 and (end.amax((1, 2)) <= start.amax((1, 2))).all()
    ratio = end.sum((1, 2)) / start.sum((1, 2))
    assert ((ratio - 1).abs() < 0.1).all()


def test_chunks_of_the_data_leave_no_trace(monkeypatch):
    problem = SmokeControl(**SMALL)
    whole, _ = problem.data(torch.Generator().manual_seed(4))
    monkeypatch.setattr("problems.smoke_control.CHUNK", 3)
    parts, _ = problem.data(torch.Generator().manual_seed(4))
    torch.testing.assert_close(whole["target"], parts["target"])


def test_targets_can_be_reached():
    problem = SmokeControl(**SMALL)
    _, test = problem.data(torch.Generator().manual_seed(0))
    one = {key: value[:1] for key, value in test.items()}
    controls = torch.zeros(1, 12, dtype=torch.float64, requires_grad=True)

    def network(images):
        return controls.expand(len(images), -1)

    optimizer = hig.LevenbergMarquardt([controls], step_rule="fixed")

    def closure():
        prediction = problem.predict(network, one)
        return 0.5 * problem.loss(prediction, one), prediction

    first = closure()[0].item()
    for _ in range(30):
        optimizer.step(closure)
    assert closure()[0].item() < 1e-9 * first


def test_prediction_loss_and_step_of_hig():
    problem, *_ = case()
    train, _ = problem.data(torch.Generator().manual_seed(2))
    torch.manual_seed(1)
    network = problem.network().double()
    image = torch.cat(
        [d.unfold(1, 2, 2).unfold(2, 2, 2).mean((3, 4)).flatten(1) for d in train.values()], 1
    )
    end = problem.simulate(train["start"], network(image).view(4, 3, 4))
    coarse = end.unfold(1, 2, 2).unfold(2, 2, 2).mean((3, 4))
    prediction = problem.predict(network, train)
    torch.testing.assert_close(prediction, coarse)
    residual = (prediction - image[:, 16:].view(4, 4, 4)).detach()
    assert problem.loss(prediction, train).item() == pytest.approx(float((residual**2).sum() / 4))
    jacobian = textbook_jacobian(prediction, network.parameters())
    expected = -textbook_power(jacobian, residual.flatten() / 2, -0.5, 1e-4)

    def closure():
        prediction = problem.predict(network, train)
        return problem.loss(prediction, train), prediction

    optimizer = hig.HIG(network.parameters(), lr=1.0, rcond=1e-4, step_rule="fixed")
    assert relative_error(step_of(optimizer, closure), expected) < 1e-6
    assert optimizer.report.notes == []


def test_example():
    problem = SmokeControl(**SMALL)
    _, test = problem.data(torch.Generator().manual_seed(0))
    example = problem.example(problem.network().double(), test)
    assert example["quantity"] == "density"
    for key in ("start", "uncontrolled", "prediction", "truth"):
        assert example[key].shape == (2, 8, 8) and example[key].dtype == np.float64
    np.testing.assert_array_equal(example["truth"], test["target"])
    idle = torch.zeros(2, 3, 4, dtype=torch.float64)
    np.testing.assert_array_equal(example["uncontrolled"], problem.simulate(test["start"], idle))


@pytest.mark.parametrize(
    ("parameters", "error", "text"),
    [
        ({"observed": 5}, ValueError, "observed must divide size, got 5 and 32"),
        ({"size": 8, "eddies": 5}, ValueError, "size must be at least twice the eddies, got 8 a"),
        ({"dt": 0.0}, ValueError, "dt must be positive and finite, got 0.0"),
        ({"fast_steps": 1}, TypeError, "fast_steps must be True or False, got 1"),
    ],
)
def test_parameters(parameters, error, text):
    with pytest.raises(error, match=text):
        SmokeControl(**parameters)


def test_loss_of_a_data_set_does_not_depend_on_how_it_is_cut(monkeypatch):
    problem = SmokeControl(**{**SMALL, "train_size": 7})
    data, _ = problem.data(torch.Generator().manual_seed(0))
    network = problem.network().double()
    with torch.no_grad():
        expected = problem.loss(problem.predict(network, data), data).item()
        assert problem.data_loss(network, data, 4096) == pytest.approx(expected, rel=1e-12)
        monkeypatch.setattr(smoke_control, "CHUNK", 3)
        assert problem.data_loss(network, data, 4096) == pytest.approx(expected, rel=1e-12)


@pytest.mark.cuda
def test_on_a_gpu():
    problem, start, controls = case()
    expected = problem.simulate(start, controls)
    found = problem.simulate(start.cuda(), controls.cuda())
    assert relative_error(found.cpu(), expected) < 1e-10
