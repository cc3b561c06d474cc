r"""Joint Jacobian of a batch that comes in parts, one after the other: the rows of all of them.

The Gram matrix consists of blocks :math:`J_a J_b^T` of two parts, :math:`J^T J` is the sum over the
parts. No part needs its graph.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hig._jacobian.blocks import COPY_BYTES, DenseBlock, JointJacobian, sample_chunks
from hig._jacobian.engine import EngineResult

__all__ = ["StackedJacobian", "stacked"]

# Columns that two parts exchange as a matrix are cut to about this size.
WIDTH = 256


class StackedJacobian(JointJacobian):
    """Jacobian of several parts of a batch, with the same columns.

    Args:
        parts: the Jacobians of the parts, with as many outputs per sample each.
    """

    def __init__(self, parts: Sequence[JointJacobian]):
        samples = sum(part.samples for part in parts)
        super().__init__([], samples, parts[0].outputs, parts[0].like)
        self.parts = list(parts)
        self.shape = (samples * self.outputs, parts[0].shape[1])

    def gram(self) -> Tensor:
        """J Jᵀ: (n, n), float64."""
        n = self.shape[0]
        gram = self.like.new_zeros((n, n), dtype=torch.float64)
        ends = list(self._ends())
        for index, (rows, part) in enumerate(ends):
            gram[rows, rows] = part.gram()
            for others, other in ends[:index]:
                product = gram.new_zeros((part.shape[0], other.shape[0]))
                _add_product(part, other, product)
                gram[rows, others] = product
                gram[others, rows] = product.T
        return gram

    def normal(self) -> Tensor:
        """Jᵀ J: (P, P), float64."""
        return torch.stack([part.normal() for part in self.parts]).sum(0)

    def rows(self, samples: slice) -> Tensor:
        """Return the rows of the given samples: (samples * D, P)."""
        found, start = [], 0
        for part in self.parts:
            first = max(samples.start - start, 0)
            last = min(samples.stop - start, part.samples)
            if first < last:
                found.append(part.rows(slice(first, last)))
            start += part.samples
        return torch.cat(found)

    def vjp(self, weights: Tensor) -> Tensor:
        """Jᵀ w: (n,) float64 -> (P,) float64."""
        return torch.stack([part.vjp(weights[rows]) for rows, part in self._ends()]).sum(0)

    def jvp(self, direction: Tensor) -> Tensor:
        """J d: (P,) float64 -> (n,) float64."""
        return torch.cat([part.jvp(direction) for part in self.parts])

    def _ends(self) -> list[tuple[slice, JointJacobian]]:
        """Return the rows of each part among all n, with the part."""
        ends, start = [], 0
        for part in self.parts:
            ends.append((slice(start, start + part.shape[0]), part))
            start += part.shape[0]
        return ends


def stacked(results: Sequence[EngineResult], columns: Sequence[int]) -> EngineResult:
    """Return the Jacobian of all parts.

    Args:
        results: those of the parts.
        columns: the number of entries of each parameter.
    """
    first = results[0]
    notes = list(dict.fromkeys(note for result in results for note in result.notes))
    exact = all(result.layers_exact for result in results)
    routes = list(first.routes)
    for result in results[1:]:
        for index, route in enumerate(result.routes):
            routes[index] = _joined_route(routes[index], route)
    if len({(*result.order, *_widths(result)) for result in results}) == 1:
        jacobian = StackedJacobian([result.jacobian for result in results])
        return EngineResult(jacobian, first.order, routes, notes, exact)
    # A layer that is exact in one part only, or a parameter that one does not use.
    order = sorted({index for result in results for index in result.order})
    aligned = [_aligned(result, order, columns) for result in results]
    return EngineResult(StackedJacobian(aligned), order, routes, notes, exact)


def _joined_route(first: str, second: str) -> str:
    """Return the route of a parameter in two parts: the slower one, unless a part has none."""
    if first == second or "unused" in (first, second):
        return second if first == "unused" else first
    return "rows"


def _widths(result: EngineResult) -> list[int]:
    return [block.columns for block in result.jacobian.blocks]


def _aligned(result: EngineResult, order: Sequence[int], columns: Sequence[int]) -> JointJacobian:
    """Return a Jacobian as a matrix whose columns are in this order, zero for unused parameters."""
    jacobian = result.jacobian
    own = dict(
        zip(
            result.order,
            jacobian.dense().split([columns[i] for i in result.order], 1),
            strict=True,
        )
    )
    rows = jacobian.shape[0]
    some = next(iter(own.values()))
    pieces = [own[i] if i in own else some.new_zeros((rows, columns[i])) for i in order]
    block = DenseBlock(torch.cat(pieces, 1), jacobian.outputs)
    return JointJacobian([block], jacobian.samples, jacobian.outputs, jacobian.like)


def _add_product(first: JointJacobian, second: JointJacobian, product: Tensor) -> None:
    """Add J J'ᵀ of two parts to ``product`` (n, n'), float64."""
    most = max(product.shape)
    width = max(WIDTH, COPY_BYTES // (8 * most))
    for left, right in zip(first.blocks, second.blocks, strict=True):
        lefts, rights = list(left.parts(width, most)), list(right.parts(width, most))
        if [type(part) for part in lefts] == [type(part) for part in rights]:
            for part, other in zip(lefts, rights, strict=True):
                part.add_product(other, product)
            continue
        # One has its columns formed, since its factors are larger.
        whole = right.rows(slice(0, second.samples)).double()
        for samples in sample_chunks(first.samples, 8 * left.columns * first.outputs):
            rows = slice(samples.start * first.outputs, samples.stop * first.outputs)
            product[rows] += left.rows(samples).double() @ whole.T
