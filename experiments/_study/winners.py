"""The step size that has won the grid, for each method on each problem."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import hig
from experiments._study.execution import result_of
from experiments._study.jobs import Job


def winners(jobs: Sequence[Job], out: Path) -> dict[tuple[str, str], float]:
    """By folder and method, the step size of the lowest final test loss.

    The test samples of the tuning seed are other ones than those of the seeds that are told. What
    diverges loses against everything; where all do, the smallest step size is taken.

    Args:
        jobs: The jobs of the grid; those without results count as diverged.
        out: Folder of the study.
    """
    scores: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for job in jobs:
        rate = float(job.arguments[job.arguments.index("--lr") + 1])
        scores.setdefault((job.folder, job.method), []).append((_final(out / job.place), rate))
    return {key: min(found)[1] for key, found in scores.items()}


def save_winners(jobs: Sequence[Job], out: Path) -> None:
    """Write the whole grid, with losses and winners, as JSON beside the results."""
    won = winners(jobs, out)
    grid = [
        {
            "problem": folder,
            "method": method,
            "lr": rate,
            "losses": {
                job.arguments[job.arguments.index("--lr") + 1]: _final(out / job.place)
                for job in jobs
                if (job.folder, job.method) == (folder, method)
            },
        }
        for (folder, method), rate in won.items()
    ]
    text = json.dumps(grid, indent=2).replace("Infinity", "null")
    hig.write_atomically(out / "winners.json", f"{text}\n".encode())


def _final(place: Path) -> float:
    """The last test loss; infinite where there is none, or it is not finite."""
    found = result_of(place)
    if found is None:
        return math.inf
    results = hig.load_results(found)
    loss = float(np.asarray(results["test_loss"])[-1])
    stopped = str(results["stopped"])
    return loss if math.isfinite(loss) and not stopped.startswith("non-finite") else math.inf
