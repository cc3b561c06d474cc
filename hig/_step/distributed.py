"""Objective of a batch whose samples lie on several process ranks."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hig._jacobian.distributed import BatchSplit
from hig._spectral.filters import SpectralFilter
from hig._step.objective import Objective
from hig._torch.checksums import checksum, digest
from hig._torch.ranks import Ranks

__all__ = ["agreed_split", "digest_of_filter", "whole_batch"]

# What differs, the value and the remedy.
Facts = dict[str, tuple[int, str]]


def whole_batch(local: Objective, split: BatchSplit, reduction: str) -> Objective:
    """Join the objectives of all process ranks.

    Args:
        local: objective of the samples of this process rank, its checks evaluated.
        split: the samples of each process rank.
        reduction: "mean" or "sum", see :meth:`BatchSplit.weight`.
    """
    split = replace(split, outputs=local.forward.prediction[0].numel())  # or fewer rows
    weight = split.weight(reduction)
    row_map = local.row_map
    with torch.enable_grad():  # the curvature may be needed
        gradient = weight * local.gradient
        if row_map is not None:
            row_map = replace(row_map, gradient=weight * row_map.gradient)
    total = split.ranks.sum_of(weight * float(local.loss.detach()))
    return replace(
        local,
        loss=torch.full_like(local.loss, total, requires_grad=False),
        gradient=gradient,
        flat_gradient=split.gather_concatenated(gradient.detach().double().flatten()),
        split=split,
        weight=weight,
        row_map=row_map,
    )


def agreed_split(
    prediction: Tensor,
    parameters: Sequence[Tensor],
    ranks: Ranks,
    settings: int,
    further: Facts | None = None,
) -> BatchSplit:
    """Return the samples of each process rank, after comparing what must be equal on all.

    Args:
        prediction: (B, ...) of this process rank.
        parameters: the parameters of the step, real.
        ranks: the process ranks of the step.
        settings: digest of all settings of the step.
        further: further facts that must be equal.

    Raises:
        ValueError: the process ranks differ in parameters, settings, or the shape per sample.
    """
    outputs = prediction[0].numel()
    facts = _facts(outputs, prediction.dtype, parameters, settings)
    ranks.agree_on(facts | (further or {}))
    return BatchSplit(ranks, ranks.whole_numbers(len(prediction)), outputs)


def digest_of_filter(filter: SpectralFilter) -> int:
    """Return a digest of the gains of a filter; its ``repr`` may contain an address."""
    probes = torch.logspace(-6, 6, 5, dtype=torch.float64, device="cpu")
    return digest(
        getattr(filter, "auto", False),
        filter.rcond,
        filter.needs_small_values,
        filter.gain(probes).tolist(),
    )


def _facts(outputs: int, dtype: torch.dtype, parameters: Sequence[Tensor], settings: int) -> Facts:
    shapes = [(tuple(parameter.shape), parameter.dtype) for parameter in parameters]
    model = "build the same network on every process rank"
    return {
        "the number of parameters": (sum(parameter.numel() for parameter in parameters), model),
        "the checksum of shapes and dtypes of the parameters": (digest(shapes), model),
        "the checksum of the values of the parameters": (
            checksum(parameters),
            "start every process rank from the same seed, or send those of one to all: "
            "torch.distributed.broadcast(parameter.data, 0) for each",
        ),
        "the number of outputs per sample": (
            outputs,
            "process ranks may have different numbers of samples, not of outputs for each",
        ),
        "the checksum of the prediction's dtype": (digest(dtype), "compute in one dtype"),
        "the checksum of learning rates, filter and other settings": (
            settings,
            "create the optimizer with the same arguments on every process rank, load the same "
            "state and step schedulers on all",
        ),
    }
