"""Residuals with derivatives of the network: rows by as few passes as rows share a point."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, vmap

import hig
from hig._jacobian.capture import Capture, ForwardPass
from hig._jacobian.engine import build_jacobian
from hig._jacobian.exactness import ExactnessMemory
from hig._torch.batched_vjp import BatchedVJP
from tests.textbook import relative_error, textbook_jacobian

GENERATOR = torch.Generator().manual_seed(0)
INSIDE, EDGE, START = (
    torch.rand(n, 2, generator=GENERATOR, dtype=torch.float64) for n in (20, 7, 5)
)


def network_of(outputs=1):
    torch.manual_seed(0)
    layers = nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, outputs)
    return nn.Sequential(*layers).double()


def derivative(u, x):
    return torch.autograd.grad(u.sum(), x, create_graph=True)[0]


def inside(network, x=INSIDE):
    """The residual of Burgers' equation, with values and first derivatives."""
    x = x.clone().requires_grad_()
    u = network(x)
    first = derivative(u, x)
    second = derivative(first[:, 0], x)[:, 0]
    return first[:, 1] + u[:, 0] * first[:, 0] - 0.1 * second, u[:, 0], first


def one_call(network):
    residual, u, _ = inside(network, torch.cat([INSIDE, EDGE, START]))
    return torch.cat([residual[:20], u[20:] - 1])


def one_call_a_condition(network, points=INSIDE):
    conditions = [
        inside(network, points)[0],
        network(EDGE)[:, 0] - 1,
        (network(START) - START[:, :1])[:, 0],
    ]
    return torch.cat(conditions)


def two_equations_at_a_point(network):
    residual, u, first = inside(network)
    return torch.cat([residual, u * first[:, 0] - 1, network(EDGE)[:, 0]]) / 32**0.5


def weighted_and_stacked(network):
    residual, u, _ = inside(network)
    weights = torch.linspace(1, 3, 40, dtype=torch.float64)
    return torch.stack([residual, u], 1).flatten() * weights


def periodic(network):
    """Values at one edge less those at the other: two calls for each row."""
    left = network(EDGE)
    right = network(EDGE * torch.tensor([-1.0, 1.0], dtype=torch.float64))
    return torch.cat([inside(network)[0], (left - right)[:, 0]])


def shuffled(network):
    order = torch.randperm(27, generator=torch.Generator().manual_seed(3))
    return torch.cat([inside(network)[0], network(EDGE)[:, 0]])[order]


def by_transforms(network):
    weights = dict(network.named_parameters())

    def u(x):
        return functional_call(network, weights, (x[None],))[0, 0]

    def residual(x):
        first = grad(u)(x)
        return first[1] + u(x) * first[0] - 0.1 * hessian(u)(x)[0, 0]

    return vmap(residual)(INSIDE)


def mixed(network):
    return torch.cat([by_transforms(network), one_call_a_condition(network)])


def system(network):
    x = INSIDE.clone().requires_grad_()
    u, v = network(x).unbind(1)
    of_u, of_v = derivative(u, x), derivative(v, x)
    return torch.stack([of_u[:, 1] - of_v[:, 0] + u * v, of_u[:, 0] + of_v[:, 1]], 1)


RESIDUALS = {
    one_call: 1,
    one_call_a_condition: 1,
    two_equations_at_a_point: 2,
    weighted_and_stacked: 2,
    periodic: 1,
    shuffled: 1,
    by_transforms: 1,
    mixed: 1,
    system: 2,
}


def found_by(residual, network, memory=None, backward=None):
    names, parameters = zip(*network.named_parameters(), strict=True)
    with Capture(parameters) as capture:
        prediction = residual(network)
    forward = ForwardPass(capture.uses, prediction, parameters, names)
    backward = BatchedVJP() if backward is None else backward
    found = build_jacobian(forward, "auto", backward, memory or ExactnessMemory())
    return found, textbook_jacobian(prediction, [parameters[index] for index in found.order])


class Counting(BatchedVJP):
    """Counts the backward passes of a step."""

    passes = 0

    def gradients(self, output, inputs, passes, *others, **options):
        type(self).passes += passes
        return super().gradients(output, inputs, passes, *others, **options)


@pytest.mark.parametrize("residual", RESIDUALS, ids=lambda residual: residual.__name__)
def test_rows_are_exact_in_as_many_passes_as_share_a_point(residual, monkeypatch):
    network, memory = network_of(2 if residual is system else 1), ExactnessMemory()
    for _ in range(2):
        monkeypatch.setattr(Counting, "passes", 0)
        found, expected = found_by(residual, network, memory, Counting())
        assert found.engine == "layerwise", found.notes
        with torch.no_grad():
            assert relative_error(found.jacobian.dense(), expected) < 1e-12
            assert relative_error(found.jacobian.gram(), expected @ expected.T) < 1e-12
    assert Counting.passes == RESIDUALS[residual]


@pytest.mark.parametrize("make", [hig.HIG, hig.LevenbergMarquardt])
def test_steps_are_those_of_rows(make):
    found = []
    for engine in ("auto", "rows"):
        network = network_of()
        optimizer = make(network.parameters(), engine=engine)

        def closure(network=network):
            rows = two_equations_at_a_point(network)
            return 0.5 * rows.square().sum(), rows

        found.append([float(optimizer.step(closure)) for _ in range(5)])
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_other_points_of_the_same_number_need_no_search(monkeypatch):
    network, memory = network_of(), ExactnessMemory()
    found_by(one_call_a_condition, network, memory)
    monkeypatch.setattr("hig._jacobian.found_layers.find_plan", None)
    generator = torch.Generator().manual_seed(5)
    points = torch.rand(20, 2, generator=generator, dtype=torch.float64)

    found, expected = found_by(partial(one_call_a_condition, points=points), network, memory)
    assert relative_error(found.jacobian.dense(), expected) < 1e-12


def test_another_order_of_the_same_points_is_noticed():
    network, memory = network_of(), ExactnessMemory()
    generator = torch.Generator().manual_seed(5)

    def in_any_order(network):
        return one_call_a_condition(network)[torch.randperm(32, generator=generator)]

    for _ in range(3):
        found, expected = found_by(in_any_order, network, memory)
        assert found.engine == "layerwise"
        assert relative_error(found.jacobian.dense(), expected) < 1e-12


def test_points_that_influence_one_another_are_rows():
    network, memory = network_of(), ExactnessMemory()

    def less_mean(network):
        residual, u, _ = inside(network)
        return residual - u.mean()

    for _ in range(2):
        found, expected = found_by(less_mean, network, memory)
        assert "rows" in found.engine
        assert any("samples influence one another" in note for note in found.notes)
        assert relative_error(found.jacobian.dense(), expected) < 1e-12


def test_a_trunk_that_some_residuals_share_in_part():
    """Its places belong to several residuals of one part, and to one of another."""
    torch.manual_seed(0)
    branch, trunk = nn.Linear(5, 4).double(), nn.Linear(1, 4).double()
    functions = torch.randn(6, 5, dtype=torch.float64)
    points = torch.rand(1, 9, 1, dtype=torch.float64)

    def residuals(network):
        x = points.clone().requires_grad_()
        y = (branch(functions).unsqueeze(1) * torch.tanh(trunk(x))).sum(-1, keepdim=True)
        return (derivative(y, x) - y**2).flatten()

    found, expected = found_by(residuals, nn.ModuleList([branch, trunk]))
    assert relative_error(found.jacobian.dense(), expected) < 1e-12


class Labelled(torch.Tensor):
    """Points of a library: methods look for attributes that saved tensors do not have."""

    def permute(self, *dims):
        self.labels  # noqa: B018
        return super().permute(*dims)


def test_points_of_a_subclass():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    network.register_parameter("slope", nn.Parameter(torch.ones((), dtype=torch.float64)))

    def predict(network):
        points = INSIDE.as_subclass(Labelled)
        return network[2](torch.tanh(network.slope * network[0](points))).as_subclass(torch.Tensor)

    found, expected = found_by(predict, network)
    assert found.engine == "layerwise"
    assert relative_error(found.jacobian.dense(), expected) < 1e-12


def periodic_system(network):
    """Values and slopes at both edges: rows of two outputs that share their points."""
    inner = system(network)
    left = EDGE.clone().requires_grad_()
    right = (EDGE * torch.tensor([-1.0, 1.0], dtype=torch.float64)).requires_grad_()
    rows = []
    for points in (left, right):
        u = network(points)
        slopes = [derivative(u[:, i], points)[:, 0] for i in range(2)]
        rows.append(torch.cat([u, torch.stack(slopes, 1)]))
    return torch.cat([inner, rows[0] - rows[1]])


def test_rows_of_several_outputs_that_share_points():
    network = network_of(2)
    found, expected = found_by(periodic_system, network)
    assert found.engine == "layerwise", found.notes
    weights = torch.linspace(-1, 1, len(expected), dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(found.jacobian.dense(), expected) < 1e-12
        assert relative_error(found.jacobian.rows(slice(3, 30)), expected[6:60]) < 1e-12
        assert relative_error(found.jacobian.vjp(weights), expected.T @ weights) < 1e-12
