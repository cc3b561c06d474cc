"""Linearisation whose closure, backward passes and Gram matrix are recorded as a CUDA graph."""

from collections.abc import Callable, Hashable
from dataclasses import replace

from hig._jacobian.engine import InexactLayersError
from hig._spectral.filters import SpectralFilter
from hig._step.linearisation import AssembledGram, Linearisation, Lineariser
from hig._step.objective import Objective
from hig._torch.cuda_graph import GraphedFunction
from hig._torch.host import DeferredChecks, PhaseClock
from hig.errors import SampleDependenceError

__all__ = ["RecordedLinearisation"]


class RecordedLinearisation:
    """Linearises at the present values of all tensors that a closure reads, by a CUDA graph.

    Args:
        lineariser: obtains and decomposes the Jacobian.
    """

    def __init__(self, lineariser: Lineariser):
        self._lineariser = lineariser
        self._recording: GraphedFunction[AssembledGram] = GraphedFunction()

    def linearise(
        self,
        evaluate: Callable[[], Objective],
        key: Hashable,
        filter: SpectralFilter,
        clock: PhaseClock,
    ) -> Linearisation:
        """Return the decomposed Jacobian.

        Args:
            evaluate: runs the closure; not called when a record is replayed.
            key: identifies the operations; another key starts another record.
            filter: the filter that will be applied first.
            clock: clock of the step.

        Raises:
            SampleDependenceError: layer factors are not exact, which a record cannot repair.
        """
        lineariser = self._lineariser
        with clock.phase("replay"):
            assembled = self._recording(key, lambda: lineariser.assemble(evaluate(), filter, clock))
        looks = lineariser.memory.looks
        try:
            linearisation = lineariser.decompose(assembled, filter, clock, replayed=True)
            if lineariser.memory.looks > looks:  # the next record allows for more rounding
                self._recording = GraphedFunction()
        except InexactLayersError as error:
            # It may have been rounding: then the next record allows for it.
            objective = replace(assembled.objective, checks=DeferredChecks())
            assembled = lineariser.assemble_checked(objective, filter, clock)
            if not assembled.engine.layers_exact:
                raise SampleDependenceError(
                    "cuda_graph=True replays factors of layers, which are not exact here (samples "
                    "influence one another, or a weight is used where it is not seen); use "
                    "engine='rows', or leave it out"
                ) from error
            self._recording = GraphedFunction()
            linearisation = lineariser.decompose(assembled, filter, clock)
        # A copy of the loss: the next replay overwrites it.
        objective = replace(assembled.objective, loss=linearisation.loss.clone())
        return replace(linearisation, objective=objective)
