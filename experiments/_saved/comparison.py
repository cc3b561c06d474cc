"""Result files of training runs as a Markdown table for each problem, the lowest loss first.

Files of one method label are the seeds of one experiment: numbers are the median over them, with
the range from the lowest to the highest. Of two files of one seed the newest is taken. The training
time of a run that started from saved weights is added to that of the run that made them. Files of
the published training scripts go by their file names.
"""

import argparse
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments._saved import markdown
from experiments._saved.result_files import ERRORS, fail, note
from experiments._saved.runs import Run, read_runs
from hig.errors import printable

# Training times are comparable only where these agree.
_TIMED_BY = {"clock": "sim_par", "threads": "machine", "processor": "machine", "device": "machine"}


def tables(runs: Sequence[Run], quantity: str, target: float | None = None) -> str:
    """One Markdown table for each problem, in the order in which they are first met.

    With a target they have a column of the time to that loss.
    """
    problems: dict[str, list[Run]] = {}
    for run in runs:
        problems.setdefault(run.experiment[0], []).append(run)
    return "\n\n".join(
        f"## {problem}\n\n{_meaning(found, quantity)}{_table(found, quantity, target)}"
        for problem, found in problems.items()
    )


def _meaning(runs: Sequence[Run], quantity: str) -> str:
    """Describe the test loss if it is not the trained loss."""
    found = {printable(run.results.get("tested_by") or "") for run in runs}
    if quantity == "train" or len(found) > 1 or "" in found:
        return ""
    return f"The test loss is the {found.pop()}.\n\n"


def _table(runs: Sequence[Run], quantity: str, target: float | None) -> str:
    experiments: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        experiments.setdefault(run.experiment, []).append(run)
    ordered = sorted(experiments.values(), key=lambda seeds: np.median([r.final for r in seeds]))
    columns = ["method", "seeds", f"final {quantity} loss", "best", "training s", "steps", "epochs"]
    columns += [] if target is None else [f"s to {target:g}"]
    lines = [[*columns, "stopped"]]
    for seeds in ordered:
        cells = [seeds[0].experiment[-1].replace("|", r"\|"), str(len(seeds))]
        for name, shown in _NUMBERS.items():
            cells.append(markdown.median_and_range([getattr(run, name) for run in seeds], shown))
        if target is not None:
            cells.append(markdown.to_target([run.seconds_to(target) for run in seeds]))
        lines.append([*cells, _reasons(seeds)])
    return markdown.table(lines)


# Attributes of a run, in the order of the columns.
_NUMBERS = {
    "final": markdown.loss,
    "best": markdown.loss,
    "duration": markdown.amount,
    "steps": markdown.amount,
    "epochs": markdown.amount,
}


def _reasons(seeds: Sequence[Run]) -> str:
    counts = Counter(run.stopped for run in seeds).most_common()
    if len(counts) == 1:
        return counts[0][0]
    return ", ".join(f"{reason} ({count})" for reason, count in counts)


def _warn_of_other_times(runs: Sequence[Run]) -> None:
    for key, where in _TIMED_BY.items():
        found = {printable(run.fact(where, key)) for run in runs} - {"None"}
        if len(found) > 1:
            note(f"training times are not all of one {key}: {', '.join(sorted(found))}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "results", nargs="+", type=Path, metavar="RESULTS", help="result files, or folders of them"
    )
    parser.add_argument(
        "--target", type=_target, metavar="LOSS", help="show the time until this loss too"
    )
    parser.add_argument(
        "--quantity", choices=("test", "train"), default="test", help="which loss (test)"
    )
    parser.set_defaults(command=main)


def _target(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number, got {text!r}; such as 1e-4")
    return value


def main(options: argparse.Namespace) -> int:
    """Print the tables; returns the exit status, 2 after an error whose text went to stderr."""
    try:
        runs = read_runs(options.results, options.quantity)
    except ERRORS as error:
        return fail(error)
    _warn_of_other_times(runs)
    print(tables(runs, options.quantity, options.target))
    return 0
