"""Steps, evaluations and checkpoints until a run ends."""

import math

import hig
from experiments._run.checkpoint import CheckpointError, Checkpoints
from experiments._run.evaluation import loss_per_sample, mean_loss, metrics
from experiments._run.faults import ERRORS
from experiments._run.learning_rate import factor, set_learning_rate
from experiments._run.options import Options
from experiments._run.progress import Progress
from experiments._run.signals import INTERRUPTED, STOPPED, Signals
from experiments._run.step import take_step
from experiments._run.training import Training
from experiments._run.weights import snapshot
from problems import Batch

# Beginning of ``stopped`` of a run that a non-finite number has ended, before the error text.
NON_FINITE = "non-finite"


def begin(training: Training, checkpoints: Checkpoints, progress: Progress) -> None:
    """Resume from a checkpoint, if wanted and present; prints which."""
    if not training.options.resume:
        return
    state = checkpoints.load()
    if state is not None and state["faults"].get("factor", 1.0) != 1.0:
        raise CheckpointError(
            f"{checkpoints.kept} is of a run with --on-fault restore, which is no longer supported "
            f"and had reduced the step size to {state['faults']['factor']:g} times --lr; remove "
            "the file and start again with a smaller --lr"
        )
    if state is None:
        progress.say(f"there is no checkpoint {checkpoints.path}: starting from the beginning")
        return
    training.load_state_dict(state)
    epoch = training.steps / training.steps_per_epoch
    progress.resumed(training.steps, epoch, training.clock.seconds)
    progress.evaluated(training.recorder.train_loss[-1], training.recorder.test_loss[-1])
    progress.say(f"resuming from {checkpoints.kept}: {training.clock.seconds:.4g} s of training")


def train(
    training: Training, checkpoints: Checkpoints, signals: Signals, progress: Progress
) -> tuple[str, Exception | None]:
    """Train; returns the reason of the end, and an error to raise after the results are saved."""
    try:
        return _steps(training, checkpoints, signals, progress), None
    except hig.NonFiniteError as error:
        return f"{NON_FINITE}: {error}", None
    except (KeyboardInterrupt, *ERRORS) as error:
        if not training.recorder.epochs:  # nothing to save yet
            raise
        if isinstance(error, KeyboardInterrupt):
            return INTERRUPTED, None
        return f"failed: {error}", error


def _steps(
    training: Training, checkpoints: Checkpoints, signals: Signals, progress: Progress
) -> str:
    """Step until the budget is used up or a signal has come; returns the reason."""
    if not training.steps:
        _evaluate(training, progress, epoch=0.0)
    clock, options, processes = training.clock, training.options, training.processes
    for batch in training.batches:
        _step(training, batch, progress)
        clock.seconds, signal, due = processes.first(clock.seconds, signals.number, checkpoints.due)
        epoch = training.steps / training.steps_per_epoch
        stop = _budget_used_up(options, epoch, clock.seconds)
        if training.evaluations.due(training.steps, clock.seconds) or stop:
            _evaluate(training, progress, epoch)
        if stop:
            return stop
        if due or signal:
            checkpoints.write(training.state_dict)
        if signal:
            return STOPPED[signal]
    raise AssertionError("batches never end")


def _step(training: Training, batch: Batch, progress: Progress) -> None:
    """Take a step and record it, or record the fault."""
    problem, faults, loss = training.problem, training.faults, None
    epoch = training.steps / training.steps_per_epoch
    _set_step_size(training, epoch)
    faults.before_step()
    try:
        loss = _loss_of_step(training, batch, epoch, progress)
    except ERRORS as error:
        _meet(training, error, "step", epoch, progress)
    training.steps += 1
    if loss is None:
        faults.restore_parameters()
        return
    after = training.steps / training.steps_per_epoch
    progress.stepped(after, training.clock.seconds, loss_per_sample(problem, loss, batch))


def _loss_of_step(training: Training, batch: Batch, epoch: float, progress: Progress) -> float:
    """Take a step and show its notes; returns the loss of the batch before it."""
    with training.clock.running():
        loss = take_step(
            training.problem, training.method, training.network, training.optimizer, batch
        ).item()
        if training.average is not None:
            training.average.update_parameters(training.network)
    if not math.isfinite(loss):
        after = epoch + 1 / training.steps_per_epoch
        raise _non_finite(loss, f"batch loss at epoch {after:.4g}", training)
    training.faults.require_finite()
    if training.method.jacobian:
        report = training.optimizer.report
        for text in training.jacobian_recorder.step(epoch, training.clock.seconds, report):
            progress.say(f"step {training.steps + 1}: {text}")
        if training.board:
            training.board.stepped(training.steps + 1, report)
    return loss


def _set_step_size(training: Training, epoch: float) -> None:
    settings, options = training.settings, training.options
    lr = settings.lr
    if settings.schedule not in (None, "constant"):
        if options.epochs is not None:
            done = epoch / options.epochs
        else:
            done = training.clock.seconds / options.time_budget
        warms_up = not training.method.jacobian
        lr *= factor(settings.schedule, training.steps, done, warms_up)
    set_learning_rate(training.optimizer, lr)


def _meet(
    training: Training, error: Exception, during: str, epoch: float, progress: Progress
) -> None:
    """Note a fault and report it; raises the error again if the run does not survive it."""
    seconds, lr = training.clock.seconds, training.settings.lr
    where = {"step": training.steps, "epoch": epoch, "seconds": seconds, "step_size": lr}
    event = training.faults.meet(error, during, **where)
    progress.warn(training.faults.describe(event))


def _budget_used_up(options: Options, epoch: float, seconds: float) -> str | None:
    if options.epochs is not None and epoch >= options.epochs:
        return "epochs"
    if options.time_budget is not None and seconds >= options.time_budget:
        return "time budget"
    return None


def _evaluate(training: Training, progress: Progress, epoch: float) -> None:
    problem, network, seconds = training.problem, training.evaluated, training.clock.seconds
    losses = [mean_loss(problem, network, part) for part in (training.train, training.test)]
    measured = metrics(problem, network, training.test)
    # Those of an evaluation, whenever the run ends: within a step they may be half changed.
    training.latest = snapshot(network, seconds, losses[1])
    training.recorder.evaluation(epoch, seconds, *losses, measured, _conflict(training))
    progress.evaluated(*losses)
    if training.board:
        training.board.evaluated(training.steps, training.recorder)
    if not math.isfinite(losses[0]):
        error = _non_finite(losses[0], f"training loss at epoch {epoch:.4g}", training)
        _meet(training, error, "evaluation", epoch, progress)


def _conflict(training: Training) -> float:
    """The smallest cosine of the last combined direction with a loss's own; NaN without one."""
    if not training.method.several_losses:
        return math.nan
    holders = training.optimizer, getattr(training.optimizer, "operator", None)
    reports = [getattr(holder, "report", None) for holder in holders]
    return next((report.smallest_cosine for report in reports if report is not None), math.nan)


def _non_finite(loss: float, what: str, training: Training) -> hig.NonFiniteError:
    return hig.NonFiniteError(
        f"the {what} is {loss}; the step size is {training.settings.lr:g}, "
        "try a smaller one with --lr, or --step-rule trust if the method has it"
    )
