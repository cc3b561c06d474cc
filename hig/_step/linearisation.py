"""Linearisation of an objective: its Jacobian, decomposed, and the spectral directions."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from hig._jacobian.blocks import JointJacobian
from hig._jacobian.distributed import build_distributed
from hig._jacobian.engine import Engine, EngineResult, InexactLayersError, build_jacobian
from hig._jacobian.exactness import ExactnessMemory
from hig._spectral.decomposition import Decomposition, GramSpectrum, choose_route, decompose
from hig._spectral.filters import HalfInverse, SpectralFilter
from hig._spectral.lanczos import Krylov, Lanczos
from hig._step.non_finite_jacobian import Places, refuse_non_finite
from hig._step.objective import Objective
from hig._step.reports import StepReport
from hig._torch import memory
from hig._torch.autograd_graph import real_size, real_view
from hig._torch.batched_vjp import BatchedVJP, PassSizes
from hig._torch.host import PhaseClock

__all__ = ["AssembledGram", "Linearisation", "Lineariser", "QuadraticModel"]


class QuadraticModel(NamedTuple):
    """Quadratic model of the loss along a change v of the outputs.

    Attributes:
        loss: the loss of the whole batch.
        slope: g · v.
        curvature: vᵀ H v.
        largest: square of the largest singular value of J, or a bound close above it.
        squared_length: v · v.
    """

    loss: float
    slope: float
    curvature: float
    largest: float = 0.0
    squared_length: float = 0.0


@dataclass
class Linearisation:
    """Decomposed joint Jacobian at one point, from which any filter gives its direction.

    Attributes:
        objective: the loss and outputs that were linearised.
        engine: the Jacobian and how it was obtained.
        decomposition: its singular values and vectors.
        clock: seconds per phase so far.
        notes: deviations of the Jacobian, for the report; the decomposition has its own.
    """

    objective: Objective
    engine: EngineResult
    decomposition: Decomposition
    clock: PhaseClock
    notes: list[str]

    def step(
        self, filter: SpectralFilter, gradient: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Return one direction per parameter, float64, and the change of the outputs (n,).

        Args:
            filter: the filter.
            gradient: (n,) float64, to which it is applied; None for the gradient of the loss.
        """
        parameters, split = self.objective.forward.parameters, self.objective.split
        gradient = self.objective.flat_gradient if gradient is None else gradient
        with self.clock.phase("direction"):
            flat, output_change = self.decomposition.step(self.resolved(filter), gradient)
            if split is not None:  # equal up to rounding; from here on bit for bit
                flat, output_change = split.ranks.first_of((flat, output_change))
            # Of complex ones real and imaginary parts, (..., 2).
            views = [real_view(parameter) for parameter in parameters]
            directions = [torch.zeros_like(view, dtype=torch.float64) for view in views]
            sizes = [views[index].numel() for index in self.engine.order]
            for index, part in zip(self.engine.order, flat.split(sizes), strict=True):
                directions[index] = part.view_as(views[index])
        return directions, output_change

    def resolved(self, filter: SpectralFilter) -> SpectralFilter:
        """Return the filter; with ``rcond="auto"``, with a cut-off that fits the spectrum."""
        if not (isinstance(filter, HalfInverse) and filter.auto):
            return filter
        forward = self.objective.forward
        tensors = (forward.prediction, *forward.parameters)  # of mixed ones the coarsest counts
        dtype = max((t.dtype for t in tensors), key=lambda dtype: torch.finfo(dtype).eps)
        some = isinstance(self.decomposition, Krylov)
        values = None if some else self.decomposition.singular_values
        return filter.resolved(values, dtype, self.objective.least_cut)

    def largest(self, filter: SpectralFilter, exact: bool = False) -> float:
        """Return the square of the largest singular value.

        Args:
            filter: the filter of the step; products with J find the value along with its direction.
            exact: whether a bound close above it, which costs less, does not do.
        """
        decomposition, split = self.decomposition, self.objective.split
        if isinstance(decomposition, Krylov) and not decomposition.started:
            self.step(filter)
        largest = decomposition.largest
        if exact:
            largest = decomposition.singular_values.max().square()
        largest = largest.double().reshape(1)
        return float(largest if split is None else split.ranks.first(largest))

    def output_change(self, directions: Sequence[Tensor]) -> Tensor:
        """Return J d (n,) for one direction per parameter."""
        flat = [directions[index].flatten() for index in self.engine.order]
        return self.engine.jacobian.jvp(torch.cat(flat))

    def model(self, output_change: Tensor) -> QuadraticModel:
        """Return the model along a change of the outputs, that of all rows, (n,) float64."""
        objective, split = self.objective, self.objective.split
        local_change = objective.local_change(output_change)
        curvature = objective.curvature(local_change)
        weighted = (
            local_change if objective.row_map is None else objective.row_map.weigh(local_change)
        )
        of_change = torch.stack([curvature, weighted @ weighted])
        loss = objective.loss.detach().double().reshape(())
        slope = objective.flat_gradient @ output_change
        whole = torch.stack([loss, slope, self.decomposition.largest.double()])
        if split is None:
            numbers = torch.cat([whole, of_change])
        else:
            numbers = split.ranks.first(torch.cat([whole, split.ranks.total(of_change)]))
        loss_, slope_, largest_, curvature_, length = numbers.tolist()
        return QuadraticModel(loss_, slope_, curvature_, largest_, length)

    def along(self, change: Tensor) -> tuple[float, float]:
        """Return slope and curvature of the loss along a change of the closure's outputs.

        Args:
            change: of the outputs in this process, float64, flat.
        """
        objective, split = self.objective, self.objective.split
        slope = objective.closure_gradient.detach().double().flatten() @ change
        numbers = torch.stack([slope, objective.curvature(change)])
        if split is not None:
            numbers = split.ranks.first(split.ranks.total(numbers))
        first, second = numbers.tolist()
        return first, second

    def rounding(self) -> float:
        """Return the change of the loss by a rounding of outputs and parameters."""
        objective, split = self.objective, self.objective.split
        decomposition, parameters = self.decomposition, objective.forward.parameters
        # A rounding of the parameters changes the loss, and shows how large the numbers are whose
        # differences the outputs are.
        rms = _root_mean_square(parameters)
        fewer = objective.fewer_rows
        outputs = self.engine.jacobian.shape[0] if fewer is None else fewer.samples * fewer.outputs
        size = rms * (decomposition.squared_norm / outputs).sqrt()
        squared = _output_rounding(objective, size).square()
        pulled = rms * decomposition.pulled_norm(objective.flat_gradient).double()
        if split is not None:
            numbers = torch.stack([split.ranks.total(squared), pulled])
            squared, pulled = split.ranks.first(numbers)
        eps = max(torch.finfo(t.dtype).eps for t in (objective.forward.prediction, *parameters))
        return eps * float(squared.sqrt() + pulled)

    @property
    def objectives(self) -> list[Objective]:
        """The objective, as a list: several losses with a prediction each have several."""
        return [self.objective]

    @property
    def loss(self) -> Tensor:
        """Loss, without its graph, and not as a view of a larger tensor."""
        return self.objective.loss.detach().clone()

    def spectra(self) -> list[GramSpectrum]:
        """Return the sources of singular values that the report computes later, if any."""
        source = getattr(self.decomposition, "deferred", None)
        return [] if source is None else [source]

    def report(self, filter: SpectralFilter) -> StepReport:
        """Return the report of a step with this filter, as far as it is known now."""
        decomposition, split = self.decomposition, self.objective.split
        filter = self.resolved(filter)
        rows, columns = self.engine.jacobian.shape
        return StepReport(
            loss=self.loss,
            engine=self.engine.engine,
            route=decomposition.route,
            rows=rows,
            columns=columns,
            spectrum=decomposition.spectrum(),
            rcond=max(filter.rcond, decomposition.floor),
            seconds=self.clock.seconds,
            error_estimate=getattr(decomposition, "error_estimate", None),
            notes=[*self.notes, *decomposition.notes],
            dtype=self.objective.forward.prediction.dtype,
            communication=None if split is None else split.ranks.communication,
            fewer_rows=self.objective.fewer_rows,
            samples=self.objective.samples,
        )


def _root_mean_square(parameters: Sequence[Tensor]) -> Tensor:
    norms = [torch.linalg.vector_norm(real_view(p), dtype=torch.float64) for p in parameters]
    return torch.stack(norms).norm() / sum(map(real_size, parameters)) ** 0.5


def _output_rounding(objective: Objective, size: Tensor) -> Tensor:
    r"""Return the change of the loss by that of its outputs in rounding, over eps: a scalar.

    The outputs are known up to the rounding of themselves, and of the larger numbers whose small
    difference they may be. The errors of one sample add up, those of several are independent.

    Args:
        objective: the loss and outputs of this process.
        size: the size of such numbers.
    """
    prediction = objective.closure_prediction.detach().double()
    changes = objective.closure_gradient.detach().double().abs() * (prediction.abs() + size)
    return changes.reshape(len(prediction), -1).sum(1).norm()


@dataclass
class AssembledGram:
    """Jacobian and matrix to decompose, before any host synchronisation.

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
    """Obtains and decomposes joint Jacobians, with a memory of exactness and pass sizes.

    Args:
        engine: "auto", "layerwise", "rows" or a custom engine.
        method: "auto", "gram", "svd", "lanczos" or a :class:`hig.Lanczos`.
        chunk: backward passes in one batch; None chooses by memory.
        sizes: memory of the passes of earlier steps; None for an empty one.

    Attributes:
        backward: runs the backward passes.
        memory: exactness of layers in earlier steps.
        controls: the same of controls.
    """

    def __init__(
        self,
        engine: str | Engine,
        method: str | Lanczos,
        chunk: int | None,
        sizes: PassSizes | None = None,
    ):
        self._engine, self._method = engine, method
        self.backward = BatchedVJP(chunk, sizes=PassSizes() if sizes is None else sizes)
        self.memory, self.controls = ExactnessMemory(), ExactnessMemory()

    @property
    def forms_rows(self) -> bool:
        """Whether the engine is one of ours, and needs a backward pass for each row of a sample."""
        return isinstance(self._engine, str) and not self.needs_graph

    @property
    def needs_graph(self) -> bool:
        """Whether the step multiplies with a Jacobian that is not formed."""
        return self._method == "lanczos" or isinstance(self._method, Lanczos)

    def linearise(
        self, objective: Objective, filter: SpectralFilter, clock: PhaseClock
    ) -> Linearisation:
        """Obtain and decompose the joint Jacobian of an objective.

        Args:
            objective: the loss and the forward pass.
            filter: the filter that will be applied first; it determines the route.
            clock: clock of the step.

        Raises:
            NonFiniteError: the Jacobian holds NaN or Inf.
            SampleDependenceError: see :func:`hig._jacobian.engine.build_jacobian`.
            ValueError: a prediction without parameters, or process ranks with different columns.
        """
        assembled = self.assemble(objective, filter, clock)
        try:
            return self.decompose(assembled, filter, clock)
        except InexactLayersError:
            assembled = self.assemble_checked(objective, filter, clock)
        return self.decompose(assembled, filter, clock)

    def assemble_checked(
        self, objective: Objective, filter: SpectralFilter, clock: PhaseClock
    ) -> AssembledGram:
        """Assemble again after an :class:`InexactLayersError`, checking each layer first.

        If a layer is inexact, later steps evaluate their checks before the Gram matrix too.
        """
        self.memory.optimistic = False
        assembled = self.assemble(objective, filter, clock)
        # If all layers are exact, the failure was rounding, which is allowed from now on.
        self.memory.optimistic = assembled.engine.layers_exact
        return assembled

    def build(self, objective: Objective, clock: PhaseClock) -> EngineResult:
        """Obtain the Jacobian of an objective, checked; errors as :meth:`linearise`."""
        with clock.phase("jacobian"), torch.no_grad():
            return build_jacobian(objective.forward, self._engine, self.backward, self.memory)

    def assemble(
        self,
        objective: Objective,
        filter: SpectralFilter,
        clock: PhaseClock,
        result: EngineResult | None = None,
    ) -> AssembledGram:
        """Obtain the Jacobian and the matrix to decompose; errors as :meth:`linearise`.

        While unverified factors may be used there is no host synchronisation.

        Args:
            objective: the loss and the forward pass.
            filter: the filter that will be applied first.
            clock: clock of the step.
            result: the Jacobian, if it is known.
        """
        forward, split, checks = objective.forward, objective.split, objective.checks
        dtype = forward.prediction.dtype
        products = choose_route((0, 0), dtype, filter, self._method) == "lanczos"
        with clock.phase("jacobian"), torch.no_grad():
            if result is not None:
                pass
            elif split is None:
                later = checks if self.memory.optimistic else None
                result = build_jacobian(
                    forward, self._engine, self.backward, self.memory, products, later
                )
            else:  # process ranks must agree at once
                result = build_distributed(
                    forward, split, self._engine, self.backward, self.memory, products
                )
        if not result.order:
            raise ValueError(
                "the prediction depends on none of the parameters; check that the closure runs the "
                "network whose parameters the optimizer holds, and with gradients enabled"
            )
        route = choose_route(result.jacobian.shape, dtype, filter, self._method)
        if route == "lanczos":
            return AssembledGram(objective, result, route, None)
        with clock.phase("gram"), torch.no_grad():
            _check_room(result.jacobian, route)
            matrix = _assemble_matrix(result.jacobian, route)
            finite = torch.isfinite(matrix).all()
            # Not the objective: it holds the checks, and the cycle would keep its graph alive.
            places = Places(result, forward, None if split is None else split.ranks)
            checks.expect(finite, partial(refuse_non_finite, places))
        return AssembledGram(objective, result, route, matrix)

    def decompose(
        self,
        assembled: AssembledGram,
        filter: SpectralFilter,
        clock: PhaseClock,
        replayed: bool = False,
    ) -> Linearisation:
        """Evaluate all checks at once, and decompose; errors as `linearise`.

        Args:
            assembled: the matrix.
            filter: the filter that will be applied first.
            clock: clock of the step.
            replayed: whether a later replay will overwrite these tensors.

        Raises:
            InexactLayersError: unverified factors are not exact.
        """
        objective, engine = assembled.objective, assembled.engine
        decomposition: Decomposition
        if assembled.matrix is None:
            objective.checks.settle()
            settings = self._method if isinstance(self._method, Lanczos) else Lanczos()
            dtype = objective.forward.prediction.dtype
            decomposition = Krylov(engine.jacobian, dtype, settings)
        else:
            with clock.phase("gram"):  # waits for the device
                objective.checks.settle(keep=replayed)
            # The spectrum may be read later, after a replay has overwritten the matrix.
            matrix = assembled.matrix.clone() if replayed else assembled.matrix
            split = objective.split
            together = nullcontext() if split is None else split.ranks.agreement()
            with torch.no_grad(), clock.phase("decomposition"), together:
                decomposition = decompose(engine.jacobian, matrix, assembled.route, filter)
        notes = [*engine.notes, *self.backward.notes]
        automatic = getattr(filter, "auto", False)
        if filter.needs_small_values and not automatic and filter.rcond < decomposition.floor:
            notes.append(
                f"rcond {filter.rcond:.1e} raised to {decomposition.floor:.1e}, the resolution of "
                f"route '{decomposition.route}'"
            )
        return Linearisation(objective, engine, decomposition, clock, notes)


def _assemble_matrix(jacobian: JointJacobian, route: str) -> Tensor:
    if route == "row_gram":
        return jacobian.gram()
    if route == "column_gram":
        return jacobian.normal()
    return jacobian.dense().double()


def _check_room(jacobian: JointJacobian, route: str) -> None:
    """Raise if the matrix of a route and its decomposition do not fit into memory."""
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
        "use a smaller batch, or method='lanczos', which forms no such matrix; another chunk, the "
        "number of backward passes at a time, does not change it",
    )
