"""Where the time of a half-inverse step goes, and how far each phase is from what it must cost.

``python -m experiments.phases`` takes steps on the published problems. For each phase it counts the
operations: their number, those of matrix products, the bytes they read and write. The floor of a
phase is what these would take at the measured rates of the machine, or what a bare ``eigh`` takes;
starting the operations costs the host the time in the last column, whatever their size.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.autograd.profiler import profile

import hig
from experiments._cli.argument_types import device_argument, positive_int, threads_argument
from experiments._cli.parser import Parser
from experiments._measure.benchmark_cases import Cases
from experiments._measure.operations import OperationCounter, Rates, measure_rates
from experiments._measure.timing import interleaved_seconds
from experiments._problems import PROBLEMS
from experiments._provenance import machine, origin
from experiments._saved.folders import make_place

DEFAULT = ("nonlinear_oscillators", "quantum_dipole", "poisson")
DECOMPOSITION = "decomposition"


def phases(name: str, rounds: int, device: str, rates: Rates) -> list[dict[str, object]]:
    """Measure the phases of a step at the published batch size.

    Args:
        name: problem, a key of `PROBLEMS`.
        rounds: counted steps.
        device: torch device.
        rates: of the machine.

    Returns:
        One row per phase: ``phase``, ``ms`` (median), ``share`` of the step, ``calls``, ``gflop``,
        ``gb``, ``floor_ms``, ``above_floor`` and ``launch_ms``.
    """
    problem = PROBLEMS[name]()
    cases = Cases(problem, problem.settings["hig"].batch_size, device)
    network = cases.network()
    optimizer = hig.HIG(network.parameters(), lr=1e-9, rcond=problem.settings["hig"].rcond)

    def closure():
        prediction = problem.predict(network, cases.batch)
        return problem.loss(prediction, cases.batch), prediction

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


def table(rows: Sequence[dict[str, object]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| phase | ms | share | operations | GFLOP | GB | floor ms | above floor | starting ms |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row['phase']} | {row['ms']:.2f} | {100 * row['share']:.0f} % | {row['calls']} | "
            f"{row['gflop']:.3g} | {row['gb']:.3g} | {row['floor_ms']:.2f} | "
            f"{row['above_floor']:.1f}× | {row['launch_ms']:.2f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure from the command line."""
    options = _parser().parse_args(arguments)
    if options.json:
        make_place(options.json, "--json")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    facts, rates = machine(options.device), measure_rates(options.device)
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    shown = ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {dtype}" for dtype, rate in rates.flops.items())
    print(
        f"{shown}, {rates.bytes / 1e9:.1f} GB/s, {1e6 * rates.launch:.1f} µs to start an operation"
    )
    report: dict[str, object] = {"origin": origin(), "machine": facts, "problems": {}}
    for name in options.problem or DEFAULT:
        rows = phases(name, options.rounds, options.device, rates)
        report["problems"][name] = rows
        print(f"\n{name}, medians of {options.rounds} steps\n\n{table(rows)}")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
        print(f"\nwritten to {options.json}")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m experiments.phases",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "problem",
        nargs="*",
        choices=[*PROBLEMS, []],
        metavar="PROBLEM",
        help=f"problems to measure, of {', '.join(PROBLEMS)} (default: {', '.join(DEFAULT)})",
    )
    parser.add_argument("--rounds", type=positive_int, default=15, help="steps (default 15)")
    parser.add_argument("--device", type=device_argument, default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=threads_argument, metavar="N", help="CPU threads")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here too")
    return parser


if __name__ == "__main__":
    main()
