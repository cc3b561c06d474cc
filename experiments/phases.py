"""Time of each phase of a half-inverse step, and its distance from the least possible.

``python -m experiments.phases`` takes steps on the published problems. For each phase it counts the
operations: their number, those of matrix products, the bytes they read and write. The floor of a
phase is their time at the measured rates of the machine, or the time of a bare ``eigh``;
starting the operations costs the host the time in the last column, whatever their size.
"""

import argparse
import statistics
from collections.abc import Sequence

from torch.autograd.profiler import profile

import hig
from experiments._measure import command
from experiments._measure.benchmark_cases import Cases
from experiments._measure.operations import OperationCounter, Rates, measure_rates
from experiments._measure.timing import interleaved_seconds
from experiments._problems import PROBLEMS
from experiments._provenance import machine
from experiments._run.step import outputs_closure

DEFAULT = ("nonlinear_oscillators", "quantum_dipole", "poisson")
DECOMPOSITION = "decomposition"
COLUMNS = {
    "phase": "{phase}",
    " ms": "{ms:.2f}",
    " share": "{share:.0%}",
    " operations": "{calls}",
    " GFLOP": "{gflop:.3g}",
    " GB": "{gb:.3g}",
    " floor ms": "{floor_ms:.2f}",
    " above floor": "{above_floor:.1f}×",
    " starting ms": "{launch_ms:.2f}",
}


def phases(name: str, rounds: int, device: str, rates: Rates) -> list[dict[str, object]]:
    """Measure the phases of a step of one of `PROBLEMS` at the published batch size.

    Returns:
        One row per phase: ``phase``, ``ms`` (median), ``share`` of the step, ``calls``, ``gflop``,
        ``gb``, ``floor_ms``, ``above_floor`` and ``launch_ms``.
    """
    problem = PROBLEMS[name]()
    cases = Cases(problem, problem.settings["hig"].batch_size, device)
    network = cases.network()
    optimizer = hig.HIG(
        network.parameters(), lr=1e-9, rcond=problem.settings["hig"].rcond, step_rule="fixed"
    )
    closure = outputs_closure(problem, network, cases.batch)
    seconds: dict[str, list[float]] = {}
    for counted in range(-2, rounds):
        optimizer.step(closure)
        if counted >= 0:
            for phase, spent in optimizer.report.seconds.items():
                seconds.setdefault(phase, []).append(spent)
    counter = OperationCounter("hig: ")
    with profile(use_kineto=False), counter:  # which has the phases marked
        optimizer.step(closure)
    eigh = statistics.median(interleaved_seconds({"": cases.eigh()}, rounds, 1, device)[""])
    medians = {phase: statistics.median(found) for phase, found in seconds.items()}
    rows = []
    for phase, spent in medians.items():
        found = counter.phases[phase]
        floor = eigh if phase == DECOMPOSITION else rates.floor(found)
        rows.append(
            {
                "phase": phase,
                "ms": 1e3 * spent,
                "share": spent / sum(medians.values()),
                "calls": found.calls,
                "gflop": sum(found.flops.values()) / 1e9,
                "gb": found.bytes / 1e9,
                "floor_ms": 1e3 * floor,
                "above_floor": spent / floor if floor else float("inf"),
                "launch_ms": 1e3 * rates.launch * found.calls,
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure from the command line."""
    options = _parser().parse_args(arguments)
    begun = command.begin(options)
    facts, rates = machine(options.device), measure_rates(options.device)
    command.print_facts(facts)
    shown = ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {dtype}" for dtype, rate in rates.flops.items())
    print(
        f"{shown}, {rates.bytes / 1e9:.1f} GB/s, {1e6 * rates.launch:.1f} µs to start an operation"
    )
    report: dict[str, object] = {"origin": begun, "machine": facts, "problems": {}}
    for name in options.problem or DEFAULT:
        rows = phases(name, options.rounds, options.device, rates)
        report["problems"][name] = rows
        print(f"\n{name}, medians of {options.rounds} steps\n\n{command.table(COLUMNS, rows)}")
    command.save_json(options.json, report)


def _parser() -> argparse.ArgumentParser:
    parser = command.make_parser("phases", __doc__)
    parser.add_argument(
        "problem",
        nargs="*",
        choices=[*PROBLEMS, []],
        metavar="PROBLEM",
        help=f"problems to measure, of {', '.join(PROBLEMS)} (default: {', '.join(DEFAULT)})",
    )
    command.add_rounds(parser, 15, "steps (default 15)")
    command.add_machine(parser)
    command.add_json(parser)
    return parser


if __name__ == "__main__":
    main()
