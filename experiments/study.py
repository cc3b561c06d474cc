"""Run the study: every method on every problem, from one table of settings.

First the settings of the tuned methods are chosen on a grid, on a seed that nothing else sees, in
short runs and the best of these in long ones;
then the methods are compared at those, options are varied, methods continue where others stop, and
step rules are run from many seeds (always on this machine).
Each run is a process of its own on one thread, with the training time of its processor: how many
run side by side does not matter for the results. Runs that are done are not repeated, and those
that were cut short are resumed: repeat the command after an interruption.
"""

import argparse
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

import hig
from experiments._cli.argument_types import positive_int
from experiments._cli.parser import Parser
from experiments._robustness.plan import Plan
from experiments._robustness.records import done, results_of
from experiments._robustness.sweep import begin, sweep
from experiments._run.signals import EXIT_STATUS, INTERRUPTED
from experiments._saved.folders import make_folder
from experiments._saved.result_files import SUFFIX
from experiments._study.cluster import run_on_cluster
from experiments._study.execution import (
    Outcome,
    StudyError,
    failures,
    run_jobs,
    workers_of_this_machine,
)
from experiments._study.jobs import (
    Job,
    Point,
    ablation_jobs,
    comparison_jobs,
    final_jobs,
    relay_jobs,
    tuning_jobs,
)
from experiments._study.keep import ROBUSTNESS
from experiments._study.table import PRESETS, Preset, known_folders
from experiments._study.winners import finalists, save_winners, winners

# Failures in a row that are not an accident of one run, but a full disk or a missing device.
_MOST_FAILURES = 3

_EPILOG = """\
results and logs are in OUT/<preset>/<part>/<problem>/<run>/, the grid and its winners in
OUT/<preset>/winners.json:
  python -m experiments.study --preset smoke --out results/study
  python -m experiments compare results/study/smoke/comparison/conditioning_toy/*/*.pickle
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a study; by default the command line is that of the process.

    Returns:
        Exit status: 0, or 1 where runs have failed.

    Raises:
        SystemExit: With the exit status 1 and a text if the study cannot continue, 2 for arguments
            that are not valid, 130 for an interruption.
    """
    options = _parser().parse_args(arguments)
    preset = _chosen(PRESETS[options.preset], options)
    out = options.out / preset.name
    grid = tuning_jobs(preset)
    tuning = [job for job, _ in grid]
    if options.list:
        unknown = {(job.folder, job.method): dict.fromkeys(point, "TUNED") for job, point in grid}
        parts = (comparison_jobs, ablation_jobs, relay_jobs)
        final = {of: [p] * (preset.finalists + ("schedule" in p)) for of, p in unknown.items()}
        finals = final_jobs(preset, final) if preset.finalists > 1 else []
        others = (jobs(preset, unknown) for jobs in parts)
        _list([tuning, [job for job, _ in finals], *others])
        _list_seeds(preset.robustness)
        return 0
    make_folder(out)
    try:
        with FileLock(out / "study.lock", timeout=0):
            failed = _study(preset, grid, out, options)
    except Timeout:
        sys.exit(f"error: another study is running in {out}; wait for it, or give another --out")
    except StudyError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted; the same command resumes it", file=sys.stderr)
        sys.exit(EXIT_STATUS[INTERRUPTED])
    _print_failures(failed)
    print(f"results are in {out}")
    return 1 if failed else 0


def _study(
    preset: Preset, grid: Sequence[tuple[Job, Point]], out: Path, options: argparse.Namespace
) -> list[Outcome]:
    """Run all jobs; returns the failures."""
    _run_grid([job for job, _ in grid], "tuning", out, options)
    finals = []
    if preset.finalists > 1:
        finals = final_jobs(preset, finalists(grid, out, preset.finalists))
        _run_grid([job for job, _ in finals], "finals", out, options)
    save_winners(grid, finals, out)
    won = winners(finals or grid, out)
    failed = _run(comparison_jobs(preset, won), "comparison", out, options)
    failed += _run(ablation_jobs(preset, won), "ablations", out, options)
    failed += _run(relay_jobs(preset, won), "relays", out, options)
    if preset.robustness is not None:
        without = _run_seeds(preset.robustness, preset.name, out, options.workers)
        if without:
            _print_failures(failed)
            raise StudyError(
                f"{without} runs of many seeds have no result; fix the errors above, then repeat "
                "the same command"
            )
    return failed


def _run_seeds(plan: Plan, label: str, out: Path, workers: int) -> int:
    """Run many seeds, and write the result file of all of them; returns the number of failures."""
    begun, records = begin(), out / ROBUSTNESS
    cases = plan.cases(label)
    failed, stopped = sweep(cases, records, workers, begun)
    if stopped:
        raise KeyboardInterrupt
    found = [record for case in cases if (record := done(case, records)) is not None]
    if found:
        hig.save_results(out / f"{ROBUSTNESS}{SUFFIX}", {"origin": begun, **results_of(found)})
    return failed


def _run_grid(jobs: Sequence[Job], what: str, out: Path, options: argparse.Namespace) -> None:
    """Run jobs that others depend on: of an incomplete grid something else might win."""
    failed = _run(jobs, what, out, options)
    if failed:
        _print_failures(failed)
        raise StudyError(
            f"{len(failed)} of {len(jobs)} runs of the {what} have no result, without which no "
            "settings can be chosen; fix the errors in their logs, then repeat the same command"
        )


def _print_failures(failed: Sequence[Outcome]) -> None:
    for outcome in failed:
        said = f": {outcome.last_words}" if outcome.last_words else ""
        print(f"failed with status {outcome.status}: see {outcome.log}{said}", file=sys.stderr)


def _run(jobs: Sequence[Job], what: str, out: Path, options: argparse.Namespace) -> list[Outcome]:
    if not jobs:
        return []
    start, count, in_a_row = time.monotonic(), 0, 0

    def report(outcome: Outcome) -> None:
        nonlocal count, in_a_row
        count += 1
        in_a_row = 0 if outcome.done else in_a_row + 1
        state = "done" if outcome.done else f"FAILED ({outcome.status})"
        minutes = (time.monotonic() - start) / 60
        line = f"{what} {count}/{len(jobs)}, {minutes:.1f} min: {state} {outcome.job.place}"
        print(line, file=sys.stderr, flush=True)
        if in_a_row == _MOST_FAILURES:
            raise StudyError(
                f"{in_a_row} runs in a row have failed, the last with status {outcome.status} "
                f"({outcome.last_words or 'without a word'}); see {outcome.log}; the same command "
                "resumes the study, and --problems leaves others out"
            )

    if options.cluster is None:
        return failures(run_jobs(jobs, out, options.workers, report))
    parameters = dict(options.cluster_parameter)
    return failures(run_on_cluster(jobs, out, options.cluster, parameters, options.workers, report))


def _list(parts: Sequence[Sequence[Job]]) -> None:
    """Print the command lines; settings that are to be tuned are not known yet."""
    jobs = []
    for job in (job for part in parts for job in part):
        if job.after is not None:
            jobs.append(job.after)
        jobs.append(job)
    for job in jobs:
        begin = "" if job.after is None else " --init-from WEIGHTS"
        print(f"python -m {job.module} {' '.join(job.arguments)}{begin}")
    total, count = sum(job.seconds for job in jobs), len(jobs)
    print(f"{count} runs, {total / 3600:.1f} h of training time", file=sys.stderr)


def _list_seeds(plan: Plan | None) -> None:
    """Print the command line of the runs of many seeds, if there are any."""
    if plan is None:
        return
    words = ["--problems", *plan.problems, "--methods", *map(str, plan.variants)]
    words += ["--batch", *(f"{factor:g}" for factor in plan.batches)]
    words += ["--seeds", str(plan.seeds), "--seconds", f"{plan.seconds:g}"]
    print(f"python -m experiments.robustness {' '.join(words)}")
    count = len(plan.cases(""))
    hours = count * plan.seconds / 3600
    print(f"and {count} short runs of many seeds, {hours:.1f} h of training time", file=sys.stderr)


def _chosen(preset: Preset, options: argparse.Namespace) -> Preset:
    """The preset without the problems that are not wanted."""
    if options.problems is None:
        return preset
    known = known_folders(preset)
    for folder in options.problems:
        if folder not in known:
            options.error(f"preset {preset.name} has no {folder!r}; it has {', '.join(known)}")
    wanted = set(options.problems)
    return replace(
        preset,
        comparisons=tuple(c for c in preset.comparisons if c.folder in wanted),
        ablations=tuple(a for a in preset.ablations if a.folder in wanted),
        relays=tuple(r for r in preset.relays if r.folder in wanted),
        robustness=_with_problems(preset.robustness, wanted),
    )


def _with_problems(plan: Plan | None, wanted: Collection[str]) -> Plan | None:
    """The plan without the problems that are not wanted, None if none is left."""
    left = tuple(folder for folder in plan.problems if folder in wanted) if plan else ()
    return replace(plan, problems=left) if left else None


def _parameter(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(
            f"must be NAME=VALUE, got {text!r}; give such as slurm_partition=gpu"
        )
    return name, int(value) if value.isdigit() else value


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m experiments.study",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", choices=tuple(PRESETS), default="smoke", help="size (smoke)")
    parser.add_argument("--out", type=Path, default=Path("results/study"), metavar="DIR")
    parser.add_argument(
        "--problems", nargs="+", metavar="NAME", help="these alone, such as poisson"
    )
    parser.add_argument(
        "--workers", type=positive_int, default=workers_of_this_machine(), metavar="N",
        help="runs side by side on this machine (one for each core)",
    )  # fmt: skip
    parser.add_argument(
        "--cluster", choices=("slurm", "local"), help="hand the runs to submitit instead"
    )
    parser.add_argument(
        "--cluster-parameter", action="append", default=[], type=_parameter, metavar="NAME=VALUE",
        help="for the scheduler, such as slurm_partition=gpu; may be given several times",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="print the runs and do nothing")
    parser.set_defaults(error=parser.error)
    return parser


if __name__ == "__main__":
    sys.exit(main())
