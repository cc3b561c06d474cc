"""Derivatives of all kinds of networks are those of central differences, or refused."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, jacrev, vmap
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from problems.pinn import _nested_checks, jet

torch.manual_seed(0)
POINTS = torch.rand(6, 2, dtype=torch.float64)


class Function(nn.Module):
    """A function of the points and of some layers."""

    def __init__(self, function, *layers):
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, points):
        return self.function(points, *self.layers)


class Sine(torch.autograd.Function):
    """Has a second derivative, but neither forward mode nor torch.func."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0].cos()


class DetachedSine(Sine):
    """Its slope is a constant for autograd: no error, and no second derivative."""

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0].detach().cos()


class OnceSine(Sine):
    """Says that it has no second derivative, which torch passes over where inputs are named."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0].cos()


def between(*layers, width=8):
    """A network with these layers inside."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(2, 8), *layers, nn.Tanh(), nn.Linear(width, 2)).double()


def field(*layers):
    """The same with layers on two channels of four places."""
    return between(nn.Unflatten(1, (2, 4)), *layers, nn.Flatten())


def of_function(function, *layers):
    torch.manual_seed(1)
    return Function(function, *layers).double()


def attention(points, into, attend, out, **options):
    tokens = into(points).view(-1, 2, 4)
    return out(attend(tokens, tokens, tokens, **options)[0].flatten(1))


def hooked(change):
    network = between()
    change(network)
    return network


ACTIVATIONS = [
    nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Softplus(), nn.Softplus(3.0), nn.Mish(), nn.ELU(),
    nn.SELU(), nn.CELU(), nn.ReLU(), nn.LeakyReLU(), nn.Sigmoid(), nn.LogSigmoid(), nn.Softsign(),
    nn.Tanhshrink(), nn.Softmax(-1), nn.LogSoftmax(-1), nn.Hardswish(), nn.PReLU(), nn.Tanh(),
    nn.SiLU(inplace=True), nn.ELU(inplace=True), nn.Identity(),
]  # fmt: skip
LAYERS = [
    nn.LayerNorm(8), nn.RMSNorm(8), nn.GroupNorm(2, 8), nn.BatchNorm1d(8).eval(), nn.Dropout(0.3),
    nn.AlphaDropout(0.2), nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh()),
]  # fmt: skip
FIELDS = [
    nn.InstanceNorm1d(2), nn.Conv1d(2, 2, 3, padding=1), nn.LocalResponseNorm(2),
    nn.ConvTranspose1d(2, 2, 1), nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
]  # fmt: skip
SHARED = nn.Linear(8, 8)
FEATURES = torch.randn(2, 4, dtype=torch.float64)
NETWORKS = {
    **{str(layer): between(layer) for layer in ACTIVATIONS + LAYERS},
    **{type(layer).__name__: field(layer) for layer in FIELDS},
    "GLU": between(nn.GLU(), width=4),
    "pooling": field(nn.AvgPool1d(2), nn.Flatten(), nn.Linear(4, 8)),
    "bilinear": of_function(lambda x, layer: layer(x, x.sin()), nn.Bilinear(2, 2, 3)),
    "embedding": of_function(
        lambda x, table, out: out(torch.cat([x.sin(), table(torch.arange(len(x)))], 1)).tanh(),
        nn.Embedding(6, 3), nn.Linear(5, 2),
    ),
    "attention": of_function(
        attention, nn.Linear(2, 8), nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(8, 2)
    ),
    "fused attention": of_function(
        lambda *of: attention(*of, need_weights=False),
        nn.Linear(2, 8), nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(8, 2),
    ),
    "a layer used twice": between(SHARED, nn.Tanh(), SHARED),
    "residual": of_function(
        lambda x, into, inner, out: out(into(x) + inner(into(x)).tanh()),
        nn.Linear(2, 8), nn.Linear(8, 8), nn.Linear(8, 1),
    ),
    "sines": of_function(lambda x, a, b: b((3 * a(x)).sin()), nn.Linear(2, 8), nn.Linear(8, 1)),
    "Fourier features": of_function(
        lambda x, out: out(torch.cat([(x @ FEATURES).sin(), (x @ FEATURES).cos()], 1)),
        nn.Linear(8, 1),
    ),
    "function": lambda x: (x @ FEATURES).tanh().cumprod(1),
    "constant": lambda x: torch.ones_like(x),
    "linear": nn.Linear(2, 3).double(),
    "complex": lambda x: ((1 + 2j) * x).exp(),
    "recurrent": field(nn.GRU(4, 4, batch_first=True), Function(lambda found: found[0])),
    "autograd function": between(Function(Sine.apply)),
    "autograd function and dropout": between(Function(Sine.apply), nn.Dropout(0.3)),
    "checkpoint": lambda x: checkpoint(NETWORKS["linear"], x, use_reentrant=False).sin(),
    "forward pre-hook": hooked(
        lambda network: network.register_forward_pre_hook(lambda _, given: (2 * given[0] - 1,))
    ),
    "forward hook": hooked(
        lambda network: network[1].register_forward_hook(lambda _, given, found: 2 * found)
    ),
    "forward of the instance": hooked(lambda net: setattr(net, "forward", lambda x: x.exp())),
    "forward of a layer": hooked(lambda net: setattr(net[0], "forward", lambda x: x.repeat(1, 4))),
    "weight normalisation": hooked(
        lambda network: nn.utils.parametrizations.weight_norm(network[0])
    ),
    "spectral normalisation by hooks": hooked(
        lambda network: nn.utils.spectral_norm(network[0]).eval()
    ),
    "pruned": hooked(lambda network: prune.random_unstructured(network[0], "weight", 5)),
}  # fmt: skip


def differences(network, h=1e-4):
    """By the definition, at equal random numbers."""

    def at(points):
        torch.manual_seed(3)
        with torch.no_grad():
            return network(points)

    steps = h * torch.eye(2, dtype=torch.float64)
    value = at(POINTS)
    sides = [(at(POINTS + step), at(POINTS - step)) for step in steps]
    first = [(up - down) / (2 * h) for up, down in sides]
    second = [(up - 2 * value + down) / h**2 for up, down in sides]
    return value, torch.stack(first, -2), torch.stack(second, -2)


@pytest.mark.parametrize("name", NETWORKS)
def test_against_central_differences(name):
    network = NETWORKS[name]
    value, first, second = differences(network)
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        torch.manual_seed(3)
        with mode():
            found = jet(network, POINTS, 2, 2)
        assert (found.value - value).abs().max() < 1e-13
        # h² of the differences and, for second ones, rounding over h².
        assert (found.derivatives[:, :2] - first).abs().max() < 1e-6 * (1 + first.abs().max())
        assert (found.derivatives[:, 2:] - second).abs().max() < 1e-5 * (1 + second.abs().max())


def test_a_hook_of_all_modules():
    network = between()
    plain = jet(network, POINTS, 2, 2)
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, given, found: 2 * found if isinstance(module, nn.Tanh) else None
    )
    try:
        _, first, second = differences(network)
        found = jet(network, POINTS, 2, 2)
    finally:
        hook.remove()
    assert (found.derivatives - torch.cat([first, second], -2)).abs().max() < 1e-5
    assert (plain.derivatives - found.derivatives).abs().max() > 1e-2


def layers_of_one_batch():
    return [nn.BatchNorm1d(8), nn.BatchNorm1d(8, track_running_stats=False).eval()]


@pytest.mark.parametrize(
    ("network", "match"),
    [
        *((between(layer), "BatchNorm1d '1', by statistics") for layer in layers_of_one_batch()),
        (lambda x: x.sin() * x.mean(), "points influence one another in the network: "),
        (lambda x: x - x.mean(0), "points influence one another"),
        (lambda x: F.pad(x[1:], (0, 0, 0, 1)), "points influence one another"),
        (between(nn.Hardsigmoid()), r"because of Hardsigmoid at '1': .*hardsigmoid_backward"),
        (lambda x: torch.cdist(x, POINTS[:2]), "differentiated twice: .*cdist_backward"),
        (lambda x: checkpoint(between(), x, use_reentrant=True), "use_reentrant=False"),
        (between(Function(DetachedSine.apply)), "derivative of DetachedSine, .* is wrong"),
        (between(Function(OnceSine.apply)), "derivative of OnceSine, .* is wrong"),
        (lambda x: x.detach().sin(), "no graph that leads to the points"),
        (torch.no_grad()(between()), "no graph that leads to the points"),
        (lambda x: x.sum(1), r"to outputs \(6, '...'\), a row for each, got \(6,\)"),
    ],
)
def test_what_is_refused(network, match):
    # Of six points, one half in twenty shows nothing of a coupling in one direction.
    _nested_checks._GENERATOR.manual_seed(0)
    for mode in (torch.enable_grad, torch.no_grad):
        with mode(), pytest.raises(ValueError, match=match):
            jet(network, POINTS, 2, 2)


# In a process of its own: what torch.compile does depends on all that was compiled before.
COMPILED = """
import torch
from torch import nn

from problems.pinn import jet

network = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
points = torch.rand(6, 2, dtype=torch.float64)
try:
    jet(torch.compile(network, backend="aot_eager"), points, 2, 2)
except ValueError as error:
    print(error)
"""


def test_what_torch_compile_makes_is_refused():
    command = [sys.executable, "-c", COMPILED]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "not what torch.compile makes of it" in done.stdout


@pytest.mark.parametrize(
    "text",
    [
        "torch.compile with aot_autograd does not currently support double backward",
        "This backward function was compiled with non-empty donated buffers",
    ],
)
def test_both_errors_of_compiled_networks_name_the_remedy(text):
    class Compiled(Sine):
        @staticmethod
        def backward(ctx, gradient):
            raise RuntimeError(text)

    with pytest.raises(ValueError, match=f"{text}; .*not what torch.compile makes of it"):
        jet(Compiled.apply, POINTS, 2, 2)


def test_several_outputs_are_refused():
    with pytest.raises(TypeError, match=r"must return one tensor .*, got tuple"):
        jet(lambda x: (x, x), POINTS, 1, 1)


def test_out_of_memory_passes_as_it_is():
    class Full(Sine):
        @staticmethod
        def backward(ctx, gradient):
            raise torch.OutOfMemoryError("not enough memory")

    with pytest.raises(torch.OutOfMemoryError):
        jet(Full.apply, POINTS, 1, 1)


def test_a_refusal_leaves_no_hook_and_the_points_as_they_are():
    network, points = between(nn.Hardsigmoid()), POINTS.clone()
    with pytest.raises(ValueError, match="twice"):
        jet(network, points, 1, 1)
    assert not any(module._forward_hooks for module in network.modules())
    jet(nn.Sequential(nn.SiLU(inplace=True), nn.Linear(2, 1).double()), points, 1, 1)
    assert torch.equal(points, POINTS)
    assert not points.requires_grad


def test_derivatives_are_differentiable_by_points_and_weights():
    network = between(nn.GELU())
    points = POINTS.clone().requires_grad_()
    found = jet(network, 2 * points, 1, 1).derivatives.sum()
    h = 1e-5 * torch.ones_like(POINTS)
    sides = [jet(network, 2 * (POINTS + way * h), 1, 1).derivatives for way in (1, -1)]
    (gradient,) = torch.autograd.grad(found, points)
    torch.testing.assert_close(
        gradient.sum(), (sides[0] - sides[1]).sum() / 2e-5, rtol=1e-6, atol=1e-8
    )


def test_inside_of_torch_func():
    network = between(nn.GELU())
    weights = dict(network.named_parameters())

    def derivatives(weights, points):
        return jet(lambda x: functional_call(network, weights, (x,)), points, 2, 1).derivatives

    expected = derivatives(weights, POINTS)
    jacobians = jacrev(derivatives)(weights, POINTS)
    cotangent = torch.randn(expected.shape, dtype=torch.float64)
    gradients = torch.autograd.grad(
        expected, weights.values(), cotangent, retain_graph=True, materialize_grads=True
    )
    for jacobian, gradient in zip(jacobians.values(), gradients, strict=True):
        found = torch.tensordot(cotangent, jacobian, 3)
        torch.testing.assert_close(found, gradient, rtol=1e-12, atol=1e-13)
    each = vmap(lambda point: derivatives(weights, point[None])[0])(POINTS)
    torch.testing.assert_close(each, expected, rtol=1e-12, atol=1e-13)
    slopes = vmap(lambda point: jet(network, point[None], 2, 0).derivatives[0])(POINTS)
    torch.testing.assert_close(slopes, expected[:, :2], rtol=1e-12, atol=1e-13)
