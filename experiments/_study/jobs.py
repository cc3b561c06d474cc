"""From the table of a study to command lines, each with a folder of its own."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments._problems import make
from experiments._study.table import TUNING_SEED, Ablation, Comparison, Preset

Winners = Mapping[tuple[str, str], float]


@dataclass(frozen=True)
class Job:
    """One training run of the study.

    Attributes:
        part: ``"tuning"``, ``"comparison"`` or the name of an ablation.
        folder: That of the submit scripts.
        method: Name of the method.
        arguments: Command line of the script, without ``--out``.
        seconds: Training time.
    """

    part: str
    folder: str
    method: str
    arguments: tuple[str, ...]
    seconds: float

    @property
    def place(self) -> Path:
        """Where its files are, below the folder of the study; no other job has that place."""
        words = [re.sub(r"[^\w.+-]", "", word) for word in self.arguments]
        return Path(self.part, self.folder, f"{self.method}_{'_'.join(words)}".replace("--", ""))

    @property
    def module(self) -> str:
        """The submit script, as ``python -m`` takes it."""
        return f"experiments.{self.folder.replace('/', '.')}.submit_{self.method}"


def tuning_jobs(preset: Preset) -> list[Job]:
    """The grid: every tuned method at every step size, on a seed that nothing else sees."""
    return [
        _job(
            preset, comparison, "tuning", method, TUNING_SEED, preset.tuning_seconds,
            ("--lr", f"{factor * default_lr(comparison.folder, method):g}"),
        )
        for comparison in preset.comparisons
        for method in comparison.tuned
        for factor in preset.factors
    ]  # fmt: skip


def comparison_jobs(preset: Preset, winners: Winners) -> list[Job]:
    """What is told, at the step sizes that have won; methods without a grid at their own.

    Args:
        preset: The study.
        winners: Step size by folder and method.
    """
    jobs = []
    for comparison in preset.comparisons:
        for method in comparison.methods:
            won = winners.get((comparison.folder, method))
            rate = () if won is None else ("--lr", f"{won:g}")
            jobs += [
                _job(preset, comparison, "comparison", method, seed, 1.0, rate)
                for seed in preset.seeds
            ]
    return jobs


def ablation_jobs(preset: Preset, winners: Winners) -> list[Job]:
    """One option at several values, at the step size that has won."""
    jobs = []
    for ablation in preset.ablations:
        won = winners.get((ablation.folder, ablation.method))
        rate = () if won is None else ("--lr", f"{won:g}")
        for value in ablation.values:
            given = (*rate, ablation.flag, value)
            jobs += [
                _job(
                    preset, ablation, ablation.name, ablation.method, seed,
                    preset.ablation_seconds, given,
                )
                for seed in preset.seeds
            ]  # fmt: skip
    return jobs


def default_lr(folder: str, method: str) -> float:
    """The step size that a method has on a problem, published or our own."""
    return make(folder).settings[method].lr


def _job(
    preset: Preset,
    part_of: Comparison | Ablation,
    part: str,
    method: str,
    seed: int,
    share: float,
    further: Sequence[str],
) -> Job:
    seconds = share * preset.seconds[part_of.folder]
    own = part_of.options.get(method, ()) if isinstance(part_of, Comparison) else ()
    device = () if preset.device == "cpu" else ("--device", preset.device)
    arguments = (*part_of.common, *own, *further, *device, "--seed", str(seed))
    return Job(part, part_of.folder, method, (*arguments, "--time-budget", f"{seconds:g}"), seconds)
