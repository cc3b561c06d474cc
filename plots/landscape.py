"""Trajectories over the landscape of two losses, with the Pareto front that they should reach."""

import re
import sys

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from plots import _files, _style

_REMEDY = "Only the toy problem of two losses records a trajectory and a landscape"

_EPILOG = """\
Each method has a panel, with the trajectories of all its files: the starts. Below them lies the sum
of the two losses. A trajectory that ends away from the Pareto front is stuck, or not yet there.

examples:
  python -m plots.landscape results/toy/*.pickle --out landscape.png
  python -m plots.landscape results/toy/toy_adam_*.pickle --out adam.pdf
"""

COLUMNS = 4  # at most
_PALE = LinearSegmentedColormap.from_list("pale", ["#ffffff", "#a8a8a8"])
_START = {"marker": "o", "markerfacecolor": "white", "markersize": 4.5}
_END = {"marker": "*", "markersize": 9, "markeredgecolor": "black", "markeredgewidth": 0.4}
_FRONT = {"color": "black", "linewidth": 2.5, "alpha": 0.75}


def draw(files):
    """Draw the figure; files of one label, but for the start, share a panel.

    Returns:
        matplotlib.figure.Figure with a panel for each method, the legend next to them.

    Raises:
        PlotError: No file has a trajectory, or its parts do not fit together.
    """
    files = _files.having(files, "test_position")
    panels = {}
    for file in files:
        panels.setdefault(without_start(file.label), []).append(file)
    rows = -(-len(panels) // COLUMNS)
    columns = -(-len(panels) // rows)
    figure, grid = _style.panels(rows, columns, width=2.1, height=2.2, sharex=True, sharey=True)
    levels = _levels(group[0] for group in panels.values())
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes in grid.flat[max(0, len(panels) - columns) : len(panels)]:
        axes.tick_params(labelbottom=True)  # the lowest of its column
    for axes, (label, group) in zip(grid.flat, panels.items(), strict=False):
        background = _draw_landscape(axes, group[0], levels)
        for file in group:
            _draw_trajectory(axes, file)
        axes.set_title(label, loc="left")
        axes.set_aspect("equal")
        axes.grid(visible=False)
    figure.supxlabel("$x$", fontsize="medium")
    figure.supylabel("$y$", fontsize="medium")
    bar = figure.colorbar(background, ax=figure.axes, aspect=30)
    bar.set_label("sum of the losses")
    figure.legend(handles=_handles(files), loc="outside right upper")
    return figure


def without_start(label):
    """Remove the start from a label, e.g. "Adam (lr 0.1, start 2)" -> "Adam (lr 0.1)"."""
    return re.sub(r" \(\)$", "", re.sub(r"(, )?\bstart \d+\b", "", label)).replace("(, ", "(")


def _levels(files):
    sums = [_landscape(file)[2] for file in files]
    return MaxNLocator(16).tick_values(min(s.min() for s in sums), max(s.max() for s in sums))


def _landscape(file):
    """The grid x (n,), y (m,) and the sum of the losses there (n, m)."""
    x, y = (file.array(f"example.{name}", 1, _REMEDY) for name in "xy")
    losses = file.array("example.landscape", 3, _REMEDY)
    if losses.shape != (len(x), len(y), 2):
        raise _files.PlotError(
            f"'example.landscape' in {file.path} must have shape {(len(x), len(y), 2)} like the "
            f"grid, found {losses.shape}; run the experiment again"
        )
    return x, y, losses.sum(2)


def _draw_landscape(axes, file, levels):
    x, y, losses = _landscape(file)
    filled = axes.contourf(x, y, losses.T, levels, cmap=_PALE)
    axes.contour(x, y, losses.T, levels, colors="white", linewidths=0.4, linestyles="solid")
    axes.plot(*_positions(file, "example.front").T, **_FRONT)
    return filled


def _draw_trajectory(axes, file):
    position = _positions(file, "test_position")
    colour = _colour(_start(file))
    axes.plot(*position.T, color=colour, linewidth=1.3)
    axes.plot(*position[0], color=colour, clip_on=False, zorder=3, **_START)
    axes.plot(*position[-1], color=colour, clip_on=False, zorder=4, **_END)


def _positions(file, key):
    positions = file.array(key, 2, _REMEDY)
    if positions.shape[1] != 2:
        raise _files.PlotError(
            f"'{key}' in {file.path} must have shape (n, 2), found {positions.shape}; run the "
            "experiment again"
        )
    return positions


def _start(file):
    return int(file.get("sim_par.start", _REMEDY))


def _colour(start):
    return _style.SEQUENCE[(start - 1) % len(_style.SEQUENCE)]


def _handles(files):
    handles = [
        Line2D([], [], color=_colour(start), linewidth=1.3, label=f"from start {start}")
        for start in sorted({_start(file) for file in files})
    ]
    grey = {"color": _style.GREY, "linestyle": "none"}
    handles.append(Line2D([], [], label="start", **grey, **_START))
    handles.append(Line2D([], [], label="end", **grey, **_END))
    return [*handles, Line2D([], [], label="Pareto front", **_FRONT)]


def main(arguments=None):
    """Runs the command line, by default that of the process; returns its exit status."""
    options = _files.parser("landscape", __doc__, _EPILOG).parse_args(arguments)
    return _files.write(options, draw)


if __name__ == "__main__":
    sys.exit(main())
