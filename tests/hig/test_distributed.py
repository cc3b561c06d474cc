"""A step that several processes take together against the step of one on the whole batch."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

import hig
from hig import _blocks, _factored_block, _rows, _shared_jacobian
from tests.hig import networks, processes
from tests.textbook import relative_error

# Samples of each rank: unequal, and with four ranks single ones.
SAMPLES = {2: (3, 2), 4: (1, 3, 1, 2)}
# A network whose samples influence one another, or do not lie along the first axis, has no share.
NAMES = sorted(set(networks.ALL) - {"batch norm", "time major"})
# Gram matrices in float64 give the step to 1e-10 as far as they resolve singular values.
GRAM = {"rcond": 1e-2, "method": "gram"}


class Case:
    """A network, the whole batch, and an optimizer."""

    def __init__(self, make, network="mlp", scale=1, **options):
        self.make, self.network, self.scale, self.options = make, network, scale, options

    def steps(self, chosen, group, count=2, reduction="mean"):
        """Parameters and losses after some steps on the chosen samples, and the last report."""
        torch.manual_seed(3)
        make, shape = networks.ALL[self.network]
        network = make().double()
        inputs = torch.randn(self.scale * 7, *shape, dtype=torch.float64)
        if chosen is not None:
            inputs = inputs[chosen]
        closure = networks.least_squares(network, inputs)
        if reduction == "sum":
            mean = closure

            def closure():
                loss, prediction = mean()
                return loss * len(inputs), prediction

        optimizer = self.make(
            network.parameters(), process_group=group, reduction=reduction, **self.options
        )
        losses = [float(optimizer.step(closure)) for _ in range(count)]
        flat = torch.cat([p.detach().flatten() for p in network.parameters()])
        return flat, losses, optimizer.report


CASES = {
    **{f"{name}": Case(hig.HIG, name, **GRAM) for name in NAMES},
    **{f"{name}, rows": Case(hig.HIG, name, engine="rows", **GRAM) for name in ("mlp", "conv2d")},
    "many samples": Case(hig.HIG, "narrow", scale=9, **GRAM),
    "many samples, rows": Case(hig.HIG, "narrow", scale=9, engine="rows", **GRAM),
    "svd": Case(hig.HIG, "mlp", rcond=1e-6),
    "svd, many samples": Case(hig.HIG, "narrow", scale=9, rcond=1e-6),
    "trust": Case(hig.HIG, "mlp", step_rule="trust", **GRAM),
    "line search": Case(hig.HIG, "conv1d", step_rule="line_search", lr=0.5, **GRAM),
    "Gauss-Newton": Case(hig.GaussNewton, "layer norm", lr=0.2, **GRAM),
    "Levenberg-Marquardt": Case(hig.LevenbergMarquardt, "mlp", damping=1e-2),
    "damped, many samples": Case(hig.LevenbergMarquardt, "narrow", scale=9, damping=1e-2),
    "damped and cut": Case(hig.LevenbergMarquardt, "mlp", rcond=1e-2, method="gram"),
}


def chosen_by(rank, scale):
    size = dist.get_world_size()
    counts = [scale * count for count in (SAMPLES[size] if size == 4 else (4, 3))]
    start = sum(counts[:rank])
    return slice(start, start + counts[rank])


def all_cases(rank):
    found = {}
    for name, case in CASES.items():
        flat, losses, report = case.steps(chosen_by(rank, case.scale), "auto")
        expected, expected_losses, alone = case.steps(None, None)
        found[name] = {
            "parameters": relative_error(flat, expected),
            "losses": relative_error(torch.tensor(losses), torch.tensor(expected_losses)),
            "report": (report.route, report.rows, report.columns, report.rank, report.engine),
            "alone": (alone.route, alone.rows, alone.columns, alone.rank, alone.engine),
            "bytes": flat.numpy().tobytes(),
            "communication": (report.communication, alone.communication),
        }
    return found


if __name__ == "__main__":
    import pathlib, tempfile, time
    for size in (2, 4):
        s = time.time()
        res = processes.run(all_cases, size, pathlib.Path(tempfile.mkdtemp()))
        print(size, time.time() - s)
        for name in CASES:
            r = [x[name] for x in res]
            print(name, max(x["parameters"] for x in r), max(x["losses"] for x in r), len({x["bytes"] for x in r}), r[0]["report"], r[0]["report"]==r[0]["alone"], r[0]["communication"][0])
