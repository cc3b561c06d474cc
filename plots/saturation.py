"""Mean and spread of each neuron's activation over the test data in the course of the training."""

import sys

import numpy as np

from plots import _files, _style
from plots._curves import UNITS, positions

_REMEDY = "Only the conditioning problem records the activations of its neurons"

_EPILOG = """\
A neuron whose mean is near -1 or 1 and whose spread (standard deviation) is near 0 is saturated: it
gives the same output for every input, and its gradient has vanished. Several files stand side by
side.

example:
  python -m plots.saturation gn.pickle hig.pickle --log-x --out saturation.png
"""


def draw(files, x="time", log_x=False):
    """Draw along "time" or "epochs"; a logarithmic axis has no place for the start.

    Returns:
        matplotlib.figure.Figure with a column for each file; means above, spreads below.

    Raises:
        PlotError: No file has activations, or their parts do not fit together.
    """
    files = _files.having(files, "test_activation_mean")
    figure, grid = _style.panels(2, len(files), height=1.6, sharex="col", sharey="row")
    for (above, below), file in zip(grid.T, files, strict=True):
        _draw_file(above, below, file, x, log_x)
        if len(files) > 1:
            above.set_title(file.label, loc="left")
    grid[0, 0].set_ylabel("mean activation")
    grid[0, 0].set_ylim(-1.05, 1.05)
    grid[1, 0].set_ylabel("spread")
    grid[1, 0].set_ylim(bottom=0.0)
    handles = {line.get_label(): line for axes in grid[0] for line in axes.lines}
    figure.legend(handles=handles.values(), loc="outside right upper")
    return figure


def _draw_file(above, below, file, x, log_x):
    mean, spread = _activations(file)
    position = positions(file, x, len(mean))
    # The evaluation before training has no place on a logarithmic axis.
    shown = position > 0 if log_x else np.full(len(position), True)
    if not shown.any():
        raise _files.PlotError(
            f"{file.path} has no evaluation after the start, the one that a logarithmic axis "
            "cannot show; leave --log-x out"
        )
    for index in range(mean.shape[1]):
        colour = _style.SEQUENCE[index % len(_style.SEQUENCE)]
        look = {"color": colour, "label": f"neuron {index + 1}"}
        above.plot(position[shown], mean[shown, index], **look)
        below.plot(position[shown], spread[shown, index], **look)
    below.set_xlabel(UNITS[x])
    if log_x:
        below.set_xscale("log")
    else:
        below.set_xlim(left=0)


def _activations(file):
    """Means and spreads, (evaluations, neurons) each."""
    mean = file.array("test_activation_mean", 2, _REMEDY)
    spread = file.array("test_activation_spread", 2, _REMEDY)
    if mean.shape != spread.shape:
        raise _files.PlotError(
            f"'test_activation_spread' in {file.path} must have shape {mean.shape} like the means, "
            f"found {spread.shape}; run the experiment again"
        )
    return mean, spread


def main(arguments=None):
    """Runs the command line, by default that of the process; returns its exit status."""
    parser = _files.parser("saturation", __doc__, _EPILOG)
    parser.add_argument(
        "--x", choices=("time", "epochs"), default="time", help="horizontal axis (time)"
    )
    parser.add_argument("--log-x", action="store_true", help="logarithmic horizontal axis")
    options = parser.parse_args(arguments)
    return _files.write(options, lambda files: draw(files, options.x, options.log_x))


if __name__ == "__main__":
    sys.exit(main())
