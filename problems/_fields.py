"""Between torch tensors and the fields of PhiFlow.

The problems take PhiFlow from here, where its absence is explained. It is imported for what they
need alone: `phi.torch.flow` would make torch PhiFlow's default backend for the whole process.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

try:
    from phi import field, math
    from phi.field import CenteredGrid, Field, Noise, StaggeredGrid
    from phi.geom import Box
    from phi.math import batch, channel, extrapolation, spatial
    from phi.physics import advect, diffuse, fluid
    from phi.torch import TORCH
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"this problem is simulated by PhiFlow, and {error.name!r} is not installed; "
        "pip install 'hig[problems]'",
        name=error.name,
    ) from error

__all__ = [
    "RING_AXES",
    "Box",
    "CenteredGrid",
    "Field",
    "StaggeredGrid",
    "advect",
    "diffuse",
    "extrapolation",
    "field",
    "fluid",
    "math",
    "noise",
    "on_grid",
    "on_ring",
    "phiflow_like",
]

AXES = ("samples", "x", "y")
RING_AXES = ("samples", "x", "vector")


@contextmanager
def phiflow_like(values: Tensor) -> Iterator[None]:
    """PhiFlow computes with torch, in the precision and on the device of a tensor.

    Outside, its own default precision turns float64 into float32 without a word, in the forward
    and in the backward pass of its solvers.

    Args:
        values: float32 or float64; dtype and device count.

    Raises:
        TypeError: If the dtype is another.
        ValueError: If PhiFlow does not know the device.
        RuntimeError: If a solver of PhiFlow inside does not converge.
    """
    if values.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"values must be float32 or float64, got {values.dtype}; convert them with .to()"
        )
    devices = {torch.device(device.ref): device for device in TORCH.list_devices()}
    if values.device not in devices:
        raise ValueError(
            f"values are on {values.device}, PhiFlow knows {[str(known) for known in devices]}; "
            "move them there"
        )
    before = TORCH.get_default_device()
    TORCH.set_default_device(devices[values.device])
    try:
        with TORCH, math.precision(torch.finfo(values.dtype).bits):
            yield
    except math.ConvergenceException as error:  # its own text is one line for each sample
        converged = error.result.converged.trajectory[-1]
        raise RuntimeError(
            f"PhiFlow's {error.result.method} did not converge for {(~converged).sum} of "
            f"{converged.shape.volume} samples in {values.dtype}; float64, a coarser grid or a "
            "looser tolerance may help"
        ) from error
    finally:
        TORCH.set_default_device(before)


def on_grid(operator: Callable[[Field], Field], values: Tensor) -> Tensor:
    """Apply an operator of PhiFlow to every sample of a batch.

    Args:
        operator: Maps a centred scalar grid with batch dimension ``samples`` and spatial
            dimensions ``x`` and ``y`` to another; cells have length 1 and values outside the grid
            are zero. Differentiable if the operator is.
        values: Cell values (B, X, Y), float32 or float64.

    Returns:
        Cell values (B, X', Y') of the result, dtype and device of ``values``.

    Raises:
        TypeError: If ``values`` is of another dtype, or the operator changes it.
        ValueError: If ``values`` is not (B, X, Y), or the operator returns something other than a
            scalar for each sample and cell.
    """
    if values.ndim != 3:
        raise ValueError(
            f"values must be (batch, x, y), got shape {tuple(values.shape)}; add a batch axis of "
            "1 for a single sample"
        )
    with phiflow_like(values):
        grid = CenteredGrid(
            math.wrap(values, batch(AXES[0]), spatial(*AXES[1:])), extrapolation.ZERO
        )
        after = operator(grid).values
        if set(after.shape.names) != set(AXES):
            raise ValueError(
                f"the operator must return one number per sample and cell, dimensions {AXES}, "
                f"got {after.shape.names}; vectors go component by component"
            )
        result = after.native(AXES)
    if (result.dtype, result.device) != (values.dtype, values.device):
        raise TypeError(
            f"the operator turned {values.dtype} on {values.device} into {result.dtype} on "
            f"{result.device}; constants in it must be wrapped by phi.math inside the operator"
        )
    return result


def on_ring(values: Tensor | np.ndarray) -> Field:
    """Velocities (B, N) on a ring of length 1, as a field of PhiFlow.

    Values are torch tensors inside `phiflow_like`, or in NumPy; the result is a centred grid of
    vectors of one component, its axes named by ``RING_AXES``.

    Returns:
        Centred grid of vectors of one component, its axes named by ``RING_AXES``.
    """
    named = math.wrap(values[..., None], batch(RING_AXES[0]), spatial("x"), channel(vector="x"))
    return CenteredGrid(named, extrapolation.PERIODIC, bounds=Box(x=1.0))


def noise(samples: int, size: int, generator: torch.Generator) -> Tensor:
    """Smooth random fields (samples, size, size) float64, PhiFlow's ``Noise()`` on unit cells.

    Each sample has mean 0 and standard deviation 1 over its cells; amplitudes fall with the
    square of the wave number.
    """
    seed = int(torch.randint(2**32, (), generator=generator))
    # PhiFlow has no generator of its own: on this backend it draws from NumPy's global one, which
    # belongs to the user.
    before = np.random.get_state()  # noqa: NPY002
    try:
        np.random.seed(seed)  # noqa: NPY002
        with math.NUMPY, math.precision(64):
            grid = CenteredGrid(Noise(batch(**{AXES[0]: samples})), x=size, y=size)
            return torch.from_numpy(grid.values.numpy(AXES))
    finally:
        np.random.set_state(before)  # noqa: NPY002
