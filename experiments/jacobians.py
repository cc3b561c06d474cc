"""Time of the exact Jacobian of PINN residuals and networks of the field, by each way to it.

``python -m experiments.jacobians`` computes J of each case with the weights as layers, row by row,
and by ``vmap(jacrev)`` of torch.func, next to a step of Adam on the same batch, all in turn, on one
thread. With TorchJD installed it adds the Gram matrix of its ``autogram``, and how far that is from
the right one.
"""

import argparse
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from experiments._measure import command
from experiments._measure.engine_networks import MAKERS, Case, make
from experiments._measure.joint_jacobian import in_order, obtain, product_kinds
from experiments._measure.timing import interleaved_seconds, median_ratio
from experiments._provenance import machine

LAYERS, ROWS, TRANSFORMS, ADAM = "layers", "rows", "torch.func", "Adam's step"
AUTOGRAM = "autogram, Gram matrix"
PATIENCE = 20.0
# Marks of the table of layers in a page.
BEGIN, END = "<!-- products -->", "<!-- /products -->"
COLUMNS = {
    "case": "{title}",
    " J": "{rows} × {columns}",
    "way": "{way}",
    " median ms": "{median_ms:.1f}",
    " min – max": "{min_ms:.1f} – {max_ms:.1f}",
    " of Adam's step": "{of_adam:.1f}",
    " off by": "{error}",
}


def jacobian_of(case: Case, engine: str) -> Callable[[], Tensor]:
    """Return a function that computes J (n, P) of a case."""
    found = obtain(case.network, case.prediction, engine)
    return lambda: in_order(case.network, found())


def adam(case: Case) -> Callable[[], object]:
    """Return a step of Adam that hardly moves."""
    optimizer = torch.optim.Adam(case.network.parameters(), lr=1e-9)

    def step() -> None:
        optimizer.zero_grad()
        case.closure()[0].backward()
        optimizer.step()

    return step


def autogram(case: Case) -> Callable[[], Tensor]:
    """Return a function that computes the Gram matrix of all outputs by TorchJD."""
    from torchjd.autogram import Engine

    engine = Engine(case.network, batch_dim=0)

    def gram() -> Tensor:
        prediction = case.prediction()
        found: Tensor = engine.compute_gramian(prediction)
        return found.reshape(prediction.numel(), -1)

    return gram


def measure(name: str, rounds: int) -> list[dict[str, object]]:
    """Measure all ways of a case, in turn.

    Returns:
        One row per way: ``title``, ``rows``, ``columns``, ``way``, ``rounds`` counted,
        ``median_ms``, ``min_ms``, ``max_ms``, ``of_adam`` (median of the ratios within a round) and
        ``error``, relative to the rows.
    """
    case = make(name)
    ways: dict[str, Callable[[], object]] = {
        LAYERS: jacobian_of(case, "auto"),
        ROWS: jacobian_of(case, "rows"),
        ADAM: adam(case),
    }
    expected = jacobian_of(case, "rows")()
    compared = {LAYERS: (ways[LAYERS], expected), ROWS: (ways[ROWS], expected)}
    if not any(p.is_complex() for p in case.network.parameters()) and name != "pinn_conditions":
        ways[TRANSFORMS] = case.by_transforms()
        compared[TRANSFORMS] = (ways[TRANSFORMS], expected)
    if find_spec("torchjd") is not None:
        ways[AUTOGRAM] = autogram(make(name))  # its hooks stay on the network
        compared[AUTOGRAM] = (ways[AUTOGRAM], expected @ expected.T)
    errors = {}
    for way, (function, right) in compared.items():
        try:
            errors[way] = f"{_error(function(), right):.0e}"
        except (RuntimeError, ValueError, NotImplementedError, TypeError) as error:
            print(f"{case.title}, {way}: {type(error).__name__}: {str(error).splitlines()[0]}")
            del ways[way]
    seconds = interleaved_seconds(ways, rounds, 2, "cpu", PATIENCE, "processor")
    rows = []
    for way in (way for way in (LAYERS, ROWS, TRANSFORMS, AUTOGRAM, ADAM) if way in seconds):
        rows.append(
            {
                "title": case.title,
                "rows": expected.shape[0],
                "columns": expected.shape[1],
                "way": way,
                **command.milliseconds(seconds[way]),
                "of_adam": median_ratio(seconds[way], seconds[ADAM]),
                "error": errors.get(way, "–"),
            }
        )
    return rows


def _error(found: object, expected: Tensor) -> float:
    assert isinstance(found, Tensor)
    return float((found - expected).norm() / expected.norm())


def layers() -> str:
    """Tabulate the operations of a graph that are layers."""
    places: dict[str, list[str]] = {}
    for name, where in product_kinds().items():
        places.setdefault(where, []).append(f"`{name.removesuffix('0')}`")
    rows = [f"| {where} | {', '.join(names)} |" for where, names in places.items()]
    return "\n".join(["| of | operation in the graph |", "|---|---|", *rows])


def into_page(page: Path, table: str) -> None:
    """Put the table of layers into a page, between its two marks."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise SystemExit(f"{page} has no marks {BEGIN} and {END}; add them where the table belongs")
    page.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure from the command line."""
    options = _parser().parse_args(arguments)
    if options.into is not None:
        into_page(options.into, layers())
        return
    torch.set_num_threads(1)
    begun = command.begin(options)
    facts = machine("cpu") | {"clock": "processor, one thread"}
    command.print_facts(facts)
    measured = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.func: operations without a batching rule
        for name in options.case or MAKERS:
            measured[name] = rows = measure(name, options.rounds)
            print(f"\n{command.table(COLUMNS, rows)}")
    report = {"machine": facts, "rounds": options.rounds, "cases": measured}
    command.save_json(options.json, {"origin": begun, **report})
    if options.out is not None:
        command.save_results(
            "jacobians", begun, {options.out / "jacobians.pickle": {"jacobians": measured} | facts}
        )


def _parser() -> argparse.ArgumentParser:
    parser = command.make_parser("jacobians", __doc__)
    parser.add_argument(
        "case", nargs="*", choices=[*MAKERS, []], metavar="CASE", help=", ".join(MAKERS)
    )
    parser.add_argument(
        "--into",
        type=Path,
        metavar="PAGE",
        help="measure nothing, put the table of what is a layer into a Markdown page",
    )
    command.add_rounds(parser, 15, "turns of each way (15)")
    command.add_json(parser)
    command.add_out(parser, "jacobians")
    return parser


if __name__ == "__main__":
    main()
