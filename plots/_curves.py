"""Curves of recorded quantities, and the curve that stands for several seeds."""

import math
from dataclasses import replace

import numpy as np

from plots._files import PlotError, note

_REMEDY = "Give a result file that the runner or a published training script has written"

# Recorded of the steps and not on data; of either sign, so that they take a linear axis.
SIGNED = ("smallest_cosine",)
# Recorded after every step instead of at the evaluations.
PER_STEP = ("step_size",)
# Number of curves of one file that a figure can distinguish.
MOST_COMPONENTS = 12

UNITS = {"time": "training time (s)", "epochs": "epochs", "steps": "steps"}
# Settings with the samples of an epoch; for equations the interior points.
_EPOCH = ("train_size", "points_interior")


def quantity_key(quantity):
    """The key of a quantity, "test_loss" for "test", "test_l1_distance" for "l1_distance".

    Quantities but the losses are measured on the test data, unless they start with "test_" or
    "train_" or are in `SIGNED` or in `PER_STEP`.
    """
    if quantity in ("test", "train"):
        return f"{quantity}_loss"
    whole = quantity in (*SIGNED, *PER_STEP) or quantity.startswith(("test_", "train_"))
    return quantity if whole else f"test_{quantity}"


def components(file, quantity, chosen=None):
    """One ResultFile for each (chosen) component of a quantity, labelled by it.

    Raises:
        PlotError: There is no such component, or none at all, or they are too many for a figure.
    """
    key = quantity_key(quantity)
    values = np.asarray(file.results.get(key, ()))
    if values.ndim == 1 and chosen:
        raise PlotError(f"'{key}' in {file.path} has no components; leave --component out")
    if values.ndim != 2:
        return [file]
    names = _component_names(file, values.shape[1])
    known = f"--component can be {', '.join(names)} here"
    if unknown := [name for name in chosen or () if name not in names]:
        raise PlotError(f"'{key}' in {file.path} has no component {', '.join(unknown)}; {known}")
    shown = [index for index, name in enumerate(names) if not chosen or name in chosen]
    if len(shown) > MOST_COMPONENTS:
        raise PlotError(
            f"'{key}' in {file.path} has {len(shown)} components, more than the {MOST_COMPONENTS} "
            f"that a figure can distinguish; {known}"
        )
    return [
        replace(file, results=file.results | {key: values[:, index], "label": label})
        for index in shown
        for label in [f"{file.label}, {names[index]}" if len(names) > 1 else file.label]
    ]


def curve(file, quantity, axis, log_x=False, log_y=True):
    """A quantity along "time", "epochs" or "steps", without points that the axes cannot show.

    Returns:
        Positions (N,) in seconds, epochs or steps and values (N,), float64; at least one point. The
        values are positive on a logarithmic axis.

    Raises:
        PlotError: The file lacks the keys for it, their lengths disagree or no point is left.
    """
    key = quantity_key(quantity)
    values = file.array(key, 1, _quantities_remedy(file))
    per_step = key in PER_STEP
    position = (_steps if per_step else positions)(file, axis, len(values))
    shown = np.isfinite(values) & np.isfinite(position)
    expected = np.zeros_like(shown)
    if key in SIGNED:
        expected[0] = np.isnan(values[0])  # before the first step there is none
    elif log_y:
        shown &= values > 0
    negative = log_y and key not in SIGNED and bool((values < 0).any())
    remedy = "; --linear shows those of either sign" if negative else ""
    if not (shown | expected).all():
        note(
            f"{file.path}: {np.sum(~(shown | expected))} of {len(values)} values of '{key}' are "
            f"not finite or not positive and are left out{remedy}"
        )
    if log_x:
        shown &= position > 0  # the evaluation before training has no place on a log axis
    if not shown.any():
        raise PlotError(
            f"{file.path} has no value of '{key}' that the axes can show: the {len(values)} values "
            f"start with {values[:3]}{remedy}"
        )
    return position[shown], values[shown]


def positions(file, axis, count):
    """Places of the ``count`` evaluations of a run along "time", "epochs" or "steps".

    Returns:
        Seconds, epochs or steps (count,), float64. The seconds of a run that started from saved
        weights follow on those of the run that made them.

    Raises:
        PlotError: The file does not say, or for another number of evaluations.
    """
    if axis == "epochs":
        return _epochs(file, count)
    if axis == "steps":
        return (_epochs(file, count) * _steps_per_epoch(file)).round()
    return _after_pretraining(file, _times(file, count))


def median_and_band(curves, log_y=True):
    """Several seeds as one curve, over the range that all of them cover.

    The values are interpolated between evaluations as straight lines on their axis.

    Args:
        curves: Sequence of pairs of positions (N_i,), ascending, and values (N_i,).
        log_y: True if the axis of the values is logarithmic; they must be positive then.

    Returns:
        Positions (N,) and the median, smallest and largest value there, (N,) float64 each; N is
        zero if the curves have no common range.
    """
    first = max(position[0] for position, _ in curves)
    last = min(position[-1] for position, _ in curves)
    grid = np.unique(np.concatenate([position for position, _ in curves]))
    grid = grid[(grid >= first) & (grid <= last)]
    there, back = (np.log, np.exp) if log_y else (np.asarray, np.asarray)
    heights = np.array([np.interp(grid, position, there(values)) for position, values in curves])
    return grid, *back([np.median(heights, axis=0), heights.min(axis=0), heights.max(axis=0)])


def _after_pretraining(file, time):
    if file.results.get("pretraining_time") is not None:
        return time + float(file.array("pretraining_time", 0, _REMEDY))
    return time


def step_numbers(file, count):
    """Numbers (count,) float64 of the steps that a run recorded something of, from 1.

    Raises:
        PlotError: The file has the numbers of another count of steps.
    """
    if "step" in file.results:
        return _of_length(file, "step", count, "steps")
    return np.arange(1.0, count + 1)


def _steps(file, axis, count):
    """Places of the ends of the steps of a run; each is the same share of an epoch."""
    if axis == "steps":
        return step_numbers(file, count)
    if axis == "epochs":
        last, steps = np.atleast_1d(file.get("epochs", _REMEDY))[-1], step_numbers(file, count)
        return float(last) * steps / steps[-1]
    return _after_pretraining(file, _of_length(file, "step_time", count, "steps"))


def _steps_per_epoch(file):
    settings = file.results.get("sim_par")
    settings = settings if isinstance(settings, dict) else {}
    samples = next((settings[name] for name in _EPOCH if settings.get(name)), None)
    if samples is None or not settings.get("batch_size"):
        raise PlotError(
            f"{file.path} does not say how many steps an epoch has: 'sim_par' must have "
            f"'batch_size' and one of {', '.join(_EPOCH)}; use --x epochs"
        )
    return math.ceil(samples / settings["batch_size"])


def _component_names(file, count):
    """Names of the unknowns or tasks of the problem, else numbers from 1 on."""
    example = file.results.get("example")
    for key in ("unknowns", "tasks"):
        names = example.get(key) if isinstance(example, dict) else None
        if names is not None and len(names) == count:
            return [str(name) for name in names]
    return [str(index + 1) for index in range(count)]


def _quantities_remedy(file):
    keys = [key for key, value in file.results.items() if _is_recorded(str(key), value)]
    names = {"test_loss": "test", "train_loss": "train"}
    there = ", ".join(names.get(key, key.removeprefix("test_")) for key in keys)
    return f"--quantity can be {there} here" if there else _REMEDY


def _is_recorded(key, value):
    dimensions = 1 if isinstance(value, list) else np.ndim(value)
    if key in (*SIGNED, *PER_STEP):
        return dimensions == 1
    return key.startswith(("test_", "train_")) and dimensions in (1, 2)


def _epochs(file, count):
    value = np.asarray(file.get("epochs", f"{_REMEDY}, or use --x time"))
    if value.ndim == 1:
        return _of_length(file, "epochs", count)
    total = float(file.array("epochs", 0, _REMEDY))
    if total == count:
        return np.arange(1.0, count + 1)  # evaluated after every epoch, not before the first
    return np.linspace(0.0, total, count)


def _times(file, count):
    if "time" in file.results:
        return _of_length(file, "time", count)
    # Published training scripts keep the seconds of every epoch, or their mean, and the total.
    epochs = _epochs(file, count) if "epochs" in file.results else np.arange(float(count))
    if np.ndim(file.results.get("epoch_time")) == 1:
        ends = np.cumsum(file.array("epoch_time", 1, _REMEDY))
        if len(ends) == count - 1:
            return np.concatenate([[0.0], ends])
        if len(ends) == count:
            return ends - ends[0] if epochs[0] == 0 else ends
        if len(ends) == epochs[-1]:  # evaluated every few epochs
            return np.interp(epochs, np.arange(len(ends) + 1), np.concatenate([[0.0], ends]))
    if file.results.get("simulation_time") is not None:
        total = float(file.array("simulation_time", 0, _REMEDY))
        return epochs * (total / max(epochs[-1], 1e-300))
    remedy = "'time' is missing too; use --x epochs"
    return epochs * float(file.array("epoch_time", 0, remedy))


def _of_length(file, key, count, what="evaluations"):
    array = file.array(key, 1, _REMEDY)
    if len(array) != count:
        raise PlotError(
            f"'{key}' in {file.path} has {len(array)} entries for {count} {what}; {_REMEDY}"
        )
    return array
