"""A run from its settings to its results, the same for all problems and methods."""

import sys
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from pathlib import Path

import hig
from experiments._methods import METHODS
from experiments._provenance import origin
from experiments._run.board import Board, folder_of, writer_class
from experiments._run.checkpoint import ENDING as CHECKPOINT
from experiments._run.checkpoint import Checkpoints, remove, require_none
from experiments._run.finished import finished
from experiments._run.loop import NON_FINITE, begin, train
from experiments._run.options import Options
from experiments._run.outcome import circumstances, outcome, save_weights, sim_par, summarise
from experiments._run.places import explain_write_failure, files_of, try_places
from experiments._run.plan import Plan, check_method, plan
from experiments._run.processes import Processes
from experiments._run.progress import Progress
from experiments._run.setup import check_shares, prepare
from experiments._run.signals import EXIT_STATUS, Signals
from experiments._run.training import Training
from problems import Problem, Settings


def run(problem: Problem, method: str, settings: Settings, options: Options) -> dict[str, object]:
    """Train a network on a problem and save the results.

    Initial weights, data and batches depend on the problem and the seed alone: at equal seed every
    method starts from the same point, and at equal batch size it sees the same batches. They are
    fixed consecutive slices of the training data unless the problem draws fresh samples.

    Losses are recorded per sample, when the problem says: after every epoch or by training time.
    Drawing batches and evaluating count as no training time.

    A run from saved weights starts with a new optimiser, and with the clock at zero; the results
    name the earlier run in ``pretraining`` and ``pretraining_time``. If fresh samples are drawn, it
    does not see those of the earlier run again.

    A run that is interrupted from the keyboard, terminated by a signal or meets a non-finite loss
    ends early; its records are saved, and ``stopped`` has the reason. They are also saved before an
    error of the simulator, of the decomposition or of memory is raised. Numerical faults
    are survived if ``options.on_fault`` says so, and listed in ``faults``.

    A checkpoint lies next to the result file while the run lasts, and stays if it has been cut
    short; no other run then starts in its place. With ``options.resume`` a run resumes from it as
    if nothing had happened, and ``resumed_at`` in the results has the training times of that. One
    that has used up its budget is not repeated: its results are returned.

    With ``options.tensorboard`` losses, metrics and, of Jacobian methods, the latest step are
    written as they come, to an event file in ``<out>/tensorboard``, which takes no training time.

    Under ``torchrun`` each process takes its share of every batch, and the steps are those of one
    process. All of them evaluate; the first one has the clock, reads the checkpoint and writes.

    Args:
        problem: Problem to train on.
        method: A name in the table of methods, such as ``"hig"``.
        settings: Batch size, step size and so on of the method.
        options: Length, seed, device, dtype and output directory.

    Returns:
        The saved dict, in numpy arrays and plain Python.

    Raises:
        ValueError: If the method is unknown, the problem has no settings for it, or it refuses
            those given.
        DataError: If the files of the problem cannot be read; a `ValueError`.
        WeightsError: If the weights to start from cannot be read or do not fit; a `ValueError`.
        CheckpointError: If there is a checkpoint of another run, or one that is not to be
            resumed; a `ValueError`.
        CorruptResultError: If it is damaged; a `ValueError`.
        UnsafeResultError: If it asks for anything but tensors and plain Python; a `ValueError`.
        ResultsError: If the results cannot be written, at the start or at the end; an `OSError`.
        BoardError: If TensorBoard cannot be written for; a `RuntimeError`.
        ProcessesError: If several processes cannot share the run; a `ValueError`.
        MemoryError: If there is too little; a `RuntimeError` where torch wants it.
        RuntimeError: If the simulator fails, or another of several processes.
        DecompositionError: If no decomposition of a Jacobian converges.
    """
    check_method(problem, method)
    begun = origin()  # not later: the files of the code may change while the run lasts
    processes = Processes()
    processes.check(problem, METHODS[method])
    if options.on_fault != "raise":  # all of them would have to undo the step
        processes.alone(f"--on-fault {options.on_fault}")
    if processes.rank > 0:
        options = replace(options, quiet=True, summary=False, tensorboard=False)
    if options.tensorboard:
        writer_class()  # an error now, not after the data are made
    planned = plan(problem, method, settings, options)
    if processes.rank == 0:
        try_places(files_of(planned.path, options))  # before hours of training, not after
    if not options.resume:
        require_none(planned.path, planned.course)
    elif (done := _finished(planned, sim_par(problem, planned.settings, options))) is not None:
        if not options.quiet:
            print(
                f"{planned.path} is of this command line and finished: nothing to do",
                file=sys.stderr,
            )
        return done or planned.heading
    training = prepare(
        problem, METHODS[method], planned.settings, options, planned.earlier, processes
    )
    check_shares(training)
    results, failure = _trained(training, planned, begun)
    processes.wait()
    if failure:
        raise failure
    return results


def _trained(
    training: Training, planned: Plan, begun: dict[str, str]
) -> tuple[dict[str, object], Exception | None]:
    """Train, save and summarise; returns the results, and the error that has ended the run."""
    options, several = training.options, training.processes.size > 1
    with (
        Signals(options.quiet, passed_on=several) as signals,
        Progress(planned.label, options) as progress,
    ):
        checkpoints = Checkpoints(
            planned.path, planned.course, options.checkpoint_every, progress.warn
        )
        begin(training, checkpoints, progress)
        with _board(training, planned.path, begun, progress):
            stopped, failure = train(training, checkpoints, signals, progress)
        progress.close()
        results = _saved(training, planned, begun, stopped, checkpoints.kept)
        if training.processes.rank == 0 and failure is None and stopped not in EXIT_STATUS:
            if stopped.startswith(NON_FINITE):  # over, but under another policy
                checkpoints.set_aside()
            else:
                remove(planned.path)
        summarise(training, progress, results, planned.path, checkpoints)
    return results, failure


def _saved(
    training: Training,
    planned: Plan,
    begun: dict[str, str],
    stopped: str,
    checkpoint: Path | None,
) -> dict[str, object]:
    """Save results and weights; returns the results."""
    tested_by = training.problem.tested_by
    results = {
        **planned.heading,
        "stopped": stopped,
        **({"tested_by": tested_by} if tested_by else {}),
        "origin": begun,
        **outcome(training),
    }
    with explain_write_failure(checkpoint):
        results |= save_weights(training, planned.path, planned.heading)
        if training.processes.rank == 0:
            hig.save_results(planned.path, results)
    return results


def _board(
    training: Training, path: Path, begun: dict[str, str], progress: Progress
) -> AbstractContextManager[Board | None]:
    """Open the event file for TensorBoard, if wanted, and write the settings of the run to it."""
    if not training.options.tensorboard:
        return nullcontext()
    training.board = Board(folder_of(path), training.steps, progress.warn)
    training.board.describe(training.steps, {"origin": begun, **circumstances(training)})
    return closing(training.board)


def _finished(planned: Plan, wanted: dict[str, object]) -> dict[str, object] | None:
    """Return the results of a finished run, {} if another process has them; None otherwise."""
    processes, found = Processes(), None
    if processes.rank == 0 and not planned.path.with_suffix(CHECKPOINT).exists():
        found = finished(planned.path, wanted, processes.size, planned.earlier)
    if not processes.first_has(found is not None):
        return None
    if processes.rank == 0:
        remove(planned.path)  # left by a process that was killed at its very end
    return found or {}
