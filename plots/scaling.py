"""Time and memory of a step against the size of the network or of the batch."""

import sys

import numpy as np

from plots import _files, _style

_REMEDY = "Give the result files of python -m experiments.scaling"
_AXES = {
    "parameters": "parameters",
    "rows": "rows of the Jacobian",
    "fields": "fields of 64 × 64 in a batch",
    "outputs": "outputs of a sample",
}

_EPILOG = """\
A row of panels for each axis: time on the left, in a band from the fastest to the slowest step,
peak of memory on the right. Numbers at the lines are exponents, fitted to the largest half of the
sizes.

example:
  python -m plots.scaling results/scaling/scaling_parameters_*.pickle --out scaling.png
"""


def draw(files):
    """Draw two panels for each axis that grew; a PlotError without positive measurements."""
    files = _files.having(files, "peak_bytes")
    axes_found = list(dict.fromkeys(_axis(file) for file in files))
    styles = _style.line_styles({(file.method, file.label) for file in files})
    figure, grid = _style.panels(len(axes_found), 2)
    for (time, memory), axis in zip(grid, axes_found, strict=True):
        for file in files:
            if _axis(file) == axis:
                _draw_file(time, memory, file, styles[file.method, file.label])
        for panel, label in ((time, "time per step (s)"), (memory, "peak of memory (GB)")):
            panel.set(xscale="log", yscale="log", xlabel=_AXES[axis], ylabel=label)
    lines = {line.get_label(): line for panel in grid.flat for line in panel.lines}
    handles = [line for label, line in lines.items() if not label.startswith("_")]
    figure.legend(handles=handles, loc="outside right upper")
    return figure


def exponent(size, value):
    """Slope through the largest half of the points on log axes; NaN for fewer than three."""
    count = max(2, -(-len(size) // 2))
    if len(size) < 3:
        return float("nan")
    return float(np.polyfit(np.log(size[-count:]), np.log(value[-count:]), 1)[0])


def _axis(file):
    axis = file.get("axis", _REMEDY)
    if axis not in _AXES:
        raise _files.PlotError(f"{file.path} grows {axis!r}, not one of {', '.join(_AXES)}")
    return axis


def _draw_file(time, memory, file, style):
    keys = ("size", "seconds_per_step", "seconds_per_step_min", "seconds_per_step_max")
    size, seconds, fastest, slowest, peak = _files.ascending(file, (*keys, "peak_bytes"), _REMEDY)
    time.fill_between(size, fastest, slowest, color=style["color"], alpha=0.2, lw=0)
    for panel, value in ((time, seconds), (memory, peak / 1e9)):
        panel.plot(size, value, marker="o", markersize=3.5, label=file.label, **style)
        slope = exponent(size, value)
        if np.isfinite(slope):
            panel.annotate(
                f"{slope:.2f}",
                (size[-1], value[-1]),
                xytext=(5, 0),
                textcoords="offset points",
                color=style["color"],
                fontsize=8,
                va="center",
            )


def main(arguments=None):
    """Runs the command line, by default that of the process; returns its exit status."""
    parser = _files.parser("scaling", __doc__, _EPILOG)
    options = parser.parse_args(arguments)
    return _files.write(options, draw)


if __name__ == "__main__":
    sys.exit(main())
