"""Train the Poisson source problem with Levenberg–Marquardt steps."""

from experiments import submit
from problems import PoissonSource

if __name__ == "__main__":
    submit(PoissonSource(), "lm")
