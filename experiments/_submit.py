"""From a command line to a run."""

import sys
from collections.abc import Sequence

from experiments._arguments import parse
from experiments._folders import make_folder
from experiments._processes import ProcessesError, process_group
from experiments._runner import run
from experiments._weights import WeightsError
from problems import DataError, Problem

INTERRUPTED = 130  # what a shell reports for a process ended by Ctrl-C


def submit(
    problem: Problem, method: str, arguments: Sequence[str] | None = None
) -> dict[str, object]:
    """Train as the command line says and save the results.

    Args:
        problem: Problem with the published parameters.
        method: A name in the table of methods, such as ``"hig"``.
        arguments: Command line without the program name, by default that of the process.

    Returns:
        The results of a run that used up its budget.

    Raises:
        SystemExit: With the exit status of a run that ended early, after saving: 130 for an
            interruption, 1 for a non-finite loss; also for ``--help``, for arguments that are
            not valid, for an output directory that cannot be made, for weights to go on from that
            do not fit, for data that cannot be read and for runs that cannot be shared among the
            processes that ``torchrun`` started.
    """
    problem, settings, options = parse(problem, method, arguments)
    make_folder(options.out)
    try:
        with process_group(options.device):
            results = run(problem, method, settings, options)
    except (WeightsError, DataError, ProcessesError) as error:
        sys.exit(f"error: {error}")
    stopped = results["stopped"]
    if stopped == "interrupted":
        sys.exit(INTERRUPTED)
    if stopped.startswith("non-finite"):
        sys.exit(f"error: {stopped}")
    return results
