"""Engine ``rows``: one backward pass per output, exact for every differentiable program."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hig._jacobian.blocks import Block, DenseBlock
from hig._torch.autograd_graph import real_size, real_view
from hig._torch.batched_vjp import BatchedVJP, dense, one_hot_cotangents
from hig._torch.memory import check_room

__all__ = ["StreamedBlock", "rows_block"]

# A Jacobian up to this size is held; a larger one is recomputed a few columns at a time.
HELD_BYTES = 2**30


def rows_block(
    prediction: Tensor,
    parameters: Sequence[Tensor],
    backward: BatchedVJP,
    held_bytes: int = HELD_BYTES,
) -> Block:
    """Return the Jacobian columns of any parameters, from n backward passes.

    Args:
        prediction: (B, ...), with a graph; samples may depend on one another.
        parameters: the parameters whose columns are wanted, in this order.
        backward: runs the passes.
        held_bytes: size up to which the columns are held as a matrix.

    Returns:
        A :class:`DenseBlock`, or a :class:`StreamedBlock` if that is larger than ``held_bytes``.
    """
    block = StreamedBlock(prediction, parameters, backward, held_bytes)
    if prediction.numel() * block.columns * prediction.element_size() > held_bytes:
        return block
    everything = [(index, 0, real_size(p)) for index, p in enumerate(parameters)]
    matrix = block.columns_of(everything, 0, prediction.numel())
    return DenseBlock(matrix, outputs=prediction[0].numel())


class StreamedBlock:
    """Block that is too large to hold: its columns are recomputed a few at a time.

    Args:
        prediction: (B, ...), with a graph that stays alive as long as the block.
        parameters: the parameters of the columns.
        backward: runs the passes.
        held_bytes: most bytes of the Jacobian held at one time.
    """

    def __init__(
        self,
        prediction: Tensor,
        parameters: Sequence[Tensor],
        backward: BatchedVJP,
        held_bytes: int = HELD_BYTES,
    ):
        self._prediction, self._parameters, self._backward = prediction, parameters, backward
        self._held_bytes = held_bytes
        self._outputs = prediction[0].numel()
        self._cotangents = one_hot_cotangents(prediction)
        self.columns = sum(map(real_size, parameters))

    def columns_of(self, pieces: Sequence[tuple[int, int, int]], start: int, stop: int) -> Tensor:
        """Return rows ``start:stop`` of the columns of some (parameter, first, last) pieces."""
        inputs = [self._parameters[index] for index, _, _ in pieces]
        sizes = [last - first for _, first, last in pieces]
        self._check_room((stop - start) * sum(sizes))
        matrix = self._prediction.new_zeros((stop - start, sum(sizes)))
        parts = matrix.split(sizes, dim=1)
        size = sum(map(real_size, inputs)) * matrix.element_size()
        passes = self._backward.gradients(
            self._prediction,
            inputs,
            stop - start,
            lambda first, last: self._cotangents(start + first, start + last),
            size,
            together=False,
        )
        for rows, gradients in passes:
            for part, gradient, (_, first, last) in zip(parts, gradients, pieces, strict=True):
                if gradient is not None:
                    part[rows] = real_view(gradient).reshape(len(gradient), -1)[:, first:last]
        return matrix

    def add_gram(self, gram: Tensor) -> None:
        """Add J Jᵀ to ``gram``, piece by piece."""
        for matrix in self._matrices(self._width(len(gram))):
            DenseBlock(matrix).add_gram(gram)

    def vjp(self, weights: Tensor) -> Tensor:
        """Jᵀ w by one backward pass, in the precision of the graph."""
        cotangent = weights.to(self._prediction.dtype).view_as(self._prediction)
        return torch.cat(
            [real_view(part).double().flatten() for part in self.vjp_per_parameter(cotangent)]
        )

    def vjp_per_parameter(
        self, cotangent: Tensor, create_graph: bool = False
    ) -> tuple[Tensor, ...]:
        """Return the gradients of all parameters for one cotangent, shaped like the prediction."""
        gradients = torch.autograd.grad(
            self._prediction,
            list(self._parameters),
            cotangent,
            retain_graph=True,
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )
        return tuple(map(dense, gradients))

    def jvp(self, direction: Tensor) -> Tensor:
        """J d: (columns,) float64 -> (n,) float64, recomputing J piece by piece."""
        result = direction.new_zeros(self._prediction.numel())
        start = 0
        for matrix in self._matrices(self._width(len(result))):
            stop = start + matrix.shape[1]
            result += DenseBlock(matrix).jvp(direction[start:stop])
            start = stop
        return result

    def rows(self, samples: slice) -> Tensor:
        """Return the rows of the given samples, all columns."""
        everything = [(index, 0, real_size(p)) for index, p in enumerate(self._parameters)]
        return self.columns_of(
            everything, samples.start * self._outputs, samples.stop * self._outputs
        )

    def parts(self, width: int, rows: int) -> Iterator[DenseBlock]:
        """Yield a few columns at a time, cut where a :class:`DenseBlock` is cut."""
        # Whole multiples of ``width``, so that pieces end where another rank's matrix is cut.
        held = max(1, self._width(rows) // width) * width
        for matrix in self._matrices(held):
            yield from DenseBlock(matrix, self._outputs).parts(width, rows)

    def _check_room(self, numbers: int) -> None:
        check_room(
            numbers * self._prediction.element_size(),
            self._prediction,
            f"Jacobian columns of a batch of {len(self._prediction)} samples with "
            f"{self._outputs} outputs each",
            "take a smaller batch, or method='lanczos', which multiplies with the Jacobian without "
            "holding it; another chunk, the number of backward passes at a time, does not change "
            "it",
        )

    def _width(self, rows: int) -> int:
        """Return the number of columns that may be held at one time."""
        return max(1, self._held_bytes // (rows * self._prediction.element_size()))

    def _matrices(self, width: int) -> Iterator[Tensor]:
        rows = self._prediction.numel()
        for pieces in _pieces(list(map(real_size, self._parameters)), width):
            yield self.columns_of(pieces, 0, rows)


def _pieces(sizes: Sequence[int], width: int) -> Iterator[list[tuple[int, int, int]]]:
    """Yield the columns of all parameters in runs of at most ``width``."""
    run: list[tuple[int, int, int]] = []
    room = width
    for index, size in enumerate(sizes):
        first = 0
        while first < size:
            last = min(size, first + room)
            run.append((index, first, last))
            room -= last - first
            first = last
            if not room:
                yield run
                run, room = [], width
    if run:
        yield run
