"""Train a solution of the nonlinear Schrödinger equation with MinMax (published settings)."""

from experiments import submit
from problems.pinn import Schroedinger

if __name__ == "__main__":
    submit(Schroedinger(), "minmax")
