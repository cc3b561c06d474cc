"""Steps of a sketch: few directions in the output space of each sample."""

import copy

import pytest
import torch

import hig
from hig._step.momentum import Momentum
from hig._step.reports import StepReport
from hig._step.row_map import FewerRows, orthonormal_directions
from hig._step.sketch import Sketch
from tests.hig.networks import build, least_squares
from tests.textbook import flat

OPTIMIZERS = {
    "hig": lambda p, **o: hig.HIG(p, **{"rcond": 1e-6, **o}),
    "gn": lambda p, **o: hig.GaussNewton(p, **{"rcond": 1e-4, **o}),
    "lm": lambda p, **o: hig.LevenbergMarquardt(p, **{"damping": 1e-2, **o}),
}
EACH = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


def wide(dtype=torch.float64, samples=6, outputs=7):
    """A network with several outputs per sample, a closure, and its inputs."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, outputs)
    ).to(dtype)
    inputs = torch.randn(samples, 3, dtype=dtype)
    weights = torch.linspace(0.5, 2, outputs, dtype=dtype)

    def closure():
        prediction = network(inputs)
        return (weights * (prediction - 0.3).square()).sum(1).mean(), prediction

    return network, closure, inputs


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def dense(network, prediction):
    """Jacobian of a prediction, row by row."""
    parameters = list(network.parameters())
    rows = [
        torch.autograd.grad(entry, parameters, retain_graph=True) for entry in prediction.flatten()
    ]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


def drawn(optimizer):
    """Directions that the next step will use, by a copy of the optimiser's memory."""
    memory = dict(optimizer.state["sketch"])

    def directions(gradient, count):
        generator = torch.Generator()
        number = memory["seed"] + 0x9E3779B97F4A7C15 * memory["steps"]
        generator.manual_seed(number % 2**63)
        shape = (*gradient.shape, count)
        random = torch.randn(shape, generator=generator, dtype=torch.float64)
        return orthonormal_directions(gradient, random)

    return directions


@pytest.mark.parametrize("count", [1, 2, 4, 6])
@pytest.mark.parametrize("engine", ["auto", "rows"])
@EACH
def test_a_step_is_that_of_the_textbook_for_the_rows_of_the_sketch(make, engine, count):
    network, closure, _ = wide()
    optimizer = make(network.parameters(), lr=0.1, step_rule="fixed", engine=engine, sketch=count)
    directions = drawn(optimizer)
    _, prediction = closure()
    gradient = prediction.detach().clone().requires_grad_()
    weights = torch.linspace(0.5, 2, 7, dtype=torch.float64)
    loss = (weights * (gradient - 0.3).square()).sum(1).mean()
    (gradient,) = torch.autograd.grad(loss, gradient)
    sketch = torch.block_diag(*directions(gradient, count))
    jacobian = sketch @ dense(network, prediction)
    values, vectors = torch.linalg.eigh(jacobian @ jacobian.T)
    values = values.clamp_min(0).sqrt()
    if isinstance(optimizer, hig.LevenbergMarquardt):
        gains = 1 / (values.square() + 1e-2)
    else:
        kappa, rcond = (-0.5, 1e-6) if make is OPTIMIZERS["hig"] else (-1.0, 1e-4)
        kept = values > rcond * values.max()
        gains = torch.where(kept, values.where(kept, 1.0) ** (kappa - 1), 0.0)
    expected = jacobian.T @ (vectors @ (gains * (vectors.T @ (sketch @ gradient.flatten()))))
    before = flat(network.parameters()).clone()
    optimizer.step(closure)
    step = (before - flat(network.parameters())) / 0.1
    torch.testing.assert_close(step, expected, rtol=0, atol=1e-9 * float(expected.norm()))
    assert optimizer.report.rows == 6 * count and optimizer.report.fewer_rows == (
        6,
        count,
        7,
        False,
    )
    assert f"rows {6 * count} = 6 samples x {count} of 7 outputs" in str(optimizer.report)


@EACH
def test_all_directions_give_the_exact_step(make):
    """Also where they are drawn: an orthogonal change of the rows changes nothing."""
    network, _, inputs = wide()
    steps = []
    for rotate in (False, True):
        own = copy.deepcopy(network)
        optimizer = make(own.parameters(), lr=0.1, step_rule="fixed", engine="rows")
        torch.manual_seed(1)
        basis = torch.linalg.qr(normal(6, 7, 7))[0].mT

        def rows(own=own, rotate=rotate, basis=basis):
            prediction = own(inputs)
            seen = (basis @ prediction.unsqueeze(-1)).squeeze(-1) if rotate else prediction
            back = (basis.mT @ seen.unsqueeze(-1)).squeeze(-1) if rotate else seen
            return (back - 0.3).square().sum(1).mean(), seen

        optimizer.step(rows)
        steps.append(flat(own.parameters()).clone())
    torch.testing.assert_close(*steps, rtol=1e-12, atol=1e-12)
    for count in (7, 8):
        own, exact = copy.deepcopy(network), copy.deepcopy(network)
        for net, sketch in ((own, count), (exact, None)):
            optimizer = make(net.parameters(), sketch=sketch)
            for _ in range(3):
                optimizer.step(least_squares(net, inputs))
        assert torch.equal(flat(own.parameters()), flat(exact.parameters()))
        assert optimizer.report.fewer_rows is None


@pytest.mark.parametrize("count", [1, 2])
@EACH
def test_a_resumed_run_draws_what_the_first_would_have(make, count):
    network, inputs = build("mlp")
    optimizer = make(network.parameters(), sketch=count, momentum=0.5)
    for _ in range(4):
        optimizer.step(least_squares(network, inputs))
    other = copy.deepcopy(network)
    torch.manual_seed(7)
    resumed = make(other.parameters(), sketch=count, momentum=0.5)
    assert resumed.state["sketch"]["seed"] == 7
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(3):
        optimizer.step(least_squares(network, inputs))
        resumed.step(least_squares(other, inputs))
    assert torch.equal(flat(network.parameters()), flat(other.parameters()))
    assert optimizer.state["sketch"] == resumed.state["sketch"]


def test_global_random_numbers_are_not_drawn():
    network, closure, _ = wide()
    optimizer = hig.HIG(network.parameters(), sketch=2)
    before = torch.get_rng_state()
    optimizer.step(closure)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("count", [1, 3])
def test_rules_see_the_slope_by_all_outputs_and_the_curvature_by_the_rows(count, monkeypatch):
    network, closure, _ = wide()
    optimizer = hig.HIG(network.parameters(), rcond=1e-6, sketch=count)
    _, prediction = closure()
    jacobian = dense(network, prediction)
    weights = torch.linspace(0.5, 2, 7, dtype=torch.float64).repeat(6)
    gradient = 2 / 6 * weights * (prediction.detach().flatten() - 0.3)
    sketch = torch.block_diag(*drawn(optimizer)(gradient.view(6, 7), count))
    seen = []
    take = optimizer._rule.take

    def watched(trial):
        seen.append((trial.curvature, trial.slope, [d.clone() for d in trial._directions]))
        return take(trial)

    monkeypatch.setattr(optimizer._rule, "take", watched)
    optimizer.step(closure)
    curvature, slope, directions = seen[0]
    change = jacobian @ torch.cat([d.flatten() for d in directions])
    assert slope == pytest.approx(float(gradient @ change), rel=1e-9)
    change = sketch.T @ sketch @ change
    assert curvature == pytest.approx(float(2 / 6 * (weights * change.square()).sum()), rel=1e-9)


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_with_a_sketch_lowers_the_loss(make, dtype):
    network, closure, _ = wide(dtype)
    optimizer = make(network.parameters(), sketch=2, momentum=0.5)
    losses = [float(optimizer.step(closure)) for _ in range(60)]
    assert losses[-1] < 0.01 * losses[0]


@pytest.mark.parametrize(
    ("samples", "outputs", "count"),
    [(6, 7, 7), (128, 4, 4), (128, 5, 2), (64, 32, 4), (256, 30, 1), (1000, 9, 1), (3, 4096, 85)],
)
def test_auto_makes_about_256_rows_or_takes_all_of_few(samples, outputs, count):
    assert Sketch("auto").rows_of(samples, outputs) == count


def report(kept, samples=64, rows=4, rcond=1e-3):
    values = torch.ones(samples * rows, dtype=torch.float64)
    values[round(kept * len(values)) :] = 0.1 * rcond
    fewer = FewerRows(samples, rows, 32, exact=False)
    return StepReport(
        torch.ones(()), "layerwise", "row_gram", len(values), 1000, lambda: values, rcond,
        fewer_rows=fewer,
    )  # fmt: skip


def test_auto_halves_rows_that_are_cut_and_doubles_those_that_are_kept():
    sketch = Sketch("auto")
    for kept, expected in [(0.2, 128), (0.2, 64), (0.2, 64), (0.5, 64), (0.9, 128), (0.9, 256)]:
        sketch.state["steps"] += 15
        sketch.adapt(report(kept))
        sketch.state["steps"] += 1
        sketch.adapt(report(kept))
        assert sketch.state["rows"] == expected
    for _ in range(3):
        sketch.adapt(report(0.9))
    assert sketch.state["rows"] == 256
    sketch.adapt(report(0.2, rows=1))  # one row per sample is the least
    sketch.adapt(report(0.2, rcond=0.0))  # of a damped step
    assert sketch.state["rows"] == 256
    other = Sketch(4)
    other.adapt(report(0.2))
    assert "rows" not in other.state


def test_auto_steps_on_few_outputs_are_exact_and_on_many_those_of_its_count():
    network, inputs = build("mlp")
    steps = []
    for sketch in ("auto", None):
        own = copy.deepcopy(network)
        optimizer = hig.HIG(own.parameters(), rcond=1e-6, sketch=sketch)
        optimizer.step(least_squares(own, inputs))
        steps.append(flat(own.parameters()))
    assert torch.equal(*steps)
    network = wide()[0]
    steps = []
    for sketch in ("auto", 3):
        own = copy.deepcopy(network)
        inputs = wide(samples=80)[-1]
        optimizer = hig.HIG(own.parameters(), rcond=1e-6, sketch=sketch)
        optimizer.step(least_squares(own, inputs))
        steps.append(flat(own.parameters()))
        assert optimizer.report.fewer_rows == (80, 3, 7, False)
    assert torch.equal(*steps)


def test_auto_goes_on_with_the_rows_of_a_state():
    network, closure, _ = wide(samples=80)
    optimizer = hig.HIG(network.parameters(), rcond=0.5, sketch="auto")
    for _ in range(16):
        optimizer.step(closure)
    assert optimizer.state["sketch"]["rows"] == 128
    optimizer.step(closure)
    assert optimizer.report.fewer_rows.rows == 2
    resumed = hig.HIG(network.parameters(), rcond=0.5, sketch="auto")
    resumed.load_state_dict(optimizer.state_dict())
    resumed.step(closure)
    assert resumed.report.fewer_rows.rows == 2


def test_defaults_of_a_sketch():
    steps = []
    given = {"rcond": 1e-4, "momentum": 0.97, "momentum_kind": "projected"}
    for options in ({}, given, {"momentum": 0.0}):
        network, closure, _ = wide()
        optimizer = hig.HIG(network.parameters(), sketch=2, **options)
        for _ in range(4):
            optimizer.step(closure)
        steps.append(flat(network.parameters()))
        assert optimizer.report.rcond == 1e-4
    torch.testing.assert_close(steps[0], steps[1], rtol=1e-9, atol=1e-12)
    assert not torch.allclose(steps[0], steps[2], rtol=1e-3)


def test_the_memory_of_sketches_grows_with_their_number():
    momentum = Momentum(0.9, "projected")
    assert [momentum.after(steps).factor for steps in (1, 11, 91, 1000)] == [0, 0.5, 0.9, 0.9]
    assert momentum.after(3).kind == "projected"


def test_a_function_gives_the_directions_besides_the_gradient():
    network, closure, _ = wide()
    optimizer = hig.HIG(network.parameters(), rcond=1e-6, sketch=3, lr=0.1, step_rule="fixed")
    directions = drawn(optimizer)
    seen = []

    def draw(gradient):
        seen.append(gradient)
        return 3 * directions(gradient, 3)[:, 1:] + gradient.unsqueeze(1)

    steps = []
    for sketch in (3, draw):
        own, closure, _ = wide()
        optimizer = hig.HIG(own.parameters(), rcond=1e-6, sketch=sketch, lr=0.1, step_rule="fixed")
        before = flat(own.parameters())
        optimizer.step(closure)
        assert optimizer.report.fewer_rows == (6, 3, 7, False)
        steps.append(flat(own.parameters()) - before)
    torch.testing.assert_close(*steps, rtol=1e-9, atol=1e-12)
    assert seen[0].shape == (6, 7) and seen[0].dtype == torch.float64
    for _ in range(5):  # measured steps too
        hig.HIG(own.parameters(), rcond=1e-6, sketch=draw, momentum=0.5).step(closure)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.ones(6, 7), r"must return .*\(6, at most 6, 7\), got shape \(6, 7\)"),
        (torch.ones(6, 7, 7), r"got shape \(6, 7, 7\)"),
        (torch.full((6, 1, 7), float("nan")), "finite numbers, got NaN"),
        (3, "must return a tensor"),
    ],
)
def test_functions_that_return_no_directions(wrong, message):
    network, closure, _ = wide()
    before = flat(network.parameters()).clone()
    optimizer = hig.HIG(network.parameters(), sketch=lambda gradient: wrong)
    with pytest.raises((TypeError, ValueError), match=message):
        optimizer.step(closure)
    assert torch.equal(flat(network.parameters()), before)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "2", True])
def test_counts_that_are_none(wrong):
    with pytest.raises((TypeError, ValueError), match="sketch must be"):
        hig.HIG(wide()[0].parameters(), sketch=wrong)


def test_a_sketch_is_not_replayed():
    with pytest.raises(ValueError, match="cuda_graph=True cannot replay"):
        hig.HIG(wide()[0].parameters(), sketch=2, cuda_graph=True)
