"""Final values of runs, against a setting that differs between them."""

import sys

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.lines import Line2D

from plots import _files, _settings, _style
from plots._curves import quantity_key

_EPILOG = """\
Points are medians over the seeds, upright lines reach from the lowest to the highest. Numbers have
an axis, logarithmic where they span a decade or so; texts, and numbers with texts, stand side by
side. A cross at the top: a seed has no finite loss. Two settings make a map, with a frame around
the lowest loss. Each problem has its own panel.

examples:
  python -m plots.ablation results/kappa/*.pickle --out kappa.png
  python -m plots.ablation results/*.pickle --setting lr rcond --out lr_rcond.png
"""

_CELL = 0.52  # of a map, in inches


def draw(files, settings=None, quantity="test"):
    """Draws the figure.

    Args:
        files: Sequence of ResultFile.
        settings: Names of one or two settings; None for those that differ. Runs that differ in
            others too have lines, or maps, of their own.
        quantity: As for `_curves.quantity_key`.

    Returns:
        matplotlib.figure.Figure with a panel for each problem; of two settings one for each
        method too.

    Raises:
        PlotError: There is no such setting, or none or more than two differ.
    """
    files = _files.newest(files)
    differing = _settings.varied(files)
    shown = list(settings or differing)
    if len(shown) not in (1, 2):
        there = f"these files differ in {', '.join(differing) or 'none'}"
        raise _files.PlotError(f"--setting must be one or two, got {len(shown)}: {there}")
    others = [name for name in differing if name not in shown]
    groups = {}
    for file in files:
        rest = [f"{name.replace('_', ' ')} {_settings.value(file, name)}" for name in others]
        label = ", ".join([_settings.name(file), *rest])
        key = tuple(_settings.value(file, name) for name in shown)
        ends = groups.setdefault(file.problem, {}).setdefault((file.method, label), {})
        ends.setdefault(key, []).append(_settings.final(file, quantity))
    of = quantity_key(quantity).replace("_", " ")
    return (_lines if len(shown) == 1 else _maps)(groups, shown, f"{of} at the end")


def _lines(groups, settings, name):
    styles = _style.line_styles({key for found in groups.values() for key in found})
    figure, grid = _style.panels(1, len(groups))
    for axes, (problem, found) in zip(grid[0], groups.items(), strict=True):
        values = _settings.in_order(value for ends in found.values() for (value,) in ends)
        places = _axis(axes, values)
        for key in (key for key in styles if key in found):
            _draw_line(axes, found[key], places, styles[key], key[1])
        axes.set_yscale("log")
        axes.set_xlabel(settings[0].replace("_", " "))
        if len(groups) > 1:
            axes.set_title(problem.replace("_", " ") or "problem not named", loc="left")
        _style.plain_ticks(axes.yaxis)
    grid[0, 0].set_ylabel(name)
    _legend(figure, [label for _, label in styles])
    return figure


def _axis(axes, values):
    """Ticks at the values; returns the place of each."""
    places = dict(zip(values, values, strict=True))
    if not all(map(_settings.is_number, values)):
        places = {value: index for index, value in enumerate(values)}
        axes.set_xlim(-0.5, len(values) - 0.5)
    elif min(values) > 0 and max(values) >= 8 * min(values):
        axes.set_xscale("log")
    crowded = len(values) > 6
    labels = [_settings.text(value) for value in values]
    axes.set_xticks(list(places.values()), labels, fontsize=7 if crowded else 8)
    axes.set_xticks([], minor=True)
    if len(max(labels, key=len)) * len(values) > 40:
        axes.tick_params(axis="x", rotation=45)
    return places


def _draw_line(axes, ends, places, style, label):
    values = [value for value in places if (value,) in ends]
    position = np.array([places[value] for value in values], dtype=float)
    seeds = [np.array(ends[value,]) for value in values]
    median = np.array([np.median(one) for one in seeds])
    shown = np.isfinite(median)
    numbers = np.array([_settings.is_number(value) for value in values])
    axes.plot(position[shown & numbers], median[shown & numbers], label=f"_{label}", **style)
    look = {"marker": "o", "markersize": 4, "linestyle": "none", "color": style["color"]}
    axes.plot(position[shown], median[shown], label=label, **look)
    for place, one in zip(position, seeds, strict=True):
        finite = one[np.isfinite(one)]
        if finite.size > 1:
            axes.vlines(place, finite.min(), finite.max(), color=style["color"], lw=1.0)
        if finite.size < one.size:
            axes.plot(
                place, 1.0, marker="x", color=style["color"], clip_on=False, label="_not finite",
                transform=axes.get_xaxis_transform(),
            )  # fmt: skip


def _legend(figure, labels):
    lines = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    handles = [lines[label] for label in dict.fromkeys(labels)]
    ranges = any(axes.collections for axes in figure.axes)
    if ranges:
        handles.append(Line2D([], [], color=_style.GREY, lw=1.0, label="min–max of seeds"))
    if "_not finite" in lines:
        look = {"marker": "x", "linestyle": "none", "color": _style.GREY}
        handles.append(Line2D([], [], label="a seed is not finite", **look))
    figure.legend(handles=handles, loc="outside right upper")


def _maps(groups, settings, name):
    panels = [
        (problem, label, ends) for problem, of in groups.items() for (_, label), ends in of.items()
    ]
    sides = [
        _settings.in_order(key[index] for _, _, ends in panels for key in ends) for index in (0, 1)
    ]
    size = {"width": _CELL * len(sides[0]) + 1.8, "height": _CELL * len(sides[1]) + 0.9}
    figure, grid = _style.panels(1, len(panels), legend_width=0, **size)
    for axes, (problem, label, ends) in zip(grid[0], panels, strict=True):
        image = _draw_map(axes, ends, sides)
        figure.colorbar(image, ax=axes, label=name)
        axes.set_xlabel(settings[0].replace("_", " "))
        if len(panels) > 1:
            axes.set_title(f"{problem.replace('_', ' ')}\n{label}", loc="left")
    grid[0, 0].set_ylabel(settings[1].replace("_", " "))
    return figure


def _draw_map(axes, ends, sides):
    across, up = sides
    medians = np.array([[np.median(ends.get((x, y), np.nan)) for x in across] for y in up])
    finite = np.isfinite(medians)
    low, high = (medians[finite].min(), medians[finite].max()) if finite.any() else (1.0, 1.0)
    norm = LogNorm(low, max(high, 1.01 * low))
    axes.set_facecolor("#eeeeee")
    axes.grid(False)
    image = axes.pcolormesh(np.where(finite, medians, np.nan), norm=norm, cmap="viridis_r")
    for (row, column), number in np.ndenumerate(medians):
        if np.isnan(number):
            continue
        dark = np.isfinite(number) and norm(number) > 0.5
        text = _settings.text(float(f"{number:.2g}")) if np.isfinite(number) else "×"
        axes.text(
            column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=6.5,
            color="white" if dark else "black",
        )  # fmt: skip
    if finite.any():
        row, column = np.argwhere(medians == low)[0]
        across_frame, up_frame = np.array([[0, 1, 1, 0, 0], [0, 0, 1, 1, 0]])
        frame = {"color": "#D55E00", "lw": 1.8, "clip_on": False}
        axes.plot(column + across_frame, row + up_frame, **frame)
    axes.set_xticks(0.5 + np.arange(len(across)), [_settings.text(value) for value in across])
    axes.set_yticks(0.5 + np.arange(len(up)), [_settings.text(value) for value in up])
    return image


def main(arguments=None):
    """Runs the command line, by default that of the process; returns its exit status."""
    parser = _files.parser("ablation", __doc__, _EPILOG)
    parser.add_argument(
        "--setting", nargs="+", metavar="NAME", help="one or two settings (those that differ)"
    )
    parser.add_argument(
        "--quantity",
        default="test",
        metavar="NAME",
        help="test or train loss, or another recorded quantity, e.g. l1_distance (test)",
    )
    options = parser.parse_args(arguments)
    return _files.write(options, lambda files: draw(files, options.setting, options.quantity))


if __name__ == "__main__":
    sys.exit(main())
