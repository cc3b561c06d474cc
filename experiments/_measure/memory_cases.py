"""Steps whose backward passes hold far more, or far less, than the gradients asked for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from experiments._measure.scaling_cases import Case


@dataclass(frozen=True)
class MemoryCase:
    """A case at the size that is measured.

    Attributes:
        title: name in the table.
        build: makes it for a number of samples and an extent, see the functions.
        samples: B.
        extent: the other number.
        engine: how the Jacobian is obtained.
    """

    title: str
    build: Callable[[int, int], Case]
    samples: int
    extent: int
    engine: str


def equation_case(points: int, width: int) -> Case:
    """A physics-informed network in float64, derivatives by autograd."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(2, width), nn.Tanh()]
    for _ in range(3):
        layers += [nn.Linear(width, width), nn.Tanh()]
    network = nn.Sequential(*layers, nn.Linear(width, 1)).double()
    places = torch.rand(points, 2, dtype=torch.float64)

    def closure() -> tuple[Tensor, Tensor]:
        x = places.clone().requires_grad_()
        u = network(x)
        (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first[:, 0].sum(), x, create_graph=True)
        residual = first[:, 1:] + u * first[:, :1] - 0.01 * second[:, :1]
        return 0.5 * residual.square().sum(), residual

    return Case(network, closure, points)


def field_case(samples: int, extent: int) -> Case:
    """Two fields (extent, extent) per sample from a small convolution network, 882 weights."""
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(*channels, 3, padding=1) for channels in ((2, 8), (8, 8), (8, 2))]
    first, second, third = convolutions
    network = nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), third)
    inputs = torch.randn(samples, 2, extent, extent)

    def closure() -> tuple[Tensor, Tensor]:
        fields = network(inputs)
        return fields.square().mean(), fields

    return Case(network, closure, 2 * samples * extent**2)


def loop_case(samples: int, extent: int) -> Case:
    """A time loop over ``extent`` >= 32 numbers, steered by four; its first 32 are wanted."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 4))
    inputs, shapes = torch.randn(samples, 3), torch.randn(4, extent)

    def closure() -> tuple[Tensor, Tensor]:
        force, state = network(inputs) @ shapes, torch.zeros(samples, extent)
        for _ in range(20):
            state = state + 0.1 * torch.sin(state.roll(1, 1) - state) + 0.01 * force
        wanted = state[:, :32]
        return wanted.square().mean(), wanted

    return Case(network, closure, 32 * samples)


MEMORY_CASES: Mapping[str, MemoryCase] = MappingProxyType(
    {
        "equation": MemoryCase("PINN, 800 points", equation_case, 800, 50, "auto"),
        "equation_rows": MemoryCase("PINN, 800 points, by rows", equation_case, 800, 50, "rows"),
        "fields": MemoryCase("4 fields of 32 × 32", field_case, 4, 32, "auto"),
        "fields_rows": MemoryCase("4 fields of 32 × 32, by rows", field_case, 4, 32, "rows"),
        "large_fields": MemoryCase("2 fields of 64 × 64", field_case, 2, 64, "auto"),
        "large_fields_rows": MemoryCase("2 fields of 64 × 64, by rows", field_case, 2, 64, "rows"),
        "one_field": MemoryCase("1 field of 64 × 64", field_case, 1, 64, "auto"),
        "loop": MemoryCase("loop over 4 states of 40,000", loop_case, 4, 40_000, "auto"),
        "loop_rows": MemoryCase(
            "loop over 4 states of 40,000, by rows", loop_case, 4, 40_000, "rows"
        ),
    }
)
