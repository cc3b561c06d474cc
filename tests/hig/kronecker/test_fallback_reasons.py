"""Parameters left to Adam and the reasons, for every way in which a parameter can be used."""

import copy
import pickle
import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

import hig
from hig._kronecker.fallback_reasons import Explanation, parameter_names
from tests.hig.networks import BY_GRAPH, MIXED, build, least_squares

X = torch.linspace(-1, 1, 32).reshape(8, 4)


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


def stepped(network, predict, steps=1, **options):
    """The optimiser after some steps, and the warnings of KroneckerHIG."""
    optimizer = hig.KroneckerHIG(network.named_parameters(), lr=0.01, **options)

    def closure():
        prediction = predict(network)
        return (prediction - 0.3).square().mean(), prediction

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(steps):
            optimizer.step(closure)
    return optimizer, [str(w.message) for w in caught if "KroneckerHIG" in str(w.message)]


def tensors(**parts):
    torch.manual_seed(0)
    network = nn.Module()
    for name, value in parts.items():
        network.register_parameter(name, nn.Parameter(value))
    return network


def normed(norm):
    network = mlp()
    norm(network[0])
    return network


# name: network, prediction, what is left to Adam: name -> part of the reason
LEFT = {
    "weight norm": (
        lambda: normed(parametrizations.weight_norm), lambda n: n(X),
        {
            "0.parametrizations.weight.original0": "weight_norm",
            "0.parametrizations.weight.original1": "weight_norm",
        },
    ),
    "spectral norm": (
        lambda: normed(parametrizations.spectral_norm), lambda n: n(X),
        {"0.parametrizations.weight.original": "used by"},
    ),
    "a scale": (
        lambda: tensors(w=torch.randn(3, 4), v=torch.randn(3)),
        lambda n: F.linear(X, n.w) * n.v, {"v": "used by mul"},
    ),
    "groups of channels": (
        lambda: tensors(w=torch.randn(4, 2, 2)),
        lambda n: F.conv1d(torch.ones(4, 2, 5), n.w)
        + F.conv1d(torch.ones(4, 4, 5), n.w, groups=2),
        {"w": "different shape (groups of channels: 1, 2)"},
    ),
    "an autograd.Function": (
        lambda: tensors(w=torch.randn(3, 4)), lambda n: Hidden.apply(X, n.w), {"w": "was seen"}
    ),
    "complex": (
        lambda: tensors(w=torch.randn(3, dtype=torch.complex64)),
        lambda n: torch.view_as_real(n.w * torch.fft.rfft(X)).flatten(1),
        {"w": "complex, and factors are real"},
    ),
}  # fmt: skip
# Weights without a captured call, or with other uses besides; and the number of layers.
BY_GRAPH_ALONE = {
    "inside vmap": (mlp, lambda n: torch.func.vmap(n)(X), 4),
    "derivative in parameters": (
        mlp,
        lambda n: torch.func.grad(
            lambda p: torch.func.functional_call(n, p, (X,)).square().sum()
        )(dict(n.named_parameters()))["0.weight"],
        4,
    ),
    "Jacobian in inputs": (mlp, lambda n: torch.func.vmap(torch.func.jacrev(n))(X), 3),
    "recurrent": (lambda: nn.GRU(4, 2), lambda n: n(X)[0], 4),
    "transposed convolution": (
        lambda: nn.ConvTranspose1d(2, 3, 3), lambda n: n(X.view(4, 2, 4)), 2,
    ),
    "reshaped": (lambda: tensors(v=torch.randn(12)), lambda n: F.linear(X, n.v.view(3, 4)), 1),
    "a property": (lambda: tensors(v=torch.randn(4, 3)), lambda n: F.linear(X, n.v.T), 1),
    "one axis": (lambda: tensors(v=torch.randn(4)), lambda n: F.linear(X, n.v), 1),
    "a bias that is broadcast": (
        lambda: tensors(w=torch.randn(3, 4), b=torch.randn(1, 3)),
        lambda n: F.linear(X, n.w, n.b), 2,
    ),
    "two biases": (
        lambda: tensors(w=torch.randn(3, 4), a=torch.randn(3), b=torch.randn(3)),
        lambda n: F.linear(X, n.w, n.a) + F.linear(X, n.w, n.b), 3,
    ),
    "weight and bias": (
        lambda: tensors(w=torch.randn(4, 4), v=torch.randn(4, 4), b=torch.randn(4)),
        lambda n: F.linear(F.linear(X, n.w, n.b), n.v, n.b), 3,
    ),
    "derivatives alone": (mlp, lambda n: derivative(n), 3),
    "values and derivatives": (mlp, lambda n: derivative(n, values=True), 4),
    "a transform, and a call": (mlp, lambda n: torch.func.vmap(n)(X) + n(X), 4),
    "transposed": (lambda: nn.Linear(4, 3), lambda n: torch.tanh(n(X)) @ n.weight, 2),
}  # fmt: skip


class Hidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs, weight):
        ctx.save_for_backward(inputs)
        return F.linear(inputs, weight)

    @staticmethod
    def backward(ctx, gradient):
        return None, gradient.T @ ctx.saved_tensors[0]


def derivative(network, values=False):
    inputs = X.clone().requires_grad_()
    outputs = network(inputs)
    (found,) = torch.autograd.grad(outputs.sum(), inputs, create_graph=True)
    return torch.cat([outputs, found], 1) if values else found


@pytest.mark.parametrize("name", LEFT)
def test_reasons(name):
    make, predict, expected = LEFT[name]
    optimizer, _ = stepped(make(), predict)
    report = optimizer.report
    assert report.left_to_adam.keys() == expected.keys()
    for key, part in expected.items():
        assert part in report.left_to_adam[key], report.left_to_adam
    assert report.others == len(expected)
    assert all(key in str(report) for key in list(expected)[:6])


@pytest.mark.parametrize("name", BY_GRAPH | MIXED)
def test_all_parameters_are_in_a_layer_or_have_a_reason(name):
    network, inputs = build(name)
    optimizer = hig.KroneckerHIG(network.named_parameters(), lr=0.01)
    optimizer.step(least_squares(network, inputs))
    left = set(optimizer.report.left_to_adam)
    layered = {n for n, p in network.named_parameters() if "scale" in optimizer.state[p]}
    covered = left | layered | {n.replace("weight", "bias") for n in layered}
    assert covered >= {n for n, _ in network.named_parameters()}
    assert not left & layered


@pytest.mark.parametrize("name", BY_GRAPH_ALONE)
def test_weights_of_the_graph(name):
    make, predict, layers = BY_GRAPH_ALONE[name]
    optimizer, caught = stepped(make(), predict, steps=3)
    report = optimizer.report
    assert (report.left_to_adam, report.remarks, caught) == ({}, [], [])
    assert report.layers == layers


PARTIAL = {
    "a bias": (mlp, lambda n: n(X) + n[2].bias ** 2, "the factors of 2.bias are.*through pow"),
    "forward mode": (mlp, lambda n: tangent(n), "forward mode"),
}


def tangent(network):
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(X, torch.ones_like(X))
        found = torch.autograd.forward_ad.unpack_dual(network(dual))
        return torch.cat([found.primal, found.tangent], 1)


@pytest.mark.parametrize("name", PARTIAL)
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_factors_that_describe_a_part(name):
    make, predict, text = PARTIAL[name]
    optimizer, caught = stepped(make(), predict, steps=2)
    assert any(re.search(text, remark) for remark in optimizer.report.remarks)
    assert optimizer.report.layers and not caught


def test_no_remark_without_need():
    optimizer, caught = stepped(mlp(), lambda n: n(X).sin())
    assert optimizer.report.notes == [] and not caught


def test_one_warning_for_each_optimiser_without_layers():
    optimizer, caught = stepped(tensors(v=torch.randn(4)), lambda n: X * n.v, steps=25)
    assert len(caught) == 1
    assert "its steps are Adam's; v left to Adam: used by mul" in caught[0]
    assert "the whole step is Adam's" in str(optimizer.report)
    assert copy.deepcopy(optimizer)._explanation.warned
    assert pickle.loads(pickle.dumps(optimizer))._explanation.warned


def test_the_warning_names_the_line_of_the_step():
    network = tensors(v=torch.randn(4))
    optimizer = hig.KroneckerHIG(network.parameters())

    def closure():
        prediction = X * network.v
        return prediction.square().sum(), prediction

    with pytest.warns(UserWarning, match="found no layer") as caught:
        optimizer.step(closure)
    assert caught[0].filename == __file__


def test_a_warning_that_is_an_error_leaves_everything_as_it_was():
    network = tensors(v=torch.randn(4))
    optimizer = hig.KroneckerHIG(network.parameters())
    before = copy.deepcopy(network.state_dict())

    def closure():
        prediction = X * network.v
        return prediction.square().sum(), prediction

    with pytest.raises(UserWarning, match="KroneckerHIG found no"):
        optimizer.step(closure)  # the tests make warnings errors
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert optimizer.state["count"] == {"steps": 0} and len(optimizer.state) == 1
    optimizer.step(closure)


def test_reasons_follow_the_computation():
    """Frozen weights, other branches and steps without a probe."""
    network = mlp()
    optimizer = hig.KroneckerHIG(network.named_parameters(), lr=0.01, decay=0.0, probe_every=2)

    def closure():
        prediction = network(X)
        return prediction.square().mean(), prediction

    optimizer.step(closure)
    assert optimizer.report.left_to_adam == {}
    network[0].weight.requires_grad_(False)
    optimizer.step(closure)  # no probe
    assert list(optimizer.report.left_to_adam) == ["0.bias"]
    optimizer.step(closure)
    assert optimizer.report.left_to_adam == {}  # a layer of its own
    network[0].weight.requires_grad_(True)
    optimizer.step(closure)
    optimizer.step(closure)
    assert optimizer.report.left_to_adam == {} and optimizer.report.layers == 2


def test_names_of_parameters():
    first, lazy = nn.Parameter(torch.zeros(2)), nn.LazyLinear(3).weight
    groups = [{"params": [first], "param_names": ["a"]}, {"params": [lazy, torch.zeros(4, 1)]}]
    assert list(parameter_names(groups).values()) == [
        "a", "parameter 1 uninitialized", "parameter 2 (4, 1)",
    ]  # fmt: skip


def test_what_a_first_step_cannot_show_is_found_later():
    """With a last layer of zeros no gradient reaches the others in the first step."""
    network = mlp()
    nn.init.zeros_(network[2].weight)
    optimizer, _ = stepped(network, lambda n: derivative(n, values=True))
    assert optimizer.state[network[0].weight]["bias"] >= 0  # one layer with its bias
    nn.init.zeros_(network[2].weight)
    optimizer, _ = stepped(network, lambda n: derivative(n, values=True), steps=5)
    assert optimizer.state[network[0].weight]["bias"] < 0  # its derivatives have no bias
    assert optimizer.report.layers == 4


def test_reasons_of_another_process_are_taken():
    own, other = (Explanation(reasons={0: text}, remarks=[]) for text in ("one", "two"))
    parameter = nn.Parameter(torch.zeros(2))
    groups = [{"params": [parameter], "param_names": ["a"]}]
    assert own.of([parameter], groups) == {"a": "one"}
    own.take_text(own.as_text())
    assert own.of([parameter], groups) == {"a": "one"}
    own.take_text(other.as_text())
    assert own.of([parameter], groups) == {"a": "two"}
