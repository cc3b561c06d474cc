"""Loss over a whole data set."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from problems import Problem

CHUNK = 4096


def slices(data: dict[str, Tensor], size: int) -> Iterator[tuple[dict[str, Tensor], int]]:
    """Consecutive slices of a data set; the last one is shorter where ``size`` does not divide.

    Args:
        data: Tensors of equal leading dimension.
        size: Samples per slice.

    Yields:
        A slice of every tensor, and the number of samples in it.
    """
    total = len(next(iter(data.values())))
    for start in range(0, total, size):
        part = {key: value[start : start + size] for key, value in data.items()}
        yield part, min(size, total - start)


@torch.no_grad()
def mean_loss(
    problem: Problem, network: nn.Module, data: dict[str, Tensor], chunk: int = CHUNK
) -> float:
    """Mean loss per sample with the network in evaluation mode.

    Args:
        problem: Problem whose loss is a mean over samples.
        network: The network to evaluate; its mode is restored.
        data: Tensors of equal leading dimension.
        chunk: Samples evaluated at a time, which bounds the memory.

    Returns:
        Mean loss, added up in float64.
    """
    training = network.training
    network.eval()
    total, samples = 0.0, 0
    for batch, size in slices(data, chunk):
        total += problem.loss(problem.predict(network, batch), batch).double().item() * size
        samples += size
    network.train(training)
    return total / samples
