"""Train a solution of Burgers' equation with half-inverse gradients, one per loss."""

from experiments import submit
from problems.pinn import Burgers

if __name__ == "__main__":
    submit(Burgers(), "multihig")
