"""Train the Poisson source problem with L-BFGS."""

from experiments import submit
from problems import PoissonSource

if __name__ == "__main__":
    submit(PoissonSource(), "lbfgs")
