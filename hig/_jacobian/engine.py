"""Choose, parameter by parameter, how the joint Jacobian is obtained.

``layerwise`` where a parameter and the batch structure allow it, ``rows`` for the rest. Whether
the layerwise factors are exact is not guessed from the model but checked in every step, by one
backward pass more, see :mod:`hig._jacobian.exactness`. Layers that were not exact are tried again
in later steps, seldom, or when the operations between parameters and prediction have changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from hig._jacobian.blocks import Block, JointJacobian
from hig._jacobian.capture import LayerUse
from hig._jacobian.exactness import InexactLayersError, Pair, Probe
from hig._jacobian.fallback_reasons import why_not_exact, why_not_layered
from hig._jacobian.layerwise import Layer, factor_bytes, find_layers, layer_blocks
from hig._jacobian.products import ProductBlock
from hig._jacobian.rows import HELD_BYTES, rows_block
from hig._torch.autograd_graph import leaves, nodes_behind
from hig._torch.batched_vjp import Backward
from hig._torch.deferred_checks import Checks
from hig._torch.memory import keep_freed_pieces
from hig.arguments import check_choice
from hig.errors import SampleDependenceError

__all__ = ["ENGINES", "EngineResult", "InexactLayersError", "build_jacobian"]

ENGINES = ("auto", "layerwise", "rows")


@dataclass
class EngineResult:
    """A joint Jacobian and how it was obtained.

    Attributes:
        jacobian: J over all parameters that the prediction depends on.
        order: indices of these parameters, in the order of the columns.
        routes: engine of each parameter, "layerwise", "rows", "products" or "unused".
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
        """The engines in use: "layerwise", "rows", "products", or two joined by "+"."""
        used = [name for name in ("layerwise", "rows", "products") if name in self.routes]
        return "+".join(used) or "none"


def build_jacobian(
    uses: Sequence[LayerUse],
    prediction: Tensor,
    parameters: Sequence[Tensor],
    names: Sequence[str],
    engine: str,
    backward: Backward,
    held_bytes: int = HELD_BYTES,
    products: bool = False,
    checks: Checks | None = None,
) -> EngineResult:
    """The joint Jacobian of ``prediction`` with respect to ``parameters``.

    Args:
        uses: what was captured while the prediction was computed; ignored by "rows".
        prediction: (B, ...), with a graph.
        parameters: the parameters, all requiring gradients.
        names: what to call them in messages.
        engine: "auto", "layerwise" or "rows".
        backward: runs the backward passes.
        held_bytes: size up to which columns of the "rows" engine, or for ``products`` the factors
            of the "layerwise" one, are held.
        products: whether products with vectors are all that will be asked for: columns of the
            "rows" engine are then never formed.
        checks: takes the conditions that factors are exact; settling them raises an
            :class:`InexactLayersError`. None has them read here, and acted on.

    Raises:
        SampleDependenceError: engine "layerwise" cannot give all columns exactly.
        ValueError: unknown engine.
    """
    check_choice(engine, "engine", ENGINES)
    keep_freed_pieces()
    samples, notes, graph = len(prediction), [], _Graph(prediction)
    backward.memory.builds += 1
    layers = [] if engine == "rows" else find_layers(uses, samples)
    too_large = products and engine == "auto" and factor_bytes(layers, prediction) > held_bytes
    if too_large:
        notes.append(f"products by autograd: factors of {factor_bytes(layers, prediction):.1e} B")
        layers = []
    found = _exact_layers(layers, graph, parameters, backward, checks, engine == "layerwise")
    exact, routes, inexact = found
    blocks: list[Block] = [block for block, _ in exact]
    order = [index for _, own in exact for index in own]
    rest = [index for index, route in enumerate(routes) if route == "rows"]
    if rest and engine != "rows" and not too_large:
        why = why_not_exact(graph.nodes, prediction.dtype) if inexact else ""
        reasons: dict[str, list[str]] = {}
        for index in rest:
            own = why if index in inexact else why_not_layered(parameters[index], uses, samples)
            reasons.setdefault(own, []).append(names[index])
        if engine == "layerwise":
            raise SampleDependenceError(_refusal(reasons))
        route = "products by autograd" if products else "rows engine"
        notes.extend(f"{route} for {_listed(own)}: {reason}" for reason, own in reasons.items())
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


def _exact_layers(
    layers: Sequence[Layer],
    graph: "_Graph",
    parameters: Sequence[Tensor],
    backward: Backward,
    checks: Checks | None,
    forgetful: bool,
) -> tuple[list[Pair], list[str], set[int]]:
    """The exact ones among the layers.

    Args:
        layers: the layers.
        graph: that of the prediction.
        parameters: all parameters.
        backward: runs the passes, and remembers what was not exact.
        checks: takes the conditions that they are exact; None has them read here.
        forgetful: try what was not exact in an earlier step too.

    Returns:
        Factors and parameters of each; the route of every parameter, "rows" for those that no
        exact layer has; and the parameters of the layers that are not exact.
    """
    prediction, memory = graph.prediction, backward.memory
    positions = {id(parameter): index for index, parameter in enumerate(parameters)}
    owns = [[positions[id(parameter)] for parameter in layer.parameters] for layer in layers]
    pairs = zip(owns, layers, strict=True)
    keys = [(*own, *layer.structure, prediction.shape[1:]) for own, layer in pairs]
    tried = list(range(len(layers)))
    if memory.failures and not forgetful:
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
