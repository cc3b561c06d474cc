"""The toy problem as one would first write it in numpy, with gradients derived by hand."""

import numpy as np

from problems.multitask.toy import STARTS


def losses_and_gradients(position, scale=0.1):
    """Both losses (n, 2) and their gradients (n, 2, 2), losses first, at positions (n, 2)."""
    x, y = position.T
    losses, gradients = [], []
    for sign, factor in ((1.0, scale), (-1.0, 1.0)):
        valley = 0.5 * (sign * x + 7) - np.tanh(y)
        size = np.abs(valley)
        inverse = np.where(size > 5e-6, 1 / np.where(valley == 0, 1, valley), 0)
        above = np.log(np.maximum(size, 5e-6)) + 6
        above_x, above_y = 0.5 * sign * inverse, -inverse / np.cosh(y) ** 2
        below = ((x - sign * 7) ** 2 + 0.1 * (y + 8) ** 2) / 10 - 20
        below_x, below_y = 0.2 * (x - sign * 7), 0.02 * (y + 8)
        up, down = np.maximum(np.tanh(y / 2), 0), np.maximum(-np.tanh(y / 2), 0)
        slope = 0.5 / np.cosh(y / 2) ** 2
        up_y, down_y = np.where(y >= 0, slope, 0), -np.where(y <= 0, slope, 0)
        losses.append(factor * (up * above + down * below))
        along_x = up * above_x + down * below_x
        along_y = up * above_y + up_y * above + down * below_y + down_y * below
        gradients.append(factor * np.stack([along_x, along_y], -1))
    return np.stack(losses, -1), np.stack(gradients, 1)


def total(gradients):
    """The gradient of the sum (n, 2) for gradients (n, 2, 2)."""
    return gradients.sum(1)


def conflict_free(gradients):
    """ConFIG of two gradients: along the bisector, as long as their projections add up to."""
    units = gradients / np.linalg.norm(gradients, axis=2, keepdims=True)
    bisector = units.sum(1)
    bisector /= np.linalg.norm(bisector, axis=1, keepdims=True)
    return bisector * (gradients * bisector[:, None]).sum((1, 2))[:, None]


def descend(direction, lr, steps, starts=STARTS):
    """Adam along a direction of the gradients from all starts: positions (steps + 1, n, 2)."""
    position = np.array(starts)
    first, second = np.zeros_like(position), np.zeros_like(position)
    trajectory = [position]
    for step in range(1, steps + 1):
        found = direction(losses_and_gradients(position)[1])
        first, second = 0.9 * first + 0.1 * found, 0.999 * second + 0.001 * found**2
        size = np.sqrt(second / (1 - 0.999**step)) + 1e-8
        position = position - lr * first / (1 - 0.9**step) / size
        trajectory.append(position)
    return np.stack(trajectory)
