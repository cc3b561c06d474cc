"""Train the Poisson source problem with plain gradient descent."""

from experiments import submit
from problems import PoissonSource

if __name__ == "__main__":
    submit(PoissonSource(), "sgd")
