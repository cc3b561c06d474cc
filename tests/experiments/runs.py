"""Small problems that the tests of a run share."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from experiments._methods import METHODS
from problems import NonlinearOscillators, Problem, Settings

TINY = NonlinearOscillators(time_steps=8, dt=0.5, train_size=16, test_size=6)


@dataclass(frozen=True)
class Fresh(Problem):
    """A line through fresh samples: what a problem may do differently, and nothing else."""

    time_budget: float = 1.0

    name: ClassVar[str] = "fresh"
    settings: ClassVar[dict] = {
        "sgd": Settings(batch_size=4, lr=0.01),
        "hig": Settings(batch_size=4, lr=0.1),
    }
    loss_reduction: ClassVar[str] = "sum"
    evaluate_by: ClassVar[str] = "time"
    drawn: ClassVar[list[torch.Tensor]] = []

    def network(self):
        return torch.nn.Linear(1, 1)

    def data(self, generator):
        return tuple(self._draw(samples, generator) for samples in (12, 6))

    def _draw(self, samples, generator):
        return {"x": torch.rand(samples, 1, generator=generator, dtype=torch.float64)}

    def batches(self, train, size, generator):
        while True:
            self.drawn.append(self._draw(size, generator)["x"])
            yield {"x": self.drawn[-1].to(train["x"])}

    def predict(self, network, batch):
        return network(batch["x"])

    def loss(self, prediction, batch):
        return (prediction - 2 * batch["x"] - 1).square().sum()

    def metrics(self, network, batch):
        assert not network.training
        distance = (self.predict(network, batch) - 2 * batch["x"] - 1).abs().mean()
        return {"distance": distance, "weights": network.weight[0]}


def settings(method, **changes):
    """The settings of the problem for small batches, hence with small steps.

    The loss is a mean over the batch, and so is the step of a Jacobian method.
    """
    small = {"batch_size": 16 if method == "lbfgs" else 8}
    if METHODS[method].jacobian:
        small["lr"] = TINY.settings[method].lr / 16
    return replace(TINY.settings[method], **{**small, **changes})


@dataclass(frozen=True)
class Failing(NonlinearOscillators):
    """Training predictions go wrong after a number of calls."""

    error: ClassVar[type | None] = None
    calls: ClassVar[list[None]] = []

    def predict(self, network, batch):
        prediction = super().predict(network, batch)
        if torch.is_grad_enabled():
            self.calls.append(None)
            if len(self.calls) > 3:
                if self.error:
                    raise self.error
                return prediction * math.nan
        return prediction
