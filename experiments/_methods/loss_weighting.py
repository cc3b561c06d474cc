"""Operators that weight the losses, to compare with conflict-free directions.

Each maps the gradients (m, P) of m losses, with their values, to a weighted sum of the gradients.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from hig.conflictfree import GradientOperator


class Weighting(GradientOperator):
    """A weighted sum of the gradients.

    Attributes:
        weights: (m,) float64 of the last step, None before.
    """

    weights: Tensor | None = None

    @abstractmethod
    def next_weights(self, losses: Tensor, gradients: Tensor) -> Tensor:
        """Weights (m,) for losses (m,) and gradients (m, P), all float64."""

    @torch.no_grad()
    def calculate_gradient(
        self, grads: Tensor | Sequence[Tensor], losses: Sequence | None = None
    ) -> Tensor:
        """The weighted sum (P,) of gradients (m, P); raises a ValueError without losses."""
        if losses is None:
            raise ValueError(f"{type(self).__name__} needs the losses, got None; pass losses=")
        gradients = grads if isinstance(grads, Tensor) else torch.stack(list(grads))
        values = torch.stack([torch.as_tensor(loss).detach().reshape(()) for loss in losses])
        self.weights = self.next_weights(values.to(gradients).double(), gradients.double())
        return self.weights.to(gradients) @ gradients

    def state_dict(self) -> dict:
        """Return the weights of the last step, which those of the next may depend on."""
        return {"weights": self.weights}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore a state."""
        self.weights = state_dict["weights"]


class MinMax(Weighting):
    """Weights that grow where losses are large: Adam *ascends* the weighted sum in the weights.

    Liu, Wang, *A dual-dimer method for training physics-constrained neural networks with minimax
    architecture*, Neural Networks 136 (2021).
    """

    def __init__(self, lr: float = 1e-3):
        self._lr = lr
        self._following: Tensor | None = None  # the weights of the next step
        self._adam: torch.optim.Adam | None = None

    def next_weights(self, losses: Tensor, gradients: Tensor) -> Tensor:
        """Return ones at first, then the weights after a step of Adam."""
        if self._adam is None:
            self._start(torch.ones_like(losses))
        weights = self._following.clone()
        self._following.grad = losses  # the derivative of the weighted sum by the weights
        self._adam.step()
        return weights

    def state_dict(self) -> dict:
        """Return the state, with the weights of the next step and Adam's moments of them."""
        adam = self._adam and self._adam.state_dict()
        return {**super().state_dict(), "following": self._following, "adam": adam}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore a state."""
        super().load_state_dict(state_dict)
        if state_dict["adam"] is None:
            self._following, self._adam = None, None
            return
        self._start(state_dict["following"].clone())
        self._adam.load_state_dict(state_dict["adam"])

    def _start(self, weights: Tensor) -> None:
        self._following = weights
        self._adam = torch.optim.Adam([weights], lr=self._lr, maximize=True)


class ReLoBRaLo(Weighting):
    r"""Relative loss balancing with random lookback.

    With :math:`s_i(t') = m\, \mathrm{softmax}_i(L_i(t) / (\tau L_i(t')))` the weights are
    :math:`\beta\, (\rho\, w_i + (1 - \rho)\, s_i(0)) + (1 - \beta)\, s_i(t - 1)`, where
    :math:`\rho` is drawn: 1 with its expectation as probability, else 0. Bischof, Kraus,
    *Multi-objective loss balancing for physics-informed deep learning*, arXiv 2110.09813.

    Args:
        beta: Weight of the past.
        temperature: τ.
        rho: Expectation of ρ.
        seed: Of the draws.
    """

    def __init__(
        self, beta: float = 0.999, temperature: float = 0.1, rho: float = 0.999, seed: int = 0
    ):
        self._beta, self._temperature, self._rho = beta, temperature, rho
        self._generator = torch.Generator().manual_seed(seed)
        self._first: Tensor | None = None
        self._last: Tensor | None = None

    def next_weights(self, losses: Tensor, gradients: Tensor) -> Tensor:
        """Return the weights, ones at first."""
        if self._first is None:
            self._first, weights = losses, torch.ones_like(losses)
        else:
            looks_back = torch.rand((), generator=self._generator) >= self._rho
            past = self._balance(losses, self._first) if looks_back else self.weights
            weights = self._beta * past + (1 - self._beta) * self._balance(losses, self._last)
        self._last = losses
        return weights

    def state_dict(self) -> dict:
        """Return the state, with the first and the last losses, and the state of the draws."""
        random = self._generator.get_state()
        own = {"first": self._first, "last": self._last, "random": random}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore a state."""
        super().load_state_dict(state_dict)
        self._first, self._last = state_dict["first"], state_dict["last"]
        self._generator.set_state(state_dict["random"].cpu())

    def _balance(self, losses: Tensor, earlier: Tensor) -> Tensor:
        tiny = torch.finfo(losses.dtype).tiny
        ratios = losses / (self._temperature * earlier.clamp_min(tiny))
        return len(losses) * torch.softmax(ratios, 0)


class LearningRateAnnealing(Weighting):
    r"""Weights that bring the gradients of all losses to the size of the first's.

    :math:`\hat w_i = \max |\nabla L_1| / \mathrm{mean} |\nabla L_i|`, averaged over the steps,
    where the past has the weight ``beta``; the first loss, that of the equation, keeps the weight
    1. Wang, Teng, Perdikaris, *Understanding and mitigating gradient flow pathologies in
    physics-informed neural networks*, SIAM J. Sci. Comput. 43 (2021).
    """

    def __init__(self, beta: float = 0.999):
        self._beta = beta

    def next_weights(self, losses: Tensor, gradients: Tensor) -> Tensor:
        """Return averages that start from ones."""
        sizes = gradients.abs()
        means = sizes[1:].mean(1)
        wanted = torch.where(means > 0, sizes[0].max() / means, 1.0)
        before = torch.ones_like(losses) if self.weights is None else self.weights
        averages = self._beta * before[1:] + (1 - self._beta) * wanted
        return torch.cat([before[:1], averages])
