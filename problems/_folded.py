"""All backward passes through a simulation that refuses batches of them, in one call.

`torch.autograd.grad(..., is_grads_batched=True)` needs operations that torch can vectorise; the
solvers of PhiFlow are none. They do take a larger batch, though, and k backward passes for a batch
of B independent samples are one backward pass for k·B samples.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

# As many as torch has.
_LEVELS = 64

Simulate = Callable[[Tensor], Tensor]
Scope = Callable[[Tensor], AbstractContextManager]


def folded(
    simulate: Simulate, scope: Scope = lambda values: nullcontext(), together: bool = True
) -> Simulate:
    """The same simulation, with batched cotangents folded into its batch axis.

    A single backward pass uses the graph of the forward pass. A batch of k passes repeats the
    input k times along the batch axis, simulates once more, and goes back once. Cotangents reach
    the simulation with length 1 per sample, so that the absolute tolerance of an iterative
    solver means the same for all of them.

    Args:
        simulate: Maps (B, ...) to (B, ...), differentiable by plain autograd, and a function of
            its argument alone: gradients with respect to anything else are lost. Samples must
            not influence one another.
        scope: Context in which ``simulate`` runs and is differentiated, made from its argument.
        together: False takes the passes of a batch one by one, to compare.

    Returns:
        The simulation as a function of (B, ...). It has first derivatives only.
    """
    return lambda values: _Folded.apply(_Simulation(simulate, scope, together), values)


def unit_samples(values: Tensor) -> tuple[Tensor, Tensor]:
    """Bring every sample of (B, ...) to length 1, for operations linear in each sample.

    Returns:
        The samples divided by their lengths, and the lengths (B, 1, ...), without a graph. A zero
        sample stays and has 1. One that is not finite becomes zero and keeps a length that is
        not: no solver meets it, and what comes back is NaN.
    """
    # In float64, where the squares of float32 numbers neither overflow nor vanish.
    length = torch.linalg.vector_norm(values.detach().flatten(1), dim=1, dtype=torch.float64)
    length = length.masked_fill(length == 0, 1).to(values.dtype)
    length = length.view(-1, *[1] * (values.ndim - 1))
    return torch.where(length.isfinite(), values / length, 0), length


class _Simulation:
    """A simulation and its pullbacks, each in its scope."""

    def __init__(self, simulate: Simulate, scope: Scope, together: bool):
        self._simulate, self._scope, self._together = simulate, scope, together
        self._graph: tuple[Tensor, Tensor] | None = None

    def run(self, values: Tensor, traced: bool) -> Tensor:
        """Simulate (B, ...) and keep the graph, if it is traced."""
        if not traced:
            with self._scope(values):
                return self._simulate(values)
        self._graph = self._trace(values)
        return self._graph[1].detach()

    def pull(self, cotangent: Tensor) -> Tensor:
        """One backward pass, (B, ...)."""
        return self._gradient(self._graph, cotangent)

    def pull_all(self, cotangents: Tensor) -> Tensor:
        """A batch of backward passes, (k, B, ...)."""
        if not self._together:
            return torch.stack([self.pull(cotangent) for cotangent in cotangents])
        start, _ = self._graph
        repeated = start.expand(len(cotangents), *start.shape).flatten(0, 1)
        gradient = self._gradient(self._trace(repeated), cotangents.flatten(0, 1))
        return gradient.unflatten(0, cotangents.shape[:2])

    def _trace(self, values: Tensor) -> tuple[Tensor, Tensor]:
        start = values.detach().requires_grad_()
        with self._scope(start), torch.enable_grad():
            output = self._simulate(start)
        if output.shape[:1] != start.shape[:1]:
            raise ValueError(
                "the simulation must keep the batch axis, it turned shape "
                f"{tuple(start.shape)} into {tuple(output.shape)}"
            )
        return start, output

    def _gradient(self, graph: tuple[Tensor, Tensor], cotangent: Tensor) -> Tensor:
        start, output = graph
        unit, length = unit_samples(cotangent)
        with self._scope(start):
            (gradient,) = torch.autograd.grad(output, start, unit, retain_graph=True)
        return gradient * length.view(-1, *[1] * (start.ndim - 1))


class _Folded(torch.autograd.Function):
    """The simulation as one node of the graph."""

    @staticmethod
    def forward(ctx, simulation: _Simulation, values: Tensor):
        ctx.simulation = simulation
        return simulation.run(values, traced=ctx.needs_input_grad[1])

    @staticmethod
    def backward(ctx, cotangent):
        if torch.is_grad_enabled():
            raise RuntimeError(
                "a folded simulation has first derivatives only, and create_graph=True asks for "
                "second ones; differentiate the simulation itself"
            )
        if torch._C._functorch.is_legacy_batchedtensor(cotangent):
            cotangents, level = _unwrap(cotangent)
            gradients = ctx.simulation.pull_all(cotangents)
            return None, torch._add_batch_dim(gradients, 0, level)
        return None, _Pullback.apply(ctx.simulation, cotangent)


class _Pullback(torch.autograd.Function):
    """Its backward pass, which says what `torch.func.vmap` does with a batch of cotangents."""

    @staticmethod
    def forward(simulation: _Simulation, cotangent: Tensor):
        return simulation.pull(cotangent)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def vmap(info, in_dims, simulation: _Simulation, cotangents: Tensor):
        return simulation.pull_all(cotangents.movedim(in_dims[1], 0)), 0


def _unwrap(cotangent: Tensor) -> tuple[Tensor, int]:
    """Cotangents (k, B, ...) inside what ``is_grads_batched`` passes on, and their level.

    That wraps them in the batched tensors of a predecessor of `torch.func.vmap`, which knows
    nothing of rules for single functions and hands them to each node as they are. A tensor of its
    does not give the level it was wrapped at, mostly the first.
    """
    for level in range(1, _LEVELS + 1):
        # At another level this adds an axis, and the tensor stays wrapped.
        cotangents = torch._remove_batch_dim(cotangent, level, 1, 0)
        if not torch._C._functorch.is_legacy_batchedtensor(cotangents):
            return cotangents, level
    raise RuntimeError(
        "a folded simulation takes one batch of cotangents, and these are batched twice; "
        "call torch.autograd.grad(..., is_grads_batched=True) outside of other such calls"
    )
