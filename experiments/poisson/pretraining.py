"""Pretraining on the Poisson problem: one method starts, another continues from its weights.

Adam trains for a while and both HIG and Adam continue from where it ends; then the same with HIG
first. Six runs in one process, one result file each.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from experiments import Options, run
from experiments._cli.argument_types import positive_float, positive_int
from experiments._cli.arguments import add_run
from experiments._cli.parser import Parser
from experiments._run.signals import EXIT_STATUS
from experiments._saved.folders import make_folder
from problems import Poisson, Problem

METHODS = ("adam", "hig")


def pretraining(
    problem: Problem, seconds: float, hig_batch_size: int, options: Options
) -> list[dict[str, object]]:
    """Let each method start for some seconds, and each continue from each with the options.

    Returns:
        The results of each first run and of the two that continue from it.

    Raises:
        SystemExit: If a run is interrupted, or a first one leaves no weights to continue from.
    """
    settings = {method: problem.settings[method] for method in METHODS}
    settings["hig"] = replace(settings["hig"], batch_size=hig_batch_size)
    start = replace(options, epochs=None, time_budget=seconds, save_weights=True)
    results = []
    for first in METHODS:
        results.append(_run(problem, first, settings, start))
        if "weights_file" not in results[-1]:
            sys.exit(f"error: {results[-1]['label']} left no weights: {results[-1]['stopped']}")
        second = replace(options, init_from=options.out / results[-1]["weights_file"])
        results += [_run(problem, method, settings, second) for method in METHODS]
    return results


def _run(problem, method, settings, options):
    results = run(problem, method, settings[method], options)
    if results["stopped"] in EXIT_STATUS:
        sys.exit(EXIT_STATUS[results["stopped"]])
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the experiment from the command line."""
    problem = Poisson()
    given = _parser(problem).parse_args(arguments)
    make_folder(given.out)
    options = Options(
        out=given.out,
        time_budget=given.time_budget,
        seed=given.seed,
        device=given.device,
        dtype=given.dtype,
        threads=vars(given).get("threads"),
        quiet=given.quiet,
    )
    pretraining(problem, given.pretrain_time, given.batch_size_hig, options)
    print(f"result files are in {given.out}; draw them with:")
    print(f"python -m plots.loss {given.out}/*.pickle --log-x --out {given.out}/pretraining.png")


def _parser(problem: Problem) -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m experiments.poisson.pretraining",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--pretrain-time",
        type=positive_float,
        metavar="S",
        default=60.0,
        help="seconds of the first runs",
    )
    parser.add_argument(
        "--time-budget",
        type=positive_float,
        metavar="S",
        default=60.0,
        help="seconds of training of each second run",
    )
    parser.add_argument(
        "--batch-size-hig",
        type=positive_int,
        metavar="N",
        default=problem.settings["hig"].batch_size,
        help="samples per step of HIG",
    )
    add_run(parser, Path("results/poisson_pretraining"))
    return parser


if __name__ == "__main__":
    main()
