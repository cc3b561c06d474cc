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

__all__ = ["FormedBlock"]


class FormedBlock(DenseBlock):
    """Columns in float64, as exact as products with the factors that they are formed of.

    Args:
        samples: B.
        outputs: D.
        like: the first factors, of some of the outputs; they determine the columns.
    """

    def __init__(self, samples: int, outputs: int, like: FactoredBlock):
        matrix = like.deltas.new_zeros((samples * outputs, like.columns), dtype=torch.float64)
        super().__init__(matrix, outputs)
        # Precisions of the factors.
        self.dtypes = {like.deltas.dtype} | {part.dtype for part in like.factors()}
        self._squares = matrix.new_zeros((samples, outputs))
        self._shape = (like.groups, like.fan_out, like.fan_in, like.bias)

    def add(self, outputs: slice, factors: FactoredBlock) -> None:
        """Fill in the rows of some outputs of all samples.

        Args:
            outputs: a slice of the D outputs.
            factors: the factors of these outputs alone.
        """
        matrix = self.matrix.unflatten(0, self._squares.shape)
        for samples, rows, squares in factors.form_rows():
            matrix[samples, outputs] = rows.unflatten(0, (-1, factors.outputs))
            # Where uses add up, the rounding is that of the sum.
            size = rows.square().sum(1).view_as(squares)
            self._squares[samples, outputs] = torch.maximum(squares, size)

    def row_squares(self) -> Tensor:
        """Squared norms of the rows, (n,) float64, as if uses were orthogonal to one another."""
        return self._squares.flatten()

    def parts(self, width: int, rows: int) -> Iterator[DenseBlock]:
        """Yield a few columns at a time, cut where process ranks with the factors cut theirs."""
        for matrix in self.matrix.split(part_widths(*self._shape, width), dim=1):
            yield DenseBlock(matrix, self._outputs)
