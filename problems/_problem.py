"""What a problem offers to whoever trains on it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Settings:
    """How one method steps on one problem; None stands for the default of the method.

    Attributes:
        batch_size: Samples per step.
        lr: Step size η.
        rcond: Relative cut-off of the singular values; truncating Jacobian methods only.
        kappa: Exponent of the singular values; HIG only.
        damping: Initial damping; Levenberg–Marquardt only.
        engine: How the Jacobian is obtained; Jacobian methods only.
        step_rule: ``"fixed"``, ``"trust"`` or ``"line_search"``; Jacobian methods only.
        published: True for values from the publication of the problem, False for our own choice.
    """

    batch_size: int
    lr: float
    rcond: float | None = None
    kappa: float | None = None
    damping: float | None = None
    engine: str | None = None
    step_rule: str | None = None
    published: bool = False


class Problem(Protocol):
    """A differentiable simulator with a network in front of it, data, and a loss.

    Problems are frozen dataclasses; their fields are the physical and numerical parameters.
    """

    @property
    def name(self) -> str:
        """Identifier used in file names, such as ``"nonlinear_oscillators"``."""

    @property
    def time_budget(self) -> float:
        """Published training time in seconds."""

    @property
    def settings(self) -> Mapping[str, Settings]:
        """Settings per method name."""

    def network(self) -> nn.Module:
        """A freshly initialised network, drawn from torch's global generator."""

    def data(self, generator: torch.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Training and test data, float64 on the CPU, equal leading dimension per dict."""

    def predict(self, network: nn.Module, batch: Batch) -> Tensor:
        """Simulated outcome (B, ...) of what the network decides for each of the B samples."""

    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Mean loss over the samples, a scalar."""

    def example(self, network: nn.Module, batch: Batch) -> dict[str, np.ndarray | list[str]]:
        """What figures show of a trained network, in numpy arrays and plain Python."""
