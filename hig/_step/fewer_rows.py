"""Choice of the rows of a step: all outputs, the controls they depend on, or a sketch of them."""

from hig._jacobian.compression import Reduction, reduce_rows
from hig._jacobian.distributed import BatchSplit
from hig._step.linearisation import Lineariser
from hig._step.objective import Objective, StepContext
from hig._step.sketch import Sketch
from hig.errors import InsufficientMemoryError

__all__ = ["with_fewer_rows"]


def with_fewer_rows(
    objective: Objective,
    lineariser: Lineariser,
    sketch: Sketch | None,
    step: StepContext,
    split: BatchSplit | None,
) -> Objective:
    """Return the objective with the rows of a step in place of the outputs of the closure.

    Args:
        objective: the objective of the samples of this process.
        lineariser: obtains its Jacobian; takes notes for the report.
        sketch: draws directions of the outputs; None for the exact step.
        step: process ranks and clock.
        split: the samples of each process rank, if there are several.
    """
    samples = [len(objective.forward.prediction)] if split is None else split.samples
    if not (lineariser.forms_rows and objective.forward.has_controls):
        return objective if sketch is None else sketch(objective, samples, step.ranks)
    reduction = None
    with step.agreement(), step.clock.phase("jacobian"):
        if not _is_smaller(sketch, objective, sum(samples)):
            reduction = _reduction(objective, lineariser)
    if step.ranks is not None:  # all or none
        sizes = step.ranks.whole_numbers(0 if reduction is None else reduction.rows.shape[1])
        reduction = reduction if len(set(sizes)) == 1 else None
    if reduction is not None:
        return objective.with_rows(reduction.rows, reduction.directions, exact=True)
    return objective if sketch is None else sketch(objective, samples, step.ranks)


def _is_smaller(sketch: Sketch | None, objective: Objective, samples: int) -> bool:
    """Return whether a sketch has fewer rows per sample than there are controls."""
    if sketch is None:
        return False
    controls = [tensor for tensor, _ in objective.forward.controls]
    size = sum(tensor.numel() for tensor in controls) // len(objective.forward.prediction)
    return sketch.rows_of(samples, size) < size


def _reduction(objective: Objective, lineariser: Lineariser) -> Reduction | None:
    try:
        reduction, note = reduce_rows(objective.forward, lineariser.backward, lineariser.controls)
    except InsufficientMemoryError as error:
        reduction, note = None, f"rows of all outputs: {error}"
    if note:
        lineariser.backward.notes.append(note)
    return reduction
