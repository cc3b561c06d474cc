"""One batch looked at closely: spectrum with cut-off, and the loss along each direction."""

import sys

import numpy as np

from plots import _files, _style

_REMEDY = "Give a file of hig.diagnose(...).results(), written by hig.save_results"
_METHODS = {-1.0: "gn", -0.5: "hig", 1.0: "sgd"}

_EPILOG = """\
Left: the singular values; those at or below the dashed line are dropped, those in grey may be
rounding alone. Right: the loss after a step along each direction, over the loss before it, against
the step size in Cauchy steps (where the quadratic model is lowest; legends give the number).
Lines are measured, dashes are the model: its range ends where they part.

example:
  python -m plots.diagnosis batch.pickle --out batch.png
"""


def draw(files):
    """Draw a row of two panels for each file; a PlotError if none has a diagnosis."""
    files = _files.having(files, "directions")
    figure, grid = _style.panels(len(files), 2, legend_width=1.9)
    for (left, right), file in zip(grid, files, strict=True):
        _draw_spectrum(left, file)
        _draw_directions(right, file)
        if len(files) > 1:
            left.set_title(file.label, loc="left")
    return figure


def _draw_spectrum(axes, file):
    values = file.array("singular_values", 1, _REMEDY)
    noise = float(file.array("noise", 0, _REMEDY))
    cuts = {float(direction["rcond"]) for direction in file.get("directions", _REMEDY)}
    shown = np.where(values > 0, values, np.nan)  # a logarithmic axis has no place for zeros
    axes.plot(np.arange(1, len(values) + 1), shown, color="black")
    for cut in sorted(cuts - {0.0}):
        axes.axhline(cut * values.max(), color=_style.GREY, linestyle="--", linewidth=1.0)
    lowest = np.nanmin(np.append(shown, max(noise, 1e-300)))
    axes.set(yscale="log", xlabel="index", ylabel="singular value", xlim=(1, max(len(values), 2)))
    axes.set_ylim(bottom=0.5 * lowest)
    if noise > 0:
        axes.axhspan(0.5 * lowest, noise, color="#e8e8e8", linewidth=0)


def _draw_directions(axes, file):
    before = float(file.array("loss", 0, _REMEDY))
    directions = file.get("directions", _REMEDY)
    pairs = [(_METHODS.get(d["kappa"], "kappa"), str(d["name"])) for d in directions]
    styles = _style.line_styles(set(pairs))
    for direction, pair in zip(directions, pairs, strict=True):
        sizes, colour = np.asarray(direction["step_sizes"]), styles[pair]["color"]
        relative = sizes / direction["cauchy"]
        for key, dashes in (("achieved", "-"), ("predicted", (0, (2, 1.5)))):
            after = (before + np.asarray(direction[key])) / before
            label = f"{pair[1]}, {direction['cauchy']:.2g}" if key == "achieved" else None
            width = 1.5 if key == "achieved" else 1.0
            axes.plot(relative, after, color=colour, linestyle=dashes, linewidth=width, label=label)
    axes.axhline(1.0, color=_style.GREY, linewidth=0.7)
    axes.set(xscale="log", xlabel="step size / Cauchy step", ylabel="loss after / before")
    axes.set_ylim(-0.02, 1.6)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.03), title="direction, Cauchy step")


def main(arguments=None):
    """Runs the command line, by default that of the process; returns its exit status."""
    options = _files.parser("diagnosis", __doc__, _EPILOG).parse_args(arguments)
    return _files.write(options, draw)


if __name__ == "__main__":
    sys.exit(main())
