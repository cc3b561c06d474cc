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
    """The loss of a batch per sample, whether the problem takes the mean or the sum of them."""
    return loss / samples(batch) if problem.loss_reduction == "sum" else loss


def mean_loss(problem: Problem, network: nn.Module, data: Batch, chunk: int = CHUNK) -> float:
    """The loss that is recorded, with the network in evaluation mode.

    Args:
        problem: Says what is recorded; the mean loss per sample unless it has something else.
        network: The network to evaluate; its mode is restored.
        data: Training or test data of the problem.
        chunk: Samples evaluated at a time, which bounds the memory.

    Returns:
        Loss per sample, added up in float64.
    """
    with evaluating(network):
        return problem.data_loss(network, data, chunk)


def metrics(problem: Problem, network: nn.Module, data: Batch) -> dict[str, np.ndarray]:
    """The metrics of the problem with the network in evaluation mode.

    Args:
        problem: Problem with any metrics, or none.
        network: The network to evaluate; its mode is restored.
        data: Tensors of equal leading dimension, all evaluated at once.

    Returns:
        float64 arrays by name, of the shapes that the problem gives them.
    """
    with evaluating(network):
        values = problem.metrics(network, data)
    # Copies: what a problem measures may be a part of the network, which trains on.
    return {name: value.detach().double().cpu().numpy().copy() for name, value in values.items()}
