"""Jacobian columns of parameters that determine a weight, from those of the weight."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from hig._jacobian.factored_block import FactoredBlock
from hig._jacobian.rearranged_block import RearrangedBlock

__all__ = ["PulledBlock"]


class PulledBlock:
    """Rows of parameters: those of a weight, pulled back to what determines it.

    Args:
        weight: columns of the weight.
        pull: takes rows (k, entries of the weight) to rows (k, columns).
        columns: number of entries of the parameters.
    """

    def __init__(
        self,
        weight: FactoredBlock | RearrangedBlock,
        pull: Callable[[Tensor], Tensor],
        columns: int,
    ):
        self._weight, self._pull, self.columns = weight, pull, columns

    def form_rows(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield the rows of a few samples at a time, as :meth:`FactoredBlock.form_rows`."""
        for samples, rows, squares in self._weight.form_rows():
            pulled = self._pull(rows)
            yield samples, pulled, pulled.square().sum(1).view_as(squares)

    @property
    def like(self) -> Tensor:
        """Any tensor on the device."""
        return self._weight.like

    @property
    def dtypes(self) -> set[torch.dtype]:
        """Precisions in which the factors were computed."""
        return self._weight.dtypes
