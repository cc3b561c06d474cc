"""Jacobian columns whose order, or number, is another one than that of a parameter's entries."""

from collections.abc import Iterator

import torch
from torch import Tensor

from hig._jacobian.factored_block import FactoredBlock

__all__ = ["RearrangedBlock"]


class RearrangedBlock:
    """Columns of a parameter, from factors whose weights are entries of it in another order.

    Args:
        factors: the factors.
        places: the entry of the parameter for each of their columns, int64.
        columns: number of entries; those without a weight have a column of zeros.
    """

    def __init__(self, factors: FactoredBlock, places: Tensor, columns: int):
        self._factors, self.columns = factors, columns
        self._places = places.to(factors.deltas.device)

    @property
    def like(self) -> Tensor:
        """Any tensor on the device."""
        return self._factors.deltas

    def add_gram(self, gram: Tensor) -> None:
        """Add J Jᵀ to ``gram``: the order of the columns does not matter if each is there once."""
        self._factors.add_gram(gram)

    def vjp(self, weights: Tensor) -> Tensor:
        """Jᵀ w in float64."""
        return self._scattered(self._factors.vjp(weights))

    def jvp(self, direction: Tensor) -> Tensor:
        """J d in float64."""
        return self._factors.jvp(direction[self._places])

    def rows(self, samples: slice) -> Tensor:
        """Return the rows of the given samples in float64."""
        return self._scattered(self._factors.rows(samples))

    def form_rows(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield the rows of a few samples at a time, as :meth:`FactoredBlock.form_rows`."""
        for samples, rows, squares in self._factors.form_rows():
            yield samples, self._scattered(rows), squares

    def row_squares(self) -> Tensor:
        """Squared norms of the rows, (n,) float64, as if uses were orthogonal to one another."""
        return self._factors.row_squares()

    @property
    def dtypes(self) -> set[torch.dtype]:
        """Precisions in which the factors were computed."""
        return self._factors.dtypes

    def parts(self, width: int, rows: int) -> Iterator[FactoredBlock]:
        """Yield the factors, in their own order on every process rank."""
        yield self._factors

    def _scattered(self, values: Tensor) -> Tensor:
        result = values.new_zeros((*values.shape[:-1], self.columns))
        return result.index_add_(-1, self._places, values)
