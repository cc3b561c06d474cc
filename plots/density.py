"""A controlled quantum state: its probability density over time, and the control that steers."""

import sys

from plots import _example, _files, _style

_REMEDY = "Give a result file of a quantum problem whose run kept an example"

_LAYOUT = {
    "density": ("examples", "times", "points"),
    "time": ("times",),
    "position": ("points",),
    "target_density": ("examples", "points"),
    "control": ("examples", "steps"),
    "control_time": ("steps",),
}

_EPILOG = """\
Above the density over time (to the right) and space (upwards), with the density at the final time
and its target to the right of it; below the control. Several files stand side by side and share
one scale of colours.

example:
  python -m plots.density hig.pickle adam.pickle --example 0 --out density.png
"""


def draw(files, example=0):
    """Draw the figure of one of the examples of each file.

    Returns:
        matplotlib.figure.Figure with two columns for each file: the density above the control,
        and the profile at the final time.

    Raises:
        PlotError: A file has no (such) example, or its parts do not fit together.
    """
    files = _files.having(files, "example")
    examples = [_example.read(file, _LAYOUT, example, _REMEDY) for file in files]
    highest = _example.largest(one[k] for one in examples for k in ("density", "target_density"))
    figure, grid = _style.panels(
        2,
        2 * len(files),
        width=1.9,
        height=1.8,
        sharex="col",
        sharey="row",
        height_ratios=(3, 2),
        width_ratios=(5, 1) * len(files),
    )
    columns = zip(grid[:, ::2].T, grid[:, 1::2].T, files, examples, strict=True)
    for (above, below), (profile, empty), file, parts in columns:
        image = _draw_density(above, parts, highest)
        _draw_profile(profile, parts, highest)
        _example.draw_control(below, parts)
        empty.axis("off")
        if len(files) > 1:
            above.set_title(file.label, loc="left")
    grid[0, 0].set_ylabel("position")
    grid[1, 0].set_ylabel("control")
    figure.colorbar(image, ax=grid[0].tolist(), label="probability density", aspect=15)
    legend = empty.legend(*profile.get_legend_handles_labels(), loc="center left")
    legend.set_in_layout(False)  # there is room below the bar of the colours
    return figure


def _draw_density(axes, parts, highest):
    image = axes.pcolormesh(
        parts["time"],
        parts["position"],
        parts["density"].T,
        shading="gouraud",  # linear between the grid points, like the profile
        cmap="viridis",
        vmin=0.0,
        vmax=highest,
        rasterized=True,  # thousands of triangles make a slow PDF
    )
    axes.grid(False)
    return image


def _draw_profile(axes, parts, highest):
    target, final = parts["target_density"], parts["density"][-1]
    axes.fill_betweenx(parts["position"], target, color="#bbbbbb", lw=0, label="target")
    axes.plot(final, parts["position"], color="black", linewidth=1.1, label="final")
    axes.set_xlim(0.0, 1.05 * highest)
    axes.grid(False)
    axes.tick_params(left=False, labelleft=False, bottom=False, labelbottom=False)


def main(arguments=None):
    """Runs the command line, by default that of the process; returns its exit status."""
    return _example.run("density", __doc__, _EPILOG, draw, arguments)


if __name__ == "__main__":
    sys.exit(main())
