"""Synthetic problems of any size, to see how a step grows."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from experiments._measure.unet import UNet

INPUTS, OUTPUTS = 16, 4
# Of the outputs: a simulator that scales its directions this differently is why one takes HIG.
SCALES = torch.logspace(0, -3, OUTPUTS)


@dataclass(frozen=True)
class Case:
    """A network, a simulator behind it, and a batch.

    Attributes:
        network: in float32.
        closure: returns ``(loss, prediction)``.
        rows: n of the Jacobian.
    """

    network: nn.Module
    closure: Callable[[], tuple[Tensor, Tensor]]
    rows: int


def dense_case(rows: int, parameters: int, device: str) -> Case:
    """A network of two hidden layers on random data, four outputs (rows) per sample.

    The number of parameters is met to two per cent from 1e4 on.

    Raises:
        ValueError: the rows are not a multiple of the outputs.
    """
    if rows % OUTPUTS:
        raise ValueError(f"rows must be a multiple of {OUTPUTS}, got {rows}; try {4 * rows}")
    # w² + (inputs + outputs + 2) w + outputs = parameters
    half = (INPUTS + OUTPUTS + 2) / 2
    width = max(1, round(math.sqrt(half**2 + parameters - OUTPUTS) - half))
    torch.manual_seed(0)
    sizes = [INPUTS, width, width, OUTPUTS]
    layers = [nn.Linear(*pair) for pair in pairwise(sizes)]
    network = nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2]).to(device)
    inputs = torch.randn(rows // OUTPUTS, INPUTS).to(device)
    scales = SCALES.to(device)
    return _least_squares(network, inputs, lambda found: found * scales, rows)


def field_case(samples: int, device: str, size: int = 64) -> Case:
    """A U-Net that controls fields of ``size`` × ``size``, which then diffuse implicitly.

    Each sample has that many rows; the size is a multiple of four.
    """
    torch.manual_seed(0)
    network = UNet(channels=1, width=16).to(device)
    fields = torch.randn(samples, 1, size, size).to(device)
    waves = 2 * math.pi * torch.fft.fftfreq(size, 1 / size).to(device)
    # Backward Euler for u_t = ν Δu on the periodic unit square.
    factor = 1 / (1 + 1e-3 * (waves[:, None] ** 2 + waves[None, : size // 2 + 1] ** 2))

    def diffuse(found: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(found) * factor, s=(size, size))

    return _least_squares(network, fields, diffuse, samples * size**2)


def side_of(outputs: int) -> int:
    """Return the side of a field with so many points.

    Raises:
        ValueError: it is not a multiple of four.
    """
    side = math.isqrt(outputs)
    if side**2 != outputs or side % 4:
        near = max(4, 4 * round(outputs**0.5 / 4)) ** 2
        raise ValueError(
            f"outputs must be those of a square field whose side is a multiple of four, got "
            f"{outputs}; try {near}"
        )
    return side


def _least_squares(
    network: nn.Module, inputs: Tensor, simulate: Callable[[Tensor], Tensor], rows: int
) -> Case:
    def closure() -> tuple[Tensor, Tensor]:
        prediction = simulate(network(inputs))
        return 0.5 * (prediction - 1).square().flatten(1).sum(1).mean(), prediction

    return Case(network, closure, rows)
