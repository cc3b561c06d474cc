"""Base class of a problem: data, network, prediction, loss and published settings."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hig.arguments import FRACTION, KAPPA, POSITIVE, check_count, check_number
from hig.errors import described

Batch = Mapping[str, Tensor]


def samples(batch: Batch) -> int:
    """Number of samples, the leading dimension of the first tensor, and mostly of all."""
    return len(next(iter(batch.values())))


def slices(data: Batch, size: int) -> Iterator[Batch]:
    """Consecutive slices of a data set; the last one is shorter where ``size`` does not divide.

    Args:
        data: Tensors of equal leading dimension.
        size: Samples per slice.

    Yields:
        A slice of every tensor.
    """
    for start in range(0, samples(data), size):
        yield {key: value[start : start + size] for key, value in data.items()}


@dataclass(frozen=True)
class Settings:
    """How one method steps on one problem; None stands for the default of the method.

    Attributes:
        batch_size: Samples per step.
        lr: Step size η.
        rcond: Relative cut-off of the singular values, or ``"auto"``; truncating Jacobian methods
            only.
        kappa: Exponent of the singular values; HIG and Kronecker HIG only.
        damping: Initial damping of Levenberg–Marquardt; of Kronecker HIG, in units of the mean
            eigenvalue.
        engine: How the Jacobian is obtained; Jacobian methods only.
        method: How the Jacobian is decomposed; Jacobian methods only.
        lanczos_steps: Most steps of the decomposition ``"lanczos"``; Jacobian methods only.
        step_rule: ``"fixed"``, ``"trust"`` or ``"line_search"``; Jacobian methods only.
        sketch: Rows per sample, directions of its outputs, or ``"auto"``; None for all outputs.
            Jacobian methods for one loss only, as the next two.
        momentum: What the direction of a step keeps of the last one, in [0, 1).
        momentum_kind: ``"plain"`` or ``"projected"``.
        graft: Source of the length of a step, ``"eigenbasis"``, ``"layer"`` or ``"global"``;
            Kronecker HIG only.
        schedule: ``"constant"``, or ``"cosine"`` for a step size that falls to a tenth along half
            a cosine; Jacobian methods for one loss, and all others after a short warm-up.
        published: True for values from the publication of the problem, False for our own choice.

    Raises:
        TypeError: If what should be a number is none.
        ValueError: If a number lies outside its range.
    """

    batch_size: int
    lr: float
    rcond: float | Literal["auto"] | None = None
    kappa: float | None = None
    damping: float | None = None
    engine: str | None = None
    method: str | None = None
    lanczos_steps: int | None = None
    step_rule: str | None = None
    sketch: int | Literal["auto"] | None = None
    momentum: float | None = None
    momentum_kind: str | None = None
    graft: str | None = None
    schedule: str | None = None
    published: bool = False

    def __post_init__(self):
        check_count(self.batch_size, "batch_size", "give the number of samples per step")
        check_number(self.lr, "lr", POSITIVE, "give a step size such as 1e-3")
        optional = {
            "rcond": (FRACTION, "1e-6 suits float32 Jacobians"),
            "kappa": (KAPPA, "-0.5 is the half-inverse gradient"),
            "damping": (POSITIVE, "give a number such as 1e-3"),
            "momentum": (FRACTION, "give a number such as 0.9"),
        }
        for name, (within, remedy) in optional.items():
            value = getattr(self, name)
            if value is not None and (name, value) != ("rcond", "auto"):
                check_number(value, name, within, remedy)
        if self.lanczos_steps is not None:
            check_count(self.lanczos_steps, "lanczos_steps", "give a number such as 300")
        if self.sketch not in (None, "auto"):
            check_count(self.sketch, "sketch", "give a number such as 4, or 'auto'")


def parameter(default: int | float | bool | str, text: str, choices: Sequence[str] = ()):
    """A field of a problem that a command line offers.

    Args:
        default: The published value; its type is the type of the argument.
        text: What the help says.
        choices: The values that a text may take.

    Returns:
        A dataclass field.
    """
    return field(default=default, metadata={"help": text, "choices": tuple(choices)})


def location(flag: str, text: str):
    """A field of a problem for the folder of its files, which a command line offers.

    Where the files lie makes no other problem of it: problems that differ in it alone are equal,
    and their runs have one name.

    Args:
        flag: Name of the argument, such as ``"data"`` for ``--data``.
        text: What the help says.

    Returns:
        A dataclass field; empty where nothing is given.
    """
    metadata = {"help": text, "choices": (), "flag": flag}
    return field(default="", compare=False, metadata=metadata)


class DataError(ValueError):
    """The files of a problem cannot be read; the text says what is wrong and where to get them."""


def require_positive_numbers(problem: "Problem") -> None:
    """Check that the fields of a problem are what their defaults are, and numbers positive.

    Raises:
        TypeError: If a field is of another type, such as a text for a number.
        ValueError: If a number, those in tuples included, is not positive and finite.
    """
    for given in fields(problem):
        value, default, name = getattr(problem, given.name), given.default, given.name
        remedy = f"the default is {default!r}"
        if isinstance(default, str | bool):
            if not isinstance(value, type(default)):
                kind = "a text" if isinstance(default, str) else "True or False"
                raise TypeError(f"{name} must be {kind}, got {described(value)}; {remedy}")
        elif isinstance(default, int):
            check_count(value, name, remedy)
        elif isinstance(default, float):
            check_number(value, name, POSITIVE, remedy)
        elif not isinstance(value, tuple):
            raise TypeError(f"{name} must be a tuple, got {described(value)}; {remedy}")
        else:
            for number in value:
                check_count(number, f"each of {name}", remedy)


class Problem(ABC):
    """A differentiable simulator with a network in front of it, data, and a loss.

    Problems are frozen dataclasses; their fields are the physical and numerical parameters, those
    made by `parameter` are arguments of the submit scripts.

    Attributes:
        name: Identifier used in file names, such as ``"nonlinear_oscillators"``.
        time_budget: Training time in seconds, the published one where there is one; not needed
            where there is a number of epochs.
        epochs: Passes through the training data that a run makes by default, where it
            is they that are published or that count; None for a run by ``time_budget``.
        settings: Settings per method name.
        loss_reduction: Whether the loss is the ``"mean"`` or the ``"sum"`` over the samples.
            What is recorded is per sample either way.
        evaluate_by: ``"epoch"`` evaluates after each epoch; ``"time"`` at training times about 5 %
            apart, where an epoch has no meaning or takes milliseconds with one method and minutes
            with another.
        tested_by: What the recorded test loss is, for figures, where it is not the loss; see
            `data_loss`.
        examples: How many test samples `example` is given.
        traceable: Whether `torch.func` can differentiate `predict`.
    """

    name: ClassVar[str]
    settings: ClassVar[Mapping[str, Settings]]
    loss_reduction: ClassVar[Literal["mean", "sum"]] = "mean"
    evaluate_by: ClassVar[Literal["epoch", "time"]] = "epoch"
    tested_by: ClassVar[str | None] = None
    examples: ClassVar[int] = 3
    traceable: ClassVar[bool] = True
    epochs: ClassVar[int | None] = None
    time_budget: float

    @abstractmethod
    def network(self) -> nn.Module:
        """A freshly initialised network, drawn from torch's global generator."""

    @abstractmethod
    def data(self, generator: torch.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Training and test data, float64 on the CPU, equal leading dimension per dict.

        The state of the generator, on the CPU, alone decides the samples. Whole numbers, such as
        pixels and labels, keep their dtype during the training too.

        Raises:
            DataError: Files that they are read from are missing or not as they should be.
        """

    @abstractmethod
    def predict(self, network: nn.Module, batch: Batch) -> Tensor:
        """Simulated outcome (B, ...) of what the network decides for each of the B samples."""

    @abstractmethod
    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """Loss of B samples, a scalar; mean or sum as ``loss_reduction`` says."""

    def batches(self, train: Batch, size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Batches without end: consecutive slices of the training data, the last one shorter.

        A problem that draws fresh samples for every step overrides this. An interrupted run draws
        again what was drawn last and passes over what it has had of it: whenever the generator is
        drawn from, its state before must decide on all batches that follow.

        Args:
            train: Training data of `data`, on the device and in the dtype of the training.
            size: Samples per batch.
            generator: CPU generator for fresh samples.

        Yields:
            Dicts of tensors with the dtype and on the device of ``train``.
        """
        while True:
            yield from slices(train, size)

    def batch_loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """The loss of a batch, a scalar, for methods that want nothing but its gradient."""
        return self.loss(self.predict(network, batch), batch)

    def focus(self, network: nn.Module, batch: Batch) -> Batch:
        """Return the part of a batch to step on, chosen with the network as it is; by default all.

        This is part of the step, and of its time; the batch is drawn outside.
        """
        return batch

    def data_loss(self, network: nn.Module, data: Batch, chunk: int) -> float:
        """The loss per sample that is recorded, for training or test data.

        By default `loss` over the whole of them. A problem that is tested by something else than
        it is trained by overrides this.

        Args:
            network: The network, in evaluation mode; gradients are off.
            data: Training or test data of `data`.
            chunk: Samples evaluated at a time, which bounds the memory.

        Returns:
            Mean loss per sample, added up in float64.
        """
        total = 0.0
        for batch in slices(data, chunk):
            loss = self.loss(self.predict(network, batch), batch).double().item()
            total += loss if self.loss_reduction == "sum" else loss * samples(batch)
        return total / samples(data)

    def plain(self) -> "Problem":
        """The same problem, simulated as one would write it down, to compare with."""
        return self

    def metrics(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return what is recorded next to the loss at every evaluation, on the test data.

        Returns:
            Tensors of any fixed shape by name, each a mean over the samples or a statistic of
            them; none by default.
        """
        return {}

    def example(self, network: nn.Module, batch: Batch) -> dict[str, np.ndarray | list[str]]:
        """Return what figures show of a trained network, in numpy arrays and plain Python."""
        return {}
