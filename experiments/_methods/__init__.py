"""Methods that the experiments compare."""

from experiments._methods.table import METHODS, Method, MuonAdamW, Optimizer

__all__ = ["METHODS", "Method", "MuonAdamW", "Optimizer"]
