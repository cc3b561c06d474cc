"""From an objective to the spectral direction: what ``record`` and the steps share."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from hig._jacobian.blocks import JointJacobian
from hig._jacobian.capture import ForwardPass
from hig._jacobian.distributed import build_distributed
from hig._jacobian.engine import Engine, EngineResult, InexactLayersError, build_jacobian
from hig._jacobian.exactness import ExactnessMemory
from hig._spectral.decomposition import Decomposition, GramSpectrum, choose_route, decompose
from hig._spectral.filters import HalfInverse, SpectralFilter
from hig._spectral.lanczos import Krylov, Lanczos
from hig._step.objective import Objective, curvature_along
from hig._step.reports import StepReport
from hig._torch import memory
from hig._torch.batched_vjp import Backward, PassSizes
from hig._torch.host import PhaseClock
from hig._torch.ranks import Ranks
from hig.errors import NonFiniteError

__all__ = ["AssembledGram", "Linearisation", "Lineariser"]


@dataclass
class Linearisation:
    """A decomposed joint Jacobian at one point, from which any filter gives its direction.

    Attributes:
        objective: the loss and outputs that were linearised.
        engine: the Jacobian and how it was obtained.
        decomposition: its singular values and vectors.
        clock: seconds per phase so far.
        notes: what was done differently to obtain it, in words; the decomposition has its own.
    """

    objective: Objective
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
        parameters, split = self.objective.forward.parameters, self.objective.split
        gradient = self.objective.flat_gradient if gradient is None else gradient
        with self.clock.phase("direction"):
            flat, output_change = self.decomposition.step(self._resolved(filter), gradient)
            if split is not None:  # equal on all ranks up to rounding; from here on bit for bit
                flat, output_change = split.ranks.first_of((flat, output_change))
            directions = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
            sizes = [parameters[index].numel() for index in self.engine.order]
            for index, part in zip(self.engine.order, flat.split(sizes), strict=True):
                directions[index] = part.view_as(parameters[index])
        return directions, output_change

    def _resolved(self, filter: SpectralFilter) -> SpectralFilter:
        """The filter with a cut-off that fits the spectrum, where it asks for one."""
        if not (isinstance(filter, HalfInverse) and filter.auto):
            return filter
        dtype = self.objective.forward.prediction.dtype
        return filter.resolved(self.decomposition.singular_values, dtype)

    def output_change(self, directions: Sequence[Tensor]) -> Tensor:
        """J d (n,) for one direction per parameter."""
        flat = [directions[index].flatten() for index in self.engine.order]
        return self.engine.jacobian.jvp(torch.cat(flat))

    def model(self, output_change: Tensor) -> tuple[float, float, float]:
        """Loss, slope and curvature along a change of the outputs (n,)."""
        objective, split = self.objective, self.objective.split
        own = output_change if split is None else output_change[split.own]
        curvature = curvature_along(objective.gradient, objective.forward.prediction, own)
        loss = objective.loss.detach().double().reshape(())
        slope = objective.flat_gradient @ output_change
        if split is None:
            numbers = torch.stack([loss, slope, curvature])
        else:
            whole = [loss, slope, split.ranks.total(curvature)]
            numbers = split.ranks.first(torch.stack(whole))
        loss_value, slope_value, curvature_value = numbers.tolist()
        return loss_value, slope_value, curvature_value

    @property
    def loss(self) -> Tensor:
        """The loss, without a graph, and without a larger tensor that it may be an entry of."""
        return self.objective.loss.detach().clone()

    def spectra(self) -> list[GramSpectrum]:
        """What the report needs for singular values that are asked for later, if anything."""
        late = getattr(self.decomposition, "late", None)
        return [] if late is None else [late]

    def report(self, filter: SpectralFilter) -> StepReport:
        """The report of a step with this filter, as far as it is known now."""
        found, split = self.decomposition, self.objective.split
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
            dtype=self.objective.forward.prediction.dtype,
            communication=None if split is None else split.ranks.communication,
        )


@dataclass
class AssembledGram:
    """A joint Jacobian and the matrix that is to be decomposed, of which nothing was read yet.

    Attributes:
        objective: the loss and outputs that are linearised.
        engine: the Jacobian and how it was obtained.
        route: "row_gram", "column_gram", "svd" or "lanczos".
        matrix: J Jᵀ, Jᵀ J or J, float64; None for "lanczos".
    """

    objective: Objective
    engine: EngineResult
    route: str
    matrix: Tensor | None


class Lineariser:
    """Obtains and decomposes joint Jacobians, and remembers what earlier steps found out.

    Args:
        engine: "auto", "layerwise", "rows" or an engine of the user's own.
        method: "auto", "gram", "svd", "lanczos" or settings of the last.
        chunk: backward passes in one batch; None chooses by memory.
        sizes: remembers what backward passes hold; None begins with nothing.

    Attributes:
        backward: runs the backward passes.
        memory: which layers were exact in earlier steps.
    """

    def __init__(
        self,
        engine: str | Engine,
        method: str | Lanczos,
        chunk: int | None,
        sizes: PassSizes | None = None,
    ):
        self._engine, self._method = engine, method
        self.backward = Backward(chunk, sizes=PassSizes() if sizes is None else sizes)
        self.memory = ExactnessMemory()

    def linearise(
        self, objective: Objective, filter: SpectralFilter, clock: PhaseClock
    ) -> Linearisation:
        """Obtain and decompose the joint Jacobian of an objective.

        Args:
            objective: the loss and the forward pass.
            filter: the filter that will be applied first; it decides on the route.
            clock: takes the times.

        Raises:
            NonFiniteError: the Jacobian holds NaN or Inf.
            SampleDependenceError: see :func:`hig._jacobian.engine.build_jacobian`.
            ValueError: a prediction without parameters, or ranks that hold different columns.
        """
        formed = self.assemble(objective, filter, clock)
        try:
            return self.decompose(formed, filter, clock)
        except InexactLayersError:
            formed = self.assemble_checked(objective, filter, clock)
        return self.decompose(formed, filter, clock)

    def assemble_checked(
        self, objective: Objective, filter: SpectralFilter, clock: PhaseClock
    ) -> AssembledGram:
        """The same as `form` after an :class:`InexactLayersError`: each layer is checked first.

        Where a layer is not exact, later steps read their checks before the Gram matrix.
        """
        self.memory.optimistic = False
        formed = self.assemble(objective, filter, clock)
        # What failed was rounding, and is allowed now.
        self.memory.optimistic = formed.engine.layers_exact
        return formed

    def assemble(
        self, objective: Objective, filter: SpectralFilter, clock: PhaseClock
    ) -> AssembledGram:
        """Obtain the Jacobian and the matrix to decompose; arguments and errors as `linearise`.

        While factors are trusted the host reads nothing of the device.
        """
        forward, split, checks = objective.forward, objective.split, objective.checks
        dtype = forward.prediction.dtype
        products = choose_route((0, 0), dtype, filter, self._method) == "lanczos"
        with clock.phase("jacobian"), torch.no_grad():
            if split is None:
                later = checks if self.memory.optimistic else None
                found = build_jacobian(
                    forward, self._engine, self.backward, self.memory, products, later
                )
            else:  # ranks must agree at once
                found = build_distributed(
                    forward, split, self._engine, self.backward, self.memory, products
                )
        if not found.order:
            raise ValueError(
                "the prediction depends on none of the parameters; check that the closure runs the "
                "network whose parameters the optimizer holds, and with gradients enabled"
            )
        route = choose_route(found.jacobian.shape, dtype, filter, self._method)
        if route == "lanczos":
            return AssembledGram(objective, found, route, None)
        with clock.phase("gram"), torch.no_grad():
            _check_room(found.jacobian, route)
            matrix = _form(found.jacobian, route)
            finite = torch.isfinite(matrix).all()
            # Not the objective, which holds the checks: nobody would let go of its graph.
            places = _Places(found, forward, None if split is None else split.ranks)
            checks.expect(finite, partial(_raise_non_finite, places))
        return AssembledGram(objective, found, route, matrix)

    def decompose(
        self, formed: AssembledGram, filter: SpectralFilter, clock: PhaseClock, again: bool = False
    ) -> Linearisation:
        """Read all conditions at once, and decompose; arguments and errors as `linearise`.

        Args:
            formed: the matrix.
            filter: the filter that will be applied first.
            clock: takes the times.
            again: the same tensors will hold other values another time.

        Raises:
            InexactLayersError: factors that were trusted are not exact.
        """
        objective, found = formed.objective, formed.engine
        decomposition: Decomposition
        if formed.matrix is None:
            objective.checks.settle()
            settings = self._method if isinstance(self._method, Lanczos) else Lanczos()
            dtype = objective.forward.prediction.dtype
            decomposition = Krylov(found.jacobian, dtype, settings)
        else:
            with clock.phase("gram"):  # waits for what was computed
                objective.checks.settle(keep=again)
            # What is read of the spectrum later must not be that of another step.
            matrix = formed.matrix.clone() if again else formed.matrix
            split = objective.split
            together = nullcontext() if split is None else split.ranks.agreement()
            with torch.no_grad(), clock.phase("decomposition"), together:
                decomposition = decompose(found.jacobian, matrix, formed.route, filter)
        notes = [*found.notes, *self.backward.notes]
        automatic = getattr(filter, "auto", False)
        if filter.needs_small_values and not automatic and filter.rcond < decomposition.floor:
            notes.append(
                f"rcond {filter.rcond:.1e} raised to {decomposition.floor:.1e}, what route "
                f"'{decomposition.route}' resolves"
            )
        return Linearisation(objective, found, decomposition, clock, notes)


def _form(jacobian: JointJacobian, route: str) -> Tensor:
    if route == "row_gram":
        return jacobian.gram()
    if route == "column_gram":
        return jacobian.normal()
    return jacobian.dense().double()


def _check_room(jacobian: JointJacobian, route: str) -> None:
    """Raise if the matrix of a route, and what it is decomposed into, cannot be had."""
    n, columns = jacobian.shape
    shape = {"row_gram": (n, n), "column_gram": (columns, columns)}.get(route, (n, columns))
    needed = 2 * 8 * shape[0] * shape[1]
    if needed < memory.CHECKED_BYTES:
        return
    memory.check_room(
        needed,
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
    forward: ForwardPass
    ranks: Ranks | None


def _raise_non_finite(places: _Places) -> None:
    """Name the parameters and samples whose derivatives are not finite."""
    what = "the Jacobian holds NaN or Inf (or overflows when squared)"
    remedy = "parameters are unchanged; check the simulator's derivative there"
    # The rank that has them reports to the others.
    with places.ranks.agreement() if places.ranks else nullcontext():
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
    sizes = [places.forward.parameters[index].numel() for index in found.order]
    flags = torch.stack(bad_columns).any(0).split(sizes)
    names = places.forward.names
    named = [names[i] for i, flag in zip(found.order, flags, strict=True) if bool(flag.any())]
    samples = sorted(bad_samples)
    return (
        f" for samples {samples[:8]}{'...' if len(samples) > 8 else ''}, in the columns of "
        f"{', '.join(named[:6])}{' and more' if len(named) > 6 else ''}"
    )
