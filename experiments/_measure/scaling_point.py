"""Measure one point of ``experiments.scaling`` in a process of its own; prints JSON."""

import json
import sys
from collections.abc import Callable
from functools import partial

import torch

import hig
from experiments._measure.scaling_cases import Case, dense_case, field_case
from experiments._measure.timing import interleaved_seconds, peak_bytes


def build(axis: str, size: int, device: str, rows: int, parameters: int) -> Case:
    """Build the case at one size of an axis; the other axis stays at the given size."""
    if axis == "parameters":
        return dense_case(rows, size, device)
    if axis == "rows":
        return dense_case(size, parameters, device)
    return field_case(size, device)


def hig_step(case: Case, method: str) -> Callable[[], object]:
    """A step of HIG that hardly moves, so that every one is the same."""
    optimizer = hig.HIG(
        case.network.parameters(), lr=1e-9, rcond=1e-4, method=method, step_rule="fixed"
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


STEPS = {
    "hig": lambda case: hig_step(case, "gram"),
    "lanczos": lambda case: hig_step(case, "lanczos"),
    "adam": adam_step,
}


def measure(case: Case, method: str, rounds: int, device: str) -> dict[str, object]:
    """Seconds of each round, and the peak of memory of the step before them."""
    step = STEPS[method](case)
    peak = peak_bytes(step, device)
    seconds = interleaved_seconds({"step": step}, rounds, 0, device)["step"]
    columns = sum(p.numel() for p in case.network.parameters())
    return {"rows": case.rows, "columns": columns, "seconds": seconds, "peak_bytes": peak}


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    torch.set_num_threads(request["threads"])
    found = build(*(request[k] for k in ("axis", "size", "device", "rows", "parameters")))
    print(json.dumps(measure(found, request["method"], request["rounds"], request["device"])))
