"""Kept rank of the joint Jacobian in the course of the training, and the number of its rows."""

import sys

import numpy as np

from plots import _files, _style

_REMEDY = (
    "Only methods that decompose one Jacobian, such as HIG, record its rank; MultiHIG does where "
    "all losses share one prediction"
)

_EPILOG = """\
The rank counts the singular values above the cut-off; the dashed line is the number of rows of the
Jacobian, batch size times outputs, and the rank can be no larger. Pale lines show every step, the
others the running median over a fiftieth of the steps. Files with one label, such as the seeds of a
method, share a colour.

example:
  python -m plots.rank hig.pickle gn.pickle --x steps --out rank.png
"""


def draw(files, x="time"):
    """Draws the figure.

    Args:
        files: Sequence of ResultFile.
        x: "time" or "steps".

    Returns:
        matplotlib.figure.Figure with one panel.

    Raises:
        PlotError: No file has ranks, or as many times as it has not steps.
    """
    files = _files.having(files, "rank")
    figure, grid = _style.panels(1, 1)
    axes = grid[0, 0]
    styles = _style.line_styles({(file.method, file.label) for file in files})
    labels = set()
    for file in sorted(files, key=lambda file: list(styles).index((file.method, file.label))):
        rank = file.array("rank", 1, _REMEDY)
        position = _positions(file, x, len(rank))
        label = file.label if file.label not in labels else f"_{file.label}"
        style = styles[file.method, file.label]
        smooth = _running_median(rank, max(len(rank) // 50, 1))
        # Batches differ in rank: each step is shown pale, its running median in full colour.
        axes.step(position, rank, "-", where="post", lw=0.6, alpha=0.35, color=style["color"])
        axes.step(position, smooth, where="post", label=label, **style)
        labels.add(file.label)
    all_rows = sorted({int(file.array("rows", 0, _REMEDY)) for file in files})
    for rows in all_rows:
        line = {"color": _style.GREY, "linestyle": "--", "linewidth": 1.0}
        axes.axhline(rows, label=f"rows ({rows})", **line)
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.05 * all_rows[-1])
    axes.set_xlabel("training time (s)" if x == "time" else "steps")
    axes.set_ylabel("kept rank")
    figure.legend(loc="outside right upper")
    return figure


def _running_median(values, width):
    half = width // 2
    padded = np.pad(values, half, mode="reflect")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1), axis=-1)


def _positions(file, x, count):
    if x == "steps":
        return np.arange(1, count + 1)
    time = file.array("step_time", 1, "Use --x steps")
    if len(time) != count:
        raise _files.PlotError(
            f"'step_time' in {file.path} has {len(time)} entries for {count} ranks; use --x steps"
        )
    return time


def main(arguments=None):
    """Runs the command line.

    Args:
        arguments: Sequence of str; those of the process when None.

    Returns:
        Exit status, 0 or 2.
    """
    parser = _files.parser("rank", __doc__, _EPILOG)
    parser.add_argument(
        "--x", choices=("time", "steps"), default="time", help="horizontal axis (time)"
    )
    options = parser.parse_args(arguments)
    return _files.write(options, lambda files: draw(files, options.x))


if __name__ == "__main__":
    sys.exit(main())
