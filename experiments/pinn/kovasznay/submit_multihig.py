"""Train a solution of Kovasznay flow with a half-inverse gradient per loss, combined by ConFIG."""

from experiments import submit
from problems.pinn import Kovasznay

if __name__ == "__main__":
    submit(Kovasznay(), "multihig")
