"""Shared parts of the measuring commands: options, tables and files."""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hig
from experiments._cli.argument_types import device_argument, positive_int, threads_argument
from experiments._cli.parser import Parser
from experiments._provenance import origin
from experiments._run.clock import CLOCKS
from experiments._saved.folders import make_folder, make_place

Row = Mapping[str, object]


def make_parser(command: str, description: str | None) -> Parser:
    """Make the parser of ``python -m experiments.<command>``."""
    return Parser(
        prog=f"python -m experiments.{command}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_rounds(parser: argparse.ArgumentParser, default: int | None, counted: str) -> None:
    """Add ``--rounds``."""
    parser.add_argument("--rounds", type=positive_int, default=default, metavar="N", help=counted)


def add_machine(parser: argparse.ArgumentParser, threads: bool = True) -> None:
    """Add ``--device`` and ``--threads``."""
    parser.add_argument("--device", type=device_argument, default="cpu", help="cpu or cuda")
    if threads:
        parser.add_argument(
            "--threads",
            type=threads_argument,
            default=torch.get_num_threads(),
            metavar="N",
            help="CPU threads",
        )


def add_clock(parser: argparse.ArgumentParser) -> None:
    """Add ``--clock``."""
    parser.add_argument(
        "--clock",
        choices=tuple(CLOCKS),
        default="wall",
        help="clock; processor time of one thread is the time on a quiet machine",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``, a file of the numbers."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here too")


def add_out(parser: argparse.ArgumentParser, command: str) -> None:
    """Add ``--out``, the directory of the result files."""
    out = f"results/{command}"
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(out),
        metavar="DIR",
        help=f"directory of the result files (default {out})",
    )


def begin(options: argparse.Namespace) -> dict[str, str]:
    """Prepare threads and the place of the files, else exit with a message; returns `origin`."""
    if getattr(options, "threads", None) is not None:
        torch.set_num_threads(options.threads)
    if getattr(options, "json", None) is not None:
        make_place(options.json, "--json")
    if getattr(options, "out", None) is not None:
        make_folder(options.out)
    return origin()


def print_facts(facts: Mapping[str, object]) -> None:
    """Print the machine, as the first line of a report."""
    print(", ".join(f"{key} {value}" for key, value in facts.items()))


def table(columns: Mapping[str, str], rows: Sequence[Row]) -> str:
    """Write rows as a Markdown table, by the format string of each column.

    A heading that begins with a space is of a column of numbers, on the right.
    """
    lines = [list(columns), ["---:" if name.startswith(" ") else "---" for name in columns]]
    lines += [[cell.format(**row) for cell in columns.values()] for row in rows]
    return "\n".join(f"| {' | '.join(cell.strip() for cell in line)} |" for line in lines)


def in_own_process(module: str, *arguments: object) -> Any:
    """Run a module next to this one without leftovers of others; returns the JSON it prints."""
    line = [sys.executable, "-m", f"experiments._measure.{module}", *map(str, arguments)]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def milliseconds(seconds: Sequence[float]) -> dict[str, object]:
    """Number of rounds, median and range of the seconds of a case, as entries of a row."""
    return {
        "rounds": len(seconds),
        "median_ms": 1e3 * statistics.median(seconds),
        "min_ms": 1e3 * min(seconds),
        "max_ms": 1e3 * max(seconds),
    }


def seconds_per_step(seconds: Sequence[Sequence[float]]) -> dict[str, np.ndarray]:
    """Median and range of the seconds at each size, as entries of a result file."""
    rounds = np.asarray(seconds, dtype=np.float64)
    return {
        "seconds_per_step": np.median(rounds, axis=1),
        "seconds_per_step_min": rounds.min(axis=1),
        "seconds_per_step_max": rounds.max(axis=1),
    }


def save_json(path: Path | None, report: Mapping[str, object]) -> None:
    """Write a report, if a file was given, and print where it is."""
    if path is not None:
        path.write_text(json.dumps(report, indent=2) + "\n")
        print(f"\nwritten to {path}")


def save_results(
    command: str, begun: Mapping[str, str], results: Mapping[Path, Mapping[str, object]]
) -> None:
    """Write result files with their origin, and print how to draw them.

    Args:
        command: Name of the command, and of the module of `plots` that draws its files.
        begun: The origin.
        results: A result dict for each file, all in one folder.
    """
    for path, result in results.items():
        hig.save_results(path, {"origin": dict(begun), **result})
    files = " ".join(map(str, results))
    figure = next(iter(results)).with_name(f"{command}.png")
    print(f"draw them with: python -m plots.{command} {files} --out {figure}")
