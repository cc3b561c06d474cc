"""Names of runs, for result files and legends."""

import re
from dataclasses import fields
from pathlib import Path

from experiments._methods import METHODS
from experiments._run.options import Options
from problems import Problem, Settings


def deviations(problem: Problem, method: str, settings: Settings, options: Options) -> list[str]:
    """Settings in which a run deviates from the default run of its method on its problem.

    Seed and length do not count.

    Returns:
        Short texts such as ``"trust"``, ``"lr 8"``, ``"float64"`` or ``"no correction"``.
    """
    method_default = METHODS[method].complete(problem.settings[method])
    chosen = METHODS[method].complete(settings)
    pairs = [
        (field.name, getattr(chosen, field.name), getattr(method_default, field.name))
        for field in fields(Settings)
        if field.name != "published"
    ]
    pairs += [(f.name, getattr(problem, f.name), f.default) for f in fields(problem) if f.compare]
    pairs += [
        (name, getattr(options, name), getattr(Options, name))
        for name in ("dtype", "device", "average")
    ]
    return [_text(name, value) for name, value, default in pairs if value != default]


def label(method: str, differences: list[str]) -> str:
    """Name for a legend, such as ``"HIG (trust, lr 8)"``."""
    name = METHODS[method].label
    return f"{name} ({', '.join(differences)})" if differences else name


def path(problem: Problem, method: str, differences: list[str], options: Options) -> Path:
    """Path of the result file, ``<out>/<problem>_<method>[_<variant>]_seed<k>.pickle``."""
    variant = [re.sub(r"[^\w.+-]", "", text).lower() for text in differences]
    return options.out / f"{'_'.join([problem.name, method, *variant])}_seed{options.seed}.pickle"


def _text(name: str, value: object) -> str:
    name = name.removesuffix("_size").replace("_", " ")
    if isinstance(value, bool):
        return name if value else f"no {name}"
    if isinstance(value, str):
        return f"{name} {value}" if value == "auto" or name == "graft" else value
    if isinstance(value, tuple):
        return f"{name} {'-'.join(str(item) for item in value)}"
    return f"{name} {_number(value)}" if isinstance(value, float) else f"{name} {value}"


def _number(value: float) -> str:
    """Format with six digits if they are exact, else with as many as identify the number."""
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))
