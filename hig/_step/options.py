"""Options of all steps, checked."""

from dataclasses import dataclass
from typing import Literal

from hig._jacobian.engine import Engine, check_engine
from hig._spectral.decomposition import check_method
from hig._spectral.lanczos import Lanczos
from hig._step.momentum import Momentum
from hig._step.sketch import Directions
from hig._step.step_rules import StepRule, make_step_rule
from hig._torch.ranks import ProcessGroup, check_process_group
from hig.arguments import REDUCTIONS, check_choice, check_count
from hig.errors import described

__all__ = ["StepOptions"]

# Momentum of sketches: what their rows do not see is kept for some thirty steps.
_OF_SKETCHES = 0.97


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """Options of a step; :class:`hig.HIG` documents each.

    Raises:
        TypeError: an option is of another type.
        ValueError: an option is outside its range.
    """

    engine: str | Engine = "auto"
    method: str | Lanczos = "auto"
    step_rule: str | StepRule | None = None
    momentum: float | None = None
    momentum_kind: str | None = None
    chunk: int | None = None
    process_group: ProcessGroup = "auto"
    reduction: str = "mean"
    cuda_graph: bool = False
    sketch: int | Literal["auto"] | Directions | None = None

    def __post_init__(self) -> None:
        check_engine(self.engine)
        check_method(self.method)
        if self.step_rule is not None:
            make_step_rule(self.step_rule)
        self.momentum_of(sketched=self.sketch is not None)
        if self.chunk is not None:
            object.__setattr__(self, "chunk", check_count(self.chunk, "chunk", "or None"))
        if self.sketch is not None:
            automatic = isinstance(self.sketch, str) and self.sketch == "auto"
            if not (automatic or callable(self.sketch)):
                remedy = "'auto', a function, or None for all outputs"
                object.__setattr__(self, "sketch", check_count(self.sketch, "sketch", remedy))
            if self.cuda_graph:
                raise ValueError(
                    "sketch draws other directions in every step, which cuda_graph=True cannot "
                    "replay; use one of them"
                )
        check_process_group(self.process_group)
        check_choice(self.reduction, "reduction", REDUCTIONS)
        if not isinstance(self.cuda_graph, bool):
            raise TypeError(
                f"cuda_graph must be True or False, got {described(self.cuda_graph)}; True records "
                "steps on a GPU"
            )

    def momentum_of(self, sketched: bool) -> Momentum:
        """Return the momentum of a step, of a sketch or exact."""
        factor, kind = self.momentum, self.momentum_kind
        if factor is None:
            factor = _OF_SKETCHES if sketched else 0.0
        if kind is None:
            kind = "plain" if self.sketch is None else "projected"
        return Momentum(factor, kind)
