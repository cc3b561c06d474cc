"""Train the inverse of the Laplacian with half-inverse gradients in Kronecker factors."""

from experiments import submit
from problems import Poisson

if __name__ == "__main__":
    submit(Poisson(), "khig")
