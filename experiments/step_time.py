"""Time of a training step against the batch size, several methods in turn.

``python -m experiments.step_time poisson`` measures and writes one result file per method;
``python -m plots.step_time`` draws them.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import hig
from experiments._cli.argument_types import (
    device_argument,
    positive_float,
    positive_int,
    threads_argument,
)
from experiments._cli.parser import Parser
from experiments._measure.timing import interleaved_seconds
from experiments._methods import METHODS
from experiments._problems import PROBLEMS
from experiments._provenance import machine, origin
from experiments._run.step import repeatable_step
from experiments._saved.folders import make_folder
from problems import Problem, samples

BATCH_SIZES = (1, 4, 16, 64, 256, 1024)
WARM_UP = 2

Say = Callable[[str], None]


def step_times(
    problem: Problem,
    methods: Sequence[str],
    batch_sizes: Sequence[int],
    rounds: int,
    device: str,
    memory: float,
    say: Say = print,
) -> dict[str, dict[str, object]]:
    """Measure training steps in float32 at the settings of the problem.

    Args:
        problem: What to train on.
        methods: Names of methods, each of which the problem has settings for.
        batch_sizes: Samples per step.
        rounds: Counted steps of each method at each size.
        device: Torch device.
        memory: Jacobian methods are left out at sizes whose Gram matrix, in float64, would take
            more than this, in units of 1e9 bytes.
        say: Told what is measured and what is left out.

    Returns:
        Result dict by method, for those that were measured at any size.
    """
    rows: dict[str, list[tuple[int, int, list[float]]]] = {method: [] for method in methods}
    for size in batch_sizes:
        batch = _batch(problem, size, device)
        if samples(batch) < size:
            say(f"batch {size} is left out: the training data has {samples(batch)} samples")
            continue
        count = _rows(problem, batch, device)
        gram = 8 * count**2 / 1e9
        fitting = [m for m in methods if not METHODS[m].jacobian or gram <= memory]
        if left_out := [METHODS[m].label for m in methods if m not in fitting]:
            say(
                f"batch {size} is left out for {', '.join(left_out)}: the Gram matrix of {count} "
                f"rows takes {gram:.3g} GB, more than --memory {memory:g}"
            )
        steps = {method: _step(problem, method, batch, device) for method in fitting}
        for method, seconds in interleaved_seconds(steps, rounds, WARM_UP, device).items():
            rows[method].append((size, count, seconds))
            say(f"batch {size}: {METHODS[method].label} {statistics.median(seconds):.4g} s")
    return {m: _results(problem, m, measured, device) for m, measured in rows.items() if measured}


def _batch(problem: Problem, size: int, device: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    train, _ = problem.data(generator)
    train = {key: value.to(device, torch.float32) for key, value in train.items()}
    return dict(next(iter(problem.batches(train, size, generator))))


@torch.no_grad()
def _rows(problem: Problem, batch: dict[str, Tensor], device: str) -> int:
    """Rows of the Jacobian, from a single sample, which needs little memory."""
    network = problem.network().to(device)
    single = {key: value[:1] for key, value in batch.items()}
    return problem.predict(network, single).numel() * samples(batch)


def _step(
    problem: Problem, name: str, batch: dict[str, Tensor], device: str
) -> Callable[[], object]:
    torch.manual_seed(0)
    network = problem.network().to(device)
    return repeatable_step(problem, METHODS[name], network, problem.settings[name], batch)


def _results(
    problem: Problem, method: str, measured: list[tuple[int, int, list[float]]], device: str
) -> dict[str, object]:
    sizes, rows, seconds = zip(*measured, strict=True)
    table = np.asarray(seconds, dtype=np.float64)
    return {
        "problem": problem.name,
        "method": method,
        "label": METHODS[method].label,
        "machine": machine(device),
        "batch_size": np.asarray(sizes, dtype=np.int64),
        "rows": np.asarray(rows, dtype=np.int64),
        "seconds_per_step": np.median(table, axis=1),
        "seconds_per_step_min": table.min(axis=1),
        "seconds_per_step_max": table.max(axis=1),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure from the command line."""
    parser = _parser()
    options = parser.parse_args(arguments)
    problem = PROBLEMS[options.problem]()
    if unknown := [method for method in options.methods if method not in problem.settings]:
        parser.error(
            f"{problem.name} has no settings for {', '.join(unknown)}; "
            f"it has them for {', '.join(problem.settings)}"
        )
    make_folder(options.out)
    begun = origin()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    sizes = sorted(set(options.batch_sizes))
    measured = step_times(
        problem, options.methods, sizes, options.rounds, options.device, options.memory
    )
    paths = [options.out / f"{problem.name}_{method}_step_time.pickle" for method in measured]
    for path, results in zip(paths, measured.values(), strict=True):
        hig.save_results(path, {"origin": begun, **results})
    if not paths:
        parser.error("nothing was measured; give smaller --batch-sizes or more --memory")
    files = " ".join(map(str, paths))
    print(f"draw them with: python -m plots.step_time {files} --out {options.out}/step_time.png")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m experiments.step_time",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("problem", choices=tuple(PROBLEMS), help="what to train on")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=tuple(METHODS),
        default=["hig", "adam"],
        metavar="METHOD",
        help=f"of {', '.join(METHODS)} (default hig adam)",
    )
    parser.add_argument(
        "--batch-sizes",
        nargs="+",
        type=positive_int,
        default=BATCH_SIZES,
        metavar="N",
        help=f"samples per step (default {' '.join(map(str, BATCH_SIZES))})",
    )
    parser.add_argument(
        "--rounds", type=positive_int, default=5, metavar="N", help="steps of each (default 5)"
    )
    parser.add_argument(
        "--memory",
        type=positive_float,
        default=4.0,
        metavar="GB",
        help="largest Gram matrix of a Jacobian method; its step needs a few times as much (4)",
    )
    parser.add_argument("--device", type=device_argument, default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=threads_argument, metavar="N", help="CPU threads")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("results/step_time"),
        metavar="DIR",
        help="directory of the result files (default results/step_time)",
    )
    return parser


if __name__ == "__main__":
    main()
