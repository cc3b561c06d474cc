"""Optimisers for several losses: a first-order step along a combined gradient."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, optim

from hig.conflictfree import AlternatingBackward, GradientOperator, PseudoMomentumOperator, backward

Operator = Callable[[Tensor], Tensor]


class _AlongGradients:
    """Base class of optimisers that step along ``.grad``."""

    def __init__(self, base: optim.Optimizer):
        self._base = base

    @property
    def param_groups(self) -> list[dict]:
        """Parameters with their step sizes."""
        return self._base.param_groups

    def zero_grad(self) -> None:
        """Clear the gradients."""
        self._base.zero_grad()

    def state_dict(self) -> dict:
        """Return all that the next step depends on besides parameters and closure."""
        return {"base": self._base.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore a state."""
        self._base.load_state_dict(state_dict["base"])


class Combined(_AlongGradients):
    """Adam along the combination (P,) of the gradients (m, P) of all losses by an operator."""

    def __init__(self, parameters: Sequence[Tensor], lr: float, operator: Operator):
        super().__init__(optim.Adam(parameters, lr=lr))
        self._parameters, self.operator = list(parameters), operator

    def step(self, closure: Callable[[], Sequence[Tensor]]) -> Tensor:
        """Take a step; ``closure`` returns the losses with graphs. Returns their sum before it."""
        with torch.enable_grad():
            losses = closure()
        self.zero_grad()
        backward(losses, self._parameters, self.operator)
        self._base.step()
        return torch.stack([loss.detach() for loss in losses]).sum()

    def state_dict(self) -> dict:
        """Return the state, with that of the operator if it has one."""
        state = getattr(self.operator, "state_dict", dict)()
        return {**super().state_dict(), "operator": state}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore the state of one with the same kind of operator."""
        super().load_state_dict(state_dict)
        if state_dict["operator"]:
            device = self._parameters[0].device
            self.operator.load_state_dict(placed(state_dict["operator"], device))


class Alternating(_AlongGradients):
    """Gradient descent along combined momenta; the losses take turns, one per step.

    ``operator`` makes one that maps momenta (m, P) to a direction (P,), which is scaled as that of
    Adam.
    """

    def __init__(
        self, parameters: Sequence[Tensor], lr: float, operator: Callable[[], GradientOperator]
    ):
        super().__init__(optim.SGD(parameters, lr=lr))
        self._parameters, self._make_operator = list(parameters), operator
        self._momenta: AlternatingBackward | None = None  # until the number of losses is known

    @property
    def operator(self) -> PseudoMomentumOperator | None:
        """The operator with its momenta; None before the first step."""
        return self._momenta and self._momenta.operator

    def step(self, closure: Callable[[int], Tensor], count: int) -> Tensor:
        """Take a step on the loss whose turn it is, of ``count``; returns the loss before it."""
        if self._momenta is None:
            self._momenta = self._new_momenta(count)
        self.zero_grad()
        with torch.enable_grad():
            loss = closure(self._momenta.next_loss)
        self._momenta.backward(loss)
        self._base.step()
        return loss.detach()

    def state_dict(self) -> dict:
        """Return the state, with the momenta and the index of the next loss."""
        return {**super().state_dict(), "momenta": self._momenta and self._momenta.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore the state of one with the same kind of operator."""
        super().load_state_dict(state_dict)
        momenta = state_dict["momenta"]
        self._momenta = momenta and self._new_momenta(len(momenta["operator"]["t_grads"]))
        if momenta:
            self._momenta.load_state_dict(placed(momenta, self._parameters[0].device))

    def _new_momenta(self, count: int) -> AlternatingBackward:
        operator = PseudoMomentumOperator(count, gradient_operator=self._make_operator())
        return AlternatingBackward(self._parameters, count, operator)


def placed(state: object, device: torch.device) -> object:
    """Copy a state with its tensors on a device."""
    if isinstance(state, Tensor):
        return state.to(device)
    if isinstance(state, dict):
        return {key: placed(value, device) for key, value in state.items()}
    if isinstance(state, list):
        return [placed(value, device) for value in state]
    return state


def combined(operator: Callable[[], Operator]) -> Callable[..., Combined]:
    """Make the constructor of a `Combined` with an operator."""
    return lambda parameters, lr: Combined(parameters, lr, operator())


def alternating(operator: Callable[[], GradientOperator]) -> Callable[..., Alternating]:
    """Make the constructor of an `Alternating` with an operator."""
    return partial(Alternating, operator=operator)
