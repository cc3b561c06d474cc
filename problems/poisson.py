r"""A network that solves Poisson's equation, trained through its residual.

The network sees the right-hand side y of :math:`\Delta x = y` and returns x; the Laplacian of its
answer is compared with y. The Laplacian scales smooth fields by a small factor and rough ones by a
large one, which makes the problem badly conditioned.

Published in Schnell, Holl, Thuerey, *Half-Inverse Gradients for Physical Deep Learning*,
ICLR 2022.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from problems._fields import field, noise, on_grid
from problems._networks import dense_network
from problems._problem import Batch, Problem, Settings, parameter, require_positive_numbers

# Fresh samples are drawn so many at a time: a batch of 64 for itself would cost more than what an
# Adam step computes, most of it for calling PhiFlow.
POOL = 1024


@dataclass(frozen=True)
class Poisson(Problem):
    r"""Poisson's equation :math:`\Delta x = y` on a square grid of unit cells.

    The five-point Laplacian of PhiFlow's `CenteredGrid`, with zeros outside the grid. Solutions x
    are smooth noise, PhiFlow's ``Noise()``, and :math:`y = \Delta x`. Every training step draws
    fresh ones; the training data below serve the evaluation.

    The network sees y as a vector, the second axis of the grid running fastest, and returns x in
    the same order.

    Attributes:
        size: Cells per side of the grid.
        hidden: Widths of the hidden layers.
        train_size: Number of samples on which the training loss is evaluated.
        test_size: Number of test samples.
        metric: Take gradients of the loss in the metric :math:`M = (L L^T)^{-1/4}` of the residual,
            with L the physics, which weighs rough and smooth residuals more alike. The value of
            the loss stays as it is; step rules that compare the two take ever shorter steps.
        time_budget: Training time in seconds; ours, the publication gives none.
    """

    size: int = parameter(8, "cells per side of the grid")
    hidden: tuple[int, ...] = (64, 128, 64)
    train_size: int = parameter(1024, "samples on which the training loss is evaluated")
    test_size: int = parameter(1024, "test samples")
    metric: bool = parameter(False, "weigh rough and smooth residuals more alike, in gradients")
    time_budget: float = 600.0

    name: ClassVar[str] = "poisson"
    quantity: ClassVar[str] = "solution"  # what the network returns
    inverse: ClassVar[bool] = False  # whether the physics is the inverse of the Laplacian
    loss_reduction: ClassVar[Literal["mean", "sum"]] = "sum"
    evaluate_by: ClassVar[Literal["epoch", "time"]] = "time"
    traceable: ClassVar[bool] = False  # PhiFlow looks at values
    settings: ClassVar[Mapping[str, Settings]] = MappingProxyType(
        {
            "hig": Settings(batch_size=64, lr=0.01, rcond=1e-5, published=True),
            "adam": Settings(batch_size=64, lr=3e-4, published=True),
            # Our own choice, from short trials; those of Jacobian methods had batches of 8. The
            # loss is half a sum of squares: 1 is the full step of Gauss–Newton, at any batch size.
            "gn": Settings(batch_size=64, lr=0.1, rcond=1e-5),
            "lm": Settings(batch_size=64, lr=1.0, damping=1.0),
            "sgd": Settings(batch_size=64, lr=1e-4),
            "adagrad": Settings(batch_size=64, lr=0.03),
            "adadelta": Settings(batch_size=64, lr=1.0),
            "rmsprop": Settings(batch_size=64, lr=2e-3),
            # A large batch: from one small batch to the next L-BFGS diverges.
            "lbfgs": Settings(batch_size=1024, lr=1.0),
            "khig": Settings(batch_size=64, lr=3e-3, kappa=-0.5, damping=0.1, schedule="cosine"),
            "soap": Settings(batch_size=64, lr=3e-3),
            "muon": Settings(batch_size=64, lr=1e-2),
        }
    )

    def __post_init__(self):
        require_positive_numbers(self)
        if self.size < 2:
            raise ValueError(
                f"size must be at least 2, got {self.size}; noise on a single cell has no scale"
            )

    def network(self) -> nn.Sequential:
        """Freshly initialised tanh network from y (…, size²) to x (…, size²)."""
        cells = self.size**2
        return dense_network([cells, *self.hidden, cells], nn.Tanh)

    def physics(self, fields: Tensor) -> Tensor:
        """Laplacian (B, size, size) of fields (B, size, size)."""
        return on_grid(field.laplace, fields)

    def data(self, generator: torch.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Draw training and test set, ``truth`` and ``target``, float64 (samples, size, size).

        The network shall find the truth; it sees the target, which the physics shall make of its
        answer.
        """
        return self._draw(self.train_size, generator), self._draw(self.test_size, generator)

    def batches(self, train: Batch, size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Batches without end of samples not seen before, (size, self.size, self.size).

        Of ``train`` dtype and device count; the state of the generator alone decides the samples.
        """
        samples = max(POOL // size, 1) * size
        while True:
            pool = self._draw(samples, generator)
            pool = {name: values.to(train[name]) for name, values in pool.items()}
            for start in range(0, samples, size):
                yield {name: values[start : start + size] for name, values in pool.items()}

    def predict(self, network: nn.Module, batch: Batch) -> Tensor:
        """Return the state that follows from the network's answer.

        Args:
            network: Maps (B, size²) to (B, size²).
            batch: ``target`` (B, size, size), of the network's dtype and device.

        Returns:
            Fields (B, size, size) to compare with the target.
        """
        return self.physics(_answer(network, batch))

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Half the squared distance to the ``target``, *summed* over cells and samples."""
        residual = prediction - batch["target"]
        loss = 0.5 * residual.square().sum()
        if self.metric:
            weighed = 0.5 * self.metric_root(residual).square().sum()
            # The value stays as it is, the gradient is that of the weighed residual.
            loss = loss.detach() + (weighed - weighed.detach())
        return loss

    def metric_root(self, fields: Tensor) -> Tensor:
        """The symmetric root of the metric, :math:`(L L^T)^{-1/8}`, of fields (B, size, size).

        Sines are the eigenvectors of the five-point Laplacian with zeros outside. To weigh the
        probe of :class:`hig.KroneckerHIG`, give it this as ``metric_root``.
        """
        index = torch.arange(1, self.size + 1, dtype=fields.dtype, device=fields.device)
        angle = torch.pi / (self.size + 1)
        sines = torch.sin(angle * index[:, None] * index) * (2 / (self.size + 1)) ** 0.5
        along = 4 * torch.sin(0.5 * angle * index).square()
        # The eigenvalues of the Laplacian are minus these sums.
        weights = (along[:, None] + along).pow(0.25 if self.inverse else -0.25)
        return sines @ (weights * (sines @ fields @ sines)) @ sines

    @torch.no_grad()
    def metrics(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Distance of the network's answer to the truth.

        Args:
            network: Maps (B, size²) to (B, size²).
            batch: ``truth`` and ``target``, both (B, size, size).

        Returns:
            ``l1_distance``, the absolute difference, mean over cells and samples; a scalar.
        """
        return {"l1_distance": (_answer(network, batch) - batch["truth"]).abs().mean()}

    @torch.no_grad()
    def example(self, network: nn.Module, batch: Batch) -> dict[str, np.ndarray | list[str] | str]:
        """Answers of the network next to the truth, for figures.

        Args:
            network: Maps (k, size²) to (k, size²).
            batch: ``truth`` and ``target``, both (k, size, size).

        Returns:
            ``truth`` and ``prediction`` (k, size, size), float64, and their ``quantity``.
        """
        return {
            "truth": batch["truth"].double().cpu().numpy(),
            "prediction": _answer(network, batch).double().cpu().numpy(),
            "quantity": self.quantity,
        }

    def _draw(self, samples: int, generator: torch.Generator) -> dict[str, Tensor]:
        truth = noise(samples, self.size, generator)
        with torch.no_grad():
            return {"truth": truth, "target": self.physics(truth)}


def _answer(network: nn.Module, batch: Batch) -> Tensor:
    """Fields (B, size, size) that the network returns for the target."""
    return network(batch["target"].flatten(1)).view_as(batch["target"])
