"""Train the inverse of the Laplacian with Adagrad."""

from experiments import submit
from problems import Poisson

if __name__ == "__main__":
    submit(Poisson(), "adagrad")
