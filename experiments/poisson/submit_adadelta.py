"""Train the inverse of the Laplacian with Adadelta."""

from experiments import submit
from problems import Poisson

if __name__ == "__main__":
    submit(Poisson(), "adadelta")
