"""Final losses of many seeds, a dot for each, by problem, batch size and method."""

import sys

import numpy as np
from matplotlib.lines import Line2D

from plots import _files, _style

_REMEDY = "Give the result files of python -m experiments.robustness"

_EPILOG = """\
A panel for each problem and batch size. A dot is the test loss of one seed at the end over that at
its start, a bar the median of the runs that are not lost. Crosses are lost: above the dashed line,
in number over that of all runs at the foot of the panel. Triangles at the top edge are above the
panel or not finite. Of several files each label has a colour.

example:
  python -m plots.robustness results/robustness/before.pickle after.pickle --out robustness.png
"""

_LOSSES = ("start", "end", "limit")
_PANEL = ("title", "seconds", "dtype", "batch")
_VARIANT = ("method", "method_label", "rule", "cutoff", "rate")
_SLOT = 0.8  # of the distance of two methods, shared by the labels
# Inches: width of a panel, and of each method if they need more for their names.
_WIDTH, _NAME_WIDTH = 3.2, 1.05
_HIGHEST = 300.0  # of a loss over its start, in a panel
_COLUMNS = 3
_LOST_COLOUR = "#D55E00"
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#000000")


def draw(files):
    """Draw a panel for each problem and batch size; a PlotError for files without such runs."""
    runs = [_runs(file) for file in files]
    panels = _panels(runs)
    batches = [len({batch for *other, batch in panels if other == key}) for *key, _ in panels]
    columns = max(batches) if len(set(batches)) == 1 and max(batches) > 1 else _COLUMNS
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    aside, above = (1.7, 0) if columns == 1 else (0, 0.5)
    height = 1.85 + above / rows
    width = max(_WIDTH, _NAME_WIDTH * _most_variants(runs, panels))
    figure, grid = _style.panels(rows, columns, width=width, height=height, legend_width=aside)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw_panel(axes, panel, runs, _limits(runs, panel[0]))
    for axes in grid[:, 0]:
        axes.set_ylabel("loss / its start")
    names = [file.label for file in files]
    if columns == 1:
        figure.legend(handles=_legend(names), loc="outside right upper")
    else:  # above, where it takes no width from the panels of a page
        figure.legend(handles=_legend(names), loc="outside upper left", ncols=4)
    return figure


def _runs(file):
    """The runs of a file, in lists and arrays by name, with the loss over that at the start."""
    start, end, limit = (file.array(f"runs.{name}", 1, _REMEDY) for name in _LOSSES)
    texts = ("title", "dtype", *_VARIANT)
    found = {name: np.asarray(file.get(f"runs.{name}", _REMEDY), dtype=str) for name in texts}
    for name in ("batch", "seconds", "seed", "lost"):
        found[name] = np.asarray(file.get(f"runs.{name}", _REMEDY))
    lengths = {len(column) for column in (start, end, limit, *found.values())}
    if len(lengths) != 1 or not (start > 0).all():
        raise _files.PlotError(f"{file.path} has columns that do not fit together. {_REMEDY}")
    return {**found, "ratio": end / start, "limit": limit / start}


def _panels(runs):
    """Problem, seconds, dtype and batch of each panel; problems in the order of the files."""
    keys = {
        key: None
        for found in runs
        for key in zip(*(found[name].tolist() for name in _PANEL), strict=True)
    }
    problems = list(dict.fromkeys(key[:-1] for key in keys))
    return sorted(keys, key=lambda key: (problems.index(key[:-1]), -key[-1]))


def _most_variants(runs, panels):
    """Largest number of methods with their settings in a panel."""
    return max(
        len(_variants([_rows(f, r) for f, r in zip(runs, _here(runs, p), strict=True)]))
        for p in panels
    )


def _here(runs, panel):
    """Which runs of each file are in the panel."""
    return [
        np.all([found[name] == value for name, value in zip(_PANEL, panel, strict=True)], axis=0)
        for found in runs
    ]


def _limits(runs, problem):
    """Limits of the panels of a problem, with room for the numbers at their foot."""
    ratios = np.concatenate([found["ratio"][found["title"] == problem] for found in runs])
    ratios = ratios[np.isfinite(ratios) & (ratios > 0)]
    top = np.clip(4 * ratios.max(initial=1), 4, _HIGHEST)
    bottom = min(ratios.min(initial=0.1), 0.05)
    return bottom * (bottom / top) ** 0.25, top


def _draw_panel(axes, panel, runs, limits):
    here = _here(runs, panel)
    variants = _variants([_rows(found, rows) for found, rows in zip(runs, here, strict=True)])
    axes.set(yscale="log", ylim=limits, xlim=(-0.55, len(variants) - 0.45))
    axes.axhline(1, color=_style.GREY, lw=0.8, zorder=1)
    width = _SLOT / len(runs)
    for place, variant in enumerate(variants):
        for index, found in enumerate(runs):
            rows = here[index] & np.all([found[n] == v for n, v in variant], axis=0)
            if rows.any():
                middle = place + (index + 0.5) * width - _SLOT / 2
                _draw_seeds(axes, _rows(found, rows), middle, 0.8 * width, _colour(index))
    title, seconds, dtype, batch = panel
    precision = "" if dtype == "float32" else f", {dtype}"
    axes.set_title(f"{title}\nbatch {batch}, {seconds:g} s{precision}", loc="left")
    rules = len({dict(variant)["rule"] for variant in variants}) > 1
    axes.set_xticks(range(len(variants)), [_name(dict(v), rules) for v in variants])
    axes.tick_params(axis="x", length=0)


def _draw_seeds(axes, found, middle, width, colour):
    """Dots of one method and label, their median and the limit of those that are lost."""
    ratio, lost, (low, high) = found["ratio"], found["lost"], axes.get_ylim()
    # The golden ratio spreads consecutive seeds evenly, whichever of them are there.
    place = middle + width * ((found["seed"] * 0.618034 + 0.5) % 1 - 0.5)
    outside = ~(ratio <= high)  # NaN too
    ends = [middle - width / 2, middle + width / 2]
    for limit in np.unique(found["limit"].round(6)):  # of runs with fewer steps another one
        axes.plot(ends, [limit] * 2, color=_LOST_COLOUR, lw=0.9, ls=(0, (3, 1.5)))
    shapes = {
        "o": (~lost & ~outside, {"s": 11, "lw": 0, "alpha": 0.85}),
        "x": (lost & ~outside, {"s": 20, "lw": 1.3}),
    }
    for marker, (rows, look) in shapes.items():
        height = np.maximum(ratio[rows], low)
        axes.scatter(place[rows], height, marker=marker, color=colour, zorder=3, **look)
    edge = axes.get_xaxis_transform()
    axes.scatter(
        place[outside], np.full(outside.sum(), 0.97), marker="^", s=24, color=colour, lw=0,
        transform=edge, zorder=3,
    )  # fmt: skip
    if not lost.all():
        axes.plot(ends, [max(np.median(ratio[~lost]), low)] * 2, color="black", lw=1.5, zorder=2)
    if lost.any():
        axes.text(
            middle, 0.03, f"{lost.sum()}/{len(lost)}", transform=edge, ha="center", fontsize=7,
            color=_style.GREY,
        )  # fmt: skip


def _rows(found, rows):
    return {name: column[rows] for name, column in found.items()}


def _variants(parts):
    """Methods with rule and cut-off, as pairs of name and value, in the order of legends."""
    keys = {
        tuple(zip(_VARIANT, values, strict=True))
        for found in parts
        for values in zip(*(found[name].tolist() for name in _VARIANT), strict=True)
    }
    methods = [method for method, _ in _style.in_order({(dict(k)["method"], "") for k in keys})]
    return sorted(keys, key=lambda key: (methods.index(dict(key)["method"]), key))


def _name(variant, with_rule):
    """Name below the dots: the method, below it whatever differs."""
    label = variant["method_label"]
    lines = [label.replace("–", "–\n") if len(label) > 12 else label]
    lines += [variant["rule"].replace("_", " ")] if with_rule else []
    lines += [f"rcond {variant['cutoff']}"] if variant["cutoff"] else []
    lines += [f"lr {variant['rate']}"] if variant["rate"] else []
    return "\n".join(lines)


def _colour(index):
    return _COLOURS[index % len(_COLOURS)]


def _legend(names):
    def dots(marker, colour, label, size):
        return Line2D([], [], ls="", marker=marker, color=colour, label=label, ms=size)

    grey = _style.GREY
    return [
        *(dots("o", _colour(index), name, 4) for index, name in enumerate(names)),
        Line2D([], [], color="black", lw=1.5, label="median without lost ones"),
        dots("x", grey, "lost, number below", 5),
        dots("^", grey, "above, or not finite", 5),
        Line2D([], [], color=_LOST_COLOUR, lw=0.9, ls=(0, (3, 1.5)), label="lost above this"),
        Line2D([], [], color=grey, lw=0.8, label="start"),
    ]


def main(arguments=None):
    """Runs the command line, by default that of the process; returns its exit status."""
    parser = _files.parser("robustness", __doc__, _EPILOG)
    options = parser.parse_args(arguments)
    return _files.write(options, draw)


if __name__ == "__main__":
    sys.exit(main())
