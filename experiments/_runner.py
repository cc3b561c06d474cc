"""The training loop that all problems and methods share."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import hig
from experiments import _names, _weights
from experiments._clock import TrainingClock
from experiments._evaluation import loss_per_sample, mean_loss, metrics
from experiments._learning_rate import factor, set_learning_rate
from experiments._machine import machine
from experiments._methods import METHODS, Method, Optimizer
from experiments._options import DTYPES, Options
from experiments._processes import Processes
from experiments._progress import Progress
from experiments._recorder import JacobianRecorder, Recorder
from experiments._schedule import schedule
from experiments._step import take_step
from experiments._weights import Pretraining, Snapshot
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

    A run that is interrupted from the keyboard or meets a non-finite loss ends early; what it
    has recorded is saved all the same and ``stopped`` tells the reason. So it is before an error
    is passed on that comes from the simulator, from the decomposition or for want of memory.

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
        OSError: If the output directory cannot be made or written.
        ProcessesError: If several processes cannot share the run; a `ValueError`.
        RuntimeError: If the simulator fails, or another of several processes.
        DecompositionError: If no decomposition of a Jacobian converges.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known are {', '.join(METHODS)}")
    if method not in problem.settings:
        raise ValueError(
            f"{problem.name} has no settings for {method!r}; "
            f"it has them for {', '.join(problem.settings)}"
        )
    if METHODS[method].several_losses and not isinstance(problem, SeveralLosses):
        raise ValueError(f"{method!r} needs several losses, and {problem.name} has one; try 'hig'")
    processes = Processes()
    processes.check(problem, METHODS[method])
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
    with Progress(label, options) as progress:
        stopped, failure = _train_to_the_end(training, progress)
    run_names = {"problem": problem.name, "method": method, "label": label, "seed": options.seed}
    results = {
        **run_names,
        "stopped": stopped,
        **({"tested_by": problem.tested_by} if problem.tested_by else {}),
        **_results(training),
        **_save_weights(training, path, run_names),
    }
    if processes.rank == 0:
        hig.save_results(path, results)
    _summarise(progress, results, path)
    processes.wait()
    if failure:
        raise failure
    return results


def _as_published(problem: Problem, method: str, settings: Settings) -> Settings:
    """Complete settings that are called published only if they are."""
    settings = METHODS[method].complete(settings)
    published = METHODS[method].complete(problem.settings[method])
    return settings if settings == published else replace(settings, published=False)


@dataclass
class _Training:
    """Everything that a run needs in one hand."""

    problem: Problem
    method: Method
    settings: Settings
    options: Options
    network: nn.Module
    optimizer: Optimizer
    train: dict[str, Tensor]
    test: dict[str, Tensor]
    batches: Iterator[Batch]
    clock: TrainingClock
    earlier: Pretraining | None
    average: AveragedModel | None
    processes: Processes
    latest: Snapshot | None = None
    recorder: Recorder = field(default_factory=Recorder)
    jacobian_recorder: JacobianRecorder = field(default_factory=JacobianRecorder)

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated and kept."""
        return self.network if self.average is None else self.average.module


def _prepare(
    problem: Problem,
    method: Method,
    settings: Settings,
    options: Options,
    earlier: Pretraining | None,
    processes: Processes,
) -> _Training:
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
    return _Training(
        problem,
        method,
        settings,
        options,
        network,
        method.optimizer(list(network.parameters()), settings, problem.loss_reduction),
        train,
        test,
        problem.batches(train, settings.batch_size, batches),
        TrainingClock(options.device, options.clock),
        earlier,
        _average(network, options),
        processes,
    )


def _check_shares(training: _Training) -> None:
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


def _train_to_the_end(training: _Training, progress: Progress) -> tuple[str, Exception | None]:
    """Train; returns why it ended, and the error to pass on once what is there is saved."""
    try:
        return _train(training, progress), None
    except hig.NonFiniteError as error:
        return f"non-finite: {error}", None
    except (KeyboardInterrupt, RuntimeError, hig.DecompositionError) as error:
        if not training.recorder.epochs:  # nothing to save yet
            raise
        if isinstance(error, KeyboardInterrupt):
            return "interrupted", None
        return f"failed: {error}", error


def _train(training: _Training, progress: Progress) -> str:
    """Step until the budget is used up; returns which budget it was."""
    _evaluate(training, progress, epoch=0.0)
    problem, clock, processes = training.problem, training.clock, training.processes
    steps_per_epoch = math.ceil(samples(training.train) / training.settings.batch_size)
    evaluations = schedule(problem, steps_per_epoch, training.options)
    for step, batch in enumerate(training.batches, start=1):
        epoch = step / steps_per_epoch
        _schedule_step_size(training, step - 1, (step - 1) / steps_per_epoch)
        with clock.running():
            loss = take_step(
                problem, training.method, training.network, training.optimizer, batch
            ).item()
            if training.average is not None:
                training.average.update_parameters(training.network)
        clock.seconds = processes.first(clock.seconds, training.options.device)
        _require_finite(loss, f"batch loss at epoch {epoch:.4g}", training)
        if training.method.jacobian:
            training.jacobian_recorder.step(
                (step - 1) / steps_per_epoch, clock.seconds, training.optimizer.report
            )
        progress.stepped(epoch, clock.seconds, loss_per_sample(problem, loss, batch))
        stop = _budget_used_up(training.options, epoch, clock.seconds)
        if evaluations.due(step, clock.seconds) or stop:
            _evaluate(training, progress, epoch)
        if stop:
            return stop
    raise AssertionError("batches never end")


def _schedule_step_size(training: _Training, step: int, epoch: float) -> None:
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


def _evaluate(training: _Training, progress: Progress, epoch: float) -> None:
    problem, network, seconds = training.problem, training.evaluated, training.clock.seconds
    losses = [mean_loss(problem, network, data) for data in (training.train, training.test)]
    measured = metrics(problem, network, training.test)
    # Those of an evaluation, whenever the run ends: within a step they may be half changed.
    training.latest = _weights.snapshot(network, seconds, losses[1])
    training.recorder.evaluation(epoch, seconds, *losses, measured, _conflict(training))
    progress.evaluated(*losses)
    _require_finite(losses[0], f"training loss at epoch {epoch:.4g}", training)


def _conflict(training: _Training) -> float:
    """The smallest cosine of the last combined direction with a loss's own; NaN without one."""
    if not training.method.several_losses:
        return math.nan
    holders = training.optimizer, getattr(training.optimizer, "operator", None)
    reports = [getattr(holder, "report", None) for holder in holders]
    return next((report.smallest_cosine for report in reports if report is not None), math.nan)


def _require_finite(loss: float, what: str, training: _Training) -> None:
    if not math.isfinite(loss):
        raise hig.NonFiniteError(
            f"the {what} is {loss}; the step size is {training.settings.lr:g}, "
            "try a smaller one with --lr, or --step-rule trust where the method has it"
        )


def _save_weights(training: _Training, path: Path, names: dict[str, object]) -> dict[str, str]:
    """Write the weights of the last evaluation, if asked for and finite; tells in which file."""
    wanted = training.options.save_weights and training.processes.rank == 0
    if not wanted or not training.latest.usable:
        return {}
    return {"weights_file": _weights.save(path, training.latest, names, training.earlier).name}


def _results(training: _Training) -> dict[str, object]:
    problem, options, earlier = training.problem, training.options, training.earlier
    settings = {key: value for key, value in asdict(training.settings).items() if value is not None}
    run_options = {key: value for key, value in asdict(options).items() if key != "quiet"}
    paths = {"out": str(options.out), "init_from": earlier and str(options.init_from)}
    return {
        **training.recorder.results(),
        **(training.jacobian_recorder.results() if training.method.jacobian else {}),
        **_pretraining(earlier),
        "sim_par": {**asdict(problem), **settings, **run_options, **paths},
        "machine": {**machine(options.device), "processes": training.processes.size},
        **_example(training),
    }


def _pretraining(earlier: Pretraining | None) -> dict[str, object]:
    return {"pretraining": earlier.label, "pretraining_time": earlier.seconds} if earlier else {}


def _example(training: _Training) -> dict[str, object]:
    """What the problem shows of the first test samples; left out where it shows nothing."""
    count = training.problem.examples
    batch = {key: value[:count] for key, value in training.test.items()}
    training.latest.put_into(training.network)
    training.network.eval()
    example = training.problem.example(training.network, batch)
    return {"example": example} if example else {}


def _summarise(progress: Progress, results: dict[str, object], path: Path) -> None:
    train, test = results["train_loss"], results["test_loss"]
    best = int(np.argmin(np.nan_to_num(test, nan=np.inf)))
    weights = ""
    if results["sim_par"]["save_weights"]:
        weights = f", {results.get('weights_file', 'no weights: they are not finite')}"
    progress.say(
        f"{results['label']} stopped: {results['stopped']}\n"
        f"  last   train {train[-1]:.4e}   test {test[-1]:.4e}   "
        f"(epoch {results['epochs'][-1]:.4g}, {results['simulation_time']:.4g} s of training)\n"
        f"  best   train {train[best]:.4e}   test {test[best]:.4e}   "
        f"(epoch {results['epochs'][best]:.4g})\n"
        f"  files  {path}, {path.with_suffix('.txt').name}{weights}"
    )
