import math
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from torch import nn

import hig
from problems import samples
from problems.pinn import Beltrami, Burgers, Kovasznay, Schroedinger
from problems.pinn._physics_informed import CANDIDATES
from problems.pinn._settings import FIRST_ORDER

SIZES = {"points_interior": 12, "points_boundary": 4, "width": 5, "depth": 2}
TINY = {
    kind.__name__: kind(**SIZES, **({} if kind is Kovasznay else {"points_initial": 3}))
    for kind in (Burgers, Schroedinger, Kovasznay, Beltrami)
}
TWO_LOSSES = {f"{k} of 2": replace(p, loss_count=2) for k, p in TINY.items() if k != "Kovasznay"}
every_problem = pytest.mark.parametrize("problem", TINY.values(), ids=TINY)
every_form = pytest.mark.parametrize(
    "problem", (TINY | TWO_LOSSES).values(), ids=[*TINY, *TWO_LOSSES]
)


class Other(nn.Module):
    """A network that is not propagated, with the same numbers."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, points):
        return self.network(points)


def case(problem, dtype=torch.float64):
    torch.manual_seed(0)
    network = problem.network()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    batch = problem.draw(12, torch.Generator().manual_seed(1))
    return network.to(dtype), {group: points.to(dtype) for group, points in batch.items()}


@every_problem
def test_network_is_the_published_one(problem):
    torch.manual_seed(0)
    full = type(problem)()
    inputs, outputs = len(full.coordinates), len(full.unknowns)
    layers = [layer for layer in full.network() if isinstance(layer, nn.Linear)]
    assert [layer.in_features for layer in layers] == [inputs, 50, 50, 50, 50, 50]
    assert layers[-1].out_features == outputs
    assert all((layer.bias == 1e-3).all() for layer in layers)
    assert layers[2].weight.std().item() == pytest.approx(math.sqrt(2 / 100), rel=0.05)


@every_form
@pytest.mark.parametrize("wrap", [lambda network: network, Other], ids=["propagated", "other"])
def test_rows_are_the_scaled_residuals_of_the_groups(problem, wrap):
    network, batch = case(problem)
    network = wrap(network)
    expected = [
        math.sqrt(2 / len(points))
        * problem.residuals(network, group, points).reshape(-1, len(problem.unknowns))
        for group, points in batch.items()
    ]
    prediction = problem.predict(network, batch)
    torch.testing.assert_close(prediction, torch.cat(expected), rtol=1e-11, atol=1e-12)


@every_form
def test_half_the_sum_of_squares_is_the_sum_of_losses(problem):
    network, batch = case(problem)
    prediction = problem.predict(network, batch)
    losses = problem.losses(network, batch)
    assert len(losses) == len(problem.loss_names) == (3 if len(problem.loss_groups) == 3 else 2)
    total = problem.loss(prediction, batch)
    assert total.item() == pytest.approx(0.5 * prediction.square().sum().item())
    assert total.item() == pytest.approx(sum(losses).item(), rel=1e-12)
    pairs = problem.loss_pairs(network, batch)
    assert len(pairs) == len(losses)
    for index, (loss, rows) in enumerate(pairs):
        assert loss.item() == pytest.approx(losses[index].item(), rel=1e-12)
        assert rows is pairs[0][1]
        assert torch.equal(rows, prediction)
        single = problem.single_loss(network, batch, index)
        assert single.item() == pytest.approx(losses[index].item(), rel=1e-12)


@every_form
def test_a_loss_is_the_mean_over_points_of_the_sum_over_residuals(problem):
    network, batch = case(problem)
    for name, loss in zip(problem.loss_names, problem.losses(network, batch), strict=True):
        groups = ("boundary", "initial") if name == "conditions" else (name,)
        expected = 0.0
        for group in groups:
            for point in batch[group]:
                residual = problem.residuals(network, group, point.unsqueeze(0))
                expected += residual.square().sum().item() / len(batch[group])
        assert loss.item() == pytest.approx(expected, rel=1e-12)


@every_problem
def test_a_single_loss_evaluates_its_own_points_alone(problem):
    network, batch = case(problem)
    for index, name in enumerate(problem.loss_names):
        own = {name: batch[name]}
        assert problem.single_loss(network, own, index).item() > 0


def step_of(problem, engine, network, batch, **options):
    """The step that an optimiser takes, and its report."""

    def closure():
        prediction = problem.predict(network, batch)
        return problem.loss(prediction, batch), prediction

    named = list(network.named_parameters())
    before = [parameter.detach().clone() for _, parameter in named]
    optimizer = hig.HIG(named, engine=engine, rcond=1e-6, step_rule="fixed", **options)
    optimizer.step(closure)
    after = [parameter.detach().clone() for _, parameter in named]
    with torch.no_grad():
        for (_, parameter), value in zip(named, before, strict=True):
            parameter.copy_(value)
    step = torch.cat([(a - b).flatten() for a, b in zip(after, before, strict=True)])
    return step, optimizer.report


@every_problem
def test_the_layerwise_engine_takes_every_parameter(problem):
    network, batch = case(problem)
    step, report = step_of(problem, "layerwise", network, batch)
    expected, _ = step_of(problem, "rows", network, batch)
    assert report.engine == "layerwise"
    rows = len(problem.predict(network, batch)) * len(problem.unknowns)
    columns = sum(parameter.numel() for parameter in network.parameters())
    assert (report.rows, report.columns) == (rows, columns)
    assert expected.norm() > 0
    assert (step - expected).norm() < 1e-8 * expected.norm()
    automatic, report = step_of(problem, "auto", network, batch)
    assert report.engine == "layerwise"
    assert torch.equal(step, automatic)


@every_form
def test_a_short_step_for_several_losses_lowers_each(problem):
    network, batch = case(problem)
    before = problem.losses(network, batch)
    optimizer = hig.MultiHIG(network.parameters(), engine="layerwise", lr=1e-4)
    optimizer.step(lambda: problem.loss_pairs(network, batch))
    after = problem.losses(network, batch)
    assert [part.engine for part in optimizer.report.parts] == ["layerwise"]
    assert all(b < a for a, b in zip(before, after, strict=True))


@every_problem
def test_other_networks_are_differentiated_by_autograd(problem):
    network, batch = case(problem)
    expected, _ = step_of(problem, "rows", network, batch)
    step, report = step_of(problem, "auto", Other(network), batch)
    assert report.engine == "layerwise"
    assert (step - expected).norm() < 1e-7 * expected.norm()


@every_problem
def test_a_full_gauss_newton_step_solves_the_linearised_problem(problem):
    network, batch = case(problem)
    parameters = list(network.parameters())
    prediction = problem.predict(network, batch).flatten()
    rows = [torch.autograd.grad(y, parameters, retain_graph=True, materialize_grads=True)
            for y in prediction]  # fmt: skip
    jacobian = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
    expected = torch.linalg.lstsq(jacobian, -prediction.detach(), rcond=1e-10, driver="gelsd")
    step, _ = step_of(problem, "auto", network, batch, kappa=-1.0)
    unchanged = prediction.detach() + jacobian @ step
    best = prediction.detach() + jacobian @ expected.solution
    # At the cut-off of 1e-6 in place of 1e-10: as good within what is cut off.
    assert unchanged.norm() == pytest.approx(best.norm().item(), rel=1e-3, abs=1e-6)


@every_problem
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_that_of_the_network(problem, dtype):
    network, batch = case(problem, dtype)
    assert problem.predict(network, batch).dtype == dtype
    assert all(loss.dtype == dtype for loss in problem.losses(network, batch))


# -- data and batches --------------------------------------------------------------------------


@every_problem
def test_data_depend_on_the_seed_alone(problem):
    train, test = problem.data(torch.Generator().manual_seed(4))
    torch.manual_seed(99)
    again, test_again = problem.data(torch.Generator().manual_seed(4))
    assert all(torch.equal(train[group], again[group]) for group in train)
    assert torch.equal(test["solution"], test_again["solution"])
    everything = [*train.values(), *test.values()]
    assert {values.dtype for values in everything} == {torch.float64}
    assert len(test["points"]) == len(test["solution"])
    assert {g: len(points) for g, points in train.items()} == dict(problem.group_sizes)


@every_problem
def test_batches_keep_the_proportions_and_are_fresh(problem):
    train, _ = problem.data(torch.Generator().manual_seed(4))
    train = {group: points.float() for group, points in train.items()}

    def draw():
        generator = torch.Generator().manual_seed(8)
        return list(islice(problem.batches(train, 24, generator), 2))

    first, second = draw()
    assert samples(first) == len(first["interior"]) == 24
    assert {g: len(p) for g, p in first.items()} == {
        group: 2 * count for group, count in problem.group_sizes.items()
    }
    for group, again in draw()[1].items():
        assert torch.equal(second[group], again)
        assert not torch.equal(second[group], first[group])
        assert again.dtype == torch.float32


def test_no_group_is_ever_empty():
    batch = next(iter(TINY["Burgers"].batches(*case(TINY["Burgers"])[1:], 1, torch.Generator())))
    assert [len(points) for points in batch.values()] == [1, 1, 1]


# -- resampling by residual --------------------------------------------------------------------


@every_problem
def test_a_batch_of_uniform_points_is_stepped_on_as_it_is(problem):
    network, batch = case(problem)
    assert problem.focus(network, batch) is batch


@every_problem
def test_focus_keeps_the_points_of_large_residuals(problem):
    problem = replace(problem, resampling="residual")
    network, train = case(problem)
    batch = next(iter(problem.batches(train, 60, torch.Generator().manual_seed(0))))
    assert len(batch["interior"]) == len(batch["luck"]) == CANDIDATES * 60
    found = problem.focus(network, batch)
    assert set(found) == set(problem.group_sizes)
    assert found["interior"].shape == (60, len(problem.coordinates))
    assert all(torch.equal(found[g], batch[g]) for g in found if g != "interior")

    def mean_square(points):
        return problem.residuals(network, "interior", points).square().sum(1).mean().item()

    assert mean_square(found["interior"]) > 1.02 * mean_square(batch["interior"])
    rows = {tuple(point) for point in batch["interior"].tolist()}
    chosen = [tuple(point) for point in found["interior"].tolist()]
    assert len(set(chosen)) == 60
    assert rows.issuperset(chosen)
    assert torch.equal(problem.focus(network, batch)["interior"], found["interior"])


# -- evaluation --------------------------------------------------------------------------------


class Exact(nn.Module):
    def __init__(self, problem, offset=0.0):
        super().__init__()
        points, self.solution = problem.solution()
        self.places = {tuple(point): i for i, point in enumerate(points.tolist())}
        self.offset = offset

    def forward(self, points):
        chosen = [self.places[tuple(point)] for point in points.tolist()]
        return self.solution[chosen] + self.offset


@every_problem
def test_the_test_loss_is_the_mean_squared_error(problem):
    _, test = problem.data(torch.Generator().manual_seed(0))
    assert problem.data_loss(Exact(problem), test, 4096) == 0
    offset = torch.arange(1.0, len(problem.unknowns) + 1).double()
    shifted = Exact(problem, offset)
    expected = offset.square().mean().item()
    assert problem.data_loss(shifted, test, 4096) == pytest.approx(expected, rel=1e-12)
    assert problem.data_loss(shifted, test, 10**6) == pytest.approx(expected, rel=1e-12)
    metrics = problem.metrics(shifted, test)
    torch.testing.assert_close(metrics["mse"], offset.square())
    lengths = test["solution"].square().mean(0).sqrt()
    torch.testing.assert_close(metrics["relative_error"], offset / lengths)


@every_problem
def test_the_training_loss_is_the_sum_of_losses(problem):
    network, _ = case(problem)
    train, _ = problem.data(torch.Generator().manual_seed(0))
    expected = sum(problem.losses(network, train)).item()
    assert problem.data_loss(network, train, 5) == pytest.approx(expected, rel=1e-12)


@every_problem
def test_example_holds_the_whole_grid(problem):
    network, _ = case(problem, torch.float32)
    _, test = problem.data(torch.Generator().manual_seed(0))
    batch = {name: values[: problem.examples].float() for name, values in test.items()}
    example = problem.example(network, batch)
    count, unknowns = len(test["points"]), len(problem.unknowns)
    assert example["points"].shape == (count, len(example["coordinates"]))
    assert example["prediction"].shape == example["solution"].shape == (count, unknowns)
    assert len(example["unknowns"]) == unknowns
    assert all(example[name].dtype == np.float64 for name in ("points", "prediction", "solution"))
    few = torch.from_numpy(example["prediction"][:3]).float()
    torch.testing.assert_close(few, network(batch["points"][:3]))


# -- settings ----------------------------------------------------------------------------------


@every_problem
def test_settings(problem):
    full = type(problem)()
    assert {"hig", "gn", "lm", "adam"} <= set(full.settings)
    published = {name: s for name, s in full.settings.items() if s.published}
    assert set(published) == set(FIRST_ORDER)
    for settings in published.values():
        assert (settings.lr, settings.schedule) == (1e-3, "cosine")
        assert settings.batch_size == full.points_interior


def test_published_points():
    sizes = {kind().name: tuple(kind().group_sizes.values()) for kind in map(type, TINY.values())}
    assert sizes == {
        "burgers": (10000, 250, 250),
        "schroedinger": (20000, 500, 500),
        "kovasznay": (20000, 1000),
        "beltrami": (25000, 5000, 5000),
    }


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("points_interior", 0, "points_interior must be at least 1, got 0; the default is 10000"),
        ("width", -1, "width must be at least 1, got -1; the default is 50"),
        ("viscosity", math.nan, "viscosity must be positive and finite, got nan"),
        ("loss_count", 4, "loss_count must be 2 or 3, got 4; 3 is a loss per group"),
        ("resampling", "fixed", "resampling must be one of .*'residual'.*, got 'fixed'"),
    ],
)
def test_parameters_that_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        Burgers(**{field: value})
