"""A solution on a grid out of a result file, and the planes through it."""

import math
from dataclasses import dataclass

import numpy as np

from plots import _example, _files

TIME = "t"
MODULUS = "modulus"
REMEDY = "Give a result file of a physics-informed problem whose run kept an example"

_PARTS = ("real", "imaginary")
# Values of one grid may differ by the rounding of float32, relative to the largest of them.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class OnGrid:
    """Prediction of a network on a grid, and the reference.

    Attributes:
        coordinates: Names of the D coordinates.
        unknowns: Names of the F unknowns.
        axes: The places along each coordinate, ascending.
        prediction: (n_1, ..., n_D, F).
        reference: The same shape.
    """

    coordinates: list[str]
    unknowns: list[str]
    axes: list[np.ndarray]
    prediction: np.ndarray
    reference: np.ndarray

    def unknown(self, name):
        """Prediction and reference (n_1, ..., n_D) of one unknown, by default the first.

        "modulus" is that of a real and an imaginary part; a PlotError if there is no such unknown.
        """
        if name == MODULUS and self._is_complex:
            return tuple(np.linalg.norm(v, axis=-1) for v in (self.prediction, self.reference))
        if name not in (None, *self.unknowns):
            known = [*self.unknowns, *([MODULUS] if self._is_complex else [])]
            raise _files.PlotError(
                f"there is no unknown {name!r}; --unknown can be {', '.join(known)} here"
            )
        index = 0 if name is None else self.unknowns.index(name)
        return self.prediction[..., index], self.reference[..., index]

    @property
    def _is_complex(self):
        return tuple(self.unknowns) == _PARTS


@dataclass(frozen=True)
class Plane:
    """A plane along two coordinates.

    Attributes:
        across: Name of the coordinate to the right: the time, else the first of the two.
        up: Name of the other one.
        index: Index of the plane in an array (n_1, ..., n_D), in the order of coordinates.
        turned: True if the first of the two coordinates is `across`.
        held: dict from the names of the other coordinates to their values.
    """

    across: str
    up: str
    index: tuple
    turned: bool
    held: dict[str, float]

    def cut(self, array):
        """The values on the plane, (places up, places across)."""
        plane = array[self.index]
        return plane.T if self.turned else plane


def read(file):
    """The solution, `OnGrid`, that a ResultFile holds.

    Raises:
        PlotError: The file has none, its parts do not fit together, are not finite, or the points
            are not a full grid.
    """
    arrays = [_finite(file, key) for key in ("points", "prediction", "solution")]
    points, prediction, reference = arrays
    for key, array in (("prediction", prediction), ("solution", reference)):
        if array.shape != (len(points), reference.shape[1]):
            raise _files.PlotError(
                f"'example.{key}' in {file.path} must have shape "
                f"{(len(points), reference.shape[1])} next to 'points' of shape {points.shape}, "
                f"found {array.shape}; run the experiment again"
            )
    coordinates = _example.names(file, "coordinates", points.shape[1], REMEDY)
    unknowns = _example.names(file, "unknowns", reference.shape[1], REMEDY)
    axes, order = _grid(file, points)
    shape = (*map(len, axes), len(unknowns))
    prediction, reference = (values[order].reshape(shape) for values in (prediction, reference))
    return OnGrid(coordinates, unknowns, axes, prediction, reference)


def _finite(file, key):
    array = file.array(f"example.{key}", 2, REMEDY)
    if bad := np.sum(~np.isfinite(array)):
        raise _files.PlotError(
            f"{bad} of {array.size} values of 'example.{key}' in {file.path} are not finite; "
            "leave the file out"
        )
    return array


def _grid(file, points):
    """The places along each coordinate, and the order that puts points as an array has them."""
    found = [np.unique(column, return_inverse=True) for column in points.T]
    axes, places = zip(*found, strict=True)
    shape = tuple(map(len, axes))
    # The product first: that of scattered points may be beyond any index.
    if math.prod(shape) == len(points) and min(shape) > 1:
        index = np.ravel_multi_index(places, shape)
        order = np.argsort(index)
        if np.array_equal(index[order], np.arange(len(points))):
            return list(axes), order
    raise _files.PlotError(
        f"the {len(points)} points of 'example.points' in {file.path} are not a full grid: they "
        f"have {' x '.join(map(str, shape))} different places along the coordinates; this figure "
        "needs every combination of two or more places along each, once"
    )


def require_one_problem(files, solutions):
    """Raise a PlotError unless several files show one reference on one grid."""
    first, own = files[0], solutions[0]
    for file, other in zip(files[1:], solutions[1:], strict=True):
        if what := _difference(first, own, file, other):
            raise _files.PlotError(
                f"{first.path} and {file.path} show different {what}; draw a figure of each"
            )


def _difference(first, own, file, other):
    names = [(s.coordinates, s.unknowns) for s in (own, other)]
    if first.problem != file.problem or names[0] != names[1]:
        return f"problems, {first.problem or names[0]} and {file.problem or names[1]}"
    if not all(_close(*pair) for pair in zip(own.axes, other.axes, strict=True)):
        shapes = [" x ".join(str(len(axis)) for axis in s.axes) for s in (own, other)]
        return f"grids, {shapes[0]} and {shapes[1]}" if shapes[0] != shapes[1] else "grids"
    if not _close(own.reference, other.reference):
        return "references, as of other parameters of the problem"
    return None


def _close(one, other):
    tolerance = _ROUNDING * np.abs(one).max()
    return one.shape == other.shape and np.allclose(one, other, rtol=0, atol=tolerance)


def plane(solution, at):
    """The plane to show.

    Args:
        solution: OnGrid.
        at: dict from names of coordinates to the values at which to hold them. As long as more
            than two are free, the last ones are held too: the time at its end, others in the
            middle.

    Returns:
        Plane through places of the grid, the nearest ones.

    Raises:
        PlotError: There is no such coordinate or value, or fewer than two are free.
    """
    for name in at:
        if name not in solution.coordinates:
            raise _files.PlotError(
                f"there is no coordinate {name!r}; --at can hold "
                f"{', '.join(solution.coordinates)} here"
            )
    free = [name for name in solution.coordinates if name not in at][:2]
    if len(free) < 2:
        raise _files.PlotError(
            f"--at holds {' and '.join(at)} of {', '.join(solution.coordinates)}, and a plane "
            "needs two that are free; leave some out"
        )
    index, held = [], {}
    for name, axis in zip(solution.coordinates, solution.axes, strict=True):
        place = slice(None) if name in free else _place(name, axis, at.get(name))
        index.append(place)
        if name not in free:
            # The middle of an even grid is zero but for rounding.
            held[name] = float(np.round(axis[place] / np.ptp(axis), 6) * np.ptp(axis)) + 0.0
    turned = free[1] != TIME
    across, up = free if turned else reversed(free)
    return Plane(across, up, tuple(index), turned, held)


def _place(name, axis, value):
    if value is None:
        return len(axis) - 1 if name == TIME else len(axis) // 2
    if not axis[0] <= value <= axis[-1]:
        raise _files.PlotError(
            f"{name}={value:g} is outside of the grid; --at {name}=... takes values from "
            f"{axis[0]:.4g} to {axis[-1]:.4g}"
        )
    return int(np.argmin(np.abs(axis - value)))
