"""Layers that were exact in earlier steps, so that not every step has to find out again."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

__all__ = ["UNITS", "ExactnessMemory", "Key"]

# Units of rounding of a row, root mean square over all rows, by which factors and gradients may
# differ without a closer look. Networks before simulators of a few hundred steps stay below seven.
UNITS = 8
# Builds to the first try of what has failed, doubled from failure to failure, and their maximum.
FIRST, LAST = 4, 1024
# Entries kept, the latest ones: a graph may change from step to step.
MOST = 1000

Key = tuple[object, ...]


@dataclass
class ExactnessMemory:
    """Results of earlier checks, by layer: the positions of its parameters, and how it is used.

    Attributes:
        builds: number of Jacobians so far.
        failures: of layers whose factors were not exact, in graphs of a kind: how often in a row,
            and the build of the next try.
        rounding: of layers whose factors are exact up to more than the usual rounding: the units
            of rounding allowed, how often they were measured, and the build of the next time.
    """

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
