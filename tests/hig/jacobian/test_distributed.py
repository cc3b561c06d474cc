"""Rows on several ranks against all rows in one place; the ranks are threads here."""

import pytest
import torch

from hig._jacobian import blocks as blocks_module
from hig._jacobian import distributed as distributed_module
from hig._jacobian import factored_block as factored_block_module
from hig._jacobian.blocks import DenseBlock, JointJacobian
from hig._jacobian.capture import Capture
from hig._jacobian.distributed import BatchSplit, DistributedJacobian, _pairs
from hig._jacobian.layerwise import find_layers, layer_blocks
from hig._jacobian.rows import StreamedBlock
from hig._torch.batched_vjp import BatchedVJP
from hig._torch.ranks import Ranks
from tests.hig import networks
from tests.hig.rank_threads import together
from tests.textbook import relative_error, textbook_jacobian


def jacobian_of(name, chosen, kind, total=7, held=3000):
    network, inputs = networks.build(name)
    inputs = torch.randn(total, *inputs.shape[1:], dtype=torch.float64)
    parameters = list(network.parameters())
    with Capture(parameters) as capture:
        prediction = network(inputs[chosen])
    if kind == "layers":
        layers = find_layers(capture.uses, len(prediction))
        blocks = layer_blocks(layers, prediction, BatchedVJP())
        parameters = [parameter for layer in layers for parameter in layer.parameters]
    elif kind == "streamed":
        blocks = [StreamedBlock(prediction, parameters, BatchedVJP(), held)]
    else:
        matrix = textbook_jacobian(prediction, parameters)
        blocks = [DenseBlock(matrix, prediction[0].numel())]
    outputs = prediction[0].numel()
    expected = textbook_jacobian(prediction, parameters)
    return JointJacobian(blocks, len(prediction), outputs, like=prediction), expected


SAMPLES = [(7,), (3, 4), (1, 6), (2, 2, 3), (1, 3, 1, 2), (1, 1, 1, 2, 2)]


@pytest.fixture(params=[64 * 2**20, 3000])
def scratch(request, monkeypatch):
    """At the smaller size columns are exchanged a few at a time."""
    for module in (blocks_module, factored_block_module, distributed_module):
        monkeypatch.setattr(module, "SCRATCH_BYTES", request.param)


@pytest.fixture(params=[None, True, False], ids=["by cost", "cross terms", "formed columns"])
def branch(request, monkeypatch):
    if request.param is not None:
        block = factored_block_module.FactoredBlock
        monkeypatch.setattr(block, "_cross_terms_are_cheaper", lambda self: request.param)


def check(name, samples, kinds):
    whole, expected = jacobian_of(name, slice(None), kinds[0])
    outputs = whole.outputs
    weights = torch.randn(len(expected), dtype=torch.float64)
    direction = torch.randn(expected.shape[1], dtype=torch.float64)

    shares = []  # made one after the other: they draw from torch's one generator
    for rank, count in enumerate(samples):
        chosen = slice(sum(samples[:rank]), sum(samples[:rank]) + count)
        shares.append(jacobian_of(name, chosen, kinds[rank % len(kinds)])[0])

    def local(split):
        shared = DistributedJacobian(shares[split.ranks.rank], split)
        assert shared.shape == expected.shape
        found = [shared.gram(), shared.normal(), shared.dense()]
        return [*found, shared.vjp(weights + split.ranks.rank), shared.jvp(direction)]

    wanted = [expected @ expected.T, expected.T @ expected, expected]
    wanted += [expected.T @ weights, expected @ direction]
    gather = together(samples, outputs, local)
    for found in gather:
        assert torch.equal(found[0], gather[0][0])
        for one, other in zip(found, wanted, strict=True):
            assert relative_error(one, other) < 1e-13


@pytest.mark.parametrize("samples", SAMPLES)
def test_layers_and_rows_of_many_ranks(samples, scratch):
    check("conv2d", samples, ["layers"])
    check("mlp", samples, ["matrix"])


@pytest.mark.parametrize("name", ["mlp", "conv1d", "depthwise", "feedback", "shared", "conv3d"])
def test_every_route_of_the_factors(name, scratch, branch):
    check(name, (3, 4), ["layers"])


def test_a_rank_that_holds_its_rows_and_one_that_streams_them(scratch):
    check("mlp", (3, 4), ["streamed", "matrix"])


def test_columns_are_exchanged_where_they_are_smaller_than_the_factors():
    # Few inputs and many positions: a convolution's first layer.
    network = torch.nn.Sequential(torch.nn.Conv1d(1, 2, 3), torch.nn.Flatten()).double()
    inputs = torch.randn(2, 1, 20, dtype=torch.float64)
    with Capture(network.parameters()) as capture:
        prediction = network(inputs).sum(1, keepdim=True)
    (block,) = layer_blocks(find_layers(capture.uses, 2), prediction, BatchedVJP())
    parts = list(block.parts(width=2, rows=2))
    assert all(isinstance(part, DenseBlock) for part in parts)
    expected = textbook_jacobian(prediction, network.parameters())
    assert relative_error(torch.cat([part.matrix for part in parts], 1), expected) < 1e-14


@pytest.mark.parametrize("size", range(1, 8))
def test_every_pair_of_samples_of_two_ranks_is_multiplied_once(size):
    samples = [1 + rank % 3 for rank in range(size)]
    times = {}
    for rank in range(size):
        for pair in _pairs(rank, samples):
            assert rank in (pair.left, pair.right)
            for sample in range(samples[pair.left])[pair.samples]:
                key = frozenset({(pair.left, sample), pair.right})
                times[key] = times.get(key, 0) + 1
    left = {key for key in times if times[key] != 1}
    assert not left
    covered = sum(
        (pair.samples.stop - pair.samples.start) * samples[pair.right]
        for rank in range(size)
        for pair in _pairs(rank, samples)
    )
    assert covered == (sum(samples) ** 2 - sum(count**2 for count in samples)) // 2


@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_the_work_is_shared_evenly(size):
    samples = [6] * size
    work = [
        sum(pair.samples.stop - pair.samples.start for pair in _pairs(rank, samples))
        for rank in range(size)
    ]
    assert max(work) == min(work)


class Other(Ranks):
    """This process as the second of three; the others hold the same tensor."""

    def __init__(self):
        super().__init__()
        self.rank, self.size = 1, 3

    def every(self, tensor):
        return [tensor] * 3


def test_rows_follow_one_another():
    split = BatchSplit(Other(), [2, 3, 1], 4)
    assert split.rows == 24
    assert [split.rows_of(rank) for rank in range(3)] == [slice(0, 8), slice(8, 20), slice(20, 24)]
    assert split.local_rows == slice(8, 20)


def test_weights_make_the_mean_over_all_samples():
    assert BatchSplit(Other(), [2, 3, 1], 4).weight("mean") == 0.5
    assert BatchSplit(Other(), [2, 3, 1], 4).weight("sum") == 1.0
    assert BatchSplit(Ranks(), [5], 4).weight("mean") == 1.0


@pytest.mark.parametrize("each", [1, 4])
def test_shorter_tensors_are_filled_up_and_cut(each):
    split = BatchSplit(Other(), [4, 3, 1], 4)
    own = torch.arange(3.0 * each * 2).view(3 * each, 2)
    found = split.gather(own)
    assert [len(part) for part in found] == [4 * each, 3 * each, each]
    assert torch.equal(found[1], own)
    assert not found[0][3 * each :].any()
    assert split.gather_concatenated(own).shape == (8 * each, 2)
