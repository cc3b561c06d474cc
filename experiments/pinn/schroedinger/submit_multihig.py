"""Train a solution of the nonlinear Schrödinger equation with a half-inverse gradient per loss."""

from experiments import submit
from problems.pinn import Schroedinger

if __name__ == "__main__":
    submit(Schroedinger(), "multihig")
