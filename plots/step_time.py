"""Seconds of a training step against the batch size."""

import sys

from matplotlib.patches import Patch

from plots import _files, _style

_REMEDY = "Give a result file of a measurement of step times"
_KEYS = ("batch_size", "seconds_per_step", "seconds_per_step_min", "seconds_per_step_max")

_EPILOG = """\
A line for each file, in a band from the fastest to the slowest repetition. Each problem has its own
panel.

example:
  python -m plots.step_time hig.pickle adam.pickle --out step_time.png
"""


def draw(files):
    """Draw a panel for each problem.

    Raises a PlotError if no file has step times, or they are not positive or do not fit together.
    """
    files = _files.having(files, "seconds_per_step")
    problems = list(dict.fromkeys(file.problem for file in files))
    styles = _style.line_styles({(file.method, file.label) for file in files})
    figure, grid = _style.panels(1, len(problems), sharey="row")
    for axes, problem in zip(grid[0], problems, strict=True):
        for file in files:
            if file.problem == problem:
                _draw_file(axes, file, styles[file.method, file.label])
        _finish(axes)
        if len(problems) > 1:
            axes.set_title(problem.replace("_", " ") or "problem not named", loc="left")
        _style.plain_ticks(axes.yaxis)
    grid[0, 0].set_ylabel("time per step (s)")
    lines = {line.get_label(): line for axes in grid[0] for line in axes.lines}
    handles = [lines[label] for label in dict.fromkeys(label for _, label in styles)]
    handles.append(Patch(color=_style.GREY, alpha=0.2, lw=0, label="min–max"))
    figure.legend(handles=handles, loc="outside right upper")
    return figure


def _draw_file(axes, file, style):
    size, seconds, fastest, slowest = _files.ascending(file, _KEYS, _REMEDY)
    axes.plot(size, seconds, marker="o", markersize=3.5, label=file.label, **style)
    axes.fill_between(size, fastest, slowest, color=style["color"], alpha=0.2, lw=0)


def _finish(axes):
    axes.set_xscale("log", base=2)  # batch sizes are mostly powers of two
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yscale("log")
    axes.set_xlabel("batch size")


def main(arguments=None):
    """Runs the command line, by default that of the process; returns its exit status."""
    parser = _files.parser("step_time", __doc__, _EPILOG)
    options = parser.parse_args(arguments)
    return _files.write(options, draw)


if __name__ == "__main__":
    sys.exit(main())
