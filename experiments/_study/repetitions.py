"""Spread of runs that were repeated with equal settings."""

from collections.abc import Iterable, Mapping

import numpy as np

from experiments._saved.runs import Run

# Recorded among the settings without an effect on the results.
_FREE = ("out", "published", "save_weights", "threads")


def repetitions(parts: Mapping[str, Mapping[str, Iterable[Run]]]) -> list[float]:
    """The highest final loss over the lowest, for each set of runs that are alike.

    Within a time, and on another day, a run takes some steps more or fewer.

    Returns:
        A ratio of at least 1 for each set of two or more runs of the same settings and seed.
    """
    found: dict[tuple[str, ...], list[float]] = {}
    for folders in parts.values():
        for folder, runs in folders.items():
            for run in runs:
                found.setdefault((folder, *_alike(run)), []).append(run.final)
    sets = [losses for losses in found.values() if len(losses) > 1 and np.isfinite(losses).all()]
    return [max(losses) / min(losses) for losses in sets if min(losses) > 0]


def _alike(run: Run) -> tuple[str, ...]:
    settings = run.results["sim_par"]
    assert isinstance(settings, dict)
    chosen = sorted((name, repr(settings[name])) for name in settings.keys() - set(_FREE))
    return str(run.results["method"]), str(run.results.get("pretraining")), repr(chosen)
