"""Time of a training step against the batch size, several methods in turn.

``python -m experiments.step_time poisson`` measures and writes one result file per method;
``python -m plots.step_time`` draws them.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from experiments._cli.argument_types import positive_float, positive_int
from experiments._measure import command
from experiments._measure.timing import interleaved_seconds
from experiments._methods import METHODS
from experiments._problems import PROBLEMS
from experiments._provenance import machine
from experiments._run.batches import first_batch
from experiments._run.step import repeatable_step
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
    """Measure training steps in float32 at the settings of the problem; results by method.

    Jacobian methods are left out at sizes whose Gram matrix, in float64, would take more than
    ``memory`` 1e9 bytes.
    """
    rows: dict[str, list[tuple[int, int, list[float]]]] = {method: [] for method in methods}
    for size in batch_sizes:
        batch = first_batch(problem, size, device)
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
    return {
        "problem": problem.name,
        "method": method,
        "label": METHODS[method].label,
        "machine": machine(device),
        "batch_size": np.asarray(sizes, dtype=np.int64),
        "rows": np.asarray(rows, dtype=np.int64),
        **command.seconds_per_step(seconds),
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
    begun = command.begin(options)
    sizes = sorted(set(options.batch_sizes))
    measured = step_times(
        problem, options.methods, sizes, options.rounds, options.device, options.memory
    )
    if not measured:
        parser.error("nothing was measured; give smaller --batch-sizes or more --memory")
    names = {method: f"{problem.name}_{method}_step_time.pickle" for method in measured}
    found = {options.out / names[method]: results for method, results in measured.items()}
    command.save_results("step_time", begun, found)


def _parser() -> argparse.ArgumentParser:
    parser = command.make_parser("step_time", __doc__)
    parser.add_argument("problem", choices=tuple(PROBLEMS), help="problem to train on")
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
    command.add_rounds(parser, 5, "steps of each (default 5)")
    parser.add_argument(
        "--memory",
        type=positive_float,
        default=4.0,
        metavar="GB",
        help="largest Gram matrix of a Jacobian method; its step needs a few times as much (4)",
    )
    command.add_machine(parser)
    command.add_out(parser, "step_time")
    return parser


if __name__ == "__main__":
    main()
