"""The factored columns of a layer against the same columns written out."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hig._jacobian import blocks as blocks_module
from hig._jacobian import factored_block as factored_block_module
from hig._jacobian.blocks import JointJacobian
from hig._jacobian.factored_block import FactoredBlock
from hig._spectral.decomposition import decompose
from hig._spectral.filters import HalfInverse
from tests.textbook import relative_error, textbook_power

# name -> samples, outputs, groups, uses, fan_in, fan_out
SIZES = {
    "one use": (5, 3, 1, 1, 4, 2),
    "many uses": (4, 2, 1, 7, 3, 2),
    "two uses": (3, 3, 1, 2, 4, 5),
    "groups": (4, 2, 3, 1, 2, 2),
    "groups and uses": (3, 2, 2, 5, 3, 2),
    "depthwise": (3, 2, 6, 4, 3, 1),
    "one sample": (1, 4, 1, 3, 2, 3),
    "one output": (6, 1, 1, 2, 2, 3),
    "scalar weight": (3, 2, 1, 1, 1, 1),
}
KINDS = {"weight": (True, False), "weight and bias": (True, True), "bias": (False, True)}
BRANCHES = {"by cost": None, "cross terms": True, "formed columns": False}


def randn(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


class Given:
    """Patches that are given as they are, (B, groups, U, in)."""

    def __init__(self, values):
        self.values = values

    def __call__(self, samples):
        return self.values[samples]

    def pieces(self, samples, most):
        chosen = self.values[samples].double()
        for start in range(0, chosen.shape[2], most):
            piece = chosen[:, :, start : start + most]
            yield slice(start, start + piece.shape[2]), piece

    def squares(self, samples):
        return self.values[samples].double().square().sum(-1)


def factored(size, kind, dtype=torch.float64):
    """A block and its columns in float64, written out use by use."""
    samples, outputs, groups, uses, fan_in, fan_out = SIZES[size]
    with_weight, with_bias = KINDS[kind]
    deltas = randn(samples, outputs, groups, uses, fan_out, dtype=dtype)
    inputs = randn(samples, groups, uses, fan_in, dtype=dtype, seed=1)
    patches = Given(inputs) if with_weight else None
    rows = []
    for b in range(samples):
        for d in range(outputs):
            row = []
            if with_weight:
                for g in range(groups):
                    outer = deltas.new_zeros(fan_out, fan_in).double()
                    for u in range(uses):
                        outer += torch.outer(deltas[b, d, g, u].double(), inputs[b, g, u].double())
                    row.append(outer.flatten())
            if with_bias:
                row.append(deltas[b, d].double().sum(1).flatten())
            rows.append(torch.cat(row))
    return FactoredBlock(deltas, patches, fan_in, with_bias), torch.stack(rows)


@pytest.fixture(params=BRANCHES)
def branch(request, monkeypatch):
    """Force one way to the Gram matrix, or leave the choice to the block."""
    forced = BRANCHES[request.param]
    if forced is not None:
        monkeypatch.setattr(FactoredBlock, "_cross_terms_are_cheaper", lambda self: forced)
    return forced


@pytest.fixture(params=[1, 500, 64 * 2**20])
def scratch(request, monkeypatch):
    """Scratch sizes at which the loops over samples, uses, channels and groups have many turns."""
    for module in (blocks_module, factored_block_module):  # imported by value
        monkeypatch.setattr(module, "SCRATCH_BYTES", request.param)
        monkeypatch.setattr(module, "COPY_BYTES", request.param)
    return request.param


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gram(size, kind, dtype, branch, scratch):
    block, columns = factored(size, kind, dtype)
    start = randn(len(columns), len(columns), seed=2)
    gram = start.clone()
    block.add_gram(gram)
    assert relative_error(gram - start, columns @ columns.T) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_and_rows(size, kind, dtype, scratch):
    block, columns = factored(size, kind, dtype)
    assert block.columns == columns.shape[1]
    weights, direction = randn(len(columns), seed=2), randn(block.columns, seed=3)
    samples, outputs = SIZES[size][:2]
    for found, expected in [
        (block.vjp(weights), columns.T @ weights),
        (block.jvp(direction), columns @ direction),
        (block.rows(slice(0, samples)), columns),
        (block.rows(slice(samples - 1, samples)), columns[-outputs:]),
    ]:
        assert found.dtype == torch.float64
        assert found.shape == expected.shape
        assert relative_error(found, expected) < 1e-12


def test_factors_may_differ_in_dtype():
    """As under autocast: the input in float32, the gradient of the output in bfloat16."""
    block, _ = factored("many uses", "weight and bias", torch.float32)
    block.deltas = block.deltas.bfloat16()
    deltas, inputs = block.deltas.double(), block.patches(slice(None)).double()
    weight = torch.einsum("bdguo,bgui->bdgoi", deltas, inputs).flatten(2).flatten(0, 1)
    columns = torch.cat([weight, deltas.sum(3).flatten(2).flatten(0, 1)], dim=1)
    gram = torch.zeros(len(columns), len(columns), dtype=torch.float64)
    block.add_gram(gram)
    assert relative_error(gram, columns @ columns.T) < 1e-12
    assert relative_error(block.rows(slice(0, block.samples)), columns) < 1e-12


def test_the_branch_is_chosen_by_cost():
    def chosen(samples, outputs, uses, fan_in, fan_out):
        deltas = torch.empty(samples, outputs, 1, uses, fan_out)
        return FactoredBlock(deltas, Given(None), fan_in, False)._cross_terms_are_cheaper()

    assert chosen(16, 4, 1, 50, 50)  # a plain layer: Khatri-Rao
    assert not chosen(16, 4, 100, 5, 5)  # a small kernel at many positions
    assert chosen(4, 2, 3, 300, 300)  # a wide layer at few time steps


@pytest.mark.parametrize("route", ["column_gram", "svd"])
def test_float32_factors_keep_small_singular_values(route):
    """Of an ill-conditioned layer: forming its rows in float32 would cost three digits."""
    deltas = (randn(100, 2, 1, 1, 5) * torch.logspace(0, -2, 5)).float()
    inputs = (randn(100, 1, 1, 6, seed=1) * torch.logspace(0, -4, 6)).float()
    block = FactoredBlock(deltas, Given(inputs), 6, bias=True)
    exact = torch.einsum("bdo,bi->bdoi", deltas[:, :, 0, 0].double(), inputs[:, 0, 0].double())
    exact = torch.cat([exact.flatten(2), deltas[:, :, 0, 0].double()], dim=2).flatten(0, 1)
    values = torch.linalg.svdvals(exact)
    assert 1e-7 < float(values[-1] / values[0]) < 1e-5
    joint = JointJacobian([block], 100, 2, like=deltas)
    matrix = joint.normal() if route == "column_gram" else joint.dense()
    gradient = randn(200, seed=2)
    half_inverse = HalfInverse(-0.5, 1e-7)
    found, _ = decompose(joint, matrix, route, half_inverse).step(half_inverse, gradient)
    assert relative_error(found, textbook_power(exact, gradient, -0.5, 1e-7)) < 1e-10


class LargestTensor(TorchDispatchMode):
    """Entries of the largest storage that any operation returned."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                entries = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.largest = max(self.largest, entries)
        return result


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("uses", "groups", "fan"), [(1, 1, 128), (20, 1, 120), (2, 1, 100), (4, 4, 80)]
)
def test_the_columns_are_never_held(monkeypatch, kind, uses, groups, fan):
    samples, outputs, scratch = 6, 8, 2**18
    monkeypatch.setattr(blocks_module, "SCRATCH_BYTES", scratch)
    monkeypatch.setattr(factored_block_module, "SCRATCH_BYTES", scratch)
    with_weight, with_bias = KINDS[kind]
    deltas = randn(samples, outputs, groups, uses, fan, dtype=torch.float32)
    inputs = randn(samples, groups, uses, fan, dtype=torch.float32)
    patches = Given(inputs) if with_weight else None
    block = FactoredBlock(deltas, patches, fan, with_bias)
    n = samples * outputs
    weights, direction = randn(n), randn(block.columns)
    gram = torch.zeros(n, n, dtype=torch.float64)
    with LargestTensor() as seen:
        block.add_gram(gram)
        block.vjp(weights)
        block.jvp(direction)
    # What is held anyway: the factors, the Gram matrix and one vector of parameters.
    needed = max(deltas.numel(), inputs.numel(), n * n, block.columns)
    assert seen.largest >= min(needed, n * n)  # the mode does see what is allocated
    assert seen.largest <= max(needed, scratch // 8)
    if with_weight:
        assert seen.largest < n * block.columns / 4
