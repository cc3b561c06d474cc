r"""Jacobian columns of one layer, formed while the backward passes run.

A convolution over a large field has few weights, and the gradients of its outputs take far more
memory than its columns. The columns are formed from one batch of passes at a time, and the
gradients of all outputs are never held together.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from hig._jacobian.blocks import DenseBlock
from hig._jacobian.factored_block import FactoredBlock, part_widths
from hig._jacobian.pulled_block import PulledBlock
from hig._jacobian.rearranged_block import RearrangedBlock

__all__ = ["Factors", "FormedBlock"]

Factors = FactoredBlock | RearrangedBlock | PulledBlock


class FormedBlock(DenseBlock):
    """Columns in float64, as exact as products with the factors that they are formed of.

    Args:
        samples: B.
        outputs: D.
        like: the first factors, of some of the outputs; they determine the columns.
    """

    def __init__(self, samples: int, outputs: int, like: Factors):
        matrix = like.like.new_zeros((samples * outputs, like.columns), dtype=torch.float64)
        super().__init__(matrix, outputs)
        # Precisions of the factors.
        self.dtypes = set(like.dtypes)
        self._squares = matrix.new_zeros((samples, outputs))
        self._shape = (1, like.columns, 1, False)
        if isinstance(like, FactoredBlock):
            self._shape = (like.groups, like.fan_out, like.fan_in, like.bias)

    def add(self, outputs: slice, *factors: Factors) -> None:
        """Fill in the rows of some outputs of all samples: the sum of those of some factors.

        Args:
            outputs: a slice of the D outputs.
            factors: the factors of these outputs alone.
        """
        matrix, sizes = self.matrix.unflatten(0, self._squares.shape), self._squares
        first, *others = factors
        for samples, rows, squares in first.form_rows():
            matrix[samples, outputs] = rows.unflatten(0, squares.shape)
            sizes[samples, outputs] = squares
        for other in others:
            self.dtypes |= other.dtypes
            for samples, rows, squares in other.form_rows():
                matrix[samples, outputs] += rows.unflatten(0, squares.shape)
                sizes[samples, outputs] += squares
        # Where uses add up, the rounding is that of the sum.
        sums = matrix[:, outputs].square().sum(-1)
        sizes[:, outputs] = torch.maximum(sizes[:, outputs], sums)

    def with_outputs(self, outputs: int) -> "FormedBlock":
        """Return the block of entries of a prediction as that of samples with several outputs."""
        self._squares, self._outputs = self._squares.view(-1, outputs), outputs
        return self

    def with_samples_second(self) -> "FormedBlock":
        """Return the block of outputs and samples that have changed places."""
        squares = self._squares
        self.matrix = self.matrix.unflatten(0, squares.shape).transpose(0, 1).flatten(0, 1)
        self._squares, self._outputs = squares.T.contiguous(), len(squares)
        return self

    def row_squares(self) -> Tensor:
        """Squared norms of the rows, (n,) float64, as if uses were orthogonal to one another."""
        return self._squares.flatten()

    def parts(self, width: int, rows: int) -> Iterator[DenseBlock]:
        """Yield a few columns at a time, cut where process ranks with the factors cut theirs."""
        for matrix in self.matrix.split(part_widths(*self._shape, width), dim=1):
            yield DenseBlock(matrix, self._outputs)
