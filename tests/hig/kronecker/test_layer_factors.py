"""The factors of captured layers: explicit sums, convolutions as unfolded linear layers."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hig
from hig._jacobian.capture import Capture
from hig._kronecker.layer_factors import factors_of_layers, random_probe
from tests.hig.networks import BATCH, LAYERED, build
from tests.textbook import relative_error, step_of

DOUBLE = {"dtype": torch.float64}


def factors(network, inputs, probe=None):
    with Capture(network.parameters()) as capture:
        prediction = network(inputs)
    probe = random_probe(prediction, 0, None) if probe is None else probe
    return prediction, probe, factors_of_layers(capture.uses, prediction, probe)


def test_factors_of_a_linear_network():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False)).double()
    inputs = torch.randn(5, 3, **DOUBLE)
    _, probe, found = factors(network, inputs)
    first, second = network
    assert [f.layer.weight is layer.weight for f, layer in zip(found, network, strict=True)]
    extended = torch.cat([inputs, torch.ones(5, 1, **DOUBLE)], 1)
    hidden = first(inputs).detach()
    back = probe @ second.weight.detach()
    torch.testing.assert_close(found[0].inputs[0], extended.T @ extended / 5)
    torch.testing.assert_close(found[0].outputs[0], back.T @ back)
    torch.testing.assert_close(found[1].inputs[0], hidden.T @ hidden / 5)
    torch.testing.assert_close(found[1].outputs[0], probe.T @ probe)


def test_a_convolution_is_a_linear_layer_on_its_patches():
    torch.manual_seed(0)
    convolution = nn.Conv2d(2, 3, (2, 3), stride=(1, 2), padding=1).double()
    linear = nn.Linear(12, 3).double()
    linear.weight.data = convolution.weight.data.flatten(1)
    linear.bias.data = convolution.bias.data
    images = torch.randn(4, 2, 5, 6, **DOUBLE)
    patches = F.unfold(images, (2, 3), padding=1, stride=(1, 2)).mT  # (B, positions, in)
    prediction, probe, (one,) = factors(convolution, images)
    _, _, (other,) = factors(linear, patches, probe.flatten(2).mT)
    assert prediction.shape == (4, 3, 6, 3)
    torch.testing.assert_close(one.inputs, other.inputs)
    torch.testing.assert_close(one.outputs, other.outputs)


def test_uses_of_a_shared_layer_add_up():
    torch.manual_seed(0)
    layer = nn.Linear(2, 2, bias=False).double()
    inputs = torch.randn(5, 2, **DOUBLE)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(self.layer(x))

    _, probe, (found,) = factors(Twice(), inputs)
    weight = layer.weight.detach()
    rows = torch.cat([inputs, inputs @ weight.T])
    deltas = torch.cat([probe @ weight, probe])
    torch.testing.assert_close(found.inputs[0], rows.T @ rows / 10)
    torch.testing.assert_close(found.outputs[0], deltas.T @ deltas)


@pytest.mark.parametrize("name", LAYERED)
def test_shapes_fit_the_weights(name):
    network, inputs = build(name)
    _, _, found = factors(network, inputs)
    assert found
    for each in found:
        groups = len(each.inputs)
        bias = each.layer.bias is not None
        assert each.outputs.shape[0] == groups
        entries = each.outputs.shape[1] * (each.inputs.shape[1] - bias) * groups
        assert entries == each.layer.weight.numel()
        for factor in (each.outputs, each.inputs):
            assert torch.equal(factor, factor.mT.clone()) or torch.allclose(factor, factor.mT)
            assert float(torch.linalg.eigvalsh(factor).min()) > -1e-10 * float(factor.norm())


def test_layers_that_the_prediction_does_not_need_are_left_out():
    network = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)])
    inputs = torch.randn(4, 3)
    with Capture(network.parameters()) as capture:
        prediction, _ = network[0](inputs), network[1](inputs)
    (found,) = factors_of_layers(capture.uses, prediction, torch.ones_like(prediction))
    assert found.layer.weight is network[0].weight
    assert factors_of_layers([], prediction, prediction) == []


def test_probes_are_signs_of_their_own():
    prediction = torch.zeros(BATCH, 7, **DOUBLE)
    state = torch.get_rng_state()
    probe = random_probe(prediction, 3, None)
    assert torch.equal(torch.get_rng_state(), state)
    assert probe.dtype == torch.float64 and set(probe.flatten().tolist()) == {-1.0, 1.0}
    assert torch.equal(probe, random_probe(prediction, 3, None))
    assert not torch.equal(probe, random_probe(prediction, 4, None))
    assert torch.equal(random_probe(prediction, 3, lambda x: 2 * x), 2 * probe)


def test_a_metric_that_changes_the_shape():
    with pytest.raises(ValueError, match=r"keep the shape of the prediction \(4, 3\), got \(4,\)"):
        random_probe(torch.zeros(4, 3), 0, lambda x: x.sum(1))


# -- positions: which axis holds the samples does not matter --------------------------------------


def moments(rows, deltas):
    rows = torch.cat([rows, torch.ones(len(rows), 1, **DOUBLE)], 1)
    return rows.T @ rows / len(rows), deltas.T @ deltas


def test_calls_with_other_leading_axes_than_the_batch():
    """Interior and boundary points, a node at a time, and no batch axis: all rows count alike."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 2).double()
    parts = [torch.randn(7, 3, **DOUBLE), torch.randn(4, 2, 3, **DOUBLE), torch.randn(3, **DOUBLE)]
    with Capture(layer.parameters()) as capture:
        prediction = torch.cat([layer(part).reshape(-1, 2) for part in parts])
    assert len(prediction) == 16
    probe = random_probe(prediction, 0, None)
    (found,) = factors_of_layers(capture.uses, prediction, probe)
    expected = moments(torch.cat([part.reshape(-1, 3) for part in parts]), probe)
    torch.testing.assert_close(found.inputs[0], expected[0])
    torch.testing.assert_close(found.outputs[0], expected[1])


def test_points_that_all_samples_share():
    """The trunk of an operator network is called once, with 5 points for 4 samples."""
    torch.manual_seed(0)
    trunk = nn.Linear(3, 2).double()
    points, branch = torch.randn(5, 3, **DOUBLE), torch.randn(4, 2, **DOUBLE)
    with Capture(trunk.parameters()) as capture:
        prediction = branch @ trunk(points).T
    probe = random_probe(prediction, 0, None)
    (found,) = factors_of_layers(capture.uses, prediction, probe)
    expected = moments(points, probe.T @ branch)
    torch.testing.assert_close(found.inputs[0], expected[0])
    torch.testing.assert_close(found.outputs[0], expected[1])


@pytest.mark.parametrize(("axes", "module"), [(1, nn.Conv1d), (2, nn.Conv2d), (3, nn.Conv3d)])
def test_a_convolution_without_a_batch(axes, module):
    torch.manual_seed(0)
    layer = module(2, 4, 2, groups=2).double()
    image = torch.randn(2, *[4] * axes, **DOUBLE)
    with Capture(layer.parameters()) as capture:
        alone, batched = layer(image).movedim(0, -1), layer(image[None])[0].movedim(0, -1)
    assert len(alone) == 3
    probe = random_probe(alone, 0, None)
    (one,) = factors_of_layers(capture.uses[:1], alone, probe)
    (other,) = factors_of_layers(capture.uses[1:], batched, probe)
    torch.testing.assert_close(one.inputs, other.inputs)
    torch.testing.assert_close(one.outputs, other.outputs)


@pytest.mark.parametrize("kind", ["coo", "jagged"])
def test_inputs_that_are_not_dense(kind):
    torch.manual_seed(0)
    layer, rows = nn.Linear(3, 2, bias=False).double(), torch.randn(5, 3, **DOUBLE)
    with Capture(layer.parameters()) as capture:
        if kind == "coo":
            prediction = layer(rows.to_sparse())
        else:
            parts = [rows[:2], rows[2:]]
            nested = torch.nested.nested_tensor(parts, layout=torch.jagged)
            prediction = torch.cat(layer(nested).unbind())
    probe = random_probe(prediction, 0, None)
    (found,) = factors_of_layers(capture.uses, prediction, probe)
    torch.testing.assert_close(found.inputs[0], rows.T @ rows / 5)
    torch.testing.assert_close(found.outputs[0], probe.T @ probe)


def test_half_precision_is_accumulated_in_float32():
    """Squares of 300 are beyond float16."""
    layer, inputs = nn.Linear(2, 2, bias=False).half(), torch.full((4, 2), 300.0).half()
    _, _, (found,) = factors(layer, inputs)
    assert found.inputs.dtype == found.outputs.dtype == torch.float32
    assert torch.equal(found.inputs, torch.full((1, 2, 2), 9e4))


def test_probes_are_those_of_the_cpu_under_another_default_device():
    prediction = torch.zeros(4, 3)
    expected = random_probe(prediction, 1, None)
    with torch.device("meta"):
        assert torch.equal(random_probe(prediction, 1, None), expected)


@pytest.mark.parametrize("name", LAYERED)
def test_layers_are_whole_where_calls_show_everything(name):
    network, inputs = build(name)
    with Capture(network.parameters()) as capture:
        prediction = network(inputs)
    probe = random_probe(prediction, 0, None)
    found = factors_of_layers(capture.uses, prediction, probe, thorough=True)
    assert not any(each.partial for each in found)


def test_a_weight_that_is_used_in_another_way_too():
    network, inputs = build("tied")
    with Capture(network.parameters()) as capture:
        prediction = network(inputs)
    probe = random_probe(prediction, 0, None)
    (found,) = factors_of_layers(capture.uses, prediction, probe, thorough=True)
    assert [p is network.encoder.weight for p in found.partial] == [True]


class Marked(torch.Tensor):
    """A tensor of a class of its own, as libraries of meshes and images have."""


def test_factors_of_inputs_of_another_class_are_plain_tensors():
    """The state would become of that class, too."""
    layer, rows = nn.Linear(3, 2), torch.randn(4, 3)
    _, probe, (expected,) = factors(layer, rows)
    with Capture(layer.parameters()) as capture:
        prediction = layer(rows.as_subclass(Marked)).as_subclass(torch.Tensor)
    (found,) = factors_of_layers(capture.uses, prediction, probe)
    assert type(found.inputs) is type(found.outputs) is torch.Tensor
    assert torch.equal(found.inputs, expected.inputs)
    assert torch.equal(found.outputs, expected.outputs)


# -- layouts: whichever axis holds the samples ----------------------------------------------------


def squares_of(predict):
    def closure():
        prediction = predict()
        return (prediction - 0.3).square().sum(), prediction

    return closure


def first_step(predict):
    """The first step of a network of two layers whose prediction is given."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    optimizer = hig.KroneckerHIG(network.parameters(), lr=0.01)
    step = step_of(optimizer, squares_of(lambda: predict(network)))
    assert (optimizer.report.layers, optimizer.report.others) == (2, 0)
    return step


def time_first(n, x):
    return n(x.transpose(0, 1)).transpose(0, 1)


LAYOUTS = {
    "time first": time_first,
    "one row for each sample and time": lambda n, x: n(x.flatten(0, 1)).view(12, 7, 2),
    "one sample at a time": lambda n, x: torch.stack([n(sample) for sample in x]),
    "one row at a time": lambda n, x: torch.stack(
        [torch.stack([n(row) for row in sample]) for sample in x]
    ),
    "parts of other sizes": lambda n, x: torch.cat([n(x[:5]), n(x[5:11]), n(x[11:])]),
    "not contiguous": lambda n, x: n(x.permute(2, 1, 0).contiguous().permute(2, 1, 0)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_steps_do_not_depend_on_the_layout(name):
    torch.manual_seed(1)
    inputs = torch.randn(12, 7, 3, **DOUBLE)
    expected = first_step(lambda n: n(inputs))
    found = first_step(lambda n: LAYOUTS[name](n, inputs))
    assert relative_error(found, expected) < 1e-8


@pytest.mark.parametrize("sizes", [[7] * 10, [5, 6, 7, 8, 9, 10, 6, 7, 8, 9]])
def test_nodes_of_graphs(sizes):
    """All graphs in one leading axis, whose length is a multiple of their number or not."""
    torch.manual_seed(1)
    inputs = torch.randn(sum(sizes), 3, **DOUBLE)
    graph = torch.repeat_interleave(torch.arange(10), torch.tensor(sizes))

    def pooled(network):
        return torch.zeros(10, 2, **DOUBLE).index_add(0, graph, network(inputs))

    order = torch.randperm(len(inputs))

    def permuted(network):
        return torch.zeros(10, 2, **DOUBLE).index_add(0, graph[order], network(inputs[order]))

    assert relative_error(first_step(pooled), first_step(permuted)) < 1e-8


@pytest.mark.parametrize("module", [nn.Conv1d, nn.Conv2d])
def test_images_one_by_one(module):
    axes = 1 if module is nn.Conv1d else 2
    torch.manual_seed(0)
    network = nn.Sequential(module(2, 4, 2), nn.Tanh(), module(4, 2, 2, stride=2)).double()
    again = copy.deepcopy(network)
    images = torch.randn(3, 2, *[5] * axes, **DOUBLE)
    steps = []
    for trained, predict in (
        (network, lambda: network(images)),
        (again, lambda: torch.stack([again(image) for image in images])),
    ):
        optimizer = hig.KroneckerHIG(trained.parameters(), lr=0.01)
        steps.append(step_of(optimizer, squares_of(predict)))
        assert (optimizer.report.layers, optimizer.report.others) == (2, 0)
    assert relative_error(*steps) < 1e-8


def test_a_part_of_a_batch_has_the_signs_of_its_samples():
    whole = random_probe(torch.zeros(7, 2, 3, **DOUBLE), 5, None)
    assert whole.abs().eq(1).all() and len(set(whole.flatten().tolist())) == 2
    part = random_probe(torch.zeros(3, 2, 3, **DOUBLE), 5, None, (2, 7))
    assert torch.equal(part, whole[2:5])
