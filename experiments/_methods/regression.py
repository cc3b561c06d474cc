"""A plain regression without a simulator, for comparisons of packages that take a network alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn

from problems import Batch, Problem, Settings


@dataclass(frozen=True)
class Regression(Problem):
    """A network of tanh layers that imitates another one of the same widths.

    Attributes:
        widths: Input width, hidden widths, output width.
        train_size: Number of training samples.
        time_budget: Not published; nothing trains on this problem for long.
    """

    widths: tuple[int, ...] = (16, 100, 100, 4)
    train_size: int = 1024
    time_budget: float = 60.0

    name: ClassVar[str] = "regression"
    settings: ClassVar[Mapping[str, Settings]] = MappingProxyType(
        {"lm": Settings(batch_size=128, lr=1.0, damping=1.0)}
    )

    def network(self) -> nn.Sequential:
        """Freshly initialised network, with the initialisation of torch."""
        layers: list[nn.Module] = []
        for inputs, outputs in zip(self.widths, self.widths[1:], strict=False):
            layers += [nn.Linear(inputs, outputs), nn.Tanh()]
        return nn.Sequential(*layers[:-1])

    def data(self, generator: torch.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Draw normal inputs, and the outputs of a random network of these widths.

        Returns:
            Training and test set, equally large: ``input`` (samples, widths[0]) and ``target``
            (samples, widths[-1]), float64.
        """
        weights = [
            torch.randn(shape, generator=generator, dtype=torch.float64) / shape[0] ** 0.5
            for shape in zip(self.widths, self.widths[1:], strict=False)
        ]

        def draw() -> dict[str, Tensor]:
            shape = (self.train_size, self.widths[0])
            inputs = torch.randn(shape, generator=generator, dtype=torch.float64)
            hidden = inputs
            for weight in weights[:-1]:
                hidden = torch.tanh(hidden @ weight)
            return {"input": inputs, "target": hidden @ weights[-1]}

        return draw(), draw()

    def predict(self, network: nn.Module, batch: Batch) -> Tensor:
        """Output of the network for ``input``: (B, widths[-1])."""
        return network(batch["input"])

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Squared distance to ``target``, summed over the outputs, mean over samples."""
        return (prediction - batch["target"]).square().sum(-1).mean()
