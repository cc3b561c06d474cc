"""Controlled smoke: its density at the start, and at the end without and with control."""

import sys

from plots import _example, _files, _style

_REMEDY = "Give a result file of smoke control whose run kept an example"

_TITLES = {
    "start": "start",
    "uncontrolled": "uncontrolled",
    "prediction": "controlled",
    "truth": "target",
}

_LAYOUT = {key: ("examples", "x", "y") for key in _TITLES}

_EPILOG = """\
A row for each file; x to the right, y upwards. All densities share one scale of colours.
`python -m plots.fields` draws the difference between the result and the target.

example:
  python -m plots.smoke hig.pickle adam.pickle --example 0 --out smoke.png
"""


def draw(files, example=0):
    """Draw the figure of one of the examples of each file.

    Returns:
        matplotlib.figure.Figure with a row for each file: the start, the end without and with
        control, and the target.

    Raises:
        PlotError: A file has no (such) example, or its parts do not fit together.
    """
    files = _files.having(files, "example")
    examples = [_example.read(file, _LAYOUT, example, _REMEDY) for file in files]
    highest = _example.largest(one[key] for one in examples for key in _TITLES)
    figure, grid = _style.panels(len(files), len(_TITLES), width=1.6, height=1.6, legend_width=0.8)
    figure.set_layout_engine("compressed")  # no gaps next to the square panels
    for row, file, shown in zip(grid, files, examples, strict=True):
        row[0].set_ylabel(file.label)
        for axes, key in zip(row, _TITLES, strict=True):
            axes.grid(False)
            axes.set(xticks=[], yticks=[])
            image = axes.imshow(shown[key].T, origin="lower", cmap="magma", vmin=0.0, vmax=highest)
    for axes, title in zip(grid[0], _TITLES.values(), strict=True):
        axes.set_title(title)
    figure.colorbar(image, ax=grid.ravel().tolist(), label="density")
    return figure


def main(arguments=None):
    """Runs the command line, by default that of the process; returns its exit status."""
    return _example.run("smoke", __doc__, _EPILOG, draw, arguments)


if __name__ == "__main__":
    sys.exit(main())
