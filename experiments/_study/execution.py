"""Jobs of a study in processes of their own: one after the other, side by side, on a cluster."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from experiments._run.weights import ENDING as WEIGHTS
from experiments._study.jobs import Job
from experiments._study.process import run_module

# How a run ends whose results count: a method that diverges has lost, and that is a result.
_DONE = (0, 1)


class StudyError(ValueError):
    """A study cannot go on; the text says why and what would help."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        job: The job.
        status: Exit status of its process; 0 for one that had been done before.
        log: What it told, where it failed.
    """

    job: Job
    status: int
    log: Path

    @property
    def done(self) -> bool:
        """Whether there is a result file that counts."""
        return self.status in _DONE and result_of(self.log.parent) is not None


def result_of(place: Path) -> Path | None:
    """The result file of a job that is done, None before."""
    if any(place.glob("*.checkpoint")):
        return None  # of a run that was cut short, and goes on
    return next(iter(sorted(place.glob("*.pickle"))), None)


def weights_of(place: Path) -> Path:
    """The weights that a job with ``--save-weights`` has left."""
    (found,) = place.glob(f"*{WEIGHTS}")
    return found


def run_job(job: Job, out: Path) -> Outcome:
    """Run one job, or go on with it, unless it is done; before it the one that it goes on from.

    Args:
        job: The job.
        out: Folder of the study.
    """
    place = out / job.place
    log = place / "log.txt"
    if result_of(place) is not None:
        return Outcome(job, 0, log)
    begin: list[str] = []
    if job.after is not None:
        before = run_job(job.after, out)
        if not before.done:
            return before
        begin = ["--init-from", str(weights_of(before.log.parent))]
    place.mkdir(parents=True, exist_ok=True)
    arguments = [*job.arguments, *begin, "--out", str(place), "--threads", "1", "--resume"]
    if "--device" not in job.arguments:
        arguments += ["--clock", "processor"]  # what a quiet machine would take
    return Outcome(job, run_module(job.module, arguments, log), log)


def run_jobs(
    jobs: Sequence[Job], out: Path, workers: int, told: Callable[[Outcome], None]
) -> list[Outcome]:
    """Run jobs in so many processes at a time, each on one thread.

    Args:
        jobs: The jobs.
        out: Folder of the study.
        workers: Processes at a time.
        told: Called with each outcome as it comes.

    Returns:
        The outcomes, in the order of the jobs.
    """
    outcomes = {}
    with ThreadPoolExecutor(workers) as pool:
        waiting = {pool.submit(run_job, job, out): job for job in jobs}
        try:
            for future in as_completed(waiting):
                outcomes[waiting[future]] = future.result()
                told(outcomes[waiting[future]])
        finally:  # after an interruption: those that run save, told by the same signal
            pool.shutdown(cancel_futures=True)
    return [outcomes[job] for job in jobs]


def run_on_cluster(
    jobs: Sequence[Job],
    out: Path,
    cluster: str,
    parameters: dict[str, object],
    told: Callable[[Outcome], None],
) -> list[Outcome]:
    """Hand jobs to a cluster through submitit, and wait for them.

    Args:
        jobs: The jobs.
        out: Folder of the study, which all machines see.
        cluster: ``"slurm"``, or ``"local"`` for processes of this machine.
        parameters: What the scheduler is to know, such as ``slurm_partition``.
        told: Called with each outcome as it comes.

    Returns:
        The outcomes, in the order of the jobs.

    Raises:
        StudyError: submitit is missing.
    """
    try:
        import submitit
    except ImportError as error:
        raise StudyError(
            f"a study on a cluster needs submitit ({error}); pip install 'hig[cluster]'"
        ) from error
    executor = submitit.AutoExecutor(folder=out / "submitit", cluster=cluster)
    longest = max(job.seconds for job in jobs)
    executor.update_parameters(timeout_min=int(3 * longest / 60) + 10, cpus_per_task=1)
    executor.update_parameters(**parameters)
    waiting = executor.map_array(run_job, jobs, [out.resolve()] * len(jobs))
    outcomes = []
    for submitted in waiting:
        outcomes.append(submitted.result())
        told(outcomes[-1])
    return outcomes


def workers_of_this_machine() -> int:
    """One for each core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def failures(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Those without a result that counts."""
    return [outcome for outcome in outcomes if not outcome.done]
