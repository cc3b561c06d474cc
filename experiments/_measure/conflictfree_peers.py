"""Operators for several losses by this package and by ``conflictfree``, side by side."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import cycle, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from experiments._measure.command import table
from experiments._measure.timing import interleaved_seconds, median_ratio

#: Name of the comparison among the names of problems.
SEVERAL_LOSSES = "several_losses"
OURS, THEIRS = "hig.conflictfree", "conflictfree"
LOSSES, SIZES = (2, 3, 40), (10**4, 10**5, 10**6)
# A turn repeats calls for at least so long: clocks do not resolve single ones.
TURN_SECONDS = 2e-3


@dataclass(frozen=True)
class OperatorCase:
    """Computation that both packages have.

    Attributes:
        name: Its name in the table.
        make: Makes the call from a package, a network with gradients and the gradients of m
            losses.
        agreeing: True if no two of the gradients conflict.
    """

    name: str
    make: Callable[[str, nn.Module, list[Tensor]], Callable[[], object]]
    agreeing: bool = False


def operator_cases(losses: int) -> list[OperatorCase]:
    """List the computations that are compared at a number of losses."""
    found = [
        OperatorCase("ConFIG", _operator("ConFIGOperator")),
        OperatorCase("PCGrad", _operator("PCGradOperator")),
        OperatorCase("PCGrad, no conflict", _operator("PCGradOperator"), agreeing=True),
        OperatorCase("IMTL-G", _operator("IMTLGOperator")),
        OperatorCase("M-ConFIG", _momentum),
        OperatorCase("ConFIG_update", _function("ConFIG_update")),
    ]
    if losses == 2:
        found.append(OperatorCase("ConFIG_update_double", _double))
    return found


def utility_cases() -> list[OperatorCase]:
    """Gradients and parameters as vectors, and back."""
    names = ("get_gradient_vector", "get_para_vector", "apply_gradient_vector", "apply_para_vector")
    return [OperatorCase(name, _utility(name)) for name in names]


def compare_operators(
    rounds: int,
    clock: str,
    patience: float,
    losses: Sequence[int] = LOSSES,
    sizes: Sequence[int] = SIZES,
) -> list[dict[str, object]]:
    """Time both packages in turn on the CPU, in float32.

    A case has no further turn after ``patience`` seconds.

    Returns:
        One row per case: ``case``, ``losses``, ``parameters``, ``rounds``, ``hig_us`` and
        ``conflictfree_us``, medians of a call, and ``of_conflictfree``, the median of the ratios
        within a round.
    """
    rows: list[dict[str, object]] = []
    for size in sizes:
        # The original makes gradients windows on its vectors: each package has its own network.
        networks = {package: network_of(size) for package in (OURS, THEIRS)}
        entries = sum(parameter.numel() for parameter in networks[OURS].parameters())
        groups = [(utility_cases(), 1)] + [(operator_cases(count), count) for count in losses]
        for cases, count in groups:
            torch.manual_seed(0)
            matrix = torch.randn(count, entries)
            for case in cases:
                given = matrix + 0.5 if case.agreeing else matrix
                calls = {
                    package: case.make(package, network, [row.clone() for row in given])
                    for package, network in networks.items()
                }
                times = _times(calls, rounds, clock, patience)
                rows.append(
                    {
                        "case": case.name,
                        "losses": count,
                        "parameters": entries,
                        "rounds": len(times[THEIRS]),
                        "hig_us": 1e6 * statistics.median(times[OURS]),
                        "conflictfree_us": 1e6 * statistics.median(times[THEIRS]),
                        "of_conflictfree": median_ratio(times[OURS], times[THEIRS]),
                    }
                )
    return rows


def operator_table(rows: Sequence[dict[str, Any]]) -> str:
    """Format the rows as a Markdown table."""
    columns = {
        "computed": "{case}",
        " losses": "{losses}",
        " parameters": "{parameters:,}",
        " hig µs": "{hig_us:,.0f}",
        " conflictfree µs": "{conflictfree_us:,.0f}",
        " of conflictfree's time": "{of_conflictfree:.2f}",
    }
    return table(columns, rows)


def network_of(parameters: int) -> nn.Module:
    """A network of four layers with about so many parameters, and a gradient in each."""
    width = max(4, round((parameters / 2) ** 0.5) - 8)
    sizes = [16, width, width, width, 4]
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    network = nn.Sequential(*layers)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    return network


def _times(
    calls: dict[str, Callable[[], object]], rounds: int, clock: str, patience: float
) -> dict[str, list[float]]:
    """Seconds of a call of each package in each round."""
    once = interleaved_seconds(calls, 2, 1, "cpu", patience, clock)
    repeats = max(1, int(TURN_SECONDS / max(min(once[THEIRS]), 1e-6)))

    def repeated(call: Callable[[], object]) -> Callable[[], None]:
        def turn() -> None:
            for _ in range(repeats):
                call()

        return turn

    turns = {package: repeated(call) for package, call in calls.items()}
    seconds = interleaved_seconds(turns, rounds, 1, "cpu", patience, clock)
    return {package: [time / repeats for time in times] for package, times in seconds.items()}


def _get(package: str, module: str, name: str) -> Any:
    return getattr(import_module(f"{package}.{module}"), name)


def _operator(name: str) -> Callable[[str, nn.Module, list[Tensor]], Callable[[], object]]:
    def make(package: str, network: nn.Module, gradients: list[Tensor]) -> Callable[[], object]:
        operator = _get(package, "grad_operator", name)()
        return lambda: operator.update_gradient(network, gradients)

    return make


def _momentum(package: str, network: nn.Module, gradients: list[Tensor]) -> Callable[[], object]:
    operator = _get(package, "momentum_operator", "PseudoMomentumOperator")(len(gradients))
    turns: Iterator[tuple[int, Tensor]] = cycle(enumerate(gradients))
    for _ in gradients:  # a direction begins when every loss was seen
        operator.calculate_gradient(*next(turns))
    return lambda: operator.update_gradient(network, *next(turns))


def _function(name: str) -> Callable[[str, nn.Module, list[Tensor]], Callable[[], object]]:
    def make(package: str, network: nn.Module, gradients: list[Tensor]) -> Callable[[], object]:
        function = _get(package, "grad_operator", name)
        return lambda: function(gradients)

    return make


def _double(package: str, network: nn.Module, gradients: list[Tensor]) -> Callable[[], object]:
    function = _get(package, "grad_operator", "ConFIG_update_double")
    return lambda: function(*gradients)


def _utility(name: str) -> Callable[[str, nn.Module, list[Tensor]], Callable[[], object]]:
    def make(package: str, network: nn.Module, gradients: list[Tensor]) -> Callable[[], object]:
        function = _get(package, "utils", name)
        if name.startswith("get"):
            return lambda: function(network)
        return lambda: function(network, gradients[0])

    return make
