"""Methods that the experiments compare."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal, Protocol

import torch
from torch import Tensor, optim

import hig
from experiments._methods.loss_weighting import LearningRateAnnealing, MinMax, ReLoBRaLo
from experiments._methods.several_losses import alternating, combined
from hig.conflictfree import ConFIGOperator, GradientOperator, IMTLGOperator, PCGradOperator
from problems import Settings

Parameters = Sequence[torch.nn.Parameter]


class Optimizer(Protocol):
    """The part of `torch.optim.Optimizer` that a run needs."""

    param_groups: list[dict]

    def zero_grad(self) -> None:
        """Clear the gradients."""

    def step(self, closure: Callable[[], object]) -> Tensor:
        """Take one step; returns the loss before it."""

    def state_dict(self) -> dict:
        """Return all that the next step depends on besides parameters and closure."""

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore a state."""


@dataclass(frozen=True)
class Method:
    """An optimiser with the name that figures give it.

    Attributes:
        label: Name in legends.
        build: Makes the optimiser from parameters, step size and the options below.
        options: Fields of `Settings`, besides batch and step size, that the method has, with
            their defaults. All but the schedule are arguments of the optimiser.
        closure: Kind of closure that the optimiser takes: ``"backward"`` returns the
            loss after a backward pass, ``"outputs"`` returns ``(loss, prediction)``, ``"pairs"``
            a list of these, ``"losses"`` a list of losses, and ``"turns"`` the loss of a number.
    """

    label: str
    build: Callable[..., Optimizer]
    options: Mapping[str, float | int | str | None] = field(default_factory=dict)
    closure: Literal["backward", "outputs", "pairs", "losses", "turns"] = "backward"

    @property
    def jacobian(self) -> bool:
        """Return whether the optimiser reports on joint Jacobians."""
        return self.closure in ("outputs", "pairs") and "engine" in self.options

    @property
    def several_losses(self) -> bool:
        """Return whether the method needs a problem with several losses."""
        return self.closure in ("pairs", "losses", "turns")

    def complete(self, settings: Settings) -> Settings:
        """Put the defaults of this method where its settings are None."""
        missing = {n: v for n, v in self.options.items() if getattr(settings, n) is None}
        return replace(settings, **missing)

    def optimizer(
        self, parameters: Parameters, settings: Settings, reduction: str = "mean"
    ) -> Optimizer:
        """Make the optimiser; None among the settings stands for the defaults of the method.

        By ``reduction``, ``"mean"`` or ``"sum"``, losses of several processes make one.
        """
        settings = self.complete(settings)
        options = {name: getattr(settings, name) for name in self.options if name != "schedule"}
        steps = options.pop("lanczos_steps", None)
        if options.get("method") == "lanczos":
            options["method"] = hig.Lanczos(steps=steps)
        if self.closure == "outputs":  # MultiHIG steps in one process
            options["reduction"] = reduction
        return self.build(parameters, lr=settings.lr, **options)


class MuonAdamW:
    """Muon for the weight matrices, AdamW for biases and everything else.

    Muon orthogonalises matrices and takes nothing else. With the adjusted step size both halves
    move their parameters by about ``lr`` per entry, so that one ``lr`` serves both.
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

    @property
    def param_groups(self) -> list[dict]:
        """Return those of both halves."""
        return [group for part in self.parts for group in part.param_groups]

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

    def state_dict(self) -> dict:
        """Return those of both halves."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore a state."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)


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


def _combined(label: str, operator: Callable[[], GradientOperator]) -> Method:
    return Method(label, combined(operator), _FIRST_ORDER, closure="losses")


def _alternating(label: str, operator: Callable[[], GradientOperator]) -> Method:
    return Method(label, alternating(operator), _FIRST_ORDER, closure="turns")


_ROUTE = {"engine": "auto", "method": "auto", "lanczos_steps": 300, "step_rule": "fixed"}
_CONSTANT = {"schedule": "constant"}
_ONE_LOSS = {**_ROUTE, "sketch": None, "momentum": None, "momentum_kind": None, **_CONSTANT}
_FIRST_ORDER = _CONSTANT

METHODS = MappingProxyType(
    {
        "hig": Method(
            "HIG", hig.HIG, {"rcond": 1e-6, "kappa": -0.5, **_ONE_LOSS}, closure="outputs"
        ),
        "gn": Method(
            "Gauss–Newton", hig.GaussNewton, {"rcond": 1e-6, **_ONE_LOSS}, closure="outputs"
        ),
        "lm": Method(
            "Levenberg–Marquardt",
            hig.LevenbergMarquardt,
            {"damping": 1e-3, **_ONE_LOSS},
            closure="outputs",
        ),
        "khig": Method(
            "Kronecker HIG",
            hig.KroneckerHIG,
            {"kappa": -0.5, "damping": 0.1, "graft": "eigenbasis", **_FIRST_ORDER},
            closure="outputs",
        ),
        "multihig": Method(
            "MultiHIG", hig.MultiHIG, {"rcond": 1e-6, "kappa": -0.5, **_ROUTE}, closure="pairs"
        ),
        "adam": Method("Adam", optim.Adam, _FIRST_ORDER),
        "sgd": Method("SGD", optim.SGD, _FIRST_ORDER),
        "adagrad": Method("Adagrad", optim.Adagrad, _FIRST_ORDER),
        "adadelta": Method("Adadelta", optim.Adadelta, _FIRST_ORDER),
        "rmsprop": Method("RMSprop", optim.RMSprop, _FIRST_ORDER),
        "lbfgs": Method("L-BFGS", _lbfgs, _FIRST_ORDER),
        "soap": Method("SOAP", _soap, _FIRST_ORDER),
        "muon": Method("Muon", MuonAdamW, _FIRST_ORDER),
        "pcgrad": _combined("PCGrad", PCGradOperator),
        "imtlg": _combined("IMTL-G", IMTLGOperator),
        "minmax": _combined("MinMax", MinMax),
        "relobralo": _combined("ReLoBRaLo", ReLoBRaLo),
        "lra": _combined("LRA", LearningRateAnnealing),
        "config": _combined("ConFIG", ConFIGOperator),
        "mpcgrad": _alternating("M-PCGrad", PCGradOperator),
        "mimtlg": _alternating("M-IMTL-G", IMTLGOperator),
        "mconfig": _alternating("M-ConFIG", ConFIGOperator),
    }
)
