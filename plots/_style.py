"""One look for every figure: fonts, line widths, and colours that belong to methods."""

import re
import textwrap
from collections import Counter

import matplotlib
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, ScalarFormatter

RC = {
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "lines.linewidth": 1.5,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e8e8e8",
    "grid.linewidth": 0.6,
    "axes.formatter.use_mathtext": True,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # text stays text: journals refuse the outlines of type 3
    "svg.fonttype": "none",
}

GREY = "#555555"

_SOLID, _DASHED, _DOTTED, _DASH_DOT = _DASHES = (
    "-",
    (0, (4, 1.5)),
    (0, (1, 1.2)),
    (0, (5, 1.2, 1, 1.2)),
)

# A method keeps its look in every figure, whichever others it shows, and its place in legends,
# which is that in this table. The first colours are Okabe & Ito's, safe for the common kinds of
# colour blindness. Methods that alternate between losses are a darker, dashed form of those that
# do not; weighted sums of losses have broken lines.
_METHODS = {
    "hig": ("#0072B2", _SOLID),
    "khig": ("#661100", _SOLID),
    "multihig": ("#7B4FD0", _SOLID),
    "gn": ("#D55E00", _SOLID),
    "lm": ("#009E73", _SOLID),
    "config": ("#E0218A", _SOLID),
    "mconfig": ("#8E1257", _DASHED),
    "pcgrad": ("#44AA99", _SOLID),
    "mpcgrad": ("#1F6F63", _DASHED),
    "imtlg": ("#5FBF00", _SOLID),
    "mimtlg": ("#3A6600", _DASHED),
    "minmax": ("#8C8C8C", _DASH_DOT),
    "relobralo": ("#56B4E9", _DASH_DOT),
    "lra": ("#000000", _DOTTED),
    "adam": ("#E69F00", _SOLID),
    "sgd": ("#000000", _SOLID),
    "adagrad": ("#56B4E9", _SOLID),
    "adadelta": ("#8C8C8C", _SOLID),
    "rmsprop": ("#CC79A7", _SOLID),
    "lbfgs": ("#332288", _SOLID),
    "soap": ("#882255", _SOLID),
    "muon": ("#999933", _SOLID),
}
_ALIASES = {
    "gaussnewton": "gn",
    "levenbergmarquardt": "lm",
    "halfinverse": "hig",
    "kroneckerhig": "khig",
}
# Tol's muted palette, for the methods without a look of their own.
_OTHERS = ("#44AA99", "#AA4499", "#117733", "#DDCC77", "#661100", "#88CCEE", "#CC6677", "#DDDDDD")
# For things that are not methods: neurons, states, starts.
SEQUENCE = (
    "#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000", "#8C8C8C",
    "#332288", "#882255", "#999933",
)  # fmt: skip


def method_name(text):
    """The name under which a method has its colour, e.g. "Gauss-Newton" -> "gn"."""
    name = re.sub(r"[^a-z0-9]", "", text.lower())
    return _ALIASES.get(name, name)


def is_known(method):
    """Returns whether a method, named as `method_name` names it, has a colour of its own."""
    return method in _METHODS


def line_styles(variants):
    """A colour and a dash pattern for every line of a figure.

    Args:
        variants: Pairs (method, label), method as `method_name` names it. The labels of one
            method share its colour and differ by dashes, from those of the method on; beyond
            four, by a lighter shade too.

    Returns:
        dict from each pair to the keyword arguments `color` and `linestyle` of a line, in the
        order of `in_order`.
    """
    unknown = sorted({method for method, _ in variants} - set(_METHODS))
    looks = _METHODS | {n: (_OTHERS[i % len(_OTHERS)], _SOLID) for i, n in enumerate(unknown)}
    styles, seen = {}, Counter()
    for method, label in in_order(variants):
        (colour, dashes), index = looks[method], seen[method]
        seen[method] += 1
        turned = _DASHES[(_DASHES.index(dashes) + index) % len(_DASHES)]
        shade = _lighter(colour, 0.45 * min(index // len(_DASHES), 1))
        styles[method, label] = {"color": shade, "linestyle": turned}
    return styles


def in_order(variants):
    """Pairs (method, label) in the order of legends: unknown methods last, then by label."""
    places = {method: place for place, method in enumerate(_METHODS)}
    return sorted(set(variants), key=lambda pair: (places.get(pair[0], len(places)), *pair))


def _lighter(colour, share):
    return tuple(part + (1 - part) * share for part in to_rgb(colour))


def plain_ticks(axis):
    """Plain numbers along a logarithmic axis that is shorter than a decade.

    The usual ticks are one or none there, and those between have labels such as 3 × 10¹.
    """
    low, high = sorted(axis.get_view_interval())
    if axis.get_scale() != "log" or high >= 10 * low:
        return
    axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(ScalarFormatter(useOffset=False))
    axis.set_minor_locator(NullLocator())


def few_ticks(axis):
    """Plain numbers along a logarithmic axis, as many as there is room for side by side."""
    low, high = axis.get_view_interval()
    subs = (1, 2, 5) if high < 30 * low else (1, 3) if high < 1000 * low else (1,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def panels(rows, columns, width=3.4, height=2.6, legend_width=1.3, **options):
    """A figure with a (rows, columns) array of axes, panels of ``width`` × ``height`` inches.

    The figure is made without pyplot: no window, no global state, nothing to close.
    """
    figure = Figure(figsize=(width * columns + legend_width, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def wrapped(label, width):
    """Break a label longer than ``width``: the name of the method, deviations below it."""
    if len(label) <= width:
        return label
    lines = label.replace(" (", "\n(", 1).splitlines()
    return "\n".join(textwrap.fill(line, width) for line in lines)


def look():
    """The context in which every figure is drawn and written."""
    return matplotlib.rc_context(RC)
