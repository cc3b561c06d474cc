"""Fields of one example, as they are and as a trained network predicts them."""

import sys

import numpy as np

from plots import _example, _files, _style

_REMEDY = "Give a result file of a Poisson problem whose run kept an example"

_LAYOUT = {"truth": ("examples", "x", "y"), "prediction": ("examples", "x", "y")}

_EPILOG = """\
A row for each file; x to the right, y upwards. Truth and prediction share one scale of colours, the
differences, prediction less truth, another. RMS is the root of the mean square over the field.

example:
  python -m plots.fields hig.pickle adam.pickle --example 0 --out fields.png
"""


def draw(files, example=0):
    """Draw the figure of one of the examples of each file.

    Returns:
        matplotlib.figure.Figure with a row for each file: truth, prediction and difference.

    Raises:
        PlotError: A file has no (such) example, its parts do not fit together, or the files are
            of different quantities.
    """
    files = _files.having(files, "example")
    examples = [_example.read(file, _LAYOUT, example, _REMEDY) for file in files]
    quantity = _quantity(files)
    # Truth and prediction in the first two columns, the difference in the third.
    fields = [
        (one["truth"], one["prediction"], one["prediction"] - one["truth"]) for one in examples
    ]
    levels = _example.largest(field for row in fields for field in row[:2])
    errors = _example.largest(row[2] for row in fields)
    looks = [("RdBu_r", levels), ("RdBu_r", levels), ("PuOr_r", errors)]
    height = 1.8 + 0.6 / len(files)  # with the bars, once for all rows
    figure, grid = _style.panels(len(files), 3, width=1.8, height=height, legend_width=0.4)
    figure.set_layout_engine("compressed")  # no gaps next to the square panels
    for row, file, shown in zip(grid, files, fields, strict=True):
        images = [_draw_field(*panel) for panel in zip(row, shown, looks, strict=True)]
        row[0].set_ylabel(file.label)
        row[2].set_title(f"RMS {np.sqrt(np.mean(shown[2] ** 2)):.2g}")
    for axes, title in zip(grid[0], ("ground truth", "prediction", "difference"), strict=True):
        axes.set_title(", ".join(filter(None, [title, axes.get_title()])))
    # Below: on the side, a label would seem to be of the next panel.
    for image, columns, label in ((images[0], slice(2), quantity), (images[2], 2, "difference")):
        panels = grid[:, columns].ravel().tolist()
        figure.colorbar(image, ax=panels, location="bottom", label=label, aspect=12 * len(panels))
    return figure


def _quantity(files):
    quantities = {str(file.get("example.quantity", _REMEDY)) for file in files}
    if len(quantities) > 1:
        raise _files.PlotError(
            f"the files show different quantities, {' and '.join(sorted(quantities))}, which have "
            "no common scale; draw a figure of each"
        )
    return quantities.pop()


def _draw_field(axes, field, look):
    colours, limit = look
    axes.grid(False)
    axes.set(xticks=[], yticks=[])
    return axes.imshow(field.T, origin="lower", cmap=colours, vmin=-limit, vmax=limit)


def main(arguments=None):
    """Runs the command line, by default that of the process; returns its exit status."""
    return _example.run("fields", __doc__, _EPILOG, draw, arguments)


if __name__ == "__main__":
    sys.exit(main())
