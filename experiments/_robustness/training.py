"""One run: fresh network and data of a seed, training for some seconds, test loss on the way."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

import hig
from experiments._methods import METHODS
from experiments._problems import make
from experiments._provenance import machine
from experiments._robustness.case import EARLY, Case, Record
from experiments._run.evaluation import mean_loss
from experiments._run.notes import Notes
from experiments._run.options import Options
from experiments._run.processes import Processes
from experiments._run.setup import DATA_STREAM, generator, prepare
from experiments._run.step import take_step
from experiments._run.training import Training
from problems import Batch, Problem, samples

# The same test set for all seeds, which the training of none of them has drawn.
TEST_SEED = 2**31
MOST_TESTED = 1024


def measure(case: Case, origin: Mapping[str, str]) -> Record:
    """Train once; only the steps count as training time, in processor time of one thread.

    A step that is refused with a `hig.NonFiniteError` or a `hig.DecompositionError` ends the run.

    Raises:
        BatchSizeError: The training data have fewer samples than the batch; a `ValueError`.
        DataError: The files of the problem cannot be read; a `ValueError`.
        ImportError: A package that the problem needs is not installed.
    """
    problem, method = make(case.problem), METHODS[case.method]
    training = _prepared(case, problem)
    network, test = training.network, training.test
    optimizer = case.variant.optimizer(problem, list(network.parameters()))
    notes = Notes()
    start, early, stopped = mean_loss(problem, network, test), None, "time"
    while training.clock.seconds < case.seconds:
        batch = next(training.batches)
        try:
            with training.clock.running():
                take_step(problem, method, network, optimizer, batch)
        except (hig.NonFiniteError, hig.DecompositionError) as error:
            stopped = f"{type(error).__name__}: {error}"
            break
        training.steps += 1
        notes.add(training.steps, optimizer.report.notes)
        if training.steps == EARLY:
            early = mean_loss(problem, network, test)
    end = mean_loss(problem, network, test) if stopped == "time" else None
    return Record(
        case=case,
        start=start,
        early=_finite(early),
        end=_finite(end),
        steps=training.steps,
        trained=training.clock.seconds,
        stopped=stopped,
        notes=notes.found,
        origin=dict(origin),
        machine=machine("cpu"),
    )


def _prepared(case: Case, problem: Problem) -> Training:
    """Build network, training data and batches of the seed, and the test set of all seeds."""
    settings = replace(problem.settings[case.method], batch_size=case.batch, published=False)
    options = Options(
        out=Path(),  # nothing is written by a run of this kind
        time_budget=case.seconds,
        seed=case.seed,
        dtype=case.dtype,
        threads=1,
        clock="processor",
        quiet=True,
    )
    training = prepare(problem, METHODS[case.method], settings, options, None, Processes())
    _, test = problem.data(generator(TEST_SEED, DATA_STREAM))
    like = training.test
    training.test = {name: few.to(like[name].dtype) for name, few in _spread(test).items()}
    return training


def _spread(data: Batch) -> dict[str, torch.Tensor]:
    """Select at most `MOST_TESTED` samples, evenly spread: neighbours on a grid are alike."""
    count = samples(data)
    chosen = torch.linspace(0, count - 1, min(count, MOST_TESTED), dtype=torch.float64)
    rows = chosen.round().long()
    return {name: values[rows] for name, values in data.items()}


def _finite(loss: float | None) -> float | None:
    return None if loss is None or not math.isfinite(loss) else loss
