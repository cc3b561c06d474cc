"""A controlled field, a velocity or a phase: with its force over space and time, and at the end."""

import sys

from plots import _example, _files, _style

_REMEDY = "Give a result file of a controlled flow whose run kept an example"

_QUANTITIES = ("velocity", "phase")


def _layout(quantity):
    return {
        quantity: ("examples", "times", "cells"),
        "force": ("examples", "steps", "cells"),
        "time": ("times",),
        "position": ("cells",),
        f"uncontrolled_{quantity}": ("examples", "cells"),
        f"target_{quantity}": ("examples", "cells"),
    }


_EPILOG = """\
Above the field over time (to the right) and space (upwards), below it the force, below that the
field over space: at the start, at the end, at the end without a force, and the target. Several
files stand side by side and share scales.

example:
  python -m plots.flow hig.pickle adam.pickle --example 0 --out flow.png
"""


def draw(files, example=0):
    """Draw the figure of one of the examples of each file.

    Returns:
        matplotlib.figure.Figure with a column for each file: field, force and profiles.

    Raises:
        PlotError: A file has no (such) example, its parts do not fit together, or the files are
            of different quantities.
    """
    files = _files.having(files, "example")
    quantity = _quantity(files)
    examples = [_example.read(file, _layout(quantity), example, _REMEDY) for file in files]
    figure, grid = _style.panels(
        3, len(files), width=2.8, height=1.6, legend_width=1.1, sharey="row"
    )
    for key, row in ((quantity, grid[0]), ("force", grid[1])):
        highest = _example.largest(parts[key] for parts in examples)
        for axes, parts in zip(row, examples, strict=True):
            image = _draw_field(axes, parts, key, highest)
        row[0].set_ylabel("position")
        # Inside of the last panel's frame: a bar of its own place would keep clear of the legend.
        figure.colorbar(image, cax=row[-1].inset_axes([1.03, 0.0, 0.04, 1.0]), label=key)
    for column, file, parts in zip(grid.T, files, examples, strict=True):
        column[1].set_xlabel("time")
        _draw_profiles(column[2], parts, quantity)
        if len(files) > 1:
            column[0].set_title(file.label, loc="left")
    grid[2, 0].set_ylabel(quantity)
    grid[2, -1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _quantity(files):
    """The quantity that all files show; a velocity, which is asked for, if they show none."""
    examples = [file.results.get("example", {}) for file in files]
    found = {next((q for q in _QUANTITIES if q in one), _QUANTITIES[0]) for one in examples}
    if len(found) > 1:
        raise _files.PlotError(
            f"the files show different quantities, {' and '.join(sorted(found))}; draw a figure of "
            "each"
        )
    return found.pop()


def _draw_field(axes, parts, key, highest):
    time, values = parts["time"], parts[key]
    if len(values) < len(time):  # constant within each step, and drawn in its middle
        time = (time[1:] + time[:-1]) / 2
    axes.grid(False)
    axes.set_xlim(parts["time"][0], parts["time"][-1])
    return axes.pcolormesh(
        time,
        parts["position"],
        values.T,
        shading="nearest",
        cmap="RdBu_r",
        vmin=-highest,
        vmax=highest,
        rasterized=True,  # thousands of cells make a slow PDF
    )


def _draw_profiles(axes, parts, quantity):
    position, field = parts["position"], parts[quantity]
    free, target = (parts[f"{state}_{quantity}"] for state in ("uncontrolled", "target"))
    axes.plot(position, target, color="#bbbbbb", linewidth=4, label="target")
    axes.plot(position, field[-1], color="black", linewidth=1.1, label="final")
    axes.plot(position, free, color="#0072B2", linestyle="--", label="no force")
    axes.plot(position, field[0], color=_style.GREY, linestyle=":", label="start")
    axes.set_xlabel("position")


def main(arguments=None):
    """Runs the command line, by default that of the process; returns its exit status."""
    return _example.run("flow", __doc__, _EPILOG, draw, arguments)


if __name__ == "__main__":
    sys.exit(main())
