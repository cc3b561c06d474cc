"""Spectral direction as ``.grad``, for any other optimiser."""

from collections.abc import Iterable
from typing import Any, Literal, Self

import torch
from torch import Tensor

from hig._jacobian.capture import Capture, Captured
from hig._jacobian.engine import Engine
from hig._spectral.decomposition import GramSpectrum
from hig._spectral.filters import SpectralFilter, check_filter
from hig._spectral.lanczos import Lanczos
from hig._step.closure import apart_from_autocast, explained
from hig._step.distributed import agreed_split, digest_of_filter, whole_batch
from hig._step.fewer_rows import with_fewer_rows
from hig._step.linearisation import Lineariser
from hig._step.objective import StepContext, objective_of, ranks_of
from hig._step.options import StepOptions
from hig._step.reports import StepReport
from hig._step.sketch import Directions, Sketch
from hig._torch.autograd_graph import from_real, plain
from hig._torch.batched_vjp import PassSizes
from hig._torch.checksums import digest
from hig._torch.host import PhaseClock
from hig._torch.ranks import ProcessGroup
from hig._torch.threads import on_fitting_threads
from hig.arguments import check_parameters
from hig.errors import described

__all__ = ["record"]

# Shared by the process: a recording lasts for one step, and those of a training are alike.
_SIZES = PassSizes()


class record:
    """Record a forward computation, then put its spectral direction into ``.grad``.

    Any optimiser, scheduler, gradient clipping or trainer uses it from there::

        with hig.record(network.parameters()) as record:
            prediction = simulate(start, network(target))
            loss = (prediction - target).square().sum(1).mean()
        record.backward(loss, prediction, filter=hig.HalfInverse(rcond=1e-6))
        torch.optim.SGD(network.parameters(), lr=1.0, momentum=0.9).step()

    Args:
        parameters: the parameters of the joint Jacobian; those that require no gradient are
            ignored.

    Attributes:
        report: the :class:`~hig.StepReport` of the last ``backward``, None before.
    """

    def __init__(self, parameters: Iterable[Tensor]):
        tensors = check_parameters(parameters, "parameters")
        for parameter in tensors:
            if not isinstance(parameter, Tensor):
                raise TypeError(
                    f"record takes parameters, got {described(parameter)}; "
                    "pass network.parameters()"
                )
        unique = {id(parameter): parameter for parameter in tensors}
        self._parameters = [p for p in unique.values() if p.requires_grad]
        if not self._parameters:
            raise ValueError(
                "no parameter that requires a gradient was given; pass network.parameters()"
            )
        self._capture = Capture(self._parameters)
        self._spectra: list[GramSpectrum] = []
        self.report: StepReport | None = None

    def __enter__(self) -> Self:
        """Start recording."""
        self._capture.captured = Captured()
        self._spectra = []
        self._capture.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        """Stop recording; the graph is still needed for ``backward``."""
        self._capture.__exit__(*exception)

    @on_fitting_threads
    def backward(
        self,
        loss: Tensor,
        prediction: Tensor,
        filter: SpectralFilter,
        engine: str | Engine = "auto",
        method: str | Lanczos = "auto",
        chunk: int | None = None,
        process_group: ProcessGroup = "auto",
        reduction: str = "mean",
        sketch: int | Literal["auto"] | Directions | None = None,
        weights: Tensor | None = None,
    ) -> None:
        """Add the direction to ``.grad`` of each parameter, as ``loss.backward()`` would.

        All other arguments are those of :class:`hig.HIG`.

        Args:
            loss: scalar; depends on the parameters through ``prediction`` alone.
            prediction: (batch, ...).
            filter: ``hig.HalfInverse(...)``, ``hig.Damped(...)`` or a custom filter.
            process_group: see :class:`hig.HIG`; all processes have the same ``.grad``.
            sketch: see :class:`hig.HIG`; draws one number from the global generator of torch, the
                seed of the directions.
            weights: of samples or outputs, see :meth:`hig.HIG.step`.

        Raises:
            NonFiniteError: loss, prediction or Jacobian hold NaN or Inf; ``.grad`` is unchanged.
            SampleDependenceError: engine "layerwise", and samples influence one another.
            TypeError: ``filter`` is not a spectral filter.
            ValueError: see :meth:`hig.HIG.step`.
        """
        check_filter(filter)
        options = StepOptions(
            engine=engine, method=method, chunk=chunk, process_group=process_group,
            reduction=reduction, sketch=sketch,
        )  # fmt: skip
        ranks, count = ranks_of(process_group), len(self._parameters)
        step = StepContext(self._parameters, [1.0] * count, [None] * count, ranks, PhaseClock())
        lineariser = Lineariser(engine, method, options.chunk, _SIZES)
        self._spectra = []
        loss, prediction = plain(loss, "the loss"), plain(prediction, "the prediction")
        with step.agreement():
            captured = self._capture.captured
            objective = objective_of(loss, prediction, captured, step, curvature=False)
            if weights is not None:
                objective = objective.weighted(weights)
            if ranks is not None:  # before the first collective
                objective.checks.settle()
        drawn = None
        if options.sketch is not None:
            drawn = Sketch(options.sketch, {"seed": int(torch.randint(2**62, (), device="cpu"))})
        split = None
        if ranks is not None:
            settings = digest(digest_of_filter(filter), options.sketch)
            prediction = objective.forward.prediction
            split = agreed_split(prediction, self._parameters, ranks, settings)
        objective = with_fewer_rows(objective, lineariser, drawn, step, split)
        if split is not None:
            objective = whole_batch(objective, split, reduction)
        _, without_autocast = apart_from_autocast(lambda: None, loss.device)
        with explained(), without_autocast:
            linearisation = lineariser.linearise(objective, filter, step.clock)
            with torch.no_grad():
                directions, _ = linearisation.step(filter)
        with torch.no_grad():
            for parameter, direction in zip(self._parameters, directions, strict=True):
                direction, before = from_real(direction, parameter), parameter.grad
                if before is None:
                    parameter.grad = direction
                elif before.layout == torch.strided:
                    before += direction
                else:  # a sparse gradient, for example of an embedding
                    parameter.grad = before.to_dense() + direction
        self.report = linearisation.report(filter)
        self._spectra = linearisation.spectra()
