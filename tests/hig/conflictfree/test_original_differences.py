"""``conflictfree`` and this package by introspection; every difference is a row of the page."""

import importlib
import inspect
import re
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import hig
from tests.hig.conflictfree.matrices import STRUCTURES, cosines
from tests.hig.conflictfree.original import OURS, THEIRS, get
from tests.hig.conflictfree.test_original import MODULES

PAGE = Path(hig.__file__).parents[1] / "docs" / "migrating.md"
BOTH = (THEIRS, OURS)
CHECKS = {}


def row(title):
    """A check of the row of the page with this title."""

    def keep(check):
        CHECKS[title] = check
        return check

    return keep


def rows():
    table = PAGE.read_text(encoding="utf-8").split("### Differences from 0.1.8")[1]
    return [line.split(" | ")[0].removeprefix("| ") for line in re.findall(r"^\| .*", table, re.M)]


def raises(call):
    try:
        call()
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, AssertionError) as e:
        return type(e)
    return None


def update(package, rows, **options):
    return get(package, "grad_operator", "ConFIGOperator")(**options).calculate_gradient(rows)


def memory(package, name="PseudoMomentumOperator"):
    return get(package, "momentum_operator", name)(2)


def network_with_gradient():
    network = nn.Linear(2, 1)
    network(torch.ones(1, 2)).sum().backward()
    return network


# -- introspection -------------------------------------------------------------------------------


def defined(module):
    """Names in a module of the original that it defines itself, and what they are."""
    original = importlib.import_module(f"{THEIRS}.{module}")
    return {
        name: value
        for name, value in vars(original).items()
        if getattr(value, "__module__", "").startswith(THEIRS) and not name.startswith("__")
    }


@pytest.mark.parametrize("module", MODULES)
def test_a_wildcard_import_brings_the_same_names(module):
    spaces = []
    for package in BOTH:
        spaces.append({})
        exec(f"from {package}.{module} import *", spaces[-1])
    theirs, ours = spaces
    assert theirs.keys() <= ours.keys()
    for name, value in theirs.items():
        if not getattr(value, "__module__", THEIRS).startswith(THEIRS):
            assert ours[name] is value  # torch, np, the names of typing
        elif hasattr(value, "__module__") and not name.startswith("_"):
            assert getattr(hig.conflictfree, name) is ours[name]


def signatures(thing):
    """Name and signature of a function, or of a class and its methods."""
    yield "", inspect.signature(thing)
    if inspect.isclass(thing):
        for name, method in inspect.getmembers(thing, inspect.isfunction):
            if not name.startswith("__"):
                yield f".{name}", inspect.signature(method)


def differences():
    """Differences between two signatures, one by one."""
    for module in MODULES:
        for name, theirs in defined(module).items():
            ours = dict(signatures(get(OURS, module, name)))
            for method, signature in signatures(theirs):
                own = ours[method].parameters
                for argument in own.keys() - signature.parameters.keys():
                    yield f"{name}{method}", argument, "added"
                for argument, parameter in signature.parameters.items():
                    assert own[argument].kind == parameter.kind
                    if own[argument].default is not parameter.default:
                        kind = getattr(type(parameter.default), "__module__", "")
                        shared = kind.startswith(THEIRS) and own[argument].default is None
                        equal = own[argument].default == parameter.default
                        if not equal:
                            yield f"{name}{method}", argument, "shared" if shared else "default"
                both = [argument for argument in own if argument in signature.parameters]
                assert both == list(signature.parameters)


def test_signatures_differ_as_the_page_says():
    found = {difference for difference in differences() if difference[2] != "shared"}
    assert found == {
        ("EqualWeight.get_weights", "gradients", "default"),
        ("WeightModel.get_weights", "device", "added"),
        ("RandomSliceSelector", "generator", "added"),
    }
    assert any(difference[2] == "shared" for difference in differences())


def test_every_row_of_the_page_is_checked():
    assert rows()[1:] == list(CHECKS)  # the first is the head of the table


@pytest.mark.usefixtures("least_squares")
@pytest.mark.parametrize("title", range(22))
def test_row(title):
    list(CHECKS.values())[title]()


# -- rows ----------------------------------------------------------------------------------------


@row("default models and operators")
def check_defaults():
    for package, shared in ((THEIRS, True), (OURS, False)):
        one, two = (memory(package).gradient_operator for _ in "ab")
        assert (one is two) == shared
        one, two = (get(package, "grad_operator", "ConFIGOperator")().weight_model for _ in "ab")
        assert (one is two) == shared


@row("`EqualWeight.get_weights()`")
def check_equal_weight_without_gradients():
    found = [raises(get(p, "weight_model", "EqualWeight")().get_weights) for p in BOTH]
    assert found == [TypeError, ValueError]


@row("`WeightModel.get_weights(device)`")
def check_device():
    for package, kind in ((THEIRS, TypeError), (OURS, NotImplementedError)):
        with pytest.raises(kind):
            get(package, "weight_model", "WeightModel")().get_weights(device="cpu")


@row("weights of `EqualWeight`")
def check_dtype_of_weights():
    rows = torch.eye(3, dtype=torch.float64)
    found = [get(p, "weight_model", "EqualWeight")().get_weights(rows).dtype for p in BOTH]
    assert found == [torch.float32, torch.float64]
    assert [raises(lambda p=p: update(p, rows)) for p in BOTH] == [RuntimeError, None]


@row("zero, parallel, anti-parallel gradients")
def check_degenerate_gradients():
    first = torch.tensor([1.0, 0.0, 0.0])
    for second, expected in (
        (torch.zeros(3), first),
        (-2 * first, torch.zeros(3)),
        (2 * first, 3 * first),
    ):
        assert torch.isnan(update(THEIRS, [first, second])).any()
        assert torch.allclose(update(OURS, [first, second]), expected)


@row("a negative weight for the first of two losses")
def check_negative_weight():
    rows = torch.tensor([[1.0, 0.2], [0.1, 1.0]])
    signs = []
    for package in BOTH:
        base = get(package, "weight_model", "WeightModel")
        method = {"get_weights": lambda *_, **__: torch.tensor([-1.0, 1.0])}
        length = get(package, "length_model", "ProjectionLength")()
        length.get_length = lambda **_: 1.0
        direction = update(
            package, rows, weight_model=type("Own", (base,), method)(), length_model=length
        )
        signs.append((rows @ direction > 0).tolist())
    assert signs == [[True, False], [False, True]]


@row("very small, or nearly dependent gradients")
def check_small_gradients():
    rows = 1e-24 * torch.tensor([[1.0, 0.5, 0], [0, 1, 1], [1, 0, 1]])
    theirs, ours = (update(package, rows) for package in BOTH)
    assert not torch.isfinite(theirs).all() or not theirs.any()
    assert bool((1e24 * rows @ (1e24 * ours) > 0).all())
    # With many parameters the original takes angles below 1e-3 for zero.
    rows = STRUCTURES["conflicting"]((3, 20_000), dtype=torch.float32, gap=3e-4)
    theirs, ours = (float(cosines(update(package, rows), rows).min()) for package in BOTH)
    assert theirs < 0
    assert ours > 1e-5


@row("non-finite gradients")
def check_non_finite():
    bad, good = torch.tensor([float("inf"), 1.0]), torch.tensor([1.0, 2.0])
    for package, poisoned in ((THEIRS, True), (OURS, False)):
        operator = memory(package)
        for index, gradient in ((0, good), (1, good), (1, bad), (1, good), (0, good)):
            direction = operator.calculate_gradient(index, gradient)
        assert bool(torch.isnan(direction).any()) == poisoned
        network = network_with_gradient()
        rows = torch.tensor([[1.0, 1.0, 1.0], [float("inf"), 1.0, 1.0]])
        get(package, "grad_operator", "ConFIGOperator")().update_gradient(network, rows)
        step = torch.optim.SGD(network.parameters(), 0.1).step
        with nullcontext() if poisoned else pytest.raises(hig.NonFiniteError, match="loss 1 "):
            step()
        assert bool(torch.isfinite(network.weight).all()) != poisoned


@row("`SeparateMomentumOperator`, `MomentumLossRecorder`")
def check_what_does_not_work_there():
    for package, kind in ((THEIRS, TypeError), (OURS, None)):
        assert raises(lambda p=package: memory(p, "SeparateMomentumOperator")) == kind
        recorder = get(package, "loss_recorder", "MomentumLossRecorder")(2)
        assert raises(lambda r=recorder: r.record_loss(0, 1.0)) == kind


@row("several gradients as a matrix, or numbers of losses as an array, with a memory")
def check_matrix_and_array():
    for indexes, grads in (([0, 1], torch.eye(2)), (np.array([0, 1]), list(torch.eye(2)))):
        theirs, ours = (
            raises(lambda p=p, i=indexes, g=grads: memory(p).calculate_gradient(i, g)) for p in BOTH
        )
        assert theirs is not None
        assert ours is None


@row("numbers of losses below zero, with a memory")
def check_negative_numbers():
    found = [raises(lambda p=p: memory(p).calculate_gradient(-1, torch.ones(2))) for p in BOTH]
    assert found == [None, ValueError]


@row("`get_gradient_vector`, `get_para_vector` of one tensor")
def check_windows():
    for package, shared in ((THEIRS, True), (OURS, False)):
        network = nn.Linear(2, 1, bias=False)
        network(torch.ones(1, 2)).sum().backward()
        for name, tensor in (
            ("get_gradient_vector", network.weight.grad),
            ("get_para_vector", network.weight.data),
        ):
            vector = get(package, "utils", name)(network)
            assert (vector.data_ptr() == tensor.data_ptr()) == shared


@row("`apply_gradient_vector`, `apply_para_vector`")
def check_windows_on_the_vector():
    for package, shared in ((THEIRS, True), (OURS, False)):
        network, vector = network_with_gradient(), torch.ones(3)
        get(package, "utils", "apply_gradient_vector")(network, vector)
        network.weight.grad.zero_()
        assert bool((vector == 0).any()) == shared
        get(package, "utils", "apply_para_vector")(network, vector := torch.ones(3))
        network.weight.data.zero_()
        assert bool((vector == 0).any()) == shared


@row("a vector of another length")
def check_lengths():
    for package, kind in ((THEIRS, None), (OURS, ValueError)):
        apply = get(package, "utils", "apply_gradient_vector")
        network = network_with_gradient()
        assert raises(lambda a=apply, n=network: a(n, torch.zeros(5))) == kind
        network = network_with_gradient()
        assert raises(lambda a=apply, n=network: a(n, torch.zeros(2))) is not None
        assert bool(network.weight.grad.any()) == (package == OURS)


@row("vectors of one length for different parameters (heads)")
def check_heads():
    for package, kind in ((THEIRS, None), (OURS, ValueError)):
        heads, vectors = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1)]), []
        for head in heads:
            heads.zero_grad()
            head(torch.ones(1, 2)).square().sum().backward()
            vectors.append(get(package, "utils", "get_gradient_vector")(heads))
        assert raises(lambda p=package, v=vectors: update(p, v)) == kind


@row("a vector for all parameters, some without `.grad`")
def check_complete_vectors():
    for package, expected in ((THEIRS, None), (OURS, [0.0, 1.0])):
        heads = nn.ModuleList([nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)])
        heads[1](torch.ones(1, 2)).sum().backward()
        operator = get(package, "grad_operator", "PCGradOperator")()
        operator.update_gradient(heads, torch.arange(4.0).unsqueeze(0))
        grad = heads[0].weight.grad
        assert (None if grad is None else grad.flatten().tolist()) == expected


@row("frozen parameters")
def check_frozen():
    for package, written in ((THEIRS, True), (OURS, False)):
        network = nn.Linear(2, 1).requires_grad_(False)
        get(package, "utils", "apply_gradient_vector_para_based")(network, torch.ones(3))
        assert (network.weight.grad is not None) == written


@row("no gradients, or no parameters")
def check_nothing():
    for name, network, kind in (
        ("get_gradient_vector", nn.Linear(2, 1), RuntimeError),
        ("get_para_vector", nn.Tanh(), ValueError),
    ):
        assert get(THEIRS, "utils", name)(network) is None
        assert raises(lambda n=name, net=network: get(OURS, "utils", n)(net)) == kind


@row("gradients that are not contiguous, or sparse")
def check_layouts():
    strided = nn.Conv2d(2, 3, 3, bias=False).to(memory_format=torch.channels_last)
    strided.weight.grad = torch.rand(3, 2, 3, 3).to(memory_format=torch.channels_last)
    sparse = nn.Embedding(4, 2, sparse=True)
    sparse(torch.tensor([1])).sum().backward()
    for network in (strided, sparse):
        expected = network.weight.grad.to_dense().flatten()
        assert raises(lambda n=network: get(THEIRS, "utils", "get_gradient_vector")(n))
        vector = get(OURS, "utils", "get_gradient_vector")(network)
        assert torch.equal(vector, expected)
        get(OURS, "utils", "apply_gradient_vector")(network, 2 * vector)
        assert torch.equal(network.weight.grad.flatten(), 2 * expected)


@row("complex gradients")
def check_complex():
    rows = torch.tensor([[1 + 1j, 2.0], [1j, -1.0]])
    assert raises(lambda: update(THEIRS, rows)) is not TypeError
    assert raises(lambda: update(OURS, rows)) is TypeError


@row("recorded losses")
def check_recorded():
    loss = torch.ones((), requires_grad=True) * 1
    for package, kept in ((THEIRS, True), (OURS, False)):
        recorder = get(package, "loss_recorder", "LatestLossRecorder")(1)
        assert recorder.record_loss([0], [loss])[0].requires_grad == kept


@row("`unit_vector(…, warn_zero=True)`")
def check_warning():
    get(THEIRS, "utils", "unit_vector")(torch.zeros(2), warn_zero=True)
    with pytest.warns(UserWarning, match="zero vector"):
        get(OURS, "utils", "unit_vector")(torch.zeros(2), warn_zero=True)
