"""Train a solution of Kovasznay flow with half-inverse gradients, one per loss."""

from experiments import submit
from problems.pinn import Kovasznay

if __name__ == "__main__":
    submit(Kovasznay(), "multihig")
