r"""Choose, parameter by parameter, how the joint Jacobian is obtained.

``layerwise`` where a parameter and the batch structure allow it, ``rows`` for the rest. Whether
the layerwise factors are exact is not guessed from the model but checked in every step: for a
random cotangent c the factors must give the same :math:`J^T c` as one plain backward pass. A
sample that influences another, a batch axis in another place, or a use of the weight that was
not seen, each breaks that equality with probability one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from hig._backward import Backward
from hig._blocks import Block, JointJacobian
from hig._capture import LayerUse
from hig._checks import Checks
from hig._factored_block import FactoredBlock
from hig._formed_block import FormedBlock
from hig._graph import nodes_behind
from hig._layerwise import Layer, factor_bytes, find_layers, layer_blocks
from hig._product_block import ProductBlock
from hig._reasons import why_not_exact, why_not_layered
from hig._rows import HELD_BYTES, rows_block
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
    """

    jacobian: JointJacobian
    order: list[int]
    routes: list[str]
    notes: list[str] = field(default_factory=list)

    @property
    def engine(self) -> str:
        """The engines in use: "layerwise", "rows", "products", or two joined by "+"."""
        used = [name for name in ("layerwise", "rows", "products") if name in self.routes]
        return "+".join(used) or "none"


class InexactLayersError(Exception):
    """Factors that were used in good faith are not exact: the Jacobian must be built again."""


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
    samples, notes = len(prediction), []
    layers = [] if engine == "rows" else find_layers(uses, samples)
    too_large = products and engine == "auto" and factor_bytes(layers, prediction) > held_bytes
    if too_large:
        notes.append(f"products by autograd: factors of {factor_bytes(layers, prediction):.1e} B")
        layers = []
    exact, routes, inexact = _exact_layers(layers, prediction, parameters, backward, checks)
    blocks: list[Block] = [block for block, _ in exact]
    order = [index for _, own in exact for index in own]
    rest = [index for index, route in enumerate(routes) if route == "rows"]
    if rest and engine != "rows" and not too_large:
        reasons: dict[str, list[str]] = {}
        why = why_not_exact(prediction) if inexact else ""
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
    unused = [names[index] for index, route in enumerate(routes) if route == "unused"]
    if unused:
        _refuse_reentrant_checkpoints(prediction, unused)
        notes.append(f"the prediction does not depend on {_listed(unused)}")
    jacobian = JointJacobian(blocks, samples, prediction[0].numel(), like=prediction)
    return EngineResult(jacobian, order, routes, notes)


def _exact_layers(
    layers: Sequence[Layer],
    prediction: Tensor,
    parameters: Sequence[Tensor],
    backward: Backward,
    checks: Checks | None,
) -> tuple[list[tuple[FactoredBlock | FormedBlock, list[int]]], list[str], set[int]]:
    """The exact ones among the layers.

    Returns:
        Factors and parameters of each; the route of every parameter, "rows" for those that no
        exact layer has; and the parameters of the layers that are not exact.
    """
    positions = {id(parameter): index for index, parameter in enumerate(parameters)}
    # Before the probe: what many passes at once leave behind in the graph makes one more cheap.
    found = layer_blocks(layers, prediction, backward)
    probe = _Probe(prediction, parameters)
    routes = ["unused" if gradient is None else "rows" for gradient in probe.gradients]
    pairs = [
        (block, [positions[id(parameter)] for parameter in layer.parameters])
        for layer, block in zip(layers, found, strict=True)
    ]
    pairs = [(b, own) for b, own in pairs if all(routes[index] == "rows" for index in own)]
    exact = probe.exact(pairs, checks)
    for _, own in exact:
        for index in own:
            routes[index] = "layerwise"
    inexact = {index for _, own in pairs for index in own if routes[index] == "rows"}
    return exact, routes, inexact


class _Probe:
    """One plain backward pass with a random cotangent, to hold the factors against."""

    def __init__(self, prediction: Tensor, parameters: Sequence[Tensor]):
        cotangent = _cotangent(prediction.shape, prediction.dtype, prediction.device)
        self.gradients = torch.autograd.grad(
            prediction, list(parameters), cotangent, retain_graph=True, allow_unused=True
        )
        self._weights = cotangent.double().flatten()

    def exact(
        self, pairs: Sequence[tuple[FactoredBlock | FormedBlock, list[int]]], checks: Checks | None
    ) -> list[tuple[FactoredBlock | FormedBlock, list[int]]]:
        """Those whose factors give the gradients of their parameters, up to rounding."""
        near = [self._near(block, own, 0.0) for block, own in pairs]
        if checks is not None:
            for holds in near:
                checks.expect(holds, _raise_inexact)
            return list(pairs)
        flags = torch.stack(near).tolist() if near else []
        # Where all contributions cancel (the bias of attention's keys) both are rounding of what
        # has cancelled.
        return [
            (block, own)
            for holds, (block, own) in zip(flags, pairs, strict=True)
            if holds or bool(self._near(block, own, block.norm_bound()))
        ]

    def _near(
        self, block: FactoredBlock | FormedBlock, indices: Sequence[int], scale: float
    ) -> Tensor:
        """Whether a block agrees with its gradients, or differs by rounding of ``scale``."""
        expected = [self.gradients[index].flatten() for index in indices]
        found = block.vjp(self._weights).split([len(gradient) for gradient in expected])
        near = [_close(a, b, scale) for a, b in zip(found, expected, strict=True)]
        return torch.stack(near).all()


@lru_cache(maxsize=8)  # so that a step sends nothing to the device
def _cotangent(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Random numbers that are always the same; nobody may change them."""
    # A generator of its own: a step must not move the user's random state.
    generator = torch.Generator().manual_seed(20220310)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


def _raise_inexact() -> None:
    raise InexactLayersError


def _close(found: Tensor, expected: Tensor, scale: float) -> Tensor:
    # A few times the square root of the rounding unit: far above the rounding of a long backward
    # pass, far below what one coupled sample or one missed use changes.
    eps = torch.finfo(expected.dtype).eps
    expected = expected.double()
    difference = (found - expected).norm()
    allowed = 3 * eps**0.5 * torch.maximum(found.norm(), expected.norm()) + 30 * eps * scale
    # A NaN agrees with nothing, but it is not for the probe to report it.
    return ~(difference > allowed)


def _refuse_reentrant_checkpoints(prediction: Tensor, unused: list[str]) -> None:
    """A reentrant checkpoint hides its parameters from every derivative but ``backward()``."""
    if any(node.name() == "CheckpointFunctionBackward" for node in nodes_behind(prediction)):
        raise ValueError(
            f"a reentrant checkpoint hides {_listed(unused)}; use "
            "torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
        )


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
