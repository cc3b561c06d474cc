"""Settings that differ between runs, and final values of runs."""

import numpy as np

from plots._curves import quantity_key
from plots._files import PlotError

_REMEDY = "Give result files that the runner has written"
# Recorded among the settings, but nothing that a figure compares runs by.
_OTHERS = ("seed", "out", "published", "init_from", "save_weights", "threads", "time_budget")


def varied(files):
    """Names of the settings in which runs of one problem and method differ, as recorded."""
    groups = {}
    for file in files:
        groups.setdefault((file.problem, file.method), []).append(file.get("sim_par", _REMEDY))
    names = {}
    for found in groups.values():
        for name in dict.fromkeys(name for settings in found for name in settings):
            if len({repr(settings.get(name)) for settings in found}) > 1:
                names[name] = None
    return [name for name in names if name not in _OTHERS]


def value(file, setting):
    """The value of a setting, a number or a text; a PlotError if the file has none."""
    found = file.get("sim_par", _REMEDY)
    if setting not in found:
        raise PlotError(
            f"{file.path} has no setting '{setting}'; --setting can be {', '.join(found)} here"
        )
    return found[setting] if is_number(found[setting]) else text(found[setting])


def is_number(found):
    """Returns whether a value has its place on an axis of numbers."""
    return isinstance(found, int | float) and not isinstance(found, bool)


def text(found):
    """A value as a tick or a legend shows it."""
    if isinstance(found, float):
        return f"{found:g}".replace("e-0", "e-").replace("e+0", "e")
    return "-".join(map(str, found)) if isinstance(found, list | tuple) else str(found)


def in_order(values):
    """Values, each once: numbers by size, then texts as they come."""
    found = list(dict.fromkeys(values))
    return [*sorted(filter(is_number, found)), *(one for one in found if not is_number(one))]


def final(file, quantity):
    """Final value of a run, infinite if it is not finite or the run has diverged.

    Raises a PlotError if the file has no such quantity, or one of several components.
    """
    last = float(file.array(quantity_key(quantity), 1, _REMEDY)[-1])
    diverged = str(file.results.get("stopped") or "").startswith("non-finite")
    return last if np.isfinite(last) and not diverged else np.inf


def name(file):
    """The name of a method, without the deviations of its run from the usual one."""
    return file.label.partition(" (")[0]
