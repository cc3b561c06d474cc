"""Numerical faults during a run: what is done about them, and the list of them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

import hig
from hig.errors import out_of_memory

POLICIES = ("raise", "skip", "restore")

# What may be a numerical fault; `kind_of` tells whether it is one.
ERRORS = (hig.NonFiniteError, hig.DecompositionError, MemoryError, RuntimeError)

# What each fault multiplies the step size with under "restore".
SHRINK = 0.5


class Part(Protocol):
    """A part of a run that steps change: network, optimiser or running average."""

    def state_dict(self) -> dict:
        """All of its state."""

    def load_state_dict(self, state_dict: dict) -> object:
        """Go back to a state."""


def kind_of(error: Exception) -> str | None:
    """Which kind of numerical fault an error is; None for any other error."""
    if isinstance(error, hig.NonFiniteError):
        return "non-finite"
    if isinstance(error, hig.DecompositionError | torch.linalg.LinAlgError):
        return "decomposition"
    if isinstance(error, MemoryError) or out_of_memory(error):
        return "out of memory"
    return None


class Faults:
    """Survives faults as a policy says, and notes each.

    Under ``"raise"`` any fault ends the run. Under ``"skip"`` the step that failed is left out:
    all parts are as before it, bit for bit, and the next batch follows. Under ``"restore"`` they
    go back to the last evaluation whose training loss was finite, and steps are half as large from
    then on; the data go on, for the same batches would lead to the same fault.

    Args:
        policy: One of `POLICIES`.
        most: Faults that are survived, over the whole run; the next one ends it.
        parts: Those that go back.

    Attributes:
        events: A dict of plain Python per fault so far.
        factor: What the step size is to be multiplied with.
    """

    def __init__(self, policy: str, most: int, parts: Sequence[Part]):
        self.events: list[dict[str, object]] = []
        self.factor = 1.0
        self._policy, self._most, self._parts = policy, most, parts
        self._kept: list[dict] | None = None

    @property
    def restores(self) -> bool:
        """Whether there is an evaluation to go back to."""
        return self._policy == "restore" and self._kept is not None

    def before_step(self) -> None:
        """Remember where a step starts, if it may be left out."""
        if self._policy == "skip":
            self._keep()

    def evaluated(self) -> None:
        """Remember where an evaluation found finite losses, if runs go back there."""
        if self._policy == "restore":
            self._keep()

    def require_finite(self) -> None:
        """Look at all numbers that a step has left behind; not under ``"raise"``.

        A first-order method has taken a gradient with NaN into parameters or moments before the
        next loss shows it.

        Raises:
            NonFiniteError: One is NaN or infinite.
        """
        if self._policy == "raise":
            return
        found = [tensor for part in self._parts for tensor in _tensors(part.state_dict())]
        if not math.isfinite(get_total_norm(found, math.inf)):  # the largest, read all at once
            raise hig.NonFiniteError(
                "the step left NaN or Inf in the parameters or in the state of the optimiser; "
                "check the simulator's derivative, or take a smaller step size with --lr"
            )

    def meet(self, error: Exception, during: str, lr: float, **where: float) -> dict[str, object]:
        """Note a fault, and raise the error again where the run does not survive it.

        What goes back does so with `put_back`, when the error is no longer held: its traceback
        keeps the tensors of the step alive, and memory may be what there is too little of.

        Args:
            error: What was raised.
            during: ``"step"`` or ``"evaluation"``.
            lr: Step size of the settings.
            where: What else to note, such as ``step``.

        Returns:
            What was noted.
        """
        kind = kind_of(error)
        if kind is None:
            raise error
        survives = len(self.events) < self._most and (self._policy == "skip" or self.restores)
        if survives and self._policy == "restore":
            self.factor *= SHRINK
        left_out = "skipped" if during == "step" else "noted"
        done = {"skip": left_out, "restore": "restored"}[self._policy] if survives else "ended"
        event = {**where, "during": during, "kind": kind, "text": str(error), "done": done}
        self.events.append({**event, "step_size": lr * self.factor})
        if not survives:
            raise error
        return self.events[-1]

    def put_back(self) -> None:
        """Let all parts be as they were where they are to go back to."""
        for part, state in zip(self._parts, self._kept, strict=True):
            part.load_state_dict(deepcopy(state))  # optimisers go on in the tensors they are given

    def told(self, event: Mapping[str, object]) -> str:
        """A fault that was survived, in one line."""
        back = f", back to the last evaluation with step size {event['step_size']:g}"
        return (
            f"fault {len(self.events)} of {self._most} that are survived, in {event['during']} "
            f"{event['step']}: {' '.join(event['text'].split())}; "
            f"{event['done']}{back if event['done'] == 'restored' else ''}"
        )

    def state_dict(self) -> dict[str, object]:
        """All of it, in tensors and plain Python."""
        kept = self._kept if self._policy == "restore" else None
        return {"events": list(self.events), "factor": self.factor, "kept": kept}

    def load_state_dict(self, state_dict: Mapping[str, object]) -> None:
        """Go on where another one was, perhaps with another policy; the parts are there already."""
        self.events, self.factor = list(state_dict["events"]), state_dict["factor"]
        self._kept = state_dict["kept"]
        if self._kept is None:
            self.evaluated()

    def _keep(self) -> None:
        self._kept = [deepcopy(part.state_dict()) for part in self._parts]


def _tensors(state: object) -> Iterator[Tensor]:
    """The tensors of real or complex numbers in a state, wherever they are."""
    if isinstance(state, Tensor):
        if state.numel() and (state.is_floating_point() or state.is_complex()):
            yield state.detach()
    elif isinstance(state, Mapping | list | tuple):
        for value in state.values() if isinstance(state, Mapping) else state:
            yield from _tensors(value)
