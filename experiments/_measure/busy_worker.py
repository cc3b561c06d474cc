"""Steps as a user's own script takes them; run as a file, so that nothing has prepared torch.

``python busy_worker.py CASE METHOD SECONDS`` prints the seconds of each step as a list in JSON.
CASE is ``MODULE:CLASS`` of a problem. The package ``experiments`` lets idle threads sleep before
torch is imported; here they do not.
"""

import json
import sys
import time
from importlib import import_module

import torch

import hig


def closure_of(case: str):
    """The network of a case, and the closure of one batch of it."""
    torch.manual_seed(0)
    if case == "128 rows":
        network = torch.nn.Sequential(
            torch.nn.Linear(4, 32), torch.nn.Tanh(), torch.nn.Linear(32, 4)
        )
        inputs, target = torch.randn(32, 4), torch.randn(32, 4)

        def plain():
            prediction = network(inputs)
            return (prediction - target).square().sum(1).mean(), prediction

        return network, plain, hig.HIG(network.parameters(), step_rule="fixed")
    module, _, name = case.partition(":")
    problem = getattr(import_module(module), name)()
    settings = problem.settings["hig"]
    train, _ = problem.data(torch.Generator().manual_seed(0))
    batch = {key: value[: settings.batch_size].float() for key, value in train.items()}
    network = problem.network()

    def closure():
        prediction = problem.predict(network, batch)
        return problem.loss(prediction, batch), prediction

    optimizer = hig.HIG(network.parameters(), lr=1e-6, rcond=settings.rcond, step_rule="fixed")
    return network, closure, optimizer


def main(case: str, method: str, seconds: float) -> None:
    """Take steps for some seconds, and at least three."""
    network, closure, optimizer = closure_of(case)
    if method == "adam":
        adam = torch.optim.Adam(network.parameters(), lr=1e-6)

        def step():
            adam.zero_grad()
            closure()[0].backward()
            adam.step()
    else:

        def step():
            optimizer.step(closure)

    step()
    found: list[float] = []
    start = time.perf_counter()
    while len(found) < 3 or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        step()
        found.append(time.perf_counter() - before)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
