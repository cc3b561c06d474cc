"""Settings that have won the grid, for each method on each problem."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import hig
from experiments._methods import METHODS
from experiments._saved.result_files import ResultFileError
from experiments._study.execution import result_of
from experiments._study.jobs import Job, Point

WINNERS = "winners.json"


def best_points(
    grid: Sequence[tuple[Job, Point]], out: Path, count: int
) -> dict[tuple[str, str], list[Point]]:
    """Rank the settings by the final test loss, by folder and method, the lowest first.

    The test samples of the tuning seed differ from those of the reported seeds. A run that
    diverges, or has no result, loses against all others; if all do, the smallest step size is
    taken.
    """
    best = {}
    for of, tried in _by_method(grid).items():
        scores = [
            (_final(out / job.place), point.get("lr", 0), i) for i, (job, point) in enumerate(tried)
        ]
        best[of] = [tried[i][1] for *_, i in sorted(scores)[:count]]
    return best


def finalists(
    grid: Sequence[tuple[Job, Point]], out: Path, count: int
) -> dict[tuple[str, str], list[Point]]:
    """Choose the settings of a short grid to try for longer, by folder and method.

    The best points; and since a short run flatters large step sizes and those that do not fall,
    the best cosine schedule at the next smaller step size as well.
    """
    found = {}
    for of, ranked in best_points(grid, out, len(grid)).items():
        cosines = [point for point in ranked if point.get("schedule") == "cosine"]
        cosines = [point for point in cosines if "lr" in point]
        smaller = [point for point in cosines if point["lr"] < cosines[0]["lr"]]
        further = sorted(smaller, key=lambda point: point["lr"])[-1:]
        found[of] = ranked[:count] + [point for point in further if point not in ranked[:count]]
    return found


def winners(grid: Sequence[tuple[Job, Point]], out: Path) -> dict[tuple[str, str], Point]:
    """Choose the settings of the lowest final test loss, by folder and method."""
    return {of: points[0] for of, points in best_points(grid, out, 1).items()}


def save_winners(
    grid: Sequence[tuple[Job, Point]], finals: Sequence[tuple[Job, Point]], out: Path
) -> None:
    """Write the whole grid, with losses and winners, as JSON next to the results.

    ``finals`` is empty if the grid decides. Entries of problems that the grid does not have stay as
    they are.
    """
    path = out / WINNERS
    won, longer = winners(finals or grid, out), _by_method(finals)
    problems = {folder for folder, _ in won}
    others = _earlier(path)
    entries = [entry for entry in others if entry["problem"] not in problems]
    entries += [
        {
            "problem": folder,
            "method": method,
            "won": dict(won[folder, method]),
            "tried": _with_losses(tried, out),
            "finals": _with_losses(longer.get((folder, method), ()), out),
        }
        for (folder, method), tried in _by_method(grid).items()
    ]
    hig.files.write_atomically(path, f"{json.dumps(entries, indent=2)}\n".encode())


def load_winners(path: Path) -> list[dict[str, object]]:
    """Read the file of `save_winners`; a `ResultFileError` if it is missing or something else."""
    remedy = "the command python -m experiments.study writes it when the grid is done"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        whole = [
            entry["method"] in METHODS
            and all("loss" in point for point in (*entry["tried"], *entry.get("finals", ())))
            and {"problem", "won"} <= entry.keys()
            for entry in entries
        ]
    except FileNotFoundError as error:
        raise ResultFileError(f"there is no {path}; {remedy}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ResultFileError(f"{path} is not a grid of a study ({error!r}); {remedy}") from error
    if not all(whole):
        raise ResultFileError(f"{path} is not a grid of a study: an entry is not whole; {remedy}")
    return entries


def _earlier(path: Path) -> list[dict[str, object]]:
    """Read the entries written before; a damaged file is written again from the results."""
    try:
        return load_winners(path)
    except ResultFileError:
        return []


def _by_method(
    grid: Sequence[tuple[Job, Point]],
) -> dict[tuple[str, str], list[tuple[Job, Point]]]:
    found: dict[tuple[str, str], list[tuple[Job, Point]]] = {}
    for job, point in grid:
        found.setdefault((job.folder, job.method), []).append((job, point))
    return found


def _with_losses(tried: Sequence[tuple[Job, Point]], out: Path) -> list[dict[str, object]]:
    return [{**point, "loss": _finite(_final(out / job.place))} for job, point in tried]


def _finite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None


def _final(place: Path) -> float:
    """Read the last test loss; infinite if there is none, or if it is not finite."""
    found = result_of(place)
    if found is None:
        return math.inf
    results = hig.load_results(found)
    loss = float(np.asarray(results["test_loss"])[-1])
    stopped = str(results["stopped"])
    return loss if math.isfinite(loss) and not stopped.startswith("non-finite") else math.inf
