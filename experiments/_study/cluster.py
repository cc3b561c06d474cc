"""Jobs of a study on a cluster, through submitit."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments._study.execution import Outcome, StudyError, run_job
from experiments._study.jobs import Job

if TYPE_CHECKING:
    from submitit import AutoExecutor

LOCAL = "local"
# Status of a job that the cluster has ended.
_LOST = 255
# Exceptions of submitit for parameters that it cannot use, or without a cluster.
_REFUSALS = (RuntimeError, NameError, AssertionError, TypeError, ValueError)


def run_on_cluster(
    jobs: Sequence[Job],
    out: Path,
    cluster: str,
    parameters: Mapping[str, object],
    workers: int,
    report: Callable[[Outcome], None],
) -> list[Outcome]:
    """Submit jobs to a cluster through submitit, and wait for their outcomes, in their order.

    ``cluster`` is ``"slurm"``, or ``"local"`` for at most ``workers`` processes of this machine;
    all machines see the folder ``out``. ``parameters`` are those of the scheduler, such as
    ``slurm_partition``; ``report`` is called with each outcome as it comes.

    Raises:
        StudyError: submitit is missing, there is no such cluster, or it refuses the jobs.
    """
    try:
        from submitit import AutoExecutor
        from submitit.core.utils import FailedJobError, UncompletedJobError
    except ImportError as error:
        raise StudyError(
            f"a study on a cluster needs submitit ({error}); pip install 'hig[cluster]'"
        ) from error
    executor = _executor(AutoExecutor, jobs, out, cluster, parameters)
    lost = (FailedJobError, UncompletedJobError)  # killed, or at the end of their time
    outcomes, size = [], workers if cluster == LOCAL else len(jobs)
    for start in range(0, len(jobs), size):
        chosen = jobs[start : start + size]
        try:
            waiting = executor.map_array(run_job, chosen, [out.resolve()] * len(chosen))
        except _REFUSALS as error:
            raise StudyError(f"{cluster} does not take the jobs: {error}") from error
        for job, submitted in zip(chosen, waiting, strict=True):
            try:
                outcome = submitted.result()
            except lost:  # others continue
                outcome = Outcome(job, _LOST, submitted.paths.stderr)
            outcomes.append(outcome)
            report(outcome)
    return outcomes


def _executor(
    kind: type["AutoExecutor"],
    jobs: Sequence[Job],
    out: Path,
    cluster: str,
    parameters: Mapping[str, object],
) -> "AutoExecutor":
    longest = max(job.seconds for job in jobs)
    usual: dict[str, object] = {"timeout_min": int(3 * longest / 60) + 10, "cpus_per_task": 1}
    if any("cuda" in job.arguments for job in jobs):
        usual["gpus_per_node"] = 1
    try:
        executor = kind(folder=out / "submitit", cluster=cluster)
        executor.update_parameters(**{**usual, **parameters})
    except _REFUSALS as error:
        given = " ".join(f"{name}={value}" for name, value in parameters.items()) or "none"
        raise StudyError(
            f"submitit cannot use {cluster} with the parameters given ({given}): {error}; see "
            "--cluster and --cluster-parameter"
        ) from error
    return executor
