"""Train the inverse of the Laplacian with plain gradient descent."""

from experiments import submit
from problems import Poisson

if __name__ == "__main__":
    submit(Poisson(), "sgd")
