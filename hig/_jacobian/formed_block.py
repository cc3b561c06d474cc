r"""The Jacobian columns of one layer, formed while the backward passes arrive.

A convolution over a large field has few weights, and the gradients of its outputs take far more
memory than the columns that they give. They are multiplied out, a batch of passes at a time, and
never held together.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from hig._jacobian.blocks import DenseBlock
from hig._jacobian.factored_block import FactoredBlock, part_widths

__all__ = ["FormedBlock"]


class FormedBlock(DenseBlock):
    """Columns in float64, as exact as the products with the factors that they are formed of.

    Args:
        samples: B.
        outputs: D.
        like: the first factors, of some of the outputs; they decide on the columns.
    """

    def __init__(self, samples: int, outputs: int, like: FactoredBlock):
        matrix = like.deltas.new_zeros((samples * outputs, like.columns), dtype=torch.float64)
        super().__init__(matrix, outputs)
        # Precisions of what the columns were formed of.
        self.dtypes = {like.deltas.dtype} | {part.dtype for part in like.factors()}
        self._squares = matrix.new_zeros((samples, outputs))
        self._shape = (like.groups, like.fan_out, like.fan_in, like.bias)

    def add(self, chosen: slice, factors: FactoredBlock) -> None:
        """Fill in the rows of some outputs of all samples.

        Args:
            chosen: the outputs.
            factors: of these outputs alone.
        """
        matrix = self.matrix.unflatten(0, self._squares.shape)
        for samples, rows, squares in factors.formed():
            matrix[samples, chosen] = rows.unflatten(0, (-1, factors.outputs))
            self._squares[samples, chosen] = squares

    def row_squares(self) -> Tensor:
        """Squared norms of the rows, (n,) float64, as if uses were orthogonal to one another."""
        return self._squares.flatten()

    def parts(self, width: int, rows: int) -> Iterator[DenseBlock]:
        """A few columns at a time, cut where ranks that hold the factors cut theirs."""
        for matrix in self.matrix.split(part_widths(*self._shape, width), dim=1):
            yield DenseBlock(matrix, self._outputs)
