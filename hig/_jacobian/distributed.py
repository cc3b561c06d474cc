r"""The joint Jacobian of samples that lie on several ranks: each holds the rows of its own.

The Gram matrix :math:`J J^T` consists of blocks :math:`J_r J_s^T`. For those with r = s a rank
needs its own rows. For the others the ranks exchange, layer by layer, the factors of their rows,
or the rows themselves a few columns at a time where those are smaller, and each rank multiplies
its share of the pairs. Then all ranks hand out their blocks.
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
from hig._torch.batched_vjp import Backward
from hig._torch.checksums import digest
from hig._torch.ranks import Ranks

__all__ = ["BatchSplit", "DistributedJacobian", "build_distributed"]


@dataclass(frozen=True)
class BatchSplit:
    """Samples of each rank; in the whole batch they follow one another in the order of the ranks.

    Attributes:
        ranks: the ranks.
        samples: number of samples of each rank, at least one.
        outputs: D, outputs per sample.
    """

    ranks: Ranks
    samples: list[int]
    outputs: int

    @property
    def rows(self) -> int:
        """n, outputs of all samples of all ranks."""
        return sum(self.samples) * self.outputs

    def rows_of(self, rank: int) -> slice:
        """The rows of one rank among all n."""
        start = sum(self.samples[:rank]) * self.outputs
        return slice(start, start + self.samples[rank] * self.outputs)

    @property
    def own(self) -> slice:
        """The rows of this rank among all n."""
        return self.rows_of(self.ranks.rank)

    def weight(self, reduction: str) -> float:
        """What the loss of this rank counts in the loss of the whole batch.

        Args:
            reduction: "sum", or "mean" for losses that are means over the samples of their rank:
                the mean over all samples weighs them by their number.
        """
        return 1.0 if reduction == "sum" else self.samples[self.ranks.rank] / sum(self.samples)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Gather tensors (samples, ...) or (rows, ...) of all ranks, in their order."""
        if self.ranks.size == 1:
            return [tensor]
        own, most = self.samples[self.ranks.rank], max(self.samples)
        each = len(tensor) // own  # 1, or D
        # Collectives want equal shapes: shorter ones are filled up.
        filler = tensor.new_zeros(((most - own) * each, *tensor.shape[1:]))
        parts = self.ranks.every(torch.cat([tensor, filler]) if len(filler) else tensor)
        return [part[: count * each] for part, count in zip(parts, self.samples, strict=True)]

    def gather_many(self, tensors: Sequence[Tensor]) -> list[list[Tensor]]:
        """Gather several tensors (samples, ...) at once: those of each rank, in their order."""
        if len({tensor.dtype for tensor in tensors}) > 1:
            return [list(found) for found in zip(*map(self.gather, tensors), strict=True)]
        sizes = [tensor[0].numel() for tensor in tensors]
        packed = torch.cat([tensor.flatten(1) for tensor in tensors], dim=1)
        return [
            [
                part.view(len(found), *tensor.shape[1:])
                for part, tensor in zip(found.split(sizes, 1), tensors, strict=True)
            ]
            for found in self.gather(packed)
        ]

    def gather_concatenated(self, tensor: Tensor) -> Tensor:
        """Tensors (rows, ...) of all ranks as one, (n, ...)."""
        return torch.cat(self.gather(tensor))


@dataclass(frozen=True)
class _Pair:
    """A block of the Gram matrix: some samples of one rank times all of another."""

    left: int
    chosen: slice
    right: int


class DistributedJacobian(JointJacobian):
    """The rows of all ranks. All methods are collective, but for ``rows``, those of this rank.

    Args:
        local: the rows of this rank; the columns are the same on all ranks.
        split: the samples of each rank.

    Attributes:
        shape: (n, P) of the whole batch.
        samples: number of samples of this rank.
    """

    def __init__(self, local: JointJacobian, split: BatchSplit):
        super().__init__(local.blocks, local.samples, local.outputs, local.like)
        self._local, self._split = local, split
        self.shape = (split.rows, local.shape[1])

    def gram(self) -> Tensor:
        """J Jᵀ: (n, n), float64, of the same bits on all ranks."""
        split, rank = self._split, self._split.ranks.rank
        pairs = list(_pairs(rank, split.samples))
        shapes = [self._shape(pair) for pair in pairs]
        rows = split.samples[rank] * split.outputs
        own = self._local.like.new_zeros((rows, rows), dtype=torch.float64)
        products = [own.new_zeros(shape) for shape in shapes]
        for part in self._parts():
            gather = split.gather_many(part.factors())
            part.add_gram(own)
            for pair, product in zip(pairs, products, strict=True):
                left = part.of([factor[pair.chosen] for factor in gather[pair.left]])
                left.add_product(part.of(gather[pair.right]), product)
        return self._assembled([own, *products])

    def _parts(self) -> Iterator[Part]:
        # The same on all ranks: cut for the whole batch, and for the rank with most of it.
        width = max(1, SCRATCH_BYTES // (8 * self.shape[0]))
        most = max(self._split.samples) * self._split.outputs
        for block in self._local.blocks:
            yield from block.parts(width, most)

    def _shape(self, pair: _Pair) -> tuple[int, int]:
        samples, outputs = self._split.samples, self._split.outputs
        return _size(pair.chosen) * outputs, samples[pair.right] * outputs

    def _assembled(self, blocks: list[Tensor]) -> Tensor:
        """The whole Gram matrix from the blocks that each rank has computed."""
        split = self._split
        places = [self._places(rank) for rank in range(split.ranks.size)]
        sizes = [sum(_size(rows) * _size(columns) for rows, columns in own) for own in places]
        flat = torch.cat([block.flatten() for block in blocks])
        flat = torch.cat([flat, flat.new_zeros(max(sizes) - len(flat))])
        gram = flat.new_empty((split.rows, split.rows))
        for own, found in zip(places, split.ranks.every(flat), strict=True):
            start = 0
            for rows, columns in own:
                stop = start + _size(rows) * _size(columns)
                block = found[start:stop].view(_size(rows), _size(columns))
                gram[rows, columns] = block
                if rows != columns:
                    gram[columns, rows] = block.T
                start = stop
        return gram

    def _places(self, rank: int) -> list[tuple[slice, slice]]:
        """Rows and columns of the blocks that a rank computes, its own first."""
        split = self._split
        places = [(split.rows_of(rank), split.rows_of(rank))]
        for pair in _pairs(rank, split.samples):
            first = split.rows_of(pair.left).start + pair.chosen.start * split.outputs
            rows = slice(first, first + self._shape(pair)[0])
            places.append((rows, split.rows_of(pair.right)))
        return places

    def normal(self) -> Tensor:
        """Jᵀ J: (P, P), float64; the sum of those of all ranks."""
        return self._split.ranks.total(self._local.normal())

    def dense(self) -> Tensor:
        """J itself, (n, P), on every rank. Only for Jacobians that are known to be small."""
        return self._split.gather_concatenated(self._local.dense())

    def vjp(self, weights: Tensor) -> Tensor:
        """Jᵀ w: (n,) float64 -> (P,) float64; the w of the first rank counts."""
        # Another processor may have found other eigenvectors; parts of both would fit nothing.
        weights = self._split.ranks.first(weights)
        return self._split.ranks.total(self._local.vjp(weights[self._split.own]))

    def jvp(self, direction: Tensor) -> Tensor:
        """J d: (P,) float64 -> (n,) float64; the d of the first rank counts."""
        return self._split.gather_concatenated(self._local.jvp(self._split.ranks.first(direction)))


def _pairs(rank: int, samples: list[int]) -> Iterator[_Pair]:
    """The blocks off the diagonal that a rank computes: each pair of ranks once, evenly shared."""
    size = len(samples)
    for distance in range(1, (size - 1) // 2 + 1):
        yield _Pair(rank, slice(0, samples[rank]), (rank + distance) % size)
    if size % 2 == 0:  # opposite ranks take half of their block each
        opposite = (rank + size // 2) % size
        left, right = min(rank, opposite), max(rank, opposite)
        half = samples[left] // 2
        chosen = slice(0, half) if rank == left else slice(half, samples[left])
        if _size(chosen):
            yield _Pair(left, chosen, right)


def _size(chosen: slice) -> int:
    return chosen.stop - chosen.start


def build_distributed(
    forward: ForwardPass,
    split: BatchSplit,
    engine: str | Engine,
    backward: Backward,
    memory: ExactnessMemory,
    products: bool = False,
) -> EngineResult:
    """Build the joint Jacobian of the samples of all ranks.

    Args:
        forward: the forward pass of this rank.
        split: the samples of each rank.
        engine: see :func:`hig._jacobian.engine.build_jacobian`, as are the others.
        backward: runs the backward passes.
        memory: which layers were exact in earlier steps.
        products: whether products with vectors are all that will be asked for.

    Raises:
        SampleDependenceError: engine "layerwise" cannot give all columns exactly, on some rank.
        ValueError: the ranks hold different columns.
    """
    ranks = split.ranks

    def built(engine: str | Engine) -> EngineResult:
        with ranks.agreement():
            return build_jacobian(forward, engine, backward, memory, products)

    result = built(engine)
    if len(set(ranks.whole_numbers(_layout(result)))) > 1:
        if engine == "auto":
            result = built("rows")
            result.notes.append("rows engine: layers differ among the ranks, or in what is exact")
        remedy = (
            "run the same network on inputs of the same shape per sample on every rank, or take "
            "engine='rows'; the prediction must depend on the same parameters everywhere"
        )
        ranks.agree_on({"the checksum of the Jacobian's columns": (_layout(result), remedy)})
    return replace(result, jacobian=DistributedJacobian(result.jacobian, split))


def _layout(result: EngineResult) -> int:
    """A digest of what must be equal for blocks of two ranks to be multiplied."""
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
