"""One training step of any method on any problem."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from experiments._methods import Method, Optimizer
from experiments._run.processes import Processes
from problems import Batch, Problem, Settings


def outputs_closure(
    problem: Problem, network: nn.Module, batch: Batch
) -> Callable[[], tuple[Tensor, Tensor]]:
    """Make the closure of a Jacobian method: loss and prediction of a batch."""

    def closure() -> tuple[Tensor, Tensor]:
        prediction = problem.predict(network, batch)
        return problem.loss(prediction, batch), prediction

    return closure


def take_step(
    problem: Problem, method: Method, network: nn.Module, optimizer: Optimizer, batch: Batch
) -> Tensor:
    """Take one optimiser step on a batch, or on this process's share of it.

    Returns:
        Scalar loss of the batch before the step, mean or sum over its samples as the problem has
        it, without a graph.
    """
    processes, whole = Processes(), problem.focus(network, batch)
    batch = processes.share(whole)
    if method.closure == "turns":
        count = len(problem.loss_names)
        return optimizer.step(lambda index: problem.single_loss(network, batch, index), count)

    def backward() -> Tensor:
        optimizer.zero_grad()
        loss = processes.weight(problem, batch, whole) * problem.batch_loss(network, batch)
        loss.backward()
        return processes.add_up(loss, network.parameters())

    closures = {
        "backward": backward,
        "outputs": outputs_closure(problem, network, batch),
        "losses": lambda: problem.losses(network, batch),
        "pairs": lambda: problem.loss_pairs(network, batch),
    }
    return optimizer.step(closures[method.closure]).detach()


def repeatable_step(
    problem: Problem, method: Method, network: nn.Module, settings: Settings, batch: Batch
) -> Callable[[], Tensor]:
    """Make a training step that always starts from the present weights, for timing.

    The step returns the loss before it.

    Step sizes that are meant for one batch size may diverge at another, or on one batch for long.
    """
    parameters = list(network.parameters())
    start = [parameter.detach().clone() for parameter in parameters]
    optimizer = method.optimizer(parameters, settings)

    def step() -> Tensor:
        with torch.no_grad():
            for parameter, value in zip(parameters, start, strict=True):
                parameter.copy_(value)
        return take_step(problem, method, network, optimizer, batch)

    return step
