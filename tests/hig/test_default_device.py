"""Under another default device nothing of hig is made there; "meta" shows that without a GPU."""

import ast
from pathlib import Path

import pytest
import torch
from networks import build, least_squares

import hig
from hig.conflictfree import ConFIGOperator, IMTLGOperator
from hig.testing import check_simulator

SOURCES = sorted((Path(hig.__file__).parent).rglob("*.py"))
FACTORIES = {
    "zeros", "ones", "arange", "tensor", "eye", "randn", "rand", "randint", "linspace", "logspace",
    "full", "empty", "as_tensor", "randperm", "scalar_tensor", "asarray", "normal", "range",
    "tril_indices", "triu_indices", "empty_strided", "hann_window", "sparse_coo_tensor", "complex",
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


def step(make, name="mlp"):
    network, inputs = build(name)
    optimizer = make(network.parameters())
    closure = least_squares(network, inputs)
    for _ in range(2):
        optimizer.step(closure)
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def several(params):
    optimizer = hig.MultiHIG(params, lr=0.1)
    single = optimizer.step
    optimizer.step = lambda closure: single(lambda: [closure()])
    return optimizer


def under_meta(function):
    """What a function gives with the default device "meta", after the networks were made."""
    made, original = build, torch.get_default_device()

    def on_the_cpu(name):
        torch.set_default_device(original)
        try:
            return made(name)
        finally:
            torch.set_default_device("meta")

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "build", on_the_cpu)
        try:
            return function()
        finally:
            torch.set_default_device(None)


@pytest.mark.parametrize(
    "make",
    [
        hig.HIG,
        lambda p: hig.HIG(p, engine="rows", step_rule="trust", momentum=0.5),
        lambda p: hig.HIG(p, method="lanczos", momentum=0.5, momentum_kind="projected"),
        lambda p: hig.GaussNewton(p, step_rule="line_search", method="svd"),
        lambda p: hig.LevenbergMarquardt(p, lr=0.5),
        lambda p: hig.KroneckerHIG(p, probe_every=1),
        several,
    ],
    ids=["fixed", "rows", "lanczos", "svd", "levenberg", "kronecker", "multi"],
)
def test_steps(make):
    assert torch.equal(under_meta(lambda: step(make)), step(make))


def recorded():
    network, inputs = build("mlp")
    with hig.record(network.parameters()) as record:
        loss, prediction = least_squares(network, inputs)()
    record.backward(loss, prediction, filter=hig.Damped(1e-3))
    assert record.report.singular_values.device.type == "cpu"
    return torch.cat([p.grad.flatten() for p in network.parameters()])


def test_record():
    assert torch.equal(under_meta(recorded), recorded())


def diagnosed():
    network, inputs = build("mlp")
    found = hig.diagnose(network.parameters(), least_squares(network, inputs))
    return torch.from_numpy(found.directions[0].achieved)


def test_diagnose():
    assert torch.equal(under_meta(diagnosed), diagnosed())


CPU = torch.device("cpu")


def direction():
    generator = torch.Generator(CPU).manual_seed(0)
    jacobian = torch.randn(4, 6, generator=generator, device=CPU)
    return hig.half_inverse(jacobian, torch.ones(4, device=CPU))


def controlled():
    controls = torch.linspace(0, 1, 12, device=CPU).reshape(2, 3, 2).requires_grad_()
    start = torch.ones(2, 2, device=CPU)
    final = hig.rollout(
        lambda state, control: state + 0.1 * torch.sin(state * control), start, controls
    )
    (gradient,) = torch.autograd.grad(final.square().sum(), controls)
    return gradient


def black_box():
    simulate = hig.black_box(lambda x: x**2, jacobian=lambda x: (2 * x)[:, :, None])
    x = torch.ones(3, 1, device=CPU, requires_grad=True)
    (gradient,) = torch.autograd.grad(simulate(x).sum(), x)
    return gradient


def combined(operator):
    generator = torch.Generator(CPU).manual_seed(0)
    gradients = torch.randn(3, 5, generator=generator, device=CPU)
    return operator.calculate_gradient(gradients)


@pytest.mark.parametrize("function", [direction, controlled, black_box])
def test_functions(function):
    assert torch.equal(under_meta(function), function())


@pytest.mark.parametrize("operator", [ConFIGOperator, IMTLGOperator])
def test_operators(operator):
    assert torch.equal(under_meta(lambda: combined(operator())), combined(operator()))


def test_a_simulator_is_checked():
    def check():
        x = torch.linspace(0.1, 1, 6, device=CPU).reshape(3, 2)
        return check_simulator(lambda state: state.sin(), x)

    assert str(under_meta(check)) == str(check())
