"""Derivatives as one would first write them: autograd of autograd, one output at a time."""

import torch


class Nested:
    """First and second derivatives of a function of points, in its own graph.

    Args:
        function: maps (N, coordinates) to (N, F), each point for itself.
        points: (N, coordinates).
    """

    def __init__(self, function, points):
        self._points = points.detach().clone().requires_grad_()
        self.value = function(self._points)
        self._first = [self._gradient(output) for output in self.value.unbind(1)]

    def first(self, coordinate):
        """(N, F)."""
        return torch.stack([gradient[:, coordinate] for gradient in self._first], 1)

    def second(self, coordinate):
        """(N, F)."""
        slopes = [self._gradient(gradient[:, coordinate]) for gradient in self._first]
        return torch.stack([slope[:, coordinate] for slope in slopes], 1)

    def _gradient(self, output):
        (gradient,) = torch.autograd.grad(
            output.sum(), self._points, create_graph=True, materialize_grads=True
        )
        return gradient
