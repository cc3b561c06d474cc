"""Factors of layers are exact, or noticed not to be, at any scaling of outputs and samples.

The direction is held against that of the dense Jacobian in float64.
"""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import jacrev, vmap

import hig
from hig._jacobian.exactness import FIRST
from hig._step.linearisation import Lineariser
from tests.textbook import flat, relative_error, textbook_jacobian, textbook_power


class Plain(nn.Module):
    """A network whose factors are exact."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def hidden(self, x):
        return torch.tanh(self.b(torch.tanh(self.a(x))))

    def forward(self, x):
        return self.c(self.hidden(x))


class Loop(Plain):
    def forward(self, x):
        for _ in range(10):
            x = x + 0.1 * torch.cat([torch.sin(x[:, 1:]), self.c(self.hidden(x))[:, :1]], 1)
        return x[:, :3]


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv1d(1, 4, 3, padding=1)
        self.second = nn.Conv1d(4, 4, 3, padding=1, groups=2)
        self.last = nn.Linear(20, 3)

    def forward(self, x):
        return self.last(self.second(self.first(x[:, None]).tanh()).tanh().flatten(1))


class Attention(nn.Module):
    """The gradient of the keys' bias is 0: what is found is rounding of what has cancelled."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(4, 4) for _ in range(3))

    def attend(self, x):
        return (self.query(x) @ self.key(x).mT).softmax(-1) @ self.value(x)

    def forward(self, x):
        places = torch.linspace(-1, 1, 5, dtype=x.dtype)[:, None]
        return self.attend(x[:, None, :4] * (1.5 + places) + places**2).mean(1)


class AttentionOverSamples(Attention):
    def forward(self, x):
        return torch.cat([self.value(x[:, :4])[:, :3], self.attend(x[:, :4])[:, 3:]], 1)


class Weak(Plain):
    """The last output is another one than the factors say."""

    def forward(self, x):
        prediction = self.c(self.hidden(x))
        return torch.cat([prediction[:, :2], self.other(x, prediction[:, 2:])], 1)


class Tied(Weak):
    def other(self, x, p):
        return (torch.tanh(self.a(x)) @ self.a.weight)[:, :1]


class UsedAlone(Weak):
    def other(self, x, p):
        return p + self.b.weight.square().sum()


class RowWithoutFactors(Weak):
    def other(self, x, p):
        return self.b.weight[0].sum() * x[:, :1]


class BiasUsedAlone(Grouped):
    def forward(self, x):
        prediction = super().forward(x)
        return torch.cat([prediction[:, :2], prediction[:, 2:] + self.second.bias.sum()], 1)


class LessMean(Weak):
    def other(self, x, p):
        return p - p.mean(0)


class Normalised(Weak):
    def other(self, x, p):
        return nn.functional.batch_norm(p, None, None, training=True)


class OfANeighbour(Weak):
    def other(self, x, p):
        return torch.cat([p[:1] + 1e-2 * p[1:2], p[1:]])


class SlightlyCoupled(Plain):
    def forward(self, x):
        prediction = super().forward(x)
        return prediction + 2.6e-4 * prediction.roll(1, 0)


class SharedContext(Weak):
    def other(self, x, p):
        return p * self.hidden(x).mean()


class TimeFirst(Plain):
    def forward(self, x):
        places = torch.linspace(0.5, 1.5, len(x), dtype=x.dtype)
        states = self.hidden(x * places[:, None, None])  # as many times as samples, times first
        return self.c(states).mean(0)


class Derivative(Weak):
    def other(self, x, p):
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            value = self.c(self.hidden(x))[:, 0].sum()
            return torch.autograd.grad(value, x, create_graph=True)[0][:, :1]


class DerivativeByTransform(Weak):
    def other(self, x, p):
        return vmap(jacrev(lambda point: self.c(self.hidden(point[None]))[0, 0]))(x)[:, :1]


EXACT = [
    Plain, Loop, Grouped, Attention, Tied, UsedAlone, RowWithoutFactors, BiasUsedAlone, TimeFirst,
    Derivative, DerivativeByTransform,
]  # fmt: skip
COUPLED = [AttentionOverSamples, LessMean, Normalised, SlightlyCoupled, SharedContext]
EITHER = [
    OfANeighbour
]  # rows of one place in passes of their own, unless one is rounding of another


def scaled(kind, how, batch=6):
    """A network in float64, and its prediction with outputs or samples up to 1e6 apart."""
    torch.manual_seed(sum(map(ord, kind.__name__ + how)))
    network = kind().double()
    x = torch.randn(batch, 5, dtype=torch.float64)
    outputs = network(x).shape[1]
    scales = torch.ones(batch, outputs, dtype=torch.float64)
    if how in ("outputs", "both"):
        scales *= torch.logspace(0, -6 if how == "outputs" else -3, outputs, dtype=torch.float64)
    if how in ("samples", "both"):
        each = torch.logspace(-6 if how == "samples" else -3, 0, batch, dtype=torch.float64)
        scales *= each[torch.randperm(batch)][:, None]
    if how == "large":
        scales *= 1e12
    if how == "small":
        scales *= 1e-12

    def predict(net, dtype):
        return net(x.to(dtype)) * scales.to(dtype)

    return network, predict, scales


def direction_of(network, predict, dtype, rcond, engine):
    own = copy.deepcopy(network).to(dtype)
    with hig.record(own.parameters()) as record:
        prediction = predict(own, dtype)
    record.backward(loss_of(prediction), prediction, hig.HalfInverse(rcond=rcond), engine)
    found = [p.new_zeros(p.shape) if p.grad is None else p.grad for p in own.parameters()]
    return flat(found).double(), record.report


def loss_of(prediction):
    return (0.5 * prediction.square() - prediction).sum()


def right_direction(network, predict, smallest):
    """Of the dense Jacobian, with a cut-off from which no singular value is less than 2 apart."""
    prediction = predict(network, torch.float64)
    jacobian = textbook_jacobian(prediction, network.parameters())
    values = torch.linalg.svdvals(jacobian)
    rcond = 0.1 * smallest
    while ((values / values[0] / rcond).log2().abs() < 1).any():
        rcond /= 1.2
    return textbook_power(jacobian, (prediction.detach() - 1).flatten(), -0.5, rcond), rcond


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("how", ["none", "outputs", "samples", "both", "large", "small"])
@pytest.mark.parametrize("kind", EXACT + COUPLED + EITHER)
def test_the_direction_is_that_of_the_dense_jacobian(kind, how, dtype):
    network, predict, scales = scaled(kind, how)
    smallest = float(scales.min() / scales.max())
    expected, rcond = right_direction(network, predict, smallest)
    found, report = direction_of(network, predict, dtype, rcond, "auto")
    by_rows, _ = direction_of(network, predict, dtype, rcond, "rows")
    allowed = 0.01 if dtype == torch.float32 else 1e-6
    # Where one row is all of the sum of others, float32 itself allows no better.
    assert relative_error(found, expected) < max(allowed, 3 * relative_error(by_rows, expected))
    assert kind in EITHER or (report.engine == "layerwise") == (kind in EXACT), report.notes
    if kind in COUPLED:
        with pytest.raises(hig.SampleDependenceError, match="cannot give the exact Jacobian"):
            direction_of(network, predict, dtype, rcond, "layerwise")


@pytest.mark.parametrize("seed", range(5))
def test_a_tied_weight_in_an_output_of_5e_4(seed):
    torch.manual_seed(seed)
    network = nn.Linear(16, 3).double()
    x = torch.randn(4, 16, dtype=torch.float64)

    def predict(net, dtype):
        latent = torch.tanh(net(x.to(dtype)))
        return torch.cat([latent, 5e-4 * (latent @ net.weight)], 1)

    expected, rcond = right_direction(network, predict, 1e-4)
    found, report = direction_of(network, predict, torch.float32, rcond, "auto")
    assert relative_error(found, expected) < 1e-3
    assert report.engine == "layerwise"


@pytest.mark.parametrize("weight", [1.0, 1e3, 1e4])
def test_an_equation_with_weighted_boundary_rows(weight):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    points = torch.linspace(0, 1, 10, dtype=torch.float64)[:, None]

    def predict(net, dtype):
        x = points.to(dtype).requires_grad_()
        u = net(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
        return torch.cat([weight * u[:1], (second + u)[1:-1], weight * u[-1:]])

    expected, rcond = right_direction(network, predict, 1e-2 / weight)
    found, report = direction_of(network, predict, torch.float32, rcond, "auto")
    assert relative_error(found, expected) < 0.01
    assert report.engine == "layerwise"


@pytest.mark.parametrize("exponent", [-30, 0, 30])
def test_neither_side_overflows_in_float32(exponent):
    network, _, _ = scaled(Plain, "none")
    network.float()
    x = torch.randn(6, 5)
    x[0] *= 0  # a sample of its own kind: no gradient by the first weight
    first = torch.tensor([1.0, 1e-7, 0.0]) * 10.0**exponent  # and an output that depends on nothing

    def closure(coupling=0.0):
        p = network(x)
        p = p + coupling * p.roll(1, 0)
        prediction = p * first
        return (prediction * 10.0**-exponent).square().sum(), prediction

    optimizer = hig.HIG(network.parameters(), lr=0.0, rcond=1e-3, method="svd", engine="layerwise")
    optimizer.step(closure)
    with pytest.raises(hig.SampleDependenceError):
        optimizer.step(lambda: closure(coupling=1e-3))


class Solver(torch.autograd.Function):
    """The identity; its derivative is wrong by a relative tolerance, in no linear way."""

    @staticmethod
    def forward(ctx, x, tolerance):
        ctx.tolerance = tolerance
        return x.clone()

    @staticmethod
    def backward(ctx, cotangent):
        return cotangent * (1 + ctx.tolerance * torch.sin(1e5 * cotangent)), None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_tolerance_of_a_solver_is_no_coupling(dtype):
    tolerance = 1e3 * torch.finfo(dtype).eps
    network, _, _ = scaled(Plain, "none")
    network.to(dtype)
    optimizer = hig.HIG(network.parameters(), lr=1e-3, rcond=1e-2)

    x = torch.randn(6, 5, dtype=dtype)

    def closure(coupling=0.0):
        p = network(Solver.apply(x, 0.0))
        prediction = Solver.apply(p + coupling * p.roll(1, 0), tolerance)
        return prediction.square().sum(1).mean(), prediction

    for _ in range(3 * FIRST):
        optimizer.step(closure)
        assert optimizer.report.engine == "layerwise"
    assert optimizer._lineariser.memory.optimistic
    optimizer.step(lambda: closure(coupling=1e3 * tolerance))
    assert "rows" in optimizer.report.engine


def test_rounding_is_looked_at_without_a_second_jacobian(monkeypatch):
    """Factors that have been used stay, if two more backward passes show that it is rounding."""
    network, _, _ = scaled(Plain, "none")
    optimizer = hig.HIG(network.parameters(), lr=1e-3, rcond=1e-2)
    inputs, tolerance = torch.randn(6, 5, dtype=torch.float64), 1e3 * torch.finfo(torch.double).eps

    def closure(coupling=0.0):
        p = network(inputs)
        prediction = Solver.apply(p + coupling * p.roll(1, 0), tolerance)
        return prediction.square().sum(1).mean(), prediction

    with monkeypatch.context() as patched:
        patched.delattr(Lineariser, "assemble_checked")
        for _ in range(FIRST):
            optimizer.step(closure)
            assert optimizer.report.engine == "layerwise"
    looks = optimizer._lineariser.memory.looks
    assert 0 < looks < FIRST
    optimizer.step(lambda: closure(coupling=1e3 * tolerance))
    assert "rows" in optimizer.report.engine
    assert optimizer._lineariser.memory.looks == looks


class Passes:
    """Counts the backward passes through a simulator."""

    def __init__(self):
        self.count = 0

    def __call__(self, x):
        counter = self

        class Identity(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x.clone()

            @staticmethod
            def backward(ctx, cotangent):
                cotangent.numpy()  # refuses batches
                counter.count += 1
                return cotangent

        return Identity.apply(x)


def counted_steps(network, simulate, engine, steps):
    """The backward passes of each step, and its report."""
    torch.manual_seed(1)
    x, passes = torch.randn(6, 5, dtype=torch.float64), Passes()
    optimizer = hig.HIG(network.parameters(), lr=1e-3, rcond=1e-2, engine=engine)

    def closure():
        prediction = passes(simulate(network(x)))
        return prediction.square().sum(1).mean(), prediction

    counts = []
    for _ in range(steps):
        passes.count = 0
        optimizer.step(closure)
        counts.append(passes.count)
        if engine == "auto" and simulate is coupled:
            assert any("samples influence one another" in note for note in optimizer.report.notes)
    return counts, optimizer


def apart(x):
    return x


def coupled(x):
    return x - x.mean(0)


def test_the_passes_of_a_step_are_those_that_the_check_says():
    network, _, _ = scaled(Plain, "none")
    for simulate in (apart, coupled):
        passes = Passes()
        example = torch.randn(6, 3, dtype=torch.float64)
        report = hig.testing.check_simulator(lambda x, s=simulate, p=passes: p(s(x)), example)
        counts, optimizer = counted_steps(copy.deepcopy(network), simulate, "auto", 4)
        assert optimizer.report.engine == report.engine
        # In the first step it is found out that passes are not batched, or factors not exact.
        assert counts[1:] == [report.passes] * 3
    assert counted_steps(network, coupled, "rows", 3)[0][1:] == [18] * 2


def test_what_was_not_exact_is_tried_seldom():
    network, _, _ = scaled(Plain, "none")
    counts, optimizer = counted_steps(network, coupled, "auto", 30)
    more = [count > 18 for count in counts]
    places = [step for step, tried in enumerate(more) if tried]
    assert places[0] == 0
    assert np.diff(places).tolist() == [FIRST, 2 * FIRST, 4 * FIRST]
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert twin._lineariser.memory == optimizer._lineariser.memory


def test_the_layerwise_engine_tries_every_time():
    network, _, _ = scaled(Plain, "none")
    x = torch.randn(6, 5, dtype=torch.float64)
    optimizer = hig.HIG(network.parameters(), lr=1e-3, rcond=1e-2, engine="layerwise")

    def closure(simulate):
        prediction = simulate(network(x))
        return prediction.square().sum(1).mean(), prediction

    for _ in range(3):
        with pytest.raises(hig.SampleDependenceError):
            optimizer.step(lambda: closure(coupled))
        optimizer.step(lambda: closure(apart))


def test_the_check_of_a_simulator_sees_weak_outputs_and_weak_samples():
    outputs, samples = np.logspace(0, -8, 3), np.logspace(-8, 0, 4)
    by_output = torch.tensor(outputs, dtype=torch.float32)
    by_sample = torch.tensor(samples, dtype=torch.float32)[:, None]

    def weak_output(x):
        return torch.cat([x[:, :2], x[:, 2:] + 1e-2 * x[:, 2:].roll(2, 0)], 1) * by_output

    def weak_sample(x):
        return torch.cat([x[:1] + 1e-2 * x[3:], x[1:]]) * by_sample

    for simulate in (weak_output, weak_sample):
        report = hig.testing.check_simulator(simulate, torch.randn(4, 3))
        assert report.engine == "rows", report
    for scale in (by_output, by_sample):
        report = hig.testing.check_simulator(lambda x, s=scale: torch.sin(x) * s, torch.randn(4, 3))
        assert report.engine == "layerwise", report


class BesideALargeLayer(nn.Module):
    """Samples influence one another in a layer whose columns are smaller than those of another."""

    def __init__(self, couple):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 1)
        self.large = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.large.weight)
        self._couple = couple

    def forward(self, x):
        outputs = self._couple(self.last(torch.tanh(self.first(x))))
        return outputs + 1e6 * self.large(torch.ones_like(outputs))


@pytest.mark.parametrize(
    ("couple", "engine"),
    [
        (lambda p: p, "layerwise"),
        (lambda p: p + 0.5 * p.roll(1, 0).tanh(), "layerwise+rows"),
        (lambda p: p.sort(0).values, "layerwise"),  # only other samples in each row
    ],
    ids=["independent", "roll", "sort"],
)
def test_each_layer_is_held_against_its_own_size(couple, engine):
    # Rows are as large as the columns of the large layer: all of one direction. The loss looks
    # across it.
    generator = torch.Generator().manual_seed(0)
    exact = BesideALargeLayer(couple).double()
    for parameter in (*exact.first.parameters(), *exact.last.parameters()):
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2
    x = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    gradient = torch.tensor([[1.0], [-2.0], [1.0], [0.5], [-1.5], [1.0]], dtype=torch.float64)
    jacobian = textbook_jacobian(exact(x), list(exact.parameters()))
    right = textbook_power(jacobian, gradient.flatten(), -0.5, 1e-10)

    network = copy.deepcopy(exact).float()
    before = flat(network.parameters())

    def closure():
        prediction = network(x.float())
        return (gradient.float() * prediction).sum(), prediction

    optimizer = hig.HIG(network.parameters(), lr=1.0, rcond=1e-10, method="svd", step_rule="fixed")
    optimizer.step(closure)
    assert optimizer.report.engine == engine
    found = (before - flat(network.parameters())).double()
    assert relative_error(found, torch.as_tensor(right)) < 0.01
