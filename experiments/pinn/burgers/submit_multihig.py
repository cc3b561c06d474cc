"""Train a solution of Burgers' equation with a half-inverse gradient per loss, combined by ConFIG."""

from experiments import submit
from problems.pinn import Burgers

if __name__ == "__main__":
    submit(Burgers(), "multihig")
