"""Incompressible flow in a closed square box on a staggered grid, in plain torch.

The same numbers as PhiFlow's ``advect.semi_lagrangian`` and ``fluid.make_incompressible``, with
operations that torch can vectorise over backward passes: PhiFlow solves for the pressure by
conjugate gradients, here cosines solve for it directly.

A density has its N × N values at the centres of the cells. A velocity is a pair: its component
along x (B, N - 1, N) and that along y (B, N, N - 1), on the faces between cells; on the walls the
normal component is zero and not stored.
"""

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad

Velocity = tuple[Tensor, Tensor]


def curl(potential: Tensor) -> Velocity:
    """The divergence-free velocity of a potential, with cells of length 1.

    The potential (..., N + 1, N + 1) at the corners of the cells is one constant on all walls;
    otherwise fluid would pass through them.
    """
    return potential[..., 1:-1, :].diff(dim=-1), -potential[..., 1:-1].diff(dim=-2)


def divergence(velocity: Velocity) -> Tensor:
    """Outflow of each cell (B, N, N), with cells of length 1."""
    x, y = _with_walls(velocity)
    return x.diff(dim=1) + y.diff(dim=2)


def at_faces(density: Tensor) -> Velocity:
    """The mean of the two cells (B, N, N) at each face, as a vector field along x and along y."""
    return (density[:, 1:] + density[:, :-1]) / 2, (density[..., 1:] + density[..., :-1]) / 2


class Projection:
    """Removes the divergence of velocities on (N, N) cells, by a pressure.

    The pressure solves the five-point Poisson equation with walls around. Cosines are the
    eigenvectors of that Laplacian, so that the solution is four products with one matrix.
    """

    def __init__(self, size: int, like: Tensor):
        index = torch.arange(size, dtype=torch.float64)
        cosines = torch.cos(torch.pi / size * index[:, None] * (index + 0.5)) * (2 / size) ** 0.5
        cosines[0] *= 0.5**0.5
        along = 4 * torch.sin(0.5 * torch.pi / size * index).square()
        eigenvalues = -(along[:, None] + along)
        eigenvalues[0, 0] = torch.inf  # a constant pressure moves nothing
        self._cosines, self._inverse = cosines.to(like), (1 / eigenvalues).to(like)

    def __call__(self, velocity: Velocity) -> Velocity:
        """The divergence-free part of a velocity."""
        cosines, (x, y) = self._cosines, velocity
        waves = self._inverse * (cosines @ divergence(velocity) @ cosines.T)
        pressure = cosines.T @ waves @ cosines
        return x - pressure.diff(dim=1), y - pressure.diff(dim=2)


def advect_density(density: Tensor, velocity: Velocity, time: float) -> Tensor:
    """Semi-Lagrangian step of a density (B, N, N).

    Each cell takes the value of the place that one straight step back along the velocity leads
    to, linear between the centres of cells and constant beyond the outermost.
    """
    x, y = _with_walls(velocity)
    centred = (x[:, 1:] + x[:, :-1]) / 2, (y[..., 1:] + y[..., :-1]) / 2
    return _looked_up(density, centred, time, "border")


def advect_velocity(velocity: Velocity, time: float) -> Velocity:
    """Semi-Lagrangian step of a velocity along itself.

    Between the faces it is linear, and it falls to zero at the walls; along them within half a
    cell beyond, which makes for some friction.
    """
    x, y = velocity
    walled_x, walled_y = _with_walls(velocity)
    x_at_y = _mean_of_four(walled_x)
    y_at_x = _mean_of_four(walled_y)
    return (
        _looked_up(x, (x, y_at_x), time, "zeros"),
        _looked_up(y, (x_at_y, y), time, "zeros"),
    )


def _with_walls(velocity: Velocity) -> Velocity:
    """Both components with the zeros on the walls, (B, N + 1, N) and (B, N, N + 1)."""
    x, y = velocity
    return pad(x, (0, 0, 1, 1)), pad(y, (1, 1))


def _mean_of_four(values: Tensor) -> Tensor:
    values = values[:, 1:] + values[:, :-1]
    return (values[..., 1:] + values[..., :-1]) / 4


def _looked_up(values: Tensor, velocity: Velocity, time: float, outside: str) -> Tensor:
    """Values (B, X, Y) where straight steps back from their own places lead to."""
    ends = [size - 1 for size in values.shape[1:]]
    x, y = (torch.arange(end + 1, dtype=values.dtype, device=values.device) for end in ends)
    # In `grid_sample` places run from -1 to 1, and the last axis comes first.
    place_x = (x[:, None] - time * velocity[0]) * (2 / ends[0]) - 1
    place_y = (y - time * velocity[1]) * (2 / ends[1]) - 1
    places = torch.stack([place_y, place_x], -1)
    found = grid_sample(values[:, None], places, padding_mode=outside, align_corners=True)
    return found[:, 0]
