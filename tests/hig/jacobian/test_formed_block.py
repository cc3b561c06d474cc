"""Columns formed while passes arrive, against the factors that would have been held."""

import pytest
import torch
from torch import nn

import hig
from hig._jacobian import layerwise as layerwise_module
from hig._jacobian.blocks import DenseBlock
from hig._jacobian.capture import Capture
from hig._jacobian.factored_block import FactoredBlock
from hig._jacobian.formed_block import FormedBlock
from hig._jacobian.layerwise import find_layers, layer_blocks
from hig._torch.batched_vjp import BatchedVJP
from tests.hig.jacobian.test_distributed import check
from tests.hig.networks import build
from tests.textbook import relative_error, textbook_jacobian


@pytest.fixture(params=[0, 9000, 2**40])
def forming(request, monkeypatch):
    """Form columns from one batch of passes, from several, and from all together."""
    monkeypatch.setattr(layerwise_module, "FACTOR_BYTES", request.param)


@pytest.fixture
def factors(monkeypatch):
    """Return what keeps all layers as factors, from then on or not."""

    def keep(kept):
        if kept:
            monkeypatch.setattr(layerwise_module, "_columns_are_smaller", lambda *_: False)
        else:
            monkeypatch.undo()

    return keep


def convolutions(samples=3, size=7, groups=1, bias=True, dtype=torch.float64):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=bias),
        nn.Tanh(),
        nn.Conv2d(4, 2, 3, padding=1, groups=groups),
    ).to(dtype)
    return network, torch.randn(samples, 2, size, size, dtype=dtype)


def blocks_of(network, inputs, chunk=None):
    with Capture(network.parameters()) as capture:
        prediction = network(inputs)
    layers = find_layers(capture.uses, len(prediction))
    return layers, layer_blocks(layers, prediction, BatchedVJP(chunk)), prediction


@pytest.mark.parametrize("chunk", [None, 1, 5, 1000])
@pytest.mark.parametrize(("groups", "bias"), [(1, True), (1, False), (2, True)])
@pytest.mark.parametrize("samples", [1, 3])
def test_formed_columns_are_those_of_autograd(forming, chunk, groups, bias, samples):
    network, inputs = convolutions(samples, groups=groups, bias=bias)
    layers, blocks, prediction = blocks_of(network, inputs, chunk)
    for layer, block in zip(layers, blocks, strict=True):
        assert isinstance(block, FormedBlock)
        expected = textbook_jacobian(prediction, layer.parameters)
        assert relative_error(block.matrix, expected) < 1e-13
        assert block.matrix.dtype == torch.float64


def test_formed_columns_of_float32_have_the_digits_of_the_factors(factors):
    network, inputs = convolutions(size=12, dtype=torch.float32)
    factors(True)
    _, factored, _ = blocks_of(network, inputs)
    factors(False)
    _, formed, _ = blocks_of(network, inputs, 7)
    for one, other in zip(factored, formed, strict=True):
        assert isinstance(one, FactoredBlock) and isinstance(other, FormedBlock)
        # The passes themselves may round differently in batches of another size.
        assert relative_error(other.rows(slice(0, 3)), one.rows(slice(0, 3))) < 1e-5
        assert (other.row_squares() >= one.row_squares() * (1 - 1e-5)).all()
        assert other.dtypes == one.dtypes == {torch.float32}


def test_row_squares_are_those_of_rows_and_of_apart_uses(forming, factors):
    """Uses that cancel or add up: the rounding is that of the larger."""
    network, inputs = convolutions()
    formed = blocks_of(network, inputs)[1]
    factors(True)
    for block, one in zip(formed, blocks_of(network, inputs)[1], strict=True):
        rows = block.matrix.square().sum(1)
        expected = torch.maximum(rows, one.row_squares())
        assert (rows > one.row_squares()).any()
        assert relative_error(block.row_squares(), expected) < 1e-12


def test_layers_with_many_weights_keep_their_factors(forming):
    network, inputs = build("mlp")
    assert all(isinstance(block, FactoredBlock) for block in blocks_of(network, inputs)[1])
    network = nn.Sequential(nn.Conv2d(2, 40, 3), nn.Tanh(), nn.Conv2d(40, 1, 2)).double()
    inputs = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    assert isinstance(blocks_of(network, inputs)[1][1], FactoredBlock)


@pytest.mark.parametrize("chunk", [None, 3])
def test_deltas_are_never_held_together(monkeypatch, chunk):
    monkeypatch.setattr(layerwise_module, "FACTOR_BYTES", 0)
    network, inputs = convolutions()
    sizes, original = [], FormedBlock.add

    def add(self, chosen, factors):
        sizes.append(factors.outputs)
        return original(self, chosen, factors)

    monkeypatch.setattr(FormedBlock, "add", add)
    monkeypatch.setattr("hig._torch.batched_vjp.PASS_BYTES", 40_000)
    monkeypatch.setattr("hig._torch.batched_vjp.CACHED_BYTES", 0)
    _, _, prediction = blocks_of(network, inputs, chunk)
    assert max(sizes) <= (chunk or 10)
    assert sum(sizes) == 2 * prediction[0].numel()  # two layers


def test_passes_are_joined(monkeypatch):
    """Batches of three passes are joined until they have enough bytes of gradients."""
    network, inputs = convolutions()  # a pass has 3 * 49 * 6 * 8 bytes of gradients
    sizes, original = [], FormedBlock.add

    def add(self, chosen, factors):
        sizes.append((chosen, factors.outputs))
        return original(self, chosen, factors)

    monkeypatch.setattr(FormedBlock, "add", add)
    monkeypatch.setattr(layerwise_module, "FACTOR_BYTES", 7 * 3 * 49 * 6 * 8)
    _, _, prediction = blocks_of(network, inputs, 3)
    outputs = prediction[0].numel()
    starts = range(0, outputs, 9)
    expected = [(slice(s, min(s + 9, outputs)), min(9, outputs - s)) for s in starts]
    assert sizes == [entry for entry in expected for _ in range(2)]


@pytest.mark.parametrize("engine", ["auto", "layerwise"])
def test_a_step_is_the_same(factors, engine):
    steps = []
    for kept in (True, False):
        factors(kept)
        network, inputs = convolutions()

        def closure(network=network, inputs=inputs):
            prediction = network(inputs)
            return (prediction - 1).square().mean(), prediction

        optimizer = hig.HIG(network.parameters(), lr=0.1, rcond=1e-4, engine=engine)
        optimizer.step(closure)
        assert optimizer.report.engine == "layerwise"
        steps.append(
            torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
        )
    assert relative_error(steps[1], steps[0]) < 1e-7


def test_coupled_samples_are_noticed(forming):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh()).double()
    inputs = torch.randn(3, 2, 7, 7, dtype=torch.float64)

    def closure():
        prediction = network(inputs)
        return (prediction - 1).square().mean(), prediction

    with pytest.raises(hig.SampleDependenceError):
        hig.HIG(network.parameters(), rcond=1e-4, engine="layerwise").step(closure)


@pytest.mark.parametrize("samples", [(3, 4), (1, 2, 4)])
def test_ranks_exchange_formed_columns_and_factors_alike(monkeypatch, samples):
    """One rank forms columns, another, with fewer samples, holds factors."""
    original = layerwise_module._columns_are_smaller
    monkeypatch.setattr(
        layerwise_module,
        "_columns_are_smaller",
        lambda layer, prediction: len(prediction) > 2 and original(layer, prediction),
    )
    check("conv2d", samples, ["layers"])


def test_parts_are_cut_where_factors_are_cut(factors):
    network, inputs = convolutions(groups=2)
    factors(True)
    _, factored, _ = blocks_of(network, inputs)
    factors(False)
    _, formed, _ = blocks_of(network, inputs)
    for one, other in zip(factored, formed, strict=True):
        for width in (1, 5, 20, 1000):
            cut = [[p.matrix for p in block.parts(width, 7)] for block in (one, other)]
            assert all(isinstance(p, DenseBlock) for p in one.parts(width, 7))
            for a, b in zip(*cut, strict=True):
                assert relative_error(a, b) < 1e-12
