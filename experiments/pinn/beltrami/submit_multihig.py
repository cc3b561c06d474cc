"""Train a solution of Beltrami flow with half-inverse gradients, one per loss."""

from experiments import submit
from problems.pinn import Beltrami

if __name__ == "__main__":
    submit(Beltrami(), "multihig")
