"""From a captured computation to the spectral direction: what ``record`` and the steps share."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from hig._jacobian.blocks import JointJacobian
from hig._jacobian.distributed_engine import build_shared
from hig._jacobian.engine import EngineResult, InexactLayersError
from hig._spectral.decomposition import Decomposition, GramSpectrum, choose_route, decompose
from hig._spectral.filters import HalfInverse, SpectralFilter
from hig._spectral.lanczos import Krylov, Lanczos
from hig._step.objective import Computation
from hig._step.reports import PhaseClock, StepReport
from hig._step.trial_step import curvature_along
from hig._torch.batched_vjp import Backward
from hig._torch.memory import check_room
from hig._torch.ranks import Ranks
from hig.errors import NonFiniteError

__all__ = ["Formed", "Linearisation", "decomposed", "form", "form_checked", "linearise"]


@dataclass
class Linearisation:
    """A decomposed joint Jacobian at one point, from which any filter gives its direction.

    Attributes:
        computation: what was linearised.
        engine: the Jacobian and how it was obtained.
        decomposition: its singular values and vectors.
        clock: seconds per phase so far.
        notes: what was done differently to obtain it, in words; the decomposition has its own.
    """

    computation: Computation
    engine: EngineResult
    decomposition: Decomposition
    clock: PhaseClock
    notes: list[str]

    def step(
        self, filter: SpectralFilter, gradient: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """One direction per parameter, float64 in its shape, and the change of the outputs (n,).

        Args:
            filter: the filter.
            gradient: what it is applied to, (n,) float64; the gradient of the loss if None.
        """
        parameters = self.computation.parameters
        gradient = self.computation.flat_gradient if gradient is None else gradient
        with self.clock.phase("direction"):
            found = self.decomposition.step(self._resolved(filter), gradient)
            # Equal on all ranks up to rounding; to the last bit from here on.
            flat, output_change = self.computation.split.ranks.first_of(found)
            directions = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
            sizes = [parameters[index].numel() for index in self.engine.order]
            for index, part in zip(self.engine.order, flat.split(sizes), strict=True):
                directions[index] = part.view_as(parameters[index])
        return directions, output_change

    def _resolved(self, filter: SpectralFilter) -> SpectralFilter:
        """The filter with a cut-off that fits the spectrum, where it asks for one."""
        if not (isinstance(filter, HalfInverse) and filter.auto):
            return filter
        dtype = self.computation.prediction.dtype
        return filter.resolved(self.decomposition.singular_values, dtype)

    def output_change(self, directions: Sequence[Tensor]) -> Tensor:
        """J d (n,) for one direction per parameter."""
        flat = [directions[index].flatten() for index in self.engine.order]
        return self.engine.jacobian.jvp(torch.cat(flat))

    def model(self, output_change: Tensor) -> tuple[float, float, float]:
        """Loss, slope and curvature along a change of the outputs (n,)."""
        found, split = self.computation, self.computation.split
        own = curvature_along(found.gradient, found.prediction, output_change[split.own])
        numbers = [
            found.loss.detach().double().reshape(()),
            found.flat_gradient @ output_change,
            split.ranks.total(own),
        ]
        loss, slope, curvature = split.ranks.first(torch.stack(numbers)).tolist()
        return loss, slope, curvature

    @property
    def loss(self) -> Tensor:
        """The loss, without a graph, and without a larger tensor that it may be an entry of."""
        return self.computation.loss.detach().clone()

    @property
    def weight(self) -> float:
        """What the loss of this rank counts in that of the whole batch."""
        return self.computation.weight

    def spectra(self) -> list[GramSpectrum]:
        """What the report needs for singular values that are asked for later, if anything."""
        late = getattr(self.decomposition, "late", None)
        return [] if late is None else [late]

    def report(self, filter: SpectralFilter) -> StepReport:
        """The report of a step with this filter, as far as it is known now."""
        found, ranks = self.decomposition, self.computation.split.ranks
        filter = self._resolved(filter)
        rows, columns = self.engine.jacobian.shape
        return StepReport(
            loss=self.loss,
            engine=self.engine.engine,
            route=found.route,
            rows=rows,
            columns=columns,
            spectrum=found.spectrum(),
            rcond=max(filter.rcond, found.floor),
            seconds=self.clock.seconds,
            error_estimate=getattr(found, "error_estimate", None),
            notes=[*self.notes, *found.notes],
            dtype=self.computation.prediction.dtype,
            communication=ranks.communication if ranks.size > 1 else None,
        )


@dataclass
class Formed:
    """A joint Jacobian and the matrix that is to be decomposed, of which nothing was read yet.

    Attributes:
        computation: what was linearised.
        engine: the Jacobian and how it was obtained.
        route: "rows", "columns", "svd" or "lanczos".
        matrix: J Jᵀ, Jᵀ J or J, float64; None for "lanczos".
    """

    computation: Computation
    engine: EngineResult
    route: str
    matrix: Tensor | None


def linearise(
    computation: Computation,
    filter: SpectralFilter,
    engine: str,
    method: str | Lanczos,
    backward: Backward,
    clock: PhaseClock,
) -> Linearisation:
    """Obtain and decompose the joint Jacobian of a prediction.

    Args:
        computation: what was seen while the closure ran.
        filter: the filter that will be applied first; it decides on the route.
        engine: "auto", "layerwise" or "rows".
        method: "auto", "gram", "svd", "lanczos" or settings of the last.
        backward: runs the backward passes.
        clock: takes the times.

    Raises:
        NonFiniteError: the Jacobian holds NaN or Inf.
        SampleDependenceError: see :func:`hig._jacobian.engine.build_jacobian`.
        ValueError: unknown engine or method, a prediction without parameters, or ranks that hold
            different columns.
    """
    formed = form(computation, filter, engine, method, backward, clock)
    try:
        return decomposed(formed, filter, method, backward, clock)
    except InexactLayersError:
        formed = form_checked(computation, filter, engine, method, backward, clock)
    return decomposed(formed, filter, method, backward, clock)


def form_checked(
    computation: Computation,
    filter: SpectralFilter,
    engine: str,
    method: str | Lanczos,
    backward: Backward,
    clock: PhaseClock,
) -> Formed:
    """The same as `form` after an :class:`InexactLayersError`: each layer is checked first.

    Where a layer is not exact, later steps read their checks before the Gram matrix.
    """
    backward.trusting = False
    formed = form(computation, filter, engine, method, backward, clock)
    backward.trusting = formed.engine.layers_exact  # what failed was rounding, and is allowed now
    return formed


def form(
    computation: Computation,
    filter: SpectralFilter,
    engine: str,
    method: str | Lanczos,
    backward: Backward,
    clock: PhaseClock,
) -> Formed:
    """Obtain the Jacobian and the matrix to decompose; arguments and errors as of `linearise`.

    While factors are trusted the host reads nothing of the device.
    """
    checks, dtype = computation.checks, computation.prediction.dtype
    trusting = backward.trusting and computation.split.ranks.size == 1
    products = choose_route((0, 0), dtype, filter, method) == "lanczos"
    with clock.phase("jacobian"), torch.no_grad():
        found = build_shared(computation, engine, backward, products, checks if trusting else None)
    if not found.order:
        raise ValueError(
            "the prediction depends on none of the parameters; check that the closure runs the "
            "network whose parameters the optimizer holds, and with gradients enabled"
        )
    route = choose_route(found.jacobian.shape, dtype, filter, method)
    if route == "lanczos":
        return Formed(computation, found, route, None)
    with clock.phase("gram"), torch.no_grad():
        _check_room(found.jacobian, route)
        matrix = _form(found.jacobian, route)
        finite = torch.isfinite(matrix).all()
        places = _Places(found, computation.parameters, computation.names)
        # Not the computation, which holds the checks: nobody would let go of its graph.
        checks.expect(finite, partial(_raise_non_finite, places, computation.split.ranks))
    return Formed(computation, found, route, matrix)


def decomposed(
    formed: Formed,
    filter: SpectralFilter,
    method: str | Lanczos,
    backward: Backward,
    clock: PhaseClock,
    again: bool = False,
) -> Linearisation:
    """Read all conditions at once, and decompose; arguments and errors as of `linearise`.

    Args:
        formed: the matrix.
        filter: the filter that will be applied first.
        method: how it is decomposed.
        backward: has notes on how it was obtained.
        clock: takes the times.
        again: the same tensors will hold other values another time.

    Raises:
        InexactLayersError: factors that were trusted are not exact.
    """
    computation, found = formed.computation, formed.engine
    decomposition: Decomposition
    if formed.matrix is None:
        computation.checks.settle()
        settings = method if isinstance(method, Lanczos) else Lanczos()
        decomposition = Krylov(found.jacobian, computation.prediction.dtype, settings)
    else:
        with clock.phase("gram"):  # waits for what was computed
            computation.checks.settle(keep=again)
        # What is read of the spectrum later must not be that of another step.
        matrix = formed.matrix.clone() if again else formed.matrix
        agreement = computation.split.ranks.agreement()
        with torch.no_grad(), clock.phase("decomposition"), agreement:
            decomposition = decompose(found.jacobian, matrix, formed.route, filter)
    notes = [*found.notes, *backward.notes]
    automatic = getattr(filter, "auto", False)
    if filter.needs_small_values and not automatic and filter.rcond < decomposition.floor:
        notes.append(
            f"rcond {filter.rcond:.1e} raised to {decomposition.floor:.1e}, what route "
            f"'{decomposition.route}' resolves"
        )
    return Linearisation(computation, found, decomposition, clock, notes)


def _form(jacobian: JointJacobian, route: str) -> Tensor:
    if route == "rows":
        return jacobian.gram()
    if route == "columns":
        return jacobian.normal()
    return jacobian.dense().double()


def _check_room(jacobian: JointJacobian, route: str) -> None:
    """Raise if the matrix of a route, and what it is decomposed into, cannot be had."""
    n, columns = jacobian.shape
    shape = {"rows": (n, n), "columns": (columns, columns)}.get(route, (n, columns))
    check_room(
        2 * 8 * shape[0] * shape[1],
        jacobian.like,
        f"the {shape[0]} x {shape[1]} matrix to decompose for {n} outputs of the batch and "
        f"{columns} parameters, with its decomposition,",
        "take a smaller batch, or method='lanczos', which forms no such matrix; another chunk, the "
        "number of backward passes at a time, does not change it",
    )


@dataclass(frozen=True)
class _Places:
    """Places of a Jacobian that may not be finite."""

    engine: EngineResult
    parameters: Sequence[Tensor]
    names: Sequence[str]


def _raise_non_finite(places: _Places, ranks: Ranks) -> None:
    """Name the parameters and samples whose derivatives are not finite."""
    what = "the Jacobian holds NaN or Inf (or overflows when squared)"
    remedy = "parameters are unchanged; check the simulator's derivative there"
    with ranks.agreement():  # the rank that has them tells the others
        where = _non_finite_places(places)
        if where:
            raise NonFiniteError(f"{what}{where}; {remedy}")
    raise NonFiniteError(f"{what}; {remedy}")


def _non_finite_places(places: _Places) -> str:
    """Among the rows of this rank; empty where none is to blame alone."""
    found, bad_samples, bad_columns = places.engine, set(), []
    jacobian = found.jacobian
    for sample in range(jacobian.samples):
        rows = jacobian.rows(slice(sample, sample + 1))
        bad = ~torch.isfinite(rows.double().square().sum(0))
        if bool(bad.any()):
            bad_samples.add(sample)
            bad_columns.append(bad)
    if not bad_samples:
        return ""
    sizes = [places.parameters[index].numel() for index in found.order]
    flags = torch.stack(bad_columns).any(0).split(sizes)
    named = [
        places.names[i] for i, flag in zip(found.order, flags, strict=True) if bool(flag.any())
    ]
    samples = sorted(bad_samples)
    return (
        f" for samples {samples[:8]}{'...' if len(samples) > 8 else ''}, in the columns of "
        f"{', '.join(named[:6])}{' and more' if len(named) > 6 else ''}"
    )
