"""Dense blocks and rows of blocks: every product against the matrix, whatever the scratch size."""

import pytest
import torch

from hig._jacobian import blocks as blocks_module
from hig._jacobian.blocks import DenseBlock, JointJacobian, add_self_product, sample_chunks
from hig._jacobian.factored_block import FactoredBlock
from tests.hig.jacobian.test_factored_block import Given
from tests.textbook import relative_error

SCRATCH = [1, 100, 1000, blocks_module.SCRATCH_BYTES]


def randn(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def assert_products(block, matrix, tolerance=1e-13):
    """Gram, Jᵀ w and J d of a block or joint Jacobian against a float64 matrix."""
    n, columns = matrix.shape
    weights, direction = randn(n, seed=1), randn(columns, seed=2)
    start = randn(n, n, seed=3)
    gram = start.clone()
    block.add_gram(gram)
    assert relative_error(gram - start, matrix @ matrix.T) < 10 * tolerance
    for found, expected in [
        (block.vjp(weights), matrix.T @ weights),
        (block.jvp(direction), matrix @ direction),
    ]:
        assert found.dtype == torch.float64
        assert found.shape == expected.shape
        assert relative_error(found, expected) < tolerance


@pytest.mark.parametrize("samples", [0, 1, 5, 64])
@pytest.mark.parametrize("bytes_per_sample", [0, 1, 30, 10**9])
@pytest.mark.parametrize("scratch", [1, 64, 100])
def test_chunks_cover_every_sample_once_and_fit(monkeypatch, samples, bytes_per_sample, scratch):
    monkeypatch.setattr(blocks_module, "SCRATCH_BYTES", scratch)
    chunks = list(sample_chunks(samples, bytes_per_sample))
    assert chunks == list(sample_chunks(samples, bytes_per_sample, scratch))
    covered = [index for chunk in chunks for index in range(chunk.start, chunk.stop)]
    assert covered == list(range(samples))
    for chunk in chunks:
        size = chunk.stop - chunk.start
        assert size == 1 or size * bytes_per_sample <= scratch  # one sample is the least there is
    if max(1, bytes_per_sample) * samples <= scratch:
        assert len(chunks) <= 1


@pytest.mark.parametrize("shape", [(6, 4), (6, 30), (1, 5), (6, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scratch", SCRATCH)
def test_dense_products(monkeypatch, shape, dtype, scratch):
    monkeypatch.setattr(blocks_module, "SCRATCH_BYTES", scratch)
    monkeypatch.setattr(blocks_module, "COPY_BYTES", scratch)
    matrix = randn(*shape, dtype=dtype)
    assert DenseBlock(matrix).columns == shape[1]
    # float32 entries, float64 sums: no more than float64 rounding may be lost.
    assert_products(DenseBlock(matrix), matrix.double())


def test_dense_block_makes_no_float64_copy_of_a_large_matrix(monkeypatch):
    monkeypatch.setattr(blocks_module, "COPY_BYTES", 4096)
    largest = []
    original = torch.Tensor.double
    monkeypatch.setattr(
        torch.Tensor, "double", lambda self: largest.append(self.numel()) or original(self)
    )
    block = DenseBlock(randn(16, 4000, dtype=torch.float32))
    block.add_gram(torch.zeros(16, 16, dtype=torch.float64))
    assert max(largest) * 8 <= 4096
    largest.clear()
    block.vjp(randn(16))
    block.jvp(randn(4000))
    assert max(largest) == 4000  # a row at a time


def test_rows_of_samples():
    matrix = randn(6, 4)
    block = DenseBlock(matrix, outputs=3)
    assert torch.equal(block.rows(slice(0, 2)), matrix)
    assert torch.equal(block.rows(slice(1, 2)), matrix[3:])
    assert torch.equal(block.rows(slice(0, 1)), matrix[:3])


def joint_of_three(samples=5, outputs=2):
    """Two dense blocks, in different precision, around a factored one; and its matrix."""
    first = randn(samples * outputs, 3, dtype=torch.float32)
    last = randn(samples * outputs, 4, seed=4)
    deltas, patches = randn(samples, outputs, 1, 1, 2, seed=5), randn(samples, 1, 1, 3, seed=6)
    factored = FactoredBlock(deltas, Given(patches), 3, bias=True)
    inner = torch.einsum("bdo,bi->bdoi", deltas[:, :, 0, 0], patches[:, 0, 0]).flatten(2)
    inner = torch.cat([inner, deltas[:, :, 0, 0]], dim=2).flatten(0, 1)
    blocks = [DenseBlock(first, outputs), factored, DenseBlock(last, outputs)]
    joint = JointJacobian(blocks, samples, outputs, like=last)
    return joint, torch.cat([first.double(), inner, last], dim=1)


@pytest.mark.parametrize("scratch", SCRATCH)
def test_joint_jacobian_is_the_concatenation_of_its_blocks(monkeypatch, scratch):
    monkeypatch.setattr(blocks_module, "SCRATCH_BYTES", scratch)
    joint, matrix = joint_of_three()
    assert joint.shape == matrix.shape
    weights, direction = randn(len(matrix)), randn(matrix.shape[1])
    assert torch.equal(joint.dense(), matrix)
    assert torch.equal(joint.rows(slice(1, 3)), matrix[2:6])
    assert relative_error(joint.gram(), matrix @ matrix.T) < 1e-13
    assert relative_error(joint.normal(), matrix.T @ matrix) < 1e-13
    assert relative_error(joint.vjp(weights), matrix.T @ weights) < 1e-13
    assert relative_error(joint.jvp(direction), matrix @ direction) < 1e-13


@pytest.mark.parametrize("height", [1, 3, 7, 100])
@pytest.mark.parametrize("size", [1, 6, 7, 40])
def test_self_products_in_strips(size, height, monkeypatch):
    monkeypatch.setattr(blocks_module, "STRIP", height)
    factor, start = randn(size, 5), randn(size, size, seed=3)
    for given in (factor, randn(5, size).T):  # the second one is not contiguous
        total = start.clone()
        add_self_product(total, given)
        assert relative_error(total - start, given @ given.T) < 1e-14
