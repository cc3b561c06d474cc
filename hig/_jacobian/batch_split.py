"""How the samples of one batch are divided among the ranks."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hig._torch.ranks import Ranks
from hig.arguments import check_choice

__all__ = ["Split", "check_reduction"]

REDUCTIONS = ("mean", "sum")


@dataclass(frozen=True)
class Split:
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

    def everyones(self, tensor: Tensor) -> list[Tensor]:
        """Gather tensors (samples, ...) or (rows, ...) of all ranks, in their order."""
        if self.ranks.size == 1:
            return [tensor]
        own, most = self.samples[self.ranks.rank], max(self.samples)
        each = len(tensor) // own  # 1, or D
        # Collectives want equal shapes: shorter ones are filled up.
        filler = tensor.new_zeros(((most - own) * each, *tensor.shape[1:]))
        parts = self.ranks.every(torch.cat([tensor, filler]) if len(filler) else tensor)
        return [part[: count * each] for part, count in zip(parts, self.samples, strict=True)]

    def everyones_of(self, tensors: Sequence[Tensor]) -> list[list[Tensor]]:
        """Gather several tensors (samples, ...) at once: those of each rank, in their order."""
        if len({tensor.dtype for tensor in tensors}) > 1:
            return [list(found) for found in zip(*map(self.everyones, tensors), strict=True)]
        sizes = [tensor[0].numel() for tensor in tensors]
        packed = torch.cat([tensor.flatten(1) for tensor in tensors], dim=1)
        return [
            [
                part.view(len(found), *tensor.shape[1:])
                for part, tensor in zip(found.split(sizes, 1), tensors, strict=True)
            ]
            for found in self.everyones(packed)
        ]

    def joined(self, tensor: Tensor) -> Tensor:
        """Tensors (rows, ...) of all ranks as one, (n, ...)."""
        return torch.cat(self.everyones(tensor))


def check_reduction(reduction: str) -> None:
    """Raise ValueError unless it is "mean" or "sum"."""
    check_choice(reduction, "reduction", REDUCTIONS)
