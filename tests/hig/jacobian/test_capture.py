"""Which layer calls are seen, and whether their factors give the weight's gradient."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hig._jacobian.capture import Capture, weight_matrix_shape
from tests.textbook import relative_error

SAMPLES = 4


def conv(axes, *arguments, **options):
    return {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes](*arguments, **options)


# name -> (build, input shape per sample)
LAYERS = {
    "linear": (lambda: nn.Linear(3, 2), (3,)),
    "linear without bias": (lambda: nn.Linear(3, 2, bias=False), (3,)),
    "linear on tokens": (lambda: nn.Linear(3, 2), (5, 3)),
    "linear on a grid": (lambda: nn.Linear(3, 2), (5, 2, 3)),
    "conv1d": (lambda: conv(1, 2, 3, 3), (2, 7)),
    "conv1d stride leaves a rest": (lambda: conv(1, 2, 3, 2, stride=3), (2, 7)),
    "conv1d padding and dilation": (lambda: conv(1, 2, 3, 3, padding=2, dilation=2), (2, 7)),
    "conv1d even kernel, same": (lambda: conv(1, 2, 3, 4, padding="same"), (2, 7)),
    "conv1d dilated, same": (lambda: conv(1, 2, 3, 2, padding="same", dilation=3), (2, 7)),
    "conv1d valid": (lambda: conv(1, 2, 3, 3, padding="valid"), (2, 7)),
    "conv1d groups": (lambda: conv(1, 4, 6, 3, groups=2), (4, 6)),
    "conv1d depthwise": (lambda: conv(1, 4, 8, 3, groups=4), (4, 6)),
    "conv2d": (lambda: conv(2, 2, 3, 3), (2, 5, 6)),
    "conv2d pairs": (
        lambda: conv(2, 2, 3, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
        (2, 5, 6),
    ),
    "conv2d groups": (lambda: conv(2, 4, 4, (2, 3), groups=2, padding=1, bias=False), (4, 4, 4)),
    "conv2d same": (lambda: conv(2, 2, 3, (4, 3), padding="same", dilation=(1, 2)), (2, 5, 6)),
    "conv2d circular": (lambda: conv(2, 2, 3, 3, padding=1, padding_mode="circular"), (2, 5, 4)),
    "conv2d reflect": (lambda: conv(2, 2, 3, 3, padding=1, padding_mode="reflect"), (2, 5, 4)),
    "conv3d": (lambda: conv(3, 2, 3, 2), (2, 3, 4, 3)),
    "conv3d triples": (
        lambda: conv(3, 2, 4, (2, 1, 2), stride=(1, 2, 1), padding=(1, 0, 2), groups=2),
        (2, 3, 4, 3),
    ),
}


def watch(call, *watched):
    """Run ``call`` and return its output and the captured uses."""
    with Capture(watched) as capture:
        output = call()
    return output, capture.uses


def tensors(*shapes):
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def assert_factors(use, output, samples=SAMPLES):
    """δ ⊗ a, summed over positions, must be autograd's gradient: in total and per sample."""
    cotangents = torch.randn(3, *output.shape, dtype=output.dtype)
    deltas = use.output_gradients(cotangents, samples)
    groups, fan_out, fan_in = weight_matrix_shape(use)
    assert deltas.shape[:3] == (samples, 3, groups)
    assert deltas.shape[4] == fan_out
    patches = use.patches(samples, slice(0, samples))
    assert patches.shape == (samples, groups, deltas.shape[3], fan_in)
    per_sample = torch.einsum("bdguo,bgui->bdgoi", deltas, patches)
    for d, cotangent in enumerate(cotangents):
        (total,) = torch.autograd.grad(output, use.weight, cotangent, retain_graph=True)
        assert relative_error(per_sample[:, d].sum(0).flatten(), total.flatten()) < 1e-13
        for b in range(samples):
            rows = torch.zeros_like(cotangent).unflatten(0, (samples, -1))
            rows[b] = cotangent.unflatten(0, (samples, -1))[b]
            rows = rows.flatten(0, 1)
            (own,) = torch.autograd.grad(output, use.weight, rows, retain_graph=True)
            assert relative_error(per_sample[b, d].flatten(), own.flatten()) < 1e-13
        if use.bias is not None:
            (total,) = torch.autograd.grad(output, use.bias, cotangent, retain_graph=True)
            assert relative_error(deltas[:, d].sum((0, 2)).flatten(), total) < 1e-13
    for chosen in [slice(0, 1), slice(1, samples)]:
        assert torch.equal(use.patches(samples, chosen), patches[chosen])
        for most in (1, 3, 4, 1000):
            pieces = list(use.patch_pieces(samples, chosen, most))
            assert torch.equal(torch.cat(pieces, 2), patches[chosen])
            assert len(pieces) == 1 if most == 1000 else len(pieces) <= patches.shape[2]


def test_pieces_are_small_and_of_double_precision():
    layer, field = nn.Conv2d(2, 3, 3, padding=1), torch.randn(SAMPLES, 2, 8, 5)
    _, (use,) = watch(lambda: layer(field), *layer.parameters())
    pieces = list(use.patch_pieces(SAMPLES, slice(1, 3), 11))
    assert [piece.shape for piece in pieces] == 4 * [(2, 1, 10, 18)]  # two of the eight lines each
    assert {piece.dtype for piece in pieces} == {torch.float64}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_factors_give_the_gradient_of_the_weight(name, repeats):
    """With ``repeats`` the leading axis holds samples * repeats, as after a flatten."""
    build, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = build().double()
    inputs = torch.randn(SAMPLES * repeats, *shape, dtype=torch.float64)
    output, (use,) = watch(lambda: layer(inputs), *layer.parameters())
    assert use.weight is layer.weight and use.bias is layer.bias
    assert use.output_shape == output.shape
    assert use.has_batch(SAMPLES)
    assert not use.input.requires_grad
    assert_factors(use, output)


# -- every way to write a call -------------------------------------------------------------------

x2, w2, b2 = (5, 3), (2, 3), (2,)
LINEAR_CALLS = {
    "positional": lambda x, w, b: F.linear(x, w, b),
    "keywords": lambda x, w, b: F.linear(input=x, weight=w, bias=b),
    "mixed": lambda x, w, b: F.linear(x, bias=b, weight=w),
    "torch._C": lambda x, w, b: torch._C._nn.linear(x, w, b),
}
CONV_CALLS = {
    "positional": lambda f, x, w, b: f(x, w, b, 2, 1, 1, 1),
    "keywords": lambda f, x, w, b: f(
        groups=1, padding=1, stride=2, input=x, weight=w, bias=b, dilation=1
    ),
    "mixed": lambda f, x, w, b: f(x, w, b, padding=1, stride=2),
    "lists of one": lambda f, x, w, b: f(x, w, b, stride=[2], padding=[1]),
}


@pytest.mark.parametrize("call", LINEAR_CALLS)
def test_ways_to_call_linear(call):
    x, weight, bias = tensors(x2, w2, b2)
    output, (use,) = watch(lambda: LINEAR_CALLS[call](x, weight, bias), weight, bias)
    assert use.weight is weight and use.bias is bias and use.convolution is None
    assert_factors(use, output, samples=5)


@pytest.mark.parametrize("call", CONV_CALLS)
@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("namespace", [F, torch], ids=["F", "torch"])
def test_ways_to_call_a_convolution(call, axes, namespace):
    x, weight, bias = tensors((SAMPLES, 2) + (5,) * axes, (3, 2) + (3,) * axes, (3,))
    function = getattr(namespace, f"conv{axes}d")
    output, (use,) = watch(lambda: CONV_CALLS[call](function, x, weight, bias), weight, bias)
    assert use.convolution.stride == (2,) * axes
    assert use.convolution.padding == ((1, 1),) * axes
    assert use.convolution.dilation == (1,) * axes
    assert use.convolution.kernel == (3,) * axes
    assert_factors(use, output)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_padding_in_words_and_by_position(padding):
    x, weight = tensors((SAMPLES, 2, 6), (3, 2, 4))
    output, (use,) = watch(lambda: F.conv1d(x, weight, None, 1, padding), weight)
    assert use.convolution.padding == {"same": ((1, 2),), "valid": ((0, 0),)}[padding]
    assert_factors(use, output)


def test_only_watched_parameters_are_named():
    x, weight, bias = tensors(x2, w2, b2)
    call = lambda: F.linear(x, weight, bias)  # noqa: E731
    assert [(u.weight, u.bias) for u in watch(call, weight)[1]] == [(weight, None)]
    assert [(u.weight, u.bias) for u in watch(call, bias)[1]] == [(None, bias)]
    assert watch(call)[1] == []
    assert watch(call, x)[1] == []
    # By identity: an equal tensor is another parameter.
    assert watch(call, weight.detach().clone().requires_grad_())[1] == []


@pytest.mark.parametrize("trained", ["weight", "bias"])
@pytest.mark.parametrize("name", ["linear", "conv1d groups", "conv2d"])
def test_half_frozen_layers(name, trained):
    build, shape = LAYERS[name]
    layer = build().double()
    for key, parameter in layer.named_parameters():
        parameter.requires_grad_(key == trained)
    watched = [p for p in layer.parameters() if p.requires_grad]
    inputs = torch.randn(SAMPLES, *shape, dtype=torch.float64)
    output, (use,) = watch(lambda: layer(inputs), *watched)
    assert (use.weight is None) == (trained == "bias")
    assert (use.bias is None) == (trained == "weight")
    cotangent = torch.randn_like(output)
    (expected,) = torch.autograd.grad(output, watched, cotangent)
    deltas = use.output_gradients(cotangent[None], SAMPLES)[:, 0]
    if trained == "bias":
        found = deltas.sum((0, 2))
    else:
        found = torch.einsum("bguo,bgui->goi", deltas, use.patches(SAMPLES, slice(0, SAMPLES)))
    assert relative_error(found.flatten(), expected.flatten()) < 1e-13


# -- what is not seen ----------------------------------------------------------------------------


def test_nothing_is_seen_without_a_graph():
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        assert watch(lambda: layer(torch.ones(4, 3)), *layer.parameters())[1] == []
    with torch.inference_mode():
        assert watch(lambda: layer(torch.ones(4, 3)), *layer.parameters())[1] == []


def test_nothing_is_seen_outside_the_context():
    layer = nn.Linear(3, 2)
    with Capture(layer.parameters()) as capture:
        layer(torch.ones(4, 3))
    layer(torch.ones(4, 3))
    assert len(capture.uses) == 1


@pytest.mark.parametrize(
    "transform",
    [
        lambda layer, x: torch.func.vmap(layer)(x),
        lambda layer, x: torch.func.vmap(lambda row: layer(row[None])[0])(x),
        lambda layer, x: torch.func.vmap(torch.func.jacrev(layer))(x),
        lambda layer, x: torch.func.jvp(layer, (x,), (x,))[1],
    ],
    ids=["vmap", "vmap with an axis", "vmap of jacrev", "jvp"],
)
def test_nothing_is_seen_inside_a_transform(transform):
    layer = nn.Linear(3, 2).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    output, uses = watch(lambda: transform(layer, x), *layer.parameters())
    assert uses == []
    assert output.requires_grad  # and the result is as good as without the capture


def test_derived_weights_are_other_tensors():
    layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    _, uses = watch(lambda: layer(torch.ones(4, 3)), *layer.parameters())
    assert [use.weight for use in uses] == [None]
    assert uses[0].bias is layer.bias


def test_fused_and_transposed_layers_pass_by():
    for layer, shape in [
        (nn.GRU(3, 2), (4, 5, 3)),
        (nn.ConvTranspose1d(3, 2, 2), (4, 3, 5)),
        (nn.Bilinear(3, 3, 2), None),
    ]:
        inputs = [torch.ones(4, 3)] * 2 if shape is None else [torch.ones(shape)]
        assert watch(lambda: layer(*inputs), *layer.parameters())[1] == []  # noqa: B023


def test_weights_and_biases_of_unusual_shape_are_not_taken_for_layers():
    """``F.linear`` takes a weight without an output axis, and broadcasts a bias of any shape."""
    x, weight, vector = tensors((3, 4), (3, 4), (4,))
    assert watch(lambda: F.linear(x, vector), vector)[1] == []
    for shape in [(3, 3), (1,), (1, 3), (3, 1), ()]:
        (bias,) = tensors(shape)
        _, (use,) = watch(lambda: F.linear(x, weight, bias), weight, bias)  # noqa: B023
        assert use.weight is weight and use.bias is None
        assert watch(lambda: F.linear(x, weight, bias), bias)[1] == []  # noqa: B023


def test_which_leading_axes_can_be_samples():
    weight, kernel = tensors((2, 3), (2, 3, 2))

    def seen(function, parameter, *shape):
        return watch(lambda: function(torch.ones(*shape).double(), parameter), parameter)[1][0]

    assert seen(F.linear, weight, 6, 3).has_batch(6)
    assert seen(F.linear, weight, 6, 3).has_batch(2)
    assert not seen(F.linear, weight, 6, 3).has_batch(4)
    assert not seen(F.linear, weight, 3).has_batch(1)
    assert seen(F.conv1d, kernel, 6, 3, 5).has_batch(3)
    assert not seen(F.conv1d, kernel, 6, 3, 5).has_batch(4)
    assert not seen(F.conv1d, kernel, 3, 5).has_batch(3)  # (C, L): no sample axis


# -- the graph ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overwrite",
    [torch.tanh_, lambda z: F.leaky_relu_(z, 0.1), lambda z: z.mul_(2).add_(1)],
    ids=["tanh", "leaky relu", "affine"],
)
def test_the_edge_is_the_layer_whatever_happens_to_its_output(overwrite):
    x, weight = tensors((4, 3), (2, 3))

    def call(in_place):
        z = F.linear(x.detach(), weight)
        return z, overwrite(z if in_place else z.clone())

    z, out_of_place = call(in_place=False)
    (expected,) = torch.autograd.grad(out_of_place.square().sum(), z)
    (_, overwritten), (use,) = watch(lambda: call(in_place=True), weight)
    (found,) = torch.autograd.grad(overwritten.square().sum(), use.edge)
    assert torch.equal(found, expected)
    assert not torch.equal(expected, 2 * out_of_place)  # the activation does something


def test_every_use_is_seen_in_order():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    x = torch.ones(4, 3)
    _, uses = watch(lambda: first(second(first(x))), *first.parameters(), *second.parameters())
    assert [id(use.weight) for use in uses] == [id(m.weight) for m in (first, second, first)]


def test_nested_captures_each_see_their_own():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    with Capture(first.parameters()) as outer:
        with Capture(second.parameters()) as inner, Capture(first.parameters()) as same:
            output = second(first(torch.ones(4, 3)))
        first(output)
    assert [id(use.weight) for use in outer.uses] == [id(first.weight)] * 2
    assert [id(use.weight) for use in same.uses] == [id(first.weight)]
    assert [id(use.weight) for use in inner.uses] == [id(second.weight)]


def test_the_capture_changes_no_value_and_no_gradient():
    x, weight, bias = tensors(x2, w2, b2)
    plain = F.linear(x, weight, bias).tanh().sum()
    seen, _ = watch(lambda: F.linear(x, weight, bias).tanh().sum(), weight, bias)
    assert torch.equal(plain, seen)
    for a, b in zip(
        torch.autograd.grad(plain, [x, weight, bias]),
        torch.autograd.grad(seen, [x, weight, bias]),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_an_error_in_the_computation_passes_through():
    layer = nn.Linear(3, 2)
    with pytest.raises(RuntimeError, match="cannot be multiplied"), Capture(layer.parameters()):
        layer(torch.ones(4, 5))
    # and the mode has been left
    assert torch.overrides._get_current_function_mode() is None
