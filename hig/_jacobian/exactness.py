r"""Whether the factors of layers are the whole Jacobian: held against autograd in every step.

For a cotangent c the factors must give the same :math:`J^T c` as one plain backward pass. The
entries of c are random numbers divided by the norms of the rows of J, which the factors give, so
that a row counts the same whatever its scale; where factors give no row at all its entry is large.
Samples that influence one another, a batch axis in another place, or a use of a weight that was
not seen break the equality with probability one.

Both sides are rounded. They agree where they differ by a few units of rounding of the rows, or by
what rounding alone explains: a backward pass is linear in c up to rounding (and up to the tolerance
of a solver inside), and so is any error of the factors. What c gives beyond the sum of what two
parts of it give is therefore rounding, and so is a difference of that size.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import isfinite

import torch
from torch import Tensor

from hig._jacobian.factored_block import FactoredBlock
from hig._jacobian.formed_block import FormedBlock
from hig._torch.autograd_graph import coarsest_dtype, nodes_behind
from hig._torch.host import Checks

__all__ = ["UNITS", "ExactnessMemory", "InexactLayersError", "Key", "Pair", "Probe"]

# Units of rounding of a row, root mean square over all rows, by which factors and gradients may
# differ without a closer look. Networks before simulators of a few hundred steps stay below seven.
UNITS = 8
# Builds to the first try of what has failed, doubled from failure to failure, and their maximum.
FIRST, LAST = 4, 1024
# Entries kept, the latest ones: a graph may change from step to step.
MOST = 1000

# The difference, in units of what is seen of rounding, up to which it is that and nothing else.
NOISE = 8
# In halves a difference of a few hundredths may be rounding, or a sample that influences another.
COARSEST_CHECKED = torch.finfo(torch.float32).eps
# Rows smaller than the largest by more than this are weighed as if they were no smaller.
SMALLEST = 2.0**-40

Key = tuple[object, ...]
Pair = tuple[FactoredBlock | FormedBlock, list[int]]


class InexactLayersError(Exception):
    """Layer factors turned out to be inexact; the Jacobian must be built again."""


class Probe:
    """One plain backward pass with a random cotangent, to hold the factors against.

    Args:
        prediction: (B, ...), with its graph.
        parameters: all parameters.
        blocks: factors of some layers.

    Attributes:
        gradients: one per parameter, None where the prediction does not depend on it.
    """

    def __init__(
        self,
        prediction: Tensor,
        parameters: Sequence[Tensor],
        blocks: Sequence[FactoredBlock | FormedBlock],
    ):
        self._prediction, self._parameters = prediction, list(parameters)
        own = [torch.finfo(dtype) for dtype in {prediction.dtype, *(p.dtype for p in parameters)}]
        held = [torch.finfo(dtype) for dtype in {d for block in blocks for d in block.dtypes}]
        tiny = max(info.tiny for info in own + held)
        squares = [block.row_squares() for block in blocks]
        stacked = torch.stack(squares) if squares else None
        self._cotangent, size = _cotangent_of(prediction, stacked, tiny)
        eps = max((info.eps for info in held), default=0.0)
        self._eps = max([*(info.eps for info in own), min(eps, COARSEST_CHECKED)])
        self._sizes: dict[int, Tensor] = {}
        if stacked is not None:
            # A layer counts by its own columns, however large those of others; only what is lost
            # in the rounding of these is not looked for.
            weights = self._cotangent.double().flatten().square()
            sizes = (stacked @ weights).sqrt() + self._eps * size
            self._sizes = dict(zip(map(id, blocks), sizes.unbind(), strict=True))
        self.gradients = self._pulled_back(self._cotangent)

    def _pulled_back(self, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(
            self._prediction, self._parameters, cotangent, retain_graph=True, allow_unused=True
        )

    def units(self, pairs: Sequence[Pair], allowed: Sequence[float]) -> list[float | None]:
        """By how many units of rounding factors and gradients differ; None is no rounding.

        Args:
            pairs: factors of layers, with the positions of their parameters.
            allowed: units up to which nothing is looked at more closely.
        """
        if not pairs:
            return []
        sizes = [self._sizes[id(block)] for block, _ in pairs]
        differences = self._differences(pairs)
        near = [
            self._near(norm, finite, size, units)
            for (norm, finite), size, units in zip(differences, sizes, allowed, strict=True)
        ]
        flags = torch.stack(near).tolist()
        found = torch.stack([norm for norm, _ in differences]).tolist()
        scales = torch.stack(sizes).tolist()
        limits = [0.0] * len(pairs)
        if not all(flags):
            # Larger differences are taken for coupling whatever rounding does: beside so much of
            # it nothing else would be seen.
            noises = self._rounding([own for _, own in pairs]).tolist()
            coarsest = coarsest_dtype(nodes_behind(self._prediction), self._prediction.dtype)
            eps = max(self._eps, min(torch.finfo(coarsest).eps, COARSEST_CHECKED))
            most = 3 * eps**0.5
            limits = [min(NOISE * n, most * size) for n, size in zip(noises, scales, strict=True)]
        return [
            (norm / (self._eps * size) if size > 0 and isfinite(norm) else 0.0)
            if holds or norm <= limit
            else None
            for holds, norm, size, limit in zip(flags, found, scales, limits, strict=True)
        ]

    def expect(self, pairs: Sequence[Pair], allowed: Sequence[float], checks: Checks) -> None:
        """The same as conditions, of which nothing is read yet."""
        differences = zip(pairs, self._differences(pairs), allowed, strict=True)
        for (block, _), (norm, finite), units in differences:
            checks.expect(self._near(norm, finite, self._sizes[id(block)], units), _raise_inexact)

    def _near(self, norm: Tensor, finite: Tensor, size: Tensor, units: float) -> Tensor:
        # For a coarse dtype the usual units of rounding are no longer small.
        allowed = (
            max(min(UNITS, 3 / self._eps**0.5), units if units > UNITS else 0) * self._eps * size
        )
        # Factors that are not finite agree with anything: it is not for the probe to report them.
        return (norm <= allowed) | ~finite

    def _differences(self, pairs: Sequence[Pair]) -> list[tuple[Tensor, Tensor]]:
        """Of each layer the norm of the difference, and whether its factors are finite."""
        weights = self._cotangent.double().flatten()
        differences = []
        for block, own in pairs:
            found = block.vjp(weights)
            difference = found - _joined(self.gradients, own, found)
            differences.append((difference.norm(), torch.isfinite(found).all()))
        return differences

    def _rounding(self, owns: Sequence[Sequence[int]]) -> Tensor:
        """Of each layer the norm of what c gives beyond the sum of what two parts of it give."""
        # Another share of each entry: errors may depend on single entries, or on all together.
        share = _random_shares(self._cotangent.shape, self._cotangent.device)
        first = self._cotangent * share.to(self._cotangent.dtype)
        parts = [self._pulled_back(part) for part in (first, self._cotangent - first)]
        like, norms = share.new_zeros(()), []
        for own in owns:
            whole, *summands = (_joined(g, own, like) for g in (self.gradients, *parts))
            norms.append((whole - summands[0] - summands[1]).norm())
        return torch.stack(norms)


def _joined(gradients: Sequence[Tensor | None], indices: Sequence[int], like: Tensor) -> Tensor:
    found = [gradient for index in indices if (gradient := gradients[index]) is not None]
    return torch.cat([gradient.flatten().to(like) for gradient in found])


def _raise_inexact() -> None:
    raise InexactLayersError


def _cotangent_of(prediction: Tensor, squares: Tensor | None, tiny: float) -> tuple[Tensor, Tensor]:
    """Random numbers divided by the norms of rows, and the norm of their products with these."""
    signs = _random(prediction.shape, prediction.device)
    if squares is None:
        return signs.to(prediction), signs.new_zeros(())
    sizes = squares.sum(0).sqrt().view_as(signs)
    largest = sizes.max()
    # Some largest row is there, or every row is without factors and any of c will do.
    reference = torch.where(largest > 0, largest, torch.ones_like(largest))
    floored = torch.maximum(sizes, reference * max(SMALLEST, tiny**0.5))
    # Half of the way to where the rows begin: neither c nor Jᵀ c leaves the range of the dtype.
    # Powers of two round nothing.
    weights = torch.exp2(torch.round(torch.log2(reference.sqrt() / floored)))
    cotangent = (signs * weights).to(prediction.dtype)
    present = torch.where(largest > 0, floored, torch.zeros_like(floored))
    return cotangent, (cotangent.double() * present).norm()


@lru_cache(maxsize=8)  # so that a step sends nothing to the device
def _random(shape: torch.Size, device: torch.device) -> Tensor:
    """Random numbers that are always the same, float64; nobody may change them.

    Their sizes, between 1 and 2, differ from sample to sample by as much as they can: what two
    samples do to one another appears in the rows of both, with opposite signs.
    """
    # A generator of its own: a step must not move the user's random state.
    generator = torch.Generator("cpu").manual_seed(20220310)

    def uniform() -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")

    places = uniform().argsort(dim=0).double()
    sizes = 1 + (places + 0.5 * uniform()) / shape[0]
    return torch.where(uniform() < 0.5, -sizes, sizes).to(device)


@lru_cache(maxsize=8)
def _random_shares(shape: torch.Size, device: torch.device) -> Tensor:
    """Numbers between -1 and 2."""
    generator = torch.Generator("cpu").manual_seed(3)
    numbers = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")
    return (3 * numbers - 1).to(device)


@dataclass
class ExactnessMemory:
    """Results of earlier checks, by layer: the positions of its parameters, and how it is used.

    Not every step has to find out again what an earlier one did.

    Attributes:
        optimistic: whether factors may be used before it is known that they are exact; turned off
            where they once were not.
        builds: number of Jacobians so far.
        failures: of layers whose factors were not exact, in graphs of a kind: how often in a row,
            and the build of the next try.
        rounding: of layers whose factors are exact up to more than the usual rounding: the units
            of rounding allowed, how often they were measured, and the build of the next time.
    """

    optimistic: bool = True
    builds: int = 0
    failures: dict[Key, tuple[int, int]] = field(default_factory=dict)
    rounding: dict[Key, tuple[float, int, int]] = field(default_factory=dict)

    def skips(self, layer: Key, kind: Hashable) -> bool:
        """Whether a layer is known not to be exact, and its next try is still to come."""
        _, next_try = self.failures.get((layer, kind), (0, 0))
        return self.builds < next_try

    def allowed(self, layer: Key) -> float:
        """Units of rounding by which a layer may differ without a closer look."""
        allowed, _, next_time = self.rounding.get(layer, (0.0, 0, 0))
        return max(allowed, UNITS) if self.builds < next_time else UNITS

    def failed(self, layer: Key, kind: Hashable) -> None:
        """Remember that a layer is not exact in graphs of a kind."""
        count = self.failures.pop((layer, kind), (0, 0))[0] + 1
        self.failures[layer, kind] = count, self.builds + _distance(count)
        self.rounding.pop(layer, None)
        while len(self.failures) > MOST:
            del self.failures[next(iter(self.failures))]

    def held(self, layer: Key, units: float, kind: Callable[[], Hashable]) -> None:
        """Remember that a layer is exact up to so many units of rounding."""
        if self.failures:
            self.failures.pop((layer, kind()), None)
        if units <= self.allowed(layer):
            return
        allowed, count, _ = self.rounding.pop(layer, (0.0, 0, 0))
        # Another batch may well have twice the rounding.
        next_time = self.builds + _distance(count + 1)
        self.rounding[layer] = max(allowed, 2 * units), count + 1, next_time
        while len(self.rounding) > MOST:
            del self.rounding[next(iter(self.rounding))]


def _distance(count: int) -> int:
    return min(LAST, FIRST << min(count - 1, 10))
