"""Runs of all seeds of one method on one problem with one choice of settings."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from experiments._methods import METHODS
from experiments._saved import markdown
from experiments._saved.runs import Run
from experiments._study.keep import value_text

_BASELINE = "adam"
_USUAL = ("fixed", "schedule constant", "float32")  # settings that are not shown


@dataclass(frozen=True)
class Seeds:
    """Runs of one experiment that differ in their seed.

    Attributes:
        runs: At least one.
    """

    runs: tuple[Run, ...]

    @property
    def method(self) -> str:
        """The method as in the names of the submit scripts."""
        return str(self.runs[0].results["method"])

    @property
    def ends(self) -> list[float]:
        """Last losses; infinite for runs that diverge, whatever was last recorded."""
        return [np.inf if run.stopped == "non-finite" else run.final for run in self.runs]

    @property
    def final(self) -> float:
        """The median of the last losses."""
        return float(np.median(self.ends))

    @property
    def losses(self) -> str:
        """Median and range of the last losses, as a cell of a table."""
        return markdown.median_and_range(self.ends, markdown.loss)

    @property
    def diverged(self) -> int:
        """Number of runs that have diverged."""
        return sum(np.isinf(self.ends))

    @property
    def settings(self) -> str:
        """Settings other than the usual ones, as a cell of a table."""
        given = self.runs[0].results["sim_par"]
        names = {"lr": "lr", "rcond": "rcond", "schedule": "schedule", "batch_size": "batch"}
        texts = [f"{name} {value_text(given[key])}" for key, name in names.items() if key in given]
        texts += [value_text(given[key]) for key in ("step_rule", "dtype") if key in given]
        return ", ".join(text for text in texts if text not in _USUAL)

    def seconds_to(self, target: float) -> float:
        """Median of the seconds to a target, infinite if most seeds do not reach it."""
        seconds = np.array([run.seconds_to(target) for run in self.runs])
        return float(np.median(np.where(np.isnan(seconds), np.inf, seconds)))

    def name(self, among: Iterable["Seeds"] = ()) -> str:
        """Name of the method; the whole label if another experiment has that name too."""
        if sum(other.method == self.method for other in among) < 2:
            return METHODS[self.method].label
        return self.runs[0].experiment[-1].replace("|", r"\|")


def experiments(runs: Iterable[Run]) -> list[Seeds]:
    """Group runs by method and label, the lowest median of the last loss first."""
    found: dict[tuple[str, ...], list[Run]] = {}
    for run in sorted(runs, key=lambda run: (*run.experiment, int(run.results["seed"]))):
        found.setdefault(run.experiment, []).append(run)
    return sorted((Seeds(tuple(same)) for same in found.values()), key=lambda seeds: seeds.final)


def target_of(found: Sequence[Seeds]) -> tuple[float, str]:
    """Choose the loss whose time is reported, with a description; NaN and "" if all diverge.

    It is the final loss of Adam, or of the second-best method if Adam is the best or missing.
    """
    finite = [seeds for seeds in found if np.isfinite(seeds.final)]
    baseline = [seeds for seeds in finite if seeds.method == _BASELINE][:1]
    if not finite:
        return np.nan, ""
    chosen = (baseline if baseline and baseline[0] is not finite[0] else finite[1:2] or finite)[0]
    return chosen.final, f"where {chosen.name(found)} ends"
