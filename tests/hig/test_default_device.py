"""Under another default device nothing of hig is made there; "meta" shows that without a GPU."""

import ast
from pathlib import Path

import pytest
import torch

import hig
from hig.conflictfree import ConFIGOperator, IMTLGOperator, PCGradOperator, PseudoMomentumOperator
from hig.testing import check_simulator
from tests.hig.networks import build, least_squares
from tests.textbook import flat

SOURCES = sorted((Path(hig.__file__).parent).rglob("*.py"))
FACTORIES = {
    "zeros", "ones", "arange", "tensor", "eye", "randn", "rand", "randint", "linspace", "logspace",
    "full", "empty", "as_tensor", "randperm", "scalar_tensor", "asarray", "normal", "range",
    "tril_indices", "triu_indices", "empty_strided", "hann_window", "sparse_coo_tensor",
}  # fmt: skip


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_every_factory_names_its_device(path):
    calls = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "torch"
        and node.func.attr in FACTORIES
    ]
    assert [
        node.lineno for node in calls if "device" not in {keyword.arg for keyword in node.keywords}
    ] == []


def step(make, where):
    network, inputs = build("mlp")
    optimizer, closure = make(network.parameters()), least_squares(network, inputs)
    with torch.device(where):
        for _ in range(2):
            optimizer.step(closure)
    return flat(network.parameters())


class OneOfSeveral(hig.MultiHIG):
    """Takes closures of one loss."""

    def step(self, closure):
        return super().step(lambda: [closure()])


@pytest.mark.parametrize(
    "make",
    [
        hig.HIG,
        lambda p: hig.HIG(p, engine="rows", step_rule="trust", momentum=0.5),
        lambda p: hig.HIG(p, method="lanczos", momentum=0.5, momentum_kind="projected"),
        lambda p: hig.GaussNewton(p, step_rule="line_search", method="svd"),
        lambda p: hig.LevenbergMarquardt(p, lr=0.5),
        lambda p: hig.KroneckerHIG(p, probe_every=1),
        OneOfSeveral,
    ],
    ids=["fixed", "rows", "lanczos", "svd", "levenberg", "kronecker", "multi"],
)
def test_steps(make):
    assert torch.equal(step(make, "meta"), step(make, "cpu"))


def recorded(where):
    network, inputs = build("mlp")
    closure = least_squares(network, inputs)
    with torch.device(where):
        with hig.record(network.parameters()) as record:
            loss, prediction = closure()
        record.backward(loss, prediction, filter=hig.Damped(1e-3))
        assert record.report.singular_values.device.type == "cpu"
    return flat(p.grad for p in network.parameters())


def test_record():
    assert torch.equal(recorded("meta"), recorded("cpu"))


def diagnosed(where):
    network, inputs = build("mlp")
    with torch.device(where):
        return hig.diagnose(network.parameters(), least_squares(network, inputs))


def test_diagnose():
    found, expected = diagnosed("meta"), diagnosed("cpu")
    assert (found.directions[0].achieved == expected.directions[0].achieved).all()


CPU = torch.device("cpu")


def direction():
    jacobian = torch.arange(24.0, device=CPU).sin().reshape(4, 6)
    return hig.half_inverse(jacobian, torch.ones(4, device=CPU))


def controlled():
    controls = torch.linspace(0, 1, 12, device=CPU).reshape(2, 3, 2).requires_grad_()
    start = torch.ones(2, 2, device=CPU)
    final = hig.rollout(lambda state, now: state + 0.1 * torch.sin(state * now), start, controls)
    (gradient,) = torch.autograd.grad(final.square().sum(), controls)
    return gradient


def black_box():
    simulate = hig.black_box(lambda x: (x**2, [(2 * x)[:, :, None]]))
    x = torch.ones(3, 1, device=CPU, requires_grad=True)
    (gradient,) = torch.autograd.grad(simulate(x).sum(), x)
    return gradient


def combined(operator):
    return operator.calculate_gradient(torch.arange(15.0, device=CPU).sin().reshape(3, 5))


def config():
    return combined(ConFIGOperator())


def imtlg():
    return combined(IMTLGOperator())


def pcgrad():
    return combined(PCGradOperator())


def momentum():
    operator = PseudoMomentumOperator(2)
    operator.calculate_gradient(0, torch.ones(3, device=CPU))
    return operator.calculate_gradient(1, torch.arange(3.0, device=CPU))


@pytest.mark.parametrize(
    "function", [direction, controlled, black_box, config, imtlg, pcgrad, momentum]
)
def test_functions(function):
    with torch.device("meta"):
        found = function()
    assert torch.equal(found, function())


def test_a_simulator_is_checked():
    x = torch.linspace(0.1, 1, 6).reshape(3, 2)
    with torch.device("meta"):
        found = check_simulator(torch.sin, x)
    assert str(found) == str(check_simulator(torch.sin, x))
