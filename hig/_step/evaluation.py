"""Evaluations of the loss at trial points: same batch, same random numbers, no side effects.

A trial needs the value of the loss alone. It builds no graph unless the closure needs one: a check
at the start of a step, where the loss is known, finds out which graph that is, and whether two
evaluations at one point are equal at all.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from hig._step.closure import Closure
from hig._step.objective import Objective, StepContext
from hig._torch.autograd_graph import coarsest_dtype, plain, reachable_nodes
from hig._torch.buffers import Buffers
from hig._torch.random_state import RandomState
from hig.errors import out_of_memory

__all__ = ["Evaluation", "Graph", "Watch"]

# Evaluations of a closure that are watched until it is known whether it writes to buffers.
_FIRST_EVALUATIONS = 4
# Steps whose closure is watched for draws from NumPy and Python: the first ones, and every 17th. A
# prime number meets those of a closure that draws in every second or tenth step.
_FIRST_STEPS, _STEPS_BETWEEN = 64, 17
# Evaluations from one check to the next; fewer after one with another outcome than the last. A
# network of zeros, as at the start, may hide what a later check shows.
_PAUSE, _SHORT_PAUSE = 64, 8


class Graph(IntEnum):
    """Graph that an evaluation builds."""

    NONE = 0
    #: Gradients are enabled, and the trained parameters require none: for closures that
    #: differentiate a network by its inputs.
    OF_INPUTS = 1
    FULL = 2


# Raised where a graph is missing: by torch (RuntimeError, or a warning of which the user has made
# an error), by an assertion on ``requires_grad``, and by an attribute or an item of a node or
# gradient that is None.
_MISSING_GRAPH = (AssertionError, AttributeError, RuntimeError, TypeError, ValueError, Warning)
_MISSED = {
    Graph.NONE: _MISSING_GRAPH,
    # Also by code for which the list of parameters that require gradients is empty.
    Graph.OF_INPUTS: (*_MISSING_GRAPH, ArithmeticError, LookupError, StopIteration),
    Graph.FULL: (),
}


class Watch:
    """Remembers what the evaluations of a closure need: a watch over its side effects, a graph.

    Watching costs a fifth of a forward pass. Most closures write to nothing: the first evaluations
    and the forward pass of every step show which ones do. The generators of NumPy and Python are
    slow to read: the first steps, and some later ones, show which closures draw from them.

    Attributes:
        writes: whether the closure writes to buffers.
        draws: whether it draws from the global generators of NumPy or Python.
        graph: the least graph that it needs.
        notes: deviations, for the report.
    """

    def __init__(self) -> None:
        self.writes = self.draws = False
        self.graph = Graph.FULL
        self.notes: list[str] = []
        self._steps = self._evaluations = self._next_check = 0

    def random_state(self, device: torch.device) -> RandomState:
        """Return the random state at the start of a step."""
        self._steps += 1
        looks = self._steps <= _FIRST_STEPS or self._steps % _STEPS_BETWEEN == 0
        return RandomState(device, host=self.draws or looks or self.check_is_due)

    def wanted(self) -> bool:
        """Return whether to watch the next evaluation."""
        self._evaluations += 1
        return self.writes or self._evaluations <= _FIRST_EVALUATIONS

    @property
    def check_is_due(self) -> bool:
        """Whether it is time to find out again which graph is needed."""
        return self._evaluations >= self._next_check

    def learn(self, graph: Graph, notes: list[str]) -> None:
        """Remember the outcome of a check.

        Args:
            graph: the least graph with which evaluations give the right numbers.
            notes: deviations.
        """
        as_before = graph is self.graph and bool(notes) == bool(self.notes) and self._next_check
        self._next_check = self._evaluations + (_PAUSE if as_before else _SHORT_PAUSE)
        self.graph, self.notes = graph, notes


@dataclass(frozen=True)
class _Value:
    """Loss and predictions of this process at one point, without a graph.

    The loss is that of the whole batch where those of all processes have been added.
    """

    loss: float
    predictions: list[Tensor] = field(default_factory=list)


class Evaluation:
    """Loss of the same batch at the present parameters, without side effects on other tensors.

    Args:
        closure: the closure of the step.
        loss: returns the loss in the result of the closure, its share in that of the whole batch.
        predictions: returns the predictions in it, one for each objective.
        step: parameters and process ranks of the step.
        random_state: random state at the start of the step; None for rules that do not measure.
        watch: remembers what evaluations of this closure need.
    """

    def __init__(
        self,
        closure: Closure,
        loss: Callable[[Any], Tensor],
        predictions: Callable[[Any], list[Tensor]],
        step: StepContext,
        random_state: RandomState | None,
        watch: Watch,
    ):
        self._closure, self._loss, self._predictions = closure, loss, predictions
        self._step, self._random_state = step, random_state
        self._watch = watch
        watch.draws |= random_state is not None and random_state.keep_used()

    def __call__(self) -> float:
        """Return the loss of the whole batch."""
        value = self._attempt(self._watch.graph)
        if value is None:  # no graph was missed at the start of the step
            self._watch.graph = Graph.FULL
            value = self._with_full_graph()
        return value.loss

    def predictions(self) -> list[Tensor]:
        """Return the predictions of this process at the present parameters, without a graph."""
        value = self._attempt(self._watch.graph, predictions=True)
        if value is None:
            self._watch.graph = Graph.FULL
            value = self._with_full_graph(predictions=True)
        return value.predictions

    def check(self, loss: Tensor, objectives: Sequence[Objective]) -> None:
        """Find out, if it is time to, which graph evaluations need and whether they repeat.

        To be called at the start of the step, where the numbers are known: one evaluation shows
        that none is needed, and up to three are made otherwise.

        Args:
            loss: the loss of the whole batch there.
            objectives: the objectives there.
        """
        watch = self._watch
        # A process that was started again has made fewer evaluations than the others.
        if self._random_state is None or not self._on_any_rank(watch.check_is_due):
            return
        known = _Value(float(loss), [o.closure_prediction.detach() for o in objectives])
        comparison = _Comparison(objectives, self._step)
        graph, value = Graph.NONE, self._attempt(Graph.NONE, predictions=True)
        if value is None:
            graph = Graph.OF_INPUTS
            value = self._attempt(graph, predictions=True)
        if value is not None and comparison.equal(value, known):
            watch.learn(graph, [])
            return
        full = self._with_full_graph(predictions=True)
        same = value is not None and comparison.equal(value, full)
        notes = []
        if not comparison.equal(full, known):
            # Buffers of the closure, put back between evaluations, changed in the step itself.
            by_buffers = self._on_any_rank(watch.writes) and (same or value is None)
            notes = [] if by_buffers else [_difference(known.loss, full.loss)]
        watch.learn(graph if same else Graph.FULL, notes)

    # -- one evaluation --------------------------------------------------------------------------

    def _with_full_graph(self, predictions: bool = False) -> _Value:
        value = self._attempt(Graph.FULL, predictions)
        assert value is not None  # errors have been raised
        return value

    def _attempt(self, graph: Graph, predictions: bool = False) -> _Value | None:
        """Evaluate; return None if that failed on any process rank because a graph was missing."""
        step, ranks = self._step, self._step.ranks
        with step.agreement():
            value = self._local_value(graph, predictions)
        if ranks is None:
            return value
        numbers = [0.0, 1.0] if value is None else [value.loss, 0.0]
        local = torch.tensor(numbers, dtype=torch.float64, device="cpu")
        losses, failures = torch.stack(ranks.every(local)).T.tolist()
        if value is None or any(failures):
            return None
        return _Value(sum(losses), value.predictions)  # in the order of ranks: the same bits

    def _local_value(self, graph: Graph, predictions: bool) -> _Value | None:
        try:
            with _building(graph, self._step.parameters):
                return self._evaluate(predictions)
        except _MISSED[graph] as error:
            if isinstance(error, RuntimeError) and out_of_memory(error):
                raise
            return None

    def _evaluate(self, predictions: bool) -> _Value:
        assert self._random_state is not None  # only rules that measure evaluate
        if not self._watch.wanted():
            return self._value(self._random_state.replay(self._closure), predictions)
        buffers = Buffers(self._step.parameters)
        try:
            with buffers:
                outcome = self._random_state.replay(self._closure)
            value = self._value(outcome, predictions)
            del outcome  # before values are restored that it may be
            return value
        finally:
            self._watch.writes |= buffers.restore()

    def _value(self, outcome: Any, predictions: bool) -> _Value:
        loss = float(plain(self._loss(outcome), "the loss").detach())
        if not predictions:
            return _Value(loss)
        return _Value(loss, [part.detach().clone() for part in self._predictions(outcome)])

    def _on_any_rank(self, fact: bool) -> bool:
        ranks = self._step.ranks
        return fact if ranks is None else any(ranks.whole_numbers(int(fact)))


class _Comparison:
    """Comparison of two values of a closure: equal if they share half of the digits.

    Other kernels, sums in another order and the simulator of a black box without its derivative
    differ in the last digits, other random numbers or a missing term of the loss in the first.

    Args:
        objectives: the objectives at this point.
        step: the process ranks of the step.
    """

    def __init__(self, objectives: Sequence[Objective], step: StepContext):
        self._ranks, self._change = step.ranks, 0.0
        predictions = [objective.closure_prediction for objective in objectives]
        dtypes = [coarsest_dtype(reachable_nodes(p), p.dtype) for p in predictions]
        dtypes += [objective.loss.dtype for objective in objectives]
        self._digits = max(torch.finfo(dtype).eps for dtype in dtypes) ** 0.5
        for objective, prediction in zip(objectives, predictions, strict=True):
            largest, slopes = (
                prediction.detach().abs().max(),
                objective.closure_gradient.detach().abs(),
            )
            self._change += float(slopes.double().sum() * largest.double())
        if self._ranks is not None:
            self._change = self._ranks.sum_of(self._change)

    def equal(self, first: _Value, second: _Value) -> bool:
        """Return whether two values are equal on all process ranks, up to rounding."""
        # A loss far below the predictions it comes from shows their rounding enlarged.
        most = self._digits * (abs(second.loss) + self._change)
        same = abs(first.loss - second.loss) <= most
        same &= len(first.predictions) == len(second.predictions)
        pairs = zip(first.predictions, second.predictions, strict=False)
        same = same and all(self._same_prediction(p, q) for p, q in pairs)
        return same if self._ranks is None else all(self._ranks.whole_numbers(int(same)))

    def _same_prediction(self, first: Tensor, second: Tensor) -> bool:
        if first.shape != second.shape:
            return False
        return bool((first - second).abs().max() <= self._digits * second.abs().max())


@contextmanager
def _building(graph: Graph, parameters: Sequence[Tensor]) -> Iterator[None]:
    """Return a context in which no more than this graph is built."""
    if graph is Graph.NONE:
        with torch.no_grad():
            try:
                yield
            finally:
                # Casts without a graph would be found by code of the user that needs one.
                torch.clear_autocast_cache()
        return
    frozen = [p for p in parameters if p.requires_grad] if graph is Graph.OF_INPUTS else []
    with torch.enable_grad():
        try:
            for parameter in frozen:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)


def _difference(first: float, second: float) -> str:
    """Return the note that evaluations at one point differ."""
    return (
        f"two evaluations of the closure at the same point differ (losses {first:.7g} and "
        f"{second:.7g}), so that measured steps are judged by chance: draw batch and noise before "
        "the step, or from the global generators of torch, NumPy or Python"
    )
