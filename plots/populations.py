"""Populations of the eigenstates of a controlled quantum system, on the way to their targets."""

import sys

from plots import _example, _files, _style

_REMEDY = "Give a result file of a quantum problem whose run kept an example"

_LAYOUT = {
    "populations": ("examples", "times", "states"),
    "time": ("times",),
    "target_populations": ("examples", "states"),
}

# The remaining population is drawn if it is visibly above zero.
_VISIBLE = 0.005

_EPILOG = """\
The targets count at the final time. The thin grey line is the population outside the eigenstates
shown. Several files stand side by side.

example:
  python -m plots.populations hig.pickle adam.pickle --example 0 --out populations.png
"""


def draw(files, example=0):
    """Draw a panel for each file, of one of its examples.

    Raises a PlotError if a file has no (such) example, or its parts do not fit together.
    """
    files = _files.having(files, "example")
    figure, grid = _style.panels(1, len(files), sharey="row")
    for axes, file in zip(grid[0], files, strict=True):
        parts = _example.read(file, _LAYOUT, example, _REMEDY)
        count = parts["populations"].shape[-1]
        _draw_populations(axes, parts, _example.names(file, "population_names", count, _REMEDY))
        if len(files) > 1:
            axes.set_title(file.label, loc="left")
    grid[0, 0].set_ylabel("population")
    grid[0, 0].set_ylim(0.0, 1.0)
    lines = {line.get_label(): line for axes in grid[0] for line in axes.lines}
    handles = [line for label, line in lines.items() if not label.startswith("_")]
    handles.append(_example.target_handle())
    figure.legend(handles=handles, loc="outside right upper")
    return figure


def _draw_populations(axes, parts, names):
    time = parts["time"]
    colours = [_style.SEQUENCE[i % len(_style.SEQUENCE)] for i in range(len(names))]
    for values, name, colour in zip(parts["populations"].T, names, colours, strict=True):
        axes.plot(time, values, color=colour, label=name, clip_on=False)
    _example.draw_targets(axes, time[-1], parts["target_populations"], colours)
    rest = 1 - parts["populations"].sum(-1)
    if rest.max() > _VISIBLE:
        axes.plot(time, rest, color=_style.GREY, linewidth=0.8, zorder=1.5, label="others")
    axes.set_xlim(time[0], time[-1])
    axes.set_xlabel("time")


def main(arguments=None):
    """Runs the command line, by default that of the process; returns its exit status."""
    return _example.run("populations", __doc__, _EPILOG, draw, arguments)


if __name__ == "__main__":
    sys.exit(main())
