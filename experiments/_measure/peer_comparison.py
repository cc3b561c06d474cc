"""Time and error of equal computations by several packages, as a table."""

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from types import MappingProxyType

from experiments._measure.command import milliseconds, table
from experiments._measure.peers import PACKAGES, PeerCases
from experiments._measure.timing import interleaved_seconds, median_ratio
from experiments._methods.regression import Regression
from experiments._problems import PROBLEMS
from problems import Problem

#: Constructors of the problems that other packages can express too.
PEER_PROBLEMS: Mapping[str, Callable[[], Problem]] = MappingProxyType(
    {
        "nonlinear_oscillators": PROBLEMS["nonlinear_oscillators"],
        "quantum_dipole": PROBLEMS["quantum_dipole"],
        "regression": Regression,
    }
)


def peer_versions() -> dict[str, str]:
    """Installed versions of the packages that are compared with."""
    return {package: version(package) for package in PACKAGES.values()}


def compare(
    problem: Problem, batch_size: int, rounds: int, device: str, clock: str, patience: float
) -> list[dict[str, object]]:
    """Measure all packages on one problem, in turn; after ``patience`` seconds no further turn.

    Returns:
        One row per case: ``quantity``, ``case``, ``rounds`` counted, ``median_ms``, ``min_ms``,
        ``max_ms``, ``of_hig``, the time relative to the first case of the quantity (median of the
        ratios within a round), ``error``, the norm of the difference from a float64 reference
        relative to its own, and ``note``.
    """
    peers = PeerCases(problem, batch_size, device)
    cases, reference = peers.cases(), peers.reference()
    computes = {f"{case.quantity}: {case.case}": case.make() for case in cases}
    found = {key: compute() for key, compute in computes.items()}
    seconds = interleaved_seconds(computes, rounds, 1, device, patience, clock)
    first: dict[str, list[float]] = {}
    rows: list[dict[str, object]] = []
    for case, (key, times) in zip(cases, seconds.items(), strict=True):
        expected = reference[case.quantity]
        rows.append(
            {
                "quantity": case.quantity,
                "case": case.case,
                **milliseconds(times),
                "of_hig": median_ratio(times, first.setdefault(case.quantity, times)),
                "error": float((found[key].double() - expected).norm() / expected.norm()),
                "note": case.note,
            }
        )
    return rows


def peer_table(rows: Sequence[dict[str, object]]) -> str:
    """Format the rows as a Markdown table."""
    columns = {
        "computed": "{quantity}",
        "by": "{case}",
        " median ms": "{median_ms:.1f}",
        " min – max": "{min_ms:.1f} – {max_ms:.1f}",
        " of hig's time": "{of_hig:.2f}",
        " relative error": "{error:.0e}",
        "note": "{note}",
    }
    return table(columns, rows)
