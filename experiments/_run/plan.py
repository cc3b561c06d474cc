"""Plan of a run before its data are made: complete settings, names and paths."""

from dataclasses import dataclass, replace
from pathlib import Path

from experiments._methods import METHODS
from experiments._run import names
from experiments._run.checkpoint import identity
from experiments._run.options import Options
from experiments._run.weights import Pretraining, load
from problems import Problem, Settings, SeveralLosses


@dataclass(frozen=True)
class Plan:
    """Properties of a run that follow from its command line.

    Attributes:
        settings: All settings of the method, called published only if they are.
        earlier: The weights to start from, None for new ones.
        heading: The first keys of every file of the run.
        path: The result file.
        course: All that determines the steps, as recorded in checkpoints.
    """

    settings: Settings
    earlier: Pretraining | None
    heading: dict[str, object]
    path: Path
    course: dict[str, str]

    @property
    def label(self) -> str:
        """Label of the run in a legend."""
        return str(self.heading["label"])


def plan(problem: Problem, method: str, settings: Settings, options: Options) -> Plan:
    """Complete the settings, and name the run by its deviations from the defaults.

    Raises a `WeightsError` if the weights to start from cannot be read or are of another problem.
    """
    settings = _as_published(problem, method, settings)
    earlier = load(options.init_from, problem.name) if options.init_from else None
    differences = names.deviations(problem, method, settings, options)
    if earlier:
        differences.append(f"after {earlier.label}")
    label = names.label(method, differences)
    if earlier and earlier.seed != options.seed:
        differences.append(f"of seed {earlier.seed}")  # files apart, one name in legends
    return Plan(
        settings,
        earlier,
        {"problem": problem.name, "method": method, "label": label, "seed": options.seed},
        names.path(problem, method, differences, options),
        identity(problem, method, settings, options, earlier),
    )


def check_method(problem: Problem, method: str) -> None:
    """Raise a `ValueError` if a problem cannot be trained by a method of this name."""
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known are {', '.join(METHODS)}")
    if method not in problem.settings:
        raise ValueError(
            f"{problem.name} has no settings for {method!r}; "
            f"it has them for {', '.join(problem.settings)}"
        )
    if METHODS[method].several_losses and not isinstance(problem, SeveralLosses):
        raise ValueError(f"{method!r} needs several losses, and {problem.name} has one; try 'hig'")


def _as_published(problem: Problem, method: str, settings: Settings) -> Settings:
    """Complete settings, and mark them as published only if they are."""
    settings = METHODS[method].complete(settings)
    published = METHODS[method].complete(problem.settings[method])
    return settings if settings == published else replace(settings, published=False)
