"""Time and memory of a step against the size of the network or of the batch.

``python -m experiments.scaling parameters`` grows a network from 1e4 to 1e8 parameters with 512
rows of the Jacobian, ``rows`` grows the batch from 128 to 16,384 rows with 1e5 parameters,
``fields`` the batch of a U-Net on fields of 64 × 64, of 4,096 rows each, and ``outputs`` its
fields, in batches of 8, from 4 × 4 to 256 × 256. Every point has a process of its own.
``python -m plots.scaling`` draws them.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from experiments._cli.argument_types import positive_int
from experiments._measure import command
from experiments._measure.scaling_cases import OUTPUTS, side_of
from experiments._measure.scaling_point import STEPS
from experiments._provenance import machine
from experiments._run.clock import seconds_of

SIZES = {
    "parameters": (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000),
    "rows": (128, 256, 512, 1024, 2048, 4096, 8192, 16384),
    "fields": (1, 2, 4, 8),
    "outputs": (16, 64, 256, 1024, 4096, 16384, 65536),
}
METHODS = {
    "parameters": ("hig", "adam"),
    "rows": ("hig", "lanczos", "adam"),
    "fields": ("lanczos", "adam"),
    "outputs": ("hig", "sketch", "adam"),
}
# Unless sizes are given, an exact step stops before it takes minutes: 8 fields of 1,024 outputs.
LARGEST = {("outputs", "hig"): 256}
LABELS = {"hig": "HIG", "lanczos": "HIG, Lanczos", "sketch": "HIG, sketch", "adam": "Adam"}

Say = Callable[[str], None]


def scaling(
    axis: str,
    methods: Sequence[str],
    sizes: Sequence[int],
    rounds: int,
    device: str,
    threads: int,
    fixed: Mapping[str, int],
    clock: str = "wall",
    say: Say = print,
) -> dict[str, dict[str, object]]:
    """Measure steps along an axis, one of ``SIZES``; returns results by method.

    Rows, parameters and samples that do not grow, and the directions of a sketch, are ``fixed``;
    each point has one step that is not counted. Without ``sizes`` each method has its own.
    """
    found: dict[str, list[dict[str, object]]] = {method: [] for method in methods}
    for size in sizes or SIZES[axis]:
        for method in methods:
            if not sizes and size > LARGEST.get((axis, method), size):
                continue
            request = {
                **{"axis": axis, "size": size, "method": method, "rounds": rounds},
                **{"device": device, "threads": threads, "clock": clock, **fixed},
            }
            point = command.in_own_process("scaling_point", json.dumps(request))
            found[method].append({**point, "size": size})
            say(
                f"{size} {axis}: {LABELS[method]} {statistics.median(point['seconds']):.4g} s, "
                f"{point['peak_bytes'] / 1e9:.3g} GB"
            )
    return {
        method: _results(axis, method, points, device) | {"clock": clock, "fixed": dict(fixed)}
        for method, points in found.items()
    }


def _results(
    axis: str, method: str, points: Sequence[dict[str, object]], device: str
) -> dict[str, object]:
    return {
        "method": method,
        "label": LABELS[method],
        "axis": axis,
        "machine": machine(device),
        "size": np.asarray([point["size"] for point in points], dtype=np.int64),
        "rows": np.asarray([point["rows"] for point in points], dtype=np.int64),
        "columns": np.asarray([point["columns"] for point in points], dtype=np.int64),
        **command.seconds_per_step([point["seconds"] for point in points]),
        "peak_bytes": np.asarray([point["peak_bytes"] for point in points], dtype=np.float64),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure from the command line."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        seconds_of(options.clock, options.device)
        if options.axis == "outputs":
            list(map(side_of, options.sizes or ()))
    except ValueError as error:
        parser.error(str(error))
    if odd := [rows for rows in _all_rows(options) if rows % OUTPUTS]:
        parser.error(
            f"rows must be a multiple of {OUTPUTS}, the outputs of a sample, got {odd[0]}; "
            f"try {OUTPUTS * odd[0]}"
        )
    begun = command.begin(options)
    fixed = {name: getattr(options, name) for name in ("rows", "parameters", "samples", "sketch")}
    measured = scaling(
        options.axis,
        options.methods or METHODS[options.axis],
        sorted(set(options.sizes or ())),
        options.rounds,
        options.device,
        options.threads,
        fixed,
        options.clock,
    )
    names = {method: f"scaling_{options.axis}_{method}.pickle" for method in measured}
    found = {options.out / names[method]: results for method, results in measured.items()}
    command.save_results("scaling", begun, found)


def _all_rows(options: argparse.Namespace) -> Sequence[int]:
    """Rows of the requested dense networks."""
    if options.axis == "rows":
        return options.sizes or SIZES["rows"]
    return [options.rows] if options.axis == "parameters" else []


def _parser() -> argparse.ArgumentParser:
    parser = command.make_parser("scaling", __doc__)
    parser.add_argument("axis", choices=tuple(SIZES), help="quantity that grows")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=tuple(STEPS),
        metavar="METHOD",
        help=f"of {', '.join(STEPS)}; lanczos is HIG by products alone, sketch HIG with a few "
        "directions of the outputs (default: those that fit)",
    )
    parser.add_argument(
        "--sizes", nargs="+", type=positive_int, metavar="N", help="default: those named above"
    )
    parser.add_argument(
        "--rows", type=positive_int, default=512, metavar="N", help="if they do not grow (512)"
    )
    parser.add_argument(
        "--parameters",
        type=positive_int,
        default=100_000,
        metavar="N",
        help="if they do not grow (100000)",
    )
    parser.add_argument(
        "--samples", type=positive_int, default=8, metavar="N", help="fields of growing size (8)"
    )
    parser.add_argument(
        "--sketch", type=positive_int, default=4, metavar="K", help="directions of each sample (4)"
    )
    command.add_rounds(parser, 3, "steps at each point (3)")
    command.add_machine(parser)
    command.add_clock(parser)
    command.add_out(parser, "scaling")
    return parser


if __name__ == "__main__":
    main()
