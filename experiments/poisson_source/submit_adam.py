"""Train the Poisson source problem with Adam."""

from experiments import submit
from problems import PoissonSource

if __name__ == "__main__":
    submit(PoissonSource(), "adam")
