"""Time and peak memory of one training step, taken in several ways, in one run.

``python -m experiments.benchmark`` compares, per problem and at its published batch size: the
textbook half-inverse step (all rows of the Jacobian of network and solver, then a float32 SVD),
every engine, Adam on the same batch, and a bare ``eigh`` of the same size. The textbook and one of
the Adams take the simulation as one would write it down, without the fast rollout.

With ``--peers`` it compares this package with others that compute the same. With
``--busy N`` it compares steps at torch's default of threads with steps on one thread, by the
wall-clock, next to N busy processes. With ``--memory`` it takes steps whose backward passes hold
much, by default and with fixed chunks.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence

import torch

from experiments._cli.argument_types import busy_argument, positive_int
from experiments._measure import command
from experiments._measure.benchmark_cases import ADAM, TEXTBOOK, Cases
from experiments._measure.busy import SMALL, beside_busy, busy_table
from experiments._measure.conflictfree_peers import (
    SEVERAL_LOSSES,
    compare_operators,
    operator_table,
)
from experiments._measure.memory_cases import MEMORY_CASES
from experiments._measure.memory_point import compare_chunks, memory_table
from experiments._measure.peer_comparison import (
    PEER_PROBLEMS,
    compare,
    peer_table,
    peer_versions,
)
from experiments._measure.peers import require_peers
from experiments._measure.timing import interleaved_seconds, median_ratio
from experiments._problems import PROBLEMS
from experiments._provenance import machine
from experiments._run.batches import check_batch_size
from experiments._run.clock import seconds_of

# The published problems. A case that takes longer than its patience in seconds has fewer rounds.
DEFAULT = ("nonlinear_oscillators", "quantum_dipole", "poisson")
PATIENCE = 60.0
# Turns of each case next to busy processes, and their seconds.
BUSY_TURNS, BUSY_SECONDS = 3, 10.0
COLUMNS = {
    "step": "{case}",
    " median ms": "{median_ms:.1f}",
    " min – max": "{min_ms:.1f} – {max_ms:.1f}",
    " faster than textbook": "{speedup:.1f}×",
    " of Adam's time": "{of_adam:.2f}",
    " peak MB": "{peak_mb:.0f}",
}


def benchmark(
    name: str, batch_size: int, rounds: int, device: str, clock: str = "wall"
) -> list[dict[str, object]]:
    """Measure all cases of one of ``PROBLEMS``, in turn.

    Returns:
        One row per case: ``case``, ``rounds`` counted, ``median_ms``, ``min_ms``, ``max_ms``,
        ``speedup`` over the textbook step and ``of_adam``, the time relative to Adam as written
        down (both medians of the ratios within a round), and ``peak_mb`` above the idle process.
    """
    cases = Cases(PROBLEMS[name](), batch_size, device)
    steps = {case: make() for case, make in cases.makers().items()}
    seconds = interleaved_seconds(steps, rounds, 2, device, PATIENCE, clock)
    return [
        {
            "case": case,
            **command.milliseconds(times),
            "speedup": median_ratio(seconds[TEXTBOOK], times),
            "of_adam": median_ratio(times, seconds[ADAM]),
            "peak_mb": command.in_own_process("benchmark_peak", name, case, batch_size, device)
            / 2**20,
        }
        for case, times in seconds.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    options = _options(arguments)
    facts = machine(options.device) | (peer_versions() if options.peers else {})
    facts["clock"] = "processor, one thread" if options.memory else options.clock
    begun = command.begin(options)
    measured: dict[str, object] = {}
    command.print_facts(facts)
    if options.busy is not None:
        cases = [*options.problem, SMALL]
        rows = beside_busy(cases, options.busy, BUSY_TURNS, BUSY_SECONDS)
        measured["beside busy processes"] = {"busy": options.busy, "cases": rows}
        print(f"\nnext to {options.busy} busy processes\n\n{busy_table(rows)}")
    for name in options.problem if options.busy is None else ():
        batch_size, rows, text = _way(options)(name, options)
        measured[name] = {"batch_size": batch_size, "cases": rows}
        batch = f", batch {batch_size}" if batch_size else ""
        print(f"\n{name}{batch}, medians of {options.rounds} steps\n\n{text}")
    key = next((way for way in ("peers", "memory") if getattr(options, way)), "problems")
    report = {"origin": begun, "machine": facts, "rounds": options.rounds, key: measured}
    command.save_json(options.json, report)


def _measured(name: str, options: argparse.Namespace) -> tuple[int, list[dict[str, object]], str]:
    """Batch size, rows and table of the cases of this package."""
    batch_size = options.batch_size or PROBLEMS[name]().settings["hig"].batch_size
    rows = benchmark(name, batch_size, options.rounds, options.device, options.clock)
    return batch_size, rows, command.table(COLUMNS, rows)


def _compared(name: str, options: argparse.Namespace) -> tuple[int, list[dict[str, object]], str]:
    """Batch size, rows and table of the comparison with other packages."""
    if name == SEVERAL_LOSSES:
        rows = compare_operators(options.rounds, options.clock, PATIENCE)
        return 0, rows, operator_table(rows)
    problem = PEER_PROBLEMS[name]()
    batch_size = options.batch_size or problem.settings["lm"].batch_size
    rows = compare(problem, batch_size, options.rounds, options.device, options.clock, PATIENCE)
    return batch_size, rows, peer_table(rows)


def _chunks(name: str, options: argparse.Namespace) -> tuple[int, list[dict[str, object]], str]:
    """Batch size, rows and table of the default number of batched passes against fixed ones."""
    case = MEMORY_CASES[name]
    samples = options.batch_size or case.samples
    rows = compare_chunks(name, samples, case.extent, rounds=options.rounds)
    return samples, rows, memory_table(rows)


def _way(
    options: argparse.Namespace,
) -> Callable[[str, argparse.Namespace], tuple[int, list[dict[str, object]], str]]:
    """Choose the measurement of each name."""
    if options.memory:
        return _chunks
    return _compared if options.peers else _measured


def _known(options: argparse.Namespace) -> tuple[Mapping[str, object], Sequence[str]]:
    """Names that can be given, and those that are measured by default."""
    if options.memory:
        return MEMORY_CASES, list(MEMORY_CASES)
    if options.peers:
        peers = {**PEER_PROBLEMS, SEVERAL_LOSSES: None}
        return peers, list(peers)
    return PROBLEMS, DEFAULT


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line and check options that depend on each other."""
    parser = _parser()
    options = parser.parse_args(arguments)
    known, default = _known(options)
    if options.rounds is None:
        options.rounds = 1 if options.memory else 15
    for name in options.problem:
        if name not in known:
            parser.error(f"argument PROBLEM: must be one of {', '.join(known)}, got {name!r}")
    options.problem = options.problem or list(default)
    if options.memory and torch.device(options.device).type != "cpu":
        parser.error("argument --memory: is measured on the CPU; leave --device out")
    try:
        seconds_of(options.clock, options.device)
        if options.peers:
            require_peers()
        if options.batch_size and not options.memory:
            for name in set(options.problem) - {SEVERAL_LOSSES}:
                train, _ = known[name]().data(torch.Generator())
                check_batch_size(options.batch_size, train)
    except (ImportError, ValueError) as error:
        parser.error(str(error))
    return options


def _parser() -> argparse.ArgumentParser:
    parser = command.make_parser("benchmark", __doc__)
    parser.add_argument(
        "problem",
        nargs="*",
        metavar="PROBLEM",
        help=f"problems to measure, of {', '.join(PROBLEMS)} (default: {', '.join(DEFAULT)}); with "
        f"--peers of {', '.join([*PEER_PROBLEMS, SEVERAL_LOSSES])}, with --memory of "
        f"{', '.join(MEMORY_CASES)} (default: all)",
    )
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument(
        "--memory",
        action="store_true",
        help="memory and processor time of steps with large backward passes, by default and with "
        "fixed chunks",
    )
    ways.add_argument(
        "--busy",
        type=busy_argument,
        metavar="N",
        help="next to N busy processes: the default of threads against one thread, wall-clock",
    )
    ways.add_argument(
        "--peers",
        action="store_true",
        help="compare with other packages, which pip install 'hig[peers]' gets",
    )
    command.add_rounds(parser, None, "steps of each (default 15; with --memory 1)")
    parser.add_argument(
        "--batch-size", type=positive_int, help="samples per step (default: the published one)"
    )
    command.add_machine(parser, threads=False)
    command.add_clock(parser)
    command.add_json(parser)
    return parser


if __name__ == "__main__":
    main()
