"""Share of this process in a step: its samples of the batch, added to those of the others.

Gradients, loss and the factors S are sums over samples, the factors A means over rows. Each process
rank computes those of its samples; their sums, in float64, are those of the whole batch.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from hig._jacobian.distributed import BatchSplit
from hig._kronecker.layer_factors import LayerFactors, check_finite
from hig._kronecker.layer_state import position
from hig._step.distributed import agreed_split
from hig._step.objective import ranks_of
from hig._torch.checksums import digest
from hig._torch.ranks import Communication, ProcessGroup

__all__ = ["Share"]

_SAME_NETWORK = (
    "run the same network on every process rank; the prediction must depend on the same parameters "
    "everywhere, through the same layers"
)


class Share:
    """Samples of this process in one step; all of them if it steps alone.

    All methods but ``check_finite`` and ``place`` are collective: all process ranks call the same
    ones in the same order. ``join`` comes before those that need the other samples.

    Args:
        process_group: the process ranks that step together.
        reduction: "mean" or "sum", see :meth:`BatchSplit.weight`.
    """

    def __init__(self, process_group: ProcessGroup, reduction: str):
        self._ranks, self._reduction = ranks_of(process_group), reduction
        self._split: BatchSplit | None = None
        self._weight = 1.0

    @property
    def communication(self) -> Communication | None:
        """Communication of this process rank so far; None if it steps alone."""
        return None if self._ranks is None else self._ranks.communication

    @property
    def place(self) -> tuple[int, int] | None:
        """Number of the first sample in the whole batch, and samples of that; None alone."""
        if self._split is None or self._ranks is None:
            return None
        samples = self._split.samples
        return sum(samples[: self._ranks.rank]), sum(samples)

    def agreement(self) -> AbstractContextManager[None]:
        """Return a context in which an error on one process rank is raised on all."""
        return nullcontext() if self._ranks is None else self._ranks.agreement()

    def on_any(self, fact: bool) -> bool:
        """Return whether something is true on any process rank."""
        return fact if self._ranks is None else any(self._ranks.whole_numbers(int(fact)))

    def join(
        self,
        prediction: Tensor,
        flat: Sequence[Tensor],
        gradients: Mapping[Tensor, Tensor],
        settings: Callable[[], tuple[object, ...]],
    ) -> None:
        """Learn how the samples are shared, after comparing what must be equal on all ranks.

        Args:
            prediction: (B, ...) of this process rank.
            flat: all parameters of the optimiser.
            gradients: by parameter, of those that the prediction depends on.
            settings: returns settings and state of the optimiser that must be equal.

        Raises:
            ValueError: the process ranks differ.
        """
        if self._ranks is None:
            return
        used = [index for index, parameter in enumerate(flat) if parameter in gradients]
        further = {
            "the checksum of the parameters that the prediction depends on": (
                digest(used),
                _SAME_NETWORK,
            )
        }
        trained = [_real(p.detach()) for p in flat if p.requires_grad and not is_lazy(p)]
        self._split = agreed_split(
            prediction, trained, self._ranks, digest(self._reduction, *settings()), further
        )
        self._weight = self._split.weight(self._reduction)

    def check_finite(
        self, gradients: Mapping[Tensor, Tensor], factors: Sequence[LayerFactors] = ()
    ) -> None:
        """Raise a `NonFiniteError` that names this process rank if its numbers are not finite.

        Alone there is nothing to name, and those of the whole batch are checked anyway.
        """
        if self._ranks is not None:
            check_finite(gradients, factors)

    # -- sums over all samples -------------------------------------------------------------------

    def whole_loss(self, loss: Tensor) -> Tensor:
        """Return the loss of the whole batch, with the same bits on all process ranks."""
        if self._ranks is None:
            return loss
        return torch.full_like(loss, self._ranks.sum_of(self._weight * float(loss)))

    def whole_gradients(self, gradients: dict[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """Return the gradients of the loss of the whole batch, by parameter."""
        if self._ranks is None:
            return gradients
        sums = self._sums([self._weight * gradient.double() for gradient in gradients.values()])
        pairs = zip(gradients.items(), sums, strict=True)
        return {parameter: total.to(like) for (parameter, like), total in pairs}

    def whole_factors(
        self, factors: Sequence[LayerFactors], flat: Sequence[Tensor]
    ) -> list[LayerFactors]:
        """Return the factors of the whole batch, of the same layers on all process ranks.

        Args:
            factors: those of the samples of this process rank.
            flat: all parameters of the optimiser.

        Raises:
            ValueError: the process ranks found different layers.
        """
        if self._ranks is None:
            return list(factors)
        # Layers come in the order of their calls, which may differ.
        factors = sorted(factors, key=lambda each: position(each.layer.weight, flat))
        layout = [
            (
                *(position(p, flat) for p in (f.layer.weight, f.layer.bias)),
                f.swapped,
                f.outputs.shape,
            )
            for f in factors
        ]
        layers = "the checksum of the layers that have factors"
        self._ranks.agree_on({layers: (digest(layout), _SAME_NETWORK)})
        if not factors:
            return []
        parts = []
        for f in factors:
            found = [float(any(p is other for other in f.partial)) for p in f.layer.parameters]
            # A is a mean over the rows of this process rank.
            numbers = f.outputs.new_tensor([f.rows, *found], dtype=torch.float64)
            parts += [f.outputs.double(), f.rows * f.inputs.double(), numbers]
        sums = iter(self._sums(parts))
        return [_joined(f, next(sums), next(sums), next(sums).tolist()) for f in factors]

    def _sums(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the sums of float64 tensors over all process ranks, by one exchange."""
        assert self._ranks is not None
        packed = self._ranks.total(torch.cat([tensor.flatten() for tensor in tensors]))
        sums = packed.split([tensor.numel() for tensor in tensors])
        return [total.view(tensor.shape) for total, tensor in zip(sums, tensors, strict=True)]

    # -- the same on all process ranks -----------------------------------------------------------

    def first_text(self, text: str) -> str:
        """Return the text of the first process rank; one exchange of a number if all are equal."""
        if self._ranks is None or len(set(self._ranks.whole_numbers(digest(text)))) == 1:
            return text
        return self._ranks.first_text(text)

    @torch.no_grad()
    def take_first(self, parameters: Sequence[Tensor]) -> None:
        """Give parameters the values of the first process rank.

        They differ at most by the rounding of another processor, which would add up.
        """
        if self._ranks is None:
            return
        # As bytes: tensors of all dtypes travel together, and every backend sends them.
        parts = [_real(p).contiguous().flatten().view(torch.uint8) for p in parameters]
        for parameter, part in zip(parameters, self._ranks.first_of(parts), strict=True):
            real = _real(parameter)
            # Copied, as numbers must start at a multiple of their size.
            real.copy_(part.clone().view(real.dtype).view(real.shape))


def _real(tensor: Tensor) -> Tensor:
    """Return a complex tensor as real and imaginary parts (..., 2), others as they are."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _joined(
    local: LayerFactors, outputs: Tensor, inputs: Tensor, numbers: list[float]
) -> LayerFactors:
    """Return factors of the whole batch from sums over the process ranks."""
    rows, *found = numbers
    return replace(
        local,
        outputs=outputs.to(local.outputs),
        inputs=(inputs / max(1.0, rows)).to(local.inputs),
        rows=int(rows),
        partial=tuple(p for p, n in zip(local.layer.parameters, found, strict=True) if n),
    )
