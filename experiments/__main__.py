"""List problems and methods; compare, export and report results."""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments._cli import catalogue
from experiments._cli.parser import Parser
from experiments._saved import comparison, export
from experiments._saved.result_files import fail
from experiments._study import keep, report

_COMMANDS = {
    "list": (catalogue, "problems, the methods of each, and their settings"),
    "compare": (comparison, "result files as a table: losses, times, time to a target"),
    "export": (export, "result files as JSON or NPZ"),
    "keep": (keep, "the parts of a study that are small enough to be committed"),
    "report": (report, "the results page of a kept study"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, by default that of the process; returns the exit status."""
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may be undecodable
    try:
        status = options.command(options)
        sys.stdout.flush()  # a pipe that is closed shows here, not when Python ends
    except OSError as error:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  # which Python flushes at the end
        # Whoever has closed the pipe has seen enough.
        return 1 if isinstance(error, BrokenPipeError) else fail(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m experiments",
        description=__doc__,
        epilog="python -m experiments COMMAND --help shows more; training runs are started by "
        "python -m experiments.PROBLEM.submit_METHOD",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (module, summary) in _COMMANDS.items():
        module.add_arguments(commands.add_parser(name, help=summary, description=module.__doc__))
    return parser


if __name__ == "__main__":
    sys.exit(main())
