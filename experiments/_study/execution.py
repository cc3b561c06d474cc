"""Jobs of a study in processes of their own, one after the other or side by side."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import hig
from experiments._run.weights import ENDING as WEIGHTS
from experiments._study.jobs import Job
from experiments._study.process import run_module

# Exit status of runs whose results count: a method that diverges has lost, and that is a result.
_DONE = (0, 1)


class StudyError(ValueError):
    """A study cannot continue; the text has the reason and the remedy."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of a job.

    Attributes:
        job: The job.
        status: Exit status of its process; 0 for one that had been done before.
        log: Its output.
    """

    job: Job
    status: int
    log: Path

    @property
    def done(self) -> bool:
        """Return whether there is a result file that counts."""
        return self.status in _DONE and _is_done(self.job, self.log.parent)

    @property
    def last_words(self) -> str:
        """Last line of its output."""
        if not self.log.is_file():
            return ""
        return (self.log.read_text(encoding="utf-8", errors="replace").splitlines() or [""])[-1]


def result_of(place: Path) -> Path | None:
    """Find the result file of a finished job, None before."""
    if any(place.glob("*.checkpoint")):
        return None  # of a run that was cut short, to be resumed
    return next(iter(sorted(place.glob("*.pickle"))), None)


def weights_of(place: Path) -> Path | None:
    """Find the weights of a job with ``--save-weights``, None if there are none."""
    return next(iter(sorted(place.glob(f"*{WEIGHTS}"))), None)


def _is_done(job: Job, place: Path) -> bool:
    """Return whether all files of a job are there and whole; damaged ones are made again."""
    path = result_of(place)
    if path is None or ("--save-weights" in job.arguments and weights_of(place) is None):
        return False
    try:
        return {"test_loss", "stopped"} <= hig.load_results(path).keys()
    except (hig.CorruptResultError, hig.UnsafeResultError):
        return False


def run_job(job: Job, out: Path) -> Outcome:
    """Run or resume a job, unless it is done; before it the job whose weights it starts from.

    Raises a `StudyError` if something is in the way of its files.
    """
    place = out / job.place
    log = place / "log.txt"
    if _is_done(job, place):
        return Outcome(job, 0, log)
    begin: list[str] = []
    if job.after is not None:
        before = run_job(job.after, out)
        if not before.done:
            return before
        begin = ["--init-from", str(weights_of(before.log.parent))]
    _make(place)
    arguments = [*job.arguments, *begin, "--out", str(place), "--threads", "1", "--resume"]
    if "--device" not in job.arguments:
        arguments += ["--clock", "processor"]  # the time on a quiet machine
    return Outcome(job, run_module(job.module, arguments, log), log)


def _make(place: Path) -> None:
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(
            f"the folder {place} of a run cannot be made: {error.strerror}; remove the file in its "
            "way, or make room"
        ) from error


def run_jobs(
    jobs: Sequence[Job], out: Path, workers: int, report: Callable[[Outcome], None]
) -> list[Outcome]:
    """Run jobs in several processes, each on one thread; returns the outcomes in their order.

    ``report`` is called with each outcome as it comes; the next job begins after it.
    """
    outcomes, left = {}, iter(jobs)
    with ThreadPoolExecutor(workers) as pool:
        running = {pool.submit(run_job, job, out): job for job in islice(left, workers)}
        try:
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job = running.pop(future)
                    outcomes[job] = future.result()
                    report(outcomes[job])
                    # Only now: the report may end the study.
                    running |= {pool.submit(run_job, job, out): job for job in islice(left, 1)}
        finally:  # after an interruption: running jobs save, as they get the same signal
            pool.shutdown(cancel_futures=True)
    return [outcomes[job] for job in jobs]


def workers_of_this_machine() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def failures(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Select the outcomes without a result that counts."""
    return [outcome for outcome in outcomes if not outcome.done]
