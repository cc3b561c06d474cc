"""Example of a result file, and shared parts of the figures of controlled examples."""

import numpy as np
from matplotlib.lines import Line2D

from plots import _files, _style

_DOTS = 2.65  # from one dot to the next, in widths of the line
_MARKER = {"marker": "o", "markerfacecolor": "white", "markersize": 4.5}


def run(module, description, epilog, draw, arguments):
    """Runs the command line of a figure with the option `--example`; returns its exit status."""
    parser = _files.parser(module, description, epilog)
    parser.add_argument(
        "--example", type=int, default=0, metavar="I", help="which example, from 0 (0)"
    )
    options = parser.parse_args(arguments)
    return _files.write(options, lambda files: draw(files, options.example))


def read(file, layout, example, remedy):
    """The arrays of one example.

    Args:
        file: ResultFile.
        layout: dict from the keys below `example` to the names of their axes. Axes of one name
            must have one length; the axis "examples", which comes first, is taken away.
        example: Which of the examples.
        remedy: Remedy for a missing key, for the error text.

    Returns:
        dict from the keys to float64 arrays; those without an axis "examples" are as in the file.

    Raises:
        PlotError: The file has no (such) example, or its parts do not fit together.
    """
    lengths, owners, parts = {}, {}, {}
    for key, axes in layout.items():
        array = file.array(f"example.{key}", len(axes), remedy)
        expected = tuple(lengths.get(axis, n) for axis, n in zip(axes, array.shape, strict=True))
        if array.shape != expected:
            others = ", ".join(dict.fromkeys(owners[axis] for axis in axes if axis in owners))
            raise _files.PlotError(
                f"'example.{key}' in {file.path} must have shape {expected} next to {others}, "
                f"found {array.shape}; run the experiment again"
            )
        for axis, length in zip(axes, expected, strict=True):
            lengths.setdefault(axis, length)
            owners.setdefault(axis, f"'{key}' of shape {array.shape}")
        parts[key] = array
    count = lengths["examples"]
    if not 0 <= example < count:
        raise _files.PlotError(
            f"{file.path} has no example {example}, only 0 to {count - 1}; change --example"
        )
    return {key: parts[key][example] if "examples" in layout[key] else parts[key] for key in parts}


def names(file, key, count, remedy):
    """A list of ``count`` names below `example`; a PlotError if there is none or another number."""
    found = [str(name) for name in file.get(f"example.{key}", remedy)]
    if len(found) != count:
        raise _files.PlotError(
            f"'example.{key}' in {file.path} must have {count} names, found {len(found)}; run the "
            "experiment again"
        )
    return found


def draw_control(axes, parts):
    """Draw the control (T,) and its `control_time` below the state, above the `time` axis."""
    axes.axhline(0.0, color="#bbbbbb", linewidth=0.6)
    # The control is constant from one control time to the next, and to the end after the last.
    edges = np.append(parts["control_time"], parts["time"][-1])
    axes.stairs(parts["control"], edges, baseline=None, color="black", linewidth=1.1)
    axes.set_xlabel("time")


def draw_targets(axes, time, values, colours):
    """Draws values to be reached at a final time; equal ones as rings and dots in turn."""
    for place, (value, colour) in enumerate(zip(values, colours, strict=True)):
        same = np.flatnonzero(np.isclose(values, value))
        index, dots = int(np.searchsorted(same, place)), ":"
        if len(same) > 1:
            dots = (_DOTS * index, (1.0, _DOTS * len(same) - 1.0))
        axes.axhline(value, color=colour, linestyle=dots, linewidth=1.0)
        look = _MARKER | {"color": colour, "zorder": 3, "clip_on": False}
        if rings := len(same) - 1 - index:  # around those that follow
            look |= {"markersize": look["markersize"] + 3.5 * rings, "markerfacecolor": "none"}
        axes.plot(time, value, **look)


def target_handle():
    """The entry for all targets in a legend."""
    return Line2D(
        [], [], color=_style.GREY, linewidth=1.0, linestyle=":", label="target", **_MARKER
    )


def largest(arrays):
    """The largest magnitude that is finite, or 1 where all is zero, which no scale can show."""
    values = np.abs(np.concatenate([array.ravel() for array in arrays]))
    return np.max(values, initial=0.0, where=np.isfinite(values)) or 1.0
