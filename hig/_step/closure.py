"""Calling a closure, and the mistakes that closures made for other optimisers make."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from hig._torch.autograd_graph import origin, plain
from hig.errors import described

__all__ = [
    "Closure",
    "apart_from_autocast",
    "call",
    "check_closure",
    "explained",
    "loss_and_prediction",
]

T = TypeVar("T")

Closure = Callable[[], tuple[Tensor, Tensor]]

_TRAINER = (
    "a trainer that calls step itself may wrap the closure so that it returns the loss alone "
    "(Lightning does): call optimizer.step(closure) in your own loop (in Lightning with "
    "automatic_optimization = False), or take hig.record, which works with any optimiser"
)


def check_closure(closure: Closure | None) -> Closure:
    """Return a closure; raise a `TypeError` unless it can be called."""
    if callable(closure):
        return closure
    form = "of no arguments that returns (loss, prediction)"
    if closure is None:  # as GradScaler and trainers call steps
        form += f", as .grad is not enough for this step; {_TRAINER}"
    raise TypeError(f"closure must be a function {form}, got {described(closure)}; define one")


def call(closure: Closure) -> Any:
    """Call a closure and check that its prediction has been computed in this call.

    Raises:
        ValueError: its prediction was computed before.
    """
    with torch.enable_grad():
        start = _present()
        outcome = closure()
        node = _last_node(outcome)
        if node is None or node._sequence_nr() >= start:
            return outcome
        # Other threads count for themselves: it is old if it comes again.
        if _last_node(closure()) is not node:
            return outcome
    raise ValueError(
        "the closure returned a prediction that was computed before it was called, so that it does "
        "not change with the parameters; call network and simulator inside the closure"
    )


def apart_from_autocast(
    closure: Callable[[], T], device: torch.device
) -> tuple[Callable[[], T], AbstractContextManager[object]]:
    """A closure that runs under the present autocast settings, and a context for all else.

    Args:
        closure: the closure of a step.
        device: that of the parameters.

    Returns:
        The closure and a context without autocast, in which it can be called too.
    """
    kind = device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return closure, nullcontext()
    dtype = torch.get_autocast_dtype(kind)

    def under_autocast() -> T:
        # What it has cast are the parameters of before they were moved.
        torch.clear_autocast_cache()
        with torch.autocast(kind, dtype=dtype):
            return closure()

    return under_autocast, torch.autocast(kind, enabled=False)


def loss_and_prediction(result: object) -> tuple[Tensor, Tensor]:
    """Return loss and prediction as plain tensors; raise a `ValueError` where it is no pair."""
    if isinstance(result, tuple | list) and result and all(map(_is_pair, result)):
        raise ValueError(
            f"the closure must return (loss, prediction), got {len(result)} pairs of these; "
            "hig.MultiHIG takes several, or return their sum and one prediction"
        )
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise ValueError(
            f"the closure must return (loss, prediction), got {type(result).__name__}; add the "
            f"simulator's output that the loss was computed from; {_TRAINER}"
        )
    loss, prediction = result
    return plain(loss, "the loss"), plain(prediction, "the prediction")


@contextmanager
def explained() -> Iterator[None]:
    """Say what it means that the graph of a closure has been freed.

    Raises:
        ValueError: in place of the error of torch.
    """
    try:
        yield
    except RuntimeError as error:
        if "backward through the graph a second time" not in str(error):
            raise
        raise ValueError(
            "the graph of the prediction has been freed, as by a call of backward() in the "
            "closure, which closures for other optimisers make: leave out backward() and "
            "zero_grad(), and return (loss, prediction); the step differentiates by itself"
        ) from error


def _present() -> int:
    """The number that the next node of a graph made in this thread will exceed."""
    with torch._C.DisableTorchFunction():  # nobody who watches the closure is to see it
        leaf = torch.empty(0, device="cpu", requires_grad=True)
        number: int = leaf.view(0).grad_fn._sequence_nr()  # type: ignore[union-attr]
    return number


def _last_node(outcome: Any) -> Any:
    """The node of the graph by which a prediction was computed; of several, the oldest."""
    several = isinstance(outcome, list | tuple) and all(map(_is_pair, outcome))
    pairs = [pair for pair in (outcome if several else [outcome]) if _is_pair(pair)]
    places = [origin(plain(prediction, "the prediction")) for _, prediction in pairs]
    found = [p.node if isinstance(p, GradientEdge) else getattr(p, "grad_fn", None) for p in places]
    nodes = [node for node in found if node is not None]
    return min(nodes, key=lambda node: node._sequence_nr(), default=None)


def _is_pair(value: object) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2
