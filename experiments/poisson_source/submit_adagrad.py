"""Train the Poisson source problem with Adagrad."""

from experiments import submit
from problems import PoissonSource

if __name__ == "__main__":
    submit(PoissonSource(), "adagrad")
