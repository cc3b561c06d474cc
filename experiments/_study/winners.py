"""The settings that have won the grid, for each method on each problem."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import hig
from experiments._study.execution import result_of
from experiments._study.jobs import Job, Point


def winners(grid: Sequence[tuple[Job, Point]], out: Path) -> dict[tuple[str, str], Point]:
    """By folder and method, the settings of the lowest final test loss.

    The test samples of the tuning seed are other ones than those of the seeds that are told. What
    diverges loses against everything; where all do, the smallest step size is taken.

    Args:
        grid: The jobs of the grid with their settings; without results they count as diverged.
        out: Folder of the study.
    """
    won = {}
    for (folder, method), tried in _by_method(grid).items():
        scores = [(_final(out / job.place), point["lr"], i) for i, (job, point) in enumerate(tried)]
        won[folder, method] = tried[min(scores)[-1]][1]
    return won


def save_winners(grid: Sequence[tuple[Job, Point]], out: Path) -> None:
    """Write the whole grid, with losses and winners, as JSON beside the results."""
    won = winners(grid, out)
    entries = [
        {
            "problem": folder,
            "method": method,
            "won": dict(won[folder, method]),
            "tried": [{**point, "loss": _finite(_final(out / job.place))} for job, point in tried],
        }
        for (folder, method), tried in _by_method(grid).items()
    ]
    hig.files.write_atomically(out / "winners.json", f"{json.dumps(entries, indent=2)}\n".encode())


def _by_method(
    grid: Sequence[tuple[Job, Point]],
) -> dict[tuple[str, str], list[tuple[Job, Point]]]:
    found: dict[tuple[str, str], list[tuple[Job, Point]]] = {}
    for job, point in grid:
        found.setdefault((job.folder, job.method), []).append((job, point))
    return found


def _finite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None


def _final(place: Path) -> float:
    """The last test loss; infinite where there is none, or it is not finite."""
    found = result_of(place)
    if found is None:
        return math.inf
    results = hig.load_results(found)
    loss = float(np.asarray(results["test_loss"])[-1])
    stopped = str(results["stopped"])
    return loss if math.isfinite(loss) and not stopped.startswith("non-finite") else math.inf
