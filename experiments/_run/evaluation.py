"""Loss and metrics over a whole data set."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from problems import Batch, Problem, samples

CHUNK = 4096


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the mode of the network is restored."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(training)


def loss_per_sample(problem: Problem, loss: float, batch: Batch) -> float:
    """Convert the loss of a batch to the loss per sample, for either reduction."""
    return loss / samples(batch) if problem.loss_reduction == "sum" else loss


def mean_loss(problem: Problem, network: nn.Module, data: Batch, chunk: int = CHUNK) -> float:
    """Compute the recorded loss per sample, in evaluation mode, added up in float64.

    Samples are evaluated ``chunk`` at a time, which bounds the memory.
    """
    with evaluating(network):
        return problem.data_loss(network, data, chunk)


def metrics(problem: Problem, network: nn.Module, data: Batch) -> dict[str, np.ndarray]:
    """Compute the metrics of the problem, float64 by name, in evaluation mode."""
    with evaluating(network):
        values = problem.metrics(network, data)
    # Copies: a metric may be a part of the network, which is trained further.
    return {name: value.detach().double().cpu().numpy().copy() for name, value in values.items()}
