"""Kept rank of the joint Jacobian in the course of the training, and the number of its rows."""

import sys

import numpy as np

from plots import _files, _style
from plots._curves import step_numbers

_REMEDY = (
    "Only methods that decompose one Jacobian, such as HIG, record its rank; MultiHIG does where "
    "all losses share one prediction"
)

_EPILOG = """\
The rank counts the singular values above the cut-off; the dashed line is the number of rows of the
Jacobian, batch size times outputs, and the rank can be no larger. Pale lines show every step, the
others the running median over a fiftieth of the steps. Files with one label, such as the seeds of a
method, share a colour. Each problem has its own panel.

example:
  python -m plots.rank hig.pickle gn.pickle --x steps --out rank.png
"""


def draw(files, x="time"):
    """Draw a panel for each problem, along "time" or "steps".

    Raises a PlotError if no file has ranks, or as many times as it has not steps.
    """
    files = _files.having(files, "rank")
    problems = list(dict.fromkeys(file.problem for file in files))
    styles = _style.line_styles({(file.method, file.label) for file in files})
    figure, grid = _style.panels(1, len(problems))
    for axes, problem in zip(grid[0], problems, strict=True):
        found = [file for file in files if file.problem == problem]
        for file in sorted(found, key=lambda file: list(styles).index((file.method, file.label))):
            _draw_file(axes, file, x, styles[file.method, file.label])
        _draw_rows(axes, {int(file.array("rows", 0, _REMEDY)) for file in found})
        axes.set_xlim(left=0)
        axes.set_xlabel("training time (s)" if x == "time" else "steps")
        if len(problems) > 1:
            axes.set_title(problem.replace("_", " ") or "problem not named", loc="left")
    grid[0, 0].set_ylabel("kept rank")
    _legend(figure, [label for _, label in styles])
    return figure


def _draw_file(axes, file, x, style):
    rank = file.array("rank", 1, _REMEDY)
    position = _positions(file, x, len(rank))
    smooth = _running_median(rank, max(len(rank) // 50, 1))
    # Batches differ in rank: each step is shown pale, its running median in full colour.
    axes.step(position, rank, "-", where="post", lw=0.6, alpha=0.35, color=style["color"])
    axes.step(position, smooth, where="post", label=file.label, **style)


def _draw_rows(axes, all_rows):
    for rows in sorted(all_rows):
        line = {"color": _style.GREY, "linestyle": "--", "linewidth": 1.0}
        axes.axhline(rows, label=f"rows ({rows})", **line)
    axes.set_ylim(0, 1.05 * max(all_rows))


def _legend(figure, labels):
    """Methods, then rows, each once."""
    lines = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    rows = [label for label in lines if label.startswith("rows")]
    handles = [lines[label] for label in dict.fromkeys([*labels, *rows])]
    figure.legend(handles=handles, loc="outside right upper")


def _running_median(values, width):
    half = width // 2
    padded = np.pad(values, half, mode="reflect")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1), axis=-1)


def _positions(file, x, count):
    if x == "steps":
        return step_numbers(file, count)
    time = file.array("step_time", 1, "Use --x steps")
    if len(time) != count:
        raise _files.PlotError(
            f"'step_time' in {file.path} has {len(time)} entries for {count} ranks; use --x steps"
        )
    return time


def main(arguments=None):
    """Runs the command line, by default that of the process; returns its exit status."""
    parser = _files.parser("rank", __doc__, _EPILOG)
    parser.add_argument(
        "--x", choices=("time", "steps"), default="time", help="horizontal axis (time)"
    )
    options = parser.parse_args(arguments)
    return _files.write(options, lambda files: draw(files, options.x))


if __name__ == "__main__":
    sys.exit(main())
