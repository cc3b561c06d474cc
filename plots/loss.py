"""Loss, or another recorded quantity, against training time, epochs or steps."""

import sys

from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from plots import _files, _style
from plots._curves import (
    PER_STEP,
    SIGNED,
    UNITS,
    components,
    curve,
    median_and_band,
    quantity_key,
)

_EPILOG = """\
Files of one problem and one method label are the seeds of one experiment: their median is drawn
over the range that all of them cover, in a band from the lowest to the highest. Of files that have
the seed in common too the newest is taken. Each problem has its own row of panels. Files of the
published training scripts go by their file names. The training time of a run that started from
saved weights is added to that of the run that made them. A quantity with several components, such
as an error of each unknown, has a line for each. Values of either sign need --linear. Methods
stand in the legend in one order and keep their colours in all figures.

examples:
  python -m plots.loss results/*.pickle --out loss.png
  python -m plots.loss hig.pickle adam.pickle --x both --quantity both --out loss.pdf
  python -m plots.loss results/poisson/*.pickle --quantity l1_distance --out l1_distance.png
  python -m plots.loss results/burgers/*.pickle --quantity smallest_cosine --out cosine.png
  python -m plots.loss results/beltrami/*.pickle --quantity mse --component u p --out mse.png
  python -m plots.loss results/toy/*.pickle --linear --out toy.png
"""


_FEW = 12  # points from which on a curve has no markers
_LABEL_WIDTH = 34  # characters of a line of the legend
_LINE = 0.165  # its height in inches


def draw(files, x="time", quantity="test", log_x=False, linear=False, component=None):
    """Draws the figure.

    Args:
        files: Sequence of ResultFile.
        x: "time", "epochs", "steps" or "both" (time and epochs side by side); or several of the
            first three, side by side.
        quantity: "test" or "train" loss, "both" (train as thin, pale lines), or another recorded
            quantity by its name, such as "l1_distance" for the key `test_l1_distance`.
        log_x: Makes the horizontal axis logarithmic too; of several, the names of those that
            are.
        linear: Makes the vertical axis linear, for values of either sign.
        component: Names of the components to show of a quantity that has several; all when None.

    Returns:
        matplotlib.figure.Figure with a row for each problem and a column for each axis.

    Raises:
        PlotError: A file lacks data that the figure needs.
    """
    files = _files.newest(files)
    axes_names = ("time", "epochs") if x == "both" else (x,) if isinstance(x, str) else x
    log_names = log_x if isinstance(log_x, tuple) else axes_names if log_x else ()
    quantities = ("test", "train") if quantity == "both" else (quantity,)
    if quantity in (*SIGNED, *PER_STEP):
        files = _files.having(files, quantity)  # only steps of some methods have it
    files = [part for file in files for part in components(file, quantity, component)]
    log_y = not linear and quantity not in SIGNED
    problems = list(dict.fromkeys(file.problem for file in files))
    styles = _style.line_styles({(file.method, file.label) for file in files})
    room = _room_for_legend({file.label for file in files}, len(problems))
    figure, grid = _style.panels(len(problems), len(axes_names), **room, sharey="row")
    for row, problem in zip(grid, problems, strict=True):
        for axes, name in zip(row, axes_names, strict=True):
            groups = _groups(file for file in files if file.problem == problem)
            for index, kind in enumerate(quantities):
                for key, group in groups.items():
                    curves = [curve(file, kind, name, name in log_names, log_y) for file in group]
                    look = {"pale": index > 0, "log_y": log_y}
                    _draw_group(axes, curves, group[0].label, styles[key], **look)
            _finish(axes, name, name in log_names, log_y)
        row[0].set_ylabel(_name(quantity, [file for file in files if file.problem == problem]))
        if len(problems) > 1:
            row[0].set_title(problem.replace("_", " ") or "problem not named", loc="left")
    for axes in grid.flat:
        _style.plain_ticks(axes.xaxis)
        _style.plain_ticks(axes.yaxis)
    _legend(figure, quantity, [label for _, label in styles])
    return figure


def _name(quantity, files):
    # Problems whose test loss is another quantity than the trained loss name it.
    tested_by = {str(file.results.get("tested_by") or "") for file in files}
    if quantity == "test" and len(tested_by) == 1 and "" not in tested_by:
        return tested_by.pop()
    name = "loss" if quantity == "both" else quantity_key(quantity).replace("_", " ")
    per_point = quantity in ("test", "train", "both") and tested_by == {""}
    return f"{name} per data point" if per_point else name


def _groups(files):
    groups = {}
    for file in files:
        groups.setdefault((file.method, file.label), []).append(file)
    return groups


def _draw_group(axes, curves, label, style, pale, log_y):
    look = {"lw": 0.8, "alpha": 0.6, "label": f"_train {label}"} if pale else {"label": label}
    if len(curves) == 1:
        axes.plot(*curves[0], **style, **look, **_markers(curves[0][0]))
        return
    position, median, lowest, highest = median_and_band(curves, log_y)
    if len(position) == 0:
        raise _files.PlotError(
            f"the {len(curves)} files labelled '{label}' cover no common range of the horizontal "
            "axis; give files of runs of similar length, or different labels"
        )
    axes.plot(position, median, **style, **look, **_markers(position))
    if not pale:
        axes.fill_between(position, lowest, highest, color=style["color"], alpha=0.2, lw=0)


def _markers(position):
    """Markers of the evaluations, if they are few."""
    return {"marker": "o", "markersize": 3.5} if len(position) < _FEW else {}


def _finish(axes, name, log_x, log_y):
    if log_y:
        axes.set_yscale("log")
    axes.set_xlabel(UNITS[name])
    if log_x:
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)


def _room_for_legend(labels, rows):
    """Sizes in inches with room for the legend next to the panels."""
    lines = [_style.wrapped(label, _LABEL_WIDTH).splitlines() for label in labels]
    tall = _LINE * (sum(map(len, lines)) + 3) / rows
    wide = max((len(line) for label in lines for line in label), default=0) > _LABEL_WIDTH / 2
    return {"height": max(2.6, tall), "legend_width": 2.2 if wide else 1.3}


def _legend(figure, quantity, labels):
    """Draws the legend next to the panels, so that it hides no curve."""
    lines = {}
    for line in (line for axes in figure.axes for line in axes.lines):
        if not line.get_label().startswith("_"):
            lines.setdefault(line.get_label(), line)
    handles = [lines[label] for label in dict.fromkeys(labels)]
    if quantity == "both":
        handles.append(Line2D([], [], color=_style.GREY, label="test"))
        handles.append(Line2D([], [], color=_style.GREY, lw=0.8, alpha=0.6, label="train"))
    if any(axes.collections for axes in figure.axes):
        handles.append(Patch(color=_style.GREY, alpha=0.2, lw=0, label="min–max of seeds"))
    labels = [_style.wrapped(handle.get_label(), _LABEL_WIDTH) for handle in handles]
    figure.legend(handles, labels, loc="outside right upper")


def main(arguments=None):
    """Runs the command line, by default that of the process; returns its exit status."""
    parser = _files.parser("loss", __doc__, _EPILOG)
    parser.add_argument(
        "--x",
        choices=("time", "epochs", "steps", "both"),
        default="time",
        help="horizontal axis (time); both are time and epochs",
    )
    parser.add_argument(
        "--quantity",
        default="test",
        metavar="NAME",
        help="test or train loss, both, or another recorded quantity, e.g. l1_distance (test)",
    )
    parser.add_argument(
        "--component",
        nargs="+",
        metavar="NAME",
        help="components of a quantity that has several (all)",
    )
    parser.add_argument("--log-x", action="store_true", help="logarithmic horizontal axis")
    parser.add_argument(
        "--linear", action="store_true", help="linear vertical axis, for values of either sign"
    )
    options = parser.parse_args(arguments)
    chosen = options.quantity, options.log_x, options.linear, options.component
    return _files.write(options, lambda files: draw(files, options.x, *chosen))


if __name__ == "__main__":
    sys.exit(main())
