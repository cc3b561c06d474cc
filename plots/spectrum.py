"""Singular values of the joint Jacobian at a few moments of the training, with the cut-off."""

import argparse
import sys

import numpy as np
from matplotlib import colormaps

from plots import _files, _style

_REMEDY = (
    "Only methods that decompose one Jacobian, such as HIG, record its spectrum; MultiHIG does "
    "where all losses share one prediction"
)

_EPILOG = """\
Values are relative to the largest of their moment. Directions below the dashed line are dropped
from the step; values in grey may be rounding alone, in the precision of the run, at the moment at
which that is most. Several files stand side by side.

example:
  python -m plots.spectrum hig_seed1.pickle --moments 4 --out spectrum.png
"""

# As many as the cut-off "auto" of a step goes by.
_ROUNDINGS = 256


def draw(files, moments=5):
    """Draws the figure.

    Args:
        files: Sequence of ResultFile.
        moments: The largest number of moments shown; they are spread evenly over those recorded,
            the first and the last among them.

    Returns:
        matplotlib.figure.Figure with a column for each file.

    Raises:
        PlotError: No file has a spectrum, or its parts do not fit together.
    """
    files = _files.having(files, "spectrum")
    # Moments differ from file to file, so every panel has its own legend.
    figure, grid = _style.panels(1, len(files), width=4.4, legend_width=0, sharey=True)
    noises = [_draw_file(*pair, moments) for pair in zip(grid[0], files, strict=True)]
    # One axis for all, which must have room for the shades too.
    lowest = min([grid[0, 0].get_ylim()[0], *(0.5 * noise for noise in noises if noise > 0)])
    for axes, file, noise in zip(grid[0], files, noises, strict=True):
        if noise > 0:
            axes.axhspan(lowest, noise, color="#e8e8e8", linewidth=0, label="may be rounding")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.03))
        if len(files) > 1:
            axes.set_title(file.label, loc="left")
    grid[0, 0].set_ylim(bottom=lowest)
    grid[0, 0].set_ylabel("singular value / largest")
    return figure


def _draw_file(axes, file, moments):
    """Draws all but the noise, and returns that."""
    epochs = file.array("spectrum.epochs", 1, _REMEDY)
    values = file.array("spectrum.singular_values", 2, _REMEDY)
    rcond = float(file.array("spectrum.rcond", 0, _REMEDY))
    if len(epochs) != len(values):
        raise _files.PlotError(
            f"'spectrum' in {file.path} has {len(epochs)} epochs for {len(values)} rows of "
            "singular values; run the experiment again"
        )
    chosen = np.unique(np.linspace(0, len(epochs) - 1, min(moments, len(epochs))).round())
    for index, shade in zip(chosen.astype(int), np.linspace(0, 0.85, len(chosen)), strict=True):
        if not values[index].max() > 0:
            _files.note(f"{file.path}: every singular value at epoch {epochs[index]:g} is zero")
            continue
        relative = values[index] / values[index].max()
        relative[~(relative > 0)] = np.nan  # a logarithmic axis has no place for zeros
        axes.plot(
            np.arange(1, len(relative) + 1),
            relative,
            color=colormaps["viridis"](shade),
            label=f"epoch {_short(epochs[index])}",
        )
    if rcond > 0:
        number = np.format_float_scientific(rcond, precision=1, trim="-", exp_digits=1)
        text = f"cut-off {number}"
        axes.axhline(rcond, color=_style.GREY, linestyle="--", linewidth=1.0, label=text)
    axes.set_yscale("log")
    axes.set_xlim(1, max(values.shape[1], 2))
    axes.set_xlabel("index")
    return max((_noise(values[index], file) for index in chosen.astype(int)), default=0.0)


def _noise(values, file):
    """Share of the largest value below which others may be rounding; 0 if the dtype is unknown."""
    settings = file.results.get("sim_par")
    dtype = settings.get("dtype") if isinstance(settings, dict) else None
    if dtype not in ("float32", "float64") or not values.max() > 0:
        return 0.0
    return _ROUNDINGS * np.finfo(dtype).eps * np.sqrt(np.mean(values**2)) / values.max()


def _short(number):
    """At most three digits, but for whole numbers."""
    return f"{number:.0f}" if number >= 1000 else f"{number:.{2 if number < 1 else 3}g}"


def _count(text):
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive whole number, got {text!r}")
    return int(text)


def main(arguments=None):
    """Runs the command line, by default that of the process; returns its exit status."""
    parser = _files.parser("spectrum", __doc__, _EPILOG)
    parser.add_argument(
        "--moments", type=_count, default=5, metavar="N", help="at most this many curves (5)"
    )
    options = parser.parse_args(arguments)
    return _files.write(options, lambda files: draw(files, options.moments))


if __name__ == "__main__":
    sys.exit(main())
