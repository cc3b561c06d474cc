"""The methods that the experiments compare."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor, optim

import hig
from problems import Settings

Parameters = Sequence[torch.nn.Parameter]


class Optimizer(Protocol):
    """The part of `torch.optim.Optimizer` that a run needs."""

    def zero_grad(self) -> None:
        """Clear the gradients."""

    def step(self, closure: Callable[[], object]) -> Tensor:
        """Take one step; returns the loss before it."""


@dataclass(frozen=True)
class Method:
    """An optimiser with the name that figures give it.

    Attributes:
        label: Name in legends.
        build: Makes the optimiser from parameters, step size and the options below.
        options: Fields of `Settings`, beside batch and step size, that the optimiser takes,
            with their defaults.
        jacobian: True where the closure returns ``(loss, prediction)`` and the optimiser
            reports on the Jacobian; False where it returns the loss after a backward pass.
    """

    label: str
    build: Callable[..., Optimizer]
    options: Mapping[str, float | str] = field(default_factory=dict)
    jacobian: bool = False

    def complete(self, settings: Settings) -> Settings:
        """Put the defaults of this method where its settings are None."""
        missing = {n: v for n, v in self.options.items() if getattr(settings, n) is None}
        return replace(settings, **missing)

    def optimizer(self, parameters: Parameters, settings: Settings) -> Optimizer:
        """Make the optimiser for the parameters with the settings."""
        settings = self.complete(settings)
        options = {name: getattr(settings, name) for name in self.options}
        return self.build(parameters, lr=settings.lr, **options)


class MuonAdamW:
    """Muon for the weight matrices, AdamW for biases and everything else.

    Muon orthogonalises matrices and takes nothing else. With the adjusted step size both halves
    move their parameters by about ``lr`` per entry, so that one ``lr`` serves both.

    Args:
        parameters: Parameters of a network.
        lr: Step size of both halves.
    """

    def __init__(self, parameters: Parameters, lr: float):
        matrices = [p for p in parameters if p.ndim == 2]
        others = [p for p in parameters if p.ndim != 2]
        self.parts: list[optim.Optimizer] = []
        if matrices:
            muon = optim.Muon(matrices, lr=lr, weight_decay=0, adjust_lr_fn="match_rms_adamw")
            self.parts.append(muon)
        if others:
            self.parts.append(optim.AdamW(others, lr=lr, weight_decay=0))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of all parameters."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """Evaluate the closure once and step both halves; returns the loss before the step."""
        with torch.enable_grad():
            loss = closure()
        for part in self.parts:
            part.step()
        return loss


def _lbfgs(parameters: Parameters, lr: float) -> Optimizer:
    return optim.LBFGS(parameters, lr=lr, line_search_fn="strong_wolfe")


def _soap(parameters: Parameters, lr: float) -> Optimizer:
    try:
        from pytorch_optimizer import SOAP
    except ImportError as error:
        raise ImportError(
            "SOAP needs the package pytorch_optimizer, which is not installed; "
            "get it with: pip install 'hig[experiments]'"
        ) from error
    return SOAP(parameters, lr=lr, weight_decay=0)


_ROUTE = {"engine": "auto", "step_rule": "fixed"}

METHODS = MappingProxyType(
    {
        "hig": Method("HIG", hig.HIG, {"rcond": 1e-6, "kappa": -0.5, **_ROUTE}, jacobian=True),
        "gn": Method("Gauss–Newton", hig.GaussNewton, {"rcond": 1e-6, **_ROUTE}, jacobian=True),
        "lm": Method(
            "Levenberg–Marquardt",
            hig.LevenbergMarquardt,
            {"damping": 1e-3, **_ROUTE},
            jacobian=True,
        ),
        "adam": Method("Adam", optim.Adam),
        "sgd": Method("SGD", optim.SGD),
        "adagrad": Method("Adagrad", optim.Adagrad),
        "adadelta": Method("Adadelta", optim.Adadelta),
        "rmsprop": Method("RMSprop", optim.RMSprop),
        "lbfgs": Method("L-BFGS", _lbfgs),
        "soap": Method("SOAP", _soap),
        "muon": Method("Muon", MuonAdamW),
    }
)
