"""Measure one point of ``experiments.scaling`` in a process of its own; prints JSON."""

import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

import hig
from experiments._measure.scaling_cases import Case, dense_case, field_case, side_of
from experiments._measure.timing import interleaved_seconds, peak_bytes


def build(axis: str, size: int, device: str, fixed: Mapping[str, int]) -> Case:
    """Build the case at one size of an axis; the others stay at the ``fixed`` ones.

    Args:
        axis: "parameters", "rows", "fields" or "outputs".
        size: the size.
        device: of network and data.
        fixed: "rows" and "parameters" of dense networks, "samples" of fields of any size.
    """
    if axis == "parameters":
        return dense_case(fixed["rows"], size, device)
    if axis == "rows":
        return dense_case(size, fixed["parameters"], device)
    if axis == "outputs":
        return field_case(fixed["samples"], device, side_of(size))
    return field_case(size, device)


def hig_step(case: Case, **options: Any) -> Callable[[], object]:
    """A step of HIG that hardly moves, so that every one is the same."""
    optimizer = hig.HIG(
        case.network.parameters(), lr=1e-9, rcond=1e-4, step_rule="fixed", **options
    )
    return partial(optimizer.step, case.closure)


def adam_step(case: Case) -> Callable[[], object]:
    """A step of Adam, with its backward pass."""
    optimizer = torch.optim.Adam(case.network.parameters(), lr=1e-9)

    def closure():
        optimizer.zero_grad()
        loss, _ = case.closure()
        loss.backward()
        return loss

    return partial(optimizer.step, closure)


STEPS: Mapping[str, Callable[[Case, int], Callable[[], object]]] = {
    "hig": lambda case, sketch: hig_step(case, method="gram"),
    "sketch": lambda case, sketch: hig_step(case, method="gram", sketch=sketch),
    "lanczos": lambda case, sketch: hig_step(case, method="lanczos"),
    "adam": lambda case, sketch: adam_step(case),
}


def measure(
    case: Case, method: str, rounds: int, device: str, sketch: int = 4, clock: str = "wall"
) -> dict[str, object]:
    """Seconds of each round, and the peak of memory of the step before them."""
    step = STEPS[method](case, sketch)
    peak = peak_bytes(step, device)
    seconds = interleaved_seconds({"step": step}, rounds, 0, device, clock=clock)["step"]
    columns = sum(p.numel() for p in case.network.parameters())
    return {"rows": case.rows, "columns": columns, "seconds": seconds, "peak_bytes": peak}


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    torch.set_num_threads(request["threads"])
    device = request["device"]
    found = build(request["axis"], request["size"], device, request)
    options = (request[name] for name in ("method", "rounds", "device", "sketch", "clock"))
    print(json.dumps(measure(found, *options)))
