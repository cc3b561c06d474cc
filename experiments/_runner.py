"""The training loop that all problems and methods share."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import hig
from experiments import _names
from experiments._clock import TrainingClock
from experiments._evaluation import mean_loss, slices
from experiments._machine import machine
from experiments._methods import METHODS, Method, Optimizer
from experiments._options import DTYPES, Options
from experiments._progress import Progress
from experiments._recorder import JacobianRecorder, Recorder
from problems import Problem, Settings

EXAMPLES = 3


def run(problem: Problem, method: str, settings: Settings, options: Options) -> dict[str, object]:
    """Train a network on a problem and save the results.

    Initial weights and data depend on the problem and the seed alone: at equal seed every method
    starts from the same point and sees the same batches, which are fixed consecutive slices.

    A run that is interrupted from the keyboard or meets a non-finite loss ends early; what it
    has recorded is saved all the same and ``stopped`` tells the reason.

    Args:
        problem: What to train on.
        method: A name in the table of methods, such as ``"hig"``.
        settings: Batch size, step size and so on of the method.
        options: Length, seed, device, dtype and output directory.

    Returns:
        The saved dict, in numpy arrays and plain Python.

    Raises:
        ValueError: If the method is unknown or refuses its settings.
        OSError: If the output directory cannot be made or written.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known are {', '.join(METHODS)}")
    differences = _names.deviations(problem, method, settings, options)
    path = _names.path(problem, method, differences, options)
    path.parent.mkdir(parents=True, exist_ok=True)  # before hours of training, not after
    training = _prepare(problem, METHODS[method], settings, options)
    with Progress(_names.label(method, differences), options) as progress:
        try:
            stopped = _train(training, progress)
        except KeyboardInterrupt:
            if not training.recorder.epochs:  # nothing to save yet
                raise
            stopped = "interrupted"
        except hig.NonFiniteError as error:
            stopped = f"non-finite: {error}"
    results = {
        "problem": problem.name,
        "method": method,
        "label": _names.label(method, differences),
        "seed": options.seed,
        "stopped": stopped,
        **_results(training),
    }
    hig.save_results(path, results)
    _summarise(progress, results, path)
    return results


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
    clock: TrainingClock
    recorder: Recorder = field(default_factory=Recorder)
    jacobian_recorder: JacobianRecorder = field(default_factory=JacobianRecorder)


def _prepare(problem: Problem, method: Method, settings: Settings, options: Options) -> _Training:
    target = {"device": options.device, "dtype": DTYPES[options.dtype]}
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    network = problem.network().to(**target)
    # Another seed than that of the weights: equal ones would give equal random numbers.
    data_seed = int(np.random.SeedSequence((options.seed, 1)).generate_state(1)[0])
    train, test = problem.data(torch.Generator().manual_seed(data_seed))
    return _Training(
        problem,
        method,
        method.complete(settings),
        options,
        network,
        method.optimizer(list(network.parameters()), settings),
        {key: value.to(**target) for key, value in train.items()},
        {key: value.to(**target) for key, value in test.items()},
        TrainingClock(options.device),
    )


def _train(training: _Training, progress: Progress) -> str:
    """Step until the budget is used up; returns which budget it was."""
    _evaluate(training, progress, epoch=0.0)
    clock, size = training.clock, training.settings.batch_size
    steps_per_epoch = math.ceil(len(next(iter(training.train.values()))) / size)
    for step, batch in enumerate(_endless(training.train, size), start=1):
        epoch = step / steps_per_epoch
        with clock.running():
            loss = _take_step(training, batch)
        _require_finite(loss, f"batch loss at epoch {epoch:.4g}", training)
        if training.method.jacobian:
            training.jacobian_recorder.step(
                (step - 1) / steps_per_epoch, clock.seconds, training.optimizer.report
            )
        progress.stepped(epoch, clock.seconds, loss)
        stop = _budget_used_up(training.options, epoch, clock.seconds)
        if stop or step % steps_per_epoch == 0:
            _evaluate(training, progress, epoch)
        if stop:
            return stop
    raise AssertionError("batches never end")


def _endless(data: dict[str, Tensor], size: int) -> Iterator[dict[str, Tensor]]:
    while True:
        for batch, _ in slices(data, size):
            yield batch


def _budget_used_up(options: Options, epoch: float, seconds: float) -> str | None:
    if options.epochs is not None and epoch >= options.epochs:
        return "epochs"
    if options.time_budget is not None and seconds >= options.time_budget:
        return "time budget"
    return None


def _take_step(training: _Training, batch: dict[str, Tensor]) -> float:
    """One step of the optimiser; returns the loss of the batch before it."""
    problem, optimizer = training.problem, training.optimizer

    def evaluate() -> tuple[Tensor, Tensor]:
        prediction = problem.predict(training.network, batch)
        return problem.loss(prediction, batch), prediction

    def evaluate_backward() -> Tensor:
        optimizer.zero_grad()
        loss, _ = evaluate()
        loss.backward()
        return loss

    loss = optimizer.step(evaluate if training.method.jacobian else evaluate_backward)
    return loss.detach().item()


def _evaluate(training: _Training, progress: Progress, epoch: float) -> None:
    losses = [
        mean_loss(training.problem, training.network, data)
        for data in (training.train, training.test)
    ]
    training.recorder.evaluation(epoch, training.clock.seconds, *losses)
    progress.evaluated(*losses)
    _require_finite(losses[0], f"training loss at epoch {epoch:.4g}", training)


def _require_finite(loss: float, what: str, training: _Training) -> None:
    if not math.isfinite(loss):
        raise hig.NonFiniteError(
            f"the {what} is {loss}; the step size is {training.settings.lr:g}, "
            "try a smaller one with --lr, or --step-rule trust where the method has it"
        )


def _results(training: _Training) -> dict[str, object]:
    problem, options = training.problem, training.options
    samples = {key: value[:EXAMPLES] for key, value in training.test.items()}
    training.network.eval()
    settings = {key: value for key, value in asdict(training.settings).items() if value is not None}
    run_options = {key: value for key, value in asdict(options).items() if key != "quiet"}
    return {
        **training.recorder.results(),
        **(training.jacobian_recorder.results() if training.method.jacobian else {}),
        "sim_par": {**asdict(problem), **settings, **run_options, "out": str(options.out)},
        "machine": machine(options.device),
        "example": problem.example(training.network, samples),
    }


def _summarise(progress: Progress, results: dict[str, object], path: Path) -> None:
    train, test = results["train_loss"], results["test_loss"]
    best = int(np.argmin(np.nan_to_num(test, nan=np.inf)))
    progress.say(
        f"{results['label']} stopped: {results['stopped']}\n"
        f"  last   train {train[-1]:.4e}   test {test[-1]:.4e}   "
        f"(epoch {results['epochs'][-1]:.4g}, {results['simulation_time']:.4g} s of training)\n"
        f"  best   train {train[best]:.4e}   test {test[best]:.4e}   "
        f"(epoch {results['epochs'][best]:.4g})\n"
        f"  files  {path}, {path.with_suffix('.txt').name}"
    )
