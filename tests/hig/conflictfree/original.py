"""The package ``conflictfree`` and this one, by the same names."""

import importlib

import torch

THEIRS, OURS = "conflictfree", "hig.conflictfree"


def get(package, module, name):
    return getattr(importlib.import_module(f"{package}.{module}"), name)


OPERATORS = {
    "config": lambda get: get("grad_operator", "ConFIGOperator")(),
    "config, general": lambda get: get("grad_operator", "ConFIGOperator")(
        allow_simplified_model=False
    ),
    "config, pinv": lambda get: get("grad_operator", "ConFIGOperator")(
        allow_simplified_model=False, use_least_square=False
    ),
    "pcgrad": lambda get: get("grad_operator", "PCGradOperator")(),
    "imtlg": lambda get: get("grad_operator", "IMTLGOperator")(),
}


LENGTHS = {
    name: lambda get, name=name: get("length_model", name)(*([1] if "Specific" in name else []))
    for name in (
        "ProjectionLength", "TrackMinimum", "TrackMaximum", "TrackHarmonicAverage",
        "TrackArithmeticAverage", "TrackGeometricAverage", "TrackSpecific",
    )
}  # fmt: skip


def of(package):
    return lambda module, name: get(package, module, name)


def weights_model(package, dtype):
    """Weights from the losses; in the dtype of the gradients, as the original has it."""
    base = get(package, "weight_model", "WeightModel")

    class ByLoss(base):
        def get_weights(self, gradients, losses=None, device=None):
            weights = 1 + torch.tensor([float(loss) for loss in losses], dtype=dtype)
            return weights / (1 + weights)

    return ByLoss()


def ones(package, dtype):
    class Ones(get(package, "weight_model", "EqualWeight")):
        def get_weights(self, gradients, losses=None, device=None):
            return torch.ones(len(gradients), dtype=dtype)

    return Ones()


def gradient_of(package, network, loss):
    network.zero_grad()
    loss.backward()
    return get(package, "utils", "get_gradient_vector")(network, none_grad_mode="zero")
