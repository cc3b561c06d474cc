"""Error of a Jacobian that is not finite, with the samples and parameters that are to blame."""

from contextlib import nullcontext
from dataclasses import dataclass

import torch

from hig._jacobian.capture import ForwardPass
from hig._jacobian.engine import EngineResult
from hig._torch.autograd_graph import real_size
from hig._torch.ranks import Ranks
from hig.errors import NonFiniteError

__all__ = ["Places", "refuse_non_finite"]


@dataclass(frozen=True)
class Places:
    """Jacobian that may not be finite, with the names for the error message."""

    engine: EngineResult
    forward: ForwardPass
    ranks: Ranks | None


def refuse_non_finite(places: Places) -> None:
    """Name the parameters and samples whose derivatives are not finite."""
    what = "the Jacobian holds NaN or Inf (or overflows when squared)"
    remedy = "parameters are unchanged; check the simulator's derivative there"
    # The process rank that has them reports to the others.
    with places.ranks.agreement() if places.ranks else nullcontext():
        where = _non_finite_places(places)
        if where:
            raise NonFiniteError(f"{what}{where}; {remedy}")
    raise NonFiniteError(f"{what}; {remedy}")


def _non_finite_places(places: Places) -> str:
    """Return the samples and parameters of non-finite entries, among the rows of this process rank.

    Empty if no row of it is non-finite by itself, but their products overflow.
    """
    engine, bad_samples, bad_columns = places.engine, set(), []
    jacobian = engine.jacobian
    for sample in range(jacobian.samples):
        rows = jacobian.rows(slice(sample, sample + 1))
        bad = ~torch.isfinite(rows.double().square().sum(0))
        if bool(bad.any()):
            bad_samples.add(sample)
            bad_columns.append(bad)
    if not bad_samples:
        return ""
    sizes = [real_size(places.forward.parameters[index]) for index in engine.order]
    flags = torch.stack(bad_columns).any(0).split(sizes)
    names = places.forward.names
    named = [names[i] for i, flag in zip(engine.order, flags, strict=True) if bool(flag.any())]
    samples = sorted(bad_samples)
    return (
        f" for samples {samples[:8]}{'...' if len(samples) > 8 else ''}, in the columns of "
        f"{', '.join(named[:6])}{' and more' if len(named) > 6 else ''}"
    )
