"""Train a solution of the nonlinear Schrödinger equation with half-inverse gradients."""

from experiments import submit
from problems.pinn import Schroedinger

if __name__ == "__main__":
    submit(Schroedinger(), "hig")
