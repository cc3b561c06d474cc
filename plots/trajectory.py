"""A controlled trajectory: positions on the way to their targets, and the force that steers."""

import sys

from plots import _example, _files, _style

_REMEDY = "Give a result file of a control problem whose run kept an example"

_LAYOUT = {
    "state": ("examples", "times", "states"),
    "time": ("times",),
    "target": ("examples", "states"),
    "control": ("examples", "steps"),
    "control_time": ("steps",),
}

_EPILOG = """\
Above the positions over time with the targets, which count at the final time, below the control
force. Several files stand side by side.

example:
  python -m plots.trajectory hig.pickle adam.pickle --example 0 --out trajectory.png
"""


def draw(files, example=0):
    """Draw a column for each file: positions of one example above, force below.

    Raises a PlotError if a file has no (such) example, or its parts do not fit together.
    """
    files = _files.having(files, "example")
    figure, grid = _style.panels(
        2, len(files), height=1.8, sharex="col", sharey="row", height_ratios=(3, 2)
    )
    for (above, below), file in zip(grid.T, files, strict=True):
        parts = _example.read(file, _LAYOUT, example, _REMEDY)
        names = _example.names(file, "state_names", parts["state"].shape[-1], _REMEDY)
        _draw_positions(above, parts, names)
        _example.draw_control(below, parts)
        if len(files) > 1:
            above.set_title(file.label, loc="left")
    grid[0, 0].set_ylabel("position" if _positions(names) else "state")
    grid[1, 0].set_ylabel("control")
    handles, _ = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles=[*handles, _example.target_handle()], loc="outside right upper")
    return figure


def _positions(names):
    """Finds the positions among positions and velocities; none if the names do not say."""
    return [i for i, name in enumerate(names) if name.startswith("x")]


def _draw_positions(axes, parts, names):
    time = parts["time"]
    positions = _positions(names) or range(len(names))
    colours = [_style.SEQUENCE[i % len(_style.SEQUENCE)] for i in range(len(positions))]
    for colour, index in zip(colours, positions, strict=True):
        axes.plot(time, parts["state"][:, index], color=colour, label=names[index])
    _example.draw_targets(axes, time[-1], parts["target"][list(positions)], colours)
    axes.set_xlim(time[0], time[-1])


def main(arguments=None):
    """Runs the command line, by default that of the process; returns its exit status."""
    return _example.run("trajectory", __doc__, _EPILOG, draw, arguments)


if __name__ == "__main__":
    sys.exit(main())
