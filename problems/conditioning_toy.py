"""A toy problem whose conditioning is set by one number.

A small network fits two functions of one variable, and a "simulator" scales the second output by
λ before it is compared with its target. At λ = 1 both outputs train alike; at λ = 0.01 the second
one has a Jacobian a hundred times smaller than the first.

Published in Schnell, Holl, Thuerey, *Half-Inverse Gradients for Physical Deep Learning*,
ICLR 2022, for λ = 1 and λ = 0.01.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from problems._constants import constant
from problems._networks import dense_network
from problems._problem import Batch, Problem, Settings, parameter, require_positive_numbers


@dataclass(frozen=True)
class ConditioningToy(Problem):
    r"""Regression of (sin 6x, cos 9x) through a simulator that scales the second output.

    The network maps x to :math:`(y_1, y_2)`, the simulator that to :math:`(y_1, \lambda y_2)`,
    and the loss is, in the mean over the samples,

    .. math::
        L = \tfrac12 (y_1 - \sin 6x)^2 + \tfrac12 (\lambda y_2 - \cos 9x)^2.

    Samples x are uniform in [-1, 1).

    Attributes:
        scale: λ; 0.01 is the badly conditioned case of the publication, 1 the well conditioned.
        train_size: Number of training samples.
        test_size: Number of test samples.
        time_budget: Published training time in seconds.
        hidden: Widths of the hidden layers.
    """

    scale: float = parameter(0.01, "what the simulator scales the second output by, λ")
    train_size: int = parameter(1024, "training samples")
    test_size: int = parameter(1024, "test samples")
    time_budget: float = 20.0
    hidden: tuple[int, ...] = (7,)

    name: ClassVar[str] = "conditioning_toy"
    examples: ClassVar[int] = 256  # enough to draw the functions
    evaluate_by: ClassVar[Literal["epoch", "time"]] = "time"
    settings: ClassVar[Mapping[str, Settings]] = MappingProxyType(
        {
            # The published losses come without their settings: these are our own choice.
            "hig": Settings(batch_size=128, lr=1.0, rcond=1e-6),
            # The exponent alone differs from HIG. Gauss–Newton then saturates neurons; a cut-off of
            # 1e-3 or 1e-4 keeps it from that, at the cost of the second output at λ = 0.01.
            "gn": Settings(batch_size=128, lr=1.0, rcond=1e-6),
            # The loss is half the mean of squares: 128 is the full step for batches of 128.
            "lm": Settings(batch_size=128, lr=128.0, damping=1.0),
            "adam": Settings(batch_size=128, lr=1e-3),
            "soap": Settings(batch_size=128, lr=1e-2),
            "khig": Settings(batch_size=128, lr=3e-3, schedule="cosine"),
            "muon": Settings(batch_size=128, lr=1e-2),
            "lbfgs": Settings(batch_size=1024, lr=1.0),
        }
    )

    def __post_init__(self):
        require_positive_numbers(self)

    def network(self) -> nn.Sequential:
        """Freshly initialised tanh network from x (…, 1) to the two outputs (…, 2)."""
        return dense_network([1, *self.hidden, 2], nn.Tanh)

    def data(self, generator: torch.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Draw training and test set, ``x`` (samples, 1), ``target`` (samples, 2); float64."""

        def draw(samples: int) -> dict[str, Tensor]:
            x = 2 * torch.rand(samples, 1, generator=generator, dtype=torch.float64) - 1
            return {"x": x, "target": torch.cat([(6 * x).sin(), (9 * x).cos()], 1)}

        return draw(self.train_size), draw(self.test_size)

    def predict(self, network: nn.Module, batch: Batch) -> Tensor:
        """Simulate the network's outputs.

        Args:
            network: Maps x (B, 1) to outputs (B, 2).
            batch: ``x`` (B, 1), of the network's dtype and device.

        Returns:
            (y_1, λ y_2) as (B, 2).
        """
        outputs = network(batch["x"])
        return outputs * constant((1.0, self.scale), outputs.dtype, outputs.device)

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Half the squared distance to the ``target`` (B, 2), mean over samples."""
        return 0.5 * (prediction - batch["target"]).square().sum(-1).mean()

    def metrics(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Activations of the first hidden layer, which show whether its neurons are saturated.

        Args:
            network: A network of `network`.
            batch: ``x`` (B, 1).

        Returns:
            ``activation_mean`` and ``activation_spread``, mean and standard deviation over the
            samples for each of the H neurons, both (H,).
        """
        activations = network[:2](batch["x"])
        return {
            "activation_mean": activations.mean(0),
            "activation_spread": activations.std(0, correction=0),
        }

    @torch.no_grad()
    def example(self, network: nn.Module, batch: Batch) -> dict[str, np.ndarray]:
        """The fitted functions, for figures.

        Args:
            network: Maps x (k, 1) to outputs (k, 2).
            batch: ``x`` (k, 1) and ``target`` (k, 2).

        Returns:
            ``x`` (k,), ascending, ``prediction`` (k, 2), scaled, and ``target`` (k, 2); float64.
        """
        order = batch["x"][:, 0].argsort()
        arrays = {
            "x": batch["x"][:, 0],
            "prediction": self.predict(network, batch),
            "target": batch["target"],
        }
        return {name: array[order].double().cpu().numpy() for name, array in arrays.items()}
