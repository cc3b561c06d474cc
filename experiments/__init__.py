"""Training runs: a problem, a method, its settings, and one runner for all of them."""

from experiments._options import Options
from experiments._runner import run
from experiments._submit import submit

__all__ = ["Options", "run", "submit"]
