"""Command line shared by all submit scripts."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import torch

from experiments._cli.argument_types import (
    average_argument,
    device_argument,
    kappa_argument,
    momentum_argument,
    positive_float,
    positive_int,
    rcond_argument,
    seed_argument,
    sketch_argument,
    threads_argument,
)
from experiments._cli.parser import Parser
from experiments._methods import METHODS
from experiments._run.clock import CLOCKS
from experiments._run.faults import POLICIES
from experiments._run.learning_rate import SCHEDULES
from experiments._run.options import DTYPES, Options
from hig.arguments import ENGINES, GRAFTS, MOMENTUM_KINDS, STEP_RULES
from hig.arguments import METHODS as DECOMPOSITIONS
from problems import Problem, Settings

_OPTIONS: dict[str, dict[str, dict[str, object]]] = {
    "watching": {
        "summary": {
            "action": "store_true",
            "help": "the last and the best losses and the files at the end, also with --quiet",
        },
        "tensorboard": {
            "action": "store_true",
            "help": "write losses, metrics and steps as they come, for tensorboard --logdir DIR, "
            "the directory of --out",
        },
    },
    "weights": {
        "save_weights": {
            "action": "store_true",
            "help": "write the weights of the last evaluation next to the result file",
        },
        "init_from": {
            "type": Path,
            "metavar": "FILE",
            "help": "start from the weights of an earlier run",
        },
    },
    "interruptions": {
        "resume": {
            "action": "store_true",
            "help": "resume from the checkpoint of an interrupted run of the same command line; "
            "start from the beginning if there is none, and do nothing if the run is finished",
        },
        "checkpoint_every": {
            "type": positive_float,
            "metavar": "S",
            "help": "seconds of wall-clock from one checkpoint to the next; more if writing them "
            "would take over 1 %% of the run",
        },
    },
    "numerical faults": {
        "on_fault": {
            "choices": POLICIES,
            "help": "effect of NaN or Inf, of a decomposition that does not converge, or of too "
            "little memory: end the run, or leave out the step",
        },
        "max_faults": {
            "type": positive_int,
            "metavar": "N",
            "help": "number of faults that a run survives; the next one ends it",
        },
    },
}


def parse(
    problem: Problem, method: str, arguments: Sequence[str] | None = None
) -> tuple[Problem, Settings, Options]:
    """Read problem, settings and options; the published ones are the defaults.

    Raises `SystemExit` for ``--help`` and after an error message for arguments that are not valid.
    """
    defaults = METHODS[method].complete(problem.settings[method])
    parser = _parser(problem, method, defaults)
    given = vars(parser.parse_args(arguments))
    try:
        problem = replace(problem, **_chosen(given, _parameters(problem)))
    except ValueError as error:
        parser.error(str(error))
    settings = replace(defaults, **_chosen(given, _setting_names(method)))
    if not given.keys() & {"epochs", "time_budget"}:
        length = "time_budget" if problem.epochs is None else "epochs"
        given[length] = getattr(problem, length)
    # Processor time adds up over threads: it would not measure the time that training takes.
    alone = given.get("clock") == "processor"
    given.setdefault("threads", 1 if alone else torch.get_num_threads())
    try:
        check_lr(settings.lr, given["dtype"])
        options = Options(**_chosen(given, [field.name for field in fields(Options)]))
    except ValueError as error:
        parser.error(str(error))
    return problem, settings, options


def check_lr(lr: float, dtype: str) -> None:
    """Raise a `ValueError` for steps whose size squared is beyond the numbers of a dtype."""
    most = math.sqrt(torch.finfo(DTYPES[dtype]).max)
    if lr > most:
        raise ValueError(f"argument --lr: must be at most {most:.2g} in {dtype}, got {lr:g}; try 1")


def _chosen(given: dict[str, object], names: Sequence[str]) -> dict[str, object]:
    return {name: given[name] for name in names if name in given}


def _setting_names(method: str) -> list[str]:
    return ["batch_size", "lr", *METHODS[method].options]


def _parameters(problem: Problem) -> list[str]:
    """Fields of the problem that have a help text, as `problems.parameter` gives them."""
    return [field.name for field in fields(problem) if "help" in field.metadata]


def _parser(problem: Problem, method: str, defaults: Settings) -> argparse.ArgumentParser:
    origin = "published settings" if defaults.published else "settings of our own choice"
    parser = Parser(
        description=f"Train on {problem.name} with {METHODS[method].label} ({origin}).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    _add_length(parser, problem)
    _add_average(parser)
    _add_settings(parser, method, defaults)
    add_run(parser, Path("results") / problem.name)
    _add_options(parser)
    _add_parameters(parser, problem)
    return parser


def _add_length(parser: argparse.ArgumentParser, problem: Problem) -> None:
    if problem.epochs is None:
        default = f"a budget of {problem.time_budget:g} s"
    else:
        default = f"{problem.epochs} epochs"
    group = parser.add_argument_group("length", f"one of the two; by default {default}")
    either = group.add_mutually_exclusive_group()
    either.add_argument(
        "--epochs", type=positive_int, metavar="N", help="passes through the training data"
    )
    either.add_argument(
        "--time-budget",
        type=positive_float,
        metavar="S",
        help="seconds of training, evaluation excluded",
    )
    evaluations = "times 5 %% apart" if problem.evaluate_by == "time" else "each epoch"
    parser.add_argument(
        "--evaluate-every",
        type=positive_float,
        metavar="S",
        help=f"seconds of training from one evaluation to the next (default: {evaluations})",
    )
    parser.add_argument(
        "--clock",
        choices=tuple(CLOCKS),
        default=Options.clock,
        help="clock of the training time; processor time, with --threads 1 as the default, is the "
        "time on a quiet machine",
    )


def _add_average(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--average",
        type=average_argument,
        metavar="F",
        help="evaluate and keep a running average of the weights, to which each step adds 1 - F; "
        "0.8 takes the jitter out of Levenberg-Marquardt steps on few points",
    )


def _add_settings(parser: argparse.ArgumentParser, method: str, defaults: Settings) -> None:
    kinds: dict[str, dict[str, object]] = {
        "batch_size": {"type": positive_int, "metavar": "N", "help": "samples per step"},
        "lr": {"type": positive_float, "metavar": "η", "help": "step size"},
        "rcond": {
            "type": rcond_argument,
            "metavar": "C",
            "help": "drop singular values up to C times the largest, with auto those that may be "
            "rounding",
        },
        "kappa": {
            "type": kappa_argument,
            "metavar": "κ",
            "help": "exponent of the singular values",
        },
        "damping": {
            "type": positive_float,
            "metavar": "λ",
            "help": "damping; the initial one if it adapts",
        },
        "engine": {
            "choices": ENGINES,
            "help": "how the Jacobian is obtained",
        },
        "method": {
            "choices": DECOMPOSITIONS,
            "help": "how it is decomposed; auto takes the slow and exact svd in float64, lanczos "
            "approximates from products alone, for very many rows",
        },
        "lanczos_steps": {
            "type": positive_int,
            "metavar": "K",
            "help": "most products with the Jacobian for --method lanczos; few act like a higher "
            "cut-off",
        },
        "step_rule": {"choices": STEP_RULES, "help": "how the step size follows from --lr"},
        "sketch": {
            "type": sketch_argument,
            "metavar": "K",
            "help": "rows per sample, random directions of its outputs; auto chooses (default: all "
            "outputs)",
        },
        "momentum": {
            "type": momentum_argument,
            "metavar": "μ",
            "help": "momentum coefficient (default: 0, with --sketch 0.97)",
        },
        "momentum_kind": {
            "choices": MOMENTUM_KINDS,
            "help": "keep all of the last direction, or only the part that the present Jacobian "
            "does not see (default: plain, with --sketch projected)",
        },
        "graft": {
            "choices": GRAFTS,
            "help": "where the length of a step comes from: Adam in the eigenbasis of the factors, "
            "or the norm of Adam's step, for each layer or all together",
        },
        "schedule": {"choices": SCHEDULES, "help": "how the step size changes during the run"},
    }
    group = parser.add_argument_group("method")
    for name in _setting_names(method):
        default = getattr(defaults, name)
        group.add_argument(
            _flag(name), default=argparse.SUPPRESS if default is None else default, **kinds[name]
        )


def add_run(parser: argparse.ArgumentParser, out: Path) -> None:
    """Add seed, device, dtype, threads, output directory (default ``out``) and quiet."""
    group = parser.add_argument_group("run")
    group.add_argument(
        "--seed",
        type=seed_argument,
        metavar="K",
        default=Options.seed,
        help="seed of the initial weights, of the data and of the batches",
    )
    group.add_argument(
        "--device", type=device_argument, default=Options.device, help="cpu, cuda or cuda:K"
    )
    group.add_argument(
        "--dtype", choices=tuple(DTYPES), default=Options.dtype, help="floating point numbers"
    )
    group.add_argument(
        "--threads",
        type=threads_argument,
        metavar="N",
        default=argparse.SUPPRESS,
        help="CPU threads; 1 where other processes keep the cores busy (default: "
        f"{torch.get_num_threads()})",
    )
    group.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        default=out,
        help="directory of the result files; those of an equal command line are overwritten",
    )
    group.add_argument(
        "--quiet", action="store_true", default=Options.quiet, help="no progress, no summary"
    )


def _add_options(parser: argparse.ArgumentParser) -> None:
    """Add the further options of a run, with the defaults of `Options`."""
    for title, options in _OPTIONS.items():
        group = parser.add_argument_group(title)
        for name, given in options.items():
            default = getattr(Options, name)
            group.add_argument(
                _flag(name), default=argparse.SUPPRESS if default is None else default, **given
            )


def _add_parameters(parser: argparse.ArgumentParser, problem: Problem) -> None:
    group = parser.add_argument_group("parameters of the problem")
    metadata = {field.name: field.metadata for field in fields(problem)}
    for name in _parameters(problem):
        value, choices = getattr(problem, name), metadata[name]["choices"]
        kind: dict[str, object]
        if "flag" in metadata[name]:
            kind = {"metavar": "DIR", "dest": name}
        elif isinstance(value, bool):
            kind = {"action": argparse.BooleanOptionalAction}
        elif isinstance(value, str):
            kind = {"choices": choices} if choices else {"metavar": "X"}
        else:
            number = positive_int if isinstance(value, int) else positive_float
            # The problem's own value is an example that it accepts.
            example = str(value) if isinstance(value, int) else f"{value:g}"
            kind = {"type": partial(number, example=example), "metavar": "X"}
        flag = _flag(metadata[name].get("flag", name))
        default = argparse.SUPPRESS if value == "" else value
        group.add_argument(flag, default=default, help=metadata[name]["help"], **kind)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
