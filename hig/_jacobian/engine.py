"""Choice of the engine that obtains the Jacobian columns of each parameter.

``layerwise`` if a parameter and the batch structure allow it, ``rows`` for all others. The
exactness of layerwise factors is not guessed from the model but checked in every step, by one
more backward pass, see :mod:`hig._jacobian.exactness`. Layers that were not exact are tried again
in later steps, seldom, or when the operations between parameters and prediction have changed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from hig._jacobian.blocks import Block, DenseBlock, JointJacobian
from hig._jacobian.capture import ForwardPass
from hig._jacobian.exactness import (
    ExactnessMemory,
    InexactLayersError,
    Key,
    Look,
    Pair,
    Probe,
)
from hig._jacobian.fallback_reasons import coupling_reason
from hig._jacobian.graph_layers import GraphLayer, GraphLayers
from hig._jacobian.layerwise import (
    AnyLayer,
    factor_bytes,
    find_layers,
    layer_blocks,
    of_each_sample,
)
from hig._jacobian.products import ProductBlock
from hig._jacobian.rows import HELD_BYTES, rows_block
from hig._torch.autograd_graph import Graph, real_size
from hig._torch.batched_vjp import BatchedVJP
from hig._torch.host import DeferredChecks
from hig._torch.memory import keep_freed_pieces
from hig.arguments import ENGINES, check_choice
from hig.errors import SampleDependenceError, described, out_of_memory

__all__ = ["Engine", "EngineResult", "InexactLayersError", "build_jacobian", "check_engine"]


class Engine(Protocol):
    """Custom engine: obtains the joint Jacobian, for instance from a known formula."""

    def jacobian(self, forward: ForwardPass) -> Tensor:
        """Return the joint Jacobian of a forward pass.

        Args:
            forward: its ``prediction`` (B, ...), with its graph, and ``parameters``.

        Returns:
            (n, P) real floating point: a row for each of the n entries of the prediction, in
            order, and a column for each entry of all parameters, one parameter after the other.
        """
        ...


@dataclass
class EngineResult:
    """Joint Jacobian, and the engines that obtained it.

    Attributes:
        jacobian: J over all parameters that the prediction depends on.
        order: indices of these parameters, in the order of the columns.
        routes: engine of each parameter: "layerwise", "rows", "products", "unused", or the class
            name of a custom engine.
        notes: reasons, for the report.
        layers_exact: whether no layer was found to be inexact, now or in the last try.
    """

    jacobian: JointJacobian
    order: list[int]
    routes: list[str]
    notes: list[str] = field(default_factory=list)
    layers_exact: bool = True

    @property
    def engine(self) -> str:
        """Engines in use, joined by "+": "layerwise", "rows", "products"."""
        first = {"layerwise": 0, "rows": 1, "products": 2}
        used = sorted(set(self.routes) - {"unused"}, key=lambda name: first.get(name, 3))
        return "+".join(used) or "none"


def check_engine(engine: object) -> None:
    """Raise unless a value is the name of an engine or a custom engine.

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
    backward: BatchedVJP,
    memory: ExactnessMemory,
    products: bool = False,
    checks: DeferredChecks | None = None,
    held_bytes: int = HELD_BYTES,
) -> EngineResult:
    """Build the joint Jacobian of a forward pass.

    Args:
        forward: prediction, parameters and captured layers.
        engine: "auto", "layerwise", "rows", or a custom engine.
        backward: runs the backward passes.
        memory: exactness of layers in earlier steps.
        products: whether only products are needed, so that "rows" columns are never formed.
        checks: collects the conditions that factors are exact; their evaluation raises an
            :class:`InexactLayersError` unless rounding explains the difference. None: evaluate
            them here, and fall back to rows.
        held_bytes: size up to which columns of the "rows" engine, or for ``products`` the factors
            of the "layerwise" one, are held.

    Raises:
        SampleDependenceError: engine "layerwise" cannot compute all columns exactly.
        TypeError: a custom engine does not return a real floating-point tensor.
        ValueError: a custom engine returns a matrix of another shape.
    """
    keep_freed_pieces()
    if not isinstance(engine, str):
        return _by_custom_engine(forward, engine)
    prediction, samples = forward.prediction, len(forward.prediction)
    notes, graph = [], Graph(prediction)
    memory.builds += 1
    layers: Sequence[AnyLayer] = [] if engine == "rows" else find_layers(forward.uses, samples)
    too_large = products and engine == "auto" and factor_bytes(layers, prediction) > held_bytes
    if too_large:
        notes.append(f"products by autograd: factors of {factor_bytes(layers, prediction):.1e} B")
        layers = []
    if engine == "layerwise":  # decides by this step alone
        memory.failures.clear()
        memory.replaced.clear()
    search = _Search(forward, graph, backward, memory, checks, held_bytes)
    search.run(layers, by_graph=engine != "rows" and not too_large)
    exact, routes, inexact = search.exact, search.routes, search.inexact
    pairs = zip(forward.parameters, routes, strict=True)
    routes = [route if parameter.numel() else "unused" for parameter, route in pairs]
    blocks: list[Block] = [block for block, _ in exact]
    order = [index for _, indices in exact for index in indices]
    fallback = [index for index, route in enumerate(routes) if route == "rows"]
    if fallback and engine != "rows" and not too_large:
        reasons = _reasons(forward, fallback, graph, search.reasons)
        if engine == "layerwise":
            raise SampleDependenceError(_refusal(reasons))
        notes += _notes_on_fallback(reasons, products)
    if fallback:
        others = [forward.parameters[index] for index in fallback]
        if products:
            blocks.append(ProductBlock(prediction, others, backward))
            routes = ["products" if route == "rows" else route for route in routes]
        else:
            blocks.append(rows_block(prediction, others, backward, held_bytes))
        order.extend(fallback)
    notes += _notes_on_unused(forward, routes, graph)
    jacobian = JointJacobian(blocks, samples, prediction[0].numel(), like=prediction)
    return EngineResult(jacobian, order, routes, notes, not inexact)


def _by_custom_engine(forward: ForwardPass, engine: Engine) -> EngineResult:
    """Return the Jacobian of a custom engine, after checking its type and shape."""
    prediction, name = forward.prediction, type(engine).__name__
    with torch.enable_grad():  # it may differentiate with pieces of the prediction
        matrix = engine.jacobian(forward)
    shape = prediction.numel(), sum(map(real_size, forward.parameters))
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
    forward: ForwardPass, fallback: Sequence[int], graph: Graph, of_graph: Mapping[int, str]
) -> dict[str, list[str]]:
    """Return the names of the parameters without an exact layer, by the reason."""
    reasons: dict[str, list[str]] = {}
    for index in fallback:
        reason = of_graph.get(index) or coupling_reason(graph.nodes, forward.prediction.dtype)
        reasons.setdefault(reason, []).append(forward.names[index])
    return reasons


_FEW = "most columns go row by row, and its own with them"


class _Search:
    """Search for layers with exact factors.

    Layers are those calls that were seen, and for parameters without one the products of the graph.

    Args:
        forward: prediction and parameters.
        graph: the graph of the prediction.
        backward: runs the passes.
        memory: exactness of layers in earlier steps; inexact ones are tried seldom.
        checks: collects the conditions that they are exact; None evaluates them here.
        held_bytes: size up to which columns are formed.

    Attributes:
        exact: factors and parameter indices of each exact layer.
        routes: the route of every parameter, "rows" for those without an exact layer.
        inexact: the parameter indices of inexact layers.
        reasons: why the graph has no layer for a parameter, by its index, other than that samples
            influence one another.
    """

    def __init__(
        self,
        forward: ForwardPass,
        graph: Graph,
        backward: BatchedVJP,
        memory: ExactnessMemory,
        checks: DeferredChecks | None,
        held_bytes: int,
    ):
        self._forward, self._graph = forward, graph
        self._backward, self._memory = backward, memory
        self._checks, self._held_bytes = checks, held_bytes
        self._parameters = forward.parameters
        self._positions = {id(parameter): i for i, parameter in enumerate(self._parameters)}
        self.exact: list[Pair] = []
        self.routes: list[str] = []
        self.inexact: set[int] = set()
        self.reasons: dict[int, str] = {}

    def run(self, called: Sequence[AnyLayer], by_graph: bool) -> None:
        """Find the exact layers.

        Args:
            called: the layers whose calls were seen.
            by_graph: whether the graph is searched for others.
        """
        memory = self._memory
        keys = {id(layer): self._key(layer) for layer in called}
        skipped = {place for place, key in keys.items() if self._skips(key)}
        tried = [layer for layer in called if id(layer) not in skipped]
        found = GraphLayers()
        covered = {i for layer in tried for i in self._indices(layer)}
        others = [i for i in range(len(self._parameters)) if i not in covered]
        if by_graph and others and self._forward.prediction.grad_fn is not None:
            found = memory.found.find(self._forward, others)
            self.reasons = dict(found.reasons)
            found.layers[:] = [layer for layer in found.layers if self._is_tried(layer)]
            if not tried and self._few_are_layers(found):
                dropped = {index for layer in found.layers for index in self._indices(layer)}
                self.reasons.update(dict.fromkeys(dropped, _FEW))
                found.layers.clear()
        try:
            failed = self._compare(tried, found)
        except (IndexError, RuntimeError) as error:
            # Inputs without a gradient have no shape in the graph: what is remembered may not fit.
            memory_is_short = isinstance(error, RuntimeError) and out_of_memory(error)
            if not found.remembered or memory_is_short:
                raise
            memory.found.forget()
            self.run(called, by_graph)
            return
        by_now = {self._key(layer) for layer in found.layers} & failed
        if by_now and found.remembered:  # another graph of the same shapes
            memory.found.forget()
            for key in by_now:
                memory.forget_failure(key, self._graph.operations)
            self.run(called, by_graph)
            return
        if not failed:
            # The graph has exact layers in place of the others: these need not be tried again.
            exact = {i for _, indices in self.exact for i in indices}
            left = (keys[place] for place in skipped)
            memory.replaced.update(key for key in left if exact.issuperset(_indices_of(key)))
        elif by_graph and any(key in failed for key in keys.values()):
            self.run(called, by_graph)
            return
        self.inexact |= {i for layer in called for i in self._indices(layer)}
        self.inexact = {index for index in self.inexact if self.routes[index] == "rows"}

    def _few_are_layers(self, found: GraphLayers) -> bool:
        """Return whether most columns take the rows engine: its passes are of all of them."""
        by_rows = found.reasons.keys() | self.inexact
        of_layers = sum(real_size(p) for layer in found.layers for p in layer.parameters)
        return of_layers < sum(real_size(self._parameters[index]) for index in by_rows)

    def _skips(self, key: Key) -> bool:
        if key in self._memory.replaced:
            return True
        known = bool(self._memory.failures)  # operations are not looked for without need
        return known and self._memory.skips(key, self._graph.operations)

    def _is_tried(self, layer: GraphLayer) -> bool:
        if self._skips(self._key(layer)):
            self.inexact.update(self._indices(layer))
            return False
        columns = sum(map(real_size, layer.parameters))
        needed = 8 * self._forward.prediction.numel() * columns
        if not layer.must_be_formed or needed <= self._held_bytes:
            return True
        reason = f"its columns would take {needed:.1e} B"
        self.reasons.update(dict.fromkeys(self._indices(layer), reason))
        return False

    def _compare(self, called: Sequence[AnyLayer], found: GraphLayers) -> set[Key]:
        """Compare the factors of layers with a backward pass; return the keys of inexact ones."""
        prediction = self._forward.prediction
        # Before the probe: batched passes cache values in the graph that make one more cheap.
        by_outputs = [layer for layer in found.layers if layer.by_outputs]
        others = [layer for layer in found.layers if not layer.by_outputs]
        layers = [*called, *others, *by_outputs]
        if found.passes is None:
            blocks = layer_blocks([*called, *others], prediction, self._backward)
        else:
            blocks = layer_blocks(called, prediction, self._backward)
            blocks += layer_blocks(others, prediction, self._backward, found.passes)
        if by_outputs:
            passes = of_each_sample(prediction)
            blocks += layer_blocks(by_outputs, prediction, self._backward, passes)
        self.exact = []
        if not blocks:
            reached = map(self._graph.reaches, self._parameters)
            self.routes = ["rows" if depends else "unused" for depends in reached]
            return set()
        probe = Probe(prediction, self._parameters, blocks)
        self.routes = ["unused" if gradient is None else "rows" for gradient in probe.gradients]
        candidates = {
            self._key(layer): (block, self._indices(layer))
            for layer, block in zip(layers, blocks, strict=True)
            if all(self.routes[index] == "rows" for index in self._indices(layer))
        }
        look = Look(probe, candidates, self._graph, self._memory)
        self.exact = list(candidates.values())
        # Of a layer without influence of its bias, say, the graph has the weight alone.
        failed = {
            self._key(layer)
            for layer in layers
            if {self.routes[index] for index in self._indices(layer)} == {"rows", "unused"}
        }
        for key in failed:
            self._memory.record_failure(key, self._graph.operations)
        if self._checks is not None:
            probe.expect(self.exact, look.allowed, self._checks, look.later)
        else:
            self.exact = look.exact()
            passed = {id(block) for block, _ in self.exact}
            failed |= {key for key, (block, _) in candidates.items() if id(block) not in passed}
        for _, indices in self.exact:
            for index in indices:
                self.routes[index] = "layerwise"
        self.inexact |= {i for key in failed for i in _indices_of(key)}
        return failed

    def _indices(self, layer: AnyLayer) -> list[int]:
        return [self._positions[id(parameter)] for parameter in layer.parameters]

    def _key(self, layer: AnyLayer) -> Key:
        shape = self._forward.prediction.shape[1:]
        return tuple(self._indices(layer)), *layer.structure, shape


def _indices_of(key: Key) -> list[int]:
    """Return the parameter indices of a layer by its key."""
    indices = key[0]
    assert isinstance(indices, tuple)
    return list(indices)


def _notes_on_fallback(reasons: Mapping[str, Sequence[str]], products: bool) -> list[str]:
    route = "products by autograd" if products else "rows engine"
    return [f"{route} for {_list_names(names)}: {reason}" for reason, names in reasons.items()]


def _notes_on_unused(forward: ForwardPass, routes: Sequence[str], graph: Graph) -> list[str]:
    """Return a note that names the parameters without influence, unless something hides them.

    A reentrant checkpoint hides its parameters from every derivative but ``backward()``.
    """
    unused = [
        name
        for name, parameter, route in zip(forward.names, forward.parameters, routes, strict=True)
        if route == "unused" and parameter.numel()
    ]
    if not unused:
        return []
    if any(node.name() == "CheckpointFunctionBackward" for node in graph.nodes):
        raise ValueError(
            f"a reentrant checkpoint hides {_list_names(unused)}; use "
            "torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
        )
    return [f"the prediction does not depend on {_list_names(unused)}"]


def _refusal(reasons: dict[str, list[str]]) -> str:
    listed = "; ".join(f"{_list_names(names)}: {reason}" for reason, names in reasons.items())
    return (
        f"the layerwise engine cannot give the exact Jacobian of {listed}. "
        "Use engine='auto', which takes the rows engine for these parameters (and put batch "
        "normalisation into eval mode if the coupling is not wanted)"
    )


def _list_names(names: Sequence[str], most: int = 6) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
