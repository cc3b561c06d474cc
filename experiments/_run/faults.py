"""Numerical faults during a run: policies, and the record of events."""

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

import hig
from hig.errors import out_of_memory

POLICIES = ("raise", "skip")

# Exceptions that may be a numerical fault, as `kind_of` decides.
ERRORS = (hig.NonFiniteError, hig.DecompositionError, MemoryError, RuntimeError)


class Part(Protocol):
    """Part of a run that steps change: network, optimiser or running average."""

    def state_dict(self) -> dict:
        """All of its state."""

    def load_state_dict(self, state_dict: dict) -> object:
        """Restore a state."""


def kind_of(error: Exception) -> str | None:
    """Classify an error as a kind of numerical fault; None for any other error."""
    if isinstance(error, hig.NonFiniteError):
        return "non-finite"
    if isinstance(error, hig.DecompositionError | torch.linalg.LinAlgError):
        return "decomposition"
    if isinstance(error, MemoryError) or out_of_memory(error):
        return "out of memory"
    return None


class Faults:
    """Survives numerical faults as a policy says, and notes each.

    Under ``"raise"`` any fault ends the run. Under ``"skip"`` the step that failed is left out:
    all parts are as before it, bit for bit, and the next batch follows, for the same one would
    lead to the same fault.

    Args:
        policy: One of `POLICIES`.
        most: Faults that are survived, over the whole run; the next one ends it.
        parts: Parts of the run that go back.

    Attributes:
        events: A dict of plain Python per fault so far.
    """

    def __init__(self, policy: str, most: int, parts: Sequence[Part]):
        self.events: list[dict[str, object]] = []
        self._skip, self._most, self._parts = policy == "skip", most, parts
        self._kept: list[dict] = []

    def before_step(self) -> None:
        """Remember the state before a step, if the step may be left out."""
        if self._skip:
            self._kept = [deepcopy(part.state_dict()) for part in self._parts]

    def require_finite(self) -> None:
        """Raise a NonFiniteError if a step has left NaN or Inf; not under ``"raise"``.

        A first-order method has taken a gradient with NaN into parameters or moments before the
        next loss shows it.
        """
        if not self._skip:
            return
        found = [tensor for part in self._parts for tensor in _tensors(part.state_dict())]
        if not math.isfinite(get_total_norm(found, math.inf)):  # the largest, read all at once
            raise hig.NonFiniteError(
                "the step left NaN or Inf in the parameters or in the state of the optimiser; "
                "check the simulator's derivative, or take a smaller step size with --lr"
            )

    def meet(self, error: Exception, during: str, **where: float) -> dict[str, object]:
        """Note a fault; raise the error again unless the run survives it. Returns the event.

        A step is undone with `restore_parameters`, once the error is dropped: its traceback keeps
        the tensors of the step alive, and memory may be short.
        """
        kind = kind_of(error)
        if kind is None:
            raise error
        survives = self._skip and len(self.events) < self._most
        done = {"step": "skipped", "evaluation": "noted"}[during] if survives else "ended"
        event = {**where, "during": during, "kind": kind, "text": str(error), "done": done}
        self.events.append(event)
        if not survives:
            raise error
        return event

    def restore_parameters(self) -> None:
        """Restore all parts to the state before the step."""
        for part, state in zip(self._parts, self._kept, strict=True):
            part.load_state_dict(deepcopy(state))  # optimisers continue in the tensors given

    def describe(self, event: Mapping[str, object]) -> str:
        """Describe a fault that was survived, in one line."""
        return (
            f"fault {len(self.events)} of {self._most} that are survived, in {event['during']} "
            f"{event['step']}: {' '.join(event['text'].split())}; {event['done']}"
        )

    def state_dict(self) -> dict[str, object]:
        """All of it, in plain Python."""
        return {"events": list(self.events)}

    def load_state_dict(self, state_dict: Mapping[str, object]) -> None:
        """Continue from a state, perhaps with another policy; the parts are there already."""
        self.events = list(state_dict["events"])


def _tensors(state: object) -> Iterator[Tensor]:
    """The tensors of real or complex numbers in a state, wherever they are."""
    if isinstance(state, Tensor):
        if state.numel() and (state.is_floating_point() or state.is_complex()):
            yield state.detach()
    elif isinstance(state, Mapping | list | tuple):
        for value in state.values() if isinstance(state, Mapping) else state:
            yield from _tensors(value)
