"""The joint Jacobian of a computation, whose samples may lie on several ranks."""

from dataclasses import replace

from torch import Tensor

from hig._jacobian.distributed import SharedJacobian
from hig._jacobian.engine import EngineResult, build_jacobian
from hig._jacobian.factored_block import FactoredBlock
from hig._step.objective import Computation, digest
from hig._torch.batched_vjp import Backward
from hig._torch.deferred_checks import Checks

__all__ = ["build_shared"]


def build_shared(
    computation: Computation,
    engine: str,
    backward: Backward,
    products: bool = False,
    checks: Checks | None = None,
) -> EngineResult:
    """The joint Jacobian of the whole batch; see :func:`hig._jacobian.engine.build_jacobian`.

    Args:
        computation: what was seen while the closure ran.
        engine: "auto", "layerwise" or "rows".
        backward: runs the backward passes.
        products: whether products with vectors are all that will be asked for.
        checks: as there; of no use where there are several ranks, which must agree at once.

    Raises:
        SampleDependenceError: engine "layerwise" cannot give all columns exactly, on some rank.
        ValueError: unknown engine, or the ranks hold different columns.
    """
    ranks = computation.split.ranks

    def built(engine: str) -> EngineResult:
        found = computation
        with ranks.agreement():
            return build_jacobian(
                found.uses, found.prediction, found.parameters, found.names, engine, backward,
                products=products, checks=checks,
            )  # fmt: skip

    result = built(engine)
    if ranks.size == 1:
        return result
    if len(set(ranks.whole_numbers(_layout(result)))) > 1:
        if engine == "auto":
            result = built("rows")
            result.notes.append("rows engine: layers differ among the ranks, or in what is exact")
        remedy = (
            "run the same network on inputs of the same shape per sample on every rank, or take "
            "engine='rows'; the prediction must depend on the same parameters everywhere"
        )
        ranks.agree_on({"the checksum of the Jacobian's columns": (_layout(result), remedy)})
    return replace(result, jacobian=SharedJacobian(result.jacobian, computation.split))


def _layout(result: EngineResult) -> int:
    """A digest of what must be equal for blocks of two ranks to be multiplied."""
    blocks = []
    factors: list[Tensor]
    for block in result.jacobian.blocks:
        # Layers with few columns are exchanged as matrices, whether factors are held or not.
        if isinstance(block, FactoredBlock) and not block.columns_are_smaller:
            factors = block.factors()
        else:
            factors = []
        shapes = [(tuple(factor.shape[1:]), factor.dtype) for factor in factors]
        blocks.append((block.columns, shapes))
    return digest(result.order, result.routes, blocks)
