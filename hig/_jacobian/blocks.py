r"""Column blocks of a joint Jacobian, and the Jacobian as a row of such blocks.

Linear algebra only. A block holds the columns of :math:`J` that belong to some parameters, in a
form of its own (a matrix, factors, or products by autograd); the joint Jacobian adds and
concatenates their results. All sums are in float64, of factors in their own dtype.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol, Self

import torch
from torch import Tensor

__all__ = ["Block", "DenseBlock", "JointJacobian", "Part", "add_self_product", "sample_chunks"]

# Bytes of float64 scratch that one operation may use.
SCRATCH_BYTES = 64 * 2**20
# Bytes of one float64 copy of a part of a matrix. The allocator keeps such a piece for the next
# one; tens of megabytes go back to the system, and cost a page fault per 4 kB again.
COPY_BYTES = 8 * 2**20
# Number of horizontal strips of a symmetric product, and their smallest height.
STRIPS, STRIP = 8, 128


class Block(Protocol):
    """Columns of the joint Jacobian; B samples with D outputs each give n = B * D rows."""

    columns: int

    def add_gram(self, gram: Tensor) -> None:
        """Add this block's share of J Jᵀ to ``gram`` (n, n), float64, in place."""
        ...

    def vjp(self, weights: Tensor) -> Tensor:
        """Jᵀ w: (n,) float64 -> (columns,) float64."""
        ...

    def jvp(self, direction: Tensor) -> Tensor:
        """J d: (columns,) float64 -> (n,) float64."""
        ...

    def rows(self, samples: slice) -> Tensor:
        """Return the rows of the given samples: (samples * D, columns), exact for the factors."""
        ...

    def parts(self, width: int, rows: int) -> Iterator["Part"]:
        """Yield the block in parts for exchange, cut at the same columns on every process rank.

        Args:
            width: columns of a part that is exchanged as a matrix.
            rows: the largest number of rows of any process rank.
        """
        ...


class Part(Protocol):
    """Some columns, in a form that another process rank can multiply with its own."""

    def factors(self) -> list[Tensor]:
        """Return the tensors (B, ...) that the columns are computed from."""
        ...

    def of(self, factors: list[Tensor]) -> Self:
        """Return the same columns for other samples, from the ``factors`` of these."""
        ...

    def add_gram(self, gram: Tensor) -> None:
        """Add J Jᵀ to ``gram`` (n, n), float64, in place."""
        ...

    def add_product(self, other: Self, product: Tensor) -> None:
        """Add J J'ᵀ, with J' the columns of ``other``, to ``product`` (n, n'), float64."""
        ...


class DenseBlock:
    """Block held as a matrix.

    Args:
        matrix: (n, columns), any floating dtype.
        outputs: D, rows per sample.
    """

    def __init__(self, matrix: Tensor, outputs: int = 1):
        self.matrix = matrix
        self.columns = matrix.shape[1]
        self._outputs = outputs

    def add_gram(self, gram: Tensor) -> None:
        """Add J Jᵀ to ``gram``; float64 copies of a few columns at a time."""
        width = max(1, COPY_BYTES // (8 * len(self.matrix)))
        for part in self.matrix.split(width, dim=1):
            add_self_product(gram, part.double())

    def vjp(self, weights: Tensor) -> Tensor:
        """Jᵀ w in float64."""
        result = weights.new_zeros(self.columns)
        for rows in sample_chunks(len(weights), 8 * self.columns, COPY_BYTES):
            result.addmv_(self.matrix[rows].double().T, weights[rows])
        return result

    def jvp(self, direction: Tensor) -> Tensor:
        """J d in float64."""
        chunks = sample_chunks(len(self.matrix), 8 * self.columns, COPY_BYTES)
        return torch.cat([self.matrix[rows].double() @ direction for rows in chunks])

    def rows(self, samples: slice) -> Tensor:
        """Return the rows of the given samples, a view."""
        return self.matrix[samples.start * self._outputs : samples.stop * self._outputs]

    def parts(self, width: int, rows: int) -> Iterator["DenseBlock"]:
        """Yield a few columns at a time."""
        for matrix in self.matrix.split(width, dim=1):
            yield DenseBlock(matrix, self._outputs)

    def factors(self) -> list[Tensor]:
        """Return the matrix, (B, D, columns)."""
        return [self.matrix.unflatten(0, (-1, self._outputs))]

    def of(self, factors: list[Tensor]) -> "DenseBlock":
        """Return the same columns for other samples."""
        return DenseBlock(factors[0].flatten(0, 1), self._outputs)

    def add_product(self, other: "DenseBlock", product: Tensor) -> None:
        """Add J J'ᵀ to ``product``, in float64."""
        product.addmm_(self.matrix.double(), other.matrix.double().T)


class JointJacobian:
    """Jacobian of all outputs of a batch with respect to all parameters.

    Args:
        blocks: the blocks, in the order of the columns.
        samples: B.
        outputs: D, outputs per sample; row ``b * D + d`` is output d of sample b.
        like: any tensor on the device of the blocks.
    """

    def __init__(self, blocks: Sequence[Block], samples: int, outputs: int, like: Tensor):
        self.blocks = list(blocks)
        self.samples, self.outputs = samples, outputs
        self.shape = (samples * outputs, sum(block.columns for block in self.blocks))
        self.like = like

    def gram(self) -> Tensor:
        """J Jᵀ: (n, n), float64."""
        n = self.shape[0]
        gram = self.like.new_zeros((n, n), dtype=torch.float64)
        for block in self.blocks:
            block.add_gram(gram)
        return gram

    def normal(self) -> Tensor:
        """Jᵀ J: (P, P), float64; rows of a few samples at a time."""
        # Jᵀ J = Σ_b J_bᵀ J_b over the rows J_b of each sample: all blocks of columns are needed at
        # once, as their cross products are entries of Jᵀ J, but never all rows.
        columns = self.shape[1]
        normal = self.like.new_zeros((columns, columns), dtype=torch.float64)
        for samples in sample_chunks(self.samples, 8 * columns * self.outputs):
            matrices = [block.rows(samples) for block in self.blocks]
            # A single sample may have more rows than fit into the scratch size.
            for rows in sample_chunks(len(matrices[0]), 8 * columns):
                part = torch.cat([matrix[rows].double() for matrix in matrices], dim=1)
                add_self_product(normal, part.T)
        return normal

    def rows(self, samples: slice) -> Tensor:
        """Return the rows of the given samples: (samples * D, P)."""
        return torch.cat([block.rows(samples) for block in self.blocks], dim=1)

    def dense(self) -> Tensor:
        """Return J itself: (n, P). Only for Jacobians that are known to be small."""
        return self.rows(slice(0, self.samples))

    def vjp(self, weights: Tensor) -> Tensor:
        """Jᵀ w: (n,) float64 -> (P,) float64."""
        return torch.cat([block.vjp(weights) for block in self.blocks])

    def jvp(self, direction: Tensor) -> Tensor:
        """J d: (P,) float64 -> (n,) float64."""
        parts = direction.split([block.columns for block in self.blocks])
        result = direction.new_zeros(self.shape[0])
        for block, part in zip(self.blocks, parts, strict=True):
            result += block.jvp(part)
        return result


def add_self_product(total: Tensor, factor: Tensor) -> None:
    """Add A Aᵀ to ``total`` (k, k), in place, for A (k, ...): the lower half, mirrored.

    A general product would compute every entry twice; BLAS' symmetric one is not in torch.
    """
    size = max(STRIP, -(-len(factor) // STRIPS))  # rounded up
    for start in range(0, len(factor), size):
        stop = min(start + size, len(factor))
        # A strip ends at its diagonal block: the sum of all strips is about half of the square.
        strip = factor[start:stop] @ factor[:stop].T
        total[start:stop, :stop] += strip
        # Mirror what lies left of the diagonal block; that block is symmetric already.
        total[:start, start:stop] += strip[:, :start].T


def sample_chunks(samples: int, bytes_per_sample: int, most: int | None = None) -> Iterator[slice]:
    """Yield slices of samples whose float64 copies fit into ``most`` bytes, by default scratch."""
    size = max(1, (SCRATCH_BYTES if most is None else most) // max(1, bytes_per_sample))
    for start in range(0, samples, size):
        yield slice(start, min(start + size, samples))
