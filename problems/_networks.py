"""Fully connected networks with published initialisations."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn


def dense_network(
    widths: Sequence[int],
    activation: type[nn.Module],
    initialise: Callable[[Tensor], object] = nn.init.xavier_uniform_,
    bias: float = 0.0,
) -> nn.Sequential:
    """Fully connected network with a linear output layer.

    By default weights are Glorot-uniform and biases zero. These are the defaults of Keras, with
    which the published runs of half-inverse gradients were made; those of torch start from a
    smaller output and non-zero biases.

    Args:
        widths: Input width, hidden widths, output width; at least two positive numbers.
        activation: Module class put between the layers, such as ``nn.ReLU``.
        initialise: Draws a weight matrix, in place.
        bias: What all biases are.

    Returns:
        Alternating linear layers and activations, mapping (..., widths[0]) to (..., widths[-1]).

    Raises:
        ValueError: If there are fewer than two widths or one is not positive.
    """
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(
            f"widths must be at least two positive numbers, got {list(widths)}; "
            "give the input width first and the output width last"
        )
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        linear = nn.Linear(inputs, outputs)
        initialise(linear.weight)
        nn.init.constant_(linear.bias, bias)
        layers += [linear, activation()]
    return nn.Sequential(*layers[:-1])
