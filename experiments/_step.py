"""One training step of any method on any problem."""

from torch import Tensor, nn

from experiments._evaluation import Batch
from experiments._methods import Method, Optimizer
from problems import Problem


def take_step(
    problem: Problem, method: Method, network: nn.Module, optimizer: Optimizer, batch: Batch
) -> Tensor:
    """Let the optimiser step once on a batch.

    Args:
        problem: What to train on.
        method: The method of the optimiser, which tells what closure it takes.
        network: The network, whose parameters the optimiser has.
        optimizer: Takes the step.
        batch: Tensors of equal leading dimension, of the network's dtype and device.

    Returns:
        Scalar loss of the batch before the step, mean or sum over its samples as the problem has
        it, without a graph.
    """

    def evaluate() -> tuple[Tensor, Tensor]:
        prediction = problem.predict(network, batch)
        return problem.loss(prediction, batch), prediction

    def evaluate_backward() -> Tensor:
        optimizer.zero_grad()
        loss, _ = evaluate()
        loss.backward()
        return loss

    return optimizer.step(evaluate if method.jacobian else evaluate_backward).detach()
