"""Argument types for argparse: words of a command line as values, with a remedy in each error."""

import argparse
import math
import os
from collections.abc import Callable

import torch

# Per core; the threads of many more would not find the memory for their stacks.
MOST_THREADS = 16
# Limit of all counts: no machine has the memory for more, and torch cannot count 2**63 bytes.
MOST = 2**40


def _number(
    text: str,
    kind: type[int] | type[float],
    within: str,
    holds: Callable[[float], bool],
    remedy: str,
) -> float:
    """Read a number for which ``holds`` is true; ``within`` says so in words."""
    try:
        value = kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"must be {what}, got {text!r}; {remedy}") from None
    if not holds(value):
        shown = value if kind is int else f"{value:g}"
        raise argparse.ArgumentTypeError(f"must be {within}, got {shown}; {remedy}")
    return value


def positive_int(text: str, example: str = "10") -> int:
    """Read a whole number above zero, for argparse; the example is part of the error text."""
    remedy = f"give a number such as {example}"
    value = _number(text, int, "at least 1", lambda x: x >= 1, remedy)
    if value > MOST:
        raise argparse.ArgumentTypeError(f"must be at most {MOST}, got {value}; {remedy}")
    return value


def positive_float(text: str, example: str = "0.5 or 3e-4") -> float:
    """Read a finite number above zero, for argparse; the example is part of the error text."""
    remedy = f"give a number such as {example}"
    return _number(text, float, "positive and finite", lambda x: 0 < x < math.inf, remedy)


def rcond_argument(text: str) -> float | str:
    """Read a relative cut-off, or "auto"; for argparse."""
    return text if text == "auto" else _fraction(text, "1e-6 suits float32 Jacobians")


def sketch_argument(text: str) -> int | str:
    """Read a number of rows per sample, or "auto"; for argparse."""
    return text if text == "auto" else positive_int(text, "4, or auto")


def momentum_argument(text: str) -> float:
    """Read a momentum coefficient; for argparse."""
    return _fraction(text, "0.9 keeps much, 0 nothing")


def _fraction(text: str, remedy: str) -> float:
    return _number(text, float, "in [0, 1)", lambda x: 0 <= x < 1, remedy)


def average_argument(text: str) -> float:
    """Read the decay factor of a running average; for argparse."""
    remedy = "0.8 averages over some five steps"
    return _number(text, float, "between 0 and 1", lambda x: 0 < x < 1, remedy)


def kappa_argument(text: str) -> float:
    """Read an exponent of the singular values; for argparse."""
    remedy = "-0.5 is the half-inverse gradient"
    return _number(text, float, "in [-1, 1]", lambda x: -1 <= x <= 1, remedy)


def threads_argument(text: str) -> int:
    """Read a number of threads within reach of this machine; for argparse."""
    value, cores = positive_int(text, example="1"), os.cpu_count() or 1
    if value > MOST_THREADS * cores:
        raise argparse.ArgumentTypeError(
            f"must be at most {MOST_THREADS * cores} on {cores} cores, got {value}; give a number "
            f"such as {cores}"
        )
    return value


def busy_argument(text: str) -> int:
    """Read a number of busy processes, which may be zero; for argparse."""
    return 0 if text == "0" else threads_argument(text)


def seed_argument(text: str) -> int:
    """Read a seed; for argparse."""
    remedy = "give a number such as 0"
    return _number(text, int, "from 0 to 2**32 - 1", lambda x: 0 <= x < 2**32, remedy)


def device_argument(text: str) -> str:
    """Check that torch has the device; for argparse."""
    kind, _, index = text.partition(":")
    if kind not in ("cpu", "cuda") or (":" in text and not index.isdecimal()):
        raise argparse.ArgumentTypeError(f"must be cpu, cuda or cuda:K, got {text!r}; try cpu")
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and int(index or 0) >= available:
        raise argparse.ArgumentTypeError(
            f"{text} is not available, torch {torch.__version__} finds {available} CUDA devices; "
            "use --device cpu"
        )
    return text
