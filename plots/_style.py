"""One look for every figure: fonts, line widths, and colours that belong to methods."""

import re
import textwrap

import matplotlib
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

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

# Okabe & Ito's palette, safe for the common kinds of colour blindness. A method keeps its colour
# in every figure of a paper, whichever others stand beside it.
_METHODS = {
    "hig": "#0072B2",
    "adam": "#E69F00",
    "gn": "#D55E00",
    "lm": "#009E73",
    "rmsprop": "#CC79A7",
    "adagrad": "#56B4E9",
    "sgd": "#000000",
    "adadelta": "#8C8C8C",
    "lbfgs": "#332288",
    "soap": "#882255",
    "muon": "#999933",
}
_ALIASES = {"gaussnewton": "gn", "levenbergmarquardt": "lm", "halfinverse": "hig"}
# Tol's muted palette, for the methods without a colour of their own.
_OTHERS = ("#44AA99", "#AA4499", "#117733", "#DDCC77", "#661100", "#88CCEE", "#CC6677", "#DDDDDD")
SEQUENCE = (*_METHODS.values(),)

_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)))


def method_name(text):
    """The name under which a method has its colour, e.g. "Gauss-Newton" -> "gn".

    Args:
        text: The name of a method as a result file or a file name spells it.

    Returns:
        Lower-case letters and digits, with synonyms joined.
    """
    name = re.sub(r"[^a-z0-9]", "", text.lower())
    return _ALIASES.get(name, name)


def is_known(method):
    """Whether a method, named as `method_name` names it, has a colour of its own."""
    return method in _METHODS


def line_styles(variants):
    """A colour and a dash pattern for every line of a figure.

    Args:
        variants: Pairs (method, label), method as `method_name` names it. The labels of one
            method share its colour and differ by dashes; beyond four, by a lighter shade too.

    Returns:
        dict from each pair to the keyword arguments `color` and `linestyle` of a line.
    """
    unknown = sorted({method for method, _ in variants} - set(_METHODS))
    colours = _METHODS | {name: _OTHERS[i % len(_OTHERS)] for i, name in enumerate(unknown)}
    styles = {}
    for method in sorted({method for method, _ in variants}):
        labels = sorted({label for other, label in variants if other == method})
        for index, label in enumerate(labels):
            shade = _lighter(colours[method], 0.45 * min(index // len(_DASHES), 1))
            dashes = _DASHES[index % len(_DASHES)]
            styles[method, label] = {"color": shade, "linestyle": dashes}
    return styles


def _lighter(colour, share):
    return tuple(part + (1 - part) * share for part in to_rgb(colour))


def panels(rows, columns, width=3.4, height=2.6, beside=1.3, **options):
    """A figure with a grid of axes.

    The figure is made without pyplot: no window, no global state, nothing to close.

    Args:
        rows: Number of rows.
        columns: Number of columns.
        width: Width of a panel in inches.
        height: Height of a panel in inches.
        beside: Width in inches of the legend beside the panels.
        **options: As for `matplotlib.figure.Figure.subplots`.

    Returns:
        The figure and the (rows, columns) array of its axes.
    """
    figure = Figure(figsize=(width * columns + beside, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def wrapped(label, width):
    """A label that is longer than a line: the name of the method, what is special below it.

    Args:
        label: Such as "Levenberg–Marquardt (batch 700, float64)".
        width: Characters in a line.

    Returns:
        The label with line breaks.
    """
    if len(label) <= width:
        return label
    lines = label.replace(" (", "\n(", 1).splitlines()
    return "\n".join(textwrap.fill(line, width) for line in lines)


def look():
    """The context in which every figure is drawn and written."""
    return matplotlib.rc_context(RC)
