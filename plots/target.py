"""Training time until a target loss, method by method."""

import argparse
import sys

import numpy as np
from matplotlib.lines import Line2D

from plots import _files, _settings, _style
from plots._curves import UNITS, positions

_REMEDY = "Give result files that the runner has written"

_EPILOG = """\
Circles are seeds, dots their medians, lines reach from the soonest to the latest; crosses are runs
that ended above the target, at their ends. The first evaluation at the target or below counts.
Without --target it is the final loss of Adam in the median, or of the second best if Adam is the
best or missing. Each problem has its own panel, with its target above it.

example:
  python -m plots.target results/poisson/*.pickle --target 0.1 --out target.png
"""

_LABEL_WIDTH = 34  # characters of a line
_TITLE_WIDTH = 48
_LINE = 0.165  # its height in inches
_BASELINE = "adam"


def draw(files, target=None):
    """Draw a panel for each problem, one below the other.

    ``target`` is a test loss, by default the final loss of Adam or the second best. Raises a
    PlotError if a file has no losses or times, or no run of a problem has a finite loss.
    """
    problems = {}
    for file in _files.newest(files):
        groups = problems.setdefault(file.problem, {})
        groups.setdefault((file.method, file.label), []).append(file)
    heights = [_height(groups) for groups in problems.values()]
    size = {"width": 4.4, "height": sum(heights) / len(heights), "legend_width": 1.9}
    figure, grid = _style.panels(len(problems), 1, height_ratios=heights, **size)
    for axes, (problem, groups) in zip(grid[:, 0], problems.items(), strict=True):
        level, meaning = (target, "") if target is not None else _default(problem, groups)
        _draw_problem(axes, groups, level)
        title = f"{problem.replace('_', ' ')}: " if len(problems) > 1 else ""
        title += f"test loss {level:.3g}"
        between = "\n" if len(title) + len(meaning) > _TITLE_WIDTH else ", "
        axes.set_title(title + between * bool(meaning) + meaning, loc="left")
    grid[-1, 0].set_xlabel(UNITS["time"])
    _legend(figure)
    return figure


def _height(groups):
    lines = [len(_style.wrapped(label, _LABEL_WIDTH).splitlines()) for _, label in groups]
    return len(lines) * max(1.5, *lines) * _LINE + 0.85


def _default(problem, groups):
    """Chooses a loss that most methods reach; returns it with a description."""
    ends = {key: np.median([_settings.final(f, "test") for f in of]) for key, of in groups.items()}
    ordered = sorted((key for key in ends if np.isfinite(ends[key])), key=ends.get)
    if not ordered:
        raise _files.PlotError(
            f"no method ends at a finite test loss on {problem or 'the problem'}; give --target"
        )
    baseline = [key for key in ordered if key[0] == _BASELINE][:1]
    second = ordered[1:2] or ordered
    (chosen,) = second if baseline in ([], ordered[:1]) else baseline
    alone = sum(method == chosen[0] for method, _ in groups) == 1
    name = _settings.name(groups[chosen][0]) if alone else chosen[1]
    return ends[chosen], f"where {name} ends"


def _draw_problem(axes, groups, target):
    order = _style.in_order(groups)
    styles = _style.line_styles(groups)
    starts = []
    for place, key in enumerate(order):
        reached, missed = _times(groups[key], target)
        colour = styles[key]["color"]
        median = np.median([*reached, *[np.inf] * len(missed)])
        if len(reached) > 1:
            axes.hlines(place, min(reached), max(reached), color=colour, lw=1.2)
        seeds = {"marker": "o", "markerfacecolor": "white", "markersize": 4.0}
        axes.plot(reached, [place] * len(reached), ls="none", color=colour, **seeds)
        axes.plot(missed, [place] * len(missed), ls="none", marker="x", color=colour, ms=5.0)
        if np.isfinite(median):
            axes.plot(median, place, marker="o", color=colour, ms=6.0, label=key[1])
        if missed:
            total = len(reached) + len(missed)
            axes.annotate(
                f"{len(reached)} of {total}", (1.0, place), (4, 0), va="center", fontsize=8,
                xycoords=axes.get_yaxis_transform(), textcoords="offset points",
            )  # fmt: skip
        starts += [*reached, *missed]
    axes.set_yticks(range(len(order)), [_style.wrapped(label, _LABEL_WIDTH) for _, label in order])
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.grid(True, axis="x")
    if min(starts) > 0:
        axes.set_xscale("log")
        _style.few_ticks(axes.xaxis)


def _times(files, target):
    """Seconds of the seeds that get to the target, and at the end of the others."""
    reached, missed = [], []
    for file in files:
        loss = file.array("test_loss", 1, _REMEDY)
        seconds = positions(file, "time", len(loss))
        there = np.flatnonzero(loss <= target)
        (reached if len(there) else missed).append(seconds[there[0] if len(there) else -1])
    return reached, missed


def _legend(figure):
    grey = {"color": _style.GREY, "linestyle": "none"}
    looks = {
        "median": {"marker": "o", "markersize": 6.0},
        "seed": {"marker": "o", "markerfacecolor": "white", "markersize": 4.0},
        "target not reached": {"marker": "x", "markersize": 5.0},
    }
    handles = [Line2D([], [], label=label, **grey, **look) for label, look in looks.items()]
    figure.legend(handles=handles, loc="outside right upper")


def _number(text):
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number, got {text!r}; such as 1e-4")
    return value


def main(arguments=None):
    """Runs the command line, by default that of the process; returns its exit status."""
    parser = _files.parser("target", __doc__, _EPILOG)
    parser.add_argument(
        "--target", type=_number, metavar="LOSS", help="test loss (where Adam or the second ends)"
    )
    options = parser.parse_args(arguments)
    return _files.write(options, lambda files: draw(files, options.target))


if __name__ == "__main__":
    sys.exit(main())
