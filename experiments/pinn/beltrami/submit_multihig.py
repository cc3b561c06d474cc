"""Train a solution of Beltrami flow with a half-inverse gradient per loss, combined by ConFIG."""

from experiments import submit
from problems.pinn import Beltrami

if __name__ == "__main__":
    submit(Beltrami(), "multihig")
