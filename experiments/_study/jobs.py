"""Command lines of a study, made from its table, each with a folder of its own."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from experiments._problems import make
from experiments._study.table import SCHEDULES, TRUNCATED, TUNING_SEED, Comparison, Preset

# Settings such as {"lr": 3e-3, "schedule": "cosine"}; by folder and method those that have won.
Point = Mapping[str, float | str]
Winners = Mapping[tuple[str, str], Point]


@dataclass(frozen=True)
class Job:
    """One training run of the study.

    Attributes:
        part: ``"tuning"``, ``"comparison"``, the name of an ablation, ``"relay_first"`` or
            ``"relay"``.
        folder: That of the submit scripts.
        method: Name of the method.
        arguments: Command line of the script, without ``--out``.
        seconds: Training time.
        after: The job with whose weights it begins.
    """

    part: str
    folder: str
    method: str
    arguments: tuple[str, ...]
    seconds: float
    after: "Job | None" = None

    @property
    def place(self) -> Path:
        """Folder of its files, below that of the study; no other job has it."""
        words = [re.sub(r"[^\w.+-]", "", word) for word in self.arguments]
        return Path(self.part, self.folder, f"{self.method}_{'_'.join(words)}".replace("--", ""))

    @property
    def module(self) -> str:
        """The submit script, as ``python -m`` takes it."""
        return f"experiments.{self.folder.replace('/', '.')}.submit_{self.method}"


def grid(preset: Preset, comparison: Comparison, method: str) -> list[Point]:
    """List the settings to try for a method: no fewer for one that sees no Jacobian."""
    if (chosen := comparison.grids.get(method)) is not None:
        return [dict(zip(chosen, values, strict=True)) for values in product(*chosen.values())]
    own = make(comparison.folder).settings[method]
    if method in TRUNCATED:
        return [
            {"lr": float(f"{factor * own.lr:g}"), "rcond": cutoff}
            for factor, cutoff in product(preset.factors, preset.cutoffs)
        ]
    pairs = product(preset.rates, SCHEDULES)
    return [{"lr": rate, "schedule": schedule} for rate, schedule in pairs]


def tuning_jobs(preset: Preset) -> list[tuple[Job, Point]]:
    """Make the grid: every tuned method at every point, on a seed that nothing else sees."""
    return _tried(preset, preset.tuning_seconds, lambda *of: grid(preset, *of))


def final_jobs(
    preset: Preset, best: Mapping[tuple[str, str], Sequence[Point]]
) -> list[tuple[Job, Point]]:
    """Make jobs of the best points of the grid again, for as long as the reported runs."""
    return _tried(preset, 1.0, lambda comparison, method: best.get((comparison.folder, method), ()))


def comparison_jobs(preset: Preset, winners: Winners) -> list[Job]:
    """Make the reported runs, at settings that have won; methods without a grid at their own."""
    jobs = []
    for comparison in preset.comparisons:
        for method in comparison.methods:
            own = (*comparison.common, *comparison.options.get(method, ()))
            given = (*own, *_line(winners.get((comparison.folder, method), {})))
            jobs += [
                _job(preset, "comparison", comparison.folder, method, seed, 1.0, given)
                for seed in preset.seeds
            ]
    return jobs


def ablation_jobs(preset: Preset, winners: Winners) -> list[Job]:
    """Make runs of options at several values, all other settings as they have won."""
    jobs = []
    for ablation in preset.ablations:
        flags, folder, method = tuple(ablation.values), ablation.folder, ablation.method
        won = winners.get((folder, method), {})
        kept = {name: value for name, value in won.items() if f"--{name}" not in flags}
        for values in product(*ablation.values.values()):
            varied = [word for pair in zip(flags, values, strict=True) for word in pair]
            given = (*ablation.common, *_line(kept), *varied)
            jobs += [
                _job(preset, ablation.name, folder, method, seed, preset.ablation_seconds, given)
                for seed in preset.seeds
            ]
    return jobs


def relay_jobs(preset: Preset, winners: Winners) -> list[Job]:
    """Make the second runs of relays, each after the job whose weights it needs."""
    jobs = []
    for relay in preset.relays:
        first, then = (
            (*relay.options.get(method, ()), *_line(winners.get((relay.folder, method), {})))
            for method in (relay.first, relay.then)
        )
        for seed in preset.seeds:
            begun = (*first, "--save-weights")
            before = _job(preset, "relay_first", relay.folder, relay.first, seed, 0.5, begun)
            jobs.append(_job(preset, "relay", relay.folder, relay.then, seed, 0.5, then, before))
    return jobs


def _tried(
    preset: Preset, share: float, points: Callable[[Comparison, str], Sequence[Point]]
) -> list[tuple[Job, Point]]:
    return [
        (_job(preset, "tuning", folder, method, TUNING_SEED, share, (*own, *_line(point))), point)
        for comparison in preset.comparisons
        for folder in (comparison.folder,)
        for method in comparison.tuned
        for own in ((*comparison.common, *comparison.options.get(method, ())),)
        for point in points(comparison, method)
    ]


def _line(point: Point) -> tuple[str, ...]:
    """Write settings as on a command line."""
    words = ((f"--{name}", v if isinstance(v, str) else f"{v:g}") for name, v in point.items())
    return tuple(word for pair in words for word in pair)


def _job(
    preset: Preset,
    part: str,
    folder: str,
    method: str,
    seed: int,
    share: float,
    given: Sequence[str],
    after: Job | None = None,
) -> Job:
    seconds = share * preset.seconds[folder]
    device = () if preset.device == "cpu" else ("--device", preset.device)
    arguments = (*given, *device, "--seed", str(seed), "--time-budget", f"{seconds:g}")
    return Job(part, folder, method, arguments, seconds, after)
