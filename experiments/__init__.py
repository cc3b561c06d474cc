"""Training runs: a problem, a method, its settings, and one runner for all of them."""

from experiments._environment import prepare

prepare()  # before torch is imported, by anything below

from experiments._cli.submit import submit  # noqa: E402
from experiments._run.options import Options  # noqa: E402
from experiments._run.runner import run  # noqa: E402

__all__ = ["Options", "run", "submit"]
