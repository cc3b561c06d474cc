"""A controlled trajectory: positions on the way to their targets, and the force that steers."""

import sys

import numpy as np
from matplotlib.lines import Line2D

from plots import _files, _style

_REMEDY = "Give a result file of a control problem whose run kept an example"

_EPILOG = """\
Above the positions over time with the targets, which count at the final time, below the control
force. Several files stand side by side.

example:
  python -m plots.trajectory hig.pickle adam.pickle --example 0 --out trajectory.png
"""


def draw(files, example=0):
    """Draws the figure.

    Args:
        files: Sequence of ResultFile.
        example: Which of the examples of the files.

    Returns:
        matplotlib.figure.Figure with a column for each file; positions above, force below.

    Raises:
        PlotError: A file has no (such) example, or its parts do not fit together.
    """
    figure, grid = _style.panels(
        2, len(files), height=1.8, sharex="col", sharey="row", height_ratios=(3, 2)
    )
    for (above, below), file in zip(grid.T, files, strict=True):
        parts = _parts(file, example)
        _draw_positions(above, parts)
        _draw_control(below, parts)
        if len(files) > 1:
            above.set_title(file.label, loc="left")
    grid[0, 0].set_ylabel("position")
    grid[1, 0].set_ylabel("control")
    target = {"linestyle": ":", "marker": "o", "markerfacecolor": "white", "markersize": 4.5}
    handles, _ = grid[0, 0].get_legend_handles_labels()
    handles.append(Line2D([], [], color=_style.GREY, linewidth=1.0, label="target", **target))
    figure.legend(handles=handles, loc="outside right upper")
    return figure


def _parts(file, example):
    """The arrays of one example: time (T+1,), state (T+1, S), target (S,), control (T,), names."""
    sizes = {"time": 1, "control_time": 1, "state": 3, "target": 2, "control": 2}
    parts = {key: file.array(f"example.{key}", ndim, _REMEDY) for key, ndim in sizes.items()}
    parts["names"] = [str(name) for name in file.get("example.state_names", _REMEDY)]
    count, times, states = parts["state"].shape
    expected = {
        "time": (times,),
        "control_time": (parts["control"].shape[1],),
        "target": (count, states),
        "control": (count, parts["control"].shape[1]),
        "names": (states,),
    }
    for key, shape in expected.items():
        if np.shape(parts[key]) != shape:
            raise _files.PlotError(
                f"'example.{key}' in {file.path} must have shape {shape} beside states of shape "
                f"{parts['state'].shape}, found {np.shape(parts[key])}; run the experiment again"
            )
    if not 0 <= example < count:
        raise _files.PlotError(
            f"{file.path} has no example {example}, only 0 to {count - 1}; change --example"
        )
    return parts | {key: parts[key][example] for key in ("state", "target", "control")}


def _draw_positions(axes, parts):
    time, names = parts["time"], parts["names"]
    # Velocities stand beside the positions in the state; without names to tell, all are shown.
    positions = [i for i, name in enumerate(names) if name.startswith("x")] or range(len(names))
    for order, index in enumerate(positions):
        colour = _style.SEQUENCE[order % len(_style.SEQUENCE)]
        axes.plot(time, parts["state"][:, index], color=colour, label=names[index])
        target = parts["target"][index]
        axes.axhline(target, color=colour, linestyle=":", linewidth=1.0)
        marker = {"marker": "o", "markerfacecolor": "white", "markersize": 4.5, "clip_on": False}
        axes.plot(time[-1], target, color=colour, zorder=3, **marker)
    axes.set_xlim(time[0], time[-1])


def _draw_control(axes, parts):
    axes.axhline(0.0, color="#bbbbbb", linewidth=0.6)
    # The force is constant from one control time to the next, and to the end after the last.
    edges = np.append(parts["control_time"], parts["time"][-1])
    axes.stairs(parts["control"], edges, baseline=None, color="black", linewidth=1.1)
    axes.set_xlabel("time")


def main(arguments=None):
    """Runs the command line.

    Args:
        arguments: Sequence of str; those of the process when None.

    Returns:
        Exit status, 0 or 2.
    """
    parser = _files.parser("trajectory", __doc__, _EPILOG)
    parser.add_argument(
        "--example", type=int, default=0, metavar="I", help="which example, from 0 (0)"
    )
    options = parser.parse_args(arguments)
    return _files.write(options, lambda files: draw(files, options.example))


if __name__ == "__main__":
    sys.exit(main())
