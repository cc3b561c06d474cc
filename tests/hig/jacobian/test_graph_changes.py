"""Graphs that change from step to step, and operands that are unusual: as row by row, always."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hig
from tests.textbook import flat, relative_error

GENERATOR = torch.Generator().manual_seed(0)


def numbers(*shape):
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def compare(parameters, predictions, engine="layerwise"):
    """Steps of "auto" in a row, each held against that of rows; the engine of the last one."""
    parameters = list(parameters)
    optimizer = hig.GaussNewton(parameters, rcond=0.1, step_rule="fixed", lr=1e-3)
    for predict in predictions:
        start, state = flat(parameters), GENERATOR.get_state()

        def closure(predict=predict, state=state):
            GENERATOR.set_state(state)
            prediction = predict()
            return (0.5 * prediction.square() - prediction).sum(), prediction

        with hig.record(parameters) as record:
            loss, prediction = closure()
        record.backward(loss, prediction, hig.Damped(1e-2), "rows")
        expected = flat([p.new_zeros(p.shape) if p.grad is None else p.grad for p in parameters])
        for parameter in parameters:
            parameter.grad = None
        with hig.record(parameters) as record:
            loss, prediction = closure()
        record.backward(loss, prediction, hig.Damped(1e-2), "auto")
        found = flat([p.new_zeros(p.shape) if p.grad is None else p.grad for p in parameters])
        assert (found - expected).norm() <= 1e-9 * expected.norm()
        for parameter in parameters:
            parameter.grad = None
        optimizer.step(closure)
        assert torch.isfinite(flat(parameters) - start).all()
    assert optimizer.report.engine == engine, optimizer.report.notes


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)),
        lambda: nn.RMSNorm(3),
        lambda: nn.TransformerEncoderLayer(3, 1, 4, dropout=0.0, batch_first=True),
        lambda: nn.MultiheadAttention(3, 1, batch_first=True),
    ],
    ids=["layer norm", "root mean square norm", "transformer", "attention"],
)
def test_other_lengths(make):
    torch.manual_seed(0)
    network = make().double()

    def predict(times):
        x = numbers(4, times, 3)
        y = network(x, x, x)[0] if isinstance(network, nn.MultiheadAttention) else network(x)
        return y.sum(1)

    compare(network.parameters(), [lambda t=t: predict(t) for t in (4, 5, 4, 1)])


def test_other_shapes_of_what_has_no_gradient():
    kernel = nn.Parameter(numbers(2, 2, 3))
    steps = [
        lambda: F.conv_transpose1d(numbers(4, 2, 5), kernel).flatten(1) * 1.0,
        lambda: F.conv_transpose1d(numbers(4, 2, 3), kernel, stride=2).flatten(1) * 1.0,
    ]
    compare([kernel], steps * 2)


def test_other_numbers_of_points_in_all():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1)).double()

    def residuals(inside):
        x = numbers(inside, 2).requires_grad_()
        (slope,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
        return torch.cat([slope[:, 0], network(numbers(12 - inside, 2))[:, 0]])

    compare(network.parameters(), [lambda n=n: residuals(n) for n in (8, 5, 9, 8)])


def decayed(parameter):
    for _ in range(600):
        parameter = parameter * 0.999
    return parameter


def complex_part(parameter):
    return (1j * parameter).real


UNUSUAL = {
    "indexed by species": (
        (5,), lambda p: numbers(3, 3) * p[torch.tensor([0, 0, 1])][:, None], "rows",
    ),
    # 600 factors multiplied in another order are another rounding: the check does not pass it.
    "decayed in many steps": ((3, 2), lambda p: numbers(3, 3) @ decayed(p), "rows"),
    "sparse data": ((3, 2), lambda p: numbers(3, 3).to_sparse() @ p, "layerwise"),
    "a low rank": ((12, 1), lambda p: numbers(3, 12) @ (p @ p.T), "rows"),
    "sums of products": ((3,), lambda p: (numbers(4, 3) * p).cumsum(1), "layerwise"),
    "where": (
        (3,), lambda p: torch.where(numbers(4, 3) > 0, p, 2 * p) * numbers(4, 3), "rows",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_operands(name):
    shape, predict, engine = UNUSUAL[name]
    parameter = nn.Parameter(numbers(*shape))
    compare([parameter], [lambda: predict(parameter)] * 2, engine)


@pytest.mark.parametrize(
    "predict",
    [
        lambda p, x: torch.add(x + 0j, p, alpha=2j).abs(),
        lambda p, x: x * complex_part(p),
        lambda p, x: (x + 0j) * (2j * p),
    ],
)
def test_complex_factors(predict):
    parameter, x = nn.Parameter(numbers(3).to(torch.complex128)), numbers(4, 3)
    with hig.record([parameter]) as record:
        prediction = torch.view_as_real(predict(parameter, x) + 0j).flatten(1)
    found = []
    for engine in ("rows", "auto"):
        parameter.grad = None
        with hig.record([parameter]) as record:
            prediction = torch.view_as_real(predict(parameter, x) + 0j).flatten(1)
        record.backward(prediction.square().sum(), prediction, hig.Damped(1e-2), engine)
        found.append(torch.view_as_real(parameter.grad))
    assert relative_error(*found[::-1]) < 1e-12


def test_parameters_without_entries_in_operations():
    first, empty = nn.Parameter(numbers(3)), nn.Parameter(numbers(0))
    x = numbers(4, 3)
    compare([first, empty], [lambda: torch.cat([x * first, numbers(4, 0) * empty], 1)] * 2)


def test_what_one_batch_refused_is_tried_again():
    weight, x = nn.Parameter(numbers(3, 4)), numbers(4, 3)
    mixing = [torch.full((4, 4), 0.25).double()] + [torch.eye(4).double()] * 8
    compare([weight], [lambda a=a: a @ torch.tanh(x @ weight) for a in mixing])


def test_gradients_that_vanish_are_no_coupling():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(20, 20) * 0.3 / 20**0.5)
    x = torch.randn(4, 20)

    def closure():
        hidden = x
        for _ in range(150):
            hidden = torch.tanh(hidden @ weight) + 0.1
        return hidden.square().sum(), hidden

    optimizer = hig.HIG([weight], lr=1e-6, step_rule="fixed")
    optimizer.step(closure)
    assert optimizer.report.engine == "layerwise"
