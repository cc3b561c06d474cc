"""Networks and residuals whose Jacobians are measured; torch alone, for any revision of `hig`.

Each case has a network, inputs, and a prediction (B, ...) of both. Sizes are small:
some 500 to 2,500 parameters.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, vmap

Network = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """A prediction whose Jacobian is wanted.

    Attributes:
        title: what it is, for tables.
        network: the network.
        inputs: its inputs, of which one axis holds the samples.
        predict: takes network and inputs to the prediction (B, ...).
        samples_axis: the axis of the samples in the inputs.
        residual: the residual of one point, as torch.func differentiates it: takes the network and
            one sample; None for ``predict`` itself on one sample.
    """

    title: str
    network: nn.Module
    inputs: Tensor
    predict: Callable[[Network, Tensor], Tensor]
    samples_axis: int = 0
    residual: Callable[[Network, Tensor], Tensor] | None = None

    def prediction(self) -> Tensor:
        """Return the prediction of all samples."""
        return self.predict(self.network, self.inputs)

    def closure(self) -> tuple[Tensor, Tensor]:
        """Return half the mean square over the samples, and the prediction."""
        prediction = self.prediction()
        return 0.5 * prediction.square().sum() / len(prediction), prediction

    def by_transforms(self) -> Callable[[], Tensor]:
        """Return a function that computes J (n, P) by vmap and jacrev of torch.func."""
        weights = {name: p.detach() for name, p in self.network.named_parameters()}

        def output(weights: dict[str, Tensor], sample: Tensor) -> Tensor:
            def network(*inputs: Tensor) -> Tensor:
                return functional_call(self.network, weights, inputs)

            if self.residual is not None:
                return self.residual(network, sample).reshape(-1)
            return self.predict(network, sample.unsqueeze(self.samples_axis))[0].reshape(-1)

        function = vmap(jacrev(output), in_dims=(None, self.samples_axis))

        def jacobian() -> Tensor:
            parts = function(weights, self.inputs).values()
            return torch.cat([part.flatten(0, 1).flatten(1) for part in parts], 1)

        return jacobian


def _derivative(values: Tensor, points: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(values.sum(), points, create_graph=True)
    return found


def _burgers(network: Network, points: Tensor) -> Tensor:
    points = points.clone().requires_grad_()
    u = network(points)
    first = _derivative(u, points)
    second = _derivative(first[:, 0], points)[:, 0]
    return first[:, 1] + u[:, 0] * first[:, 0] - 0.01 * second


def _burgers_at(network: Network, point: Tensor) -> Tensor:
    def u(x: Tensor) -> Tensor:
        return network(x[None])[0, 0]

    first = grad(u)(point)
    return first[1] + u(point) * first[0] - 0.01 * hessian(u)(point)[0, 0]


def _poisson(network: Network, points: Tensor) -> Tensor:
    points = points.clone().requires_grad_()
    first = _derivative(network(points), points)
    return sum(_derivative(first[:, i], points)[:, i] for i in range(2)) + torch.ones(len(points))


def _poisson_at(network: Network, point: Tensor) -> Tensor:
    second = hessian(lambda x: network(x[None])[0, 0])(point)
    return second.trace() + 1


def _conditions(network: Network, points: Tensor) -> Tensor:
    """Residuals at 400 points, two of them each, and values at 100 and at 60 others."""
    inside = points[:400].clone().requires_grad_()
    u = network(inside)
    first = _derivative(u, inside)
    second = _derivative(first[:, 0], inside)[:, 0]
    residual = first[:, 1] + u[:, 0] * first[:, 0] - 0.01 * second
    return torch.cat(
        [
            residual,
            first[:, 0] * u[:, 0] - 1,
            network(points[400:500])[:, 0],
            network(points[500:])[:, 0],
        ]
    )


def _mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class _Cell(nn.Module):
    """A gated recurrent cell that corrects a state, eight times."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.GRUCell(3, 24), nn.Linear(24, 3)

    def forward(self, state: Tensor) -> Tensor:
        hidden, found = state.new_zeros(len(state), 24), []
        for _ in range(8):
            hidden = self.cell(state, hidden)
            state = state + 0.1 * self.out(hidden)
            found.append(state)
        return torch.stack(found, 1)


class _Fourier(nn.Module):
    """A Fourier neural operator of two layers, with complex weights."""

    def __init__(self, width: int = 6, modes: int = 8):
        super().__init__()
        self.lift, self.lower = nn.Linear(1, width), nn.Linear(width, 1)
        self.spectral = nn.ParameterList(
            torch.randn(width, width, modes, dtype=torch.complex64) / width for _ in range(2)
        )
        self.local = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(2))

    def forward(self, field: Tensor) -> Tensor:
        hidden = self.lift(field[..., None]).mT
        for weight, local in zip(self.spectral, self.local, strict=True):
            modes = torch.fft.rfft(hidden)
            low = torch.einsum("bix,iox->box", modes[..., : weight.shape[-1]], weight)
            padded = F.pad(low, (0, modes.shape[-1] - weight.shape[-1]))
            hidden = F.gelu(local(hidden) + torch.fft.irfft(padded, n=field.shape[-1]))
        return self.lower(hidden.mT)[..., 0]


class _Operator(nn.Module):
    """A deep operator network: its trunk is called once for all samples."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.trunk = _mlp(20, 32, 16), _mlp(1, 32, 16)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: Tensor) -> Tensor:
        points = torch.linspace(0, 1, 32)[:, None]
        return torch.einsum("bi,ni->bn", self.branch(inputs), self.trunk(points)) + self.bias


def _group_norm() -> nn.Sequential:
    def convolution(fan_in: int, fan_out: int) -> nn.Module:
        return nn.Conv1d(fan_in, fan_out, 5, padding=2)

    return nn.Sequential(
        convolution(1, 16), nn.GroupNorm(4, 16), nn.GELU(), convolution(16, 16),
        nn.GroupNorm(4, 16), nn.GELU(), convolution(16, 1),
    )  # fmt: skip


def _call(network: Network, inputs: Tensor) -> Tensor:
    return network(inputs)


def _flat(network: Network, inputs: Tensor) -> Tensor:
    return network(inputs).flatten(1)


def _time_first(network: Network, inputs: Tensor) -> Tensor:
    return network(inputs).transpose(0, 1)


def _points() -> Tensor:
    return torch.rand(560, 2, dtype=torch.float64)


MAKERS: Mapping[str, Callable[[], Case]] = MappingProxyType(
    {
        "pinn": lambda: Case(
            "PINN residuals, second derivatives", _mlp(2, 20, 20, 1).double(), _points(), _poisson,
            residual=_poisson_at,
        ),
        "pinn_burgers": lambda: Case(
            "PINN residuals of Burgers' equation", _mlp(2, 20, 20, 20, 1).double(), _points(),
            _burgers, residual=_burgers_at,
        ),
        "pinn_conditions": lambda: Case(
            "PINN, three conditions, two residuals at a point", _mlp(2, 20, 20, 1).double(),
            _points(), _conditions,
        ),
        "group_norm": lambda: Case(
            "convolutions with group norm", _group_norm(), torch.randn(8, 1, 24), _flat
        ),
        "recurrent_cell": lambda: Case("gated recurrent cell", _Cell(), torch.randn(12, 3), _call),
        "time_first": lambda: Case(
            "linear layers, time first", _mlp(3, 32, 32, 2), torch.randn(10, 12, 3), _time_first, 1
        ),
        "transformer": lambda: Case(
            "Transformer", nn.TransformerEncoderLayer(12, 2, 24, dropout=0.0, batch_first=True),
            torch.randn(8, 4, 12), _call,
        ),
        "fourier_operator": lambda: Case(
            "Fourier neural operator", _Fourier(), torch.randn(4, 64), _call
        ),
        "operator_network": lambda: Case(
            "deep operator network", _Operator(), torch.randn(8, 20), _call
        ),
    }
)  # fmt: skip


def make(name: str) -> Case:
    """Make a case, always with the same numbers."""
    torch.manual_seed(0)
    return MAKERS[name]()
