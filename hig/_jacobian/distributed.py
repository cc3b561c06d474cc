r"""Joint Jacobian of samples that lie on several process ranks: each holds the rows of its own.

The Gram matrix :math:`J J^T` consists of blocks :math:`J_r J_s^T`. A block with r = s needs the
rows of process rank r alone. For the others the process ranks exchange, layer by layer, the factors
of their rows, or the rows themselves a few columns at a time where those are smaller, and each one
multiplies its share of the pairs (r, s). Then the blocks are gathered.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hig._jacobian.blocks import SCRATCH_BYTES, JointJacobian, Part
from hig._jacobian.capture import ForwardPass
from hig._jacobian.engine import Engine, EngineResult, build_jacobian
from hig._jacobian.exactness import ExactnessMemory
from hig._jacobian.factored_block import FactoredBlock
from hig._torch.batched_vjp import BatchedVJP
from hig._torch.checksums import digest
from hig._torch.ranks import Ranks

__all__ = ["BatchSplit", "DistributedJacobian", "build_distributed"]


@dataclass(frozen=True)
class BatchSplit:
    """Samples of each process rank; the whole batch concatenates them in the order of the ranks.

    Attributes:
        ranks: the process ranks.
        samples: number of samples of each process rank, at least one.
        outputs: D, outputs per sample.
    """

    ranks: Ranks
    samples: list[int]
    outputs: int

    @property
    def rows(self) -> int:
        """n, outputs of all samples of all process ranks."""
        return sum(self.samples) * self.outputs

    def rows_of(self, rank: int) -> slice:
        """Return the rows of one process rank among all n."""
        start = sum(self.samples[:rank]) * self.outputs
        return slice(start, start + self.samples[rank] * self.outputs)

    @property
    def local_rows(self) -> slice:
        """Rows of this process rank among all n."""
        return self.rows_of(self.ranks.rank)

    def weight(self, reduction: str) -> float:
        """Return the factor of the loss of this process rank in the loss of the whole batch.

        Args:
            reduction: "sum", or "mean" for losses that are means over the samples of their
                process rank: the mean over all samples weighs them by their number.
        """
        return 1.0 if reduction == "sum" else self.samples[self.ranks.rank] / sum(self.samples)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Gather tensors (samples, ...) or (rows, ...) of all process ranks, in their order."""
        if self.ranks.size == 1:
            return [tensor]
        count_here, most = self.samples[self.ranks.rank], max(self.samples)
        each = len(tensor) // count_here  # 1, or D
        # Collectives need equal shapes: shorter ones are padded.
        filler = tensor.new_zeros(((most - count_here) * each, *tensor.shape[1:]))
        parts = self.ranks.every(torch.cat([tensor, filler]) if len(filler) else tensor)
        return [part[: count * each] for part, count in zip(parts, self.samples, strict=True)]

    def gather_many(self, tensors: Sequence[Tensor]) -> list[list[Tensor]]:
        """Gather several tensors (samples, ...) at once: those of each process rank, in order."""
        if len({tensor.dtype for tensor in tensors}) > 1:
            return [list(of_rank) for of_rank in zip(*map(self.gather, tensors), strict=True)]
        sizes = [tensor[0].numel() for tensor in tensors]
        packed = torch.cat([tensor.flatten(1) for tensor in tensors], dim=1)
        return [
            [
                part.view(len(of_rank), *tensor.shape[1:])
                for part, tensor in zip(of_rank.split(sizes, 1), tensors, strict=True)
            ]
            for of_rank in self.gather(packed)
        ]

    def gather_concatenated(self, tensor: Tensor) -> Tensor:
        """Gather tensors (rows, ...) of all process ranks into one, (n, ...)."""
        return torch.cat(self.gather(tensor))


@dataclass(frozen=True)
class _Pair:
    """Block of the Gram matrix: some samples of one process rank times all of another."""

    left: int
    samples: slice
    right: int


class DistributedJacobian(JointJacobian):
    """Jacobian of the samples of all process ranks.

    All methods are collective, but for ``rows``, which returns rows of this process rank.

    Args:
        local: the rows of this process rank; the columns are the same on all.
        split: the samples of each process rank.

    Attributes:
        shape: (n, P) of the whole batch.
        samples: number of samples of this process rank.
    """

    def __init__(self, local: JointJacobian, split: BatchSplit):
        super().__init__(local.blocks, local.samples, local.outputs, local.like)
        self._local, self._split = local, split
        self.shape = (split.rows, local.shape[1])

    def gram(self) -> Tensor:
        """J Jᵀ: (n, n), float64, with the same bits on all process ranks."""
        split, rank = self._split, self._split.ranks.rank
        pairs = list(_pairs(rank, split.samples))
        rows = split.samples[rank] * split.outputs
        diagonal = self._local.like.new_zeros((rows, rows), dtype=torch.float64)
        products = [diagonal.new_zeros(self._shape(pair)) for pair in pairs]
        # Part by part, so that a rank never holds more of the others than their factors of one
        # layer, or a few columns.
        for part in self._parts():
            by_rank = split.gather_many(part.factors())
            part.add_gram(diagonal)
            for pair, product in zip(pairs, products, strict=True):
                left = part.of([factor[pair.samples] for factor in by_rank[pair.left]])
                left.add_product(part.of(by_rank[pair.right]), product)
        return self._gather_gram([diagonal, *products])

    def _parts(self) -> Iterator[Part]:
        # The same cuts on all process ranks: by the size of the whole batch, and of the largest
        # share of it.
        width = max(1, SCRATCH_BYTES // (8 * self.shape[0]))
        most = max(self._split.samples) * self._split.outputs
        for block in self._local.blocks:
            yield from block.parts(width, most)

    def _shape(self, pair: _Pair) -> tuple[int, int]:
        samples, outputs = self._split.samples, self._split.outputs
        return _size(pair.samples) * outputs, samples[pair.right] * outputs

    def _gather_gram(self, blocks: list[Tensor]) -> Tensor:
        """Gather the whole Gram matrix from the blocks that each process rank has computed.

        A rank sends its blocks flattened, one after the other; all ranks know from the split alone
        which blocks these are, and which rows and columns they fill.
        """
        split = self._split
        places = [self._places(rank) for rank in range(split.ranks.size)]
        sizes = [sum(_size(rows) * _size(cols) for rows, cols in of_rank) for of_rank in places]
        flat = torch.cat([block.flatten() for block in blocks])
        flat = torch.cat([flat, flat.new_zeros(max(sizes) - len(flat))])
        gram = flat.new_empty((split.rows, split.rows))
        for of_rank, received in zip(places, split.ranks.every(flat), strict=True):
            start = 0
            for rows, columns in of_rank:
                stop = start + _size(rows) * _size(columns)
                block = received[start:stop].view(_size(rows), _size(columns))
                gram[rows, columns] = block
                if rows != columns:
                    gram[columns, rows] = block.T
                start = stop
        return gram

    def _places(self, rank: int) -> list[tuple[slice, slice]]:
        """Return rows and columns of the blocks that a process rank computes, its own first."""
        split = self._split
        places = [(split.rows_of(rank), split.rows_of(rank))]
        for pair in _pairs(rank, split.samples):
            first = split.rows_of(pair.left).start + pair.samples.start * split.outputs
            rows = slice(first, first + self._shape(pair)[0])
            places.append((rows, split.rows_of(pair.right)))
        return places

    def normal(self) -> Tensor:
        """Jᵀ J: (P, P), float64; the sum of those of all process ranks."""
        return self._split.ranks.total(self._local.normal())

    def dense(self) -> Tensor:
        """Return J itself, (n, P), on every process rank. Only for small Jacobians."""
        return self._split.gather_concatenated(self._local.dense())

    def vjp(self, weights: Tensor) -> Tensor:
        """Jᵀ w: (n,) float64 -> (P,) float64, for the w of the first process rank."""
        # Another processor may return other eigenvectors; parts of both would not fit together.
        weights = self._split.ranks.first(weights)
        return self._split.ranks.total(self._local.vjp(weights[self._split.local_rows]))

    def jvp(self, direction: Tensor) -> Tensor:
        """J d: (P,) float64 -> (n,) float64, for the d of the first process rank."""
        return self._split.gather_concatenated(self._local.jvp(self._split.ranks.first(direction)))


def _pairs(rank: int, samples: list[int]) -> Iterator[_Pair]:
    """Yield the off-diagonal blocks that a process rank computes: each pair once, evenly shared.

    The ranks lie on a ring. Of J_r J_sᵀ and its transpose one is enough, and each rank takes those
    with the (R - 1) / 2 ranks that follow it: every pair lies within half a turn in exactly one
    direction, so none is computed twice and all ranks have equally many.
    """
    size = len(samples)
    for distance in range(1, (size - 1) // 2 + 1):
        yield _Pair(rank, slice(0, samples[rank]), (rank + distance) % size)
    if size % 2 == 0:  # the opposite rank is half a turn away in both directions: half each
        opposite = (rank + size // 2) % size
        left, right = min(rank, opposite), max(rank, opposite)
        half = samples[left] // 2
        part = slice(0, half) if rank == left else slice(half, samples[left])
        if _size(part):
            yield _Pair(left, part, right)


def _size(extent: slice) -> int:
    return extent.stop - extent.start


def build_distributed(
    forward: ForwardPass,
    split: BatchSplit,
    engine: str | Engine,
    backward: BatchedVJP,
    memory: ExactnessMemory,
    products: bool = False,
) -> EngineResult:
    """Build the joint Jacobian of the samples of all process ranks.

    Args:
        forward: the forward pass of this process rank.
        split: the samples of each process rank.
        engine: see :func:`hig._jacobian.engine.build_jacobian`.
        backward: runs the backward passes.
        memory: exactness of layers in earlier steps.
        products: whether only products with vectors will be asked for.

    Raises:
        SampleDependenceError: engine "layerwise" cannot compute all columns exactly, on some
            process rank.
        ValueError: the process ranks hold different columns.
    """
    ranks = split.ranks
    memory.found.joins = False

    def build(engine: str | Engine) -> EngineResult:
        with ranks.agreement():
            return build_jacobian(forward, engine, backward, memory, products)

    result = build(engine)
    if len(set(ranks.whole_numbers(_layout(result)))) > 1:
        if engine == "auto":
            result = build("rows")
            result.notes.append("rows engine: layers, or exact layers, differ among process ranks")
        remedy = (
            "run the same network on inputs of the same shape per sample on every process rank, or "
            "use engine='rows'; the prediction must depend on the same parameters everywhere"
        )
        ranks.agree_on({"the checksum of the Jacobian's columns": (_layout(result), remedy)})
    return replace(result, jacobian=DistributedJacobian(result.jacobian, split))


def _layout(result: EngineResult) -> int:
    """Return a digest of the layout that two process ranks must share to multiply blocks."""
    blocks = []
    factors: list[Tensor]
    for block in result.jacobian.blocks:
        # Layers with few columns are exchanged as matrices, whether factors are held or not.
        if isinstance(block, FactoredBlock) and not block.columns_are_smaller:
            factors = block.factors()
        else:
            factors = []
        shapes = [(tuple(factor.shape[1:]), factor.dtype) for factor in factors]
        blocks.append((block.columns, shapes))
    return digest(result.order, result.routes, blocks)
