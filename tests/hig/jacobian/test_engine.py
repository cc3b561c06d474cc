"""Every engine gives the textbook Jacobian, for every network, or says that it cannot."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import hig
from hig._jacobian.capture import Capture, ForwardPass
from hig._jacobian.engine import build_jacobian
from hig._jacobian.exactness import ExactnessMemory
from hig._jacobian.formed_block import FormedBlock
from hig._torch.batched_vjp import BatchedVJP
from tests.hig.networks import ALL, BY_GRAPH, LAYERED, MIXED, build, least_squares
from tests.textbook import flat, relative_error, step_of, textbook_jacobian, textbook_power


def jacobian_of(network, inputs, engine, **options):
    parameters = list(network.parameters())
    names = [name for name, _ in network.named_parameters()]
    with Capture(parameters) as capture:
        prediction = network(inputs)
    forward = ForwardPass(capture.uses, prediction, parameters, names)
    found = build_jacobian(forward, engine, BatchedVJP(), ExactnessMemory(), **options)
    expected = textbook_jacobian(prediction, [parameters[index] for index in found.order])
    return found, expected


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("engine", ["auto", "rows"])
def test_products_with_the_textbook_jacobian(name, engine):
    found, expected = jacobian_of(*build(name), engine)
    jacobian = found.jacobian
    n, columns = expected.shape
    assert jacobian.shape == (n, columns)
    weights, direction = torch.randn(n).double(), torch.randn(columns).double()
    with torch.no_grad():
        assert relative_error(jacobian.dense(), expected) < 1e-12
        assert relative_error(jacobian.gram(), expected @ expected.T) < 1e-12
        assert relative_error(jacobian.normal(), expected.T @ expected) < 1e-12
        assert relative_error(jacobian.vjp(weights), expected.T @ weights) < 1e-12
        assert relative_error(jacobian.jvp(direction), expected @ direction) < 1e-12


@pytest.mark.parametrize("name", LAYERED | BY_GRAPH)
def test_layered_networks_need_no_other_route(name):
    found, _ = jacobian_of(*build(name), "layerwise")
    assert found.engine == "layerwise"
    assert set(found.routes) == {"layerwise"}


@pytest.mark.parametrize("name", MIXED)
def test_layerwise_refuses_what_it_cannot_do_and_names_it(name):
    network, inputs = build(name)
    found, _ = jacobian_of(network, inputs, "auto")
    names = [name for name, _ in network.named_parameters()]
    others = [n for n, route in zip(names, found.routes, strict=True) if route == "rows"]
    assert others
    with pytest.raises(hig.SampleDependenceError, match="engine='auto'") as caught:
        jacobian_of(network, inputs, "layerwise")
    assert others[0] in str(caught.value)


def test_only_what_needs_it_takes_the_rows_route():
    network, inputs = build("batch norm")
    found, _ = jacobian_of(network, inputs, "auto")
    routes = dict(zip([n for n, _ in network.named_parameters()], found.routes, strict=True))
    assert routes == {
        "0.weight": "rows", "0.bias": "rows",
        "1.weight": "layerwise", "1.bias": "layerwise",
        "3.weight": "layerwise", "3.bias": "layerwise",
    }  # fmt: skip


def test_coupled_samples_are_noticed_where_they_are_coupled():
    network, inputs = build("batch norm")
    found, _ = jacobian_of(network, inputs, "auto")
    routes = dict(zip([n for n, _ in network.named_parameters()], found.routes, strict=True))
    assert routes["0.weight"] == "rows"  # before the normalisation
    assert routes["3.weight"] == "layerwise"  # after it
    assert any("samples influence one another" in note for note in found.notes)
    network.eval()
    found, _ = jacobian_of(network, inputs, "auto")
    assert (
        dict(zip([n for n, _ in network.named_parameters()], found.routes, strict=True))["0.weight"]
        == "layerwise"
    )


def test_a_single_coupled_pair_is_noticed():
    class OneNeighbour(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            hidden = self.layer(x)
            leak = torch.zeros_like(hidden)
            leak[1] = 0.01 * hidden[4].detach().clone().requires_grad_(False)
            mixed = hidden.clone()
            mixed[1] = mixed[1] + 0.01 * hidden[4]
            return torch.tanh(mixed)

    torch.manual_seed(0)
    network = OneNeighbour().double()
    found, _ = jacobian_of(network, torch.randn(5, 3).double(), "auto")
    assert found.engine == "rows"


def test_parameters_without_influence_are_left_out():
    network, inputs = build("mlp")
    spare = nn.Linear(3, 3).double()
    parameters = [*network.parameters(), *spare.parameters()]
    optimizer = hig.HIG(parameters, step_rule="fixed")
    before = flat(spare.parameters()).clone()
    optimizer.step(least_squares(network, inputs))
    assert torch.equal(flat(spare.parameters()), before)
    assert any("does not depend on" in note for note in optimizer.report.notes)
    assert optimizer.report.columns == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("held_bytes", [1, 3000, 20000])
@pytest.mark.parametrize("name", ["mlp", "batch norm"])
def test_a_jacobian_too_large_to_hold_is_streamed(name, held_bytes):
    found, expected = jacobian_of(*build(name), "rows", held_bytes=held_bytes)
    jacobian = found.jacobian
    weights, direction = torch.randn(len(expected)).double(), torch.randn(expected.shape[1])
    assert relative_error(jacobian.gram(), expected @ expected.T) < 1e-12
    assert relative_error(jacobian.normal(), expected.T @ expected) < 1e-12
    assert relative_error(jacobian.vjp(weights), expected.T @ weights) < 1e-12
    assert relative_error(jacobian.jvp(direction.double()), expected @ direction.double()) < 1e-12


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kappa", [-1.0, -0.75, -0.5, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("engine", ["auto", "rows"])
def test_the_step_is_the_textbook_step(name, kappa, engine):
    network, inputs = build(name)
    closure = least_squares(network, inputs)
    loss, prediction = closure()
    (gradient,) = torch.autograd.grad(loss, prediction, retain_graph=True)
    jacobian = textbook_jacobian(prediction, network.parameters())
    expected = -0.1 * textbook_power(jacobian, gradient.flatten(), kappa, 1e-6)
    optimizer = hig.HIG(network.parameters(), lr=0.1, kappa=kappa, engine=engine, step_rule="fixed")
    assert relative_error(step_of(optimizer, closure), expected) < 1e-9


@pytest.mark.parametrize("scale", [1e-10, 1e-5, 1.0, 1e5, 1e15])
@pytest.mark.parametrize("engine", ["layerwise", "rows"])
@pytest.mark.parametrize("method", ["gram", "svd"])
@pytest.mark.parametrize("name", ["mlp", "narrow"])
def test_any_scale_of_the_simulator(scale, engine, method, name):
    network, inputs = build(name)
    closure = least_squares(network, inputs, scale)
    loss, prediction = closure()
    (gradient,) = torch.autograd.grad(loss, prediction, retain_graph=True)
    jacobian = textbook_jacobian(prediction, network.parameters())
    direction = textbook_power(jacobian, gradient.flatten(), -0.5, 1e-3)
    lr = 0.1 / float(direction.norm())  # else the step is lost in, or dwarfs, the parameters
    optimizer = hig.HIG(
        network.parameters(), lr=lr, rcond=1e-3, engine=engine, method=method, step_rule="fixed"
    )
    assert relative_error(step_of(optimizer, closure), -lr * direction) < 1e-9


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("engine", ["auto", "rows"])
def test_checkpoints(reentrant, engine):
    network, inputs = build("mlp")
    inputs.requires_grad_()

    def run(x):
        return network[4](checkpoint(network[:4], x, use_reentrant=reentrant))

    parameters = list(network.parameters())
    with Capture(parameters) as capture:
        prediction = run(inputs)
    forward = ForwardPass(capture.uses, prediction, parameters, list("abcdef"))
    arguments = (forward, engine, BatchedVJP(), ExactnessMemory())
    if reentrant:
        with pytest.raises(ValueError, match=r"hides a, b, c, d; use .*use_reentrant=False"):
            build_jacobian(*arguments)
    else:
        expected = textbook_jacobian(network(inputs), parameters)
        found = build_jacobian(*arguments)
        order = torch.cat(
            [
                torch.arange(expected.shape[1]).split([p.numel() for p in parameters])[index]
                for index in found.order
            ]
        )
        assert relative_error(found.jacobian.dense(), expected[:, order]) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_that_cancels_to_rounding_is_no_disagreement(dtype):
    """Attention does not change when all its keys are shifted: the gradient of their bias is 0."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            scores = self.query(x) @ self.key(x).mT
            return (scores.softmax(-1) @ self.value(x)).sum(1)

    torch.manual_seed(0)
    network = Attention().to(dtype)
    found, expected = jacobian_of(network, torch.randn(6, 5, 4, dtype=dtype), "layerwise")
    assert found.engine == "layerwise"
    assert relative_error(found.jacobian.gram(), (expected @ expected.T).double()) < 1e-5


@pytest.mark.parametrize("name", LAYERED)
def test_the_sizes_of_rows_are_those_of_their_uses(name):
    found, _ = jacobian_of(*build(name), "layerwise")
    for block in found.jacobian.blocks:
        rows = block.rows(slice(0, found.jacobian.samples))
        norms, sizes = rows.norm(dim=1), block.row_squares().sqrt()
        assert sizes.shape == norms.shape
        if isinstance(block, FormedBlock):
            assert (norms <= sizes * (1 + 1e-12)).all()
            continue
        # At most the cancellation, or its opposite, of U uses lies between the two.
        assert (norms <= sizes * block.uses**0.5 * (1 + 1e-12)).all()
        if block.uses == 1:
            assert relative_error(sizes, norms) < 1e-12


@pytest.mark.parametrize("distinct", range(1, 6))
@pytest.mark.parametrize("name", ["mlp", "narrow", "conv1d", "layer norm"])
@pytest.mark.parametrize("method", ["gram", "svd"])
def test_any_rank(distinct, name, method):
    """Equal samples give equal rows: what the Jacobian lacks in rank must not be inverted."""
    network, inputs = build(name)
    closure = least_squares(network, inputs[torch.arange(len(inputs)) % distinct])
    loss, prediction = closure()
    (gradient,) = torch.autograd.grad(loss, prediction, retain_graph=True)
    jacobian = textbook_jacobian(prediction, network.parameters())
    expected = textbook_power(jacobian, gradient.flatten(), -0.5, 1e-3)
    optimizer = hig.HIG(network.parameters(), lr=0.1, rcond=1e-3, method=method, step_rule="fixed")
    assert relative_error(step_of(optimizer, closure), -0.1 * expected) < 1e-9
    assert optimizer.report.rank <= min(distinct * prediction[0].numel(), *jacobian.shape)


class ByOutput:
    """An engine of one's own: a backward pass for each entry of the prediction."""

    def jacobian(self, forward):
        parameters = list(forward.parameters)
        rows = [
            torch.autograd.grad(entry, parameters, retain_graph=True)
            for entry in forward.prediction.flatten()
        ]
        return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


FIXED = {"step_rule": "fixed"}
OPTIMIZERS = {
    "hig": lambda parameters, **options: hig.HIG(parameters, rcond=1e-3, **FIXED, **options),
    "gn": lambda parameters, **options: hig.GaussNewton(parameters, rcond=1e-3, **FIXED, **options),
    "lm": lambda parameters, **options: hig.LevenbergMarquardt(parameters, **FIXED, **options),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("method", ["gram", "svd", "lanczos"])
def test_an_engine_of_ones_own_gives_the_same_step(kind, method):
    def after(engine):
        network, inputs = build("mlp")
        make = OPTIMIZERS[kind]
        optimizer = make(network.parameters(), engine=engine, method=method)
        for _ in range(2):
            optimizer.step(least_squares(network, inputs))
        return flat(network.parameters()), optimizer.report

    own, report = after(ByOutput())
    expected, _ = after("rows")
    assert relative_error(own, expected) < 1e-9
    assert report.engine == "ByOutput"


def test_record_and_diagnose_take_an_engine_of_ones_own():
    network, inputs = build("mlp")
    loss, prediction = least_squares(network, inputs)()
    with hig.record(network.parameters()) as record:
        loss, prediction = least_squares(network, inputs)()
    record.backward(loss, prediction, hig.HalfInverse(rcond=1e-3), engine=ByOutput())
    assert record.report.engine == "ByOutput"
    closure = least_squares(network, inputs)
    found = hig.diagnose(network.parameters(), closure, engine=ByOutput())
    assert found.engine == "ByOutput"


@pytest.mark.parametrize(
    ("result", "error", "text"),
    [
        (lambda forward: torch.zeros(2, 3), ValueError, r"must return .*, here .* shape \(2, 3\)"),
        (lambda forward: None, TypeError, "must return a real floating-point tensor, got None"),
        (
            lambda forward: torch.zeros(24, 44, dtype=torch.complex64),
            TypeError,
            "must return a real floating-point tensor",
        ),
    ],
)
def test_an_engine_that_returns_another_thing_changes_nothing(result, error, text):
    network, inputs = build("mlp")
    before = flat(network.parameters()).clone()
    engine = type("Wrong", (), {"jacobian": lambda self, forward: result(forward)})()
    with pytest.raises(error, match=text):
        hig.HIG(network.parameters(), engine=engine, step_rule="fixed").step(
            least_squares(network, inputs)
        )
    assert torch.equal(flat(network.parameters()), before)


def test_parameters_without_entries_are_not_named():
    network = nn.Linear(3, 2)
    network.register_parameter("nothing", nn.Parameter(torch.empty(1, 0)))
    found, _ = jacobian_of(network, torch.randn(5, 3), "auto")
    assert found.notes == []
