"""Closures: call, checks, and explanations of mistakes in closures of other optimisers."""

from collections.abc import Callable, Iterator, Sequence
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
    "as_one",
    "call",
    "check_closure",
    "explained",
    "loss_and_prediction",
    "loss_prediction_and_weights",
    "weights_of",
]

T = TypeVar("T")

Closure = Callable[[], tuple[Tensor, Tensor]]

_TRAINER = (
    "a trainer that calls step itself may wrap the closure so that it returns the loss alone "
    "(Lightning does): call optimizer.step(closure) in your own loop (in Lightning with "
    "automatic_optimization = False), or take hig.record, which works with any optimiser"
)


def check_closure(closure: Closure | None) -> Closure:
    """Return a closure; raise a `TypeError` unless it is callable."""
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
        start = _next_node_number()
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
    """Return a closure under the present autocast settings, and a context without autocast.

    Args:
        closure: the closure of a step.
        device: device of the parameters.

    Returns:
        The closure, which restores the settings when it is called, and a context for all else.
    """
    device_type = device.type
    if not torch.amp.is_autocast_available(device_type) or not torch.is_autocast_enabled(
        device_type
    ):
        return closure, nullcontext()
    dtype = torch.get_autocast_dtype(device_type)

    def under_autocast() -> T:
        # The cache holds casts of the parameters before they were moved.
        torch.clear_autocast_cache()
        with torch.autocast(device_type, dtype=dtype):
            outcome = closure()
        if not isinstance(outcome, Iterator):
            return outcome
        return _each_under_autocast(outcome, device_type, dtype)  # type: ignore[return-value]

    return under_autocast, torch.autocast(device_type, enabled=False)


def _each_under_autocast(parts: Iterator[T], device_type: str, dtype: torch.dtype) -> Iterator[T]:
    """Yield the same, each computed under autocast."""
    while True:
        with torch.autocast(device_type, dtype=dtype):
            try:
                part = next(parts)
            except StopIteration:
                return
        yield part


def loss_and_prediction(result: object) -> tuple[Tensor, Tensor]:
    """Return loss and prediction as plain tensors; raise a `ValueError` unless they are a pair."""
    if isinstance(result, tuple | list) and result and all(map(_is_pair, result)):
        raise ValueError(
            f"the closure must return (loss, prediction), got {len(result)} pairs of these; "
            "hig.MultiHIG accepts several, or return their sum and one prediction"
        )
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise ValueError(
            f"the closure must return (loss, prediction), got {type(result).__name__}; add the "
            f"simulator's output that the loss was computed from; {_TRAINER}"
        )
    loss, prediction = result
    return plain(loss, "the loss"), plain(prediction, "the prediction")


def loss_prediction_and_weights(result: object) -> tuple[Tensor, Tensor, Any]:
    """Return the same with the weights of a triple, None for a pair."""
    if isinstance(result, tuple) and len(result) == 3 and not any(map(_is_pair, result)):
        return *loss_and_prediction(result[:2]), result[2]
    return *loss_and_prediction(result), None


def as_one(closure: Closure, reduction: str) -> Closure:
    """Return a closure whose micro-batches are taken together: the loss and all predictions.

    Args:
        closure: the closure of a step.
        reduction: "mean" or "sum", see :class:`hig.HIG`.
    """

    def whole() -> Any:
        outcome: Any = closure()
        if not isinstance(outcome, Iterator):
            return outcome
        pairs = [loss_prediction_and_weights(part)[:2] for part in outcome]
        predictions = [prediction for _, prediction in pairs]
        weights = weights_of([len(prediction) for prediction in predictions], reduction)
        losses = [w * loss.reshape(()) for w, (loss, _) in zip(weights, pairs, strict=True)]
        return torch.stack(losses).sum(), torch.cat(predictions)

    return whole


def weights_of(samples: Sequence[int], reduction: str) -> list[float]:
    """Return the factor of the loss of each micro-batch in that of the whole batch."""
    return [1.0 if reduction == "sum" else count / sum(samples) for count in samples]


@contextmanager
def explained() -> Iterator[None]:
    """Replace torch's error about a freed graph by one that explains it for closures.

    Raises:
        ValueError: the graph of the prediction has been freed.
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


def _next_node_number() -> int:
    """Return a number that the next graph node of this thread will exceed."""
    with torch._C.DisableTorchFunction():  # invisible to modes that watch the closure
        leaf = torch.empty(0, device="cpu", requires_grad=True)
        number: int = leaf.view(0).grad_fn._sequence_nr()  # type: ignore[union-attr]
    return number


def _last_node(outcome: Any) -> Any:
    """Return the graph node that computed the prediction; of several, the oldest."""
    several = isinstance(outcome, list | tuple) and all(map(_is_pair, outcome))
    if isinstance(outcome, tuple) and len(outcome) == 3 and not several:
        outcome = outcome[:2]  # with weights
    pairs = [pair for pair in (outcome if several else [outcome]) if _is_pair(pair)]
    places = [origin(plain(prediction, "the prediction")) for _, prediction in pairs]
    producers = [
        p.node if isinstance(p, GradientEdge) else getattr(p, "grad_fn", None) for p in places
    ]
    nodes = [node for node in producers if node is not None]
    return min(nodes, key=lambda node: node._sequence_nr(), default=None)


def _is_pair(value: object) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2
