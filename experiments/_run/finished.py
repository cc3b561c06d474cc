"""Result files of runs that have already finished, for ``--resume``."""

from collections.abc import Mapping
from pathlib import Path

import hig
from experiments._run.weights import Pretraining

# Values of ``stopped`` of a run that has used up its budget.
_FINISHED = ("epochs", "time budget")

# Settings that change neither the course of a run nor its results.
_FREE = {"out", "threads"}


def finished(
    result: Path,
    sim_par: Mapping[str, object],
    processes: int,
    earlier: Pretraining | None,
) -> dict[str, object] | None:
    """Read the results of a run of the same command line that has used up its budget, or None."""
    try:
        found = hig.load_results(result)
    except (OSError, hig.CorruptResultError, hig.UnsafeResultError):
        return None  # to be overwritten, as without --resume
    start = (earlier.label, earlier.seconds) if earlier else (None, None)
    same = (
        found.get("stopped") in _FINISHED
        and _same(found.get("sim_par"), sim_par)
        and _same(found.get("machine"), {"processes": processes}, some=True)
        and (found.get("pretraining"), found.get("pretraining_time")) == start
    )
    weights = found.get("weights_file", "")
    there = isinstance(weights, str) and result.with_name(weights or result.name).is_file()
    return found if same and there else None


def _same(found: object, wanted: Mapping[str, object], some: bool = False) -> bool:
    """Compare settings and their types; with ``some``, further entries found are ignored."""
    if not isinstance(found, dict) or not (some or found.keys() ^ wanted.keys() <= _FREE):
        return False
    return all(
        type(found.get(name)) is type(value) and found[name] == value
        for name, value in wanted.items()
        if name not in _FREE
    )
