r"""Exactness check of layer factors against autograd, in every step.

For a cotangent c the factors must give the same :math:`J^T c` as one plain backward pass. The
entries of c are random numbers divided by the norms of the rows of J, known from the factors, so
that all rows have the same weight whatever their scale; a row that is zero by the factors has a
large entry. Samples that influence one another, a batch axis in another place, or a use of a weight
that was not seen break the equality with probability one.

Both sides are rounded. They agree if they differ by a few units of rounding of the rows, or by no
more than rounding explains: a backward pass is linear in c up to rounding (and up to the tolerance
of a solver inside), and so is any error of the factors. For c = c' + c'' the difference of Jᵀ c and
Jᵀ c' + Jᵀ c'' is therefore rounding, and so is a difference of that size.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import isfinite
from typing import Protocol

import torch
from torch import Tensor

from hig._jacobian.factored_block import FactoredBlock
from hig._jacobian.formed_block import FormedBlock
from hig._jacobian.found_layers import FoundLayers
from hig._jacobian.rearranged_block import RearrangedBlock
from hig._torch.autograd_graph import Graph, coarsest_dtype, reachable_nodes, real_view
from hig._torch.batched_vjp import dense
from hig._torch.host import DeferredChecks

__all__ = ["UNITS", "ExactnessMemory", "InexactLayersError", "Key", "Look", "Pair", "Probe"]

# Units of rounding of a row, root mean square over all rows, by which factors and gradients may
# differ without a closer look. Networks before simulators of a few hundred steps stay below seven.
UNITS = 8
# Builds until an inexact layer is tried again, doubled with each failure, and their maximum.
FIRST, LAST = 4, 1024
# Entries kept, the most recent ones: a graph may change from step to step.
MOST = 1000

# Differences up to this multiple of the measured rounding count as rounding.
NOISE = 8
# In float16 a difference of a few hundredths may be rounding, or a sample that influences another.
COARSEST_CHECKED = torch.finfo(torch.float32).eps
# Smallest size of a row, relative to the largest, by which its weight is still adapted.
SMALLEST = 2.0**-40

Key = tuple[object, ...]
Pair = tuple[FactoredBlock | FormedBlock | RearrangedBlock, list[int]]


class Checkable(Protocol):
    """Columns of J that a probe can compare with a backward pass."""

    @property
    def dtypes(self) -> set[torch.dtype]:
        """Precisions of what the columns are computed from."""
        ...

    def row_squares(self) -> Tensor:
        """Squared norms of the rows, (n,) float64."""
        ...

    def vjp(self, weights: Tensor) -> Tensor:
        """Jᵀ w: (n,) float64 -> (columns,) float64."""
        ...


class InexactLayersError(Exception):
    """Layer factors turned out to be inexact; the Jacobian must be built again."""


class Probe:
    """One plain backward pass with a random cotangent, to compare the factors with.

    Args:
        prediction: (B, ...), with its graph.
        parameters: all parameters.
        blocks: factors of some layers.

    Attributes:
        gradients: one per parameter, None if the prediction does not depend on it.
    """

    def __init__(
        self,
        prediction: Tensor,
        parameters: Sequence[Tensor],
        blocks: Sequence[Checkable],
    ):
        self._prediction, self._parameters = prediction, list(parameters)
        graph_dtypes = {prediction.dtype, *(parameter.dtype for parameter in parameters)}
        computed = [torch.finfo(dtype) for dtype in graph_dtypes]
        held = [torch.finfo(dtype) for dtype in {d for block in blocks for d in block.dtypes}]
        tiny = max(info.tiny for info in computed + held)
        squares = [block.row_squares() for block in blocks]
        stacked = torch.stack(squares) if squares else None
        self._cotangent, size = _cotangent_of(prediction, stacked, tiny)
        eps = max((info.eps for info in held), default=0.0)
        self._eps = max([*(info.eps for info in computed), min(eps, COARSEST_CHECKED)])
        self._sizes: dict[int, Tensor] = {}
        if stacked is not None:
            # Each layer is compared on the scale of its own columns, however large those of others,
            # plus the rounding of a whole row, which a backward pass may leave anywhere.
            weights = self._cotangent.double().flatten().square()
            sizes = (stacked @ weights).sqrt() + self._eps * size
            self._sizes = dict(zip(map(id, blocks), sizes.unbind(), strict=True))
        self.gradients = self._vjp(self._cotangent)

    def _vjp(self, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(
            self._prediction, self._parameters, cotangent, retain_graph=True, allow_unused=True
        )

    def units(
        self, pairs: Sequence[tuple[Checkable, list[int]]], allowed: Sequence[float]
    ) -> list[float | None]:
        """Return the difference of factors and gradients in units of rounding; None if inexact.

        Args:
            pairs: factors of layers, with the indices of their parameters.
            allowed: units up to which there is no closer look.
        """
        if not pairs:
            return []
        sizes = [self._sizes[id(block)] for block, _ in pairs]
        differences = self._differences(pairs)
        near = [
            self._agrees(norm, finite, size, units)
            for (norm, finite), size, units in zip(differences, sizes, allowed, strict=True)
        ]
        norms = torch.stack([norm for norm, _ in differences])
        agrees = torch.stack(near).to(norms)
        # Together, so that the host waits once.
        flags, norms, scales = torch.stack([agrees, norms, torch.stack(sizes)]).tolist()
        limits = [0.0] * len(pairs)
        if not all(flags):
            # Larger differences count as coupling even if rounding is as large: it would hide any.
            noises = self._rounding([indices for _, indices in pairs]).tolist()
            coarsest = coarsest_dtype(reachable_nodes(self._prediction), self._prediction.dtype)
            eps = max(self._eps, min(torch.finfo(coarsest).eps, COARSEST_CHECKED))
            most = 3 * eps**0.5
            limits = [min(NOISE * n, most * size) for n, size in zip(noises, scales, strict=True)]
        return [
            (norm / (self._eps * size) if size > 0 and isfinite(norm) else 0.0)
            if holds or norm <= limit
            else None
            for holds, norm, size, limit in zip(flags, norms, scales, limits, strict=True)
        ]

    def expect(
        self,
        pairs: Sequence[Pair],
        allowed: Sequence[float],
        checks: DeferredChecks,
        otherwise: Callable[[], None],
    ) -> None:
        """Add the same comparison to deferred checks, without reading anything.

        Args:
            pairs: factors of layers, with the indices of their parameters.
            allowed: units of rounding of each.
            checks: collects the conditions.
            otherwise: looks closer; called for each layer that differs by more.
        """
        differences = zip(pairs, self._differences(pairs), allowed, strict=True)
        for (block, _), (norm, finite), units in differences:
            checks.expect(self._agrees(norm, finite, self._sizes[id(block)], units), otherwise)

    def _agrees(self, norm: Tensor, finite: Tensor, size: Tensor, units: float) -> Tensor:
        # For a coarse dtype the usual units of rounding are no longer small.
        allowed = (
            max(min(UNITS, 3 / self._eps**0.5), units if units > UNITS else 0) * self._eps * size
        )
        # Factors that are not finite pass: the Gram matrix reports them, with their samples.
        return (norm <= allowed) | ~finite

    def _differences(
        self, pairs: Sequence[tuple[Checkable, list[int]]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Return the norm of the difference of each layer, and whether its factors are finite."""
        weights = self._cotangent.double().flatten()
        differences = []
        for block, indices in pairs:
            product = block.vjp(weights)
            difference = product - _concatenate(self.gradients, indices, product)
            differences.append((difference.norm(), torch.isfinite(product).all()))
        return differences

    def _rounding(self, layer_indices: Sequence[Sequence[int]]) -> Tensor:
        """Return the norm of Jᵀ c - Jᵀ c' - Jᵀ c'' of each layer, for a split c = c' + c''."""
        # A different share of each entry: errors may depend on single entries, or on all together.
        share = _random_shares(self._cotangent.shape, self._cotangent.device)
        first = self._cotangent * share.to(self._cotangent.dtype)
        parts = [self._vjp(part) for part in (first, self._cotangent - first)]
        like, norms = share.new_zeros(()), []
        for indices in layer_indices:
            gradients = (self.gradients, *parts)
            total, *summands = (_concatenate(g, indices, like) for g in gradients)
            norms.append((total - summands[0] - summands[1]).norm())
        return torch.stack(norms)


class Look:
    """Comparison of the factors of layers with a backward pass, remembered for later steps.

    Args:
        probe: the backward pass.
        candidates: factors and parameter indices, by the key of the layer.
        graph: the graph of the prediction.
        memory: exactness of layers in earlier steps.

    Attributes:
        allowed: units of rounding by which each may differ without a closer look.
    """

    def __init__(
        self,
        probe: Probe,
        candidates: Mapping[Key, Pair],
        graph: Graph,
        memory: "ExactnessMemory",
    ):
        self._probe, self._candidates = probe, candidates
        self._graph, self._memory = graph, memory
        self.allowed = [memory.allowed(key) for key in candidates]
        self._passed = False

    def exact(self) -> list[Pair]:
        """Return the exact ones, and remember which they are."""
        pairs = list(self._candidates.values())
        units = self._probe.units(pairs, self.allowed)
        for key, rounding in zip(self._candidates, units, strict=True):
            if rounding is None:
                self._memory.record_failure(key, self._graph.operations)
            else:
                self._record_success(key, rounding)
        return [pair for pair, unit in zip(pairs, units, strict=True) if unit is not None]

    def later(self) -> None:
        """Raise an :class:`InexactLayersError` unless all, which have been used, are exact."""
        if self._passed:  # for another layer
            return
        units = self._probe.units(list(self._candidates.values()), self.allowed)
        for key, rounding in zip(self._candidates, units, strict=True):
            if rounding is None:
                raise InexactLayersError
            self._record_success(key, rounding)
        self._memory.looks += 1
        self._passed = True

    def _record_success(self, key: Key, rounding: float) -> None:
        self._memory.record_success(key, rounding, lambda: self._graph.operations)


def _concatenate(
    gradients: Sequence[Tensor | None], indices: Sequence[int], like: Tensor
) -> Tensor:
    present = [gradient for index in indices if (gradient := gradients[index]) is not None]
    return torch.cat([real_view(dense(gradient)).flatten().to(like) for gradient in present])


def _cotangent_of(prediction: Tensor, squares: Tensor | None, tiny: float) -> tuple[Tensor, Tensor]:
    """Return random numbers divided by the norms of rows, and the norm of their products."""
    signs = _random(prediction.shape, prediction.device)
    if squares is None:
        return signs.to(prediction), signs.new_zeros(())
    sizes = squares.sum(0).sqrt().view_as(signs)
    largest = sizes.max()
    # If all rows are zero any scale will do.
    reference = torch.where(largest > 0, largest, torch.ones_like(largest))
    floored = torch.maximum(sizes, reference * max(SMALLEST, tiny**0.5))
    # The square root shares the scale between c and Jᵀ c, so that neither leaves the range of the
    # dtype. Powers of two do not round.
    weights = torch.exp2(torch.round(torch.log2(reference.sqrt() / floored)))
    cotangent = (signs * weights).to(prediction.dtype)
    present = torch.where(largest > 0, floored, torch.zeros_like(floored))
    return cotangent, (cotangent.double() * present).norm()


@lru_cache(maxsize=8)  # so that a step sends nothing to the device
def _random(shape: torch.Size, device: torch.device) -> Tensor:
    """Return random numbers, always the same ones, float64; read-only.

    Their sizes, between 1 and 2, are spread evenly over the samples: a coupling of two samples
    appears in the rows of both with opposite signs, and equal weights would cancel it.
    """
    # A separate generator: a step must not advance the user's random state.
    generator = torch.Generator("cpu").manual_seed(20220310)

    def uniform() -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")

    places = uniform().argsort(dim=0).double()
    sizes = 1 + (places + 0.5 * uniform()) / shape[0]
    return torch.where(uniform() < 0.5, -sizes, sizes).to(device)


@lru_cache(maxsize=8)
def _random_shares(shape: torch.Size, device: torch.device) -> Tensor:
    """Return random numbers between -1 and 2, always the same ones, float64; read-only."""
    generator = torch.Generator("cpu").manual_seed(3)
    numbers = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")
    return (3 * numbers - 1).to(device)


@dataclass
class ExactnessMemory:
    """Memory of earlier checks, by layer: the indices of its parameters, and its uses.

    Attributes:
        optimistic: whether factors may be used before they are verified; turned off once they
            were inexact.
        builds: number of Jacobians so far.
        looks: number of closer looks at factors that were used before.
        failures: by inexact layer and the operations of the graph: the number of failures in a
            row, and the build of the next try.
        rounding: by layer with more than the usual rounding: the units of rounding allowed, the
            number of measurements, and the build of the next one.
        found: what is known of the graphs of earlier steps.
        replaced: inexact layers in whose place the graph has exact ones.
    """

    optimistic: bool = True
    builds: int = 0
    looks: int = 0
    failures: dict[Key, tuple[int, int]] = field(default_factory=dict)
    rounding: dict[Key, tuple[float, int, int]] = field(default_factory=dict)
    found: FoundLayers = field(default_factory=FoundLayers, compare=False)
    replaced: set[Key] = field(default_factory=set)

    def skips(self, layer: Key, operations: Hashable) -> bool:
        """Return whether a layer is known to be inexact and its next try is still to come."""
        _, next_try = self.failures.get((layer, operations), (0, 0))
        return self.builds < next_try

    def allowed(self, layer: Key) -> float:
        """Return the units of rounding by which a layer may differ without a closer look."""
        allowed, _, next_time = self.rounding.get(layer, (0.0, 0, 0))
        return max(allowed, UNITS) if self.builds < next_time else UNITS

    def record_failure(self, layer: Key, operations: Hashable) -> None:
        """Remember that a layer is inexact in graphs of these operations."""
        count = self.failures.pop((layer, operations), (0, 0))[0] + 1
        self.failures[layer, operations] = count, self.builds + _distance(count)
        self.rounding.pop(layer, None)
        while len(self.failures) > MOST:
            del self.failures[next(iter(self.failures))]

    def forget_failure(self, layer: Key, operations: Hashable) -> None:
        """Forget that a layer was inexact: it was another one than it looked."""
        self.failures.pop((layer, operations), None)

    def record_success(self, layer: Key, units: float, operations: Callable[[], Hashable]) -> None:
        """Remember that a layer is exact up to so many units of rounding."""
        if self.failures:
            self.failures.pop((layer, operations()), None)
        if units <= self.allowed(layer):
            return
        allowed, count, _ = self.rounding.pop(layer, (0.0, 0, 0))
        # Another batch may have twice the rounding.
        next_time = self.builds + _distance(count + 1)
        self.rounding[layer] = max(allowed, 2 * units), count + 1, next_time
        while len(self.rounding) > MOST:
            del self.rounding[next(iter(self.rounding))]


def _distance(count: int) -> int:
    return min(LAST, FIRST << min(count - 1, 10))
