"""Directions of gradients that hold NaN or Inf.

``torch.amp.GradScaler`` begins with a scale that overflows, finds Inf or NaN in ``.grad``, skips
the step and lowers the scale: such a direction must reach ``.grad``. Any other step along it is
refused: the parameters concerned are watched until their ``.grad`` is finite again.
"""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from hig.errors import NonFiniteError

__all__ = ["NON_FINITE", "is_finite", "non_finite_direction", "require_finite", "watch"]

NON_FINITE = ("raise", "pass")

# An attribute of the direction: the text of the error that a step along it raises.
_ATTRIBUTE = "_hig_non_finite"


def non_finite_direction(like: Tensor, error: NonFiniteError) -> Tensor:
    """Return NaN of the shape ``like``, which :func:`watch` and :func:`require_finite` know."""
    direction = torch.full_like(like, float("nan"))
    setattr(direction, _ATTRIBUTE, str(error))
    return direction


def require_finite(direction: object) -> None:
    """Raise a NonFiniteError if a direction comes from gradients that were not finite."""
    text = getattr(direction, _ATTRIBUTE, None)
    if text is not None:
        raise NonFiniteError(text)


def is_finite(direction: Tensor) -> bool:
    """Return whether a direction comes from finite gradients."""
    return getattr(direction, _ATTRIBUTE, None) is None


def watch(parameters: Iterable[Tensor], direction: Tensor) -> None:
    """Make optimisers refuse steps of parameters whose ``.grad`` becomes a non-finite direction.

    A finite direction ends the watch of an earlier one.
    """
    text = getattr(direction, _ATTRIBUTE, None)
    if text is not None:
        _watch.begin(parameters, text)
    elif _watch.texts:
        _watch.end(parameters)


class _Watch:
    """Parameters that have a non-finite direction in ``.grad``, by their ``id``."""

    def __init__(self) -> None:
        self.texts: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self.registered = False

    def begin(self, parameters: Iterable[Tensor], text: str) -> None:
        """Watch parameters; ``text`` is that of the error."""
        self.texts = {key: entry for key, entry in self.texts.items() if entry[0]() is not None}
        for parameter in parameters:
            self.texts[id(parameter)] = (weakref.ref(parameter), text)
        if not self.registered:
            register_optimizer_step_pre_hook(self.before_step)
            self.registered = True

    def end(self, parameters: Iterable[Tensor]) -> None:
        """End the watch of parameters."""
        for parameter in parameters:
            self.texts.pop(id(parameter), None)

    def before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Raise before a step along a non-finite direction, unless a gradient scaler handles it."""
        # Optimisers that handle the scale themselves are called for such steps, and skip them.
        scaled = getattr(optimizer, "found_inf", None) is not None or "grad_scaler" in kwargs
        if not self.texts or scaled:
            return
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) not in self.texts:
                    continue
                reference, text = self.texts[id(parameter)]
                watched = reference()
                if watched is None:  # the id belonged to a deleted parameter, and is reused
                    continue
                if watched.grad is not None and not bool(torch.isfinite(watched.grad).all()):
                    raise NonFiniteError(text)
                del self.texts[id(parameter)]


_watch = _Watch()
