"""Milliseconds of the exact Jacobian of each case, by each way to it."""

import sys

import numpy as np

from plots import _files, _style

_EPILOG = """\
A group of bars for each case, one for each way, from a file of `python -m experiments.jacobians`.

example:
  python -m plots.jacobians results/jacobians/jacobians.pickle --out jacobians.png
"""


def draw(files):
    """Draw the bars of the last file that has them.

    Raises a PlotError if no file has times of Jacobians.
    """
    cases = _files.having(files, "jacobians")[-1].results["jacobians"]
    ways = list(dict.fromkeys(row["way"] for rows in cases.values() for row in rows))
    figure, grid = _style.panels(1, 1, width=6.0, height=0.62 * len(cases) + 0.9, legend_width=0.2)
    axes = grid[0, 0]
    height = 0.8 / len(ways)
    colors = dict(zip(ways, _style.SEQUENCE, strict=False))
    for place, rows in enumerate(cases.values()):
        for row in rows:
            offset = (ways.index(row["way"]) - (len(ways) - 1) / 2) * height
            axes.barh(place + offset, row["median_ms"], height, color=colors[row["way"]])
            axes.text(row["median_ms"], place + offset, f" {row['median_ms']:.3g}", va="center",
                      fontsize=6)  # fmt: skip
    axes.set_yticks(np.arange(len(cases)), [rows[0]["title"] for rows in cases.values()])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds of one thread")
    handles = [axes.barh(np.nan, np.nan, color=colors[way], label=way) for way in ways]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(ways))
    return figure


def main(arguments=None):
    """Runs the command line, by default that of the process; returns its exit status."""
    parser = _files.parser("jacobians", __doc__, _EPILOG)
    options = parser.parse_args(arguments)
    return _files.write(options, draw)


if __name__ == "__main__":
    sys.exit(main())
