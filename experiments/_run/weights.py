"""Weights files, from which another run can start."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

import hig
from hig.errors import printable

# Not .pickle, so that `*.pickle` finds the result files alone; and another stem than the result
# file's, whose parameters stand as text in <stem>.txt.
ENDING = "_network.weights"

_KINDS = {
    "problem": str, "weights": dict, "label": str, "seed": int, "training_time": float, "runs": int
}  # fmt: skip

# Entries that names, times and random numbers of the later run depend on.
_RANGES = {
    "label": ("a line of at most 1000 characters", lambda x: x.isprintable() and len(x) <= 1000),
    "seed": ("from 0 to 2**32 - 1", lambda x: 0 <= x < 2**32),
    "training_time": ("non-negative and finite", lambda x: 0 <= x < math.inf),
    "runs": ("from 1 to 2**32 - 1", lambda x: 1 <= x < 2**32),
}


class WeightsError(ValueError):
    """Weights cannot be read or do not fit; the text has the reason and the remedy."""


@dataclass(frozen=True)
class Snapshot:
    """Weights at an evaluation.

    Attributes:
        weights: Arrays by name, parameters and buffers of the network.
        seconds: Training time of this run until then.
        test_loss: Mean test loss per sample.
    """

    weights: dict[str, np.ndarray]
    seconds: float
    test_loss: float

    def put_into(self, network: nn.Module) -> None:
        """Go back to these weights, in the network that they are of."""
        network.load_state_dict({n: torch.tensor(value) for n, value in self.weights.items()})

    @property
    def usable(self) -> bool:
        """Return whether weights and loss are finite."""
        numbers = (*self.weights.values(), self.test_loss)
        return all(bool(np.isfinite(value).all()) for value in numbers)


@dataclass(frozen=True)
class Pretraining:
    """Earlier run whose weights a run starts from.

    Attributes:
        path: The weights file.
        weights: Arrays by name.
        label: Label of the run that ended with these weights.
        seed: Seed of that run.
        seconds: Training time of that run and of all runs before it.
        runs: Their number.
    """

    path: Path
    weights: dict[str, np.ndarray]
    label: str
    seed: int
    seconds: float
    runs: int

    def put_into(self, network: nn.Module) -> None:
        """Overwrite parameters and buffers of a network, in its own dtype and on its device.

        Raises:
            WeightsError: Names or shapes differ; the network is unchanged then.
        """
        remedy = "set the parameters of the problem as in the run that wrote them"
        expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        if self.weights.keys() != expected.keys():
            named = ", ".join(map(printable, self.weights))
            raise WeightsError(
                f"the weights in {self.path} are named {named}; those of the network are "
                f"{', '.join(expected)}: {remedy}"
            )
        for name, shape in expected.items():
            if (found := getattr(self.weights[name], "shape", "none")) != shape:
                raise WeightsError(
                    f"'{name}' in {self.path} has shape {found}, in the network {shape}: {remedy}"
                )
        try:
            tensors = {name: torch.tensor(value) for name, value in self.weights.items()}
            if any(tensor.is_complex() for tensor in tensors.values()):
                raise TypeError("they are complex")
        except (OverflowError, RuntimeError, TypeError, ValueError) as error:
            raise WeightsError(
                f"the weights in {self.path} are not numbers of a dtype of torch: {error}; give a "
                "file that a run with --save-weights wrote"
            ) from error
        network.load_state_dict(tensors)


def snapshot(network: nn.Module, seconds: float, test_loss: float) -> Snapshot:
    """Copy the weights of a network."""
    state = network.state_dict().items()
    weights = {name: value.cpu().numpy().copy() for name, value in state}
    return Snapshot(weights, seconds, test_loss)


def place(result: Path) -> Path:
    """Path of the weights file next to a result file."""
    return result.with_name(result.stem + ENDING)


def save(
    result: Path, latest: Snapshot, run: dict[str, object], earlier: Pretraining | None
) -> Path:
    """Write finite weights and the names in ``run`` next to a result file; returns the path."""
    path = place(result)
    contents = {
        **run,
        "training_time": latest.seconds + (earlier.seconds if earlier else 0.0),
        "test_loss": latest.test_loss,
        "runs": 1 + (earlier.runs if earlier else 0),
        "weights": latest.weights,
    }
    hig.save_results(path, contents)
    return path


def load(path: Path, problem: str) -> Pretraining:
    """Read a weights file that `save` wrote, for a run on the named problem.

    Raises:
        WeightsError: There is no such file, it holds something else, or it belongs to another
            problem.
    """
    if not path.is_file():
        there = ", ".join(sorted(file.name for file in path.parent.glob(f"*{ENDING}"))[:10])
        raise WeightsError(
            f"no weights file {path}; in its folder: {there or 'none'}; "
            "a run with --save-weights writes one"
        )
    try:
        contents = hig.load_results(path)
    except (OSError, hig.CorruptResultError, hig.UnsafeResultError) as error:
        raise WeightsError(str(error)) from error
    for key, kind in _KINDS.items():
        if not isinstance(contents.get(key), kind):
            found = f"'{key}' is not a {kind.__name__}" if key in contents else f"it has no '{key}'"
            raise WeightsError(
                f"{path} is not a weights file, {found}; "
                f"give the *{ENDING} that a run with --save-weights wrote"
            )
    for key, (what, holds) in _RANGES.items():
        if not holds(contents[key]):
            raise WeightsError(
                f"'{key}' in {path} must be {what}, got {printable(contents[key])[:100]}; "
                f"give the *{ENDING} that a run with --save-weights wrote"
            )
    if contents["problem"] != problem:
        raise WeightsError(
            f"{path} holds weights for problem {printable(contents['problem'])}, the run is on "
            f"{problem}; give weights of the same problem"
        )
    return Pretraining(path, *(contents[key] for key in list(_KINDS)[1:]))
