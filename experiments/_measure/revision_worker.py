"""Steps on request, of the packages that lie on the path; run as a file, next to other revisions.

``python revision_worker.py REQUEST`` prints the peak of memory of a step, in JSON, and then for
every line of its input the seconds of processor time of one more. It uses what revisions have in
common. REQUEST is JSON: ``case``, "field", a network of ``engine_networks.py`` or ``MODULE:CLASS``
of a problem; ``batch``, which networks do not need; ``step``, "exact", "lm", "sketch" or "adam";
and ``sketch``, the directions of a sketch.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import torch
from torch import nn

import hig


def closure_of(case: str, batch_size: int) -> tuple[nn.Module, Callable[[], Any], Any]:
    """The network of a case, the closure of one batch of it, and the cut-off of its settings."""
    torch.manual_seed(0)
    if case == "field":
        fields = import_module("experiments._measure.scaling_cases").field_case(batch_size, "cpu")
        return fields.network, fields.closure, 1e-4
    module, _, name = case.partition(":")
    if not name:  # next to this file, whatever the revision of the packages
        made = import_module("engine_networks").make(case)
        return made.network, made.closure, 1e-4
    problem = getattr(import_module(module), name)()
    train, _ = problem.data(torch.Generator().manual_seed(0))
    batch = {key: value[:batch_size].float() for key, value in train.items()}
    network = problem.network()

    def closure():
        prediction = problem.predict(network, batch)
        return problem.loss(prediction, batch), prediction

    return network, closure, problem.settings["hig"].rcond


def step_of(request: Mapping[str, Any], batch_size: int) -> Callable[[], object]:
    """A step that hardly moves, so that every one is the same."""
    network, closure, rcond = closure_of(request["case"], batch_size)
    if request["step"] == "adam":
        adam = torch.optim.Adam(network.parameters(), lr=1e-9)

        def step():
            adam.zero_grad()
            closure()[0].backward()
            adam.step()

        return step
    if request["step"] == "lm":
        lm = hig.LevenbergMarquardt(network.parameters(), lr=1e-9, step_rule="fixed")
        return lambda: lm.step(closure)
    options: dict[str, Any] = {}
    if request["step"] == "sketch":
        options["sketch"] = request["sketch"]
    if ":" not in request["case"]:  # the smaller of the Gram matrices, in float64 too
        options["method"] = "gram"
    optimizer = hig.HIG(network.parameters(), lr=1e-9, rcond=rcond, step_rule="fixed", **options)
    return lambda: optimizer.step(closure)


def main(request: Mapping[str, Any]) -> None:
    """Take a step for every line of the standard input."""
    torch.set_num_threads(1)
    if request["batch"] > 1:  # libraries are loaded when they are first used
        step_of(request, 1)()
    step = step_of(request, request["batch"])
    peak_bytes = import_module("experiments._measure.timing").peak_bytes
    print(json.dumps(peak_bytes(step, "cpu")), flush=True)
    for _ in sys.stdin:
        start = time.process_time()
        step()
        print(json.dumps(time.process_time() - start), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
