"""Test losses after equal time with sketches whose directions are chosen in different ways.

``python -m experiments.directions`` trains with `hig.HIG` on a few directions of the outputs of
each sample: the gradient of its loss, and others that are

- random: new ones in every step, as ``sketch=K`` draws them;
- without replacement: those of a random basis, all of them in D / (K - 1) steps, then another one;
- carrying variance: random ones of the covariance of recent gradients;
- leading: the eigenvectors of that covariance with the largest eigenvalues;
- carried over: the mean gradients of the last K - 1 steps.

Only the steps count as training time, in processor time of one thread.
"""

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

import hig
from experiments._cli.argument_types import (
    momentum_argument,
    positive_float,
    positive_int,
    rcond_argument,
    seed_argument,
)
from experiments._measure import command
from experiments._problems import PROBLEMS
from experiments._provenance import machine, origin
from experiments._run.clock import TrainingClock
from experiments._run.evaluation import mean_loss
from experiments._run.step import outputs_closure

COLUMNS = {
    "directions": "{directions}",
    " test loss": "{loss:.2g}",
    " from": "{lowest:.2g}",
    " to": "{highest:.2g}",
    " steps": "{steps:.0f}",
}
# Part of the covariance of gradients that a new batch replaces.
_RENEWED = 0.1


class Recent:
    """Directions by the covariance of recent gradients.

    Args:
        count: k, with the gradient itself.
        generator: draws random numbers.
    """

    def __init__(self, count: int, generator: torch.Generator):
        self.count, self.generator = count - 1, generator
        self.covariance: Tensor | None = None

    def __call__(self, gradient: Tensor) -> Tensor:
        """Return directions (B, k - 1, D) besides the gradient (B, D), float64."""
        present = gradient.mT @ gradient / len(gradient)
        before = present if self.covariance is None else self.covariance
        self.covariance = before + _RENEWED * (present - before)
        return self.directions(*torch.linalg.eigh(self.covariance), len(gradient))

    def directions(self, values: Tensor, vectors: Tensor, samples: int) -> Tensor:
        """Choose directions by eigenvalues, ascending, and eigenvectors of the covariance."""
        raise NotImplementedError

    def normal(self, *shape: int) -> Tensor:
        """Draw normal numbers, float64."""
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)


class CarryingVariance(Recent):
    """Random directions with the covariance of recent gradients."""

    def directions(self, values: Tensor, vectors: Tensor, samples: int) -> Tensor:
        """Draw them."""
        roots = (values.clamp_min(0) / values[-1]).sqrt()
        return self.normal(samples, self.count, len(values)) @ (vectors * roots @ vectors.mT)


class Leading(Recent):
    """Eigenvectors with the largest eigenvalues, the same for all samples."""

    def directions(self, values: Tensor, vectors: Tensor, samples: int) -> Tensor:
        """Choose them."""
        return vectors[:, -self.count :].mT.expand(samples, -1, -1)


class WithoutReplacement:
    """Directions of a random basis, a few in each step, until all have had their turn.

    Args:
        count: k, with the gradient itself.
        generator: draws random numbers.
    """

    def __init__(self, count: int, generator: torch.Generator):
        self.count, self.generator = count - 1, generator
        self.left: list[Tensor] = []

    def __call__(self, gradient: Tensor) -> Tensor:
        """Return directions (B, k - 1, D) besides the gradient (B, D), float64."""
        outputs = gradient.shape[1]
        if len(self.left) < self.count:
            square = torch.randn(outputs, outputs, generator=self.generator, dtype=torch.float64)
            self.left = list(torch.linalg.qr(square)[0])
        chosen, self.left = self.left[: self.count], self.left[self.count :]
        return torch.stack(chosen).expand(len(gradient), -1, -1)


class CarriedOver:
    """Mean gradients of the last steps.

    Args:
        count: k, with the gradient itself.
        generator: draws the directions of the first steps.
    """

    def __init__(self, count: int, generator: torch.Generator):
        self.count, self.generator = count - 1, generator
        self.last: list[Tensor] = []

    def __call__(self, gradient: Tensor) -> Tensor:
        """Return directions (B, k - 1, D) besides the gradient (B, D), float64."""
        outputs = gradient.shape[1]
        missing = self.count - len(self.last)
        first = torch.randn(missing, outputs, generator=self.generator, dtype=torch.float64)
        chosen = torch.stack([*self.last, *first])
        self.last = [gradient.mean(0), *self.last][: self.count]
        return chosen.expand(len(gradient), -1, -1)


KINDS: Mapping[str, Callable[[int, torch.Generator], object]] = MappingProxyType(
    {
        "random": lambda count, generator: count,
        "without replacement": WithoutReplacement,
        "carrying variance": CarryingVariance,
        "leading": Leading,
        "carried over": CarriedOver,
    }
)


def train(name: str, kind: str, seed: int, options: argparse.Namespace) -> tuple[float, int]:
    """Train one of `PROBLEMS` from a fresh network.

    Returns:
        The final test loss, and the number of steps.
    """
    torch.manual_seed(seed)
    problem, generator = PROBLEMS[name](), torch.Generator().manual_seed(seed)
    network = problem.network()
    train, test = (
        {key: values.float() for key, values in data.items()} for data in problem.data(generator)
    )
    optimizer = hig.HIG(
        network.parameters(),
        rcond=options.rcond,
        momentum=options.momentum,
        momentum_kind="projected",
        sketch=KINDS[kind](options.sketch, torch.Generator().manual_seed(seed)),
    )
    clock, steps = TrainingClock("cpu", "processor"), 0
    for batch in problem.batches(train, options.batch_size, generator):
        if clock.seconds >= options.seconds:
            break
        with clock.running():
            optimizer.step(outputs_closure(problem, network, batch))
        steps += 1
    return mean_loss(problem, network, test), steps


def compare(name: str, options: argparse.Namespace) -> list[dict[str, object]]:
    """Train with directions of every kind.

    Returns:
        One row per kind: ``directions``, ``loss`` (the median final test loss over the seeds),
        ``lowest``, ``highest``, and ``steps`` (the median).
    """
    rows = []
    for kind in KINDS:
        losses, steps = zip(
            *(train(name, kind, seed, options) for seed in options.seeds), strict=True
        )
        rows.append(
            {
                "directions": kind,
                "loss": statistics.median(losses),
                "lowest": min(losses),
                "highest": max(losses),
                "steps": statistics.median(steps),
            }
        )
        print(f"{kind}: {rows[-1]['loss']:.3g} after {rows[-1]['steps']:.0f} steps", flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    options = _parser().parse_args(arguments)
    begun = origin()
    torch.set_num_threads(1)
    rows = compare(options.problem, options)
    print(f"\n{options.problem}, {len(options.seeds)} seeds\n\n{command.table(COLUMNS, rows)}")
    report = {"origin": begun, "machine": machine("cpu"), options.problem: rows}
    command.save_json(options.json, report)


def _parser() -> argparse.ArgumentParser:
    parser = command.make_parser("directions", __doc__)
    parser.add_argument(
        "problem",
        nargs="?",
        choices=tuple(PROBLEMS),
        default="burgers_control",
        help="problem to train on (default: burgers_control)",
    )
    numbers = {
        "--seconds": (positive_float, 20.0, "S", "training time of a run"),
        "--sketch": (positive_int, 4, "K", "directions of each sample, the gradient included"),
        "--batch-size": (positive_int, 64, "N", "samples per step"),
        "--rcond": (rcond_argument, 1e-3, "C", "relative cut-off of the singular values"),
        "--momentum": (momentum_argument, 0.95, "μ", "coefficient of the projected momentum"),
    }
    for flag, (kind, default, name, text) in numbers.items():
        text = f"{text} (default: {default:g})"
        parser.add_argument(flag, type=kind, default=default, metavar=name, help=text)
    parser.add_argument(
        "--seeds",
        type=seed_argument,
        nargs="+",
        default=[0, 1, 2],
        metavar="K",
        help="seeds of weights, data and directions (default: 0 1 2)",
    )
    command.add_json(parser)
    return parser


if __name__ == "__main__":
    main()
