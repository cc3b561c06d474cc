"""Choose, parameter by parameter, how the joint Jacobian is obtained.

``layerwise`` where a parameter and the batch structure allow it, ``rows`` for the rest. Whether
the layerwise factors are exact is not guessed from the model but checked in every step, by one
backward pass more, see :mod:`hig._jacobian.exactness`. Layers that were not exact are tried again
in later steps, seldom, or when the operations between parameters and prediction have changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from hig._jacobian.blocks import Block, DenseBlock, JointJacobian
from hig._jacobian.capture import ForwardPass
from hig._jacobian.exactness import ExactnessMemory, InexactLayersError, Pair, Probe
from hig._jacobian.fallback_reasons import fallback_reason, inexactness_reason
from hig._jacobian.layerwise import Layer, factor_bytes, find_layers, layer_blocks
from hig._jacobian.products import ProductBlock
from hig._jacobian.rows import HELD_BYTES, rows_block
from hig._torch.autograd_graph import leaves, nodes_behind
from hig._torch.batched_vjp import Backward
from hig._torch.host import Checks
from hig._torch.memory import keep_freed_pieces
from hig.arguments import ENGINES, check_choice
from hig.errors import SampleDependenceError, described

__all__ = ["Engine", "EngineResult", "InexactLayersError", "build_jacobian", "check_engine"]


class Engine(Protocol):
    """An engine of one's own: obtains the joint Jacobian, for instance from a known formula."""

    def jacobian(self, forward: ForwardPass) -> Tensor:
        """Return the joint Jacobian of a forward pass.

        Args:
            forward: its ``prediction`` (B, ...), with its graph, and ``parameters``.

        Returns:
            (n, P) real floating point: a row for each of the n entries of the prediction, in their
            order, and a column for each entry of all parameters, one parameter after the other.
        """
        ...


@dataclass
class EngineResult:
    """A joint Jacobian and how it was obtained.

    Attributes:
        jacobian: J over all parameters that the prediction depends on.
        order: indices of these parameters, in the order of the columns.
        routes: engine of each parameter: "layerwise", "rows", "products", "unused", or the name
            of an engine of the user's own.
        notes: why, in words.
        layers_exact: whether no layer was found to be inexact, now or in the last try.
    """

    jacobian: JointJacobian
    order: list[int]
    routes: list[str]
    notes: list[str] = field(default_factory=list)
    layers_exact: bool = True

    @property
    def engine(self) -> str:
        """The engines in use, joined by "+": "layerwise", "rows", "products"."""
        first = {"layerwise": 0, "rows": 1, "products": 2}
        used = sorted(set(self.routes) - {"unused"}, key=lambda name: first.get(name, 3))
        return "+".join(used) or "none"


def check_engine(engine: object) -> None:
    """Raise unless an engine is known by its name, or is one of the user's own.

    Raises:
        TypeError: it is an object without a method ``jacobian``.
        ValueError: there is no engine of that name.
    """
    if isinstance(engine, str | None):
        check_choice(engine, "engine", ENGINES, " or an object with a method jacobian(forward)")
    elif not callable(getattr(engine, "jacobian", None)):
        raise TypeError(
            f"engine must be one of {ENGINES} or an object with a method jacobian(forward), got "
            f"{described(engine)}; see the recipe in CONTRIBUTING.md"
        )


def build_jacobian(
    forward: ForwardPass,
    engine: str | Engine,
    backward: Backward,
    memory: ExactnessMemory,
    products: bool = False,
    checks: Checks | None = None,
    held_bytes: int = HELD_BYTES,
) -> EngineResult:
    """Build the joint Jacobian of a forward pass.

    Args:
        forward: prediction, parameters and captured layers.
        engine: "auto", "layerwise", "rows", or an engine of the user's own.
        backward: runs the backward passes.
        memory: which layers were exact in earlier steps.
        products: whether products with vectors are all that will be asked for: columns of the
            "rows" engine are then never formed.
        checks: takes the conditions that factors are exact; settling them raises an
            :class:`InexactLayersError`. None has them read here, and acted on.
        held_bytes: size up to which columns of the "rows" engine, or for ``products`` the factors
            of the "layerwise" one, are held.

    Raises:
        SampleDependenceError: engine "layerwise" cannot give all columns exactly.
        ValueError: an engine of the user's own returns a matrix of another shape.
    """
    keep_freed_pieces()
    if not isinstance(engine, str):
        return _by_own_engine(forward, engine)
    prediction, parameters, names = forward.prediction, forward.parameters, forward.names
    samples, notes, graph = len(prediction), [], _Graph(prediction)
    memory.builds += 1
    layers = [] if engine == "rows" else find_layers(forward.uses, samples)
    too_large = products and engine == "auto" and factor_bytes(layers, prediction) > held_bytes
    if too_large:
        notes.append(f"products by autograd: factors of {factor_bytes(layers, prediction):.1e} B")
        layers = []
    if engine == "layerwise":  # refuses what is not exact in this step
        memory.failures.clear()
    found = _exact_layers(layers, graph, parameters, backward, memory, checks)
    exact, routes, inexact = found
    blocks: list[Block] = [block for block, _ in exact]
    order = [index for _, indices in exact for index in indices]
    rest = [index for index, route in enumerate(routes) if route == "rows"]
    if rest and engine != "rows" and not too_large:
        reasons = _reasons(rest, inexact, forward, graph)
        if engine == "layerwise":
            raise SampleDependenceError(_refusal(reasons))
        route = "products by autograd" if products else "rows engine"
        notes.extend(f"{route} for {_listed(names)}: {why}" for why, names in reasons.items())
    if rest:
        others = [parameters[index] for index in rest]
        if products:
            blocks.append(ProductBlock(prediction, others, backward))
            routes = ["products" if route == "rows" else route for route in routes]
        else:
            blocks.append(rows_block(prediction, others, backward, held_bytes))
        order.extend(rest)
    notes += _notes_on_unused(names, routes, graph)
    jacobian = JointJacobian(blocks, samples, prediction[0].numel(), like=prediction)
    return EngineResult(jacobian, order, routes, notes, not inexact)


def _by_own_engine(forward: ForwardPass, engine: Engine) -> EngineResult:
    """Take the matrix of an engine of the user's own, after checking its form."""
    prediction, name = forward.prediction, type(engine).__name__
    with torch.enable_grad():  # it may differentiate with pieces of the prediction
        matrix = engine.jacobian(forward)
    shape = prediction.numel(), sum(parameter.numel() for parameter in forward.parameters)
    if not isinstance(matrix, Tensor) or not matrix.is_floating_point():
        raise TypeError(
            f"{name}.jacobian must return a real floating-point tensor, got {described(matrix)}"
        )
    if matrix.shape != shape:
        raise ValueError(
            f"{name}.jacobian must return (outputs of the batch, entries of all parameters), here "
            f"{shape}, got shape {tuple(matrix.shape)}"
        )
    block = DenseBlock(matrix.detach().to(prediction.device), prediction[0].numel())
    jacobian = JointJacobian([block], len(prediction), prediction[0].numel(), like=prediction)
    indices = list(range(len(forward.parameters)))
    return EngineResult(jacobian, indices, [name] * len(indices))


def _reasons(
    rest: Sequence[int], inexact: set[int], forward: ForwardPass, graph: "_Graph"
) -> dict[str, list[str]]:
    """Names of the parameters that no layer gives, by the reason."""
    samples = len(forward.prediction)
    why = inexactness_reason(graph.nodes, forward.prediction.dtype) if inexact else ""
    reasons: dict[str, list[str]] = {}
    for index in rest:
        reason = why
        if index not in inexact:
            reason = fallback_reason(forward.parameters[index], forward.uses, samples)
        reasons.setdefault(reason, []).append(forward.names[index])
    return reasons


def _exact_layers(
    layers: Sequence[Layer],
    graph: "_Graph",
    parameters: Sequence[Tensor],
    backward: Backward,
    memory: ExactnessMemory,
    checks: Checks | None,
) -> tuple[list[Pair], list[str], set[int]]:
    """The exact ones among the layers.

    Args:
        layers: the layers.
        graph: that of the prediction.
        parameters: all parameters.
        backward: runs the passes.
        memory: which layers were exact in earlier steps; those that were not are tried seldom.
        checks: takes the conditions that they are exact; None has them read here.

    Returns:
        Factors and parameters of each; the route of every parameter, "rows" for those that no
        exact layer has; and the parameters of the layers that are not exact.
    """
    prediction = graph.prediction
    positions = {id(parameter): index for index, parameter in enumerate(parameters)}
    owns = [[positions[id(parameter)] for parameter in layer.parameters] for layer in layers]
    pairs = zip(owns, layers, strict=True)
    keys = [(*own, *layer.structure, prediction.shape[1:]) for own, layer in pairs]
    tried = list(range(len(layers)))
    if memory.failures:
        tried = [place for place in tried if not memory.skips(keys[place], graph.kind)]
    # Before the probe: what many passes at once leave behind in the graph makes one more cheap.
    blocks = layer_blocks([layers[place] for place in tried], prediction, backward)
    if not blocks:
        routes = ["rows" if graph.reaches(p) else "unused" for p in parameters]
        return [], routes, {i for own in owns for i in own if routes[i] == "rows"}
    probe = Probe(prediction, parameters, blocks)
    routes = ["unused" if gradient is None else "rows" for gradient in probe.gradients]
    found = [
        (keys[place], (block, owns[place]))
        for place, block in zip(tried, blocks, strict=True)
        if all(routes[index] == "rows" for index in owns[place])
    ]
    allowed = [memory.allowed(key) for key, _ in found]
    exact = [pair for _, pair in found]
    if checks is not None:
        probe.expect(exact, allowed, checks)
    else:
        units = probe.units(exact, allowed)
        exact = [pair for pair, own in zip(exact, units, strict=True) if own is not None]
        for (key, _), rounding in zip(found, units, strict=True):
            if rounding is None:
                memory.failed(key, graph.kind)
            else:
                memory.held(key, rounding, lambda: graph.kind)
    for _, own in exact:
        for index in own:
            routes[index] = "layerwise"
    return exact, routes, {i for own in owns for i in own if routes[i] == "rows"}


class _Graph:
    """The graph of a prediction, which is gone through when something is first asked."""

    def __init__(self, prediction: Tensor):
        self.prediction = prediction

    @cached_property
    def nodes(self) -> set[Any]:
        """All its nodes."""
        return nodes_behind(self.prediction)

    @cached_property
    def kind(self) -> frozenset[str]:
        """The operations in it, those of batch normalisation in training apart from others."""
        training = [node for node in self.nodes if getattr(node, "_saved_training", False)]
        return frozenset(node.name() for node in self.nodes) | {"training" for _ in training}

    def reaches(self, parameter: Tensor) -> bool:
        """Whether the prediction depends on a parameter."""
        return id(parameter) in self._leaves or parameter.grad_fn in self.nodes

    @cached_property
    def _leaves(self) -> set[int]:
        return {id(leaf) for leaf in leaves(self.nodes)}


def _notes_on_unused(names: Sequence[str], routes: Sequence[str], graph: _Graph) -> list[str]:
    """Name the parameters without influence, unless something hides them.

    A reentrant checkpoint hides its parameters from every derivative but ``backward()``.
    """
    unused = [name for name, route in zip(names, routes, strict=True) if route == "unused"]
    if not unused:
        return []
    if any(node.name() == "CheckpointFunctionBackward" for node in graph.nodes):
        raise ValueError(
            f"a reentrant checkpoint hides {_listed(unused)}; use "
            "torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
        )
    return [f"the prediction does not depend on {_listed(unused)}"]


def _refusal(reasons: dict[str, list[str]]) -> str:
    found = "; ".join(f"{_listed(names)}: {reason}" for reason, names in reasons.items())
    return (
        f"the layerwise engine cannot give the exact Jacobian of {found}. "
        "Use engine='auto', which takes the rows engine for these parameters (and put batch "
        "normalisation into eval mode if the coupling is not wanted)"
    )


def _listed(names: Sequence[str], most: int = 6) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
