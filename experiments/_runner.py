"""The training loop that all problems and methods share."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import hig
from experiments import _checkpoint, _names, _weights
from experiments._batches import Batches
from experiments._checkpoint import Checkpoints
from experiments._clock import TrainingClock
from experiments._evaluation import loss_per_sample, mean_loss, metrics
from experiments._learning_rate import factor, set_learning_rate
from experiments._machine import machine
from experiments._methods import METHODS, Method
from experiments._options import DTYPES, Options
from experiments._processes import Processes
from experiments._progress import Progress
from experiments._schedule import schedule
from experiments._signals import EXIT_STATUS, INTERRUPTED, STOPPED, Signals
from experiments._step import take_step
from experiments._training import Training
from experiments._weights import Pretraining
from problems import Batch, Problem, Settings, SeveralLosses, samples

# Streams of random numbers beside that of the initial weights, at every seed.
DATA_STREAM, BATCH_STREAM = 1, 2


def run(problem: Problem, method: str, settings: Settings, options: Options) -> dict[str, object]:
    """Train a network on a problem and save the results.

    Initial weights, data and batches depend on the problem and the seed alone: at equal seed every
    method starts from the same point, and at equal batch size it sees the same batches. They are
    fixed consecutive slices of the training data unless the problem draws fresh samples.

    Losses are recorded per sample, when the problem says: after every epoch or by training time.
    Drawing batches and evaluating count as no training time.

    A run that goes on from weights starts with a new optimiser, and with the clock at zero; the
    results tell by ``pretraining`` and ``pretraining_time`` what came before. Where fresh samples
    are drawn it does not see those of the earlier run again.

    A run that is interrupted from the keyboard, terminated by a signal or meets a non-finite loss
    ends early; what it has recorded is saved all the same and ``stopped`` tells the reason. So it
    is before an error is passed on that comes from the simulator, from the decomposition or for
    want of memory.

    A checkpoint lies beside the result file while the run lasts, and stays where it has been cut
    short. With ``options.resume`` a run goes on from there as if nothing had happened, and the
    results tell by ``resumed_at`` at which training times that was.

    Under ``torchrun`` each process takes its share of every batch, and the steps are those of one
    process. All of them evaluate; the first one has the clock and writes.

    Args:
        problem: What to train on.
        method: A name in the table of methods, such as ``"hig"``.
        settings: Batch size, step size and so on of the method.
        options: Length, seed, device, dtype and output directory.

    Returns:
        The saved dict, in numpy arrays and plain Python.

    Raises:
        ValueError: If the method is unknown, the problem has no settings for it, or it refuses
            those given.
        DataError: If the files of the problem cannot be read; a `ValueError`.
        WeightsError: If the weights to go on from cannot be read or do not fit; a `ValueError`.
        CheckpointError: If the checkpoint to go on from is that of another run; a `ValueError`.
        CorruptResultError: If it is damaged; a `ValueError`.
        UnsafeResultError: If it asks for anything but tensors and plain Python; a `ValueError`.
        OSError: If the output directory cannot be made.
        ResultsError: If the results cannot be written; an `OSError`.
        ProcessesError: If several processes cannot share the run; a `ValueError`.
        RuntimeError: If the simulator fails, or another of several processes.
        DecompositionError: If no decomposition of a Jacobian converges.
    """
    _check_method(problem, method)
    processes = Processes()
    processes.check(problem, METHODS[method])
    if options.resume:
        processes.alone("--resume")
    if processes.rank > 0:
        options = replace(options, quiet=True)
    settings = _as_published(problem, method, settings)
    earlier = _weights.load(options.init_from, problem.name) if options.init_from else None
    differences = _names.deviations(problem, method, settings, options)
    if earlier:
        differences.append(f"after {earlier.label}")
    label = _names.label(method, differences)
    if earlier and earlier.seed != options.seed:
        differences.append(f"of seed {earlier.seed}")  # files apart, one name in legends
    path = _names.path(problem, method, differences, options)
    path.parent.mkdir(parents=True, exist_ok=True)  # before hours of training, not after
    training = _prepare(problem, METHODS[method], settings, options, earlier, processes)
    _check_shares(training)
    names = {"problem": problem.name, "method": method, "label": label, "seed": options.seed}
    course = _checkpoint.identity(problem, method, settings, options, earlier)
    with Signals(options.quiet, passed_on=processes.size > 1) as signals:
        with Progress(label, options) as progress:
            checkpoints = Checkpoints(path, course, options.checkpoint_every, progress.warn)
            _begin(training, checkpoints, progress)
            stopped, failure = _train_to_the_end(training, checkpoints, signals, progress)
        results = {
            **names,
            "stopped": stopped,
            **({"tested_by": problem.tested_by} if problem.tested_by else {}),
            **_results(training),
        }
        with _told_what_to_do():
            results |= _save_weights(training, path, names)
            if processes.rank == 0:
                hig.save_results(path, results)
        if processes.rank == 0 and failure is None and stopped not in EXIT_STATUS:
            checkpoints.remove()
        _summarise(progress, results, path, checkpoints.path)
    processes.wait()
    if failure:
        raise failure
    return results


def _check_method(problem: Problem, method: str) -> None:
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known are {', '.join(METHODS)}")
    if method not in problem.settings:
        raise ValueError(
            f"{problem.name} has no settings for {method!r}; "
            f"it has them for {', '.join(problem.settings)}"
        )
    if METHODS[method].several_losses and not isinstance(problem, SeveralLosses):
        raise ValueError(f"{method!r} needs several losses, and {problem.name} has one; try 'hig'")


class ResultsError(OSError):
    """The results of a run cannot be written; the text says why and what would help."""


@contextmanager
def _told_what_to_do() -> Iterator[None]:
    """Tell the user what can be done where the files of the end cannot be written."""
    try:
        yield
    except OSError as error:
        raise ResultsError(
            f"the results cannot be written: {error}; the file there before and the last "
            "checkpoint are as they were: make room and go on with --resume"
        ) from error


def _as_published(problem: Problem, method: str, settings: Settings) -> Settings:
    """Complete settings that are called published only if they are."""
    settings = METHODS[method].complete(settings)
    published = METHODS[method].complete(problem.settings[method])
    return settings if settings == published else replace(settings, published=False)


def _prepare(
    problem: Problem,
    method: Method,
    settings: Settings,
    options: Options,
    earlier: Pretraining | None,
    processes: Processes,
) -> Training:
    target = {"device": options.device, "dtype": DTYPES[options.dtype]}
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    network = problem.network().to(**target)
    if earlier:
        earlier.put_into(network)
    train, test = problem.data(_generator(options.seed, DATA_STREAM))
    train, test = _placed(train, **target), _placed(test, **target)
    batches = _generator(options.seed, BATCH_STREAM + (earlier.runs if earlier else 0))
    return Training(
        problem,
        method,
        settings,
        options,
        network,
        method.optimizer(list(network.parameters()), settings, problem.loss_reduction),
        train,
        test,
        Batches(problem, train, settings.batch_size, batches),
        schedule(problem, _steps_per_epoch(train, settings), options),
        TrainingClock(options.device, options.clock),
        earlier,
        _average(network, options),
        processes,
    )


def _check_shares(training: Training) -> None:
    """Refuse a last batch of an epoch that has too few samples, before the epoch is trained."""
    if type(training.problem).batches is Problem.batches:
        last = samples(training.train) % training.settings.batch_size
        training.processes.share({key: value[-last:] for key, value in training.train.items()})


def _average(network: nn.Module, options: Options) -> AveragedModel | None:
    if options.average is None:
        return None
    average = get_ema_multi_avg_fn(options.average)
    return AveragedModel(network, multi_avg_fn=average, use_buffers=False)


def _placed(data: Batch, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Data on the device, real numbers in the dtype; whole numbers stay as small as they are."""
    return {
        key: value.to(device, dtype if value.is_floating_point() else None)
        for key, value in data.items()
    }


def _generator(seed: int, stream: int) -> torch.Generator:
    """A generator of its own: equal seeds would give equal numbers in weights, data, batches."""
    state = np.random.SeedSequence((seed, stream)).generate_state(1)
    return torch.Generator().manual_seed(int(state[0]))


def _begin(training: Training, checkpoints: Checkpoints, progress: Progress) -> None:
    """Go on from a checkpoint, if that is wanted and there is one; tells which."""
    if not training.options.resume:
        if checkpoints.path.exists():
            progress.say(
                f"{checkpoints.path} of an interrupted run will be overwritten; stop now and give "
                "--resume to go on from it"
            )
        return
    state = checkpoints.load()
    if state is None:
        progress.say(f"there is no checkpoint {checkpoints.path}: starting afresh")
        return
    training.load_state_dict(state)
    progress.resumed(training.steps)
    progress.say(f"going on from {checkpoints.path}: {training.clock.seconds:.4g} s of training")


def _train_to_the_end(
    training: Training, checkpoints: Checkpoints, signals: Signals, progress: Progress
) -> tuple[str, Exception | None]:
    """Train; returns why it ended, and the error to pass on once what is there is saved."""
    try:
        return _train(training, checkpoints, signals, progress), None
    except hig.NonFiniteError as error:
        return f"non-finite: {error}", None
    except (KeyboardInterrupt, RuntimeError, hig.DecompositionError) as error:
        if not training.recorder.epochs:  # nothing to save yet
            raise
        if isinstance(error, KeyboardInterrupt):
            return INTERRUPTED, None
        return f"failed: {error}", error


def _train(
    training: Training, checkpoints: Checkpoints, signals: Signals, progress: Progress
) -> str:
    """Step until the budget is used up or a signal has come; returns which it was."""
    if not training.steps:
        _evaluate(training, progress, epoch=0.0)
    clock, options, processes = training.clock, training.options, training.processes
    steps_per_epoch = _steps_per_epoch(training.train, training.settings)
    for batch in training.batches:
        _step(training, batch, steps_per_epoch, progress)
        clock.seconds, signal = processes.first(clock.seconds, signals.number, options.device)
        epoch = training.steps / steps_per_epoch
        stop = _budget_used_up(options, epoch, clock.seconds)
        if training.evaluations.due(training.steps, clock.seconds) or stop:
            _evaluate(training, progress, epoch)
        if stop:
            return stop
        if checkpoints.due or signal:
            _write_checkpoint(training, checkpoints)
        if signal:
            return STOPPED[signal]
    raise AssertionError("batches never end")


def _write_checkpoint(training: Training, checkpoints: Checkpoints) -> None:
    if training.processes.size == 1:  # those of several processes cannot go on
        checkpoints.write(training.state_dict)


def _steps_per_epoch(train: Batch, settings: Settings) -> int:
    return math.ceil(samples(train) / settings.batch_size)


def _step(training: Training, batch: Batch, steps_per_epoch: int, progress: Progress) -> None:
    """Take a step and note it."""
    problem, clock, steps = training.problem, training.clock, training.steps
    before, after = steps / steps_per_epoch, (steps + 1) / steps_per_epoch
    _schedule_step_size(training, steps, before)
    with clock.running():
        loss = take_step(
            problem, training.method, training.network, training.optimizer, batch
        ).item()
        if training.average is not None:
            training.average.update_parameters(training.network)
    training.steps += 1
    _require_finite(loss, f"batch loss at epoch {after:.4g}", training)
    if training.method.jacobian:
        training.jacobian_recorder.step(before, clock.seconds, training.optimizer.report)
    progress.stepped(after, clock.seconds, loss_per_sample(problem, loss, batch))


def _schedule_step_size(training: Training, step: int, epoch: float) -> None:
    settings, options = training.settings, training.options
    if settings.schedule in (None, "constant"):
        return
    if options.epochs is not None:
        done = epoch / options.epochs
    else:
        done = training.clock.seconds / options.time_budget
    set_learning_rate(training.optimizer, settings.lr * factor(settings.schedule, step, done))


def _budget_used_up(options: Options, epoch: float, seconds: float) -> str | None:
    if options.epochs is not None and epoch >= options.epochs:
        return "epochs"
    if options.time_budget is not None and seconds >= options.time_budget:
        return "time budget"
    return None


def _evaluate(training: Training, progress: Progress, epoch: float) -> None:
    problem, network, seconds = training.problem, training.evaluated, training.clock.seconds
    losses = [mean_loss(problem, network, data) for data in (training.train, training.test)]
    measured = metrics(problem, network, training.test)
    # Those of an evaluation, whenever the run ends: within a step they may be half changed.
    training.latest = _weights.snapshot(network, seconds, losses[1])
    training.recorder.evaluation(epoch, seconds, *losses, measured, _conflict(training))
    progress.evaluated(*losses)
    _require_finite(losses[0], f"training loss at epoch {epoch:.4g}", training)


def _conflict(training: Training) -> float:
    """The smallest cosine of the last combined direction with a loss's own; NaN without one."""
    if not training.method.several_losses:
        return math.nan
    holders = training.optimizer, getattr(training.optimizer, "operator", None)
    reports = [getattr(holder, "report", None) for holder in holders]
    return next((report.smallest_cosine for report in reports if report is not None), math.nan)


def _require_finite(loss: float, what: str, training: Training) -> None:
    if not math.isfinite(loss):
        raise hig.NonFiniteError(
            f"the {what} is {loss}; the step size is {training.settings.lr:g}, "
            "try a smaller one with --lr, or --step-rule trust where the method has it"
        )


def _save_weights(training: Training, path: Path, names: dict[str, object]) -> dict[str, str]:
    """Write the weights of the last evaluation, if asked for and finite; tells in which file."""
    wanted = training.options.save_weights and training.processes.rank == 0
    if not wanted or not training.latest.usable:
        return {}
    return {"weights_file": _weights.save(path, training.latest, names, training.earlier).name}


def _results(training: Training) -> dict[str, object]:
    problem, options, earlier = training.problem, training.options, training.earlier
    settings = {key: value for key, value in asdict(training.settings).items() if value is not None}
    hidden = ("quiet", "resume", "checkpoint_every")
    run_options = {key: value for key, value in asdict(options).items() if key not in hidden}
    paths = {"out": str(options.out), "init_from": earlier and str(options.init_from)}
    return {
        **training.recorder.results(),
        **(training.jacobian_recorder.results() if training.method.jacobian else {}),
        **_pretraining(earlier),
        **({"resumed_at": np.asarray(resumed)} if (resumed := training.resumed_at) else {}),
        "sim_par": {**asdict(problem), **settings, **run_options, **paths},
        "machine": {**machine(options.device), "processes": training.processes.size},
        **_example(training),
    }


def _pretraining(earlier: Pretraining | None) -> dict[str, object]:
    return {"pretraining": earlier.label, "pretraining_time": earlier.seconds} if earlier else {}


def _example(training: Training) -> dict[str, object]:
    """What the problem shows of the first test samples; left out where it shows nothing."""
    count = training.problem.examples
    batch = {key: value[:count] for key, value in training.test.items()}
    training.latest.put_into(training.network)
    training.network.eval()
    example = training.problem.example(training.network, batch)
    return {"example": example} if example else {}


def _summarise(
    progress: Progress, results: dict[str, object], path: Path, checkpoint: Path
) -> None:
    train, test = results["train_loss"], results["test_loss"]
    best = int(np.argmin(np.nan_to_num(test, nan=np.inf)))
    weights = ""
    if results["sim_par"]["save_weights"]:
        weights = f", {results.get('weights_file', 'no weights: they are not finite')}"
    left = f"\n  left   {checkpoint}: --resume goes on from it" if checkpoint.exists() else ""
    progress.say(
        f"{results['label']} stopped: {results['stopped']}\n"
        f"  last   train {train[-1]:.4e}   test {test[-1]:.4e}   "
        f"(epoch {results['epochs'][-1]:.4g}, {results['simulation_time']:.4g} s of training)\n"
        f"  best   train {train[best]:.4e}   test {test[best]:.4e}   "
        f"(epoch {results['epochs'][best]:.4g})\n"
        f"  files  {path}, {path.with_suffix('.txt').name}{weights}{left}"
    )
