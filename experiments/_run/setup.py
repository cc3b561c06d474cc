"""Setup of a run: network, data, batches and optimiser."""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from experiments._methods import Method
from experiments._run.batches import Batches
from experiments._run.clock import TrainingClock
from experiments._run.faults import Faults
from experiments._run.options import DTYPES, Options
from experiments._run.processes import Processes
from experiments._run.schedule import schedule
from experiments._run.training import Training
from experiments._run.weights import Pretraining
from problems import Batch, Problem, Settings, samples

# Streams of random numbers besides that of the initial weights, at every seed.
DATA_STREAM, BATCH_STREAM = 1, 2


def prepare(
    problem: Problem,
    method: Method,
    settings: Settings,
    options: Options,
    earlier: Pretraining | None,
    processes: Processes,
) -> Training:
    """Build a run before its first step; weights, data, batches follow from problem and seed."""
    target = {"device": options.device, "dtype": DTYPES[options.dtype]}
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    network = problem.network().to(**target)
    if earlier:
        earlier.put_into(network)
    train, test = problem.data(generator(options.seed, DATA_STREAM))
    train, test = _placed(train, **target), _placed(test, **target)
    batches = generator(options.seed, BATCH_STREAM + (earlier.runs if earlier else 0))
    optimizer = method.optimizer(list(network.parameters()), settings, problem.loss_reduction)
    average = _average(network, options)
    changing = [part for part in (network, optimizer, average) if part is not None]
    return Training(
        problem,
        method,
        settings,
        options,
        network,
        optimizer,
        train,
        test,
        Batches(problem, train, settings.batch_size, batches),
        schedule(problem, math.ceil(samples(train) / settings.batch_size), options),
        TrainingClock(options.device, options.clock),
        earlier,
        average,
        processes,
        Faults(options.on_fault, options.max_faults, changing),
    )


def _average(network: nn.Module, options: Options) -> AveragedModel | None:
    if options.average is None:
        return None
    average = get_ema_multi_avg_fn(options.average)
    return AveragedModel(network, multi_avg_fn=average, use_buffers=False)


def _placed(data: Batch, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Move data to the device, real numbers to the dtype; whole numbers keep theirs."""
    return {
        key: value.to(device, dtype if value.is_floating_point() else None)
        for key, value in data.items()
    }


def generator(seed: int, stream: int) -> torch.Generator:
    """Make an independent generator: equal seeds would give equal weights, data and batches."""
    state = np.random.SeedSequence((seed, stream)).generate_state(1)
    return torch.Generator().manual_seed(int(state[0]))


def check_shares(training: Training) -> None:
    """Refuse a last batch of an epoch with fewer samples than processes, before training."""
    if type(training.problem).batches is Problem.batches:
        last = samples(training.train) % training.settings.batch_size
        training.processes.share({key: value[-last:] for key, value in training.train.items()})
