"""Trials along one direction, as a step rule receives them."""

import math

import torch

from hig._step.trial_step import Trial


def parabola(lr=1.0, minimum=3.0, curvature=2.0, wall=math.inf):
    """A trial along one parameter: loss ½ c (x - minimum)², infinite beyond the wall."""
    parameter = torch.zeros(1, dtype=torch.float64)

    def loss():
        x = float(parameter)
        return 0.5 * curvature * (x - minimum) ** 2 if x < wall else math.inf

    # The output is x; its gradient is -c * minimum, and the direction is taken along it.
    gradient = -curvature * minimum
    direction = torch.tensor([gradient], dtype=torch.float64)
    trial = Trial([parameter], [direction], lr, loss(), gradient**2, curvature * gradient**2, loss)
    return parameter, trial


def quartic(x):
    """A trial of ¼ x⁴ from wherever x is, whose Cauchy step is 1 / (3 x²)."""
    direction = x**3
    slope, here = float(direction.square()), float(x)
    curvature = 3 * here**2 * slope
    loss = 0.25 * here**4
    resolution = torch.finfo(x.dtype).eps
    return Trial(
        [x], [direction], 1.0, loss, slope, curvature, lambda: 0.25 * float(x) ** 4, resolution
    )
