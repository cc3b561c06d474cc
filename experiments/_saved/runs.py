"""Training runs, read from their result files."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments._saved.result_files import ResultFileError, files_in, note, read
from hig.errors import printable

_KEYS = ("problem", "method", "label", "seed", "stopped", "time", "epochs", "sim_par")


@dataclass(frozen=True)
class Run:
    """Entries of a result file that a comparison uses.

    Attributes:
        path: The file.
        results: Its contents.
        losses: (E,) float64, one for each evaluation; infinite if they are not finite.
        seconds: (E,) float64, training time until each evaluation, ascending.
    """

    path: Path
    results: dict[str, object]
    losses: np.ndarray
    seconds: np.ndarray

    @property
    def experiment(self) -> tuple[str, ...]:
        """Key that the seeds of one experiment have in common."""
        return tuple(printable(self.results[key]) for key in ("problem", "method", "label"))

    @property
    def identity(self) -> tuple[str, ...]:
        """Key that two files of one run have in common; seeds may start from several weights."""
        start = self.fact("sim_par", "init_from")
        return (*self.experiment, printable(self.results["seed"]), printable(start))

    def fact(self, group: str, key: str) -> object:
        """Look up a value in a dict of the results, None if there is none."""
        facts = self.results.get(group)
        return facts.get(key) if isinstance(facts, dict) else None

    @property
    def final(self) -> float:
        """The last loss."""
        return float(self.losses[-1])

    @property
    def best(self) -> float:
        """The lowest loss."""
        return float(self.losses.min())

    @property
    def duration(self) -> float:
        """Seconds of training."""
        return float(self.seconds[-1])

    @property
    def epochs(self) -> float:
        """Passes through the training data."""
        return float(self.results["epochs"][-1])

    @property
    def steps(self) -> float:
        """Number of steps; NaN if neither the run nor its settings determine it."""
        names = ("train_size", "points_interior")  # samples of an epoch; those of equations
        samples = next(filter(None, (self.fact("sim_par", name) for name in names)), None)
        batch = self.fact("sim_par", "batch_size")
        if samples and batch:
            return float(round(self.epochs * math.ceil(samples / batch)))
        times = self.results.get("step_time")
        return float(len(times)) if isinstance(times, np.ndarray) and times.ndim else math.nan

    @property
    def stopped(self) -> str:
        """Why it ended, in a word or two."""
        return printable(self.results["stopped"]).partition(":")[0]

    def seconds_to(self, target: float) -> float:
        """Training time until the first evaluation at the target or below; NaN without one."""
        reached = np.flatnonzero(self.losses <= target)
        return float(self.seconds[reached[0]]) if len(reached) else math.nan


def run_of(path: Path, results: dict[str, object], quantity: str) -> Run:
    """Extract what a comparison needs; a `ResultFileError` if it is not of a training run."""
    remedy = "give files that a submit script wrote"
    key = f"{quantity}_loss"
    missing = [name for name in (*_KEYS, key) if name not in results]
    if missing:
        there = ", ".join(map(printable, results)) or "nothing"
        raise ResultFileError(
            f"{path} is not of a training run, it has no '{missing[0]}'; it has {there}. {remedy}"
        )
    try:
        curves = [_real(results[name]) for name in (key, "time", "epochs")]
        earlier = float(results.get("pretraining_time") or 0.0)
    except (OverflowError, TypeError, ValueError) as error:
        raise ResultFileError(f"losses or times in {path} are not numbers: {error}") from error
    if len({curve.shape for curve in curves}) > 1 or curves[0].ndim != 1 or not len(curves[0]):
        shapes = ", ".join(str(curve.shape) for curve in curves)
        raise ResultFileError(
            f"'{key}', 'time' and 'epochs' in {path} must be of one length, at least 1, and have "
            f"shapes {shapes}; {remedy}"
        )
    losses = np.where(np.isfinite(curves[0]), curves[0], np.inf)
    return Run(path, results, losses, curves[1] + earlier)


def _real(values: object) -> np.ndarray:
    """Numbers as float64; a `TypeError` for complex ones, whose other part would be lost."""
    if np.iscomplexobj(values):
        raise TypeError("they are complex")
    return np.asarray(values, dtype=np.float64)


def completed(path: Path, results: dict[str, object]) -> dict[str, object]:
    """Results of a published training script, with the entries in the name of its file.

    It has one number of epochs or those of its evaluations, and the seconds of each or in all.
    Results of anything else are returned as they are.
    """
    if "label" in results or not {"epochs", "simulation_time", "test_loss"} <= results.keys():
        return results
    try:
        epochs, count = _real(results["epochs"]), len(results["test_loss"])
        if epochs.ndim == 0:  # evaluated before the first one too, or not
            epochs = np.linspace(float(epochs == count), epochs, count)
        ends = np.cumsum([0.0, *np.atleast_1d(results.get("epoch_time", ()))])
        if len(ends) - 1 != epochs[-1]:  # of equal length, for all that is known
            ends = np.linspace(0.0, float(results["simulation_time"]), int(epochs[-1]) + 1)
        time = np.interp(epochs, np.arange(len(ends)), ends)
    except (TypeError, ValueError, IndexError, OverflowError) as error:
        raise ResultFileError(f"losses or times in {path} are not numbers: {error}") from error
    names = {"problem": "problem not named", "method": path.stem, "label": path.stem}
    known = {"seed": str(path), "stopped": "not recorded", "sim_par": {}, **results}
    return {**names, **known, "epochs": epochs, "time": time}


def read_runs(paths: Sequence[Path], quantity: str) -> list[Run]:
    """Read the runs to compare, each seed of an experiment once, and note the files left out.

    In folders, files of other kinds are left out.

    Raises:
        ResultFileError: A file that was named, or all in the folders, is not of a training run.
        OSError: A file cannot be read.
        CorruptResultError: It is not a result file.
        UnsafeResultError: It asks for more than plain Python and numpy.
    """
    runs: dict[tuple[str, ...], Run] = {}
    for path, in_folder in files_in(paths):
        results = completed(path, read(path))
        if in_folder and not {"label", "time"} <= results.keys():
            note(f"{path} is left out, it is not of a training run")
            continue
        run = run_of(path, results, quantity)
        if run.identity in runs:
            older, run = sorted((runs[run.identity], run), key=_written)
            note(
                f"{older.path} is left out: {run.path} has the same label '{run.experiment[-1]}' "
                f"and seed {run.identity[-2]}, and is newer or given twice"
            )
        runs[run.identity] = run
    if not runs:
        raise ResultFileError(f"no training runs in {', '.join(map(str, paths))}; give others")
    return list(runs.values())


def _written(run: Run) -> int:
    return run.path.stat().st_mtime_ns
