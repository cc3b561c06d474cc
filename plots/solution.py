"""Solution of a physics-informed network, next to the reference, and its error."""

import argparse
import math
import sys

import numpy as np
from matplotlib.colors import LogNorm

from plots import _files, _on_grid, _style

_EPILOG = """\
A column for each file, the prediction above the absolute error, after that of the reference; more
than four files continue below. Each value of the grid is a cell. The
time is to the right if the plane has it. Predictions have the colours of the reference, all
errors one logarithmic scale. MSE is the mean squared error over the plane shown. Of more than two
coordinates the figure shows the plane of the first two that are not held by --at; the last ones are
held at the end of the time, in the middle of space, or at the place of the grid nearest to --at.

examples:
  python -m plots.solution results/burgers/*.pickle --out solution.png
  python -m plots.solution schroedinger.pickle --unknown modulus --out modulus.png
  python -m plots.solution beltrami.pickle --unknown p --at t=0.5 z=-1 --out pressure.pdf
"""

_LABEL_WIDTH = 22  # characters above a panel
_SIDE = 1.5  # width of a panel in inches
_MOST_COLUMNS = 4  # files side by side, as a page is wide


def draw(files, unknown=None, at=None):
    """Draws the figure.

    Args:
        files: Sequence of ResultFile of one problem.
        unknown: Name of the unknown to show, or "modulus" where a real and an imaginary part are
            one; the first when None.
        at: dict from names of coordinates to the values at which to hold them; see the help.

    Returns:
        matplotlib.figure.Figure: the reference and the predictions, below these the errors.

    Raises:
        PlotError: A file has no solution, one that is not finite or on no full grid, the files
            show different problems, or there is no such unknown or plane.
    """
    files = _files.having(files, "example")
    solutions = [_on_grid.read(file) for file in files]
    _on_grid.require_one_problem(files, solutions)
    plane = _on_grid.plane(solutions[0], at or {})
    shown = [[plane.cut(part) for part in one.unknown(unknown)] for one in solutions]
    reference, predictions = shown[0][1], [prediction for prediction, _ in shown]
    errors = [np.abs(prediction - own) for prediction, own in shown]
    sides = [solutions[0].axes[solutions[0].coordinates.index(n)] for n in (plane.across, plane.up)]
    figure, grid = _panels(len(files), plane, sides)
    above, below = (grid[row::2, 1:].ravel()[: len(files)] for row in (0, 1))
    values = _draw([grid[0, 0], *above], sides, [reference, *predictions], _value_look(reference))
    absolute = _draw(below, sides, errors, _error_look(errors))
    name = unknown or solutions[0].unknowns[0]
    extend = _extend(reference, predictions)
    for row in grid[::2]:
        figure.colorbar(values, ax=row.tolist(), label=name, extend=extend, aspect=15)
    for row in grid[1::2]:
        label = "absolute error"
        figure.colorbar(absolute, ax=row.tolist(), label=label, extend="min", aspect=15)
    _label(grid, plane, zip(above, below, files, errors, strict=True))
    return figure


def _panels(files, plane, sides):
    """Pairs of rows, with one scale for both sides where neither is the time.

    The reference has the first column to itself.
    """
    pairs = math.ceil(files / _MOST_COLUMNS)
    columns = math.ceil(files / pairs)
    even = _on_grid.TIME not in (plane.across, plane.up)
    across, up = (np.ptp(side) for side in sides)
    height = _SIDE * (np.clip(up / across, 0.5, 2.0) if even else 0.8)
    # With room for the labels of a panel.
    figure, grid = _style.panels(
        2 * pairs, 1 + columns, width=_SIDE + 0.35, height=height + 0.75, sharex=True, sharey=True
    )
    if even:
        figure.set_layout_engine("compressed")  # no gaps next to the panels
        for axes in grid.ravel():
            axes.set_aspect("equal")
    for axes in [*grid[1:, 0], *grid[-2:, 1 + files - columns * (pairs - 1) :].ravel()]:
        axes.axis("off")
    grid[0, 0].locator_params(axis="x", nbins=3)  # numbers of one panel end where the next begin
    return figure, grid


def _draw(panels, sides, planes, look):
    for axes, values in zip(panels, planes, strict=True):
        axes.grid(False)
        # Cells without interpolation: smoothness comes from the points alone. Rasterised, as
        # thousands of cells make a slow PDF.
        image = axes.pcolormesh(*sides, values, shading="nearest", rasterized=True, **look)
    return image


def _value_look(reference):
    """Symmetric about zero for values of both signs, else from the lowest to the highest."""
    low, high = reference.min(), reference.max()
    if low < 0 < high:
        limit = max(-low, high)
        return {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
    if low == high:
        low, high = low - 0.5, high + 0.5  # no scale has the length zero
    return {"cmap": "viridis", "vmin": low, "vmax": high}


def _extend(reference, predictions):
    """On which ends of the scale there are predictions beyond."""
    look = _value_look(reference)
    below = any(prediction.min() < look["vmin"] for prediction in predictions)
    above = any(prediction.max() > look["vmax"] for prediction in predictions)
    return {(True, True): "both", (True, False): "min", (False, True): "max"}.get(
        (below, above), "neither"
    )


def _error_look(errors):
    """From a low quantile, as an error is zero wherever it changes its sign."""
    values = np.concatenate([error.ravel() for error in errors])
    positive = values[values > 0]
    high = positive.max() if positive.size else 1.0
    low = min(np.quantile(positive, 0.02) if positive.size else 0.1, 0.1 * high)
    # Clipped, since a logarithmic scale would leave a hole for an error of zero.
    return {"cmap": "magma", "norm": LogNorm(low, high, clip=True)}


def _label(grid, plane, columns):
    grid[0, 0].set_title("reference")
    grid[0, 0].set_xlabel(plane.across)
    for above, below, file, error in columns:
        above.set_title(_style.wrapped(file.label, _LABEL_WIDTH))
        below.set_title(f"error, MSE {np.mean(error**2):.2g}")
        below.set_xlabel(plane.across)
        below.tick_params(labelbottom=True)
    # Nothing is below the reference, and nothing to the left of the first errors.
    grid[0, 0].tick_params(labelbottom=True)
    grid[0, 0].set_ylabel(plane.up)
    for axes in [*grid[1::2, 1], *grid[2::2, 1]]:
        axes.set_ylabel(plane.up)
        axes.tick_params(labelleft=True)
    if plane.held:
        text = "\n".join(f"{name} = {value:.4g}" for name, value in plane.held.items())
        grid[1, 0].text(0.5, 0.5, f"at {text}", ha="center", va="center", fontsize=9,
                        transform=grid[1, 0].transAxes)  # fmt: skip


def _held(text):
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be a coordinate and a value, got {text!r}; for example t=0.5"
        ) from None


def main(arguments=None):
    """Runs the command line, by default that of the process; returns its exit status."""
    parser = _files.parser("solution", __doc__, _EPILOG)
    parser.add_argument(
        "--unknown",
        metavar="NAME",
        help="which unknown, or the modulus of a real and an imaginary part (the first)",
    )
    parser.add_argument(
        "--at",
        nargs="+",
        type=_held,
        default=[],
        metavar="NAME=VALUE",
        help="coordinates to hold, e.g. t=0.5 z=-1",
    )
    options = parser.parse_args(arguments)
    return _files.write(options, lambda files: draw(files, options.unknown, dict(options.at)))


if __name__ == "__main__":
    sys.exit(main())
