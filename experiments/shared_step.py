"""Cost of a HIG step that several processes share, against the step of one on the whole batch.

``torchrun --nproc-per-node 2 -m experiments.shared_step nonlinear_oscillators`` measures both in
turn. Processor time of a process counts its computations and copies; with one thread it is about
the time on a quiet machine with a core for each. Next to it are the bytes exchanged, and the
shortest time of that on this machine.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

import hig
from experiments._cli.argument_types import positive_int
from experiments._measure import command
from experiments._problems import PROBLEMS
from experiments._run.batches import BatchSizeError, check_batch_size, first_batch
from experiments._run.processes import Processes, process_group
from experiments._run.step import outputs_closure
from hig.arguments import ENGINES
from problems import Problem

WARM_UP = 1


def measure(
    problem: Problem, batch_size: int, engine: str, rounds: int, say: Callable[[str], None] = print
) -> dict[str, float]:
    """Measure both steps in float32 at the settings of the problem; all processes call this.

    Returns:
        Seconds of processor time ``alone`` and ``shared`` (of the process with most), then
        ``exchanges``, ``received`` bytes and ``waiting`` seconds of a shared step.
    """
    processes = Processes()
    batch = first_batch(problem, batch_size)
    check_batch_size(batch_size, batch)
    alone = _stepper(problem, batch, engine, None)
    shared = _stepper(problem, processes.share(batch), engine, "auto")
    seconds_alone, seconds_shared, waiting = [], [], []
    for turn in range(WARM_UP + rounds):
        if processes.rank == 0:
            spent, _ = alone()
        processes.wait()
        own, report = shared()
        most = torch.tensor(own)
        if processes.size > 1:
            dist.all_reduce(most, dist.ReduceOp.MAX)
        if turn >= WARM_UP and processes.rank == 0:
            seconds_alone.append(spent)
            seconds_shared.append(most.item())
            waiting.append(report.communication.seconds if report.communication else 0.0)
    if processes.rank > 0:
        return {}
    exchanged = report.communication
    results = {
        "alone": statistics.median(seconds_alone),
        "shared": statistics.median(seconds_shared),
        "exchanges": exchanged.collectives if exchanged else 0,
        "received": exchanged.received if exchanged else 0,
        "waiting": min(waiting),
    }
    alone_ms, shared_ms, waiting_ms = (1e3 * results[k] for k in ("alone", "shared", "waiting"))
    say(
        f"{problem.name}, batch {batch_size}, {report.rows} x {report.columns}, engine "
        f"{report.engine}, {processes.size} processes: processor time alone {alone_ms:.4g} ms, "
        f"of each process {shared_ms:.4g} ms ({alone_ms / shared_ms:.2f} times less); "
        f"{results['exchanges']} exchanges of {results['received'] / 1e6:.3g} MB, at least "
        f"{waiting_ms:.3g} ms"
    )
    return results


def _stepper(
    problem: Problem, batch: dict[str, Tensor], engine: str, group: str | None
) -> Callable[[], tuple[float, hig.StepReport]]:
    """Make a step from always the same weights; it returns processor time and report."""
    torch.manual_seed(0)
    network, settings = problem.network(), problem.settings["hig"]
    optimizer = hig.HIG(
        network.parameters(), lr=0.0, rcond=settings.rcond, engine=engine, step_rule="fixed",
        process_group=group, reduction=problem.loss_reduction,
    )  # fmt: skip
    closure = outputs_closure(problem, network, batch)

    def step() -> tuple[float, hig.StepReport]:
        start = time.process_time()
        optimizer.step(closure)
        return time.process_time() - start, optimizer.report

    return step


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure from the command line."""
    options = _parser().parse_args(arguments)
    problem = PROBLEMS[options.problem]()
    torch.set_num_threads(1)
    with process_group("cpu"):
        size = options.batch_size or problem.settings["hig"].batch_size
        try:
            measure(problem, size, options.engine, options.rounds)
        except BatchSizeError as error:
            sys.exit(f"error: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = command.make_parser("shared_step", __doc__)
    parser.prog = "torchrun --nproc-per-node R -m experiments.shared_step"
    shareable = [name for name in PROBLEMS if name != "conditioning_toy"]
    parser.add_argument("problem", choices=shareable, help="problem to train on")
    parser.add_argument("--batch-size", type=positive_int, metavar="N", help="of all together")
    parser.add_argument("--engine", choices=ENGINES, default="auto")
    command.add_rounds(parser, 9, "default 9")
    return parser


if __name__ == "__main__":
    main()
