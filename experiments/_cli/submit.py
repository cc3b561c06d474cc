"""Training run of a command line."""

import sys
from collections.abc import Sequence

from experiments._cli.arguments import parse
from experiments._run.batches import BatchSizeError
from experiments._run.board import BoardError
from experiments._run.checkpoint import CheckpointError
from experiments._run.places import ResultsError
from experiments._run.processes import ProcessesError, process_group
from experiments._run.runner import run
from experiments._run.signals import EXIT_STATUS, INTERRUPTED
from experiments._run.weights import WeightsError
from experiments._saved.folders import make_folder
from hig import CorruptResultError, UnsafeResultError
from hig.errors import out_of_memory
from problems import DataError, Problem

# Errors that the user can fix.
_ERRORS = (WeightsError, CheckpointError, DataError, ProcessesError, ResultsError)
_ERRORS += (BatchSizeError, BoardError, CorruptResultError, UnsafeResultError)


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
            interruption, 143 for SIGTERM, 1 for a non-finite loss; also for ``--help``, for
            arguments that are not valid or a batch larger than the training data, for an output
            directory that cannot be made, for weights
            or a checkpoint that do not fit, for data that cannot be read, for results
            that cannot be written, for events that TensorBoard could not get and for runs that
            cannot be shared among the processes that ``torchrun`` started.
    """
    problem, settings, options = parse(problem, method, arguments)
    make_folder(options.out)
    try:
        with process_group(options.device):
            results = run(problem, method, settings, options)
    except _ERRORS as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:  # before the first step, or after the last
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_STATUS[INTERRUPTED])
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not out_of_memory(error):
            raise
        sys.exit(
            f"error: not enough memory on {options.device}: {str(error).partition('. ')[0]}; give "
            "a smaller --batch-size or a smaller problem"
        )
    stopped = results.get("stopped", "")  # of a run that was over it is in the first process
    if stopped in EXIT_STATUS:
        sys.exit(EXIT_STATUS[stopped])
    if stopped.startswith("non-finite"):
        sys.exit(f"error: {stopped}")
    return results
